"""Suite L: threads and asyncio tasks that share a state lose nothing, and never mix into each other's transactions."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import queue
import random
import sys
import threading
import time
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import reopened, run_child, scratch
from processes import PATIENCE, listing
from rounds import rounds as sized
from rounds import stride
from threads import WatchedLock, meet, together
from workload import Abort

import persistedstate
from persistedstate import PersistedState, StateClosed, StateError, plain
from persistedstate_tools import beside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

THREADS = 8
READER = oracle.FASTEST  # these tests read thousands of files


def in_each(work: Callable[[int], object]) -> None:
    """Do the work in every thread, all at once; it is given the number of the thread."""
    together(*(partial(work, mine) for mine in range(THREADS)))


class Worker:
    """A thread's share of the work: it knows by itself what it has done."""

    def __init__(self, state: Any, mine: int, chance: random.Random) -> None:
        self.state, self.mine, self.chance = state, mine, chance
        self.added = 0
        self.items: list[int] = []

    def step(self) -> None:
        """Do one of the things that threads do."""
        kind = self.chance.choices(["add", "append", "move", "abort", "vacuum"], [30, 30, 25, 14, 1])[0]
        getattr(self, f"_{kind}")()

    def _add(self) -> None:
        with self.state._thread_lock:
            self.state.counter += 1
        self.added += 1

    def _append(self) -> None:
        number = len(self.items)
        self.state.items_of[str(self.mine)].append(number)
        self.items.append(number)

    def _move(self) -> None:
        """Move a unit to another account: the sum is constant in every record."""
        with self.state.transaction():
            self.state.accounts[self.mine] -= 1
            self.state.accounts[self.chance.randrange(THREADS)] += 1
            assert sum(self.state.accounts) == 0

    def _abort(self) -> None:
        with contextlib.suppress(Abort), self.state.transaction():
            self.state.counter += 1000
            self.state.accounts[self.mine] += 1000
            self.state.items_of[str(self.mine)].clear()
            raise Abort

    def _vacuum(self) -> None:
        self.state.vacuum()


def opened(path: Path, **options: Any) -> Any:
    accounts = [0] * THREADS
    return PersistedState(path, counter=0, accounts=accounts, items_of={str(n): [] for n in range(THREADS)}, **options)


@pytest.mark.stress
@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fsync", [False, 0.002])
@sized(ci=1000, nightly=100_000)
def test_threads_that_count_transact_and_vacuum_lose_nothing(
    path: Path, chance: random.Random, rounds: int, fsync: bool | float
) -> None:
    with opened(path, _fsync=fsync) as state:
        workers = [Worker(state, mine, random.Random(chance.random())) for mine in range(THREADS)]

        def work(mine: int) -> None:
            for _ in range(rounds):
                workers[mine].step()

        in_each(work)

        assert state.counter == sum(worker.added for worker in workers)
        assert sum(state.accounts) == 0
        assert plain(state.items_of) == {str(worker.mine): worker.items for worker in workers}
        content = plain(state)
        assert oracle.read(path) == content
    assert oracle.read(path) == content


