"""A training run in its folder: killed and resumed, refused, and what it reads."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from igpt_core import NeighborTables
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.images.model_palette import load_image_size, load_palette
from igpt_core.images.palette import Palette
from igpt_core.learning.objectives import NextPixel
from igpt_core.model.config import ImageGPTConfig
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions
from pipeline.training import journal, loop
from pipeline.training.images import TrainingImages
from pipeline.training.train import check_options, run_training, training_config

STEPS, KILLED_AT = 12, 8
OPTIONS = {"steps": STEPS, "input": "photos"}


def run(
    folder: Path,
    *,
    images: int = 10,
    options: dict[str, object] = OPTIONS,
    report: Callable[[str], None] = print,
) -> None:
    """Trains on random images of 4 x 4 pixels in 8 colors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in every process the same, as sums are the same only then
    rng = np.random.default_rng(0)
    config = ImageGPTConfig(
        vocab_size=9,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    run_training(
        TrainingImages(rng.integers(0, 8, (images, 16)).astype(np.uint16), labels=None),
        lambda: NextPixel(ImageGPTForCausalImageModeling(config)),
        options=TrainingOptions(
            output=str(folder),
            batch_size=4,
            warmup_steps=3,
            device="cpu",
            dtype="float32",
            **options,
        ),
        palette=Palette(rng.uniform(-1, 1, (8, 3))),
        image_size=4,
        record={},
        report=report,
    )
    torch.set_num_threads(threads)


def run_and_die(folder: Path) -> None:
    """Logs and saves at every step; dies after the line of step KILLED_AT, before its save."""
    journal.LOG_SECONDS = loop.SAVE_SECONDS = 0

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
        "neighbor_tables.safetensors",
        "preprocessor_config.json",
        "training_options.json",
    }


def test_the_tables_of_neighbors_are_those_of_the_images(finished):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 8, (10, 16)))
    expected = NeighborTables.counted(images, torch.ones(10, 16).bool(), n_colors=8)
    found = NeighborTables.load(str(finished), n_colors=8)
    assert found.tables.any()
    assert torch.allclose(found.tables, expected.tables, rtol=1e-3, atol=1e-6)


def test_the_log_has_a_line_for_each_time_of_reporting(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LOG_SECONDS", 0)
    said: list[str] = []
    run(tmp_path / "run", report=said.append)
    log = [json.loads(line) for line in (tmp_path / "run" / journal.LOG_FILE).open()]
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert all(0 < line["loss"] < 4 and line["tokens_per_second"] > 0 for line in log)
    assert all(0 < line["share_of_products"] < 1.5 for line in log)
    assert said[0].startswith("plain matrix products: ")
    assert said[STEPS // 2].startswith(f"step {STEPS // 2}, ")
    assert " 50 % done" in said[STEPS // 2]


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


@pytest.mark.parametrize("bounds", [{}, {"steps": 5, "minutes": 1.0}, {"epochs": 1, "steps": 5}])
def test_no_bound_and_two_bounds_are_refused(tmp_path, bounds):
    options = TrainingOptions(input="photos", output=str(tmp_path / "run"), **bounds)
    with pytest.raises(UsageError, match="give one of --epochs, --steps and --minutes"):
        check_options(options)


def test_an_epoch_has_as_many_steps_as_full_batches(tmp_path):
    options = TrainingOptions(input="photos", output=str(tmp_path), epochs=3, batch_size=4)
    assert training_config(options, 10).steps == 3 * 2
