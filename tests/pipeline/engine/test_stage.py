"""Chains of stages in Ray: blocks stay whole, dead actors come back, a shard that cannot be done is
left out, errors arrive as one line."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray import cloudpickle
from ray.data import DataContext

from pipeline.engine import cluster, dispatch
from pipeline.engine.dispatch import dispatch_shards
from pipeline.engine.shard_result import ShardResult, serialize
from pipeline.engine.stage import Resources, Stage, _ReportingShards
from pipeline.errors import EndOfRun, RunFailed
from pipeline.shards import FileSlice, Plan, Shard, shard_in

# Ray's workers cannot import the file of a test.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

RESOURCES = Resources(num_cpus=0.3)


class Widen:
    """A block of the plan -> the shard's rows, a kilobyte each."""

    def __call__(self, block: pa.Table) -> pa.Table:
        shard = shard_in(block)
        index = pa.array(np.full(shard.rows, shard.index, np.int32))
        return pa.table({"shard": index, "load": pa.array(["x" * 1024] * shard.rows)})


class DieOnce:
    """Passes blocks on; ends its process in the middle of shard 1, unless that was done before."""

    def __init__(self, *, marker: str) -> None:
        self._marker = Path(marker)

    def __call__(self, block: pa.Table) -> pa.Table:
        if 1 in block["shard"].to_pylist() and not self._marker.exists():
            self._marker.touch()
            os._exit(1)
        return block


class NameProcess:
    """Adds its process to those that a block names."""

    def __call__(self, block: pa.Table) -> pa.Table:
        before = block["processes"][0].as_py() if "processes" in block.column_names else []
        return pa.Table.from_pylist([{"processes": [*before, os.getpid()]}])


class WidenSlowly(Widen):
    """Takes a while for a shard's rows, and names its process in each."""

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(0.3)
        rows = super().__call__(block)
        return rows.append_column("process", pa.array([os.getpid()] * rows.num_rows))


class Started:
    """Passes blocks on, each after some seconds; leaves a file in a folder for each process."""

    def __init__(self, *, folder: str, seconds: float) -> None:
        (Path(folder) / str(os.getpid())).touch()
        self._seconds = seconds

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(self._seconds)
        return block


class CountBy:
    """Blocks of rows -> a row for each shard: how many rows, made by which process."""

    def __call__(self, block: pa.Table) -> pa.Table:
        by = block.group_by(["shard", "process"]).aggregate([("load", "count")])
        return by.rename_columns(["shard", "process", "rows"])


class Count:
    """Blocks of rows -> a row for each shard: how many rows there are."""

    def __call__(self, block: pa.Table) -> pa.Table:
        counted = block.group_by("shard").aggregate([("load", "count")])
        return counted.rename_columns(["shard", "rows"])


class Refuse:
    """Raises, in __call__ at some shards or already in __init__."""

    def __init__(self, *, error: Exception, at: tuple[int, ...] | None) -> None:
        self._error, self._at = error, at
        if at is None:
            raise error

    def __call__(self, block: pa.Table) -> pa.Table:
        if set(block["shard"].to_pylist()) & set(self._at):
            raise self._error
        return block


class Stumble:
    """Raises the first time, in __call__ at a shard or already in __init__."""

    def __init__(self, *, marker: str, at: int | None) -> None:
        self._marker, self._at = Path(marker), at
        if at is None:
            self._stumble()

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._at in block["shard"].to_pylist():
            self._stumble()
        return block

    def _stumble(self) -> None:
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return
        raise GONE


class StartOnce:
    """Starts where no other has: each actor after the first is on a node with a broken GPU. Its
    first block takes some seconds."""

    def __init__(self, *, folder: str, seconds: float) -> None:
        self._seconds = seconds
        marker = Path(folder) / str(len(os.listdir(folder)))
        marker.touch(exist_ok=False)
        if marker.name != "0":
            raise RuntimeError("no GPU")

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(self._seconds)
        self._seconds = 0
        return block


class Die:
    """Ends its process at a shard, each time."""

    def __init__(self, *, at: int) -> None:
        self._at = at

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._at in block["shard"].to_pylist():
            os._exit(1)
        return block


