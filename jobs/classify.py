"""igpt classify: the classes that a fine-tuned model finds in images."""

from jobs.command import command
from pipeline import cluster, rows
from pipeline.job import find_compute, find_model, prepare, start
from pipeline.options import ImageJobOptions, ModelOptions
from pipeline.stage import Stage
from pipeline.stages.batches import forward_batch_size
from pipeline.stages.forward import Classify, class_names
from pipeline.storage import UsageError, options_for

SHARD_SIZE = 1024


class ClassifyOptions(ModelOptions, ImageJobOptions):
    pass


def run(options: ClassifyOptions) -> None:
    model_options = options_for(options.storage_options, "model")
    begun = start(options)
    model = find_model(options.model, model_options, head="classification")
    if model.config.num_labels < 2:
        raise UsageError(
            f"{options.model} has one output, a number and no classes; next: igpt finetune with "
            "labels of two classes or more"
        )
    with cluster.connected(options.address):
        compute = find_compute(options)
        batch_size = options.batch_size or forward_batch_size(
            model.config,
            model.quantizer.image_size**2,
            device=compute.device,
            dtype=compute.dtype,
        )
        job = prepare(
            "classify",
            begun,
            columns=rows.classify_columns(
                model.config.num_labels, named=class_names(model.config) is not None
            ),
            quantizer=model.quantizer,
            model=model,
            compute=compute,
            results={"batch_size": batch_size},
            default_shard_size=lambda n: cluster.shard_size(
                n, batch_size, compute.device, most_batches=SHARD_SIZE // batch_size
            ),
        )
        arguments = {
            "model": model.location,
            "device": compute.device,
            "dtype": compute.dtype,
            "batch_size": batch_size,
            "model_options": model_options,
        }
        job.run(
            [
                job.read_images(),
                Stage(Classify, arguments, job.allotment.model),
                job.write_parts(),
            ]
        )


COMMAND = command(
    "classify",
    ClassifyOptions,
    run,
    help="Classify images with a fine-tuned model: class, probability and logits as Parquet.",
    example="igpt classify --input photos/ --model classifier/ --output out/classes",
)
