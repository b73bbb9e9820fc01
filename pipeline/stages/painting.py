"""Drawing pixels for the rows of a block: batches of equal prompts, the likeliest of several."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.decoding import Pinned, complete
from igpt_core.sampling import SamplingConfig, row_seed
from igpt_core.scoring import token_nll
from pipeline.stages.batches import full_batches, load_for_stage


@dataclass(frozen=True)
class Given:
    """What the model is given of N images.

    `tokens` (N, T) uint16, of which the first `lengths` (N,) are the prompt; `pinned` (N, T) bool
    are those known beyond it, None where there are none.
    """

    tokens: NDArray[np.uint16]
    lengths: NDArray[np.int32]
    pinned: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Painted:
    """Images (N, S, T) uint16 and, where asked for, nats per generated pixel (N, S) float32."""

    samples: NDArray[np.uint16]
    nll: NDArray[np.float32] | None


class Painter:
    """A causal model that completes images.

    Args:
        model, device, dtype, model_options: as of `load_for_stage`.
        images_per_batch: images decoded together, each with all that is drawn for it.
        n_samples: images made of each row.
        n_drawn: drawn for each row; the `n_samples` likeliest are kept, the likeliest first.
        scored: whether nats are computed.
        seed: of the run; with a row's id it makes the row's seed.
        temperature, top_k, top_p: as in `SamplingConfig`.
    """

    def __init__(
        self,
        *,
        model: str,
        device: str,
        dtype: str,
        model_options: Mapping[str, Any],
        images_per_batch: int,
        n_samples: int,
        n_drawn: int,
        scored: bool,
        seed: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
    ) -> None:
        self._model = load_for_stage(
            model, device=device, dtype=dtype, head="causal", model_options=model_options
        )
        self._device = device
        self._images_per_batch = images_per_batch
        self._n_samples, self._n_drawn = n_samples, n_drawn
        self._scored = scored
        self._seed = seed
        self._sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)

    def paint(self, given: Given, ids: list[str]) -> Painted:
        """Finish the images; each depends on what is given of it and on its id alone."""
        n_rows, n_positions = given.tokens.shape
        samples = np.empty((n_rows, self._n_samples, n_positions), np.uint16)
        nll = np.empty((n_rows, self._n_samples), np.float32)
        seeds = np.array([row_seed(self._seed, id_) for id_ in ids], np.int64)
        for rows, painted, nats in self._batches(given, seeds):
            samples[rows] = painted[: len(rows)].cpu().numpy()
            if nats is not None:
                nll[rows] = nats[: len(rows)].float().cpu().numpy()
        return Painted(samples, nll if self._scored else None)

    @torch.inference_mode()
    def _batches(
        self, given: Given, seeds: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor | None]]:
        """(rows, samples, nats) of each model batch. All rows of a batch stand at one position, so
        those with prompts of one length are computed together."""
        n_positions = given.tokens.shape[1]
        pinned = np.zeros_like(given.tokens, bool) if given.pinned is None else given.pinned
        for length in np.unique(given.lengths):
            rows = np.flatnonzero(given.lengths == length)
            arrays = (given.tokens[rows], pinned[rows], seeds[rows])
            for place, (image, pins, batch_seeds) in full_batches(
                self._images_per_batch, *arrays, device=self._device
            ):
                pins = pins.bool()
                drawn = complete(
                    self._model,
                    image[:, :length],
                    n_positions=n_positions,
                    seeds=batch_seeds,
                    sampling=self._sampling,
                    n_samples=self._n_drawn,
                    pinned=None if given.pinned is None else Pinned(image, pins),
                )
                nats = None
                if self._scored:
                    pins[:, :length] = True
                    nats = self._nats(drawn, ~pins)
                if self._n_drawn > self._n_samples:
                    assert nats is not None
                    drawn, nats = _likeliest(drawn, nats, self._n_samples)
                yield rows[place], drawn, nats

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
