"""Classic BPF programs (kernel document networking/filter.rst), assembled here.

A program is a tuple of instructions with jumps to labels; `Program.build` resolves them.
Needed are: drop all (while a fanout group forms), UDP to our ports or from a server's (in front
of a ring), which member serves this CPU (fanout and SO_REUSEPORT), not from these interfaces (in
front of a UDP socket whose datagrams a ring answers), and which system calls a process may make.

A packet filter returns how many bytes to keep, 0 drops. A fanout or reuseport program
returns the index of the socket, one for seccomp what becomes of the call.
"""

from __future__ import annotations

import errno
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from ._ffi import ffi, lib, set_option

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Sequence

# <linux/bpf_common.h>: classes, sizes, modes, operations.
_LD, _LDX, _LDX_MEM = 0x00, 0x01, 0x61  # a constant; the scratch memory
_LD_W, _LD_H = 0x20, 0x28  # from an absolute offset
_LD_H_X, _LD_B_X = 0x48, 0x50  # from X plus an offset
_ST = 0x02
_ALU_ADD, _ALU_ADD_X, _ALU_AND, _ALU_LSH, _ALU_MOD = 0x04, 0x0C, 0x54, 0x64, 0x94
_JA, _JEQ, _JSET = 0x05, 0x15, 0x45
_RET, _RET_A = 0x06, 0x16
_TAX = 0x07

_DROP = 0
_KEEP_ALL = 0x40000  # longer than any frame

_IPV4, _IPV6, _8021Q, _8021AD = 0x0800, 0x86DD, 0x8100, 0x88A8
_UDP = 17
_IPV6_FRAGMENT = 44
_IPV6_AUTHENTICATION = 51  # its length octet counts units of 4 bytes beyond the second
# Extension headers whose length octet counts units of 8 bytes beyond the first.
_IPV6_EXTENSIONS = (0, 43, 60, 135, 139, 140)
# RFC 8200 section 4.1 names no more than these in front of a UDP header.
_IPV6_EXTENSION_DEPTH = 6


# struct seccomp_data: the number, the architecture, the address, six arguments of 64 bits.
_SECCOMP_NUMBER, _SECCOMP_ARCHITECTURE, _SECCOMP_ARGUMENTS = 0, 4, 16
_LOW_WORD = 0 if sys.byteorder == "little" else 4


