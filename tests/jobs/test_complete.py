"""`igpt complete` from end to end: its output read by others, and what it must not depend on."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from igpt_core.generation.completion import complete
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from pictures import BAD, GOOD, SIDE
from pipeline.engine import dispatch
from runs import igpt, parts

GIVEN = SIDE * SIDE // 2


def command(photos: str, model: str, output: Path, **changes: object) -> list[str]:
    options: dict[str, object] = {
        "input": photos,
        "model": model,
        "output": output,
        "samples": 2,
        "batch-size": 8,
        "shard-size": 5,
        "max-error-fraction": 0.5,
        "seed": 7,
        "device": "cpu",
        "dtype": "float32",
    } | changes
    return ["complete", "--quiet"] + [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="module")
def completed(ray_session, photos, tiny_model, tmp_path_factory) -> Path:
    """A run over the folder of photos, good and bad."""
    output = tmp_path_factory.mktemp("runs") / "completed"
    igpt(*command(photos, tiny_model, output))
    return output


def test_one_row_for_each_good_image_and_an_error_for_each_bad_one(completed):
    rows = pq.read_table(completed / "data")
    errors = pq.read_table(completed / "errors").to_pylist()
    assert len(set(rows["id"].to_pylist())) == rows.num_rows == GOOD
    assert {error["id"] for error in errors} == BAD
    assert all(error["message"] and error["stage"] in ("read", "decode") for error in errors)
    report = json.loads((completed / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (GOOD, len(BAD))
    assert report["skipped_files"] == {".txt": 1}


def test_the_given_part_is_the_quantized_input_and_samples_differ(completed, photos, tiny_model):
    palette = load_palette(tiny_model)
    for row in pq.read_table(completed / "data").to_pylist():
        pixels = load_pixels(Path(photos, row["id"]).read_bytes(), SIDE)
        tokens = palette.encode(pixels).ravel().tolist()
        assert row["tokens"] == tokens
        assert row["prompt_length"] == GIVEN
        first, second = row["samples"]
        assert first[:GIVEN] == second[:GIVEN] == tokens[:GIVEN]
        assert first != second
        pictures = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in row["images"]]
        for picture, sample in zip(pictures, row["samples"], strict=True):
            assert np.array_equal(picture, palette.decode(np.array(sample)).reshape(SIDE, SIDE, 3))
        prompt = np.asarray(Image.open(io.BytesIO(row["prompt"]["bytes"])))
        assert np.array_equal(prompt, pictures[0][: SIDE // 2])


def test_samples_are_those_of_the_core_alone(completed, tiny_model):
    """The same images in one batch of another make-up, without the pipeline."""
    model = load_model(tiny_model, device="cpu", dtype=torch.float32)
    rows = pq.read_table(completed / "data").to_pylist()[::-1]
    prompt = torch.tensor([row["tokens"][:GIVEN] for row in rows])
    seeds = torch.tensor([row_seed(7, row["id"]) for row in rows])
    ours = complete(
        model,
        prompt,
        n_positions=SIDE**2,
        seeds=seeds,
        sampling=SamplingConfig(),
        n_samples=2,
    )
    theirs = torch.tensor([row["samples"] for row in rows])
    # Another number of rows may round a logit otherwise; that changes a token once in about 10^5.
    assert (ours == theirs).float().mean() > 0.99


def test_duckdb_pandas_and_datasets_open_the_output(completed, tmp_path):
    glob = str(completed / "data" / "*.parquet")
    ids = set(pq.read_table(completed / "data")["id"].to_pylist())
    count, lengths = duckdb.sql(
        f"select count(distinct id), list(distinct len(samples[1])) from '{glob}'"
    ).fetchall()[0]
    assert (count, lengths) == (GOOD, [SIDE**2])
    frame = pd.concat(pd.read_parquet(path) for path in sorted((completed / "data").iterdir()))
    assert set(frame["id"]) == ids
    assert frame["images"].iloc[0][0]["bytes"].startswith(b"\x89PNG")
    rows = load_dataset(str(completed), split="train", cache_dir=str(tmp_path))
    assert set(rows["id"]) == ids
    assert isinstance(rows[0]["original"], Image.Image)
    assert isinstance(rows[0]["images"][1], Image.Image)
    assert rows.features["tokens"].length == SIDE**2


@pytest.mark.slow
def test_actors_and_the_order_of_shards_change_no_byte(
    completed, photos, tiny_model, tmp_path, monkeypatch
):
    chain = dispatch.chain
    monkeypatch.setattr(
        dispatch,
        "chain",
        lambda blocks, *args, **kw: chain(dict(reversed(blocks.items())), *args, **kw),
    )
    output = tmp_path / "other"
    igpt(*command(photos, tiny_model, output, **{"model-actors": 1, "cpu-actors": 2}))
    for folder in ("data", "errors"):
        assert parts(output, folder) == parts(completed, folder)


@pytest.mark.slow
def test_another_shard_size_gives_the_same_rows(completed, photos, tiny_model, tmp_path):
    output = tmp_path / "other"
    igpt(*command(photos, tiny_model, output, **{"shard-size": 24}))
    assert len(parts(output)) == 1
    key = [("id", "ascending")]
    assert pq.read_table(output / "data").sort_by(key) == pq.read_table(completed / "data").sort_by(
        key
    )


def test_a_finished_run_is_not_done_again_and_lost_parts_are(completed, photos, tiny_model):
    before = parts(completed)
    stamps = {path: path.stat().st_mtime_ns for path in (completed / "data").iterdir()}
    lost = completed / "data" / "part-000002.parquet"
    lost.unlink()
    igpt(*command(photos, tiny_model, completed))
    assert parts(completed) == before
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {lost}


def test_a_window_changes_no_byte_in_float32_and_belongs_to_the_run(
    completed, photos, tiny_model, tmp_path, capsys
):
    record = json.loads((completed / "run.json").read_text())
    assert (record["options"]["window"], record["results"]["window"]) == (None, 4)
    assert record["left_aside"] == []
    output = tmp_path / "other"
    igpt(*command(photos, tiny_model, output, window=1))
    assert json.loads((output / "run.json").read_text())["results"]["window"] == 1
    assert parts(output) == parts(completed)
    several = json.loads((completed / "report.json").read_text())["tokens_per_pass"]
    assert json.loads((output / "report.json").read_text())["tokens_per_pass"] == 1 < several
    capsys.readouterr()
    igpt("status", completed)
    assert f", {several:.2f} tokens per pass\n" in capsys.readouterr().out
    (output / "data" / "part-000001.parquet").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        igpt(*command(photos, tiny_model, output, window=4))
    assert stopped.value.code == 2
    assert "window: 1 there, 4 now" in capsys.readouterr().err
    igpt(*command(photos, tiny_model, output))  # as it was, not as it would be found
    assert parts(output) == parts(completed)


@pytest.mark.parametrize("fewer", [{"limit": 2}, {"shard-size": 2}])
def test_few_images_are_decoded_in_windows(
    in_process, completed, photos, tiny_model, tmp_path, fewer
):
    """Of two samples each: four sequences."""
    output = tmp_path / "run"
    igpt(*command(photos, tiny_model, output, **fewer))
    assert json.loads((output / "run.json").read_text())["results"]["window"] == 4
    every = {row["id"]: row for row in pq.read_table(completed / "data").to_pylist()}
    for row in pq.read_table(output / "data").to_pylist():
        assert row == every[row["id"]]


@pytest.mark.slow
def test_another_seed_is_refused_and_overwrite_starts_anew(
    ray_session, photos, tiny_model, tmp_path, capsys
):
    output = tmp_path / "run"
    igpt(*command(photos, tiny_model, output, limit=3))
    first = parts(output)
    with pytest.raises(SystemExit) as stopped:
        igpt(*command(photos, tiny_model, output, limit=3, seed=8))
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "seed: 7 there, 8 now" in message
    assert message.count("\n") == 1
    assert parts(output) == first
    igpt(*command(photos, tiny_model, output, limit=3, seed=8), "--overwrite")
    assert parts(output) != first


def test_labels_of_parquet_stay_class_labels(ray_session, labeled_parquet, tiny_model, tmp_path):
    output = tmp_path / "run"
    igpt(*command(labeled_parquet, tiny_model, output))
    rows = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["label"].names == ["cat", "dog", "frog"]
    assert rows["id"] == [f"labeled.parquet#{i}" for i in range(23) if i != 5]
    assert rows["label"] == [i % 3 for i in range(23) if i != 5]
    (error,) = pq.read_table(output / "errors").to_pylist()
    assert error["id"] == "labeled.parquet#5"


def test_over_the_error_budget_is_exit_code_3(ray_session, photos, tiny_model, tmp_path, capsys):
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        igpt(*command(photos, tiny_model, output, **{"max-error-fraction": 0.1}))
    assert stopped.value.code == 3
    assert "errors/" in capsys.readouterr().err
    assert not (output / "report.json").exists()
    igpt(*command(photos, tiny_model, output, **{"max-error-fraction": 0.2}))
    assert pq.read_table(output / "data").num_rows == GOOD


def test_all_bad_images_leave_empty_parts_with_the_schema(ray_session, tiny_model, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no image")
    output = tmp_path / "run"
    igpt(*command(str(folder), tiny_model, output, **{"max-error-fraction": 1}))
    table = pq.read_table(output / "data")
    assert table.num_rows == 0
    assert "samples" in table.column_names
    assert pq.read_table(output / "errors").num_rows == 3


@pytest.mark.slow
def test_a_killed_driver_and_the_same_command_again_give_the_same_bytes(
    completed, photos, tiny_model, tmp_path
):
    """SIGKILL at random moments until a run gets through; seeded, so a failure comes again."""
    output = tmp_path / "run"
    words = [sys.executable, "-m", "jobs", *command(photos, tiny_model, output)]
    moments = random.Random(3)
    environment = {**os.environ, "RAY_ADDRESS": ""}
    killed = 0
    while True:
        driver = subprocess.Popen(words, env=environment, start_new_session=True)
        timeout = moments.uniform(4, 12) if killed < 3 else 300
        try:
            assert driver.wait(timeout) == 0
            break
        except subprocess.TimeoutExpired:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            killed += 1
            time.sleep(1)
    assert parts(output) == parts(completed)
    assert parts(output, "errors") == parts(completed, "errors")
    assert json.loads((output / "report.json").read_text())["rows"] == GOOD
