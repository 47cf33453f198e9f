"""A real `pktstun serve` inside a network namespace, and what its log says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tests.lab import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lab import Namespace

WORKER_STARTED = re.compile(r"worker (\d+) started on CPU (\d+) \(pid (\d+)\)")
WORKER_STATS = re.compile(r"INFO worker (\d+): (received=.*)")


@dataclass
class Server:
    """Started by `with`; stopped, in good order, at its end.

    `arguments` are those of `pktstun serve`; `without` names capabilities to do without,
    `under` is a command that runs it, and `interpreter` what runs the program.
    """

    namespace: Namespace
    arguments: Sequence[str]
    without: Sequence[str] = ()
    under: Sequence[str] = ()
    interpreter: str = sys.executable
    log_interval: float = 0
    ready: str = ""
    lines: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        # What repeats itself within a minute is what most of these tests are about.
        serve = [self.interpreter, "-m", "pktstun", "serve", f"--log-interval={self.log_interval}"]
        command = [*self.under, *serve, *self.arguments]
        self.process = self.namespace.popen(command, drop_capabilities=self.without)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        if " ready: " not in self.ready:
            self.process.wait(10)
            raise AssertionError(f"the server did not start: {self.log}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()

    @property
    def log(self) -> str:
        """Everything on standard error so far."""
        return "".join(self.lines)

    @property
    def warnings(self) -> list[str]:
        """What it warned of, but for what is so in every test: that it is root's."""
        return [line for line in self.lines if " WARNING " in line and "is root's" not in line]

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def worker_pids(self) -> dict[int, int]:
        """Return {worker: process id} of the youngest process of each."""
        return {int(n): int(pid) for n, _, pid in WORKER_STARTED.findall(self.log)}

    def stop(self) -> int:
        """End the service and return its exit status."""
        self.process.terminate()
        return self.process.wait(15)

    def stats(self) -> list[dict[str, int]]:
        """Return each worker's counters, asked for with SIGUSR1."""
        workers = len(self.worker_pids())
        seen = len(WORKER_STATS.findall(self.log))
        self.process.send_signal(signal.SIGUSR1)
        wait_until(
            lambda: len(WORKER_STATS.findall(self.log)) >= seen + workers, "the server's counters"
        )
        found = WORKER_STATS.findall(self.log)[-workers:]
        return [
            {key: int(value) for key, value in (word.split("=") for word in words.split())}
            for _, words in sorted(found)
        ]

    def totals(self) -> dict[str, int]:
        """Return the counters summed over the workers."""
        total: dict[str, int] = {}
        for counters in self.stats():
            for key, value in counters.items():
                total[key] = total.get(key, 0) + value
        return total

    def wait_for(self, count: int, key: str = "received", timeout: float = 5.0) -> dict[str, int]:
        """Wait until a summed counter has reached a count; return all of them."""
        end = time.monotonic() + timeout
        while True:
            totals = self.totals()
            if totals.get(key, 0) >= count:
                return totals
            if time.monotonic() > end:
                raise AssertionError(f"{key} is {totals.get(key, 0)} and not {count}: {totals}")
