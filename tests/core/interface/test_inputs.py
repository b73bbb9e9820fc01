"""What ImageGPT takes as images: one in any form, or several as a list, an iterator or a batch."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_core.images.palette import Palette
from igpt_core.images.raster_formats import ImageError
from igpt_core.interface.image_gpt import ImageGPT
from igpt_core.interface.inputs import Inputs
from pictures import SIDE, encoded, photo


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)))
    return Inputs(palette, SIDE, resize="exact", crop="squash")


@pytest.fixture(scope="module")
def igpt(tiny_model) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_model, device="cpu", dtype=torch.float32)


def as_torchvision(seed: int) -> torch.Tensor:
    """Returns a photo as torchvision.io.read_image does: (3, 30, 40) uint8."""
    return torch.from_numpy(np.array(photo(seed))).permute(2, 0, 1)


GRAY, RGBA = photo(0).convert("L"), photo(0).convert("RGBA")
FIRST = {
    "uint8 tensor": (as_torchvision(0), photo(0)),
    "float tensor": (as_torchvision(0) / 255, photo(0)),
    "array": (as_torchvision(0).numpy(), photo(0)),
    "gray": (torch.from_numpy(np.array(GRAY))[None], GRAY),
    "RGBA": (np.moveaxis(np.array(RGBA), 2, 0), RGBA),
    "narrow": (as_torchvision(0)[:, :, :2], photo(0).crop((0, 0, 2, 30))),
}


@pytest.mark.parametrize("kind", FIRST)
def test_channels_may_come_first(inputs, kind):
    """In the same order of channels as Pillow has: colors are told apart."""
    image, expected = FIRST[kind]
    read = inputs.read(image)
    assert np.array_equal(read.tokens, inputs.read(expected).tokens)
    assert (read.names, read.is_list) == (["0"], False)


@pytest.mark.parametrize("shape", [(3, 20, 3), (1, 20, 4), (4, 20, 1), (3, 4, 3)])
def test_where_channels_are_in_doubt_they_come_last(inputs, shape):
    levels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image = Image.fromarray(levels[..., 0] if shape[2] == 1 else levels)
    assert np.array_equal(inputs.read(levels).tokens, inputs.read(image).tokens)


def batches() -> dict[str, object]:
    tensors = torch.stack([as_torchvision(i) for i in range(3)])
    return {
        "list": [photo(i) for i in range(3)],
        "tuple": tuple(photo(i) for i in range(3)),
        "generator": (photo(i) for i in range(3)),
        "iterator": iter([photo(i) for i in range(3)]),
        "map": map(photo, range(3)),
        "batch of tensors": tensors,
        "batch of floats": tensors.float() / 255,
        "batch of arrays": tensors.numpy(),
        "channels last": np.stack([np.asarray(photo(i)) for i in range(3)]),
    }


@pytest.mark.parametrize("kind", batches())
def test_several_images_in_any_form(igpt, kind):
    """Of which a generator can be gone through once alone."""
    expected = igpt.score([photo(i) for i in range(3)])
    found = igpt.score(batches()[kind])
    assert [score.nll for score in found] == [score.nll for score in expected]
    completed = igpt.complete(batches()[kind], samples=2, seed=1, top_k=1)
    assert completed == igpt.complete([photo(i) for i in range(3)], samples=2, seed=1, top_k=1)


def test_nothing_is_an_empty_list_in_any_form(igpt):
    nothing = ([], iter(()), torch.zeros(0, 3, 8, 8), np.zeros((0, 8, 8, 3), np.uint8))
    for images in nothing:
        assert igpt.score(images) == []


def test_a_generator_is_read_image_by_image(inputs):
    """So that large images of many are not held at once."""
    alive = []

    def images():
        for i in range(3):
            alive.append(i)
            yield photo(i)
            alive.remove(i)

    assert inputs.read(images()).names == ["0", "1", "2"]
    assert alive == []


def test_errors_of_a_generator_are_its_own(inputs):
    def images():
        yield photo(0)
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match=r"^of the caller$"):
        inputs.read(images())


def test_open_files_are_images_named_by_their_files(igpt, inputs, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo(1)))
    expected = inputs.read(path)
    with path.open("rb") as file:
        read = inputs.read(file)
    assert np.array_equal(read.tokens, expected.tokens)
    assert (read.names, read.is_list) == (["photo.png"], False) == (expected.names, False)
    with path.open("rb") as first, path.open("rb") as second:
        read = inputs.read([first, io.BytesIO(encoded(photo(1))), second])
    assert read.names == ["photo.png", "1", "photo.png"]
    assert (read.tokens == expected.tokens).all()
    with path.open("rb") as file:
        assert igpt.complete(file, seed=3) == igpt.complete(path, seed=3)
    with path.open("rb") as file, open(file.fileno(), "rb", closefd=False) as descriptor:
        assert inputs.read([descriptor]).names == ["0"], "its name is a number"


def test_buffers_of_bytes_are_encoded_images(inputs):
    content = encoded(photo(0))
    read = inputs.read([bytearray(content), memoryview(content)])
    assert read.names == ["0", "1"]
    assert (read.tokens == inputs.read(content).tokens).all()


def test_files_that_are_closed_or_text(inputs, tmp_path):
    """Past bug: a list with a file opened as text ended in a message about UnicodeDecodeError."""
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo(1)))
    with path.open("rb") as closed:
        pass
    with pytest.raises(ImageError, match=r"^images\[0\]: .* found a closed one; next: open it"):
        inputs.read([closed])
    with path.open(encoding="ascii") as text, pytest.raises(TypeError, match=r"next: .*'rb'"):
        inputs.read([text])


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, torch.int64, torch.bfloat16])
def test_masks_of_zeros_and_ones_are_in_doubt(inputs, kind):
    """Past bug: as bool 1 is known, as an image black is; the latter was taken in silence."""
    known = np.eye(SIDE)
    mask = known.astype(kind) if isinstance(kind, type) else torch.from_numpy(known).to(kind)
    cast = r"\.astype\(bool\)" if isinstance(kind, type) else r"\.bool\(\)"
    for several in (False, True):
        with pytest.raises(ValueError, match=f"^known: expected .*bool.*; next: {cast}") as found:
            inputs.known([mask] if several else mask, 1)
        assert "\n" not in str(found.value)
    assert inputs.known(known * 255, 1).any(), "an image"


def test_masks_may_be_a_batch_an_iterator_or_a_file(inputs):
    known = np.random.default_rng(0).random((2, SIDE, SIDE)) < 0.5
    levels = np.where(known, 0, 255).astype(np.uint8)
    for masks in (
        iter(known),
        list(known),
        levels[..., None],
        torch.from_numpy(levels)[:, None],
        (io.BytesIO(encoded(Image.fromarray(mask))) for mask in levels),
    ):
        assert np.array_equal(inputs.known(masks, 2), known.reshape(2, -1))


URLS = [
    "https://user:secret@example.com/cat.png?token=secret",
    "http://example.com/cat.png",
    "s3://bucket/cat.png",
    "gs://bucket/cat.png",
    "hf://datasets/cats/cat.png",
    "data:image/png;base64," + "secret" * 1000,
    Path("https://example.com/cat.png"),
]


@pytest.mark.parametrize("url", URLS, ids=str)
def test_urls_are_to_be_fetched_first(inputs, url):
    with pytest.raises(ImageError) as refused:
        inputs.read([url])
    scheme = str(url).partition(":")[0]
    assert str(refused.value) == (
        f"images[0]: expected an image file on this machine, found a URL of {scheme}; next: fetch "
        "it first, as by fsspec.open(url).open().read()"
    )


def test_a_file_may_be_called_like_a_url(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    Path("s3:/cat.png").write_bytes(encoded(photo(0)))
    assert inputs.read("s3://cat.png").names == ["cat.png"]


REFUSED = [
    (io.StringIO("text"), TypeError, r"whose read\(\) returns bytes, found str; next: .*'rb'"),
    (io.BytesIO(), ImageError, "zero bytes|empty"),
    (np.zeros((2, 8, 8)), ValueError, r"found an array \(2, 8, 8\); next: a list for several"),
    ([np.zeros((2, 8, 8, 3))], ValueError, r"images\[0\]: .* found an array \(2, 8, 8, 3\)"),
    (torch.zeros(2, 8, 8, 8, 3), ValueError, r"\(2, 8, 8, 8, 3\); next: a list for several"),
    ([np.zeros((2, 8, 8, 3))], ValueError, "next: one batch at a time"),
    (iter([torch.zeros(2, 3, 8, 8)]), ValueError, r"\(2, 3, 8, 8\); next: one batch at a time"),
    (
        iter([(torch.zeros(2, 3, 8, 8), torch.zeros(2))]),
        TypeError,
        r"images\[0\]: .* found tuple; next: one batch at a time, its images alone",
    ),
    (iter([photo(0), 7]), TypeError, r"images\[1\]: expected an image as a path, .* found int"),
    ({}.values(), TypeError, "found dict_values; next: list.* for several"),
]


@pytest.mark.parametrize(("images", "error", "says"), REFUSED, ids=[says for *_, says in REFUSED])
def test_what_is_no_image_is_one_line(inputs, images, error, says):
    with pytest.raises(error, match=says) as found:
        inputs.read(images)
    assert "\n" not in str(found.value)
