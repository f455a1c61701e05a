"""`_watch`: what others do is noticed while nobody touches the state; with inotify, and by looks alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from checks import records
from editing import WAYS, save
from processes import PATIENCE, Child
from rounds import rounds as sized
from threads import in_threads

import persistedstate
from persistedstate import PersistedState, on_change, plain
from persistedstate_tools import watching

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

try:
    import inotify_simple
except ImportError:
    inotify_simple = None

START = "# by hand\nn: 1\nlimits:\n  cpu: 1\n  mem: 2\n"
#: Seconds between two looks of these tests, where nothing else tells.
PERIOD = 0.05

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the ways in which editors save are those of POSIX")


class Calls(queue.Queue[tuple[Any, ...]]):
    """What a function was called with, in any thread."""

    def __call__(self, *arguments: Any) -> None:
        self.put((*arguments, threading.current_thread()))

    def next(self) -> tuple[Any, ...]:
        """Wait for the next call; return its arguments, and the thread in which it came."""
        return self.get(timeout=PATIENCE)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture(params=["inotify", "looks"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By what is noticed what others do: by inotify, where no look comes in time, or by looks alone."""
    if request.param == "looks":
        monkeypatch.setitem(sys.modules, "inotify_simple", None)
    elif inotify_simple is None:
        pytest.skip("needs the package inotify-simple, and Linux")
    monkeypatch.setattr(watching, "_PERIOD", PERIOD if request.param == "looks" else 1000 * PATIENCE)
    return str(request.param)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often; by inotify, too, where it is there."""
    monkeypatch.setattr(watching, "_PERIOD", PERIOD)


@pytest.fixture
def excepthook(monkeypatch: pytest.MonkeyPatch) -> Calls:
    told = Calls()
    monkeypatch.setattr(sys, "excepthook", lambda kind, _error, _traceback: told(kind))
    return told


@contextlib.contextmanager
def opened(path: Path, text: str | None = START, **options: Any) -> Iterator[Any]:
    if text is not None:
        path.write_text(text)
    with PersistedState(path, **{"_watch": True, **options}) as state:
        yield state


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("watching ")]


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something holds of which nobody tells."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def await_calm(state: Any) -> None:
    """Wait until nothing that happened before makes the thread look any more, where looks are seldom."""
    seen = looks_of(state._tree.watcher)
    with contextlib.suppress(queue.Empty):
        while watching._PERIOD > PERIOD:
            seen.get(timeout=0.4)
    del state._tree.watcher._try


def looks_of(watcher: watching.Watcher) -> queue.Queue[None]:
    """Note each look that ends."""
    seen: queue.Queue[None] = queue.Queue()

    def noted() -> None:
        watching.Watcher._try(watcher)
        seen.put(None)

    watcher._try = noted  # type: ignore[method-assign]
    return seen


# ---- A person saves --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("way", WAYS)
def test_what_a_person_saves_is_there_without_a_touch(path: Path, calls: Calls, way: str) -> None:
    with opened(path) as state:
        on_change(state, calls)

        for number in 2, 3:  # more than once: some ways to save leave the watched file behind
            await_calm(state)
            save(path, START.replace("cpu: 1", f"cpu: {number}"), way)

            *call, thread = calls.next()
            assert call == [("limits", "cpu"), number - 1, number]
            assert [thread] == threads()
            assert state.limits["cpu"] == number
    assert path.read_text() == START.replace("cpu: 1", "cpu: 3")


@pytest.mark.usefixtures("how")
def test_both_hands_are_kept(path: Path, calls: Calls) -> None:
    with opened(path) as state:
        state.n = 2
        on_change(state, calls)

        save(path, START.replace("mem: 2", "mem: 3  # more"))

        assert calls.next()[:-1] == (("limits", "mem"), 2, 3)
        assert state == {"n": 2, "limits": {"cpu": 1, "mem": 3}}
    assert path.read_text() == START.replace("n: 1", "n: 2").replace("mem: 2", "mem: 3  # more")


@pytest.mark.usefixtures("how")
def test_a_link_and_what_it_leads_to(path: Path, calls: Calls, tmp_path_factory: pytest.TempPathFactory) -> None:
    real, other = (tmp_path_factory.mktemp("elsewhere") / f"{name}.state" for name in ("real", "other"))
    real.write_text(START)
    other.write_text(START.replace("n: 1", "n: 3"))
    path.symlink_to(real)
    with opened(path, None) as state:
        on_change(state, calls)
        await_calm(state)
        save(real, START.replace("n: 1", "n: 2"))
        assert calls.next()[:-1] == (("n",), 1, 2)

        await_calm(state)
        link = path.with_name("link")
        link.symlink_to(other)
        link.replace(path)
        assert calls.next()[:-1] == (("n",), 2, 3)

        await_calm(state)
        save(other, START.replace("n: 1", "n: 4"))
        assert calls.next()[:-1] == (("n",), 3, 4)
    assert "n: 4" in other.read_text()


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_moved_and_comes_back(path: Path, calls: Calls) -> None:
    """No event tells of a folder further up."""
    home = path.parent / "a" / "b"
    home.mkdir(parents=True)
    file = home / "x.state"
    with opened(file) as state:
        on_change(state, calls)
        away = path.parent / "away"
        home.parent.rename(away)
        save(away / "b" / "x.state", START.replace("n: 1", "n: 2"))
        away.rename(home.parent)
        assert calls.next()[:-1] == (("n",), 1, 2)

        save(file, START.replace("n: 1", "n: 3"))
        assert calls.next()[:-1] == (("n",), 2, 3)
    file.unlink()
    home.rmdir()
    home.parent.rmdir()


#: Prints each change and each warning as a line, the latter without what a moment makes different.
DAEMON = """
    import json, os, re, sys, threading, time, warnings
    import persistedstate
    from persistedstate import PersistedState, on_change
    from persistedstate_tools import watching

    def shown(text):
        return text.replace(sys.argv[1], "FILE").partition(";")[0].partition("\\n")[0]

    class Lines:
        def write(self, text):
            if text.strip():
                print(shown(text), flush=True)
        def flush(self): pass

    if sys.argv[2:] == ["errors"]:
        warnings.simplefilter("error")
        sys.stderr = Lines()
    else:
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, kind, *_: print(f"{kind.__name__}: {shown(str(message))}", flush=True)
    watching._PERIOD = 0.05

    def edit():
        with open(sys.argv[1], "a") as file:
            file.write("more: 1\\n")
