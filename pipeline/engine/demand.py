"""Pools of actors that grow with the demand of the stage after them.

Ray 2.60 sizes a pool by its own backlog alone: as all shards are submitted at once, it starts every
actor that it may before the first has read a shard, however slow the stage after it is.
"""

from typing import Any

from ray.data import DataContext

try:
    from ray.data._internal.actor_autoscaler import AutoscalingActorPool
    from ray.data._internal.execution import backpressure_policy
    from ray.data._internal.execution.interfaces import PhysicalOperator
    from ray.data._internal.execution.streaming_executor_state import OpState
except ImportError:  # another Ray than 2.60 may keep them elsewhere
    _NEEDED: dict[Any, tuple[str, ...]] = {}
    _Policy: Any = object
else:
    _NEEDED = {
        AutoscalingActorPool: (
            *("min_size", "max_size", "current_size"),
            *("num_tasks_in_flight", "max_tasks_in_flight_per_actor"),
        ),
        PhysicalOperator: ("get_autoscaling_actor_pools", "output_dependencies"),
        OpState: ("total_enqueued_input_blocks",),
        backpressure_policy: (
            "ENABLED_BACKPRESSURE_POLICIES",
            "ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY",
        ),
    }
    _Policy = getattr(backpressure_policy, "BackpressurePolicy", object)


def grow_by_demand(context: DataContext) -> None:
    """Has the pools of a job begin a few actors at a time, as the stage after them waits for
    shards, and keep those that they have.

    A pool grows while the shards in its hands are 1.75 times its actors or more, those that start
    among them; `_Demand` lets it have so many only while few wait for the actors of the next stage.
    A Ray that keeps its own policies elsewhere goes by the backlog.
    """
    scaling = context.autoscaling_config
    # One at a time, until those that start make the shards in hand too few: a seventh of the pool.
    scaling.actor_pool_max_upscaling_delta = 1
    # An actor takes seconds to start, and the readers' results come in waves.
    scaling.actor_pool_util_downscaling_threshold = -1.0
    if _NEEDED and all(hasattr(owner, name) for owner, names in _NEEDED.items() for name in names):
        policies: Any = backpressure_policy
        key = policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
        others = context.get_config(key, policies.ENABLED_BACKPRESSURE_POLICIES)
        context.set_config(key, [*(each for each in others if each is not _Demand), _Demand])


class _Demand(_Policy):  # type: ignore[misc]
    """Limits the shards that a pool which may grow is ahead of the next stage's, those in its hands
    among them, to as many as the actors of both may be given at once."""

    def can_add_input(self, op: Any) -> bool:
        """Tells whether another shard may be given to this operator."""
        growing = [p for p in op.get_autoscaling_actor_pools() if p.min_size() < p.max_size()]
        return all(
            self._topology[after].total_enqueued_input_blocks() + own.num_tasks_in_flight()
            < own.max_tasks_in_flight_per_actor() * own.current_size()
            + next_pool.max_tasks_in_flight_per_actor() * next_pool.current_size()
            for own in growing
            for after in op.output_dependencies
            for next_pool in after.get_autoscaling_actor_pools()
        )
