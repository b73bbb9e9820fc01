"""Model stages that paint images: completions of what is given, and images from nothing."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import rows
from pipeline.shards import Shard, shards_in
from pipeline.stages.blocks import bits_of, score_arrays, tokens_array, tokens_of, with_seconds
from pipeline.stages.model_batches import ComputePlan, in_place
from pipeline.stages.sampling import Drawing, Prompt, Sampler


class Complete:
    """Blocks of quantized rows -> the same with `samples`, `prompt_length`, and `nll` if scored.

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
        if rows.PROMPT_LENGTH not in block.column_names:
            lengths = np.full(block.num_rows, self._prompt_length, np.int32)
            block = block.append_column(rows.PROMPT_LENGTH, pa.array(lengths))
        valid = pc.is_valid(block[rows.ROW_TOKENS])
        good = block.filter(valid)
        given = _prompt(good)
        samples = self._sampler.paint(given, good[rows.ROW_ID].to_pylist())
        n_samples, n_positions = samples.samples.shape[1:]
        columns = {
            rows.SAMPLES: _lists(tokens_array(samples.samples, n_positions), n_samples),
            rows.SAMPLED_TOKENS: pa.array(_made(given) * self._n_drawn),
        }
        if samples.nll is not None:
            columns[rows.NLL] = _lists(pa.array(samples.nll.ravel()), n_samples)
        for name, results in columns.items():
            block = block.append_column(name, in_place(results, valid.to_numpy()))
        return with_seconds(block, "model", time.perf_counter() - begun)


def _prompt(good: pa.Table) -> Prompt:
    """What the rows of a block are given."""
    pinned = None
    if rows.KNOWN_PIXELS in good.column_names:
        pinned = bits_of(good[rows.KNOWN_PIXELS])
    return Prompt(tokens_of(good[rows.ROW_TOKENS]), good[rows.PROMPT_LENGTH].to_numpy(), pinned)


def _made(given: Prompt) -> NDArray[np.int32]:
    """Pixels of each image (N,) that are neither prompt nor pinned."""
    known = np.arange(given.tokens.shape[1]) < given.lengths[:, None]
    if given.pinned is not None:
        known |= given.pinned
    return (~known).sum(axis=1, dtype=np.int32)


def _lists(values: pa.Array, n: int) -> pa.ListArray:
    """The values, n at a time, as a column of lists."""
    offsets = np.arange(0, len(values) + 1, n, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


class NameSamples:
    """Blocks of the plan -> blocks of rows that have an id and nothing else yet."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.concat_tables(self._name(shard) for shard in shards_in(block))

    def _name(self, shard: Shard) -> pa.Table:
        ids = [f"{p.name}-{i:08d}" for p in shard.slices for i in range(p.start, p.stop)]
        n = len(ids)
        return pa.table(
            {
                rows.SHARD: pa.array(np.full(n, shard.index, np.int32)),
                rows.SHARD_ROWS: pa.array(np.full(n, n, np.int32)),
                rows.ROW_ID: pa.array(ids, pa.string()),
                rows.ERROR_STAGE: pa.nulls(n, pa.string()),
            }
        )


class Sample:
    """Blocks of named rows -> the same with tokens, and `nll` and `bits_per_pixel` if scored.

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
        given = Prompt(np.zeros((n, n_positions), np.uint16), np.zeros(n, np.int32))
        samples = self._sampler.paint(given, block[rows.ROW_ID].to_pylist())
        columns = {
            rows.ROW_TOKENS: tokens_array(samples.samples, n_positions),
            rows.SAMPLED_TOKENS: pa.array(np.full(n, n_positions * self._n_drawn, np.int32)),
        }
        if samples.nll is not None:
            columns |= score_arrays(samples.nll[:, 0])
        for name, results in columns.items():
            block = block.append_column(name, results)
        return with_seconds(block, "model", time.perf_counter() - begun)
