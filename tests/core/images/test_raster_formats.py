"""What is read of real files: formats, depths and metadata, against second readers."""

import io
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from igpt_core.images.pixels import load_pixels, open_rgb
from igpt_core.images.raster_formats import ImageError, raster_extensions, raster_formats

H, W = 33, 34
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"

NO_PROCESS = """
import io, sys
from PIL import Image
from igpt_core.images.pixels import open_rgb
from igpt_core.images.raster_formats import ImageError

def refuse(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork"):
        print("STARTED", event, flush=True)
        raise RuntimeError(event)

Image.init()
sys.addaudithook(refuse)
postscript = sys.stdin.buffer.read()
starts = [b"", b"\\xc5\\xd0\\xd3\\xc6" + bytes(28), b"\\xff\\xd8\\xff", b"\\x89PNG\\r\\n\\x1a\\n"]
starts += [b"GIF89a", b"BM", b"II*\\0", b"MM\\0*", b"RIFF\\0\\0\\0\\0WEBP", b"P6 9 9 255\\n"]
starts += [b"8BPS", b"\\xd7\\xcd\\xc6\\x9a", b"\\x01\\0\\0\\0" + bytes(36) + b" EMF", b"BUFR"]
starts += [b"GRIB", b"%PDF-", b"\\x89HDF\\r\\n\\x1a\\n", b"\\0\\0\\1\\xb3", b"SIMPLE  ="]
starts += [b"\\x1c\\x01\\x5a\\0\\1", b"icns", b"\\0\\0\\0\\x18ftypheic", b"DDS "]
starts += [b"\\0\\0\\0\\x0cjP  \\r\\n\\x87\\n", b"\\xff\\x4f\\xff\\x51"]
for start in starts:
    try:
        open_rgb(start + postscript)
    except ImageError as error:
        assert "\\n" not in str(error), error
    else:
        raise AssertionError(start)
lazy = Image.open(io.BytesIO(postscript))
try:
    open_rgb(lazy)
except ImageError as error:
    print(lazy.format, error)
"""


def test_no_input_starts_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_PROCESS],
        input=POSTSCRIPT,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith("EPS expected an image of a raster format"), done.stdout
    assert b"STARTED" not in done.stdout


def test_formats_that_are_no_pictures_have_no_extension() -> None:
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf", ".h5", ".mpg", ".grib"} & raster_extensions()
    assert {".jpg", ".jpeg", ".mpo", ".png", ".tif", ".webp", ".jp2"} <= raster_extensions()


# --- metadata


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


LONG = zlib.compress(bytes(2 << 20))
METADATA = {
    "zTXt": [chunk(b"zTXt", b"Comment\0\0" + LONG)],
    "iTXt": [chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG)],
    "many": [chunk(b"tEXt", b"Comment\0" + bytes(1 << 20))] * 70,
    "color profile": [chunk(b"iCCP", b"name\0\0" + LONG)],
    "damaged profile": [chunk(b"iCCP", b"name\0\7junk")],
    "short size": [chunk(b"pHYs", b"\0")],
    "checksum": [chunk(b"tEXt", b"Comment\0text")[:-1] + b"?"],
    "exif in text": [chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG)],
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_does_not_cost_the_picture(kind: str, late: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    png = imagecodecs.png_encode(pixels)
    at = len(png) - 12 if late else 33  # before IEND, after IHDR
    data = png[:at] + b"".join(METADATA[kind]) + png[at:]
    assert np.array_equal(np.asarray(open_rgb(data)), pixels)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xE0, b"JFIF\0\1"),
        segment(0xE0, b"JFXX"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"FPXR\0"),
        segment(0xE2, b"MPF\0II"),
        segment(0xED, b"Photoshop 3.0\x008BIM\4"),
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0\x64"),
        segment(0xFE, b""),
        b"\xff\xff" + segment(0xE0, b"JFIF\0"),
    ],
)
def test_short_metadata_does_not_cost_a_jpeg(extra: bytes, mode: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", exif=exif)
    jpeg = buffer.getvalue()
    whole = np.asarray(open_rgb(jpeg))
    assert np.array_equal(np.asarray(open_rgb(jpeg[:2] + extra + jpeg[2:])), whole)


@pytest.mark.parametrize("transparency", [None, 1])
@pytest.mark.parametrize("colors", [2, 256])
@pytest.mark.parametrize(
    "extra",
    [
        b"\x21\xf9\0",
        b"\x21\xf9\1\0\0",
        b"\x21\xf9\2\0\0\0",
        b"\x21\xff\0",
        b"\x21\xff\x0bNETSCAPE2.0\0",
        b"\x21\xff\3abc\0",
        b"\x21\x01\0",
        b"\x21\xfe\0",
        b"\x21\x77\0",
    ],
)
def test_short_extensions_do_not_cost_a_gif(
    extra: bytes, colors: int, transparency: int | None
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, colors, (H, W), dtype=np.uint8))
    image.putpalette([level for level in range(256) for _ in range(3)])
    buffer = io.BytesIO()
    image.save(buffer, "GIF", **({} if transparency is None else {"transparency": transparency}))
    gif = buffer.getvalue()
    whole = np.asarray(open_rgb(gif))
    header = 13 + (3 << ((gif[10] & 7) + 1))
    if transparency is not None:
        assert gif[header : header + 3] == b"\x21\xf9\4"
    for at in (header, gif.index(b"\x2c\0\0\0\0", header)):
        assert np.array_equal(np.asarray(open_rgb(gif[:at] + extra + gif[at:])), whole)


