"""Palette: tokens and back, the histogram and the fit, the file and the fingerprint."""

import collections
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from igpt_core.images import palette as palette_module
from igpt_core.images.palette import ColorHistogram, Palette, pixels_to_unit

Array = npt.NDArray[np.generic]

RANDOM = np.random.default_rng(0).uniform(-1, 1, (512, 3))
SIXTEEN = RANDOM[:16]  # most tests encode with these: their table is built once


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """Tables are here, not in the home folder; and not in tmp_path, which stays: 32 MiB each."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGPT_CACHE", folder)
        yield Path(folder)


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def photo(seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth 48 x 48 picture with some noise: its colors lie on a curved sheet."""
    y, x = np.mgrid[:48, :48]
    pixels = np.stack([4 * x, 255 * np.sin((x + y) / 40), 127 + 120 * np.cos(y / 9)], axis=-1)
    pixels = pixels + np.random.default_rng(seed).normal(0, 8, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def squared_distances(pixels: Array, colors: Array) -> npt.NDArray[np.float64]:
    """Of pixels (N, 3) in 0..255 from colors (K, 3) in [-1, 1], (N, K)."""
    unit = pixels.astype(np.float64) / 127.5 - 1
    total = np.zeros((len(pixels), len(colors)))
    for p, c in zip(unit.T, colors.astype(np.float64).T, strict=True):
        total += (p[:, None] - c) ** 2
    return total


def mean_squared_error(palette: Palette, pixels: npt.NDArray[np.uint8]) -> float:
    nearest = squared_distances(pixels.reshape(-1, 3), palette.colors).min(axis=1)
    return float(nearest.mean() / 3)


def test_encode_finds_the_nearest_color() -> None:
    palette = Palette(SIXTEEN)
    tokens = palette.encode(noise(10, 100))
    assert tokens.dtype == np.uint16
    assert tokens.shape == (10, 100)
    distances = squared_distances(noise(10, 100).reshape(-1, 3), palette.colors)
    np.testing.assert_array_equal(tokens.reshape(-1), distances.argmin(axis=1))


def test_a_table_is_kept_by_the_palette_and_on_disk_by_its_fingerprint(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    load = palette_module.cached_table

    def counted(colors: npt.NDArray[np.float32], *, fingerprint: str) -> npt.NDArray[np.uint16]:
        calls.append(fingerprint)
        return load(colors, fingerprint=fingerprint)

    monkeypatch.setattr(palette_module, "cached_table", counted)
    palette = Palette(SIXTEEN)
    assert calls == []
    first = palette.encode(noise(200))
    np.testing.assert_array_equal(palette.encode(noise(200)), first)
    assert calls == [palette.fingerprint]
    assert (cache / f"nearest-{palette.fingerprint}.npy").is_file()


def test_encode_of_views_and_of_more_pixels_than_a_chunk() -> None:
    palette = Palette(SIXTEEN)
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
    pixels: object, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(palette_module, "cached_table")  # it fails before the work
    with pytest.raises(error, match=text):
        Palette(RANDOM[:4]).encode(pixels)  # type: ignore[arg-type]


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


def test_pixels_survive_a_palette_that_holds_their_colors() -> None:
    pixels = noise(8, 8)
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


def test_a_pickle_leaves_the_table_behind() -> None:
    palette = Palette(SIXTEEN)
    tokens = palette.encode(noise(50))
    pickled = pickle.dumps(palette)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).encode(noise(50)), tokens)


# --- histogram and fit -------------------------------------------------------------------------


def test_a_histogram_counts_each_color() -> None:
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


def lloyd(points: npt.NDArray[np.float64], centers: npt.NDArray[np.float64]) -> Array:
    """Lloyd's algorithm on points (N, 3), each of weight one, to the end; no empty clusters."""
    while True:
        nearest = ((points[:, None] - centers) ** 2).sum(axis=-1).argmin(axis=1)
        moved = np.stack([points[nearest == k].mean(axis=0) for k in range(len(centers))])
        if np.allclose(moved, centers, rtol=0, atol=1e-9):
            return moved
        centers = moved


def test_a_fit_is_a_fixed_point_of_lloyds_algorithm() -> None:
    pixels = np.repeat(noise(80, seed=4), np.random.default_rng(4).integers(1, 9, 80), axis=0)
    fitted = Palette.fit(pixels, 6, seed=0).colors.astype(np.float64)
    again = lloyd(pixels / 127.5 - 1, fitted)
    np.testing.assert_allclose(fitted, again, atol=2e-7)  # float32 colors


def test_separate_groups_end_at_their_weighted_means() -> None:
    groups = [[[0, 0, 0]] * 9 + [[10, 0, 0]], [[200, 9, 9]], [[99, 255, 0]] * 2 + [[99, 249, 0]]]
    pixels = np.array([color for group in groups for color in group], np.uint8)
    for seed in range(5):
        fitted = 127.5 * (Palette.fit(pixels, 3, seed=seed).colors + 1)
        np.testing.assert_allclose(fitted, [[1, 0, 0], [200, 9, 9], [99, 253, 0]], atol=1e-4)


def test_the_fit_beats_random_colors_and_a_sample() -> None:
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


def test_colors_come_from_dark_to_light() -> None:
    colors = Palette.fit(photo(), 20, seed=0).colors
    assert np.all(np.diff(colors @ [0.299, 0.587, 0.114]) >= 0)


def test_as_many_colors_as_there_are_is_the_most() -> None:
    pixels = np.repeat(noise(10), 3, axis=0)
    fitted = Palette.fit(pixels, 10, seed=0)
    assert set(map(tuple, fitted.decode(np.arange(10)))) == set(map(tuple, pixels))
    with pytest.raises(ValueError, match="cannot fit 11 colors to 10 distinct ones"):
        Palette.fit(pixels, 11, seed=0)
    with pytest.raises(ValueError, match="1 to 65536, not 0"):
        Palette.fit(pixels, 0, seed=0)


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


def test_the_fingerprint_is_of_the_colors_alone() -> None:
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


def test_the_colors_are_a_copy_and_read_only() -> None:
    colors = RANDOM[:4].astype(np.float32)
    palette = Palette(colors)
    colors[0] = 0
    assert palette.colors[0].tolist() == RANDOM[0].astype(np.float32).tolist()
    with pytest.raises(ValueError, match="read-only"):
        palette.colors[0] = 0
