"""Model stage that paints images: completions of their first pixels."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from igpt_core.decoding import complete
from igpt_core.model import load_model
from igpt_core.sampling import SamplingConfig, row_seed
from pipeline import rows
from pipeline.blocks import tokens_array, tokens_of, with_seconds


class Complete:
    """Blocks of quantized rows -> the same with `samples` and `prompt_length`.

    Every model batch has `images_per_batch` images, the last one of a block padded: a matrix
    product may round a row otherwise when the number of rows differs, and now and then that is
    another colour.

    Args:
        model: location of the model folder.
        device: "cpu" or "cuda".
        dtype: name of the dtype to compute in.
        images_per_batch: images decoded together, each with all of its samples.
        n_samples: completions of each image.
        prompt_length: positions given, in raster order.
        seed: of the run; with a row's id it makes the row's seed.
        temperature, top_k, top_p: as in `SamplingConfig`.
        model_options: fsspec options of the model's location.
    """

    def __init__(
        self,
        *,
        model: str,
        device: str,
        dtype: str,
        images_per_batch: int,
        n_samples: int,
        prompt_length: int,
        seed: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        model_options: Mapping[str, Any],
    ) -> None:
        if device == "cpu":
            # One thread an actor: actors do not fight, and sums have one order whatever the
            # number of actors is.
            torch.set_num_threads(1)
        self._model = load_model(
            model, device=device, dtype=getattr(torch, dtype), storage_options=model_options
        )
        self._device = device
        self._images_per_batch = images_per_batch
        self._n_samples = n_samples
        self._prompt_length = prompt_length
        self._seed = seed
        self._sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        valid = pc.is_valid(block[rows.ROW_TOKENS])
        good = block.filter(valid)
        tokens = tokens_of(good[rows.ROW_TOKENS])
        seeds = np.array(
            [row_seed(self._seed, id_) for id_ in good[rows.ROW_ID].to_pylist()], np.int64
        )
        samples = self._complete(tokens, seeds)
        block = block.append_column(
            rows.SAMPLES.name, self._samples_column(samples, valid.to_numpy(), tokens.shape[1])
        )
        block = block.append_column(
            rows.PROMPT_LENGTH.name,
            pa.array(np.full(block.num_rows, self._prompt_length, np.int32)),
        )
        return with_seconds(block, "model", time.perf_counter() - begun)

    def _complete(self, tokens: NDArray[np.uint16], seeds: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(N, T) tokens and (N,) seeds to samples (N, n_samples, T)."""
        n_rows, n_positions = tokens.shape
        size = self._images_per_batch
        samples = np.empty((n_rows, self._n_samples, n_positions), np.uint16)
        for first in range(0, n_rows, size):
            stop = min(first + size, n_rows)
            prompt = np.zeros((size, self._prompt_length), np.int64)
            prompt[: stop - first] = tokens[first:stop, : self._prompt_length]
            batch_seeds = np.zeros(size, np.int64)
            batch_seeds[: stop - first] = seeds[first:stop]
            drawn = complete(
                self._model,
                torch.from_numpy(prompt).to(self._device),
                n_positions=n_positions,
                seeds=torch.from_numpy(batch_seeds).to(self._device),
                sampling=self._sampling,
                n_samples=self._n_samples,
            )
            samples[first:stop] = drawn[: stop - first].cpu().numpy()
        return samples

    def _samples_column(
        self, samples: NDArray[np.uint16], valid: NDArray[np.bool_], n_positions: int
    ) -> pa.ListArray:
        lengths = np.where(valid, self._n_samples, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(
            pa.array(offsets),
            tokens_array(samples, n_positions),
            type=rows.SAMPLES.type(n_positions),
            mask=pa.array(~valid),
        )
