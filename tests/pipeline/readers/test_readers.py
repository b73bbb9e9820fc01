"""Reading shards: every row is there, in order, as its bytes or as its error."""

import datetime
import decimal
import io
import tarfile
import threading
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.inputs.files import format_extensions
from pipeline.inputs.source import find_source
from pipeline.readers import READERS, parquet_file, read_ahead, read_shard
from pipeline.readers import images as image_files
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard, Tries
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import open_location

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def plan_shards(location, *, shard_size, **options):
    return find_source(location, **options).cut(shard_size)


@pytest.fixture(scope="module")
def s3(s3_bucket):
    """Storage options of a bucket named sources-tests."""
    return s3_bucket("sources-tests")[0]


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """(an empty location, its storage options)."""
    if request.param == "local":
        return str(tmp_path), {}
    return f"s3://sources-tests/{tmp_path.name}", request.getfixturevalue("s3")


def put(place, name, payload):
    fs, path = open_location(f"{place[0]}/{name}", place[1])
    write_atomic(fs, path, payload)


def parquet(table, **options):
    """A table as the bytes of a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def images(payloads, type_=STRUCT):
    if type_ == STRUCT:
        payloads = [{"bytes": payload, "path": None} for payload in payloads]
    return pa.array(payloads, type_)


def rows_of(plan, place):
    for shard in plan.shards:
        yield from read_shard(
            shard,
            format=plan.format,
            image_column=plan.image_column,
            id_column=plan.id_column,
            passthrough=plan.passthrough,
            storage_options=place[1],
        )


def read(place, *, shard_size=4, name="", **options):
    """(ids, sources, images, columns) of all rows of a location, and the plan's own checks."""
    uri = f"{place[0]}/{name}".rstrip("/")
    plan = plan_shards(uri, shard_size=shard_size, storage_options=place[1], **options)
    ids, where, found, tables = [], [], [], []
    for some in rows_of(plan, place):
        sizes = {
            len(some.ids),
            len(some.sources),
            len(some.images),
            some.columns.num_rows,
        }
        assert len(sizes) == 1, "the four fields are aligned"
        assert some.columns.schema == plan.passthrough
        ids += some.ids
        where += some.sources
        found += some.images
        tables.append(some.columns)
    assert len(ids) == plan.rows
    return ids, where, found, pa.concat_tables(tables)


def test_every_planned_format_has_a_reader():
    assert READERS.keys() == format_extensions().keys() | {"tokens", "urls"}


# --- image files ----------------------------------------------------------------------------------


def test_files_are_read_in_order(place):
    payloads = {f"d{i % 3}/{i} #?.png": bytes([i]) * (i + 1) for i in range(40)}
    for name, payload in payloads.items():
        put(place, name, payload)
    ids, where, found, _ = read(place, shard_size=25)
    assert ids == sorted(payloads)
    assert where == [f"{place[0]}/{name}" for name in ids]
    assert found == [payloads[name] for name in ids]


def test_files_that_fail_become_errors_and_the_others_go_on(tmp_path):
    for name in ("a.png", "gone.png", "hollow.png", "z.png"):
        (tmp_path / name).write_bytes(b"x" if name != "hollow.png" else b"")
    (tmp_path / "link.png").symlink_to("nowhere")
    plan = plan_shards(str(tmp_path), shard_size=10)
    (tmp_path / "gone.png").unlink()
    (tmp_path / "gone.png").mkdir()
    (some,) = rows_of(plan, (str(tmp_path), {}))
    by_id = dict(zip(some.ids, some.images, strict=True))
    assert by_id["a.png"] == by_id["z.png"] == b"x"
    errors = {name: (e.stage, e.error) for name, e in by_id.items() if isinstance(e, RowError)}
    assert errors == {
        "gone.png": ("read", "IsADirectoryError"),
        "hollow.png": ("read", "EmptyImage"),
        "link.png": ("read", "FileNotFoundError"),
    }


