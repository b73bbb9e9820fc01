"""Hands shards out to the stages, in rounds, until each is done or is known not to be doable."""

import logging
import re
from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import pyarrow as pa
import ray
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.engine.cluster import STALLED_SECONDS, silence_stdout
from pipeline.engine.stage import NOT_BEGUN, ShardResult, Stage, StageError, chain, deserialize
from pipeline.errors import RunFailed, StageGaveUp
from pipeline.run_directory.lease import Lease
from pipeline.shards import Plan, Shard
from pipeline.storage.redact import redacted_line

# Shards that fail one after the other, none between them done, for each actor: a disk is full then,
# a store is gone or a model broken. Actors rest longer after each, so some time has passed.
_HOPELESS_SHARDS = 5
# Rounds of several shards, at the begin of a run, that end with dead processes and bring nothing.
_HOPELESS_ROUNDS = 4
# Shards that Ray has at a time: the driver holds some 13 KB for each (benchmarks/scale.py). Between
# two rounds the actors start anew, which is little beside 20,000 shards.
_ROUND = 20_000
_NAMED = 10  # shards that failed

_log = logging.getLogger(__name__)


def consume(
    plan: Plan,
    shards: Sequence[Shard],
    stages: Sequence[Stage],
    *,
    lease: Lease | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Hand the shards out to the stages; the rows that the last of them makes, as they come.

    A shard that a stage cannot do is left out and the others go on; at the end it is tried once
    more. Where processes have died more often than Ray brings them back, what is left is handed out
    anew, the shards that may be the reason last and in the end one by one.

    Args:
        lease: where it says so, no shard is begun any more, and the rest is left out.

    Raises StageGaveUp; RunFailed, without a next move, at the end where shards failed, and as soon
    as it looks hopeless.
    """
    table = plan.to_table()
    row_of = {shard.index: row for row, shard in enumerate(plan.shards)}
    actors = max(min(stage.resources.actors, len(shards)) for stage in stages) if shards else 0
    work = _Work([shard.index for shard in shards], actors=actors)
    while (order := work.next_round()) and (lease is None or lease.may_begin()):
        back: set[int] = set()
        blocks = {index: table.slice(row_of[index], 1) for index in order}
        try:
            with closing(_round(blocks, stages, lease, proven=work.begun)) as results:
                for result in results:
                    back.add(result.shard)
                    if result.block is not None:
                        work.is_done(result.shard)
                        yield from result.block.to_pylist()
                    elif result.ends_run:
                        raise StageGaveUp(result.failure)
                    elif result.failure != NOT_BEGUN:
                        work.has_failed(result.shard, str(result.failure))
        except ExecutionTimeoutError as error:
            raise RunFailed(
                f"no shard got on for {STALLED_SECONDS / 3600:g} hours, as where the cluster has "
                "no room for an actor of each stage"
            ) from error
        except ray.exceptions.RayError as error:
            work.broke_off(order, back, error)
    work.check()


def _round(
    blocks: Mapping[int, pa.Table], stages: Sequence[Stage], lease: Lease | None, *, proven: bool
) -> Generator[ShardResult, None, None]:
    """The blocks through the stages once, as Ray does it. Raises RayError."""
    dataset = chain(blocks, stages, lease=lease, proven=proven)
    results: Any = iter(
        dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    try:
        while (result := silence_stdout(next, results, None)) is not None:
            yield from deserialize(result)
    finally:
        # Of processes that are not needed any more.
        with suppress(ray.exceptions.RayError, ExecutionTimeoutError):
            silence_stdout(results.close)


class _Work:
    """What is still to be handed out, and what failed and why."""

    def __init__(self, indices: Sequence[int], *, actors: int) -> None:
        """`actors`: of the stage that has the most."""
        self._n, self._most_in_a_row = len(indices), _HOPELESS_SHARDS * actors
        self._rounds = deque(
            list(indices[at : at + _ROUND]) for at in range(0, len(indices), _ROUND)
        )
        self._failures: dict[int, str] = {}
        self._deadly: set[int] = set()  # of the failures: shards that their process died of
        self._in_a_row = self._in_vain = 0
        self._tried_again = False
        self.begun = False  # whether a shard is done

    def next_round(self) -> list[int]:
        """The shards to hand out; none: all are done or have failed twice."""
        again = sorted(self._failures.keys() - self._deadly)
        if again and not self._rounds and not self._tried_again:
            self._tried_again = True  # on another node, at another time
            self._in_a_row = 0
            self._rounds.append(again)
        return self._rounds.popleft() if self._rounds else []

    def is_done(self, shard: int) -> None:
        self._failures.pop(shard, None)
        self.begun, self._in_a_row = True, 0

    def has_failed(self, shard: int, reason: str) -> None:
        """Raises RunFailed where that happens too often."""
        _log.warning("shard %d: %s", shard, reason)
        self._failures[shard] = reason
        self._in_a_row += 1
        if self._in_a_row == self._most_in_a_row:
            raise self._failed("" if self._tried_again else ", and the rest was not tried")

    def broke_off(self, order: Sequence[int], back: Collection[int], error: Exception) -> None:
        """A round ended with an error of Ray's. Raises RunFailed where it is no use to go on."""
        if not back and (reported := _reported(error)):  # actors could not start
            raise RunFailed(f"a stage failed: {reported}") from error
        left = _suspects_last(order, back)
        if left:
            _log.warning("handed out anew, %d shards: %s", len(left), _begin(error))
        if back:
            self._rounds.extend([left] if left else [])
        elif len(left) == 1:
            self._deadly.add(left[0])
            self.has_failed(left[0], f"a process that died each time: {_begin(error)}")
        else:
            self._in_vain += not (self.begun or self._deadly)
            if self._in_vain == _HOPELESS_ROUNDS:
                raise RunFailed(f"a stage failed: processes died, {_begin(error)}") from error
            half = len(left) // 2  # what was handed out first is the likelier reason
            self._rounds.extendleft([left[:half], left[half:]])

    def check(self) -> None:
        """Raises RunFailed where a shard has failed."""
        if self._failures:
            raise self._failed()

    def _failed(self, how: str = "") -> RunFailed:
        named = ", ".join(map(str, sorted(self._failures)[:_NAMED]))
        more = ", ..." if len(self._failures) > _NAMED else ""
        index, reason = next(iter(self._failures.items()))
        return RunFailed(
            f"{len(self._failures)} of {self._n} shards failed{how}: {named}{more}; "
            f"{index} because of {reason}"
        )


def _suspects_last(order: Sequence[int], back: Collection[int]) -> list[int]:
    """What did not come back, in order, but at the end what was handed out before the last that
    did: one of those may be what processes die of."""
    last = max((place for place, index in enumerate(order) if index in back), default=-1)
    suspects = [index for index in order[: last + 1] if index not in back]
    return [*order[last + 1 :], *suspects]


def _reported(error: BaseException) -> str | None:
    """The stage's own error out of Ray's many lines around it."""
    found = re.findall(rf"{StageError.__name__}: (.+)", str(error))
    return found[-1] if found else None


def _begin(error: BaseException) -> str:
    return f"{type(error).__name__}: {redacted_line(error)}"
