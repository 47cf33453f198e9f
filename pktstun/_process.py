"""The supervisor's hands: processes, signals, timers.

Theory of operation: one thread, one selector. Signal handlers do nothing but wake it up
through a pipe (signal.set_wakeup_fd); a worker's end shows on its pidfd, its readiness on a
pipe, a change of the network on a netlink socket. Each becomes an event for the state machine,
and the actions that come back are carried out here.

A worker with connections that is replaced serves them to their end. For the state machine it has
left; here it is kept in mind until it has ended, over an upgrade as well, which therefore hands
the pipe on that a worker writes to.

Workers are forks: the interpreter and the modules are there already, so that a replacement
serves within milliseconds. The supervisor has one thread only, which makes forking safe.

SIGHUP reads the configuration again, SIGUSR2 upgrades. Both are checked before anything is
changed: what cannot be done is a line in the log, and the service goes on as before.

The service manager is told how things are, and its watchdog is fed after each look at the
heartbeats, unless no worker has served for long: a supervisor that does not look, or that cannot
help, is to be replaced.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import selectors
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pktstun import log as logs
from pktstun import supervisor as machine
from pktstun import upgrade, worker
from pktstun.account import become_user, find_user, report_root
from pktstun.config import check_change
from pktstun.config import plan as make_plan
from pktstun.errors import ConfigError, NotYetError, PktstunError
from pktstun.incidents import Incidents
from pktstun.kernel import privileges
from pktstun.kernel.seccomp import Loop
from pktstun.link import LinkWatch
from pktstun.pace import Pace
from pktstun.places import located
from pktstun.poison import Suspect, save_frame, state_directory
from pktstun.resources import Resources, config_from, running_from
from pktstun.stats import SharedPage, StopRequest
from pktstun.status import StatusSocket, describe, directory_for
from pktstun.systemd import Notifier

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from pktstun.config import Plan, ServeConfig

__all__ = ["serve"]

log = logging.getLogger("pktstun")

_STATISTICS_EVERY = 1.0
_LINKS_AFTER = 0.05
"""Seconds from a change of an interface to a look at it: one change makes several messages."""
_LINKS_EVERY = 1.0
_LINKS_BURST = 2
"""Seconds between two replacements of the workers because of such changes in the long run, and
how many may come at once. An interface that comes back counts by itself: its addresses follow."""
_TRY_AGAIN = 1.0
"""Seconds after which what the kernel has refused is tried again."""
_ROUTES_AFTER = 0.1
"""Seconds from a change to a look at the routing table, at least: one change makes several
messages, the first of which may come before it is complete."""
_ROUTES_SHARE = 20
"""The look is put off for so many times what the last one took: on a busy network neighbours
come and go, and a large table takes its time."""
_STATUS_EVERY = 5.0
"""Seconds between two words to the service manager about how many requests there are."""
_NOT_YET_PAUSE = 3.0
"""Seconds until a service ends that waits for an interface or an address."""
_START_ROOM = 2.0
"""Seconds that a start may take beside what the workers have for theirs."""
_SETTLED_AFTER = 0.1
"""Seconds after which a reload or an upgrade looks again whether workers still come and go."""
_MOST_LINGERING = 8
"""Workers that only serve their open connections, of as many changes in `worker.LINGER_LIMIT`."""
_REFUSED_PAUSE = 0.1
"""Seconds of rest after an error that nobody has foreseen: it may come again at once."""
_SIGNALS = worker.SIGNALS
_ENDED = "ended"
_UPGRADE_REFUSED = {"cause": "upgrade refused", "burst": logs.BURST}
_SHARES = {"cause": "shares", "burst": logs.BURST}


def serve(read_config: Callable[[], ServeConfig], announce: Callable[[Resources], None]) -> int:
    """Run a service until it is stopped.

    Args:
        read_config: says what to serve; called again when the configuration is to be read anew.
        announce: called when every worker serves, and after an upgrade once more.

    Returns:
        The exit status.

    Raises:
        PktstunError: the service cannot start; nothing is left behind.
    """
    notifier = Notifier()
    try:
        return _serve(read_config, announce, notifier)
    except (PktstunError, OSError) as error:
        notifier.status(f"failed: {error}")
        if isinstance(error, NotYetError) and notifier.is_heard:
            # It will start the service again at once, for as long as it takes.
            time.sleep(_NOT_YET_PAUSE)
        raise


def _serve(
    read_config: Callable[[], ServeConfig],
    announce: Callable[[Resources], None],
    notifier: Notifier,
) -> int:
    inherited = upgrade.inheritance()
    if inherited is None:
        config = read_config()
        _configure_log(config)
        with located(config.places):
            plan = make_plan(config)
        state = state_directory() if plan.mode.reads_ring else None
        runtime = directory_for(find_user(config.user)) if config.status else None
        become_user(config.user, state, runtime)
        with located(config.places), Resources(plan) as resources:
            privileges.keep(resources.capabilities)
            report_root(config.user)
            if plan.iface is not None and not plan.iface.is_up:
                log.warning(
                    "interface %s is down; serving begins when it comes up", plan.iface.name
                )
            return _Service(resources, read_config, announce, notifier).run()
    plan = _successors_plan(inherited, read_config)
    with Resources(plan, inherited.state, is_trial=inherited.is_trial) as resources:
        if inherited.is_trial:
            return _try_engines(resources)
        resources.take_charge()
        privileges.keep(resources.capabilities)
        handed = _Inherited.of(inherited.state)
        return _Service(resources, read_config, announce, notifier, handed).run()


def _configure_log(config: ServeConfig) -> None:
    logs.configure(config.log_level, config.log_format, config.log_interval)


def _successors_plan(
    inherited: upgrade.Inheritance, read_config: Callable[[], ServeConfig]
) -> Plan:
    """Plan as the configuration says now.

    Where that has become impossible since the trial, the old one is better than no service.
    """
    running = running_from(inherited.state)
    try:
        config = read_config()
        with located(config.places):
            plan = make_plan(config, running)
            check_change(running, plan)
    except PktstunError as error:
        if inherited.is_trial:
            raise
        config = config_from(inherited.state)
        _configure_log(config)
        log.error("the configuration is refused, the old one stays: %s", error)
        return make_plan(config, running, follow=True)
    _configure_log(config)
    return plan


def _try_engines(resources: Resources) -> int:
    """Find out whether workers could start, without reading what is another's."""
    with SharedPage(1) as page:
        for number in range(len(resources.plan.cpus)):
            engine = resources.engine(number, page.slots[0])
            engine.open()
            engine.close()
        streams = resources.stream_engine(page.slots[0])
        exporter = resources.metrics_engine(page.slots[0])
        for beside in (streams, exporter):
            if beside is not None:
                beside.open()
                beside.close()
    return upgrade.TRIAL_PASSED


