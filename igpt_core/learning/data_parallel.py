"""Training in several processes, each with a copy of the weights and a share of each batch.

They are those of torch.distributed's group; a process without one trains alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from igpt_core.learning.optimizer import Optimizers


def rank() -> int:
    """Returns this process's number in the group, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def n_processes() -> int:
    """Returns the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def in_parallel(objective: nn.Module, optimizer: Optimizers) -> nn.Module:
    """Returns what is called in place of the objective, so that gradients are the mean over the
    group. Weights and the optimizer's state become those of the first process."""
    if n_processes() == 1:
        return objective
    state = [optimizer.state_dict() if rank() == 0 else None]
    distributed.broadcast_object_list(state, device=_device(objective))
    assert state[0] is not None
    optimizer.load_state_dict(state[0])
    return DistributedDataParallel(objective)


def of_first(objective: nn.Module, *numbers: float) -> tuple[float, ...]:
    """Returns the first process's numbers, in each."""
    if n_processes() == 1:
        return numbers
    shared = torch.tensor(numbers, dtype=torch.float64, device=_device(objective))
    distributed.broadcast(shared, 0)
    return tuple(shared.tolist())


def own_share(batch: Sequence[Tensor]) -> list[Tensor]:
    """Returns every n-th row of a batch's tensors, the rank's first; n divides their number, as
    means over shares are the mean over the batch only then."""
    return [part[rank() :: n_processes()] for part in batch]


def mean_loss(loss: Tensor) -> Tensor:
    """Returns the mean () over the group of the losses () of its shares."""
    if n_processes() > 1:
        distributed.all_reduce(loss)
        loss = loss / n_processes()
    return loss


def _device(objective: nn.Module) -> torch.device:
    return next(objective.parameters()).device
