"""Corners of the text section that few files have: what it does is right, even where it is not minimal."""

from __future__ import annotations

import contextlib
import copy
import errno
import inspect
import itertools
import sys
import warnings
from typing import TYPE_CHECKING, Any

import oracle
import pytest
import strict_reader
from checks import scratch
from editing import save, staged
from handwriting import Dice, hand_written
from oracle import same
from rounds import rounds
from test_style import banners
from textual import by_name, read

import persistedstate
from persistedstate import PersistedState, StateCorrupt, plain
from persistedstate_tools import commands
from persistedstate_tools.command_line import main
from persistedstate_tools.excerpts import read_state

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
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
    ("a block behind an old line end", "a: |\r  x\n    ", lambda s: s.update(b=1), {"a": "x\n  ", "b": 1}),
    ("an odd line end below a block", "a: |+\n  x\nb: 1\n\u2028\nc: 2\n", lambda s: s.pop("b"), {"a": "x\n", "c": 2}),
    ("a key below its mark", "? a\n: 1\n?\n  b\n: 2\n", lambda s: s.pop("a"), {"b": 2}),
    ("a nested key below its mark", "m:\n  ? a\n  : 1\n  ?\n    b\n  : 2\n", lambda s: s.m.pop("a"), {"m": {"b": 2}}),
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


@pytest.mark.leaves("comments")
@pytest.mark.parametrize(
    ("text", "gone"),
    [("# h\n\n\u2028# a\na: 1\nb: 2\n", "a"), ("t: |\r\n  x\r?\n  y\r\nb: 1\n", "t"), ("# a\rb: 1\nc: 2\n", "b")],
)
def test_odd_line_ends_never_make_a_file_unreadable(path: Path, text: str, gone: str) -> None:
    path.write_bytes(text.encode())
    state = PersistedState(path)
    state.pop(gone)
    expected = plain(state)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state.close()

    assert same(oracle.read(path, "ruamel"), expected)
    with PersistedState(path) as state:
        assert same(plain(state), expected)


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


# ---- Following edits -------------------------------------------------------------------------------------------------


def containers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, (dict, list)):
        yield path, value
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield from containers(item, (*path, key))


def edit(value: Any, chance: random.Random) -> tuple[Any, ...]:
    """Change a plain value somewhere; return what a document has to follow."""
    path, node = chance.choice(list(containers(value)))
    new = chance.choice([1, "two words", "l1\nl2\n", None, [1, [2]], {"x": {"z": 1}}, []])
    names = ["set", "update", "clear", "order"] if isinstance(node, dict) else ["insert", "splice", "clear", "order"]
    name = chance.choice([*names[:2] * 3, *names, *["set", "delete"] * (3 if node else 0)])
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    arguments: list[Any] = []
    if name in {"set", "update"}:
        key = chance.choice([*keys, *(["new", "other"] if isinstance(node, dict) else [])])
        node[key] = copy.deepcopy(new)
        arguments = [key, new] if name == "set" else [{key: new}]
    elif name == "delete":
        arguments = [chance.choice(keys)]
        del node[arguments[0]]
    elif name == "insert":
        arguments = [chance.randrange(len(node) + 1), new]
        node.insert(arguments[0], copy.deepcopy(new))
    elif name == "splice":
        start = chance.randrange(len(node) + 1)
        stop = chance.randrange(start, len(node) + 1)
        arguments = [start, stop, chance.choice([[], [new], node[start:stop][1:], [new, *node[start:stop]]])]
        node[start:stop] = copy.deepcopy(arguments[2])
    elif name == "order":
        chance.shuffle(keys)
        items = [(key, node[key]) for key in keys]
        node.clear()
        node.update(items) if isinstance(node, dict) else node.extend(item for _, item in items)
        arguments = [keys]
    else:
        node.clear()
    return (path, name, *arguments)


@rounds(ci=100, nightly=10_000)
def test_a_document_follows_edits_and_leaves_the_one_before_as_it_was(chance: random.Random, rounds: int) -> None:
    for number in range(rounds):
        data = hand_written(Dice(chance), knotted=number % 2 > 0).data
        document, value = persistedstate._Document.read(data.decode())
        for _ in range(4):
            before = document.text()
            for _ in range(chance.randrange(1, 12)):
                document.edits.append(edit(value, chance))
            doubtful = document.copied()
            doubtful.is_doubtful = True
            renewed = document.renewed(value)
            for found in (renewed, doubtful.renewed(value)):
                assert found.lost == {}
                assert same(persistedstate._Document.read(found.text())[1], value)
                assert same(by_name(read(found.text().encode())), by_name(value))
                strict_reader.assert_valid(data, found.text().encode(), value)
            assert document.text() == before
            document = renewed


