"""Ten thousand broken images among a thousand good ones: each has a result where Pillow finds an
image in it and a reason where it does not, no process dies, and none takes much memory."""

import io
import random
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from drivers import driver, workers
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from pictures import SIDE, encoded, photo

GOOD, BAD = 1_000, 10_000
MOST_BYTES = 1_500 << 20  # of an actor; the largest image that is taken has 178 million pixels
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
MODES = ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"]


def whole(chance: random.Random, extension: str) -> bytes:
    size = (chance.randint(8, 60), chance.randint(8, 60))
    return encoded(photo(chance.randrange(500), size=size), FORMATS[extension])


def cut(chance: random.Random, extension: str) -> bytes:
    content = whole(chance, extension)
    return content[: chance.randrange(len(content))]


def flipped(chance: random.Random, extension: str) -> bytes:
    """A few bits anywhere, headers and sizes included."""
    content = bytearray(whole(chance, extension))
    for _ in range(chance.choice([1, 4, 64])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def of_another_format(chance: random.Random, extension: str) -> bytes:
    """An image under the extension of another one, or what is none at all."""
    others = [
        whole(chance, chance.choice(list(FORMATS))),
        chance.randbytes(chance.randrange(400)),
        b"<html><body>404 Not Found</body></html>",
        b"",
    ]
    return chance.choice(others)


def bomb(chance: random.Random, extension: str) -> bytes:
    """A PNG of a few bytes that says it has billions of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return len(content).to_bytes(4, "big") + kind + content + check.to_bytes(4, "big")

    side = chance.choice([20_000, 60_000, 2**31 - 1]).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100_000)))


def of_an_odd_mode(chance: random.Random, extension: str) -> bytes:
    """Not bad, but what other tools stop at."""
    image = photo(chance.randrange(500))
    mode = chance.choice(MODES)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode != "LA" else "PNG")
    return buffer.getvalue()


KINDS = [cut, flipped, flipped, of_another_format, bomb, of_an_odd_mode]


def pillow_reads(path: Path) -> bool:
    """Whether Pillow finds an image in a file, all of it, within its limit of pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that are damaged
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                image.convert("RGB")
    except Exception:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    chance = random.Random(0)
    for i in range(GOOD):
        extension = chance.choice(["png", "jpg"])
        (folder / f"good-{i:05d}.{extension}").write_bytes(whole(chance, extension))
    for i in range(BAD):
        kind, extension = KINDS[i % len(KINDS)], chance.choice(list(FORMATS))
        name = f"{kind.__name__}-{i:05d}.{extension}"
        (folder / name).write_bytes(kind(chance, extension))
    return folder


@pytest.mark.slow
def test_every_image_has_a_result_or_a_reason(folder, tiny_model, tmp_path):
    output = tmp_path / "run"
    words = ["quantize", f"--input={folder}", f"--output={output}", f"--model={tiny_model}"]
    words += ["--max-error-fraction=1", "--shard-size=250", "--cpu-actors=1"]
    actors: set[int] = set()
    most = 0
    with driver(*words, log=tmp_path / "log") as run:
        while run.running:
            pids = workers(run.pid)
            actors |= set(pids)
            most = max([most, *map(resident, pids)])
            time.sleep(0.2)
        assert run.wait() == 0, run.log()[-3000:]
    assert len(actors) == 2  # one that reads, one that writes: none was replaced
    assert most < MOST_BYTES

    results = {row["id"]: row["tokens"] for row in pq.read_table(output / "data").to_pylist()}
    reasons = {row["id"]: row for row in pq.read_table(output / "errors").to_pylist()}
    names = {path.name for path in folder.iterdir()}
    assert results.keys() | reasons.keys() == names
    assert not results.keys() & reasons.keys()
    assert sum(name.startswith("good-") for name in results) == GOOD
    assert all(row["error"] and row["message"] for row in reasons.values())
    for name in names:
        assert (name in results) == pillow_reads(folder / name), (name, reasons.get(name))
    palette = load_palette(tiny_model)
    for name, tokens in results.items():
        pixels = load_pixels((folder / name).read_bytes(), SIDE)
        assert np.array_equal(palette.encode(pixels).ravel(), tokens), name
    kinds = Counter(name.partition("-")[0] for name in reasons)
    assert kinds["bomb"] == sum(name.startswith("bomb") for name in names)
    assert {"cut", "flipped", "of_another_format"} <= kinds.keys()


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) << 10 if sizes else 0
