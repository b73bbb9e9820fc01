"""Spans of which the bits do not depend on the choice."""

import pytest
import torch

from igpt_core.model.attention import attend
from igpt_core.model.attention_inputs import added_mask
from igpt_core.model.spans import steady_spans, whole_units


@pytest.mark.parametrize(("n", "whole"), [(1, 64), (64, 64), (65, 128)])
def test_whole_units(n: int, whole: int) -> None:
    assert whole_units(n) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n_queries", "by_channel"),
    [(1, True), (4, True), (8, True), (1, False), (2, False), (4, False), (8, False), (16, False)],
)
@pytest.mark.parametrize("head_size", [32, 64])
def test_a_steady_span_gives_the_bits_of_the_whole_whatever_is_seen(
    dtype, n_queries, by_channel, head_size
):
    """Past bug: with 256 or 320 keys a processor's products round otherwise, and how many there are
    is up to the rows that are ahead."""
    kind = {
        **{"n_queries": n_queries, "head_size": head_size, "dtype": dtype},
        "by_channel": by_channel,
    }
    spans = steady_spans(1024, device=torch.device("cpu"), **kind)
    assert spans[-1] == 1024
    assert set(spans) <= set(range(64, 1025, 64))
    assert len(spans) >= 4, "a kernel of which nothing is known"
    q = torch.empty((2, 3, n_queries, head_size), dtype=dtype)
    cache = torch.empty((2, 2, 3, 1024, head_size), dtype=dtype)
    for seed, n_seen in enumerate([20, 64, 150, 250, 300, 500, 700, 800, 1000]):
        generator = torch.Generator().manual_seed(seed)
        q.normal_(generator=generator)
        k, v = cache.normal_(generator=generator)
        results = []
        for span in (span for span in spans if span >= n_seen):
            seen = torch.arange(span) <= torch.arange(n_seen - n_queries, n_seen)[:, None]
            keys = k[:, :, :span]
            if by_channel:
                keys = keys.transpose(2, 3).contiguous().transpose(2, 3)
            mask = added_mask(seen, torch.float32 if by_channel else dtype)
            with torch.inference_mode():  # as decoding is
                results.append(attend(q, keys, v[:, :, :span], mask=mask))
        assert all(torch.equal(result, results[-1]) for result in results)
