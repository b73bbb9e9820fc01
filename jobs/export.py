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
        description="png: pictures and an index for imagefolder; webdataset: one tar per part; "
        "npy: arrays and an index"
    )
    output: str = Field(description="folder, local or a URI; the same command resumes")
    palette: str | None = Field(None, description="palette (.npy) or model folder; else the run's")
    overwrite: bool = Field(False, description="replace the export in --output")


def run(options: ExportOptions) -> None:
    from pipeline.engine import cluster
    from pipeline.engine.allocation import allocate
    from pipeline.engine.stage import Stage
    from pipeline.export.export import acquire, export_parts, find_palette, open_run, pending_parts
    from pipeline.export.formats import EXPORTS
    from pipeline.export.stage import ExportParts
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.storage.filesystem import absolute, absolute_model, options_for

    input_options = options_for(options.storage_options, "input")
    output_options = options_for(options.storage_options, "output")
    model_options = options_for(options.storage_options, "model")
    exported = open_run(absolute(options.run), input_options)
    finished = exported.run
    EXPORTS[options.to].check(exported.contents)
    palette = None
    if options.to != "npy":
        given = options.palette and absolute_model(options.palette)
        palette = find_palette(exported, given, model_options)
    target = RunDirectory.at(absolute(options.output), output_options)
    acquire(target, exported, to=options.to, overwrite=options.overwrite)
    pending = pending_parts(target, exported.plan, to=options.to)
    arguments = {
        "to": options.to,
        "job": finished.job,
        "passthrough": finished.passthrough,
        "n_samples": finished.record["results"].get("samples", 1),
        "image_size": finished.record["image_size"],
        "palette": palette,
        "output": target.location,
        "input_options": input_options,
        "output_options": output_options,
        "model_options": model_options,
    }
    if pending:
        with cluster.connected(options.address):
            actors = allocate(
                device=None,
                cpu_actors=options.cpu_actors,
                model_actors=None,
                plan=exported.plan,
            )
            stage = Stage(ExportParts, arguments, actors.reading)
            export_parts(exported.plan, pending, stage, progress=options.progress)
    facts = {
        "output": target.location,
        "to": options.to,
        "rows": exported.plan.rows,
        "parts": len(exported.plan.shards),
        "resumed_parts": len(exported.plan.shards) - len(pending),
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
