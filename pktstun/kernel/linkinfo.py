"""What rtnetlink(7) says about one link beyond its addresses: what it is, and what it lost.

The counters are those of the standard (struct rtnl_link_stats64 of <linux/if_link.h>), which the
kernel adds up over all queues; what only the driver knows is in `ethtool`.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import NamedTuple

from .netlink import dump, parse_attributes

__all__ = ["LinkInfo", "LinkStatistics", "link_info", "queueing_disciplines"]

# <linux/rtnetlink.h>, <linux/if_link.h>
_RTM_GETLINK, _RTM_GETQDISC = 18, 38
_LINK = struct.Struct("=BxHiII")  # family, hardware type, index, flags, changed flags
_QDISC = struct.Struct("=BxxxiIII")  # family, index, handle, parent, information
_IFLA_LINK, _IFLA_LINKINFO, _IFLA_STATS64, _IFLA_XDP = 5, 18, 23, 43
_IFLA_INFO_KIND = 1
_IFLA_XDP_PROG_ID = 4
_TCA_KIND = 1
_STATISTICS = struct.Struct("=16Q")


class LinkStatistics(NamedTuple):
    """Counted since the link was made."""

    received: int = 0
    dropped: int = 0
    """By the kernel or the driver, for want of room or of somebody who wants it."""
    overrun: int = 0
    """rx_fifo_errors: the card had no room."""
    missed: int = 0
    """rx_missed_errors: the host gave the card no room in time."""


class LinkInfo(NamedTuple):
    """One link at the moment of asking."""

    kind: str
    """"veth", "vlan", "bond", "bridge" and so on; "" for hardware and lo."""
    below: int
    """Index of the link that it is on top of, or the other end of a veth; 0 for none."""
    xdp: int
    """Identifier of its XDP program; 0 for none."""
    statistics: LinkStatistics


def link_info(index: int) -> LinkInfo:
    """Return what a link in the calling thread's network namespace is.

    Raises:
        OSError: ENODEV, there is none of this index.
    """
    for _, (_, _, found, _, _), attributes in dump(_RTM_GETLINK, _LINK):
        if found == index:
            info = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
            xdp = parse_attributes(attributes.get(_IFLA_XDP, b""))
            return LinkInfo(
                info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
                _number(attributes.get(_IFLA_LINK, b"")),
                _number(xdp.get(_IFLA_XDP_PROG_ID, b"")),
                _statistics(attributes.get(_IFLA_STATS64, b"")),
            )
    raise OSError(errno.ENODEV, f"no network interface of index {index}")


def queueing_disciplines(index: int) -> frozenset[str]:
    """Return the kinds of queueing disciplines of a link: "fq_codel", "clsact", "ingress"."""
    return frozenset(
        each.attributes.get(_TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
        for each in dump(_RTM_GETQDISC, _QDISC, (socket.AF_UNSPEC, index, 0, 0, 0))
        if each.fields[1] == index
    )


def _statistics(data: bytes) -> LinkStatistics:
    if len(data) < _STATISTICS.size:
        return LinkStatistics()
    words = _STATISTICS.unpack_from(data)
    return LinkStatistics(words[0], words[6], words[14], words[15])


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)
