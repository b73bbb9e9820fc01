"""generate: greedy tokens against transformers, samples against the documented promises and ours.

Tolerances: parity.py. Samples are compared in float64, where the rounding of other batch shapes
(1e-15) moves a token with odds of about 1e-12 a draw.
"""

import math

import pytest
import torch

from igpt_core import ImageGPTConfig, SamplingConfig, complete
from igpt_core.heads import ImageGPTForCausalImageModeling
from parity import (
    CAUSAL,
    SHAPES,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)

SHAPE = SHAPES["small"]


@pytest.fixture(scope="module")
def model():
    return pair(SHAPE, CAUSAL)[0]


def started(shape, rows, given, *, seed=1):
    """The start token and pixels after it."""
    pixels = draw_tokens(shape, rows, given, seed=seed)
    return torch.cat([torch.full((rows, 1), shape["vocab_size"] - 1), pixels], dim=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("given", [1, 2, 6])
def test_greedy_tokens(shape, start, given):
    shape = SHAPES[shape]
    ours, theirs = pair(shape, dtype=torch.float32)
    tokens = started(shape, 3, given - 1) if start else draw_tokens(shape, 3, given)
    for max_length in (given + 1, shape["n_positions"], shape["n_positions"] + 1):
        found = ours.generate(tokens, max_length=max_length)
        expected = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_length=max_length,
            do_sample=False,
            cache_implementation="dynamic",
        )
        assert found.tolist() == expected.tolist()
    assert len(found[:, given:].unique()) > 1  # not one color for ever


def test_samples_are_those_of_complete(model):
    """So all that is shown of the one's samples holds for the other's."""
    tokens = started(SHAPE, 3, 4)
    seeds = torch.tensor([7, -1, 2**62])
    for options in ({"top_k": 5}, {"top_p": 0.7, "temperature": 1.3}, {}):
        found = model.generate(
            tokens,
            do_sample=True,
            num_return_sequences=2,
            seeds=seeds,
            **{"top_k": None, **options},
        )
        expected = complete(
            model,
            tokens[:, 1:],
            n_positions=16,
            seeds=seeds,
            sampling=SamplingConfig(**options),
            n_samples=2,
        )
        assert found.shape == (6, 17)
        assert found[:, 0].unique().tolist() == [16]
        assert found[:, 1:].equal(expected.flatten(0, 1))


def test_each_row_is_drawn_by_itself(model):
    tokens, seeds = started(SHAPE, 5, 2), torch.arange(5)
    together = model.generate(tokens, do_sample=True, num_return_sequences=3, seeds=seeds)
    assert len(together.unique(dim=0)) == 15
    for row in range(5):
        alone = model.generate(tokens[row : row + 1], do_sample=True, seeds=seeds[row : row + 1])
        assert alone[0].equal(together[3 * row])
    backwards = model.generate(tokens.flip(0), do_sample=True, seeds=seeds.flip(0))
    assert backwards.flip(0).equal(together[::3])


def test_seeds_come_from_the_global_generator(model):
    tokens = started(SHAPE, 2, 0)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(model.generate(tokens, do_sample=True))
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])
    assert not results[0].equal(model.generate(tokens, do_sample=True))
    assert not results[0][0].equal(results[0][1])  # rows of one prompt
    before = torch.get_rng_state()
    model.generate(tokens)
    model.generate(tokens, do_sample=True, seeds=torch.arange(2))
    assert torch.get_rng_state().equal(before)


def test_first_tokens_have_the_probabilities_of_the_logits(model):
    """20,000 draws: each share is within 5 of its deviations, odds of 1e-5 for all 16 colors."""
    draws = 20_000
    tokens = started(SHAPE, 1, 3)
    torch.manual_seed(0)
    found = model.generate(
        tokens, max_length=5, do_sample=True, top_k=0, num_return_sequences=draws
    )
    with torch.no_grad():
        probabilities = model(tokens).logits[0, -1].softmax(dim=-1)
    shares = found[:, -1].bincount(minlength=16) / draws
    for share, p in zip(shares.tolist(), probabilities.tolist(), strict=True):
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / draws)


def test_defaults_are_a_whole_image_and_the_top_k_of_transformers():
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=300, n_positions=9, n_embd=16, n_layer=1, n_head=2)
    model = ImageGPTForCausalImageModeling(config).double().eval()
    tokens, seeds = torch.full((2, 1), 299), torch.arange(2)

    def sample(**options):
        return model.generate(tokens, do_sample=True, seeds=seeds, **options)

    assert model.generate(tokens).shape == sample().shape == (2, 10)
    assert sample().equal(sample(top_k=50, temperature=1.0, top_p=1.0, max_length=10))
    assert not sample().equal(sample(top_k=0))
    assert sample(top_k=0).equal(sample(top_k=None))
    assert sample(top_k=1).equal(model.generate(tokens))


def test_the_start_token_is_never_drawn():
    """Tied weights give it a logit, here by far the largest."""
    ours, _ = pair(SHAPE, tie_word_embeddings=True)
    with torch.no_grad():
        hidden = ours.transformer(started(SHAPE, 1, 0)).last_hidden_state[0, 0]
        ours.lm_head.weight[16] += 100 * hidden
        assert ours(started(SHAPE, 1, 0)).logits.argmax() == 16
    found = ours.generate(started(SHAPE, 8, 0), do_sample=True)
    assert found[:, 1:].max() < 16


def test_results_may_enter_a_training_step(model):
    tokens = model.generate(started(SHAPE, 2, 0), do_sample=True)[:, :16]
    model(tokens, labels=tokens).loss.backward()
    assert model.transformer.wte.weight.grad is not None


REFUSED = [
    ((1, 0), {}, "1 or more tokens"),
    ((1, 5), {"max_length": 5}, "found 5 and max_length 5"),
    ((1, 5), {"max_length": 18}, r"n_positions \+ 1 = 17, found 5 and max_length 18"),
    ((1, 17), {}, "found 17 and max_length 17"),
    ((1, 1), {"num_return_sequences": 2}, "num_return_sequences must be 1, or more with do_sample"),
    ((1, 1), {"num_return_sequences": 0, "do_sample": True}, "num_return_sequences must be"),
    ((1, 1), {"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
    ((2, 1), {"do_sample": True, "seeds": torch.tensor([1])}, r"one seed per row, \(2,\)"),
]


@pytest.mark.parametrize(("size", "options", "message"), REFUSED)
def test_wrong_options_are_refused(model, size, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(torch.zeros(size, dtype=torch.int64), **options)


def test_options_of_transformers_that_are_not_here(model):
    with pytest.raises(TypeError, match="generate: expected no num_beams"):
        model.generate(torch.zeros(1, 1, dtype=torch.int64), num_beams=3)
