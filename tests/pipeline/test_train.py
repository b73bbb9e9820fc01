"""A training run in its folder: killed and gone on with, refused, and what it reads."""

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, SIDE
from safetensors.torch import load_file

from igpt_core.checkpoint import load_image_size, load_palette
from igpt_core.config import ImageGPTConfig
from igpt_core.palette import Palette
from igpt_core.pixels import load_pixels
from igpt_core.training import TrainingConfig
from pipeline import train
from pipeline.storage import UsageError
from pipeline.train import read_tokens, run_training

STEPS, KILLED_AT = 12, 8
OPTIONS = {"steps": STEPS, "input": "photos"}


def run(
    folder: Path,
    *,
    images: int = 10,
    options: dict[str, object] = OPTIONS,
    report: Callable[[str], None] = print,
) -> None:
    """Train on random images of 4 x 4 pixels in 8 colours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in every process the same, as sums are the same only then
    rng = np.random.default_rng(0)
    run_training(
        rng.integers(0, 8, (images, 16)).astype(np.uint16),
        output=str(folder),
        model_config=ImageGPTConfig(
            vocab_size=9,
            n_positions=16,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        config=TrainingConfig(steps=STEPS, batch_size=4, warmup_steps=3, dtype=torch.float32),
        palette=Palette(rng.uniform(-1, 1, (8, 3))),
        image_size=4,
        device="cpu",
        save_dtype=torch.float32,
        options=options,
        report=report,
    )
    torch.set_num_threads(threads)


def run_and_die(folder: Path) -> None:
    """Logs and saves at every step; dies after the line of step KILLED_AT, before its save."""
    train.LOG_SECONDS = train.SAVE_SECONDS = 0

    def report(line: str) -> None:
        if line.startswith(f"step {KILLED_AT},"):
            os.kill(os.getpid(), signal.SIGKILL)

    run(folder, report=report)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(folder)
    return folder


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(finished, tmp_path):
    folder = tmp_path / "run"
    child = multiprocessing.get_context("spawn").Process(target=run_and_die, args=(folder,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    lines: list[str] = []
    run(folder, report=lines.append)
    assert lines[0].startswith(f"going on at step {KILLED_AT - 1} ")
    ours, theirs = (load_file(at / "model.safetensors") for at in (folder, finished))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_the_end_is_a_model_folder(finished):
    assert load_palette(finished).fingerprint
    assert load_image_size(finished) == 4
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "training_options.json",
    }


def test_the_log_has_a_line_for_each_time_of_reporting(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_SECONDS", 0)
    said: list[str] = []
    run(tmp_path / "run", report=said.append)
    log = [json.loads(line) for line in (tmp_path / "run" / train.LOG_FILE).open()]
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert all(0 < line["loss"] < 4 and line["tokens_per_second"] > 0 for line in log)
    assert said[STEPS // 2 - 1].startswith(f"step {STEPS // 2}, ")
    assert " 50 % done" in said[STEPS // 2 - 1]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_other_options_are_refused_and_change_nothing(finished):
    before = content(finished)
    with pytest.raises(UsageError, match=r"other options \(input: photos there, tiles now\)"):
        run(finished, options=OPTIONS | {"input": "tiles"})
    assert content(finished) == before


def test_a_finished_model_is_not_trained_again(finished):
    before = content(finished)
    with pytest.raises(UsageError, match="holds a finished model; next: another --output"):
        run(finished)
    assert content(finished) == before


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UsageError, match="expected --output to be new or empty"):
        run(tmp_path)
    assert content(tmp_path) == {"thesis.doc": b"years of work"}


def test_too_few_images_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"a batch of 4 readable images .* found 3; next: more"):
        run(tmp_path / "run", images=3)
    assert not (tmp_path / "run").exists()


def test_tokens_of_the_readable_images_are_read_and_the_others_named(photos, tiny_model, caplog):
    with caplog.at_level(logging.WARNING, logger="pipeline.train"):
        tokens = read_tokens(photos, palette=tiny_model, image_size=SIDE)
    assert tokens.shape == (GOOD, SIDE**2)
    assert tokens.dtype == np.uint16
    named = {record.args[0].removeprefix(photos + "/") for record in caplog.records}
    assert named == BAD
    files = sorted(path for path in Path(photos).rglob("*") if path.suffix != ".txt")
    good = [path for path in files if str(path.relative_to(photos)) not in BAD]
    good.sort(key=lambda path: str(path.relative_to(photos)))
    palette = load_palette(tiny_model)
    for row, path in zip(tokens, (path for path in good if path.is_file()), strict=True):
        assert np.array_equal(row, palette.encode(load_pixels(path.read_bytes(), SIDE)).ravel())


def test_the_first_images_only(labelled_parquet, tiny_model):
    whole = read_tokens(labelled_parquet, palette=tiny_model, image_size=SIDE)
    first = read_tokens(labelled_parquet, palette=tiny_model, image_size=SIDE, limit=4)
    assert len(whole) == 22
    assert np.array_equal(first, whole[:4])
