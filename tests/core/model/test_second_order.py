"""Gradients of gradients: where torch has them, and what is said where it has not."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from igpt_core import ImageGPTConfig, ImageGPTForCausalImageModeling
from parity import SHAPES, draw_tokens, one_thread, pair  # noqa: F401

SHAPE = SHAPES["small"]
TOKENS = draw_tokens(SHAPE, 2, 6)


def penalty(model, inputs, **options):
    """The squared norm of the gradient of a loss, as a gradient penalty has it."""
    loss = model(inputs_embeds=inputs, **options).logits.square().mean()
    (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
    return gradient.square().sum()


@pytest.fixture
def model():
    return pair(SHAPE)[0]


@pytest.fixture
def inputs(model):
    return model.transformer.wte(TOKENS).detach().requires_grad_(True)


def test_the_ways_round_give_the_gradient_of_finite_differences(model, inputs):
    found = []
    penalty(model, inputs, output_attentions=True).backward()
    found.append(inputs.grad.clone())
    inputs.grad = None
    with sdpa_kernel(SDPBackend.MATH):
        penalty(model, inputs).backward()
    found.append(inputs.grad.clone())
    inputs.grad = None
    model.set_attn_implementation("eager")
    penalty(model, inputs).backward()
    found.append(inputs.grad)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)
    step = torch.zeros_like(inputs)
    step[1, 2, 3] = 1e-5
    with torch.enable_grad():
        up, down = (
            penalty(model, (inputs.detach() + sign * step).requires_grad_(True)) for sign in (1, -1)
        )
    assert found[0][1, 2, 3].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-4)


def test_without_them_a_line_names_them(model, inputs):
    value = penalty(model, inputs)  # of the first order there are gradients
    assert value > 0
    with pytest.raises(RuntimeError, match=r"next: attn_implementation='eager' for the model, or"):
        value.backward()


def test_first_gradients_are_as_they_were(model, inputs):
    loss = model(inputs_embeds=inputs).logits.square().mean()
    (once,) = torch.autograd.grad(loss, inputs)
    loss = model(inputs_embeds=inputs, output_attentions=True).logits.square().mean()
    (plain,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(once, plain)


def test_forward_gradients_of_plain_attention(model, inputs):
    """Which the fused kernel has none of, against finite differences."""
    model.set_attn_implementation("eager")

    def logits(embeds):
        return model(inputs_embeds=embeds, use_cache=False).logits

    step = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2)).double()
    _, found = torch.func.jvp(logits, (inputs.detach(),), (step,))
    with torch.no_grad():
        up, down = logits(inputs + 1e-6 * step), logits(inputs - 1e-6 * step)
    torch.testing.assert_close(found, (up - down) / 2e-6, rtol=1e-5, atol=1e-6)


def test_long_rows_of_bfloat16_have_gradients_of_gradients_by_the_same_ways_round():
    """They are trained in blocks otherwise."""
    config = ImageGPTConfig(9, 256, 32, 1, 2)
    model = ImageGPTForCausalImageModeling(config).bfloat16().eval()
    embeds = torch.randn(1, 256, 32).bfloat16().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        penalty(model, embeds).backward()
    found = embeds.grad.clone()
    embeds.grad = None
    model.set_attn_implementation("eager")
    penalty(model, embeds).backward()
    torch.testing.assert_close(found, embeds.grad, rtol=0.2, atol=found.abs().max().item() / 20)


def test_plain_attention_is_asked_for_as_in_transformers(model, tmp_path):
    model.save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert plain.config._attn_implementation == plain.config.attn_implementation == "eager"
    assert "attn_implementation" not in plain.config.to_json()
    assert plain.config.with_fields(n_layer=2).attn_implementation == "eager"
    torch.testing.assert_close(plain(TOKENS).logits, model(TOKENS).logits)
    made = type(model).from_config(model.config, attn_implementation="eager")
    assert made.config.attn_implementation == "eager"
    assert model.config.attn_implementation == "sdpa"
    with pytest.raises(ValueError, match=r"must be 'sdpa'.*found 'flash_att"):
        type(model).from_pretrained(tmp_path, attn_implementation="flash_attention_2")
