"""Model stages that generate pixels: completions of prompts, and unconditional samples."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import rows
from pipeline.shards import shard_in
from pipeline.stages.blocks import (
    ShardMetadata,
    bits_of,
    in_place,
    score_arrays,
    tokens_array,
    tokens_of,
    with_seconds,
    with_shard_metadata,
)
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.sampling import Drawing, Prompt, Sampler


class Complete:
    """Blocks of quantized rows -> the same with `samples`, `prompt_length`, and if scored `nll`
    and `sample_index`.

    Args:
        compute_plan, drawing: as of `Sampler`.
        prompt_length: positions given, in raster order, of rows that do not say it themselves
            by a column `prompt_length`.
    """

    def __init__(self, compute_plan: ComputePlan, drawing: Drawing, *, prompt_length: int) -> None:
        self._sampler, self._n_drawn = Sampler(compute_plan, drawing), drawing.n_drawn
        self._prompt_length = prompt_length

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        valid = pc.is_valid(block[rows.ROW_TOKENS])
        good = block.filter(valid)
        prompt = self._prompt(good)
        if rows.PROMPT_LENGTH not in block.column_names:
            lengths = np.full(block.num_rows, self._prompt_length, np.int32)
            block = block.append_column(rows.PROMPT_LENGTH, pa.array(lengths))
        samples = self._sampler.sample(prompt, good[rows.ROW_ID].to_pylist())
        n_samples, n_positions = samples.tokens.shape[1:]
        columns = {
            rows.SAMPLES: _lists(tokens_array(samples.tokens, n_positions), n_samples),
            rows.SAMPLED_TOKENS: pa.array(
                prompt.unknown.sum(axis=1, dtype=np.int32) * self._n_drawn
            ),
            rows.PASSES: pa.array(samples.passes),
        }
        if samples.nll is not None and samples.index is not None:
            columns[rows.NLL] = _lists(pa.array(samples.nll.ravel()), n_samples)
            columns[rows.SAMPLE_INDEX] = _lists(pa.array(samples.index.ravel()), n_samples)
        for name, results in columns.items():
            block = block.append_column(name, in_place(results, valid.to_numpy()))
        return with_seconds(block, "model", time.perf_counter() - begun)

    def _prompt(self, good: pa.Table) -> Prompt:
        """Collects what the rows of a block give the model."""
        tokens = tokens_of(good[rows.ROW_TOKENS])
        if rows.PROMPT_LENGTH in good.column_names:
            return Prompt(tokens, good[rows.PROMPT_LENGTH].to_numpy())
        if rows.KNOWN_PIXELS in good.column_names:
            return Prompt(tokens, self._prompt_length, bits_of(good[rows.KNOWN_PIXELS]))
        return Prompt(tokens, self._prompt_length)


def _lists(values: pa.Array, n: int) -> pa.ListArray:
    """Makes a column of lists of the values, n at a time."""
    offsets = np.arange(0, len(values) + 1, n, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


class NameSamples:
    """Blocks of the plan -> blocks of rows that have an id and nothing else yet."""

    def __call__(self, block: pa.Table) -> pa.Table:
        shard = shard_in(block)
        ids = [f"{s.name}-{i:08d}" for s in shard.slices for i in s.row_numbers]
        table = pa.table(
            {
                rows.ROW_ID: pa.array(ids, pa.string()),
                rows.ERROR_STAGE: pa.nulls(len(ids), pa.string()),
            }
        )
        return with_shard_metadata(table, ShardMetadata(shard.index, rows=len(ids)))


class Sample:
    """Blocks of named rows -> the same with tokens, and if scored `nll`, `bits_per_pixel` and
    `sample_index`.

    Args:
        compute_plan, drawing: as of `Sampler`.
        image_size: pixels a side.
    """

    def __init__(self, compute_plan: ComputePlan, drawing: Drawing, *, image_size: int) -> None:
        self._sampler, self._n_drawn = Sampler(compute_plan, drawing), drawing.n_drawn
        self._n_positions = image_size**2

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        n, n_positions = block.num_rows, self._n_positions
        prompt = Prompt(np.zeros((n, n_positions), np.uint16), length=0)
        samples = self._sampler.sample(prompt, block[rows.ROW_ID].to_pylist())
        columns = {
            rows.ROW_TOKENS: tokens_array(samples.tokens, n_positions),
            rows.SAMPLED_TOKENS: pa.array(np.full(n, n_positions * self._n_drawn, np.int32)),
            rows.PASSES: pa.array(samples.passes),
        }
        if samples.nll is not None and samples.index is not None:
            columns |= score_arrays(samples.nll[:, 0])
            columns[rows.SAMPLE_INDEX] = pa.array(samples.index[:, 0])
        for name, results in columns.items():
            block = block.append_column(name, results)
        return with_seconds(block, "model", time.perf_counter() - begun)
