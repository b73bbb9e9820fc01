"""Which shards are submitted again, which are named as failed, and when a run is given up; with
stand-ins for Ray's part."""

import random
from collections.abc import Callable, Mapping

import pyarrow as pa
import pytest
import ray
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.engine import dispatch
from pipeline.engine.dispatch import _likely_culprits_last, dispatch_shards
from pipeline.engine.shard_result import ShardResult
from pipeline.engine.stage import Resources, Stage
from pipeline.errors import RunFailed
from pipeline.shards import FileSlice, Plan, Shard, Tries, shard_in

REASON = "Model: ValueError: no"


class Cluster:
    """Two actors that take shards in order: `fails(shard, n)` at the n-th try, `poison` ones end
    their process while the other actor does one more."""

    def __init__(
        self,
        *,
        fails: Callable[[int, int], bool] = lambda shard, n: False,
        poison: set[int],
        node_of: Callable[[int], str | None] = lambda shard: None,
    ) -> None:
        self._fails, self._poison, self._node_of = fails, poison, node_of
        self.failures: list[dict[str, int]] = []  # of each submission, by node
        self.tries: dict[int, int] = {}
        self.submissions = 0
        self.done: set[int] = set()
        self.told: dict[int, list[Tries]] = {}  # of shards that failed

    def __call__(
        self,
        blocks: Mapping[int, pa.Table],
        stages: object,
        lease: object,
        *,
        proven: bool,
        failures: Mapping[str, int],
    ):
        assert proven == bool(self.done)
        self.failures.append(dict(failures))
        self.submissions += 1
        order = list(blocks)
        self._tries = {shard: shard_in(block).tries for shard, block in blocks.items()}
        for place, shard in enumerate(order):
            if shard in self._poison:
                yield from (self._tried(i) for i in order[place + 1 : place + 2] if self._lives(i))
                raise ray.exceptions.ActorDiedError()
            yield self._tried(shard)

    def _lives(self, shard: int) -> bool:
        return shard not in self._poison

    def _tried(self, shard: int) -> ShardResult:
        n = self.tries[shard] = self.tries.get(shard, 0) + 1
        if self._fails(shard, n):
            self.told.setdefault(shard, []).append(self._tries[shard])
            return ShardResult(shard, failure=REASON, node=self._node_of(shard))
        self.done.add(shard)
        return ShardResult(shard, pa.table({"shard": [shard]}))


@pytest.fixture
def run(monkeypatch):
    """Dispatches n shards on such a cluster: (shards done, in order; message of the failure)."""

    def dispatched(
        n: int, done_before: int = 0, actors: int = 2, **traits: object
    ) -> tuple[list[int], str, Cluster]:
        cluster = Cluster(**({"poison": set()} | traits))
        monkeypatch.setattr(dispatch, "_submit", cluster)
        shards = tuple(Shard(i, (FileSlice("f", "f", 0, 1),)) for i in range(n))
        plan = Plan(format="images", shard_size=1, shards=shards)
        done, message = [], ""
        try:
            stage = Stage(object, {}, Resources(actors=actors))
            left = plan.shards[done_before:]
            done.extend(row["shard"] for row in dispatch_shards(plan, left, [stage]))
        except RunFailed as failed:
            message = str(failed)
        return sorted(done), message, cluster

    return dispatched


def test_what_fails_once_is_done_at_the_second_try(run):
    """Past bug: as many failures in a row as a store that was away for a moment gives ended the
    run, however many actors met it."""
    done, message, cluster = run(40, fails=lambda shard, n: 10 <= shard < 19 and n == 1)
    assert (done, message) == (list(range(40)), "")
    assert cluster.submissions == 2


def test_what_failed_is_tried_again_on_other_nodes(run):
    """Past bug: a shard that a node with a full disk could not read was tried there each time."""
    nodes = {3: "one", 7: "other", 11: "other"}
    done, _, cluster = run(40, fails=lambda shard, n: shard in nodes and n == 1, node_of=nodes.get)
    assert done == list(range(40))
    assert cluster.failures == [{}, {"other": 2, "one": 1}]


@pytest.mark.parametrize("n", [11, 13, 15])
def test_many_that_fail_at_the_end_of_the_plan_have_their_last_try(run, n):
    """They may be done then: as error rows of a host that is gone."""
    done, message, _ = run(60, fails=lambda shard, tries: shard >= 60 - n and tries == 1)
    assert (done, message) == (list(range(60)), "")


@pytest.mark.parametrize("n", [9, 12])
def test_what_fails_twice_is_named_all_of_it(run, n):
    """Past bug: the second try forgot what had failed, counted on, and said that the rest had not
    been tried."""
    bad = set(range(0, 4 * n, 4))
    done, message, cluster = run(60, fails=lambda shard, _: shard in bad)
    assert done == sorted(set(range(60)) - bad)
    named = "0, 4, 8, 12, 16, 20, 24, 28, 32" + (", 36, ..." if n > 10 else "")
    assert message == f"{n} of 60 shards failed: {named}; 0 because of {REASON}"
    assert max(cluster.tries[shard] for shard in bad) == 2


def test_a_run_whose_shards_all_fail_is_given_up(run):
    """Five for each of the two actors, and five from anywhere in what is left."""
    random.seed(1)
    done, message, cluster = run(60, fails=lambda shard, _: shard >= 20)
    assert done == list(range(20))
    assert message.startswith(
        "15 of 60 shards failed, some of them from all over the plan; the rest was not tried: "
        "20, 21, 22,"
    )
    assert cluster.submissions == 2
    assert max(cluster.tries) > 38
    assert max(cluster.tries.values()) == 1


