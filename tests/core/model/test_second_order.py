"""Gradients of gradients: where torch has them, and what is said where it has not."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    found.append(inputs.grad)
    torch.testing.assert_close(*found)
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
    with pytest.raises(RuntimeError, match=r"next: output_attentions=True, or torch\.nn"):
        value.backward()


def test_first_gradients_are_as_they_were(model, inputs):
    loss = model(inputs_embeds=inputs).logits.square().mean()
    (once,) = torch.autograd.grad(loss, inputs)
    loss = model(inputs_embeds=inputs, output_attentions=True).logits.square().mean()
    (plain,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(once, plain)
