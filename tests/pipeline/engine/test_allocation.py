"""Allocation of a cluster to the stages, and the sizes of shards."""

import pytest
import torch

from pipeline.batch.model import find_device
from pipeline.engine import allocation
from pipeline.engine.allocation import allocate, away_from, reading_shard_size, shard_size
from pipeline.engine.stage import Resources, Stage
from pipeline.errors import UsageError
from pipeline.options import ModelOptions
from pipeline.shards import FileSlice, Plan, Shard


@pytest.fixture
def machine(monkeypatch):
    """Sets the CPUs and GPUs that Ray would report."""

    def has(*, cpus: int, gpus: int = 0) -> None:
        found = {name: float(n) for name, n in (("CPU", cpus), ("GPU", gpus)) if n}
        monkeypatch.setattr(allocation.ray, "cluster_resources", lambda: found)

    return has


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 64, 1000])
@pytest.mark.parametrize("device", [None, "cpu", "cuda"])
@pytest.mark.parametrize(("cpu_actors", "model_actors"), [(None, None), (1, 2), (7, None), (16, 3)])
def test_all_actors_of_a_job_fit_at_once(machine, cpus, device, cpu_actors, model_actors):
    """Else the first stages would hold what the last waits for, and the job would hang."""
    machine(cpus=cpus, gpus=3)
    shares = allocate(device=device, cpu_actors=cpu_actors, model_actors=model_actors)
    stages = [shares.reading, shares.writing] + ([shares.model] if device == "cpu" else [])
    assert all(stage.actors >= 1 and stage.num_cpus > 0 for stage in stages)
    assert sum(stage.actors * stage.num_cpus for stage in stages) < cpus
    assert shares.reading.actors == (cpu_actors or shares.reading.actors)
    if device is None:
        assert shares.model.actors == 0
    else:
        assert shares.model.actors == (model_actors or (3 if device == "cuda" else cpus))
        assert shares.model.num_gpus == (1 if device == "cuda" else 0)
    if device == "cuda":  # else readers that take a node's CPUs first keep them from its GPU
        assert shares.model.num_cpus == 0


def test_more_model_actors_than_gpus_are_refused(machine):
    machine(cpus=8, gpus=1)
    with pytest.raises(UsageError, match="the cluster has 1"):
        allocate(device="cuda", cpu_actors=None, model_actors=2)


