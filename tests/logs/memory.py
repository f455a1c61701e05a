"""A log in memory, with faults: the rules of an engine in a few lines, to test the tests and what uses a log."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

from persistedstate_logs import Contents, Forked, News, Overtaken, Position, Unknown

if TYPE_CHECKING:
    import random

_numbers = itertools.count()


class Memory:
    """What the logs of one name share; kept: how many records stay behind the text that holds them."""

    def __init__(self, kept: int = 1000) -> None:
        self.guard = threading.Condition()
        self.first = self.at = self.edited = Position(1, "first")
        self.text, self.kept = b"", kept
        self.entries: dict[Position, bytes | None] = {}
        self.holder: MemoryLog | None = None
        self.lease = 0.0

    @property
    def last(self) -> Position:
        return next(reversed(self.entries), self.first)

    def behind(self, position: Position) -> list[bytes]:
        return [entry for place, entry in self.entries.items() if place > position and entry is not None]


class MemoryLog:
    """One writer's view of a memory. A lost request or reply (with probability `faults`) is an Unknown."""

    path, settings = "memory://", ()

    def __init__(self, memory: Memory, chance: random.Random | None = None, faults: float = 0.0) -> None:
        self.memory, self.chance, self.faults = memory, chance, faults
        self._pending: tuple[tuple[bytes, Position, bool], Position] | None = None
        self._is_open = False

    def open(self, wait: float = 0.0) -> Contents:  # noqa: ARG002 - it is always there
        with self.memory.guard:
            return self._contents()

    def append(self, record: bytes, after: Position, *, last: bool = False) -> Position:
        position = self._enter(record, after, edit=False)
        if last:
            self.end_turn()
        return position

    def replace(self, text: bytes, after: Position, *, edit: bool = False) -> Position:
        memory = self.memory
        if edit:
            after = self._enter(text, after, edit=True)
        with memory.guard:
            if after <= memory.at:
                return after
            if after not in memory.entries:
                raise Forked
            memory.text, memory.at = text, after
            while len(memory.entries) > memory.kept and next(iter(memory.entries)) < after:
                memory.first = next(iter(memory.entries))
                del memory.entries[memory.first]
            return after

    def _enter(self, entry: bytes, after: Position, *, edit: bool) -> Position:
        what = (entry, after, edit)
        if self._pending is None or self._pending[0] != what:
            if self._is_open:
                raise Unknown
            self._pending = what, Position(after.number + 1, f"{next(_numbers)}")
        self._is_open = True
        self._may_fail()
        try:
            with self.memory.guard:
                self._add(self._pending[1], None if edit else entry, entry, after)
        except Exception:
            self._is_open = False
            raise
        self._may_fail()
        self._is_open = False
        return self._pending[1]

    def _add(self, position: Position, entry: bytes | None, text: bytes, after: Position) -> None:
        memory = self.memory
        if position in memory.entries:
            return
        if memory.last != after:
            self._news(after)
            raise Overtaken(is_held=False)
        if self._is_held():
            raise Overtaken(is_held=True)
        memory.entries[position] = entry
        if entry is None:
            memory.text, memory.at, memory.edited = text, position, position
        memory.guard.notify_all()

    def _may_fail(self) -> None:
        if self.chance is not None and self.chance.random() < self.faults:
            raise Unknown

    def read(self, after: Position) -> News | Contents:
        with self.memory.guard:
            return self._news(after)

    def _news(self, after: Position) -> News | Contents:
        memory = self.memory
        if after.number < memory.first.number:
            return self._contents()
        if after != memory.first and after not in memory.entries:
            raise Forked
        return self._contents() if after < memory.edited else News(memory.behind(after), memory.last)

    def _contents(self) -> Contents:
        return Contents(self.memory.text, self.memory.behind(self.memory.at), self.memory.last)

    def _is_held(self) -> bool:
        return self.memory.holder not in {None, self} and time.monotonic() < self.memory.lease

    def take_turn(self, wait: float) -> None:
        memory = self.memory
        with memory.guard:
            if not memory.guard.wait_for(lambda: not self._is_held(), wait):
                raise TimeoutError
            memory.holder, memory.lease = self, time.monotonic() + 10

    def end_turn(self) -> None:
        memory = self.memory
        with memory.guard:
            if memory.holder is self:
                memory.holder = None
                memory.guard.notify_all()

    def sync(self) -> None:
        pass

    def watch(self, after: Position, timeout: float) -> bool:
        with self.memory.guard:
            return self.memory.guard.wait_for(lambda: self.memory.last > after, timeout)

    def close(self) -> None:
        pass
