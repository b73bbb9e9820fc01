"""Model stages that look at whole images once: classification."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from igpt_core.config import ImageGPTConfig
from pipeline import rows
from pipeline.blocks import tokens_of, with_seconds
from pipeline.stages.batches import full_batches, in_place, load_for_stage


def class_names(config: ImageGPTConfig) -> list[str] | None:
    """The names of a classifier's classes; None where they are only numbered, as LABEL_0."""
    numbered = [f"LABEL_{i}" for i in range(config.num_labels)]
    names = [config.id2label.get(i, numbered[i]) for i in range(config.num_labels)]
    return None if names == numbered else names


class Classify:
    """Blocks of quantized rows -> the same with the columns of `rows.classify_columns`.

    The model is fed the pixels alone, as its head was trained.

    Args:
        model: location of the model folder.
        device: "cpu" or "cuda".
        dtype: name of the dtype to compute in.
        batch_size: images computed together.
        model_options: fsspec options of the model's location.
    """

    def __init__(
        self,
        *,
        model: str,
        device: str,
        dtype: str,
        batch_size: int,
        model_options: Mapping[str, Any],
    ) -> None:
        self._model = load_for_stage(
            model, device=device, dtype=dtype, head="classification", model_options=model_options
        )
        self._names = class_names(self._model.config)
        self._device = device
        self._batch_size = batch_size

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        valid = pc.is_valid(block[rows.ROW_TOKENS]).to_numpy()
        logits = self._logits(tokens_of(block[rows.ROW_TOKENS].filter(pa.array(valid))))
        labels = logits.argmax(axis=1)
        columns = {
            rows.PREDICTED_LABEL: pa.array(labels, pa.int64()),
            rows.PROBABILITY: pa.array(_highest_probability(logits)),
            rows.LOGITS: pa.FixedSizeListArray.from_arrays(
                pa.array(logits.reshape(-1)), type=rows.logits_type(logits.shape[1])
            ),
        }
        if self._names is not None:
            columns[rows.PREDICTED_NAME] = pa.array(self._names, pa.string()).take(labels)
        for name, results in columns.items():
            block = block.append_column(name, in_place(results, valid))
        return with_seconds(block, "model", time.perf_counter() - begun)

    @torch.inference_mode()
    def _logits(self, tokens: NDArray[np.uint16]) -> NDArray[np.float32]:
        """(N, T) tokens to logits (N, num_labels)."""
        logits = np.empty((len(tokens), self._model.config.num_labels), np.float32)
        for place, (batch,) in full_batches(self._batch_size, tokens, device=self._device):
            found = self._model(batch, use_cache=False).logits.float().cpu().numpy()
            logits[place] = found[: place.stop - place.start]
        return logits


def _highest_probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The softmax of each row's highest logit, (N,)."""
    below = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return (1 / np.exp(below).sum(axis=1)).astype(np.float32)
