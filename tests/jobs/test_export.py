"""`igpt export` of runs that other jobs made: read back by others, resumed, killed, refused."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from igpt_core.images.model_palette import load_palette
from pictures import GOOD, SIDE
from runs import igpt, refusal


@pytest.fixture(scope="module")
def quantized(ray_session, labeled_parquet, tiny_model, tmp_path_factory) -> Path:
    """22 labeled images in 5 parts; a 23rd is bad."""
    output = tmp_path_factory.mktemp("runs") / "quantized"
    igpt("quantize", "--quiet", "--input", labeled_parquet, "--output", output,
         "--model", tiny_model, "--shard-size", 5)  # fmt: skip
    return output


@pytest.fixture(scope="module")
def completed(ray_session, photos, tiny_model, tmp_path_factory) -> Path:
    """Two completions of each photo, in parts of 3; a part of broken images alone is empty."""
    output = tmp_path_factory.mktemp("runs") / "completed"
    igpt("complete", "--quiet", "--input", photos, "--output", output, "--model", tiny_model,
         "--samples", 2, "--batch-size", 8, "--shard-size", 3, "--device", "cpu",
         "--max-error-fraction", 0.5)  # fmt: skip
    return output


def files(folder: Path) -> dict[str, bytes]:
    """Without the temporary files of a killed process, whose names start with a dot."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("[!.]*"))
        if path.is_file()
    }