def test_gpus_that_are_not_there_are_asked_for_where_a_cluster_may_grow(machine):
    machine(cpus=4, gpus=1)
    shares = allocate(device="cuda", cpu_actors=None, model_actors=8, grows=True)
    assert (shares.model.actors, shares.model.num_gpus) == (8, 1)
    machine(cpus=0)
    shares = allocate(device="cuda", cpu_actors=None, model_actors=8, grows=True)
    assert (shares.reading.actors, shares.writing.actors) == (8, 2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_cluster_without_workers_each_actor_asks_for_a_whole_cpu(machine, device):
    """Shares of a CPU that is not there would all fit on the first machine that comes."""
    machine(cpus=0)
    shares = allocate(device=device, cpu_actors=12, model_actors=2, grows=True)
    assert (shares.reading.actors, shares.reading.num_cpus) == (12, 1)
    assert (shares.writing.actors, shares.writing.num_cpus) == (3, 1)
    assert shares.model.num_cpus == (1 if device == "cpu" else 0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpu_actors", "readers", "writers", "share"),
    [
        (4, 1, 32, 32, 8, 1.0),  # a machine that the job before has left
        (4, 1, None, 8, 2, 1.0),
        (64, 1, None, 63, 15, 0.738),  # CPUs enough are there for all GPUs
        (64, 8, 100, 100, 25, 0.46),  # nothing has to come, and nobody knows whether it could
    ],
)
def test_a_job_that_awaits_gpus_asks_for_cpus_to_feed_them(
    machine, cpus, gpus, cpu_actors, readers, writers, share
):
    """Past bug: 40 actors fitted on the one machine that was still up, and fed eight GPUs."""
    machine(cpus=cpus, gpus=gpus)
    shares = allocate(device="cuda", cpu_actors=cpu_actors, model_actors=8, grows=True)
    assert (shares.reading.actors, shares.writing.actors) == (readers, writers)
    assert (shares.reading.num_cpus, shares.writing.num_cpus) == (share, share)
    assert (shares.model.actors, shares.model.num_cpus, shares.model.num_gpus) == (8, 0, 1)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_job_that_awaits_no_gpus_fits_into_the_cpus_that_are_there(machine, device):
    """Whether a cluster that was joined grows, Ray does not say: on one that does not, actors of a
    whole CPU would wait for ever."""
    machine(cpus=2)
    shares = allocate(device=device, cpu_actors=1, model_actors=1, grows=True)
    allocated = [shares.reading, shares.writing, *([shares.model] if device else [])]
    assert sum(stage.actors * stage.num_cpus for stage in allocated) < 2


@pytest.mark.parametrize(
    ("address", "environment", "grows"),
    [
        (None, "", False),
        ("local", "10.0.0.1:6379", False),
        (None, "10.0.0.1:6379", True),
        ("auto", "", True),
    ],
)
def test_only_a_cluster_that_is_joined_may_grow(monkeypatch, address, environment, grows):
    monkeypatch.setenv("RAY_ADDRESS", environment)
    assert allocation.may_grow(address) == grows


@pytest.mark.parametrize(
    ("cpus", "gpus", "options", "grows", "found"),
    [
        (4, 0, {}, True, "cpu"),
        (4, 1, {}, True, "cuda"),
        (0, 0, {}, True, "expected --device where the cluster has no CPU"),
        (0, 0, {"device": "cpu"}, True, "cpu"),
        (0, 0, {"device": "cuda"}, True, "--model-actors N, for which its autoscaler"),
        (0, 0, {"device": "cuda", "model_actors": 2}, True, "cuda"),
        (4, 0, {"device": "cuda", "model_actors": 2}, False, "found none; next: --device cpu"),
    ],
)
def test_where_a_model_computes(machine, cpus, gpus, options, grows, found):
    machine(cpus=cpus, gpus=gpus)
    if found in ("cpu", "cuda"):
        assert find_device(ModelOptions(**options), grows=grows)[0] == found
    else:
        with pytest.raises(UsageError, match=found):
            find_device(ModelOptions(**options), grows=grows)


@pytest.mark.parametrize(("bf16", "tiles"), [(False, False), (True, False), (False, True)])
def test_a_processor_that_multiplies_bfloat16_is_used_so(machine, monkeypatch, bf16, tiles):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    machine(cpus=4, gpus=0)
    assert find_device(ModelOptions())[1] == ("bfloat16" if bf16 or tiles else "float32")
    assert find_device(ModelOptions(dtype="float32"))[1] == "float32"
    machine(cpus=4, gpus=1)
    assert find_device(ModelOptions())[1] == "bfloat16"


@pytest.mark.parametrize(
    ("rows", "cpus", "expected"),
    [
        (10_000, 2, 64),  # four batches of 16
        (130, 2, 32),  # 8 batches for 2 actors: two shards each, of two
        (128, 2, 32),
        (127, 2, 16),
        (5, 2, 16),  # never less than a batch
    ],
)
def test_shards_are_whole_batches_and_two_for_each_actor(machine, rows, cpus, expected):
    machine(cpus=cpus)
    assert shard_size(rows, 16, "cpu") == expected


@pytest.mark.parametrize(
    ("rows", "cpus", "expected"),
    [
        (1_000_000, 2, 1024),
        (8192, 2, 1024),
        (8191, 2, 1023),
        (1000, 2, 125),  # past bug: one shard, so one of two CPUs had work
        (1000, 64, 16),  # no shard costs more to hand on than to read
        (3, 2, 16),
        (0, 2, 1024),  # nobody has counted them
    ],
)
def test_without_a_model_each_cpu_has_four_shards_where_there_are_the_rows(
    machine, rows, cpus, expected
):
    machine(cpus=cpus)
    assert reading_shard_size(rows, 1024) == expected


def test_without_a_model_all_cpus_read(machine):
    machine(cpus=96)
    shares = allocate(device=None, cpu_actors=None, model_actors=None, plan=plan_of(1_000_000))
    assert (shares.reading.actors, shares.reading.at_first) == (96, None)
    assert allocate(device=None, cpu_actors=None, model_actors=None) == shares  # nobody counted


def plan_of(rows: int, megabytes: int = 0) -> Plan:
    table = FileSlice("a.parquet", "a.parquet", 0, rows, f"size={megabytes << 20} mtime=1")
    return Plan("parquet", rows, (Shard(0, (table,)),))


@pytest.mark.parametrize(
    ("rows", "megabytes", "readers"),
    [(1, 0, 1), (256, 32, 1), (257, 32, 2), (1000, 32, 4), (200, 640, 20), (200, 10_000, 96)],
)
def test_without_a_model_no_reader_starts_for_a_handful_of_rows(machine, rows, megabytes, readers):
    """Past bugs: two readers for 100 photographs, which took longer to start than one to read; one
    reader for 200 pictures of 50 MB."""
    machine(cpus=96)
    plan = plan_of(rows, megabytes)
    shares = allocate(device=None, cpu_actors=None, model_actors=None, plan=plan)
    assert (shares.reading.actors, shares.writing.actors) == (readers, max(1, readers // 4))
    assert shares.writing.joins == (readers == 1)
    asked = allocate(device=None, cpu_actors=8, model_actors=None, plan=plan)
    assert asked.reading.actors == 8
    alone = allocate(device=None, cpu_actors=1, model_actors=None, plan=plan_of(10_000, 320))
    assert not alone.writing.joins  # a store may be slow
    for device in ("cpu", "cuda"):  # a model computes while others read and write
        beside = allocate(device=device, cpu_actors=1, model_actors=1, grows=True, plan=plan)
        assert not beside.writing.joins


@pytest.mark.parametrize(
    ("device", "options", "at_first"),
    [
        ("cuda", {}, (8, 2)),
        ("cpu", {}, (1, 1)),
        ("cuda", {"cpu_actors": 40}, (None, None)),  # as many as the user says
        ("cuda", {"model_actors": 200, "grows": True}, (None, None)),  # machines come for all
    ],
)
def test_with_a_model_readers_are_few_at_first(machine, device, options, at_first):
    """Past bug: 767 readers on eight machines of 96 CPUs, whatever the model stage needed."""
    machine(cpus=96, gpus=8)
    shares = allocate(**{"device": device, "cpu_actors": None, "model_actors": None, **options})
    assert (shares.reading.at_first, shares.writing.at_first) == at_first


def nodes_of(monkeypatch, **resources: dict[str, float]) -> None:
    """Pretends nodes of these names, of which `dead` does not live."""
    nodes = [
        {"NodeID": name, "Alive": name != "dead", "Resources": each}
        for name, each in resources.items()
    ]
    monkeypatch.setattr(allocation.ray, "nodes", lambda: nodes)


@pytest.mark.parametrize(
    ("failures", "n_shards", "avoided", "actors"),
    [
        ({}, 100, "", [4, 1]),
        ({"a": 9}, 100, "a", [2, 1]),  # b holds two of the share of 0.6, and the writer
        ({"a": 9}, 1, "a", [1, 1]),
        ({"a": 9, "b": 2}, 100, "a", [2, 1]),
        ({"a": 9, "b": 9}, 100, "", [4, 1]),  # as much as on each other: the input's or the store's
        ({"dead": 9}, 100, "", [4, 1]),
        ({"a": 9, "dead": 9}, 100, "a", [2, 1]),  # past bug: those of dead nodes hid it
    ],
)
def test_shards_are_tried_again_away_from_nodes_that_stand_out(
    monkeypatch, failures, n_shards, avoided, actors
):
    two = {"CPU": 2.0}
    nodes_of(monkeypatch, a=two, b=two, dead={"CPU": 64.0})
    stages = [Stage(object, {}, Resources(n, num_cpus=0.6)) for n in (4, 1)]
    found, names = away_from(failures, stages, n_shards=n_shards)
    assert names == list(avoided)
    assert [stage.resources.actors for stage in found] == actors


def test_nodes_stand_out_where_failures_are_spread_over_many(monkeypatch):
    """Past bug: the last tries of 64 actors went to 8, as shards had failed on seven nodes."""
    names = "abcdefgh"
    nodes_of(monkeypatch, **{name: {"CPU": 8.0, "GPU": 8.0} for name in names})
    stages = [Stage(object, {}, Resources(64, num_cpus=0, num_gpus=1))]
    spread = dict.fromkeys(names[:7], 3)
    assert away_from(spread, stages, n_shards=999) == (stages, [])
    fewer, avoided = away_from(spread | {"c": 20}, stages, n_shards=999)
    assert avoided == ["c"]
    assert fewer[0].resources.actors == 32


def test_nodes_without_which_there_is_no_room_are_not_avoided(monkeypatch):
    nodes_of(monkeypatch, a={"CPU": 4.0, "GPU": 4.0}, b={"CPU": 4.0, "GPU": 2.0}, c={"CPU": 4.0})
    stages = [Stage(object, {}, Resources(8, num_cpus=0.5))]
    stages += [Stage(object, {}, Resources(6, num_cpus=0, num_gpus=1))]
    found = [away_from(dict.fromkeys(names, 9), stages, n_shards=99) for names in ("a", "b", "ab")]
    actors = [[stage.resources.actors for stage in each] for each, _ in found]
    assert actors == [[2, 1], [4, 3], [8, 6]]
    assert [names for _, names in found] == [["a"], ["b"], []]


def test_more_nodes_than_one_may_stand_out(monkeypatch):
    nodes_of(monkeypatch, **{name: {"CPU": 4.0} for name in "abc"})
    stages = [Stage(object, {}, Resources(3, num_cpus=1.0))]
    (fewer,), avoided = away_from({"a": 9, "b": 9}, stages, n_shards=9)
    assert (fewer.resources.actors, avoided) == (3, ["a", "b"])


def test_a_stage_that_joins_another_needs_no_room(monkeypatch):
    """Past bug: a lone reader that writes was held for two actors, and stayed on a bad node."""
    nodes_of(monkeypatch, a={"CPU": 1.0}, b={"CPU": 1.0})
    stages = [Stage(object, {}, Resources(1, num_cpus=0.9, joins=joins)) for joins in (False, True)]
    assert away_from({"a": 9}, stages, n_shards=9) == (stages, ["a"])


def test_whole_cpus_are_those_of_a_node(monkeypatch):
    """Past bug: of workers of one CPU none had room for an actor that asks for it."""
    nodes_of(monkeypatch, a={"CPU": 1.0}, b={"CPU": 1.0}, c={"CPU": 1.0})
    stages = [Stage(object, {}, Resources(2, num_cpus=1.0))]
    (fewer,), avoided = away_from({"a": 1}, stages, n_shards=9)
    assert (fewer.resources.actors, avoided) == (2, ["a"])
