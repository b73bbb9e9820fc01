"""The line on a terminal: how far work on images is."""

import io
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from igpt_core.generation import places
from igpt_core.interface import progress
from igpt_core.interface.image_gpt import ImageGPT
from igpt_core.interface.progress import batches_of
from pictures import photo


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def show_on(monkeypatch) -> Callable[[io.StringIO], io.StringIO]:
    """Lets work show on a stream how far it is, soon."""
    monkeypatch.setattr(progress, "_SECONDS", 0.02)

    def stderr(stream: io.StringIO) -> io.StringIO:  # in the test: pytest has its own before
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return stderr


def work(seconds: float, error: Exception | None = None) -> None:
    for rows in batches_of(8, 3, doing="score"):
        if rows.start == 6:
            time.sleep(seconds)
            if error is not None:
                raise error


def test_long_work_shows_how_far_it_is(show_on):
    stream = show_on(_Terminal())
    work(0.5)
    *lines, last, end = stream.getvalue()[1:].split("\r")
    assert "score [###############.....] 75% of 8 images, 0 s" in lines
    assert (last.strip(), end) == ("", "")
    assert len(last) >= max(map(len, lines)), "nothing is left of the line"


def test_the_line_ends_with_the_work_if_it_fails_too(show_on):
    for error in (None, ValueError("in a batch")):
        stream = show_on(_Terminal())
        with pytest.raises(ValueError, match="in a batch") if error else nullcontext():
            work(0.5, error)
        text = stream.getvalue()
        assert "75%" in text
        time.sleep(0.1)
        assert stream.getvalue() == text


def test_short_work_and_other_streams_stay_silent(show_on):
    for stream, seconds in ((_Terminal(), 0), (io.StringIO(), 0.5)):
        show_on(stream)
        work(seconds)
        assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("doing", "draw"),
    [
        ("complete", lambda igpt: igpt.complete([photo(0), photo(1)], samples=2)),
        ("sample", lambda igpt: igpt.sample(2)),
    ],
)
def test_the_line_moves_within_one_batch(show_on, tiny_model, monkeypatch, doing, draw):
    """Past bug: one batch of a few images took minutes at 0."""
    igpt = ImageGPT.from_pretrained(tiny_model, device="cpu", dtype=torch.float32)
    expected = draw(igpt)
    decode = places.decode

    def slow(*arguments, refill, **options):
        def waits():
            refill()
            time.sleep(0.01)

        return decode(*arguments, refill=waits, **options)

    monkeypatch.setattr(places, "decode", slow)
    stream = show_on(_Terminal())
    assert draw(igpt) == expected
    lines = stream.getvalue().split("\r")
    shares = [int(line.split("] ")[1].split("%")[0]) for line in lines if f"{doing} [" in line]
    assert all("of 2 images" in line for line in lines if "%" in line)
    assert shares == sorted(shares)
    assert len({share for share in shares if 0 < share < 100}) > 3
