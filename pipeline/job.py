"""A batch job: its definition by options, its run directory and plan, its stages, its report."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import pyarrow as pa

from pipeline import cluster, rows
from pipeline.lease import Lease
from pipeline.listing import absolute_input
from pipeline.models import Compute, Model, Quantizer, find_compute
from pipeline.options import ImageJobOptions, ModelOptions, RunOptions
from pipeline.parts import WriteParts
from pipeline.planning import Source, find_source
from pipeline.report import write_report
from pipeline.run import execute
from pipeline.run_directory import RunDirectory, new_record, refuse_other_run
from pipeline.shards import Plan
from pipeline.sheet_rows import ROWS as SHEET_ROWS
from pipeline.stage import Stage
from pipeline.stages.batches import Computing
from pipeline.stages.images import ReadImages
from pipeline.storage import UsageError, absolute, absolute_model, masked, options_for

SECRET_OPTIONS = {"storage_options"}
SHARD_ROWS = 1024  # at most, of jobs that look at an image once; the default
PAINTED_BATCHES = 4  # model batches of a shard at most, of jobs that paint


@dataclass(frozen=True)
class Definition:
    """A job as its options make it.

    Attributes:
        columns: what it adds to the id and the columns passed through.
        quantizer: of the images that it reads or paints.
        stages: from source to sink, of a job whose plan is made.
        model: None for a job without one.
        images_per_batch: images that a model computes together where it computes so.
        sequences: that each of them makes in a batch.
        paints: whether it draws pixels one by one, so that a shard takes long.
        results: what results depend on beside the input, the quantizer, the model and the batch.
    """

    columns: Sequence[rows.Column]
    quantizer: Quantizer
    stages: Callable[["Job"], list[Stage]]
    model: Model | None = None
    images_per_batch: Callable[[Compute], int] | None = None
    sequences: int = 1
    paints: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)


def find_input(options: ImageJobOptions, *, prompt_column: str | None = None) -> Source:
    """The input that the options name. Raises UsageError."""
    keep = options.keep_columns
    source = find_source(
        options.input,
        format=options.format,
        image_column=options.image_column,
        id_column=options.id_column,
        keep_columns=None if keep is None else [c.strip() for c in keep.split(",") if c.strip()],
        prompt_column=prompt_column,
        limit=options.limit,
        storage_options=options_for(options.storage_options, "input"),
    )
    changed = {"resize": options.resize != "exact", "crop": options.crop != "squash"}
    unused = [name for name, given in changed.items() if given]
    if source.format == "tokens" and unused:
        raise UsageError(
            f"--{unused[0]} is for images, {options.input} holds tokens, which stay as they are; "
            "next: leave it out"
        )
    return source


@dataclass(frozen=True)
class BatchJob:
    """A kind of job that fills a run directory: its options, and what they define.

    `define` and `find_source` check what they are given, so they raise UsageError.
    """

    name: str
    options: type[RunOptions]
    define: Callable[[Any], Definition]
    find_source: Callable[[Any], Source] = find_input


@dataclass(frozen=True)
class Batch:
    """Where a job's model computes, and how many images at a time; no model, neither."""

    compute: Compute | None = None
    images: int | None = None

    @classmethod
    def of(cls, definition: Definition, options: RunOptions) -> "Batch":
        """On the cluster that is joined. Raises UsageError."""
        if definition.images_per_batch is None:
            return cls()
        assert isinstance(options, ModelOptions)
        compute = find_compute(options, grows=cluster.may_grow(options.address))
        return cls(compute, definition.images_per_batch(compute))

    def shard_size(self, definition: Definition, n_rows: int) -> int:
        """Rows of a shard where the options give none."""
        if self.compute is None or self.images is None:
            return SHARD_ROWS
        most = PAINTED_BATCHES if definition.paints else max(SHARD_ROWS // self.images, 1)
        return cluster.shard_size(n_rows, self.images, self.compute.device, most_batches=most)


@dataclass(frozen=True)
class Job:
    """A job whose plan is made; `output` is where its run directory lies, `lease` its right to
    work there, None where it only tries."""

    name: str
    options: RunOptions
    definition: Definition
    output: str
    plan: Plan
    batch: Batch
    allotment: cluster.Allotment
    lease: Lease | None = None

    @property
    def schema(self) -> pa.Schema:
        """Of the results."""
        columns = self.definition.columns
        return rows.schema_for(self.name, columns, passthrough=self.plan.passthrough)

    def read_images(self, *, mask: str | None = None, prompts: bool = False) -> Stage:
        """The first stage of every job over images; the arguments are those of `ReadImages`."""
        options, quantizer = self.options, self.definition.quantizer
        assert isinstance(options, ImageJobOptions)
        arguments = {
            "format": self.plan.format,
            "image_column": self.plan.image_column,
            "id_column": self.plan.id_column,
            "passthrough": self.plan.passthrough,
            "palette": quantizer.location,
            "image_size": quantizer.image_size,
            "resize": options.resize,
            "crop": options.crop,
            "mask": mask,
            "prompts": prompts,
            "input_options": options_for(options.storage_options, "input"),
            "model_options": options_for(options.storage_options, "model"),
        }
        return Stage(ReadImages, arguments, self.allotment.reading)

    def model_stage(
        self, cls: type[Callable[[pa.Table], pa.Table]], own: Mapping[str, Any]
    ) -> Stage:
        """The stage whose actors hold the model; `own` are the class's own arguments."""
        model, compute, images = self.definition.model, self.batch.compute, self.batch.images
        assert model is not None
        assert compute is not None
        assert images is not None
        computing = Computing(
            model.location,
            compute.device,
            compute.dtype,
            images,
            self.definition.sequences,
            options_for(self.options.storage_options, "model"),
        )
        return Stage(cls, {"computing": computing, **own}, self.allotment.model)

    def write_parts(self) -> Stage:
        """The last stage of every job."""
        quantizer = self.definition.quantizer
        arguments = {
            "output": self.output,
            "lease": self.lease,
            "job": self.name,
            "schema": self.schema,
            "image_size": quantizer.image_size,
            "palette": quantizer.location,
            "examples": ceil(SHEET_ROWS / max(len(self.plan.shards), 1)),
            "output_options": options_for(self.options.storage_options, "output"),
            "model_options": options_for(self.options.storage_options, "model"),
        }
        return Stage(WriteParts, arguments, self.allotment.writing)


def allotment_for(
    options: RunOptions, batch: Batch, *, claim_cpus: bool = True
) -> cluster.Allotment:
    """What each stage gets of the cluster that is joined; see `cluster.allot`."""
    return cluster.allot(
        device=batch.compute and batch.compute.device,
        cpu_actors=options.cpu_actors,
        model_actors=options.model_actors if isinstance(options, ModelOptions) else None,
        claim_cpus=claim_cpus,
        grows=cluster.may_grow(options.address),
    )


def run_job(kind: BatchJob, options: RunOptions, *, again: Collection[int] = ()) -> None:
    """The job from its options to its report, or what is left of it.

    Args:
        again: shards that are forgotten, once all is checked, and so are done again.

    Raises UsageError before work begins; RunFailed and OverErrorBudget as `execute` does.
    """
    directory = RunDirectory.at(
        absolute(options.output), options_for(options.storage_options, "output")
    )
    recorded = directory.record()
    if recorded is None:
        directory.check_free()
    begins = recorded is None or options.overwrite
    plan = None if begins else directory.plan()
    source = kind.find_source(options) if plan is None else None
    if recorded is not None and not begins and isinstance(options, ModelOptions):
        # Where it is not given it is found, in memory that may be another's today.
        found = options.batch_size or recorded["results"].get("batch_size")
        options = options.model_copy(update={"batch_size": found})
    definition = kind.define(options)
    with cluster.connected(options.address):
        _say_what_must_come(options)
        batch = Batch.of(definition, options)
        wanted = dependencies(kind.name, options, definition, batch)
        size = options.shard_size
        if recorded is not None and not begins:
            # Where the size of shards is not given it is found, so it is what was found then.
            given = {} if size is None else {"shard_size": size}
            refuse_other_run(directory.location, recorded["results"], wanted | given)
            size = recorded["results"]["shard_size"]
        if source is not None:
            quantizer = definition.quantizer
            source.check_tokens(
                image_size=quantizer.image_size, palette=quantizer.palette.fingerprint
            )
            # Where rows are not counted, each file is a shard by itself, whatever the size.
            plan = source.cut(size or batch.shard_size(definition, source.rows or 0))
        assert plan is not None
        allotment = allotment_for(options, batch)
        job = Job(kind.name, options, definition, directory.location, plan, batch, allotment)
        record = _record(job, wanted) if begins else recorded
        job = replace(job, lease=_claim(job, directory, record or {}, begins=begins))
        if source is not None:
            directory.write_plan(plan)
        directory.forget(again)
        _execute(job, directory)


def _claim(job: Job, directory: RunDirectory, record: Mapping[str, Any], *, begins: bool) -> Lease:
    """The lease on the directory, which belongs to this run from now on. Raises UsageError where
    another run was faster."""
    options = options_for(job.options.storage_options, "output")
    lease = Lease(directory.location, options, str(record.get("run")))
    if begins and directory.record() is not None:
        lease.take()  # actors of the run that was there write nothing from now on
        directory.clear()
        directory.begin(record)
    else:
        if begins:
            directory.begin(record)
        lease.take()
    if not lease.may_write() or str((directory.record() or {}).get("run")) != lease.run:
        raise UsageError(
            f"another run took {directory.location} just now; next: wait for its end, or another "
            "--output"
        )
    return lease


def _say_what_must_come(options: RunOptions) -> None:
    """Where more GPUs are asked for than there are, people learn why nothing happens yet."""
    if not isinstance(options, ModelOptions) or options.device != "cuda":
        return
    asked, there = options.model_actors or 0, cluster.gpus()
    if asked > there and cluster.may_grow(options.address) and options.progress == "text":
        print(
            f"the cluster has {there} of {asked} GPUs: its autoscaler has to bring the others",
            file=sys.stderr,
            flush=True,
        )


def _execute(job: Job, directory: RunDirectory) -> None:
    """Run the stages, write the report, say where it lies."""
    options, lease = job.options, job.lease
    assert lease is not None
    try:
        report = execute(
            directory,
            job.plan,
            job.definition.stages(job),
            lease=lease,
            max_error_fraction=options.max_error_fraction,
            progress=options.progress,
        )
    finally:
        lease.release()
    write_report(
        job.output,
        storage_options=options_for(options.storage_options, "output"),
        palette=job.definition.quantizer.palette,
    )
    if options.json_lines:
        print(json.dumps({"event": "done", "output": job.output, **report}), flush=True)
    else:
        print(f"{job.output}/report.html", flush=True)


# Options of the input on which results depend as they are.
_INPUT_OPTIONS = {"format", "image_column", "id_column", "keep_columns", "limit", "resize", "crop"}


def dependencies(
    name: str, options: RunOptions, definition: Definition, batch: Batch
) -> dict[str, Any]:
    """What the results of a job depend on, as run.json keeps it; but for the size of shards."""
    quantizer, model, compute = definition.quantizer, definition.model, batch.compute
    found: dict[str, Any] = {"job": name}
    if isinstance(options, ImageJobOptions):
        found |= {"input": masked(absolute_input(options.input))}
        found |= options.model_dump(include=_INPUT_OPTIONS)
    found |= {"image_size": quantizer.image_size, "palette": quantizer.palette.fingerprint}
    if batch.images is not None:
        found |= {"batch_size": batch.images * definition.sequences}
    found |= definition.results
    found |= {"model": model and model.fingerprint}
    return found | {"device": compute and compute.device, "dtype": compute and compute.dtype}


def _record(job: Job, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The content of run.json."""
    model, quantizer = job.definition.model, job.definition.quantizer
    return new_record(
        job.name,
        command=command_line(),
        options=_shown(job.options),
        seed=wanted.get("seed"),
        model=model and {"location": masked(model.location), "fingerprint": model.fingerprint},
        palette={
            "location": masked(quantizer.location),
            "fingerprint": quantizer.palette.fingerprint,
        },
        image_size=quantizer.image_size,
        columns=rows.described(job.schema, job.definition.columns),
        passthrough=job.plan.passthrough.names,
        results=dict(wanted) | {"shard_size": job.plan.shard_size},
    )


# Options that hold locations, and how one is made absolute.
_LOCATIONS: dict[str, Callable[[str], str]] = {
    "input": absolute_input,
    "model": absolute_model,
    "palette": absolute_model,
    "mask": absolute,
    "run": absolute,
    "output": absolute,
}


def in_any_folder(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a job whose locations hold in any folder: local paths become absolute."""
    whole = dict(values)
    for name, absolute_of in _LOCATIONS.items():
        if whole.get(name) and not (name == "model" and whole.get("random_weights")):
            whole[name] = absolute_of(whole[name])
    return whole


def _shown(options: RunOptions) -> dict[str, Any]:
    """The options as run.json shows them: no secrets, and locations that hold in any folder."""
    values = in_any_folder(options.model_dump(exclude=SECRET_OPTIONS, mode="json"))
    return {key: masked(v) if isinstance(v, str) else v for key, v in values.items()}


# Holds what stood before the job where `igpt submit` was typed.
SUBMITTED_WITH = "IGPT_SUBMITTED_WITH"


def command_line() -> str:
    """The command as it was typed, without the values of --storage-options."""
    words = ["igpt", *shlex.split(os.environ.get(SUBMITTED_WITH, "")), *sys.argv[1:]]
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        if before == "--storage-options":
            word = "..."
        elif word.startswith("--storage-options="):
            word = "--storage-options=..."
        shown.append(word)
    return masked(shlex.join(shown))
