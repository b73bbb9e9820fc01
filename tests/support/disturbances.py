"""What a run meets in the course of a night: its driver, its actors or one of its nodes die. Each
ends with the run finished."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from drivers import Driver, driver, finish, kill_one, rounds, workers

_NODE = {"num_cpus": 2, "object_store_memory": 128 << 20, "include_dashboard": False}


@dataclass(frozen=True)
class Night:
    """A whole command, where it logs, and how many parts of results it makes; `done` counts those
    that are there."""

    words: tuple[str, ...]
    log: Path
    shards: int
    done: Callable[[], int]
    environment: Mapping[str, str] = field(default_factory=dict)


def drivers_die(night: Night, chance: random.Random) -> None:
    """Kills the driver up to three times: during the start, at a random part but the last, or a
    moment after it."""
    hits = 0
    for _ in range(chance.randint(1, 3)):
        with driver(*night.words, log=night.log, **night.environment) as run:
            if chance.random() < 0.2:
                time.sleep(chance.uniform(0, 8))
            else:
                _until(run, night, chance.randint(1, night.shards - 1))
                time.sleep(chance.uniform(0, 0.2))
            hits += run.kill()
    assert hits, night.log.read_text()[-3000:]
    finish(*night.words, log=night.log, **night.environment)


def actors_die(night: Night, chance: random.Random) -> None:
    """Kills an actor of any stage, three to six times."""
    hits = 0
    with driver(*night.words, log=night.log, **night.environment) as run:
        assert run.until(lambda: workers(run.pid)), run.log()[-3000:]
        for _ in range(chance.randint(3, 6)):
            time.sleep(chance.uniform(0, 1.5))
            hits += kill_one(workers(run.pid), chance) and run.running
        assert run.wait() == 0, run.log()[-3000:]
    assert hits


def a_node_dies(night: Night, chance: random.Random) -> None:
    """Kills one of three nodes at a random part, one with actors and not the driver's, which has no
    CPUs; and adds a new one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in night.environment.items():  # a node's actors have what the node has
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args=_NODE | {"num_cpus": 0})
        try:
            nodes = [cluster.add_node(**_NODE), cluster.add_node(**_NODE)]
            cluster.wait_for_nodes()
            words = (*night.words, f"--address={cluster.address}")
            with driver(*words, log=night.log) as run:
                early = chance.randint(1, night.shards // 2)
                assert _until(run, night, early), run.log()[-3000:]
                at_work = [node for node in nodes if _actors(node)]
                assert at_work
                cluster.remove_node(chance.choice(at_work), allow_graceful=False)
                assert run.running, run.log()[-3000:]
                assert night.done() < night.shards
                cluster.add_node(**_NODE)
                assert run.wait() == 0, run.log()[-3000:]
        finally:
            cluster.shutdown()


def _actors(node: Node) -> list[int]:
    (raylet,) = node.all_processes["raylet"]
    return workers(raylet.process.pid)


def _until(run: Driver, night: Night, parts: int) -> bool:
    """Waits for as many parts; returns false where the run ends before."""
    return run.until(lambda: night.done() >= parts)


NIGHTS = [
    *rounds(20, drivers_die, short=1),
    *rounds(10, actors_die, short=1),
    *rounds(5, a_node_dies, short=1),
]
