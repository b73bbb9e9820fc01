"""ImageGPTConfig against the documentation and transformers' class."""

import copy
import inspect
import json
import math
import pickle

import pytest
import transformers

from igpt_core import VARIANTS, CheckpointError, ImageGPTConfig

# The page's signature, in its order.
PAGE = {
    "vocab_size": 513,
    "n_positions": 1024,
    "n_embd": 512,
    "n_layer": 24,
    "n_head": 8,
    "n_inner": None,
    "activation_function": "quick_gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "use_cache": True,
    "tie_word_embeddings": False,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
}


def test_fields_have_the_order_and_defaults_of_the_page():
    parameters = list(inspect.signature(ImageGPTConfig).parameters.values())[: len(PAGE)]
    assert [(p.name, p.default) for p in parameters] == list(PAGE.items())
    theirs = transformers.ImageGPTConfig()
    for name, default in PAGE.items():
        assert getattr(ImageGPTConfig(), name) == getattr(theirs, name) == default


@pytest.mark.parametrize(
    ("variant", "n_layer", "n_embd", "n_head"),
    [("small", 24, 512, 8), ("medium", 36, 1024, 8), ("large", 48, 1536, 16)],
)
def test_variants_are_the_published_sizes(variant, n_layer, n_embd, n_head):
    config = VARIANTS[variant]
    assert (config.n_layer, config.n_embd, config.n_head) == (n_layer, n_embd, n_head)
    assert (config.n_colors, config.start_token, config.n_positions) == (512, 512, 1024)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 3},
        {"num_labels": 1},
        {"id2label": {"0": "cat", "1": "dog", "2": "owl"}, "label2id": {"cat": 0, "dog": 1}},
        {"id2label": {0: "cat", 1: "dog"}, "num_labels": 2, "label2id": {"cat": 0, "dog": 1}},
    ],
)
def test_labels_are_those_of_transformers(fields):
    ours, theirs = ImageGPTConfig(**fields), transformers.ImageGPTConfig(**fields)
    assert (ours.num_labels, ours.id2label) == (theirs.num_labels, theirs.id2label)
    assert ours.label2id == theirs.label2id
    ours.num_labels = theirs.num_labels = 5
    assert (ours.id2label, ours.label2id) == (theirs.id2label, theirs.label2id)


def test_label2id_follows_from_id2label():
    assert ImageGPTConfig(id2label={0: "cat", 1: "dog"}).label2id == {"cat": 0, "dog": 1}


def test_the_names_that_every_transformers_config_has():
    fields = {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "max_position_embeddings": 9,
    }
    ours, theirs = ImageGPTConfig(**fields), transformers.ImageGPTConfig(**fields)
    assert (ours.n_embd, ours.n_head, ours.n_layer, ours.n_positions) == (24, 3, 2, 9)
    for name in fields:
        assert getattr(ours, name) == getattr(theirs, name)
        assert name not in ours.to_dict()
    ours.hidden_size = 48
    assert ours.n_embd == 48


def test_a_folder_moves_both_ways_between_us_and_transformers(tmp_path):
    fields = {"n_embd": 24, "n_head": 3, "n_inner": 7, "attn_pdrop": 0.0, "num_labels": 4}
    ImageGPTConfig(**fields, n_ctx=16, extra={"a": [1, None]}).save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert isinstance(theirs, transformers.ImageGPTConfig)
    theirs.save_pretrained(tmp_path / "theirs")
    back = ImageGPTConfig.from_pretrained(tmp_path / "theirs")
    for name, default in PAGE.items():
        assert getattr(theirs, name) == getattr(back, name) == fields.get(name, default)
    assert theirs.id2label == back.id2label == {i: f"LABEL_{i}" for i in range(4)}
    assert (back.n_ctx, back.extra) == (16, {"a": [1, None]})


def test_unknown_keys_survive_a_round_trip(tmp_path):
    config = ImageGPTConfig(summary_type="cls_index", task_specific_params={"x": None})
    config.save_pretrained(tmp_path / "a" / "new")
    assert ImageGPTConfig.from_pretrained(tmp_path / "a" / "new") == config
    assert json.loads(config.to_json())["summary_type"] == "cls_index"
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
    assert ImageGPTConfig() != config


def test_a_list_of_names_is_read():
    expected = ImageGPTConfig(id2label={0: "cat", 1: "dog", 2: "owl"})
    assert ImageGPTConfig(id2label=["cat", "dog", "owl"]) == expected
    assert ImageGPTConfig(label2id={"owl": 2, "cat": 0, "dog": 1}) == expected
    assert (
        ImageGPTConfig(id2label=["cat", "dog", "owl"], label2id={"dog": "1"}).label2id["dog"] == 1
    )
    twice = ["crane", "owl", "crane"]  # as in ImageNet: the bird and the machine
    assert ImageGPTConfig(id2label=twice).label2id == {"crane": 2, "owl": 1}


