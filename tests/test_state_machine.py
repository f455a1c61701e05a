"""Suite H: random operations on a state and on plain containers; whatever happens in between, both are equal.

In between the state is closed and opened, its file vacuumed, copied, cut at any byte of the last record, saved by a
person and refused by the system. The machine also keeps some nodes in its hands, each with its plain counterpart. As
long as a node is in the tree, the counterpart is the object at the same place of the model; when it leaves the tree,
both live on outside it.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import yaml
from checks import SCRATCH, records, reopened, unwrap, without_facts
from editing import WAYS, Stage
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from oracle import same
from rounds import SHARE

import persistedstate
from persistedstate import PersistedState, plain

Operation = Callable[[Any], Any]

keys = st.sampled_from(["a", "b", "c", "a b", "no", "", "é", 1, 0, None, True, 2.5])
scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.5, -0.0, "x", "", "yes", "a: b", "\n", b"\0"])
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)
indexes = st.integers(-7, 7)
ends = st.none() | indexes
slices = st.builds(slice, ends, ends, st.sampled_from([None, 1, 1, 2, -1, -2, 3]))
pairs = st.dictionaries(keys, values, max_size=3)
lists = st.lists(values, max_size=3)

DICT_METHODS = ["set", "set", "set", "delete", "pop", "pop default", "popitem", "clear", "update", "update pairs",
                "update keywords", "|=", "setdefault", "add one"]  # fmt: skip
LIST_METHODS = ["set", "delete", "set slice", "delete slice", "append", "append", "append", "extend", "+=", "*=",
                "insert", "insert", "pop", "pop at", "remove", "sort", "sort reverse", "reverse", "clear",
                "add one"]  # fmt: skip


#: A key that only the person sets; a line of its own.
BY_HAND = "by hand"
#: The calls that a change makes, and what may come of them.
FAULTS = [("write", errno.ENOSPC), ("write", errno.EIO), ("write", errno.EFBIG), ("fsync", errno.EIO)]


class Faulty(Stage):
    """A stage whose next call of a name fails, without a trace or after a part of the bytes."""

    def fail_once(self, name: str, code: int, written: int) -> None:
        real = getattr(self._real, name)

        def fail(descriptor: int, *data: Any) -> Any:
            del self.__dict__[name]
            if data and written:
                real(descriptor, bytes(data[0])[:written], *data[1:])
            raise OSError(code, os.strerror(code))

        self.__dict__[name] = fail

    def heal(self) -> None:
        for name in ("write", "pwrite", "fsync"):
            self.__dict__.pop(name, None)


class Undo(Exception):  # noqa: N818 - it is no error
    """Raised to roll a transaction back."""


def dict_operation(  # noqa: PLR0911, PLR0912, C901 - one return a method
    draw: Callable[[Any], Any], methods: list[str] = DICT_METHODS
) -> Operation:
    """Draw an operation for a dict; it does the same to a node and to its model, with values of its own."""
    method, key = draw(st.sampled_from(methods)), draw(keys)
    match method:
        case "set":
            value = draw(values)
            return lambda x: x.__setitem__(key, copy.deepcopy(value))
        case "delete":
            return lambda x: x.__delitem__(key)
        case "pop":
            return lambda x: x.pop(key)
        case "pop default":
            return lambda x: x.pop(key, "default")
        case "popitem" | "clear":
            return lambda x: getattr(x, method)()
        case "update":
            items = draw(pairs)
            return lambda x: x.update(copy.deepcopy(items))
        case "update pairs":
            items = draw(pairs)
            return lambda x: x.update((k, copy.deepcopy(v)) for k, v in items.items())
        case "update keywords":
            items = draw(pairs)
            return lambda x: x.update({key: 0}, **{k: copy.deepcopy(v) for k, v in items.items() if type(k) is str})
        case "|=":
            items = draw(pairs)
            return lambda x: x.__ior__(copy.deepcopy(items))
        case "setdefault":
            value = draw(values)
            return lambda x: x.setdefault(key, copy.deepcopy(value))
        case _:
            return lambda x: x.__setitem__(key, x[key] + 1)


def list_operation(  # noqa: PLR0911, PLR0912, C901 - one return a method
    draw: Callable[[Any], Any], methods: list[str] = LIST_METHODS
) -> Operation:
    """Draw an operation for a list, likewise."""
    method, index = draw(st.sampled_from(methods)), draw(indexes)
    match method:
        case "set":
            value = draw(values)
            return lambda x: x.__setitem__(index, copy.deepcopy(value))
        case "delete":
            return lambda x: x.__delitem__(index)
        case "set slice":
            part, items = draw(slices), draw(lists)
            return lambda x: x.__setitem__(part, copy.deepcopy(items))
        case "delete slice":
            part = draw(slices)
            return lambda x: x.__delitem__(part)
        case "append":
            value = draw(values)
            return lambda x: x.append(copy.deepcopy(value))
        case "extend" | "+=":
            items, name = draw(lists), {"extend": "extend", "+=": "__iadd__"}[method]
            return lambda x: getattr(x, name)(copy.deepcopy(items))
        case "*=":
            return lambda x: multiply(x, min(index, 3)) if len(x) < 9 and small(x) else None
        case "insert":
            value = draw(values)
            return lambda x: x.insert(index, copy.deepcopy(value))
        case "pop at":
            return lambda x: x.pop(index)
        case "remove":
            value = draw(scalars)
            return lambda x: x.remove(value)
        case "sort" | "sort reverse":
            return lambda x: x.sort(key=repr, reverse=method == "sort reverse")
        case "pop" | "reverse" | "clear":
            return lambda x: getattr(x, method)()
        case _:
            return lambda x: x.__setitem__(index, x[index] + 1)


def multiply(items: Any, times: int) -> Any:
    """`items *= times`; in the plain list without one object in two places, which a file cannot hold."""
    if type(items) is not list:
        items *= times
        return items
    start = copy.deepcopy(items)
    items *= min(times, 1)
    for _ in range(times - 1):
        items += copy.deepcopy(start)
    return items


def small(value: Any) -> bool:
    return len(repr(value)) < 500


def containers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return every container in `value`, itself first, with its path."""
    found = [(path, value)]
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            found += containers(item, (*path, key))
    return found


