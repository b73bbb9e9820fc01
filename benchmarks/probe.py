"""Accuracy of a linear probe on raw pixels, to hold the probes of igpt probe against.

    python benchmarks/probe.py --train 'train-*.parquet' --limit 10000 --test test.parquet

The probe is that of igpt probe (LinearProbe: its strength is chosen on a fifth that is held out),
its features are the 32 x 32 x 3 values of the pixels as they come. Prints one line of JSON.
"""

import argparse
import json

import numpy as np

from igpt_core.images.pixels import load_pixels
from igpt_core.learning.probe import LinearProbe
from pipeline.inputs.source import find_source
from pipeline.readers import read_shard
from pipeline.rows import RowError


def raw_pixels(
    location: str, *, size: int, label_column: str, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, size * size * 3) float32 from 0 to 1 and labels (N,) int64."""
    source = find_source(location, keep_columns=[], label_column=label_column, limit=limit)
    plan = source.cut(1024)
    pixels, labels = [], []
    for shard in plan.shards:
        for found in read_shard(
            shard,
            format=plan.format,
            image_column=plan.image_column,
            passthrough=plan.passthrough,
        ):
            for image, label in zip(
                found.images, found.columns[label_column].to_pylist(), strict=True
            ):
                if not isinstance(image, RowError):
                    pixels.append(load_pixels(image, size).ravel())
                    labels.append(label)
    return np.stack(pixels).astype(np.float32) / 255, np.array(labels, np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="labeled images")
    parser.add_argument("--limit", type=int, default=10000, help="first N of them")
    parser.add_argument("--test", required=True, help="labeled test images")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    options = parser.parse_args()
    common = {"size": options.size, "label_column": options.label_column}
    train, labels = raw_pixels(options.train, limit=options.limit, **common)
    test, test_labels = raw_pixels(options.test, limit=None, **common)
    # More pixels than a layer has channels: stronger regularization than igpt probe's may be best.
    probe = LinearProbe.fit(train, labels, strengths=(1e-5, 1e-4, 1e-3, 1e-2))
    result = {
        "train_images": len(labels),
        "test_images": len(test_labels),
        "accuracy": round(probe.accuracy(test, test_labels), 4),
        "validation": round(probe.validation_accuracy, 4),
        "strength": probe.strength,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
