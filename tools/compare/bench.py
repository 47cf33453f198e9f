"""Where the comparison happens: a laboratory, the generator, the meters, and one server at a time.

Theory of operation. The laboratory is two network namespaces joined by veth. The server's end has
as many queues as the server has CPUs; GRO gives every queue a NAPI instance, each has a thread of
its own, and that is pinned to the CPU of its queue. So what the kernel does for an incoming
datagram is done on the server's CPUs, as on a machine with a network card. The generator and its
end of the link have a CPU that no server uses. Requests come from many addresses of a prefix that
the server's host routes to the client, whose link-layer address it knows.

Every server has the priority that pktstun gives its workers, other programs too: it decides how a
server fares against the NAPI thread on its CPU. In the laboratory all priorities, those of the
threads included, are raised by the same number of steps. Who gets how much of a CPU among them
stays the same, and what else runs on the machine disturbs them less. The client's receiving goes
before the generator, which is never idle: no reply is lost for want of somebody to take it.

On a real network there is no laboratory: the server runs where this program runs, and the
generator is whatever command the user gives. It speaks the protocol of `tools/loadgen.py --steps`
on its standard input and output.

All processes are children of the calling thread that die with it, and end with the bench.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from pktstun.kernel import interface
from pktstun.worker import NICE
from tests.lab import Lab, Namespace, two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.compare.targets import Target

TOOLS = Path(__file__).resolve().parent.parent
SOURCES = "100.64.0.0/10"
_START = 15.0  # seconds for a program to be ready
_MARGIN = 10.0  # seconds beyond a step until its result is missed
_RAISED = 9  # steps of priority: the most that leaves room for the workers' own
_AHEAD = 0.1  # seconds for which the load runs before and after the meters


class BenchError(Exception):
    """What keeps the comparison from going on."""


class TargetError(Exception):
    """What keeps one server from being measured."""


class Stepper:
    """A process that says {"ready": true}, then answers each line with a line of JSON."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._buffer = b""
        if not self.answer(_START).get("ready"):
            raise BenchError(f"{name} does not speak the protocol of --steps")

    def ask(self, line: str) -> None:
        """Begin a step."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._gone() from error

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for the step's result."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise BenchError(f"{self.name} has not answered for {timeout:.0f} s")
            data = os.read(descriptor, 65536)
            if not data:
                raise self._gone()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BenchError(f"{self.name} said {line[:100]!r}, which is no JSON") from error
        if not isinstance(value, dict):
            raise BenchError(f"{self.name} said {line[:100]!r}, which is no object")
        return value

    def _gone(self) -> BenchError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return BenchError(f"{self.name} has ended: {last_line(self._errors)}")


@contextlib.contextmanager
def _diary() -> Iterator[IO[str]]:
    """Make a file for what a process says, of which only the end will be read, if at all."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        yield file


def last_line(file: IO[str]) -> str:
    """Return the last line that a process has written into its file."""
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def at_nice(value: int) -> list[str]:
    """Return the beginning of a command that runs the rest with a nice value."""
    return [sys.executable, str(TOOLS / "compare/at_nice.py"), str(value)]


