"""Lists of web addresses: what comes of each answer of a host."""

import datetime
import errno
import gzip
import ipaddress
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pictures import encoded, photo
from pipeline.errors import UsageError
from pipeline.inputs.source import find_source
from pipeline.readers import fetch, read_shard
from pipeline.shards import Tries

PICTURE = encoded(photo(0))


class Host(BaseHTTPRequestHandler):
    """Answers as the path says, and keeps who asked for what."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        path = re.sub("^http://[^/]*", "", self.path)  # as a proxy is asked
        kind = path.strip("/").partition("/")[0].partition("?")[0]
        getattr(self, f"_{kind}", self._status)()

    def _send(self, content: bytes, *, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": len(content)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def _good(self) -> None:
        self._send(PICTURE)

    def _status(self) -> None:
        self._send(b"not it", status=int(self.path.strip("/").partition("?")[0]))

    def _soon(self) -> None:
        if self.server.asked[self.path] == 1:
            self._send(b"", status=503)
        else:
            self._good()

    def _empty(self) -> None:
        self._send(b"")

    def _zipped(self) -> None:
        self._send(gzip.compress(PICTURE), Content_Encoding="gzip")

    def _moved(self) -> None:
        self._send(b"", status=302, Location="/good")

    def _moving(self) -> None:
        self.close_connection = True
        self._send(b"", status=302, Location="/good", Content_Length=None)
        try:
            while True:
                self.wfile.write(b"x" * 1000)
        except OSError:
            pass

    def _loop(self) -> None:
        self._send(b"", status=302, Location=self.path)

    def _inside(self) -> None:
        self._send(b"", status=302, Location="file:///etc/passwd")

    def _large(self) -> None:
        self._send(b"x" * 5000)

    def _endless(self) -> None:
        self.close_connection = True
        self._send(b"", Content_Length=None)
        try:
            while True:
                self.wfile.write(b"x" * 1000)
        except OSError:
            pass

    def do_CONNECT(self) -> None:
        self._slowlines()

    def _trickle(self, letter: bytes = b"x") -> None:
        self.close_connection = True
        try:
            for _ in range(60):
                self.wfile.write(letter)
                time.sleep(0.1)
        except OSError:
            pass

    def _slow(self) -> None:
        self._send(b"", Content_Length=1000)
        self._trickle()

    def _slowstatus(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 ")
        self._trickle()

    def _slowheaders(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self._trickle()

    def _slowlines(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self._trickle(b"X: y\r\n")

    def _slowchunk(self) -> None:
        self._send(b"5;", Content_Length=None, Transfer_Encoding="chunked")
        self._trickle()

    def _slowend(self) -> None:
        self._send(b"", Content_Length=None)
        self._trickle()

    def _cut(self) -> None:
        self.close_connection = True
        self._send(PICTURE[:100], Content_Length=len(PICTURE))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    server.asked, server.agents = Counter(), set()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


SLOW = ("", "status", "headers", "lines", "chunk", "end")


def rows_of(input: Path, *, tries: Tries = Tries.MORE, **traits: object) -> list[tuple]:
    """(id, image or error, other columns) of all rows of a list."""
    plan = find_source(str(input), url_column="url").cut(64)
    found = []
    for shard in plan.shards:
        for some in read_shard(
            replace(shard, tries=tries),
            format=plan.format,
            image_column=plan.image_column,
            passthrough=plan.passthrough,
            **traits,
        ):
            found += zip(some.ids, some.images, some.columns.to_pylist(), strict=True)
    return found


def listed(folder: Path, *addresses: str) -> Path:
    (folder / "list.txt").write_text("\n".join(addresses))
    return folder / "list.txt"


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("404", "Http404", "404 Not Found"),
        ("410", "Http410", "410 Gone"),
        ("403?X-Amz-Signature=fake", "Http403", "403 Forbidden"),
        ("401", "Http401", "401 Unauthorized"),
        ("500", "Http500", "500 Internal Server Error"),
        ("599", "Http599", "599"),
        ("empty", "EmptyImage", "the answer is empty"),
        ("loop", "TooManyRedirects", "more than 5 redirects"),
        ("inside", "BadRedirect", "no web address"),
        ("large", "ImageTooLarge", "found 5,000"),
        ("endless", "ImageTooLarge", "expected at most 4,000 bytes"),
        *((f"slow{what}", "ReadTimeout", "0.3 seconds were not enough") for what in SLOW),
        ("cut", "ConnectionError", ""),
    ],
)
def test_an_answer_without_an_image_is_a_row_that_says_so(
    tmp_path, host, monkeypatch, path, error, message
):
    monkeypatch.setattr(fetch, "_MOST_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "_PAUSES", (0.01,))
    listing = listed(tmp_path, f"{host.url}/{path}", f"{host.url}/good?{'x' * 9}")
    (_, bad, _), (_, good, _) = rows_of(listing, max_image_bytes=4000)
    assert good == PICTURE
    assert bad.stage == "read"
    assert bad.error == error
    assert message in bad.message
    assert "http://127.0.0.1/" in bad.message
    assert "fake" not in bad.message
    tried_again = path in ("500", "599", "cut") or path.startswith("slow")
    assert host.asked[f"/{path}"] == (6 if path == "loop" else 1 + tried_again)


@pytest.fixture
def certificate(tmp_path, monkeypatch) -> Path:
    """A certificate of 127.0.0.1 with its key, which clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    return path


