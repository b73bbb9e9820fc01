"""igpt score: how likely a model finds images."""

from typing import TYPE_CHECKING

from pydantic import Field

from jobs.command import batch_command
from pipeline.options import ImageJobOptions, ModelOptions

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec


class ScoreOptions(ModelOptions, ImageJobOptions):
    map: bool = Field(False, description="add the nats of every pixel, column nll_map")


def define(options: ScoreOptions) -> "JobSpec":
    from pipeline import rows
    from pipeline.batch.job import JobSpec, find_input
    from pipeline.batch.model import forward_batches, model_of
    from pipeline.stages.forward import Score

    model = model_of(options)
    return JobSpec(
        name="score",
        options=options,
        columns=rows.score_columns(model.quantizer.image_size**2, mapped=options.map),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=forward_batches(model, options),
        results={"map": options.map},
        find_source=lambda: find_input(options),
        stages=lambda job: [
            job.read_images(),
            job.model_stage(Score, mapped=options.map),
            job.write_parts(),
        ],
    )


COMMAND = batch_command(
    "score",
    ScoreOptions,
    define,
    help="Score images: nats and bits per pixel under the model, as Parquet.",
    example="igpt score --input photos/ --output out/scores --map",
)
