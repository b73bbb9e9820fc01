"""`igpt complete` with the nats of its completions, and the best of several."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from igpt_core import SamplingConfig
from pictures import SIDE
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.sampling import Drawing, Prompt, Sampler
from runs import columns, igpt, nats_by_transformers, refusal, results

GIVEN = 20
COMMON = {
    "keep": "20pixels",
    "seed": 7,
    "batch_size": 16,
    "limit": 5,
    "device": "cpu",
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def four(in_process, photos, tiny_model, tmp_path_factory) -> Path:
    """Four completions of each of five photos, scored."""
    output = tmp_path_factory.mktemp("runs") / "four"
    igpt("complete", input=photos, model=tiny_model, output=output, samples=4, score=True, **COMMON)
    return output


def test_nats_are_means_over_the_generated_pixels_by_transformers(four, tiny_model):
    assert columns(four)["nll"] == pa.list_(pa.float32())
    rows = results(four)
    assert len(rows) == 5
    for row in rows:
        assert row["prompt_length"] == GIVEN
        nats = nats_by_transformers(tiny_model, torch.tensor(row["samples"]))
        assert len(row["nll"]) == 4
        assert row["nll"] == pytest.approx(nats[:, GIVEN:].mean(dim=1).tolist(), abs=1e-4)
        assert abs(row["nll"][0] - nats[0].mean()) > 1e-3, "the given pixels do not count"


@pytest.mark.parametrize("samples", [2, 4])
def test_the_likeliest_come_first_whatever_is_kept(four, photos, tiny_model, tmp_path, samples):
    """The same four are drawn in each run, and without scores they are in the order of drawing.

    Past bug: `--best-of 4` put 3 of them in order, and left 4 as they were drawn."""
    options = {"input": photos, "model": tiny_model, **COMMON}
    igpt("complete", **options, best_of=4, samples=samples, output=tmp_path / "best")
    igpt("complete", **options, samples=4, output=tmp_path / "drawn")
    assert columns(tmp_path / "best") == columns(four)
    assert columns(four)["sample_index"] == pa.list_(pa.int32())
    assert not {"nll", "sample_index"} & columns(tmp_path / "drawn").keys()
    every = [results(output) for output in (tmp_path / "best", four, tmp_path / "drawn")]
    orders = set()
    for best, scored, drawn in zip(*every, strict=True):
        assert best["id"] == scored["id"] == drawn["id"]
        order = scored["sample_index"]
        orders.add(tuple(order))
        assert sorted(order) == [0, 1, 2, 3]
        assert scored["nll"] == sorted(scored["nll"])
        nats = nats_by_transformers(tiny_model, torch.tensor(drawn["samples"]))
        nats = nats[:, GIVEN:].mean(dim=1)
        assert scored["nll"] == pytest.approx([nats[k].item() for k in order], abs=1e-4)
        for name in ("samples", "images"):
            assert scored[name] == [drawn[name][k] for k in order]
        for name in ("sample_index", "nll", "samples", "images"):
            assert best[name] == scored[name][:samples]
    assert len(orders) > 1, "not always the same one"


def test_samples_of_one_nll_are_in_the_order_of_drawing(tiny_model):
    """Greedy decoding draws the same each time."""
    plan = ComputePlan(tiny_model, "cpu", "float32", 2, 3)
    sampler = Sampler(plan, Drawing(2, 3, True, 0, SamplingConfig(greedy=True)))
    found = sampler.sample(Prompt(np.zeros((2, SIDE**2), np.uint16), 5), ["a", "b"])
    assert found.index.tolist() == [[0, 1], [0, 1]]


def test_scored_runs_of_an_earlier_version_are_read_but_not_resumed(
    in_process, photos, tiny_model, tmp_path, capsys
):
    """They have no column `sample_index`, and may have their samples in another order. Runs
    without scores are what they were."""
    for name, score in (("scored", {"score": True}), ("plain", {})):
        options = {"input": photos, "model": tiny_model, "samples": 2, **COMMON, **score}
        output = tmp_path / name
        igpt("complete", **options, output=output)
        record = json.loads((output / "run.json").read_text())
        assert record["results"].pop("sample_index") == (True if score else None)
        record["columns"] = [c for c in record["columns"] if c["name"] != "sample_index"]
        (output / "run.json").write_text(json.dumps(record))
        for part in (output / "data").iterdir():
            table = pq.read_table(part)
            kept = [column for column in table.column_names if column != "sample_index"]
            features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
            features.pop("sample_index", None)
            known = json.dumps({"info": {"features": features}})
            pq.write_table(table.select(kept).replace_schema_metadata({"huggingface": known}), part)
        igpt("verify", output)
        igpt("report", output)
        igpt("export", output, to="png", output=tmp_path / f"{name}-png")
        if score:
            message = refusal(capsys, "complete", **options, output=output)
            assert "sample_index: None there, True now" in message
        else:
            igpt("complete", **options, output=output)


def test_replay_retry_and_export_agree_with_the_order(
    in_process, photos, tiny_model, tmp_path, capsys
):
    images, output = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, images, symlinks=True)
    options = {"model": tiny_model, "output": output, "samples": 3, "best_of": 4, **COMMON}
    igpt("complete", input=images, max_error_fraction=1, **options | {"limit": 30, "shard_size": 6})
    igpt("verify", output, replay=4)
    before = {row["id"]: row for row in results(output)}
    shutil.copy(images / "00.png", images / "text.png")
    igpt("retry-failed", output)
    after = {row["id"]: row for row in results(output)}
    assert after.keys() - before.keys() == {"text.png"}
    assert before.items() <= after.items()
    row = after["text.png"]
    assert (len(row["sample_index"]), row["nll"]) == (3, sorted(row["nll"]))
    igpt("verify", output, replay=4)
    igpt("export", output, to="png", output=tmp_path / "png")
    index = [
        row
        for path in sorted((tmp_path / "png/images").glob("*/metadata.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(index) == 3 * len(after)
    for found in index:
        row, place = after[found["id"]], found["sample"]
        assert found["sample_index"] == row["sample_index"][place]
        assert found["nll"] == row["nll"][place]


def test_nats_of_masked_images_are_means_over_what_was_painted(
    in_process, photos, tiny_model, tmp_path
):
    from PIL import Image

    mask = Image.new("L", (SIDE, SIDE), 255)
    for x in range(SIDE):
        mask.putpixel((x, 6), 0)  # of the rows that are to be samples, the last but one is given
    mask.save(tmp_path / "mask.png")
    options = {"input": photos, "model": tiny_model, "output": tmp_path / "run", "score": True}
    igpt("complete", **options, mask=tmp_path / "mask.png", **COMMON)
    for row in results(tmp_path / "run"):
        (nats,) = nats_by_transformers(tiny_model, torch.tensor(row["samples"]))
        samples = torch.cat([nats[GIVEN : 6 * SIDE], nats[7 * SIDE :]])
        assert row["nll"] == pytest.approx([samples.mean().item()], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"best_of": 2, "samples": 3}, "--best-of 2 is below --samples 3"),
        ({"best_of": 9, "batch_size": 8}, "--batch-size 8 is below the 9"),
        ({"best_of": 0}, "--best-of"),
    ],
)
def test_more_than_is_drawn_cannot_be_kept(photos, tiny_model, tmp_path, capsys, options, says):
    output = tmp_path / "run"
    message = refusal(capsys, "complete", input=photos, model=tiny_model, output=output, **options)
    assert says in message
    assert not output.exists()