def outcome(operation: Operation, target: Any) -> Any:
    """Return what the operation returns, in plain containers, or what it raises."""
    try:
        return copy.deepcopy(unwrap(operation(target)))
    except (LookupError, TypeError, ValueError) as error:
        return type(error), error.args if isinstance(error, KeyError) else ()


class Machine(RuleBasedStateMachine):
    #: What a person saved is merged before the change that notices it, not behind it.
    merges_first = False

    @initialize(defaults=st.dictionaries(st.sampled_from("abc"), values, max_size=3))
    def start(self, defaults: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.patch = pytest.MonkeyPatch()
        self.stage = Faulty(persistedstate._system)
        self.patch.setattr(persistedstate, "_system", self.stage)
        self.path = Path(self.folder.name) / "x.state"
        self.model: dict[Any, Any] = copy.deepcopy(defaults)
        self.held: list[tuple[Any, Any]] = []
        self.state = self.open(**defaults)
        self.number = 0

    def open(self, **defaults: Any) -> PersistedState:
        return PersistedState(self.path, **defaults)

    def part(self) -> None:
        """Let the file go, as whoever has it open."""
        self.state.close()
        self.held = []

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        try:
            self.look()
            self.state.close()
            assert same(oracle.read(self.path), self.model)
            assert {entry.name for entry in self.path.parent.iterdir()} == {"x.state"}
        finally:
            self.stage.heal()
            try:
                self.state.close()
            finally:
                self.patch.undo()
                self.folder.cleanup()

    @invariant()
    def memory_equals_the_model(self) -> None:
        if hasattr(self, "state"):
            assert same(plain(self.state), self.model)
            assert repr(self.state) == repr(self.model)
            for node, counterpart in self.held:
                assert node == counterpart
                assert repr(node) == repr(counterpart)

    # ---- Changes ----

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        before = records(self.path)
        inode = self.path.stat().st_ino

        self.step(data)

        if self.path.stat().st_ino == inode:
            assert records(self.path) <= before + 1

    @rule(data=st.data(), count=st.integers(1, 6))
    def changes(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.step(data)

    def step(self, data: st.DataObject, hand: Any = None) -> None:
        """Do one operation to one container, in the tree or held in hand, of the state and of the model.

        hand: the root of another one's tree, who holds nothing.
        """
        places, held = containers(self.model), self.held if hand is None else []
        choice = data.draw(st.integers(0, len(places) + len(held) - 1), label="container")
        if choice < len(places):
            node, model = self.at(places[choice][0], hand), places[choice][1]
        else:
            node, model = held[choice - len(places)]
        operation = (dict_operation if isinstance(model, dict) else list_operation)(data.draw)

        result, expected = outcome(operation, node), outcome(operation, model)

        assert same(result, expected), f"{result!r} instead of {expected!r}"

    def at(self, path: tuple[Any, ...], hand: Any = None) -> Any:
        node: Any = self.state if hand is None else hand
        for key in path:
            node = node[key]
        return node

    @rule(data=st.data(), key=keys)
    def store_a_node_in_itself(self, data: st.DataObject, key: Any) -> None:
        path, model = data.draw(st.sampled_from(containers(self.model)), label="container")
        node = self.at(path)
        if not small(model):
            return
        if isinstance(model, dict):
            node[key] = node
            model[key] = copy.deepcopy(model)
        else:
            node.append(node)
            model.append(copy.deepcopy(model))

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        places = containers(self.model)[1:]
        if places and len(self.held) < 4:
            path, counterpart = data.draw(st.sampled_from(places), label="container")
            self.held.append((self.at(path), counterpart))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=st.sampled_from("abc"))
    def store_a_held_node(self, data: st.DataObject, key: str) -> None:
        """Wherever it comes from, it is copied in; where it already is, nothing happens."""
        node, counterpart = data.draw(st.sampled_from(self.held))
        if not small(counterpart):
            return
        in_place = self.model.get(key) is counterpart
        before = self.path.read_bytes()

        setattr(self.state, key, node)

        assert not in_place or self.path.read_bytes() == before
        if not in_place:
            self.model[key] = copy.deepcopy(counterpart)

    @rule(data=st.data(), key=st.sampled_from("abc"), value=values)
    def attribute(self, data: st.DataObject, key: str, value: Any) -> None:
        setattr(self.state, key, value)
        self.model[key] = copy.deepcopy(value)
        if isinstance(value, dict | list):
            value.clear()  # it is the caller's
        if data.draw(st.booleans(), label="delete"):
            delattr(self.state, key)
            del self.model[key]

    # ---- Transactions ----

    @rule(data=st.data(), count=st.integers(0, 5), inner=st.integers(0, 4), undo=st.booleans())
    def transaction(self, data: st.DataObject, count: int, inner: int, undo: bool) -> None:
        before, inode = self.path.read_bytes(), self.path.stat().st_ino
        memory = [(item, copy.copy(item)) for _, item in containers(self.model)]
        nodes = [(path, self.at(path)) for path, _ in containers(self.model)]
        inside = {id(item) for item, _ in memory}

        try:
            with self.state.transaction():
                self.hold(data)
                for _ in range(count):
                    self.step(data)
                with self.state.transaction():
                    for _ in range(inner):
                        self.step(data)
                assert self.path.read_bytes() == before
                if undo:
                    raise Undo
        except Undo:
            for item, content in memory:
                item.clear()
                item.update(content) if isinstance(item, dict) else item.extend(content)
            assert self.path.read_bytes() == before
            assert all(self.at(path) is node for path, node in nodes)
            # What was outside the tree is nobody's to roll back.
            self.held = [pair for pair in self.held if id(pair[1]) in inside]
        else:
            if self.path.stat().st_ino == inode:
                added = without_facts(self.path.read_bytes()).count(b"\n--- ") - without_facts(before).count(b"\n--- ")
                assert added <= 1

    # ---- The file ----

    @rule()
    def vacuum(self) -> None:
        self.state.vacuum()
        assert records(self.path) == 0

    @rule()
    def reopen(self) -> None:
        self.state.close()
        self.held = []
        self.state = self.open(a=5)
        self.model.setdefault("a", 5)

    @rule()
    def crash(self) -> None:
        """Go on with a copy of the file, as if this process had died just now."""
        other = self.path.with_name("crash")
        shutil.copyfile(self.path, other)
        self.part()
        other.replace(self.path)
        self.state = self.open()

    @rule()
    def look(self) -> None:
        """The file of this moment, for us and for others."""
        assert same(reopened(self.path), self.model)
        assert same(oracle.read(self.path), self.model)
        if "libyaml" in oracle.READERS:
            assert same(oracle.read(self.path, "libyaml"), self.model)

    @rule(data=st.data(), value=values, key=st.sampled_from("abc"))
    def torn(self, data: st.DataObject, value: Any, key: str) -> None:
        """Die in the middle of a write: what was whole stays, what was begun is dropped and told."""
        before, inode = self.path.read_bytes(), self.path.stat().st_ino
        expected = copy.deepcopy(self.model)
        self.state[key] = [value]
        self.model[key] = [copy.deepcopy(value)]
        after = self.path.read_bytes()
        if self.path.stat().st_ino != inode:
            return
        assert after[: len(before)] == before
        begin = after.index(b"--- [", len(before))  # a newline may come first, where the last cut took one
        cut = data.draw(st.integers(len(before), len(after)), label="cut")
        if cut >= len(after) - 1:
            expected = self.model

        self.part()
        self.path.write_bytes(after[:cut])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.state = self.open()

        self.model = copy.deepcopy(expected)
        assert [warning.category for warning in caught] == [RuntimeWarning] * (begin < cut < len(after) - 1)

    # ---- Others ----

    @rule(way=st.sampled_from(list(WAYS)), how=st.sampled_from(["refresh", "vacuum", "change"]))
    def hand_edit(self, way: str, how: str) -> None:
        """A person sets a key that the script does not use; the journal lines in the text are old news."""
        self.edit_and_save(self.path.read_text(), way)
        if how == "change":
            self.stage.sleep(1)
            self.state["a"] = self.model["a"] = self.number
        else:
            getattr(self.state, how)()
        self.adopt_order()
        assert records(self.path) == (how == "change" and self.merges_first)

    @rule(data=st.data(), way=st.sampled_from(list(WAYS)), vacuum=st.booleans())
    def hand_edit_meanwhile(self, data: st.DataObject, way: str, vacuum: bool) -> None:
        """The same, while the script goes on between the reading and the saving."""
        if vacuum:
            self.state.vacuum()
        text = self.path.read_text()
        self.step(data)
        self.edit_and_save(text, way)
        self.state.refresh()
        self.adopt_order()

    def edit_and_save(self, text: str, way: str) -> None:
        self.number += 1
        self.model[BY_HAND] = self.number
        self.save(way, with_line(text, self.number))

    def save(self, way: str, text: str) -> None:
        self.stage.play(self.path, WAYS[way](self.path, text.encode()))
        self.stage.finish()

    def adopt_order(self) -> None:
        """Put the keys of the model where the person's line stands; all else keeps its order."""
        assert [key for key in self.state if key != BY_HAND] == [key for key in self.model if key != BY_HAND]
        ordered = {key: self.model[key] for key in self.state}
        self.model.clear()
        self.model.update(ordered)

    @rule(data=st.data(), fault=st.sampled_from(FAULTS), written=st.integers(0, 40))
    def refused(self, data: st.DataObject, fault: tuple[str, int], written: int) -> None:
        """The system refuses the write of one change; it has not happened then, and the next one works."""
        name, code = fault
        expected, memory = copy.deepcopy(self.model), copy.deepcopy(self.model)
        held = [copy.deepcopy(counterpart) for _, counterpart in self.held]
        self.stage.fail_once(name, code, written)
        try:
            self.state["a"] = [written]
        except OSError:
            pass
        else:
            expected["a"] = memory["a"] = [written]
        self.stage.heal()
        assert same(plain(self.state), expected)
        assert [counterpart for _, counterpart in self.held] == held
        if same(expected, self.model):
            assert same(reopened(self.path), expected)
        else:
            self.model["a"] = [written]
        self.step(data)

    @rule(
        code=st.sampled_from([errno.ENOSPC, errno.EIO]),
        written=st.integers(0, 40),
        call=st.sampled_from(["write", "fsync"]),
    )
    def refused_vacuum(self, code: int, written: int, call: str) -> None:
        """A vacuum that the system refuses costs nothing."""
        self.stage.fail_once(call, code, written)
        with contextlib.suppress(OSError):
            self.state.vacuum()
        self.stage.heal()
        self.look()


def with_line(text: str, number: int) -> str:
    """Set the person's key in the snapshot of a text, on its own line, and never in the same number of bytes.

    It stays where it is: whoever moves a key wants all keys in that order, also those that the script has moved.
    """
    head, separator, journal = text.partition("--- ")
    mine, lines = f"{BY_HAND}: {number}  # {'*' * number}\n", head.splitlines(keepends=True)
    if any(line.startswith(f"{BY_HAND}:") for line in lines):
        lines = [mine if line.startswith(f"{BY_HAND}:") else line for line in lines]
        return "".join([*lines, separator, journal])
    if lines and lines[-1].strip() and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if yaml.safe_load("".join(lines)) in ({}, None):
        lines = []
    return "".join([*lines, mine, separator, journal])


CI = settings(
    max_examples=max(1, round(300 * SHARE)),
    stateful_step_count=50,
    report_multiple_bugs=False,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
TestMachine = pytest.mark.timeout(600)(Machine.TestCase)  # it looks for a smaller example for up to five minutes
TestMachine.settings = CI


class _Campaign(Machine):
    pass


TestCampaign = pytest.mark.campaign(pytest.mark.timeout(0)(_Campaign.TestCase))
TestCampaign.settings = settings(CI, max_examples=20_000, stateful_step_count=100)
