"""igpt demo: complete real photographs with the shipped model, here and now."""

from pathlib import Path

import click

from jobs import complete
from jobs.command import command
from pipeline.batch.run import run_job
from pipeline.demo_photos import write_tiles
from pipeline.options import ProgressOptions

OUTPUT = Path("out/demo")
PHOTOS = Path("out/demo-photos")


def run(options: ProgressOptions) -> None:
    count = write_tiles(PHOTOS)
    if not options.quiet:
        click.echo(f"{count} tiles of photographs in {PHOTOS}", err=True)
    run_job(
        complete.JOB,
        complete.CompleteOptions(
            input=str(PHOTOS),
            output=str(OUTPUT),
            samples=4,
            top_p=0.9,  # far cleaner pictures than plain sampling gives
            crop="center",
            address="local",
            overwrite=True,
            **options.model_dump(by_alias=True),
        ),
    )


COMMAND = command(
    "demo",
    ProgressOptions,
    run,
    help="Complete photographs with the shipped model, on this machine, into out/demo/.",
    example="igpt demo",
)
