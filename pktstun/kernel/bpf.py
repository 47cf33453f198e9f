"""Classic BPF programs (kernel document networking/filter.rst), assembled here.

A program is a tuple of instructions with jumps to labels; `Program.build` resolves them.
Four are needed: drop all (while a fanout group forms), UDP to our ports (in front of a ring),
which member serves this CPU (fanout and SO_REUSEPORT), and not from these interfaces (in
front of a UDP socket whose datagrams a ring answers).

A packet filter returns how many bytes to keep, 0 drops. A fanout or reuseport program
returns the index of the socket.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from ._ffi import ffi, lib, set_option

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

# <linux/bpf_common.h>: classes, sizes, modes, operations.
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # from an absolute offset
_LDX_IP_HEADER = 0xB1  # X = 4 * (byte & 0xF)
_LD_H_X, _LD_B_X = 0x48, 0x50  # from X plus an offset
_LD_MEM, _ST = 0x60, 0x02
_ALU_ADD, _ALU_ADD_X, _ALU_LSH, _ALU_MOD = 0x04, 0x0C, 0x64, 0x94
_JEQ, _JSET = 0x15, 0x45
_RET, _RET_A = 0x06, 0x16
_TAX = 0x07

_KEEP_ALL = 0x40000  # longer than any frame

_ETHERTYPE_OFFSET = 12
_IPV4, _IPV6, _8021Q, _8021AD = 0x0800, 0x86DD, 0x8100, 0x88A8
_UDP = 17
_IPV6_FRAGMENT = 44
# Extension headers whose length octet counts units of 8 bytes beyond the first.
_IPV6_EXTENSIONS = (0, 43, 60, 135, 139, 140)
# RFC 8200 section 4.1 names no more than these in front of a UDP header.
_IPV6_EXTENSION_DEPTH = 4


class _Instruction(NamedTuple):
    code: int
    k: int = 0
    true: str = ""
    false: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """An assembled program: `struct sock_filter` records in host byte order."""

    records: bytes

    @classmethod
    def build(cls, source: Iterable[_Instruction | str]) -> Self:
        """Resolve labels (strings in the source) to relative jumps.

        Raises:
            ValueError: a jump leads to no label, backwards, or further than 255.
        """
        instructions: list[_Instruction] = []
        labels: dict[str, int] = {}
        for item in source:
            if isinstance(item, str):
                labels[item] = len(instructions)
            else:
                instructions.append(item)

        def distance(label: str, position: int) -> int:
            steps = labels.get(label, -1) - position - 1 if label else 0
            if not 0 <= steps <= 255:
                raise ValueError(f"no jump from instruction {position} to {label!r}")
            return steps

        return cls(
            b"".join(
                struct.pack(
                    "=HBBI", item.code, distance(item.true, at), distance(item.false, at), item.k
                )
                for at, item in enumerate(instructions)
            )
        )

    def __len__(self) -> int:
        """Return the number of instructions."""
        return len(self.records) // 8

    def attach(self, sock: socket.socket, level: int, option: int) -> None:
        """Hand the program to the kernel as `struct sock_fprog`.

        Raises:
            OSError: the kernel refuses the option.
        """
        records = ffi.new("struct sock_filter[]", len(self))
        ffi.buffer(records)[:] = self.records
        # The kernel copies the records during the call; `records` lives until after it.
        set_option(sock, level, option, ffi.new("struct sock_fprog *", [len(self), records]))


DROP_ALL = Program.build([_Instruction(_RET, 0)])


def udp_to(ports: Sequence[int]) -> Program:
    """Return a packet filter that keeps UDP datagrams to these ports, whole frames.

    Kept as well, so that they can be counted: first fragments, IPv4 with options, IPv6 with
    extension headers, and frames with one VLAN tag in their bytes (the kernel has taken off
    an outer one by then). Later fragments carry no port and are not kept.
    """
    source: list[_Instruction | str] = [_Instruction(_LD_H, _ETHERTYPE_OFFSET)]
    for tag in (_8021Q, _8021AD):
        source += [_Instruction(_JEQ, tag, "tagged", f"not_{tag:x}"), f"not_{tag:x}"]
    source += _ip(ports, 14, "plain")
    source += ["tagged", _Instruction(_LD_H, _ETHERTYPE_OFFSET + 4), *_ip(ports, 18, "inner")]
    return Program.build(source)


def _ip(ports: Sequence[int], l3: int, name: str) -> list[_Instruction | str]:
    """Decide on the EtherType in A and the IP header at offset `l3`; ends in a return."""

    def label(text: str) -> str:
        return f"{name}_{text}"

    keep, drop = label("keep"), label("drop")
    source: list[_Instruction | str] = [
        _Instruction(_JEQ, _IPV4, label("ipv4"), label("not_ipv4")),
        label("not_ipv4"),
        _Instruction(_JEQ, _IPV6, label("ipv6"), drop),
        label("ipv4"),
        _Instruction(_LD_B, l3 + 9),
        _Instruction(_JEQ, _UDP, label("ipv4_udp"), drop),
        label("ipv4_udp"),
        _Instruction(_LD_H, l3 + 6),
        _Instruction(_JSET, 0x1FFF, drop, label("first")),
        label("first"),
        _Instruction(_LDX_IP_HEADER, l3),
        _Instruction(_LD_H_X, l3 + 2),
        *_match(ports, keep, drop, label("v4")),
    ]
    source += [label("ipv6"), _Instruction(0x01, 0), _Instruction(_LD_B, l3 + 6)]  # X = 0
    for depth in range(_IPV6_EXTENSION_DEPTH):
        # A is the type of the header at X; another extension header goes one level on.
        here, extension = label(f"h{depth}"), label(f"x{depth}")
        source.append(here)
        source.append(_Instruction(_JEQ, _UDP, label("v6_udp"), label(f"f{depth}")))
        source.append(label(f"f{depth}"))
        source.append(_Instruction(_JEQ, _IPV6_FRAGMENT, label("v6_fragment"), label(f"e{depth}")))
        source.append(label(f"e{depth}"))
        for kind in _IPV6_EXTENSIONS:
            following = label(f"n{depth}_{kind}")
            source += [_Instruction(_JEQ, kind, extension, following), following]
        source += [
            _Instruction(_RET, 0),
            extension,
            _Instruction(_LD_B_X, l3 + 40),
            _Instruction(_ST, 0),
            _Instruction(_LD_B_X, l3 + 41),
            _Instruction(_ALU_ADD, 1),
            _Instruction(_ALU_LSH, 3),
            _Instruction(_ALU_ADD_X),
            _Instruction(_TAX),
            _Instruction(_LD_MEM, 0),
        ]
    source += [
        _Instruction(_RET, 0),
        label("v6_fragment"),
        _Instruction(_LD_H_X, l3 + 42),
        _Instruction(_JSET, 0xFFF8, drop, label("v6_first")),
        label("v6_first"),
        _Instruction(_LD_B_X, l3 + 40),
        _Instruction(_JEQ, _UDP, label("v6_ports"), drop),
        label("v6_ports"),
        _Instruction(_LD_H_X, l3 + 50),
        *_match(ports, keep, drop, label("v6f")),
        label("v6_udp"),
        _Instruction(_LD_H_X, l3 + 42),
        *_match(ports, keep, drop, label("v6u")),
        keep,
        _Instruction(_RET, _KEEP_ALL),
        drop,
        _Instruction(_RET, 0),
    ]
    return source


def _match(ports: Sequence[int], keep: str, drop: str, name: str) -> list[_Instruction | str]:
    source: list[_Instruction | str] = []
    for index, port in enumerate(ports):
        last = index == len(ports) - 1
        following = drop if last else f"{name}_{index}"
        source.append(_Instruction(_JEQ, port, keep, following))
        if not last:
            source.append(following)
    return source


def member_for_cpu(cpus: Sequence[int]) -> Program:
    """Return a program that gives the index in `cpus` of the CPU that it runs on.

    Packets on another CPU are spread over all members.
    """
    source: list[_Instruction | str] = [_ancillary(lib.SKF_AD_CPU)]
    for index, cpu in enumerate(cpus):
        found, following = f"is_{cpu}", f"not_{cpu}"
        source += [_Instruction(_JEQ, cpu, found, following), found, _Instruction(_RET, index)]
        source.append(following)
    source += [_Instruction(_ALU_MOD, len(cpus)), _Instruction(_RET_A)]
    return Program.build(source)


def not_from(interfaces: Sequence[int]) -> Program:
    """Return a filter that drops what arrived on one of these interfaces (by index)."""
    source: list[_Instruction | str] = [
        _ancillary(lib.SKF_AD_IFINDEX),
        *_match(interfaces, "drop", "keep", "if"),
        "keep",
        _Instruction(_RET, _KEEP_ALL),
        "drop",
        _Instruction(_RET, 0),
    ]
    return Program.build(source)


def _ancillary(what: int) -> _Instruction:
    # SKF_AD_OFF is negative; the kernel reads k as an unsigned 32-bit number.
    return _Instruction(_LD_W, (lib.SKF_AD_OFF + what) & 0xFFFFFFFF)
