"""Noise against Philox's published vectors; draws against exact probabilities and transformers."""

import hashlib
import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from igpt_core.generation.noise import GumbelNoise, _gumbel, philox
from igpt_core.generation.sampling import (
    SamplingConfig,
    filter_logits,
    row_seed,
    sample_tokens,
)

# Random123's kat_vectors, philox4x32 10: the counter's four words and the key's two, the result.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000 00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


# Of `row_seed(7, "photos/cat.jpg")`.
FROZEN = ["0x1.9f65440000000p+0", "0x1.7250920000000p+1", "-0x1.12f09a0000000p+0"]
FROZEN_SHA256 = "1b88faa4970b0e47fcb18ef5a47f77311fa593a54ce1bf13498cee60d5f9cb32"


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox_of_integers(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's own integers, which hold any product."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (right >> 32) ^ c[1] ^ k[0],
            right % 2**32,
            (left >> 32) ^ c[3] ^ k[1],
            left % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("inputs", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(inputs: str, result: str) -> None:
    counter, key = words(inputs)[:4], words(inputs)[4:]
    assert philox_of_integers(counter, key) == words(result)
    found = philox(torch.tensor(counter).unbind(0), torch.tensor(key).unbind(0))
    assert [word.item() for word in found] == words(result)


def test_philox_equals_integer_arithmetic_on_random_and_extreme_words() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 2**32, (500, 6), generator=generator)
    table[:4] = torch.tensor([0, 2**32 - 1, 2**16 - 1, 2**31])[:, None]
    found = philox(tuple(table[:, :4].unbind(1)), tuple(table[:, 4:].unbind(1)))
    expected = [philox_of_integers(row[:4], row[4:]) for row in table.tolist()]
    assert torch.stack(found, dim=1).tolist() == expected


def test_row_seeds_never_change() -> None:
    # Images already made can only be made again while these numbers hold. The first is half of
    # what coreutils says to printf '0\\0' | b2sum -l 64, its bytes read backwards.
    assert row_seed(0, "") == 0x9E38E4B70CC4BDD1 // 2
    assert row_seed(7, "photos/cat.jpg") == 7230520828346438555
    assert row_seed(-1, "é#3") == 8862830798809817760


def test_row_seeds_differ_with_run_and_row_and_fit_int64() -> None:
    # 10,000 random 63-bit numbers collide with odds of about 5e-12.
    seeds = {row_seed(run, f"{row}") for run in range(100) for row in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def uniform_of_integers(seed: int, sample: int, position: int, color: int) -> float:
    """The uniform number of a color, in Python's own integers and floats."""
    key = [seed % 2**32, (seed >> 32) % 2**32]
    first, second, *_ = philox_of_integers([position, sample, 0, 0], key)
    bits = first ^ (color * 0x9E3779B9 % 2**32)
    bits ^= bits >> 16
    bits = (bits * 0x85EBCA6B + second) % 2**32
    bits ^= bits >> 13
    bits = bits * 0xC2B2AE35 % 2**32
    bits ^= bits >> 16
    distance = (bits % 2**31 + 0.5) / 2**32
    return 1 - distance if bits >> 31 else distance


def gumbel_of(uniform: float) -> float:
    return -math.log(-math.log(uniform))


def test_noise_is_that_of_row_seed_sample_position_and_color() -> None:
    seeds = [0, 5, 2**40 + 3, 2**63 - 1, -1]
    positions = range(1000, 1024, 7)
    noise = GumbelNoise(torch.tensor(seeds), 3).at(torch.tensor(positions), 5)
    assert (noise.dtype, noise.shape) == (torch.float32, (15, len(positions), 5))
    for (b, seed), k, (i, t), c in itertools.product(
        enumerate(seeds), range(3), enumerate(positions), range(5)
    ):
        expected = gumbel_of(uniform_of_integers(seed, k, t, c))
        assert noise[3 * b + k, i, c].item() == pytest.approx(expected, abs=3e-6)


def test_noise_never_changes() -> None:
    """Images already made can only be made again while these numbers hold, to the last bit, on
    every processor."""
    noise = GumbelNoise(torch.tensor([row_seed(7, "photos/cat.jpg")]), 2)
    found = noise.at(torch.tensor([0, 1023]), 512)
    assert [x.item().hex() for x in (found[0, 0, 0], found[0, 1, 511], found[1, 0, 7])] == FROZEN
    everything = noise.at(torch.arange(64), 512).numpy()
    assert hashlib.sha256(everything.astype("<f4").tobytes()).hexdigest() == FROZEN_SHA256


def test_each_gumbel_number_is_that_of_its_uniform_number() -> None:
    """In each octave of the distance from 0 and from 1, at its ends and between."""
    octaves = [1 << exponent for exponent in range(31)]
    distances = {0, *(o + d for o in octaves for d in (-1, 0, 1, o // 3, o // 2)), 2**31 - 1}
    distances = sorted(d for d in distances if 0 <= d < 2**31)
    near_0 = _gumbel(torch.tensor(distances, dtype=torch.int32)).tolist()
    near_1 = _gumbel(torch.tensor([d - 2**31 for d in distances], dtype=torch.int32)).tolist()
    for distance, low, high in zip(distances, near_0, near_1, strict=True):
        u = (distance + 0.5) / 2**32
        assert low == pytest.approx(-math.log(-math.log(u)), abs=3e-6)
        assert high == pytest.approx(-math.log(-math.log1p(-u)), abs=3e-6)


def test_noise_knows_nothing_of_neighbors_samples_or_range() -> None:
    seeds = torch.tensor([row_seed(0, name) for name in "abcd"])
    noise = GumbelNoise(seeds, 5).at(torch.arange(100), 9).view(4, 5, 100, 9)
    few = GumbelNoise(seeds[2:3], 2).at(torch.arange(40, 60), 7)
    assert torch.equal(few, noise[2, :2, 40:60, :7])
    turned = GumbelNoise(seeds.flip(0), 5).at(torch.arange(100), 9)
    assert torch.equal(turned.view_as(noise), noise.flip(0))
    own = torch.stack([torch.arange(i, i + 3) for i in range(20)])
    each = noise.flatten(0, 1).gather(1, own[..., None].expand(-1, -1, 9))
    assert torch.equal(GumbelNoise(seeds, 5).at(own, 9), each)


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("name", INTEGERS)
def test_seeds_of_any_integer_dtype_are_the_numbers_that_they_hold(name: str) -> None:
    """Past bug: int32 and int16 put all noise below zero, uint8 gave other noise than int64."""
    dtype = getattr(torch, name)
    seeds = [torch.iinfo(dtype).min, 0, 1, 77, torch.iinfo(dtype).max]
    noise = GumbelNoise(torch.tensor(seeds, dtype=dtype), 2).at(torch.arange(3, 6), 4)
    for (b, seed), k, (i, t) in itertools.product(enumerate(seeds), range(2), enumerate((3, 4, 5))):
        expected = gumbel_of(uniform_of_integers(seed, k, t, 1))
        assert noise[2 * b + k, i, 1].item() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_seeds_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"seeds of an integer dtype, found {dtype}; next: "):
        GumbelNoise(torch.ones(2, dtype=dtype), 1)


def surprise_limit(n_bounds: int, odds: float = 1e-9) -> float:
    """The n * KL(found || expected) that at least one of n_bounds frequencies passes with at most
    these odds: Chernoff's bound, P(n KL(found || p) >= x) <= 2 exp(-x), holds for any n and p."""
    return math.log(2 * n_bounds / odds)


def surprise(found: int, n: int, p: float) -> float:
    """n * KL between the found and the expected share of a binomial count."""
    total = 0.0
    for share, expected in ((found / n, p), (1 - found / n, 1 - p)):
        if share > 0:
            total += math.inf if expected <= 0 else share * math.log(share / expected)
    return n * total


def test_noise_is_gumbel_along_each_axis_and_at_each_bit() -> None:
    # Odds of a false alarm over random seeds: 1e-9 for the whole test.
    noise = GumbelNoise(torch.arange(32), 16).at(torch.arange(50), 32).view(32, 16, 50, 32)
    uniform = (-noise.double().neg().exp()).exp()
    n = uniform.numel()
    limit = surprise_limit(256 + 20 + 4 * 16 + 16)
    for count in torch.histc(uniform.flatten(), bins=256, min=0, max=1).tolist():
        assert surprise(int(count), n, 1 / 256) < limit
    bits = (uniform * 2**20).long().flatten()
    for bit in range(20):
        assert surprise(int((bits >> bit & 1).sum()), n, 0.5) < limit
    # Neighbors along each axis fall into the 4 x 4 quarters independently; pairs that share no
    # number, so that they are independent draws.
    for axis in range(4):
        pairs = uniform.movedim(axis, -1).reshape(-1, 2)
        quarter = (pairs * 4).long()
        cells = torch.bincount(quarter[:, 0] * 4 + quarter[:, 1], minlength=16)
        for count in cells.tolist():
            assert surprise(count, len(pairs), 1 / 16) < limit
    # So do four colors, of which each is above or below the middle.
    above = (uniform.reshape(-1, 4) > 0.5).long() @ torch.tensor([1, 2, 4, 8])
    for count in torch.bincount(above, minlength=16).tolist():
        assert surprise(count, len(above), 1 / 16) < limit


def test_the_ends_of_the_noise_come_as_often_as_they_should() -> None:
    """Rare colors are drawn by them."""
    noise = GumbelNoise(torch.arange(64), 16).at(torch.arange(64), 512)
    n = noise.numel()  # 33 million
    limit = surprise_limit(2 * 6)
    for exponent in range(10, 22, 2):
        odds = 2.0**-exponent
        assert surprise(int((noise > -math.log(-math.log1p(-odds))).sum()), n, odds) < limit
        assert surprise(int((noise < -math.log(-math.log(odds))).sum()), n, odds) < limit


def expected_probabilities(logits: list[float], sampling: SamplingConfig) -> list[float]:
    """temperature, then top_k, then top_p, each spelled out over plain numbers without ties."""
    weights = [math.exp(value / sampling.temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda color: -weights[color])
    kept = order[: sampling.top_k]
    if sampling.top_p is not None:
        total = sum(weights[color] for color in kept)
        reached, fewest = 0.0, 0
        while reached < sampling.top_p and fewest < len(kept):
            reached += weights[kept[fewest]] / total
            fewest += 1
        kept = kept[:fewest]
    total = sum(weights[color] for color in kept)
    return [weights[c] / total if c in kept else 0.0 for c in range(len(logits))]


SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.6),
    SamplingConfig(top_k=5),
    SamplingConfig(top_p=0.8),
    SamplingConfig(temperature=1.7, top_k=12, top_p=0.9),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_are_the_filtered_softmax(sampling: SamplingConfig, dtype: torch.dtype) -> None:
    # Odds of a false alarm over random seeds: 1e-9 for each of the ten cases.
    n, n_colors = 200_000, 24
    logits = distinct_logits(n_colors, seed=3).to(dtype)
    noise = GumbelNoise(torch.arange(20), 100).at(torch.arange(100), n_colors).flatten(0, 1)
    drawn = sample_tokens(logits.expand(n, -1), noise, sampling)
    counts = torch.bincount(drawn, minlength=n_colors).tolist()
    limit = surprise_limit(n_colors)
    for count, p in zip(counts, expected_probabilities(logits.tolist(), sampling), strict=True):
        assert surprise(count, n, p) < limit


def test_distributions_that_are_alike_mostly_draw_the_same_with_the_same_noise() -> None:
    """At least in (1 - d) / (1 + d) of the cases, d their distance in total variation (Daliri,
    Musco, Suresh, "Coupling without communication and drafter-invariant speculative decoding",
    2024). Odds of a false alarm over random seeds: 1e-9."""
    n, n_colors = 50_000, 24
    logits = distinct_logits(n_colors, seed=6)
    other = logits + 0.3 * torch.randn(n_colors, generator=torch.Generator().manual_seed(7))
    distance = (logits.softmax(0) - other.softmax(0)).abs().sum().item() / 2
    noise = GumbelNoise(torch.arange(5), 100).at(torch.arange(100), n_colors).flatten(0, 1)
    same = sum(
        sample_tokens(x.expand(n, -1), noise, SamplingConfig())
        == sample_tokens(y.expand(n, -1), noise, SamplingConfig())
        for x, y in [(logits, other)]
    )
    least = (1 - distance) / (1 + distance)
    found = int(same.sum())
    assert found / n > least or surprise(found, n, least) < surprise_limit(1)
    assert distance > 0.05


def distinct_logits(n_colors: int, *, seed: int) -> Tensor:
    """Logits without ties that bfloat16 holds exactly: shuffled eighths."""
    order = torch.randperm(n_colors, generator=torch.Generator().manual_seed(seed))
    return (order - n_colors / 2) / 8


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 40, 511, 512, 600])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.95, 1.0])
def test_filters_are_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(8, 512, generator=generator, dtype=torch.float64)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = filter_logits(logits, SamplingConfig(temperature, top_k, top_p))
    assert torch.equal(found, expected)


