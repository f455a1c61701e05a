"""A vacuum that keeps no event loop waiting: a thread makes the new file while the state goes on changing.

It holds the lock for moments only: to copy the values that changed since the last snapshot, piece by piece, with what
changed meanwhile once more; and to add what came since then and put the new file in the place of the old one. Whatever
is in the way of that, the thread then does a vacuum as any other, which holds the lock throughout; so it is with states
that other processes change, too.
"""

from __future__ import annotations

import _thread
import gc
import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import persistedstate as module

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds after which the thread gives way to one that wants to go on.
_GIVES_WAY = 0.0005
#: Held by the one that changes what holds for all threads, and what that was, while it is changed.
_gentle = _thread.allocate_lock()
_before: list[tuple[float, bool]] = []

#: Containers that are copied until the lock is left to others, and for how many seconds.
_SLICE, _PAUSE = 200, 0.0001
#: How facts of the snapshot begin, which the new one makes stale.
_FACTS = (b'--- ["was",', b'--- ["hash",')


class _Untaken(MemoryError):
    """A value is needed that was not copied; not by any fault of the text."""


class _NotTaken:
    """Stands for a value that did not change, so that nobody should need it."""

    @property
    def _items(self) -> Any:
        raise _Untaken


_NOT_TAKEN = _NotTaken()


@contextmanager
def _gently() -> Iterator[None]:
    """Stop nobody for long: threads change soon, and no garbage is collected, which stops all of them.

    Each system call of the loop waits for this thread to give way, 5 ms by default; and what it makes, for a moment,
    would have all objects of the process looked through (25 ms with 30,000 containers; CPython 3.11).
    """
    with _gentle:
        _before.append((sys.getswitchinterval(), gc.isenabled()))
        sys.setswitchinterval(min(sys.getswitchinterval(), _GIVES_WAY))
        gc.disable()
        try:
            yield
        finally:
            _as_before()


def _as_before() -> None:
    while _before:
        interval, is_collecting = _before.pop()
        sys.setswitchinterval(interval)
        if is_collecting:
            gc.enable()


def _mend_in_child() -> None:
    """After a fork: the child lacks the thread that would do it."""
    global _gentle  # noqa: PLW0603 - another thread may hold the old one
    _gentle = _thread.allocate_lock()
    _as_before()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mend_in_child)


def begin(tree: Any) -> _Vacuum:
    """Begin a vacuum in a thread of its own; its caller has the lock."""
    vacuum = _Vacuum(tree)
    _thread.start_new_thread(vacuum.run, ())
    return vacuum


