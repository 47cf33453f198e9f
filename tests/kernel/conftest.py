"""The fixture of a quiet link."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.kernel.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    with closing(Wire(lab)) as wire:
        yield wire
