"""`async with STATE.transaction()`: tasks wait for each other, for threads and for processes, and the loop goes on."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import itertools
import os
import random
import threading
import time
import types
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import reopened, run_child, scratch
from processes import PATIENCE, Child, in_child, listing
from rounds import rounds as sized
from threads import in_threads, together
from workload import Abort

import persistedstate
from persistedstate import PersistedState, StateClosed, StateConflict, StateError, StateReadOnly, on_change, plain
from persistedstate_tools import beside, tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


READER = oracle.FASTEST


@contextlib.contextmanager
def held_by_a_thread(state: Any) -> Iterator[threading.Event]:
    """Let another thread have a transaction until the event that this gives is set."""
    begun, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with state.transaction():
            state.a += 1
            begun.set()
            assert may_end.wait(PATIENCE)

    with in_threads(hold, until=may_end):
        assert begun.wait(PATIENCE)
        yield may_end


async def until(is_so: Callable[[], object]) -> None:
    """Let the other tasks run until something is so."""
    while not is_so():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)


async def add(state: Any, *names: str) -> None:
    async with state.transaction():
        state.l.extend(names)


async def until_it_waits(state: Any, tasks: int = 1) -> None:
    """Let so many tasks come to where they wait for a transaction."""
    await until(lambda: sum(map(len, state._tree.lines.values())) >= tasks)


@pytest.mark.parametrize("is_shared", [False, True])
def test_tasks_get_a_transaction_in_the_order_in_which_they_came(path: Path, is_shared: bool) -> None:
    async def work(name: int) -> None:
        for _ in range(3):
            async with state.transaction():
                before = len(state.l)
                await asyncio.sleep(0)
                assert len(state.l) == before
                state.l.append(name)

    async def main() -> None:
        await asyncio.gather(*map(work, range(5)))

    with PersistedState(path, l=[], _shared=is_shared) as state:
        asyncio.run(main())

        assert plain(state.l) == [*range(5)] * 3
        assert oracle.read(path) == plain(state)
        assert state._tree.lines == {}


def test_what_is_in_the_block_is_one_record(path: Path) -> None:
    async def main() -> None:
        async with state.transaction() as shown:
            assert shown is state
            state.a = 2
            await asyncio.sleep(0)
            with state.transaction():
                state.b = 3
            with contextlib.suppress(Abort):
                async with state.transaction():
                    state.c = 4
                    raise Abort
            assert oracle.read(path) == {"a": 1}

    with PersistedState(path, a=1) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"a": 2, "b": 3}
        assert path.read_bytes().count(b'"transaction"') == 1


@pytest.mark.parametrize("how", ["raise", "cancel", "timeout"])
def test_what_ends_the_block_undoes_it(path: Path, how: str) -> None:
    async def work() -> None:
        async with state.transaction():
            state.a = 2
            state.l.append(1)
            if how == "raise":
                raise Abort
            await asyncio.sleep(PATIENCE)

    async def main() -> None:
        task = asyncio.create_task(work() if how != "timeout" else asyncio.wait_for(work(), 0.01))
        await until(lambda: state.a == 2 or task.done())
        if how == "cancel":
            task.cancel()
        with pytest.raises((Abort, asyncio.CancelledError, asyncio.TimeoutError)):
            await task
        await add(state, "next")

    with PersistedState(path, a=1, l=[]) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"a": 1, "l": ["next"]}


@pytest.mark.parametrize("holder", ["task", "thread"])
def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing_behind(path: Path, holder: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if holder == "task":
                await stack.enter_async_context(state.transaction())
            else:
                stack.enter_context(held_by_a_thread(state))
            tasks = [asyncio.create_task(add(state, name)) for name in "abcd"]
            await until_it_waits(state, 4)
            for task in (tasks[0], tasks[2]):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        await asyncio.gather(tasks[1], tasks[3])

    with PersistedState(path, a=1, l=[]) as state:
        asyncio.run(main())

        assert plain(state.l) == ["b", "d"]
        assert state._tree.lines == {}
        assert oracle.read(path) == plain(state)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_thread_is_waited_for_while_the_loop_goes_on(path: Path, is_shared: bool) -> None:
    """The thread ends its transaction only when the loop has come round."""

    async def main() -> None:
        with held_by_a_thread(state) as may_end:
            task = asyncio.create_task(add(state, "x"))
            await until_it_waits(state)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not task.done()
            may_end.set()
            await task

    with PersistedState(path, a=1, l=[], _shared=is_shared) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"a": 2, "l": ["x"]}


def test_a_thread_that_begins_one_transaction_after_the_other_lets_tasks_in(path: Path) -> None:
    is_over = threading.Event()

    def hurry() -> None:
        while not is_over.is_set():
            with state.transaction():
                state.a += 1
                sum(range(1000))

    async def main() -> None:
        for number in range(20):
            await add(state, str(number))

    with PersistedState(path, a=1, l=[]) as state:
        with in_threads(hurry, until=is_over):
            asyncio.run(asyncio.wait_for(main(), PATIENCE))

        assert plain(state.l) == [*map(str, range(20))]
        assert oracle.read(path) == plain(state)


def test_tasks_of_two_loops_wait_for_each_other(path: Path) -> None:
    async def work(name: str) -> None:
        for _ in range(30):
            async with state.transaction():
                before = state.a
                await asyncio.sleep(0)
                state.a = before + 1
                state.l.append(name)

    def run(name: str) -> None:
        async def main() -> None:
            await asyncio.gather(work(name), work(name))

        asyncio.run(main())

    with PersistedState(path, a=0, l=[]) as state:
        together(partial(run, "a"), partial(run, "b"))

        assert state.a == len(state.l) == 120
        assert oracle.read(path) == plain(state)


HOLDER = """
    import sys
    from persistedstate import PersistedState

    with PersistedState(sys.argv[1], _shared=True) as state:
        with state.transaction():
            state.a += 1
            print("begun")
            input()
        print("ended")
        input()
