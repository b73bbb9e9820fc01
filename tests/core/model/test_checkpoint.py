"""Model folders: what is read, what is refused, and what a killed save can leave."""

import json
import multiprocessing
import os
import pickle
import shutil
import time

import numpy as np
import pytest
import torch
import transformers
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

from igpt_core import (
    CheckpointError,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
    Palette,
    load_image_size,
    load_model,
    load_palette,
    model_fingerprint,
    save_checkpoint,
)
from igpt_core.files.model_files import resolve
from models import make_model

CONFIG = {"vocab_size": 17, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
TOKENS = torch.arange(16)[None].flip(1)


@pytest.fixture
def model():
    return model_of(seed=0)


@pytest.fixture
def palette():
    return Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))


@pytest.fixture
def folder(tmp_path, model, palette):
    save_checkpoint(model, tmp_path / "model", palette=palette)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_of(*, seed, **fields):
    return make_model(ImageGPTConfig(**CONFIG, **fields), std=1.0, seed=seed)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def assert_same_weights(one, two):
    assert list(one) == list(two)
    assert all(one[name].equal(two[name]) for name in one)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


# Reading and writing


def test_a_model_comes_back_bit_for_bit(folder, model):
    assert names(folder) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    state = torch.get_rng_state()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # who reads one reads all
    again = load_model(folder, device="cpu", dtype=None)
    assert torch.get_rng_state().equal(state)  # no weight is drawn first
    assert type(again) is ImageGPTForCausalImageModeling
    assert not again.training
    assert_same_weights(again.state_dict(), model.state_dict())
    assert again.config.n_embd == 24
    assert again(TOKENS, labels=TOKENS).loss.backward() is None
    assert all(weight.grad is not None for weight in again.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path, model, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]
    kept = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert_same_weights(kept.state_dict(), model.state_dict())
    asked = load_model(str(tmp_path), device="cpu", dtype=torch.float32)
    assert_same_weights(asked.state_dict(), model.float().state_dict())


def test_the_file_may_change_under_a_loaded_model(folder, model):
    """The weights are read from a mapped file: they must not stay views of it."""
    loaded = load_model(folder, device="cpu", dtype=None)
    with open(folder / "model.safetensors", "r+b") as file:
        size = os.path.getsize(folder / "model.safetensors")
        file.write(b"\x00" * size)
    assert_same_weights(loaded.state_dict(), model.state_dict())


def test_a_folder_of_ours_loads_in_transformers(folder, model, palette):
    loaded, report = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_weights(loaded.state_dict(), model.state_dict())
    # float32, sums of 24 terms: 1e-4 as in test_model.py
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=0, atol=1e-4)
    processor = transformers.ImageGPTImageProcessorPil.from_pretrained(folder)
    assert np.array_equal(np.float32(processor.clusters), palette.colors)
    assert (processor.size["height"], processor.size["width"]) == (4, 4)
    pixels = palette.decode(np.arange(16)).reshape(4, 4, 3)
    tokens = processor(pixels, return_tensors="pt", input_data_format="channels_last").input_ids
    assert tokens.tolist() == [list(range(16))]


def test_a_folder_of_transformers_loads_here(tmp_path, palette):
    theirs = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**CONFIG))
    theirs.load_state_dict(model_of(seed=5).state_dict())
    theirs.eval().save_pretrained(tmp_path)
    transformers.ImageGPTImageProcessorPil(
        clusters=palette.colors, size={"height": 4, "width": 4}
    ).save_pretrained(tmp_path)
    ours = load_model(tmp_path, device="cpu", dtype=None)
    assert_same_weights(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)
    assert np.array_equal(load_palette(tmp_path).colors, palette.colors)
    assert load_image_size(tmp_path) == 4


