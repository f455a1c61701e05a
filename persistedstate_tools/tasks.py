"""Transactions of tasks: `async with STATE.transaction()` waits until it may begin, and the event loop goes on."""

from __future__ import annotations

import _thread
import os
import sys
import time
from collections import deque
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import persistedstate as module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds between two looks whether another thread has let the state go, at first and at most; and between two looks
#: of those who are woken when it is their turn.
_SHORT, _LONG, _WOKEN = 0.0002, 0.005, 0.5
#: Seconds that a thread whose transaction has ended leaves to the tasks that wait for it.
_GIVE_WAY = 0.0005
#: Seconds for which a thread that waits for the turn of an engine keeps others from using the connection, at first; and
#: at most, a tenth of the time that it has waited: who asks only for moments stands behind all who wait, each time.
_ASKING, _ASKING_LONGEST = 0.005, 0.1
#: Seconds after which such a wait was one for an answer.
_NO_ANSWER = 1.0
#: A process may stand in line by more than one descriptor.
_HAS_LINES = os.path.isdir("/proc/self/fd")


class _Asyncio:
    """A task of asyncio that waits."""

    def __init__(self) -> None:
        import asyncio

        self.loop, self.thread = asyncio.get_running_loop(), _thread.get_ident()
        self.future: Any = None

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until `wake`."""
        self.future = self.loop.create_future()
        timer = self.loop.call_later(seconds, self._go_on)
        try:
            await self.future
        finally:
            timer.cancel()

    def _go_on(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def wake(self) -> None:
        """End a rest; any thread may call it."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._go_on)


