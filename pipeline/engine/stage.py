"""Stages, and chains of them as a Ray dataset: the only caller of map_batches."""

import logging
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.util.annotations import RayDeprecationWarning

from pipeline.engine.metrics import IdleShare
from pipeline.engine.shard_result import NOT_BEGUN, ShardResult, deserialize, serialize
from pipeline.errors import EndOfRun
from pipeline.run_directory.lease import Lease
from pipeline.storage.redact import redacted_line, redacted_traceback
from pipeline.storage.retry import SHARD_BACKOFF, with_retry

# Ray's own default is to restart and retry for ever, also for a row that kills its process.
_MAX_RESTARTS, _MAX_TASK_RETRIES = 16, 3
_MAX_BACKOFF_SECONDS = 30
# A node whose GPU is broken is the free one on which Ray starts the actor that could not start
# there, again and again, while the others work. So many starts, for each actor, may fail one after
# the other: where the stages have done no shard yet, and later.
_FAILED_STARTS, _FAILED_STARTS_LATER = 3, 100
_START_BACKOFF_SECONDS = 10.0

_NODE_ID = "ray.io/node-id"  # a label that Ray gives each node

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What each actor of a stage takes, and how many there are: `actors` from the first to the last
    shard or, where it is given, `at_first` and then as many of them as the next stage needs.
    `joins` is for a stage that runs in the actors of the stage before it."""

    actors: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    at_first: int | None = None
    joins: bool = False


@dataclass(frozen=True)
class Stage:
    """A class `__init__(plain values)`, `__call__(pa.Table) -> pa.Table`, and where it runs."""

    cls: type[Callable[[pa.Table], pa.Table]]
    arguments: dict[str, Any]
    resources: Resources = field(default_factory=Resources)


class StageError(Exception):
    """A stage's error as one line, which can be found again in the text that Ray makes of it."""


class _Reporting:
    """A stage whose errors are StageErrors, raised once transient faults have been retried.

    Ray puts advice into the message of an error, loses the path of an OSError, and cannot carry
    every class to the driver.
    """

    stage: ClassVar[type[Callable[[pa.Table], pa.Table]]]

    def __init__(self, **arguments: Any) -> None:
        with self._reported():
            make: Callable[..., Callable[[pa.Table], pa.Table]] = self.stage
            self._stage = with_retry(lambda: make(**arguments), SHARD_BACKOFF)

    def __call__(self, block: pa.Table) -> pa.Table:
        with self._reported():
            return with_retry(lambda: self._stage(block), SHARD_BACKOFF)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # none is kept from being reported
            kind = type(error).__name__
            reported = StageError(f"{self.stage.__name__}: {kind}: {redacted_line(error)}")
            # In the place of its cause, which Ray would log with the secrets of its addresses.
            reported.add_note(redacted_traceback(error))
            raise reported from None


class _ReportingShards(_Reporting):
    """The same of shards that come and go as shard results: an error ends the shard, not the run.

    With a lease it works at no shard that is not for this run to begin. After a shard that failed
    it backs off, longer each time, until one is done: on a node where all fail at once it would
    have run through the shards before the other nodes have done one.
    """

    lease: ClassVar[Lease | None] = None
    start_backoff: ClassVar[float] = 0.0  # seconds, after a start that failed

    def __init__(self, **arguments: Any) -> None:
        try:
            super().__init__(**arguments)
        except StageError:
            time.sleep(self.start_backoff)
            raise
        self._idle = IdleShare(self.stage.__name__)
        self._ended = time.perf_counter()
        self._failed_in_a_row = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        (result,) = deserialize(table)
        if self._failed_in_a_row and result.failure is None:
            time.sleep(min(2 ** (self._failed_in_a_row - 1), _MAX_BACKOFF_SECONDS))
        begun = time.perf_counter()
        done = serialize([self._run(result)])
        waited, self._ended = begun - self._ended, time.perf_counter()
        self._idle.set(waited=waited, worked=self._ended - begun)
        return done

    def _run(self, result: ShardResult) -> ShardResult:
        """Runs the stage on a shard's block; passes on a shard that failed before."""
        if result.failure is not None:
            return result
        try:
            with self._reported():
                if self.lease is not None and not self.lease.may_begin():
                    return ShardResult(result.shard, failure=NOT_BEGUN)
            done = replace(result, block=super().__call__(result.block))
            self._failed_in_a_row = 0
            return done
        except StageError as error:
            self._failed_in_a_row += 1
            _log.exception("shard %d failed", result.shard)
            if isinstance(end := error.__context__, EndOfRun):
                return ShardResult(result.shard, failure=str(end), ends_run=True)
            node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
            return ShardResult(result.shard, failure=str(error), node=node)


Wrapper = TypeVar("Wrapper", bound=_Reporting)


