"""`on_change`: functions that are called after changes, the script's own and those that a person saved."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from checks import records
from editing import WAYS, save
from processes import Child, in_child
from rounds import rounds
from threads import in_threads, together

import persistedstate
from persistedstate import PersistedState, StateClosed, StateError, on_change, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

START: dict[str, Any] = {"n": 0, "limits": {"cpu": 1, "mem": 2}, "jobs": [{"done": False}, {"done": False}], "l": []}


class Calls(list[tuple[Any, ...]]):
    """What a function was called with since the last time that somebody asked."""

    def __call__(self, *arguments: Any) -> None:
        self.append(arguments)

    def take(self) -> list[tuple[Any, ...]]:
        taken = [*self]
        self.clear()
        return taken


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def watched(path: Path) -> Iterator[Any]:
    with PersistedState(path, **START) as state:
        yield state


def delete_limits(state: Any) -> None:
    del state.limits


CHANGES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "set": (lambda s: setattr(s, "n", 1), (("n",), 0, 1)),
    "set nested": (lambda s: s.limits.update(cpu=5), (("limits", "cpu"), 1, 5)),
    "set in a list": (lambda s: s.jobs[1].update(done=True), (("jobs", 1, "done"), False, True)),
    "new": (lambda s: s.update(new=[1]), (("new",), None, [1])),
    "delete": (delete_limits, (("limits",), {"cpu": 1, "mem": 2}, None)),
    "append": (lambda s: s.l.append(1), (("l",), [], [1])),
    "several": (lambda s: s.limits.update(cpu=5, mem=6), (("limits",), {"cpu": 1, "mem": 2}, {"cpu": 5, "mem": 6})),
    "at the top": (lambda s: s.update(n=5, l=[1]), ((), START, {**START, "n": 5, "l": [1]})),
    "clear": (lambda s: s.clear(), ((), START, {})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_statement_is_one_call(watched: Any, calls: Calls, name: str) -> None:
    change, expected = CHANGES[name]
    on_change(watched, calls)

    change(watched)

    assert calls == [expected]


def test_every_statement_is_a_call_also_of_a_counter(watched: Any, calls: Calls) -> None:
    for _ in range(3):
        watched.n += 1  # the short way is known from here on
    on_change(watched, calls)
    for _ in range(3):
        watched.n += 1
        watched.l.append(watched.n)

    assert [call[0] for call in calls] == [("n",), ("l",)] * 3
    assert calls[-2:] == [(("n",), 5, 6), (("l",), [4, 5], [4, 5, 6])]


def test_what_changes_nothing_is_no_call(watched: Any, calls: Calls) -> None:
    on_change(watched, calls)

    watched.n = 0
    watched.limits |= {"cpu": 1}
    watched.vacuum()
    watched.refresh()

    assert calls == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("limits", [(("limits", "cpu"), 1, 5)]),
        (("limits", "cpu"), [(("limits", "cpu"), 1, 5)]),
        (["jobs", 0], [(("jobs", 0, "done"), False, True)]),
        (("jobs", 7), []),
        (("n", "none"), []),
        ("new", [(("new",), None, 1)]),
    ],
)  # fmt: skip
def test_a_path_limits_it(watched: Any, calls: Calls, where: Any, expected: Any) -> None:
    on_change(watched, calls, where)

    watched.limits["cpu"] = 5
    watched.jobs[0]["done"] = True
    watched.new = 1

    assert calls == expected


def test_a_transaction_is_one_call_at_its_end(watched: Any, calls: Calls) -> None:
    on_change(watched, calls)

    with watched.transaction():
        watched.limits["cpu"] = 5
        with watched.transaction():
            watched.limits["mem"] = 6
        assert calls == []

    assert calls == [(("limits",), {"cpu": 1, "mem": 2}, {"cpu": 5, "mem": 6})]


def test_what_is_undone_is_no_call(watched: Any, calls: Calls) -> None:
    on_change(watched, calls)

    with pytest.raises(ZeroDivisionError), watched.transaction():
        watched.limits["cpu"] = 5
        raise ZeroDivisionError
    with watched.transaction():
        with pytest.raises(ZeroDivisionError), watched.transaction():
            watched.n = 5
            raise ZeroDivisionError
        watched.l.append(1)

    assert calls == [(("l",), [], [1])]


def test_within_a_transaction_it_is_refused(watched: Any, calls: Calls) -> None:
    with watched.transaction(), pytest.raises(StateError, match="a transaction is open"):
        on_change(watched, calls)


def test_while_the_lock_is_held_the_first_one_is_refused(watched: Any, calls: Calls) -> None:
    with watched._thread_lock, pytest.raises(StateError, match="this thread holds the lock of the state; ask"):
        on_change(watched, calls)
    stop = on_change(watched, calls)
    with watched._thread_lock:
        on_change(watched, calls)
        watched.n = 1
        assert calls == []
    assert len(calls) == 2
    stop()


def test_what_could_not_be_written_is_no_call(watched: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    on_change(watched, calls)
    with monkeypatch.context() as patch:
        patch.setattr(persistedstate._system, "write", full)
        with pytest.raises(OSError, match="no space"):
            watched.n = 1
    watched.n = 2

    assert calls == [(("n",), 0, 2)]


@pytest.mark.parametrize("way", WAYS)
def test_a_save_of_a_person_is_one_call(watched: Any, path: Path, calls: Calls, way: str) -> None:
    on_change(watched, calls, "limits")
    watched.n = 1
    save(path, path.read_text(encoding="utf-8").replace("cpu: 1", "cpu: 7").replace("mem: 2", "mem: 8"), way)

    assert watched.refresh()

    assert calls == [(("limits",), {"cpu": 1, "mem": 2}, {"cpu": 7, "mem": 8})]


def test_a_reader_is_told_what_another_process_did(path: Path, calls: Calls) -> None:
    code = "import sys\nfrom persistedstate import PersistedState\nSTATE = PersistedState(sys.argv[1], n=0, m=0)\n"
    code += "print('open')\ninput()\nSTATE.n = 1\nprint('changed')\ninput()\n"
    code += "STATE.vacuum()\nSTATE.n = 2\nprint('again')\ninput()\n"
    with Child(code, path) as child:
        child.expect("open")
        with PersistedState(path, _readonly=True) as reader:
            on_change(reader, calls)
            for said in ("changed", "again"):
                child.tell()
                child.expect(said)
                assert calls == []
                assert reader.refresh()
                assert not reader.refresh()
                assert len(calls.take()) == 1


def test_it_is_called_when_the_change_is_in_the_file_and_the_lock_is_free(watched: Any, path: Path) -> None:
    seen: list[int] = []

    def look(*_: object) -> None:
        thread = threading.Thread(target=lambda: watched.l.append(1))
        thread.start()
        thread.join(60)
        seen.append(records(path))

    stop = on_change(watched, look, "n")
    watched.n = 1
    with watched._thread_lock:
        watched.n = 2
        assert seen == [2]
    stop()

    assert seen == [2, 4]
    assert watched.l == [1, 1]


def test_an_exception_undoes_nothing_and_is_told(watched: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error[:2]))
    on_change(watched, lambda *_: 1 // 0)
    on_change(watched, calls)

    watched.n = 1

    assert (watched.n, calls) == (1, [(("n",), 0, 1)])
    assert [kind for kind, _ in told] == [ZeroDivisionError]


def test_a_function_may_change_the_state(watched: Any, calls: Calls) -> None:
    def follow(_path: object, _old: object, new: int) -> None:
        watched.limits["cpu"] = new
        if new < 3:
            watched.n = new + 1

    on_change(watched, follow, "n")
    on_change(watched, calls)
    watched.n = 1

    assert (watched.n, watched.limits["cpu"]) == (3, 3)
    assert [call for call in calls if call[0] == ("n",)] == [(("n",), 0, 1), (("n",), 1, 2), (("n",), 2, 3)]


def test_what_a_function_is_given_is_its_own(watched: Any, calls: Calls) -> None:
    on_change(watched, lambda _path, _old, new: new.clear(), "limits")
    on_change(watched, calls, "limits")

    watched.limits.update(a=1, b=2)
    watched.limits.update(a=3, b=4)

    assert plain(watched.limits) == calls[-1][2] == {"cpu": 1, "mem": 2, "a": 3, "b": 4}


def test_it_ends(watched: Any, calls: Calls) -> None:
    before = type(watched._thread_lock)
    stops = [on_change(watched, calls), on_change(watched, calls, "n")]
    watched.n = 1
    assert len(calls.take()) == 2

    stops[0]()
    stops[0]()
    watched.n = 2
    assert len(calls.take()) == 1
    stops[1]()
    watched.n = 3
    watched.n = 4

    assert calls == []
    assert type(watched._thread_lock) is before
    assert watched._root._heads  # the short way is open again


def test_two_objects_of_one_file_are_one_state(watched: Any, path: Path, calls: Calls) -> None:
    with PersistedState(path, more=1) as other:
        on_change(other, calls)
        watched.n = 1
    watched.n = 2
    with PersistedState(path, yet_more=1):
        pass

    assert calls == [(("n",), 0, 1), (("n",), 1, 2), (("yet_more",), None, 1)]


def test_a_closed_state_is_refused(path: Path, calls: Calls) -> None:
    state = PersistedState(path)
    state.close()

    with pytest.raises(StateClosed):
        on_change(state, calls)


@pytest.mark.stress
def test_threads_are_told_of_all_their_changes(watched: Any, calls: Calls) -> None:
    on_change(watched, calls, "l")

    def work(number: int) -> None:
        for step in range(50):
            watched.l.append((number, step))

    together(*(partial(work, number) for number in range(4)))

    lengths = sorted((len(old), len(new)) for _, old, new in calls)
    assert lengths == [(number, number + 1) for number in range(200)]


class Between:
    """A lock that lets something happen each time that it has become free."""

    def __init__(self, lock: Any, happens: Any) -> None:
        self.lock, self.happens = lock, happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)

    def release(self) -> None:
        self.lock.release()
        if not self.lock._is_owned():
            self.happens()


def test_a_call_comes_in_the_thread_that_made_the_change_before_the_statement_returns(watched: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    on_change(watched, lambda keys, _old, new: calls.append((threading.get_ident(), keys, new)))
    threads: list[threading.Thread] = []

    def change_meanwhile() -> None:
        if not threads:
            threads.append(threading.Thread(target=lambda: watched.update(n=2)))
            threads[0].start()
            threads[0].join(60)

    telling = watched._tree.lock
    telling.lock = Between(telling.lock, change_meanwhile)
    watched.l.append(1)

    assert calls == [(threads[0].ident, ("n",), 2), (threading.get_ident(), ("l",), [1])]


FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


#: What two processes do of which one was forked, as told in the middle; they print what they are told.
FORKED = """\
import os, sys
from persistedstate import PersistedState, on_change

