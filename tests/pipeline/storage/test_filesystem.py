"""Locations, their options, listings and atomic writes: local, in memory and on S3 (moto)."""

import os
import re
import stat
import time
import tracemalloc
import zipfile

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from pipeline.errors import UsageError
from pipeline.run_directory.directory import RunDirectory
from pipeline.storage import atomic
from pipeline.storage import filesystem as storage
from pipeline.storage import walk as walking
from pipeline.storage.atomic import write_atomic, write_new
from pipeline.storage.file_identity import DEAD_LINK, NO_FILE
from pipeline.storage.filesystem import open_location, read_bytes
from pipeline.storage.walk import glob_files, list_files, scan_folder


@pytest.fixture(scope="module")
def s3(s3_bucket):
    """Storage options of a bucket named storage-tests."""
    return s3_bucket("storage-tests")[0]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    """(filesystem, an empty folder on it)."""
    if request.param == "local":
        return open_location(str(tmp_path))
    if request.param == "memory":
        return open_location(f"memory://{tmp_path.name}")
    return open_location(f"s3://storage-tests/{tmp_path.name}", request.getfixturevalue("s3"))


# --- options and URIs -----------------------------------------------------------------------------


def test_flat_options_hold_everywhere():
    assert storage.options_for({"anon": True}, "input") == {"anon": True}
    assert storage.options_for(None, "output") == {}


def test_options_by_location():
    options = {"input": {"anon": True}, "output": {"key": "k"}}
    assert storage.options_for(options, "input") == {"anon": True}
    assert storage.options_for(options, "output") == {"key": "k"}
    assert storage.options_for(options, "model") == {}


@pytest.mark.parametrize("options", [{"input": {}, "secret": "hush"}, {"input": "hush"}])
def test_mixed_options_are_refused_without_their_values(options):
    with pytest.raises(UsageError, match="input, output, model") as caught:
        storage.options_for(options, "input")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["a#b", "what?", "[x]", "a b", "100%25", "ü,é", "a::b", "x:y"])
