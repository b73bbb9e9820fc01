"""Windows of guesses: what is known, guessed and drawn of sequences that are decoded together.

Each sequence stands at its own position, and one that is over gives its place to another. A pass of
the model is fed a window of its tokens: the last that is decided, and guesses behind it. Each of
the tokens behind these is drawn with its own noise. The first is right, and each next one while the
guess before it was; what is drawn behind the first wrong guess is the guess of the next pass
(Jacobi iteration: Song, Meng, Liao, Ermon, "Accelerating feedforward computation via parallel
nonlinear equation solving", 2021). So the tokens are those of one pass for each, whatever was
guessed.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.generation.drafts import Neighbors, NeighborTables
from igpt_core.generation.host_progress import HostProgress
from igpt_core.generation.noise import GumbelNoise, NoiseAhead
from igpt_core.generation.sampling import SamplingConfig, sample_tokens
from igpt_core.model.processor import has_tiles


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
    """

    def __init__(
        self,
        n_rows: int,
        length: int,
        *,
        size: int,
        sampling: SamplingConfig,
        n_colors: int,
        draft: NeighborTables | None = None,
        device: torch.device | str = "cpu",
        kept: list[Tensor] | None = None,
    ) -> None:
        """Makes room for R sequences of L tokens, of which none is there yet.

        Args:
            size: the window, from 1 to L - 1.
            sampling: how tokens are drawn.
            draft: what guesses are made of, besides what was drawn; it changes no token.
            kept: where it is given, it is extended by the logits (R, V) of each step, of windows
                of one pixel.

        Raises ValueError for a window of nothing.
        """
        if size < 1:
            raise ValueError(f"window must be 1 or more, found {size}")
        self.n_rows, self.size, self._length = n_rows, size, length
        self._beyond = 2 * size  # where the guesses of the last window lie, which are never fed
        self._tokens = torch.zeros(n_rows, length + self._beyond, dtype=torch.int64, device=device)
        self._known = torch.ones_like(self._tokens, dtype=torch.bool)
        # Tokens of each sequence, from its first on.
        self._decided = torch.ones(n_rows, dtype=torch.int64, device=device)
        self._ends = torch.zeros_like(self._decided)
        self._n_passes = torch.zeros_like(self._decided)
        self._kept = kept
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._progress = HostProgress(n_rows)
        self._width = max(math.isqrt(length - 1), 1)  # of an image
        self._noise = NoiseAhead(n_rows, n_colors, size, self._last_start, self._tokens.device)
        self._n_colors, self._sampling = n_colors, sampling
        self._draft = draft if size > 1 else None
        if draft is not None:
            self._neighbors = Neighbors(draft, length - 1, beyond=self._beyond)

    def begin(
        self,
        rows: Sequence[int],
        tokens: Tensor,
        known: Tensor,
        starts: Sequence[int],
        noise: GumbelNoise,
        logits: Tensor,
    ) -> None:
        """Begins K sequences in the place of those of these rows, and draws the first token of
        each.

        Args:
            tokens: (K, L) int64, where they are known; any color elsewhere.
            known: (K, L) bool; all before a sequence's start are.
            starts: K positions of the first token to draw, from 1 to L - 1.
            noise: of the K sequences; that of pixel i is for the token i + 1.
            logits: (K, V) of the token at each start.
        """
        at = torch.tensor(starts, device=tokens.device)
        last_unknown = self._length - 1 - (~known).flip(1).long().argmax(dim=1)
        ends = torch.where(known.all(dim=1), 0, last_unknown + 1)
        tokens, known = (pad(part, (0, self._beyond)) for part in (tokens, known))
        first = at[:, None]
        by_noise = None if self._sampling.greedy else noise.at(first - 1, self._n_colors)
        drawn = sample_tokens(logits[:, None], by_noise, self._sampling)
        drawn = torch.where(known.gather(1, first), tokens.gather(1, first), drawn)
        tokens.scatter_(1, first, drawn)
        behind = self.positions(at + 1)
        self._guess(tokens, known.gather(1, behind), behind)
        place = torch.tensor(rows, device=tokens.device)
        self._tokens[place], self._known[place] = tokens, known
        self._decided[place], self._ends[place] = at + 1, ends
        self._n_passes[place] = (at < ends).long()
        self._noise.put(place, noise)
        self._progress.learn(self._decided, self._ends)
        if self._kept is not None:
            self._kept.append(logits)
        highest = logits.amax(dim=-1).where(at < ends, 0)  # NaN, where there is one
        self._is_finite &= highest.isfinite().all()

    @property
    def tokens(self) -> Tensor:
        """Returns (R, L) int64: known, drawn, and guesses behind these."""
        return self._tokens[:, : self._length]

    @property
    def passes(self) -> Tensor:
        """Returns the passes (R,) from which each sequence's tokens were drawn, the prompt's among
        them."""
        return self._n_passes

    @property
    def is_finite(self) -> bool:
        """Tells whether all logits from which tokens were drawn for good are distributions; none
        is with NaN, +inf, or -inf alone. Waits for a GPU, so it is to be asked once."""
        return bool(self._is_finite)

    @property
    def are_over(self) -> NDArray[np.bool_]:
        """Tells which sequences (R,) are drawn, as far as the host knows, or were never begun."""
        return self._progress.are_over

    def read_late(self) -> None:
        """Lets the host know how far the sequences are a pass later than they are, so that it never
        waits for a pass that it has just launched. There may be one pass more, for nothing."""
        self._progress.slack = self.size if self.size > 1 else 0  # of one token it always knows

    @property
    def is_done(self) -> bool:
        """Tells whether all is drawn, as far as the host knows."""
        return self._progress.passes_left(self.size) == 0

    @property
    def fewest_passes(self) -> int:
        """Counts the passes that are left if every guess is right."""
        return self._progress.passes_left(self.size)

    @property
    def furthest(self) -> int:
        """Returns the last of the `starts`, as far as the host knows."""
        return min(self._progress.furthest - 1, self._last_start)

    @property
    def starts(self) -> Tensor:
        """Returns the positions (R,) of the first tokens of the next pass. Sequences that are over
        stand beside the last of the others."""
        firsts = torch.where(self._decided < self._ends, self._decided, self._length)
        return (
            torch.where(firsts < self._length, firsts, firsts.amin())
            .sub(1)
            .clamp(max=self._last_start)
        )

    @property
    def _last_start(self) -> int:
        # The last window ends with the last token that is fed: its first tokens were fed before.
        return self._length - 1 - self.size

    def is_decided(self, at: Tensor) -> Tensor:
        """Tells which tokens at positions (R, W) are known or drawn for good, (R, W) bool."""
        return at < self._decided[:, None]

    def positions(self, starts: Tensor) -> Tensor:
        """Returns those of windows that begin at `starts` (R,), (R, W) int64."""
        return starts[:, None] + torch.arange(self.size, device=starts.device)

    def fed(self, positions: Tensor) -> Tensor:
        """Returns the tokens (R, W) at positions (R, W)."""
        return self._tokens.gather(1, positions)

    def draw(self, logits: Tensor, starts: Tensor) -> None:
        """Draws the tokens behind those of a pass that began at `starts`, from its logits
        (R, W, V)."""
        is_under_way = self._decided < self._ends
        self._n_passes += is_under_way
        firsts = starts + 1
        at = self.positions(firsts)
        before = self.fed(at)
        is_known = self._known.gather(1, at) | self.is_decided(at)
        drawn = torch.where(is_known, before, self._draw(logits, firsts))
        seen = self._tokens.clone() if self._draft else self._tokens
        self._tokens.scatter_(1, at, drawn)
        if self.size == 1:
            if self._kept is not None:
                self._kept.append(logits[:, 0].clone())
            self._decided = self._decided + is_under_way
            self._progress.advance()
            self._check(logits, at, is_under_way)
            return
        was_right = (drawn == before)[:, :-1].long()
        decided = firsts + 1 + was_right.cumprod(dim=1).sum(dim=1)
        self._decided = torch.where(is_under_way, decided, self._decided)
        self._progress.read(self._decided)
        self._check(logits, at, is_under_way)
        if self._draft is None:
            at = at + self.size
            is_known = self._known.gather(1, at) | self.is_decided(at)  # of one that is over
            self._guess(self._tokens, is_known, at)
        else:
            self._guess_by_draft(self._draft, logits, firsts, seen)

    def _check(self, logits: Tensor, at: Tensor, is_under_way: Tensor) -> None:
        """Looks at the logits (R, W, V) of tokens that are drawn for good, at positions (R, W):
        neither at those behind a wrong guess, nor at those of a sequence that is over."""
        counts = is_under_way[:, None] & (at < self._ends[:, None]) & self.is_decided(at)
        self._is_finite &= logits.amax(dim=-1).where(counts, 0).isfinite().all()

    def _draw(self, logits: Tensor, firsts: Tensor) -> Tensor:
        if self._sampling.greedy:
            return sample_tokens(logits, None, self._sampling)
        noise = self._noise_of(firsts, logits.shape[1])
        return sample_tokens(logits, noise, self._sampling)

    def _noise_of(self, firsts: Tensor, n: int) -> Tensor:
        progress = self._progress
        return self._noise.of(firsts, n, decided=progress.decided, slack=progress.slack)

    def _guess(self, tokens: Tensor, is_known: Tensor, at: Tensor) -> None:
        """Guesses the tokens at positions (K, W) that are not known: the pixel above each."""
        above = tokens.gather(1, (at - self._width).clamp(min=1))
        guesses = torch.where(is_known, tokens.gather(1, at), above)
        tokens.scatter_(1, at, guesses)

    def _guess_by_draft(
        self, draft: NeighborTables, logits: Tensor, firsts: Tensor, seen: Tensor
    ) -> None:
        """Guesses the tokens behind the decided ones, each of those before it: with its own noise,
        by the logits (R, W, V) of the last pass, which began at `firsts` and saw the tokens `seen`,
        corrected for neighbors that are others now."""
        at = self.positions(self._decided)[:, : self.size - 1]
        place = at - firsts[:, None]
        last = logits.float().take_along_dim(place.clamp(0, self.size - 1)[..., None], dim=1)
        last -= self._neighbors.sum(seen, at)
        last = torch.where((place < self.size)[..., None], last, draft.frequencies)
        noise = None
        if not self._sampling.greedy:
            noise = self._noise_of(self._decided, at.shape[1])
        is_known, known = self._known.gather(1, at), self.fed(at)
        for i in range(at.shape[1]):
            here = slice(i, i + 1)
            likely = last[:, here] + self._neighbors.sum(self._tokens, at[:, here])
            guess = sample_tokens(likely, None if noise is None else noise[:, here], self._sampling)
            guess = torch.where(is_known[:, here], known[:, here], guess)
            self._tokens.scatter_(1, at[:, here], guess)
