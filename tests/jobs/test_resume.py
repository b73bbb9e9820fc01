"""Runs that are stopped, replaced or resumed where something has changed; without actors."""

import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.__main__ import main
from pictures import BAD, GOOD, encoded, photo
from pipeline.batch import execute as run
from pipeline.batch import model as models
from pipeline.batch import run as run_job
from pipeline.engine import allocation, dispatch
from pipeline.errors import RunFailed, UsageError
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import new_record
from pipeline.stages.write_parts import WriteParts
from runs import errors, igpt, parts, refusal, results


@pytest.fixture
def options(photos, tiny_model, tmp_path) -> dict[str, object]:
    """Of a job of eight shards."""
    return {
        "input": photos,
        "model": tiny_model,
        "output": tmp_path / "run",
        "shard_size": 3,
        "max_error_fraction": 1,
    }


def failing(capsys, job: str, **options: object) -> tuple[int, str]:
    """The exit code and the line of a run that does not end well."""
    with pytest.raises(SystemExit) as stopped:
        igpt(job, **options)
    return int(stopped.value.code), capsys.readouterr().err


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def at_part(monkeypatch, number: int, act) -> None:
    """Something happens when this many parts have been written."""
    write = WriteParts.__call__

    def written(self, block):
        summary = write(self, block)
        if summary["shard"].to_pylist() == [number - 1]:
            act()
        return summary

    monkeypatch.setattr(WriteParts, "__call__", written)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_ends_its_shard_and_the_same_command_goes_on(
    in_process, options, tmp_path, monkeypatch, capsys, number
):
    def tell() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.5)  # until nobody may begin a shard

    with monkeypatch.context() as patch:
        at_part(patch, 3, tell)
        code, line = failing(capsys, "quantize", **options)
    assert code == 1
    assert line.startswith("igpt: interrupted: 3 of 8 shards are done and kept; next: igpt")
    assert len(parts(tmp_path / "run")) == 3
    assert hidden(tmp_path / "run") == {".owner"}
    igpt("quantize", **options)
    igpt("quantize", **options | {"output": tmp_path / "other"})
    assert parts(tmp_path / "run") == parts(tmp_path / "other")


def test_a_run_that_failed_says_how_to_go_on_and_not_how_to_start_anew(
    in_process, options, monkeypatch, capsys
):
    """Past bug: "the same command again", which with --overwrite cleared what was kept."""

    def dispatch_shards(*rest, **named):
        yield from dispatch.dispatch_shards(*rest, **named)
        raise RunFailed("1 of 8 shards failed")

    monkeypatch.setattr(run, "dispatch_shards", dispatch_shards)
    monkeypatch.setattr(sys, "argv", ["igpt", "quantize", "--overwrite", "--output=out"])
    code, line = failing(capsys, "quantize", **options, overwrite=True)
    assert code == 1
    kept = "what is done is kept; next: igpt quantize --output=out"
    assert line == f"igpt: 1 of 8 shards failed; {kept}\n"


@pytest.mark.parametrize("stopped", [False, True])
def test_the_last_words_are_said_also_where_the_store_is_gone(
    in_process, options, monkeypatch, capsys, stopped
):
    """Past bug: the store's error was said in place of what failed and of the command that goes on;
    and a run that was told to stop ended with exit code 2."""

    def refuse(*_: object) -> None:
        raise PermissionError("the token has expired")

    def dispatch_shards(*rest, **named):
        yield from dispatch.dispatch_shards(*rest, **named)
        for place, name in ((Lease, "_read"), (RunDirectory, "finished"), (RunDirectory, "record")):
            monkeypatch.setattr(place, name, refuse)
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        raise RunFailed("1 of 8 shards failed")

    monkeypatch.setattr(run, "dispatch_shards", dispatch_shards)
    monkeypatch.setattr(sys, "argv", ["igpt", "quantize", "--overwrite", "--output=out"])
    code, line = failing(capsys, "quantize", **options)
    assert code == 1
    kept = "what is done is kept; next: igpt quantize --output=out"
    away = f"interrupted, and {options['output']} is out of reach: the token has expired"
    assert line == f"igpt: {away if stopped else '1 of 8 shards failed'}; {kept}\n"