def test_time_is_limited_over_tls_too(tmp_path, host, monkeypatch, certificate):
    monkeypatch.setattr(fetch, "_MOST_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "_PAUSES", ())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    host.socket = context.wrap_socket(host.socket, server_side=True)
    url = host.url.replace("http:", "https:")
    listing = listed(tmp_path, *(f"{url}/slow{what}" for what in SLOW), f"{url}/good")
    *slow, (_, good, _) = rows_of(listing)
    assert good == PICTURE
    assert [bad.error for _, bad, _ in slow] == ["ReadTimeout"] * len(SLOW)


@pytest.mark.parametrize("tunnel", [False, True])
def test_time_is_limited_behind_a_proxy_too(tmp_path, host, monkeypatch, tunnel):
    """Past bug: through one an answer had no limit. For https it is asked for a tunnel first."""
    monkeypatch.setattr(fetch, "_MOST_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "_PAUSES", ())
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy" if tunnel else "http_proxy", host.url)
    slow = [f"http://example.test/slow{what}" for what in SLOW]
    addresses = ["https://example.test/image.png"] if tunnel else slow
    begun = time.monotonic()
    *rows, (_, good, _) = rows_of(listed(tmp_path, *addresses, f"{host.url}/good"))
    assert good == PICTURE
    assert [bad.error for _, bad, _ in rows] == ["ReadTimeout"] * len(addresses)
    assert time.monotonic() - begun < 5  # the host trickles for six seconds


@pytest.mark.parametrize(
    "path",
    [
        "o'brien.png?X-Amz-Signature=fake",
        "a.png?n=o'b&sig=fake",
        "x.png?i=https://a,https://b&sig=fake",
        "a b.png?sig=fake&c= d",
        "a.png#fake",
    ],
)
@pytest.mark.parametrize("login", ["", "me:fake@", "me:fa/ke@", "me:fake x@", "me:fake@fake@"])
def test_no_message_holds_a_secret(tmp_path, nobody, host, monkeypatch, path, login):
    """Past bug: requests quotes addresses, and an apostrophe or comma ended what was redacted."""
    monkeypatch.setattr(fetch, "_PAUSES", ())
    addresses = [f"{at}/{path}".replace("://", f"://{login}") for at in (nobody, host.url)]
    for _, bad, _ in rows_of(listed(tmp_path, *addresses)):
        assert not [part for part in ("fake", "sig", "ke@") if part in bad.message]


def test_the_body_of_a_redirect_is_not_read(tmp_path, host):
    """Past bug: requests read all of it, however large, before any limit was looked at."""
    found = rows_of(listed(tmp_path, f"{host.url}/moving"), max_image_bytes=4000)
    assert found[0][1] == PICTURE


def test_faults_of_the_machine_are_no_rows(tmp_path, host, monkeypatch):
    def no_handles(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("urllib3.util.connection.create_connection", no_handles)
    with pytest.raises(OSError, match="Too many open files"):
        rows_of(listed(tmp_path, f"{host.url}/good"))


@pytest.mark.parametrize("path", ["good", "soon", "zipped", "moved"])
def test_images_come_as_hosts_give_them(tmp_path, host, monkeypatch, path):
    monkeypatch.setattr(fetch, "_PAUSES", (0.01,))
    ((id_, image, _),) = rows_of(listed(tmp_path, f"{host.url}/{path}"))
    assert (id_, image) == ("list.txt#0", PICTURE)
    assert host.agents == {"igpt (+https://github.com/igpt-pipeline/igpt)"}


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("ftp://me:fake@h/a.png?s=fake", "ftp://"),
        ("file:///etc/passwd", "file://"),
        ("/etc/passwd", "something else"),
        ("h/a.png?X-Amz-Signature=fake", "something else"),
        ("me:fake@h://a", "something else"),
    ],
)
def test_only_web_addresses_are_asked(tmp_path, address, found):
    ((_, bad, _),) = rows_of(listed(tmp_path, address))
    assert (bad.error, bad.message) == (
        "BadAddress",
        f"expected http:// or https://, found {found}",
    )


def test_rows_of_a_table_keep_their_order_and_columns(tmp_path, host):
    addresses = [f"{host.url}/good?{i}" for i in range(40)]
    addresses[7] = f"{host.url}/404"
    addresses[9], addresses[11] = None, "  "
    table = pa.table({"url": addresses, "caption": [f"c, {i}\n" for i in range(40)]})
    pq.write_table(table, tmp_path / "list.parquet", row_group_size=16)
    by_parquet = rows_of(tmp_path / "list.parquet")
    assert [id_ for id_, _, _ in by_parquet] == [f"list.parquet#{i}" for i in range(40)]
    assert [columns for _, _, columns in by_parquet] == table.select(["caption"]).to_pylist()
    bad = {i: each.error for i, (_, each, _) in enumerate(by_parquet) if each != PICTURE}
    assert bad == {7: "Http404", 9: "BadAddress", 11: "BadAddress"}
    table.to_pandas().to_csv(tmp_path / "list.csv", index=False)
    table.to_pandas().to_csv(tmp_path / "list.tsv", index=False, sep="\t")
    table.to_pandas().to_json(tmp_path / "list.jsonl", orient="records", lines=True)
    for name in ("list.csv", "list.tsv", "list.jsonl"):
        assert [row[1:] for row in rows_of(tmp_path / name)] == [row[1:] for row in by_parquet]


def test_rows_that_have_their_results_are_not_asked_for(tmp_path, host):
    listing = listed(tmp_path, *(f"{host.url}/good?{i}" for i in range(3)))
    rows_of(listing, kept={"list.txt#0", "list.txt#2"})
    assert dict(host.asked) == {"/good?1": 1}


def test_a_machine_that_is_offline_is_no_fault_of_the_rows(tmp_path, nobody, host, monkeypatch):
    """As long as the shard is tried again. A host that is gone while others answer is its rows'."""
    monkeypatch.setattr(fetch, "_PAUSES", (0.01,))
    offline = [f"{nobody}/{i}" for i in range(6)]
    with pytest.raises(ConnectionError, match="refused"):
        rows_of(listed(tmp_path, *offline))
    found = rows_of(listed(tmp_path, *offline), tries=Tries.LAST)
    assert [bad.error for _, bad, _ in found] == ["ConnectionError"] * 6
    with pytest.raises(ConnectionError):  # past bug: took the bad address for an answer
        rows_of(listed(tmp_path, *offline, "ftp://h/a", "http://[/"))
    found = rows_of(listed(tmp_path, *offline, f"{host.url}/404"))
    assert [bad.error for _, bad, _ in found] == ["ConnectionError"] * 6 + ["Http404"]


def test_lines_without_an_address_are_none(tmp_path, host):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{host.url}/good\r\n\r\n  {host.url}/404 \n".encode())
    assert [getattr(each, "error", "") for _, each, _ in rows_of(path)] == ["", "Http404"]


def test_a_list_that_has_become_shorter_loses_no_row(tmp_path, host):
    listing = listed(tmp_path, *[f"{host.url}/good"] * 3)
    plan = find_source(str(listing), url_column="url").cut(64)
    listed(tmp_path, f"{host.url}/good")
    (shard,) = plan.shards
    gone = replace(shard, slices=(replace(shard.slices[0], identity="size=1 mtime=2"),))
    found = [
        image
        for some in read_shard(
            gone, format=plan.format, image_column="url", passthrough=plan.passthrough
        )
        for image in some.images
    ]
    assert found[0] == PICTURE
    assert [each.error for each in found[1:]] == ["ChangedFile"] * 2


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"a.csv": "link,n\nhttp://h/a,1\n"},
            "column url of .*, found 0 of that name; next: --url-column link",
        ),
        ({"a.csv": "url,n\n1,2\n"}, "found int64"),
        ({"a.csv": "url,url\na,b\n"}, "found 2 of that name"),
        ({"a.csv": "url,n\nhttp://h/a?s=fake,2,3\n"}, r"cannot read .*http://h/a\?\*\*\*"),
        ({"a.csv": "url"}, "expected addresses, found none"),
        ({"a.csv": ""}, "expected addresses, found none"),
        ({"a.txt": "\n\n"}, "expected addresses, found none"),
        ({"a.png": ""}, "expected files of urls"),
        ({"a.csv": "url\nhttp://h/a\n", "b.parquet": ""}, "all Parquet or all text"),
    ],
)
def test_what_is_no_list_is_refused_with_the_reason(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        find_source(str(tmp_path), url_column="url")


def test_a_list_that_no_reader_should_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs.text_tables._MOST_BYTES", 10)
    with pytest.raises(UsageError, match="write a list of addresses as Parquet"):
        find_source(str(listed(tmp_path, "http://h/a.png")), url_column="url")


def test_two_places_for_images_are_refused(tmp_path):
    for other in ({"image_column": "x"}, {"format": "parquet"}):
        with pytest.raises(UsageError, match="--url-column and --"):
            find_source(str(listed(tmp_path, "http://h/a")), url_column="url", **other)
