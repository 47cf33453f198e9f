"""How fast the codec is beside aioice's, message by message, on this machine.

    python3 tools/dev.py test            # makes the environment
    .venv/bin/python tools/codec_speed.py [--rounds 15] [--json]

Theory of operation. A machine's speed drifts by more than the codecs differ, so the two are
timed in pairs: in every round and for every case one is run for some milliseconds and the other
right after it, in an order that alternates. What counts is the ratio within a pair. The median
over the rounds is reported, with the quartiles around it.

Before it is timed, every pair is checked to do the same job: the bytes encoded are the same,
and the values decoded are. Both codecs begin with what an application has in hand (numbers,
text, an address as each represents it) and a given transaction id, since drawing a random one
takes longer than either. The cases that the claim is about are the first six. pktstun checks
more in all of them: the cookie, the first bits, the sizes and the text of every attribute.

pktstun makes the objects of a decoded message's attributes when they are first read. Cases 7 to 9
read them, as an application would.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from aioice import stun as aioice

from pktstun import stun

if TYPE_CHECKING:
    from collections.abc import Callable

TRANSACTION_ID = bytes(range(12))
KEY = b"VOkJxbRl1RmTxUk/WvJxBt"
USERNAME = "evtj:h6vY"
PRIORITY = 0x6E0001FF
TIE_BREAKER = 0x932FF9B151263B36
SOFTWARE = "STUN test client"
HOST, PORT = "192.0.2.1", 32853
ADDRESS = stun.TransportAddress(ipaddress.IPv4Address(HOST), PORT)


class Case(NamedTuple):
    """The same job done by both."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


# --- Making the messages ---


def request() -> stun.Message:
    """Return a bare Binding request."""
    return stun.Message.request(transaction_id=TRANSACTION_ID)


def their_request() -> aioice.Message:
    """Return the same of aioice."""
    return aioice.Message(
        message_method=aioice.Method.BINDING,
        message_class=aioice.Class.REQUEST,
        transaction_id=TRANSACTION_ID,
    )


def success() -> stun.Message:
    """Return a Binding success with an address."""
    return stun.Message(
        stun.Class.SUCCESS,
        stun.Method.BINDING,
        TRANSACTION_ID,
        (stun.XorMappedAddress(ADDRESS),),
    )


def their_success() -> aioice.Message:
    """Return the same of aioice."""
    return aioice.Message(
        message_method=aioice.Method.BINDING,
        message_class=aioice.Class.RESPONSE,
        transaction_id=TRANSACTION_ID,
        attributes={"XOR-MAPPED-ADDRESS": (HOST, PORT)},
    )


def signed() -> stun.Message:
    """Return a connectivity check of ICE, as in RFC 5769 section 2.1."""
    bare = stun.Message.request(
        stun.Software(SOFTWARE),
        stun.Priority(PRIORITY),
        stun.IceControlled(TIE_BREAKER),
        stun.Username(USERNAME),
        transaction_id=TRANSACTION_ID,
    )
    return bare.with_message_integrity(KEY).with_fingerprint()


def their_signed() -> aioice.Message:
    """Return the same of aioice."""
    message = aioice.Message(
        message_method=aioice.Method.BINDING,
        message_class=aioice.Class.REQUEST,
        transaction_id=TRANSACTION_ID,
        attributes={
            "SOFTWARE": SOFTWARE,
            "PRIORITY": PRIORITY,
            "ICE-CONTROLLED": TIE_BREAKER,
            "USERNAME": USERNAME,
        },
    )
    message.add_message_integrity(KEY)  # and FINGERPRINT
    return message


# --- Reading them ---


def read_all(data: bytes) -> int:
    """Decode a message and have the objects of all its attributes made."""
    return len(stun.Message.decode(data).attributes)


def their_read_all(data: bytes) -> int:
    """Do the same with aioice, which has their values in a dict."""
    return len(aioice.parse_message(data).attributes)


def authenticate(data: bytes) -> str | None:
    """Decode, find out who it was, and check that it was."""
    message = stun.Message.decode(data)
    username = message.get(stun.Username)
    return username.text if username and message.check_message_integrity(KEY) else None