"""

#: Prints what it is told of, until its standard input ends.
TOLD = """
    state = {}
    on_change(state, lambda *change: print(*change, flush=True))
    print("open", flush=True)
    sys.stdin.read()
    state.close()
"""


@pytest.mark.usefixtures("quick")
def test_a_save_that_is_no_state_and_is_mended_in_time_is_merged(
    path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person saves once more when the thread has read what is broken."""

    def read(*arguments: Any, **options: Any) -> persistedstate._HandEdit:
        edit = kind(*arguments, **options)
        if edit.saved is None:
            save(path, START.replace("n: 1", "n: 2"))
        return edit

    kind = persistedstate._HandEdit
    monkeypatch.setattr(persistedstate, "_HandEdit", read)
    monkeypatch.setattr(persistedstate, "_PATIENCE", PATIENCE)
    with opened(path) as state:
        on_change(state, calls)
        save(path, "n: [\n")

        assert calls.next()[:-1] == (("n",), 1, 2)


@pytest.mark.leaves("files")
@pytest.mark.parametrize("warnings", ["warnings", "errors"])
def test_a_save_that_is_no_state_is_told_and_kept_beside(path: Path, warnings: str) -> None:
    path.write_text(START)
    with Child(DAEMON + TOLD.format("PersistedState(sys.argv[1], _watch=True)"), path, warnings) as child:
        child.expect("open")

        save(path, "n: [\n")
        assert child.line().startswith("RuntimeWarning: FILE: what was saved there ")
        eventually(lambda: path.read_text() == START)
        save(path, START.replace("n: 1", "n: 2"))
        child.expect("('n',) 1 2")
        path.unlink()
        child.expect("RuntimeWarning: FILE: the file was removed. The file holds the state of the running script again")
        save(path, START.replace("n: 1", "n: 3"))
        child.expect("('n',) 2 3")

        child.finish()
    [kept] = [file for file in path.parent.iterdir() if file != path]
    assert kept.read_text() == "n: [\n"


