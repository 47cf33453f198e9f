"""A tcx program that drops the kernel's copy of what a ring answers.

Theory of operation: a packet socket of ETH_P_ALL has its copy of a frame before the programs at
tc ingress run (`__netif_receive_skb_core` in net/core/dev.c). Dropped there, a frame costs no IP
input, no route, no firewall and no socket lookup, and the ring still has it. The program asks
what `receive` of `pktstun.packet` asks of the form of a frame, and lets pass whatever that
declines for its form: another packet type or VLAN, IPv4 options, fragments, IPv6 extension
headers. It looks at no checksum and no payload; a broken datagram to a port that the ring serves
goes nowhere.

The frame is copied to the stack first (bpf_skb_load_bytes), wherever its bytes lie. Then the
destination is looked for, word by word, with comparisons alone: a binary search where there are
many, so that one of 256 endpoints is found in a few comparisons more than one of four.

tcx programs of an interface run one behind the other, and only what one of them returns TCX_NEXT
for reaches the next. Ours goes in front: behind a program written for clsact, whose "ok" is
TCX_PASS and ends the row, it would never run; and a program that sends the datagram elsewhere
would have it answered twice. So programs behind it do not see what the ring answers, as the
firewall does not.

The program is attached by a link (BPF_LINK_CREATE, Linux 6.6), which lasts as long as a
descriptor of it: whatever becomes of the process, the kernel has its datagrams back.
"""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING, Self

