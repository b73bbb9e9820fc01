"""igpt palette: fit a palette to the colors of images."""

import json

import click
from pydantic import Field

from jobs.command import command
from pipeline.errors import UsageError
from pipeline.options import ClusterOptions, MaxErrorFraction, PixelOptions, StorageOptions


class PaletteOptions(PixelOptions, ClusterOptions, StorageOptions):
    output: str = Field(description="the palette, a local .npy file")
    shard_size: int = Field(4096, ge=1, description="rows that a reader counts at a time")
    colors: int = Field(512, ge=1, le=65536, description="colors of the palette")
    image_size: int = Field(32, ge=1, description="pixels per side to resize to before counting")
    seed: int = Field(0, ge=0, description="seed of the k-means start")
    max_error_fraction: MaxErrorFraction = 0.1


def run(options: PaletteOptions) -> None:
    from igpt_core.images.palette import Palette
    from pipeline.engine import cluster
    from pipeline.engine.allocation import allocate
    from pipeline.engine.stage import Stage
    from pipeline.inputs.source import find_source
    from pipeline.report.text import left_out_text
    from pipeline.stages.read_images import CountColors
    from pipeline.storage.filesystem import local_output, options_for
    from pipeline.training.palette import count_colors

    if not options.output.endswith(".npy"):
        raise UsageError(f"expected --output FILE.npy, found {options.output}")
    output = local_output(options.output)
    input_options = options_for(options.storage_options, "input")
    source = find_source(
        options.input,
        format=options.format,
        image_column=options.image_column,
        url_column=options.url_column,
        keep_columns=[],
        limit=options.limit,
        storage_options=input_options,
        shown=options.progress == "text",
    )
    if source.format == "tokens":
        raise UsageError(
            f"expected images at {options.input}, found tokens, whose colors are those of their "
            "palette; next: the images that they were made of"
        )
    plan = source.cut(options.shard_size)
    if options.progress != "quiet":
        source.print_broken_names()
    if options.progress == "text":
        source.print_large_groups(plan.shard_size)
    arguments = {
        "format": plan.format,
        "image_column": plan.image_column,
        "image_size": options.image_size,
        "resize": options.resize,
        "crop": options.crop,
        "max_image_bytes": options.max_image_bytes,
        "input_options": input_options,
    }
    with cluster.connected(options.address):
        readers = allocate(device=None, cpu_actors=options.cpu_actors, model_actors=None, plan=plan)
        histogram, images, errors = count_colors(
            plan,
            Stage(CountColors, arguments, readers.reading),
            location=options.input,
            max_error_fraction=options.max_error_fraction,
            progress=options.progress,
        )
    try:
        palette = Palette.fit_histogram(histogram, options.colors, seed=options.seed)
    except ValueError as error:
        raise UsageError(f"--colors {options.colors}: {error}") from error
    palette.save(output)
    if plan.skipped and options.progress == "text":
        click.echo(f"left out of the input: {left_out_text(plan.skipped)}", err=True)
    facts = {
        "output": options.output,
        "colors": len(palette),
        "distinct_colors": len(histogram.colors),
        "images": images,
        "errors": errors,
        "fingerprint": palette.fingerprint,
    }
    if options.json_lines:
        click.echo(json.dumps({"event": "done", **facts}))
    else:
        click.echo(
            "{output}: {colors} colors for {distinct_colors} distinct ones of {images} images "
            "({errors} could not be read), fingerprint {fingerprint}".format(**facts)
        )


COMMAND = command(
    "palette",
    PaletteOptions,
    run,
    help="Fit a palette: weighted k-means over the colors of all images.",
    example="igpt palette --input photos/ --output palette.npy --colors 512",
)
