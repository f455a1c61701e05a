"""Suite G: signals at any moment leave memory and file equal.

Real SIGINT against a writer that catches KeyboardInterrupt and goes on; signal handlers that change the state
themselves, which works between statements and is refused in the middle of one; and the moments that a storm rarely
hits, one by one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import run_child, scratch
from processes import PATIENCE, Child, interrupt_after_call, interrupt_at
from rounds import rounds as sized
from rounds import stride

import persistedstate
from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
STORM = "import runpy, sys; sys.argv[0] = 'storm.py'; runpy.run_path({!r}, run_name='__main__')".format(
    str(Path(__file__).parent / "support/storm.py")
)

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")


def storm(kind: str, seed: int, hits: int, fsync: str) -> dict[str, Any]:
    """Let a writer of its own process stand a storm, and return what it tells of that."""
    with scratch() as path, Child(STORM, kind, path.parent, seed, hits, fsync) as child:
        outcome: dict[str, Any] = json.loads(child.line())
        child.finish()
    print(outcome)
    return outcome


@pytest.mark.stress
@pytest.mark.parametrize("fsync", ["false", "true", "0.005"])
@sized(ci=1700, nightly=50_000)
def test_interrupts_leave_memory_and_file_equal(chance: random.Random, rounds: int, fsync: str) -> None:
    outcome = storm("interrupts", chance.getrandbits(32), rounds, fsync)

    assert outcome["divergences"] == []
    assert outcome["hits"] >= rounds
    assert outcome["done"] + outcome["undone"] > rounds / 2
    assert outcome["checks"] > 0


@pytest.mark.stress
@sized(ci=1000, nightly=50_000)
def test_handler_that_writes_leaves_memory_and_file_equal(chance: random.Random, rounds: int) -> None:
    outcome = storm("handler", chance.getrandbits(32), rounds, "false")

    assert outcome["divergences"] == []
    assert outcome["hits"] >= rounds
    assert outcome["done"] > 0


# ---- A handler in the middle of a statement --------------------------------------------------------------------------


class Interposed:
    """A system that calls something after its `number`-th call, and whose clock moves only by sleeping."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self._real, self._left, self._action = persistedstate._system, number, action
        self.slept, self._start = 0.0, (self._real.now(), self._real.time())

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            self._left -= 1
            if self._left == 0:
                self._action()
            return result

        return call

    @property
    def has_acted(self) -> bool:
        return self._left <= 0

    def now(self) -> float:
        return float(self._start[0] + self.slept)

    def time(self) -> float:
        return float(self._start[1] + self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Set what happens at SIGALRM."""
    before = signal.getsignal(signal.SIGALRM)

    def set_action(action: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: action())

    yield set_action
    signal.signal(signal.SIGALRM, before)


def transact(state: Any) -> None:
    with state.transaction():
        state.a += 1
        state.l.append(state.a)


STATEMENTS: dict[str, Callable[[Any], object]] = {
    "set": lambda state: state.__setitem__("a", 7),
    "append": lambda state: state.l.append({"n": [1]}),
    "slice": lambda state: state.l.__delitem__(slice(None, None, 2)),
    "transaction": transact,
    "vacuum": lambda state: state.vacuum(),
    "refresh": lambda state: state.refresh(),
}


class Struck:
    """A statement with a handler that comes after its `number`-th system call, and tries to change the state."""

    def __init__(self, path: Path, number: int, statement: Callable[[Any], object]) -> None:
        self.number, self.handled = number, list[RuntimeError | None]()
        self.system = Interposed(number, lambda: signal.raise_signal(signal.SIGALRM))
        with PersistedState(path, a=1, l=[1, 2, 3], beat=0) as self.state:
            self.state.update(a=1, l=[1, 2, 3], beat=0)
            model: Any = plain(self.state)
            if self._is_done(statement):
                apply_to(model, statement)
            model["beat"] = int(self.handled == [None])
            assert len(self.handled) == self.system.has_acted
            assert plain(self.state) == model, number
            assert oracle.read(path) == model, number
        assert oracle.read(path) == model, number

    def _is_done(self, statement: Callable[[Any], object]) -> bool:
        before = signal.signal(signal.SIGALRM, lambda *_: self._beat())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(persistedstate, "_system", self.system)
            try:
                statement(self.state)
            except RuntimeError:
                assert self.handled == [None]  # one of the two is refused, not both
                return False
            finally:
                signal.signal(signal.SIGALRM, before)
        return True

    def _beat(self) -> None:
        try:
            self.state.beat = 1
            self.handled.append(None)
        except RuntimeError as error:
            self.handled.append(error)


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_handler_in_the_middle_of_a_statement_is_refused_or_the_statement_is(
    path: Path, statement: Callable[[Any], object]
) -> None:
    """After each system call of the statement: one of the two raises RuntimeError, or both are done."""
    number, has_acted = 0, True
    while has_acted:
        number += 1
        has_acted = Struck(path, number, statement).system.has_acted
    assert number > 1


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_handler_in_the_middle_of_a_statement_is_not_taken_for_a_person_who_saves_the_file(
    path: Path, statement: Callable[[Any], object]
) -> None:
    number, has_acted = 0, True
    while has_acted:
        number += 1
        system = Struck(path, number, statement).system
        has_acted = system.has_acted
        assert system.slept == 0, number


def apply_to(model: dict[str, Any], statement: Callable[[Any], object]) -> None:
    """Do to a plain dict what the statement does to a state."""

    class Plain:
        def __init__(self) -> None:
            self.__dict__ = model
            self.l: Any

        def __setitem__(self, key: str, value: Any) -> None:
            model[key] = value

        def transaction(self) -> Any:
            return contextlib.nullcontext()

        def vacuum(self) -> None: ...

        refresh = vacuum

    statement(Plain())


def test_handler_between_the_statements_of_a_transaction_takes_part_in_it_or_is_refused(
    path: Path, on_alarm: Callable[[Callable[[], object]], None]
) -> None:
    with PersistedState(path, a=1, beat=0) as state:

        def beat() -> None:
            with contextlib.suppress(RuntimeError):
                state.beat += 1

        on_alarm(beat)
        with pytest.raises(KeyError), state.transaction():
            state.a = 2
            signal.raise_signal(signal.SIGALRM)
            raise KeyError
        assert plain(state) == oracle.read(path)
        assert state.a == 1
        with state.transaction():
            state.a = 2
            signal.raise_signal(signal.SIGALRM)

        assert plain(state) == oracle.read(path)
        assert state.a == 2


@pytest.mark.stress
@pytest.mark.parametrize("way", ["append", "insert"])
@sized(ci=60, nightly=3_000)
def test_handler_in_a_statement_of_a_transaction_is_refused_or_comes_before_or_after_it(
    path: Path, on_alarm: Callable[[Callable[[], object]], None], rounds: int, way: str
) -> None:
    with PersistedState(path, numbers=[0]) as state:

        def beat() -> None:
            with contextlib.suppress(RuntimeError):
                state.numbers.append(-1)
            signal.setitimer(signal.ITIMER_REAL, 5e-5 if is_on else 0)

        is_on = True
        on_alarm(beat)
        state.numbers.append(0)
        for _ in range(rounds):
            is_on = True
            with state.transaction():
                signal.setitimer(signal.ITIMER_REAL, 5e-5)
                for number in range(100):
                    with contextlib.suppress(RuntimeError):
                        state.numbers.append(number) if way == "append" else state.numbers.insert(1, number)
                is_on = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert len(state.numbers) > 1
            assert plain(state) == oracle.read(path)
            state.numbers[:] = [0]
            state.vacuum()


def test_handler_that_removes_what_a_statement_of_a_transaction_is_about_to_change(
    path: Path, on_alarm: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = persistedstate._TEXTS[str]

    def interrupted(value: str) -> str:
        signal.raise_signal(signal.SIGALRM)
        return text(value)

    with PersistedState(path, numbers=[0]) as state:
        state.numbers.append(1)
        on_alarm(state.clear)
        monkeypatch.setitem(persistedstate._TEXTS, str, interrupted)
        with state.transaction():
            state.numbers.append("x")

        assert plain(state) == oracle.read(path) == {}


def append_in_transaction(state: Any) -> None:
    with state.transaction():
        state.log.append(1)
        state.log.append(2)


COMPLEX: dict[str, Callable[[Any], object]] = {
    "set in a moving item": lambda state: state["jobs"][1].__setitem__("x", 99),
    "update": lambda state: state["jobs"][1].update(x=7, y=8),
    "clear": lambda state: state["jobs"][1].clear(),
    "pop": lambda state: state["d"].pop("k", None),
    "popitem": lambda state: state["d"].popitem(),
    "delete": lambda state: state["d"].__delitem__("k"),
    "remove": lambda state: state["jobs"].remove({"x": 2}),
    "setdefault": lambda state: state["d"].setdefault("new", []).append(3),
    "transaction": lambda state: transact_and(state, lambda: None),
    "vacuum": lambda state: state.vacuum(),
    "appends in a transaction": append_in_transaction,
    "failing transaction": lambda state: transact_and(state, lambda: dict[str, int]()["missing"]),
    "inner transaction": lambda state: transact_and(
        state, lambda: transact_and(state, lambda: dict[str, int]()["missing"])
    ),
}
STRIKES: dict[str, Callable[[Any], object]] = {
    "moves items": lambda state: state["jobs"].pop(0),
    "removes a key": lambda state: state["d"].pop("k", None),
    "removes the last key": lambda state: state["d"].popitem(),
    "removes a container": lambda state: state.pop("d", None),
    "counts": lambda state: setattr(state, "n", state.n + 100),
    "adds": lambda state: state.__setitem__("added", [1]),
    "appends": lambda state: state["log"].append(-1),
    "vacuums": lambda state: state.vacuum(),
}


def transact_and(state: Any, then: Callable[[], object]) -> None:
    with state.transaction():
        state.n += 1
        state.m = 5
        then()


def strike(number: int, statement: Callable[[], object], handler: Callable[[], object]) -> bool:
    """Let a handler come where the `number`-th call of a function of the module begins; False if there are fewer."""
    calls = itertools.count(1)

    def trace(frame: FrameType, event: str, _: object) -> None:
        is_it = event == "call" and frame.f_code.co_filename == persistedstate.__file__ and next(calls) == number
        if is_it:
            sys.settrace(None)
            with contextlib.suppress(RuntimeError, LookupError, persistedstate.StateError):
                handler()

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(RuntimeError, LookupError, AssertionError, ValueError, OSError):
            statement()
    finally:
        sys.settrace(before)
    return next(calls) > number


@pytest.mark.parametrize("handler", STRIKES.values(), ids=STRIKES)
@pytest.mark.parametrize("statement", COMPLEX.values(), ids=COMPLEX)
def test_handler_where_a_function_begins_leaves_memory_and_file_equal(
    statement: Callable[[Any], object], handler: Callable[[Any], object]
) -> None:
    number, came = 0, True
    while came:
        number += 1
        start: dict[str, Any] = {"jobs": [{"x": 0}, {"x": 1}, {"x": 2}], "d": {"k": 1, "l": {"q": 1}}, "n": 0}
        with scratch() as path, PersistedState(path, **start, m=0, log=[]) as state:
            state.n, state.m = 1, 1
            state.log.append(0)
            came = strike(number, functools.partial(statement, state), functools.partial(handler, state))
            assert plain(state) == oracle.read(path), number
            state.vacuum()
            assert plain(state) == oracle.read(path), number
    assert number > 10


def test_finalizer_that_writes_leaves_memory_and_file_equal(path: Path) -> None:
    """A value that goes away in the middle of a change may have a finalizer that changes the state."""

    class Last(int):
        def __del__(self) -> None:
            with contextlib.suppress(RuntimeError):
                state.gone = int(self)

    with PersistedState(path, a=1, gone=0) as state:
        for number in range(50):
            state.a = Last(number)
            state.l = [Last(number)]
            del state.l
            assert plain(state) == oracle.read(path)
        assert state.a == 49


# ---- Moments that a storm rarely hits --------------------------------------------------------------------------------

FILES = [persistedstate.__file__, contextlib.__file__]


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize(
    ("change", "rest"),
    [
        (lambda items: items.reverse(), ["3   # c", "2   # b", "1   # a"]),
        (lambda items: items.__delitem__(slice(None, None, 2)), ["2   # b"]),
        (lambda items: items.insert(0, 0), ["0", "1   # a", "2   # b", "3   # c"]),
    ],
    ids=["reverse", "delete", "insert"],
)
def test_interrupted_change_of_a_list_is_vacuumed_with_the_comments_of_its_items(
    path: Path, change: Callable[[Any], object], rest: list[str], chance: random.Random
) -> None:
    before = ["1   # a", "2   # b", "3   # c"]
    number, came = 0, True
    while came:
        number += chance.randint(1, 2 * stride() - 1)
        path.write_text("l:\n" + "".join(f"- {item}\n" for item in before))
        with PersistedState(path) as state:
            items = state.l

            came = interrupt_at(number, functools.partial(change, items), FILES)

            content = plain(state)
        assert oracle.read(path) == content, number
        assert path.read_text().replace("- ", "").splitlines()[1:] in (before, rest), number
    assert number > 100


class InterruptedTwice:
    """A system in which Ctrl-C comes right after a call, and again while that is dealt with."""

    def __init__(self, first: str, second: int) -> None:
        self._real, self._left, self.has_acted = persistedstate._system, -1, False
        self._first, self._second = first, second

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            if self._left < 0 and name == self._first:
                self._left = self._second
                raise KeyboardInterrupt
            self._left -= self._left > 0
            if self._left == 0 and not self.has_acted:
                self.has_acted = True
                raise KeyboardInterrupt
            return result

        return call


@pytest.mark.leaves("descriptors", "files")
@pytest.mark.parametrize(
    ("name", "first"),
    [("set", "write"), ("append", "write"), ("slice", "write"), ("transaction", "write"), ("vacuum", "write")]
    + [("vacuum", call) for call in ("open", "fsync", "lock", "close")]
    + [pytest.param(*("vacuum", "replace"))],
)
def test_second_interrupt_while_the_first_is_settled_leaves_memory_and_file_equal(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str
) -> None:
    second, has_acted = 0, True
    while has_acted:
        second += 1
        path.unlink(missing_ok=True)
        with PersistedState(path, a=1, l=[1, 2, 3]) as state:
            state.b = second
            system = InterruptedTwice(first, second)
            with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                patch.setattr(persistedstate, "_system", system)
                STATEMENTS[name](state)
            has_acted = system.has_acted

            state.refresh()  # settles it
            assert oracle.read(path) == plain(state), second
            state.b = -second
            content = plain(state)
            assert oracle.read(path) == content, second
        assert oracle.read(path) == content, second


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("interrupt", [interrupt_at, interrupt_after_call], ids=["instructions", "calls"])
def test_interrupted_close_can_be_made_up_for(interrupt: Callable[..., bool], chance: random.Random) -> None:
    """Once a second `close` is done, the file holds the state, and its lock is free for others and for us."""
    files = {"files": FILES} if interrupt is interrupt_at else {}
    step = stride(7 if interrupt is interrupt_at else 1)
    number, came = chance.randint(1, step), True
    while came:
        with scratch() as mine:
            state = PersistedState(mine, a=1)
            state.a = 2

            came = interrupt(number, state.close, **files)
            state.close()

            assert oracle.read(mine) == {"a": 2}, number
            check_unlocked(mine)
            with PersistedState(
                mine
            ) as again:  # in this thread: between two instructions `with lock` may keep the lock
                again.a = 3
            assert oracle.read(mine) == {"a": 3}, number
        number += step
    assert number > step


@pytest.mark.leaves("descriptors", "threads")
@pytest.mark.parametrize("content", [None, "a: 1\n"], ids=["new", "old"])
@pytest.mark.parametrize("interrupt", [interrupt_at, interrupt_after_call], ids=["instructions", "calls"])
def test_interrupted_opening_can_be_repeated(
    content: str | None, interrupt: Callable[..., bool], chance: random.Random
) -> None:
    """As in a notebook: the process lives on, and nothing of the first try holds the lock."""
    files = {"files": FILES} if interrupt is interrupt_at else {}
    step = stride(7 if interrupt is interrupt_at else 1)
    number, came = chance.randint(1, step), True
    while came:
        with scratch() as mine:
            if content is not None:
                mine.write_text(content)
            opened: list[PersistedState] = []

            came = interrupt(number, lambda opened=opened, mine=mine: opened.append(PersistedState(mine, a=1)), **files)

            for state in opened:
                state.close()
            check_use(mine)
        number += step
    assert number > step


def check_use(path: Path) -> None:
    """The state can be opened, changed and closed, and is free then.

    In this thread: between two instructions, where no signal comes, `with lock` may keep the lock.
    """
    with PersistedState(path, a=1) as state:
        state.a = 3
    assert oracle.read(path) == {"a": 3}
    check_unlocked(path)


def check_unlocked(path: Path) -> None:
    """Raise BlockingIOError where somebody holds the lock, be it this process."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.leaves("descriptors", "threads")
def test_interrupt_does_not_silence_the_timer_of_fsync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever Ctrl-C hits the first change, the changes after it reach the disk in time."""
    synced = threading.Event()

    def fsync(descriptor: int, real: Callable[[int], None] = persistedstate._system.fsync) -> None:
        real(descriptor)
        if threading.current_thread() is not threading.main_thread():
            synced.set()

    monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(fsync))
    number, came = 1, True
    while came:
        with PersistedState(path, _fsync=0.001) as state:
            came = interrupt_after_call(number, functools.partial(state.update, a=1))
            synced.clear()
            state.a = number

            assert synced.wait(PATIENCE), number
        number += 1
    assert number > 10


def test_interrupted_program_ends_by_the_signal_with_its_state_on_the_disk(path: Path) -> None:
    """Ctrl-C that nobody catches: the state is closed on the way out, with all that was done."""
    code = """
        import os, signal, sys
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], done=[])
        try:
            for number in range(1000):
                state.done.append(number)
                if number == 500:
                    os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print(len(state.done))
    """

    done = int(run_child(code, path))

    assert done in {501, 502}
    assert oracle.read(path) == {"done": list(range(done))}


def test_signals_that_a_shell_or_nohup_ignores_reach_what_the_tests_start() -> None:
    """They are inherited, unless conftest.py sees to it."""
    command = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    tests = ["tests/test_opening.py", "tests/test_command_line.py", "-k", "False and SIGHUP or watch_prints_lines"]

    done = subprocess.run([*command, *tests], cwd=ROOT, stdout=-1, text=True, timeout=5 * PATIENCE, check=False)

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
