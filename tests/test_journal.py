"""The journal against a system that fails: each call of the seam, once; and the three forms of `_fsync`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import sys
import threading
import time
import tracemalloc
import warnings
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import oracle
import portalocker
import pytest
from checks import run_child, without_facts

import persistedstate
from persistedstate import (
    PersistedState,
    StateClosed,
    StateCorrupt,
    StateError,
    StateLocked,
    StateReadOnly,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Faulty:
    """A system whose calls can be replaced one by one."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def fail(self, name: str, code: int, *, times: int = 1) -> None:
        """Let the next calls of that name raise an OSError."""
        real, left = getattr(self._real, name), [times]

        def call(*arguments: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        setattr(self, name, call)

    def replace_once(self, name: str, call: Callable[..., Any]) -> None:
        """Let the next call of that name do something else."""

        def once(*arguments: Any) -> Any:
            delattr(self, name)
            return call(*arguments)

        setattr(self, name, once)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    faulty = Faulty(persistedstate._system)
    monkeypatch.setattr(persistedstate, "_system", faulty)
    yield faulty
    monkeypatch.undo()


def test_failed_write_changes_nothing(path: Path, system: Faulty) -> None:
    with PersistedState(path, a=1) as state:
        before = path.read_bytes()
        system.fail("write", errno.ENOSPC)

        with pytest.raises(OSError, match="space"):
            state.a = 2

        assert state.a == 1
        assert path.read_bytes() == before
        state.a = 3
        assert path.read_bytes() == before + b'--- ["was",["a"],1]\n--- ["set",[],"a",3]\n'


def test_short_write_is_cut_back(path: Path, system: Faulty) -> None:
    with PersistedState(path, a=1) as state:
        before = path.read_bytes()
        system.replace_once("write", lambda descriptor, data: os.write(descriptor, data[:5]))

        with pytest.raises(OSError, match="space"):
            state.a = 2

        assert (state.a, path.read_bytes()) == (1, before)


def test_failed_write_of_a_transaction_rolls_back(path: Path, system: Faulty) -> None:
    with PersistedState(path, a=1, l=[]) as state:
        before = path.read_bytes()
        system.fail("write", errno.EIO)

        with pytest.raises(OSError, match="error"), state.transaction():
            state.a = 2
            state.l.append(1)

        assert (plain(state), path.read_bytes()) == ({"a": 1, "l": []}, before)


def test_cut_that_fails_is_made_up_for_by_the_next_change(path: Path, system: Faulty) -> None:
    with PersistedState(path, a=1) as state:
        before = path.read_bytes()
        system.replace_once("write", lambda descriptor, data: os.write(descriptor, data[:5]))
        system.fail("ftruncate", errno.EIO, times=2)

        with pytest.raises(OSError, match="error"):
            state.a = 2
        state.a = 3

        assert path.read_bytes() == before + b'--- ["was",["a"],1]\n--- ["set",[],"a",3]\n'


@pytest.mark.parametrize(
    ("call", "code"),
    [("open", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EIO), ("lock", errno.ENOLCK)],
)
def test_failed_vacuum_costs_nothing(path: Path, system: Faulty, call: str, code: int) -> None:
    state = PersistedState(path, a=1)
    state.a = 2
    before = path.read_bytes()
    system.fail(call, code)

    with pytest.raises(OSError, match=r"space|error|locks"):
        state.vacuum()

    assert path.read_bytes() == before
    assert [name.name for name in path.parent.iterdir()] == [path.name]
    state.close()
    assert path.read_bytes() == b"a: 2\n"


def test_vacuum_at_close_that_fails_warns_and_keeps_the_journal(path: Path, system: Faulty) -> None:
    state = PersistedState(path, a=1)
    state.a = 2
    before = path.read_bytes()
    system.fail("fsync", errno.EIO)

    with pytest.warns(RuntimeWarning, match="no vacuum"):
        state.close()

    assert path.read_bytes() == before


def test_vacuum_that_keeps_failing_is_tried_seldom_and_told_once_for_each_cause(
    path: Path, system: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 4096)
    state, sizes = PersistedState(path, counter=0), list[int]()

    def warned(code: int, changes: int = 5000) -> list[str]:
        """Change the state, while replacing the file fails; return what is told of that."""

        def refuse(*_: object) -> None:
            sizes.append(path.stat().st_size)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(system, "replace", refuse)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(changes):
                state.counter = number
        return [str(each.message) for each in caught]

    (told,) = warned(errno.EIO)
    assert told.endswith("Input/output error); the changes are in the journal")
    assert len(sizes) > 4
    assert all(later >= 2 * earlier for earlier, later in pairwise(sizes))
    assert "No space" in "".join(warned(errno.ENOSPC))
    assert warned(errno.EIO, 10_000) == []

    monkeypatch.delattr(system, "replace")
    state.vacuum()

    assert len(warned(errno.EIO)) == 1
    expected = plain(state)
    monkeypatch.delattr(system, "replace")
    state.close()
    assert oracle.read(path) == expected == {"counter": 4999}


def test_what_cannot_be_read_back_is_not_put_in_place(path: Path, system: Faulty) -> None:
    state = PersistedState(path, a=1)
    state.a = 2
    before = path.read_bytes()
    system.replace_once("fsync", lambda descriptor: os.pwrite(descriptor, b"!", 0))

    with pytest.raises(OSError, match="read back"):
        state.vacuum()

    assert path.read_bytes() == before
    state.close()


def test_interrupted_change_is_settled_by_whatever_comes_next(path: Path, system: Faulty) -> None:
    with PersistedState(path, a=1, b=1) as state:
        for settle in (state.refresh, state.vacuum, lambda: state.update(b=2)):
            system.replace_once("write", lambda descriptor, data: os.write(descriptor, data[:5]))
            system.fail("ftruncate", errno.EIO, times=2)
            with pytest.raises(OSError, match="error"):
                state.a = 2

            settle()

            assert state.a == 1
    assert path.read_bytes() == b"a: 1\nb: 2\n"


def test_lock_that_fails_is_an_error_with_path_and_lets_the_file_go(path: Path, system: Faulty) -> None:
    system.fail("lock", errno.ENOLCK)

    with pytest.raises(OSError, match="put the file on a local disk") as caught:
        PersistedState(path)

    assert (caught.value.errno, caught.value.filename) == (errno.ENOLCK, str(path))
    with PersistedState(path, a=1) as state:
        assert state.a == 1


#: The ways to lock: the system's own, where it has one, and portalocker's elsewhere.
LOCKS = pytest.mark.parametrize("lock", [persistedstate._System.lock, persistedstate._lock_by_portalocker])


@LOCKS
def test_lock_excludes_whoever_opens_the_same_file(path: Path, lock: Callable[[int], bool]) -> None:
    with path.open("w") as one, path.open("w") as other:
        assert [lock(one.fileno()), lock(other.fileno()), lock(one.fileno())] == [True, False, True]

        persistedstate._System.unlock(one.fileno())

        assert lock(other.fileno())


@LOCKS
def test_lock_of_what_cannot_be_locked_is_an_oserror(path: Path, lock: Callable[[int], bool]) -> None:
    """portalocker has exceptions of its own, which nobody who opens a file expects."""
    with path.open("w") as file:
        descriptor = file.fileno()

    with pytest.raises(OSError, match="descriptor") as caught:
        lock(descriptor)

    assert caught.value.errno == errno.EBADF


def test_lock_that_is_denied_is_held_by_somebody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX leaves it to a file system whether it answers EAGAIN or EACCES."""

    def deny(*_: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(fcntl, "flock", deny)

    with pytest.raises(StateLocked):
        PersistedState(path)


def test_lock_that_fails_for_no_reason_of_the_system_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some network file systems it ends in an EOFError, says portalocker."""

    def refuse(*_: object) -> None:
        raise portalocker.LockException(portalocker.LockException.LOCK_FAILED, "no reply")

    monkeypatch.setattr(portalocker, "lock", refuse)

    with pytest.raises(OSError, match="no reply") as caught:
        persistedstate._lock_by_portalocker(-1)

    assert caught.value.errno == errno.ENOLCK


def test_lock_is_let_go_before_its_descriptor(path: Path, system: Faulty) -> None:
    """Closing it does not end the lock while a child shares it."""
    state, calls = PersistedState(path, a=1), list[tuple[str, int]]()
    state.a = 2

    def note(name: str, real: Callable[[int], None], number: int) -> None:
        calls.append((name, number))
        real(number)

    for name in "unlock", "close":
        real = getattr(system, name)
        setattr(system, name, partial(note, name, real))
    held = state._tree.journal.descriptor
    state.vacuum()
    new = state._tree.journal.descriptor
    state.close()

    assert [call for call in calls if call[1] in {held, new}][-2:] == [("unlock", new), ("close", new)]
    assert ("unlock", held) in calls


def test_interrupted_change_is_whole_when_the_interrupt_comes_through(
    state: Any, on_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    state.l = [1]
    monkeypatch.setattr(persistedstate.StateList, "_insert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        state.l.insert(0, 2)

    assert plain(state) == on_disk() == {"l": [2, 1]}


def test_attributes_that_a_new_file_has_from_its_folder_are_not_kept(
    path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ACL for all new files there would let others read what they could not before."""

    def opened(name: str, flags: int, *mode: int) -> int:
        descriptor = real(name, flags, *mode)
        if flags == persistedstate._NEW:
            os.setxattr(descriptor, "user.of_the_folder", b"x")
        return descriptor

    state.a = 1
    try:
        os.setxattr(path, "user.own", b"y")
    except (AttributeError, OSError) as error:
        pytest.skip(f"no extended attributes here: {error}")
    real = persistedstate._system.open
    monkeypatch.setattr(persistedstate._System, "open", staticmethod(opened))
    state.vacuum()

    assert os.listxattr(path) == ["user.own"]


def test_locked_temporary_file_is_not_put_in_place(path: Path, system: Faulty) -> None:
    state = PersistedState(path, a=1)
    state.a = 2
    system.replace_once("lock", lambda _descriptor: False)

    state.vacuum()  # within the file

    assert path.read_bytes() == b"a: 2\n"
    state.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_folder_that_cannot_be_synced_is_no_error(path: Path, system: Faulty, code: int) -> None:
    real, calls = system.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    state = PersistedState(path, a=1)
    state.a = 2
    system.fsync = fsync  # type: ignore[attr-defined]
    state.vacuum()

    assert path.read_bytes() == b"a: 2\n"
    assert len(calls) == 2
    state.close()


def test_folder_that_cannot_be_opened_is_no_error(path: Path, system: Faulty) -> None:
    real = system.open

    def opened(name: Any, *arguments: Any) -> int:
        if os.fspath(name) == str(path.parent):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return int(real(name, *arguments))

    with PersistedState(path, a=1) as state:
        state.a = 2
        system.open = opened  # type: ignore[attr-defined]

    assert path.read_bytes() == b"a: 2\n"


def test_folder_that_fails_to_sync_is_an_error(path: Path, system: Faulty) -> None:
    real, calls = system.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    state = PersistedState(path, a=1)
    state.a = 2
    system.fsync = fsync  # type: ignore[attr-defined]

    with pytest.raises(OSError, match="error"):
        state.vacuum()
    state.a = 3

    state.close()
    assert path.read_bytes() == b"a: 3\n"


def test_each_change_is_synced_with_fsync_true(path: Path, system: Faulty) -> None:
    calls: list[int] = []
    state = PersistedState(path, a=1, _fsync=True)
    system.fsync = calls.append  # type: ignore[attr-defined]

    state.a = 2
    with state.transaction():
        state.a = 3
        state.a = 4

    assert len(calls) == 2
    del system.fsync
    state.close()


def test_changes_are_synced_once_after_the_seconds_of_fsync(path: Path, system: Faulty) -> None:
    synced = threading.Event()
    state = PersistedState(path, a=1, _fsync=0.01)
    system.fsync = lambda _descriptor: synced.set()  # type: ignore[attr-defined]

    state.a = 2

    assert synced.wait(30)
    del system.fsync
    state.a = 3
    state.close()
    assert path.read_bytes() == b"a: 3\n"


def state_whose_timer_failed(path: Path, system: Faulty) -> PersistedState:
    """Return an open state with `a: 2`, of which the timer could not sync the last change, nor save it elsewhere."""
    state = PersistedState(path, a=1, _fsync=0.01)
    system.fail("fsync", errno.EIO, times=1000)
    state.a = 2
    for _ in range(3000):
        with state._thread_lock:  # the timer has noted the error when it lets go of the lock
            if state._tree.trouble is not None:
                return state
        time.sleep(0.01)
    raise AssertionError("the timer does not run")


def test_error_of_the_timer_surfaces_at_the_next_change(path: Path, system: Faulty) -> None:
    state = state_whose_timer_failed(path, system)

    with pytest.raises(OSError, match="error"):
        state.a = 3

    assert state.a == 2
    del system.fsync
    state.a = 3
    assert oracle.read(path) == {"a": 3}
    state.close()


def test_error_of_the_timer_surfaces_at_close(path: Path, system: Faulty) -> None:
    state = state_whose_timer_failed(path, system)

    with pytest.raises(OSError, match="error"):
        state.close()

    assert oracle.read(path) == {"a": 2}


@pytest.mark.leaves("files")
@pytest.mark.parametrize("number", range(1, 7))
def test_interrupt_in_a_rewrite_within_the_file_costs_no_later_change(path: Path, system: Faulty, number: int) -> None:
    """As of a file with two names: the next change first brings the rewrite to its end."""
    state = PersistedState(path, a="x" * 50, n=0)
    os.link(path, path.with_name("twin"))
    state.a = "y" * 60
    left = [number]

    def write(descriptor: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] == 0:
            os.write(descriptor, data[:5])
            raise KeyboardInterrupt
        return os.write(descriptor, data)

    system.write = write  # type: ignore[attr-defined]
    with contextlib.suppress(KeyboardInterrupt):
        state.vacuum()
    del system.write

    state.n = 77

    assert oracle.read(copied_by_itself(path)) == plain(state) == {"a": "y" * 60, "n": 77}
    state.close()
    assert oracle.read(path) == {"a": "y" * 60, "n": 77}


def copied_by_itself(path: Path) -> Path:
    """Return a copy of the file in a folder of its own, opened and closed once: without a half-done rewrite."""
    folder = path.with_name("copy")
    folder.mkdir()
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    PersistedState(copy).close()
    return copy


def test_weaker_timer_is_synced_at_close_also_where_a_warning_comes_up(path: Path, system: Faulty) -> None:
    synced: list[int] = []
    state = PersistedState(path, l=[], _fsync=60)
    state.l.append(1)
    system.fsync = synced.append  # type: ignore[attr-defined]
    state._tree.halted = (state._tree._tell, RuntimeWarning("of the last change"))

    with pytest.raises(RuntimeWarning):
        state.close()

    assert synced
    assert oracle.read(path) == {"l": [1]}


# ---- What fails behind a change that is made is no failure of that change --------------------------------------------


def test_timer_that_cannot_be_started_syncs_at_once(path: Path, system: Faulty) -> None:
    synced: list[int] = []

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with PersistedState(path, l=[], _fsync=60) as state:
        system.later = refuse  # type: ignore[attr-defined]
        system.fsync = synced.append  # type: ignore[attr-defined]

        state.l.append(1)
        state.l.append(2)

        assert len(synced) == 2
        assert plain(state) == oracle.read(path) == {"l": [1, 2]}
        del system.fsync


def test_change_with_a_timer_while_the_interpreter_ends(path: Path) -> None:
    code = """
        import atexit, sys
        from persistedstate import PersistedState

        def change_late():
            state.l.append("late")
            print(state)

        atexit.register(change_late)
        state = PersistedState(sys.argv[1], l=[], _fsync=60)
        state._thread_lock
        atexit.unregister(__import__("persistedstate")._close_at_exit)
    """
    assert run_child(code, path) == "{'l': ['late']}\n"
    assert oracle.read(path) == {"l": ["late"]}


def edited(path: Path, text: str) -> None:
    """Save as an editor does that puts a new file in the place of the old."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.leaves("files")
def test_save_that_can_neither_be_merged_nor_kept_is_told_by_the_next_change(path: Path, system: Faulty) -> None:
    state = PersistedState(path, l=[])
    state.l.append(1)
    edited(path, "l: [\n")
    real = system.open

    def refuse(name: str, *arguments: Any) -> Any:
        if ".edited-" in str(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real(name, *arguments)

    system.open = refuse  # type: ignore[attr-defined]
    state._tree.journal.due_at = 0

    state.l.append(2)

    assert plain(state) == {"l": [1, 2]}
    for _ in range(2):
        with pytest.raises(PermissionError, match="edited-"):
            state.l.append(3)
    assert plain(state) == {"l": [1, 2]}
    assert path.read_text() == "l: [\n"
    del system.open
    with pytest.warns(RuntimeWarning, match="edited-"):
        state.l.append(3)
    state.close()
    assert oracle.read(path) == {"l": [1, 2, 3]}


@pytest.mark.leaves("files")
def test_warning_that_is_an_error_is_raised_by_the_next_change(path: Path) -> None:
    state = PersistedState(path, l=[])
    state.l.append(1)
    edited(path, "l: [\n")
    state._tree.journal.due_at = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        state.l.append(2)
        with pytest.raises(RuntimeWarning, match="edited-"):
            state.l.append(3)
        state.l.append(3)

    state.close()
    assert oracle.read(path) == {"l": [1, 2, 3]}


@pytest.mark.leaves("files")
@pytest.mark.parametrize("is_renamed", [True, False])
def test_edit_that_cannot_be_read_for_want_of_a_package_is_kept_beside(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_renamed: bool
) -> None:
    """As where a process gave up the right to read its packages."""
    state = PersistedState(path, l=[])
    state.l.append(1)
    text = "l: [7]\nm: &a {b: 1}\n"
    edited(path, text) if is_renamed else path.write_text(text)
    state._tree.journal.due_at = 0
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)

    with pytest.warns(RuntimeWarning, match="ruamel.yaml is missing.*it is kept in"):
        state.l.append(2)
    state.l.append(3)
    state.close()

    assert oracle.read(path) == {"l": [1, 2, 3]}
    (kept,) = path.parent.glob("*.edited-*")
    assert text in kept.read_text()


def test_vacuum_for_want_of_a_package_waits_and_costs_no_comment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "m: &a {b: 1}  # mine\nn: *a\n"
    path.write_text(text)
    state = PersistedState(path)
    state.m["b"] = 2
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)

    with pytest.warns(RuntimeWarning, match="no vacuum.*ruamel.yaml is missing"):
        state.close()

    assert path.read_text().startswith(text)
    monkeypatch.undo()
    with PersistedState(path) as state:
        assert plain(state) == {"m": {"b": 2}, "n": {"b": 1}}
    assert oracle.read(path) == {"m": {"b": 2}, "n": {"b": 1}}
    assert "# mine" in path.read_text()


def test_vacuum_that_fails_for_any_reason_is_told_once_and_costs_no_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = PersistedState(path, l=[])
    state._tree.limit = 0

    def fail(*_: object) -> None:
        raise AttributeError("a fault of the module")

    monkeypatch.setattr(persistedstate._Document, "renewed", fail)
    with pytest.warns(RuntimeWarning, match=r"no vacuum \(AttributeError: a fault"):
        state.l.append(1)
    state._tree.limit = 0
    state.l.append(2)
    state.close()

    assert oracle.read(path) == {"l": [1, 2]}


@pytest.mark.parametrize("fsync", [True, 0.01])
def test_failed_sync_is_made_up_for_by_a_new_file(path: Path, system: Faulty, fsync: float) -> None:
    with PersistedState(path, a=1, _fsync=fsync) as state:
        inode = path.stat().st_ino
        synced: list[int] = []
        failed = threading.Event()

        def fail_once(descriptor: int) -> None:
            if not failed.is_set():
                failed.set()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            synced.append(os.fstat(descriptor).st_ino)

        system.fsync = fail_once  # type: ignore[attr-defined]
        state.a = 2
        assert failed.wait(30)
        while path.stat().st_ino == inode:  # the timer goes on when it has the lock
            time.sleep(0.001)

        with state._thread_lock:
            assert path.read_bytes() == b"a: 2\n"
            assert path.stat().st_ino in synced
            assert inode not in synced


def test_state_that_cannot_be_made_safe_reads_but_does_not_change(path: Path, system: Faulty) -> None:
    state = PersistedState(path, a=1, _fsync=True)
    system.fail("fsync", errno.EIO, times=4)
    with pytest.raises(OSError, match="error"):
        state.a = 2

    with pytest.raises(OSError, match="error"):
        state.a = 3

    assert state.a == 2
    assert oracle.read(path) == {"a": 2}
    with pytest.raises(OSError, match="error"):
        state.close()
    assert oracle.read(path) == {"a": 2}


def test_pending_sync_happens_at_close(path: Path, system: Faulty) -> None:
    calls: list[int] = []
    state = PersistedState(path, a=1, _fsync=1000)
    state.a = 2
    state.vacuum()
    state.a = 3
    real = system.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        real(descriptor)

    system.fsync = fsync  # type: ignore[attr-defined]

    state.close()

    assert len(calls) >= 3


def test_descriptors_of_the_standard_streams_are_avoided() -> None:
    read_end, write_end = os.pipe()
    spare = os.dup(0)
    os.close(0)
    try:
        os.dup(read_end)  # becomes 0
        number = persistedstate._above_standard(0)
        assert number > 2
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(0)
        os.close(number)
    finally:
        os.dup2(spare, 0)
        for descriptor in (read_end, write_end, spare):
            os.close(descriptor)


def test_vacuum_within_a_transaction_is_refused(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        state.a = 2
        with pytest.raises(StateError, match="transaction"), state.transaction():
            state.vacuum()
        assert state.a == 2


@pytest.mark.parametrize(
    "error",
    [
        StateError("f", "reason"),
        StateCorrupt("f", "reason", 3, 4, "text"),
        StateLocked("f", 5),
        StateLocked("f"),
        StateReadOnly("f", "reason"),
        StateClosed("f", "reason"),
    ],
    ids=["error", "corrupt", "locked", "locked by nobody knows", "read-only", "closed"],
)
def test_errors_survive_pickling(error: StateError) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_reader_follows_every_kind_of_change_in_place(path: Path) -> None:
    start: dict[str, Any] = {"a": 1, "l": [1, {"x": 1}, 3], "d": {"k": {"n": 1}, "gone": 1}, "e": {"x": 1}, "t": [1]}
    with PersistedState(path, **start) as writer:
        reader = PersistedState(path, _readonly=True, missing=7)
        items, mapping = reader.l, reader.d
        writer.l[1]["x"] = 2
        writer.l.append([4])
        writer.d["k"]["n"] = 2
        del writer.d["gone"]
        writer.d["gone"] = 2
        writer.t = {"now": "a mapping"}
        writer.d["k"] = writer.d.pop("k")
        del writer.e["x"]
        writer.a = None
        del writer.l[0]

        assert reader.refresh()

        assert plain(reader) == {**plain(writer), "missing": 7}
        assert list(reader.d) == ["gone", "k"]
        assert (reader.l is items, reader.d is mapping) == (True, True)
        assert not reader.refresh()
        reader.close()
        with pytest.raises(StateClosed):
            items.append(1)


def test_reader_of_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        PersistedState(tmp_path, _readonly=True)


def test_exit_closes_what_is_open(path: Path) -> None:
    state = PersistedState(path, a=1)
    state.a = 2

    persistedstate._close_at_exit()

    assert path.read_bytes() == b"a: 2\n"
    with pytest.raises(StateClosed):
        state.a = 3


def test_child_of_a_fork_is_told_both_pids(path: Path) -> None:
    state = PersistedState(path, a=1)
    items = state._root

    persistedstate._mend_in_child()

    with pytest.raises(StateError, match=f"{os.getppid()}.*{os.getpid()}"):
        state.a = 2
    with pytest.raises(StateError, match=str(os.getpid())):
        items["a"] = 3
    assert path.read_bytes() == b"a: 1\n"


def test_constructor_that_fails_lets_the_file_go(path: Path, system: Faulty) -> None:
    path.write_text("a: 1\n")
    system.fail("write", errno.ENOSPC)

    with pytest.raises(OSError, match="space"):
        PersistedState(path, b=2)

    with PersistedState(path, b=2) as state:
        assert plain(state) == {"a": 1, "b": 2}


def test_file_cut_in_the_middle_of_a_character_is_refused(path: Path) -> None:
    path.write_bytes("a: é".encode()[:-1])

    with pytest.raises(StateCorrupt, match="middle of a character"):
        PersistedState(path)


@pytest.mark.parametrize("record", ['["order",["l"],[0,0]]', '["order",["l"],[-1]]', '["order",["l"],[5]]'])
def test_order_that_is_none_is_refused(path: Path, record: str) -> None:
    path.write_text(f"l: [1, 2]\n--- {record}\n")

    with pytest.raises(StateCorrupt):
        PersistedState(path)


def test_holder_is_unknown_where_the_system_does_not_tell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    path.write_text("a: 1\n")
    monkeypatch.setattr("builtins.open", missing)

    assert persistedstate._holder(path.stat()) is None


def test_snapshots_of_the_past_take_no_memory_for_the_changes_behind_them(path: Path) -> None:
    with PersistedState(path, jobs=[{"x": 0}]) as state:
        tracemalloc.start()
        try:
            taken = [0]
            for _ in range(12):
                for number in range(1000):
                    state.jobs[0]["x"] = number
                state.vacuum()
                taken.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert taken[-1] - taken[2] < 300_000  # one tuple for each change would be 1.4 MB


# ---- Interrupts between the renaming and its being on the disk -------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_renaming_whose_sync_was_interrupted_is_made_to_last_before_the_next_change_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    sync, interrupts, synced = persistedstate._sync_folder, [KeyboardInterrupt] * times, list[str]()

    def interrupted(folder: str) -> None:
        if interrupts:
            raise interrupts.pop()
        sync(folder)
        synced.append(folder)

    with PersistedState(path, n=0, _fsync=True) as state:
        state.n = 1
        monkeypatch.setattr(persistedstate, "_sync_folder", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            state.vacuum()
        while interrupts:
            with contextlib.suppress(KeyboardInterrupt):
                state.n = 2
        state.n = 3

        assert synced
        assert state._tree.trouble is None
    assert oracle.read(path) == {"n": 3}


def test_no_blank_lines_come_between_records_behind_one_without_a_line_feed(path: Path) -> None:
    path.write_bytes(b'a: 1\n--- ["set",[],"a",2]')
    with PersistedState(path) as state:
        state.b = []
        state.b.append([1])
        state.c = {}
        data = path.read_bytes()

    assert b"\n\n" not in data
    assert without_facts(data).count(b"\n--- ") == 4


def test_a_timer_of_any_length_can_be_waited_for(path: Path) -> None:
    for seconds in (1e300, float("inf")):
        with PersistedState(path, n=0, _fsync=seconds) as state:
            state.n += 1
            assert state._tree.syncer.seconds <= threading.TIMEOUT_MAX
