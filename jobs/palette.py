"""igpt palette: fit a palette to the colours of images."""

import json
from pathlib import Path

import click
from pydantic import Field

from igpt_core.palette import Palette
from jobs.command import command
from pipeline import cluster
from pipeline.colors import count_colors
from pipeline.job import find_input
from pipeline.options import InputJobOptions
from pipeline.stage import Stage
from pipeline.stages.images import CountColors
from pipeline.storage import UsageError, options_for

SHARD_SIZE = 4096


class PaletteOptions(InputJobOptions):
    output: str = Field(description="the palette, a local .npy file")
    colors: int = Field(512, ge=1, le=65536, description="colours of the palette")
    image_size: int = Field(32, ge=1, description="pixels a side to resize to before counting")
    seed: int = Field(0, description="of the k-means start")


def run(options: PaletteOptions) -> None:
    if not options.output.endswith(".npy"):
        raise UsageError(f"expected --output FILE.npy, found {options.output}")
    plan = find_input(options).cut(options.shard_size or SHARD_SIZE)
    arguments = {
        "format": plan.format,
        "image_column": plan.image_column,
        "image_size": options.image_size,
        "resize": options.resize,
        "crop": options.crop,
        "input_options": options_for(options.storage_options, "input"),
    }
    with cluster.connected(options.address):
        readers = cluster.allot(device=None, cpu_actors=options.cpu_actors, model_actors=None)
        histogram, errors = count_colors(
            plan, Stage(CountColors, arguments, readers.reading), progress=options.progress
        )
    palette = Palette.fit_histogram(histogram, options.colors, seed=options.seed)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    palette.save(options.output)
    facts = {
        "output": options.output,
        "colors": len(palette),
        "distinct_colors": len(histogram.colors),
        "images": plan.rows - errors,
        "errors": errors,
        "fingerprint": palette.fingerprint,
    }
    if options.json_lines:
        click.echo(json.dumps({"event": "done", **facts}))
    else:
        click.echo(
            "{output}: {colors} colours for {distinct_colors} distinct ones of {images} images "
            "({errors} bad), fingerprint {fingerprint}".format(**facts)
        )


COMMAND = command(
    "palette",
    PaletteOptions,
    run,
    help="Fit a palette: weighted k-means over the colours of all images.",
    example="igpt palette --input photos/ --output palette.npy --colors 512",
)
