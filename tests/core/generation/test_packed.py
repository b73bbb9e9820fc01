"""Prepacked products against torch's own on the same tensors, and the paths without them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from igpt_core.generation import packed as packed_module
from igpt_core.generation.completion import complete
from igpt_core.generation.packed import FoldedLinear, PrepackedLinear, prepacked
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.layers import ACTIVATIONS, Conv1D
from models import make_model

SIZES = {"vocab_size": 17, "n_positions": 20, "n_embd": 32, "n_layer": 2, "n_head": 2}

# Relative to the largest value: sums in another order, in float32; and rounding to bfloat16.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}

onednn = pytest.mark.skipif(
    prepacked(torch.nn.Sequential(torch.nn.Linear(4, 4)).eval())[0].__class__ is torch.nn.Linear,
    reason="this build of torch has no oneDNN products",
)


def model_of(
    dtype: torch.dtype = torch.float32, **options: object
) -> ImageGPTForCausalImageModeling:
    model = make_model(ImageGPTConfig(**SIZES, **options), std=0.2)
    for name, parameter in model.named_parameters():
        if "ln_" in name:  # gains that are not all alike
            parameter.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    return model.to(dtype)


def draw(model: ImageGPTForCausalImageModeling) -> Tensor:
    prompt = torch.arange(12).view(4, 3)
    seeds = torch.arange(4)
    return complete(model, prompt, n_positions=20, seeds=seeds, sampling=SamplingConfig())


@onednn
@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16, 70])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_prepacked_product_is_linear(
    dtype: torch.dtype, rows: int, with_bias: bool, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in [(rows, 1, 48), (80, 48), 80]
    )
    given = weight.t().contiguous().t() if transposed else weight
    found = PrepackedLinear(given, bias if with_bias else None)(x)
    expected = F.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()


@onednn
@torch.inference_mode()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_prepacked_model_gives_the_same_logits_and_leaves_the_model_alone(
    dtype: torch.dtype, activation: str
) -> None:
    model = model_of(dtype, activation_function=activation)
    tokens = torch.randint(0, 16, (3, 20), generator=torch.Generator().manual_seed(0))
    before = model(tokens).logits
    twin = prepacked(model)
    found = twin(tokens).logits
    assert (found - before).abs().max() <= 4 * TOLERANCES[dtype] * before.abs().max()
    assert torch.equal(model(tokens).logits, before)
    assert not any(isinstance(module, PrepackedLinear) for module in model.modules())
    # 4 products a layer and the head
    assert sum(isinstance(module, PrepackedLinear) for module in twin.modules()) == 2 * 4 + 1
    # What is not prepacked is not copied.
    assert twin.transformer.wte.weight is model.transformer.wte.weight


@torch.inference_mode()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_what_a_gpu_computes_gives_the_same_logits(
    dtype: torch.dtype, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU if there is one, else by the same operations of torch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(dtype, activation_function=activation).to(device)
    tokens = torch.randint(0, 16, (3, 20), generator=torch.Generator().manual_seed(0)).to(device)
    before = model(tokens).logits
    monkeypatch.setattr(packed_module, "_is_served", lambda weight: True)
    monkeypatch.setattr(packed_module, "PrepackedLinear", FoldedLinear)
    twin = prepacked(model)
    found = twin(tokens).logits
    assert (found - before).abs().max() <= 4 * TOLERANCES[dtype] * before.abs().max()
    assert sum(isinstance(module, FoldedLinear) for module in twin.modules()) == 2 * 4 + 1
    assert twin.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()  # it is not copied
    assert prepacked(twin) is twin


@onednn
def test_each_weight_is_prepacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past bug: those of blocks twice, the second time in vain."""
    made = []
    init = PrepackedLinear.__init__
    monkeypatch.setattr(
        PrepackedLinear, "__init__", lambda *args, **named: made.append(init(*args, **named))
    )
    prepacked(model_of(add_cross_attention=True))
    assert len(made) == 2 * (4 + 3) + 1  # those of attention to an encoder, and the head


@onednn
def test_a_prepacked_model_is_not_prepacked_again() -> None:
    twin = prepacked(model_of())
    assert prepacked(twin) is twin


def test_a_model_in_training_keeps_its_dropout() -> None:
    model = model_of().train()
    assert prepacked(model) is model


@onednn
def test_without_onednn_images_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # Logits that differ by 1e-5 change one of 68 draws with odds of 1e-3 over random weights; these
    # are fixed.
    model = model_of()
    expected = draw(model)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert prepacked(model) is model
    assert torch.equal(draw(model), expected)


@onednn
def test_an_operator_that_is_gone_means_no_prepacking(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    assert prepacked(model) is not model
    monkeypatch.setattr(packed_module, "OPERATORS", (*packed_module.OPERATORS, "not_there"))
    assert prepacked(model) is model


def greedy_of_the_whole_pass(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    """Goes on from tokens (B, T) to 12 of them, each time by a forward pass over all of them."""
    while tokens.shape[1] < 12:
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(dim=-1)], dim=1)
    return tokens


def projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [each for each in model.modules() if isinstance(each, Conv1D | torch.nn.Linear)]


class Halved(torch.nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Rolled(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, -1)


def hook_each(model: ImageGPTForCausalImageModeling) -> None:
    for module in projections(model):
        module.register_forward_hook(lambda module, inputs, output: output.flip(-1))


def hook_inputs(model: ImageGPTForCausalImageModeling) -> None:
    for module in projections(model):
        module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.5,))


def parametrize(model: ImageGPTForCausalImageModeling) -> None:
    for module in projections(model):
        torch.nn.utils.parametrize.register_parametrization(module, "weight", Halved())


def subclass(model: ImageGPTForCausalImageModeling) -> None:
    weight = model.lm_head.weight
    model.lm_head = Rolled(weight.shape[1], weight.shape[0], bias=False)
    model.lm_head.weight = weight


def replace_forward(model: ImageGPTForCausalImageModeling) -> None:
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: plain(x).roll(1, -1)


@torch.no_grad()
@pytest.mark.parametrize(
    "customize", [hook_each, hook_inputs, parametrize, subclass, replace_forward]
)
def test_what_a_user_puts_into_a_model_is_computed(
    customize: Callable[[ImageGPTForCausalImageModeling], None],
) -> None:
    """Past bug: on CPUs images were those of the model without its hooks."""
    model, start = model_of(), torch.tensor([[16, 3], [16, 7]])
    before = model.generate(start, max_length=12)
    customize(model)
    found = model.generate(start, max_length=12)
    assert found.equal(greedy_of_the_whole_pass(model, start))
    assert not found.equal(before)
    greedy = SamplingConfig(greedy=True)
    seeds = torch.arange(2)
    completed = complete(model, start[:, 1:], n_positions=11, seeds=seeds, sampling=greedy)
    assert completed[:, 0].equal(found[:, 1:])


@torch.inference_mode()
def test_hooks_of_all_modules_see_those_of_the_model() -> None:
    model, seen = model_of(), set()
    handle = register_module_forward_hook(lambda module, inputs, output: seen.add(module))
    try:
        model.generate(torch.tensor([[16, 3]]), max_length=4)
    finally:
        handle.remove()
    assert {*projections(model)} <= seen <= {*model.modules()}


@onednn
def test_hooks_of_the_backward_pass_do_not_matter() -> None:
    model = model_of()
    model.lm_head.register_full_backward_hook(lambda module, inputs, outputs: None)
    assert prepacked(model) is not model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_not_prepacked(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    assert prepacked(model) is model
