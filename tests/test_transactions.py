"""`with STATE.transaction()`: all of the changes or none, in memory and in the file, for every way to end."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import random
import sys
import threading
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from checks import Hand, records, run_child, scratch, without_facts
from disk import abandon
from processes import WRITE_CALLS, contents_at_each_moment, count_calls, interrupt_after_call, interrupt_at
from rounds import rounds as sized
from rounds import some, stride
from threads import together

import persistedstate
from persistedstate import PersistedState, StateDict, StateError, StateList, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START: dict[str, Any] = {
    "counter": 1,
    "list": [3, 1, {"n": 1}, [7, 8]],
    "dict": {"z": 1, "a": {"deep": [1, 2]}, "m": None},
    "text": "é",
}


@pytest.fixture
def state(path: Path) -> Iterator[Any]:
    """An open state with START in it."""
    with PersistedState(path, **copy.deepcopy(START)) as state:
        yield state


class Stop(BaseException):
    """What no `except Exception` catches."""


def ordered(value: Any) -> Any:
    """Return `value` in a form that compares the order of keys and the types as well."""
    if isinstance(value, dict):
        return [(key, ordered(item)) for key, item in value.items()]
    if isinstance(value, list):
        return list(map(ordered, value))
    return type(value), value


def on_disk(path: Path) -> Any:
    """Open a copy of the file, as after a crash at this moment."""
    copied = path.with_name("copy.state")
    copied.write_bytes(path.read_bytes())
    with PersistedState(copied, _readonly=True) as again:
        content = plain(again)
    copied.unlink()
    return content


def added_documents(path: Path, before: bytes) -> list[Any]:
    """Return the documents that were appended to the file since it was `before`, but for what they tell of that."""
    data = path.read_bytes()
    assert data.startswith(before)
    added = without_facts(data[len(before) :]).decode()
    documents = list(yaml.safe_load_all(added)) if added else []
    assert added.count("\n") == len(documents) == len([line for line in added.splitlines() if line.startswith("--- ")])
    return documents


# ---- One record ------------------------------------------------------------------------------------------------------


def test_the_changes_become_one_record(state: Any, path: Path) -> None:
    before = path.read_bytes()

    with state.transaction():
        state.counter += 1
        state.list.append("x")
        state.dict["a"]["deep"][0] = 5
        del state.text
        assert path.read_bytes() == before

    (record,) = added_documents(path, before)
    assert record[0] == "transaction"
    assert len(record[1]) == 4
    assert plain(state) == on_disk(path)
    assert plain(state) == {
        "counter": 2,
        "list": [3, 1, {"n": 1}, [7, 8], "x"],
        "dict": {"z": 1, "a": {"deep": [5, 2]}, "m": None},
    }


def test_the_record_is_one_write(state: Any) -> None:
    def work() -> None:
        with state.transaction():
            for n in range(100):
                state.list.append(n)
                state.counter += n

    assert count_calls(work, WRITE_CALLS) == 1


def test_the_file_holds_all_or_nothing_at_each_moment(state: Any, path: Path) -> None:
    def work() -> None:
        with state.transaction():
            state.counter = 2
            state.list.clear()
            state.dict = {}

    contents = contents_at_each_moment(path, work)

    assert len(contents) == 2
    assert contents[1].startswith(contents[0])


def test_an_empty_transaction_writes_nothing(state: Any, path: Path) -> None:
    before = path.read_bytes(), path.stat().st_mtime_ns

    def work() -> None:
        with state.transaction():
            pass
        with state.transaction():
            assert state.counter == 1
            assert list(state.list)[:2] == [3, 1]
            with state.transaction():
                assert "z" in state.dict

    assert count_calls(work, WRITE_CALLS) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_reads_inside_see_the_changes(state: Any) -> None:
    with state.transaction():
        state.counter += 1
        state.counter += 1
        state.new = {"k": [1]}
        state.new["k"].append(2)
        state.list[2]["n"] = 9
        del state["text"]

        assert state.counter == 3
        assert state["new"] == {"k": [1, 2]}
        assert list(state) == ["counter", "list", "dict", "new"]
        assert len(state) == 4
        assert "text" not in state
        assert state.list == [3, 1, {"n": 9}, [7, 8]]
        assert plain(state)["new"]["k"] == [1, 2]

    assert state.counter == 3


def test_the_next_change_is_a_record_of_its_own(state: Any, path: Path) -> None:
    with state.transaction():
        state.counter = 2
        state.text = "x"
    before = path.read_bytes()

    state.counter = 3

    assert added_documents(path, before) == [["set", [], "counter", 3]]


def test_a_transaction_survives_death_right_after_it(path: Path) -> None:
    code = """
        import os, sys
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], a=1, b=1)
        with state.transaction():
            state.a = 2
            state.b = 2
        with state.transaction():
            state.a = 3
            os._exit(0)
    """

    run_child(code, path)

    with PersistedState(path) as state:
        assert plain(state) == {"a": 2, "b": 2}


@pytest.mark.parametrize("is_vacuumed", [False, True], ids=["one record", "vacuumed at once"])
def test_a_huge_transaction_opens_again(path: Path, monkeypatch: pytest.MonkeyPatch, is_vacuumed: bool) -> None:
    if not is_vacuumed:
        monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 1 << 30)
    count = some(200_000, 60_000)
    state: Any = PersistedState(path, counter=-1, odd=[])

    with state.transaction():
        for number in range(count):
            if number % 2:
                state.odd.append(number)
            else:
                state.counter = number
    abandon(state)

    assert records(path) == (not is_vacuumed)
    with PersistedState(path, _readonly=True) as again:
        assert plain(again) == {"counter": count - 2, "odd": list(range(1, count, 2))}
    os.truncate(path, path.stat().st_size - 2)
    if not is_vacuumed:
        with pytest.warns(RuntimeWarning, match="dropped"), PersistedState(path) as again:
            assert plain(again) == {"counter": -1, "odd": []}


def test_moves_of_nodes_are_kept(state: Any, path: Path) -> None:
    """A node that is taken out and put in elsewhere is copied there; the one that was taken out is nobody's."""
    with state.transaction():
        taken = state.dict.pop("a")
        state.moved = taken
        state.list.insert(0, state.list.pop())
        state.list[0].append(9)
        taken["deep"].append("not tracked")
        state.moved["deep"].append("tracked")

    expected = {
        "counter": 1,
        "list": [[7, 8, 9], 3, 1, {"n": 1}],
        "dict": {"z": 1, "m": None},
        "text": "é",
        "moved": {"deep": [1, 2, "tracked"]},
    }
    assert plain(state) == on_disk(path) == expected
    assert taken == {"deep": [1, 2, "not tracked"]}


