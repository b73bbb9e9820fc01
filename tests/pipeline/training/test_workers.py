"""Training on several workers of Ray: as one, also where a worker is killed."""

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.images.palette import Palette
from igpt_core.learning.objectives import NextPixel
from igpt_core.model.config import ImageGPTConfig
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions
from pipeline.training import evaluations
from pipeline.training.images import TrainingImages
from pipeline.training.train import check_options, run_training

STEPS = 12
KILLED_AT = 5


def draw(n: int, seed: int) -> TrainingImages:
    tokens = np.random.default_rng(seed).integers(0, 8, (n, 16)).astype(np.uint16)
    return TrainingImages(tokens, labels=None)


def run(folder: Path, *, workers: int, report=lambda line: None, **options) -> None:
    """Trains on random images of 4 x 4 pixels in 8 colors, saving and reporting at every step."""

    def make_objective() -> NextPixel:
        # In the process that trains, which may be a worker: a slow one, that can be killed on time.
        import time

        from pipeline.training import journal, loop

        journal.LOG_SECONDS = loop.SAVE_SECONDS = 0

        class Slow(NextPixel):
            def forward(self, tokens):
                time.sleep(0.1)
                return super().forward(tokens)

        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return Slow(ImageGPTForCausalImageModeling(ImageGPTConfig(9, 16, 16, 1, 2, **no_dropout)))

    run_training(
        draw(10, 0),
        make_objective,
        options=TrainingOptions(
            **{"output": str(folder), "input": "photos", "batch_size": 4, "workers": workers},
            **{"warmup_steps": 3, "device": "cpu", "dtype": "float32", "steps": STEPS, **options},
        ),
        palette=Palette(np.random.default_rng(2).uniform(-1, 1, (8, 3))),
        image_size=4,
        record={},
        report=report,
        held_out=draw(6, 1),
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    run(folder, workers=1)
    return folder


def assert_same(folder: Path, alone: Path) -> None:
    """Up to the order of sums in float32; a share of other images would move weights by 1e-3."""
    ours, theirs = (load_file(at / "model.safetensors") for at in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=2e-5), name
    mine, others = ((at / evaluations.TABLE_FILE).read_text().split() for at in (folder, alone))
    assert len(mine) == len(others) == 11
    for line, other in zip(mine[1:], others[1:], strict=True):
        assert [float(x) for x in line.split(",")] == pytest.approx(
            [float(x) for x in other.split(",")], abs=1e-4
        )


def test_two_workers_train_as_one(ray_session, alone, tmp_path):
    said: list[str] = []
    run(tmp_path / "run", workers=2, report=said.append)
    assert_same(tmp_path / "run", alone)
    assert sum(line.startswith("step ") and ", loss " in line for line in said) == STEPS
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in alone.iterdir()
    }


def test_a_killed_worker_is_replaced_and_the_run_ends_alike(ray_session, alone, tmp_path):
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        if line.startswith(f"step {KILLED_AT}, loss") and "going on" not in " ".join(said):
            workers = [
                process.pid
                for process in psutil.Process().children(recursive=True)
                if "RayTrainWorker" in " ".join(process.cmdline())
            ]
            assert len(workers) == 2
            os.kill(workers[-1], signal.SIGKILL)

    run(tmp_path / "run", workers=2, report=report)
    assert any(line.startswith("going on at step ") for line in said)
    assert_same(tmp_path / "run", alone)


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path):
    options = TrainingOptions(
        input="photos", output=str(tmp_path), steps=5, batch_size=8, workers=3
    )
    with pytest.raises(UsageError, match="--batch-size as a multiple of --workers 3, found 8"):
        check_options(options)
