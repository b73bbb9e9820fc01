"""Exports of run directories made here, without Ray: read back by others, and what is refused."""

import datetime
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from igpt_core.images.palette import Palette
from pictures import as_struct
from pipeline import rows
from pipeline.errors import UsageError
from pipeline.export.export import acquire, find_palette, open_run, pending_parts
from pipeline.export.formats import EXPORTS
from pipeline.export.stage import ExportParts
from pipeline.run_directory.directory import RunDirectory

SIDE = 4
PALETTE = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
COLUMNS: dict[str, tuple[rows.Column, ...]] = {
    "quantize": rows.quantize_columns(SIDE**2),
    "complete": rows.complete_columns(SIDE**2, scored=True),
    "sample": rows.sample_columns(SIDE**2, scored=True),
    "embed": (
        *rows.embed_columns((2, 12), 6, pa.float16())[:1],
        *rows.embed_columns((2, 12), 6, pa.float32())[1:],
    ),
    "score": rows.score_columns(SIDE**2, mapped=True),
    "classify": rows.classify_columns(3, named=True),
}
HOSTILE = [
    "../../escaped",
    "/etc/passwd",
    "a/b/../c.png",
    "nul\0\n\x1b[31m",
    "日本.tar.gz",
    "",
    ".",
]
LABELS = {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "frog"]}}
PASSED = pa.schema([("label", pa.int64())])


def png(tokens: np.ndarray) -> dict[str, Any]:
    return as_struct(Image.fromarray(colors(tokens)))


def colors(tokens: np.ndarray) -> np.ndarray:
    return np.rint(127.5 * (PALETTE.colors[tokens] + 1)).astype(np.uint8).reshape(-1, SIDE, 3)


def row(job: str, id_: str, *, n_samples: int = 3) -> dict[str, Any]:
    """A result, the same for the same id."""
    rng = np.random.default_rng(list(id_.encode()))
    tokens = rng.integers(0, 16, (1 + n_samples, SIDE**2)).astype(np.uint16)
    found: dict[str, dict[str, Any]] = {
        "quantize": {"tokens": tokens[0]},
        "complete": {
            "tokens": tokens[0],
            "samples": list(tokens[1:]),
            "images": [png(sample) for sample in tokens[1:]],
            "prompt": png(tokens[0, : SIDE * 2]),
            "original": png(tokens[0]),
            "prompt_length": SIDE * 2,
            "nll": rng.random(n_samples, np.float32),
            "sample_index": list(range(n_samples))[::-1],
        },
        "sample": {"tokens": tokens[0], "image": png(tokens[0]), "nll": 1.5, "bits_per_pixel": 2.1},
        "embed": {
            "embedding_2": rng.random(6).astype(np.float16),
            "embedding_12": rng.random(6, np.float32),
        },
        "score": {
            "nll": rng.random(),
            "bits_per_pixel": rng.random(),
            "nll_map": rng.random(SIDE**2, np.float32),
        },
        "classify": {
            "predicted_label": 1,
            "predicted_name": "dog",
            "probability": 0.75,
            "logits": rng.random(3, np.float32),
        },
    }
    return {"id": id_, "label": len(id_) % 3, **found[job]}


