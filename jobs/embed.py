"""igpt embed: features of images at chosen layers."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from jobs.command import batch_command
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions, ModelOptions

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec


class EmbedOptions(ModelOptions, ImageJobOptions):
    layers: str = Field(
        "middle", description="middle (n_layer // 2), all, or a list such as 8,12; 0: the embedding"
    )
    pool: Literal["mean"] = Field("mean", description="pooling over positions")
    normed: bool = Field(False, description="each layer's normed input, as in the paper")
    no_sos: bool = Field(False, description="feed the pixels alone, without the start token")
    embedding_dtype: Literal["float32", "float16"] = Field(
        "float32", description="dtype of the columns"
    )


def define(options: EmbedOptions) -> "JobSpec":
    import pyarrow as pa

    from igpt_core import chosen_layers
    from pipeline import rows
    from pipeline.batch.job import JobSpec, find_input
    from pipeline.batch.model import forward_batches, model_of
    from pipeline.stages.forward import Embed

    model = model_of(options, head=None)
    try:
        layers = chosen_layers(options.layers, model.config.n_layer)
    except ValueError as error:
        raise UsageError(f"--layers {options.layers}: {error}") from error
    dtype = {"float32": pa.float32(), "float16": pa.float16()}[options.embedding_dtype]
    own = options.model_dump(include={"pool", "normed", "no_sos", "embedding_dtype"})
    return JobSpec(
        name="embed",
        options=options,
        columns=rows.embed_columns(layers, model.config.n_embd, dtype),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=forward_batches(model, options),
        results={"layers": list(layers), **own},
        find_source=lambda: find_input(options),
        stages=lambda job: [
            job.read_images(),
            job.model_stage(
                Embed,
                layers=layers,
                sos=not options.no_sos,
                normed=options.normed,
                embedding_dtype=options.embedding_dtype,
            ),
            job.write_parts(),
        ],
    )


COMMAND = batch_command(
    "embed",
    EmbedOptions,
    define,
    help="Embed images: the mean of hidden states at one or more layers, as Parquet.",
    example="igpt embed --input photos/ --output out/embeddings --layers middle",
)