@pytest.mark.parametrize("kind", [b"eXIf", b"iTXt"])
def test_the_orientation_stays(kind: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>'
    body = exif.tobytes()[6:] if kind == b"eXIf" else xmp
    png = imagecodecs.png_encode(pixels)
    data = png[:33] + METADATA["zTXt"][0] + chunk(kind, body) + png[33:]
    assert np.array_equal(np.asarray(open_rgb(data)), pixels[::-1, ::-1])


def test_a_damaged_tag_of_xmp_does_not_cost_a_tiff() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    data = tiff(pixels, photometric="rgb", extratags=[(700, 3, 1, 7, True)])
    assert np.array_equal(np.asarray(open_rgb(data)), pixels)


def test_an_image_that_is_open_keeps_what_its_file_said() -> None:
    image = Image.new("RGB", (W, H), "red")
    image.info["xmp"] = "<x/>"
    load_pixels(image, 2)
    assert image.info["xmp"] == "<x/>"


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_cielab_in_planes(compression: str | None) -> None:
    """Past bug: its colors a and b were off by half their range."""
    found = levels(8, H, W, 3)
    options = {"photometric": "cielab", "compression": compression}
    whole = np.asarray(open_rgb(tiff(found, **options)))
    planes = tiff(np.moveaxis(found, 2, 0), planarconfig="separate", **options)
    assert np.array_equal(np.asarray(open_rgb(planes)), whole)


# --- depths: the levels that a second reader finds, scaled from the file's full range


def levels(bits: int, *shape: int) -> np.ndarray:
    """Random levels over the full range, both of its ends included."""
    found = np.random.default_rng(bits).integers(0, 2**bits, shape)
    found.flat[: 2 * shape[-1]] = [0] * shape[-1] + [2**bits - 1] * shape[-1]
    return found.astype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def rgb_levels(found: np.ndarray, bits: int) -> np.ndarray:
    """The right picture, unrounded: 0..255, gray repeated, composed on white."""
    share = found.astype(float).reshape(*found.shape[:2], -1) / (2**bits - 1)
    n = share.shape[-1]
    color = np.broadcast_to(share[..., : 1 if n < 3 else 3], (*share.shape[:2], 3))
    alpha = share[..., -1:] if n in (2, 4) else 1.0
    return 255 * (color * alpha + 1 - alpha)


def check(data: bytes, expected: np.ndarray) -> None:
    assert np.abs(np.asarray(open_rgb(data)) - expected).max() <= 1


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


GRAY_TIFFS = {(bits, dark) for bits in (1, 2, 4, 8) for dark in ("minisblack", "miniswhite")}
GRAY_TIFFS |= {(12, "minisblack"), (16, "minisblack"), (16, "miniswhite")}


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("zero", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32])
def test_gray_tiff(bits: int, zero: str, byteorder: str, compression: str | None) -> None:
    found = levels(bits, H, W)
    packed = bits not in (1, 8, 16, 32)
    if packed and (compression or (bits > 8 and byteorder == ">")):
        pytest.skip("tifffile does not write these")
    data = tiff(
        found.astype(bool) if bits == 1 else found,
        photometric=zero,
        byteorder=byteorder,
        compression=compression,
        bitspersample=bits if packed else None,
    )
    assert np.array_equal(tifffile.imread(io.BytesIO(data)), found)
    if (bits, zero) in GRAY_TIFFS and (bits, zero, byteorder) != (16, "miniswhite", ">"):
        right = rgb_levels(found, bits)
        check(data, 255 - right if zero == "miniswhite" else right)
    else:
        with pytest.raises(ImageError, match=r"TIFF that is not supported|expected pixel values"):
            open_rgb(data)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("zero", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32", "float64"])
def test_signed_and_float_tiff(dtype: str, zero: str, byteorder: str) -> None:
    found = np.linspace(0, 1, H * W).reshape(H, W) * (100 if dtype.startswith("int") else 1)
    data = tiff(found.astype(dtype), photometric=zero, byteorder=byteorder)
    if dtype == "float32":
        expected = 255 * (found if zero == "minisblack" else 1 - found)
        check(data, np.repeat(expected[..., None], 3, axis=-1))
    else:
        with pytest.raises(ImageError, match=r"TIFF that is not supported|unsigned samples"):
            open_rgb(data)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("bits", [4, 8, 12, 16, 32])
def test_color_tiff(bits: int, n: int, planar: str, compression: str | None) -> None:
    found = levels(bits, H, W, n)
    packed = bits in (4, 12)
    if packed and compression:
        pytest.skip("tifffile does not write these")
    data = tiff(
        found if planar == "contig" else np.moveaxis(found, -1, 0),
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        bitspersample=bits if packed else None,
        extrasamples=["unassalpha"] if n == 4 else None,
    )
    if bits == 8 or (bits == 16 and (planar == "contig" or (compression and n == 3))):
        check(data, rgb_levels(found, bits))
    else:
        with pytest.raises(ImageError, match=r"TIFF that is not supported|planes of"):
            open_rgb(data)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "separated"])
