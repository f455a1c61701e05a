"""What the tests of the stores share: a way to wait for coroutines, and a look at the file from outside."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from checks import run_child

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def run(awaitable: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine in an event loop of its own: each call of a test comes from another loop."""
    return asyncio.run(awaitable)


def told_without(framework: str) -> str:
    """Return what an adapter tells whoever imports it where its framework is not installed."""
    code = f"""
        import sys
        sys.modules["{framework}"] = None
        try:
            import persistedstate_stores.{framework}
        except ImportError as error:
            print(error)
    """
    return run_child(code)


#: What the other stores warn of, about themselves.
THEIR_WARNINGS = [
    "ignore:A configured store is unstable:UserWarning",
    "ignore:Call to deprecated setex:DeprecationWarning",
    "ignore:unclosed <socket:ResourceWarning",  # of clients whose server went away, collected in any test
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "adapters" in item.path.parts:
            for warning in THEIR_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
