"""A job whose plan is made, and its stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import pyarrow as pa

from pipeline import rows
from pipeline.batch.definition import Batch, Definition
from pipeline.engine import cluster
from pipeline.engine.stage import Stage
from pipeline.options import ImageJobOptions, ModelOptions, RunOptions
from pipeline.report.examples import MAX_EXAMPLES
from pipeline.run_directory.lease import Lease
from pipeline.shards import Plan
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.read_images import ReadImages
from pipeline.stages.write_parts import WriteParts
from pipeline.storage.filesystem import options_for


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
    resources: cluster.ResourcePlan
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
        return Stage(ReadImages, arguments, self.resources.reading)

    def model_stage(
        self, cls: type[Callable[[pa.Table], pa.Table]], own: Mapping[str, Any]
    ) -> Stage:
        """The stage whose actors hold the model; `own` are the class's own arguments."""
        model, compute, images = self.definition.model, self.batch.compute, self.batch.images
        assert model is not None
        assert compute is not None
        assert images is not None
        compute_plan = ComputePlan(
            model.location,
            compute.device,
            compute.dtype,
            images,
            self.definition.sequences,
            options_for(self.options.storage_options, "model"),
        )
        return Stage(cls, {"compute_plan": compute_plan, **own}, self.resources.model)

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
            "examples": ceil(MAX_EXAMPLES / max(len(self.plan.shards), 1)),
            "output_options": options_for(self.options.storage_options, "output"),
            "model_options": options_for(self.options.storage_options, "model"),
        }
        return Stage(WriteParts, arguments, self.resources.writing)


def allotment_for(
    options: RunOptions, batch: Batch, *, request_cpus: bool = True
) -> cluster.ResourcePlan:
    """What each stage gets of the cluster that is joined; see `cluster.allocate`."""
    return cluster.allocate(
        device=batch.compute and batch.compute.device,
        cpu_actors=options.cpu_actors,
        model_actors=options.model_actors if isinstance(options, ModelOptions) else None,
        request_cpus=request_cpus,
        grows=cluster.may_grow(options.address),
    )