@pytest.mark.leaves("files")
def test_a_save_that_is_not_as_declared_is_told_and_kept_beside(path: Path) -> None:
    pytest.importorskip("msgspec")
    declared = "    class Importer(PersistedState):\n        n: int = 1\n"
    with Child(DAEMON + declared + TOLD.format("Importer(sys.argv[1], _watch=True)"), path) as child:
        child.expect("open")
        save(path, "n: five\n")
        assert child.line().startswith("RuntimeWarning: FILE: ")
        save(path, "n: 5\n")
        child.expect("('n',) 1 5")
        child.finish()


@sized(ci=40, nightly=1000)
@pytest.mark.usefixtures("quick")
def test_edits_of_a_file_that_a_script_writes(path: Path, chance: random.Random, rounds: int) -> None:
    """Each hand has keys of its own: what it did last is there at the end, whatever the moments were."""
    stop, edits, changes = threading.Event(), {"p": 0, "q": 0}, {"a": 0, "b": 0}
    with opened(path, "a: 0\nb: 0\np: 0\nq: 0\n") as state:

        def work() -> None:
            pause = 0.0
            while not stop.wait(pause):
                key = chance.choice("ab")
                changes[key] += 1
                with state.transaction():
                    state[key] = changes[key]
                pause = chance.choice([0.0, 0.0001, 0.01])

        with in_threads(work, until=stop):
            for number in range(1, rounds + 1):
                key = chance.choice("pq")
                edits[key] = number
                text = path.read_text()
                lines = [f"{key}: {number}" if line.startswith(f"{key}: ") else line for line in text.split("\n")]
                save(path, "\n".join(lines), "rename")
                eventually(lambda key=key, number=number: state[key] == number)  # type: ignore[misc]
        assert plain(state) == {**changes, **edits}
    with PersistedState(path) as state:
        assert plain(state) == {**changes, **edits}


# ---- A function that is called ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("how")
def test_with_a_function_the_script_takes_over_where_it_wants(path: Path, calls: Calls) -> None:
    told = threading.Event()
    with opened(path, _watch=told.set) as state:
        on_change(state, calls)
        for number in range(2, 4):
            save(path, START.replace("n: 1", f"n: {number}"))

            assert told.wait(PATIENCE)
            told.clear()
            assert (state.n, calls.qsize()) == (number - 1, 0)
            assert state.refresh()
            assert calls.next() == (("n",), number - 1, number, threading.current_thread())


@pytest.mark.usefixtures("quick")
def test_a_loop_takes_over_where_its_tasks_run(path: Path, calls: Calls) -> None:
    async def serve() -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with opened(path, _watch=lambda: loop.call_soon_threadsafe(state.refresh)) as state:  # type: ignore[has-type]
            on_change(state, calls)
            on_change(state, lambda *_: changed.set())
            save(path, START.replace("n: 1", "n: 2"))
            await asyncio.wait_for(changed.wait(), PATIENCE)

    asyncio.run(serve())

    assert calls.next() == (("n",), 1, 2, threading.current_thread())


@pytest.mark.usefixtures("quick")
def test_what_was_told_is_told_again_where_a_transaction_kept_it_from_being_taken_over(path: Path) -> None:
    """That of a task began in front of the refresh, and leaves no change behind which somebody would look."""

    async def serve() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        with opened(path, _watch=lambda: loop.call_soon_threadsafe(told.set)) as state:
            save(path, START.replace("n: 1", "n: 2"))
            await asyncio.wait_for(told.wait(), PATIENCE)
            told.clear()
            async with state.transaction():
                assert not state.refresh()
            await asyncio.wait_for(told.wait(), PATIENCE)
            assert state.refresh()
            assert state.n == 2

    asyncio.run(serve())


@pytest.mark.usefixtures("quick")
def test_what_was_told_comes_with_the_next_change(path: Path, calls: Calls) -> None:
    told = threading.Event()
    with opened(path, _watch=told.set) as state:
        state.n = 2
        save(path, START.replace("cpu: 1", "cpu: 2"))
        assert told.wait(PATIENCE)
        on_change(state, calls, "limits")

        state.n = 3

        assert calls.next() == (("limits", "cpu"), 1, 2, threading.current_thread())
        assert state.n == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("shared", [False, True])
