"""igpt train: next-pixel pretraining, one process."""

from typing import TYPE_CHECKING

import click
from pydantic import Field

from jobs.command import command, notes
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions

if TYPE_CHECKING:
    from pipeline.training.images import TrainingImages


class TrainOptions(TrainingOptions):
    palette: str = Field(description="palette (.npy) or model folder that has one")
    image_size: int = Field(32, ge=1, description="pixels per side")
    n_layer: int = Field(6, ge=1, description="layers")
    n_embd: int = Field(192, ge=1, description="width")
    n_head: int = Field(6, ge=1, description="attention heads")


def run(options: TrainOptions) -> None:
    from igpt_core.heads import ImageGPTForCausalImageModeling
    from igpt_core.images.model_palette import load_palette
    from igpt_core.learning.objectives import NextPixel
    from igpt_core.learning.training import evaluate
    from igpt_core.model.config import ImageGPTConfig
    from pipeline.storage.filesystem import options_for
    from pipeline.training.train import check_options, run_training, summary

    say = notes(options)
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
    evaluated = None
    if options.eval_input is not None:  # before the work: a wrong path must not show after it
        evaluated = _images(options, options.eval_input, limit=None)
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
        held_out=evaluated,
    )
    click.echo(summary(options, state, images))
    if evaluated is not None:
        nats = evaluate(objective.model, evaluated.tokens)
        click.echo(
            f"{nats:.4f} nats per pixel on {len(evaluated.tokens)} validation images "
            f"({evaluated.n_failed} could not be read)"
        )


def _images(options: TrainOptions, location: str, *, limit: int | None) -> "TrainingImages":
    from pipeline.training.train import find_images

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
