"""Which faults of a store are transient, and how often a call is retried."""

import errno
import gzip
import http.client
import http.server
import io
import json
import socket
import ssl
import sys
import threading
from types import ModuleType, SimpleNamespace

import aiohttp
import botocore.exceptions
import botocore.parsers
import huggingface_hub.errors
import pyarrow as pa
import pytest
import requests
from PIL import Image, UnidentifiedImageError
from s3fs.errors import translate_boto_error

from igpt_core.images.pixels import load_pixels
from igpt_core.images.raster_formats import ImageError
from pipeline.errors import UsageError
from pipeline.readers.images import read_image_files
from pipeline.readers.input_rows import ReadOptions
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage import retry
from pipeline.storage.filesystem import open_location, read_bytes
from pipeline.storage.retry import is_transient, with_retry

# The HTTP library of huggingface_hub: httpx or httpx2.
HTTPX = sys.modules[huggingface_hub.errors.HTTPError.__module__]


def of_s3(
    code: str, message: str = "", *, status: int = 400, operation: str = "GetObject"
) -> Exception:
    """What s3fs makes of an answer of S3."""
    answer = {
        "Error": {"Code": code, "Message": message or code},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return translate_boto_error(botocore.exceptions.ClientError(answer, operation))


def of_http(status: int, uri: str = "https://store") -> Exception:
    return aiohttp.ClientResponseError(SimpleNamespace(real_url=uri), (), status=status)


def of_requests(status: int, uri: str) -> Exception:
    """What requests makes of an answer: its text names the URI."""
    response = requests.Response()
    response.status_code, response.url = status, uri
    with pytest.raises(requests.HTTPError) as caught:
        response.raise_for_status()
    return caught.value


class OfGcs(Exception):
    """As gcsfs.retry.HttpError, which is no dependency."""

    def __init__(self, code: int) -> None:
        self.code = code


def raised_from(cause: Exception) -> Exception:
    error = RuntimeError("cannot read it")
    error.__cause__ = cause
    return error


def raised_beside(context: Exception, error: Exception) -> Exception:
    error.__context__ = context
    return error


def usage_error_from(cause: Exception) -> Exception:
    error = UsageError("cannot open it")
    error.__cause__ = cause
    return error


TRANSIENT = [
    of_s3("SlowDown", status=503),
    of_s3("InternalError", status=500),
    of_s3("ServiceUnavailable", status=503),
    of_s3("RequestTimeout"),
    of_s3("503", status=503, operation="HeadObject"),
    of_s3("ExpiredToken", "The provided token has expired."),
    of_s3("502", status=502, operation="HeadObject"),
    of_s3("504", status=504),
    of_s3("429", status=429),
    of_s3("ThrottlingException"),
    of_s3("SlowDownRead", status=503),
    of_s3("400", status=400, operation="HeadObject"),
    of_s3("RequestTimeTooSkewed", status=403),
    of_s3("ConditionalRequestConflict", status=409, operation="PutObject"),
    of_s3("IncompleteBody", operation="PutObject"),
    of_s3("BadDigest", operation="PutObject"),
    botocore.exceptions.NoCredentialsError(),
    requests.ConnectionError("reset"),
    requests.exceptions.ChunkedEncodingError("cut"),
    HTTPX.ReadTimeout("too late"),
    HTTPX.ReadError("reset"),
    HTTPX.RemoteProtocolError("cut"),
    HTTPX.ConnectError("Temporary failure in name resolution"),
    of_http(429),
    of_http(502),
    OfGcs(503),
    aiohttp.ClientPayloadError("not all"),
    raised_from(aiohttp.ClientPayloadError("not all")),
    botocore.exceptions.ReadTimeoutError(endpoint_url="https://store"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="https://store"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError(),
    http.client.IncompleteRead(b"half"),
    OSError(errno.ESTALE, "stale file handle"),
    OSError(errno.ENOTCONN, "transport endpoint is not connected"),
    OSError(errno.EHOSTDOWN, "host is down"),
    socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution"),
    ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    ssl.SSLSyscallError(5, "EOF occurred in violation of protocol"),
    raised_from(of_s3("SlowDown", status=503)),
    OSError(errno.EREMOTEIO, "not known to anybody"),
    *(
        of_s3(code, status=status)
        for code in (
            *("RequestLimitExceeded", "ServerBusy", "ServiceUnavailable", "TooManyRequests"),
            *("TooManyRequestsException", "ThrottledException", "Throttling", "SlowDown"),
            *("InternalError", "InternalServerError", "BadDigest", "IncompleteBody"),
            *("ConditionalRequestConflict", "OperationAborted", "RequestTimeTooSkewed"),
        )
        for status in (200, 400, 403)
    ),
    PermissionError("The provided token has expired."),
    of_http(503, "https://h/expired/1.jpg"),
    botocore.exceptions.CredentialRetrievalError(provider="role", error_msg="not yet"),
    botocore.parsers.ResponseParserError("cut XML"),
    usage_error_from(botocore.exceptions.NoCredentialsError()),
]
# Errors of libraries over their configuration or their user.
CONFIGURATION = [
    botocore.exceptions.ProfileNotFound(profile="me"),
    botocore.exceptions.ParamValidationError(report="no bucket"),
    botocore.exceptions.NoRegionError(),
    botocore.exceptions.InvalidRegionError(region_name="no region"),
    botocore.exceptions.UnknownServiceError(service_name="s4", known_service_names="s3"),
    botocore.exceptions.InvalidConfigError(error_msg="no config"),
    botocore.exceptions.ConfigParseError(path="~/.aws/config", error="no config"),
    botocore.exceptions.PartialCredentialsError(provider="env", cred_var="secret"),
    botocore.exceptions.UnauthorizedSSOTokenError(),
    HTTPX.UnsupportedProtocol("no such protocol"),
    HTTPX.LocalProtocolError("a header that cannot be"),
]
PERMANENT = [
    of_s3("NoSuchKey", status=404),
    of_s3("AccessDenied", status=403),
    of_s3("InvalidRange", status=416),
    of_s3("InvalidToken"),
    of_s3("PreconditionFailed", status=412),
    of_http(404),
    of_http(403),
    OfGcs(404),
    FileNotFoundError(errno.ENOENT, "missing"),
    OSError(errno.EIO, "the disk is broken"),
    socket.gaierror(socket.EAI_NONAME, "name or service not known"),
    ssl.SSLCertVerificationError(1, "certificate verify failed"),
    ssl.SSLCertVerificationError(1, "certificate has expired"),
    raised_beside(TimeoutError(), of_s3("AccessDenied", status=403)),
    ValueError("no image"),
    raised_from(ValueError("no image")),
    UnicodeDecodeError("utf-8", b"\\xff", 0, 1, "invalid"),
    aiohttp.InvalidURL("no address"),
    requests.exceptions.MissingSchema("no address"),
    raised_from(socket.gaierror(socket.EAI_NONAME, "name or service not known")),
    KeyError("no such key"),
    TypeError("a bug"),
    IsADirectoryError(errno.EISDIR, "a folder"),
    OSError(errno.ELOOP, "too many levels of symbolic links"),
    pa.ArrowInvalid("not Parquet"),
    OSError("could not verify page integrity, CRC checksum verification failed"),
    UnidentifiedImageError("cannot identify image file"),
    OSError("image file is truncated"),
    gzip.BadGzipFile("not a gzipped file"),
    *(
        OSError(number, "damaged")
        for number in (
            *(errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENODATA, errno.ENOKEY),
            *(errno.EBADF, errno.EXDEV, errno.ENOTEMPTY),
        )
    ),
    # Past bug: a name like these made them transient.
    of_http(403, "https://h/expired-listings/1.jpg"),
    of_http(410, "https://h/timeout/1.jpg"),
    of_requests(403, "https://h/expired-listings/1.jpg"),
    of_requests(410, "https://h/timeout/1.jpg"),
    of_s3("AccessDenied", "no access to arn:aws:s3:::b/expired/x.jpg", status=403),
    of_s3("AccessDenied", "no access to arn:aws:s3:::b/throttled/x.jpg", status=403),
    PermissionError(errno.EACCES, "Permission denied", "/data/expired/x.jpg"),
    PermissionError(errno.EACCES, "Permission denied", "/data/all expired/x.jpg"),
    PermissionError("no access to arn:aws:s3:::b/expired/x.jpg"),
]


OF_THE_NODE = [
    OSError(errno.ENOSPC, "no space left on device"),
    OSError(errno.EMFILE, "too many open files"),
    MemoryError(),
    ImportError("no module s3fs"),
    UsageError("cannot open s3:// with --storage-options anno"),
    *CONFIGURATION,
    *map(usage_error_from, CONFIGURATION),
]


@pytest.mark.parametrize("error", OF_THE_NODE)
def test_what_a_node_lacks_fails_no_row_and_is_not_retried(error):
    """Past bugs: a full disk made thousands of failed rows, and so did a missing package."""
    assert not is_transient(error)
    with pytest.raises(type(error)):
        RowError.of("read", error)


@pytest.mark.parametrize("error", TRANSIENT)
def test_a_transient_fault_fails_no_row(error):
    assert is_transient(error)
    with pytest.raises(type(error)):
        RowError.of("read", error)


@pytest.mark.parametrize("error", PERMANENT)
def test_a_permanent_error_fails_its_row(error):
    assert not is_transient(error)
    assert RowError.of("read", error).error == type(error).__name__


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("google.auth.exceptions", "GoogleAuthError"),
        ("azure.core.exceptions", "AzureError"),
    ],
)
def test_broken_connections_of_libraries_that_may_be_absent(monkeypatch, module, name):
    library = ModuleType(module)
    # Azure's error of a cut body knows the status with which it began.
    setattr(library, name, type(name, (Exception,), {"status_code": 206}))
    monkeypatch.setitem(sys.modules, module, library)
    assert is_transient(type("Of it", (getattr(library, name),), {})())


