"""The fast ways of a GPU are tried before images depend on them; here by what stands for a GPU."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from igpt_core.generation import captured, decoding, passes
from igpt_core.generation.captured import CapturedPass, Pass
from igpt_core.generation.trial import try_fast_ways
from igpt_core.model import self_check

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was left aside before."""
    monkeypatch.setattr(self_check, "_left_aside", [])
    self_check.window_kernel_works.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_left_aside_where_nothing_is_wrong(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing is tried; a GPU of these days has no fault."""
    captures, cuda_graph = [], captured.cuda_graph
    monkeypatch.setattr(captured, "cuda_graph", lambda *a: captures.append(a) or cuda_graph(*a))
    state = torch.get_rng_state()
    assert try_fast_ways(DEVICE, dtype, 64) == []
    assert len(captures) == (DEVICE.type == "cuda")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU has the kernel")
def test_where_no_kernel_reads_8_bits_nothing_is_drawn_with_them() -> None:
    assert try_fast_ways(DEVICE, torch.float32, 8, kv_cache_dtype=torch.int8) == []


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("head_size", [32, 64, 96])
def test_a_gpu_draws_with_a_cache_of_8_bits(head_size: int) -> None:
    assert try_fast_ways(DEVICE, torch.bfloat16, head_size, kv_cache_dtype=torch.int8) == []


@pytest.mark.skipif(DEVICE.type == "cuda", reason="Triton does not interpret here")
def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(run: Pass, tokens: Tensor, positions: Tensor) -> Callable[[], Tensor]:
        return lambda: run(tokens, positions) + 1

    monkeypatch.setattr(decoding, "takes_starts", lambda *_, **__: True)
    monkeypatch.setattr(passes, "captures_pay", lambda *_: True)
    monkeypatch.setattr(passes, "CapturedPass", partial(CapturedPass, capture=capture))
    found = try_fast_ways(torch.device("cpu"), torch.float32, 8)
    assert found == ["a captured pass: its logits are others"]
