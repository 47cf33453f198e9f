"""Programs that share no code with ours: coturn's and Vovida's clients, Wireshark's dissector.

These come from the distribution (packages coturn, stun-client, tshark), so they run only when
asked for: `tools/dev.py test --peers`.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.client import query, resolve
from pktstun.kernel import Ring
from tests.lab import require_root
from tests.netns.server import Server
from tests.pcap import write_pcap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab import Lab, TwoHosts

CHAT = 0x200000  # Wireshark's epan/proto.h

pytestmark = [pytest.mark.root, pytest.mark.peers]


@pytest.fixture(params=["ring", "direct", "recvmmsg"])
def server(request: pytest.FixtureRequest, hosts: TwoHosts) -> Iterator[Server]:
    require_root()
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", request.param]) as running:
        yield running


def pairs(hosts: TwoHosts) -> list[tuple[str, str]]:
    """Return (client, server) for each of the server's addresses."""
    return [(hosts.client_ipv4[0], server) for server in hosts.server_ipv4] + [
        (hosts.client_ipv6[0], server) for server in hosts.server_ipv6
    ]


@pytest.mark.usefixtures("server")
def test_turnutils_stunclient(hosts: TwoHosts) -> None:
    for client, address in pairs(hosts):
        result = hosts.client.run(["turnutils_stunclient", "-L", client, address], timeout=20)
        # Its exit status is 0 whatever happens; its words are not.
        found = re.findall(r"UDP reflexive addr: (\S+):(\d+)", result.stdout + result.stderr)
        assert found, result.stdout + result.stderr
        assert {ip.strip("[]") for ip, _ in found} == {client}


def test_the_classic_client_is_not_answered(hosts: TwoHosts, server: Server) -> None:
    """RFC 3489 requests have no magic cookie; silence is the answer, and a counter."""
    with hosts.client.popen(["stun", hosts.server_ipv4[0], "1"]) as classic:
        try:
            totals = server.wait_for(1, "dropped.no_cookie", timeout=10)
        finally:
            classic.kill()  # it would wait for an answer for ever
        output, _ = classic.communicate(timeout=10)
    assert totals["answered"] == 0
    assert hosts.client_ipv4[0] not in output


def dissect(capture: Path) -> list[dict[str, Any]]:
    """Return what tshark makes of every packet, checksums verified."""
    command = ["tshark", "-r", str(capture), "-T", "json", "--no-duplicate-keys"]
    for preference in ("udp.check_checksum:TRUE", "ip.check_checksum:TRUE"):
        command += ["-o", preference]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [packet["_source"]["layers"] for packet in json.loads(output.stdout)]


def complaints(layers: object) -> list[object]:
    """Return the expert items that are more than "chat", which a mere port number provokes."""
    if isinstance(layers, list):
        return [found for layer in layers for found in complaints(layer)]
    if not isinstance(layers, dict):
        return []
    severity = int(layers.get("_ws.expert.severity", 0))
    here = [layers] if severity > CHAT or "_ws.malformed" in layers else []
    return here + [found for layer in layers.values() for found in complaints(layer)]


@pytest.mark.usefixtures("server")
def test_tshark_decodes_the_replies_without_complaint(
    hosts: TwoHosts, lab: Lab, tmp_path: Path
) -> None:
    # Without offload the kernel fills the checksums in, so that they can be verified.
    lab.offload(hosts.server, hosts.server_if, tx=False)
    lab.offload(hosts.client, hosts.client_if, tx=False)
    with hosts.client.enter():
        ring = Ring.open(hosts.client_if, outgoing=False)
    with ring, hosts.client.enter():
        asked = [
            query(resolve(address, 3478), timeout=5, fingerprint=fingerprint)
            for _, address in pairs(hosts)
            for fingerprint in (True, False)
        ]
        frames = [bytes(frame.data) for frame in ring.frames(timeout=0.5)]
    capture = tmp_path / "replies.pcap"
    write_pcap(capture, frames)

    replies = [packet for packet in dissect(capture) if "stun" in packet]
    assert len(replies) == len(asked)
    for packet, result in zip(replies, asked, strict=True):
        text = json.dumps(packet)
        assert complaints(packet) == []
        assert packet["udp"]["udp.checksum.status"] == "1"
        stun = packet["stun"]
        assert stun["stun.type"] == "0x0101"
        assert str(result.mapped.ip) in text
        assert f'"{result.mapped.port}"' in text
        # Wireshark computes the CRC itself and says whether it agrees: 1 is "good".
        statuses = re.findall(r'"stun.att.crc32.status": "(\d)"', text)
        assert statuses == (["1"] if result.fingerprint else [])
        assert result.fingerprint == ("stun.att.crc32" in text)
