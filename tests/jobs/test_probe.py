"""`igpt probe` on runs of `igpt embed`: against scikit-learn by hand, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from igpt_core import LinearProbe
from pictures import encoded
from runs import igpt, refusal

NAMES = ["red", "green", "blue"]


def write_images(path: Path, n: int, seed: int) -> None:
    """Noisy pictures of one strong color, labeled by it; other columns of labels beside."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = []
    for label in labels:
        pixels = rng.integers(0, 120, (10, 10, 3))
        pixels[..., label] += 100
        images.append(encoded(Image.fromarray(pixels.astype(np.uint8))))
    table = pa.table(
        {
            "image": pa.array(images, pa.binary()),
            "label": pa.array(labels, pa.int64()),
            "holes": pa.array([None, *labels[1:]], pa.int64()),
            "words": [NAMES[label] for label in labels],
            "below": pa.array(labels - 1, pa.int64()),
            "same": pa.array([1] * n, pa.int64()),
        }
    )
    class_label = {"_type": "ClassLabel", "names": NAMES}
    features = {"info": {"features": {"label": class_label}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)


@pytest.fixture(scope="module")
def embedded(in_process, tiny_model, tmp_path_factory) -> dict[str, Path]:
    """train and test: every layer of quantized images; other: one layer of the test images."""
    folder = tmp_path_factory.mktemp("probe")
    for seed, (name, n) in enumerate([("train", 60), ("test", 31)]):
        write_images(folder / f"{name}.parquet", n, seed)
        tokens = folder / f"{name}-tokens"
        igpt("quantize", input=folder / f"{name}.parquet", model=tiny_model, output=tokens)
        igpt("embed", input=tokens, model=tiny_model, output=folder / name, layers="all",
             shard_size=20, device="cpu")  # fmt: skip
    igpt("embed", input=folder / "test-tokens", model=tiny_model, output=folder / "other")
    return {name: folder / name for name in ("train", "test", "other", "test-tokens")}


def features_of(run: Path, layer: int) -> np.ndarray:
    return np.array(pq.read_table(run / "data")[f"embedding_{layer}"].to_pylist())


def test_accuracies_are_scikit_learns_with_the_strength_that_was_chosen(embedded, tmp_path, capsys):
    output = tmp_path / "probe"
    igpt("probe", train=embedded["train"], test=embedded["test"], output=output)
    printed = capsys.readouterr().out
    found = json.loads((output / "probe.json").read_text())
    assert (found["train_rows"], found["test_rows"], found["chance"]) == (60, 31, 0.3333)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    labels = np.arange(60) % 3
    for row in found["layers"]:
        regression = LogisticRegression(C=row["strength"], max_iter=2000)
        theirs = make_pipeline(StandardScaler(), regression)
        theirs.fit(features_of(embedded["train"], row["layer"]), labels)
        score = theirs.score(features_of(embedded["test"], row["layer"]), labels[:31])
        # One image of 31 may lie on the border between two classes.
        assert row["accuracy"] == pytest.approx(score, abs=1.01 / 31)
        assert row["accuracy"] > 0.6, "colors are told apart: chance would be a third"
        assert f"{row['accuracy']:.4f}" in printed
    best = max(found["layers"], key=lambda row: row["validation_accuracy"])
    assert found["best_layer"] == best["layer"]
    probe = LinearProbe.load(output / "probe.npz")
    assert (probe.layer, list(probe.names)) == (best["layer"], NAMES)
    features = features_of(embedded["test"], probe.layer)
    assert probe.accuracy(features, labels[:31]) == best["accuracy"]
    assert Image.open(output / "accuracy.png").format == "PNG"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test": "other"}, "found layers [0, 1, 2]"),
        ({"train": "test-tokens"}, "found a run of quantize"),
        ({"test": "nowhere"}, "found no run.json"),
        ({"label_column": "class"}, "expected column class"),
        ({"label_column": "holes"}, "1 rows without one"),
        ({"label_column": "words"}, "found string"),
        ({"label_column": "below"}, "found -1"),
        ({"label_column": "same"}, "two classes at least"),
    ],
)
def test_what_cannot_be_probed_is_refused(embedded, tmp_path, capsys, changes, says):
    runs = embedded | {"nowhere": tmp_path / "nowhere"}
    names = {"train": "train", "test": "test"} | changes
    options = {k: runs[v] if k in ("train", "test") else v for k, v in names.items()}
    assert says in refusal(capsys, "probe", **options, output=tmp_path / "probe")
    assert not (tmp_path / "probe").exists()
