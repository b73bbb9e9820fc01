"""igpt sample: unconditional samples."""

from typing import TYPE_CHECKING

from pydantic import Field

from jobs.command import batch_command
from pipeline.options import ModelOptions, RunOptions, SamplingOptions

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec


class SampleOptions(SamplingOptions, ModelOptions, RunOptions):
    count: int = Field(ge=1, description="images to sample")


def define(options: SampleOptions) -> "JobSpec":
    from pipeline import rows
    from pipeline.batch.job import JobSpec
    from pipeline.batch.model import drawing_of, model_of, sampling_batches
    from pipeline.engine.stage import Stage
    from pipeline.inputs.source import Source
    from pipeline.stages.generate import NameSamples, Sample

    model = model_of(options)
    size = model.quantizer.image_size
    drawn = options.best_of or 1
    drawing = drawing_of(options, 1, drawn)
    best = options.best_of is not None
    return JobSpec(
        name="sample",
        options=options,
        columns=rows.sample_columns(size**2, scored=options.scored, best=best),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=sampling_batches(model, options, drawn, cache_dtype=options.cache_dtype),
        sequences=drawn,
        generates=True,
        results={
            "count": options.count,
            "sample_index": best or None,  # a run of an earlier igpt lacks the column
            **options.sampling_results,
        },
        find_source=lambda: Source.numbered(options.count),
        stages=lambda job: [
            Stage(NameSamples, {}, job.resources.reading),
            job.model_stage(Sample, drawing=drawing, image_size=size),
            job.write_parts(),
        ],
    )


COMMAND = batch_command(
    "sample",
    SampleOptions,
    define,
    help="Draw unconditional samples: tokens and PNG as Parquet.",
    example="igpt sample --count 64 --output out/samples --top-k 100",
)
