"""Labels by class folders, against the imagefolder builder of Hugging Face's `datasets`."""

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from jobs.__main__ import main
from pictures import encoded, photo, write_photos
from runs import igpt, refusal, results

FILES = ("train/dog/b.png", "train/cat/1.png", "test/cat/2.png", "test/owl/x.png")


@pytest.fixture
def folders(tmp_path) -> str:
    write_photos(tmp_path / "in", FILES)
    return str(tmp_path / "in")


def test_labels_are_those_that_imagefolder_finds(in_process, folders, tiny_model, tmp_path):
    run = tmp_path / "run"
    igpt("quantize", input=folders, model=tiny_model, output=run, label_from_folder=True,
         shard_size=3)  # fmt: skip
    expected = load_dataset(
        "imagefolder", data_dir=folders, drop_labels=False, cache_dir=tmp_path / "cache"
    )
    names = expected["train"].features["label"].names
    found = load_dataset("parquet", data_files=f"{run}/data/*.parquet", split="train",
                         cache_dir=tmp_path / "cache")  # fmt: skip
    assert found.features["label"].names == names == ["cat", "dog", "owl"]
    assert {row["id"]: names[row["label"]] for row in found} == {
        name: name.split("/")[1] for name in FILES
    }
    # Without the option there is no such column, and the tokens are the same.
    igpt("quantize", input=folders, model=tiny_model, output=tmp_path / "without")
    assert "label" not in pq.read_schema(tmp_path / "without/data/part-000000.parquet").names
    assert {row["id"]: row["tokens"] for row in results(run)} == {
        row["id"]: row["tokens"] for row in results(tmp_path / "without")
    }


def test_a_run_with_labels_is_resumed_with_them_alone(
    in_process, folders, tiny_model, tmp_path, capsys
):
    options = {"input": folders, "model": tiny_model, "output": tmp_path / "run"}
    igpt("quantize", **options, label_from_folder=True, shard_size=2)
    (tmp_path / "run/data/part-000001.parquet").unlink()
    assert "label_from_folder" in refusal(capsys, "quantize", **options)
    igpt("quantize", **options, label_from_folder=True)
    assert [row["label"] for row in results(tmp_path / "run")] == [0, 2, 0, 1]


def test_finetune_takes_class_folders(folders, tiny_model, tmp_path, capsys):
    words = [
        "finetune",
        f"--input={folders}",
        f"--model={tiny_model}",
        "--steps=1",
        "--batch-size=2",
    ]
    words += [f"--output={tmp_path / 'model'}"]
    line = refusal(capsys, *words)
    assert "next: --label-from-folder where they lie in folders by class" in line
    main([*words, "--label-from-folder"])
    captured = capsys.readouterr()
    assert "4 images of 3 classes to train on" in captured.out + captured.err


def test_images_outside_of_class_folders_and_tables_are_refused(
    folders, labeled_parquet, tmp_path, capsys
):
    (tmp_path / "in" / "alone.png").write_bytes(encoded(photo(9)))
    options = {"output": tmp_path / "run", "label_from_folder": True}
    line = refusal(capsys, "quantize", input=folders, **options)
    assert "found alone.png in none" in line
    line = refusal(capsys, "quantize", input=labeled_parquet, **options)
    assert "--label-from-folder is for image files" in line