def test_a_save_is_told_once_and_the_script_itself_never(path: Path, calls: Calls, shared: bool) -> None:
    with opened(path, _watch=calls, _shared=shared) as state:
        watcher = state._tree.watcher
        for number in range(3):
            state.n = number
            state.vacuum()
            await_looks(watcher, 3)
        assert calls.empty()

        save(path, START)
        await_looks(watcher, 3)
        calls.next()
        state.refresh()
        await_looks(watcher, 3)
        assert calls.empty()


def await_looks(watcher: watching.Watcher, number: int) -> None:
    """Wait until so many looks have ended; the first of them may have begun before."""
    seen = looks_of(watcher)
    for _ in range(number):
        seen.get(timeout=PATIENCE)
    del watcher._try


@pytest.mark.usefixtures("quick")
def test_what_functions_raise_is_told_and_ends_nothing(path: Path, calls: Calls, excepthook: Calls) -> None:
    with opened(path) as state:
        on_change(state, lambda *_: sys.exit(3), "n")
        on_change(state, lambda *_: 1 // 0, "n")
        on_change(state, calls, "n")
        for number in range(2, 4):
            save(path, START.replace("n: 1", f"n: {number}"))
            assert {excepthook.next()[0], excepthook.next()[0]} == {SystemExit, ZeroDivisionError}
            assert calls.next()[:-1] == (("n",), number - 1, number)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, SystemExit])
