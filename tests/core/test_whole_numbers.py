"""Whole numbers that are handed over: those of each kind count alike, and nothing else counts.

Each table is of public functions, as they are called with the argument that it is about. The
models have more colors than a byte holds, so that narrow tokens do not hold the start token, and
the numbers are such that their products do not fit a byte.
"""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_core import (
    VARIANTS,
    ColorHistogram,
    ImageGPTConfig,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
    LinearProbe,
    NeighborTables,
    Palette,
    Pinned,
    SamplingConfig,
    TrainingConfig,
    chosen_layers,
    complete,
    complete_prompts,
    convert_checkpoint,
    load_pixels,
    pooled_features,
    random_model,
    row_seed,
    token_nll,
)
from igpt_core.generation.known_pixels import known_in_mask, prompt_length
from igpt_core.generation.noise import GumbelNoise
from igpt_core.learning.objectives import JointClassification, NextPixel
from igpt_core.learning.training import accuracy, batches, evaluate
from models import make_model

START = 300
SHAPE = {"vocab_size": START + 1, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
MODEL = make_model(ImageGPTConfig(**SHAPE), std=0.3)
CLASSIFIER = make_model(
    ImageGPTConfig(**SHAPE, num_labels=3), ImageGPTForImageClassification, std=0.3
)
JOINT = JointClassification(CLASSIFIER, MODEL.lm_head, next_pixel_weight=1)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)
FEATURES = RNG.normal(size=(250, 3)).astype(np.float32)
TOKENS, LABELS = RNG.integers(0, 100, (250, 16)), np.arange(250) % 3
FEW, CLASSES = torch.from_numpy(TOKENS[:3]), torch.tensor([2, 0, 1])
PALETTE = Palette(RNG.uniform(-1, 1, (100, 3)))
PROBE = LinearProbe.fit(FEATURES, LABELS)


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).resize((800, 800)).save(buffer, "JPEG")
    return buffer.getvalue()


def processed(**options):
    return ImageGPTImageProcessor(PALETTE.colors, **options)(PIXELS, return_tensors="np").input_ids


