"""Fuzz the codec with Atheris: coverage-guided bytes for everything in `pktstun.stun`.

usage: python tests/fuzz/fuzz_codec.py --seconds N [LIBFUZZER-OPTION...]
       python tests/fuzz/fuzz_codec.py [LIBFUZZER-OPTION...] [CORPUS-DIRECTORY...]
       python tests/fuzz/fuzz_codec.py [LIBFUZZER-OPTION...] FILE...

The first form is for CI: it starts from the committed corpus, runs for N seconds, and writes
nothing into the repository. The status is 0 without a finding. With one, the bytes are on
standard output as hex and base64, below libFuzzer's own report.

The second form is libFuzzer as it is: `-help=1` names its options, inputs that reach something
new are written to the first directory, and a finding to `crash-*` in the current one. The third
runs the named files once and is how a finding is looked at.

To add to the committed corpus what a long run has found (edges alone, not how often):

    mkdir /tmp/found
    python tests/fuzz/fuzz_codec.py -max_total_time=600 /tmp/found tests/fuzz/corpus
    python tests/fuzz/fuzz_codec.py -merge=1 -use_counters=0 tests/fuzz/corpus /tmp/found

It needs `pip install atheris`, which has wheels for some versions of CPython on Linux. What is
checked is in `checks.py`, how inputs change in `mutator.py`; `test_corpus.py` replays the
committed corpus without Atheris.
"""

from __future__ import annotations

import base64
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
DICTIONARY = HERE / "stun.dict"

# At most the payload of a full Ethernet frame, and small inputs first, which are the fast ones.
DEFAULTS = [
    "-max_len=1472",
    "-len_control=20",
    "-timeout=20",
    "-rss_limit_mb=1024",
    f"-dict={DICTIONARY}",
]


def fuzz(arguments: list[str]) -> None:
    """Run libFuzzer with these arguments; it ends the process."""
    try:
        import atheris  # noqa: PLC0415 - `--help` works without
    except ImportError:
        sys.exit("fuzz_codec.py: Atheris is missing: pip install atheris")
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["pktstun.stun"]):
        from tests.fuzz.checks import check  # noqa: PLC0415 - imported while instrumenting
        from tests.fuzz.mutator import mutate  # noqa: PLC0415

    def one_input(data: bytes) -> None:
        check(data)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        return mutate(data, max_size, Random(seed), atheris.Mutate)

    # To merge, libFuzzer starts itself again, through a shell and by this name.
    program = shlex.join([sys.executable, str(Path(__file__).resolve())])
    # The last of an option counts.
    atheris.Setup([program, *DEFAULTS, *arguments], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def fuzz_for(seconds: int, options: list[str]) -> int:
    """Run for some time in a directory that goes away; print findings and return the status."""
    with tempfile.TemporaryDirectory(prefix="pktstun-fuzz-") as name:
        scratch = Path(name)
        found = scratch / "corpus"
        found.mkdir()
        command = [
            *(sys.executable, str(Path(__file__).resolve())),
            *(f"-max_total_time={seconds}", f"-artifact_prefix={scratch}/"),
            *("-print_final_stats=1", *options),
            *(str(found), str(CORPUS)),
        ]
        status = subprocess.run(command, check=False).returncode
        for path in sorted(scratch.iterdir()):
            # libFuzzer reports a slow input and goes on; it is no failure.
            if path.is_file() and not path.name.startswith("slow-unit-"):
                data = path.read_bytes()
                coded = base64.b64encode(data).decode()
                sys.stdout.write(
                    f"\n{path.name}: {len(data)} bytes\nhex: {data.hex()}\nbase64: {coded}\n"
                )
    return status


def main(arguments: list[str]) -> int:
    """Choose the form; return the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(__doc__ or "")
        return 0
    if arguments[:1] == ["--seconds"]:
        if len(arguments) < 2 or not arguments[1].isdecimal() or int(arguments[1]) < 1:
            sys.exit("fuzz_codec.py: --seconds wants a number of seconds, at least 1")
        return fuzz_for(int(arguments[1]), arguments[2:])
    fuzz(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
