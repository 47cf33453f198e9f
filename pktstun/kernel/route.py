"""Where replies leave: what the kernel's routing says about the source of a request.

Theory of operation: a reply that goes straight back out of the interface on which its request
came, to the neighbour that the request came from, is right only where the kernel would send it
there too. `return_paths` asks the kernel for its rules, routes and neighbours and makes a small
table of them, in which the longest prefix that holds a source decides, as in the kernel. Where
the table says nothing, or anything is in doubt, the reply is not direct: it goes through the
UDP socket, which is always right. So the table may know less than the kernel, never more.

Only table main is read, with nothing but the kernel's own rules in front of it (ip-rule(8)).
Table default holds nothing of interest: it is asked where main does not lead anywhere, and such
replies are not direct. Of several routes to one network the lowest metric counts. Routes that
hold for some packets only (a source prefix, a TOS) make their network unclear. What the kernel
remembers about single destinations (a path MTU, an ICMP redirect) is left aside: after a
redirect the first router still forwards.

A route through a gateway needs its link-layer address. While the kernel does not know it, the
path is not direct; the first reply through the UDP socket makes the kernel resolve it, which a
`route_monitor` hears, and the table is made anew. An entry that ages is no matter: stale ones
count, and when the kernel forgets one it comes back the same way. The monitor is opened before
the table is made, so that no change falls between the two; the dumps are no snapshot, but a
change in between is heard as well.

This host's own addresses, which table local holds, are left out. They are the source of a
request only if somebody forges them; the answer then goes to the neighbour that sent it, and
what comes back from there is a response, which nobody answers. On the loopback interface, which
has no other sources, nothing is ever direct. Firewall rules, IPsec policies and queueing
disciplines do not see a direct reply: no table can tell of them.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from .netlink import Monitor, dump

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .iface import Interface

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_RETURN_PATHS = 64
"""As many paths as a table holds: each request is looked up in it, one path after the other."""

# <linux/rtnetlink.h>
_RTM_GETROUTE, _RTM_GETNEIGH, _RTM_GETRULE = 26, 30, 34
# Family, destination and source prefix length, TOS, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_ENCAP, _RTA_NH_ID = 9, 15, 18, 22, 30
_RTN_UNICAST = 1
_RT_TABLE_DEFAULT, _RT_TABLE_MAIN, _RT_TABLE_LOCAL = 253, 254, 255
# A next hop without carrier is marked dead as well where the kernel is told to ignore it
# (ignore_routes_with_linkdown), and only there.
_RTNH_F_DEAD, _RTM_F_CLONED = 0x1, 0x200
# Routes of IPv4 that go with their interface go without a word of their own: hence LINK. An
# address brings its own route in table local and takes it away: the groups of addresses would
# say nothing new.
_RTNLGRP = {
    "LINK": 1,
    "NEIGH": 3,
    "IPV4_ROUTE": 7,
    "IPV4_RULE": 8,
    "IPV6_ROUTE": 11,
    "IPV6_RULE": 19,
    # ignore_routes_with_linkdown
    "IPV4_NETCONF": 24,
    "IPV6_NETCONF": 25,
}

# <linux/fib_rules.h>
# Family, destination and source prefix length, TOS, table, 2 reserved, action, flags.
_RULE = struct.Struct("=BBBBBBBBI")
_FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL = 6, 14, 15, 21
_FR_ACT_TO_TBL = 1
_NO_PREFIXLEN = 0xFFFFFFFF

# <linux/neighbour.h>
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
_MAC = 6

_TYPES = {6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}  # RTN_...
# What replaces or adds to the one way that RTA_OIF and RTA_GATEWAY tell of.
_UNCLEAR = {
    _RTA_MULTIPATH: "several next hops",
    _RTA_NH_ID: "a nexthop object",
    _RTA_ENCAP: "encapsulated",
}
_ANY: dict[int, bytes] = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}
_RULES = {
    (socket.AF_INET, 0, _RT_TABLE_LOCAL),
    (socket.AF_INET, 32766, _RT_TABLE_MAIN),
    (socket.AF_INET, 32767, _RT_TABLE_DEFAULT),
    (socket.AF_INET6, 0, _RT_TABLE_LOCAL),
    (socket.AF_INET6, 32766, _RT_TABLE_MAIN),
}


class UnclearRoutingError(OSError):
    """What the kernel's routing decides cannot be told per source; the text names the fix."""


