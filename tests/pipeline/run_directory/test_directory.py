"""The run directory: created, recorded, compared, cleared; on a disk and in an object store."""

import json
import os
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pytest

from pipeline.batch.execute import execute
from pipeline.errors import UsageError
from pipeline.run_directory import directory as run_directory
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import LEASE_FILE, parquet_bytes
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import new_record, refuse_other_run
from pipeline.shards import FileSlice, Plan, Shard
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import join

PLAN = Plan(
    format="images",
    shard_size=2,
    shards=(
        Shard(0, (FileSlice("/in/a.png", "a.png", 0, 1), FileSlice("/in/b.png", "b.png", 0, 1))),
        Shard(1, (FileSlice("/in/c.png", "c.png", 0, 1),)),
    ),
    passthrough=pa.schema([pa.field("label", pa.int64())]),
    skipped={".txt": 3},
)


@pytest.fixture(params=["local", "memory"])
def directory(request, tmp_path) -> RunDirectory:
    """A place for a run where there is nothing yet."""
    location = str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}"
    return RunDirectory.at(location, {})


def put(directory: RunDirectory, name: str, content: bytes = b"x") -> None:
    path = f"{directory.path}/{name}"
    directory.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    directory.fs.pipe_file(path, content)


def names(directory: RunDirectory) -> set[str]:
    start = len(directory.path) + 1
    return {path[start:] for path in directory.fs.find(directory.path)}


def test_what_was_created_is_read_again(directory):
    record = new_record("complete", command="igpt complete", options={"limit": 3}, seed=7)
    assert directory.record() is None
    assert directory.plan() is None
    directory.create(record)
    directory.write_plan(PLAN)
    assert directory.record() == json.loads(json.dumps(record))
    assert directory.plan() == PLAN
    assert directory.finished() == set()


def test_a_record_says_what_made_the_run():
    record = new_record("complete", command="igpt complete", options={"limit": 3}, seed=7)
    assert record["job"] == "complete"
    assert record["options"] == {"limit": 3}
    assert record["seed"] == 7
    assert record["versions"]["pyarrow"] == pa.__version__


def test_a_run_that_ended_between_record_and_plan_has_no_plan(directory, monkeypatch):
    """The record comes first, so a folder that holds a plan is known to be a run."""

    def fail(*args: object) -> bytes:
        raise OSError("no space left")

    monkeypatch.setattr(run_directory, "parquet_bytes", fail)
    directory.create(new_record("complete", command="", options={}))
    with pytest.raises(UsageError, match="no space"):
        directory.write_plan(PLAN)
    assert names(directory) == {"run.json"}
    assert directory.record()["job"] == "complete"
    assert directory.plan() is None


def test_of_two_runs_that_are_created_at_once_the_second_is_refused(directory):
    first, second = (new_record("complete", command="", options={}) for _ in range(2))
    directory.create(first)
    with pytest.raises(UsageError, match=r"another run began in .* just now; next: the same"):
        directory.create(second)
    assert directory.record() == first


def test_a_place_where_nothing_can_be_written_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    directory = RunDirectory.at(str(tmp_path / "file" / "run"), {})
    assert directory.record() is None
    directory.check_free()
    with pytest.raises(UsageError, match=r"cannot use .*NotADirectory.*; check"):
        directory.create(new_record("complete", command="", options={}))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'{"job": "complete"}'])
def test_another_programs_run_json_is_refused(directory, content):
    put(directory, "run.json", content)
    with pytest.raises(
        UsageError, match=r"run\.json is not the record of a run; next: another folder"
    ):
        directory.record()


def test_a_run_of_a_later_format_is_refused(directory):
    put(directory, "run.json", b'{"format": 2}')
    with pytest.raises(UsageError, match="format 2, this igpt reads format 1"):
        directory.record()


def test_nothing_and_an_empty_folder_are_free(directory):
    directory.check_free()
    directory.fs.makedirs(directory.path)
    directory.check_free()
    put(directory, LEASE_FILE)  # of a driver that was killed after it had cleared the folder
    directory.check_free()


