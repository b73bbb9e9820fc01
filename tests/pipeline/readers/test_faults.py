"""Whose fault it is that a file cannot be read: the row's own, or that of the place."""

import errno
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.inputs.source import find_source
from pipeline.readers import images as image_files
from pipeline.readers import parquet as parquet_rows
from pipeline.readers import read_shard
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Plan, Shard, Tries
from pipeline.storage.filesystem import OutOfReach
from pipeline.storage.retry import is_transient

BUSY = OSError(errno.ETIMEDOUT, "503, the server is busy")
REFUSED = PermissionError(errno.EACCES, "403, forbidden")
GONE = FileNotFoundError(errno.ENOENT, "404, not found")


def read(plan: Plan, tries: Tries = Tries.MORE) -> dict[str, object]:
    """Returns what each row of the only shard holds, by id."""
    shard = replace(plan.shards[0], tries=tries)
    found: dict[str, object] = {}
    for some in read_shard(shard, format=plan.format, image_column=plan.image_column):
        found |= dict(zip(some.ids, some.images, strict=True))
    return found


def error_of(row: object) -> str:
    assert isinstance(row, RowError)
    return row.error


@pytest.fixture
def folder(tmp_path):
    """Returns a plan of three images, a to c, and their folder."""
    place = tmp_path / "photos"
    place.mkdir()
    for name in "abc":
        (place / f"{name}.png").write_bytes(b"x")
    return find_source(str(place)).cut(10), place


@pytest.fixture
def failing(folder, monkeypatch):
    """Makes images fail, by the letter of their names; returns the plan."""

    def fail(**faults: Exception) -> Plan:
        def read_bytes(fs, path):
            if error := faults.get(path[-5]):
                raise error
            return b"x"

        monkeypatch.setattr(image_files, "read_bytes", read_bytes)
        return folder[0]

    return fail


@pytest.mark.parametrize("error", [REFUSED, GONE])
@pytest.mark.parametrize("tries", Tries)
def test_what_one_image_is_refused_for_is_its_own_fault(failing, error, tries):
    found = read(failing(b=error), tries)
    assert error_of(found["b.png"]) == type(error).__name__
    assert found["a.png"] == found["c.png"] == b"x"


@pytest.mark.parametrize("tries", Tries)
def test_access_that_is_refused_to_all_images_is_the_fault_of_the_place(failing, tries):
    """Past bug: a node without its rights made error rows of a whole shard, which counted as
    done."""
    with pytest.raises(PermissionError):
        read(failing(a=REFUSED, b=GONE, c=REFUSED), tries)


def test_images_that_are_all_gone_are_errors_where_others_are_done(failing):
    plan = failing(a=GONE, b=GONE, c=GONE)
    for tries in (Tries.MORE, Tries.LAST):
        with pytest.raises(FileNotFoundError):
            read(plan, tries)
    assert {error_of(row) for row in read(plan, Tries.LAST_AMONG_DONE).values()} == {
        "FileNotFoundError"
    }


def test_a_store_that_is_always_busy_for_an_image_makes_an_error_at_the_last_try(failing):
    """Past bug: its shard could never be done."""
    plan = failing(b=BUSY)
    with pytest.raises(OSError, match="503"):
        read(plan)
    for tries in (Tries.LAST, Tries.LAST_AMONG_DONE):
        found = read(plan, tries)
        assert isinstance(found["b.png"], RowError)
        assert "503, the server is busy" in found["b.png"].message
        assert found["c.png"] == b"x"


def test_a_store_that_is_busy_for_all_images_is_the_shards_fault_unless_others_are_done(failing):
    plan = failing(a=BUSY, b=BUSY, c=BUSY)
    with pytest.raises(OSError, match="503"):
        read(plan, Tries.LAST)
    assert len(read(plan, Tries.LAST_AMONG_DONE)) == 3


@pytest.mark.parametrize("tries", Tries)
@pytest.mark.parametrize("leave", ["nothing", "an empty folder"])
def test_an_input_that_is_not_mounted_fails_no_row(folder, tries, leave):
    """Past bug: each of its images became an error row."""
    plan, place = folder
    away = place.with_name("away")
    place.rename(away)
    if leave == "an empty folder":
        place.mkdir()
    with pytest.raises(OutOfReach, match=str(place)) as raised:
        read(plan, tries)
    assert is_transient(raised.value)
    shutil.rmtree(place, ignore_errors=True)
    away.rename(place)
    assert set(read(plan).values()) == {b"x"}


def test_an_image_that_was_deleted_is_an_error(folder):
    plan, place = folder
    (place / "a.png").unlink()
    assert error_of(read(plan)["a.png"]) == "FileNotFoundError"


@pytest.mark.parametrize("path", ["nosuch://place/a.png", "sftp2+x://place/a.png"])
def test_a_node_that_cannot_open_the_location_fails_no_row(path):
    shard = Shard(0, (FileSlice(path, "a.png", 0, 1),))
    with pytest.raises(UsageError):
        list(read_shard(shard, format="images"))


@pytest.fixture
def tables(tmp_path):
    place = tmp_path / "tables"
    place.mkdir()
    for name in "ab":
        pq.write_table(pa.table({"image": pa.array([b"x"] * 3)}), place / f"{name}.parquet")
    return find_source(str(place)).cut(10), place


@pytest.mark.parametrize("tries", Tries)
def test_a_parquet_file_that_is_refused_fails_its_shard(tables, tries, monkeypatch):
    """Past bug: its rows were errors, the shard was done."""

    def refuse(uri, options, *, stop):
        raise REFUSED

    monkeypatch.setattr(parquet_rows, "open_parquet", refuse)
    with pytest.raises(PermissionError):
        read(tables[0], tries)


def test_a_parquet_file_that_was_deleted_makes_errors_at_the_last_try(tables):
    plan, place = tables
    (place / "a.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        read(plan)
    found = read(plan, Tries.LAST)
    assert [isinstance(row, RowError) for row in found.values()] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("tries", Tries)
def test_tables_that_are_not_mounted_fail_no_row(tables, tries):
    plan, place = tables
    place.rename(place.with_name("away"))
    with pytest.raises(OutOfReach):
        read(plan, tries)
