"""Allocating the CPUs and GPUs of the cluster that is joined to the stages of a job, and the sizes
of its shards."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import ray

from pipeline.engine.stage import Resources, Stage
from pipeline.errors import UsageError
from pipeline.shards import Plan
from pipeline.storage.file_identity import size_in

# Actors on every CPU would leave none for Ray's own tasks, and the job would hang.
_SHARE_OF_CPUS = 0.9
# A node on which so many times as many shards fail as on the mean of all nodes is likely their
# cause: its disk is full. Where nodes fail alike, the input or the store is.
_STANDS_OUT = 1.5
# A shard costs some 10 ms beside the work, as long as 4 photographs take to read. The last shards
# to be done leave readers idle: with four for each, a quarter of the time at most.
_SHARDS_PER_READER, _FEWEST_ROWS = 4, 16
# A reader takes as long to start as some 400 photographs take to read, and the start of several on
# the same few CPUs takes as many times as long.
_ROWS_PER_READER, _BYTES_PER_READER = 256, 32 << 20


@dataclass(frozen=True)
class ResourcePlan:
    """What each stage of a job gets of the cluster."""

    reading: Resources
    model: Resources
    writing: Resources


def may_grow(address: str | None) -> bool:
    """Tells whether a job at `address` joins a cluster, whose autoscaler may bring more nodes; a
    private Ray stays as it is."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def is_empty() -> bool:
    """Tells whether the cluster has no CPU for work yet: its head runs none, and its autoscaler
    brings workers when something asks for them."""
    return not _total("CPU")


def gpus() -> int:
    """Counts the GPUs of the cluster that is joined."""
    return int(_total("GPU"))


def cpus() -> int:
    """Counts the CPUs of the cluster that is joined, one at least."""
    return max(int(_total("CPU")), 1)


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def auto_model_actors(device: str) -> int:
    """Counts one for each GPU, or on CPUs one for each core: each computes on one thread."""
    return max(gpus(), 1) if device == "cuda" else cpus()


