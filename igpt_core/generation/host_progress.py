"""HostProgress: how far sequences are, read from a GPU without waiting for it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostProgress:
    """How far sequences are, as the host knows it: on a GPU it may be behind.

    Attributes:
        decided: (R,) int64, tokens of each sequence that are known or drawn for good.
        slack: the most tokens of a sequence that were drawn since.
    """

    def __init__(self, n_rows: int) -> None:
        self.decided, self.slack = np.ones(n_rows, np.int64), 0
        self._ends = np.zeros(n_rows, np.int64)
        self._copies: list[tuple[Tensor, torch.cuda.Event | None]] = []  # under way

    @property
    def are_over(self) -> NDArray[np.bool_]:
        """Tells of which sequences (R,) nothing is left."""
        return self.decided >= self._ends

    @property
    def furthest(self) -> int:
        """Returns the most that is decided of a sequence that is not over; 1 if all are."""
        return int(self.decided.max(initial=1, where=~self.are_over))

    def passes_left(self, size: int) -> int:
        """Counts the passes over windows of this size that are left if every guess is right."""
        n_left = int((self._ends - self.decided).max(initial=0))
        return -(-n_left // size)

    def learn(self, decided: Tensor, ends: Tensor) -> None:
        """Reads from the device, at once, how far all are and where they end."""
        self.decided, self._ends = _on_host(decided), _on_host(ends)
        self._copies.clear()  # of other sequences

    def advance(self) -> None:
        """Counts one more token of each sequence that is not over."""
        self.decided = self.decided + ~self.are_over

    def read(self, decided: Tensor) -> None:
        """Reads it from the device: at once, or what was to be read the time before."""
        if not self.slack:
            self.decided = _on_host(decided)
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
            self.decided = _on_host(arrived)


def _on_host(numbers: Tensor) -> NDArray[np.int64]:
    return numbers.cpu().numpy().copy()
