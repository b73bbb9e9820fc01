"""igpt demo: complete real photographs with the shipped model, here and now."""

from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import click

from igpt_core.files.model_files import EMBEDDED
from jobs import complete
from jobs.command import command
from pipeline.errors import UsageError
from pipeline.options import ProgressOptions

OUTPUT = Path("out/demo")
INPUT = Path("out/demo-photos")
# In scikit-image's wheel, so no network is needed; `camera` is gray.
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "grass", "motorcycle_left")
# Left, upper, right and lower edge of each tile, as shares of the photo.
TILES = {
    "whole": (0.0, 0.0, 1.0, 1.0),
    "middle": (0.25, 0.25, 0.75, 0.75),
    "upper-left": (0.0, 0.0, 0.5, 0.5),
    "upper-right": (0.5, 0.0, 1.0, 0.5),
}


def run(options: ProgressOptions) -> None:
    from pipeline.batch.run import run_job

    count = write_tiles(INPUT)
    if not options.quiet:
        click.echo(f"{count} tiles of photographs in {INPUT}", err=True)
    run_job(
        complete.define,
        complete.CompleteOptions(
            input=str(INPUT),
            output=str(OUTPUT),
            model=EMBEDDED,
            samples=4,
            top_p=0.9,  # far cleaner pictures than plain sampling gives
            crop="center",
            address="local",
            overwrite=True,
            **options.model_dump(by_alias=True),
        ),
    )


def write_tiles(folder: Path) -> int:
    """Writes each photo's tiles as `folder/PHOTO/TILE.png`; returns how many.

    Raises UsageError where scikit-image is not installed.
    """
    from igpt_core.images.raster_formats import open_raster

    if find_spec("skimage") is None:
        raise UsageError(
            "the demo takes its photographs from scikit-image, which is not installed; next: "
            "pip install 'igpt[demo]'"
        )
    for name in PHOTOS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        with as_file(files("skimage") / "data" / f"{name}.png") as path, open_raster(path) as photo:
            for tile, edges in TILES.items():
                left, upper, right, lower = (
                    round(edge * size) for edge, size in zip(edges, photo.size * 2, strict=True)
                )
                photo.crop((left, upper, right, lower)).save(folder / name / f"{tile}.png")
    return len(PHOTOS) * len(TILES)


COMMAND = command(
    "demo",
    ProgressOptions,
    run,
    help="Complete photographs with the shipped model, on this machine, into out/demo/.",
    example="igpt demo",
)
