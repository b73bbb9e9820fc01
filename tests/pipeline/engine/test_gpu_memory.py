"""What memory a GPU of the cluster has free, asked on a Ray without GPUs, where whoever asks waits
for ever."""

import sys
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle

from pipeline.engine import gpu_memory
from pipeline.engine.gpu_memory import free_gpu_bytes
from pipeline.errors import RunFailed

# Ray's workers cannot import the file of a test.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote(num_cpus=0)
def found() -> int:
    return 80 << 30


@ray.remote(num_cpus=0)
def broken() -> int:
    raise AssertionError("Torch not compiled\nwith CUDA enabled")


def test_what_the_task_finds_comes_back_without_a_word(ray_session, monkeypatch, capsys):
    monkeypatch.setattr(gpu_memory, "_look", found)
    assert free_gpu_bytes(progress="text") == 80 << 30
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("progress", "said"),
    [("text", "waiting for a free GPU of the cluster\n"), ("quiet", ""), ("json", "")],
)
def test_a_run_says_that_it_waits_for_a_gpu_and_gives_up(
    ray_session, monkeypatch, capsys, progress, said
):
    """Past bug: it waited for ever, and said nothing."""
    look, asked = gpu_memory._look, []
    remembering = SimpleNamespace(remote=lambda: asked.append(look.remote()) or asked[-1])
    monkeypatch.setattr(gpu_memory, "_look", remembering)
    monkeypatch.setattr(gpu_memory, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(gpu_memory, "STALLED_SECONDS", 0.36)
    with pytest.raises(RunFailed) as failed:
        free_gpu_bytes(progress=progress)
    assert str(failed.value) == (
        "expected a free GPU of the cluster, found none in 0.0001 hours; "
        "next: the same command when one is free"
    )
    assert capsys.readouterr() == ("", said)
    with pytest.raises(ray.exceptions.TaskCancelledError):  # it asks for no GPU any more
        ray.get(asked, timeout=30)


def test_a_gpu_without_a_torch_that_finds_it_is_one_line(ray_session, monkeypatch):
    """Past bug: the line held the whole traceback of the task."""
    monkeypatch.setattr(gpu_memory, "_look", broken)
    with pytest.raises(RunFailed) as failed:
        free_gpu_bytes(progress="text")
    assert str(failed.value) == (
        "expected a GPU of the cluster with which torch works, found AssertionError: Torch not "
        "compiled with CUDA enabled; next: mend torch or CUDA on the nodes that have GPUs, and "
        "give the same command again"
    )
