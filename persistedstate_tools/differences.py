"""What differs between two states, and what a record changes: path by path, and how that is printed."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any, NamedTuple

from persistedstate import _GONE, _MISFITS, StateDict, _apply, _flow_text, _operations, _origins, _plain, _same
from persistedstate_tools.excerpts import read_state
from persistedstate_tools.messages import NO
from persistedstate_tools.paths import path_text


class Change(NamedTuple):
    """One difference at a path: what was there and what is there now, `_GONE` for nothing; or a `note` instead."""

    path: tuple[Any, ...]
    old: Any
    new: Any
    note: str = ""


def differences(old: Any, new: Any, path: tuple[Any, ...] = ()) -> Iterator[Change]:
    """Yield, path by path, what differs between two plain values; the order of keys does not count."""
    if type(old) is dict and type(new) is dict:
        yield from _mapping_changes(old, new, path)
    elif type(old) is list and type(new) is list:
        yield from _list_changes(old, new, path)
    elif old is not new and (old is _GONE or new is _GONE or not _same(old, new)):
        yield Change(path, old, new)


def _mapping_changes(old: dict[Any, Any], new: dict[Any, Any], path: tuple[Any, ...]) -> Iterator[Change]:
    was = {(type(key), key): value for key, value in old.items()}
    now = {(type(key), key): value for key, value in new.items()}
    for kind_and_key in [*was, *(added for added in now if added not in was)]:
        below = (*path, kind_and_key[1])
        yield from differences(was.get(kind_and_key, _GONE), now.get(kind_and_key, _GONE), below)


def _list_changes(old: list[Any], new: list[Any], path: tuple[Any, ...]) -> Iterator[Change]:
    origins = _origins(old, new)
    kept = [index for index in origins if index is not None]
    for index in sorted(set(range(len(old))).difference(kept)):
        yield Change((*path, index), old[index], _GONE)
    if kept != sorted(kept):
        yield Change(path, old, new, f"in another order: {_flow_text(kept, quoted=False)}")
    for index, (origin, value) in enumerate(zip(origins, new, strict=True)):
        yield from differences(_GONE if origin is None else old[origin], value, (*path, index))


def told(root: StateDict, record: Any) -> Iterator[Change]:
    """Apply a record, and yield what it changes; raises as `_apply` does."""
    for operation in _operations(record):
        changes: list[Change] = []
        with suppress(*_MISFITS):  # which `_apply` will name
            name, path, *arguments = operation
            node: Any = root
            for key in path:
                node = node[key]
            changes += _TELLERS[name](node, tuple(path), *arguments)
        _apply(root, operation)
        yield from changes


def _told_set(node: Any, path: tuple[Any, ...], key: Any, value: Any) -> list[Change]:
    old = _plain(node.get(key, _GONE) if isinstance(node, StateDict) else node[key])
    return list(differences(old, value, (*path, key))) or [Change((*path, key), old, value)]


def _told_splice(node: Any, path: tuple[Any, ...], start: int, stop: int, values: list[Any]) -> list[Change]:
    old = [_plain(item) for item in node[start:stop]]
    pairs = enumerate(zip_longest(old, values, fillvalue=_GONE), start)
    return [change for index, (was, now) in pairs for change in differences(was, now, (*path, index))]


def _told_insert(node: Any, path: tuple[Any, ...], index: int, value: Any) -> list[Change]:
    start, _, _ = slice(index, None).indices(len(node))
    return [Change((*path, start), _GONE, value)]


def _told_update(node: Any, path: tuple[Any, ...], mapping: dict[Any, Any]) -> list[Change]:
    return [change for key, value in mapping.items() for change in _told_set(node, path, key, value)]


_TELLERS: dict[str, Callable[..., list[Change]]] = {
    "set": _told_set,
    "delete": lambda node, path, key: [Change((*path, key), _plain(node[key]), _GONE)],
    "insert": _told_insert,
    "splice": _told_splice,
    "order": lambda _, path, indexes: [Change(path, None, None, f"in another order: {indexes}")],
    "update": _told_update,
    "clear": lambda node, path: [Change(path, _plain(node), type(_plain(node))())],
}


class Style:
    """How standard output is written: with colours on a terminal, with arrows where the encoding has them."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.has_colours = self.is_terminal and not os.environ.get("NO_COLOR")
        self.arrow, self.more = "→", "…"
        try:
            (self.arrow + self.more).encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            self.arrow, self.more = "->", "..."

    def paint(self, text: str, colour: str) -> str:
        """Return a text in a colour: red, green, yellow or dim."""
        code = {"red": 31, "green": 32, "yellow": 33, "dim": 2}[colour]
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_colours else text

    def line(self, change: Change) -> str:
        """Write a change on one line: `~ last_id: 41 → 42`."""
        path = path_text(change.path)
        old, new = ("" if side is _GONE else _flow_text(side, quoted=False) for side in (change.old, change.new))
        if change.note:
            return f"~ {path}: {change.note}"
        if change.old is _GONE or change.new is _GONE:
            return f"{'+' if change.old is _GONE else '-'} {path}: {old}{new}"
        return f"~ {path}: {old} {self.arrow} {new}"

    def print(self, changes: Iterable[Change]) -> None:
        for change in changes:
            line = self.line(change)
            print(self.paint(line, {"+": "green", "-": "red", "~": "yellow"}[line[0]]))
        sys.stdout.flush()


def run_diff(options: Namespace) -> int:
    one, other = (_plain(read_state(name)[1]) for name in (options.file, options.other))
    changes = list(differences(one, other))
    Style().print(changes)
    return NO if changes else 0
