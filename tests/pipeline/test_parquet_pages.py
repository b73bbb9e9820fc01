"""Late shards of a row group read their own pages, and what comes out is what reading it whole
gives."""

import importlib.util
import io
from contextlib import contextmanager, suppress

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.late_rows import GroupPages
from pipeline.page_headers import Leaf, count_rows, read_header
from pipeline.readers import parquet_file, read_shard
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.thrift import ThriftError, read_struct, write_struct

STRUCT_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS, GROUP = 500, 400


@pytest.fixture
def always_late(monkeypatch):
    """Small row groups are treated as large ones are. The list of the shares of bytes skipped."""
    monkeypatch.setattr(parquet_file, "_SMALL_GROUP", 0)
    monkeypatch.setattr(parquet_file, "_FOOTER_COST", 0)
    skipped = []
    from_row = GroupPages.from_row

    def noting(self, row, **options):
        late = from_row(self, row, **options)
        skipped.append(late.skipped)
        return late

    monkeypatch.setattr(GroupPages, "from_row", noting)
    return skipped


def close_files():
    """As in a new process."""
    while parquet_file._left:
        parquet_file._left.pop().close()


@pytest.fixture(autouse=True)
def _no_file_stays_open():
    close_files()
    yield
    close_files()


def every_kind(rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    payloads = [random.bytes(int(n)) for n in random.integers(1, 120, rows)]
    paths = [f"p{i % 50}.png" if i % 5 else None for i in range(rows)]
    structs = [{"bytes": b, "path": p} for b, p in zip(payloads, paths, strict=True)]
    tokens = random.integers(0, 512, (rows, 16)).tolist()
    columns = {
        "image": pa.array([s if i % 17 else None for i, s in enumerate(structs)], STRUCT_IMAGE),
        "plain": pa.array(payloads[::-1]),
        "label": pa.array([i if i % 3 else None for i in range(rows)]),
        "strict": pa.array(range(rows), pa.int32()),
        "class": pa.array([f"c{i % 7}" for i in range(rows)]),
        "flag": pa.array([i % 3 == 0 for i in range(rows)]),
        "tokens": pa.array(tokens, pa.list_(pa.uint16(), 16)),
        "ragged": pa.array([t[: i % 9] if i % 8 else None for i, t in enumerate(tokens)]),
        "deep": pa.array([[{"a": i, "b": ["x"] * (i % 4)}] * (i % 3) for i in range(rows)]),
        "map": pa.array([[("k", i)] * (i % 2) for i in range(rows)], pa.map_("string", "int32")),
        "words": pa.array([f"w{i // 9}" for i in range(rows)]).dictionary_encode(),
    }
    fields = [pa.field(name, x.type, nullable=name != "strict") for name, x in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def loose(schema, image):
    """What is passed through beside the image; null where rows could not be read."""
    names = [name for name in schema.names if name != image]
    return pa.schema([schema.field(name).with_nullable(True) for name in names])


def read(path, start, stop, schema, image="image", format="parquet"):
    """(images, columns) of rows of a file."""
    passthrough = loose(schema, image)
    images, columns = [], [passthrough.empty_table()]
    shard = Shard(0, (FileSlice(str(path), "a", start, stop),))
    for chunk in read_shard(shard, format=format, image_column=image, passthrough=passthrough):
        images += chunk.images
        columns.append(chunk.columns)
    return images, pa.concat_tables(columns)


def decoded(table):
    """The table with text in place of numbers in a dictionary, which may differ."""
    types = [
        pa.string() if pa.types.is_dictionary(type_) else type_ for type_ in table.schema.types
    ]
    names = zip(table.schema.names, types, strict=True)
    return table.cast(pa.schema(list(names)))


def check(path, bounds, image="image", format="parquet"):
    """Reads slices of a file, each as a new process does, and compares them with the file."""
    whole = pq.read_table(path)
    for start, stop in bounds:
        close_files()
        images, columns = read(path, start, stop, whole.schema, image, format)
        expected = whole.slice(start, stop - start)
        assert decoded(columns).equals(decoded(expected.drop_columns(image).cast(columns.schema)))
        for found, wanted in zip(images, expected[image].to_pylist(), strict=True):
            wanted = wanted["bytes"] if isinstance(wanted, dict) else wanted
            if wanted is None:
                assert isinstance(found, RowError)
            else:
                assert list(found) == list(wanted)


SLICES = [(1, 40), (150, 151), (333, 420), (399, 500), (480, 490)]


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_slice_equals_the_whole(tmp_path, always_late, version, codec, dictionary, index):
    path = tmp_path / "a.parquet"
    random = np.random.default_rng([version == "1.0", len(codec), dictionary, index])
    for size in (100, 1500):
        pq.write_table(
            every_kind(),
            path,
            row_group_size=GROUP,
            data_page_version=version,
            compression=codec,
            use_dictionary=dictionary,
            write_page_index=index,
            data_page_size=size,
            write_batch_size=int(random.integers(1, 30)),
            write_page_checksum=True,
            max_rows_per_page=int(random.integers(20, 200)),
        )
        check(path, SLICES)
    check(path, SLICES, image="plain")
    check(path, SLICES, image="tokens", format="tokens")
    assert sum(share > 0 for share in always_late) > len(always_late) / 3


def test_columns_that_cannot_be_null_are_put_together_all_the_same(tmp_path, always_late):
    """Leaves of a strict struct cannot begin at different rows."""
    strict = pa.field("path", pa.string(), False)
    bytes_ = pa.field("bytes", pa.binary(), False)
    image = [{"bytes": bytes([i % 251]) * (i % 40 + 1), "path": f"{i}"} for i in range(ROWS)]
    for nullable, path in ((False, strict), (True, strict), (False, strict.with_nullable(True))):
        inner = pa.struct([bytes_, path])
        schema = pa.schema([pa.field("image", inner, nullable), pa.field("n", pa.int64(), False)])
        frame = pa.table([pa.array(image, inner), range(ROWS)], schema=schema)
        layout = {"data_page_size": 300, "write_batch_size": 7, "use_dictionary": False}
        pq.write_table(frame, tmp_path / "a", **layout)
        check(tmp_path / "a", SLICES)
    assert max(always_late) > 0


def test_results_are_made_of_the_same_batches(tmp_path, monkeypatch, always_late):
    """Dictionaries that grow batch by batch hold a value under the same number whatever the
    shards, so that parts have the same bytes."""
    path = tmp_path / "a.parquet"
    halves = (range(100), range(100, ROWS))  # the second has no dictionary in the file
    words = pa.chunked_array([pa.array(map(str, half)).dictionary_encode() for half in halves])
    frame = pa.table({"image": [bytes([i % 251]) * 60 for i in range(ROWS)], "words": words})
    pq.write_table(frame, path, data_page_size=200, write_batch_size=5)
    late = read(path, 300, 400, frame.schema)[1]
    assert max(always_late) > 0.4
    monkeypatch.setattr(parquet_file, "_SMALL_GROUP", 1 << 30)
    close_files()
    whole = read(path, 300, 400, frame.schema)[1]
    for found, wanted in zip(late["words"].chunks, whole["words"].chunks, strict=True):
        assert found.indices.equals(wanted.indices)
        assert found.dictionary.equals(wanted.dictionary)


@pytest.mark.skipif(importlib.util.find_spec("duckdb") is None, reason="needs duckdb")
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_files_of_another_writer(tmp_path, always_late, version):
    import duckdb

    path = tmp_path / "a.parquet"
    duckdb.sql(f"""
        COPY (
            SELECT
                CASE WHEN i % 17 > 0 THEN
                    {{'bytes': encode(repeat(i::VARCHAR, 40)), 'path': i || '.png'}} END AS image,
                i AS label, i % 7 = 0 AS flag, (i % 10)::VARCHAR AS class,
                [(x + i)::USMALLINT FOR x IN range(i % 5)] AS tokens
            FROM range(30000) AS numbers (i)
        ) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 20480, PARQUET_VERSION {version})
    """)
    check(path, [(2000, 2100), (12_345, 12_400), (20_400, 20_500), (29_990, 30_000)])
    check(path, [(12_345, 12_400)], image="tokens", format="tokens")
    assert always_late


# --- what is read ---------------------------------------------------------------------------------


class Counting:
    """A file that counts the bytes that were read of it, and its reads."""

    def __init__(self, file):
        self._file = file
        self.bytes = self.reads = 0

    def read(self, size=-1):
        payload = self._file.read(size)
        self.bytes += len(payload)
        self.reads += 1
        return payload

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def opened_files(monkeypatch):
    """The files that readers open from now on."""
    files = []
    whole = parquet_file._open

    def counting(fs, path):
        files.append(Counting(whole(fs, path)))
        return files[-1]

    monkeypatch.setattr(parquet_file, "_open", counting)
    return files


BIG, SIZE = 8000, 10_000  # 80 MB of images, in pages of about a megabyte


@pytest.fixture(scope="module")
def big():
    """An image table that is large enough for its pages to be looked for, by its options."""
    payload = np.random.default_rng(0).bytes(BIG * SIZE)
    pieces = [payload[i * SIZE : (i + 1) * SIZE] for i in range(BIG)]
    image = [{"bytes": piece, "path": f"{i}.jpg"} for i, piece in enumerate(pieces)]
    frame = pa.table({"image": pa.array(image, STRUCT_IMAGE), "label": range(BIG)})

    def write(**options):
        file = io.BytesIO()
        pq.write_table(frame, file, row_group_size=BIG, write_batch_size=100, **options)
        return file.getvalue()

    return write, pieces, frame.schema


@contextmanager
def in_memory(payload):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/late/a.parquet", payload)
    yield "memory://late/a.parquet"
    fs.rm("/late", recursive=True)


def test_a_late_shard_of_a_local_file_reads_its_share(tmp_path, big, opened_files):
    write, pieces, schema = big
    path = tmp_path / "a.parquet"
    path.write_bytes(write())
    images, columns = read(path, BIG - 100, BIG, schema)
    assert images == pieces[BIG - 100 :]
    assert columns["label"].to_pylist() == list(range(BIG - 100, BIG))
    (file,) = opened_files
    assert file.bytes < 8 << 20, "of 80 MB: pages of a megabyte, 100 rows are one more"
    close_files()
    assert read(path, BIG // 2, BIG // 2 + 100, schema)[0] == pieces[BIG // 2 : BIG // 2 + 100]
    assert opened_files[-1].bytes < 16 << 20, "and what Arrow reads ahead"


def test_a_late_shard_of_an_object_reads_its_share_where_there_is_an_index(big, opened_files):
    write, pieces, schema = big
    with in_memory(write(write_page_index=True, use_dictionary=["label"])) as uri:
        assert read(uri, BIG - 100, BIG, schema)[0] == pieces[BIG - 100 :]
        (file,) = opened_files
        assert file.bytes < 8 << 20
        assert file.reads < 30


def test_an_object_without_an_index_is_read_from_the_start(big, opened_files):
    """A request for each page would take longer."""
    write, pieces, schema = big
    with in_memory(write(use_dictionary=False)) as uri:
        assert read(uri, BIG - 100, BIG, schema)[0] == pieces[BIG - 100 :]
    (file,) = opened_files
    assert file.bytes > BIG * SIZE
    assert file.reads < 80, "in large pieces"


def test_shards_that_follow_one_another_share_a_pass(tmp_path, big, opened_files):
    write, pieces, schema = big
    path = tmp_path / "a.parquet"
    path.write_bytes(write())
    for start in range(3400, 4400, 100):
        assert read(path, start, start + 100, schema)[0] == pieces[start : start + 100]
    (file,) = opened_files
    before = file.bytes
    assert before < 24 << 20, "1000 rows of 10 KB, not ten times a page more"
    assert read(path, BIG - 100, BIG, schema)[0] == pieces[BIG - 100 :]
    assert len(opened_files) == 1
    assert file.bytes - before < 8 << 20, "what lies between is skipped"


def test_small_row_groups_are_read_as_a_whole(tmp_path, monkeypatch):
    pq.write_table(every_kind(), tmp_path / "a.parquet", data_page_size=100, write_batch_size=5)
    monkeypatch.delattr(parquet_file, "GroupPages")  # would be missed if it were asked for
    check(tmp_path / "a.parquet", SLICES)


# --- files that are damaged -----------------------------------------------------------------------

PAGE = 10


def paged(**options):
    """Pages of 10 rows, with checksums."""
    frame = pa.table({"image": [bytes([i % 251]) * 50 for i in range(ROWS)], "n": range(ROWS)})
    file = io.BytesIO()
    layout = {"data_page_size": 1, "write_batch_size": PAGE, "use_dictionary": False}
    pq.write_table(frame, file, compression="none", write_page_checksum=True, **layout, **options)
    return frame, bytearray(file.getvalue())


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("chunk_rows", [16, 256])
def test_damage_fails_the_rest_of_a_shard_whoever_reads_it(
    tmp_path, monkeypatch, always_late, index, chunk_rows
):
    """A shard's result is the same after others in its process and alone."""
    monkeypatch.setattr(parquet_file, "_CHUNK_ROWS", chunk_rows)
    frame, payload = paged(write_page_index=index)
    place = pq.read_metadata(io.BytesIO(payload)).row_group(0).column(0)
    page = 23
    payload[place.data_page_offset + place.total_compressed_size * (2 * page + 1) // 100] ^= 1
    path = tmp_path / "a.parquet"
    path.write_bytes(payload)
    bounds = [(start, start + 25) for start in range(75, ROWS, 25)]

    def bad(start, stop):
        images = read(path, start, stop, frame.schema)[0]
        return {start + i for i, image in enumerate(images) if isinstance(image, RowError)}

    alone = []
    for start, stop in bounds:
        close_files()
        alone.append(bad(start, stop))
    assert set().union(*alone) == set(range(230, 250))
    close_files()
    assert [bad(*place) for place in bounds] == alone, "one after the other"
    close_files()
    assert [bad(*place) for place in bounds[::3]] == alone[::3], "with gaps"


def test_damage_between_two_shards_does_not_reach_the_second(tmp_path, monkeypatch, always_late):
    """Also where the gap is small, so that the pass goes on through it."""
    frame, payload = paged()
    column = pq.read_metadata(io.BytesIO(payload)).row_group(0).column(0)
    payload[column.data_page_offset + column.total_compressed_size * 47 // 100] ^= 1
    path = tmp_path / "a.parquet"
    path.write_bytes(payload)
    near = 80 * column.total_compressed_size // ROWS
    monkeypatch.setattr(parquet_file, "_SMALL_GROUP", near)
    monkeypatch.setattr(parquet_file, "_CHUNK_ROWS", 10)
    assert not any(isinstance(x, RowError) for x in read(path, 205, 225, frame.schema)[0])
    before = len(always_late)
    assert not any(isinstance(x, RowError) for x in read(path, 255, 270, frame.schema)[0])
    assert len(always_late) == before + 1, "the pass was begun anew after it had failed"


@pytest.mark.parametrize("cut", [30, 3000])
def test_a_file_cut_short_fails_its_rows(tmp_path, always_late, cut):
    frame, payload = paged()
    path = tmp_path / "a.parquet"
    path.write_bytes(payload[:-cut])
    images = read(path, 300, 400, frame.schema)[0]
    assert [image.stage for image in images] == ["read"] * 100


def test_a_file_that_shrinks_while_it_is_open_fails_its_rows(tmp_path, monkeypatch, always_late):
    monkeypatch.setattr(parquet_file, "_PARQUET_BUFFER", 1000)  # else all of it is read ahead
    monkeypatch.setattr(parquet_file, "_CHUNK_ROWS", 10)
    frame, payload = paged()
    path = tmp_path / "a.parquet"
    path.write_bytes(payload)
    with parquet_file.opened(str(path), {}, stop=ROWS) as reader:
        batches = reader.batches(0, frame.column_names, start=200)
        end = next(batches)[0]
        path.write_bytes(payload[:3000])
        with suppress(*parquet_file.parquet_errors()):
            for at, batch in batches:
                end = at + batch.num_rows
    assert max(always_late) > 0
    assert end < ROWS


def flipped(payload, random, places):
    broken = bytearray(payload)
    at = int(random.choice(places))
    broken[at] = int(random.integers(256)) if random.integers(2) else broken[at] ^ 1 << at % 8
    return broken


def fuzz(tmp_path, payload, frame, places, *, seeds):
    """Rows of damaged files: each is right, or an error, or what reading the file from its start
    gives (a schema that says something else misleads all readers). How many of each."""
    path = tmp_path / "a.parquet"
    path.write_bytes(payload)
    rows = frame.num_rows
    good = zipped(read(path, 0, rows, frame.schema))
    counts = {"right": 0, "error": 0}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        path.write_bytes(flipped(payload, random, places))
        start = int(random.integers(1, rows - 1))
        stop = int(random.integers(start + 1, rows + 1))
        close_files()
        found = zipped(read(path, start, stop, frame.schema))
        wrong = [i for i, row in enumerate(found) if row not in (None, good[start + i])]
        if wrong:
            close_files()
            whole = zipped(read(path, 0, rows, frame.schema))[start:stop]
            assert [found[i] for i in wrong] == [whole[i] for i in wrong], seed
        counts["error"] += found.count(None)
        counts["right"] += len(found) - found.count(None) - len(wrong)
    return counts


def zipped(rows):
    images, columns = rows
    is_bad = [isinstance(x, RowError) and x.error != "EmptyImage" for x in images]
    content = [None if isinstance(x, RowError) else x for x in images]
    pairs = zip(content, columns.to_pylist(), strict=True)
    return [None if bad else row for bad, row in zip(is_bad, pairs, strict=True)]


def around_pages(file):
    """The places of a file in headers of pages, in indexes, and in the footer behind its schema,
    which nothing else in a file confirms."""
    meta = pq.read_metadata(file)
    footer = len(file.getvalue()) - 8 - meta.serialized_size
    at = 4
    for group in range(meta.num_row_groups):
        for number in range(meta.num_columns):
            column = meta.row_group(group).column(number)
            at = column.dictionary_page_offset or column.data_page_offset
            end = at + column.total_compressed_size
            while at < end:
                header = read_header(file, at, end)
                yield from range(at, header.begin)
                at += header.size
    yield from range(at, footer)
    schema = write_struct({2: read_struct(file.getvalue(), footer)[0][2]})
    yield from range(footer + 2 + len(schema), footer + meta.serialized_size)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_wrong_bytes_around_pages_give_right_rows_or_errors(tmp_path, always_late, version, index):
    frame = every_kind(120).select(["image", "label", "class", "tokens", "ragged"])
    file = io.BytesIO()
    layout = {"row_group_size": 90, "data_page_size": 200, "write_batch_size": 6}
    pq.write_table(
        frame,
        file,
        data_page_version=version,
        write_page_index=index,
        write_page_checksum=True,
        store_schema=False,
        **layout,
    )
    places = list(around_pages(file))
    counts = fuzz(tmp_path, file.getvalue(), pq.read_table(file), places, seeds=150)
    assert min(counts.values()) > 200
    assert sum(share > 0 for share in always_late) > 30


def test_an_index_that_lies_is_not_believed(tmp_path, always_late):
    """Each page of each column in turn is said to begin a row later; nothing of it is seen in the
    rows."""
    frame = every_kind(100).select(["image", "tokens", "ragged"])
    file = io.BytesIO()
    layout = {"data_page_size": 100, "write_batch_size": 10, "use_dictionary": False}
    pq.write_table(frame, file, write_page_index=True, **layout)
    payload = file.getvalue()
    footer = read_struct(payload, len(payload) - 8 - pq.read_metadata(file).serialized_size)[0]
    (group,) = footer[4][1][1]
    lies = 0
    for chunk in group[1][1][1]:
        place = chunk[4][1]
        index = read_struct(payload, place)[0]
        for page in index[1][1][1][1:]:
            true = page[3]
            page[3] = (true[0], true[1] + 1)
            lie = write_struct(index)
            page[3] = true
            if len(lie) != chunk[5][1]:
                continue
            path = tmp_path / "a.parquet"
            path.write_bytes(payload[:place] + lie + payload[place + len(lie) :])
            row = min(true[1] + 1, 98)
            close_files()
            images, columns = read(path, row, row + 2, frame.schema)
            wanted = [x["bytes"] if x else None for x in frame["image"][row : row + 2].to_pylist()]
            assert [None if isinstance(x, RowError) else x for x in images] == wanted
            assert columns.equals(frame.slice(row, 2).drop_columns("image").cast(columns.schema))
            lies += 1
    assert lies > 20
    assert not always_late, "all of them were found, and the group read from its start"


def test_rows_of_a_page_are_counted_by_its_repetition_levels(tmp_path):
    random = np.random.default_rng(0)
    for codec, number in {"none": 0, "snappy": 1, "gzip": 2, "zstd": 6}.items():
        for length in (1, 2, 700):
            lists = [
                [[1] * int(random.integers(3))] * int(random.integers(length)) for _ in "abcde"
            ]
            file = io.BytesIO()
            pq.write_table(pa.table({"x": lists * 40}), file, compression=codec)
            column = pq.read_metadata(file).row_group(0).column(0)
            begin = column.data_page_offset
            header = read_header(file, begin, begin + column.total_compressed_size)
            assert count_rows(file, header, Leaf(0, 4, 2), number) == 200
            with pytest.raises(ThriftError):
                count_rows(file, header, Leaf(0, 4, 2), 9)


def test_an_index_of_a_huge_number_of_pages_is_refused(tmp_path, always_late):
    frame = every_kind(100).select(["image", "label"])
    file = io.BytesIO()
    pq.write_table(frame, file, write_page_index=True, data_page_size=100, write_batch_size=10)
    payload = bytearray(file.getvalue())
    footer = read_struct(payload, len(payload) - 8 - pq.read_metadata(file).serialized_size)[0]
    place = footer[4][1][1][0][1][1][1][0][4][1]
    huge = b"\x19\xfc" + b"\xff" * 5 + b"\x01"
    payload[place : place + len(huge)] = huge
    path = tmp_path / "a.parquet"
    path.write_bytes(payload)
    assert read(path, 50, 60, frame.schema)[1].column("label").to_pylist()[2] == 52
    assert not always_late
