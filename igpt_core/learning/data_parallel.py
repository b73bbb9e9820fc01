"""Training in several processes, each with a copy of the weights and a share of each batch.

They are those of torch.distributed's group; a process without one trains alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Returns this process's number in the group, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def n_processes() -> int:
    """Returns the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def in_parallel(objective: nn.Module) -> nn.Module:
    """Returns what is called in place of the objective, so that gradients are the mean over the
    group; its weights become those of the first process."""
    return objective if n_processes() == 1 else DistributedDataParallel(objective)


def own_share(batch: Sequence[Tensor]) -> list[Tensor]:
    """Returns every n-th row of a batch's tensors, the rank's first.

    Raises ValueError unless n divides their number: means over shares are the mean over the batch
    only then.
    """
    if len(batch[0]) % n_processes():
        raise ValueError(
            f"expected a batch that {n_processes()} processes can share, found {len(batch[0])} rows"
        )
    return [part[rank() :: n_processes()] for part in batch]


def mean_loss(loss: Tensor) -> Tensor:
    """Returns the mean () over the group of the losses () of its shares."""
    if n_processes() > 1:
        distributed.all_reduce(loss)
        loss = loss / n_processes()
    return loss


def of_first(number: float, device: torch.device) -> float:
    """Returns the first process's number, in each."""
    if n_processes() == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.broadcast(shared, 0)
    return shared.item()
