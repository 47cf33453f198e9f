"""The neighbour table: which link-layer address an IP address of the link has (rtnetlink(7))."""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import TYPE_CHECKING

from .netlink import dump

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from .iface import Interface

# <linux/rtnetlink.h>, <linux/neighbour.h>
_RTM_GETNEIGH = 30
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
# NUD_INCOMPLETE and NUD_FAILED: the address is not known, or no longer.
_UNKNOWN = 0x01 | 0x20

_DISCARD = 9  # RFC 863


def neighbour(interface: Interface, ip: IPv4Address | IPv6Address) -> bytes | None:
    """Return the link-layer address of a neighbour on an interface, None if it is not known.

    Raises:
        OSError: the kernel refuses to tell.
    """
    for _, (_, index, state, _, _), attributes in dump(_RTM_GETNEIGH, _NEIGHBOUR):
        if (
            index == interface.index
            and attributes.get(_NDA_DST) == ip.packed
            and _NDA_LLADDR in attributes
            and not state & _UNKNOWN
        ):
            return attributes[_NDA_LLADDR]
    return None


def resolve_neighbour(
    interface: Interface, ip: IPv4Address | IPv6Address, timeout: float = 1.0
) -> bytes | None:
    """Return the link-layer address of a neighbour; have the kernel ask for it if need be.

    The kernel asks (ARP, RFC 4861) when it has something to send: an empty datagram to the
    discard port.

    Args:
        interface: on whose link the neighbour is.
        ip: its address.
        timeout: seconds to wait for the answer.

    Raises:
        PermissionError: the process lacks CAP_NET_RAW.
        OSError: the kernel refuses to tell.
    """
    found = neighbour(interface, ip)
    if found is not None:
        return found
    deadline = time.monotonic() + timeout
    ipv6 = ip.version == 6
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.name.encode())
        host = str(ip)
        try:
            sock.connect((host, _DISCARD, 0, interface.index) if ipv6 else (host, _DISCARD))
            sock.send(b"")
        except OSError as error:
            # There is no route to it over this interface, hence no neighbour.
            if error.errno not in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
                raise
            return None
        while found is None and time.monotonic() < deadline:
            time.sleep(0.01)
            found = neighbour(interface, ip)
    return found
