"""The columns and their Hub metadata, as other programs see them."""

import json

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PillowImage

from pictures import as_struct
from pipeline import rows
from pipeline.errors import UsageError

N = 4  # positions: images of 2 x 2
COLORS = [(255, 0, 0), (0, 0, 255)]
LABELS = ["cat", "dog"]
QUANTIZE = rows.quantize_columns(N)


def png(color: tuple[int, int, int]) -> dict[str, bytes | None]:
    return as_struct(PillowImage.new("RGB", (2, 2), color))


def labeled_input() -> pa.Schema:
    """The schema of a Hub dataset of images with class labels, as `datasets` writes it."""
    features = Features(
        {"image": Image(), "label": ClassLabel(names=LABELS), "note": Value("string")}
    )
    return features.arrow_schema


@pytest.fixture
def completed(tmp_path):
    """A part of the job complete: two rows, two samples each, labels passed through."""
    source = labeled_input()
    kept = pa.schema([source.field("label"), source.field("note")], metadata=source.metadata)
    schema = rows.schema_for("complete", rows.complete_columns(N), passthrough=kept)
    columns = {
        "id": ["a.png", "b.png"],
        "label": [1, 0],
        "note": ["x", None],
        "tokens": [[0, 1, 2, 3], [65535, 0, 0, 7]],
        "samples": [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2,
        "images": [[png(color), png(COLORS[0])] for color in COLORS],
        "prompt": [png(color) for color in COLORS],
        "original": [png(color) for color in COLORS],
        "prompt_length": [2, 2],
    }
    path = tmp_path / "part-000000.parquet"
    pq.write_table(pa.table(columns, schema=schema), path)
    return path, schema


def test_types_are_the_documented_ones():
    image = "struct<bytes: binary, path: string>"
    expected = {
        "id": "string",
        "tokens": "fixed_size_list<item: uint16>[1024]",
        "samples": "list<item: fixed_size_list<item: uint16>[1024]>",
        "images": f"list<item: {image}>",
        "prompt": image,
        "original": image,
        "prompt_length": "int32",
    }
    schema = rows.schema_for("complete", rows.complete_columns(1024))
    assert {field.name: str(field.type) for field in schema} == expected
    assert rows.schema_for("quantize", rows.quantize_columns(1024)).names == ["id", "tokens"]


def test_columns_of_classify_are_the_documented_ones():
    schema = rows.schema_for("classify", rows.classify_columns(10, named=True))
    assert {field.name: str(field.type) for field in schema} == {
        "id": "string",
        "predicted_label": "int64",
        "predicted_name": "string",
        "probability": "float",
        "logits": "fixed_size_list<item: float>[10]",
    }
    named = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert Features.from_dict(named).arrow_schema.equals(schema), "a feature that differs is unused"
    assert "predicted_name" not in [c.name for c in rows.classify_columns(10, named=False)]


def test_columns_are_described_with_their_types():
    columns = rows.quantize_columns(N)
    schema = rows.schema_for("quantize", columns, passthrough=pa.schema([("label", pa.int64())]))
    found = rows.described(schema, columns)
    assert [column["name"] for column in found] == schema.names
    assert [column["type"] for column in found] == [str(type_) for type_ in schema.types]
    assert found[1]["meaning"] == "as in the input"
    assert "palette indices" in found[2]["meaning"]


@pytest.mark.parametrize("way", ["load_dataset", "from_parquet"])
def test_datasets_sees_images_labels_and_tokens(completed, tmp_path, way):
    path, _ = completed
    if way == "load_dataset":
        found = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))
        dataset = found["train"]
    else:
        dataset = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert dataset.features == Features(
        {
            "id": Value("string"),
            "label": ClassLabel(names=LABELS),
            "note": Value("string"),
            "tokens": List(Value("uint16"), length=N),
            "samples": List(List(Value("uint16"), length=N)),
            "images": List(Image()),
            "prompt": Image(),
            "original": Image(),
            "prompt_length": Value("int32"),
        }
    )
    for row, color in zip(dataset, COLORS, strict=True):
        assert row["prompt"].getpixel((0, 0)) == color
        assert [image.getpixel((1, 1)) for image in row["images"]] == [color, COLORS[0]]
    assert dataset.features["label"].int2str(dataset["label"][:]) == ["dog", "cat"]
    assert dataset["tokens"][1] == [65535, 0, 0, 7]


