"""Checkpoints of every kind as one safetensors folder, which transformers loads."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

from bundle_writer import openai_variables, write_bundle
from igpt_core import (
    CheckpointError,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
    ImageGPTModel,
    Palette,
    load_image_size,
    load_model,
    load_palette,
    model_fingerprint,
    save_checkpoint,
)
from igpt_core.conversion.convert import convert_checkpoint
from igpt_core.conversion.openai import read_openai

SIZES = {"vocab_size": 17, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
TOKENS = torch.arange(16)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def palette():
    return Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))


@pytest.fixture
def openai(tmp_path):
    """The prefix of a TensorFlow checkpoint, in a folder of its own."""
    (tmp_path / "openai").mkdir()
    prefix = str(tmp_path / "openai" / "model.ckpt-131000")
    write_bundle(prefix, openai_variables(0), n_shards=2)
    return prefix


def saved(folder, cls=ImageGPTForCausalImageModeling, *, palette=None, **fields):
    torch.manual_seed(0)
    model = cls(ImageGPTConfig(**SIZES, **fields)).eval()
    save_checkpoint(model, folder, palette=palette, image_size=palette and 3)
    return model


def as_pickle(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril().bool()
    torch.save(weights, folder / "pytorch_model.bin")


def names(folder):
    return sorted(entry.name for entry in Path(folder).iterdir())


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("given", ["beside", "named", "none"])
def test_openais_checkpoint(openai, tmp_path, palette, given):
    palette.save(Path(openai).with_name("kmeans_centers.npy" if given == "beside" else "other.npy"))
    named = os.path.dirname(openai) + "/other.npy" if given == "named" else None
    converted = convert_checkpoint(openai, tmp_path / "out", palette=named)
    assert converted.architecture == "ImageGPTForCausalImageModeling"
    weights = read_openai(openai)[1]
    assert converted.n_weights == sum(weight.numel() for weight in weights.values())
    assert_same_weights(
        load_model(tmp_path / "out", device="cpu", dtype=None).state_dict(), weights
    )
    theirs, report = transformers.AutoModelForCausalLM, None
    theirs, report = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_weights(theirs.state_dict(), weights)
    if given == "none":
        assert converted.processor is None
        assert names(tmp_path / "out") == ["config.json", "model.safetensors"]
        return
    assert names(tmp_path / "out") == [
        *("config.json", "model.safetensors", "preprocessor_config.json")
    ]
    assert load_palette(tmp_path / "out").fingerprint == palette.fingerprint
    assert load_image_size(tmp_path / "out") == 4
    processor = transformers.ImageGPTImageProcessorPil.from_pretrained(tmp_path / "out")
    pixels = palette.decode(np.arange(16)).reshape(4, 4, 3)
    tokens = processor(pixels, return_tensors="np", input_data_format="channels_last").input_ids
    assert tokens.tolist() == [list(range(16))]


def test_pickles_shards_and_uris_keep_their_fingerprint(tmp_path, palette):
    model = saved(tmp_path / "in", palette=palette, n_ctx=16)
    fingerprint = model_fingerprint(tmp_path / "in")
    as_pickle(tmp_path / "in")
    transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "in").save_pretrained(
        tmp_path / "shards", max_shard_size="20KB"
    )
    MemoryFileSystem().put(f"{tmp_path}/in/", "/convert/in/", recursive=True)
    for i, source in enumerate(["in", "shards", "memory://convert/in"]):
        source = source if "://" in source else str(tmp_path / source)
        output = tmp_path / f"out{i}"
        convert_checkpoint(source, output)
        assert_same_weights(load_file(output / "model.safetensors"), model.state_dict())
        has_processor = source != str(tmp_path / "shards")
        assert (output / "preprocessor_config.json").exists() == has_processor
        if has_processor:
            assert model_fingerprint(output) == fingerprint
            assert load_image_size(output) == 3
            assert load_palette(output).fingerprint == palette.fingerprint


def test_the_own_processor_is_kept_and_a_given_palette_replaces_its_colors(tmp_path, palette):
    saved(tmp_path / "in")
    own = ImageGPTImageProcessor(palette.colors, size={"height": 3, "width": 5}, resample=3)
    own.save_pretrained(tmp_path / "in")
    Palette(palette.colors / 2).save(tmp_path / "other.npy")
    Palette(palette.colors / 4).save(tmp_path / "in" / "kmeans_centers.npy")
    convert_checkpoint(str(tmp_path / "in"), tmp_path / "a")
    assert ImageGPTImageProcessor.from_pretrained(tmp_path / "a").to_dict() == own.to_dict()
    convert_checkpoint(str(tmp_path / "in"), tmp_path / "b", palette=str(tmp_path / "other.npy"))
    processor = ImageGPTImageProcessor.from_pretrained(tmp_path / "b")
    assert processor.to_dict() == own.to_dict() | {"clusters": (palette.colors / 2).tolist()}
    (tmp_path / "in" / "preprocessor_config.json").unlink()
    convert_checkpoint(str(tmp_path / "in"), tmp_path / "c")
    assert np.array_equal(load_palette(tmp_path / "c").colors, palette.colors / 4)


@pytest.mark.parametrize("declared", ["ImageGPTModel", "ImageGPTForImageClassification", None])
def test_all_heads_are_kept(tmp_path, declared):
    causal = saved(tmp_path / "in", num_labels=5)
    weights = dict(causal.state_dict()) | {"score.weight": torch.randn(5, 24)}
    save_file(weights, tmp_path / "in" / "model.safetensors")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config["architectures"] = declared and [declared]
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    converted = convert_checkpoint(str(tmp_path / "in"), tmp_path / "out")
    assert_same_weights(load_file(tmp_path / "out" / "model.safetensors"), weights)
    expected = "ImageGPTForCausalImageModeling"
    if declared == "ImageGPTForImageClassification":
        expected = declared
    assert converted.architecture == expected
    for cls in (ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel):
        ours = cls.from_pretrained(tmp_path / "out")
        theirs = getattr(transformers, cls.__name__).from_pretrained(tmp_path / "out")
        assert_same_weights(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("trunk", ["", "transformer."])
def test_a_bare_trunk(tmp_path, trunk):
    model = saved(tmp_path / "in", ImageGPTModel)
    weights = {trunk + name: weight for name, weight in model.state_dict().items()}
    save_file(weights, tmp_path / "in" / "model.safetensors")
    assert (
        convert_checkpoint(str(tmp_path / "in"), tmp_path / "out").architecture == "ImageGPTModel"
    )
    theirs = transformers.ImageGPTModel.from_pretrained(tmp_path / "out")
    assert_same_weights(theirs.state_dict(), model.state_dict())


def test_dtypes(tmp_path):
    model = saved(tmp_path / "in")
    converted = convert_checkpoint(str(tmp_path / "in"), tmp_path / "a", dtype=torch.bfloat16)
    assert converted.dtype is torch.bfloat16
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    expected = model.to(torch.bfloat16).state_dict()
    assert_same_weights(load_file(tmp_path / "a" / "model.safetensors"), expected)
    assert convert_checkpoint(str(tmp_path / "a"), tmp_path / "b").dtype is torch.bfloat16


def test_outputs_that_are_taken(tmp_path):
    model = saved(tmp_path / "in")
    as_pickle(tmp_path / "in")
    source = str(tmp_path / "in")
    (tmp_path / "file").write_text("text")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.doc").write_text("years of work")
    for overwrite in (False, True):
        for output, words in (
            ("s3://bucket/model", "expected a local folder"),
            (tmp_path / "file", "expected a local folder"),
            (tmp_path / "thesis", "is not empty and holds no model"),
        ):
            with pytest.raises(CheckpointError, match=words):
                convert_checkpoint(source, output, overwrite=overwrite)
    assert names(tmp_path / "thesis") == ["thesis.doc"]
    with pytest.raises(CheckpointError, match="holds a model; next: another output, or overwrite"):
        convert_checkpoint(source, source)
    assert names(source) == ["config.json", "pytorch_model.bin"]
    convert_checkpoint(source, source, overwrite=True)  # in place
    assert names(source) == ["config.json", "model.safetensors"]
    assert_same_weights(
        load_model(source, device="cpu", dtype=None).state_dict(), model.state_dict()
    )
    (tmp_path / "empty").mkdir()
    convert_checkpoint(source, tmp_path / "empty")


def drop(name):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        del weights[name]
        save_file(weights, folder / "model.safetensors")

    return change


def set_field(name, value):
    def change(folder):
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {name: value}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "there is no folder .*/in"),
        (lambda f: (f / "model.safetensors").unlink(), "expected model.safetensors, model.safe"),
        (lambda f: os.truncate(f / "model.safetensors", 999), "is damaged or cut short"),
        (set_field("vocab_size", 513), r"2 not of config.json's shape \(transformer.wte.weight"),
        (drop("lm_head.weight"), r"not fit ImageGPTForCausal.*: 1 missing \(lm_head.weight\)"),
        (drop("transformer.ln_f.weight"), r"1 missing \(transformer.ln_f.weight\)"),
    ],
)
def test_bad_folders_leave_nothing(tmp_path, change, words):
    saved(tmp_path / "in")
    change(tmp_path / "in")
    with pytest.raises(CheckpointError, match=words) as caught:
        convert_checkpoint(str(tmp_path / "in"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_palettes_that_do_not_fit(openai, tmp_path, palette):
    Palette(palette.colors[:12]).save(tmp_path / "small.npy")
    np.save(tmp_path / "text.npy", np.array(["text"]))
    for name, words in (
        ("small.npy", "small.npy: expected a palette of the model's 16 colors, found 12$"),
        ("text.npy", r"text.npy"),
        ("missing.npy", r": expected missing.npy, found "),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            convert_checkpoint(openai, tmp_path / "out", palette=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    Palette(palette.colors[:12]).save(Path(openai).with_name("kmeans_centers.npy"))
    with pytest.raises(CheckpointError, match=r"kmeans_centers.npy: expected a palette of"):
        convert_checkpoint(openai, tmp_path / "out")
    assert not (tmp_path / "out").exists()