@pytest.fixture
def killed(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Has a writer on a local disk killed before its file has its name."""

    def die(*_: object) -> None:
        raise _Killed

    def kill(write: Callable[[], object]) -> None:
        with monkeypatch.context() as patch:
            for name in ("replace", "link", "remove"):
                patch.setattr(os, name, die)
            with pytest.raises(_Killed):
                write()

    return kill


class _Killed(BaseException):
    pass


def test_where_a_driver_was_killed_at_its_start_is_free(tmp_path, killed):
    """Past bug: the same command found 1 other file."""
    directory = RunDirectory.at(str(tmp_path), {})
    record = new_record("complete", command="", options={})
    killed(lambda: directory.create(record))
    killed(Lease(str(tmp_path), {}, "one").acquire)
    assert len(names(directory)) == 2
    directory.check_free()
    directory.create(record)
    directory.delete_leftovers()
    assert names(directory) == {"run.json"}


def test_what_killed_writers_left_is_deleted_and_nothing_else(tmp_path, killed):
    directory = RunDirectory.at(str(tmp_path), {})
    directory.create(new_record("complete", command="", options={}))
    kept = ["data/part-000000.parquet", "data/.notes.tmp", ".x.tmp", "pictures/.a.png.1-ab.tmp"]
    for name in kept:
        put(directory, name)
    for name in (
        "data/part-000001.parquet",
        "errors/part-000001.parquet",
        "stats/part-000001.json",
    ):
        killed(partial(write_atomic, directory.fs, join(directory.path, name), b"PAR1"))
    killed(partial(directory.write_plan, PLAN))
    assert len(names(directory)) == 1 + len(kept) + 4
    directory.delete_leftovers()
    assert names(directory) == {"run.json", *kept}


def test_a_run_whose_shards_are_all_done_has_no_leftovers(tmp_path, killed):
    """Past bug: nothing ever deleted them, so the run ended with exit code 0 and `igpt verify` of
    it with 1. The same command also clears a run that has its report."""
    directory = RunDirectory.at(str(tmp_path), {})
    lease = Lease(str(tmp_path), {}, "one")
    lease.acquire()
    directory.create({"format": 1, "run": "one", "job": "quantize", "command": "igpt quantize"})
    parts = {"data/part-000000.parquet", "data/part-000001.parquet"}
    for name in parts:
        put(directory, name, parquet_bytes(pa.table({"id": ["a"]})))
    for _ in range(2):
        killed(partial(write_atomic, directory.fs, join(directory.path, min(parts)), b"PAR1"))
        finished = directory.finished()
        execute(
            directory,
            PLAN,
            [],
            finished=finished,
            lease=lease,
            max_error_fraction=0,
            progress="quiet",
        )
        assert names(directory) == {LEASE_FILE, "run.json", "report.json", *parts}


def test_leftovers_that_cannot_be_deleted_do_not_end_the_run(tmp_path, killed, monkeypatch):
    directory = RunDirectory.at(str(tmp_path), {})
    killed(partial(directory.write_plan, PLAN))

    def forbid(*_: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(type(directory.fs), "rm_file", forbid)
    directory.delete_leftovers()
    assert len(names(directory)) == 1


def test_no_store_is_asked_for_leftovers_that_it_cannot_have(monkeypatch):
    directory = RunDirectory.at("memory://leftovers", {})
    monkeypatch.setattr(type(directory.fs), "ls", lambda *_, **__: pytest.fail("was asked"))
    directory.delete_leftovers()


def test_other_files_and_a_file_in_the_way_are_not_free(directory):
    put(directory, "thesis.doc")
    with pytest.raises(UsageError, match="found 1 other files"):
        directory.check_free()
    file = RunDirectory(directory.location, directory.fs, f"{directory.path}/thesis.doc")
    with pytest.raises(UsageError, match="expected --output to be a folder, found a file"):
        file.check_free()


def test_clearing_takes_what_a_run_writes_and_leaves_the_rest(directory):
    directory.create(new_record("complete", command="", options={}))
    directory.write_plan(PLAN)
    ours = ["report.json", "report.html", "contact_sheet.png", "README.md"]
    ours += [f"{folder}/part-000000.x" for folder in ("data", "errors", "stats")]
    for name in [*ours, "notes.md", "pictures/part-000000.png"]:
        put(directory, name)
    directory.clear()
    assert names(directory) == {"notes.md", "pictures/part-000000.png"}
    directory.clear()  # of nothing


def test_a_clearing_that_stops_leaves_a_run(directory, monkeypatch):
    """Else --overwrite again would take the rest for somebody's files."""
    directory.create(new_record("complete", command="", options={}))
    directory.write_plan(PLAN)
    put(directory, "data/part-000000.parquet")
    remove = type(directory.fs).rm

    def stop_at_data(fs: object, path: str, recursive: bool = False) -> None:
        if path.endswith("/data"):
            raise OSError("connection lost")
        remove(fs, path, recursive=recursive)

    monkeypatch.setattr(type(directory.fs), "rm", stop_at_data)
    with pytest.raises(OSError, match="connection lost"):
        directory.clear()
    assert directory.record() is not None


def test_two_that_clear_at_once_do_not_stop_at_what_the_other_has_deleted(directory, monkeypatch):
    directory.create(new_record("complete", command="", options={}))
    put(directory, "data/part-000000.parquet")
    remove = type(directory.fs).rm

    def remove_twice(fs: object, path: str, recursive: bool = False) -> None:
        remove(fs, path, recursive=recursive)
        remove(fs, path, recursive=recursive)

    monkeypatch.setattr(type(directory.fs), "rm", remove_twice)
    directory.clear()
    assert names(directory) == set()


def test_the_same_run_is_resumed():
    refuse_other_run(
        "out", {"seed": 7, "limit": None, "shard_size": 32}, {"seed": 7, "limit": None}
    )


@pytest.mark.parametrize(("then", "now"), [(7, 8), (None, 40), (100, None)])
def test_another_run_is_refused_also_where_an_option_is_no_longer_given(then, now):
    """Past bug: `--limit 100` for a trial, then the whole input into the same folder: it said
    that all was done."""
    with pytest.raises(UsageError) as refused:
        refuse_other_run("out", {"keep": 0.5, "limit": then}, {"keep": 0.5, "limit": now})
    message = str(refused.value)
    assert f"out holds another run (limit: {then} there, {now} now)" in message
    assert "--overwrite" in message
