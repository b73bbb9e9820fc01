"""Which formats are read, without another process, and whatever stands beside the pixels."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from igpt_core.images.pixels import ImageError, open_rgb
from igpt_core.images.raster_formats import raster_extensions, raster_formats
from pictures import encoded, photo

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"
MAGICS = [EPS, b"\xc5\xd0\xd3\xc6" + EPS, b"\xd7\xcd\xc6\x9a\0\0" + bytes(60), b"GRIB" + bytes(60)]
MAGICS += [b"\x89HDF\r\n\x1a\n" + bytes(60), b"\0\0\1\xb3" + bytes(60), b"BUFR" + bytes(60)]
MAGICS += [b"SIMPLE  =" + bytes(2900), b"\x1c\x02\x78" + EPS, b"%PDF-1.7\n", b"<svg></svg>"]

NO_PROCESS = """
import sys
from igpt_core.images.pixels import ImageError, open_rgb

def refuse(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        print("a process:", event, arguments)
        sys.exit(3)

sys.addaudithook(refuse)
for data in {payloads!r}:
    try:
        open_rgb(data)
        print("read")
    except ImageError as error:
        print("refused:", str(error).splitlines())
"""


def test_no_input_starts_a_process():
    """Past bug: a photo that began as PostScript does had Pillow start Ghostscript, without end."""
    images = [encoded(photo(0), name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
    payloads = MAGICS + images
    done = subprocess.run(
        [sys.executable, "-c", NO_PROCESS.format(payloads=payloads)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["refused"] * len(MAGICS) + ["read"] * 6


def test_a_picture_that_is_still_to_be_drawn_by_another_program_is_refused():
    waiting = Image.open(io.BytesIO(EPS))
    assert waiting.format == "EPS"
    with pytest.raises(ImageError, match="found EPS; next"):
        open_rgb(waiting)


def test_extensions_are_those_of_the_formats_that_are_read():
    extensions = raster_extensions()
    assert {".png", ".jpg", ".jpeg", ".tif", ".webp", ".avif", ".gif", ".mpo"} <= extensions
    assert not {".eps", ".ps", ".wmf", ".emf", ".h5", ".grib", ".mpg", ".fits"} & extensions
    assert ({".heic", ".heif"} <= extensions) == ("HEIF" in raster_formats())


# --- metadata -------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    computed = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", computed)


LARGE = zlib.compress(bytes(2 << 20))
METADATA = {
    "large zTXt": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "large iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "large tEXt": chunk(b"tEXt", b"Comment\0" + b"x" * (2 << 20)),
    "many texts": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20))) * 80,
    "bomb": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20))),
    "broken profile": chunk(b"iCCP", b"name\0\0no zlib"),
    "empty profile": chunk(b"iCCP", b""),
    "broken text": chunk(b"zTXt", b"Comment\0\0no zlib"),
    "broken checksum": chunk(b"tEXt", b"Comment\0x", checksum=1),
    "broken EXIF": chunk(b"eXIf", b"II*\0garbage"),
    "broken date": chunk(b"tIME", b"1"),
    "broken resolution": chunk(b"pHYs", b"12"),
    "unknown": chunk(b"prVt", b"x" * 100),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_png_does_not_spoil_its_pixels(name):
    """Past bug: a whole picture was called truncated for 2 MiB of text."""
    whole = encoded(photo(3))
    at = 8 + 25  # behind the signature and IHDR
    found = open_rgb(whole[:at] + METADATA[name] + whole[at:])
    assert np.array_equal(np.asarray(found), np.asarray(photo(3).convert("RGB")))


def test_a_png_that_is_cut_is_an_error_with_large_text_too():
    whole = encoded(photo(3, size=(64, 64)))
    cut = whole[:33] + METADATA["large zTXt"] + whole[33 : len(whole) // 2]
    with pytest.raises(ImageError, match="truncated or damaged"):
        open_rgb(cut)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["eXIf", "XMP"])
def test_the_orientation_is_read_beside_large_text(orientation, kind):
    image = photo(5, size=(12, 7))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    if kind == "eXIf":
        image.save(buffer, "PNG", exif=exif)
        whole = buffer.getvalue()
    else:
        image.save(buffer, "PNG")
        xmp = (
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
        )
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode())
        whole = buffer.getvalue()[:33] + text + buffer.getvalue()[33:]
    found = open_rgb(whole[:33] + METADATA["large zTXt"] + whole[33:])
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    expected = np.rot90(np.asarray(image.convert("RGB")), turns)
    assert np.array_equal(np.asarray(found), expected)


# --- gray levels of TIFF, against tifffile --------------------------------------------------------


def packed_12(values: np.ndarray) -> bytes:
    """Rows of 12-bit samples, packed as TIFF 6.0 has it: each row ends on a byte."""
    rows = []
    for row in values:
        bits = "".join(f"{value:012b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    return b"".join(rows)


def tiff_12(values: np.ndarray, *, photometric: int = 1) -> bytes:
    """A TIFF of one strip of 12-bit gray levels (TIFF 6.0, section 4), written by hand."""
    height, width = values.shape
    data = packed_12(values)
    entries = [(256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data))]
    offset = 8 + len(data) + len(data) % 2
    table = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        table += struct.pack("<HHII", tag, kind, 1, value)
    return b"II*\0" + struct.pack("<I", offset) + data.ljust(offset - 8, b"\0") + table + bytes(4)


LEVELS = np.linspace(0, 1, 15 * 9).reshape(9, 15)


def test_gray_of_12_bits_is_scaled_by_4095():
    """Past bug: it was nearly black."""
    values = np.rint(LEVELS * 4095).astype(np.uint16)
    found = np.asarray(open_rgb(tiff_12(values)))
    assert np.array_equal(found[..., 0], np.rint(values / 4095 * 255))


WRITTEN = {
    "uint8": (np.uint8, 255, "minisblack"),
    "uint16": (np.uint16, 65535, "minisblack"),
    "uint8, zero is white": (np.uint8, 255, "miniswhite"),
    "uint16, zero is white": (np.uint16, 65535, "miniswhite"),
    "float32": (np.float32, 1, "minisblack"),
    "bool": (np.bool_, 1, "minisblack"),
    "bool, zero is white": (np.bool_, 1, "miniswhite"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_gray_tiffs_are_those_that_tifffile_wrote(name):
    dtype, white, photometric = WRITTEN[name]
    scaled = LEVELS * white
    values = scaled > 0.5 if dtype is np.bool_ else scaled.astype(dtype)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric=photometric)
    expected = values.astype(np.float64) / white * 255
    expected = 255 - expected if photometric == "miniswhite" else expected
    found = np.asarray(open_rgb(buffer.getvalue()))[..., 0]
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_gray_levels_are_refused(dtype):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, LEVELS.astype(dtype), photometric="minisblack")
    with pytest.raises(ImageError, match=r"unsigned samples, found .* signed"):
        open_rgb(buffer.getvalue())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [3, 4])
def test_color_tiffs_are_those_that_tifffile_wrote_or_refused(dtype, planar, channels):
    white = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, white + 1, (9, 15, channels)).astype(dtype)
    values[..., 3:] = white  # opaque
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    buffer = io.BytesIO()
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(
        buffer, np.ascontiguousarray(stored), photometric="rgb", planarconfig=planar, **extra
    )
    if (dtype, planar) == (np.uint16, "separate"):
        with pytest.raises(ImageError, match="expected a TIFF of 8 bits or of interleaved"):
            open_rgb(buffer.getvalue())
        return
    found = np.asarray(open_rgb(buffer.getvalue())).astype(float)
    assert np.abs(found - values[..., :3] / white * 255).max() <= 1


# --- HEIC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_read_and_turned_once(orientation):
    heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", quality=100, exif=exif.tobytes())
    found = np.asarray(open_rgb(buffer.getvalue())).astype(int)
    turned = np.asarray(image).astype(int)
    expected = turned if orientation == 1 else np.rot90(turned, 3)
    assert found.shape == expected.shape
    assert np.abs(found - expected)[4:-4, 4:-4].mean() < 5
