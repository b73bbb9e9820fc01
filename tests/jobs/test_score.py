"""`igpt score` from end to end: held against transformers, read by others, what it refuses."""

import math
import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from igpt_core.heads import ImageGPTForImageClassification
from igpt_core.images.model_palette import load_palette
from igpt_core.model.checkpoint import save_checkpoint
from igpt_core.model.config import ImageGPTConfig
from pictures import BAD, GOOD, SIDE
from runs import (
    FORWARD,
    columns,
    errors,
    igpt,
    nats_by_transformers,
    parts,
    refusal,
    results,
    tokens_of_files,
)


@pytest.fixture(scope="module")
def scored(in_process, photos, tiny_model, tmp_path_factory) -> Path:
    """The photos, good and bad, with the nats of every pixel."""
    output = tmp_path_factory.mktemp("runs") / "scored"
    igpt("score", input=photos, model=tiny_model, output=output, map=True, **FORWARD)
    return output


def test_columns_are_the_documented_ones(scored):
    assert columns(scored) == {
        "id": pa.string(),
        "nll": pa.float32(),
        "bits_per_pixel": pa.float32(),
        "nll_map": pa.list_(pa.float32(), SIDE**2),
    }


def test_nats_are_those_of_transformers(scored, photos, tiny_model):
    rows = results(scored)
    assert len(rows) == GOOD
    tokens = tokens_of_files(photos, [row["id"] for row in rows], tiny_model)
    theirs = nats_by_transformers(tiny_model, tokens).numpy()
    for row, nats in zip(rows, theirs, strict=True):
        # A pixel's nats are of order 10, and float32 sums in another order move them by some 1e-5.
        assert np.allclose(row["nll_map"], nats, rtol=0, atol=1e-4)
        assert row["nll"] == pytest.approx(nats.mean(), abs=1e-4)
        assert row["nll"] == pytest.approx(np.mean(row["nll_map"]), rel=1e-6)
        assert row["bits_per_pixel"] == pytest.approx(row["nll"] / math.log(2), rel=1e-6)
    assert len({row["nll"] for row in rows}) == GOOD


def test_bad_images_are_errors(scored):
    assert errors(scored).keys() == BAD


def test_duckdb_and_datasets_open_the_output(scored, tmp_path):
    glob = str(scored / "data" / "*.parquet")
    rows, difference, length = duckdb.sql(
        f"select count(*), max(abs(nll - list_avg(nll_map))), max(len(nll_map)) from '{glob}'"
    ).fetchall()[0]
    assert (rows, length) == (GOOD, SIDE**2)
    assert difference < 1e-4
    loaded = load_dataset(str(scored), split="train", cache_dir=str(tmp_path))
    assert loaded.features["nll_map"].length == SIDE**2
    assert loaded.features["nll"].dtype == loaded.features["bits_per_pixel"].dtype == "float32"
    assert len(loaded) == GOOD


def test_the_report_shows_images_beside_their_heat_maps(scored):
    page = (scored / "report.html").read_text()
    shown = [row for row in results(scored) if f"{row['nll']:.2f} nats" in page]
    assert len(shown) >= 12
    assert len(re.findall("<img[^>]*alt=.nats per pixel", page)) >= 12
    assert (scored / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_map_the_rest_is_the_same_whatever_the_shards_and_actors(
    scored, photos, tiny_model, tmp_path
):
    options = {"input": photos, "model": tiny_model, **FORWARD, "shard_size": 9}
    igpt("score", **options, output=tmp_path / "plain", model_actors=1, cpu_actors=2)
    found = pq.read_table(tmp_path / "plain/data")
    assert found.equals(pq.read_table(scored / "data").drop_columns(["nll_map"]))


def test_a_lost_part_is_done_again_and_no_map_is_refused(scored, photos, tiny_model, capsys):
    before = parts(scored)
    (scored / "data" / "part-000000.parquet").unlink()
    options = {"input": photos, "model": tiny_model, "output": scored, **FORWARD}
    igpt("score", **options, map=True)
    assert parts(scored) == before
    assert "map: True there, False now" in refusal(capsys, "score", **options)


def test_scores_of_tokens_are_those_of_their_images(scored, photos, tiny_model, tmp_path):
    options = {"model": tiny_model, "max_error_fraction": 0.5}
    igpt("quantize", input=photos, output=tmp_path / "tokens", **options)
    igpt("score", input=tmp_path / "tokens", output=tmp_path / "scores", map=True,
         batch_size=8, dtype="float32", **options)  # fmt: skip
    assert pq.read_table(tmp_path / "scores/data") == pq.read_table(scored / "data")


def test_a_classifier_without_a_next_pixel_head_is_refused(photos, tiny_model, tmp_path, capsys):
    config = ImageGPTConfig(
        vocab_size=33, n_positions=SIDE**2, n_embd=32, n_layer=2, n_head=2, num_labels=3
    )
    classifier = ImageGPTForImageClassification(config)
    palette = load_palette(tiny_model)
    save_checkpoint(classifier, tmp_path / "model", palette=palette, image_size=SIDE)
    options = {"input": photos, "model": tmp_path / "model", "output": tmp_path / "run"}
    assert "has no next-pixel head; next:" in refusal(capsys, "score", **options)
    assert not (tmp_path / "run").exists()
