"""Decoding against the uncached forward pass, and against itself in other company.

A row's image may depend on the number of rows computed together, since matrix products round
differently with it, but not on what the other rows are or on its place among them. That is tested
bit for bit.
"""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.errors import NonFiniteError
from igpt_core.generation import decoding, passes, places
from igpt_core.generation.completion import complete
from igpt_core.generation.decoding import decode, new_cache
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import decode_window
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.generation.speculation import Windows
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.model import layers
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache
from models import make_model, prefill

SAMPLING = SamplingConfig(top_k=20)
N_POSITIONS = 150  # more than two span units

# Largest difference of two ways to the same logits, relative to the largest logit. float32: sums in
# another order, 2^-24 an operation. bfloat16: 2^-9 a rounding, some ten of them in a row.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2}


def model_of(
    *, n_head: int = 2, head_size: int = 16, dtype: torch.dtype = torch.float32, std: float = 0.15
) -> ImageGPTForCausalImageModeling:
    config = ImageGPTConfig(
        vocab_size=33,
        n_positions=N_POSITIONS,
        n_embd=n_head * head_size,
        n_layer=2,
        n_head=n_head,
    )
    return make_model(config, std=std).to(dtype)


def prompts(rows: int, n_given: int, *, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 32, (rows, n_given), generator=torch.Generator().manual_seed(seed + 1000 * n_given)
    )


def seeds(rows: int) -> Tensor:
    return torch.arange(rows) * 7919 + 5