def test_a_missing_object_is_an_error_of_its_row(s3):
    place = ("s3://sources-tests/missing", s3)
    for name in ("a.png", "b.png"):
        put(place, name, b"x")
    plan = plan_shards(place[0], shard_size=5, storage_options=s3)
    open_location(place[0], s3)[0].rm_file("sources-tests/missing/a.png")
    (some,) = rows_of(plan, place)
    assert isinstance(some.images[0], RowError)
    assert some.images[0].error == "FileNotFoundError"
    assert some.images[1] == b"x"


def files_shard(count):
    return Shard(0, tuple(FileSlice(f"/nowhere/{i}", str(i), 0, 1) for i in range(count)))


def test_files_are_read_while_the_caller_works(monkeypatch):
    """With the caller busy with the first rows, as many files as allowed are read, no more."""
    seen = []

    def fake(fs, path):
        seen.append(path)
        return b"x" * 10

    monkeypatch.setattr(image_files, "read_bytes", fake)
    shard = files_shard(1000)
    reading = read_shard(shard, format="images")
    assert seen == []
    first = next(reading)
    deadline = time.monotonic() + 10
    while len(seen) < len(first.ids) + 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(first.ids) + 16 <= len(seen) <= len(first.ids) + 32
    rest = [name for some in reading for name in some.ids]
    assert first.ids + rest == [file.name for file in shard.slices]


def test_large_files_are_not_piled_up(monkeypatch):
    """Images of half the budget: at most one, and three files ahead, are in memory."""
    monkeypatch.setattr(read_ahead, "_BYTES_AHEAD", 1000)
    monkeypatch.setattr(read_ahead, "READ_BYTES", 500)
    seen = []
    monkeypatch.setattr(image_files, "read_bytes", lambda fs, path: seen.append(path) or b"x" * 500)
    reading = read_shard(files_shard(100), format="images")
    taken = 0
    for some in reading:
        taken += len(some.ids)
        assert len(some.ids) == 1
        if taken > read_ahead._MOST_FILES:  # before, no size was known
            assert len(seen) <= taken + 3
    assert taken == 100


@pytest.mark.parametrize("format", ["images", "parquet"])
def test_a_reader_that_is_dropped_ends_its_threads(tmp_path, format, monkeypatch):
    monkeypatch.setattr(image_files, "read_bytes", lambda fs, path: b"x")
    write = pa.table({"image": images([b"x"] * 2000), "n": range(2000)})
    (tmp_path / "a.parquet").write_bytes(parquet(write))
    shard = files_shard(1000)
    if format == "parquet":
        shard = Shard(0, (FileSlice(str(tmp_path / "a.parquet"), "a", 0, 2000),))
    before = threading.active_count()
    reading = read_shard(shard, format=format, image_column="image")
    next(reading)
    assert threading.active_count() > before
    reading.close()
    assert threading.active_count() == before


