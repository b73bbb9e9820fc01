"""Fast ways of a GPU, compared with plain ones on the device at hand before they are trusted."""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from igpt_core.model.attention import Prefix

_log = logging.getLogger(__name__)
_left_aside: list[tuple[str, torch.device, str]] = []  # what, where, why

_ROWS, _EACH, _HEADS, _SHARED, _OWN = 4, 2, 2, 64, 576  # of the case
# Half of what 8 more bits of a weight are worth, and of one of a result.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def takes_starts(like: Tensor, head_size: int) -> bool:
    """Returns whether `attend` should be told where windows start, in place of what they see: on
    GPUs on which the kernel for that works."""
    return like.is_cuda and window_kernel_works(like.device, like.dtype, head_size)


@lru_cache(maxsize=8)
def window_kernel_works(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Returns whether `attend_windows` computes on a device what plain products do, and a row the
    same bits beside others as alone. It is left aside where it does not."""
    why = _fault(device, dtype, head_size)
    if why is not None:
        leave_aside("the attention kernel for windows", device, why)
    return why is None


def leave_aside(what: str, device: torch.device, why: str) -> None:
    """Lets something fast not be used on a device in this process again; says so in a line of the
    log, once."""
    if (what, device, why) not in _left_aside:
        _left_aside.append((what, device, why))
        _log.warning("%s is left aside on %s: %s", what, device, why)


def is_left_aside(what: str, device: torch.device) -> bool:
    return any((what, device) == found[:2] for found in _left_aside)


def left_aside() -> list[str]:
    """Returns what this process leaves aside, each with the reason."""
    return [f"{what}: {why}" for what, _, why in _left_aside]


def _fault(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Returns what is wrong with the kernel on a small case; None for nothing."""
    if dtype not in _TOLERANCES:
        return f"it was never tried in {dtype}"
    try:
        from igpt_core.model.window_kernel import attend_windows
    except ImportError as error:
        return f"{error} (torch for CUDA on Linux brings Triton along)"
    with torch.cuda.device_of(torch.empty(0, device=device)):  # type: ignore[no-untyped-call]
        return _fault_of(attend_windows, device, dtype, head_size)


def _fault_of(
    kernel: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, head_size: int
) -> str | None:
    for window in (1, 20):
        q, k, v, prefix, starts = _case(window, device, dtype, head_size)
        scale = head_size**-0.5
        try:
            found = kernel(q, k, v, starts=starts, scale=scale, prefix=prefix)
            last = slice(_ROWS - _EACH, None)
            alone = kernel(
                q[last],
                k[last, :, :448],
                v[last, :, :448],
                starts=starts[last],
                scale=scale,
                prefix=Prefix(prefix.k[-1:], prefix.v[-1:]),
            )
            wrong_by = (found.double() - _plainly(q, k, v, prefix, starts)).abs().max().item()
        except Exception as failure:  # of a compiler or a driver that nobody has seen
            return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        if not wrong_by <= _TOLERANCES[dtype]:  # NaN too
            return f"its results in {dtype} are wrong by {wrong_by:.2g}"
        if not torch.equal(alone, found[last]):
            return f"a row's result in {dtype} depends on the others"
    return None


def _case(
    window: int, device: torch.device, dtype: torch.dtype, head_size: int
) -> tuple[Tensor, Tensor, Tensor, Prefix, Tensor]:
    """Draws queries, keys, values and a prefix of rows that stand in each of three splits."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, head_size, generator=generator).to(device, dtype)

    q, k, v = drawn(_ROWS, _HEADS, window), *drawn(2, _ROWS, _HEADS, _OWN)
    prefix = Prefix(*drawn(2, _ROWS // _EACH, _HEADS, _SHARED))
    starts = torch.tensor([_SHARED, _SHARED + _OWN - window, 400, 255], device=device)
    return q, k, v, prefix, starts


def _plainly(q: Tensor, k: Tensor, v: Tensor, prefix: Prefix, starts: Tensor) -> Tensor:
    """Computes the case by products of float64, whose operands are those of the dtype."""
    k, v = (both.double() for both in prefix.before(k, v))
    positions = starts[:, None] + torch.arange(q.shape[2], device=q.device)
    unseen = torch.arange(k.shape[2], device=q.device) > positions[:, None, :, None]
    scores = (q.double() @ k.transpose(2, 3)) * q.shape[3] ** -0.5
    weights = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1)
    return torch.matmul(weights, v)
