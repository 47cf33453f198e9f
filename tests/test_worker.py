"""What a worker says to its supervisor, and what of that is believed."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.worker import Notice, await_room, read_ready

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


def test_more_workers_than_the_pipe_has_room_for_wait(pipe: tuple[int, int]) -> None:
    """All of them start at once; nobody reads before the last one has been forked."""
    await_room(pipe[1])
    expected = [Notice(number, 1, lingers=False) for number in range(100)]

    def say_all() -> None:
        for notice in expected:
            os.write(pipe[1], struct.pack("=II", notice.number, notice.pid))

    workers = threading.Thread(target=say_all, daemon=True)
    workers.start()
    found: list[Notice] = []
    while len(found) < len(expected):
        assert select.select([pipe[0]], [], [], 5)[0]
        found += read_ready(pipe[0])
    workers.join(5)
    assert found == expected


def test_whoever_says_too_much_does_not_keep_the_supervisor() -> None:
    """A pipe may have room for more than is read at once."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        for _ in range(100):
            os.write(write, struct.pack("=II", 1, 2))
        assert 0 < len(list(read_ready(read))) < 100
    finally:
        os.close(read)
        os.close(write)
