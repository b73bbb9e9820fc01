"""Pairs of our classes and transformers' with the same random weights, and how they are compared.

Every weight is drawn anew, biases and gains too: at their initial zeros and ones a wrong bias
or gain would not show. Formulas are compared in float64, where rounding is of the order of 1e-15
and cannot hide a wrong one; float32 results are held to 1e-4, the bound that users of a
checkpoint rely on (sums of a few hundred terms of order 1 round by about 1e-6).
"""

import pytest
import torch
import transformers

import igpt_core

SHAPES = {
    "small": {"vocab_size": 17, "n_positions": 16, "n_embd": 48, "n_layer": 3, "n_head": 4},
    # head size 96 as in the large model, MLPs narrower than the model, positions of no square
    "head96": {
        **{"vocab_size": 33, "n_positions": 23, "n_embd": 192, "n_layer": 2, "n_head": 2},
        **{"n_inner": 100, "scale_attn_by_inverse_layer_idx": True},
    },
    # nothing is a multiple of anything
    "odd": {
        **{"vocab_size": 6, "n_positions": 11, "n_embd": 21, "n_layer": 4, "n_head": 3},
        **{"n_inner": 13, "layer_norm_epsilon": 0.1, "scale_attn_weights": False},
    },
}
BARE, CAUSAL, CLASSIFIER = (
    "ImageGPTModel",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
)
CLASSES = (BARE, CAUSAL, CLASSIFIER)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Limits torch to one thread in each module that imports it: threads that wait for a core
    cost small tensors most."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_weights(model, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            gain = 1.0 if "ln_" in name else 0.0
            adds = weight.ndim == 2 and not name.removeprefix("transformer.").startswith("w")
            # rows of embeddings are looked up, those of the other matrices added
            weight.copy_(gain + (weight.shape[0] ** -0.5 if adds else 0.5) * drawn)


def pair(shape, name=CAUSAL, *, dtype=torch.float64, **fields):
    """Makes our model and transformers' with the same random weights, in eval mode."""
    ours = getattr(igpt_core, name)(igpt_core.ImageGPTConfig(**shape, **fields))
    theirs = getattr(transformers, name)(transformers.ImageGPTConfig(**shape, **fields))
    draw_weights(ours)
    theirs.load_state_dict(ours.state_dict())  # strict
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def draw_tokens(shape, rows, length, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape["vocab_size"] - 1, (rows, length), generator=generator)


def assert_equal_up_to_rounding(ours, theirs):
    # float64: values of order 1 to 100, a thousand roundings of 1e-16 each
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def assert_same_cache(ours, theirs):
    """Compares a cache of ours with a DynamicCache."""
    assert len(ours) == len(theirs.layers)
    for (keys, values), layer in zip(ours, theirs.layers, strict=True):
        assert_equal_up_to_rounding(keys, layer.keys)
        assert_equal_up_to_rounding(values, layer.values)


def assert_same_part(ours, theirs):
    """Compares a field of an output: a tensor, a tuple of them, or a cache."""
    if isinstance(ours, igpt_core.KVCache):
        assert_same_cache(ours, theirs)
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for one, two in zip(ours, theirs, strict=True):
            assert_equal_up_to_rounding(one, two)
    else:
        assert_equal_up_to_rounding(ours, theirs)


def assert_same_gradients(ours, theirs):
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if two.grad is None:  # an embedding that nothing was looked up in
            assert one.grad is None, name
        else:
            assert_equal_up_to_rounding(one.grad, two.grad)
