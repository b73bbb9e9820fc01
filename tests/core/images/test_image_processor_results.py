"""What ImageGPTImageProcessor returns: BatchFeature, and the results of two versions."""

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.utils.data import default_collate

from igpt_core import BatchFeature, ImageGPTImageProcessor

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
COLORS = np.random.default_rng(1).integers(0, 256, (8, 3)).astype(np.float64)  # in 0..255
CLUSTERS = COLORS / 127.5 - 1
SIZE = {"height": 2, "width": 3}


@pytest.fixture(autouse=True)
def _table_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "tables"))


@pytest.fixture
def inputs() -> BatchFeature:
    return BatchFeature(
        {
            "input_ids": torch.tensor([[1, 2], [3, 4]]),
            "pixel_values": torch.tensor([[0.5], [1.5]]),
            "names": ["a", "b"],
        }
    )


def same(one: BatchFeature, two: BatchFeature) -> bool:
    return (
        type(one) is type(two) is BatchFeature
        and list(one) == list(two)
        and all(torch.equal(one[n], two[n]) if torch.is_tensor(one[n]) else one[n] == two[n]
                for n in one)
    )  # fmt: skip


# --- BatchFeature


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("meta",), {}),
        ((torch.device("meta"),), {}),
        (("meta", torch.float16), {}),
        ((torch.bfloat16,), {}),
        ((), {"dtype": torch.float16}),
        ((), {"device": "meta", "dtype": torch.float16}),
        (("cpu", torch.float64), {"non_blocking": True}),
    ],
)
def test_moving_and_casting_is_that_of_transformers(args, kwargs, inputs):
    """Integers, which index an embedding, are never cast."""
    theirs = transformers.BatchFeature(dict(inputs)).to(*args, **kwargs)
    assert inputs.to(*args, **kwargs) is inputs
    for name in ("input_ids", "pixel_values"):
        assert inputs[name].dtype is theirs[name].dtype
        assert inputs[name].device == theirs[name].device
    assert inputs.input_ids.dtype is torch.int64
    assert inputs.names == ["a", "b"]


def test_entries_by_key_by_attribute_and_as_arguments(inputs):
    def model(input_ids, pixel_values, names):
        return input_ids, pixel_values, names

    assert model(**inputs) == tuple(inputs.values()) == tuple(dict(inputs).values())
    assert list(inputs.keys()) == [name for name, _ in inputs.items()] == list(inputs.data)
    assert inputs.data["input_ids"] is inputs["input_ids"] is inputs.input_ids
    inputs["labels"] = torch.tensor([0, 1])
    assert inputs.data["labels"] is inputs.labels
    assert not hasattr(inputs, "attention_mask")
    for key in ("attention_mask", 0):
        with pytest.raises(KeyError):
            inputs[key]


def test_copies_keep_class_and_entries(inputs):
    for again in (
        copy.copy(inputs),
        copy.deepcopy(inputs),
        pickle.loads(pickle.dumps(inputs)),
        type(inputs)(dict(inputs)),
        type(inputs)(inputs),
        type(inputs)(inputs.items()),
        type(inputs)(data=dict(inputs)),
    ):
        assert again is not inputs
        assert same(again, inputs)
    shallow = copy.copy(inputs)
    shallow["names"] = []
    assert inputs["names"] == ["a", "b"]


def test_torch_collates_results():
    """What a DataLoader does to a batch of them."""
    one = BatchFeature({"input_ids": torch.tensor([1, 2])})
    batch = default_collate([one, one])
    assert type(batch) is BatchFeature
    assert batch.input_ids.tolist() == [[1, 2], [1, 2]]


