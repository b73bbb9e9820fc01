"""`igpt classify` from end to end: held against transformers, read by others, what it refuses."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from datasets import load_dataset

from igpt_core.heads import ImageGPTForImageClassification
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from jobs.__main__ import main
from models import save_tiny
from pictures import BAD, GOOD, SIDE
from runs import parts

NAMES = {0: "cat", 1: "dog", 2: "frog"}


def classify(input: str, model: str, output: Path, *words: str) -> None:
    options = {
        "input": input,
        "model": model,
        "output": output,
        "device": "cpu",
        "dtype": "float32",
        "max-error-fraction": 0.5,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    main(["classify", "--quiet", *flags, *words])


def make_classifier(folder: Path, id2label: dict[int, str]) -> str:
    return save_tiny(folder, ImageGPTForImageClassification, std=0.5, id2label=id2label)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    return make_classifier(tmp_path_factory.mktemp("models") / "classifier", NAMES)


@pytest.fixture(scope="module")
def classified(ray_session, photos, classifier, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "classified"
    classify(photos, classifier, output, "--batch-size=8", "--shard-size=16")
    return output


def test_columns_are_the_documented_ones(classified):
    schema = pq.read_schema(classified / "data" / "part-000000.parquet")
    assert {field.name: field.type for field in schema} == {
        "id": pa.string(),
        "predicted_label": pa.int64(),
        "predicted_name": pa.string(),
        "probability": pa.float32(),
        "logits": pa.list_(pa.float32(), 3),
    }
    described = json.loads((classified / "run.json").read_text())["columns"]
    assert [column["name"] for column in described] == schema.names


def test_logits_are_those_of_transformers(classified, photos, classifier):
    palette = load_palette(classifier)
    theirs = transformers.ImageGPTForImageClassification.from_pretrained(classifier).eval()
    found = pq.read_table(classified / "data").to_pylist()
    assert len(found) == GOOD
    images = [load_pixels(Path(photos, row["id"]).read_bytes(), SIDE) for row in found]
    tokens = torch.from_numpy(palette.encode(np.stack(images)).astype(np.int64))
    with torch.no_grad():
        logits = theirs(tokens.reshape(len(found), -1)).logits
    ours = torch.tensor([row["logits"] for row in found])
    # float32 sums in another order: logits of order 1 to 10 move by some 1e-6
    assert torch.allclose(ours, logits, atol=1e-4)
    assert len({row["predicted_label"] for row in found}) > 1
    for row, chances in zip(found, logits.softmax(dim=1), strict=True):
        assert row["predicted_label"] == chances.argmax()
        assert row["predicted_name"] == NAMES[row["predicted_label"]]
        assert row["probability"] == pytest.approx(chances.max().item(), abs=1e-4)


def test_bad_images_are_errors(classified):
    errors = pq.read_table(classified / "errors").to_pylist()
    assert {error["id"] for error in errors} == BAD


def test_duckdb_and_datasets_open_the_output(classified, tmp_path):
    glob = str(classified / "data" / "*.parquet")
    counts = duckdb.sql(
        f"select predicted_name, count(*), min(len(logits)) from '{glob}' group by all"
    ).fetchall()
    assert sum(count for _, count, _ in counts) == GOOD
    assert {length for _, _, length in counts} == {3}
    rows = load_dataset(str(classified), split="train", cache_dir=str(tmp_path))
    assert rows.features["logits"].length == 3
    assert rows.features["predicted_label"].dtype == "int64"
    assert len(rows) == GOOD


def files(output: Path) -> list[Path]:
    return sorted((output / "data").iterdir())


def test_other_numbers_of_actors_change_no_byte(classified, photos, classifier, tmp_path):
    words = ("--batch-size=8", "--shard-size=16", "--model-actors=1", "--cpu-actors=2")
    classify(photos, classifier, tmp_path / "other", *words)
    assert parts(tmp_path / "other") == parts(classified)


def test_a_lost_part_is_done_again_and_another_batch_size_refused(
    classified, photos, classifier, capsys
):
    before = parts(classified)
    (classified / "data" / "part-000001.parquet").unlink()
    classify(photos, classifier, classified, "--batch-size=8", "--shard-size=16")
    assert parts(classified) == before
    with pytest.raises(SystemExit) as stopped:
        classify(photos, classifier, classified, "--batch-size=4", "--shard-size=16")
    assert stopped.value.code == 2
    assert "batch_size: 8 there, 4 now" in capsys.readouterr().err


def test_the_report_shows_images_with_their_classes(classified):
    page = (classified / "report.html").read_text()
    first, second = (pq.read_table(path).to_pylist() for path in files(classified))
    # Each of the two parts keeps up to half of the 24 that a report shows.
    pictures = page.count("data:image/png")
    assert pictures == 12 + min(12, len(second))
    shown = [f"{row['predicted_name']}, {row['probability']:.0%}" in page for row in first]
    assert sum(shown) >= 12
    for row in second[:12]:
        assert f"{row['predicted_name']}, {row['probability']:.0%}" in page
    assert (classified / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "image-classification" in (classified / "README.md").read_text()


def test_labels_of_the_input_stay_beside_the_predicted_ones_and_numbered_classes_have_no_name(
    ray_session, labeled_parquet, tmp_path
):
    model = make_classifier(tmp_path / "model", {i: f"LABEL_{i}" for i in range(4)})
    classify(labeled_parquet, model, tmp_path / "run")
    found = pq.read_table(tmp_path / "run" / "data")
    assert found.column_names == ["id", "label", "predicted_label", "probability", "logits"]
    assert found["logits"].type == pa.list_(pa.float32(), 4)
    assert found["label"].to_pylist() == [i % 3 for i in range(23) if i != 5]


def test_a_model_without_a_head_is_refused(photos, tiny_model, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        classify(photos, tiny_model, tmp_path / "run")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "has no classification head; next: igpt finetune" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()
