"""Model stages of one forward pass over whole images: features, likelihood, classes."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from igpt_core.learning.features import pooled_features
from igpt_core.learning.scoring import token_nll
from igpt_core.model.config import ImageGPTConfig
from pipeline import rows
from pipeline.errors import EndOfRun
from pipeline.stages.blocks import in_place, score_arrays, tokens_of, with_seconds
from pipeline.stages.model_batches import ComputePlan


def class_names(config: ImageGPTConfig) -> list[str] | None:
    """Names a classifier's classes; None where they are only numbered, as LABEL_0."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    return None if names == [f"LABEL_{i}" for i in range(config.num_labels)] else names


def with_results(
    block: pa.Table, results: Callable[[NDArray[np.uint16]], dict[str, pa.Array]]
) -> pa.Table:
    """Adds the columns that `results` makes of the tokens (N, T) of the good rows, null in the
    others, and notes the seconds that it took."""
    begun = time.perf_counter()
    valid = pc.is_valid(block[rows.ROW_TOKENS]).to_numpy()
    tokens = tokens_of(block[rows.ROW_TOKENS].filter(pa.array(valid)))
    for name, column in results(tokens).items():
        block = block.append_column(name, in_place(column, valid))
    return with_seconds(block, "model", time.perf_counter() - begun)


def vectors(values: NDArray[Any]) -> pa.FixedSizeListArray:
    """Makes a column of fixed-size lists of (N, C)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


class Embed:
    """Blocks of quantized rows -> the same with the columns of `rows.embed_columns`.

    Args:
        compute_plan: the model, of which no head is used.
        layers, sos, normed: as of `pooled_features`.
        embedding_dtype: "float32" or "float16", of the columns.
    """

    def __init__(
        self,
        compute_plan: ComputePlan,
        *,
        layers: Sequence[int],
        sos: bool,
        normed: bool,
        embedding_dtype: str,
    ) -> None:
        self._compute_plan, self._model = compute_plan, compute_plan.load(head=None)
        self._layers, self._sos, self._normed = layers, sos, normed
        self._embedding_dtype = embedding_dtype

    def __call__(self, block: pa.Table) -> pa.Table:
        return with_results(block, self._results)

    @torch.inference_mode()
    def _results(self, tokens: NDArray[np.uint16]) -> dict[str, pa.Array]:
        shape = (len(tokens), self._model.config.n_embd)
        found = {layer: np.empty(shape, self._embedding_dtype) for layer in self._layers}
        compute = partial(
            pooled_features, self._model, layers=self._layers, sos=self._sos, normed=self._normed
        )
        for place, features in self._compute_plan.in_batches(compute, tokens):
            for layer, pooled in features.items():
                values = pooled[: place.stop - place.start].cpu().numpy()
                self._compute_plan.check_finite("features", values)
                found[layer][place] = self._stored(values)
        return {
            rows.embedding_name(layer, len(found)): vectors(features)
            for layer, features in found.items()
        }

    def _stored(self, values: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        with np.errstate(over="ignore"):
            stored = values.astype(self._embedding_dtype)
        if not np.isfinite(stored).all():
            raise EndOfRun(
                f"expected features within {self._embedding_dtype}, found one of "
                f"{np.abs(values).max():.4g}; next: --embedding-dtype float32, with another "
                "--output"
            )
        return stored


class Score:
    """Blocks of quantized rows -> the same with the columns of `rows.score_columns`.

    Args:
        compute_plan: the model, which has a next-pixel head.
        mapped: whether the nll of every pixel is kept.
    """

    def __init__(self, compute_plan: ComputePlan, *, mapped: bool) -> None:
        self._compute_plan, self._model = compute_plan, compute_plan.load(head="causal")
        self._mapped = mapped

    def __call__(self, block: pa.Table) -> pa.Table:
        return with_results(block, self._results)

    @torch.inference_mode()
    def _results(self, tokens: NDArray[np.uint16]) -> dict[str, pa.Array]:
        nll = np.empty(tokens.shape, np.float32)
        for place, found in self._compute_plan.in_batches(partial(token_nll, self._model), tokens):
            nll[place] = found[: place.stop - place.start].cpu().numpy()
        self._compute_plan.check_finite("likelihoods", nll)
        columns = score_arrays(nll.mean(axis=1, dtype=np.float64).astype(np.float32))
        return columns | ({rows.NLL_MAP: vectors(nll)} if self._mapped else {})


class Classify:
    """Blocks of quantized rows -> the same with the columns of `rows.classify_columns`.

    The model is fed the pixels alone, as its head was trained.

    Args:
        compute_plan: the model, which has a classification head.
    """

    def __init__(self, compute_plan: ComputePlan) -> None:
        self._compute_plan, self._model = compute_plan, compute_plan.load(head="classification")
        self._names = class_names(self._model.config)

    def __call__(self, block: pa.Table) -> pa.Table:
        return with_results(block, self._results)

    def _results(self, tokens: NDArray[np.uint16]) -> dict[str, pa.Array]:
        logits = self._logits(tokens)
        labels = logits.argmax(axis=1)
        columns = {
            rows.PREDICTED_LABEL: pa.array(labels, pa.int64()),
            rows.PROBABILITY: pa.array(_highest_probability(logits)),
            rows.LOGITS: vectors(logits),
        }
        if self._names is not None:
            columns[rows.PREDICTED_NAME] = pa.array(self._names, pa.string()).take(labels)
        return columns

    @torch.inference_mode()
    def _logits(self, tokens: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Computes the logits (N, num_labels) of tokens (N, T)."""
        logits = np.empty((len(tokens), self._model.config.num_labels), np.float32)
        for place, output in self._compute_plan.in_batches(
            partial(self._model, use_cache=False), tokens
        ):
            logits[place] = output.logits[: place.stop - place.start].float().cpu().numpy()
        self._compute_plan.check_finite("logits", logits)
        return logits


def _highest_probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the softmax of each row's highest logit, (N,)."""
    below = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    highest: NDArray[np.float64] = 1 / np.exp(below).sum(axis=1)
    return highest.astype(np.float32)
