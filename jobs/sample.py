"""igpt sample: unconditional samples."""

from pydantic import Field

from jobs.command import batch_command
from pipeline import rows
from pipeline.batch.definition import BatchJob, Definition
from pipeline.batch.model import model_of, sampling_batches
from pipeline.engine.stage import Stage
from pipeline.inputs.source import Source
from pipeline.options import ModelOptions, RunOptions, SamplingOptions
from pipeline.stages.generate import NameSamples, Sample


class SampleOptions(SamplingOptions, ModelOptions, RunOptions):
    count: int = Field(ge=1, description="images to sample")


def define(options: SampleOptions) -> Definition:
    model = model_of(options)
    size = model.quantizer.image_size
    drawn = options.best_of or 1
    return Definition(
        columns=rows.sample_columns(size**2, scored=options.scored),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=sampling_batches(model, options, drawn),
        sequences=drawn,
        generates=True,
        results={"count": options.count, **options.sampling_results},
        stages=lambda job: [
            Stage(NameSamples, {}, job.resources.reading),
            job.model_stage(
                Sample,
                {"drawing": options.drawing(1, drawn), "image_size": size},
            ),
            job.write_parts(),
        ],
    )


JOB = BatchJob("sample", SampleOptions, define, lambda options: Source.numbered(options.count))
COMMAND = batch_command(
    JOB,
    help="Draw unconditional samples: tokens and PNG as Parquet.",
    example="igpt sample --count 64 --output out/samples --top-k 100",
)
