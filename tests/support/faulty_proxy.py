"""An HTTP proxy before an object store that answers some requests as an unreliable one does."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("error500", "slowdown503", "reset", "delay", "truncated")
READ_TIMEOUT = 3  # seconds that a client is to wait
_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message>'
    "<RequestId>1</RequestId></Error>"
)
# Of one connection alone; the rest of an answer is handed on.
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "server", "date"}


class FaultyProxy(ThreadingHTTPServer):
    """Hands requests on to a store, each fault at `share` of them.

    `counts` says how many requests came, and how many met each fault.
    """

    daemon_threads = True

    def __init__(self, store: tuple[str, int], *, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store, self.share = store, share
        self.counts: Counter[str] = Counter()
        self._chance, self._lock = random.Random(seed), threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> str | None:
        """Draws the fault that the next request meets."""
        with self._lock:
            place = int(self._chance.random() / self.share) if self.share else len(FAULTS)
            fault = FAULTS[place] if place < len(FAULTS) else None
            self.counts.update(["requests", *([fault] if fault else [])])
            return fault

    def delay(self) -> float:
        """Draws the seconds of a delay, now and then more than a client waits."""
        with self._lock:
            return self._chance.choice([0.5, 0.5, 2 * READ_TIMEOUT])

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores a client that has gone away: that is none of this server's errors."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self) -> None:
        body = self._body()
        fault = self.server.draw()
        if fault == "error500":
            return self._refuse(500, "InternalError")
        if fault == "slowdown503":
            return self._refuse(503, "SlowDown")
        if fault == "reset":
            return self._reset()
        if fault == "delay":
            time.sleep(self.server.delay())
        status, headers, answer = self._asked(body)
        cut = fault == "truncated" and len(answer) > 1
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), str(len(answer)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if cut else answer)
        if cut:
            self.wfile.flush()
            self._reset()
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Returns the store's own answer."""
        store = http.client.HTTPConnection(*self.server.store, timeout=60)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP}
            store.request(self.command, self.path, body=body, headers=headers)
            response = store.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            store.close()

    def _refuse(self, status: int, code: str) -> None:
        answer = _XML.format(code=code).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _reset(self) -> None:
        """Ends the connection as where the other side has crashed."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
