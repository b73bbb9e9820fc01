"""Model batches of one fixed size, and the model that takes them: what all model stages share."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.config import ImageGPTConfig
from igpt_core.model import load_model, random_model

RANDOM = "random:"
# Memory that the activations of one forward may take, and images beyond which no more is gained.
_ACTIVATION_BYTES = {"cuda": 8 << 30, "cpu": 1 << 30}
_MOST_IMAGES = {"cuda": 256, "cpu": 16}


def load_for_stage(
    model: str,
    *,
    device: str,
    dtype: str,
    head: Literal["causal", "classification"] | None,
    model_options: Mapping[str, Any],
) -> Any:
    """The model of an actor; `dtype` by name, the rest as in `load_model`. RANDOM and the name of a
    variant stand for one with random weights, the same in every actor."""
    if device == "cpu":
        # One thread an actor: actors do not fight, and sums have one order whatever the number
        # of actors is.
        torch.set_num_threads(1)
    if model.startswith(RANDOM):
        untrained = random_model(model.removeprefix(RANDOM), seed=0)
        chosen = untrained if head == "causal" else untrained.transformer
        return chosen.to(device, getattr(torch, dtype))
    return load_model(
        model, device=device, dtype=getattr(torch, dtype), head=head, storage_options=model_options
    )


def full_batches(
    size: int, *arrays: NDArray[Any], device: str
) -> Iterator[tuple[slice, list[Tensor]]]:
    """The rows of arrays of one length, `size` at a time, as int64 tensors on the device; with
    the slice of rows that they are.

    The last batch is padded with rows of zeros: a matrix product may round a row otherwise when
    the number of rows differs, and now and then that is another colour or class.
    """
    n_rows = len(arrays[0])
    for first in range(0, n_rows, size):
        place = slice(first, min(first + size, n_rows))
        batch = []
        for array in arrays:
            padded = np.zeros((size, *array.shape[1:]), np.int64)
            padded[: place.stop - first] = array[place]
            batch.append(torch.from_numpy(padded).to(device))
        yield place, batch


def forward_batch_size(config: ImageGPTConfig, n_positions: int, *, device: str, dtype: str) -> int:
    """Images of one forward without gradients that fit a device's memory."""
    # Of a layer at once: the input, the normed one, q, k and v, the output, and the MLP's two.
    width = 6 * config.n_embd + 2 * config.inner_size
    image = width * n_positions * getattr(torch, dtype).itemsize
    return max(1, min(_ACTIVATION_BYTES[device] // image, _MOST_IMAGES[device]))


def in_place(results: pa.Array, valid: NDArray[np.bool_]) -> pa.Array:
    """The results of the good rows of a block as a column of all its rows, null for the others."""
    return results.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