def test_a_key_that_is_removed_and_set_again_moves_to_the_end(state: Any, path: Path) -> None:
    with state.transaction():
        value = state.pop("counter")
        state.counter = value
        state.dict["z"] = state.dict.pop("z")

    assert list(state) == list(on_disk(path)) == ["list", "dict", "text", "counter"]
    assert list(state.dict) == list(on_disk(path)["dict"]) == ["a", "m", "z"]


def test_a_node_that_is_set_where_it_is_changes_nothing(state: Any, path: Path) -> None:
    before = path.read_bytes()
    node = state.list

    with state.transaction():
        state.list = node
        state.list += [5]

    assert state.list is node
    assert len(added_documents(path, before)) == 1
    assert on_disk(path)["list"] == [3, 1, {"n": 1}, [7, 8], 5]


def test_values_of_every_kind_pass_through_a_transaction(state: Any, path: Path) -> None:
    value = {"f": [1e16, float("inf"), -0.0], 1: b"\0\xff", None: yaml.safe_load("2024-01-31"), False: "\x85\u2028😀"}

    with state.transaction():
        state.value = value
        state.list[0] = 10**30

    assert on_disk(path)["value"] == plain(state)["value"] == value
    assert on_disk(path)["list"][0] == 10**30


# ---- Rollback --------------------------------------------------------------------------------------------------------


def everything(state: Any) -> None:
    """Use every kind of change that there is."""
    state.counter += 1
    state.list.sort(key=str)
    state.list.reverse()
    state.list[0:2] = ["a", "b", "c"]
    del state.list[::2]
    state.list *= 2
    state.list.insert(1, {"new": []})
    state.list[1]["new"].append(1)
    state.list.extend([1, 2])
    state.list.pop(0)
    state.dict["a"]["deep"].clear()
    state.dict["a"] = [state.dict["a"]]
    state.dict["z"] = state.dict.pop("z")
    state.dict |= {"q": 1, "m": 2}
    state.dict.setdefault("new", {})["k"] = 1
    state.dict.popitem()
    state.update(counter="x", more={"n": [1]})
    state["text"] = state.pop("text") + "!"
    state.popitem()
    del state.dict
    state.dict = {}
    state.clear()
    state.dict = 1
    state.counter = 2


