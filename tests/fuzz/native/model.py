"""The specification as a process, for the native fuzzer: questions on stdin, answers on stdout.

Theory of operation: the harness writes a record for each input and waits for the answer, so
nothing is buffered ahead. All numbers are big-endian.

    question   length of the rest (4) | kind (1) | options | what the kind asks about
    options    length of the rest (2) | allow_loopback (1) | check_destination (1)
               | has SOFTWARE (1) | length (2) and text of it
               | endpoints: how many (1), addresses | broadcasts: how many (1), 4 bytes each
               | local: how many (1), addresses
               | credentials (1) | classic (1)
               | for IPv4, then IPv6: is there an alternate server (1), address
               | discovery (1), and twice: address, what it is told as, port (2)
    address    family (1) | IP address (16, zeros behind IPv4) | port (2)
    kind D     source | destination | datagram
    kind F     length on the wire (4) | packet type (1) | tagged (1) | VLAN id (2)
               | checksum (1: unverified, valid, not ready) | frame

    answer     verdict (1) | length of the reply (2) | length of the reply frame (2)
               | reply | reply frame

The verdict is a number of cdefs/verdict.cdef.h. Where respond() answers with an error other than a
redirect, or would without discovery, or in the classic way, C hands over: that is the verdict then,
and what respond() replies is there all the same. An exception ends the process, and with it the
harness.

The codec and `pktstun.packet` are pure Python, so this runs without the compiled module.
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from pktstun.errors import PacketError  # noqa: E402 - the tree's, wherever this is started
from pktstun.packet import ChecksumStatus, build_reply_frame, receive  # noqa: E402
from pktstun.stun import (  # noqa: E402
    Drop,
    NatDiscovery,
    Reply,
    ResponderOptions,
    ShortTerm,
    TransportAddress,
    respond,
)

ADDRESS = struct.Struct(">B16sH")
METADATA = struct.Struct(">IBBHB")
COOKIE = bytes.fromhex("2112a442")
ERROR = bytes.fromhex("0111")
REDIRECT = bytes.fromhex("0009000400000300")
STATUSES = (ChecksumStatus.UNVERIFIED, ChecksumStatus.VALID, ChecksumStatus.NOT_READY)


def verdict_numbers() -> dict[str, int]:
    """Return the numbers of all verdicts, by the names that Python has for them."""
    text = (ROOT / "cdefs" / "verdict.cdef.h").read_text(encoding="utf-8")
    names = re.findall(r"^ +PKTSTUN_(\w+)", text, re.MULTILINE)
    return {name.removeprefix("DROP_").lower(): number for number, name in enumerate(names)}


VERDICTS = verdict_numbers()


class Record:
    """A question, read from its front."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def take(self, count: int) -> bytes:
        taken, self._data = bytes(self._data[:count]), self._data[count:]
        return taken

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "big")

    def address(self) -> TransportAddress:
        family, ip, port = ADDRESS.unpack(self.take(ADDRESS.size))
        return TransportAddress(IPv4Address(ip[:4]) if family == 4 else IPv6Address(ip), port)

    def rest(self) -> bytes:
        return bytes(self._data)


@lru_cache(maxsize=256)
def options_of(data: bytes) -> ResponderOptions:
    """Return the options that a record tells of."""
    record = Record(data)
    allow_loopback, check_destination = bool(record.number()), bool(record.number())
    has_software = record.number()
    software = record.take(record.number(2)).decode()
    endpoints = frozenset(record.address() for _ in range(record.number()))
    broadcasts = frozenset(IPv4Address(record.take(4)) for _ in range(record.number()))
    local = frozenset(record.address().ip for _ in range(record.number()))
    credentials, classic = bool(record.number()), bool(record.number())
    alternates = [(record.number(), record.address()) for _ in range(2)]
    has_discovery = record.number()
    (ip, told, port), (ip2, told2, port2) = [
        (record.address().ip, record.address().ip, record.number(2)) for _ in range(2)
    ]
    return ResponderOptions(
        software=software if has_software else None,
        endpoints=endpoints,
        local=local,
        check_destination=check_destination,
        broadcasts=broadcasts,
        allow_loopback=allow_loopback,
        discovery=(NatDiscovery((ip, ip2), (port, port2), (told, told2)),) if has_discovery else (),
        classic=classic,
        authenticator=ShortTerm({}) if credentials else None,
        alternate_servers=tuple(address for given, address in alternates if given),
    )


def answer(question: bytes) -> tuple[str, bytes, bytes]:
    """Return the verdict, the reply and the reply frame."""
    record = Record(question)
    kind = record.take(1)
    options = options_of(record.take(record.number(2)))
    frame = b""
    if kind == b"D":
        source, destination = record.address(), record.address()
        payload = record.rest()
    else:
        length, packet_type, tagged, vlan_id, status = METADATA.unpack(record.take(METADATA.size))
        frame = record.rest()
        try:
            received = receive(
                frame,
                length=length,
                packet_type=packet_type,
                vlan_id=vlan_id if tagged else None,
                checksum=STATUSES[status],
            )
        except PacketError as error:
            return str(error.reason), b"", b""
        source = TransportAddress(received.source_ip, received.source_port)
        destination = TransportAddress(received.destination_ip, received.destination_port)
        payload = bytes(received.payload)
    verdict, reply = verdict_of_c(payload, source, destination, options)
    framed = frame and reply and verdict != "handover"
    return verdict, reply, build_reply_frame(frame, reply) if framed else b""


def verdict_of_c(
    payload: bytes,
    source: TransportAddress,
    destination: TransportAddress,
    options: ResponderOptions,
) -> tuple[str, bytes]:
    """Return what the fast path has to say, and what `respond()` replies, if anything."""
    said = respond(payload, source, destination, options, now=0.0)
    # What a request wants of RFC 5780 is unknown to a server that lacks it.
    without = respond(payload, source, destination, replace(options, discovery=()), now=0.0)
    if isinstance(without, Drop):
        return without.value, b""
    reply = said.datagram if isinstance(said, Reply) else b""
    is_error = without.datagram[:2] == ERROR
    if options.authenticator is not None or payload[4:8] != COOKIE:
        return "handover", reply
    if is_error and without.datagram[20:28] != REDIRECT:
        return "handover", reply
    return "error" if is_error else "success", reply


def main() -> None:
    """Answer until the questions end."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := questions.read(4)) == 4:
        verdict, reply, frame = answer(questions.read(int.from_bytes(head, "big")))
        answers.write(struct.pack(">BHH", VERDICTS[verdict], len(reply), len(frame)))
        answers.write(reply + frame)
        answers.flush()


if __name__ == "__main__":
    main()