def plan_of(*sizes: int) -> Plan:
    shards = (Shard(i, (FileSlice("f", "f", 0, size),)) for i, size in enumerate(sizes))
    return Plan(format="images", shard_size=max(sizes), shards=tuple(shards))


@pytest.fixture
def connected(ray_session, monkeypatch):
    """Ray as a job has it, in a process where somebody wants blocks of a few kilobytes."""
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 4096)
    with cluster.connected(None):
        yield


def stage(cls: type, **arguments: object) -> Stage:
    return Stage(cls, arguments, RESOURCES)


def test_blocks_stay_whole_and_a_dead_actor_is_replaced(connected, tmp_path, capsys):
    """Ray cuts what a stage makes at a size of its own, here 4 KiB, unless it is told not to: a
    shard of 300 rows would be counted in several blocks. The process that has shard 1 dies once."""
    plan = plan_of(1, 300, 7, 40)
    wanted = plan.shards[:3]  # the last is done, as in a run that is resumed
    died = tmp_path / "died"
    stages = [stage(Widen), stage(DieOnce, marker=str(died)), stage(Count)]
    found = list(dispatch_shards(plan, wanted, stages))
    assert died.exists()
    assert sorted((row["shard"], row["rows"]) for row in found) == [(0, 1), (1, 300), (2, 7)]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""  # Ray has much to say about it


def test_a_node_that_is_avoided_is_taken_where_no_other_has_room(connected, monkeypatch):
    """Past bug: where the last of the other nodes went, the run waited for it for six hours."""
    every = [node["NodeID"] for node in ray.nodes()]
    monkeypatch.setattr(dispatch, "away_from", lambda failures, stages, **_: (stages, every))
    plan = plan_of(5, 3)
    found = list(dispatch_shards(plan, plan.shards, [stage(Widen), stage(Count)]))
    assert sorted((row["shard"], row["rows"]) for row in found) == [(0, 5), (1, 3)]


@pytest.mark.slow
def test_readers_become_more_where_they_are_what_limits(connected):
    """Past bug: from the start as many read as there are CPUs, whatever the model needs."""
    plan = plan_of(*[7] * 40)
    grows = Resources(actors=3, num_cpus=0.3, at_first=1)
    stages = [Stage(WidenSlowly, {}, grows), stage(CountBy)]
    found = list(dispatch_shards(plan, plan.shards, stages))
    assert sorted((row["shard"], row["rows"]) for row in found) == [(i, 7) for i in range(40)]
    assert found[0]["process"] == found[1]["process"]
    assert len({row["process"] for row in found}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reading", "model", "fewest", "most"), [(0.02, 0.5, 1, 3), (1, 0.1, 6, 8)]
)
def test_readers_are_as_many_as_the_model_needs(connected, tmp_path, reading, model, fewest, most):
    """Past bug: Ray went by the backlog of the readers alone, and started all at once."""
    plan = plan_of(*[1] * 30)
    grows = Resources(actors=8, num_cpus=0.1, at_first=1)
    readers, models = tmp_path / "readers", tmp_path / "models"
    readers.mkdir()
    models.mkdir()
    stages = [
        Stage(Started, {"folder": str(readers), "seconds": reading}, grows),
        Stage(Started, {"folder": str(models), "seconds": model}, Resources(num_cpus=0.1)),
    ]
    assert len(list(dispatch_shards(plan, plan.shards, stages))) == 30
    assert fewest <= len(list(readers.iterdir())) <= most


def dispatched(plan: Plan, stages: list[Stage]) -> tuple[list[tuple[int, int]], str]:
    """(shard, rows) of what came back before the run failed, and how it did."""
    found = []
    with pytest.raises(RunFailed) as failed:
        found.extend(
            (row["shard"], row["rows"]) for row in dispatch_shards(plan, plan.shards, stages)
        )
    return sorted(found), str(failed.value)


GONE = FileNotFoundError(2, "No such file\n  or directory", "/model")
GONE_LINE = "Refuse: FileNotFoundError: [Errno 2] No such file or directory: '/model'"


