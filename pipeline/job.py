"""A job over images, from its options to a run directory with a plan, and to its report."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import pyarrow as pa

from igpt_core.checkpoint import load_image_size, load_palette, model_fingerprint
from igpt_core.config import CONFIG_FILE, ImageGPTConfig
from igpt_core.errors import NoHeadError
from igpt_core.image_processor import PREPROCESSOR_FILE
from igpt_core.model import HEADS
from igpt_core.model_files import pinned
from igpt_core.palette import Palette
from pipeline import cluster, rows
from pipeline.options import ImageJobOptions, ModelOptions
from pipeline.parts import WriteParts
from pipeline.report import write_report
from pipeline.run import execute
from pipeline.run_directory import RunDirectory, new_record, refuse_other_run
from pipeline.shards import Plan, Source, find_source
from pipeline.sheet_rows import ROWS as SHEET_ROWS
from pipeline.stage import Stage
from pipeline.stages.images import ReadImages
from pipeline.storage import (
    UsageError,
    absolute,
    absolute_input,
    absolute_model,
    masked,
    options_for,
)

SECRET_OPTIONS = {"storage_options"}


@dataclass(frozen=True)
class Quantizer:
    """What makes tokens of pixels: where the palette lies, and the size of the images."""

    location: str
    palette: Palette
    image_size: int


@dataclass(frozen=True)
class Model:
    """A model as the driver knows it: without its weights."""

    location: str
    config: ImageGPTConfig
    fingerprint: str
    quantizer: Quantizer


@dataclass(frozen=True)
class Compute:
    """Where a model computes ("cpu" or "cuda"), and the name of the dtype."""

    device: str
    dtype: str


def find_quantizer(location: str, image_size: int | None, options: Mapping[str, Any]) -> Quantizer:
    """The palette and image size of a model folder, or of a palette file and a given size."""
    location = pinned(absolute_model(location), (PREPROCESSOR_FILE,))
    palette = load_palette(location, storage_options=options)
    if image_size is None:
        image_size = load_image_size(location, storage_options=options)
    return Quantizer(location, palette, image_size)


# The next move where a model lacks a head.
_HEADLESS: dict[str | None, str] = {
    "causal": "has no next-pixel head; next: a model of igpt train or a published one (igpt "
    "finetune takes this one with --next-pixel-weight 0)",
    "classification": "has no classification head; next: igpt finetune gives it one",
}


def find_model(location: str, options: Mapping[str, Any], *, head: str | None = "causal") -> Model:
    """The model of a folder, checked but not loaded.

    Args:
        head: of igpt_core.model.HEADS, which the folder must have.

    Raises CheckpointError for a folder that holds none, UsageError for one that lacks the head
    or whose palette or image size does not fit.
    """
    given, location = location, pinned(absolute_model(location), (CONFIG_FILE,))
    try:
        config = HEADS[head].check_pretrained(location, storage_options=options)
    except NoHeadError as error:
        raise UsageError(f"{given} {_HEADLESS[head]}") from error
    quantizer = find_quantizer(location, None, options)
    if quantizer.image_size**2 > config.n_positions or len(quantizer.palette) > config.n_colors:
        raise UsageError(
            f"{given} has {config.n_positions} positions and {config.n_colors} colours, its "
            f"preprocessor_config.json {quantizer.image_size} x {quantizer.image_size} pixels and "
            f"{len(quantizer.palette)} colours; next: a model folder whose files fit"
        )
    return Model(location, config, model_fingerprint(location, options), quantizer)


def find_compute(options: ModelOptions) -> Compute:
    """Where and in what to compute, on the cluster that is joined. Raises UsageError."""
    device = options.device
    if device == "auto":
        device = "cuda" if cluster.gpus() else "cpu"
    elif device == "cuda" and not cluster.gpus():
        raise UsageError("expected a GPU for --device cuda, found none; next: --device cpu")
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Compute(device, dtype)


@dataclass(frozen=True)
class Start:
    """A job's beginning: its run directory, and either the run in it or the input of a new one."""

    options: ImageJobOptions
    directory: RunDirectory
    recorded: Mapping[str, Any] | None
    plan: Plan | None
    source: Source | None


def start(options: ImageJobOptions) -> Start:
    """Look at the output and, unless it holds the plan already, at the input; write nothing.

    Raises UsageError.
    """
    location = absolute(options.output)
    directory = RunDirectory.at(location, options_for(options.storage_options, "output"))
    recorded = directory.record()
    if recorded is None:
        directory.check_free()
    elif options.overwrite:
        recorded = None
    plan = directory.plan() if recorded is not None else None
    source = find_input(options) if plan is None else None
    return Start(options, directory, recorded, plan, source)


def find_input(options: ImageJobOptions) -> Source:
    """The input that the options name. Raises UsageError."""
    keep = options.keep_columns
    return find_source(
        options.input,
        format=options.format,
        image_column=options.image_column,
        id_column=options.id_column,
        keep_columns=None if keep is None else [c.strip() for c in keep.split(",") if c.strip()],
        limit=options.limit,
        storage_options=options_for(options.storage_options, "input"),
    )