"""


@contextlib.asynccontextmanager
async def behind_a_process(state: Any, *names: str) -> AsyncIterator[tuple[Any, ...]]:
    """Let a process have a transaction until it is told to end it, and tasks wait for it, each to add a name."""
    with Child(HOLDER, os.fspath(state)) as child:
        child.expect("begun")
        tasks = [asyncio.create_task(add(state, name)) for name in names]
        await until_it_waits(state, len(tasks))
        yield child, *tasks


def test_a_process_is_waited_for_while_the_loop_goes_on(path: Path) -> None:
    """It ends its transaction only when the loop has come round and another task has read the state."""

    async def main() -> None:
        async with behind_a_process(state, "x") as (child, task):
            for _ in range(20):
                await asyncio.sleep(0.001)
                assert plain(state.l) == []
            assert not task.done()
            child.tell("")
            await task
            assert state.a == 2

    with PersistedState(path, a=1, l=[], _shared=True) as state:
        asyncio.run(main())

        assert plain(state) == {"a": 2, "l": ["x"]}
        assert state._tree.journal.is_in_turn is False


def test_a_change_behind_a_task_that_waits_for_a_process_gets_its_turn(path: Path) -> None:
    """The thread of the loop waits for the turn with the lock, which the task needs to take it."""

    async def main() -> None:
        async with behind_a_process(state, "x") as (child, task):
            await asyncio.sleep(0.02)  # it is the first in the line by now
            threading.Timer(0.05, child.tell, [""]).start()
            state.b = 2
            await task

    with PersistedState(path, a=1, l=[], _shared=True) as state:
        for _ in range(3):
            asyncio.run(asyncio.wait_for(main(), PATIENCE))

        assert plain(state) == {"a": 4, "l": ["x"] * 3, "b": 2}


def test_a_task_that_is_cancelled_while_a_process_has_the_turn_leaves_it(path: Path) -> None:
    async def main() -> None:
        async with behind_a_process(state, "x") as (child, task):
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            child.tell("")
            assert child.line() == "ended"
            with PersistedState(path, _shared=True) as other, other.transaction():
                other.a += 1
            await add(state, "y")

    with PersistedState(path, a=1, l=[], _shared=True) as state:
        asyncio.run(main())

        assert plain(state) == {"a": 3, "l": ["y"]}


def test_a_task_that_is_cancelled_when_it_has_the_turn_gives_it_back(path: Path) -> None:
    async def main(chances: int) -> None:
        with held_by_a_thread(state) as may_end:
            task = asyncio.create_task(add(state, "x"))
            await until_it_waits(state)
            await asyncio.sleep(0.005)
            may_end.set()
            for _ in range(chances):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with behind_a_process(state):
            pass

    with PersistedState(path, a=1, l=[], _shared=True) as state:
        for chances in (0, 5, 50):
            asyncio.run(main(chances))


def test_a_turn_that_came_is_not_fetched_again_when_the_task_is_through(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task has used the turn and ended it before the thread that fetched it looks up."""
    is_through, take = threading.Event(), tasks._Hold._take

    def take_and_rest(hold: Any) -> bool:
        is_in_line = take(hold)
        assert not hold.is_here or is_through.wait(PATIENCE)
        return is_in_line

    async def main() -> None:
        await add(state, "x")
        is_through.set()

    monkeypatch.setattr(tasks._Hold, "_take", take_and_rest)
    monkeypatch.setattr(tasks, "_WOKEN", 0.001)
    with PersistedState(path, a=1, l=[], _shared=True) as state:
        threads = _thread._count()
        asyncio.run(main())
        while _thread._count() > threads:
            time.sleep(0.001)

        assert state._tree.journal.is_in_turn is False
        with Child(HOLDER, path) as child:
            assert child.line() == "begun"


def test_what_a_thread_catches_up_for_a_task_is_no_news_for_a_statement_under_way(path: Path) -> None:
    """Between reading and writing of the statement a helper takes over what another process wrote: a conflict."""

    def seen(child: Child) -> int:
        child.tell("")
        end = time.monotonic() + PATIENCE
        while state.a == 1:
            assert time.monotonic() < end
            time.sleep(0.001)
        return 1

    async def main() -> None:
        async with behind_a_process(state, "x") as (child, task):
            with pytest.raises(StateConflict):
                state.a = state.a + seen(child)
            state.a += 1
            await task

    with PersistedState(path, a=1, l=[], _shared=True) as state:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))

        assert plain(state) == {"a": 3, "l": ["x"]}


