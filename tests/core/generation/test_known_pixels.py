"""Decoding with pixels that are known beyond the prompt, against a loop without a cache."""

import numpy as np
import pytest
import torch
from torch import Tensor

import igpt_core
from igpt_core import ImageGPTConfig, Pinned, SamplingConfig, complete
from igpt_core.generation.noise import GumbelNoise
from parity import CAUSAL, draw_weights, one_thread  # noqa: F401

ROWS, N_COLORS, N_POSITIONS = 4, 32, 80  # more than one span unit
SEEDS = torch.arange(ROWS) * 7919 + 5
SAMPLING = SamplingConfig()


@pytest.fixture(scope="module")
def model():
    config = ImageGPTConfig(
        vocab_size=N_COLORS + 1, n_positions=N_POSITIONS, n_embd=32, n_layer=2, n_head=2
    )
    model = getattr(igpt_core, CAUSAL)(config)
    draw_weights(model)
    return model.double().eval()


def draw_image(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, N_COLORS, (ROWS, N_POSITIONS), generator=generator)


def known(share: float, *, first: int = 0) -> Pinned:
    """A share of the pixels from `first` on, others in each row."""
    generator = torch.Generator().manual_seed(2)
    given = torch.rand((ROWS, N_POSITIONS), generator=generator) < share
    given[:, :first] = False
    return Pinned(draw_image(9), given)


def run(model, pinned=None, *, n_given=7, n_samples=1, sampling=SAMPLING):
    return complete(
        model,
        draw_image(1)[:, :n_given],
        n_positions=N_POSITIONS,
        seeds=SEEDS,
        sampling=sampling,
        n_samples=n_samples,
        pinned=pinned,
    )


@torch.no_grad()
def uncached(model, pinned: Pinned, n_given: int, n_samples: int) -> np.ndarray:
    """(ROWS, n_samples, N_POSITIONS): image by image, pixel by pixel, each from a whole pass."""
    noise = GumbelNoise(SEEDS, n_samples).at(torch.arange(N_POSITIONS), N_COLORS).double().numpy()
    noise = noise.reshape(ROWS, n_samples, N_POSITIONS, N_COLORS)
    images = np.zeros((ROWS, n_samples, N_POSITIONS), np.int64)
    for row, sample, pixel in np.ndindex(images.shape):
        if pinned.given[row, pixel]:
            images[row, sample, pixel] = pinned.image[row, pixel]
        elif pixel < n_given:
            images[row, sample, pixel] = draw_image(1)[row, pixel]
        else:
            before = [N_COLORS, *images[row, sample, :pixel].tolist()]
            logits = model(torch.tensor([before])).logits[0, -1].numpy()
            images[row, sample, pixel] = np.argmax(logits + noise[row, sample, pixel])
    return images


@pytest.mark.parametrize(("n_given", "n_samples"), [(0, 1), (7, 2), (N_POSITIONS - 1, 1)])
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_pixels_are_drawn_given_the_known_ones(model, n_given, n_samples, share):
    # float64: a draw would change if two sums came within 1e-12 of each other.
    pinned = known(share)
    found = run(model, pinned, n_given=n_given, n_samples=n_samples)
    assert np.array_equal(found.numpy(), uncached(model, pinned, n_given, n_samples))


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(top_k=5), SamplingConfig(greedy=True)], ids=str
)
def test_known_pixels_are_kept_and_others_go_on_from_them(model, sampling):
    pinned = known(0.3)
    free = run(model, n_samples=3, sampling=sampling)
    found = run(model, pinned, n_samples=3, sampling=sampling)
    for sample in found.unbind(1):
        assert torch.equal(sample[pinned.given], pinned.image[pinned.given])
    others = ~pinned.given[:, None].expand_as(found)
    assert not torch.equal(found[others], free[others])


def test_pixels_before_the_first_known_one_are_as_without_it(model):
    free, found = run(model), run(model, known(0.5, first=40))
    assert torch.equal(found[..., :40], free[..., :40])
    assert not torch.equal(found[..., 40:], free[..., 40:])


def test_known_pixels_that_would_be_drawn_change_nothing(model):
    free = run(model)
    assert torch.equal(run(model, Pinned(free[:, 0], known(0.5).given)), free)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_no_known_pixels_is_as_without_any_whatever_the_image(model, dtype):
    in_dtype = getattr(igpt_core, CAUSAL)(model.config)
    in_dtype.load_state_dict(model.state_dict())
    in_dtype = in_dtype.to(dtype).eval()
    nothing = Pinned(
        torch.full((ROWS, N_POSITIONS), -1), torch.zeros(ROWS, N_POSITIONS, dtype=torch.bool)
    )
    assert torch.equal(run(in_dtype, nothing, n_samples=2), run(in_dtype, n_samples=2))


def test_known_pixels_of_a_row_change_no_other_row(model):
    pinned = known(0.5)
    pinned.given[[0, 1, 3]] = False
    free, found = run(model, n_samples=2), run(model, pinned, n_samples=2)
    assert torch.equal(found[[0, 1, 3]], free[[0, 1, 3]])
    assert not torch.equal(found[2], free[2])


def test_known_pixels_override_a_whole_prompt(model):
    pinned = known(0.5)
    expected = torch.where(pinned.given, pinned.image, draw_image(1))
    assert torch.equal(run(model, pinned, n_given=N_POSITIONS)[:, 0], expected)


@pytest.mark.parametrize(
    ("image", "given", "complaint"),
    [
        ((ROWS, 79), (ROWS, 80), r"pinned.image to be torch.int64 of shape \(4, 80\).*\(4, 79\)"),
        ((1, 80), (ROWS, 80), r"pinned.image .*\(4, 80\), found torch.int64 of \(1, 80\)"),
        ((ROWS, 80), (80,), r"pinned.given to be torch.bool of shape \(4, 80\).*\(80,\)"),
    ],
)
def test_known_pixels_of_another_shape_are_refused(model, image, given, complaint):
    pinned = Pinned(torch.zeros(image, dtype=torch.int64), torch.zeros(given, dtype=torch.bool))
    with pytest.raises(ValueError, match=complaint):
        run(model, pinned)


def test_known_pixels_of_another_dtype_are_refused(model):
    image, given = draw_image(1), torch.ones(ROWS, N_POSITIONS, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"pinned.given to be torch.bool .* found torch.uint8"):
        run(model, Pinned(image, given.to(torch.uint8)))
    with pytest.raises(
        ValueError, match=r"pinned\.image of an integer dtype, found torch\.float32"
    ):
        run(model, Pinned(image.float(), given))
