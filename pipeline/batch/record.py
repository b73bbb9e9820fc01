"""What run.json says of a job, and what its results depend on."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from igpt_core.generation.sampling import NOISE_VERSION
from pipeline import rows
from pipeline.batch.job import Job, JobSpec
from pipeline.inputs.files import absolute_input
from pipeline.options import ImageJobOptions, RunOptions
from pipeline.run_directory.record import new_record
from pipeline.storage.filesystem import absolute, absolute_model
from pipeline.storage.redact import redacted_location

if TYPE_CHECKING:  # it imports torch
    from pipeline.stages.model_batches import ComputePlan

SECRET_OPTIONS = {"storage_options"}
# Options of the input on which results depend as they are.
_INPUT_OPTIONS = {"format", "image_column", "id_column", "keep_columns", "limit", "resize", "crop"}


def dependencies(spec: JobSpec, compute: "ComputePlan | None") -> dict[str, Any]:
    """Returns what the results of a job depend on, as run.json keeps it; but for the size of
    shards."""
    options, quantizer, model = spec.options, spec.quantizer, spec.model
    found: dict[str, Any] = {"job": spec.name}
    if isinstance(options, ImageJobOptions):
        found |= {"input": redacted_location(absolute_input(options.input))}
        found |= options.model_dump(include=_INPUT_OPTIONS)
        # Not false: earlier versions recorded nothing.
        found |= {"label_from_folder": options.label_from_folder or None}
        found |= {"url_column": options.url_column}
    found |= {"image_size": quantizer.image_size, "palette": quantizer.palette.fingerprint}
    if compute is not None:
        found |= {"batch_size": compute.images * compute.sequences}
    found |= spec.results
    if spec.generates and compute is not None:
        found |= {"noise": NOISE_VERSION, "window": compute.window}
        found |= {"kv_cache_dtype": compute.kv_cache_dtype}
    found |= {"model": model and model.fingerprint}
    return found | {"device": compute and compute.device, "dtype": compute and compute.dtype}


def record_of(
    job: Job, wanted: Mapping[str, Any], left_aside: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the content of run.json. `left_aside`: what a GPU does not do in its fastest way."""
    spec, model, quantizer = job.spec, job.spec.model, job.spec.quantizer
    return new_record(
        spec.name,
        command=command_line(),
        options=_shown(spec.options),
        seed=wanted.get("seed"),
        model=model
        and {"location": redacted_location(model.location), "fingerprint": model.fingerprint},
        palette={
            "location": redacted_location(quantizer.location),
            "fingerprint": quantizer.palette.fingerprint,
        },
        image_size=quantizer.image_size,
        columns=rows.described(job.schema, spec.columns),
        passthrough=job.plan.passthrough.names,
        results=dict(wanted) | {"shard_size": job.plan.shard_size},
        left_aside=list(left_aside),
    )


def is_plain(left_aside: Sequence[str] | None) -> bool:
    """Tells whether GPUs sample without what makes them faster, by `left_aside` of run.json; an
    earlier version, which had nothing of it, recorded nothing."""
    return left_aside is None or bool(left_aside)


# Options that hold locations, and how one is made absolute.
_LOCATIONS: dict[str, Callable[[str], str]] = {
    "input": absolute_input,
    "eval_input": absolute_input,
    "model": absolute_model,
    "palette": absolute_model,
    "mask": absolute,
    "run": absolute,
    "output": absolute,
}


def in_any_folder(values: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the local paths among a job's options absolute, so that they hold in any folder."""
    whole = dict(values)
    for name, absolute_of in _LOCATIONS.items():
        if whole.get(name) and not (name == "model" and whole.get("random_weights")):
            whole[name] = absolute_of(whole[name])
    return whole


def _shown(options: RunOptions) -> dict[str, Any]:
    """Returns the options for run.json: no secrets, and locations that hold in any folder."""
    values = in_any_folder(options.model_dump(exclude=SECRET_OPTIONS, mode="json"))
    return {key: redacted_location(v) if isinstance(v, str) else v for key, v in values.items()}


# Holds what stood before the job where `igpt submit` was typed.
SUBMITTED_WITH = "IGPT_SUBMITTED_WITH"


def command_line() -> str:
    """Returns the command as it was typed, without the values of --storage-options."""
    words = ["igpt", *shlex.split(os.environ.get(SUBMITTED_WITH, "")), *sys.argv[1:]]
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        if before == "--storage-options":
            word = "..."
        elif word.startswith("--storage-options="):
            word = "--storage-options=..."
        shown.append(word)
    return shlex.join(map(redacted_location, shown))