# ---- Whatever is wrong with the section ------------------------------------------------------------------------------

#: What writing values plainly needs, and cannot do without: how a value is spelled, and a document to hold it.
FLOOR = {
    *["_block", "_write_block", "_write_entry", "_write_item", "_inline", "_is_plain", "_scalar", "_float"],
    *["_flow", "_flow_key", "_quote", "_escape", "_lines_above", "_Style.inset", "_plain", "_items_of"],
    *["_find_content", "_is_content"],
    *[
        "_Document.__init__",
        "_Document.text",
        "_Document.is_blank",
        "_Document.renewed",
        "_Document._renewed",
        "_Document.plain",
    ],
}
#: Files in which a change of every top-level value goes through most of the section.
ODD_FILES = [
    "# A\na: 1  # beside\nl:\n# one\n- x  # X\n- y: [1]\n\n- z\nm:\n  k: v\n  n: {p: 1}\n# end\n",
    "a: &x 0x1  # A\nl: [1, # one\n  2]\nm: {k: *x, t: !!str 5}\n? c\n: |\n  text\n  # text\nd: *x\n",
    '%YAML 1.1\n---\na: on\nl:\n- - 1\n  - 2\nm: "two\n  lines"\n...\n',
    '{"a": 1, "l": [1,\n2], "m": {"k": 1}}\n',
    "a: 1\r\nl: []\r\nm: |\r\n  unended",
    "# h\n\n\u2028# a\na: 1\nl: [1]  # L\n# m\rm: {k: 1}\n",
]


def text_functions() -> dict[str, tuple[Any, str]]:
    """Return by its name where each function of the section is found, and the name there."""
    start, end = (next(line for line, title in banners() if title == name) for name in ("Text", "Journal"))
    found: dict[str, tuple[Any, str]] = {}
    for owner in [persistedstate, *vars(persistedstate).values()]:
        prefix = "" if owner is persistedstate else f"{getattr(owner, '__name__', '')}."
        for name, member in vars(owner).items() if inspect.ismodule(owner) or inspect.isclass(owner) else ():
            function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))
            code = getattr(function, "__code__", None)
            if code and code.co_filename == persistedstate.__file__ and start < code.co_firstlineno < end:
                found[prefix + name] = (owner, name)
    return found


FUNCTIONS = text_functions()


@pytest.fixture(params=sorted(FUNCTIONS.keys() - FLOOR))
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """A function of the section raises what the first item of a list is, while there is one."""
    owner, name = FUNCTIONS[request.param]
    armed: list[Exception] = []
    member = inspect.getattr_static(owner, name)
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)

    def maybe(*arguments: Any, **options: Any) -> Any:
        if armed:
            raise armed[0]
        return function(*arguments, **options)

    kind = type(member) if isinstance(member, (staticmethod, classmethod, property)) else lambda function: function
    monkeypatch.setattr(owner, name, kind(maybe))
    yield armed
    armed.clear()


def change_everything(state: Any) -> None:
    for key, value in plain(state).items():
        if isinstance(value, list):
            state[key].append("new")
        elif isinstance(value, dict):
            state[key]["k"] = "new"
        else:
            state[key] = "new"


def vacuum(state: Any) -> None:
    state.vacuum()


def close(state: Any) -> None:
    state.close()


def change_with_a_vacuum(state: Any) -> None:
    state._tree.limit = 0
    state.update(more="x")
    assert state._tree.is_clean


LOOKS = [(vacuum, False), (close, True), (change_with_a_vacuum, False), (change_with_a_vacuum, True)]