def allocate(
    *,
    device: str | None,
    cpu_actors: int | None,
    model_actors: int | None,
    request_cpus: bool = True,
    grows: bool = False,
    plan: Plan | None = None,
) -> ResourcePlan:
    """Allocates shares of the cluster's CPUs, such that all actors of the job fit at once.

    Where machines have to come for the job, as there is no CPU yet, or fewer GPUs than it asks for
    and too few CPUs for its readers, each actor asks for a whole CPU, so that as many come: shares
    would all fit on the first machine. Elsewhere Ray does not say whether any would come, and a job
    that asked for them might wait in vain.

    Where a model computes there is one reader for each GPU at first, and on CPUs one in all, and
    more start while it waits for them; all from the start where `cpu_actors` are asked for, or
    machines have to come.

    Args:
        device: of the model stage, None where the job has none.
        cpu_actors, model_actors: as asked for; found from the cluster where None.
        request_cpus: false for actors that run beside whatever else there is.
        grows: whether GPUs that are not there may come; see `may_grow`.
        plan: where its rows and bytes are few and no model computes, fewer readers start.

    Raises UsageError for more model actors than GPUs.
    """
    if device == "cuda" and (model_actors or 0) > gpus() and not grows:
        raise UsageError(
            f"--model-actors {model_actors} need as many GPUs, the cluster has {gpus()}"
        )
    n_cpus = cpus()
    n_model = 0 if device is None else (model_actors or auto_model_actors(device))
    wanted = None if device else _readers_for(plan, n_cpus)
    by_cpus = {None: min(n_cpus, wanted or n_cpus), "cuda": n_cpus - 1, "cpu": n_cpus // 4}[device]
    awaits_gpus = device == "cuda" and n_model > gpus() and (cpu_actors or n_model) > by_cpus
    awaits = is_empty() or awaits_gpus
    n_reading = cpu_actors or max(1, n_model if awaits else by_cpus)
    n_writing = max(1, n_reading // 4)
    is_fixed = device is None or cpu_actors is not None or awaits
    at_first = None if is_fixed else min(n_reading, n_model if device == "cuda" else 1)
    # Those with a GPU request no CPU: on a node whose CPUs readers took first they could not start.
    n_requesting = n_reading + n_writing + (n_model if device == "cpu" else 0)
    share = 1.0 if awaits else min(1.0, _SHARE_OF_CPUS * n_cpus / n_requesting)
    share = int(share * 1000) / 1000 if request_cpus else 0.0
    on_gpu = device == "cuda"
    # Each process takes a second of a CPU to start, in which one reader has read a small plan.
    joins = device is None and n_reading == 1 == wanted
    return ResourcePlan(
        reading=Resources(n_reading, num_cpus=share, at_first=at_first),
        model=Resources(n_model, num_cpus=0.0 if on_gpu else share, num_gpus=float(on_gpu)),
        writing=Resources(
            n_writing,
            num_cpus=share,
            at_first=at_first and max(1, at_first // 4),
            joins=joins,
        ),
    )


def _readers_for(plan: Plan | None, n_cpus: int) -> int | None:
    """Counts the readers that take as long to start as a plan takes to read; None where nobody
    knows its rows."""
    if plan is None or not plan.rows:
        return None
    by_rows = ceil(plan.rows / _ROWS_PER_READER)
    if by_rows >= n_cpus:  # to sum up the sizes of a large plan takes a second
        return by_rows
    slices = (each for shard in plan.shards for each in shard.slices)
    sizes = {each.path: size_in(each.identity) or 0 for each in slices}  # as far as they are told
    return max(by_rows, ceil(sum(sizes.values()) / _BYTES_PER_READER))


def away_from(
    failures: Mapping[str, int], stages: Sequence[Stage], *, n_shards: int
) -> tuple[Sequence[Stage], list[str]]:
    """Finds the nodes on which more shards have failed than on others, and cuts the actors of the
    stages down, by halves, to what the other nodes of the cluster hold.

    Args:
        failures: how many shards have failed on each node, by its id.
        n_shards: no stage starts more actors than these.

    Returns:
        The stages, and the ids of the nodes: none where the others do not hold one actor of each
        stage, or no node stands out.
    """
    every = ray.nodes() if failures else []  # type: ignore[no-untyped-call]
    nodes = {node["NodeID"]: node["Resources"] for node in every if node["Alive"]}
    mean = sum(n for node, n in failures.items() if node in nodes) / max(len(nodes), 1)
    found = [node for node, n in failures.items() if node in nodes and n >= _STANDS_OUT * mean]
    if not found:
        return stages, []
    left = [resources for node, resources in nodes.items() if node not in found]
    wanted = [min(stage.resources.actors, n_shards) for stage in stages]
    while not _hold(left, [stage.resources for stage in stages], wanted):
        if max(wanted) == 1:
            return stages, []
        wanted = [max(actors // 2, 1) for actors in wanted]
    fewer = [
        replace(stage, resources=replace(stage.resources, actors=actors))
        for stage, actors in zip(stages, wanted, strict=True)
    ]
    return fewer, found


def _hold(
    nodes: Sequence[Mapping[str, float]], stages: Sequence[Resources], actors: Sequence[int]
) -> bool:
    """Tells whether nodes hold so many actors of each stage. Those that ask for CPUs ask for the
    same share, those that ask for GPUs for one."""
    own = [each for each in zip(stages, actors, strict=True) if not each[0].joins]
    for name, shares in (
        ("CPU", [stage.num_cpus for stage, _ in own]),
        ("GPU", [stage.num_gpus for stage, _ in own]),
    ):
        wanted = sum(n for (_, n), share in zip(own, shares, strict=True) if share)
        # Whole CPUs are asked for where machines have to come: there each has its own.
        room = _SHARE_OF_CPUS if name == "CPU" and max(shares) < 1 else 1.0
        if wanted and sum(node.get(name, 0) * room // max(shares) for node in nodes) < wanted:
            return False
    return bool(nodes)


def reading_shard_size(n_rows: int, most_rows: int) -> int:
    """Chooses the rows of a shard of a job without a model: fewer than the most where otherwise the
    cluster's CPUs would not have four shards each, but not so few that a shard costs more to hand
    on than to read. `n_rows` is 0 where nobody has counted them."""
    if not n_rows:
        return most_rows
    return min(max(n_rows // (_SHARDS_PER_READER * cpus()), _FEWEST_ROWS), most_rows)


def shard_size(n_rows: int, rows_per_batch: int, device: str, *, most_batches: int = 4) -> int:
    """Chooses the rows of a shard for a model stage: whole batches, and fewer than the most where
    otherwise the cluster's model actors would not have two shards each.

    Depends on the cluster alone and not on --model-actors, so that another number of actors cuts
    the same shards.
    """
    wanted = 2 * auto_model_actors(device)
    batches = min(most_batches, n_rows // (wanted * rows_per_batch))
    return max(batches, 1) * rows_per_batch
