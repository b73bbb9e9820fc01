"""Progress of a run in images, with an estimate of the time left, for people or as JSON lines."""

import json
import sys
import time
from contextlib import suppress
from typing import Any, Literal, TextIO

from pipeline.run_directory.stats import WorkingTime

Mode = Literal["text", "json", "quiet"]

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 15.0


class Progress:
    """Counts finished images and shows how far the run is.

    While the run is at work the rate is that of the shards that it has done since this start:
    neither the start of Ray and of the actors nor the shards of an earlier start make the estimate
    better or worse. Once it is finished, it is the run's.

    Args:
        total: rows of the whole run; None where only the reading shows that: then the shards
            tell how far it is.
        done: those that were done before, failed ones included.
        errors: failed rows among them.
        shards: of the whole run.
        shards_done: those that were done before.
        mode: lines for people on stderr, JSON lines on stdout, or nothing.
    """

    def __init__(
        self,
        *,
        total: int | None,
        done: int,
        errors: int,
        shards: int,
        shards_done: int,
        mode: Mode,
    ) -> None:
        self._total, self._before = total, done
        self._shards, self._shards_before, self._shards_done = shards, shards_done, shards_done
        self.done, self.errors = done, errors
        self._mode = mode
        self._images, self._working = 0, WorkingTime()  # since this start
        self._tokens = self._passes = 0
        self._final: tuple[float, str] | None = None
        self._shown_at, self._shown_images = 0.0, -1
        self._open = False  # whether a line on the terminal has no end yet
        self._on_terminal = mode == "text" and sys.stderr.isatty()

    def add(self, summary: dict[str, Any]) -> None:
        """Counts a shard that was finished just now: its rows, errors and seconds; and tokens and
        passes where a model samples."""
        now = time.monotonic()
        self._working.add(now - summary["seconds"], now)
        self._images += summary["rows"]
        self._tokens += summary.get("tokens", 0)
        self._passes += summary.get("passes", 0)
        self.done += summary["rows"] + summary["errors"]
        self.errors += summary["errors"]
        self._shards_done += 1
        if self._shards_done < self._shards:  # the last line is not this one
            self.show()

    @property
    def expected(self) -> float | None:
        """Returns the rows of the whole run: as known, or as many per shard as there were in those
        done, once a tenth of the shards is, and ten at least; None before."""
        if self._total is not None:
            return self._total
        if self._shards_done < min(max(self._shards / 10, 10), self._shards):
            return None
        return self.done * self._shards / self._shards_done

    @property
    def rate(self) -> float:
        """Returns images with a result per second, while working; 0 before a shard is done."""
        if self._final is not None:
            return self._final[0]
        return self._images / max(self._working.seconds, 1e-9)

    def finish(self, images_per_second: float, speed: str) -> None:
        """Shows the end of the run, with its rate and what to say of its speed."""
        self._final = images_per_second, speed
        self._shown_images = -1
        self.show(final=True)

    def show(self, *, final: bool = False) -> None:
        """Shows how far the run is, unless that was shown just now."""
        pause = _TERMINAL_SECONDS if self._on_terminal else _LOG_SECONDS
        now = time.monotonic()
        shown = self.done == self._shown_images and not self._open
        if self._mode == "quiet" or shown or (now - self._shown_at < pause and not final):
            return
        self._shown_at, self._shown_images = now, self.done
        if self._mode == "json":
            _print(json.dumps({"event": "progress", **self._figures()}), sys.stdout)
            return
        self._open = self._on_terminal and not final
        text = self._sentence().ljust(79) if self._on_terminal else self._sentence()
        _print(text, sys.stderr, end="\r" if self._open else "\n")

    def close(self) -> None:
        """Ends the line on a terminal, so that what is printed next does not lie over it."""
        if self._open:
            _print("", sys.stderr)
        self._open = False

    def _figures(self) -> dict[str, Any]:
        return {
            "images": self.done - self.errors,
            "total": self._total,
            "shards": self._shards_done,
            "total_shards": self._shards,
            "errors": self.errors,
            "images_per_second": round(self.rate, 3),
            "tokens_per_pass": self._tokens_per_pass,
            "seconds_left": None if (left := self._left()) is None else round(left, 1),
        }

    @property
    def _tokens_per_pass(self) -> float | None:
        """See `Speed`; since this start."""
        return round(self._tokens / self._passes, 2) if self._passes else None

    def _left(self) -> float | None:
        """Estimates the seconds until all is done; None before a shard is."""
        if self._shards_done == self._shards:
            return 0.0
        shards = self._shards_done - self._shards_before
        if not shards:
            return None
        if self._total is None:
            return (self._shards - self._shards_done) * self._working.seconds / shards
        rows = max(self.done - self._before, 1)
        return (self._total - self.done) * self._working.seconds / rows

    def _sentence(self) -> str:
        images = self.done - self.errors
        if self._total is None:
            share = 100 * self._shards_done / max(self._shards, 1)
            text = f"{images} images, {self._shards_done}/{self._shards} shards ({share:.0f} %)"
        else:
            share = 100 * self.done / max(self._total, 1)
            text = f"{images}/{self._total} images ({share:.0f} %)"
        if self.errors:
            text += f", {counted(self.errors, 'error')}"
        if self._final is not None:
            return f"{text}, {self._final[1]}"
        left = self._left()
        if self._shards_done > self._shards_before:
            text += f", {self.rate:.1f} images/s"
            if (self._tokens_per_pass or 0) > 1:
                text += f", {self._tokens_per_pass:.2f} tokens per pass"
        if self._shards_done == self._shards:
            return text
        return f"{text}, starting" if left is None else f"{text}, about {duration(left)} left"


def _print(text: str, stream: TextIO, *, end: str = "\n") -> None:
    # The terminal may be gone, the disk of the log full: no reason to end the run.
    with suppress(OSError):
        print(text, end=end, file=stream, flush=True)


def counted(n: int, noun: str) -> str:
    """Writes a number with its noun, such as 1 error or 1,200 errors."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Writes a length of time in its largest unit and the next, seconds to two digits."""
    if round(seconds) < 60:
        return f"{round(seconds, 2):.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
