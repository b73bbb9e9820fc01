"""Tars in WebDataset's layout: every sample is a row, whatever the order, damage or ill will."""

import errno
import gzip
import io
import os
import random
import tarfile
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.inputs import tar_index, webdataset_schema
from pipeline.inputs.files import InputFile
from pipeline.inputs.source import find_source
from pipeline.inputs.tar_index import find_samples, open_tar
from pipeline.inputs.webdataset_schema import count_samples
from pipeline.readers import read_shard, webdataset
from pipeline.readers.webdataset import UnreadableTar
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Plan, Shard
from pipeline.storage.atomic import write_atomic
from pipeline.storage.block_reader import BlockReader
from pipeline.storage.filesystem import open_location
from pipeline.storage.retry import is_of_the_node, is_transient


def make_tar(members, *, format=tarfile.GNU_FORMAT):
    """A tar of (name, payload) as bytes; a payload that is a TarInfo stands for itself."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, payload in members:
            if isinstance(payload, tarfile.TarInfo):
                payload.name = name
                tar.addfile(payload)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return file.getvalue()


def special(type_, target=""):
    info = tarfile.TarInfo()
    info.type, info.linkname = type_, target
    return info


def samples(count, *, seed=0):
    """Members of samples with an image, a class and a text each, as name -> payload."""
    rng = random.Random(seed)
    members = {}
    for i in range(count):
        members[f"d{i % 3}/{i:03}.jpg"] = rng.randbytes(rng.randrange(1, 3000))
        members[f"d{i % 3}/{i:03}.cls"] = str(i * 7).encode()
        members[f"d{i % 3}/{i:03}.caption.txt"] = f"ü{i}".encode()
    return members


def shuffled(members, *, seed=0):
    order = list(members.items())
    random.Random(seed).shuffle(order)
    return order


def rows_of(plan, options=None, **traits):
    """(id, image or error, columns) of every row of a plan."""
    rows = []
    for shard in plan.shards:
        for some in read_shard(
            shard,
            format=plan.format,
            image_column=plan.image_column,
            id_column=plan.id_column,
            passthrough=plan.passthrough,
            storage_options=options,
            **traits,
        ):
            assert some.columns.schema == plan.passthrough
            assert len(some.sources) == some.columns.num_rows
            rows += zip(some.ids, some.images, some.columns.to_pylist(), strict=True)
    return rows


def plan_of(location, **options) -> Plan:
    plan = find_source(str(location), **options).cut(5)
    return Plan.from_table(plan.to_table())


def uncut(plan: Plan) -> Plan:
    """The same with each tar as one shard, whose members are looked for from its first byte."""
    tars = dict.fromkeys((each.path, each.name) for shard in plan.shards for each in shard.slices)
    shards = (Shard(i, (FileSlice(*tar, 0, None),)) for i, tar in enumerate(tars))
    return replace(plan, shards=tuple(shards))


def rows_of_damaged(folder, payload):
    """The rows of a tar that is planned as it is, beside a good one; read in slices and whole."""
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(make_tar(samples(1).items()))
    (folder / "t.tar").write_bytes(payload)
    plan = plan_of(folder, keep_columns=["cls", "caption.txt"])
    rows = rows_of(plan)
    assert rows == rows_of(uncut(plan))
    assert plan.rows == len(rows)
    return [row for row in rows if not row[0].startswith("a.tar")]


def read(tmp_path, members, *, name="t.tar", **options):
    (tmp_path / name).write_bytes(make_tar(members))
    return rows_of(plan_of(tmp_path / name, **options))


def errors(rows):
    return {id_: image.error for id_, image, _ in rows if isinstance(image, RowError)}


def good(rows):
    return {id_: image for id_, image, _ in rows if not isinstance(image, RowError)}


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "name", ["t.tar", "t.tar.gz", "t.tgz", "compressed-in-spite-of-its-name.tar"]
)
def test_members_of_a_sample_may_lie_anywhere(tmp_path, name, format):
    members = samples(20)
    order = shuffled(members)
    payload = make_tar(order, format=format)
    (tmp_path / name).write_bytes(payload if name == "t.tar" else gzip.compress(payload))
    plan = plan_of(tmp_path / name)
    assert (plan.format, plan.rows, len(plan.shards)) == ("webdataset", 20, 1)
    assert dict(zip(plan.passthrough.names, plan.passthrough.types, strict=True)) == {
        "cls": pa.int64(),
        "caption.txt": pa.string(),
    }
    keys = list(dict.fromkeys(member.partition(".")[0] for member, _ in order))
    assert rows_of(plan) == [
        (
            f"{name}#{key}",
            members[f"{key}.jpg"],
            {"cls": int(key[-3:]) * 7, "caption.txt": f"ü{int(key[-3:])}"},
        )
        for key in keys
    ]


def test_long_names_and_leading_dots(tmp_path):
    long = "x" * 90 + "/" + "ü" * 80
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [(f"./{long}.jpg", b"1"), ("./short.JPG", b"2"), ("short.cls", b"3")]
        (tmp_path / "t.tar").write_bytes(make_tar(members, format=format))
        assert rows_of(plan_of(tmp_path / "t.tar")) == [
            (f"t.tar#{long}", b"1", {"cls": None}),
            ("t.tar#short", b"2", {"cls": 3}),
        ]


def test_a_name_that_is_not_utf8_is_spelled_out(tmp_path):
    payload = make_tar([("ab.jpg", b"1")]).replace(b"ab.jpg", b"a\xff.jpg", 1)
    header = bytearray(payload[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "t.tar").write_bytes(bytes(header) + payload[512:])
    assert good(rows_of(plan_of(tmp_path / "t.tar"))) == {"t.tar#a\\xff": b"1"}


def test_folders_hidden_names_and_meta_members_are_no_samples(tmp_path):
    rows = read(
        tmp_path,
        [
            ("d", special(tarfile.DIRTYPE)),
            ("d/._1.jpg", b"resource fork"),
            ("__meta__", b"{}"),
            ("d/1.jpg", b"1"),
        ],
    )
    assert rows == [("t.tar#d/1", b"1", {})]


def test_tars_of_a_brace_range_are_cut_each_by_itself_in_the_order_of_names(tmp_path):
    for i in range(12):
        members = [(f"{i}-{k}.png", bytes([k + 1])) for k in range(i + 1)]
        (tmp_path / f"s-{i:03}.tar").write_bytes(make_tar(members))
    plan = plan_of(tmp_path / "s-{002..010}.tar")
    assert [shard.rows for shard in plan.shards] == [
        rows for i in range(2, 11) for rows in [5] * ((i + 1) // 5) + [(i + 1) % 5] if rows
    ]
    assert plan.rows == sum(range(3, 12))
    rows = rows_of(plan)
    assert [id_ for id_, _, _ in rows] == [
        f"s-{i:03}.tar#{i}-{k}" for i in range(2, 11) for k in range(i + 1)
    ]


@pytest.mark.parametrize("limit", [1, 3, 4, 6, 7, 100])
def test_a_limit_takes_the_first_samples(tmp_path, limit):
    for name, count in (("a", 4), ("b", 3)):
        (tmp_path / f"{name}.tar.gz").write_bytes(gzip.compress(make_tar(shuffled(samples(count)))))
    everything = rows_of(plan_of(tmp_path))
    plan = plan_of(tmp_path, limit=limit)
    assert plan.rows == min(limit, 7)
    assert rows_of(plan) == everything[:limit]


def test_a_limit_over_tars_that_are_empty_cut_or_have_changed(tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar([]))
    (tmp_path / "b.tar").write_bytes(make_tar(samples(3).items())[:-10240])
    (tmp_path / "c.tar").write_bytes(make_tar(samples(8).items()))
    rows = rows_of(plan_of(tmp_path, limit=8))
    assert len(rows) == 8
    assert errors(rows) == {"a.tar": "EmptyTar", "b.tar": "TruncatedTar"}
    plan = plan_of(tmp_path / "c.tar", limit=8)
    (tmp_path / "c.tar").write_bytes(make_tar(samples(6).items()))
    assert errors(rows_of(plan)) == {"c.tar#6": "ChangedFile", "c.tar#7": "ChangedFile"}


@pytest.fixture(scope="module")
def s3(s3_bucket):
    """Storage options of a bucket named tars."""
    return s3_bucket("tars")[0]


def test_tars_on_s3_by_a_brace_range(s3):
    members = samples(9)
    for name in ("s-0.tar", "s-1.tar.gz"):
        payload = make_tar(shuffled(members))
        fs, path = open_location(f"s3://tars/in/{name}", s3)
        write_atomic(fs, path, gzip.compress(payload) if name.endswith("gz") else payload)
    plan = plan_of("s3://tars/in/s-{0.tar,1.tar.gz}", storage_options=s3)
    rows = rows_of(plan, s3)
    assert [file.path for shard in plan.shards for file in shard.slices] == [
        "s3://tars/in/s-0.tar",
        "s3://tars/in/s-1.tar.gz",
    ]
    assert errors(rows) == {}
    assert good(rows) == {
        f"{name}#{member.removesuffix('.jpg')}": payload
        for name in ("s-0.tar", "s-1.tar.gz")
        for member, payload in members.items()
        if member.endswith(".jpg")
    }
    with pytest.raises(UsageError, match=r"none for 2 of them, the first is tars/in/s-2\.tar; "):
        plan_of("s3://tars/in/s-{0,2,3}.tar", storage_options=s3)


def test_a_large_tar_is_not_held_in_memory(tmp_path):
    payload = random.Random(0).randbytes(1 << 20)
    names = [f"{i}.jpg" for i in range(60)]
    members = [*((name, payload) for name in names), *((f"{i}.cls", b"1") for i in range(60))]
    (tmp_path / "t.tar").write_bytes(make_tar(members))
    del members
    plan = plan_of(tmp_path / "t.tar")
    assert plan.passthrough.names == ["cls"]
    tracemalloc.start()
    try:
        for some in read_shard(plan.shards[0], format=plan.format, passthrough=plan.passthrough):
            assert some.images == [payload] * len(some.ids)
            assert some.columns["cls"].to_pylist() == [1] * len(some.ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


# --- tars that are cut into shards ----------------------------------------------------------------


def adjacent(count):
    """Samples one after the other, beside members that belong to none."""
    members = [("folder", special(tarfile.DIRTYPE)), ("._1.jpg", b"resource fork")]
    for member in samples(count).items():
        members += [member, ("__meta__", b"x")]
    return members


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("count", [1, 4, 5, 6, 10, 23])
def test_a_large_tar_is_cut_between_its_samples(tmp_path, count, format):
    """Past bug: a tar was one shard whatever its size."""
    long = [(f"{'ü' * 70}/{i}.jpg", b"x") for i in range(2)]  # headers before the member's own
    (tmp_path / "t.tar").write_bytes(make_tar(adjacent(count) + long, format=format))
    plan = plan_of(tmp_path / "t.tar")
    full, rest = divmod(count + 2, 5)
    assert [shard.rows for shard in plan.shards] == [5] * full + [rest] * (rest > 0)
    rows = rows_of(plan)
    assert len(rows) == count + 2
    assert errors(rows) == {}
    assert rows == rows_of(uncut(plan))
    for shard in plan.shards:
        (slice_,) = shard.slices
        alone = rows_of(replace(plan, shards=(shard,)))
        assert alone == rows[slice_.start : slice_.stop]


@pytest.mark.parametrize("limit", [1, 4, 5, 6, 11, 12, 13, 40])
def test_a_limit_ends_within_a_slice(tmp_path, limit):
    (tmp_path / "a.tar").write_bytes(make_tar(adjacent(12)))
    (tmp_path / "b.tar").write_bytes(make_tar(adjacent(3)))
    everything = rows_of(uncut(plan_of(tmp_path)))
    plan = plan_of(tmp_path, limit=limit)
    assert plan.rows == min(limit, 15)
    assert rows_of(plan) == everything[:limit]


def test_a_tar_that_was_replaced_gives_as_many_rows_as_were_planned(tmp_path):
    (tmp_path / "t.tar").write_bytes(make_tar(adjacent(12)))
    plan = plan_of(tmp_path / "t.tar")
    for payload in (make_tar(samples(12, seed=1).items()), make_tar(adjacent(3)), b"", b"x" * 9000):
        (tmp_path / "t.tar").write_bytes(payload)
        rows = rows_of(plan)
        assert len(rows) == 12
        assert len({id_ for id_, _, _ in rows}) == 12


class Counting:
    """An open file that counts what is read of it."""

    requests = read_bytes = 0

    def __init__(self, raw):
        self._raw = raw

    def seek(self, offset):
        return self._raw.seek(offset)

    def read(self, size):
        found = self._raw.read(size)
        Counting.requests += 1
        Counting.read_bytes += len(found)
        return found


@pytest.fixture
def counting(monkeypatch):
    """Counts requests and bytes of tars in memory://."""

    def reader(fs, raw, *, stop):
        return BlockReader(fs, Counting(raw), stop=stop)

    def reset():
        Counting.requests = Counting.read_bytes = 0

    monkeypatch.setattr(tar_index, "BlockReader", reader)
    reset()
    yield reset
    fsspec.filesystem("memory").rm("/tars", recursive=True)