class ReturnPath(NamedTuple):
    """How replies to the sources in a network leave."""

    network: Network
    """Sources in here, unless a longer prefix says otherwise."""
    direct: bool
    """Whether a reply may leave the way the request came."""
    gateway: bytes
    """MAC that the request must have come from; empty: any neighbour (or not direct)."""
    reason: str
    """Why not direct, for the log; empty if direct."""


def route_monitor() -> Monitor:
    """Return a monitor of everything that `return_paths` depends on.

    It belongs to the network namespace of the calling thread. It is not silent on a busy
    network, where a neighbour that ages is a change; and the kernel may tell of a change before
    it is done with it. So let a moment pass before asking anew, which also takes bursts together.

    Raises:
        OSError: the kernel has no such monitor.
    """
    return Monitor(_RTNLGRP.values())


def lookup(paths: Iterable[ReturnPath], address: Address) -> ReturnPath | None:
    """Return the path for a source: the first of `return_paths` that holds it.

    None means that there is none, hence not direct.
    """
    return next((path for path in paths if address in path.network), None)


def return_paths(iface: Interface) -> tuple[ReturnPath, ...]:
    """Return how replies to requests that came on this interface leave, longest prefix first.

    Asks in the calling thread's network namespace. An interface that is down or gone has no
    routes, which is no error. Networks that are not direct are left out where that says the
    same, except for the default route of a family, whose reason is worth a line in the log.

    Raises:
        UnclearRoutingError: there is policy routing (a VRF is), or the table is too large.
        OSError: the kernel refuses to tell.
    """
    families = _families_without_policy()
    neighbours = _neighbours(iface)
    names = dict(socket.if_nameindex())
    routes: defaultdict[Network, list[tuple[int, ReturnPath]]] = defaultdict(list)
    for route in _routes(families):
        # Link-local addresses of IPv6 are others on each interface; this one's are meant.
        if route.interface in {0, iface.index} or not _is_scoped(route.network):
            path = _path(route, iface, neighbours, names)
            routes[route.network].append((route.metric, path))
    paths = _needed(_preferred(network, found) for network, found in routes.items())
    if len(paths) > MAX_RETURN_PATHS:
        raise UnclearRoutingError(
            f"{len(paths)} networks whose replies leave {iface.name} differently, and room for "
            f"{MAX_RETURN_PATHS}; use --mode ring"
        )
    return paths


def _families_without_policy() -> set[int]:
    """Return the families whose replies follow table main and nothing else."""
    families = set()
    for _, (family, *selector, _, _, _, action, flags), attributes in dump(_RTM_GETRULE, _RULE):
        if family not in _ANY:  # multicast routing has rules as well
            continue
        numbers = {name: _number(attributes, name) for name in attributes}
        priority, table = numbers.pop(_FRA_PRIORITY, 0), numbers.pop(_FRA_TABLE, 0)
        numbers.pop(_FRA_PROTOCOL, None)  # who made the rule
        if (
            (family, priority, table) not in _RULES
            or any(selector)
            or (action, flags) != (_FR_ACT_TO_TBL, 0)
            or numbers != {_FRA_SUPPRESS_PREFIXLEN: _NO_PREFIXLEN}
        ):
            raise UnclearRoutingError(
                f"policy routing: rule {priority} of {_version(family)} may send replies "
                "elsewhere than table main says; use --mode ring"
            )
        if table == _RT_TABLE_MAIN:
            families.add(family)
    return families


def _neighbours(iface: Interface) -> dict[bytes, bytes]:
    """Return the MAC of each neighbour on the interface that the kernel knows, by address."""
    # The kernel says NDA_LLADDR in the states in which it would use it, NUD_STALE among them.
    return {
        attributes[_NDA_DST]: attributes[_NDA_LLADDR]
        for _, (_, index, *_), attributes in dump(_RTM_GETNEIGH, _NEIGHBOUR)
        if index == iface.index and len(attributes.get(_NDA_LLADDR, b"")) == _MAC
    }


