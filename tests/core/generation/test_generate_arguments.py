"""Arguments of transformers' generate: honored as there, neutral, or refused by name."""

import threading

import pytest
import torch
import transformers
from torch.nn.utils import parametrizations, prune

from igpt_core import GenerationConfig, ImageGPTConfig, SamplingConfig, complete
from igpt_core.generation.sampling import filter_logits
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.model.generation_config import options_in
from parity import (
    CAUSAL,
    SHAPES,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)

SHAPE = SHAPES["small"]
START = SHAPE["vocab_size"] - 1


@pytest.fixture
def both():
    return pair(SHAPE, CAUSAL)


def started(rows, given, *, seed=1):
    pixels = draw_tokens(SHAPE, rows, given, seed=seed)
    return torch.cat([torch.full((rows, 1), START), pixels], dim=1)


def by_theirs(model, tokens, **options):
    options.setdefault("attention_mask", torch.ones_like(tokens))
    return model.generate(tokens, do_sample=False, cache_implementation="dynamic", **options)


def test_new_tokens_are_counted_from_those_given(both):
    ours, theirs = both
    tokens = started(3, 4)
    found = ours.generate(tokens, max_new_tokens=6)
    assert found.equal(by_theirs(theirs, tokens, max_new_tokens=6))
    assert found.shape == (3, 11)
    assert ours.generate(input_ids=tokens, max_length=11).equal(found)
    for given in ({}, {"inputs": tokens, "input_ids": tokens}):
        with pytest.raises(ValueError, match="give the tokens to begin with once"):
            ours.generate(**given)


def test_padding_before_a_row_is_as_if_it_were_not_there(both):
    """As in transformers, where positions are counted from the first token that is seen."""
    ours, theirs = both
    tokens = started(3, 5)
    mask = torch.ones_like(tokens)
    for row, n in enumerate((0, 3, 1)):
        tokens[row] = torch.cat([tokens.new_full((n,), 7), tokens[row, : 6 - n]])
        mask[row, :n] = 0
    found = ours.generate(tokens, attention_mask=mask, max_length=15)
    assert found.equal(by_theirs(theirs, tokens, attention_mask=mask, max_length=15))
    for row, n in enumerate((0, 3, 1)):
        alone = ours.generate(tokens[row : row + 1, n:], max_length=15 - n)
        assert found[row, n:].equal(alone[0])
    whole = ours.generate(tokens[:1], attention_mask=mask[:1], max_length=15)
    assert whole.equal(ours.generate(tokens[:1], max_length=15))


def test_padded_samples_are_those_of_each_row_alone(both):
    ours, _ = both
    tokens, seeds = started(2, 5), torch.tensor([5, 9])
    tokens[1] = torch.cat([tokens.new_zeros(2), tokens[1, :4]])
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    options = {"do_sample": True, "num_return_sequences": 3}
    found = ours.generate(tokens, attention_mask=mask, seeds=seeds, max_length=16, **options)
    alone = ours.generate(tokens[1:, 2:], seeds=seeds[1:], max_length=14, **options)
    assert found[3:, 2:].equal(alone)
    assert len(found[3:].unique(dim=0)) == 3


@pytest.mark.parametrize("mask", [[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]])
def test_padding_elsewhere_is_refused(both, mask):
    with pytest.raises(ValueError, match="padding before the first token of each row alone"):
        both[0].generate(started(1, 2), attention_mask=torch.tensor([mask]))


def test_a_mask_of_another_shape_is_refused(both):
    with pytest.raises(ValueError, match=r"expected an attention_mask \(1, 3\)"):
        both[0].generate(started(1, 2), attention_mask=torch.ones(1, 2))


def test_scores_are_the_logits_of_each_step(both):
    ours, theirs = both
    tokens = started(2, 3)
    asked = {"return_dict_in_generate": True, "output_scores": True, "max_length": 9}
    found, expected = ours.generate(tokens, **asked), by_theirs(theirs, tokens, **asked)
    assert found.sequences.equal(expected.sequences)
    assert len(found.scores) == len(expected.scores) == 5
    for one, two in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(one.float(), two)  # theirs are of float32 always
    drawn = ours.compute_transition_scores(found.sequences, found.scores)
    theirs_drawn = theirs.compute_transition_scores(
        expected.sequences, expected.scores, normalize_logits=False
    )
    # Theirs steps from row to row by vocab_size, one more than the logits are.
    torch.testing.assert_close(drawn[0].float(), theirs_drawn[0].float())
    logs = ours.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    steps = zip(found.scores, found.sequences[:, 4:].T, strict=True)
    each = [-torch.nn.functional.cross_entropy(s, t, reduction="none") for s, t in steps]
    torch.testing.assert_close(logs, torch.stack(each, dim=1))
    assert ours.generate(tokens, return_dict_in_generate=True).scores is None
    assert found["sequences"] is found[0]
    assert torch.is_tensor(ours.generate(tokens, output_scores=True))