# --- Parquet --------------------------------------------------------------------------------------


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    rows = 57
    return pa.table(
        {
            "label": pa.array(range(rows), pa.int16()),
            "image": images([random.bytes(int(n)) for n in random.integers(1, 900, rows)]),
            "text": [None if i % 5 == 0 else f"ü{i}" for i in range(rows)],
            "vector": pa.array(random.random((rows, 3)).tolist(), pa.list_(pa.float32(), 3)),
            "tags": pa.array([[f"t{k}" for k in range(i % 3)] for i in range(rows)]),
            "kind": pa.array([f"k{i % 4}" for i in range(rows)]).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("group", [1, 10, 1000])
@pytest.mark.parametrize("shard_size", [1, 13, 100])
def test_parquet_equals_what_pandas_reads(tmp_path, table, group, shard_size):
    for name, rows in {"a": (0, 20), "b": (20, 21), "c": (21, 57)}.items():
        rows_of_file = table.slice(rows[0], rows[1] - rows[0])
        (tmp_path / f"{name}.parquet").write_bytes(parquet(rows_of_file, row_group_size=group))
    ids, where, found, columns = read((str(tmp_path), {}), shard_size=shard_size)
    frames = {name: pd.read_parquet(tmp_path / f"{name}.parquet") for name in "abc"}
    expected = pd.concat(frames.values(), ignore_index=True)
    assert ids == [f"{n}.parquet#{i}" for n, frame in frames.items() for i in range(len(frame))]
    assert where == [f"{tmp_path}/{name}" for name in ids]
    assert found == [image["bytes"] for image in expected["image"]]
    without = expected.drop(columns="image")
    without["kind"] = without["kind"].astype("category")
    pd.testing.assert_frame_equal(columns.to_pandas(), without)
    assert columns.column_names == ["label", "text", "vector", "tags", "kind"]


def test_columns_of_every_kind_arrive_as_pyarrow_reads_them(tmp_path):
    day = datetime.datetime(2024, 2, 29, 12)
    kinds = {
        "uuid": pa.array([b"0123456789abcdef", None], pa.uuid()),
        "json": pa.array(['{"a": 1}', None], pa.json_()),
        "when": pa.array([day, None], pa.timestamp("ns", tz="Europe/Berlin")),
        "day": pa.array([day.date(), None]),
        "money": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(9, 2)),
        "half": pa.array([np.float16(0.5), None], pa.float16()),
        "wide": pa.array(["x", None], pa.large_string()),
        "view": pa.array(["x", None], pa.string_view()),
        "lists": pa.array([[1], None], pa.large_list(pa.int8())),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        "words": pa.array(["x", None]).dictionary_encode(),
        "deep": pa.array([{"a": [{"b": 1}]}, None]),
        "nothing": pa.nulls(2),
        "flag": pa.array([True, False]),
    }
    strict = pa.field("flag", pa.bool_(), nullable=False)
    fields = [pa.field(name, array.type) for name, array in kinds.items() if name != "flag"]
    frame = pa.table(list(kinds.values()), schema=pa.schema([*fields, strict]))
    frame = frame.append_column("image", [[b"a", b"b"]])
    (tmp_path / "a.parquet").write_bytes(parquet(frame, row_group_size=1))
    columns = read((str(tmp_path), {}))[3]
    expected = pq.read_table(tmp_path / "a.parquet").drop_columns("image")
    plain = {pa.string_view(): pa.string()}  # of views Arrow cannot compute the half
    assert columns.schema.types == [plain.get(type_, type_) for type_ in expected.schema.types]
    assert columns.to_pylist() == expected.to_pylist()
    assert columns.schema.field("flag").nullable, "rows that cannot be read have null there"


def test_parquet_on_s3(s3, table):
    place = ("s3://sources-tests/tables", s3)
    put(place, "x/a.parquet", parquet(table, row_group_size=20))
    put(place, "x/b.parquet", parquet(table))
    ids, where, found, columns = read(place, shard_size=23)
    assert ids[:2] == ["x/a.parquet#0", "x/a.parquet#1"]
    assert where[-1] == "s3://sources-tests/tables/x/b.parquet#56"
    assert found == table["image"].combine_chunks().field("bytes").to_pylist() * 2
    assert columns["tags"].to_pylist() == table["tags"].to_pylist() * 2


def test_a_large_footer_on_s3(s3):
    """The first request gets the last 64 KiB; this footer is longer than that."""
    wide = pa.table({"image": [b"x"], **{f"{'c' * 200}{i}": [i] for i in range(500)}})
    payload = parquet(wide)
    assert int.from_bytes(payload[-8:-4], "little") > 64 << 10
    put(("s3://sources-tests/wide", s3), "a.parquet", payload)
    _, _, found, columns = read(("s3://sources-tests/wide", s3))
    assert found == [b"x"]
    assert columns.num_columns == 500


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT])
def test_empty_images_are_errors(tmp_path, type_):
    column = images([b"x", None, b"", b"y"], type_)
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"image": column, "n": range(4)})))
    _, _, found, columns = read((str(tmp_path), {}))
    assert (found[0], found[3]) == (b"x", b"y")
    assert [found[i].error for i in (1, 2)] == ["EmptyImage", "EmptyImage"]
    assert columns["n"].to_pylist() == [0, 1, 2, 3]


