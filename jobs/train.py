"""igpt train: next-pixel pretraining, one process."""

import click
from pydantic import Field

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.training import evaluate
from igpt_core.model.checkpoint import load_palette
from igpt_core.model.config import ImageGPTConfig
from jobs.command import command
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions
from pipeline.storage.filesystem import options_for
from pipeline.training.images import TrainingImages
from pipeline.training.train import check_options, find_images, run_training


class TrainOptions(TrainingOptions):
    palette: str = Field(description="palette (.npy) or model folder that has one")
    image_size: int = Field(32, ge=1, description="pixels per side")
    n_layer: int = Field(6, ge=1, description="layers")
    n_embd: int = Field(192, ge=1, description="width")
    n_head: int = Field(6, ge=1, description="attention heads")


def run(options: TrainOptions) -> None:
    say = (lambda line: None) if options.quiet else (lambda line: click.echo(line, err=True))
    check_options(options)
    palette = load_palette(options.palette, options_for(options.storage_options, "model"))
    try:
        config = ImageGPTConfig(
            vocab_size=len(palette) + 1,
            n_positions=options.image_size**2,
            n_layer=options.n_layer,
            n_embd=options.n_embd,
            n_head=options.n_head,
            # One pass over more images than the model can learn by heart needs no dropout.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    held_out = None
    if options.eval_input is not None:  # before the work: a wrong path must not show after it
        held_out = _images(options, options.eval_input, limit=None)
    images = _images(options, options.input, limit=options.limit)
    say(f"{len(images.tokens)} images to train on")
    objective, state = run_training(
        images,
        lambda: NextPixel(ImageGPTForCausalImageModeling(config)),
        options=options,
        palette=palette,
        image_size=options.image_size,
        record={"palette": palette.fingerprint},
        report=say,
    )
    click.echo(f"{options.output}: {state.step} steps in {state.seconds / 60:.1f} minutes")
    if held_out is not None:
        nats = evaluate(objective.model, held_out.tokens)
        click.echo(f"{nats:.4f} nats per pixel on {len(held_out.tokens)} validation images")


def _images(options: TrainOptions, location: str, *, limit: int | None) -> TrainingImages:
    return find_images(
        options, location, palette=options.palette, image_size=options.image_size, limit=limit
    )


COMMAND = command(
    "train",
    TrainOptions,
    run,
    help="Train an ImageGPT on the next pixel, in one process.",
    example="igpt train --input train/ --palette palette.npy --output model/ --minutes 60",
)