def make_run(
    folder: Path,
    job: str,
    parts: Sequence[Sequence[dict[str, Any]]],
    *,
    passthrough: pa.Schema = PASSED,
    **record: Any,
) -> str:
    """A finished run directory of rows in parts."""
    (folder / "data").mkdir(parents=True)
    known = {"info": {"features": LABELS}}
    schema = rows.schema_for(
        job,
        COLUMNS[job],
        passthrough=passthrough.with_metadata({"huggingface": json.dumps(known)}),
    )
    run = {
        "format": 1,
        "job": job,
        "command": f"igpt {job} --output out",
        "created": "2026-01-05T12:03:00+00:00",
        "results": {"samples": 3} if job == "complete" else {},
        "palette": {"location": str(folder / "palette.npy"), "fingerprint": PALETTE.fingerprint},
        "image_size": SIDE,
        "passthrough": passthrough.names,
    }
    (folder / "run.json").write_text(json.dumps(run | record))
    PALETTE.save(folder / "palette.npy")
    for index, part in enumerate(parts):
        table = pa.Table.from_pylist(list(part), schema=schema)
        pq.write_table(table, folder / f"data/part-{index:06d}.parquet")
    report = {"rows": sum(map(len, parts)), "errors": 0, "shards": len(parts)}
    (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def a_run(folder: Path, job: str, *, empty: bool = False) -> str:
    """Five rows in two parts; `empty`: between them one whose rows all failed."""
    names = [f"{i * 'x'}photo {i}.jpg" for i in range(5)]
    parts = [[row(job, name) for name in names[:3]], [row(job, name) for name in names[3:]]]
    if empty:
        parts.insert(1, [])
    return make_run(folder, job, parts)


def rows_of(run: str) -> list[dict[str, Any]]:
    return pq.read_table(Path(run, "data")).to_pylist()


def export(run: str, to: str, output: Path, *, overwrite: bool = False) -> list[int]:
    """What `igpt export` does but for Ray; the parts that were written."""
    found = open_run(run, {})
    EXPORTS[to].check(found.contents)
    palette = find_palette(found, None, {})
    target = RunDirectory.at(str(output), {})
    acquire(target, found, to=to, overwrite=overwrite)
    pending = {shard.index for shard in pending_parts(target, found.plan, to=to)}
    stage = ExportParts(
        to=to,
        job=found.run.job,
        passthrough=found.run.passthrough,
        n_samples=found.run.record["results"].get("samples", 1),
        image_size=SIDE,
        palette=palette,
        output=str(output),
        input_options={},
        output_options={},
        model_options={},
    )
    plan = found.plan.to_table()
    blocks = [
        plan.slice(i, 1) for i, shard in enumerate(found.plan.shards) if shard.index in pending
    ]
    return [index for block in blocks for index in stage(block)["shard"].to_pylist()]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tar_samples(path: Path) -> dict[str, dict[str, bytes]]:
    """As WebDataset reads a tar: members that follow one another and have the same name up to
    their first dot are a sample."""
    samples: dict[str, dict[str, bytes]] = {}
    last = None
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            assert key == last or key not in samples
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
            last = key
    return samples


# --- npy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "arrays"),
    [
        ("quantize", {"tokens": ("uint16", (SIDE**2,))}),
        ("complete", {"tokens": ("uint16", (SIDE**2,)), "samples": ("uint16", (3, SIDE**2))}),
        ("embed", {"embedding_2": ("float16", (6,)), "embedding_12": ("float32", (6,))}),
        ("score", {"nll_map": ("float32", (SIDE**2,))}),
        ("classify", {"logits": ("float32", (3,))}),
    ],
)
def test_arrays_keep_their_values_dtype_and_shape(tmp_path, job, arrays):
    run = a_run(tmp_path / "run", job, empty=True)
    output = tmp_path / "npy"
    assert export(run, "npy", output) == [0, 1, 2]
    expected = rows_of(run)
    assert {path.name for path in output.iterdir()} == {*arrays, "index", "export.json"}
    for name, (dtype, shape) in arrays.items():
        parts = [
            np.load(output / name / f"part-{i:06d}.npy", mmap_mode="r", allow_pickle=False)
            for i in range(3)
        ]
        assert [(part.dtype, part.shape) for part in parts] == [
            (np.dtype(dtype), (n, *shape)) for n in (3, 0, 2)
        ]
        assert np.array_equal(np.concatenate(parts), [values[name] for values in expected])
    index = pd.concat(pd.read_parquet(output / f"index/part-{i:06d}.parquet") for i in range(3))
    assert index["id"].tolist() == [values["id"] for values in expected]
    assert index["row"].tolist() == [0, 1, 2, 0, 1]
    assert index["label"].tolist() == [values["label"] for values in expected]
    in_results = set(expected[0]) - set(arrays) - {"images", "prompt", "original"}
    assert set(index.columns) == in_results | {"row"}


def test_duckdb_finds_a_row_of_an_array_by_its_index(tmp_path):
    run = a_run(tmp_path / "run", "embed")
    export(run, "npy", tmp_path / "npy")
    file, at = duckdb.sql(
        f"select filename, row from read_parquet('{tmp_path}/npy/index/*.parquet', filename=true) "
        "where id = 'xxxxphoto 4.jpg'"
    ).fetchall()[0]
    array = np.load(str(file).replace("/index/", "/embedding_12/").replace(".parquet", ".npy"))
    assert np.array_equal(array[at], row("embed", "xxxxphoto 4.jpg")["embedding_12"])


# --- webdataset -----------------------------------------------------------------------------------


