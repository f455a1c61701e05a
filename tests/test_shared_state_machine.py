"""The machine of test_state_machine.py with a shared state, and somebody else who changes it now and then.

The other one has a tree and descriptors of its own, as another process has. What it did is seen by a refresh, by a
change, in a transaction, or not yet by a statement that was prepared before: that is then refused as a conflict, or
does what it does where nothing stood in its way.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest
from checks import records
from editing import WAYS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from oracle import same
from rounds import SHARE
from test_shared_interrupts import Neighbour
from test_state_machine import (
    CI,
    DICT_METHODS,
    LIST_METHODS,
    Machine,
    containers,
    dict_operation,
    list_operation,
    outcome,
)

from persistedstate import PersistedState, StateConflict, plain

#: What a statement does that reads first: where that fails, it has not seen what the other one did.
READING_FIRST = {"add one", "*="}


class SharedMachine(Machine):
    merges_first = True
    neighbour: Neighbour | None = None

    def open(self, **defaults: Any) -> PersistedState:
        return PersistedState(self.path, _shared=True, **defaults)

    def part(self) -> None:
        super().part()
        self.go()

    def teardown(self) -> None:
        self.go()
        super().teardown()

    def go(self) -> None:
        if self.neighbour is not None:
            self.neighbour.close()
            self.neighbour = None

    @precondition(lambda self: self.neighbour is None)
    @rule()
    def come(self) -> None:
        self.neighbour = Neighbour(self.path)
        assert same(self.neighbour.seen(), self.model)

    @precondition(lambda self: self.neighbour is not None)
    @rule()
    def leave(self) -> None:
        assert self.neighbour is not None
        assert same(self.neighbour.seen(), self.model)
        self.go()

    @precondition(lambda self: self.neighbour is not None)
    @rule(
        data=st.data(),
        count=st.integers(1, 5),
        vacuum=st.booleans(),
        how=st.sampled_from(["refresh", "change", "transaction"]),
    )
    def others_change(self, data: st.DataObject, count: int, vacuum: bool, how: str) -> None:
        self.others_work(data, count, vacuum=vacuum)
        if how == "transaction":
            with self.state.transaction():
                self.step(data)
        elif how == "change":
            self.number += 1
            self.state.update(b=self.number)
            self.model["b"] = self.number
        self.state.refresh()

    def others_work(self, data: st.DataObject, count: int, *, vacuum: bool) -> None:
        """Let the other one change something; which nodes stay the same behind a vacuum is not promised."""
        assert self.neighbour is not None
        self.neighbour.seen()
        inside = {id(item) for _, item in containers(self.model)}
        for _ in range(count):
            self.step(data, self.neighbour.root)
        if vacuum:
            self.neighbour.vacuum()
        left = {id(item) for _, item in containers(self.model)} if not vacuum else set()
        self.held = [pair for pair in self.held if id(pair[1]) not in inside - left]

    @precondition(lambda self: self.neighbour is not None)
    @rule(data=st.data(), count=st.integers(1, 3))
    def change_what_others_changed(self, data: st.DataObject, count: int) -> None:
        path, model = data.draw(st.sampled_from(containers(self.model)), label="container")
        node, is_dict = self.at(path), isinstance(model, dict)
        methods = [method for method in (DICT_METHODS if is_dict else LIST_METHODS) if method not in READING_FIRST]
        operation = (dict_operation if is_dict else list_operation)(data.draw, methods)
        self.others_work(data, count, vacuum=False)
        is_there = any(item is model for _, item in containers(self.model))

        try:
            result = outcome(operation, node)
        except StateConflict:
            assert not self.state.refresh()
            return

        assert is_there
        assert same(result, outcome(operation, model))

    @precondition(lambda self: self.neighbour is not None)
    @rule(way=st.sampled_from(list(WAYS)), vacuum=st.booleans())
    def others_notice_a_hand_edit(self, way: str, vacuum: bool) -> None:
        assert self.neighbour is not None
        if vacuum:
            self.neighbour.vacuum()
        self.edit_and_save(self.path.read_text(), way)
        self.neighbour.vacuum()
        assert records(self.path) == 0
        self.state.refresh()
        self.adopt_order()
        assert same(self.neighbour.seen(), plain(self.state))

    @precondition(lambda self: self.neighbour is not None)
    @rule(data=st.data(), way=st.sampled_from(list(WAYS)), vacuum=st.booleans())
    def hand_edit_while_others_work(self, data: st.DataObject, way: str, vacuum: bool) -> None:
        """The text that is saved is from before what the other one did."""
        text = self.path.read_text()
        self.others_work(data, 2, vacuum=vacuum)
        self.edit_and_save(text, way)
        self.held = []
        self.state.refresh()
        self.adopt_order()

    @rule(written=st.integers(0, 40), code=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def refused_copy(self, written: int, code: int) -> None:
        """The system refuses to write to the file beside; then nothing has happened."""
        self.stage.fail_once("pwrite", code, written)
        with pytest.raises(OSError, match=r"."):
            self.state["a"] = [written]
        self.stage.heal()
        self.state.refresh()


SHARED = settings(CI, max_examples=max(1, round(100 * SHARE)))
TestSharedMachine = pytest.mark.timeout(600)(SharedMachine.TestCase)
TestSharedMachine.settings = SHARED


class _Campaign(SharedMachine):
    pass


TestSharedCampaign = pytest.mark.campaign(pytest.mark.timeout(0)(_Campaign.TestCase))
TestSharedCampaign.settings = settings(CI, max_examples=10_000, stateful_step_count=100)
