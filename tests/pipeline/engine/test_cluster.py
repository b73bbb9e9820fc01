"""Joining, starting and leaving Ray, and clusters that are not there."""

import logging
import re
import signal
import socket
import subprocess
import sys

import pytest
import ray
from ray.data import DataContext

from pipeline.engine import cluster
from pipeline.errors import UsageError


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://head:8265", "that of a job server; next: --address head:6379"),
        ("https://head/", "igpt submit --address http://head:8265"),
        ("ray://head:10001", "Ray Client's; next: --address head:6379"),
    ],
)
def test_other_addresses_of_a_cluster_are_told_apart(monkeypatch, address, says):
    """Past bug: Ray said that it did not know the name, or failed with an AttributeError."""
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("no such address"))
    with pytest.raises(UsageError, match=re.escape(says)), cluster.connected(address):
        pass


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch):
    """Past bug: Ray tries for minutes, and says nothing."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("nobody is there to join"))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UsageError, match=f"join the Ray cluster at {address}: .*refused; check --"),
        cluster.connected(None),
    ):
        pass


def test_processes_of_a_private_ray_do_not_hear_sigterm_and_this_one_does():
    """Past bug: Slurm sends it to every process, and a run without its Ray blamed a cluster."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("ours"))
    try:
        with cluster._deaf_to_sigterm():
            started = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
            signal.signal(signal.SIGTERM, lambda *_: heard.append("Ray's"))
            signal.raise_signal(signal.SIGTERM)
            assert not heard
        assert heard == ["ours"]
        started.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(0.5)
        started.communicate(b"\n")
        assert started.returncode == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_has_ray_already_is_left_as_it_was(ray_session):
    """Past bug: after a job in a user's script its datasets had the job's settings, and Ray's logs
    were silent."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    context = DataContext.get_current()
    before = dict(vars(context))
    logging.getLogger("ray.data").addHandler(handler)
    try:
        with cluster.connected(None):
            assert DataContext.get_current().target_max_block_size is None
            assert handler.level == logging.CRITICAL
        assert DataContext.get_current() is context
        assert vars(context) == before
        assert handler.level == logging.WARNING
        assert ray.is_initialized()
    finally:
        logging.getLogger("ray.data").removeHandler(handler)


LEAN = """
import ray
from pipeline.engine import cluster

with cluster.connected(None):
    node = ray._private.worker._global_node
    print(*sorted(node.all_processes), node.dashboard_agent_listen_port)
print(ray._private.parameter.RayParams.__name__, ray._private.node.Node.start_api_server.__name__)
"""


def test_a_private_ray_has_no_process_that_no_job_uses():
    """Past bug: three processes more, of which the server of the dashboard took a second to start,
    and three seconds in vain where another Ray had the port."""
    command = [sys.executable, "-c", LEAN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (*processes, port), restored = (line.split() for line in done.stdout.splitlines())
    assert {"gcs_server", "raylet"} <= set(processes)
    assert not {"monitor", "log_monitor", "dashboard"} & set(processes)
    assert int(port) not in (0, 52365)
    assert restored == ["RayParams", "start_api_server"]


def test_a_ray_that_keeps_its_own_elsewhere_starts_as_usual(monkeypatch):
    monkeypatch.delattr(ray._private.parameter, "RayParams")
    with cluster._lean_node():
        pass
    monkeypatch.delattr(ray, "_private")
    with cluster._lean_node():
        pass
