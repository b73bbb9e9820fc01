"""OpenAI's checkpoints: converted weights give what OpenAI's own formulas give."""

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from bundle_writer import openai_variables, write_bundle
from igpt_core import CheckpointError, ImageGPTForCausalImageModeling
from igpt_core.conversion.openai import is_openai, read_openai

TOKENS = np.random.default_rng(1).integers(0, 16, (3, 15))


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "model.ckpt-131000")


def openai_logits(variables, tokens, *, n_layer):
    """OpenAI's model, in float64: (B, T) pixels to the logits (B, T + 1, V) of all T + 1."""
    w = {name.removeprefix("model/"): np.float64(value) for name, value in variables.items()}

    def norm(x, scope):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * w[scope + "/g"]

    def dense(x, scope):
        kernel = w[scope + "/w"]
        return x @ kernel.reshape(kernel.shape[-2:])

    def attention(x, scope):
        q, k, v = (np.einsum("bsf,hef->bhse", x, w[f"{scope}/{n}_proj"]) for n in "qkv")
        scores = np.einsum("bhse,bhte->bhst", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhst,bhte->bhse", weights, v)
        return np.einsum("bhse,hef->bsf", mixed, w[scope + "/c_proj"])

    def mlp(x, scope):
        h = dense(x, scope + "/c_fc")
        return dense(h / (1 + np.exp(-1.702 * h)), scope + "/c_proj")

    x = w["wte"][tokens]
    start = np.broadcast_to(w["sos"], (len(tokens), 1, x.shape[-1]))
    x = np.concatenate([start, x], axis=1)
    x = x + w["wpe"][: x.shape[1]]
    for i in range(n_layer):
        x = x + attention(norm(x, f"h{i}/ln_1"), f"h{i}/attn")
        x = x + mlp(norm(x, f"h{i}/ln_2"), f"h{i}/mlp")
    return norm(x, "ln_f") @ w["wtet"].T


def our_logits(config, weights, tokens):
    model = ImageGPTForCausalImageModeling(config).eval()
    model.load_state_dict(weights)
    start = np.full((len(tokens), 1), config.start_token)
    with torch.no_grad():
        return model(torch.from_numpy(np.concatenate([start, tokens], axis=1))).logits.numpy()


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_layer": 11, "width": 8, "n_head": 2},  # h10 comes before h2 in the index
        {"n_head": 1, "n_colors": 20, "n_positions": 25},
    ],
)
@pytest.mark.parametrize("n_shards", [1, 4])
def test_logits_are_those_of_openais_formulas(prefix, sizes, n_shards):
    variables = openai_variables(0, **sizes)
    write_bundle(prefix, variables, n_shards=n_shards, rows_per_block=9)
    for location in (prefix, prefix + ".index"):
        config, weights = read_openai(location)
        expected = openai_logits(variables, TOKENS, n_layer=config.n_layer)
        found = our_logits(config, weights, TOKENS)
        assert np.abs(expected).max() > 1  # the weights are large enough to tell
        # float32 against float64, logits of about 5: 1e-5 is some ten roundings
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_configuration_follows_from_the_shapes(prefix):
    sizes = {"n_layer": 3, "width": 40, "n_head": 5, "n_colors": 12, "n_positions": 49}
    write_bundle(prefix, openai_variables(0, **sizes))
    config, weights = read_openai(prefix)
    assert (config.vocab_size, config.n_positions, config.n_embd) == (13, 49, 40)
    assert (config.n_layer, config.n_head, config.n_inner) == (3, 5, None)
    assert all(weight.dtype is torch.float32 for weight in weights.values())


def test_a_uri(prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    write_bundle(prefix, openai_variables(0), n_shards=2)
    for file in tmp_path.glob("model.ckpt-*"):
        MemoryFileSystem().put(str(file), f"/openai/{file.name}")
    weights = read_openai("memory://openai/model.ckpt-131000")[1]
    for name, weight in read_openai(prefix)[1].items():
        assert weight.equal(weights[name])
    MemoryFileSystem().rm("/openai/model.ckpt-131000.data-00001-of-00002")
    with pytest.raises(CheckpointError, match=r"expected model.ckpt-131000.data-00001-of-00002"):
        read_openai("memory://openai/model.ckpt-131000")


def without(name):
    def change(variables):
        del variables["model/" + name]

    return change


def reshaped(name, shape):
    def change(variables):
        variables["model/" + name] = np.zeros(shape, np.float32)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("sos"), "expected the variable model/sos, found none$"),
        (without("wte"), "expected the variable model/wte, found none$"),
        (without("h1/ln_2/g"), "expected the variable model/h1/ln_2/g, found none$"),
        (without("h0/attn/q_proj"), "expected the variable model/h0/attn/q_proj, found none$"),
        (lambda v: v.clear(), "expected the variable model/wte, found none$"),
        (reshaped("h0/ln_1/b", (24,)), "model/h0/ln_1/b is no variable of an ImageGPT$"),
        (reshaped("h2/ln_1/g", (24,)), r"expected the variable model/h2/attn/q_proj, found none$"),
        (reshaped("wtet", (12, 24)), r"expected model/wtet of shape \(16, 24\), found \(12, 24\)$"),
        (reshaped("sos", (1, 24)), r"expected model/sos of shape \(24,\), found \(1, 24\)$"),
        (reshaped("wte", (16,)), r"expected model/wte of 2 axes, found \(16,\)$"),
        (
            reshaped("h1/attn/k_proj", (24, 3, 8)),
            r"expected model/h1/attn/k_proj of shape \(3, 8, 24\), found \(24, 3, 8\)$",
        ),
        (reshaped("h1/mlp/c_fc/w", (2, 24, 96)), r"of shape \(24, 96\), found \(2, 24, 96\)$"),
        (reshaped("h0/attn/q_proj", (5, 5, 24)), "n_embd must be a multiple of n_head"),
    ],
)
def test_variables_that_are_no_imagegpt(prefix, change, words):
    variables = openai_variables(0)
    change(variables)
    write_bundle(prefix, variables)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_openai(prefix)
    assert str(caught.value).startswith(f"{prefix}: ")
    assert "\n" not in str(caught.value)


def test_integers_are_no_weights(prefix):
    variables = openai_variables(0)
    variables["model/sos"] = np.zeros(24, np.int64)
    write_bundle(prefix, variables)
    with pytest.raises(CheckpointError, match=r"model/sos is not of a float dtype$"):
        read_openai(prefix)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00002", ".data-00001-of-00002"])
def test_a_truncated_file_is_refused_in_one_line(prefix, tmp_path, suffix):
    write_bundle(prefix, openai_variables(0), n_shards=2)
    file = tmp_path / ("model.ckpt-131000" + suffix)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged or cut short: ") as caught:
        read_openai(prefix)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"expected {file.name}, found ") as caught:
        read_openai(prefix)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "is_one"),
    [
        ("models/model.ckpt-131000", True),
        ("s3://bucket/models/model.ckpt-131000.index", True),
        ("model.ckpt", True),
        ("any/prefix.index", True),
        ("models/openai", False),
        ("openai/imagegpt-small", False),
        ("model.ckpt-5/folder", False),
    ],
)
def test_checkpoints_are_known_by_their_names(location, is_one):
    assert is_openai(location) is is_one
