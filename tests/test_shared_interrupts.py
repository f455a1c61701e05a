"""KeyboardInterrupt before any instruction of a shared change: its turn, its catch-up, and what it does itself.

What another process wrote is there by then, as records or behind a vacuum. Afterwards memory is what the file was at
some moment, half a catch-up never shows, the turn is free, and nothing of either process is lost.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import random
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import scratch
from editing import save
from rounds import rounds
from test_interrupts import FILES, START, TEXT, Place, Point, chosen, divided, executed, interrupt, run_watched

import persistedstate
from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import CodeType


class Neighbour:
    """Shares a file as another process does, but in this one: with a tree and descriptors of its own."""

    def __init__(self, path: Path) -> None:
        self.journal = persistedstate._SharedJournal(str(path))
        assert self.journal.open(None, 0.0)
        self.tree = persistedstate._SharedTree(self.journal, fsync=False, mode=None)
        self.journal.end_turn()
        self.root: Any = self.tree.root

    def vacuum(self) -> None:
        with self.tree.turn():
            self.tree.vacuum()

    def seen(self) -> Any:
        """Return all there is by now."""
        with self.tree.turn():
            return plain(self.root)

    def close(self) -> None:
        self.journal.close()


def transact(state: Any) -> None:
    with state.transaction() if isinstance(state, PersistedState) else contextlib.nullcontext():
        state["a"] += 1
        state["l"].append({"both": 1})


#: What this process does; the same call does it to plain containers.
CHANGES: dict[str, Callable[[Any], object]] = {
    "set": lambda s: s.__setitem__("mine", 5),
    "append": lambda s: s["l"].append("mine"),
    "deep": lambda s: s["d"]["k"]["deep"].append(2),
    "remove": lambda s: s["l"].remove("x"),
    "transaction": transact,
    "delete": lambda s: s.__delitem__("gone"),
}
#: What the other one did before.
THEIRS: dict[str, Callable[[Any], object]] = {
    "records": lambda s: (s.__setitem__("a", 7), s["l"].insert(0, [1]), s["d"].update(z=5, y={"n": 1})),
    "removal": lambda s: (s["l"].__delitem__(1), s["d"].pop("z")),
    "nothing": lambda _: None,
}


def same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing depend on how long something takes: stand in line for each turn, look for a person's hand once."""
    monkeypatch.setattr(persistedstate, "_IN_A_ROW", 0.0)
    monkeypatch.setattr(persistedstate, "_LOOK_EVERY", 1e6)


_same_way_each_time = pytest.fixture(autouse=True)(same_way_each_time)


@contextlib.contextmanager
def opened() -> Iterator[tuple[Path, Any, Neighbour]]:
    with scratch() as path:
        path.write_text(TEXT)
        state = PersistedState(path, _shared=True)
        neighbour = Neighbour(path)
        try:
            yield path, state, neighbour
        finally:
            neighbour.close()
            state.close()


def check(path: Path, state: Any, neighbour: Neighbour, stale: Any, allowed: tuple[Any, ...], where: object) -> None:
    """Assert that memory was the file at some moment, that the turn is free, and that both go on with the same."""
    journal = state._tree.journal
    assert not any((journal.is_in_turn, journal.is_locked, journal.is_in_line)), where
    assert plain(state) in (stale, *allowed), where
    assert {name: getattr(state, name) for name in state} == plain(state), where
    found = neighbour.seen()
    assert found in allowed, where
    state["later"] = str(where)
    neighbour.root["too"] = 1
    state.refresh()
    expected = {**found, "later": str(where), "too": 1}
    assert plain(state) == neighbour.seen() == expected, where
    assert oracle.read(path, oracle.FASTEST) == expected, where


#: Each change behind each of theirs, as records or behind a vacuum.
CASES = {
    f"{mine}-{theirs}-{'vacuum' if is_renewed else 'records'}": (CHANGES[mine], THEIRS[theirs], is_renewed)
    for mine, theirs, is_renewed in itertools.product(CHANGES, THEIRS, [False, True])
}


@contextlib.contextmanager
def changed_by_neighbour(case: str) -> Iterator[tuple[Path, Any, Neighbour, Callable[[], object]]]:
    """Give a state behind what another process did, and the change that comes then."""
    mine, theirs, is_renewed = CASES[case]
    with opened() as (path, state, neighbour):
        theirs(neighbour.root)
        if is_renewed:
            neighbour.vacuum()
            neighbour.root["a"] = neighbour.root["a"]
        yield path, state, neighbour, partial(mine, state)


@pytest.fixture(scope="module")
def own() -> dict[str, frozenset[Place]]:
    """Return the instructions that each case has to try: most are the same for nearly all."""
    points: dict[str, list[Point]] = {}
    with pytest.MonkeyPatch.context() as patch:
        same_way_each_time(patch)
        for case in [next(iter(CASES)), *CASES]:  # the first time fills caches
            with changed_by_neighbour(case) as (*_, action):
                points[case] = executed(action)
    return divided(random.Random(os.environ["PERSISTEDSTATE_SEED"]), points)


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("case", CASES)
@rounds(ci=150, nightly=20_000)
def test_an_interrupt_at_any_instruction_of_a_shared_change(
    chance: random.Random, rounds: int, case: str, own: dict[str, frozenset[Place]]
) -> None:
    mine, theirs, _ = CASES[case]
    between = copy.deepcopy(START)
    theirs(between)
    after = copy.deepcopy(between)
    mine(after)

    with changed_by_neighbour(case) as (_, state, _, action):
        points = executed(action)
        assert plain(state) == after
    for point in chosen(chance, points, rounds, own[case]):
        with changed_by_neighbour(case) as (path, state, neighbour, action):
            interrupt(point, action)
            check(path, state, neighbour, START, (between, after), point)


