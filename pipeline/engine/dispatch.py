"""Dispatch of shards to the stages until each is done, or is known to fail."""

import logging
import random
import re
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from math import inf
from typing import Any

import pyarrow as pa
import ray
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.engine.allocation import away_from
from pipeline.engine.cluster import STALLED_SECONDS, silence_stdout
from pipeline.engine.shard_result import NOT_BEGUN, ShardResult, deserialize
from pipeline.engine.stage import Stage, StageError, chain
from pipeline.errors import RunFailed, StageGaveUp
from pipeline.run_directory.lease import Lease
from pipeline.shards import Plan, Shard, for_last_try
from pipeline.storage.redact import redacted_error

# The circuit breaker, for each actor: shards that fail one after the other, none between them done.
# A disk is full then, a store is gone or a model broken; or a stretch of the input is bad. So some
# from all over the plan are tried, at least so many, before the run ends. Actors back off longer
# after each failure, so some time has passed.
_BREAKER_FAILURES = 5
_BREAKER_PROBES = 5
# The same of submissions of several shards, at the start of a run, that are aborted by dead
# processes before any shard is done.
_BREAKER_ABORTS = 4
# Shards that Ray has at a time: the driver holds some 13 KB for each (benchmarks/scale.py). Actors
# start anew for each submission, which is little beside 20,000 shards.
_SUBMITTED_SHARDS = 20_000
_NAMED = 10  # shards that failed

_log = logging.getLogger(__name__)


