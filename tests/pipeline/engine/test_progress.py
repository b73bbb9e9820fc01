"""Progress: its figures and its estimate, in words and as JSON lines, against a clock of ours."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from pipeline.engine import progress
from pipeline.engine.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told: `clock.now += 10`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def shard(
    rows: int, *, seconds: float, errors: int = 0, tokens: int = 0, passes: int = 0
) -> dict[str, float]:
    counts = {"rows": rows, "errors": errors, "tokens": tokens, "passes": passes}
    return {"shard": 0, **counts, "seconds": seconds}


def test_the_estimate_is_what_is_left_at_the_rate_of_this_run(clock, capsys):
    """Neither the 40 rows that were there before nor the 30 seconds of starting count; an error is
    no image."""
    run = Progress(total=100, done=40, errors=2, shards=10, shards_done=4, mode="json")
    clock.now += 30 + 20
    run.add(shard(9, errors=1, seconds=20))
    assert (run.done, run.errors) == (50, 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "event": "progress",
        "images": 47,
        "total": 100,
        "shards": 5,
        "total_shards": 10,
        "errors": 3,
        "images_per_second": 0.45,  # 9 images in 20 seconds
        "tokens_per_pass": None,
        "seconds_left": 100.0,  # for 50 more rows, 10 of which took 20 seconds
    }


def test_before_the_first_shard_there_is_no_estimate(clock, capsys):
    run = Progress(total=10, done=0, errors=0, shards=2, shards_done=0, mode="json")
    run.show()
    line = json.loads(capsys.readouterr().out)
    assert (line["images"], line["images_per_second"], line["seconds_left"]) == (0, 0, None)


def test_lines_come_at_a_pace_and_the_last_one_always(clock, capsys):
    run = Progress(total=100, done=0, errors=0, shards=20, shards_done=0, mode="json")
    run.show()
    for _ in range(20):
        clock.now += 1
        run.add(shard(5, seconds=1))
    run.show(final=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["images"] for line in lines] == [0, 75, 100]  # after 0, 15 and 20 seconds
    assert lines[-1]["seconds_left"] == 0


def test_words_for_people(clock, capsys):
    run = Progress(total=400, done=0, errors=0, shards=2, shards_done=0, mode="text")
    run.show()
    clock.now += 50
    run.add(shard(98, errors=2, seconds=50))
    clock.now += 150
    run.add(shard(300, seconds=150))
    run.show(final=True)  # says nothing that was not said
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "0/400 images (0 %), starting",
        "98/400 images (25 %), 2 errors, 2.0 images/s, about 2 min 30 s left",
        "398/400 images (100 %), 2 errors, 2.0 images/s",
    ]


@pytest.mark.parametrize(
    ("passes", "said", "number"),
    [
        (300, "100/200 images (50 %), 10.0 images/s, 3.33 tokens per pass, about 10 s left", 3.33),
        (1000, "100/200 images (50 %), 10.0 images/s, about 10 s left", 1.0),
    ],
)
def test_tokens_per_pass_are_said_where_windows_draw_several(clock, capsys, passes, said, number):
    for mode in ("text", "json"):
        run = Progress(total=200, done=0, errors=0, shards=2, shards_done=0, mode=mode)
        clock.now += 50
        run.add(shard(100, seconds=10, tokens=1000, passes=passes))
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [said]
    assert json.loads(captured.out)["tokens_per_pass"] == number


def test_without_a_total_the_shards_tell_how_far_it_is(clock, capsys):
    """Two of the six were done before; one took 30 seconds, so three more take 90."""
    run = Progress(total=None, done=40, errors=1, shards=6, shards_done=2, mode="text")
    run.show()
    clock.now += 30
    run.add(shard(10, errors=5, seconds=30))
    for _ in range(3):
        clock.now += 30
        run.add(shard(100, seconds=30))
    run.show(final=True)
    assert capsys.readouterr().err.splitlines() == [
        "39 images, 2/6 shards (33 %), 1 error, starting",
        "49 images, 3/6 shards (50 %), 6 errors, 0.3 images/s, about 1 min 30 s left",
        "149 images, 4/6 shards (67 %), 6 errors, 1.8 images/s, about 1 min 00 s left",
        "249 images, 5/6 shards (83 %), 6 errors, 2.3 images/s, about 30 s left",
        "349 images, 6/6 shards (100 %), 6 errors, 2.6 images/s",
    ]


def test_a_run_with_nothing_left_to_do_is_not_starting(clock, capsys):
    run = Progress(total=24, done=24, errors=4, shards=3, shards_done=3, mode="text")
    run.show(final=True)
    assert capsys.readouterr().err == "20/24 images (100 %), 4 errors\n"


def test_pauses_between_shards_are_no_time_in_work(clock, capsys):
    """Two shards of 10 seconds side by side, then nothing for a minute, then one more."""
    run = Progress(total=80, done=0, errors=0, shards=4, shards_done=0, mode="json")
    for pause in (15, 0, 70):
        clock.now += pause
        run.add(shard(20, seconds=10))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["images_per_second"], last["seconds_left"]) == (3.0, 6.7)  # 60 in 20 seconds


@pytest.mark.parametrize("mode", ["text", "json"])
def test_the_last_line_says_the_speed_of_the_run(mode, clock, capsys):
    """Of all its starts, not that of the shards of this one."""
    run = Progress(total=30, done=20, errors=1, shards=3, shards_done=2, mode=mode)
    clock.now += 50
    run.add(shard(10, seconds=5))
    run.finish(0.24, "0.24 images/s while working, 2 min 05 s with start-up")
    captured = capsys.readouterr()
    if mode == "text":
        *_, line = captured.err.splitlines()
        assert line == (
            "29/30 images (100 %), 1 error, 0.24 images/s while working, 2 min 05 s with start-up"
        )
    else:
        *_, line = captured.out.splitlines()
        assert json.loads(line)["images_per_second"] == 0.24
        assert json.loads(line)["seconds_left"] == 0


@pytest.fixture
def terminal(clock, capsys, monkeypatch) -> Progress:
    """Progress of 10 images on a terminal, 5 of them done."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run = Progress(total=10, done=0, errors=0, shards=2, shards_done=0, mode="text")
    run.show()
    clock.now += 1
    run.add(shard(5, seconds=1))
    return run


