"""What a server needs for NAT behaviour discovery: two addresses and two ports (RFC 5780).

A client learns how its NAT behaves by asking one of the four transport addresses to answer from
another, and by comparing what the four see of it. So every success response says where it was
sent from (RESPONSE-ORIGIN), and where it would have come from with both changed (OTHER-ADDRESS).

Behind a one-to-one NAT the addresses that clients know are not those that the sockets have:
`advertised` takes their place in what is said, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from pktstun.errors import StunError

from ._types import TransportAddress

if TYPE_CHECKING:
    import ipaddress

    IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class NatDiscovery:
    """The four transport addresses of a server, in one address family.

    Args:
        ips: two addresses.
        ports: two ports.
        advertised: what clients are told instead of `ips`, in the same order; None for `ips`.

    Raises:
        StunError: the two are one, a port is 0, or the addresses are not of one family.
    """

    ips: tuple[IPAddress, IPAddress]
    ports: tuple[int, int]
    advertised: tuple[IPAddress, IPAddress] | None = None
    endpoints: tuple[TransportAddress, ...] = field(init=False)
    """Address by address and port by port."""

    def __post_init__(self) -> None:
        told = self.ips if self.advertised is None else self.advertised
        if len({ip.version for ip in self.ips + told}) != 1:
            raise StunError("NAT discovery takes addresses of one family")
        if len(set(self.ips)) != 2 or len(set(told)) != 2 or len(set(self.ports)) != 2:
            raise StunError("NAT discovery takes two addresses and two ports")
        if not all(0 < port <= 0xFFFF for port in self.ports):
            raise StunError("NAT discovery takes ports in 1..65535")
        endpoints = tuple(TransportAddress(ip, port) for ip in self.ips for port in self.ports)
        object.__setattr__(self, "endpoints", endpoints)

    def changed(self, endpoint: TransportAddress, *, ip: bool, port: bool) -> TransportAddress:
        """Return the endpoint with the other address, the other port, or both."""
        ips = self.ips[::-1] if ip else self.ips
        ports = self.ports[::-1] if port else self.ports
        return TransportAddress(
            ips[self.ips.index(endpoint.ip)], ports[self.ports.index(endpoint.port)]
        )

    def told(self, endpoint: TransportAddress) -> TransportAddress:
        """Return the endpoint as clients know it."""
        told = self.ips if self.advertised is None else self.advertised
        return TransportAddress(told[self.ips.index(endpoint.ip)], endpoint.port)