@pytest.mark.parametrize(
    ("size", "most_bytes", "most_requests"), [(300_000, 0.07, 85), (2_000, 1.01, 5)]
)
def test_planning_reads_headers_of_a_remote_tar_and_a_shard_its_own_bytes(
    counting, size, most_bytes, most_requests
):
    """Past bug: a worker copied the tar whole. Small members are read rather than skipped."""
    members = {}
    for i in range(80):
        members[f"{i}.jpg"] = random.Random(i).randbytes(size)
        members[f"{i}.cls"] = b"1"
    payload = make_tar(members.items())
    fsspec.filesystem("memory").pipe_file("/tars/t.tar", payload)
    file = InputFile("memory://tars/t.tar", "t.tar")
    ((counted, rows),), _ = count_samples([file], {}, limit=None)
    assert (rows, len(counted.sample_starts)) == (80, 80)
    assert Counting.read_bytes <= most_bytes * len(payload)
    assert Counting.requests <= most_requests
    plan = plan_of("memory://tars/t.tar")
    for shard in plan.shards:
        counting()
        rows = rows_of(replace(plan, shards=(shard,)))
        assert list(good(rows).values()) == [
            members[f"{i}.jpg"] for i in shard.slices[0].row_numbers
        ]
        slice_ = shard.slices[0]
        planned = (slice_.end_byte or len(payload)) - slice_.first_byte
        assert Counting.read_bytes <= planned + (16 << 10) + 512
        assert Counting.requests <= (5 if slice_.end_byte is None else 3)  # the end is looked at


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
@pytest.mark.parametrize("padding", [0, 512, 700 * 512])
def test_a_tar_goes_on_behind_the_end_of_another(tmp_path, name, padding):
    """As `cat a.tar b.tar` makes it, and GNU tar reads it with --ignore-zeros. Past bug: the second
    half was lost, exit code 0."""
    members = samples(9)
    halves = [dict(list(members.items())[:12]), dict(list(members.items())[12:])]
    packed = [make_tar(half.items()) + bytes(padding) for half in halves]
    if name.endswith("gz"):
        packed = [gzip.compress(half) for half in packed]
    (tmp_path / name).write_bytes(b"".join(packed))
    plan = plan_of(tmp_path / name)
    assert plan.rows == 9
    expected = [payload for name, payload in members.items() if name.endswith(".jpg")]
    for each in (plan, uncut(plan)):
        assert list(good(rows_of(each)).values()) == expected


