"""A training run on several workers: data-parallel, by Ray Train."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue

from igpt_core.learning.training import TrainingState
from pipeline.engine import allocation, cluster
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions
from pipeline.storage.redact import redacted_line
from pipeline.training.folder import OPTIONS_FILE
from pipeline.training.loop import TrainingJob

MOST_FAILURES = 3  # of a run: each costs the time since the last state, and the start of workers
_RAY_FILES = ".ray_train"  # in the folder of a run, what Ray Train writes while it goes


def run_on_workers(
    job: TrainingJob, options: TrainingOptions, report: Callable[[str], None]
) -> TrainingState:
    """Trains a job on `options.workers` workers of the cluster; where one dies, all begin anew from
    the saved state.

    Raises UsageError where it fails, also again and again; what is saved stays.
    """
    with cluster.connected(options.address), _reported(report) as lines:
        use_gpu = options.device == "cuda" or (options.device == "auto" and allocation.gpus() > 0)
        trainer = ray.train.torch.TorchTrainer(
            _work,
            # A job holds all images: workers of a node share one copy, in its object store.
            train_loop_config={"job": ray.put(job), "lines": lines},
            scaling_config=_scaling(options.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=_RAY_FILES,
                storage_path=str(job.folder),
                failure_config=FailureConfig(max_failures=MOST_FAILURES),
            ),
        )
        try:
            result: Any = cluster.silence_stdout(trainer.fit)
        except ray.train.TrainingFailedError as error:
            # Its text ends with the traceback of a worker.
            cause = redacted_line(RuntimeError(str(error).strip().rpartition("\n")[2]))
            raise UsageError(
                f"training on {options.workers} workers failed {MOST_FAILURES + 1} times, at last "
                f"with {cause}; next: the same command goes on from the last state"
            ) from error
        finally:
            shutil.rmtree(job.folder / _RAY_FILES, ignore_errors=True)
    return result.return_value  # type: ignore[no-any-return]


def _work(config: dict[str, Any]) -> Any:
    """Trains in a worker; Ray Train has made the group of torch.distributed."""
    job: TrainingJob = ray.get(config["job"])
    if not (job.folder / OPTIONS_FILE).exists():
        raise UsageError(
            f"expected --output {job.folder} on a disk that all nodes mount, found none on this one"
        )
    return job.run(str(ray.train.torch.get_device()), config["lines"].put)


def _scaling(n_workers: int, *, use_gpu: bool) -> ScalingConfig:
    """Returns what each worker gets: a GPU, or an equal share of the CPUs."""
    if use_gpu:
        return ScalingConfig(num_workers=n_workers, use_gpu=True)
    n_cpus = max(allocation.cpus() // n_workers, 1)
    return ScalingConfig(num_workers=n_workers, resources_per_worker={"CPU": n_cpus})


@contextmanager
def _reported(report: Callable[[str], None]) -> Iterator[Queue]:
    """Yields a queue whose lines are reported here as they come."""
    lines = Queue(actor_options={"num_cpus": 0})

    def follow() -> None:
        while (line := lines.get()) is not None:
            report(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        lines.put(None)
        thread.join()
        lines.shutdown(force=True)
