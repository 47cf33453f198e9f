"""The Kubernetes manifest: its form, and that what it runs serves and passes its own probes."""

from __future__ import annotations

import http.client
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import pktstun
from pktstun.observe import RUN
from pktstun.stun import PORT
from tests.deploy.test_container import PROGRAM
from tests.lab import require_root
from tests.netns.server import Server
from tools import dev

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab

FILE = dev.ROOT / "tools" / "deploy" / "kubernetes.yaml"
OBJECTS: dict[str, Any] = {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text())}
SPEC = OBJECTS["DaemonSet"]["spec"]
POD = SPEC["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = ("startupProbe", "livenessProbe")


def test_everything_is_in_its_namespace() -> None:
    name = OBJECTS["Namespace"]["metadata"]["name"]
    others = [each for kind, each in OBJECTS.items() if kind != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {name}


def test_the_pods_are_those_of_the_set() -> None:
    labels = SPEC["template"]["metadata"]["labels"]
    assert SPEC["selector"]["matchLabels"].items() <= labels.items()


def test_the_server_sees_its_clients_and_no_variables_of_services() -> None:
    assert POD["hostNetwork"] is True
    assert POD["enableServiceLinks"] is False
    (port,) = CONTAINER["ports"]
    assert (port["containerPort"], port["hostPort"], port["protocol"]) == (PORT, PORT, "UDP")


def test_its_version_is_the_project_s() -> None:
    assert CONTAINER["image"].rpartition(":")[2] == pktstun.__version__


def test_it_is_given_what_rings_and_takeover_take_and_no_more() -> None:
    context = CONTAINER["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    become = {"SETUID", "SETGID", "SETPCAP"}
    assert set(context["capabilities"]["add"]) == become | {"NET_RAW", "BPF", "NET_ADMIN"}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert "privileged" not in context


def test_the_quality_of_service_is_guaranteed() -> None:
    resources = CONTAINER["resources"]
    assert resources["requests"] == resources["limits"]
    assert float(resources["limits"]["cpu"]).is_integer()


def test_one_node_at_a_time_is_updated_in_place() -> None:
    assert SPEC["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    (seconds,) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1:]
    assert int(seconds) + 10 <= POD["terminationGracePeriodSeconds"]


def test_what_is_mounted_is_there() -> None:
    mounted = {each["name"]: each["mountPath"] for each in CONTAINER["volumeMounts"]}
    assert mounted.keys() == {each["name"] for each in POD["volumes"]}
    config = CONTAINER["args"][CONTAINER["args"].index("--config") + 1]
    directory, _, name = config.rpartition("/")
    assert mounted["configuration"] == directory
    assert name in OBJECTS["ConfigMap"]["data"]


def test_what_is_written_is_no_part_of_the_image() -> None:
    """The root file system is read-only, and the status socket has to be somewhere."""
    mounted = {each["mountPath"]: each for each in CONTAINER["volumeMounts"]}
    volumes = {each["name"]: each for each in POD["volumes"]}
    for path in (str(RUN), "/var/lib/pktstun"):
        assert "emptyDir" in volumes[mounted[path]["name"]]
        assert not mounted[path].get("readOnly")


@pytest.mark.root
def test_what_it_runs_passes_its_probes(lab: Lab, tmp_path: Path) -> None:
    require_root()
    node, client = lab.namespace("node"), lab.namespace("client")
    lab.veth(node, "eth0", client, "c0")
    lab.address(node, "eth0", "10.77.0.1/24", "fd77::1/64")
    lab.address(client, "c0", "10.77.0.2/24")
    config = tmp_path / "pktstun.toml"
    config.write_text(OBJECTS["ConfigMap"]["data"]["pktstun.toml"])
    verb, *rest = CONTAINER["args"]
    assert (verb, rest[0]) == ("serve", "--config")
    query = [sys.executable, "-m", "pktstun"]
    with Server(node, ["--config", str(config)]) as server:
        assert "mode=ring iface=eth0" in server.ready
        for probe in PROBES:
            program, *words = CONTAINER[probe]["exec"]["command"]
            assert program == PROGRAM
            assert node.run([*query, *words]).returncode == 0, probe
        probe = CONTAINER["readinessProbe"]["httpGet"]
        with node.enter():
            connection = http.client.HTTPConnection(probe["host"], probe["port"], timeout=5)
            connection.request("GET", probe["path"])
        assert connection.getresponse().status == 200
        connection.close()
        asked = client.run([*query, "query", "10.77.0.1", "--timeout", "5"], check=True)
        assert asked.stdout.startswith("10.77.0.2:")
        assert server.totals()["ring_packets"] >= 1