@pytest.mark.parametrize("tail", [b"x", b"x" * 512, bytes(512) + b"x" * 2000])
def test_other_bytes_behind_the_end_of_a_tar_are_an_error_of_it(tmp_path, tail):
    members = samples(6) | {"last.jpg": b"x"}  # without the columns of the others
    rows = rows_of_damaged(tmp_path / "in", make_tar(members.items()) + tail)
    assert len(good(rows)) == 7
    (id_, error, _) = rows[-1]
    assert (id_, error.error) == ("t.tar", "BytesBehind")


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    members = {"a.jpg": b"x" * 5000, "b.jpg": b"x" * 10, "b.txt": b"y"}
    (tmp_path / "t.tar").write_bytes(make_tar(members.items()))
    plan = plan_of(tmp_path / "t.tar")
    for each in (plan, uncut(plan)):
        (some,) = read_shard(
            each.shards[0], format="webdataset", passthrough=plan.passthrough, max_image_bytes=4999
        )
        assert some.images[0] == RowError(
            "read", "ImageTooLarge", "expected at most 4,999 bytes (--max-image-bytes), found 5,000"
        )
        assert some.images[1] == b"x" * 10


def test_a_slice_holds_a_sample_at_a_time(tmp_path):
    members = [(f"{i}.jpg", random.Random(i).randbytes(1 << 20)) for i in range(60)]
    (tmp_path / "t.tar").write_bytes(make_tar(members))
    plan = find_source(str(tmp_path / "t.tar")).cut(50)
    assert [shard.rows for shard in plan.shards] == [50, 10]
    del members
    tracemalloc.start()
    try:
        assert sum(len(some.ids) for some in read_shard(plan.shards[0], format="webdataset")) == 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


