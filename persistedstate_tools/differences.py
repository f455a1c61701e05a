"""What differs between two states, and what a record changes, path by path."""

from __future__ import annotations

from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from persistedstate import _GONE, _MISFITS, _apply, _content, _flow_text, _origins, _plain, _same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistedstate import StateDict


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
    if isinstance(record, list) and record[:1] == ["transaction"]:
        _, records = record
        for inner in records:
            yield from told(root, inner)
        return
    changes: list[Change] = []
    with suppress(*_MISFITS):  # which `_apply` will name
        operation, path, *arguments = record
        node: Any = root
        for key in path:
            node = node[key]
        changes += _TELLERS[operation](_content(node), tuple(path), *arguments)
    _apply(root, record)
    yield from changes


def _told_set(items: Any, path: tuple[Any, ...], key: Any, value: Any) -> list[Change]:
    old = _plain(items.get(key, _GONE) if type(items) is dict else items[key])
    return list(differences(old, value, (*path, key))) or [Change((*path, key), old, value)]


def _told_splice(items: Any, path: tuple[Any, ...], start: int, stop: int, values: list[Any]) -> list[Change]:
    old = [_plain(item) for item in items[start:stop]]
    pairs = enumerate(zip_longest(old, values, fillvalue=_GONE), start)
    return [change for index, (was, now) in pairs for change in differences(was, now, (*path, index))]


def _told_insert(items: Any, path: tuple[Any, ...], index: int, value: Any) -> list[Change]:
    start, _, _ = slice(index, None).indices(len(items))
    return [Change((*path, start), _GONE, value)]


def _told_update(items: Any, path: tuple[Any, ...], mapping: dict[Any, Any]) -> list[Change]:
    return [change for key, value in mapping.items() for change in _told_set(items, path, key, value)]


_TELLERS: dict[str, Callable[..., list[Change]]] = {
    "set": _told_set,
    "delete": lambda items, path, key: [Change((*path, key), _plain(items[key]), _GONE)],
    "insert": _told_insert,
    "splice": _told_splice,
    "order": lambda _, path, indexes: [Change(path, None, None, f"in another order: {indexes}")],
    "update": _told_update,
    "clear": lambda items, path: [Change(path, _plain_items(items), type(items)())],
}


def _plain_items(items: Any) -> Any:
    """Return a plain copy of what a node holds."""
    if type(items) is dict:
        return {key: _plain(item) for key, item in items.items()}
    return [_plain(item) for item in items]
