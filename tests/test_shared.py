"""Several processes write one file: none loses what another one did, and nobody overwrites what they have not read."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from editing import save
from processes import Child, in_child, listing
from rounds import rounds as sized
from test_followers import script
from threads import together

import persistedstate
from persistedstate import PersistedState, StateClosed, StateConflict, StateError, StateLocked, on_change, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs flock and fork")

#: Opens the file shared and then does what it is told, line by line, as Python code; answers with what `said` is.
PEER = """
    import json, os, sys, time
    import persistedstate
    from persistedstate import PersistedState, StateConflict, StateError, plain

    state = PersistedState(sys.argv[1], _shared=True)
    print("open", flush=True)
    for line in sys.stdin:
        said = None
        try:
            exec(line)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps(said), flush=True)
"""


class Peer(Child):
    """Another process that shares the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(PEER, path)
        self.expect("open")

    def __enter__(self) -> Peer:
        return self

    def do(self, code: str) -> Any:
        self.tell(code)
        return json.loads(self.line())


@pytest.fixture
def shared(path: Path) -> Iterator[PersistedState]:
    path.write_text("a: 1\nb: 1\njobs:\n- name: x\n- name: y\nconf:\n  deep:\n    n: 1\n")
    with PersistedState(path, _shared=True) as state:
        yield state


@pytest.fixture
def peer(shared: PersistedState) -> Iterator[Peer]:
    with Peer(Path(shared)) as peer:
        yield peer
        peer.do("state.close()")


# ---- What others did -------------------------------------------------------------------------------------------------


def test_a_change_is_seen_by_the_next_change_of_another_process(shared: PersistedState, peer: Peer) -> None:
    assert peer.do("state.a += 1; state.jobs.append('z')") is None
    assert shared.a == 1

    shared.b += 1

    assert shared.a == 2
    assert shared.jobs == [{"name": "x"}, {"name": "y"}, "z"]
    assert peer.do("state.refresh(); said = [state.b, plain(state)]") == [2, plain(shared)]


def test_only_the_last_of_several_values_that_another_process_set_is_looked_at(
    shared: PersistedState, peer: Peer
) -> None:
    """A record that is followed by one with the same beginning up to its last comma, whatever the values are."""
    values = ["a", "a,b", "a,c", '"', '",', "x,1]", "x,2]", [1, 2], [1, 3], [], {"a": 1, "b,": 2}, None, 5, 6]
    for value in values:
        peer.do(f"state.a = 'a,'; state.a = {value!r}; state.b = 0; state.conf['deep'] = {{'n': 1, 'm': {value!r}}}")
        peer.do(f"state['a,'] = 7; state['a'] = {value!r}; state['a'] = {value!r}; state.jobs[0] = {value!r}")
        peer.do(
            "state.jobs[1] = 'y,'; state.jobs[0] = 'y,z'; state.jobs[1] = 'y,'; state.jobs.append(1); state.jobs.pop()"
        )

        assert shared.refresh()

        assert peer.do("said = plain(state)") == plain(shared) == oracle.read(Path(shared))
        assert (shared.a, shared["a,"], shared.jobs[:2]) == (value, 7, ["y,z", "y,"])


def test_refresh_tells_whether_others_changed_anything(shared: PersistedState, peer: Peer) -> None:
    assert not shared.refresh()

    peer.do("state.conf['deep']['n'] = 7")

    assert shared.refresh()
    assert shared.conf == {"deep": {"n": 7}}
    assert not shared.refresh()


