"""igpt export: a run directory in another format."""

import json
from typing import Literal

import click
from pydantic import Field

from jobs.command import command
from pipeline.options import RayOptions, StorageOptions


class ExportOptions(RayOptions, StorageOptions):
    run: str = Field(description="run directory, local or a URI")
    to: Literal["png", "webdataset", "npy"] = Field(
        description="png: pictures and an index for imagefolder; webdataset: a tar a part; npy: "
        "arrays and an index"
    )
    output: str = Field(description="folder, local or a URI; the same command resumes")
    palette: str | None = Field(
        None, description="palette (.npy) or model folder [default: the run's]"
    )
    overwrite: bool = Field(False, description="replace the export in --output")


def run(options: ExportOptions) -> None:
    from pipeline.engine import cluster
    from pipeline.engine.stage import Stage
    from pipeline.export.export import claim, export_parts, find_palette, find_run, pending_parts
    from pipeline.export.formats import EXPORTS
    from pipeline.export.stage import ExportParts
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.storage.filesystem import absolute, absolute_model, options_for

    input_options = options_for(options.storage_options, "input")
    output_options = options_for(options.storage_options, "output")
    model_options = options_for(options.storage_options, "model")
    found = find_run(absolute(options.run), input_options)
    EXPORTS[options.to].check(found.contents)
    palette = None
    if options.to != "npy":
        given = options.palette and absolute_model(options.palette)
        palette = find_palette(found, given, model_options)
    target = RunDirectory.at(absolute(options.output), output_options)
    claim(target, found, to=options.to, overwrite=options.overwrite)
    pending = pending_parts(target, found, to=options.to)
    arguments = {
        "to": options.to,
        "job": found.record["job"],
        "passthrough": found.passthrough,
        "n_samples": found.record["results"].get("samples", 1),
        "image_size": found.record["image_size"],
        "palette": palette,
        "output": target.location,
        "input_options": input_options,
        "output_options": output_options,
        "model_options": model_options,
    }
    if pending:
        with cluster.connected(options.address):
            actors = cluster.allocate(device=None, cpu_actors=options.cpu_actors, model_actors=None)
            stage = Stage(ExportParts, arguments, actors.reading)
            export_parts(found.plan, pending, stage, progress=options.progress)
    facts = {
        "output": target.location,
        "to": options.to,
        "rows": found.plan.rows,
        "parts": len(found.plan.shards),
        "resumed_parts": len(found.plan.shards) - len(pending),
    }
    if options.json_lines:
        click.echo(json.dumps({"event": "done", **facts}))
    else:
        click.echo("{output}: {rows} rows as {to} in {parts} parts".format(**facts))


COMMAND = command(
    "export",
    ExportOptions,
    run,
    argument="run",
    help="Export RUN, a finished run directory, as png, webdataset or npy, part by part.",
    example="igpt export out/photos --to png --output out/photos-png",
)