def test_samples_of_a_tar_hold_pictures_arrays_and_values(tmp_path):
    run = a_run(tmp_path / "run", "complete", empty=True)
    export(run, "webdataset", tmp_path / "tars")
    assert set(files(tmp_path / "tars")) == {"export.json"} | {
        f"part-{i:06d}.tar" for i in range(3)
    }
    samples: dict[str, dict[str, bytes]] = {}
    for index, n in enumerate((3, 0, 2)):
        found = tar_samples(tmp_path / f"tars/part-{index:06d}.tar")
        assert len(found) == n
        assert not samples.keys() & found.keys()
        samples |= found
    for sample, values in zip(samples.values(), rows_of(run), strict=True):
        pictures = ["0.png", "1.png", "2.png"]
        assert set(sample) == {*pictures, "json", "cls", "tokens.npy", "samples.npy"}
        assert [sample[name] for name in pictures] == [i["bytes"] for i in values["images"]]
        assert np.array_equal(np.load(io.BytesIO(sample["samples.npy"])), values["samples"])
        assert int(sample["cls"]) == values["label"]
        assert json.loads(sample["json"]) == {
            name: values[name] for name in ("id", "label", "prompt_length", "nll", "sample_index")
        }


def test_datasets_reads_the_tars(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = a_run(tmp_path / "run", "quantize")
    export(run, "webdataset", tmp_path / "tars")
    loaded = datasets.load_dataset(
        "webdataset",
        data_files=str(tmp_path / "tars" / "*.tar"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    for sample, values in zip(loaded, rows_of(run), strict=True):
        assert np.array_equal(sample["png"], colors(np.array(values["tokens"])))
        assert sample["tokens.npy"] == values["tokens"]
        assert sample["json"]["id"] == values["id"]
        assert sample["cls"] == values["label"]


def test_json_holds_what_json_has_no_type_for(tmp_path):
    passed = pa.schema(
        [
            ("a.b/../c", pa.float32()),
            ("half", pa.float16()),
            ("raw", pa.binary()),
            ("when", pa.timestamp("us")),
            ("boxes", pa.list_(pa.list_(pa.int32(), 2))),
            ("scores", pa.list_(pa.float64())),
            ("deep", pa.struct([("x", pa.list_(pa.float32())), ("raw", pa.list_(pa.binary()))])),
            ("pairs", pa.map_(pa.string(), pa.float64())),
        ]
    )
    given = {
        "a.b/../c": float("nan"),
        "half": 0.5,
        "raw": b"\xff\0",
        "when": datetime.datetime(2026, 1, 5, 12),
        "boxes": [[1, 2], [3, 4]],
        "scores": [1.0, float("nan"), float("-inf")],
        "deep": {"x": [float("inf"), 0.5], "raw": [b"\xff\0"]},
        "pairs": [("k", float("nan"))],
    }
    nothing = dict.fromkeys(given)
    parts = [[row("score", "a") | given, row("score", "b") | nothing]]
    run = make_run(tmp_path / "run", "score", parts, passthrough=passed)
    export(run, "webdataset", tmp_path / "tars")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    samples = tar_samples(tmp_path / "tars/part-000000.tar")
    assert all(set(sample) == {"json", "nll_map.npy"} for sample in samples.values())
    first, second = (json.loads(s["json"], parse_constant=refuse) for s in samples.values())
    assert {name: first[name] for name in given} == {
        "a.b/../c": None,
        "half": 0.5,
        "raw": "/wA=",
        "when": "2026-01-05 12:00:00",
        "boxes": [[1, 2], [3, 4]],
        "scores": [1.0, None, None],
        "deep": {"x": [None, 0.5], "raw": ["/wA="]},
        "pairs": [["k", None]],
    }
    assert {name: second[name] for name in given} == nothing


# --- png ------------------------------------------------------------------------------------------


def test_imagefolder_opens_pictures_with_their_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = a_run(tmp_path / "run", "complete", empty=True)
    export(run, "png", tmp_path / "png")
    loaded = datasets.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "png"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    expected = [(values, k) for values in rows_of(run) for k in range(3)]
    assert len(loaded) == len(expected)
    assert loaded.features["label"].names == ["cat", "dog", "frog"]
    by_place = {(found["id"], found["sample"]): found for found in loaded}
    for values, k in expected:
        found = by_place[values["id"], k]
        assert np.array_equal(found["image"], colors(np.array(values["samples"][k])))
        assert (found["label"], found["nll"]) == (values["label"], values["nll"][k])
        assert found["sample_index"] == values["sample_index"][k]
        assert found["prompt_length"] == values["prompt_length"]


@pytest.mark.parametrize("job", ["quantize", "sample"])
def test_one_picture_per_row(tmp_path, job):
    run = a_run(tmp_path / "run", job)
    export(run, "png", tmp_path / "png")
    index = duckdb.sql(
        f"select * from read_parquet('{tmp_path}/png/images/*/metadata.parquet', filename=true)"
    ).fetchdf()
    expected = {values["id"]: values for values in rows_of(run)}
    assert set(index["id"]) == set(expected)
    assert ("nll" in index.columns) == (job == "sample")
    for found in index.to_dict("records"):
        picture = np.asarray(Image.open(Path(found["filename"]).parent / found["file_name"]))
        assert np.array_equal(picture, colors(np.array(expected[found["id"]]["tokens"])))


def test_a_row_without_a_picture_is_left_out(tmp_path):
    lost = [None, {"bytes": None, "path": "elsewhere.png"}]
    parts = [[*(row("sample", "a") | {"image": image} for image in lost), row("sample", "b")]]
    run = make_run(tmp_path / "run", "sample", parts)
    export(run, "png", tmp_path / "png")
    index = pd.read_parquet(tmp_path / "png/images/part-000000/metadata.parquet")
    assert index[["id", "file_name"]].values.tolist() == [["b", "000002.png"]]
    export(run, "webdataset", tmp_path / "tars")
    samples = tar_samples(tmp_path / "tars/part-000000.tar").values()
    assert ["png" in sample for sample in samples] == [False, False, True]


# --- all formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", EXPORTS)
def test_hostile_ids_and_columns_name_no_file(tmp_path, to):
    """Ids lead to no path; they stand in the index as they are."""
    passed = pa.schema([("../../column", pa.list_(pa.float32(), 2)), ("embedding/x", pa.int8())])
    values = {"../../column": [1.0, 2.0], "embedding/x": 3}
    parts = [[row("quantize", id_) | values for id_ in HOSTILE]]
    run = make_run(tmp_path / "deep/run", "quantize", parts, passthrough=passed)
    output = tmp_path / "deep/out"
    before = files(tmp_path)
    export(run, to, output)
    new = {name for name in files(tmp_path) if name not in before}
    inside = {name.removeprefix("deep/out/") for name in new if name.startswith("deep/out/")}
    assert len(inside) == len(new)
    numbers = [f"{i:06d}" for i in range(len(HOSTILE))]
    if to == "png":
        folder = "images/part-000000"
        assert inside == {"export.json", f"{folder}/metadata.parquet"} | {
            f"{folder}/{number}.png" for number in numbers
        }
        found = pq.read_table(output / folder / "metadata.parquet").to_pylist()
    elif to == "npy":
        assert inside == {"export.json", "tokens/part-000000.npy", "index/part-000000.parquet"}
        found = pq.read_table(output / "index").to_pylist()
    else:
        assert inside == {"export.json", "part-000000.tar"}
        samples = tar_samples(output / "part-000000.tar")
        assert list(samples) == [f"000000-{number}" for number in numbers]
        found = [json.loads(sample["json"]) for sample in samples.values()]
    assert [values["id"] for values in found] == HOSTILE
    assert all(row_["../../column"] == [1.0, 2.0] for row_ in found)


@pytest.mark.parametrize("to", EXPORTS)
def test_the_same_bytes_again_and_only_what_is_missing(tmp_path, to):
    run = a_run(tmp_path / "run", "quantize", empty=True)
    output = tmp_path / "out"
    export(run, to, output)
    first = files(output)
    export(run, to, tmp_path / "again")
    assert files(tmp_path / "again") == first
    assert export(run, to, output) == []
    done = output / EXPORTS[to].done.format(2)
    done.unlink()
    assert export(run, to, output) == [2]
    assert files(output) == first


@pytest.mark.parametrize("to", EXPORTS)
def test_the_file_that_means_done_is_written_last(tmp_path, to, monkeypatch):
    run = a_run(tmp_path / "run", "quantize")
    written = []
    write = ExportParts._write

    def noted(stage: ExportParts, file: tuple[str, bytes]) -> None:
        write(stage, file)
        written.append(file[0])

    monkeypatch.setattr(ExportParts, "_write", noted)
    export(run, to, tmp_path / "out")
    per_part = {"png": [4, 3], "webdataset": [1, 1], "npy": [2, 2]}[to]
    assert len(written) == sum(per_part)
    assert written[per_part[0] - 1] == EXPORTS[to].done.format(0)
    assert written[-1] == EXPORTS[to].done.format(1)


# --- what is refused ------------------------------------------------------------------------------


def refused(run: str, to: str, output: Path, message: str, *, overwrite: bool = False) -> None:
    with pytest.raises(UsageError, match=message) as error:
        export(run, to, output, overwrite=overwrite)
    assert "\n" not in str(error.value)


def test_a_format_that_does_not_fit_names_one_that_does(tmp_path):
    embedded = a_run(tmp_path / "embed", "embed")
    refused(embedded, "png", tmp_path / "out", "found embedding_2, embedding_12, .*npy or webd")
    without_map = make_run(tmp_path / "score", "sample", [], passthrough=pa.schema([]))
    scored = pa.table({"id": ["a"], "nll": pa.array([1.0], pa.float32())})
    pq.write_table(scored, Path(without_map, "data/part-000000.parquet"))
    Path(without_map, "report.json").write_text('{"rows": 1, "errors": 0, "shards": 1}')
    refused(without_map, "npy", tmp_path / "out", "found id, nll; next: --to webdataset")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "name"),
    [("png", "file_name"), ("png", "mask_file_name"), ("png", "image"), ("npy", "row")],
)
def test_a_column_with_the_name_of_one_of_the_index_is_refused(tmp_path, to, name):
    passed = pa.schema([(name, pa.string())])
    parts = [[row("quantize", "a") | {name: "b"}]]
    run = make_run(tmp_path / "run", "quantize", parts, passthrough=passed)
    refused(run, to, tmp_path / "out", f"column {name} has a name that the index")
    export(run, "webdataset", tmp_path / "out")


def test_what_is_no_finished_run_is_refused(tmp_path):
    refused(str(tmp_path / "nothing"), "png", tmp_path / "out", "found no run.json in")
    run = a_run(tmp_path / "run", "quantize")
    part = Path(run, "data/part-000001.parquet")
    whole = part.read_bytes()
    part.unlink()
    refused(run, "png", tmp_path / "out", "found 1 of 2 parts; next: .* igpt quantize --output")
    part.write_bytes(whole[:-20])
    refused(run, "png", tmp_path / "out", "cannot read the Parquet footer of .*part-000001")
    part.write_bytes(whole)
    Path(run, "report.json").unlink()
    refused(run, "png", tmp_path / "out", "found 2 parts and no report.json")
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_named(tmp_path):
    run = a_run(tmp_path / "run", "quantize")
    part = Path(run, "data/part-000001.parquet")
    damaged = bytearray(part.read_bytes())
    damaged[4:60] = bytes(56)
    part.write_bytes(damaged)
    with pytest.raises(RuntimeError, match=r"cannot read .*part-000001\.parquet: "):
        export(run, "npy", tmp_path / "out")


def test_another_palette_is_refused(tmp_path):
    run = a_run(tmp_path / "run", "quantize")
    Palette([[0.0, 0.0, 0.0]]).save(tmp_path / "run/palette.npy")
    refused(run, "png", tmp_path / "out", "expected the palette of the run, fingerprint")


def test_another_export_in_the_folder_is_refused_and_replaced_on_demand(tmp_path):
    run = a_run(tmp_path / "run", "quantize")
    output = tmp_path / "out"
    export(run, "npy", output)
    before = files(output)
    refused(run, "webdataset", output, "another export .to: npy there, webdataset now")
    refused(a_run(tmp_path / "b", "quantize"), "npy", output, "run: .*/run there, .*/b now")
    started_anew = json.loads(Path(run, "run.json").read_text()) | {"created": "later"}
    Path(run, "run.json").write_text(json.dumps(started_anew))
    refused(run, "npy", output, "created: .* there, later now")
    report = json.loads(Path(run, "report.json").read_text()) | {"errors": 4}
    Path(run, "report.json").write_text(json.dumps(report))
    refused(run, "npy", output, "errors: 0 there, 4 now")
    assert files(output) == before

    (output / "notes.txt").write_text("mine")
    (output / "partial").mkdir()
    (output / "partial/kept").write_text("mine")
    assert export(run, "webdataset", output, overwrite=True) == [0, 1]
    assert set(files(output)) == {
        "export.json", "part-000000.tar", "part-000001.tar", "notes.txt", "partial/kept"
    }  # fmt: skip
    export(run, "png", output, overwrite=True)
    assert {path.name for path in output.iterdir()} == {
        "export.json", "images", "notes.txt", "partial"
    }  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_export_is_never_touched(tmp_path, overwrite):
    run = a_run(tmp_path / "run", "quantize")
    before = files(Path(run))
    refused(run, "npy", Path(run), "empty or an export, found", overwrite=overwrite)
    assert files(Path(run)) == before
    forged = {"format": 1, "to": "npy", "owned": ["../run"]}
    for text in ("[1, ", json.dumps(forged), json.dumps({"format": 2, "owned": []})):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "export.json").write_text(text)
        refused(run, "npy", other, "is not the record of an export", overwrite=overwrite)
    assert files(Path(run)) == before
