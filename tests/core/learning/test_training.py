"""Training: batches, learning rate, decay, the step, the loop, the likelihood of tokens."""

import copy
import math
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
import transformers

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.optimizer import make_optimizer
from igpt_core.learning.scoring import bits_per_pixel, token_nll, with_start
from igpt_core.learning.training import (
    TrainingState,
    batches,
    evaluate,
    train,
    train_step,
)
from igpt_core.learning.training_config import TrainingConfig
from igpt_core.model.config import ImageGPTConfig

SIDE = 4
N = SIDE**2
SHAPE = {"vocab_size": 9, "n_positions": N, "n_embd": 16, "n_layer": 2, "n_head": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def tiny(**changes: int) -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**SHAPE | changes, **NO_DROPOUT))


def draw_tokens(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 8, (n, N)).astype(np.uint16)


def numbered(n: int) -> np.ndarray:
    """Images that are known by their number, mirrored or not."""
    return np.repeat(np.arange(n, dtype=np.uint16)[:, None], N, axis=1)


def take(tokens: np.ndarray, config: TrainingConfig, count: int, *, start: int = 0) -> torch.Tensor:
    """`count` batches, (count, batch_size, N)."""
    found = islice(batches(tokens, config, SIDE, start=start), count)
    return torch.stack([batch for (batch,) in found])


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_depends_on_the_seed_and_its_number_alone():
    """Three batches an epoch: some starts lie within one, some at its beginning."""
    tokens = draw_tokens(11)
    config = TrainingConfig(steps=1, batch_size=3, seed=5)
    whole = take(tokens, config, 10)
    assert whole.dtype == torch.int64
    for start in range(8):
        assert torch.equal(take(tokens, config, 2, start=start), whole[start : start + 2])
    other = TrainingConfig(steps=1, batch_size=3, seed=6)
    assert not torch.equal(take(tokens, other, 10), whole)


def test_every_epoch_is_a_new_permutation():
    epochs = take(numbered(12), TrainingConfig(steps=1, batch_size=3), 12)[..., 0].reshape(3, 12)
    for order in epochs:
        assert sorted(order.tolist()) == list(range(12))
    # Two of three random orders of 12 agree with odds of 6e-9.
    assert len({tuple(order.tolist()) for order in epochs}) == 3


def test_images_that_fill_no_batch_are_left_out_of_one_epoch_only():
    epochs = take(numbered(8), TrainingConfig(steps=1, batch_size=3), 20)[..., 0].reshape(10, 6)
    for order in epochs:
        assert len(set(order.tolist())) == 6
    assert set(epochs.flatten().tolist()) == set(range(8))


def test_half_of_the_images_are_mirrored_within_their_rows():
    """Also where no image of a batch is: past bug, a reshape of no rows."""
    image = np.arange(N, dtype=np.uint16)
    mirrored = image.reshape(SIDE, SIDE)[:, ::-1].ravel()
    tokens = image[None]
    found = take(tokens, TrainingConfig(steps=1, batch_size=1), 400)[:, 0].numpy()
    flipped = (found == mirrored).all(axis=1)
    assert ((found == image).all(axis=1) ^ flipped).all()
    # 400 fair draws have a standard deviation of 10: five of them, odds 6e-7 (and one fixed seed).
    assert abs(int(flipped.sum()) - 200) < 50
    assert (tokens == image).all()  # what was given is as it was


def test_images_of_a_batch_are_mirrored_one_by_one():
    image = np.arange(N, dtype=np.uint16)
    found = take(np.stack([image] * 8), TrainingConfig(steps=1, batch_size=8), 4)
    flipped = (found[:, :, 0] != 0).float().mean(dim=1)
    assert ((flipped > 0) & (flipped < 1)).all()  # all eight alike: odds of 4 * 2 / 2^8 = 3 %


def test_without_flips_every_image_is_as_it_was():
    image = np.arange(N, dtype=np.uint16)
    found = take(image[None], TrainingConfig(steps=1, batch_size=1, flip=False), 50)
    assert (found == torch.from_numpy(image.astype(np.int64))).all()


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="one batch of 8 images, found 7"):
        next(batches(draw_tokens(7), TrainingConfig(steps=1, batch_size=8), SIDE, start=0))


# --- learning rate, bounds, decay -----------------------------------------------------------------


