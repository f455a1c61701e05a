"""Corners of the text section that few files have: what it does is right, even where it is not minimal."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from oracle import same

import persistedstate
from persistedstate import PersistedState, StateCorrupt, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = "k" * 1500

CHANGES: list[tuple[str, str, Callable[[Any], Any], dict[str, Any]]] = [
    ("a mapping below a long key", "a: 1\n", lambda s: s.update({LONG: {"x": [1]}}), {"a": 1, LONG: {"x": [1]}}),
    ("a list below a long key", "a: 1\n", lambda s: s.update({LONG: [{"x": 1}]}), {"a": 1, LONG: [{"x": 1}]}),
    ("old line ends", "a: 1\rb: 2\r", lambda s: s.update(a=3), {"a": 3, "b": 2}),
    ("nothing but a head", "%YAML 1.2\n---\n", lambda s: s.update(a=1), {"a": 1}),
    ("a merge at the top", "b: &b {x: 1}\n<<: *b\n", lambda s: s.update(x=2), {"x": 2, "b": {"x": 1}}),
    ("two keys on a line", "{a: 1, b: [1,\n2]}\n", lambda s: s.b.append(3), {"a": 1, "b": [1, 2, 3]}),
    ("an alias in flow", "a: &x 1\nb: [*x, 2]\n", lambda s: s.b.append(3), {"a": 1, "b": [1, 2, 3]}),
    ("an alias as a key", "a: &x k\nb:\n  *x : 1\n", lambda s: s.b.update(y=3), {"a": "k", "b": {"k": 1, "y": 3}}),
    ("an anchor on an empty value", "a: &x\nb: *x\n", lambda s: s.update(a=1), {"a": 1, "b": None}),
    ("two words below a dash", "a:\n-\n  x\n  y\n- z\n", lambda s: s.a.pop(), {"a": ["x y"]}),
    ("a container below comments", "a:   # k\n  x   # v\nb: 1\n", lambda s: s.update(a=[1]), {"a": [1], "b": 1}),
    ("a block in a ? key", "? a\n: - 1\n  - 2\nb: 1\n", lambda s: s.a.append(3), {"a": [1, 2, 3], "b": 1}),
    ("indented root", "  a: 1\n  b: 2\n", lambda s: s.update(b=3, c=4), {"a": 1, "b": 3, "c": 4}),
    ("a tag on its own line", "a: !!map\n  x: 1\nb: 2\n", lambda s: s.a.update(x=2), {"a": {"x": 2}, "b": 2}),
    ("null where a mapping was", "null\n", lambda s: s.update(a={"x": 1}), {"a": {"x": 1}}),
    ("tilde with a comment", "~  # nothing\n", lambda s: s.update(a=1), {"a": 1}),
    ("quoted over two lines", 'a: "x\n  y"\nb: 1\n', lambda s: s.update(a={"k": "v"}), {"a": {"k": "v"}, "b": 1}),
    ("half a flow style", "a: [1,\n]\nb: 1\n", lambda s: s.a.clear(), {"a": [], "b": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "change", "expected"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_change_of_an_unusual_file_is_right(
    path: Path, text: str, change: Callable[[Any], Any], expected: dict[str, Any]
) -> None:
    path.write_bytes(text.encode())

    with PersistedState(path) as state:
        change(state)

    with PersistedState(path) as state:
        assert plain(state) == expected
    assert oracle.read(path, "ruamel") == expected


def test_order_of_keys_that_went_and_came_back_is_that_of_the_dict(path: Path) -> None:
    path.write_text("a: 1  # A\nd:\n  x: 1  # X\n  y: 2\n")

    with PersistedState(path) as state:
        state.a = state.pop("a")
        state.d["x"] = state.d.pop("x")
        expected = plain(state)

    assert list(expected) == ["d", "a"]
    assert same(oracle.read(path), expected)


def test_snapshot_in_front_of_its_half_written_copy_opens(path: Path) -> None:
    """26.1 leaves this behind when it dies while it closes a file without records."""
    path.write_text("a: 1\nb: xa: 1\nb: ")

    with PersistedState(path) as state:
        assert plain(state) == {"a": 1, "b": "x"}

    assert oracle.read(path) == {"a": 1, "b": "x"}


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n...\nb: 2\n",
        "a: 1\nb:\n" + "".join(f"{' ' * depth}- \n" for depth in range(1, 200)),
        "a: 1\n--- [unclosed\n--- [1]\n",
        'a: "\\ud83d"\n',
        "".join(f"{' ' * depth}k:\n" for depth in range(1000)),
        'a: [1]\n--- ["splice",["a"],0,2,[]]\n',
        "a: 1\n--- 5\n",
        'a: 1\n--- ["set"]\n',
        'a: 1\n--- ["set",5,"a",1]\n',
        'a: 1\n--- ["set",["a"],"b",1]\n',
    ],
    ids=[
        "content behind ...",
        "deep",
        "unclosed",
        "surrogate",
        "deeper",
        "splice",
        "number",
        "short",
        "path",
        "no container",
    ],
)
def test_what_is_no_state_is_refused(path: Path, text: str) -> None:
    path.write_text(text)

    with pytest.raises(StateCorrupt):
        PersistedState(path)

    assert path.read_text() == text


def test_file_that_cannot_be_read_is_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> bytes:
        raise OSError(errno.EIO, "cannot be read")

    path.write_text("a: 1\n")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="cannot be read"):
        patch.setattr(persistedstate._System, "read", staticmethod(failing))
        PersistedState(path)

    PersistedState(path).close()


def test_leftovers_that_cannot_be_removed_are_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EACCES, "may not be removed")

    leftover = path.parent / f".{path.name}.123-0123abcd.tmp"
    leftover.write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(persistedstate._System, "unlink", staticmethod(failing))
        PersistedState(path, a=1).close()
    assert leftover.exists()

    PersistedState(path).close()
    assert not leftover.exists()


def test_file_that_somebody_deleted_is_written_anew(path: Path) -> None:
    state = PersistedState(path, a=1)
    path.unlink()

    with pytest.warns(RuntimeWarning, match="the file was removed"):
        state.a = 2

    assert oracle.read(path) == {"a": 2}
    state.close()
    assert oracle.read(path) == {"a": 2}
