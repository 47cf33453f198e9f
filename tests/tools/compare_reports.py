"""Reports as a run would write them, made up: a ladder of modes, and a sweep."""

from __future__ import annotations

import random

from tools.compare.results import LOADS, OVERLOADS, Cell, Report, Step, Subject

MACHINE = {
    "kernel": "6.18.0",
    "cpu": "A Processor",
    "cores": "2 cores",
    "hypervisor": "a virtual machine (KVM)",
    "clocksource": "tsc",
    "python": "3.11.0",
}
SETTINGS = {
    "loss": 0.001,
    "pauses": 0.2,
    "stolen": 0.0,
    "seconds": 0.5,
    "rounds": 5,
    "place": "Two network namespaces on one machine, joined by veth",
    "priorities": "All servers run at nice -10",
    "generator_cpu": "0",
    "server_cpus": "1",
}
RATES = {
    "coturn": ("coturn 4.6.1", 12e3, 60.0),
    "single": ("one by one", 70e3, 40.0),
    "stund": ("stund 0.97", 85e3, 50.0),
    "recvmmsg": ("recvmmsg", 115e3, 40.0),
    "ring": ("ring", 138e3, 560.0),
    "direct": ("direct", 250e3, 560.0),
    "takeover": ("direct, takeover", 330e3, 550.0),
}


def cell(
    key: str,
    number: int,
    rate: float,
    base: float,
    limited: bool = False,  # noqa: FBT001, FBT002
) -> Cell:
    chance = random.Random(f"{key}{number}")
    rate *= chance.uniform(0.9, 1.1)

    def step(phase: str, times: float, cpu: float | None = None) -> Step:
        offered = min(rate * times, 1e6 if times > 2 else 500e3)
        answered = min(offered, rate * chance.uniform(0.97, 1.0) / max(1, times**0.3))
        latency = {
            name: base * factor * (1 + 3 * times**6)
            for name, factor in (("p50", 1), ("p90", 1.5), ("p99", 3), ("p99.9", 8))
        }
        return Step(
            phase, rate * times, offered, answered, 1 - answered / offered, 0.5, latency, cpu
        )

    steps = [step("search", 1.06), step("search", 1.03), step("confirm", 1)]
    steps += [step("cpu", 0.9, 0.9e6 / rate)]
    steps += [step(f"latency-{load}", load / 100) for load in LOADS]
    steps += [step(f"overload-{times:g}", times) for times in OVERLOADS]
    steps += [step("flood", 1e6 / rate)]
    return Cell(key, number, rate, limited, resolved=True, steps=steps)


def ladder(rounds: int = 5) -> Report:
    return Report(
        date="2026-01-02 03:04:05",
        command=["compare_modes.py"],
        machine=MACHINE,
        settings=SETTINGS,
        subjects=[Subject(key, title, f"serve {key}") for key, (title, *_) in RATES.items()],
        cells=[
            cell(key, number, rate, base)
            for number in range(rounds)
            for key, (_, rate, base) in RATES.items()
        ],
    )


def sweep(rounds: int = 3) -> Report:
    values = {
        "batch": (1, 4, 16, 64, 256),
        "block-size": (4096, 16384, 65536, 262144),
        "retire-timeout": (1, 2, 5, 10, 60),
    }
    subjects = [
        Subject(f"{setting}={value}", f"{setting} {value}", "", setting=setting, value=value)
        for setting, choices in values.items()
        for value in choices
    ]
    report = ladder(0)
    report.subjects = subjects
    report.cells = [
        cell(each.key, number, 1e5 * (1 + place % 5 / 4), 100.0 * (1 + place % 5))
        for number in range(rounds)
        for place, each in enumerate(subjects)
    ]
    return report
