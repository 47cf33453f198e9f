"""The rate limiter: as its model says, at its rate, at any time, and in its memory alone."""

from __future__ import annotations

import ipaddress
import itertools
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.errors import ConfigError
from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.limiter import NETWORK_FACTOR, SHARE, LimiterTables, RateLimit
from tests.native.guarded import Guarded
from tests.native.limiter_model import (
    FURTHEST,
    LINES,
    TICK,
    WAYS,
    WRAP,
    IPAddress,
    Limits,
    Model,
    sip_1_3,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.native

KEY = bytes(range(16))
SECOND = 1_000_000_000
START = 1_000 * SECOND
CLIENT = IPv4Address("192.0.2.1")


def native_limits(limits: Limits) -> CData:
    return RateLimit(
        limits.host_rate,
        max(limits.host_rate, limits.network_rate),
        limits.share,
        tuple(limits.exempt),
    ).native()


def native_address(ip: IPAddress) -> CData:
    address = ffi.new("struct pktstun_address *")
    address.family = ip.version
    ffi.memmove(address.ip, ip.packed, len(ip.packed))
    return address


def ask(table: CData, limits: CData, source: CData, now: int) -> int:
    """Both steps at once."""
    digests = lib.pktstun_limiter_look(table, source)
    return int(lib.pktstun_limiter_ask(table, limits, source, digests, now))


class Limiter:
    """The C limiter with memory of its own, and settings that can change."""

    def __init__(self, limits: Limits, key: bytes = KEY) -> None:
        self._memory = ffi.new("uint64_t[]", lib.PKTSTUN_LIMITER_BYTES // 8)
        self.table = ffi.cast("struct pktstun_limiter *", self._memory)
        lib.pktstun_limiter_init(self.table, key)
        self.limits = native_limits(limits)

    def fill(self, line: int, way: int, account: int) -> None:
        """Write an account behind the header of 8 words."""
        self._memory[8 + line * WAYS + way] = account

    def ask(self, ip: IPAddress, now: int) -> int:
        address = native_address(ip)
        return ask(self.table, self.limits, address, now)

    def answers(self, ip: IPAddress, times: Iterable[int]) -> int:
        """How many requests at these times are answered."""
        address = native_address(ip)
        return sum(
            ask(self.table, self.limits, address, now) != lib.PKTSTUN_LIMIT_OVER for now in times
        )


def every(interval: float, seconds: float, start: int = START) -> Iterable[int]:
    step = int(interval * SECOND)
    return range(start, start + int(seconds * SECOND), step)


# Few addresses, so that they meet in hosts and networks.
IPS = st.integers(0, 0x3FF).map(lambda low: IPv4Address(0xC0000000 | low)) | st.integers(
    0, 0x3FF
).map(lambda low: IPv6Address((0x20010DB8 << 32 | low) << 64 | low))
RATES = st.integers(1, 40) | st.integers(1, lib.PKTSTUN_MAX_RATE)
STEPS = st.integers(0, 3) | st.integers(0, SECOND // 10) | st.integers(0, 1 << 46)
EXEMPT = st.sampled_from([(), ("192.0.1.0/24",), ("192.0.0.7", "2001:db8:0:200::/55")])


def test_the_hash_is_siphash() -> None:
    """The model's, against CPython's own, which is SipHash-1-3 with a key of zeros there."""
    if sys.hash_info.algorithm != "siphash13":
        assert sip_1_3(bytes(16), b"") != sip_1_3(bytes(16), b"a")
        return
    say = "print(hash(b'pktstun, nine or more bytes'))"
    done = subprocess.run(
        [sys.executable, "-c", say],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        check=True,
        text=True,
    )
    expected = int(done.stdout) % (1 << 64)
    assert sip_1_3(bytes(16), b"pktstun, nine or more bytes") == expected


@given(
    limits=st.builds(Limits, RATES, RATES, st.integers(0, 100), EXEMPT),
    key=st.binary(min_size=16, max_size=16),
    requests=st.lists(st.tuples(IPS, STEPS), max_size=60),
    start=st.integers(0, 1 << 60),
)
def test_it_does_what_the_model_does(
    limits: Limits, key: bytes, requests: list[tuple[IPAddress, int]], start: int
) -> None:
    limits = limits._replace(network_rate=max(limits.host_rate, limits.network_rate))
    limiter, model = Limiter(limits, key), Model(key)
    now = start
    for ip, step in requests:
        now += step
        expected = lib.PKTSTUN_LIMIT_WITHIN
        if not model.is_within(limits, ip, now):
            shared = model.is_shared(limits)
            expected = lib.PKTSTUN_LIMIT_SHARE if shared else lib.PKTSTUN_LIMIT_OVER
        assert limiter.ask(ip, now) == expected


@given(
    rate=st.integers(1, 2000),
    steps=st.lists(st.integers(0, SECOND // 50), min_size=1, max_size=300),
)
def test_a_source_never_gets_more_than_its_rate_and_a_burst(rate: int, steps: list[int]) -> None:
    limiter = Limiter(Limits(rate, rate, 0))
    now, answered = START, 0
    for step in steps:
        now += step
        answered += limiter.ask(CLIENT, now) == lib.PKTSTUN_LIMIT_WITHIN
    # A tick is cut off from each interval: at most 1 in 100 at this rate.
    assert answered <= (now - START) / SECOND * rate * 1.01 + max(rate // 4, 16)


@pytest.mark.parametrize("rate", [10, 200, 5_000])
def test_a_source_at_ten_times_its_limit_gets_the_limit(rate: int) -> None:
    limiter = Limiter(Limits(rate, rate * 16, 0))
    answered = limiter.answers(CLIENT, every(0.1 / rate, 10))
    assert rate * 10 <= answered <= rate * 10 * 1.1 + 16


@pytest.mark.parametrize("share", [0, 10, 25, 100])
def test_and_the_share_of_what_is_above(share: int) -> None:
    rate = 200
    limiter = Limiter(Limits(rate, rate * 16, share))
    asked = len(list(every(0.1 / rate, 10)))
    answered = limiter.answers(CLIENT, every(0.1 / rate, 10))
    within = Limiter(Limits(rate, rate * 16, 0)).answers(CLIENT, every(0.1 / rate, 10))
    assert answered - within == pytest.approx((asked - within) * share / 100, rel=0.05)


def test_who_is_answered_by_chance_does_not_tell_the_key() -> None:
    """The generator's states can be told from its draws, but come from a hash of the key."""
    limits = Limits(1, 1, 50)
    limiter, model = Limiter(limits), Model(KEY)
    assert limiter.answers(CLIENT, [START] * 16) == 16
    drawn = [limiter.ask(CLIENT, START) == lib.PKTSTUN_LIMIT_SHARE for _ in range(200)]
    assert drawn == [model.is_shared(limits) for _ in range(200)]


def test_whoever_stays_below_is_never_limited() -> None:
    limiter = Limiter(Limits(200, 3200, 0))
    assert limiter.answers(CLIENT, every(1 / 199, 30)) == len(list(every(1 / 199, 30)))


def test_a_network_that_sweeps_its_addresses_is_held() -> None:
    limiter = Limiter(Limits(50, 400, 0))
    answered = sum(
        limiter.ask(IPv4Address(0xC6336400 | number % 256), now) == lib.PKTSTUN_LIMIT_WITHIN
        for number, now in enumerate(every(0.0001, 10))
    )
    assert 4000 <= answered <= 4000 * 1.1


def test_an_ipv6_host_is_a_64_and_its_network_a_56() -> None:
    one = [IPv6Address((0x20010DB8 << 96) | number) for number in range(1000)]
    limiter = Limiter(Limits(20, 320, 0))
    assert sum(limiter.ask(ip, START) == lib.PKTSTUN_LIMIT_WITHIN for ip in one) == 16
    many = [IPv6Address((0x20010DB8 << 96) | number << 64) for number in range(256)]
    limiter = Limiter(Limits(20, 100, 0))
    assert sum(limiter.ask(ip, START) == lib.PKTSTUN_LIMIT_WITHIN for ip in many) == 25


def test_a_clock_set_back_unlocks_nothing_and_locks_nobody_out() -> None:
    limiter = Limiter(Limits(20, 320, 0))
    assert limiter.answers(CLIENT, [START] * 100) == 16
    for back in (1, SECOND, 600 * SECOND, START):
        assert limiter.answers(CLIENT, [START - back] * 100) == 0
    assert limiter.answers(CLIENT, [START + SECOND] * 100) == 16


def test_a_time_that_nobody_can_have_asked_at_does_not_outlive_the_worker() -> None:
    """A bug may have written over it; the next worker starts the clock again."""
    limiter = Limiter(Limits(20, 320, 0))
    limiter.answers(CLIENT, [START + 1_000_000 * SECOND])
    later = [START + number * SECOND for number in range(100)]
    assert limiter.answers(CLIENT, later) < 20
    lib.pktstun_limiter_resume(limiter.table, START)
    assert limiter.answers(CLIENT, later) == 100
    # What lies behind is no mistake: the accounts stay.
    assert limiter.answers(CLIENT, [later[-1]] * 100) == 15
    lib.pktstun_limiter_resume(limiter.table, later[-1])
    assert limiter.answers(CLIENT, [later[-1]] * 100) == 0


@pytest.mark.parametrize("idle", [10, 3600, 86_400 // 2, 86_400, 10 * 86_400, 400 * 86_400])
def test_whoever_was_silent_has_a_clear_account(idle: int) -> None:
    """Also when the account's 40 bits of time have gone round since."""
    limiter = Limiter(Limits(20, 320, 0))
    assert limiter.answers(CLIENT, [START] * 100) == 16
    assert limiter.answers(CLIENT, [START + idle * SECOND] * 100) == 16


def test_a_million_other_sources_clear_nobodys_account() -> None:
    limiter = Limiter(Limits(100, 1600, 0))
    assert limiter.answers(CLIENT, [START] * 1000) == 25
    # All of them in less than the time that the account takes to be clear.
    address = native_address(CLIENT)
    for number in range(1_000_000):
        spoofed = (0x0B000000 + number * 4099) & 0xFFFFFFFF
        ffi.memmove(address.ip, spoofed.to_bytes(4, "big"), 4)
        ask(limiter.table, limiter.limits, address, START + number // 100)
    assert limiter.answers(CLIENT, [START + SECOND // 1000]) == 0


@pytest.mark.parametrize("others", [0, WAYS - 1])
def test_a_host_and_its_network_in_one_line_have_an_account_each(others: int) -> None:
    """One source in 8192: neither takes the other's place, also if the line is full."""

    def line(prefix: int, kind: int) -> int:
        return sip_1_3(KEY, prefix.to_bytes(8, "little") + bytes([kind])) % LINES

    host = next(ip for ip in itertools.count(0x0B000000, 257) if line(ip, 0) == line(ip >> 8, 1))
    limiter = Limiter(Limits(20, 320, 0))
    for way in range(others):
        limiter.fill(line(host, 0), way, (START // TICK + FURTHEST // 2) % WRAP | (way + 1) << 40)
    assert limiter.answers(IPv4Address(host), [START] * 100) == 16


def test_the_exempt_are_not_limited_and_their_network_not_charged() -> None:
    limiter = Limiter(Limits(20, 20, 0, ["192.0.2.0/25", "2001:db8::/32"]))
    for ip in ("192.0.2.0", "192.0.2.127", "2001:db8::1", "2001:db8:ffff::"):
        assert limiter.answers(ipaddress.ip_address(ip), [START] * 1000) == 1000
    assert limiter.answers(IPv4Address("192.0.2.128"), [START] * 1000) == 16
    assert limiter.answers(IPv6Address("2001:db9::"), [START] * 1000) == 16


@pytest.mark.parametrize("bits", range(129))
def test_a_prefix_of_any_length(bits: int) -> None:
    ip = IPv6Address("2001:db8:55aa:55aa:55aa:55aa:55aa:55aa")
    network = ipaddress.ip_network((ip, bits), strict=False)
    limiter = Limiter(Limits(1, 1, 0, [str(network)]))
    assert limiter.answers(ip, [START] * 20) == 20
    if bits:
        other = IPv6Address(int(ip) ^ 1 << (128 - bits))
        assert limiter.answers(other, [START] * 20) == 16


@given(
    junk=st.binary(min_size=64, max_size=64),
    ip=IPS,
    now=st.integers(0, (1 << 64) - 1),
    rate=RATES,
)
def test_memory_that_a_dead_worker_has_overwritten(
    junk: bytes, ip: IPAddress, now: int, rate: int
) -> None:
    """Whatever stands in it: nothing is touched outside, and there is an answer."""
    with Guarded(lib.PKTSTUN_LIMITER_BYTES) as memory:
        content = junk * (lib.PKTSTUN_LIMITER_BYTES // 64)
        limits = native_limits(Limits(rate, rate, 50))
        for place in (memory.at_start, memory.at_end):
            table = ffi.cast("struct pktstun_limiter *", place(content))
            for step in range(4):
                moment = (now + step) % (1 << 64)
                found = ask(table, limits, native_address(ip), moment)
                assert found in {
                    lib.PKTSTUN_LIMIT_WITHIN,
                    lib.PKTSTUN_LIMIT_SHARE,
                    lib.PKTSTUN_LIMIT_OVER,
                }


def test_the_table_has_the_size_of_the_model() -> None:
    assert lib.PKTSTUN_LIMITER_BYTES == 8 * LINES * WAYS + 64


def test_tables_are_found_again_in_their_file() -> None:
    """Whoever takes the file over, a worker or a version, lets nobody off."""
    limits = native_limits(Limits(20, 320, 0))
    client = native_address(CLIENT)

    def answered(tables: LimiterTables, index: int) -> int:
        return sum(
            ask(tables.table(index), limits, client, START) != lib.PKTSTUN_LIMIT_OVER
            for _ in range(100)
        )

    with LimiterTables(2) as tables:
        assert answered(tables, 1) == 16
        with LimiterTables(2, os.dup(tables.fileno())) as again:
            assert answered(again, 1) == 0
            assert answered(again, 0) == 16
        with pytest.raises(ValueError, match="bytes and not"):
            LimiterTables(3, tables.fileno())


def test_every_table_has_a_key_of_its_own() -> None:
    with LimiterTables(2) as tables:
        keys = {bytes(ffi.buffer(tables.table(index), 16)) for index in range(2)}
    assert len(keys) == 2
    assert bytes(16) not in keys


# --- what the operator says ---


def test_what_is_not_said_has_a_default() -> None:
    limits = RateLimit(100).native()
    assert (limits.host_rate, limits.network_rate) == (100, 100 * NETWORK_FACTOR)
    assert limits.share == SHARE
    assert RateLimit(lib.PKTSTUN_MAX_RATE).native().network_rate == lib.PKTSTUN_MAX_RATE


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RateLimit(0), "--rate-limit 0 is not in 1..100000"),
        (lambda: RateLimit(100_001), "--rate-limit 100001"),
        (lambda: RateLimit(1, 0), "--rate-limit-network 0"),
        (lambda: RateLimit(10, 9), "less than the --rate-limit"),
        (lambda: RateLimit(1, share=101), "--rate-limit-share 101 is not in 0..100"),
        (lambda: RateLimit(1, exempt=("192.0.2.1/24",)), "192.0.2.1/24 has host bits set"),
        (lambda: RateLimit(1, exempt=("localhost",)), "--rate-limit-exempt localhost"),
        (lambda: RateLimit(1, exempt=("192.0.2.1",) * 65), "room for 64"),
    ],
)
def test_what_cannot_be_is_refused(make: object, complaint: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=complaint):
        make()
