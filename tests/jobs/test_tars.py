"""`igpt quantize` over tars in WebDataset's layout, whole and broken, cut and compressed."""

import gzip
import io
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from jobs.__main__ import main
from pictures import SIDE, encoded, photo


def pack(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """Seven good images and a bad one; none; five, cut short within the fourth."""
    folder = tmp_path_factory.mktemp("tars")
    images = {f"{i}.png": encoded(photo(i)) for i in range(7)}
    labels = {f"{i}.cls": str(i % 3).encode() for i in range(7)}
    pack(folder / "a-000.tar", images | labels | {"bad.jpg": b"no image"})
    pack(folder / "a-001.tar", {})
    pack(folder / "a-002.tar", {f"{i}.png": encoded(photo(10 + i)) for i in range(5)})
    with tarfile.open(folder / "a-002.tar") as tar:
        cut = tar.getmember("3.png").offset_data + 99
    with open(folder / "a-002.tar", "r+b") as file:
        file.truncate(cut)
    return folder


GOOD = [f"a-000.tar#{i}" for i in range(7)] + [f"a-002.tar#{i}" for i in range(3)]
BAD = {
    "a-000.tar#bad": "ImageError",
    "a-001.tar": "EmptyTar",
    "a-002.tar#3": "TruncatedTar",
    "a-002.tar": "TruncatedTar",
}


def quantize(
    tars: Path, model: str, output: Path, *more: str, names: str = "a-{000..002}.tar"
) -> None:
    pattern = str(tars / names)
    words = ["--input", pattern, "--model", model, "--output", str(output), *more]
    main(["quantize", *words])


def states(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}


def test_good_samples_are_rows_the_rest_are_errors_and_the_run_completes(
    ray_session, tars, tiny_model, tmp_path, capsys
):
    output = tmp_path / "run"
    quantize(tars, tiny_model, output, "--max-error-fraction", "0.5", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "done"
    assert (lines[-2]["images"], lines[-2]["total"], lines[-2]["shards"]) == (10, 14, 3)
    report = json.loads((output / "report.json").read_text())
    assert (report["rows"], report["errors"], report["shards"]) == (len(GOOD), len(BAD), 3)
    found = pq.read_table(output / "errors").to_pylist()
    assert {row["id"]: row["error"] for row in found} == BAD

    files = str(output / "data" / "*.parquet")
    table = duckdb.sql(f"select id, cls, tokens from '{files}' order by id").fetchall()
    assert [row[0] for row in table] == GOOD
    assert [row[1] for row in table] == [i % 3 for i in range(7)] + [None] * 3
    palette = load_palette(tiny_model)
    seeds = [*range(7), *range(10, 13)]
    for (_, _, tokens), seed in zip(table, seeds, strict=True):
        pixels = load_pixels(encoded(photo(seed)), SIDE)
        assert np.array_equal(tokens, palette.encode(pixels).ravel())
    rows = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["id"]) == GOOD

    before = states(output)
    quantize(tars, tiny_model, output, "--max-error-fraction", "0.5")
    assert states(output) == before, "a finished run is not done again"
    (output / "data" / "part-000002.parquet").unlink()
    quantize(tars, tiny_model, output, "--max-error-fraction", "0.5")
    report = json.loads((output / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (len(GOOD), len(BAD)), "of old and new parts"
    assert report["resumed_shards"] == 2


def test_the_budget_is_judged_by_all_rows_once_they_are_known(
    ray_session, tars, tiny_model, tmp_path, capsys
):
    """Four of 14 in compressed tars: whichever shard comes first, more may follow that are good."""
    output, packed = tmp_path / "run", tmp_path / "packed"
    packed.mkdir()
    for tar in tars.iterdir():
        (packed / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
    run = partial(quantize, packed, tiny_model, output, names="a-{000..002}.tar.gz")
    for _ in range(2):  # the second finds all parts done
        with pytest.raises(SystemExit) as stopped:
            run("--max-error-fraction", "0.28", "--quiet")
        assert stopped.value.code == 3
        assert "4 errors in 14 rows" in capsys.readouterr().err
        assert len(list((output / "data").iterdir())) == 3
        assert not (output / "report.json").exists()
    run("--max-error-fraction", "0.29", "--quiet")
    assert json.loads((output / "report.json").read_text())["errors"] == 4


@pytest.mark.slow
def test_a_tar_that_is_gone_fails_its_shard_and_the_others_are_done(
    ray_session, tars, tiny_model, tmp_path, capsys
):
    """Past bug: it was one broken image, and the run ended well without the others of the tar."""
    folder, output = tmp_path / "tars", tmp_path / "run"
    shutil.copytree(tars, folder)
    words = ("--max-error-fraction", "0.5", "--quiet")
    quantize(folder, tiny_model, output, *words)
    before = {path.name: path.read_bytes() for path in (output / "data").iterdir()}
    shutil.rmtree(output / "data")
    (folder / "a-000.tar").rename(tmp_path / "away.tar")
    with pytest.raises(SystemExit) as stopped:
        quantize(folder, tiny_model, output, *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert "1 of 3 shards failed: 0; " in line
    assert f"cannot read the tar {folder}/a-000.tar: FileNotFoundError" in line
    assert len(list((output / "data").iterdir())) == 2
    (tmp_path / "away.tar").rename(folder / "a-000.tar")
    quantize(folder, tiny_model, output, *words)
    assert {path.name: path.read_bytes() for path in (output / "data").iterdir()} == before
