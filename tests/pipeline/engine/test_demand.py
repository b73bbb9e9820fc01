"""Pools that grow with the demand of the next stage: the rule, on pools of ours."""

from types import SimpleNamespace

import pytest
from ray.data import DataContext

from pipeline.engine import demand
from pipeline.engine.demand import _Demand, grow_by_demand

KEY = "backpressure_policies.enabled"


def operator(*, size: int, least: int = 1, most: int = 8, in_hand: int = 0, after=()):
    """An operator with a pool, two shards an actor."""
    pool = SimpleNamespace(
        min_size=lambda: least,
        max_size=lambda: most,
        current_size=lambda: size,
        num_tasks_in_flight=lambda: in_hand,
        max_tasks_in_flight_per_actor=lambda: 2,
    )
    return SimpleNamespace(
        get_autoscaling_actor_pools=lambda: [pool], output_dependencies=list(after), name=str(size)
    )


def may_add(op, *, waiting: int) -> bool:
    """Asks the policy, with so many shards waiting for each operator after this one."""
    state = SimpleNamespace(total_enqueued_input_blocks=lambda: waiting)
    policy = _Demand.__new__(_Demand)
    policy._topology = type("Topology", (), {"__getitem__": lambda self, key: state})()
    return policy.can_add_input(op)


@pytest.mark.parametrize(
    ("readers", "in_hand", "models", "waiting", "expected"),
    [
        (1, 0, 1, 0, True),
        (1, 2, 1, 1, True),  # the model has not what it may have in hand
        (1, 2, 1, 2, False),
        (1, 1, 1, 3, False),
        (3, 6, 1, 1, True),
        (3, 0, 1, 8, False),
        (1, 2, 0, 0, False),  # no model actor yet: two ahead are enough
        (1, 0, 0, 1, True),
        (4, 8, 8, 15, True),
        (4, 8, 8, 16, False),
    ],
)
def test_readers_are_ahead_by_what_the_actors_of_both_stages_hold(
    readers, in_hand, models, waiting, expected
):
    model = operator(size=models, least=models, most=models)
    reader = operator(size=readers, in_hand=in_hand, after=[model])
    assert may_add(reader, waiting=waiting) is expected


def test_pools_of_one_size_and_last_stages_are_not_limited():
    model = operator(size=1, least=1, most=1)
    assert may_add(operator(size=4, least=4, most=4, in_hand=8, after=[model]), waiting=99)
    assert may_add(operator(size=1, in_hand=99), waiting=99)


def test_the_policies_of_the_process_stay_and_ours_is_added_once():
    theirs = type("Theirs", (), {})
    context = DataContext()
    context.set_config(KEY, [theirs])
    grow_by_demand(context)
    grow_by_demand(context)
    assert context.get_config(KEY) == [theirs, _Demand]


def test_a_ray_that_keeps_its_policies_elsewhere_goes_by_the_backlog(monkeypatch):
    monkeypatch.setitem(demand._NEEDED, SimpleNamespace, ("current_size",))
    context = DataContext()
    grow_by_demand(context)
    assert context.get_config(KEY) is None
    assert context.autoscaling_config.actor_pool_max_upscaling_delta == 1
