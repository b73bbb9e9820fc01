"""Prompts of different lengths in one batch, against `complete` of each length by itself."""

import pytest
import torch
from torch import Tensor

from igpt_core import ImageGPTConfig, SamplingConfig, complete, complete_prompts
from igpt_core.generation import passes, places, speculation
from models import make_model
from parity import one_thread  # noqa: F401

N, N_COLORS = 144, 32  # more than two span units
LENGTHS = [70, 0, N, 5, 143, 70, 64, 0, 128, 5]
ROWS = len(LENGTHS)
SEEDS = torch.arange(ROWS) * 7919 + 5
SAMPLING = SamplingConfig(temperature=0.9, top_p=0.95)


@pytest.fixture(scope="module")
def model():
    config = ImageGPTConfig(vocab_size=N_COLORS + 1, n_positions=N, n_embd=32, n_layer=2, n_head=2)
    return make_model(config, std=0.3)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randint(0, N_COLORS, (ROWS, N), generator=torch.Generator().manual_seed(1))


def run(model, image: Tensor, rows: list[int], *, n_samples: int = 2) -> Tensor:
    lengths = torch.tensor([LENGTHS[row] for row in rows])
    return complete_prompts(
        model, image[rows], lengths, seeds=SEEDS[rows], sampling=SAMPLING, n_samples=n_samples
    )


def by_complete(model, image: Tensor, row: int, *, n_samples: int = 2) -> Tensor:
    """The samples of a row in a batch of its own length: itself, as often as there are rows."""
    prompt = image[row, : LENGTHS[row]].expand(ROWS, -1)
    seeds = SEEDS[row].expand(ROWS)
    return complete(
        model, prompt, n_positions=N, seeds=seeds, sampling=SAMPLING, n_samples=n_samples
    )[0]


def test_each_row_is_completed_from_its_own_prompt(model, image):
    found = run(model, image, list(range(ROWS)))
    assert found.shape == (ROWS, 2, N)
    for row in range(ROWS):
        assert torch.equal(found[row], by_complete(model, image, row)), LENGTHS[row]


def test_the_logits_are_those_of_prompts_of_one_length_bit_for_bit(model, image, monkeypatch):
    """In float32 on a CPU. Tokens hide what rounds otherwise, until a draw tips."""
    seen: list[Tensor] = []

    def record(logits: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
        seen.append(logits[:, 0].clone())
        return logits.argmax(dim=-1)

    monkeypatch.setattr(speculation, "sample_tokens", record)
    run(model, image, list(range(ROWS)), n_samples=1)
    drawn = [row for row in range(ROWS) if LENGTHS[row] < N]
    # (rows that are drawn, N, V), each from its prompt's end on
    mixed = torch.stack([logits[: len(drawn)] for logits in seen], dim=1)
    for place, row in enumerate(drawn):
        seen.clear()
        by_complete(model, image, row, n_samples=1)
        alone = torch.stack(seen, dim=1)[0]
        assert torch.equal(mixed[place, : len(alone)], alone), LENGTHS[row]


def test_a_row_does_not_depend_on_its_neighbors(model, image):
    whole = run(model, image, list(range(ROWS)))
    for rows in ([0, 3, 4, 5, 6, 8, 2, 9, 0, 0], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [4] * ROWS):
        assert torch.equal(run(model, image, rows), whole[rows])


def test_steps_are_those_of_the_shortest_prompt_and_each_prompt_is_read_once(
    model, image, monkeypatch
):
    steps, read = [], []

    def step(model, tokens: Tensor, *rest, **options) -> Tensor:
        steps.append(len(tokens))
        return torch.zeros(len(tokens), 1, N_COLORS)

    real = places.feed_prompts

    def feed_prompts(model, tokens: Tensor, **options):
        read.append(tokens.numel())
        return real(model, tokens, **options)

    monkeypatch.setattr(passes, "decode_window", step)
    monkeypatch.setattr(places, "feed_prompts", feed_prompts)
    rows = [0, 4, 6, 2, 5]
    run(model, image, rows, n_samples=2)
    assert steps == [2 * len(rows)] * (N - 64 - 1)
    assert sum(read) == sum(LENGTHS[row] + 1 for row in rows if LENGTHS[row] < N)


def test_whole_prompts_alone_cost_nothing(model, image, monkeypatch):
    monkeypatch.setattr(places, "feed_prompts", None)
    lengths = torch.full((ROWS,), N)
    found = complete_prompts(model, image, lengths, seeds=SEEDS, sampling=SAMPLING)
    assert torch.equal(found[:, 0], image)


@pytest.mark.parametrize("lengths", [[1] * (ROWS - 1), [-1] * ROWS, [N + 1] * ROWS])
def test_lengths_that_do_not_fit_are_refused(model, image, lengths):
    with pytest.raises(ValueError, match="complete_prompts: expected"):
        complete_prompts(model, image, torch.tensor(lengths), seeds=SEEDS, sampling=SAMPLING)
