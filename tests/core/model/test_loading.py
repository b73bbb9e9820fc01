"""Arguments of transformers' from_pretrained and save_pretrained: honored, neutral or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import igpt_core
from igpt_core import (
    CheckpointError,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from igpt_core.model.saving import parsed_size
from models import make_model
from parity import one_thread  # noqa: F401

CONFIG = {"vocab_size": 17, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2}
LOAD = ImageGPTForCausalImageModeling.from_pretrained


@pytest.fixture
def model():
    return make_model(ImageGPTConfig(**CONFIG), std=0.2)


@pytest.fixture
def folder(tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same_weights(one, two):
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("given", ["float16", "torch.float16", torch.float16])
def test_a_dtype_by_any_name(folder, name, given):
    assert LOAD(folder, **{name: given}).dtype == torch.float16


def test_dtypes_that_are_none(folder):
    assert LOAD(folder, dtype="auto").dtype == LOAD(folder).dtype == torch.float32
    for wrong in ("int8", "floot16", torch.int64, 16):
        with pytest.raises(TypeError, match="expected dtype to be auto, float32, bfloat16"):
            LOAD(folder, dtype=wrong)
    with pytest.raises(TypeError, match="torch_dtype is the former name of dtype: give one"):
        LOAD(folder, dtype="auto", torch_dtype="auto")


def test_weights_stored_in_a_smaller_dtype_are_loaded_in_that_of_the_configuration(folder):
    """As in transformers 5: the shipped model is stored so."""
    model = LOAD(folder, dtype=torch.float16)
    model.save_pretrained(folder)
    assert LOAD(folder).dtype == torch.float16
    file = Path(folder, "config.json")
    file.write_text(file.read_text().replace('"float16"', '"float32"'))
    assert LOAD(folder).dtype == LOAD(folder, dtype="auto").dtype == torch.float32
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    assert LOAD(folder, dtype=torch.float16).dtype == torch.float16


def test_a_new_head_on_weights_of_float16_warns_of_training(folder):
    LOAD(folder, dtype=torch.float16).save_pretrained(folder)
    classifier_of = igpt_core.ImageGPTForImageClassification.from_pretrained
    with pytest.warns(UserWarning, match="NaN after a step of AdamW"):
        classifier_of(folder)
    with pytest.warns(UserWarning, match="is new: train it") as warned:
        classifier_of(folder, dtype=torch.float32)
    assert len(warned) == 1


def test_the_shipped_model_is_trained_in_a_plain_loop():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="is new: train it"):
        model = igpt_core.AutoModelForImageClassification.from_pretrained("embedded", num_labels=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(512, (3, 64), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(5):
        losses.append(model(tokens, labels=torch.arange(3)).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_a_folder_of_mixed_dtypes_keeps_them(tmp_path, model):
    model.transformer.h[1].bfloat16()
    model.save_pretrained(tmp_path)
    loaded = LOAD(tmp_path)
    assert_same_weights(loaded, model)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32, torch.bfloat16}
    assert {weight.dtype for weight in LOAD(tmp_path, dtype="float32").parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize("given", ["auto", "cpu", {"": "cpu"}, torch.device("cpu")])
def test_a_device_by_a_map(folder, model, given):
    loaded = LOAD(folder, device_map=given)
    assert_same_weights(loaded.cpu(), model)


def test_devices_that_are_not_one(folder):
    with pytest.raises(TypeError, match="a device_map to one device, found one to 2"):
        LOAD(folder, device_map={"transformer": "cpu", "lm_head": "meta"})
    with pytest.raises(TypeError, match="device or device_map, found both"):
        LOAD(folder, device="cpu", device_map="cpu")


def test_a_configuration_in_place_of_the_file(folder, model):
    """As a Trainer's checkpoint needs, which has no config.json where the model is not of its own
    library."""
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LOAD(folder)
    assert_same_weights(LOAD(folder, config=model.config), model)
    model.config.save_pretrained(folder.parent / "other")
    assert_same_weights(LOAD(folder, config=transformers.ImageGPTConfig(**CONFIG)), model)
    loaded = LOAD(folder, config=folder.parent / "other", output_hidden_states=True)
    assert_same_weights(loaded, model)
    assert loaded.config.output_hidden_states


def test_the_place_by_its_name_in_transformers(folder, model):
    loaded = LOAD(pretrained_model_name_or_path=folder)
    assert_same_weights(loaded, model)
    assert loaded.name_or_path == str(folder)


@pytest.mark.parametrize("uri", [False, True])
def test_a_subfolder(folder, model, uri):
    place = f"file://{folder.parent}" if uri else folder.parent
    assert_same_weights(LOAD(place, subfolder="model"), model)
    with pytest.raises(CheckpointError, match=r"there is no folder .*nothing"):
        LOAD(place, subfolder="nothing")


def test_a_format_of_weights_that_must_be(folder, model):
    with pytest.raises(CheckpointError, match=r"expected pytorch_model\.bin"):
        LOAD(folder, use_safetensors=False)
    assert_same_weights(LOAD(folder, use_safetensors=True), model)
    model.save_pretrained(folder, safe_serialization=False)
    assert_same_weights(LOAD(folder, use_safetensors=False), model)
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        LOAD(folder, use_safetensors=True)


def test_weights_of_other_shapes_may_be_new(folder, model):
    """As a head for other classes; the others are as they are."""
    labeled = make_model(
        ImageGPTConfig(**CONFIG, num_labels=3), ImageGPTForImageClassification, std=1
    )
    labeled.save_pretrained(folder)
    labeled_of = ImageGPTForImageClassification.from_pretrained
    with pytest.raises(CheckpointError, match=r"not of config\.json's shape"):
        labeled_of(folder, num_labels=5)
    with pytest.warns(UserWarning, match=r"score.weight is of shape \(3, 24\), not \(5, 24\)"):
        loaded, info = labeled_of(
            folder, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert loaded.score.weight.shape == (5, 24)
    assert 0.005 < loaded.score.weight.std() < 0.05
    assert_same_weights(loaded.transformer, labeled.transformer)
    assert info == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": ["score.weight"],
        "error_msgs": [],
    }


def test_what_a_load_left_out_is_told(folder):
    _, info = ImageGPTModel.from_pretrained(folder, output_loading_info=True)
    assert info["unexpected_keys"] == ["lm_head.weight"]
    with pytest.warns(UserWarning, match="is new"):
        _, info = ImageGPTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == ["score.weight"]
    assert info["unexpected_keys"] == ["lm_head.weight"]
    _, info = LOAD(folder, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize(
    "argument",
    [
        {"low_cpu_mem_usage": True},
        {"trust_remote_code": False},
        {"attn_implementation": "eager"},
        {"weights_only": True},
        {"from_tf": False},
        {"quantization_config": None},
        {"local_files_only": True},
        {"cache_dir": "elsewhere"},
        {"token": None},
        {"force_download": False},
    ],
)
def test_arguments_that_ask_for_nothing_change_nothing(folder, model, argument):
    assert_same_weights(LOAD(folder, **argument), model)


@pytest.mark.parametrize(
    ("argument", "next_move"),
    [
        ({"weights_only": False}, "pickles are read as weights only"),
        ({"from_tf": True}, "igpt convert"),
        ({"quantization_config": {"bits": 4}}, "leave it out"),
        ({"variant": "fp16"}, "rename the files"),
        ({"load_in_8bit": True}, "leave it out"),
    ],
)
def test_others_are_refused_by_name(folder, argument, next_move):
    (name,) = argument
    with pytest.raises(
        TypeError, match=f"from_pretrained: expected no {name}.*next: .*{next_move}"
    ):
        LOAD(folder, **argument)
    with pytest.raises(TypeError, match="no field 'num_lables'"):
        LOAD(folder, num_lables=3)


def test_a_refusal_is_one_short_line(folder, model):
    with pytest.raises(TypeError, match="expected no state_dict") as refused:
        LOAD(folder, state_dict=model.state_dict())
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


# --- save_pretrained ------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
def test_shards_are_read_here_and_in_transformers(tmp_path, model, safe):
    model.save_pretrained(tmp_path, max_shard_size="10KB", safe_serialization=safe)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    shards = sorted(tmp_path.glob(f"{stem}-*.{suffix}"))
    assert shards[0].name == f"{stem}-00001-of-{len(shards):05}.{suffix}"
    assert len(shards) > 2
    index = json.loads((tmp_path / f"{stem}.{suffix}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    held = torch.load(shards[0], weights_only=True) if not safe else None
    assert held is None or sum(weight.nbytes for weight in held.values()) <= 10_000
    assert_same_weights(LOAD(tmp_path), model)
    if safe:  # transformers 5 reads no pickles of shards without an index of safetensors
        theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
        assert torch.equal(theirs.lm_head.weight, model.lm_head.weight)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(None, None), (5, 5), ("200MB", 200_000_000), ("5GiB", 5 << 30), ("1.5 kB", 1500), ("9B", 9)],
)
def test_sizes(size, expected):
    assert parsed_size(size) == expected


@pytest.mark.parametrize("size", ["many", "5", "GB"])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="expected a size in bytes"):
        parsed_size(size)


def test_other_weights_than_the_models_own(tmp_path, model):
    """As trainers give them, gathered from several processes."""
    weights = {name: weight + 1 for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=weights, is_main_process=True)
    loaded = LOAD(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], weights[name]) for name in weights)
    shutil.rmtree(tmp_path)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not tmp_path.exists()


def test_arguments_of_nothing_are_refused(tmp_path, model):
    model.save_pretrained(tmp_path, save_function=torch.save, variant=None, token=None)
    with pytest.raises(TypeError, match="save_pretrained: expected no variant"):
        model.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(TypeError, match="save_pretrained: there is no argument 'shards'"):
        model.save_pretrained(tmp_path, shards=2)


def test_the_same_arguments_for_configuration_and_processor(tmp_path):
    """Those that scripts give to all three."""
    place = igpt_core.load_palette("embedded")
    assert len(place.colors) == 512
    for cls in (ImageGPTConfig, igpt_core.ImageGPTImageProcessor, ImageGPTModel):
        made = cls.from_pretrained(
            "embedded", cache_dir=tmp_path, local_files_only=True, token=None, revision="main"
        )
        assert made is not None
        with pytest.raises(TypeError, match="proxies"):
            cls.from_pretrained("embedded", proxies={"https": "proxy:1"})
