"""ImageGPTConfig in and out of dicts, text and files, by the arguments of transformers."""

import hashlib
import inspect
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

from igpt_core import CheckpointError, ImageGPTConfig

FIELDS = {"n_embd": 24, "n_head": 3, "num_labels": 4, "eos_token_id": 3}
# What to_diff_dict of transformers 4.34.1 gave for ImageGPTConfig(), but its own version.
PLAIN = {
    "activation_function": "quick_gelu",
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "imagegpt",
    "n_embd": 512,
    "n_head": 8,
    "n_inner": None,
    "n_layer": 24,
    "n_positions": 1024,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 513,
}


def test_the_text_of_the_file_stays_what_it_was():
    """`model_fingerprint` hashes to_dict: another key would change every fingerprint."""
    labels = {0: "LABEL_0", 1: "LABEL_1"}
    inverse = {"LABEL_0": 0, "LABEL_1": 1}
    assert ImageGPTConfig().to_dict() == {**PLAIN, "id2label": labels, "label2id": inverse}
    digest = hashlib.sha256(ImageGPTConfig(**FIELDS, extra=[1]).to_json().encode()).hexdigest()
    assert digest == "ad194bf07382659a80f4a49d51750596b7d093829e712682f5dbd48b949d9d19"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        FIELDS,
        {"num_labels": 2, "output_attentions": True, "return_dict": False},
        {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}},
        {"problem_type": "regression", "num_labels": 1, "is_encoder_decoder": True},
        {"name_or_path": "owner/name", "summary_type": "mean"},
    ],
)
def test_the_difference_is_that_of_transformers(fields):
    ours, theirs = ImageGPTConfig(**fields), transformers.ImageGPTConfig(**fields)
    found, expected = ours.to_diff_dict(), theirs.to_diff_dict()
    assert found.items() <= expected.items()
    # transformers 5 writes these always, 4.34 where they are set
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id", "add_cross_attention")
    assert expected.keys() - found.keys() <= {"transformers_version", *tokens}
    assert transformers.ImageGPTConfig.from_dict(found).to_diff_dict() == expected
    assert ImageGPTConfig.from_dict(found).to_diff_dict() == found


def test_the_difference_of_defaults():
    assert ImageGPTConfig().to_diff_dict() == PLAIN
    same = ImageGPTConfig(output_attentions=False, pad_token_id=None, architectures=None)
    assert same.to_diff_dict() == PLAIN


def test_text_and_files(tmp_path):
    config = ImageGPTConfig(**FIELDS)
    assert json.loads(config.to_json_string()) == json.loads(json.dumps(config.to_diff_dict()))
    assert config.to_json_string(use_diff=False) == config.to_json()
    assert json.loads(ImageGPTConfig().to_json_string()) == PLAIN
    assert '"id2label"' in ImageGPTConfig().to_json_string(use_diff=False)
    for use_diff in (True, False):
        file = tmp_path / "any.json"
        config.to_json_file(str(file), use_diff=use_diff)
        assert file.read_text() == config.to_json_string(use_diff)
        assert transformers.ImageGPTConfig.from_json_file(file).n_embd == 24
        assert ImageGPTConfig.from_json_file(file).to_diff_dict() == config.to_diff_dict()
    transformers.ImageGPTConfig(**FIELDS).to_json_file(file, use_diff=False)
    assert ImageGPTConfig.from_json_file(file).eos_token_id == 3
    with pytest.raises(FileNotFoundError):
        ImageGPTConfig.from_json_file(tmp_path / "none.json")
    file.write_text('{"n_layer": 0}')
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: any.json: config: n_layer must be"):
        ImageGPTConfig.from_json_file(file)


