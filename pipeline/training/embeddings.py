"""Runs of igpt embed as features and labels, which probes are fitted to and tested on."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.rows import embedding_name, hub_features
from pipeline.run_directory.finished import FinishedRun
from pipeline.storage.filesystem import absolute, open_location

_THREADS = 16
# What two runs must have in common for a probe of the one to be tested on the other.
_SHARED = ("model", "palette", "image_size", "layers", "pool", "normed", "no_sos", "resize", "crop")


@dataclass(frozen=True)
class Embeddings:
    """A finished run of embed, with labels.

    Attributes:
        labels: (N,) int64, from 0.
        names: of the classes, where they are known.
        options: fsspec options of the run's location.
    """

    run: FinishedRun
    labels: NDArray[np.int64]
    names: tuple[str, ...] | None
    options: Mapping[str, Any] = field(repr=False)

    @property
    def results(self) -> Mapping[str, Any]:
        """Returns what the results depend on, as run.json has it."""
        return self.run.record["results"]  # type: ignore[no-any-return]

    @property
    def layers(self) -> list[int]:
        """Lists the layers whose features there are."""
        return list(self.results["layers"])

    def features(self, layer: int) -> NDArray[np.floating[Any]]:
        """Reads the features (N, C) of a layer, in the order of the labels."""
        name = embedding_name(layer, len(self.layers))
        column = _column(self.run, name, self.options).combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), -1)  # type: ignore[no-any-return]

    def check_alike(self, other: "Embeddings") -> None:
        """Raises UsageError where the other run's features are not of the same kind."""
        for name in _SHARED:
            ours, theirs = self.results.get(name), other.results.get(name)
            if ours != theirs:
                raise UsageError(
                    f"expected --train and --test to be embedded alike, found {name} {ours} in "
                    f"{self.run.location} and {theirs} in {other.run.location}; next: igpt embed "
                    "with the same options for both"
                )


def read_embeddings(
    location: str, *, label_column: str, storage_options: Mapping[str, Any]
) -> Embeddings:
    """Opens a run of embed and reads the labels of its rows.

    Raises UsageError where it is no finished run of embed, or a row has no whole number from 0 on
    as its label.
    """
    run = FinishedRun.open(absolute(location), storage_options)
    if run.job != "embed":
        raise UsageError(
            f"expected a run of igpt embed at {run.location}, found a run of {run.job}"
        )
    schema = _schema(run, storage_options)
    if label_column not in schema.names:
        raise UsageError(
            f"expected column {label_column} in {run.location}, found {', '.join(schema.names)}; "
            "next: --label-column with the column of classes, which embed passes through"
        )
    column = _column(run, label_column, storage_options)
    return Embeddings(
        run=run,
        labels=_labels(column, label_column, run.location),
        names=tuple(hub_features(schema).get(label_column, {}).get("names") or ()) or None,
        options=storage_options,
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


def _schema(run: FinishedRun, options: Mapping[str, Any]) -> pa.Schema:
    fs, path = open_location(next(iter(run.parts.values())), options)
    with fs.open(path, "rb") as file:
        return pq.read_schema(file)


def _column(run: FinishedRun, name: str, options: Mapping[str, Any]) -> pa.ChunkedArray:
    """Reads a column of all parts, in order, and no other column."""

    def read(uri: str) -> pa.ChunkedArray:
        fs, path = open_location(uri, options)
        with fs.open(path, "rb") as file:
            return pq.read_table(file, columns=[name])[name]

    with ThreadPoolExecutor(_THREADS) as pool:
        columns = list(pool.map(read, run.parts.values()))
    return pa.chunked_array(
        [chunk for column in columns for chunk in column.chunks], columns[0].type
    )
