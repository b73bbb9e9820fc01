"""igpt cache: what igpt keeps on this machine, and its removal."""

import click
from pydantic import Field

from jobs.command import command
from pipeline.errors import RunFailed, UsageError
from pipeline.options import Options


class CacheOptions(Options):
    clear: bool = Field(False, description="delete what is listed, and nothing else")


def run(options: CacheOptions) -> None:
    from igpt_core.files.cache import cache_folder, cached
    from pipeline.report.text import amount

    try:
        folder, found = cache_folder(), cached()
    except RuntimeError as error:
        raise UsageError(
            "expected IGPT_CACHE or a home folder, where igpt keeps files, found neither; next: "
            "IGPT_CACHE=FOLDER igpt cache"
        ) from error
    for each in found:
        if options.clear:
            try:
                each.remove()
            except OSError as error:
                raise RunFailed(
                    f"cannot delete {each.path}: {error.strerror}; next: delete it as its owner"
                ) from error
        if not options.quiet:
            click.echo(f"{each.kind:16} {amount(each.size):>10}  {each.path}")
    did = "deleted from" if options.clear else "kept in"
    total = amount(sum(each.size for each in found))
    click.echo(f"{len(found)} {did} {folder}, {total}")


COMMAND = command(
    "cache",
    CacheOptions,
    run,
    help="List what igpt keeps on this machine, with sizes: palettes' color tables, models fetched "
    "from object storage. Delete it when no job runs; what is needed is made or fetched again.",
    example="igpt cache --clear",
)
