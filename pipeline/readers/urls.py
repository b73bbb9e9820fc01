"""Reader of lists of web addresses: a row is the image that its address gives."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http import HTTPStatus

import requests
from urllib3.exceptions import HTTPError

from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.inputs.text_tables import read_table
from pipeline.inputs.url_lists import is_text_list
from pipeline.readers.input_rows import (
    STAGE,
    InputRows,
    ReadOptions,
    RowContent,
    failed_rows,
    prefetch,
)
from pipeline.readers.parquet import (
    ChangedFile,
    check_columns,
    input_rows,
    read_parquet,
    row_error,
)
from pipeline.readers.read_ahead import read_ahead
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard, Tries
from pipeline.storage.redact import redacted_location
from pipeline.storage.retry import with_retry

# What hosts see: who asks, and where to read about it.
_HEADERS = {
    "User-Agent": "igpt (+https://github.com/igpt-pipeline/igpt)",
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
}
_THREADS = 32  # requests at a time of one reader
_CONNECT_SECONDS, _SILENT_SECONDS, _MOST_SECONDS = 10, 20, 60  # of one image
_PAUSES = (1.0,)  # one more try, of what may be gone soon
_MOST_REDIRECTS = 5
_FEWEST = 5  # addresses, all without an answer, of which no host is the reason
_CHUNK_BYTES = 64 << 10


def read_urls(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads the image at the address of each row of a list; its id is `file#row`, or what the id
    column holds. An address that fails is a row with its error.

    Raises what is the place's: that the list cannot be read (see `read_parquet`), or that no
    address of the shard was answered at all, unless it is the last try.
    """
    fetch = _Fetch(options)
    rows = prefetch(_lists(shard, options))
    for found in rows:
        yield from _with_images(found, fetch, options)
    fetch.check(shard)


def _lists(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Yields the rows of a shard with the addresses (UTF-8) in place of images."""
    for file in shard.slices:
        if is_text_list(file.name):
            yield from _read_text(file, options, shard)
        else:
            yield from read_parquet(Shard(shard.index, (file,), shard.tries), options)


def _read_text(file: FileSlice, options: ReadOptions, shard: Shard) -> Iterator[InputRows]:
    """Yields the rows of a slice of text: all of them, whatever happened to the file."""
    row, stop = file.start, file.stop
    assert stop is not None  # planning has counted them
    try:
        table = read_table(file.path, file.name, file.identity, options.storage_options)
        check_columns(table.schema, file, options)
        for batch in table.slice(row, stop - row).combine_chunks().to_batches():
            for found in input_rows(batch, file, range(row, row + batch.num_rows), options):
                yield found
                row += len(found.ids)
        error = RowError(STAGE, "ChangedFile", f"the file has only {table.num_rows} rows now")
    except parquet_errors(ChangedFile) as failure:
        error = row_error(failure, shard, file, options)
    if row < stop:
        yield failed_rows(file, range(row, stop), error, options.passthrough)


def _with_images(rows: InputRows, fetch: "_Fetch", options: ReadOptions) -> Iterator[InputRows]:
    def image(index: int) -> RowContent:
        address = rows.images[index]
        if rows.ids[index] in options.kept:
            return b""
        return fetch(address.decode()) if isinstance(address, bytes) else address

    some = read_ahead(
        range(len(rows.ids)),
        image,
        size_of=lambda _: None,
        most_bytes=options.max_image_bytes,
        threads=_THREADS,
    )
    for each in some:
        first, n = each[0][0], len(each)
        part = slice(first, first + n)
        yield InputRows(
            rows.ids[part],
            rows.sources[part],
            [content for _, content in each],
            rows.columns.slice(first, n),
        )


class _Status(Exception):
    """An answer that is none: a status of 4xx or 5xx."""

    def __init__(self, status: int) -> None:
        self.status = status
        known = {each.value: f" {each.phrase}" for each in HTTPStatus}
        super().__init__(f"{status}{known.get(status, '')}")


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """Yields what has come of an answer, as it comes: requests itself waits for whole chunks, for
    as long as a byte comes now and then. Raises requests.ConnectionError."""
    try:
        while chunk := answer.raw.read1(_CHUNK_BYTES, decode_content=True):
            yield chunk
    except HTTPError as error:
        raise requests.ConnectionError(str(error)) from error
    if missing := answer.raw.length_remaining:
        raise requests.ConnectionError(f"the answer ended {missing:,} bytes early")


@dataclass
class _Fetch:
    """Fetches images, and counts the addresses that no host has answered for."""

    options: ReadOptions
    _of_thread: threading.local = field(default_factory=threading.local)
    _asked: int = 0
    _unanswered: list[Exception] = field(default_factory=list)

    def __call__(self, address: str) -> bytes | RowError:
        """Returns the image at an address, or why there is none."""
        self._asked += 1
        if not address.lower().startswith(("http://", "https://")):
            # Without its scheme nobody knows where in it a login or signature is.
            kind, separator, _ = address.partition("://")
            found = kind + separator if separator and kind.isalnum() else "something else"
            return RowError(STAGE, "BadAddress", f"expected http:// or https://, found {found}")
        try:
            answer = with_retry(lambda: self._get(address), _PAUSES)
        except _Status as error:
            answer = RowError(STAGE, f"Http{error.status}", str(error))
        except (requests.RequestException, OSError, ValueError) as error:
            if isinstance(error, requests.ConnectionError | requests.Timeout):
                self._unanswered.append(error)
            answer = RowError.named(STAGE, error)
        if isinstance(answer, RowError):
            where = redacted_location(address)
            return replace(answer, message=f"{answer.message}: {where}")
        return answer

    def _get(self, address: str) -> bytes | RowError:
        begun = time.monotonic()
        timeouts = (_CONNECT_SECONDS, _SILENT_SECONDS)
        with self._session().get(address, stream=True, timeout=timeouts) as answer:
            if answer.status_code >= 400:
                raise _Status(answer.status_code)
            length = answer.headers.get("Content-Length", "")
            if length.isdigit() and (refused := self.options.refused(int(length))):
                return refused
            image = bytearray()
            for chunk in _chunks(answer):
                image += chunk
                if refused := self.options.refused(len(image)):
                    return refused
                if time.monotonic() - begun > _MOST_SECONDS:
                    raise requests.ReadTimeout(f"{_MOST_SECONDS} seconds were not enough")
        return bytes(image) or RowError(STAGE, "EmptyImage", "the answer is empty")

    def _session(self) -> requests.Session:
        """Returns the session of this thread: of a host that gives several images the connection is
        kept."""
        session: requests.Session | None = getattr(self._of_thread, "session", None)
        if session is None:
            session = self._of_thread.session = requests.Session()
            session.headers.update(_HEADERS)
            session.max_redirects = _MOST_REDIRECTS
        return session

    def check(self, shard: Shard) -> None:
        """Raises an error where no address was answered, as where this machine is offline."""
        is_offline = self._asked >= _FEWEST and len(self._unanswered) == self._asked
        if is_offline and shard.tries is Tries.MORE:
            raise self._unanswered[0]
