"""Every method of `dict` on nodes and on the root: it does what `dict` does, and the file knows it."""

from __future__ import annotations

import collections
import contextlib
import copy
import itertools
import json
import operator
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from decimal import Decimal
from fractions import Fraction
from pprint import pformat
from typing import TYPE_CHECKING, Any, ClassVar

import oracle
import pytest
from checks import check, records, scratch, unwrap
from nodes import PLACES, Operation, Place, compare, deleting, outcome, root, setting, top

from persistedstate import PersistedState, StateDict, StateList, plain

if TYPE_CHECKING:
    from pathlib import Path

OnDisk = Callable[..., dict[Any, Any]]

#: The names of PersistedState's methods, which are no attributes of the state.
METHODS = [
    "keys", "values", "items", "get", "pop", "popitem", "clear", "update", "setdefault", "copy",
    "close", "transaction", "vacuum", "refresh",
]  # fmt: skip

places = pytest.mark.parametrize("place", [root, *PLACES.values()], ids=["root", *PLACES])


class Pairs:
    """What `dict.update` takes although it is no mapping: something with keys() and []."""

    def keys(self) -> list[Any]:
        return ["b", "new", 7]

    def __getitem__(self, key: Any) -> Any:
        return [key]


def start() -> dict[Any, Any]:
    return {"b": 1, "a": [1], 3: {"x": {}}, None: None, True: "t", 2.5: 0, "": "empty"}


#: What changes start(); each is one record.
CHANGES: dict[str, Operation] = {
    "set old key": setting("b", 2),
    "set new key": setting("c", [1, {"y": 2}]),
    "set over a container": setting("a", None),
    "set int key": setting(3, 4),
    "set new int key": setting(4, 4),
    "set None key": setting(None, 4),
    "set bool key": setting(True, 4),
    "set new bool key": setting(False, 4),
    "set float key": setting(2.5, 4),
    "set new float key": setting(-0.5, 4),
    "set empty key": setting("", 4),
    "set 1 where True is": setting(1, "one"),
    "set 3.0 where 3 is": setting(3.0, "three"),
    "set key with a dot": setting("a.b", 1),
    "set underscore key": setting("_x", 1),
    "set dunder key": setting("__class__", 1),
    "set key of a method": setting("items", 1),
    "delete": deleting("b"),
    "delete container": deleting("a"),
    "delete int key": deleting(3),
    "delete None key": deleting(None),
    "delete by an equal key": deleting(1.0),
    "pop": lambda x: x.pop("b"),
    "pop container": lambda x: x.pop("a"),
    "pop with default": lambda x: x.pop(2.5, 9),
    "popitem": lambda x: x.popitem(),
    "clear": lambda x: x.clear(),
    "update by dict": lambda x: x.update({"b": 2, "new": [1, {"y": []}], 3: 0}),
    "update by pairs": lambda x: x.update([("b", 2), ("new", 3), ("b", 4)]),
    "update by iterator": lambda x: x.update((c, 1) for c in "xyz"),
    "update by keywords": lambda x: x.update(b=2, new=[3]),
    "update by both": lambda x: x.update({"b": 2, "n": 1}, n=3, self=4),
    "update by keys()": lambda x: x.update(Pairs()),
    "update by two-letter words": lambda x: x.update(["k1", "k2"]),
    "|=": lambda x: unwrap(operator.ior(x, {"b": 2, "new": [1]})),
    "|= pairs": lambda x: unwrap(operator.ior(x, [("b", 2), ("new", [1])])),
    "setdefault": lambda x: x.setdefault("new", [1, {"y": 2}]),
    "setdefault without value": lambda x: x.setdefault("new"),
    "setdefault of an int key": lambda x: x.setdefault(9, {}),
}  # fmt: skip

#: What changes nothing; at most one record.
NOTHINGS: dict[str, Operation] = {
    "update by nothing": lambda x: x.update(),
    "update by empty dict": lambda x: x.update({}),
    "|= nothing": lambda x: unwrap(operator.ior(x, {})),
}

