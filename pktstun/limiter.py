"""The rate limiter's settings and its memory.

Theory of operation: how a source is limited stands in cdefs/limiter.c. Here is what the operator
says about it (`RateLimit`), and a memory file with a table for each worker (`LimiterTables`),
which the supervisor owns: a worker that dies, a new configuration or a new version lets nobody
off. A table has one size, whatever is asked of it. What stands in it has a version, so that no
program takes it for something else.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from pktstun.errors import ConfigError
from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.kernel.memory import SharedMemory, whole_pages

__all__ = ["NETWORK_FACTOR", "SHARE", "LimiterTables", "RateLimit"]

NETWORK_FACTOR = 16
"""A network is answered so many times as often as one source, unless told."""

SHARE = 25
"""Percent of the requests over the limit that are answered, unless told. A client sends a request
seven times (RFC 8489 section 6.2.1), so of those whose address is abused 87 % get an answer, and
who abuses it gets less out of the server than goes in."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How often the requests of a source are answered, by each worker.

    Args:
        rate: replies per second to an IPv4 address or an IPv6 /64.
        network_rate: the same to an IPv4 /24 or an IPv6 /56; None for `NETWORK_FACTOR` times
            `rate`.
        share: percent of the requests above that are answered all the same, 0 to 100.
        exempt: networks that are not limited, `ADDRESS` or `ADDRESS/BITS`.

    Raises:
        ConfigError: a number is out of its range, or a network is none.
    """

    rate: int
    network_rate: int | None = None
    share: int = SHARE
    exempt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, rate in (
            ("--rate-limit", self.rate),
            ("--rate-limit-network", self.network_rate),
        ):
            if rate is not None and not 1 <= rate <= lib.PKTSTUN_MAX_RATE:
                raise ConfigError(f"{option} {rate} is not in 1..{lib.PKTSTUN_MAX_RATE}")
        if self.network_rate is not None and self.network_rate < self.rate:
            raise ConfigError(
                f"--rate-limit-network {self.network_rate} is less than the --rate-limit of one "
                f"of its addresses, {self.rate}"
            )
        if not 0 <= self.share <= 100:
            raise ConfigError(f"--rate-limit-share {self.share} is not in 0..100 percent")
        if len(self.exempt) > lib.PKTSTUN_MAX_EXEMPT:
            raise ConfigError(
                f"--rate-limit-exempt: {len(self.exempt)} networks, and room for "
                f"{lib.PKTSTUN_MAX_EXEMPT}: join neighbours into one"
            )
        for text in self.exempt:
            _network(text)

    def native(self) -> CData:
        """Return `struct pktstun_limits *`."""
        native = ffi.new("struct pktstun_limits *")
        native.host_rate = self.rate
        native.network_rate = self.network_rate or min(
            NETWORK_FACTOR * self.rate, lib.PKTSTUN_MAX_RATE
        )
        native.share = self.share
        native.exempt_count = len(self.exempt)
        for prefix, text in zip(native.exempt, self.exempt, strict=False):
            network = _network(text)
            prefix.family = network.version
            prefix.bits = network.prefixlen
            packed = network.network_address.packed
            ffi.memmove(prefix.ip, packed, len(packed))
        return native


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(
            f"--rate-limit-exempt {text}: {error}; write for example 192.0.2.0/24"
        ) from error


class LimiterTables(SharedMemory):
    """The tables of all workers, which child processes inherit.

    Args:
        count: how many.
        file: the memory file of as many tables, to go on with; it is this object's from then on.
            None for new ones.
        version: of what stands in the file.

    Raises:
        ValueError: the file is of another size or version.
    """

    version: int = lib.PKTSTUN_LIMITER_VERSION

    def __init__(self, count: int, file: int | None = None, version: int = version) -> None:
        if version != self.version:
            raise ValueError(f"tables of version {version} and not {self.version}")
        self._stride = whole_pages(lib.PKTSTUN_LIMITER_BYTES)
        super().__init__("pktstun-limiter", self._stride * count, file)
        if file is None:
            for index in range(count):
                lib.pktstun_limiter_init(self.table(index), os.urandom(16))

    def table(self, index: int) -> CData:
        """Return a worker's `struct pktstun_limiter *`."""
        return self.at(index * self._stride, "struct pktstun_limiter *")
