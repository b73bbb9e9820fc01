"""Attention with gradients in blocks, against torch's in float64."""

import pytest
import torch
from torch.nn import functional as F

from igpt_core import ImageGPTConfig, ImageGPTForCausalImageModeling
from igpt_core.model import training_attention
from igpt_core.model.attention import attend
from igpt_core.model.training_attention import trains_in_blocks


@pytest.fixture(autouse=True)
def _without_tiles(monkeypatch):
    """On every machine as on those where blocks are used."""
    monkeypatch.setattr(training_attention, "has_tiles", lambda: False)


def test_with_matrix_tiles_the_fused_kernel_is_used(monkeypatch):
    (q, k, _), _ = draw((1, 2, 400, 16))
    assert trains_in_blocks(q, k)
    monkeypatch.setattr(training_attention, "has_tiles", lambda: True)
    assert not trains_in_blocks(q, k)


def draw(shape, *, seed=0):
    """Queries, keys and values as they lie behind their projection, and a gradient."""
    images, heads, positions, size = shape
    generator = torch.Generator().manual_seed(seed)
    together = torch.randn(images, positions, 3, heads, size, generator=generator).bfloat16()
    parts = [x.detach().requires_grad_() for x in together.permute(2, 0, 3, 1, 4).unbind()]
    return parts, torch.randn(shape, generator=generator).bfloat16()


def gradients(parts, gradient, function):
    result = function(*parts)
    return [result.detach(), *torch.autograd.grad(result, parts, gradient)]


# Groups of one image and of several, a last block that is not full, heads that fill a group.
@pytest.mark.parametrize(
    "shape", [(2, 6, 512, 32), (3, 4, 300, 64), (4, 1, 257, 16), (2, 13, 256, 8)]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_results_and_gradients_are_those_of_float64(shape, scale):
    parts, gradient = draw(shape)
    assert trains_in_blocks(*parts[:2])
    found = gradients(parts, gradient, lambda *qkv: attend(*qkv, scale=scale))

    def exact(*qkv):
        return F.scaled_dot_product_attention(*qkv, is_causal=True, scale=scale)

    wide = [x.detach().double().requires_grad_() for x in parts]
    expected = gradients(wide, gradient.double(), exact)
    fused = gradients(parts, gradient, exact)
    for one, kernel, right in zip(found, fused, expected, strict=True):
        error, of_kernel = ((x.double() - right).norm() / right.norm() for x in (one, kernel))
        assert error < max(2.5 * of_kernel, 0.01), (error, of_kernel)
    assert (
        max((x.double() - right).abs().max() for x, right in zip(found, expected, strict=True))
        < 0.2
    )


def test_a_position_sees_none_behind_it():
    (q, k, v), gradient = draw((1, 2, 400, 16))
    before = attend(q, k, v)
    k.data[:, :, 300:], v.data[:, :, 300:] = 5, 5
    assert attend(q, k, v)[:, :, :300].equal(before[:, :, :300])
    gradient[:, :, :300] = 0
    of_q = torch.autograd.grad(attend(q, k, v), q, gradient)[0]
    assert not of_q[:, :, :300].any()


def test_another_default_device_changes_nothing():
    """Past bug: a mask that was made under one was kept for all that came later."""
    (q, k, v), _ = draw((1, 2, 256, 16))
    with torch.device("meta"):
        first = attend(q, k, v)
    assert first.equal(attend(q, k, v))


@pytest.mark.parametrize("frozen", ["q", "kv"])
def test_some_need_no_gradients(frozen):
    (q, k, v), gradient = draw((2, 2, 256, 16))
    for x in (q,) if frozen == "q" else (k, v):
        x.requires_grad_(False)
    needed = [x for x in (q, k, v) if x.requires_grad]
    found = torch.autograd.grad(attend(q, k, v), needed, gradient)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for one, two in zip(found, torch.autograd.grad(exact, needed, gradient), strict=True):
        torch.testing.assert_close(one, two, rtol=0.1, atol=0.05)


def test_others_take_the_fused_kernel():
    (q, k, v), _ = draw((1, 2, 256, 16))
    assert trains_in_blocks(q, k)
    assert not trains_in_blocks(q.float(), k.float())
    assert not trains_in_blocks(q[:, :, :100], k[:, :, :100])
    assert not trains_in_blocks(q[:, :, -1:], k)
    assert not trains_in_blocks(q.detach(), k.detach())
    with torch.no_grad():
        assert not trains_in_blocks(q, k)

    def asked(x):
        assert not trains_in_blocks(x, k)
        return attend(x, k, v).float()

    step = torch.ones_like(q)
    assert torch.func.vjp(asked, q.detach())[1](step.float())[0].shape == q.shape


def test_gradients_of_gradients_are_refused_with_the_ways_round():
    config = ImageGPTConfig(n_layer=1, n_embd=32, n_head=2, vocab_size=9, n_positions=256)
    model = ImageGPTForCausalImageModeling(config).bfloat16().eval()
    inputs = torch.randn(1, 256, 32).bfloat16().requires_grad_()
    loss = model(inputs_embeds=inputs).logits.float().square().mean()
    (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="next: attn_implementation='eager' for the model, or"):
        gradient.float().square().sum().backward()
