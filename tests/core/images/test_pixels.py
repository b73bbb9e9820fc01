"""Every PIL mode, orientation and kind of broken file, against expectations computed by hand."""

import colorsys
import contextlib
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from igpt_core.images.pixels import encode_png, load_pixels, open_rgb, to_uint8
from igpt_core.images.raster_formats import ImageError

H, W = 12, 17  # not square, not even: a swapped axis or a wrong stride shows


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture with gradients, an edge and mild noise."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([255 * x / width, 255 * y / height, 128 + 90 * np.sin(x / 9)], axis=-1)
    picture[y > x] *= 0.6
    picture += np.random.default_rng(1).normal(0, 4, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def rgb_of(image: bytes | Image.Image) -> np.ndarray:
    opened = open_rgb(image)
    assert opened.mode == "RGB"
    return np.asarray(opened).astype(int)


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """color * a + white * (1 - a), straight alpha, rounded."""
    a = np.broadcast_to(alpha[..., None], (*alpha.shape, 3)) / 255
    return np.floor(color * a + 255 * (1 - a) + 0.5).astype(int)


def gray3(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None].astype(int), 3, axis=-1)


# --- modes without transparency


def test_rgb_passes_untouched() -> None:
    pixels = noise(H, W, 3)
    image = Image.fromarray(pixels)
    assert open_rgb(image) is image
    for file_format in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(rgb_of(encoded(image, file_format)), pixels)


def test_gray_and_bilevel() -> None:
    levels = noise(H, W)
    assert np.array_equal(rgb_of(Image.fromarray(levels)), gray3(levels))
    bits = levels > 127
    expected = gray3(bits * 255)
    assert np.array_equal(rgb_of(Image.fromarray(bits)), expected)
    assert np.array_equal(rgb_of(encoded(Image.fromarray(bits), "PNG")), expected)


def test_palette_without_transparency() -> None:
    index, colors = noise(H, W) % 7, noise(7, 3, seed=1)
    image = Image.fromarray(index, mode=None).convert("L")
    image.putpalette(colors.tobytes())
    assert image.mode == "P"
    assert np.array_equal(rgb_of(image), colors[index])
    assert np.array_equal(rgb_of(encoded(image, "PNG")), colors[index])
    assert np.array_equal(rgb_of(encoded(image, "GIF")), colors[index])


def test_rgbx_drops_the_filler() -> None:
    values = noise(H, W, 4)
    image = Image.frombytes("RGBX", (W, H), values.tobytes())
    assert np.array_equal(rgb_of(image), values[..., :3])


def test_cmyk() -> None:
    values = noise(H, W, 4)
    image = Image.frombytes("CMYK", (W, H), values.tobytes())
    v = values / 255
    expected = 255 * (1 - v[..., :3]) * (1 - v[..., 3:])
    assert np.abs(rgb_of(image) - expected).max() <= 1  # Pillow rounds the product once more


@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_cmyk_jpeg_with_adobe_marker(ink: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    assert b"Adobe" in data  # such files hold inverted inks
    assert np.abs(rgb_of(data) - expected).max() <= 2  # JPEG's rounding of flat areas


def test_ycbcr() -> None:
    values = noise(H, W, 3)
    image = Image.frombytes("YCbCr", (W, H), values.tobytes())
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0)
    expected = np.stack(  # JFIF 1.02
        [
            y + 1.402 * (cr - 128),
            y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
            y + 1.772 * (cb - 128),
        ],
        axis=-1,
    )
    # Pillow sums two rounded table entries for green
    assert np.abs(rgb_of(image) - np.clip(expected, 0, 255)).max() <= 1.6


def test_hsv() -> None:
    values = noise(H, W, 3)
    image = Image.frombytes("HSV", (W, H), values.tobytes())
    expected = np.array([colorsys.hsv_to_rgb(*v) for v in values.reshape(-1, 3) / 255]) * 255
    # the levels between are rounded to 8 bits one after the other
    assert np.abs(rgb_of(image) - expected.reshape(H, W, 3)).max() <= 1.6


def test_lab() -> None:
    """Past bug: near the edge of the gamut Pillow's color engine was off by up to 18 levels."""
    stored = noise(H, W, 3)
    a, b = stored[..., 1].astype(np.int8), stored[..., 2].astype(np.int8)
    image = Image.frombytes("LAB", (W, H), stored.tobytes())  # as in TIFF: a and b are signed
    # CIE Lab (white D50) -> XYZ -> linear sRGB (matrix adapted to D50, Lindbloom) -> sRGB
    fy = (stored[..., 0] / 2.55 + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f**3 > 216 / 24389, f**3, (116 * f - 16) / (24389 / 27))
    linear = (xyz * [0.96422, 1.0, 0.82521]) @ np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    ).T
    srgb = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055
    )
    assert np.abs(rgb_of(image) - 255 * srgb.clip(0, 1)).max() <= 0.5 + 1e-6