def test_the_learning_rate_rises_then_falls_along_a_line():
    config = TrainingConfig(steps=1000, learning_rate=0.1, warmup_steps=10)
    rates = [config.learning_rate_at(step, config.progress(step, 0.0)) for step in range(1001)]
    assert rates[0] == pytest.approx(0.1 / 10)
    assert rates[4] == pytest.approx(0.1 * 5 / 10, rel=5e-3)  # the line has hardly begun
    assert rates[9] == max(rates)
    assert rates[500] == pytest.approx(0.1 / 2)
    assert rates[1000] == 0.0
    assert all(later < before for before, later in pairwise(rates[9:]))


def test_without_warm_up_the_first_step_has_the_full_rate():
    config = TrainingConfig(steps=10, learning_rate=0.1, warmup_steps=0)
    assert config.learning_rate_at(0, 0.0) == 0.1


def test_steps_or_minutes_bound_the_run():
    assert TrainingConfig(steps=200).progress(50, 1e9) == 0.25
    assert TrainingConfig(minutes=2).progress(10**9, 30.0) == 0.25
    assert TrainingConfig(minutes=2).progress(0, 500.0) == 1.0


@pytest.mark.parametrize("bounds", [{}, {"steps": 5, "minutes": 1.0}])
def test_no_bound_and_two_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="either steps or minutes"):
        TrainingConfig(**bounds)


def test_matrices_decay_and_nothing_else():
    """With gradients of zero AdamW does nothing but the decay: p * (1 - rate * decay)."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, TrainingConfig(steps=1, learning_rate=0.1, weight_decay=0.5)).step()
    after = {name: parameter.unique().tolist() for name, parameter in model.named_parameters()}
    decayed = {name for name, values in after.items() if values == pytest.approx([0.95])}
    assert all(after[name] == [1.0] for name in after.keys() - decayed)
    matrices = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    expected = {f"transformer.h.{i}.{name}.weight" for i in range(2) for name in matrices}
    assert decayed == expected | {"transformer.wte.weight", "lm_head.weight"}


def test_muon_moves_the_matrices_of_blocks_along_orthogonal_ones():
    """Against an orthogonal factor by singular values: momentum's first step is the gradient."""
    model = tiny()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    config = TrainingConfig(steps=1, learning_rate=0.1, weight_decay=0.0, optimizer="muon")
    make_optimizer(model, config).step()
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter.detach()
        if parameter.ndim == 2 and ".h." in name:
            u, _, vh = torch.linalg.svd(gradients[name], full_matrices=False)
            # As large as AdamW's; five rounds of the iteration bring singular values near to 1.
            found = moved / (0.1 * 0.2 * max(parameter.shape) ** 0.5)
            assert torch.cosine_similarity(found.flatten(), (u @ vh).flatten(), 0) > 0.95, name
            assert torch.linalg.svdvals(found).min() > 0.5, name
            assert torch.linalg.svdvals(found).max() < 1.3, name
        else:  # AdamW's first step
            assert torch.allclose(moved, 0.1 * gradients[name].sign(), atol=1e-3), name