class _Vacuum:
    """One vacuum beside the loop; `data` and `made` are what the tree and its journal ask for."""

    def __init__(self, tree: Any) -> None:
        self.tree, self.pid = tree, os.getpid()
        self.path, self.descriptor = "", -1
        #: What the new file holds, and how much of it is written.
        self.text, self.data = b"", b""
        self.made = module._Made(-1, "", 0, is_lasting=False)
        #: The old file up to there is in it; the edits up to there are in its snapshot, or were looked at.
        self.size = self.count = self.seen = 0
        #: The values of the snapshot, and the edits that made them.
        self.items: dict[Any, Any] = {}
        self.past: list[Any] = []
        #: The entries that changes behind the snapshot touch.
        self.touched: dict[Any, None] = {}

    def run(self) -> None:
        tree, is_done = self.tree, False
        with suppress(Exception), _gently():  # what is wrong is told by the other way
            try:
                is_done = type(tree.journal) is module._Journal and self._take() and self._renew()
            finally:
                self._free()
        self._discard()
        with suppress(Exception), module._helping(), tree.turn():  # what is in the way of a turn the next change tells
            if not is_done and self._is_possible() and tree.journal.size > tree.limit:
                tree.surely_later(self._vacuum)
        if tree.beside is self:
            tree.beside = None

    def _vacuum(self) -> None:
        """Do a vacuum as any other; what a person saved is left to the next change, which merges it in its thread."""
        if not self.tree.journal.is_foreign():
            self.tree.vacuum_or_warn()

    def _free(self) -> None:
        """Free what was needed piece by piece: while a list is freed, no other thread runs.

        Before garbage is collected again, which would begin with all of it.
        """
        for content in (*self.items.values(), self.past):
            while type(content) is list and content:
                del content[-_SLICE:]
            while type(content) is dict and content:
                content.popitem()

    def _is_possible(self) -> bool:
        tree = self.tree
        return tree in module._open_trees and tree.halted is None and not tree.levels

    def _take(self) -> bool:
        """Copy what the new snapshot needs; False where this is not the way to make it."""
        tree, journal = self.tree, self.tree.journal
        with tree.lock:
            self.generation, self.document = tree.generation, tree.document.copied()
            if not self._is_sound():
                return False
            edits, items = [*tree.edits], {**tree.root._items}
            tree.forget_heads()  # so that each later change leaves an edit
        values = _Values(tree, items, self._needed(edits, items))
        with tree.lock:
            if not self._is_sound():
                return False
            self.items = values.up_to_date(tree.edits[len(edits) :])
            tree.forget_heads()
            self.document.edits, self.size, self.count = [*tree.edits], journal.size, len(tree.edits)
            self.path = journal._temporary_path()
            with module._registry_lock:
                self.descriptor = module._above_standard(module._system.open(self.path, module._NEW, 0o600))
            module._take_over_attributes(journal.descriptor, self.descriptor)
        return True

    def _is_sound(self) -> bool:
        """Tell whether the edits say all that happened since the snapshot."""
        return self._is_current() and not self.tree.document.is_doubtful

    def _needed(self, edits: list[Any], items: dict[Any, Any]) -> set[Any]:
        """Return the keys whose values the new snapshot needs."""
        document = self.document
        changed = set[Any]()
        for keys, operation, *arguments in edits:
            changed.update(module._touched(keys, operation, arguments, items))
        is_all = document.single or document.is_unusual
        small = {key for key in items if len(document.pieces.get(key, "")) <= module._MOST_TOLD}
        return {*items} if is_all else changed | small

    def _renew(self) -> bool:
        tree = self.tree
        self.document = self.document.renewed(self.items)
        self.text = self.document.text().encode()
        self._write(self.text)
        module._system.fsync(self.descriptor)
        with tree.lock:
            more = self._later() if self._is_current() else b""
        self._write(more)
        if tree.fsync:
            module._system.fsync(self.descriptor)
        with tree.lock:
            if not self._is_current() or not self._put_in_place():
                return False
        self._keep_name()
        return True

    def _is_current(self) -> bool:
        return self._is_possible() and self.tree.generation == self.generation

    def _write(self, data: bytes) -> None:
        module._write_all(self.descriptor, data)
        self.data += data

    def _later(self) -> bytes:
        """Return what came since the last look, as it has to stand behind the new snapshot."""
        tree, lines = self.tree, self.tree.journal._read_from(self.size).split(b"\n")
        self.size = tree.journal.size
        touched: dict[Any, None] = {}
        for keys, operation, *arguments in tree.edits[self.count + self.seen :]:
            touched.update(dict.fromkeys(module._touched(keys, operation, arguments, [*self.items, *self.touched])))
        self.seen = len(tree.edits) - self.count
        new = [key for key in touched if key not in self.touched] if not self.document.unended else []
        self.touched.update(touched)
        facts = [f"--- {self.document.fact(key, self.items.get(key, module._GONE))}".encode() for key in new]
        records = [line for line in lines if line and not line.startswith(_FACTS)]
        if not records:
            return b""
        separator = tree._separator_behind(self.document, self.text).encode() if self.data == self.text else b""
        return separator + b"".join([b"%b\n" % line for line in facts + records])

    def _put_in_place(self) -> bool:
        tree, journal = self.tree, self.tree.journal
        basis, journal.read = journal._glance(), None
        if basis is None or basis[:2] != journal.inode or journal.displaced >= 0 or journal.unfinished is not None:
            return False
        if module._system.fstat(journal.descriptor).st_nlink != 1:  # the others would go on with the old one
            return False
        written, more = len(self.data), self._later()
        self.data += more
        self.edits, self.past = tree.edits[self.count :], tree.edits
        self.made = module._Made(self.descriptor, self.path, written, is_lasting=not (more and tree.fsync))
        self.descriptor = -1  # from here on the journal sees to it
        try:
            tree._renew(self.document, basis, beside=self)
        finally:
            self.past = self.past if tree.edits is not self.past else []
        return True

    def carry_over(self) -> None:
        """Note in the tree what stands behind its new snapshot; may be called twice."""
        tree, later = self.tree, self.data[len(self.text) :]
        tree.edits = self.edits
        tree.limit = max(2 * len(self.text), module._VACUUM_FLOOR)
        if tree.document.is_doubtful:  # by now
            self.document.is_doubtful = True
        if later:
            tree.is_clean, tree._separator = False, ""
            tree.first_record, tree.attested = module._first_record(later.decode()), {*self.touched}

    def _keep_name(self) -> None:
        """Let the renaming last, as a vacuum does; but the lock is free."""
        tree, generation = self.tree, self.tree.generation
        try:
            with tree.journal.syncing:
                if not tree.journal.is_renamed:
                    tree.journal._keep_name()
        except OSError as error:
            with tree.lock:
                if self._is_possible() and tree.generation == generation:
                    tree._halt(error)

    def _discard(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            self._remove()
            module._system.close(descriptor)

    def _remove(self) -> None:
        with suppress(OSError):
            module._system.unlink(self.path)

    def stop(self) -> None:
        """Leave nothing behind: the state is closed, or this is a forked child."""
        if os.getpid() != self.pid:
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                module._system.close(descriptor)
        elif self.descriptor >= 0:
            self._remove()


class _Values:
    """Plain copies of the entries of a state that goes on changing, and then of all that changed meanwhile.

    items: the entries, as they are at first. needed: the keys of those to copy.
    """

    def __init__(self, tree: Any, items: dict[Any, Any], needed: set[Any]) -> None:
        self.tree, self.left = tree, _SLICE
        with tree.lock:
            self.values = {key: self._copied(item) if key in needed else _NOT_TAKEN for key, item in items.items()}

    def _copied(self, value: Any) -> Any:
        """Copy a value; others may change it in between, but not the list of what is in a container."""
        content, simple = module._items_of(value), module._SIMPLE
        if type(content) not in (dict, list):
            return content
        self._give_way()
        if type(content) is list:
            return [item if type(item) in simple else self._copied(item) for item in [*content]]
        pairs = [*content.items()]
        return {key: item if type(item) in simple else self._copied(item) for key, item in pairs}

    def _give_way(self) -> None:
        self.left -= 1
        if not self.left:
            self.left = _SLICE
            self.tree.lock.release()
            try:
                time.sleep(_PAUSE)  # who waits for the lock needs a moment to take it
            finally:
                self.tree.lock.acquire()

    def up_to_date(self, edits: list[Any]) -> dict[Any, Any]:
        """Copy again what edits tell of, and return all; the caller has the lock."""
        operations: dict[tuple[Any, ...], list[Any]] = {}
        for keys, *edit in edits:
            operations.setdefault(tuple(keys), []).append(edit)
        for path in sorted(operations, key=len):  # what is new in a container comes before what is inside of that
            self._copy_again(path, operations[path])
        return self.values

    def _copy_again(self, path: tuple[Any, ...], operations: list[Any]) -> None:
        node: Any = self.tree.root
        copied: Any = self.values
        for place, key in enumerate(path):
            if not place and copied.get(key) is _NOT_TAKEN and key in node._items:
                copied[key] = module._plain(node._items[key])
            try:
                node, copied = node._items[key], copied[key]
            except (LookupError, TypeError, AttributeError):  # a container around it is another one by now
                return
        again = _list_again if type(module._items_of(node)) is list else _dict_again
        again(copied, module._items_of(node), operations)


def _dict_again(copied: dict[Any, Any], items: dict[Any, Any], operations: list[Any]) -> None:
    keys: set[Any] = set()
    for operation, *arguments in operations:
        is_one = operation in ("set", "delete")
        keys.update(arguments[:1] if is_one else arguments[0] if operation == "update" else items)
    present = {key: module._plain(item) if key in keys else copied[key] for key, item in items.items()}
    copied.clear()
    copied.update(present)


def _list_again(copied: list[Any], items: list[Any], operations: list[Any]) -> None:
    places = [arguments[0] for operation, *arguments in operations if operation == "set"]
    since = len(copied)  # from there on items may be others
    for operation, *arguments in operations:
        if operation != "set":
            since = min(since, arguments[0] if operation in ("insert", "delete", "splice") else 0)
    for place in places:
        if place < since and place < len(items):
            copied[place] = module._plain(items[place])
    copied[since:] = [module._plain(item) for item in items[since:]]
