"""Tables that other tools wrote, against DuckDB."""

import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pictures import encoded, photo
from runs import igpt, refusal, results

N = 6
KLASSES = ["cat", "dog", None, "a b/c=d é", "cat", "dog"]


def images() -> list[bytes]:
    return [encoded(photo(i)) for i in range(N)]


def quantized(path: Path, model: str, run: Path, **options: object) -> list[dict]:
    igpt("quantize", input=path, model=model, output=run, shard_size=2, **options)
    return results(run)


@pytest.mark.parametrize("writer", ["pyarrow", "duckdb"])
def test_partition_folders_are_columns(in_process, tiny_model, tmp_path, writer):
    """Past bug: the column was gone."""
    made = pa.table(
        {"image": images(), "klass": KLASSES, "year": ["2020"] * N, "n": list(range(N))}
    )
    folder = tmp_path / "in"
    if writer == "pyarrow":
        ds.write_dataset(
            made, folder, format="parquet", partitioning=["klass", "year"],
            partitioning_flavor="hive",
        )  # fmt: skip
    else:
        duckdb.register("rows", made)
        duckdb.sql(
            f"COPY (SELECT * FROM rows) TO '{folder}' (FORMAT parquet, PARTITION_BY (klass, year))"
        )
    rows = quantized(folder, tiny_model, tmp_path / "run")
    assert {row["n"]: (row["klass"], row["year"]) for row in rows} == {
        n: (klass, "2020") for n, klass in enumerate(KLASSES)
    }
    assert len({row["id"] for row in rows}) == N
    kept = quantized(folder, tiny_model, tmp_path / "kept", keep_columns="klass")
    assert kept[0].keys() == {"id", "tokens", "klass"}


def test_what_has_no_such_folder_is_refused_like_other_drift(
    in_process, tiny_model, tmp_path, capsys
):
    for i, folder in enumerate(["klass=cat", "other"]):
        (tmp_path / "in" / folder).mkdir(parents=True)
        table = pa.table({"image": images()[:2], "n": [i, i]})
        pq.write_table(table, tmp_path / "in" / folder / "a.parquet")
    options = {"model": tiny_model, "output": tmp_path / "run"}
    line = refusal(capsys, "quantize", input=tmp_path / "in", **options)
    assert "klass is in only one of" in line
    rows = quantized(tmp_path / "in", tiny_model, tmp_path / "kept", keep_columns="n")
    assert [row["n"] for row in rows] == [0, 0, 1, 1]


def test_a_column_of_the_file_goes_before_that_of_its_folder(in_process, tiny_model, tmp_path):
    folder = tmp_path / "in" / "year=2020"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": images()[:2], "year": [2020, 2020]}), folder / "a.parquet")
    rows = quantized(tmp_path / "in", tiny_model, tmp_path / "run")
    assert [row["year"] for row in rows] == [2020, 2020]


def test_old_timestamps_keep_their_dates(in_process, tiny_model, tmp_path):
    """INT96, as Spark and Impala wrote them. Past bug: 9999-12-31 became 1816-03-29."""
    dates = [datetime.datetime(9999, 12, 31), None, datetime.datetime(1, 1, 1, 2, 3, 4, 5)]
    dates += [datetime.datetime(2020, 2, 29, 12)] * (N - 3)
    times = pa.array(dates, pa.timestamp("us"))
    nested = pa.array([None if d is None else [d] for d in dates], pa.list_(pa.timestamp("us")))
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": images(), "when": times, "nested": nested}), path,
        use_deprecated_int96_timestamps=True,
    )  # fmt: skip
    assert pq.ParquetFile(path).schema.column(1).physical_type == "INT96"
    quantized(path, tiny_model, tmp_path / "run")
    found = duckdb.sql(
        f"SELECT \"when\", nested FROM '{tmp_path}/run/data/*.parquet' ORDER BY id"
    ).fetchall()
    assert [row[0] for row in found] == dates
    assert [row[1] and row[1][0] for row in found] == dates


VALUES: dict[str, pa.Array] = {
    "string_view": pa.array(["a", None, "longer than twelve bytes"], pa.string_view()),
    "binary_view": pa.array([b"a", None, b"longer than twelve bytes"], pa.binary_view()),
    "large_string": pa.array(["a", None, "c"], pa.large_string()),
    "list of views": pa.array([["a"], None, ["b", "longer than twelve bytes"]],
                              pa.list_(pa.string_view())),
    "struct of views": pa.array([{"x": "a"}, None, {"x": "b"}],
                                pa.struct([("x", pa.string_view())])),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "list_view": pa.array([[1], None, [2, 3]], pa.list_view(pa.int32())),
    "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    "float16": pa.array([1.5, None, 2.5], pa.float16()),
    "time64": pa.array([1000, None, 3000], pa.time64("ns")),
    "with a zone": pa.array([1, None, 3], pa.timestamp("us", "Europe/Berlin")),
    "date64": pa.array([datetime.date(9999, 12, 31), None, None], pa.date64()),
    "fixed binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "null": pa.nulls(3),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_of_any_type_pass_through(in_process, tiny_model, tmp_path, name):
    """Past bug: views of text failed each shard, and resuming could not help."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images()[:3], "value": VALUES[name], "a.b": [1, 2, 3]}), path)
    rows = quantized(path, tiny_model, tmp_path / "run")
    assert [row["a.b"] for row in rows] == [1, 2, 3]
    assert [row["value"] for row in rows] == VALUES[name].to_pylist()
