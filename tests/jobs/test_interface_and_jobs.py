"""ImageGPT gives what the jobs give, for the same images, ids and seed."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_core.errors import CheckpointError
from igpt_core.heads import ImageGPTForImageClassification
from igpt_core.interface.image_gpt import ImageGPT
from models import save_tiny
from pictures import GOOD, SIDE, photo
from pipeline.batch.model import find_model
from runs import FORWARD, igpt, results

SAMPLED = FORWARD | {"samples": 2, "shard_size": 8, "seed": 11}


@pytest.fixture(autouse=True)
def _one_thread():
    """Of which sums have the jobs' order."""
    torch.set_num_threads(1)


def like_the_job(model: str, *, dtype: torch.dtype = torch.float32, **options) -> ImageGPT:
    return ImageGPT.from_pretrained(
        model, device="cpu", dtype=dtype, batch_size=FORWARD["batch_size"], **options
    )


def pixels(images: list[dict]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in images]


def check_completions(output: Path, found: dict[str, list[Image.Image]]) -> None:
    rows = results(output)
    assert {row["id"] for row in rows} == found.keys()
    for row in rows:
        assert np.array_equal(pixels(row["images"]), [np.asarray(i) for i in found[row["id"]]])


@pytest.mark.parametrize(
    ("job", "here"),
    [
        ({}, {}),
        ({"keep": "3rows", "top_p": 0.8, "temperature": 1.5}, {}),
        ({"keep": "13pixels", "top_k": 3, "crop": "center"}, {"crop": "center"}),
    ],
    ids=["defaults", "nucleus", "top-k"],
)
def test_completions_are_those_of_the_job(in_process, photos, tiny_model, tmp_path, job, here):
    igpt("complete", input=photos, model=tiny_model, output=tmp_path, **SAMPLED | job)
    ids = [row["id"] for row in results(tmp_path)]
    assert len(ids) == GOOD
    options = {name: value for name, value in job.items() if name != "crop"}
    images = [Path(photos, id_) for id_ in ids]
    found = like_the_job(tiny_model, **here).complete(
        images, ids=ids, samples=2, seed=11, **options
    )
    check_completions(tmp_path, dict(zip(ids, found, strict=True)))
    # One by one, without the job's batch: the ids are the names, but for those in deeper folders.
    alone = ImageGPT.from_pretrained(tiny_model, device="cpu", dtype=torch.float32, **here)
    chosen = [place for place, id_ in enumerate(ids) if "/" not in id_][::4]
    same = [
        np.asarray(ours) == np.asarray(theirs)
        for place in chosen
        for ours, theirs in zip(
            alone.complete(images[place], samples=2, seed=11, **options), found[place], strict=True
        )
    ]
    # Another number of rows may round a logit otherwise; that changes a token once in about 10^5.
    assert np.mean(same) > 0.99


def test_completions_in_bfloat16_are_those_of_the_job(in_process, photos, tiny_model, tmp_path):
    """Where a rounding tips a draw in some hundred."""
    options = SAMPLED | {"dtype": "bfloat16"}
    igpt("complete", input=photos, model=tiny_model, output=tmp_path, **options)
    ids = [row["id"] for row in results(tmp_path)]
    model = like_the_job(tiny_model, dtype=torch.bfloat16)
    found = model.complete([Path(photos, id_) for id_ in ids], ids=ids, samples=2, seed=11)
    check_completions(tmp_path, dict(zip(ids, found, strict=True)))


def test_masked_completions_are_those_of_the_job(in_process, photos, tiny_model, tmp_path):
    known = np.random.default_rng(1).random((SIDE, SIDE)) < 0.3
    mask, output = tmp_path / "mask.png", tmp_path / "run"
    Image.fromarray(np.where(known, 0, 255).astype(np.uint8)).save(mask)
    options = SAMPLED | {"keep": 0, "mask": mask}
    igpt("complete", input=photos, model=tiny_model, output=output, **options)
    ids = [row["id"] for row in results(output)]
    found = like_the_job(tiny_model).complete(
        [Path(photos, id_) for id_ in ids], ids=ids, samples=2, seed=11, keep=0, known=known
    )
    check_completions(output, dict(zip(ids, found, strict=True)))


