"""Every source through quantize into every export, opened by outside readers."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from igpt_core.images.model_palette import load_palette
from jobs.__main__ import main
from pictures import SIDE, encoded, photo
from runs import igpt

ROWS = 5
LABELS = [0, 1, 2, 1, 0]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def expected_tokens(model: str) -> np.ndarray:
    """(ROWS, T): each image resized by Pillow, each pixel the nearest color by brute force."""
    colors = load_palette(model).colors.astype(np.float64)
    pixels = np.stack([np.asarray(photo(i).resize((SIDE, SIDE), 2)) for i in range(ROWS)])
    channels = pixels.reshape(ROWS, -1, 1, 3) / 127.5 - 1
    return ((channels - colors) ** 2).sum(axis=3).argmin(axis=2)


def images_in(folder: Path, model: str) -> tuple[Path, list[str]]:
    folder.mkdir()
    for i in range(ROWS):
        (folder / f"{i}.png").write_bytes(encoded(photo(i)))
    return folder, [f"{i}.png" for i in range(ROWS)]


def parquet_of(folder: Path, column: pa.Array) -> tuple[Path, list[str]]:
    folder.mkdir()
    table = pa.table({"image": column, "label": pa.array(LABELS, pa.int64())})
    pq.write_table(table, folder / "a.parquet")
    return folder, [f"a.parquet#{i}" for i in range(ROWS)]


def structs(folder: Path, model: str) -> tuple[Path, list[str]]:
    images = [{"bytes": encoded(photo(i)), "path": None} for i in range(ROWS)]
    return parquet_of(folder, pa.array(images, IMAGE))


def binaries(folder: Path, model: str) -> tuple[Path, list[str]]:
    return parquet_of(folder, pa.array([encoded(photo(i)) for i in range(ROWS)], pa.binary()))


def tokens(folder: Path, model: str) -> tuple[Path, list[str]]:
    folder.mkdir()
    column = pa.array(expected_tokens(model).tolist(), pa.list_(pa.uint16()))
    pq.write_table(pa.table({"tokens": column, "label": LABELS}), folder / "a.parquet")
    return folder, [f"a.parquet#{i}" for i in range(ROWS)]


def tar_of(folder: Path, name: str, mode: str) -> tuple[Path, list[str]]:
    folder.mkdir()
    with tarfile.open(folder / name, mode) as tar:
        for i in range(ROWS):
            for extension, content in [("png", encoded(photo(i))), ("cls", b"%d" % LABELS[i])]:
                member = tarfile.TarInfo(f"{i}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder, [f"{name}#{i}" for i in range(ROWS)]


def tar(folder: Path, model: str) -> tuple[Path, list[str]]:
    return tar_of(folder, "a.tar", "w")


def packed_tar(folder: Path, model: str) -> tuple[Path, list[str]]:
    return tar_of(folder, "a.tar.gz", "w:gz")


def earlier_run(folder: Path, model: str) -> tuple[Path, list[str]]:
    """A run of quantize over tables, as input again."""
    images, ids = structs(folder.parent / "images", model)
    igpt("quantize", input=images, model=model, output=folder, shard_size=4)
    return folder, ids


# Each makes its input, and names the ids of its rows.
SOURCES = {
    "folder": images_in,
    "parquet-struct": structs,
    "parquet-binary": binaries,
    "parquet-tokens": tokens,
    "tar": tar,
    "tar.gz": packed_tar,
    "run": earlier_run,
}


@pytest.fixture(scope="module", params=SOURCES)
def quantized(request, in_process, tiny_model, tmp_path_factory):
    """(run, ids, labels) of each source; labels None where it has none."""
    folder = tmp_path_factory.mktemp("round-trip")
    source, ids = SOURCES[request.param](folder / "source", tiny_model)
    igpt("quantize", input=source, model=tiny_model, output=folder / "run", shard_size=3)
    label = {"folder": None, "tar": "cls", "tar.gz": "cls"}.get(request.param, "label")
    return folder / "run", ids, label


def png(output: Path, label: str | None, tmp_path: Path):
    """In the order of the ids: `imagefolder` takes files as the disk lists them."""
    loaded = load_dataset(
        "imagefolder", data_dir=str(output), split="train", cache_dir=str(tmp_path / "cache")
    ).sort("id")
    labels = loaded[label] if label else None
    return list(loaded["id"]), labels, [np.asarray(image) for image in loaded["image"]], None


def webdataset(output: Path, label: str | None, tmp_path: Path):
    ids, labels, pictures, arrays = [], [], [], []
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as file:
            members = {member.name: file.extractfile(member).read() for member in file}
        for key in sorted({name.partition(".")[0] for name in members}):
            values = json.loads(members[f"{key}.json"])
            ids.append(values["id"])
            labels.append(values.get(label))
            pictures.append(np.asarray(Image.open(io.BytesIO(members[f"{key}.png"]))))
            arrays.append(np.load(io.BytesIO(members[f"{key}.tokens.npy"])))
    return ids, labels, pictures, np.array(arrays)


def npy(output: Path, label: str | None, tmp_path: Path):
    index = pd.concat(pd.read_parquet(path) for path in sorted((output / "index").iterdir()))
    arrays = [np.load(path) for path in sorted((output / "tokens").iterdir())]
    return list(index["id"]), list(index[label]) if label else None, None, np.concatenate(arrays)


READERS = {"png": png, "webdataset": webdataset, "npy": npy}


@pytest.mark.parametrize("to", READERS)
def test_tokens_ids_and_labels_come_through(quantized, tiny_model, tmp_path, to):
    run, ids, label = quantized
    output = tmp_path / "export"
    main(["export", str(run), f"--to={to}", f"--output={output}", "--quiet"])
    found_ids, labels, pictures, arrays = READERS[to](output, label, tmp_path)
    assert found_ids == ids
    if label is not None:
        assert [int(value) for value in labels] == LABELS
    expected = expected_tokens(tiny_model)
    assert pictures is not None or arrays is not None
    if arrays is not None:
        assert arrays.dtype == np.uint16
        assert np.array_equal(arrays, expected)
    if pictures is not None:
        colors = load_palette(tiny_model).colors.astype(np.float64)
        decoded = np.rint(127.5 * (colors + 1)).astype(np.uint8)[expected]
        assert np.array_equal(np.stack(pictures), decoded.reshape(ROWS, SIDE, SIDE, 3))
