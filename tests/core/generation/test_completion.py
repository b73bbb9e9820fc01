"""Images that take the place of others which are drawn, against all computed side by side."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core import ImageGPTConfig, NeighborTables, Pinned, SamplingConfig, complete
from igpt_core.generation import passes as model_passes
from igpt_core.generation import places
from igpt_core.generation.completion import complete_prompts
from igpt_core.heads import ImageGPTForCausalImageModeling
from models import make_model

ROWS, N_COLORS, N = 11, 24, 100
SEEDS = torch.arange(ROWS) * 7919 + 5
LENGTHS = torch.tensor([7, 40, 99, 0, 100, 63, 64, 65, 7, 99, 1])


def model_of(dtype: torch.dtype = torch.float32) -> ImageGPTForCausalImageModeling:
    config = ImageGPTConfig(vocab_size=N_COLORS + 1, n_positions=N, n_embd=32, n_layer=2, n_head=2)
    return make_model(config, std=0.2).to(dtype)


@pytest.fixture(scope="module")
def model() -> ImageGPTForCausalImageModeling:
    return model_of()


def drawn_image(seed: int, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, N_COLORS, (rows, N), generator=generator)


# Of some images the last pixels are known, so that they are drawn long before the others; of one
# all are.
GIVEN = torch.rand((ROWS, N), generator=torch.Generator().manual_seed(3)) < 0.4
GIVEN[::2, 30:] = True
GIVEN[5] = True
TABLES = NeighborTables.counted(
    drawn_image(4, 300), torch.ones(300, N, dtype=torch.bool), n_colors=N_COLORS
)

Draw = Callable[..., Tensor]
WAYS: dict[str, Draw] = {
    "one prompt length": lambda model, rows, **options: complete(
        model, drawn_image(1)[rows, :7], n_positions=N, **options
    ),
    "known pixels": lambda model, rows, **options: complete(
        model,
        drawn_image(1)[rows, :3],
        n_positions=N,
        pinned=Pinned(drawn_image(2)[rows], GIVEN[rows]),
        **options,
    ),
    "any prompt length": lambda model, rows, **options: complete_prompts(
        model, drawn_image(1)[rows], LENGTHS[rows], **options
    ),
    "long prompts that samples share": lambda model, rows, **options: complete(
        model, drawn_image(1)[rows, :70], n_positions=N, **options
    ),
}


def draw(way: str, model, rows: list[int] | None = None, **options) -> Tensor:
    rows = list(range(ROWS)) if rows is None else rows
    how = {"seeds": SEEDS[rows], "sampling": SamplingConfig(), "n_samples": 2}
    return WAYS[way](model, rows, **(how | options))


@pytest.fixture
def begin_together(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets so many images begin as soon as there are places for them, as on a GPU."""

    def at_a_time(n: int) -> None:
        monkeypatch.setattr(places, "_begin_together", lambda _, n_places: min(n, n_places))

    return at_a_time


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at_once", [1, 3, 4, ROWS, 16])
@pytest.mark.parametrize("together", [1, 2, 16])
def test_images_are_the_same_however_many_are_computed_together(
    model, begin_together, way: str, at_once: int, together: int
) -> None:
    passes, expected_passes = [], []
    expected = draw(way, model, passes=expected_passes)
    begin_together(together)
    assert torch.equal(draw(way, model, at_once=at_once, passes=passes), expected)
    assert passes == expected_passes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [2, 8, 32])
