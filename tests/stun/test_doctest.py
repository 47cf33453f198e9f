"""The examples in the codec's docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from pktstun import stun

MODULES = [
    stun.__name__,
    *(f"{stun.__name__}.{m.name}" for m in pkgutil.iter_modules(stun.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_package_opens_with_an_example() -> None:
    assert doctest.testmod(stun).attempted > 0


def test_every_public_name_is_there() -> None:
    assert all(hasattr(stun, name) for name in stun.__all__)
    assert len(set(stun.__all__)) == len(stun.__all__)
