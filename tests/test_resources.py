"""What a service holds open: from one plan to another, and what the next version makes of it."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.config import Mode, ServeConfig, plan
from pktstun.errors import ConfigError, EngineError
from pktstun.kernel import Datagram, UDPSocket
from pktstun.kernel._ffi import ffi
from pktstun.limiter import LimiterTables, RateLimit
from pktstun.resources import Resources, config_from, running_from
from pktstun.stun import Message, TransportAddress
from pktstun.users import Credentials
from tests.lab import require_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab import Namespace, TwoHosts

pytestmark = pytest.mark.native


# --- From one plan to another ---


@pytest.fixture
def inside(hosts: TwoHosts) -> Iterator[Namespace]:
    require_root()
    with hosts.server.enter():
        yield hosts.server


def config(*listen: str) -> ServeConfig:
    return ServeConfig(mode=Mode.RECVMMSG, listen=listen)


def waiting(resources: Resources, client: UDPSocket, server: str) -> set[str]:
    """Send some requests, and return the addresses of the sockets in which they wait."""
    workers = range(len(resources.plan.cpus))
    requests = [Datagram(Message.request().encode(), TransportAddress.parse(server))] * 20
    assert client.sendmmsg(requests) == len(requests)
    found = Counter[str]()
    for sock in (sock for worker in workers for sock in resources.sockets(worker)):
        found[str(sock.address)] += len(sock.recvmmsg(64))
    assert found.total() == len(requests)
    return set(+found)


@pytest.mark.root
@pytest.mark.usefixtures("inside")
def test_new_sockets_get_nothing_before_every_worker_reads_them() -> None:
    """A worker is replaced after the other, and what waits for the last one may not fit."""
    before = plan(config("0.0.0.0", "[::]:3478"))
    with (
        Resources(before) as resources,
        UDPSocket(TransportAddress.parse("127.0.0.1:0")) as client,
    ):
        assert waiting(resources, client, "127.0.0.1:3478") == {"0.0.0.0:3478"}
        resources.widen(plan(config("127.0.0.1"), before.running))
        assert waiting(resources, client, "127.0.0.1:3478") == {"0.0.0.0:3478"}
        assert resources.narrow()
        assert waiting(resources, client, "127.0.0.1:3478") == {"127.0.0.1:3478"}
        assert not resources.narrow()
        # And back: until the sockets of the address are hidden, they are preferred.
        resources.widen(plan(config("0.0.0.0"), resources.plan.running))
        assert waiting(resources, client, "127.0.0.1:3478") == {"127.0.0.1:3478"}
        assert resources.narrow()
        assert waiting(resources, client, "127.0.0.1:3478") == {"0.0.0.0:3478"}


@pytest.mark.root
@pytest.mark.usefixtures("inside")
def test_an_address_that_is_not_local_is_refused_at_once() -> None:
    before = plan(config("0.0.0.0"))
    with Resources(before) as resources:
        with pytest.raises(ConfigError, match=r"198\.51\.100\.9"):
            resources.widen(plan(config("198.51.100.9"), before.running))
        assert resources.plan is before
        assert [str(sock.address) for sock in resources.sockets(0)] == ["0.0.0.0:3478"]


@pytest.mark.root
@pytest.mark.usefixtures("inside")
def test_where_an_address_is_taken_meanwhile_the_old_ones_go_on() -> None:
    before = plan(config("127.0.0.1"))
    with (
        Resources(before) as resources,
        UDPSocket(TransportAddress.parse("127.0.0.1:0")) as client,
    ):
        resources.widen(plan(config("127.0.0.1:4000"), before.running))
        with (
            UDPSocket(TransportAddress.parse("127.0.0.1:4000"), share=False),
            pytest.raises(EngineError, match="in use"),
        ):
            resources.narrow()
        assert waiting(resources, client, "127.0.0.1:3478") == {"127.0.0.1:3478"}
        assert resources.narrow()
        assert waiting(resources, client, "127.0.0.1:4000") == {"127.0.0.1:4000"}


# --- Handing over ---


@pytest.fixture(name="service")
def service_fixture() -> Iterator[Resources]:
    """A service with a rate limit."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = ServeConfig(listen=(f"127.0.0.1:{port}",), rate_limit=RateLimit(1))
    with Resources(plan(config)) as resources:
        yield resources


def handed_over(service: Resources) -> dict[str, Any]:
    """Return what a successor in the same process gets: descriptors of its own."""
    state = service.hand_over()
    state["page"] = os.dup(state["page"])
    state["limiter"] = os.dup(state["limiter"])
    state["groups"] = [[os.dup(each) for each in group] for group in state["groups"]]
    return state


def key(resources: Resources) -> bytes:
    """What tells a table from others: the key of its hash."""
    assert resources.limiter is not None
    return bytes(ffi.buffer(resources.limiter.table(0), 16))


def test_the_limiter_goes_on(service: Resources, caplog: pytest.LogCaptureFixture) -> None:
    state = json.loads(json.dumps(handed_over(service)))
    with Resources(service.plan, state) as after:
        assert key(after) == key(service)
    assert caplog.text == ""


def test_a_limiter_without_a_version_is_the_first(service: Resources) -> None:
    state = handed_over(service)
    del state["limiter_version"]
    with Resources(service.plan, state) as after:
        assert (key(after) == key(service)) == (LimiterTables.version == 1)


def other_version(state: dict[str, Any]) -> None:
    state["limiter_version"] += 1


def other_size(state: dict[str, Any]) -> None:
    os.close(state["limiter"])
    state["limiter"] = os.memfd_create("tables")
    os.ftruncate(state["limiter"], 4096)


@pytest.mark.parametrize("change", [other_version, other_size])
def test_a_limiter_that_is_another_begins_anew(
    service: Resources,
    change: Callable[[dict[str, Any]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = handed_over(service)
    change(state)
    with Resources(service.plan, state) as after:
        assert key(after) not in {key(service), bytes(16)}
    assert "the rate limiter begins anew" in caplog.text


@pytest.mark.root
@pytest.mark.usefixtures("inside")
def test_a_successor_knows_the_credentials() -> None:
    users = {"ada": {"password": "countess of lovelace"}}
    credentials = Credentials(users, "example.org", nonce_lifetime=60)
    made = plan(replace(config("127.0.0.1"), credentials=credentials))
    with Resources(made) as resources:
        handed = json.loads(json.dumps(resources.hand_over()))
    adopted = config_from(handed).credentials
    assert adopted is not None
    assert adopted.hand_over() == credentials.hand_over()
    assert adopted.hand_over()["users"] == users
    assert running_from(handed).nonce_key == made.nonce_key

    # A version before knew neither.
    del handed["credentials"], handed["nonce_key"]
    assert config_from(handed).credentials is None
    assert running_from(handed).nonce_key == b""
