"""`igpt plan`: what it counts is exact, what it estimates follows from the trial; no output."""

import json
import tarfile

import pytest

from jobs.__main__ import main
from pictures import BAD, GOOD, encoded, photo
from pipeline.batch import estimate as estimates
from pipeline.batch.estimate import Estimate, StageSpeed
from pipeline.engine.stage import Resources
from pipeline.inputs.source import find_source


def plan(capsys, *words: object) -> dict:
    main(["plan", *(str(word) for word in words), "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_job_is_planned_and_nothing_written(
    ray_session, photos, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["complete", "--input", photos, "--model", tiny_model, "--batch-size=4", "--output=out"]
    found = plan(capsys, *words, "--shard-size=5", "--samples=2", "--gpu-hour-price=3")
    n = GOOD + len(BAD)
    assert (found["rows"], found["rows_counted"], found["shards"]) == (n, True, 5)
    assert found["trial_rows"] == min(n, 2 * 2 * 3)  # images a batch, actors, trials of each
    assert 0 < found["trial_errors"] <= len(BAD)
    assert found["bytes_in"] > 1000
    assert found["bytes_out"] > 1000
    assert set(found["stages"]) == {"read", "decode", "model", "write", "all CPUs"}
    slowest = min(found["stages"].values(), key=lambda stage: stage["rows_per_second"])
    assert found["stages"][found["limit"]]["rows_per_second"] == slowest["rows_per_second"]
    assert found["working_seconds"] == pytest.approx(n / slowest["rows_per_second"], abs=0.06)
    assert found["seconds"] > found["working_seconds"]  # with start-up
    good = (found["trial_rows"] - found["trial_errors"]) / found["trial_rows"]
    images_per_second = good * slowest["rows_per_second"]
    assert found["images_per_second"] == pytest.approx(images_per_second, rel=0.001)
    assert (found["gpu_hours"], found["price"]) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_samples_need_no_input(ray_session, tiny_model, capsys):
    words = ["--count=100", "--model", tiny_model, "--batch-size=2", "--shard-size=30"]
    found = plan(capsys, "sample", *words)
    assert (found["rows"], found["shards"], found["bytes_in"]) == (100, 4, 0)


def test_the_rows_of_compressed_tars_are_estimated_by_their_bytes(
    ray_session, tiny_model, tmp_path, capsys
):
    for name, count in {"a": 20, "b": 40}.items():
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as tar:
            for i in range(count):
                (tmp_path / "x.png").write_bytes(encoded(photo(i)))
                tar.add(tmp_path / "x.png", f"{i:03d}.png")
    words = ["--input", tmp_path / "*.tar.gz", "--model", tiny_model]
    found = plan(capsys, "quantize", *words)
    assert found["rows_counted"]
    assert found["rows"] == 60
    found = plan(capsys, "quantize", *words, "--keep-columns", "")
    assert not found["rows_counted"]
    assert found["shards"] == 2
    assert found["rows"] == pytest.approx(60, rel=0.3)


def test_of_a_tar_that_is_not_cut_the_first_rows_are_tried(tmp_path):
    """Past bug: all of them, since their number is known."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        (tmp_path / "x.png").write_bytes(encoded(photo(0)))
        for i in range(40):
            tar.add(tmp_path / "x.png", f"{i:03d}.png")
    source = find_source(str(tmp_path / "a.tar.gz"))
    assert source.rows == 40
    assert estimates._trial_plan(source, 16, 2).rows == 16


def speeds(**rates: float) -> tuple[StageSpeed, ...]:
    return tuple(StageSpeed(stage, 1 / rate, 1) for stage, rate in rates.items())


def test_gpu_hours_are_the_gpus_times_the_time_of_the_slowest_stage():
    found = Estimate(
        shards=10,
        shard_size=100,
        rows=7200,
        counted=True,
        skipped={},
        bytes_in=1,
        bytes_out=1,
        trial_rows=10,
        trial_errors=0,
        speeds=speeds(read=50, decode=4, model=2, write=100),
        gpus=4,
        startup_seconds=30,
        tokens_per_pass=None,
    )
    assert found.limit.stage == "model"
    assert (found.working_seconds, found.seconds) == (3600, 3630)
    assert found.gpu_hours == 4
    assert "GPUs" in found.advice


def test_reading_and_decoding_share_their_actors():
    class Shares:
        reading = model = writing = Resources(2)

    part = {"rows": 9, "errors": 1, "seconds": {"read": 10.0, "decode": 30.0, "model": None}}
    part["seconds"]["write"] = 1.0
    found = {s.stage: s for s in estimates._speeds(Shares, [part], on_gpus=False, cpus=8)}
    # Two actors that need 1 + 3 seconds for a row finish half a row a second.
    assert found["read"].rows_per_second == pytest.approx(0.5)
    assert found["decode"].rows_per_second == pytest.approx(0.5)
    assert found["write"].rows_per_second == pytest.approx(20)
    assert found["all CPUs"].rows_per_second == pytest.approx(8 / 4.1)
    assert "model" not in found
    Shares.writing = Resources(2, joins=True)  # the same actors write
    found = {s.stage: s for s in estimates._speeds(Shares, [part], on_gpus=False, cpus=8)}
    rates = [found[stage].rows_per_second for stage in ("read", "decode", "write")]
    assert rates == pytest.approx([2 / 4.1] * 3)


def test_a_wrong_input_is_one_line(ray_session, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "embed", "--input", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