def test_old_published_folders(folder, model):
    """Pickled weights with causal masks among them, and fields of older versions."""
    weights = dict(model.state_dict())
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril().bool()
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    for zipped in (True, False):
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        (folder / "model.safetensors").unlink(missing_ok=True)
        fields = json.loads((folder / "config.json").read_text())
        fields.update(n_ctx=16, torch_dtype="float32", summary_type="cls_index")
        (folder / "config.json").write_text(json.dumps(fields))
        loaded = load_model(folder, device="cpu", dtype=None)
        assert_same_weights(loaded.state_dict(), model.state_dict())
        assert loaded.config.summary_type == "cls_index"


@pytest.mark.parametrize("trunk", ["transformer.", ""])
@pytest.mark.parametrize("head", [{}, {"lm_head.weight"}, {"lm_head.weight", "score.weight"}])
def test_prefixes_and_heads_as_in_transformers(folder, model, trunk, head):
    weights = {
        (trunk + name.removeprefix("transformer.") if name != "lm_head.weight" else name): weight
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight" or name in head
    }
    if "score.weight" in head:
        weights["score.weight"] = torch.zeros(2, 24)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    bare = load_model(folder, device="cpu", dtype=None, head=None)
    assert type(bare) is ImageGPTModel
    theirs = transformers.ImageGPTModel.from_pretrained(folder)
    assert_same_weights(bare.state_dict(), theirs.state_dict())
    assert_same_weights(bare.state_dict(), model.transformer.state_dict())
    if head:
        causal = load_model(folder, device="cpu", dtype=None)
        assert_same_weights(causal.state_dict(), model.state_dict())
    else:  # transformers would go on with random weights
        with pytest.raises(CheckpointError, match=r"1 missing \(lm_head.weight\)"):
            load_model(folder, device="cpu", dtype=None)


def test_a_uri(folder, model, palette):
    MemoryFileSystem().put(f"{folder}/", "/checkpoints/model/", recursive=True)
    uri = "memory://checkpoints/model"
    assert_same_weights(load_model(uri, device="cpu", dtype=None).state_dict(), model.state_dict())
    assert np.array_equal(load_palette(uri).colors, palette.colors)
    assert load_image_size(uri) == 4
    assert ImageGPTConfig.from_pretrained(uri) == ImageGPTConfig.from_pretrained(folder)


