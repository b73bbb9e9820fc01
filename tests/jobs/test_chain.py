"""A run as the input of the next job: quantize once, then complete from the tokens."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.images.palette import Palette
from igpt_core.model.checkpoint import save_checkpoint
from pictures import SIDE
from pipeline.inputs.source import find_source
from runs import errors, igpt, nats_by_transformers, parts, refusal, results


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
    source = find_source(str(tmp_path / "tokens"), image_column="tokens")
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


COMPUTE = ("device", "dtype", "batch_size")  # options that quantize does not have

# --- a run of complete, whose rows hold several pictures ------------------------------------------


@pytest.fixture(scope="module")
def completed(in_process, labeled_parquet, tiny_model, tmp_path_factory) -> Path:
    """Three completions of each of 22 images, in three parts."""
    output = tmp_path_factory.mktemp("runs") / "completed"
    igpt("complete", input=labeled_parquet, model=tiny_model, output=output, samples=3, seed=7,
         batch_size=6, shard_size=8, device="cpu")  # fmt: skip
    return output


@pytest.mark.parametrize("job", ["quantize", "score", "embed", "complete"])
def test_of_several_pictures_the_choice_is_asked_for(completed, tiny_model, tmp_path, capsys, job):
    """Past bug: the originals were taken in silence."""
    options = {"input": completed, "model": tiny_model, "output": tmp_path / "out"}
    message = refusal(capsys, job, **options)
    assert "expected --image-column" in message
    assert "next: --image-column samples" in message
    assert "or tokens for the originals" in message
    assert not (tmp_path / "out").exists()


def test_originals_are_taken_where_they_are_asked_for(
    completed, labeled_parquet, tiny_model, tmp_path
):
    options = {"model": tiny_model, "device": "cpu", "batch_size": 4}
    igpt("score", input=completed, image_column="tokens", output=tmp_path / "out", **options)
    igpt("score", input=labeled_parquet, output=tmp_path / "images", **options)
    found, expected = (pq.read_table(tmp_path / name / "data") for name in ("out", "images"))
    assert found.equals(expected)


@pytest.mark.parametrize(("shard_size", "limit"), [(7, None), (66, None), (5, 17)])
def test_with_the_column_of_samples_each_sample_is_a_row(
    completed, tiny_model, tmp_path, shard_size, limit
):
    """Shards begin and end within rows of the run; ids, columns and tokens are those of its rows,
    as transformers scores them."""
    options = {"input": completed, "model": tiny_model, "image_column": "samples",
               "shard_size": shard_size, "device": "cpu", "dtype": "float32",
               "batch_size": 4}  # fmt: skip
    options |= {} if limit is None else {"limit": limit}
    given = [
        (f"{row['id']}#{k}", row["label"], sample)
        for row in results(completed)
        for k, sample in enumerate(row["samples"])
    ][:limit]
    assert len(given) == (limit or 66)
    of_images = {name: value for name, value in options.items() if name not in COMPUTE}
    igpt("quantize", **of_images, output=tmp_path / "tokens")
    igpt("score", **options, output=tmp_path / "scores")
    tokens, scores = results(tmp_path / "tokens"), results(tmp_path / "scores")
    assert [(row["id"], row["label"], row["tokens"]) for row in tokens] == given
    assert [row["id"] for row in scores] == [id_ for id_, _, _ in given]
    nats = nats_by_transformers(tiny_model, torch.tensor([sample for _, _, sample in given]))
    assert [row["nll"] for row in scores] == pytest.approx(nats.mean(dim=1).tolist(), abs=1e-4)
    report = json.loads((tmp_path / "scores/report.json").read_text())
    assert (report["rows"], report["errors"]) == (len(given), 0)
    assert report["shards"] == -(-len(given) // shard_size)
    igpt("verify", tmp_path / "scores", replay=3)
    before = parts(tmp_path / "scores")
    (tmp_path / "scores/data/part-000000.parquet").unlink()
    igpt("score", **options, output=tmp_path / "scores")
    assert parts(tmp_path / "scores") == before


def test_samples_without_other_columns_and_of_prompts_alone(
    completed, tiny_model, tmp_path, capsys
):
    options = {"input": completed, "model": tiny_model, "image_column": "samples", "device": "cpu"}
    igpt("embed", **options, keep_columns="", output=tmp_path / "embedded")
    rows = results(tmp_path / "embedded")
    assert len({row["id"] for row in rows}) == 66
    assert set(rows[0]) == {"id", "embedding"}
    prompts = {"model": tiny_model, "output": tmp_path / "prompts", "device": "cpu"}
    table = pa.table({"start": pa.array([[1, 2], [3]], pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "p.parquet")
    igpt("complete", input=tmp_path / "p.parquet", prompt_column="start", **prompts)
    scores = {"input": tmp_path / "prompts", "model": tiny_model, "output": tmp_path / "scores"}
    message = refusal(capsys, "score", **scores)
    assert "--image-column samples for a row of each sample" in message
    assert "originals" not in message
    igpt("score", **scores, image_column="samples")
    assert [row["id"] for row in results(tmp_path / "scores")] == ["p.parquet#0#0", "p.parquet#1#0"]


def test_samples_that_cannot_be_read_are_error_rows_each(completed, tiny_model, tmp_path):
    """A null, a token beyond the palette, and a part that is damaged: no row is lost, and the
    repaired run is done by retry-failed."""
    run = tmp_path / "run"
    shutil.copytree(completed, run)
    part = run / "data/part-000000.parquet"
    whole = part.read_bytes()
    table = pq.read_table(part)
    samples = table["samples"].to_pylist()
    samples[1] = None
    samples[3][2][0] = 99
    at = table.schema.get_field_index("samples")
    broken = table.set_column(at, table.field(at), pa.array(samples, table.field(at).type))
    pq.write_table(broken, part)
    ids = [f"{row['id']}#{k}" for row in results(completed) for k in range(3)]
    options = {
        "input": run,
        "model": tiny_model,
        "image_column": "samples",
        "shard_size": 10,
        "output": tmp_path / "scores",
        "max_error_fraction": 0.5,
        "device": "cpu",
    }
    igpt("score", **options)
    failed = {ids[i] for i in (3, 4, 5, 11)}
    assert errors(tmp_path / "scores") == dict.fromkeys(failed, "BadTokens")
    assert [row["id"] for row in results(tmp_path / "scores")] == [
        i for i in ids if i not in failed
    ]
    igpt("verify", tmp_path / "scores")
    part.write_bytes(whole)
    igpt("retry-failed", tmp_path / "scores")
    assert [row["id"] for row in results(tmp_path / "scores")] == ids
    igpt("verify", tmp_path / "scores", replay=2)
