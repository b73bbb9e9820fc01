"""Writing a shard's part: its results, errors and stats, in the order that makes it safe."""

import base64
import json
import logging
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from igpt_core.images.model_palette import load_palette
from pipeline import rows
from pipeline.errors import Superseded
from pipeline.run_directory.layout import parquet_bytes, parquet_file, part_name, spread
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.likelihoods import NLLHistogram, has_nll
from pipeline.stages.blocks import shard_metadata, tokens_of
from pipeline.stages.earlier_part import KEPT, EarlierPart
from pipeline.stages.result_columns import RESULTS, pictures
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import exists, join, open_location, read_bytes

# What a shard's seconds are counted by.
STAGES = ("read", "decode", "model", "write")
_LOGGED_ERRORS = 10  # of a shard

_log = logging.getLogger(__name__)

SUMMARY = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("rows", pa.int32()),
        pa.field("errors", pa.int32()),
        pa.field("tokens", pa.int64()),  # sampled by the model
        pa.field("passes", pa.int64()),  # of the model, from which each sequence's were drawn
        pa.field("bytes", pa.int64()),  # of the results as Parquet
        pa.field("seconds", pa.struct([(stage, pa.float64()) for stage in STAGES])),
        pa.field("finished", pa.float64()),  # unix seconds
        pa.field("left", pa.bool_()),  # as it was: what was done again is not as good
    ]
)