def test_a_path_without_bytes_is_named_in_the_error(tmp_path):
    column = pa.array([{"bytes": None, "path": "far/away.png"}, None], STRUCT)
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"image": column})))
    _, _, found, _ = read((str(tmp_path), {}))
    assert "far/away.png" in found[0].message
    assert found[1].error == "EmptyImage"


def test_ids_of_a_column(tmp_path):
    frame = pa.table({"image": [b"x"] * 3, "id": [7, None, 9]})
    (tmp_path / "a.parquet").write_bytes(parquet(frame))
    ids, where, found, columns = read((str(tmp_path), {}), id_column="id")
    assert ids == ["7", "a.parquet#1", "9"]
    assert where[0] == f"{tmp_path}/a.parquet#0"
    assert found[1] == RowError("read", "MissingId", "column id is null in this row")
    assert columns.num_columns == 0


def test_a_column_of_nulls_is_read_with_the_others_type(tmp_path):
    for name, note in (("a", None), ("b", "n")):
        pd.DataFrame({"image": [b"x"], "note": [note]}).to_parquet(tmp_path / f"{name}.parquet")
    columns = read((str(tmp_path), {}))[3]
    assert columns["note"].to_pylist() == [None, "n"]


def test_names_with_dots_are_told_apart(tmp_path):
    frame = pa.table({"image": [b"right"], "image.bytes": [b"wrong"], "a": [1], "a.b": [2]})
    (tmp_path / "a.parquet").write_bytes(parquet(frame))
    _, _, found, columns = read((str(tmp_path), {}), keep_columns=["a"])
    assert found == [b"right"]
    assert columns.to_pydict() == {"a": [1]}


def close_files():
    """Leaves the process as a new one is."""
    while parquet_file._open_reader:
        parquet_file._open_reader.pop().close()


def count_batches(monkeypatch):
    """Returns the list of batches that are decoded from now on, by their first rows."""
    decoded = []
    whole = parquet_file._read_batches

    def counting(*arguments):
        for at, batch in whole(*arguments):
            decoded.append(at)
            yield at, batch

    monkeypatch.setattr(parquet_file, "_read_batches", counting)
    return decoded


def read_rows(path, start, stop):
    shard = Shard(0, (FileSlice(str(path), "a", start, stop),))
    reading = read_shard(shard, format="parquet", image_column="image")
    return [image for some in reading for image in some.images]