def split(folder, *, into="model.safetensors", shards=3):
    """The weights of a folder in several files with an index, as transformers writes them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = into.split(".")
    weight_map = {}
    for i in range(shards):
        part = {name: weights[name] for name in sorted(weights)[i::shards]}
        shard = f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        weight_map |= dict.fromkeys(part, shard)
        (save_file if suffix == "safetensors" else torch.save)(part, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{into}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("into", ["model.safetensors", "pytorch_model.bin"])
def test_shards(folder, model, into):
    fingerprint = model_fingerprint(folder)
    split(folder, into=into)
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder)
    assert_same_weights(theirs.state_dict(), model.state_dict())
    MemoryFileSystem().put(f"{folder}/", f"/sharded/{into}/", recursive=True)
    for place in (folder, f"memory://sharded/{into}"):
        loaded = load_model(place, device="cpu", dtype=None)
        assert_same_weights(loaded.state_dict(), model.state_dict())
        assert ImageGPTForCausalImageModeling.check_pretrained(place).n_embd == 24
        assert model_fingerprint(place) == fingerprint


def test_shards_that_transformers_writes(tmp_path):
    theirs = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**CONFIG))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = load_model(tmp_path, device="cpu", dtype=None)
    assert_same_weights(loaded.state_dict(), theirs.state_dict())


def test_a_whole_file_comes_before_shards_and_a_save_replaces_both(folder, model):
    whole = (folder / "model.safetensors").read_bytes()
    split(folder)
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"damaged")
    (folder / "model.safetensors").write_bytes(whole)
    loaded = load_model(folder, device="cpu", dtype=None)
    assert_same_weights(loaded.state_dict(), model.state_dict())
    (folder / "notes.safetensors").write_text("of another model")
    loaded.save_pretrained(folder)
    assert names(folder) == [
        *("config.json", "model.safetensors", "notes.safetensors", "preprocessor_config.json")
    ]


def change_index(change):
    def damage(folder):
        split(folder)
        file = folder / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        file.write_text(json.dumps(change(index) or index))

    return damage


def move_all(shard):
    return change_index(lambda i: i["weight_map"].update({"lm_head.weight": shard}))


def after_split(change):
    def damage(folder):
        split(folder)
        change(folder)

    return damage


BAD_SHARDS = {
    "no JSON": (
        after_split(lambda f: (f / "model.safetensors.index.json").write_text("{")),
        "model.safetensors.index.json: Expecting",
    ),
    "a list": (change_index(lambda i: [i]), "found another structure"),
    "no map": (change_index(lambda i: {"metadata": {}}), "found another structure"),
    "numbers": (move_all(3), "found another structure"),
    "an empty map": (change_index(lambda i: {"weight_map": {}}), "its weight_map is empty"),
    "a path up": (move_all("../model.safetensors"), "beside it, found '../model.safetensors'"),
    "a path": (move_all("/etc/model.safetensors"), "beside it, found '/etc/model.safetensors'"),
    "a URI": (move_all("s3://b/a.safetensors"), "beside it, found 's3://b/a.safetensors'"),
    "a hidden file": (move_all(".safetensors"), "beside it, found '.safetensors'"),
    "another format": (move_all("model.bin"), "names of .safetensors files beside it, found 'mo"),
    "a missing shard": (
        after_split(lambda f: (f / "model-00002-of-00003.safetensors").unlink()),
        r"expected model-00002-of-00003.safetensors, found config.json, .*\.\.\.|pre",
    ),
    "a cut shard": (
        after_split(lambda f: os.truncate(f / "model-00002-of-00003.safetensors", 3000)),
        "model-00002-of-00003.safetensors is damaged or cut short",
    ),
    "a name too many": (
        change_index(lambda i: i["weight_map"].update(x="model-00001-of-00003.safetensors")),
        "model-00001-of-00003.safetensors is not as .*index.json says: it lacks x$",
    ),
    "a name too few": (
        change_index(lambda i: i["weight_map"].pop("lm_head.weight") and None),
        "is not as model.safetensors.index.json says: it also holds lm_head.weight$",
    ),
    "in another shard": (
        move_all("model-00002-of-00003.safetensors"),
        "safetensors is not as .* says: it (lacks|also holds) lm_head.weight$",
    ),
}


@pytest.mark.parametrize("damage", list(BAD_SHARDS))
def test_bad_shards_are_refused_in_one_line(folder, damage):
    change, words = BAD_SHARDS[damage]
    change(folder)
    for read in (ImageGPTForCausalImageModeling.check_pretrained, model_fingerprint):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{folder}: ")


def test_a_classifier_may_begin_with_a_new_head(folder, model):
    names = {0: "cat", 1: "dog", 2: "frog"}
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"score\.weight is not in it and is new"):
        classifier = ImageGPTForImageClassification.from_pretrained(folder, id2label=names)
    trunk = model.transformer.state_dict()
    assert_same_weights(classifier.transformer.state_dict(), trunk)
    assert classifier.config.id2label == names
    assert classifier.config.label2id == {"cat": 0, "dog": 1, "frog": 2}
    head = classifier.score.weight
    assert head.shape == (3, 24)
    # The spread of 72 draws is known to 1 / sqrt(2 * 72) = 0.083 of itself: 7 of that.
    assert abs(head.std().item() / 0.02 - 1) < 0.59
    theirs = transformers.ImageGPTForImageClassification.from_pretrained(folder, num_labels=3)
    assert_same_weights(theirs.transformer.state_dict(), trunk)
    assert theirs.score.weight.shape == head.shape
    # Only where the head is trained next: a job that classifies must not run with a new one.
    with pytest.raises(CheckpointError, match=r"1 missing \(score.weight\)"):
        ImageGPTForImageClassification.check_pretrained(folder)


def test_fields_of_the_configuration_in_place_of_those_stored(folder, model):
    loaded = ImageGPTForCausalImageModeling.from_pretrained(folder, output_hidden_states=True)
    assert loaded(torch.zeros(1, 2, dtype=torch.int64)).hidden_states is not None
    with pytest.raises(TypeError, match="no field 'num_classes'"):
        ImageGPTForCausalImageModeling.from_pretrained(folder, num_classes=3)
    with pytest.raises(CheckpointError, match=r"not of config\.json's shape"):
        ImageGPTForCausalImageModeling.from_pretrained(folder, n_inner=7)


def test_unknown_heads_are_refused():
    with pytest.raises(ValueError, match=r"head to be one of \['causal', 'classification', None\]"):
        load_model("anywhere", device="cpu", dtype=None, head="lm")


# Refusals


def rewrite(change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights) or weights, folder / "model.safetensors")

    return damage


def cut(n_bytes):
    def damage(folder):
        os.truncate(folder / "model.safetensors", n_bytes)

    return damage


def as_pickle(content):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return damage


def cut_pickle(folder):
    as_pickle(load_file(folder / "model.safetensors"))(folder)
    os.truncate(folder / "pytorch_model.bin", 5000)


def set_field(**fields):
    def damage(folder):
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(json.dumps(json.loads(text) | fields))

    return damage


BAD_FOLDERS = {
    "gone": (shutil.rmtree, "there is no folder"),
    "empty": (
        lambda f: [(f / name).unlink() for name in names(f)],
        "expected config.json, found nothing",
    ),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "expected config.json, found model.safetensors, preprocessor_config.json$",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "or pytorch_model.bin.index.json, found config.json, prepr",
    ),
    "cut in the tensors": (cut(9000), "model.safetensors is damaged or cut short"),
    "cut in the header": (cut(100), "model.safetensors is damaged or cut short"),
    "empty file": (cut(0), "model.safetensors is damaged or cut short"),
    "missing": (
        rewrite(lambda w: [w.pop(n) for n in list(w) if ".mlp." in n] and w),
        r"ImageModeling: 8 missing \(transformer.h.0.mlp.c_fc.weight, .*, \.\.\.\)$",
    ),
    "unexpected": (
        rewrite(lambda w: w.update({"transformer.h.0.ln_1.bias": torch.zeros(24)})),
        r"1 unexpected \(transformer.h.0.ln_1.bias\)$",
    ),
    "a bias that is no mask": (
        rewrite(lambda w: w.update({"transformer.h.0.attn.c_attn.masked_bias": torch.zeros(1)})),
        r"1 unexpected \(transformer.h.0.attn.c_attn.masked_bias\)$",
    ),
    "more layers": (set_field(n_layer=3), r"10 missing \(transformer.h.2.ln_1.weight"),
    "fewer layers": (set_field(n_layer=1), r"10 unexpected \(transformer.h.1."),
    "other width": (
        set_field(n_embd=12),
        r"24 not of config.json's shape \(transformer.wte.weight \(17, 24\) for \(17, 12\), ",
    ),
    "integers": (
        rewrite(lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.int8)})),
        r"1 not of a float dtype \(lm_head.weight\)$",
    ),
    "unknown activation": (set_field(activation_function="glu"), "activation_function must be"),
    "heads": (set_field(n_head=5), "config.json: config: n_embd must be a multiple of n_head"),
    "pickled list": (as_pickle([torch.zeros(2)]), "expected a dict of tensors in pytorch_model"),
    "pickled text": (as_pickle({"a": "b"}), "expected a dict of tensors in pytorch_model"),
    "cut pickle": (cut_pickle, "pytorch_model.bin is damaged"),
    "no pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "expected a dict of tensors in pytorch_model.bin, found something else",
    ),
}


@pytest.mark.parametrize("damage", list(BAD_FOLDERS))
def test_a_bad_folder_is_refused_in_one_line(folder, damage):
    change, words = BAD_FOLDERS[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder, device="cpu", dtype=None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(folder) in str(caught.value)


class Payload:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_run(folder, tmp_path, zipped):
    (folder / "model.safetensors").unlink()
    proof = tmp_path / "ran"
    torch.save(
        {"lm_head.weight": Payload(str(proof))},
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match="could run code") as caught:
        load_model(folder, device="cpu", dtype=None)
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    if zipped:
        return
    pickle.loads(pickle.dumps(Payload(str(proof))))  # the test would notice
    assert proof.exists()


def test_a_pickle_with_code_among_shards_is_not_run(folder, tmp_path):
    split(folder, into="pytorch_model.bin")
    proof = tmp_path / "ran"
    shard = folder / "pytorch_model-00002-of-00003.bin"
    torch.save({"lm_head.weight": Payload(str(proof))}, shard)
    with pytest.raises(CheckpointError, match=f"dict of tensors in {shard.name}.*could run code"):
        load_model(folder, device="cpu", dtype=None)
    assert not proof.exists()


# Saving


def test_saving_over_a_model_replaces_it(folder, model):
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "README.md").write_text("kept")
    other = model_of(seed=1)
    other.save_pretrained(folder)
    assert names(folder) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    loaded = load_model(folder, device="cpu", dtype=None)
    assert_same_weights(loaded.state_dict(), other.state_dict())


@pytest.mark.parametrize("stage", range(6))
def test_a_killed_save_leaves_the_old_model_or_none(tmp_path, stage):
    """A process dies just before its n-th change of a file name; 5 changes make a whole save."""
    old, new = model_of(seed=1, resid_pdrop=0.25), model_of(seed=2, resid_pdrop=0.75)
    palettes = [Palette(np.full((16, 3), value)) for value in (-0.5, 0.5)]
    folder = tmp_path / "model"
    save_checkpoint(old, folder, palette=palettes[0])
    torch.save(old.state_dict(), folder / "pytorch_model.bin")
    process = multiprocessing.get_context("fork").Process(
        target=die_while_saving, args=(new, folder, palettes[1], stage)
    )
    process.start()
    process.join(60)
    assert process.exitcode == (0 if stage == 5 else 9)
    if stage in (2, 3, 4):
        with pytest.raises(CheckpointError, match=r"expected model.safetensors, model"):
            load_model(folder, device="cpu", dtype=None)
        return
    loaded = load_model(folder, device="cpu", dtype=None)
    expected = new if stage == 5 else old
    assert_same_weights(loaded.state_dict(), expected.state_dict())
    assert loaded.config.resid_pdrop == expected.config.resid_pdrop
    assert np.array_equal(load_palette(folder).colors, palettes[stage == 5].colors)


def die_while_saving(model, folder, palette, stage):
    changes = iter(range(100))

    def counted(change):
        def call(*args, **kwargs):
            path = os.fspath(args[0])
            if path.startswith(str(folder)) and next(changes) == stage:
                os._exit(9)
            return change(*args, **kwargs)

        return call

    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
    save_checkpoint(model, folder, palette=palette)
    os._exit(0)


def test_a_save_removes_what_dead_ones_have_left_and_nothing_of_one_at_work(tmp_path, model):
    folder = tmp_path / "model"
    processes = multiprocessing.get_context("fork")

    def temporary() -> list[str]:
        return sorted(path.name for path in folder.glob(".saving-*"))

    killed = processes.Process(target=stop_while_saving, args=(model, folder))
    killed.start()
    left = wait_for(temporary)
    killed.kill()
    killed.join()
    assert temporary() == left
    at_work = processes.Process(target=stop_while_saving, args=(model, folder))
    at_work.start()
    try:
        held = wait_for(lambda: [name for name in temporary() if name not in left])
        assert temporary() == held
        model.save_pretrained(folder)
        assert temporary() == held
    finally:
        at_work.kill()
        at_work.join()
    model.save_pretrained(folder)
    assert names(folder) == ["config.json", "model.safetensors"]
    load_model(folder, device="cpu", dtype=None)


def stop_while_saving(model, folder):
    """Saves up to the first rename, at which it stays."""
    os.replace = lambda *_: time.sleep(600)
    model.save_pretrained(folder)


def wait_for(look):
    """Returns what `look` finds once it finds something."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_wrong_saves_are_refused(tmp_path, model, palette):
    for path, arguments, words in (
        ("s3://bucket/model", {}, "expected a local folder to save a model in"),
        (tmp_path / "m", {"image_size": 4}, "give both or none"),
        (tmp_path / "m", {"palette": palette, "image_size": 5}, "at most the model's 16 pos"),
        (tmp_path / "m", {"palette": Palette(np.zeros((3, 3)))}, "16 colors, found 3"),
    ):
        with pytest.raises(CheckpointError, match=words):
            save_checkpoint(model, path, **arguments)
    assert not (tmp_path / "m").exists()
    save_checkpoint(model, tmp_path / "m", palette=palette, image_size=3)
    assert load_image_size(tmp_path / "m") == 3