def test_what_a_thread_catches_up_for_a_task_is_told_in_the_thread_of_the_task(path: Path) -> None:
    told: list[Any] = []

    async def main() -> None:
        async with behind_a_process(state, "x") as (child, task):
            child.tell("")
            await task

    with PersistedState(path, a=1, l=[], _shared=True) as state:
        on_change(state, lambda _, old, new: told.append((threading.get_ident(), old, new)), "a")
        asyncio.run(asyncio.wait_for(main(), PATIENCE))

        assert told == [(threading.get_ident(), 1, 2)]


def child_that_waits(end: int, other_end: int) -> int:
    """Fork a child that lives until its parent closes the other end of a pipe; return its pid."""
    pid = os.fork()
    if pid == 0:
        os.close(other_end)
        os.read(end, 1)
        os._exit(0)
    return pid


def test_a_child_that_is_forked_while_a_task_stands_in_line_does_not_stay_there(path: Path) -> None:
    async def main() -> None:
        async with behind_a_process(state, "x") as (holder, task):
            await until(lambda: persistedstate._lent)
            pids.append(child_that_waits(*ends))
            holder.tell("")
            await task

    ends, pids = os.pipe(), list[int]()
    with PersistedState(path, a=1, l=[], _shared=True) as state:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        with Path(f"{path}.shared").open("r+b") as beside:
            is_free = persistedstate._system.lock_byte(beside.fileno(), persistedstate._QUEUE, "F_WRLCK", wait=False)
        os.close(ends[1])
        os.waitpid(pids[0], 0)
        os.close(ends[0])

        assert is_free


