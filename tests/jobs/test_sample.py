"""`igpt sample` from end to end: held against the core and transformers, resumed, refused."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from igpt_core.generation.completion import complete
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from pictures import SIDE
from runs import columns, igpt, nats_by_transformers, parts, refusal, results

COUNT = 9
COMMON = {
    "seed": 7,
    "batch_size": 4,
    "shard_size": 4,
    "top_k": 20,
    "device": "cpu",
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def sampled(in_process, tiny_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "sampled"
    igpt("sample", count=COUNT, model=tiny_model, output=output, score=True, **COMMON)
    return output


def test_columns_are_the_documented_ones_and_ids_count_up(sampled):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert columns(sampled) == {
        "id": pa.string(),
        "tokens": pa.list_(pa.uint16(), SIDE**2),
        "image": image,
        "nll": pa.float32(),
        "bits_per_pixel": pa.float32(),
    }
    assert [row["id"] for row in results(sampled)] == [f"sample-{i:08d}" for i in range(COUNT)]
    assert len(parts(sampled)) == 3


def test_samples_are_those_of_the_core_alone(sampled, tiny_model):
    """All in one batch, in the other order, without the pipeline."""
    model = load_model(tiny_model, device="cpu", dtype=torch.float32)
    rows = results(sampled)[::-1]
    ours = complete(
        model,
        torch.empty((COUNT, 0), dtype=torch.int64),
        n_positions=SIDE**2,
        seeds=torch.tensor([row_seed(7, row["id"]) for row in rows]),
        sampling=SamplingConfig(top_k=20),
    )[:, 0]
    theirs = torch.tensor([row["tokens"] for row in rows])
    # Another number of rows may round a logit otherwise; that changes a token once in about 10^5.
    assert (ours == theirs).float().mean() > 0.99
    assert len({tuple(row["tokens"]) for row in rows}) == COUNT


def test_nats_are_those_of_transformers(sampled, tiny_model):
    rows = results(sampled)
    nats = nats_by_transformers(tiny_model, torch.tensor([row["tokens"] for row in rows]))
    for row, nll in zip(rows, nats.mean(dim=1).tolist(), strict=True):
        assert row["nll"] == pytest.approx(nll, abs=1e-4)
        assert row["bits_per_pixel"] == pytest.approx(nll / math.log(2), abs=2e-4)


def test_pictures_are_the_colors_of_the_tokens(sampled, tiny_model, tmp_path):
    palette = load_palette(tiny_model)
    loaded = load_dataset(str(sampled), split="train", cache_dir=str(tmp_path))
    assert loaded.features["tokens"].length == SIDE**2
    for row, shown in zip(results(sampled), loaded, strict=True):
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert picture.format == "PNG"
        pixels = palette.decode(np.array(row["tokens"])).reshape(SIDE, SIDE, 3)
        assert np.array_equal(np.asarray(picture), pixels)
        assert np.array_equal(np.asarray(shown["image"]), pixels)


def test_a_longer_run_in_other_shards_begins_with_the_same_rows(sampled, tiny_model, tmp_path):
    changed = {"shard_size": 6, "model_actors": 1}
    output = tmp_path / "longer"
    igpt("sample", count=COUNT + 4, model=tiny_model, output=output, score=True, **COMMON | changed)
    longer = pq.read_table(output / "data")
    assert longer.num_rows == COUNT + 4
    assert longer.slice(0, COUNT) == pq.read_table(sampled / "data")


def test_a_lost_part_is_done_again_and_another_seed_or_count_refused(sampled, tiny_model, capsys):
    before = parts(sampled)
    (sampled / "data" / "part-000001.parquet").unlink()
    options = {"count": COUNT, "model": tiny_model, "output": sampled, "score": True, **COMMON}
    igpt("sample", **options)
    assert parts(sampled) == before
    assert "seed: 7 there, 8 now" in refusal(capsys, "sample", **options | {"seed": 8})
    assert "count: 9 there, 12 now" in refusal(capsys, "sample", **options | {"count": 12})
    assert parts(sampled) == before


def test_a_run_with_the_noise_of_before_is_not_resumed(sampled, tiny_model, tmp_path, capsys):
    """It would hold the images of two kinds of noise."""
    output = tmp_path / "run"
    shutil.copytree(sampled, output)
    record = json.loads((output / "run.json").read_text())
    assert record["results"].pop("noise") == 2
    (output / "run.json").write_text(json.dumps(record))
    next((output / "data").iterdir()).unlink()
    before = sorted(path.name for path in output.rglob("*"))
    options = {"count": COUNT, "model": tiny_model, "output": output, "score": True, **COMMON}
    assert refusal(capsys, "sample", **options) == (
        f"igpt: {output} was drawn with noise version 1, this igpt draws with version 2: the same "
        "seed gives other images; next: the version of igpt that began it, or --overwrite to draw "
        "all of it anew, or another --output\n"
    )
    assert sorted(path.name for path in output.rglob("*")) == before


def test_scores_of_the_run_are_those_that_it_gave_itself(sampled, tiny_model, tmp_path):
    igpt("score", input=sampled, model=tiny_model, output=tmp_path / "scores", device="cpu",
         dtype="float32")  # fmt: skip
    found = pq.read_table(tmp_path / "scores/data")
    expected = pq.read_table(sampled / "data")
    assert found.column_names == ["id", "nll", "bits_per_pixel"]
    assert found["id"] == expected["id"]
    for name in ("nll", "bits_per_pixel"):
        assert np.allclose(found[name], expected[name], rtol=0, atol=1e-4)


def test_the_best_of_several_has_the_lowest_nll_of_them(in_process, tiny_model, tmp_path):
    options = COMMON | {"count": 4, "batch_size": 12, "model": tiny_model}
    igpt("sample", **options, best_of=3, output=tmp_path / "best")
    found = results(tmp_path / "best")
    model = load_model(tiny_model, device="cpu", dtype=torch.float32)
    drawn = complete(
        model,
        torch.empty((4, 0), dtype=torch.int64),
        n_positions=SIDE**2,
        seeds=torch.tensor([row_seed(7, row["id"]) for row in found]),
        sampling=SamplingConfig(top_k=20),
        n_samples=3,
    )
    nats = nats_by_transformers(tiny_model, drawn.flatten(0, 1)).mean(dim=1).view(4, 3)
    best = nats.argmin(dim=1)
    assert len(set(best.tolist())) > 1, "not always the first"
    for row, candidates, k, nll in zip(found, drawn, best, nats, strict=True):
        assert row["tokens"] == candidates[k].tolist()
        assert row["sample_index"] == k
        assert row["nll"] == pytest.approx(nll[k].item(), abs=1e-4)


def test_without_scores_there_are_no_nats(in_process, tiny_model, tmp_path):
    igpt("sample", count=1, model=tiny_model, output=tmp_path / "run", device="cpu")
    assert list(columns(tmp_path / "run")) == ["id", "tokens", "image"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 0}, "--count"),
        ({"count": -1}, "--count"),
        ({"count": 1, "best_of": 0}, "--best-of"),
        ({"count": 1, "best_of": 3, "batch_size": 2}, "--batch-size 2 is below the 3"),
        ({"count": 1, "input": "photos"}, "--input"),
        ({}, "--count"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny_model, tmp_path, capsys, options, says):
    output = tmp_path / "run"
    assert says in refusal(capsys, "sample", model=tiny_model, output=output, **options)
    assert not output.exists()