@dataclass(frozen=True)
class Job:
    """A job whose run directory is claimed and whose plan is made."""

    name: str
    options: ImageJobOptions
    directory: RunDirectory
    plan: Plan
    schema: pa.Schema
    quantizer: Quantizer
    allotment: cluster.Allotment

    def read_images(self) -> Stage:
        """The first stage of every job over images."""
        arguments = {
            "format": self.plan.format,
            "image_column": self.plan.image_column,
            "id_column": self.plan.id_column,
            "passthrough": self.plan.passthrough,
            "palette": self.quantizer.location,
            "image_size": self.quantizer.image_size,
            "resize": self.options.resize,
            "crop": self.options.crop,
            "input_options": options_for(self.options.storage_options, "input"),
            "model_options": options_for(self.options.storage_options, "model"),
        }
        return Stage(ReadImages, arguments, self.allotment.reading)

    def write_parts(self) -> Stage:
        """The last stage of every job."""
        arguments = {
            "output": self.directory.location,
            "job": self.name,
            "schema": self.schema,
            "image_size": self.quantizer.image_size,
            "palette": self.quantizer.location,
            "examples": ceil(SHEET_ROWS / len(self.plan.shards)),
            "output_options": options_for(self.options.storage_options, "output"),
            "model_options": options_for(self.options.storage_options, "model"),
        }
        return Stage(WriteParts, arguments, self.allotment.writing)

    def run(self, stages: Sequence[Stage]) -> None:
        """Execute, write the report, say where it lies. Raises as `execute` does."""
        report = execute(
            self.directory,
            self.plan,
            stages,
            max_error_fraction=self.options.max_error_fraction,
            progress=self.options.progress,
        )
        location = self.directory.location
        write_report(
            location,
            storage_options=options_for(self.options.storage_options, "output"),
            palette=self.quantizer.palette,
        )
        if self.options.json_lines:
            print(json.dumps({"event": "done", "output": location, **report}), flush=True)
        else:
            print(f"{location}/report.html", flush=True)


def prepare(
    name: str,
    begun: Start,
    *,
    columns: Sequence[rows.Column],
    quantizer: Quantizer,
    model: Model | None = None,
    compute: Compute | None = None,
    results: Mapping[str, Any] | None = None,
    default_shard_size: Callable[[int], int],
) -> Job:
    """Claim the run directory and make its plan, or find both as an earlier command left them.

    Args:
        columns: what the job adds to the id and the columns passed through.
        results: what the job's results depend on beside the input, the quantizer and the model.
        default_shard_size: from the number of rows, where the options give none.

    Raises UsageError.
    """
    options, directory, plan = begun.options, begun.directory, begun.plan
    wanted = _dependencies(name, options, quantizer) | dict(results or {})
    wanted |= {"model": model and model.fingerprint}
    wanted |= {"device": compute and compute.device, "dtype": compute and compute.dtype}
    if begun.recorded is not None:
        # Where the size of shards is not given it is found, so it is what was found then.
        given = {} if options.shard_size is None else {"shard_size": options.shard_size}
        refuse_other_run(directory.location, begun.recorded["results"], wanted | given)
    if plan is None:
        assert begun.source is not None
        size = options.shard_size or default_shard_size(begun.source.rows)
        plan = begun.source.cut(size)
        schema = rows.schema_for(name, columns, passthrough=plan.passthrough)
        record = new_record(
            name,
            command=command_line(),
            options=_shown(options),
            seed=wanted.get("seed"),
            model=model and {"location": masked(model.location), "fingerprint": model.fingerprint},
            palette={
                "location": masked(quantizer.location),
                "fingerprint": quantizer.palette.fingerprint,
            },
            image_size=quantizer.image_size,
            columns=rows.described(schema, columns),
            passthrough=plan.passthrough.names,
            results=wanted | {"shard_size": size},
        )
        directory.clear()
        directory.begin(record, plan)
    schema = rows.schema_for(name, columns, passthrough=plan.passthrough)
    allotment = cluster.allot(
        device=compute and compute.device,
        cpu_actors=options.cpu_actors,
        model_actors=options.model_actors if isinstance(options, ModelOptions) else None,
    )
    return Job(name, options, directory, plan, schema, quantizer, allotment)


def _dependencies(name: str, options: ImageJobOptions, quantizer: Quantizer) -> dict[str, Any]:
    """What the results of every job depend on."""
    known = options.model_dump(
        include={"format", "image_column", "id_column", "keep_columns", "limit", "resize", "crop"}
    )
    return {
        "job": name,
        "input": masked(absolute_input(options.input)),
        **known,
        "image_size": quantizer.image_size,
        "palette": quantizer.palette.fingerprint,
    }


def _shown(options: ImageJobOptions) -> dict[str, Any]:
    """The options as run.json shows them: no secrets."""
    values = options.model_dump(exclude=SECRET_OPTIONS, mode="json")
    return {key: masked(v) if isinstance(v, str) else v for key, v in values.items()}


def command_line() -> str:
    """The command as it was typed, without the values of --storage-options."""
    words = ["igpt", *sys.argv[1:]]
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        if before == "--storage-options":
            word = "..."
        elif word.startswith("--storage-options="):
            word = "--storage-options=..."
        shown.append(word)
    return masked(shlex.join(shown))
