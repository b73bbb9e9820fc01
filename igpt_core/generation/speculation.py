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
from igpt_core.generation.noise import GumbelNoise, NoiseAhead
from igpt_core.generation.sampling import SamplingConfig, sample_tokens
from igpt_core.model.attention import has_tiles


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
        # Tokens of each sequence, from its first on.
        self._decided = torch.tensor(starts, device=tokens.device)
        last_unknown = self._length - 1 - (~known).flip(1).long().argmax(dim=1)
        self._ends = torch.where(known.all(dim=1), 0, last_unknown + 1)
        self._n_passes = (self._decided < self._ends).long()
        self._progress = _Progress(list(starts), self._ends.tolist())
        self._width = max(math.isqrt(self._length - 1), 1)  # of an image
        self._noise = NoiseAhead(noise, n_colors, size, self._last_start)
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
    def passes(self) -> list[int]:
        """Returns the passes from which each sequence's tokens were drawn, the prompt's among
        them."""
        return self._n_passes.tolist()

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
        return min(max(self._progress.decided) - 1, self._last_start)

    @property
    def starts(self) -> Tensor:
        """Returns the positions (R,) of the first tokens of the next pass."""
        return (self._decided - 1).clamp(max=self._last_start)

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

    def draw_first(self, logits: Tensor) -> None:
        """Draws the token at each start from its logits (R, V)."""
        at = self.positions(self._decided)
        first = at[:, :1]
        drawn = self._draw(logits[:, None], self._decided)
        drawn = torch.where(self._known.gather(1, first), self.fed(first), drawn)
        self._tokens.scatter_(1, first, drawn)
        self._decided = self._decided + 1
        self._progress.advance(self._length)
        self._guess(at + 1)

    def draw(self, logits: Tensor, starts: Tensor) -> None:
        """Draws the tokens behind those of a pass that began at `starts`, from its logits
        (R, W, V)."""
        self._n_passes += self._decided < self._ends
        firsts = starts + 1
        at = self.positions(firsts)
        before = self.fed(at)
        is_known = self._known.gather(1, at) | self.is_decided(at)
        drawn = torch.where(is_known, before, self._draw(logits, firsts))
        seen = self._tokens.clone() if self._draft else self._tokens
        self._tokens.scatter_(1, at, drawn)
        if self.size == 1:
            self._decided = firsts + 1
            self._progress.advance(self._length)
            return
        was_right = (drawn == before)[:, :-1].long()
        self._decided = firsts + 1 + was_right.cumprod(dim=1).sum(dim=1)
        self._progress.read(self._decided)
        if self._draft is None:
            self._guess(at + self.size)
        else:
            self._guess_by_draft(self._draft, logits, firsts, seen)

    def _draw(self, logits: Tensor, firsts: Tensor) -> Tensor:
        if self._sampling.greedy:
            return sample_tokens(logits, None, self._sampling)
        noise = self._noise_of(firsts, logits.shape[1])
        return sample_tokens(logits, noise, self._sampling)

    def _noise_of(self, firsts: Tensor, n: int) -> Tensor:
        progress = self._progress
        return self._noise.of(firsts, n, decided=progress.decided, slack=progress.slack)

    def _guess(self, at: Tensor) -> None:
        """Guesses tokens (R, W) of which none was drawn: the pixel above each."""
        above = self.fed((at - self._width).clamp(min=1))
        guesses = torch.where(self._known.gather(1, at), self.fed(at), above)
        self._tokens.scatter_(1, at, guesses)

    def _guess_by_draft(
        self, draft: NeighborTables, logits: Tensor, firsts: Tensor, seen: Tensor
    ) -> None:
        """Guesses the tokens behind the decided ones, each of those before it: with its own noise,
        by the logits (R, W, V) of the last pass, which began at `firsts` and saw the tokens `seen`,
        corrected for neighbors that are others now."""
        at = self.positions(self._decided)[:, : self.size - 1]
        place = at - firsts[:, None]
        last = logits.float().take_along_dim(place.clamp(max=self.size - 1)[..., None], dim=1)
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


class _Progress:
    """How far sequences are, as the host knows it: on a GPU it may be behind.

    Attributes:
        decided: tokens of each sequence that are known or drawn for good.
        slack: the most tokens of a sequence that were drawn since.
    """

    def __init__(self, decided: list[int], ends: list[int]) -> None:
        self.decided, self.slack = decided, 0
        self._ends = ends
        self._copies: list[tuple[Tensor, torch.cuda.Event | None]] = []  # under way

    def passes_left(self, size: int) -> int:
        """Counts the passes over windows of this size that are left if every guess is right."""
        n_left = max(map(int.__sub__, self._ends, self.decided), default=0)
        return max(-(-n_left // size), 0)

    def advance(self, length: int) -> None:
        """Counts one more token of each sequence of this length."""
        self.decided = [min(n + 1, length) for n in self.decided]

    def read(self, decided: Tensor) -> None:
        """Reads it from the device: at once, or what was to be read the time before."""
        if not self.slack:
            self.decided = decided.tolist()
            return
        copy = torch.empty_like(decided, device="cpu", pin_memory=decided.is_cuda)
        copy.copy_(decided, non_blocking=True)
        event = None
        if decided.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._copies.append((copy, event))
        if len(self._copies) > 1:
            arrived, event = self._copies.pop(0)
            if event is not None:
                event.synchronize()
            self.decided = arrived.tolist()