@pytest.mark.parametrize(
    "error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), Stop()], ids=repr
)
def test_an_exception_rolls_back_memory_and_file(state: Any, path: Path, error: BaseException) -> None:
    before = path.read_bytes(), path.stat().st_mtime_ns

    with pytest.raises(type(error)) as caught, state.transaction():
        everything(state)
        raise error

    assert caught.value is error
    assert ordered(plain(state)) == ordered(START)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_rollback_keeps_the_identity_of_nodes(state: Any, path: Path) -> None:
    hand = Hand(state)
    places = hand.places()

    with pytest.raises(Stop), state.transaction():
        everything(state)
        raise Stop

    assert hand.places() == places
    hand.check_tracked(path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda state: state.pop("dict"), "dict"),
        (lambda state: state.dict.pop("a"), "dict"),
        (lambda state: state.list.pop(2), "list"),
        (lambda state: [state.list[2], state.list.clear()][0], "list"),
        (lambda state: [state.dict, state.__setitem__("dict", 1)][0], "dict"),
        (lambda state: [state.list[3], state.list.__setitem__(slice(1, 4), [])][0], "list"),
        (lambda state: [state.dict["a"], state.clear()][0], "dict"),
    ],
    ids=["pop", "nested pop", "list pop", "list clear", "replace", "slice", "clear"],
)
def test_a_node_that_was_removed_and_then_changed_comes_back_as_it_was(
    state: Any, path: Path, change: Callable[[Any], Any], place: str
) -> None:
    """Between its removal and the rollback the node was nobody's; what was done to it then is undone too."""
    with pytest.raises(Stop), state.transaction():
        removed = change(state)
        if isinstance(removed, StateDict):
            removed["late"] = 1
            removed.pop(next(iter(removed)))
        else:
            removed.append("late")
            removed.pop(0)
        raise Stop

    assert ordered(plain(state)) == ordered(START)
    state[place].clear()
    assert plain(state) == on_disk(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items.reverse(),
        lambda items: items.sort(key=str, reverse=True),
        lambda items: items.__setitem__(slice(0, 4, 2), ["x", "y"]),
        lambda items: items.__delitem__(slice(0, 4, 2)),
        lambda items: items.append(items[2]),
        lambda items: items.extend(items),
        lambda items: items.__setitem__(0, items[2]),
        lambda items: items.__setitem__(slice(0, 4, 2), [items[2], items[3]]),
        lambda items: items.insert(0, items[3]),
    ],
    ids=["reverse", "sort", "scatter", "thin out", "append", "extend", "set", "scatter its own", "insert"],
)
def test_a_removed_list_comes_back_as_it_was_with_its_items(
    state: Any, path: Path, change: Callable[[Any], object]
) -> None:
    items = state.list
    inner, deeper = items[2], items[3]
    with pytest.raises(Stop), state.transaction():
        del state.list
        change(items)
        raise Stop

    assert plain(state) == on_disk(path) == START
    assert (state.list, items[2], items[3]) == (items, inner, deeper)
    inner["n"] = 2
    deeper.append(9)
    assert plain(state) == on_disk(path) == {**START, "list": [3, 1, {"n": 2}, [7, 8, 9]]}


def test_a_removed_mapping_comes_back_as_it_was_with_its_items(state: Any, path: Path) -> None:
    with pytest.raises(Stop), state.transaction():
        removed = state.dict
        del state.dict
        removed["again"] = removed["a"]
        removed.update(more=removed["a"])
        raise Stop

    state.dict["a"]["deep"].append(3)
    assert plain(state) == on_disk(path) == {**START, "dict": {"z": 1, "a": {"deep": [1, 2, 3]}, "m": None}}


def test_a_node_that_a_removed_list_was_given_stays_part_of_the_state(state: Any, path: Path) -> None:
    with state.transaction():
        removed, kept = state.list, state.dict
        del state.list
        removed.append(kept)
        with contextlib.suppress(Stop), state.transaction():
            removed.pop()
            raise Stop

    kept["z"] = 2
    assert plain(state)["dict"] == on_disk(path)["dict"] == {**START["dict"], "z": 2}


def test_transactions_that_end_in_another_order_than_they_began_fail_loudly(state: Any, path: Path) -> None:
    def change(key: str) -> Iterator[None]:
        with state.transaction():
            state[key] = 2
            yield

    first, second = change("a"), change("b")
    next(first)
    next(second)
    for transaction in (first, second):
        with pytest.raises(StateError, match="ends before one that began inside of it"):
            next(transaction)

    assert plain(state) == on_disk(path) == START
    state.counter = 2
    assert plain(state) == on_disk(path) == {**START, "counter": 2}


