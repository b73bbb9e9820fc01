"""Opening a finished run: its parts, and what is refused; on a disk and in an object store."""

import json

import pytest

from pipeline.errors import UsageError
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.finished import FinishedRun

RECORD = {
    "format": 1,
    "job": "quantize",
    "command": "igpt quantize --overwrite --output out",
    "palette": {"fingerprint": "p1"},
    "columns": [{"name": name} for name in ("id", "label", "tokens")],
    "passthrough": ["label"],
}


@pytest.fixture(params=["local", "memory"])
def location(request, tmp_path) -> str:
    """A finished run of three parts."""
    location = str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}"
    directory = RunDirectory.at(location, {})
    directory.write_json("run.json", RECORD)
    directory.write_json("report.json", {"shards": 3})
    directory.fs.makedirs(f"{directory.path}/data", exist_ok=True)
    for name in ("part-1000000", "part-000002", "part-000000", ".part-000001", "part-000002.copy"):
        directory.fs.pipe_file(f"{directory.path}/data/{name}.parquet", b"")
    return location


def change(location: str, name: str, **values: object) -> None:
    directory = RunDirectory.at(location, {})
    directory.write_json(name, {**(directory.read_json(name) or {}), **values})


def refusal(location: str) -> str:
    with pytest.raises(UsageError) as caught:
        FinishedRun.open(location, {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_its_parts_are_in_the_order_of_their_shards(location):
    run = FinishedRun.open(location + "/", {})
    assert run.location == location
    assert dict(run.parts) == {
        shard: f"{location}/data/part-{shard:06d}.parquet" for shard in (0, 2, 1_000_000)
    }
    assert list(run.parts) == [0, 2, 1_000_000]
    assert (run.job, run.passthrough, run.palette) == ("quantize", ["label"], "p1")
    assert run.report == {"shards": 3}


def test_tokens_are_those_of_the_job_not_a_column_passed_through(location):
    FinishedRun.open(location, {}).check_tokens()
    change(location, "run.json", job="embed", passthrough=["label", "tokens"])
    with pytest.raises(UsageError, match=r"tokens .* found one of embed; next: "):
        FinishedRun.open(location, {}).check_tokens()


def test_no_run_another_format_and_an_unknown_job_are_refused(location, tmp_path):
    assert "found no run.json in" in refusal(str(tmp_path / "elsewhere"))
    change(location, "run.json", job="upscale")
    assert "is a run of upscale, this igpt knows quantize, " in refusal(location)
    change(location, "run.json", format=2)
    assert "is a run of format 2, this igpt reads format 1; next: " in refusal(location)


def test_a_run_that_is_not_finished_names_the_command_that_resumes_it(location):
    change(location, "report.json", shards=4)
    message = refusal(location)
    assert f"expected a finished run at {location}, found 3 of 4 parts; next: " in message
    assert message.endswith("igpt quantize --output out"), "without what would start it anew"
    directory = RunDirectory.at(location, {})
    directory.fs.rm_file(f"{directory.path}/report.json")
    assert "found 3 parts and no report.json; next: " in refusal(location)


def test_a_report_that_is_none_is_named(location):
    directory = RunDirectory.at(location, {})
    directory.fs.pipe_file(f"{directory.path}/report.json", json.dumps([3]).encode())
    assert f"expected a JSON object in {location}/report.json" in refusal(location)
