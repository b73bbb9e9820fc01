"""How nats per pixel are spread, against numpy on all values; and what WriteParts keeps of it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pictures import SIDE
from pipeline import rows
from pipeline.run_directory.likelihoods import NLLHistogram, has_nll, to_bits
from pipeline.stages.blocks import ShardMetadata, tokens_array, with_shard_metadata
from pipeline.stages.write_parts import WriteParts

N = SIDE**2


def results(values: list, *, type_: pa.DataType | None = None, start: int = 0) -> pa.Table:
    ids = [f"image-{start + i}" for i in range(len(values))]
    return pa.table({"id": ids, "nll": pa.array(values, type_ or pa.float32())})


def test_parts_add_up_to_what_numpy_finds_in_all_values():
    values = np.random.default_rng(0).gamma(9, 0.35, 5000).astype(np.float32)
    values[17] = 31.5  # beyond the last edge
    cuts = np.split(values, [1, 1, 700, 4000])  # one part of a single row, one of none
    starts = np.cumsum([0, *map(len, cuts)])
    parts = [
        NLLHistogram.of(results(cut.tolist(), start=start))
        for cut, start in zip(cuts, starts, strict=False)
    ]
    kept = [json.loads(json.dumps(part.to_json())) for part in parts]
    total = sum(map(NLLHistogram.from_json, kept), start=NLLHistogram.empty())

    edges = [*(i / 20 for i in range(161)), np.inf]
    assert total.counts.tolist() == np.histogram(values.astype(np.float64), edges)[0].tolist()
    assert total.n == 5000
    assert total.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert total.median == pytest.approx(np.median(values), abs=0.05)  # a bin
    order = np.argsort(values, kind="stable")
    assert [id_ for id_, _ in total.lowest] == [f"image-{i}" for i in order[:5]]
    assert [value for _, value in total.highest] == values[order[::-1][:5]].tolist()
    assert total.highest[0] == ("image-17", 31.5)
    assert total.not_finite == 0


def test_what_is_no_number_is_counted_and_nothing_else():
    values = [float("nan"), 2.0, float("inf"), None, -0.0, -float("inf"), 4.0]
    found = NLLHistogram.of(results(values))
    assert (found.n, found.not_finite, found.mean) == (3, 4, 2.0)
    assert [value for _, value in found.lowest] == [0.0, 2.0, 4.0]
    assert "NaN" not in json.dumps(found.to_json())
    assert NLLHistogram.of(results([float("nan")])).n == 0
    assert NLLHistogram.empty().n == 0


@pytest.mark.parametrize("values", [[3.03], [9.0], [1.0, 1.0, 7.99], [8.0, 12.0, 13.0, 40.0]])
def test_median_lies_within_the_values(values: list[float]):
    found = NLLHistogram.of(results(values))
    assert np.float32(min(values)) <= found.median <= np.float32(max(values))


def test_every_completion_of_a_row_counts():
    values = [[1.0, 3.0], [], None, [2.0, 5.5]]
    found = NLLHistogram.of(results(values, type_=pa.list_(pa.float32())))
    assert found.n == 4
    assert found.total == 11.5
    assert found.lowest == (("image-0", 1.0), ("image-3", 2.0), ("image-0", 3.0), ("image-3", 5.5))
    assert to_bits(np.log(8)) == pytest.approx(3)


def test_a_column_of_the_input_is_not_taken_for_the_jobs_own():
    own = rows.schema_for("score", rows.score_columns(N))
    assert has_nll("score", own)
    assert not has_nll("classify", own)
    assert not has_nll("complete", own)  # there it is a list
    assert has_nll("complete", rows.schema_for("complete", rows.complete_columns(N, scored=True)))
    assert not has_nll("sample", rows.schema_for("sample", rows.sample_columns(N)))


def test_the_writer_keeps_the_nats_of_good_rows(tiny_model, tmp_path: Path):
    good = [True, False, True, True]
    nats = [1.5, None, 0.25, 9.5]
    tokens = np.random.default_rng(0).integers(0, 32, (3, N)).astype(np.uint16)
    errors = [None if g else "no image" for g in good]
    block = pa.table(
        {
            rows.ROW_ID: list("abcd"),
            rows.SOURCE: list("abcd"),
            rows.ROW_TOKENS: tokens_array(tokens, N, valid=good),
            rows.ERROR_STAGE: pa.array([e and "decode" for e in errors], pa.string()),
            rows.ERROR_CLASS: pa.array([e and "ImageError" for e in errors], pa.string()),
            rows.ERROR_MESSAGE: pa.array(errors, pa.string()),
            "nll": pa.array(nats, pa.float32()),
            "bits_per_pixel": pa.array([n and to_bits(n) for n in nats], pa.float32()),
        }
    )
    write = WriteParts(
        output=str(tmp_path),
        lease=None,
        job="score",
        schema=rows.schema_for("score", rows.score_columns(N)),
        image_size=SIDE,
        palette=tiny_model,
        examples=1,
        output_options={},
        model_options={},
    )
    write(with_shard_metadata(block, ShardMetadata(0, rows=4)))
    assert pq.read_table(tmp_path / "data")["nll"].to_pylist() == [1.5, 0.25, 9.5]
    stats = json.loads((tmp_path / "stats/part-000000.json").read_text())
    assert stats["nats"] == {
        "bin_width": 0.05,
        "bins": {"5": 1, "30": 1, "160": 1},
        "sum": 11.25,
        "lowest": [["c", 0.25], ["a", 1.5], ["d", 9.5]],
        "highest": [["d", 9.5], ["a", 1.5], ["c", 0.25]],
        "not_finite": 0,
    }
