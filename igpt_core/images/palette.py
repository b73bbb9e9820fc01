"""Colors as tokens: the units of colors, their histogram, the palette.

A pixel value v in 0..255 stands for v / 127.5 - 1 in [-1, 1], as in OpenAI's iGPT; this file is
the only one that knows the factor.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from igpt_core.errors import check_whole
from igpt_core.images.color_table import cached_table, nearest_colors, save_atomically
from igpt_core.images.kmeans import lloyd, plus_plus

_MAX_COLORS = 1 << 16  # tokens are uint16
_AT_ONCE = 1 << 16  # pixels encoded at once: their indices stay in the cache

PixelArray = npt.NDArray[np.uint8]
TokenArray = npt.NDArray[np.uint16]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def pixels_to_unit(pixels: PixelArray) -> FloatArray:
    """Scales pixel values (...) uint8 by v / 127.5 - 1, to (...) float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def unit_to_pixels(values: FloatArray) -> PixelArray:
    """Scales values (...) float32 in [-1, 1] by rint(127.5 * (v + 1)), to pixels (...) uint8."""
    scaled = np.rint(np.float32(127.5) * (values + np.float32(1)))
    return np.asarray(scaled, np.uint8)


def pack_rgb(pixels: PixelArray) -> npt.NDArray[np.intp]:
    """Packs pixels (..., 3) uint8 as r << 16 | g << 8 | b (...), fit for an index."""
    _check_pixels(pixels)
    index: npt.NDArray[np.intp] = pixels[..., 0].astype(np.intp)  # first wider: uint8 would wrap
    index <<= 8
    index |= pixels[..., 1]
    index <<= 8
    index |= pixels[..., 2]
    return index


@dataclass(frozen=True)
class ColorHistogram:
    """Distinct colors (N,) uint32, r << 16 | g << 8 | b, ascending, and counts (N,) int64.

    Histograms of parts add up, in any order, to exactly the histogram of the whole.
    Raises ValueError for other shapes, or numbers that are no integers.
    """

    colors: npt.NDArray[np.uint32]
    counts: IntArray

    def __post_init__(self) -> None:
        colors, counts = self.colors, self.counts
        kinds = {colors.dtype.kind, counts.dtype.kind}
        if colors.ndim != 1 or colors.shape != counts.shape or not kinds <= {"i", "u"}:
            raise ValueError(
                f"a histogram needs integer colors (N,) and counts (N,), found {colors.dtype} "
                f"{colors.shape} and {counts.dtype} {counts.shape}"
            )

    @classmethod
    def of(cls, pixels: PixelArray) -> Self:
        """Counts the colors of pixels (..., 3) uint8."""
        colors, counts = np.unique(pack_rgb(pixels).astype(np.uint32), return_counts=True)
        return cls(colors, counts.astype(np.int64))

    @classmethod
    def total(cls, parts: Sequence["ColorHistogram"]) -> Self:
        """Adds up any number of histograms; of none it is empty."""
        every = np.concatenate([np.empty(0, np.uint32), *(p.colors for p in parts)])
        colors, place = np.unique(every, return_inverse=True)
        counts = np.zeros(len(colors), np.int64)
        np.add.at(
            counts, place, np.concatenate([np.empty(0, np.int64), *(p.counts for p in parts)])
        )
        return cls(colors, counts)