#: What only looks, or fails as it fails for a dict; no record.
READS: dict[str, Operation] = {
    "get item": lambda x: [x["b"], x["a"], x[3], x[None], x[True], x[2.5], x[""]],
    "get item by an equal key": lambda x: [x[3.0], x[1], x[1.0]],
    "get": lambda x: [x.get("b"), x.get("a"), x.get(3), x.get("nope"), x.get("nope", 5), x.get(None, 5)],
    "in": lambda x: ["b" in x, 3 in x, None in x, "nope" in x, 1 in x, (1, 2) in x],
    "len": len,
    "bool": bool,
    "iterate": list,
    "reversed": lambda x: list(reversed(x)),
    "reversed views": lambda x: [list(reversed(view)) for view in (x.keys(), x.values(), x.items())],
    "keys": lambda x: list(x.keys()),
    "values": lambda x: list(x.values()),
    "items": lambda x: list(x.items()),
    "len of views": lambda x: [len(x.keys()), len(x.values()), len(x.items())],
    "in views": lambda x: [x.keys().__contains__("b"), 1 in x.values(), ("b", 1) in x.items(), [1] in x.values()],
    "keys as a set": lambda x: [x.keys() & {"a", "z"}, x.keys() - {"a"}, x.keys() | {"z"}, x.keys() == set(start())],
    "setdefault of what is there": lambda x: [x.setdefault("b", 9), x.setdefault("a"), x.setdefault(None, 3)],
    "pop with default of what is not there": lambda x: [x.pop("nope", 5), x.pop("nope", None)],
    "|": lambda x: x | {"b": 9, "z": 1},
    "right |": lambda x: {"b": 9, "z": 1} | x,
    "| itself": lambda x: x | x,
    "repr": lambda x: [repr(x), str(x), f"{x}"],
    "==": lambda x: [x == start(), start() == x, x == {}, x == [("b", 1)], x == 3, x == None],  # noqa: E711
    "!=": lambda x: [x != start(), start() != x, x != {}, x != [("b", 1)]],
    "order is no part of ==": lambda x: x == dict(reversed(start().items())),
    "copy": lambda x: [x.copy(), copy.copy(x), copy.deepcopy(x)],
    "dict()": lambda x: {key: unwrap(value) for key, value in dict(x).items()},
    "double star": lambda x: {key: unwrap(value) for key, value in {**x}.items()},
    "sorted": lambda x: sorted(x, key=str),
    "get item not there": lambda x: x["nope"],
    "get int not there": lambda x: x[99],
    "get tuple": lambda x: x[1, 2],
    "get unhashable": lambda x: x[[]],
    "in unhashable": lambda x: [] in x,
    "get() unhashable": lambda x: x.get([]),
    "get() nothing": lambda x: x.get(),
    "get() too much": lambda x: x.get("a", 1, 2),
    "set unhashable": setting([], 1),
    "delete not there": deleting("nope"),
    "delete unhashable": deleting({}),
    "delete tuple": deleting((1, 2)),
    "pop not there": lambda x: x.pop("nope"),
    "pop nothing": lambda x: x.pop(),
    "pop too much": lambda x: x.pop("a", 1, 2),
    "pop unhashable": lambda x: x.pop([], 5),
    "popitem with argument": lambda x: x.popitem(1),
    "update by number": lambda x: x.update(5),
    "update by None": lambda x: x.update(None),
    "update by triples": lambda x: x.update([("a", 1, 2)]),
    "update by numbers": lambda x: x.update([1, 2]),
    "update by two dicts": lambda x: x.update({}, {}),
    "update by unhashable keys": lambda x: x.update([([], 1)]),
    "|= number": lambda x: operator.ior(x, 5),
    "| number": lambda x: x | 5,
    "| pairs": lambda x: x | [("a", 1)],
    "+": lambda x: x + {},
    "<": lambda x: x < {},
    "setdefault nothing": lambda x: x.setdefault(),
    "setdefault unhashable": lambda x: x.setdefault([], 1),
    "clear with argument": lambda x: x.clear(1),
    "copy with argument": lambda x: x.copy(1),
    "keys with argument": lambda x: x.keys(1),
    "hash": hash,
    "call": lambda x: x(),
    "slice": lambda x: x[1:2],
}  # fmt: skip


@places
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_one_record(state: PersistedState, path: Path, place: Place, name: str) -> None:
    assert compare(state, path, place, CHANGES[name], start()) == 1


@places
@pytest.mark.parametrize("name", NOTHINGS)
def test_a_change_of_nothing_is_one_record_at_most(state: PersistedState, path: Path, place: Place, name: str) -> None:
    assert compare(state, path, place, NOTHINGS[name], start()) <= 1


@pytest.mark.parametrize("place", [root, top], ids=["root", "top"])
@pytest.mark.parametrize("name", READS)
def test_a_look_or_an_error_writes_nothing(state: PersistedState, path: Path, place: Place, name: str) -> None:
    node = place(state, start())
    before = path.read_bytes()

    result, expected = outcome(READS[name], node), outcome(READS[name], start())

    assert result == expected
    assert repr(result) == repr(expected)
    assert repr(node) == repr(start())
    assert path.read_bytes() == before


@places
@pytest.mark.parametrize("name", ["popitem", "pop", "delete", "get item not there", "pop not there"])
def test_an_empty_dict_fails_as_a_dict_does(state: PersistedState, path: Path, place: Place, name: str) -> None:
    assert compare(state, path, place, (CHANGES | READS)[name], {}) == 0


@places
def test_an_empty_dict_may_be_cleared(state: PersistedState, path: Path, place: Place) -> None:
    assert compare(state, path, place, CHANGES["clear"], {}) <= 1


@places
def test_key_order_is_insertion_order(state: PersistedState, path: Path, place: Place) -> None:
    node, model = place(state, {"z": 1, "a": 2, "m": 3}), {"z": 1, "a": 2, "m": 3}

    for mapping in (node, model):
        mapping["b"] = 4
        mapping["z"] = 5
        del mapping["a"]
        mapping["a"] = 6
        mapping.update(m=7, c=8)
        mapping.pop("b")
        mapping.setdefault("b", 9)

    assert list(node) == list(model) == ["z", "m", "a", "c", "b"]
    check(state, path, plain(state))
    state.vacuum()
    check(state, path, plain(state))
    assert list(node) == list(model)


def test_popitem_takes_the_last_key(state: PersistedState, path: Path) -> None:
    state.node = {"z": 1, "a": [2]}

    assert state.node.popitem() == ("a", [2])
    assert state.node.popitem() == ("z", 1)

    check(state, path, {"node": {}})


def test_an_equal_key_keeps_the_first_type(state: PersistedState, path: Path) -> None:
    """As in dict: `d = {1: "a"}; d[True] = "b"` leaves the key 1."""
    state.node = {1: "a", False: "b", 2.0: "c"}

    state.node[True] = state.node[0] = state.node[2] = "new"

    check(state, path, {"node": {1: "new", False: "new", 2.0: "new"}})


@pytest.mark.parametrize("value", [None, 5, "new", [], {}, [1], {"a": [2]}, "two\nlines"], ids=repr)
@pytest.mark.parametrize("old", [None, 5, [1], {"a": 1}], ids=repr)
@places
def test_an_equal_key_keeps_the_first_type_over_a_vacuum(
    state: PersistedState, path: Path, place: Place, old: Any, value: Any
) -> None:
    node = place(state, {True: old, 0.0: old, 2: old})
    state.vacuum()

    node[1] = node[False] = node[2.0] = value

    for _ in range(2):
        assert repr(node) == repr({True: value, 0.0: value, 2: value})
        check(state, path, plain(state))
        state.vacuum()