@pytest.mark.parametrize("draft", [None, TABLES], ids=["no draft", "tables"])
@pytest.mark.parametrize("together", [1, 3])
def test_windows_of_refilled_places_change_no_token(
    model, begin_together, way: str, window: int, draft: NeighborTables | None, together: int
) -> None:
    expected = draw(way, model)
    side_by_side: list[int] = []
    draw(way, model, window=window, draft=draft, passes=side_by_side)
    begin_together(together)
    passes: list[int] = []
    found = draw(way, model, window=window, draft=draft, at_once=4, passes=passes)
    assert torch.equal(found, expected)
    assert passes == side_by_side


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["known pixels", "any prompt length"])
@pytest.mark.parametrize("window", [1, 4, 16])
def test_a_row_does_not_depend_on_when_it_came_in(
    begin_together, dtype: torch.dtype, way: str, window: int
) -> None:
    """Bit for bit, so also in bfloat16: in any order, alone, beside images that are done and
    beside others that began with it or long before."""
    model = model_of(dtype)
    begin_together(1)
    run = partial(draw, way, model, window=window, at_once=4)
    whole = run()
    for rows in (list(range(ROWS))[::-1], [3, 8, 8, 0, 10, 9, 1], [7], [2, 5]):
        assert torch.equal(run(rows), whole[rows]), rows