def test_a_run_that_is_interrupted_in_its_report_goes_on_without_starting_anew(
    in_process, options, monkeypatch, capsys
):
    """Past bug: "the same command", which with --overwrite cleared all that was done."""

    def interrupted(*_: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_job, "write_report", interrupted)
    monkeypatch.setattr(sys, "argv", ["igpt", "quantize", "--overwrite", "--output=out"])
    code, line = failing(capsys, "quantize", **options, overwrite=True)
    assert (code, line) == (1, "igpt: interrupted; next: igpt quantize --output=out\n")


@pytest.mark.parametrize("job", ["complete", "export"])
def test_who_needs_a_finished_run_says_how_it_is_finished_and_not_how_to_start_anew(
    in_process, options, tmp_path, monkeypatch, capsys, job
):
    monkeypatch.setattr(sys, "argv", ["igpt", "quantize", "--overwrite", "--output=out"])
    igpt("quantize", **options)
    (tmp_path / "run" / "report.json").unlink()
    capsys.readouterr()
    words = {
        "complete": [f"--input={tmp_path}/run", f"--model={options['model']}"],
        "export": [f"{tmp_path}/run", "--to=npy"],
    }
    with pytest.raises(SystemExit):
        main([job, *words[job], f"--output={tmp_path}/next"])
    said = capsys.readouterr().err
    assert said.endswith("next: the command that resumes it: igpt quantize --output=out\n")


def test_what_was_found_on_the_cluster_is_not_found_anew(
    in_process, options, tmp_path, monkeypatch, capsys
):
    """Past bug: the same command was refused on a cluster that has a GPU now, or has none yet."""
    igpt("embed", **options, pool="mean")
    before = parts(tmp_path / "run")
    (tmp_path / "run" / "data" / "part-000003.parquet").unlink()
    for gpus, empty in ((1, False), (0, True)):
        monkeypatch.setattr(allocation, "gpus", lambda found=gpus: found)
        monkeypatch.setattr(allocation, "is_empty", lambda found=empty: found)
        igpt("embed", **options, pool="mean")
        assert parts(tmp_path / "run") == before


