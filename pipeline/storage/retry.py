"""Faults of a store that are transient, and calls that are retried until they have gone."""

import errno
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import TypeVar

from igpt_core.errors import library_errors

# Of a store's faults these are permanent, statuses of 4xx, and hosts without a name or certificate;
# the rest is retried.
_PERMANENT = (
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
    ValueError,  # an address that is none
)
_PERMANENT_ERRNOS = {
    *(errno.EINVAL, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG, errno.EOVERFLOW),
    *(errno.ENODEV, errno.ENXIO, errno.ENOSYS, errno.ENOTSUP, errno.EROFS),
}
# Of this machine, whatever is read: no row failed for it, and to wait helps little.
_NODE_ERRNOS = {errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}
_TRANSIENT_STATUSES = {408, 425, 429}
# What an error says that is transient although its status is not: a token that expired and is
# fetched anew, a busy store, a clock that is not set yet, a body that was cut on its way, another
# writer of the same object. Answers to HEAD have no words: 400 is how an expired token looks.
_SAYS_TRANSIENT = re.compile(
    r"expired|throttl|slowdown|timeout|tooskewed|incompletebody|baddigest|requestconflict"
    r"|\(400\) when calling the HeadObject",
    re.IGNORECASE,
)

REQUEST_BACKOFF = (0.2, 1.0, 4.0)  # seconds between tries of one request
SHARD_BACKOFF = (5.0, 20.0, 60.0)  # the same of all the work of a shard

Result = TypeVar("Result")


def is_transient(error: BaseException) -> bool:
    """Returns whether an exception, or what it was raised from, is a fault of a store that may be
    gone soon: a timeout, a broken connection, a busy store.

    An error that is no store's is not: a bug, or data that is damaged or cut.
    """
    causes = list(_causes(error))
    if any(_is_wrong_host(each) for each in causes):
        return False
    if any(_is_broken_connection(each) for each in causes):
        return True
    verdicts = [verdict for each in causes if (verdict := _verdict(each)) is not None]
    return bool(verdicts) and verdicts[-1]  # the first cause knows best


def is_of_the_node(error: BaseException) -> bool:
    """Returns whether it says that this machine has no room, memory or file handles left."""
    return any(
        isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno in _NODE_ERRNOS)
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    # Not what an error was raised beside (__context__): that a store refuses a thing is permanent,
    # whatever had been the reason to ask for it.
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _is_wrong_host(error: BaseException) -> bool:
    """Returns whether a host has no name here, or proves to be another one."""
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN
    return isinstance(error, ssl.SSLCertVerificationError)


def _is_broken_connection(error: BaseException) -> bool:
    """Returns whether a request got no answer, or not all of it."""
    own = (ConnectionError, TimeoutError, ssl.SSLError, HTTPException)
    no_answer = isinstance(error, own + library_errors()) and _http_status(error) is None
    return no_answer and not isinstance(error, _PERMANENT)


def _verdict(error: BaseException) -> bool | None:
    """Returns whether what a store answers is transient; None where the error is no store's."""
    status = _http_status(error)
    if status is not None:
        if status in _TRANSIENT_STATUSES or status >= 500:
            return True
        return _SAYS_TRANSIENT.search(str(error)) is not None
    if isinstance(error, _PERMANENT):
        return isinstance(error, PermissionError) and "expired" in str(error).lower()
    if not isinstance(error, OSError):
        return None
    if error.errno is None:  # as pyarrow and Pillow say that data is damaged
        return True if hasattr(error, "response") else None  # of an HTTP library
    return error.errno not in _PERMANENT_ERRNOS | _NODE_ERRNOS


def _http_status(error: BaseException) -> int | None:
    """Returns the status of an error that has one, itself or in its response. A body that is cut
    after a status of 200 is none of them."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # what s3fs makes its errors from
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for place in (error, response):
        for name in ("status", "status_code", "code"):
            status = getattr(place, name, None)
            if isinstance(status, int) and status >= 300:
                return status
    return None


def with_retry(call: Callable[[], Result], pauses: Sequence[float] = REQUEST_BACKOFF) -> Result:
    """Calls, and once more after each pause while its faults are transient; returns what the call
    returns.

    Pauses are stretched at random by up to a half, so that actors which failed together do not come
    back together. Raises what the last try raised.
    """
    for pause in pauses:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(pause * random.uniform(1.0, 1.5))
    return call()
