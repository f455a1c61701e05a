"""What an operation does to a node, and where that is, for those who check it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from persistedstate import _GONE, StateDict, StateList, _Image


def changes_of(node: Any, operation: str, arguments: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values that an operation puts into a node, `_GONE` for what it takes away."""
    if operation in ("set", "insert"):
        yield arguments[0], arguments[1]
    elif operation == "splice":
        for item in arguments[2]:
            yield 0, item
    elif operation == "update":
        yield from arguments[0].items()
    elif isinstance(node, StateDict):
        for key in arguments if operation == "delete" else [*node]:
            yield key, _GONE


def length_after(node: Any, operation: str, arguments: tuple[Any, ...]) -> int:
    """Return how long a node will be after an operation."""
    length = len(node)
    if operation in ("clear", "order"):
        return len(arguments[0]) if arguments else 0
    if operation == "splice":
        return length - len(range(length)[arguments[0] : arguments[1]]) + len(arguments[2])
    if operation == "insert":
        return length + 1
    if operation == "delete":
        return length - len(arguments)
    if operation in ("set", "update") and isinstance(node, StateDict):
        return length + sum(key not in node for key in (arguments[0] if operation == "update" else arguments[:1]))
    return length


def changes_since(image: _Image) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and present values of what changed in a node, `_GONE` for what is no longer there."""
    kept, items = image.kept, image.node._items
    if type(items) is list:
        first = image.extent - len(kept)
        yield from enumerate(items[first:], first)
        return
    for key in {**kept, **items} if image.extent else kept:
        if kept.get(key, _GONE) is not items.get(key, _GONE):
            yield key, items.get(key, _GONE)


def steps_to(node: Any) -> tuple[Any, ...]:
    """Return the path to a node as far as types tell it apart: all items of a list have one."""
    steps = []
    while (parent := node._parent) is not None:
        steps.append(step_in(parent, node._key))
        node = parent
    return tuple(steps[::-1])


def step_in(node: Any, key: Any) -> Any:
    return None if isinstance(node, StateList) else normal(key)


def normal(key: Any) -> Any:
    """Let all keys of a mapping have one path that are no strings."""
    return key if type(key) is str else ...
