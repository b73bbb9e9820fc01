"""The exact nearest color of all 2**24 pixel values, as a table, and its cache on disk.

"Nearest" is decided without rounding. Colors in [-1, 1] are put on the grid of 2**-25: float32
values from 0.25 up (in size) lie on it already, others move by at most 2**-26 = 1.5e-8. Then the
squared distance of a pixel p in 0..255 and a color c, scaled, and without the part that all
colors share, is an integer that fits int64:

    sum over the channels of C * (255 * C - 2**26 * (2 * p - 255)), C = 2**25 * c

So equal distances compare as equal, and the lowest index wins.
"""

import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from igpt_core.files.cache import table_path

_N_RGB = 1 << 24
_GRID_BITS = 25
_BLOCK = 32  # side of the RGB cubes that the table is built in: a block's scores fit the cache
_LEAF = 4  # side of the smallest cubes with a candidate list of their own
_SCORES = 1 << 16  # scores computed at once where there is no table: they stay in the cache

FloatArray = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.uint16]
IntArray = npt.NDArray[np.int64]


def build_table(colors: FloatArray) -> TokenArray:
    """Tabulates the nearest of `colors` (K, 3) for every r << 16 | g << 8 | b, (2**24,) uint16."""
    grid, first = _grid(colors)
    table = np.empty((256, 256, 256), np.uint16)
    for corner in np.ndindex(256 // _BLOCK, 256 // _BLOCK, 256 // _BLOCK):
        r, g, b = (slice(_BLOCK * i, _BLOCK * (i + 1)) for i in corner)
        table[r, g, b] = first[_nearest_in_block(grid, _BLOCK * np.array(corner))]
    return table.reshape(-1)


def _grid(colors: FloatArray) -> tuple[IntArray, TokenArray]:
    """Finds the distinct colors as integers (3, n) and the lowest index of each, (n,) ascending."""
    scaled = np.rint(np.ldexp(colors.astype(np.float64), _GRID_BITS)).astype(np.int64)
    first = np.sort(np.unique(scaled, axis=0, return_index=True)[1])
    return np.ascontiguousarray(scaled[first].T), first.astype(np.uint16)


def _score(grid: IntArray, value: IntArray) -> IntArray:
    """Computes one channel's share of the distance (see the top).

    It falls by 2**27 * C per pixel step.
    """
    return grid * (255 * grid - ((2 * value - 255) << (_GRID_BITS + 1)))


def _nearest_in_block(grid: IntArray, corner: IntArray) -> TokenArray:
    """Finds the nearest of `grid` (3, n) for the cube at `corner`: indices, (_BLOCK,) * 3."""
    size = _BLOCK
    low = corner[:, None]  # (3, cells)
    count, color = _prune(grid, low, size, np.array([grid.shape[1]]), np.arange(grid.shape[1]))
    while size > _LEAF:
        size //= 2
        steps = size * np.indices((2, 2, 2)).reshape(3, 8)
        low = (low[:, None] + steps[:, :, None]).reshape(3, -1)
        count, color = _prune(grid, low, size, np.tile(count, 8), np.tile(color, 8))
    # A round tries one candidate of each cell. Cells with many come first, so that the cells that
    # take part are a slice; cells stand on the last axis, which numpy loops over innermost.
    order = np.argsort(-count, kind="stable")
    start = (np.cumsum(count) - count)[order]
    values = low[:, None, order] + np.arange(size)[:, None]  # (3, size, cells)
    best = np.full((size, size, size, len(order)), np.iinfo(np.int64).max)
    nearest = np.zeros(best.shape, np.uint16)
    for rank in range(count.max()):
        n = np.count_nonzero(count > rank)
        trial = color[start[:n] + rank]
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
    grid: IntArray, low: IntArray, size: int, count: IntArray, color: IntArray
) -> tuple[IntArray, IntArray]:
    """Drops candidates that win nowhere in their cell: those farther, all over the cell, than the
    candidate nearest to its center.

    Cells are cubes of side `size` at `low` (3, cells), cell i with the next count[i] entries of
    `color`. The difference of two scores is linear in the pixel, so its minimum over the cell
    is the sum of the minima per channel, each at an end: the test is exact.
    """
    cell = np.repeat(np.arange(len(count)), count)
    start = np.cumsum(count) - count
    ours = grid[:, color]
    at_low = _score(ours, low[:, cell]).sum(axis=0)
    at_center = at_low - (size // 2 << (_GRID_BITS + 2)) * ours.sum(axis=0)
    winners = np.flatnonzero(at_center == np.minimum.reduceat(at_center, start)[cell])
    pivot = np.empty(len(count), np.int64)
    pivot[cell[winners]] = winners
    rival = pivot[cell]
    gain = np.maximum(ours - ours[:, rival], 0).sum(axis=0)  # at most, from `low` on, per step
    keep = at_low - at_low[rival] <= (size - 1 << (_GRID_BITS + 2)) * gain
    return np.add.reduceat(keep, start, dtype=np.int64), color[keep]


def nearest_colors(colors: FloatArray, pixels: IntArray) -> TokenArray:
    """Looks up pixels (3, N) in 0..255 in the table of `colors` (K, 3): (N,) uint16.

    For few pixels no table is built.
    """
    nearest: TokenArray
    if pixels.shape[1] * len(colors) > 1 << 26:  # from here on a whole table costs less
        r, g, b = pixels
        nearest = build_table(colors)[r << 16 | g << 8 | b]
        return nearest
    grid, first = _grid(colors)
    nearest = np.empty(pixels.shape[1], np.uint16)
    step = max(1, _SCORES // len(colors))
    for i in range(0, len(nearest), step):
        score = _score(grid[:, None], pixels[:, i : i + step, None]).sum(axis=0)
        nearest[i : i + step] = first[score.argmin(axis=1)]
    return nearest


def cached_table(colors: FloatArray, *, fingerprint: str) -> TokenArray:
    """Returns `build_table` of colors (K, 3), from the file of an earlier call where there is one.

    The file, named by the fingerprint, lies in $IGPT_CACHE, else ~/.cache/igpt, and is mapped: a
    node's processes share its pages. It is the table and its CRC-32. A missing or damaged file is
    written (anew), atomically, so that processes that do it at once only write the same file twice.
    """
    try:
        path = table_path(fingerprint)
    except RuntimeError:  # no home folder
        return build_table(colors)
    mapped = _map_table(path)
    if mapped is not None:
        return mapped
    table = build_table(colors)
    checksum = np.array([zlib.crc32(table.data)], np.uint32).view(np.uint16)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(path, lambda file: np.save(file, np.concatenate([table, checksum])))
    except OSError:  # nowhere to write: this process keeps a copy of its own
        return table
    mapped = _map_table(path)
    return table if mapped is None else mapped


def _map_table(path: Path) -> TokenArray | None:
    """Maps the table that `path` holds; None if there is none or it is not as it was written."""
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


def save_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file that appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