def their_authenticate(data: bytes) -> str | None:
    """Do the same with aioice."""
    message = aioice.parse_message(data)
    username: str = message.attributes["USERNAME"]
    return username if message.check_message_integrity(KEY) else None


def agree(ours: object, theirs: object) -> None:
    """Stop where the two do not do the same."""
    if not ours or ours != theirs:
        raise SystemExit(f"not the same job: {ours!r} and {theirs!r}")


def cases() -> list[Case]:
    """Return the cases, each having done the same job twice."""
    datagrams = [make().encode() for make in (request, success, signed)]
    agree(datagrams, [bytes(make()) for make in (their_request, their_success, their_signed)])
    bare, answer, check = datagrams
    agree(authenticate(check), their_authenticate(check))
    agree(read_all(check), their_read_all(check))
    mapped = stun.Message.decode(answer).mapped_address
    host, port = aioice.parse_message(answer).attributes["XOR-MAPPED-ADDRESS"]
    agree(str(mapped), f"{host}:{port}")

    decode, parse = stun.Message.decode, aioice.parse_message
    return [
        Case("decode a Binding request", lambda: decode(bare), lambda: parse(bare)),
        Case("decode a Binding success", lambda: decode(answer), lambda: parse(answer)),
        Case("decode a signed request", lambda: decode(check), lambda: parse(check)),
        Case(
            "encode a Binding request", lambda: request().encode(), lambda: bytes(their_request())
        ),
        Case(
            "encode a Binding success", lambda: success().encode(), lambda: bytes(their_success())
        ),
        Case("encode a signed request", lambda: signed().encode(), lambda: bytes(their_signed())),
        Case(
            "decode a success, read the address",
            lambda: decode(answer).mapped_address,
            lambda: parse(answer).attributes["XOR-MAPPED-ADDRESS"],
        ),
        Case(
            "decode a signed request, read all",
            lambda: read_all(check),
            lambda: their_read_all(check),
        ),
        Case(
            "decode a signed request, authenticate",
            lambda: authenticate(check),
            lambda: their_authenticate(check),
        ),
    ]


# --- Timing ---


def time_of(job: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of CPU time that one run of the job takes."""
    runs = range(repeats)
    start = time.thread_time()
    for _ in runs:
        job()
    return (time.thread_time() - start) / repeats


class Result(NamedTuple):
    """Nanoseconds of both, and how often ours fits into theirs: median and quartiles."""

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def measure(case: Case, rounds: int, seconds: float) -> Result:
    """Return what `rounds` pairs of about `seconds` each say."""
    repeats = max(10, int(seconds / time_of(case.theirs, 1000)))
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            theirs, ours = time_of(case.theirs, repeats), time_of(case.ours, repeats)
        else:
            ours, theirs = time_of(case.ours, repeats), time_of(case.theirs, repeats)
        pairs.append((ours * 1e9, theirs * 1e9))
    ratios = [theirs / ours for ours, theirs in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    ours = statistics.median(ours for ours, _ in pairs)
    return Result(case.name, ours, statistics.median(t for _, t in pairs), ratio, low, high)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15, help="pairs per case (%(default)s)")
    parser.add_argument("--ms", type=float, default=50, help="ms per job and round (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()
    if options.rounds < 3 or not 0 < options.ms <= 10_000:
        parser.error("--rounds is at least 3, and --ms in 0..10000")
    results = [measure(case, options.rounds, options.ms / 1000) for case in cases()]
    if options.json:
        print(json.dumps([result._asdict() for result in results]))
        return 0
    print(f"Python {platform.python_version()}, {options.rounds} pairs of {options.ms:g} ms each")
    print(f"{'':40}{'pktstun':>10}{'aioice':>10}   times as fast (quartiles)")
    for result in results:
        print(
            f"{result.name:40}{result.ours:7.0f} ns{result.theirs:7.0f} ns"
            f"{result.ratio:8.2f}  ({result.low:.2f}-{result.high:.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
