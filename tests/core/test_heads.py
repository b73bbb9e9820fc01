"""What is computed of a model beside the drop-in calls: decoding, scoring, bfloat16, random models.

References and tolerances: parity.py.
"""

import pytest
import torch

from igpt_core import VARIANTS, ImageGPTConfig, SamplingConfig, complete, random_model, token_nll
from igpt_core.generation.passes import decode_window
from models import prefill
from parity import (
    SHAPES,
    assert_equal_up_to_rounding,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)


@pytest.fixture(params=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


@pytest.mark.parametrize("given", [0, 1, 5])
def test_greedy_tokens(shape, given):
    ours, theirs = pair(shape, dtype=torch.float32)
    n_positions = shape["n_positions"]
    prompt = draw_tokens(shape, 3, given)
    mine = complete(
        ours,
        prompt,
        n_positions=n_positions,
        seeds=torch.arange(3),
        sampling=SamplingConfig(greedy=True),
        n_samples=2,
    )
    start = torch.full((3, 1), ours.config.start_token)
    other = theirs.generate(
        torch.cat([start, prompt], dim=1),
        attention_mask=torch.ones(3, given + 1, dtype=torch.int64),
        max_length=n_positions + 1,
        do_sample=False,
        cache_implementation="dynamic",
    )
    assert len(other[:, 1:].unique()) > 1  # not one color for ever
    assert mine.tolist() == other[:, None, 1:].expand(3, 2, -1).tolist()


def test_cached_steps_equal_the_full_forward(shape):
    """Every step, with as many positions in view as are filled and with the whole cache in view."""
    ours, _ = pair(shape)
    n_positions = shape["n_positions"]
    tokens = draw_tokens(shape, 3, n_positions)
    start = torch.full((3, 1), ours.config.start_token)
    with torch.inference_mode():
        expected = ours(torch.cat([start, tokens[:, :-1]], dim=1)).logits
        for whole in (False, True):
            logits, cache = prefill(ours, tokens[:, :2], n_samples=1, capacity=n_positions)
            for position in range(2, n_positions):
                assert_equal_up_to_rounding(logits, expected[:, position])
                if position + 1 < n_positions:
                    logits = decode_window(
                        ours,
                        tokens[:, position, None],
                        torch.tensor([position + 1]),
                        cache,
                        span=n_positions if whole else cache.length + 1,
                    )[:, 0]
                    cache.length += 1


def test_nll_is_the_loss_of_transformers(shape):
    ours, theirs = pair(shape, dtype=torch.float32)
    tokens = draw_tokens(shape, 2, shape["n_positions"])
    start = torch.full((2, 1), ours.config.start_token)
    # labels are shifted there: the input's last pixel has no place, its logits are not looked at
    inputs = torch.cat([start, tokens], dim=1)[:, : shape["n_positions"]]
    with torch.no_grad():
        mine = token_nll(ours, tokens)[:, :-1].mean()
        labels = inputs.clone()
        labels[:, 0] = -100
        other = theirs(inputs, labels=labels).loss
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)  # float32, nats of order 3


def test_bfloat16_is_as_close_to_float32_as_the_reference(shape):
    ours, theirs = pair(shape, dtype=torch.bfloat16)
    tokens = draw_tokens(shape, 4, shape["n_positions"])
    with torch.no_grad():
        exact = pair(shape)[0]
        exact.load_state_dict({n: w.double() for n, w in ours.state_dict().items()})
        expected = exact(tokens).logits
        mine, other = ours(tokens).logits, theirs(tokens).logits
    assert mine.dtype == torch.bfloat16
    error = (mine.double() - expected).square().mean().sqrt()
    reference = (other.double() - expected).square().mean().sqrt()
    # The same roundings at other places: 1.25 allows for their chance. A float32 result is
    # no excuse for a large error, so there is a bound on its own: 8 bits, a dozen roundings deep.
    assert error < 1.25 * reference
    assert error < 0.05 * expected.std()


def test_random_models_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", ImageGPTConfig(**SHAPES["small"]))
    before = torch.get_rng_state()
    one, again, other = (random_model("tiny", seed=seed) for seed in (3, 3, 4))
    assert torch.get_rng_state().equal(before)
    assert not one.training
    weights = zip(*(m.state_dict().values() for m in (one, again, other)), strict=True)
    assert all(a.equal(b) for a, b, _ in weights)
    assert not one.lm_head.weight.equal(other.lm_head.weight)
    one.config.n_layer = 7
    assert VARIANTS["tiny"].n_layer == 3
    with pytest.raises(ValueError, match=r"one of \['small', 'medium', 'large', 'tiny'\]"):
        random_model("huge", seed=0)
