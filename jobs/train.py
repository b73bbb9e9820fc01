"""igpt train: next-pixel pretraining."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic import Field

from jobs.command import command, notes
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions

if TYPE_CHECKING:
    from igpt_core.images.palette import Palette
    from igpt_core.learning.objectives import NextPixel
    from pipeline.training.images import TrainingImages


class TrainOptions(TrainingOptions):
    palette: str | None = Field(
        None, description="palette (.npy) or model folder that has one; else that of --model"
    )
    model: str | None = Field(
        None, description="model to go on from: folder, URI or hub id; else a new one"
    )
    image_size: int = Field(32, ge=1, description="pixels per side")
    n_layer: int = Field(6, ge=1, description="layers")
    n_embd: int = Field(192, ge=1, description="width")
    n_head: int = Field(6, ge=1, description="attention heads")
    optimizer: Literal["adamw", "muon"] = Field(
        "muon", description="muon: for the matrices of the blocks, AdamW for the rest"
    )


@dataclass(frozen=True)
class _Start:
    """What a run begins with: `location` is that of the palette."""

    location: str
    palette: "Palette"
    image_size: int
    make_objective: "Callable[[], NextPixel]"
    record: dict[str, Any]


_OF_MODEL = ("palette", "image_size", "n_layer", "n_embd", "n_head")


def run(options: TrainOptions) -> None:
    import torch

    from igpt_core.heads import load_model
    from igpt_core.learning.training import evaluate
    from pipeline.training.train import check_options, evaluation_device, run_training, summary

    say = notes(options)
    check_options(options)
    start = _trained_model(options) if options.model is not None else _new_model(options)
    evaluated = None
    if options.eval_input is not None:  # before the work: a wrong path must not show after it
        evaluated = _images(options, options.eval_input, start, limit=None)
    images = _images(options, options.input, start, limit=options.limit)
    say(f"{len(images.tokens)} images to train on")
    state = run_training(
        images,
        start.make_objective,
        options=options,
        palette=start.palette,
        image_size=start.image_size,
        record={"palette": start.palette.fingerprint, **start.record},
        report=say,
        held_out=evaluated,
    )
    click.echo(summary(options, state, images))
    if evaluated is not None:
        model = load_model(options.output, device=evaluation_device(options), dtype=torch.float32)
        nats = evaluate(model, evaluated.tokens)
        click.echo(
            f"{nats:.4f} nats per pixel on {len(evaluated.tokens)} validation images "
            f"({evaluated.n_failed} could not be read)"
        )


def _new_model(options: TrainOptions) -> _Start:
    from igpt_core.heads import ImageGPTForCausalImageModeling
    from igpt_core.images.model_palette import load_palette
    from igpt_core.learning.objectives import NextPixel
    from igpt_core.model.config import ImageGPTConfig
    from pipeline.storage.filesystem import options_for

    if options.palette is None:
        raise UsageError("give --palette for a new model, or --model to go on from one")
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

    def make_objective() -> NextPixel:
        return NextPixel(ImageGPTForCausalImageModeling(config))

    return _Start(options.palette, palette, options.image_size, make_objective, {})


def _trained_model(options: TrainOptions) -> _Start:
    from igpt_core.learning.objectives import NextPixel
    from pipeline.batch.model import find_model
    from pipeline.storage.filesystem import options_for

    given = [f"--{name.replace('_', '-')}" for name in _OF_MODEL if _is_given(options, name)]
    if given:
        raise UsageError(f"{', '.join(given)} and --model exclude each other: it has its own")
    assert options.model is not None
    model_options = options_for(options.storage_options, "model")
    model = find_model(options.model, model_options)

    quantizer = model.quantizer

    def make_objective() -> NextPixel:
        return NextPixel.from_pretrained(model.location, storage_options=model_options)

    shape = {name: getattr(model.config, name) for name in ("n_layer", "n_embd", "n_head")}
    record = {"model": model.fingerprint, "image_size": quantizer.image_size, **shape}
    return _Start(model.location, quantizer.palette, quantizer.image_size, make_objective, record)


def _is_given(options: TrainOptions, name: str) -> bool:
    return name in options.model_fields_set


def _images(
    options: TrainOptions, location: str, start: _Start, *, limit: int | None
) -> "TrainingImages":
    from pipeline.training.train import find_images

    return find_images(
        options, location, palette=start.location, image_size=start.image_size, limit=limit
    )


COMMAND = command(
    "train",
    TrainOptions,
    run,
    help="Train an ImageGPT on the next pixel.",
    example="igpt train --input train/ --palette palette.npy --output model/ --minutes 60",
)
