"""Models on the Hugging Face Hub, against a server of our own that answers as the Hub does."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub.constants as constants
import numpy as np
import pytest
import torch

from igpt_core import (
    CheckpointError,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTImageProcessor,
    Palette,
    load_image_size,
    load_model,
    load_palette,
    model_fingerprint,
    save_checkpoint,
)
from igpt_core.files.hub import split_id
from igpt_core.files.model_files import at_revision, is_hub_id, model_files, resolve_revision

COMMITS = {"main": "a" * 40, "old": "b" * 40}
TOKEN = "hf_s3cret"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `files`, (revision, name) to content, of the model owner/name."""

    files: dict = {}  # noqa: RUF012, set by a fixture
    asked: list = []  # noqa: RUF012
    tokens: set = set()  # noqa: RUF012

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        content = self._answer()
        if content is not None:
            self.wfile.write(content)

    def _answer(self):
        if "/resolve/" in self.path:  # the library asks for other things too
            self.asked.append((self.command, self.path))
            self.tokens.add(self.headers.get("Authorization"))
        found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None or found[1] in ("owner/missing", "owner/gated", "owner/broken"):
            name = "" if found is None else found[1]
            return self._refuse(*REFUSALS.get(name, (404, "RepoNotFound")))
        revision = {commit: r for r, commit in COMMITS.items()}.get(found[2], found[2])
        if revision not in COMMITS:
            return self._refuse(404, "RevisionNotFound")
        content = self.files.get((revision, found[3]))
        if content is None:
            return self._refuse(404, "EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS[revision])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def _refuse(self, status, code):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"refused {TOKEN}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):
        pass


REFUSALS = {"owner/gated": (403, "GatedRepo"), "owner/broken": (500, None)}


def small_model(seed):
    torch.manual_seed(seed)
    config = ImageGPTConfig(vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    return ImageGPTForCausalImageModeling(config).eval()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Relative names start from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "saved"
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    save_checkpoint(small_model(0), folder, palette=palette)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, model_folder):
    """The Hub that huggingface_hub asks, with owner/name on it."""
    files = {("main", file.name): file.read_bytes() for file in model_folder.iterdir()}
    old = tmp_path / "old"
    save_checkpoint(small_model(1), old)
    files |= {("old", file.name): file.read_bytes() for file in old.iterdir()}
    monkeypatch.setattr(Hub, "files", files)
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "tokens", set())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's tries
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Hub
        server.shutdown()


def go_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def assert_same_weights(one, two):
    assert all(weight.equal(two.state_dict()[name]) for name, weight in one.state_dict().items())


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("owner/name", ("owner/name", None)),
        ("open-ai/image.gpt_2@v1.0", ("open-ai/image.gpt_2", "v1.0")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        *((text, None) for text in ("name", "./name", "../name", "a/b/c", "/a/b", "a/b/", "a/b@")),
        *((text, None) for text in ("s3://a/b", "~/models", "a b/c", "C:/a", "embedded")),
    ],
)
def test_what_an_id_looks_like(location, parts):
    assert split_id(location) == parts


def test_every_class_and_function_takes_an_id(hub, model_folder, monkeypatch):
    loaded = ImageGPTForCausalImageModeling.from_pretrained("owner/name")
    assert_same_weights(loaded, small_model(0))
    assert_same_weights(load_model("owner/name", device="cpu", dtype=None), small_model(0))
    assert ImageGPTConfig.from_pretrained("owner/name").n_embd == 8
    assert ImageGPTImageProcessor.from_pretrained("owner/name").size["height"] == 4
    assert load_palette("owner/name").fingerprint == load_palette(model_folder).fingerprint
    assert load_image_size("owner/name") == 4
    assert model_fingerprint("owner/name") == model_fingerprint(model_folder)
    fetched = [path.rpartition("/")[2] for method, path in hub.asked if method == "GET"]
    assert sorted(fetched) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    go_offline(monkeypatch)
    asked = len(hub.asked)
    assert_same_weights(load_model("owner/name", device="cpu", dtype=None), small_model(0))
    assert len(hub.asked) == asked


def test_revisions(hub):
    for loaded in (
        ImageGPTForCausalImageModeling.from_pretrained("owner/name", revision="old"),
        ImageGPTForCausalImageModeling.from_pretrained("owner/name@old"),
        ImageGPTForCausalImageModeling.from_pretrained("owner/name@old", revision="old"),
        load_model(f"owner/name@{COMMITS['old']}", device="cpu", dtype=None),
    ):
        assert_same_weights(loaded, small_model(1))
    assert ImageGPTConfig.from_pretrained("owner/name", revision="old").n_embd == 8
    with pytest.raises(CheckpointError, match=r"has none of these$"):
        ImageGPTImageProcessor.from_pretrained("owner/name", revision="old")
    with pytest.raises(CheckpointError, match="expected one revision, found new beside it"):
        at_revision("owner/name@old", "new")


def test_an_id_is_resolved_to_what_it_stands_for_now(hub, monkeypatch):
    now = resolve_revision("owner/name", ("config.json",))
    assert now == f"owner/name@{COMMITS['main']}"
    asked = len(hub.asked)
    assert resolve_revision(now, ("config.json",)) == now
    assert model_files(now, ("config.json",))[0].parent.name == COMMITS["main"]
    assert len(hub.asked) == asked  # a commit never changes
    for other in ("embedded", "s3://bucket/model", "nowhere"):
        assert resolve_revision(other, ("config.json",)) == other