def test_a_second_object_takes_part_in_a_transaction_that_emptied_the_state(state: Any, path: Path) -> None:
    with contextlib.suppress(Stop), state.transaction():
        state.clear()
        second = PersistedState(path, x=5)
        assert plain(second) == {"x": 5}
        assert on_disk(path) == START
        raise Stop

    second.close()
    assert plain(state) == on_disk(path) == START


def test_work_goes_on_after_a_rollback(state: Any, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Stop), state.transaction():
        everything(state)
        raise Stop

    state.counter += 1
    with state.transaction():
        state.text = "x"

    assert state.counter == 2
    assert len(added_documents(path, before)) == 2
    assert on_disk(path) == plain(state) == {**START, "counter": 2, "text": "x"}


def test_a_node_made_in_a_rolled_back_transaction_is_nobodys(state: Any, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Stop), state.transaction():
        state.new = {"k": [1]}
        made = state.new
        state.list.append([5])
        item = state.list[-1]
        raise Stop

    made["k"].append(2)
    item.append(6)

    assert ordered(plain(state)) == ordered(START)
    assert path.read_bytes() == before


def test_rollback_of_a_journal_that_has_records_keeps_those(state: Any, path: Path) -> None:
    state.counter = 5
    with state.transaction():
        state.text = "x"
        state.list.append(1)

    with pytest.raises(Stop), state.transaction():
        state.counter = 6
        state.list.clear()
        raise Stop

    assert plain(state) == on_disk(path) == {**START, "counter": 5, "text": "x", "list": [*START["list"], 1]}


# ---- Nested ----------------------------------------------------------------------------------------------------------


def shallow(state: Any) -> None:
    with state.transaction():
        state.counter += 1
        raise Stop


def removing(state: Any) -> None:
    with state.transaction():
        state.dict.pop("a")
        raise Stop


def runaway(state: Any) -> None:
    with state.transaction():
        state.list.append([1])
        runaway(state)


def nested(state: Any) -> None:
    with state.transaction(), state.transaction():
        state.counter += 1
        state.list.reverse()
        state.list.insert(0, 9)


def at_depth(frames: int, function: Callable[[Any], object], state: Any) -> None:
    if frames:
        at_depth(frames - 1, function, state)
    else:
        function(state)


@pytest.mark.parametrize("block", [shallow, removing, runaway, nested])
def test_a_transaction_that_has_no_stack_left_to_be_undone_is_undone_by_whoever_comes_next(
    path: Path, block: Callable[[Any], None]
) -> None:
    """At each distance from the limit: what the block did is kept whole or gone; what comes later is in the file."""
    used, abandoned = len(inspect.stack(0)), 0
    for left in range(1, 80):
        path.unlink(missing_ok=True)
        state: Any = PersistedState(path, **copy.deepcopy(START))
        is_done = False
        with contextlib.suppress(RecursionError, Stop):
            at_depth(sys.getrecursionlimit() - used - left, block, state)
            is_done = True
        abandoned += (state._tree.halted or [None])[0] == state._tree._undo_abandoned

        if left % 2:
            state.later = left
            assert on_disk(path)["later"] == left
        state.close()

        found = on_disk(path)
        assert found.pop("later", left) == left
        assert is_done or ordered(found) == ordered(START), left
    assert abandoned or block is runaway


class Nesting:
    """Calls, transactions, generators and exceptions in one another; each statement in them sets a key of its own.

    kept: the keys of statements that returned, outside of transactions or in those that returned. undone: those of
    transactions in which an exception was raised. What comes of an exception at a transaction's own end is open.
    """

    def __init__(self, state: Any, chance: random.Random) -> None:
        self.state, self.chance = state, chance
        self.number = self.open = 0
        self.kept: list[str] = []
        self.undone: list[str] = []

    def statement(self) -> list[str]:
        self.number += 1
        key = f"k{self.number}"
        change = self.chance.randrange(4)
        if change == 0:
            self.state[key] = self.number
        elif change == 1:
            self.state.update({key: [self.number]})
        elif change == 2:
            self.state.dict[key] = {"n": self.number}
        else:
            self.state.list.append(key)
        if not self.open:
            self.kept += [key]  # no call, for which the stack may be too short
        return [key]

    def step(self, size: int) -> list[str]:
        kinds = [self.statement, self.statement] if size <= 0 else [self.calls, self.transaction, self.generators]
        kind: Any = self.chance.choice([self.statement, *kinds, *kinds])
        return list(kind() if kind == self.statement else kind(size - 1))

    def calls(self, size: int) -> list[str]:
        made = []
        for _ in range(self.chance.randrange(1, 4)):
            if self.chance.random() < 0.1:
                raise Stop
            made += self.step(size)
        return made

    def transaction(self, size: int) -> list[str]:
        made: list[str] = []
        is_over, before = False, self.open
        try:
            self.open = before + 1
            with self.state.transaction():
                for _ in range(self.chance.randrange(1, 4)):
                    made += self.step(size)
                    if self.chance.random() < 0.15:
                        raise Stop
                is_over = True
        except BaseException:
            if not is_over:
                self.undone += made
            if self.chance.random() < 0.5:
                raise
            return []
        finally:
            self.open = before
        if not before:
            self.kept += made
        return made

    def generators(self, size: int) -> list[str]:  # noqa: C901, PLR0915 - one life of a generator
        """A generator that holds a transaction while it waits: it goes on, is closed, or gets an exception."""
        made: list[str] = []
        is_over, before = [False], self.open

        def generator() -> Iterator[None]:
            with self.state.transaction():
                made.extend(self.step(size))
                yield
                made.extend(self.step(size))
                is_over[0] = True

        running: Any = generator()
        try:
            self.open = before + 1
            next(running)
            made += self.step(size)
            if self.chance.random() < 0.3:
                running.throw(Stop)
            if self.chance.random() < 0.3:
                running.close()
            for _ in running:
                pass
        except BaseException:
            running.close()
            if not is_over[0]:
                self.undone += made
            raise
        finally:
            self.open = before
        if not is_over[0]:
            self.undone += made
            return []
        if not before:
            self.kept += made
        return made


