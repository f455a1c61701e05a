"""`_watch`: a thread that looks at what others do to a state, while nobody touches that."""

from __future__ import annotations

import atexit
import os
import selectors
import socket
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

import persistedstate
from persistedstate import (
    _PATIENCE,
    _QUIET,
    PersistedState,
    StateError,
    _Follower,
    _glance,
    _registry_lock,
    _SharedTree,
    _warn_afterwards,
)

#: Seconds between two looks; at most, while what is there cannot be taken over.
_PERIOD, _LONGEST = 1.0, 60.0

#: An object, and its `_watch`.
_Wish = tuple[weakref.ref[PersistedState], Any]
#: Those whose thread runs.
_watchers: list[Watcher] = []


class Watcher:
    """A thread that looks each second, and as soon as inotify tells that something happened in the folder.

    The looks alone see everything: inotify, which knows nothing of other machines and of folders above, only makes
    them come earlier.
    """

    def __init__(self, tree: Any, wishes: list[_Wish]) -> None:
        self.tree = tree
        self.wishes = wishes
        self.is_stopped = False
        #: In a context of its own: the state may have been opened inside of a transaction.
        target, name = partial(Context().run, self._run), f"watching {tree.path}"
        self.thread = threading.Thread(target=target, name=name, daemon=True)
        self.bell, self.button = socket.socketpair()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.bell, selectors.EVENT_READ)
        self.inotify: Any = None
        self.folders: set[int] = set()
        #: The look of the file of which the functions were told.
        self.told: Any = None
        #: What was wrong since the last time that nothing was; the look of that, and when to try that again.
        self.troubles = Counter[str]()
        self.failed: Any = None
        self.delay, self.due_at = _PERIOD, 0.0
        #: Seconds until the next look, if nothing tells; and how long the latest took.
        self.pause, self.cost = _PERIOD, 0.0

    def start(self) -> None:
        """Start the thread; where none can be started any more, say so."""
        try:
            self.thread.start()
        except RuntimeError as error:
            self._close()
            _warn_afterwards(f"{self.tree.path}: what others do is noticed at the next change only ({error})")

    def add(self, wish: _Wish) -> None:
        """Let one more object have its will."""
        self.wishes = [*[other for other in self.wishes if self._counts(other[0])], wish]

    def leave(self) -> None:
        """End the thread if no open object wants it, and wait for that, unless it waits for this one."""
        if not self._is_wanted():
            self.stop()
            if not self.tree.lock._is_owned():
                self.join(_PATIENCE)

    def stop(self) -> None:
        """Let the thread end as soon as it can."""
        self.is_stopped = True
        with suppress(OSError):  # it has ended
            self.button.send(b".")

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, at most so many seconds."""
        with suppress(RuntimeError):  # it was never started, or is this one
            self.thread.join(seconds)

    # -- What the thread does --

    def _run(self) -> None:
        try:
            self._listen()
            while self._goes_on():
                self._try()
                self._wait()
        finally:
            self._close()

    def _goes_on(self) -> bool:
        with _registry_lock:  # who comes from now on starts another one
            self.is_stopped = self.is_stopped or not self._is_wanted()
            return not self.is_stopped

    def _is_wanted(self) -> bool:
        tree = self.tree
        is_open = not tree.is_closing and (isinstance(tree, _Follower) or tree in persistedstate._open_trees)
        return is_open and bool(self._options())

    def _options(self) -> list[Any]:
        """Return what the objects want that are not closed."""
        return [option for reference, option in self.wishes if self._counts(reference)]

    def _counts(self, reference: weakref.ref[PersistedState]) -> bool:
        """Tell whether an object is open, or was forgotten while functions are to be told of changes."""
        state = reference()
        return bool(self.tree.watches) if state is None else not hasattr(state, "_refusal")

    def _listen(self) -> None:
        """Let inotify tell what happens, where that can be."""
        with suppress(ImportError, AttributeError, OSError):
            import ctypes

            import inotify_simple

            # Else it runs the program ldconfig, of which a script would hear that waits for its children.
            inotify_simple._libc = ctypes.CDLL(None, use_errno=True)
            with _registry_lock:
                self.inotify = inotify_simple.INotify()
            self.selector.register(self.inotify, selectors.EVENT_READ)
            self._follow_folders()

    def _follow_folders(self) -> None:
        """Listen to the folders of the file, and of the link to it; others may have taken their places."""
        from inotify_simple import flags

        names = [self._name(), os.path.realpath(self._name())]
        mask = flags.CLOSE_WRITE | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
        if isinstance(self.tree, (_Follower, _SharedTree)):  # others append to the file, and do not close it
            mask |= flags.MODIFY
        before, self.folders = self.folders, set()
        for folder in {os.path.dirname(name) for name in names}:
            with suppress(OSError):
                self.folders.add(self.inotify.add_watch(folder, mask))
        for number in before - self.folders:
            with suppress(OSError):  # the folder is gone
                self.inotify.rm_watch(number)

    def _wait(self) -> None:
        """Wait until it is time for a look."""
        if self.inotify is not None:
            self._follow_folders()
        events = self.selector.select(self.pause)
        if events and not self.is_stopped:
            self.bell.settimeout(max(_QUIET, 2 * self.cost))  # whoever saves a file does several things in a row
            with suppress(TimeoutError):
                self.bell.recv(1)
            self.inotify.read(timeout=0)

    def _try(self) -> None:
        """Look, and tell what goes wrong."""
        sight, started, self.pause = None, persistedstate._system.now(), _PERIOD
        try:
            sight = self._sight()
            if sight is not None and (sight != self.failed or persistedstate._system.now() >= self.due_at):
                self._look(sight)
                self.cost = persistedstate._system.now() - started
                self.failed, self.delay = None, _PERIOD
                self.troubles.clear()
        except (Warning, StateError, OSError) as error:
            self._put_off(sight)
            self._tell(error)
        except BaseException:  # noqa: BLE001 - what `on_change` calls may try to end the process
            sys.excepthook(*sys.exc_info())

    def _put_off(self, sight: Any) -> None:
        """Wait longer and longer with something that goes wrong, unless it changes: each try may cost something."""
        self.failed = sight
        self.due_at = persistedstate._system.now() + self.delay
        self.delay = min(2 * self.delay, _LONGEST)

    def _tell(self, error: Exception) -> None:
        """Tell once what is wrong, and only if it stays so: somebody may be in the middle of something."""
        reason = str(error) if isinstance(error, (Warning, StateError)) else f"{self.tree.path}: {error}"
        self.troubles[reason] += 1
        if isinstance(error, Warning) or self.troubles[reason] == 2:  # noqa: PLR2004
            _warn_afterwards(reason)

    def _look(self, sight: Any) -> None:
        """Call the functions if others did something, and take it over where that is wanted."""
        options = self._options()
        functions = [option for option in options if option is not True]
        if functions and sight != self.told and self._is_foreign(sight):
            self.told = sight
            for function in functions:
                self._call(function)
        if True in options:
            with self.tree.turn():
                if not (self.is_stopped or self.tree.is_closing):
                    self.tree.refresh()

    @staticmethod
    def _call(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException:  # noqa: BLE001 - the others shall be called, too
            sys.excepthook(*sys.exc_info())

    def _name(self) -> str:
        name: str = getattr(self.tree, "journal", self.tree).name
        return name

    def _sight(self) -> Any:
        """Return how the file looks, None where there cannot be anything new.

        A script that changes the state looks itself: as long as it does, a look would only be in its way.
        """
        glance = _glance(self._name())
        if isinstance(self.tree, _Follower):
            return None if glance is None else (glance,)
        if persistedstate._system.now() < self.tree.journal.due_at:
            self.pause = _QUIET
            return None
        return (glance,)

    def _is_foreign(self, sight: Any) -> bool:
        """Find out whether others did something, and let the next change take it over."""
        if isinstance(self.tree, _Follower):
            return bool(sight != (self.tree.seen.glance,))
        with self.tree.lock:
            is_foreign: bool = self.tree.journal.is_foreign()
        return is_foreign

    def _close(self) -> None:
        self.is_stopped = True
        with _registry_lock:
            if self in _watchers:
                _watchers.remove(self)
            self.let_go()

    def let_go(self) -> None:
        """Close what is open; in a forked child, too."""
        for part in self.selector, self.inotify, self.bell, self.button:
            if part is not None:
                part.close()


class LogWatcher(Watcher):
    """The same for a log on a server, by a connection of its own: each is for one thread."""

    def _listen(self) -> None:
        self.log = self.tree.journal.anew().log

    def _sight(self) -> Any:
        from persistedstate_logs import Forked

        journal = self.tree.journal
        position, is_new = journal.position, True
        with suppress(Forked):  # which the state finds out itself
            is_new = journal.descriptor < 0 or self.log.watch(position, 0.0)
        return position if is_new else None

    def _is_foreign(self, sight: Any) -> bool:
        with self.tree.lock:
            return bool(sight == self.tree.journal.position)  # else the script has written something

    def let_go(self) -> None:
        super().let_go()
        if hasattr(self, "log"):
            self.log.close()


def watch(state: PersistedState, option: Any) -> None:
    """Let what is behind a state be watched as its `_watch` says: by one thread for all its objects."""
    tree: Any = state._tree
    wish = weakref.ref(state), option
    with _registry_lock:
        if tree.watcher is None or tree.watcher.is_stopped:
            _start(tree, [wish])
        else:
            tree.watcher.add(wish)


def _start(tree: Any, wishes: list[_Wish]) -> None:
    kind = LogWatcher if hasattr(getattr(tree, "journal", None), "log") else Watcher
    tree.watcher = kind(tree, wishes)
    _watchers.append(tree.watcher)
    tree.watcher.start()


def _end_all() -> None:
    """End the threads in front of the end of the process, for which they could not do anything in order."""
    watchers = _watchers.copy()
    for watcher in watchers:
        watcher.stop()
    end = persistedstate._system.now() + _PATIENCE
    for watcher in watchers:
        watcher.join(max(0.0, end - persistedstate._system.now()))


def _mend_in_child() -> None:
    """After a fork, which ends all other threads, have new ones, if the child may go on with the state."""
    watchers = _watchers.copy()
    _watchers.clear()
    for watcher in watchers:
        watcher.is_stopped = True
        watcher.let_go()
        if watcher._is_wanted():
            _start(watcher.tree, watcher.wishes)


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mend_in_child)
