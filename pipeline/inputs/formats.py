"""What planning makes of the files of an input, format by format: how many rows they have, and the
columns that go with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.class_folders import label_schema
from pipeline.inputs.files import InputFile
from pipeline.inputs.image_metadata import WITHOUT_COLUMNS, find_metadata, has_metadata
from pipeline.inputs.parquet_schema import (
    choose_image_column,
    choose_tokens_column,
    count_positions,
    holds_tokens,
    passthrough_schema,
    read_footers,
)
from pipeline.inputs.url_lists import count_addresses
from pipeline.inputs.webdataset_schema import count_samples, find_sample_schema
from pipeline.rows import ID, SAMPLES, TOKENS
from pipeline.run_directory.finished import FinishedRun


@dataclass(frozen=True)
class Counted:
    """Files with their rows, None where nobody has counted them; the other fields are those of
    `Source`, and `left_out` is more of its `skipped`."""

    format: str
    files: Sequence[tuple[InputFile, int | None]]
    image_column: str | None
    passthrough: pa.Schema
    positions: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a job wants of its input: the arguments of `find_source`, with `format` and
    `image_column` also for addresses and prompts. `samples`: how many pictures each row of a run
    holds, where they are rows."""

    input: str
    format: str
    image_column: str | None
    id_column: str | None
    keep_columns: Sequence[str] | None
    label_column: str | None
    label_from_folder: bool
    limit: int | None
    options: Mapping[str, Any]
    shown: bool
    samples: int | None = None

    def of_run(self, run: FinishedRun) -> "Request":
        """Returns what is wanted of a run's results. Raises UsageError where it must be said which
        of its pictures are meant."""
        image_column, samples = self.image_column, None
        if self.format != "parquet":
            if image_column is None:
                run.check_tokens()
                image_column = TOKENS
            samples = run.samples_in(image_column)
        return replace(
            self,
            image_column=image_column,
            id_column=self.id_column or ID,
            keep_columns=run.passthrough if self.keep_columns is None else self.keep_columns,
            samples=samples,
        )

    def count(
        self, format: str, files: Sequence[InputFile], metadata: Sequence[InputFile]
    ) -> Counted:
        """Counts the rows of files of this format, and finds their columns. `metadata`: files that
        may hold columns of images. Raises UsageError."""
        if format == "images":
            return self._count_images(files, metadata)
        if self.label_from_folder:
            raise UsageError(
                f"--label-from-folder is for image files, {self.input} holds tables or tars, whose "
                "labels are a column; next: leave it out"
            )
        if format == "webdataset":
            return self._count_tars(files)
        return self._count_lists(files) if format == "urls" else self._count_tables(files)

    @property
    def _kept(self) -> Sequence[str] | None:
        """Returns the columns to keep, with the one of labels: that one alone where none are
        named."""
        if self.label_column is None:
            return self.keep_columns
        return [*(self.keep_columns or []), self.label_column]

    def _count_images(self, files: Sequence[InputFile], metadata: Sequence[InputFile]) -> Counted:
        self._refuse_columns({"--image-column": self.image_column, "--id-column": self.id_column})
        counted = [*((file, 1) for file in files), *((file, 0) for file in metadata)]
        if self.label_from_folder:
            self._refuse_columns({"--keep-columns": self.keep_columns})
            labels = label_schema(files, self.label_column or "label")
            left_out = {WITHOUT_COLUMNS: len(metadata)} if metadata else {}
            return Counted("images", counted, None, labels, left_out=left_out)
        columns, left_out = find_metadata(files, metadata, self._kept, self.options)
        if not has_metadata(columns):
            given = {"--keep-columns": self.keep_columns, "--label-column": self.label_column}
            self._refuse_columns(given)
        return Counted("images", counted, None, columns, left_out=left_out)

    def _count_tars(self, files: Sequence[InputFile]) -> Counted:
        kept = self._kept
        counted, fields = count_samples(
            files, self.options, limit=self.limit, with_fields=kept is None, shown=self.shown
        )
        wanted = [*(kept or []), *([self.id_column] if self.id_column else []), *fields]
        first = find_sample_schema(files, self.options, image=self.image_column, wanted=wanted)
        columns = passthrough_schema([first], kept, self.image_column, self.id_column)
        return Counted("webdataset", counted, self.image_column, columns)

    def _count_lists(self, files: Sequence[InputFile]) -> Counted:
        kept, urls = self._kept, self.image_column
        assert urls is not None
        counted, schemas = count_addresses(
            files, self.options, urls, limit=self.limit, shown=self.shown
        )
        # Addresses may be signed: they are passed through where they are asked for.
        apart = None if urls in (kept or ()) else urls
        columns = passthrough_schema(schemas, kept, apart, self.id_column)
        return Counted("urls", counted, urls, columns)

    def _count_tables(self, files: Sequence[InputFile]) -> Counted:
        counted, schemas = read_footers(files, self.options, limit=self.limit, shown=self.shown)
        format, column, positions = "tokens", self.image_column, None
        if (samples := self.samples) is not None:
            positions = count_positions(schemas, SAMPLES)
            counted = [(file._replace(samples=samples), rows * samples) for file, rows in counted]
        elif self.format == "tokens" or (self.format == "auto" and holds_tokens(schemas, column)):
            column, positions = choose_tokens_column(schemas, column)
        else:
            format, column = "parquet", choose_image_column(schemas, column)
        columns = passthrough_schema(schemas, self._kept, column, self.id_column)
        return Counted(format, counted, column, columns, positions)

    def _refuse_columns(self, given: Mapping[str, object]) -> None:
        wrong = [name for name, value in given.items() if value]
        if wrong == ["--label-column"]:  # which has a default: nobody need have typed it
            raise UsageError(
                f"expected images with labels at {self.input}, found image files, which have none; "
                "next: --label-from-folder where they lie in folders by class, or a table "
                "(Parquet) or tars with a column of classes"
            )
        if wrong:
            raise UsageError(
                f"{wrong[0]} is for tables, {self.input} holds image files, which have no columns; "
                "next: a table (Parquet), or leave it out"
            )
