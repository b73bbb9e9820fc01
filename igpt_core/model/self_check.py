"""Fast ways of a GPU, compared with plain ones on the device at hand before they are trusted."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from igpt_core.model.attention_inputs import Prefix, Scales
from igpt_core.model.kv_cache import to_eight_bits

_log = logging.getLogger(__name__)
_KERNEL = "the attention kernel for windows"
_EIGHT_BITS = "the attention kernel for caches of 8 bits"
_ALL = "all that is fast"
_left_aside: list[tuple[str, torch.device | None, str]] = []  # what, where (None: anywhere), why

# Window, positions that are shared, and others: in one split or several, of one tile of queries or
# more.
_CASES = ((1, 0, 96), (1, 0, 576), (20, 256, 320))
# A weight and a result are rounded by up to 2^-9 of bfloat16, 2^-12 of float16, in sums of order 1.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def takes_starts(like: Tensor, head_size: int, *, eight_bits: bool = False) -> bool:
    """Returns whether `attend` should be told where windows start, in place of what they see, with
    keys and values of `like` or of 8 bits: on GPUs on which the kernel for that works."""
    kernel = _EIGHT_BITS if eight_bits else _KERNEL
    if not like.is_cuda or is_left_aside(kernel, like.device):
        return False
    return window_kernel_works(like.device, like.dtype, head_size, eight_bits)


@lru_cache(maxsize=8)
def window_kernel_works(
    device: torch.device, dtype: torch.dtype, head_size: int, eight_bits: bool = False
) -> bool:
    """Returns whether `attend_windows` computes on a device what plain products do, and a row the
    same bits beside others as alone. It is left aside where it does not."""
    why = _fault(device, dtype, head_size, eight_bits)
    if why is not None:
        leave_aside(_EIGHT_BITS if eight_bits else _KERNEL, device, why)
    return why is None


def leave_aside(what: str, device: torch.device, why: str) -> None:
    """Lets something fast not be used on a device in this process again; says so in a line of the
    log, once."""
    if (what, device, why) not in _left_aside:
        _left_aside.append((what, device, why))
        _log.warning("%s is left aside on %s: %s", what, device, why)


def leave_all_aside(why: str) -> None:
    """Lets nothing of this be used in this process again."""
    _left_aside.append((_ALL, None, why))


def is_left_aside(what: str, device: torch.device) -> bool:
    return any(found[:2] in ((what, device), (_ALL, None)) for found in _left_aside)


def left_aside() -> list[str]:
    """Returns what this process leaves aside, each with the reason."""
    return [f"{what}: {why}" for what, _, why in _left_aside]


def _fault(
    device: torch.device, dtype: torch.dtype, head_size: int, eight_bits: bool
) -> str | None:
    """Returns what is wrong with the kernel on small cases; None for nothing."""
    if eight_bits and dtype == torch.float16:
        return "float16 loses what is small when it is multiplied by a scale"
    if dtype not in _TOLERANCES:
        return f"it was never tried in {dtype}"
    try:
        from igpt_core.model.window_kernel import attend_windows
    except Exception as error:  # a Triton that does not fit says it in many ways
        return f"{error} (torch for CUDA on Linux brings Triton along)"
    try:
        with torch.cuda.device_of(torch.empty(0, device=device)):  # type: ignore[no-untyped-call]
            for window, n_shared, n_own in _CASES:
                case = _Case.drawn(window, n_shared, n_own, device, dtype, head_size)
                case = case.in_eight_bits() if eight_bits else case
                why = case.fault_of(attend_windows)
                if why is not None:
                    return f"{why} in {dtype}"
    except Exception as error:  # of a compiler or a driver that nobody has seen
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


class _Case(NamedTuple):
    """Queries, keys, values and a prefix of four rows, two of which share it."""

    q: Tensor
    k: Tensor
    v: Tensor
    starts: Tensor
    prefix: Prefix | None
    scales: Scales | None = None

    @classmethod
    def drawn(
        cls,
        window: int,
        n_shared: int,
        n_own: int,
        device: torch.device,
        dtype: torch.dtype,
        head_size: int,
    ) -> "_Case":
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, head_size, generator=generator).to(device, dtype)

        q, k, v = drawn(4, 2, window), *drawn(2, 4, 2, n_own)
        shared = drawn(2, 2, 2, n_shared)
        last = n_own - window
        starts = torch.tensor([0, last // 3, last, last // 2], device=device) + n_shared
        return cls(q, k, v, starts, Prefix(*shared) if n_shared else None)

    def in_eight_bits(self) -> "_Case":
        """Returns the same queries with keys and values that are rounded."""
        k, v, scales = _in_eight_bits(self.k, self.v)
        prefix = self.prefix and Prefix(*_in_eight_bits(self.prefix.k, self.prefix.v))
        return self._replace(k=k, v=v, prefix=prefix, scales=scales)

    def fault_of(self, kernel: Callable[..., Tensor]) -> str | None:
        """Returns what is wrong with a kernel; None for nothing."""
        scale = self.q.shape[3] ** -0.5
        held = {"prefix": self.prefix, "scales": self.scales}
        found = kernel(self.q, self.k, self.v, starts=self.starts, scale=scale, **held)
        wrong_by = (found.double() - self._plainly(scale)).abs().max().item()
        if not wrong_by <= _TOLERANCES[found.dtype]:  # NaN too
            return f"its results are wrong by {wrong_by:.2g}"
        two, room = slice(2, 4), self.k.shape[2] - self.k.shape[2] // 4
        starts = self.starts[two].clamp(max=int(self.starts[3]))
        own = (self.q[two], self.k[two, :, :room], self.v[two, :, :room])
        prefix, scales = self.prefix, self.scales
        if prefix is not None:
            its = prefix.scales and Scales(*(part[1:] for part in prefix.scales))
            prefix = Prefix(prefix.k[1:], prefix.v[1:], its)
        if scales is not None:
            scales = Scales(*(part[two, :, :room] for part in scales))
        alone = kernel(*own, starts=starts, scale=scale, prefix=prefix, scales=scales)
        if not torch.equal(alone[1], found[3]):
            return "a row's result depends on the others"
        return None

    def _plainly(self, scale: float) -> Tensor:
        """Computes the results by products of float64, whose operands are those of the dtype."""
        k, v = _in_float64(self.k, self.v, self.scales)
        if self.prefix is not None:
            k, v = Prefix(*_in_float64(*self.prefix)).before(k, v)
        positions = self.starts[:, None] + torch.arange(self.q.shape[2], device=k.device)
        unseen = torch.arange(k.shape[2], device=k.device) > positions[:, None, :, None]
        scores = (self.q.double() @ k.transpose(2, 3)) * scale
        weights = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1)
        return torch.matmul(weights, v)


def _in_eight_bits(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Scales]:
    (k, k_scales), (v, v_scales) = to_eight_bits(k), to_eight_bits(v)
    return k, v, Scales(k_scales, v_scales)


def _in_float64(k: Tensor, v: Tensor, scales: Scales | None) -> tuple[Tensor, Tensor]:
    if scales is None:
        return k.double(), v.double()
    return k.double() * scales.k, v.double() * scales.v
