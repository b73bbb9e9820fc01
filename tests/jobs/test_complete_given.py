"""What `igpt complete` is given: an upper part, masks beside it, or prompts of its own."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from igpt_core.generation.completion import complete
from igpt_core.generation.known_pixels import prompt_length
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from pictures import SIDE, photo
from runs import columns, errors, igpt, parts, refusal, results, tokens_of_files

N = SIDE**2
COMMON = {"seed": 7, "samples": 2, "batch_size": 8, "device": "cpu", "dtype": "float32"}


def opened(image: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


# --- --keep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "given"),
    [("0.25", 16), (".5", 32), ("3rows", 24), ("1 row", 8), ("20pixels", 20), ("63px", 63)],
)
def test_keep_is_a_share_or_rows_or_pixels(keep, given):
    assert prompt_length(keep, SIDE, masked=False) == given


@pytest.mark.parametrize(("keep", "given"), [("3rows", 24), ("20pixels", 20)])
def test_what_is_kept_begins_every_sample_and_is_the_prompt(
    in_process, photos, tiny_model, tmp_path, keep, given
):
    output = tmp_path / "run"
    igpt("complete", input=photos, model=tiny_model, output=output, keep=keep, limit=3, **COMMON)
    palette = load_palette(tiny_model)
    for row in results(output):
        assert row["prompt_length"] == given
        first, second = row["samples"]
        assert first[:given] == second[:given] == row["tokens"][:given]
        assert first != second
        pixels = palette.decode(np.array(row["tokens"])).reshape(SIDE, SIDE, 3)
        shown, n_rows = opened(row["prompt"]), -(-given // SIDE)
        assert shown.shape[:2] == (n_rows, SIDE)
        known = np.arange(n_rows * SIDE).reshape(n_rows, SIDE) < given
        assert np.array_equal(shown[..., :3][known], pixels[:n_rows][known])
        if given % SIDE:
            assert np.array_equal(shown[..., 3], np.where(known, 255, 0)), "unknown ones are clear"
        else:
            assert shown.shape[2] == 3


@pytest.mark.parametrize("keep", ["1.5", "0", "1", "8rows", "64pixels", "-1", "half", "3 apples"])
def test_nothing_and_everything_cannot_be_kept(photos, tiny_model, tmp_path, capsys, keep):
    output = tmp_path / "run"
    message = refusal(capsys, "complete", input=photos, model=tiny_model, output=output, keep=keep)
    assert "--keep" in message
    assert keep in message
    assert not output.exists()


def write_halves(folder: Path) -> dict[str, tuple[int, int]]:
    """Upper parts of several heights, and three images that are none; their sizes by name."""
    sizes = {"a.png": (64, 32), "b.jpg": (80, 20), "c.png": (40, 35), "d.png": (64, 16),
             "flat.png": (90, 3), "square.png": (20, 20), "tall.png": (20, 40)}  # fmt: skip
    folder.mkdir()
    for seed, (name, size) in enumerate(sizes.items()):
        photo(seed, size=size).save(folder / name)
    return sizes


def test_with_keep_all_an_image_is_the_known_part_in_its_own_shape(
    in_process, tiny_model, tmp_path
):
    """Past bug: a half of 64 x 32 was squashed to a square, and the model saw a stretched quarter.
    What is expected comes from Pillow and the core alone, row by row."""
    sizes = write_halves(tmp_path / "halves")
    run = tmp_path / "run"
    igpt("complete", input=tmp_path / "halves", model=tiny_model, output=run, keep="all",
         max_error_fraction=0.5, **COMMON)  # fmt: skip
    assert errors(run) == dict.fromkeys(("flat.png", "square.png", "tall.png"), "WrongShape")
    messages = pq.read_table(run / "errors")["message"].to_pylist()
    assert any("20 x 40 pixels" in message for message in messages)
    assert list(columns(run)) == ["id", "samples", "images", "prompt", "prompt_length"]
    palette, model = (
        load_palette(tiny_model),
        load_model(tiny_model, device="cpu", dtype=torch.float32),
    )
    heights = {"a.png": 4, "b.jpg": 2, "c.png": 7, "d.png": 2}
    rows = results(run)
    assert [row["id"] for row in rows] == list(heights)
    for row in rows:
        name, height = row["id"], heights[row["id"]]
        assert height == round(SIDE * sizes[name][1] / sizes[name][0])
        half = Image.open(tmp_path / "halves" / name)
        pixels = np.asarray(half.resize((SIDE, height), Image.Resampling.BILINEAR))
        tokens = palette.encode(pixels).ravel()
        assert row["prompt_length"] == len(tokens) == height * SIDE
        assert np.array_equal(opened(row["prompt"]), palette.decode(tokens.reshape(-1, SIDE)))
        alone = complete(
            model,
            torch.from_numpy(tokens.astype(np.int64))[None],
            n_positions=N,
            seeds=torch.tensor([row_seed(7, name)]),
            sampling=SamplingConfig(),
            n_samples=2,
        )
        assert row["samples"] == alone[0].tolist()
    igpt("verify", run, replay=2)
    assert (run / "report.html").exists()


def test_an_option_without_meaning_beside_keep_all_is_refused(photos, tiny_model, tmp_path, capsys):
    pq.write_table(
        pa.table({"tokens": pa.array([[1] * 8], pa.list_(pa.int32()))}), tmp_path / "t.parquet"
    )
    options = {"model": tiny_model, "output": tmp_path / "run", "keep": "all"}
    for given in (
        {"mask": "m.png"},
        {"crop": "center"},
        {"resize": "fast"},
        {"prompt_column": "p"},
    ):
        message = refusal(capsys, "complete", input=photos, **options, **given)
        assert f"--{next(iter(given)).replace('_', '-')}" in message
    message = refusal(capsys, "complete", input=tmp_path / "t.parquet", **options)
    assert "--keep all is for images" in message
    assert "--prompt-column tokens" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("job", "options", "n"),
    [
        ("complete", {}, 5),
        ("quantize", {"resize": "fast"}, 5),
        ("embed", {"crop": "center"}, 0),
        ("complete", {"keep": "all", "max_error_fraction": 0.5}, 0),
    ],
)
def test_images_far_from_square_that_were_squashed_are_counted_in_a_line(
    in_process, tiny_model, tmp_path, capsys, job, options, n
):
    """All but `c.png` and `square.png`; the picture that is none does not count."""
    write_halves(tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:300])
    options = {"input": tmp_path / "in", "model": tiny_model, "output": tmp_path / "run",
               "max_error_fraction": 0.2, **options}  # fmt: skip
    said = []
    for _ in range(2):  # the second finds all done
        igpt(job, **options, quiet=False)
        said.append([line for line in capsys.readouterr().err.splitlines() if "squashed" in line])
    igpt(job, **options)
    assert "squashed" not in capsys.readouterr().err
    assert said[0] == said[1]
    assert len(said[0]) == (n > 0)
    if n:
        assert said[0][0].startswith(f"{n} images with one side at least twice the other squashed")
        assert "--crop center" in said[0][0]
        assert ("--keep all" in said[0][0]) == (job == "complete")
        photo(9, size=(90, 10)).save(tmp_path / "in" / "bad.png")
        igpt("retry-failed", tmp_path / "run", quiet=False)
        assert f"{n + 1} images with one side" in capsys.readouterr().err


# --- --mask ---------------------------------------------------------------------------------------


def save_mask(path: Path, given: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(given, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def given() -> np.ndarray:
    """(SIDE, SIDE) bool, true where the pixel is given: a few, above and below."""
    return np.random.default_rng(3).random((SIDE, SIDE)) < 0.3


def test_black_pixels_of_a_mask_are_given_beside_the_upper_part(
    in_process, photos, tiny_model, tmp_path, given, capsys
):
    save_mask(tmp_path / "mask.png", given)
    options = {"input": photos, "model": tiny_model, "limit": 6, **COMMON, "keep": "2rows"}
    masked = {"mask": tmp_path / "mask.png", "output": tmp_path / "run"}
    igpt("complete", **options, **masked)
    known = given.ravel() | (np.arange(N) < 2 * SIDE)
    rows = results(tmp_path / "run")
    tokens = tokens_of_files(photos, [row["id"] for row in rows], tiny_model).numpy()
    palette = load_palette(tiny_model)
    for row, whole in zip(rows, tokens, strict=True):
        assert row["tokens"] == whole.tolist()
        assert row["prompt_length"] == 2 * SIDE
        for sample in np.array(row["samples"]):
            assert np.array_equal(sample[known], whole[known])
            assert not np.array_equal(sample[~known], whole[~known])
        shown = opened(row["prompt"]).reshape(-1, 4)
        opaque = shown[:, 3] == 255
        assert np.array_equal(opaque, known[: len(shown)])
        assert not known[len(shown) :].any()
        assert np.array_equal(shown[opaque, :3], palette.decode(whole[: len(shown)][opaque]))
    before = parts(tmp_path / "run")
    save_mask(tmp_path / "mask.png", ~given)
    assert "mask: " in refusal(capsys, "complete", **options, **masked)
    assert "mask: " in refusal(capsys, "complete", **options, output=tmp_path / "run")
    assert parts(tmp_path / "run") == before


def test_with_a_mask_nothing_need_be_kept_and_each_id_may_have_its_own(
    in_process, tiny_model, tmp_path, given
):
    """Two of four have a mask; one of its own name, one with .png in place of .jpg."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "deep").mkdir(parents=True)
    for seed, name in enumerate(["a.png", "b.png", "c.png", "deep/d.jpg"]):
        photo(seed).save(images / name)
    save_mask(masks / "a.png", given)
    save_mask(masks / "deep/d.png", ~given)
    (masks / "c.png").write_text("no image")
    igpt("complete", input=images, model=tiny_model, output=tmp_path / "run", mask=masks, keep=0,
         max_error_fraction=0.5, **COMMON)  # fmt: skip
    assert errors(tmp_path / "run") == {"b.png": "MissingMask", "c.png": "ImageError"}
    rows = results(tmp_path / "run")
    assert [row["id"] for row in rows] == ["a.png", "deep/d.jpg"]
    for row, known in zip(rows, [given.ravel(), ~given.ravel()], strict=True):
        assert row["prompt_length"] == 0
        for sample in np.array(row["samples"]):
            assert np.array_equal(sample[known], np.array(row["tokens"])[known])
            assert not np.array_equal(sample[~known], np.array(row["tokens"])[~known])


