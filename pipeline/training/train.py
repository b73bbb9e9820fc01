"""A training run: its options, its images, where it runs."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from igpt_core.images.palette import Palette
from igpt_core.learning.training import TrainingState
from igpt_core.learning.training_config import TrainingConfig
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions
from pipeline.storage.filesystem import local_output, options_for
from pipeline.storage.redact import redacted_location
from pipeline.training.folder import acquire, remove_state
from pipeline.training.images import TrainingImages, read_images
from pipeline.training.loop import Objective, TrainingJob

# Options that change no result, or stand in the record in another form.
_NOT_RECORDED = {"quiet", "debug", "storage_options", "output", "palette", "model", "eval_input"}
_NOT_RECORDED |= {"max_error_fraction", "max_image_bytes", "address", "workers", "compile"}
_LATER = {"label_from_folder", "url_column"}


def check_options(options: TrainingOptions) -> None:
    """Raises UsageError unless exactly one option says when the run ends, the output can be
    written, workers have equal shares of a batch, and what --compile needs is there."""
    given = [options.epochs, options.steps, options.minutes]
    if sum(bound is not None for bound in given) != 1:
        raise UsageError("give one of --epochs, --steps and --minutes, the bound of the run")
    local_output(options.output)
    if options.batch_size % options.workers:
        raise UsageError(
            f"expected --batch-size as a multiple of --workers {options.workers}, found "
            f"{options.batch_size}"
        )
    # On the nodes of workers it shows there.
    if options.compile and options.workers == 1 and not _has_compiler(training_device(options)):
        raise UsageError(
            "--compile needs a C++ compiler (g++), found none; next: install one, or leave "
            "--compile out"
        )


def _has_compiler(device: str) -> bool:
    """Tells whether torch.compile finds what builds its kernels: on CPUs of C++, for GPUs of C."""
    names = ["CXX", "g++"] if device == "cpu" else ["CC", "gcc", "clang"]
    found = (os.environ.get(names[0]), *names[1:])
    return any(name and shutil.which(name) for name in found)


def training_config(options: TrainingOptions, n_images: int) -> TrainingConfig:
    """Returns how to train on n images, as the options say."""
    steps = options.steps
    if options.epochs is not None:
        # Too few images for a batch make no epoch; `run_training` refuses them.
        steps = options.epochs * max(n_images // options.batch_size, 1)
    return TrainingConfig(
        steps=steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        optimizer=options.optimizer,
        warmup_steps=options.warmup_steps,
        dtype=getattr(torch, options.dtype),
        seed=options.seed,
    )


def training_device(options: TrainingOptions) -> str:
    """Returns where to compute: "cpu" or "cuda"."""
    if options.device != "auto":
        return options.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def evaluation_device(options: TrainingOptions) -> str:
    """Returns where this process evaluates: workers have GPUs that it may lack."""
    return training_device(options) if torch.cuda.is_available() else "cpu"


def find_images(
    options: TrainingOptions,
    location: str,
    *,
    palette: str,
    image_size: int,
    limit: int | None,
    label_column: str | None = None,
    label_from_folder: bool = False,
) -> TrainingImages:
    """Reads the images at a location as the options say; see `read_images`."""
    return read_images(
        location,
        palette=palette,
        image_size=image_size,
        resize=options.resize,
        crop=options.crop,
        limit=limit,
        format=options.format,
        image_column=options.image_column,
        url_column=options.url_column,
        label_column=label_column,
        label_from_folder=label_from_folder,
        max_error_fraction=options.max_error_fraction,
        max_image_bytes=options.max_image_bytes,
        input_options=options_for(options.storage_options, "input"),
        model_options=options_for(options.storage_options, "model"),
        shown=not options.quiet,
    )


def summary(options: TrainingOptions, state: TrainingState, images: TrainingImages) -> str:
    """Returns the line that a training run ends with."""
    return (
        f"{options.output}: {state.step} steps in {state.seconds / 60:.1f} minutes on "
        f"{len(images.tokens)} images ({images.n_failed} could not be read)"
    )


def run_training(
    images: TrainingImages,
    make_objective: Callable[[], Objective],
    *,
    options: TrainingOptions,
    palette: Palette,
    image_size: int,
    record: Mapping[str, Any],
    report: Callable[[str], None],
    held_out: TrainingImages | None = None,
) -> TrainingState:
    """Trains, or resumes where the same command was interrupted, and saves the objective's model.

    Args:
        images: with labels where the objective takes them.
        make_objective: makes what is trained; new weights come from torch's global generator.
        options: `output` becomes a model folder with the log beside the weights.
        record: what the result depends on beside the options; a folder of other ones is refused.
        report: is called with a line of progress now and then.
        held_out: images on which a causal model is evaluated during the run.

    Raises UsageError before anything is trained: too few images, or a folder that is not free.
    """
    config = training_config(options, len(images.tokens))
    if len(images.tokens) < config.batch_size:
        raise UsageError(
            f"expected a batch of {config.batch_size} readable images to train on at least, found "
            f"{len(images.tokens)}; next: more images, or a smaller --batch-size"
        )
    job = TrainingJob(
        images=images,
        make_objective=make_objective,
        config=config,
        palette=palette,
        image_size=image_size,
        held_out=held_out,
        folder=Path(local_output(options.output)).absolute(),
        save_dtype=getattr(torch, options.save_dtype),
        compiled=options.compile,
    )
    acquire(job.folder, {**_recorded(options), **record})
    if options.workers == 1:
        state = job.run(training_device(options), report)
    else:
        from pipeline.training.workers import run_on_workers  # Ray takes seconds to import

        state = run_on_workers(job, options, report)
    remove_state(job.folder)
    return state


def _recorded(options: TrainingOptions) -> dict[str, Any]:
    """Returns the options that a result depends on."""
    recorded = options.model_dump(exclude=_NOT_RECORDED)
    recorded["input"] = redacted_location(options.input)
    for name in _LATER & recorded.keys():
        if not recorded[name]:  # earlier versions recorded nothing
            del recorded[name]
    return recorded
