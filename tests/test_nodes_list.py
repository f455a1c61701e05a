"""Every method of `list` on nodes: it does what `list` does, and the file knows it."""

from __future__ import annotations

import bisect
import collections
import contextlib
import copy
import heapq
import itertools
import json
import operator
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from checks import check, records, scratch, unwrap
from nodes import PLACES, Operation, Place, compare, deleting, outcome, setting, top

from persistedstate import PersistedState, StateDict, StateList, plain

if TYPE_CHECKING:
    from pathlib import Path


places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())


class Index:
    """A number as numpy has them: no int, but good as an index."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def _slices() -> list[slice]:
    ends = (None, 0, 1, 2, 5, 9, -1, -3, -9)
    return [slice(start, stop) for start, stop in itertools.product(ends, ends)]


def _extended_slices() -> list[slice]:
    ends = (None, 0, 1, 3, -1, -4, 9, -9)
    return [slice(*ends, step) for ends in itertools.product(ends, ends) for step in (1, 2, 3, -1, -2, -7)]


#: What changes a list [3, 1, [1], 2, 1]; each is one record.
CHANGES: dict[str, Operation] = {
    "set first": setting(0, "x"),
    "set last": setting(-1, {"a": [1]}),
    "set over a container": setting(2, None),
    "set by an index object": setting(Index(-2), "x"),
    "set by True": setting(True, "x"),
    "delete first": deleting(0),
    "delete last": deleting(-1),
    "delete container": deleting(2),
    "delete by an index object": deleting(Index(1)),
    "append": lambda x: x.append(4),
    "append container": lambda x: x.append({"a": {"b": []}}),
    "extend": lambda x: x.extend([4, [5]]),
    "extend by one": lambda x: x.extend("y"),
    "extend by text": lambda x: x.extend("eggs"),
    "extend by iterator": lambda x: x.extend(iter(range(3))),
    "extend by generator": lambda x: x.extend(str(n) for n in range(3)),
    "extend by keys": lambda x: x.extend({"a": 1, "b": 2}),
    "extend by itself": lambda x: x.extend(unwrap(x)),
    "+=": lambda x: unwrap(operator.iadd(x, [4, 5])),
    "+= text": lambda x: unwrap(operator.iadd(x, "ab")),
    "*= 2": lambda x: unwrap(operator.imul(x, 2)),
    "*= 3": lambda x: unwrap(operator.imul(x, Index(3))),
    "*= 0": lambda x: unwrap(operator.imul(x, 0)),
    "*= -1": lambda x: unwrap(operator.imul(x, -1)),
    "insert 0": lambda x: x.insert(0, [7]),
    "insert middle": lambda x: x.insert(2, 7),
    "insert at the end": lambda x: x.insert(5, 7),
    "insert beyond the end": lambda x: x.insert(200, 7),
    "insert -1": lambda x: x.insert(-1, {"a": 1}),
    "insert -2": lambda x: x.insert(-2, 7),
    "insert before the start": lambda x: x.insert(-200, 7),
    "insert by an index object": lambda x: x.insert(Index(1), 7),
    "pop": lambda x: x.pop(),
    "pop 0": lambda x: x.pop(0),
    "pop container": lambda x: x.pop(2),
    "pop -5": lambda x: x.pop(-5),
    "pop by an index object": lambda x: x.pop(Index(1)),
    "remove": lambda x: x.remove(1),
    "remove container": lambda x: x.remove([1]),
    "clear": lambda x: x.clear(),
    "reverse": lambda x: x.reverse(),
    "sort by key": lambda x: x.sort(key=str),
    "sort by key, reverse": lambda x: x.sort(key=str, reverse=True),
    "sort is stable": lambda x: x.sort(key=lambda item: item == 3),
    "sort is stable in reverse": lambda x: x.sort(key=lambda item: item == 1, reverse=True),
    "slice all": setting(slice(None), [1]),
    "slice all by nothing": setting(slice(None), []),
    "slice by more": setting(slice(1, 2), [1, [2], 3]),
    "slice by less": setting(slice(1, 4), ["x"]),
    "slice by text": setting(slice(0, 1), "abc"),
    "slice by iterator": lambda x: operator.setitem(x, slice(1, 3), iter("ab")),
    "slice as insertion": setting(slice(2, 2), [7, 8]),
    "slice backwards is insertion": setting(slice(4, 1), [7, 8]),
    "slice beyond the end": setting(slice(9, 12), [7, 8]),
    "slice from the end": setting(slice(-2, None), [7, 8, 9]),
    "slice by index objects": setting(slice(Index(1), Index(3)), [7]),
    "extended slice": setting(slice(None, None, 2), [7, [8], 9]),
    "extended slice, backwards": setting(slice(None, None, -2), [7, 8, 9]),
    "extended slice by containers": setting(slice(None, None, 2), [[[7]], {"a": [[b"x"]]}, 2.5e-9]),
    "extended slice of one": setting(slice(4, None, 5), ["x"]),
    "delete slice": deleting(slice(1, 3)),
    "delete slice from the end": deleting(slice(-2, None)),
    "delete all": deleting(slice(None)),
    "delete extended slice": deleting(slice(None, None, 2)),
    "delete extended slice, backwards": deleting(slice(None, 1, -2)),
    "delete reversed": deleting(slice(None, None, -1)),
}  # fmt: skip

#: What changes nothing; at most one record, since a record that says so does no harm.
NOTHINGS: dict[str, Operation] = {
    "extend by nothing": lambda x: x.extend([]),
    "+= nothing": lambda x: unwrap(operator.iadd(x, ())),
    "*= 1": lambda x: unwrap(operator.imul(x, 1)),
    "delete empty slice": deleting(slice(3, 1)),
    "delete empty extended slice": deleting(slice(3, 1, 2)),
    "set empty slice": setting(slice(3, 1), []),
    "set empty extended slice": setting(slice(9, None, 2), []),
    "sort what is sorted": lambda x: x.sort(key=lambda _: 0),
}

#: What only looks, or fails as it fails for a list; no record.
READS: dict[str, Operation] = {
    "get": lambda x: [x[0], x[-1], x[2], x[Index(1)], x[True]],
    "iterate": list,
    "reversed": lambda x: list(reversed(x)),
    "len": len,
    "bool": bool,
    "count": lambda x: [x.count(1), x.count([1]), x.count(9)],
    "index": lambda x: [x.index(1), x.index(1, 2), x.index([1]), x.index(2, -2), x.index(1, -1, 99)],
    "in": lambda x: [1 in x, [1] in x, 9 in x, (1,) in x],
    "+": lambda x: x + [4, [5]],
    "+ itself": lambda x: x + x,
    "right +": lambda x: [4, [5]] + x,
    "*": lambda x: [x * 2, 2 * x, x * 0, x * -1, x * Index(2)],
    "repr": lambda x: [repr(x), str(x), f"{x}", f"{x!r:>40}"],
    "==": lambda x: [x == [3, 1, [1], 2, 1], [3, 1, [1], 2, 1] == x, x == [3], x == (3, 1, [1], 2, 1), x == 3],
    "!=": lambda x: [x != [3, 1, [1], 2, 1], [3, 1, [1], 2, 1] != x, x != [3], x != (3, 1, [1], 2, 1)],
    "<": lambda x: [x < [3, 2], x <= [3, 1, [1], 2, 1], x > [2], x >= [4], [3, 2] < x, [4] > x, [3] <= x],
    "copy": lambda x: [x.copy(), copy.copy(x), copy.deepcopy(x)],
    "star": lambda x: [*x, *x],
    "unpack": lambda x: [max(*x, key=str), [*x]],
    "map": lambda x: list(map(str, x)),
    "zip": lambda x: list(zip(x, x, strict=True)),
    "enumerate": lambda x: list(enumerate(x)),
    "sorted": lambda x: sorted(x, key=str),
    "join": lambda x: ",".join(map(str, x)),
    "exhausted iterator": lambda x: [(list(i), next(i, "end")) for i in [iter(x)]],
    "get beyond": lambda x: x[5],
    "get before": lambda x: x[-6],
    "get text": lambda x: x["a"],
    "get float": lambda x: x[1.0],
    "get None": lambda x: x[None],
    "get step 0": lambda x: x[::0],
    "get wrong slice": lambda x: x["a":"b"],
    "set beyond": setting(5, 1),
    "set before": setting(-6, 1),
    "set text": setting("a", 1),
    "set float": setting(1.0, 1),
    "set slice by number": setting(slice(1, 2), 1),
    "set slice by None": setting(slice(None), None),
    "set step 0": setting(slice(None, None, 0), [1]),
    "set extended slice by less": setting(slice(None, None, 2), [1, 2]),
    "set extended slice by more": setting(slice(None, None, 2), [1, 2, 3, 4]),
    "set extended slice by number": setting(slice(None, None, 2), 1),
    "set reversed by less": setting(slice(None, None, -1), [1]),
    "delete beyond": deleting(5),
    "delete before": deleting(-6),
    "delete text": deleting("a"),
    "delete step 0": deleting(slice(None, None, 0)),
    "pop beyond": lambda x: x.pop(5),
    "pop before": lambda x: x.pop(-6),
    "pop text": lambda x: x.pop("a"),
    "pop two": lambda x: x.pop(1, 2),
    "remove what is not there": lambda x: x.remove(99),
    "index of what is not there": lambda x: x.index(99),
    "index out of range": lambda x: x.index(3, 1),
    "insert without value": lambda x: x.insert(1),
    "insert at text": lambda x: x.insert("a", 1),
    "insert at float": lambda x: x.insert(1.0, 1),
    "insert at None": lambda x: x.insert(None, 1),
    "append nothing": lambda x: x.append(),
    "append two": lambda x: x.append(1, 2),
    "extend by number": lambda x: x.extend(5),
    "extend by None": lambda x: x.extend(None),
    "+= number": lambda x: operator.iadd(x, 5),
    "+= None": lambda x: operator.iadd(x, None),
    "*= text": lambda x: operator.imul(x, "a"),
    "*= float": lambda x: operator.imul(x, 1.5),
    "*= list": lambda x: operator.imul(x, [1]),
    "+ tuple": lambda x: x + (1,),
    "tuple +": lambda x: (1,) + x,
    "+ number": lambda x: x + 1,
    "* float": lambda x: x * 1.5,
    "* list": lambda x: x * [1],
    "< number": lambda x: x < 1,
    "< tuple": lambda x: x < (1,),
    "< mixed": lambda x: x < [3, 1, "a"],
    "sort mixed": lambda x: x.sort(),
    "sort positional": lambda x: x.sort(str),
    "sort unknown": lambda x: x.sort(order=1),
    "sort with a failing key": lambda x: x.sort(key=lambda item: 1 // (item != 2)),
    "sort with a wrong key": lambda x: x.sort(key=5),
    "reverse with argument": lambda x: x.reverse(1),
    "clear with argument": lambda x: x.clear(1),
    "copy with argument": lambda x: x.copy(1),
    "hash": hash,
    "call": lambda x: x(),
}  # fmt: skip


@places
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_one_record(state: PersistedState, path: Path, place: Place, name: str) -> None:
    assert compare(state, path, place, CHANGES[name], [3, 1, [1], 2, 1]) == 1


@pytest.mark.parametrize("name", NOTHINGS)
def test_a_change_of_nothing_is_one_record_at_most(state: PersistedState, path: Path, name: str) -> None:
    assert compare(state, path, top, NOTHINGS[name], [3, 1, [1], 2, 1]) <= 1


@pytest.mark.parametrize("name", READS)
def test_a_look_or_an_error_writes_nothing(state: PersistedState, path: Path, name: str) -> None:
    state.node = [3, 1, [1], 2, 1]
    before = path.read_bytes()

    result, expected = outcome(READS[name], state.node), outcome(READS[name], [3, 1, [1], 2, 1])

    assert result == expected
    assert repr(result) == repr(expected)
    assert plain(state) == {"node": [3, 1, [1], 2, 1]}
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["pop", "pop 0", "delete beyond", "remove what is not there", "get beyond"])
def test_an_empty_list_fails_as_a_list_does(state: PersistedState, path: Path, name: str) -> None:
    assert compare(state, path, top, (CHANGES | READS)[name], []) == 0


@pytest.mark.parametrize("name", ["clear", "reverse", "*= 2", "slice all by nothing", "delete all"])
def test_an_empty_list_stays_empty(state: PersistedState, path: Path, name: str) -> None:
    assert compare(state, path, top, CHANGES[name], []) <= 1


def test_error_messages_are_those_of_list(state: PersistedState) -> None:
    state.node = [1]
    operations: list[Operation] = [
        lambda x: x[5], lambda x: x["a"], lambda x: x.pop(5), setting(5, 1), setting("a", 1), deleting(5),
        deleting("a"), lambda x: x.index(9), lambda x: x.remove(9),
    ]  # fmt: skip
    for operation in operations:
        with pytest.raises((IndexError, TypeError, ValueError)) as ours:
            operation(state.node)
        with pytest.raises((IndexError, TypeError, ValueError)) as theirs:
            operation([1])
        assert str(ours.value) == str(theirs.value)


def test_every_slice_reads_as_of_a_list(state: PersistedState) -> None:
    model = [0, 1, 2, 3, 4, 5]
    state.node = model

    for part in _slices() + _extended_slices():
        assert state.node[part] == model[part]
        assert type(state.node[part]) is list


def test_every_slice_deletes_as_of_a_list(state: PersistedState, path: Path) -> None:
    for part in _slices()[::3] + _extended_slices()[::5]:
        model = [0, 1, [2], 3, {"a": 4}, 5]
        state.node = model
        state.vacuum()

        del state.node[part], model[part]

        assert state.node == model
        check(state, path, {"node": model})


def test_every_slice_is_set_as_of_a_list(state: PersistedState, path: Path) -> None:
    for part in _slices()[::3] + _extended_slices()[::5]:
        model = [0, 1, [2], 3, {"a": 4}, 5]
        state.node = model
        state.vacuum()
        new = [[n] for n in range(len(model[part]))]

        state.node[part] = new
        model[part] = new

        assert state.node == model
        check(state, path, {"node": model})


def test_extended_slice_of_step_one_may_change_the_length(state: PersistedState, path: Path) -> None:
    state.node = [0, 1, 2, 3]

    state.node[1:3:1] = [7, 8, 9]

    check(state, path, {"node": [0, 7, 8, 9, 3]})


class TestItself:
    """A node as an argument of its own methods."""

    def test_extend(self, state: PersistedState, path: Path) -> None:
        state.node = [1, [2]]

        state.node.extend(state.node)

        check(state, path, {"node": [1, [2], 1, [2]]})
        assert state.node[1] is not state.node[3]

    def test_iadd(self, state: PersistedState, path: Path) -> None:
        state.node = [1, [2]]
        before = records(path)

        state.node += state.node

        assert records(path) == before + 1
        check(state, path, {"node": [1, [2], 1, [2]]})

    def test_slice(self, state: PersistedState, path: Path) -> None:
        state.node = [1, 2, 3]

        state.node[1:] = state.node

        check(state, path, {"node": [1, 1, 2, 3]})

    def test_slice_by_its_own_reverse(self, state: PersistedState, path: Path) -> None:
        state.node = [1, [2], 3]

        state.node[:] = state.node[::-1]

        check(state, path, {"node": [3, [2], 1]})

    def test_slice_by_its_own_iterator(self, state: PersistedState, path: Path) -> None:
        state.node = [1, 2, 3]

        state.node[:] = reversed(state.node)

        check(state, path, {"node": [3, 2, 1]})

    def test_extended_slice(self, state: PersistedState, path: Path) -> None:
        state.node = [1, [2], 3]

        state.node[::-1] = state.node

        check(state, path, {"node": [3, [2], 1]})

    def test_append_copies(self, state: PersistedState, path: Path) -> None:
        state.node = [1, [2]]

        state.node.append(state.node)

        check(state, path, {"node": [1, [2], [1, [2]]]})
        state.node[2].append(3)
        check(state, path, {"node": [1, [2], [1, [2], 3]]})

    def test_multiplied_containers_are_separate(self, state: PersistedState, path: Path) -> None:
        """`list` would hold one object twice; a file cannot."""
        state.node = [[1]]

        state.node *= 2
        state.node[0].append(2)

        check(state, path, {"node": [[1, 2], [1]]})


class TestIdentity:
    def test_an_item_is_one_object(self, state: PersistedState) -> None:
        state.a = [[1], {"b": []}]

        assert state.a is state["a"]
        assert state.a[0] is state.a[-2]
        assert state.a[1]["b"] is state.a[1]["b"]
        assert next(iter(state.a)) is state.a[0]
        assert state.a[:1][0] is state.a[0]
        assert next(iter(reversed(state.a))) is state.a[1]

    def test_assignment_copies_in(self, state: PersistedState, path: Path) -> None:
        mine: list[Any] = [[1]]

        state.a = mine
        mine[0].append(2)
        mine.append(3)

        check(state, path, {"a": [[1]]})

    @pytest.mark.parametrize("store", ["append", "insert", "extend", "slice", "item", "iadd"])
    def test_every_way_of_storing_copies_in(self, state: PersistedState, path: Path, store: str) -> None:
        state.a = [0]
        mine = {"x": [1]}
        ways: dict[str, Operation] = {
            "append": lambda a: a.append(mine),
            "insert": lambda a: a.insert(1, mine),
            "extend": lambda a: a.extend([mine]),
            "slice": lambda a: operator.setitem(a, slice(1, None), [mine]),
            "item": lambda a: (a.append(None), operator.setitem(a, 1, mine)),
            "iadd": lambda a: unwrap(operator.iadd(a, [mine])),
        }

        ways[store](state.a)
        mine["x"].append(2)

        check(state, path, {"a": [0, {"x": [1]}]})
        assert isinstance(state.a[1], StateDict)
        assert isinstance(state.a[1]["x"], StateList)

    def test_assigning_a_node_elsewhere_copies_it(self, state: PersistedState, path: Path) -> None:
        state.a = [[1]]

        state.b = state.a
        state.b[0].append(2)
        state.a.append(state.a[0])
        state.a[1].append(3)

        assert state.b is not state.a
        check(state, path, {"a": [[1], [1, 3]], "b": [[1, 2]]})

    def test_assigning_a_node_where_it_is_writes_nothing(self, state: PersistedState, path: Path) -> None:
        state.a = [[1], 2]
        node, inner, before = state.a, state.a[0], path.read_bytes()

        state.a = state.a
        state["a"] = node
        state.a[0] = state.a[0]
        state.a[-2] = inner

        assert path.read_bytes() == before
        assert state.a is node
        assert state.a[0] is inner

    def test_a_sum_assigned_to_an_attribute_is_one_record(self, state: PersistedState, path: Path) -> None:
        state.a = [1]
        node, before = state.a, records(path)

        state.a += [2]

        assert records(path) == before + 1
        assert state.a is node
        check(state, path, {"a": [1, 2]})

    def test_a_sum_assigned_to_an_item_is_one_record(self, state: PersistedState, path: Path) -> None:
        state.a = [0, [1]]
        node, before = state.a[1], records(path)

        state.a[1] += [2]
        state.a[-1] *= 2

        assert records(path) == before + 2
        assert state.a[1] is node
        check(state, path, {"a": [0, [1, 2, 1, 2]]})

    def test_nodes_inside_a_value_are_copied(self, state: PersistedState, path: Path) -> None:
        state.a = [[1]]

        state.b = {"c": state.a, "d": [state.a, state.a[0]]}
        state.a[0].append(2)

        check(state, path, {"a": [[1, 2]], "b": {"c": [[1]], "d": [[[1]], [1]]}})

    def test_a_node_of_another_state_is_copied(self, state: PersistedState, path: Path) -> None:
        with scratch() as elsewhere, PersistedState(elsewhere, a=[[1]]) as other:
            state.a = other.a
            state.a[0].append(2)
            other.a.append(3)

            check(state, path, {"a": [[1, 2]]})
            check(other, elsewhere, {"a": [[1], 3]})

    @pytest.mark.parametrize(
        "remove",
        [
            pytest.param(lambda s: delattr(s, "a"), id="delete attribute"),
            pytest.param(lambda s: operator.delitem(s, "a"), id="delete item"),
            pytest.param(lambda s: s.pop("a"), id="pop"),
            pytest.param(lambda s: s.popitem(), id="popitem"),
            pytest.param(lambda s: s.clear(), id="clear"),
            pytest.param(lambda s: setattr(s, "a", [9]), id="replace"),
            pytest.param(lambda s: s.update(a=[9]), id="update"),
        ],
    )  # fmt: skip
    def test_a_removed_node_is_plain_and_never_writes(
        self, state: PersistedState, path: Path, remove: Callable[[PersistedState], object]
    ) -> None:
        state.a = [1, [2], {"b": [3]}]
        node, inner, deep = state.a, state.a[1], state.a[2]["b"]
        remove(state)
        rest, before = plain(state), path.read_bytes()

        node.append(4)
        inner += [5]
        deep.insert(0, 6)
        node[2]["c"] = 7
        node[0] = {"new": []}
        node[0]["new"].append(8)

        assert node == [{"new": [8]}, [2, 5], {"b": [6, 3], "c": 7}, 4]
        assert path.read_bytes() == before
        check(state, path, rest)

    @pytest.mark.parametrize("name", [
        "delete container", "pop container", "remove container", "set over a container", "clear", "slice all",
        "delete all", "delete extended slice", "extended slice", "slice by less", "*= 0",
    ])  # fmt: skip
    def test_an_item_taken_from_a_list_is_plain_and_never_writes(
        self, state: PersistedState, path: Path, name: str
    ) -> None:
        state.a = [3, 1, [1], 2, 1]
        item = state.a[2]
        CHANGES[name](state.a)
        rest, before = plain(state), path.read_bytes()

        item.append({"x": []})
        item[1]["x"].append(1)

        assert item == [1, {"x": [1]}]
        assert path.read_bytes() == before
        check(state, path, rest)

    def test_a_removed_node_can_come_back_as_a_copy(self, state: PersistedState, path: Path) -> None:
        state.a = [[1]]
        node = state.pop("a")

        state.b = node
        node[0].append(2)
        state.b[0].append(3)

        assert node == [[1, 2]]
        check(state, path, {"b": [[1, 3]]})

    @pytest.mark.parametrize("name", [
        "delete first", "insert 0", "insert -200", "reverse", "sort by key", "slice as insertion", "pop 0",
        "delete slice before", "extend", "*= 2", "extended deletion", "insert -1", "extended slice beside",
    ])  # fmt: skip
    def test_a_node_that_moves_keeps_writing_to_its_place(self, state: PersistedState, path: Path, name: str) -> None:
        moves: dict[str, Operation] = {
            "delete first": deleting(0),
            "insert 0": lambda a: a.insert(0, "new"),
            "insert -200": lambda a: a.insert(-200, "new"),
            "reverse": lambda a: a.reverse(),
            "sort by key": lambda a: a.sort(key=lambda item: repr(item)[::-1]),
            "slice as insertion": setting(slice(1, 1), ["new", ["new"]]),
            "pop 0": lambda a: a.pop(0),
            "delete slice before": deleting(slice(0, 2)),
            "extend": lambda a: a.extend([1, [1]]),
            "*= 2": lambda a: unwrap(operator.imul(a, 2)),
            "extended deletion": deleting(slice(1, None, 2)),
            "insert -1": lambda a: a.insert(-1, "new"),
            "extended slice beside": setting(slice(1, None, 2), ["p", "q"]),
        }
        state.a = ["zero", 1, {"deep": [0]}, 3, 4]
        node, deep = state.a[2], state.a[2]["deep"]

        moves[name](state.a)
        deep.append(1)
        node["more"] = {}
        node["more"]["yet"] = True

        place = next(index for index, item in enumerate(state.a) if item is node)
        assert plain(state.a[place]) == {"deep": [0, 1], "more": {"yet": True}}
        check(state, path, plain(state))

    def test_nodes_keep_their_identity_over_sorting(self, state: PersistedState) -> None:
        state.a = [[3], [1], [2]]
        three, one, two = state.a

        state.a.sort()
        assert [id(item) for item in state.a] == [id(one), id(two), id(three)]

        state.a.reverse()
        assert [id(item) for item in state.a] == [id(three), id(two), id(one)]

    def test_what_a_method_stored_is_tracked(self, state: PersistedState, path: Path) -> None:
        state.a = []

        state.a.append([])
        state.a[0].append({})
        state.a[0][0]["b"] = []
        state.a[0][0]["b"] += [{"c": 1}]
        state.a[0][0]["b"][0]["c"] += 1
        for item in state.a[0]:
            item["seen"] = True
        for item in reversed(state.a[0]):
            item["twice"] = []
        for item in state.a[0][:]:
            item["twice"].append(2)

        check(state, path, {"a": [[{"b": [{"c": 2}], "seen": True, "twice": [2]}]]})


class TestAllOrNothing:
    """What fails halfway changes nothing, although a list would keep the first half: it is one record."""

    @pytest.mark.parametrize("store", [
        lambda a, items: a.extend(items),
        operator.iadd,
        lambda a, items: operator.setitem(a, slice(0, 1), items),
        lambda a, items: operator.setitem(a, slice(None, None, 2), items),
    ], ids=["extend", "iadd", "slice", "extended slice"])  # fmt: skip
    def test_an_iterator_that_raises(self, state: PersistedState, path: Path, store: Callable[..., Any]) -> None:
        def items() -> Any:
            yield 7
            raise ZeroDivisionError

        state.a = [1, 2]
        before = path.read_bytes()

        with pytest.raises(ZeroDivisionError):
            store(state.a, items())

        assert path.read_bytes() == before
        check(state, path, {"a": [1, 2]})

    def test_a_list_changed_while_it_is_sorted(self, state: PersistedState, path: Path) -> None:
        """`list` raises ValueError; what the key function appended may be there or not, but file and memory agree."""
        state.a = [3, 1, 2]

        def key(item: int) -> int:
            state.a.append(0)
            return item

        with pytest.raises(ValueError, match="modified"):
            state.a.sort(key=key)

        check(state, path, plain(state))
        assert sorted(item for item in state.a if item) == [1, 2, 3]


class TestReentrance:
    """What an argument does to the list while the method reads it: whatever comes out, file and memory agree."""

    class Meddler(Mapping[str, int]):
        """A mapping, an index, something to compare with, and an iterator: it changes the list when first asked."""

        def __init__(self, meddle: Callable[[], object]) -> None:
            self.todo = [meddle]

        def meddle(self) -> None:
            if self.todo:
                self.todo.pop()()

        def __getitem__(self, key: str) -> int:
            self.meddle()
            return 7

        def __iter__(self) -> Iterator[str]:
            return iter(["k"])

        def __len__(self) -> int:
            return 1

        def __index__(self) -> int:
            self.meddle()
            return 0

        def __eq__(self, other: object) -> bool:
            self.meddle()
            return other == 2

        __hash__ = None  # type: ignore[assignment]

        def items_of(self, count: int) -> Iterator[int]:
            for number in range(count):
                self.meddle()
                yield number

    WAYS: ClassVar[dict[str, Callable[[Any, Any], object]]] = {
        "set": lambda a, m: operator.setitem(a, 2, m),
        "set last": lambda a, m: operator.setitem(a, -1, m),
        "append": StateList.append,
        "insert": lambda a, m: a.insert(2, m),
        "insert last": lambda a, m: a.insert(-1, m),
        "extend by mapping": lambda a, m: a.extend([1, m]),
        "slice by mapping": lambda a, m: operator.setitem(a, slice(1, 3), [m]),
        "extended slice by mapping": lambda a, m: operator.setitem(a, slice(None, None, 2), [m, m]),
        "extend": lambda a, m: a.extend(m.items_of(2)),
        "+=": lambda a, m: operator.iadd(a, m.items_of(2)),
        "slice": lambda a, m: operator.setitem(a, slice(1, 3), m.items_of(3)),
        "slice from the end": lambda a, m: operator.setitem(a, slice(-1, None), m.items_of(3)),
        "extended slice": lambda a, m: operator.setitem(a, slice(None, None, 2), m.items_of(2)),
        "reversed": lambda a, m: operator.setitem(a, slice(None, None, -1), m.items_of(3)),
        "set at": lambda a, m: operator.setitem(a, m, 5),
        "delete at": operator.delitem,
        "delete slice at": lambda a, m: operator.delitem(a, slice(m, None, 2)),
        "set slice at": lambda a, m: operator.setitem(a, slice(m, 2), [5]),
        "pop at": lambda a, m: a.pop(m),
        "insert at": lambda a, m: a.insert(m, 5),
        "*=": operator.imul,
        "remove": lambda a, m: a.remove(m),
        "sort": lambda a, m: a.sort(key=lambda item: m.__index__() or item),
    }

    @pytest.mark.parametrize("meddle", [
        lambda s: s.a.clear(), lambda s: s.a.append(0), lambda s: s.a.insert(0, {}), lambda s: setattr(s, "a", [9]),
        lambda s: operator.delitem(s.a, slice(1)), lambda s: s.a.reverse(), lambda s: s.pop("a", None),
        PersistedState.vacuum,
    ], ids=["clear", "append", "insert", "replace", "delete", "reverse", "pop", "vacuum"])  # fmt: skip
    @pytest.mark.parametrize("way", WAYS)
    def test_file_and_memory_agree(self, state: PersistedState, path: Path, way: str, meddle: Operation) -> None:
        state.before, state.a, state.after = [], [3, 1, 2], [[]]

        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            self.WAYS[way](state.a, self.Meddler(lambda: meddle(state)))

        check(state, path, plain(state))
        state.after[0].append(1)
        check(state, path, plain(state))
        state.vacuum()
        check(state, path, plain(state))


class TestOtherPeoplesFunctions:
    def test_types(self, state: PersistedState) -> None:
        state.a = []

        assert type(state.a) is StateList
        assert isinstance(state.a, MutableSequence)
        assert isinstance(state.a, Sequence)
        assert not isinstance(state.a, list)

    @pytest.mark.parametrize("function", [
        lambda a: heapq.heappush(a, 0), heapq.heappop, heapq.heapify, lambda a: heapq.heapreplace(a, 0),
        lambda a: heapq.heappushpop(a, 5),
    ], ids=["heappush", "heappop", "heapify", "heapreplace", "heappushpop"])  # fmt: skip
    def test_heapq_refuses_a_node(self, state: PersistedState, path: Path, function: Operation) -> None:
        state.a = [3, 2, 1]
        before = path.read_bytes()

        with pytest.raises(TypeError):
            function(state.a)

        assert path.read_bytes() == before
        check(state, path, {"a": [3, 2, 1]})

    def test_heapq_that_only_reads_works(self, state: PersistedState) -> None:
        state.a = [3, 1, 2]

        assert heapq.nlargest(2, state.a) == [3, 2]
        assert list(heapq.merge(state.a[:1], state.a[1:])) == [1, 2, 3]

    def test_bisect(self, state: PersistedState, path: Path) -> None:
        state.a = [1, 3, 5]
        before = records(path)

        bisect.insort(state.a, 4)
        bisect.insort_left(state.a, 0)

        assert bisect.bisect_left(state.a, 3) == 2
        assert records(path) == before + 2
        check(state, path, {"a": [0, 1, 3, 4, 5]})

    def test_shuffle_of_numbers(self, state: PersistedState, path: Path) -> None:
        state.a = list(range(20))
        model = list(range(20))

        random.Random(5).shuffle(state.a)
        random.Random(5).shuffle(model)

        check(state, path, {"a": model})

    def test_shuffle_of_containers(self, state: PersistedState, path: Path) -> None:
        """`x[i], x[j] = x[j], x[i]` assigns nodes to places where they are not: they are copied."""
        model: list[Any] = [[n, {"n": [n]}] for n in range(10)]
        state.a = model

        random.Random(7).shuffle(state.a)
        random.Random(7).shuffle(model)
        for item in state.a:
            item[1]["n"].append("tracked")
        for item in model:
            item[1]["n"].append("tracked")

        check(state, path, {"a": model})

    def test_random_choices(self, state: PersistedState) -> None:
        state.a = [1, 2, 3]

        assert random.Random(1).sample(state.a, 3) == random.Random(1).sample([1, 2, 3], 3)
        assert random.Random(1).choice(state.a) == random.Random(1).choice([1, 2, 3])

    def test_operator_functions(self, state: PersistedState) -> None:
        state.a = [1, [2], 3]

        assert operator.itemgetter(0, 2)(state.a) == (1, 3)
        assert operator.concat(state.a, [4]) == [1, [2], 3, 4]
        assert operator.length_hint(state.a) == 3
        assert collections.deque(state.a, maxlen=1) == collections.deque([3])

    def test_pattern_matching(self, state: PersistedState) -> None:
        state.a = [1, {"x": [2, 3]}]

        match state.a:
            case [1, {"x": [first, *rest]}]:
                assert (first, rest) == (2, [3])
            case _:
                pytest.fail("a node is a sequence")

    def test_comparison_of_nodes(self, state: PersistedState) -> None:
        state.a, state.b = [1, [2]], [1, [3]]

        assert state.a < state.b
        assert state.b >= state.a
        assert state.a != state.b
        assert max(state.a, state.b) is state.b
        assert sorted([state.b, state.a]) == [[1, [2]], [1, [3]]]
        assert [state.a] == [[1, [2]]]
        assert {"k": state.a} == {"k": [1, [2]]}
        state.b[1][0] = 2
        assert state.a == state.b

    def test_results_are_plain_at_the_top(self, state: PersistedState) -> None:
        """Slices and sums are plain lists; the containers in a slice are the tracked ones."""
        state.a = [1, [2]]

        for result in (state.a + [3], [3] + state.a, state.a * 2, 2 * state.a, state.a[:], state.a[::-1]):
            assert type(result) is list
        assert state.a[:][1] is state.a[1]

    def test_sums_are_no_way_in(self, state: PersistedState, path: Path) -> None:
        state.a = [1, 2]
        before = path.read_bytes()

        for result in (state.a + [3], [3] + state.a, state.a * 2, state.a[:]):
            result.append(4)

        assert path.read_bytes() == before
        assert state.a == [1, 2]

    @pytest.mark.parametrize(
        "duplicate", [lambda a: a.copy(), copy.copy, copy.deepcopy, plain], ids=["copy", "shallow", "deep", "plain"]
    )  # fmt: skip
    def test_copies_are_plain_and_deep(self, state: PersistedState, path: Path, duplicate: Operation) -> None:
        state.a = [1, [2, {"b": [3]}]]
        before = path.read_bytes()

        result = duplicate(state.a)

        assert result == [1, [2, {"b": [3]}]]
        assert type(result) is type(result[1]) is type(result[1][1]["b"]) is list
        assert type(result[1][1]) is dict
        result[1][1]["b"].append(4)
        result[1].append(5)
        assert state.a == [1, [2, {"b": [3]}]]
        assert path.read_bytes() == before

    def test_pickle_gives_the_plain_list(self, state: PersistedState) -> None:
        state.a = [1, [2, {"b": [3]}]]

        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            result = pickle.loads(pickle.dumps(state.a, protocol))
            assert result == [1, [2, {"b": [3]}]]
            assert type(result) is type(result[1]) is list
            assert type(result[1][1]) is dict

    def test_json(self, state: PersistedState) -> None:
        state.a = [1, [2, {"b": [3]}]]

        assert json.dumps(state.a, default=plain) == '[1, [2, {"b": [3]}]]'
        with pytest.raises(TypeError):
            json.dumps(state.a)

    def test_a_list_takes_no_attributes(self, state: PersistedState) -> None:
        """Else a slip of the pen would be a change that is silently not saved."""
        state.a = [1]

        with pytest.raises(AttributeError):
            state.a.b = 2