def test_scores_of_samples_are_filtered_as_they_are_drawn(both):
    ours, _ = both
    options = {"temperature": 1.5, "top_k": 4, "top_p": 0.8}
    tokens = started(2, 3)
    found = ours.generate(
        tokens,
        do_sample=True,
        seeds=torch.arange(2),
        num_return_sequences=2,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    prefix = found.sequences[:, :-1]
    logits = ours(prefix, use_cache=False).logits[:, 3:]
    for step, scores in enumerate(found.scores):
        expected = filter_logits(logits[:, step], SamplingConfig(**options))
        torch.testing.assert_close(scores, expected)
        drawn = scores.gather(1, found.sequences[:, 4 + step, None])
        assert drawn.isfinite().all()


@pytest.mark.parametrize("as_object", [False, True])
def test_a_configuration_stands_for_arguments(both, as_object):
    ours, _ = both
    tokens, seeds = started(2, 3), torch.arange(2)
    given = {"do_sample": True, "top_k": 3, "max_new_tokens": 5, "temperature": 0.5}
    config = type("Config", (), {})() if as_object else given
    if as_object:
        vars(config).update(given, transformers_version="5", _from_model_config=True, num_beams=1)
    expected = ours.generate(tokens, seeds=seeds, **given)
    assert ours.generate(tokens, generation_config=config, seeds=seeds).equal(expected)
    other = ours.generate(tokens, generation_config=config, seeds=seeds, top_k=1)
    assert other.equal(ours.generate(tokens, max_new_tokens=5))


@pytest.mark.parametrize(
    "argument",
    [
        {"pad_token_id": 14},
        {"temperature": None},
        {"eos_token_id": None},
        {"use_cache": False},
        {"num_beams": 1},
        {"repetition_penalty": 1.0},
        {"guidance_scale": 1.0},
        {"logits_processor": []},
        {"synced_gpus": True},
    ],
)
def test_arguments_that_ask_for_nothing_change_nothing(both, argument):
    tokens = started(2, 3)
    assert both[0].generate(tokens, **argument).equal(both[0].generate(tokens))


@pytest.mark.parametrize(
    ("argument", "next_move"),
    [
        ({"num_beams": 4}, "next: do_sample=True with top_k or top_p"),
        ({"penalty_alpha": 0.6}, "next: do_sample=True"),
        ({"eos_token_id": 3}, "next: max_length"),
        ({"eos_token_id": 0}, "next: max_length"),
        ({"forced_eos_token_id": 0}, "next: leave it out"),
        ({"max_time": 0.0}, "next: leave it out"),
        ({"guidance_scale": 0}, "next: a forward hook on model.lm_head"),
        ({"repetition_penalty": 1.2}, "next: a forward hook on model.lm_head"),
        ({"logits_processor": [abs]}, "next: a forward hook on model.lm_head"),
        ({"output_hidden_states": True}, r"next: model\(tokens, output_hidden_states=True"),
    ],
)
def test_others_are_refused_by_name(both, argument, next_move):
    (name,) = argument
    with pytest.raises(TypeError, match=f"generate: expected no {name}.*{next_move}"):
        both[0].generate(started(1, 2), **argument)
    with pytest.raises(TypeError, match=f"generate: expected no {name}"):
        both[0].generate(started(1, 2), generation_config=argument)


@pytest.mark.parametrize("name", ["max_length", "max_new_tokens", "num_return_sequences"])
def test_numbers_are_whole(both, name):
    for wrong in (4.0, "4", True):
        with pytest.raises(TypeError, match=f"{name} must be a whole number, found"):
            both[0].generate(started(1, 2), do_sample=True, **{name: wrong})
    found = both[0].generate(started(1, 2), do_sample=True, **{name: torch.tensor(5)})
    assert found.equal(found.long())


def test_names_of_nothing_are_refused(both):
    with pytest.raises(TypeError, match="generate: there is no argument 'max_lenght'"):
        both[0].generate(started(1, 2), max_lenght=5)


def test_a_configuration_may_come_second_or_from_the_folder(both, tmp_path):
    """As transformers writes and takes it."""
    ours, theirs = both
    tokens, seeds = started(2, 3), torch.arange(2)
    options = {"do_sample": True, "top_k": 3, "max_new_tokens": 4}
    expected = ours.generate(tokens, seeds=seeds, **options)
    config = transformers.GenerationConfig(**options)
    assert ours.generate(tokens, config, seeds=seeds).equal(expected)
    theirs.generation_config = config
    theirs.save_pretrained(tmp_path)
    loaded = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.generate(tokens, seeds=seeds).equal(expected)
    assert loaded.generate(tokens, max_new_tokens=2, top_k=1).shape == (2, 6)
    loaded.generation_config.repetition_penalty = 1.9
    with pytest.raises(TypeError, match="expected no repetition_penalty"):
        loaded.generate(tokens)
    del loaded.generation_config.repetition_penalty
    loaded.save_pretrained(tmp_path / "again")
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "again")
    assert options_in(again.generation_config) == options_in(loaded.generation_config)
    with pytest.raises(AttributeError, match="has no option 'top_q'"):
        again.generation_config.top_q  # noqa: B018
    assert not vars(ours.from_pretrained("embedded").generation_config)


