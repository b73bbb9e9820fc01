"""igpt score: how likely a model finds images."""

from pydantic import Field

from jobs.command import batch_command
from pipeline import rows
from pipeline.batch.definition import BatchJob, Definition
from pipeline.batch.model import forward_batches, model_of
from pipeline.options import ImageJobOptions, ModelOptions
from pipeline.stages.forward import Score


class ScoreOptions(ModelOptions, ImageJobOptions):
    map: bool = Field(False, description="add the nats of every pixel, column nll_map")


def define(options: ScoreOptions) -> Definition:
    model = model_of(options)
    return Definition(
        columns=rows.score_columns(model.quantizer.image_size**2, mapped=options.map),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=forward_batches(model, options),
        results={"map": options.map},
        stages=lambda job: [
            job.read_images(),
            job.model_stage(Score, {"mapped": options.map}),
            job.write_parts(),
        ],
    )


JOB = BatchJob("score", ScoreOptions, define)
COMMAND = batch_command(
    JOB,
    help="Score images: nats and bits per pixel under the model, as Parquet.",
    example="igpt score --input photos/ --output out/scores --map",
)
