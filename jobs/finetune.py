"""igpt finetune: a classifier from a model and labeled images, one process."""

import click
from pydantic import Field

from igpt_core.learning.objectives import JointClassification
from igpt_core.learning.training import accuracy
from jobs.command import command
from pipeline.batch.model import Model, find_model
from pipeline.options import TrainingOptions
from pipeline.storage.filesystem import options_for
from pipeline.training.images import TrainingImages
from pipeline.training.train import check_options, find_images, run_training


class FinetuneOptions(TrainingOptions):
    model: str = Field("embedded", description="model to start from: folder, URI or hub id")
    label_column: str = Field("label", description="column of classes, whole numbers from 0")
    next_pixel_weight: float = Field(
        1.0, ge=0, description="weight of the next-pixel loss in the sum"
    )
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")


def run(options: FinetuneOptions) -> None:
    say = (lambda line: None) if options.quiet else (lambda line: click.echo(line, err=True))
    check_options(options)
    model_options = options_for(options.storage_options, "model")
    head = "causal" if options.next_pixel_weight else None
    model = find_model(options.model, model_options, head=head)
    held_out = None
    if options.eval_input is not None:  # before the work: a wrong path must not show after it
        held_out = _labeled(options, options.eval_input, model, limit=None)
    images = _labeled(options, options.input, model, limit=options.limit)
    names = images.labels.all_names()
    if held_out is not None:
        held_out.labels.check_against(names)
    say(f"{len(images.tokens)} images of {len(names)} classes to train on")
    objective, state = run_training(
        images,
        lambda: JointClassification.from_pretrained(
            model.location,
            class_names=names,
            next_pixel_weight=options.next_pixel_weight,
            storage_options=model_options,
        ),
        options=options,
        palette=model.quantizer.palette,
        image_size=model.quantizer.image_size,
        record={"model": model.fingerprint, "classes": list(names)},
        report=say,
    )
    click.echo(f"{options.output}: {state.step} steps in {state.seconds / 60:.1f} minutes")
    if held_out is not None:
        share = accuracy(objective.model, held_out.tokens, held_out.labels.classes)
        click.echo(f"accuracy {share:.4f} on {len(held_out.tokens)} validation images")


def _labeled(
    options: FinetuneOptions, location: str, model: Model, *, limit: int | None
) -> TrainingImages:
    return find_images(
        options,
        location,
        palette=model.location,
        image_size=model.quantizer.image_size,
        limit=limit,
        label_column=options.label_column,
    )


COMMAND = command(
    "finetune",
    FinetuneOptions,
    run,
    help="Fine-tune a model to classify images, in one process.",
    example="igpt finetune --input train.parquet --output classifier/ --epochs 5",
)