def test_the_state_of_both_optimizers_is_restored():
    config = TrainingConfig(steps=4, batch_size=2, optimizer="muon", dtype=torch.float32)
    tokens, found = draw_tokens(8), []
    for stops in ([4], [2, 4]):
        state, saved = TrainingState(), None
        for stop in stops:
            torch.manual_seed(0)
            model = tiny()
            optimizer = make_optimizer(model, config)
            if saved is not None:
                model.load_state_dict(saved["objective"])
                optimizer.load_state_dict(saved["optimizer"])
            n_steps = stop - state.step
            for batch in islice(batches(tokens, config, SIDE, start=state.step), n_steps):
                objective = NextPixel(model)
                train_step(objective, optimizer, batch, learning_rate=0.01, dtype=config.dtype)
                state.step += 1
            saved = copy.deepcopy(state.capture(model, optimizer))
        found.append(saved["objective"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="expected optimizer adamw or muon, found 'sgd'"):
        TrainingConfig(steps=1, optimizer="sgd")


# --- likelihood -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model() -> ImageGPTForCausalImageModeling:
    """With weights large enough that every token has another likelihood."""
    model = tiny().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_token_nll_against_one_prefix_at_a_time(random_model):
    """The start token and t pixels give the distribution of pixel t, softmax by hand."""
    tokens = torch.from_numpy(draw_tokens(3).astype(np.int64))
    with torch.no_grad():
        found = token_nll(random_model, tokens)
    assert found.shape == (3, N)
    assert found.dtype == torch.float32
    for row, image in enumerate(tokens):
        for t in range(N):
            prefix = torch.cat([torch.tensor([8]), image[:t]])  # 8 follows the colors 0 to 7
            logits = random_model(prefix[None]).logits[0, -1].detach().double()
            expected = -math.log(logits.exp()[image[t]] / logits.exp().sum())
            # float32 logits of order 1 to 10, rounded a few hundred times by 6e-8 of that
            assert found[row, t].item() == pytest.approx(expected, abs=1e-4)


def test_token_nll_against_the_loss_of_transformers(random_model):
    """transformers shifts the labels itself, so its input has the start token and every pixel: a
    position more, which its model gets and which no loss looks at."""
    config = transformers.ImageGPTConfig(**SHAPE | {"n_positions": N + 1}, **NO_DROPOUT)
    theirs = transformers.ImageGPTForCausalImageModeling(config).eval()
    weights = random_model.state_dict()
    positions = weights["transformer.wpe.weight"]
    weights["transformer.wpe.weight"] = torch.cat([positions, torch.zeros(1, SHAPE["n_embd"])])
    theirs.load_state_dict(weights)
    tokens = torch.from_numpy(draw_tokens(5).astype(np.int64))
    whole = torch.cat([torch.full((5, 1), 8), tokens], dim=1)
    loss = theirs(input_ids=whole, labels=whole).loss
    assert token_nll(random_model, tokens).mean().item() == pytest.approx(loss.item(), abs=1e-5)


def test_the_model_is_fed_the_start_token_and_all_pixels_but_the_last():
    assert with_start(torch.tensor([[3, 1, 2]]), 8).tolist() == [[8, 3, 1]]


def test_nats_to_bits():
    assert bits_per_pixel(torch.tensor([math.log(2), math.log(256)])).tolist() == [1.0, 8.0]


def test_evaluate_is_the_mean_over_all_tokens_however_they_are_batched(random_model):
    tokens = draw_tokens(7)
    expected = token_nll(random_model, torch.from_numpy(tokens.astype(np.int64))).mean().item()
    for size in (1, 3, 7, 16):  # 3: the last batch is smaller and must count for less
        assert evaluate(random_model, tokens, batch_size=size) == pytest.approx(expected, abs=1e-5)


# --- the loop -------------------------------------------------------------------------------------


def test_a_tiny_model_learns_four_images_by_heart():
    tokens = draw_tokens(4)
    model = tiny(n_embd=32)
    objective = NextPixel(model)
    before = evaluate(model, tokens)
    assert before == pytest.approx(math.log(8), abs=0.1)  # it knows nothing yet
    config = TrainingConfig(
        steps=150,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=10,
        flip=False,
        dtype=torch.float32,
    )
    seen: list[tuple[int, float, float]] = []
    state = TrainingState()
    train(
        objective,
        make_optimizer(objective, config),
        tokens,
        config,
        image_size=SIDE,
        state=state,
        on_step=lambda state, loss, rate: seen.append((state.step, loss.item(), rate)),
    )
    assert [step for step, _, _ in seen] == list(range(1, 151))
    assert seen[0][1] == pytest.approx(before, abs=1e-5)  # the loss before the first update
    for step, _, rate in seen:
        assert rate == config.learning_rate_at(step - 1, (step - 1) / 150)
    assert (state.step, model.training) == (150, False)
    assert state.seconds > 0
    # What cannot be known is which of the four it is: ln 4 nats, over 16 pixels 0.087.
    assert evaluate(model, tokens) < 0.15


def test_no_steps_are_taken_beyond_the_bound():
    model = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = TrainingConfig(minutes=1, batch_size=2)
    train(
        NextPixel(model),
        make_optimizer(model, config),
        draw_tokens(4),
        config,
        image_size=SIDE,
        state=TrainingState(step=3, seconds=60.0),
        on_step=lambda *_: pytest.fail("the minute was over"),
    )
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_a_step_in_bfloat16_has_nearly_the_loss_of_float32():
    tokens = torch.from_numpy(draw_tokens(4).astype(np.int64))
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny()
        optimizer = make_optimizer(model, TrainingConfig(steps=1))
        loss = train_step(NextPixel(model), optimizer, [tokens], learning_rate=1e-3, dtype=dtype)
        assert loss.dtype == torch.float32
        assert not loss.requires_grad
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        losses[dtype] = loss.item()
    # bfloat16 has 8 bits: logits of order 0.1 move by some 1e-3. Equal to the last bit would mean
    # that the precision was not used.
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=5e-3)
    assert losses[torch.bfloat16] != losses[torch.float32]


def test_large_gradients_are_clipped():
    """To a norm of 1; plain gradient descent at rate 1 then moves the weights by at most that."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
    tokens = torch.from_numpy(draw_tokens(4).astype(np.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(NextPixel(model), optimizer, [tokens], learning_rate=1.0, dtype=torch.float32)
    after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1.0, rel=1e-2)