# --- deep gray


def sixteen_bits() -> tuple[np.ndarray, np.ndarray]:
    """Levels (H, W) over all of 0..65535, and their 8-bit values: nearest of v / 257."""
    levels = np.linspace(0, 65535, H * W).round().astype(np.uint16).reshape(H, W)
    return levels, gray3((levels.astype(int) + 128) // 257)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")])
def test_sixteen_bit_modes_are_scaled(mode: str, dtype: str) -> None:
    levels, expected = sixteen_bits()
    image = Image.frombytes(mode, (W, H), levels.astype(dtype).tobytes())
    assert np.array_equal(rgb_of(image), expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_files_are_scaled(file_format: str) -> None:
    levels, expected = sixteen_bits()
    assert np.array_equal(rgb_of(encoded(Image.fromarray(levels), file_format)), expected)


def test_big_endian_tiff_is_scaled() -> None:
    levels, expected = sixteen_bits()
    image = Image.frombytes("I;16B", (W, H), levels.astype(">u2").tobytes())
    data = encoded(image, "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "I;16B"
    assert np.array_equal(rgb_of(data), expected)


def test_dark_sixteen_bit_files_stay_dark() -> None:
    levels = noise(H, W).astype(np.uint16)  # 0..255 of 65535: black, or nearly
    expected = gray3((levels.astype(int) + 128) // 257)
    assert expected.max() == 1
    assert np.array_equal(rgb_of(encoded(Image.fromarray(levels), "PNG")), expected)
    pgm = f"P5 {W} {H} 65535\n".encode() + levels.astype(">u2").tobytes()
    assert np.array_equal(rgb_of(pgm), expected)


def test_mode_i_goes_by_its_range() -> None:
    levels, expected = sixteen_bits()
    assert np.array_equal(rgb_of(Image.fromarray(levels.astype(np.int32))), expected)
    low = noise(H, W)
    assert np.array_equal(rgb_of(Image.fromarray(low).convert("I")), gray3(low))
    with pytest.raises(ImageError, match=r"found -1 to 9"):
        open_rgb(Image.fromarray(np.array([[-1, 9]], np.int32)))
    with pytest.raises(ImageError, match="found 0 to 65536"):
        open_rgb(Image.fromarray(np.array([[0, 65536]], np.int32)))


def test_mode_f_goes_by_its_range() -> None:
    levels, expected = sixteen_bits()
    low = noise(H, W)
    for values, wanted in (
        (low / 255, gray3(low)),
        (low + 0.25, gray3(low)),
        (levels, expected),
    ):
        image = Image.fromarray(np.minimum(values, 65535).clip(0, None).astype(np.float32))
        assert image.mode == "F"
        assert np.array_equal(rgb_of(image), wanted)
    for bad in (np.nan, np.inf, -0.5):
        with pytest.raises(ImageError, match="expected pixel values in"):
            open_rgb(Image.fromarray(np.array([[bad, 0.5]], np.float32)))
    tiff = encoded(Image.fromarray((low / 255).astype(np.float32)), "TIFF")
    assert np.array_equal(rgb_of(tiff), gray3(low))


def test_to_uint8_takes_every_numeric_dtype() -> None:
    levels = np.arange(256)
    for dtype in ("uint8", "int16", "uint16", "int64", "float16", "float32", "float64"):
        assert np.array_equal(to_uint8(levels.astype(dtype)), levels)
    for dtype in ("float16", "float32", "float64"):
        assert np.array_equal(to_uint8((levels / 255).astype(dtype)), levels)
    assert to_uint8(np.array([False, True])).tolist() == [0, 255]
    with pytest.raises(ImageError, match="numeric"):
        to_uint8(np.array(["a"]))


# --- transparency


def test_straight_alpha_is_composed_on_white() -> None:
    values = noise(H, W, 4)
    values[0, :, 3], values[1, :, 3] = 0, 255
    expected = on_white(values[..., :3], values[..., 3])
    assert (expected[0] == 255).all()
    assert np.array_equal(expected[1], values[1, :, :3])
    image = Image.fromarray(values)
    assert np.array_equal(rgb_of(image), expected)
    assert np.array_equal(rgb_of(encoded(image, "PNG")), expected)
    assert np.array_equal(rgb_of(encoded(image, "WEBP", lossless=True, exact=True)), expected)


def test_gray_with_alpha() -> None:
    values = noise(H, W, 2)
    expected = on_white(gray3(values[..., 0]), values[..., 1])
    image = Image.frombytes("LA", (W, H), values.tobytes())
    assert np.array_equal(rgb_of(image), expected)
    assert np.array_equal(rgb_of(encoded(image, "PNG")), expected)


def test_premultiplied_alpha() -> None:
    alpha = noise(H, W, seed=1)
    color = (noise(H, W, 3) / 255 * alpha[..., None]).astype(np.uint8)  # <= alpha
    expected = color.astype(int) + 255 - alpha[..., None]
    image = Image.frombytes("RGBa", (W, H), np.dstack([color, alpha]).tobytes())
    # the straight color between is rounded to 8 bits
    assert np.abs(rgb_of(image) - expected).max() <= 1
    gray = Image.frombytes("La", (W, H), np.dstack([color[..., 0], alpha]).tobytes())
    assert np.abs(rgb_of(gray) - expected[..., :1]).max() <= 1


def palette_image(index: np.ndarray, colors: np.ndarray) -> Image.Image:
    image = Image.fromarray(index)
    image.putpalette(colors.tobytes())
    return image


def test_palette_with_one_transparent_color() -> None:
    index, colors = noise(H, W) % 5, noise(5, 3, seed=1)
    image = palette_image(index, colors)
    expected = np.where((index == 3)[..., None], 255, colors[index])
    for file_format in ("PNG", "GIF"):
        data = encoded(image, file_format, transparency=3)
        assert np.array_equal(rgb_of(data), expected)
    image.info["transparency"] = 3
    assert np.array_equal(rgb_of(image), expected)


def test_palette_with_alpha_per_color() -> None:
    index, colors = noise(H, W) % 5, noise(5, 3, seed=1)
    alpha = np.array([255, 0, 128, 7, 200], np.uint8)
    expected = on_white(colors[index], alpha[index])
    data = encoded(palette_image(index, colors), "PNG", transparency=alpha.tobytes())
    assert isinstance(Image.open(io.BytesIO(data)).info["transparency"], bytes)
    assert np.array_equal(rgb_of(data), expected)
    rgba_palette = Image.fromarray(index)
    rgba_palette.putpalette(np.hstack([colors, alpha[:, None]]).tobytes(), "RGBA")
    assert np.array_equal(rgb_of(rgba_palette), expected)


def test_palette_with_alpha_channel() -> None:
    index, colors, alpha = noise(H, W) % 5, noise(5, 3, seed=1), noise(H, W, seed=2)
    image = palette_image(index, colors).convert("PA")
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == "PA"
    assert np.array_equal(rgb_of(image), on_white(colors[index], alpha))


def test_color_keys_in_png() -> None:
    pixels = noise(H, W, 3) // 64 * 64
    key = tuple(int(v) for v in pixels[2, 3])
    expected = np.where((pixels == key).all(axis=-1, keepdims=True), 255, pixels)
    assert np.array_equal(
        rgb_of(encoded(Image.fromarray(pixels), "PNG", transparency=key)), expected
    )

    levels = pixels[..., 0]
    expected = gray3(np.where(levels == 64, 255, levels))
    assert np.array_equal(
        rgb_of(encoded(Image.fromarray(levels), "PNG", transparency=64)), expected
    )

    bits = levels > 100
    assert (rgb_of(encoded(Image.fromarray(bits), "PNG", transparency=0)) == 255).all()

    deep, expected = sixteen_bits()
    expected[2, 3] = 255
    data = encoded(Image.fromarray(deep), "PNG", transparency=int(deep[2, 3]))
    assert np.array_equal(rgb_of(data), expected)


# --- frames, orientation


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_animations(file_format: str) -> None:
    frames = [Image.new("RGB", (W, H), c) for c in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (rgb_of(data) == (255, 0, 0)).all()


# Exif 2.32, tag Orientation: where row 0 and column 0 of the stored picture lie in the upright one
UPRIGHT = {
    1: lambda p: p,  # top, left
    2: lambda p: p[:, ::-1],  # top, right
    3: lambda p: p[::-1, ::-1],  # bottom, right
    4: lambda p: p[::-1],  # bottom, left
    5: lambda p: p.swapaxes(0, 1),  # left, top
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda p: p.swapaxes(0, 1)[::-1],  # left, bottom
}


def oriented(image: Image.Image, orientation: int, file_format: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if file_format == "WEBP":
        options["lossless"] = True
    return encoded(image, file_format, exif=exif, **options)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, file_format: str) -> None:
    pixels = noise(H, W, 3)
    data = oriented(Image.fromarray(pixels), orientation, file_format)
    if file_format == "JPEG":  # what the file holds, since JPEG is lossy
        pixels = np.asarray(Image.open(io.BytesIO(data)))
    upright = open_rgb(data)
    assert np.array_equal(np.asarray(upright), UPRIGHT[orientation](pixels))
    again = open_rgb(upright)
    assert np.array_equal(np.asarray(again), np.asarray(upright))
    from_pil = open_rgb(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(from_pil), np.asarray(upright))


def test_orientation_with_transparency() -> None:
    values = noise(H, W, 4)
    data = oriented(Image.fromarray(values), 6, "PNG")
    expected = UPRIGHT[6](on_white(values[..., :3], values[..., 3]))
    assert np.array_equal(rgb_of(data), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on broken metadata
@pytest.mark.parametrize("block", [b"Exif\0\0garbage!", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0", b"?"])
def test_damaged_exif_leaves_the_picture_as_stored(block: bytes) -> None:
    pixels = noise(H, W, 3)
    assert np.array_equal(rgb_of(encoded(Image.fromarray(pixels), "PNG", exif=block)), pixels)


# --- broken files


FILES = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on broken metadata
@pytest.mark.parametrize("resize", ["exact", "fast"])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_raises_or_is_whole(name: str, resize: str) -> None:
    file_format, options = FILES[name]
    data = encoded(Image.fromarray(smooth(64, 80)), file_format, **options)
    whole = load_pixels(data, 8, resize=resize)
    for cut in [*range(1, len(data), max(1, len(data) // 40)), *range(len(data) - 8, len(data))]:
        try:
            loaded = load_pixels(data[:cut], 8, resize=resize)
        except ImageError:
            continue
        # what may be missing without harm is what follows the pixels: checksums, an end mark
        assert len(data) - cut <= 24
        assert np.array_equal(loaded, whole)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on broken metadata
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_data_is_an_image_error() -> None:
    """Random bytes over the middle of files: pixels or ImageError, no other exception."""
    rng = np.random.default_rng(0)
    for file_format, options in FILES.values():
        data = encoded(Image.fromarray(smooth(24, 30)), file_format, **options)
        for _ in range(40):
            broken = np.frombuffer(data, np.uint8).copy()
            where = rng.integers(0, len(data), 6)
            broken[where] = rng.integers(0, 256, 6)
            with contextlib.suppress(ImageError):
                assert open_rgb(broken.tobytes()).mode == "RGB"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found zero bytes"),
        (b"just some text\nin lines", "found 23 bytes starting with b'just some te'"),
        (b"<html><body>404 Not Found</body></html>", "not a format that is read"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (None, "found NoneType"),
        ("photo.jpg", "found str"),
    ],
)
def test_not_an_image(content: object, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        open_rgb(content)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_truncated_says_what_was_found() -> None:
    data = encoded(Image.fromarray(smooth(64, 80)), "JPEG")
    found = r"whole JPEG image of 80 x 64, .* OSError: image file is truncated"
    with pytest.raises(ImageError, match=found):
        open_rgb(data[:-50])


def png_header(width: int, height: int) -> bytes:
    """A gray PNG that claims a size and holds next to nothing."""
    chunks = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body
        chunks += struct.pack(">I", zlib.crc32(kind + body))
    return chunks


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_errors() -> None:
    for side in (9_500, 30_000):  # where Pillow only warns, and where it refuses
        with pytest.raises(ImageError, match=r"expected (1 to|at most) 89478485 pixels"):
            open_rgb(png_header(side, side))
        with pytest.raises(ImageError, match="89478485 pixels"):
            load_pixels(png_header(side, side), 32, resize="fast")
    with pytest.raises(ImageError, match="truncated"):  # just below the limit: read, and too short
        open_rgb(png_header(9_400, 9_500))


def test_an_image_without_pixels() -> None:
    with pytest.raises(ImageError, match="found a RGB image of 0 x 5"):
        open_rgb(Image.new("RGB", (0, 5)))


# --- load_pixels


def triangle_weights(source: int, target: int) -> np.ndarray:
    """Antialiased bilinear resampling (target, source): a triangle as wide as an output pixel."""
    scale = source / target
    support = max(scale, 1.0)
    center = (np.arange(target)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(source)[None] + 0.5 - center) / support
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(61, 93), (32, 32), (20, 11), (300, 40)])
def test_exact_squash_is_a_triangle_filter(height: int, width: int) -> None:
    pixels = smooth(height, width)
    rows, columns = triangle_weights(height, 32), triangle_weights(width, 32)
    expected = np.einsum("yh,hwc,xw->yxc", rows, pixels.astype(float), columns)
    loaded = load_pixels(Image.fromarray(pixels), 32)
    assert loaded.shape == (32, 32, 3)
    assert loaded.dtype == np.uint8
    # Pillow rounds to 8 bits between the two axes
    assert np.abs(loaded - expected).max() <= 1.05


@pytest.mark.parametrize(("height", "width"), [(40, 71), (90, 41)])
def test_center_takes_the_middle_square_and_nothing_else(height: int, width: int) -> None:
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 255  # a red surround that must not bleed in
    middle = smooth(side, side)
    middle[..., 0] = 0
    pixels[top : top + side, left : left + side] = middle
    cropped = load_pixels(Image.fromarray(pixels), 16, crop="center")
    assert cropped[..., 0].max() == 0
    assert np.array_equal(cropped, load_pixels(Image.fromarray(middle), 16))
    assert load_pixels(Image.fromarray(pixels), 16)[..., 0].max() == 255


def test_center_crops_the_upright_picture() -> None:
    pixels = smooth(40, 71)
    data = oriented(Image.fromarray(pixels), 6, "PNG")
    upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[6](pixels)))
    assert np.array_equal(
        load_pixels(data, 16, crop="center"), load_pixels(upright, 16, crop="center")
    )


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (64, 2000), (63, 200), (1500, 2000)])
def test_fast_decodes_small_but_never_below_the_target(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(smooth(*shape)), "JPEG", quality=90)
    decoded = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda i: (load(i), decoded.append(i.size))[0])
    load_pixels(data, 32, resize="fast")
    shrink = max(s for s in (1, 2, 4, 8) if s == 1 or min(shape) // 64 >= s)
    assert decoded[0] == (-(-shape[1] // shrink), -(-shape[0] // shrink))
    assert min(decoded[0]) >= min(64, *shape)


@pytest.mark.parametrize("crop", ["squash", "center"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_stays_close_to_exact(crop: str, mode: str, orientation: int) -> None:
    # 4, the scale used, divides neither the sides nor the margin of the square: the last decoded
    # pixel is only partly picture, and forgetting that, or the fraction, costs gray levels
    picture = Image.fromarray(smooth(373, 499)).convert(mode)
    data = oriented(picture, orientation, "JPEG", quality=90)
    exact = load_pixels(data, 32, crop=crop).astype(int)
    fast = load_pixels(data, 32, resize="fast", crop=crop).astype(int)
    assert 0 < np.abs(exact - fast).mean() < 0.6  # 0 would mean that nothing was decoded smaller


def test_fast_is_exact_for_other_formats() -> None:
    png = encoded(Image.fromarray(smooth(375, 500)), "PNG")
    assert np.array_equal(load_pixels(png, 32, resize="fast"), load_pixels(png, 32))


def test_fast_does_not_touch_the_callers_image() -> None:
    data = encoded(Image.fromarray(smooth(375, 500)), "JPEG")
    image = Image.open(io.BytesIO(data))
    fast = load_pixels(image, 32, resize="fast")
    assert image.size == (500, 375)
    assert np.array_equal(fast, load_pixels(data, 32))


@pytest.mark.parametrize("options", [{"resize": "slow"}, {"crop": "left"}])
def test_wrong_options_are_not_image_errors(options: dict[str, str]) -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match=r"expected (resize|crop)") as caught:
        load_pixels(image, 4, **options)  # type: ignore[arg-type]
    assert not isinstance(caught.value, ImageError)
    with pytest.raises(ValueError, match="expected a size of at least 1, found 0"):
        load_pixels(image, 0)


# --- encode_png


def test_png_holds_the_pixels_and_is_deterministic() -> None:
    pixels = noise(H, W, 3)
    data = encode_png(pixels)
    assert data == encode_png(pixels.copy()) == encode_png(np.asfortranarray(pixels))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_png_keeps_opacity() -> None:
    pixels = noise(H, W, 4)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "pixels", [noise(H, W), noise(H, W, 2), noise(H, W, 3) / 255, noise(0, W, 3)]
)
def test_png_of_something_else(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8 pixels"):
        encode_png(pixels)
