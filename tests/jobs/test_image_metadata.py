"""Columns of images by metadata files, against the imagefolder builder of Hugging Face's
`datasets`."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from pictures import encoded, photo, write_photos
from pipeline.errors import UsageError
from pipeline.inputs import text_tables
from pipeline.inputs.source import find_source
from pipeline.readers import read_shard
from runs import igpt, refusal, results

NAMES = ("a.png", "cat/1.png", "cat/2.png", "cat/deep/3.png", "dog/1.png")
ROWS = [
    {"file_name": name, "caption": f'"{name}",\nor {i}', "score": i / 2, "label": i % 2}
    for i, name in enumerate(NAMES)
]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path) -> Path:
    write_photos(tmp_path / "in", NAMES)
    return tmp_path / "in"


def by_datasets(folder: Path, cache: Path) -> dict[str, dict]:
    """The columns of each image by its name, as `datasets` finds them."""
    found = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    columns = [name for name in found.column_names if name != "image"]
    found = found.cast_column("image", found.features["image"].__class__(decode=False))
    return {
        os.path.relpath(row["image"]["path"], folder): {name: row[name] for name in columns}
        for row in found
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_are_those_that_imagefolder_finds(in_process, folder, tiny_model, tmp_path, kind):
    write_rows(folder / f"metadata.{kind}", ROWS)
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "run", shard_size=2)
    expected = by_datasets(folder, tmp_path / "cache")
    assert len(expected) == len(NAMES)
    kept = {
        row["id"]: {name: row[name] for name in ("caption", "score", "label")}
        for row in results(tmp_path / "run")
    }
    assert kept == expected


def test_each_image_has_the_columns_of_the_nearest_file(in_process, folder, tiny_model, tmp_path):
    write_rows(folder / "metadata.csv", [{"file_name": "./a.png", "label": 1},
                                         {"file_name": "cat/1.png", "label": 2}])  # fmt: skip
    write_rows(folder / "cat/metadata.csv", [{"file_name": "deep/../2.png", "label": 3},
                                             {"file_name": "deep/3.png", "label": 4}])  # fmt: skip
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "run")
    found = {row["id"]: row["label"] for row in results(tmp_path / "run")}
    assert found == dict(zip(NAMES, [1, None, 3, 4, None], strict=True))
    skipped = json.loads((tmp_path / "run/report.json").read_text())["skipped_files"]
    assert skipped == {"a row of metadata and no image": 1}  # cat/1.png, by the outer file


def test_columns_to_keep_and_labels_are_chosen_of_them(folder, tiny_model, tmp_path):
    write_rows(folder / "metadata.csv", ROWS)
    assert find_source(str(folder), keep_columns=["score"]).passthrough.names == ["score"]
    source = find_source(str(folder), keep_columns=[], label_column="label")
    assert source.passthrough.names == ["label"]
    igpt("finetune", input=folder, model=tiny_model, output=tmp_path / "model", steps=1,
         batch_size=2)  # fmt: skip
    assert json.loads((tmp_path / "model/config.json").read_text())["id2label"].keys() == {"0", "1"}


def test_metadata_that_changes_is_no_resume(in_process, folder, tiny_model, tmp_path, capsys):
    write_rows(folder / "metadata.csv", ROWS)
    options = {"input": folder, "model": tiny_model, "output": tmp_path / "run", "shard_size": 2}
    igpt("quantize", **options)
    before = results(tmp_path / "run")
    (tmp_path / "run/data/part-000001.parquet").unlink()
    igpt("quantize", **options)
    assert results(tmp_path / "run") == before
    (tmp_path / "run/data/part-000001.parquet").unlink()
    write_rows(folder / "metadata.csv", [row | {"label": 7} for row in ROWS])
    assert "metadata.csv" in refusal(capsys, "quantize", **options)
    (folder / "metadata.csv").unlink()
    assert "gone now" in refusal(capsys, "quantize", **options)


def test_failed_rows_are_not_done_again_with_other_metadata(
    in_process, folder, tiny_model, tmp_path, capsys
):
    """Past bug: rows done again had the new columns, the others the old ones."""
    write_rows(folder / "metadata.csv", ROWS)
    (folder / "a.png").write_bytes(b"no image")
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "run",
         max_error_fraction=0.5)  # fmt: skip
    (folder / "a.png").write_bytes(encoded(photo(0)))
    write_rows(folder / "metadata.csv", [row | {"label": 7} for row in ROWS])
    assert "metadata.csv" in refusal(capsys, "retry-failed", tmp_path / "run")


def test_what_is_no_file_is_no_metadata(folder):
    """Past bug: a pipe of that name was read for ever."""
    os.mkfifo(folder / "metadata.csv")
    source = find_source(str(folder))
    assert (source.rows, source.skipped) == (5, {".csv": 1})


def test_metadata_that_changes_under_a_run_is_named(folder):
    write_rows(folder / "metadata.csv", ROWS)
    plan = find_source(str(folder)).cut(64)
    write_rows(folder / "metadata.csv", [{"file_name": "a.png", "text": "x"}])
    text_tables._read_table.cache_clear()  # as in another process
    with pytest.raises(ValueError, match=r"expected column caption in .*metadata\.csv"):
        list(read_shard(plan.shards[0], format="images", passthrough=plan.passthrough))


def test_a_remote_folder_has_its_metadata_too(in_process, s3_bucket, folder, tiny_model, tmp_path):
    write_rows(folder / "metadata.csv", ROWS)
    options, fs = s3_bucket("metadata-in")
    fs.put(str(folder), "metadata-in/in", recursive=True)
    igpt("quantize", input="s3://metadata-in/in", model=tiny_model, output=tmp_path / "run",
         storage_options=json.dumps({"input": options}))  # fmt: skip
    found = {row["id"]: row["caption"] for row in results(tmp_path / "run")}
    assert found == {row["file_name"]: row["caption"] for row in ROWS}


def test_a_folder_in_a_zip_has_its_metadata_too(in_process, folder, tiny_model, tmp_path):
    write_rows(folder / "metadata.jsonl", ROWS)
    shutil.make_archive(str(tmp_path / "all"), "zip", folder.parent, "in")
    igpt("quantize", input=f"zip://in::{tmp_path / 'all.zip'}", model=tiny_model,
         output=tmp_path / "run")  # fmt: skip
    found = {row["id"]: row["caption"] for row in results(tmp_path / "run")}
    assert found == {row["file_name"]: row["caption"] for row in ROWS}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"metadata.csv": "file_name,n\na.png,1\na.png,2\n"}, "found 2 of a.png"),
        ({"metadata.csv": "file_name,n,n\na.png,1,2\n"}, "found n twice"),
        ({"metadata.csv": "file_name,id\na.png,1\n"}, "next: --keep-columns"),
        ({"metadata.csv": "file_name,n\na.png,1,2\n"}, "cannot read .*metadata.csv"),
        ({"metadata.jsonl": '{"file_name": "a.png"'}, "cannot read .*metadata.jsonl"),
        ({"metadata.parquet": "no table"}, "cannot read .*metadata.parquet"),
        ({"metadata.csv": "file_name,n\na.png,1\n", "metadata.jsonl": '{"file_name": "a.png"}\n'},
         "expected one metadata file in a folder"),
        ({"metadata.csv": "file_name,n\na.png,1\n", "cat/metadata.csv": "file_name,n\n1.png,x\n"},
         "expected the same columns in every file, but n is string"),
    ],
)  # fmt: skip
def test_metadata_that_contradicts_itself_is_refused(folder, files, says):
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        find_source(str(folder))


def test_other_files_of_that_name_are_left_out_and_named(folder):
    (folder / "metadata.csv").write_text("name,n\na.png,1\n")
    source = find_source(str(folder))
    assert (source.rows, source.passthrough.names) == (5, [])
    assert source.skipped == {"metadata that is not read": 1}
    (folder / "a.png").unlink()
    write_rows(folder / "metadata.csv", ROWS[1:])
    labeled = find_source(str(folder), label_from_folder=True)
    assert labeled.passthrough.names == ["label"]
    assert labeled.skipped == {"metadata that is not read": 1}


def test_a_table_of_that_name_is_one_where_there_are_no_images(tmp_path):
    pq.write_table(pa.table({"image": [encoded(photo(0))]}), tmp_path / "metadata.parquet")
    assert find_source(str(tmp_path)).format == "parquet"
