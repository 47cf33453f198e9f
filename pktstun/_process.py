"""The supervisor's hands: processes, signals, timers.

Theory of operation: one thread, one selector. Signal handlers do nothing but wake it up
through a pipe (signal.set_wakeup_fd); a worker's end shows on its pidfd, its readiness on a
pipe. Each becomes an event for the state machine, and the actions that come back are carried
out here.

Workers are forks: the interpreter and the modules are there already, so that a replacement
serves within milliseconds. The supervisor has one thread only, which makes forking safe.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from pktstun import supervisor as machine
from pktstun import worker
from pktstun.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Callable

    from pktstun.config import Plan

__all__ = ["serve"]

log = logging.getLogger("pktstun")

_STATISTICS_EVERY = 1.0
_ROUTES_AFTER = 0.1
"""Seconds from a change to a look at the routing table, at least: one change makes several
messages, the first of which may come before it is complete."""
_ROUTES_SHARE = 20
"""The look is put off for so many times what the last one took: on a busy network neighbours
come and go, and a large table takes its time."""
_DETOURS_EVERY = 60.0
"""Seconds between two log lines about replies that could not leave directly."""
_SIGNALS = worker.SIGNALS


def serve(plan: Plan, announce: Callable[[Resources], None]) -> int:
    """Run a service until it is stopped.

    Args:
        plan: what to serve.
        announce: called once, when every worker serves.

    Returns:
        The exit status.

    Raises:
        PktstunError: the service cannot start; nothing is left behind.
    """
    with Resources(plan) as resources:
        if plan.iface is not None and not plan.iface.is_up:
            log.warning("interface %s is down; serving begins when it comes up", plan.iface.name)
        return _Service(resources, announce).run()


class _Service:
    def __init__(self, resources: Resources, announce: Callable[[Resources], None]) -> None:
        self._resources = resources
        self._announce = announce
        self._machine = machine.Supervisor(len(resources.plan.cpus))
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, tuple[int, int]] = {}  # number: (pid, pidfd)
        self._status: int | None = None
        self._routes_pause = _ROUTES_AFTER
        self._routes_due: float | None = None
        self._detours = 0
        self._detours_due = 0.0
        self._ready_read = self._ready_write = -1

    def run(self) -> int:
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            self._open_pipes(stack)
            stack.callback(self._end_all)
            self._do(self._machine.start(time.monotonic()))
            next_statistics = time.monotonic() + _STATISTICS_EVERY
            while self._status is None:
                now = time.monotonic()
                if now >= next_statistics:
                    self._resources.collect_statistics()
                    self._report_detours(now)
                    if self._resources.return_paths is not None:
                        self._resources.return_paths.report()
                    next_statistics = now + _STATISTICS_EVERY
                if self._routes_due is not None and now >= self._routes_due:
                    self._read_routes(now)
                deadline = self._machine.deadline
                times = (next_statistics, deadline, self._routes_due)
                wake = min(each for each in times if each is not None)
                for key, _ in self._selector.select(max(0.0, wake - now)):
                    key.data()
                if deadline is not None and time.monotonic() >= deadline:
                    self._event(machine.Tick())
            self._report()
            return self._status

    def _open_pipes(self, stack: ExitStack) -> None:
        self._ready_read, self._ready_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, self._ready_read)
        stack.callback(os.close, self._ready_write)
        self._selector.register(self._ready_read, selectors.EVENT_READ, self._on_ready)

        receiver, sender = socket.socketpair()
        for end in (receiver, sender):
            end.settimeout(0)
            stack.enter_context(end)
        self._wakeup = receiver
        self._selector.register(receiver, selectors.EVENT_READ, self._on_signal)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(sender.fileno()))
        watch = self._resources.return_paths
        if watch is not None:
            self._selector.register(watch, selectors.EVENT_READ, self._on_route_change)
        for number in _SIGNALS:
            # The handler itself has nothing to do: the wake-up pipe carries the number.
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))

    # ---- events ----

    def _event(self, event: machine.Event) -> None:
        self._do(self._machine.handle(event, time.monotonic()))

    def _on_ready(self) -> None:
        for number in worker.read_ready(os.read(self._ready_read, 64 * worker.READY_SIZE)):
            self._event(machine.WorkerReady(number))

    def _on_signal(self) -> None:
        for number in self._wakeup.recv(64):
            if number == signal.SIGUSR1:
                self._report()
            else:
                log.info("%s received", signal.Signals(number).name)
                self._event(machine.Stop())

    def _on_exit(self, number: int) -> None:
        pid, pidfd = self._workers.pop(number)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, wait_status = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(wait_status)
        self._resources.page.slots[number].end()
        if status or not self._machine.stopping:
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            log.warning("worker %d (pid %d) ended with %s", number, pid, how)
        self._event(machine.WorkerExited(number, status))

    def _on_route_change(self) -> None:
        watch = self._resources.return_paths
        if watch is not None and watch.changed() and self._routes_due is None:
            self._routes_due = time.monotonic() + self._routes_pause

    def _read_routes(self, now: float) -> None:
        self._routes_due = None
        if self._resources.return_paths is not None:
            self._resources.return_paths.update()
        self._routes_pause = max(_ROUTES_AFTER, _ROUTES_SHARE * (time.monotonic() - now))

    def _report_detours(self, now: float) -> None:
        """Say once in a while that requests come from where replies do not go."""
        detours = sum(slot.read().other_neighbour for slot in self._resources.page.slots)
        if detours > self._detours and now >= self._detours_due:
            log.warning(
                "direct: %d replies went through the UDP sockets, since their requests came from "
                "another neighbour than the gateway that leads back",
                detours - self._detours,
            )
            self._detours, self._detours_due = detours, now + _DETOURS_EVERY

    # ---- actions ----

    def _do(self, actions: list[machine.Action]) -> None:
        for action in actions:
            match action:
                case machine.Spawn(number):
                    self._spawn(number)
                case machine.Announce():
                    self._announce(self._resources)
                case machine.StopWorkers():
                    self._resources.stop_receiving()
                    # The flag for a loop that is busy, the signal for one that sleeps.
                    for slot in self._resources.page.slots:
                        slot.stop = True
                    self._signal_all(signal.SIGTERM)
                case machine.KillWorkers():
                    self._signal_all(signal.SIGKILL)
                case machine.Exit(status):
                    self._status = status

    def _spawn(self, number: int) -> None:
        resources = self._resources
        resources.page.slots[number].stop = False
        supervisor = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Collecting garbage would touch, and so copy, the pages shared with the parent.
        gc.freeze()
        # Until the child has let go of the wake-up pipe and the handlers, a signal to it would
        # be written into the supervisor's pipe and count there.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = worker.run(
                    worker.WorkerContext(
                        index=number,
                        cpu=resources.plan.cpus[number],
                        engine=resources.engine(number),
                        slot=resources.page.slots[number],
                        descriptors=resources.descriptors(number),
                        ready=self._ready_write,
                        supervisor=supervisor,
                        nice=resources.plan.nice,
                    )
                )
            except BaseException:
                log.exception("worker %d failed", number)
            finally:
                # Past every handler of the supervisor, whose objects these are.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        pidfd = os.pidfd_open(pid)
        self._workers[number] = (pid, pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_exit(number))
        log.info("worker %d started on CPU %d (pid %d)", number, resources.plan.cpus[number], pid)

    def _signal_all(self, number: int) -> None:
        for _, pidfd in self._workers.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)

    def _end_all(self) -> None:
        """Leave no worker behind, whatever ended the loop."""
        self._signal_all(signal.SIGKILL)
        for pid, pidfd in self._workers.values():
            os.waitpid(pid, 0)
            os.close(pidfd)
        self._workers.clear()

    def _report(self) -> None:
        self._resources.collect_statistics()
        for number, slot in enumerate(self._resources.page.slots):
            log.info("worker %d: %s", number, slot.read().summary())
