"""The laboratory's network as a fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.nat.lab import NatNetwork, nat_network

if TYPE_CHECKING:
    from tests.lab import Lab


@pytest.fixture
def net(lab: Lab) -> NatNetwork:
    """Client, router and server; the router forwards everything."""
    return nat_network(lab)