# Palette, image size, fingerprint, the shipped model


def test_palettes(folder, tmp_path, palette):
    palette.save(tmp_path / "palette.npy")
    MemoryFileSystem().put(str(tmp_path / "palette.npy"), "/palettes/palette.npy")
    for place in (folder, f"file://{folder}", tmp_path / "palette.npy"):
        assert np.array_equal(load_palette(place).colors, palette.colors)
    assert np.array_equal(load_palette("memory://palettes/palette.npy").colors, palette.colors)
    with pytest.raises(CheckpointError, match=r"expected other.npy, found cache, model, palette"):
        load_palette(tmp_path / "other.npy")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clusters": None}, "expected clusters, the palette, found none"),
        ({"clusters": [[0, 0, 2]]}, r"palette colors must lie in \[-1, 1\]"),
        ({"clusters": [[0, 0]]}, "expected clusters of shape"),
        ({"size": {"height": 4, "width": 5}}, "expected a square"),
        ({"size": {"shortest_edge": 4}}, "expected size"),
        ({"image_mean": [0.4, 0.5, 0.5]}, "expected image_mean"),
    ],
)
def test_wrong_preprocessors_are_refused_in_one_line(folder, fields, words):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    read = load_palette if "clusters" in fields else load_image_size
    with pytest.raises(CheckpointError, match=words) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"expected preprocessor_config.json, found config"):
        read(folder)


