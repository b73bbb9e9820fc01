"""Runs of embed as features and labels: what a probe is fitted to."""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.inputs.files import find_files
from pipeline.inputs.previous_run import find_run
from pipeline.rows import embedding_name, hub_features
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import part_name
from pipeline.storage.filesystem import absolute, join, read_bytes

_THREADS = 16
# What two runs must have in common for a probe of the one to be tried on the other.
_SHARED = ("model", "palette", "image_size", "layers", "pool", "normed", "no_sos", "resize", "crop")


@dataclass(frozen=True)
class Embeddings:
    """A finished run of embed. `labels` (N,) int64; `names` of the classes where they are known."""

    location: str
    results: Mapping[str, Any]
    labels: NDArray[np.int64]
    names: tuple[str, ...] | None
    directory: RunDirectory
    shards: Sequence[int]

    @property
    def layers(self) -> list[int]:
        return list(self.results["layers"])

    def features(self, layer: int) -> NDArray[np.floating[Any]]:
        """Features (N, C) of a layer, in the order of the labels."""
        name = embedding_name(layer, len(self.layers))
        column = _column(self.directory, self.shards, name).combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), -1)  # type: ignore[no-any-return]

    def check_alike(self, other: "Embeddings") -> None:
        """Raises UsageError where the other run's features are not of the same kind."""
        for name in _SHARED:
            ours, theirs = self.results.get(name), other.results.get(name)
            if ours != theirs:
                raise UsageError(
                    f"expected --train and --test to be embedded alike, found {name} {ours} in "
                    f"{self.location} and {theirs} in {other.location}; next: igpt embed with the "
                    "same options for both"
                )


def read_embeddings(
    location: str, *, label_column: str, storage_options: Mapping[str, Any]
) -> Embeddings:
    """A run of embed with the labels of its rows. Raises UsageError where it is none, or a row
    has no whole number from 0 on as its label."""
    location = absolute(location)
    directory = RunDirectory.at(location, storage_options)
    record = directory.record()
    if record is None or record["job"] != "embed":
        found = "no run directory" if record is None else f"a run of {record['job']}"
        raise UsageError(f"expected a run of igpt embed at {location}, found {found}")
    find_run(find_files(location, storage_options), location, storage_options)  # is it finished?
    shards = sorted(directory.finished())
    schema = _schema(directory, shards[0])
    if label_column not in schema.names:
        raise UsageError(
            f"expected column {label_column} in {location}, found {', '.join(schema.names)}; next: "
            "--label-column with the column of classes, which embed passes through"
        )
    return Embeddings(
        location=location,
        results=record["results"],
        labels=_labels(_column(directory, shards, label_column), label_column, location),
        names=tuple(hub_features(schema).get(label_column, {}).get("names") or ()) or None,
        directory=directory,
        shards=shards,
    )


def _labels(column: pa.ChunkedArray, name: str, location: str) -> NDArray[np.int64]:
    if not pa.types.is_integer(column.type) or column.null_count or not len(column):
        what = f"{column.null_count} rows without one" if column.null_count else column.type
        raise UsageError(
            f"expected a whole number from 0 on in every row of column {name} of {location}, "
            f"found {what}; next: --label-column with a column of classes"
        )
    labels = column.cast(pa.int64()).to_numpy()
    if labels.min() < 0:
        raise UsageError(f"expected labels from 0 on in {name} of {location}, found {labels.min()}")
    return labels  # type: ignore[no-any-return]


def _schema(directory: RunDirectory, shard: int) -> pa.Schema:
    path = join(directory.path, part_name("data", shard))
    return pq.read_schema(io.BytesIO(read_bytes(directory.fs, path)))


def _column(directory: RunDirectory, shards: Sequence[int], name: str) -> pa.ChunkedArray:
    """A column of all parts, in order; no other column is read."""

    def read(shard: int) -> pa.ChunkedArray:
        with directory.fs.open(join(directory.path, part_name("data", shard)), "rb") as file:
            return pq.read_table(file, columns=[name])[name]

    with ThreadPoolExecutor(_THREADS) as pool:
        columns = list(pool.map(read, shards))
    return pa.chunked_array(
        [chunk for column in columns for chunk in column.chunks], columns[0].type
    )
