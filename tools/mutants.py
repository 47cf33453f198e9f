"""Change the codec in small ways, one at a time, and see whether the tests notice.

    python3 tools/dev.py mutants [MODULE...]        # takes an hour or so
    python3 tools/dev.py mutants --report           # what the last run said

Theory of operation. cosmic-ray makes the mutants (another operator, another number, a condition
turned round) of a module in a copy of the tree, build/mutants/MODULE, and runs the tests of the
codec's core on each, with few examples and always the same. A mutant that no test notices has
survived: either a test is missing, or the mutant means the same as the original. Those of the
second kind are explained in docs/mutants.md, which is held against this program's report by hand.

Left out are mutants of annotations, which nothing evaluates, and for each binary operator all but
two of the eleven that could stand in its place. A run that was interrupted goes on where it
stopped; `--fresh` begins anew.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "mutants"
MODULES = ("_wire", "_message", "_respond")
TESTS = ("wire", "vectors", "integrity", "message", "transaction", "respond")
# They are about the strategies, not about the codec, and slow.
NOT_TESTS = "not reach_every_check and not every_other_required"

CONFIG = """\
[cosmic-ray]
module-path = ["pktstun/stun/{module}.py"]
timeout = 20.0
excluded-modules = []
test-command = {command}

[cosmic-ray.distributor]
name = "local"
"""


def prepare(module: str) -> Path:
    """Copy the tree and have the mutants listed; return the directory."""
    place = PLACE / module
    for name in ("pktstun", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    tests = " ".join(f"tests/stun/test_{name}.py" for name in TESTS)
    command = (
        "env HYPOTHESIS_PROFILE=brief PYTHONDONTWRITEBYTECODE=1 "
        f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests} -k '{NOT_TESTS}'"
    )
    (place / "config.toml").write_text(CONFIG.format(module=module, command=json.dumps(command)))
    subprocess.run(["cosmic-ray", "init", "config.toml", "session.sqlite"], cwd=place, check=True)
    leave_out(place / "session.sqlite", place / "pktstun" / "stun" / f"{module}.py")
    return place


def leave_out(session: Path, source: Path) -> None:
    """Mark the mutants that are not worth their time as done."""
    ranges = annotation_ranges(ast.parse(source.read_text()))
    with closing(sqlite3.connect(session)) as connection, connection:
        rows = connection.execute(
            "SELECT job_id, operator_name, start_pos_row, start_pos_col, end_pos_row, end_pos_col "
            "FROM mutation_specs ORDER BY operator_name"
        ).fetchall()
        replaced: Counter[tuple[int, ...]] = Counter()
        skipped = []
        for job, operator, *position in rows:
            place = tuple(position)
            if operator.startswith("core/ReplaceBinaryOperator"):
                replaced[place] += 1
            noted = any(start <= place[:2] and place[2:] <= end for start, end in ranges)
            if noted or replaced[place] > 2:
                skipped.append((job,))
        connection.executemany(
            "INSERT INTO work_results (worker_outcome, job_id) VALUES ('SKIPPED', ?)", skipped
        )


def annotation_ranges(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations begin and end: line and column."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in found
        if node is not None
    ]


def report(module: str) -> None:
    """Print how many mutants there were, and each that survived as a diff."""
    session = PLACE / module / "session.sqlite"
    if not session.exists():
        print(f"{module}: no run yet")
        return
    with closing(sqlite3.connect(session)) as connection:
        total = connection.execute("SELECT count(*) FROM mutation_specs").fetchone()[0]
        counts = connection.execute(
            "SELECT coalesce(test_outcome, worker_outcome), count(*) FROM work_results GROUP BY 1"
        ).fetchall()
        survivors = connection.execute(
            "SELECT operator_name, start_pos_row, diff FROM work_results JOIN mutation_specs "
            "USING (job_id) WHERE test_outcome = 'SURVIVED' ORDER BY start_pos_row"
        ).fetchall()
    done = ", ".join(f"{count} {outcome.lower()}" for outcome, count in sorted(counts))
    print(f"{module}: {total} mutants: {done}")
    for operator, row, diff in survivors:
        lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in _HEADS]
        print(f"  line {row}, {operator.removeprefix('core/')}", *lines, sep="\n    ")


_HEADS = ("---", "+++")


def main() -> int:
    """Run the mutants and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE")
    parser.add_argument("--report", action="store_true", help="only tell about the last run")
    parser.add_argument("--fresh", action="store_true", help="forget the last run")
    options = parser.parse_args()
    for module in options.modules:
        if options.fresh:
            shutil.rmtree(PLACE / module, ignore_errors=True)
        if not options.report:
            place = PLACE / module
            if not (place / "session.sqlite").exists():
                shutil.rmtree(place, ignore_errors=True)
                prepare(module)
            command = ["cosmic-ray", "exec", "config.toml", "session.sqlite"]
            subprocess.run(command, cwd=place, check=True)
        report(module)
    return 0


if __name__ == "__main__":
    sys.exit(main())