class _Instruction(NamedTuple):
    """One instruction; `_JA` goes to the label `true`, at any distance."""

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
            ValueError: two labels are the same; a jump leads to no label, backwards, beyond the
                end, or further than 255 where it depends on a condition.
        """
        instructions: list[_Instruction] = []
        labels: dict[str, int] = {}
        for item in source:
            if isinstance(item, str):
                if item in labels:
                    raise ValueError(f"two labels {item!r}")
                labels[item] = len(instructions)
            else:
                instructions.append(item)

        def distance(label: str, position: int, furthest: int = 255) -> int:
            steps = labels.get(label, -1) - position - 1 if label else 0
            if not 0 <= steps <= min(furthest, len(instructions) - position - 2):
                raise ValueError(f"no jump from instruction {position} to {label!r}")
            return steps

        def assemble(item: _Instruction, at: int) -> bytes:
            jumps, k = (0, 0), item.k
            if item.code == _JA:
                k = distance(item.true, at, len(instructions))
            elif item.true or item.false:
                jumps = distance(item.true, at), distance(item.false, at)
            return struct.pack("=HBBI", item.code, *jumps, k)

        return cls(b"".join(assemble(item, at) for at, item in enumerate(instructions)))

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


DROP_ALL = Program.build([_Instruction(_RET, _DROP)])


def udp_to(ports: Sequence[int], *, outgoing: bool = True) -> Program:
    """Return a packet filter that keeps UDP datagrams to these ports, whole frames.

    Without `outgoing`, what this host sends is dropped first.

    Kept as well, so that they can be counted: first fragments, IPv4 with options, IPv6 with
    up to six extension headers (ESP is none: what it holds cannot be read), and frames with
    one VLAN tag in their bytes (the kernel has taken off an outer one by then). Later
    fragments carry no port and are not kept.
    """
    return _udp(2, ports, outgoing=outgoing)


def udp_from(ports: Sequence[int]) -> Program:
    """Return a packet filter that keeps UDP datagrams from these ports, as `udp_to` does."""
    return _udp(0, ports, outgoing=True)


def _udp(at: int, ports: Sequence[int], *, outgoing: bool) -> Program:
    """Keep UDP datagrams with one of these ports at this offset of the UDP header."""
    # X is how far the IP header is moved by the tag, and later the offset of the UDP header,
    # so that the offsets below are those of an untagged frame without options.
    return Program.build(
        [
            *([] if outgoing else _incoming()),
            _Instruction(_LD_H, 12),
            _Instruction(_JEQ, _8021Q, "tagged", "not_8021q"),
            "not_8021q",
            _Instruction(_JEQ, _8021AD, "tagged", "untagged"),
            "tagged",
            _Instruction(_LDX, 4),
            _Instruction(_LD_H, 16),
            _Instruction(_JA, true="ip"),
            "untagged",
            _Instruction(_LDX, 0),
            "ip",
            _Instruction(_JEQ, _IPV4, "ipv4", "not_ipv4"),
            "not_ipv4",
            _Instruction(_JEQ, _IPV6, "ipv6", "drop"),
            "ipv4",
            _Instruction(_LD_B_X, 14 + 9),
            _Instruction(_JEQ, _UDP, "ipv4_udp", "drop"),
            "ipv4_udp",
            _Instruction(_LD_H_X, 14 + 6),
            _Instruction(_JSET, 0x1FFF, "drop", "first"),
            "first",
            _Instruction(_LD_B_X, 14),
            _Instruction(_ALU_AND, 0x0F),
            _Instruction(_ALU_LSH, 2),
            _Instruction(_ALU_ADD_X),
            _Instruction(_TAX),
            _Instruction(_LD_H_X, 14 + at),
            _Instruction(_JA, true="ports"),
            "ipv6",
            _Instruction(_LD_B_X, 14 + 6),
            *_ipv6_chain(14 + 40, "ipv6_udp", "drop"),
            "drop",
            _Instruction(_RET, _DROP),
            "ipv6_udp",
            _Instruction(_LD_H_X, 14 + 40 + at),
            "ports",
            *_choose((port, _KEEP_ALL) for port in ports),
            _Instruction(_RET, _DROP),
        ]
    )


def _incoming() -> list[_Instruction | str]:
    """Drop what this host sends; go on behind with the rest."""
    return [
        _ancillary(lib.SKF_AD_PKTTYPE),
        _Instruction(_JEQ, lib.PACKET_OUTGOING, "outgoing", "incoming"),
        "outgoing",
        _Instruction(_RET, _DROP),
        "incoming",
    ]


def _ipv6_chain(at: int, udp: str, drop: str) -> list[_Instruction | str]:
    """Walk to the UDP header: A is the type of the header at X + `at`."""
    source: list[_Instruction | str] = []
    for depth in range(_IPV6_EXTENSION_DEPTH):
        fragment, first, authentication, extension, advance = (
            f"{name}_{depth}"
            for name in ("fragment", "first", "authentication", "extension", "advance")
        )
        targets = {
            _UDP: udp,
            _IPV6_FRAGMENT: fragment,
            _IPV6_AUTHENTICATION: authentication,
            **dict.fromkeys(_IPV6_EXTENSIONS, extension),
        }
        for kind, target in targets.items():
            following = f"not_{kind}_{depth}"
            source += [_Instruction(_JEQ, kind, target, following), following]
        source += [
            _Instruction(_RET, _DROP),
            fragment,
            _Instruction(_LD_H_X, at + 2),
            _Instruction(_JSET, 0xFFF8, drop, first),
            first,
            _Instruction(_LD, 8),
            _Instruction(_JA, true=advance),
            authentication,
            _Instruction(_LD_B_X, at + 1),
            _Instruction(_ALU_ADD, 2),
            _Instruction(_ALU_LSH, 2),
            _Instruction(_JA, true=advance),
            extension,
            _Instruction(_LD_B_X, at + 1),
            _Instruction(_ALU_ADD, 1),
            _Instruction(_ALU_LSH, 3),
            advance,  # by A, with the type of the next header in A at the end
            _Instruction(_ALU_ADD_X),
            _Instruction(_ST, 0),
            _Instruction(_LD_B_X, at),
            _Instruction(_LDX_MEM, 0),
        ]
    return [*source, _Instruction(_JEQ, _UDP, udp, drop)]


def _choose(choices: Iterable[tuple[int, int]], name: str = "") -> list[_Instruction | str]:
    """Return what belongs to the value in A; go on behind if it is none of these."""
    source: list[_Instruction | str] = []
    for number, (value, result) in enumerate(choices):
        found, following = f"is_{name}{number}", f"not_{name}{number}"
        source += [_Instruction(_JEQ, value, found, following), found, _Instruction(_RET, result)]
        source.append(following)
    return source


def member_for_cpu(cpus: Sequence[int], absent: Collection[int] = ()) -> Program:
    """Return a program that gives the index in `cpus` of the CPU that it runs on.

    Packets on another CPU are spread over all members. What would be an absent member's goes to
    the next one that is not.

    Args:
        cpus: of the members, in their order.
        absent: indices of members that shall get nothing; not all of them.

    Raises:
        ValueError: there is no CPU, or no member left.
    """
    present = [index for index in range(len(cpus)) if index not in absent]
    if not present:
        raise ValueError("no CPU to choose from")
    members = [
        next((other for other in present if other >= index), present[0])
        for index in range(len(cpus))
    ]
    return Program.build(
        [
            _ancillary(lib.SKF_AD_CPU),
            *_choose(zip(cpus, members, strict=True), "cpu_"),
            _Instruction(_ALU_MOD, len(cpus)),
            *_choose(((i, member) for i, member in enumerate(members) if i != member), "member_"),
            _Instruction(_RET_A),
        ]
    )


def not_from(interfaces: Sequence[int]) -> Program:
    """Return a filter that drops what arrived on one of these interfaces (by index)."""
    return Program.build(
        [
            _ancillary(lib.SKF_AD_IFINDEX),
            *_choose((index, _DROP) for index in interfaces),
            _Instruction(_RET, _KEEP_ALL),
        ]
    )


class AllowedCall(NamedTuple):
    """A system call that a program of `system_calls` allows, perhaps under one condition."""

    number: int
    argument: int | None = None
    """Number of the argument that decides, 0 to 5; None for no condition."""
    among: tuple[int, ...] = ()
    """What its lower 32 bits may be, where `without` is 0."""
    without: int = 0
    """Bits that must not be set in these."""


def system_calls(
    architecture: int, allowed: Sequence[AllowedCall], refused: Sequence[int]
) -> Program:
    """Return a program for seccomp(2), which runs before every system call of a process.

    Args:
        architecture: an AUDIT_ARCH_* value; calls of another one kill the process.
        allowed: what may be done. Those without a condition decide in one comparison.
        refused: numbers of calls that fail with EACCES. All others kill the process.
    """
    conditional: list[_Instruction | str] = []
    for call in allowed:
        if call.argument is None:
            continue
        mine, other = f"conditional_{call.number}", f"not_conditional_{call.number}"
        load = _Instruction(_LD_W, _SECCOMP_ARGUMENTS + 8 * call.argument + _LOW_WORD)
        conditional += [_Instruction(_JEQ, call.number, mine, other), mine, load]
        if call.without:
            conditional += [_Instruction(_JSET, call.without, "kill", "allow"), other]
        else:
            conditional += [
                *_choose(((value, lib.SECCOMP_RET_ALLOW) for value in call.among), f"{mine}_"),
                _Instruction(_RET, lib.SECCOMP_RET_KILL_PROCESS),
                other,
            ]
    simple = [call.number for call in allowed if call.argument is None]
    return Program.build(
        [
            _Instruction(_LD_W, _SECCOMP_ARCHITECTURE),
            _Instruction(_JEQ, architecture, "native", "foreign"),
            "foreign",
            _Instruction(_RET, lib.SECCOMP_RET_KILL_PROCESS),
            "native",
            _Instruction(_LD_W, _SECCOMP_NUMBER),
            *_choose(((number, lib.SECCOMP_RET_ALLOW) for number in simple), "allowed_"),
            *_choose(
                ((number, lib.SECCOMP_RET_ERRNO | errno.EACCES) for number in refused), "refused_"
            ),
            *conditional,
            "kill",
            _Instruction(_RET, lib.SECCOMP_RET_KILL_PROCESS),
            "allow",
            _Instruction(_RET, lib.SECCOMP_RET_ALLOW),
        ]
    )


def _ancillary(what: int) -> _Instruction:
    # SKF_AD_OFF is negative; the kernel reads k as an unsigned 32-bit number.
    return _Instruction(_LD_W, (lib.SKF_AD_OFF + what) & 0xFFFFFFFF)