class TestItself:
    """A node as an argument of its own methods."""

    @places
    def test_update(self, state: PersistedState, path: Path, place: Place) -> None:
        node = place(state, {"a": [1], "b": {"c": 2}})
        inner = node["a"]

        node.update(node)
        node.update({"a": node["a"]})

        assert node == {"a": [1], "b": {"c": 2}}
        inner.append("perhaps no longer tracked")
        check(state, path, plain(state))

    @places
    def test_set_item_copies(self, state: PersistedState, path: Path, place: Place) -> None:
        node = place(state, {"a": [1]})

        node["self"] = node
        node["self"]["a"].append(2)

        assert node == {"a": [1], "self": {"a": [1, 2]}}
        check(state, path, plain(state))

    def test_a_container_moves_into_its_child(self, state: PersistedState, path: Path) -> None:
        state.a = {"b": {"c": 1}}

        state.a["b"]["up"] = state.a

        check(state, path, {"a": {"b": {"c": 1, "up": {"b": {"c": 1}}}}})

    def test_a_child_replaces_its_parent(self, state: PersistedState, path: Path) -> None:
        state.a = {"b": {"c": [1]}}

        state.a = state.a["b"]
        state.a["c"].append(2)

        check(state, path, {"a": {"c": [1, 2]}})


class TestIdentity:
    @places
    def test_an_item_is_one_object(self, state: PersistedState, place: Place) -> None:
        node = place(state, {"a": {"b": []}})

        assert node["a"] is node["a"]
        assert node["a"] is node.get("a")
        assert node["a"] is node.setdefault("a", 1)
        assert node["a"]["b"] is next(iter(node["a"].values()))
        assert node["a"] is next(iter(node.items()))[1]

    @pytest.mark.parametrize("store", ["item", "attribute", "update", "keywords", "pairs", "ior", "setdefault"])
    def test_every_way_of_storing_copies_in(self, state: PersistedState, path: Path, store: str) -> None:
        mine = {"x": [1]}
        ways: dict[str, Operation] = {
            "item": lambda s: operator.setitem(s, "a", mine),
            "attribute": lambda s: setattr(s, "a", mine),
            "update": lambda s: s.update({"a": mine}),
            "keywords": lambda s: s.update(a=mine),
            "pairs": lambda s: s.update([("a", mine)]),
            "ior": lambda s: unwrap(operator.ior(s, {"a": mine})),
            "setdefault": lambda s: s.setdefault("a", mine),
        }

        ways[store](state)
        mine["x"].append(2)
        mine["y"] = []

        check(state, path, {"a": {"x": [1]}})
        assert isinstance(state.a, StateDict)
        assert isinstance(state.a["x"], StateList)

    def test_defaults_are_copied_in(self, path: Path) -> None:
        mine = {"x": [1]}

        with PersistedState(path, a=mine) as state:
            mine["x"].append(2)
            check(state, path, {"a": {"x": [1]}})

    @places
    def test_setdefault_returns_the_tracked_node(self, state: PersistedState, path: Path, place: Place) -> None:
        node = place(state, {})
        given: list[Any] = []

        result = node.setdefault("a", given)
        result.append(1)
        node.setdefault("a", []).append(2)
        node.setdefault("b", {}).setdefault("c", {})["d"] = 3

        assert result is node["a"]
        assert given == []
        assert node == {"a": [1, 2], "b": {"c": {"d": 3}}}
        check(state, path, plain(state))

    @places
    def test_assigning_a_node_where_it_is_writes_nothing(self, state: PersistedState, path: Path, place: Place) -> None:
        node = place(state, {"a": [1], 2: {}})
        inner, other, before = node["a"], node[2], path.read_bytes()

        node["a"] = node["a"]
        node["a"] = inner
        node[2] = node[2]
        node[2.0] = other

        assert path.read_bytes() == before
        assert node["a"] is inner
        assert node[2] is other

    def test_in_place_operators_are_one_record(self, state: PersistedState, path: Path) -> None:
        state.n, state.d, state.nested = 1, {"a": 1}, {"n": 1, "d": {}}
        node, inner, before = state.d, state.nested["d"], records(path)

        state.n += 1
        state.d |= {"b": 2}
        state["nested"]["n"] += 1
        state["nested"]["d"] |= {"c": 3}

        assert records(path) == before + 4
        assert state.d is node
        assert state.nested["d"] is inner
        check(state, path, {"n": 2, "d": {"a": 1, "b": 2}, "nested": {"n": 2, "d": {"c": 3}}})

    def test_the_root_takes_in_place_or(self, state: PersistedState, path: Path) -> None:
        same, before = state, records(path)

        state |= {"a": 1, "b": [2]}

        assert state is same
        assert records(path) == before + 1
        check(state, path, {"a": 1, "b": [2]})

    @places
    @pytest.mark.parametrize("remove", [
        lambda x: operator.delitem(x, "k"), lambda x: x.pop("k"), lambda x: x.popitem(), lambda x: x.clear(),
        lambda x: operator.setitem(x, "k", {}), lambda x: x.update(k={"d": 1}), lambda x: x.pop("k", None),
    ], ids=["del", "pop", "popitem", "clear", "replace", "update", "pop default"])  # fmt: skip
    def test_a_removed_node_is_plain_and_never_writes(
        self, state: PersistedState, path: Path, place: Place, remove: Operation
    ) -> None:
        parent = place(state, {"k": {"d": {"e": [1]}}})
        node, inner, deep = parent["k"], parent["k"]["d"], parent["k"]["d"]["e"]
        remove(parent)
        rest, before = plain(state), path.read_bytes()

        node["new"] = {"x": []}
        node["new"]["x"].append(1)
        inner |= {"y": 2}
        deep += [3]
        node.setdefault("z", []).append(4)
        del inner["y"]
        node.update(u=5)

        assert node == {"d": {"e": [1, 3]}, "new": {"x": [1]}, "z": [4], "u": 5}
        assert path.read_bytes() == before
        check(state, path, rest)

    def test_a_popped_container_is_alone(self, state: PersistedState, path: Path) -> None:
        state.a = {"b": {"c": [1]}}
        held = state.a["b"]["c"]

        popped = state.a.pop("b")
        popped["c"].append(2)
        held.append(3)

        assert state.a == {}
        check(state, path, {"a": {}})

    def test_values_of_every_view_are_tracked(self, state: PersistedState, path: Path) -> None:
        state.d = {"a": [], "b": []}

        for value in state.d.values():
            value.append(1)
        for key, value in state.d.items():
            value.append(key)
        for value in reversed(state.d.values()):
            value.append(3)
        state.d.get("a").append(4)

        check(state, path, {"d": {"a": [1, "a", 3, 4], "b": [1, "b", 3]}})

    def test_views_are_live(self, state: PersistedState) -> None:
        state.d = {"a": 1}
        keys, values, items = state.d.keys(), state.d.values(), state.d.items()

        state.d["b"] = 2

        assert list(keys) == ["a", "b"]
        assert list(values) == [1, 2]
        assert list(items) == [("a", 1), ("b", 2)]

    @places
    def test_a_dict_changed_while_it_is_iterated_raises(self, state: PersistedState, place: Place) -> None:
        node = place(state, {"a": 1, "b": 2})

        with pytest.raises(RuntimeError):
            for key in node:
                node[key + "x"] = 1


