"""Head masks and cross-attention against their definitions, written out here.

transformers 5 has dropped head masks, and its cross-attention for this model is broken (its issue
48693), so neither can serve as a reference. The definition is that of GPT-2's decoder: between
self-attention and MLP, a residual branch of attention to the encoder's states; a head's mask is
a factor of its attention weights, in both attentions.
"""

import math

import pytest
import torch

import igpt_core
from igpt_core import ImageGPTConfig
from parity import (
    BARE,
    CAUSAL,
    SHAPES,
    assert_equal_up_to_rounding,
    draw_tokens,
    draw_weights,
    one_thread,  # noqa: F401
)

ROWS, STATES = 3, 7


@pytest.fixture(params=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


def make(shape, name=BARE, **fields):
    model = getattr(igpt_core, name)(ImageGPTConfig(**shape, **fields))
    draw_weights(model)
    return model.double().eval()


def draw_states(shape, *, seed=3):
    generator = torch.Generator().manual_seed(seed)
    size = (ROWS, STATES, shape["n_embd"])
    return torch.randn(size, generator=generator, dtype=torch.float64)


def norm(x, gain, eps):
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain


def attention(config, layer, q, k, v, seen, factors):
    """q, k, v of one row, (T, C); seen (Tq, Tk); factors (H,). Returns (Tq, C) and the weights."""
    outputs, kept = [], []
    size = config.n_embd // config.n_head
    for head in range(config.n_head):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T
        if config.scale_attn_weights:
            scores = scores / math.sqrt(size)
        if config.scale_attn_by_inverse_layer_idx:
            scores = scores / (layer + 1)
        weights = torch.where(seen, scores.exp(), 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True) * factors[head]
        outputs.append(weights @ v[:, part])
        kept.append(weights)
    return torch.cat(outputs, dim=1), torch.stack(kept)


def reference(model, tokens, head_mask, states=None, seen_states=None):
    """Last hidden state (B, T, C) and the two lists of a layer's weights (B, H, T, Tk)."""
    config, weights = model.config, model.state_dict()
    n_layer, n_head, eps = config.n_layer, config.n_head, config.layer_norm_epsilon
    if head_mask is None:
        head_mask = torch.ones(n_layer, n_head)
    head_mask = head_mask.expand(n_layer, n_head)
    length = tokens.shape[1]
    causal = torch.arange(length)[:, None] >= torch.arange(length)
    rows, own, cross = [], [], []
    for row in range(len(tokens)):
        x = weights["wte.weight"][tokens[row]] + weights["wpe.weight"][:length]
        for layer in range(n_layer):

            def project(x, name, prefix=f"h.{layer}."):
                return x @ weights[f"{prefix}{name}.weight"] + weights[f"{prefix}{name}.bias"]

            def gain(name, prefix=f"h.{layer}."):
                return weights[f"{prefix}{name}.weight"]

            q, k, v = project(norm(x, gain("ln_1"), eps), "attn.c_attn").chunk(3, dim=1)
            y, kept = attention(config, layer, q, k, v, causal, head_mask[layer])
            own.append(kept)
            x = x + project(y, "attn.c_proj")
            if states is not None:
                q = project(norm(x, gain("ln_cross_attn"), eps), "crossattention.q_attn")
                k, v = project(states[row], "crossattention.c_attn").chunk(2, dim=1)
                seen = torch.ones(STATES) if seen_states is None else seen_states[row]
                seen = (seen == 1).expand(length, STATES)
                y, kept = attention(config, layer, q, k, v, seen, head_mask[layer])
                cross.append(kept)
                x = x + project(y, "crossattention.c_proj")
            hidden = project(norm(x, gain("ln_2"), eps), "mlp.c_fc")
            hidden = hidden / (1 + (-1.702 * hidden).exp())
            x = x + project(hidden, "mlp.c_proj")
        rows.append(norm(x, weights["ln_f.weight"], eps))
    by_layer = [
        [torch.stack(kept[layer::n_layer]) for layer in range(n_layer) if kept]
        for kept in (own, cross)
    ]
    return torch.stack(rows), *by_layer


def head_masks(shape):
    size = (shape["n_layer"], shape["n_head"])
    generator = torch.Generator().manual_seed(4)
    return {
        "none": None,
        "the same in all layers": torch.rand(size[1:], generator=generator),
        "of each layer": torch.rand(size, generator=generator),
        "one head is left": torch.eye(*size).flip(0),
    }


@pytest.mark.parametrize("heads", head_masks(SHAPES["odd"]))
@pytest.mark.parametrize("weights", [False, True])
def test_head_masks(shape, heads, weights):
    model = make(shape)
    tokens = draw_tokens(shape, ROWS, 9)
    head_mask = head_masks(shape)[heads]
    expected, own, _ = reference(model, tokens, head_mask)
    found = model(tokens, head_mask=head_mask, output_attentions=weights)
    assert_equal_up_to_rounding(found.last_hidden_state, expected)
    if weights:
        assert_equal_up_to_rounding(list(found.attentions), own)
    assert found.cross_attentions is None


@pytest.mark.parametrize("heads", ["none", "of each layer"])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention(shape, heads, masked):
    model = make(shape, add_cross_attention=True)
    tokens, states = draw_tokens(shape, ROWS, 9), draw_states(shape)
    seen = None
    if masked:
        seen = torch.ones(ROWS, STATES)
        seen[0, :3] = seen[1, 5:] = seen[2, 1] = 0
    head_mask = head_masks(shape)[heads]
    expected, own, cross = reference(model, tokens, head_mask, states, seen)
    asked = {
        "head_mask": head_mask,
        "encoder_hidden_states": states,
        "encoder_attention_mask": seen,
    }
    assert_equal_up_to_rounding(model(tokens, **asked).last_hidden_state, expected)
    found = model(tokens, **asked, output_attentions=True)
    assert_equal_up_to_rounding(found.last_hidden_state, expected)
    assert_equal_up_to_rounding(list(found.attentions), own)
    assert_equal_up_to_rounding(list(found.cross_attentions), cross)
    assert found.cross_attentions[0].shape == (ROWS, shape["n_head"], 9, STATES)
    assert list(found)[-2:] == ["attentions", "cross_attentions"]


@pytest.mark.parametrize("gradients", [False, True])
def test_cross_attention_with_a_cache(shape, gradients):
    model = make(shape, CAUSAL, add_cross_attention=True)
    tokens, states = draw_tokens(shape, ROWS, 9), draw_states(shape)
    seen = torch.ones(ROWS, STATES)
    seen[1, 5:] = 0
    asked = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    with torch.set_grad_enabled(gradients):
        whole = model(tokens, **asked).logits
        past = None
        for part, expected in zip(
            tokens.split([4, 1, 3, 1], 1), whole.split([4, 1, 3, 1], 1), strict=True
        ):
            output = model(part, past_key_values=past, **asked)
            past = output.past_key_values
            assert_equal_up_to_rounding(output.logits, expected)


def test_without_an_encoder_cross_attention_is_passed_over(shape):
    crossed = make(shape, add_cross_attention=True)
    plain = make(shape)
    weights = crossed.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    tokens = draw_tokens(shape, ROWS, 9)
    found = crossed(tokens, output_attentions=True)
    assert_equal_up_to_rounding(found.last_hidden_state, plain(tokens).last_hidden_state)
    assert found.cross_attentions is None


def test_gradients_reach_heads_encoder_and_every_weight():
    """Against differences: a loss at x + h and x - h."""
    shape = SHAPES["small"]
    model = make(shape, CAUSAL, add_cross_attention=True)
    tokens, states = draw_tokens(shape, ROWS, 9), draw_states(shape).requires_grad_()
    heads = torch.ones(shape["n_layer"], shape["n_head"]).double().requires_grad_()

    def loss(heads, states):
        return model(
            tokens, head_mask=heads, encoder_hidden_states=states, labels=tokens, use_cache=False
        ).loss

    loss(heads, states).backward()
    assert all(weight.grad.abs().max() > 0 for weight in model.parameters())
    step = 1e-5
    with torch.no_grad():
        for inputs, at in ((heads, (1, 2)), (heads, (2, 0)), (states, (1, 4, 5))):
            shift = torch.zeros_like(inputs)
            shift[at] = step
            shifts = (shift, 0) if inputs is heads else (0, shift)
            up, down = (
                loss(heads + sign * shifts[0], states + sign * shifts[1]) for sign in (1, -1)
            )
            # The difference is off by step^2 and by rounding over step: 1e-10 both.
            assert inputs.grad[at].item() == pytest.approx(
                (up - down).item() / (2 * step), rel=1e-4, abs=1e-8
            )


@pytest.mark.parametrize("name", [BARE, CAUSAL])
def test_dropout_applies_to_cross_attention_too(name):
    """At probability one nothing of the encoder is left."""
    shape = SHAPES["small"]
    tokens = draw_tokens(shape, ROWS, 9)
    off = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    for dropped in ("resid_pdrop", "attn_pdrop"):
        model = make(shape, name, add_cross_attention=True, **{**off, dropped: 1.0})
        for module in model.modules():
            if hasattr(module, "q_attn"):
                torch.nn.init.zeros_(module.c_proj.bias)
        model.train()
        outputs = [
            model(tokens, encoder_hidden_states=states)[0]
            for states in (None, draw_states(shape), draw_states(shape, seed=9))
        ]
        assert outputs[0].equal(outputs[1])
        assert outputs[1].equal(outputs[2])


def test_wrong_shapes_are_refused():
    shape = SHAPES["small"]
    model = make(shape, add_cross_attention=True)
    tokens, states = draw_tokens(shape, ROWS, 9), draw_states(shape)
    with pytest.raises(ValueError, match=r"encoder_attention_mask .*\(3, 7\), found \(3, 9\)"):
        model(tokens, encoder_hidden_states=states, encoder_attention_mask=torch.ones(3, 9))