VALUES = {
    "arrays": [np.array([1, 2]), np.array([3, 4])],
    "tensors": [torch.tensor([1.5]), torch.tensor([2.5])],
    "numbers": [1, 2],
    "nested": [[1, 2], [3, 4]],
    "array": np.array([[1.0, 2.0]], np.float32),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("tensor_type", ["pt", "np"])
def test_conversion_is_that_of_transformers(name, tensor_type):
    expected = transformers.BatchFeature({name: VALUES[name]}, tensor_type=tensor_type)[name]
    features = BatchFeature({name: VALUES[name]})
    assert features[name] is VALUES[name]
    assert features.convert_to_tensors(tensor_type) is features
    for found in (features[name], BatchFeature({name: VALUES[name]}, tensor_type)[name]):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()


def test_conversion_of_what_is_converted_already():
    tensor = torch.tensor([1])
    features = BatchFeature({"x": tensor, "name": "photo", "none": None}, "pt")
    assert features.x is tensor
    assert (features.name, features.none) == ("photo", None)
    assert features.convert_to_tensors(None).x is tensor
    assert type(features.convert_to_tensors("np").x) is np.ndarray
    assert features.convert_to_tensors("pt").x.tolist() == [1]


def test_what_cannot_be_converted():
    with pytest.raises(ValueError, match="expected tensor_type 'pt', 'np' or None, found 'tf'"):
        BatchFeature({}, "tf")
    ragged = BatchFeature({"x": [np.zeros(2), np.zeros(3)]})
    with pytest.raises(ValueError, match=r"one size for a batch, found \[\(2,\), \(3,\)\]"):
        ragged.convert_to_tensors("pt")


# --- the device of a call


def test_tensors_are_put_where_the_call_says():
    processor = ImageGPTImageProcessor(CLUSTERS, size=SIZE)
    assert processor(IMAGE, return_tensors="pt", device="meta").input_ids.device.type == "meta"
    with pytest.raises(ValueError, match="return_tensors 'pt' with device meta, found 'np'"):
        processor(IMAGE, return_tensors="np", device="meta")
    with pytest.raises(ValueError, match="expected device cpu, found cuda"):
        ImageGPTImageProcessor(device="cuda")


# --- results of transformers 4.34.1 and of 5, without do_normalize and do_color_quantize


# What transformers 4.34.1 gave for IMAGE with do_normalize=False.
RESIZED = [  # (3, 2, 3), size=SIZE
    [[127, 100, 128], [92, 118, 109]],
    [[143, 158, 193], [136, 136, 145]],
    [[186, 74, 61], [153, 85, 115]],
]
TOKENS = {  # by clusters, and whether resized
    ("colors", True): [0, 4, 4, 5, 5, 5],
    ("clusters", True): [7, 2, 2, 7, 7, 7],
    ("colors", False): [0, 7, 4, 7, 2, 0, 0, 4, 4, 4, 6, 4, 5, 1, 5, 0, 0, 5, 4, 0],
    ("clusters", False): [7, 7, 2, 2, 2, 7, 7, 2, 2, 2, 7, 2, 2, 2, 7, 7, 7, 7, 2, 7],
}


@pytest.mark.parametrize(("name", "resize"), TOKENS)
def test_tokens_without_normalizing_by_version(name, resize):
    clusters = COLORS if name == "colors" else CLUSTERS
    options = {"do_normalize": False, "do_resize": resize, "return_tensors": "np"}
    ours = ImageGPTImageProcessor(clusters, size=SIZE)
    old = ours(IMAGE, compat="4.34", **options)
    assert old.input_ids.tolist() == [TOKENS[name, resize]]
    reference = transformers.ImageGPTImageProcessorPil(clusters, size=SIZE)
    for options5 in (options, {**options, "compat": "5"}):
        new = ours(IMAGE, **options5)
        assert new.input_ids.tolist() == reference(IMAGE, **options)["input_ids"].tolist()
    assert not np.array_equal(new.input_ids, old.input_ids)


def test_pixel_values_by_version():
    options = {"do_color_quantize": False, "do_normalize": False, "return_tensors": "np"}
    ours = ImageGPTImageProcessor(CLUSTERS, size=SIZE)
    old = ours(IMAGE, compat="4.34", **options)
    assert list(old) == ["input_ids"]
    assert old.input_ids.dtype == np.uint8
    assert old.input_ids.tolist() == [RESIZED]
    last = ours(IMAGE, compat="4.34", data_format="channels_last", **options)
    assert np.moveaxis(last.input_ids, -1, 1).tolist() == [RESIZED]
    new = ours(IMAGE, **options)
    assert list(new) == ["pixel_values"]
    # a few float32 roundings of values up to 1
    assert np.abs(new.pixel_values - np.array([RESIZED]) / 255).max() < 5e-7


def test_normalized_results_are_those_of_both_versions():
    ours = ImageGPTImageProcessor(CLUSTERS, size=SIZE)
    old = ImageGPTImageProcessor(CLUSTERS, size=SIZE, compat="4.34")
    assert old(IMAGE, return_tensors="np").input_ids.tolist() == [TOKENS["colors", True]]
    assert ours(IMAGE, return_tensors="np").input_ids.tolist() == [TOKENS["colors", True]]
    values = old(IMAGE, do_color_quantize=False, return_tensors="np")
    assert list(values) == ["input_ids"]
    expected = ours(IMAGE, do_color_quantize=False, return_tensors="np").pixel_values
    assert values.input_ids.dtype == np.float32
    assert np.array_equal(values.input_ids, expected)


def test_the_version_is_part_of_the_processor(tmp_path):
    made = ImageGPTImageProcessor(CLUSTERS, size=SIZE, do_color_quantize=False, compat="4.34")
    made.save_pretrained(tmp_path)
    for back in (
        ImageGPTImageProcessor.from_pretrained(tmp_path),
        ImageGPTImageProcessor.from_dict(made.to_dict()),
    ):
        assert list(back(IMAGE)) == ["input_ids"]
        assert list(back(IMAGE, compat="5")) == ["pixel_values"]
    transformers.ImageGPTImageProcessorPil.from_pretrained(tmp_path)
    assert list(ImageGPTImageProcessor.from_pretrained(tmp_path, compat="5")(IMAGE)) == [
        "pixel_values"
    ]
    assert "compat" not in ImageGPTImageProcessor().to_dict()
    for call in (lambda: ImageGPTImageProcessor(compat="4"), lambda: made(IMAGE, compat="4")):
        with pytest.raises(ValueError, match=r"expected compat '5' or '4\.34', found '4'"):
            call()
