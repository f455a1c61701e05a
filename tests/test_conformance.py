"""CPython's own suites for lists and mappings, run on nodes inside a real state.

After every mutation that the suites make, the file (in the eyes of PyYAML) equals the memory. A test of CPython's that
cannot apply is overridden here, one by one, with the reason; where it fails on the way, it must fail for that reason.
"""

from __future__ import annotations

import functools
import tempfile
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import oracle
import pytest
from checks import SCRATCH, reopened

from persistedstate import PersistedState, StateDict, StateList, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

list_tests: Any = pytest.importorskip("test.list_tests", reason="this Python comes without its test package")
mapping_tests: Any = pytest.importorskip("test.mapping_tests", reason="this Python comes without its test package")

NOT_STORABLE = "is not storable"
MUTATORS: dict[type, tuple[str, ...]] = {
    StateList: ("__setitem__", "__delitem__", "__iadd__", "__imul__", "append", "extend", "insert", "pop", "remove",
                "clear", "sort", "reverse"),
    StateDict: ("__setitem__", "__delitem__", "__ior__", "pop", "popitem", "clear", "update", "setdefault"),
    PersistedState: ("__setitem__", "__delitem__", "__ior__", "pop", "popitem", "clear", "update", "setdefault"),
}  # fmt: skip
#: The faster of PyYAML's two readers, where it has both.
READER = oracle.FASTEST
#: The suites also make tens of thousands of mutations in a row: so many are all looked at, then one in a hundred.
ALL_OF_THE_FIRST = 300


class Follower:
    """The state in a file as PyYAML reads it, kept up by parsing only what was appended since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self.inode, self.size, self.value = path, 0, 0, {}  # type: tuple[Path, int, int, dict[Any, Any]]

    def read(self) -> dict[Any, Any]:
        with self.path.open("rb") as file:
            content, inode = file.read(), self.path.stat().st_ino
        if inode != self.inode or len(content) < self.size:
            self.value = oracle.read(self.path, READER)
        else:
            self.value = oracle.replay(self.value, list(oracle.READERS[READER](content[self.size :].decode())))
        self.inode, self.size = inode, len(content)
        return self.value


class Recorded(unittest.TestCase):
    """Gives nodes of a state, and compares its file with its memory after every mutation and at the end."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.followers: list[tuple[PersistedState, Follower]] = []
        self.mutations = self.nesting = 0
        for owner, names in MUTATORS.items():
            for name in names:
                patch = mock.patch.object(owner, name, self.recorded(getattr(owner, name)))
                patch.start()
                self.addCleanup(patch.stop)
        self.state = self.open()

    def tearDown(self) -> None:
        self.compare()
        for state, follower in self.followers:
            assert oracle.same(oracle.read(follower.path), plain(state))
            assert oracle.same(reopened(follower.path), plain(state))
            state.close()

    def open(self) -> PersistedState:
        path = self.folder / f"{len(self.followers)}.state"
        state = PersistedState(path)
        self.followers.append((state, Follower(path)))
        return state

    def recorded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.nesting += 1
            try:
                return method(*args, **kwargs)
            finally:
                self.nesting -= 1
                if not self.nesting:
                    self.mutations += 1
                    if self.mutations <= ALL_OF_THE_FIRST or self.mutations % 100 == 0:
                        self.compare(-2)  # the states that CPython's tests have in hand

        return wrapper

    def compare(self, first: int = 0) -> None:
        for state, follower in self.followers[first:]:
            assert oracle.same(follower.read(), plain(state)), "file and memory differ"

    def fresh(self, value: Any) -> Any:
        """Return a new node with that content, at a place of its own."""
        key = f"node {len(self.state)}"
        self.state[key] = {"here": [None, value]}
        return self.state[key]["here"][1]


