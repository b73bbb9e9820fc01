"""A session of requests for hosts that nobody knows: it follows no redirects, and time can be set
for all of a request, where requests has it for each byte that comes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class Deadline:
    """Ends the connection that a thread reads from once its time is over."""

    def __init__(self) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def watch(self, connected: socket.socket | None) -> None:
        with self._lock:
            self._socket = connected
        if self.is_over:
            self.end()

    def end(self) -> None:
        with self._lock:
            self.is_over = True
            if self._socket is not None:
                with suppress(OSError):  # it is closed
                    # Not SSLSocket's own, which takes the cipher from under the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Gives the sessions of this thread so many seconds: what they read then ends early, as if the
    host had ended it, so look whether it `is_over`."""
    limit = Deadline()
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    timer.start()
    token = _deadline.set(limit)
    try:
        yield limit
    finally:
        timer.cancel()
        limit.watch(None)
        _deadline.reset(token)


class _Watched:
    """A connection whose socket the deadline knows while something is to come: an answer, or that
    of a proxy to being asked for a tunnel."""

    sock: socket.socket | None

    def _watch(self) -> None:
        if (limit := _deadline.get()) is not None:
            limit.watch(self.sock)

    def _tunnel(self) -> None:
        self._watch()
        super()._tunnel()  # type: ignore[misc]

    def getresponse(self) -> Any:
        self._watch()
        return super().getresponse()  # type: ignore[misc]


class _HTTPConnection(_Watched, HTTPConnection):
    pass


class _HTTPSConnection(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class WebSession(requests.Session):
    """See the module. Redirects are answers: requests would read their bodies whole, whatever they
    hold."""

    def __init__(self) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None
