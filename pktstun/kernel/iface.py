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
import sys
from collections import defaultdict
from dataclasses import dataclass

from .netlink import Monitor, dump

# <linux/rtnetlink.h>, <linux/if_link.h>, <linux/if_addr.h>
_RTM_GETLINK, _RTM_GETADDR = 18, 22
_LINK = struct.Struct("=BxHiII")  # family, hardware type, index, flags, changed flags
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR = 1, 5, 9

# <linux/if_arp.h>
_ARPHRD_ETHER = 1

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
    hardware: int
    """ARPHRD_...: 1 is Ethernet, 772 loopback."""
    mac: bytes
    """Link-layer address, empty where there is none."""
    mtu: int
    master: int = 0
    """Index of the bridge, bond or VRF that it is a port of, and that the host receives from in
    its stead; 0 for none."""

    @property
    def is_ethernet(self) -> bool:
        """Whether its frames begin with an Ethernet header of its own address."""
        return self.hardware == _ARPHRD_ETHER


def interface(name: str) -> Interface:
    """Return the interface of this name in the calling thread's network namespace.

    Raises:
        OSError: ENODEV, there is none.
    """
    for found in local_addresses():
        if found.name == name:
            return found
    raise OSError(errno.ENODEV, f"no network interface {name!r}")


def link_monitor() -> Monitor:
    """Return a monitor of everything that `local_addresses` tells.

    It belongs to the network namespace of the calling thread.

    Raises:
        OSError: the kernel has no such monitor.
    """
    return Monitor((_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR))


def local_addresses() -> tuple[Interface, ...]:
    """Return all interfaces with their addresses."""
    addresses: dict[int, list[InterfaceAddress]] = defaultdict(list)
    for _, (family, prefix, _, _, index), attributes in dump(_RTM_GETADDR, _ADDRESS):
        if family in {socket.AF_INET, socket.AF_INET6}:
            addresses[index].append(_address(prefix, attributes))
    return tuple(
        Interface(
            os.fsdecode(attributes[_IFLA_IFNAME].rstrip(b"\0")),
            index,
            bool(flags & _IFF_UP),
            bool(flags & _IFF_LOOPBACK),
            tuple(addresses[index]),
            hardware,
            attributes.get(_IFLA_ADDRESS, b""),
            int.from_bytes(attributes[_IFLA_MTU], sys.byteorder),
            int.from_bytes(attributes.get(_IFLA_MASTER, b""), sys.byteorder),
        )
        for _, (_, hardware, index, flags, _), attributes in dump(_RTM_GETLINK, _LINK)
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
