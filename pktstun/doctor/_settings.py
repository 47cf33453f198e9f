"""Reads and writes the settings that may be changed.

Which file or object a setting is follows from its kind and a name that is checked: nothing that
a state file says can make this write to another place.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

from pktstun.kernel import interface, local_addresses
from pktstun.kernel._closing import Closing
from pktstun.kernel.ethtool import Ethtool
from pktstun.kernel.netfilter import rules
from pktstun.kernel.queues import sysfs_directory

from ._finding import TABLE, Kind, Value, notrack_table
from ._parse import cpu_list, cpu_list_text, cpu_mask, cpu_mask_text, number
from ._read import SEARCH
from ._receiving import BACKLOG_SETTING

__all__ = ["Settings", "is_setting"]

_PATIENCE = 30.0  # seconds

_NAMES = {
    Kind.FEATURE: r"[a-z0-9-]{1,32}",
    Kind.RPS: r"\d{1,5}",
    Kind.IRQ: r"\d{1,9}",
    Kind.THREAD: r"\d{1,9}",
    Kind.RING: r"rx|tx",
    Kind.SYSCTL: re.escape(BACKLOG_SETTING),
    Kind.NOTRACK: TABLE,
}
_NUMBERS = {
    Kind.RPS: range(1 << 16),
    Kind.IRQ: range(1 << 16),
    Kind.THREAD: range(1 << 16),
    Kind.NOTRACK: range(1, 1 << 16),
}


def is_setting(kind: Kind, name: str, value: object) -> bool:
    """Say whether there can be such a setting with such a value."""
    if not re.fullmatch(_NAMES[kind], name, re.ASCII):
        return False
    if kind is Kind.FEATURE:
        return isinstance(value, bool)
    if kind in _NUMBERS:
        return isinstance(value, tuple) and all(
            type(each) is int and each in _NUMBERS[kind] for each in value
        )
    return type(value) is int and 0 <= value < 1 << 31


class Settings(Closing):
    """The settings of an interface and its host; a context manager.

    `read` and `write` raise OSError: what is asked for is not there, or is refused.
    """

    def __init__(self, iface: str) -> None:
        self._iface = iface
        self._driver = Ethtool(iface)

    def close(self) -> None:
        """Close the socket through which the driver is asked."""
        self._driver.close()

    def read(self, kind: Kind, name: str) -> Value:
        """Return the value that a setting has."""
        match kind:
            case Kind.FEATURE:
                features = self._driver.features()
                if name not in features:
                    raise OSError(errno.EOPNOTSUPP, f"no feature {name}")
                return features[name].is_on
            case Kind.RPS:
                return tuple(sorted(cpu_mask(self._rps(name).read_text(encoding="ascii"))))
            case Kind.IRQ:
                return tuple(sorted(cpu_list(_irq(name).read_text(encoding="ascii"))))
            case Kind.THREAD:
                return tuple(sorted(os.sched_getaffinity(_thread(name))))
            case Kind.RING:
                sizes = self._driver.rings()
                return sizes.rx if name == "rx" else sizes.tx
            case Kind.SYSCTL:
                return number(_sysctl(name).read_text(encoding="ascii")) or 0
            case Kind.NOTRACK:
                return tuple(sorted({p for r in rules() if r.table == TABLE for p in r.untracks}))

    def write(self, kind: Kind, name: str, value: Value) -> None:
        """Give a setting a value, which `is_setting` has said to be one."""
        numbers = value if isinstance(value, tuple) else ()
        match kind:
            case Kind.FEATURE:
                self._driver.set_feature(name, on=bool(value))
            case Kind.RPS:
                self._rps(name).write_text(cpu_mask_text(numbers), encoding="ascii")
            case Kind.IRQ:
                _irq(name).write_text(cpu_list_text(numbers), encoding="ascii")
            case Kind.THREAD:
                os.sched_setaffinity(_thread(name), numbers)
            case Kind.RING:
                if isinstance(value, int):
                    self._driver.set_rings(**{name: value})
            case Kind.SYSCTL:
                _sysctl(name).write_text(f"{value}", encoding="ascii")
            case Kind.NOTRACK:
                _write_table(numbers)

    def _rps(self, queue: str) -> Path:
        interface(self._iface)
        directory = sysfs_directory(self._iface, local_addresses())
        if directory is None:
            raise OSError(errno.EREMOTE, "/sys shows another network namespace")
        return directory / f"queues/rx-{queue}/rps_cpus"


def _irq(name: str) -> Path:
    return Path(f"/proc/irq/{name}/smp_affinity_list")


def _thread(name: str) -> int:
    # A number may belong to somebody else by now.
    if not Path(f"/proc/{name}/comm").read_text(encoding="utf-8").startswith("napi/"):
        raise ProcessLookupError(errno.ESRCH, f"process {name} is no NAPI thread any more")
    return int(name)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _write_table(ports: tuple[int, ...]) -> None:
    program = shutil.which("nft", path=SEARCH)
    if program is None:
        raise OSError(errno.ENOPKG, "the program nft is missing: install nftables")
    # One transaction. A table that is not there cannot be deleted, hence the first line.
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}"]
    if ports:
        lines.append(notrack_table(ports))
    try:
        result = subprocess.run(  # noqa: S603 - a program of the distribution, our own text
            [program, "-f", "-"],
            input="\n".join([*lines, ""]),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, "nft does not come to an end") from error
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it does not say why"])[0]
        raise OSError(errno.EINVAL, f"nft: {reason}")
