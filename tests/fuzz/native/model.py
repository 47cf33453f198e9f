"""The specification as a process, for the native fuzzer: questions on stdin, answers on stdout.

Theory of operation: the harness writes a record for each input and waits for the answer, so
nothing is buffered ahead. All numbers are big-endian.

    question   length of the rest (4) | kind (1) | options | what the kind asks about
    options    length of the rest (2) | allow_loopback (1) | check_destination (1)
               | has SOFTWARE (1) | length (2) and text of it
               | endpoints: how many (1), addresses | broadcasts: how many (1), 4 bytes each
    address    family (1) | IP address (16, zeros behind IPv4) | port (2)
    kind D     source | destination | datagram
    kind F     length on the wire (4) | packet type (1) | tagged (1) | VLAN id (2)
               | checksum (1: unverified, valid, not ready) | frame

    answer     verdict (1) | length of the reply (2) | length of the reply frame (2)
               | reply | reply frame

The verdict is a number of cdefs/verdict.cdef.h. Where respond() answers with an error, C hands
over: that is the verdict then, and the reply is there all the same. An exception ends the process,
and with it the harness.

The codec and `pktstun.packet` are pure Python, so this runs without the compiled module.
"""

from __future__ import annotations

import re
import struct
import sys
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from pktstun.errors import PacketError  # noqa: E402 - the tree's, wherever this is started
from pktstun.packet import ChecksumStatus, build_reply_frame, receive  # noqa: E402
from pktstun.stun import (  # noqa: E402
    Class,
    Drop,
    ResponderOptions,
    TransportAddress,
    respond,
    split_type,
)

ADDRESS = struct.Struct(">B16sH")
METADATA = struct.Struct(">IBBHB")
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
    return ResponderOptions(
        software=software if has_software else None,
        endpoints=frozenset(record.address() for _ in range(record.number())),
        check_destination=check_destination,
        broadcasts=frozenset(IPv4Address(record.take(4)) for _ in range(record.number())),
        allow_loopback=allow_loopback,
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
    said = respond(payload, source, destination, options)
    if isinstance(said, Drop):
        return said.value, b"", b""
    _, message_class = split_type(int.from_bytes(said.datagram[:2], "big"))
    if message_class == Class.ERROR:
        return "handover", said.datagram, b""
    return "success", said.datagram, build_reply_frame(frame, said.datagram) if frame else b""


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
