"""The stages without Ray: built and called as plain objects, held against the core and Pillow."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from igpt_core.generation import passes, places
from igpt_core.generation.completion import complete
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from pictures import BAD, GOOD, SIDE, encoded, photo
from pipeline import rows
from pipeline.inputs.source import find_source
from pipeline.shards import Plan
from pipeline.stages.blocks import shard_metadata, tokens_array
from pipeline.stages.generate import Complete
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.read_images import COLORS, CountColors, ReadImages
from pipeline.stages.sampling import Drawing

N = SIDE**2
GIVEN = N // 2


def plan_of(location: str, shard_size: int, **options: str) -> Plan:
    return find_source(location, **options).cut(shard_size)


def blocks_of(plan: Plan) -> list[pa.Table]:
    """The block of each shard, as the first stage gets it."""
    table = plan.to_table()
    return [table.slice(i, 1) for i in range(table.num_rows)]


def reader(plan: Plan, model: str) -> ReadImages:
    return ReadImages(
        format=plan.format,
        image_column=plan.image_column,
        id_column=plan.id_column,
        passthrough=plan.passthrough,
        palette=model,
        image_size=SIDE,
        resize="exact",
        crop="squash",
        input_options={},
        model_options={},
    )


def counter(plan: Plan) -> CountColors:
    return CountColors(
        format=plan.format,
        image_column=plan.image_column,
        image_size=SIDE,
        resize="exact",
        crop="squash",
        input_options={},
    )


@pytest.fixture
def bad_folder(tmp_path) -> str:
    folder = tmp_path / "bad"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no image")
    return str(folder)


# --- ReadImages -----------------------------------------------------------------------------------


def test_failed_rows_keep_their_error_and_the_shard_its_rows(photos, tiny_model):
    plan = plan_of(photos, 100)
    block = reader(plan, tiny_model)(plan.to_table())
    table = block.to_pylist()
    assert block.schema.field(rows.ROW_TOKENS).type == rows.tokens_type(N)
    shard = shard_metadata(block)
    assert (shard.index, shard.rows, len(table)) == (0, GOOD + len(BAD), GOOD + len(BAD))
    assert sorted(shard.seconds) == ["decode", "read"]
    assert min(shard.seconds.values()) > 0
    assert [row[rows.ROW_ID] for row in table] == sorted(row[rows.ROW_ID] for row in table)
    failed = [row for row in table if row[rows.ERROR_STAGE] is not None]
    assert {row[rows.ROW_ID] for row in failed} == BAD
    errors = {row[rows.ROW_ID]: (row[rows.ERROR_STAGE], row[rows.ERROR_CLASS]) for row in failed}
    assert errors["empty.png"] == ("read", "EmptyImage")
    assert errors["dangling.png"] == ("read", "FileNotFoundError")
    assert errors["text.png"] == errors["truncated.jpg"] == ("decode", "ImageError")
    for row in failed:
        assert row[rows.ROW_TOKENS] is None
        assert row[rows.ERROR_MESSAGE]
        assert "\n" not in row[rows.ERROR_MESSAGE]
        assert row[rows.SOURCE] == str(Path(photos, row[rows.ROW_ID]))


def test_tokens_are_the_nearest_colors_of_the_resized_image(photos, tiny_model):
    """Brute force in float64; only images of different kinds and sizes."""
    plan = plan_of(photos, 100)
    colors = load_palette(tiny_model).colors.astype(np.float64)
    good = [
        row for row in reader(plan, tiny_model)(plan.to_table()).to_pylist() if row[rows.ROW_TOKENS]
    ]
    assert len(good) == GOOD
    for row in good:
        pixels = load_pixels(Path(row[rows.SOURCE]).read_bytes(), SIDE).reshape(-1, 3)
        unit = pixels.astype(np.float64) / 127.5 - 1
        nearest = ((unit[:, None] - colors) ** 2).sum(axis=2).argmin(axis=1)
        assert row[rows.ROW_TOKENS] == nearest.tolist()


def test_shards_one_after_the_other_are_the_whole_input(photos, tiny_model):
    whole = plan_of(photos, 100)
    plan = plan_of(photos, 9)
    read = reader(plan, tiny_model)
    blocks = [read(block) for block in blocks_of(plan)]
    assert pa.concat_tables(blocks).equals(reader(whole, tiny_model)(whole.to_table()))
    shards = [shard_metadata(block) for block in blocks]
    assert [(shard.index, shard.rows) for shard in shards] == [(0, 9), (1, 9), (2, 6)]


def test_columns_of_the_input_come_along_also_beside_a_failed_image(labeled_parquet, tiny_model):
    plan = plan_of(labeled_parquet, 100)
    table = reader(plan, tiny_model)(plan.to_table())
    assert table["label"].to_pylist() == [i % 3 for i in range(23)]
    failed = [i for i, row in enumerate(table[rows.ROW_TOKENS].to_pylist()) if row is None]
    assert failed == [5]
    assert table[rows.ROW_ID][5].as_py() == "labeled.parquet#5"


def test_a_block_of_failed_rows_alone_goes_through_all_stages(bad_folder, tiny_model, monkeypatch):
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was run on nothing")

    plan = plan_of(bad_folder, 100)
    block = reader(plan, tiny_model)(plan.to_table())
    assert block[rows.ROW_TOKENS].to_pylist() == [None] * 3
    stage = completer(tiny_model)
    monkeypatch.setattr(places, "feed_prompts", never)
    finished = stage(block)
    assert finished["samples"].to_pylist() == [None] * 3
    assert finished["samples"].type == rows.samples_type(N)
    assert finished[rows.ERROR_CLASS].to_pylist() == ["ImageError"] * 3


# --- Complete -------------------------------------------------------------------------------------


def completer(model: str, *, images: int = 4, n_samples: int = 2, seed: int = 7) -> Complete:
    drawing = Drawing(n_samples, n_samples, False, seed, SamplingConfig(0.9, top_k=20))
    return Complete(ComputePlan(model, "cpu", "float32", images), drawing, prompt_length=GIVEN)


def tokens_block(ids: list[str | None]) -> pa.Table:
    """Quantized rows, tokens made from the id; None: a row without tokens."""
    drawn = [
        np.random.default_rng(row_seed(0, id_)).integers(0, 32, N) for id_ in ids if id_ is not None
    ]
    column = tokens_array(np.array(drawn, np.uint16), N, valid=[id_ is not None for id_ in ids])
    return pa.table({rows.ROW_ID: pa.array(ids, pa.string()), rows.ROW_TOKENS: column})


def samples_by_id(block: pa.Table) -> dict[str, list[list[int]]]:
    return dict(zip(block[rows.ROW_ID].to_pylist(), block["samples"].to_pylist(), strict=True))


IDS = [f"image-{i}" for i in range(8)]


@pytest.fixture(scope="module")
def full(tiny_model) -> dict[str, list[list[int]]]:
    """The samples of eight rows in two full batches."""
    return samples_by_id(completer(tiny_model)(tokens_block(IDS)))


def test_samples_are_those_of_the_core(full, tiny_model):
    model = load_model(tiny_model, device="cpu", dtype=torch.float32)
    block = tokens_block(IDS)
    ours = complete(
        model,
        torch.tensor(block[rows.ROW_TOKENS].to_pylist())[:4, :GIVEN],
        n_positions=N,
        seeds=torch.tensor([row_seed(7, id_) for id_ in IDS[:4]]),
        sampling=SamplingConfig(temperature=0.9, top_k=20),
        n_samples=2,
    )
    assert [full[id_] for id_ in IDS[:4]] == ours.tolist()
    assert full[IDS[0]][0] != full[IDS[0]][1]
    for id_, tokens in zip(IDS, block[rows.ROW_TOKENS].to_pylist(), strict=True):
        assert [sample[:GIVEN] for sample in full[id_]] == [tokens[:GIVEN]] * 2


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_a_padded_last_batch_gives_the_samples_of_a_full_one(full, tiny_model, count):
    """Bit for bit, in other company: the last rows of the block, in reverse."""
    ids = IDS[::-1][:count]
    found = samples_by_id(completer(tiny_model)(tokens_block(ids)))
    assert found == {id_: full[id_] for id_ in ids}


def test_failed_rows_move_the_others_to_other_batches_and_change_none(full, tiny_model):
    ids = [IDS[0], None, IDS[1], IDS[2], None, None, IDS[3], IDS[4], IDS[5], None]
    found = completer(tiny_model)(tokens_block(ids))
    assert found["samples"].to_pylist() == [id_ and full[id_] for id_ in ids]
    assert found["prompt_length"].to_pylist() == [GIVEN] * len(ids)


def test_the_model_sees_batches_of_one_size_only(tiny_model, monkeypatch):
    """A tiny model rounds alike in batches of any size; a large one does not."""
    fed, steps = [], set()

    def feed(model: object, tokens: torch.Tensor, **options: object) -> object:
        fed.append(tuple(tokens.shape))
        return feed_prompts(model, tokens, **options)

    def step(model: object, tokens: torch.Tensor, *rest: object, **options: object) -> object:
        steps.add(tuple(tokens.shape))
        return decode_window(model, tokens, *rest, **options)

    feed_prompts, decode_window = places.feed_prompts, passes.decode_window
    monkeypatch.setattr(places, "feed_prompts", feed)
    monkeypatch.setattr(passes, "decode_window", step)
    completer(tiny_model)(tokens_block(IDS[:6]))
    assert fed == [(4, GIVEN + 1)] * 2
    assert steps == {(8, 1)}  # two samples of each


def test_another_seed_gives_other_samples(full, tiny_model):
    other = samples_by_id(completer(tiny_model, seed=8)(tokens_block(IDS)))
    assert all(other[id_] != full[id_] for id_ in IDS)


# --- CountColors ----------------------------------------------------------------------------------


def test_every_color_of_the_good_images_is_counted_by_shard(photos):
    plan = plan_of(photos, 16)
    count = counter(plan)
    blocks = [count(block) for block in blocks_of(plan)]
    assert {block.schema for block in blocks} == {COLORS}
    found = pa.concat_tables(blocks).to_pylist()
    assert [row["rows"] + row["errors"] for row in found] == [16, 8]
    assert sum(row["errors"] for row in found) == len(BAD)
    for row, shard in zip(found, plan.shards, strict=True):
        expected: Counter[int] = Counter()
        for file in shard.slices:
            if file.name not in BAD:
                pixels = load_pixels(Path(file.path).read_bytes(), SIDE).reshape(-1, 3)
                expected.update(int(r) << 16 | int(g) << 8 | int(b) for r, g, b in pixels)
        assert dict(zip(row["colors"], row["counts"], strict=True)) == expected


def test_a_photograph_in_a_table_counts_like_the_file(tmp_path):
    image = encoded(photo(3))
    (tmp_path / "a.png").write_bytes(image)
    pq.write_table(pa.table({"image": [image], "label": [4]}), tmp_path / "a.parquet")
    plans = [plan_of(str(tmp_path / name), 1) for name in ("a.png", "a.parquet")]
    file, table = (counter(plan)(plan.to_table()).drop("seconds").to_pylist() for plan in plans)
    assert file == table
    assert sum(file[0]["counts"]) == N


def test_failed_rows_alone_have_no_colors(bad_folder):
    plan = plan_of(bad_folder, 100)
    assert counter(plan)(plan.to_table()).drop("seconds").to_pylist() == [
        {"rows": 0, "errors": 3, "colors": [], "counts": []}
    ]


WITHOUT_TORCH = """
import sys
import pyarrow as pa
import pipeline.batch.run, pipeline.engine.stage, pipeline.stages.dataset_rows
from jobs.quantize import QuantizeOptions, define
from pipeline.stages.read_images import ReadImages
from pipeline.stages.write_parts import WriteParts

palette, images, output = sys.argv[1:]
options = QuantizeOptions(input=images, output=output, palette=palette, image_size=8)
define(options).find_source()
ReadImages(
    format="images", image_column=None, id_column=None, passthrough=pa.schema([]),
    palette=palette, image_size=8, resize="exact", crop="squash", input_options={},
    model_options={},
)
WriteParts(
    output=output, lease=None, job="quantize", schema=pa.schema([]), image_size=8,
    palette=palette, examples=1, output_options={}, model_options={},
)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_job_without_a_model_comes_without_torch(photos, tiny_model, tmp_path, kind):
    """Past bug: each of hundreds of readers, and the driver, took two seconds to import it, and
    hundreds of megabytes."""
    palette = tiny_model
    if kind == "file":
        palette = str(tmp_path / "palette.npy")
        load_palette(tiny_model).save(palette)
    command = [sys.executable, "-c", WITHOUT_TORCH, palette, photos, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr
