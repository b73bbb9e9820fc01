"""WriteParts without Ray: what it refuses, the order of its files, their bytes, their readers."""

import base64
import io
import json
import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from igpt_core.images.model_palette import load_palette
from pictures import SIDE
from pipeline import rows
from pipeline.errors import Superseded
from pipeline.run_directory.layout import (
    FOLDERS,
    finished_shards,
    parquet_bytes,
    part_name,
    shards_with_errors,
)
from pipeline.run_directory.lease import Lease
from pipeline.stages import write_parts as parts
from pipeline.stages.blocks import ShardMetadata, tokens_array, with_shard_metadata
from pipeline.stages.write_parts import SUMMARY, WriteParts
from pipeline.storage.filesystem import open_location

N = SIDE**2
GIVEN = N // 4
LABEL = pa.schema([pa.field("label", pa.int64())])
COLUMNS = {
    "quantize": rows.quantize_columns(N),
    "complete": rows.complete_columns(N),
    "classify": rows.classify_columns(2, named=False),
}


def block(shard: int, good: list[bool], *, samples: int = 0) -> pa.Table:
    """A block as it reaches the writer: rows good and failed, with `samples` completions each."""
    n = len(good)
    rng = np.random.default_rng(shard)
    errors = [None if g else "no image" for g in good]
    tokens = rng.integers(0, 32, (sum(good), N)).astype(np.uint16)
    columns = {
        rows.ROW_ID: pa.array([f"{shard}-{i}" for i in range(n)], pa.string()),
        rows.SOURCE: pa.array([f"/in/{shard}-{i}" for i in range(n)], pa.string()),
        rows.ROW_TOKENS: tokens_array(tokens, N, valid=good),
        rows.ERROR_STAGE: pa.array([e and "decode" for e in errors], pa.string()),
        rows.ERROR_CLASS: pa.array([e and "ImageError" for e in errors], pa.string()),
        rows.ERROR_MESSAGE: pa.array(errors, pa.string()),
        "label": pa.array(range(n), pa.int64()),
    }
    if samples:
        sampled = [samples * (N - GIVEN) if g else None for g in good]
        columns[rows.SAMPLED_TOKENS] = pa.array(sampled, pa.int32())
        columns["samples"] = pa.array(
            [rng.integers(0, 32, (samples, N)).tolist() if g else None for g in good],
            rows.samples_type(N),
        )
        columns["prompt_length"] = pa.array([GIVEN] * n, pa.int32())
    return with_shard_metadata(pa.table(columns), ShardMetadata(shard, n, {"read": 1.5}))


def writer(
    output: Path | str,
    palette: str,
    job: str = "quantize",
    *,
    lease: Lease | None = None,
    again: bool = False,
) -> WriteParts:
    return WriteParts(
        output=str(output),
        lease=lease,
        job=job,
        schema=rows.schema_for(job, COLUMNS[job], passthrough=LABEL),
        image_size=SIDE,
        palette=palette,
        examples=3,
        output_options={},
        model_options={},
        again=again,
    )


def content(output: Path, *folders: str) -> dict[str, bytes]:
    """The bytes of every file, by name."""
    files = (path for folder in folders for path in (output / folder).iterdir())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """The files that were written, in order."""
    order: list[str] = []
    write = parts.write_atomic

    def remember(fs: object, path: str, payload: bytes) -> None:
        order.append("/".join(path.split("/")[-2:]))
        write(fs, path, payload)

    monkeypatch.setattr(parts, "write_atomic", remember)
    return order


def test_good_rows_failed_rows_figures_and_a_summary(tiny_model, tmp_path):
    given = block(5, [True, False, True])
    summary = writer(tmp_path, tiny_model)(given)
    data = pq.read_table(tmp_path / "data" / "part-000005.parquet")
    assert data.column_names == ["id", "label", "tokens"]
    assert data["id"].to_pylist() == ["5-0", "5-2"]
    assert data["label"].to_pylist() == [0, 2]
    tokens = given[rows.ROW_TOKENS].to_pylist()
    assert data["tokens"].to_pylist() == [tokens[0], tokens[2]]
    assert pq.read_table(tmp_path / "errors").to_pylist() == [
        {
            "id": "5-1",
            "source": "/in/5-1",
            "stage": "decode",
            "error": "ImageError",
            "message": "no image",
        }
    ]
    assert summary.schema == SUMMARY
    (row,) = summary.to_pylist()
    assert not row.pop("left")
    assert (row["shard"], row["rows"], row["errors"], row["tokens"]) == (5, 2, 1, 0)
    stats = json.loads((tmp_path / "stats" / "part-000005.json").read_text())
    seconds = {stage: spent for stage, spent in row.pop("seconds").items() if spent is not None}
    assert seconds == stats["seconds"]
    assert row["bytes"] == (tmp_path / "data" / "part-000005.parquet").stat().st_size
    assert {key: stats[key] for key in row} == row
    assert stats["seconds"]["read"] == 1.5
    assert stats["seconds"]["write"] > 0


def test_the_log_names_shard_and_id_of_failed_rows_and_how_many_there_are(
    tiny_model, tmp_path, caplog
):
    # Whatever Ray has set in here.
    caplog.set_level(logging.WARNING, logger="pipeline.stages.write_parts")
    writer(tmp_path, tiny_model)(block(5, [True] + [False] * 12))
    lines = [f"shard 5, 5-{i}: ImageError: no image" for i in range(1, 11)]
    assert caplog.messages == [
        *lines,
        f"shard 5: 12 failed rows, all in {tmp_path}/errors/part-000005.parquet",
    ]


def test_completions_become_pictures_of_their_tokens(tiny_model, tmp_path):
    given = block(0, [False, True, True, False], samples=2)
    summary = writer(tmp_path, tiny_model, "complete")(given)
    # Two good rows, two samples each, of which the first quarter was given.
    assert summary["tokens"].to_pylist() == [2 * 2 * (N - GIVEN)]
    palette = load_palette(tiny_model)

    def pixels(tokens: list[int]) -> np.ndarray:
        return palette.decode(np.array(tokens)).reshape(-1, SIDE, 3)

    data = pq.read_table(tmp_path / "data").to_pylist()
    samples = [s for s in given["samples"].to_pylist() if s is not None]
    assert [row["samples"] for row in data] == samples
    for row in data:
        expected = [(row["original"], row["tokens"]), (row["prompt"], row["tokens"][:GIVEN])]
        expected += zip(row["images"], row["samples"], strict=True)
        for picture, tokens in expected:
            found = np.asarray(Image.open(io.BytesIO(picture["bytes"])))
            assert np.array_equal(found, pixels(tokens))


def test_pictures_of_a_few_rows_are_kept_where_the_results_hold_none(tiny_model, tmp_path):
    given = block(0, [True, True, False, True, True, True, True])
    for name, type_ in (("predicted_label", pa.int64()), ("probability", pa.float32())):
        given = given.append_column(name, pa.array([0] * 7, type_))
    given = given.append_column("logits", pa.array([[0.0, 1.0]] * 7, rows.logits_type(2)))
    writer(tmp_path, tiny_model, "classify")(given)
    data = pq.read_table(tmp_path / "data")
    assert data.column_names == ["id", "label", "predicted_label", "probability", "logits"]
    stats = json.loads((tmp_path / "stats" / "part-000000.json").read_text())
    # Of six good rows the middles of three stretches of two: those with the labels 1, 4 and 6.
    assert [found["row"] for found in stats["examples"]] == [1, 3, 5]
    palette = load_palette(tiny_model)
    tokens = [row for row in given[rows.ROW_TOKENS].to_pylist() if row is not None]
    for found in stats["examples"]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["png"]))))
        expected = palette.decode(np.array(tokens[found["row"]])).reshape(SIDE, SIDE, 3)
        assert np.array_equal(pixels, expected)
    assert data["label"].to_pylist() == [0, 1, 3, 4, 5, 6]


def test_a_shard_that_lost_a_row_is_refused_and_nothing_written(tiny_model, tmp_path):
    with pytest.raises(RuntimeError, match="shard 3: expected 4 rows, found 3"):
        writer(tmp_path, tiny_model)(block(3, [True] * 4).slice(1))
    assert list(tmp_path.iterdir()) == []


def test_data_is_written_last(tiny_model, tmp_path, written):
    writer(tmp_path, tiny_model)(block(7, [True, False]))
    assert written == [part_name(folder, 7) for folder in ("errors", "stats", "data")]


def test_a_shard_without_its_data_is_not_done(tiny_model, tmp_path, monkeypatch):
    write = parts.write_atomic

    def fail_at_data(fs: object, path: str, payload: bytes) -> None:
        if "/data/" in path:
            raise OSError("no space left on device")
        write(fs, path, payload)

    monkeypatch.setattr(parts, "write_atomic", fail_at_data)
    with pytest.raises(OSError, match="no space left"):
        writer(tmp_path, tiny_model)(block(7, [True, False]))
    fs, path = open_location(str(tmp_path))
    assert finished_shards(fs, path) == set()
    assert shards_with_errors(fs, path) == {7}


def test_errors_of_an_earlier_attempt_are_removed(tiny_model, tmp_path):
    write = writer(tmp_path, tiny_model)
    write(block(2, [True, False]))  # a file that could not be read then
    write(block(2, [True, True]))
    assert list((tmp_path / "errors").iterdir()) == []
    assert pq.read_table(tmp_path / "data").num_rows == 2


@pytest.mark.parametrize("attempts", [[False, True], [True, False]])
def test_a_later_attempt_with_other_errors_that_is_cut_short_leaves_a_shard_to_be_done(
    tiny_model, tmp_path, monkeypatch, attempts
):
    """Past bug: results beside the errors of another attempt counted as done, with a row in neither
    of them or in both."""
    write = writer(tmp_path, tiny_model)
    first, second = (block(2, [True, good]) for good in attempts)
    write(first)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "_figures", lambda *_: {})
        patch.setattr(parts.json, "dumps", killed)
        with pytest.raises(KeyboardInterrupt):
            write(second)
    fs, path = open_location(str(tmp_path))
    assert finished_shards(fs, path) == set()
    write(second)
    writer(tmp_path / "other", tiny_model)(second)
    folders = [folder for folder in ("data", "errors") if (tmp_path / "other" / folder).exists()]
    assert content(tmp_path, *folders) == content(tmp_path / "other", *folders)


def test_a_request_that_a_store_carries_out_late_deletes_no_results(tiny_model, monkeypatch):
    """Past bug: each shard with errors had its results deleted before they were written. A DELETE
    whose answer had timed out, so that it was sent again, came to the store after the results."""
    fs, path = open_location("memory://late")
    late: list[str] = []
    monkeypatch.setattr(type(fs), "rm_file", lambda _, path: late.append(path))
    writer("memory://late", tiny_model)(block(3, [True, False]))
    monkeypatch.undo()
    for each in late:
        with suppress(FileNotFoundError):
            fs.rm_file(each)
    assert finished_shards(fs, path) == {3}
    fs.rm(path, recursive=True)


def test_writing_again_writes_the_same_bytes(tiny_model, tmp_path):
    """Also by another writer, and however the block lies in memory."""
    given = block(2, [True, False, True, True], samples=2)
    in_three = pa.concat_tables([given.slice(0, 1), given.slice(1, 2), given.slice(3)])
    writer(tmp_path / "a", tiny_model, "complete")(given)
    before = content(tmp_path / "a", "data", "errors")
    assert len(before) == 2
    writer(tmp_path / "a", tiny_model, "complete")(given)
    assert content(tmp_path / "a", "data", "errors") == before
    writer(tmp_path / "b", tiny_model, "complete")(in_three)
    assert content(tmp_path / "b", "data", "errors") == before


@pytest.mark.parametrize("job", ["quantize", "complete"])
def test_a_part_without_rows_opens_with_datasets_among_others(tiny_model, tmp_path, job):
    """Past bug of others: a row group of no rows stops `datasets`. The empty part comes first,
    from which readers take the schema."""
    write = writer(tmp_path / "run", tiny_model, job)
    samples = 2 if job == "complete" else 0
    write(block(0, [False, False], samples=samples))
    write(block(1, [True, False, True], samples=samples))
    empty = pq.ParquetFile(tmp_path / "run" / "data" / "part-000000.parquet")
    other = pq.ParquetFile(tmp_path / "run" / "data" / "part-000001.parquet")
    assert empty.metadata.num_rows == 0
    assert empty.schema_arrow.equals(other.schema_arrow, check_metadata=True)
    table = load_dataset(
        "parquet",
        data_files=str(tmp_path / "run" / "data" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert table["id"] == ["1-0", "1-2"]
    assert table.features["tokens"].length == N


def test_only_whole_parts_count_as_done(tmp_path):
    """Not a half-written file, a copy that a person made, or a file of another name."""
    (tmp_path / "data").mkdir()
    for name in (
        "part-000003.parquet",
        "part-1234567.parquet",
        ".part-000004.parquet.17-abc.tmp",
        "part-000005 (copy).parquet",
        "part-000006.json",
        "notes.parquet",
    ):
        (tmp_path / "data" / name).touch()
    fs, path = open_location(str(tmp_path))
    assert finished_shards(fs, path) == {3, 1234567}
    assert shards_with_errors(fs, path) == set()


# --- another run takes over meanwhile -------------------------------------------------------------


@pytest.mark.parametrize("run", ["one", "two"])  # resumed, or with other results
@pytest.mark.parametrize(
    ("moment", "left"),
    [("errors", ["errors", "stats"]), ("stats", ["errors", "stats"]), ("data", [*FOLDERS])],
)
def test_a_superseded_run_writes_no_data_any_more_and_deletes_nothing(
    tiny_model, tmp_path, monkeypatch, moment, left, run
):
    """Another run takes over when the file of that folder has been written. Where the results are
    there by then the shard is not this run's all the same: what it wrote may be another's to redo,
    and `igpt verify` finds stats of another run."""
    first, second = Lease(str(tmp_path), {}, "one"), Lease(str(tmp_path), {}, run)
    first.acquire()
    write = parts.write_atomic

    def watched(fs: object, path: str, payload: bytes) -> None:
        write(fs, path, payload)
        if f"/{moment}/" in path:
            monkeypatch.setattr(parts, "write_atomic", write)
            second.acquire()

    monkeypatch.setattr(parts, "write_atomic", watched)
    with pytest.raises(Superseded, match="shard 0 is left to it"):
        writer(tmp_path, tiny_model, lease=first)(block(0, [True, False]))
    there = [folder for folder in FOLDERS if (tmp_path / part_name(folder, 0)).exists()]
    assert sorted(there) == sorted(left)
    assert run_of(tmp_path) == "one"


def run_of(output: Path) -> str:
    return str(json.loads((output / part_name("stats", 0)).read_text())["run"])


def test_the_lease_is_asked_after_the_results_are_made(tiny_model, tmp_path, monkeypatch):
    """Past bug: it was asked before, and pictures take seconds."""
    first, second = Lease(str(tmp_path), {}, "one"), Lease(str(tmp_path), {}, "two")
    first.acquire()
    made = WriteParts.results

    def slowly(self, good):
        second.acquire()
        return made(self, good)

    monkeypatch.setattr(WriteParts, "results", slowly)
    with pytest.raises(Superseded):
        writer(tmp_path, tiny_model, lease=first)(block(0, [True, False]))
    assert not any((tmp_path / folder).exists() for folder in FOLDERS)


def test_the_run_stands_in_the_stats_and_in_no_part(tiny_model, tmp_path):
    for run in ("one", "two"):
        lease = Lease(str(tmp_path / run), {}, run)
        lease.acquire()
        writer(tmp_path / run, tiny_model, lease=lease)(block(0, [True, False]))
        assert run_of(tmp_path / run) == run
    folders = ("data", "errors")
    assert content(tmp_path / "one", *folders) == content(tmp_path / "two", *folders)


@pytest.mark.parametrize("good", [[True, False, False], [True, True, True], [False, True, False]])
def test_a_part_stays_until_one_with_as_many_good_rows_takes_its_place(tiny_model, tmp_path, good):
    """Of a shard that is done again whole, as where its table was replaced by another."""
    writer(tmp_path, tiny_model)(block(5, [True, False, True]))
    before = content(tmp_path, "data", "errors", "stats")
    (summary,) = writer(tmp_path, tiny_model, again=True)(block(5, good)).to_pylist()
    after = content(tmp_path, "data", "errors", "stats")
    if sum(good) < 2:
        assert after == before
        assert (summary["rows"], summary["errors"], summary["left"]) == (2, 1, True)
        return
    writer(tmp_path / "fresh", tiny_model)(block(5, good))
    fresh = content(tmp_path / "fresh", "data")  # without errors
    assert {name: after[name] for name in after if "stats" not in name} == fresh
    then, now = (json.loads(files["stats/part-000005.json"]) for files in (before, after))
    assert (now["rows"], now["errors"]) == (3, 0)
    assert (now["finished"], now["seconds"]) == (then["finished"], then["seconds"])


def test_the_bytes_of_a_part_do_not_depend_on_how_its_rows_came(tmp_path):
    """Past bug: where a store broke off within a row group, rows were read one by one, and the part
    had other bytes."""
    table = pa.table({"text": [f"{i} " * 700 for i in range(600)]})
    cut = pa.concat_tables([table.slice(i, 7) for i in range(0, 600, 7)])
    assert cut["text"].num_chunks > 1
    assert parquet_bytes(cut) == parquet_bytes(table)
