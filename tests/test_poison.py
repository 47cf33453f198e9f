"""Which deaths make a frame a suspect, and what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pktstun import poison
from pktstun.capture import read_capture
from pktstun.kernel import RingGeometry
from pktstun.poison import Suspect, save_frame, state_directory
from pktstun.stats import SharedPage
from tests.kernel.blocks import BlockFrame, FileRing, build_block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pktstun.stats import Slot

pytestmark = pytest.mark.native

FRAME = 9 << 16 | 3
BLOCK = 9 << 16 | 0xFFFF


@pytest.fixture(name="slot")
def slot_fixture() -> Iterator[Slot]:
    with SharedPage(1) as page:
        yield page.slots[0]


def die(suspect: Suspect, slot: Slot, frame: int) -> tuple[bool, int]:
    slot.frame = frame
    return suspect.worker_died(slot), slot.pointer.skip


def test_one_death_proves_nothing(slot: Slot) -> None:
    suspect = Suspect()
    assert die(suspect, slot, FRAME) == (False, 0)
    assert die(suspect, slot, FRAME + 1) == (False, 0)
    assert die(suspect, slot, FRAME) == (False, 0)
    assert slot.frame == 0


def test_the_second_death_passes_the_frame_over_and_the_third_its_block(slot: Slot) -> None:
    suspect = Suspect()
    die(suspect, slot, FRAME)
    assert die(suspect, slot, FRAME) == (True, FRAME)
    # It has died of saving the frame, which has it in hand meanwhile.
    assert die(suspect, slot, FRAME) == (False, BLOCK)


def test_another_frame_of_the_block_is_a_suspect_of_its_own(slot: Slot) -> None:
    suspect = Suspect()
    die(suspect, slot, FRAME)
    assert die(suspect, slot, FRAME) == (True, FRAME)
    assert die(suspect, slot, FRAME + 1) == (False, FRAME)
    assert die(suspect, slot, FRAME + 1) == (True, FRAME + 1)


def test_a_death_without_a_frame_in_hand_begins_anew(slot: Slot) -> None:
    suspect = Suspect()
    die(suspect, slot, FRAME)
    die(suspect, slot, 0)
    assert die(suspect, slot, FRAME) == (False, 0)


def test_the_place_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert str(state_directory()) == "/var/lib/pktstun"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert str(state_directory()) == "/var/lib/one"


GEOMETRY = RingGeometry(block_size=4096, block_count=8)
FRAMES = [BlockFrame(bytes([index]) * (60 + index), length=1000) for index in range(4)]


def put(ring: FileRing, sequence: int) -> None:
    block = build_block(FRAMES, GEOMETRY.block_size, sequence=sequence)
    ring.put((sequence - 1) % GEOMETRY.block_count, block)


def test_a_saved_frame_is_a_capture(slot: Slot, tmp_path: Path) -> None:
    directory = tmp_path / "made" / "for it"
    with FileRing(GEOMETRY) as ring:
        put(ring, 9)
        save_frame(FRAME, slot, ring.socket, GEOMETRY, directory)
    assert slot.frame == 0
    (file,) = directory.iterdir()
    (packet,) = read_capture(file.read_bytes())
    assert (packet.data, packet.wire_length) == (FRAMES[3].data, 1000)
    assert (packet.link_type, packet.timestamp) == (1, 1_700_000_000_000_000_000)


def test_a_time_that_no_capture_has_room_for(slot: Slot, tmp_path: Path) -> None:
    """Ring memory is untrusted: seconds and nanoseconds can be any 32 bits."""
    most = (1 << 32) - 1
    frames = [BlockFrame(bytes(60), seconds=most, nanoseconds=most)]
    with FileRing(GEOMETRY) as ring:
        ring.put(0, build_block(frames, GEOMETRY.block_size, sequence=1))
        save_frame(1 << 16, slot, ring.socket, GEOMETRY, tmp_path)
    (file,) = tmp_path.iterdir()
    (packet,) = read_capture(file.read_bytes())
    assert packet.data == bytes(60)
    assert packet.timestamp is not None
    assert packet.timestamp // 1_000_000_000 == most


@pytest.mark.parametrize("frame", [9 << 16 | 4, 10 << 16, 17 << 16])
def test_a_frame_that_is_not_there_any_more(
    slot: Slot, tmp_path: Path, frame: int, caplog: pytest.LogCaptureFixture
) -> None:
    with FileRing(GEOMETRY) as ring:
        put(ring, 9)
        save_frame(frame, slot, ring.socket, GEOMETRY, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "not in the ring any more" in caplog.text


def test_there_is_an_end_of_files(
    slot: Slot,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poison, "MOST_FILES", 2)
    with FileRing(GEOMETRY) as ring:
        put(ring, 9)
        for index in range(4):
            save_frame(9 << 16 | index, slot, ring.socket, GEOMETRY, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert caplog.text.count("it is not saved") == 2
