"""`igpt status`: a run at every stage of its life, read from its directory alone."""

import json
import os
import shutil
import tarfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pictures import BAD, GOOD, encoded, photo
from pipeline.run_directory import status as pipeline_status
from pipeline.run_directory.directory import RunDirectory


def status(capsys, output: object) -> dict:
    capsys.readouterr()
    main(["status", str(output), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def finished(in_process, photos, tiny_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "finished"
    words = ["quantize", f"--input={photos}", f"--model={tiny_model}", "--max-error-fraction=1"]
    main([*words, f"--output={output}", "--shard-size=5", "--quiet"])
    return output


@pytest.fixture
def running(finished, tmp_path) -> Path:
    """The same, two of five parts of it to come."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("report.json", "data/part-000001.parquet", "data/part-000002.parquet"):
        (run / name).unlink()
    return run


def test_a_finished_run(finished, capsys):
    found = status(capsys, finished)
    report = json.loads((finished / "report.json").read_text())
    assert found["output"] == str(finished)
    assert (found["job"], found["finished"], found["resume"]) == ("quantize", True, None)
    assert (found["shards"], found["total_shards"]) == (5, 5)
    assert (found["images"], found["total"], found["errors"]) == (GOOD, GOOD + 4, len(BAD))
    assert found["errors_by_kind"] == report["errors_by_kind"]
    assert found["images_per_second"] == report["images_per_second"]
    assert found["estimated"] == []


def test_a_run_at_work(running, capsys):
    found = status(capsys, running)
    parts = [pq.read_table(path) for path in (running / "data").iterdir()]
    there = {path.name for path in (running / "data").iterdir()}
    failed = [path for path in (running / "errors").iterdir() if path.name in there]
    kinds = Counter(kind for path in failed for kind in pq.read_table(path)["error"].to_pylist())
    assert (found["finished"], found["shards"], found["total_shards"]) == (False, 3, 5)
    assert found["errors_by_kind"] == kinds
    assert found["images"] == sum(part.num_rows for part in parts)
    assert found["total"] == GOOD + len(BAD)
    stats = [json.loads((running / "stats" / f"part-{i:06d}.json").read_text()) for i in (0, 3, 4)]
    assert found["last_part"] == max(part["finished"] for part in stats)
    rows = found["images"] + found["errors"]
    seconds = found["images"] / found["images_per_second"]  # in work
    left = (found["total"] - rows) * seconds / rows
    assert found["seconds_left"] == pytest.approx(left, rel=0.01)
    assert found["seconds"] > seconds
    assert found["estimated"] == ["seconds_left"]


def test_people_read_how_far_it_is_and_what_goes_on(running, capsys):
    record = json.loads((running / "run.json").read_text())
    record["command"] = "igpt quantize --input 'my photos' --overwrite --output out"
    (running / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    main(["status", str(running)])
    text = capsys.readouterr().out
    assert f"{running}: quantize, not finished" in text
    assert "3 of 5 done" in text
    assert f"of {GOOD + len(BAD)}" in text
    assert "at that speed" in text
    assert text.rstrip().endswith("igpt quantize --input 'my photos' --output out")


def test_a_lost_part_makes_a_finished_run_unfinished(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "data" / "part-000002.parquet").unlink()
    found = status(capsys, run)
    assert (found["finished"], found["shards"]) == (False, 4)
    assert found["resume"]


def test_before_the_plan_and_before_the_first_part(running, capsys):
    shutil.rmtree(running / "data")
    found = status(capsys, running)
    assert (found["shards"], found["images"], found["seconds_left"]) == (0, 0, None)
    (running / "plan.parquet").unlink()
    found = status(capsys, running)
    assert (found["shards"], found["total_shards"], found["total"]) == (0, None, None)
    main(["status", str(running)])
    assert "0 of unknown" in capsys.readouterr().out


def test_of_many_parts_only_the_latest_are_looked_into(running, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_status, "SAMPLE", 1)
    os.utime(running / "data" / "part-000000.parquet", (time.time() + 9, time.time() + 9))
    looked = []
    read = RunDirectory.read
    monkeypatch.setattr(
        RunDirectory, "read", lambda run, name: looked.append(name) or read(run, name)
    )
    found = status(capsys, running)
    assert [Path(path).name for path in looked if path.startswith("stats/")] == ["part-000000.json"]
    assert len([path for path in looked if path.startswith("errors/")]) == 1
    assert found["images"] + found["errors"] == 14  # of three shards, by the plan
    assert found["seconds"] is None
    assert {"images", "errors", "images_per_second"} <= set(found["estimated"])


def test_compressed_tars_whose_rows_nobody_has_counted(in_process, tiny_model, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    for i, n in enumerate((2, 3, 4)):
        with tarfile.open(tmp_path / "tars" / f"{i}.tar.gz", "w:gz") as tar:
            for k in range(n):
                (tmp_path / f"{i}-{k}.png").write_bytes(encoded(photo(10 * i + k)))
                tar.add(tmp_path / f"{i}-{k}.png", f"{i}-{k}.png")
    run = tmp_path / "run"
    words = [f"--input={tmp_path}/tars", f"--model={tiny_model}", f"--output={run}"]
    main(["quantize", *words, "--keep-columns="])  # else planning counts them
    assert (status(capsys, run)["images"], status(capsys, run)["total"]) == (9, 9)
    (run / "report.json").unlink()
    (run / "data" / "part-000001.parquet").unlink()
    found = status(capsys, run)
    assert (found["images"], found["total"], found["shards"]) == (6, None, 2)
    assert found["seconds_left"] == pytest.approx(3 / found["images_per_second"], rel=0.01)


def test_no_run_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["status", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