def test_what_one_reads_in_a_transaction_is_up_to_date(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 41")

    with shared.transaction():
        shared.a += 1

    assert peer.do("state.refresh(); said = state.a") == 42


def test_the_thread_lock_holds_the_turn(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 41")

    with shared._thread_lock:
        shared.a += 1
        peer.tell("state.a += 1; said = state.a")
        shared.b = shared.a + 1

    assert peer.line().startswith('"StateConflict')
    assert (shared.a, shared.b) == (42, 43)


def test_the_thread_lock_is_acquired_and_released_like_an_rlock(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 41")

    assert shared._thread_lock.acquire()
    assert shared._thread_lock.acquire(blocking=False)
    assert shared.a == 41
    shared._thread_lock.release()
    peer.tell("state.a += 1; said = state.a")
    shared.a += 1
    shared._thread_lock.release()
    with pytest.raises(RuntimeError, match="un-acquired"):
        shared._thread_lock.release()

    assert peer.line().startswith('"StateConflict')
    assert peer.do("state.a += 1; said = state.a") == 43


def test_one_object_of_the_thread_lock_holds_as_often_as_one_likes(shared: PersistedState, peer: Peer) -> None:
    lock = shared._thread_lock
    for number in range(3):
        with lock, lock:
            with lock:
                shared.a = number
            peer.tell("state.refresh(); said = state.b")
            shared.b = number
        assert peer.line() == f"{number}"


@pytest.mark.parametrize("options", [{"blocking": False}, {"timeout": 0}, {"timeout": 0.01}])
def test_who_does_not_wait_for_the_thread_lock_does_not_get_it(
    shared: PersistedState, peer: Peer, options: dict[str, Any]
) -> None:
    """It is with another process at first, and then with another thread."""
    peer.do("lock = state._thread_lock; lock.acquire()")
    assert not shared._thread_lock.acquire(**options)
    peer.do("lock.release()")

    assert shared._thread_lock.acquire(timeout=60)
    got = []

    def ask() -> None:
        got.append(shared._thread_lock.acquire(**options))
        with pytest.raises(RuntimeError, match="un-acquired"):
            shared._thread_lock.release()

    together(ask)
    shared._thread_lock.release()

    assert got == [False]
    assert peer.do("said = state._thread_lock.acquire(blocking=False); state.a = 7; state._thread_lock.release()")
    shared.refresh()
    assert shared.a == 7
    with pytest.raises(ValueError, match="timeout"):
        shared._thread_lock.acquire(blocking=False, timeout=1)


def test_nodes_stay_the_same_objects(shared: PersistedState, peer: Peer) -> None:
    job, deep = shared.jobs[1], shared.conf["deep"]

    peer.do("state.jobs.insert(0, 'first'); state.conf['deep']['m'] = 2; state.vacuum(); state.jobs[2]['done'] = True")
    shared.refresh()

    assert shared.jobs[2] is job
    assert job == {"name": "y", "done": True}
    assert shared.conf["deep"] is deep
    deep["k"] = 3
    assert peer.do("state.refresh(); said = plain(state.conf)") == {"deep": {"n": 1, "m": 2, "k": 3}}


@pytest.mark.parametrize("value", ["2024-05-01", "1.5", "[1, {x: .nan}]", "!!binary aGk=", "{1: a, null: b}"])
def test_a_value_that_json_cannot_say_comes_over(shared: PersistedState, peer: Peer, value: str) -> None:
    from persistedstate_tools.values import yaml_value

    assert peer.do(f"from persistedstate_tools.values import yaml_value; state.v = yaml_value({value!r})") is None

    shared.refresh()

    assert oracle.same(plain(shared)["v"], yaml_value(value))
    assert oracle.same(oracle.read(Path(shared)), plain(shared))


def test_the_vacuum_of_another_process_is_followed(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 5; state.vacuum(); state.b = 6; state.vacuum(); state.c = 7")
    inode = Path(shared).stat().st_ino

    shared.d = 8
    shared.vacuum()

    assert Path(shared).stat().st_ino != inode
    assert plain(shared) == {
        "a": 5,
        "b": 6,
        "jobs": [{"name": "x"}, {"name": "y"}],
        "conf": {"deep": {"n": 1}},
        "c": 7,
        "d": 8,
    }
    assert "--- " not in Path(shared).read_text()
    assert peer.do("state.e = 9; said = plain(state)") == {**plain(shared), "e": 9}


def test_a_restart_goes_on_with_the_text(shared: PersistedState, peer: Peer) -> None:
    shared.jobs.append({"name": "z"})
    peer.do("state.jobs[0]['done'] = True")
    shared.vacuum()

    assert Path(shared).read_text() == (
        "a: 1\nb: 1\njobs:\n- name: x\n  done: true\n- name: y\n- name: z\nconf:\n  deep:\n    n: 1\n"
    )


# ---- Conflicts -------------------------------------------------------------------------------------------------------

#: What another process does, what this one does without knowing, and what it leaves then.
CONFLICTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "count": ("state.a += 1", lambda s: s.__setattr__("a", s.a + 1)),
    "item": ("state.a += 1", lambda s: s.__setitem__("a", 5)),
    "delete": ("state.a += 1", lambda s: s.__delattr__("a")),
    "deleted": ("del state.a", lambda s: s.__setattr__("a", s.a + 1)),
    "new key": ("state.new = 1", lambda s: s.__setattr__("new", 2)),
    "below": ("state.conf['deep']['n'] = 2", lambda s: s.__setattr__("conf", {})),
    "below a delete": ("state.conf['deep']['n'] = 2", lambda s: s.__delattr__("conf")),
    "cleared": ("state.conf.clear()", lambda s: s.conf.__setitem__("deep", 1)),
    "updated": ("state.update(a=2, z=1)", lambda s: s.__setattr__("a", 0)),
    "list item": ("state.jobs[1] = 'new'", lambda s: s.jobs.__setitem__(1, "mine")),
    "moved item": ("state.jobs.insert(0, 'new')", lambda s: s.jobs.__setitem__(1, "mine")),
    "last item": ("state.jobs.append('new')", lambda s: s.jobs.__setitem__(-1, "mine")),
    "removed item": ("state.jobs.pop()", lambda s: s.jobs.__delitem__(1)),
    "in an item": ("state.jobs[1]['name'] = 2", lambda s: s.jobs.__delitem__(1)),
    "slice": ("state.jobs.append('new')", lambda s: s.jobs.__setitem__(slice(None), [])),
    "del slice": ("state.jobs.append('new')", lambda s: s.jobs.__delitem__(slice(None))),
    "in a slice": ("state.jobs[0]['name'] = 2", lambda s: s.jobs.__delitem__(slice(None))),
    "vacuumed": ("state.a += 1; state.vacuum()", lambda s: s.__setattr__("a", s.a + 1)),
    "vacuumed list": ("state.jobs.insert(0, 1); state.vacuum()", lambda s: s.jobs.__delitem__(0)),
    "replaced above": ("state.conf = {'deep': 1}", lambda s: s.conf["deep"].__setitem__("n", 2)),
    "append to what was replaced": ("state.jobs = 1", lambda s: s.jobs.append(1)),
    "in a removed item": ("del state.jobs[0]", lambda s: s.jobs[0].update(done=True)),
    "below what was removed": ("del state.conf", lambda s: s.conf["deep"].clear()),
}


@pytest.mark.parametrize(("theirs", "mine"), CONFLICTS.values(), ids=CONFLICTS)
def test_what_was_not_read_is_not_overwritten(
    shared: PersistedState, peer: Peer, theirs: str, mine: Callable[[Any], object]
) -> None:
    assert peer.do(theirs) is None
    before = Path(shared).read_bytes()

    with pytest.raises(StateConflict, match="another process"):
        mine(shared)

    assert Path(shared).read_bytes() == before
    assert peer.do("said = plain(state)") == plain(shared)
    assert oracle.read(Path(shared)) == plain(shared)


#: What is computed in its turn, or lies beside what the other one changed.
NO_CONFLICTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "another key": ("state.a += 1", lambda s: s.__setattr__("b", 2)),
    "the same value": ("state.a = 2; state.a = 1", lambda s: s.__setattr__("a", s.a + 1)),
    "append": ("state.jobs.append(1)", lambda s: s.jobs.append(2)),
    "extend": ("state.jobs.append(1)", lambda s: s.jobs.extend([2])),
    "in place": ("state.jobs.append(1)", lambda s: s.__setattr__("jobs", s.jobs.__iadd__([2]))),
    "pop": ("state.jobs.append(1)", lambda s: s.jobs.pop()),
    "pop first": ("state.jobs.pop(0)", lambda s: s.jobs.pop(0)),
    "pop key": ("state.a = 2", lambda s: s.pop("a")),
    "popitem": ("state.c = 2", lambda s: s.popitem()),
    "remove": ("state.jobs.insert(0, 1)", lambda s: s.jobs.remove({"name": "y"})),
    "insert": ("state.jobs.insert(0, 1)", lambda s: s.jobs.insert(1, 2)),
    "setdefault": ("state.c = 1", lambda s: s.setdefault("c", 2)),
    "update": ("state.a = 2", lambda s: s.update(a=3)),
    "sort": ("state.jobs.insert(0, {'name': 'z'})", lambda s: s.jobs.sort(key=lambda job: job["name"])),
    "reverse": ("state.jobs.append(1)", lambda s: s.jobs.reverse()),
    "clear": ("state.jobs.append(1)", lambda s: s.jobs.clear()),
    "an item before": ("state.jobs.append(1)", lambda s: s.jobs.__setitem__(1, "mine")),
    "another item": ("state.jobs[0]['name'] = 2", lambda s: s.jobs.__setitem__(1, "mine")),
    "in another item": ("state.jobs.append(1)", lambda s: s.jobs[0].update(done=True)),
}


@pytest.mark.parametrize(("theirs", "mine"), NO_CONFLICTS.values(), ids=NO_CONFLICTS)
def test_what_is_computed_in_its_turn_is_no_conflict(
    shared: PersistedState, peer: Peer, theirs: str, mine: Callable[[Any], object], tmp_path: Path
) -> None:
    with PersistedState(tmp_path / "other", **plain(shared)) as one_hand:
        exec(theirs, {"state": one_hand})  # noqa: S102 - the same code as in the other process
        mine(one_hand)
        expected = plain(one_hand)
    (tmp_path / "other").unlink()

    assert peer.do(theirs) is None
    mine(shared)

    assert plain(shared) == expected
    assert oracle.read(Path(shared)) == expected
    assert peer.do("state.refresh(); said = plain(state)") == expected


def test_after_a_conflict_the_same_statement_works(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 10")

    with pytest.raises(StateConflict) as caught:
        shared.a += 1

    assert str(caught.value) == (
        f"{Path(shared)}: STATE.a was changed by another process or person since it was read; repeat the statement, or "
        "let STATE.transaction() hold both the reading and the writing"
    )
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), StateError)
    shared.a += 1
    assert shared.a == 11


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("state.a += 1", lambda s: s.__setattr__("a", s.a + 1)),
        ("with state.transaction(): state.a += 1; state.b += 1", lambda s: s.__delattr__("b")),
        ("state.conf['deep']['n'] += 1", lambda s: s.conf["deep"].__setitem__("n", 5)),
        ("state.conf['deep']['n'] += 1", lambda s: s.__setattr__("conf", {})),
        ("state.jobs.append(len(state.jobs))", lambda s: s.jobs.__setitem__(-1, "mine")),
    ],
)
def test_what_another_process_does_again_and_again_is_not_overwritten(
    shared: PersistedState, peer: Peer, theirs: str, mine: Callable[[Any], object]
) -> None:
    """From the second time on it is applied in a shorter way."""
    for _ in range(3):
        peer.do(theirs)
        peer.do(theirs)
        with pytest.raises(StateConflict, match="another process"):
            mine(shared)
        assert peer.do("said = plain(state)") == plain(shared)
    shared.vacuum()

    assert oracle.read(Path(shared)) == plain(shared)