def test_deep_tiff_of_four_channels(
    kind: str, byteorder: str, compression: str | None, orientation: int
) -> None:
    found = levels(16, 900, 400, 4)  # more than one band
    extra, photometric = [kind], "rgb"
    if kind == "assocalpha":
        found[..., :3] = np.minimum(found[..., :3], found[..., 3:])
    if kind == "separated":
        extra, photometric = None, kind
    data = tiff(
        found,
        photometric=photometric,
        byteorder=byteorder,
        compression=compression,
        extrasamples=extra,
        extratags=[(274, 3, 1, orientation, True), (700, 3, 1, 7, True)],
    )
    share = found / 65535
    color, last = share[..., :3], share[..., 3:]
    right = {
        "unassalpha": color * last + 1 - last,
        "assocalpha": color + 1 - last,
        "separated": (1 - color) * (1 - last),
    }[kind]
    pixels = np.asarray(open_rgb(data))
    right = np.rot90(right, k=-1) if orientation == 6 else right
    assert np.abs(pixels - 255 * right).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("n", [2, 4])
def test_deep_png_with_opacity(n: int) -> None:
    found = levels(16, 900, 400, n)
    share = found / 65535
    color, alpha = share[..., :-1], share[..., -1:]
    right = np.broadcast_to(255 * (color * alpha + 1 - alpha), (900, 400, 3))
    pixels = np.asarray(open_rgb(imagecodecs.png_encode(found)))
    assert np.abs(pixels - right).max() <= 0.5 + 1e-6


