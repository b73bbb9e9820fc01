"""Images at web addresses, fetched by threads: whole, or an error that says what came instead."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError

from pipeline.readers.input_rows import STAGE, ReadOptions
from pipeline.readers.web_session import WebSession, deadline
from pipeline.rows import RowError
from pipeline.shards import Shard, Tries
from pipeline.storage.redact import redacted_line
from pipeline.storage.retry import is_of_the_node, with_retry

THREADS = 32  # requests at a time of one reader
# What hosts see: who asks, and where to read about it.
_HEADERS = {
    "User-Agent": "igpt (+https://github.com/igpt-pipeline/igpt)",
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
}
_CONNECT_SECONDS, _SILENT_SECONDS, _MOST_SECONDS = 10, 20, 60  # of one image
_PAUSES = (1.0,)  # one more try, of what may be gone soon
_MOST_REDIRECTS = 5
_CHUNK_BYTES = 64 << 10
_FEWEST = 5  # addresses, all without an answer, of which no host is the reason


class _Status(Exception):
    """An answer that is none: a status beside 2xx."""

    def __init__(self, status: int) -> None:
        self.status = status
        known = {each.value: f" {each.phrase}" for each in HTTPStatus}
        super().__init__(f"{status}{known.get(status, '')}")


class _Unanswered(ConnectionError):
    """A host that was not found, refused, was silent, or broke off; `kind` names what it was."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class Fetch:
    """Fetches images, and counts the addresses that no host has answered for."""

    options: ReadOptions
    _of_thread: threading.local = field(default_factory=threading.local)
    _n_answered: int = 0
    _unanswered: list[_Unanswered] = field(default_factory=list)

    def __call__(self, address: str) -> bytes | RowError:
        """Returns the image at an address, or why there is none. Raises faults of this machine."""
        if not _is_web(address):
            # Without its scheme nobody knows where in it a login or signature is.
            kind, separator, _ = address.partition("://")
            found = kind + separator if separator and kind.isalnum() else "something else"
            return RowError(STAGE, "BadAddress", f"expected http:// or https://, found {found}")
        try:
            answer = with_retry(lambda: self._get_in_time(address), _PAUSES)
            self._n_answered += 1
        except _Status as error:
            self._n_answered += 1
            answer = RowError(STAGE, f"Http{error.status}", str(error))
        except _Unanswered as error:
            self._unanswered.append(error)
            answer = RowError(STAGE, error.kind, str(error))
        except ValueError:
            answer = RowError(STAGE, "BadAddress", "it is no address that can be asked")
        if isinstance(answer, RowError):
            return replace(answer, message=f"{answer.message}: {_shown(address)}")
        return answer

    def _get_in_time(self, address: str) -> bytes | RowError:
        """Raises _Status, _Unanswered, ValueError for what is no address, and faults of the
        machine."""
        too_late = _Unanswered("ReadTimeout", f"{_MOST_SECONDS} seconds were not enough")
        with deadline(_MOST_SECONDS) as limit:
            try:
                answer = self._get(address)
            except _Unanswered:
                if limit.is_over:
                    raise too_late from None
                raise
            if limit.is_over:
                raise too_late
            return answer

    def _get(self, address: str) -> bytes | RowError:
        for _ in range(1 + _MOST_REDIRECTS):
            with self._ask(address) as answer:
                if not answer.is_redirect:
                    return self._body(answer)
                target = requests.Session.get_redirect_target(self._session(), answer)
            address = urljoin(address, target)
            if not _is_web(address):
                return RowError(STAGE, "BadRedirect", "it leads to what is no web address")
        return RowError(STAGE, "TooManyRedirects", f"more than {_MOST_REDIRECTS} redirects")

    def _ask(self, address: str) -> requests.Response:
        timeouts = (_CONNECT_SECONDS, _SILENT_SECONDS)
        try:
            return self._session().get(address, stream=True, timeout=timeouts)
        except (requests.RequestException, HTTPError, OSError) as error:
            raise _failure(error) from None

    def _body(self, answer: requests.Response) -> bytes | RowError:
        if answer.status_code >= 300:
            raise _Status(answer.status_code)
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and (refused := self.options.refused(int(length))):
            return refused
        image = bytearray()
        for chunk in _chunks(answer):
            image += chunk
            if refused := self.options.refused(len(image)):
                return refused
        return bytes(image) or RowError(STAGE, "EmptyImage", "the answer is empty")

    def _session(self) -> requests.Session:
        """Returns the session of this thread: of a host that gives several images the connection is
        kept."""
        session: requests.Session | None = getattr(self._of_thread, "session", None)
        if session is None:
            session = self._of_thread.session = WebSession()
            session.headers.update(_HEADERS)
        return session

    def check(self, shard: Shard) -> None:
        """Raises an error where no address was answered, as where this machine is offline."""
        is_offline = len(self._unanswered) >= _FEWEST and not self._n_answered
        if is_offline and shard.tries is Tries.MORE:
            raise self._unanswered[0]


def _is_web(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _shown(address: str) -> str:
    """Returns what of an address may be written down: its host and its path, without what stands
    before an @."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "its parts cannot be told"
    return f"{parts.scheme}://{parts.hostname or ''}/{parts.path[1:].rpartition('@')[2]}"


def _failure(error: Exception) -> Exception:
    """Makes an error of requests or urllib3 one of ours, without the address, which these quote."""
    inner = list(_inner(error))
    if of_node := [each for each in inner if is_of_the_node(each)]:
        return of_node[-1]
    if isinstance(error, ValueError):  # as requests' errors over addresses are
        return ValueError("no address")
    quoting = (requests.RequestException, MaxRetryError)
    reason = next((each for each in inner if not isinstance(each, quoting)), None)
    text = type(error).__name__ if reason is None else redacted_line(reason)
    if isinstance(error, requests.RequestException):
        return _Unanswered(type(error).__name__, text)
    is_timeout = isinstance(error, TimeoutError | ReadTimeoutError)
    return _Unanswered("ReadTimeout" if is_timeout else "ConnectionError", text)


def _inner(error: BaseException) -> Iterator[Exception]:
    """Yields an error and those that it holds, in whatever place libraries put them."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, Exception) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """Yields what has come of an answer, as it comes: requests itself waits for whole chunks, for
    as long as a byte comes now and then."""
    try:
        while chunk := answer.raw.read1(_CHUNK_BYTES, decode_content=True):
            yield chunk
    except (HTTPError, OSError) as error:
        raise _failure(error) from None
    if missing := answer.raw.length_remaining:
        raise _Unanswered("ConnectionError", f"the answer ended {missing:,} bytes early")
