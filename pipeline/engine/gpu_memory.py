"""The memory that is free on a GPU of the cluster, which may have to be waited for."""

import sys

import ray

from pipeline.engine.cluster import STALLED_SECONDS, silence_stdout
from pipeline.engine.progress import Mode
from pipeline.errors import RunFailed
from pipeline.storage.redact import redacted_line

_SILENT_SECONDS = 15.0  # a worker starts and loads torch; who waits for longer learns for what


@ray.remote(num_cpus=0, num_gpus=1)
def _look() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])


def free_gpu_bytes(*, progress: Mode) -> int:
    """As a task finds it on a GPU of the cluster that is joined; where GPUs differ, on any.

    Raises RunFailed where the task fails, and where no GPU is free for as long as a run may stand
    still.
    """
    task = _look.remote()
    try:
        if not _done(task, _SILENT_SECONDS):
            if progress == "text":
                print("waiting for a free GPU of the cluster", file=sys.stderr, flush=True)
            if not _done(task, STALLED_SECONDS):
                ray.cancel(task)  # here alone: for one that has just ended Ray 2.60 aborts us
                raise RunFailed(
                    "expected a free GPU of the cluster, found none in "
                    f"{STALLED_SECONDS / 3600:g} hours; next: the same command when one is free"
                )
        return int(silence_stdout(ray.get, task))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RunFailed(
            "expected a GPU of the cluster with which torch works, found "
            f"{type(cause).__name__}: {redacted_line(cause)}; next: mend torch or CUDA on the "
            "nodes that have GPUs, and give the same command again"
        ) from error


def _done(task: ray.ObjectRef, seconds: float) -> bool:
    """Whether it has ended, well or not, within so long."""
    ready, _ = silence_stdout(lambda: ray.wait([task], timeout=seconds))
    return bool(ready)
