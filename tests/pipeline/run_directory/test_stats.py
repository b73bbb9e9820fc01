"""The time in which shards were in work, against counting in many small steps; speeds of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.run_directory.stats import Speed, Work, WorkingTime

NOON = 1.8e9  # unix seconds are large


def seconds_of(spans: list[tuple[float, float]]) -> float:
    working = WorkingTime()
    for start, stop in spans:
        working.add(start, stop)
    return working.seconds


@pytest.mark.parametrize("seed", range(3))
def test_working_seconds_are_those_that_any_span_covers(seed):
    rng = np.random.default_rng(seed)
    starts, lengths = NOON + rng.uniform(0, 100, 12), rng.gamma(2, 3, 12)
    spans = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    grid = np.arange(NOON, NOON + 130, 0.001)
    covered = np.zeros(len(grid), bool)
    for start, stop in spans:
        covered |= (grid >= start) & (grid < stop)
    assert not covered[grid < max(stop for _, stop in spans)].all(), "no pause to leave out"
    assert seconds_of(spans) == pytest.approx(covered.sum() * 0.001, abs=0.03)
    for _ in range(5):  # in any order
        rng.shuffle(spans)
        assert seconds_of(spans) == pytest.approx(covered.sum() * 0.001, abs=0.03)


def test_no_span_and_spans_of_no_length_are_no_time():
    assert seconds_of([]) == 0
    assert seconds_of([(NOON, NOON), (NOON + 3, NOON + 3)]) == 0


def stats(start: float, stop: float, **others: float) -> dict:
    """Stats of a shard that read for one second and, but for that, wrote."""
    seconds = {"read": 1.0, "model": None, "write": stop - start - 1.0}
    counts = {"rows": 8, "errors": 2, "tokens": 100}
    return {**counts, "seconds": seconds, "finished": NOON + stop, **others}


def test_speed_is_what_was_made_while_working_and_the_wall_time_of_all_starts():
    """Two shards side by side in the first start, which was killed; one in the second."""
    work = Work()
    first, second = NOON - 7, NOON + 1000
    for found in (
        stats(1030, 1040, started=second),
        stats(0, 10, started=first),
        stats(5, 20, started=first),
    ):
        work.add(found)
    assert (work.rows, work.errors, work.tokens, work.last) == (24, 6, 300, NOON + 1040)
    assert work.speed == Speed(
        seconds=27 + 40,
        working_seconds=20 + 10,
        images_per_second=round(24 / 30, 3),
        tokens_per_second=10.0,
        tokens_per_pass=None,
    )


def test_tokens_per_pass_are_those_of_all_shards():
    work = Work()
    work.add(stats(0, 10, passes=100))
    work.add(stats(0, 10, passes=20))
    assert work.speed.tokens_per_pass == round(200 / 120, 2)


def test_a_report_of_an_earlier_version_has_no_tokens_per_pass():
    work = Work()
    work.add(stats(0, 10, passes=50))
    report = dict(vars(work.speed))
    del report["tokens_per_pass"]
    assert Speed.recorded(report) == replace(work.speed, tokens_per_pass=None)


def test_stats_of_an_earlier_version_tell_no_wall_time():
    work = Work()
    work.add(stats(0, 10))
    assert (work.speed.seconds, work.speed.working_seconds) == (None, 10)


def test_a_speed_is_read_from_a_report_again():
    work = Work()
    assert work.speed == Speed(None, 0.0, 0.0, 0.0)
    work.add(stats(0, 10, started=NOON - 3))
    report = json.loads(json.dumps({"rows": 8, **vars(work.speed)}))
    assert Speed.recorded(report) == work.speed
    del report["working_seconds"]  # as an earlier version wrote it, with other meanings
    assert Speed.recorded(report) is None
