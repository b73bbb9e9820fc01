"""igpt quantize: images to tokens."""

from typing import TYPE_CHECKING

from pydantic import Field

from jobs.command import batch_command
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec


class QuantizeOptions(ImageJobOptions):
    model: str | None = Field(
        None, description="model whose palette and size to use; else embedded"
    )
    palette: str | None = Field(None, description="palette (.npy) in place of a model")
    image_size: int | None = Field(
        None, ge=1, description="pixels per side; else the model's, or 32"
    )


def define(options: QuantizeOptions) -> "JobSpec":
    from pipeline import rows
    from pipeline.batch.job import JobSpec, find_input
    from pipeline.batch.quantizer import find_quantizer
    from pipeline.storage.filesystem import options_for

    if options.model is not None and options.palette is not None:
        raise UsageError("give either --model or --palette, found both")
    quantizer = find_quantizer(
        options.palette or options.model or "embedded",
        options.image_size or (32 if options.palette else None),
        options_for(options.storage_options, "model"),
    )
    return JobSpec(
        name="quantize",
        options=options,
        columns=rows.quantize_columns(quantizer.image_size**2),
        quantizer=quantizer,
        find_source=lambda: find_input(options),
        stages=lambda job: [job.read_images(), job.write_parts()],
    )


COMMAND = batch_command(
    "quantize",
    QuantizeOptions,
    define,
    help="Turn images into tokens: read, decode, resize, quantize, write Parquet.",
    example="igpt quantize --input s3://bucket/images/ --output s3://bucket/tokens",
)
