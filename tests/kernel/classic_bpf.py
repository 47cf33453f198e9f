"""A small machine for classic BPF, written from the kernel's networking/filter.rst.

It knows nothing of the assembler in `pktstun.kernel.bpf`, and is stricter than the kernel:
reading memory that was not written is an error.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_SKF_AD_OFF = -0x1000
_SKF_AD_PKTTYPE, _SKF_AD_IFINDEX, _SKF_AD_CPU = 4, 8, 36

# The three lowest bits of a code are its class.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_SIZES = {0x00: "!I", 0x08: "!H", 0x10: "!B"}
_ABS, _IND, _MEM, _IMM, _MSH = 0x20, 0x40, 0x60, 0x00, 0xA0


class Step(NamedTuple):
    """An instruction: operation, jumps if true and if false, operand."""

    code: int
    true: int
    false: int
    k: int


def disassemble(records: bytes) -> list[Step]:
    return [Step._make(record) for record in struct.iter_unpack("=HBBI", records)]


def successors(program: list[Step], at: int) -> list[int]:
    """Where control may go from an instruction; none from a return."""
    step = program[at]
    if step.code & 7 == _RET:
        return []
    if step.code & 7 != _JMP:
        return [at + 1]
    if step.code & 0xF0 == 0:
        return [at + 1 + step.k]
    return [at + 1 + step.true, at + 1 + step.false]


def run(  # noqa: C901, PLR0912 - an interpreter is one switch
    records: bytes, packet: bytes = b"", *, cpu: int = 0, ifindex: int = 0, packet_type: int = 0
) -> int:
    """Run a program over a packet; return what it returns."""
    ancillary = {_SKF_AD_PKTTYPE: packet_type, _SKF_AD_IFINDEX: ifindex, _SKF_AD_CPU: cpu}
    program = disassemble(records)
    a = x = 0
    memory: dict[int, int] = {}
    at = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        kind = code & 7
        if kind == _RET:
            return a if code & 0x18 == 0x10 else k
        if kind in {_LD, _LDX}:
            mode = code & 0xE0
            if mode == _IMM:
                value = k
            elif mode == _MEM:
                value = memory[k]
            elif mode == _ABS and k >= 0x80000000:
                value = ancillary[k - (1 << 32) - _SKF_AD_OFF]
            else:
                offset = k + x if mode == _IND else k
                try:
                    (value,) = struct.unpack_from(_SIZES[code & 0x18], packet, offset)
                except struct.error:
                    return 0  # beyond the packet: the filter ends and drops
                if mode == _MSH:
                    value = 4 * (value & 0xF)
                else:
                    assert mode in {_ABS, _IND}
            if kind == _LD:
                a = value
            else:
                x = value
        elif kind == _ST:
            memory[k] = a
        elif kind == _STX:
            memory[k] = x
        elif kind == _ALU:
            a = _compute(code & 0xF0, a, x if code & 0x08 else k)
        elif kind == _JMP:
            operation = code & 0xF0
            if operation == 0x00:
                at += k
            else:
                at += true if _holds(operation, a, x if code & 0x08 else k) else false
        elif code & 0xF8:
            a = x
        else:
            x = a


def _compute(operation: int, a: int, operand: int) -> int:
    result = {
        0x00: lambda: a + operand,
        0x10: lambda: a - operand,
        0x20: lambda: a * operand,
        0x30: lambda: a // operand,
        0x40: lambda: a | operand,
        0x50: lambda: a & operand,
        0x60: lambda: a << operand,
        0x70: lambda: a >> operand,
        0x90: lambda: a % operand,
        0xA0: lambda: a ^ operand,
    }[operation]()
    return result & 0xFFFFFFFF


def _holds(operation: int, a: int, operand: int) -> bool:
    return {
        0x10: a == operand,
        0x20: a > operand,
        0x30: a >= operand,
        0x40: bool(a & operand),
    }[operation]
