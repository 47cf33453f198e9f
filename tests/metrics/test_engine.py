"""The exporter over HTTP: who asks in one piece is answered, whatever others do meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from typing import TYPE_CHECKING, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pktstun.errors import EngineError
from pktstun.metrics import MetricsAddress, MetricsEngine, MetricsListener
from pktstun.metrics import _engine as module
from pktstun.stats import SharedPage
from pktstun.stun import TransportAddress
from tests.lab import wait_until
from tests.metrics.observing import observe
from tests.metrics.scraping import connect, get, health, scrape

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = min(os.sched_getaffinity(0))
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


class Exporter:
    """An engine that runs in a thread."""

    def __init__(self, path: str, *endpoints: TransportAddress) -> None:
        self.path = path
        self.page = SharedPage(3)
        self.slot = self.page.slots[2]
        self._stop = threading.Event()
        self.listener = MetricsListener(MetricsAddress.parse(f"unix:{path}"))
        self.engine = MetricsEngine(
            self.slot,
            self.listener,
            observe(self.page, "recvmmsg", endpoints=endpoints, cpus=(CPU, CPU), streams=False),
        )
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.engine.open()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self.engine.close()
        self.listener.remove()
        self.page.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.engine.run(0.02)
        self.engine.drain(1.0)


@pytest.fixture(name="directory")
def directory_fixture() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield directory


@pytest.fixture(name="exporter")
def exporter_fixture(directory: str) -> Iterator[Exporter]:
    with Exporter(f"{directory}/m.sock") as exporter:
        yield exporter


def all_of(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65536):
            received += more
    return received


# --- What is asked ---


def test_the_way_to_everything_is_told(exporter: Exporter) -> None:
    response = get(exporter.path, "/")
    assert response.status == 200
    assert b"/metrics" in response.body
    assert b"/healthz" in response.body


def test_metrics(exporter: Exporter) -> None:
    response = get(exporter.path, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert response.headers["Content-Length"] == str(len(response.body))
    assert b"\npktstun_up 0.0\n" in response.body
    other = get(exporter.path, accept="application/openmetrics-text; version=1.0.0")
    assert other.headers["Content-Type"].startswith("application/openmetrics-text")
    assert other.body.endswith(b"# EOF\n")
    odd = get(exporter.path, accept="application/openmetrics-text; version=x")
    assert odd.headers["Content-Type"] == response.headers["Content-Type"]


@pytest.mark.parametrize("target", ["/metricsx", "/metrics/", "/healthz/x", "/../etc/passwd"])
def test_there_is_nothing_else(exporter: Exporter, target: str) -> None:
    assert get(exporter.path, target).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
@pytest.mark.parametrize("target", ["/", "/metrics", "/healthz"])
def test_it_can_only_be_read(exporter: Exporter, method: str, target: str) -> None:
    response = get(exporter.path, target, method=method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


def test_a_head_has_no_body(exporter: Exporter) -> None:
    response = get(exporter.path, "/metrics", method="HEAD")
    assert response.status == 200
    assert int(response.headers["Content-Length"]) > 1000
    assert response.body == b""


def test_a_service_without_workers_is_not_well(exporter: Exporter) -> None:
    status, found = health(exporter.path)
    assert status == 503
    assert found["status"] == "failing"
    assert "no address is served" in found["failures"]
    assert "worker 0 is not running" in found["failures"]


def test_a_request_may_come_in_pieces(exporter: Exporter) -> None:
    with connect(exporter.path) as sock:
        for byte in REQUEST:
            sock.send(bytes([byte]))
        assert b" 200 OK\r\n" in all_of(sock)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/9.9\r\n\r\n", b" 505 "),
        (b"GET /metrics nonsense\r\n\r\n", b" 400 "),
        (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b" 431 "),
        (b"one two three four\r\n\r\n", b" 400 "),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b" 400 "),
    ],
)
def test_what_is_no_request_is_told_so(exporter: Exporter, request_: bytes, status: bytes) -> None:
    with connect(exporter.path) as sock:
        sock.sendall(request_)
        assert status in all_of(sock).partition(b"\r\n")[0]


@given(data=st.one_of(st.binary(max_size=200), st.builds(REQUEST.__add__, st.binary(max_size=50))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_it_goes_on(exporter: Exporter, data: bytes) -> None:
    with connect(exporter.path) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(1)
        received = all_of(sock)
    assert received == b"" or received.startswith((b"HTTP/1.0 ", b"<!DOCTYPE"))
    assert get(exporter.path, "/").status == 200


# --- Who does not behave ---


def crowd(path: str, count: int, say: bytes) -> list[socket.socket]:
    clients = []
    for _ in range(count):
        sock = connect(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(say)
        clients.append(sock)
    return clients


@pytest.mark.parametrize("say", [b"", b"GET /metr", REQUEST], ids=["silent", "slow", "deaf"])
def test_a_crowd_leaves_room(exporter: Exporter, say: bytes) -> None:
    """Clients that say nothing, do not come to an end, or do not read what they are told."""
    clients = crowd(exporter.path, 5 * module.CONNECTIONS, say)
    try:
        for _ in range(3):
            before = exporter.slot.beat
            assert "pktstun_up" in scrape(exporter.path).names
            assert get(exporter.path, "/").status == 200
            wait_until(lambda before=before: exporter.slot.beat != before, "the heart beats")  # type: ignore[misc]
        assert len(exporter.engine._conversations) <= module.CONNECTIONS
    finally:
        for sock in clients:
            sock.close()


def test_a_crowd_that_waits_for_a_probe_leaves_room(directory: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent_one = TransportAddress.from_sockaddr(silent.getsockname())
        with Exporter(f"{directory}/m.sock", silent_one) as exporter:
            clients = crowd(exporter.path, 2 * module.CONNECTIONS, b"GET /healthz HTTP/1.1\r\n\r\n")
            try:
                assert "pktstun_up" in scrape(exporter.path).names
                assert b" 503 " in all_of(clients[-1])
            finally:
                for sock in clients:
                    sock.close()


def test_who_is_too_slow_is_closed(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_LIMIT", 0.1)
    with connect(exporter.path) as sock:
        sock.sendall(b"GET /")
        assert all_of(sock) == b""


def test_a_head_without_an_end_is_closed(exporter: Exporter) -> None:
    with connect(exporter.path) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(b"GET / HTTP/1.1\r\n" + b"a" * 100_000)
        assert all_of(sock) == b""


# --- As every engine ---


def test_its_successor_answers_who_waits(directory: str) -> None:
    path = f"{directory}/m.sock"
    with SharedPage(2) as page, MetricsListener(MetricsAddress.parse(f"unix:{path}")) as listener:
        observed = observe(page, "recvmmsg", streams=False)
        first, second = (MetricsEngine(page.slots[1], listener, observed) for _ in range(2))
        with pytest.raises(EngineError, match="not open"):
            first.run(0)
        first.open()
        with connect(path) as asked:
            asked.sendall(REQUEST)
            first.run(0.05)
            first.drain(0.2)
            assert b" 200 OK\r\n" in all_of(asked)
        with connect(path) as later:
            later.sendall(REQUEST)
            first.run(0.05)
            first.close()
            first.close()
            later.setblocking(False)  # noqa: FBT003 - its name says it
            with pytest.raises(BlockingIOError):
                later.recv(1)
            later.settimeout(5)
            with second:
                second.open()
                second.run(0.05)
            assert b" 200 OK\r\n" in all_of(later)


def test_it_has_a_pulse_of_its_own(exporter: Exporter) -> None:
    before = exporter.slot.beat
    wait_until(lambda: exporter.slot.beat > before, "the heart beats")
    assert exporter.engine.stats().heartbeat > 0