def uncached(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    """Logits (B, T, V) of each of the tokens, all at once."""
    start = tokens.new_full((tokens.shape[0], 1), model.config.start_token)
    return model(torch.cat([start, tokens[:, :-1]], dim=1)).logits


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= TOLERANCES[found.dtype] * expected.abs().max()


@pytest.fixture
def steps_seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of each `decode_window` that `decode` makes from here on."""
    seen: list[Tensor] = []

    def recorded(*arguments: object, **options: object) -> Tensor:
        found = decode_window(*arguments, **options)
        seen.append(found[:, 0])
        return found

    monkeypatch.setattr(passes, "decode_window", recorded)
    return seen


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_given", [0, 1, 63, 64, 100])
def test_each_step_gives_the_logits_of_the_uncached_pass(
    dtype: torch.dtype, n_given: int, steps_seen: list[Tensor]
) -> None:
    model = model_of(dtype=dtype)
    prompt = prompts(3, n_given)
    images = complete(
        model, prompt, n_positions=N_POSITIONS, seeds=seeds(3), sampling=SAMPLING
    ).squeeze(1)
    assert torch.equal(images[:, :n_given], prompt)
    assert len(steps_seen) == N_POSITIONS - n_given - 1
    expected = uncached(model, images)[:, n_given + 1 :]
    assert_near(torch.stack(steps_seen, dim=1), expected)


@torch.inference_mode()
@pytest.mark.parametrize("n_given", [0, 1, 40, N_POSITIONS - 2, N_POSITIONS - 1])
def test_a_token_has_the_highest_sum_of_uncached_logit_and_noise(n_given: int) -> None:
    model = model_of()
    images = complete(
        model,
        prompts(4, n_given),
        n_positions=N_POSITIONS,
        seeds=seeds(4),
        sampling=SamplingConfig(),
        n_samples=2,
    )
    assert images.shape == (4, 2, N_POSITIONS)
    logits = uncached(model, images.flatten(0, 1)).view(4, 2, N_POSITIONS, -1)
    noise = GumbelNoise(seeds(4), 2).at(torch.arange(N_POSITIONS), logits.shape[-1])
    sums = logits + noise.view_as(logits)
    slack = 1e-4  # ten times what the two ways to the logits differ by
    drawn = sums.gather(-1, images[..., None]).squeeze(-1)
    assert (drawn >= sums.amax(-1) - slack)[:, :, n_given:].all()


@torch.inference_mode()
def test_greedy_tokens_are_the_most_probable_of_the_uncached_logits() -> None:
    model = model_of()
    greedy = SamplingConfig(greedy=True)
    images = complete(
        model, prompts(4, 7), n_positions=N_POSITIONS, seeds=seeds(4), sampling=greedy
    ).squeeze(1)
    logits = uncached(model, images)
    drawn = logits.gather(-1, images[..., None]).squeeze(-1)
    assert (drawn >= logits.amax(-1) - 1e-4)[:, 7:].all()
    assert images[:, 7:].unique().numel() > 5


def test_a_whole_prompt_comes_back_as_it_is() -> None:
    prompt = prompts(3, N_POSITIONS)
    images = complete(
        model_of(),
        prompt,
        n_positions=N_POSITIONS,
        seeds=seeds(3),
        sampling=SAMPLING,
        n_samples=2,
    )
    assert torch.equal(images, prompt[:, None].expand(3, 2, N_POSITIONS))


def test_images_may_be_smaller_than_the_model_allows() -> None:
    images = complete(model_of(), prompts(2, 5), n_positions=9, seeds=seeds(2), sampling=SAMPLING)
    longer = complete(model_of(), prompts(2, 5), n_positions=12, seeds=seeds(2), sampling=SAMPLING)
    assert torch.equal(images, longer[:, :, :9])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("n_head", "head_size"), [(2, 16), (2, 96), (3, 64)])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 6, 7, 8, 12, 16, 24, 32])
def test_neither_neighbors_nor_its_place_change_a_row(
    rows: int, n_head: int, head_size: int, dtype: torch.dtype, steps_seen: list[Tensor]
) -> None:
    model = model_of(n_head=n_head, head_size=head_size, dtype=dtype)
    guest, n_given, n_pixels = prompts(1, 9, seed=1), 9, 20
    guest_seed = torch.tensor([77])
    outcomes = []
    for place in sorted({0, rows // 2, rows - 1}):
        prompt, row_seeds = prompts(rows, n_given, seed=place), seeds(rows) + place
        prompt[place], row_seeds[place] = guest[0], guest_seed[0]
        steps_seen.clear()
        images = complete(model, prompt, n_positions=n_pixels, seeds=row_seeds, sampling=SAMPLING)
        outcomes.append((images[place], torch.stack(steps_seen)[:, place]))
    for image, logits in outcomes[1:]:
        assert torch.equal(image, outcomes[0][0])
        assert torch.equal(logits, outcomes[0][1])  # bit for bit


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equal_rows_with_equal_seeds_are_equal_at_every_place(
    dtype: torch.dtype, steps_seen: list[Tensor]
) -> None:
    rows = 24
    model = model_of(head_size=96, dtype=dtype)
    images = complete(
        model,
        prompts(1, 3).expand(rows, 3),
        n_positions=100,
        seeds=torch.zeros(rows, dtype=torch.int64),
        sampling=SAMPLING,
    )
    assert (images == images[:1]).all()
    for logits in steps_seen:
        assert (logits == logits[:1]).all()


@pytest.mark.parametrize("n_given", [0, 17, 100])
def test_a_sample_does_not_change_with_the_number_of_samples(n_given: int) -> None:
    # Other numbers of rows round differently; the odds that it changes one of 4000 draws are about
    # 1e-2 over random weights; these are fixed.
    model = model_of()
    few, many = (
        complete(
            model,
            prompts(4, n_given),
            n_positions=N_POSITIONS,
            seeds=seeds(4),
            sampling=SAMPLING,
            n_samples=n_samples,
        )
        for n_samples in (2, 5)
    )
    assert torch.equal(few, many[:, :2])
    assert many.flatten(0, 1).unique(dim=0).shape[0] == 20  # and samples differ


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("window", [1, 4, 16])
def test_a_prompt_that_samples_share_gives_the_bits_of_a_copy_for_each(
    dtype: torch.dtype, window: int
) -> None:
    model = prepacked(model_of(dtype=dtype))
    _, shared = prefill(model, prompts(2, 100), n_samples=3, capacity=150, window=window)
    copies = new_cache(model, 6, capacity=shared.capacity, window=window)
    copies.put(shared, range(6))
    copies.length = shared.length
    assert (shared.n_shared, copies.n_shared) == (64 if shared.by_channel else 0, 0)
    for step in range(2):
        positions = torch.tensor([101, 105, 110, 101, 120, 119])[:, None] + torch.arange(window)
        tokens = prompts(6, window, seed=step)
        found, expected = (
            decode_window(model, tokens, positions + step, cache, span=192)
            for cache in (shared, copies)
        )
        assert torch.equal(found, expected)


@torch.no_grad()
def test_a_model_goes_on_from_a_cache_that_samples_share() -> None:
    """One position or several, with attention weights, and beyond its capacity."""
    model, prompt = model_of(), prompts(2, 101)
    whole = prompt.repeat_interleave(3, dim=0)
    expected = model(whole, output_attentions=True)
    for n_new in (1, 3, 20):
        for asked in ({}, {"output_attentions": True}):
            past = model(prompt[:, :-n_new], use_cache=True).past_key_values
            shared = past.repeat(3, capacity=past.length, shares=True)
            found = model(whole[:, -n_new:], past_key_values=shared, **asked)
            assert_near(found.logits, expected.logits[:, -n_new:])
            for mine, theirs in zip(
                found.attentions or (), expected.attentions, strict=bool(asked)
            ):
                assert_near(mine, theirs[:, :, -n_new:])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_given", [0, 30])
def test_a_shared_prefill_equals_one_for_each_sample(dtype: torch.dtype, n_given: int) -> None:
    model, prompt = model_of(dtype=dtype), prompts(4, n_given)
    logits, cache = prefill(model, prompt, n_samples=3, capacity=n_given + 20)
    repeated = prompt.repeat_interleave(3, dim=0)
    expected_logits, expected = prefill(model, repeated, n_samples=1, capacity=n_given + 20)
    assert cache.length == expected.length == n_given + 1
    assert_near(logits, expected_logits)
    pairs = zip(cache.keys + cache.values, expected.keys + expected.values, strict=True)
    for found, wanted in pairs:
        assert found.shape == wanted.shape
        assert_near(found[:, :, : cache.length], wanted[:, :, : cache.length])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_step_of_fixed_shape_gives_the_logits_of_the_exact_one(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    prompt = prompts(4, 20)
    tokens = prompts(4, 12, seed=5)
    logits = {}
    for span, replayed in product((None, 33, 64, 90), (False, True)):
        _, cache = prefill(model, prompt, n_samples=1, capacity=90)
        steps = []
        for i in range(12):
            position = torch.tensor([21 + i]) if replayed else None
            wide = cache.length + 1 if span is None else span
            fed = tokens[:, i, None]
            steps.append(decode_window(model, fed, position, cache, span=wide)[:, 0])
            cache.length += 1
        logits[span, replayed] = torch.stack(steps)
    expected = uncached(model, torch.cat([prompt, tokens, tokens[:, :1]], dim=1))[:, 21:]
    assert_near(logits[None, False], expected.transpose(0, 1))
    for (span, _), found in logits.items():
        assert_near(found, logits[None, False])
        assert torch.equal(found, logits[span, False])


@torch.inference_mode()
def test_a_step_may_be_repeated_for_any_position_below_its_span() -> None:
    # What a replayed CUDA graph does: the tensors change, the host's numbers do not.
    model = model_of()
    prompt, tokens = prompts(2, 3), prompts(2, 6, seed=5)
    _, cache = prefill(model, prompt, n_samples=1, capacity=16)
    for i in range(6):
        position = torch.tensor([4 + i])
        logits = decode_window(model, tokens[:, i, None], position, cache, span=16)[:, 0]
    assert cache.length == 4
    expected = uncached(model, torch.cat([prompt, tokens, tokens[:, :1]], dim=1))[:, -1]
    assert_near(logits, expected)


def test_decoding_gives_attention_keys_and_values_without_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With gaps it would copy the whole cache at each step.
    gaps = []

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        if q.shape[2] == 1:
            gaps.extend(not part.is_contiguous() for part in (k.transpose(2, 3), v))
        return attend(q, k, v, **options)

    attend = layers.attend
    monkeypatch.setattr(layers, "attend", watched)
    complete(model_of(), prompts(2, 2), n_positions=140, seeds=seeds(2), sampling=SAMPLING)
    assert len(gaps) == 137 * 2 * 2
    assert not any(gaps)


@torch.inference_mode()
def test_decode_goes_on_from_a_cache_that_was_filled_before() -> None:
    model = prepacked(model_of())

    def decoded(image: Tensor, n_known: int, logits: Tensor, cache: KVCache) -> Tensor:
        """All of an image, of which so many pixels are known."""
        tokens = pad(image, (1, 0), value=model.config.start_token)
        known = torch.arange(tokens.shape[1]).expand_as(tokens) <= n_known
        how = {"size": 1, "sampling": SAMPLING, "n_colors": model.config.n_colors}
        windows = Windows(*tokens.shape, **how)
        noise = GumbelNoise(seeds(3), 1)
        windows.begin(range(3), tokens, known, [n_known + 1] * 3, noise, logits)
        decode(model, cache, windows)
        return windows.tokens

    image = torch.zeros(3, 90, dtype=torch.int64)
    image[:, :4] = prompts(3, 4)
    logits, cache = prefill(model, image[:, :4], n_samples=1, capacity=90)
    at_once = decoded(image, 4, logits, cache)
    logits, cache = prefill(model, image[:, :4], n_samples=1, capacity=90)
    first = decoded(image[:, :54], 4, logits, cache)
    image[:, :54] = first[:, 1:]
    cache.length = 54
    logits = decode_window(model, first[:, -1:], None, cache, span=55)[:, 0]
    cache.length = 55
    assert torch.equal(decoded(image, 54, logits, cache), at_once)


def test_the_cache_is_as_large_as_the_images_need(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    new_cache = places.new_cache

    def watched(*arguments: Any, **options: Any) -> KVCache:
        made.append(new_cache(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(places, "new_cache", watched)
    complete(model_of(), prompts(2, 2), n_positions=70, seeds=seeds(2), sampling=SAMPLING)
    assert [(cache.capacity, cache.length) for cache in made] == [(128, 70)]


@pytest.mark.parametrize(
    ("rows", "n_given", "n_positions", "n_seeds", "n_samples", "complaint"),
    [
        (2, 9, 8, 2, 1, "150 positions, found a prompt of 9 and n_positions 8"),
        (2, 0, 151, 2, 1, "150 positions, found a prompt of 0 and n_positions 151"),
        (2, 3, 8, 3, 1, r"one seed per row, \(2,\), found \(3,\)"),
        (2, 3, 8, 2, 0, "n_samples must be 1 or more, found 0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(
    rows: int, n_given: int, n_positions: int, n_seeds: int, n_samples: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        complete(
            model_of(),
            prompts(rows, n_given),
            n_positions=n_positions,
            seeds=seeds(n_seeds),
            sampling=SAMPLING,
            n_samples=n_samples,
        )


def overflowing(dtype: torch.dtype) -> ImageGPTForCausalImageModeling:
    """Its logits are around 1e6: more than float16 holds, 65504, and nothing for the others."""
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight *= 1e6
    return model.to(dtype)


@pytest.mark.parametrize("n_given", [0, 100, N_POSITIONS - 1])
def test_a_model_that_overflows_is_refused_and_its_remedies_work(n_given: int) -> None:
    """Past bug: NaN was drawn as color 0."""

    def draw(dtype: torch.dtype) -> Tensor:
        return complete(
            overflowing(dtype),
            prompts(2, n_given),
            n_positions=N_POSITIONS,
            seeds=seeds(2),
            sampling=SAMPLING,
        )

    with pytest.raises(NonFiniteError) as refused:
        draw(torch.float16)
    assert str(refused.value) == (
        "expected finite logits, found NaN or infinite ones in float16; next: dtype bfloat16 or "
        "float32"
    )
    for dtype in (torch.bfloat16, torch.float32):
        assert draw(dtype).max() > 0


@pytest.mark.parametrize("do_sample", [True, False])
def test_generate_refuses_it_too(do_sample: bool) -> None:
    with pytest.raises(NonFiniteError, match="in float16; next: dtype bfloat16 or float32"):
        overflowing(torch.float16).generate(prompts(2, 5), do_sample=do_sample)


@pytest.mark.parametrize("step", [0, 7])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_logit_of_one_step_is_enough(
    value: float, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_logits, steps = decoding.next_logits, []

    def spoiled(*arguments: object) -> Tensor:
        logits = next_logits(*arguments)
        if len(steps) == step:
            logits[1, 0, 5] = value
        steps.append(None)
        return logits

    for module in (decoding, passes):
        monkeypatch.setattr(module, "next_logits", spoiled)
    with pytest.raises(NonFiniteError, match="in float32; next: a model with sound weights"):
        complete(model_of(), prompts(3, 5), n_positions=20, seeds=seeds(3), sampling=SAMPLING)


def test_colors_that_a_model_excludes_are_not_drawn() -> None:
    """A logit of -inf is a probability of zero."""
    model = model_of()
    allowed = torch.full((32,), -torch.inf)
    allowed[[3, 8, 20]] = 0.0
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + allowed)
    images = complete(model, prompts(3, 0), n_positions=50, seeds=seeds(3), sampling=SAMPLING)
    assert set(images.unique().tolist()) <= {3, 8, 20}
