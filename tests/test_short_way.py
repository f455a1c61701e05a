"""The short way of frequent changes, `_LiveTree.assign`, is the long one in less time: nothing else differs."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import records, reopened, unwrap
from rounds import rounds as sized

import persistedstate
from persistedstate import PersistedState, StateClosed, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

START: dict[str, Any] = {
    "n": 0,
    "s": "x",
    "d": {"n": 0, "e": {"n": 0}},
    "l": [0],
    "items": 1,
    "deep": [{"n": 0, "l": []}],
}


@pytest.fixture
def state(path: Path) -> Iterator[Any]:
    with PersistedState(path, **copy.deepcopy({key: START[key] for key in START if key != "items"})) as state:
        state["items"] = 1
        yield state


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each change that asked for the short way could take it."""
    taken: list[bool] = []
    original = persistedstate._LiveTree.assign

    def assign(*arguments: Any) -> bool:
        taken.append(original(*arguments))
        return taken[-1]

    monkeypatch.setattr(persistedstate._LiveTree, "assign", assign)
    return taken


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "attribute": lambda state, value: setattr(state, "n", value),
    "item": lambda state, value: state.__setitem__("s", value),
    "nested item": lambda state, value: state["d"].__setitem__("n", value),
    "deeper item": lambda state, value: state["d"]["e"].__setitem__("n", value),
    "append": lambda state, value: state["l"].append(value),
}
VALUES = [
    0,
    -1,
    10**18,
    1.5,
    -0.0,
    math.inf,
    1e16,
    True,
    None,
    "",
    "text",
    "é😀",
    'a "b" \\ \n\t\x85\u2028\ufeff',
    "\x00",
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_second_change_takes_the_short_way(
    path: Path, state: Any, short: list[bool], change: Callable[[Any, Any], object], value: Any
) -> None:
    change(state, 7)
    before, count = path.read_bytes(), records(path)

    change(state, value)

    assert short == [True]
    assert records(path) == count + 1
    assert path.read_bytes().startswith(before)
    assert oracle.same(oracle.read(path), plain(state))
    assert oracle.same(reopened(path), plain(state))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_declared_is_asked_for_as_in_the_long_way(path: Path, short: list[bool], value: Any) -> None:
    pytest.importorskip("msgspec")

    class Declared(PersistedState):
        n: int = 0

    with Declared(path) as state:
        long = outcome(partial(setattr, state, "n", value))
        state.n = 7
        state.n = 8
        taken = short[-1]

        assert outcome(partial(setattr, state, "n", value)) == long
        assert taken
        assert type(state.n) is int
        assert oracle.read(path) == plain(state)


def outcome(function: Callable[[], object]) -> str:
    try:
        return f"{function()}"
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_in_a_transaction_it_is_short_and_undone(
    path: Path, state: Any, short: list[bool], change: Callable[[Any, Any], object]
) -> None:
    change(state, 7)
    before, content = path.read_bytes(), plain(state)

    with contextlib.suppress(LookupError), state.transaction():
        change(state, 8)
        change(state, "nine")
        with contextlib.suppress(KeyError), state.transaction():
            change(state, 10)
            raise KeyError
        inner = plain(state)
        change(state, 11)
        raise LookupError

    assert short[:2] == [True, True]
    assert inner != content
    assert plain(state) == content
    assert path.read_bytes() == before
    change(state, 12)
    assert oracle.same(oracle.read(path), plain(state))


REFUSED: dict[str, tuple[Any, type[Exception]]] = {
    "huge int": (10**5000, ValueError),
    "surrogate": ("a\ud800", ValueError),
    "set": ({1}, TypeError),
}


@pytest.mark.parametrize(("value", "error"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_not_storable_is_refused_as_ever(
    path: Path, state: Any, change: Callable[[Any, Any], object], value: Any, error: type[Exception]
) -> None:
    change(state, 7)
    before, content = path.read_bytes(), plain(state)

    with pytest.raises(error, match=r"storable|store it"):
        change(state, value)

    assert path.read_bytes() == before
    assert plain(state) == content


BETWEEN: dict[str, Callable[[Any], object]] = {
    "vacuum": lambda state: state.vacuum(),
    "delete": lambda state: state["d"].pop("n"),
    "delete above": lambda state: state.pop("d"),
    "container": lambda state: state["d"].update(n={"x": 1}),
    "container above": lambda state: state.update(d={"n": 1, "e": {"n": 1}}, l=[]),
    "clear": lambda state: state["d"].clear(),
    "clear all": lambda state: state.clear(),
    "move": lambda state: state.update(other=state.pop("d")),
    "shorten": lambda state: state["l"].pop(0),
    "sort": lambda state: state["l"].extend([3, 1, 2]),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_comes_in_between_is_respected(path: Path, state: Any, between: Callable[[Any], object]) -> None:
    held = state["d"], state["l"]
    for node in (state, state["d"]):
        node["n"] = 1
        node["n"] = 2
    state["l"].append(1)
    state["l"].append(2)

    between(state)
    state["n"] = 3
    held[0]["n"] = 4
    held[1].append(5)
    state.setdefault("d", {})["n"] = 6
    state.setdefault("l", []).append(7)

    assert oracle.same(oracle.read(path), plain(state))
    state.vacuum()
    assert oracle.same(oracle.read(path), plain(state))
    assert oracle.same(reopened(path), plain(state))


def test_a_closed_state_says_so(path: Path) -> None:
    state = PersistedState(path, n=0, l=[0])
    root, numbers = state._root, state.l
    for _ in range(3):
        state.n = 1
        numbers.append(1)
    state.close()
    before = path.read_bytes()

    for change in (lambda: setattr(state, "n", 2), lambda: root.__setitem__("n", 2), lambda: numbers.append(2)):
        with pytest.raises(StateClosed):
            change()

    assert path.read_bytes() == before


def test_an_ordinary_attribute_of_a_closed_state_is_one_as_ever(path: Path) -> None:
    state: Any = PersistedState(path, n=0)
    state.close()

    state._mine = 1

    assert state._mine == 1


def test_nodes_that_know_more_than_a_few_do_not_pile_up(state: Any) -> None:
    state.many = {str(number): {"n": 0} for number in range(3000)}
    for number in range(3000):
        state.many[str(number)]["n"] = 1

    assert len(state._tree.primed) <= persistedstate._MOST_PRIMED
    assert plain(state.many) == {str(number): {"n": 1} for number in range(3000)}


def test_keys_that_equal_a_known_one_are_no_text(path: Path, state: Any) -> None:
    class Text(str):
        __slots__ = ()

    state["n"] = 1
    state[Text("n")] = 2

    assert [type(key) for key in state] == [str] * len(state)
    assert oracle.read(path)["n"] == 2


# ---- At random -------------------------------------------------------------------------------------------------------


class Twice:
    """Makes every change of a state and of plain containers."""

    def __init__(self, state: Any, chance: random.Random) -> None:
        self.state, self.chance = state, chance
        self.model = plain(state)

    def containers(self, kind: type) -> list[tuple[Any, Any]]:
        found, pairs = [], [(self.state._root, self.model)]
        while pairs:
            node, twin = pairs.pop()
            if isinstance(twin, kind):
                found.append((node, twin))
            keys = list(twin) if isinstance(twin, dict) else range(len(twin))
            pairs += [(node[key], twin[key]) for key in keys if isinstance(twin[key], dict | list)]
        return found

    def step(self) -> None:
        kind = self.chance.choices(["set", "append", "container", "delete", "pop"], [50, 30, 5, 3, 3])[0]
        node, twin = self.chance.choice(self.containers(list if kind in {"append", "pop"} else dict) or [(None, None)])
        if node is not None:
            getattr(self, kind)(node, twin)

    def set(self, node: Any, twin: Any) -> None:
        key, value = self.chance.choice("abn"), self.chance.choice(VALUES)
        node[key] = twin[key] = value

    def append(self, node: Any, twin: Any) -> None:
        value = self.chance.choice(VALUES)
        node.append(value)
        twin.append(value)

    def container(self, node: Any, twin: Any) -> None:
        key, value = self.chance.choice("abdl"), self.chance.choice([{"n": 0}, [1, 2], {"a": {"b": []}}])
        node[key], twin[key] = value, copy.deepcopy(value)

    def delete(self, node: Any, twin: Any) -> None:
        if key := self.chance.choice([*twin, None]):
            del node[key]
            del twin[key]

    def pop(self, node: Any, twin: Any) -> None:
        if twin:
            place = self.chance.randrange(len(twin))
            assert oracle.same(unwrap(node.pop(place)), twin.pop(place))


@sized(ci=60, nightly=20_000)
def test_random_changes_are_the_same_by_either_way(path: Path, chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        path.unlink(missing_ok=True)
        with PersistedState(path, **copy.deepcopy({key: START[key] for key in ("n", "d", "l", "deep")})) as state:
            twice = Twice(state, chance)
            for _ in range(chance.randrange(60)):
                random_step(state, twice, chance)
                assert oracle.same(plain(state), twice.model)
            assert oracle.same(oracle.read(path), twice.model)
        assert oracle.same(oracle.read(path), twice.model)


def random_step(state: Any, twice: Twice, chance: random.Random) -> None:
    kind = chance.choices(["change", "vacuum", "commit", "abort"], [80, 6, 8, 6])[0]
    if kind == "change":
        twice.step()
    elif kind == "vacuum":
        state.vacuum()
    else:
        before = copy.deepcopy(twice.model)
        with contextlib.suppress(LookupError), state.transaction():
            for _ in range(chance.randrange(8)):
                twice.step()
            if kind == "abort":
                twice.model = before
                raise LookupError


def test_closed_state_says_so_whatever_is_assigned(path: Path) -> None:
    state = PersistedState(path, n=0)
    state.n = 1
    state.close()

    for name in "n", "new", "items":
        with pytest.raises(StateClosed):
            setattr(state, name, 1)


@pytest.mark.leaves("files")
def test_what_a_vacuum_came_behind_has_no_short_way_that_the_text_knows_nothing_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning of what follows a change is a moment in which the script may change the state."""
    with PersistedState(path, a=0) as state:
        path.write_text("a: [unclosed\n")
        state._tree.journal.due_at = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", lambda *_: state.__setitem__("warned", True))
            state.a = 1
        assert state.warned
        state.a = 2
        state.vacuum()
        assert plain(state) == reopened(path) == {"a": 2, "warned": True}
