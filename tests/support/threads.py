"""Threads beside a test, or all at once; and two that meet at each instruction.

Of those, one stands still while the other takes a step. No luck is involved: a watched lock tells when either thread
has to wait for the other.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import processes

import persistedstate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType

FILES = frozenset({persistedstate.__file__})
run_watched = processes._interrupt_by_monitoring if sys.version_info >= (3, 12) else processes._interrupt_by_tracing


@contextlib.contextmanager
def in_threads(*works: Callable[[], object], until: threading.Event | None = None) -> Iterator[None]:
    """Do each work in a thread of its own beside the block; then wait for all, and raise what one of them raised.

    until: set at the end of the block, for works that go on until then.
    """
    errors: list[BaseException] = []

    def do(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed on to the test
            errors.append(error)

    threads = [threading.Thread(target=do, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if until is not None:
            until.set()
        for thread in threads:
            thread.join()
    for error in errors:
        raise error


def together(*works: Callable[[], object]) -> None:
    """Do each work in a thread of its own, all at once, and raise what one of them raised."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], object]) -> None:
        barrier.wait()
        work()

    with in_threads(*(partial(begin, work) for work in works)):
        pass


class WatchedLock:
    """A tree's lock that calls a function in each thread that is about to wait for it."""

    def __init__(self, lock: Any, on_wait: Callable[[], None]) -> None:
        self._lock, self._on_wait = lock, on_wait

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._lock.acquire(blocking=False):
            self._on_wait()
            return bool(self._lock.acquire(blocking, timeout))
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Other:
    """The other thread: takes its steps when it is told to, and says when it took one or has to wait."""

    def __init__(self, state: Any, steps: Sequence[Callable[[], None]]) -> None:
        self._tree = state._tree
        self._lock = self._tree.lock
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._may: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._steps, self._left = steps, len(steps)
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Other:
        self._tree.lock = WatchedLock(self._lock, self._wait)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        self._thread.join(processes.PATIENCE)
        assert not self._thread.is_alive()
        self._tree.lock = self._lock
        for error in self._errors:
            raise error

    def step(self) -> None:
        """Let it take a step, if any is left, and go on when it did, or when it waits for this thread."""
        if self._left:
            self._left -= 1
            self._may.put(None)
            self._news.get(timeout=processes.PATIENCE)

    def finish(self) -> None:
        """Let it take all steps that are left, and do not wait for it."""
        while self._left:
            self._left -= 1
            self._may.put(None)

    def _wait(self) -> None:
        if threading.current_thread() is self._thread:
            self._news.put("waits")
        else:
            self.finish()

    def _run(self) -> None:
        for step in self._steps:
            self._may.get()
            try:
                step()
            except BaseException as error:  # noqa: BLE001 - handed on to the test
                self._errors.append(error)
            self._news.put("done")


def meet(
    state: Any, statement: Callable[[], object], number: int, steps: Sequence[Callable[[], None]], *, before: int = 0
) -> bool:
    """Run a statement; before its instruction of that number another thread takes a step, and the rest behind it.

    before: how many of the steps it takes before the statement. Returns whether the statement came to that instruction.
    """
    here, count = threading.get_ident(), 0

    def watch(_code: CodeType, _offset: int) -> None:
        nonlocal count
        if threading.get_ident() == here:
            count += 1
            if count == number:
                other.step()

    with Other(state, steps) as other, processes._uncollected():
        for _ in range(before):
            other.step()
        run_watched(watch, statement, FILES)
    return count >= number
