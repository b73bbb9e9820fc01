"""Passes of fixed shape that a GPU is given as one: captured as a CUDA graph, then replayed."""

from collections.abc import Callable
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from igpt_core.model.self_check import is_left_aside, leave_aside

_NAME = "a captured pass"
# Beyond so many rows a GPU takes longer for a pass than the host for its launches (H200).
_MOST_ROWS = 384
_FEWEST_PASSES = 64  # of which a capture and its comparisons take as long as a few
_one_at_a_time = Lock()

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
    # By hand: torch.cuda.graph captures on a stream of the first device that ever captured, gives
    # all cached memory back each time, and stays on its stream where the capture fails.
    with _one_at_a_time, torch.cuda.stream(_capture_stream(tokens.device)):
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")  # others may allocate meanwhile
        try:
            result = run(tokens, positions)
        finally:
            graph.capture_end()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns one for all captures of a device: a library keeps memory for each that it sees."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CapturedPass:
    """A pass that is captured after it has run once, and replayed from then on.

    The first two calls are compared with the pass itself, so that one is at positions that the
    capture has not seen. Where the bits differ, nothing is captured in this process any more.
    """

    def __init__(self, run: Pass, capture: Capture | None = None) -> None:
        """Keeps a pass for later.

        Args:
            run: feeds tokens (R, W) at positions (R, W) and returns logits (R, W, V). Nothing that
                it launches depends on the positions but through this tensor, and done twice with
                the same it changes nothing the second time.
            capture: as `cuda_graph`, which it is unless given.
        """
        self._run, self._capture = run, capture or cuda_graph
        self._replay: Callable[[], Tensor] | None = None
        self._n_compared = 0
        self._has_room = True

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Computes what `run` does, into a tensor that the next call may overwrite."""
        if not self._has_room or is_left_aside(_NAME, tokens.device):
            return self._run(tokens, positions)
        if self._n_compared < 2:
            return self._compared(tokens, positions)
        return self._replayed(tokens, positions)

    def _compared(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits of the pass itself; leaves captures aside if a replay's are others."""
        logits = self._run(tokens, positions)
        try:
            if _same_bits(self._replayed(tokens, positions), logits):
                self._n_compared += 1
            else:
                leave_aside(_NAME, tokens.device, "its logits are others")
        except torch.OutOfMemoryError:  # which may be over soon
            self._has_room = False
        except Exception as error:  # what cannot be captured, in torch's words or Triton's
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
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


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compares logits, of which those behind a wrong guess may be NaN."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return torch.equal(a.view(bits), b.view(bits))