@sized(ci=300, nightly=20_000)
def test_random_nestings_near_the_recursion_limit_lose_nothing_and_leave_nothing_open(
    path: Path, chance: random.Random, rounds: int
) -> None:
    used, hits = len(inspect.stack(0)), 0
    for number in range(rounds):
        path.unlink(missing_ok=True)
        state: Any = PersistedState(path, **copy.deepcopy(START))
        nesting = Nesting(state, chance)
        try:
            at_depth(sys.getrecursionlimit() - used - chance.randrange(5, 120), nesting.calls, 4)
        except RecursionError:
            hits += 1
        except Stop:
            pass
        state.later = number
        found = on_disk(path)
        memory = plain(state)
        state.close()

        assert ordered(found) == ordered(memory)
        assert found["later"] == number
        keys = {*found, *found["dict"], *(item for item in found["list"] if isinstance(item, str))}
        assert keys.issuperset(nesting.kept)
        assert keys.isdisjoint(nesting.undone)
        assert ordered(on_disk(path)) == ordered(memory)
    assert hits or rounds < 20


# ---- What a transaction costs, and what becomes of removed nodes -----------------------------------------------------


def most_memory(path: Path, count: int, change: Callable[[Any], object], end: type[Exception] | None) -> int:
    """Return how many bytes a transaction of `count` changes takes at most."""
    path.unlink(missing_ok=True)
    with PersistedState(path, map={str(key): {"n": key} for key in range(count)}, list=[*range(count)]) as state:
        tracemalloc.start()
        try:
            with contextlib.suppress(Stop), state.transaction():
                for _ in range(count - 1):
                    change(state)
                if end is not None:
                    raise end
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("end", [None, Stop], ids=["kept", "undone"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: state.map.pop(next(iter(state.map))), id="first keys"),
        pytest.param(lambda state: state.map.popitem(), id="last keys"),
        pytest.param(lambda state: state.list.pop(0), id="first items"),
        pytest.param(lambda state: state.list.pop(), id="last items"),
    ],
)
def test_a_transaction_that_deletes_n_entries_takes_memory_in_proportion(
    path: Path, change: Callable[[Any], object], end: type[Exception] | None
) -> None:
    few, many = (most_memory(path, count, change, end) for count in (500, 4000))

    assert many < 20 * few  # 8 times as many; in proportion to their square it would be 64


def test_a_node_that_a_failed_transaction_removed_is_part_of_the_state_again(state: Any, path: Path) -> None:
    node, below = state.dict, state.list
    with pytest.raises(Stop), state.transaction():
        del state["dict"]
        node["in between"] = [1]
        state.list.append([2])
        state.pop("list").clear()
        raise Stop

    assert state.dict is node
    assert state.list is below
    node["later"] = 1
    below.append(3)
    assert on_disk(path) == plain(state)
    assert (on_disk(path)["dict"]["later"], on_disk(path)["list"][-1]) == (1, 3)
    assert "in between" not in node


