"""Network interfaces: index, flags and addresses, as getifaddrs(3) and sysfs tell them."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

from ._ffi import CData, check, ffi, lib

# <linux/if.h>
_IFF_UP = 0x1
_IFF_BROADCAST = 0x2
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
    try:
        index = socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(error.errno, f"no network interface {name!r}") from error
    return next(found for found in _interfaces() if found.index == index)


def local_addresses() -> tuple[Interface, ...]:
    """Return all interfaces with their addresses."""
    return tuple(_interfaces())


def _interfaces() -> list[Interface]:
    head = ffi.new("struct ifaddrs **")
    check(lib.getifaddrs(head), "getifaddrs")
    names: dict[str, tuple[int, list[InterfaceAddress]]] = {}
    try:
        entry = head[0]
        while entry:
            # Labels of old-style aliases ("eth0:1") belong to the interface in front.
            name = os.fsdecode(ffi.string(entry.ifa_name)).partition(":")[0]
            _, addresses = names.setdefault(name, (int(entry.ifa_flags), []))
            address = _address(entry)
            if address is not None:
                addresses.append(address)
            entry = entry.ifa_next
    finally:
        lib.freeifaddrs(head[0])
    return [
        Interface(
            name,
            socket.if_nametoindex(name),
            bool(flags & _IFF_UP),
            bool(flags & _IFF_LOOPBACK),
            tuple(addresses),
        )
        for name, (flags, addresses) in names.items()
    ]


def _address(entry: CData) -> InterfaceAddress | None:
    if not entry.ifa_addr:
        return None
    family = entry.ifa_addr.sa_family
    if family == socket.AF_INET:
        broadcast = None
        if entry.ifa_flags & _IFF_BROADCAST and entry.ifa_broadaddr:
            broadcast = _ipv4(entry.ifa_broadaddr)
        ip = _ipv4(entry.ifa_addr)
        # A /32 has its own address there.
        return InterfaceAddress(ip, broadcast if broadcast != ip else None)
    if family == socket.AF_INET6:
        sockaddr = ffi.cast("struct sockaddr_in6 *", entry.ifa_addr)
        return InterfaceAddress(
            ipaddress.IPv6Address(bytes(ffi.buffer(sockaddr.sin6_addr.s6_addr)))
        )
    return None


def _ipv4(sockaddr: CData) -> ipaddress.IPv4Address:
    field = ffi.addressof(ffi.cast("struct sockaddr_in *", sockaddr), "sin_addr")
    return ipaddress.IPv4Address(bytes(ffi.buffer(field)))
