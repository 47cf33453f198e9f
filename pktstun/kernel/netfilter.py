"""nf_tables' chains and rules, as far as it can be said what they are about; tracked connections.

Theory of operation: nfnetlink (NFNL_SUBSYS_NFTABLES of <linux/netfilter/nf_tables.h>) lists base
chains and rules; a rule is a row of expressions with nested attributes. Rules that iptables-nft
has made are among them, as "match" and "target" with the names of xtables. Numbers are in network
byte order. Asking takes CAP_NET_ADMIN, and means the network namespace of the calling thread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .netlink import dump, iterate_attributes, parse_attributes

__all__ = ["BaseChain", "Rule", "base_chains", "parse_rule", "rules", "tracked_connections"]

_NETLINK_NETFILTER = 12
_GENERIC = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource
_NFNL_SUBSYS_CTNETLINK, _NFNL_SUBSYS_NFTABLES = 1, 10
_IPCTNL_MSG_CT_GET = 1
_TUPLE_ORIGINAL, _TUPLE_PROTOCOL = 1, 2  # CTA_TUPLE_ORIG, CTA_TUPLE_PROTO
_PROTOCOL_NUMBER, _PROTOCOL_SOURCE, _PROTOCOL_DESTINATION = 1, 2, 3
_UDP = 17
_NFT_MSG_GETCHAIN, _NFT_MSG_GETRULE = 4, 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 2, 3, 4
_COMPARE_OPERATION, _COMPARE_DATA = 2, 3
_IMMEDIATE_DATA = 2
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 1, 2, 1
_XT_NAME = 1  # NFTA_MATCH_NAME, NFTA_TARGET_NAME
_TRANSPORT_HEADER = 2
_EQUAL = 0

_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_INET_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")

# What looks at the state of connections, and what changes addresses by it.
_STATE = frozenset({"ct", "conntrack", "state", "connlimit", "connmark", "connbytes", "ctstate"})
_NAT = frozenset(
    {"nat", "masq", "redir", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "flow_offload"}
)
_REFUSING = frozenset({"reject", "REJECT", "DROP"})


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that a hook calls."""

    family: str
    """As nft has it: "ip", "ip6", "inet", "arp", "bridge" or "netdev"."""
    table: str
    name: str
    hook: str
    """"prerouting", "input", "forward", "output", "postrouting" or "ingress"."""
    kind: str
    """"filter", "nat" or "route"."""
    drops: bool
    """Whether what no rule decides is dropped."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule is about."""

    family: str
    table: str
    chain: str
    tracks: bool = False
    """It needs connection tracking: looks at its state, or translates addresses."""
    translates: bool = False
    refuses: bool = False
    """It drops or rejects what it is about."""
    untracks: tuple[int, ...] = ()
    """Destination ports that it takes out of connection tracking, those it compares with."""
    untracks_sources: tuple[int, ...] = ()
    """The same for source ports."""


def base_chains() -> tuple[BaseChain, ...]:
    """Return all chains that hooks call.

    Raises:
        OSError: EPERM, CAP_NET_ADMIN is missing; another, the kernel has no nf_tables.
    """
    found = []
    for kind, attributes in _list(_NFT_MSG_GETCHAIN):
        if _CHAIN_HOOK not in attributes:
            continue
        number = _number(parse_attributes(attributes[_CHAIN_HOOK]), _HOOK_NUMBER)
        known = number < len(_INET_HOOKS) and kind not in {3, 5}
        found.append(
            BaseChain(
                _FAMILIES.get(kind, str(kind)),
                _name(attributes, _CHAIN_TABLE),
                _name(attributes, _CHAIN_NAME),
                _INET_HOOKS[number] if known else ("ingress", "egress", "")[min(number, 2)],
                _name(attributes, _CHAIN_TYPE),
                _CHAIN_POLICY in attributes and not _number(attributes, _CHAIN_POLICY),
            )
        )
    return tuple(found)


