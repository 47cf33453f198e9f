"""Upgrades in place: one version of the program hands everything over to the next.

Theory of operation: the supervisor executes the new version with its own process id, so nothing
changes for whoever watches it, and its children stay its children. What is open stays open
(the descriptors are inherited across the exec), and a memory file says what each one is. An
environment variable names the file.

There is no way back from an exec. So the new version is tried first, in a child that does all
that it can do without being noticed: it reads the configuration, takes the descriptors, makes its
engines, and says that all is well with its exit status. If it does not, the old version goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from pktstun.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "TRIAL_LIMIT",
    "TRIAL_PASSED",
    "Inheritance",
    "execute",
    "inheritance",
    "start_trial",
    "write_state",
]

TRIAL_LIMIT = 10.0
"""Seconds that the new version has for its trial."""

TRIAL_PASSED = 33
"""Exit status of a trial that has passed; 0 is what a program says that has done something else."""

_VARIABLE = "PKTSTUN_UPGRADE"
_TRIAL, _CHARGE = "trial", "charge"


class Inheritance(NamedTuple):
    """What the version before has handed over."""

    state: dict[str, Any]
    is_trial: bool


def inheritance() -> Inheritance | None:
    """Return what this process was handed over, once; None if it is nobody's successor.

    Raises:
        EngineError: what was handed over cannot be read.
    """
    purpose, _, descriptor = os.environ.pop(_VARIABLE, "").partition(":")
    if not purpose:
        return None
    try:
        file = int(descriptor)
        # It is shared with the version before, and so is its position.
        state = json.loads(os.pread(file, os.fstat(file).st_size, 0))
        os.close(file)
        _pass_on(_descriptors(state), inheritable=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"what the running version handed over is of no use: {error}") from error
    return Inheritance(state, purpose == _TRIAL)


def write_state(state: Mapping[str, Any]) -> int:
    """Return the descriptor of a memory file that holds this."""
    descriptor = os.memfd_create("pktstun-upgrade", os.MFD_CLOEXEC)
    os.write(descriptor, json.dumps(state).encode())
    return descriptor


def start_trial(state: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start the new version in a child that takes the descriptors and changes nothing.

    Raises:
        OSError: it cannot be executed.
    """
    descriptor = write_state(state)
    try:
        return subprocess.Popen(  # noqa: S603 - the command line of this process
            _command(),
            env={**os.environ, _VARIABLE: f"{_TRIAL}:{descriptor}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor, *_descriptors(state)],
        )
    finally:
        os.close(descriptor)


def execute(
    state: Mapping[str, Any],
    signals: Iterable[signal.Signals],
    environment: Mapping[str, str],
) -> None:
    """Become the new version; return only by an exception.

    Signals are blocked until it has handlers: without, most of them would end it. It has these
    variables beside those of this process.

    Raises:
        OSError: it cannot be executed.
    """
    descriptor = write_state(state)
    handed = [descriptor, *_descriptors(state)]
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        _pass_on(handed, inheritable=True)
        command = _command()
        variables = {**os.environ, **environment, _VARIABLE: f"{_CHARGE}:{descriptor}"}
        os.execve(command[0], command, variables)  # noqa: S606 - what it is for
    finally:
        _pass_on(handed, inheritable=False)
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _pass_on(descriptors: Iterable[int], *, inheritable: bool) -> None:
    for each in descriptors:
        os.set_inheritable(each, inheritable)


def _command() -> list[str]:
    """Return the command line of this process, with the interpreter's full path."""
    return [sys.executable, *sys.orig_argv[1:]]


def _descriptors(state: Mapping[str, Any]) -> Iterator[int]:
    yield state["page"]
    if state.get("limiter", -1) != -1:
        yield state["limiter"]
    yield from (each for group in state["groups"] for each in group)
    yield from state.get("listeners", [])
    yield from state.get("metrics", {}).values()
    yield from state.get("ready", [])
    if state.get("status"):
        yield state["status"]["listener"]
    yield from state["rings"]
    yield from state["senders"]
    if state["takeover"] != -1:
        yield state["takeover"]
