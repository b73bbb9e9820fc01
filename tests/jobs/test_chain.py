"""A run as the input of the next job: quantize once, then complete from the tokens."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.images.palette import Palette
from igpt_core.model.checkpoint import save_checkpoint
from pictures import SIDE
from pipeline.inputs.source import find_source
from runs import igpt, refusal


@pytest.fixture(scope="module")
def quantized(ray_session, labeled_parquet, tiny_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "tokens"
    igpt("quantize", input=labeled_parquet, model=tiny_model, output=output, shard_size=10)
    return output


def test_images_and_their_tokens_are_completed_alike(
    quantized, labeled_parquet, tiny_model, tmp_path
):
    """Ids stay, so the seeds of the rows do, though one broken image moved the rows after it."""
    options = {"model": tiny_model, "samples": 2, "batch_size": 8, "seed": 7, "device": "cpu"}
    igpt("complete", input=labeled_parquet, output=tmp_path / "images", **options)
    igpt("complete", input=quantized, output=tmp_path / "tokens", **options)
    images, tokens = (pq.read_table(tmp_path / name / "data") for name in ("images", "tokens"))
    assert tokens.num_rows == 22
    assert tokens.equals(images, check_metadata=True), "ids, labels with names, samples, pictures"
    source = find_source(str(tmp_path / "tokens"))
    assert (source.format, source.image_column, source.rows) == ("tokens", "tokens", 22)


def test_a_part_made_of_a_run_is_made_again_alike(quantized, tiny_model, tmp_path):
    options = {"input": quantized, "model": tiny_model, "output": tmp_path / "out"}
    igpt("quantize", **options, shard_size=5)
    first = json.loads((tmp_path / "out/run.json").read_text())
    assert first["passthrough"] == ["label"]
    part = tmp_path / "out/data/part-000002.parquet"
    content = part.read_bytes()
    part.unlink()
    igpt("quantize", **options, shard_size=5)
    assert part.read_bytes() == content


def test_tokens_that_do_not_fit_the_job_are_refused(quantized, tiny_model, tmp_path, capsys):
    model = load_model(tiny_model, device="cpu", dtype=torch.float32)
    other = Palette(load_palette(tiny_model).colors[::-1])
    save_checkpoint(model, tmp_path / "other", palette=other, image_size=SIDE)
    output = tmp_path / "out"
    message = refusal(capsys, "complete", input=quantized, model=tmp_path / "other", output=output)
    assert other.fingerprint in message
    assert load_palette(tiny_model).fingerprint in message
    palette = tmp_path / "p.npy"
    load_palette(tiny_model).save(palette)
    message = refusal(
        capsys, "quantize", input=quantized, palette=palette, image_size=16, output=output
    )
    assert "expected 256 tokens" in message
    message = refusal(capsys, "palette", input=quantized, output=tmp_path / "new.npy")
    assert "expected images" in message
    assert not output.exists()
