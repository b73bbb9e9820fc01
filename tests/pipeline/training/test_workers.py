"""Training on several workers of Ray: as one, also where a worker is killed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.images.palette import Palette
from igpt_core.learning.objectives import NextPixel
from igpt_core.model.config import ImageGPTConfig
from pipeline.errors import RunFailed, UsageError
from pipeline.options import TrainingOptions
from pipeline.training import evaluations
from pipeline.training.images import TrainingImages
from pipeline.training.journal import LOG_FILE
from pipeline.training.train import check_options, run_training

SECRET = "s3cr3t"
STEPS = 12
KILLED_AT = 5


def draw(n: int, seed: int) -> TrainingImages:
    tokens = np.random.default_rng(seed).integers(0, 8, (n, 16)).astype(np.uint16)
    return TrainingImages(tokens, labels=None)


def run(folder: Path, *, workers: int, report=lambda line: None, fail=False, **options) -> None:
    """Trains on random images of 4 x 4 pixels in 8 colors; workers save and report at every step,
    and take their time, so that one can be killed on time."""

    def make_objective() -> NextPixel:
        class Worker(NextPixel):
            def forward(self, tokens):
                import time

                assert len(tokens) == 4 // workers  # its share of a batch
                time.sleep(0.1 * (workers > 1))
                return super().forward(tokens)

        if workers > 1:
            from pipeline.training import journal, loop

            journal.LOG_SECONDS = loop.SAVE_SECONDS = 0
        if fail:
            raise ValueError(f"no weights at http://user:{SECRET}@host/model")
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return Worker(ImageGPTForCausalImageModeling(ImageGPTConfig(9, 16, 16, 1, 2, **no_dropout)))

    bound = {} if "minutes" in options else {"steps": STEPS}
    run_training(
        draw(10, 0),
        make_objective,
        options=TrainingOptions(
            **{"output": str(folder), "input": "photos", "batch_size": 4, "workers": workers},
            **{"warmup_steps": 3, "device": "cpu", "dtype": "float32", **bound, **options},
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
    names = [{path.name for path in at.iterdir()} for at in (tmp_path / "run", alone)]
    assert names[0] - {LOG_FILE} == names[1] - {LOG_FILE}


@pytest.mark.slow
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


@pytest.mark.slow
def test_workers_end_together_when_the_time_is_over(ray_session, tmp_path):
    said: list[str] = []
    run(tmp_path / "run", workers=2, report=said.append, minutes=0.03)
    last = [line for line in said if ", loss " in line][-1]
    assert "100 % done" in last
    assert 5 < int(last.split()[1].rstrip(",")) < 18
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_an_error_of_workers_is_one_line_without_secrets(ray_session, tmp_path):
    with pytest.raises(
        RunFailed, match=r"training on 2 workers failed: .*ValueError: no weights at"
    ) as failed:
        run(tmp_path / "run", workers=2, fail=True)
    assert SECRET not in str(failed.value)
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    texts = [path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file()]
    assert any("no weights at" in text for text in texts)
    assert not any(SECRET in text for text in texts)


def test_more_workers_than_the_machine_has_places_for_are_refused(ray_session, tmp_path):
    with pytest.raises(UsageError, match="expected a CPU for each of 4 workers, found 2"):
        run(tmp_path / "run", workers=4)
    with pytest.raises(UsageError, match="expected a GPU for each of 2 workers, found 0"):
        run(tmp_path / "gpu", workers=2, device="cuda")


INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from tests_of_workers import run
folder = Path(sys.argv[1])
def report(line):
    print(line, file=sys.stderr, flush=True)
    if line.startswith("step 5, loss"):
        os.kill(os.getpid(), signal.SIGINT)
try:
    run(folder, workers=2, report=report)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_run_which_goes_on_afterwards(ray_session, alone, tmp_path):
    shutil.copy(__file__, tmp_path / "tests_of_workers.py")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (130, "interrupted\n"), ended.stderr
    said: list[str] = []
    run(tmp_path / "run", workers=2, report=said.append)
    assert any(line.startswith("going on at step ") for line in said)
    assert_same(tmp_path / "run", alone)


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path):
    options = TrainingOptions(
        input="photos", output=str(tmp_path), steps=5, batch_size=8, workers=3
    )
    with pytest.raises(UsageError, match="--batch-size as a multiple of --workers 3, found 8"):
        check_options(options)
