"""The table of nearest colors against brute force; its file shared, damaged, impossible."""

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from igpt_core.images import color_table
from igpt_core.images.color_table import build_table, cached_table, nearest_colors

Array = npt.NDArray[np.generic]
Colors = npt.NDArray[np.float32]


def noise(n: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 3), dtype=np.uint8)


def lookup(table: Array, pixels: Array) -> Array:
    r, g, b = pixels.astype(np.int64).T
    return table[65_536 * r + 256 * g + b]


def squared_distances(pixels: Array, colors: Array) -> npt.NDArray[np.float64]:
    """Of pixels (N, 3) in 0..255 from colors (K, 3) in [-1, 1], (N, K)."""
    unit = pixels.astype(np.float64) / 127.5 - 1
    total = np.zeros((len(pixels), len(colors)))
    for p, c in zip(unit.T, colors.astype(np.float64).T, strict=True):
        total += (p[:, None] - c) ** 2
    return total


def sphere(n: int) -> npt.NDArray[np.float64]:
    directions = np.random.default_rng(1).normal(size=(n, 3))
    return 0.9 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


@functools.lru_cache(maxsize=2)
def _table_of(content: bytes) -> Array:
    return build_table(np.frombuffer(content, np.float32).reshape(-1, 3))


def table_of(colors: Colors) -> Array:
    """`build_table`, which takes up to a second, or what it gave a moment ago."""
    return _table_of(colors.tobytes())


# In "sphere" many colors are about equally far from the center, in "corner" and "speck" from
# almost everywhere; "grays" lie on a line, so that whole planes of pixels share two candidates.
RANDOM = np.random.default_rng(0).uniform(-1, 1, (4096, 3)).astype(np.float32)
TWO = RANDOM[:2]
HARD = {
    "one": RANDOM[:1],
    "corner": 0.01 * RANDOM[:512] - 0.99,
    "speck": 0.001 * RANDOM[:512],
    "sphere": sphere(512),
    "grays": np.repeat(np.linspace(-1, 1, 200)[:, None], 3, axis=1),
    "random": RANDOM,
}


@pytest.mark.parametrize("name", HARD)
def test_the_nearest_color(name: str) -> None:
    colors = HARD[name].astype(np.float32)
    around = np.rint(127.5 * (colors[:200] + 1)).astype(np.int64)
    around = np.clip(around[:, None] + np.array([[0, 0, 0], [3, -2, 1], [-9, 0, 9]]), 0, 255)
    pixels = np.concatenate([around.reshape(-1, 3), noise(1000)])
    distances = squared_distances(pixels, colors)

    tokens = lookup(table_of(colors), pixels)

    assert tokens.dtype == np.uint16
    found = np.take_along_axis(distances, tokens[:, None].astype(np.intp), axis=1)[:, 0]
    # The grid moves a channel of a color by 2**-26 at most, so a squared distance by 2 * 2 times
    # that in each of three channels, and there are two colors to compare.
    slack = 2 * 12 * 2.0**-26
    assert np.all(found <= distances.min(axis=1) + slack)
    if len(colors) > 1:  # where one color is nearest by more than that, it is the very one
        least, second = np.partition(distances, 1, axis=1)[:, :2].T
        clear = second - least > slack
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(tokens[clear], distances.argmin(axis=1)[clear])


def test_the_search_of_a_few_pixels_equals_the_table(builds: list[int]) -> None:
    expected = lookup(table_of(RANDOM), noise(17_000))
    doubled = np.concatenate([RANDOM, RANDOM[::-1]])  # of equals, the first

    few = nearest_colors(doubled, noise(17_000)[:500].T.astype(np.int64))
    assert builds == []
    many = nearest_colors(RANDOM, noise(17_000).T.astype(np.int64))
    assert builds == [4096]

    assert few.dtype == many.dtype == np.uint16
    np.testing.assert_array_equal(few, expected[:500])
    np.testing.assert_array_equal(many, expected)


