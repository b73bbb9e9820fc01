"""Accuracy of a fine-tuned model on test images, against a linear probe of where it started.

    igpt finetune --input 'train-*.parquet' --limit 5000 --output classifier/ --minutes 40
    python benchmarks/finetune.py --model classifier/ --train 'train-*.parquet' --test test.parquet

The probe is a logistic regression on the starting model's hidden states, averaged over positions,
of the same training images (LinearProbe; needs the extra `probe`). Its layer is the best on the
test images themselves, so the probe is a little better than it could know. Prints a table, then
one line of JSON.
"""

import argparse
import json
from contextlib import AbstractContextManager

import numpy as np
import torch

from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_image_size
from igpt_core.learning.features import pooled_features
from igpt_core.learning.probe import LinearProbe
from igpt_core.learning.training import accuracy
from pipeline.training.images import TrainingImages, read_images

BATCH_SIZE = 16


def reduced() -> AbstractContextManager[None]:
    """Runs matrix products in bfloat16: twice as fast, and under 1% of images change class."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def layer_features(base: str, tokens: np.ndarray) -> np.ndarray:
    """Computes hidden states (L + 1, N, C) averaged over positions; fed as in pretraining."""
    model = load_model(base, device="cpu", dtype=torch.float32, head=None)
    means = []
    for first in range(0, len(tokens), BATCH_SIZE):
        batch = torch.from_numpy(tokens[first : first + BATCH_SIZE].astype(np.int64))
        with reduced():
            features = pooled_features(model, batch, range(model.config.n_layer + 1))
        means.append(torch.stack(list(features.values())))
    return torch.cat(means, dim=1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the fine-tuned model")
    parser.add_argument("--base", default="embedded", help="the model that it started from")
    parser.add_argument("--train", required=True, help="labeled images that it was tuned on")
    parser.add_argument("--limit", type=int, default=5000, help="first N of them")
    parser.add_argument("--test", required=True, help="labeled test images")
    parser.add_argument("--label-column", default="label")
    options = parser.parse_args()

    def images(location: str, limit: int | None) -> TrainingImages:
        return read_images(
            location,
            palette=options.base,
            image_size=load_image_size(options.base),
            limit=limit,
            label_column=options.label_column,
        )

    train, test = images(options.train, options.limit), images(options.test, None)
    labels, test_labels = train.labels.classes, test.labels.classes
    model = load_model(options.model, device="cpu", dtype=torch.float32, head="classification")
    with reduced():
        tuned = accuracy(model, test.tokens, test_labels)
    features, test_features = (layer_features(options.base, x.tokens) for x in (train, test))
    probes = [LinearProbe.fit(layer, labels) for layer in features]
    layers = [
        (probe.accuracy(layer, test_labels), probe.strength)
        for probe, layer in zip(probes, test_features, strict=True)
    ]
    best = max(range(len(layers)), key=lambda layer: layers[layer][0])
    print(f"accuracy on {len(test_labels)} images, trained on {len(labels)}")
    for layer, (share, strength) in enumerate(layers):
        print(f"probe of layer {layer}, C {strength:<6g}     {share:.4f}")
    print(f"fine-tuned                     {tuned:.4f}")
    result = {
        "train_images": len(labels),
        "test_images": len(test_labels),
        "probe": round(layers[best][0], 4),
        "probe_layer": best,
        "probe_strength": layers[best][1],
        "fine_tuned": round(tuned, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
