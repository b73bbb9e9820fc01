"""A job over images, from its options to a run directory with a plan, and to its report."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igpt_core.checkpoint import load_image_size, load_palette, model_fingerprint
from igpt_core.config import ImageGPTConfig
from igpt_core.palette import Palette
from pipeline import cluster, rows
from pipeline.options import ImageJobOptions, InputJobOptions, ModelOptions
from pipeline.parts import WriteParts
from pipeline.report import write_report
from pipeline.run import execute
from pipeline.run_directory import RunDirectory, new_record, refuse_other_run
from pipeline.shards import Plan, plan_shards
from pipeline.stage import Stage
from pipeline.stages.images import ReadImages
from pipeline.storage import UsageError, absolute, options_for

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
    device: str
    dtype: str

    @property
    def facts(self) -> dict[str, str]:
        return {"location": self.location, "fingerprint": self.fingerprint}


def find_quantizer(location: str, image_size: int | None, options: Mapping[str, Any]) -> Quantizer:
    """The palette and image size of a model folder, or of a palette file and a given size."""
    location = absolute(location)
    palette = load_palette(location, storage_options=options)
    if image_size is None:
        image_size = load_image_size(location, storage_options=options)
    return Quantizer(location, palette, image_size)


def find_model(options: ModelOptions, storage: Mapping[str, Any]) -> Model:
    """The model that the options name, fit to be run on the cluster that is joined.

    Raises CheckpointError for a folder that holds none, UsageError for one whose palette or
    image size does not fit.
    """
    location = absolute(options.model)
    config = ImageGPTConfig.from_pretrained(location, storage_options=storage)
    quantizer = find_quantizer(location, None, storage)
    if quantizer.image_size**2 > config.n_positions or len(quantizer.palette) > config.n_colors:
        raise UsageError(
            f"{options.model} has {config.n_positions} positions and {config.n_colors} colours, "
            f"its preprocessor_config.json {quantizer.image_size} x {quantizer.image_size} pixels "
            f"and {len(quantizer.palette)} colours; next: a model folder whose files fit"
        )
    device = options.device
    if device == "auto":
        device = "cuda" if cluster.gpus() else "cpu"
    elif device == "cuda" and not cluster.gpus():
        raise UsageError("expected a GPU for --device cuda, found none; next: --device cpu")
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    fingerprint = model_fingerprint(location, storage_options=storage)
    return Model(location, config, fingerprint, quantizer, device, dtype)


@dataclass(frozen=True)
class Job:
    """A job whose run directory is claimed and whose plan is made."""

    name: str
    options: ImageJobOptions
    directory: RunDirectory
    plan: Plan
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
            "image_size": self.quantizer.image_size,
            "passthrough": self.plan.passthrough,
            "palette": self.quantizer.location,
            "output_options": options_for(self.options.storage_options, "output"),
            "model_options": options_for(self.options.storage_options, "model"),
        }
        return Stage(WriteParts, arguments, self.allotment.writing)

    def run(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Execute and report; the content of report.json. Raises as `execute` does."""
        report = execute(
            self.directory,
            self.plan,
            stages,
            max_error_fraction=self.options.max_error_fraction,
            progress=self.options.progress,
        )
        write_report(
            self.directory.location,
            storage_options=options_for(self.options.storage_options, "output"),
            palette=self.quantizer.palette,
        )
        return report


def prepare(
    name: str,
    options: ImageJobOptions,
    *,
    quantizer: Quantizer,
    model: Model | None,
    results: Mapping[str, Any],
    default_shard_size: Callable[[int], int],
) -> Job:
    """Claim the run directory and make its plan, or find both as an earlier command left them.

    Args:
        results: what the job's results depend on beside the input and the quantizer.
        default_shard_size: from the number of rows, where the options give none.

    Raises UsageError.
    """
    location = absolute(options.output)
    directory = RunDirectory.at(location, options_for(options.storage_options, "output"))
    wanted = _dependencies(name, options, quantizer, model) | dict(results)
    recorded = directory.record()
    if recorded is not None and options.overwrite:
        directory.clear()
        recorded = None
    if recorded is None:
        directory.check_free()
        size: Callable[[int], int] | int = options.shard_size or default_shard_size
    else:
        refuse_other_run(location, recorded["results"], wanted)
        size = recorded["results"]["shard_size"]
    plan = directory.plan() if recorded is not None else None
    if plan is None:
        plan = make_plan(options, size)
        rows.schema_for(name, quantizer.image_size**2, passthrough=plan.passthrough)
        wanted["shard_size"] = plan.shard_size
        record = new_record(
            name,
            command=command_line(),
            options=options.model_dump(exclude=SECRET_OPTIONS, mode="json"),
            seed=wanted.get("seed"),
            model=model and model.facts,
            palette={
                "location": quantizer.location,
                "fingerprint": quantizer.palette.fingerprint,
            },
            image_size=quantizer.image_size,
            results=wanted,
        )
        directory.begin(record, plan)
    allotment = cluster.allot(
        device=model and model.device,
        cpu_actors=options.cpu_actors,
        model_actors=options.model_actors if isinstance(options, ModelOptions) else None,
    )
    return Job(name, options, directory, plan, quantizer, allotment)


def _dependencies(
    name: str, options: ImageJobOptions, quantizer: Quantizer, model: Model | None
) -> dict[str, Any]:
    """What the results of every job depend on."""
    known = options.model_dump(
        include={"format", "image_column", "id_column", "keep_columns", "limit", "resize", "crop"}
    )
    return {
        "job": name,
        "input": absolute(options.input),
        **known,
        "shard_size": options.shard_size,
        "image_size": quantizer.image_size,
        "palette": quantizer.palette.fingerprint,
        "model": model and model.fingerprint,
        "device": model and model.device,
        "dtype": model and model.dtype,
    }


def make_plan(options: InputJobOptions, size: Callable[[int], int] | int) -> Plan:
    """The plan of an input that is begun now. Raises UsageError."""
    keep = options.keep_columns
    return plan_shards(
        options.input,
        shard_size=size,
        format=options.format,
        image_column=options.image_column,
        id_column=options.id_column,
        keep_columns=None if keep is None else [c.strip() for c in keep.split(",") if c.strip()],
        limit=options.limit,
        storage_options=options_for(options.storage_options, "input"),
    )


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
    return shlex.join(shown)