def weights(seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", ImageGPTConfig(**SHAPE))
        return random_model("tiny", seed=seed).transformer.wpe.weight


def generated(inputs=((START,),), *, seeds=(7,), **options):
    options = {"do_sample": True, "max_length": 9, "seeds": torch.as_tensor(seeds), **options}
    return MODEL.generate(torch.as_tensor(inputs), **options)


def completed(prompt=FEW[:, :3], *, seeds=CLASSES, **options):
    options = {"n_positions": 9, "n_samples": 3, "sampling": SamplingConfig(), **options}
    return complete(MODEL, prompt, seeds=seeds, **options)


def finished(image=FEW, lengths=CLASSES, **options):
    return complete_prompts(
        MODEL, image, lengths, seeds=CLASSES, sampling=SamplingConfig(), **options
    )


def with_known(image):
    return completed(pinned=Pinned(image, torch.ones(3, 16).bool()), n_positions=16)


def tables(images=FEW, known=None, *, n_colors=100):
    known = torch.ones_like(images).bool() if known is None else known
    return NeighborTables.counted(images, known, n_colors=n_colors).tables


def features(tokens=FEW, layers=(1,), **options):
    found = pooled_features(MODEL, tokens, layers, **options)
    assert all(type(layer) is int for layer in found)
    return torch.stack(list(found.values()))


def third_batch(tokens=TOKENS, labels=LABELS, *, image_size=4, start=1, **options):
    """As it lies in its epoch, of two batches, where its number is multiplied."""
    config = TrainingConfig(**{"steps": 100, "batch_size": 100, **options})
    found = batches(tokens, config, image_size, start=start, labels=labels)
    return torch.cat([part.flatten() for part in (*next(found), *next(found))])


def fitted(**options):
    probe = LinearProbe.fit(FEATURES, LABELS, **options)
    return np.append(probe.weights, probe.layer or 0)


SCALARS = {
    "Palette.fit n_colors": (lambda n: Palette.fit(PIXELS, n, seed=0).colors, 100),
    "Palette.fit seed": (lambda n: Palette.fit(PIXELS, 3, seed=n).colors, 100),
    "load_pixels": (lambda n: load_pixels(jpeg(), n, resize="fast"), 100),
    "known_in_mask": (lambda n: known_in_mask(jpeg(), n), 100),
    "prompt_length": (lambda n: prompt_length("200pixels", n, masked=False), 16),
    "processor size": (lambda n: processed(size=n), 100),
    "processor height": (lambda n: processed(size={"height": n, "width": 100}), 100),
    "processor resample": (lambda n: processed(resample=n), 3),
    "top_k": (lambda n: SamplingConfig(top_k=n).top_k * 3, 100),
    "row_seed": (lambda n: row_seed(n, "row"), 100),
    "random_model": (weights, 100),
    "generate max_length": (lambda n: generated(max_length=n), 9),
    "generate max_new_tokens": (lambda n: generated(max_new_tokens=n), 8),
    "generate top_k": (lambda n: generated(top_k=n), 100),
    "generate num_return_sequences": (lambda n: generated(num_return_sequences=n), 50),
    "generate pad_token_id": (lambda n: generated([[100, START, 1]], pad_token_id=n), 100),
    "complete n_positions": (lambda n: completed(n_positions=n), 9),
    "complete n_samples": (lambda n: completed(n_samples=n), 50),
    "complete window": (lambda n: completed(window=n), 4),
    "complete at_once": (lambda n: completed(at_once=n), 2),
    "complete_prompts n_samples": (lambda n: finished(n_samples=n), 50),
    "counted n_colors": (lambda n: tables(n_colors=n), 100),
    "pooled_features layer": (lambda n: features(layers=[0, n]), 2),
    "chosen_layers": (lambda n: chosen_layers("all", n), 100),
    "TrainingConfig batch_size": (lambda n: third_batch(batch_size=n), 100),
    "TrainingConfig seed": (lambda n: third_batch(seed=n), 100),
    "TrainingConfig steps": (lambda n: TrainingConfig(steps=n).progress(30, 0), 100),
    "TrainingConfig warmup_steps": (
        lambda n: TrainingConfig(steps=1, warmup_steps=n).learning_rate_at(30, 0),
        100,
    ),
    "batches start": (lambda n: third_batch(start=n), 100),
    "batches image_size": (lambda n: third_batch(image_size=n), 4),
    "evaluate": (lambda n: evaluate(MODEL, TOKENS, batch_size=n), 100),
    "accuracy": (lambda n: accuracy(CLASSIFIER, TOKENS, LABELS, batch_size=n), 100),
    "LinearProbe seed": (lambda n: fitted(seed=n), 100),
    "LinearProbe layer": (lambda n: fitted(layer=n), 100),
}
INTEGERS = [f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")]
KINDS = {
    **{name: np.dtype(name).type for name in INTEGERS},
    "array": np.array,
    **{
        f"torch.{name}": partial(torch.tensor, dtype=getattr(torch, name))
        for name in ("int64", "uint8", "uint16")
    },
}
NOT_WHOLE = [True, 3.0, 3.5, "3", float("nan"), np.float64(3), np.array([3, 3]), torch.tensor(3.0)]


def is_equal(found, expected):
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and found.equal(expected)
    return np.array_equal(found, expected)


@pytest.mark.parametrize("name", SCALARS)
def test_a_number_of_any_kind_is_what_it_holds(name):
    function, value = SCALARS[name]
    expected = function(value)
    for kind, make in KINDS.items():
        assert is_equal(function(make(value)), expected), kind


@pytest.mark.parametrize("name", SCALARS)
def test_what_is_no_whole_number_is_refused(name):
    function, _ = SCALARS[name]
    error, complaint = TypeError, "must be a whole number, found"
    if name in ("processor size", "processor height"):
        error, complaint = ValueError, "expected size "
    for value in NOT_WHOLE:
        with pytest.raises(error, match=complaint) as raised:
            function(value)
        assert "\n" not in str(raised.value)


TENSORS = {
    "token_nll": (partial(token_nll, MODEL), FEW),
    "pooled_features": (features, FEW),
    "pooled_features, no sos": (partial(features, sos=False), FEW),
    "causal labels": (lambda labels: MODEL(FEW, labels=labels).loss, FEW),
    "class labels": (lambda labels: CLASSIFIER(FEW, labels=labels).loss, CLASSES),
    "NextPixel": (NextPixel(MODEL), FEW),
    "JointClassification": (lambda tokens: JOINT(tokens, CLASSES), FEW),
    "JointClassification labels": (lambda labels: JOINT(FEW, labels), CLASSES),
    "generate": (lambda tokens: generated(tokens, seeds=(1, 2, 3)), FEW[:, :2]),
    "generate seeds": (lambda seeds: generated(seeds=seeds), torch.tensor([100])),
    "complete": (completed, FEW[:, :3]),
    "complete seeds": (lambda seeds: completed(seeds=seeds), torch.tensor([100, 1, 2])),
    "complete pinned": (with_known, FEW),
    "complete_prompts": (finished, FEW),
    "complete_prompts lengths": (lambda lengths: finished(lengths=lengths), CLASSES),
    "GumbelNoise": (lambda seeds: GumbelNoise(seeds, 2).at(CLASSES, 5), torch.tensor([100])),
    "GumbelNoise.at": (lambda at: GumbelNoise(CLASSES, 2).at(at, 5), torch.tensor([1, 100])),
    "counted": (tables, FEW),
    "decode": (PALETTE.decode, FEW),
    "LinearProbe": (
        lambda labels: LinearProbe.fit(torch.from_numpy(FEATURES), labels).weights,
        torch.from_numpy(LABELS),
    ),
    "LinearProbe.accuracy": (lambda labels: PROBE.accuracy(FEATURES[:3], labels), CLASSES),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_any_integer_dtype_are_the_numbers_that_they_hold(name):
    function, tensor = TENSORS[name]
    expected = function(tensor)
    for dtype in INTEGERS:
        assert is_equal(function(tensor.to(getattr(torch, dtype))), expected), dtype


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_another_dtype_are_refused(name):
    function, tensor = TENSORS[name]
    for dtype in (torch.float32, torch.bool):
        with pytest.raises((TypeError, ValueError), match="integer") as raised:
            function(tensor.to(dtype))
        assert "\n" not in str(raised.value)


ARRAYS = {
    "batches": (third_batch, TOKENS),
    "batches labels": (lambda labels: third_batch(labels=labels), LABELS),
    "evaluate": (partial(evaluate, MODEL), TOKENS),
    "accuracy": (lambda tokens: accuracy(CLASSIFIER, tokens, LABELS), TOKENS),
    "accuracy labels": (lambda labels: accuracy(CLASSIFIER, TOKENS, labels), LABELS),
    "LinearProbe": (lambda labels: LinearProbe.fit(FEATURES, labels).weights, LABELS),
    "LinearProbe.accuracy": (lambda labels: PROBE.accuracy(FEATURES, labels), LABELS),
    "decode": (PALETTE.decode, TOKENS),
    "ColorHistogram": (
        lambda counts: ColorHistogram.total([ColorHistogram(np.arange(250), counts)] * 2).counts,
        TOKENS[:, 0],
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_any_integer_dtype_are_the_numbers_that_they_hold(name):
    function, array = ARRAYS[name]
    expected = function(array)
    for dtype in INTEGERS:
        assert is_equal(function(array.astype(dtype)), expected), dtype
    for dtype in (np.float32, np.bool_):
        with pytest.raises((TypeError, ValueError), match="integer"):
            function(array.astype(dtype))


# --- out of range ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers", [np.array([2, 0], np.uint8), torch.tensor([2, 0]), range(2, -1, -2)], ids=type
)
def test_layers_may_be_any_sequence(layers):
    assert features(layers=layers).equal(features(layers=[2, 0]))


REFUSED = {
    # The last token is fed to nothing.
    "the start token": (lambda: token_nll(MODEL, FEW * 0 + START), "from 0 to 299, found 300 to"),
    "a token to leave out": (
        lambda: token_nll(MODEL, torch.tensor([[1, -100]])),
        "tokens from 0 to 299, found -100 to 1",
    ),
    "features of no color": (lambda: features(torch.tensor([[1, START]])), "found 1 to 300"),
    "features of no token": (lambda: features(FEW + START, sos=False), "from 0 to 300, found"),
    "a start token before an image": (
        lambda: JOINT(torch.tensor([[START, 1]]), CLASSES[:1]),
        "tokens from 0 to 299, found 1 to 300",
    ),
    "no tokens": (lambda: token_nll(MODEL, FEW[:, :0]), r"tokens \(B, T\) with T >= 1, found"),
    "an image alone": (lambda: token_nll(MODEL, FEW[0]), r"tokens \(B, T\) .* found \(16,\)"),
    "a token beyond": (lambda: generated([[START + 1]]), "inputs from 0 to 300, found 301 to 301"),
    "a token below": (lambda: generated([[START, -1]]), "inputs from 0 to 300, found -1 to"),
    "classes of several": (
        lambda: CLASSIFIER(FEW, labels=torch.ones(3, 3).long()),
        r"labels \(3,\), a class of each row, found \(3, 3\); next: floats \(3, 3\)",
    ),
    "shares of one class": (
        lambda: CLASSIFIER(FEW, labels=CLASSES.float()),
        r"labels \(3, 3\), a share of each class, found \(3,\); next: integers \(3,\)",
    ),
    "counts of no color": (lambda: tables(FEW + 1), "known pixels of images from 0 to 99, found"),
    "counts of a mask of numbers": (
        lambda: tables(known=torch.ones_like(FEW)),
        r"known pixels to be torch.bool of shape \(3, 16\), found torch.int64",
    ),
    "a negative seed": (lambda: Palette.fit(PIXELS, 3, seed=-1), "seed must be 0 or more"),
    "a histogram with one count": (
        lambda: ColorHistogram(np.arange(3), np.ones(1, int)),
        r"colors \(N,\) and counts \(N,\), found int64 \(3,\) and int64 \(1,\)",
    ),
    "batches of a negative size": (lambda: TrainingConfig(steps=1, batch_size=-1), "1 or more"),
    "no steps": (lambda: TrainingConfig(steps=0), "steps must be 1 or more, found 0"),
    "no minutes": (lambda: TrainingConfig(minutes=0), "minutes must be above 0, found 0"),
    "a negative warm-up": (lambda: TrainingConfig(steps=1, warmup_steps=-1), "0 or more, found -1"),
    "training in float64": (
        lambda: TrainingConfig(steps=1, dtype=torch.float64),
        r"torch.float32, torch.bfloat16 or torch.float16, found torch.float64",
    ),
    "a negative weight": (
        lambda: JointClassification(CLASSIFIER, MODEL.lm_head, next_pixel_weight=-1),
        "next_pixel_weight must be 0 or more, found -1",
    ),
    "images of another size": (lambda: third_batch(image_size=3), "3 x 3 pixels, found 16 tokens"),
    "more labels than images": (lambda: third_batch(labels=np.arange(251)), r"labels \(250,\)"),
    "labels in a column": (
        lambda: accuracy(CLASSIFIER, TOKENS, LABELS[:, None]),
        r"labels \(250,\), one for each image, found int64 \(250, 1\)",
    ),
    "evaluation of a negative size": (
        lambda: evaluate(MODEL, TOKENS, batch_size=-1),
        "batch_size must be 1 or more, found -1",
    ),
    "evaluation of nothing": (lambda: evaluate(MODEL, TOKENS[:0]), "of one image at least, found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_numbers_out_of_range_are_refused(case):
    function, complaint = REFUSED[case]
    with pytest.raises(ValueError, match=complaint) as raised:
        function()
    assert "\n" not in str(raised.value)


def test_padding_may_be_any_number():
    padded = torch.tensor([[-100, START, 1]])
    found = generated(padded, attention_mask=torch.tensor([[0, 1, 1]]))
    assert found[:, 3:].equal(generated(padded[:, 1:], max_length=8)[:, 2:])


def test_classes_of_several_may_be_integers():
    config = ImageGPTConfig(**SHAPE, num_labels=3, problem_type="multi_label_classification")
    model = make_model(config, ImageGPTForImageClassification, std=0.3)
    labels = torch.tensor([[1, 0, 1]])
    assert model(FEW[:1], labels=labels).loss.equal(model(FEW[:1], labels=labels.float()).loss)


@pytest.mark.parametrize("names", [8, [8, 12], None])
def test_layers_by_their_words_are_text(names):
    with pytest.raises(
        TypeError, match="expected layers as text such as 'middle' or '8,12', found"
    ):
        chosen_layers(names, 24)


def test_weights_are_converted_to_floats_alone(tmp_path):
    MODEL.save_pretrained(tmp_path / "model")
    with pytest.raises(TypeError, match=r"float dtype for weights, found torch\.int8"):
        convert_checkpoint(str(tmp_path / "model"), tmp_path / "made", dtype=torch.int8)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [3, [3]])
def test_what_is_no_tensor_is_refused(value):
    with pytest.raises(TypeError, match=r"expected inputs as a tensor, found .*; next: torch\.as_"):
        MODEL.generate(value)
    with pytest.raises(TypeError, match=r"expected tokens as a tensor, found .*; next: torch\.as_"):
        token_nll(MODEL, value)