@pytest.mark.parametrize("group", [30_000, 1000, 700])
def test_a_row_group_is_decoded_once_for_all_its_shards(tmp_path, monkeypatch, group):
    """Not once for each: a process gets shards in the order of their rows, with gaps."""
    payloads = [str(i).encode() for i in range(30_000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": payloads}), path, row_group_size=group)
    decoded = count_batches(monkeypatch)
    for start in range(0, 30_000, 1000):
        if start % 5000:  # another process has these
            assert read_rows(path, start, start + 1000) == payloads[start : start + 1000]
    batches = sum(-(-min(group, 30_000 - at) // 256) for at in range(0, 30_000, group))
    assert len(decoded) <= batches
    assert read_rows(path, 100, 300) == payloads[100:300], "back to the start"
    assert read_rows(path, 250, 400) == payloads[250:400], "a batch that two shards share"


def test_a_file_that_is_replaced_between_two_shards_is_opened_again(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    decoded = count_batches(monkeypatch)
    pq.write_table(pa.table({"image": [b"old"] * 1000}), path)
    assert read_rows(path, 0, 500) == [b"old"] * 500
    pq.write_table(pa.table({"image": [b"new"] * 1000}), path)
    assert read_rows(path, 500, 1000) == [b"new"] * 500
    assert decoded == [0, 256, 0, 256, 512, 768]
    assert not parquet_file._open_reader, "nothing stays open at the end of a file"


def test_at_most_one_file_stays_open(tmp_path):
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": [b"x"] * 10}), tmp_path / name)
    for name in ("a", "b", "a"):
        assert read_rows(tmp_path / name, 0, 5) == [b"x"] * 5
        (reader,) = parquet_file._open_reader
        assert reader._path == str(tmp_path / name)


# --- Parquet files that are damaged or have changed ----------------------------------------------

ROWS, GROUP, PAGE = 120, 60, 10


def damaged(tmp_path, column, *, page):
    """A file of two row groups of six pages (PAGE rows each); one page of the first group
    has wrong bytes. With checksums, so that the damage is certain to be found."""
    frame = pa.table(
        {
            "image": pa.array([bytes([i]) * 50 for i in range(ROWS)], pa.binary()),
            "label": pa.array(range(ROWS), pa.int64()),
        }
    )
    payload = bytearray(
        parquet(
            frame,
            row_group_size=GROUP,
            data_page_size=1,
            write_batch_size=PAGE,
            use_dictionary=False,
            compression="none",
            write_page_checksum=True,
        )
    )
    group = pq.read_metadata(io.BytesIO(payload)).row_group(0)
    place = group.column(frame.column_names.index(column))
    at = place.data_page_offset + place.total_compressed_size * (2 * page + 1) // 12
    payload[at] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(payload)


@pytest.mark.parametrize("most_rows", [16, 256])
@pytest.mark.parametrize("shard_size", [1, 45, 1000])
@pytest.mark.parametrize("column", ["image", "label"])
@pytest.mark.parametrize("page", [0, 3, 5])
def test_damage_ends_a_row_group_at_the_same_row_whatever_the_shards(
    tmp_path, monkeypatch, column, page, shard_size, most_rows
):
    monkeypatch.setattr(parquet_file, "_MOST_ROWS", most_rows)
    damaged(tmp_path, column, page=page)
    ids, _, found, columns = read((str(tmp_path), {}), shard_size=shard_size)
    failed = range(page * PAGE, GROUP)
    assert [i for i in range(ROWS) if isinstance(found[i], RowError)] == list(failed)
    assert all(found[i] == bytes([i]) * 50 for i in range(ROWS) if i not in failed)
    assert columns["label"].to_pylist() == [None if i in failed else i for i in range(ROWS)]
    assert ids == [f"a.parquet#{i}" for i in range(ROWS)]
    assert "\n" not in found[failed[0]].message


@pytest.mark.parametrize("most_rows", [16, 256])
def test_damage_fails_the_same_rows_of_a_shard_whoever_reads_it(tmp_path, monkeypatch, most_rows):
    """In a process of its own, after others, and after a gap that holds the damage."""
    monkeypatch.setattr(parquet_file, "_MOST_ROWS", most_rows)
    damaged(tmp_path, "image", page=2)
    bounds = [(start, start + 8) for start in range(0, GROUP, 8)]

    def failed(start, stop):
        found = read_rows(tmp_path / "a.parquet", start, stop)
        return {start + i for i, image in enumerate(found) if isinstance(image, RowError)}

    alone = []
    for place in bounds:
        close_files()
        alone.append(failed(*place))
    assert set().union(*alone) == set(range(2 * PAGE, GROUP))
    close_files()
    assert [failed(*place) for place in bounds] == alone, "one after the other"
    close_files()
    assert [failed(*place) for place in bounds[::3]] == alone[::3], "with gaps"


def test_a_damaged_page_says_so(tmp_path):
    damaged(tmp_path, "image", page=2)
    error = read_rows(tmp_path / "a.parquet", 2 * PAGE, GROUP)[0]
    assert (error.stage, error.error) == ("read", "OSError")
    assert "CRC checksum verification failed" in error.message


def test_a_file_that_shrinks_while_it_is_open_fails_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "_SMALL_GROUP", 0)  # else all of it is read ahead
    monkeypatch.setattr(parquet_file, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(parquet_file, "_MOST_ROWS", 10)
    path = tmp_path / "a.parquet"
    frame = pa.table({"image": [bytes([i % 251]) * 50 for i in range(500)]})
    layout = {"data_page_size": 1, "write_batch_size": PAGE, "use_dictionary": False}
    payload = parquet(frame, compression="none", **layout)
    path.write_bytes(payload)
    shard = Shard(0, (FileSlice(str(path), "a", 0, 500),))
    reading = read_shard(shard, format="parquet", image_column="image")
    found = [next(reading)]
    path.write_bytes(payload[:3000])
    found += reading
    images = [image for some in found for image in some.images]
    assert len(images) == 500
    assert images[:10] == frame["image"][:10].to_pylist()
    assert isinstance(images[-1], RowError)


def test_text_that_is_not_utf8_fails_its_row_alone(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"fine"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    frame = pa.table({"image": [b"a", b"b", b"c"], "text": text})
    (tmp_path / "a.parquet").write_bytes(parquet(frame))
    _, _, found, columns = read((str(tmp_path), {}))
    assert [isinstance(image, RowError) for image in found] == [False, True, False]
    assert columns["text"].to_pylist() == ["good", None, "fine"]


CHANGES = {
    "gone": (None, "FileNotFoundError"),
    "cut": (lambda whole: whole[:-30], "ArrowInvalid"),
    "shorter": (lambda _: parquet(pa.table({"image": [b"x"], "n": [0]})), "ChangedFile"),
    "no image": (lambda _: parquet(pa.table({"picture": [b"x"], "n": [0]})), "ChangedFile"),
    "other type": (lambda _: parquet(pa.table({"image": [1], "n": [0]})), "ChangedFile"),
    "other column": (
        lambda _: parquet(pa.table({"image": [b"x"] * 3, "n": ["one"] * 3})),
        "ArrowInvalid",
    ),
    "no column": (lambda _: parquet(pa.table({"image": [b"x"]})), "ChangedFile"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_after_planning_fails_its_rows(tmp_path, change):
    for name in ("a", "b", "c"):
        whole = parquet(pa.table({"image": [b"x"] * 3, "n": range(3)}))
        (tmp_path / f"{name}.parquet").write_bytes(whole)
    plan = plan_shards(str(tmp_path), shard_size=100)
    alter, error = CHANGES[change]
    if alter is None:
        (tmp_path / "b.parquet").unlink()
    else:
        (tmp_path / "b.parquet").write_bytes(alter(whole))
    plan = replace(plan, shards=tuple(replace(s, tries=Tries.LAST) for s in plan.shards))
    found = [image for some in rows_of(plan, ("", {})) for image in some.images]
    good = [True] * 3 + [change == "shorter", False, False] + [True] * 3
    assert [image == b"x" for image in found] == good
    assert found[5].error == error


def test_wrong_bytes_in_pages_never_lose_a_row(tmp_path):
    frame = pa.table(
        {
            "image": images([bytes([i]) * 20 for i in range(60)]),
            "text": [f"t{i % 7}" for i in range(60)],
            "tags": [[f"a{k}" for k in range(i % 4)] for i in range(60)],
        }
    )
    path = tmp_path / "a.parquet"
    codecs = ["none", "snappy", "zstd", "gzip"]
    failed = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        payload = bytearray(
            parquet(frame, row_group_size=25, compression=codecs[seed % 4], data_page_size=128)
        )
        path.write_bytes(payload)
        plan = plan_shards(str(path), shard_size=int(random.integers(5, 70)))
        footer = int.from_bytes(payload[-8:-4], "little")
        at = int(random.integers(4, len(payload) - 8 - footer))
        payload[at : at + 2] = random.bytes(2)
        path.write_bytes(payload)
        reads = list(rows_of(plan, ("", {})))
        ids = [id_ for some in reads for id_ in some.ids]
        assert ids == [f"a.parquet#{row}" for row in range(60)], seed
        for some in reads:
            some.columns.validate(full=True)
        failed += any(isinstance(image, RowError) for some in reads for image in some.images)
    assert failed > 20, "most damage must have been found, or this test shows nothing"


@pytest.mark.parametrize("bit", [1, 128])
def test_a_wrong_bit_anywhere_in_a_footer_never_ends_the_process(tmp_path, bit):
    """pyarrow aborts over some of these, where the columns' metadata are looked at."""
    frame = pa.table({"image": [b"x"] * 6, "tags": [["a"], ["b", "c"]] * 3})
    payload = parquet(frame, store_schema=False, row_group_size=2)
    path = tmp_path / "a.parquet"
    path.write_bytes(payload)
    good = plan_shards(str(path), shard_size=10)
    refused = 0
    footer = int.from_bytes(payload[-8:-4], "little")
    for at in range(len(payload) - 8 - footer, len(payload)):
        broken = bytearray(payload)
        broken[at] ^= bit
        path.write_bytes(broken)
        found = [id_ for some in rows_of(good, ("", {})) for id_ in some.ids]
        assert found == [f"a.parquet#{row}" for row in range(6)], at
        try:
            plan_shards(str(path), shard_size=10)
        except UsageError:
            refused += 1
    assert 0 < refused < footer


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    """A shard at the end of a row group of 100 MB, read a few MB at a time."""
    rows, size = 20_000, 5_000
    payload = np.random.default_rng(0).bytes(rows * size)
    column = pa.array([payload[i * size : (i + 1) * size] for i in range(rows)])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column}), path, row_group_size=rows, write_batch_size=100)
    del column
    shard = Shard(0, (FileSlice(str(path), "a.parquet", rows - 100, rows),))
    tracemalloc.start()  # counts what the file's reads return, the way in of every byte
    try:
        found = [
            image
            for some in read_shard(shard, format="parquet", image_column="image")
            for image in some.images
        ]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [payload[i * size : (i + 1) * size] for i in range(rows - 100, rows)]
    assert peak < 20 << 20


def sized(path, size: int) -> FileSlice:
    return FileSlice(str(path), path.name, 0, 1, f"size={size} mtime=1")


def test_an_image_that_is_too_large_is_an_error_and_not_read(tmp_path, monkeypatch):
    """Past bug: a sparse file of 2 GiB was read whole, eight of them at once."""
    read = []
    monkeypatch.setattr(
        image_files, "read_bytes", lambda fs, path: read.append(path) or b"x" * 1000
    )
    with open(tmp_path / "huge.tif", "wb") as file:
        file.truncate(2 << 30)
    small = tmp_path / "small.tif"
    grown = FileSlice(str(tmp_path / "unknown.tif"), "unknown.tif", 0, 1)  # of no known size
    shard = Shard(0, (sized(tmp_path / "huge.tif", 2 << 30), sized(small, 1000), grown))
    (some,) = read_shard(shard, format="images")
    assert (some.images[0].error, some.images[1:]) == ("ImageTooLarge", [b"x" * 1000] * 2)
    assert some.images[0].message == (
        "expected at most 268,435,456 bytes (--max-image-bytes), found 2,147,483,648"
    )
    assert read == [str(small), grown.path]
    (some,) = read_shard(shard, format="images", max_image_bytes=999)
    assert [image.error for image in some.images] == ["ImageTooLarge"] * 3


def test_the_limit_holds_in_tables_and_tars(tmp_path):
    contents = [b"x" * 999, b"x" * 1000, b"x" * 1001]
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"image": images(contents)})))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, content in enumerate(contents):
            (tmp_path / f"{i}.png").write_bytes(content)
            tar.add(tmp_path / f"{i}.png", f"{i}.png")
    for name, format in (("a.parquet", "parquet"), ("a.tar", "webdataset")):
        plan = find_source(str(tmp_path / name), format=format).cut(10)
        (some,) = read_shard(
            plan.shards[0], format=format, image_column=plan.image_column, max_image_bytes=1000
        )
        assert some.images[:2] == contents[:2]
        assert some.images[2].error == "ImageTooLarge"


def test_what_is_read_ahead_is_bounded_in_bytes_from_the_first_file(monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES_AHEAD", 1000)
    monkeypatch.setattr(read_ahead, "READ_BYTES", 400)
    seen = []
    reading = read_ahead.read_ahead(
        range(20),
        lambda file: seen.append(file) or b"x" * 400,
        size_of=lambda file: 400,
        most_bytes=500,
    )
    for taken in range(1, 21):
        next(reading)
        assert len(seen) <= taken + 2


def test_files_behind_a_slow_one_are_not_piled_up(monkeypatch):
    """Past bug: they counted as was expected of them, also once they had come."""
    monkeypatch.setattr(read_ahead, "_BYTES_AHEAD", 2000)
    slow, started = threading.Event(), []

    def read(file):
        started.append(file)
        if file == 64:
            slow.wait(10)
        return b"x" * (1 if file < 64 else 1000)

    reading = read_ahead.read_ahead(range(200), read, size_of=lambda _: None, most_bytes=1000)
    for _ in range(8):
        next(reading)
        time.sleep(0.05)
    assert len(started) <= 64 + 33 + 4  # those that had begun when the first was known
    slow.set()
    assert sum(map(len, reading)) == 200 - 64


def test_one_large_file_among_small_ones_does_not_hold_up_the_rest(monkeypatch):
    """Past bug: where no size is known, all that followed a large one were taken for as large."""
    monkeypatch.setattr(read_ahead, "_BYTES_AHEAD", 2000)
    ahead = []
    started = []
    reading = read_ahead.read_ahead(
        range(200),
        lambda file: started.append(file) or b"x" * (900 if file == 50 else 10),
        size_of=lambda file: None,
        most_bytes=1000,
    )
    for taken, _ in enumerate(reading, start=1):
        time.sleep(0.01)
        ahead.append(len(started) - 8 * taken)
    assert max(ahead[10:20]) >= 16


def test_samples_of_a_file_that_is_damaged_after_planning_fail_one_by_one(tmp_path):
    """A slice of samples that begins and ends within rows of the file; then without its end."""
    lists = pa.list_(pa.list_(pa.uint16(), 2))
    samples = [[[10 * row + k, 1] for k in range(3)] for row in range(4)]
    table = pa.table({"samples": pa.array(samples, lists), "label": range(4)})
    pq.write_table(table, tmp_path / "a.parquet")
    shard = Shard(0, (FileSlice(str(tmp_path / "a.parquet"), "a", 2, 10, samples=3),))
    options = {"format": "tokens", "image_column": "samples"}
    options["passthrough"] = pa.schema([("label", pa.int64())])
    assert shard.rows == 8
    ids = [f"a#{i // 3}#{i % 3}" for i in range(2, 10)]
    found = list(read_shard(shard, **options))
    assert [id_ for some in found for id_ in some.ids] == ids
    rows = [(i // 3, i % 3) for i in range(2, 10)]
    images = [image.tolist() for some in found for image in some.images]
    assert images == [samples[row][k] for row, k in rows]
    labels = [label for some in found for label in some.columns["label"].to_pylist()]
    assert labels == [row for row, _ in rows]
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    found = list(read_shard(shard, **options))
    assert [id_ for some in found for id_ in some.ids] == ids
    assert all(isinstance(image, RowError) for some in found for image in some.images)
