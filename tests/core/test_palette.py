"""Palette: the table against brute force and transformers, its cache, the fit, the file."""

import collections
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from transformers.models.imagegpt.image_processing_pil_imagegpt import color_quantize

from igpt_core import palette as palette_module
from igpt_core.palette import ColorHistogram, Palette, pixels_to_unit

Array = npt.NDArray[np.generic]


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table on disk, 32 MiB each, but where a test asks for it: this folder cannot exist."""
    monkeypatch.setenv("IGPT_CACHE", os.path.join(__file__, "cache"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("IGPT_CACHE", str(Path(folder, "new", "igpt")))
        yield Path(folder, "new", "igpt")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each table that is built."""
    sizes: list[int] = []
    build = palette_module._build_table

    def counted(colors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        sizes.append(len(colors))
        return build(colors)

    monkeypatch.setattr(palette_module, "_build_table", counted)
    return sizes


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def photo(seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth 48 x 48 picture with some noise: its colours lie on a curved sheet."""
    y, x = np.mgrid[:48, :48]
    pixels = np.stack([4 * x, 255 * np.sin((x + y) / 40), 127 + 120 * np.cos(y / 9)], axis=-1)
    pixels = pixels + np.random.default_rng(seed).normal(0, 8, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def squared_distances(pixels: Array, colors: Array) -> npt.NDArray[np.float64]:
    """Of pixels (N, 3) in 0..255 from colours (K, 3) in [-1, 1], (N, K)."""
    unit = pixels.astype(np.float64) / 127.5 - 1
    total = np.zeros((len(pixels), len(colors)))
    for p, c in zip(unit.T, colors.astype(np.float64).T, strict=True):
        total += (p[:, None] - c) ** 2
    return total


def mean_squared_error(palette: Palette, pixels: npt.NDArray[np.uint8]) -> float:
    nearest = squared_distances(pixels.reshape(-1, 3), palette.colors).min(axis=1)
    return float(nearest.mean() / 3)


def sphere(n: int) -> npt.NDArray[np.float64]:
    directions = np.random.default_rng(1).normal(size=(n, 3))
    return 0.9 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


# In "sphere" many colours are about equally far from the centre, in "corner" and "speck" from
# almost everywhere; "grays" lie on a line, so that whole planes of pixels share two candidates.
RANDOM = np.random.default_rng(0).uniform(-1, 1, (4096, 3))
HARD = {
    "random 512": RANDOM[:512],
    "one": RANDOM[:1],
    "corner": 0.01 * RANDOM[:512] - 0.99,
    "speck": 0.001 * RANDOM[:512],
    "sphere": sphere(512),
    "grays": np.repeat(np.linspace(-1, 1, 200)[:, None], 3, axis=1),
    "random 4096": RANDOM,
}


@pytest.mark.parametrize("colors", HARD.values(), ids=HARD.keys())
def test_encode_finds_the_nearest_colour(colors: npt.NDArray[np.float64]) -> None:
    palette = Palette(colors)
    around = np.rint(127.5 * (palette.colors[:200] + 1)).astype(np.int64)
    around = np.clip(around[:, None] + np.array([[0, 0, 0], [3, -2, 1], [-9, 0, 9]]), 0, 255)
    pixels = np.concatenate([around.reshape(-1, 3).astype(np.uint8), noise(1000)])
    distances = squared_distances(pixels, palette.colors)

    tokens = palette.encode(pixels)

    assert tokens.dtype == np.uint16
    found = np.take_along_axis(distances, tokens[:, None].astype(np.intp), axis=1)[:, 0]
    # The grid moves a channel of a colour by 2**-26 at most, so a squared distance by 2 * 2 times
    # that in each of three channels, and there are two colours to compare.
    slack = 2 * 12 * 2.0**-26
    assert np.all(found <= distances.min(axis=1) + slack)
    if len(colors) > 1:  # where one colour is nearest by more than that, it is the very one
        least, second = np.partition(distances, 1, axis=1)[:, :2].T
        clear = second - least > slack
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(tokens[clear], distances.argmin(axis=1)[clear])


def test_equal_distances_give_the_lowest_index() -> None:
    # Multiples of 1/8: 8 * 255 * (p / 127.5 - 1 - c) is an integer, so brute force is exact too.
    eighths = np.random.default_rng(3).integers(-8, 9, (60, 3))
    eighths = np.concatenate([eighths, eighths[::-1], -eighths])  # duplicates and mirror images
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    pixels = np.concatenate([noise(20_000), grays, noise(2000) // 128 * 255])
    offset = 8 * (2 * pixels.astype(np.int64)[:, None] - 255) - 255 * eighths
    distances = (offset**2).sum(axis=-1)
    tied = (distances == distances.min(axis=1, keepdims=True)).sum(axis=1) > 1
    assert tied.sum() > 1000

    tokens = Palette(eighths / 8).encode(pixels)

    np.testing.assert_array_equal(tokens, distances.argmin(axis=1))


def test_every_entry_of_a_small_table() -> None:
    # The corners of the cube: the nearest is told by each channel's half, 127 | 128.
    corners = np.array([[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)])
    half = np.arange(256) >= 128
    expected = 4 * half[:, None, None] + 2 * half[:, None] + half
    pixels = np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3, indexing="ij"), axis=-1)

    np.testing.assert_array_equal(Palette(corners).encode(pixels), expected)


def test_the_largest_palette_uses_all_tokens() -> None:
    colors = np.repeat(RANDOM, 16, axis=0)
    colors[-1] = [1, 1, 1]
    palette = Palette(colors)

    assert len(palette) == 65_536
    assert palette.encode(np.array([[255, 255, 255]], np.uint8)) == [65_535]
    assert set((palette.encode(noise(500)) % 16).tolist()) <= {0, 15}  # the first of 16 equals


def test_equals_transformers_but_for_near_ties() -> None:
    colors = RANDOM[:512].astype(np.float32)
    images = noise(4, 32, 32, seed=5)
    flat = images.reshape(-1, 3)
    theirs = color_quantize(flat.astype(np.float32) / np.float32(127.5) - 1, colors)

    ours = Palette(colors).encode(images)

    assert ours.shape == (4, 32, 32)
    least, second = np.partition(squared_distances(flat, colors), 1, axis=1)[:, :2].T
    clear = second - least > 1e-5  # float32 sums of terms up to 6 round by about 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours.reshape(-1)[clear], theirs[clear])


def test_encode_of_views_and_of_more_pixels_than_a_chunk() -> None:
    palette = Palette(RANDOM[:16])
    pixels = noise(300, 301)
    whole = palette.encode(pixels)

    rows = np.stack([palette.encode(row) for row in pixels])
    np.testing.assert_array_equal(whole, rows)
    np.testing.assert_array_equal(palette.encode(pixels[::2, ::-3]), whole[::2, ::-3])
    np.testing.assert_array_equal(palette.encode(pixels.transpose(1, 0, 2)), whole.T)
    assert palette.encode(pixels[:0]).shape == (0, 301)
    assert palette.encode(pixels[0, 0]).shape == ()


@pytest.mark.parametrize(
    ("pixels", "error", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8, not float32"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "uint8, not int64"),
        ([[0, 0, 0]], TypeError, "uint8, not list"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"\(3, 4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"\(4, 4, 4\)"),
        (np.zeros((), np.uint8), ValueError, r"\(\)"),
    ],
)
def test_encode_rejects_other_arrays(
    pixels: object, error: type[Exception], text: str, builds: list[int]
) -> None:
    with pytest.raises(error, match=text):
        Palette(RANDOM[:4]).encode(pixels)  # type: ignore[arg-type]
    assert builds == []  # it fails before the work


def test_decode() -> None:
    colors = np.array([[-1, 0, 1], [0.5, -0.25, 0.1]], np.float32)
    expected = np.array([[0, 128, 255], [191, 96, 140]])  # 127.5 to the even 128; 140.25 to 140
    for dtype in (np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64):
        tokens = np.array([[0, 1], [1, 0]], dtype)
        pixels = Palette(colors).decode(tokens)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected[[[0, 1], [1, 0]]])
    assert Palette(colors).decode(1).tolist() == [191, 96, 140]
    assert Palette(colors).decode(np.empty((0, 5), np.uint16)).shape == (0, 5, 3)


def test_pixels_survive_a_palette_that_holds_their_colours() -> None:
    pixels = noise(15, 15)
    palette = Palette(pixels_to_unit(pixels).reshape(-1, 3))
    np.testing.assert_array_equal(palette.decode(palette.encode(pixels)), pixels)


@pytest.mark.parametrize(
    ("tokens", "error", "text"),
    [
        ([0, 512], ValueError, r"0\.\.511, found 0\.\.512"),
        ([-1, 3], ValueError, r"0\.\.511, found -1\.\.3"),
        (np.array([2**63], np.uint64), ValueError, "0..511"),
        ([0.0], TypeError, "float64"),
        ([True], TypeError, "bool"),
    ],
)
def test_decode_rejects_other_tokens(tokens: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        Palette(RANDOM[:512]).decode(tokens)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("colors", "text"),
    [
        (np.zeros((0, 3)), r"\(0, 3\)"),
        (np.zeros((5, 4)), r"\(5, 4\)"),
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((65_537, 3)), r"\(65537, 3\)"),
        ([[0, 0, 1.5]], "found 0 to 1.5"),
        ([[0, 0, -255]], "found -255 to 0"),
        ([[0, 0, float("nan")]], "nan"),
        ([[0, 0], [0, 0, 0]], "numbers of shape"),
        ([["a", "b", "c"]], "numbers of shape"),
    ],
)
def test_palettes_that_are_none(colors: npt.ArrayLike, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        Palette(colors)
    assert "\n" not in str(caught.value)


# --- the cache ---------------------------------------------------------------------------------

ENCODE = """
import json, sys
import numpy as np
from igpt_core.palette import Palette
pixels = np.random.default_rng(0).integers(0, 256, (500, 3), dtype=np.uint8)
palette = Palette(np.random.default_rng(0).uniform(-1, 1, (4096, 3))[:64])
tokens = palette.encode(pixels).tolist()
try:
    maps = open("/proc/self/maps").read()
except OSError:  # no such file outside Linux
    maps = palette.fingerprint
print(json.dumps([tokens, palette.fingerprint in maps]))
"""


def test_processes_that_start_at_once_share_one_file(cache: Path, builds: list[int]) -> None:
    command = [sys.executable, "-c", ENCODE]
    root = Path(palette_module.__file__).parents[1]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in running]

    palette = Palette(RANDOM[:64])
    tokens = palette.encode(noise(500)).tolist()  # this process finds the file

    assert builds == []
    assert answers == [[tokens, True]] * 2
    assert tokens == squared_distances(noise(500), palette.colors).argmin(axis=1).tolist()
    assert [file.name for file in cache.iterdir()] == [f"nearest-{palette.fingerprint}.npy"]


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
    pixels = noise(200)
    tokens = Palette(RANDOM[:2]).encode(pixels)
    (file,) = cache.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(bytearray(intact)))

    np.testing.assert_array_equal(Palette(RANDOM[:2]).encode(pixels), tokens)
    assert builds == [2, 2]
    assert [f.read_bytes() == intact for f in cache.iterdir()] == [True]
    np.testing.assert_array_equal(Palette(RANDOM[:2]).encode(pixels), tokens)
    assert builds == [2, 2]


def test_without_a_place_for_the_cache_the_table_stays_in_memory(builds: list[int]) -> None:
    palette = Palette(RANDOM[:2])  # _no_cache: the folder cannot be made
    assert builds == []
    first = palette.encode(noise(200))
    np.testing.assert_array_equal(palette.encode(noise(200)), first)
    assert builds == [2]


def test_a_failed_write_leaves_no_file(
    cache: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, array: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    palette = Palette(RANDOM[:2])
    expected = squared_distances(noise(200), palette.colors).argmin(axis=1)
    np.testing.assert_array_equal(palette.encode(noise(200)), expected)
    assert list(cache.iterdir()) == []


def test_a_pickle_leaves_the_table_behind() -> None:
    palette = Palette(RANDOM[:16])
    tokens = palette.encode(noise(50))
    pickled = pickle.dumps(palette)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).encode(noise(50)), tokens)


# --- histogram and fit -------------------------------------------------------------------------


def test_a_histogram_counts_each_colour() -> None:
    pixels = noise(40, 50) // 64 * 80
    expected = collections.Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
    histogram = ColorHistogram.of(pixels)
    assert histogram.colors.dtype == np.uint32
    assert histogram.counts.dtype == np.int64
    assert np.all(np.diff(histogram.colors.astype(np.int64)) > 0)
    rgb = [(c >> 16, c >> 8 & 255, c & 255) for c in histogram.colors.tolist()]
    assert dict(zip(rgb, histogram.counts.tolist(), strict=True)) == expected


def test_histograms_of_parts_add_up_to_that_of_the_whole() -> None:
    pixels = noise(60, 50) // 32 * 32
    parts = [ColorHistogram.of(part) for part in np.split(pixels, [1, 10, 10, 37])]
    whole = ColorHistogram.of(pixels)
    nested = [ColorHistogram.total(parts[2:]), *parts[:2]]
    for total in (ColorHistogram.total(parts), ColorHistogram.total(nested)):
        np.testing.assert_array_equal(total.colors, whole.colors)
        np.testing.assert_array_equal(total.counts, whole.counts)
    assert len(ColorHistogram.total([]).colors) == 0


def lloyd(points: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> Array:
    """Lloyd's algorithm on points (N, 3), each of weight one, to the end; no empty clusters."""
    while True:
        nearest = ((points[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
        moved = np.stack([points[nearest == k].mean(axis=0) for k in range(len(centres))])
        if np.allclose(moved, centres, rtol=0, atol=1e-9):
            return moved
        centres = moved


def test_lloyd_equals_brute_force_over_all_pixels() -> None:
    # Repeated colours: the histogram's counts must act as so many points.
    pixels = np.repeat(noise(60, seed=2), np.random.default_rng(2).integers(1, 9, 60), axis=0)
    start = pixels[[0, 50, 100, 150, 200]].astype(np.float64)

    centres = palette_module._lloyd(ColorHistogram.of(pixels), start.T)

    np.testing.assert_allclose(centres.T, lloyd(pixels.astype(np.float64), start), atol=1e-9)


def test_a_fit_is_a_fixed_point_of_lloyds_algorithm() -> None:
    pixels = np.repeat(noise(80, seed=4), np.random.default_rng(4).integers(1, 9, 80), axis=0)
    fitted = Palette.fit(pixels, 6, seed=0).colors.astype(np.float64)
    again = lloyd(pixels / 127.5 - 1, fitted)
    np.testing.assert_allclose(fitted, again, atol=2e-7)  # float32 colours


def test_separate_groups_end_at_their_weighted_means() -> None:
    groups = [[[0, 0, 0]] * 9 + [[10, 0, 0]], [[200, 9, 9]], [[99, 255, 0]] * 2 + [[99, 249, 0]]]
    pixels = np.array([colour for group in groups for colour in group], np.uint8)
    for seed in range(5):
        fitted = 127.5 * (Palette.fit(pixels, 3, seed=seed).colors + 1)
        np.testing.assert_allclose(fitted, [[1, 0, 0], [200, 9, 9], [99, 253, 0]], atol=1e-4)


def test_a_centre_without_colours_moves_to_where_the_error_is() -> None:
    histogram = ColorHistogram.of(np.array([[90, 0, 0], [90, 0, 9], [200, 0, 0]], np.uint8))
    start = np.array([[5, 0, 5], [5, 0, 5], [5, 0, 5]], np.float64)  # two never win
    centres = palette_module._lloyd(histogram, start.T)
    assert sorted(np.rint(centres.T).tolist()) == [[90, 0, 0], [90, 0, 9], [200, 0, 0]]


def test_the_fit_beats_random_colours_and_a_sample() -> None:
    seen, unseen = photo(0), photo(1)
    fitted = mean_squared_error(Palette.fit(seen, 32, seed=0), unseen)
    rng = np.random.default_rng(0)
    sample = rng.choice(seen.reshape(-1, 3), 32, replace=False)
    assert fitted < 0.75 * mean_squared_error(Palette(pixels_to_unit(sample)), unseen)
    assert fitted < 0.25 * mean_squared_error(Palette(RANDOM[:32]), unseen)


def test_the_fit_depends_on_the_seed_and_on_counts_not_on_the_order_of_pixels() -> None:
    pixels = photo().reshape(-1, 3)
    shuffled = np.random.default_rng(0).permutation(pixels)
    parts = ColorHistogram.total([ColorHistogram.of(part) for part in np.split(shuffled, 4)])
    first = Palette.fit(pixels, 16, seed=3).fingerprint
    assert Palette.fit(shuffled, 16, seed=3).fingerprint == first
    assert Palette.fit_histogram(parts, 16, seed=3).fingerprint == first
    assert Palette.fit(pixels, 16, seed=4).fingerprint != first
    assert Palette.fit(np.concatenate([pixels, pixels[:500]]), 16, seed=3).fingerprint != first


def test_colours_come_from_dark_to_light() -> None:
    colors = Palette.fit(photo(), 20, seed=0).colors
    assert np.all(np.diff(colors @ [0.299, 0.587, 0.114]) >= 0)


def test_as_many_colours_as_there_are_is_the_most() -> None:
    pixels = np.repeat(noise(10), 3, axis=0)
    fitted = Palette.fit(pixels, 10, seed=0)
    assert set(map(tuple, fitted.decode(np.arange(10)))) == set(map(tuple, pixels))
    with pytest.raises(ValueError, match="cannot fit 11 colours to 10 distinct ones"):
        Palette.fit(pixels, 11, seed=0)
    with pytest.raises(ValueError, match="1 to 65536, not 0"):
        Palette.fit(pixels, 0, seed=0)


def test_the_search_of_the_fit_equals_the_table(builds: list[int]) -> None:
    colors = Palette(np.concatenate([RANDOM, RANDOM[::-1]])).colors
    packed = ColorHistogram.of(noise(9000)).colors
    few, many = packed[:1000], packed  # brute force; so many that a table costs less
    searched = palette_module._nearest(colors, few)
    assert builds == []
    looked_up = palette_module._nearest(colors, many)
    assert builds == [8192]  # duplicates included
    np.testing.assert_array_equal(searched, looked_up[:1000])


# --- file and fingerprint ----------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    palette = Palette(RANDOM[:512])
    for name in ("palette.npy", "no suffix"):
        palette.save(tmp_path / name)
        stored = np.load(tmp_path / name, allow_pickle=False)
        assert stored.dtype == np.float32
        assert stored.shape == (512, 3)
        loaded = Palette.load(str(tmp_path / name))
        np.testing.assert_array_equal(loaded.colors, palette.colors)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["no suffix", "palette.npy"]


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "palette.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    contents = {"pickle": file.read_bytes(), "empty": b"", "text": b"0.5 0.5 0.5\n"}
    np.save(file, np.zeros((4, 2), np.float32))
    contents["shape"] = file.read_bytes()
    np.savez(tmp_path / "several.npz", a=np.zeros((4, 3)))
    contents["archive"] = (tmp_path / "several.npz").read_bytes()
    for content in contents.values():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"palette\.npy is no palette") as caught:
            Palette.load(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Palette.load(tmp_path / "missing.npy")


def test_the_fingerprint_is_of_the_colours_alone() -> None:
    colors = RANDOM[:512].astype(np.float32)
    fingerprint = Palette(colors).fingerprint
    assert Palette(colors.astype(np.float64)).fingerprint == fingerprint
    assert Palette(colors.tolist()).fingerprint == fingerprint
    assert Palette(np.asfortranarray(colors)).fingerprint == fingerprint
    assert Palette(colors[::-1]).fingerprint != fingerprint
    assert Palette(colors[:-1]).fingerprint != fingerprint
    changed = colors.copy()
    changed[100, 1] = np.nextafter(changed[100, 1], np.float32(0))
    assert Palette(changed).fingerprint != fingerprint
    assert Palette([[-0.0, 0, 0]]).fingerprint == Palette([[0, 0, 0]]).fingerprint
    # SHA-256 of twelve zero bytes: caches and run directories of other machines rely on it.
    assert (
        Palette([[0, 0, 0]]).fingerprint == "15ec7bf0b50732b49f8228e07d24365338f9e3ab994b00af"[:32]
    )


def test_the_colours_are_a_copy_and_read_only() -> None:
    colors = RANDOM[:4].astype(np.float32)
    palette = Palette(colors)
    colors[0] = 0
    assert palette.colors[0].tolist() == RANDOM[0].astype(np.float32).tolist()
    with pytest.raises(ValueError, match="read-only"):
        palette.colors[0] = 0
