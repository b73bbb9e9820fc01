"""Training: batches, one step, the loop, evaluation."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from igpt_core.errors import check_whole
from igpt_core.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from igpt_core.learning import data_parallel
from igpt_core.learning.optimizer import Optimizers
from igpt_core.learning.scoring import checked_tokens, token_nll
from igpt_core.learning.training_config import TrainingConfig

Integers = NDArray[np.integer[Any]]

GRADIENT_NORM = 1.0


@dataclass
class TrainingState:
    """What a killed run needs to go on: saved and loaded by the caller."""

    step: int = 0
    seconds: float = 0.0

    def capture(self, objective: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
        """Collects the state of a run, for torch.save."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "objective": objective.state_dict(),
            "optimizer": optimizer.state_dict(),
        }


def batches(
    tokens: Integers,
    config: TrainingConfig,
    image_size: int,
    *,
    start: int,
    labels: Integers | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yields batches without end, every epoch in a new order, half of the images flipped: tokens
    (batch_size, T) int64 and, where there are labels, theirs (batch_size,) int64.

    A batch is a function of (seed, its number) alone, so a resumed run sees what the undisturbed
    one would have seen.

    Args:
        tokens: (N, T) colors, T = image_size ** 2, N >= batch_size.
        start: number of the first batch.
        labels: (N,) classes.

    Raises ValueError for another shape or dtype, or a negative start.
    """
    _check_arrays(tokens, labels)
    image_size = check_whole("image_size", image_size, least=1)
    if tokens.shape[1] != image_size**2:
        raise ValueError(
            f"expected images of {image_size} x {image_size} pixels, found {tokens.shape[1]} tokens"
        )
    per_epoch = len(tokens) // config.batch_size
    if per_epoch == 0:
        raise ValueError(
            f"training needs at least one batch of {config.batch_size} images, found {len(tokens)}"
        )
    number = check_whole("start", start, least=0)
    while True:
        epoch, first = divmod(number, per_epoch)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(tokens))
        for index in range(first, per_epoch):
            chosen = order[index * config.batch_size : (index + 1) * config.batch_size]
            batch = tokens[chosen].astype(np.int64)
            if config.flip:
                flips = np.random.default_rng((config.seed, epoch, index)).random(len(batch)) < 0.5
                square = batch.reshape(-1, image_size, image_size)  # a view
                square[flips] = square[flips, :, ::-1]
            if labels is None:
                yield (torch.from_numpy(batch),)
            else:
                yield torch.from_numpy(batch), torch.from_numpy(labels[chosen].astype(np.int64))
            number += 1


def _check_arrays(tokens: Integers, labels: Integers | None) -> None:
    """Raises ValueError for anything else than integer tokens (N, T) and as many labels."""
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise ValueError(
            "expected integer tokens (N, T) of one image at least, found "
            f"{tokens.dtype} {tokens.shape}"
        )
    if labels is None:
        return
    if labels.shape != (len(tokens),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected integer labels ({len(tokens)},), one for each image, found "
            f"{labels.dtype} {labels.shape}"
        )


def train_step(
    objective: nn.Module,
    optimizer: Optimizers,
    batch: Sequence[Tensor],
    *,
    learning_rate: float,
    dtype: torch.dtype,
) -> Tensor:
    """Updates once on a batch that the objective takes; returns the loss before it, () float32."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    reduced = dtype != torch.float32
    with torch.autocast(batch[0].device.type, dtype=dtype if reduced else None, enabled=reduced):
        loss = objective(*batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), GRADIENT_NORM)
    optimizer.step()
    return loss.detach()  # type: ignore[no-any-return]


def train(
    objective: nn.Module,
    optimizer: Optimizers,
    tokens: Integers,
    config: TrainingConfig,
    *,
    image_size: int,
    state: TrainingState,
    on_step: Callable[[TrainingState, Tensor, float], None],
    labels: Integers | None = None,
) -> None:
    """Trains until the bound of `config`, from `state` on; the objective ends in eval mode. Seeds
    torch's global generator.

    In a group of torch.distributed each process trains on its share of every batch; see
    `data_parallel.in_parallel`.

    Args:
        objective: one of igpt_core.learning.objectives; what it trains is trained in place.
        tokens: (N, image_size ** 2) colors.
        on_step: called after each step with the state, the loss () and the learning rate.
        labels: (N,) classes, for an objective that takes them.
    """
    objective.train()
    device = next(objective.parameters()).device
    begun = time.monotonic() - state.seconds
    for batch in batches(tokens, config, image_size, start=state.step, labels=labels):
        progress = config.progress(state.step, state.seconds)
        if progress >= 1.0:
            break
        rate = config.learning_rate_at(state.step, progress)
        # Dropout is a function of (seed, step) too, so that a resumed run has the same.
        torch.manual_seed(_seed(config.seed, state.step, data_parallel.rank()))
        on_device = [part.to(device) for part in data_parallel.own_share(batch)]
        loss = train_step(objective, optimizer, on_device, learning_rate=rate, dtype=config.dtype)
        loss = data_parallel.mean_loss(loss)
        state.step += 1
        state.seconds = time.monotonic() - begun
        if config.minutes is not None:  # all processes end at one step
            state.seconds = data_parallel.of_first(state.seconds, device)
        called = time.monotonic()
        on_step(state, loss, rate)
        begun += time.monotonic() - called  # what is done with a step is no training
    objective.eval()


def _seed(*numbers: int) -> int:
    """Returns a seed of torch's generator of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@torch.inference_mode()
def evaluate(
    model: ImageGPTForCausalImageModeling, tokens: Integers, *, batch_size: int = 16
) -> float:
    """Computes the mean nats per pixel over tokens (N, T), in the precision of the weights.

    Raises ValueError for another shape or dtype, and for tokens that are no colors.
    """
    _check_arrays(tokens, None)
    device = next(model.parameters()).device
    batch_size = check_whole("batch_size", batch_size, least=1)
    total = 0.0
    for first in range(0, len(tokens), batch_size):
        batch = torch.from_numpy(tokens[first : first + batch_size].astype(np.int64))
        total += token_nll(model, batch.to(device)).double().sum().item()
    return total / tokens.size


@torch.inference_mode()
def accuracy(
    model: ImageGPTForImageClassification,
    tokens: Integers,
    labels: Integers,
    *,
    batch_size: int = 16,
) -> float:
    """Computes the share of images (N, T) whose most probable class is their label (N,).

    Raises ValueError for another shape or dtype, and for tokens that are no colors.
    """
    _check_arrays(tokens, labels)
    device = next(model.parameters()).device
    batch_size = check_whole("batch_size", batch_size, least=1)
    right = 0
    for first in range(0, len(tokens), batch_size):
        batch = torch.from_numpy(tokens[first : first + batch_size].astype(np.int64))
        batch = checked_tokens(batch.to(device), model.config.n_colors)
        found = model(batch, use_cache=False).logits.argmax(dim=1).cpu().numpy()
        right += int((found == labels[first : first + batch_size]).sum())
    return right / len(tokens)
