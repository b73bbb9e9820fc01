"""The model against transformers' ImageGPT, on equal random weights.

Every weight is drawn anew, biases and gains too: at their initial zeros and ones a wrong bias
or gain would not show. Formulas are compared in float64, where rounding is of the order of 1e-15
and cannot hide a wrong one; float32 results are held to 1e-4, the bound that users of a
checkpoint rely on (sums of a few hundred terms of order 1 round by about 1e-6).
"""

import pytest
import torch
import transformers

from igpt_core import (
    VARIANTS,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTModel,
    SamplingConfig,
    complete,
    random_model,
    token_nll,
)
from igpt_core.decoding import decode_step, prefill

SHAPES = {
    "small": {"vocab_size": 17, "n_positions": 16, "n_embd": 32, "n_layer": 3, "n_head": 4},
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


@pytest.fixture(params=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


def pair(shape, *, dtype=torch.float64, seed=0, **fields):
    """Our causal model and transformers' with the same random weights, in eval mode."""
    ours = ImageGPTForCausalImageModeling(ImageGPTConfig(**shape, **fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            gain = 1.0 if ".ln_" in name else 0.0
            matrix = weight.ndim == 2 and not name.startswith(
                "transformer.w"
            )  # rows of embeddings add
            weight.copy_(gain + (weight.shape[0] ** -0.5 if matrix else 0.5) * drawn)
    theirs = transformers.ImageGPTForCausalImageModeling(
        transformers.ImageGPTConfig(**shape, **fields)
    )
    theirs.load_state_dict(ours.state_dict())  # strict
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def draw_tokens(shape, rows, length, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape["vocab_size"] - 1, (rows, length), generator=generator)


def assert_equal_up_to_rounding(ours, theirs):
    # float64: values of order 1 to 100, a thousand roundings of 1e-16 each
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_names_shapes_and_order_of_weights(shape):
    ours, theirs = pair(shape)
    for mine, other in ((ours, theirs), (ours.transformer, theirs.transformer)):
        assert [(n, tuple(w.shape)) for n, w in mine.state_dict().items()] == [
            (n, tuple(w.shape)) for n, w in other.state_dict().items()
        ]


@pytest.mark.parametrize(("variant", "millions"), [("small", 76), ("medium", 455), ("large", 1362)])
def test_published_sizes_have_the_published_weights(variant, millions):
    config = VARIANTS[variant]
    fields = {name: getattr(config, name) for name in ("n_layer", "n_embd", "n_head")}
    with torch.device("meta"):
        ours = ImageGPTForCausalImageModeling(config).state_dict()
        theirs = transformers.ImageGPTForCausalImageModeling(
            transformers.ImageGPTConfig(**fields)
        ).state_dict()
    assert [(n, w.shape) for n, w in ours.items()] == [(n, w.shape) for n, w in theirs.items()]
    assert sum(weight.numel() for weight in ours.values()) // 1_000_000 == millions


def test_logits(shape):
    ours, theirs = pair(shape, dtype=torch.float32)
    for length in (1, 2, shape["n_positions"]):
        tokens = draw_tokens(shape, 3, length)
        tokens[:, 0] = ours.config.start_token
        with torch.no_grad():
            mine, other = ours(tokens).logits, theirs(tokens).logits
        assert mine.shape == (3, length, shape["vocab_size"] - 1)
        assert other.std() > 0.1  # far above the tolerance
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
        mine, other = ours.double()(tokens).logits, theirs.double()(tokens).logits
        assert_equal_up_to_rounding(mine, other)
        ours.float(), theirs.float()


def test_reordered_attention_is_the_same_function(shape):
    """With reorder_and_upcast_attn transformers computes scores in float32 whatever the dtype."""
    ours, theirs = pair(shape, dtype=torch.float32, reorder_and_upcast_attn=True)
    tokens = draw_tokens(shape, 3, shape["n_positions"])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=0, atol=1e-4)


def test_hidden_states(shape):
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 2, shape["n_positions"])
    mine = ours.transformer(tokens, output_hidden_states=True)
    other = theirs.transformer(tokens, output_hidden_states=True)
    assert len(mine.hidden_states) == shape["n_layer"] + 1
    for one, two in zip(mine.hidden_states, other.hidden_states, strict=True):
        assert_equal_up_to_rounding(one, two)
    assert_equal_up_to_rounding(mine.last_hidden_state, other.last_hidden_state)
    assert ours(tokens, output_hidden_states=True).hidden_states[-1].equal(mine.last_hidden_state)


def test_loss_and_every_gradient(shape):
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 3, shape["n_positions"])
    labels = draw_tokens(shape, 3, shape["n_positions"], seed=2)
    labels[0, 2:5] = -100
    mine, other = ours(tokens, labels=labels).loss, theirs(tokens, labels=labels).loss
    assert_equal_up_to_rounding(mine, other)
    mine.backward()
    other.backward()
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert two.grad.abs().max() > 1e-8, name
        assert_equal_up_to_rounding(one.grad, two.grad)


def test_embeddings_and_positions_given(shape):
    ours, theirs = pair(shape)
    tokens = draw_tokens(shape, 2, shape["n_positions"])
    embeds = torch.randn(2, 5, shape["n_embd"], dtype=torch.float64)
    backwards = torch.arange(shape["n_positions"]).flip(0)[None]
    for arguments in (
        {"inputs_embeds": embeds},
        {"input_ids": tokens, "position_ids": backwards},
        {"input_ids": tokens, "position_ids": torch.stack([backwards[0], backwards[0] // 2])},
    ):
        assert_equal_up_to_rounding(ours(**arguments).logits, theirs(**arguments).logits)


def test_dropout_is_where_transformers_has_it(shape):
    """At probability one what is dropped is exactly zero, so training mode can be compared."""
    tokens = draw_tokens(shape, 2, shape["n_positions"])
    off = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    logits = []
    for name in (None, *off):
        ours, theirs = pair(shape, **{**off, **({name: 1.0} if name else {})})
        mine, other = ours.train()(tokens).logits, theirs.train()(tokens).logits
        assert_equal_up_to_rounding(mine, other)
        logits.append(mine)
    for dropped in logits[1:]:
        assert (dropped - logits[0]).abs().max() > 0.01


def test_tuples_and_what_the_configuration_says():
    ours, theirs = pair(SHAPES["small"])
    tokens = draw_tokens(SHAPES["small"], 2, 4)
    output = ours(tokens, labels=tokens, output_hidden_states=True)
    values = ours(tokens, labels=tokens, output_hidden_states=True, return_dict=False)
    expected = theirs(
        tokens, labels=tokens, output_hidden_states=True, use_cache=False, return_dict=False
    )
    assert len(values) == len(expected) == 3
    for value in (values, output.to_tuple(), output[:]):
        assert_equal_up_to_rounding(value[1], expected[1])
        assert_equal_up_to_rounding(value[2], expected[2])
    assert list(output) == output.keys() == ["loss", "logits", "hidden_states"]
    assert output["logits"] is output.logits is output[1] is dict(output)["logits"]
    with pytest.raises(KeyError):
        ours(tokens)["loss"]
    ours.config.output_hidden_states = True
    ours.config.return_dict = False
    assert [len(part) for part in ours(tokens)] == [2, 4]
    assert ours(tokens, output_hidden_states=False, return_dict=True).hidden_states is None


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
    assert len(other[:, 1:].unique()) > 1  # not one colour for ever
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
                    logits = decode_step(
                        ours,
                        tokens[:, position],
                        torch.tensor([position + 1]),
                        cache,
                        span=n_positions if whole else cache.length + 1,
                    )
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


def test_wrong_arguments_are_refused():
    ours, _ = pair(SHAPES["small"])
    tokens = draw_tokens(SHAPES["small"], 1, 17)
    with pytest.raises(ValueError, match="16 positions, found 17"):
        ours(tokens)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours(tokens[:, :2], inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="activation_function must be quick_gelu"):
        ImageGPTModel(ImageGPTConfig(n_layer=1, activation_function="gelu"))
    with pytest.raises(ValueError, match="tie_word_embeddings must be false"):
        ImageGPTForCausalImageModeling(ImageGPTConfig(n_layer=1, tie_word_embeddings=True))


def test_initial_weights_have_the_spread_of_transformers():
    """Of n draws the spread is known to 1 / sqrt(2 n), relative; 6 of these are allowed."""
    shape = {"vocab_size": 65, "n_positions": 64, "n_embd": 64, "n_layer": 5, "n_head": 4}
    ours = ImageGPTForCausalImageModeling(ImageGPTConfig(**shape))
    theirs = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**shape))
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.ndim == 1:
            assert one.equal(two), name
        else:
            assert one.std().item() == pytest.approx(
                two.std().item(), rel=6 * (1 / one.numel()) ** 0.5
            ), name


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
