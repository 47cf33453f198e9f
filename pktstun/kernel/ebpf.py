"""eBPF programs (RFC 9669), assembled here and loaded with bpf(2).

A program is a row of instructions with jumps to labels; `EbpfProgram.build` resolves them, as
`bpf.Program.build` does for classic BPF. The functions here that make instructions are named
after what they do, and are those that the programs of this package need. There are no maps,
no calls but to helpers and no relocations, so that bpf(2) is all it takes to load one.

Values of a packet are compared without swapping bytes: the constant is made as a load finds
it in memory (`in_memory`), on hosts of either byte order.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from ._ffi import CData, check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

# RFC 9669: classes, sizes, modes, operations.
_LDX = {8: 0x79, 4: 0x61, 2: 0x69, 1: 0x71}  # the register is filled up with zeros
_LD_IMM64 = 0x18
_ADD, _MOV, _MOV_X = 0x07, 0xB7, 0xBF  # 64 bits wide
_JA, _CALL, _EXIT = 0x05, 0x85, 0x95
_JMP_X, _JMP32 = 0x0D, 0x06  # a register in 64 bits, a constant in 32

_RECORD = struct.Struct("=BBhi")  # opcode, registers, offset, immediate

# <linux/bpf.h>
_BPF_PROG_LOAD, _BPF_PROG_GET_FD_BY_ID, _BPF_OBJ_GET_INFO_BY_FD = 5, 13, 15
_BPF_LOG_STATS = 4  # what is wrong, and no listing of the program
_PROG_LOAD = struct.Struct("=IIQQIIQII16sII")
_LOG_SIZE = 4096
_BY_ID = struct.Struct("=III")  # program, next, flags
_INFO = struct.Struct("=IIQ")  # descriptor, length and address of struct bpf_prog_info
_INFO_NAME, _INFO_END = 64, 80  # of it: where the name is


class VerifierError(OSError):
    """The kernel's verifier rejects a program; the text ends with its reason.

    Never a PermissionError, though EACCES is one of the numbers that `errno` may have.
    """


class Condition(IntEnum):
    """When a jump is taken; what is compared is unsigned."""

    EQUAL = 0x10
    NOT_EQUAL = 0x50
    AT_LEAST = 0x30
    LESS = 0xA0
    ANY_BIT = 0x40
    """The register and the value have a bit in common."""


class Instruction(NamedTuple):
    """One instruction; the offset of one with a `target` is the way there."""

    code: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class EbpfProgram:
    """An assembled program: `struct bpf_insn` records in host byte order."""

    records: bytes

    @classmethod
    def build(cls, source: Iterable[Instruction | str]) -> Self:
        """Resolve labels (strings in the source) to relative jumps.

        Raises:
            ValueError: a jump leads to no label, backwards, beyond the end, or further than
                32767 instructions.
        """
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for item in source:
            if isinstance(item, str):
                labels[item] = len(instructions)
            else:
                instructions.append(item)

        def assemble(item: Instruction, at: int) -> bytes:
            offset = item.offset
            if item.target:
                offset = labels.get(item.target, -1) - at - 1
                if not 0 <= offset <= min(0x7FFF, len(instructions) - at - 2):
                    raise ValueError(f"no jump from instruction {at} to {item.target!r}")
            # Two bit fields of C, which begin at the end that the byte order says.
            low, high = item.destination, item.source
            if sys.byteorder == "big":
                low, high = high, low
            return _RECORD.pack(item.code, high << 4 | low, offset, item.immediate)

        return cls(b"".join(assemble(item, at) for at, item in enumerate(instructions)))

    def __len__(self) -> int:
        """Return the number of records; a constant of 64 bits takes two."""
        return len(self.records) // _RECORD.size

    def load(self, kind: int, attach_type: int, name: str) -> int:
        """Load the program (BPF_PROG_LOAD).

        Args:
            kind: BPF_PROG_TYPE_...
            attach_type: where it may be attached, BPF_...
            name: what tools show; up to 15 letters, digits, "_" and ".".

        Returns:
            A descriptor, closed on exec, that the caller closes.

        Raises:
            PermissionError: EPERM, CAP_BPF or CAP_NET_ADMIN is missing in the initial user
                namespace, or a security module forbids it.
            VerifierError: the program is not a safe one.
            OSError: the kernel refuses otherwise; ENOSYS, it has no bpf(2).
        """
        # The kernel copies all of these during the call; they live until after it.
        records, licence = ffi.from_buffer(self.records), ffi.new("char[]", b"MIT")
        log = ffi.new("char[]", _LOG_SIZE)
        attributes = _PROG_LOAD.pack(
            kind,
            len(self),
            address_of(records),
            address_of(licence),
            _BPF_LOG_STATS,
            _LOG_SIZE,
            address_of(log),
            0,
            0,
            name.encode("ascii"),
            0,
            attach_type,
        )
        try:
            return bpf(_BPF_PROG_LOAD, bytearray(attributes), f"loading the program {name}")
        except OSError as error:
            reason = _reason(ffi.string(log).decode("ascii", "replace"))
            if not reason:
                raise
            raise VerifierError(error.errno, f"{error.strerror}: {reason}") from None


def bpf(command: int, attributes: bytearray, what: str) -> int:
    """Make the system call and return its result.

    Args:
        command: BPF_...
        attributes: the command's part of `union bpf_attr`; the kernel may write to it.
        what: what failed, for the text of the error.

    Raises:
        OSError: as the system call says.
    """
    return check(lib.pktstun_bpf(command, ffi.from_buffer(attributes), len(attributes)), what)


def program_name(identifier: int) -> str:
    """Return the name with which a program was loaded; "" for none.

    Raises:
        OSError: ENOENT, there is no such program any more; EPERM, CAP_SYS_ADMIN is missing.
    """
    what = "asking for a program"
    program = bpf(_BPF_PROG_GET_FD_BY_ID, bytearray(_BY_ID.pack(identifier, 0, 0)), what)
    try:
        info = bytearray(_INFO_END)
        attributes = bytearray(_INFO.pack(program, len(info), address_of(info)))
        bpf(_BPF_OBJ_GET_INFO_BY_FD, attributes, what)
    finally:
        os.close(program)
    return info[_INFO_NAME:].partition(b"\0")[0].decode("ascii", "replace")


def address_of(memory: CData | bytearray) -> int:
    """Return the address of memory that the caller keeps, for a field of `union bpf_attr`."""
    if isinstance(memory, bytearray):
        memory = ffi.from_buffer(memory)
    return int(ffi.cast("uintptr_t", memory))


def _reason(log: str) -> str:
    """Return the last line of the verifier's log that is not its statistics."""
    statistics = ("processed ", "verification time ", "stack depth ")
    lines = [line for line in log.splitlines() if line and not line.startswith(statistics)]
    return lines[-1] if lines else ""