def dispatch_shards(
    plan: Plan,
    shards: Sequence[Shard],
    stages: Sequence[Stage],
    *,
    lease: Lease | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Submits shards to the stages and yields the rows that the last of them makes, as they come.

    A shard that a stage cannot do is left out and the others go on; at the end it is tried again
    (`shards.for_last_try`), on other nodes where there are some, as long as one of those is done.
    Where many fail in a row, shards from all over the plan are tried next: the others go on where
    one of them is done. Where processes have died more often than Ray brings them back, what is
    left is submitted again, the likely culprits last and in the end one by one: so a poison shard
    is found.

    Args:
        lease: where it says so, no shard is begun any more, and the rest is left out.

    Raises:
        StageGaveUp: a stage can do no shard with the options of this run.
        RunFailed: without a next move, at the end where shards failed, and as soon as the circuit
            breaker trips.
    """
    table = plan.to_table().replace_schema_metadata(None)  # once for each shard
    row_of = {shard.index: row for row, shard in enumerate(plan.shards)}
    actors = max(min(stage.resources.actors, len(shards)) for stage in stages) if shards else 0
    queue = _Queue([shard.index for shard in shards], actors=actors)
    while (order := queue.next_submission()) and (lease is None or lease.may_begin()):
        back: set[int] = set()
        blocks = {index: table.slice(row_of[index], 1) for index in order}
        if queue.tries_last:
            proven = queue.begun or len(shards) < len(plan.shards)  # earlier, or now
            blocks = {i: for_last_try(block, proven=proven) for i, block in blocks.items()}
        try:
            submitted = _submit(
                blocks, stages, lease, proven=queue.begun, failures=queue.failures_on(order)
            )
            with closing(submitted) as results:
                for result in results:
                    back.add(result.shard)
                    if result.block is not None:
                        queue.mark_done(result.shard)
                        yield from result.block.to_pylist()
                    elif result.ends_run:
                        raise StageGaveUp(result.failure)
                    elif result.failure != NOT_BEGUN:
                        queue.note_failure(result.shard, str(result.failure), result.node)
                        if queue.tripped:
                            break
            if queue.tripped:
                queue.probe([index for index in order if index not in back])
        except ExecutionTimeoutError as error:
            raise RunFailed(
                f"no shard got on for {STALLED_SECONDS / 3600:g} hours, as where the cluster has "
                "no room for an actor of each stage"
            ) from error
        except ray.exceptions.RayError as error:
            queue.requeue(order, back, error)
            if queue.tripped:
                queue.probe([])
    queue.check()


def _submit(
    blocks: Mapping[int, pa.Table],
    stages: Sequence[Stage],
    lease: Lease | None,
    *,
    proven: bool,
    failures: Mapping[str, int],
) -> Generator[ShardResult, None, None]:
    """Runs the blocks through the stages once, as Ray does it, away from nodes on which more of
    them have failed than on others. Raises RayError.

    Args:
        failures: how many of them have failed on each node, by its id.
    """
    stages, avoided = away_from(failures, stages, n_shards=len(blocks))
    dataset = chain(blocks, stages, lease=lease, proven=proven, avoided=avoided)
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


class _Queue:
    """The shards that are still to be submitted, and those that failed, with the reasons."""

    def __init__(self, indices: Sequence[int], *, actors: int) -> None:
        """Queues all shards; `actors`: of the stage that has the most."""
        self._n, self._most_in_a_row = len(indices), _BREAKER_FAILURES * actors
        self._n_probes = max(_BREAKER_PROBES, actors)
        self._submissions = deque(_submissions(indices))
        self._failures: dict[int, str] = {}
        self._failed_on: dict[int, set[str]] = {}  # nodes, of the failures
        self._poison: set[int] = set()  # of the failures: shards that their process died of
        self._failed_in_a_row = self._aborts = 0
        self._probes: list[int] = []
        self._waiting: list[int] = []  # for the probes, which are among them
        self._probes_left = 0
        self._tried_last: float = inf  # how many shards were
        self.tries_last = False  # whether what is submitted is tried for the last time
        self.begun = False  # whether a shard is done

    @property
    def tripped(self) -> bool:
        """Returns whether so many failed in a row that others are to be tried in their place."""
        return not self._probes_left and self._failed_in_a_row >= self._most_in_a_row

    def next_submission(self) -> list[int]:
        """Takes the shards to submit next; none where all are done, or none of those that have
        failed was done when they were tried again."""
        if self._waiting and not self._submissions:
            self._submissions.extend(_submissions(self._after_probes()))
        again = sorted(self._failures.keys() - self._poison)
        if not self._submissions and len(again) < self._tried_last:
            # On another node, at another time. One whose disk is full may have taken some again.
            self.tries_last, self._tried_last = True, len(again)
            self._failed_in_a_row = 0
            self._submissions.extend(_submissions(again))
        return self._submissions.popleft() if self._submissions else []

    def mark_done(self, shard: int) -> None:
        """Notes a shard as done; a failure of an earlier try is dropped."""
        self._failures.pop(shard, None)
        self.begun, self._failed_in_a_row, self._probes_left = True, 0, 0

    def failures_on(self, shards: Sequence[int]) -> Counter[str]:
        """Counts these shards' failures on each node, by its id."""
        return Counter(node for shard in shards for node in self._failed_on.get(shard, ()))

    def note_failure(self, shard: int, reason: str, node: str | None = None) -> None:
        """Notes a failure. Raises RunFailed where probes, unless nothing else is left, or the last
        tries fail too."""
        _log.warning("shard %d: %s", shard, reason)
        self._failures[shard] = reason
        if node is not None:
            self._failed_on.setdefault(shard, set()).add(node)
        self._failed_in_a_row += 1
        if self._probes_left:
            self._probes_left -= 1
            if not self._probes_left and len(self._waiting) > len(self._probes):
                raise self._failed(", some of them from all over the plan; the rest was not tried")
        elif self.tries_last and self.tripped:
            raise self._failed()

    def probe(self, left: Sequence[int]) -> None:
        """Queues shards from anywhere among all that were not tried, others at each start; the rest
        waits for them.

        Args:
            left: of the submission in which too many failed in a row.
        """
        waiting = [*left, *(index for order in self._submissions for index in order)]
        self._waiting += waiting
        n = min(len(self._waiting), self._n_probes)
        places = sorted(random.sample(range(len(self._waiting)), n))
        self._probes = [self._waiting[place] for place in places]
        self._failed_in_a_row, self._probes_left = 0, n
        self._submissions = deque([list(self._probes)] if n else [])

    def _after_probes(self) -> list[int]:
        """Takes what waited for probes: from the first on that was done, and then what lies before
        it, backwards, towards where so many failed."""
        done = next((i for i in self._probes if i not in self._failures), None)
        at = 0 if done is None else self._waiting.index(done)
        probes, order = set(self._probes), [*self._waiting[at:], *reversed(self._waiting[:at])]
        self._probes, self._waiting = [], []
        return [index for index in order if index not in probes]

    def requeue(self, order: Sequence[int], back: Collection[int], error: Exception) -> None:
        """Queues again what an error of Ray's has aborted. Raises RunFailed where it is no use."""
        if not back and (reported := _reported(error)):  # actors could not start
            raise RunFailed(f"a stage failed: {reported}") from error
        left = _likely_culprits_last(order, back)
        if left:
            _log.warning("submitted again, %d shards: %s", len(left), redacted_error(error))
        if back:
            self._submissions.extend([left] if left else [])
        elif len(left) == 1:
            self._poison.add(left[0])
            self.note_failure(left[0], f"a process that died each time: {redacted_error(error)}")
        else:
            self._aborts += not (self.begun or self._poison)
            if self._aborts == _BREAKER_ABORTS:
                raise RunFailed(
                    f"a stage failed: processes died, {redacted_error(error)}"
                ) from error
            half = len(left) // 2  # what was submitted first is the more likely culprit
            self._submissions.extendleft([left[:half], left[half:]])

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


def _submissions(indices: Sequence[int]) -> Iterator[list[int]]:
    """Cuts shards into what Ray has at a time."""
    for at in range(0, len(indices), _SUBMITTED_SHARDS):
        yield list(indices[at : at + _SUBMITTED_SHARDS])


def _likely_culprits_last(order: Sequence[int], back: Collection[int]) -> list[int]:
    """Orders what did not come back: at the end what was submitted before the last that did. One
    of those may be the poison shard."""
    last = max((place for place, index in enumerate(order) if index in back), default=-1)
    culprits = [index for index in order[: last + 1] if index not in back]
    return [*order[last + 1 :], *culprits]


def _reported(error: BaseException) -> str | None:
    """Finds the stage's own error among Ray's many lines around it."""
    found = re.findall(rf"{StageError.__name__}: (.+)", str(error))
    return found[-1] if found else None
