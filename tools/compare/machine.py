"""What the measurement ran on, in words that a reader can compare with their own machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path


def describe() -> dict[str, str]:
    """Return the machine: kernel, CPU model, cores, hypervisor, clock source, Python."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    usable = len(os.sched_getaffinity(0))
    return {
        "kernel": platform.release(),
        "cpu": re.sub(r"\s+", " ", model.group(1)) if model else platform.machine(),
        "cores": f"{usable} core{'' if usable == 1 else 's'}",
        "hypervisor": _hypervisor(cpuinfo),
        "clocksource": _first_line(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        ),
        "python": sys.version.split()[0],
    }


def cpu_time() -> tuple[int, int]:
    """Return the CPU time so far that a hypervisor kept back, and all, in ticks (proc(5))."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return ticks[7], sum(ticks)


def _hypervisor(cpuinfo: str) -> str:
    if shutil.which("lscpu"):
        said = subprocess.run(
            ["lscpu"],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        vendor = re.search(r"^Hypervisor vendor:\s*(.+)$", said, re.MULTILINE)
        if vendor:
            return f"a virtual machine ({vendor.group(1)})"
    if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE):
        return "a virtual machine"
    return "no hypervisor seen"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").split("\n")[0]
    except OSError:
        return "unknown"