def test_a_node_that_a_transaction_removed_takes_no_lock_later(state: Any, path: Path) -> None:
    with state.transaction():
        node = state.pop("dict")
        node["in between"] = 1
    node["later"] = {1, 2}  # as plain as any dict: nothing is copied or checked
    before = path.read_bytes()

    with state.transaction():  # which another thread would wait for
        worker = threading.Thread(target=node.__setitem__, args=("meanwhile", 2), daemon=True)
        worker.start()
        worker.join(60)
        assert not worker.is_alive()

    assert node == {**START["dict"], "in between": 1, "later": {1, 2}, "meanwhile": 2}
    assert path.read_bytes() == before


def test_a_value_that_is_set_again_and_again_is_one_change_of_the_record(state: Any, path: Path) -> None:
    before = path.read_bytes()
    with state.transaction():
        for number in range(100):
            state.counter = number
        state.text = "x"
        for text in ("a", None, True, 1.5, "é"):
            state.text = text
        state.counter += 1

    [record] = added_documents(path, before)
    assert [change[2:] for change in record[1]] == [
        ["counter", 0], ["counter", 99], ["text", "x"], ["text", "é"], ["counter", 100]
    ]  # fmt: skip
    assert on_disk(path) == plain(state)


def test_nested_transactions_join_the_outer(state: Any, path: Path) -> None:
    before = path.read_bytes()

    with state.transaction():
        state.counter = 2
        with state.transaction():
            state.text = "x"
            with state.transaction():
                state.list.append(1)
        assert path.read_bytes() == before
        state.dict["z"] = 2

    assert len(added_documents(path, before)) == 1
    assert on_disk(path) == plain(state)
    assert (state.counter, state.text, state.list[-1], state.dict["z"]) == (2, "x", 1, 2)