class Palette:
    """K colors (K, 3) float32 in [-1, 1], K from 1 to 65,536; a color's index is its token.

    `colors` may be a list, such as `clusters` of a preprocessor_config.json.
    Raises ValueError for another shape or values out of range.
    """

    def __init__(self, colors: npt.ArrayLike) -> None:
        try:
            array = np.array(colors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"palette colors must be numbers of shape (K, 3): {error}") from error
        if array.ndim != 2 or array.shape[1] != 3 or not 1 <= len(array) <= _MAX_COLORS:
            raise ValueError(
                f"a palette needs 1 to {_MAX_COLORS} colors of shape (K, 3), not {array.shape}"
            )
        if not np.all(np.abs(array) <= 1 + 1e-5):  # written so that NaN fails too
            raise ValueError(
                f"palette colors must lie in [-1, 1], found {array.min():g} to {array.max():g}: "
                "scale 0..255 by v / 127.5 - 1"
            )
        # Rounded means may pass the ends by a float32 step; adding 0 turns -0.0 into 0.0.
        self.colors: FloatArray = np.clip(array, -1, 1) + np.float32(0)
        self.colors.flags.writeable = False
        self._pixels = unit_to_pixels(self.colors)
        self._table: TokenArray | None = None

    def __len__(self) -> int:
        return len(self.colors)

    def __reduce__(self) -> tuple[type["Palette"], tuple[FloatArray]]:
        return type(self), (self.colors,)  # without the table: the receiver maps its own

    @property
    def fingerprint(self) -> str:
        """Hashes the float32 colors to 32 hex digits, the same on every machine."""
        return hashlib.sha256(self.colors.astype("<f4").tobytes()).hexdigest()[:32]

    def encode(self, pixels: PixelArray) -> TokenArray:
        """Finds the nearest colors of pixels (..., 3) uint8, (...) uint16, the lowest of equals.

        The first call builds a table of all 2**24 pixel values, or maps it from the cache folder
        ($IGPT_CACHE, else ~/.cache/igpt). TypeError for another dtype, ValueError for a shape.
        """
        _check_pixels(pixels)
        if self._table is None:
            self._table = cached_table(self.colors, fingerprint=self.fingerprint)
        flat = pixels.reshape(-1, 3)
        tokens = np.empty(len(flat), np.uint16)
        for i in range(0, len(flat), _AT_ONCE):
            part = slice(i, i + _AT_ONCE)
            # every index is below 2**24; "clip" only spares take a buffered copy
            np.take(self._table, pack_rgb(flat[part]), out=tokens[part], mode="clip")
        return tokens.reshape(pixels.shape[:-1])

    def decode(self, tokens: npt.ArrayLike) -> PixelArray:
        """Turns tokens (...), of any integer dtype, into pixels (..., 3) uint8.

        Each channel is rint(127.5 * (c + 1)), c that of the color. Raises TypeError for another
        dtype, ValueError for a token outside 0..K-1.
        """
        array = np.asarray(tokens)
        if array.dtype.kind not in "iu":
            raise TypeError(f"tokens must be integers, not {array.dtype}")
        if array.size and not 0 <= array.min() <= array.max() < len(self):
            raise ValueError(
                f"tokens must lie in 0..{len(self) - 1}, found {array.min()}..{array.max()}: "
                "they belong to another palette, or include the start token"
            )
        return np.take(self._pixels, array, axis=0)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads OpenAI's layout: .npy, float32 (K, 3) in [-1, 1].

        Raises ValueError for other content.
        """
        try:
            return cls(np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no palette (.npy, (K, 3) in [-1, 1]): {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes OpenAI's layout: .npy, float32 (K, 3) in [-1, 1]; the file appears complete."""
        save_atomically(Path(path), lambda file: np.save(file, self.colors))

    @classmethod
    def fit(cls, pixels: PixelArray, n_colors: int, *, seed: int) -> Self:
        """Fits a palette to the colors of pixels (..., 3) uint8; see `fit_histogram`."""
        return cls.fit_histogram(ColorHistogram.of(pixels), n_colors, seed=seed)

    @classmethod
    def fit_histogram(cls, histogram: ColorHistogram, n_colors: int, *, seed: int) -> Self:
        """Fits a palette to a histogram by k-means: k-means++, then Lloyd's algorithm.

        The same seed gives the same colors, sorted from dark to light (luma of ITU-R BT.601).
        ValueError when there are fewer distinct colors than `n_colors`, or for a negative seed;
        TypeError for a number that is not whole.
        """
        n_colors, seed = check_whole("n_colors", n_colors), check_whole("seed", seed, least=0)
        if not 1 <= n_colors <= _MAX_COLORS:
            raise ValueError(f"n_colors must be 1 to {_MAX_COLORS}, not {n_colors}")
        if len(histogram.colors) < n_colors:
            raise ValueError(
                f"cannot fit {n_colors} colors to {len(histogram.colors)} distinct ones: "
                "ask for fewer colors or give more images"
            )
        points, counts = _unpacked(histogram.colors), histogram.counts
        start = plus_plus(points, counts, n_centers=n_colors, rng=np.random.default_rng(seed))
        r, g, b = centers = lloyd(
            points, counts, start=start, nearest=lambda c: nearest_colors(_unit(c), points)
        )
        order = np.lexsort((b, g, r, 0.299 * r + 0.587 * g + 0.114 * b))
        return cls(_unit(centers[:, order]))


def _check_pixels(pixels: PixelArray) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        found = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise TypeError(f"pixels must be a numpy array of uint8, not {found}")
    if pixels.ndim == 0 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must have shape (..., 3), RGB last, not {pixels.shape}")


def _unpacked(colors: npt.NDArray[np.uint32]) -> IntArray:
    """Unpacks r << 16 | g << 8 | b (N,) into channels (3, N)."""
    packed = colors.astype(np.int64)
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255])


def _unit(centers: DoubleArray) -> FloatArray:
    """Scales centers (3, K) in 0..255 to palette colors (K, 3)."""
    return (centers.T / 127.5 - 1).astype(np.float32)
