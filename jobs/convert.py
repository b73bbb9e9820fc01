"""igpt convert: any checkpoint to one safetensors folder."""

from typing import TYPE_CHECKING, Literal

import click
from pydantic import Field

from jobs.command import command
from pipeline.options import StorageOptions

if TYPE_CHECKING:
    from igpt_core.conversion.convert import Converted


class ConvertOptions(StorageOptions):
    input: str = Field(
        description="TensorFlow prefix (model.ckpt-N) or model folder; local, a URI or a hub id"
    )
    output: str = Field(description="local folder for the model")
    palette: str | None = Field(
        None, description="palette (.npy) or model folder; else the input's"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the weights; else as stored"
    )
    overwrite: bool = Field(False, description="replace the model in --output")


def run(options: ConvertOptions) -> None:
    import torch

    from igpt_core.conversion.convert import convert_checkpoint
    from pipeline.storage.filesystem import absolute_model, local_output, options_for

    converted = convert_checkpoint(
        absolute_model(options.input),
        local_output(options.output),
        palette=options.palette and absolute_model(options.palette),
        dtype=options.dtype and getattr(torch, options.dtype),
        overwrite=options.overwrite,
        storage_options=options_for(options.storage_options, "input"),
    )
    click.echo(f"{options.output}: {_summary(converted)}")


def _summary(converted: "Converted") -> str:
    config, processor = converted.config, converted.processor
    images = "no palette (next: --palette FILE.npy)"
    if processor is not None:
        n_colors = "no" if processor.clusters is None else len(processor.clusters)
        images = f"{processor.size['height']} x {processor.size['width']}, {n_colors} colors"
    return (
        f"{converted.architecture}, {config.n_layer} layers x {config.n_embd}, "
        f"{config.n_head} heads, {converted.n_weights:,} weights in "
        f"{str(converted.dtype).removeprefix('torch.')}; images: {images}"
    )


COMMAND = command(
    "convert",
    ConvertOptions,
    run,
    help="Turn a checkpoint (OpenAI's TensorFlow, .bin, shards) into one safetensors folder.",
    example="igpt convert --input model.ckpt-131000 --palette kmeans_centers.npy --output model",
)
