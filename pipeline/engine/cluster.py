"""Joining or starting Ray for the length of a job, and leaving it."""

import inspect
import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.data import DataContext
from ray.job_config import JobConfig

from pipeline.engine.demand import grow_by_demand
from pipeline.errors import UsageError
from pipeline.storage.redact import redacted, redacted_line

OBJECT_STORE_BYTES = 2 << 30  # of a private local Ray: a block is a few megabytes
_PACKAGES = [str(Path(__file__).resolve().parents[2])]  # where igpt's packages lie side by side
_PROBE_SECONDS = 10
_MONITOR_SECONDS = 10  # between two probes of the head
# Without any block moving, Ray ends a run. Its half an hour is shorter than a shard may take on a
# CPU, and than spot machines may be away.
STALLED_SECONDS = 6 * 3600


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connects to Ray for the length of a job: the session that this process has already, the
    cluster at `address` or RAY_ADDRESS, else a private one on this machine. A process that has one
    already is left as it was.

    Raises UsageError where the cluster cannot be joined.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        address = address or os.environ.get("RAY_ADDRESS")
        _refuse_other_addresses(address or "")
        with _deaf_to_sigterm():
            _join_or_start(address)
    with ray_kept_quiet():
        try:
            with DataContext.current(_data_context()), _head_monitor():
                yield
        finally:
            if ours:
                _shutdown()


def _data_context() -> DataContext:
    """Returns this process's settings of Ray Data, with those that a job needs: a copy, as the
    process may have datasets of its own."""
    context = DataContext.get_current().copy()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a task's output stays one block: a shard stays whole
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = STALLED_SECONDS
    grow_by_demand(context)
    return context


Result = TypeVar("Result")


def silence_stdout(call: Callable[..., Result], *arguments: Any) -> Result:
    """Calls with stdout silenced: there Ray says that a process died, and results and JSON lines
    go there."""
    with redirect_stdout(io.StringIO()):
        return call(*arguments)


def _join_or_start(address: str | None) -> None:
    private = address in (None, "", "local")
    with _stderr_closed(), _lean_node() if private else nullcontext():
        try:
            _probe(address or "")
            ray.init(
                address=address or "local",
                job_config=JobConfig(_py_driver_sys_path=_WorkerPath(_PACKAGES)),
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if private else None,
                object_store_memory=OBJECT_STORE_BYTES if private else None,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"cannot join the Ray cluster at {address or 'local'}: {redacted_line(error)}; "
                "check --address and RAY_ADDRESS"
            ) from error


@contextmanager
def _lean_node() -> Iterator[None]:
    """Starts a private Ray without three processes that no job uses, the monitors of the autoscaler
    and of log files and the server of the dashboard, for which it waits for a second; and with any
    free port for its agent: it waits for three for its usual one where another Ray of this machine
    has it. Ray 2.60 has no public option for these; a Ray that keeps its own elsewhere starts as
    usual.
    """
    private: Any = getattr(ray, "_private", None)
    parameter: Any = getattr(private, "parameter", None)
    node: Any = getattr(getattr(private, "node", None), "Node", None)
    if not (hasattr(parameter, "RayParams") and hasattr(node, "start_api_server")):
        yield
        return
    params, start_server = parameter.RayParams, node.start_api_server
    known = inspect.signature(params).parameters
    lean = {"dashboard_agent_listen_port": 0, "no_monitor": True, "include_log_monitor": False}
    chosen = {name: value for name, value in lean.items() if name in known}
    parameter.RayParams = partial(params, **chosen)
    node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        parameter.RayParams, node.start_api_server = params, start_server


@contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    """Starts processes that no SIGTERM reaches, nor those that they start.

    Slurm, systemd and `timeout` send it to every process of a run. Ray's would be gone at once,
    with the shards in hand, and Ray ends a driver that has lost them without a word: so this
    process alone hears it, and ends them. What it is sent meanwhile it hears afterwards.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray put its own there, which prints a stack
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shutdown() -> None:
    """Leaves the cluster, or ends the private one with all of its processes."""
    import psutil  # type: ignore[import-untyped]  # Ray brings it: it is found once Ray is imported

    node: Any = ray._private.worker._global_node
    started = [each.process for each in chain.from_iterable(node.all_processes.values())]
    below = []
    for process in started:
        process.terminate = process.kill  # Ray would send SIGTERM, and wait for a second
        with suppress(psutil.NoSuchProcess):
            below += psutil.Process(process.pid).children(recursive=True)
    silence_stdout(ray.shutdown)
    for child in below:  # agents of a node outlive it by minutes when it was killed
        with suppress(psutil.NoSuchProcess):
            child.kill()


class _WorkerPath(list[str]):
    """Folders that workers put at the front of their sys.path: only those of the constructor.

    Ray extends its list by the script's folder and the current one, and the workers would import an
    unrelated `pipeline` or `jobs.py` that lies there in place of igpt's.
    """

    def extend(self, _folders: Iterable[str]) -> None:
        pass


def _probe(address: str) -> None:
    """Raises OSError where nothing listens at an `ip:port`: Ray would try for a quarter of an
    hour. Any other address passes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()


def head_answers() -> bool:
    """Tells whether the head of the cluster that is joined can be reached."""
    try:
        _probe(ray.get_runtime_context().gcs_address)
    except (OSError, ray.exceptions.RaySystemError):  # it is gone, or left
        return False
    return True


@contextmanager
def _head_monitor() -> Iterator[None]:
    """Prints one line where the head of the cluster is gone: a minute later Ray ends the process,
    with exit code 1 and without a word."""
    over = threading.Event()

    def monitor() -> None:
        tries = 2
        while tries and not over.wait(_MONITOR_SECONDS):
            tries = 2 if head_answers() else tries - 1
        if not tries:
            print(
                "igpt: the head of the Ray cluster does not answer, the run ends unless it comes "
                "back within a minute; what is done is kept; next: the same command again, without "
                "--overwrite",
                file=sys.stderr,
                flush=True,
            )

    threading.Thread(target=monitor, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def ray_kept_quiet() -> Iterator[None]:
    """Keeps Ray's own lines in its log files: of an error in a stage, which the job reports in one
    line, it says some two hundred."""
    handlers = [each for name in ("ray", "ray.data") for each in logging.getLogger(name).handlers]
    levels = {each: each.level for each in handlers if isinstance(each, logging.StreamHandler)}
    for handler in levels:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in levels.items():
            handler.setLevel(level)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Closes stderr to Ray's C++ part, which says there that it will say no more; its errors come
    as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _refuse_other_addresses(address: str) -> None:
    """Raises UsageError for the addresses of a cluster that are not that of its head."""
    kind, separator, host = address.partition("://")
    if separator:
        name = host.partition(":")[0].partition("/")[0]
        what = "Ray Client's" if kind == "ray" else "that of a job server"
        raise UsageError(
            f"expected the address of a Ray cluster's head such as {name}:6379, found "
            f"{redacted(address)}, which is {what}; next: --address {name}:6379 on one of its "
            f"machines, or from elsewhere igpt submit --address http://{name}:8265 before the job"
        )