def test_a_run_that_is_told_to_stop_at_its_last_shard_ends_well(
    in_process, options, tmp_path, monkeypatch
):
    at_part(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    igpt("quantize", **options)
    assert (tmp_path / "run" / "report.json").exists()


def test_a_run_is_superseded_by_one_that_is_started_later(
    in_process, options, tmp_path, monkeypatch, capsys
):
    output = str(tmp_path / "run")

    def start_another() -> None:
        record = RunDirectory.at(output, {}).record()
        assert record is not None
        Lease(output, {}, record["run"]).acquire()

    at_part(monkeypatch, 3, start_another)
    code, line = failing(capsys, "quantize", **options)
    assert code == 1
    assert line == (
        f"igpt: another run, started later, has taken over {output}; this one is superseded\n"
    )
    assert len(parts(tmp_path / "run")) == 3
    assert (tmp_path / "run" / ".owner").exists()  # the other one's


def test_a_run_that_was_planned_while_another_began_is_refused_and_touches_nothing(
    in_process, options, tmp_path, monkeypatch, capsys
):
    """Past bug: it had looked when there was none yet, and cleared what the other one had made."""
    directory = RunDirectory.at(str(tmp_path / "run"), {})
    acquire = run_job._acquire

    def acquire_late(*rest, **named):
        directory.create(new_record("score", command="igpt score", options={}))
        (tmp_path / "run" / "data").mkdir()
        (tmp_path / "run" / "data" / "part-000000.parquet").write_bytes(b"theirs")
        return acquire(*rest, **named)

    monkeypatch.setattr(run_job, "_acquire", acquire_late)
    code, line = failing(capsys, "quantize", **options)
    assert code == 2
    assert "another run began in" in line
    assert (directory.record() or {})["job"] == "score"
    assert (tmp_path / "run" / "data" / "part-000000.parquet").read_bytes() == b"theirs"
    assert not (tmp_path / "run" / "plan.parquet").exists()


def test_of_two_runs_that_replace_one_at_the_same_time_one_goes_on(tmp_path, monkeypatch):
    """Past bug: one had the lease and the other run.json, and both were refused."""
    directory = RunDirectory.at(str(tmp_path), {})
    directory.create(new_record("quantize", command="", options={}))
    options = SimpleNamespace(storage_options=None, overwrite=True)
    job = SimpleNamespace(spec=SimpleNamespace(options=options))
    first, second = (new_record("quantize", command=name, options={}) for name in "ab")
    clear, create = RunDirectory.clear, RunDirectory.create
    refused = []

    def create_after_the_first(self, record):
        if record is second:
            create(self, first)
        create(self, record)

    def clear_both(self):
        """The first holds the lease; the second acquires it, and both clear."""
        monkeypatch.setattr(RunDirectory, "clear", clear)
        with pytest.raises(UsageError, match="another run began") as error:
            run_job._acquire(job, directory, second, started=0.0, creates=True)
        refused.append(error)

    monkeypatch.setattr(RunDirectory, "create", create_after_the_first)
    monkeypatch.setattr(RunDirectory, "clear", clear_both)
    lease = run_job._acquire(job, directory, first, started=0.0, creates=True)
    assert refused
    assert lease.may_begin()
    assert (directory.record() or {})["run"] == lease.run == first["run"]


def test_a_part_that_a_superseded_actor_wrote_late_is_not_taken_for_the_run_that_replaces_it(
    in_process, options, tmp_path, monkeypatch
):
    """It had passed its last look at the lease before all was cleared, and wrote then."""
    igpt("quantize", **options)
    whole, write_plan = parts(tmp_path / "run"), RunDirectory.write_plan
    late = (tmp_path / "run" / "data" / "part-000003.parquet").read_bytes()

    def write_plan_and_part(self, plan):
        write_plan(self, plan)
        (tmp_path / "run" / "data").mkdir(exist_ok=True)
        (tmp_path / "run" / "data" / "part-000000.parquet").write_bytes(late)

    monkeypatch.setattr(RunDirectory, "write_plan", write_plan_and_part)
    igpt("quantize", **options, overwrite=True)
    assert parts(tmp_path / "run") == whole


def test_a_run_that_replaces_another_goes_by_its_own_plan(
    in_process, options, tmp_path, monkeypatch
):
    """Past bug: not where the other one, which had just begun, wrote its own once more."""
    igpt("quantize", **options)
    theirs = RunDirectory.at(str(tmp_path / "run"), {}).plan()
    assert theirs is not None
    create = RunDirectory.create

    def create_beside(self, record):
        self.write_plan(theirs)
        create(self, record)

    monkeypatch.setattr(RunDirectory, "create", create_beside)
    igpt("quantize", **options | {"shard_size": 6, "overwrite": True})
    assert len(parts(tmp_path / "run")) == 4


def test_a_part_that_is_written_while_a_run_with_other_results_begins_is_taken_back(
    in_process, options, tmp_path, monkeypatch, capsys
):
    output = str(tmp_path / "run")
    may_write = Lease.may_write
    asked = []

    def replaced_meanwhile(self) -> bool:
        answer = may_write(self)
        asked.append(self)
        if len(asked) == 9:  # right before the fourth shard's results; the start asked once
            Lease(output, {}, "other").acquire()
        return answer

    monkeypatch.setattr(Lease, "may_write", replaced_meanwhile)
    code, _ = failing(capsys, "quantize", **options)
    assert code == 1
    assert len(parts(tmp_path / "run")) == 3


def test_the_batch_size_that_was_found_stays_that_of_the_run(
    in_process, options, tmp_path, monkeypatch
):
    """Past bug: it was found anew, in memory that another process may use today."""
    igpt("score", **options)
    before = parts(tmp_path / "run")
    (tmp_path / "run" / "data" / "part-000002.parquet").unlink()
    monkeypatch.setattr(models, "CPU", replace(models.CPU, most_images=3))
    igpt("score", **options)
    assert parts(tmp_path / "run") == before
    assert GOOD + len(BAD) == 24


def test_submissions_of_fewer_shards_than_there_are_give_the_same(
    in_process, options, tmp_path, monkeypatch
):
    """As of a run of more than 20,000."""
    igpt("quantize", **options)
    handed_out = []
    chain = dispatch.chain

    def noted(blocks, *rest, **named):
        handed_out.append(list(blocks))
        return chain(blocks, *rest, **named)

    monkeypatch.setattr(dispatch, "_SUBMITTED_SHARDS", 3)
    monkeypatch.setattr(dispatch, "chain", noted)
    igpt("quantize", **options | {"output": tmp_path / "other"})
    assert handed_out == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert parts(tmp_path / "other") == parts(tmp_path / "run")


# --- an input that is not what it was -------------------------------------------------------------


@pytest.fixture
def half(in_process, photos, options, tmp_path, monkeypatch, capsys) -> dict[str, object]:
    """The options of a run over photos of its own, stopped after three of its eight shards."""
    shutil.copytree(photos, tmp_path / "photos", symlinks=True)
    options = options | {"input": tmp_path / "photos"}
    with monkeypatch.context() as patch:
        at_part(patch, 3, lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.5)))
        failing(capsys, "quantize", **options)
    assert len(parts(tmp_path / "run")) == 3
    return options


