"""`igpt embed` from end to end: held against transformers, read by others, what it refuses."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

from pictures import BAD, GOOD
from runs import (
    FORWARD,
    columns,
    errors,
    igpt,
    parts,
    reference,
    refusal,
    results,
    started,
    tokens_of_files,
)


@pytest.fixture(scope="module")
def embedded(ray_session, photos, tiny_model, tmp_path_factory) -> Path:
    """Every layer of the photos, good and bad."""
    output = tmp_path_factory.mktemp("runs") / "embedded"
    igpt("embed", input=photos, model=tiny_model, output=output, layers="all", **FORWARD)
    return output


@torch.no_grad()
def states_by_transformers(model: str, tokens, *, sos: bool, normed: bool) -> list[torch.Tensor]:
    """(N, T, C) of every layer: hidden states, or what each block's first norm makes of them."""
    theirs, seen = reference(model), []
    for block in theirs.transformer.h:
        block.ln_1.register_forward_hook(lambda module, arguments, output: seen.append(output))
    inputs = started(tokens) if sos else tokens
    states = theirs(inputs, output_hidden_states=True).hidden_states
    return [*seen, states[-1]] if normed else list(states)


def test_columns_are_the_documented_ones(embedded):
    assert columns(embedded) == {
        "id": pa.string(),
        **{f"embedding_{layer}": pa.list_(pa.float32(), 32) for layer in (0, 1, 2)},
    }
    described = json.loads((embedded / "run.json").read_text())["columns"]
    assert [column["name"] for column in described] == list(columns(embedded))


def test_every_layer_is_the_mean_of_transformers_hidden_state(embedded, photos, tiny_model):
    rows = results(embedded)
    assert len(rows) == GOOD
    tokens = tokens_of_files(photos, [row["id"] for row in rows], tiny_model)
    states = states_by_transformers(tiny_model, tokens, sos=True, normed=False)
    assert len(states) == 3
    for layer, state in enumerate(states):
        found = torch.tensor([row[f"embedding_{layer}"] for row in rows])
        torch.testing.assert_close(found, state.mean(dim=1), rtol=0, atol=1e-4)


def test_bad_images_are_errors(embedded):
    assert errors(embedded).keys() == BAD


@pytest.mark.parametrize(
    ("options", "layers", "sos", "normed", "dtype"),
    [
        ({"layers": "2,1", "normed": True}, [1, 2], True, True, "float32"),
        ({"no_sos": True, "embedding_dtype": "float16"}, [1], False, False, "float16"),
    ],
    ids=["normed-of-two-layers", "middle-without-sos-in-half-precision"],
)
def test_normed_features_and_those_without_the_start_token(
    ray_session, photos, tiny_model, tmp_path, options, layers, sos, normed, dtype
):
    output = tmp_path / "run"
    igpt("embed", input=photos, model=tiny_model, output=output, **options, **FORWARD)
    names = [f"embedding_{layer}" for layer in layers] if len(layers) > 1 else ["embedding"]
    type_ = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    assert columns(output) == {"id": pa.string(), **{n: pa.list_(type_, 32) for n in names}}
    rows = results(output)
    tokens = tokens_of_files(photos, [row["id"] for row in rows], tiny_model)
    states = states_by_transformers(tiny_model, tokens, sos=sos, normed=normed)
    # float16 keeps 11 bits: half of its last one is 2^-11 of a value
    tolerance = {"float32": 0, "float16": 2**-11}[dtype]
    for layer, name in zip(layers, names, strict=True):
        found = torch.tensor(np.array([row[name] for row in rows], np.float32))
        torch.testing.assert_close(found, states[layer].mean(dim=1), rtol=tolerance, atol=1e-4)


def test_duckdb_and_datasets_open_the_output(embedded, tmp_path):
    glob = str(embedded / "data" / "*.parquet")
    count, lengths = duckdb.sql(
        f"select count(distinct id), list(distinct len(embedding_1)) from '{glob}'"
    ).fetchall()[0]
    assert (count, lengths) == (GOOD, [32])
    loaded = load_dataset(str(embedded), split="train", cache_dir=str(tmp_path))
    assert loaded.features["embedding_2"].length == 32
    assert loaded.features["embedding_2"].feature.dtype == "float32"
    assert loaded["id"] == [row["id"] for row in results(embedded)]
    assert loaded[3]["embedding_0"] == results(embedded)[3]["embedding_0"]


def test_other_numbers_of_actors_change_no_byte_and_another_shard_size_no_row(
    embedded, photos, tiny_model, tmp_path
):
    options = {"input": photos, "model": tiny_model, "layers": "all", **FORWARD}
    igpt("embed", **options, output=tmp_path / "actors", model_actors=1, cpu_actors=2)
    assert parts(tmp_path / "actors") == parts(embedded)
    igpt("embed", **options | {"shard_size": 9}, output=tmp_path / "shards")
    assert len(parts(tmp_path / "shards")) == 3
    assert pq.read_table(tmp_path / "shards/data") == pq.read_table(embedded / "data")


def test_a_lost_part_is_done_again_and_other_layers_are_refused(
    embedded, photos, tiny_model, capsys
):
    before = parts(embedded)
    (embedded / "data" / "part-000001.parquet").unlink()
    options = {"input": photos, "model": tiny_model, "output": embedded, **FORWARD}
    igpt("embed", **options, layers="0,1,2")
    assert parts(embedded) == before
    assert "layers: [0, 1, 2] there, [1] now" in refusal(capsys, "embed", **options)
    changed = refusal(capsys, "embed", **options, layers="all", normed=True)
    assert "normed: False there, True now" in changed
    assert parts(embedded) == before


def test_embeddings_of_tokens_are_those_of_their_images(embedded, photos, tiny_model, tmp_path):
    options = {"model": tiny_model, "max_error_fraction": 0.5}
    igpt("quantize", input=photos, output=tmp_path / "tokens", **options)
    igpt("embed", input=tmp_path / "tokens", output=tmp_path / "of-tokens", layers="all",
         batch_size=8, device="cpu", dtype="float32", **options)  # fmt: skip
    assert pq.read_table(tmp_path / "of-tokens/data") == pq.read_table(embedded / "data")


@pytest.mark.parametrize(
    ("layers", "says"),
    [("3", "numbers from 0 to 2"), ("x", "found 'x'"), ("", "middle, all"), ("1,,2", "found")],
)
def test_layers_that_do_not_exist_are_refused(photos, tiny_model, tmp_path, capsys, layers, says):
    output = tmp_path / "run"
    message = refusal(capsys, "embed", input=photos, model=tiny_model, output=output, layers=layers)
    assert "--layers" in message
    assert says in message
    assert not output.exists()


def test_a_run_without_tokens_is_no_input(embedded, tiny_model, tmp_path, capsys):
    options = {"input": embedded, "model": tiny_model, "output": tmp_path / "run"}
    message = refusal(capsys, "embed", **options)
    assert "expected a run with tokens (of quantize, complete or sample)" in message
    assert "found one of embed" in message