def test_equal_distances_give_the_lowest_index() -> None:
    # Multiples of 1/8: 8 * 255 * (p / 127.5 - 1 - c) is an integer, so brute force is exact too.
    eighths = np.random.default_rng(3).integers(-8, 9, (60, 3))
    eighths = np.concatenate([eighths, eighths[::-1], -eighths])  # duplicates and mirror images
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    pixels = np.concatenate([noise(5000), grays, noise(1000) // 128 * 255])
    offset = 8 * (2 * pixels.astype(np.int64)[:, None] - 255) - 255 * eighths
    distances = (offset**2).sum(axis=-1)
    tied = (distances == distances.min(axis=1, keepdims=True)).sum(axis=1) > 1
    assert tied.sum() > 1000

    tokens = lookup(build_table((eighths / 8).astype(np.float32)), pixels)

    np.testing.assert_array_equal(tokens, distances.argmin(axis=1))


def test_every_entry_of_a_small_table() -> None:
    # The corners of the cube: the nearest is told by each channel's half, 127 | 128.
    corners = np.array([[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)], np.float32)
    half = np.arange(256) >= 128
    expected = 4 * half[:, None, None] + 2 * half[:, None] + half

    np.testing.assert_array_equal(build_table(corners), expected.reshape(-1))


def test_the_largest_palette_uses_all_tokens() -> None:
    colors = np.repeat(RANDOM[:64], 1024, axis=0)
    colors[-1] = 1

    table = build_table(colors)

    assert len(colors) == 65_536
    assert table[-1] == 65_535
    pixels = noise(500)
    nearest = squared_distances(pixels, np.concatenate([RANDOM[:64], colors[-1:]])).argmin(axis=1)
    expected = np.where(nearest == 64, 65_535, 1024 * nearest)  # the first of 1024 equals
    np.testing.assert_array_equal(lookup(table, pixels), expected)
    assert len(set(expected.tolist())) > 40


# --- the file ----------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of colors with each table that is built."""
    sizes: list[int] = []

    def counted(colors: Colors) -> Array:
        sizes.append(len(colors))
        return table_of(colors)

    monkeypatch.setattr(color_table, "build_table", counted)
    return sizes


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache folder, not made yet; not in tmp_path, which stays: a table has 32 MiB."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("IGPT_CACHE", str(Path(folder, "new", "igpt")))
        yield Path(folder, "new", "igpt")


def test_processes_that_build_at_once_share_one_file(
    cache: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = table_of(TWO)
    context = multiprocessing.get_context("fork")
    both_found_nothing = context.Barrier(2)
    answers = context.SimpleQueue()

    def build_together(colors: Colors) -> Array:
        both_found_nothing.wait(60)
        return expected

    def work() -> None:
        color_table.build_table = build_together
        table = cached_table(TWO, fingerprint="abc")
        try:
            mapped = "nearest-abc.npy" in Path("/proc/self/maps").read_text()
        except OSError:  # no such file outside Linux
            mapped = True
        answers.put((np.array_equal(table, expected), mapped))

    running = [context.Process(target=work, daemon=True) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)

    assert [process.exitcode for process in running] == [0, 0]
    assert [answers.get(), answers.get()] == [(True, True)] * 2
    assert [file.name for file in cache.iterdir()] == ["nearest-abc.npy"]
    np.testing.assert_array_equal(cached_table(TWO, fingerprint="abc"), expected)
    assert builds == []  # this process found the file


def test_each_fingerprint_has_a_file_of_its_own(cache: Path, builds: list[int]) -> None:
    for colors, fingerprint in ((TWO, "a"), (TWO[::-1], "b"), (TWO, "a"), (TWO[::-1], "b")):
        found = cached_table(colors, fingerprint=fingerprint)
        np.testing.assert_array_equal(found, table_of(colors))
    assert builds == [2, 2]
    assert sorted(file.name for file in cache.iterdir()) == ["nearest-a.npy", "nearest-b.npy"]


def cut_short(stored: bytearray) -> bytearray:
    return stored[:-4096]


def one_bit(stored: bytearray) -> bytearray:
    stored[10_000_001] ^= 1
    return stored


def nothing(stored: bytearray) -> bytearray:
    return bytearray()


def other_text(stored: bytearray) -> bytearray:
    return bytearray(b"no array at all" * 100)


@pytest.mark.parametrize("damage", [cut_short, one_bit, nothing, other_text])
def test_a_damaged_file_is_built_again(
    damage: Callable[[bytearray], bytearray], cache: Path, builds: list[int]
) -> None:
    cached_table(TWO, fingerprint="abc")
    (file,) = cache.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(bytearray(intact)))

    np.testing.assert_array_equal(cached_table(TWO, fingerprint="abc"), table_of(TWO))
    assert builds == [2, 2]
    assert [f.read_bytes() == intact for f in cache.iterdir()] == [True]
    np.testing.assert_array_equal(cached_table(TWO, fingerprint="abc"), table_of(TWO))
    assert builds == [2, 2]


def no_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("IGPT_CACHE", os.path.join(__file__, "cache"))  # below a file


def no_home(patch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    patch.delenv("IGPT_CACHE")
    patch.setattr(Path, "home", fail)


def no_space(patch: pytest.MonkeyPatch) -> None:
    def fail(file: object, array: object) -> None:
        raise OSError("no space left on device")

    patch.setattr(np, "save", fail)


@pytest.mark.parametrize("trouble", [no_folder, no_home, no_space])
def test_without_a_place_for_the_file_the_table_is_in_memory(
    trouble: Callable[[pytest.MonkeyPatch], None],
    cache: Path,
    builds: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trouble(monkeypatch)
    np.testing.assert_array_equal(cached_table(TWO, fingerprint="abc"), table_of(TWO))
    assert builds == [2]
    assert [file for file in cache.rglob("*") if file.is_file()] == []