class _Inherited(NamedTuple):
    """What a service has of the version before, as children of this process and descriptors."""

    workers: dict[int, int]
    """Process ids by number."""
    lingering: list[int]
    """Process ids of those that only serve their open connections to their end."""
    ready: tuple[int, int] | None
    """Both ends of the pipe that these write to."""
    status: dict[str, Any] | None
    """What the status socket's `hand_over` said."""

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        return cls(
            {int(number): pid for number, pid in state["workers"].items()},
            state.get("lingering", []),
            tuple(state["ready"]) if "ready" in state else None,
            state.get("status"),
        )


class _Reload(Enum):
    """How far the reload is that the service manager knows of."""

    NONE = 0
    ASKED = 1
    UNDER_WAY = 2


class _Service:
    """A service.

    Args:
        resources: what it serves with.
        read_config: as for `serve`.
        announce: as for `serve`.
        notifier: tells the service manager.
        inherited: what the version before has left running; None for a new service.
    """

    def __init__(
        self,
        resources: Resources,
        read_config: Callable[[], ServeConfig],
        announce: Callable[[Resources], None],
        notifier: Notifier,
        inherited: _Inherited | None = None,
    ) -> None:
        count = resources.plan.workers
        self._resources = resources
        self._read_config = read_config
        self._announce = announce
        self._machine = machine.Supervisor(
            count,
            sharing=len(resources.plan.cpus),
            running=None if inherited is None else inherited.workers,
        )
        self._selector = selectors.DefaultSelector()
        self._inherited = inherited
        self._workers: dict[int, tuple[int, int]] = {}  # number: (pid, pidfd)
        self._lingering: dict[int, int] = {}  # pid: pidfd
        self._leaving: set[int] = set()
        self._suspects = [Suspect() for _ in range(count)]
        self._autopsies: set[int] = set()  # workers whose predecessor left a frame to save
        self._timers: dict[Callable[[], None], float] = {}
        self._status: int | None = None
        self._routes_pause = _ROUTES_AFTER
        self._said = ""  # the problem with the network that was logged last
        self._returns = Pace(_LINKS_EVERY, _LINKS_BURST)
        self._address_changes = Pace(_LINKS_EVERY, _LINKS_BURST)
        self._notifier = notifier
        self._incidents = Incidents()
        self._is_announced = inherited is not None
        self._reload_state = _Reload.NONE
        self._received: tuple[float, int] | None = None  # how many by when
        self._rate = 0.0
        self._status_due = 0.0
        self._trial: subprocess.Popen[bytes] | None = None
        self._ready_read = self._ready_write = -1
        self._status_socket: StatusSocket | None = None

    def run(self) -> int:
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            stack.callback(self._end_all)
            if self._inherited is not None:
                for number, pid in self._inherited.workers.items():
                    self._watch_worker(number, pid)
                for pid in self._inherited.lingering:
                    self._watch_lingering(pid, os.pidfd_open(pid))
            self._open_pipes(stack)
            self._open_status(stack)
            self._watch_network(stack)
            self._notifier.extend(machine.START_LIMIT + _START_ROOM)
            self._do(self._machine.start(time.monotonic()))
            if self._inherited is not None:
                self._event(machine.Roll())
            self._look_at_statistics()
            self._look_at_beats()
            while self._status is None:
                self._wait()
                self._run_timers()
            self._report()
            logs.write_rest()
            return self._status

    # ---- what wakes it up ----

    def _open_pipes(self, stack: ExitStack) -> None:
        handed = self._inherited.ready if self._inherited is not None else None
        self._ready_read, self._ready_write = handed or os.pipe2(
            os.O_NONBLOCK | os.O_CLOEXEC | os.O_DIRECT
        )
        stack.callback(os.close, self._ready_read)
        stack.callback(os.close, self._ready_write)
        worker.await_room(self._ready_write)
        self._selector.register(self._ready_read, selectors.EVENT_READ, self._on_ready)

        receiver, sender = socket.socketpair()
        for end in (receiver, sender):
            end.settimeout(0)
            stack.enter_context(end)
        self._wakeup = receiver
        self._selector.register(receiver, selectors.EVENT_READ, self._on_signal)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(sender.fileno()))
        for number in _SIGNALS:
            # The handler itself has nothing to do: the wake-up pipe carries the number.
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        # A parent may have it ignored, and then nobody could be waited for.
        stack.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
        # A version before this one has blocked them until there are handlers.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _open_status(self, stack: ExitStack) -> None:
        config, page = self._resources.plan.config, self._resources.page
        if not config.status:
            return
        stack.callback(self._close_status)
        handed = self._inherited.status if self._inherited is not None else None
        if handed is not None:
            with suppress(OSError):  # somebody has removed its file
                self._status_socket = StatusSocket.adopt(handed, page)
        try:
            if self._status_socket is None:
                self._status_socket = StatusSocket.open(config.status_socket, page)
        except (ConfigError, OSError) as error:
            if self._inherited is None:
                raise
            log.warning("this version has no status socket: %s", error)
        self._watch_status()

    def _put_status_back(self) -> None:
        """Open a status socket in the place of one that cannot be found any more."""
        config, asked = self._resources.plan.config, self._status_socket
        if not config.status or (asked is not None and asked.can_be_found):
            return
        try:
            opened = StatusSocket.open(config.status_socket, self._resources.page)
        except (ConfigError, OSError) as error:
            log.warning("there is no status socket: %s", error)
            return
        if opened is not None:
            self._close_status()
            self._status_socket = opened
            self._watch_status()

    def _close_status(self) -> None:
        if self._status_socket is not None:
            self._timers.pop(self._watch_status, None)
            with suppress(KeyError):  # it may have to pause
                self._selector.unregister(self._status_socket)
            self._status_socket.close()
            self._status_socket = None

    def _watch_status(self) -> None:
        if self._status_socket is not None:
            self._selector.register(self._status_socket, selectors.EVENT_READ, self._on_status)

    def _on_status(self) -> None:
        asked = self._status_socket
        if asked is None:
            return
        pause = asked.answer(partial(describe, self._resources))
        if pause:
            self._selector.unregister(asked)
            self._after(pause, self._watch_status)

    def _watch_network(self, stack: ExitStack) -> None:
        plan = self._resources.plan
        queues = None if plan.config.cpus is not None else plan.cpus
        self._links = stack.enter_context(LinkWatch(plan.iface, queues))
        self._selector.register(self._links, selectors.EVENT_READ, self._on_link_change)
        # What has changed before somebody listened.
        self._after(_LINKS_AFTER, self._look_at_links)
        watch = self._resources.return_paths
        if watch is not None:
            self._selector.register(watch, selectors.EVENT_READ, self._on_route_change)

    def _after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call this in so many seconds, unless it is to be called before that anyway."""
        due = time.monotonic() + seconds
        self._timers[callback] = min(due, self._timers.get(callback, due))

    def _wait(self) -> None:
        deadline = self._machine.deadline
        wake = min([*self._timers.values(), *([] if deadline is None else [deadline])])
        for key, _ in self._selector.select(max(0.0, wake - time.monotonic())):
            self._call(key.data)

    def _run_timers(self) -> None:
        now = time.monotonic()
        for callback in [each for each, due in self._timers.items() if now >= due]:
            del self._timers[callback]
            self._call(callback)
        deadline = self._machine.deadline
        if deadline is not None and now >= deadline:
            self._event(machine.Tick())

    def _call(self, callback: Callable[[], None]) -> None:
        """Call it; what the system refuses (descriptors, memory) does not end the service.

        Nor does a mistake in it: what is there still serves.
        """
        try:
            callback()
        except Exception as error:
            log.exception(
                "this has failed, the service goes on",
                extra={"cause": f"failed: {type(error).__name__}", "burst": logs.BURST},
            )
            time.sleep(_REFUSED_PAUSE)

    # ---- events ----

    def _event(self, event: machine.Event) -> None:
        self._do(self._machine.handle(event, time.monotonic()))

    def _on_ready(self) -> None:
        for notice in worker.read_ready(self._ready_read):
            # It may be the last word of one that has died since.
            if self._workers.get(notice.number, (None, 0))[0] != notice.pid:
                continue
            if notice.lingers and notice.number in self._leaving:
                self._on_lingering(notice.number)
            elif notice.lingers:
                log.warning(
                    "%s wants to linger, and nobody has asked",
                    self._name(notice.number),
                    extra=_about(notice.number, "lingers"),
                )
            else:
                self._event(machine.WorkerReady(notice.number))

    def _on_lingering(self, number: int) -> None:
        """Let a worker's successor take its place while it serves its connections."""
        pid, pidfd = self._workers.pop(number)
        self._selector.unregister(pidfd)
        self._watch_lingering(pid, pidfd)
        log.info("%s (pid %d) serves its open connections to their end", self._name(number), pid)
        while len(self._lingering) > _MOST_LINGERING:
            oldest = next(iter(self._lingering))
            log.warning("the connections of pid %d are closed: too many such workers", oldest)
            signal.pidfd_send_signal(self._lingering[oldest], signal.SIGKILL)
            self._on_lingering_end(oldest)
        self._resources.page.slots[number].end()
        self._leaving.discard(number)
        self._event(machine.WorkerExited(number, 0))

    def _watch_lingering(self, pid: int, pidfd: int) -> None:
        self._lingering[pid] = pidfd
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._on_lingering_end, pid))

    def _on_lingering_end(self, pid: int) -> None:
        pidfd = self._lingering.pop(pid)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, wait_status = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(wait_status)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        log.info("pid %d, which had its last connections, ended with %s", pid, how)

    def _on_signal(self) -> None:
        for number in self._wakeup.recv(64):
            if number == signal.SIGUSR1:
                self._report()
                continue
            log.info("%s received", signal.Signals(number).name)
            if number == signal.SIGHUP:
                if self._is_announced:
                    self._notifier.reloading()
                    self._reload_state = _Reload.ASKED
                self._reload()
            elif number == signal.SIGUSR2:
                self._upgrade()
            else:
                self._event(machine.Stop())

    def _on_exit(self, number: int) -> None:
        pid, pidfd = self._workers.pop(number)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, wait_status = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(wait_status)
        slot = self._resources.page.slots[number]
        slot.end()
        if status == 0 and (self._machine.stopping or number in self._leaving):
            slot.frame = 0
        else:
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            if status == -signal.SIGSYS:
                how += ": it made a system call that no worker makes"
            log.warning(
                "%s (pid %d) ended with %s",
                self._name(number),
                pid,
                how,
                extra=_about(number, _ENDED),
            )
            if self._suspects[number].worker_died(slot):
                self._autopsies.add(number)
        self._leaving.discard(number)
        self._event(machine.WorkerExited(number, status))

    def _look_at_beats(self) -> None:
        self._after(machine.BEAT_EVERY, self._look_at_beats)
        self._event(machine.Beats(tuple(slot.beat for slot in self._resources.page.slots)))
        if not self._machine.is_hopeless:
            self._notifier.feed_watchdog()

    def _look_at_statistics(self) -> None:
        self._after(_STATISTICS_EVERY, self._look_at_statistics)
        self._resources.collect_statistics()
        exporter = self._resources.plan.exporter
        if exporter is not None:
            self._resources.page.slots[exporter].note_interface(
                down=self._links.is_down, takeover=self._resources.takeover is not None
            )
        counts = [
            (self._name(number), slot.read())
            for number, slot in enumerate(self._resources.page.slots)
        ]
        every = self._resources.plan.config.log_interval
        for line in self._incidents.look(counts, every):
            log.log(line.level, "%s", line.text, extra=line.fields)
        self._links.report()
        if self._resources.return_paths is not None:
            self._resources.return_paths.report()
        logs.write_due()
        self._tell_status(sum(sum(each.received.values()) for _, each in counts))

    def _tell_status(self, received: int) -> None:
        """Tell the service manager how it goes, at once where a worker is missing."""
        now = time.monotonic()
        if self._received is not None and now > self._received[0]:
            self._rate = (received - self._received[1]) / (now - self._received[0])
        self._received = now, received
        if self._machine.stopping or self._reload_state is not _Reload.NONE:
            return
        if not self._is_announced:
            self._notifier.extend(_START_ROOM + _STATISTICS_EVERY)
        elif now >= self._status_due or self._absent:
            self._status_due = now + _STATUS_EVERY
            self._notifier.status(self._condition())

    @property
    def _absent(self) -> list[str]:
        """The names of the workers that do not serve."""
        serving = self._machine.serving
        return [self._name(n) for n in range(self._resources.plan.workers) if n not in serving]

    def _condition(self) -> str:
        """Return in a line how the service is."""
        plan = self._resources.plan
        degraded = f"degraded, without {', '.join(self._absent)}: " if self._absent else ""
        where = f" on {plan.iface.name}" if plan.iface is not None else ""
        return (
            f"{degraded}{plan.mode}{where}, workers: {len(plan.cpus)}, {self._rate:,.0f} requests/s"
        )

    # ---- the network changes ----

    def _on_link_change(self) -> None:
        if self._links.changed():
            self._after(_LINKS_AFTER, self._look_at_links)

    def _look_at_links(self) -> None:
        """Follow the interfaces and addresses of the host."""
        if self._machine.stopping:
            return
        resources = self._resources
        pace = self._returns if resources.has_lost_interface else self._address_changes
        if (wait := pace.wait()) > 0:
            self._after(wait, self._look_at_links)
            return
        try:
            self._links.look()
            plan = make_plan(resources.plan.config, resources.plan.running, follow=True)
        except ConfigError as error:
            # Most likely the interface is gone, which has been said.
            self._say_once(str(error))
            return
        except OSError as error:
            self._say_once(f"cannot look at the network: {error.strerror}")
            self._after(_TRY_AGAIN, self._look_at_links)
            return
        try:
            has_other_streams = plan.streams != resources.plan.streams
            if resources.has_lost_interface:
                if plan.iface is not None and not plan.iface.is_up:
                    return  # kernels before 6.13 form no fanout group then
                resources.reopen(plan)
                self._address_changes = Pace(_LINKS_EVERY, _LINKS_BURST)
            elif _serves_the_same(plan, resources.plan):
                resources.plan = plan
                return
            else:
                resources.widen(plan)
        except (PktstunError, OSError) as error:
            self._say_once(f"cannot follow a change of the network yet: {error}")
            self._after(_TRY_AGAIN, self._look_at_links)
            return
        self._said = ""
        if plan.iface is not None and self._links.is_about_another_than(plan.iface):
            self._links.follow(plan.iface)
        served = sorted(map(str, plan.options.endpoints))
        log.info(
            "serving %s",
            ", ".join(served) or "no address",
            extra={"cause": "serving", "burst": logs.BURST},
        )
        pace.take()
        self._event(machine.Roll(None if has_other_streams else plan.stream_worker))

    def _say_once(self, problem: str) -> None:
        """Log a problem that will be met again and again, until it is over or another one."""
        if problem != self._said:
            log.warning(
                "the service goes on as before: %s",
                problem,
                extra={"cause": "network", "burst": logs.BURST},
            )
        self._said = problem

    def _on_route_change(self) -> None:
        watch = self._resources.return_paths
        if watch is not None and watch.changed():
            self._after(self._routes_pause, self._read_routes)

    def _read_routes(self) -> None:
        began = time.monotonic()
        if self._resources.return_paths is not None:
            self._resources.return_paths.update()
        self._routes_pause = max(_ROUTES_AFTER, _ROUTES_SHARE * (time.monotonic() - began))

    # ---- another configuration, another version ----

    def _reload(self) -> None:
        if self._machine.stopping:
            return
        if not self._machine.is_settled:
            self._after(_SETTLED_AFTER, self._reload)
            return
        try:
            config = self._read_config()
            running = self._resources.plan.running
            with located(config.places):
                plan = make_plan(config, running)
                check_change(running, plan)
                self._resources.widen(plan)
        except Exception as error:  # noqa: BLE001 - a file can hold what nobody thought of
            log.error(
                "reload refused, the service goes on as before: %s",
                error,
                extra={"cause": "reload refused", "burst": logs.BURST},
            )
            self._end_reload(f"reload refused: {error}", _Reload.ASKED)
            return
        _configure_log(config)
        self._put_status_back()
        if self._reload_state is _Reload.ASKED:
            self._reload_state = _Reload.UNDER_WAY
        self._event(machine.Roll())

    def _on_rolled(self) -> None:
        try:
            once_more = self._resources.narrow()
        except PktstunError as error:
            self._say_once(f"a new address cannot be served yet: {error}")
            self._end_reload(f"a new address cannot be served yet: {error}", _Reload.UNDER_WAY)
            self._after(_TRY_AGAIN, self._narrow_again)
            return
        if once_more:
            # What is read empty and closed are UDP sockets.
            self._event(machine.Roll(len(self._resources.plan.cpus)))
        else:
            log.info(
                "every worker has been replaced",
                extra={"cause": "replaced", "burst": logs.BURST},
            )
            self._end_reload(self._condition(), _Reload.UNDER_WAY)

    def _end_reload(self, status: str, state: _Reload) -> None:
        """Say that the reload is over, if it is in this state: a roll may have been another's."""
        if self._reload_state is state:
            self._reload_state = _Reload.NONE
            self._notifier.ready(status)
            self._status_due = time.monotonic() + _STATUS_EVERY

    def _narrow_again(self) -> None:
        # Else a roll is on its way, and its end comes to the same.
        if self._machine.is_settled and not self._machine.stopping:
            self._on_rolled()

    def _upgrade(self) -> None:
        if self._machine.stopping or self._trial is not None:
            return
        try:
            self._trial = upgrade.start_trial(self._state())
        except OSError as error:
            log.error("upgrade refused, this version goes on: %s", error, extra=_UPGRADE_REFUSED)
            return
        try:
            self._trial_pidfd = os.pidfd_open(self._trial.pid)
        except OSError as error:
            log.error("upgrade refused, this version goes on: %s", error, extra=_UPGRADE_REFUSED)
            self._trial.kill()
            self._trial.wait()
            self._trial = None
            return
        self._selector.register(self._trial_pidfd, selectors.EVENT_READ, self._on_trial_end)
        self._after(upgrade.TRIAL_LIMIT, self._end_trial)

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.kill()

    def _on_trial_end(self) -> None:
        if self._trial is None:
            return
        self._selector.unregister(self._trial_pidfd)
        os.close(self._trial_pidfd)
        self._timers.pop(self._end_trial, None)
        status, self._trial = self._trial.wait(), None
        if status != upgrade.TRIAL_PASSED:
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            log.error(
                "upgrade refused, this version goes on: the new one ends with %s",
                how,
                extra=_UPGRADE_REFUSED,
            )
            return
        self._execute_upgrade()

    def _execute_upgrade(self) -> None:
        if self._machine.stopping:
            return
        if not self._machine.is_settled:
            self._after(_SETTLED_AFTER, self._execute_upgrade)
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if select.select([self._wakeup], [], [], 0)[0]:
            # The exec would swallow a signal that has come in already.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._after(_SETTLED_AFTER, self._execute_upgrade)
            return
        self._resources.collect_statistics()
        log.info("executing the new version")
        self._notifier.status("going over to the new version")
        # The watchdog's time is for the new version to begin in.
        self._notifier.feed_watchdog(at_once=True)
        logs.write_rest()
        _flush()
        try:
            upgrade.execute(self._state(), _SIGNALS, self._notifier.environment)
        except OSError as error:
            log.error("upgrade failed, this version goes on: %s", error)

    def _state(self) -> dict[str, object]:
        workers = {str(number): pid for number, (pid, _) in self._workers.items()}
        return {
            **self._resources.hand_over(),
            "workers": workers,
            "lingering": list(self._lingering),
            "ready": [self._ready_read, self._ready_write],
            "status": self._status_socket and self._status_socket.hand_over(),
        }

    # ---- actions ----

    def _do(self, actions: list[machine.Action]) -> None:
        for action in actions:
            match action:
                case (
                    machine.Spawn()
                    | machine.Pause()
                    | machine.RetireWorker()
                    | machine.KillWorker()
                ):
                    self._do_to_one(action)
                case machine.Redirect(absent):
                    self._redirect(absent)
                case machine.Announce():
                    self._announce(self._resources)
                    self._is_announced = True
                    self._notifier.ready(self._condition())
                case machine.Rolled():
                    self._on_rolled()
                case machine.StopWorkers():
                    self._notifier.stopping()
                    self._resources.stop_receiving()
                    # The flag for a loop that is busy, the signal for one that sleeps.
                    for slot in self._resources.page.slots:
                        slot.stop = StopRequest.DRAIN
                    self._signal_all(signal.SIGTERM)
                case machine.KillWorkers():
                    self._signal_all(signal.SIGKILL)
                case machine.Exit(status):
                    self._status = status

    def _do_to_one(
        self, action: machine.Spawn | machine.Pause | machine.RetireWorker | machine.KillWorker
    ) -> None:
        number = action.worker
        match action:
            case machine.Spawn():
                self._spawn(number)
            case machine.Pause(_, seconds):
                log.warning(
                    "%s dies early: next start in %.2f s",
                    self._name(number),
                    seconds,
                    extra=_about(number, "dies early"),
                )
            case machine.RetireWorker():
                self._leaving.add(number)
                self._resources.page.slots[number].stop = StopRequest.LEAVE
                self._signal(number, signal.SIGTERM)
            case machine.KillWorker(_, reason):
                log.warning(
                    "%s is killed: %s", self._name(number), reason, extra=_about(number, "killed")
                )
                self._signal(number, signal.SIGKILL)

    def _spawn(self, number: int) -> None:
        resources = self._resources
        slot = resources.page.slots[number]
        resources.prepare_slot(number)
        slot.stop = StopRequest.NONE
        cpu = resources.plan.cpus[number] if number < len(resources.plan.cpus) else None
        autopsy: Callable[[], None] | None = None
        if number in self._autopsies and resources.packet_sockets:
            autopsy = partial(
                save_frame,
                self._suspects[number].frame,
                slot,
                resources.packet_sockets[number],
                resources.geometry,
                state_directory() / f"worker-{number}",
            )
        supervisor = os.getpid()
        _flush()
        # Collecting garbage would touch, and so copy, the pages shared with the parent.
        gc.freeze()
        # Until the child has let go of the wake-up pipe and the handlers, a signal to it would
        # be written into the supervisor's pipe and count there.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._cannot_spawn(number, error)
            return
        if pid == 0:
            status = 1
            try:
                plan = resources.plan
                streams = resources.stream_engine() if number == plan.stream_worker else None
                exporter = resources.metrics_engine() if number == plan.exporter else None
                logs.in_worker(number, _about(number, _ENDED)["cause"])
                status = worker.run(
                    worker.WorkerContext(
                        index=number,
                        cpu=cpu,
                        engine=streams or exporter or resources.engine(number),
                        loop=Loop.STREAMS
                        if streams
                        else Loop.EXPORTER
                        if exporter
                        else Loop.DATAGRAMS,
                        lingering=streams,
                        slot=slot,
                        descriptors=resources.descriptors(number),
                        sending=resources.sending(number),
                        ready=self._ready_write,
                        supervisor=supervisor,
                        nice=resources.plan.nice,
                        autopsy=autopsy,
                    )
                )
            except BaseException:
                log.exception("%s failed", self._name(number))
            finally:
                # Past every handler of the supervisor, whose objects these are.
                try:
                    _flush()
                finally:
                    os._exit(status)
        gc.unfreeze()
        self._autopsies.discard(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            self._watch_worker(number, pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._cannot_spawn(number, error)
            return
        where = "" if cpu is None else f" on CPU {cpu}"
        log.info(
            "%s started%s (pid %d)",
            self._name(number),
            where,
            pid,
            extra=_about(number, "started"),
        )

    def _cannot_spawn(self, number: int, error: OSError) -> None:
        """Have it count as a death: the machine knows what to do then."""
        log.error(
            "%s cannot be started: %s",
            self._name(number),
            error.strerror,
            extra=_about(number, "cannot be started"),
        )
        self._after(0.0, partial(self._event, machine.WorkerExited(number, 1)))

    def _watch_worker(self, number: int, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            self._selector.register(pidfd, selectors.EVENT_READ, partial(self._on_exit, number))
        except OSError:
            os.close(pidfd)
            raise
        self._workers[number] = (pid, pidfd)

    def _redirect(self, absent: frozenset[int]) -> None:
        try:
            self._resources.redirect(absent)
        except OSError as error:
            log.error(
                "the shares of the workers cannot be changed: %s", error.strerror, extra=_SHARES
            )
            return
        if absent:
            names = ", ".join(map(str, sorted(absent)))
            log.error("degraded: the others have the share of worker %s", names, extra=_SHARES)
        else:
            log.info("every worker has its own share again", extra=_SHARES)

    def _signal(self, number: int, signal_number: signal.Signals) -> None:
        if number in self._workers:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._workers[number][1], signal_number)

    def _signal_all(self, signal_number: signal.Signals) -> None:
        for number in self._workers:
            self._signal(number, signal_number)

    def _end_all(self) -> None:
        """Leave no child behind, whatever ended the loop."""
        self._signal_all(signal.SIGKILL)
        for pid, pidfd in self._workers.values():
            os.waitpid(pid, 0)
            os.close(pidfd)
        self._workers.clear()
        for pid, pidfd in self._lingering.items():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
        self._lingering.clear()
        if self._trial is not None:
            self._trial.kill()
            self._trial.wait()

    def _report(self) -> None:
        self._resources.collect_statistics()
        for number, slot in enumerate(self._resources.page.slots):
            if number != self._resources.plan.exporter:  # which counts nothing
                summary = slot.read().summary()
                log.info("%s: %s", self._name(number), summary, extra={"worker": number})

    def _name(self, number: int) -> str:
        plan = self._resources.plan
        names = {plan.stream_worker: "stream worker", plan.exporter: "metrics exporter"}
        return names.get(number, f"worker {number}")


def _about(worker_number: int, what: str) -> dict[str, Any]:
    """Return what the log has to know of a line about a worker that can come again and again."""
    cause = f"worker {worker_number} {what}"
    return {"worker": worker_number, "cause": cause, "burst": logs.BURST}


def _flush() -> None:
    # A full disk, a reader that has gone: no reason to end the service.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _serves_the_same(one: Plan, other: Plan) -> bool:
    return (one.listens, one.options, one.ring_options) == (
        other.listens,
        other.options,
        other.ring_options,
    )