def test_an_exception_after_a_nested_transaction_rolls_back_both(state: Any, path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(Stop), state.transaction():
        state.counter = 2
        with state.transaction():
            everything(state)
        raise Stop

    assert ordered(plain(state)) == ordered(START)
    assert path.read_bytes() == before


def test_an_exception_through_nested_transactions_rolls_back_all(state: Any, path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(Stop), state.transaction():
        state.counter = 2
        with state.transaction():
            state.text = "x"
            raise Stop

    assert ordered(plain(state)) == ordered(START)
    assert path.read_bytes() == before
    state.counter = 3
    assert on_disk(path)["counter"] == 3


def test_a_transaction_object_used_again_works_or_fails_loudly(state: Any, path: Path) -> None:
    transaction = state.transaction()
    with transaction:
        state.counter = 2

    try:
        with transaction:
            state.counter = 3
    except (StateError, RuntimeError, AttributeError):
        assert state.counter == 2

    assert on_disk(path)["counter"] == state.counter


# ---- What fails inside -----------------------------------------------------------------------------------------------


def test_a_value_that_cannot_be_stored_spoils_only_itself(state: Any, path: Path) -> None:
    before = path.read_bytes()

    with state.transaction():
        state.counter = 2
        with pytest.raises(TypeError, match=r"STATE\.dict\.bad\[1\]"):
            state.dict["bad"] = [1, {2}]
        with pytest.raises(ValueError):  # noqa: PT011 - any text will do
            state.list.extend(["fine", "\ud800"])
        with pytest.raises(TypeError):
            state.update(text="x", bad=object())
        with pytest.raises(KeyError):
            del state["nope"]
        with pytest.raises(IndexError):
            state.list[9] = 1
        with pytest.raises(IndexError):
            state.list.pop(9)
        with pytest.raises(ValueError):  # noqa: PT011 - any text will do
            state.list.remove("nope")
        with pytest.raises(TypeError):
            state.list.sort()
        state.text = "y"

    expected = {**START, "counter": 2, "text": "y"}
    assert ordered(plain(state)) == ordered(expected)
    assert len(added_documents(path, before)) == 1
    assert on_disk(path) == expected


def test_a_value_that_cannot_be_stored_rolls_back_when_nobody_catches_it(state: Any, path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(TypeError, match=r"STATE\.y"), state.transaction():
        state.counter = 2
        state.y = {1, 2}

    assert ordered(plain(state)) == ordered(START)
    assert path.read_bytes() == before


def test_a_commit_that_cannot_be_written_rolls_back(path: Path) -> None:
    """A limit of the file size plays the full disk; when there is space again, the next transaction works."""
    code = """
        import resource, sys
        from persistedstate import PersistedState, plain

        state = PersistedState(sys.argv[1], a=1, l=[{"n": 1}])
        node = state.l[0]
        before = open(sys.argv[1], "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, resource.RLIM_INFINITY))
        try:
            with state.transaction():
                state.a = 2
                state.l.insert(0, "x")
                node["n"] = 2
                state.text = "y" * 100
            print("no error")
        except OSError:
            print(plain(state), state.l[0] is node, open(sys.argv[1], "rb").read() == before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with state.transaction():
            state.a = 3
            node["n"] = 3
        print(plain(state))
        state.close()
    """

    answer = run_child(code, path).splitlines()

    assert answer == ["{'a': 1, 'l': [{'n': 1}]} True True", "{'a': 3, 'l': [{'n': 3}]}"]
    assert yaml.safe_load(path.read_text()) == {"a": 3, "l": [{"n": 3}]}


@pytest.mark.parametrize("more", [False, True], ids=["at the end", "in the middle"])
def test_closing_within_a_transaction_fails_clearly_and_keeps_none_of_it(path: Path, more: bool) -> None:
    state = PersistedState(path, a=1, b=1)

    with pytest.raises(StateError), state.transaction():
        state.a = 2
        state.close()
        if more:
            state.b = 2
    state.close()

    assert on_disk(path) == {"a": 1, "b": 1}


def test_a_transaction_on_a_reader_or_a_closed_state_changes_nothing(path: Path) -> None:
    with PersistedState(path, a=1):
        pass
    before = path.read_bytes()

    with PersistedState(path, _readonly=True) as reader:
        with pytest.raises(StateError), reader.transaction():
            reader.a = 2
        assert reader.a == 1

    assert path.read_bytes() == before


# ---- Interrupts ----------------------------------------------------------------------------------------------------


def _set(state: Any) -> None:
    state.a += 1


def _append(state: Any) -> None:
    state.l.append({"n": 1})


def _pop(state: Any) -> None:
    if state.l:
        state.l.pop(0)


def _transact(state: Any) -> None:
    with state.transaction():
        state.a += 1
        state.l.append(state.a)
        with state.transaction():
            state.d["k"] = state.l[:1]


def _fail(state: Any) -> None:
    with contextlib.suppress(Stop), state.transaction():
        state.a += 1
        state.l.clear()
        state.d["k"] = state.a
        raise Stop


def _vacuum(state: Any) -> None:
    state.vacuum()


def check_interrupts(
    action: Callable[[Any], None], step: int, interrupt: Callable[..., bool], chance: random.Random
) -> None:
    """Interrupt the action at every `step`-th point, in the quick sizes at fewer.

    It is done or not, in memory and file, and later changes work.
    """
    with scratch() as path:
        state = PersistedState(path, a=0, l=[{"n": 0}], d={})
        number, tried, came = chance.randint(1, stride(step)), 0, True
        while came:
            state.z = number  # gives a vacuum something to do
            state.update(l=["x", {"n": [number]}], d={"k": []})
            before = plain(state)
            model = _Model(copy.deepcopy(before))
            action(model)

            hand = Hand(state)
            came = interrupt(number, lambda: action(state))

            assert plain(state) in (before, vars(model)), number
            assert on_disk(path) == plain(state), number
            state.z = -number
            assert on_disk(path) == plain(state), number
            hand.check_tracked(path, number)
            number += stride(step)
            tried += 1
            if tried % 16 == 0:
                state.vacuum()  # keeps the journal short
        content = plain(state)
        state.close()
        assert number > 5 * step
        assert on_disk(path) == content


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize(("action", "step"), [(_set, 1), (_append, 3), (_pop, 3), (_transact, 7), (_fail, 7)])
def test_an_interrupt_at_any_instruction_leaves_memory_and_file_equal(
    action: Callable[[Any], None], step: int, chance: random.Random
) -> None:
    files = [persistedstate.__file__, contextlib.__file__]

    check_interrupts(action, step, functools.partial(interrupt_at, files=files), chance)


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("action", [_set, _append, _pop, _transact, _fail, _vacuum])
def test_an_interrupt_within_any_call_leaves_memory_and_file_equal(
    action: Callable[[Any], None], chance: random.Random
) -> None:
    """Python acts on Ctrl-C after the C function that it came in, such as `os.write` or `os.replace`."""
    check_interrupts(action, 1, interrupt_after_call, chance)


class _Model:
    """A dict with what the actions above need of a state."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.__dict__ = content

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        before = copy.deepcopy(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def vacuum(self) -> None:
        pass


# ---- Threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, Stop])
def test_another_thread_waits_for_the_end(state: Any, path: Path, end: type[BaseException] | None) -> None:
    begun, done = threading.Event(), threading.Event()
    before = path.read_bytes()

    def work() -> None:
        begun.set()
        state.list.append("other")
        done.set()

    thread = threading.Thread(target=work)
    try:
        with state.transaction():
            state.list.append("mine")
            thread.start()
            begun.wait()
            waited = not done.wait(0.1)
            state.list.append("mine too")
            during = list(state.list[4:])
            if end:
                raise end
    except Stop:
        pass
    thread.join()

    mine = [] if end else ["mine", "mine too"]
    assert waited
    assert during == ["mine", "mine too"]
    assert state.list[4:] == [*mine, "other"]
    assert on_disk(path) == plain(state)
    assert len(added_documents(path, before)) == (1 if end else 2)


def test_transactions_of_two_threads_do_not_mix(path: Path) -> None:
    """Each moves a unit from one account to another; the sum is constant in every record."""
    threads, rounds = 4, 200
    with PersistedState(path, accounts=[1000] * threads, moves=0) as state:

        def work(mine: int) -> None:
            for n in range(rounds):
                with state.transaction():
                    state.accounts[mine] -= 1
                    state.accounts[(mine + n) % threads] += 1
                    state.moves += 1
                    assert sum(state.accounts) == 1000 * threads

        together(*(partial(work, mine) for mine in range(threads)))

        assert state.moves == threads * rounds
        assert sum(state.accounts) == 1000 * threads
        assert on_disk(path) == plain(state)


def test_the_thread_lock_and_transactions_go_together(state: Any) -> None:
    with state._thread_lock, state.transaction(), state._thread_lock:
        state.counter += 1

    free: list[bool] = []

    def try_lock() -> None:
        free.append(state._thread_lock.acquire(blocking=False))
        state._thread_lock.release()

    together(try_lock)
    assert free == [True]
    assert state.counter == 2


# ---- At random -------------------------------------------------------------------------------------------------------


#: What may happen to a dict, given a key and a value, and to a list, given an index.
DICT_CHANGES: list[Callable[[Any, str, Any], object]] = [
    lambda node, key, value: node.__setitem__(key, value),
    lambda node, key, value: node.__setitem__(key, [value, {"n": copy.deepcopy(value)}]),
    lambda node, key, _value: node.pop(key, None),
    lambda node, key, value: node.update({key: value, "z": 1}),
    lambda node, key, value: node.setdefault(key, value),
    lambda node, _key, _value: node.popitem() if len(node) > 1 else None,
]
LIST_CHANGES: list[Callable[[Any, int, Any], object]] = [
    lambda node, index, value: node.insert(index, value),
    lambda node, index, value: node.insert(index, [value, {"n": copy.deepcopy(value)}]),
    lambda node, _index, value: node.append(value),
    lambda node, index, _value: node.__delitem__(slice(index, None)),
    lambda node, index, value: node.__setitem__(slice(index, index + 2), [value, 5]),
    lambda node, _index, _value: node.reverse(),
    lambda node, index, _value: node.pop(index) if index < len(node) else None,
]


def random_change(rng: random.Random, root: Any) -> None:
    """Change something somewhere: the same calls on a state and on its model, when `rng` is in the same state."""
    node = root
    while rng.random() < 0.6:
        children = [node[key] for key in (node if hasattr(node, "keys") else range(len(node)))]
        nested = [child for child in children if isinstance(child, dict | list | StateDict | StateList)]
        if not nested:
            break
        node = rng.choice(nested)
    value: Any = copy.deepcopy(rng.choice(VALUES))
    if hasattr(node, "keys"):
        rng.choice(DICT_CHANGES)(node, rng.choice("abcdef"), value)
    else:
        rng.choice(LIST_CHANGES)(node, rng.randrange(len(node) + 1), value)


VALUES: list[Any] = [1, None, "x", 2.5, [1, [2]], {"k": {}}, {}, []]


@pytest.mark.parametrize("seed", range(25))
def test_random_transactions_agree_with_a_model(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    start: dict[str, Any] = {"a": {"b": [1, {"c": 2}]}, "d": [[], {}]}
    model = copy.deepcopy(start)
    with PersistedState(path, **start) as state:
        for _ in range(15):
            changed = copy.deepcopy(model)
            commit, before = rng.random() < 0.5, path.read_bytes()
            try:
                with state.transaction():
                    for _ in range(rng.randrange(8)):
                        point = rng.getstate()
                        random_change(rng, changed)
                        rng.setstate(point)
                        random_change(rng, state)
                        assert ordered(plain(state)) == ordered(changed)
                    if not commit:
                        raise Stop
            except Stop:
                assert path.read_bytes() == before
            model = changed if commit else model
            assert ordered(plain(state)) == ordered(model)
            assert ordered(on_disk(path)) == ordered(model)

    with PersistedState(path) as state:
        assert ordered(plain(state)) == ordered(model)
