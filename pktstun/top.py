"""`pktstun top`: a running service, live in the terminal.

Theory of operation: once in every interval the service is asked again, so that what changes with
a reload or an upgrade is seen, and the page that it lends is read. If it does not answer, the page
it lent before can still be read; if it is gone, whoever takes its place at the same socket, or
alone on the host, is shown. What is on the screen is made elsewhere (`pktstun.observe`); here are
the terminal, the keys and the requests of the probe.

On a terminal the screen is its own and is given back at the end. Where there is none, or a dumb
one, screens are printed one below the other.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pktstun.client import QueryError, Sample, Summary, watch
from pktstun.errors import NoServiceError, PktstunError, StatusError
from pktstun.observe import Probe, Scene, Service, Style, compare, find_services, render
from pktstun.stun import TransportAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pktstun.observe import Info, Snapshot

__all__ = ["Prober", "Watcher", "run"]

_STYLES = {Style.PLAIN: "", Style.TITLE: "bold", Style.HEAD: "reverse", Style.BAD: "bold red"}

_MEMORY = 60.0
"""Seconds of which the probe's summary is."""

_PROBE_EVERY, _PROBE_TIMEOUT = 1.0, 2.0

_NEWS = 10.0
"""Seconds for which a restart or an upgrade is said."""


class Prober:
    """Sends the service a Binding request every second, on a thread of its own."""

    def __init__(self) -> None:
        self._server: TransportAddress | None = None
        self._samples: deque[tuple[float, Sample]] = deque(maxlen=int(_MEMORY / _PROBE_EVERY) + 1)
        self._problem: str | None = None
        self._turn = 0

    def follow(self, info: Info) -> None:
        """Ask at an address that the service serves; the same one as long as it does."""
        served = [each for each in map(_address, info.serving) if each is not None]
        if self._server in served:
            return
        # Where IPv4 is served, IPv6 may be without a way back, and not the other way round.
        served.sort(key=lambda each: (not each.ip.is_loopback, each.ip.version))
        self._turn += 1
        self._samples.clear()
        self._server, self._problem = served[0] if served else None, None
        if self._server is not None:
            arguments = (self._server, self._turn)
            threading.Thread(target=self._run, args=arguments, daemon=True).start()

    def _run(self, server: TransportAddress, turn: int) -> None:
        while turn == self._turn:
            try:
                for sample in watch(server, interval=_PROBE_EVERY, timeout=_PROBE_TIMEOUT):
                    if turn != self._turn:
                        return
                    self._samples.append((time.monotonic(), sample))
            except QueryError as error:
                # There is no way there now; an address that comes back has one again.
                self._problem = str(error)
                time.sleep(_PROBE_EVERY)

    def summary(self) -> Probe:
        """Return what has become of the requests of the last minute."""
        if self._server is None:
            return Probe("the service has no address to ask")
        begin = time.monotonic() - _MEMORY
        # All of them at once: the other thread goes on.
        samples = [sample for at, sample in list(self._samples) if at >= begin]
        counted = Summary()
        for each in samples:
            counted.add(each)
        problem = samples[-1].problem if samples else self._problem
        return Probe(
            str(self._server),
            counted.sent,
            counted.received,
            counted.quantile(0.5),
            counted.quantile(1.0),
            problem,
        )


class Watcher:
    """A service that is asked again and again, over restarts.

    Args:
        path: of its status socket; None for the only service that there is.

    Raises:
        PktstunError: there is none, there are several, or it cannot be asked.
    """

    def __init__(self, path: Path | None) -> None:
        self._wanted = path
        self._service = self._find()
        self._before: Snapshot | None = None
        self._now: Snapshot | None = self._service.read()
        self._problem = ""
        self._news = ("", -math.inf)

    def close(self) -> None:
        """Give the page back."""
        self._service.close()

    @property
    def info(self) -> Info:
        """What the service said of itself when it was asked last."""
        return self._service.info

    def look(self) -> None:
        """Ask again and read the counters; `scene` shows what has happened since the last time."""
        try:
            service = Service(self._service.info.path)
        except NoServiceError:
            self._lose()
        except PktstunError as error:
            self._problem = str(error).removeprefix(f"{self.info.path}: ")
            self._read()
        else:
            self._replace(service)
            self._read()

    def _lose(self) -> None:
        """Look for another service in the place of the one that is gone."""
        try:
            service = self._find()
        except PktstunError as error:
            # Of several that may have taken its place none is chosen.
            several = "" if isinstance(error, NoServiceError) else f": {error}"
            self._problem = f"pid {self.info.pid} is gone, waiting for another service{several}"
            self._before = self._now = None
        else:
            self._replace(service)
            self._read()

    def _replace(self, service: Service) -> None:
        old, self._service = self._service, service
        old.close()
        self._problem = ""
        if service.info.identity != old.info.identity:
            news = f"restarted: pid {service.info.pid} in the place of {old.info.pid}"
        elif service.info.version != old.info.version:
            news = f"upgraded from {old.info.version} to {service.info.version}"
        else:
            return
        self._news = (news, time.monotonic())

    def _read(self) -> None:
        self._before, self._now = self._now, self._service.read()

    def _find(self) -> Service:
        found = find_services(self._wanted)
        if len(found.services) == 1:
            return found.services[0]
        found.close()
        if found.services:
            paths = ", ".join(str(each.info.path) for each in found.services)
            raise StatusError(f"there are several services, choose one with --socket: {paths}")
        raise found.problems[0]

    def scene(self, prober: Prober | None, keys: str = "") -> Scene:
        """Return what there is to show."""
        now = time.time()
        news, since = self._news
        is_news = time.monotonic() - since < _NEWS
        return Scene(
            view=compare(self._before, self._now) if self._now is not None else None,
            clock=time.strftime("%H:%M:%S", time.localtime(now)),
            now=now,
            probe=prober.summary() if prober is not None else None,
            note=self._problem or (news if is_news else ""),
            keys=keys,
        )


