"""Faults of a store that are transient, and calls that are retried until they have gone."""

import errno
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import TypeVar

from igpt_core.errors import library_errors, loaded_classes

# Of a store's faults these are permanent, statuses of 4xx, and hosts without a name or certificate;
# the rest is retried.
_PERMANENT = (
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
    ValueError,  # an address that is none
)
# A library's errors over its configuration or its user, among those over broken connections. No
# credentials at all are none of them: a new node gets its role some time after it has started.
_PERMANENT_NAMES = {
    "botocore.exceptions": (
        *("BaseEndpointResolverError", "ConfigNotFound", "ConfigParseError", "DataNotFoundError"),
        *("EndpointProviderError", "InvalidConfigError", "InvalidDNSNameError", "LoginError"),
        *("InvalidEndpointConfigurationError", "InvalidProxiesConfigError", "NoAuthTokenError"),
        *("InvalidRetryConfigurationError", "InvalidS3AddressingStyleError", "ProfileNotFound"),
        *("MissingDependencyException", "ParamValidationError", "PartialCredentialsError"),
        *("SSOError", "TokenRetrievalError", "UnknownCredentialError", "UnsupportedS3ArnError"),
        *("UnknownSignatureVersionError", "ValidationError"),
    ),
    "google.auth.exceptions": (
        *("DefaultCredentialsError", "MutualTLSChannelError", "OAuthError", "RefreshError"),
        "UserAccessTokenError",
    ),
    "httpx": ("LocalProtocolError", "UnsupportedProtocol"),
    "httpx2": ("LocalProtocolError", "UnsupportedProtocol"),
}
_PERMANENT_IF_LOADED = [(lib, name) for lib, names in _PERMANENT_NAMES.items() for name in names]
_CUT_ANSWER = [("botocore.parsers", "ResponseParserError")]  # no BotoCoreError
_PERMANENT_ERRNOS = {
    *(errno.EINVAL, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG, errno.EOVERFLOW),
    *(errno.ENODEV, errno.ENXIO, errno.ENOSYS, errno.ENOTSUP, errno.EROFS),
    *(errno.EBADF, errno.EXDEV, errno.ENOTEMPTY),
    # What a damaged disk or filesystem answers, or an encrypted one without its key.
    *(errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENODATA, errno.ENOKEY),
}
# Of this machine, whatever is read: no row failed for it, and to wait helps little.
_NODE_ERRNOS = {errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}
_REFUSED = {401, 403, 407}
_TRANSIENT_STATUSES = {408, 425, 429}
_SERVER_FAULTS = {500, 502, 503, 504}
# How codes of S3, and of what speaks like it, begin that are transient whatever the status.
_TRANSIENT_CODES = (
    *("Throttl", "SlowDown", "TooManyRequests", "RequestLimit", "ServerBusy", "ServiceUnavailable"),
    *("InternalError", "InternalServer", "RequestTimeout"),
    "ExpiredToken",  # which is fetched anew
    *("BadDigest", "IncompleteBody"),  # a body that was damaged or cut on its way
    *("ConditionalRequestConflict", "OperationAborted"),  # another writer was not done yet
    "RequestTimeTooSkewed",  # a request that waited long, or a new node whose clock is not set
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


def is_of_access(error: BaseException) -> bool:
    """Returns whether a place says that a file is not there, refuses access to it, or is not found
    itself: what it may say of one file or of all."""
    return is_of_rights(error) or any(
        isinstance(each, (FileNotFoundError, NotADirectoryError)) or _is_wrong_host(each)
        for each in _causes(error)
    )


def is_of_rights(error: BaseException) -> bool:
    """Returns whether it says that access is refused."""
    return any(
        isinstance(each, PermissionError) or _http_status(each) in _REFUSED
        for each in _causes(error)
    )


def is_of_the_node(error: BaseException) -> bool:
    """Returns whether it says that this machine has no room, memory or file handles left, lacks a
    package, or is not set up for the store."""
    lacks = (MemoryError, ImportError, *loaded_classes(_PERMANENT_IF_LOADED))
    return any(
        isinstance(each, lacks) or (isinstance(each, OSError) and each.errno in _NODE_ERRNOS)
        for each in _causes(error)
    )


def is_server_fault(error: BaseException) -> bool:
    """Returns whether a store has answered that a fault of its own kept it, or what stands before
    it, from doing what was asked."""
    return _http_status(error) in _SERVER_FAULTS


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
    permanent = _PERMANENT + loaded_classes(_PERMANENT_IF_LOADED)
    broken = own + library_errors() + loaded_classes(_CUT_ANSWER)
    no_answer = isinstance(error, broken) and _http_status(error) is None
    return no_answer and not isinstance(error, permanent)


def _verdict(error: BaseException) -> bool | None:
    """Returns whether what a store answers is transient; None where the error is no store's."""
    # Never from all of its text, which names the file: that may be called `expired` or `timeout`.
    status, code = _http_status(error), _s3_code(error)
    if code.startswith(_TRANSIENT_CODES):
        return True
    if status is not None:
        # Answers to HEAD have no code of their own: 400 is how an expired token looks.
        return status in _TRANSIENT_STATUSES or status >= 500 or code == "400"
    if isinstance(error, PermissionError):  # s3fs makes those of tokens, without an errno
        return error.errno is None and " expired" in str(error).lower()
    if isinstance(error, _PERMANENT):
        return False
    if not isinstance(error, OSError):
        return None
    if error.errno is None:  # as pyarrow and Pillow say that data is damaged
        return True if hasattr(error, "response") else None  # of an HTTP library
    return error.errno not in _PERMANENT_ERRNOS | _NODE_ERRNOS


def _s3_code(error: BaseException) -> str:
    """Returns the code of an answer of S3, or of what speaks like it; empty without one."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else ""


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