def test_local_names_are_taken_as_they_are(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_bytes(b"here")
    for uri in (str(tmp_path / name), f"file://{tmp_path / name}"):
        fs, path = open_location(uri)
        assert list(list_files(fs, path)) == [str(tmp_path / name / name)]
        assert storage.read_bytes(fs, storage.join(path, name)) == b"here"
    monkeypatch.chdir(tmp_path)
    assert open_location(name)[1] == str(tmp_path / name)


def test_local_paths_are_absolute_and_ignore_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_location("a/../b/", {"nonsense": 1})[1] == str(tmp_path / "b")
    assert open_location("~/x")[1] == "/home/someone/x"


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("nowhere://b/k", {}, r"found nowhere://"),
        ("s3://b/k", {"bogus": "hush"}, r"--storage-options bogus: .*bogus"),
        ("s3://b/k", {"endpoint_url": "nonsense"}, r"--storage-options endpoint_url: .*endpoint"),
        ("s3://b/k", {"profile": "no-such"}, r"no-such"),
        ("ftp://127.0.0.1:1/photos", {}, r"ftp://.*refused"),
    ],
)
def test_a_location_that_cannot_be_opened_is_one_line(uri, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        open_location(uri, options)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    spec = {"class": "absent_package.core.FS", "err": "Please install absent_package"}
    monkeypatch.setitem(known_implementations, "absent", spec)
    with pytest.raises(UsageError, match=r"absent://.*install absent_package"):
        open_location("absent://b/k")


@pytest.mark.parametrize(
    ("uri", "path", "child", "expected"),
    [
        ("/d", "/d", "/d/x", "/d/x"),
        ("s3://b/d/", "b/d", "b/d/x#y", "s3://b/d/x#y"),
        ("s3://b/*.png", "b/*.png", "b/x.png", "s3://b/x.png"),
        ("sftp://host/d", "/d", "/d/x", "sftp://host/d/x"),
        ("http://h/d", "http://h/d", "http://h/d/x", "http://h/d/x"),
        ("memory://d", "/d", "/d/x", "memory://d/x"),
        ("zip://d::s3://b/a.zip", "d", "d/x", "zip://d/x::s3://b/a.zip"),
        ("s3://b/a::b/", "b/a::b", "b/a::b/x", "s3://b/a::b/x"),  # past bug: s3://b/a::b/x::b/
        ("s3://b/a::b.png", "b/a::b.png", "b/a::b.png", "s3://b/a::b.png"),
        ("simplecache::s3://b/d", "b/d", "b/d/x", "simplecache::s3://b/d/x"),
    ],
)
def test_files_of_a_location_have_uris_of_its_kind(uri, path, child, expected):
    assert storage.uri_of(child, uri=uri, path=path) == expected


@pytest.mark.parametrize("name", ["a::b.png", "x:y#z.png", "50%25.png", "was?.png", "[1] ü.png"])
def test_names_in_a_store_are_taken_as_they_are(s3, name):
    """Past bug: what stands behind `::` in a key was taken for another filesystem."""
    fs, root = open_location("s3://storage-tests/names", s3)
    fs.pipe_file(f"{root}/{name}", name.encode())
    (path,) = list_files(fs, root)
    uri = storage.uri_of(path, uri="s3://storage-tests/names", path=root)
    assert read_bytes(*open_location(uri, s3)) == name.encode()
    fs.rm_file(path)


def test_a_filesystem_in_a_file_of_another_is_opened(tmp_path, s3):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("d/x::y.png", b"inside")
    fs, root = open_location("s3://storage-tests", s3)
    fs.pipe_file(f"{root}/a.zip", (tmp_path / "a.zip").read_bytes())
    inside = open_location("zip://d::s3://storage-tests/a.zip", {"s3": s3})
    assert list(list_files(*inside)) == ["d/x::y.png"]
    assert list(list_files(*open_location(f"zip://d::{tmp_path}/a.zip"))) == ["d/x::y.png"]


# --- listing --------------------------------------------------------------------------------------

FILES = ["a.png", "b/c.PNG", "b/d/e.png", "b/d/f.jpg", "g#?[1] ü,%20.png", "h/i.png"]
FILES += ["_DSC0001.JPG", "_MG_2/_IMG.png"]  # as cameras name photos in Adobe RGB
HIDDEN = [".x.png", "_SUCCESS", "b/.part.tmp", "b/.git/z.png", "__MACOSX/a.png", "b/_metadata"]
HIDDEN += ["_temporary/0/p.parquet", "_delta_log/0.json", "_started_17", "b/_common_metadata"]


@pytest.fixture
def tree(place):
    fs, root = place
    for name in FILES + HIDDEN:
        write_atomic(fs, f"{root}/{name}", name.encode())
    return fs, root


def test_listing_is_recursive_sorted_and_without_hidden_files(tree):
    fs, root = tree
    assert list(list_files(fs, root)) == sorted(f"{root}/{name}" for name in FILES)
    assert [storage.read_bytes(fs, f"{root}/{name}").decode() for name in FILES] == FILES


def test_a_missing_folder_lists_nothing(place):
    fs, root = place
    assert list_files(fs, f"{root}/missing") == {}
    assert storage.kind(fs, f"{root}/missing") is None


def test_what_was_written_since_is_seen(place):
    """s3fs remembers listings: a run that resumes in the same process must not see old ones."""
    fs, root = place
    write_atomic(fs, f"{root}/data/1", b"x")
    another_process = type(fs)(**fs.storage_options, skip_instance_cache=True)
    looks = [
        lambda path: storage.exists(fs, path),
        lambda path: storage.kind(fs, path) == "file",
        lambda path: path in list_files(fs, f"{root}/data"),
    ]
    for number, look in enumerate(looks, start=2):
        path = f"{root}/data/{number}"
        fs.ls(f"{root}/data")
        assert not look(path)
        fs.ls(f"{root}/data")
        another_process.pipe_file(path, b"y")
        assert look(path)
    assert storage.kind(fs, f"{root}/data") == "folder"


@pytest.mark.parametrize(
    ("pattern", "fixed", "expected"),
    [
        ("*.png", "", ["a.png", "g#?[1] ü,%20.png"]),
        ("*/*.png", "", ["_MG_2/_IMG.png", "h/i.png"]),
        ("**/*.png", "", ["_MG_2/_IMG.png", "a.png", "b/d/e.png", "g#?[1] ü,%20.png", "h/i.png"]),
        ("b/**/*.[pP][nN][gG]", "b", ["b/c.PNG", "b/d/e.png"]),
        ("b/**/f.jpg", "b", ["b/d/f.jpg"]),
        ("[!ab]", "", ["h/i.png"]),
        ("b*", "", ["b/c.PNG", "b/d/e.png", "b/d/f.jpg"]),
        ("**", "", FILES),
        ("b/?/[ef].*", "b", ["b/d/e.png", "b/d/f.jpg"]),
        (".*", "", [".x.png"]),
        ("_*/*.png", "", ["__MACOSX/a.png", "_MG_2/_IMG.png"]),
        ("nothing*", "", []),
    ],
)
def test_globs(tree, pattern, fixed, expected):
    fs, root = tree
    base, found = glob_files(fs, f"{root}/{pattern}")
    assert base == f"{root}/{fixed}".rstrip("/")
    assert list(found) == sorted(f"{root}/{name}" for name in expected)


def test_a_glob_lists_no_folder_in_vain(tmp_path, monkeypatch):
    for folder in ("yes/deep", "no/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").touch()
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    glob_files(open_location("/")[0], f"{tmp_path}/y*/*.png")
    assert listed == [str(tmp_path), f"{tmp_path}/yes"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dead.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.png")  # reading it would wait for ever
    (tmp_path / "in" / "self.png").symlink_to("self.png")
    (tmp_path / "in" / "zero.png").symlink_to("/dev/zero")
    found = list_files(open_location("/")[0], str(tmp_path / "in"))
    names = ("dead.png", "link/x.png", "pipe.png", "self.png", "zero.png")
    assert list(found) == [str(tmp_path / "in" / name) for name in names]
    identities = list(found.values())
    assert identities[0] == DEAD_LINK
    assert identities[1].startswith("size=0 mtime=")
    assert identities[2:] == [NO_FILE, None, NO_FILE]


def test_s3_listing_goes_on_after_a_page(s3, monkeypatch):
    fs, root = open_location("s3://storage-tests/pages", s3)
    names = [f"{root}/{name}" for name in ("a", "b", "c", "d/e", "d/f", "g/h", "i")]
    for name in names:
        fs.pipe_file(name, b"x")
    fs.pipe_file(f"{root}/d/", b"")  # as consoles make a folder
    monkeypatch.setattr(walking, "_LISTING_PAGE", 2)
    assert list(list_files(fs, root)) == names
    assert list_files(fs, "no-such-bucket/x") == {}


def test_a_folder_without_a_name_is_one_of_its_own_on_s3(s3):
    """Past bug: it was taken for the folder that it lies in, which was listed for ever."""
    fs, root = open_location("s3://storage-tests/nameless", s3)
    names = [f"{root}/{name}" for name in ("/a.png", "/b//c.png", "/x/d.png", "a.png")]
    for name in names:
        fs.pipe_file(name, name.encode())
    assert list(list_files(fs, root)) == names
    assert [read_bytes(fs, name) for name in names] == [name.encode() for name in names]
    assert list(glob_files(fs, f"{root}/*.png")[1]) == [f"{root}/a.png"]


def test_where_a_folder_without_a_name_cannot_be_listed_it_is_named():
    fs, root = open_location("memory://nameless")
    for name in ("/deep.png", "a.png", "b/c.png", "b//d.png"):
        fs.pipe_file(f"{root}/{name}", b"x")
    found = list(list_files(fs, root))
    assert found == [f"{root}/{name}" for name in ("/", "a.png", "b//", "b/c.png")]
    fs.rm(root, recursive=True)


def test_a_scan_names_what_lies_in_a_folder_and_when_it_was_changed(place, monkeypatch):
    """On S3 over several pages; a folder that lies there is an entry of disks alone."""
    monkeypatch.setattr(walking, "_LISTING_PAGE", 2)
    fs, root = place
    assert list(scan_folder(fs, f"{root}/nowhere")) == []
    before = time.time()
    for name in ("a", "b", "c", "d/e"):
        fs.makedirs(f"{root}/in/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/in/{name}", b"x")
    found = {entry.name: entry.modified for entry in scan_folder(fs, f"{root}/in")}
    assert found.keys() - {"d"} == {"a", "b", "c"}
    if "memory" not in fs.protocol:  # its listings do not tell
        assert all(abs(found[name] - before) < 60 for name in "abc")


def test_a_scan_of_a_disk_holds_no_list(tmp_path):
    """Past bug: 1.2 KB for each file, as filesystems make of a listing."""
    for i in range(2000):
        (tmp_path / str(i)).touch()
    fs = open_location(str(tmp_path))[0]
    tracemalloc.start()
    assert sum(1 for _ in scan_folder(fs, str(tmp_path))) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2000


# --- reading and atomic writes --------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 60 << 20])
def test_an_object_is_one_request(s3, monkeypatch, size):
    """A store bills requests, and an image is one object."""
    fs, path = open_location("s3://storage-tests/one-request", s3)
    content = os.urandom(size)
    fs.pipe_file(path, content)
    requests, call = [], fs._call_s3

    async def recorded(method, *arguments, **options):
        requests.append(method)
        return await call(method, *arguments, **options)

    monkeypatch.setattr(fs, "_call_s3", recorded)
    assert read_bytes(fs, path) == content
    assert requests == ["get_object"]


def test_writing_replaces_and_leaves_nothing_else(place):
    fs, root = place
    path = f"{root}/data/part-000000.parquet"
    for payload in (b"first", b"second, longer", b""):
        write_atomic(fs, path, payload)
        assert storage.read_bytes(fs, path) == payload
    assert [name.rpartition("/")[2] for name in fs.ls(f"{root}/data", detail=False)] == [
        "part-000000.parquet"
    ]


def test_local_writes_appear_whole(tmp_path, monkeypatch):
    """At the moment of the rename the temporary file is complete and synced to the disk; a
    reader sees the old bytes up to then."""
    path = tmp_path / "part.json"
    write_atomic(*open_location(str(path)), b"old")
    events = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor):
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        events.append("sync file" if is_file else "sync folder")
        fsync(descriptor)

    def seen_replace(source, target):
        assert re.fullmatch(r"\.part\.json\.\d+-[0-9a-f]{8}\.tmp", os.path.basename(source))
        with open(source, "rb") as file:
            events.append((path.read_bytes(), file.read(), target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_atomic(*open_location(str(path)), b"new")
    assert events == ["sync file", (b"old", b"new", str(path)), "sync folder"]


def test_a_failed_local_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "part.parquet"
    write_atomic(*open_location(str(path)), b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(*open_location(str(path)), b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["part.parquet"]
    assert path.read_bytes() == b"old"


def test_a_writer_whose_temporary_file_is_taken_for_a_leftover_writes_again(tmp_path, monkeypatch):
    """A run that ends deletes leftovers while another one, just started, takes its place."""
    fs, root = open_location(str(tmp_path))
    for name, write in (("replace", write_atomic), ("link", write_new)):
        call, taken = getattr(os, name), []

        def call_late(source, target, call=call, taken=taken):
            if not taken:
                taken.append(source)
                os.remove(source)
            call(source, target)

        monkeypatch.setattr(os, name, call_late)
        write(fs, f"{root}/{name}.json", b"whole")
        assert (tmp_path / f"{name}.json").read_bytes() == b"whole"
        assert atomic.is_temporary(taken[0])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data/.part-000001.parquet.7-a1b2c3d4.tmp", True),
        ("..owner.12345-a1b2c3d4.tmp", True),
        (".notes.tmp", False),
        ("notes.12-ab.tmp", False),
        (".part-000001.parquet.7-a1b2c3d4.tmp.parquet", False),
        (".part.7-a1.tmp/part-000001.parquet", False),
    ],
)
def test_what_is_a_temporary_name(name, expected):
    assert atomic.is_temporary(name) is expected


class _Ftp(MemoryFileSystem):
    """A filesystem whose readers see files that are being written."""

    protocol = "sftp"
    store, pseudo_dirs = {}, [""]
    cut = False

    def pipe_file(self, path, value, **kwargs):
        super().pipe_file(path, value[:1] if self.cut else value)
        if self.cut:
            raise ConnectionError("lost")


def test_filesystems_that_show_half_files_get_a_temporary_name():
    fs = _Ftp()
    write_atomic(fs, "/out/data/part.parquet", b"old")
    write_atomic(fs, "/out/data/part.parquet", b"new")
    assert fs.ls("/out/data", detail=False) == ["/out/data/part.parquet"]
    fs.cut = True
    with pytest.raises(ConnectionError):
        write_atomic(fs, "/out/data/part.parquet", b"newer")
    assert fs.cat_file("/out/data/part.parquet") == b"new"
    assert list(list_files(fs, "/out")) == ["/out/data/part.parquet"]
    RunDirectory("/out", fs, "/out").delete_leftovers()
    assert fs.ls("/out/data", detail=False) == ["/out/data/part.parquet"]


def test_of_two_writers_of_a_new_file_the_first_has_it(place):
    fs, root = place
    path = f"{root}/run.json"
    write_new(fs, path, b"first")
    with pytest.raises(FileExistsError):
        write_new(fs, path, b"second")
    assert storage.read_bytes(fs, path) == b"first"
    assert list(list_files(fs, root)) == [path]


def test_of_two_writers_at_the_same_moment_one_has_a_new_file(place, monkeypatch):
    """Both have looked, and neither found it."""
    fs, root = place
    path = f"{root}/run.json"
    write_new(fs, path, b"first")
    seen = iter([False, True])
    monkeypatch.setattr(atomic, "exists", lambda *_: next(seen))
    with pytest.raises(FileExistsError):
        write_new(fs, path, b"second")
    assert storage.read_bytes(fs, path) == b"first"


def test_a_large_object_goes_up_in_pieces_and_a_failed_one_leaves_nothing(s3, monkeypatch):
    fs, root = open_location("s3://storage-tests/large", s3)
    methods = []
    call = type(fs)._call_s3

    async def noted(self, method, *args, **kwargs):
        methods.append(method)
        if method == "upload_part" and kwargs["Body"][:1] == b"x":
            raise OSError(28, "the store is full")
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(type(fs), "_call_s3", noted)
    payload = bytes(101 << 20)
    write_atomic(fs, f"{root}/part.parquet", payload)
    assert methods.count("upload_part") == 3
    assert fs.cat_file(f"{root}/part.parquet") == payload
    with pytest.raises(OSError, match="full"):
        write_atomic(fs, f"{root}/lost.parquet", b"x" + payload)
    assert not storage.exists(fs, f"{root}/lost.parquet")
    assert not fs.list_multipart_uploads("storage-tests")
