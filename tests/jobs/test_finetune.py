"""`igpt finetune` from end to end: it learns, others load what it saves, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from igpt_core.heads import ImageGPTForCausalImageModeling, load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.images.palette import Palette
from igpt_core.learning.training import accuracy
from igpt_core.model.checkpoint import save_checkpoint
from igpt_core.model.config import ImageGPTConfig
from jobs.__main__ import main
from pictures import SIDE, encoded
from pipeline.training import folder, journal, loop
from pipeline.training.images import read_images

NAMES = ["dark above", "dark below", "dark left"]


def finetune(*words: object) -> None:
    main(["finetune", *(str(word) for word in words)])


def shaded(label: int, rng: np.random.Generator) -> Image.Image:
    """An image of noise with one half darker: which half is the class."""
    pixels = rng.integers(90, 256, (SIDE, SIDE, 3))
    half = [(slice(0, 4), slice(None)), (slice(4, 8), slice(None)), (slice(None), slice(0, 4))]
    pixels[half[label]] //= 3
    return Image.fromarray(pixels.astype(np.uint8))


def write_images(path: Path, n: int, seed: int, *, names: list[str] | None = NAMES) -> str:
    rng = np.random.default_rng(seed)
    labels = [i % 3 for i in range(n)]
    images = [{"bytes": encoded(shaded(label, rng)), "path": None} for label in labels]
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, type_), "label": pa.array(labels, pa.int64())})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path)
    return str(path)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """The folder of an untrained model for images of 8 x 8 pixels in 16 grays."""
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=17, n_positions=SIDE**2, n_embd=32, n_layer=2, n_head=2)
    folder = tmp_path_factory.mktemp("models") / "start"
    grays = np.linspace(-1, 1, 16)[:, None].repeat(3, axis=1)
    model = ImageGPTForCausalImageModeling(config)
    save_checkpoint(model, folder, palette=Palette(grays), image_size=SIDE)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, str]:
    """Images to train on and validation images."""
    folder = tmp_path_factory.mktemp("data")
    return (
        write_images(folder / "train.parquet", 240, 0),
        write_images(folder / "test.parquet", 90, 1),
    )


OPTIONS = ("--epochs", 3, "--learning-rate", 5e-3, "--warmup-steps", 10, "--dtype", "float32")


@pytest.fixture(scope="module")
def tuned(start, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "tuned"
    finetune("--quiet", "--input", data[0], "--model", start, "--output", output, *OPTIONS)
    return output


def test_it_learns_classes_that_hold_for_images_it_has_not_seen(tuned, data):
    held_out = read_images(data[1], palette=str(tuned), image_size=SIDE, label_column="label")
    model = load_model(tuned, device="cpu", dtype=torch.float32, head="classification")
    # Chance is 1/3: of 90 guesses 60 right would be 6.7 standard deviations away.
    assert accuracy(model, held_out.tokens, held_out.labels.classes) > 0.66


def test_transformers_loads_the_folder_and_gives_the_same_logits(tuned):
    theirs, loading = transformers.ImageGPTForImageClassification.from_pretrained(
        tuned, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert theirs.config.architectures == ["ImageGPTForImageClassification"]
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert theirs.config.label2id == {name: i for i, name in enumerate(NAMES)}
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (4, SIDE**2)))
    ours = load_model(tuned, device="cpu", dtype=torch.float32, head="classification")
    with torch.no_grad():
        # float32 sums in another order: logits of order 1 to 10 move by some 1e-6
        assert torch.allclose(ours(tokens).logits, theirs.eval()(tokens).logits, atol=1e-4)


def test_the_folder_is_a_model_with_its_palette_and_nothing_of_the_training(tuned, start):
    # On a slow machine there is a log, too.
    assert {path.name for path in tuned.iterdir()} - {journal.LOG_FILE} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "training_options.json",
    }
    assert load_palette(tuned).fingerprint == load_palette(start).fingerprint


def test_accuracy_is_printed_and_numbered_classes_have_numbered_names(start, tmp_path, capsys):
    train_path = write_images(tmp_path / "train.parquet", 12, 0, names=None)
    output = tmp_path / "run"
    finetune(
        "--input", train_path, "--eval-input", train_path, "--model", start, "--output", output,
        "--steps", 2, "--next-pixel-weight", 0,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert re.search(r"accuracy 0\.\d{4} on 12 validation images", printed)
    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


def test_an_interrupted_run_goes_on_and_other_options_are_refused(
    start, data, tmp_path, monkeypatch, capsys
):
    """Interrupted between a save and the end: the state is there, the model is not."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    monkeypatch.setattr(journal, "LOG_SECONDS", 0)
    words = ["--input", data[0], "--limit", 24, "--model", start, "--steps", 4]
    words += ["--dtype", "float32"]
    finetune("--quiet", *words, "--output", tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def stop(self: object, state: object, rate: float, seconds: float) -> None:
        if state.step == 3:
            raise Interrupted

    output = tmp_path / "run"
    monkeypatch.setattr(journal.Journal, "_log", stop)
    with pytest.raises(SystemExit):
        finetune("--quiet", *words, "--output", output)
    assert (output / folder.STATE_FILE).exists()
    monkeypatch.undo()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        finetune("--quiet", *words, "--output", output, "--next-pixel-weight", 0.5)
    assert stopped.value.code == 2
    assert "next_pixel_weight: 1.0 there, 0.5 now" in capsys.readouterr().err
    finetune(*words, "--output", output)
    assert "going on at step 2 " in capsys.readouterr().err
    assert not (output / folder.STATE_FILE).exists()
    for name in ("config.json", "model.safetensors"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a usage error."""
    with pytest.raises(SystemExit) as stopped:
        finetune("--steps", 1, *words)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_mistakes_are_one_line_before_anything_is_written(
    start, data, photos, tuned, tmp_path, capsys
):
    output = tmp_path / "run"
    given = ("--model", start, "--output", output)
    message = refused(capsys, *given, "--input", data[0], "--label-column", "lable")
    assert "lable" in message
    assert "found image, label" in message
    message = refused(capsys, *given, "--input", photos)
    assert "expected images with labels" in message
    assert "leave it out" not in message
    other = write_images(tmp_path / "other.parquet", 6, 0, names=[*NAMES, "dark right"])
    message = refused(capsys, *given, "--input", data[0], "--eval-input", other)
    assert "dark right" in message
    single = pa.table({"image": [encoded(Image.new("RGB", (8, 8)))] * 8, "label": [0] * 8})
    pq.write_table(single, tmp_path / "single.parquet")
    message = refused(capsys, *given, "--input", tmp_path / "single.parquet")
    assert "two classes" in message
    message = refused(capsys, "--model", tuned, "--output", output, "--input", data[0])
    assert "has no next-pixel head" in message
    assert "--next-pixel-weight 0" in message
    assert not output.exists()
