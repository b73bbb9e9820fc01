"""A training run on several workers: data-parallel, by Ray Train."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from igpt_core.learning.training import TrainingState
from pipeline.engine import allocation, cluster
from pipeline.errors import RunFailed, UsageError
from pipeline.options import TrainingOptions
from pipeline.storage.redact import redacted_error
from pipeline.training.folder import OPTIONS_FILE, RAY_FOLDER
from pipeline.training.loop import TrainingJob

MOST_FAILURES = 3  # of a run: each costs the time since the last state, and the start of workers


def run_on_workers(
    job: TrainingJob, options: TrainingOptions, report: Callable[[str], None]
) -> TrainingState:
    """Trains a job on `options.workers` workers of the cluster; where one dies, all begin anew from
    the saved state.

    Raises UsageError where the cluster has no place for them, RunFailed where the run fails again
    and again; what is saved stays.
    """
    with cluster.connected(options.address), _reported(report) as lines:
        scaling = _scaling(options)
        report(f"waiting for {options.workers} workers")
        trainer = ray.train.torch.TorchTrainer(
            _work,
            # A job holds all images: workers of a node share one copy, in its object store.
            train_loop_config={"job": ray.put(job), "lines": lines},
            scaling_config=scaling,
            run_config=RunConfig(
                name=RAY_FOLDER,
                storage_path=str(job.folder),
                failure_config=FailureConfig(max_failures=MOST_FAILURES),
            ),
        )
        try:
            result: Any = cluster.silence_stdout(_fit, trainer)
        except ray.train.TrainingFailedError as error:
            raise RunFailed(
                f"training on {options.workers} workers failed: {_cause(error)}; what is saved "
                "stays; next: the same command again, which goes on from there"
            ) from error
    return result.return_value  # type: ignore[no-any-return]


def _work(config: dict[str, Any]) -> Any:
    """Trains in a worker; Ray Train has made the group of torch.distributed."""
    job: TrainingJob = ray.get(config["job"])
    try:
        if not (job.folder / OPTIONS_FILE).exists():
            raise UsageError(
                f"expected --output {job.folder} on a disk that all nodes mount, found none on "
                "this one"
            )
        return job.run(str(ray.train.torch.get_device()), config["lines"].put)
    except Exception as error:
        # Ray writes it to its logs: an address in it may hold a login.
        raise RuntimeError(redacted_error(error)) from None


def _scaling(options: TrainingOptions) -> ScalingConfig:
    """Returns what each worker gets: a GPU, or the most CPUs of which all have as many.

    Raises UsageError where the cluster has too few, and none may come.
    """
    n, grows = options.workers, allocation.may_grow(options.address)
    if options.device == "cuda" or (options.device == "auto" and allocation.gpus() > 0):
        if n > allocation.gpus() and not grows:
            raise UsageError(f"expected a GPU for each of {n} workers, found {allocation.gpus()}")
        return ScalingConfig(num_workers=n, use_gpu=True)
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    places = (each for each in range(max(cpus), 0, -1) if sum(at // each for at in cpus) >= n)
    each = next(places, None)
    if each is None and not grows:
        raise UsageError(f"expected a CPU for each of {n} workers, found {sum(cpus)}")
    return ScalingConfig(num_workers=n, resources_per_worker={"CPU": each or 1})


def _fit(trainer: ray.train.torch.TorchTrainer) -> Any:
    """Waits for the end of a training. In the main thread Ray Train would take Ctrl-C for itself,
    and keep it."""
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    return result.result()


def _cause(error: Exception) -> str:
    """Returns the last line of what the first worker that failed says."""
    failures = list(getattr(error, "worker_failures", {}).values())
    text = str(failures[0] if failures else error)
    return text.strip().rpartition("\n")[2]


@contextmanager
def _reported(report: Callable[[str], None]) -> Iterator[Queue]:
    """Yields a queue whose lines are reported here as they come. It lives on this node, so that it
    is there as long as this process is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lines = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def follow() -> None:
        with suppress(RayError):
            while (line := lines.get()) is not None:
                report(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        with suppress(RayError):
            lines.put(None)
            thread.join()
            lines.shutdown(force=True)
