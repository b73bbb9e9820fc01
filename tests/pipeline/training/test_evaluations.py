"""What a training run shows on held-out images: losses, pictures, and which weights are kept."""

import csv
import io
import multiprocessing
import os
import signal
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from igpt_core import ImageGPTConfig, ImageGPTForCausalImageModeling, Palette, token_nll
from igpt_core.heads import load_model
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.training import TrainingState
from pipeline.options import TrainingOptions
from pipeline.training import evaluations, journal, loop
from pipeline.training.evaluations import Evaluations
from pipeline.training.folder import BEST_FILE
from pipeline.training.images import TrainingImages
from pipeline.training.loss_curve import Point, draw_loss_curve
from pipeline.training.train import run_training

STEPS, KILLED_AT = 20, 13


def draw(n, seed):
    return np.random.default_rng(seed).integers(0, 8, (n, 16)).astype(np.uint16)


HELD_OUT = draw(12, 1)


def run(folder: Path, report=print):
    """Trains on random images of 4 x 4 pixels in 8 colors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in every process the same, as sums are the same only then
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = ImageGPTConfig(9, 16, 16, 1, 2, **no_dropout)
    run_training(
        TrainingImages(draw(10, 0), labels=None),
        lambda: NextPixel(ImageGPTForCausalImageModeling(config)),
        options=TrainingOptions(
            **{"output": str(folder), "input": "photos", "steps": STEPS, "batch_size": 4},
            **{"warmup_steps": 3, "device": "cpu", "dtype": "float32"},
        ),
        palette=Palette(np.random.default_rng(2).uniform(-1, 1, (8, 3))),
        image_size=4,
        record={},
        report=report,
        held_out=TrainingImages(HELD_OUT, labels=None),
    )
    torch.set_num_threads(threads)
    return load_model(str(folder), device="cpu", dtype=torch.float32)


def run_and_die(folder: Path) -> None:
    """Saves at every step; dies after the line of step KILLED_AT, before its save."""
    journal.LOG_SECONDS = loop.SAVE_SECONDS = 0

    def report(line: str) -> None:
        if line.startswith(f"step {KILLED_AT}, loss"):
            os.kill(os.getpid(), signal.SIGKILL)

    run(folder, report)


def curve_of(folder: Path) -> list[dict[str, str]]:
    with (folder / evaluations.TABLE_FILE).open(newline="") as table:
        return list(csv.DictReader(table))


def nats(model, tokens=HELD_OUT) -> float:
    with torch.no_grad():
        return token_nll(model, torch.from_numpy(tokens.astype(np.int64))).mean().item()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, ImageGPTForCausalImageModeling]:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, run(folder)


def test_losses_are_written_at_equal_shares_of_the_run(finished):
    folder, model = finished
    lines = curve_of(folder)
    assert [int(line["step"]) for line in lines] == list(range(2, STEPS + 1, 2))
    best = min(float(line["held_out"]) for line in lines)
    assert nats(model) == pytest.approx(best, abs=1e-6)
    assert not (folder / BEST_FILE).exists()


def test_pictures_are_drawn_at_each_of_them(finished):
    folder, _ = finished
    root = ElementTree.parse(folder / evaluations.CURVE_FILE).getroot()
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [10, 10]
    sheets = sorted((folder / evaluations.SHEETS).iterdir())
    assert [sheet.name for sheet in sheets] == [f"step-{n:08}.png" for n in range(2, STEPS + 1, 2)]
    with Image.open(io.BytesIO(sheets[-1].read_bytes())) as sheet:
        colors = {color for _, color in sheet.convert("RGB").getcolors(1 << 20)}
    palette = Palette(np.random.default_rng(2).uniform(-1, 1, (8, 3)))
    assert len({tuple(c) for c in palette.decode(np.arange(8, dtype=np.uint16))} & colors) > 4


def test_a_killed_run_ends_with_the_same_losses_and_weights(finished, tmp_path):
    undisturbed, model = finished
    folder = tmp_path / "run"
    child = multiprocessing.get_context("spawn").Process(target=run_and_die, args=(folder,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    again = run(folder)
    assert [line["held_out"] for line in curve_of(folder)] == [
        line["held_out"] for line in curve_of(undisturbed)
    ]
    for one, two in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


def evaluations_of(folder, *, step):
    config = ImageGPTConfig(9, 16, 16, 1, 2)
    model = ImageGPTForCausalImageModeling(config)
    palette = Palette(np.random.default_rng(2).uniform(-1, 1, (8, 3)))
    made = Evaluations(folder, model, HELD_OUT, palette, dtype=torch.float32, report=print)
    made.resume(step)
    return made


def test_a_run_that_was_killed_at_its_end_ends(finished, tmp_path):
    """Before anything was evaluated, after it, and after the best weights were deleted."""
    (tmp_path / "run").mkdir()
    at_end = TrainingState(step=5)
    evaluations_of(tmp_path / "run", step=5).finish(at_end)
    assert [line["step"] for line in curve_of(tmp_path / "run")] == ["5"]
    assert curve_of(tmp_path / "run")[0]["training"] == ""
    evaluations_of(tmp_path / "run", step=5).finish(at_end)
    (tmp_path / "run" / BEST_FILE).unlink()
    evaluations_of(tmp_path / "run", step=5).finish(TrainingState(step=6))
    assert [line["step"] for line in curve_of(tmp_path / "run")] == ["5", "6"]


def test_a_step_past_several_shares_is_evaluated_once(tmp_path):
    found = evaluations_of(tmp_path, step=0)
    for step, progress in enumerate((0.75, 0.76, 0.79, 0.8)):
        found.step(TrainingState(step=step), torch.tensor(1.0), progress)
    assert [line["step"] for line in curve_of(tmp_path)] == ["0", "3"]


def test_a_model_that_diverges_leaves_its_curve(tmp_path):
    found = evaluations_of(tmp_path, step=0)
    found.step(TrainingState(step=1), torch.tensor(1.0), 0.1)
    with torch.no_grad():
        found._model.transformer.wte.weight.fill_(float("nan"))
    found.step(TrainingState(step=2), torch.tensor(float("nan")), 0.2)
    assert curve_of(tmp_path)[1]["held_out"] == "nan"
    ElementTree.parse(tmp_path / evaluations.CURVE_FILE)
    found.finish(TrainingState(step=2))
    assert not found._model.transformer.wte.weight.isnan().any()


def test_the_best_weights_are_kept(tmp_path, monkeypatch):
    """Those of the fourth evaluation, by losses that say so."""
    losses = iter([3.0, 2.5, 2.2, 2.0, 2.1, 2.3, 2.2, 2.4, 2.1, 2.05])
    seen: list[torch.Tensor] = []

    def say(model, tokens):
        seen.append(model.lm_head.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(evaluations, "evaluate", say)
    said: list[str] = []
    model = run(tmp_path / "run", said.append)
    assert torch.equal(model.lm_head.weight, seen[3])
    assert not torch.equal(seen[3], seen[-1])
    stored = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], seen[3])
    assert "the weights of step 8 were better than the last: kept" in said


def test_a_curve_of_one_point_and_of_equal_losses():
    for points in ([Point(5, 2.0, 2.0)], [Point(1, 2.0, 2.0), Point(2, 2.0, 2.0)]):
        root = ElementTree.fromstring(draw_loss_curve(points))
        assert "held out 2.0000" in "".join(root.itertext())
        assert "nan" not in draw_loss_curve(points)
