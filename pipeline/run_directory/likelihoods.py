"""The distribution of the likelihoods of a run's images: one histogram per part, added up for the
report, so that nobody has to read all results to draw it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import rows

BIN_WIDTH = 0.05
N_BINS = 161  # up to 8 nats; the last holds everything above
TOP = BIN_WIDTH * (N_BINS - 1)
EXTREMES = 5
# The jobs that may score, and the type by which their own column is told from one of the input.
_TYPES = {"score": pa.float32(), "sample": pa.float32(), "complete": pa.list_(pa.float32())}


def has_nll(job: str, schema: pa.Schema) -> bool:
    """Returns whether results of that schema hold nats per pixel that the job computed."""
    return rows.NLL in schema.names and schema.field(rows.NLL).type == _TYPES.get(job)


@dataclass(frozen=True)
class NLLHistogram:
    """Histogram of the negative log-likelihoods of any number of images, in nats per pixel.

    `counts` (161,) int64: bins of 0.05 nats. `total` is the sum of all values, `lowest` and
    `highest` are up to five of them with their ids, the most extreme first. Values that are no
    finite number are only counted, in `not_finite`.
    """

    counts: NDArray[np.int64]
    total: float
    lowest: tuple[tuple[str, float], ...]
    highest: tuple[tuple[str, float], ...]
    not_finite: int

    @classmethod
    def of(cls, results: pa.Table) -> "NLLHistogram":
        """Counts the columns `id` and `nll` of a part: one number per row, or a list of them."""
        ids, values = results[rows.ID].combine_chunks(), results[rows.NLL].combine_chunks()
        if pa.types.is_list(values.type):
            ids, values = ids.take(pc.list_parent_indices(values)), pc.list_flatten(values)
        nll = values.to_numpy(zero_copy_only=False).astype(np.float64)  # null: NaN
        finite = np.flatnonzero(np.isfinite(nll))
        order = finite[np.argsort(nll[finite], kind="stable")]
        bins = np.clip(nll[finite] / BIN_WIDTH, 0, N_BINS - 1).astype(np.int64)

        def named(chosen: NDArray[np.int64]) -> tuple[tuple[str, float], ...]:
            names = ids.take(pa.array(chosen, pa.int64())).to_pylist()
            return tuple(zip(names, nll[chosen].tolist(), strict=True))

        return cls(
            np.bincount(bins, minlength=N_BINS),
            float(nll[finite].sum()),
            named(order[:EXTREMES]),
            named(order[::-1][:EXTREMES]),
            len(nll) - len(finite),
        )

    def __add__(self, other: "NLLHistogram") -> "NLLHistogram":
        lowest = sorted((*self.lowest, *other.lowest), key=lambda value: value[1])
        highest = sorted((*self.highest, *other.highest), key=lambda value: -value[1])
        return NLLHistogram(
            self.counts + other.counts,
            self.total + other.total,
            tuple(lowest[:EXTREMES]),
            tuple(highest[:EXTREMES]),
            self.not_finite + other.not_finite,
        )

    @classmethod
    def empty(cls) -> "NLLHistogram":
        """Returns the histogram of no image."""
        return cls(np.zeros(N_BINS, np.int64), 0.0, (), (), 0)

    def to_json(self) -> dict[str, Any]:
        """Returns what the stats of a part keep: of the bins those that are not empty."""
        filled = np.flatnonzero(self.counts)
        return {
            "bin_width": BIN_WIDTH,
            "bins": {str(i): int(self.counts[i]) for i in filled},
            "sum": self.total,
            "lowest": self.lowest,
            "highest": self.highest,
            "not_finite": self.not_finite,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "NLLHistogram":
        """Reads what `to_json` returned."""
        counts = np.zeros(N_BINS, np.int64)
        for index, count in found["bins"].items():
            counts[int(index)] = count
        lowest, highest = ([(id_, v) for id_, v in found[key]] for key in ("lowest", "highest"))
        return cls(counts, found["sum"], tuple(lowest), tuple(highest), found["not_finite"])

    @property
    def n(self) -> int:
        """Counts the finite values."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Returns the exact mean; there must be a value."""
        return self.total / self.n

    @property
    def median(self) -> float:
        """Estimates the median to within a bin, as if values lay evenly in it; there is one."""
        below = np.concatenate([[0], np.cumsum(self.counts)])
        bin_ = int(np.searchsorted(below, self.n / 2, side="right")) - 1
        start, least, most = bin_ * BIN_WIDTH, self.lowest[0][1], self.highest[0][1]
        stop = most if bin_ == N_BINS - 1 else start + BIN_WIDTH
        share = float((self.n / 2 - below[bin_]) / self.counts[bin_])
        return min(max(start + share * (stop - start), least), most)


def to_bits(nats: float) -> float:
    """Converts nats to bits."""
    return nats / math.log(2)
