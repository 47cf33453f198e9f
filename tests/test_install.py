"""`pktstun install-service`: what it writes, what it leaves alone, what it takes away."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pktstun.cli import _parser
from pktstun.errors import ConfigError
from pktstun.install import find_program, planned

UNIT = "etc/systemd/system/pktstun.service"
USERS = "etc/sysusers.d/pktstun.conf"
CONFIG = "etc/pktstun.toml"


def install(root: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pktstun", "install-service"),
            *("--root", str(root), "--program", "/opt/pktstun/bin/pktstun", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        # Without systemd's programs, which the tests of the peers run.
        env={**os.environ, "PATH": "/nowhere"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def written(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def test_it_writes_a_unit_a_user_and_an_example(tmp_path: Path) -> None:
    install(tmp_path)
    files = written(tmp_path)
    assert set(files) == {UNIT, USERS, CONFIG}
    (command,) = re.findall(r"^ExecStart=(.*)$", files[UNIT], re.MULTILINE)
    program, *arguments = shlex.split(command)
    assert program == "/opt/pktstun/bin/pktstun"
    assert _parser().parse_args(arguments).config == "/etc/pktstun.toml"
    assert re.search(r"^u pktstun - ", files[USERS], re.MULTILINE)
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o644 for name in files)


def test_what_is_there_stays_and_what_it_wrote_goes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / CONFIG).write_text("port = 4000\n")
    assert "it is yours" in install(tmp_path)
    before = written(tmp_path)
    assert install(tmp_path).count("unchanged") == 2
    assert written(tmp_path) == before
    install(tmp_path, "--uninstall")
    assert written(tmp_path) == {CONFIG: "port = 4000\n"}


def test_an_example_that_nobody_has_edited_goes_too(tmp_path: Path) -> None:
    install(tmp_path)
    install(tmp_path, "--uninstall")
    assert written(tmp_path) == {}
    assert install(tmp_path, "--uninstall").count("absent") == 3


def test_another_version_takes_the_place_of_an_untouched_file(tmp_path: Path) -> None:
    install(tmp_path, "--config", "/etc/other.toml")
    said = install(tmp_path)
    assert "updated" in said
    assert "/etc/pktstun.toml" in (tmp_path / UNIT).read_text()


def test_a_changed_unit_is_left_alone_and_that_is_said(tmp_path: Path) -> None:
    install(tmp_path)
    changed = (tmp_path / UNIT).read_text().replace("MemoryMax=1G", "MemoryMax=2G")
    (tmp_path / UNIT).write_text(changed)
    assert "it has been changed" in install(tmp_path, status=1)
    shown = install(tmp_path, "--dry-run", status=1)
    assert "-MemoryMax=2G\n+MemoryMax=1G" in shown
    assert "it has been changed" in install(tmp_path, "--uninstall", status=1)
    assert written(tmp_path) == {UNIT: changed}


def test_a_unit_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / UNIT).parent.mkdir(parents=True)
    (tmp_path / UNIT).write_text("[Service]\n")
    install(tmp_path, status=1)
    install(tmp_path, "--uninstall", status=1)
    assert written(tmp_path)[UNIT] == "[Service]\n"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    shown = install(tmp_path, "--dry-run")
    assert "+ExecStart=/opt/pktstun/bin/pktstun serve" in shown
    assert written(tmp_path) == {}
    install(tmp_path)
    before = written(tmp_path)
    install(tmp_path, "--dry-run", "--uninstall")
    assert written(tmp_path) == before


def test_a_path_with_odd_letters_is_quoted(tmp_path: Path) -> None:
    unit = planned(tmp_path, Path('/etc/a b/%n$x"\\.toml'), ["/opt/p"])[0].content
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert command == r'/opt/p serve --config "/etc/a b/%%n$$x\"\\.toml"'
    with pytest.raises(ConfigError, match="choose another path"):
        planned(tmp_path, Path("/etc/a\nb"), ["/opt/p"])


@pytest.mark.parametrize("option", ["--config", "--program"])
@pytest.mark.parametrize("path", ["pktstun.toml", "/etc/../pktstun.toml"])
def test_paths_begin_at_the_root(tmp_path: Path, option: str, path: str) -> None:
    assert "from the root on" in install(tmp_path, option, path, status=2)


@pytest.mark.parametrize("where", ["home/me", "root", "tmp", "var/tmp"])
def test_a_program_that_the_service_would_not_see_is_refused(where: str) -> None:
    package = Path("/opt/pktstun/lib/pktstun")
    with pytest.raises(ConfigError, match="does not see"):
        find_program(Path("/", where, "env/bin/python"), package)
    with pytest.raises(ConfigError, match="--program"):
        find_program(Path("/opt/pktstun/bin/python"), Path("/", where, "env/pktstun"))


def test_the_command_of_a_virtual_environment_is_beside_its_python() -> None:
    package = Path("/opt/pktstun/lib/pktstun")
    absent = find_program(Path("/opt/pktstun/bin/python"), package)
    assert absent == ["/opt/pktstun/bin/python", "-m", "pktstun"]


def test_a_script_beside_the_interpreter_is_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pktstun.install._HIDDEN", ())
    script = tmp_path / "pktstun"
    script.touch()
    assert find_program(tmp_path / "python", tmp_path) == [str(script)]


def test_who_may_not_write_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    assert "pktstun: " in install(tmp_path, status=78)


@pytest.mark.peers
def test_the_tools_of_systemd_take_it(tmp_path: Path) -> None:
    """In a root of its own: the unit is enabled, the user made, and both are taken back."""
    for name in ("etc", "usr/lib", "opt/pktstun/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy("/bin/true", tmp_path / "opt/pktstun/bin/pktstun")

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = ("--program", "/opt/pktstun/bin/pktstun")
    command = (sys.executable, "-m", "pktstun", "install-service", "--root", str(tmp_path))
    run(*command, *program)
    assert re.search(r"^pktstun:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    systemctl = ("systemctl", f"--root={tmp_path}")
    run(*systemctl, "enable", "pktstun.service")
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants/pktstun.service"
    assert wants.is_symlink()
    unit = (tmp_path / UNIT).read_text()
    (tmp_path / UNIT).write_text(unit + "# edited\n")
    kept = subprocess.run([*command, "--uninstall"], capture_output=True, check=False)
    assert (kept.returncode, wants.is_symlink()) == (1, True)
    (tmp_path / UNIT).write_text(unit)
    run(*command, "--uninstall")
    assert not wants.is_symlink()
    assert not (tmp_path / UNIT).exists()
