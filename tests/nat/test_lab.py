"""The laboratory's NATs are what they are called, as far as bare UDP sockets can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.nat.lab import NAT_TYPES, observe

if TYPE_CHECKING:
    from tests.nat.lab import NatNetwork

pytestmark = pytest.mark.root


def test_a_router_is_what_it_is_called(net: NatNetwork) -> None:
    found = {}
    for name, nat in NAT_TYPES.items():
        net.become(nat)
        found[name] = observe(net)
    assert found == NAT_TYPES