@pytest.mark.leaves("descriptors")
def test_a_change_behind_one_that_was_interrupted_in_the_same_turn_reaches_others() -> None:
    writing = {persistedstate._SharedJournal.append.__code__, persistedstate._write_at.__code__}
    with opened() as (_, state, _), state._thread_lock:
        points = [point for point in executed(partial(CHANGES["set"], state)) if point.code in writing]

    assert {point.code for point in points} == writing
    for point in points:
        with opened() as (path, state, neighbour):
            with state._thread_lock:
                interrupt(point, partial(CHANGES["set"], state))
                state["behind"] = 1
            expected = plain(state)
            assert expected in ({**START, "behind": 1}, {**START, "mine": 5, "behind": 1}), point
            assert neighbour.seen() == expected == oracle.read(path, oracle.FASTEST), point


@pytest.mark.leaves("descriptors", "threads")
@pytest.mark.parametrize("way", ["rename", "in place"])
@rounds(ci=100, nightly=10_000)
def test_an_interrupt_in_the_merge_of_a_save(chance: random.Random, rounds: int, way: str, monkeypatch: Any) -> None:
    """In place, the text that is saved is as long as what this process knows of the file."""
    monkeypatch.setattr(persistedstate, "_QUIET", 0.0)
    monkeypatch.setattr(persistedstate, "_QUIET_RETRY", 0.0)
    between = {**copy.deepcopy(START), "a": 9, "theirs": 1}
    after = {**between, "mine": 5}

    def prepare(path: Path, neighbour: Neighbour) -> None:
        neighbour.root["theirs"] = 1
        save(path, TEXT.replace("a: 1 ", "a: 9 "), way)

    with opened() as (path, state, neighbour):
        prepare(path, neighbour)
        points = executed(partial(CHANGES["set"], state))
        assert plain(state) == after
    unmerged = {**copy.deepcopy(START), "theirs": 1}
    for point in chosen(chance, points, rounds):
        with opened() as (path, state, neighbour), warnings.catch_warnings():
            prepare(path, neighbour)
            interrupt(point, partial(CHANGES["set"], state))
            assert plain(state) in (START, unmerged, between, after), point
            check(path, state, neighbour, plain(state), (between, after), point)


@pytest.mark.leaves("descriptors")
@rounds(ci=600, nightly=20_000)
def test_an_interrupt_in_a_close(chance: random.Random, rounds: int) -> None:
    with opened() as (_, state, neighbour):
        neighbour.close()
        state["l"].append(1)
        points = executed(state.close)
    for point in chosen(chance, points, rounds):
        with scratch() as path:
            path.write_text(TEXT)
            state = PersistedState(path, _shared=True)
            state["l"].append(1)
            interrupt(point, state.close)
            state.close()
            assert oracle.read(path, oracle.FASTEST)["l"] == [*START["l"], 1], point
            assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name], point
            with PersistedState(path) as again:
                again["a"] += 1


@pytest.mark.leaves("descriptors")
@rounds(ci=100, nightly=5_000)
def test_an_interrupt_in_a_close_leaves_to_others_what_they_share(chance: random.Random, rounds: int) -> None:
    with opened() as (_, state, _):
        points = executed(state.close)
    for point in chosen(chance, points, rounds):
        with opened() as (path, state, neighbour):
            state["l"].append(1)
            interrupt(point, state.close)
            state.close()
            assert path.with_name(path.name + persistedstate._BESIDE).exists(), point
            with PersistedState(path, _shared=True) as again:
                again["a"] += 1
                assert neighbour.seen() == plain(again) == {**START, "a": 2, "l": [*START["l"], 1]}, point


@pytest.mark.leaves("descriptors")
@rounds(ci=40, nightly=5_000)
def test_a_kill_at_any_instruction_of_a_vacuum_is_no_save_of_a_person(
    chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a person is waited for")

    def die(point: Point, path: Path) -> None:
        neighbour, counts = Neighbour(path), itertools.count(1)
        neighbour.root["theirs"] = 1

        def note(code: CodeType, _: int) -> None:
            if code is point.code and next(counts) == point.number_in_code:
                os._exit(0)

        run_watched(note, neighbour.vacuum, FILES)

    with opened() as (_, _, neighbour):
        neighbour.root["theirs"] = 1
        points = executed(neighbour.vacuum)
    monkeypatch.setattr(persistedstate._SharedTree, "_await_edit", fail)
    for point in chosen(chance, points, rounds):
        with opened() as (path, state, _):
            child = os.fork()
            if not child:
                die(point, path)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0, point
            state["mine"] = 5
            assert plain(state) == {**START, "theirs": 1, "mine": 5}, point
            assert oracle.read(path, oracle.FASTEST) == plain(state), point
