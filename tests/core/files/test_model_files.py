"""Where the files of a model folder are, and what races and broken fetches can do."""

import http.server
import multiprocessing
import os
import sys
import threading
import time
import types

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from igpt_core import CheckpointError
from igpt_core.files.model_files import is_hub_id, is_remote, model_files

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(5000), "README.md": b"read me"}
URI = "counted://bucket/model"


class CountedFileSystem(MemoryFileSystem):
    """A memory filesystem that notes each fetch in a file, and is slow enough for races."""

    protocol = "counted"
    log = ""
    arriving = None  # the bytes that get through, where not all

    def get_file(self, rpath, lpath, **kwargs):
        with open(self.log, "a") as log:
            log.write(rpath.rpartition("/")[2] + "\n")
        super().get_file(rpath, lpath, **kwargs)
        if self.arriving is not None:
            os.truncate(lpath, self.arriving)
        time.sleep(0.2)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("counted://", "memory://"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The filesystem behind URI."""
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    monkeypatch.setattr(CountedFileSystem, "store", {})
    monkeypatch.setattr(CountedFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(CountedFileSystem, "log", tmp_path / "fetched")
    fs = CountedFileSystem()
    for name, content in CONTENT.items():
        fs.pipe_file(f"/bucket/model/{name}", content)
    return fs


def fetched(tmp_path):
    return (tmp_path / "fetched").read_text().split()


def assert_complete(paths):
    assert [path.read_bytes() for path in paths] == [CONTENT[path.name] for path in paths]


def test_local_folders_are_used_in_place(folder, cache, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for place in (
        folder,
        str(folder),
        "model",
        "~/model/",
        f"file://{folder}",
        f"local://{folder}",
    ):
        assert not is_remote(os.fspath(place))
        (path,) = model_files(place, ("model.safetensors", "config.json"))
        assert path.samefile(folder / "model.safetensors")
    (path,) = model_files(folder, ("pytorch_model.bin", "config.json"))
    assert path == folder / "config.json"
    assert not cache.exists()


def test_only_what_is_needed_is_fetched_and_once(remote, tmp_path):
    assert is_remote(URI)
    groups = (("config.json",), ("model.safetensors", "README.md"))
    for place in (URI, URI, URI + "/"):
        paths = model_files(place, *groups)
        assert [path.name for path in paths] == ["config.json", "model.safetensors"]
        assert_complete(paths)
    assert fetched(tmp_path) == ["config.json", "model.safetensors"]


def test_what_is_replaced_is_fetched_again(remote):
    (old,) = model_files(URI, ("model.safetensors",))
    remote.pipe_file("/bucket/model/model.safetensors", b"new" + bytes(4997))
    (new,) = model_files(URI, ("model.safetensors",))
    assert new.read_bytes()[:3] == b"new"
    assert_complete([old])  # whoever reads it goes on


def test_processes_fetch_a_file_once(remote, tmp_path):
    processes = [start(fetch_and_check) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(fetched(tmp_path)) == ["config.json", "model.safetensors"]


def start(target):
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def fetch_and_check():
    assert_complete(model_files(URI, ("config.json",), ("model.safetensors",)))


def test_a_killed_fetch_leaves_nothing_in_the_way(remote, cache):
    """Killed while all bytes are there but the name is not, and while it holds the lock."""
    process = start(fetch_and_check)
    deadline = time.monotonic() + 30
    while not any(file.stat().st_size for file in cache.glob("models/*/.model.safetensors-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join(60)
    assert not list(cache.glob("models/*/model.safetensors"))
    fetch_and_check()


def test_a_fetch_cut_short_is_noticed(remote, monkeypatch, cache):
    monkeypatch.setattr(CountedFileSystem, "arriving", 100)
    with pytest.raises(CheckpointError, match=r"100 of 5000 bytes of model.safetensors arrived"):
        model_files(URI, ("model.safetensors",))
    assert {file.suffix for file in cache.glob("models/*/*")} == {".lock"}
    monkeypatch.setattr(CountedFileSystem, "arriving", None)
    assert_complete(model_files(URI, ("model.safetensors",)))


def test_a_file_replaced_while_it_is_fetched_is_noticed(remote, monkeypatch, cache):
    def get_and_replace(self, rpath, lpath, **kwargs):
        MemoryFileSystem.get_file(self, rpath, lpath, **kwargs)
        self.pipe_file(rpath, b"new" + bytes(4997))

    monkeypatch.setattr(CountedFileSystem, "get_file", get_and_replace)
    with pytest.raises(CheckpointError, match=r"model.safetensors was replaced meanwhile"):
        model_files(URI, ("model.safetensors",))
    assert {file.suffix for file in cache.glob("models/*/*")} == {".lock"}


def test_a_cache_that_cannot_be_written(remote, monkeypatch, folder):
    monkeypatch.setenv("IGPT_CACHE", str(folder / "config.json"))
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(.*config.json/models"):
        model_files(URI, ("config.json",))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("./someone/imagegpt", "there is no folder ./someone/imagegpt"),
        ("small", "there is no folder small"),
        ("nosuch://bucket/model", "nosuch://bucket/model: no fsspec filesystem"),
        ("counted://nowhere/model", "there is no folder counted://nowhere/model, or it is empty"),
        ("counted://bucket", "counted://bucket: expected a.b or c.d, found model$"),
        (URI, f"{URI}: expected a.b or c.d, found README.md, config.json, model.safetensors$"),
    ],
)
def test_names_that_lead_nowhere(remote, tmp_path, monkeypatch, place, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        model_files(place, ("a.b", "c.d"))
    assert "\n" not in str(caught.value)


def test_a_tensorflow_checkpoint_is_recognized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt-9.index").write_bytes(b"")
    for place in ("model.ckpt-9", tmp_path / "model.ckpt-9"):
        with pytest.raises(CheckpointError, match=r"TensorFlow checkpoint; .* igpt convert$"):
            model_files(place, ("config.json",))


def test_a_palette_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("palettes/missing.npy")


def test_a_message_holds_no_option_values():
    class Strict(MemoryFileSystem):
        protocol = "strict"

        def __init__(self, key=None):
            super().__init__()

    fsspec.register_implementation("strict", Strict, clobber=True)
    with pytest.raises(CheckpointError, match=r"storage options: key, password$") as caught:
        model_files("strict://a", ("b",), storage_options={"key": "s3cret", "password": "s3cret"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"\(Unable to locate credentials\)$"),
        (
            {"key": "k"},
            r"\(Partial credentials found in explicit, missing: aws_secret_access_key\)$",
        ),
        ({"profile": "none"}, r"\(The config profile \(none\) could not be found\)$"),
        ({"key": "k", "secret": "s3cret", "endpoint_url": "nowhere"}, "Invalid endpoint: nowhere"),
        ({"key": "k", "secret": "s3cret", "no_such": 1}, "storage options: key, secret, no_such, "),
    ],
)
def test_s3_that_cannot_be_entered(tmp_path, monkeypatch, options, words):
    """Errors of botocore, which are no OSErrors, and those of a client that is made late."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    options = {**options, "skip_instance_cache": True}
    with pytest.raises(CheckpointError, match=words) as caught:
        model_files("s3://bucket/model", ("a",), storage_options=options)
    assert str(caught.value).startswith("s3://bucket/model: ")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_https_that_refuses():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(CheckpointError, match=r"cannot be fetched \(403, .*\)$") as caught:
            model_files(f"http://127.0.0.1:{server.server_port}/model", ("a",))
        server.shutdown()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name"),
    [("google.auth.exceptions", "GoogleAuthError"), ("azure.core.exceptions", "AzureError")],
)
def test_errors_of_libraries_that_need_not_be_installed(remote, monkeypatch, module, name):
    error = type(name, (Exception,), {})
    library = types.ModuleType(module)
    setattr(library, name, error)

    def refuse(self, path, **kwargs):
        raise type("Refused", (error,), {})("no credentials\nfor you")

    monkeypatch.setattr(CountedFileSystem, "info", refuse)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(error):  # not one of a library's, as far as can be told
        model_files(URI, ("config.json",))
    monkeypatch.setitem(sys.modules, module, library)
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(no credentials for you\)$"):
        model_files(URI, ("config.json",))


