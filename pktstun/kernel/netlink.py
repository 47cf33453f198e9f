"""netlink(7): asking the kernel for lists, and hearing of changes.

Theory of operation: a request with NLM_F_DUMP is answered by a message for each object and an
end mark. A message has a fixed part, whose layout depends on its type, and attributes behind
it. `dump` yields both; what they mean is the caller's business. A socket belongs to the network
namespace of the thread that opened it, and so does what it says.

A list that changes while it is being read carries NLM_F_DUMP_INTR; it is asked for again. Not
every list can tell (routes cannot): who must not miss a change opens a `Monitor` first.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from ._closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# <linux/netlink.h>
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x001, 0x010, 0x300
_NLMSG_ERROR, _NLMSG_DONE, _NLMSG_MIN_TYPE = 2, 3, 16
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NLA_TYPE_MASK = 0x3FFF  # without the flags "nested" and "network byte order"
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1

_BUFFER = 1 << 17
_ATTEMPTS = 10


class Object(NamedTuple):
    """One object of a list."""

    kind: int
    """Type of the message, such as RTM_NEWROUTE."""
    fields: tuple[int, ...]
    """The fixed part."""
    attributes: dict[int, bytes]
    """Type of each attribute: its value. Of several of a type the last one."""


def dump(  # noqa: PLR0913 - what a request is made of
    kind: int,
    fixed: struct.Struct,
    fields: Iterable[int] | None = None,
    attributes: Iterable[tuple[int, bytes]] = (),
    *,
    protocol: int = socket.NETLINK_ROUTE,
    most: int | None = None,
) -> list[Object]:
    """Return all objects of a list.

    Args:
        kind: type of the request, such as RTM_GETROUTE.
        fixed: layout of the fixed part, in requests and in answers; host byte order.
        fields: values of the fixed part of the request; None for zeros.
        attributes: type and value of what the request says beyond.
        protocol: NETLINK_ROUTE, NETLINK_GENERIC or NETLINK_NETFILTER.
        most: stop when there are so many, or some more.

    Raises:
        OSError: the kernel refuses, or the list never holds still (EINTR).
    """
    body = bytes(fixed.size) if fields is None else fixed.pack(*fields)
    body += bytes(-len(body) % 4)
    for name, value in attributes:
        length = _ATTRIBUTE.size + len(value)
        body += _ATTRIBUTE.pack(length, name) + value + bytes(-length % 4)
    for _ in range(_ATTEMPTS):
        # A socket for each attempt: what is left of an interrupted list goes with it.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
            flags = _NLM_F_REQUEST | _NLM_F_DUMP
            netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
            found = _read(netlink, fixed, most)
        if found is not None:
            return found
    raise InterruptedError(errno.EINTR, "netlink: the list changes faster than it can be read")


def _read(
    netlink: socket.socket, fixed: struct.Struct, most: int | None = None
) -> list[Object] | None:
    """Return the answer, or None when it was interrupted."""
    found: list[Object] = []
    interrupted = False
    while most is None or len(found) < most:
        for kind, flags, body in messages(netlink.recv(_BUFFER)):
            interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if kind in {_NLMSG_DONE, _NLMSG_ERROR}:
                # A request that is refused is answered by an error; a list that fails later,
                # or whose family the kernel does not have, by an end mark with an error in it.
                (error,) = struct.unpack_from("=i", body)
                if error:
                    raise OSError(-error, f"netlink: {os.strerror(-error)}")
                return None if interrupted else found
            if kind >= _NLMSG_MIN_TYPE:
                start = -(-fixed.size // 4) * 4
                found.append(Object(kind, fixed.unpack_from(body), parse_attributes(body[start:])))
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each message in what was received.

    A length shorter than the header counts as one without body; what is left of the last
    message is its body, and what is too short for a header is left out.
    """
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += -(-max(length, _HEADER.size) // 4) * 4


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Return {type: value} of a row of attributes; of several of a type the last one.

    Raises nothing: see `iterate_attributes` for rows that the kernel would not write.
    """
    return dict(iterate_attributes(data))


def iterate_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute in a row.

    A length shorter than the attribute's header counts as one without value; what is left of
    the last attribute is its value, and what is too short for a header is left out.
    """
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _NLA_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += -(-max(length, _ATTRIBUTE.size) // 4) * 4


class Monitor(Closing):
    """Hears that something changed, in these multicast groups (RTNLGRP_...).

    Readable (`fileno`) when something did; `changed` says so and empties it. What changed is
    best found out by asking anew: a burst may overflow the socket, which counts as a change.
    """

    def __init__(self, groups: Iterable[int]) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, readable when something changed."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Return whether anything changed since the last call.

        Raises:
            OSError: the monitor is closed.
        """
        changed = False
        while True:
            try:
                self._socket.recv(1)  # the rest of a message is discarded with it
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more changed than the socket could hold
                    raise
            changed = True
