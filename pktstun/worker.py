"""A worker: one process that runs an engine until it is told to stop.

Theory of operation: the worker is a fork of the supervisor and borrows its descriptors. It
keeps only its own, pins itself to its CPU if it has one, and asks the kernel to be killed when the
supervisor dies. The loop is in C and comes back at least every `BUDGET` seconds, so that
Python's signal handlers run; they only set a flag. The heartbeat is written by the loop
itself, not here.

SIGTERM ends it in good order: what has arrived is answered first. SIGINT is ignored, since a
terminal sends it to the whole group and the supervisor decides. Where the slot asks it to leave,
because a successor is about to start, it does so soon and between two passes, so that nothing is
answered twice. One that has connections says so, on the pipe on which it said that it was ready,
and lingers beside its successor until they have ended.

A worker whose predecessors died of a frame is told so. Before it serves, it saves that frame.

What it needs to open is open when it forks. So before it reads the first packet, it has no
capability left, and may make no system call but those of its loop: whoever takes it over by a
packet has descriptors to read from and to send to, and nothing else.
"""

from __future__ import annotations

import logging
import os
import signal
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pktstun.errors import BootError, PktstunError
from pktstun.kernel import Priority, privileges, seccomp
from pktstun.kernel._ffi import check, lib
from pktstun.log import write_due, write_rest
from pktstun.stats import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from pktstun.engine import Engine
    from pktstun.stats import Slot

__all__ = ["BUDGET", "SIGNALS", "Notice", "WorkerContext", "await_room", "read_ready", "run"]

log = logging.getLogger("pktstun")

BUDGET = 0.1
"""Seconds between two looks at the signals."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that mean something to the supervisor. A worker stops on the first."""

NICE = -10
"""Nice value of a worker that may take it, where the service was started with 0. Under overload
the kernel's receiving competes with the worker for the CPU, and what it wins is thrown away."""

SETTLE_LIMIT = 1.0
"""Seconds after which a worker serves though its nice value does not count for the session."""

DRAIN_LIMIT = 2.0
"""Seconds after which draining is given up."""

LEAVE_LIMIT = 0.05
"""The same for a worker whose successor is about to start. That goes on with what is left, but
perhaps not with every socket: what waits in one that will be closed is answered now or never."""

LINGER_LIMIT = 300.0
"""Seconds for which a worker serves its open connections beside its successor."""

_READY = struct.Struct("=II")
_NOTICES = 64  # that are read at once: others wait, too
_LINGERS = 1 << 31  # in the number


class Notice(NamedTuple):
    """What a worker wrote to the ready pipe."""

    number: int
    pid: int
    lingers: bool
    """Not that it is ready, but that its successor may start while it serves what it has."""


class Lingering(Protocol):
    """What a worker needs of an engine that has connections."""

    def retire(self) -> int:
        """Take nothing new in; return how many connections are open."""

    def linger(self, limit: float) -> None:
        """Serve them until they end, for at most `limit` seconds."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker is given."""

    index: int
    """Its number, that of its slot."""
    cpu: int | None
    """Where it runs; None for wherever the kernel likes, and without priority."""
    engine: Engine
    """Not yet open."""
    slot: Slot
    """Its part of the shared page."""
    descriptors: set[int]
    """Those to keep beside the standard ones."""
    sending: set[int]
    """Those of them that replies are sent through."""
    ready: int
    """Descriptor of a pipe to which it writes its number and process id once."""
    supervisor: int
    """Process id of the parent."""
    nice: int | None = None
    """Nice value to take; None for `NICE` where nobody has chosen another and it is allowed."""
    loop: seccomp.Loop = seccomp.Loop.DATAGRAMS
    """What kind of system calls its engine makes."""
    lingering: Lingering | None = None
    """The engine, if it has connections to serve to their end."""
    autopsy: Callable[[], None] | None = None
    """To call first; it is not known to survive it."""


def await_room(pipe: int) -> None:
    """Have workers wait where the ready pipe is full, which 16 notices in packet mode can do."""
    os.set_blocking(pipe, True)


