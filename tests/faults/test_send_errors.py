"""Every errno on the send path, injected: the messages beside it are all sent."""

from __future__ import annotations

import errno
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.scorecard import FULL, record
from tests.lab import require_root
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults]

REQUESTS = 512

# The message is left out, and counted under this name.
REFUSED = {
    errno.EPERM: "EPERM",
    errno.EACCES: "EACCES",
    errno.EINVAL: "EINVAL",
    errno.ENETUNREACH: "ENETUNREACH",
    errno.EHOSTUNREACH: "EHOSTUNREACH",
    errno.ENETDOWN: "ENETDOWN",
    errno.ENOBUFS: "ENOBUFS",
    errno.EMSGSIZE: "OTHER",
}
# The message is tried again.
DELAYED = {errno.EAGAIN: "EAGAIN", errno.EINTR: "EINTR"}


@pytest.fixture(name="shim", scope="module")
def shim_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    library = tmp_path_factory.mktemp("shim") / "errors.so"
    compiler = str(sysconfig.get_config_var("CC")).split()
    source = Path(__file__).with_name("errors.c")
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
    )
    return library


NAMES = {**REFUSED, **DELAYED}
CASES = [
    (mode, number)
    for mode in ("ring", "direct", "recvmmsg")
    for number in NAMES
    # All ways of sending have one loop, so that a short run tries each errno once.
    if FULL or mode == "direct" or number in {errno.EPERM, errno.EAGAIN}
]


@pytest.mark.parametrize(
    ("mode", "number"), CASES, ids=[f"{mode}-{NAMES[number]}" for mode, number in CASES]
)
def test_the_neighbours_are_sent(
    hosts: TwoHosts, shim: Path, tmp_path: Path, mode: str, number: int
) -> None:
    failures = tmp_path / "failures"
    failures.write_bytes(bytes(8))
    under = [
        "env",
        f"LD_PRELOAD={shim}",
        f"PKTSTUN_SEND_ERROR={number}",
        f"PKTSTUN_SEND_FAILURES={failures}",
    ]
    arguments = ["--iface", hosts.server_if, "--mode", mode]
    with Server(hosts.server, arguments, under=under) as server:
        result = ask(
            hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], REQUESTS, patience=0.3
        )
        totals = server.totals()
    refused = int.from_bytes(failures.read_bytes(), sys.byteorder)
    name = NAMES[number]
    counter = totals.get(f"send_error.{name.lower()}", 0)
    record(
        13,
        mode,
        f"{name} of sendmmsg, injected",
        "good messages 100 % sent",
        f"{REQUESTS - result.lost} of {REQUESTS} answered, {refused} refused, {counter} counted",
    )
    assert refused > 0
    assert result.wrong == []
    assert result.duplicates == 0
    if number in REFUSED:
        assert result.lost == refused == counter
        assert totals["sent"] == REQUESTS - refused
    else:
        assert (result.lost, counter) == (0, 0)
