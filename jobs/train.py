"""igpt train: next-pixel pretraining, one process."""

from typing import Literal

import click
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from igpt_core.checkpoint import load_palette
from igpt_core.config import ImageGPTConfig
from igpt_core.training import TrainingConfig, evaluate
from jobs.command import command
from pipeline.options import PixelOptions, StorageOptions
from pipeline.storage import UsageError, local_output, options_for
from pipeline.train import read_tokens, run_training


class TrainOptions(PixelOptions, StorageOptions):
    output: str = Field(description="local folder for the model and its log")
    palette: str = Field(description="palette (.npy) or model folder that has one")
    image_size: int = Field(32, ge=1, description="pixels a side")
    n_layer: int = Field(6, ge=1, description="layers")
    n_embd: int = Field(192, ge=1, description="width")
    n_head: int = Field(6, ge=1, description="attention heads")
    steps: int | None = Field(None, ge=1, description="end after N steps")
    minutes: float | None = Field(
        None, gt=0, description="end after X minutes; give one of the two"
    )
    batch_size: int = Field(8, ge=1, description="images a step")
    learning_rate: float = Field(2e-3, gt=0, description="highest, after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="on matrices")
    warmup_steps: int = Field(100, ge=0, description="steps to the highest learning rate")
    eval_input: str | None = Field(None, description="held-out images for a final loss")
    seed: int = Field(0, ge=0, description="of weights, order and flips")
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the saved weights"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of matrix products")


def run(options: TrainOptions) -> None:
    say = (lambda line: None) if options.quiet else (lambda line: click.echo(line, err=True))
    if (options.steps is None) == (options.minutes is None):
        raise UsageError("give either --steps or --minutes, the bound of the run")
    config = TrainingConfig(
        steps=options.steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_steps,
        dtype=getattr(torch, options.dtype),
        seed=options.seed,
    )
    output = local_output(options.output)
    palette = load_palette(options.palette, options_for(options.storage_options, "model"))
    try:
        model_config = ImageGPTConfig(
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
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    held_out = None
    if options.eval_input is not None:  # before the work: a wrong path must not show after it
        held_out = _tokens(options, options.eval_input, limit=None)
    tokens = _tokens(options, options.input, limit=options.limit)
    say(f"{len(tokens)} images to train on")
    model, state = run_training(
        tokens,
        output=output,
        model_config=model_config,
        config=config,
        palette=palette,
        image_size=options.image_size,
        device=device,
        save_dtype=getattr(torch, options.save_dtype),
        options={
            **options.model_dump(
                exclude={"quiet", "debug", "storage_options", "output", "palette", "eval_input"}
            ),
            "palette": palette.fingerprint,
        },
        report=say,
    )
    click.echo(f"{options.output}: {state.step} steps in {state.seconds / 60:.1f} minutes")
    if held_out is not None:
        nats = evaluate(model, held_out)
        click.echo(f"{nats:.4f} nats per pixel on {len(held_out)} held-out images")


def _tokens(options: TrainOptions, location: str, *, limit: int | None) -> NDArray[np.uint16]:
    return read_tokens(
        location,
        palette=options.palette,
        image_size=options.image_size,
        resize=options.resize,
        crop=options.crop,
        limit=limit,
        format=options.format,
        image_column=options.image_column,
        input_options=options_for(options.storage_options, "input"),
        model_options=options_for(options.storage_options, "model"),
    )


COMMAND = command(
    "train",
    TrainOptions,
    run,
    help="Train an ImageGPT on the next pixel, in one process.",
    example="igpt train --input train/ --palette palette.npy --output model/ --minutes 60",
)