def test_what_follows_from_other_fields_may_be_said_and_is_not_kept():
    """Past bug: an AttributeError."""
    said = {"n_colors": 16, "start_token": 16, "head_size": 8, "inner_size": 96}
    config = ImageGPTConfig(vocab_size=17, n_embd=24, n_head=3, **said)
    assert config == ImageGPTConfig(vocab_size=17, n_embd=24, n_head=3)
    assert config.n_colors == 16


def test_both_names_of_a_field_may_be_given_where_they_agree():
    fields = {"n_embd": 24, "hidden_size": 24, "n_head": 3}
    assert ImageGPTConfig.from_dict(fields).n_embd == 24
    assert ImageGPTConfig(n_head=3, n_embd=12).with_fields(hidden_size=24).n_embd == 24


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_embd": 16, "n_head": 3}, "multiple of n_head, found 16 and 3"),
        ({"n_layer": 0}, "n_layer must be an int of 1 or more, found 0"),
        ({"n_embd": "512"}, "n_embd must be an int of 1 or more, found '512'"),
        ({"n_inner": 0}, "n_inner must be an int of 1 or more, or null, found 0"),
        ({"vocab_size": 1}, "vocab_size counts"),
        ({"model_type": "gpt2"}, "model_type must be imagegpt"),
        ({"num_labels": 3, "id2label": {0: "cat"}}, "num_labels is 3, but id2label names 1"),
        ({"n_colors": 16}, "n_colors follows from other fields: it must be 512, found 16"),
        ({"to_dict": 1}, "to_dict is no field"),
        ({"id2label": {}}, r"id2label must have a name for each class from 0 on, .* found {}"),
        ({"id2label": {1: "a", 2: "b"}}, "id2label must have a name for each class from 0 on"),
        ({"id2label": {"a": "cat"}}, "id2label must have"),
        ({"id2label": ["cat", None]}, "id2label must have"),
        ({"id2label": "cats"}, "id2label must have"),
        ({"id2label": 3}, "id2label must have"),
        (
            {"id2label": ["a", "b"], "label2id": {"a": 1}},
            "the inverse of id2label, found 'a' for 1",
        ),
        ({"label2id": {"a": "x"}}, "label2id must have a class from 0 on for each name"),
        ({"label2id": ["a"]}, "label2id must have"),
        ({"num_labels": 0}, "num_labels must be an int of 1 or more, found 0"),
        ({"num_labels": "3"}, "num_labels must be an int of 1 or more, found '3'"),
        (
            {"activation_function": ["relu"]},
            r"activation_function must be a name, found \['relu'\]",
        ),
        ({"problem_type": 1}, "problem_type must be a name or null, found 1"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(fields, words):
    with pytest.raises(ValueError, match=words) as caught:
        ImageGPTConfig(**fields)
    assert "\n" not in str(caught.value)


WRONG = {
    "vocab_size": (None, "33", 33.0, True, -1),
    "n_positions": (None, "33", -64),
    "n_layer": (True, 2.5),
    "n_inner": ("96", -96, True),
    "layer_norm_epsilon": (None, "1e-5", -1e-5, math.nan, math.inf, True),
    "initializer_range": (None, "0.02", -0.02),
    "resid_pdrop": (None, "0.1", -0.1, 1.5),
    "use_cache": (None, "true", 1),
    "tie_word_embeddings": (None, "false", 0),
    "scale_attn_weights": ("no",),
    "add_cross_attention": (None,),
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name in WRONG for v in WRONG[name]])
def test_a_value_of_another_type_or_range_is_refused(tmp_path, name, value):
    """Past bug: many were kept, and failed or changed results later."""
    (tmp_path / "config.json").write_text(json.dumps({name: value}))
    with pytest.raises(CheckpointError) as caught:
        ImageGPTConfig.from_pretrained(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: config.json: config: {name} must be ")
    assert message.endswith(f", found {value!r}")
    assert "\n" not in message


def test_classes_may_be_named_later():
    config = ImageGPTConfig(num_labels=2)
    config.id2label = {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}
    assert ImageGPTConfig.from_dict(config.to_dict()) == config
    config.id2label = ["a", "b", "c"]
    assert config.num_labels == 3
    with pytest.raises(ValueError, match="id2label must have a name for each class"):
        config.id2label = {1: "cat"}


def test_an_unknown_field_is_no_attribute():
    with pytest.raises(AttributeError, match="'ImageGPTConfig' object has no attribute 'n_heads'"):
        _ = ImageGPTConfig().n_heads


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "expected config.json, found nothing"),
        ("{", "config.json: Expecting property name"),
        ("[1]", "config.json: expected an object, found list"),
        ('{"model_type": "gpt2"}', "config.json: config: model_type must be imagegpt"),
        ('{"n_layer": "x"}', "config.json: config: n_layer must be an int"),
        (
            '{"n_embd": 8, "hidden_size": 16}',
            "hidden_size is another name of n_embd, found 16 and 8",
        ),
        ('{"self": 1}', "config.json: .*'self'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words) as caught:
        ImageGPTConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