def in_memory(value: bytes) -> int:
    """Return what a load of these bytes, as they lie in a packet, puts into a register."""
    return int.from_bytes(value, sys.byteorder)


def load(size: int, register: int, base: int, offset: int) -> Instruction:
    """Load 1, 2, 4 or 8 bytes from the address in `base` plus an offset."""
    return Instruction(_LDX[size], register, base, offset)


def move(register: int, value: int) -> Instruction:
    """Set a register to a constant of 32 bits, its sign extended."""
    return Instruction(_MOV, register, immediate=value)


def copy_and_add(register: int, source: int, value: int) -> list[Instruction]:
    """Set a register to another one plus a constant of 32 bits."""
    return [Instruction(_MOV_X, register, source), Instruction(_ADD, register, immediate=value)]


def move_64(register: int, value: int) -> list[Instruction]:
    """Set a register to an unsigned constant of 64 bits."""
    low, high = struct.unpack("<ii", struct.pack("<Q", value))
    return [Instruction(_LD_IMM64, register, immediate=low), Instruction(0, immediate=high)]


def jump(target: str) -> Instruction:
    """Go to a label."""
    return Instruction(_JA, target=target)


def jump_if(condition: Condition, register: int, value: int, target: str) -> Instruction:
    """Go to a label if it holds for the lower half of a register and an unsigned constant."""
    (immediate,) = struct.unpack("=i", struct.pack("=I", value))
    return Instruction(_JMP32 | condition, register, immediate=immediate, target=target)


def jump_if_64(condition: Condition, register: int, other: int, target: str) -> Instruction:
    """Go to a label if it holds for two registers."""
    return Instruction(_JMP_X | condition, register, other, target=target)


def call(helper: int) -> Instruction:
    """Call a helper: registers 1 to 5 are its arguments and lost, 0 is its result."""
    return Instruction(_CALL, immediate=helper)


def leave(result: int) -> list[Instruction]:
    """End the program with a result."""
    return [move(0, result), Instruction(_EXIT)]