def test_a_child_that_is_forked_while_the_disk_is_waited_for_has_no_descriptor_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would hold the lock of the file when its parent is killed."""
    with PersistedState(path, a=1, _fsync=0.001) as state:
        disk = HeldDisk(monkeypatch)
        state.a = 2
        assert disk.begun.wait(PATIENCE)
        files = in_child(lambda: [link.resolve() for link in Path("/proc/self/fd").iterdir()])
        disk.may_go_on.set()

        assert files.startswith("[")
        assert os.fspath(path) not in files


async def never(state: Any) -> None:
    async with state.transaction():
        raise AssertionError


def test_a_task_for_which_the_transaction_waits_is_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistedstate, "_DEADLOCK", 0.05)

    async def main() -> None:
        async with state.transaction():
            state.a = 2
            with pytest.raises(StateError, match="started this task is open, and perhaps waits for it"):
                await asyncio.create_task(never(state))
            state.a += 1

    with PersistedState(path, a=1, l=[]) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"a": 3, "l": []}
        assert state._tree.lines == {}


def test_a_task_that_a_transaction_started_may_wait_for_its_end(path: Path) -> None:
    async def main() -> None:
        async with state.transaction():
            task = asyncio.create_task(add(state, "later"))
            await until_it_waits(state)
            state.l.append("first")
        await task

    with PersistedState(path, l=[]) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"l": ["first", "later"]}


@pytest.mark.parametrize("change", [lambda state: state.l.append(1), lambda state: state.transaction().__enter__()])
def test_a_change_of_another_task_is_refused_and_told_how_to_wait(path: Path, change: Callable[[Any], object]) -> None:
    async def main() -> None:
        async def intrude() -> None:
            change(state)

        async with state.transaction():
            state.l.append(0)
            with pytest.raises(StateError, match=r"wait for it: `async with STATE.transaction\(\)`"):
                await asyncio.create_task(intrude())

    with PersistedState(path, l=[]) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"l": [0]}


def test_a_block_of_with_is_waited_for_too(path: Path) -> None:
    async def main() -> None:
        with state.transaction():
            task = asyncio.create_task(add(state, "later"))
            await until_it_waits(state)
            state.l.append("first")
        await asyncio.wait_for(task, PATIENCE)

    with PersistedState(path, l=[]) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"l": ["first", "later"]}


def test_a_task_that_waits_for_a_state_that_is_closed_is_told_so(path: Path) -> None:
    async def main() -> None:
        async with state.transaction():
            task = asyncio.create_task(add(state, "x"))
            await until_it_waits(state)
            state.a = 2
        state.close()
        with pytest.raises(StateClosed):
            await task
        with pytest.raises(StateClosed):
            await never(state)

    state: Any = PersistedState(path, a=1, l=[])
    asyncio.run(main())

    assert oracle.read(path) == {"a": 2, "l": []}


def test_a_state_that_is_read_only_says_so(path: Path) -> None:
    path.write_text("a: 1\n")
    with PersistedState(path, _readonly=True) as state, pytest.raises(StateReadOnly):
        asyncio.run(never(state))


@pytest.mark.parametrize("is_shared", [False, True])
def test_an_interrupt_in_front_of_the_end_undoes_the_block(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    async def leave(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "leave", leave)
    with PersistedState(path, l=[], _shared=is_shared) as state, contextlib.closing(asyncio.new_event_loop()) as loop:
        with pytest.raises(KeyboardInterrupt) as caught:
            loop.run_until_complete(add(state, "x"))

        assert plain(state) == {"l": []}
        state.l.append("y")
        assert oracle.read(path) == {"l": ["y"]}
        assert caught.value is not None


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_task_of_a_loop_that_is_given_up_leaves_its_block_when_it_is_destroyed(path: Path, is_shared: bool) -> None:
    """Its thread has ended with the lock."""
    loops: list[Any] = []
    begun = threading.Event()

    async def hold() -> None:
        async with state.transaction():
            state.l.append("x")
            begun.set()
            await asyncio.get_running_loop().create_future()

    def run() -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it tells that the task is destroyed
        loops.extend((loop, loop.create_task(hold())))
        loop.run_forever()

    with PersistedState(path, l=[], _shared=is_shared) as state:
        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(PATIENCE)
        loops[0].call_soon_threadsafe(loops[0].stop)
        thread.join(PATIENCE)
        loops.pop()
        gc.collect()

        assert plain(state) == {"l": []}
        state.l.append("y")
        assert oracle.read(path) == {"l": ["y"]}
    loops[0].close()


def test_outside_of_a_task_it_says_what_to_use(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        coroutine: Any = never(state)
        with pytest.raises(StateError, match="use `with` elsewhere"):
            coroutine.send(None)


def test_who_is_told_of_changes_is_told_once(path: Path) -> None:
    told: list[Any] = []

    async def main() -> None:
        async with state.transaction():
            state.a = 2
            state.a = 3
            assert told == []

    with PersistedState(path, a=1) as state:
        on_change(state, lambda *news: told.append(news))
        asyncio.run(main())

    assert told == [(("a",), 1, 3)]


def test_tasks_of_trio_wait_for_each_other(path: Path) -> None:
    trio = pytest.importorskip("trio")

    async def work(name: int) -> None:
        for _ in range(3):
            async with state.transaction():
                await trio.sleep(0)
                state.l.append(name)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in range(4):
                nursery.start_soon(work, name)
        with trio.move_on_after(0.01) as scope:
            async with state.transaction():
                state.l.append("undone")
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with held_by_a_thread(state) as may_end, trio.move_on_after(0.01) as scope:
            async with state.transaction():
                raise AssertionError
        assert scope.cancelled_caught
        assert may_end.is_set()
        async with state.transaction():
            state.l.append("last")

    with PersistedState(path, a=1, l=[]) as state:
        trio.run(main)

        assert sorted(plain(state.l)[:-1]) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert state.l[-1] == "last"
        assert state._tree.lines == {}
        assert oracle.read(path) == plain(state)


@sized(ci=60, nightly=6000)
@pytest.mark.parametrize("is_shared", [False, True])
def test_tasks_and_threads_that_are_cancelled_at_random_lose_nothing(
    path: Path, chance: random.Random, rounds: int, is_shared: bool
) -> None:
    """Each number stands in the file once if its block came to its end, else not at all."""
    kept: list[int] = []

    async def block(number: int) -> None:
        async with state.transaction():
            state.l.append(number)
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            state.counter += 1
            if chance.random() < 0.1:
                raise Abort
        kept.append(number)

    def change(number: int) -> None:
        with state.transaction():
            state.l.append(number)
            state.counter += 1
        kept.append(number)

    async def one(number: int) -> None:
        work: Awaitable[None] = asyncio.to_thread(change, number) if chance.random() < 0.2 else block(number)
        with contextlib.suppress(Abort, asyncio.TimeoutError):
            await (asyncio.wait_for(work, chance.random() * 0.01) if chance.random() < 0.3 else work)

    async def main() -> None:
        for first in range(0, 10 * rounds, 10):
            await asyncio.gather(*map(one, range(first, first + 10)))

    with PersistedState(path, l=[], counter=0, _shared=is_shared) as state:
        asyncio.run(main())  # which waits for the threads

        assert sorted(plain(state.l)) == sorted(kept)
        assert state.counter == len(kept)
        assert state._tree.lines == {}
        assert oracle.read(path) == plain(state)


# ---- The disk --------------------------------------------------------------------------------------------------------


class Disk:
    """Notes which thread waits for the disk, and fails as often as is wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> None:
        self.threads: list[int] = []
        self.failures, self.real = failures, persistedstate._system.fsync
        monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(self.fsync))

    def fsync(self, descriptor: int) -> None:
        self.threads.append(threading.get_ident())
        if self.failures:
            self.failures -= 1
            raise OSError(5, "Input/output error")
        self.real(descriptor)