def test_saving_takes_the_names_of_transformers(tmp_path):
    ImageGPTConfig().save_pretrained(save_directory=tmp_path / "a", push_to_hub=False)
    assert (tmp_path / "a" / "config.json").read_text() == ImageGPTConfig().to_json()
    with pytest.raises(
        TypeError, match=r"push_to_hub.*found True.*next: huggingface_hub"
    ) as caught:
        ImageGPTConfig().save_pretrained(tmp_path / "b", push_to_hub=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


# --- attributes


def test_what_callers_read_is_there_as_in_transformers():
    ours, theirs = ImageGPTConfig(), transformers.ImageGPTConfig()
    for name in (
        *("use_return_dict", "return_dict", "output_attentions", "output_hidden_states"),
        *("eos_token_id", "bos_token_id", "pad_token_id", "is_encoder_decoder", "problem_type"),
        *("architectures", "transformers_version", "chunk_size_feed_forward", "torch_dtype"),
        *("dtype", "name_or_path", "add_cross_attention", "keys_to_ignore_at_inference"),
        *("attribute_map", "model_type", "tie_word_embeddings"),
    ):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert found == expected, name
        assert type(found) is type(expected), name
    # those that transformers 4.34.1 has beside them, with its values
    for name in ("sep_token_id", "decoder_start_token_id", "task_specific_params", "prefix"):
        assert getattr(ours, name) is None
    for name in ("tokenizer_class", "finetuning_task", "cross_attention_hidden_size"):
        assert getattr(ours, name) is None
    assert ours.is_decoder is ours.tie_encoder_decoder is False
    assert not {"eos_token_id", "is_decoder", "name_or_path"} & ours.to_dict().keys()


def test_return_dict_by_its_former_name():
    assert ImageGPTConfig(return_dict=False).use_return_dict is False
    assert ImageGPTConfig(return_dict=False, use_return_dict=False).return_dict is False
    with pytest.raises(ValueError, match="use_return_dict follows from other fields"):
        ImageGPTConfig(use_return_dict=False)


def test_the_dtype_by_both_names():
    for given in ({"torch_dtype": torch.float16}, {"dtype": torch.float16}, {"dtype": "float16"}):
        config = ImageGPTConfig(**given)
        assert config.dtype == config.torch_dtype == "float16"
        (name,) = given
        assert config.to_dict()[name] == "float16"
        assert transformers.ImageGPTConfig(**config.to_dict()).dtype is torch.float16
    theirs = transformers.ImageGPTConfig(dtype=torch.bfloat16).to_dict()
    assert ImageGPTConfig.from_dict(theirs).torch_dtype == "bfloat16"


def test_where_a_model_came_from(tmp_path):
    config = ImageGPTConfig(name_or_path=tmp_path)
    assert config.name_or_path == str(tmp_path)
    assert ImageGPTConfig.from_dict(config.to_dict()).name_or_path == str(tmp_path)
    theirs = transformers.ImageGPTConfig(name_or_path="owner/name").to_dict()
    assert ImageGPTConfig.from_dict(theirs).name_or_path == "owner/name"
    config.name_or_path = "other"
    assert config.to_dict()["_name_or_path"] == "other"


def test_update_from_a_string():
    text = "n_layer=2,use_cache=false,resid_pdrop=0.5,activation_function=gelu"
    ours, theirs = ImageGPTConfig(), transformers.ImageGPTConfig()
    ours.update_from_string(text)
    theirs.update_from_string(text)
    for name in ("n_layer", "use_cache", "resid_pdrop", "activation_function"):
        assert getattr(ours, name) == getattr(theirs, name)
    for text, words in (
        ("n_layer=3.5", "n_layer must be a int, found '3.5'"),
        ("use_cache=no", "use_cache must be true or false, found 'no'"),
        ("n_layers=2", "expected name=value of a field, found 'n_layers=2'"),
        ("n_layer", "expected name=value of a field, found 'n_layer'"),
    ):
        with pytest.raises(ValueError, match=words):
            ours.update_from_string(text)
    assert ours.n_layer == 2


def test_update():
    config, theirs = ImageGPTConfig(), transformers.ImageGPTConfig()
    changes = {"n_layer": 7, "hidden_size": 64, "num_labels": 3, "note": "x", "pad_token_id": 1}
    config.update(changes)
    theirs.update(changes)
    for name in (*changes, "n_embd", "id2label", "label2id"):
        assert getattr(config, name) == getattr(theirs, name), name
    before = config.to_dict()
    with pytest.raises(ValueError, match="n_layer must be an int"):
        config.update({"n_positions": 9, "n_layer": "8"})
    assert config.to_dict() == before


# --- from_pretrained


@pytest.fixture
def folder(tmp_path):
    ImageGPTConfig(n_layer=2, num_labels=5, note="kept").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_fields_beat_those_of_the_file(folder):
    given = {"num_labels": 10, "n_layer": 3, "hidden_size": 64, "eos_token_id": 1}
    theirs, their_rest = transformers.ImageGPTConfig.from_pretrained(
        pretrained_model_name_or_path=folder, return_unused_kwargs=True, foo=1, **given
    )
    ours, rest = ImageGPTConfig.from_pretrained(
        pretrained_model_name_or_path=folder, return_unused_kwargs=True, foo=1, **given
    )
    assert rest == their_rest == {"foo": 1}
    for name in (*given, "id2label", "note"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ImageGPTConfig.from_pretrained(folder, **given) == ours
    assert ImageGPTConfig.from_dict(
        {"n_layer": 1}, n_layer=5, foo=1, return_unused_kwargs=True
    ) == (
        ImageGPTConfig(n_layer=5),
        {"foo": 1},
    )
    with pytest.raises(TypeError, match="no field 'foo'"):
        ImageGPTConfig.from_pretrained(folder, foo=1)
    with pytest.raises(TypeError, match="no field 'foo'"):
        ImageGPTConfig.from_dict({}, foo=1)


def test_the_fields_as_they_stand_in_the_file(folder):
    given = {"cache_dir": "x", "token": None, "n_layer": 9, "foo": 1}
    found = ImageGPTConfig.get_config_dict(folder, **given)
    assert found == (json.loads((folder / "config.json").read_text()), {"n_layer": 9, "foo": 1})
    fields, rest = transformers.ImageGPTConfig.get_config_dict(folder, **given)
    assert (fields, rest) == found


def test_a_file_and_a_subfolder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for path in (folder / "config.json", "config.json", f"{folder}/config.json"):
        assert ImageGPTConfig.from_pretrained(path).n_layer == 2
        assert transformers.ImageGPTConfig.from_pretrained(path).n_layer == 2
    Path("other.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"^\.: other.json: expected an object"):
        ImageGPTConfig.from_pretrained("other.json")
    with pytest.raises(CheckpointError, match=r"no folder config.json/saved"):
        ImageGPTConfig.from_pretrained("config.json", subfolder="saved")
    found = ImageGPTConfig.from_pretrained(folder.parent, subfolder="saved")
    assert found == ImageGPTConfig.from_pretrained(folder)
    assert (
        transformers.ImageGPTConfig.from_pretrained(folder.parent, subfolder="saved").n_layer == 2
    )


def test_how_the_hub_is_asked(folder, monkeypatch):
    """The arguments arrive at huggingface_hub; test_hub.py has what it makes of them."""
    asked = []

    def download(repository, name, **options):
        asked.append({"repository": repository, "name": name, **options})
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(folder)
    config = ImageGPTConfig.from_pretrained(
        "owner/name",
        cache_dir="here",
        force_download=True,
        local_files_only=False,
        use_auth_token="secret",
        revision="old",
        num_labels=3,
    )
    assert (config.n_layer, config.num_labels) == (2, 3)
    expected = {"repository": "owner/name", "name": "config.json", "revision": "old"}
    expected |= {"cache_dir": "here", "token": "secret", "force_download": True}
    assert len(asked) == 1
    assert expected.items() <= asked[0].items()
    ImageGPTConfig.get_config_dict("owner/name", local_files_only=True, token="secret")
    assert asked[1]["local_files_only"] is True
    assert asked[1]["token"] == "secret"


def test_what_means_nothing_for_a_folder_is_passed_over(folder):
    """Transformers' too: these say how the Hub is asked, and no folder is on it."""
    arguments = {"cache_dir": "x", "force_download": True, "local_files_only": True, "token": "y"}
    expected = ImageGPTConfig.from_pretrained(folder)
    more = {"trust_remote_code": True, "resume_download": True, "proxies": None}
    for given in (arguments, {"use_auth_token": True}, {"revision": "main"}, more):
        assert ImageGPTConfig.from_pretrained(folder, **given) == expected
        pair = ImageGPTConfig.from_pretrained(folder, return_unused_kwargs=True, **given)
        assert pair == (expected, {})


def test_what_is_not_there_is_refused_by_its_name(folder):
    for given in ({"proxies": {"https": "x"}}, {"gguf_file": "x"}):
        (name,) = given
        with pytest.raises(TypeError, match=rf"{name}.*found .*; next: ") as caught:
            ImageGPTConfig.from_pretrained(folder, **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="use_auth_token is an old name of token"):
        ImageGPTConfig.from_pretrained(folder, token="a", use_auth_token="b")


def test_every_method_of_transformers_is_taken_with_its_arguments():
    """Names by which callers may give them."""
    for name in ("to_json_string", "to_json_file", "update", "from_json_file", "save_pretrained"):
        theirs = inspect.signature(getattr(transformers.ImageGPTConfig, name)).parameters
        ours = inspect.signature(getattr(ImageGPTConfig, name)).parameters
        assert list(ours) == [word for word in theirs if word != "kwargs"], name
    for name in ("from_pretrained", "from_dict", "get_config_dict"):
        first = next(iter(inspect.signature(getattr(transformers.ImageGPTConfig, name)).parameters))
        assert next(iter(inspect.signature(getattr(ImageGPTConfig, name)).parameters)) == first
