"""Progress of a run in images, with an estimate of the time left, for people or as JSON lines."""

import json
import sys
import time
from contextlib import suppress
from typing import Any, Literal, TextIO

Mode = Literal["text", "json", "quiet"]

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 15.0


class Progress:
    """Counts finished images and shows how far the run is.

    The rate is that of this run since its first shard was begun: neither the start of Ray and of
    the actors nor the shards of an earlier run make the estimate better or worse.

    Args:
        total: images of the whole run; None where only the reading shows that: then the shards
            tell how far it is.
        done: those that were done before.
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
        self.done, self.errors, self.tokens = done, errors, 0
        self._mode = mode
        self._begun = time.monotonic()
        self._working_since: float | None = None
        self._shown_at, self._shown_images = 0.0, -1
        self._open = False  # whether a line on the terminal has no end yet
        self._on_terminal = mode == "text" and sys.stderr.isatty()

    def add(self, summary: dict[str, Any]) -> None:
        """Counts a finished shard: its rows, errors, tokens and seconds."""
        if self._working_since is None:
            self._working_since = time.monotonic() - summary["seconds"]
        self.done += summary["rows"] + summary["errors"]
        self.errors += summary["errors"]
        self._shards_done += 1
        self.tokens += summary["tokens"]
        self.show()

    @property
    def expected(self) -> float | None:
        """Returns the images of the whole run: as known, or as many per shard as there were in
        those done, once a tenth of the shards is, and ten at least; None before."""
        if self._total is not None:
            return self._total
        if self._shards_done < min(max(self._shards / 10, 10), self._shards):
            return None
        return self.done * self._shards / self._shards_done

    @property
    def seconds(self) -> float:
        """Returns the seconds since the run began."""
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """Returns images per second since the first shard of this run was begun; 0 before one is
        done."""
        if self._working_since is None:
            return 0.0
        return (self.done - self._before) / max(time.monotonic() - self._working_since, 1e-9)

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
            "images": self.done,
            "total": self._total,
            "shards": self._shards_done,
            "total_shards": self._shards,
            "errors": self.errors,
            "images_per_second": round(self.rate, 3),
            "seconds_left": round(self._left(), 1) if self.rate else None,
        }

    def _left(self) -> float:
        if self._total is not None:
            return (self._total - self.done) / self.rate
        working = (self.done - self._before) / self.rate
        left = self._shards - self._shards_done
        return left * working / (self._shards_done - self._shards_before)

    def _sentence(self) -> str:
        if self._total is None:
            share = 100 * self._shards_done / max(self._shards, 1)
            text = f"{self.done} images, {self._shards_done}/{self._shards} shards ({share:.0f} %)"
        else:
            share = 100 * self.done / max(self._total, 1)
            text = f"{self.done}/{self._total} images ({share:.0f} %)"
        if self.errors:
            text += f", {self.errors} failed"
        finished = self._shards_done == self._shards
        if self._shards_done == self._shards_before:
            return text if finished else f"{text}, starting"
        text += f", {self.rate:.1f} images/s"
        return text if finished else f"{text}, about {duration(self._left())} left"


def _print(text: str, stream: TextIO, *, end: str = "\n") -> None:
    # The terminal may be gone, the disk of the log full: no reason to end the run.
    with suppress(OSError):
        print(text, end=end, file=stream, flush=True)


def duration(seconds: float) -> str:
    """Writes a length of time in its largest unit and the next, seconds to two digits."""
    if round(seconds) < 60:
        return f"{round(seconds, 2):.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