@pytest.mark.leaves("comments")
def test_nothing_in_the_text_section_keeps_a_state_from_being_saved(
    failing: list[Exception], chance: random.Random
) -> None:
    """What fails is any function of the text section, and what meets it any look, by chance."""
    look, strict = chance.choice(LOOKS)
    for text, error in zip(ODD_FILES, itertools.cycle([RuntimeError("no"), IndexError("no"), RecursionError("no")])):
        with scratch() as path, warnings.catch_warnings(record=not strict) as caught:
            warnings.simplefilter("error" if strict else "always")
            path.write_bytes(text.encode())
            state = PersistedState(path)
            change_everything(state)
            expected = plain(state)
            failing.append(error)
            look(state)
            failing.clear()
            if look is not close:
                expected = plain(state)
                assert (expected["a"], "more" in expected) == ("new", look is change_with_a_vacuum)
            assert path.read_text().count("--- [") == 0
            assert same(oracle.read(path), expected), path.read_text()
            assert same(oracle.read(path, "ruamel"), expected)
            state.close()
        told = [str(warning.message) for warning in caught or ()]
        assert all(f"{path}: comments and formatting of the " in line for line in told)
        assert len(told) == len(set(told))


@pytest.mark.leaves("comments")
def test_show_shows_whatever_is_wrong_with_the_text_section(
    path: Path, failing: list[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def read_and_arm(name: str) -> Any:
        found = read_state(name)
        failing.append(IndexError("no"))
        return found

    monkeypatch.setattr(commands, "read_state", read_and_arm)
    for text in ODD_FILES:
        for place in [], ["l"], ["m"]:
            path.write_bytes(text.encode() + b'\n--- ["set",[],"a","new"]\n--- ["set",[],"m",{"x":[1]}]\n')
            expected = oracle.read(path, "ruamel")

            assert main(["show", str(path), *place]) == 0

            failing.clear()
            path.write_text(capsys.readouterr().out)
            shown = list(oracle.READERS["ruamel"](path.read_text()))
            assert same(shown, [expected[place[0]] if place else expected])


@pytest.mark.leaves("comments")
def test_no_save_of_a_person_is_lost_whatever_is_wrong_with_the_text_section(
    failing: list[Exception],
) -> None:
    for text in ODD_FILES[:3]:
        with scratch() as path, staged() as stage, warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            path.write_bytes(text.encode())
            state = PersistedState(path)
            stage.sleep(1)
            state["script"] = [1]
            save(path, text.replace("\n...\n", "\n") + "person: 2\n")

            failing.append(IndexError("no"))
            state.refresh()
            failing.clear()

            kept = list(path.parent.glob("*.edited-*"))
            assert plain(state)["script"] == [1]
            assert bool(kept) != ("person" in state)
            assert same(oracle.read(path, "ruamel"), plain(state))
            state.close()


@pytest.mark.leaves("comments")
def test_a_text_that_cannot_be_edited_keeps_the_comments_above_and_tells_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> str:
        raise RuntimeError("no")

    path.write_text("# head\n\n# A\na: 1  # beside\n# B\nb: {x: 1}  # C\nc: 0x3\n# foot\n")
    state = PersistedState(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monkeypatch.setattr(persistedstate._Part, "text", failing)
        for number in 2, 3:
            state.b["x"] = number
            state.vacuum()
        first = path.read_text()
        monkeypatch.setattr(persistedstate._Document, "_rewrite", failing)
        state.a = 2
        state.close()

    assert first == "# head\n\n# A\na: 1  # beside\n# B\nb:\n  x: 3\nc: 0x3\n# foot\n"
    assert path.read_text() == "# head\n\n# A\na: 2\n# B\nb:\n  x: 3\nc: 3\n# foot\n"
    assert [str(warning.message) for warning in caught] == [
        f"{path}: comments and formatting of {what} are lost, no values (RuntimeError('no'))"
        for what in ("the entry b", "the file")
    ]


def test_a_vacuum_deep_in_the_stack_keeps_comments(path: Path) -> None:
    def dive(frames: int) -> None:
        if frames:
            dive(frames - 1)
        else:
            state.vacuum()

    text = "".join(f"{'  ' * depth}k:  # {depth}\n" for depth in range(30)) + f"{'  ' * 30}k: [1, 2]  # 30\nn: 0\n"
    path.write_text(text)
    state = PersistedState(path)
    node = state.k
    while "k" in node["k"]:
        node = node["k"]
    vacuums = 0
    for room in range(20, 500, 20):
        state.n = room
        node["k"] = [room, 2]
        before = len(inspect.stack(0))
        with contextlib.suppress(RecursionError):
            dive(sys.getrecursionlimit() - before - room)
            vacuums += 1

    state.close()
    assert path.read_text() == text.replace("1, 2", "480, 2").replace("n: 0", "n: 480")
    assert vacuums > 12
