"""What each way of answering costs on this machine: pktstun's modes, and other STUN servers.

    python3 tools/dev.py compare --quick     # as root: two minutes; makes the environment, too
    python3 tools/dev.py compare             # a quarter of an hour, five rounds

It makes a laboratory of two network namespaces, starts one server after the other in it, and finds
for each the highest rate that it answers without loss, the CPU time per reply, what is left of the
rate when there is too much to answer, and the latencies. The result is a table, a picture and a
JSON file, from which both can be made again (--from).

It takes two CPUs at least: one for the generator and the others for the server. On a real network
card, the generator runs elsewhere:

    compare_modes.py --iface eth0 --address 192.0.2.1 --generator
        'ssh host python3 tools/loadgen.py --iface eth1 --target {target} --steps
         --i-own-this-network'

What the parts do is in tools/compare/, each with its theory of operation.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from pktstun.config import parse_cpus
from pktstun.errors import ConfigError, PrivilegeError
from tools.compare import machine, targets
from tools.compare.bench import Bench, BenchError, LabBench, NetworkBench, TargetError
from tools.compare.measure import PAUSES, Patience, Plan, Survey
from tools.compare.results import Report, ReportError, Subject, summarize
from tools.compare.search import LOSS
from tools.compare.table import show

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import FrameType

    from rich.progress import Task

    from tools.compare.targets import Target

ROOT = Path(__file__).resolve().parent.parent
QUICK_TIME, FULL_TIME = 120.0, 900.0  # seconds
QUICK_STEP, FULL_STEP = 0.5, 1.0  # seconds, at most
QUICK_ROUNDS, FULL_ROUNDS, SWEEP_ROUNDS = 1, 5, 3
_SPARE = 8.0  # seconds to set up, draw and leave
_WIDE = 130  # columns, more than the table takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and return the exit status."""
    began = time.monotonic()
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.source:
            report = Report.read(options.source)
        else:
            report = compare(options, began)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            report.write(options.json)
        return present(report, options)
    except (targets.ChoiceError, ConfigError) as error:
        parser.error(str(error))
    except PrivilegeError as error:
        print(f"compare_modes: {error}", file=sys.stderr)
        return error.exit_status
    except (BenchError, ReportError, OSError) as error:
        print(f"compare_modes: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return 1


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)  # as a shell reports SIGTERM; the laboratory is dismantled on the way


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Compare pktstun's modes and other STUN servers on this machine (as root).",
        epilog="The source's first lines say more.",
    )
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--modes",
        type=_names,
        default=[],
        metavar="A,B",
        help=f"none, or of {', '.join(targets.MODES)} (default: {', '.join(targets.LADDER)})",
    )
    what.add_argument(
        "--peers",
        default="all",
        metavar="WHICH",
        help=f"none, all (that are installed), or of {', '.join(targets.KNOWN_PEERS)}",
    )
    what.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another server, its command with {address} and {port}; repeatable",
    )
    what.add_argument(
        "--sweep",
        type=_names,
        default=[],
        metavar="A,B",
        help=f"vary settings of one mode in place of comparing: {', '.join(targets.SWEEPS)}",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--quick", action="store_true", help="one round, in two minutes")
    how.add_argument(
        "--rounds",
        type=_number(int, 1, 1000),
        metavar="N",
        help=f"default: {FULL_ROUNDS}, of a sweep {SWEEP_ROUNDS}",
    )
    how.add_argument(
        "--seconds",
        type=_number(float, 0.05, 60),
        metavar="S",
        help=f"length of a step (default: {FULL_STEP:g}, quick {QUICK_STEP:g}, or what fits into "
        f"{FULL_TIME / 60:g} or {QUICK_TIME / 60:g} minutes)",
    )
    how.add_argument(
        "--loss",
        type=_number(float, 0, 0.5),
        default=LOSS,
        metavar="SHARE",
        help="of requests without reply that passes as none (default: %(default)s)",
    )
    how.add_argument(
        "--pauses",
        type=_number(float, 0, 0.5),
        default=PAUSES,
        metavar="SHARE",
        help="of the 10 ms slices of a step, those that lost most, which do not count: the "
        "machine stands still now and then (default: %(default)s)",
    )
    how.add_argument(
        "--patience",
        type=_number(float, 0, 86400),
        default=0.0,
        metavar="S",
        help="time to spend, beyond the plan's, on steps that are tried again because the "
        "hypervisor gave the CPUs to others (default: none)",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--cpu", type=int, metavar="N", help="CPU of the generator: the lowest")
    where.add_argument("--server-cpus", metavar="LIST", help="CPUs of the server: all others")
    where.add_argument("--port", type=_number(int, 1, 65535), default=3478, metavar="N")
    where.add_argument("--generator", metavar="COMMAND", help="no laboratory: a generator, with")
    where.add_argument("--iface", metavar="NAME", help="the interface that it reaches, and")
    where.add_argument("--address", help="its IPv4 address to serve")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, default=ROOT / "build/pktstun-compare.json", metavar="FILE"
    )
    output.add_argument(
        "--figure",
        type=Path,
        default=ROOT / "build/pktstun-compare.svg",
        metavar="FILE",
        help="SVG or PNG",
    )
    output.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="measure nothing: table and picture from a JSON file of an earlier run",
    )
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _number(kind: type[int | float], low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:  # argparse names this function in its complaint
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low}..{high}")
        return value

    return number


