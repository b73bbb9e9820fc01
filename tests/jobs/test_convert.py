"""igpt convert, and models on the Hugging Face Hub from the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as constants
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from bundle_writer import openai_variables, write_bundle
from igpt_core import Palette, load_palette
from jobs.__main__ import main
from pictures import encoded, photo
from pipeline.batch.model import find_model
from pipeline.batch.quantizer import find_quantizer
from pipeline.storage.filesystem import absolute_model


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(photo(0)))
    return tmp_path / "images"


def test_openais_checkpoint_becomes_a_model_that_complete_takes(
    ray_session, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_bundle("model.ckpt-9", openai_variables(0))
    Palette(load_palette("embedded").colors[:16]).save("kmeans_centers.npy")
    main(["convert", "--input", "model.ckpt-9", "--output", "models/openai"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "models/openai: ImageGPTForCausalImageModeling, 2 layers x 24, 3 heads, "
        f"{sum(w.numel() for w in load_file('models/openai/model.safetensors').values()):,} "
        "weights in float32; images: 4 x 4, 16 colors"
    )
    words = ["complete", f"--input={images}", "--model=models/openai", "--output=out", "--quiet"]
    main(words)
    assert pq.read_table("out/data").num_rows == 1


def test_without_a_palette_it_says_so(tmp_path, capsys):
    write_bundle(tmp_path / "model.ckpt-9", openai_variables(0))
    main(["convert", f"--input={tmp_path}/model.ckpt-9.index", f"--output={tmp_path}/model"])
    assert capsys.readouterr().out.endswith("images: no palette (next: --palette FILE.npy)\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input": "nowhere"}, "there is no folder"),
        ({"input": "model.ckpt-8"}, "expected model.ckpt-8.index, found"),
        ({"output": "s3://bucket/model"}, "expected a local --output"),
        ({"output": "thesis"}, "is not empty and holds no model"),
        ({"palette": "missing.npy"}, "expected missing.npy, found"),
        ({"palette": "embedded"}, "16 colors, found 512"),
        ({"dtype": "int8"}, "--dtype"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    Path("thesis").mkdir()
    Path("thesis/thesis.doc").write_text("years of work")
    write_bundle("model.ckpt-9", openai_variables(0))
    words = {"input": "model.ckpt-9", "output": "model"} | options
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *(f"--{name}={value}" for name, value in words.items())])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert not Path("model").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path, capsys):
    write_bundle(tmp_path / "model.ckpt-9", openai_variables(0))
    data = tmp_path / "model.ckpt-9.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(SystemExit) as stopped:
        main(["convert", f"--input={tmp_path}/model.ckpt-9", f"--output={tmp_path}/model"])
    assert stopped.value.code == 2
    assert "is damaged or cut short" in capsys.readouterr().err


# Models on the Hub

COMMIT = "a" * 40


@pytest.fixture
def hub_model(tiny_model, tmp_path, monkeypatch):
    """tiny_model as owner/tiny in the cache of huggingface_hub, the Hub out of reach."""
    folder = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(tiny_model, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return f"owner/tiny@{COMMIT}"


def test_hub_ids_stay_and_are_pinned(hub_model, tiny_model, tmp_path):
    assert absolute_model("owner/tiny") == "owner/tiny"
    assert absolute_model("models") == str(tmp_path / "models")
    model = find_model("owner/tiny", {})
    assert model.location == model.quantizer.location == hub_model
    assert model.fingerprint == find_model(tiny_model, {}).fingerprint
    assert find_quantizer("owner/tiny@main", None, {}).location == hub_model
    shutil.copytree(tiny_model, "owner/tiny")
    assert find_model("owner/tiny", {}).location == str(tmp_path / "owner" / "tiny")


@pytest.mark.slow
def test_complete_with_a_model_of_the_hub(
    ray_session, hub_model, tiny_model, images, tmp_path, monkeypatch
):
    """In processes of its own: its actors find the model by the settings of the environment."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["complete", f"--input={images}", "--quiet"]
    result = subprocess.run(
        [sys.executable, "-m", "jobs", *words, "--model=owner/tiny", f"--output={tmp_path}/hubs"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "hubs" / "run.json").read_text())
    assert record["model"]["location"] == record["palette"]["location"] == hub_model
    main([*words, f"--model={tiny_model}", f"--output={tmp_path}/locals"])
    tables = [pq.read_table(tmp_path / name / "data") for name in ("hubs", "locals")]
    assert tables[0].equals(tables[1])