def test_photos_replaced_under_their_names_are_refused(half, tmp_path, capsys):
    """Past bug: exit code 0, half old and half new pictures, and verify found nothing."""
    before = parts(tmp_path / "run", "data", "errors")
    kept = {name: (tmp_path / "photos" / name).stat() for name in ("01.png", "16.png")}
    for name in kept:
        (tmp_path / "photos" / name).replace(tmp_path / name)
        (tmp_path / "photos" / name).write_bytes(encoded(photo(99)))
    line = refusal(capsys, "quantize", **half)
    size, now = (path.stat().st_size for path in (tmp_path / "01.png", tmp_path / "photos/01.png"))
    assert f"found it changed: 2 files, the first is {tmp_path}/photos/01.png (size={size} " in line
    assert f" then, size={now} " in line
    assert "next: put back what was there, igpt retry-failed where failed" in line
    assert parts(tmp_path / "run", "data", "errors") == before
    for name in kept:
        (tmp_path / name).replace(tmp_path / "photos" / name)
    igpt("quantize", **half)
    igpt("quantize", **half | {"output": tmp_path / "other"})
    assert parts(tmp_path / "run") == parts(tmp_path / "other")


def test_a_finished_run_over_another_input_is_refused_too(half, tmp_path, capsys):
    igpt("quantize", **half)
    (tmp_path / "photos" / "01.png").write_bytes(encoded(photo(99)))
    assert "found it changed" in refusal(capsys, "quantize", **half)
    igpt("quantize", **half, overwrite=True)
    igpt("quantize", **half)


def test_new_photos_are_named_and_left_out(half, tmp_path, capsys):
    for name in ("zz.png", "000.png"):
        (tmp_path / "photos" / name).write_bytes(encoded(photo(99)))
    capsys.readouterr()
    igpt("quantize", **half, quiet=False)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "new in the input" in line)
    assert f"no part of it: 2 files, the first is {tmp_path}/photos/000.png; next: another" in line
    ids = {row["id"] for row in results(tmp_path / "run")}
    assert (len(ids), ids & {"zz.png", "000.png"}) == (GOOD, set())


def test_photos_that_are_gone_are_error_rows_and_a_line_says_so(half, tmp_path, capsys):
    done = {row["id"] for row in results(tmp_path / "run")}
    (tmp_path / "photos" / min(done)).unlink()
    igpt("quantize", **half, quiet=False)
    assert "gone from the input" not in capsys.readouterr().err, "nobody needs it any more"
    (tmp_path / "run" / "data" / "part-000007.parquet").unlink()
    gone = sorted(path.name for path in (tmp_path / "photos").iterdir())[-1]
    (tmp_path / "photos" / gone).unlink()
    igpt("quantize", **half, quiet=False)
    line = f"still to be read: {tmp_path}/photos/{gone}; its rows will be error rows"
    assert line in capsys.readouterr().err
    assert gone in errors(tmp_path / "run")


def test_an_input_that_is_gone_is_refused_while_something_is_to_be_read(half, tmp_path, capsys):
    (tmp_path / "photos").rename(tmp_path / "unmounted")
    before = parts(tmp_path / "run", "data", "errors")
    line = refusal(capsys, "quantize", **half)
    assert "found all gone that is still to be read: " in line
    assert "bring it back (is its disk mounted?)" in line
    assert parts(tmp_path / "run", "data", "errors") == before
    (tmp_path / "unmounted").rename(tmp_path / "photos")
    igpt("quantize", **half)
    (tmp_path / "photos").rename(tmp_path / "unmounted")
    igpt("quantize", **half)  # a finished run needs none
