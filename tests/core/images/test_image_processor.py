"""ImageGPTImageProcessor against transformers' Pillow processor, and where it goes further."""

import copy
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageGPTConfig, ImageGPTImageProcessorPil, ImageGPTModel

from igpt_core.errors import CheckpointError
from igpt_core.images.image_processor import ImageGPTFeatureExtractor, ImageGPTImageProcessor
from igpt_core.images.model_palette import load_palette
from igpt_core.images.palette import Palette
from igpt_core.images.pixels import load_pixels
from igpt_core.images.raster_formats import ImageError

CLUSTERS = np.random.default_rng(7).uniform(-1, 1, (512, 3)).astype(np.float32)
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module", autouse=True)
def _table_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Palettes put their lookup tables here, not into the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGPT_CACHE", str(tmp_path_factory.mktemp("tables")))
        yield


def photo(height: int, width: int, *, quality: int | None = None, seed: int = 0) -> Image.Image:
    """Gradients and noise; with `quality`, decoded from a JPEG of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.cos((x + y) / 7)], axis=-1)
    pixels = np.clip(pixels + rng.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if quality is None:
        return image
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer)


PHOTOS = {
    "odd": photo(53, 37),
    "wide": photo(97, 211, seed=1),
    "smaller": photo(20, 23, seed=2),
    "same size": photo(32, 32, seed=3),
    "jpeg": photo(240, 321, quality=80, seed=4),
    "rough jpeg": photo(111, 77, quality=20, seed=5),
}


@pytest.fixture(scope="module")
def ours() -> ImageGPTImageProcessor:
    return ImageGPTImageProcessor(CLUSTERS, size=SIZE)


@pytest.fixture(scope="module")
def reference() -> ImageGPTImageProcessorPil:
    return ImageGPTImageProcessorPil(CLUSTERS, size=SIZE)


def assert_same_tokens(
    found: np.ndarray, expected: np.ndarray, values: np.ndarray, clusters: np.ndarray
) -> None:
    """Equal, except where both colors are equally near `values` (N, 3): float32 cannot tell."""
    assert found.dtype == expected.dtype == np.int64
    assert found.shape == expected.shape
    differ = found != expected
    x, c = values[differ.reshape(-1)].astype(np.float64), clusters.astype(np.float64)
    distances = [((x - c[tokens[differ]]) ** 2).sum(axis=-1) for tokens in (found, expected)]
    assert np.abs(distances[0] - distances[1]).max(initial=0) < 1e-6
    assert differ.mean() < 0.01  # ties are rare: a handful of 1024 would be a defect


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("size", [SIZE, {"height": 24, "width": 40}])
def test_tokens_equal_the_reference(
    name: str,
    resample: Image.Resampling,
    size: dict[str, int],
    ours: ImageGPTImageProcessor,
    reference: ImageGPTImageProcessorPil,
) -> None:
    options = {"resample": resample, "size": size, "return_tensors": "np"}
    expected = reference(PHOTOS[name], **options)["input_ids"]
    values = reference(PHOTOS[name], do_color_quantize=False, **options)["pixel_values"]
    found = ours(PHOTOS[name], **options)["input_ids"]
    values = np.moveaxis(values[0], 0, -1).reshape(-1, 3)
    assert_same_tokens(found, expected, values, CLUSTERS)


def test_equal_distances_give_the_lowest_index() -> None:
    clusters = np.array([[1, 1, 1], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]], np.float32)
    processor = ImageGPTImageProcessor(clusters, do_resize=False)
    pixels = np.array([[[127, 127, 127], [128, 128, 128], [0, 128, 128]]], np.uint8)
    found = processor(Image.fromarray(pixels), return_tensors="np").input_ids
    assert found.tolist() == [[1, 2, 1]]


@pytest.mark.parametrize("normalize", [True, False])
def test_pixel_values_equal_the_reference(
    normalize: bool, ours: ImageGPTImageProcessor, reference: ImageGPTImageProcessorPil
) -> None:
    options = {"do_color_quantize": False, "do_normalize": normalize, "return_tensors": "np"}
    for image in PHOTOS.values():
        expected = reference(image, **options)["pixel_values"]
        found = ours(image, **options).pixel_values
        assert found.shape == expected.shape == (1, 3, 32, 32)
        assert found.dtype == expected.dtype == np.float32
        # a few float32 roundings of values up to 1
        assert np.abs(found - expected).max() < 5e-7
        assert found.min() >= (-1 if normalize else 0)
        last = ours(image, data_format="channels_last", **options).pixel_values
        assert np.array_equal(np.moveaxis(last, -1, 1), found)


def test_quantizing_without_normalizing_equals_the_reference(
    ours: ImageGPTImageProcessor, reference: ImageGPTImageProcessorPil
) -> None:
    for clusters in (CLUSTERS, (CLUSTERS + 1) / 2):
        options = {"clusters": clusters, "do_normalize": False, "return_tensors": "np"}
        image = PHOTOS["wide"]
        expected = reference(image, **options)["input_ids"]
        values = ours(image, do_color_quantize=False, **options).pixel_values
        values = np.moveaxis(values[0], 0, -1).reshape(-1, 3)
        assert_same_tokens(ours(image, **options).input_ids, expected, values, clusters)


def test_without_resizing(
    ours: ImageGPTImageProcessor, reference: ImageGPTImageProcessorPil
) -> None:
    image = PHOTOS["odd"]
    expected = reference(image, do_resize=False, return_tensors="np")["input_ids"]
    found = ours(image, do_resize=False, return_tensors="np").input_ids
    values = np.asarray(image).reshape(-1, 3) / 127.5 - 1
    assert found.shape == (1, 53 * 37)
    assert_same_tokens(found, expected, values, CLUSTERS)


def test_the_pipeline_and_the_processor_agree(ours: ImageGPTImageProcessor) -> None:
    for image in PHOTOS.values():
        tokens = Palette(CLUSTERS).encode(load_pixels(image, 32)).reshape(-1)
        assert np.array_equal(ours(image, return_tensors="np").input_ids[0], tokens)


# --- kinds of input


def test_arrays_and_tensors_in_any_layout(ours: ImageGPTImageProcessor) -> None:
    image = PHOTOS["odd"]
    hwc = np.asarray(image)
    chw = np.ascontiguousarray(hwc.transpose(2, 0, 1))
    expected = ours(image, return_tensors="np").input_ids
    for same in (
        hwc,
        chw,
        torch.from_numpy(hwc.copy()),
        torch.from_numpy(chw),
        hwc.astype(np.int64),
        hwc.astype(np.float32),
        hwc.astype(np.float32) / 255,
        hwc / 255,
        torch.from_numpy(chw).float() / 255,
        np.dstack([hwc, np.full(hwc.shape[:2], 255, np.uint8)]),  # opaque RGBA
    ):
        assert np.array_equal(ours(same, return_tensors="np").input_ids, expected)
        both = ours([same, same], return_tensors="np").input_ids
        assert np.array_equal(both, np.concatenate([expected, expected]))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert np.array_equal(ours(buffer.getvalue(), return_tensors="np").input_ids, expected)


def test_local_files_and_buffers_of_bytes(
    ours: ImageGPTImageProcessor, reference: ImageGPTImageProcessorPil, tmp_path: Path
) -> None:
    path = tmp_path / "odd.png"
    PHOTOS["odd"].save(path)
    content = path.read_bytes()
    expected = ours(PHOTOS["odd"], return_tensors="np").input_ids
    theirs = reference(str(path), return_tensors="np")["input_ids"]
    assert np.array_equal(reference(PHOTOS["odd"], return_tensors="np")["input_ids"], theirs)
    for same in (str(path), path, bytearray(content), memoryview(content), io.BytesIO(content)):
        assert np.array_equal(ours(same, return_tensors="np").input_ids, expected)
    both = ours([str(path), path], return_tensors="np").input_ids
    assert np.array_equal(both, np.concatenate([expected, expected]))


def test_tensors_in_bfloat16(ours: ImageGPTImageProcessor) -> None:
    """Which numpy does not have."""
    clusters = torch.from_numpy(CLUSTERS).bfloat16()
    stored = ImageGPTImageProcessor(clusters).clusters
    assert np.array_equal(stored, clusters.float().numpy())
    image = torch.from_numpy(np.asarray(PHOTOS["odd"]).copy())
    assert np.array_equal(ours(image.bfloat16()).input_ids, ours(image).input_ids)


def test_batches_along_a_fourth_axis_and_nested_lists(ours: ImageGPTImageProcessor) -> None:
    images = [photo(40, 50, seed=s) for s in range(3)]
    expected = ours(images, return_tensors="np").input_ids
    assert expected.shape == (3, 1024)
    assert not np.array_equal(expected[0], expected[1])
    hwc = np.stack([np.asarray(i) for i in images])
    for same in (hwc, torch.from_numpy(hwc).permute(0, 3, 1, 2), [images[:2], images[2:]], [hwc]):
        assert np.array_equal(ours(same, return_tensors="np").input_ids, expected)


def test_ambiguous_arrays_are_channels_first_unless_told(
    ours: ImageGPTImageProcessor, reference: ImageGPTImageProcessorPil
) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 50, 3), dtype=np.uint8)
    options = {"do_color_quantize": False, "return_tensors": "np"}
    found = ours(array, **options).pixel_values
    for expected in (
        reference(array, **options)["pixel_values"],
        ours(Image.fromarray(array.transpose(1, 2, 0).copy()), **options).pixel_values,
    ):
        assert np.abs(found - expected).max() < 5e-7
    last = ours(array, input_data_format="channels_last", **options).pixel_values
    assert np.array_equal(last, ours(Image.fromarray(array), **options).pixel_values)
    assert not np.array_equal(last, found)


def test_any_mode_and_size_in_one_batch(ours: ImageGPTImageProcessor) -> None:
    color = PHOTOS["jpeg"]
    modes = ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"]
    images = [color.convert(mode) for mode in modes]
    images.append(photo(64, 48).convert("L"))
    tokens = ours(images, return_tensors="np").input_ids
    assert tokens.shape == (11, 1024)
    for row, image in zip(tokens, images, strict=True):
        assert np.array_equal(row, Palette(CLUSTERS).encode(load_pixels(image, 32)).reshape(-1))
    gray = np.asarray(color.convert("L"))
    as_rgb = ours(np.dstack([gray] * 3), return_tensors="np").input_ids[0]
    assert np.array_equal(tokens[1], as_rgb)
    for same in (gray, gray[None], gray[..., None], gray.astype(np.uint16) * 257):
        assert np.array_equal(ours(same, return_tensors="np").input_ids[0], as_rgb)


def test_transparent_arrays_lie_on_white(ours: ImageGPTImageProcessor) -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (9, 8, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    values = ours(rgba, do_color_quantize=False, return_tensors="np").pixel_values
    assert (values == 1).all()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "expected at least one image"),
        ("photo.jpg", ImageError, "expected an image file, found No such file.*: photo.jpg"),
        (
            "https://example.com/cat.png?token=secret",
            ImageError,
            r"found a URL of https; next: fetch it first, as by fsspec\.open\(url\)",
        ),
        ((photo(4, 4) for _ in range(2)), TypeError, "found generator; next: list.* for several"),
        ([[1, 2], [3, 4]], TypeError, "found int"),
        (None, TypeError, "found NoneType"),
        (np.zeros((5, 6, 2), np.uint8), ValueError, r"1, 3 or 4 channels, found \(5, 6, 2\)"),
        (np.zeros(12, np.uint8), ValueError, r"found \(12,\)"),
        (np.full((4, 5, 3), -0.5), ImageError, "found -0.5 to -0.5"),
        (np.full((4, 5, 3), np.nan), ImageError, "found nan"),
        (np.zeros((0, 5, 3)), ImageError, r"found \(0, 5, 3\) float64"),
        (b"no image", ImageError, "found 8 bytes"),
    ],
)
def test_what_is_no_image(
    images: object, error: type[Exception], message: str, ours: ImageGPTImageProcessor
) -> None:
    with pytest.raises(error, match=message):
        ours(images)


# --- results


def test_results_feed_a_model(ours: ImageGPTImageProcessor) -> None:
    inputs = ours([PHOTOS["odd"], PHOTOS["jpeg"]], size={"height": 4, "width": 4},
                  return_tensors="pt")  # fmt: skip
    assert inputs.input_ids is inputs["input_ids"]
    assert inputs.input_ids.dtype == torch.int64
    assert list(inputs) == ["input_ids"]
    assert inputs.to("cpu") is inputs
    config = ImageGPTConfig(n_embd=8, n_layer=1, n_head=1, n_positions=16)
    assert ImageGPTModel(config)(**inputs).last_hidden_state.shape == (2, 16, 8)
    with pytest.raises(AttributeError, match="no 'pixel_values' here, only input_ids"):
        _ = inputs.pixel_values


def test_casting_changes_floats_only(ours: ImageGPTImageProcessor) -> None:
    options = {"return_tensors": "pt", "size": 4}
    values = ours(PHOTOS["odd"], do_color_quantize=False, **options).to(dtype=torch.bfloat16)
    assert values.pixel_values.dtype is torch.bfloat16
    assert ours(PHOTOS["odd"], **options).to("cpu", dtype=torch.bfloat16).input_ids.dtype == (
        torch.int64
    )


def test_moving_to_a_device(ours: ImageGPTImageProcessor) -> None:
    assert ours(PHOTOS["odd"], return_tensors="pt").to("meta").input_ids.device.type == "meta"


def test_without_tensors_a_list_of_arrays_as_the_reference(
    ours: ImageGPTImageProcessor, reference: ImageGPTImageProcessorPil
) -> None:
    expected, found = reference(PHOTOS["odd"])["input_ids"], ours(PHOTOS["odd"])["input_ids"]
    assert type(found) is type(expected) is list
    assert np.array_equal(found[0], expected[0])
    sizes = [
        len(row) for row in ours([PHOTOS["odd"], PHOTOS["smaller"]], do_resize=False).input_ids
    ]
    assert sizes == [53 * 37, 20 * 23]
    with pytest.raises(ValueError, match=r"one size.*\(460,\), \(1961,\).*turn do_resize on"):
        ours([PHOTOS["odd"], PHOTOS["smaller"]], do_resize=False, return_tensors="pt")


# --- options


def test_every_option_can_be_overridden_for_a_call() -> None:
    image = PHOTOS["wide"]
    plain = ImageGPTImageProcessor()
    assert plain.size == {"height": 256, "width": 256}
    other = CLUSTERS[::-1][:100]
    per_call = plain(image, False, 32, Image.Resampling.NEAREST, True, True, other, "np")
    made = ImageGPTImageProcessor(other, False, 32, Image.Resampling.NEAREST, True, True)
    assert np.array_equal(per_call.input_ids, made(image, return_tensors="np").input_ids)
    assert per_call.input_ids.shape == (1, 97 * 211)
    nearest = plain(image, size=8, resample=0, clusters=other, return_tensors="np").input_ids
    smooth = plain(image, size=8, clusters=other, return_tensors="np").input_ids
    assert nearest.shape == smooth.shape == (1, 64)
    assert not np.array_equal(nearest, smooth)
    # the palette of one call must not stick to the next
    first = made(image, return_tensors="np").input_ids
    assert not np.array_equal(made(image, clusters=CLUSTERS, return_tensors="np").input_ids, first)
    assert np.array_equal(made(image, return_tensors="np").input_ids, first)
    assert plain.size == {"height": 256, "width": 256}
    assert plain.clusters is None


def test_each_option_of_a_call_does_what_it_does_in_the_reference(
    reference: ImageGPTImageProcessorPil, ours: ImageGPTImageProcessor
) -> None:
    image = PHOTOS["wide"]
    for options in (
        {"size": {"height": 8, "width": 12}},
        {"size": (8, 12)},
        {"size": 8},
        {"resample": Image.Resampling.NEAREST},
        {"do_resize": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_resize": False, "size": 8},
    ):
        plain = {"do_color_quantize": False, "return_tensors": "np", **options}
        expected = reference(image, **plain)["pixel_values"]
        found = ours(image, **plain).pixel_values
        assert found.shape == expected.shape
        # a few float32 roundings of values up to 1
        assert np.abs(found - expected).max() < 5e-7
    assert ImageGPTImageProcessor(size=(8, 12)).size == {"height": 8, "width": 12}
    assert ImageGPTImageProcessor(size=reference.size).size == SIZE


def test_channel_orders_of_results_and_of_arrays(ours: ImageGPTImageProcessor) -> None:
    hwc = np.asarray(PHOTOS["odd"])
    options = {"do_color_quantize": False, "do_resize": False}
    expected = (hwc / 127.5 - 1).astype(np.float32)
    for array, order in ((hwc, "channels_last"), (hwc.transpose(2, 0, 1), "channels_first")):
        for source in (array, torch.from_numpy(array.copy())):
            for kind in ("np", "pt"):
                given = {"input_data_format": order, "return_tensors": kind, **options}
                last = ours(source, data_format="channels_last", **given).pixel_values
                first = ours(source, **given).pixel_values
                assert type(last) is (np.ndarray if kind == "np" else torch.Tensor)
                np.testing.assert_allclose(last[0], expected, rtol=0, atol=5e-7)
                assert np.array_equal(np.moveaxis(np.asarray(first), 1, -1), np.asarray(last))


TAKEN = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": 0.5,
    "do_center_crop": None,
    "do_pad": False,
    "do_convert_rgb": True,
    "crop_size": {"height": 3, "width": 3},
    "device": "cpu",
    "disable_grouping": True,
}


def test_other_arguments_of_the_reference_that_ask_for_what_is_done_anyway(
    ours: ImageGPTImageProcessor,
) -> None:
    expected = ours(PHOTOS["odd"], return_tensors="np").input_ids
    assert np.array_equal(ours(PHOTOS["odd"], return_tensors="np", **TAKEN).input_ids, expected)
    made = ImageGPTImageProcessor(
        CLUSTERS, size=SIZE, feature_extractor_type="ImageGPTFeatureExtractor", **TAKEN
    )
    assert np.array_equal(made(PHOTOS["odd"], return_tensors="np").input_ids, expected)
    assert made.to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_rescale", False),
        ("rescale_factor", 1 / 127.5),
        ("image_mean", [0.485, 0.456, 0.406]),
        ("image_std", 0.2),
        ("do_center_crop", True),
        ("do_pad", True),
    ],
)
def test_other_arguments_that_ask_for_something_else_are_refused(
    name: str, value: object, ours: ImageGPTImageProcessor
) -> None:
    with pytest.raises(ValueError, match=f"expected {name} .*, found .*; next: "):
        ImageGPTImageProcessor(**{name: value})
    with pytest.raises(ValueError, match=f"expected {name} .*, found .*; next: "):
        ours(PHOTOS["odd"], **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_rescale", False),
        ("rescale_factor", 1.0),
        ("image_mean", [0.0] * 3),
        ("image_std", 0.2),
        ("do_center_crop", True),
        ("data_format", "channels_last"),
        ("return_tensors", "pt"),
        ("size", 0),
        ("clusters", [1, 2, 3]),
        ("resample", 17),
        ("compat", "3"),
    ],
)
def test_attributes_are_refused_as_arguments_are(name: str, value: object) -> None:
    """Past bug: they were taken, and ignored or broke the next call."""
    processor = ImageGPTImageProcessor(CLUSTERS, size=SIZE)
    before = processor.to_dict()
    with pytest.raises(ValueError, match=name if name != "resample" else "17 is not a valid"):
        setattr(processor, name, value)
    assert processor.to_dict() == before


def test_attributes_are_read_as_arguments_are() -> None:
    processor = ImageGPTImageProcessor()
    for size in (8, (8, 8), {"height": 8, "width": 8}):
        processor.size = size
        assert processor.size == {"height": 8, "width": 8}
    processor.clusters = CLUSTERS.tolist()
    processor.resample = 3
    processor.do_normalize = True
    made = ImageGPTImageProcessor(CLUSTERS, size=8, resample=Image.Resampling.BICUBIC)
    assert processor.resample is Image.Resampling.BICUBIC
    assert processor.to_dict() == made.to_dict()
    found = processor(PHOTOS["odd"], return_tensors="np").input_ids
    assert np.array_equal(found, made(PHOTOS["odd"], return_tensors="np").input_ids)
    processor.size["width"] = 9
    assert (processor.size.height, processor.size.width) == (8, 9)
    processor.clusters = None
    assert processor.clusters is None


def test_what_is_always_done_can_be_read(reference: ImageGPTImageProcessorPil) -> None:
    processor = ImageGPTImageProcessor(CLUSTERS, size=SIZE)
    for name in (
        *("do_rescale", "rescale_factor", "image_mean", "image_std", "default_to_square"),
        *("input_data_format", "return_tensors"),
    ):
        assert getattr(processor, name) == getattr(reference, name), name
    assert (processor.do_convert_rgb, processor.do_center_crop, processor.do_pad) == (
        *(True, False, False),
    )
    assert (reference.size.height, reference.size.width) == (
        *(processor.size.height, processor.size.width),
    )
    processor.image_mean = [0.5] * 3
    processor.do_center_crop = None
    assert (processor.image_mean, processor.do_center_crop) == ((0.5, 0.5, 0.5), False)
    with pytest.raises(AttributeError, match=r"'ImageGPTImageProcessor' .* 'sizes'"):
        _ = processor.sizes
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert other.to_dict() == processor.to_dict()
        assert other.size.width == 32


@pytest.mark.parametrize("clusters", [CLUSTERS, CLUSTERS.tolist(), torch.from_numpy(CLUSTERS)])
def test_clusters_may_be_a_list_array_or_tensor(clusters: object) -> None:
    stored = ImageGPTImageProcessor(clusters).clusters
    assert isinstance(stored, np.ndarray)
    assert np.array_equal(stored, CLUSTERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 32}}, "expected size"),
        ({"size": {"height": 32}}, "expected size"),
        ({"size": 0}, "expected size"),
        ({"size": "32"}, "expected size"),
        ({"clusters": [1, 2, 3]}, r"clusters of shape \(K, 3\), found \(3,\)"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageGPTImageProcessor(**options)
    with pytest.raises(ValueError, match=message):
        ImageGPTImageProcessor(CLUSTERS)(PHOTOS["odd"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "tf"}, "return_tensors 'pt', 'np' or None, found 'tf'"),
        ({"data_format": "CHW"}, "expected data_format"),
        ({"input_data_format": "HWC"}, "expected input_data_format"),
        ({"clusters": np.arange(30).reshape(10, 3)}, r"must lie in \[-1, 1\], found 0 to 29"),
    ],
)
def test_wrong_options_of_a_call(
    options: dict[str, object], message: str, ours: ImageGPTImageProcessor
) -> None:
    with pytest.raises(ValueError, match=message):
        ours(PHOTOS["odd"], **options)


def test_unknown_arguments_and_missing_clusters(ours: ImageGPTImageProcessor) -> None:
    with pytest.raises(TypeError, match="sizes is no argument"):
        ImageGPTImageProcessor(sizes=32)
    with pytest.raises(TypeError, match="sizes"):
        ours(PHOTOS["odd"], sizes=32)
    with pytest.raises(ValueError, match="expected clusters for color quantization"):
        ImageGPTImageProcessor()(PHOTOS["odd"])


# --- folders


def test_the_old_name_is_an_alias() -> None:
    assert ImageGPTFeatureExtractor is ImageGPTImageProcessor


def test_folders_move_both_ways(tmp_path: Path) -> None:
    made = ImageGPTImageProcessor(
        CLUSTERS, size={"height": 20, "width": 28}, resample=Image.Resampling.BICUBIC
    )
    made.save_pretrained(tmp_path / "ours")
    theirs = ImageGPTImageProcessorPil.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = ImageGPTImageProcessor.from_pretrained(tmp_path / "theirs")
    assert back.to_dict() == made.to_dict()
    assert back.clusters is not None
    assert back.clusters.tobytes() == CLUSTERS.tobytes()
    image = PHOTOS["jpeg"]
    expected = made(image, return_tensors="np").input_ids
    assert np.array_equal(back(image, return_tensors="np").input_ids, expected)
    assert np.mean(theirs(image, return_tensors="np")["input_ids"] == expected) > 0.99


def test_every_setting_survives_a_folder(tmp_path: Path) -> None:
    made = ImageGPTImageProcessor(None, False, 48, Image.Resampling.LANCZOS, False, False)
    made.save_pretrained(tmp_path)
    back = ImageGPTImageProcessor.from_pretrained(str(tmp_path))
    assert (
        back.to_dict()
        == made.to_dict()
        == json.loads((tmp_path / "preprocessor_config.json").read_text())
    )
    assert back.size == {"height": 48, "width": 48}
    assert (back.do_resize, back.do_normalize, back.do_color_quantize) == (False,) * 3
    assert back.resample is Image.Resampling.LANCZOS
    assert back.clusters is None


def test_arguments_beat_what_is_stored(tmp_path: Path) -> None:
    ImageGPTImageProcessor(CLUSTERS, size=SIZE).save_pretrained(tmp_path)
    changed = {"size": {"height": 4, "width": 4}, "do_color_quantize": False}
    ours = ImageGPTImageProcessor.from_pretrained(tmp_path, **changed)
    theirs = ImageGPTImageProcessorPil.from_pretrained(tmp_path, **changed)
    image = PHOTOS["odd"]
    expected = theirs(image, return_tensors="np")["pixel_values"]
    assert expected.shape == (1, 3, 4, 4)
    # a few float32 roundings of values up to 1
    assert np.abs(ours(image, return_tensors="np").pixel_values - expected).max() < 5e-7
    for wrong, error, message in (
        ({"sizes": 4}, TypeError, "^sizes is no argument"),
        ({"size": "x"}, ValueError, "^expected size"),
    ):
        with pytest.raises(error, match=message) as caught:
            ImageGPTImageProcessor.from_pretrained(tmp_path, **wrong)
        assert not isinstance(caught.value, CheckpointError), "the file is not to blame"


def test_the_layout_of_the_published_checkpoints(tmp_path: Path) -> None:
    published = {
        "clusters": CLUSTERS.tolist(),
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ImageGPTFeatureExtractor",
        "resample": 2,
        "size": 32,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    processor = ImageGPTFeatureExtractor.from_pretrained(tmp_path)
    assert processor.size == SIZE
    expected = ImageGPTImageProcessor(CLUSTERS, size=SIZE)(PHOTOS["odd"], return_tensors="np")
    assert np.array_equal(processor(PHOTOS["odd"], return_tensors="np").input_ids,
                          expected.input_ids)  # fmt: skip


def test_folders_by_uri_and_the_shipped_one(tmp_path: Path) -> None:
    made = ImageGPTImageProcessor(CLUSTERS, size=20)
    made.save_pretrained(tmp_path)
    with fsspec.open("memory://processors/mine/preprocessor_config.json", "w") as file:
        file.write((tmp_path / "preprocessor_config.json").read_text())
    for uri, options in (
        (f"file://{tmp_path}", None),
        ("memory://processors/mine", {"skip_instance_cache": True}),
    ):
        back = ImageGPTImageProcessor.from_pretrained(uri, storage_options=options)
        assert back.to_dict() == made.to_dict()
    with pytest.raises(CheckpointError, match="storage options: no_such"):
        ImageGPTImageProcessor.from_pretrained(
            "s3://processors/mine", storage_options={"no_such": 1}
        )
    shipped = ImageGPTImageProcessor.from_pretrained("embedded")
    assert shipped.clusters is not None
    assert np.array_equal(shipped.clusters, load_palette("embedded").colors)
    assert shipped.size == {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected an object, found list"),
        ('{"image_mean": [0.4, 0.5, 0.5]}', "expected image_mean"),
        ('{"do_rescale": false}', "expected do_rescale True, found False"),
        ('{"do_pad": true}', "expected do_pad False, found True"),
        ('{"clusters": {"a": 1}}', "float"),
        ('{"clusters": [[1, 2]]}', "expected clusters of shape"),
        ('{"resample": 17}', "17 is not a valid Resampling"),
        ('{"size": {"shortest_edge": 4}}', "expected size"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected preprocessor_config\.json, found nothing"):
        ImageGPTImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: preprocessor_config.json: ")
    assert "\n" not in str(caught.value)
