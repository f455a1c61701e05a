"""An endless, seeded stream of changes, and the plain model of what a state must hold after each of them.

Whoever has the seed can replay steps 1..k, in another process too. Imports nothing but the standard library, so that
the interpreter of persistedstate 26.1 can run it as well.
"""

from __future__ import annotations

import contextlib
import copy
import random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Containers that have as many items only shrink: a state stays small, however long the stream.
MOST_ITEMS = 8
#: Levels of containers below the root.
DEEPEST = 3

START: dict[str, Any] = {"counter": 0, "jobs": [], "settings": {}, "text": ""}


class Change(NamedTuple):
    """A method to call on the node at a path, the same for plain containers and for a state."""

    path: list[Any]
    method: str
    arguments: tuple[Any, ...]

    def apply(self, root: Any) -> None:
        """Make the change in `root`, which may be a state or a plain dict."""
        node = root
        for key in self.path:
            node = node[key]
        getattr(node, self.method)(*copy.deepcopy(self.arguments))


class Step(NamedTuple):
    """What a script does in one statement: a change, a transaction ("commit", "abort"), "vacuum" or "reopen"."""

    kind: str
    changes: list[Change]

    def perform(self, state: Any) -> None:
        """Do it to a state; "reopen" is up to the caller."""
        if self.kind == "vacuum":
            state.vacuum()
        elif self.kind in {"commit", "abort"}:
            with contextlib.suppress(Abort), state.transaction():
                self.apply(state)
                if self.kind == "abort":
                    raise Abort
        else:
            self.apply(state)

    def apply(self, root: Any) -> None:
        """Make the changes, one by one."""
        for change in self.changes:
            change.apply(root)


class Abort(Exception):  # noqa: N818 - no error, but the end of a transaction
    """Ends a transaction that shall leave nothing."""