def choose(options: argparse.Namespace, cpus: int) -> tuple[list[Target], dict[str, str]]:
    """Return what to measure, and what is left out and why."""
    if options.sweep:
        return targets.sweep(options.sweep, options.modes), {}
    known = list(targets.KNOWN_PEERS)
    names = {"all": known, "none": []}.get(options.peers)
    peers, absent = targets.peers(_names(options.peers) if names is None else names)
    chosen, left_out = targets.ladder(options.modes, cpus)
    given = [targets.parse_peer(text) for text in options.peer]
    found = [*peers, *given, *chosen]
    keys = [target.key for target in found]
    double = next((key for key in keys if keys.count(key) > 1), None)
    if double:
        raise targets.ChoiceError(f"two things to compare have the name {double!r}")
    if not found:
        raise targets.ChoiceError("nothing to compare is left")
    return found, {**absent, **left_out}


def assign_cpus(
    usable: Collection[int], generator: int | None, server: Collection[int] | None
) -> tuple[int, tuple[int, ...]]:
    """Return the generator's CPU and the server's; ConfigError if they do not get along."""
    for cpu in sorted({*(server or ()), *(() if generator is None else (generator,))}):
        if cpu not in usable:
            raise ConfigError(f"CPU {cpu} cannot be used here: there are {sorted(usable)}")
    if generator is None:
        generator = min(set(usable) - set(server or ()), default=min(usable))
    if server is None:
        server = sorted(set(usable) - {generator})
    if not server:
        raise ConfigError(
            "there is one CPU here, and two are needed: one for the generator and one for the "
            "server. Use --generator for one on another host"
        )
    if generator in server:
        raise ConfigError(f"CPU {generator} cannot be the generator's and the server's")
    return generator, tuple(sorted(server))


def make_bench(options: argparse.Namespace) -> Bench:
    """Return the bench that the options ask for, not yet set up."""
    asked = [options.generator, options.iface, options.address]
    if any(asked) != all(asked):
        raise ConfigError("--generator, --iface and --address belong together")
    server = None if options.server_cpus is None else parse_cpus(options.server_cpus)
    usable = os.sched_getaffinity(0)
    if options.generator:
        if options.cpu is not None:
            raise ConfigError("--cpu is for the laboratory: a generator elsewhere has its own")
        return NetworkBench(
            options.iface,
            options.address,
            options.generator,
            server_cpus=tuple(sorted(usable)) if server is None else server,
            port=options.port,
        )
    generator_cpu, server_cpus = assign_cpus(usable, options.cpu, server)
    return LabBench(generator_cpu=generator_cpu, server_cpus=server_cpus, port=options.port)


