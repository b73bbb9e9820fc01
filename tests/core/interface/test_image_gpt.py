"""ImageGPT, one image or a few: held against transformers and against each other."""

import copy
import io
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from igpt_core.errors import CheckpointError, NonFiniteError
from igpt_core.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from igpt_core.images.model_palette import load_palette
from igpt_core.images.raster_formats import ImageError
from igpt_core.interface import image_gpt, model_batches
from igpt_core.interface.batch_size import Memory
from igpt_core.interface.image_gpt import ImageGPT
from igpt_core.model import placement
from igpt_core.model.checkpoint import save_checkpoint
from models import save_tiny
from pictures import SIDE, encoded, photo

START = 32  # of the tiny model: after its 32 colors
NAMES = ["cat", "dog", "frog"]


@pytest.fixture(scope="module")
def igpt(tiny_model) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_model, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    return save_tiny(folder, ImageGPTForImageClassification, std=0.5, id2label=NAMES)


def tokens_by_pillow(image: Image.Image, model: str) -> np.ndarray:
    """Quantizes by Pillow and the distances alone: (SIDE, SIDE)."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    colors = load_palette(model).colors.astype(np.float64)
    distances = ((pixels[..., None, :] / 127.5 - 1 - colors) ** 2).sum(axis=-1)
    return distances.argmin(axis=-1)


def decoded(tokens: np.ndarray, model: str) -> np.ndarray:
    return np.rint((load_palette(model).colors[tokens] + 1) * 127.5).astype(np.uint8)


def arrays(images: list[Image.Image]) -> np.ndarray:
    assert all(image.mode == "RGB" and image.size == (SIDE, SIDE) for image in images)
    return np.stack([np.asarray(image) for image in images])


def causal(model: str) -> transformers.ImageGPTForCausalImageModeling:
    return transformers.ImageGPTForCausalImageModeling.from_pretrained(model).eval()


# --- against transformers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "likeliest", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}], ids=lambda x: next(iter(x))
)
def test_the_likeliest_completion_is_transformers_greedy_one(igpt, tiny_model, likeliest):
    tokens = tokens_by_pillow(photo(0), tiny_model).ravel()[: SIDE * SIDE // 4]
    theirs = causal(tiny_model).generate(
        torch.tensor([[START, *tokens]]), max_length=SIDE**2 + 1, do_sample=False
    )
    (ours,) = igpt.complete(photo(0), keep=0.25, **likeliest)
    expected = decoded(theirs[0, 1:].numpy().reshape(SIDE, SIDE), tiny_model)
    assert np.array_equal(np.asarray(ours), expected)
    (greedy,) = igpt.sample(seed=5, **likeliest)
    theirs = causal(tiny_model).generate(torch.tensor([[START]]), max_length=SIDE**2 + 1)
    expected = decoded(theirs[0, 1:].numpy().reshape(SIDE, SIDE), tiny_model)
    assert np.array_equal(np.asarray(greedy), expected)


@torch.no_grad()
def test_scores_are_the_nats_of_transformers(igpt, tiny_model):
    tokens = torch.from_numpy(tokens_by_pillow(photo(1), tiny_model)).reshape(1, -1)
    fed = torch.cat([torch.tensor([[START]]), tokens[:, :-1]], dim=1)
    chances = causal(tiny_model)(fed).logits.double().log_softmax(dim=2)
    nats = -chances.gather(2, tokens[..., None]).reshape(SIDE, SIDE).numpy()
    score = igpt.score(photo(1))
    assert score.nll_map.dtype == np.float32
    # A pixel's nats are of order 10; float32 sums in another order move them by some 1e-5.
    assert np.allclose(score.nll_map, nats, rtol=0, atol=1e-4)
    assert score.nll == pytest.approx(nats.mean(), abs=1e-5)
    assert 2**score.bits_per_pixel == pytest.approx(np.exp(nats.mean()), rel=1e-4)


@torch.no_grad()
def test_embeddings_are_mean_hidden_states_of_transformers(igpt, tiny_model):
    tokens = torch.from_numpy(tokens_by_pillow(photo(2), tiny_model)).reshape(1, -1)
    fed = torch.cat([torch.tensor([[START]]), tokens[:, :-1]], dim=1)
    states = causal(tiny_model).transformer(fed, output_hidden_states=True).hidden_states
    found = igpt.embed(photo(2), layers="all")
    assert list(found) == [0, 1, 2]
    for layer, features in found.items():
        assert features.dtype == np.float32
        # float32 sums in another order: features of order 1 move by some 1e-6
        assert np.allclose(features, states[layer][0].mean(dim=0), rtol=0, atol=1e-4)
    assert list(igpt.embed(photo(2))) == [1], "the middle"
    last = igpt.embed(photo(2), layers="2")[2]
    for layers in (2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), [np.int64(2)]):
        assert np.array_equal(igpt.embed(photo(2), layers=layers)[2], last)
    assert list(igpt.embed(photo(2), layers=np.arange(3))) == [0, 1, 2]


@torch.no_grad()
def test_classes_are_those_of_transformers(classifier_folder):
    theirs = transformers.ImageGPTForImageClassification.from_pretrained(classifier_folder).eval()
    igpt = ImageGPT.from_pretrained(classifier_folder, dtype=torch.float32)
    images = [photo(i) for i in range(6)]
    found = igpt.classify(images)
    assert len({classes[0][0] for classes in found}) > 1
    for image, classes in zip(images, found, strict=True):
        tokens = torch.from_numpy(tokens_by_pillow(image, classifier_folder)).reshape(1, -1)
        chances = theirs(tokens).logits[0].softmax(dim=0).tolist()
        expected = sorted(zip(NAMES, chances, strict=True), key=lambda pair: -pair[1])
        assert [label for label, _ in classes] == [label for label, _ in expected]
        # logits of order 1 to 10 move by some 1e-6 where float32 is summed in another order
        assert np.allclose([p for _, p in classes], [p for _, p in expected], rtol=0, atol=1e-4)


# --- images of any kind ---------------------------------------------------------------------------


def on_white(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, np.float64)
    opacity = levels[..., 3:] / 255
    return Image.fromarray(
        np.rint(levels[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
    )


def translucent() -> Image.Image:
    image = photo(3)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


GRAY = photo(3).convert("L")
KINDS = {
    "RGB": (photo(3), photo(3)),
    "gray": (GRAY, Image.merge("RGB", [GRAY] * 3)),
    "RGBA": (translucent(), on_white(translucent())),
    "CMYK": (photo(3).convert("CMYK"), photo(3).convert("CMYK").convert("RGB")),
    "bytes": (encoded(photo(3)), photo(3)),
    "array": (np.asarray(photo(3)), photo(3)),
    "gray array": (np.asarray(GRAY), Image.merge("RGB", [GRAY] * 3)),
    "RGBA array": (np.asarray(translucent()), on_white(translucent())),
    "floats": (np.asarray(photo(3)) / 255, photo(3)),
    "tensor": (torch.from_numpy(np.array(photo(3))), photo(3)),
    "three rows": (np.asarray(photo(3))[:3], photo(3).crop((0, 0, 40, 3))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind(igpt, tiny_model, kind):
    image, as_rgb = KINDS[kind]
    whole = igpt.complete(image, keep=f"{SIDE**2 - 1}pixels")[0]
    expected = decoded(tokens_by_pillow(as_rgb, tiny_model), tiny_model)
    known = np.asarray(whole).reshape(-1, 3)[:-1]
    # RGBA is put on white by Pillow in integers: a level off, which may be another color
    differ = (known != expected.reshape(-1, 3)[:-1]).any(axis=1).mean()
    assert differ <= (0.05 if "RGBA" in kind else 0)


def test_files_are_named_by_themselves_and_others_by_number(igpt, tmp_path):
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for i, path in enumerate(paths):
        photo(i).save(path)
    by_path = igpt.complete(paths, seed=3)
    named = igpt.complete([photo(0), photo(1)], seed=3, ids=["one.png", "two.png"])
    assert np.array_equal(arrays([a for (a,) in by_path]), arrays([a for (a,) in named]))
    assert igpt.complete(str(paths[0]), seed=3) == by_path[0]
    numbered = igpt.complete([photo(0), photo(1)], seed=3)
    assert igpt.complete(photo(1), seed=3, ids="1") == numbered[1] != named[1]
    assert igpt.complete(photo(0), seed=3) == numbered[0]
    assert igpt.complete(photo(0), seed=4) != numbered[0]


def test_each_of_a_list_is_as_alone(igpt, classifier_folder):
    images = [photo(i) for i in range(5)]
    classifier = ImageGPT.from_pretrained(classifier_folder, dtype=torch.float32)
    scores, features = igpt.score(images), igpt.embed(images)
    classes = classifier.classify(tuple(images))
    # Other numbers of rows may round otherwise.
    for i, image in enumerate(images):
        assert np.allclose(scores[i].nll_map, igpt.score(image).nll_map, rtol=0, atol=1e-4)
        assert np.allclose(features[i][1], igpt.embed(image)[1], rtol=0, atol=1e-4)
        alone = classifier.classify(image)
        assert [name for name, _ in classes[i]] == [name for name, _ in alone]
    assert len({score.nll for score in scores}) == 5
    nothing = [igpt.complete([]), igpt.score([]), igpt.embed([]), classifier.classify([])]
    assert nothing == [[], [], [], []]


def test_crop_and_resize_are_those_of_load_pixels(tiny_model):
    wide, middle = photo(4, size=(60, 20)), photo(4, size=(60, 20)).crop((20, 0, 40, 20))
    squashing = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32)
    cropping = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32, crop="center")
    assert cropping.score(wide).nll == squashing.score(middle).nll != squashing.score(wide).nll
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    large = encoded(Image.fromarray(noise), "JPEG")
    fast = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32, resize="fast")
    reduced = Image.open(io.BytesIO(large))
    reduced.draft(None, (2 * SIDE, 2 * SIDE))
    assert reduced.size == (20, 20)
    assert fast.score(large).nll == squashing.score(reduced).nll != squashing.score(large).nll


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "given"), [(0.5, 32), ("0.25", 16), ("3rows", 24), ("13pixels", 13), (0.01, None)]
)
def test_what_is_kept_stays_and_the_next_pixel_is_drawn(igpt, tiny_model, keep, given):
    if given is None:  # of 8 rows none
        with pytest.raises(ValueError, match=r"keep 0.01 .* is 0 pixels: expected at least one"):
            igpt.complete(photo(6), keep=keep)
        return
    samples = arrays(igpt.complete(photo(6), keep=keep, samples=8)).reshape(8, -1, 3)
    whole = decoded(tokens_by_pillow(photo(6), tiny_model), tiny_model).reshape(-1, 3)
    assert (samples[:, :given] == whole[:given]).all()
    # Eight draws of the same color by chance: with the tiny model's probabilities below 1e-3.
    assert (samples[:, given] != samples[0, given]).any()


def test_the_first_samples_are_the_same_whether_there_are_more(igpt):
    two, five = (arrays(igpt.complete(photo(7), samples=n)) for n in (2, 5))
    assert np.array_equal(two, five[:2])
    assert len({sample.tobytes() for sample in five}) == 5
    three, more = (arrays(igpt.sample(n, seed=1)) for n in (3, 7))
    assert np.array_equal(three, more[:3])


def test_known_pixels_stay_and_a_mask_may_be_an_image_or_bools(igpt, tiny_model):
    known = np.random.default_rng(0).random((SIDE, SIDE)) < 0.4
    black = Image.fromarray(np.where(known, 0, 255).astype(np.uint8))
    found = igpt.complete(photo(8), keep=0, known=known, samples=3)
    whole = decoded(tokens_by_pillow(photo(8), tiny_model), tiny_model)
    for sample in arrays(found):
        assert (sample[known] == whole[known]).all()
        assert not np.array_equal(sample[~known], whole[~known])
    for mask in (black, encoded(black), np.asarray(black), torch.from_numpy(known)):
        assert igpt.complete(photo(8), keep=0, known=mask, samples=3) == found
    pair = igpt.complete([photo(8)] * 2, ids=["0", "0"], keep=0, known=[known, ~known], samples=3)
    assert pair[0] == found
    assert (arrays(pair[1])[:, ~known] == whole[~known]).all()
    assert igpt.complete([photo(8)] * 2, ids=["0", "0"], keep=0, known=known, samples=3)[1] == found


def test_masks_are_cropped_as_images_are(tiny_model):
    igpt = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32, crop="center")
    known = np.arange(SIDE**2).reshape(SIDE, SIDE) % 3 == 0
    wide = np.full((SIDE, 3 * SIDE), 255, np.uint8)
    wide[:, SIDE : 2 * SIDE] = np.where(known, 0, 255)
    found = igpt.complete(photo(9), keep=0, known=wide)
    assert found == igpt.complete(photo(9), keep=0, known=known)
    assert found != igpt.complete(photo(9), keep=0, known=~known)


# --- batches, dtype, progress ---------------------------------------------------------------------


def test_batches_are_bounded(tiny_model, monkeypatch):
    igpt = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32)
    images = [photo(i) for i in range(7)]
    masks = [np.random.default_rng(i).random((SIDE, SIDE)) < 0.5 for i in range(7)]
    together = igpt.score(images), igpt.complete(images, keep=0, known=masks, samples=2)
    fed, at_once = [], []

    def scored(model, tokens):
        fed.append(len(tokens))
        return image_token_nll(model, tokens)

    def completed(model, prompt, **options):
        at_once.append((len(prompt), options["at_once"] * options["n_samples"]))
        return core_complete(model, prompt, **options)

    image_token_nll, core_complete = image_gpt.token_nll, model_batches.complete
    monkeypatch.setattr(image_gpt, "token_nll", scored)
    monkeypatch.setattr(model_batches, "complete", completed)
    igpt._model.memory = Memory(1 << 30, most_images=3, most_sequences=6)
    for ours, theirs in zip(igpt.score(images), together[0], strict=True):
        assert np.allclose(ours.nll_map, theirs.nll_map, rtol=0, atol=1e-4)
    assert igpt.complete(images, keep=0, known=masks, samples=2) == together[1]
    assert fed == [3, 3, 3], "the last one padded"
    assert at_once == [(7, 6)], "completion fills the places of those that are drawn"
    igpt.score(images[:4])
    assert fed[3:] == [2, 2], "as even as can be"
    smaller = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32, batch_size=4)
    smaller.score(images[:2])
    smaller.complete(images[:3], samples=2)
    assert (fed[5:], at_once[1:]) == ([4], [(3, 4)])


def test_memory_bounds_batches_too(tiny_model, monkeypatch):
    """As of a job with --batch-size auto: what one image takes decides."""
    igpt = ImageGPT.from_pretrained(tiny_model, device="cpu", dtype=torch.float32)
    assert igpt._model.memory == Memory(8 << 30, most_images=16, most_sequences=32)
    model = replace(igpt._model, memory=Memory(1, most_images=16, most_sequences=32))
    assert model._images_at_once(9, SIDE**2, 2) == 1
    fed = []
    model.forward(
        lambda tokens: fed.append(len(tokens)) or tokens,
        np.zeros((3, SIDE**2), np.int64),
        doing="score",
        results="likelihoods",
    )
    assert fed == [1, 1, 1]
    cuda = torch.device("cuda")
    monkeypatch.setattr(image_gpt, "best_device", lambda _: cuda)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 20 << 30))
    assert ImageGPT.from_pretrained(tiny_model)._model.memory == Memory.of_gpu(10 << 30)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_dtype_is_what_the_processor_multiplies(tiny_model, monkeypatch, native, dtype):
    monkeypatch.setattr(placement, "multiplies_bfloat16", lambda: native)
    igpt = ImageGPT.from_pretrained(tiny_model, device="cpu")
    assert (igpt.dtype, igpt.device.type) == (dtype, "cpu")
    rough = igpt.embed(photo(0))[1]
    exact = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32).embed(photo(0))[1]
    assert np.array_equal(rough, exact) is (dtype == torch.float32)
    assert np.allclose(rough, exact, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits


def test_models_that_overflow_are_named_with_their_dtype(tmp_path):
    folders = []
    for cls in (ImageGPTForCausalImageModeling, ImageGPTForImageClassification):
        folder = tmp_path / cls.__name__
        save_tiny(folder, cls, std=0.3)
        model = cls.from_pretrained(folder)
        model.transformer.ln_f.weight.data[:] = torch.inf
        save_checkpoint(model, folder)
        folders.append(folder)
    igpt = ImageGPT.from_pretrained(folders[0], dtype=torch.bfloat16)
    classifier = ImageGPT.from_pretrained(folders[1], dtype=torch.bfloat16)
    for work, results in [
        (lambda: igpt.complete(photo(0)), "logits"),
        (igpt.sample, "logits"),
        (lambda: igpt.score(photo(0)), "likelihoods"),
        (lambda: igpt.embed(photo(0), layers=2), "features"),
        (lambda: classifier.classify(photo(0)), "logits"),
    ]:
        with pytest.raises(NonFiniteError, match=f"expected finite {results}, .* in bfloat16"):
            work()
    assert igpt.embed(photo(0), layers=1), "below what overflows"


def test_weights_are_read_once_for_a_head_and_embed_needs_none(tiny_model, monkeypatch):
    read = []
    core_prepacked = model_batches.prepacked
    monkeypatch.setattr(model_batches, "prepacked", lambda m: read.append(m) or core_prepacked(m))
    igpt = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32)
    assert read == []
    for work in (igpt.score, igpt.complete, igpt.embed):
        work(photo(0))
    assert len(read) == 1
    other = ImageGPT.from_pretrained(tiny_model, dtype=torch.float32)
    features = other.embed(photo(0))[1]
    assert not hasattr(read[1], "lm_head")
    assert np.array_equal(features, igpt.embed(photo(0))[1])


def test_a_model_of_any_filesystem(igpt, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    archive = shutil.make_archive(str(tmp_path / "models"), "zip", tiny_model)
    options = {"fo": archive}
    remote = ImageGPT.from_pretrained("zip://", dtype=torch.float32, storage_options=options)
    assert remote.score(photo(0)).nll == igpt.score(photo(0)).nll
    assert remote.complete(photo(0)) == igpt.complete(photo(0))


# --- what is refused ------------------------------------------------------------------------------

BROKEN = encoded(photo(0, size=(99, 99)), "JPEG")[:900]
REFUSED = [
    (lambda g: g.score("nowhere.png"), ImageError, "expected an image file, found No such file"),
    (lambda g: g.score(BROKEN), ImageError, "expected a whole JPEG image of 99 x 99, found trunc"),
    (lambda g: g.score([photo(0), b"text"]), ImageError, r"images\[1\]: expected an encoded image"),
    (lambda g: g.score(7), TypeError, "expected an image as a path, .* found int"),
    (lambda g: g.score([[photo(0)]]), TypeError, r"images\[0\]: expected .* found list"),
    (lambda g: g.score(np.full((8, 8), -1)), ImageError, "expected pixel values in .* found -1"),
    (lambda g: g.complete(photo(0), keep=1), ValueError, "next: 1rows or 1pixels are numbers of"),
    (lambda g: g.complete(photo(0), keep=-0.5), ValueError, "such as 16rows .* found -0.5"),
    (lambda g: g.complete(photo(0), keep="8rows"), ValueError, "is 64 pixels: expected at least"),
    (lambda g: g.complete(photo(0), keep=0), ValueError, "is 0 pixels: expected at least one"),
    (lambda g: g.complete(photo(0), samples=0), ValueError, "samples must be 1 or more, found 0"),
    (lambda g: g.complete(photo(0), top_p=2), ValueError, r"top_p must be in \(0, 1\], found 2"),
    (
        lambda g: g.complete(photo(0), ids=["a"]),
        ValueError,
        r"expected one id, a string, .* \['a'\]",
    ),
    (lambda g: g.complete([photo(0)], ids="a"), ValueError, "expected a list of 1 ids .* 'a'"),
    (lambda g: g.complete([photo(0)], ids=["a", "b"]), ValueError, "expected a list of 1 ids"),
    (
        lambda g: g.complete(photo(0), known=np.zeros((9, 9), bool)),
        ValueError,
        r"known: expected an array of bool \(8, 8\), .* found \(9, 9\); next: an image",
    ),
    (
        lambda g: g.complete([photo(0)], known=[photo(0)] * 3),
        ValueError,
        "known: expected one mask or 1, as many as images, found 3",
    ),
    (
        lambda g: g.complete(photo(0), known="nowhere.png"),
        ImageError,
        "known: expected an image file, found No such file",
    ),
    (lambda g: g.sample(0), ValueError, "n must be 1 or more, found 0"),
    (lambda g: g.embed(photo(0), layers=1.0), TypeError, "layers must be .* whole .*found 1.0"),
    (lambda g: g.embed(photo(0), layers=None), TypeError, "layers must be .* found None"),
    (lambda g: g.embed(photo(0), layers=3), ValueError, "numbers from 0 to 2 .* found '3'"),
    (
        lambda g: g.classify(photo(0)),
        CheckpointError,
        "tiny-model0 has no classification head; next: igpt finetune gives it one",
    ),
]


@pytest.mark.parametrize(("work", "error", "says"), REFUSED, ids=[says for *_, says in REFUSED])
def test_mistakes_are_one_line(igpt, work, error, says):
    with pytest.raises(error, match=says) as found:
        work(igpt)
    assert "\n" not in str(found.value)


def test_models_that_cannot_are_refused(tiny_model, classifier_folder, tmp_path):
    classifier = ImageGPT.from_pretrained(classifier_folder)
    for work in (classifier.sample, lambda: classifier.score(photo(0))):
        with pytest.raises(CheckpointError, match="has no next-pixel head; next: another model"):
            work()
    assert list(classifier.embed(photo(0))) == [1]
    number = save_tiny(
        tmp_path / "number", ImageGPTForImageClassification, std=0.5, id2label=["price"]
    )
    with pytest.raises(CheckpointError, match="whose one output is a number; next: igpt finetune"):
        ImageGPT.from_pretrained(number).classify(photo(0))
    unfit = Path(save_tiny(tmp_path / "unfit", std=0.3), "preprocessor_config.json")
    unfit.write_text(unfit.read_text().replace(f'"height": {SIDE}', '"height": 9'))
    with pytest.raises(CheckpointError, match="expected a square"):
        ImageGPT.from_pretrained(unfit.parent)
    unfit.write_text(unfit.read_text().replace(f'"width": {SIDE}', '"width": 9'))
    with pytest.raises(
        CheckpointError, match=r"has 64 positions .* 9 x 9 pixels .*; next: a model"
    ):
        ImageGPT.from_pretrained(unfit.parent)
    with pytest.raises(CheckpointError, match="there is no folder nowhere: give a model's folder"):
        ImageGPT.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="batch_size must be 1 or more, found 0"):
        ImageGPT.from_pretrained(tiny_model, batch_size=0)
    for wrong, error, message in (
        ({"resize": "x"}, ValueError, "expected resize 'exact' or 'fast', found 'x'"),
        ({"crop": "x"}, ValueError, "expected crop 'squash' or 'center', found 'x'"),
        ({"device": "foo"}, ValueError, "expected a device such as 'cpu' .*, found 'foo'"),
        ({"device": 1.5}, ValueError, "expected a device such as 'cpu' .*, found 1.5"),
        ({"path_or_uri": None}, TypeError, "expected a model's folder, .* found NoneType"),
    ):
        with pytest.raises(error, match=message) as found:
            ImageGPT.from_pretrained(**{"path_or_uri": tiny_model, **wrong})
        assert "\n" not in str(found.value)
    with pytest.raises(TypeError, match=r"expected dtype to be auto, float32, .*found 'int8'"):
        ImageGPT.from_pretrained(tiny_model, dtype="int8")
    few = ImageGPT.from_pretrained(tiny_model, batch_size=2)
    with pytest.raises(ValueError, match="batch_size 2 is below the 3 samples of an image"):
        few.complete(photo(0), samples=3)


def test_whole_numbers_are_asked_for(igpt):
    for seed in (None, 1.0, True, "1"):
        with pytest.raises(TypeError, match="seed must be a whole number, found"):
            igpt.sample(seed=seed)
    with pytest.raises(TypeError, match=r"n must be a whole number, found 1\.5"):
        igpt.sample(1.5)


def test_tokens_are_no_image(igpt):
    """Past bug: a row of them was scored as a gray image."""
    with pytest.raises(ValueError, match=r"found int64 \(1, 64\), a row of tokens by its looks"):
        igpt.score(torch.zeros(1, 64, dtype=torch.int64))
    for tokens in (torch.zeros(2, 64, dtype=torch.int64), np.full((8, 64), 31, np.int32)):
        with pytest.raises(
            ValueError, match=r"found int.. \(., 64\), rows of tokens by its looks; next: "
        ):
            igpt.score(tokens)


@pytest.mark.parametrize(
    "gray",
    [
        np.zeros((2, 64), np.uint8),
        np.zeros((2, 64), np.uint16),
        np.zeros((2, 64)),
        np.full((2, 64), 32),  # no color of the tiny model
        np.zeros((9, 64), np.int64),
        np.zeros((2, 63), np.int64),
        np.zeros((64, 2), np.int64),
    ],
    ids=lambda gray: f"{gray.dtype} {gray.shape} {gray.max()}",
)
def test_gray_images_are_no_tokens(igpt, gray):
    assert igpt.score(gray).nll_map.shape == (SIDE, SIDE)


def test_one_that_was_used_may_be_copied(igpt):
    expected = igpt.sample(1, seed=3)[0].tobytes()
    for other in (copy.deepcopy(igpt), pickle.loads(pickle.dumps(igpt))):
        assert other.sample(1, seed=3)[0].tobytes() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_at_once(tiny_model):
    with pytest.raises(ValueError, match="expected a GPU for device 'cuda', found none"):
        ImageGPT.from_pretrained(tiny_model, device="cuda")