def test_pictures_of_tokens_are_those_of_the_palette(quantized, tiny_model, tmp_path, capsys):
    output = tmp_path / "png"
    igpt("export", quantized, "--to", "png", "--output", output)
    assert capsys.readouterr().out == f"{output}: 22 rows as png in 5 parts\n"
    palette = load_palette(tiny_model)
    expected = pq.read_table(quantized / "data").to_pylist()
    loaded = load_dataset(
        "imagefolder", data_dir=str(output), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["label"].names == ["cat", "dog", "frog"]
    found = {row["id"]: row for row in loaded}
    assert len(found) == len(loaded) == len(expected) == 22
    for row in expected:
        pixels = palette.decode(np.array(row["tokens"])).reshape(SIDE, SIDE, 3)
        assert np.array_equal(np.asarray(found[row["id"]]["image"]), pixels)
        assert found[row["id"]]["label"] == row["label"]


def test_completions_stay_one_sample(completed, tmp_path):
    igpt("export", completed, "--to", "webdataset", "--output", tmp_path / "tars")
    igpt("export", completed, "--to", "png", "--output", tmp_path / "png")
    rows = 0
    for part in sorted((completed / "data").iterdir()):
        index = pd.read_parquet(tmp_path / "png/images" / part.stem / "metadata.parquet")
        with tarfile.open(tmp_path / "tars" / f"{part.stem}.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        keys = sorted({name.partition(".")[0] for name in members})
        results = pq.read_table(part).to_pylist()
        assert len(index) == 2 * len(results)
        for key, row in zip(keys, results, strict=True):
            assert json.loads(members[f"{key}.json"])["id"] == row["id"]
            samples = np.load(io.BytesIO(members[f"{key}.samples.npy"]))
            assert np.array_equal(samples, row["samples"])
            of_row = index[index["id"] == row["id"]]
            assert of_row["sample"].tolist() == [0, 1]
            for name, k in zip(of_row["file_name"], (0, 1), strict=True):
                assert members[f"{key}.{k}.png"] == row["images"][k]["bytes"]
                assert (tmp_path / "png/images" / part.stem / name).read_bytes() == row["images"][
                    k
                ]["bytes"]
            rows += 1
    assert rows == GOOD


@pytest.mark.parametrize("to", ["png", "webdataset", "npy"])
def test_only_what_is_missing_is_done_again(quantized, tmp_path, to, capsys):
    output = tmp_path / "out"
    words = ["export", quantized, "--to", to, "--output", output, "--json"]
    igpt(*words)
    before = files(output)
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    lost = output / {
        "png": "images/part-000003/metadata.parquet",
        "webdataset": "part-000003.tar",
        "npy": "index/part-000003.parquet",
    }[to]  # fmt: skip
    lost.unlink()
    capsys.readouterr()
    igpt(*words, "--cpu-actors", 2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (lines[0]["images"], lines[0]["total"]) == (17, 22)
    assert lines[-1] == {
        "event": "done", "output": str(output), "to": to, "rows": 22, "parts": 5,
        "resumed_parts": 4,
    }  # fmt: skip
    assert files(output) == before
    changed = {path.relative_to(output).parts for path, stamp in stamps.items()
               if path.stat().st_mtime_ns != stamp}  # fmt: skip
    assert changed
    assert all("part-000003" in "/".join(parts) for parts in changed)


def test_refusals_are_one_line_and_exit_code_2(quantized, completed, tmp_path, capsys):
    output = tmp_path / "out"
    igpt("export", quantized, "--to", "npy", "--output", output)
    before = files(output)
    to_out = ("--output", output)
    assert "to: npy there, png now" in refusal(capsys, "export", quantized, "--to", "png", *to_out)
    assert "run: " in refusal(capsys, "export", completed, "--to", "npy", *to_out)
    beside_a_file = output / "export.json" / "out"
    assert "cannot use" in refusal(
        capsys, "export", quantized, "--to", "npy", "--output", beside_a_file
    )
    assert "--palette" in refusal(
        capsys, "export", quantized, "--to=png", f"--output={tmp_path}/new", "--palette=embedded"
    )
    in_run = refusal(
        capsys, "export", quantized, "--to", "npy", "--output", completed, "--overwrite"
    )
    assert "empty or an export, found" in in_run
    no_run = refusal(capsys, "export", output, "--to", "npy", "--output", tmp_path / "new")
    assert "expected a run directory, found no run.json" in no_run
    assert files(output) == before
    assert not (tmp_path / "new").exists()
    igpt("export", completed, "--to", "png", *to_out, "--overwrite")
    assert not (output / "tokens").exists()


def test_a_damaged_part_fails_the_export_and_what_is_done_stays(quantized, tmp_path, capsys):
    run = tmp_path / "run"
    for name, content in files(quantized).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    part = run / "data/part-000002.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:4] + bytes(60) + whole[64:])
    words = ["export", run, "--to", "npy", "--output", tmp_path / "out", "--quiet"]
    with pytest.raises(SystemExit) as stopped:
        igpt(*words)
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "part-000002.parquet" in message
    assert message.count("\n") == 1
    part.write_bytes(whole)
    igpt(*words)
    assert len(list((tmp_path / "out/index").iterdir())) == 5


def test_from_disk_to_an_object_store_and_back(quantized, tmp_path, s3_bucket):
    store, fs = s3_bucket("exports")
    fs.put(str(quantized), "exports/run", recursive=True)
    igpt("export", "s3://exports/run", "--to", "png", "--output", "s3://exports/png", "--quiet",
         "--storage-options", json.dumps(store))  # fmt: skip
    igpt("export", quantized, "--to", "png", "--output", tmp_path / "png")
    local = files(tmp_path / "png")
    there = {name.removeprefix("exports/png/"): fs.cat(name) for name in fs.find("exports/png")}
    assert b"s3cr3t" not in there["export.json"]
    del local["export.json"], there["export.json"]
    assert there == local
    igpt("export", "s3://exports/run", "--to", "npy", "--output", "s3://exports/png", "--quiet",
         "--overwrite", "--storage-options", json.dumps(store))  # fmt: skip
    fs.invalidate_cache()
    assert not fs.exists("exports/png/images")
    assert fs.exists("exports/png/tokens/part-000000.npy")


@pytest.mark.slow
def test_a_killed_driver_and_the_same_command_again_give_the_same_bytes(quantized, tmp_path):
    """SIGKILL as soon as the first of many parts is done."""
    n_parts = 30
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    (run / "run.json").write_text((quantized / "run.json").read_text())
    table = pq.read_table(quantized / "data/part-000000.parquet")
    part = pa.concat_tables([table] * 60)
    for index in range(n_parts):
        pq.write_table(part, run / f"data/part-{index:06d}.parquet")
    report = {"rows": n_parts * part.num_rows, "errors": 0, "shards": n_parts}
    (run / "report.json").write_text(json.dumps(report))
    output = tmp_path / "png"

    def done() -> int:
        return len(list(output.glob("images/*/metadata.parquet")))

    words = [sys.executable, "-m", "jobs", "export", str(run), "--to=png", f"--output={output}"]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    driver = subprocess.Popen(words, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not done():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(1)  # Ray's processes end with their driver
    assert 0 < done() < n_parts
    assert subprocess.run(words, env=environment, check=False).returncode == 0
    igpt("export", run, "--to", "png", "--output", tmp_path / "undisturbed")
    assert files(output) == files(tmp_path / "undisturbed")
    assert len(list(output.rglob("*.png"))) == n_parts * part.num_rows
