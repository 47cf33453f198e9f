"""What is compared: this server's ways of answering, and other servers found on the machine.

A command is a list of words with placeholders, which are filled in when the place is known:
{address} and {port} to serve, {address2} (a second address of the same host), {iface}, {cpus}
(as 1,3), {cpu} (the first of them), {threads} (how many they are), {scratch} (a directory for
files that nobody will read), {nice} (the nice value that every server has).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Debian's stund lives where only root's PATH leads.
_SBIN = "/usr/sbin:/usr/local/sbin"
_TIMEOUT = 10.0  # seconds for a program to say its version


class ChoiceError(Exception):
    """There is no such thing to compare, or it cannot be done here."""


class Target(NamedTuple):
    """One thing to measure. `setting` and `value` say what a sweep has varied.

    `own`: it is this project's server, which says itself when it is ready.
    """

    key: str
    title: str
    command: Sequence[str]
    own: bool = True
    note: str = ""
    setting: str = ""
    value: float | None = None

    def filled(self, place: Mapping[str, str]) -> list[str]:
        """Return the command with its placeholders filled in; KeyError for one without value."""
        return [re.sub(r"\{(\w+)\}", lambda found: place[found[1]], word) for word in self.command]


_SERVE = (sys.executable, "-m", "pktstun", "serve", "--listen", "{address}", "--port", "{port}",
          "--nice", "{nice}", "--log-level", "warning")  # fmt: skip
# Every request has an account looked up, and none is over its limit: what the limiter costs.
_LIMITED = ("--rate-limit", "100000", "--rate-limit-network", "100000")
# All that is off by default and lets a plain request be one: its reply is 68 bytes instead of 32.
_BEYOND = ("--listen", "{address2}", "--nat-discovery", "--classic")
# All of this at once: what a server costs that has everything on but credentials, with which no
# request is plain.
_ALL = (*_LIMITED, *_BEYOND, "--tcp")
_RING = ("--iface", "{iface}", "--cpus", "{cpus}")


def _own(key: str, title: str, *options: str) -> Target:
    return Target(key, title, (*_SERVE, *options))


# From the slowest up, which is the order in which they are measured and shown.
MODES = {
    target.key: target
    for target in (
        _own("single", "one by one", "--mode", "recvmmsg", "--batch", "1", "--cpus", "{cpu}"),
        _own("single-all", "one by one, all CPUs",
             "--mode", "recvmmsg", "--batch", "1", "--cpus", "{cpus}"),
        _own("recvmmsg", "recvmmsg", "--mode", "recvmmsg", "--cpus", "{cpus}"),
        _own("recvmmsg-limited", "recvmmsg, rate limit",
             "--mode", "recvmmsg", "--cpus", "{cpus}", *_LIMITED),
        _own("recvmmsg-all", "recvmmsg, all options",
             "--mode", "recvmmsg", "--cpus", "{cpus}", *_ALL),
        _own("recvmmsg-beyond", "recvmmsg, NAT discovery",
             "--mode", "recvmmsg", "--cpus", "{cpus}", *_BEYOND),
        _own("ring", "ring", "--mode", "ring", "--no-takeover", *_RING),
        _own("ring-takeover", "ring, takeover", "--mode", "ring", "--takeover", *_RING),
        _own("direct", "direct", "--mode", "direct", "--no-takeover", *_RING),
        _own("takeover", "direct, takeover", "--mode", "direct", "--takeover", *_RING),
        _own("takeover-limited", "direct, takeover, rate limit",
             "--mode", "direct", "--takeover", *_RING, *_LIMITED),
        _own("takeover-all", "direct, takeover, all options",
             "--mode", "direct", "--takeover", *_RING, *_ALL),
        _own("takeover-beyond", "direct, takeover, NAT discovery",
             "--mode", "direct", "--takeover", *_RING, *_BEYOND),
    )
}  # fmt: skip
LADDER = (
    *("single", "single-all", "recvmmsg", "ring", "ring-takeover", "direct", "takeover"),
    "takeover-limited",
)

# The mode in which each setting is varied, and its values.
SWEEPS: dict[str, tuple[str, Sequence[int]]] = {
    "batch": ("recvmmsg", (1, 4, 16, 64, 256)),
    "block-size": ("direct", (4096, 16384, 65536, 262144)),
    "retire-timeout": ("direct", (1, 2, 5, 10, 60)),
}


def ladder(names: Sequence[str], cpus: int) -> tuple[list[Target], dict[str, str]]:
    """Return the modes named, or the default ladder, and what is left out and why.

    The only name "none" stands for no mode.
    """
    if list(names) == ["none"]:
        return [], {}
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise ChoiceError(f"there is no mode {unknown[0]!r}: choose from {', '.join(MODES)}")
    chosen = [MODES[name] for name in MODES if name in (names or LADDER)]
    left_out = {}
    if cpus == 1 and MODES["single-all"] in chosen:
        chosen.remove(MODES["single-all"])
        left_out["one by one, all CPUs"] = "the server has one CPU here"
    return chosen, left_out


def sweep(settings: Sequence[str], modes: Sequence[str]) -> list[Target]:
    """Return a target for each value of each setting, in the setting's mode or the one named."""
    targets: list[Target] = []
    for setting in settings:
        if setting not in SWEEPS:
            raise ChoiceError(f"cannot sweep {setting!r}: choose from {', '.join(SWEEPS)}")
        usual, values = SWEEPS[setting]
        if len(modes) > 1 or "none" in modes:
            raise ChoiceError("settings are varied in one mode: name one with --modes, or none")
        (mode,), _ = ladder(modes or [usual], 2)
        targets += [
            mode._replace(
                key=f"{setting}={value}",
                title=f"{mode.title}, {setting} {value}",
                command=(*mode.command, f"--{setting}", str(value)),
                setting=setting,
                value=value,
            )
            for value in values
        ]
    return targets


