"""past_key_values: what it holds and what comes of giving it back, against transformers.

transformers' dynamic cache is the reference; its static one is wrong for this model.
"""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from igpt_core import KVCache, TrainingConfig, token_nll
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.optimizer import make_optimizer
from igpt_core.learning.training import train_step
from parity import (
    BARE,
    CAUSAL,
    CLASSES,
    SHAPES,
    assert_equal_up_to_rounding,
    assert_same_cache,
    assert_same_gradients,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)


@pytest.fixture(params=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


def cuts(shape):
    """Ways to feed all positions in several calls."""
    n_positions = shape["n_positions"]
    return [[1] * n_positions, [4, n_positions - 4], [n_positions - 1, 1], [2, 3, 1, 4, 1]]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("gradients", [False, True])
def test_call_after_call(shape, name, gradients):
    ours, theirs = pair(shape, name)
    first = "last_hidden_state" if name == BARE else "logits"
    for lengths in cuts(shape):
        mine = other = None
        with torch.set_grad_enabled(gradients):
            for part in draw_tokens(shape, 3, sum(lengths)).split(lengths, dim=1):
                mine = ours(part, past_key_values=mine and mine.past_key_values)
                other = theirs(part, past_key_values=other and other.past_key_values)
                assert_equal_up_to_rounding(mine[first], other[first])
                assert_same_cache(mine.past_key_values, other.past_key_values)
        assert mine.past_key_values.get_seq_length() == sum(lengths)


def test_with_all_that_concerns_past_positions(shape):
    """A mask over past and new positions, positions that start elsewhere, attention weights."""
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 3, 9)
    seen = torch.ones(3, 9, dtype=torch.int64)
    seen[1, :2] = seen[2, 5:7] = 0
    positions = (torch.arange(9) + 1)[None]
    for cut in (3, 6, 8):
        mine = other = None
        for part in (slice(cut), slice(cut, None)):
            arguments = {
                "attention_mask": seen[:, : part.stop],
                "position_ids": positions[:, part],
                "output_attentions": True,
            }
            mine = ours(tokens[:, part], mine and mine.past_key_values, **arguments)
            other = theirs(tokens[:, part], other and other.past_key_values, **arguments)
        assert_equal_up_to_rounding(mine.logits, other.logits)
        assert_equal_up_to_rounding(mine.attentions, other.attentions)
        assert mine.attentions[0].shape == (3, shape["n_head"], 9 - cut, 9)


def test_gradients_flow_through_the_cache(shape):
    """A loss over the last of three calls, and one of the second that is looked at after it."""
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 3, 8)
    losses = []
    for model in (ours, theirs):
        first = model(tokens[:, :3])
        second = model(tokens[:, 3:6], first.past_key_values)
        third = model(tokens[:, 6:], second.past_key_values)
        losses.append(third.logits.square().sum() + second.logits.square().sum())
        losses[-1].backward()
    assert_equal_up_to_rounding(*losses)
    assert_same_gradients(ours, theirs)


def test_gradients_of_what_follows_a_prompt_without_them(shape):
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 3, 8)
    for model in (ours, theirs):
        with torch.no_grad():
            past = model(tokens[:, :5]).past_key_values
        for part in tokens[:, 5:].split([1, 2], dim=1):
            output = model(part, past)
        output.logits.square().sum().backward()
    assert_same_gradients(ours, theirs)


def test_pairs_of_keys_and_values(shape):
    """What transformers calls past_key_values: given back as a tuple, and read as one."""
    ours, theirs = pair(shape, BARE)
    tokens = draw_tokens(shape, 2, 7)
    past = ours(tokens[:, :4]).past_key_values
    pairs = tuple((keys.detach().clone(), values.detach().clone()) for keys, values in past)
    assert len(past) == len(pairs) == shape["n_layer"]
    head_size = shape["n_embd"] // shape["n_head"]
    assert past[-1][1].shape == (2, shape["n_head"], 4, head_size)
    for keys, values in pairs:
        keys.requires_grad_(), values.requires_grad_()
    found = ours(tokens[:, 4:], past_key_values=pairs)
    other = theirs(tokens)
    assert_equal_up_to_rounding(found.last_hidden_state, other.last_hidden_state[:, 4:])
    assert_same_cache(found.past_key_values, other.past_key_values)
    found.last_hidden_state.square().sum().backward()
    assert all(tensor.grad.abs().max() > 0 for each in pairs for tensor in each)


