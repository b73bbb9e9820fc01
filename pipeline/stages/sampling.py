"""Sampling pixels for the rows of a block: prompts of one length or many, the best of several."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.generation.decoding import Pinned, complete
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.prompts import complete_prompts
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.learning.scoring import token_nll
from pipeline.stages.model_batches import ComputePlan


@dataclass(frozen=True)
class Prompt:
    """What the model is given of N images.

    `tokens` (N, T) uint16, of which the first `length` are the prompt: one number for all rows, or
    each row's own, (N,) int32. `known` (N, T) bool are the known pixels beyond prompts of one
    length, None where there are none.
    """

    tokens: NDArray[np.uint16]
    length: int | NDArray[np.int32]
    known: NDArray[np.bool_] | None = None

    @property
    def unknown(self) -> NDArray[np.bool_]:
        """Returns which pixels (N, T) are to be drawn."""
        lengths = np.broadcast_to(self.length, len(self.tokens))
        unknown: NDArray[np.bool_] = np.arange(self.tokens.shape[1]) >= lengths[:, None]
        return unknown if self.known is None else unknown & ~self.known


@dataclass(frozen=True)
class Samples:
    """Images (N, S, T) uint16, in the order in which they were drawn.

    `passes` (N,) int32 are those of the model that drew a row's images, added up over all drawn.
    Where they are scored `nll` (N, S) float32 are the nats per generated pixel, and the order is
    that of these, the lowest first; `index` (N, S) int32 then says which of those drawn each is.
    """

    tokens: NDArray[np.uint16]
    passes: NDArray[np.int32]
    nll: NDArray[np.float32] | None = None
    index: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Drawing:
    """How pixels are drawn.

    Attributes:
        n_samples: images kept of each row.
        n_drawn: drawn for each row; more than `n_samples` only where they are scored.
        scored: whether the nll is computed; the `n_samples` with the lowest are kept, in that
            order, those of the same nll in the order in which they were drawn.
        seed: of the run; with a row's id it makes the row's seed.
        sampling: how a pixel is drawn.
    """

    n_samples: int
    n_drawn: int
    scored: bool
    seed: int
    sampling: SamplingConfig


@dataclass(frozen=True)
class _Batch:
    """Images (B, S, T) of a model batch, the passes (B,) that they took, and their nll (B, S)."""

    tokens: Tensor
    passes: NDArray[np.int32]
    nll: Tensor | None


class Sampler:
    """A causal model that completes images.

    Args:
        compute_plan: the model, which has a next-pixel head.
        drawing: how it draws.
    """

    def __init__(self, compute_plan: ComputePlan, drawing: Drawing) -> None:
        self._compute_plan, self._model = compute_plan, compute_plan.load(head="causal")
        self._drawing = drawing
        self._draft = compute_plan.load_draft(self._model.config.n_colors)
        compute_plan.try_fast_ways(self._model.config.head_size)

    def sample(self, prompt: Prompt, ids: list[str]) -> Samples:
        """Completes images; each depends on its own prompt and id alone."""
        n_rows, n_positions = prompt.tokens.shape
        tokens = np.empty((n_rows, self._drawing.n_drawn, n_positions), np.uint16)
        nll = np.empty((n_rows, self._drawing.n_drawn), np.float32)
        passes = np.empty(n_rows, np.int32)
        seeds = np.array([row_seed(self._drawing.seed, id_) for id_ in ids], np.int64)
        for rows, batch in self._batches(prompt, seeds):
            tokens[rows] = batch.tokens[: len(rows)].cpu().numpy()
            passes[rows] = batch.passes[: len(rows)]
            if batch.nll is not None:
                nll[rows] = batch.nll[: len(rows)].float().cpu().numpy()
        if not self._drawing.scored:
            return Samples(tokens, passes)
        self._compute_plan.check_finite("likelihoods", nll)
        index = np.argsort(nll, axis=1, kind="stable")[:, : self._drawing.n_samples]
        return Samples(
            np.take_along_axis(tokens, index[..., None], axis=1),
            passes,
            np.take_along_axis(nll, index, axis=1),
            index.astype(np.int32),
        )

    @torch.inference_mode()
    def _batches(
        self, prompt: Prompt, seeds: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.intp], "_Batch"]]:
        """Yields the rows of each model batch, and what was drawn of them."""
        order = np.arange(len(seeds))
        sample = partial(self._sample_batch, prompt=prompt, draft=self._draft_for(prompt))
        if not isinstance(prompt.length, int):
            order = by_length(prompt.length)
        arrays = (prompt.tokens[order], prompt.unknown[order], seeds[order])
        for place, batch in self._compute_plan.in_batches(sample, *arrays):
            yield order[place], batch

    def _draft_for(self, prompt: Prompt) -> NeighborTables | None:
        """Returns what the guesses of windows are made of: the model's, or counted in the prompts
        where it has none. Samples do not depend on it."""
        if self._compute_plan.window == 1 or self._draft is not None:
            return self._draft
        images = torch.from_numpy(prompt.tokens.copy())  # they may be read-only
        known = torch.from_numpy(~prompt.unknown)
        n_colors = self._model.config.n_colors
        counted = NeighborTables.counted(images, known, n_colors=n_colors)
        return counted and counted.to(self._compute_plan.device)

    def _sample_batch(
        self,
        image: Tensor,
        unknown: Tensor,
        seeds: Tensor,
        *,
        prompt: Prompt,
        draft: NeighborTables | None,
    ) -> "_Batch":
        """Samples one model batch.

        Args:
            image: (B, T), of which the `unknown` (B, T) pixels are to be drawn.
            seeds: (B,).
            prompt: that the batch is of.
            draft: what the guesses of windows are made of.
        """
        how, unknown = self._drawing, unknown.bool()
        passes: list[int] = []
        if isinstance(prompt.length, int):
            tokens = complete(
                self._model,
                image[:, : prompt.length],
                n_positions=image.shape[1],
                seeds=seeds,
                sampling=how.sampling,
                n_samples=how.n_drawn,
                window=self._compute_plan.window,
                draft=draft,
                passes=passes,
                pinned=None if prompt.known is None else Pinned(image, ~unknown),
            )
        else:
            tokens = complete_prompts(
                self._model,
                image,
                (~unknown).sum(dim=1),
                seeds=seeds,
                sampling=how.sampling,
                n_samples=how.n_drawn,
                window=self._compute_plan.window,
                draft=draft,
                passes=passes,
            )
        by_row = np.array(passes, np.int32).reshape(len(tokens), -1).sum(axis=1, dtype=np.int32)
        return _Batch(tokens, by_row, self._mean_nll(tokens, unknown) if how.scored else None)

    def _mean_nll(self, tokens: Tensor, generated: Tensor) -> Tensor:
        """Returns nats per pixel (B, S) of images (B, S, T): the mean over the `generated` (B, T)
        pixels."""
        nll = token_nll(self._model, tokens.flatten(0, 1)).view(tokens.shape)
        generated = generated[:, None]
        return (nll * generated).sum(dim=2) / generated.sum(dim=2).clamp(min=1)


def by_length(lengths: NDArray[np.int32]) -> NDArray[np.intp]:
    """Returns the order in which rows with prompts of their own lengths (N,) fill model batches:
    a batch takes as many steps as its shortest prompt."""
    return np.argsort(lengths, kind="stable")