class TestAllOrNothing:
    """What fails halfway changes nothing, although a dict would keep the first half: it is one record."""

    @places
    @pytest.mark.parametrize("store", [lambda x, pairs: x.update(pairs), operator.ior], ids=["update", "ior"])
    def test_an_iterator_that_raises(
        self, state: PersistedState, path: Path, place: Place, store: Callable[..., Any]
    ) -> None:
        def pairs() -> Iterator[tuple[str, Any]]:
            yield "a", 7
            yield "new", 7
            raise ZeroDivisionError

        node = place(state, {"a": 1})
        rest, before = plain(state), path.read_bytes()

        with pytest.raises(ZeroDivisionError):
            store(node, pairs())

        assert path.read_bytes() == before
        check(state, path, rest)


class TestReentrance:
    """What an argument does to the dict while the method reads it: whatever comes out, file and memory agree."""

    class Meddler:
        """A mapping that changes the dict when it is first asked."""

        def __init__(self, meddle: Callable[[], object]) -> None:
            self.todo = [meddle]

        def meddle(self) -> None:
            if self.todo:
                self.todo.pop()()

        def keys(self) -> list[str]:
            self.meddle()
            return ["k", "a"]

        def __getitem__(self, key: str) -> int:
            self.meddle()
            return 7

        def __iter__(self) -> Iterator[str]:
            return iter(self.keys())

        def __len__(self) -> int:
            return 2

        def pairs(self) -> Iterator[tuple[str, int]]:
            for key in ("k", "a"):
                self.meddle()
                yield key, 7

    WAYS: ClassVar[dict[str, Callable[[Any, Any], object]]] = {
        "set": lambda d, m: operator.setitem(d, "a", m),
        "set new": lambda d, m: operator.setitem(d, "new", m),
        "update": lambda d, m: d.update(m),
        "update by value": lambda d, m: d.update(a=m, new=m),
        "update by pairs": lambda d, m: d.update(m.pairs()),
        "|=": operator.ior,
        "|= pairs": lambda d, m: operator.ior(d, m.pairs()),
        "setdefault": lambda d, m: d.setdefault("new", m),
        "setdefault in place": lambda d, m: d["x"].setdefault("new", m),
    }

    @pytest.mark.parametrize("meddle", [
        lambda s: s.d.clear(), lambda s: s.d.update(a=1, k=2, new=3), lambda s: s.d.pop("a", None),
        lambda s: setattr(s, "d", {"z": {}}), lambda s: s.pop("d", None), lambda s: s.d.pop("x", None),
        PersistedState.vacuum,
    ], ids=["clear", "update", "pop key", "replace", "pop", "pop child", "vacuum"])  # fmt: skip
    @pytest.mark.parametrize("way", WAYS)
    def test_file_and_memory_agree(self, state: PersistedState, path: Path, way: str, meddle: Operation) -> None:
        state.before, state.d, state.after = [], {"a": [1], "b": 2, "x": {}}, [[]]
        Mapping.register(self.Meddler)

        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            self.WAYS[way](state.d, self.Meddler(lambda: meddle(state)))

        check(state, path, plain(state))
        state.after[0].append(1)
        check(state, path, plain(state))
        state.vacuum()
        check(state, path, plain(state))