class _InOneActor:
    """Stages of shards, one after the other."""

    steps: ClassVar[Sequence[type[_ReportingShards]]]

    def __init__(self, arguments: Sequence[Mapping[str, Any]]) -> None:
        self._steps = [step(**own) for step, own in zip(self.steps, arguments, strict=True)]

    def __call__(self, table: pa.Table) -> pa.Table:
        for step in self._steps:
            table = step(table)
        return table


def chain(
    blocks: Mapping[int, pa.Table],
    stages: Sequence[Stage],
    *,
    lease: Lease | None = None,
    proven: bool = False,
    avoided: Collection[str] = (),
) -> Dataset:
    """Chains the stages over blocks, each kept whole from end to end.

    Args:
        blocks: by shard, in the order in which they are submitted.
        lease: asked before each stage of a shard but the last.
        proven: whether these stages have done a shard: an actor that cannot start is then more
            likely its node's fault than theirs, and the others get on without it for longer.
        avoided: ids of nodes on which actors start only where the others have no room.

    Returns:
        What the last stage makes of each block, as rows of `serialize`.
    """
    # from_arrow would have a task look at each block: an autoscaler would bring nodes for them.
    results = serialize(ShardResult(*item) for item in blocks.items()).to_pylist()
    dataset: Dataset = ray.data.from_items(results, override_num_blocks=len(results))
    most_actors = max(min(stage.resources.actors, len(blocks)) for stage in stages)
    # A lone actor that cannot start has nobody to leave the work to.
    backoff = _START_BACKOFF_SECONDS if proven or most_actors > 1 else 0.0
    for together in _by_actor(stages):
        steps = []
        for stage in together:
            # What a model has done is written also by a run that stops; what was only read is left.
            lent = None if stage is stages[-1] else lease
            steps.append(_wrapped(stage, _ReportingShards, lease=lent, start_backoff=backoff))
        cls, arguments = _in_one_actor(steps, [stage.arguments for stage in together])
        resources = together[0].resources
        actors = min(resources.actors, len(blocks))
        dataset = _mapped(
            dataset, cls, arguments, resources, batch_size=1, actors=actors, avoided=avoided
        )
    starts = _FAILED_STARTS_LATER if proven else _FAILED_STARTS
    dataset.context.max_consecutive_actor_init_deaths = starts * most_actors
    return dataset


def _by_actor(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Groups the stages that share their actors."""
    groups: list[list[Stage]] = []
    for stage in stages:
        if stage.resources.joins:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _wrapped(stage: Stage, wrapper: type[Wrapper], **traits: Any) -> type[Wrapper]:
    """Returns a class of the stage's name."""
    return type(stage.cls.__name__, (wrapper,), {"stage": stage.cls, **traits})


def _in_one_actor(
    steps: Sequence[type[_ReportingShards]], arguments: Sequence[dict[str, Any]]
) -> tuple[type[Callable[[pa.Table], pa.Table]], dict[str, Any]]:
    """Returns the class of actors that do one or more steps, and its arguments."""
    if len(steps) == 1:
        return steps[0], arguments[0]
    name = "And".join(step.__name__ for step in steps)
    return type(name, (_InOneActor,), {"steps": steps}), {"arguments": arguments}


def _elsewhere(avoided: Collection[str]) -> dict[str, Any]:
    """Returns the options of actors that start on other nodes than these, or anywhere where those
    have no room or are gone: an actor that had to wait for them might wait for ever."""
    if not avoided:
        return {}
    others = {_NODE_ID: f"!in({','.join(sorted(avoided))})"}
    return {"label_selector": others, "fallback_strategy": [{"label_selector": {}}]}


def over(dataset: Dataset, stages: Sequence[Stage], *, batch_rows: int) -> Dataset:
    """Chains the stages over a user's dataset, of which they get about `batch_rows` rows at a
    time; lazy. How its pools grow is up to the context of the dataset, which is the user's."""
    for stage in stages:
        cls, resources = _wrapped(stage, _Reporting), stage.resources
        dataset = _mapped(
            dataset,
            cls,
            stage.arguments,
            resources,
            batch_size=batch_rows,
            actors=resources.actors,
        )
    return dataset


def _mapped(
    dataset: Dataset,
    cls: type[Callable[[pa.Table], pa.Table]],
    arguments: dict[str, Any],
    resources: Resources,
    *,
    batch_size: int,
    actors: int,
    avoided: Collection[str] = (),
) -> Dataset:
    with warnings.catch_warnings():
        # Ray 2.60 has no other way yet to pass the limits than the one that it warns about.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            cls,
            fn_constructor_kwargs=arguments,
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=min(resources.at_first or actors, actors), max_size=actors
            ),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus or None,
            **_elsewhere(avoided),
            max_restarts=_MAX_RESTARTS,
            max_task_retries=_MAX_TASK_RETRIES,
        )