@pytest.mark.parametrize(
    ("theirs", "old", "new", "mine"),
    [
        ("state.a += 1", "b: 1", "b: 7", lambda s: s.__setattr__("b", s.b + 1)),
        ("state.jobs[1] = 'z'", "- name: x", "- name: q", lambda s: s.jobs.__setitem__(0, "mine")),
        ("state.jobs.append('z')", "- name: x", "- name: q", lambda s: s.jobs.__setitem__(0, "mine")),
    ],
)
def test_what_a_person_saves_beside_what_another_process_does_is_not_overwritten(
    shared: PersistedState, peer: Peer, theirs: str, old: str, new: str, mine: Callable[[Any], object]
) -> None:
    """The same statement finds both, one after the other."""
    peer.do(theirs)
    save(Path(shared), Path(shared).read_text().replace(old, new))

    with pytest.raises(StateConflict, match="another process"):
        mine(shared)

    assert "q" in shared.jobs[0].values() or shared.b == 7


def test_what_another_process_does_again_and_again_is_told(shared: PersistedState, peer: Peer) -> None:
    told: list[Any] = []
    for _ in range(2):
        peer.do("state.a += 1; state.jobs.append(state.a)")
        shared.refresh()
    stop = on_change(shared, lambda *change: told.append(change), "a")
    for _ in range(2):
        peer.do("state.a += 1; state.jobs.append(state.a)")
        shared.refresh()
    stop()

    assert told == [(("a",), 3, 4), (("a",), 4, 5)]


