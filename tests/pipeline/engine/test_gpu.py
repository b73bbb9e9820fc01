"""What is asked of a GPU of the cluster: on a Ray without one, where who asks waits for ever."""

import sys

import pytest
import ray
from ray import cloudpickle

from pipeline.engine import gpu
from pipeline.engine.gpu import ask_gpu, free_gpu_bytes
from pipeline.errors import RunFailed
from pipeline.stages.model_batches import ComputePlan

# Ray's workers cannot import the file of a test.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def without_gpu(ray_session, monkeypatch) -> None:
    """Questions are answered by a task that asks for none."""
    monkeypatch.setattr(gpu, "_ON_A_GPU", {"num_cpus": 0})


def quotient(a: int, b: int) -> int:
    return a // b


def no_cuda() -> int:
    raise AssertionError("Torch not compiled\nwith CUDA enabled")


def test_the_answer_comes_back_without_a_word(without_gpu, capsys):
    """Past bug: Ray takes no methods, and a run asks one of its plan."""
    assert ask_gpu(quotient, 7, 2, progress="text") == 3
    plan = ComputePlan("nowhere", "cpu", "float32", images=2)
    assert ask_gpu(plan.try_fast_ways, 64, progress="text") == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("progress", "said"),
    [("text", "waiting for a free GPU of the cluster\n"), ("quiet", ""), ("json", "")],
)
def test_a_run_says_that_it_waits_for_a_gpu_and_gives_up(
    ray_session, monkeypatch, capsys, progress, said
):
    """Past bug: it waited for ever, and said nothing."""
    asked, has_ended = [], gpu._has_ended

    def remembering(task, seconds):
        asked.append(task)
        return has_ended(task, seconds)

    monkeypatch.setattr(gpu, "_has_ended", remembering)
    monkeypatch.setattr(gpu, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(gpu, "STALLED_SECONDS", 0.36)
    with pytest.raises(RunFailed) as failed:
        free_gpu_bytes(progress=progress)
    assert str(failed.value) == (
        "expected a free GPU of the cluster, found none in 0.0001 hours; "
        "next: the same command when one is free"
    )
    assert capsys.readouterr() == ("", said)
    with pytest.raises(ray.exceptions.TaskCancelledError):  # it asks for no GPU any more
        ray.get(asked[0], timeout=30)


def test_a_gpu_without_a_torch_that_finds_it_is_one_line(without_gpu):
    """Past bug: the line held the whole traceback of the task."""
    with pytest.raises(RunFailed) as failed:
        ask_gpu(no_cuda, progress="text")
    assert str(failed.value) == (
        "expected a GPU of the cluster with which torch works, found AssertionError: Torch not "
        "compiled with CUDA enabled; next: mend torch or CUDA on the nodes that have GPUs, and "
        "give the same command again"
    )
