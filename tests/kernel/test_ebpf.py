"""The assembler: by the bytes it makes, and by what the kernel does with them."""

from __future__ import annotations

import errno
import os
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel import EbpfProgram, VerifierError
from pktstun.kernel.ebpf import (
    Condition,
    Instruction,
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
from tests.kernel.ebpf_run import loaded
from tests.kernel.wire import descriptors
from tests.lab import require_root

FRAME = bytes(60)
HOLDS = {
    Condition.EQUAL: lambda one, other: one == other,
    Condition.NOT_EQUAL: lambda one, other: one != other,
    Condition.AT_LEAST: lambda one, other: one >= other,
    Condition.LESS: lambda one, other: one < other,
    Condition.ANY_BIT: lambda one, other: one & other != 0,
}

words = st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1)
double_words = st.builds(lambda high, low: high << 32 | low, words, words)


def records(*source: Instruction | str) -> list[tuple[int, ...]]:
    """Opcode, registers, offset and immediate of each instruction."""
    return list(struct.iter_unpack("=BBhi", EbpfProgram.build(source).records))


def verdict(*source: Instruction | str) -> int:
    with loaded(EbpfProgram.build(source)) as program:
        return program.run(FRAME).result


# --- The bytes ---


def test_labels_become_distances() -> None:
    made = records(
        jump("there"),
        "here",
        *leave(1),
        "there",
        jump_if(Condition.EQUAL, 1, 2, "end"),
        *leave(3),
        "end",
        *leave(4),
    )
    assert [offset for _, _, offset, _ in made] == [2, 0, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "source",
    [
        [jump("nowhere")],
        ["back", *leave(0), jump("back")],
        [jump("end"), "end"],
        [jump("far"), *[move(0, 0)] * 0x8000, "far", *leave(0)],
    ],
    ids=["no label", "backwards", "beyond the end", "too far"],
)
def test_an_impossible_jump_is_refused(source: list[Instruction | str]) -> None:
    with pytest.raises(ValueError, match="no jump from instruction"):
        EbpfProgram.build(source)


def test_the_furthest_jump() -> None:
    assert records(jump("far"), *[move(0, 0)] * 0x7FFF, "far", *leave(0))[0] == (0x05, 0, 0x7FFF, 0)


def test_the_registers_lie_as_c_bit_fields_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def registers() -> int:
        return records(load(4, 2, 1, 24))[0][1]

    monkeypatch.setattr(sys, "byteorder", "little")
    assert registers() == 0x12
    monkeypatch.setattr(sys, "byteorder", "big")
    assert registers() == 0x21


def test_a_long_constant_takes_two_records() -> None:
    program = EbpfProgram.build(move_64(3, 0xFEDCBA9876543210))
    assert len(program) == 2
    assert records(*move_64(3, 0xFEDCBA9876543210)) == [
        (0x18, 0x03 if sys.byteorder == "little" else 0x30, 0, 0x76543210),
        (0, 0, 0, 0xFEDCBA98 - (1 << 32)),
    ]


# --- What the kernel makes of them ---


@pytest.mark.root
@given(condition=st.sampled_from(Condition), one=double_words, other=words, same=st.booleans())
def test_a_condition_in_32_bits(
    condition: Condition,
    one: int,
    other: int,
    same: bool,  # noqa: FBT001 - hypothesis names it
) -> None:
    require_root()
    low = one & 0xFFFFFFFF
    value = low if same else other
    assert verdict(
        *move_64(3, one),
        jump_if(condition, 3, value, "taken"),
        *leave(0),
        "taken",
        *leave(1),
    ) == HOLDS[condition](low, value)


@pytest.mark.root
@given(
    condition=st.sampled_from(Condition), one=double_words, other=double_words, same=st.booleans()
)
def test_a_condition_in_64_bits(
    condition: Condition,
    one: int,
    other: int,
    same: bool,  # noqa: FBT001 - hypothesis names it
) -> None:
    require_root()
    value = one if same else other
    assert verdict(
        *move_64(3, one),
        *move_64(4, value),
        jump_if_64(condition, 3, 4, "taken"),
        *leave(0),
        "taken",
        *leave(1),
    ) == HOLDS[condition](one, value)


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_load_finds_what_in_memory_says(size: int) -> None:
    require_root()
    stored = bytes.fromhex("fedcba9876543210")
    store = Instruction(0x7B, 10, 3, -16)  # 8 bytes
    assert verdict(
        *move_64(3, in_memory(stored)),
        store,
        *copy_and_add(2, 10, -24),
        load(size, 5, 2, 8),
        *move_64(4, in_memory(stored[:size])),
        jump_if_64(Condition.EQUAL, 5, 4, "equal"),
        *leave(0),
        "equal",
        *leave(1),
    )


@pytest.mark.root
@given(result=st.integers(-(2**31), 2**31 - 1))
def test_the_result_is_signed(result: int) -> None:
    require_root()
    assert verdict(*leave(result)) == result


@pytest.mark.root
def test_a_loaded_program_is_closed_on_exec() -> None:
    require_root()
    with loaded(EbpfProgram.build(leave(0))) as program:
        assert not os.get_inheritable(program.fd)


@pytest.mark.root
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (leave(0)[1:], "R0 !read_ok"),
        ([load(4, 0, 1, 4000), *leave(0)], "invalid bpf_context access off=4000 size=4"),
        ([move(0, 0)], "last insn is not an exit or jmp"),
    ],
)
def test_the_verifier_says_why(source: list[Instruction], reason: str) -> None:
    require_root()
    before = descriptors()
    with (
        pytest.raises(VerifierError, match=f"{reason}$") as caught,
        loaded(EbpfProgram.build(source)),
    ):
        pass
    assert caught.value.errno in {errno.EACCES, errno.EINVAL}
    assert not isinstance(caught.value, PermissionError)
    assert descriptors() == before


@pytest.mark.root
def test_what_the_verifier_never_sees_is_another_error() -> None:
    require_root()
    with (
        pytest.raises(OSError, match="loading the program test") as caught,
        loaded(EbpfProgram(b"")),
    ):
        pass
    assert type(caught.value) is OSError