class HeldDisk:
    """Keeps other threads than the first waiting for the disk until `may_go_on` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.real = persistedstate._system.fsync
        monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(self.fsync))

    def fsync(self, descriptor: int) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            self.begun.set()
            assert self.may_go_on.wait(PATIENCE)
        self.real(descriptor)


@pytest.mark.parametrize("is_shared", [False, True])
def test_behind_the_block_the_disk_has_it_and_another_thread_has_waited(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    async def main() -> None:
        disk = Disk(monkeypatch)
        async with state.transaction():
            state.a = 2
        assert len(disk.threads) == 1
        assert threading.get_ident() not in disk.threads
        async with state.transaction():
            pass
        assert len(disk.threads) == 1
        state.a = 3
        assert disk.threads[1:] == [threading.get_ident()]

    with PersistedState(path, a=1, _fsync=True, _shared=is_shared) as state:
        asyncio.run(main())
        assert oracle.read(path) == {"a": 3}


def test_a_disk_that_fails_once_costs_a_new_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with state.transaction():
            state.a = 2

    with PersistedState(path, a=1, _fsync=True) as state:
        inode = path.stat().st_ino
        Disk(monkeypatch, failures=1)
        asyncio.run(main())

        assert path.read_text() == "a: 2\n"
        assert path.stat().st_ino != inode


def test_a_disk_that_fails_is_told_behind_the_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match="Input/output error"):
            async with state.transaction():
                state.a = 2
        with pytest.raises(OSError, match="Input/output error"):
            state.a = 3

    with PersistedState(path, a=1, _fsync=True) as state:
        disk = Disk(monkeypatch, failures=3)
        asyncio.run(main())
        assert disk.failures == 0
        state.b = 4

        assert oracle.read(path) == plain(state) == {"a": 2, "b": 4}


def test_a_change_does_not_trust_a_disk_that_failed_for_another_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a failure once: who comes second would be told that all is well."""
    with PersistedState(path, a=1, b=1, _fsync=True) as state:
        inode = path.stat().st_ino
        disk = Disk(monkeypatch, failures=1)
        with pytest.raises(OSError, match="Input/output error"):
            state._tree.journal.sync()
        state.a = 2

        assert path.stat().st_ino != inode
        assert len(disk.threads) > 1
        assert reopened(path) == {"a": 2, "b": 1}


