"""A fast way of a GPU is used where it computes what the plain one does."""

import logging
import sys

import pytest
import torch
from torch import Tensor

from igpt_core.model import self_check, window_kernel
from igpt_core.model.attention_inputs import Scales
from igpt_core.model.self_check import is_left_aside, left_aside, takes_starts, window_kernel_works
from igpt_core.model.window_kernel import attend_windows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what was found before."""
    monkeypatch.setattr(self_check, "_left_aside", [])
    window_kernel_works.cache_clear()


@pytest.mark.parametrize("head_size", [8, 64, 96])
@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
)
def test_the_kernel_works(
    dtype: torch.dtype, eight_bits: bool, head_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    works = dtype != torch.float16 or not eight_bits  # which loses what is small
    assert window_kernel_works(DEVICE, dtype, head_size, eight_bits) == works
    assert len(caplog.records) == (not works)


def wrong(*arguments: Tensor, **options: object) -> Tensor:
    found = attend_windows(*arguments, **options)
    found[0, 0, 0, 0] += 0.1
    return found


def nan(*arguments: Tensor, **options: object) -> Tensor:
    return attend_windows(*arguments, **options) * torch.nan


def dependent(*arguments: Tensor, **options: object) -> Tensor:
    """Rounds otherwise where there are more rows."""
    found = attend_windows(*arguments, **options)
    return found * (1 + 1e-6) if len(found) > 2 else found


def failing(*arguments: Tensor, **options: object) -> Tensor:
    raise RuntimeError("no such instruction\nand more of it")


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (wrong, "its results are wrong by 0.1 in torch.float32"),
        (nan, "its results are wrong by nan in torch.float32"),
        (dependent, "a row's result depends on the others in torch.float32"),
        (failing, "RuntimeError: no such instruction"),
    ],
)
def test_a_kernel_with_a_fault_is_left_aside_with_one_line(
    kernel: object, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(window_kernel, "attend_windows", kernel)
    for _ in range(2):
        assert not window_kernel_works(DEVICE, torch.float32, 32)
    expected = f"the attention kernel for windows is left aside on {DEVICE}: {why}"
    assert [record.getMessage() for record in caplog.records] == [expected]
    assert caplog.records[0].levelno == logging.WARNING
    assert left_aside() == [f"the attention kernel for windows: {why}"]
    assert is_left_aside("the attention kernel for windows", DEVICE)


def without_scales(*arguments: Tensor, **options: object) -> Tensor:
    if options["scales"] is not None:
        options["scales"] = Scales(*(torch.ones_like(part) / 64 for part in options["scales"]))
    return attend_windows(*arguments, **options)


def test_a_kernel_that_is_wrong_in_8_bits_is_left_aside_for_those_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_kernel, "attend_windows", without_scales)
    assert window_kernel_works(DEVICE, torch.float32, 32)
    assert not window_kernel_works(DEVICE, torch.float32, 32, True)
    (what,) = left_aside()
    assert what.startswith("the attention kernel for caches of 8 bits: its results are wrong by ")
    assert not is_left_aside("the attention kernel for windows", DEVICE)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter alone lacks bfloat16")
def test_a_kernel_that_is_really_wrong_is_found() -> None:
    """Triton's interpreter multiplies the bits of bfloat16 as whole numbers."""
    assert not window_kernel_works(DEVICE, torch.bfloat16, 32)


def test_dtypes_that_it_does_not_know_and_a_torch_without_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not window_kernel_works(DEVICE, torch.float64, 32)
    monkeypatch.delitem(sys.modules, "igpt_core.model.window_kernel")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not window_kernel_works(DEVICE, torch.float32, 32)
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert said[0] == "it was never tried in torch.float64"
    assert "triton" in said[1]
    assert said[1].endswith("(torch for CUDA on Linux brings Triton along)")


def test_on_a_cpu_it_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "window_kernel_works", lambda *_: pytest.fail("asked"))
    assert not takes_starts(torch.zeros(1), 32)
    assert left_aside() == []