class TestOtherPeoplesFunctions:
    def test_types(self, state: PersistedState) -> None:
        state.d = {}

        assert type(state.d) is StateDict
        for mapping in (state, state.d):
            assert isinstance(mapping, MutableMapping)
            assert isinstance(mapping, Mapping)
            assert not isinstance(mapping, dict)

    @places
    def test_union_is_plain(self, state: PersistedState, path: Path, place: Place) -> None:
        node = place(state, {"a": [1]})
        before = path.read_bytes()

        for result in (node | {"b": 2}, {"b": 2} | node, node | node):
            assert type(result) is dict
            result["c"] = 3

        assert path.read_bytes() == before
        assert node == {"a": [1]}

    @places
    @pytest.mark.parametrize(
        "duplicate", [lambda x: x.copy(), copy.copy, copy.deepcopy, plain], ids=["copy", "shallow", "deep", "plain"]
    )  # fmt: skip
    def test_copies_are_plain_and_deep(
        self, state: PersistedState, path: Path, place: Place, duplicate: Operation
    ) -> None:
        node = place(state, {"a": {"b": [{"c": 1}]}})
        before = path.read_bytes()

        result = duplicate(node)

        assert result == {"a": {"b": [{"c": 1}]}}
        assert type(result) is type(result["a"]) is type(result["a"]["b"][0]) is dict
        assert type(result["a"]["b"]) is list
        result["a"]["b"].append(2)
        result["a"]["b"][0]["d"] = 3
        assert node == {"a": {"b": [{"c": 1}]}}
        assert path.read_bytes() == before

    def test_a_deep_copy_of_what_holds_a_node(self, state: PersistedState) -> None:
        state.d = {"a": [1]}

        result = copy.deepcopy({"outer": [state.d]})

        assert result == {"outer": [{"a": [1]}]}
        assert type(result["outer"][0]) is dict
        assert type(result["outer"][0]["a"]) is list

    def test_pickle_of_a_node_gives_the_plain_dict(self, state: PersistedState) -> None:
        state.d = {"a": {"b": [1]}}

        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            result = pickle.loads(pickle.dumps(state.d, protocol))
            assert result == {"a": {"b": [1]}}
            assert type(result) is type(result["a"]) is dict
            assert type(result["a"]["b"]) is list

    def test_pickle_of_the_root_raises(self, state: PersistedState) -> None:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(state, protocol)

    def test_json(self, state: PersistedState) -> None:
        state.d = {"a": {"b": [1]}}

        assert json.dumps(state, default=plain) == '{"d": {"a": {"b": [1]}}}'
        assert json.dumps(state.d, default=plain) == '{"a": {"b": [1]}}'
        assert json.dumps({"x": [state.d]}, default=plain) == '{"x": [{"a": {"b": [1]}}]}'
        for mapping in (state, state.d):
            with pytest.raises(TypeError):
                json.dumps(mapping)

    @pytest.mark.parametrize("other", [5, "text", None, {}, [], object, {1}, b""], ids=str)
    def test_plain_takes_nodes_only(self, other: object) -> None:
        with pytest.raises(TypeError):
            plain(other)

    def test_chain_map_and_counter(self, state: PersistedState) -> None:
        state.d, state.e = {"a": 1, "b": 2}, {"b": 3, "c": 4}

        assert dict(collections.ChainMap(state.d, state.e)) == {"a": 1, "b": 2, "c": 4}
        assert collections.Counter(state.d) == {"a": 1, "b": 2}
        assert "{a}-{b}".format_map(state.d) == "1-2"

    def test_pattern_matching(self, state: PersistedState) -> None:
        state.d = {"a": {"b": 1}, "c": 2}

        match state:
            case {"d": {"a": {"b": found}, **rest}}:
                assert (found, rest) == (1, {"c": 2})
            case _:
                pytest.fail("a node is a mapping")

    def test_comparison_of_nodes(self, state: PersistedState) -> None:
        state.d, state.e = {"a": [1], "b": 2}, {"b": 2, "a": [1]}

        assert state.d == state.e
        assert state.d is not state.e
        state.e["a"].append(2)
        assert state.d != state.e
        assert [state.d] == [{"a": [1], "b": 2}]

    def test_comparison_of_states(self, state: PersistedState) -> None:
        state.a = [1]

        with scratch() as elsewhere, PersistedState(elsewhere, a=[1]) as other:
            assert state == other
            assert state == {"a": [1]}
            assert {"a": [1]} == state
            other.b = 1
            assert state != other

    def test_an_attribute_of_a_dict_is_not_silently_lost(self, state: PersistedState, path: Path) -> None:
        """`dict` takes no attributes; if a node took one, it would have to be an item."""
        state.d = {}

        with pytest.raises(AttributeError):
            state.d.x = 1

        check(state, path, {"d": {}})


class Printer:
    """As IPython's."""

    def __init__(self) -> None:
        self.shown: Any = None

    def pretty(self, value: Any) -> None:
        self.shown = value

    text = pretty


class TestShown:
    """pprint, IPython and rich show nodes as what they hold, and IPython completes their keys."""

    def test_by_pprint(self, state: PersistedState) -> None:
        state.d = {"b": [{"name": "n" * 30, "number": number} for number in range(4)], "a": ["text " * 30]}

        for node in (state, state.d, state.d["b"], [state.d]):
            for options in ({}, {"sort_dicts": False}, {"width": 30, "compact": True}):
                assert pformat(node, **options) == pformat(unwrap(node), **options)
            assert "\n" in pformat(node)

    def test_by_repr_in_a_class_of_ones_own(self, path: Path) -> None:
        class Own(PersistedState):
            def __repr__(self) -> str:
                return f"Own({super().__repr__()})"

        with Own(path, a=[1]) as state:
            assert repr(state) == "Own({'a': [1]})"

    def test_in_ipython(self, state: PersistedState) -> None:
        state.update({"d": {"a": [1], 5: 0}, "l": [{}]})

        for node in (state, state.d, state.l):
            printer = Printer()
            node._repr_pretty_(printer, False)
            assert oracle.same(printer.shown, plain(node))
        assert state._ipython_key_completions_() == ["d", "l"]
        assert state.d._ipython_key_completions_() == ["a", 5]
        assert not hasattr(state.l, "_ipython_key_completions_")

    def test_in_ipython_when_it_is_closed(self, state: PersistedState) -> None:
        printer = Printer()
        state.close()

        state._repr_pretty_(printer, False)

        assert printer.shown == repr(state)

    def test_by_the_real_ipython(self, state: PersistedState) -> None:
        pretty = pytest.importorskip("IPython.lib.pretty").pretty
        state.d = {"a": [{"name": "n" * 30, "number": number} for number in range(4)]}

        for node in (state, state.d, state.d["a"], [state.d]):
            assert pretty(node) == pretty(unwrap(node))
            assert "\n" in pretty(node)

    def test_by_rich(self, state: PersistedState) -> None:
        state.d = {"a": [{"name": "n" * 30, "number": number} for number in range(4)]}
        for node in (state, state.d, state.d["a"]):
            assert oracle.same(node.__rich__(), plain(node))

        console = pytest.importorskip("rich.console").Console(width=80)
        for node in (state, state.d, state.d["a"]):
            with console.capture() as shown:
                console.print(node)
            with console.capture() as expected:
                console.print(plain(node))
            assert shown.get() == expected.get()
            assert shown.get().count("\n") > 4

    def test_by_rich_inside_of_something_else(self, state: PersistedState) -> None:
        state.d = {"a": [1]}
        assert [oracle.same(shown, {"a": [1]}) for shown in state.d.__rich_repr__()] == [True]

        pretty_repr = pytest.importorskip("rich.pretty").pretty_repr
        assert pretty_repr([state.d, state.d["a"]]) == "[StateDict({'a': [1]}), StateList([1])]"
        state.close()
        assert pretty_repr(state, max_width=1_000) == f"PersistedState({str(state)!r})"