def compare(options: argparse.Namespace, began: float) -> Report:
    """Measure everything; a report, also of what was done until an interrupt."""
    bench = make_bench(options)
    chosen, left_out = choose(options, len(bench.server_cpus))
    if os.geteuid() != 0:
        raise PrivilegeError("network namespaces and packet sockets need root")
    budget = (QUICK_TIME if options.quick else FULL_TIME) - _SPARE
    usual = QUICK_ROUNDS if options.quick else SWEEP_ROUNDS if options.sweep else FULL_ROUNDS
    rounds = options.rounds or usual
    if options.seconds is None:
        longest = QUICK_STEP if options.quick else FULL_STEP
        plan = Plan.for_time(budget, rounds * len(chosen), longest)
    else:
        plan = Plan.for_step(options.seconds)
        budget = plan.cell * rounds * len(chosen)
    report = Report(
        date=dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        command=sys.argv,
        machine=machine.describe(),
        settings={
            "stolen": 0.0,
            "rounds": rounds,
            "seconds": plan.seconds,
            "loss": options.loss,
            "pauses": options.pauses,
            "place": bench.description,
            "priorities": bench.priorities,
            "generator_cpu": bench.generator_cpu,
            "server_cpus": ",".join(map(str, bench.server_cpus)),
        },
        subjects=[],
        left_out=left_out,
    )
    signal.signal(signal.SIGTERM, _terminate)
    early = machine.cpu_time()
    with bench:
        report.subjects = [_subject(target, bench) for target in chosen]
        with Bar(plan.cell * rounds * len(chosen)) as bar:
            try:
                survey = Survey(
                    bench,
                    plan,
                    options.loss,
                    options.pauses,
                    lambda length: bar.advance(length * plan.pace),
                    Patience(options.patience),
                )
                _run_rounds(report, survey, chosen, bar, began + budget)
            except KeyboardInterrupt:
                if not report.cells:
                    raise
                report.interrupted = True
    late = machine.cpu_time()
    stolen, passed = (after - before for before, after in zip(early, late, strict=True))
    report.settings["stolen"] = stolen / max(1, passed)
    return report


def _run_rounds(
    report: Report, survey: Survey, chosen: Sequence[Target], bar: Bar, deadline: float
) -> None:
    plan = survey.plan
    rounds = report.settings["rounds"]
    left = rounds * len(chosen)
    near: dict[str, float] = {}  # each target's last rate
    for number in range(rounds):
        for target in chosen:
            bar.begin(f"{target.title}, round {number + 1} of {rounds}", left * plan.cell)
            if target.title not in report.left_out:
                time_left = deadline + survey.patience.spent - time.monotonic()
                probes = plan.probes(time_left / left)
                try:
                    cell = survey.measure(target, number, near.get(target.key, 0.0), probes)
                except TargetError as error:
                    report.left_out[target.title] = str(error)
                    bar.say(f"left out: {error}")
                else:
                    report.cells.append(cell)
                    near[target.key] = cell.rate
                    bar.say(f"{cell.rate:,.0f} replies/s")
            left -= 1


def _subject(target: Target, bench: Bench) -> Subject:
    try:
        command = " ".join(target.filled(bench.place))
    except KeyError:
        command = " ".join(target.command)
    return Subject(
        key=target.key,
        title=target.title,
        command=command,
        note=target.note.replace("{threads}", bench.place["threads"]),
        setting=target.setting,
        value=target.value,
    )


class Bar:
    """Progress on standard error: a bar on a terminal, else a line for each target."""

    def __init__(self, planned: float) -> None:
        console = Console(stderr=True)
        self._planned = planned
        self._plain = not console.is_terminal
        self._title = ""
        self._progress = Progress(
            BarColumn(24),
            _TimeLeft(),
            TextColumn("{task.description}"),
            console=console,
            disable=self._plain,
            transient=True,
        )
        self._task = self._progress.add_task("", total=planned)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def begin(self, title: str, left: float) -> None:
        """Say what is measured now, and that so many seconds of the plan are left."""
        self._title = title
        self._progress.update(self._task, description=title, completed=self._planned - left)

    def advance(self, seconds: float) -> None:
        """Note that so many seconds of the plan are done."""
        self._progress.update(self._task, advance=seconds)

    def say(self, result: str) -> None:
        """Say what came out, where there is no bar."""
        if self._plain:
            print(f"{self._title}: {result}", file=sys.stderr, flush=True)


class _TimeLeft(ProgressColumn):
    """The time that the plan has left; rich's own column guesses from the speed."""

    def render(self, task: Task) -> Text:
        left = max(0, round((task.total or 0) - task.completed))
        return Text(f"{left // 60}:{left % 60:02} left")


def present(report: Report, options: argparse.Namespace) -> int:
    """Draw the picture and print the table; the exit status."""
    measured = any(row.rate.median for row in summarize(report))
    if measured:
        from tools.compare import figures  # noqa: PLC0415 - matplotlib takes a second to import

        options.figure.parent.mkdir(parents=True, exist_ok=True)
        figures.draw(report, options.figure)
    # A line that the terminal wraps is better than one from which the end is cut off.
    show(report, Console(width=max(_WIDE, Console().width)))
    if not options.source:
        print(f"data: {options.json}")
    if not measured:
        print("compare_modes: nothing could be measured", file=sys.stderr)
        return 1
    print(f"picture: {options.figure}")
    return 130 if report.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