def test_shards_that_a_stage_cannot_do_are_named_and_the_others_go_on(connected, capsys):
    """Past bug: one of them ended the run."""
    plan = plan_of(1, 2, 3, 4)
    stages = [stage(Widen), stage(Refuse, error=GONE, at=(1, 3)), stage(Count)]
    found, message = dispatched(plan, stages)
    assert found == [(0, 1), (2, 3)]
    because = [f"{i} because of {GONE_LINE}" for i in (1, 3)]
    assert message in [f"2 of 4 shards failed: 1, 3; {line}" for line in because]
    assert capsys.readouterr().out == ""


def test_a_stage_that_joins_the_one_before_it_runs_in_its_process(connected):
    """Past bug: 100 photographs waited a second for a process that wrote what another had read.
    Which of the two could not do a shard is told as ever."""
    joining = replace(RESOURCES, joins=True)
    refusing = Stage(Refuse, {"error": GONE, "at": (1,)}, joining)
    found, message = dispatched(plan_of(1, 2, 3), [stage(Widen), refusing, stage(Count)])
    assert found == [(0, 1), (2, 3)]
    assert message == f"1 of 3 shards failed: 1; 1 because of {GONE_LINE}"
    processes = [Stage(NameProcess, {}, each) for each in (RESOURCES, RESOURCES, joining)]
    plan = plan_of(1, 1)
    (first, *others) = dispatch_shards(plan, plan.shards, processes)
    a, b, c = first["processes"]
    assert a != b == c
    assert others == [first]


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, None])
def test_what_fails_once_is_tried_once_more(connected, tmp_path, at):
    """A shard as well as the start of one actor of two, as on a node that is not ready yet."""
    marker = tmp_path / "stumbled"
    plan = plan_of(1, 2, 3)
    resources = Resources(actors=2, num_cpus=0.3)
    stumbling = Stage(Stumble, {"marker": str(marker), "at": at}, resources)
    found = list(dispatch_shards(plan, plan.shards, [stage(Widen), stumbling, stage(Count)]))
    assert marker.exists()
    assert sorted((row["shard"], row["rows"]) for row in found) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.slow
def test_where_nothing_can_be_done_the_rest_is_not_tried(connected):
    """And not in a moment: elsewhere shards may be under way that will be done."""
    plan = plan_of(*[1] * 30)
    everything = tuple(range(30))
    stages = [stage(Widen), stage(Refuse, error=GONE, at=everything), stage(Count)]
    begun = time.monotonic()
    found, message = dispatched(plan, stages)
    assert found == []
    assert message.startswith("10 of 30 shards failed, some of them from all over the plan; ")
    assert GONE_LINE in message
    assert time.monotonic() - begun > 1 + 2 + 4 + 8


def test_what_no_shard_could_do_ends_the_run_at_once_in_the_stages_own_words(monkeypatch):
    """As where a model batch does not fit. Past bug: 16 shards tried it, and its next move was
    followed by another one."""
    end = EndOfRun("expected memory, found too little; next: --batch-size 12")
    refuse = type("Refuse", (_ReportingShards,), {"stage": Refuse})(error=end, at=(0,))
    begun = []

    def batches(blocks):
        for index in blocks:
            begun.append(index)
            yield refuse(serialize([ShardResult(index, pa.table({"shard": [index]}))]))

    def in_process(blocks, stages, *, lease, proven, avoided):
        return SimpleNamespace(iter_batches=lambda **_: batches(blocks))

    monkeypatch.setattr(dispatch, "chain", in_process)
    assert dispatched(plan_of(1, 2, 3), [stage(Refuse)]) == ([], str(end))
    assert begun == [0]


