"""igpt classify: the classes that a fine-tuned model finds in images."""

from typing import TYPE_CHECKING

from jobs.command import batch_command
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions, ModelOptions

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec


class ClassifyOptions(ModelOptions, ImageJobOptions):
    pass


def define(options: ClassifyOptions) -> "JobSpec":
    from pipeline import rows
    from pipeline.batch.job import JobSpec, find_input
    from pipeline.batch.model import forward_batches, model_of
    from pipeline.stages.forward import Classify, class_names

    model = model_of(options, head="classification")
    if model.config.num_labels < 2:
        raise UsageError(
            f"{options.model} has one output, a number and no classes; next: igpt finetune with "
            "labels of two classes or more"
        )
    named = class_names(model.config) is not None
    return JobSpec(
        name="classify",
        options=options,
        columns=rows.classify_columns(model.config.num_labels, named=named),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=forward_batches(model, options),
        find_source=lambda: find_input(options),
        stages=lambda job: [job.read_images(), job.model_stage(Classify), job.write_parts()],
    )


COMMAND = batch_command(
    "classify",
    ClassifyOptions,
    define,
    help="Classify images with a fine-tuned model: class, probability and logits as Parquet.",
    example="igpt classify --input photos/ --model classifier/ --output out/classes",
)
