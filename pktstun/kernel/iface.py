"""Network interfaces: index, flags and addresses, as rtnetlink(7) tells them.

getifaddrs(3) would be shorter, but files an IPv4 address under its label, which need not name
the interface, and gives the far end of a point-to-point address as a broadcast address.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# <linux/netlink.h>
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ATTRIBUTE = struct.Struct("=HH")  # length, type

# <linux/rtnetlink.h>, <linux/if_link.h>, <linux/if_addr.h>
_RTM_GETLINK, _RTM_GETADDR = 18, 22
_LINK = struct.Struct("=BxHiII")  # family, device type, index, flags, changed flags
_IFLA_IFNAME = 3
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4

# <linux/if.h>
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface; `broadcast` is its network's, for IPv4 that has one."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    broadcast: ipaddress.IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface at the moment of asking."""

    name: str
    index: int
    is_up: bool
    is_loopback: bool
    addresses: tuple[InterfaceAddress, ...]


def interface(name: str) -> Interface:
    """Return the interface of this name in the calling thread's network namespace.

    Raises:
        OSError: ENODEV, there is none.
    """
    for found in local_addresses():
        if found.name == name:
            return found
    raise OSError(errno.ENODEV, f"no network interface {name!r}")


def local_addresses() -> tuple[Interface, ...]:
    """Return all interfaces with their addresses."""
    addresses: dict[int, list[InterfaceAddress]] = defaultdict(list)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        for fields, attributes in _dump(netlink, _RTM_GETADDR, _ADDRESS):
            family, prefix, _, _, index = fields
            if family in {socket.AF_INET, socket.AF_INET6}:
                addresses[index].append(_address(prefix, attributes))
        return tuple(
            Interface(
                os.fsdecode(attributes[_IFLA_IFNAME].rstrip(b"\0")),
                index,
                bool(flags & _IFF_UP),
                bool(flags & _IFF_LOOPBACK),
                tuple(addresses[index]),
            )
            for (_, _, index, flags, _), attributes in _dump(netlink, _RTM_GETLINK, _LINK)
        )


def _address(prefix: int, attributes: dict[int, bytes]) -> InterfaceAddress:
    # Where the two differ, IFA_ADDRESS is the far end of a point-to-point link.
    ip = ipaddress.ip_address(attributes.get(_IFA_LOCAL, attributes[_IFA_ADDRESS]))
    if ip.version == 6:
        return InterfaceAddress(ip)
    if _IFA_BROADCAST in attributes:
        return InterfaceAddress(ip, ipaddress.IPv4Address(attributes[_IFA_BROADCAST]))
    # The kernel has a broadcast route for every network that is large enough to need one.
    network = ipaddress.IPv4Network((attributes[_IFA_ADDRESS], prefix), strict=False)
    return InterfaceAddress(ip, network.broadcast_address if prefix < 31 else None)


def _dump(
    netlink: socket.socket, request: int, fixed: struct.Struct
) -> Iterator[tuple[tuple[int, ...], dict[int, bytes]]]:
    """Yield the fixed part and the attributes of every object that the kernel lists."""
    size = _HEADER.size + fixed.size
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    netlink.send(_HEADER.pack(size, request, flags, request, 0) + bytes(fixed.size))
    while True:
        messages = netlink.recv(1 << 16)
        while messages:
            length, kind, *_ = _HEADER.unpack_from(messages)
            message, messages = messages[:length], messages[-(-length // 4) * 4 :]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (error,) = struct.unpack_from("=i", message, _HEADER.size)
                raise OSError(-error, f"rtnetlink: {os.strerror(-error)}")
            yield fixed.unpack_from(message, _HEADER.size), _attributes(message[size:])


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]
    return found
