"""States in a log in memory, which loses requests and replies: what is not known then is settled by the next change."""

from __future__ import annotations

import collections
import contextlib
import copy
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import oracle
import pytest
import test_conformance
from oracle import same
from rounds import rounds
from test_conformance import ListNodes, MappingNodes, MappingRoot

import persistedstate
from logs.memory import Memory, MemoryLog
from logs.test_states import OPERATIONS, operated
from persistedstate import PersistedState, StateConflict, StateUnknown, plain
from persistedstate_logs.journal import LogJournal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path


def engine_of(memory_of: Callable[[str], Memory], chance: random.Random | None = None) -> Callable[..., Any]:
    """Return what finds the engine of `memory://…`."""

    def log(url: str, **_: object) -> MemoryLog:
        log = MemoryLog(memory_of(url), chance)
        log.path = url
        return log

    def engine(_url: str, *, fsync: bool | float, **_: object) -> Callable[..., LogJournal]:
        return partial(LogJournal, log, fsync=fsync)

    return engine


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> Memory:
    """What the states at `memory://…` share; a short log, so that some have to read all of it."""
    memory = Memory(kept=10)
    monkeypatch.setattr(persistedstate, "_engine", engine_of(lambda _: memory, chance))
    return memory


def settle(hand: PersistedState) -> None:
    """Find out what became of a change, which may take several tries."""
    while True:
        try:
            hand.refresh()
        except StateUnknown:
            continue
        return


def change(hand: PersistedState, model: dict[str, Any], operation: Any, *, in_transaction: bool) -> tuple[Any, bool]:
    """Do an operation to the state that a hand has; return the model then, and whether one was unknown and is there."""
    attempt = copy.deepcopy(model)
    expected = operated(attempt, operation)
    try:
        with hand.transaction() if in_transaction else contextlib.nullcontext():
            said = operated(hand, operation)
    except (StateConflict, StateUnknown) as error:
        settle(hand)
        is_there = isinstance(error, StateUnknown) and same(plain(hand), attempt)
        return attempt if is_there else model, is_there
    is_done = same(plain(hand), attempt)
    assert said == expected or not is_done
    return attempt if is_done else model, False


@rounds(ci=2_000, nightly=50_000)
@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_hands_and_a_model_agree_whatever_the_log_loses(
    memory: Memory, chance: random.Random, rounds: int, faults: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Random operations by either hand, on what it last saw; one that is unknown was made, or was not."""
    monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 2_000)
    model: dict[str, Any] = {"d": {"a": 1}, "l": [1, [2], {"x": 3}], "n": 0}
    hands = [PersistedState(f"memory://{name}", **copy.deepcopy(model)) for name in ("one", "two", "three")]
    for hand in hands:
        hand._tree.journal.log.faults = faults
    unknown = 0
    for number in range(rounds):
        hand = chance.choice(hands)
        if chance.random() < 0.5:
            settle(hand)
            assert same(plain(hand), model)
        operation = chance.choice(OPERATIONS)(chance, number)
        model, is_unknown = change(hand, model, operation, in_transaction=chance.random() < 0.3)
        unknown += is_unknown
        assert same(plain(hand), model)
        if chance.random() < 0.05:
            with contextlib.suppress(StateUnknown):
                hand.vacuum()
            settle(hand)

    path = tmp_path / "x.state"
    path.write_bytes(memory.text + b"".join(memory.behind(memory.at)))
    assert same(oracle.read(path), model)
    assert bool(unknown) == bool(faults)
    for hand in hands:
        hand._tree.journal.log.faults = 0
        settle(hand)
        hand.n = "all is known"
        hand.close()


# ---- CPython's own suites -------------------------------------------------------------------------------------------


class OnMemory:
    """Opens the states of a suite in logs in memory."""

    def setUp(self) -> None:
        self.memories: dict[str, Memory] = collections.defaultdict(Memory)
        self.numbers = itertools.count()
        patch = mock.patch.object(persistedstate, "_engine", engine_of(self.memories.__getitem__))
        patch.start()
        self.addCleanup(patch.stop)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]

    def open(self) -> PersistedState:
        url = f"memory://suite-{next(self.numbers)}"
        state = PersistedState(url)
        self.followers: list[Any]
        self.followers.append((state, Follower(self.memories[url])))
        return state

    def tearDown(self) -> None:
        self.compare()  # type: ignore[attr-defined]
        for state, follower in self.followers:
            url = state._tree.path
            state.close()
            with PersistedState(url) as again:
                assert same(plain(again), follower.read())


class Follower:
    """What a log in memory holds, in the eyes of PyYAML, which reads only what is new since the last look."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.text, self.read_to = memory, b"", memory.at
        self.value: dict[Any, Any] = {}

    def read(self) -> dict[Any, Any]:
        memory, documents = self.memory, oracle.READERS[test_conformance.READER]
        if self.text is not memory.text:
            self.text, self.read_to = memory.text, memory.at
            self.value = oracle.replay({}, list(documents(memory.text.decode())))
        news = b"".join(memory.behind(self.read_to))
        self.value = oracle.replay(self.value, [one for one in documents(news.decode()) if one is not None])
        self.read_to = memory.last
        return self.value


class TestListNodes(OnMemory, ListNodes):
    pass


class TestMappingNodes(OnMemory, MappingNodes):
    pass


class TestMappingRoot(OnMemory, MappingRoot):
    pass


del ListNodes, MappingNodes, MappingRoot  # else pytest runs them again on files
