"""What prompts of any length cost, counted in steps of the model; passes and drafts of windows."""

import numpy as np
import pytest
import torch

from igpt_core import ImageGPTConfig, NeighborTables, SamplingConfig, save_checkpoint
from igpt_core.generation import passes, places
from igpt_core.images.palette import Palette
from models import make_model
from pipeline.errors import EndOfRun
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.sampling import Drawing, Prompt, Sampler

SIDE, N_COLORS, ROWS, BATCH = 32, 8, 1024, 256
N = SIDE**2


@pytest.fixture
def sampler(tmp_path) -> Sampler:
    config = ImageGPTConfig(vocab_size=N_COLORS + 1, n_positions=N, n_embd=8, n_layer=1, n_head=1)
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (N_COLORS, 3)))
    save_checkpoint(make_model(config, std=0.1), tmp_path, palette=palette, image_size=SIDE)
    plan = ComputePlan(str(tmp_path), "cpu", "float32", BATCH)
    return Sampler(plan, Drawing(1, 1, False, 0, SamplingConfig(greedy=True)))


def test_prompts_of_any_length_cost_little_more_than_those_of_one(sampler, monkeypatch):
    """Past bug: 1,024 rows of random lengths made 644 batches, each padded: 161 times the work."""
    fed = {"steps": 0, "prompts": 0}

    def step(model, tokens, position, cache, *, span):
        fed["steps"] += len(tokens)
        return torch.zeros(len(tokens), 1, N_COLORS)

    real = places.feed_prompts

    def feed_prompts(model, tokens, **options):
        fed["prompts"] += tokens.numel()
        return real(model, tokens, **options)

    monkeypatch.setattr(passes, "decode_window", step)
    monkeypatch.setattr(places, "feed_prompts", feed_prompts)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, N, ROWS).astype(np.int32)
    tokens = rng.integers(0, N_COLORS, (ROWS, N)).astype(np.uint16)
    ids = [str(i) for i in range(ROWS)]
    samples = sampler.sample(Prompt(tokens, lengths), ids).tokens[:, 0]
    given = np.arange(N) < lengths[:, None]
    assert np.array_equal(samples[given], tokens[given])
    any_length = dict(fed)
    fed.update(steps=0, prompts=0)
    sampler.sample(Prompt(tokens, round(lengths.mean())), ids)
    assert any_length["steps"] < 1.3 * fed["steps"]
    assert any_length["prompts"] < 1.3 * fed["prompts"]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("lengths", ["one", "any"])
def test_passes_are_those_of_each_row_and_drafts_are_counted_in_the_prompts(
    tmp_path, window, lengths, monkeypatch
):
    config = ImageGPTConfig(vocab_size=N_COLORS + 1, n_positions=N, n_embd=8, n_layer=1, n_head=1)
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (N_COLORS, 3)))
    save_checkpoint(make_model(config, std=0.1), tmp_path, palette=palette, image_size=SIDE)
    drafts = []
    real = NeighborTables.counted.__func__

    def counted(cls, images, known, **options):
        drafts.append(known.sum().item())
        return real(cls, images, known, **options)

    monkeypatch.setattr(NeighborTables, "counted", classmethod(counted))

    def sampler() -> Sampler:
        plan = ComputePlan(str(tmp_path), "cpu", "float32", 8, 2, window=window)
        return Sampler(plan, Drawing(2, 2, False, 0, SamplingConfig()))

    rng = np.random.default_rng(0)
    given = np.array([0, 5, N, N - 1, N // 2], np.int32)
    tokens = rng.integers(0, N_COLORS, (5, N)).astype(np.uint16)
    prompt = Prompt(tokens, given if lengths == "any" else N // 2)
    ids = [str(i) for i in range(5)]
    samples = sampler().sample(prompt, ids)
    drawn = 2 * (N - np.broadcast_to(given if lengths == "any" else N // 2, 5))
    if window == 1:
        assert samples.passes.tolist() == drawn.tolist()
        assert not drafts
        return
    assert (samples.passes <= drawn).all()
    assert samples.passes.sum() < drawn.sum()
    assert drafts == [5 * N - drawn.sum() // 2]
    shipped = NeighborTables.counted(
        torch.from_numpy(tokens), torch.ones(5, N, dtype=torch.bool), n_colors=N_COLORS
    )
    shipped.save(tmp_path)
    drafts.clear()
    assert np.array_equal(sampler().sample(prompt, ids).tokens, samples.tokens)
    assert not drafts, "the tables beside the model were not taken"


def test_an_actor_that_reads_no_cache_of_8_bits_ends_the_run(tmp_path):
    config = ImageGPTConfig(vocab_size=N_COLORS + 1, n_positions=N, n_embd=8, n_layer=1, n_head=1)
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (N_COLORS, 3)))
    save_checkpoint(make_model(config, std=0.1), tmp_path, palette=palette, image_size=SIDE)
    plan = ComputePlan(str(tmp_path), "cpu", "float32", 8, kv_cache_dtype="int8")
    sampler = Sampler(plan, Drawing(1, 1, False, 0, SamplingConfig()))
    prompt = Prompt(np.zeros((2, N), np.uint16), 5)
    with pytest.raises(EndOfRun, match="--kv-cache-dtype auto, with another --output"):
        sampler.sample(prompt, ["a", "b"])


def test_rows_wait_for_a_place_a_few_batches_at_a_time(sampler, monkeypatch):
    """A shard of any size takes no more memory than these."""
    seen = []
    real = sampler._compute_plan._on_device

    def on_device(self, compute, *rows, at_once):
        seen.append((len(rows[0]), at_once))
        return real(compute, *rows, at_once=at_once)

    monkeypatch.setattr(ComputePlan, "_on_device", on_device)
    tokens = np.random.default_rng(0).integers(0, N_COLORS, (20 * BATCH + 3, N)).astype(np.uint16)
    ids = [str(i) for i in range(len(tokens))]
    found = sampler.sample(Prompt(tokens, N - 2), ids).tokens
    assert seen == [(8 * BATCH, BATCH)] * 2 + [(4 * BATCH + 3, BATCH)]
    alone = sampler.sample(Prompt(tokens[-2:], N - 2), ids[-2:]).tokens
    assert np.array_equal(found[-2:], alone)