def rules() -> tuple[Rule, ...]:
    """Return all rules.

    Raises:
        OSError: as `base_chains`.
    """
    return tuple(
        parse_rule(
            _FAMILIES.get(family, str(family)),
            _name(attributes, _RULE_TABLE),
            _name(attributes, _RULE_CHAIN),
            attributes.get(_RULE_EXPRESSIONS, b""),
        )
        for family, attributes in _list(_NFT_MSG_GETRULE)
    )


def tracked_connections(port: int, most: int) -> int:
    """Return how many tracked connections of UDP begin or end at a port.

    Args:
        port: number.
        most: entries of all kinds that are looked at.

    Raises:
        OSError: EPERM, CAP_NET_ADMIN is missing; another, the kernel tracks none.
    """
    kind = _NFNL_SUBSYS_CTNETLINK << 8 | _IPCTNL_MSG_CT_GET
    entries = dump(kind, _GENERIC, (0, 0, 0), protocol=_NETLINK_NETFILTER, most=most)
    return sum(_is_about(each.attributes.get(_TUPLE_ORIGINAL, b""), port) for each in entries)


def _is_about(entry: bytes, port: int) -> bool:
    protocol = parse_attributes(parse_attributes(entry).get(_TUPLE_PROTOCOL, b""))
    ports = {_number(protocol, _PROTOCOL_SOURCE), _number(protocol, _PROTOCOL_DESTINATION)}
    return _number(protocol, _PROTOCOL_NUMBER) == _UDP and port in ports


def parse_rule(family: str, table: str, chain: str, expressions: bytes) -> Rule:
    """Return what a rule is about, given NFTA_RULE_EXPRESSIONS; any bytes give something."""
    names = set()
    refuses = False
    sources: list[int] = []
    destinations: list[int] = []
    loaded: list[int] | None = None
    for _, element in iterate_attributes(expressions):
        expression = parse_attributes(element)
        name = _name(expression, _EXPRESSION_NAME)
        data = parse_attributes(expression.get(_EXPRESSION_DATA, b""))
        if name in {"match", "target"}:
            name = _name(data, _XT_NAME)
        names.add(name)
        if name == "payload" and _number(data, _PAYLOAD_BASE) == _TRANSPORT_HEADER:
            where = _number(data, _PAYLOAD_OFFSET), _number(data, _PAYLOAD_LENGTH)
            loaded = {(0, 2): sources, (2, 2): destinations}.get(where)
        elif name == "cmp" and loaded is not None:
            if _number(data, _COMPARE_OPERATION) == _EQUAL:
                value = parse_attributes(data.get(_COMPARE_DATA, b""))
                loaded.append(int.from_bytes(value.get(_DATA_VALUE, b""), "big"))
            loaded = None
        elif name == "immediate":
            verdict = parse_attributes(data.get(_IMMEDIATE_DATA, b"")).get(_DATA_VERDICT, b"")
            refuses |= bool(verdict) and not _number(parse_attributes(verdict), _VERDICT_CODE)
    is_free = "notrack" in names or "NOTRACK" in names
    return Rule(
        family,
        table,
        chain,
        tracks=bool(names & (_STATE | _NAT)),
        translates=bool(names & _NAT),
        refuses=refuses or bool(names & _REFUSING),
        untracks=tuple(destinations) if is_free else (),
        untracks_sources=tuple(sources) if is_free else (),
    )


def _list(message: int) -> list[tuple[int, dict[int, bytes]]]:
    """Return family and attributes of each object."""
    answers = dump(
        _NFNL_SUBSYS_NFTABLES << 8 | message, _GENERIC, (0, 0, 0), protocol=_NETLINK_NETFILTER
    )
    return [(each.fields[0], each.attributes) for each in answers]


def _number(attributes: dict[int, bytes], name: int) -> int:
    return int.from_bytes(attributes.get(name, b""), "big")


def _name(attributes: dict[int, bytes], name: int) -> str:
    return attributes.get(name, b"").partition(b"\0")[0].decode("utf-8", "backslashreplace")
