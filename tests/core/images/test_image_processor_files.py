"""ImageGPTImageProcessor in and out of dicts, text and files, by the arguments of transformers."""

import inspect
import json

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from transformers import ImageGPTImageProcessorPil

from igpt_core import CheckpointError, ImageGPTFeatureExtractor, ImageGPTImageProcessor

CLUSTERS = np.random.default_rng(7).uniform(-1, 1, (8, 3)).astype(np.float32)
SIZE = {"height": 4, "width": 6}


@pytest.fixture
def made() -> ImageGPTImageProcessor:
    return ImageGPTImageProcessor(CLUSTERS, size=SIZE, resample=Image.Resampling.BICUBIC)


@pytest.fixture
def folder(made, tmp_path):
    made.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_dicts_move_both_ways(made):
    assert ImageGPTImageProcessor.from_dict(made.to_dict()).to_dict() == made.to_dict()
    theirs = ImageGPTImageProcessorPil.from_dict(made.to_dict())
    assert ImageGPTImageProcessor.from_dict(theirs.to_dict()).to_dict() == made.to_dict()
    theirs = ImageGPTImageProcessorPil(CLUSTERS, size=SIZE, device="cuda", do_convert_rgb=False)
    back = ImageGPTImageProcessor.from_dict(theirs.to_dict())
    assert back.to_dict() == ImageGPTImageProcessor(CLUSTERS, size=SIZE).to_dict()
    with pytest.raises(ValueError, match="expected do_center_crop False, found True"):
        ImageGPTImageProcessor.from_dict({"do_center_crop": True})


def test_arguments_beat_the_dict(made):
    given = {"do_resize": False, "size": 3, "use_fast": True}
    ours, rest = ImageGPTImageProcessor.from_dict(
        made.to_dict(), return_unused_kwargs=True, foo=1, **given
    )
    theirs, their_rest = ImageGPTImageProcessorPil.from_dict(
        made.to_dict(), return_unused_kwargs=True, foo=1, do_resize=False, size=3
    )
    assert rest == {"foo": 1}
    assert their_rest["foo"] == 1  # 5 returns those that it used too, 4.34 does not
    assert (ours.do_resize, ours.size) == (False, {"height": 3, "width": 3})
    assert (theirs.do_resize, theirs.size.height, theirs.size.width) == (False, 3, 3)
    assert ImageGPTImageProcessor.from_dict(made.to_dict(), **given).to_dict() == ours.to_dict()
    with pytest.raises(TypeError, match="foo is no argument"):
        ImageGPTImageProcessor.from_dict(made.to_dict(), foo=1)


def test_text_and_files(made, tmp_path):
    assert json.loads(made.to_json_string()) == made.to_dict()
    theirs = ImageGPTImageProcessorPil(CLUSTERS, size=SIZE, resample=3).to_json_string()
    assert json.loads(made.to_json_string()).items() <= json.loads(theirs).items()
    file = tmp_path / "any.json"
    made.to_json_file(file)
    assert file.read_text() == made.to_json_string()
    assert ImageGPTImageProcessor.from_json_file(str(file)).to_dict() == made.to_dict()
    assert ImageGPTImageProcessorPil.from_json_file(file).size.width == 6
    file.write_text(theirs)
    assert ImageGPTImageProcessor.from_json_file(file).to_dict() == made.to_dict()
    file.write_text('{"size": 0}')
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: any.json: expected size"):
        ImageGPTImageProcessor.from_json_file(file)
    with pytest.raises(FileNotFoundError):
        ImageGPTImageProcessor.from_json_file(tmp_path / "none.json")