class _Trio:
    """A task of trio that waits."""

    def __init__(self) -> None:
        self.trio: Any = sys.modules["trio"]
        self.loop, self.thread = self.trio.lowlevel.current_trio_token(), _thread.get_ident()
        self.event = self.trio.Event()

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until `wake`."""
        with self.trio.move_on_after(seconds):
            await self.event.wait()
        self.event = self.trio.Event()

    def wake(self) -> None:
        """End a rest; any thread may call it."""
        with suppress(self.trio.RunFinishedError):
            self.loop.run_sync_soon(self._go_on)

    def _go_on(self) -> None:
        self.event.set()  # that of the present rest


def _waiter(tree: Any) -> Any:
    task = module._current_task()
    if task is not None and task.scheduler == "asyncio":
        return _Asyncio()
    if task is not None and task.scheduler == "trio.lowlevel":
        return _Trio()
    reason = "`async with STATE.transaction()` needs a task of asyncio or trio; use `with` elsewhere"
    raise module.StateError(tree.path, reason)


def wake(tree: Any) -> None:
    """Let those who wait for a state look whether it is their turn; called by who has let it go."""
    is_elsewhere = False
    for line in list(tree.lines.values()):
        with suppress(IndexError):  # its loop runs in another thread
            line[0].wake()
            is_elsewhere = is_elsewhere or line[0].thread != _thread.get_ident()
    if is_elsewhere and not tree.lock._is_owned():
        time.sleep(_GIVE_WAY)  # else a thread that begins the next one at once would always be the faster one


class _Hold:
    """How a task has a transaction: nothing in a file of this process, and the turn where there are other processes.

    A thread fetches the turn. While that waits for other processes, it leaves the lock to readers.
    """

    def __init__(self, tree: Any, waiter: Any) -> None:
        self.tree, self.waiter = tree, waiter
        self.is_wanted = True
        self.is_fetching = self.is_here = False
        #: When the thread began to wait.
        self.since = 0.0
        self.error: BaseException | None = None

    def enter(self, block: Any) -> bool:
        """Enter the transaction if nobody is in the way; tells whether it did."""
        tree = self.tree
        if isinstance(tree, module._SharedTree) and not self._has_turn():
            return False
        if not tree.lock.acquire(blocking=False):
            return False
        try:
            if _is_of_another_task(tree):
                return False
            if isinstance(tree, module._LogTree):
                tree.journal.depth = 0  # this is the outermost step of the turn
            block.__enter__()
        finally:
            tree.lock.release()
        return True

    def _has_turn(self) -> bool:
        if self.error is not None:
            raise self.error
        if not (self.is_here or self.is_fetching) and not _is_of_another_task(self.tree):
            self.is_fetching = True
            _thread.start_new_thread(self._fetch, ())
        return self.is_here

    def _fetch(self) -> None:
        self.since = time.monotonic()
        try:
            with module._helping():
                while self.is_wanted and not self.is_here:
                    with _line(self.tree):
                        while self.is_wanted and self._take():
                            time.sleep(_SHORT)
        except BaseException as error:  # noqa: BLE001 - handed on
            self.error = error
        self.is_fetching = False
        if self.is_wanted:
            self.waiter.wake()
        else:
            self._end()

    def _take(self) -> bool:
        """Take the turn if it is free; tells whether to stay in the line.

        Not where the lock is not free: who has it may be waiting behind us in the line.
        """
        tree = self.tree
        if not tree.lock.acquire(timeout=_LONG):
            return False
        begun = time.monotonic()
        try:
            asking = min(max(_ASKING, (begun - self.since) / 10), _ASKING_LONGEST)
            tree._begin_turn(asking if isinstance(tree, module._LogTree) else 0.0 if _HAS_LINES else inf)
            self.is_here = True
        except TimeoutError as error:
            if isinstance(error, module.StateError) or time.monotonic() - begun > _NO_ANSWER:
                raise
        finally:
            if not self.is_here:
                tree.journal.end_turn()
            tree.lock.release()
        return not self.is_here

    def give_up(self) -> None:
        """Leave the turn to others, without waiting for whoever has the lock."""
        self.is_wanted = False
        if self.is_here:
            _thread.start_new_thread(self._end, ())

    def _end(self) -> None:
        with self.tree.lock:
            self.end()

    def end(self) -> None:
        """Leave the turn to others; the caller has the lock."""
        self.is_wanted = False  # the thread that fetched it may not have looked yet, and would do it once more
        if self.is_here:
            self.is_here = False
            self.tree.journal.end_turn()


def _is_of_another_task(tree: Any) -> bool:
    """Tell whether a transaction of another task of this thread is open."""
    return bool(tree.levels) and tree.owner == _thread.get_ident() and not tree._is_in_task()


@contextmanager
def _line(tree: Any) -> Iterator[None]:
    """Stand in the line of the processes that share a file, by a descriptor of its own: the lock stays free."""
    is_file = not isinstance(tree, module._LogTree) and _HAS_LINES
    with ExitStack() as stack:
        with tree.lock:
            beside = tree.journal.beside if is_file else -1
            if beside >= 0:
                flags = os.O_RDWR | os.O_CLOEXEC
                descriptor = stack.enter_context(module._lent_descriptor(os.open, f"/proc/self/fd/{beside}", flags))
        if beside >= 0:
            move = partial(module._system.lock_byte, descriptor, module._QUEUE)
            stack.callback(move, "F_UNLCK", wait=False)  # a child that was forked meanwhile may still have it open
            move("F_WRLCK", wait=True)
        yield


async def enter(block: Any, state: Any) -> Any:
    """Enter a transaction, after those that were there before.

    Raises StateError where it was started by the transaction that it waits for, which may be waiting for it.
    """
    tree = state._tree
    if tree.levels and tree.owner == _thread.get_ident() and tree._is_in_task():
        block.hold = None
        return block.__enter__()
    waiter = _waiter(tree)
    tree.is_in_loops = True
    block.hold = hold = _Hold(tree, waiter)
    line = tree.lines.setdefault(waiter.loop, deque())
    line.append(waiter)
    try:
        await _in_turn(block, line)
    except BaseException:
        hold.give_up()
        raise
    finally:
        line.remove(waiter)
        if line:
            line[0].wake()
        else:
            tree.lines.pop(waiter.loop, None)
    return state


async def _in_turn(block: Any, line: deque[Any]) -> None:
    hold, pause = block.hold, _SHORT
    tree, waiter = hold.tree, hold.waiter
    patience: float = module._DEADLOCK
    while line[0] is not waiter or not hold.enter(block):
        is_woken = line[0] is not waiter or _is_of_another_task(tree) or hold.is_fetching
        pause = min(_WOKEN, module._DEADLOCK) if is_woken else min(2 * pause, _LONG)
        begun = time.monotonic()
        await waiter.rest(pause)
        patience = (
            patience - (time.monotonic() - begun) if tree.levels and tree._has_started_this() else module._DEADLOCK
        )
        if patience <= 0:
            tree._refuse_started("task")


async def leave(block: Any, *exception: Any) -> bool:
    """Leave a transaction; with `_fsync=True` wait until it is on the disk."""
    hold = block.hold
    if hold is None:
        return bool(block.__exit__(*exception))
    tree, later = hold.tree, _Later()
    is_ours = tree.owner == _thread.get_ident()  # else the loop was given up, and its thread may hold the lock for ever
    try:
        with tree.lock if is_ours else nullcontext():
            before = tree.syncer
            try:
                if tree.fsync is True:
                    tree.syncer = later
                is_caught = bool(block.__exit__(*exception))
            finally:
                if tree.syncer is later:
                    tree.syncer = before
                hold.end()
    finally:
        hold.end()  # an interrupt may have come in front of the first
    if later.is_needed:
        await _elsewhere(hold.waiter, tree.sync_outside)
    return is_caught


class _Later:
    """Notes that a change is to be synced, while a transaction ends."""

    is_needed = False

    def schedule(self) -> None:
        self.is_needed = True

    def stop(self) -> None:
        """Do nothing: where a signal handler closes the state, that writes all of it."""


async def _elsewhere(waiter: Any, function: Callable[[], object]) -> None:
    """Call a function in a thread of its own. Whoever is cancelled does not wait for it any more."""
    errors: list[BaseException | None] = []

    def run() -> None:
        try:
            function()
            errors.append(None)
        except BaseException as error:  # noqa: BLE001 - handed on
            errors.append(error)
        waiter.wake()

    _thread.start_new_thread(run, ())
    while not errors:
        await waiter.rest(_WOKEN)
    if errors[0] is not None:
        raise errors[0]