def test_samples_are_those_of_the_job(in_process, tiny_model, tmp_path):
    options = {name: FORWARD[name] for name in ("device", "dtype", "batch_size")}
    options |= {"seed": 3, "top_k": 20, "shard_size": 8}
    igpt("sample", count=11, model=tiny_model, output=tmp_path, **options)
    rows = results(tmp_path)
    found = like_the_job(tiny_model).sample(11, seed=3, top_k=20)
    assert np.array_equal(pixels([row["image"] for row in rows]), [np.asarray(i) for i in found])


def test_scores_are_those_of_the_job(in_process, photos, tiny_model, tmp_path):
    igpt("score", input=photos, model=tiny_model, output=tmp_path, map=True, **FORWARD)
    rows = results(tmp_path)
    found = like_the_job(tiny_model).score([Path(photos, row["id"]) for row in rows])
    for row, score in zip(rows, found, strict=True):
        assert np.array_equal(np.float32(row["nll_map"]), score.nll_map.ravel())
        assert row["nll"] == np.float32(score.nll)
        # The job makes bits of rounded nats.
        assert row["bits_per_pixel"] == pytest.approx(score.bits_per_pixel, rel=1e-6)


def test_embeddings_are_those_of_the_job(in_process, photos, tiny_model, tmp_path):
    igpt("embed", input=photos, model=tiny_model, output=tmp_path, layers="0,2", **FORWARD)
    rows = results(tmp_path)
    found = like_the_job(tiny_model).embed([Path(photos, r["id"]) for r in rows], layers="0,2")
    for row, features in zip(rows, found, strict=True):
        for layer in (0, 2):
            assert np.array_equal(np.float32(row[f"embedding_{layer}"]), features[layer])


def test_classes_are_those_of_the_job(in_process, photos, tmp_path):
    names = ["cat", "dog", "frog"]
    model = save_tiny(tmp_path / "model", ImageGPTForImageClassification, std=0.5, id2label=names)
    igpt("classify", input=photos, model=model, output=tmp_path / "run", **FORWARD)
    rows = results(tmp_path / "run")
    found = like_the_job(model).classify([Path(photos, row["id"]) for row in rows])
    assert len({row["predicted_name"] for row in rows}) > 1
    for row, classes in zip(rows, found, strict=True):
        label, probability = classes[0]
        assert (label, np.float32(probability)) == (row["predicted_name"], row["probability"])


def test_one_file_as_input_has_its_name_as_id(in_process, tiny_model, tmp_path):
    photo(5).save(tmp_path / "photo.png")
    options = {"input": tmp_path / "photo.png", "output": tmp_path / "run", "model": tiny_model}
    igpt("complete", **options, device="cpu", dtype="float32", seed=2, batch_size=2, samples=2)
    (row,) = results(tmp_path / "run")
    model = ImageGPT.from_pretrained(tiny_model, device="cpu", dtype=torch.float32, batch_size=2)
    found = model.complete(tmp_path / "photo.png", seed=2, samples=2)
    assert np.array_equal(pixels(row["images"]), [np.asarray(image) for image in found])


def test_a_folder_that_lacks_something_is_refused_in_the_same_words(tmp_path):
    def both_refuse(here, head: str | None) -> str:
        with pytest.raises(CheckpointError) as by_core:
            here()
        with pytest.raises(CheckpointError) as by_job:
            find_model(str(tmp_path), {}, head=head)
        assert str(by_core.value) == str(by_job.value)
        return str(by_core.value)

    save_tiny(tmp_path, ImageGPTForImageClassification, std=0.5)
    classifier = ImageGPT.from_pretrained(tmp_path)
    assert "has no next-pixel head" in both_refuse(classifier.sample, "causal")
    save_tiny(tmp_path, std=0.5)
    model = ImageGPT.from_pretrained(tmp_path)
    no_classes = both_refuse(lambda: model.classify(photo(0)), "classification")
    assert "has no classification head" in no_classes
    preprocessor = tmp_path / "preprocessor_config.json"
    preprocessor.write_text(preprocessor.read_text().replace(f": {SIDE}", ": 9"))
    unfit = both_refuse(lambda: ImageGPT.from_pretrained(tmp_path), None)
    assert "9 x 9 pixels and 32 colors; next: a model folder whose files fit" in unfit
