"""What a put and a get cost in a state file, and in the local stores that py-key-value-aio has itself.

    python -m pytest benchmarks/test_stores.py

shows pytest-benchmark's table: a round is 100 calls in a store that holds 500 entries. What is measured goes into
`extra_info` as `rows`, too, in the form that bench.py reads.
"""
# ruff: noqa: PLC0415 - each store is imported only where it is measured

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("key_value.aio", reason="py-key-value-aio is not installed")
pytest.importorskip("persistedstate_stores.key_value", reason="this persistedstate has no stores")

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

CALLS, ENTRIES, ROUNDS = 100, 500, 30
#: Rounds of a store that takes milliseconds for a call, and in a short run.
FEW_ROUNDS = 3
#: What a web application keeps about a session.
VALUE = {
    "user": "ada@example.org",
    "scopes": ["read", "write"],
    "visits": 17,
    "profile": {"name": "Ada", "theme": "dark"},
}


def state_file(folder: Path) -> Any:
    """Return a store in a state file."""
    from persistedstate_stores.key_value import PersistedStateStore

    return PersistedStateStore(folder / "x.state")


def synced_state_file(folder: Path) -> Any:
    """Return a store in a state file that is on the disk before a call returns."""
    from persistedstate_stores.key_value import PersistedStateStore

    return PersistedStateStore(folder / "x.state", _fsync=True)


def memory(_folder: Path) -> Any:
    """Return theirs in memory."""
    from key_value.aio.stores.memory import MemoryStore

    return MemoryStore()


def disk(folder: Path) -> Any:
    """Return theirs on diskcache, which is SQLite."""
    pytest.importorskip("diskcache", reason="diskcache is not installed")
    from key_value.aio.stores.disk import DiskStore

    return DiskStore(directory=folder / "disk")


def file_tree(folder: Path) -> Any:
    """Return theirs with a file for each entry, which waits for the disk."""
    pytest.importorskip("aiofile", reason="aiofile is not installed")
    from key_value.aio.stores.filetree import FileTreeStore

    return FileTreeStore(data_directory=folder / "tree")


#: The name of each store, what a put survives once it has returned, and how it is made.
STORES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "persistedstate": ("process crash", state_file),
    "persistedstate, _fsync=True": ("power loss", synced_state_file),
    "MemoryStore": ("memory", memory),
    "DiskStore": ("process crash", disk),
    "FileTreeStore": ("power loss", file_tree),
}


class Bench:
    """A store with entries in it, and the event loop in which it is measured."""

    def __init__(self, name: str, folder: Path, benchmark: Any, rounds: int) -> None:
        self.name, self.benchmark = name, benchmark
        self.rounds = FEW_ROUNDS if STORES[name][0] == "power loss" else rounds
        self.loop = asyncio.new_event_loop()
        self.store = STORES[name][1](folder)
        self.loop.run_until_complete(self.fill())

    async def fill(self) -> None:
        """Put the entries."""
        await self.store.put_many([f"k{number}" for number in range(ENTRIES)], [VALUE] * ENTRIES)

    def measure(self, case: str, calls: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Measure rounds of so many calls."""
        row = {"name": self.name, "durability": STORES[self.name][0], "note": "", "case": case, "unit": "s"}
        self.benchmark.extra_info["rows"] = [
            {**row, "count": CALLS, "limit": "", "limits": [], "apart": [0.0] * self.rounds}
        ]
        self.benchmark.pedantic(lambda: self.loop.run_until_complete(calls()), rounds=self.rounds, warmup_rounds=1)

    def close(self) -> None:
        """Close the store and the loop."""
        if hasattr(self.store, "close"):
            self.loop.run_until_complete(self.store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(params=STORES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, benchmark: Any) -> Iterator[Bench]:
    """Return each store, ready to be measured."""
    is_tiny = request.config.getoption("--tiny", default=False)
    bench = Bench(request.param, tmp_path, benchmark, FEW_ROUNDS if is_tiny else ROUNDS)
    yield bench
    bench.close()


def test_put(bench: Bench) -> None:
    """`await store.put(key, value, ttl=3600)`, over an entry that is there."""

    async def puts() -> None:
        for number in range(CALLS):
            await bench.store.put(f"k{number}", VALUE, ttl=3600)

    bench.measure("key-value put", puts)


def test_get(bench: Bench) -> None:
    """`await store.get(key)`."""

    async def gets() -> None:
        for number in range(CALLS):
            assert await bench.store.get(f"k{number}") is not None

    bench.measure("key-value get", gets)