def read_ready(pipe: int) -> Iterator[Notice]:
    """Yield what workers wrote to the ready pipe, which is in packet mode (O_DIRECT, pipe(2)).

    So what is no notice, from a worker that somebody has taken over, spoils no other.
    """
    with suppress(BlockingIOError):
        for _ in range(_NOTICES):
            data = os.read(pipe, 2 * _READY.size)
            if len(data) == _READY.size:
                number, pid = _READY.unpack(data)
                yield Notice(number & ~_LINGERS, pid, bool(number & _LINGERS))


def run(context: WorkerContext) -> int:
    """Serve in this process, a fresh fork, until stopped; return the exit status.

    The caller has blocked `SIGNALS`; they are let in when they have their new meaning.
    """
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, stop if number is signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        priority = _settle_in(context)
    except (OSError, PktstunError) as error:
        log.error("worker %d cannot start: %s", context.index, error)
        return BootError.exit_status
    context.slot.begin(os.getpid())
    try:
        os.write(context.ready, _READY.pack(context.index, os.getpid()))
    except BrokenPipeError:
        return BootError.exit_status  # the supervisor is on its way out
    lingers = False
    try:
        _serve(context, priority, lambda: stopping)
        leave = context.slot.stop is StopRequest.LEAVE
        if leave and context.lingering is not None and context.lingering.retire():
            os.write(context.ready, _READY.pack(context.index | _LINGERS, os.getpid()))
            lingers = True
            context.lingering.linger(LINGER_LIMIT)
            write_rest()
            return 0
        context.engine.drain(LEAVE_LIMIT if leave else DRAIN_LIMIT)
        if leave:
            context.engine.run(0)  # what is settled already is closed, and nothing begun
        write_rest()
    except PktstunError as error:
        log.error("worker %d: %s", context.index, error)
        return error.exit_status
    finally:
        if not lingers:  # else the slot is its successor's
            context.slot.end()
    return 0


def _serve(
    context: WorkerContext, priority: Priority | None, is_stopping: Callable[[], bool]
) -> None:
    while not is_stopping() and not context.slot.stop:
        if priority is not None and priority.settle():
            priority = None
        context.engine.run(BUDGET)
        write_due()


def _settle_in(context: WorkerContext) -> Priority | None:
    """Take what it needs, then give up the rest; return a nice value that remains to be settled."""
    _die_with(context.supervisor)
    _keep_only({context.ready, *context.descriptors})
    priority = None
    if context.cpu is None:
        # Whatever the supervisor has, the packet workers come first.
        os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    else:
        os.sched_setaffinity(0, {context.cpu})
        priority = _prioritise(context)
    context.engine.open()
    privileges.drop()
    if context.autopsy is not None:
        # Before the filter, which lets no file be made; and a file that was made before looking
        # could not be removed behind it when the frame is not in the ring any more. Of a worker
        # that the frame takes over here, the capabilities at least are gone.
        context.autopsy()
    log_and_ready = {2, context.ready}
    if not seccomp.confine(context.loop, sending=context.sending, writing=log_and_ready):
        log.warning("worker %d may make any system call: no filter here", context.index)
    return priority


def _die_with(supervisor: int) -> None:
    """Be killed when the parent dies, even if it has died already."""
    check(lib.prctl(lib.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != supervisor:
        raise BootError("the supervisor has gone")


def _prioritise(context: WorkerContext) -> Priority | None:
    """Take a nice value; return it if it remains to be settled."""
    wanted = context.nice
    if wanted is None and os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return None
    privileges.own_proc_files()
    try:
        priority = Priority(NICE if wanted is None else wanted)
    except PermissionError:
        if wanted is not None:
            raise
        return None
    if priority.is_within_limit:
        return None if priority.settle() else priority
    # Later on there is no capability left that would allow it.
    if not priority.settle(SETTLE_LIMIT):
        priority.close()
        log.warning(
            "worker %d: its nice value does not count against other sessions: the kernel takes "
            "one such write in 100 ms, and others' came first for %g s",
            context.index,
            SETTLE_LIMIT,
        )
    return None


def _keep_only(descriptors: set[int]) -> None:
    """Close all but the standard descriptors and these: the others' are no business of it."""
    kept = [2, *sorted(descriptors)]
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        if low + 1 < high:
            os.closerange(low + 1, high)
