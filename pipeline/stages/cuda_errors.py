"""Handling of batches that a GPU cannot compute: too little memory, or a broken context."""

import gc
import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.errors import DoesNotFit

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def within_memory(
    compute: Callable[..., Result], rows: Sequence[Tensor], *, at_once: int, sequences: int
) -> Result:
    """Computes rows, the first axis of tensors, by `compute(*rows, at_once=...)`.

    Where memory runs out it is cleared and all is computed once more: what other work has left
    may be gone. Fewer at once in their place would give other results.

    Args:
        at_once: images that are computed together.
        sequences: that are computed of each image; the message counts those, as --batch-size does.

    Raises DoesNotFit where memory runs out twice.
    """
    for _ in range(2):
        try:
            return compute(*rows, at_once=at_once)
        except RuntimeError as error:
            _end_if_broken(error)
            if not _is_out_of_memory(error):
                raise
        _clear()  # out of the handler, whose traceback keeps the tensors alive
    fits = _largest(compute, rows, at_once)
    advice = "not even one image fits; next: end what else uses the device, then the same command"
    if fits:
        advice = f"next: --batch-size {fits * sequences}, which fits, with another --output"
    raise DoesNotFit(
        f"expected memory for {at_once * sequences} sequences at a time, found too little twice; "
        f"{advice}"
    )


def _largest(compute: Callable[..., Result], rows: Sequence[Tensor], at_once: int) -> int:
    """Finds how many images do fit: half as many until it works; 0 where none does."""
    n = at_once // 2
    while n:
        try:
            compute(*(tensor[:n] for tensor in rows), at_once=n)
            return n
        except RuntimeError as error:
            _end_if_broken(error)
            if not _is_out_of_memory(error):
                raise
        _clear()
        n //= 2
    return 0


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Recognizes what allocators, CUDA and cuBLAS say, each in its own way."""
    messages = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(m in str(error) for m in messages)


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _end_if_broken(error: RuntimeError) -> None:
    """Ends the process over an error of CUDA itself. Its context is lost with that: every later
    call in this process would fail too, for all images that come. Ray starts another process."""
    if isinstance(error, torch.AcceleratorError) and not _is_out_of_memory(error):
        _log.error("the GPU's context is broken, this process ends: %s", error)
        logging.shutdown()
        os._exit(1)