def test_what_the_function_raises_is_told_and_ends_nothing(
    path: Path, excepthook: Calls, error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error

    with opened(path, _watch=fail) as state:
        for number in range(2, 4):
            save(path, START.replace("n: 1", f"n: {number}"))
            assert excepthook.next()[0] is error
            state.refresh()
            assert state.n == number


# ---- Beginning and end -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("how")
def test_close_ends_the_thread_and_waits_for_that(path: Path) -> None:
    with opened(path):
        assert len(threads()) == 1
    assert threads() == []


@pytest.mark.usefixtures("quick")
def test_close_within_the_lock_does_not_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PATIENCE", 10 * PATIENCE)
    with opened(path) as state, state._thread_lock:
        [thread] = threads()
        save(path, START.replace("n: 1", "n: 2"))
        state.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert path.read_text() == START.replace("n: 1", "n: 2")


@pytest.mark.usefixtures("quick")
def test_nothing_is_taken_over_after_close(path: Path, calls: Calls) -> None:
    path.write_text(START)
    looks = threading.Event()
    with opened(path, _readonly=True) as state:
        on_change(state, calls)
        [thread], watcher = threads(), state._tree.watcher
        with state._thread_lock:

            def look(sight: Any) -> None:
                looks.set()
                watching.Watcher._look(watcher, sight)

            watcher._look = look
            save(path, START.replace("n: 1", "n: 2"))
            assert looks.wait(PATIENCE)
            state.close()
    thread.join(PATIENCE)
    assert calls.empty()


@pytest.mark.usefixtures("quick")
def test_a_function_may_close_the_state(path: Path) -> None:
    closed = threading.Event()
    with opened(path) as state:
        [thread] = threads()

        def close(*_: object) -> None:
            state.close()
            closed.set()

        on_change(state, close)
        save(path, START.replace("n: 1", "n: 2"))
        assert closed.wait(PATIENCE)
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.usefixtures("quick")
def test_close_does_not_wait_for_ever_for_a_function(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PATIENCE", 0.01)
    begun, goes_on = threading.Event(), threading.Event()
    with opened(path) as state:
        [thread] = threads()

        def wait(*_: object) -> None:
            begun.set()
            goes_on.wait(PATIENCE)

        on_change(state, wait)
        save(path, START.replace("n: 1", "n: 2"))
        assert begun.wait(PATIENCE)
    goes_on.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.usefixtures("quick")
def test_two_objects_of_one_file_have_one_thread_as_long_as_one_wants_it(path: Path, calls: Calls) -> None:
    path.write_text(START)
    with PersistedState(path) as state:
        one, other = PersistedState(path, _watch=True), PersistedState(path, _watch=True)
        [thread] = threads()
        on_change(state, calls)
        one.close()
        save(path, START.replace("n: 1", "n: 2"))
        assert calls.next()[:-1] == (("n",), 1, 2)

        other.close()
        assert (threads(), thread.is_alive()) == ([], False)
        with PersistedState(path, _watch=True):
            save(path, START.replace("n: 1", "n: 3"))
            assert calls.next()[:-1] == (("n",), 2, 3)
        assert threads() == []


@pytest.mark.usefixtures("quick")
def test_an_object_that_nobody_has_any_more_watches_for_those_who_are_told(path: Path, calls: Calls) -> None:
    path.write_text(START)
    stop = on_change(PersistedState(path, _watch=True), calls)
    save(path, START.replace("n: 1", "n: 2"))
    assert calls.next()[:-1] == (("n",), 1, 2)

    stop()

    eventually(lambda: not threads())
    PersistedState(path).close()


def test_a_state_that_cannot_be_opened_leaves_no_thread(path: Path) -> None:
    with opened(path), pytest.raises(persistedstate.StateError, match="_mode"):
        PersistedState(path, _watch=True, _mode=0o400)
    assert threads() == []


@pytest.mark.parametrize("option", [None, 1.0, "notify"])
def test_other_options_are_refused(path: Path, option: Any) -> None:
    with pytest.raises(TypeError, match="_watch is False, True or a function, not"):
        PersistedState(path, _watch=option)
    assert not path.exists()


@pytest.mark.leaves("comments")  # as the list of warnings is called
def test_where_no_thread_can_be_started_it_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def fail(_thread: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(watching, "_warn_afterwards", told.append)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with opened(path) as state:
        monkeypatch.undo()
        assert told == [f"{path}: what others do is noticed at the next change only (can't start new thread)"]
        save(path, START.replace("n: 1", "n: 2"))
        assert state.refresh()


def test_who_does_not_want_it_does_not_pay(path: Path) -> None:
    script = (
        "import sys; from persistedstate import PersistedState\n"
        "with PersistedState(sys.argv[1], n=0) as state: state.n += 1\n"
        "print([name for name in ('threading', 'ctypes', 'persistedstate_tools') if name in sys.modules])"
    )
    with Child(script, path) as child:
        child.expect("[]")
        child.finish()


ENDS: dict[str, str] = {
    "at its last line": "pass",
    "by sys.exit": "sys.exit()",
    "in a look": "look = watching.Watcher._look; inside = threading.Event()\n"
    "    def slow(self, sight): inside.set(); time.sleep(0.2); look(self, sight)\n"
    "    watching.Watcher._look = slow; inside.wait()",
    "while a function runs": "begun = threading.Event(); watching._PATIENCE = 0.1\n"
    "    on_change(state, lambda *_: (begun.set(), time.sleep(3600)))\n"
    "    edit(); begun.wait()",
    "while a function has something to do": "begun = threading.Event()\n"
    "    on_change(state, lambda *_: (begun.set(), time.sleep(0.2), print('done', flush=True)))\n"
    "    edit(); begun.wait()",
    "with the lock held": "state._thread_lock.__enter__()\n    edit()",
    "and opens another at its end": "import atexit\n"
    "    atexit.register(lambda: PersistedState(sys.argv[1] + '2', _watch=True, n=2).close())",
}


@pytest.mark.leaves("files")
@pytest.mark.parametrize("end", ENDS)
def test_a_script_that_does_not_close_ends(path: Path, end: str) -> None:
    """Without a word and at once, whatever its thread is in the middle of; and what was saved last is merged.

    From CPython 3.12 on no thread starts any more at the end of a process, which one is told that wants another one.
    """
    path.write_text(START)
    with Child(f"{DAEMON}    state = PersistedState(sys.argv[1], _watch=True)\n    {ENDS[end]}", path) as child:
        said, errors = child._process.communicate(timeout=PATIENCE)
        assert (child._process.returncode, errors) == (0, b"")
        is_refused = "opens another" in end and b"at interpreter shutdown" in said
        assert is_refused or said == (b"done\n" if "done" in ENDS[end] else b"")
    with PersistedState(path) as state:
        assert state.get("more") == (1 if "edit" in ENDS[end] else None)


def test_in_a_process_whose_threads_are_greenlets(path: Path) -> None:
    pytest.importorskip("gevent")
    path.write_text(START)
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import gevent, sys; from persistedstate import PersistedState, on_change\n"
        "told = gevent.event.Event()\n"
        "with PersistedState(sys.argv[1], _watch=True) as state:\n"
        "    on_change(state, lambda *change: (print(*change), told.set()))\n"
        "    print('open', flush=True)\n"
        "    told.wait()\n"
    )
    with Child(script, path) as child:
        child.expect("open")
        save(path, START.replace("n: 1", "n: 2"))
        child.expect("('n',) 1 2")
        child.finish()


# ---- Forks -----------------------------------------------------------------------------------------------------------

#: Parent and child tell of changes, and touch the state for nothing else.
FORKING = (
    DAEMON
    + """
    state, parent = PersistedState(sys.argv[1], _watch=True, **json.loads(sys.argv[2])), os.getpid()
    def tell(*change):
        who = "parent" if os.getpid() == parent else "child"
        os.write(1, f"{who} {change}\\n".encode())  # a whole line
    on_change(state, tell)
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
    up, down = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(up[1], b".")
        os.read(down[0], 1)
        state.close()
        os._exit(threading.active_count() - 1)
    os.read(up[0], 1)
    print("ready", flush=True)
    sys.stdin.readline()
    os.write(down[1], b".")
    print("over", os.waitpid(child, 0)[1])
    state.close()
"""
)


@pytest.mark.parametrize("options", [{"_shared": True}, {"_readonly": True}])
def test_a_forked_child_has_a_thread_of_its_own(path: Path, options: dict[str, Any]) -> None:
    """Where it may go on with the state."""
    path.write_text(START)
    with Child(FORKING, path, json.dumps(options)) as family:
        family.expect("ready")

        save(path, START.replace("n: 1", "n: 2"))

        assert {family.line(), family.line()} == {"parent (('n',), 1, 2)", "child (('n',), 1, 2)"}
        family.tell()
        family.expect("over 0")
        family.finish()


def test_a_forked_child_that_may_not_go_on_has_none(path: Path) -> None:
    path.write_text(START)
    script = (
        DAEMON
        + """
    state = PersistedState(sys.argv[1], _watch=True)
    warnings.simplefilter("ignore", DeprecationWarning)
    on_change(state, lambda *change: print(*change, flush=True))
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    child = os.fork()
    if not child:
        left = [link for link in map(linked, before) if "inotify" in link or "eventpoll" in link or "socket" in link]
        print(threading.active_count(), left, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    sys.stdin.read()
    state.close()
"""
    )
    script = script.replace(
        "    state = ",
        """    def linked(number):
        try: return os.readlink(f"/proc/self/fd/{number}")
        except OSError: return ""
    state = """,
        1,
    )
    with Child(script, path) as parent:
        parent.expect("1 []")
        save(path, START.replace("n: 1", "n: 2"))
        parent.expect("('n',) 1 2")
        parent.finish()


# ---- States that others write ----------------------------------------------------------------------------------------

WRITER = """
    import sys
    from persistedstate import PersistedState
    state = PersistedState(sys.argv[1], **eval(sys.argv[2]))
    print("open", flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
"""


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize(("theirs", "mine"), [({}, {"_readonly": True}), ({"_shared": True}, {"_shared": True})])
def test_what_another_process_writes(path: Path, calls: Calls, theirs: Any, mine: Any) -> None:
    """By an append, which closes no file, and by a vacuum, which puts another one in its place."""
    path.write_text(START)
    with Child(WRITER, path, theirs) as writer:
        writer.expect("open")
        with opened(path, None, **mine) as state:
            on_change(state, calls)
            for number in range(2, 5):
                await_calm(state)
                writer.tell(f"state.n = {number}; {number} % 3 or state.vacuum()")
                writer.expect("done")
                assert calls.next()[:-1] == (("n",), number - 1, number)
                assert state.n == number
        writer.finish()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mine", [{"_readonly": True}, {"_shared": True}])
def test_what_another_process_writes_is_told(path: Path, mine: Any) -> None:
    path.write_text(START)
    told = threading.Event()
    with Child(WRITER, path, {"_shared": True}) as writer:
        writer.expect("open")
        with opened(path, None, _watch=told.set, **mine) as state:
            for number in range(2, 5):
                writer.tell(f"state.n = {number}; {number} % 3 or state.vacuum()")
                writer.expect("done")
                assert told.wait(PATIENCE)
                told.clear()
                assert state.n == number - 1
                assert state.refresh()
                assert state.n == number
        writer.finish()


@pytest.mark.stress
@sized(ci=300, nightly=5000)
def test_transactions_of_two_who_watch_lose_nothing(path: Path, chance: random.Random, rounds: int) -> None:
    del chance
    script = (
        "import sys; from persistedstate import PersistedState; from persistedstate_tools import watching\n"
        "watching._PERIOD = 0.001\n"
        "with PersistedState(sys.argv[1], _shared=True, _watch=True, n=0) as state:\n"
        "    print('open', flush=True); sys.stdin.readline()\n"
        "    for _ in range(int(sys.argv[2])):\n"
        "        with state.transaction(): state.n += 1\n"
    )
    with Child(script, path, rounds) as one, Child(script, path, rounds) as other:
        for child in one, other:
            child.expect("open")
        for child in one, other:
            child.tell()
        for child in one, other:
            child.finish()
    with PersistedState(path) as state:
        assert state.n == 2 * rounds


@pytest.mark.parametrize("damage", ["bad", "missing"])
def test_a_follower_waits_until_the_file_is_well_again(path: Path, damage: str) -> None:
    path.write_text(START)
    script = DAEMON + TOLD.format("PersistedState(sys.argv[1], _readonly=True, _watch=True)")
    with Child(script, path) as child:
        child.expect("open")
        if damage == "bad":
            save(path, "n: [\n")
            assert child.line().startswith("RuntimeWarning: FILE: line ")
        else:
            path.unlink()

        save(path, START.replace("n: 1", "n: 2"))

        child.expect("('n',) 1 2")
        child.finish()


# ---- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.leaves("comments", "files")
@pytest.mark.usefixtures("quick")
def test_what_stays_wrong_is_told_once_and_tried_seldom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try with a bad text would keep that beside once more."""
    told = Calls()
    monkeypatch.setattr(watching, "_warn_afterwards", told)
    monkeypatch.setattr(watching, "_LONGEST", 0.4)
    tries: list[None] = []
    with opened(path) as state:
        real, failures = state._tree.journal.replace, 1

        def replace(*arguments: Any) -> None:
            nonlocal failures
            tries.append(None)
            failures -= 1
            if failures >= 0:
                raise PermissionError(13, "no", "here")
            real(*arguments)

        monkeypatch.setattr(state._tree.journal, "replace", replace)
        save(path, START.replace("n: 1", "n: 2"))
        eventually(lambda: state.n == 2)
        assert told.empty()

        for number in 3, 4:
            failures = 1000
            tries.clear()
            save(path, START.replace("n: 1", f"n: {number}"))
            assert told.next()[0] == f"{path}: [Errno 13] no: 'here'"
            await_looks(state._tree.watcher, 10)
            assert len(tries) < 10
            assert told.empty()

            failures = 0
            eventually(lambda number=number: state.n == number)  # type: ignore[misc]
        assert records(path) == 0


@pytest.mark.usefixtures("quick")
def test_a_script_that_writes_all_the_time_is_left_alone(path: Path) -> None:
    """It looks itself, every tenth of a second: the thread has nothing to do, and reads nothing."""
    with opened(path) as state:
        looks: list[None] = []
        watcher = state._tree.watcher
        watcher._look = lambda _sight: looks.append(None)
        state._tree.journal.due_at = persistedstate._system.now() + 1000
        await_looks(watcher, 3)
        looks.clear()
        await_looks(watcher, 3)

        assert looks == []
        state._tree.journal.due_at = 0.0
        await_looks(watcher, 2)
        assert looks