def test_a_cache_is_extended_in_place_unless_use_cache_is_false():
    ours, _ = pair(SHAPES["small"])
    tokens = draw_tokens(SHAPES["small"], 2, 6)
    with torch.no_grad():
        past = ours(tokens[:, :4]).past_key_values
        for _ in range(2):
            output = ours(tokens[:, 4:], past_key_values=past, use_cache=False)
            assert output.past_key_values is None
            assert past.length == 4
        branch = copy.deepcopy(past)
        again = ours(tokens[:, 4:], past_key_values=past)
        assert again.past_key_values is past
        assert (past.length, branch.length) == (6, 4)
        assert_equal_up_to_rounding(again.logits, output.logits)
        assert_equal_up_to_rounding(ours(tokens[:, 4:], branch).logits, output.logits)


def test_memory_is_what_is_needed_and_grows_by_doubling():
    ours, _ = pair(SHAPES["small"])
    with torch.no_grad():
        past = ours(draw_tokens(SHAPES["small"], 2, 3)).past_key_values
        capacities = [past.capacity]
        for position in range(3, 16):
            past = ours(draw_tokens(SHAPES["small"], 2, 1), past).past_key_values
            capacities.append(past.capacity)
            assert past.length == position + 1
    assert capacities == [3, 6, 6, 6, *[12] * 6, *[16] * 4]


def test_what_does_not_fit_is_refused():
    ours, _ = pair(SHAPES["small"], BARE)
    tokens = draw_tokens(SHAPES["small"], 2, 9)
    past = ours(tokens).past_key_values
    pairs = tuple(past)
    refused = [
        (tokens[:, :8], past, "16 positions, found 17, 9 of them in past_key_values"),
        (tokens[:1, :2], past, "past_key_values has 2 rows, the input 1"),
        (tokens[:, :2], pairs[:2], r"of 3 layers, each of one shape \(B, 4, T, 12\)"),
        (tokens[:, :2], [(k[..., :5], v) for k, v in pairs], "of 3 layers"),
    ]
    for new, given, message in refused:
        with pytest.raises(ValueError, match=message):
            ours(new, past_key_values=given)
    with pytest.raises(ValueError, match=r"past ones included, \(2, 11\), found \(2, 2\)"):
        ours(tokens[:, :2], past_key_values=past, attention_mask=torch.ones(2, 2))
    assert past.length == 9


