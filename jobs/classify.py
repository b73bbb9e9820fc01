"""igpt classify: the classes that a fine-tuned model finds in images."""

from jobs.command import batch_command
from pipeline import rows
from pipeline.batch.definition import BatchJob, Definition
from pipeline.batch.model import forward_batches, model_of
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions, ModelOptions
from pipeline.stages.forward import Classify, class_names


class ClassifyOptions(ModelOptions, ImageJobOptions):
    pass


def define(options: ClassifyOptions) -> Definition:
    model = model_of(options, head="classification")
    if model.config.num_labels < 2:
        raise UsageError(
            f"{options.model} has one output, a number and no classes; next: igpt finetune with "
            "labels of two classes or more"
        )
    named = class_names(model.config) is not None
    return Definition(
        columns=rows.classify_columns(model.config.num_labels, named=named),
        quantizer=model.quantizer,
        model=model,
        images_per_batch=forward_batches(model, options),
        stages=lambda job: [job.read_images(), job.model_stage(Classify, {}), job.write_parts()],
    )


JOB = BatchJob("classify", ClassifyOptions, define)
COMMAND = batch_command(
    JOB,
    help="Classify images with a fine-tuned model: class, probability and logits as Parquet.",
    example="igpt classify --input photos/ --model classifier/ --output out/classes",
)
