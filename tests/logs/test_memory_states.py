"""States in a log in memory, which loses requests and replies: what is not known then is settled by the next change."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from oracle import same
from rounds import rounds

import persistedstate
from logs.memory import Memory, MemoryLog
from logs.test_states import OPERATIONS, operated
from persistedstate import PersistedState, StateConflict, StateUnknown, plain
from persistedstate_logs.journal import LogJournal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> Memory:
    """What the states at `memory://…` share; a short log, so that some have to read all of it."""
    memory = Memory(kept=10)

    def log(url: str, **_: object) -> MemoryLog:
        log = MemoryLog(memory, chance)
        log.path = url
        return log

    def engine(_url: str, *, fsync: bool | float, **_: object) -> Callable[..., LogJournal]:
        return partial(LogJournal, log, fsync=fsync)

    monkeypatch.setattr(persistedstate, "_engine", engine)
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
        hand.close()