class TestAttributes:
    @pytest.mark.skipif(sys.version_info < (3, 12), reason="it would cost each read of an item a third, see StateDict")
    def test_key_that_is_taken_for_an_attribute_is_told_to_be_an_item(self, state: PersistedState) -> None:
        state.cfg = {"a": 1, "_b": 2}
        node: Any = state.cfg

        with pytest.raises(AttributeError, match=r"keys are items, use \[\"a\"\]") as caught:
            _ = node.a
        assert (caught.value.name, caught.value.obj) == ("a", node)
        for name in ("b", "_b", "__wrapped__", "_ipython_canary_method_should_not_exist_"):
            with pytest.raises(AttributeError, match=f"no attribute '{name}'$"):
                getattr(node, name)
        assert not hasattr(StateDict.__new__(StateDict), "a")

    def test_attribute_and_item_are_the_same(self, state: PersistedState, path: Path) -> None:
        state.a = [1]
        state["b"] = 2

        assert state.a is state["a"]
        assert state.b == state["b"] == 2
        state.b = 3
        assert state["b"] == 3
        check(state, path, {"a": [1], "b": 3})

    def test_assignment_and_deletion_are_one_record_each(self, state: PersistedState, path: Path) -> None:
        before = records(path)

        state.a = {"b": [1, 2, {"c": 3}]}
        assert records(path) == before + 1
        del state.a
        assert records(path) == before + 2
        check(state, path, {})

    def test_missing_names(self, state: PersistedState, path: Path) -> None:
        before = path.read_bytes()

        with pytest.raises(AttributeError, match="nope"):
            _ = state.nope
        with pytest.raises(AttributeError, match="nope"):
            del state.nope
        with pytest.raises(KeyError) as error:
            _ = state["nope"]
        assert error.value.args == ("nope",)
        with pytest.raises(KeyError) as error:
            del state["nope"]
        assert error.value.args == ("nope",)
        assert path.read_bytes() == before

    def test_getattr_hasattr_and_dir(self, state: PersistedState) -> None:
        state.alpha, state["not a name"], state[5] = 1, 2, 3

        assert hasattr(state, "alpha")
        assert not hasattr(state, "beta")
        assert getattr(state, "beta", 7) == 7
        assert getattr(state, "not a name") == 2
        assert "alpha" in dir(state)
        assert set(METHODS) <= set(dir(state))
        assert all(isinstance(name, str) for name in dir(state))
        assert "not a name" not in dir(state)

    def test_setattr_of_a_name_that_is_no_identifier(self, state: PersistedState, path: Path) -> None:
        setattr(state, "a b", 1)

        check(state, path, {"a b": 1})

    def test_names_with_an_underscore_are_no_state(self, state: PersistedState, path: Path, on_disk: OnDisk) -> None:
        before = path.read_bytes()

        state._private = {1, 2}
        state.__dict__["_other"] = 3

        assert state._private == {1, 2}
        assert path.read_bytes() == before
        assert on_disk() == {}
        assert "_private" not in state
        del state._private
        assert not hasattr(state, "_private")

    def test_an_underscore_key_in_the_file_is_no_attribute(self, path: Path) -> None:
        path.write_text("_key: 1\n_other: 2\n", encoding="utf-8")

        with PersistedState(path) as state:
            assert not hasattr(state, "_key")
            assert state["_key"] == 1
            state._key = 5
            assert state._key == 5
            assert state["_key"] == 1
            state["_key"] = 6
            assert state._key == 5
            check(state, path, {"_key": 6, "_other": 2})

    def test_only_underscore_names_are_options(self, path: Path) -> None:
        with pytest.raises(TypeError, match="_fsnyc"):
            PersistedState(path, _fsnyc=True)

        assert not path.exists()

    @pytest.mark.parametrize("name", METHODS)
    def test_a_method_name_is_no_attribute_to_assign(self, state: PersistedState, path: Path, name: str) -> None:
        before = path.read_bytes()

        with pytest.raises(AttributeError) as error:
            setattr(state, name, [1])

        assert f'use STATE["{name}"]' in str(error.value)
        assert path.read_bytes() == before
        assert callable(getattr(state, name))

    @pytest.mark.parametrize("name", METHODS)
    def test_a_method_name_is_no_default(self, path: Path, name: str) -> None:
        defaults: dict[str, Any] = {"good": 1, name: [1]}

        with pytest.raises(AttributeError) as error:
            PersistedState(path, **defaults)

        assert f'use STATE["{name}"]' in str(error.value)
        assert not path.exists()

    @pytest.mark.parametrize("name", METHODS)
    def test_a_method_name_works_by_item(self, state: PersistedState, path: Path, name: str) -> None:
        state[name] = [1]
        state[name].append(2)
        state[name] += [3]

        assert callable(getattr(state, name))
        assert callable(getattr(state, name))
        check(state, path, {name: [1, 2, 3]})
        with pytest.raises(AttributeError):
            delattr(state, name)
        assert state[name] == [1, 2, 3]
        del state[name]
        check(state, path, {})

    @pytest.mark.parametrize("name", METHODS)
    def test_a_method_name_in_the_file_works_by_item(self, path: Path, name: str) -> None:
        path.write_text(f"{name}:\n- 1\n", encoding="utf-8")

        with PersistedState(path, other=2) as state:
            assert callable(getattr(state, name))
            state[name].append(2)
            state.update({name: [3]})
            check(state, path, {name: [3], "other": 2})

        assert set(METHODS) <= set(dir(PersistedState))

    def test_names_of_mapping_and_of_object_stay_free(self, state: PersistedState, path: Path) -> None:
        """Few public names, because each one is taken from the user."""
        taken = {name for name in dir(PersistedState) if not name.startswith("_")}

        assert taken == set(METHODS)
        state.path, state.name, state.lock, state.data, state.append = 1, 2, 3, 4, 5
        check(state, path, {"path": 1, "name": 2, "lock": 3, "data": 4, "append": 5})

    def test_a_subclass_with_annotations_and_properties(self, path: Path) -> None:
        class Mine(PersistedState):
            last_id: int

            @property
            def double(self) -> int:
                return self.last_id * 2

        with Mine(path, last_id=4) as state:
            state.last_id += 1
            assert state.double == 10
            check(state, path, {"last_id": 5})


