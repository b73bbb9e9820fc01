"""Jobs on a user's own Ray dataset: the same results as by the command line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from ray.data.extensions import ArrowTensorArray

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from jobs.__main__ import main
from jobs.on_dataset import on_dataset
from pictures import GOOD, SIDE, photo
from pipeline import rows
from pipeline.errors import UsageError
from pipeline.stages.dataset_rows import TokenizeRows

OPTIONS = {"device": "cpu", "batch_size": 8}


def rows_of(photos: str) -> pa.Table:
    """The folder of photos as a table as a user might have it, the broken images among them."""
    paths = sorted(path for path in Path(photos).rglob("*") if path.suffix != ".txt")
    paths = [path for path in paths if path.is_file()]
    return pa.table(
        {
            "name": [path.relative_to(photos).as_posix() for path in paths],
            "size": [path.stat().st_size for path in paths],
            "picture": pa.array([path.read_bytes() for path in paths], pa.binary()),
        }
    )


@pytest.mark.parametrize("job", ["embed", "complete"])
def test_results_are_those_of_the_command_line(ray_session, photos, tiny_model, tmp_path, job):
    options = OPTIONS | {"model": tiny_model} | ({"samples": 2} if job == "complete" else {})
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    output = f"--output={tmp_path / 'run'}"
    main([job, f"--input={photos}", output, "--max-error-fraction=1", "--quiet", *flags])
    expected = {row["id"]: row for row in pq.read_table(tmp_path / "run" / "data").to_pylist()}

    table = rows_of(photos)
    dataset = ray.data.from_arrow(table).repartition(3)
    found = on_dataset(job, dataset, options, image_column="picture", id_column="name").take_all()
    assert len(found) == table.num_rows
    good = [row for row in found if row["error"] is None]
    assert len(good) == GOOD == len(expected)
    sizes = dict(zip(table["name"].to_pylist(), table["size"].to_pylist(), strict=True))
    for row in good:
        wanted = expected[row["name"]]
        assert set(row) == (set(wanted) - {"id"}) | {"name", "size", "error"}
        assert row["size"] == sizes[row["name"]]
        for column in set(wanted) - {"id"}:
            assert np.array_equal(row[column], wanted[column]), column
    bad = {row["name"]: row["error"] for row in found if row["error"] is not None}
    assert set(bad) == {"truncated.jpg", "text.png", "empty.png"}
    assert bad["empty.png"].startswith("EmptyImage: ")


def test_arrays_of_read_images_and_ready_tokens(ray_session, tiny_model, tmp_path):
    """ray.data.read_images gives arrays (H, W, C), here of several sizes. What they quantize to
    can be scored as it is. Past bug: an image of 3 rows was taken for one of 3 channels."""
    palette = load_palette(tiny_model)
    sizes = [(20, 16), (9, 30), (8, 8), (32, 3), (3, 32), (32, 1), (32, 4), (3, 3)]
    for i, size in enumerate(sizes):
        photo(i, size=size).save(tmp_path / f"{i}.png")
    images = ray.data.read_images(str(tmp_path), include_paths=True)
    tokens = on_dataset("quantize", images, {"model": tiny_model}, id_column="path")
    found = tokens.materialize()
    for row in found.take_all():
        assert row["error"] is None
        pixels = load_pixels(Image.open(row["path"]), SIDE)
        assert np.array_equal(row["tokens"], palette.encode(pixels).ravel())
    options = OPTIONS | {"model": tiny_model}
    first = on_dataset("score", images, options).take_all()
    again = on_dataset("score", found.drop_columns(["error"]), options, image_column="tokens")
    scores = {row["path"]: row["nll"] for row in again.take_all()}
    assert {row["path"]: row["nll"] for row in first} == scores
    assert len(scores) == len(sizes)


def test_keep_all_takes_images_for_the_known_part(ray_session, tiny_model, tmp_path):
    sizes = {"a.png": (64, 32), "b.png": (80, 20), "square.png": (20, 20)}
    for seed, (name, size) in enumerate(sizes.items()):
        photo(seed, size=size).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in sizes]
    images = ray.data.read_images(paths, include_paths=True)
    options = OPTIONS | {"model": tiny_model, "keep": "all"}
    found = on_dataset("complete", images, options, id_column="path").take_all()
    lengths = {Path(row["path"]).name: row["prompt_length"] for row in found}
    assert lengths == {"a.png": 4 * SIDE, "b.png": 2 * SIDE, "square.png": None}
    assert {row["error"] is None for row in found if row["prompt_length"]} == {True}
    (error,) = [row["error"] for row in found if row["error"]]
    assert error.startswith("WrongShape: ")
    assert not {"tokens", "original"} & set(found[0])


def test_arrays_of_one_size_are_a_tensor_of_all_rows(tiny_model):
    """As Ray's own type has them; without Ray."""
    pixels = np.stack([np.asarray(photo(i, size=(20, 16))) for i in range(3)])
    block = pa.table({"image": ArrowTensorArray.from_numpy(pixels)})
    found = TokenizeRows(
        image_column="image",
        id_column=None,
        palette=tiny_model,
        image_size=SIDE,
        resize="exact",
        crop="squash",
        model_options={},
    )(block)
    palette = load_palette(tiny_model)
    for image, tokens in zip(pixels, found[rows.ROW_TOKENS].to_pylist(), strict=True):
        expected = palette.encode(load_pixels(Image.fromarray(image), SIDE))
        assert tokens == expected.ravel().tolist()


@pytest.mark.parametrize(
    ("job", "options", "columns", "says"),
    [
        ("train", {}, {}, "quantize, complete, embed, score, classify"),
        ("embed", {"layers": "7"}, {}, "--layers 7"),
        ("embed", {"input": "photos"}, {}, "input has no meaning"),
        ("embed", {"layer": "3"}, {}, "--layer is not an option"),
        ("complete", {}, {}, "id_column"),
        ("embed", {}, {"image_column": "img"}, "the dataset has name, picture"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    ray_session, tiny_model, job, options, columns, says
):
    dataset = ray.data.from_arrow(pa.table({"name": ["a"], "picture": [b"x"]}))
    with pytest.raises(UsageError, match=says):
        on_dataset(
            job, dataset, {"model": tiny_model} | options, **({"image_column": "picture"} | columns)
        )
