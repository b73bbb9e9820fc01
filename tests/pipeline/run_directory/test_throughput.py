"""Images per second over time, against counting in many small steps."""

import numpy as np
import pytest

from pipeline.run_directory.throughput import Span, throughput, working_seconds

NOON = 1.8e9  # unix seconds are large


def spans_of(seed: int) -> list[Span]:
    rng = np.random.default_rng(seed)
    starts = NOON + rng.uniform(0, 100, 40)
    return [
        Span(start, start + length, int(n))
        for start, length, n in zip(
            starts, rng.gamma(2, 3, 40), rng.integers(0, 50, 40), strict=True
        )
    ]


def test_each_shard_counts_evenly_over_its_span():
    spans = spans_of(0)
    found = throughput(spans, without_pauses=False)
    begin, end = min(s.start for s in spans), max(s.stop for s in spans)
    assert found.seconds == pytest.approx(end - begin)
    moments = np.concatenate([np.linspace(s.start, s.stop, 20_001) for s in spans])
    weights = np.concatenate([np.full(20_001, s.images / 20_001) for s in spans])
    counted, _ = np.histogram(moments, np.linspace(begin, end, 61), weights=weights)
    assert found.images_per_second * found.bin_seconds == pytest.approx(counted, abs=0.05)
    assert found.mean * found.seconds == pytest.approx(sum(s.images for s in spans))
    assert found.pauses == ()


def test_pauses_are_left_out_or_zeros():
    """Two shards side by side, then one, then the run rests twice."""
    spans = [
        Span(NOON, NOON + 10, 100),
        Span(NOON + 5, NOON + 20, 150),
        Span(NOON + 1020, NOON + 1030, 30),
        Span(NOON + 5030, NOON + 5040, 40),
    ]
    found = throughput(spans, without_pauses=True)
    assert found.seconds == pytest.approx(40)
    assert working_seconds(spans) == pytest.approx(40)
    at = (np.arange(60) + 0.5) * 40 / 60
    steps = np.where(at < 5, 10, np.where(at < 10, 20, np.where(at < 20, 10, 0)))
    steps = np.where(at >= 20, np.where(at < 30, 3, 4), steps)
    whole = np.abs(at[:, None] - [5, 10, 20, 30]).min(axis=1) > 0.34  # bins within one step
    assert whole.sum() > 50
    assert found.images_per_second[whole] == pytest.approx(steps[whole], rel=1e-5)
    assert [at for at, _ in found.pauses] == pytest.approx([20, 30])
    assert [length for _, length in found.pauses] == pytest.approx([1000, 4000])

    kept = throughput(spans, without_pauses=False)
    assert kept.seconds == pytest.approx(5040)
    assert (kept.images_per_second == 0).sum() == 57  # of 60 stretches of 84 seconds
    assert kept.images_per_second.sum() * kept.bin_seconds == pytest.approx(320)


def test_working_seconds_are_those_that_any_span_covers():
    for seed in range(3):
        spans = spans_of(seed)[:12]
        grid = np.arange(NOON, NOON + 130, 0.001)
        covered = np.zeros(len(grid), bool)
        for span in spans:
            covered |= (grid >= span.start) & (grid < span.stop)
        assert working_seconds(spans) == pytest.approx(covered.sum() * 0.001, abs=0.03)
        assert throughput(spans, without_pauses=True).seconds == pytest.approx(
            working_seconds(spans), abs=1e-5
        )


def test_spans_of_no_length_lose_no_image():
    moments = [Span(NOON, NOON, 5), Span(NOON + 3, NOON + 3, 7), Span(NOON + 6, NOON + 6, 9)]
    found = throughput(moments, without_pauses=False)
    assert found.images_per_second.sum() * found.bin_seconds == pytest.approx(21)
    assert throughput(moments[:1], without_pauses=False) is None
    assert throughput(moments, without_pauses=True) is None  # nothing but pauses
    assert throughput([], without_pauses=True) is None
    assert working_seconds([]) == 0
