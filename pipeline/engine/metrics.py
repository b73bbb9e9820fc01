"""Metrics of a run for Prometheus, through Ray's: images, tokens, errors, actors without work.

Ray exports each under its name with `ray_` before it, from every node of the cluster.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge


class RunMetrics:
    """Counters of a run, which its driver raises as shards are done.

    `rate()` of them in Prometheus makes images and tokens per second.
    """

    def __init__(self, job: str) -> None:
        tags = {"job": job}
        self._images = Counter("igpt_images", "Images that have a result.", ("job",))
        self._errors = Counter("igpt_errors", "Images and files that failed.", ("job",))
        self._tokens = Counter("igpt_tokens", "Tokens that the model sampled.", ("job",))
        for metric in (self._images, self._errors, self._tokens):
            metric.set_default_tags(tags)

    def add(self, summary: Mapping[str, Any]) -> None:
        """Counts a finished shard: its rows, errors and tokens."""
        counts = {"rows": self._images, "errors": self._errors, "tokens": self._tokens}
        for name, metric in counts.items():
            if summary[name]:
                metric.inc(summary[name])


class IdleShare:
    """A gauge of the share of an actor's time that it waits for work; for one with a GPU, in which
    that idles. In [0, 1], of the latest shard and the wait before it."""

    def __init__(self, stage: str) -> None:
        about = "Share of an actor's time without work."
        self._share = Gauge("igpt_idle_share", about, ("stage",))
        self._share.set_default_tags({"stage": stage})

    def set(self, *, waited: float, worked: float) -> None:
        """Sets it from the seconds before the latest shard, and those spent on it."""
        self._share.set(waited / max(waited + worked, 1e-9))