# --- columns --------------------------------------------------------------------------------------


FIELDS = [("1.jpg", b"a"), ("1.cls", b" 4\n"), ("1.json", b'{"k": 1}'), ("1.npy", b"\0")]


def test_columns_are_fields_of_numbers_and_text(tmp_path):
    assert read(tmp_path, [*FIELDS, ("2.jpg", b"b")]) == [
        ("t.tar#1", b"a", {"cls": 4, "json": '{"k": 1}'}),
        ("t.tar#2", b"b", {"cls": None, "json": None}),
    ]
    assert read(tmp_path, FIELDS, keep_columns=["json"])[0][2] == {"json": '{"k": 1}'}
    assert read(tmp_path, FIELDS, keep_columns=[])[0][2] == {}
    assert read(tmp_path, FIELDS, keep_columns=[], label_column="cls")[0][2] == {"cls": 4}


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_fields_that_come_late_are_columns_too(tmp_path, packed):
    """Past bug: where the first 32 samples had no text, nobody had it, and nobody said so."""
    pack = gzip.compress if packed else bytes
    members = {}
    for i in range(50):
        members[f"{i:02}.jpg"] = b"x"
        if i >= 40:
            members[f"{i:02}.txt"] = f"late {i}".encode()
    (tmp_path / f"a.tar{packed}").write_bytes(pack(make_tar(members.items())))
    last = make_tar([("z.jpg", b"x"), ("z.cls", b"7"), ("z.seg", b"")])
    (tmp_path / f"b.tar{packed}").write_bytes(pack(last))
    for each in (plan_of(tmp_path), uncut(plan_of(tmp_path))):
        assert each.passthrough.types == [pa.string(), pa.int64()]
        rows = {id_: columns for id_, _, columns in rows_of(each)}
        assert rows[f"a.tar{packed}#39"] == {"txt": None, "cls": None}
        assert rows[f"a.tar{packed}#41"] == {"txt": "late 41", "cls": None}
        assert rows[f"b.tar{packed}#z"] == {"txt": None, "cls": 7}


