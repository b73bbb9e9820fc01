"""Sampling pixels for the rows of a block: batches of equal prompts, the best of several."""

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

    `tokens` (N, T) uint16, of which the first `lengths` (N,) are the prompt; `known` (N, T) bool
    are the known pixels beyond it, None where there are none.
    """

    tokens: NDArray[np.uint16]
    lengths: NDArray[np.int32]
    known: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Samples:
    """Images (N, S, T) uint16 and, where asked for, nats per generated pixel (N, S) float32."""

    tokens: NDArray[np.uint16]
    nll: NDArray[np.float32] | None


@dataclass(frozen=True)
class Drawing:
    """How pixels are drawn.

    Attributes:
        n_samples: images kept of each row.
        n_drawn: drawn for each row; the `n_samples` with the lowest nll are kept, in that order.
        scored: whether the nll is computed.
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
        tokens = np.empty((n_rows, self._drawing.n_samples, n_positions), np.uint16)
        nll = np.empty((n_rows, self._drawing.n_samples), np.float32)
        seeds = np.array([row_seed(self._drawing.seed, id_) for id_ in ids], np.int64)
        for rows, batch_tokens, batch_nll in self._batches(prompt, seeds):
            tokens[rows] = batch_tokens[: len(rows)].cpu().numpy()
            if batch_nll is not None:
                nll[rows] = batch_nll[: len(rows)].float().cpu().numpy()
        if not self._drawing.scored:
            return Samples(tokens, None)
        self._compute_plan.check_finite("likelihoods", nll)
        return Samples(tokens, nll)

    @torch.inference_mode()
    def _batches(
        self, prompt: Prompt, seeds: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor | None]]:
        """Yields (rows, samples, nll) of each model batch. All rows of a batch stand at one
        position, so those with prompts of one length are computed together."""
        has_known = prompt.known is not None
        known = np.zeros_like(prompt.tokens, bool) if prompt.known is None else prompt.known
        for length in np.unique(prompt.lengths):
            rows = np.flatnonzero(prompt.lengths == length)
            arrays = (prompt.tokens[rows], known[rows], seeds[rows])
            sample = partial(self._sample_batch, length=int(length), has_known=has_known)
            for place, (tokens, nll) in self._compute_plan.in_batches(sample, *arrays):
                yield rows[place], tokens, nll

    def _sample_batch(
        self, image: Tensor, known: Tensor, seeds: Tensor, *, length: int, has_known: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Samples one model batch: images (B, S, T) and their nll (B, S).

        Args:
            image: (B, T), of which the first `length` pixels are given, and where the batch
                `has_known` pixels, the `known` (B, T) ones.
            seeds: (B,).
        """
        how, known = self._drawing, known.bool()
        tokens = complete(
            self._model,
            image[:, :length],
            n_positions=image.shape[1],
            seeds=seeds,
            sampling=how.sampling,
            n_samples=how.n_drawn,
            pinned=Pinned(image, known) if has_known else None,
        )
        nll = None
        if how.scored:
            generated = ~known
            generated[:, :length] = False
            nll = self._mean_nll(tokens, generated)
        if how.n_drawn > how.n_samples:
            assert nll is not None
            tokens, nll = _best(tokens, nll, how.n_samples)
        return tokens, nll

    def _mean_nll(self, tokens: Tensor, generated: Tensor) -> Tensor:
        """Returns nats per pixel (B, S) of images (B, S, T): the mean over the `generated` (B, T)
        pixels."""
        nll = token_nll(self._model, tokens.flatten(0, 1)).view(tokens.shape)
        generated = generated[:, None]
        return (nll * generated).sum(dim=2) / generated.sum(dim=2).clamp(min=1)


def _best(tokens: Tensor, nll: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Returns the n images of (B, S, T) with the lowest nll (B, S), the lowest first."""
    order = nll.argsort(dim=1, stable=True)[:, :n]
    images = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
    return images, nll.gather(1, order)