def test_duckdb_and_pandas_read_it(completed):
    path, _ = completed
    query = (
        f"SELECT id, label, tokens[1], len(samples), octet_length(images[1].bytes) FROM '{path}'"
    )
    lengths = [len(png(color)["bytes"]) for color in COLORS]
    assert duckdb.sql(query).fetchall() == [
        ("a.png", 1, 0, 2, lengths[0]),
        ("b.png", 0, 65535, 2, lengths[1]),
    ]
    frame = pd.read_parquet(path)
    assert frame["tokens"][0].dtype == np.uint16
    assert frame["tokens"][1].tolist() == [65535, 0, 0, 7]
    assert frame["images"][1][0]["bytes"] == png(COLORS[1])["bytes"]


def test_the_file_keeps_schema_and_metadata(completed):
    path, schema = completed
    found = pq.read_schema(path)
    assert found.equals(schema)
    assert found.metadata == schema.metadata
    named = json.loads(found.metadata[b"huggingface"])["info"]["features"]
    assert Features.from_dict(named).arrow_schema.equals(found), "a feature that differs is unused"


def test_columns_without_a_feature_are_inferred(tmp_path):
    odd = pa.schema([("place", pa.struct([("x", pa.float32())])), ("when", pa.timestamp("us"))])
    schema = rows.schema_for("quantize", QUANTIZE, passthrough=odd)
    columns = {"id": ["a"], "place": [{"x": 0.5}], "when": [0], "tokens": [[1, 2, 3, 4]]}
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table(columns, schema=schema), path)
    dataset = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert dataset.features["tokens"] == List(Value("uint16"), length=N)
    assert dataset[0]["place"] == {"x": 0.5}
    assert dataset.features["when"] == Value("timestamp[us]")


@pytest.mark.parametrize(
    "broken", [b"no json", b"[]", b'{"info": null}', b'{"info": {"features": 1}}']
)
def test_foreign_metadata_is_passed_over(broken):
    kept = pa.schema([("label", pa.int64())], metadata={b"huggingface": broken})
    schema = rows.schema_for("quantize", QUANTIZE, passthrough=kept)
    metadata = json.loads(schema.metadata[b"huggingface"])
    assert metadata["info"]["features"]["label"] == {"dtype": "int64", "_type": "Value"}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("tokens", QUANTIZE),
        ("prompt", rows.complete_columns(N)),
        ("logits", rows.classify_columns(3, named=False)),
        ("__igpt_shard", QUANTIZE),
    ],
)
def test_a_clash_names_the_column(name, columns):
    with pytest.raises(UsageError, match=rf"{name} .*--keep-columns"):
        rows.schema_for("job", columns, passthrough=pa.schema([(name, pa.int64())]))


def test_a_clash_with_id_names_the_option_for_it():
    with pytest.raises(UsageError, match="--id-column id"):
        rows.schema_for("quantize", QUANTIZE, passthrough=pa.schema([("id", pa.int64())]))
    prompt = pa.schema([("prompt", pa.string())])
    schema = rows.schema_for("quantize", QUANTIZE, passthrough=prompt)
    assert "prompt" in schema.names, "only the job's own columns clash"


def test_row_error_is_one_line_without_secrets():
    error = OSError(
        "403 for https://host/b/k.png?X-Amz-Signature=abc&X=1\n  and ftp://me:pass@host/x"
    )
    found = rows.RowError.of("read", error)
    assert (found.stage, found.error) == ("read", "OSError")
    assert found.message == "403 for https://host/b/k.png?*** and ftp://***@host/x"
    assert len(rows.RowError.of("read", OSError("x" * 1000)).message) == 300
    assert rows.RowError.of("decode", ValueError()).message == "ValueError"
