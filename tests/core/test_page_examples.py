"""The examples of the Hugging Face ImageGPT page, with our classes.

As printed, but for the import, the folder, the photograph, and matplotlib's figure at the end of
the second.
"""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import igpt_core
from igpt_core import (
    AutoImageProcessor,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from pictures import SIDE, photo


@pytest.fixture(scope="module")
def image():
    return photo(1)


def test_classes_by_the_kind_of_model(tiny_model):
    """There is one kind."""
    for name, cls in (
        ("AutoConfig", ImageGPTConfig),
        ("AutoModel", ImageGPTModel),
        ("AutoModelForImageClassification", ImageGPTForImageClassification),
        ("AutoFeatureExtractor", igpt_core.ImageGPTFeatureExtractor),
        ("AutoImageProcessor", igpt_core.ImageGPTImageProcessor),
    ):
        assert getattr(igpt_core, name) is cls
        assert getattr(transformers, name)
    assert AutoImageProcessor.from_pretrained(tiny_model).size["height"] == SIDE


def test_configuration():
    # Initializing a ImageGPT configuration
    configuration = ImageGPTConfig(n_layer=1)

    # Initializing a model (with random weights) from the configuration
    model = ImageGPTModel(configuration)

    # Accessing the model configuration
    configuration = model.config

    assert (configuration.n_embd, configuration.hidden_size) == (512, 512)


def test_features(tiny_model, image):
    image_processor = AutoImageProcessor.from_pretrained(tiny_model)
    model = ImageGPTModel.from_pretrained(tiny_model)

    inputs = image_processor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state

    assert last_hidden_states.shape == (1, SIDE**2, 32)
    # "average-pool the hidden states at whatever layer you like"
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert states[len(states) // 2].mean(dim=1).shape == (1, 32)


def test_unconditional_samples(tiny_model):
    image_processor = AutoImageProcessor.from_pretrained(tiny_model)
    model = ImageGPTForCausalImageModeling.from_pretrained(tiny_model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    # unconditional generation of 8 images
    batch_size = 4
    context = torch.full((batch_size, 1), model.config.vocab_size - 1)  # initialize with SOS token
    context = context.to(device)
    output = model.generate(
        input_ids=context,
        max_length=model.config.n_positions + 1,
        temperature=1.0,
        do_sample=True,
        top_k=40,
    )

    clusters = image_processor.clusters
    height = image_processor.size["height"]
    width = image_processor.size["width"]

    samples = output[:, 1:].cpu().detach().numpy()
    samples_img = [
        np.reshape(np.rint(127.5 * (clusters[s] + 1.0)), [height, width, 3]).astype(np.uint8)
        for s in samples
    ]  # convert color cluster tokens back to pixels

    assert len(samples_img) == 4
    colors = {tuple(color) for color in np.rint(127.5 * (clusters + 1.0)).astype(np.uint8)}
    for img in samples_img:
        assert Image.fromarray(img).size == (SIDE, SIDE)
        assert {tuple(color) for color in img.reshape(-1, 3)} <= colors


def test_classes(tiny_model, image):
    image_processor = AutoImageProcessor.from_pretrained(tiny_model)
    # The page loads a causal model here, so that the head is new.
    with pytest.warns(UserWarning, match=r"score\.weight is not in it and is new"):
        model = ImageGPTForImageClassification.from_pretrained(tiny_model)

    inputs = image_processor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    logits = outputs.logits

    assert logits.shape == (1, 2)