@pytest.mark.parametrize("weights", [False, True])
def test_under_autocast_the_cache_has_the_dtype_of_the_products(weights):
    ours, _ = pair(SHAPES["head96"], dtype=torch.float32)
    tokens = draw_tokens(SHAPES["head96"], 2, 8)
    asked = {"output_attentions": weights, "attention_mask": torch.tensor([[1] * 8, [0] + [1] * 7])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = ours(tokens, **asked, use_cache=False).logits
        past = ours(tokens[:, :5], attention_mask=asked["attention_mask"][:, :5]).past_key_values
        assert past[0][0].dtype == torch.bfloat16
        rest = ours(tokens[:, 5:], past, **asked).logits
    # bfloat16 results of order 1, a few units of 2^-8 apart: products of 3 rows and of 8 round
    # differently.
    torch.testing.assert_close(rest.float(), whole[:, 5:].float(), rtol=0, atol=0.1)


def test_scoring_and_training_allocate_no_cache(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a cache")

    monkeypatch.setattr(KVCache, "__init__", refuse)
    ours, _ = pair(SHAPES["small"], CAUSAL, dtype=torch.float32)
    tokens = draw_tokens(SHAPES["small"], 2, 16)
    token_nll(ours, tokens)
    config = TrainingConfig(steps=1, dtype=torch.float32)
    optimizer = make_optimizer(ours, config)
    train_step(NextPixel(ours), optimizer, [tokens], learning_rate=1e-3, dtype=config.dtype)
    with pytest.raises(AssertionError, match="a cache"):
        ours(tokens)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_cache_of_transformers_is_extended(shape, gradients):
    """Of whichever model: it is the same object, with the same content."""
    ours, theirs = pair(shape)
    tokens, found = draw_tokens(shape, 3, 9), []
    for model in (ours, theirs):
        cache = DynamicCache()
        with torch.set_grad_enabled(gradients):
            assert model(tokens[:, :4], past_key_values=cache).past_key_values is cache
            model(tokens[:, 4:7], past_key_values=cache)
            cache.crop(-2)
            found.append((model(tokens[:, 5:], past_key_values=cache).logits, cache))
    (mine, own), (other, their) = found
    assert_equal_up_to_rounding(mine, other)
    for one, two in zip(own.layers, their.layers, strict=True):
        assert_equal_up_to_rounding(one.keys, two.keys)
        assert_equal_up_to_rounding(one.values, two.values)


def test_a_cache_with_places_that_are_not_filled_is_refused(shape):
    ours, _ = pair(shape)
    cache = StaticCache(ours.config, max_cache_len=9)
    rows = torch.zeros(1, shape["n_head"], 1, shape["n_embd"] // shape["n_head"])
    cache.update(rows, rows, 0)
    with pytest.raises(TypeError, match=r"expected a KVCache.*found StaticCache"):
        ours(draw_tokens(shape, 1, 2), past_key_values=cache)


@pytest.mark.parametrize("gradients", [False, True])
def test_rows_and_positions_of_a_cache_are_chosen(shape, gradients):
    """By the methods of transformers' own; a cache that was cropped is gone on from as one of fewer
    positions is, and what was made before has its gradients still."""
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 3, 9)
    order = torch.tensor([2, 0, 0])
    found = []
    for model in (ours, theirs):
        with torch.set_grad_enabled(gradients):
            first = model(tokens[:, :7])
            cache = first.past_key_values
            cache.crop(-3)
            assert cache.get_seq_length() == 4
            cache.batch_select_indices(order)
            cache.batch_repeat_interleave(2)
            cache.reorder_cache(torch.tensor([5, 4, 3, 2, 1, 0]))
            rest = tokens[order].repeat_interleave(2, dim=0).flip(0)[:, 4:]
            last = model(rest, past_key_values=cache)
            found.append((last.logits, cache))
            if gradients:
                (first.logits.square().sum() + last.logits.square().sum()).backward()
    assert_equal_up_to_rounding(found[0][0], found[1][0])
    assert_same_cache(found[0][1], found[1][1])
    assert_same_gradients(ours, theirs)
    kept = KVCache.of_layers(ours.config, list(found[0][1]), room=0)
    kept.crop(2)
    assert kept.get_seq_length() == 2
    assert kept.layers[0].keys.equal(found[0][1].layers[0].keys[:, :, :2])
    kept.reset()
    assert kept.get_seq_length() == 0


def test_a_cache_with_gradients_is_copied_to_go_on_from_it_twice(shape):
    ours, _ = pair(shape)
    tokens = draw_tokens(shape, 2, 8)
    cache = ours(tokens[:, :4]).past_key_values
    again = copy.deepcopy(cache)
    first, second = (ours(tokens[:, 4:], past_key_values=c).logits for c in (cache, again))
    assert_equal_up_to_rounding(first, second)
    (first.sum() + second.sum()).backward()


def test_keys_before_a_prompt_and_checkpoints_that_run_without_gradients(shape):
    ours, _ = pair(shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    tokens = draw_tokens(shape, 2, 8)
    past = [tuple(layer) for layer in ours(tokens[:, :4]).past_key_values]
    expected = ours(tokens[:, 4:], past_key_values=past, use_cache=False).logits
    ours.train().gradient_checkpointing_enable({"use_reentrant": True})
    embeds = ours.transformer.wte(tokens[:, 4:])
    found = ours(inputs_embeds=embeds, past_key_values=past, use_cache=False).logits
    assert_equal_up_to_rounding(found, expected)


def test_a_graph_survives_what_is_cached_after_it(shape):
    """Keys that gradients need are never written over, whoever uses the cache next."""
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 2, 8)
    for model in (ours, theirs):
        with torch.no_grad():
            cache = model(tokens[:, :3]).past_key_values
        given = cache if model is ours else copy.deepcopy(cache)
        loss = model(tokens[:, 3:6], past_key_values=given, use_cache=False).logits.square().sum()
        with torch.no_grad():
            model(tokens[:, 3:], past_key_values=cache)
        loss.backward()
    assert_same_gradients(ours, theirs)
