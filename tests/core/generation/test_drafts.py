"""Tables of neighboring pixels, against counting by hand; guesses by them change no token."""

import itertools
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import igpt_core
from igpt_core import (
    CheckpointError,
    ImageGPTConfig,
    NeighborTables,
    Pinned,
    SamplingConfig,
    complete,
)
from igpt_core.generation.completion import complete_prompts
from igpt_core.generation.drafts import OFFSETS, TABLES_FILE, Neighbors
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.speculation import Windows
from parity import CAUSAL, draw_weights, one_thread  # noqa: F401

SIDE, N_COLORS = 9, 6
N = SIDE**2
ROWS = 4
SEEDS = torch.arange(ROWS) * 7919 + 5
SAMPLINGS = [SamplingConfig(), SamplingConfig(0.7, 4, 0.9), SamplingConfig(greedy=True)]


def images_of(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, N_COLORS, (n, N), generator=generator)


def known_of(n: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((n, N), generator=generator) < share


def random_tables(scale: float = 3.0) -> NeighborTables:
    generator = torch.Generator().manual_seed(3)
    shape = (len(OFFSETS), N_COLORS + 1, N_COLORS)
    tables = scale * torch.randn(shape, generator=generator)
    return NeighborTables(scale * torch.randn(N_COLORS, generator=generator), tables)


def counted() -> NeighborTables:
    found = NeighborTables.counted(images_of(30), known_of(30, 1.0), n_colors=N_COLORS)
    assert found is not None
    return found


DRAFTS = {"counted": counted, "random": random_tables}


def test_tables_are_what_counting_by_hand_gives():
    images, known = images_of(5), known_of(5, 0.7)
    found = NeighborTables.counted(images.to(torch.uint16), known, n_colors=N_COLORS)
    shares = [1 + int((images[known] == color).sum()) for color in range(N_COLORS)]
    shares = [share / sum(shares) for share in shares]
    assert found.frequencies.tolist() == pytest.approx([math.log(share) for share in shares])
    for table, (up, left) in zip(found.tables, OFFSETS, strict=True):
        pairs = [[0] * N_COLORS for _ in range(N_COLORS)]
        for image, given in zip(images.tolist(), known.tolist(), strict=True):
            for pixel in range(N):
                row, column = pixel // SIDE - up, pixel % SIDE - left
                neighbor = row * SIDE + column
                if row >= 0 and 0 <= column < SIDE and given[pixel] and given[neighbor]:
                    pairs[image[neighbor]][image[pixel]] += 1
        expected = [
            [
                0.65 * math.log((n + 100 * p) / (sum(row) + 100) / p)
                for n, p in zip(row, shares, strict=True)
            ]
            for row in pairs
        ]
        assert table[:-1].flatten().tolist() == pytest.approx(
            list(itertools.chain(*expected)), abs=1e-5
        )
        assert not table[-1].any()


def test_sums_are_over_the_neighbors_that_are_there():
    tables, tokens = random_tables(), torch.nn.functional.pad(images_of(2), (1, 0), value=N_COLORS)
    tables.tables[:, -1] = 0
    at = torch.tensor([[1, 2, SIDE, SIDE + 1, N], [N - 1, 2 * SIDE, 2 * SIDE + 1, 40, 3]])
    found = Neighbors(tables, N, beyond=4).sum(tokens, at)
    for row in range(2):
        for place, position in enumerate(at[row].tolist()):
            expected = torch.zeros(N_COLORS)
            for k, (up, left) in enumerate(OFFSETS):
                y, x = divmod(position - 1, SIDE)
                if y - up >= 0 and 0 <= x - left < SIDE:
                    color = tokens[row, 1 + (y - up) * SIDE + x - left]
                    expected += tables.tables[k, color]
            assert torch.allclose(found[row, place], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("known", "n_colors"), [(known_of(3, 0.0), N_COLORS), (known_of(3, 1.0), 1025)]
)
def test_there_are_none_where_nothing_is_known_or_too_many_colors(known, n_colors):
    assert NeighborTables.counted(images_of(3), known, n_colors=n_colors) is None


def test_they_are_saved_beside_a_model(tmp_path):
    counted().save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [TABLES_FILE]
    found = NeighborTables.load(str(tmp_path), n_colors=N_COLORS)
    assert torch.allclose(found.tables, counted().tables, rtol=1e-3, atol=1e-6)
    assert torch.allclose(found.frequencies, counted().frequencies, rtol=1e-3)


def test_a_model_can_do_without(tmp_path):
    (tmp_path / "config.json").touch()
    assert NeighborTables.load(str(tmp_path), n_colors=N_COLORS) is None


@pytest.mark.parametrize("kind", ["no folder", "cut", "other names", "other colors"])
def test_what_is_no_table_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / TABLES_FILE
    if kind == "cut":
        counted().save(tmp_path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "other names":
        save_file({"table": torch.zeros(3)}, path)
    elif kind == "other colors":
        counted().save(tmp_path)
    folder = str(tmp_path / "gone") if kind == "no folder" else str(tmp_path)
    n_colors = N_COLORS + 1 if kind == "other colors" else N_COLORS
    with pytest.raises(CheckpointError) as raised:
        NeighborTables.load(folder, n_colors=n_colors)
    assert "\n" not in str(raised.value)
    if kind != "no folder":
        assert "next: remove it" in str(raised.value)


@pytest.fixture(scope="module")
def model():
    config = ImageGPTConfig(vocab_size=N_COLORS + 1, n_positions=N, n_embd=32, n_layer=2, n_head=2)
    model = getattr(igpt_core, CAUSAL)(config)
    draw_weights(model)
    return model.eval()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("window", [1, 2, 8, 32])
@pytest.mark.parametrize("draft", DRAFTS)
def test_a_draft_changes_no_token(model, draft, window, sampling):
    def of(window: int, draft: NeighborTables | None, **options) -> Tensor:
        return complete(
            model,
            images_of(ROWS)[:, :7],
            n_positions=N,
            seeds=SEEDS,
            sampling=sampling,
            n_samples=2,
            window=window,
            draft=draft,
            **options,
        )

    pinned = Pinned(images_of(ROWS, seed=9), known_of(ROWS, 0.4))
    tables = DRAFTS[draft]()
    assert torch.equal(of(window, tables), of(1, None))
    assert torch.equal(of(window, tables, pinned=pinned), of(1, None, pinned=pinned))


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_draft_changes_no_token_of_prompts_of_any_length(model, draft):
    lengths = torch.tensor([0, 40, N, N - 1])
    options = {"seeds": SEEDS, "sampling": SAMPLINGS[0], "n_samples": 2}
    expected = complete_prompts(model, images_of(ROWS), lengths, **options)
    tables = DRAFTS[draft]()
    found = complete_prompts(model, images_of(ROWS), lengths, window=8, draft=tables, **options)
    assert torch.equal(found, expected)


def drawn_in_rows(likely: Tensor, draft: NeighborTables | None, *, window: int, rows: int):
    """Images whose pixels have the logits that `likely` (V + 1, V) gives the one before, and how
    many passes they took."""
    windows = Windows(
        rows, N + 1, size=window, sampling=SamplingConfig(), n_colors=N_COLORS, draft=draft
    )
    tokens = torch.full((rows, N + 1), N_COLORS)  # of which the start token is known
    known = torch.arange(N + 1).expand_as(tokens) == 0
    noise = GumbelNoise(torch.arange(rows), 1)
    logits = likely[N_COLORS].expand(rows, -1)
    windows.begin(range(rows), tokens, known, [1] * rows, noise, logits)
    while not windows.is_done:
        starts = windows.starts
        windows.draw(likely[windows.fed(windows.positions(starts))], starts)
    return windows.tokens[:, 1:], int(windows.passes.max())


def test_good_tables_take_fewer_passes_and_random_ones_more():
    generator = torch.Generator().manual_seed(5)
    likely = 2 * torch.randn(N_COLORS + 1, N_COLORS, generator=generator)
    images, one_at_a_time = drawn_in_rows(likely, None, window=1, rows=200)
    assert one_at_a_time == N
    good = NeighborTables.counted(images, torch.ones_like(images).bool(), n_colors=N_COLORS)
    passes = {}
    for name, draft in {"none": None, "good": good, "random": random_tables(9.0)}.items():
        found, passes[name] = drawn_in_rows(likely, draft, window=8, rows=8)
        assert torch.equal(found, images[:8])
    assert passes["good"] < 0.9 * passes["none"] < passes["none"] < passes["random"] < N


def test_pixels_that_no_pass_has_seen_are_guessed_by_what_is_frequent():
    """A color that is likely anywhere: a draft that knows it takes fewer passes."""
    likely = torch.zeros(N_COLORS + 1, N_COLORS)
    likely[:, 4] = 9.0
    images, _ = drawn_in_rows(likely, None, window=1, rows=100)
    draft = NeighborTables.counted(images, torch.ones_like(images).bool(), n_colors=N_COLORS)
    draft.tables.zero_()
    unaware = NeighborTables(torch.zeros(N_COLORS), draft.tables)
    _, aware_passes = drawn_in_rows(likely, draft, window=8, rows=8)
    _, passes = drawn_in_rows(likely, unaware, window=8, rows=8)
    assert aware_passes == -(-(N - 1) // 8) + 1 < passes


def test_without_a_draft_the_first_guess_is_the_pixel_above():
    """Images whose rows are all alike take the fewest passes from the second row on."""
    row = torch.randint(0, N_COLORS, (SIDE,), generator=torch.Generator().manual_seed(2))
    image = row.repeat(SIDE)
    windows = Windows(1, N + 1, size=SIDE, sampling=SamplingConfig(greedy=True), n_colors=N_COLORS)
    right = torch.nn.functional.one_hot(torch.nn.functional.pad(image, (0, 1)), N_COLORS).float()
    tokens = torch.nn.functional.pad(image, (1, 0), value=N_COLORS)[None]
    known = torch.arange(N + 1)[None] <= SIDE
    noise = GumbelNoise(torch.arange(1), 1)
    given = tokens.where(known, 0)
    windows.begin(range(1), given, known, [SIDE + 1], noise, right[None, SIDE])
    while not windows.is_done:
        starts = windows.starts
        windows.draw(right[windows.positions(starts)], starts)
    assert torch.equal(windows.tokens[0, 1:], image)
    assert windows.passes.tolist() == [SIDE]