def test_image_size_in_the_layout_of_the_first_checkpoints(folder):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": 32}))
    assert load_image_size(folder) == 32


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path, model):
    found = model_fingerprint(folder)
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    set_field(transformers_version="0", architectures=None, dtype="x")(pickled)
    MemoryFileSystem().put(str(folder), "/fingerprints/model", recursive=True)
    for same in (str(folder), pickled, "memory://fingerprints/model"):
        assert model_fingerprint(same) == found
    others = [set_field(layer_norm_epsilon=2e-5), set_field(n_ctx=1), rewrite(flip_a_bit)]
    prints = {found}
    for number, change in enumerate(others):
        other = tmp_path / f"other{number}"
        shutil.copytree(folder, other)
        change(other)
        prints.add(model_fingerprint(other))
    assert len(prints) == 4
    assert all(len(one) == 32 for one in prints)


def flip_a_bit(weights):
    weights["lm_head.weight"].view(torch.int32)[3, 5] ^= 1


def test_the_fingerprint_stays_from_version_to_version(tmp_path):
    """Runs are resumed by it. If this fails, runs of earlier versions cannot be resumed."""
    model = model_of(seed=0)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.copy_(torch.arange(weight.numel()).view(weight.shape) + number)
    model.save_pretrained(tmp_path)
    assert model_fingerprint(tmp_path) == "0a689977c0564dca288f0c7519f5645a"


def test_the_shipped_model():
    folder = resolve("embedded")
    model = load_model("embedded", device="cpu", dtype=torch.float32)
    assert load_image_size("embedded") ** 2 == model.config.n_positions == 1024
    assert len(load_palette("embedded")) == model.config.n_colors
    assert model_fingerprint("embedded") == model_fingerprint(folder)
    assert resolve("elsewhere") == "elsewhere"
