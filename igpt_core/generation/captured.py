"""Passes of fixed shape that a GPU is given as one: captured as a CUDA graph, then replayed."""

from collections.abc import Callable

import torch
from torch import Tensor

from igpt_core.model.self_check import is_left_aside, leave_aside

_NAME = "a captured pass"
# Beyond so many rows a GPU takes longer for a pass than the host for its launches (H200).
_MOST_ROWS = 384
_FEWEST_PASSES = 64  # for which a capture pays, which takes as long as a few

Pass = Callable[[Tensor, Tensor], Tensor]
Capture = Callable[[Pass, Tensor, Tensor], Callable[[], Tensor]]


def captures_pay(device: torch.device, n_rows: int, n_passes: int) -> bool:
    """Returns whether so many passes over so many rows gain by being captured."""
    return device.type == "cuda" and n_rows <= _MOST_ROWS and n_passes >= _FEWEST_PASSES


def cuda_graph(run: Pass, tokens: Tensor, positions: Tensor) -> Callable[[], Tensor]:
    """Captures what a pass over these tensors launches; each call of what it returns launches it
    again, and returns the same tensor, whose numbers are new.

    The pass has run before: libraries make their handles then, and Triton compiles, which a capture
    does not allow.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(tokens, positions)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class CapturedPass:
    """A pass that is captured when it is first called, and replayed from then on.

    Two calls are compared with the pass itself, so that one is at positions that the capture has
    not seen. Where the bits differ, nothing is captured in this process any more.
    """

    def __init__(self, run: Pass, capture: Capture = cuda_graph) -> None:
        """Keeps a pass for later.

        Args:
            run: feeds tokens (R, W) at positions (R, W) and returns logits (R, W, V). Nothing that
                it launches depends on the positions but through this tensor, and done twice with
                the same it changes nothing the second time.
            capture: as `cuda_graph`.
        """
        self._run, self._capture = run, capture
        self._replay: Callable[[], Tensor] | None = None
        self._n_compared = 0

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Computes what `run` does, into a tensor that the next call overwrites."""
        if is_left_aside(_NAME, tokens.device):
            return self._run(tokens, positions)
        if self._n_compared < 2:
            return self._compared(tokens, positions)
        return self._replayed(tokens, positions)

    def _compared(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits of the pass itself; leaves captures aside if a replay's are others."""
        logits, why = self._run(tokens, positions), "its logits are others"
        try:
            if torch.equal(self._replayed(tokens, positions), logits):
                self._n_compared += 1
                return logits
        except RuntimeError as error:  # an operation that cannot be captured
            why = str(error).splitlines()[0]
        leave_aside(_NAME, tokens.device, why)
        return logits

    def _replayed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self._replay is None:
            self._tokens, self._positions = tokens.clone(), positions.clone()
            self._replay = self._capture(self._run, self._tokens, self._positions)
        else:
            self._tokens.copy_(tokens)
            self._positions.copy_(positions)
        return self._replay()
