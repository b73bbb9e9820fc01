"""Sampling pixels for the rows of a block: prompts of one length or many, the best of several."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.generation.completion import Pinned, complete, complete_prompts
from igpt_core.generation.drafts import NeighborTables
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
        seeds = np.array([row_seed(self._drawing.seed, id_) for id_ in ids], np.int64)
        tokens, passes = self._drawn(prompt, seeds)
        if not self._drawing.scored:
            return Samples(tokens, passes)
        nll = self._nll(tokens, prompt.unknown)
        self._compute_plan.check_finite("likelihoods", nll)
        index = np.argsort(nll, axis=1, kind="stable")[:, : self._drawing.n_samples]
        return Samples(
            np.take_along_axis(tokens, index[..., None], axis=1),
            passes,
            np.take_along_axis(nll, index, axis=1),
            index.astype(np.int32),
        )

    @torch.inference_mode()
    def _drawn(
        self, prompt: Prompt, seeds: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Returns images (N, S, T), and the passes (N,) that they took."""
        self._compute_plan.check_cache(self._model.config.head_size)
        order = np.arange(len(seeds))
        if not isinstance(prompt.length, int):
            order = by_length(prompt.length)
        draw = partial(self._draw, prompt=prompt, draft=self._draft_for(prompt))
        arrays = (prompt.tokens[order], prompt.unknown[order], seeds[order])
        n_rows, n_positions = prompt.tokens.shape
        tokens = np.empty((n_rows, self._drawing.n_drawn, n_positions), np.uint16)
        passes = np.empty(n_rows, np.int32)
        for place, (images, n_passes) in self._compute_plan.refilled(draw, *arrays):
            tokens[order[place]] = images.cpu().numpy()
            passes[order[place]] = n_passes
        return tokens, passes

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

    def _draw(
        self,
        image: Tensor,
        unknown: Tensor,
        seeds: Tensor,
        *,
        prompt: Prompt,
        draft: NeighborTables | None,
        at_once: int,
    ) -> tuple[Tensor, list[int]]:
        """Draws images (B, S, T), and counts the passes that each of the B took.

        Args:
            image: (B, T), of which the `unknown` (B, T) pixels are to be drawn.
            seeds: (B,).
            prompt: that they are of.
            draft: what the guesses of windows are made of.
            at_once: as of `complete`.
        """
        unknown, passes = unknown.bool(), list[int]()
        how: dict[str, Any] = {
            "seeds": seeds,
            "sampling": self._drawing.sampling,
            "n_samples": self._drawing.n_drawn,
            "window": self._compute_plan.window,
            "draft": draft,
            "at_once": at_once,
            "kv_cache_dtype": self._compute_plan.torch_kv_cache_dtype,
            "passes": passes,
        }
        if isinstance(prompt.length, int):
            pinned = None if prompt.known is None else Pinned(image, ~unknown)
            given, n_positions = image[:, : prompt.length], image.shape[1]
            tokens = complete(self._model, given, n_positions=n_positions, pinned=pinned, **how)
        else:
            tokens = complete_prompts(self._model, image, (~unknown).sum(dim=1), **how)
        n = self._drawing.n_drawn
        return tokens, [sum(passes[first : first + n]) for first in range(0, len(passes), n)]

    @torch.inference_mode()
    def _nll(self, tokens: NDArray[np.uint16], unknown: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Returns nats per pixel (N, S) of images (N, S, T): the mean over `unknown` (N, T)."""
        found = np.empty(tokens.shape[:2], np.float32)
        for rows, nll in self._compute_plan.in_batches(self._mean_nll, tokens, unknown):
            found[rows] = nll[: rows.stop - rows.start].float().cpu().numpy()
        return found

    def _mean_nll(self, tokens: Tensor, unknown: Tensor) -> Tensor:
        """Returns those (B, S) of a model batch."""
        nll = token_nll(self._model, tokens.flatten(0, 1)).view(tokens.shape)
        generated = unknown[:, None].bool()
        return (nll * generated).sum(dim=2) / generated.sum(dim=2).clamp(min=1)


def by_length(lengths: NDArray[np.int32]) -> NDArray[np.intp]:
    """Returns the order in which rows with prompts of their own lengths (N,) are drawn: those that
    begin together, of like lengths, are over at about one time."""
    return np.argsort(lengths, kind="stable")
