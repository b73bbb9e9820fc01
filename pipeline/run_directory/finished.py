"""FinishedRun: the one way to open a run whose results are to be used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError
from pipeline.rows import SAMPLES, TOKENS
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import REPORT_FILE, part_name
from pipeline.run_directory.record import check_format, known_job, resuming
from pipeline.storage.filesystem import join, uri_of


@dataclass(frozen=True)
class FinishedRun:
    """A run of a known job that has its report and all its parts.

    Attributes:
        location: where it lies, for people.
        record: what run.json holds.
        report: what report.json holds.
        parts: the path or URI of each shard's part of results, in order.
    """

    location: str
    record: Mapping[str, Any]
    report: Mapping[str, Any]
    parts: Mapping[int, str]

    @classmethod
    def open(cls, location: str, options: Mapping[str, Any]) -> "FinishedRun":
        """Opens a run directory: two small files and a listing, no part. `options` are fsspec's.

        Raises UsageError where there is no run, or as `checked` does.
        """
        directory = RunDirectory.at(location, options)
        record = directory.require_record()

        def uri(shard: int) -> str:
            path = join(directory.path, part_name("data", shard))
            return uri_of(path, uri=directory.location, path=directory.path)

        parts = {shard: uri(shard) for shard in directory.finished()}
        return cls.checked(directory.location, record, directory.report(), parts)

    @classmethod
    def checked(
        cls,
        location: str,
        record: Mapping[str, Any],
        report: Mapping[str, Any] | None,
        parts: Mapping[int, str],
    ) -> "FinishedRun":
        """Checks what was found of a run: `record` and `report` (None: no such file) and its parts.

        Raises UsageError where it is of another format or of a job that this igpt does not know;
        where it is not finished, with the command that resumes it.
        """
        check_format(location, record)
        known_job(location, record)
        shards = None if report is None else report.get("shards")
        if report is None or not parts or len(parts) != shards:
            of = "" if shards is None else f" of {shards}"
            raise UsageError(
                f"expected a finished run at {location}, found {len(parts)}{of} parts"
                f"{' and no ' + REPORT_FILE if report is None else ''}; next: the command that "
                f"resumes it: {resuming(record['command'])}"
            )
        return cls(location, record, report, dict(sorted(parts.items())))

    @property
    def job(self) -> str:
        """Returns the job that made it, one of `rows.JOBS`."""
        return str(self.record["job"])

    @property
    def passthrough(self) -> list[str]:
        """Lists the columns that it has from its own input."""
        return list(self.record.get("passthrough", ()))

    @property
    def palette(self) -> str:
        """Returns the fingerprint of the palette of its tokens."""
        return str(self.record["palette"]["fingerprint"])

    def samples_in(self, column: str | None) -> int | None:
        """Counts the pictures in each row of a column that the job wrote; None where it is one."""
        if column != SAMPLES or SAMPLES not in self._columns:
            return None
        return int(self.record["results"]["samples"])

    def check_tokens(self) -> None:
        """Raises UsageError where the job wrote no column of tokens, or more than one."""
        if SAMPLES in self._columns:
            originals = ", or tokens for the originals" if TOKENS in self._columns else ""
            raise UsageError(
                f"expected --image-column for {self.location}, a run of {self.job} with several "
                f"pictures in a row, found none; next: --image-column {SAMPLES} for a row of each "
                f"sample{originals}"
            )
        if TOKENS not in self._columns:
            raise UsageError(
                "expected a run with tokens (of quantize, complete or sample) at "
                f"{self.location}, found one of {self.job}; next: the run or the images that it "
                "was made of"
            )

    @property
    def _columns(self) -> set[str]:
        """Returns the names of the columns that the job wrote."""
        return {column["name"] for column in self.record["columns"]} - {*self.passthrough}
