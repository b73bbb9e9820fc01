"""igpt verify: whether a run holds what it must, and computes the same again."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field

from jobs.command import command
from pipeline.errors import UsageError
from pipeline.options import Options, StorageOptions

if TYPE_CHECKING:
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.verify.verify import Check


_SHOWN = 5  # places of a failed check


class VerifyOptions(StorageOptions, Options):
    output: str = Field(description="run directory, local or a URI")
    replay: int | None = Field(
        None, ge=1, description="compute N model batches again, compare bit by bit"
    )
    seed: int = Field(0, description="seed of the choice of batches")
    json_lines: bool = Field(False, alias="json", description="a JSON line for each check")


def run(options: VerifyOptions) -> None:
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.storage.filesystem import absolute, options_for

    directory = RunDirectory.at(
        absolute(options.output), options_for(options.storage_options, "output")
    )
    record = directory.require_record()
    failed = total = 0
    for check in _checks(options, directory, record):
        total += 1
        failed += check.ok is False
        click.echo(_json(check) if options.json_lines else _line(check))
    if failed:
        raise click.ClickException(f"{directory.location}: {failed} of {total} checks failed")


def _checks(
    options: VerifyOptions, directory: "RunDirectory", record: Mapping[str, Any]
) -> "Iterator[Check]":
    from pipeline.storage.filesystem import options_for
    from pipeline.verify.verify import verify

    checks = verify(
        directory,
        record,
        input_options=options_for(options.storage_options, "input"),
        model_options=options_for(options.storage_options, "model"),
    )
    plan_is_read = False
    for check in checks:
        plan_is_read |= check.name == "plan" and check.ok is True
        yield check
    if options.replay is not None and plan_is_read:
        yield _replayed(options, directory, options.replay)


def _replayed(options: VerifyOptions, directory: "RunDirectory", n_batches: int) -> "Check":
    from jobs.batch_jobs import recorded_job
    from pipeline.verify.replay import NotReplayed, replay
    from pipeline.verify.verify import Check

    given = {} if options.storage_options is None else {"storage_options": options.storage_options}
    try:
        job, recorded, record = recorded_job(directory, given)
    except UsageError as error:
        return Check("replay", False, str(error))
    try:
        found = list(
            replay(
                job.define,
                recorded,
                directory=directory,
                record=record,
                n_batches=n_batches,
                seed=options.seed,
            )
        )
    except NotReplayed as error:
        return Check("replay", False, str(error))
    wrong = [text for batch in found for text in batch.differing]
    n_rows = sum(batch.rows for batch in found)
    text = f"{len(found)} model batches of {n_rows} rows computed again"
    if wrong:
        return Check("replay", False, f"{text}, {len(wrong)} differences", tuple(wrong))
    return Check("replay", True, f"{text}, the same bit by bit")


_WORDS = {True: "ok", False: "FAILED", None: "notice"}


def _line(check: "Check") -> str:
    text = f"{_WORDS[check.ok]:7} {check.name}: {check.found}"
    if check.where:
        text += ": " + "; ".join(check.where[:_SHOWN])
    more = len(check.where) - _SHOWN
    return f"{text}; and {more} more" if more > 0 else text


def _json(check: "Check") -> str:
    result = _WORDS[check.ok].lower()
    names = {"check": check.name, "result": result, "found": check.found}
    return json.dumps({**names, "where": list(check.where)})


COMMAND = command(
    "verify",
    VerifyOptions,
    run,
    argument="output",
    help="Check the run OUTPUT: gaps, damage, schema, counts, ids, fingerprints; exit code 1 where "
    "a check fails.",
    example="igpt verify out/photos --replay 3",
)
