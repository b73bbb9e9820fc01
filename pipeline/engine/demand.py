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
        AutoscalingActorPool: ("min_size", "max_size", "current_size", "num_tasks_in_flight"),
        PhysicalOperator: ("get_autoscaling_actor_pools", "output_dependencies"),
        OpState: ("total_enqueued_input_blocks",),
        backpressure_policy: (
            "ENABLED_BACKPRESSURE_POLICIES",
            "ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY",
        ),
    }
    _Policy = getattr(backpressure_policy, "BackpressurePolicy", object)

# Ray gives an actor so many shards: one to work at and one that waits.
_IN_FLIGHT = 2


def grow_by_demand(context: DataContext) -> None:
    """Has the pools of a job begin one actor after the other, each as the stage after them waits
    for shards, and keep those that they have.

    A pool grows where all its actors have `_IN_FLIGHT` shards, which `_Demand` lets them have only
    while less than as many wait for the actors of the next stage. A Ray that keeps its own policies
    elsewhere goes by the backlog.
    """
    scaling = context.autoscaling_config
    # By one while another starts: what that one does is seen before the next is asked for.
    scaling.actor_pool_max_upscaling_delta = 1
    # An actor takes seconds to start, and the readers' results come in waves.
    scaling.actor_pool_util_downscaling_threshold = -1.0
    if _NEEDED and all(hasattr(owner, name) for owner, names in _NEEDED.items() for name in names):
        policies: Any = backpressure_policy
        context.set_config(
            policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
            [*policies.ENABLED_BACKPRESSURE_POLICIES, _Demand],
        )


class _Demand(_Policy):  # type: ignore[misc]
    """Limits the shards that a pool which may grow is ahead of the next stage's, those that it has
    in hand among them, to `_IN_FLIGHT` for each actor of both."""

    def can_add_input(self, op: Any) -> bool:
        """Tells whether another shard may be given to this operator."""
        growing = [p for p in op.get_autoscaling_actor_pools() if p.min_size() < p.max_size()]
        return all(
            self._topology[after].total_enqueued_input_blocks() + own.num_tasks_in_flight()
            < _IN_FLIGHT * (own.current_size() + next_pool.current_size())
            for own in growing
            for after in op.output_dependencies
            for next_pool in after.get_autoscaling_actor_pools()
        )