class Bench(ABC):
    """The place, the generator and the meters; a context manager."""

    def __init__(self, *, generator_cpu: int | None, server_cpus: Sequence[int], port: int) -> None:
        self.generator_cpu = generator_cpu
        self.server_cpus = tuple(server_cpus)
        self.port = port
        self.nice = NICE
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pktstun-compare-"))
            self._exit = stack
            self._set_up()
            self.place = {
                "address": self.address,
                "port": str(self.port),
                "iface": self.iface,
                "cpus": ",".join(map(str, self.server_cpus)),
                "cpu": str(self.server_cpus[0]),
                "threads": str(len(self.server_cpus)),
                "scratch": scratch,
                "nice": str(self.nice),
                **({"address2": self.second} if self.second else {}),
            }
            self._load = self._stepper("the generator", self._client, self.generator)
            meter = [sys.executable, str(TOOLS / "idle_meter.py"), "--steps", "--cpu"]
            self._meters = [
                self._stepper(f"the idle meter of CPU {cpu}", self.server, [*meter, str(cpu)])
                for cpu in self.server_cpus
            ]
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit.close()

    # What a kind of bench decides.
    description: str
    priorities: str
    address: str
    second: str | None
    iface: str
    generator: Sequence[str]
    server: Namespace
    _client: Namespace

    @abstractmethod
    def _set_up(self) -> None:
        """Make the place, and fill in the above."""

    def _stepper(self, name: str, where: Namespace, command: Sequence[str]) -> Stepper:
        errors = self._exit.enter_context(_diary())
        try:
            process = where.popen(command, stdin=subprocess.PIPE, stderr=errors)
        except FileNotFoundError as error:
            raise BenchError(f"{name}: there is no program {command[0]}") from error
        return Stepper(name, process, errors)

    def load(self, rate: float, seconds: float) -> dict[str, Any]:
        """Offer `rate` requests per second; return what the generator says of it."""
        self._load.ask(f"{round(rate)} {seconds:g}")
        return self._load.answer(seconds + _MARGIN)

    def metered_load(self, rate: float, seconds: float) -> tuple[dict[str, Any], float]:
        """Do the same; also return the CPU seconds that the server's side took in each second."""
        self._load.ask(f"{round(rate)} {seconds + 2 * _AHEAD:g}")
        time.sleep(_AHEAD)
        for meter in self._meters:
            meter.ask(f"{seconds:g}")
        measured = [meter.answer(seconds + _MARGIN) for meter in self._meters]
        busy = sum(1 - each["idle"] / each["elapsed"] for each in measured)
        return self._load.answer(seconds + _MARGIN), busy

    @contextlib.contextmanager
    def serve(self, target: Target) -> Iterator[None]:
        """Run a server; ready on entry, gone on exit. TargetError says why it did not start."""
        try:
            command = target.filled(self.place)
            if not target.own:
                command = [*at_nice(self.nice), *command]
        except KeyError as error:
            what = "a second address" if error.args[0] == "address2" else error.args[0]
            raise TargetError(f"it needs {what}") from error
        with _diary() as said:
            output = subprocess.PIPE if target.own else said
            try:
                process = self.server.popen(
                    command, cpus=self.server_cpus, stdout=output, stderr=said
                )
            except FileNotFoundError as error:
                raise TargetError(f"there is no program {command[0]}") from error
            try:
                if target.own:
                    self._wait_for_line(process, said)
                else:
                    self._wait_for_reply(process, said)
                yield
                if process.poll() is not None:
                    raise TargetError(f"it ended under load: {last_line(said)}")
            finally:
                self._end(process)

    @staticmethod
    def _wait_for_line(process: subprocess.Popen[str], said: IO[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        if not select.select([process.stdout], [], [], _START)[0]:
            raise TargetError(f"not ready within {_START:.0f} s")
        if " ready: " not in process.stdout.readline():
            process.wait(_START)
            raise TargetError(last_line(said))

    def _wait_for_reply(self, process: subprocess.Popen[str], said: IO[str]) -> None:
        deadline = time.monotonic() + _START
        while not self.load(1000, 0.02)["replies"]:
            if process.poll() is not None:
                raise TargetError(last_line(said))
            if time.monotonic() > deadline:
                raise TargetError(f"no correct reply within {_START:.0f} s")

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


class LabBench(Bench):
    """Two network namespaces on this machine."""

    description = "Two network namespaces on one machine, joined by veth"
    priorities = (
        f"Servers run at nice {NICE - _RAISED}, receive queues at {-_RAISED}: their relation is "
        f"that of {NICE} and 0, the default, and other programs disturb less"
    )

    def _set_up(self) -> None:
        lab = self._exit.enter_context(Lab())
        hosts = two_hosts(lab, queues=len(self.server_cpus))
        self.server, self._client = hosts.server, hosts.client
        self.iface = hosts.server_if
        self.address, self.second = hosts.server_ipv4[:2]
        self.generator = [
            *(*at_nice(-_RAISED), sys.executable, str(TOOLS / "loadgen.py"), "--steps"),
            *("--iface", hosts.client_if),
            *("--target", f"{self.address}:{self.port}", "--sources", SOURCES),
            *("--cpu", str(self.generator_cpu), "--i-own-this-network"),
        ]
        for each in ("all", "default", hosts.server_if):
            hosts.server.write(f"/proc/sys/net/ipv4/conf/{each}/rp_filter", "0")
        lab.route(hosts.server, SOURCES, via=hosts.client_ipv4[0])
        self.nice = NICE - _RAISED
        client_threads = lab.threaded_napi(hosts.client, hosts.client_if)
        lab.pin_napi(hosts.client, hosts.client_if, self.generator_cpu or 0)
        threads = lab.threaded_napi(hosts.server, hosts.server_if)
        for pid in threads:
            os.setpriority(os.PRIO_PROCESS, pid, -_RAISED)
        for pid in client_threads:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
        for number, pid in enumerate(threads):
            os.sched_setaffinity(pid, {self.server_cpus[number % len(self.server_cpus)]})


class NetworkBench(Bench):
    """This host, and a generator that the user commands."""

    def __init__(
        self, iface: str, address: str, generator: str, *, server_cpus: Sequence[int], port: int
    ) -> None:
        super().__init__(generator_cpu=None, server_cpus=server_cpus, port=port)
        self.description = f"Interface {iface}, with the generator on another host"
        self.priorities = f"All servers run at nice {NICE}, which is pktstun's default"
        self.iface = iface
        self.address = address
        self.generator = [
            word.replace("{target}", f"{address}:{port}") for word in shlex.split(generator)
        ]

    def _set_up(self) -> None:
        try:
            addresses = interface(self.iface).addresses
        except OSError as error:
            raise BenchError(str(error.strerror)) from error
        own = [str(each.ip) for each in addresses if each.ip.version == 4]
        if self.address not in own:
            raise BenchError(f"{self.iface} does not have the IPv4 address {self.address}")
        self.second = next((each for each in own if each != self.address), None)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.server = self._client = Namespace("here", here)
        self._exit.callback(self.server.close)