class Workload:
    """A stream of steps; `model` is the state after the `number` steps that were drawn so far.

    modest: only what persistedstate 26.1 can do as well, and does in one record. weights: how often which kind comes.
    start: what the state holds before the first step, beside START.
    """

    def __init__(
        self,
        seed: int | str,
        *,
        modest: bool = False,
        weights: dict[str, int] | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.model: dict[str, Any] = {**copy.deepcopy(START), **(start or {})}
        self.number = 0
        self._chance = random.Random(seed)
        self._modest = modest
        weights = weights or {"change": 85, "commit": 8, "abort": 3, "vacuum": 3, "reopen": 1}
        self._kinds, self._weights = list(weights), list(weights.values())

    def draw(self) -> Step:
        """Return the next step, which the model has already taken."""
        self.number += 1
        (kind,) = self._chance.choices(self._kinds, self._weights)
        changes = {"change": 1, "commit": self._chance.randint(1, 4), "abort": self._chance.randint(1, 4)}.get(kind, 0)
        target = copy.deepcopy(self.model) if kind == "abort" else self.model
        step = Step(kind, [self._changed(target) for _ in range(changes)])
        if kind == "change" and not step.changes[0].path and step.changes[0].arguments[:1] == ("counter",):
            self.model["counter"] = self.number
            step = Step(kind, [Change([], "__setitem__", ("counter", self.number))])
        return step

    def take(self, steps: int) -> None:
        """Let the model go on by so many steps."""
        for _ in range(steps):
            self.draw()

    def _changed(self, root: dict[str, Any]) -> Change:
        change = self._choose(root)
        change.apply(root)
        return change

    def _choose(self, root: dict[str, Any]) -> Change:
        node, path = root, list[Any]()
        while len(path) < DEEPEST and self._chance.random() < (0.5 if path else 0.8):
            keys = [key for key, item in _pairs(node) if isinstance(item, dict | list)]
            if not keys:
                break
            path.append(self._chance.choice(keys))
            node = node[path[-1]]
        makers: list[Callable[[Any], tuple[Any, ...]]]
        if not path:
            makers = [self._set_root]
        elif isinstance(node, dict):
            makers = (
                [self._set_key, self._delete_key] if self._modest else [self._set_key, self._delete_key, self._dict]
            )
        else:
            makers = [self._add_item, self._change_item]
            makers += [] if self._modest else [self._slice, self._list]
        method, *arguments = self._chance.choice(makers)(node)
        return Change(path, method, tuple(arguments))

    def _set_root(self, _root: dict[str, Any]) -> tuple[Any, ...]:
        key = self._chance.choice(["counter"] * 12 + ["text"] * 4 + ["jobs", "settings"])
        value = {
            "counter": self.number,
            "text": self._text(),
            "jobs": [self._value()],
            "settings": {"k": self._value()},
        }
        return "__setitem__", key, value[key]

    def _set_key(self, _node: dict[str, Any]) -> tuple[Any, ...]:
        keys = [f"k{n}" for n in range(MOST_ITEMS)]
        return "__setitem__", self._chance.choice(keys), self._value()

    def _delete_key(self, node: dict[str, Any]) -> tuple[Any, ...]:
        return ("__delitem__", self._chance.choice(list(node))) if node else self._set_key(node)

    def _dict(self, node: dict[str, Any]) -> tuple[Any, ...]:
        return self._chance.choice(
            [
                ("update", {"k1": self._value(), "k2": self.number}),
                ("setdefault", "k3", self._value()),
                ("pop", "k1", None),
                ("popitem",) if node else ("clear",),
                ("__ior__", {"k0": self._value()}),
                ("clear",),
            ]
        )

    def _add_item(self, node: list[Any]) -> tuple[Any, ...]:
        if len(node) >= MOST_ITEMS:
            return "__delitem__", self._chance.randrange(len(node))
        if self._chance.random() < 0.5:
            return "append", self._value()
        return "insert", self._chance.randint(0, len(node)), self._value()

    def _change_item(self, node: list[Any]) -> tuple[Any, ...]:
        if not node:
            return "append", self._value()
        method = self._chance.choice(["__delitem__", "pop", "__setitem__"])
        index = self._chance.randrange(len(node))
        return (method, index, self._value()) if method == "__setitem__" else (method, index)

    def _slice(self, node: list[Any]) -> tuple[Any, ...]:
        start, stop = sorted(self._chance.choices(range(-2, len(node) + 2), k=2))
        values = [self._value() for _ in range(min(self._chance.randint(0, 3), MOST_ITEMS - len(node)))]
        every_second = slice(None, None, self._chance.choice([2, -2]))
        return self._chance.choice(
            [
                ("__setitem__", slice(start, stop), values),
                ("__setitem__", every_second, [self._value() for _ in node[every_second]]),
                ("__delitem__", slice(start, stop)),
                ("__delitem__", every_second),
            ]
        )

    def _list(self, node: list[Any]) -> tuple[Any, ...]:
        room = MOST_ITEMS - len(node)
        may_repeat = room >= len(node) and not any(
            isinstance(item, dict | list) for item in node
        )  # which a list shares
        return self._chance.choice(
            [
                ("extend", [self._value() for _ in range(min(2, room))]),
                ("__iadd__", [self._value()] if room > 0 else []),
                ("__imul__", 2 if may_repeat else 1),
                ("reverse",),
                ("insert", -1, self._value()) if room > 0 else ("clear",),
                ("pop",) if node else ("clear",),
                ("clear",),
            ]
        )

    def _value(self, depth: int = 0) -> Any:
        kind = self._chance.randrange(9 if depth < 2 else 6)
        if kind < 3:
            return self.number
        if kind < 6:
            return self._text()
        if kind == 6:
            return self._chance.choice([None, True, False, 0.5, -17, "", [], {}])
        items = range(self._chance.randint(0, 3))
        if kind == 7:
            return [self._value(depth + 1) for _ in items]
        return {f"k{n}": self._value(depth + 1) for n in items}

    def _text(self) -> str:
        return self._chance.choice(["yes", "12:30", "é", "a: b # c", "- x\n  y", "word " * 8, f"n{self.number}"])


def _pairs(node: Any) -> Iterable[tuple[Any, Any]]:
    return node.items() if isinstance(node, dict) else enumerate(node)
