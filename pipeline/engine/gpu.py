"""Questions that a GPU of the cluster answers."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch

from pipeline.engine.cluster import STALLED_SECONDS, silence_stdout
from pipeline.engine.progress import Mode
from pipeline.errors import RunFailed
from pipeline.storage.redact import redacted_error

Answer = TypeVar("Answer")

_ON_A_GPU = {"num_cpus": 0, "num_gpus": 1}
_SILENT_SECONDS = 15.0  # a worker starts and loads torch; who waits for longer learns for what


def free_gpu_bytes(*, progress: Mode) -> int:
    """Asks what is free on a GPU; see `ask_gpu`."""
    return ask_gpu(_free_bytes, progress=progress)


def _free_bytes() -> int:
    return int(torch.cuda.mem_get_info()[0])


def ask_gpu(question: Callable[..., Answer], *arguments: Any, progress: Mode) -> Answer:
    """Calls a function in a task that has a GPU of the cluster that is joined; where GPUs differ,
    any.

    Raises RunFailed where the task fails, and where no GPU is free for as long as a run may stand
    still.
    """
    ask = ray.remote(_answer).options(**_ON_A_GPU)
    task: ray.ObjectRef[Answer] = ask.remote(question, *arguments)
    try:
        if not _has_ended(task, _SILENT_SECONDS):
            if progress == "text":
                print("waiting for a free GPU of the cluster", file=sys.stderr, flush=True)
            if not _has_ended(task, STALLED_SECONDS):
                ray.cancel(task)  # here alone: for one that has just ended Ray 2.60 aborts us
                raise RunFailed(
                    "expected a free GPU of the cluster, found none in "
                    f"{STALLED_SECONDS / 3600:g} hours; next: the same command when one is free"
                )
        return silence_stdout(lambda: ray.get(task))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RunFailed(
            "expected a GPU of the cluster with which torch works, found "
            f"{redacted_error(cause)}; next: mend torch or CUDA on the "
            "nodes that have GPUs, and give the same command again"
        ) from error


def _answer(question: Callable[..., Answer], *arguments: Any) -> Answer:
    return question(*arguments)  # Ray takes functions alone, no methods


def _has_ended(task: "ray.ObjectRef[Any]", seconds: float) -> bool:
    """Waits for a task for so long; tells whether it has ended, well or not."""
    ready, _ = silence_stdout(lambda: ray.wait([task], timeout=seconds))
    return bool(ready)
