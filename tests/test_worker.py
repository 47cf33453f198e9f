"""What a worker says to its supervisor, and what of that is believed."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.worker import Notice, read_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native

NUMBERS = st.integers(0, 0xFFFFFFFF)
NOTICES = st.tuples(NUMBERS, NUMBERS).map(lambda numbers: struct.pack("=II", *numbers))
NONSENSE = st.binary(min_size=1, max_size=40).filter(lambda data: len(data) != 8)


@pytest.fixture(name="pipe", scope="module")
def pipe_fixture() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    yield ends
    for end in ends:
        os.close(end)


@given(said=st.lists(NOTICES | NONSENSE, max_size=15))
def test_what_is_no_notice_spoils_no_other(pipe: tuple[int, int], said: list[bytes]) -> None:
    for data in said:
        os.write(pipe[1], data)
    expected = [struct.unpack("=II", data) for data in said if len(data) == 8]
    assert list(read_ready(pipe[0])) == [
        Notice(number & 0x7FFFFFFF, pid, lingers=number >> 31 == 1) for number, pid in expected
    ]


def test_whoever_says_too_much_does_not_keep_the_supervisor(pipe: tuple[int, int]) -> None:
    """A pipe has room for more than is read at once."""
    notice = struct.pack("=II", 1, 2)
    count = 0
    while count < 200:
        try:
            os.write(pipe[1], notice)
        except BlockingIOError:
            break
        count += 1
    assert 0 < len(list(read_ready(pipe[0]))) < count or count < 64
    while list(read_ready(pipe[0])):
        pass
