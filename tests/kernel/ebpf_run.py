"""Programs of type BPF_PROG_TYPE_SCHED_CLS, run by the kernel on frames of our own."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from pktstun.kernel.ebpf import address_of, bpf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pktstun.kernel import EbpfProgram

# <linux/bpf.h>
_BPF_PROG_TEST_RUN = 10
_SCHED_CLS, _TCX_INGRESS = 3, 46
_TEST = struct.Struct("=IIIIQQII")

_HEADERS = {b"\x08\x00": 20, b"\x86\xdd": 40}


def can_run(frame: bytes) -> bool:
    """Whether the kernel takes a frame for a run: the headers that it announces are there."""
    return len(frame) >= 14 + _HEADERS.get(frame[12:14], 1)


class Run(NamedTuple):
    result: int
    nanoseconds: int
    """The mean of all repetitions."""


class Loaded:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def run(self, frame: bytes, repeat: int = 1) -> Run:
        """Run the program on a frame that has come in on lo.

        Its destination is what makes the packet type: the address of lo is zero.
        """
        data = bytearray(frame)
        attributes = bytearray(_TEST.pack(self.fd, 0, len(data), 0, address_of(data), 0, repeat, 0))
        bpf(_BPF_PROG_TEST_RUN, attributes, "running a program")
        result, duration = struct.unpack_from("=4xi28xI", attributes)
        return Run(result, duration)


@contextmanager
def loaded(program: EbpfProgram) -> Iterator[Loaded]:
    fd = program.load(_SCHED_CLS, _TCX_INGRESS, "test")
    try:
        yield Loaded(fd)
    finally:
        os.close(fd)