@pytest.fixture
def passes_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each pass of the model, but for prompts."""
    made: list[int] = []
    real = model_passes.decode_window

    def counted(model, tokens: Tensor, *rest, **options) -> Tensor:
        made.append(len(tokens))
        return real(model, tokens, *rest, **options)

    monkeypatch.setattr(model_passes, "decode_window", counted)
    return made


@pytest.mark.parametrize("way", ["one prompt length", "known pixels", "any prompt length"])
def test_an_image_that_is_drawn_gives_its_place_to_the_next(
    model, begin_together, passes_made, way: str
) -> None:
    """So there are fewer passes than where each batch waits for its last image."""
    counts = {}
    for together in (1, 4):
        begin_together(together)
        passes_made.clear()
        draw(way, model, at_once=4, window=4)
        assert set(passes_made) == {8}
        counts[together] = len(passes_made)
    assert counts[1] < counts[4]


def test_places_are_taken_again_before_a_batch_is_over(model, begin_together, passes_made) -> None:
    """Two places, an image that takes 99 passes and five that take one each, beside it."""
    image = drawn_image(1)[:6]
    lengths = torch.tensor([0, *[98] * 5])
    options = {"seeds": SEEDS[:6], "sampling": SamplingConfig()}
    expected = complete_prompts(model, image, lengths, **options)
    found = {}
    for together in (1, 2):
        begin_together(together)
        passes_made.clear()
        passes: list[int] = []
        drawn = complete_prompts(model, image, lengths, at_once=2, passes=passes, **options)
        assert torch.equal(drawn, expected)
        assert passes == [100, *[2] * 5]
        found[together] = len(passes_made)
    assert found == {1: 99, 2: 99 + 2}


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("at_once", [None, 2, 3, 4, 8])
def test_what_is_not_drawn_cannot_fail_a_run(window: int, at_once: int | None) -> None:
    """Past bug: places that hold nothing were fed color 0, and known pixels behind the last that is
    drawn were looked at where a neighbor went on."""
    model = model_of()
    model.transformer.wte.weight.data[0] = torch.nan  # of color 0
    image = drawn_image(1)[:3].clamp(min=1)
    image[0, 60:] = 0  # behind its last unknown pixel
    given = torch.zeros(3, N, dtype=torch.bool)
    given[0, 50:] = True
    allowed = torch.zeros(N_COLORS)
    allowed[0] = -torch.inf  # no draw feeds it
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + allowed)
    how = {"seeds": SEEDS[:3], "sampling": SamplingConfig(), "window": window, "at_once": at_once}
    draws = partial(complete, model, image[:, :7], n_positions=N, **how)
    draws(pinned=Pinned(image, given))
    given[0, 99] = False  # now a pixel is drawn behind them
    with pytest.raises(FloatingPointError, match="finite logits"):
        draws(pinned=Pinned(image, given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_that_overflows_is_found_in_the_images_that_waited(
    begin_together, dtype: torch.dtype
) -> None:
    model = model_of()
    model.transformer.wpe.weight.data[90] = torch.nan
    begin_together(1)
    image = drawn_image(1)[:5]
    options = {"seeds": SEEDS[:5], "sampling": SamplingConfig(), "at_once": 2}
    given = Pinned(image, pad(torch.zeros(5, 50, dtype=torch.bool), (0, 50), value=True))
    complete(model.to(dtype), image[:, :7], n_positions=N, pinned=given, **options)
    given.given[4, 95] = False
    with pytest.raises(FloatingPointError, match="finite logits"):
        complete(model, image[:, :7], n_positions=N, pinned=given, **options)


@pytest.mark.parametrize("way", ["one prompt length", "any prompt length"])
def test_a_cache_of_another_dtype_is_refused_where_nothing_reads_it(model, way: str) -> None:
    with pytest.raises(ValueError, match=r"kv_cache_dtype must be torch.int8, found torch.float16"):
        draw(way, model, kv_cache_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"expected a GPU .* caches of 8 bits, found cpu"):
        draw(way, model, kv_cache_dtype=torch.int8)


@pytest.mark.parametrize("wrong", [-1, N_COLORS, N_COLORS + 7])
def test_what_is_no_color_is_refused_where_it_counts(model, wrong: int) -> None:
    """The start token is none, which some put in front of an image."""
    image, how = drawn_image(1)[:2], {"seeds": SEEDS[:2], "sampling": SamplingConfig()}
    image[1, 5] = wrong
    says = f"known pixels to be colors from 0 to {N_COLORS - 1}, found .*without the start token"
    with pytest.raises(ValueError, match=says):
        complete(model, image[:, :7], n_positions=N, **how)
    with pytest.raises(ValueError, match=says):
        complete_prompts(model, image, torch.tensor([0, 6]), **how)
    given = torch.zeros(2, N, dtype=torch.bool)
    given[1, 5] = True
    with pytest.raises(ValueError, match=says):
        complete(model, image[:, :0], n_positions=N, pinned=Pinned(image, given), **how)
    complete_prompts(model, image, torch.tensor([7, 5]), **how)


def test_an_own_forward_is_called_for_all_that_begin_together(model, begin_together) -> None:
    """Also where prompts of one length are given as such of any."""
    begin_together(1)
    image, how = drawn_image(1), {"seeds": SEEDS, "sampling": SamplingConfig()}
    lengths = torch.full((ROWS,), 90)
    expected = complete(model, image[:, :90], n_positions=N, **how)
    handle = model.register_forward_hook(lambda *_: None)
    assert torch.equal(complete(model, image[:, :90], n_positions=N, at_once=3, **how), expected)
    assert torch.equal(complete_prompts(model, image, lengths, at_once=4, **how), expected)
    lengths[2] = 5
    with pytest.raises(ValueError, match="rows that stand at one position"):
        complete_prompts(model, image, lengths, **how)
    handle.remove()


@pytest.mark.parametrize("name", ["n_samples", "window", "at_once"])
def test_numbers_are_whole(model, name: str) -> None:
    for wrong in (2.0, "2", True):
        with pytest.raises(TypeError, match=f"{name} must be a whole number, found"):
            draw("one prompt length", model, **{name: wrong})


@pytest.mark.parametrize("at_once", [0, -1])
def test_no_place_at_all_is_refused(model, at_once: int) -> None:
    with pytest.raises(ValueError, match=f"at_once must be 1 or more, found {at_once}"):
        draw("one prompt length", model, at_once=at_once)


@pytest.mark.parametrize("at_once", [None, 3])
@pytest.mark.parametrize("together", [1, 16])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("way", ["one prompt length", "known pixels"])
def test_progress_goes_from_nothing_to_all_and_changes_no_pixel(
    model, begin_together, way: str, window: int, together: int, at_once: int | None
) -> None:
    begin_together(together)
    shares: list[float] = []
    drawn = draw(way, model, window=window, at_once=at_once, on_progress=shares.append)
    assert torch.equal(drawn, draw(way, model))
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.3
    assert shares[-1] == 1
    assert len(set(shares)) > 10
    assert max(after - before for before, after in pairwise(shares)) < 0.5
