"""igpt quantize: images to tokens."""

from pydantic import Field

from jobs.command import batch_command
from pipeline import rows
from pipeline.batch.definition import BatchJob, Definition
from pipeline.batch.model import find_quantizer
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions
from pipeline.storage.filesystem import options_for


class QuantizeOptions(ImageJobOptions):
    model: str | None = Field(
        None, description="model whose palette and size to use [default: embedded]"
    )
    palette: str | None = Field(None, description="palette (.npy) in place of a model")
    image_size: int | None = Field(
        None, ge=1, description="pixels per side [default: the model's, or 32]"
    )


def define(options: QuantizeOptions) -> Definition:
    if options.model is not None and options.palette is not None:
        raise UsageError("give either --model or --palette, found both")
    size = options.image_size or (32 if options.palette else None)
    quantizer = find_quantizer(
        options.palette or options.model or "embedded",
        size,
        options_for(options.storage_options, "model"),
    )
    return Definition(
        columns=rows.quantize_columns(quantizer.image_size**2),
        quantizer=quantizer,
        stages=lambda job: [job.read_images(), job.write_parts()],
    )


JOB = BatchJob("quantize", QuantizeOptions, define)
COMMAND = batch_command(
    JOB,
    help="Turn images into tokens: read, decode, resize, quantize, write Parquet.",
    example="igpt quantize --input s3://bucket/images/ --output s3://bucket/tokens",
)
