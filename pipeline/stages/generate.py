"""Model stages that paint images: completions of what is given, and images from nothing."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import rows
from pipeline.shards import Shard, shards_in
from pipeline.stages.blocks import bits_of, score_arrays, tokens_array, tokens_of, with_seconds
from pipeline.stages.model_batches import Computing, in_place
from pipeline.stages.sampling import Drawing, Given, Painter


class Complete:
    """Blocks of quantized rows -> the same with `samples`, `prompt_length`, and `nll` if scored.

    Args:
        computing, drawing: as of `Painter`.
        prompt_length: positions given, in raster order, of rows that do not say it themselves
            by a column `prompt_length`.
    """

    def __init__(self, computing: Computing, drawing: Drawing, *, prompt_length: int) -> None:
        self._painter, self._n_drawn = Painter(computing, drawing), drawing.n_drawn
        self._prompt_length = prompt_length

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        if rows.PROMPT_LENGTH not in block.column_names:
            lengths = np.full(block.num_rows, self._prompt_length, np.int32)
            block = block.append_column(rows.PROMPT_LENGTH, pa.array(lengths))
        valid = pc.is_valid(block[rows.ROW_TOKENS])
        good = block.filter(valid)
        given = _given(good)
        painted = self._painter.paint(given, good[rows.ROW_ID].to_pylist())
        n_samples, n_positions = painted.samples.shape[1:]
        columns = {
            rows.SAMPLES: _lists(tokens_array(painted.samples, n_positions), n_samples),
            rows.DRAWN: pa.array(_made(given) * self._n_drawn),
        }
        if painted.nll is not None:
            columns[rows.NLL] = _lists(pa.array(painted.nll.ravel()), n_samples)
        for name, results in columns.items():
            block = block.append_column(name, in_place(results, valid.to_numpy()))
        return with_seconds(block, "model", time.perf_counter() - begun)


def _given(good: pa.Table) -> Given:
    """What the rows of a block are given."""
    pinned = None
    if rows.PINNED in good.column_names:
        pinned = bits_of(good[rows.PINNED])
    return Given(tokens_of(good[rows.ROW_TOKENS]), good[rows.PROMPT_LENGTH].to_numpy(), pinned)


def _made(given: Given) -> NDArray[np.int32]:
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
        computing, drawing: as of `Painter`.
        image_size: pixels a side.
    """

    def __init__(self, computing: Computing, drawing: Drawing, *, image_size: int) -> None:
        self._painter, self._n_drawn = Painter(computing, drawing), drawing.n_drawn
        self._n_positions = image_size**2

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        n, n_positions = block.num_rows, self._n_positions
        given = Given(np.zeros((n, n_positions), np.uint16), np.zeros(n, np.int32))
        painted = self._painter.paint(given, block[rows.ROW_ID].to_pylist())
        columns = {
            rows.ROW_TOKENS: tokens_array(painted.samples, n_positions),
            rows.DRAWN: pa.array(np.full(n, n_positions * self._n_drawn, np.int32)),
        }
        if painted.nll is not None:
            columns |= score_arrays(painted.nll[:, 0])
        for name, results in columns.items():
            block = block.append_column(name, results)
        return with_seconds(block, "model", time.perf_counter() - begun)
