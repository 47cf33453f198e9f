"""What a user installs: the sdist, the wheel from it, the editable tree, and the bare codec.

Everything is built from a copy of the tree, so neither the compiled module of an editable
installation nor leftovers of earlier builds can hide a file that the distributions lack.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import pytest

import pktstun
from tools import dev

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.packaging


def run(
    *command: str | Path,
    cwd: Path,
    stderr: int = subprocess.STDOUT,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a program away from the checkout; return its output, or fail with it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= variables
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Installation:
    """A clean virtual environment; this one's pip installs into it, which saves making another."""

    def __init__(self, path: Path) -> None:
        venv.create(path, symlinks=True)
        self.bin = path / "bin"
        self._away = path

    def install(self, *arguments: str | Path, **variables: str) -> None:
        pip = (sys.executable, "-I", "-m", "pip", "--python", self.bin / "python", "--no-input")
        options = ("--disable-pip-version-check", "install", *arguments)
        run(*pip, *options, cwd=self._away, variables=variables)

    def command(self, *arguments: str) -> str:
        return run(self.bin / "pktstun", *arguments, cwd=self._away)

    def python(self, code: str) -> str:
        return run(self.bin / "python", "-I", "-bb", "-W", "error", "-c", code, cwd=self._away)


class Distributions(NamedTuple):
    tree: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    base = tmp_path_factory.mktemp("distributions")
    tree, made = base / "tree", base / "made"
    dev.copy_tree(tree)
    run(sys.executable, "-P", "-m", "build", "--outdir", made, tree, cwd=base)
    (sdist,) = made.glob("*.tar.gz")
    (wheel,) = made.glob("*.whl")
    return Distributions(tree, sdist, dev.portable(Path(sys.executable), wheel))


def test_the_wheel_serves_every_python_from_3_11_on_and_says_which_systems(
    distributions: Distributions,
) -> None:
    name = distributions.wheel.name
    version = re.escape(pktstun.__version__)
    libc = r"((many|musl)linux\w+\.?)+"
    assert re.fullmatch(rf"pktstun-{version}-cp311-abi3-{libc}\.whl", name), name


def test_auditwheel_finds_the_tag_true(distributions: Distributions) -> None:
    said = run(
        *(sys.executable, "-P", "-m", "auditwheel", "show", distributions.wheel),
        cwd=distributions.tree,
    )
    (found,) = re.findall(r'platform tag: "(\w+)"', " ".join(said.split()))
    assert found in distributions.wheel.name


def test_the_sdist_holds_every_source(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {str(Path(*Path(name).parts[1:])) for name in archive.getnames()}
    tree = distributions.tree
    wanted = {
        str(path.relative_to(tree))
        for pattern in ("cdefs/**/*.[ch]", "cdefs/**/*.py", "pktstun/**/*.py", "pktstun/**/*.pyi")
        for path in tree.glob(pattern)
    }
    wanted |= {str(path.relative_to(tree)) for path in tree.glob("pktstun/deploy/*")}
    wanted |= {"LICENSE", "README.md", "pktstun/py.typed", "pyproject.toml"}
    assert wanted - names == set()


def test_the_wheel_holds_the_package_and_nothing_else(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    tree = distributions.tree
    package = {str(path.relative_to(tree)) for path in tree.glob("pktstun/**/*.py*")}
    package = {name for name in package if "__pycache__" not in name}
    package |= {str(path.relative_to(tree)) for path in tree.glob("pktstun/deploy/*")}
    package |= {"pktstun/py.typed", "pktstun/_native.abi3.so"}
    assert {name for name in names if ".dist-info/" not in name} == package


def test_the_wheel_works_in_a_clean_environment(
    distributions: Distributions, tmp_path: Path
) -> None:
    installation = Installation(tmp_path / "env")
    installation.install(distributions.wheel)
    assert installation.command("--version") == f"pktstun {pktstun.__version__}\n"
    native = Path(installation.python("import pktstun._native as n; print(n.__file__)").strip())
    assert native.is_relative_to(tmp_path)
    installation.python("import pktstun.kernel")


def test_the_wheel_serves_where_there_is_no_compiler(
    distributions: Distributions, tmp_path: Path
) -> None:
    installation = Installation(tmp_path / "env")
    alone = {"PATH": str(installation.bin), "CC": "no compiler"}
    assert not any(shutil.which(name, path=alone["PATH"]) for name in ("cc", "gcc", "clang"))
    installation.install("--only-binary=:all:", distributions.wheel, **alone)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--mode=recvmmsg", "--listen=127.0.0.1", "--port", port)
    command = [str(installation.bin / "pktstun"), "serve", *options]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(command, cwd=tmp_path, env=alone, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(server.terminate)
        assert server.stdout is not None
        assert " ready: " in server.stdout.readline()
        mapped = installation.command("query", f"127.0.0.1:{port}", "--timeout", "5")
    assert mapped.startswith("127.0.0.1:")
    assert server.returncode == 0


def test_an_editable_installation_works_in_a_clean_environment(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    dev.copy_tree(tree)
    installation = Installation(tmp_path / "env")
    installation.install("--editable", tree)
    assert installation.command("--version") == f"pktstun {pktstun.__version__}\n"
    native = Path(installation.python("import pktstun._native as n; print(n.__file__)").strip())
    assert native.parent == tree / "pktstun"


def test_without_the_compiled_module_the_codec_works_and_the_kernel_says_what_to_do(
    distributions: Distributions, tmp_path: Path
) -> None:
    assert not list(distributions.tree.glob("pktstun/**/*.so")), "building left the tree alone"
    # -S: standard library only. An editable installation would lend its compiled module.
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(distributions.tree)!r})\n"
        "import pktstun\n"
        "from pktstun import stun\n"
        "data = bytes.fromhex('000100002112a442') + bytes(range(12))\n"
        "message = stun.Message.decode(data)\n"
        "assert message.encode() == data\n"
        "assert message.transaction_id == bytes(range(12))\n"
        "try:\n"
        "    import pktstun.kernel\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    complaint = run(sys.executable, "-I", "-S", "-bb", "-W", "error", program, cwd=tmp_path)
    assert "pktstun._native" in complaint
    assert re.search(r"pip install|tools/dev\.py", complaint)
