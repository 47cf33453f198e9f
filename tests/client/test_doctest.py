"""The examples in the clients' docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from pktstun import client

MODULES = [f"{client.__name__}.{module.name}" for module in pkgutil.iter_modules(client.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_there() -> None:
    assert all(getattr(client, name).__doc__ for name in client.__all__)
    assert sorted(client.__all__) == sorted(set(client.__all__))
