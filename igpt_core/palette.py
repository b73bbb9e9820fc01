"""Colours as tokens: the palette, its exact nearest-colour table, its fit.

A pixel value v in 0..255 stands for v / 127.5 - 1 in [-1, 1], as in OpenAI's iGPT; this file is
the only one that knows the factor.

"Nearest" is decided without rounding. Colours are put on the grid of 2**-25: float32 values from
0.25 up (in size) lie on it already, others move by at most 2**-26 = 1.5e-8. Then the squared
distance of a pixel p and a colour c, scaled, and without the part that all colours share, is an
integer that fits int64:

    sum over the channels of C * (255 * C - 2**26 * (2 * p - 255)), C = 2**25 * c

So equal distances compare as equal, and the lowest index wins.
"""

import hashlib
import os
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_MAX_COLORS = 1 << 16  # tokens are uint16
_N_RGB = 1 << 24
_GRID_BITS = 25
_BLOCK = 32  # side of the RGB cubes that the table is built in: a block's scores fit the cache
_LEAF = 4  # side of the smallest cubes with a candidate list of their own
_CHUNK = 1 << 16  # pixels encoded at once: their indices stay in the cache
_START_COLORS = 1 << 17  # k-means++ is linear in these times n_colors

PixelArray = npt.NDArray[np.uint8]
TokenArray = npt.NDArray[np.uint16]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def pixels_to_unit(pixels: PixelArray) -> FloatArray:
    """Pixel values (...) uint8 as v / 127.5 - 1, (...) float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def unit_to_pixels(values: FloatArray) -> PixelArray:
    """Values (...) float32 in [-1, 1] as pixel values rint(127.5 * (v + 1)), (...) uint8."""
    scaled = np.rint(np.float32(127.5) * (values + np.float32(1)))
    return np.asarray(scaled, np.uint8)


def pack_rgb(pixels: PixelArray) -> npt.NDArray[np.intp]:
    """Pixels (..., 3) uint8 as r << 16 | g << 8 | b (...), fit for an index."""
    _check_pixels(pixels)
    index: npt.NDArray[np.intp] = pixels[..., 0].astype(np.intp)  # first wider: uint8 would wrap
    index <<= 8
    index |= pixels[..., 1]
    index <<= 8
    index |= pixels[..., 2]
    return index


@dataclass(frozen=True)
class ColorHistogram:
    """Distinct colours (N,) uint32, r << 16 | g << 8 | b, ascending, and counts (N,) int64.

    Histograms of parts add up, in any order, to exactly the histogram of the whole.
    """

    colors: npt.NDArray[np.uint32]
    counts: IntArray

    @classmethod
    def of(cls, pixels: PixelArray) -> Self:
        """Count the colours of pixels (..., 3) uint8."""
        colors, counts = np.unique(pack_rgb(pixels).astype(np.uint32), return_counts=True)
        return cls(colors, counts.astype(np.int64))

    @classmethod
    def total(cls, parts: Sequence["ColorHistogram"]) -> Self:
        """The sum of any number of histograms; of none it is empty."""
        every = np.concatenate([np.empty(0, np.uint32), *(p.colors for p in parts)])
        colors, place = np.unique(every, return_inverse=True)
        counts = np.zeros(len(colors), np.int64)
        np.add.at(
            counts, place, np.concatenate([np.empty(0, np.int64), *(p.counts for p in parts)])
        )
        return cls(colors, counts)


class Palette:
    """K colours (K, 3) float32 in [-1, 1], K from 1 to 65,536; a colour's index is its token.

    `colors` may be a list, such as `clusters` of a preprocessor_config.json.
    Raises ValueError for another shape or values out of range.
    """

    def __init__(self, colors: npt.ArrayLike) -> None:
        try:
            array = np.array(colors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"palette colours must be numbers of shape (K, 3): {error}") from error
        if array.ndim != 2 or array.shape[1] != 3 or not 1 <= len(array) <= _MAX_COLORS:
            raise ValueError(
                f"a palette needs 1 to {_MAX_COLORS} colours of shape (K, 3), not {array.shape}"
            )
        if not np.all(np.abs(array) <= 1 + 1e-5):  # written so that NaN fails too
            raise ValueError(
                f"palette colours must lie in [-1, 1], found {array.min():g} to {array.max():g}: "
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
        """32 hex digits that depend on the float32 colours alone, the same on every machine."""
        return hashlib.sha256(self.colors.astype("<f4").tobytes()).hexdigest()[:32]

    def encode(self, pixels: PixelArray) -> TokenArray:
        """The nearest colours of pixels (..., 3) uint8, (...) uint16; of equals the lowest index.

        The first call builds a table of all 2**24 pixel values, or maps it from the cache folder
        ($IGPT_CACHE, else ~/.cache/igpt). TypeError for another dtype, ValueError for a shape.
        """
        _check_pixels(pixels)
        if self._table is None:
            self._table = _cached_table(self)
        flat = pixels.reshape(-1, 3)
        tokens = np.empty(len(flat), np.uint16)
        for i in range(0, len(flat), _CHUNK):
            part = slice(i, i + _CHUNK)
            # every index is below 2**24; "clip" only spares take a buffered copy
            np.take(self._table, pack_rgb(flat[part]), out=tokens[part], mode="clip")
        return tokens.reshape(pixels.shape[:-1])

    def decode(self, tokens: npt.ArrayLike) -> PixelArray:
        """Tokens (...) of any integer dtype as pixels (..., 3) uint8, rint(127.5 * (c + 1)).

        TypeError for another dtype, ValueError for a token outside 0..K-1.
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
        """Read OpenAI's layout: .npy, float32 (K, 3) in [-1, 1]. ValueError for another content."""
        try:
            return cls(np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no palette (.npy, (K, 3) in [-1, 1]): {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write OpenAI's layout: .npy, float32 (K, 3) in [-1, 1]; the file appears complete."""
        _save_atomically(Path(path), self.colors)

    @classmethod
    def fit(cls, pixels: PixelArray, n_colors: int, *, seed: int) -> Self:
        """`fit_histogram` of the colours of pixels (..., 3) uint8."""
        return cls.fit_histogram(ColorHistogram.of(pixels), n_colors, seed=seed)

    @classmethod
    def fit_histogram(cls, histogram: ColorHistogram, n_colors: int, *, seed: int) -> Self:
        """The k-means palette of a histogram: k-means++ start, then Lloyd's algorithm.

        The same seed gives the same colours, sorted from dark to light (luma of ITU-R BT.601).
        ValueError when there are fewer distinct colours than `n_colors`.
        """
        if not 1 <= n_colors <= _MAX_COLORS:
            raise ValueError(f"n_colors must be 1 to {_MAX_COLORS}, not {n_colors}")
        if len(histogram.colors) < n_colors:
            raise ValueError(
                f"cannot fit {n_colors} colours to {len(histogram.colors)} distinct ones: "
                "ask for fewer colours or give more images"
            )
        start = _plus_plus(histogram, n_colors, np.random.default_rng(seed))
        r, g, b = centres = _lloyd(histogram, start)
        order = np.lexsort((b, g, r, 0.299 * r + 0.587 * g + 0.114 * b))
        return cls(_unit(centres[:, order]))


def _check_pixels(pixels: PixelArray) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        found = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise TypeError(f"pixels must be a numpy array of uint8, not {found}")
    if pixels.ndim == 0 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must have shape (..., 3), RGB last, not {pixels.shape}")


def _unpacked(colors: npt.NDArray[np.uint32]) -> IntArray:
    """r << 16 | g << 8 | b (N,) as channels (3, N)."""
    packed = colors.astype(np.int64)
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255])