@pytest.mark.parametrize(
    "then",
    [
        *("del state.a", "state.a = {}", "state.clear()", "state.jobs = 5", "state.vacuum()"),
        *("state.jobs.insert(1, 9)", "state.jobs.append([])", "state.jobs.pop(0)", "state.a = 'text'"),
    ],
)
def test_what_was_done_again_and_again_is_followed_by_something_else(
    shared: PersistedState, peer: Peer, then: str
) -> None:
    again = "state.a = 7; state.jobs = [1]; state.jobs.append(2); state.jobs.append(3); state.a = 8"
    for step in (again, again, then, again):
        peer.do(step)
    shared.refresh()
    assert plain(shared) == peer.do("said = plain(state)")
    for step in (again, then):
        peer.do(step)
        shared.refresh()
        assert plain(shared) == peer.do("said = plain(state)") == oracle.read(Path(shared))

    shared.vacuum()
    assert oracle.read(Path(shared)) == plain(shared)


def test_what_was_removed_by_another_process_can_be_read_and_not_changed(shared: PersistedState, peer: Peer) -> None:
    jobs = shared.jobs
    peer.do("state.jobs = []")
    shared.refresh()

    for job in jobs:
        with pytest.raises(StateConflict, match="removed or replaced"):
            job["done"] = True

    assert jobs == [{"name": "x"}, {"name": "y"}]
    shared.copied = jobs
    assert shared.copied == jobs


def test_what_one_removed_oneself_lives_on(shared: PersistedState, peer: Peer) -> None:
    job = shared.jobs.pop()
    peer.do("state.jobs.append(1)")
    shared.refresh()

    job["done"] = True

    assert job == {"name": "y", "done": True}
    assert shared.jobs == [{"name": "x"}, 1]


