"""One writer at a time: other processes, forks, threads, and readers that follow the writer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import threading
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from checks import run_child
from processes import DROP_PRIVILEGES, WRITE_CALLS, Child, at_each_moment, count_calls, listing
from rounds import rounds as sized
from rounds import some
from threads import in_threads, together

import persistedstate
from persistedstate import PersistedState, StateClosed, StateError, StateLocked, StateReadOnly, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Opens the file of the first argument, then executes each line that it is told, and answers "ok".
HOLDER = """
    import sys
    from persistedstate import PersistedState, plain
    state = PersistedState(sys.argv[1], a=1, l=[])
    print("open", flush=True)
    for line in sys.stdin:
        exec(line)
        print("ok", flush=True)
"""


def do(child: Child, statement: str) -> None:
    """Let a HOLDER execute a statement."""
    child.tell(statement)
    child.expect("ok")


@pytest.fixture
def holder(path: Path) -> Iterator[Child]:
    """Another process that holds the state at `path`."""
    with Child(HOLDER, path) as child:
        child.expect("open")
        yield child


def on_disk(path: Path) -> Any:
    """Read a file that holds nothing but a snapshot, fast."""
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    (snapshot,) = yaml.load_all(path.read_bytes(), loader)
    return snapshot


# ---- A second process ------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_pid_of_the_holder(path: Path, holder: Child) -> None:
    before = path.read_bytes(), path.stat().st_mtime_ns

    with pytest.raises(StateLocked, match=rf"\b{holder.pid}\b") as caught:
        PersistedState(path, b=2)

    error = caught.value
    assert error.pid == holder.pid
    assert os.fspath(error.path) == str(path)
    assert str(error) == (
        f"{path}: in use by process {holder.pid}; share it with _shared=True in both, end it, wait with _wait=seconds, "
        "or read with _readonly=True"
    )
    assert isinstance(error, TimeoutError)
    assert isinstance(error, StateError)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert listing(path.parent) == ["x.state"]


def test_the_holder_goes_on_after_a_refusal(path: Path, holder: Child) -> None:
    for _ in range(3):
        with pytest.raises(StateLocked):
            PersistedState(path)

    do(holder, "state.a = 2")
    do(holder, "state.vacuum()")
    do(holder, "state.l.append(3)")
    do(holder, "state.close()")

    with PersistedState(path) as state:
        assert plain(state) == {"a": 2, "l": [3]}


def test_the_lock_is_found_through_links(path: Path, holder: Child, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(path)

    with pytest.raises(StateLocked) as caught:
        PersistedState(link)

    assert caught.value.pid == holder.pid


def test_a_closed_state_is_free(path: Path, holder: Child) -> None:
    do(holder, "state.close()")

    with PersistedState(path) as state:
        assert state.a == 1


def test_the_end_of_the_holder_frees_the_lock(path: Path, holder: Child) -> None:
    do(holder, "state.a = 2")
    holder.finish()

    with PersistedState(path) as state:
        assert state.a == 2


def test_sigkill_of_the_holder_frees_the_lock(path: Path, holder: Child) -> None:
    do(holder, "state.a = 2")
    with pytest.raises(StateLocked):
        PersistedState(path)

    holder.kill()

    with PersistedState(path) as state:
        assert state.a == 2
    assert listing(path.parent) == ["x.state"]


def test_sigkill_of_the_holder_frees_the_lock_while_a_program_it_started_runs(path: Path, holder: Child) -> None:
    """A program that the holder started inherits nothing of the lock, not even without `close_fds`."""
    holder.tell("import subprocess as s; p = s.Popen(['sleep', '60'], close_fds=False, stdout=s.DEVNULL); print(p.pid)")
    program = int(holder.line())
    holder.expect("ok")
    holder.kill()

    try:
        os.kill(program, 0)
        with PersistedState(path) as state:
            assert state.a == 1
    finally:
        os.kill(program, signal.SIGKILL)


@pytest.mark.parametrize("links", [False, True], ids=["replaced", "rewritten in place"])
def test_the_lock_survives_a_vacuum(tmp_path: Path, links: bool) -> None:
    path = tmp_path / "x.state"
    inodes: set[int] = set()
    path.write_text("a: 1\nl: []\n")
    if links:
        os.link(path, tmp_path / "other.state")
    with Child(HOLDER, path) as holder:
        holder.expect("open")
        for n in range(3):
            inodes.add(path.stat().st_ino)
            do(holder, f"state.a = {n}")
            do(holder, "state.vacuum()")

            with pytest.raises(StateLocked) as caught:
                PersistedState(path)
            assert caught.value.pid == holder.pid

        inodes.add(path.stat().st_ino)
        do(holder, "state.a = 7")
        do(holder, "state.close()")

    assert (len(inodes) == 1) == links
    with PersistedState(path) as state:
        assert state.a == 7


def test_an_error_while_opening_frees_the_lock(path: Path) -> None:
    path.write_text("a: [\n")
    code = "import sys, persistedstate; persistedstate.PersistedState(sys.argv[1]).close()"

    with pytest.raises(StateError):
        PersistedState(path)
    with pytest.raises(TypeError):
        PersistedState(path, bad={1})
    path.write_text("a: 1\n")

    run_child(code, path)


def test_a_file_system_without_locks_is_an_oserror(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "refused")

    with PersistedState(path, a=1) as state, monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        state.a = 2
        with pytest.raises(OSError, match="refused") as caught:
            state.vacuum()
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.warns(RuntimeWarning, match="no vacuum"):
            state.close()
        with pytest.raises(OSError, match="refused"):
            PersistedState(path)

    with PersistedState(path) as state:
        assert plain(state) == {"a": 2}


# ---- Waiting ---------------------------------------------------------------------------------------------------------

WAITER = """
    import sys
    from persistedstate import PersistedState
    try:
        print("trying", flush=True)
        with PersistedState(sys.argv[1], _wait=float(sys.argv[2])) as state:
            print("a is", state.a, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_wait_lasts_until_the_holder_lets_go(path: Path, holder: Child, end: str) -> None:
    with Child(WAITER, path, 600) as waiter:
        waiter.expect("trying")
        for n in range(20):  # each vacuum gives the path a new inode under the waiting one
            do(holder, f"state.a = {n}")
            do(holder, "state.vacuum()")
        do(holder, "state.a = 99")
        if end == "close":
            do(holder, "state.close()")
        else:
            holder.kill()

        waiter.expect("a is 99")
        waiter.finish()


def test_wait_ends_with_the_time_given(path: Path, holder: Child) -> None:
    begin = time.monotonic()

    with pytest.raises(StateLocked) as caught:
        PersistedState(path, _wait=0.3)

    assert time.monotonic() - begin >= 0.3
    assert caught.value.pid == holder.pid


def test_wait_can_be_interrupted(path: Path, holder: Child) -> None:
    with Child(WAITER, path, 600) as waiter:
        waiter.expect("trying")
        waiter.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        waiter.finish()

    do(holder, "state.a = 2")


def test_processes_that_take_turns_lose_nothing(path: Path) -> None:
    """Four processes open, increment and close 15 times each; every close replaces the file."""
    code = """
        import os, sys
        from persistedstate import PersistedState
        sys.stdin.readline()
        for _ in range(15):
            with PersistedState(sys.argv[1], _wait=600, counter=0, by=[]) as state:
                state.counter += 1
                state.by.append(os.getpid())
        print("done")
    """
    children = [Child(code, path) for _ in range(4)]
    try:
        for child in children:
            child.tell()
        for child in children:
            child.expect("done")
            child.finish()
    finally:
        for child in children:
            child.kill()

    content = on_disk(path)
    assert content["counter"] == 60
    assert sorted(content["by"]) == sorted([child.pid for child in children] * 15)
    assert listing(path.parent) == ["x.state"]


# ---- Forks -----------------------------------------------------------------------------------------------------------

FORKER = """
    import multiprocessing, os, sys, time, warnings
    from persistedstate import PersistedState, StateError, plain
    warnings.simplefilter("ignore")
    path = sys.argv[1]
    state = PersistedState(path, a=1, d={"k": 1}, l=[1])
    state.a = 2
    d, l = state.d, state.l
    parent = os.getpid()

    def bytes_now():
        with open(path, "rb") as file:
            return file.read()

    def attempt(action):
        # Both pids must be named; anything but a StateError, and no error, is printed as it is.
        try:
            action()
        except StateError as error:
            missing = [str(pid) for pid in (parent, os.getpid()) if str(pid) not in str(error)]
            return f"refused, {missing} not named" if missing else "refused"
        except BaseException as error:
            return repr(error)
        return "allowed"

    def transact():
        with state.transaction():
            pass

    def enter():
        with state:
            pass
"""

TOUCHES = [
    "state.__setattr__('a', 3)",
    "state.__setitem__('b', 1)",
    "state.__delitem__('a')",
    "state.update(a=3)",
    "state.clear()",
    "state.pop('a')",
    "state.setdefault('z', 1)",
    "d.__setitem__('k', 3)",
    "d.clear()",
    "l.append(3)",
    "l.sort()",
    "l.__setitem__(0, 5)",
    "state.vacuum()",
    "state.refresh()",
    "transact()",
]


def test_a_forked_child_that_touches_the_state_gets_an_error_with_both_pids(path: Path) -> None:
    script = f"""{FORKER}
    before = bytes_now()
    child = os.fork()
    if not child:
        for touch in {TOUCHES!r}:
            print(touch, "->", attempt(lambda: eval(touch)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("same", bytes_now() == before)
    state.a += 1
    print(plain(state))
    state.close()
    """

    answer = run_child(script, path).splitlines()

    assert answer[:-2] == [f"{touch} -> refused" for touch in TOUCHES]
    assert answer[-2:] == ["same True", str({"a": 3, "d": {"k": 1}, "l": [1]})]
    assert on_disk(path) == {"a": 3, "d": {"k": 1}, "l": [1]}


def test_threads_of_a_forked_child_open_other_files(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the parent holds while it forks, the child lets go: its own threads would wait for it for ever."""
    other = tmp_path_factory.mktemp("other") / "child.state"
    script = f"""{FORKER}
    import threading
    def work():
        with PersistedState({str(other)!r}, n=0) as other:
            other.n += 1
    child = os.fork()
    if not child:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(30)
        os._exit(thread.is_alive())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """

    assert run_child(script, path).splitlines() == ["0"]
    assert on_disk(other) == {"n": 1}


@pytest.mark.parametrize(
    "end",
    [
        "os._exit(0)",
        "sys.exit(0)",
        "raise KeyError('child')",
        "state.close(); sys.exit(0)",
        "enter(); sys.exit(0)",
        "del state, d, l; import gc; gc.collect(); sys.exit(0)",
        "os.execv(sys.executable, [sys.executable, '-c', ''])",
    ],
)
def test_the_end_of_a_forked_child_leaves_file_and_lock_alone(path: Path, end: str) -> None:
    script = f"""{FORKER}
    before = bytes_now(), os.stat(path).st_ino
    child = os.fork()
    if not child:
        sys.stderr = open(os.devnull, "w")
        {end}
    else:
        os.waitpid(child, 0)
        print("same", (bytes_now(), os.stat(path).st_ino) == before, flush=True)
        sys.stdin.readline()
        state.a += 1
        state.close()
    """
    with Child(script, path) as child:
        child.expect("same True")

        with pytest.raises(StateLocked) as caught:
            PersistedState(path)

        child.tell()
        child.finish()
    assert caught.value.pid == child.pid
    assert on_disk(path) == {"a": 3, "d": {"k": 1}, "l": [1]}


def test_multiprocessing_with_fork_leaves_file_and_lock_alone(path: Path) -> None:
    script = f"""{FORKER}
    def work(queue):
        queue.put([attempt(lambda: eval(touch)) for touch in {TOUCHES!r}])

    before = bytes_now()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    print(set(queue.get()))
    process.join()
    with context.Pool(2) as pool:
        print(pool.map(abs, [-1, -2]))
    print("same", bytes_now() == before, flush=True)
    sys.stdin.readline()
    state.a += 1
    state.close()
    """
    with Child(script, path) as child:
        child.expect("{'refused'}")
        child.expect("[1, 2]")
        child.expect("same True")

        with pytest.raises(StateLocked):
            PersistedState(path)

        child.tell()
        child.finish()
    assert on_disk(path) == {"a": 3, "d": {"k": 1}, "l": [1]}


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_forked_child_does_not_keep_the_lock_of_its_parent(path: Path, end: str) -> None:
    script = f"""{FORKER}
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(1)
        os.close(2)
        os.write(into, b"x")
        time.sleep(60)  # the test ends it
        os._exit(0)
    os.read(out, 1)
    print(child, flush=True)
    sys.stdin.readline()
    state.close()
    print("closed", flush=True)
    os.kill(child, 0)
    sys.stdin.readline()
    """
    with Child(script, path) as child:
        grandchild = int(child.line())
        try:
            if end == "close":
                child.tell()
                child.expect("closed")
            else:
                os.kill(child.pid, signal.SIGKILL)
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

            with PersistedState(path) as state:
                assert state.a == 2
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_forked_child_may_open_the_state_once_its_parent_closed_it(path: Path) -> None:
    script = f"""{FORKER}
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(into)
        print(attempt(lambda: PersistedState(path)).split(",")[0], flush=True)
        os.read(out, 1)
        with PersistedState(path, _wait=600) as mine:
            mine.b = 5
        os._exit(0)
    sys.stdin.readline()
    state.close()
    os.write(into, b"x")
    os.waitpid(child, 0)
    print(open(path).read().split("\\n"))
    """
    with Child(script, path) as child:
        child.expect("refused")
        child.tell()
        assert "'b: 5'" in child.line()
        child.finish()

    assert on_disk(path) == {"a": 2, "d": {"k": 1}, "l": [1], "b": 5}


# ---- Forks and programs while a file is being opened or closed -------------------------------------------------------


def test_a_closed_file_is_free_though_a_child_has_not_started_its_program_yet(path: Path) -> None:
    """Until it does, it shares what is open: for the system, a copy of the descriptor."""
    for n in range(2):
        state = PersistedState(path, n=n)
        copies = [os.dup(state._tree.journal.descriptor)]
        state.n = n
        state.vacuum()
        copies.append(os.dup(state._tree.journal.descriptor))

        state.close()

        with PersistedState(path) as again:
            assert again.n == n
        for copy in copies:
            os.close(copy)


def test_a_file_that_was_claimed_in_vain_is_free_though_a_child_shares_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PersistedState(path, a=1) as state:
        path.with_name("new").write_text("a: 2\n")
        path.with_name("new").replace(path)
        copies: list[int] = []

        def fail(*_: object) -> None:
            copies.append(os.dup(state._tree.journal.claimed))
            raise OSError(errno.EIO, "in vain")

        monkeypatch.setattr(persistedstate._system, "replace", fail)
        with pytest.raises(OSError, match="in vain"):
            state.refresh()
        monkeypatch.undo()

        state.refresh()

        assert state.a == 2
        assert len(copies) == 1
        os.close(copies[0])


@sized(ci=200, nightly=2000)
def test_closing_and_opening_beside_a_thread_that_starts_programs_is_never_refused(path: Path, rounds: int) -> None:
    is_over = threading.Event()

    def start_programs() -> None:
        while not is_over.is_set():
            subprocess.run(["true"], check=True)

    with in_threads(start_programs, start_programs, until=is_over):
        for n in range(rounds):
            with PersistedState(path, n=0) as state:
                state.n = n

    assert on_disk(path) == {"n": rounds - 1}


#: Opens a file, or renews it after somebody replaced it, in a thread, and forks as soon as the thread is in a call.
OPENER = """
    import os, sys, threading, time, warnings
    import persistedstate
    from persistedstate import PersistedState

    warnings.simplefilter("ignore")
    path, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    real, inside, forked = getattr(persistedstate._System, name), threading.Event(), threading.Event()
    left = [number]

    def call(*arguments):
        result = real(*arguments)
        left[0] -= 1
        if left[0] == 0:
            inside.set()
            forked.wait(0.3)  # a fork that waits for the end of this call does not come
        return result

    class System(persistedstate._System):
        pass

    setattr(System, name, staticmethod(call))
    persistedstate._system = System

    def work():
        state = PersistedState(path, a=1)
        if left[0] > 0:  # it is not the opening, so it is to be the renewal
            other = path + ".new"
            with open(other, "w") as file:
                file.write("a: 5\\n")
            os.replace(other, path)
            state.refresh()
        state.a = 2
        opened.append(state)

    opened = []
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.write(theirs, b"x")
        os.close(1)
        os.close(2)
        time.sleep(60)  # the test ends it
        os._exit(0)
    forked.set()
    os.read(ours, 1)
    thread.join()
    print(child, opened[0].a, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("call", "number"),
    [("open", 1), ("lock", 1), ("fstat", 1), ("open", 3), ("open", 4), ("lock", 2), ("fsync", 1), ("lock", 3)],
)
def test_a_child_that_is_forked_while_a_thread_opens_or_renews_the_file_keeps_no_lock(
    path: Path, call: str, number: int
) -> None:
    path.write_text("a: 0\n")
    with Child(OPENER, path, call, number) as child:
        grandchild, value = child.line().split()
        assert value == "2"
        child.kill()
        try:
            with PersistedState(path) as state:
                assert state.a == 2
        finally:
            os.kill(int(grandchild), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_while_a_reader_is_in_a_refresh_goes_on_reading(path: Path) -> None:
    code = """
        import os, sys, threading
        import persistedstate
        from persistedstate import PersistedState, plain

        path = sys.argv[1]
        reader = PersistedState(path, _readonly=True)
        become, inside, forked = persistedstate._become, threading.Event(), threading.Event()

        def become_slowly(node, value):
            node._set("a", value["a"])  # half of it
            inside.set()
            forked.wait(60)
            become(node, value)

        persistedstate._become = become_slowly
        with open(path, "w") as file:
            file.write("a: 2\\nb: 2\\n")
        thread = threading.Thread(target=reader.refresh)
        thread.start()
        inside.wait()
        persistedstate._become = become
        child = os.fork()
        if not child:
            print(plain(reader), flush=True)
            with open(path, "w") as file:
                file.write("a: 3\\nb: 3\\n")
            print(reader.refresh(), plain(reader), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        forked.set()
        thread.join()
        print(reader.refresh(), plain(reader))
    """
    path.write_text("a: 1\nb: 1\n")

    answer = run_child(code, path).splitlines()

    assert answer == [str({"a": 2, "b": 2}), f"True { ({'a': 3, 'b': 3}) }", f"True { ({'a': 3, 'b': 3}) }"]


# ---- Threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_two_threads_that_count_lose_nothing(path: Path) -> None:
    times = some(50_000, 10_000)
    with PersistedState(path, counter=0) as state:

        def work() -> None:
            for _ in range(times):
                with state._thread_lock:
                    state.counter += 1

        together(work, work)
        assert state.counter == 2 * times

    assert path.read_text() == f"counter: {2 * times}\n"


@pytest.mark.usefixtures("hurried")
def test_two_threads_that_append_lose_nothing(path: Path) -> None:
    times = some(50_000, 10_000)
    with PersistedState(path, l=[]) as state:
        items = state.l

        def work(begin: int) -> None:
            for n in range(begin, begin + times):
                items.append(n)

        together(lambda: work(0), lambda: work(times))
        content = plain(state.l)

    assert sorted(content) == list(range(2 * times))
    for half in [n for n in content if n < times], [n for n in content if n >= times]:
        assert half == sorted(half)
    assert on_disk(path) == {"l": content}


@pytest.mark.usefixtures("hurried")
def test_threads_that_change_nodes_vacuum_and_read_agree_with_the_file(path: Path) -> None:
    rounds = 400
    with PersistedState(path, d={}, l=[]) as state:

        def change(name: str) -> None:
            state.d[name] = {"n": 0}
            for n in range(rounds):
                with state.transaction():
                    state.d[name]["n"] += 1
                    state.l.append([name, n])
                state.l.pop(0)

        def look() -> None:
            for _ in range(rounds):
                content = plain(state)
                assert isinstance(content["l"], list)
                assert repr(state.l).startswith("[")

        def vacuum() -> None:
            for _ in range(20):
                state.vacuum()

        together(lambda: change("a"), lambda: change("b"), look, vacuum)

        assert plain(state) == {"d": {"a": {"n": rounds}, "b": {"n": rounds}}, "l": []}
    assert on_disk(path) == {"d": {"a": {"n": rounds}, "b": {"n": rounds}}, "l": []}


@pytest.mark.usefixtures("hurried")
def test_threads_that_open_vacuum_and_close_one_file_share_it(path: Path) -> None:
    """Whether a handle is the first, one of several or the last, an opening never meets a state that is half closed."""
    rounds = 150

    def work() -> None:
        for n in range(rounds):
            with PersistedState(path, counter=0) as state:
                with state._thread_lock:
                    state.counter += 1
                if n % 3 == 0:
                    state.vacuum()

    together(work, work, work)

    assert on_disk(path) == {"counter": 3 * rounds}


@pytest.mark.parametrize("change", ["vacuum", "close"])
def test_opening_in_the_middle_of_a_vacuum_or_close_waits_for_it(path: Path, change: str) -> None:
    """From the moment on at which the path names the new file, and the journal still the old one."""
    state, inode = PersistedState(path, a=1), path.stat().st_ino
    state.a = 2
    threads: list[threading.Thread] = []
    handles: list[PersistedState] = []
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            handles.append(PersistedState(path))
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    def look() -> None:
        if len(threads) < 12 and path.stat().st_ino != inode:
            threads.append(threading.Thread(target=open_it))
            threads[-1].start()
            threads[-1].join(0.02)

    at_each_moment(getattr(state, change), look)
    for thread in threads:
        thread.join(60)

    try:
        assert errors == []
        assert [handle.a for handle in handles] == [2] * len(threads)
        handles[0].a = 3
    finally:
        for handle in [*handles, state]:
            handle.close()
    assert threads
    assert on_disk(path) == {"a": 3}


def in_time(work: Callable[[], object]) -> None:
    """Run it in a thread; fail if it hangs."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_who_waits_for_a_file_keeps_nobody_from_opening_and_closing_others(
    path: Path, holder: Child, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, states, tried = tmp_path_factory.mktemp("other") / "x.state", list[PersistedState](), threading.Event()
    lock = persistedstate._system.lock

    def lock_and_tell(descriptor: int) -> bool:
        is_locked = lock(descriptor)
        if not is_locked:
            tried.set()
        return is_locked

    monkeypatch.setattr(persistedstate._system, "lock", lock_and_tell)
    beside = PersistedState(other.with_name("open before"))
    with in_threads(*[lambda: states.append(PersistedState(path, _wait=600))] * 2):
        tried.wait(60)

        in_time(beside.close)
        in_time(lambda: PersistedState(other, a=1).close())
        with pytest.raises(StateLocked, match=str(holder.pid)):
            PersistedState(path)
        assert states == []

        do(holder, "state.a = 7")
        do(holder, "state.close()")
    one, two = states
    one.a += 1
    assert (one.a, two.a, one._tree is two._tree) == (8, 8, True)
    one.close()
    two.close()


def test_a_thread_that_opens_a_file_which_another_is_opening_waits_for_that(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `_wait`, too: it is no other process."""
    read, inside, go_on = persistedstate._read_all, threading.Event(), threading.Event()
    states: list[PersistedState] = []

    def read_slowly(descriptor: int) -> bytes:
        inside.set()
        go_on.wait(60)
        return read(descriptor)

    monkeypatch.setattr(persistedstate, "_read_all", read_slowly)
    threads = [threading.Thread(target=lambda: states.append(PersistedState(path, a=[]))) for _ in range(2)]
    threads[0].start()
    inside.wait(60)
    threads[1].start()
    threads[1].join(0.05)
    assert states == []
    go_on.set()
    for thread in threads:
        thread.join(60)

    one, two = states
    one.a.append(1)
    assert two.a == [1]
    one.close()
    two.close()


def test_an_opening_may_end_while_another_thread_looks_who_is_opening_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, inside, go_on = persistedstate._read_all, threading.Event(), threading.Event()
    states: list[PersistedState] = []

    class Openings(dict[Any, Any]):
        """What is being opened; the first opening ends right behind a look at them."""

        def items(self) -> Any:
            found = list(super().items())
            go_on.set()
            while found and found[0][0] in self:
                time.sleep(0.001)
            return found

    def read_when_told(descriptor: int) -> bytes:
        inside.set()
        go_on.wait(60)
        return read(descriptor)

    monkeypatch.setattr(persistedstate, "_read_all", read_when_told)
    first = threading.Thread(target=lambda: states.append(PersistedState(path, a=[])))
    first.start()
    inside.wait(60)
    with monkeypatch.context() as patched:
        patched.setattr(persistedstate, "_opening", Openings(persistedstate._opening))
        states.append(PersistedState(path))
        first.join(60)

    one, two = states
    one.a.append(1)
    assert two.a == [1]
    one.close()
    two.close()


def test_a_hook_for_the_warnings_of_an_opening_may_open_another_file_and_not_the_same(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",')
    other, refusals = tmp_path_factory.mktemp("other") / "log.state", list[str]()

    def note(message: object, *_: object, **__: object) -> None:
        with PersistedState(other, lines=[]) as log:
            log.lines.append(str(message))
        with pytest.raises(StateError, match="is opening it") as caught:
            PersistedState(path, _wait=600)
        refusals.append(str(caught.value))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", note)
        with PersistedState(path) as state:
            state.a = 2

    assert len(refusals) == 1
    assert "dropped" in on_disk(other)["lines"][0]
    assert on_disk(path) == {"a": 2}


@pytest.mark.usefixtures("hurried")
def test_a_copy_while_another_thread_writes_is_one(path: Path) -> None:
    """As `dict.copy` is: no error about a change of size, and nothing that was never there."""
    with PersistedState(path, d={}) as state:
        stop = threading.Event()

        def change() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                state.d[f"k{n % 40}"] = [n]
                state.d.pop(f"k{(n * 7) % 40}", None)

        def look() -> None:
            try:
                for _ in range(1500):
                    for copied in (state.copy()["d"], plain(state.d), state.d.copy()):
                        assert len(copied) <= 40
                        assert all(type(value) is list and len(value) == 1 for value in copied.values())
            finally:
                stop.set()

        together(change, look)


def test_closing_while_another_thread_writes_loses_nothing_that_was_done(path: Path) -> None:
    state, done = PersistedState(path, counter=0), threading.Event()
    counted = 0

    def work() -> None:
        nonlocal counted
        try:
            while True:
                state.counter += 1
                counted += 1
                if counted == 1000:
                    done.set()
        except StateClosed:
            pass

    with in_threads(work):
        done.wait(60)
        state.close()

    assert on_disk(path) == {"counter": counted}


def test_the_thread_lock_is_reentrant_and_keeps_others_out(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        begun, done = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            state.a = 3
            done.set()

        thread = threading.Thread(target=work)
        with state._thread_lock, state._thread_lock:
            thread.start()
            begun.wait()
            assert not done.wait(0.1)
            state.a = 2
            assert state.a == 2
        thread.join()
        assert state.a == 3


# ---- Readers ---------------------------------------------------------------------------------------------------------


def test_a_reader_takes_no_lock(path: Path, holder: Child) -> None:
    with PersistedState(path, _readonly=True) as reader:
        assert plain(reader) == {"a": 1, "l": []}
        do(holder, "state.close()")

        with PersistedState(path) as writer:
            writer.a = 2

        assert reader.a == 1
        assert reader.refresh() is True
        assert reader.a == 2


def test_a_reader_does_not_wait(path: Path, holder: Child) -> None:
    do(holder, "state.a = 2")

    with PersistedState(path, _readonly=True, _wait=600) as reader:
        assert reader.a == 2


CHANGES: dict[str, Callable[[Any], object]] = {
    "set attribute": lambda state: setattr(state, "a", 2),
    "delete attribute": lambda state: delattr(state, "a"),
    "set item": lambda state: state.__setitem__("a", 2),
    "delete item": lambda state: state.__delitem__("a"),
    "pop": lambda state: state.pop("a"),
    "popitem": lambda state: state.popitem(),
    "clear": lambda state: state.clear(),
    "update": lambda state: state.update(a=2),
    "setdefault": lambda state: state.setdefault("z", 1),
    "in-place or": lambda state: state.__ior__({"b": 1}),
    "nested set": lambda state: state.d.__setitem__("k", 2),
    "nested delete": lambda state: state.d.__delitem__("k"),
    "nested pop": lambda state: state.d.pop("k"),
    "nested popitem": lambda state: state.d.popitem(),
    "nested clear": lambda state: state.d.clear(),
    "nested update": lambda state: state.d.update(z=2),
    "nested setdefault": lambda state: state.d.setdefault("z", 2),
    "list set": lambda state: state.l.__setitem__(0, 2),
    "list slice": lambda state: state.l.__setitem__(slice(0, 2), [5]),
    "list delete": lambda state: state.l.__delitem__(0),
    "list delete slice": lambda state: state.l.__delitem__(slice(0, 2)),
    "append": lambda state: state.l.append(2),
    "insert": lambda state: state.l.insert(0, 2),
    "extend": lambda state: state.l.extend([2]),
    "list pop": lambda state: state.l.pop(),
    "remove": lambda state: state.l.remove(1),
    "list clear": lambda state: state.l.clear(),
    "sort": lambda state: state.l.sort(),
    "reverse": lambda state: state.l.reverse(),
    "+=": lambda state: state.l.__iadd__([2]),
    "*=": lambda state: state.l.__imul__(2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_reader_does_not_change(path: Path, name: str) -> None:
    path.write_text("a: 1\nd:\n  k: 1\nl:\n- 2\n- 1\n")

    with PersistedState(path, _readonly=True) as reader:
        with pytest.raises(StateReadOnly) as caught:
            CHANGES[name](reader)
        assert plain(reader) == {"a": 1, "d": {"k": 1}, "l": [2, 1]}

    assert isinstance(caught.value, PermissionError)
    assert isinstance(caught.value, StateError)
    assert path.read_text() == "a: 1\nd:\n  k: 1\nl:\n- 2\n- 1\n"


@pytest.mark.parametrize(
    "content",
    [
        b"a: 1\n",
        b'a: 1\n--- ["set",[],"b",2]\n',
        b'a: 1\n--- ["set",[],"b",2]\n--- ["set"',
        b"a: 1\n\0\0\0",
        b"# none\n",
    ],
    ids=["snapshot", "journal", "torn", "NULs", "nothing"],
)
def test_a_reader_writes_nothing_ever(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = path.stat()

    def work() -> None:
        with PersistedState(path, _readonly=True) as reader:
            assert reader.get("a") == (1 if b"a" in content else None)
            assert reader.get("b") == (2 if b"b" in content else None)
            reader.refresh()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert count_calls(work, WRITE_CALLS) == 0

    assert path.read_bytes() == content
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert listing(path.parent) == ["x.state"]


def test_a_reader_makes_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=path.name):
        PersistedState(path, _readonly=True)

    assert listing(path.parent) == []


def test_a_reader_needs_no_write_permission(public_folder: Path) -> None:
    path = public_folder / "x.state"
    path.write_text('a: 1\nl: [{x: 1}]\n--- ["set",[],"a",2]\n')
    path.chmod(0o444)
    public_folder.chmod(0o555)
    code = f"""
{DROP_PRIVILEGES}
with persistedstate.PersistedState(sys.argv[1], _readonly=True) as reader:
    print(reader.a, reader.l, reader.refresh())
    sys.stdin.readline()
    print(reader.refresh(), reader.a)
"""

    with Child(code, path) as child:
        child.expect("2 [{'x': 1}] False")
        public_folder.chmod(0o777)
        path.chmod(0o644)
        with PersistedState(path) as writer:
            writer.a = 3
            child.tell()
            child.expect("True 3")
        child.finish()

    assert on_disk(path) == {"a": 3, "l": [{"x": 1}]}


def test_a_closed_reader_raises(path: Path) -> None:
    path.write_text("a: 1\n")
    reader = PersistedState(path, _readonly=True)
    reader.close()
    reader.close()

    for operation in (lambda: reader.a, reader.refresh, lambda: reader.get("a"), lambda: len(reader)):
        with pytest.raises(StateClosed):
            operation()


def test_refresh_tells_whether_anything_changed(path: Path, holder: Child) -> None:
    with PersistedState(path, _readonly=True) as reader:
        assert reader.refresh() is False
        for n in range(1, 4):
            do(holder, f"state.a = {n}0")
            do(holder, f"state.l.append({n})")
            assert reader.refresh() is True
            assert plain(reader) == {"a": n * 10, "l": list(range(1, n + 1))}
            assert reader.refresh() is False

            do(holder, "state.vacuum()")
            do(holder, "state.a += 1")
            assert reader.refresh() is True
            assert reader.a == n * 10 + 1
            assert reader.refresh() is False

        do(holder, "state.close()")
        reader.refresh()
        assert plain(reader) == {"a": 31, "l": [1, 2, 3]}
        assert reader.refresh() is False


def test_a_reader_sees_a_transaction_whole_or_not_at_all(path: Path, holder: Child) -> None:
    with PersistedState(path, _readonly=True) as reader:
        holder.tell("t = state.transaction(); t.__enter__(); state.a = 5; state.l.append(5)")
        holder.expect("ok")
        assert reader.refresh() is False
        assert plain(reader) == {"a": 1, "l": []}

        do(holder, "t.__exit__(None, None, None)")
        assert reader.refresh() is True
        assert plain(reader) == {"a": 5, "l": [5]}


def test_a_reader_waits_for_the_rest_of_a_record(path: Path) -> None:
    """Half a record is not there yet; when the rest comes it is applied, once."""
    record = '--- ["insert",["l"],0,"é"]\n'.encode()
    path.write_bytes(b"l: []\n")
    with warnings.catch_warnings(), PersistedState(path, _readonly=True) as reader:
        warnings.simplefilter("ignore", RuntimeWarning)
        for n in range(3):
            for at in range(len(record) - 2):
                with path.open("ab") as file:
                    file.write(record[at : at + 1])
                assert reader.refresh() is False
                assert reader.l == ["é"] * n
            with path.open("ab") as file:
                file.write(b"]\n")
            assert reader.refresh() is True
            assert reader.l == ["é"] * (n + 1)


def test_a_reader_that_missed_several_vacuums_catches_up(path: Path, holder: Child) -> None:
    with PersistedState(path, _readonly=True) as reader:
        for n in range(5):
            do(holder, f"state.a = {n}")
            do(holder, "state.vacuum()")
        do(holder, "state.l.append('x' * 1000)")
        do(holder, "state.l.clear()")
        do(holder, "state.vacuum()")

        assert reader.refresh() is True
        assert plain(reader) == {"a": 4, "l": []}


WRITER = """
    import random, sys
    from persistedstate import PersistedState
    rng = random.Random(1)
    state = PersistedState(sys.argv[1], a=0, b=0, l=[], d={"n": 0})
    print("open", flush=True)
    sys.stdin.readline()
    for n in range(1, int(sys.argv[2]) + 1):
        with state.transaction():
            state.a += 1
            state.l.append(n)
            state.d["n"] += 1
            state.b += 1
        if rng.random() < 0.1:
            state.vacuum()
        if rng.random() < 0.01:
            state.close()
            state = PersistedState(sys.argv[1])
    print("done", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("links", [False, True], ids=["replaced", "rewritten in place"])
def test_a_follower_sees_only_states_that_were(tmp_path: Path, links: bool) -> None:
    """While a writer runs and vacuums often, every refresh shows a whole state, and time does not run backwards."""
    path, last = tmp_path / "x.state", 600
    path.write_text("a: 0\nb: 0\nl: []\nd:\n  n: 0\n")
    if links:
        os.link(path, tmp_path / "other.state")
    seen = [0]
    with Child(WRITER, path, last) as writer, PersistedState(path, _readonly=True) as follower:
        writer.expect("open")
        writer.tell()
        while seen[-1] < last:
            changed = follower.refresh()

            state = plain(follower)
            assert state["a"] == state["b"] == state["d"]["n"] == len(state["l"])
            assert state["l"] == list(range(1, state["a"] + 1))
            assert state["a"] >= seen[-1]
            assert changed or state["a"] == seen[-1]
            if state["a"] > seen[-1]:
                seen.append(state["a"])
        writer.expect("done")
        writer.tell()
        writer.finish()

    assert seen[0] == 0
    assert seen[-1] == last


def test_refresh_of_a_writer_without_foreign_changes_is_false(path: Path) -> None:
    with PersistedState(path, a=1, l=[]) as state:
        assert state.refresh() is False
        state.a = 2
        assert state.refresh() is False
        with state.transaction():
            state.l.append(1)
        state.vacuum()
        assert state.refresh() is False
        state.l.append(2)
        assert state.refresh() is False
        assert plain(state) == {"a": 2, "l": [1, 2]}

    assert on_disk(path) == {"a": 2, "l": [1, 2]}


def test_a_file_that_is_removed_before_it_is_locked_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("a: 1\n")
    lock = persistedstate._system.lock

    def lock_late(descriptor: int) -> bool:
        monkeypatch.undo()
        path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(persistedstate._system, "lock", lock_late, raising=False)
    with PersistedState(path, b=1) as state:
        assert plain(state) == {"b": 1}

    assert on_disk(path) == {"b": 1}


def test_threads_that_open_one_file_by_two_names_share_its_state(path: Path) -> None:
    other = path.with_name("other.state")
    for _ in range(100):
        path.write_text(f"n: 0\nl: [{'1, ' * 50}2]\n")
        other.unlink(missing_ok=True)
        os.link(path, other)
        opened: list[Any] = []

        def work(name: Path, opened: list[Any] = opened) -> None:
            opened.append(PersistedState(name))

        together(partial(work, path), partial(work, other))

        one, twin = opened
        assert one._tree is twin._tree
        one.close()
        twin.close()
    other.unlink()