from ._closing import Closing
from .ebpf import (
    Condition,
    EbpfProgram,
    Instruction,
    address_of,
    bpf,
    call,
    copy_and_add,
    in_memory,
    jump,
    jump_if,
    jump_if_64,
    leave,
    load,
    move,
    move_64,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pktstun.stun import TransportAddress

# <linux/bpf.h>
_BPF_PROG_QUERY, _BPF_LINK_CREATE, _BPF_LINK_UPDATE = 16, 28, 29
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_TCX_INGRESS = 46
_BPF_F_BEFORE = 1 << 3  # with no program named: before all
_BPF_FUNC_SKB_LOAD_BYTES = 26
_PKT_TYPE, _VLAN_TCI = 4, 24  # offsets in struct __sk_buff
_TCX_NEXT, _TCX_DROP = -1, 2
_LINK = struct.Struct("=IIII")  # program, interface, attach type, flags
_UPDATE = struct.Struct("=IIII")  # link, new program, flags, old program
_QUERY = struct.Struct("=IIIIQI4xQQQQ")
_QUERY_COUNT = 24  # offset
_MOST_PROGRAMS = 64  # BPF_MPROG_MAX of <linux/bpf_mprog.h>

# The shortest frames with a STUN header over IPv4, and with a UDP header over IPv6.
_LENGTH = 62
# The stack may only be read at multiples of the size: this is where the addresses are.
_FRAME = -70
_STACK = 10  # register
_LINEAR = 4  # so many values are compared one by one


def takeover(endpoints: Iterable[TransportAddress], *, from_them: bool = False) -> EbpfProgram:
    """Return the program that drops what is sent to these endpoints, and nothing else.

    Args:
        endpoints: addresses as they are in a frame, so no wildcards.
        from_them: drop what comes from these endpoints instead, for their clients.

    Raises:
        ValueError: there is none; an address is IPv4-mapped, which no frame that is answered
            has; or there are thousands, and a jump becomes too long.
    """
    ipv4, ipv6 = [], []
    for ip, port in endpoints:
        port_key = in_memory(port.to_bytes(2, "big"))
        if ip.version == 4:
            ipv4.append((in_memory(ip.packed), port_key))
        elif ip.ipv4_mapped is not None:
            raise ValueError(f"{ip} is in no frame")
        else:
            ipv6.append((in_memory(ip.packed[:8]), in_memory(ip.packed[8:]), port_key))
    if not ipv4 and not ipv6:
        raise ValueError("no endpoint to take over")
    # The destination stands behind the source; a port has 2 bytes.
    ipv4_at, ipv6_at, port_at = (12, 8, 0) if from_them else (16, 24, 2)
    labels = (f"label_{number}" for number in itertools.count())
    return EbpfProgram.build(
        [
            load(4, 2, 1, _PKT_TYPE),
            jump_if(Condition.NOT_EQUAL, 2, 0, "next"),  # PACKET_HOST
            # Without a tag the kernel keeps a zero here; VID 0 names no VLAN.
            load(4, 2, 1, _VLAN_TCI),
            jump_if(Condition.ANY_BIT, 2, 0x0FFF, "next"),
            move(2, 0),
            *copy_and_add(3, _STACK, _FRAME),
            move(4, _LENGTH),
            call(_BPF_FUNC_SKB_LOAD_BYTES),
            jump_if(Condition.NOT_EQUAL, 0, 0, "next"),
            _at(12, 2, 2),
            jump_if(Condition.EQUAL, 2, in_memory(b"\x08\x00"), "ipv4"),
            jump_if(Condition.NOT_EQUAL, 2, in_memory(b"\x86\xdd"), "next"),
            _at(14, 1, 2),
            jump_if(Condition.AT_LEAST, 2, 0x70, "next"),
            jump_if(Condition.LESS, 2, 0x60, "next"),
            _at(14 + 6, 1, 2),
            jump_if(Condition.NOT_EQUAL, 2, 17, "next"),
            _at(14 + ipv6_at, 8, 3),
            _at(14 + ipv6_at + 8, 8, 4),
            _at(14 + 40 + port_at, 2, 5),
            *_search(((3, 8), (4, 8), (5, 4)), ipv6, labels),
            "ipv4",
            _at(14, 1, 2),
            jump_if(Condition.NOT_EQUAL, 2, 0x45, "next"),
            _at(14 + 6, 2, 2),
            jump_if(Condition.ANY_BIT, 2, in_memory(b"\x3f\xff"), "next"),
            _at(14 + 9, 1, 2),
            jump_if(Condition.NOT_EQUAL, 2, 17, "next"),
            _at(14 + ipv4_at, 4, 3),
            _at(14 + 20 + port_at, 2, 4),
            *_search(((3, 4), (4, 4)), ipv4, labels),
            "drop",
            *leave(_TCX_DROP),
            "next",
            *leave(_TCX_NEXT),
        ]
    )


def _at(offset: int, size: int, register: int) -> Instruction:
    """Load from the copy of the frame."""
    return load(size, register, _STACK, _FRAME + offset)


def _search(
    fields: Sequence[tuple[int, int]], keys: Sequence[tuple[int, ...]], labels: Iterator[str]
) -> Iterator[Instruction | str]:
    """Go to "drop" if the fields hold one of the keys, else to "next".

    A field is a register and 4 or 8, the bytes that count in it. Register 2 is scratch.
    """
    (register, size), *rest = fields
    values = sorted({key[0] for key in keys})

    def compare(condition: Condition, value: int, target: str) -> Iterator[Instruction]:
        if size == 8:
            yield from move_64(2, value)
            yield jump_if_64(condition, register, 2, target)
        else:
            yield jump_if(condition, register, value, target)

    if len(values) > _LINEAR:
        middle, above = values[len(values) // 2], next(labels)
        yield from compare(Condition.AT_LEAST, middle, above)
        yield from _search(fields, [key for key in keys if key[0] < middle], labels)
        yield above
        yield from _search(fields, [key for key in keys if key[0] >= middle], labels)
        return
    for value in values:
        if rest:
            other = next(labels)
            yield from compare(Condition.NOT_EQUAL, value, other)
            yield from _search(rest, [key[1:] for key in keys if key[0] == value], labels)
            yield other
        else:
            yield from compare(Condition.EQUAL, value, "drop")
    yield jump("next")


class TcxLink(Closing):
    """A program at the ingress of an interface, in front of those that are there.

    It is gone when the last descriptor of the link is: at `close`, or when the processes end
    that have it, those forked meanwhile included. When the interface is removed the link stays
    behind without effect.

    Args:
        ifindex: of an interface in the calling thread's network namespace.
        program: of type BPF_PROG_TYPE_SCHED_CLS, such as `takeover` returns.

    Raises:
        PermissionError: EPERM, CAP_BPF or CAP_NET_ADMIN is missing.
        VerifierError: the program is not a safe one.
        OSError: ENODEV, there is no such interface; EINVAL or ENOSYS, the kernel has no tcx
            (it has since Linux 6.6, with CONFIG_NET_XGRESS); ERANGE, 64 programs are there.
    """

    def __init__(self, ifindex: int, program: EbpfProgram) -> None:
        loaded = program.load(_BPF_PROG_TYPE_SCHED_CLS, _BPF_TCX_INGRESS, "pktstun")
        try:
            attributes = _LINK.pack(loaded, ifindex, _BPF_TCX_INGRESS, _BPF_F_BEFORE)
            self._fd = bpf(_BPF_LINK_CREATE, bytearray(attributes), "attaching to tcx ingress")
        finally:
            os.close(loaded)

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Return the link of this descriptor, which is its own from then on."""
        link = cls.__new__(cls)
        link._fd = descriptor  # noqa: SLF001 - its own class
        return link

    def replace(self, program: EbpfProgram) -> None:
        """Put another program in the place of the one that is there, in one step.

        Raises:
            PermissionError: EPERM, CAP_BPF or CAP_NET_ADMIN is missing.
            VerifierError: the program is not a safe one.
            OSError: ENOLINK, the interface is gone.
        """
        loaded = program.load(_BPF_PROG_TYPE_SCHED_CLS, _BPF_TCX_INGRESS, "pktstun")
        try:
            attributes = bytearray(_UPDATE.pack(self._fd, loaded, 0, 0))
            bpf(_BPF_LINK_UPDATE, attributes, "exchanging the program at tcx ingress")
        finally:
            os.close(loaded)

    def close(self) -> None:
        """Let the program go, unless another process has a descriptor of the link."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Return the file descriptor, -1 when closed; it is closed on exec."""
        return self._fd


def ingress_programs(ifindex: int) -> tuple[int, ...]:
    """Return the identifiers of the programs at tcx ingress, in the order in which they run.

    It changes nothing, so it is also the way to ask whether `TcxLink` will work.

    Args:
        ifindex: of an interface in the calling thread's network namespace.

    Raises:
        OSError: as for `TcxLink`; EPERM here means that CAP_NET_ADMIN is missing.
    """
    programs = bytearray(4 * _MOST_PROGRAMS)
    attributes = bytearray(_QUERY.size)
    _QUERY.pack_into(
        attributes,
        0,
        ifindex,
        _BPF_TCX_INGRESS,
        0,
        0,
        address_of(programs),
        _MOST_PROGRAMS,
        0,
        0,
        0,
        0,
    )
    bpf(_BPF_PROG_QUERY, attributes, "asking for the programs at tcx ingress")
    (count,) = struct.unpack_from("=I", attributes, _QUERY_COUNT)
    return struct.unpack_from(f"={count}I", programs)