def test_a_transaction_that_fails_undoes_only_its_own(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 10; state.jobs.append('theirs')")

    with pytest.raises(ZeroDivisionError), shared.transaction():
        shared.a += 1
        shared.jobs.append("mine")
        _ = 1 / 0

    assert shared.a == 10
    assert shared.jobs[-1] == "theirs"
    assert oracle.read(Path(shared)) == plain(shared)


# ---- Who may open it ------------------------------------------------------------------------------------------------


def test_a_file_that_is_shared_is_not_opened_alone(shared: PersistedState) -> None:
    code = """
        import sys
        from persistedstate import PersistedState, StateLocked
        try:
            PersistedState(sys.argv[1])
        except StateLocked as error:
            print(error.pid, error.how, error)
    """
    with Child(code, Path(shared)) as child:
        pid, how, text = child.line().split(" ", 2)

    assert (int(pid), how) == (os.getpid(), "shared")
    assert text == (
        f"{Path(shared)}: in use by process {os.getpid()}, which shares it; open it with _shared=True here, too, "
        "end it, wait with _wait=seconds, or read with _readonly=True"
    )


def test_a_file_that_somebody_has_alone_is_not_shared(path: Path) -> None:
    code = """
        import sys
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], a=1)
        print("open", flush=True)
        input()
        state.close()
        print("closed", flush=True)
        input()
    """
    with Child(code, path) as child:
        child.expect("open")
        with pytest.raises(StateLocked) as caught:
            PersistedState(path, _shared=True)
        assert (caught.value.pid, caught.value.how) == (child.pid, "alone")
        assert str(caught.value) == (
            f"{path}: in use by process {child.pid}, which has it for itself; open it with _shared=True there, too, "
            "end it, wait with _wait=seconds, or read with _readonly=True"
        )
        assert listing(path.parent) == ["x.state"]
        copied = pickle.loads(pickle.dumps(caught.value))
        assert (copied.pid, copied.how, str(copied)) == (child.pid, "alone", str(caught.value))
        child.tell()
        with PersistedState(path, _shared=True, _wait=30) as state:
            assert state.a == 1


@pytest.mark.parametrize("step", ["state.vacuum()", "state.b = 1; os.rename(sys.argv[1], 'moved')", "state.a"])
def test_a_file_is_shared_whatever_became_of_it(shared: PersistedState, step: str) -> None:
    """The lock of the state file alone would not tell it to who opens it."""
    with Peer(Path(shared)) as peer:
        peer.do(f"os.chdir(os.path.dirname(sys.argv[1])); {step}")
        peer.do("state.close()")
        peer.do("open(sys.argv[1], 'a').close()")
        refused = peer.do("PersistedState(sys.argv[1])")
    if "rename" in step:
        (Path(shared).parent / "moved").unlink()
        with pytest.warns(RuntimeWarning, match="emptied"):
            shared.refresh()

    assert refused.startswith("StateLocked")
    assert "shares it" in refused


def test_in_one_process_a_file_is_opened_in_one_way(shared: PersistedState, tmp_path: Path) -> None:
    with PersistedState(Path(shared), _shared=True) as same:
        assert same.jobs is shared.jobs
    with pytest.raises(StateError, match="open in this process already, with _shared=True"):
        PersistedState(Path(shared))
    with PersistedState(tmp_path / "other"), pytest.raises(StateError, match="already, without _shared=True"):
        PersistedState(tmp_path / "other", _shared=True)
    (tmp_path / "other").unlink()


def test_the_last_one_takes_the_file_beside_away(shared: PersistedState, peer: Peer) -> None:
    folder = Path(shared).parent
    assert listing(folder) == ["x.state", "x.state.shared"]

    peer.do("state.close()")
    assert listing(folder) == ["x.state", "x.state.shared"]
    shared.a += 1
    shared.close()

    assert listing(folder) == ["x.state"]
    assert (folder / "x.state").read_text().startswith("a: 2\n")
    peer.do("state = PersistedState(sys.argv[1], _shared=True)")


def test_only_the_last_one_vacuums(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 2; state.close()")
    assert '--- ["set",[],"a",2]\n' in Path(shared).read_text()
    peer.do("state = PersistedState(sys.argv[1], _shared=True)")


def test_what_killed_ones_left_beside_is_in_nobodys_way(path: Path) -> None:
    with Peer(path) as peer:
        peer.do("state.a = 1")
    assert listing(path.parent) == ["x.state", "x.state.shared"]

    with PersistedState(path) as state:
        assert listing(path.parent) == ["x.state"]
        state.a += 1
    with Peer(path) as peer:
        peer.do("state.a += 1")
    path.write_text("a: 10\n")
    with PersistedState(path, _shared=True) as state:
        assert state.a == 10


def test_a_file_of_somebody_else_beside_is_not_touched(path: Path) -> None:
    beside = path.with_name("x.state.shared")
    beside.write_text("mine\n")

    with PersistedState(path) as state:
        state.a = 1
    with pytest.raises(StateError, match="somebody else's file; rename it"):
        PersistedState(path, _shared=True)

    assert beside.read_text() == "mine\n"
    beside.unlink()


def test_several_names_are_refused(path: Path) -> None:
    path.write_text("a: 1\n")
    other = path.with_name("other")
    os.link(path, other)

    with pytest.raises(OSError, match="several names"):
        PersistedState(path, _shared=True)

    assert listing(path.parent) == ["other", "x.state"]
    other.unlink()


def test_the_file_beside_is_as_secret_as_the_file(path: Path) -> None:
    with PersistedState(path, _shared=True, _mode=0o600, secret=1):
        assert path.with_name("x.state.shared").stat().st_mode & 0o777 == 0o600
    path.chmod(0o664)
    with PersistedState(path, _shared=True):
        assert path.with_name("x.state.shared").stat().st_mode & 0o777 == 0o664


def test_an_unknown_value_of_the_option_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match="_shared is False or True, not 1"):
        PersistedState(path, _shared=1)  # type: ignore[arg-type]


def test_a_follower_follows_what_is_shared(shared: PersistedState, peer: Peer) -> None:
    with PersistedState(Path(shared), _readonly=True) as follower:
        peer.do("state.a = 2")
        shared.b = 3
        assert follower.refresh()
        assert (follower.a, follower.b) == (2, 3)
        peer.do("state.vacuum(); state.a = 4")
        assert follower.refresh()
        assert plain(follower) == peer.do("said = plain(state)")


def test_a_closed_one_says_so(shared: PersistedState) -> None:
    jobs = shared.jobs
    shared.close()

    with pytest.raises(StateClosed):
        shared.a = 1
    with pytest.raises(StateClosed):
        jobs.append(1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["set", "a", "5"], {"a": 5}),
        (["append", "jobs", "new"], {"jobs": [{"name": "x"}, {"name": "y"}, "new"]}),
        (["delete", "conf"], {}),
        (["vacuum"], {}),
    ],
)
def test_commands_take_their_turn(
    shared: PersistedState, peer: Peer, arguments: list[str], expected: dict[str, Any]
) -> None:
    peer.do("state.b = 2")
    command = [sys.executable, "-m", "persistedstate", arguments[0], str(Path(shared)), *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    shared.refresh()

    assert plain(shared) == {**plain(shared), "b": 2, **expected}
    assert ("conf" in shared) == (arguments[0] != "delete")
    assert peer.do("state.refresh(); said = plain(state)") == plain(shared)
    assert listing(Path(shared).parent) == ["x.state", "x.state.shared"]


# ---- Many at once ---------------------------------------------------------------------------------------------------

COUNTING = """
    import json, os, sys
    import persistedstate
    from persistedstate import PersistedState, StateConflict

    persistedstate._VACUUM_FLOOR = 20_000
    path, how, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    state, got, conflicts = PersistedState(path, _shared=True, counter=0, ids=[]), [], 0
    print("open", flush=True)
    input()
    while len(got) < times:
        if how == "transaction":
            with state.transaction():
                state.counter += 1
                got.append(state.counter)
        elif how == "append":
            state.ids.append(f"{os.getpid()} {len(got)}")
            got.append(f"{os.getpid()} {len(got)}")
        else:
            try:
                value = state.counter + 1
                state.counter = value
                got.append(value)
            except StateConflict:
                conflicts += 1
    print(json.dumps([got, conflicts]), flush=True)
    state.close()
"""


@pytest.mark.stress
@pytest.mark.parametrize("how", ["transaction", "append", "plain"])
@pytest.mark.parametrize("writers", [1, 2, 4])
@sized(ci=2_000, nightly=100_000)
def test_writers_at_once_lose_nothing(path: Path, how: str, writers: int, rounds: int) -> None:
    """Values must be distinct, too: the count alone hides what was overwritten."""
    children = [Child(COUNTING, path, how, rounds) for _ in range(writers)]
    for child in children:
        child.expect("open")
    for child in children:
        child.tell()
    got = [json.loads(child.line()) for child in children]
    for child in children:
        child.finish()

    acknowledged = [value for values, _ in got for value in values]
    assert len(set(acknowledged)) == len(acknowledged) == writers * rounds
    found = oracle.read(path)
    if how == "append":
        assert sorted(found["ids"]) == sorted(acknowledged)
    else:
        assert found["counter"] == writers * rounds
    print(how, writers, "conflicts", [conflicts for _, conflicts in got])
    assert listing(path.parent) == ["x.state"]


@pytest.mark.stress
@sized(ci=200, nightly=20_000)
def test_kills_and_hand_edits_lose_nothing_acknowledged(chance: random.Random, rounds: int, tmp_path: Path) -> None:
    with Child(script("sharing.py"), tmp_path, chance.getrandbits(32), rounds) as server:
        outcome = json.loads(_last_line(server, rounds))
    print(outcome)

    assert outcome["lost"] == outcome["twice"] == outcome["left"] == []
    assert outcome["failed"] == 0
    assert not outcome["unmerged"]
    assert outcome["kills"] == rounds
    assert outcome["acknowledged"] >= rounds
    assert outcome["edits"] >= rounds // 10
    assert outcome["again"] <= 1 + rounds // 50


def _last_line(server: Child, rounds: int) -> str:
    out, errors = server._process.communicate(timeout=60 + rounds)
    assert server._process.returncode == 0, errors.decode()
    return str(out.decode().splitlines()[-1])


def test_threads_of_several_processes_lose_nothing(shared: PersistedState) -> None:
    counting = (
        "import threading; "
        "run = lambda: [state.jobs.append(str(threading.get_ident()) + str(n)) for n in range(50)]; "
        "threads = [threading.Thread(target=run) for _ in range(3)]; "
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    with Peer(Path(shared)) as one, Peer(Path(shared)) as other:
        one.tell(counting)
        other.tell(counting)
        together(*[lambda: [shared.jobs.append(n) for n in range(50)]] * 3)
        assert [one.line(), other.line()] == ["null", "null"]
        one.do("state.close()")
        other.do("state.close()")
    shared.refresh()

    assert len(shared.jobs) == 2 + 9 * 50
    assert oracle.read(Path(shared)) == plain(shared)


# ---- Hands on the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rename", "in place", "cp", "vim"])
@pytest.mark.parametrize("who", ["who wrote last", "who did not read"])
def test_a_save_over_what_a_process_did_not_read_loses_nothing(
    shared: PersistedState, peer: Peer, way: str, who: str
) -> None:
    """A person saves a text from before all of it; it does not matter who notices that."""
    text = Path(shared).read_text()
    peer.do("state.a = 2; state.jobs.append('theirs')")
    peer.do("state.vacuum()")
    peer.do("state.conf['deep']['n'] = 5")
    save(Path(shared), text.replace("b: 1\n", "b: 77  # mine\n"), way)

    if who == "who wrote last":
        peer.do("state.c = 1")
        shared.refresh()
    else:
        shared.c = 1

    expected = {"a": 2, "b": 77, "jobs": [{"name": "x"}, {"name": "y"}, "theirs"], "conf": {"deep": {"n": 5}}, "c": 1}
    assert plain(shared) == expected
    assert peer.do("state.refresh(); said = plain(state)") == expected
    shared.vacuum()
    assert "b: 77  # mine\n" in Path(shared).read_text()


def test_a_save_as_long_as_what_a_process_knows_hides_nothing_from_it(shared: PersistedState, peer: Peer) -> None:
    """A process that goes by the size would go on with what it has, and lose what others wrote."""
    path = Path(shared)
    text = path.read_bytes()
    peer.do("state.a += 1")
    with path.open("r+b") as file:
        file.truncate(len(text))
        file.write(text.replace(b"b: 1", b"b: 2"))

    with shared.transaction():
        shared.a += 1

    assert shared.a == 3
    assert peer.do("state.refresh(); said = [state.a, state.b]") == [3, 2]


@pytest.mark.parametrize("way", ["in place", "cp"])
@pytest.mark.parametrize("more", ["\n", "a record"])
def test_a_save_that_makes_the_text_longer_by_what_stands_at_its_end_is_seen(
    shared: PersistedState, peer: Peer, way: str, more: str
) -> None:
    """What stands there is no record of a process that was killed behind it."""
    path = Path(shared)
    shared.jobs.append("once")
    text = path.read_text()
    record = text.splitlines()[-1]
    comment = f"#{'.' * (len(record) - 1)}\n" if more == "a record" else ""
    save(path, comment + text.replace("b: 1\n", "b: 2\n" if comment else "b: 22\n"), way)

    peer.do("state.a = 5")
    shared.vacuum()

    assert peer.do("state.refresh(); said = plain(state)") == plain(shared)
    assert plain(shared)["jobs"] == [{"name": "x"}, {"name": "y"}, "once"]
    assert (shared.a, shared.b) == (5, 2 if comment else 22)


def test_a_save_is_a_conflict_with_what_it_changed(shared: PersistedState) -> None:
    save(Path(shared), Path(shared).read_text().replace("a: 1", "a: 10"))

    with pytest.raises(StateConflict, match="changed by another process or person since"):
        shared.a += 1

    assert shared.a == 10


def test_a_save_that_removes_a_container_is_a_conflict_with_a_change_of_it(shared: PersistedState) -> None:
    job = shared.jobs[0]
    save(Path(shared), Path(shared).read_text().replace("- name: x\n", ""))

    with pytest.raises(StateConflict, match="another process or person removed or replaced"):
        job["name"] = "mine"


def test_what_a_person_broke_is_kept_beside_once(shared: PersistedState, peer: Peer) -> None:
    folder = Path(shared).parent
    save(Path(shared), "a: [\n")

    with pytest.warns(RuntimeWarning, match="cannot be understood"):
        shared.a += 1
    assert peer.do("state.b += 1") is None

    kept = [name for name in listing(folder) if ".edited-" in name]
    assert [(folder / name).read_text() for name in kept] == ["a: [\n"]
    (folder / kept[0]).unlink()
    assert (shared.a, peer.do("said = [state.a, state.b]")) == (2, [2, 2])


def test_a_file_that_somebody_removed_comes_back(shared: PersistedState, peer: Peer) -> None:
    peer.do("state.a = 2")
    Path(shared).unlink()

    with pytest.warns(RuntimeWarning, match="removed"):
        shared.b = 2

    assert (shared.a, shared.b) == (2, 2)
    assert oracle.read(Path(shared)) == plain(shared)
    assert peer.do("state.refresh(); said = plain(state)") == plain(shared)


def test_who_opens_it_while_a_save_is_not_merged_merges_it(shared: PersistedState) -> None:
    shared.a = 2
    save(Path(shared), Path(shared).read_text().replace("b: 1", "b: 5"))

    with Peer(Path(shared)) as peer:
        assert peer.do("state.c = 1; said = [state.a, state.b, state.c]") == [2, 5, 1]
        peer.do("state.close()")


@pytest.mark.parametrize(
    "torn",
    [
        '--- ["set",[],"a',
        "--- [",
        "--",
        '--- ["set",[],"a",9]',
        '--- ["was",["b"],1]\n--- ["set",[],"b',
        '--- ["was",["b"],1]\n',
    ],
)
def test_half_a_record_of_a_killed_writer_is_dropped(shared: PersistedState, peer: Peer, torn: str) -> None:
    peer.do("state.a = 2")
    with Path(shared).open("a") as file:
        file.write(torn)

    shared.b = 2

    assert (shared.a, shared.b) == (2, 2)
    assert oracle.read(Path(shared)) == plain(shared)
    assert peer.do("state.refresh(); said = plain(state)") == plain(shared)


def test_a_whole_record_of_a_writer_that_was_killed_behind_it_counts(shared: PersistedState, peer: Peer) -> None:
    with Path(shared).open("a") as file:
        file.write('--- ["set",[],"a",9]\n--- ["set"')

    shared.b = 2

    assert (shared.a, shared.b) == (9, 2)
    assert peer.do("state.refresh(); said = plain(state)") == plain(shared)
    assert oracle.read(Path(shared)) == plain(shared)


def test_a_vacuum_whose_process_was_killed_behind_the_renaming_is_no_save_of_a_person(
    shared: PersistedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a person is waited for")

    with Peer(Path(shared)) as peer:
        peer.do("state.a = 2")
        peer.tell("persistedstate._SharedJournal._publish = lambda *_: os._exit(0); state.vacuum()")
        peer.finish()
    assert Path(shared).read_text().startswith("a: 2\n")
    monkeypatch.setattr(persistedstate._SharedTree, "_await_edit", fail)

    shared.b = 2

    assert (shared.a, shared.b) == (2, 2)
    assert oracle.read(Path(shared)) == plain(shared)
    with Peer(Path(shared)) as peer:
        assert peer.do("state.c = 1; said = plain(state)") == {**plain(shared), "c": 1}
        peer.do("state.close()")


# ---- Fork -----------------------------------------------------------------------------------------------------------


def test_a_forked_child_opens_the_file_anew(shared: PersistedState) -> None:
    jobs = shared.jobs
    shared.a = 2

    def write() -> object:
        before = shared.a
        shared.b += 1
        jobs.append("child")
        return before, shared.b, len(persistedstate._open_trees), shared._tree.journal.pid == os.getpid()

    assert in_child(write) == "(2, 2, 1, True)"
    shared.a += 1

    assert plain(shared)["jobs"] == [{"name": "x"}, {"name": "y"}, "child"]
    assert (shared.a, shared.b) == (3, 2)
    assert oracle.read(Path(shared)) == plain(shared)


def test_a_forked_child_does_not_overwrite_what_it_has_not_read(shared: PersistedState) -> None:
    ready, is_ready = os.pipe()
    told, tell = os.pipe()

    def late() -> None:
        pid = os.fork()
        if pid:
            os.close(told)
            return
        os.read(told, 1)
        try:
            shared.a += 1
            os.write(is_ready, b"overwritten")
        except StateConflict:
            shared.a += 1
            os.write(is_ready, f"conflict {shared.a}".encode())
        os._exit(0)

    late()
    shared.a = 10
    os.write(tell, b"!")
    said = os.read(ready, 100)
    os.wait()
    for descriptor in ready, is_ready, tell:
        os.close(descriptor)

    assert said == b"conflict 11"
    shared.refresh()
    assert shared.a == 11


def test_a_child_that_was_forked_in_a_transaction_takes_no_part_in_it(shared: PersistedState) -> None:
    with shared.transaction():
        shared.a = 5
        said = in_child(lambda: shared.__setattr__("a", 6))
        shared.b = 5

    assert said.startswith("StateError")
    assert "must open the file itself" in said
    assert (shared.a, shared.b) == (5, 5)
    assert oracle.read(Path(shared)) == plain(shared)


def test_a_child_that_only_ends_disturbs_nobody(shared: PersistedState) -> None:
    pid = os.fork()
    if not pid:
        persistedstate._close_at_exit()
        os._exit(0)
    os.waitpid(pid, 0)

    shared.a += 1

    assert listing(Path(shared).parent) == ["x.state", "x.state.shared"]
    assert oracle.read(Path(shared)) == plain(shared)


def test_pool_workers_share_an_inherited_state(path: Path) -> None:
    code = """
        import multiprocessing, sys
        from persistedstate import PersistedState

        STATE = PersistedState(sys.argv[1], _shared=True, done=[], total=0)

        def work(item):
            with STATE.transaction():
                STATE.done.append(item)
                STATE.total += item
            return item

        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(4) as pool:
                print(sum(pool.map(work, range(40), chunksize=1)))
            STATE.refresh()
            print(STATE.total, sorted(STATE.done) == list(range(40)))
            STATE.close()
    """
    with Child(code, path) as child:
        child.expect(str(sum(range(40))))
        child.expect(f"{sum(range(40))} True")
        child.finish()

    assert oracle.read(path)["total"] == sum(range(40))


# ---- Ctrl-C and errors ----------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_wait_for_a_turn(shared: PersistedState) -> None:
    with Peer(Path(shared)) as peer:
        with shared.transaction():
            peer.tell("exec('try:\\n state.a = 5\\nexcept KeyboardInterrupt:\\n said = \"interrupted\"')")
            while not _waits(peer.pid):
                pass
            peer.send_signal(signal.SIGINT)
            assert json.loads(peer.line()) == "interrupted"
        assert peer.do("state.a = 6; said = state.a") == 6
        peer.do("state.close()")


def _waits(pid: int) -> bool:
    """Tell whether a process waits for a lock."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in locks) or any(
        "->" in line and "OFDLCK" in line for line in locks
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["pwrite", "write"])
def test_a_change_that_fails_leaves_nothing(
    shared: PersistedState, peer: Peer, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([error])

    def fail(*arguments: Any) -> Any:
        for failure in times:
            raise failure
        return real(*arguments)

    real = getattr(persistedstate._System, call)
    with monkeypatch.context() as patch:
        patch.setattr(persistedstate._System, call, staticmethod(fail))
        with pytest.raises(type(error)):
            shared.a = 5

    shared.refresh()
    assert oracle.read(Path(shared)) == plain(shared)
    assert peer.do("state.b = 2; said = plain(state)") == {**plain(shared), "b": 2}
    shared.a = 7
    assert peer.do("state.refresh(); said = state.a") == 7


def test_a_change_of_which_a_part_was_written_beside_leaves_nothing(
    shared: PersistedState, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full: some bytes fit, and then none."""

    def fail(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(descriptor, data[:-1], offset)

    with monkeypatch.context() as patch:
        patch.setattr(persistedstate._System, "pwrite", staticmethod(fail))
        with pytest.raises(OSError, match="No space"):
            shared.a = 5

    assert shared.a == 1
    assert peer.do("state.b = 2; said = plain(state)") == {**plain(shared), "b": 2}
    shared.refresh()
    assert oracle.read(Path(shared)) == plain(shared)


def test_an_interrupt_in_front_of_the_end_of_a_turn_leaves_it_to_others(
    shared: PersistedState, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(persistedstate._SharedJournal, "end_turn", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shared.a = 5

    assert peer.do("state.b = 2; said = plain(state)") == {**plain(shared), "b": 2}


def test_a_catch_up_that_is_interrupted_is_whole_or_undone(
    shared: PersistedState, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tree: Any, *record: Any) -> None:
        if record[2] == "b":
            monkeypatch.undo()
            raise KeyboardInterrupt
        take(tree, *record)

    before, take = plain(shared), persistedstate._SharedTree._take_operation
    after = peer.do("state.a = 5; state.b = 6; said = plain(state)")
    monkeypatch.setattr(persistedstate._SharedTree, "_take_operation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shared.refresh()

    assert plain(shared) in (before, after)
    shared.refresh()
    assert plain(shared) == after


def test_a_change_behind_one_that_was_interrupted_in_the_same_turn_reaches_others(
    shared: PersistedState, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with shared._thread_lock:
        monkeypatch.setattr(persistedstate._System, "pwrite", staticmethod(interrupt))
        with pytest.raises(KeyboardInterrupt):
            shared.a = 5
        shared.b = 6

    assert (shared.a, shared.b) == (5, 6)
    assert peer.do("state.c = 1; said = plain(state)") == {**plain(shared), "c": 1}


def test_fsync_reaches_the_disk_before_the_turn_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PersistedState(path, _shared=True, _fsync=True, a=0) as state:
        order: list[str] = []

        def noted(name: str) -> Callable[..., Any]:
            real = getattr(persistedstate._System, name)

            def call(*arguments: Any) -> Any:
                order.append(name)
                return real(*arguments)

            return call

        for name in ("write", "fsync", "unlock"):
            monkeypatch.setattr(persistedstate._System, name, staticmethod(noted(name)))
        state.a = 1
        monkeypatch.undo()

    assert order == ["write", "fsync", "unlock"]


if sys.platform == "win32":
    pytest.skip("a file cannot be shared there", allow_module_level=True)


@pytest.mark.parametrize("how", ["close", "change"])
def test_a_failed_fsync_overwrites_nothing_of_others(
    shared: PersistedState, peer: Peer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The file is written anew then, in a turn that first reads what others wrote."""
    state = PersistedState(Path(shared), _shared=True, _fsync=1000)
    shared.close()
    state.a = 5
    peer.do("state.b = 6")
    fsync, failures = os.fsync, [1]

    def fail_once(descriptor: int) -> None:
        if failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(fail_once))
    if how == "close":
        state.close()
    else:
        state._tree.syncer._run()
        state.close()
    monkeypatch.undo()

    assert not failures
    assert peer.do("state.refresh(); said = [state.a, state.b]") == [5, 6]


@pytest.mark.leaves("files")  # where the child is still there when the last one closes
def test_what_a_person_changed_while_all_writers_were_gone_counts_once(path: Path) -> None:
    """A child that was forked before goes on with the file: what it writes is not overridden by that edit again."""
    path.write_text("a: 1\nb: 1\n")
    (begin, tell), (done, end) = os.pipe(), os.pipe()
    middle = os.fork()
    if not middle:
        state = PersistedState(path, _shared=True)
        state.a = 2
        if not os.fork():
            os.read(begin, 1)
            state.b = 7
            state.a = 50
            os.write(end, b"x")
        os._exit(0)
    os.waitpid(middle, 0)
    path.write_text(path.read_text().replace("a: 1\n", "a: 10\n", 1))

    os.write(tell, b"x")
    os.read(done, 1)
    for descriptor in (begin, tell, done, end):
        os.close(descriptor)

    assert oracle.read(path) == {"a": 50, "b": 7}
    with PersistedState(path, _shared=True) as again:
        assert (again.a, again.b) == (50, 7)