def run(path: Path | None, *, interval: float, count: int | None, probe: bool) -> int:
    """Show a service until a key, Ctrl-C or `count` screens; return the exit status.

    Args:
        path: of its status socket; None for the only service that there is.
        interval: seconds between two screens.
        count: screens to print one below the other; None for a live view without end.
        probe: send requests to the service as well.

    Raises:
        PktstunError: there is no service to show.
    """
    console = Console(highlight=False)
    with ExitStack() as stack:
        watcher = Watcher(path)
        stack.callback(watcher.close)
        prober = Prober() if probe else None
        if prober is not None:
            prober.follow(watcher.info)

        def next_scene(keys: str = "") -> Scene:
            watcher.look()
            if prober is not None:
                prober.follow(watcher.info)
            return watcher.scene(prober, keys)

        stack.enter_context(suppress(KeyboardInterrupt))
        if count is not None or not console.is_terminal or console.is_dumb_terminal:
            _print_all(console, next_scene, interval, count)
        else:
            _live(console, next_scene, watcher.scene(prober, _KEYS), interval)
    return 0


_KEYS = "q: quit"
_ALL_LINES = 1000


def _print_all(
    console: Console, next_scene: Callable[[], Scene], interval: float, count: int | None
) -> None:
    printed = 0
    while count is None or printed < count:
        time.sleep(interval)
        # Without colours, whoever reads it: it is more likely kept than looked at.
        lines = [line.text.rstrip() for line in render(next_scene(), console.width, _ALL_LINES)]
        console.file.write("\n".join([*([""] if printed else []), *lines, ""]))
        console.file.flush()
        printed += 1


def _live(
    console: Console, next_scene: Callable[[str], Scene], first: Scene, interval: float
) -> None:
    with (
        _holding_back({signal.SIGINT, signal.SIGTERM}) as letting_in,
        _ended_by(signal.SIGTERM),
        _keys() as pressed,
        Live(_picture(first, console), console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            end = time.monotonic() + interval
            while (left := end - time.monotonic()) > 0:
                with letting_in():
                    key = pressed(left)
                if key in {"q", "Q"}:
                    return
            live.update(_picture(next_scene(_KEYS), console), refresh=True)


@contextmanager
def _holding_back(
    signals: set[signal.Signals],
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Let signals wait but where they are let in: half a screen cannot be given back."""

    @contextmanager
    def letting_in() -> Iterator[None]:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield letting_in
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _picture(scene: Scene, console: Console) -> Text:
    lines = render(scene, console.width, console.height)
    return Text("\n", no_wrap=True).join(
        Text(
            line.text.ljust(console.width) if line.style is Style.HEAD else line.text,
            style=_STYLES[line.style],
        )
        for line in lines[: console.height]
    )


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield what waits so many seconds for a key, and returns it, or nothing."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> str:
        if not select.select([terminal], [], [], seconds)[0]:
            return ""
        return os.read(terminal, 1).decode("ascii", "replace")

    # A key counts at once and is not shown; Ctrl-C still interrupts.
    tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """Have a signal end the process in good order: the terminal is given back."""

    def end(*_: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, before)


def _address(text: str) -> TransportAddress | None:
    """Return an address that can be asked: not a link-local one, which is one of an interface."""
    ip, _, port = text.rpartition(":")
    try:
        found = TransportAddress(ip_address(ip.strip("[]")), int(port))
    except ValueError:
        return None
    return None if found.ip.is_link_local else found
