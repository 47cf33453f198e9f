"""Others' clients in the laboratory say the truth about its NATs, whatever server they ask.

coturn's come from the package coturn, Vovida's, which speaks RFC 3489, from stun-client:
`tools/dev.py test --peers`.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.nat.lab import (
    ADDRESS,
    ADDRESS_AND_PORT,
    INDEPENDENT,
    NAT_TYPES,
    SERVERS,
    NatNetwork,
    NatType,
    observe,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.peers]

# Programs that wait for an answer that never comes do so for seconds.
PATIENCE = 30

MAPPINGS = {
    None: "No NAT! (Endpoint Independent Mapping)",
    INDEPENDENT: "NAT with Endpoint Independent Mapping!",
    ADDRESS: "NAT with Address Dependent Mapping!",
    ADDRESS_AND_PORT: "NAT with Address and Port Dependent Mapping!",
}
FILTERS = {
    INDEPENDENT: "NAT with Endpoint Independent Filtering!",
    ADDRESS: "NAT with Address Dependent Filtering!",
    ADDRESS_AND_PORT: "NAT with Address and Port Dependent Filtering!",
}


# coturn's own server is the control.
CONTROLS = [("coturn", name) for name in ("full cone", "address-dependent", "symmetric")]

ALL = [*(("pktstun", name) for name in NAT_TYPES), *CONTROLS]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """The name of a server."""
    name: str = request.param
    return name


@pytest.fixture
def served(server: str, net: NatNetwork, tmp_path: Path) -> Iterator[NatNetwork]:
    """The network, with that server in it."""
    with SERVERS[server](net, tmp_path):
        yield net


def said(net: NatNetwork, *commands: list[str]) -> list[str]:
    """Run programs side by side, since they wait for each silence, and return their output."""
    processes = [net.client.popen(command, stderr=subprocess.STDOUT) for command in commands]
    return [process.communicate(timeout=PATIENCE)[0] for process in processes]


def fragments(net: NatNetwork) -> tuple[int, int]:
    """Return how many the client has made, and how many datagrams it has put together of some."""
    text = net.client.run(["cat", "/proc/net/snmp"], check=True).stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Ip:"))
    counts = dict(zip(names, values, strict=True))
    return int(counts["FragCreates"]), int(counts["ReasmOKs"])


@pytest.mark.parametrize(("server", "name"), ALL, indirect=["server"])
def test_turnutils_natdiscovery(served: NatNetwork, server: str, name: str) -> None:
    served.become(NAT_TYPES[name])
    truth = observe(served)
    told = truth.mapping
    if told is ADDRESS and server != "coturn":
        # Its third test asks the OTHER-ADDRESS of the second answer. That is the first address
        # again (RFC 5780 section 6.1); only coturn's server names its second address there.
        told = ADDRESS_AND_PORT
    command = ["turnutils_natdiscovery", "-L", served.client_ip, served.server_ips[0]]
    tests = ["-m", "-f", "-H"] if truth.mapping else ["-m", "-f"]
    mapping, filtering, *hairpinning = said(served, *([*command, test] for test in tests))
    assert MAPPINGS[told] in mapping
    assert FILTERS[truth.filtering] in filtering
    for text in hairpinning:
        hairpin = "Received a request (maybe a successful hairpinning)"
        assert (hairpin in text) == truth.hairpinning


def test_turnutils_natdiscovery_with_fragments(served: NatNetwork) -> None:
    """PADDING makes the requests longer than a packet."""
    served.become(NAT_TYPES["port-restricted cone"])
    command = ["turnutils_natdiscovery", "-m", "-P", "-L", served.client_ip]
    before = fragments(served)
    (text,) = said(served, [*command, served.server_ips[0]])
    assert MAPPINGS[INDEPENDENT] in text
    made, put_together = fragments(served)
    assert made > before[0]
    assert put_together > before[1], "the replies are as long as the requests"


def test_turnutils_stunclient(served: NatNetwork) -> None:
    # It waits for ever for what a NAT or a filter keeps out, and has answers sent to other ports.
    served.become(NAT_TYPES["no NAT, no firewall"])
    command = ["turnutils_stunclient", "-f", "-L", served.client_ip, served.server_ips[0]]
    (text,) = said(served, command)
    reflexive = re.findall(r"UDP reflexive addr: (\S+):(\d+)", text)
    assert reflexive, text
    assert {ip for ip, _ in reflexive} == {served.client_ip}
    assert f"Other addr: : {served.server_ips[1]}:3479" in text


def in_classic_words(truth: NatType) -> str:
    """Return what RFC 3489 calls it: it knows one kind of mapping that is not independent."""
    if truth.mapping is None:
        return "Open" if truth.filtering is INDEPENDENT else "Firewall"
    filters = {INDEPENDENT: "Independent", ADDRESS: "Address Dependent"}
    words = "Dependent Mapping"
    if truth.mapping is INDEPENDENT:
        words = f"Independent Mapping, {filters.get(truth.filtering, 'Port Dependent')} Filter"
    port = "preserves ports" if truth.keeps_port else "random port"
    return f"{words}, {port}, {'will' if truth.hairpinning else 'no'} hairpin"


@pytest.mark.parametrize(("server", "name"), ALL, indirect=["server"])
def test_the_classic_client(served: NatNetwork, name: str) -> None:
    served.become(NAT_TYPES[name])
    truth = observe(served)
    (text,) = said(served, ["stun", served.server_ips[0]])
    (verdict,) = re.findall(r"Primary: (.*)\t", text)
    assert verdict == in_classic_words(truth)
