"""The rate limiter in Python: what cdefs/limiter.c has to do, written once more and slowly."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

IPAddress: TypeAlias = IPv4Address | IPv6Address

LINES, WAYS = 8192, 8
TICK = 64  # ns
TICKS_PER_S = 1_000_000_000 // TICK
FURTHEST = 1 << 28
WRAP = 1 << 40
_64 = (1 << 64) - 1


def sip_1_3(key: bytes, message: bytes) -> int:
    """SipHash-1-3, after the description in the paper."""
    k0, k1 = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & _64

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0 = (v0 + v1) & _64
            v1 = rotate(v1, 13) ^ v0
            v0 = rotate(v0, 32)
            v2 = (v2 + v3) & _64
            v3 = rotate(v3, 16) ^ v2
            v0 = (v0 + v3) & _64
            v3 = rotate(v3, 21) ^ v0
            v2 = (v2 + v1) & _64
            v1 = rotate(v1, 17) ^ v2
            v2 = rotate(v2, 32)

    whole = len(message) // 8 * 8
    last = message[whole:].ljust(7, b"\0") + bytes([len(message) & 0xFF])
    for at in range(0, whole + 8, 8):
        word = int.from_bytes((message[:whole] + last)[at : at + 8], "little")
        v3 ^= word
        rounds(1)
        v0 ^= word
    v2 ^= 0xFF
    rounds(3)
    return v0 ^ v1 ^ v2 ^ v3


class Limits(NamedTuple):
    host_rate: int
    network_rate: int
    share: int = 0
    exempt: Sequence[str] = ()


@dataclass
class Account:
    tag: int = 0
    clear: int = 0
    """The time at which it is clear, in ticks modulo 2^40."""

    def ahead(self, now: int) -> int:
        distance = (self.clear - now) % WRAP
        return distance if distance <= FURTHEST else 0


@dataclass
class Model:
    """One worker's table."""

    key: bytes
    lines: dict[int, list[Account]] = field(default_factory=dict)
    latest: int = 0
    random: int = 0

    def __post_init__(self) -> None:
        self.random = sip_1_3(self.key, bytes(8) + bytes([255])) | 1

    def is_shared(self, limits: Limits) -> bool:
        """Draw whether a request over the limit is answered: by xorshift64 (Marsaglia)."""
        x = self.random
        x ^= x << 13 & _64
        x ^= x >> 7
        x ^= x << 17 & _64
        self.random = x
        return (x >> 32) * 100 >> 32 < limits.share

    def is_within(self, limits: Limits, source: IPAddress, now: int) -> bool:
        """Ask whether a request is within its limits, and charge for it if it is."""
        if any(source in ip_network(each) for each in limits.exempt):
            return True
        self.latest = max(self.latest, now // TICK)
        prefixes = (32, 24) if source.version == 4 else (64, 56)
        rates = (limits.host_rate, limits.network_rate)
        found: list[tuple[bool, Account, Account]] = []
        for level, (prefix, rate) in enumerate(zip(prefixes, rates, strict=True)):
            taken = [account for _, account, _ in found]
            found.append(self._ask(source, prefix, level, rate, taken))
        if not all(within for within, _, _ in found):
            return False
        for _, account, charged in found:
            account.tag, account.clear = charged.tag, charged.clear
        return True

    def _ask(
        self, source: IPAddress, prefix: int, level: int, rate: int, taken: Sequence[Account]
    ) -> tuple[bool, Account, Account]:
        number = int(source) >> (source.max_prefixlen - prefix)
        kind = level + (2 if source.version == 6 else 0)
        digest = sip_1_3(self.key, number.to_bytes(8, "little") + bytes([kind]))
        tag = digest >> 40
        line = self.lines.setdefault(digest % LINES, [Account() for _ in range(WAYS)])
        line = [account for account in line if not any(account is other for other in taken)]
        known = next((account for account in line if account.tag == tag), None)
        account = known or min(line, key=lambda each: each.ahead(self.latest))
        interval = TICKS_PER_S // rate
        clear = (known.ahead(self.latest) if known else 0) + interval
        burst = max(rate // 4, 16) * interval
        return clear <= burst, account, Account(tag, (self.latest + clear) % WRAP)