def test_a_packed_tar_is_planned_in_one_pass(tmp_path):
    """Steps back over a header would decompress it from its beginning again."""

    class Counted(io.BytesIO):
        n_read = 0

        def read(self, size=-1):
            some = super().read(size)
            self.n_read += len(some)
            return some

    noise = random.Random(0)
    members = [(f"{i}.jpg", noise.randbytes(20_000 + i)) for i in range(200)]
    parts = [make_tar([member]) + bytes(17 * 512 * (i % 7)) for i, member in enumerate(members)]
    file = Counted(gzip.compress(b"".join(parts)))
    found = find_samples(tar_index.DecompressedTar(file))
    assert (found.rows, found.starts) == (200, None)
    assert file.n_read <= file.getbuffer().nbytes


def test_names_that_make_a_field_of_each_sample_are_refused(tmp_path):
    members = [(f"a.{i}.{end}", b"1") for i in range(1001) for end in ("jpg", "cls")]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    with pytest.raises(UsageError, match=r"at most 1000 fields, found more in .*a\.tar; next:"):
        plan_of(tmp_path / "a.tar")
    members = [("a.jpg", b"1"), *((f"a.{i}.cls", b"1") for i in range(1001))]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    with pytest.raises(UsageError, match="or --keep-columns"):
        plan_of(tmp_path / "a.tar")
    found = find_source(str(tmp_path / "a.tar"), keep_columns=["1.cls"])
    assert found.passthrough.names == ["1.cls"]


def test_a_limit_for_images_does_not_hold_for_text(tmp_path):
    members = [("a.jpg", b"x" * 50), ("a.txt", b"y" * 500), ("b.jpg", b"x" * 500), ("b.txt", b"z")]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    for plan in (plan_of(tmp_path), uncut(plan_of(tmp_path))):
        ((_, image, columns), (_, error, _)) = rows_of(plan, max_image_bytes=100)
        assert (image, columns) == (b"x" * 50, {"txt": "y" * 500})
        assert error.error == "ImageTooLarge"


def test_ids_may_come_from_a_field(tmp_path):
    rows = read(
        tmp_path, [*FIELDS, ("1.id", b"77"), ("2.jpg", b"b"), ("2.cls", b"1")], id_column="id"
    )
    assert rows[0] == ("77", b"a", {"cls": 4, "json": '{"k": 1}'})
    assert errors(rows) == {"t.tar#2": "MissingId"}


def test_the_image_of_several_is_chosen_by_its_extension(tmp_path):
    members = [("1.jpg", b"a"), ("1.seg.png", b"b"), ("2.seg.png", b"c"), ("3.JPG", b"d")]
    rows = read(tmp_path, members, image_column="jpg")
    assert good(rows) == {"t.tar#1": b"a", "t.tar#3": b"d"}
    assert errors(rows) == {"t.tar#2": "MissingImage"}
    assert good(read(tmp_path, members, image_column="seg.png")) == {
        "t.tar#1": b"b",
        "t.tar#2": b"c",
    }
    assert good(read(tmp_path, [("1.jpg", b"a"), ("2.png", b"b")])) == {
        "t.tar#1": b"a",
        "t.tar#2": b"b",
    }