def test_an_error_without_words_is_named(remote, monkeypatch):
    def time_out(self, path, **kwargs):
        raise TimeoutError

    monkeypatch.setattr(CountedFileSystem, "info", time_out)
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(TimeoutError\)$"):
        model_files(URI, ("config.json",))


def test_s3(s3_bucket):
    """A store that tells files apart by ETag, lists lazily and answers 403 and 404 in its way."""
    options, fs = s3_bucket("bucket")
    for name, content in CONTENT.items():
        fs.pipe_file(f"bucket/model/{name}", content)
    needed = (("config.json",), ("model.safetensors", "pytorch_model.bin"))
    paths = model_files("s3://bucket/model", *needed, storage_options=options)
    assert_complete(paths)
    assert model_files("s3://bucket/model/", *needed, storage_options=options) == paths
    # Somebody else replaces a file by one of the same size, after we have listed the folder.
    fs.ls("bucket/model")
    another = fsspec.filesystem("s3", skip_instance_cache=True, **options)
    another.pipe_file("bucket/model/model.safetensors", b"new" + bytes(4997))
    again = model_files("s3://bucket/model", *needed, storage_options=options)
    assert again[1].read_bytes()[:3] == b"new"
    for uri, words in (
        ("s3://bucket/other", "there is no folder s3://bucket/other"),
        ("s3://nowhere/model", "there is no folder s3://nowhere/model"),
        ("s3://bucket", r"s3://bucket: expected config.json, found model$"),
    ):
        with pytest.raises(CheckpointError, match=words):
            model_files(uri, *needed, storage_options=options)
