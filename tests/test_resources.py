"""What one version hands over to the next, and what that makes of it."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.config import ServeConfig, plan
from pktstun.kernel._ffi import ffi
from pktstun.limiter import LimiterTables, RateLimit
from pktstun.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.native


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