def test_arguments_beat_configurations_also_where_they_are_as_by_default(both):
    """As in transformers: what the one that is handed over does not set the model's may."""
    ours, theirs = both
    tokens, seeds = started(2, 3), torch.arange(2)
    own = {"do_sample": True, "temperature": 3.0, "top_k": 2, "max_new_tokens": 4}
    for model in both:
        model.generation_config.update(**own)
    greedy = {"do_sample": False, "temperature": 1.0, "top_k": 50}
    assert ours.generate(tokens, **greedy).equal(theirs.generate(tokens, **greedy))
    assert ours.generate(tokens, seeds=seeds, top_k=None).equal(
        ours.generate(tokens, seeds=seeds, top_k=0)
    )
    config = transformers.GenerationConfig(max_new_tokens=6)
    found = ours.generate(tokens, generation_config=config, seeds=seeds)
    assert found.equal(
        ours.generate(tokens, seeds=seeds, **{**own, "max_new_tokens": 6}),
    )
    ours.generation_config = transformers.GenerationConfig(**own)
    assert ours.generation_config.top_k == GenerationConfig(**own).top_k == 2
    assert type(ours)(ours.config).generation_config.top_k is None


def test_a_length_takes_the_place_of_the_other(both, tmp_path):
    ours, _ = both
    ours.generation_config.update(max_new_tokens=5, temperature=0.1)
    assert ours.generate(started(1, 3), max_length=7).shape == (1, 7)
    assert ours.generate(started(1, 3), generation_config={"max_length": 8}).shape == (1, 8)
    seeds, options = torch.tensor([3]), {"do_sample": True, "seeds": torch.tensor([3])}
    found = ours.generate(started(1, 3), temperature=None, **options)
    assert found.equal(ours.generate(started(1, 3), do_sample=True, seeds=seeds))
    ours.save_pretrained(tmp_path)
    ours.generation_config = None
    assert ours.generate(started(1, 3)).shape == (1, 17)
    ours.save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()


def test_what_modules_do_counts_while_the_model_itself_is_not_training(both):
    """Dropout by itself, and another function of an activation."""
    ours, _ = both
    tokens = started(1, 3)
    before = ours.generate(tokens)
    ours.transformer.h[0].mlp.act.function = torch.nn.functional.relu
    longer = tokens
    for _ in range(5):
        longer = torch.cat([longer, ours(longer).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert ours.generate(tokens, max_new_tokens=5).equal(longer)
    assert before.shape == (1, 17)
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
            module.p = 0.5
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 1}
    first, second = (ours.generate(tokens, **options).scores[0] for _ in range(2))
    assert not first.equal(second)


def test_a_configuration_of_transformers_is_saved(both, tmp_path):
    ours, _ = both
    ours.generation_config = transformers.GenerationConfig(max_new_tokens=3)
    ours.save_pretrained(tmp_path)
    assert type(ours).from_pretrained(tmp_path).generate(started(1, 2)).shape == (1, 6)


def test_padding_is_found_by_its_token(both):
    """As in transformers, where no mask is given."""
    ours, theirs = both
    tokens = started(2, 5).clamp(min=1)
    tokens[1, :3] = 0
    found = ours.generate(tokens, pad_token_id=0, max_length=12)
    expected = theirs.generate(
        tokens,
        pad_token_id=0,
        max_length=12,
        do_sample=False,
        cache_implementation="dynamic",
    )
    assert found.equal(expected)
    tokens[0, 3] = 0  # behind the first it is a color, which transformers would not see
    found = ours.generate(tokens, pad_token_id=0, max_length=12)
    assert found[:1].equal(ours.generate(tokens[:1], max_length=12))


# --- what a model may hold ------------------------------------------------------------------------


def model_of():
    torch.manual_seed(0)
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**SHAPE)).eval()


