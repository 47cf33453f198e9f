"""The exporter: HTTP on one asyncio loop.

Theory of operation: one thread, as in every process of the service, so that the system call filter
and the lost capabilities hold for all of it. Connections are taken in and read here, with a limit
of time and of number: who is slow is closed, and where too many are, who has been waiting longest
makes room, so that whoever asks in one piece is answered. What a request says, and how a response
is written, the standard library knows (http.server). Each connection has one request: a scraper
comes once in a while.

The heartbeat is the loop's, as in the stream worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pktstun.engine import RunEnd
from pktstun.errors import ConfigError, EngineError
from pktstun.kernel._closing import Closing

from ._probe import Prober

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from pktstun.stats import Slot, WorkerStats

    from ._collector import Scrape
    from ._listener import MetricsListener
    from ._observed import Observed

__all__ = ["CONNECTIONS", "REQUEST_LIMIT", "MetricsEngine", "load_exporter"]

log = logging.getLogger("pktstun")

CONNECTIONS = 64
"""Connections at once."""

REQUEST_LIMIT = 5.0
"""Seconds that a client has to say what it wants."""

_REPLY_LIMIT = 5.0
"""Seconds that it has to read the answer."""

_LONGEST_HEAD = 16384
_READ = 4096
_TRY_AGAIN = 0.5
"""Seconds after which connections are taken in again when the system refused one."""
_DRAIN_LOOK = 0.01

_TEXT = "text/plain; charset=utf-8"
_INDEX = b"pktstun: /metrics for Prometheus, /healthz for whether requests are answered\n"


class _Request(BaseHTTPRequestHandler):
    """A request in bytes; `response` has one when `parse_request` or `reply` has spoken.

    The connection is the engine's: what the base class does with one is not called.
    """

    def __init__(self, head: bytes) -> None:
        self.response = BytesIO()
        self.rfile, self.wfile = BytesIO(head), self.response
        self.command = self.path = self.requestline = ""
        self.request_version = self.default_request_version
        self.raw_requestline = self.rfile.readline()
        self.is_valid = self.parse_request()

    def reply(self, status: HTTPStatus, kind: str, body: bytes, *, allow: str = "") -> None:
        """Write a response."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if allow:
            self.send_header("Allow", allow)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "pktstun"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: no log line for a request."""


def load_exporter() -> None:
    """Import what only an exporter needs.

    Raises:
        ConfigError: prometheus-client is missing.
    """
    try:
        import_module(f"{__package__}._collector")
    except ImportError as error:
        raise ConfigError(
            f"--metrics needs the package prometheus-client ({error}): install it ('pip install "
            "prometheus-client', 'apt install python3-prometheus-client'), or leave it out"
        ) from error


class MetricsEngine(Closing):
    """An HTTP server for `/metrics` and `/healthz`.

    Args:
        slot: where it turns.
        listener: borrowed.
        observed: the service.
    """

    def __init__(self, slot: Slot, listener: MetricsListener, observed: Observed) -> None:
        self._slot = slot
        self._listener = listener
        self._observed = observed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prober: Prober | None = None
        self._scrape: Scrape | None = None
        # In the order in which they began, and began to wait for the client.
        self._conversations: dict[asyncio.Task[None], None] = {}
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._is_leaving = False

    # ---- as every engine ----

    def open(self) -> None:
        """Make the loop, and what asks the service."""
        from ._collector import Scrape  # noqa: PLC0415 - see load_exporter

        self._loop = asyncio.new_event_loop()
        self._prober = prober = Prober(self._observed, self._loop)
        self._scrape = Scrape(self._observed, lambda: prober.requests)
        self._listen()

    def run(self, budget: float) -> RunEnd:
        """Serve for at most `budget` seconds."""
        self._slot.turn()
        loop = self._opened()
        stop = loop.call_later(budget, loop.stop)
        loop.run_forever()
        stop.cancel()
        return RunEnd.BUDGET

    def drain(self, limit: float) -> None:
        """Answer what has been asked, for at most `limit` seconds."""
        end = time.monotonic() + limit
        self._is_leaving = True
        self._opened().remove_reader(self._listener.fileno())
        self.run(0)
        while self._conversations and (left := end - time.monotonic()) > 0:
            self.run(min(left, _DRAIN_LOOK))

    def stats(self) -> WorkerStats:
        """Return the counts of the slot."""
        return self._slot.read()

    def close(self) -> None:
        """Close all connections and the loop; the listening socket stays."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.remove_reader(self._listener.fileno())
        if self._prober is not None:
            self._prober.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()

    def _opened(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise EngineError("the engine is not open")
        return self._loop

    # ---- connections ----

    def _listen(self) -> None:
        if not self._is_leaving:
            self._opened().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone
        except OSError as error:
            log.warning(
                "metrics: connections have to wait: %s",
                error.strerror,
                extra={"cause": "metrics accept"},
            )
            self._opened().remove_reader(self._listener.fileno())
            self._opened().call_later(_TRY_AGAIN, self._listen)
            return
        if len(self._conversations) >= CONNECTIONS:
            longest = next(iter(self._waiting or self._conversations))
            longest.cancel()
            self._forget(longest)
        task = self._opened().create_task(self._converse(sock))
        self._conversations[task] = None
        task.add_done_callback(self._end)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._conversations.pop(task, None)
        self._waiting.pop(task, None)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "metrics: a request failed", exc_info=error, extra={"cause": "metrics request"}
            )

    async def _converse(self, sock: socket.socket) -> None:
        """Read a request and answer it; who is too slow gets no answer."""
        with sock, suppress(OSError):
            request = _Request(await self._read(sock))
            if request.is_valid:
                await self._answer(request)
            async with self._client_has(_REPLY_LIMIT):
                await self._opened().sock_sendall(sock, request.response.getvalue())

    async def _read(self, sock: socket.socket) -> bytes:
        """Return a request up to its body, which none has that is of use here.

        Raises:
            OSError: there is none in time, or it has no end.
        """
        head = b""
        async with self._client_has(REQUEST_LIMIT):
            while b"\r\n\r\n" not in head and b"\n\n" not in head:
                more = await self._opened().sock_recv(sock, _READ)
                head += more
                if not more or len(head) > _LONGEST_HEAD:
                    raise ConnectionAbortedError
        return head

    @asynccontextmanager
    async def _client_has(self, seconds: float) -> AsyncIterator[None]:
        """Give the client so much time, or until its place is needed."""
        task = asyncio.current_task()
        if task is not None:
            self._waiting[task] = None
        async with asyncio.timeout(seconds):
            yield
        if task is not None:
            self._waiting.pop(task, None)

    # ---- what is asked ----

    async def _answer(self, request: _Request) -> None:
        routes = {"/": self._index, "/metrics": self._metrics, "/healthz": self._health}
        try:
            route = routes.get(urlsplit(request.path).path)
        except ValueError:
            request.reply(HTTPStatus.BAD_REQUEST, _TEXT, _INDEX)
            return
        if route is None:
            request.reply(HTTPStatus.NOT_FOUND, _TEXT, _INDEX)
        elif request.command not in {"GET", "HEAD"}:
            request.reply(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, _INDEX, allow="GET, HEAD")
        else:
            await route(request)

    async def _index(self, request: _Request) -> None:
        request.reply(HTTPStatus.OK, _TEXT, _INDEX)

    async def _metrics(self, request: _Request) -> None:
        if self._scrape is not None:
            try:
                kind, body = self._scrape(request.path, request.headers.get("Accept", ""))
            except (TypeError, ValueError):
                # A format of a version that is no number: the plain one does for everybody.
                kind, body = self._scrape(request.path, "")
            request.reply(HTTPStatus.OK, kind, body)

    async def _health(self, request: _Request) -> None:
        if self._prober is None:
            return
        health = await self._prober.health()
        found = {
            "status": "healthy" if health.is_good else "failing",
            "failures": health.failures,
            "addresses": health.addresses,
            "workers": {
                name: None if latency is None else round(latency * 1e3, 3)
                for name, latency in health.latencies.items()
            },
            "heartbeats": {name: round(age * 1e3) for name, age in health.ages.items()},
            "unit": "ms",
            "passes": self._prober.passes,
        }
        status = HTTPStatus.OK if health.is_good else HTTPStatus.SERVICE_UNAVAILABLE
        request.reply(status, "application/json", json.dumps(found, indent=1).encode() + b"\n")