def test_a_wrong_configuration_of_google_is_permanent(monkeypatch):
    library = ModuleType("google.auth.exceptions")
    library.GoogleAuthError = type("GoogleAuthError", (Exception,), {})
    monkeypatch.setitem(sys.modules, library.__name__, library)
    for name in ("DefaultCredentialsError", "RefreshError"):
        setattr(library, name, type(name, (library.GoogleAuthError,), {}))
        error = type("Of it", (getattr(library, name),), {})()
        assert not is_transient(error)
        assert not is_transient(usage_error_from(error))


class CuttingHub(http.server.BaseHTTPRequestHandler):
    """The Hub with one file of 1000 bytes, of which 300 arrive."""

    def do_GET(self):
        is_body = "/resolve/" in self.path
        listed = [{"type": "file", "path": "a.png", "size": 1000, "oid": "b" * 40}]
        repository = {"id": "owner/name", "sha": "a" * 40, "private": False}
        content = json.dumps(listed if "/tree/" in self.path else repository).encode()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", "1000" if is_body else str(len(content)))
        self.end_headers()
        self.wfile.write(b"x" * 300 if is_body else content)

    def log_message(self, format, *args):
        pass


def test_a_body_of_the_hub_that_is_cut_fails_no_row():
    """Past bug: it was a failed row, and the run went on without the image."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), CuttingHub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        store = {"endpoint": f"http://127.0.0.1:{server.server_port}"}
        options = ReadOptions(None, None, pa.schema([]), store, "images")
        shard = Shard(0, (FileSlice("hf://datasets/owner/name/a.png", "a.png", 0, 1),))
        with pytest.raises(HTTPX.RemoteProtocolError):
            list(read_image_files(shard, options))
        server.shutdown()


def test_a_body_of_a_web_server_that_is_cut_fails_no_row(pauses):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), CuttingHub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        options = ReadOptions(None, None, pa.schema([]), {}, "images")
        uri = f"http://127.0.0.1:{server.server_port}/resolve/a.png"
        with pytest.raises(aiohttp.ClientPayloadError) as caught:
            list(read_image_files(Shard(0, (FileSlice(uri, "a.png", 0, 1),)), options))
        server.shutdown()
    assert caught.value.__cause__ is not None, "an error over what is left of the body"
    assert len(pauses) == 3


class SickStore(http.server.BaseHTTPRequestHandler):
    """An S3 that answers its first three requests with a fault of its own."""

    answered = 0

    def do_GET(self):
        type(self).answered += 1
        is_sick = self.answered <= 3
        error = b"<Error><Code>InternalError</Code><Message>InternalError</Message></Error>"
        content = error if is_sick else b"content"
        self.send_response(500 if is_sick else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


def test_faults_of_a_store_of_its_own_are_retried_beyond_what_botocore_does(monkeypatch):
    """Past bug: five in a row, as botocore tries, ended a run where its driver met them."""
    monkeypatch.setattr(SickStore, "answered", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SickStore) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        options = {
            "endpoint_url": f"http://127.0.0.1:{server.server_port}",
            **{"key": "fake-key-id", "secret": "fake-secret"},
            "config_kwargs": {"retries": {"max_attempts": 0}},  # of botocore
        }
        assert read_bytes(*open_location("s3://bucket/file", options)) == b"content"
        server.shutdown()
    assert SickStore.answered == 4


def test_an_image_that_is_damaged_fails_its_row():
    """Pillow's errors are OSErrors, as a store's are."""
    whole = io.BytesIO()
    Image.new("RGB", (64, 64)).save(whole, "JPEG")
    for image in (b"no image", whole.getvalue()[:-300]):
        with pytest.raises(ImageError) as caught:
            load_pixels(image, 8)
        assert RowError.of("decode", caught.value).error == "ImageError"
    assert isinstance(caught.value.__cause__, OSError)  # of the one that is cut


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Of calls, which do not take them here."""
    taken: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", taken.append)
    return taken


def failing(*errors: Exception):
    """A call that raises these, one each time, and then returns how often it was made."""
    left = list(errors)

    def call() -> int:
        if left:
            raise left.pop(0)
        return len(errors) + 1

    return call


def test_a_call_is_retried_while_its_faults_are_transient(pauses):
    assert with_retry(failing(TimeoutError(), of_s3("SlowDown", status=503)), (1.0, 4.0)) == 3
    assert 1.0 <= pauses[0] <= 1.5
    assert 4.0 <= pauses[1] <= 6.0


def test_retries_end(pauses):
    with pytest.raises(TimeoutError):
        with_retry(failing(*[TimeoutError()] * 3), (1.0, 4.0))
    assert len(pauses) == 2


def test_a_permanent_fault_is_not_retried(pauses):
    with pytest.raises(FileNotFoundError):
        with_retry(failing(FileNotFoundError()), (1.0, 4.0))
    assert pauses == []
