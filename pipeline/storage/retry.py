"""Faults of a store that pass: which they are, and calls that are made again until they have."""

import errno
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import IncompleteRead
from typing import TypeVar

import aiohttp
import botocore.exceptions
import botocore.parsers
import requests

from igpt_core.errors import loaded_classes

# A store that is busy, restarts or is out of reach for a moment. What is full, forbidden, missing
# or broken stays so, and is not among them.
_PASSING = {
    *(errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.ENETDOWN, errno.ENETRESET),
    *(errno.ENETUNREACH, errno.ENOBUFS, errno.ENOTCONN, errno.EPIPE, errno.EREMOTEIO),
    *(errno.ESTALE, errno.ETIMEDOUT),
}
_TRANSPORT_OF_HTTPX = ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError")
_PASSING_CLASSES = (
    ConnectionError,
    TimeoutError,
    IncompleteRead,
    ssl.SSLEOFError,
    ssl.SSLSyscallError,
    ssl.SSLZeroReturnError,
    aiohttp.ClientError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.parsers.ResponseParserError,
    # A new node has its role some time after it has started.
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.MetadataRetrievalError,
)
# The same of libraries that may be absent: those of hf://, gs:// and abfs://.
_PASSING_IF_LOADED = (
    *(("httpx", name) for name in _TRANSPORT_OF_HTTPX),
    *(("httpx2", name) for name in _TRANSPORT_OF_HTTPX),
    ("google.auth.exceptions", "TransportError"),
    ("azure.core.exceptions", "ServiceRequestError"),
    ("azure.core.exceptions", "ServiceResponseError"),
    ("azure.core.exceptions", "IncompleteReadError"),
)
_TRY_LATER = {408, 425, 429}
# How codes of S3, and of what speaks like it, begin that pass whatever the status.
_PASSING_CODES = (
    *("Throttl", "SlowDown", "TooManyRequests", "RequestLimit", "ServerBusy", "InternalServer"),
    *("BadDigest", "IncompleteBody"),  # a body that was damaged or cut on its way
    "ConditionalRequestConflict",  # another writer of the same object was not done yet
    "RequestTimeTooSkewed",  # a request that waited long, or a new node whose clock is not set
)
# Of this machine, whatever is read: no image is bad for it, and to wait helps little.
_OF_THE_NODE = {errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}

REQUEST_BACKOFF = (0.2, 1.0, 4.0)  # seconds between tries of one request
SHARD_BACKOFF = (5.0, 20.0, 60.0)  # the same of all the work of a shard

Result = TypeVar("Result")


def is_transient(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, is a fault that may be gone soon: a time-
    out, a broken connection, a busy store, credentials that expired and are fetched anew."""
    return any(_passes(each) for each in _causes(error))


def is_of_the_node(error: BaseException) -> bool:
    """Whether it says that this machine has no room, memory or file handles left."""
    return any(
        isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno in _OF_THE_NODE)
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    # Not what an error was raised beside (__context__): that a store refuses a thing lasts,
    # whatever had been the reason to ask for it.
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, botocore.exceptions.ClientError):
        return _passes_in_s3(error)
    status = _http_status(error)
    if status is not None:
        return status in _TRY_LATER or status >= 500
    if isinstance(error, PermissionError):
        return "expired" in str(error).lower()
    if isinstance(error, socket.gaierror):  # a host that has no name here will not get one
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    return isinstance(error, (*_PASSING_CLASSES, *loaded_classes(_PASSING_IF_LOADED)))


def _passes_in_s3(error: botocore.exceptions.ClientError) -> bool:
    """s3fs makes an OSError of these, often one that says nothing, and keeps them as its cause."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = error.response.get("Error", {}).get("Code", "")
    # Answers to HEAD have no words: this is how a token that has expired looks.
    nameless = status == 400 and error.operation_name == "HeadObject"
    return status in _TRY_LATER or status >= 500 or nameless or code.startswith(_PASSING_CODES)


def _http_status(error: BaseException) -> int | None:
    """Of an error that says so, as those of aiohttp, gcsfs, requests and httpx do. A body that is
    cut after a status of 200 is none of them."""
    for place in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            status = getattr(place, name, None)
            if isinstance(status, int) and status >= 300:
                return status
    return None


def with_retry(call: Callable[[], Result], pauses: Sequence[float] = REQUEST_BACKOFF) -> Result:
    """What the call returns, which is made again after each pause while a fault passes.

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