def test_files_of_one_call_are_of_one_commit(hub, monkeypatch):
    """Somebody pushes after the first file has been fetched."""

    def answer(self):
        content = Hub._first_answer(self)
        monkeypatch.setitem(COMMITS, "main", "c" * 40)
        return content

    monkeypatch.setitem(COMMITS, "before", COMMITS["main"])
    for name in ("config.json", "model.safetensors"):
        monkeypatch.setitem(hub.files, ("before", name), hub.files["main", name])
    monkeypatch.setattr(Hub, "_first_answer", Hub._answer, raising=False)
    monkeypatch.setattr(Hub, "_answer", answer)
    paths = model_files("owner/name", ("config.json",), ("model.safetensors",))
    assert [path.parent.name for path in paths] == ["a" * 40] * 2


def test_shards_and_pickles(hub, model_folder, monkeypatch):
    weights = small_model(0).state_dict()
    names = list(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[:7]}
    shards["pytorch_model-00002-of-00002.bin"] = names[7:]
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    files = {("main", "config.json"): hub.files["main", "config.json"]}
    files["main", "pytorch_model.bin.index.json"] = json.dumps(index).encode()
    for shard, held in shards.items():
        torch.save({name: weights[name] for name in held}, shard)
        files["main", shard] = Path(shard).read_bytes()
    monkeypatch.setattr(Hub, "files", files)
    assert_same_weights(load_model("owner/name", device="cpu", dtype=None), small_model(0))
    assert model_fingerprint("owner/name") == model_fingerprint(model_folder)
    go_offline(monkeypatch)
    assert_same_weights(load_model("owner/name", device="cpu", dtype=None), small_model(0))


def test_arguments_of_transformers_reach_the_hub(hub, place, model_folder):
    """cache_dir, token by both its names, local_files_only and subfolder."""
    fetched = ImageGPTForCausalImageModeling.from_pretrained
    expected = fetched(model_folder)
    where = {"cache_dir": place / "mine"}
    with pytest.raises(CheckpointError, match="the Hub is not asked with local_files_only"):
        fetched("owner/name", local_files_only=True, **where)
    assert not hub.asked
    assert_same_weights(fetched("owner/name", token="hf_other", **where), expected)
    assert hub.tokens == {"Bearer hf_other"}
    assert (place / "mine" / "models--owner--name").is_dir()
    asked = len(hub.asked)
    assert_same_weights(fetched("owner/name", local_files_only=True, **where), expected)
    assert len(hub.asked) == asked
    fetched("owner/name", use_auth_token="hf_old", force_download=True, **where)
    assert "Bearer hf_old" in hub.tokens
    assert len(hub.asked) > asked
    with pytest.raises(TypeError, match="use_auth_token is an old name of token: give one"):
        fetched("owner/name", token="hf_other", use_auth_token="hf_old")
    for name, content in [item for item in hub.files.items() if item[0][0] == "main"]:
        hub.files["main", f"deep/er/{name[1]}"] = content
        del hub.files[name]
    assert_same_weights(
        fetched("owner/name", subfolder="deep/er", cache_dir=place / "new"), expected
    )


def test_a_local_folder_comes_first(hub, place):
    assert is_hub_id("owner/name")
    save_checkpoint(small_model(2), "owner/name")
    assert not is_hub_id("owner/name")
    for revision in (None, "main"):
        loaded = ImageGPTForCausalImageModeling.from_pretrained("owner/name", revision=revision)
        assert_same_weights(loaded, small_model(2))
    assert not hub.asked


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("owner/missing", "no local folder owner/missing, and no such model on the Hugging Face"),
        ("owner/gated", "owner/gated: access .* https://huggingface.co/owner/gated, and set HF_T"),
        ("owner/broken", "owner/broken.*and the Hub answers with status 500$"),
        ("owner/name@no", "owner/name@no: the model owner/name on .* has no such revision$"),
        ("owner/na--me", "no local folder owner/na--me, and no model on .* can have that name$"),
        (
            "owner/name@old",
            "owner/name@old: expected a.json or preproc.*, the model on the Hu",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_secrets(hub, location, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        model_files(location, ("config.json",), ("a.json", "preprocessor_config.json"))
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_without_a_connection(hub, monkeypatch):
    go_offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r"Hub is not asked while HF_HUB_OFFLINE is set$"):
        load_model("owner/name", device="cpu", dtype=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    with pytest.raises(CheckpointError, match=r"and the Hub cannot be reached$") as caught:
        load_model("owner/name", device="cpu", dtype=None)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written(hub, monkeypatch, place):
    (place / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot be fetched .* \(Not a directory\)$"):
        model_files("owner/name", ("config.json",))


def test_a_body_cut_short(hub, monkeypatch):
    def half(self):
        content = self._answer()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    monkeypatch.setattr(Hub, "do_GET", half)
    with pytest.raises(CheckpointError, match=r"cannot be fetched from the .* \(\w+\)$") as caught:
        model_files("owner/name", ("model.safetensors",))
    assert "\n" not in str(caught.value)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'igpt\[hub\]', or download") as caught:
        load_model("owner/name", device="cpu", dtype=None)
    assert "\n" not in str(caught.value)


def test_the_settings_of_the_environment(tmp_path, model_folder):
    """HF_HOME and HF_HUB_OFFLINE, in a process of its own; the library is imported when used."""
    snapshot = tmp_path / "home" / "hub" / "models--owner--name" / "snapshots" / COMMITS["main"]
    snapshot.mkdir(parents=True)
    for file in model_folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMITS["main"])
    code = (
        "import sys, igpt_core\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "print(igpt_core.model_fingerprint('owner/name'))\n"
    )
    root = str(Path(__file__).parents[3])
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": root,
    }
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == model_fingerprint(model_folder)
