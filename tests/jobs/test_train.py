"""`igpt train` from end to end: a new model, one that goes on, a compiled step, what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.learning.scoring import token_nll
from jobs.__main__ import main
from pipeline.training.images import read_images

SHAPE = ("--palette", "embedded", "--image-size", 8, "--n-layer", 1, "--n-embd", 16, "--n-head", 2)
OPTIONS = (
    "--batch-size",
    2,
    "--dtype",
    "float32",
    "--warmup-steps",
    2,
    "--max-error-fraction",
    0.5,
)


def train(*words: object) -> None:
    main(["train", *(str(word) for word in words)])


def nats_of(folder: Path, photos: Path) -> float:
    tokens = read_images(
        str(photos), palette=str(folder), image_size=8, max_error_fraction=0.5
    ).tokens
    model = load_model(folder, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        return token_nll(model, torch.from_numpy(tokens.astype("int64"))).mean().item()


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "first"
    train("--quiet", "--input", photos, *SHAPE, *OPTIONS, "--steps", 20, "--output", output)
    return output


def test_a_trained_model_is_gone_on_from(trained, photos, tmp_path, capsys):
    output = tmp_path / "second"
    words = ("--input", photos, "--eval-input", photos, "--model", trained, *OPTIONS)
    train(*words, "--steps", 20, "--learning-rate", 1e-3, "--output", output)
    printed = float(re.search(r"([\d.]+) nats per pixel on", capsys.readouterr().out)[1])
    assert printed == pytest.approx(nats_of(output, photos), abs=1e-3)
    assert printed < nats_of(trained, photos)
    assert load_palette(output).fingerprint == load_palette(trained).fingerprint
    shapes = [json.loads((at / "config.json").read_text()) for at in (trained, output)]
    assert shapes[0] == shapes[1]


def test_no_step_of_a_rate_of_nearly_nothing_changes_the_model(trained, photos, tmp_path):
    """So it begins with the model's weights, and not with others."""
    output = tmp_path / "second"
    words = ("--quiet", "--input", photos, "--model", trained, *OPTIONS, "--steps", 1)
    train(*words, "--learning-rate", 1e-9, "--output", output)
    ours, theirs = (load_file(at / "model.safetensors") for at in (output, trained))
    assert all(torch.allclose(weight, theirs[name], atol=1e-7) for name, weight in ours.items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="a CPU's step is compiled with g++")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_learns_the_same(trained, photos, tmp_path, monkeypatch):
    output, compiled, compile_ = tmp_path / "compiled", [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **how: compiled.append(module) or compile_(module, **how)
    )
    words = ("--quiet", "--input", photos, *SHAPE, *OPTIONS, "--steps", 20, "--compile")
    train(*words, "--output", output)
    assert len(compiled) == 1
    # Twenty steps amplify what fused sums differ by.
    assert nats_of(output, photos) == pytest.approx(nats_of(trained, photos), abs=2e-3)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a usage error."""
    with pytest.raises(SystemExit) as stopped:
        train("--steps", 1, *words)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_mistakes_are_one_line_before_anything_is_written(
    trained, photos, tmp_path, capsys, monkeypatch
):
    given = ("--input", photos, "--output", tmp_path / "run")
    assert "--palette for a new model, or --model" in refused(capsys, *given)
    message = refused(capsys, *given, "--model", trained, "--n-layer", 3, "--palette", "embedded")
    assert "--palette, --n-layer and --model exclude each other" in message
    message = refused(capsys, *given, *SHAPE, "--workers", 3)
    assert "--batch-size as a multiple of --workers 3, found 8" in message
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    message = refused(capsys, *given, *SHAPE, "--compile", "--device", "cpu")
    assert "--compile needs a C++ compiler (g++), found none" in message
    assert not (tmp_path / "run").exists()
