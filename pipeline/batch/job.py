"""A batch job: what its options make of it, and the same with its plan on a cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import rows
from pipeline.batch.quantizer import Quantizer
from pipeline.engine import allocation
from pipeline.engine.stage import Stage
from pipeline.errors import UsageError
from pipeline.inputs.source import Source, find_source
from pipeline.options import ImageJobOptions, ModelOptions, RunOptions, SamplingOptions
from pipeline.report.examples import MAX_EXAMPLES
from pipeline.run_directory.lease import Lease
from pipeline.shards import Plan
from pipeline.stages.read_images import ReadImages
from pipeline.stages.write_parts import WriteParts
from pipeline.storage.filesystem import options_for

if TYPE_CHECKING:  # they import torch, which takes seconds: jobs without a model do without
    from pipeline.batch.model import Model
    from pipeline.stages.model_batches import ComputePlan

SHARD_ROWS = 1024  # at most, of jobs that look at an image once; the default
SAMPLED_BATCHES = 4  # model batches of a shard at most, of jobs that sample pixels


@dataclass(frozen=True)
class JobSpec:
    """A job as its options make it, before it has a cluster or a plan.

    Attributes:
        name: which of `rows.JOBS`.
        options: of the command line, or of run.json.
        columns: what it adds to the id and the columns passed through.
        quantizer: of the images that it reads or generates.
        find_source: finds its input; raises UsageError.
        stages: from source to sink, of the job with its plan.
        model: None for a job without one.
        images_per_batch: images that the model computes together, by device, dtype, and the rows of
            the input where these are counted.
        sequences: that each of them makes in a batch.
        generates: whether it samples pixels one by one, so that a shard takes long.
        results: what results depend on beside the input, the quantizer, the model and the batch.
    """

    name: str
    options: RunOptions
    columns: Sequence[rows.Column]
    quantizer: Quantizer
    find_source: Callable[[], Source]
    stages: Callable[["Job"], list[Stage]]
    model: "Model | None" = None
    images_per_batch: Callable[[str, str, int | None], int] | None = None
    sequences: int = 1
    generates: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)

    def compute_plan(self, device: str, dtype: str, n_rows: int | None) -> "ComputePlan | None":
        """Returns how the model computes so many rows, None where nobody has counted them, on a
        device ("cpu" or "cuda") in a dtype, by its name; None for a job without a model."""
        if self.model is None or self.images_per_batch is None:
            return None
        import torch

        from igpt_core.generation.speculation import best_window
        from pipeline.stages.model_batches import ComputePlan

        images = self.images_per_batch(device, dtype, n_rows)
        window, cache_dtype = 1, None
        if isinstance(self.options, SamplingOptions):
            cache_dtype = self.options.cache_dtype
            if cache_dtype is not None and device == "cpu":
                raise UsageError(
                    f"expected a GPU for --kv-cache-dtype {cache_dtype}, found --device cpu, where "
                    "8 bits gain nothing; next: --kv-cache-dtype auto"
                )
            together = min(filter(None, (images, n_rows, self.options.shard_size)))
            window = self.options.window or best_window(
                device, together * self.sequences, getattr(torch, dtype)
            )
        return ComputePlan(
            self.model.location,
            device,
            dtype,
            images,
            self.sequences,
            options_for(self.options.storage_options, "model"),
            window,
            cache_dtype,
        )

    def find_compute(self, n_rows: int | None) -> "ComputePlan | None":
        """Returns how the model computes so many rows on the cluster that is joined; see
        `compute_plan`. Raises UsageError."""
        if self.images_per_batch is None:
            return None
        from pipeline.batch.model import find_device

        options = self.options
        assert isinstance(options, ModelOptions)
        device, dtype = find_device(options, grows=allocation.may_grow(options.address))
        return self.compute_plan(device, dtype, n_rows)

    def shard_size(self, compute: "ComputePlan | None", n_rows: int) -> int:
        """Returns the rows of a shard where the options give none."""
        if compute is None:
            return allocation.reading_shard_size(n_rows, SHARD_ROWS)
        most = SAMPLED_BATCHES if self.generates else max(SHARD_ROWS // compute.images, 1)
        return allocation.shard_size(n_rows, compute.images, compute.device, most_batches=most)

    def resources(
        self, compute: "ComputePlan | None", plan: Plan | None = None, *, request_cpus: bool = True
    ) -> allocation.ResourcePlan:
        """Returns what each stage gets of the cluster that is joined; see `allocation.allocate`."""
        options = self.options
        return allocation.allocate(
            device=None if compute is None else compute.device,
            cpu_actors=options.cpu_actors,
            model_actors=options.model_actors if isinstance(options, ModelOptions) else None,
            request_cpus=request_cpus,
            plan=plan,
            grows=allocation.may_grow(options.address),
        )


@dataclass(frozen=True)
class Job:
    """A job with its plan, ready to run.

    Attributes:
        output: where its run directory lies.
        compute: how its model computes, None without one.
        resources: what each stage gets of the cluster.
        lease: the right to work at `output`; None where nothing is written.
        again: the failed rows of shards that are done are done again.
    """

    spec: JobSpec
    output: str
    plan: Plan
    compute: "ComputePlan | None"
    resources: allocation.ResourcePlan
    lease: Lease | None = None
    again: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Returns the schema of the results."""
        columns = self.spec.columns
        return rows.schema_for(self.spec.name, columns, passthrough=self.plan.passthrough)

    def read_images(self, *, mask: str | None = None, prompts: bool = False) -> Stage:
        """Returns the first stage of a job over images; the arguments are those of `ReadImages`."""
        options, quantizer = self.spec.options, self.spec.quantizer
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
            "max_image_bytes": options.max_image_bytes,
            "mask": mask,
            "prompts": prompts,
            "kept_in": self.output if self.again else None,
            "redone": self.plan.redone,
            "output_options": options_for(options.storage_options, "output"),
            "input_options": options_for(options.storage_options, "input"),
            "model_options": options_for(options.storage_options, "model"),
        }
        return Stage(ReadImages, arguments, self.resources.reading)

    def model_stage(self, cls: type[Callable[[pa.Table], pa.Table]], **arguments: Any) -> Stage:
        """Returns the stage whose actors hold the model, with the class's own arguments."""
        return Stage(cls, {"compute_plan": self.compute, **arguments}, self.resources.model)

    def write_parts(self) -> Stage:
        """Returns the last stage of every job."""
        quantizer, options = self.spec.quantizer, self.spec.options
        arguments = {
            "output": self.output,
            "lease": self.lease,
            "job": self.spec.name,
            "schema": self.schema,
            "image_size": quantizer.image_size,
            "palette": quantizer.location,
            "again": self.again,
            "examples": ceil(MAX_EXAMPLES / max(len(self.plan.shards), 1)),
            "output_options": options_for(options.storage_options, "output"),
            "model_options": options_for(options.storage_options, "model"),
        }
        return Stage(WriteParts, arguments, self.resources.writing)


def find_input(options: ImageJobOptions, *, prompt_column: str | None = None) -> Source:
    """Finds the input that the options name. Raises UsageError."""
    keep = options.keep_columns
    source = find_source(
        options.input,
        format=options.format,
        image_column=options.image_column,
        url_column=options.url_column,
        id_column=options.id_column,
        keep_columns=None if keep is None else [c.strip() for c in keep.split(",") if c.strip()],
        prompt_column=prompt_column,
        label_from_folder=options.label_from_folder,
        limit=options.limit,
        storage_options=options_for(options.storage_options, "input"),
        shown=options.progress == "text",
    )
    changed = {"resize": options.resize != "exact", "crop": options.crop != "squash"}
    unused = [name for name, given in changed.items() if given]
    if source.format == "tokens" and unused:
        raise UsageError(
            f"--{unused[0]} is for images, {options.input} holds tokens, which stay as they are; "
            "next: leave it out"
        )
    return source