def test_refused_choices(tmp_path):
    def refusal(members, **options):
        with pytest.raises(UsageError) as caught:
            read(tmp_path, members, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "found jpg, seg.png; choose with --image-column" in refusal(
        [("1.jpg", b"a"), ("1.seg.png", b"b")]
    )
    assert "found members jpg, cls, json, npy" in refusal(FIELDS, image_column="png")
    assert "found members cls, without extension" in refusal([("1.cls", b"1"), ("README", b"b")])
    assert "expected column z" in refusal(FIELDS, keep_columns=["z"])
    assert "found none; next" in refusal([("1.jpg", b"a")], label_column="z")
    assert "expected samples" in refusal([])
    (tmp_path / "t.tar").write_bytes(b"no tar at all" * 1000)
    with pytest.raises(UsageError, match="expected samples"):
        plan_of(tmp_path / "t.tar")


# --- what is wrong with a sample ------------------------------------------------------------------


def test_a_sample_that_fails_is_an_error_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MOST_BYTES", 1000)
    monkeypatch.setattr(webdataset_schema, "_FIRST_SAMPLES", 1)
    rows = read(
        tmp_path,
        [
            ("good.jpg", b"1"),
            ("good.cls", b"1"),
            ("good.txt", b"one"),
            ("number.jpg", b"2"),
            ("number.cls", b"two"),
            ("wide.jpg", b"2"),
            ("wide.cls", b"9" * 19),
            ("letters.jpg", b"2"),
            ("letters.txt", b"\xff"),
            ("nothing.jpg", b""),
            ("alone.cls", b"3"),
            ("without", b"x"),
            ("both.jpg", b"4"),
            ("both.png", b"4"),
            ("again.jpg", b"5"),
            ("again.jpg", b"6"),
            ("large.jpg", b"x" * 1001),
            ("link.jpg", special(tarfile.SYMTYPE, "/etc/passwd")),
            ("hard.jpg", special(tarfile.LNKTYPE, "good.jpg")),
            ("pipe.jpg", special(tarfile.FIFOTYPE)),
            ("device.jpg", special(tarfile.CHRTYPE)),
            ("last.jpg", b"7"),
        ],
    )
    assert good(rows) == {"t.tar#good": b"1", "t.tar#last": b"7"}
    assert errors(rows) == {
        "t.tar#number": "InvalidField",
        "t.tar#wide": "InvalidField",
        "t.tar#letters": "InvalidField",
        "t.tar#nothing": "EmptyImage",
        "t.tar#alone": "MissingImage",
        "t.tar#without": "MissingImage",
        "t.tar#both": "SeveralImages",
        "t.tar#again": "DuplicateMember",
        "t.tar#large": "MemberTooLarge",
        "t.tar#link": "UnreadableMember",
        "t.tar#hard": "UnreadableMember",
        "t.tar#pipe": "UnreadableMember",
        "t.tar#device": "UnreadableMember",
    }


def test_a_name_that_climbs_out_is_a_label_and_no_path(tmp_path):
    """Nothing is written anywhere, within the tar's folder or above."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    names = ["../../climbed", "/../climbed", f"{tmp_path}/absolute", "a/../../c", ".."]
    payload = make_tar([(f"{name}.jpg", b"x") for name in names])
    before = sorted(tmp_path.rglob("*"))
    for name in ("t.tar", "t.tar.gz"):
        (inside / name).write_bytes(payload if name == "t.tar" else gzip.compress(payload))
        rows = rows_of(plan_of(inside / name))
        assert good(rows) == {f"{name}#{key}": b"x" for key in names[:-1]}
        assert errors(rows) == {}, "'...jpg' is a hidden name"
        (inside / name).unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_packed_tar_that_would_fill_the_disk_ends_at_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MOST_DECOMPRESSED", 3 << 20)
    members = [("1.jpg", b"1"), ("2.jpg", bytes(50 << 20)), ("3.jpg", b"3")]
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(make_tar(members)))
    for options in ({}, {"keep_columns": []}):  # all of it is read by planning, or only then
        rows = rows_of(plan_of(tmp_path / "t.tar.gz", **options))
        assert good(rows) == {"t.tar.gz#1": b"1"}
        assert errors(rows) == {"t.tar.gz#2": "TruncatedTar", "t.tar.gz": "TarTooLarge"}


@pytest.mark.parametrize("behind", [50 << 20, 1 << 20])
def test_planning_ends_at_the_limit_of_a_packed_tar_too(tmp_path, monkeypatch, behind):
    """Past bug: zeros behind its end, a thousandth as large on the disk, had no limit."""
    monkeypatch.setattr(tar_index, "MOST_DECOMPRESSED", 3 << 20)
    payload = make_tar([("1.jpg", b"1")]) + bytes(behind)
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(payload))
    with open_tar(str(tmp_path / "t.tar.gz"), {}) as opened:
        assert find_samples(opened).rows == (1 if behind < 3 << 20 else 2)  # one says so
        assert opened.tell() <= 3 << 20


# --- tars that are cut or damaged -----------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_row_before_a_cut_is_there_and_an_error_names_the_tar(tmp_path, mixed, format):
    """At every kind of place: within headers and payloads, at their edges, in the end marker."""
    members = samples(12)
    order = shuffled(members) if mixed else list(members.items())
    payload = make_tar(order, format=format)
    with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
        ends = {m.name: m.offset_data + m.size for m in tar.getmembers()}
    whole = {
        key: max(ends[f"{key}.{field}"] for field in ("jpg", "cls", "caption.txt"))
        for key in (name.removesuffix(".jpg") for name in ends if name.endswith(".jpg"))
    }
    marker = -(-max(ends.values()) // 512) * 512  # where the end marker begins
    cuts = random.Random(1).sample(range(marker + 512), 60)
    cuts += [0, 1, 511, 512, 513, marker, marker + 1, marker + 511]
    cuts += [-(-end // 512) * 512 for end in ends.values()]
    for cut in cuts:
        rows = rows_of_damaged(tmp_path / "in", payload[:cut])
        found = good(rows)
        for key, end in whole.items():
            assert end > cut or found[f"t.tar#{key}"] == members[f"{key}.jpg"], cut
        last_id, last, _ = rows[-1]
        assert (last_id, isinstance(last, RowError)) == ("t.tar", True), cut
        assert last.error in ("TruncatedTar", "DamagedTar")
        others = errors(rows[:-1])
        if not mixed:
            assert set(found) == {f"t.tar#{key}" for key, end in whole.items() if end <= cut}, cut
            assert len(others) <= 1, "the sample that was cut"
        assert set(others) | set(found) == {id_ for id_, _, _ in rows[:-1]}
    rows = rows_of_damaged(tmp_path / "in", payload[: marker + 512])
    assert errors(rows) == {}, "one block of the end marker is enough"


def test_a_packed_tar_that_is_cut_gives_the_rows_before(tmp_path):
    members = samples(12)
    payload = gzip.compress(make_tar(members.items()))
    (tmp_path / "t.tar.gz").write_bytes(payload)
    plan = plan_of(tmp_path / "t.tar.gz", keep_columns=["cls"])  # which does not count
    assert plan.rows is None
    everything = [id_ for id_, _, _ in rows_of(plan)]
    counts = set()
    for cut in [0, 1, 9, 10, 30, *range(100, len(payload), 997), len(payload) - 1]:
        (tmp_path / "t.tar.gz").write_bytes(payload[:cut])
        rows = rows_of(plan)
        found = list(good(rows))
        assert found == everything[: len(found)]
        assert rows[-1][0] == "t.tar.gz"
        assert rows[-1][1].error in ("TruncatedTar", "DamagedTar")
        counts.add(len(found))
        if found:  # else planning finds no samples
            planned = plan_of(tmp_path / "t.tar.gz")
            assert planned.rows == len(rows)
            assert [id_ for id_, _, _ in rows_of(planned)] == [id_ for id_, _, _ in rows]
    assert {0, 5, 12} <= counts


@pytest.mark.parametrize("keep_columns", [None, []])
@pytest.mark.parametrize("limit", [1, 11, 12, 13, 20])
def test_a_limit_holds_where_a_packed_tar_is_cut(tmp_path, limit, keep_columns):
    """Past bug: planning saw fewer samples than the work, which then did not stop at the limit."""
    payload = gzip.compress(make_tar(samples(24).items()))
    (tmp_path / "a.tar.gz").write_bytes(payload[: len(payload) // 2])
    (tmp_path / "b.tar.gz").write_bytes(payload)
    plan = plan_of(tmp_path, limit=limit, keep_columns=keep_columns)
    rows = [id_ for id_, _, _ in rows_of(plan)]
    assert plan.rows == len(rows) == limit
    whole = [id_ for id_, _, _ in rows_of(plan_of(tmp_path))]
    assert rows == whole[:limit]


def test_of_a_large_packed_tar_a_limit_reads_the_beginning(tmp_path):
    noise = random.Random(0)
    members = [(f"{i}.jpg", noise.randbytes(100_000)) for i in range(100)]
    file = tmp_path / "a.tar.gz"
    file.write_bytes(gzip.compress(make_tar(members), 1))
    with open_tar(str(file), {}) as opened:
        assert find_samples(opened, enough=5).rows == 6
        assert opened.tell() < 700_000


def test_wrong_bits_in_a_packed_tar_are_an_error_of_the_tar(tmp_path):
    payload = gzip.compress(make_tar(samples(12).items()))
    (tmp_path / "t.tar.gz").write_bytes(payload)
    plan = plan_of(tmp_path / "t.tar.gz", keep_columns=["cls"])
    for at in range(20, len(payload), 1499):
        broken = bytearray(payload)
        broken[at] ^= 255
        (tmp_path / "t.tar.gz").write_bytes(broken)
        assert rows_of(plan)[-1][0] == "t.tar.gz"
        assert "t.tar.gz" in errors(rows_of(plan))


def with_size(payload, at, size):
    """The tar with another size in the header at `at`, its checksum right."""
    header = bytearray(payload[at : at + 512])
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return payload[:at] + bytes(header) + payload[at + 512 :]


@pytest.mark.parametrize("size", [0, 10, 5000, 1 << 30, 1 << 50, -1, -512, -5000])
def test_a_size_that_lies_damages_the_tar_and_never_hangs(tmp_path, size):
    members = [(f"{i}.jpg", bytes([i + 1]) * 2000) for i in range(6)]
    payload = make_tar(members)
    with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
        at = tar.getmembers()[3].offset
    (tmp_path / "a.tar").write_bytes(make_tar(members[:1]))
    (tmp_path / "t.tar").write_bytes(with_size(payload, at, size))
    plan = plan_of(tmp_path)
    rows = rows_of(plan)
    assert rows == rows_of(uncut(plan))
    found = good(rows)
    assert all(found[f"t.tar#{i}"] == members[i][1] for i in range(3))
    assert "t.tar" in errors(rows)


def test_wrong_bytes_anywhere_never_lose_a_sample_in_silence(tmp_path):
    """A byte in a header makes its checksum wrong; one in an image is for its decoder to find."""
    members = samples(10)
    payload = make_tar(members.items())
    rng = random.Random(2)
    damaged = 0
    for _ in range(150):
        broken = bytearray(payload)
        at = rng.randrange(len(payload) - 10240)
        broken[at : at + 3] = rng.randbytes(3)
        rows = rows_of_damaged(tmp_path / "in", broken)
        assert len(rows) >= 10 or "t.tar" in errors(rows), at
        damaged += "t.tar" in errors(rows)
    assert damaged > 10


def test_names_that_nest_without_end_are_damage(tmp_path):
    """A long name for a long name for a long name ..., which tarfile follows by recursion."""
    link = tarfile.TarInfo("././@LongLink")
    link.type = tarfile.GNUTYPE_LONGNAME
    link.size = 2
    head = link.tobuf(tarfile.GNU_FORMAT) + b"x\0".ljust(512, b"\0")
    (tmp_path / "t.tar").write_bytes(make_tar([("1.jpg", b"1")])[:1024] + head * 5000)
    assert errors(rows_of(plan_of(tmp_path / "t.tar"))) == {"t.tar": "DamagedTar"}


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (make_tar([]), "EmptyTar"),
        (make_tar([("d", special(tarfile.DIRTYPE))]), "EmptyTar"),
        (b"", "DamagedTar"),
        (b"text" * 1000, "DamagedTar"),
        (b"\x1f\x8b" + b"text" * 9, "BadGzipFile"),
        (gzip.compress(make_tar([])), "EmptyTar"),
        (gzip.compress(b"text" * 1000), "DamagedTar"),
    ],
)
def test_a_tar_without_samples_is_one_error_that_names_it(tmp_path, payload, error):
    (tmp_path / "a.tar").write_bytes(make_tar([("1.jpg", b"1")]))
    (tmp_path / "b.tar").write_bytes(payload)
    rows = rows_of(plan_of(tmp_path))
    assert good(rows) == {"a.tar#1": b"1"}
    assert errors(rows) == {"b.tar": error}


# --- tars that a store does not give --------------------------------------------------------------


class Breaking(io.RawIOBase):
    """A file of which a disk or a store gives no byte from `at` on."""

    def __init__(self, payload, at):
        self._file, self._at = io.BytesIO(payload), at

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        return self._file.seek(offset, whence)

    def readinto(self, buffer):
        if self._file.tell() + len(buffer) > self._at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.readinto(buffer)


@pytest.mark.parametrize("at", [0, 15_000])
@pytest.mark.parametrize("kind", ["of this machine", "of a store", "compressed"])
def test_a_tar_that_cannot_be_read_on_ends_the_shard(tmp_path, monkeypatch, kind, at):
    """Past bug: it was one failed row, the shard was done, and the run ended well without it."""
    payload = make_tar(samples(40).items())
    payload = gzip.compress(payload, 0) if kind == "compressed" else payload
    (tmp_path / "t.tar").write_bytes(payload)
    plan = plan_of(tmp_path / "t.tar")

    def broken(path, mode):
        raw = Breaking(payload, at)
        return io.BufferedReader(raw, 512) if kind == "of this machine" else raw

    monkeypatch.setattr(webdataset, "_COPY_BYTES", 4096)
    monkeypatch.setattr(tar_index, "open", broken, raising=False)
    with pytest.raises(UnreadableTar) as caught:
        rows_of(plan)
    name = tmp_path / "t.tar"
    assert str(caught.value) == (
        f"cannot read the tar {name}: OSError: [Errno 5] Input/output error"
    )


def test_a_tar_that_is_gone_ends_its_shard_with_the_tars_before_it(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(make_tar(samples(3).items()))
    planned = plan_of(tmp_path)
    assert len(planned.shards) == 2
    together = tuple(file for shard in planned.shards for file in shard.slices)
    (tmp_path / "b.tar").unlink()
    with pytest.raises(UnreadableTar, match=r"read the tar .*/b\.tar: FileNotFoundError: .*\Z"):
        list(read_shard(Shard(0, together), format="webdataset"))
    limited = FileSlice(together[1].path, "b.tar", 0, 2)
    with pytest.raises(UnreadableTar):
        list(read_shard(Shard(0, (limited,)), format="webdataset"))


def test_the_message_of_a_forbidden_tar_holds_no_secret(monkeypatch):
    location = "https://user:hunter2@host/b.tar?Signature=hunter2"

    def forbidden(path, mode, **_):
        raise PermissionError(f"403, message='Forbidden', url='{path}'")

    there = SimpleNamespace(open=forbidden), location
    monkeypatch.setattr(tar_index, "open_location", lambda *_: there)
    with pytest.raises(UnreadableTar) as caught:
        list(read_shard(Shard(0, (FileSlice(location, "b.tar", 0, None),)), format="webdataset"))
    assert str(caught.value) == (
        "cannot read the tar https://***@host/b.tar?***: PermissionError: 403, "
        "message='Forbidden', url='https://***@host/b.tar?***'"
    )


@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENOSPC])
def test_a_transient_fault_and_a_full_disk_are_known_by_their_cause(monkeypatch, error):
    def fails(path, mode, **_):
        raise OSError(error, os.strerror(error))

    there = SimpleNamespace(open=fails), "b.tar"
    monkeypatch.setattr(tar_index, "open_location", lambda *_: there)
    with pytest.raises(UnreadableTar) as caught:
        list(read_shard(Shard(0, (FileSlice("b.tar", "b.tar", 0, None),)), format="webdataset"))
    assert is_transient(caught.value) == (error == errno.ESTALE)
    assert is_of_the_node(caught.value) == (error == errno.ENOSPC)