def test_a_model_may_hold_what_cannot_be_copied():
    """Past bug: the model was copied whole for decoding, its locks too."""
    model, tokens = model_of(), started(2, 3)
    expected = model.generate(tokens)
    model.lock, model.transformer.generator = threading.Lock(), torch.Generator()
    assert model.generate(tokens).equal(expected)
    assert type(model.transformer.h[0]).__name__ == "Block"  # as it was


def test_pruned_and_normalized_weights_are_those_that_count():
    tokens = started(2, 3)
    for change in (
        lambda model: prune.l1_unstructured(model.lm_head, "weight", 0.5),
        lambda model: parametrizations.weight_norm(model.lm_head),
        lambda model: torch.nn.utils.weight_norm(model.lm_head),
    ):
        model = model_of()
        change(model)
        plain = model_of()
        plain.lm_head.weight.data = model.lm_head.weight.detach().clone()
        assert model.generate(tokens).equal(plain.generate(tokens))


def hook_model(model):
    model.register_forward_hook(
        lambda module, inputs, output: type(output)(output, logits=output.logits.flip(-1))
    )


def hook_transformer(model):
    model.transformer.register_forward_pre_hook(lambda module, inputs: inputs)
    model.transformer.register_forward_hook(
        lambda module, inputs, output: type(output)(
            output, last_hidden_state=-output.last_hidden_state
        )
    )


def replace_forward(model):
    forward = model.forward

    def flipped(*inputs, **options):
        output = forward(*inputs, **options)
        output.logits = output.logits.flip(-1)
        return output

    model.forward = flipped


class Reversed(ImageGPTForCausalImageModeling):
    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        output.logits = output.logits.flip(-1)
        return output


def subclass(model):
    model.__class__ = Reversed


@pytest.mark.parametrize(
    "change", [hook_model, hook_transformer, replace_forward, subclass], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_what_is_put_on_the_whole_model_counts(change, n_samples):
    """Past bug: its forward was passed over. Held against calls without a cache."""
    model, tokens = model_of(), started(2, 3)
    plain = model.generate(tokens)
    change(model)
    expected = tokens
    for _ in range(13):
        step = model(expected, use_cache=False).logits[:, -1:].argmax(dim=-1)
        expected = torch.cat([expected, step], dim=1)
    assert model.generate(tokens).equal(expected)
    assert not expected.equal(plain)
    how = {"seeds": torch.arange(2), "n_positions": 16, "n_samples": n_samples}
    greedy = SamplingConfig(greedy=True)
    images = complete(model, tokens[:, 1:], sampling=greedy, **how)
    assert images.equal(expected[:, None, 1:].expand(-1, n_samples, -1))
    with pytest.raises(ValueError, match=r"rows that stand at one position.*next: a window of 1"):
        complete(model, tokens[:, 1:], sampling=greedy, window=4, **how)


@pytest.mark.parametrize("hooked", [False, True])
def test_generation_under_autocast(hooked):
    """Past bug: keys of bfloat16 went into a cache of float32."""
    model, tokens = model_of(), started(2, 3)
    if hooked:  # so that nothing is packed
        model.transformer.h[0].register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.generate(tokens, return_dict_in_generate=True, output_scores=True)
        images = complete(
            model,
            tokens[:, 1:],
            n_positions=16,
            seeds=torch.arange(2),
            sampling=SamplingConfig(greedy=True),
            window=4,
        )
        expected = model(found.sequences[:, :-1], use_cache=False).logits[:, 3:]
    assert found.scores[0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.stack(found.scores, dim=1), expected, rtol=0.1, atol=0.02)
    assert images[:, 0, :3].equal(tokens[:, 1:])