def test_an_actor_backs_off_after_failures_but_not_to_pass_on_what_failed_before_it(monkeypatch):
    """Twice as long each time, up to half a minute, until it has done a shard."""
    pauses: list[float] = []
    monkeypatch.setattr("pipeline.engine.stage.time.sleep", pauses.append)
    refuse = type("Refuse", (_ReportingShards,), {"stage": Refuse})(error=GONE, at=(1,))

    def submit(shard: int, failure: str | None = None) -> None:
        block = pa.table({"shard": [shard]})
        refuse(serialize([ShardResult(shard, None if failure else block, failure)]))

    for _ in range(8):
        submit(1)
        submit(2, failure="Earlier: ValueError: no")
    submit(3)
    submit(3)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_an_error_at_the_start_of_a_stage_is_one_line(connected, capsys, monkeypatch):
    """As where a model is gone by the time that an actor starts. Past bug: the line was the end of
    what Ray adds to a message, advice about its settings."""
    logged = io.StringIO()
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # it has the stderr of when it was made
            monkeypatch.setattr(handler, "stream", logged)
    found, message = dispatched(plan_of(1), [stage(Refuse, error=GONE, at=None)])
    assert found == []
    assert message == f"a stage failed: {GONE_LINE}"
    captured = capsys.readouterr()
    assert captured.out == captured.err == logged.getvalue() == ""


@pytest.mark.slow
def test_a_shard_that_kills_its_process_each_time_is_named_and_the_others_go_on(connected):
    """Past bug: it ended the run, and so it did again at each resume."""
    found, message = dispatched(
        plan_of(1, 2, 3, 4, 5), [stage(Widen), stage(Die, at=2), stage(Count)]
    )
    assert found == [(0, 1), (1, 2), (3, 4), (4, 5)]
    assert message.startswith("1 of 5 shards failed: 2; 2 because of a process that died each time")


@pytest.mark.slow
def test_a_place_where_no_actor_can_start_does_not_end_the_run(connected, tmp_path, monkeypatch):
    """Past bug: Ray starts the actor there again at once, and after four times the run was over,
    before another one had done its first shard."""
    monkeypatch.setattr("pipeline.engine.stage._START_BACKOFF_SECONDS", 6.0)
    start = Stage(
        StartOnce, {"folder": str(tmp_path), "seconds": 20.0}, replace(RESOURCES, actors=2)
    )
    plan = plan_of(1, 2, 3)
    done = dispatch_shards(plan, plan.shards, [stage(Widen), start, stage(Count)])
    assert sorted((row["shard"], row["rows"]) for row in done) == [(0, 1), (1, 2), (2, 3)]
    assert len(list(tmp_path.iterdir())) > 2


WITH_A_GPU = """
import sys
sys.path.insert(0, {folder!r})
import json, ray
from test_stage import *
from pipeline.errors import EndOfRun, RunFailed

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
uncounted = Plan("webdataset", 1, tuple(Shard(i, (FileSlice("f", str(n), 0, None),))
                                        for i, n in enumerate({sizes})))
with cluster.connected(None):
    stages = [
        Stage(WidenByName, {{}}, RESOURCES),
        Stage(Seen, {{}}, Resources(num_cpus=0.3, num_gpus=1.0)),
        Stage(Count, {{}}, RESOURCES),
    ]
    print(json.dumps(list(dispatch_shards(uncounted, uncounted.shards, stages))))
"""


class WidenByName:
    """A block of the plan -> as many rows as its file's name says: nobody knew that before."""

    def __call__(self, block: pa.Table) -> pa.Table:
        shard = shard_in(block)
        rows = int(shard.slices[0].name)
        index = pa.array(np.full(rows, shard.index, np.int32))
        return pa.table({"shard": index, "load": pa.array(["x" * 1024] * rows)})


class Seen:
    """Refuses a block that is not one whole shard."""

    def __call__(self, block: pa.Table) -> pa.Table:
        if len(block["shard"].unique()) != 1:
            raise ValueError("shards were put together")
        return block


def test_a_gpu_stage_gets_shards_whole_and_apart_whose_rows_nobody_knew():
    """With a number of rows for a batch, which Ray demands for GPUs, it would wait for that many
    rows, from however many shards, and cut what is longer. The GPU is one in name."""
    sizes = [1, 3000, 2, 1, 500, 1]
    script = WITH_A_GPU.format(folder=os.path.dirname(__file__), sizes=sizes)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted((row["shard"], row["rows"]) for row in found) == list(enumerate(sizes))