class _Route(NamedTuple):
    """A route of table main that the kernel may choose."""

    network: Network
    kind: int
    metric: int
    interface: int
    gateway: bytes
    unclear: str

    @classmethod
    def parse(cls, fields: tuple[int, ...], attributes: Mapping[int, bytes]) -> Self:
        family, length, source, tos, _, _, _, kind, _ = fields
        network = ipaddress.ip_network((attributes.get(_RTA_DST, _ANY[family]), length))
        metric = _number(attributes, _RTA_PRIORITY)
        interface = _number(attributes, _RTA_OIF)
        gateway = attributes.get(_RTA_GATEWAY) or attributes.get(_RTA_VIA, b"")[2:]
        unclear = next((_UNCLEAR[name] for name in _UNCLEAR if name in attributes), "")
        if source or tos:
            # These go first: which replies they hold for cannot be told by destination.
            metric, unclear = -1, "depends on more than the destination"
        return cls(network, kind, metric, interface, gateway, unclear)


def _routes(families: set[int]) -> Iterator[_Route]:
    """Yield all routes of table main that the kernel may choose."""
    for _, fields, attributes in dump(_RTM_GETROUTE, _ROUTE):
        family, *_, kind, flags = fields
        if family not in families or flags & (_RTNH_F_DEAD | _RTM_F_CLONED):
            continue
        # The fixed part has no room for the number of every table.
        table = _number(attributes, _RTA_TABLE)
        if table == _RT_TABLE_MAIN:
            yield _Route.parse(fields, attributes)
        elif table == _RT_TABLE_LOCAL and kind in {_RTN_UNICAST, *_TYPES}:
            network = _Route.parse(fields, attributes).network
            # Older kernels have the multicast network of IPv6 among these.
            if not network.is_multicast:
                raise UnclearRoutingError(
                    f"the route to {network} in table local goes before those of table main: "
                    "delete it, or use --mode ring"
                )


def _path(
    route: _Route, iface: Interface, neighbours: Mapping[bytes, bytes], names: Mapping[int, str]
) -> ReturnPath:
    """Return what a route means for replies, were it the only one to its network."""
    mac = neighbours.get(route.gateway, b"")
    if route.kind != _RTN_UNICAST:
        problem = _TYPES.get(route.kind, f"of type {route.kind}")
    elif route.unclear:
        problem = route.unclear
    elif route.interface != iface.index:
        problem = f"leaves by {names.get(route.interface, f'interface {route.interface}')}"
    elif route.gateway and not mac:
        problem = f"gateway {ipaddress.ip_address(route.gateway)} is not resolved yet"
    else:
        return ReturnPath(route.network, direct=True, gateway=mac, reason="")
    return ReturnPath(route.network, direct=False, gateway=b"", reason=problem)


def _preferred(network: Network, routes: Iterable[tuple[int, ReturnPath]]) -> ReturnPath:
    """Return what the kernel makes of all routes to a network, given with their metrics."""
    lowest = min(metric for metric, _ in routes)
    paths = {path for metric, path in routes if metric == lowest}
    # IPv4 takes the first of these and IPv6 one of them, if not both: nothing to rely on.
    if len(paths) > 1:
        return ReturnPath(network, direct=False, gateway=b"", reason="several routes, equal metric")
    return paths.pop()


def _needed(paths: Iterable[ReturnPath]) -> tuple[ReturnPath, ...]:
    """Leave out what the next shorter prefix says as well, or none at all.

    The default routes stay. Longest prefix first.
    """
    kept = []
    outer: list[ReturnPath] = []  # around the network at hand, the widest first
    for path in sorted(paths, key=lambda path: (path.network.version, path.network)):
        while outer and path.network.network_address not in outer[-1].network:
            outer.pop()
        otherwise = (outer[-1].direct, outer[-1].gateway) if outer else (False, b"")
        if (path.direct, path.gateway) != otherwise or path.network.prefixlen == 0:
            outer.append(path)
            kept.append(path)
    return tuple(sorted(kept, key=lambda path: -path.network.prefixlen))


def _number(attributes: Mapping[int, bytes], name: int) -> int:
    """Return an unsigned number, 0 where it is not said."""
    return int.from_bytes(attributes.get(name, b""), sys.byteorder)


def _is_scoped(network: Network) -> bool:
    return network.version == 6 and network.is_link_local


def _version(family: int) -> str:
    return "IPv6" if family == socket.AF_INET6 else "IPv4"