def test_masks_that_cannot_be_used_are_refused(photos, tiny_model, tmp_path, capsys):
    (tmp_path / "mask.png").write_text("no image")
    options = {"input": photos, "model": tiny_model, "output": tmp_path / "run"}
    for mask in ("mask.png", "nowhere.png"):
        message = refusal(capsys, "complete", **options, mask=tmp_path / mask)
        assert "--mask" in message
        assert mask in message
    assert not (tmp_path / "run").exists()


# --- --prompt-column ------------------------------------------------------------------------------


def write_prompts(path: Path) -> list[list[int] | None]:
    """Prompts of several lengths, the bad ones among them: too long, beyond the palette, null."""
    rng = np.random.default_rng(1)
    lengths = [5, 0, 63, 5, 20, 64, 5, 3, 0, 20]
    prompts: list = [rng.integers(0, 32, n).tolist() for n in lengths]
    prompts[7] = None
    prompts[6][2] = 32
    names = [f"row {i}" for i in range(len(prompts))]
    column = pa.array(prompts, pa.list_(pa.int32()))
    pq.write_table(pa.table({"start": column, "name": names, "label": range(10)}), path)
    return prompts


@pytest.mark.parametrize("id_column", [None, "name"])
def test_prompts_are_completed_as_the_core_does_one_by_one(
    in_process, tiny_model, tmp_path, id_column
):
    prompts = write_prompts(tmp_path / "p.parquet")
    options = {} if id_column is None else {"id_column": id_column}
    igpt("complete", input=tmp_path / "p.parquet", model=tiny_model, output=tmp_path / "run",
         prompt_column="start", max_error_fraction=0.5, **options, **COMMON)  # fmt: skip
    ids = [f"row {i}" if id_column else f"p.parquet#{i}" for i in range(len(prompts))]
    bad = {5, 6, 7}
    assert errors(tmp_path / "run").keys() == {ids[i] for i in bad}
    rows = results(tmp_path / "run")
    good = [i for i in range(len(prompts)) if i not in bad]
    assert [row["id"] for row in rows] == [ids[i] for i in good]
    assert [row["label"] for row in rows] == good
    made = ["samples", "images", "prompt", "prompt_length"]
    assert list(columns(tmp_path / "run")) == ["id", "name", "label", *made]
    model = load_model(tiny_model, device="cpu", dtype=torch.float32)
    for row, i in zip(rows, good, strict=True):
        assert row["prompt_length"] == len(prompts[i])
        alone = complete(
            model,
            torch.tensor([prompts[i]], dtype=torch.int64),
            n_positions=N,
            seeds=torch.tensor([row_seed(7, row["id"])]),
            sampling=SamplingConfig(),
            n_samples=2,
        )
        assert row["samples"] == alone[0].tolist()
        assert (row["prompt"] is None) == (not prompts[i])
        assert [opened(image).shape for image in row["images"]] == [(SIDE, SIDE, 3)] * 2
    loaded = load_dataset(str(tmp_path / "run"), split="train", cache_dir=str(tmp_path / "cache"))
    shown = [row["prompt"] is None for row in loaded]
    assert shown == [not prompts[i] for i in good]
    igpt("verify", tmp_path / "run", replay=2)  # exits where a batch is another


def test_a_prompt_column_that_is_missing_or_no_tokens_is_refused(tiny_model, tmp_path, capsys):
    write_prompts(tmp_path / "p.parquet")
    options = {"input": tmp_path / "p.parquet", "model": tiny_model, "output": tmp_path / "run"}
    assert "no such column" in refusal(capsys, "complete", **options, prompt_column="begin")
    assert "name" in refusal(capsys, "complete", **options, prompt_column="name")
    both = refusal(capsys, "complete", **options, prompt_column="start", mask=tmp_path)
    assert "found both" in both
    assert not (tmp_path / "run").exists()