STATE, pid = PersistedState(sys.argv[1], _shared=True, n=0), 1
def say(*change):
    os.write(1, f"{'parent' if pid else 'child'} {change}\\n".encode())
# fork
if not pid:
    STATE.n += 1
    stop()
    STATE.n += 1
    os._exit(0)
os.waitpid(pid, 0)
STATE.refresh()
STATE.close()
print("end")
"""
FORKS = {
    "in the lock": """\
stop = on_change(STATE, say)
with STATE._thread_lock:
    STATE.n = 1
    pid = os.fork()
""",
    "by a call": """\
def fork(*_):
    global pid
    pid = os.fork() if pid == 1 else pid
first, stop = on_change(STATE, fork), on_change(STATE, say)
STATE.n = 1
first()
""",
}


@FORK
@pytest.mark.parametrize("name", FORKS)
def test_a_forked_child_goes_on_and_tells_only_its_own(path: Path, name: str) -> None:
    with Child(FORKED.replace("# fork\n", FORKS[name]), path) as child:
        lines: list[str] = []
        while lines[-1:] != ["end"]:
            lines.append(child.line())

    assert sorted(lines[:-1]) == ["child (('n',), 1, 2)", "parent (('n',), 0, 1)", "parent (('n',), 1, 3)"]


@FORK
def test_a_reader_is_told_in_a_child_that_was_forked_while_it_was_read(path: Path, calls: Calls) -> None:
    with PersistedState(path, **START) as state, PersistedState(path, _readonly=True) as reader:
        on_change(reader, calls)
        is_held, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with reader._thread_lock:
                is_held.set()
                may_go.wait(60)

        def look() -> object:
            reader.refresh()
            on_change(reader, calls, "l")()
            return calls

        with in_threads(hold, until=may_go):
            assert is_held.wait(60)
            state.n = 1
            said = in_child(look)

    assert said == "[(('n',), 0, 1)]"


@rounds(ci=300, nightly=10_000)
def test_what_is_told_adds_up(path: Path, chance: random.Random, rounds: int) -> None:
    """Whoever makes each change that is told ends with the state; what each tells of before is what was there."""
    shown: dict[str, Any] = {}

    def follow(keys: tuple[Any, ...], old: Any, new: Any) -> None:
        nonlocal shown
        assert value_at(shown, keys) == old
        shown = with_value(shown, keys, new)

    with PersistedState(path) as state:
        on_change(state, follow)
        for _ in range(rounds):
            with contextlib.suppress(ZeroDivisionError), state.transaction():
                for _ in range(chance.randrange(3)):
                    change(state, chance)
                if chance.random() < 0.2:
                    raise ZeroDivisionError
            if chance.random() < 0.1:
                state.vacuum()
            assert shown == state


def value_at(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value


def with_value(value: Any, keys: tuple[Any, ...], new: Any) -> Any:
    if not keys:
        return new
    changed = copy.copy(value)
    changed[keys[0]] = with_value(value.get(keys[0]) if isinstance(value, dict) else value[keys[0]], keys[1:], new)
    if new is None and len(keys) == 1:
        del changed[keys[0]]
    return changed


def change(state: Any, chance: random.Random) -> None:
    key = chance.choice("abc")
    value = chance.choice([1, "x", [], {}, [1, {"k": 2}], {"m": {"n": 3}}])
    node = state.get(key)
    match chance.randrange(6):
        case 0 if isinstance(node, persistedstate.StateList):
            node.insert(chance.randrange(3), value)
        case 1 if isinstance(node, persistedstate.StateDict):
            node[chance.choice("klm")] = value
        case 2:
            state.pop(key, None)
        case 3:
            state.update({key: value, "d": value})
        case 4 if chance.random() < 0.1:
            state.clear()
        case _:
            state[key] = value
