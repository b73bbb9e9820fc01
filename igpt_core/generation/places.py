"""Places of images that are decoded together, which others take once these are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.generation.decoding import decode, feed_prompts, new_cache
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.passes import CausalModel, has_own_forward
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.generation.speculation import Windows
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.spans import whole_units


@dataclass(frozen=True)
class Drawing:
    """How images are drawn; see `complete`."""

    n_samples: int
    window: int
    sampling: SamplingConfig
    draft: NeighborTables | None
    at_once: int | None
    kv_cache_dtype: torch.dtype | None


@dataclass(frozen=True)
class Images:
    """Images (B, N) of which `known` (B, N) pixels are known, among them the first `lengths`, with
    their seeds (B,)."""

    image: Tensor
    known: Tensor
    lengths: list[int]
    seeds: Tensor


class Places:
    """The places of images that are decoded together. One whose samples are all drawn gives its
    place to the next that waits."""

    def __init__(
        self,
        model: CausalModel,
        images: Images,
        how: Drawing,
        result: Tensor,
        n_passes: Tensor,
        *,
        apart: bool,
    ) -> None:
        """Makes room; nothing is drawn yet.

        Args:
            result: (B, n_samples, N) int64, of which what is drawn is put.
            n_passes: (B, n_samples) int64, the same for passes.
            apart: whether the lengths of prompts may differ.
        """
        rows, n_positions = images.image.shape
        self._model, self._images, self._n_samples = model, images, how.n_samples
        self._result, self._n_passes = result, n_passes
        self._waiting: list[int] = (~images.known).any(dim=1).nonzero()[:, 0].tolist()
        self._n_pixels_waiting = self._n_pixels(self._waiting)
        self._holds: dict[int, int] = {}  # the image in each place
        self._n_places = how.at_once or rows
        own_forward = has_own_forward(model)  # which all rows need at one position
        if own_forward:
            apart = len({images.lengths[image] for image in self._waiting}) > 1
        self._apart = apart
        self._windows = Windows(
            self._n_places * how.n_samples,
            n_positions + 1,
            size=how.window,
            sampling=how.sampling,
            n_colors=model.config.n_colors,
            draft=how.draft,
            device=images.image.device,
        )
        self._cache = new_cache(
            model,
            self._windows.n_rows,
            capacity=whole_units(n_positions),
            window=how.window,
            n_each=how.n_samples,
            shared_length=0 if apart else images.lengths[0] + 1,
            eight_bits=how.kv_cache_dtype == torch.int8,
        )
        self._n_together = self._n_places
        if how.at_once is not None and not own_forward:
            self._n_together = _begin_together(self._cache, self._n_places)

    def decode(self, on_progress: Callable[[float], None] | None = None) -> None:
        """Draws all that waits. `on_progress`: as of `complete`."""
        apart = self._apart or self._n_together < self._n_places
        n_all, share = self._n_pixels_waiting, 0.0

        def refill() -> None:
            nonlocal share
            self._refill()
            if on_progress is not None:
                share = max(share, 1 - self._most_pixels_left() / n_all)
                on_progress(share)

        decode(self._model, self._cache, self._windows, apart=apart, refill=refill)
        self._collect(list(self._holds))

    def _most_pixels_left(self) -> int:
        """Counts the pixels that wait, and those under way as if all stood where the last does."""
        n_under_way = int((~self._windows.are_over).sum())
        most_each = self._windows.fewest_passes * self._windows.size
        return self._n_pixels_waiting + n_under_way * most_each

    def _n_pixels(self, images: Sequence[int]) -> int:
        """Counts the pixels behind the prompts of images, in all samples."""
        lengths, n_positions = self._images.lengths, self._images.image.shape[1]
        return sum(n_positions - lengths[image] for image in images) * self._n_samples

    def _refill(self) -> None:
        while self._waiting:
            free = self._free()
            if len(free) < self._n_together:
                return
            images = self._waiting[: self._n_together]
            del self._waiting[: self._n_together]
            self._n_pixels_waiting -= self._n_pixels(images)
            self._begin(images, free[: len(images)])

    def _free(self) -> list[int]:
        """Returns the places of which all samples are drawn, and those that hold nothing."""
        over = self._windows.are_over.reshape(self._n_places, self._n_samples)
        return np.flatnonzero(over.all(axis=1)).tolist()

    def _rows(self, places: Sequence[int]) -> list[int]:
        """Returns the sequences of places."""
        n = self._n_samples
        return [place * n + sample for place in places for sample in range(n)]

    def _begin(self, images: list[int], places: list[int]) -> None:
        self._collect([place for place in places if place in self._holds])
        self._holds |= zip(places, images, strict=True)
        given, n = self._images, self._n_samples
        logits = self._prefilled(images, places)
        tokens, known = (
            pad(part[images].repeat_interleave(n, dim=0), (1, 0), value=first)
            for part, first in ((given.image, self._model.config.start_token), (given.known, True))
        )
        starts = [given.lengths[image] + 1 for image in images for _ in range(n)]
        noise = GumbelNoise(given.seeds[images], n)
        self._windows.begin(self._rows(places), tokens, known, starts, noise, logits)

    def _prefilled(self, images: list[int], places: list[int]) -> Tensor:
        """Runs the prompts of images into the places' rows of the cache. Returns logits (K, V) of
        what lies behind them, for each row."""
        together = 1 if self._apart else self._n_together
        found = []
        for first in range(0, len(images), together):
            now = images[first : first + together]
            length = self._images.lengths[now[0]]
            # As many rows whatever waits: products may round otherwise for another number.
            shape, start = (together, 1 + length), self._model.config.start_token
            tokens = self._images.image.new_full(shape, start)
            tokens[: len(now), 1:] = self._images.image[now, :length]
            logits, cache = feed_prompts(self._model, tokens, window=self._windows.size)
            self._cache.put(cache, places[first : first + together])
            found.append(logits[: len(now)])
        return torch.cat(found).repeat_interleave(self._n_samples, dim=0)

    def _collect(self, places: list[int]) -> None:
        """Takes what was drawn in places, which are free then."""
        if not places:
            return
        images, rows = [self._holds.pop(place) for place in places], self._rows(places)
        shape = (len(images), self._n_samples, -1)
        self._result[images] = self._windows.tokens[rows, 1:].view(shape)
        self._n_passes[images] = self._windows.passes[rows].view(shape[:2])


def _begin_together(cache: KVCache, n_places: int) -> int:
    """Returns how many images begin at a time, of whose prompts one forward pass is made.

    Where a pass costs what its furthest row needs, all do: rows that stand anywhere would attend to
    all positions always, which costs more than to wait for the last row (benchmarks/RESULTS.md).
    """
    return max(n_places // 8, 1) if cache.by_start else n_places
