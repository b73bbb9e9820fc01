"""The time in which shards were in work, against counting in many small steps."""

import numpy as np
import pytest

from pipeline.run_directory.stats import Span, working_seconds

NOON = 1.8e9  # unix seconds are large


def spans_of(seed: int) -> list[Span]:
    rng = np.random.default_rng(seed)
    starts, lengths = NOON + rng.uniform(0, 100, 12), rng.gamma(2, 3, 12)
    return [Span(start, start + length, 5) for start, length in zip(starts, lengths, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_working_seconds_are_those_that_any_span_covers(seed):
    spans = spans_of(seed)
    grid = np.arange(NOON, NOON + 130, 0.001)
    covered = np.zeros(len(grid), bool)
    for span in spans:
        covered |= (grid >= span.start) & (grid < span.stop)
    assert not covered[grid < max(span.stop for span in spans)].all(), "no pause to leave out"
    assert working_seconds(spans) == pytest.approx(covered.sum() * 0.001, abs=0.03)


def test_pauses_do_not_count():
    """Two shards side by side, one within another, then the run rests twice."""
    spans = [
        Span(NOON + 5030, NOON + 5040, 40),
        Span(NOON, NOON + 10, 100),
        Span(NOON + 5, NOON + 20, 150),
        Span(NOON + 7, NOON + 9, 1),
        Span(NOON + 1020, NOON + 1030, 30),
    ]
    assert working_seconds(spans) == pytest.approx(40)


def test_no_span_and_spans_of_no_length_are_no_time():
    assert working_seconds([]) == 0
    assert working_seconds([Span(NOON, NOON, 5), Span(NOON + 3, NOON + 3, 7)]) == 0


def test_a_span_is_read_from_stats():
    stats = {"finished": 100.0, "seconds": {"read": 1.5, "write": 0.5}, "rows": 3, "errors": 2}
    assert Span.of(stats) == Span(98.0, 100.0, 5)