def test_top_k_keeps_ties_as_transformers_does() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    found = filter_logits(logits, SamplingConfig(top_k=2))
    assert torch.equal(found, TopKLogitsWarper(2)(None, logits))
    assert found.isfinite().tolist() == [[False, True, True, True, True, False]]


def test_top_p_of_equal_colors_keeps_the_first_of_them() -> None:
    # Four of probability 1/4 (exact): two reach 0.5, three are needed for more.
    logits = torch.zeros(1, 4, dtype=torch.float64)
    for top_p, kept in [(1e-12, 1), (0.25, 1), (0.5, 2), (0.50001, 3), (0.9, 4)]:
        found = filter_logits(logits, SamplingConfig(top_p=top_p)).isfinite()
        assert found.tolist() == [[color < kept for color in range(4)]]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_colors_of_probability_zero_are_never_drawn(
    sampling: SamplingConfig, dtype: torch.dtype
) -> None:
    # First, last, side by side and alone; noise that is highest where they are.
    logits = torch.tensor([-torch.inf, -torch.inf, 0.5, -torch.inf, 0.0, 1.0, -torch.inf])
    noise = GumbelNoise(torch.arange(100), 10).at(torch.arange(10), 7).flatten(0, 1)
    noise[:50] = torch.where(logits.isinf(), 22.9, -3.2)
    rows = logits.to(dtype).expand(len(noise), -1)
    assert set(sample_tokens(rows, noise, sampling).tolist()) <= {2, 4, 5}


def test_a_certain_color_is_drawn_whatever_the_noise() -> None:
    logits = torch.full((5, 9), -torch.inf)
    logits[:, 6] = -1e4
    noise = torch.tensor([-3.13, -1, 0, 1, 22.9])[:, None].expand(5, 9).clone()
    noise[:, 6] = -3.13
    assert sample_tokens(logits, noise, SamplingConfig()).tolist() == [6] * 5


def test_bfloat16_logits_draw_what_their_values_draw_in_float64() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (4 * torch.randn(500, 64, generator=generator)).bfloat16()
    noise = GumbelNoise(torch.arange(500), 1).at(torch.arange(1), 64)[:, 0]
    sampling = SamplingConfig(0.9, 20, 0.9)
    narrow, wide = (sample_tokens(x, noise, sampling) for x in (logits, logits.double()))
    assert torch.equal(narrow, wide)


def test_greedy_takes_the_first_of_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    noise = GumbelNoise(torch.arange(2), 1).at(torch.arange(1), 4)[:, 0]
    for each in (noise, None):
        assert sample_tokens(logits, each, SamplingConfig(greedy=True)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0, found nan"),
        ({"top_k": 0}, "top_k must be 1 or more, found 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], found 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], found 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SamplingConfig(**settings)