def _unit(centres: DoubleArray) -> FloatArray:
    """Centres (3, K) in 0..255 as palette colours (K, 3)."""
    return (centres.T / 127.5 - 1).astype(np.float32)


def _plus_plus(histogram: ColorHistogram, n_colors: int, rng: np.random.Generator) -> DoubleArray:
    """Starting centres (3, K) in 0..255 by k-means++ (Arthur and Vassilvitskii, 2007).

    Each is a colour drawn in proportion to its count times its squared distance from those
    before. Of more than _START_COLORS distinct colours a random choice of so many takes part.
    """
    chosen = np.arange(len(histogram.colors))
    if len(chosen) > _START_COLORS:
        chosen = np.sort(rng.choice(chosen, _START_COLORS, replace=False))
    points = _unpacked(histogram.colors[chosen])
    counts = histogram.counts[chosen]
    distance = np.full(len(chosen), np.iinfo(np.int64).max)
    mass = np.cumsum(counts)
    picks = np.empty(n_colors, np.int64)
    for i in range(n_colors):
        picks[i] = np.searchsorted(mass, rng.integers(mass[-1]), side="right")
        offset = points - points[:, picks[i], None]
        distance = np.minimum(distance, (offset * offset).sum(axis=0))
        mass = np.cumsum(counts * distance)
    return points[:, picks].astype(np.float64)