def test_on_a_terminal_a_line_replaces_the_one_before(terminal, capsys):
    terminal.show(final=True)
    terminal.close()
    first, second, last = capsys.readouterr().err.split("\r")
    assert first.startswith("0/10 images")
    assert len(first) == len(second) == 79  # a shorter line leaves nothing of a longer one
    assert last == "5/10 images (50 %), 5.0 images/s, about 1 s left".ljust(79) + "\n"


def test_on_a_terminal_what_comes_after_a_closed_line_is_not_written_over_it(terminal, capsys):
    """As the line that says why a run stopped."""
    terminal.close()
    assert capsys.readouterr().err.endswith("\r\n")
    terminal.close()
    terminal.show(final=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("reason", [errno.EIO, errno.ENOSPC, errno.EPIPE])
def test_a_line_that_cannot_be_written_does_not_end_the_run(reason, terminal, clock, monkeypatch):
    """Past bug: the terminal was closed, or the disk of the log was full."""

    def fail(*_: object) -> int:
        raise OSError(reason, os.strerror(reason))

    lines = Progress(total=10, done=0, errors=0, shards=2, shards_done=0, mode="json")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.write", fail)
    for run in (terminal, lines):
        clock.now += 60
        run.add(shard(5, seconds=1))
        run.close()
        run.show(final=True)
    assert (terminal.done, lines.done) == (10, 5)


def test_quiet_says_nothing(clock, capsys):
    run = Progress(total=10, done=0, errors=0, shards=1, shards_done=0, mode="quiet")
    clock.now += 60
    run.add(shard(10, seconds=60))
    run.show(final=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.00003, "0 s"),
        (0.034, "0.03 s"),
        (9.87, "9.9 s"),
        (59.4, "59 s"),
        (59.96, "1 min 00 s"),
        (125.4, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (3_600_000, "1,000 h 00 min"),
    ],
)
def test_lengths_of_time(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("total", "shards", "done", "expected"),
    [
        (None, 200, 19, None),
        (None, 200, 20, 1000),
        (None, 20, 9, None),
        (None, 20, 10, 100),
        (None, 3, 2, None),
        (None, 3, 3, 15),
        (777, 200, 0, 777),
    ],
)
def test_how_many_images_are_expected(total, shards, done, expected):
    """Where the plan does not say it: after a tenth of the shards, and ten of them at least."""
    run = Progress(
        total=total, done=5 * done, errors=0, shards=shards, shards_done=done, mode="quiet"
    )
    assert run.expected == expected
