"""Sampling pixels for the rows of a block: prompts of one length or many, the best of several."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.generation.decoding import Pinned, complete
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

    Where they are scored `nll` (N, S) float32 are the nats per generated pixel, and the order is
    that of these, the lowest first; `index` (N, S) int32 then says which of those drawn each is.
    """

    tokens: NDArray[np.uint16]
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

    def sample(self, prompt: Prompt, ids: list[str]) -> Samples:
        """Completes images; each depends on its own prompt and id alone."""
        n_rows, n_positions = prompt.tokens.shape
        tokens = np.empty((n_rows, self._drawing.n_drawn, n_positions), np.uint16)
        nll = np.empty((n_rows, self._drawing.n_drawn), np.float32)
        seeds = np.array([row_seed(self._drawing.seed, id_) for id_ in ids], np.int64)
        for rows, batch_tokens, batch_nll in self._batches(prompt, seeds):
            tokens[rows] = batch_tokens[: len(rows)].cpu().numpy()
            if batch_nll is not None:
                nll[rows] = batch_nll[: len(rows)].float().cpu().numpy()
        if not self._drawing.scored:
            return Samples(tokens)
        self._compute_plan.check_finite("likelihoods", nll)
        index = np.argsort(nll, axis=1, kind="stable")[:, : self._drawing.n_samples]
        return Samples(
            np.take_along_axis(tokens, index[..., None], axis=1),
            np.take_along_axis(nll, index, axis=1),
            index.astype(np.int32),
        )

    @torch.inference_mode()
    def _batches(
        self, prompt: Prompt, seeds: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor | None]]:
        """Yields (rows, samples, nll) of each model batch."""
        order = np.arange(len(seeds))
        sample = partial(self._sample_batch, prompt=prompt)
        if not isinstance(prompt.length, int):
            order = by_length(prompt.length)
        arrays = (prompt.tokens[order], prompt.unknown[order], seeds[order])
        for place, (tokens, nll) in self._compute_plan.in_batches(sample, *arrays):
            yield order[place], tokens, nll

    def _sample_batch(
        self, image: Tensor, unknown: Tensor, seeds: Tensor, *, prompt: Prompt
    ) -> tuple[Tensor, Tensor | None]:
        """Samples one model batch: images (B, S, T) and their nll (B, S).

        Args:
            image: (B, T), of which the `unknown` (B, T) pixels are to be drawn.
            seeds: (B,).
            prompt: that the batch is of.
        """
        how, unknown = self._drawing, unknown.bool()
        if isinstance(prompt.length, int):
            tokens = complete(
                self._model,
                image[:, : prompt.length],
                n_positions=image.shape[1],
                seeds=seeds,
                sampling=how.sampling,
                n_samples=how.n_drawn,
                window=self._compute_plan.window,
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
            )
        return tokens, self._mean_nll(tokens, unknown) if how.scored else None

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