class TestDefaults:
    def test_defaults_are_set_only_where_the_key_is_absent(self, path: Path, on_disk: OnDisk) -> None:
        with PersistedState(path, a=1, b=[1]) as state:
            assert on_disk() == {"a": 1, "b": [1]}
            state.a = 2
            del state.b

        with PersistedState(path, a=9, b={"c": 3}, d=None) as state:
            check(state, path, {"a": 2, "b": {"c": 3}, "d": None})
            assert on_disk() == {"a": 2, "b": {"c": 3}, "d": None}

    def test_a_key_that_is_none_is_there(self, path: Path) -> None:
        path.write_text("a:\nb: null\n", encoding="utf-8")

        with PersistedState(path, a=1, b=1) as state:
            check(state, path, {"a": None, "b": None})

    def test_opening_what_lacks_nothing_writes_nothing(self, path: Path) -> None:
        path.write_text("# mine\nb: 0x10   # sixteen\na: [ 1,2 ]\n", encoding="utf-8")
        before, inode = path.read_bytes(), path.stat().st_ino

        with PersistedState(path, a=5, b=6) as state:
            assert path.read_bytes() == before
            assert state == {"b": 16, "a": [1, 2]}

        assert path.read_bytes() == before
        assert path.stat().st_ino == inode

    def test_a_default_may_be_called_path_or_self(self, path: Path) -> None:
        with PersistedState(path, path=1, self=2, defaults=3, state=4) as state:
            check(state, path, {"path": 1, "self": 2, "defaults": 3, "state": 4})


class TestTransactions:
    def test_a_transaction_is_one_record(self, state: PersistedState, path: Path, on_disk: OnDisk) -> None:
        state.a, state.d = [1], {"x": {}}
        before, bytes_before = records(path), path.read_bytes()

        with state.transaction():
            state.a.append(2)
            state.d["x"]["y"] = [3]
            state.d["x"]["y"].append(4)
            with state.transaction():
                state.new = 5
                del state.a[0]
            assert path.read_bytes() == bytes_before

        assert records(path) == before + 1
        check(state, path, {"a": [2], "d": {"x": {"y": [3, 4]}}, "new": 5})
        assert on_disk(reader="ruamel") == state

    def test_a_transaction_without_a_change_writes_nothing(self, state: PersistedState, path: Path) -> None:
        state.a = 1
        before = path.read_bytes()

        with state.transaction():
            assert state.a == 1

        assert path.read_bytes() == before

    def test_an_exception_rolls_everything_back(self, state: PersistedState, path: Path) -> None:
        start: dict[str, Any] = {"z": [3, [1], 2], "d": {"k": {"deep": [1]}, "b": 0}, "n": 1, "last": None}
        state.update(start)
        nodes = [state.z, state.z[1], state.d, state.d["k"], state.d["k"]["deep"]]
        before = path.read_bytes()

        with pytest.raises(ZeroDivisionError), state.transaction():
            state.z.sort(key=str)
            state.z[0:1] = []
            del state.d["k"]["deep"]
            state.d["k"]["other"] = nodes[4]
            state.d = state.d["k"]
            del state.n
            state.n = 2
            state.z.reverse()
            state.z *= 3
            with state.transaction():
                state.clear()
                state.update(z=5)
            raise ZeroDivisionError

        assert path.read_bytes() == before
        assert list(state) == ["z", "d", "n", "last"]
        assert [id(state.z), id(state.z[1]), id(state.d), id(state.d["k"]), id(state.d["k"]["deep"])] == list(
            map(id, nodes)
        )
        check(state, path, start)

    def test_nodes_write_again_after_a_rollback(self, state: PersistedState, path: Path) -> None:
        state.a, state.d = [[1]], {"x": {"y": []}}
        inner, deep = state.a[0], state.d["x"]["y"]

        with pytest.raises(ZeroDivisionError), state.transaction():
            del state.a[0]
            state.a.insert(0, 0)
            state.a.append(7)
            del state.d
            inner.append("lost")
            raise ZeroDivisionError
        inner.append(2)
        deep.append(3)

        check(state, path, {"a": [[1, 2]], "d": {"x": {"y": [3]}}})

    def test_nodes_made_in_a_failed_transaction_never_write(self, state: PersistedState, path: Path) -> None:
        state.a = []
        made: list[Any] = []

        with pytest.raises(ZeroDivisionError), state.transaction():
            state.a.append([1])
            state.new = {"x": []}
            made += [state.a[0], state.new, state.new["x"]]
            raise ZeroDivisionError
        before = path.read_bytes()
        made[0].append(2)
        made[1]["y"] = 1
        made[2].append(3)

        assert path.read_bytes() == before
        check(state, path, {"a": []})

    def test_a_file_after_a_rollback_takes_the_next_change(self, state: PersistedState, path: Path) -> None:
        state.a = 1

        with pytest.raises(ZeroDivisionError), state.transaction():
            state.a = 2
            raise ZeroDivisionError
        state.b = 3
        with state.transaction():
            state.a = 4

        check(state, path, {"a": 4, "b": 3})

    @pytest.mark.parametrize("remove", [
        lambda d: operator.delitem(d, True), lambda d: d.pop(1.0), lambda d: d.update({1.0: 6}), lambda d: d.clear(),
        lambda d: operator.setitem(d, True, []),
    ], ids=["del", "pop", "update", "clear", "set"])  # fmt: skip
    @places
    def test_a_rollback_brings_the_very_key_back(
        self, state: PersistedState, path: Path, place: Place, remove: Operation
    ) -> None:
        """The 1 that was there, not the True or the 1.0 that it was removed by; first, last, or in the middle."""
        for content in ({1: [5], 0: "zero"}, {0: "zero", 1: [5]}, {0: "zero", 1: [5], 2: "two"}):
            node = place(state, content)
            before = path.read_bytes()

            with pytest.raises(ZeroDivisionError), state.transaction():
                remove(node)
                raise ZeroDivisionError

            assert path.read_bytes() == before
            assert repr(node) == repr(content)
            check(state, path, plain(state))

    def test_base_exceptions_roll_back_too(self, state: PersistedState, path: Path) -> None:
        state.a = [1]

        with pytest.raises(KeyboardInterrupt), state.transaction():
            state.a.append(2)
            raise KeyboardInterrupt

        check(state, path, {"a": [1]})


