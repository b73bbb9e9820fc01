"""igpt finetune: a classifier from a model and labeled images."""

from typing import TYPE_CHECKING

import click
from pydantic import Field

from jobs.command import command, notes
from pipeline.options import TrainingOptions, note_default_model

if TYPE_CHECKING:
    from pipeline.batch.model import Model
    from pipeline.training.images import Labels, TrainingImages


class FinetuneOptions(TrainingOptions):
    model: str = Field("embedded", description="model to start from: folder, URI or hub id")
    label_column: str = Field("label", description="column of classes, whole numbers from 0")
    label_from_folder: bool = Field(
        False, description="the classes are the folders of the image files"
    )
    next_pixel_weight: float = Field(
        1.0, ge=0, description="weight of the next-pixel loss in the sum"
    )
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")


def run(options: FinetuneOptions) -> None:
    import torch

    from igpt_core.heads import load_model
    from igpt_core.learning.objectives import JointClassification
    from igpt_core.learning.training import accuracy
    from pipeline.batch.model import find_model
    from pipeline.storage.filesystem import options_for
    from pipeline.training.train import check_options, evaluation_device, run_training, summary

    say = notes(options)
    check_options(options)
    model_options = options_for(options.storage_options, "model")
    head = "causal" if options.next_pixel_weight else None
    model = find_model(options.model, model_options, head=head)
    evaluated = None
    if options.eval_input is not None:  # before the work: a wrong path must not show after it
        evaluated = _labeled(options, options.eval_input, model, limit=None)
    images, labels = _labeled(options, options.input, model, limit=options.limit)
    names = labels.all_names()
    if evaluated is not None:
        evaluated[1].check_against(names)
    note_default_model(options)
    say(f"{len(images.tokens)} images of {len(names)} classes to train on")
    state = run_training(
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
    click.echo(summary(options, state, images))
    if evaluated is not None:
        validation, known = evaluated
        classifier = load_model(
            options.output,
            device=evaluation_device(options),
            dtype=torch.float32,
            head="classification",
        )
        share = accuracy(classifier, validation.tokens, known.classes)
        click.echo(
            f"accuracy {share:.4f} on {len(validation.tokens)} validation images "
            f"({validation.n_failed} could not be read)"
        )


def _labeled(
    options: FinetuneOptions, location: str, model: "Model", *, limit: int | None
) -> "tuple[TrainingImages, Labels]":
    from pipeline.training.train import find_images

    images = find_images(
        options,
        location,
        palette=model.location,
        image_size=model.quantizer.image_size,
        limit=limit,
        label_column=options.label_column,
        label_from_folder=options.label_from_folder,
    )
    assert images.labels is not None  # a column of them was asked for
    return images, images.labels


COMMAND = command(
    "finetune",
    FinetuneOptions,
    run,
    help="Fine-tune a model to classify images.",
    example="igpt finetune --input train.parquet --output classifier/ --epochs 5",
)
