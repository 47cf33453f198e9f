"""The walk over a block: all of a good one, and nothing outside of a bad one.

Blocks lie between inaccessible pages, so that reading one byte too far ends the test run.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pktstun.kernel._ffi import CData, ffi, lib
from tests.kernel.blocks import (
    BLOCK,
    CAPTURED_AT,
    COUNT_AT,
    FIRST_AT,
    FRAME,
    MAC_AT,
    MAC_OFFSET,
    NEXT_AT,
    STATUS_AT,
    USER,
    BlockFrame,
    build_block,
    slot_size,
)
from tests.native.guarded import Guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native

CAPACITY = 1 << 16
SHORTEST = 68  # struct tpacket3_hdr and struct sockaddr_ll, all that is read of a frame

# Values at the edges of their fields, and of a block.
words = st.one_of(
    st.integers(0, 200),
    st.sampled_from([4095, 4096, 4097, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)


@pytest.fixture(scope="module")
def memory() -> Iterator[Guarded]:
    with Guarded(CAPACITY) as guarded:
        yield guarded


class Walked(NamedTuple):
    """What a walk came to."""

    frames: list[tuple[bytes, dict[str, int]]]
    end: int


def walk(block: CData, size: int) -> Walked:
    """Walk a block as the engine does; every frame has to lie inside."""
    start = int(ffi.cast("uintptr_t", block))
    before = bytes(ffi.buffer(block, size))
    state = ffi.new("struct pktstun_walk *")
    frame = ffi.new("struct pktstun_frame *")
    frames: list[tuple[bytes, dict[str, int]]] = []
    end = lib.pktstun_walk_begin(block, size, state)
    assert end in {0, -1}
    if end == 0:
        while (end := lib.pktstun_walk_next(block, size, state, frame)) == 1:
            assert len(frames) <= size // FRAME.size, "the walk does not end"
            at = int(ffi.cast("uintptr_t", frame.data)) - start
            assert 0 <= at <= at + frame.captured <= size
            frames.append((bytes(ffi.buffer(frame.data, frame.captured)), numbers(frame)))
        assert end in {0, -1}
    assert bytes(ffi.buffer(block, size)) == before
    return Walked(frames, end)


def numbers(frame: CData) -> dict[str, int]:
    names = ["length", "status", "vlan_tci", "vlan_tpid", "packet_type", "ifindex", "timestamp"]
    return {name: getattr(frame, name) for name in names}


def both_ends(memory: Guarded, block: bytes | bytearray) -> Walked:
    """Walk a copy against either guard; the outcome must be the same."""
    data = bytes(block)
    at_end = walk(memory.at_end(data), len(data))
    assert walk(memory.at_start(data), len(data)) == at_end
    return at_end


# --- Good blocks ---

block_frames = st.builds(
    BlockFrame,
    data=st.binary(max_size=120),
    length=st.none() | st.integers(0, 0xFFFFFFFF),
    status=st.integers(0, 0xFFFFFFFF),
    vlan_tci=st.integers(0, 0xFFFF),
    vlan_tpid=st.integers(0, 0xFFFF),
    packet_type=st.integers(0, 255),
    ifindex=st.integers(-(1 << 31), (1 << 31) - 1),
    seconds=st.integers(0, 0xFFFFFFFF),
    nanoseconds=st.integers(0, 999_999_999),
)


@given(
    frames=st.lists(block_frames, max_size=20),
    private=st.integers(0, 200),
    mac_offset=st.sampled_from([68, MAC_OFFSET, 83, 200]),
    spare=st.integers(0, 200),
)
def test_a_good_block_gives_exactly_its_frames(
    memory: Guarded, frames: list[BlockFrame], private: int, mac_offset: int, spare: int
) -> None:
    room = BLOCK.size + private + 8 + sum(slot_size(len(each.data), mac_offset) for each in frames)
    block = build_block(frames, room + spare, private=private, mac_offset=mac_offset)
    walked = both_ends(memory, block)
    assert walked.end == 0
    assert walked.frames == [
        (
            each.data,
            {
                "length": len(each.data) if each.length is None else each.length,
                "status": each.status,
                "vlan_tci": each.vlan_tci,
                "vlan_tpid": each.vlan_tpid,
                "packet_type": each.packet_type,
                "ifindex": each.ifindex,
                "timestamp": each.seconds * 1_000_000_000 + each.nanoseconds,
            },
        )
        for each in frames
    ]


def test_the_last_byte_of_a_block_belongs_to_a_frame(memory: Guarded) -> None:
    for spare in range(20):
        data = bytes(range(100, 100 + spare))
        block = build_block([BlockFrame(data)], BLOCK.size + slot_size(spare))
        flush = block[: BLOCK.size + MAC_OFFSET + spare]
        assert both_ends(memory, flush).frames[0][0] == data
        if spare:
            assert both_ends(memory, flush[:-1]) == ([], -1)


def test_a_block_without_frames(memory: Guarded) -> None:
    assert both_ends(memory, build_block([], 4096)) == ([], 0)


def test_a_block_of_the_kernels_size_is_full_of_requests(memory: Guarded) -> None:
    """As many as the design counts on: 113 frames of 62 bytes in 16 KiB."""
    frames = [BlockFrame(bytes([number]) * 62) for number in range(113)]
    walked = both_ends(memory, build_block(frames, 16384))
    assert [data for data, _ in walked.frames] == [frame.data for frame in frames]
    with pytest.raises(ValueError, match="114 frames"):
        build_block([*frames, frames[0]], 16384)


# --- Bad blocks ---


@pytest.mark.parametrize("size", range(BLOCK.size + 1))
def test_a_block_that_is_too_short_for_its_header(memory: Guarded, size: int) -> None:
    header = build_block([], BLOCK.size)
    struct.pack_into("=I", header, COUNT_AT, 1)
    assert both_ends(memory, header[:size]) == ([], -1)


@given(frames=st.lists(block_frames, min_size=1, max_size=5), cut=st.integers(0, 500))
def test_a_block_that_is_cut(memory: Guarded, frames: list[BlockFrame], cut: int) -> None:
    room = BLOCK.size + sum(slot_size(len(each.data)) for each in frames)
    block = build_block(frames, room)
    walked = both_ends(memory, block[: max(room - cut, 0)])
    whole = [each.data for each in frames]
    assert [data for data, _ in walked.frames] == whole[: len(walked.frames)]


@settings(suppress_health_check=list(HealthCheck))
@given(
    frames=st.lists(block_frames, max_size=6),
    spare=st.integers(0, 300),
    count=st.none() | words,
    first=st.none() | words,
    damage=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([NEXT_AT, CAPTURED_AT, MAC_AT]), words),
        max_size=4,
    ),
)
def test_a_hostile_block_is_never_left(
    memory: Guarded,
    *,
    frames: list[BlockFrame],
    spare: int,
    count: int | None,
    first: int | None,
    damage: list[tuple[int, int, int]],
) -> None:
    """Counts, offsets and lengths that somebody wrote, each alone and all together."""
    slots = [slot_size(len(each.data)) for each in frames]
    block = build_block(frames, BLOCK.size + sum(slots) + spare)
    if count is not None:
        struct.pack_into("=I", block, COUNT_AT, count)
    if first is not None:
        struct.pack_into("=I", block, FIRST_AT, first)
    for index, field, number in damage:
        if index < len(frames):
            at = BLOCK.size + sum(slots[:index]) + field
            if field == MAC_AT:
                struct.pack_into("=H", block, at, number & 0xFFFF)
            else:
                struct.pack_into("=I", block, at, number)
    both_ends(memory, block)


@settings(suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=600))
@example(b"\xff" * 600)
@example(bytes(600))
def test_noise_is_never_left(memory: Guarded, noise: bytes) -> None:
    both_ends(memory, noise)


@given(
    at=st.integers(0, 400),
    mac=st.integers(0, 400) | st.integers(0, 0xFFFF),
    captured=words,
    following=words,
    count=st.just(1) | words,
)
def test_a_lonely_header_anywhere(
    memory: Guarded, *, at: int, mac: int, captured: int, following: int, count: int
) -> None:
    """One frame header, placed where it may end with the block or beyond it."""
    size = 400
    block = bytearray(size + FRAME.size)
    BLOCK.pack_into(block, 0, 1, 48, USER, count, at, size, 1, 0, 0, 0, 0)
    FRAME.pack_into(block, at, following, 0, 0, captured, captured, USER, mac, 0, 0, 0, 0, 0)
    walked = both_ends(memory, block[:size])
    fits = at >= BLOCK.size and at + SHORTEST <= size and at + mac + captured <= size
    if count == 1 and at >= BLOCK.size:
        assert (len(walked.frames) == 1) == fits


def test_the_edges_of_every_field(memory: Guarded) -> None:
    """Two frames of which the fields of the second one reach to the end, or wrap around."""
    slot, size = slot_size(40), 600
    second = BLOCK.size + slot
    good = build_block([BlockFrame(bytes(40)), BlockFrame(bytes(40))], size)
    room = size - second  # from the second header on
    wrapped = [(1 << 32) - near for near in (1, 2, 40, MAC_OFFSET, MAC_OFFSET + 40, slot, second)]
    offsets = [0, 1, 47, 48, 67, 68, room - 68, room - 67, room - 1, room, room + 1, size, *wrapped]
    for at, values in (
        (COUNT_AT, [0, 1, 2, 3, *wrapped]),
        (FIRST_AT, [*offsets, size - 69, size - 68, size - 67, size - 1, size + 1]),
        (BLOCK.size + NEXT_AT, offsets),
        (second + NEXT_AT, offsets),
    ):
        for number in values:
            block = bytearray(good)
            struct.pack_into("=I", block, at, number)
            both_ends(memory, block)
    macs = [0, 1, 67, 68, MAC_OFFSET, room - 1, room, room + 1, 0xFFFF]
    for mac, captured in itertools.product(macs, [*offsets, *(room - mac for mac in macs)]):
        if not 0 <= captured < 1 << 32:
            continue
        block = bytearray(good)
        struct.pack_into("=H", block, second + MAC_AT, mac)
        struct.pack_into("=I", block, second + CAPTURED_AT, captured)
        walked = both_ends(memory, block)
        assert len(walked.frames) == (2 if mac + captured <= room else 1)


@pytest.mark.parametrize(
    "following", [0, 1, 8, 48, SHORTEST - 1, (1 << 32) - 1, (1 << 32) - slot_size(3)]
)
def test_a_step_in_place_or_back_ends_the_walk(memory: Guarded, following: int) -> None:
    """A count of four billion would otherwise take as many steps."""
    block = build_block([BlockFrame(b"one"), BlockFrame(b"two")], 4096)
    struct.pack_into("=I", block, COUNT_AT, 0xFFFFFFFF)
    struct.pack_into("=I", block, BLOCK.size + slot_size(3) + NEXT_AT, following)
    assert both_ends(memory, block).end == -1
    struct.pack_into("=I", block, BLOCK.size + NEXT_AT, following)
    assert both_ends(memory, block) == ([], -1)


def test_the_shortest_steps_end_with_the_block(memory: Guarded) -> None:
    size = 16384
    block = bytearray(size)
    BLOCK.pack_into(block, 0, 1, 48, USER, 0xFFFFFFFF, BLOCK.size, size, 1, 0, 0, 0, 0)
    for at in range(BLOCK.size, size - FRAME.size, SHORTEST):
        FRAME.pack_into(block, at, SHORTEST, 0, 0, 0, 0, USER, 0, 0, 0, 0, 0, 0)
    walked = both_ends(memory, block)
    assert walked.end == -1
    assert len(walked.frames) == (size - BLOCK.size) // SHORTEST


# --- Ownership ---


@given(st.integers(0, 0xFFFFFFFF))
def test_a_block_is_ready_when_one_bit_says_so(status: int) -> None:
    """The others tell of a timer and of losses."""
    block = ffi.new("uint64_t[]", 8)
    ffi.buffer(block)[:] = bytes(build_block([], 64, status=status))
    assert bool(lib.pktstun_block_ready(block)) == bool(status & USER)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1))
def test_release_writes_the_status_and_nothing_else(status: int, sequence: int) -> None:
    block = ffi.new("uint64_t[]", 8)
    built = build_block([], 64, status=status, sequence=sequence)
    ffi.buffer(block)[:] = bytes(built)
    assert lib.pktstun_block_sequence(block) == sequence
    lib.pktstun_block_release(block)
    struct.pack_into("=I", built, STATUS_AT, 0)
    assert bytes(ffi.buffer(block)) == built
