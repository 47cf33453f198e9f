"""A scraper: asks an exporter over a unix socket, and reads what it says."""

from __future__ import annotations

import http.client
import json
import socket
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = 20.0


class Response(NamedTuple):
    """What an exporter says."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Series(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of a scrape by name and labels."""

    @classmethod
    def of(cls, text: str) -> Series:
        found = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in found, f"twice: {sample}"
                found[key] = sample.value
        return found

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self}

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample of exactly these labels."""
        return self[name, frozenset(labels.items())]

    def select(self, metric: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return the samples of a name that have these labels among theirs."""
        wanted = labels.items()
        return {
            has: value for (name, has), value in self.items() if name == metric and wanted <= has
        }

    def total(self, metric: str, **labels: str) -> float:
        return sum(self.select(metric, **labels).values())

    def misfits(self) -> dict[tuple[str, str], tuple[float, float, float]]:
        """Return what does not add up: received, answered and dropped by worker and family."""
        sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for at, what in enumerate(("received", "answered", "dropped")):
            for has, value in self.select(f"pktstun_messages_{what}_total").items():
                labels = dict(has)
                sums[labels["worker"], labels["family"]][at] += value
        return {
            key: (received, answered, dropped)
            for key, (received, answered, dropped) in sums.items()
            if received != answered + dropped
        }


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self) -> None:
        self.sock = connect(self.path)


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)  # with a timeout it would fail where the queue is full
    sock.settimeout(TIMEOUT)
    return sock


def get(
    path: str, target: str = "/metrics", *, method: str = "GET", accept: str | None = None
) -> Response:
    connection = UnixConnection(path)
    try:
        headers = {} if accept is None else {"Accept": accept}
        connection.request(method, target, headers=headers)
        response = connection.getresponse()
        return Response(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def scrape(path: str) -> Series:
    response = get(path)
    assert response.status == 200, response
    return Series.of(response.body.decode())


def health(path: str) -> tuple[int, Any]:
    response = get(path, "/healthz")
    return response.status, json.loads(response.body)
