"""Model stage that paints images: completions of their first pixels."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from igpt_core.decoding import complete
from igpt_core.sampling import SamplingConfig, row_seed
from pipeline import rows
from pipeline.blocks import tokens_array, tokens_of, with_seconds
from pipeline.stages.batches import full_batches, load_for_stage


class Complete:
    """Blocks of quantized rows -> the same with `samples` and `prompt_length`.

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
        self._model = load_for_stage(
            model, device=device, dtype=dtype, head="causal", model_options=model_options
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
            rows.SAMPLES, self._samples_column(samples, valid.to_numpy(), tokens.shape[1])
        )
        block = block.append_column(
            rows.PROMPT_LENGTH,
            pa.array(np.full(block.num_rows, self._prompt_length, np.int32)),
        )
        return with_seconds(block, "model", time.perf_counter() - begun)

    def _complete(self, tokens: NDArray[np.uint16], seeds: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(N, T) tokens and (N,) seeds to samples (N, n_samples, T)."""
        n_rows, n_positions = tokens.shape
        prompts = tokens[:, : self._prompt_length]
        samples = np.empty((n_rows, self._n_samples, n_positions), np.uint16)
        for place, (prompt, batch_seeds) in full_batches(
            self._images_per_batch, prompts, seeds, device=self._device
        ):
            drawn = complete(
                self._model,
                prompt,
                n_positions=n_positions,
                seeds=batch_seeds,
                sampling=self._sampling,
                n_samples=self._n_samples,
            )
            samples[place] = drawn[: place.stop - place.start].cpu().numpy()
        return samples

    def _samples_column(
        self, samples: NDArray[np.uint16], valid: NDArray[np.bool_], n_positions: int
    ) -> pa.ListArray:
        lengths = np.where(valid, self._n_samples, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(
            pa.array(offsets),
            tokens_array(samples, n_positions),
            type=rows.samples_type(n_positions),
            mask=pa.array(~valid),
        )
