"""Windows of guesses: what is known, guessed and drawn of sequences that are decoded together.

Each sequence stands at its own position. A pass of the model is fed a window of its tokens: the
last that is decided, and guesses behind it. Each of the tokens behind these is drawn with its own
noise. The first is right, and each next one while the guess before it was; what is drawn behind the
first wrong guess is the guess of the next pass (Jacobi iteration: Song, Meng, Liao, Ermon,
"Accelerating feedforward computation via parallel nonlinear equation solving", 2021). So the tokens
are those of one pass for each, whatever was guessed.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.generation.drafts import Neighbors, NeighborTables
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.sampling import SamplingConfig, sample_tokens
from igpt_core.model.attention import has_tiles

# Numbers of noise: a CPU keeps so many in its cache while they are made, and on a GPU each making
# launches some hundred kernels.
_NOISE_AT_ONCE, _NOISE_AT_ONCE_ON_GPU = 1 << 18, 1 << 24


def best_window(device: str, rows: int, dtype: torch.dtype) -> int:
    """Returns the window that decodes fastest with so many rows, on "cpu" or "cuda".

    Measured with the shipped model and its tables on lower halves of CIFAR-10
    (benchmarks/window.py). On Zen 5 the windows below are 1.7, 1.4, 1.2 and 1.07 times as fast as
    one pixel at a time with 1, 2, 4 and 8 rows. In bfloat16 on a Xeon with matrix tiles 16 is 2.2
    to 2.5 times as fast with one row, and 8 1.4 to 1.5 times with four, even without tables. With
    16 rows no window gains more than 6 %. On GPUs it was not measured.
    """
    if device != "cpu":
        return 1
    tiles = dtype == torch.bfloat16 and has_tiles()
    best = {2: 16, 4: 8} if tiles else {1: 16, 2: 8, 8: 4}
    return next((window for most, window in best.items() if rows <= most), 1)


class Windows:
    """The tokens of sequences, by input position: of images the start token, then pixels.

    Attributes:
        n_rows: how many sequences there are, R.
        size: tokens of each sequence that a pass is fed.
        passes: of each sequence, those from which its tokens were drawn, the prompt's among them.
    """

    def __init__(
        self,
        tokens: Tensor,
        known: Tensor,
        starts: list[int],
        *,
        size: int,
        noise: GumbelNoise,
        sampling: SamplingConfig,
        n_colors: int,
        draft: NeighborTables | None = None,
    ) -> None:
        """Begins with the tokens that are known.

        Args:
            tokens: (R, L) int64, where they are known; any color elsewhere.
            known: (R, L) bool; all before a sequence's start are.
            starts: R positions of the first token to draw, from 1 to L - 1.
            size: the window, from 1 to L - 1.
            noise: of the R sequences; that of pixel i is for the token i + 1.
            draft: what guesses are made of, besides what was drawn; it changes no token.

        Raises ValueError for a window of nothing.
        """
        if size < 1:
            raise ValueError(f"window must be 1 or more, found {size}")
        self.n_rows, self._length = tokens.shape
        self.size = size
        beyond = (0, 2 * size)  # where the guesses of the last window lie, which are never fed
        self._tokens, self._known = pad(tokens, beyond), pad(known, beyond)
        self._decided = list(starts)  # tokens of each sequence, from its first on
        last_unknown = self._length - 1 - (~known).flip(1).long().argmax(dim=1)
        self._ends = torch.where(known.all(dim=1), 0, last_unknown + 1).tolist()
        self.passes = [int(end > start) for start, end in zip(starts, self._ends, strict=True)]
        self._width = max(math.isqrt(self._length - 1), 1)  # of an image
        self._noise = _NoiseAhead(noise, n_colors, at_least=2 * size)
        self._sampling = sampling
        self._draft = draft if size > 1 else None
        if draft is not None:
            self._neighbors = Neighbors(draft, self._length - 1, beyond=beyond[1])

    @classmethod
    def of_images(
        cls, image: Tensor, known: Tensor, lengths: list[int], *, start_token: int, **options: Any
    ) -> "Windows":
        """Begins with the start token, which is known, before images (R, N) of which `known` (R, N)
        are, among them the first `lengths`; below N. `options`: as of `__init__`."""
        tokens = pad(image, (1, 0), value=start_token)
        return cls(tokens, pad(known, (1, 0), value=True), [n + 1 for n in lengths], **options)

    @property
    def tokens(self) -> Tensor:
        """Returns (R, L) int64: known, drawn, and guesses behind these."""
        return self._tokens[:, : self._length]

    @property
    def is_done(self) -> bool:
        return all(map(int.__ge__, self._decided, self._ends))

    @property
    def fewest_passes(self) -> int:
        """Counts the passes that are left if every guess is right."""
        n_left = max(map(int.__sub__, self._ends, self._decided))
        return -(-n_left // self.size)

    @property
    def starts(self) -> list[int]:
        """Returns the positions of the first tokens of the next pass."""
        # The last window ends with the last token that is fed: its first tokens were fed before.
        last = self._length - 1 - self.size
        return [min(decided - 1, last) for decided in self._decided]

    def is_decided(self, at: Tensor) -> Tensor:
        """Tells which tokens at positions (R, W) are known or drawn for good, (R, W) bool."""
        return at < torch.tensor(self._decided, device=at.device)[:, None]

    def positions(self, starts: list[int]) -> Tensor:
        """Returns those of windows that begin at `starts`, (R, W) int64."""
        device = self._tokens.device
        if min(starts) == max(starts):
            return torch.arange(starts[0], starts[0] + self.size, device=device).expand(
                self.n_rows, -1
            )
        return torch.tensor(starts, device=device)[:, None] + torch.arange(self.size, device=device)

    def fed(self, positions: Tensor) -> Tensor:
        """Returns the tokens (R, W) at positions (R, W)."""
        return self._tokens.gather(1, positions)

    def draw_first(self, logits: Tensor) -> None:
        """Draws the token at each start from its logits (R, V)."""
        starts = self._decided
        at = self.positions(starts)
        drawn = self._draw(logits[:, None], starts)
        first = at[:, :1]
        drawn = torch.where(self._known.gather(1, first), self.fed(first), drawn)
        self._tokens.scatter_(1, first, drawn)
        self._decided = [start + 1 for start in starts]
        self._guess(at + 1)

    def draw(self, logits: Tensor, starts: list[int]) -> None:
        """Draws the tokens behind those of a pass that began at `starts`, from its logits
        (R, W, V)."""
        goes_on = map(int.__lt__, self._decided, self._ends)
        self.passes = [n + more for n, more in zip(self.passes, goes_on, strict=True)]
        firsts = [start + 1 for start in starts]
        at = self.positions(firsts)
        before = self.fed(at)
        is_known = self._known.gather(1, at)
        if any(map(int.__lt__, firsts, self._decided)):
            is_known = is_known | self.is_decided(at)
        drawn = torch.where(is_known, before, self._draw(logits, firsts))
        seen = self._tokens.clone() if self._draft else self._tokens
        self._tokens.scatter_(1, at, drawn)
        if self.size == 1:
            self._decided = [first + 1 for first in firsts]
            return
        was_right = (drawn == before)[:, :-1].long()
        n_right = was_right.cumprod(dim=1).sum(dim=1).tolist()
        self._decided = [first + 1 + n for first, n in zip(firsts, n_right, strict=True)]
        if self._draft is None:
            self._guess(at + self.size)
        else:
            self._guess_by_draft(self._draft, logits, firsts, seen)

    def _draw(self, logits: Tensor, firsts: list[int]) -> Tensor:
        if self._sampling.greedy:
            return sample_tokens(logits, None, self._sampling)
        pixels = [position - 1 for position in firsts]
        return sample_tokens(logits, self._noise.of(pixels, logits.shape[1]), self._sampling)

    def _guess(self, at: Tensor) -> None:
        """Guesses tokens (R, W) of which none was drawn: the pixel above each."""
        above = self.fed((at - self._width).clamp(min=1))
        guesses = torch.where(self._known.gather(1, at), self.fed(at), above)
        self._tokens.scatter_(1, at, guesses)

    def _guess_by_draft(
        self, draft: NeighborTables, logits: Tensor, firsts: list[int], seen: Tensor
    ) -> None:
        """Guesses the tokens behind the decided ones, each of those before it: with its own noise,
        by the logits (R, W, V) of the last pass, which began at `firsts` and saw the tokens `seen`,
        corrected for neighbors that are others now."""
        at = self.positions(self._decided)[:, : self.size - 1]
        place = at - torch.tensor(firsts, device=at.device)[:, None]
        last = logits.float().take_along_dim(place.clamp(max=self.size - 1)[..., None], dim=1)
        last -= self._neighbors.sum(seen, at)
        last = torch.where((place < self.size)[..., None], last, draft.frequencies)
        noise = None
        if not self._sampling.greedy:
            noise = self._noise.of([position - 1 for position in self._decided], at.shape[1])
        is_known, known = self._known.gather(1, at), self.fed(at)
        for i in range(at.shape[1]):
            here = slice(i, i + 1)
            likely = last[:, here] + self._neighbors.sum(self._tokens, at[:, here])
            guess = sample_tokens(likely, None if noise is None else noise[:, here], self._sampling)
            guess = torch.where(is_known[:, here], known[:, here], guess)
            self._tokens.scatter_(1, at[:, here], guess)


class _NoiseAhead:
    """The noise of sequences, made for several pixels at once, which takes a fraction of the
    calls."""

    def __init__(self, noise: GumbelNoise, n_colors: int, *, at_least: int) -> None:
        rows = len(noise.seeds)
        self._noise, self._n_colors = noise, n_colors
        at_once = _NOISE_AT_ONCE_ON_GPU if noise.seeds.is_cuda else _NOISE_AT_ONCE
        self._n_pixels = max(at_once // (rows * n_colors), at_least)
        self._first: list[int] = []  # pixel of each sequence
        self._made = noise.seeds.new_empty(0)

    def of(self, first: list[int], n: int) -> Tensor:
        """Returns the noise (R, n, V) of n pixels from each sequence's first on."""
        offsets = [now - then for now, then in zip(first, self._first, strict=False)]
        if not offsets or min(offsets) < 0 or max(offsets) + n > self._n_pixels:
            device = self._noise.seeds.device
            pixels = torch.tensor(first, device=device)[:, None]
            ahead = torch.arange(self._n_pixels, device=device)
            self._made = self._noise.at(pixels + ahead, self._n_colors)
            self._first, offsets = first, [0] * len(first)
        if min(offsets) == max(offsets):
            return self._made[:, offsets[0] : offsets[0] + n]
        device = self._made.device
        rows = torch.arange(len(first), device=device)[:, None]
        columns = torch.tensor(offsets, device=device)[:, None] + torch.arange(n, device=device)
        return self._made[rows, columns]
