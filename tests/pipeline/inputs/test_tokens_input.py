"""Tokens as an input: columns of Parquet files, results of earlier runs, prompts, duplicate ids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, List, Value

from igpt_core.images.model_palette import load_palette
from pictures import SIDE, encoded, photo
from pipeline import rows
from pipeline.errors import UsageError
from pipeline.inputs.source import find_source
from pipeline.rows import hub_features
from pipeline.stages.read_images import ReadImages
from pipeline.training.images import read_images

N = SIDE**2
COLORS = 32  # of the tiny model's palette
KINDS = {
    "fixed uint16": pa.list_(pa.uint16(), N),
    "fixed int64": pa.list_(pa.int64(), N),
    "list int32": pa.list_(pa.int32()),
    "large list uint8": pa.large_list(pa.uint8()),
    "list uint64": pa.list_(pa.uint64()),
}


def drawn(count: int, *, length: int = N) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, COLORS, (count, length)).tolist()


def write(path, **columns) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(location, model, *, shard_size=100, prompts=False, **options):
    """What ReadImages makes of an input, and the input."""
    source = find_source(str(location), **options)
    plan = source.cut(shard_size)
    stage = ReadImages(
        format=plan.format,
        image_column=plan.image_column,
        id_column=plan.id_column,
        passthrough=plan.passthrough,
        palette=model,
        image_size=SIDE,
        resize="exact",
        crop="squash",
        input_options=options.get("storage_options", {}),
        model_options={},
        prompts=prompts,
    )
    table = plan.to_table()
    blocks = [stage(table.slice(i, 1)) for i in range(len(plan.shards))]
    return pa.concat_tables(block.replace_schema_metadata() for block in blocks), source


def errors_of(block):
    """(stage, class, message) of each failed row, by its number."""
    found = zip(
        block[rows.ERROR_STAGE].to_pylist(),
        block[rows.ERROR_CLASS].to_pylist(),
        block[rows.ERROR_MESSAGE].to_pylist(),
        strict=True,
    )
    return {row: error for row, error in enumerate(found) if error[0] is not None}


def refusal(location, **options):
    with pytest.raises(UsageError) as caught:
        find_source(str(location), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- columns of Parquet files ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_taken_as_they_are(tmp_path, tiny_model, kind):
    tokens = drawn(7)
    path = write(tmp_path / "a.parquet", tokens=pa.array(tokens, KINDS[kind]), label=range(7))
    block, source = read(path, tiny_model, shard_size=3)
    assert source.format == "tokens"
    assert source.positions == (N if kind.startswith("fixed") else None)
    assert block[rows.ROW_TOKENS].to_pylist() == tokens
    assert block[rows.ROW_TOKENS].type == rows.tokens_type(N)
    assert block[rows.ROW_ID].to_pylist() == [f"a.parquet#{row}" for row in range(7)]
    assert block["label"].to_pylist() == list(range(7))
    assert errors_of(block) == {}


@pytest.mark.parametrize("type_", [pa.list_(pa.int32()), pa.large_list(pa.int64())])
def test_tokens_of_no_image_are_errors_and_the_others_stay(tmp_path, tiny_model, type_):
    good = drawn(4)
    column = [
        good[0],
        None,
        good[1][:-1],
        [*good[1], 0],
        [],
        [*good[1][:-1], COLORS],
        [-1, *good[1][1:]],
        [70_000, *good[1][1:]],
        [None, *good[1][1:]],
        [*good[1][:-1], None],
        good[2],
        None,
        good[3],
    ]
    path = write(tmp_path / "a.parquet", tokens=pa.array(column, type_))
    block, _ = read(path, tiny_model)
    found = block[rows.ROW_TOKENS].to_pylist()
    assert [found[row] for row in (0, 10, 12)] == [good[0], good[2], good[3]]
    errors = errors_of(block)
    assert errors.keys() == set(range(13)) - {0, 10, 12}
    assert {error[:2] for error in errors.values()} == {("read", "BadTokens")}
    assert all(found[row] is None for row in errors)
    messages = {row: error[2] for row, error in errors.items()}
    assert messages[1] == messages[11] == "expected tokens, found null in this row"
    assert messages[2] == f"expected {N} tokens, found {N - 1}"
    assert messages[3] == f"expected {N} tokens, found {N + 1}"
    assert messages[4] == f"expected {N} tokens, found 0"
    assert messages[5] == f"expected tokens from 0 to {COLORS - 1}, found {COLORS}"
    assert messages[6].endswith("found -1")
    assert messages[7].endswith("found 70000"), "not what is left of it in 16 bits"
    assert messages[8] == messages[9] == "expected tokens, found null as one of them"


def test_null_in_a_column_of_one_length_is_an_error(tmp_path, tiny_model):
    tokens = drawn(3)
    column = pa.array([tokens[0], None, tokens[2]], pa.list_(pa.uint16(), N))
    block, _ = read(write(tmp_path / "a.parquet", tokens=column), tiny_model)
    assert block[rows.ROW_TOKENS].to_pylist() == [tokens[0], None, tokens[2]]
    assert errors_of(block).keys() == {1}


def test_images_are_preferred_unless_tokens_are_asked_for(tmp_path, tiny_model):
    image, tokens = encoded(photo(1)), drawn(1)
    path = write(tmp_path / "a.parquet", image=[image], tokens=tokens, other=tokens)
    assert find_source(path).format == "parquet"
    for options in ({"format": "tokens"}, {"image_column": "tokens"}):
        block, source = read(path, tiny_model, **options)
        assert (source.format, source.image_column) == ("tokens", "tokens")
        assert block[rows.ROW_TOKENS].to_pylist() == tokens
        assert source.passthrough.names == ["image", "other"]
    assert find_source(path, image_column="image").format == "parquet"
    assert find_source(path, format="tokens", image_column="other").image_column == "other"


def test_the_only_list_of_whole_numbers_is_the_tokens_where_they_are_asked_for(tmp_path):
    path = write(tmp_path / "a.parquet", codes=drawn(1), weights=[[0.5]])
    assert "column of encoded images" in refusal(path)
    assert "--format tokens" in refusal(path)
    assert find_source(path, format="tokens").image_column == "codes"
    two = write(tmp_path / "b.parquet", codes=drawn(1), more=drawn(1))
    message = refusal(two, format="tokens")
    assert "found codes, more; next: --image-column" in message
    assert find_source(two, format="tokens", image_column="more").image_column == "more"
    none = write(tmp_path / "c.parquet", weights=[[0.5]])
    assert "found weights; next:" in refusal(none, format="tokens")
    assert "found list<element: double>" in refusal(none, format="tokens", image_column="weights")


def test_files_without_tokens_or_of_another_length_are_refused(tmp_path):
    write(tmp_path / "a.parquet", tokens=pa.array(drawn(1), pa.list_(pa.uint16(), N)))
    second = tmp_path / "b.parquet"
    write(second, label=[1])
    message = refusal(tmp_path)
    assert f"in column tokens of {second}, found no such column" in message
    write(second, tokens=pa.array([[1, 2]], pa.list_(pa.uint16(), 2)))
    assert f"found {N} in {tmp_path}/a.parquet and 2 in {second}" in refusal(tmp_path)
    write(second, tokens=pa.array([["a"]]))
    assert f"of {second}, found list<element: string>" in refusal(tmp_path)
    (tmp_path / "a.parquet").unlink()
    write(second, tokens=pa.array([], pa.list_(pa.uint16(), N)))
    assert "expected rows" in refusal(tmp_path)


def test_tokens_for_images_of_another_size_are_refused_before_work(tmp_path):
    path = write(tmp_path / "a.parquet", tokens=pa.array(drawn(1), pa.list_(pa.uint16(), N)))
    source = find_source(path)
    source.check_tokens(image_size=SIDE, palette="any")
    with pytest.raises(UsageError, match=r"expected 1024 tokens .*32 x 32.* found 64 in column"):
        source.check_tokens(image_size=32, palette="any")


def test_tokens_that_became_images_fail_their_rows(tmp_path, tiny_model):
    path = write(tmp_path / "a.parquet", tokens=drawn(2))
    plan = find_source(path).cut(10)
    write(tmp_path / "a.parquet", tokens=[b"x", b"y"])
    stage = ReadImages(
        format=plan.format,
        image_column=plan.image_column,
        id_column=None,
        passthrough=plan.passthrough,
        palette=tiny_model,
        image_size=SIDE,
        resize="exact",
        crop="squash",
        input_options={},
        model_options={},
    )
    assert {error[1] for error in errors_of(stage(plan.to_table())).values()} == {"ChangedFile"}


def test_training_reads_tokens_like_images(tmp_path, tiny_model):
    column = [*drawn(3), [1], None]
    path = write(tmp_path / "a.parquet", tokens=column, label=range(5))
    found = read_images(path, palette=tiny_model, image_size=SIDE, label_column="label")
    assert found.tokens.tolist() == column[:3]
    assert found.labels.classes.tolist() == [0, 1, 2]
    other = write(tmp_path / "b.parquet", tokens=pa.array([[1]], pa.list_(pa.uint16(), 1)))
    with pytest.raises(UsageError, match="expected 64 tokens"):
        read_images(other, palette=tiny_model, image_size=SIDE)


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_of_any_length_are_filled_up_and_their_lengths_kept(tmp_path, tiny_model):
    whole = drawn(1)[0]
    prompts = [whole[:5], [], whole[: N - 1], whole, None, [COLORS], whole[:1]]
    path = write(
        tmp_path / "a.parquet",
        image=[b"x"] * 7,
        start=pa.array(prompts, pa.list_(pa.int64())),
        label=range(7),
    )
    block, source = read(path, tiny_model, prompts=True, prompt_column="start")
    assert (source.format, source.passthrough.names) == ("tokens", ["image", "label"])
    lengths = block[rows.PROMPT_LENGTH]
    assert lengths.type == pa.int32()
    assert lengths.to_pylist() == [5, 0, N - 1, None, None, None, 1]
    found = block[rows.ROW_TOKENS].to_pylist()
    for row in (0, 1, 2, 6):
        assert found[row] == prompts[row] + [0] * (N - len(prompts[row]))
    errors = errors_of(block)
    assert errors.keys() == {3, 4, 5}
    assert errors[3][2] == f"expected fewer than {N} tokens, found {N}"


def test_prompts_of_one_length_are_no_mistake(tmp_path):
    path = write(tmp_path / "a.parquet", start=pa.array([[1, 2]], pa.list_(pa.uint16(), 2)))
    find_source(path, prompt_column="start").check_tokens(image_size=SIDE, palette="any")
    assert "no such column" in refusal(path, prompt_column="begin")


# --- results of earlier runs ----------------------------------------------------------------------

FEATURES = Features(
    {
        "id": Value("string"),
        "label": ClassLabel(names=["cat", "dog"]),
        "tokens": List(Value("uint16"), length=N),
        "nll": Value("float32"),
    }
)


def make_run(folder, *, job="quantize", without=(), palette="p1", finished=True, version=1):
    """A run directory of five rows in two parts, and its tokens."""
    tokens = drawn(5)
    schema = FEATURES.arrow_schema
    table = pa.table(
        [
            pa.array([f"deep/{row}.png" for row in range(5)]),
            pa.array([0, 1, 0, 1, 1], pa.int64()),
            pa.array(tokens, pa.list_(pa.uint16(), N)),
            pa.array([0.5] * 5, pa.float32()),
        ],
        schema=schema,
    ).drop_columns(list(without))
    for name in ("data", "errors", "stats"):
        (folder / name).mkdir(parents=True)
    pq.write_table(table.slice(0, 3), folder / "data/part-000000.parquet")
    pq.write_table(table.slice(3), folder / "data/part-000001.parquet")
    pq.write_table(pa.table({"id": ["x"]}), folder / "errors/part-000000.parquet")
    pq.write_table(pa.table({"shard": [0, 1]}), folder / "plan.parquet")
    (folder / "stats/part-000000.json").write_text("{}")
    run = {
        "format": version,
        "job": job,
        "command": "igpt quantize --input photos --output out",
        "palette": {"location": "embedded", "fingerprint": palette},
        "columns": [{"name": name, "type": "", "meaning": ""} for name in table.column_names],
        "passthrough": ["label"],
    }
    (folder / "run.json").write_text(json.dumps(run))
    if finished:
        (folder / "report.json").write_text(json.dumps({"format": 1, "shards": 2}))
    return tokens


def test_a_run_gives_its_ids_its_tokens_and_the_columns_that_it_passed_through(
    tmp_path, tiny_model
):
    tokens = make_run(tmp_path / "run")
    for location in (tmp_path / "run", f"{tmp_path}/run/"):
        block, source = read(location, tiny_model, shard_size=4)
        assert (source.format, source.palette, source.positions) == ("tokens", "p1", N)
        assert block[rows.ROW_TOKENS].to_pylist() == tokens
        assert block[rows.ROW_ID].to_pylist() == [f"deep/{row}.png" for row in range(5)]
        assert block[rows.SOURCE][4].as_py() == f"{tmp_path}/run/data/part-000001.parquet#1"
        assert source.passthrough.names == ["label"]
        assert block["label"].to_pylist() == [0, 1, 0, 1, 1]
        assert hub_features(source.passthrough)["label"]["names"] == ["cat", "dog"]


def test_a_run_in_a_store_is_the_same(tmp_path, tiny_model):
    import fsspec

    tokens = make_run(tmp_path / "run")
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/run", "/token-runs", recursive=True)
    try:
        block, _ = read("memory://token-runs", tiny_model)
    finally:
        store.rm("/token-runs", recursive=True)
    assert block[rows.ROW_TOKENS].to_pylist() == tokens


def test_other_columns_of_a_run_are_kept_by_name(tmp_path):
    make_run(tmp_path)
    source = find_source(str(tmp_path), keep_columns=["nll", "label"])
    assert source.passthrough.names == ["label", "nll"]
    assert find_source(str(tmp_path), keep_columns=[]).passthrough.names == []
    assert "expected column loss" in refusal(tmp_path, keep_columns=["loss"])
    training = find_source(str(tmp_path), keep_columns=[], label_column="label")
    assert training.passthrough.names == ["label"]


def test_a_palette_other_than_the_runs_is_refused(tmp_path, tiny_model):
    make_run(tmp_path / "run", palette="p1")
    source = find_source(str(tmp_path / "run"))
    source.check_tokens(image_size=SIDE, palette="p1")
    with pytest.raises(UsageError, match=r"of the palette p2, .* found those of p1.*next: "):
        source.check_tokens(image_size=SIDE, palette="p2")
    with pytest.raises(UsageError, match=load_palette(tiny_model).fingerprint):
        read_images(str(tmp_path / "run"), palette=tiny_model, image_size=SIDE)


def test_a_run_that_is_not_finished_names_the_command_that_resumes_it(tmp_path):
    make_run(tmp_path, finished=False)
    message = refusal(tmp_path)
    assert "found 2 parts and no report.json" in message
    assert message.endswith("igpt quantize --input photos --output out")
    (tmp_path / "report.json").write_text(json.dumps({"shards": 3}))
    assert "found 2 of 3 parts" in refusal(tmp_path)


def test_runs_that_are_no_input_are_refused(tmp_path):
    make_run(tmp_path / "a", job="embed", without=["tokens"])
    message = refusal(tmp_path / "a")
    assert "with tokens (of quantize, complete or sample)" in message
    assert "found one of embed" in message
    assert "one of embed" in refusal(tmp_path / "a", format="tokens")
    make_run(tmp_path / "new", version=2)
    assert "format 2" in refusal(tmp_path / "new")


def test_several_runs_are_not_one_input(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    assert f"found 2 within {tmp_path}; next: --input {tmp_path}/a" in refusal(tmp_path)
    assert "found 2 within" in refusal(f"{tmp_path}/a,{tmp_path}/b")
    (tmp_path / "c.png").write_bytes(b"x")
    assert "found 2 within" in refusal(tmp_path)
    assert find_source(str(tmp_path), format="images").rows == 1


def test_pictures_of_a_run_are_read_where_they_are_asked_for(tmp_path, tiny_model):
    make_run(tmp_path / "run", job="sample")
    images = [encoded(photo(row)) for row in range(5)]
    for part, (start, stop) in enumerate([(0, 3), (3, 5)]):
        path = tmp_path / f"run/data/part-{part:06d}.parquet"
        pictures = pa.array([{"bytes": i, "path": None} for i in images[start:stop]], rows.IMAGE)
        pq.write_table(pq.read_table(path).append_column("image", pictures), path)
    assert find_source(str(tmp_path / "run")).format == "tokens"
    pixels = write(tmp_path / "pixels.parquet", image=images)
    expected, _ = read(pixels, tiny_model)
    for options in ({"format": "parquet"}, {"image_column": "image"}):
        block, source = read(tmp_path / "run", tiny_model, **options)
        assert (source.format, source.image_column, source.palette) == ("parquet", "image", None)
        assert block[rows.ROW_TOKENS].equals(expected[rows.ROW_TOKENS])
        assert block[rows.ROW_ID][4].as_py() == "deep/4.png"


def test_a_file_of_somebody_else_called_run_json_is_no_run(tmp_path):
    write(tmp_path / "a.parquet", tokens=drawn(1))
    (tmp_path / "run.json").write_text('{"job": 1}')
    (tmp_path / "x").mkdir()
    (tmp_path / "x/run.json").write_text("not JSON")
    source = find_source(str(tmp_path))
    assert (source.format, source.id_column, source.skipped) == ("tokens", None, {".json": 2})


# --- duplicate ids --------------------------------------------------------------------------------


def test_a_second_row_of_one_id_is_an_error_that_names_the_first(tmp_path, tiny_model):
    images = [encoded(photo(row)) for row in range(4)]
    ids = ["a", "b", "a", "a"]
    first = write(tmp_path / "a.parquet", image=images, id=ids)
    write(tmp_path / "b.parquet", image=images[:2], id=["c", "b"])
    block, _ = read(tmp_path, tiny_model, id_column="id")
    errors = errors_of(block)
    assert errors.keys() == {2, 3, 5}
    assert {error[:2] for error in errors.values()} == {("read", "DuplicateId")}
    assert f"{first}#0: a" in errors[2][2]
    assert f"{first}#0: a" in errors[3][2]
    assert f"{first}#1: b" in errors[5][2]
    assert [row is None for row in block[rows.ROW_TOKENS].to_pylist()] == [
        row in errors for row in range(6)
    ]