def test_saving_takes_the_names_of_transformers(made, tmp_path):
    theirs = ImageGPTImageProcessorPil(CLUSTERS).save_pretrained(save_directory=tmp_path / "a")
    found = made.save_pretrained(save_directory=tmp_path / "a", push_to_hub=False)
    assert found == [str(path) for path in theirs] == [str(tmp_path / "a/preprocessor_config.json")]
    assert (tmp_path / "a/preprocessor_config.json").read_text() == made.to_json_string()
    with pytest.raises(
        TypeError, match=r"push_to_hub.*found True.*next: huggingface_hub"
    ) as caught:
        made.save_pretrained(tmp_path / "b", push_to_hub=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("cls", [ImageGPTImageProcessor, ImageGPTFeatureExtractor])
def test_arguments_beat_the_file(cls, made, folder):
    found, rest = cls.from_pretrained(
        pretrained_model_name_or_path=folder, return_unused_kwargs=True, do_resize=False, foo=1
    )
    assert (found.do_resize, rest) == (False, {"foo": 1})
    assert found.to_dict() == {**made.to_dict(), "do_resize": False}


def test_a_file_and_a_subfolder(made, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for path in (folder / "preprocessor_config.json", "preprocessor_config.json"):
        assert ImageGPTImageProcessor.from_pretrained(path).to_dict() == made.to_dict()
        assert ImageGPTImageProcessorPil.from_pretrained(path).size.width == 6
    with pytest.raises(CheckpointError, match=r"no folder preprocessor_config.json/saved"):
        ImageGPTImageProcessor.from_pretrained("preprocessor_config.json", subfolder="saved")
    found = ImageGPTImageProcessor.from_pretrained(folder.parent, subfolder="saved")
    assert found.to_dict() == made.to_dict()
    found = ImageGPTImageProcessorPil.from_pretrained(folder.parent, subfolder="saved")
    assert found.size.width == 6


def test_how_the_hub_is_asked(made, folder, monkeypatch):
    """The arguments arrive at huggingface_hub; test_hub.py has what it makes of them."""
    asked = []

    def download(repository, name, **options):
        asked.append({"repository": repository, "name": name, **options})
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(folder)
    given = {"cache_dir": "here", "force_download": True, "local_files_only": True}
    found = ImageGPTImageProcessor.from_pretrained(
        "owner/name", use_auth_token="secret", revision="old", do_resize=False, **given
    )
    assert found.to_dict() == {**made.to_dict(), "do_resize": False}
    expected = {"repository": "owner/name", "name": "preprocessor_config.json"}
    expected |= {**given, "token": "secret", "revision": "old"}
    assert len(asked) == 1
    assert expected.items() <= asked[0].items()


def test_what_means_nothing_for_a_folder_is_passed_over(made, folder):
    for given in (
        {"cache_dir": "x", "force_download": True, "local_files_only": True, "token": "y"},
        {"use_auth_token": True},
        {"revision": "main"},
        {"trust_remote_code": True, "resume_download": True, "proxies": None},
        {"use_fast": True},
        {"backend": "pil"},
    ):
        assert ImageGPTImageProcessor.from_pretrained(folder, **given).to_dict() == made.to_dict()


def test_what_is_not_there_is_refused_by_its_name(folder):
    with pytest.raises(TypeError, match=r"proxies.*found .*; next: ") as caught:
        ImageGPTImageProcessor.from_pretrained(folder, proxies={"https": "x"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["do_convert_rgb", "default_to_square"])
def test_what_is_done_anyway_cannot_be_turned_off(name, made):
    """Past bug: False was accepted, and nothing happened."""
    with pytest.raises(ValueError, match=f"expected {name} True, found False"):
        ImageGPTImageProcessor(**{name: False})
    with pytest.raises(ValueError, match=f"expected {name} True, found False"):
        made(Image.new("RGB", (5, 5)), **{name: False})


def test_what_only_processors_of_other_models_use_is_refused():
    """Past bug: it was accepted, and nothing happened."""
    with pytest.raises(TypeError, match="image_seq_length is no argument"):
        ImageGPTImageProcessor(image_seq_length=3)


def test_every_method_of_transformers_is_taken_with_its_arguments():
    """Names by which callers may give them."""
    for name in ("to_json_string", "to_json_file", "from_json_file", "save_pretrained"):
        theirs = inspect.signature(getattr(ImageGPTImageProcessorPil, name)).parameters
        ours = inspect.signature(getattr(ImageGPTImageProcessor, name)).parameters
        assert list(ours) == [word for word in theirs if word != "kwargs"], name
    for name in ("from_pretrained", "from_dict"):
        first = next(iter(inspect.signature(getattr(ImageGPTImageProcessorPil, name)).parameters))
        assert (
            next(iter(inspect.signature(getattr(ImageGPTImageProcessor, name)).parameters)) == first
        )