@pytest.mark.stress
@pytest.mark.usefixtures("hurried")
@sized(ci=300, nightly=30_000)
def test_what_threads_change_during_vacuums_beside_them_is_in_the_file(
    path: Path, chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that makes a vacuum leaves the lock to the others behind each container, and for each `fsync`."""

    def work(mine: int) -> None:
        for _ in range(rounds):
            workers[mine].step()
            tree.limit = 0  # a vacuum is due at each change, until one is under way
            with state._thread_lock:
                assert oracle.same(oracle.read(path, READER), plain(state))

    monkeypatch.setattr(beside, "_SLICE", 1)
    with opened(path, _fsync=True) as state:
        tree, workers = state._tree, [Worker(state, mine, random.Random(chance.random())) for mine in range(THREADS)]
        generation, tree.is_in_loops = tree.generation, True

        in_each(work)
        while tree.beside is not None:
            time.sleep(0)

        assert tree.generation > generation
        assert plain(state.items_of) == {str(worker.mine): worker.items for worker in workers}
        assert oracle.read(path) == plain(state) == reopened(path)


@pytest.mark.stress
@pytest.mark.usefixtures("hurried")
@sized(ci=50, nightly=5000)
def test_threads_that_go_on_while_one_closes_are_told_and_lose_nothing(
    path: Path, chance: random.Random, rounds: int
) -> None:
    """Each ends with StateClosed, and the file holds exactly what they had done until then."""
    for _ in range(rounds):
        path.unlink(missing_ok=True)
        state = opened(path)
        workers = [Worker(state, mine, random.Random(chance.random())) for mine in range(THREADS)]
        steps = chance.randrange(60)

        def work(mine: int, state: Any = state, workers: list[Worker] = workers, closing: int = steps) -> None:
            if mine == 0:
                for _ in range(closing):
                    workers[0].step()
                state.close()
            with pytest.raises(StateClosed):
                while True:
                    workers[mine].step()

        in_each(work)

        content = oracle.read(path)
        assert content["counter"] == sum(worker.added for worker in workers)
        assert sum(content["accounts"]) == 0
        assert content["items_of"] == {str(worker.mine): worker.items for worker in workers}
        assert listing(path.parent) == [path.name]


class Stop(BaseException):
    """What another thread raises in one that works."""


class End(BaseException):
    """What another thread raises to end one."""


class Stopped:
    """A thread that works until another one raises an exception in it, as often as that is wanted."""

    def __init__(self, step: Callable[[], object]) -> None:
        self.step, self.left = step, 0
        self.go, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.reached: queue.SimpleQueue[None] = queue.SimpleQueue()  # no exception can come within its `put`
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            try:
                while True:
                    self.step()
                    self.left -= 1
                    if self.left == 0:
                        self.reached.put(None)
            except Stop:
                self.stopped.release()
            except End:
                return

    def stop(self, after: int, error: type[BaseException] = Stop) -> None:
        """Let the thread work on, and raise the error in it as soon as it has taken so many steps."""
        self.left = after
        self.go.release()
        self.reached.get(timeout=PATIENCE)
        raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(error)
        )
        assert raised == 1
        if error is Stop:
            assert self.stopped.acquire(timeout=PATIENCE)
        else:
            self.thread.join(PATIENCE)


@pytest.mark.stress
@pytest.mark.usefixtures("hurried")
@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("fsync", [False, True])
@sized(ci=200, nightly=20_000)
def test_exception_that_is_raised_in_a_thread_leaves_memory_and_file_equal(
    path: Path, chance: random.Random, rounds: int, fsync: bool | float
) -> None:
    """As debuggers and libraries for timeouts raise one; it may come at any instruction."""
    state: Any = PersistedState(path, _fsync=fsync, counter=0, items_of={"one": []}, pair=[0, 0])

    def step() -> None:
        state.counter += 1
        state.items_of["one"].append(state.counter)
        with state.transaction():
            state.pair[0] += 1
            state.pair[1] += 1
        if len(state.items_of["one"]) > 20:
            del state.items_of["one"][:20]
            state.vacuum()

    worker = Stopped(step)
    for _ in range(rounds):
        worker.stop(chance.randrange(1, 12))

        assert state._thread_lock.acquire(timeout=PATIENCE)
        state._thread_lock.release()
        content = plain(state)
        assert content["pair"][0] == content["pair"][1]
        assert oracle.same(reopened(path), content)
    worker.stop(1, End)
    content = plain(state)
    state.close()
    assert oracle.read(path) == content
    assert listing(path.parent) == ["x.state"]


@pytest.mark.stress
@pytest.mark.usefixtures("hurried")
def test_threads_that_open_count_and_close_one_file_lose_nothing(path: Path) -> None:
    rounds = 20

    def work(mine: int) -> None:
        for _ in range(rounds):
            with opened(path) as state:
                with state.transaction():
                    state.counter += 1
                state.items_of[str(mine)].append(len(state.items_of[str(mine)]))

    in_each(work)

    content = oracle.read(path)
    assert content["counter"] == rounds * THREADS
    assert content["items_of"] == {str(mine): list(range(rounds)) for mine in range(THREADS)}


@pytest.mark.usefixtures("hurried")
def test_threads_that_refresh_while_others_write_find_nothing_foreign(path: Path) -> None:
    with opened(path) as state:

        def work(mine: int) -> None:
            for number in range(100):
                if mine % 2:
                    assert state.refresh() is False
                else:
                    state.items_of[str(mine)].append(number)

        in_each(work)

        assert oracle.read(path) == plain(state)


# ---- A thread that stands still at each instruction ------------------------------------------------------------------

#: What a thread does, and the same on plain containers.
STATEMENTS: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "counter": (lambda state: setattr(state, "plain", 7), lambda plain: plain.update(plain=7)),
    "nested": (lambda state: state.d.__setitem__("n", 7), lambda plain: plain["d"].update(n=7)),
    "append": (lambda state: state.l.append(7), lambda plain: plain["l"].append(7)),
    "update": (lambda state: state.d.update(n=7), lambda plain: plain["d"].update(n=7)),
}


class Transacting:
    """What the other thread does in a transaction that it begins, and then keeps or undoes."""

    def __init__(self, state: Any, *, is_kept: bool) -> None:
        self.state, self.is_kept = state, is_kept
        self.transaction: Any = None

    def begin(self) -> None:
        self.transaction = self.state.transaction()
        self.transaction.__enter__()
        self.state.tx += 1
        self.state.d["t"] = self.state.tx
        self.state.l.append("t")

    def end(self) -> None:
        if self.is_kept:
            self.transaction.__exit__(None, None, None)
        else:
            with contextlib.suppress(Abort):
                self.transaction.__exit__(Abort, Abort(), None)

    def whole(self) -> None:
        self.begin()
        self.end()

    def next(self) -> None:
        self.end()
        self.begin()


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "undone"])
@pytest.mark.parametrize("when", ["around", "within", "before", "twice"])
@pytest.mark.parametrize(("statement", "same"), STATEMENTS.values(), ids=STATEMENTS)
def test_change_and_transaction_of_two_threads_do_not_mix_wherever_they_meet(
    path: Path,
    statement: Callable[[Any], object],
    same: Callable[[Any], object],
    when: str,
    is_kept: bool,
    chance: random.Random,
) -> None:
    with PersistedState(path, plain=0, tx=0, d={"n": 0, "t": 0}, l=[7]) as state:
        other = Transacting(state, is_kept=is_kept)
        steps: list[Callable[[], None]] = {
            "around": [other.begin, other.end],
            "within": [other.whole],
            "before": [other.begin, other.end],
            "twice": [other.begin, other.next, other.end],
        }[when]
        before = 1 if when in ("before", "twice") else 0
        expected: dict[str, Any] = {"plain": 0, "tx": 0, "d": {"n": 0, "t": 0}, "l": [7]}
        times, number, is_reached = 2 if when == "twice" else 1, chance.randint(1 - stride(), 0), True
        while is_reached:
            number += stride()
            if number % 4 == 0:
                state.vacuum()
            for _ in range(2):  # from then on a change takes the short way
                state.plain, state.d["n"], state.l[:] = 0, 0, [7]
                state.l.append(8)
            expected.update(plain=0, l=[7, 8])
            expected["d"]["n"] = 0

            is_reached = meet(state, partial(statement, state), number, steps, before=before)

            same(expected)
            if is_kept:
                expected["tx"] += times
                expected["d"]["t"] = expected["tx"]
                expected["l"] += ["t"] * times
            found = oracle.read(path, READER)
            assert oracle.same(found, plain(state)), number
            found["l"].sort(key=str)
            expected["l"].sort(key=str)
            assert found == expected, number
        assert number > 50


@pytest.mark.parametrize("is_kept", [None, True, False], ids=["plainly", "in a transaction", "in one that is undone"])
@pytest.mark.parametrize(
    ("change", "content"),
    [
        (lambda node: node.__setitem__("n", [1]), {"n": [1]}),
        (lambda node: node.update(m=2), {"n": {"deep": [0]}, "m": 2}),
        (lambda node: node["n"]["deep"].append(1), {"n": {"deep": [0, 1]}}),
        (lambda node: node["n"].pop("deep"), {"n": {}}),
    ],
    ids=["set", "update", "below", "pop"],
)
def test_node_that_another_thread_removes_is_changed_or_removed_wherever_they_meet(
    path: Path, change: Callable[[Any], object], content: Any, is_kept: bool | None, chance: random.Random
) -> None:
    """A removed node takes changes as a plain dict does; one that comes back with an undone transaction keeps them."""
    with PersistedState(path, jobs={}) as state:
        other = Transacting(state, is_kept=bool(is_kept))

        def remove() -> None:
            state.jobs.pop("a")

        def remove_in_transaction() -> None:
            other.transaction = state.transaction()
            other.transaction.__enter__()
            remove()

        steps = [remove] if is_kept is None else [remove_in_transaction, other.end]
        number, is_reached = chance.randint(1 - stride(), 0), True
        while is_reached:
            number += stride()
            if number % 4 == 0:
                state.vacuum()
            state.jobs["a"] = {"n": {"deep": [0]}}
            node = state.jobs["a"]

            is_reached = meet(state, partial(change, node), number, steps)

            assert plain(node) == content, number
            assert plain(state) == {"jobs": {"a": content} if is_kept is False else {}}, number
            assert oracle.same(oracle.read(path, READER), plain(state)), number
        assert number > 50


@pytest.mark.stress
@sized(ci=300, nightly=30_000)
@pytest.mark.usefixtures("hurried")
def test_plain_changes_beside_transactions_that_are_kept_or_undone(path: Path, rounds: int) -> None:
    def work(mine: int) -> None:
        for number in range(rounds):
            if mine % 2:
                state.by[mine] += 1
                state.plain[mine].append(number)
                continue
            with contextlib.suppress(Abort), state.transaction():
                state.by[mine] += 1
                if number % 3 == 0:
                    raise Abort

    with PersistedState(path, by=dict.fromkeys(range(THREADS), 0), plain={n: [] for n in range(THREADS)}) as state:
        in_each(work)

        kept = rounds - len(range(0, rounds, 3))
        assert state.by == {mine: rounds if mine % 2 else kept for mine in range(THREADS)}
        assert state.plain == {mine: list(range(rounds)) if mine % 2 else [] for mine in range(THREADS)}
        assert oracle.same(oracle.read(path, READER), plain(state))


@pytest.mark.stress
@sized(ci=2_000, nightly=200_000)
@pytest.mark.usefixtures("hurried")
def test_changes_of_nodes_that_other_threads_remove(path: Path, rounds: int) -> None:
    def work(mine: int) -> None:
        for _ in range(rounds):
            if mine % 2:
                state.jobs["a"] = {"n": 0, "l": [[]]}
                state.jobs.pop("a", None)
                continue
            with contextlib.suppress(KeyError):
                state.jobs["a"]["n"] = [1]
                state.jobs["a"]["l"][0].append(1)

    with PersistedState(path, jobs={}) as state:
        in_each(work)

        assert oracle.same(oracle.read(path, READER), plain(state))


@pytest.mark.parametrize("end", [None, Abort])
def test_transaction_that_is_left_in_another_thread_is_undone_and_blocks_nobody(
    path: Path, end: type[Exception] | None
) -> None:
    with PersistedState(path, a=1, l=[[1]]) as state:
        transaction = state.transaction()

        def enter() -> None:
            transaction.__enter__()
            state.a = 2
            state.l[0].append(2)

        together(enter)
        if end is None:
            with pytest.raises(StateError, match="another thread"):
                transaction.__exit__(None, None, None)
        else:
            assert not transaction.__exit__(end, end(), None)

        assert plain(state) == oracle.read(path) == {"a": 1, "l": [[1]]}
        later = threading.Thread(target=state.l[0].append, args=[3], daemon=True)
        later.start()
        later.join(PATIENCE)
        assert plain(state) == oracle.read(path) == {"a": 1, "l": [[1, 3]]}


def test_change_that_waits_while_a_foreign_thread_leaves_the_transaction_is_kept(path: Path) -> None:
    """It gets the lock between the thread that began the transaction and the one that leaves it."""
    with PersistedState(path, l=[], n=0) as state:
        transaction, waits = state.transaction(), threading.Event()
        entered, may_end = threading.Event(), threading.Event()

        def enter() -> None:
            transaction.__enter__()
            state.n = 1
            entered.set()
            may_end.wait(PATIENCE)  # or its number may be given to the next thread

        starter = threading.Thread(target=enter)
        starter.start()
        assert entered.wait(PATIENCE)
        later = threading.Thread(target=state.l.append, args=[[1]])
        tree, real = state._tree, state._tree.lock
        tree.lock = WatchedLock(real, waits.set)
        later.start()
        assert waits.wait(PATIENCE)

        class Freed:
            """The lock, given to whoever waits for it before the thread that freed it goes on."""

            def _release_save(self) -> None:
                tree.lock = real
                real._release_save()
                later.join(PATIENCE)

        tree.lock = Freed()
        with pytest.raises(StateError, match="another thread"):
            transaction.__exit__(None, None, None)

        may_end.set()
        starter.join()
        assert not later.is_alive()
        assert plain(state) == oracle.read(path) == {"l": [[1]], "n": 0}


# ---- Tasks -----------------------------------------------------------------------------------------------------------


CHANGES: dict[str, Callable[[Any], object]] = {
    "set": lambda state: setattr(state, "a", 7),
    "delete": lambda state: state.pop("a"),
    "nested": lambda state: state.d.update(k=7),
    "list": lambda state: state.l.append(7),
    "update": lambda state: state.update(a=7, b=7),
    "transaction": lambda state: state.transaction().__enter__(),
}


async def intrude(state: Any, change: Callable[[Any], object], end: type[Exception] | None) -> None:
    """Let a task try a change while another one waits within a transaction."""
    inside, tried = asyncio.Event(), asyncio.Event()

    async def owner() -> None:
        with state.transaction():
            state.a = 2
            inside.set()
            await tried.wait()
            state.l.append(2)
            if end is not None:
                raise end

    async def intruder() -> None:
        await inside.wait()
        try:
            assert state.a == 2  # looking is allowed
            with pytest.raises(StateError, match="task"):
                change(state)
        finally:
            tried.set()

    outcomes = await asyncio.gather(owner(), intruder(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [end or type(None), type(None)]


@pytest.mark.parametrize("end", [None, Abort])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_task_that_changes_the_state_within_the_transaction_of_another_is_refused(
    path: Path, change: Callable[[Any], object], end: type[Exception] | None
) -> None:
    with PersistedState(path, a=1, d={}, l=[]) as state:
        asyncio.run(intrude(state, change, end))

        expected = {"a": 1, "d": {}, "l": []} if end else {"a": 2, "d": {}, "l": [2]}
        assert plain(state) == expected
        assert oracle.read(path) == expected
        state.a = 3
        assert oracle.read(path)["a"] == 3


def test_task_that_a_transaction_starts_and_waits_for_is_refused_too(path: Path) -> None:
    async def main() -> None:
        async def helper() -> None:
            state.b = 1

        with state.transaction():
            state.a = 2
            with pytest.raises(StateError, match="task"):
                await asyncio.create_task(helper())

    with PersistedState(path, a=1) as state:
        asyncio.run(main())

        assert plain(state) == {"a": 2}
        assert oracle.read(path) == {"a": 2}


@sized(ci=40, nightly=4000)
def test_tasks_that_take_turns_lose_nothing(path: Path, chance: random.Random, rounds: int) -> None:
    """Some wait within transactions; who is refused meanwhile tries again."""
    refusals = 0

    async def work(name: str) -> None:
        nonlocal refusals
        done = 0
        while done < rounds:
            try:
                with state.transaction():
                    state.counter += 1
                    if not done or chance.random() < 0.3:
                        await asyncio.sleep(0)
                    state.by[name] += 1
            except StateError:
                refusals += 1
                await asyncio.sleep(0)
            else:
                done += 1

    async def main() -> None:
        await asyncio.gather(*map(work, names))

    names = [f"task {number}" for number in range(5)]
    with PersistedState(path, counter=0, by=dict.fromkeys(names, 0)) as state:
        asyncio.run(main())

        assert plain(state) == {"counter": 5 * rounds, "by": dict.fromkeys(names, rounds)}
        assert oracle.read(path) == plain(state)
    assert refusals > 0


def test_thread_of_a_task_waits_for_the_transaction_of_another(path: Path) -> None:
    async def main() -> None:
        with state.transaction():
            state.l.append("mine")
            other = asyncio.create_task(asyncio.to_thread(state.l.append, "other"))
            await asyncio.sleep(0.05)  # the thread is about to wait
            state.l.append("mine too")
        await other

    with PersistedState(path, l=[]) as state:
        asyncio.run(main())

        assert plain(state.l) == ["mine", "mine too", "other"]
        assert oracle.read(path) == plain(state)


@pytest.mark.parametrize("module", ["asyncio", "trio.lowlevel", "greenlet"])
def test_scheduler_that_another_thread_is_importing_is_not_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))  # as it is while its first line runs

    with PersistedState(path, a=1) as state:
        with state.transaction():
            state.a += 1

        assert oracle.read(path) == {"a": 2}


def check_intruder_was_refused(state: Any, path: Path, told: list[str]) -> None:
    assert len(told) == len(CHANGES)
    assert all("task" in text for text in told)
    assert plain(state) == oracle.read(path) == {"a": 1, "d": {}, "l": []}
    state.a = 3
    assert oracle.read(path)["a"] == 3


def intrude_all(state: Any) -> list[str]:
    """Try every change; return what each was told."""
    told = []
    for change in CHANGES.values():
        with pytest.raises(StateError) as caught:
            change(state)
        told.append(str(caught.value))
    return told


def test_task_of_trio_is_kept_out_of_the_transaction_of_another(path: Path) -> None:
    trio = pytest.importorskip("trio")
    told: list[str] = []

    async def main() -> None:
        inside, tried = trio.Event(), trio.Event()

        async def owner() -> None:
            with contextlib.suppress(Abort), state.transaction():
                state.a = 2
                inside.set()
                await tried.wait()
                state.l.append(2)
                raise Abort

        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner)
            await inside.wait()
            told.extend(intrude_all(state))
            tried.set()

    with PersistedState(path, a=1, d={}, l=[]) as state:
        trio.run(main)

        check_intruder_was_refused(state, path, told)


@pytest.mark.parametrize("intruder", ["main", "other"])
def test_greenlet_is_kept_out_of_the_transaction_of_another(path: Path, intruder: str) -> None:
    greenlet = pytest.importorskip("greenlet").greenlet
    told: list[str] = []

    def owner() -> None:
        with contextlib.suppress(Abort), state.transaction():
            state.a = 2
            other.switch()
            state.l.append(2)
            raise Abort

    def try_all() -> None:
        told.extend(intrude_all(state))
        mine.switch()

    with PersistedState(path, a=1, d={}, l=[]) as state:
        if intruder == "main":
            mine, other = greenlet(owner), greenlet.getcurrent()
            mine.switch()
            try_all()
        else:
            mine, other = greenlet.getcurrent(), greenlet(try_all)
            owner()

        check_intruder_was_refused(state, path, told)


@pytest.mark.leaves("descriptors")  # those of gevent's hub
def test_greenlet_of_gevent_is_kept_out_of_the_transaction_of_another(path: Path) -> None:
    gevent = pytest.importorskip("gevent")
    told: list[str] = []

    def owner() -> None:
        with contextlib.suppress(Abort), state.transaction():
            state.a = 2
            gevent.sleep(0)
            state.l.append(2)
            raise Abort

    with PersistedState(path, a=1, d={}, l=[]) as state:
        gevent.joinall([gevent.spawn(owner), gevent.spawn(lambda: told.extend(intrude_all(state)))], raise_error=True)

        check_intruder_was_refused(state, path, told)


def test_greenlets_within_one_task_of_asyncio_are_one(path: Path) -> None:
    """As SQLAlchemy has them, which runs what blocks in a greenlet."""
    greenlet = pytest.importorskip("greenlet").greenlet

    async def main() -> None:
        with state.transaction():
            state.a = 2
            greenlet(lambda: setattr(state, "a", 3)).switch()

    with PersistedState(path, a=1) as state:
        asyncio.run(main())

        assert plain(state) == oracle.read(path) == {"a": 3}


def test_event_loop_that_runs_within_a_transaction_takes_part_in_it(path: Path) -> None:
    async def main() -> None:
        state.a = 2

    with PersistedState(path, a=1) as state:
        with contextlib.suppress(Abort), state.transaction():
            asyncio.run(main())
            assert state.a == 2
            raise Abort

        assert plain(state) == oracle.read(path) == {"a": 1}


WAITING: dict[str, Callable[[Any], object]] = {
    "change": lambda state: setattr(state, "a", 3),
    "nested": lambda state: state.d.update(k=1),
    "append": lambda state: state.l.append(1),
    "transaction": lambda state: state.transaction().__enter__(),
    "copy": plain,
    "copy of a part": lambda state: state.d.copy(),
    "vacuum": lambda state: state.vacuum(),
    "refresh": lambda state: state.refresh(),
    "close": lambda state: state.close(),
    "lock": lambda state: state._thread_lock,
    "second object": lambda state: PersistedState(os.fspath(state), more=1),
}


@pytest.mark.parametrize("use", WAITING.values(), ids=WAITING)
def test_thread_for_which_a_transaction_waits_is_told_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Any], object]
) -> None:
    monkeypatch.setattr(persistedstate, "_DEADLOCK", 0.05)

    async def main() -> None:
        with state.transaction():
            state.a = 2
            with pytest.raises(StateError, match="perhaps waits for it"):
                await asyncio.to_thread(use, state)
            state.l.append(2)
        await asyncio.to_thread(state.l.append, 3)  # the transaction has ended

    with PersistedState(path, a=1, d={}, l=[]) as state:
        state.a, state.l[:] = 1, []
        asyncio.run(main())

        assert plain(state) == oracle.read(path) == {"a": 2, "d": {}, "l": [2, 3]}


def test_thread_is_told_also_behind_transactions_of_another_state(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistedstate, "_DEADLOCK", 0.05)

    async def main() -> None:
        with state.transaction():
            for number in range(3):
                with other.transaction():
                    other.a = number
            with pytest.raises(StateError, match="perhaps waits for it"):
                await asyncio.to_thread(setattr, state, "a", 3)

    with scratch() as another, PersistedState(path, a=1) as state, PersistedState(another, a=1) as other:
        asyncio.run(main())

        assert plain(state) == oracle.read(path) == {"a": 1}


# ---- The end of the process ------------------------------------------------------------------------------------------

ENDING = """
    import os, sys, threading
    from persistedstate import PersistedState, StateClosed

    sys.setswitchinterval(1e-6)
    state = PersistedState(sys.argv[1], _fsync={fsync}, **{{f"k{{n}}": 0 for n in range(8)}})
    begun = threading.Barrier(9)

    def work(mine):
        try:
            for number in {numbers}:
                with state.transaction():
                    state[f"k{{mine}}"] = number
                os.write(1, b"%d %d\\n" % (mine, number))
                if number == 20:
                    begun.wait()
        except StateClosed:
            pass

    for mine in range(8):
        threading.Thread(target=work, args=(mine,), daemon={daemon}).start()
    begun.wait()
"""


def run_to_the_end(path: Path, **parts: object) -> dict[str, int]:
    """Run the script, and return the last number that each of its threads acknowledged."""
    told = [line.split() for line in run_child(ENDING.format(**parts), path).splitlines()]
    return {f"k{mine}": int(number) for mine, number in told}


@pytest.mark.parametrize("fsync", [False, 0.005])
@sized(ci=4, nightly=400)
def test_daemon_threads_that_write_at_exit_lose_nothing_acknowledged(
    path: Path, rounds: int, fsync: bool | float
) -> None:
    for _ in range(rounds):
        path.unlink(missing_ok=True)
        check_daemon_threads(path, fsync)


def check_daemon_threads(path: Path, fsync: bool | float) -> None:
    acknowledged = run_to_the_end(path, fsync=fsync, daemon=True, numbers="iter(range(1, 10**9))")

    content = oracle.read(path)
    assert sorted(acknowledged) == sorted(content) == [f"k{n}" for n in range(THREADS)]
    for key, number in acknowledged.items():
        assert number <= content[key] <= number + 1
    assert listing(path.parent) == [path.name]


def test_threads_that_outlive_the_main_thread_finish_their_work(path: Path) -> None:
    acknowledged = run_to_the_end(path, fsync=False, daemon=False, numbers="range(1, 101)")

    assert acknowledged == oracle.read(path) == {f"k{n}": 100 for n in range(THREADS)}
