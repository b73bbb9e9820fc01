"""From an input to a plan: its files found and counted, and cut into shards."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.cutting import cut_rows, cut_tars
from pipeline.inputs.files import (
    InputFile,
    choose_format,
    files_of_format,
    find_files,
    has_broken_name,
)
from pipeline.inputs.formats import Request
from pipeline.inputs.image_metadata import metadata_files, split_metadata
from pipeline.inputs.previous_run import find_run, part_files, without_other_files
from pipeline.rows import SAMPLES, TOKENS
from pipeline.shards import Plan, sum_if_known
from pipeline.storage.redact import redacted

_MOST_SHARDS_IN_GROUP = 64  # of a Parquet file, before people hear of it


@dataclass(frozen=True)
class Source:
    """An input whose files are found and counted: what `cut` makes a plan of.

    `files` come with their rows, None where nobody has counted them. Of tokens that are ready,
    `positions` is how many a row has where the type of their column says so, `palette` the
    fingerprint of theirs where it is known. `broken_names` are paths left out, as they are not
    UTF-8. The other fields are those of `Plan`.
    """

    format: str
    files: Sequence[tuple[InputFile, int | None]]
    limit: int | None
    image_column: str | None
    id_column: str | None
    passthrough: pa.Schema
    skipped: Mapping[str, int]
    positions: int | None = None
    palette: str | None = None
    broken_names: Sequence[str] = ()

    @classmethod
    def numbered(cls, count: int) -> "Source":
        """Makes a source without an input: `count` numbers, of which `sample` makes ids."""
        files = [(InputFile("", "sample"), count)]
        return cls("numbers", files, None, None, None, pa.schema([]), {})

    @property
    def rows(self) -> int | None:
        """Counts the rows; None where that shows only when all files are read."""
        every = sum_if_known(rows for _, rows in self.files)
        return every if self.limit is None or every is None else min(every, self.limit)

    def check_tokens(self, *, image_size: int, palette: str) -> None:
        """Raises UsageError where ready tokens are not those of such images, or of another
        palette than the one with this fingerprint."""
        if self.positions not in (None, image_size**2):
            raise UsageError(
                f"expected {image_size**2} tokens in each row, for {image_size} x {image_size} "
                f"pixels, found {self.positions} in column {self.image_column} of the input; next: "
                "a model of that size, or quantize the images for this one"
            )
        if self.palette not in (None, palette):
            raise UsageError(
                f"expected tokens of the palette {palette}, which the job uses, found those of "
                f"{self.palette}, whose colors are others; next: the model or palette of the run "
                "that made them, or quantize the images with this one"
            )

    def cut(self, shard_size: int) -> Plan:
        """Cuts shards of exactly `shard_size` rows, in the order of the files' names; only the last
        may be smaller. Tars are cut each by itself: its last shard may be smaller too, and have one
        row more, for an error of the tar. One that is compressed, or whose samples lie mixed, is a
        shard whatever the size. Raises ValueError for less than one row."""
        if shard_size < 1:
            raise ValueError(f"expected a shard of at least 1 row, found {shard_size}")
        if self.format == "webdataset":
            shards = cut_tars(self.files, shard_size=shard_size)
        else:
            assert self.rows is not None  # of tars alone nobody knows them
            shards = cut_rows(self.files, rows=self.rows, shard_size=shard_size)
        return Plan(
            self.format,
            shard_size,
            tuple(shards),
            self.image_column,
            self.id_column,
            self.passthrough,
            self.skipped,
            self.limit,
            {file.path: file.identity for file, rows in self.files if rows == 0},
        )

    def print_broken_names(self) -> None:
        """Prints a line for people, on stderr, where files are left out for their names."""
        if self.broken_names:
            n = len(self.broken_names)
            print(
                f"expected file names in UTF-8, found {n} with other bytes, left out, the first is "
                f"{self.broken_names[0]!a}; next: rename {'it' if n == 1 else 'them'}",
                file=sys.stderr,
                flush=True,
            )

    def print_large_groups(self, shard_size: int) -> None:
        """Prints a line for people, on stderr, where a row group holds so many rows that to read a
        shard late in it takes far longer than the shard itself."""
        file = max((file for file, _ in self.files), key=lambda file: file.largest_group)
        rows = min(file.largest_group, self.limit or file.largest_group)
        if rows > _MOST_SHARDS_IN_GROUP * shard_size:
            size = _MOST_SHARDS_IN_GROUP // 4 * shard_size
            print(
                f"{redacted(file.path)} has a row group of {file.largest_group} rows, for shards "
                f"of {shard_size}: to read a late one takes reading all before it; next: write the "
                f"file anew with pq.write_table(..., row_group_size={size})",
                file=sys.stderr,
                flush=True,
            )


def find_source(
    input: str,
    *,
    format: str = "auto",
    image_column: str | None = None,
    url_column: str | None = None,
    prompt_column: str | None = None,
    id_column: str | None = None,
    keep_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_from_folder: bool = False,
    limit: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    shown: bool = False,
) -> Source:
    """Finds and counts the files of an input (file, folder, glob, comma-list of them).

    A run directory gives its results: their `id`, their tokens, the columns that it passed through.
    Of `complete`, whose rows hold several pictures, `image_column` says which: with `samples` each
    sample is a row.

    `url_column` makes the input lists of web addresses, in that column. `image_column` may also
    name a column of tokens; `prompt_column` names one of tokens that begin images, of any length.
    `limit` takes the first rows only. `keep_columns` None keeps every column but the image; with a
    `label_column` it keeps that one, beside those named. With `label_from_folder` image files have
    a column of labels, that one or `label`, in place of those of metadata files.
    `storage_options` are those of the input location alone. `shown` says how far it is, where it
    takes long. Raises UsageError.
    """
    if url_column is not None:
        _refuse_with_urls({"--format": format != "auto", "--image-column": image_column})
        format, image_column = "urls", url_column
    if prompt_column is not None:
        format, image_column = "tokens", prompt_column
    request = Request(
        input=input,
        format=format,
        image_column=image_column,
        id_column=id_column,
        keep_columns=keep_columns,
        label_column=label_column,
        label_from_folder=label_from_folder,
        limit=limit,
        options=storage_options or {},
        shown=shown,
    )
    files = find_files(input, request.options)
    of_tables = format in ("auto", "parquet", "tokens")
    run = find_run(files, input, request.options) if of_tables else None
    if run is not None:
        files, request = part_files(run, files), request.of_run(run)
    broken_names = [file.path for file in files if has_broken_name(file)]
    files, metadata = split_metadata(files, format)
    format, files, skipped = choose_format(files, format, input)
    found = request.count(format, files, metadata)
    source = Source(
        found.format,
        found.files,
        limit,
        found.image_column,
        request.id_column,
        found.passthrough,
        {**skipped, **found.left_out},
        positions=found.positions if prompt_column is None else None,
        palette=run.palette if run and found.image_column in (TOKENS, SAMPLES) else None,
        broken_names=broken_names,
    )
    if source.rows == 0:
        raise UsageError(f"expected rows at {input}, found {len(files)} files without any")
    return source


def list_input(
    input: str, *, format: str, storage_options: Mapping[str, Any] | None = None
) -> list[InputFile]:
    """Lists the files of an input that has been planned as they are now, sorted by name: those of
    the plan's format, of a run its parts. What is gone is left out.

    Raises UsageError where the input is out of reach.
    """
    files: Sequence[InputFile] = find_files(input, storage_options or {}, missing_ok=True)
    if format in ("parquet", "tokens"):
        files = without_other_files(files)
    found = files_of_format(files, format)
    if format == "images":
        found += metadata_files(files)
    return found


def _refuse_with_urls(given: Mapping[str, object]) -> None:
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise UsageError(
            f"--url-column and {wrong[0]} say differently where images come from; next: one of them"
        )
