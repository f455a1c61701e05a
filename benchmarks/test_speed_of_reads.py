"""What reading costs, in time and in memory."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from harness import IS_OLD, OURS, Entrant, Limit, Race, Scale, Shelf, content_of, samples_of
from stores import ReadDict, Store, able, opened

from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("kind", able("read"))
def test_attribute_read(kind: type[Store], race: Race, tmp_path: Path) -> None:
    """`STATE.counter`."""
    content = {"counter": 0}
    limit = Limit("a plain dict", ReadDict(tmp_path, content).read)
    with opened(kind, tmp_path, content) as store:
        race("attribute read", store.entrant, store.read, limit)


@pytest.mark.parametrize("kind", able("read_nested"))
def test_nested_read(kind: type[Store], race: Race, tmp_path: Path) -> None:
    """`STATE["a"]["b"]`."""
    content = {"a": {"b": 0}}
    limit = Limit("a plain dict", ReadDict(tmp_path, content).read_nested)
    with opened(kind, tmp_path, content) as store:
        race("nested read", store.entrant, store.read_nested, limit)


def growth(action: Callable[[], object]) -> int:
    """Return the bytes that the result of an action occupies, with all that the action left behind."""
    gc.collect()
    tracemalloc.start()
    kept = action()
    gc.collect()
    occupied, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return occupied


def walk(node: Any) -> None:
    """Read all that a state holds."""
    for value in node.values() if hasattr(node, "values") else node:
        if hasattr(value, "__iter__") and not isinstance(value, str):
            walk(value)


def whole(path: Path) -> PersistedState:
    """Open a state and read all of it."""
    state = PersistedState(path)
    walk(state)
    return state


@pytest.mark.skipif(IS_OLD, reason="26.1 would need minutes under tracemalloc")
def test_memory(race: Race, scale: Scale, shelf: Shelf, tmp_path: Path) -> None:
    """Memory of a state of 1 MB, opened, and then read to its last leaf; against json.loads of the same."""
    path = shelf.copy(scale.megabyte, tmp_path / "x.state")
    text = json.dumps(content_of(scale.megabyte))
    entrant, limit = Entrant(OURS), "plain dicts and lists"
    opened_only = samples_of("memory of 1 MB, opened", entrant, limit, unit="B")
    all_read = samples_of("memory of 1 MB, all read", entrant, limit, unit="B")
    open_state: list[PersistedState] = []

    def measure(row: dict[str, Any], action: Callable[[Path], PersistedState]) -> None:
        row["limits"].append(growth(lambda: json.loads(text)))
        row["samples"].append(growth(lambda: open_state.append(action(path))))
        open_state.pop().close()

    def measure_both() -> None:
        measure(opened_only, PersistedState)
        measure(all_read, whole)

    whole(path).close()
    race.report(measure_both, opened_only, all_read)