def parse_peer(text: str) -> Target:
    """Return the target of a NAME=COMMAND."""
    name, equals, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ChoiceError(f"--peer {name}: {str(error).lower()}") from error
    if not (name and equals and words):
        raise ChoiceError(f"--peer {text!r}: write NAME=COMMAND, with {{address}} and {{port}}")
    unknown = set(re.findall(r"\{(\w+)\}", command)) - PLACEHOLDERS
    if unknown:
        raise ChoiceError(
            f"--peer {name}: {{{min(unknown)}}} means nothing; there are "
            + ", ".join(f"{{{known}}}" for known in sorted(PLACEHOLDERS))
        )
    return Target(name, name, words, own=False)


PLACEHOLDERS = {
    "address", "address2", "port", "iface", "cpus", "cpu", "threads", "scratch", "nice",
}  # fmt: skip


def peers(names: Sequence[str]) -> tuple[list[Target], dict[str, str]]:
    """Return the known peers among `names` that are installed, and why the others are not."""
    unknown = [name for name in names if name not in KNOWN_PEERS]
    if unknown:
        raise ChoiceError(
            f"there is no peer {unknown[0]!r}: choose from {', '.join(KNOWN_PEERS)}, or give its "
            "command with --peer"
        )
    found, left_out = [], {}
    for name in names:
        program, make = KNOWN_PEERS[name]
        path = shutil.which(program) or shutil.which(program, path=_SBIN)
        if path is None:
            left_out[name] = f"{program} is not installed"
        else:
            found.append(make(path))
    return found, left_out


def _output(*command: str) -> str:
    """Return all that a program says; nothing if it cannot."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


_COTURN = (
    "--no-tcp", "--no-tls", "--no-dtls", "--no-cli", "--no-rfc5780",
    "--no-stun-backward-compatibility", "--no-software-attribute", "--simple-log",
    "--no-stdout-log",
)  # fmt: skip


def coturn(path: str) -> Target:
    """Return coturn as a STUN server, with a relay thread per CPU and the shortest reply.

    The options came and went with its versions, and an unknown one ends it: those are taken of
    which its own help speaks.
    """
    known = set(re.findall(r"--[a-z0-9-]+", _output(path, "--help")))
    version = re.search(r"\b\d+\.\d+\.\d+\b", _output(path, "--version"))
    number = version[0] if version else ""
    note = f"version {number or 'unknown'}, STUN only, {{threads}} relay thread(s)."
    if number and tuple(map(int, number.split("."))) < (4, 17):
        # The project's own measurement of 4.6.1 and 4.17.1, on one core.
        note += (
            " Old: a current coturn (4.17, with recvmmsg and stateless Binding) was measured about "
            "six times as fast as 4.6.1."
        )
    command = (
        path, "-n", "-S", "-L", "{address}", "-p", "{port}", "-m", "{threads}",
        "--pidfile={scratch}/turnserver.pid", "--userdb={scratch}/turndb", "--log-file=/dev/null",
        *(option for option in _COTURN if option in known),
    )  # fmt: skip
    return Target("coturn", f"coturn {number}".strip(), command, own=False, note=note)


def stund(path: str) -> Target:
    """Return Vovida's server: one thread, recvfrom and sendto. It needs two addresses."""
    version = re.search(r"STUN server version (\S+)", _output(path, "-h"))
    number = version[1] if version else ""
    return Target(
        "stund",
        f"stund {number}".strip(),
        (path, "-h", "{address}", "-a", "{address2}", "-p", "{port}"),
        own=False,
        note="Vovida's classic server (RFC 3489), one thread.",
    )


KNOWN_PEERS = {"coturn": ("turnserver", coturn), "stund": ("stund", stund)}