class Scalar:
    """As numpy.int64 and numpy.bool_: no int, but equal to one, with its hash."""

    def __init__(self, value: int, kind: str = "i") -> None:
        self.value, self.dtype, self.shape = value, types.SimpleNamespace(kind=kind), ()
        if kind == "b":
            self.__class__ = Flag

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == other)

    def __index__(self) -> int:
        return self.value


class Flag(Scalar):
    __hash__ = Scalar.__hash__

    def __index__(self) -> int:
        raise TypeError("a flag is no index")

    def __bool__(self) -> bool:
        return bool(self.value)


class TestEqualKeys:
    """A key is found by any that is equal, and it is the first of equal ones that stays: in memory, file and record."""

    EQUAL: ClassVar = [Decimal(1), Fraction(1), Scalar(1), Scalar(1, "b"), True, 1.0, 1]

    @pytest.mark.parametrize("change", [
        lambda d, key: operator.setitem(d, key, "new"), lambda d, key: d.update({key: "new"}),
        lambda d, key: d.update([(key, "a"), (1, "new")]), lambda d, key: operator.ior(d, {key: "new"}),
        lambda d, key: d.setdefault(key, "new"), lambda d, key: operator.setitem(d, key, [{}]),
        lambda d, key: d.pop(key), lambda d, key: d.pop(key, None), operator.delitem,
        lambda d, key: (d.pop("z"), d.popitem(), d.get(key)), lambda d, key: d.get(key), lambda d, key: d[key],
    ], ids=[
        "set", "update", "update twice", "ior", "setdefault", "container", "pop", "pop default", "del", "popitem",
        "get", "item",
    ])  # fmt: skip
    @places
    def test_is_the_key_that_is_there(
        self, state: PersistedState, path: Path, place: Place, change: Callable[..., Any]
    ) -> None:
        for held, equal in itertools.product([1, True, 1.0], self.EQUAL):
            content = {"a": 0, held: {"x": 1}, "z": 2}
            node, expected = place(state, content), copy.deepcopy(content)

            assert unwrap(change(node, equal)) == change(expected, equal)

            assert repr(node) == repr(expected)
            check(state, path, plain(state))

    @pytest.mark.parametrize("equal", EQUAL, ids=lambda key: type(key).__name__)
    def test_record_names_the_key_that_is_there(self, state: PersistedState, path: Path, equal: Any) -> None:
        state.d = {True: [], 2: 0}

        state.d[equal] = [1]
        state.d[equal].append(2)
        state.d.update({equal: [3]})
        del state.d[equal]

        assert path.read_text(encoding="utf-8").splitlines()[-4:] == [
            '--- ["set",["d"],true,[1]]',
            '--- ["insert",["d",true],1,2]',
            '--- ["update",["d"],{true: [3]}]',
            '--- ["delete",["d"],true]',
        ]

    @pytest.mark.parametrize("key", [Decimal(1), Fraction(1), (1,), b"a", object()], ids=lambda key: type(key).__name__)
    @places
    def test_one_that_is_not_there(self, state: PersistedState, path: Path, place: Place, key: Any) -> None:
        """KeyError where it is looked for; where it is to be stored, the place."""
        node = place(state, {"1": 0})
        before = path.read_bytes()

        for look_up in (node.pop, node.__getitem__, node.__delitem__):
            with pytest.raises(KeyError) as missing:
                look_up(key)
            assert missing.value.args == (key,)
        assert node.pop(key, 5) == node.get(key, 5) == 5
        for store in (node.__setitem__, node.setdefault):
            with pytest.raises(TypeError, match=r"^STATE.*: .* is not storable as a key; use a str$"):
                store(key, 1)

        assert path.read_bytes() == before

    @places
    def test_numbers_of_others_become_plain(self, state: PersistedState, path: Path, place: Place) -> None:
        node = place(state, {})

        node[Scalar(3)] = "int"
        node[Scalar(0, "b")] = "bool"

        assert repr(node) == "{3: 'int', False: 'bool'}"
        check(state, path, plain(state))

    @pytest.mark.parametrize("key", [[1], {}, {1}], ids=repr)
    @places
    def test_without_a_hash(self, state: PersistedState, path: Path, place: Place, key: Any) -> None:
        node = place(state, {"a": 0})
        before = path.read_bytes()

        for use in (node.pop, node.get, node.__getitem__, node.__delitem__, lambda key: operator.setitem(node, key, 1)):
            with pytest.raises(TypeError, match="unhashable"):
                use(key)

        assert path.read_bytes() == before
