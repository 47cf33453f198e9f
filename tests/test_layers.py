"""Imports run one way, and the codec and the packet parser need nothing but Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pktstun

PACKAGE = Path(pktstun.__file__).parent

# From the bottom up; a module may import from its own layer and from those below.
LAYERS = [
    {"errors"},
    {"stun"},
    {"packet"},
    {"capture"},
    {"_native"},
    {"kernel"},
    {"account", "limiter", "log", "observe", "pace", "places", "repeats", "stats", "users"},
    {"engine"},
    {"metrics", "streams"},
    {"config"},
    {"direct", "incidents", "link", "refusals", "poison"},
    {"resources"},
    {"worker"},
    {"status", "supervisor", "systemd", "upgrade"},
    {"_process"},
    {"client", "configfile", "decode", "doctor", "install", "options"},
    {"top"},
    {"cli_kinds", "cli_serve_options"},
    {
        "cli_client",
        "cli_config",
        "cli_decode",
        "cli_doctor",
        "cli_install",
        "cli_operate",
        "cli_serve",
    },
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# These know only the bottom of the house, and none of them the compiled module.
ONLY = {
    "stun": {"errors", "stun"},
    "packet": {"errors", "packet"},
    "capture": {"errors", "packet"},
    "log": {"repeats"},
    "repeats": set(),
    "systemd": set(),
    "users": {"errors", "stun"},
    "places": {"errors"},
    "configfile": {"errors"},
    "options": {"configfile", "errors", "places"},
    "client": {"errors", "stun", "client"},
    "decode": {"errors", "stun", "packet", "capture"},
    "cli_client": {"cli_kinds", "errors", "stun", "client"},
    "cli_decode": {"errors", "stun", "packet", "capture", "decode"},
    "cli_install": {"errors", "install"},
    "install": {"errors"},
    "observe": {"errors", "observe"},
    "top": {"errors", "stun", "client", "observe"},
    "cli_operate": {"cli_kinds", "errors", "observe", "top"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the dotted names of what a module imports, relative ones resolved."""
    package = ["pktstun", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_layer() -> None:
    assert {layer_of(path) for path in modules()} - {"__init__"} == set(LEVEL) - {"_native"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    layer = layer_of(path)
    for name in imports(path):
        if not name.startswith("pktstun."):
            continue
        target = name.split(".")[1]
        if target == "__version__":
            continue
        assert layer != "__init__", f"pktstun/__init__.py imports {name}"
        assert LEVEL[target] <= LEVEL[layer], f"{path.name} imports upwards: {name}"
        assert target in ONLY.get(layer, LEVEL), f"{path.name} imports {name}"


def test_the_compiled_module_has_one_door() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules()
        if any(name.startswith("pktstun._native") for name in imports(path))
    }
    assert users == {"kernel/_ffi.py"}


@pytest.mark.parametrize(
    "module",
    [
        "pktstun",
        "pktstun.stun",
        "pktstun.packet",
        "pktstun.capture",
        "pktstun.client",
        "pktstun.decode",
        "pktstun.observe",
    ],
)
def test_the_library_imports_the_standard_library_only(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(names - set(sys.stdlib_module_names) - {'pktstun', '__main__'}))"
    )
    run = [sys.executable, "-I", "-S", "-c"]
    # -I and -S keep out what a site customisation imports; the package's home is added.
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    result = subprocess.run([*run, path + program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