def _lloyd(histogram: ColorHistogram, centres: DoubleArray) -> DoubleArray:
    """Centres (3, K) in 0..255 after Lloyd's algorithm, with a colour's count as its weight.

    It ends when a round lowers the error by less than 5e-5 of itself, or after 100 rounds. The
    sums are of integers and below 2**53, so they are exact in float64, in whichever order.
    """
    points, counts = _unpacked(histogram.colors), histogram.counts
    n_colors = centres.shape[1]
    previous = np.inf
    for _ in range(100):
        nearest = _nearest(_unit(centres), histogram.colors)
        errors = counts * ((points - centres[:, nearest]) ** 2).sum(axis=0)
        mass = np.bincount(nearest, counts, n_colors)
        sums = np.stack([np.bincount(nearest, counts * c, n_colors) for c in points])
        centres = sums / np.maximum(mass, 1)
        # A centre without colours moves to a colour with one of the largest errors.
        empty = np.flatnonzero(mass == 0)
        centres[:, empty] = points[:, np.argsort(-errors, kind="stable")[: len(empty)]]
        error = float(errors.sum())
        if len(empty) == 0 and error >= (1 - 5e-5) * previous:
            break
        previous = error
    return centres


def _nearest(colors: FloatArray, packed: npt.NDArray[np.uint32]) -> TokenArray:
    """The nearest of `colors` (K, 3) for packed colours (N,), (N,) uint16."""
    if len(packed) * len(colors) > 1 << 26:  # from here on a whole table costs less
        return _build_table(colors)[packed]
    grid, first = _grid(colors)
    points = _unpacked(packed)
    nearest = np.empty(len(packed), np.uint16)
    step = max(1, _CHUNK // len(colors))
    for i in range(0, len(packed), step):
        score = _score(grid[:, None], points[:, i : i + step, None]).sum(axis=0)
        nearest[i : i + step] = first[score.argmin(axis=1)]
    return nearest


def _build_table(colors: FloatArray) -> npt.NDArray[np.uint16]:
    """The nearest colour of each of the 2**24 pixel values, (2**24,) uint16."""
    grid, first = _grid(colors)
    table = np.empty((256, 256, 256), np.uint16)
    for corner in np.ndindex(256 // _BLOCK, 256 // _BLOCK, 256 // _BLOCK):
        r, g, b = (slice(_BLOCK * i, _BLOCK * (i + 1)) for i in corner)
        table[r, g, b] = first[_nearest_in_block(grid, _BLOCK * np.array(corner))]
    return table.reshape(-1)


def _grid(colors: FloatArray) -> tuple[IntArray, npt.NDArray[np.uint16]]:
    """The distinct colours as integers (3, n), and of each the lowest index, (n,) ascending."""
    scaled = np.rint(np.ldexp(colors.astype(np.float64), _GRID_BITS)).astype(np.int64)
    first = np.sort(np.unique(scaled, axis=0, return_index=True)[1])
    return np.ascontiguousarray(scaled[first].T), first.astype(np.uint16)


def _score(grid: IntArray, value: IntArray) -> IntArray:
    """One channel's share of the distance (see the top); falls by 2**27 * C per pixel step."""
    return grid * (255 * grid - ((2 * value - 255) << (_GRID_BITS + 1)))


def _nearest_in_block(grid: IntArray, corner: IntArray) -> npt.NDArray[np.uint16]:
    """Indices into `grid` (3, n) of the nearest colours of the cube at `corner`, (_BLOCK,) * 3."""
    size = _BLOCK
    low = corner[:, None]  # (3, cells)
    count, colour = _prune(grid, low, size, np.array([grid.shape[1]]), np.arange(grid.shape[1]))
    while size > _LEAF:
        size //= 2
        steps = size * np.indices((2, 2, 2)).reshape(3, 8)
        low = (low[:, None] + steps[:, :, None]).reshape(3, -1)
        count, colour = _prune(grid, low, size, np.tile(count, 8), np.tile(colour, 8))
    # A round tries one candidate of each cell. Cells with many come first, so that the cells that
    # take part are a slice; cells stand on the last axis, which numpy loops over innermost.
    order = np.argsort(-count, kind="stable")
    start = (np.cumsum(count) - count)[order]
    values = low[:, None, order] + np.arange(size)[:, None]  # (3, size, cells)
    best = np.full((size, size, size, len(order)), np.iinfo(np.int64).max)
    nearest = np.zeros(best.shape, np.uint16)
    for rank in range(count.max()):
        n = np.count_nonzero(count > rank)
        trial = colour[start[:n] + rank]
        r, g, b = _score(grid[:, None, trial], values[..., :n])
        score = (r[:, None] + g)[:, :, None] + b
        better = score < best[..., :n]
        np.copyto(best[..., :n], score, where=better)
        np.copyto(nearest[..., :n], trial.astype(np.uint16), where=better)
    block = np.empty((_BLOCK,) * 3, np.uint16)
    r, g, b = values - corner[:, None, None]
    block[r[:, None, None], g[:, None], b] = nearest
    return block


def _prune(
    grid: IntArray, low: IntArray, size: int, count: IntArray, colour: IntArray
) -> tuple[IntArray, IntArray]:
    """Drop candidates that win nowhere in their cell: those farther, all over the cell, than the
    candidate nearest to its centre.

    Cells are cubes of side `size` at `low` (3, cells), cell i with the next count[i] entries of
    `colour`. The difference of two scores is linear in the pixel, so its minimum over the cell
    is the sum of the minima per channel, each at an end: the test is exact.
    """
    cell = np.repeat(np.arange(len(count)), count)
    start = np.cumsum(count) - count
    ours = grid[:, colour]
    at_low = _score(ours, low[:, cell]).sum(axis=0)
    at_centre = at_low - (size // 2 << (_GRID_BITS + 2)) * ours.sum(axis=0)
    winners = np.flatnonzero(at_centre == np.minimum.reduceat(at_centre, start)[cell])
    pivot = np.empty(len(count), np.int64)
    pivot[cell[winners]] = winners
    rival = pivot[cell]
    gain = np.maximum(ours - ours[:, rival], 0).sum(axis=0)  # at most, from `low` on, per step
    keep = at_low - at_low[rival] <= (size - 1 << (_GRID_BITS + 2)) * gain
    return np.add.reduceat(keep, start, dtype=np.int64), colour[keep]


def _cached_table(palette: Palette) -> TokenArray:
    """The palette's table, mapped from the cache folder: a node's processes share its pages.

    The file is the table and its CRC-32. A missing or damaged file is written (anew), atomically,
    so that processes that do it at once only write the same file twice.
    """
    name = f"nearest-{palette.fingerprint}.npy"
    try:
        path = Path(os.environ.get("IGPT_CACHE") or Path.home() / ".cache" / "igpt") / name
    except RuntimeError:  # no home folder
        return _build_table(palette.colors)
    mapped = _map_table(path)
    if mapped is not None:
        return mapped
    table = _build_table(palette.colors)
    checksum = np.array([zlib.crc32(table.data)], np.uint32).view(np.uint16)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_atomically(path, np.concatenate([table, checksum]))
    except OSError:  # nowhere to write: this process keeps a copy of its own
        return table
    mapped = _map_table(path)
    return table if mapped is None else mapped


def _map_table(path: Path) -> TokenArray | None:
    """The table that `path` holds, or None if there is none or it is not as it was written."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(stored, np.memmap) or stored.dtype != np.uint16:
        return None
    if stored.shape != (_N_RGB + 2,):
        return None
    table, checksum = np.asarray(stored[:_N_RGB]), stored[_N_RGB:].tobytes()
    return table if checksum == np.uint32(zlib.crc32(table.data)).tobytes() else None


def _save_atomically(path: Path, array: npt.NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