def interlaced_png(found: np.ndarray) -> bytes:
    """Writes RGBA of 16 bits by Adam7 (PNG specification, 8.2)."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
    passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [found[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes() for part in parts for row in part if row.size
    )
    header = struct.pack(">IIBBBBB", found.shape[1], found.shape[0], 16, 6, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return data + chunk(b"IEND", b"")


def test_deep_interlaced_png() -> None:
    found = levels(16, H, W, 4)
    data = interlaced_png(found)
    assert np.array_equal(imagecodecs.png_decode(data), found)
    check(data, rgb_levels(found, 16))


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma", "packbits"])
@pytest.mark.parametrize("kind", ["minisblack", "rgb", "separated"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiles_predictors_and_inks(
    bits: int, kind: str, compression: str, predictor: bool, tile: tuple[int, int] | None
) -> None:
    if predictor and compression in ("lzma", "packbits"):
        pytest.skip("these have none")
    shape = {"minisblack": (H, W), "rgb": (H, W, 3), "separated": (H, W, 4)}[kind]
    found = levels(bits, *shape)
    data = tiff(found, photometric=kind, compression=compression, predictor=predictor, tile=tile)
    assert np.array_equal(tifffile.imread(io.BytesIO(data)), found)
    if kind == "separated":
        light = 1 - found / (2**bits - 1)
        check(data, 255 * light[..., :3] * light[..., 3:])
    else:
        check(data, rgb_levels(found, bits))


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_luma_and_chroma_tiff(compression: str | None, tile: tuple[int, int] | None) -> None:
    """By the formulas of JFIF 1.02, which are those of ITU-R BT.601 over the full range."""
    found = levels(8, H, W, 3)
    data = tiff(found, photometric="ycbcr", compression=compression, tile=tile, subsampling=(1, 1))
    y, cb, cr = np.moveaxis(found.astype(float), -1, 0)
    cb, cr = cb - 128, cr - 128
    right = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    check(data, right.clip(0, 255))


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_tiff(bits: int) -> None:
    index = levels(bits, H, W)
    colors = np.random.default_rng(1).integers(0, 65536, (3, 2**bits)).astype(np.uint16)
    data = tiff(index, photometric="palette", colormap=colors)
    if bits == 8:
        check(data, np.moveaxis(colors[:, index], 0, -1) / 257)
    else:
        with pytest.raises(ImageError, match="TIFF that is not supported"):
            open_rgb(data)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_png(bits: int, n: int) -> None:
    found = levels(bits, H, W, n)
    data = imagecodecs.png_encode(found if n > 1 else found[..., 0])
    assert np.array_equal(imagecodecs.png_decode(data).reshape(found.shape), found)
    check(data, rgb_levels(found, bits))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits(bits: int) -> None:
    found = levels(bits, H, W)
    planes = np.unpackbits(found[..., None], axis=-1)[..., -bits:].reshape(H, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(planes, axis=-1))
    header = struct.pack(">IIBBBBB", W, H, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    data += chunk(b"IEND", b"")
    second = imagecodecs.png_decode(data)  # scales to 8 bits
    check(data, np.repeat(second[..., None].astype(int), 3, axis=-1))
    check(data, rgb_levels(found, bits))


@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("top", [1, 100, 255, 256, 1023, 4095, 65535])
def test_portable_maps(top: int, magic: str) -> None:
    n = 3 if magic in ("P3", "P6") else 1
    found = np.random.default_rng(top).integers(0, top + 1, (H, W, n))
    found.flat[:6] = [0, 0, 0, top, top, top]
    body = found.astype(np.uint8 if top < 256 else ">u2").tobytes()
    if magic in ("P2", "P3"):
        body = " ".join(map(str, found.ravel())).encode()
    check(f"{magic}\n{W} {H}\n{top}\n".encode() + body, found * 255 / top)


@pytest.mark.parametrize("codec", ["j2k", "jp2"])
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 16])
def test_jpeg_2000(bits: int, n: int, codec: str) -> None:
    found = levels(bits, H, W, n)
    data = imagecodecs.jpeg2k_encode(
        found if n > 1 else found[..., 0],
        level=0,
        reversible=True,
        bitspersample=bits,
        codecformat=codec,
    )
    assert np.array_equal(imagecodecs.jpeg2k_decode(data).reshape(found.shape), found)
    if bits == 8 or (n == 1 and bits > 8):
        check(data, rgb_levels(found, bits))
    else:
        with pytest.raises(ImageError, match=f"JPEG 2000 image of 8 bits.* of {bits} bits"):
            open_rgb(data)


# --- HEIC


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic(orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    assert "HEIF" in raster_formats()
    assert {".heic", ".heif"} <= raster_extensions()
    y, x = np.mgrid[:64, :96]
    pixels = np.stack([2 * x, 3 * y, 0 * x + 90], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    file = heif.from_pillow(Image.fromarray(pixels))
    file.save(buffer, quality=95, exif=exif.tobytes())
    turns = {1: 0, 3: 2, 6: 3}
    upright = np.rot90(pixels, turns[orientation])
    found = np.asarray(open_rgb(buffer.getvalue())).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 4  # HEVC is lossy; a turn too many is far off