class WriteParts:
    """A block of a shard's finished rows -> its part in the run directory, and a row of SUMMARY.

    Errors and stats are written before the data: a data part that is there means that the shard
    is done. Writing a part again writes the same bytes. Where failed rows are done again, the part
    that is there stays until one with as many good rows or more takes its place. Raises Superseded,
    and writes nothing more, once the run directory is another run's; what was written stays, for
    `igpt verify` to find.

    Args:
        output: the run directory.
        lease: on it; None where nobody else can write there.
        job: which of `rows.JOBS`.
        schema: of the results, see `rows.schema_for`.
        image_size: pixels a side.
        palette: location of the palette, for pictures of tokens.
        examples: rows of each part whose pictures are kept for the report, where the results
            themselves hold no images.
        output_options, model_options: fsspec options of the two locations.
        again: failed rows of shards that are done are done again.
    """

    def __init__(
        self,
        *,
        output: str,
        lease: Lease | None,
        job: str,
        schema: pa.Schema,
        image_size: int,
        palette: str,
        examples: int,
        output_options: Mapping[str, Any],
        model_options: Mapping[str, Any],
        again: bool = False,
    ) -> None:
        self._fs, self._output = open_location(output, output_options)
        self._lease = lease
        self._again = again
        self._columns = RESULTS.get(job)
        self._schema = schema
        self._has_nll = has_nll(job, schema)
        self._side = image_size
        self._n_examples = 0 if job in RESULTS else examples
        self._palette = load_palette(palette, storage_options=model_options)

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        metadata = shard_metadata(block)
        shard = metadata.index
        if block.num_rows != metadata.rows:
            raise RuntimeError(
                f"shard {shard}: expected {metadata.rows} rows, found {block.num_rows}; rows were "
                "lost between two stages, nothing was written"
            )
        good = block.filter(pc.is_null(block[rows.ERROR_STAGE]))
        failed = block.filter(pc.not_equal(block[rows.ERROR_STAGE], KEPT.stage))  # null is no error
        results = self.results(good)
        earlier = self._earlier(shard)
        figures, squashed = self._figures(good, results), metadata.squashed
        tokens, passes = _sum(good, rows.SAMPLED_TOKENS), _sum(good, rows.PASSES)
        if earlier is not None:
            results = earlier.merged(block, results)
            if not earlier.is_as_good(block, results):
                return self._left(shard, earlier, found=results.num_rows)
            figures |= self._likelihoods(results) | earlier.figures(block, results)
            tokens += earlier.kept_count("tokens", block)
            passes += earlier.kept_count("passes", block)
            squashed += earlier.kept_count("squashed", block)
        payload = parquet_bytes(results)
        summary = {
            "shard": shard,
            "rows": results.num_rows,
            "errors": failed.num_rows,
            "tokens": tokens,
            "passes": passes,
            "bytes": len(payload),
            "finished": time.time(),
            "seconds": {**metadata.seconds, "write": time.perf_counter() - begun},
        }
        figures |= {"squashed": squashed} if squashed else {}
        self._check_lease(shard)  # no sooner: all that takes seconds
        if earlier is None:
            self._write_errors(shard, failed)
            self._write_stats(shard, summary | figures)
            self._check_lease(shard)
            write_atomic(self._fs, self._path("data", shard), payload)
        else:  # killed before the last step, a row has an error yet: the next retry clears that up
            write_atomic(self._fs, self._path("data", shard), payload)
            self._write_stats(shard, summary | figures)
            self._replace_errors(shard, _errors_payload(failed))
        self._check_lease(shard)  # so that no shard counts as this run's which another may redo
        return pa.Table.from_pylist([summary | {"left": False}], schema=SUMMARY)

    def _earlier(self, shard: int) -> EarlierPart | None:
        if not self._again:
            return None
        return EarlierPart.read(self._fs, self._output, shard, self._schema)

    def _left(self, shard: int, earlier: EarlierPart, *, found: int) -> pa.Table:
        """Leaves a shard as it is, with more good rows than were found now."""
        _log.warning(
            "shard %d: %d good rows now, %d there; it stays as it is",
            *(shard, found, earlier.results.num_rows),
        )
        errors = self._errors_there(self._path("errors", shard))
        summary = {
            "shard": shard,
            "rows": earlier.results.num_rows,
            "errors": 0 if errors is None else parquet_file(errors).metadata.num_rows,
            "tokens": 0,
            "passes": 0,
            "bytes": 0,
            "finished": time.time(),
            "seconds": {},
            "left": True,
        }
        return pa.Table.from_pylist([summary], schema=SUMMARY)

    def _path(self, folder: str, shard: int) -> str:
        return join(self._output, part_name(folder, shard))

    def _check_lease(self, shard: int) -> None:
        """Raises Superseded where the lease is another run's by now."""
        if self._lease is not None and not self._lease.may_write():
            raise Superseded(
                f"another run works at {self._output} now; shard {shard} is left to it"
            )

    def results(self, good: pa.Table) -> pa.Table:
        """Makes the results, as they are stored, of good finished rows."""
        columns = {rows.ID: good[rows.ROW_ID]}
        columns |= {name: good[name] for name in good.column_names if name in self._schema.names}
        if self._columns is not None:
            columns |= self._columns(good, self._palette, self._side)
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _figures(self, good: pa.Table, results: pa.Table) -> dict[str, Any]:
        """Collects what the stats of a part hold beside its summary."""
        figures: dict[str, Any] = {"host": socket.gethostname()}
        if self._lease is not None:
            # Not in the part, whose bytes no run may change.
            figures |= {"run": self._lease.run, "started": self._lease.started}
        if self._n_examples:
            figures["examples"] = self._examples(good)
        return figures | self._likelihoods(results)

    def _likelihoods(self, results: pa.Table) -> dict[str, Any]:
        return {"nats": NLLHistogram.of(results).to_json()} if self._has_nll else {}

    def _write_stats(self, shard: int, stats: Mapping[str, Any]) -> None:
        write_atomic(self._fs, self._path("stats", shard), json.dumps(stats).encode())

    def _examples(self, good: pa.Table) -> list[dict[str, Any]]:
        """Chooses a few rows of the part, evenly spread, each with its picture as base64 of PNG."""
        chosen = spread(good.num_rows, self._n_examples)
        tokens = list(tokens_of(good[rows.ROW_TOKENS].take(pa.array(chosen, pa.int64()))))
        images = pictures(tokens, self._palette, self._side).field("bytes").to_pylist()
        return [
            {"row": row, "png": base64.b64encode(png).decode()}
            for row, png in zip(chosen, images, strict=True)
        ]

    def _write_errors(self, shard: int, failed: pa.Table) -> None:
        path, payload = self._path("errors", shard), _errors_payload(failed)
        for row in failed.slice(0, _LOGGED_ERRORS).to_pylist():
            names = (rows.ROW_ID, rows.ERROR_CLASS, rows.ERROR_MESSAGE)
            _log.warning("shard %d, %s: %s: %s", shard, *map(row.get, names))
        if failed.num_rows > _LOGGED_ERRORS:
            _log.warning("shard %d: %d failed rows, all in %s", shard, failed.num_rows, path)
        if payload == self._errors_there(path):
            return
        # An earlier attempt at this shard had other errors: its results lack rows, or hold some
        # that are errors now. Where this attempt got no further they would count as done. Only
        # where they are there: a store may carry out a request whose answer timed out later than
        # the one that was sent in its place, and after the results that were written meanwhile.
        if exists(self._fs, data := self._path("data", shard)):
            with suppress(FileNotFoundError):
                self._fs.rm_file(data)
        self._replace_errors(shard, payload)

    def _replace_errors(self, shard: int, payload: bytes | None) -> None:
        path = self._path("errors", shard)
        if payload is not None:
            write_atomic(self._fs, path, payload)
        else:
            with suppress(FileNotFoundError):
                self._fs.rm_file(path)

    def _errors_there(self, path: str) -> bytes | None:
        try:
            return read_bytes(self._fs, path)
        except FileNotFoundError:
            return None


_ERROR_COLUMNS = (
    rows.ROW_ID,
    rows.SOURCE,
    rows.ERROR_STAGE,
    rows.ERROR_CLASS,
    rows.ERROR_MESSAGE,
)


def _errors_payload(failed: pa.Table) -> bytes | None:
    """Returns a part of errors; None without any."""
    if not failed.num_rows:
        return None
    return parquet_bytes(pa.table([failed[name] for name in _ERROR_COLUMNS], schema=rows.ERRORS))


def _sum(good: pa.Table, column: str) -> int:
    """Sums a column of counts of the good rows; 0 where they have none."""
    return int(pc.sum(good[column]).as_py() or 0) if column in good.column_names else 0
