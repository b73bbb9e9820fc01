"""Images to train on: which are read, their tokens, their labels, and labels that are none."""

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from pictures import BAD, GOOD, SIDE, encoded, photo
from pipeline.errors import OverErrorBudget, UsageError
from pipeline.training import images
from pipeline.training.images import Labels, read_images


def test_tokens_of_the_readable_images_are_read_and_the_others_named(photos, tiny_model, caplog):
    with caplog.at_level(logging.WARNING, logger="pipeline.training.images"):
        tokens = read_images(photos, palette=tiny_model, image_size=SIDE).tokens
    assert tokens.shape == (GOOD, SIDE**2)
    assert tokens.dtype == np.uint16
    named = {
        record.args[0].removeprefix(photos + "/")
        for record in caplog.records
        if not record.msg.startswith("input")
    }
    assert named == BAD
    files = sorted(path for path in Path(photos).rglob("*") if path.suffix != ".txt")
    good = [path for path in files if str(path.relative_to(photos)) not in BAD]
    good.sort(key=lambda path: str(path.relative_to(photos)))
    palette = load_palette(tiny_model)
    for row, path in zip(tokens, (path for path in good if path.is_file()), strict=True):
        assert np.array_equal(row, palette.encode(load_pixels(path.read_bytes(), SIDE)).ravel())


@pytest.mark.parametrize("fraction", [len(BAD) / (GOOD + len(BAD)), 1.0])
def test_failed_images_within_the_budget_are_counted(photos, tiny_model, fraction):
    found = read_images(photos, palette=tiny_model, image_size=SIDE, max_error_fraction=fraction)
    assert (len(found.tokens), found.n_failed) == (GOOD, len(BAD))


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_more_failed_images_than_the_budget_allows_are_refused(photos, tiny_model, fraction):
    """Past bug: any number was left out, and the model trained on what was left."""
    allowed = round(fraction * 24)
    message = rf"4 of 24 images at .*, more than --max-error-fraction allows \({allowed}\); .*next"
    with pytest.raises(OverErrorBudget, match=message):
        read_images(photos, palette=tiny_model, image_size=SIDE, max_error_fraction=fraction)


def test_the_budget_ends_the_reading_as_soon_as_it_cannot_be_met(
    labeled_parquet, tiny_model, monkeypatch
):
    """The broken image is in the first of four shards."""
    blocks, read = [], images.ReadImages.__call__
    monkeypatch.setattr(images, "SHARD_SIZE", 6)
    monkeypatch.setattr(
        images.ReadImages, "__call__", lambda self, block: blocks.append(block) or read(self, block)
    )
    options = {"palette": tiny_model, "image_size": SIDE}
    with pytest.raises(OverErrorBudget, match="1 of 23 images"):
        read_images(labeled_parquet, max_error_fraction=0.04, **options)
    assert len(blocks) == 1
    assert read_images(labeled_parquet, max_error_fraction=0.05, **options).n_failed == 1
    assert len(blocks) == 1 + 4


def test_the_first_images_only(labeled_parquet, tiny_model):
    whole = read_images(labeled_parquet, palette=tiny_model, image_size=SIDE).tokens
    first = read_images(labeled_parquet, palette=tiny_model, image_size=SIDE, limit=4).tokens
    assert len(whole) == 22
    assert np.array_equal(first, whole[:4])


def test_images_and_labels_of_tars(tiny_model, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, payload in [("0.png", encoded(photo(0))), ("0.cls", b"1"), ("1.png", b"bad")]:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    options = {"palette": tiny_model, "image_size": SIDE, "label_column": "cls", "limit": 5}
    found = read_images(str(tmp_path), **options)
    assert found.labels.classes.tolist() == [1]
    with pytest.raises(OverErrorBudget, match="1 of 2 images"):
        read_images(str(tmp_path), max_error_fraction=0.4, **options)
    pixels = load_pixels(encoded(photo(0)), SIDE)
    assert np.array_equal(found.tokens[0], load_palette(tiny_model).encode(pixels).ravel())


# --- labels ---------------------------------------------------------------------------------------


def write(path: Path, labels: pa.Array, *, names: list[str] | None = None) -> str:
    """A Parquet file of images with these labels, named in the Hub's way."""
    images = pa.array([encoded(photo(i)) for i in range(len(labels))], pa.binary())
    table = pa.table({"image": images, "label": labels, "other": labels})
    if names is not None:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    return str(path)


def labels_of(location: str, model: str, column: str = "label") -> Labels:
    return read_images(location, palette=model, image_size=SIDE, label_column=column).labels


def test_labels_stand_beside_the_images_that_can_be_read(labeled_parquet, tiny_model):
    found = read_images(labeled_parquet, palette=tiny_model, image_size=SIDE, label_column="label")
    assert found.labels.classes.tolist() == [i % 3 for i in range(23) if i != 5]
    assert found.labels.classes.dtype == np.int64
    assert found.labels.all_names() == ("cat", "dog", "frog")
    assert len(found.tokens) == 22


def test_without_names_classes_are_numbered_up_to_the_highest(tiny_model, tmp_path):
    path = write(tmp_path / "a.parquet", pa.array([0, 3, 1], pa.uint8()))
    found = labels_of(path, tiny_model)
    assert found.names is None
    assert found.all_names() == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (pa.array([0, -1, 1]), None, r"label from 0 on in every row of column label, found -1 in"),
        (pa.array([0, None, 1]), None, r"found None in .*a\.parquet#1; next: "),
        (pa.array([0, 1, 2]), ["cat", "dog"], r"from 0 to 1, the classes that it names, .*found 2"),
        (pa.array([0.0, 1.0, 2.0]), None, r"expected whole numbers .* found double; next: "),
        (pa.array(["a", "b", "a"]), None, r"expected whole numbers .* found string; next: "),
    ],
)
def test_labels_that_are_none_are_refused(tiny_model, tmp_path, labels, names, message):
    path = write(tmp_path / "a.parquet", labels, names=names)
    with pytest.raises(UsageError, match=message):
        labels_of(path, tiny_model)


@pytest.mark.parametrize(
    ("classes", "message"), [([0, 0], "two classes at least"), ([0, 1 << 40], "found label 10995")]
)
def test_numbers_that_make_no_classes_are_refused(classes, message):
    with pytest.raises(UsageError, match=message):
        Labels(np.array(classes), None).all_names()


def test_a_missing_column_is_named_with_those_that_are_there(labeled_parquet, tiny_model):
    with pytest.raises(UsageError, match=r"column lable .* found img, label; next: one of these"):
        labels_of(labeled_parquet, tiny_model, "lable")


def test_image_files_have_no_labels(photos, tiny_model):
    with pytest.raises(
        UsageError, match=r"images with labels .* image files.*next: --label-from-folder"
    ):
        labels_of(photos, tiny_model)


def test_validation_labels_must_be_among_the_classes():
    def labels(*names: str) -> Labels:
        return Labels(np.array([0, 1]), names or None)

    labels("cat", "dog").check_against(["cat", "dog"])
    labels().check_against(["cat", "dog"])
    with pytest.raises(UsageError, match="classes cat, dog, found dog, cat; next: "):
        labels("dog", "cat").check_against(["cat", "dog"])
    with pytest.raises(UsageError, match="the 1 classes trained on, found label 1; next: "):
        labels().check_against(["cat"])
