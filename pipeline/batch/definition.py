"""What the options of a job make of it: columns, model, stages; its input and its batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import rows
from pipeline.batch.model import Compute, Model, Quantizer, find_compute
from pipeline.engine import cluster
from pipeline.engine.stage import Stage
from pipeline.errors import UsageError
from pipeline.inputs.source import Source, find_source
from pipeline.options import ImageJobOptions, ModelOptions, RunOptions
from pipeline.storage.filesystem import options_for

if TYPE_CHECKING:
    from pipeline.batch.job import Job

SHARD_ROWS = 1024  # at most, of jobs that look at an image once; the default
SAMPLED_BATCHES = 4  # model batches of a shard at most, of jobs that paint


@dataclass(frozen=True)
class Definition:
    """A job as its options make it.

    Attributes:
        columns: what it adds to the id and the columns passed through.
        quantizer: of the images that it reads or generates.
        stages: from source to sink, of a job whose plan is made.
        model: None for a job without one.
        images_per_batch: images that a model computes together where it computes so.
        sequences: that each of them makes in a batch.
        generates: whether it draws pixels one by one, so that a shard takes long.
        results: what results depend on beside the input, the quantizer, the model and the batch.
    """

    columns: Sequence[rows.Column]
    quantizer: Quantizer
    stages: Callable[["Job"], list[Stage]]
    model: Model | None = None
    images_per_batch: Callable[[Compute], int] | None = None
    sequences: int = 1
    generates: bool = False
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
        most = SAMPLED_BATCHES if definition.generates else max(SHARD_ROWS // self.images, 1)
        return cluster.shard_size(n_rows, self.images, self.compute.device, most_batches=most)