def test_one_actor_too_tries_shards_from_all_over_the_plan_once(run):
    """Past bug: the fifth of them that failed chose five others, and so on to the end."""
    done, message, cluster = run(30, actors=1, fails=lambda shard, _: True)
    assert (done, cluster.submissions) == ([], 2)
    assert message.startswith("10 of 30 shards failed, some of them from all over the plan; ")


@pytest.mark.parametrize("bad", [range(10), range(30), range(100, 300), range(990, 1000)])
def test_shards_that_cannot_be_read_do_not_keep_the_others_from_being_done(run, bad):
    """Past bug: ten of them at the start of a thousand ended each start of the run, with nothing
    done."""
    random.seed(1)
    done, message, cluster = run(1000, fails=lambda shard, _: shard in bad)
    assert done == sorted(set(range(1000)) - set(bad))
    assert " of 1000 shards failed" in message
    assert cluster.submissions < 20


def test_what_a_bad_node_takes_again_is_tried_until_no_more_is_done(run):
    """A node whose disk is full takes half of the shards each time."""
    done, message, cluster = run(40, fails=lambda shard, n: shard < 8 and n <= shard // 2 + 1)
    assert (done, message) == (list(range(40)), "")
    assert cluster.submissions == 5


def test_what_failed_is_told_that_it_is_tried_for_the_last_time(run):
    _, _, cluster = run(40, fails=lambda shard, n: shard == 3)
    assert cluster.told == {3: [Tries.MORE, Tries.LAST_AMONG_DONE]}
    _, _, cluster = run(1, fails=lambda shard, n: True)
    assert cluster.told == {0: [Tries.MORE, Tries.LAST]}
    _, _, cluster = run(2, done_before=1, fails=lambda shard, n: True)
    assert cluster.told == {1: [Tries.MORE, Tries.LAST_AMONG_DONE]}


@pytest.mark.parametrize("poison", [{0}, {39}, {5, 11}, {5, 6}, {0, 1, 2}, set(range(5, 40, 6))])
def test_shards_that_their_process_dies_of_are_named_and_the_others_done(run, poison):
    """Past bug: two of them ended the run, which named neither, at each resume again."""
    done, message, _ = run(40, poison=poison)
    assert done == sorted(set(range(40)) - poison)
    named = ", ".join(map(str, sorted(poison)))
    assert message.startswith(f"{len(poison)} of 40 shards failed: {named}; ")
    assert "because of a process that died each time: ActorDiedError" in message


def test_a_run_whose_processes_all_die_is_given_up(run):
    done, message, cluster = run(1000, poison=set(range(1000)))
    assert done == []
    assert message.startswith("a stage failed: processes died, ActorDiedError")
    assert cluster.submissions == 4


def test_a_cluster_on_which_processes_begin_to_die_is_given_up(run):
    done, message, cluster = run(1000, poison=set(range(500, 1000)))
    assert done == list(range(500))
    assert message.startswith("15 of 1000 shards failed, some of them from all over the plan; ")
    assert cluster.submissions < 60


def raising(error: Exception) -> Callable:
    def refused(*_: object, **named: object):
        raise error
        yield

    return refused


def test_a_failure_at_the_start_of_a_stage_ends_the_run_before_anything_is_done(run, monkeypatch):
    error = ray.exceptions.RayError(f"...\npipeline.stage.StageError: {REASON}\n  advice")
    monkeypatch.setattr(Cluster, "__call__", raising(error))
    assert run(3)[:2] == ([], f"a stage failed: {REASON}")


def test_a_node_where_no_actor_can_start_does_not_end_a_run_that_gets_on(run, monkeypatch):
    error = ray.exceptions.RayError(f"...\npipeline.stage.StageError: {REASON}\n  advice")
    tried = Cluster.__call__

    def ends_early(self, blocks, *rest, **named):
        first = dict(list(blocks.items())[:2])
        yield from tried(self, first, *rest, **named)
        if len(blocks) > len(first):
            raise error

    monkeypatch.setattr(Cluster, "__call__", ends_early)
    done, message, cluster = run(5)
    assert (done, message, cluster.submissions) == ([0, 1, 2, 3, 4], "", 3)


def test_a_cluster_on_which_no_actor_can_start_any_more_ends_the_run(run, monkeypatch):
    error = ray.exceptions.RayError(f"...\npipeline.stage.StageError: {REASON}\n  advice")
    tried = Cluster.__call__

    def breaks(self, blocks, *rest, **named):
        if not self.done:
            yield from tried(self, dict(list(blocks.items())[:2]), *rest, **named)
        raise error

    monkeypatch.setattr(Cluster, "__call__", breaks)
    done, message, _ = run(5)
    assert (done, message) == ([0, 1], f"a stage failed: {REASON}")


def test_a_run_that_stood_still_as_long_as_it_may_ends(run, monkeypatch):
    """Past bug: what was left was submitted again, so it stood still several times as long."""
    monkeypatch.setattr(Cluster, "__call__", raising(ExecutionTimeoutError("no progress")))
    done, message, _ = run(3)
    assert done == []
    assert message.startswith("no shard got on for 6 hours")


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        ({0}, [1, 2, 3, 4]),
        ({0, 3}, [4, 1, 2]),
        ({4}, [0, 1, 2, 3]),
        ({2, 4}, [0, 1, 3]),
        ({0, 1, 2, 3, 4}, []),
    ],
)
def test_what_was_submitted_before_the_last_that_came_back_comes_last(back, expected):
    assert _likely_culprits_last(range(5), back) == expected
