"""An independent reader of state files: a YAML library and a replay of 30 lines; it shares no code with the module."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import yaml
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Every reader parses a whole stream: PyYAML and libyaml by YAML 1.1, ruamel.yaml by YAML 1.2.
READERS: dict[str, Callable[[str], Any]] = {
    "pyyaml": yaml.safe_load_all,
    "ruamel": lambda text: YAML(typ="safe", pure=True).load_all(text),
}
if yaml.__with_libyaml__:
    READERS["libyaml"] = lambda text: yaml.load_all(text, yaml.CSafeLoader)
#: For tests that read thousands of files.
FASTEST = "libyaml" if "libyaml" in READERS else "pyyaml"


def read(path: Path, reader: str = "pyyaml") -> dict[Any, Any]:
    """Return the state that the file at `path` holds: the first document, changed by every later one."""
    snapshot, *changes = list(READERS[reader](path.read_bytes().decode("utf-8"))) or [None]
    return replay({} if snapshot is None else snapshot, changes)


def replay(state: Any, changes: list[Any], *, is_told: bool = True) -> dict[Any, Any]:
    """Apply the `changes`, journal documents as a YAML reader returns them, to `state` and return the result.

    What they tell of the snapshot, in front of the first change of an entry, must be so, if it `is_told`.
    """
    told: set[Any] = set()
    for change in changes:
        if isinstance(change, dict):
            state = change
            told.clear()
        elif change[0] in {"was", "hash"}:
            _, [key], *value = change
            is_known = key in told or change[0] == "hash" or not is_told
            assert is_known or same([state[key]] if key in state else [], value), change
            told.add(key)
        elif change[0] == "transaction":
            state = replay(state, change[1])
        else:
            operation, path, *arguments = change
            node = state
            for key in path:
                node = node[key]
            _apply(node, operation, *arguments)
    assert isinstance(state, dict)
    return state


def _apply(node: Any, operation: str, *arguments: Any) -> None:
    match operation, arguments:
        case "set", (key, value):
            node[key] = value
        case "delete", (key,):
            del node[key]
        case "insert", (index, value):
            node.insert(index, value)
        case "clear", ():
            node.clear()
        case "update", (items,):
            node.update(items)
        case "splice", (start, stop, items):
            node[start:stop] = items
        case "order", (indexes,):
            node[:] = [node[index] for index in indexes]
        case _:
            msg = f"unknown record {operation!r} with {len(arguments)} arguments"
            raise ValueError(msg)


def same(left: Any, right: Any) -> bool:
    """Tell whether both are equal all the way down, in exact types, key order, signs of zero; NaN equals NaN.

    Aware datetimes are the same when wall clock and offset are: every reader has time zone objects of its own.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, dt.datetime):
        return bool(left.isoformat() == right.isoformat())
    return bool(left == right)
