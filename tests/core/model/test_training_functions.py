"""Norm and activation with gradients in few passes, against torch's own, to any order."""

import pytest
import torch
from torch.nn import functional as F

from igpt_core.model import training_functions
from igpt_core.model.training_functions import is_trained_on_cpu, quick_gelu, rms_norm


def draw(*shape, seed=0, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def plain_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def plain_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, 1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_the_activation_and_its_gradients(dtype, tolerance):
    x = draw(50, 7, dtype=dtype)
    gradient = draw(50, 7, seed=1, dtype=dtype)
    found, expected = quick_gelu(x), plain_gelu(x)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    pair = [torch.autograd.grad(y, x, gradient, create_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)
    second = [torch.autograd.grad(y.square().sum(), x)[0] for y in pair]
    torch.testing.assert_close(*second, rtol=4 * tolerance, atol=4 * tolerance)


def test_the_norm_and_its_gradients():
    x, weight, gradient = draw(5, 7, 48), draw(48, seed=1), draw(5, 7, 48, seed=2)
    found, expected = rms_norm(x, weight, 1e-5), plain_norm(x, weight)
    torch.testing.assert_close(found, expected)
    pairs = [
        torch.autograd.grad(y, (x, weight), gradient, create_graph=True) for y in (found, expected)
    ]
    for one, two in zip(*pairs, strict=True):
        torch.testing.assert_close(one, two)
    second = [torch.autograd.grad(g[0].square().sum() + g[1].sum(), (x, weight)) for g in pairs]
    for one, two in zip(*second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_numbers_near_zero_and_a_frozen_weight():
    x, weight = draw(4, 16), draw(16, seed=1).detach()
    x = (x.detach() * 1e-4).requires_grad_()
    pair = [
        torch.autograd.grad(y.sum(), x)[0]
        for y in (rms_norm(x, weight, 1e-5), plain_norm(x, weight))
    ]
    torch.testing.assert_close(*pair)


def test_it_is_for_training_on_a_cpu_alone():
    x = draw(3, 4)
    assert is_trained_on_cpu(x)
    assert is_trained_on_cpu(x.detach(), x)
    assert not is_trained_on_cpu(x.detach())
    assert not is_trained_on_cpu(x.to("meta"))
    with torch.no_grad():
        assert not is_trained_on_cpu(x)
    seen = []

    def asked(y):
        seen.append(is_trained_on_cpu(y))
        return quick_gelu(y)

    torch.func.jvp(asked, (x.detach(),), (torch.ones(3, 4),))
    torch.func.vmap(torch.func.grad(lambda y: asked(y).sum()))(x.detach())
    assert seen == [False, False]


def test_without_gradients_nothing_changes(monkeypatch):
    """Inference has the bits that it had: it takes torch's operations."""
    monkeypatch.setattr(training_functions, "_QuickGelu", None)
    monkeypatch.setattr(training_functions, "_RmsNorm", None)
    x, weight = draw(3, 48), draw(48, seed=1)
    with torch.no_grad():
        assert quick_gelu(x).equal(plain_gelu(x))
        assert rms_norm(x, weight, 1e-5).equal(plain_norm(x, weight))