def test_who_is_cancelled_while_the_disk_is_waited_for_has_made_the_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        disk = HeldDisk(monkeypatch)
        task = asyncio.create_task(add(state, "x"))
        await until(disk.begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        disk.may_go_on.set()

    with PersistedState(path, l=[], _fsync=True) as state:
        asyncio.run(main())

        assert oracle.read(path) == plain(state) == {"l": ["x"]}
        state.l.append("y")
        assert oracle.read(path) == {"l": ["x", "y"]}


def test_seconds_until_a_sync_keep_nobody_waiting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread waits for the disk, others change and read the state."""
    with PersistedState(path, a=1, _fsync=0.001) as state:
        disk = HeldDisk(monkeypatch)
        state.a = 2
        assert disk.begun.wait(PATIENCE)
        changing = threading.Thread(target=partial(setattr, state, "a", 3))
        changing.start()
        changing.join(PATIENCE)
        assert plain(state) == oracle.read(path) == {"a": 3}
        disk.may_go_on.set()


# ---- Vacuums beside the loop -----------------------------------------------------------------------------------------

#: A text of a person, whose lines have to stay.
TEXT = """\
# what the script does
n: 0   # so many
jobs:   # one for each file
- {name: a, tries: 0}   # the first
- name: b   # the second
  tries: 0
table:
  x: [1, 2]
  # about y
  y: {deep: {l: []}}
unused: [1, 2, 3]   # nobody changes this
"""


def some_change(state: Any, chance: random.Random, number: int) -> None:
    """Make one of many kinds of changes."""
    jobs, table = state.jobs, state.table

    def place() -> int:
        return chance.randrange(len(jobs) or 1)

    changes: list[Callable[[], object]] = [
        lambda: setattr(state, "n", number),
        lambda: jobs.append({"name": f"j{number}", "tries": [number]}),
        lambda: jobs.insert(place(), {"name": "in", "tries": 0}),
        lambda: jobs[place()].update(tries=number, more={"of": [number]}),
        lambda: jobs[place()].__setitem__("tries", number),
        lambda: jobs.pop(place()),
        lambda: jobs.sort(key=str),
        lambda: jobs.__setitem__(slice(place(), None), [{"name": "s"}, number]),
        jobs.reverse,
        lambda: table.__setitem__(chance.choice("xyz"), chance.choice([[1], {"deep": {"l": [number]}}, number])),
        lambda: table.pop(chance.choice("xyz"), None),
        lambda: table.setdefault("y", {"deep": {"l": []}})["deep"]["l"].append(number),
        lambda: state.update({f"k{number % 3}": {"a": number}, "n": number}),
        lambda: state.pop(f"k{number % 3}", None),
        lambda: state.unused.append(number) if chance.random() < 0.1 else None,
        lambda: table.clear() if chance.random() < 0.2 else None,
    ]
    if chance.random() < 0.2:
        with contextlib.suppress(Abort), state.transaction():
            for _ in range(3):
                some_change(state, chance, number)
            if chance.random() < 0.5:
                raise Abort
        return
    with contextlib.suppress(IndexError, TypeError, AttributeError, KeyError):  # where something else is there by now
        chance.choice(changes)()


class Twins:
    """A state that is changed whenever a thread that vacuums it leaves the lock to others, and one without that."""

    def __init__(self, path: Path, twin: Path, chance: random.Random) -> None:
        for each in (path, twin):
            each.write_text(TEXT)
        # With True, others change the state also when all but their change is in the new file, and awaits the disk.
        self.state, self.twin = PersistedState(path, _fsync=chance.random() < 0.5), PersistedState(twin)
        self.path, self.tree, self.chance = path, self.state._tree, chance
        self.number, self.busy = 0, 0.0

    def intrude(self, _: object = None) -> None:
        """Make some changes of both."""
        while self.chance.random() < self.busy:
            self.number += 1
            seed = self.chance.random()
            for each in (self.state, self.twin):
                some_change(each, random.Random(seed), self.number)

    def sync(self, real: Callable[[int], None], descriptor: int) -> None:
        real(descriptor)
        if not self.tree.lock._is_owned():  # as it is where the thread gave that way up
            self.intrude()

    def vacuum(self) -> bool:
        """Let the thread do its work; return whether that was it, or the way of last resort."""
        self.busy = 0.9
        self.intrude()
        self.busy = 0.0
        self.twin.vacuum()
        self.busy = self.chance.choice([0.0, 0.3, 0.7])
        self.tree.limit = 0
        self.tree.beside = vacuum = beside._Vacuum(self.tree)
        vacuum.run()
        self.busy = 0.0
        return self.tree.document is vacuum.document

    def check(self) -> None:
        content = plain(self.twin)
        assert self.tree.beside is None
        assert oracle.same(plain(self.state), content)
        assert oracle.same(oracle.read(self.path, READER), content)
        assert oracle.same(reopened(self.path), content)

    def close(self) -> None:
        self.state.close()
        self.twin.close()


@sized(ci=400, nightly=40_000)
def test_changes_in_the_middle_of_a_vacuum_are_in_the_file(
    path: Path, chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = persistedstate._system.fsync, 0
    monkeypatch.setattr(beside, "_SLICE", 1)
    with scratch() as another:
        for number in itertools.count():
            if number >= rounds and done > number:
                break
            twins = Twins(path, another, chance)
            monkeypatch.setattr(beside, "time", types.SimpleNamespace(sleep=twins.intrude))
            monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(partial(twins.sync, real)))
            for _ in range(3):
                done += twins.vacuum()
                twins.check()
                assert listing(path.parent) == ["x.state"]
            twins.close()
            monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(real))

            text = path.read_text()
            assert oracle.same(oracle.read(path, READER), oracle.read(another, READER))
            assert text.startswith("# what the script does\nn: ")
            assert all(comment in text for comment in ("   # so many\n", "   # one for each file\n", "\nunused: ["))


def due(state: Any) -> None:
    """Let a vacuum be due at the next change."""
    state._tree.limit = 0


async def until_vacuumed(state: Any) -> None:
    await until(lambda: state._tree.beside is None)


async def vacuum_beside(state: Any) -> None:
    """Make a change at which a vacuum is due, and let the other tasks run until a thread has made it."""
    due(state)
    state.n = 1
    await until_vacuumed(state)


def test_a_vacuum_that_is_due_in_a_loop_is_made_by_a_thread_while_the_loop_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is ready when the loop has come round and has changed the state."""

    async def main() -> None:
        due(state)
        state.n = 1
        await until(disk.begun.is_set)
        for number in range(10):
            state.n += 1
            state.jobs.append(number)
            async with state.transaction():
                state.table["x"].append(number)
            await asyncio.sleep(0.001)
            assert oracle.read(path) == plain(state)
        generation = state._tree.generation
        disk.may_go_on.set()
        await until_vacuumed(state)
        assert state._tree.generation == generation + 1

    path.write_text(TEXT)
    with PersistedState(path) as state:
        disk = HeldDisk(monkeypatch)
        asyncio.run(main())

        text = path.read_text()
        assert text.startswith("# what the script does\nn: 1   # so many\n")
        assert oracle.read(path) == plain(state) == reopened(path)
        assert text.count('["was",["n"],1]') == text.count('["was",["n"]') == 1
        assert "unused" not in text[text.index("\n---") :]


def test_what_a_person_changes_below_what_came_during_a_vacuum_wins(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file of a killed script tells of the new snapshot, not of the one before."""

    async def main() -> None:
        due(state)
        state.n = 1
        await until(disk.begun.is_set)
        state.n += 1
        disk.may_go_on.set()
        await until_vacuumed(state)

    path.write_text(TEXT)
    with PersistedState(path) as state:
        disk = HeldDisk(monkeypatch)
        asyncio.run(main())
        text = path.read_text()
        line = text.split("\n")[1]
        assert line == "n: 1   # so many"
        assert '--- ["set",[],"n",2]' in text
        killed = tmp_path / "x.state.killed"
        killed.write_text(text.replace(line, "n: 500   # mine"))
        try:
            with PersistedState(killed) as other:
                assert other.n == 500
        finally:
            killed.unlink()


def test_with_fsync_all_is_on_the_disk_when_the_new_file_has_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    system: Any = persistedstate._system

    def noted(name: str) -> Any:
        real = getattr(system, name)

        def call(*arguments: Any) -> Any:
            if threading.get_ident() != threading.main_thread().ident or name == "replace":
                calls.append(name)
            return real(*arguments)

        return call

    async def main() -> None:
        due(state)
        state.n = 1
        await asyncio.sleep(0)
        while state._tree.beside is not None:
            state.n += 1
            await asyncio.sleep(0)

    path.write_text(TEXT)
    with PersistedState(path, _fsync=True) as state:
        with monkeypatch.context() as patch:
            for name in ("write", "fsync", "replace"):
                patch.setattr(persistedstate._System, name, staticmethod(noted(name)))
            patch.setattr(persistedstate, "_sync_folder", lambda _: calls.append("folder"))
            asyncio.run(main())

        before = calls[: calls.index("replace")]
        assert before.count("write") >= 1
        assert before[-1] == "fsync"
        assert calls.count("folder") == 1  # by the thread, or by the first change that has to be on the disk
        assert calls.index("folder") > calls.index("replace")
        assert oracle.read(path) == plain(state)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_vacuum_that_fails_beside_the_loop_is_tried_as_any_other_and_warns_as_that(
    path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    async def main() -> None:
        await vacuum_beside(state)
        state.n = 2

    path.write_text(TEXT)
    with PersistedState(path) as state:
        disk = Disk(monkeypatch, failures=failures)
        with pytest.warns(RuntimeWarning, match="no vacuum") if failures > 1 else contextlib.nullcontext():
            asyncio.run(main())

        disk.failures = 0
        assert oracle.read(path) == plain(state) == reopened(path)
        assert state.n == 2
        assert ("n: 1 " in path.read_text()) is (failures == 1)


def test_a_renaming_that_does_not_last_is_told_by_the_next_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)

    def sync_folder(_folder: str) -> None:
        raise OSError(5, "Input/output error")

    async def main() -> None:
        await vacuum_beside(state)
        disk.failures = 1
        with pytest.raises(OSError, match="Input/output error"):
            state.n = 2

    path.write_text(TEXT)
    with PersistedState(path) as state:
        with monkeypatch.context() as patch:
            patch.setattr(persistedstate, "_sync_folder", sync_folder)
            asyncio.run(main())
        state.n = 3

        assert oracle.read(path) == plain(state)
        assert state.n == 3


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_is_raised_by_the_next_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await vacuum_beside(state)
        with pytest.raises(RuntimeWarning, match="no vacuum"):
            state.n = 2
        state.n = 3

    path.write_text(TEXT)
    with PersistedState(path) as state:
        disk = Disk(monkeypatch, failures=9)
        asyncio.run(main())
        disk.failures = 0

        assert oracle.read(path) == plain(state)
        assert state.n == 3


def edit(state: Any) -> None:
    path = Path(os.fspath(state))
    path.write_text(path.read_text().replace("unused: [1, 2, 3]", "unused: [7]"))


def link(state: Any) -> None:
    os.link(state, os.fspath(state) + ".link")


def close(state: Any) -> None:
    state.close()
    assert listing(Path(state._refusal.path).parent) == ["x.state"]


@pytest.mark.parametrize("event", [close, edit, link, lambda state: state.vacuum()])
def test_what_comes_in_the_middle_of_a_vacuum_makes_it_give_up(
    path: Path, monkeypatch: pytest.MonkeyPatch, event: Callable[[Any], None]
) -> None:
    """Nothing is lost and nothing left behind, also not for a moment when the state is closed."""

    async def main() -> None:
        due(state)
        state.n = 1
        await until(disk.begun.is_set)
        state.n = 2
        tree = state._tree
        event(state)
        disk.may_go_on.set()
        await until(lambda: tree.beside is None)
        if event is edit:
            state.refresh()

    path.write_text(TEXT)
    state: Any = PersistedState(path)
    disk = HeldDisk(monkeypatch)
    asyncio.run(main())
    state.close()

    assert path.read_text() == TEXT.replace("n: 0", "n: 2").replace("1, 2, 3", "7" if event is edit else "1, 2, 3")
    if event is link:
        other = path.with_suffix(".state.link")
        assert other.read_bytes() == path.read_bytes()
        other.unlink()


def test_what_a_person_saves_in_the_middle_of_a_vacuum_is_merged_by_the_next_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not behind the back of the script, in a thread of which it knows nothing."""
    told: list[Any] = []

    async def main() -> None:
        due(state)
        state.n = 1
        await until(disk.begun.is_set)
        edit(state)
        disk.may_go_on.set()
        await until_vacuumed(state)
        assert told == []
        assert state.unused == [1, 2, 3]
        state.n = 2
        assert told == [(threading.get_ident(), [7])]

    path.write_text(TEXT)
    with PersistedState(path) as state:
        disk = HeldDisk(monkeypatch)
        on_change(state, lambda *news: told.append((threading.get_ident(), news[2])), "unused")
        asyncio.run(main())

    assert path.read_text() == TEXT.replace("n: 0", "n: 2").replace("1, 2, 3", "7")


def test_elsewhere_a_vacuum_is_made_at_once(path: Path) -> None:
    path.write_text(TEXT)
    with PersistedState(path) as state:
        due(state)
        state.n = 1

        assert path.read_text() == TEXT.replace("n: 0", "n: 1")


def test_a_vacuum_that_is_due_in_a_thread_of_a_state_that_a_loop_uses_is_made_beside_it(path: Path) -> None:
    async def main() -> None:
        async with state.transaction():
            state.n = 1
        due(state)
        await asyncio.to_thread(setattr, state, "n", 2)
        await until(lambda: path.read_text() == TEXT.replace("n: 0", "n: 2"))
        await until_vacuumed(state)

    path.write_text(TEXT)
    with PersistedState(path) as state:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_shared_state_is_vacuumed_beside_the_loop_too(path: Path) -> None:
    threads: list[int] = []

    async def main() -> None:
        await vacuum_beside(state)

    path.write_text(TEXT)
    with PersistedState(path, _shared=True) as state:
        real = state._tree.journal.replace

        def replace(*arguments: Any) -> None:
            threads.append(threading.get_ident())
            real(*arguments)

        state._tree.journal.replace = replace
        asyncio.run(main())

        assert path.read_text() == TEXT.replace("n: 0", "n: 1")
    assert threads
    assert threading.get_ident() not in threads


def test_who_is_told_of_changes_is_not_told_of_a_vacuum(path: Path) -> None:
    told: list[Any] = []

    async def main() -> None:
        await vacuum_beside(state)
        state.n = 2

    path.write_text(TEXT)
    with PersistedState(path) as state:
        on_change(state, lambda *news: told.append(news))
        asyncio.run(main())

    assert told == [(("n",), 0, 1), (("n",), 1, 2)]


KILLED = """
    import asyncio, os, random, sys
    import persistedstate
    from persistedstate import PersistedState

    persistedstate._VACUUM_FLOOR = 3000
    chance = random.Random(sys.argv[2])

    async def work(name):
        while True:
            async with state.transaction():
                state.counts[name] += 1
                await asyncio.sleep(0)
                state.l.append([name, state.counts[name]])
                if len(state.l) > 50:
                    del state.l[:40]
            os.write(1, f"{name} {state.counts[name]}\\n".encode())
            if chance.random() < 0.3 and not state._tree.levels:
                state.total += 1
            await asyncio.sleep(chance.random() * 0.0005)

    async def main():
        await asyncio.gather(*map(work, "abc"))

    state = PersistedState(sys.argv[1], counts=dict.fromkeys("abc", 0), l=[], total=0, _fsync=sys.argv[3] == "True")
    asyncio.run(main())
"""


@pytest.mark.parametrize("fsync", [False, True])
@sized(ci=20, nightly=1000)
def test_a_script_that_is_killed_in_the_middle_loses_nothing(
    path: Path, chance: random.Random, rounds: int, fsync: bool
) -> None:
    known = dict.fromkeys("abc", 0)
    for _ in range(rounds):
        with Child(KILLED, path, chance.random(), fsync) as child:
            for _ in range(chance.randrange(1, 400)):
                name, said = child.line().split()
                known[name] = int(said)
        with PersistedState(path) as state:
            for name, number in known.items():
                assert number <= state.counts[name]
            for name in "abc":
                numbers = [number for each, number in state.l if each == name]
                assert numbers == sorted(set(numbers))
                assert not numbers or numbers[-1] == state.counts[name]
            known = plain(state.counts)
        assert listing(path.parent) == ["x.state"]


ENDED = """
    import asyncio, os, sys, warnings
    warnings.simplefilter("error")
    from persistedstate import PersistedState, plain

    def held(descriptor, real=os.fsync):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            may_go_on.wait(60)
        real(descriptor)

    async def main():
        state._tree.limit = 0
        state.n = 1
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert state._tree.beside is not None
        state.n = 2
        later = threading.Timer(0.2, may_go_on.set)
        later.daemon = True
        later.start()
        {how}

    import persistedstate, threading
    begun, may_go_on = threading.Event(), threading.Event()
    persistedstate._System.fsync = staticmethod(held)
    state = PersistedState(sys.argv[1])
    asyncio.run(main(), debug=True)
"""


@pytest.mark.parametrize(
    "how", ["pass", "sys.exit()", "os._exit(0)", "os.fork() or os._exit(0)", "os.fork() and os.wait()", "state.close()"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_script_that_ends_in_the_middle_of_a_vacuum_loses_nothing_and_hangs_nowhere(path: Path, how: str) -> None:
    path.write_text(TEXT)

    assert run_child(ENDED.format(how=how), path) == ""

    with PersistedState(path) as state:
        assert state.n == 2
        assert listing(path.parent) == ["x.state"]
