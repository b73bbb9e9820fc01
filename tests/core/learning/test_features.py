"""Pooled features against transformers' hidden states, and how little is computed for them.

Tolerances: parity.py. The averages are float32 also for a float64 model: a sum of some twenty
numbers of order 1 rounds by about 1e-6.
"""

import weakref

import pytest
import torch

from igpt_core import chosen_layers, pooled_features
from parity import (
    BARE,
    CAUSAL,
    CLASSES,
    SHAPES,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)

ROWS = 3


@pytest.fixture(params=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


def tokens_of(shape):
    return draw_tokens(shape, ROWS, shape["n_positions"])


def started(shape, tokens):
    """What the model is fed in training, spelled out row by row."""
    return torch.tensor([[shape["vocab_size"] - 1, *row[:-1]] for row in tokens.tolist()])


def transformer_of(model):
    return getattr(model, "transformer", model)


def run_blocks(model):
    """The blocks and final norm that run from here on, by index; n_layer for the norm."""
    transformer, ran = transformer_of(model), []
    for index, part in enumerate([*transformer.h, transformer.ln_f]):
        part.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    return ran


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sos", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_every_layer_is_the_mean_of_transformers_hidden_state(shape, name, sos, dtype):
    ours, theirs = pair(shape, name, dtype=dtype)
    tokens = tokens_of(shape)
    inputs = started(shape, tokens) if sos else tokens
    states = theirs(inputs, output_hidden_states=True).hidden_states
    found = pooled_features(ours, tokens, range(shape["n_layer"] + 1), sos=sos)
    assert len(found) == len(states)
    for layer, state in enumerate(states):
        assert found[layer].dtype == torch.float32
        tolerance = 1e-4 if dtype == torch.float32 else 2e-6
        scale = state.abs().max().item()
        torch.testing.assert_close(
            found[layer].to(dtype), state.mean(1), rtol=0, atol=tolerance * max(1, scale)
        )


@torch.no_grad()
@pytest.mark.parametrize("sos", [True, False])
def test_normed_is_the_mean_of_what_transformers_blocks_attend_to(shape, sos):
    ours, theirs = pair(shape)
    tokens = tokens_of(shape)
    seen = []
    for block in theirs.transformer.h:
        block.ln_1.register_forward_hook(lambda module, arguments, output: seen.append(output))
    theirs.transformer.ln_f.register_forward_hook(lambda *call: seen.append(call[-1]))
    theirs(started(shape, tokens) if sos else tokens)
    layers = range(shape["n_layer"] + 1)
    normed = pooled_features(ours, tokens, layers, sos=sos, normed=True)
    plain = pooled_features(ours, tokens, layers, sos=sos)
    for layer in layers:
        torch.testing.assert_close(
            normed[layer].double(), seen[layer].mean(1), rtol=1e-6, atol=2e-6
        )
    for layer in layers[:-1]:
        assert not torch.allclose(normed[layer], plain[layer], atol=1e-2)
    assert torch.equal(normed[layers[-1]], plain[layers[-1]])


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_states_are_those_of_forward(shape, name):
    ours = transformer_of(pair(shape, name)[0])
    tokens = tokens_of(shape)
    expected = ours(tokens, output_hidden_states=True).hidden_states
    for found, state in zip(ours.states(tokens), expected, strict=True):
        torch.testing.assert_close(found, state)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", [BARE, CAUSAL])
def test_nothing_above_the_highest_layer_is_run(name, normed):
    shape = SHAPES["odd"]
    ours, _ = pair(shape, name)
    ran = run_blocks(ours)
    for deepest in range(shape["n_layer"]):
        pooled_features(ours, tokens_of(shape), [deepest, deepest // 2], normed=normed)
        assert ran == list(range(deepest))
        ran.clear()
    pooled_features(ours, tokens_of(shape), [shape["n_layer"]], normed=normed)
    assert ran == list(range(shape["n_layer"] + 1))


def test_a_state_is_gone_before_the_next_but_one_is_made():
    shape = SHAPES["odd"]
    ours, _ = pair(shape, BARE)
    made, alive = [], []

    def watch(block, arguments, output):
        made.append(weakref.ref(output[0]))
        alive.append(sum(state() is not None for state in made))

    for block in ours.h:
        block.register_forward_hook(watch)
    pooled_features(ours, tokens_of(shape), range(shape["n_layer"] + 1))
    assert alive == [1] + [2] * (shape["n_layer"] - 1)  # what a block reads, and what it makes


def test_layers_come_in_the_order_asked_for_and_once():
    shape = SHAPES["odd"]
    ours, _ = pair(shape)
    tokens = tokens_of(shape)
    alone = {layer: pooled_features(ours, tokens, [layer])[layer] for layer in (0, 1, 3)}
    found = pooled_features(ours, tokens, (3, 0, 3, 1))
    assert list(found) == [3, 0, 1]
    for layer, features in found.items():
        assert torch.equal(features, alone[layer])


def test_features_take_no_gradient():
    shape = SHAPES["small"]
    ours, _ = pair(shape)
    (features,) = pooled_features(ours, tokens_of(shape), [2]).values()
    assert not features.requires_grad
    assert features.numpy().shape == (ROWS, shape["n_embd"])


@pytest.mark.parametrize("layers", [[], [4], [0, -1], [2, 9]])
def test_layers_that_do_not_exist_are_refused(layers):
    shape = SHAPES["small"]
    ours, _ = pair(shape)
    ran = run_blocks(ours)
    with pytest.raises(ValueError, match="layers from 0 to 3, one at least, found") as error:
        pooled_features(ours, tokens_of(shape), layers)
    assert str(layers) in str(error.value)
    assert not ran


def test_tokens_of_another_shape_are_refused():
    shape = SHAPES["small"]
    ours, _ = pair(shape)
    with pytest.raises(ValueError, match=r"tokens \(B, T\) with T >= 1, found \(3, 0\)"):
        pooled_features(ours, tokens_of(shape)[:, :0], [1])
    with pytest.raises(ValueError, match=r"tokens \(B, T\) with T >= 1, found \(16,\)"):
        pooled_features(ours, tokens_of(shape)[0], [1])
    with pytest.raises(ValueError, match="the model has 16 positions, found 32"):
        pooled_features(ours, tokens_of(shape).repeat(1, 2), [1])


def test_layers_by_their_words():
    assert chosen_layers("middle", 24) == (12,)
    assert chosen_layers("middle", 7) == (3,)
    assert chosen_layers("all", 3) == (0, 1, 2, 3)
    assert chosen_layers("8", 24) == (8,)
    assert chosen_layers("12, 8,12,0", 24) == (0, 8, 12)
    assert chosen_layers("24", 24) == (24,)


@pytest.mark.parametrize(
    "words", ["", "25", "8,25", "-1", "8,", "8;12", "Middle", "first", "1.5", "8-12", "²", "+3"]
)
def test_words_that_name_no_layers_are_refused(words):
    with pytest.raises(ValueError, match="middle, all, or numbers from 0 to 24") as error:
        chosen_layers(words, 24)
    assert repr(words) in str(error.value)
    assert "\n" not in str(error.value)
