"""The system calls that a process may make (seccomp(2)).

Theory of operation: the kernel runs a classic BPF program before each system call. It knows the
architecture, the number and the arguments, and decides: allow, fail with an error, or kill the
process. What is not on the lists below kills, since nothing that this program does leads there.
There is one for each kind of loop: whoever serves streams takes connections in, and has no use
for what reads datagrams.

A packet socket sends whatever frame it is given, on any interface that the message names. So
sending takes a descriptor from a list, and so does writing, which does the same.

Calls that open or look at files fail with EACCES in place of killing: Python reads source files
when it prints a traceback, and does without where it cannot.

No binding to libseccomp comes from the package index in a form that is kept, and what has to be
said is short.
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import TYPE_CHECKING

from ._ffi import check, ffi, lib
from .bpf import AllowedCall, system_calls

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PROT_EXEC = 4


class Loop(Enum):
    """What a process does; the value is the system calls that only this takes."""

    DATAGRAMS = ("recvmmsg", "poll", "ppoll", "getsockopt", "sched_yield")
    """The packet workers' loop in C."""
    STREAMS = (
        *("epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
        *("accept4", "recvfrom", "sendto", "shutdown", "getsockname", "getpeername", "getsockopt"),
    )
    """Connections on an asyncio loop, and TLS."""
    EXPORTER = (
        *("epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
        *("accept4", "recvfrom", "sendto", "getsockname", "getsockopt"),
    )
    """Connections on an asyncio loop, and questions from each worker's CPU."""


_ALLOWED = (
    # log lines, the ready pipe
    *("read", "close", "fstat", "lseek"),
    # time
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "getrusage"),
    # memory
    *("brk", "munmap", "mremap", "madvise"),
    # signals and the end
    *("rt_sigreturn", "rt_sigprocmask", "rt_sigaction", "sigaltstack", "restart_syscall"),
    *("exit", "exit_group"),
    # the C library and Python
    *("futex", "getpid", "getppid", "gettid", "getuid", "getrandom", "sched_getaffinity"),
)
_REFUSED = (
    *("open", "openat", "openat2", "stat", "lstat", "newfstatat", "statx"),
    *("access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd", "ioctl"),
)


def confine(loop: Loop, *, sending: Collection[int], writing: Collection[int]) -> bool:
    """Allow this process what its loop needs, for good.

    `privileges.drop` comes first: without no_new_privs it takes a capability.

    Args:
        loop: what it does.
        sending: descriptors that datagrams may be sent through, of `Loop.DATAGRAMS`.
        writing: descriptors that may be written to.

    Returns:
        Whether there is a filter: False on an architecture that this module does not know, or
        where the kernel has none.

    Raises:
        OSError: the kernel refuses the program.
    """
    if not lib.PKTSTUN_AUDIT_ARCH:
        return False
    allowed = list(_allowed(loop, sending, writing))
    conditional = {call.number for call in allowed if call.argument is not None}
    refused = [number for number in _numbers(_REFUSED) if number not in conditional]
    program = system_calls(lib.PKTSTUN_AUDIT_ARCH, allowed, refused)
    records = ffi.new("struct sock_filter[]", len(program))
    ffi.buffer(records)[:] = program.records
    filter_ = ffi.new("struct sock_fprog *", [len(program), records])
    address = int(ffi.cast("uintptr_t", filter_))
    result = lib.prctl(lib.PR_SET_SECCOMP, lib.SECCOMP_MODE_FILTER, address, 0, 0)
    if result == -1 and ffi.errno == errno.EINVAL:
        return False
    check(result, "installing the system call filter")
    return True


def _allowed(
    loop: Loop, sending: Collection[int], writing: Collection[int]
) -> Iterator[AllowedCall]:
    yield from map(AllowedCall, _numbers(loop.value + _ALLOWED))
    for number in _numbers(("sendmmsg",)) if loop is Loop.DATAGRAMS else ():
        yield AllowedCall(number, argument=0, among=tuple(sending))
    for number in _numbers(("write",)):
        yield AllowedCall(number, argument=0, among=tuple(writing))
    for name in ("mmap", "mprotect"):
        for number in _numbers((name,)):
            yield AllowedCall(number, argument=2, without=_PROT_EXEC)
    # abort(3) sends a signal to itself.
    for number in _numbers(("tgkill",)):
        yield AllowedCall(number, argument=0, among=(os.getpid(),))
    if loop is Loop.EXPORTER:
        # Its own, not that of the workers, which are the same user's.
        for number in _numbers(("sched_setaffinity",)):
            yield AllowedCall(number, argument=0, among=(0,))
    if loop is not Loop.DATAGRAMS:
        # A connection that was taken in is made non-blocking.
        for number in _numbers(("ioctl",)):
            yield AllowedCall(number, argument=1, among=(lib.FIONBIO,))


def _numbers(names: tuple[str, ...]) -> list[int]:
    """Return the numbers of those calls that this architecture has."""
    numbers = (int(getattr(lib, f"__NR_{name}")) for name in names)
    return [number for number in numbers if number != lib.PKTSTUN_NO_CALL]
