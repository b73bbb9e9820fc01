"""Drawing pixels for the rows of a block: batches of equal prompts, the likeliest of several."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.generation.decoding import Pinned, complete
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.learning.scoring import token_nll
from pipeline.stages.model_batches import ComputePlan


@dataclass(frozen=True)
class Prompt:
    """What the model is given of N images.

    `tokens` (N, T) uint16, of which the first `lengths` (N,) are the prompt; `pinned` (N, T) bool
    are those known beyond it, None where there are none.
    """

    tokens: NDArray[np.uint16]
    lengths: NDArray[np.int32]
    pinned: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Samples:
    """Images (N, S, T) uint16 and, where asked for, nats per generated pixel (N, S) float32."""

    samples: NDArray[np.uint16]
    nll: NDArray[np.float32] | None


@dataclass(frozen=True)
class Drawing:
    """How pixels are drawn.

    Attributes:
        n_samples: images made of each row.
        n_drawn: drawn for each row; the `n_samples` likeliest are kept, the likeliest first.
        scored: whether nats are computed.
        seed: of the run; with a row's id it makes the row's seed.
        sampling: how a pixel is drawn.
    """

    n_samples: int
    n_drawn: int
    scored: bool
    seed: int
    sampling: SamplingConfig


class Sampler:
    """A causal model that completes images.

    Args:
        compute_plan: the model, which has a next-pixel head.
        drawing: how it draws.
    """

    def __init__(self, compute_plan: ComputePlan, drawing: Drawing) -> None:
        self._compute_plan, self._model = compute_plan, compute_plan.load(head="causal")
        self._drawing = drawing

    def paint(self, given: Prompt, ids: list[str]) -> Samples:
        """Finish the images; each depends on what is given of it and on its id alone."""
        n_rows, n_positions = given.tokens.shape
        samples = np.empty((n_rows, self._drawing.n_samples, n_positions), np.uint16)
        nll = np.empty((n_rows, self._drawing.n_samples), np.float32)
        seeds = np.array([row_seed(self._drawing.seed, id_) for id_ in ids], np.int64)
        for rows, drawn, nats in self._batches(given, seeds):
            samples[rows] = drawn[: len(rows)].cpu().numpy()
            if nats is not None:
                nll[rows] = nats[: len(rows)].float().cpu().numpy()
        return Samples(samples, nll if self._drawing.scored else None)

    @torch.inference_mode()
    def _batches(
        self, given: Prompt, seeds: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor | None]]:
        """(rows, samples, nats) of each model batch. All rows of a batch stand at one position, so
        those with prompts of one length are computed together."""
        pinned = np.zeros_like(given.tokens, bool) if given.pinned is None else given.pinned
        for length in np.unique(given.lengths):
            rows = np.flatnonzero(given.lengths == length)
            arrays = (given.tokens[rows], pinned[rows], seeds[rows])
            draw = partial(self._draw, length=int(length), pins=given.pinned is not None)
            for place, (drawn, nats) in self._compute_plan.in_batches(draw, *arrays):
                yield rows[place], drawn, nats

    def _draw(
        self, image: Tensor, known: Tensor, seeds: Tensor, *, length: int, pins: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Images (B, S, T) and their nats (B, S) of one model batch.

        Args:
            image: (B, T), of which the first `length` pixels are given, and with `pins` the
                `known` (B, T) ones.
            seeds: (B,).
        """
        how, known = self._drawing, known.bool()
        drawn = complete(
            self._model,
            image[:, :length],
            n_positions=image.shape[1],
            seeds=seeds,
            sampling=how.sampling,
            n_samples=how.n_drawn,
            pinned=Pinned(image, known) if pins else None,
        )
        nats = None
        if how.scored:
            made = ~known
            made[:, :length] = False
            nats = self._nats(drawn, made)
        if how.n_drawn > how.n_samples:
            assert nats is not None
            drawn, nats = _likeliest(drawn, nats, how.n_samples)
        return drawn, nats

    def _nats(self, drawn: Tensor, made: Tensor) -> Tensor:
        """Nats per pixel (B, S) of images (B, S, T): the mean over those that are `made` (B, T)."""
        nats = token_nll(self._model, drawn.flatten(0, 1)).view(drawn.shape)
        made = made[:, None]
        return (nats * made).sum(dim=2) / made.sum(dim=2).clamp(min=1)


def _likeliest(drawn: Tensor, nats: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n images of (B, S, T) with the fewest nats (B, S), these first, and their nats."""
    order = nats.argsort(dim=1, stable=True)[:, :n]
    images = drawn.gather(1, order[..., None].expand(-1, -1, drawn.shape[2]))
    return images, nats.gather(1, order)