class ListNodes(Recorded, list_tests.CommonTest):  # type: ignore[misc]
    def setUp(self) -> None:
        super().setUp()

        class Node:
            def __new__(cls, items: Iterable[Any] = (), /) -> Any:
                return self.fresh(list(items))

        self.type2test = Node

    def test_init(self) -> None:
        """Construction from the class: a node is made by storing it, and calling its __init__ again means nothing."""
        assert self.type2test() == self.type2test([])
        assert self.type2test(self.type2test([1])) == [1]

    def test_repr(self) -> None:
        """A list that holds itself: storing a node copies it, so there are no cycles."""
        node = self.type2test([0, 1, 2])
        node.append(node)
        node.append(3)
        assert repr(node) == str(node) == "[0, 1, 2, [0, 1, 2], 3]"
        assert repr(self.type2test()) == "[]"

    def test_repr_deep(self) -> None:
        """Deeper than 100 levels: refused when it is stored, so `repr` never meets it."""
        with pytest.raises(ValueError, match="100"):
            super().test_repr_deep()

    def test_copy(self) -> None:
        """Identity of stored objects: a copy of a node is plain and deep, not shallow."""
        node = self.type2test([1, 2, [3, 4], 5])
        copy = node.copy()
        assert copy == node
        assert copy[2] is not node[2]
        copy.append("i")
        assert node == [1, 2, [3, 4], 5]
        with pytest.raises(TypeError):
            node.copy(None)

    def test_remove(self) -> None:
        """Stores an object that equals everything; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_remove()

    def test_index(self) -> None:
        """Stores objects that equal everything, and one that empties the list; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_index()

    def test_count(self) -> None:
        """Stores objects that equal everything; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_count()

    def test_contains_fake(self) -> None:
        """Stores objects that equal everything; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_contains_fake()

    def test_contains_order(self) -> None:
        """Stores an object that raises when it is compared."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_contains_order()

    def test_free_after_iterating(self) -> None:
        """Construction from the class: subclasses of nodes cannot be stored, so `__del__` of one is never called."""
        iterator = iter(self.type2test())
        with pytest.raises(StopIteration):
            next(iterator)


class MappingNodes(Recorded, mapping_tests.TestHashMappingProtocol):  # type: ignore[misc]
    #: As CPython's, but with a list for the tuple: a tuple becomes a list.
    REFERENCE: ClassVar[dict[str, Any]] = {"1": "2", "key1": "value1", "key2": [1, 2, 3]}

    def _reference(self) -> dict[str, Any]:
        return self.REFERENCE

    def type2test(self, *args: Any, **kwargs: Any) -> Any:
        return self.fresh(dict(*args, **kwargs))

    def test_fromkeys(self) -> None:
        """Construction from the class: a node exists only inside a state."""
        self.skipTest("a node exists only inside a state")

    def test_copy(self) -> None:
        """The class of a copy: it is a plain dict."""
        node = self._full_mapping({1: 1, 2: 2, 3: 3})
        assert node.copy() == {1: 1, 2: 2, 3: 3}
        assert type(node.copy()) is dict
        with pytest.raises(TypeError):
            node.copy(None)

    def test_repr(self) -> None:
        """A dict that holds itself, and one with an object in it: storing a node copies it, and objects are refused."""
        node = self._empty_mapping()
        assert repr(node) == "{}"
        node[1] = 2
        assert repr(node) == "{1: 2}"
        node[1] = node
        assert repr(node) == "{1: {1: 2}}"

    def test_repr_deep(self) -> None:
        """Deeper than 100 levels: refused when it is stored, so `repr` never meets it."""
        with pytest.raises(ValueError, match="100"):
            super().test_repr_deep()

    def test_getitem(self) -> None:
        """Stores objects as keys; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_getitem()

    def test_pop(self) -> None:
        """Stores objects as keys; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_pop()

    def test_popitem(self) -> None:
        """Mappings of 1 to 2,048 entries, so that dicts of all sizes grow: ours grow by the same dict, in more time."""
        sizes = mock.patch.object(mapping_tests, "range", lambda count: range(7 if count == 12 else count), create=True)
        with sizes:
            super().test_popitem()

    def test_setdefault(self) -> None:
        """Stores objects as keys; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_setdefault()

    def test_eq(self) -> None:
        """Stores objects as keys; what comes before that passes."""
        with pytest.raises(TypeError, match=NOT_STORABLE):
            super().test_eq()


class MappingRoot(MappingNodes):
    """The same on whole states, each in a file of its own."""

    def type2test(self, *args: Any, **kwargs: Any) -> Any:
        root = self.open()
        if args or kwargs:
            root.update(*args, **kwargs)
        return root

    def test_repr_deep(self) -> None:
        """As above, without a file for each of a thousand levels."""
        root: Any = self.type2test()
        value: dict[int, Any] = {}
        for _ in range(150):
            value = {1: value}
        with pytest.raises(ValueError, match="100"):
            root[1] = value
