"""Files that are malformed, cut, or no files at all: refused clearly and left alone, or read as far as they go."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from checks import run_child
from processes import DROP_PRIVILEGES, listing
from rounds import rounds

import persistedstate
from persistedstate import PersistedState, StateCorrupt, StateLocked, plain

if TYPE_CHECKING:
    import random
    from pathlib import Path

VALID_RECORD = b'--- ["set",[],"later",1]\n'


@dataclass(frozen=True)
class Bad:
    """A malformed file, and the place that its error names: 1-based; a column of 0 stands for any in the line."""

    name: str
    data: bytes
    line: int
    column: int = 0
    last_line: int = 0

    @property
    def lines(self) -> range:
        """The lines that may be blamed; one where the fault has one place."""
        return range(self.line, max(self.line, self.last_line) + 1)


def cases(*bad: Bad) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bad", [pytest.param(each, id=each.name) for each in bad])


def check_refused(path: Path, bad: Bad, **options: Any) -> StateCorrupt:
    """Assert that the file is refused with a full error, keeps its bytes, and gets no company."""
    path.write_bytes(bad.data)
    before = path.stat()

    with pytest.raises(StateCorrupt) as caught:
        PersistedState(path, added=1, **options)

    error = caught.value
    assert path.read_bytes() == bad.data
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert listing(path.parent) == [path.name]
    check_place(error, path, bad)
    return error


def check_place(error: StateCorrupt, path: Path, bad: Bad) -> None:
    """Assert that the error names path, line, column and the line itself, as attributes and in its text."""
    assert os.fspath(error.path) == str(path)
    assert error.line in bad.lines
    line = re.split("\r\n|\n", bad.data.decode(errors="replace"))[error.line - 1]
    if bad.column:
        assert error.column == bad.column
    else:
        assert 1 <= error.column <= len(line) + 1
    message = str(error)
    assert str(path) in message
    if re.fullmatch(r"[ -~]+", line):
        assert len(line) > 120 or f"\n    {line}\n    {' ' * (error.column - 1)}^\n" in message
        assert error.text.strip(" .…")[:40] in line
        if len(line) < 80:
            assert error.text.rstrip("\r\n") == line
    numbers = re.findall(r"\d+", message.replace(str(path), "").partition(":")[2].partition("\n")[0])
    assert str(error.line) in numbers
    assert str(error.column) in numbers


# ---- A snapshot that is no state -------------------------------------------------------------------------------------


@cases(
    Bad("first level", b"a: 1\nb: 2\na: 3\n", 3, 1),
    Bad("nested", b"a:\n  x: 1\n  y: 2\n  x: 3\nb: 1\n", 4, 3),
    Bad("in a list", b"l:\n- x: 1\n  x: 2\n", 3, 3),
    Bad("quoted and plain", b"a: 1\n\"a\": 2\n'b': 3\n", 2, 1),
    Bad("flow", b"a: {x: 1, x: 2}\n", 1, 11),
    Bad("flow over lines", b"a: {x: 1,\n    y: [2],\n    x: 2}\n", 3, 5),
    Bad("question marks", b"? a\n: 1\n? a\n: 2\n", 3, 0, 4),
    Bad("int", b"1: a\n1: b\n", 2, 1),
    Bad("equal in Python", b"1: a\ntrue: b\n", 2, 1),
    Bad("null", b"null: a\n~: b\n", 2, 1),
    Bad("spelled with an escape", b'a: 1\n"\\x61": 2\n', 2, 1),
    Bad("below comments", b"# one\na: 1  # x\n\n# two\nb: 1\n# three\na: 1\n", 7, 1),
    Bad("containers", b"a:\n- 1\nb: 2\na:\n  c: 1\n", 4, 1),
    Bad("CRLF", b"a: 1\r\nb: 2\r\na: 3\r\n", 3, 1),
    Bad("byte order mark", b"\xef\xbb\xbfa: 1\nb: 2\na: 3\n", 3, 1),
    Bad("below a head", b"%YAML 1.2\n---\na: 1\nb: 2\na: 3\n", 5, 1),
    Bad("far down", b"".join(b"k%d: 1\n" % i for i in range(3000)) + b"k7: 2\n", 3001, 1),
    Bad("in a replacing document", b"a: 1\n---\nb: 1\nb: 2\n", 4, 1),
    Bad("no final newline", b"a: 1\na: 2", 2, 1),
)
def test_duplicate_keys_are_refused(path: Path, bad: Bad) -> None:
    check_refused(path, bad)


@cases(
    Bad("list", b"- a\n- b\n", 1, 1),
    Bad("list below a comment", b"# jobs\n- a\n", 2, 1),
    Bad("flow list", b"[1, 2]\n", 1, 1),
    Bad("word", b"hello\n", 1, 1),
    Bad("two lines of words", b"hello\nworld\n", 1, 1),
    Bad("number", b"42\n", 1, 1),
    Bad("quoted", b'"a: 1"\n', 1, 1),
    Bad("false", b"false\n", 1, 1),
    Bad("empty string", b"''\n", 1, 1),
    Bad("block scalar", b"|\n  a: 1\n", 1, 1),
    Bad("list below a head", b"---\n- a\n", 2, 1),
    Bad("list, then a record", b"- a\n" + VALID_RECORD, 1, 1),
)
def test_a_list_or_a_scalar_at_the_top_is_refused(path: Path, bad: Bad) -> None:
    check_refused(path, bad)


@cases(
    Bad("in the middle", b"a: 1\nretry 5\nb: 2\n", 2, 1),
    Bad("in the first line", b"retry 5\nb: 2\n", 1, 1),
    Bad("in the last line", b"a: 1\nretry 5\n", 2, 1),
    Bad("above a blank line and a comment", b"a: 1\nretry\n\n# b\nb: 2\n", 2, 1),
    Bad("above a mapping", b"a: 1\nb\n  c: 2\n", 2, 1),
    Bad("above a list", b"a: 1\nb\n- x\n", 2, 1),
    Bad("below a key", b"a: 1\nb:\n  retry 5\n  c: 2\n", 3, 3),
    Bad("below a key and comments", b"b:   # why\n\n  # how often\n  retry 5\n  c: 2\n", 4, 3),
    Bad("in two lines", b"b:\n  retry 5\n  wait 1\n  c: 2\n", 2, 3),
    Bad("nested, in the middle", b"b:\n  c: 2\n  retry 5\n  d: 2\n", 3, 3),
    Bad("in an item", b"l:\n- name: a\n  n: 1\n- name b\n  n: 2\n", 4, 1),
    Bad("above a list below a key", b"b:\n  retry\n  - c: 2\n", 2, 3),
    Bad("in an item, above items", b"l:\n- a\n- retry\n  - x\n  n: 1\n", 3, 1),
    Bad("below a key, above a comment", b"b:\n  retry 5\n  # c\n  c: 2\n", 2, 3),
    Bad("in the first line, above a comment", b"# b\nretry 5\n# c\nc: 2\n", 2, 1),
    Bad("behind a quoted key", b'a: 1\n"b" 2\nc: 3\n', 2, 1),
    Bad("CRLF", b"a: 1\r\nretry 5\r\nb: 2\r\n", 2, 1),
    Bad("below a head", b"---\nretry 5\nb: 2\n", 2, 1),
)
def test_a_missing_colon_is_told_where_it_is_missing(path: Path, bad: Bad) -> None:
    """Not in the line below, where YAML readers notice it."""
    assert check_refused(path, bad).reason == "a colon is missing (key: value)"


def write_keys(chance: random.Random, column: int, lines: list[str]) -> None:
    """Write a random mapping in block style, with comments."""
    margin = " " * column
    for key in chance.sample(["alpha", "beta", "gamma", "delta"], chance.randint(1, 3)):
        lines += [f"{margin}# about {key}"] * (chance.random() < 0.2)
        kind = chance.randrange(3) if column < 6 else 0
        lines.append(f"{margin}{key}:" + (chance.choice([" 1", " two words", " [a, b]", " 'q'"]) if not kind else ""))
        if kind == 1:
            write_keys(chance, column + 2, lines)
        for _ in range(chance.randint(1, 3) if kind == 2 else 0):
            item = ["    item"] if chance.random() < 0.5 else []
            if not item:
                write_keys(chance, column + 2, item)
            item = [line for line in item if "#" not in line]
            lines += [f"{margin}- {item[0].strip()}", *item[1:]]


@rounds(ci=500, nightly=20_000)
def test_a_colon_that_is_missing_anywhere_is_told_there(chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        lines: list[str] = []
        write_keys(chance, 0, lines)
        number = chance.choice([number for number, line in enumerate(lines) if ":" in line])
        lines[number] = lines[number].replace(":", "", 1)
        text = "".join(f"{line}\n" for line in lines)
        with contextlib.suppress(persistedstate._BadText):  # some are another file, without a fault
            persistedstate._Document.read(text)
            continue
        with pytest.raises(StateCorrupt, match=r"colon is missing|must be a mapping") as caught:
            persistedstate._parsed("", text.encode())
        assert caught.value.line == number + 1, text


@cases(
    Bad("a value and lines below it", b"url: x\n  y: 2\n", 2, 3),
    Bad("a value of several lines", b"text: this is\n  long\n  b: 2\n", 3, 3),
)
def test_an_entry_below_a_value_is_told_where_it_is(path: Path, bad: Bad) -> None:
    assert check_refused(path, bad).reason == "indented deeper than line 1, which has a value already"


def test_what_to_do_is_told(path: Path) -> None:
    error = check_refused(path, Bad("", b"a: 1\nretry 5\nb: 2\n", 2, 1))

    assert str(error) == (
        f"{path}: line 2, column 1: a colon is missing (key: value)\n    retry 5\n    ^\n"
        "mend it in an editor, or see `persistedstate check FILE` and `persistedstate repair FILE`"
    )


@cases(
    Bad("tab as indentation", b"a:\n\tb: 1\n", 2, 1),
    Bad("tab below spaces", b"a: 1\n\tb: 2\n", 2),
    Bad("tab in a list", b"l:\n\t- 1\n", 2, 1),
    Bad("double quote", b'a: "xyz\nb: 1\n', 1, 0, 2),
    Bad("single quote", b"b: 1\na: 'xyz\n", 2),
    Bad("quote in the middle", b'a: 1\nb: "x" y\nc: 3\n', 2),
    Bad("unknown escape", b'a: 1\nb: "\\q"\n', 2, 0),
    Bad("bracket", b"a: [1, 2\nb: 3\n", 1, 0, 2),
    Bad("brace", b"b: 1\na: {b: 1\n", 2),
    Bad("closing bracket", b"b: 1\na: ]\n", 2, 4),
    Bad("bracket too many", b"a: [1, 2]]\n", 1, 10),
    Bad("wrong closer", b"a: [1, 2}\n", 1, 9),
    Bad("deeper without a parent", b"a: 1\n  b: 2\n", 2),
    Bad("shallower than the block", b"a:\n    b: 1\n  c: 2\n", 3, 3),
    Bad("item among keys", b"a: 1\n- b\nc: 2\n", 2, 1),
    Bad("key among items", b"l:\n- a\nb: 1\n- c\n", 4, 1),
    Bad("word among keys", b"a: 1\nb\nc: 2\n", 2, 0, 3),
    Bad("two colons", b"a: b: c\n", 1, 5),
    Bad("reserved sign", b"a: 1\nb: @x\n", 2, 4),
    Bad("backtick", b"a: `x\n", 1, 4),
    Bad("undefined alias", b"a: 1\nb: *nope\n", 2, 4),
    Bad("alias of itself", b"a: &x [*x]\n", 1),
    Bad("alias of its mapping", b"b: 1\na: &x\n  y: *x\n", 2, 0, 3),
    Bad("list as key", b"? [1, 2]\n: x\n", 1),
    Bad("mapping as key", b"b: 1\n{a: 1}: x\n", 2),
    Bad("not a number as key", b"b: 1\n.nan: x\n", 2, 1),
    Bad("lone surrogate", b'b: 1\na: "\\ud800"\n', 2),
    Bad("broken base64", b'b: 1\na: !!binary "a"\n', 2),
    Bad("tagged as an int", b"b: 1\na: !!int x\n", 2),
    Bad("tagged as a mapping", b"b: 1\na: !!map x\n", 2),
    Bad("below CRLF", b"a: 1\r\nb: ]\r\n", 2, 4),
    Bad("behind a byte order mark", b"\xef\xbb\xbfa: ]\n", 1, 4),
    Bad("below other letters", "ключ: 日本\nb: ]\n".encode(), 2, 4),
    Bad("behind other letters", "ключ: ]\n".encode(), 1, 7),
    Bad("behind an emoji", 'k: ["😀", }\n'.encode(), 1, 10),
    Bad("below a valid half", b"a: 1\nb:\n- x\nc: ]\nd: 1\n", 4, 4),
)
def test_malformed_yaml_is_refused(path: Path, bad: Bad) -> None:
    check_refused(path, bad)


@cases(
    Bad("Latin-1", b"a: caf\xe9\n", 1, 7),
    Bad("second line", b"a: 1\nb: \xff\xfe\n", 2, 4),
    Bad("in a comment", b"a: 1\n# \xe9\n", 2, 3),
    Bad("cut character, then more", b"a: \xf0\x9f\x98\nb: 1\n", 1, 4),
    Bad("surrogate as UTF-8", b"a: \xed\xa0\x80\n", 1, 4),
    Bad("overlong", b"a: \xc0\xaf\n", 1, 4),
    Bad("behind other letters", "é: ".encode() + b"\xff\n", 1, 4),
    Bad("before a record", b"a: \xff\n" + VALID_RECORD, 1, 4),
    Bad("in a record", b'a: 1\n--- ["set",[],"b","\xff"]\n' + VALID_RECORD, 2, 20),
    Bad("UTF-16 with a mark", "a: 1\n".encode("utf-16"), 1, 1),
    Bad("NUL in the middle", b"a: 1\nb: x\0y\nc: 3\n", 2, 5),
    Bad("NUL in a comment", b"# \0\na: 1\n", 1, 3),
    Bad("hole of NULs", b"a: 1\nb: " + b"\0" * 4096 + b"\nc: 3\n", 2, 4),
    Bad("hole of NULs before a record", b"a: 1\n" + b"\0" * 512 + b"\n" + VALID_RECORD, 2, 1),
    Bad("control character", b"a: 1\nb: x\x01y\n", 2, 5),
    Bad("control character in quotes", b'a: 1\nb: "x\x07y"\n', 2, 6),
    Bad("escape in a comment", b"a: 1  # \x1b[1m\n", 1, 9),
    Bad("control character in a key", b"a\x02: 1\n", 1, 2),
    Bad("DEL", b"a: x\x7fy\n", 1, 5),
    Bad("C1", b"a: x\xc2\x80y\n", 1, 5),
    Bad("U+FFFE", b"a: x\xef\xbf\xbey\n", 1, 5),
    Bad("control character in a block", b"a: |\n  x\n  y\x03\nb: 1\n", 3, 4),
)
def test_bytes_that_are_no_text_are_refused(path: Path, bad: Bad) -> None:
    check_refused(path, bad)


def test_utf_16_without_a_mark_is_refused(path: Path) -> None:
    path.write_bytes("a: 1\nb: 2\n".encode("utf-16-le"))

    with pytest.raises(StateCorrupt):
        PersistedState(path)

    assert path.read_bytes() == "a: 1\nb: 2\n".encode("utf-16-le")


@pytest.mark.parametrize(
    "value",
    ["2024-13-45", "2024-02-30", "2001-01-01 25:00:00", "0o8", "0x", "9999-12-31T23:59:59-14:00", "9" * 5000],
)
@pytest.mark.parametrize("before", ["a: ", "a: [", "- "], ids=["plain", "flow", "list"])
def test_a_scalar_that_only_looks_like_a_value_is_a_value_or_a_clear_error(path: Path, before: str, value: str) -> None:
    """Dates and numbers that cannot be: no bare ValueError from the conversion may come out."""
    after = "]\n" if before.endswith("[") else "\n"
    data = f"x: 1\nl:\n{before}{value}{after}" if before == "- " else f"x: 1\n\n{before}{value}{after}"
    path.write_text(data)

    try:
        state = PersistedState(path)
    except StateCorrupt as error:
        check_place(error, path, Bad("", data.encode(), 3))
    else:
        with state:
            assert plain(state)["x"] == 1

    assert path.read_text() == data


# ---- Tags ------------------------------------------------------------------------------------------------------------


@cases(
    Bad("custom", b"b: 1\na: !custom x\n", 2),
    Bad("custom mapping", b"b: 1\na: !custom {x: 1}\n", 2),
    Bad("custom block", b"b: 1\na: !custom\n  x: 1\n", 2, 0, 3),
    Bad("custom in a list", b"l:\n- !custom x\n", 2),
    Bad("custom root", b"!custom\na: 1\n", 1, 0, 2),
    Bad("custom key", b"!custom a: 1\n", 1),
    Bad("set", b"b: 1\na: !!set {x, y}\n", 2),
    Bad("omap", b"b: 1\na: !!omap [x: 1]\n", 2),
    Bad("pairs", b"b: 1\na: !!pairs [x: 1]\n", 2),
    Bad("python tuple", b"b: 1\na: !!python/tuple [1, 2]\n", 2),
    Bad("python name", b"b: 1\na: !!python/name:os.system\n", 2),
    Bad("full tag", b"b: 1\na: !<tag:example.com,2000:x> y\n", 2),
    Bad("in a record", b'a: 1\n--- ["set",[],"b",!custom x]\n' + VALID_RECORD, 2),
    Bad("undefined handle", b"b: 1\na: !e!x y\n", 2),
)
def test_tags_are_refused(path: Path, bad: Bad) -> None:
    check_refused(path, bad)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [{marker}]\n",
        "a: !!python/object/new:os.mkdir [{marker}]\n",
        "!!python/object/apply:os.mkdir [{marker}]\n",
        "a: 1\n!!python/object/apply:os.mkdir [{marker}]: 2\n",
        "a: !!python/object/apply:os.system ['mkdir {marker}']\n",
        "a: !!python/module:state_trap\n",
        "a: !!python/name:state_trap.x\n",
        "a: !!python/object:state_trap.X {{}}\n",
        'a: 1\n--- ["set",[],"b",!!python/object/apply:os.mkdir ["{marker}"]]\n',
        "a: 1\n--- !!python/object/apply:os.mkdir [{marker}]\n",
    ],
)
def test_no_tag_imports_or_calls_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    marker, path = tmp_path / "made", tmp_path / "x.state"
    (tmp_path / "state_trap.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text(text.format(marker=marker) + VALID_RECORD.decode())

    with pytest.raises(StateCorrupt):
        PersistedState(path)

    assert not marker.exists()
    assert "state_trap" not in sys.modules


# ---- Files made to hurt ----------------------------------------------------------------------------------------------

#: Opens the file of the first argument with little memory, and prints what came of it.
OPEN_WITH_LITTLE_MEMORY = """
    import resource, sys
    from persistedstate import PersistedState, StateCorrupt, plain
    import ruamel.yaml

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    try:
        with PersistedState(sys.argv[1]) as state:
            print("opened", list(plain(state)))
    except StateCorrupt as error:
        print("refused", error.line)
"""


def alias_bomb(levels: int, width: int = 9) -> str:
    """Return a text of a few hundred bytes that stands for `width ** levels` items."""
    rows = [f"k0: &a0 [{', '.join(['x'] * width)}]\n"]
    rows += [f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, levels)]
    return "".join(rows)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(alias_bomb(9), id="lists"),
        pytest.param(alias_bomb(25), id="lists without end"),
        pytest.param(
            "k0: &a0 {x: 1, y: 2}\n"
            + "".join(f"k{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}, z: *a{i - 1}}}\n" for i in range(1, 30)),
            id="mappings",
        ),
        pytest.param(
            'a: 1\n--- ["set",[],"b",[&a0 [1,1,1],'
            + ",".join(f"&a{i} [*a{i - 1},*a{i - 1},*a{i - 1}]" for i in range(1, 40))
            + "]]\n"
            + VALID_RECORD.decode(),
            id="in a record",
        ),
    ],
)
def test_an_alias_bomb_is_refused_in_bounded_time_and_memory(path: Path, text: str) -> None:
    path.write_text(text)

    answer = run_child(OPEN_WITH_LITTLE_MEMORY, path)

    assert answer.startswith("refused"), answer
    assert path.read_text() == text


def test_merge_keys_that_repeat_are_no_trap(path: Path) -> None:
    """Nine merges of one mapping are still one mapping; read or refused, it takes no time."""
    rows = ["k0: &a0 {x: 1}\n"]
    rows += [f"k{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)]
    path.write_text("".join(rows))

    answer = run_child(OPEN_WITH_LITTLE_MEMORY, path)

    assert answer.split()[0] in {"opened", "refused"}


def test_aliases_of_ordinary_size_are_no_bomb(path: Path) -> None:
    path.write_text(f"base: &b [{', '.join(map(str, range(100)))}]\n" + "".join(f"u{i}: *b\n" for i in range(100)))

    with PersistedState(path) as state:
        assert state.u99 == list(range(100))
        state.u99.append(100)
        assert state.u98 == list(range(100))


def nested_block(levels: int) -> bytes:
    return b"".join(b" " * i + b"k:\n" for i in range(levels)) + b" " * levels + b"k: 1\n"


@cases(
    Bad("block", nested_block(300), 1, 0, 301),
    Bad("block lists", b"k: 1\nl:\n" + b"- " * 300 + b"1\n", 3),
    Bad("flow", b"k: 1\na: " + b"[" * 300 + b"]" * 300 + b"\n", 2),
    Bad("flow mappings", b"k: 1\na: " + b"{a: " * 300 + b"1" + b"}" * 300 + b"\n", 2),
    Bad("record", b'k: 1\n--- ["set",[],"a",' + b"[" * 300 + b"]" * 300 + b"]\n", 2),
    Bad("record of mappings", b'k: 1\n--- ["set",[],"a",' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"]\n", 2),
    Bad("record of YAML", b'k: 1\n--- ["set",[],"a",' + b"[" * 300 + b".nan" + b"]" * 300 + b"]\n", 2),
    Bad("never closed", b"k: 1\na: " + b"[" * 20_000 + b"\n", 2),
    Bad(
        "record, more than the stack holds",
        b'k: 1\n--- ["set",[],"a",' + b"[" * 100_000 + b"]" * 100_000 + b"]\n" + VALID_RECORD,
        2,
    ),
    Bad("transactions in transactions", b"k: 1\n--- " + b'["transaction",[' * 300 + b"]]" * 300 + b"\n", 2),
)
def test_nesting_without_end_is_refused(path: Path, bad: Bad) -> None:
    check_refused(path, bad)


@pytest.mark.parametrize(
    "data",
    [
        nested_block(90),
        b"a: " + b"[" * 90 + b"]" * 90 + b"\n",
        b'k: 1\n--- ["set",[],"a",' + b"[" * 90 + b"]" * 90 + b"]\n",
    ],
    ids=["block", "flow", "record"],
)
def test_ninety_levels_are_fine(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    with PersistedState(path) as state:
        depth, node = 0, plain(state)
        while isinstance(node, dict | list) and node:
            depth, node = depth + 1, node["a" if "a" in node else "k"] if isinstance(node, dict) else node[0]

    assert depth >= 90


# ---- Damaged records -------------------------------------------------------------------------------------------------

STATE = b"a: 1\nl:\n- x\n- y\nd:\n  k: 1\n"

RECORDS_THAT_CANNOT_BE = [
    '["set",["nope"],"c",1]',
    '["set",["d","nope"],"c",1]',
    '["set",["a"],"c",1]',
    '["set",["l",0],"c",1]',
    '["set",["l",7],"c",1]',
    '["set",["l","x"],"c",1]',
    '["set",["l"],2,1]',
    '["set",["l"],-3,1]',
    '["set",["l"],"x",1]',
    '["set",["l"],0.5,1]',
    '["set",[],[1],2]',
    '["set",[],{"a":1},2]',
    '["set",[[1]],"a",2]',
    '["set","a","b",1]',
    '["set",null,"b",1]',
    '["set",[],"b"]',
    '["set",[],"b",1,2]',
    '["set"]',
    '["delete",[],"nope"]',
    '["delete",["d"],"nope"]',
    '["delete",["l"],2]',
    '["delete",["l"],-3]',
    '["delete",["l"],"x"]',
    '["delete",["nope"],"x"]',
    '["delete",[]]',
    '["delete",[],"a",1]',
    '["insert",["l"],"x",1]',
    '["insert",["l"],null,1]',
    '["insert",["l"],1.0,1]',
    '["insert",["l"],0]',
    '["insert",[],0,1]',
    '["insert",["d"],0,1]',
    '["insert",["nope"],0,1]',
    '["clear"]',
    '["clear",["a"]]',
    '["clear",["nope"]]',
    '["clear",["l"],1]',
    '["update",["d"]]',
    '["update",["d"],[1]]',
    '["update",["d"],1]',
    '["update",["l"],{"a":1}]',
    '["update",["nope"],{"a":1}]',
    '["splice",["l"],0,1]',
    '["splice",["l"],0,1,5]',
    '["splice",["l"],0,1,{"a":1}]',
    '["splice",["l"],"a",1,[]]',
    '["splice",["l"],0,3,[]]',
    '["splice",["l"],2,1,[]]',
    '["splice",["l"],-1,2,[]]',
    '["splice",["d"],0,1,[]]',
    '["order",["l"]]',
    '["order",["l"],[0,2]]',
    '["order",["l"],["a"]]',
    '["order",["l"],1]',
    '["order",["d"],[0]]',
    '["transaction"]',
    '["transaction",5]',
    '["transaction",[["set"]]]',
    '["transaction",[["set",[],"b",1],["nope",[],1]]]',
    '["transaction",[["set",[],"b",1],["delete",[],"nope"]]]',
    '["transaction",[5]]',
    '["transaction",{"a":1}]',
    '["frobnicate",[],"a",1]',
    '["",[],"a",1]',
    '["SET",[],"a",1]',
    '["__class__",[],"a",1]',
    '["_apply",[],"a",1]',
    '["pop",["l"]]',
    '[1,[],"a",1]',
    '[null,[],"a",1]',
    '[["set"],[],"a",1]',
    "[]",
    "5",
    '"set"',
    '["set",[],"b",{"x":1,"x":2}]',
    '["set",[],"b",{"x":{"y":1,"y":.nan}}]',
    '["set",[],"b","\\ud800"]',
]


@pytest.mark.parametrize("after", [b"", VALID_RECORD], ids=["last", "then more"])
@pytest.mark.parametrize("record", RECORDS_THAT_CANNOT_BE)
def test_a_record_that_cannot_be_applied_is_refused(path: Path, record: str, after: bytes) -> None:
    data = STATE + VALID_RECORD + b"--- " + record.encode() + b"\n" + after

    check_refused(path, Bad(record, data, 8))


@pytest.mark.parametrize("record", ["5", "text", "true"])
def test_what_is_no_record_is_refused_behind_one_that_tells_of_the_snapshot(path: Path, record: str) -> None:
    data = b'a: 1\n--- ["was",["a"],1]\n--- ["set",[],"a",2]\n--- ' + record.encode() + b"\n"

    check_refused(path, Bad(record, data, 4))


def test_a_record_that_fails_half_way_leaves_no_trace_for_the_next_opening(path: Path) -> None:
    path.write_bytes(STATE + b'--- ["transaction",[["set",[],"b",1],["delete",[],"nope"]]]\n')

    with pytest.raises(StateCorrupt):
        PersistedState(path)
    path.write_bytes(STATE)
    with PersistedState(path) as state:
        assert plain(state) == {"a": 1, "l": ["x", "y"], "d": {"k": 1}}


JOURNAL = [
    b'--- ["set",[],"a",2]\n',
    b'--- ["insert",["l"],1,"z"]\n',
    b'--- ["set",["d"],"k",2]\n',
    b'--- ["delete",["l"],0]\n',
]


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b'--- ["set",["d"],"k"\n', id="cut"),
        pytest.param(b'--- ["set",["d"],"k",\n', id="cut at the value"),
        pytest.param(b'--- ["set",["d"\n', id="cut in the path"),
        pytest.param(b'--- ["se\n', id="cut in the op"),
        pytest.param(b"--- [\n", id="cut behind the bracket"),
        pytest.param(b'--- ["set",["d"],"k",2]]\n', id="bracket too many"),
        pytest.param(b'--- ["set",["d"],"k",2] x\n', id="rubbish behind"),
        pytest.param(b'--- ["set",["d"],"k",2}\n', id="wrong bracket"),
        pytest.param(b'--- ["set",["d"],"k",2]--- ["set",["d"],"k",3]\n', id="two in a line"),
        pytest.param(b'--- ["set" ["d"],"k",2]\n', id="comma missing"),
        pytest.param(b"--- ]\n", id="only an end"),
        pytest.param(b'--- "\n', id="only a quote"),
        pytest.param(b'--- ["set",["d"],"k","\x01"]\n', id="control character"),
        pytest.param(b'--- ["set",["d"],"k","\0\0"]\n', id="NULs"),
        pytest.param(b'--- ["set",["d"],"k","\xc3"]\n', id="not UTF-8"),
        pytest.param(b"\0" * 24 + b"\n", id="all NULs"),
    ],
)
def test_damage_before_valid_records_is_refused(path: Path, damaged: bytes) -> None:
    """Nothing is skipped, and nothing behind the damage is taken for torn."""
    data = STATE + b"".join([*JOURNAL[:2], damaged, *JOURNAL[3:]])

    # A record that lacks its end can be blamed for that where the next one begins.
    check_refused(path, Bad("damage", data, 9, 0, 10))


def test_a_refused_file_is_refused_for_readers_too(path: Path) -> None:
    check_refused(path, Bad("damage", STATE + b'--- ["nope",[],1]\n' + VALID_RECORD, 7), _readonly=True)


def test_a_refused_file_opens_once_it_is_mended(path: Path) -> None:
    """The failed opening keeps neither lock nor memory of the file."""
    check_refused(path, Bad("typo", b"a: ]\n", 1, 4))
    answer = "from persistedstate import PersistedState; import sys; PersistedState(sys.argv[1], b=2).close()"

    path.write_bytes(b"a: 1\n")
    run_child(answer, path)

    with PersistedState(path) as state:
        assert plain(state) == {"a": 1, "b": 2}


# ---- Files that hold nothing yet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"null\n",
        b"~",
        b"---\n",
        b"--- ",
        b"# only a comment\n",
        b"# no final newline",
        b"# one\n\n  # two\n\n# three\n",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf# behind a mark\n",
        b"# windows\r\n\r\n# lines\r\n",
        b"# head\nnull\n",
        b"{}\n",
        b"# head\n{}\n# foot\n",
    ],
)
def test_a_file_that_holds_nothing_is_a_new_state_and_keeps_its_comments(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with PersistedState(path, a=1, l=["x"]) as state:
        created = path.read_bytes()
        assert plain(state) == {"a": 1, "l": ["x"]}

    comments = [line.strip() for line in content.splitlines() if line.strip(b"\xef\xbb\xbf ").startswith(b"#")]
    for data in created, path.read_bytes():
        assert yaml.safe_load(data.decode("utf-8-sig")) == {"a": 1, "l": ["x"]}
        assert [line.strip() for line in data.splitlines() if b"#" in line] == comments
    with PersistedState(path) as state:
        assert plain(state) == {"a": 1, "l": ["x"]}


@pytest.mark.parametrize("content", [b"", b"null\n", b"# x\n", b"\xef\xbb\xbf", b"\n"])
def test_a_file_that_holds_nothing_opens_without_defaults(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with PersistedState(path) as state:
        assert plain(state) == {}
        state.a = 1

    assert yaml.safe_load(path.read_bytes().decode("utf-8-sig")) == {"a": 1}
    assert (b"# x" in path.read_bytes()) == (b"# x" in content)


# ---- Nothing left ----------------------------------------------------------------------------------------------------

#: What a loss of power, or a mishap, may leave of a file that held a state.
NOTHING_LEFT = {"no bytes": b"", "only NULs": b"\0" * 100, "a newline": b"\n", "half a record": b'--- ["set",[],"a'}
#: What stands beside a file, but was not kept there by us, or not of this file.
STRANGERS = ["x.state.bak", "x.state.kept", "x.state.edited-yesterday", "y.state.kept-20240131-120000", "x.state~"]


def warnings_of_opening(path: Path) -> list[str]:
    """Open a file that holds nothing, and return what is told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = PersistedState(path)
    with state:
        assert plain(state) == {}
    assert {each.category for each in caught} <= {RuntimeWarning}
    return [str(each.message) for each in caught]


@pytest.mark.leaves("files")
@pytest.mark.parametrize("label", ["damaged", "edited", "kept"])
@pytest.mark.parametrize("content", NOTHING_LEFT.values(), ids=NOTHING_LEFT)
def test_a_file_that_lost_everything_names_what_was_kept_last(path: Path, content: bytes, label: str) -> None:
    path.write_bytes(content)
    kept = ["kept-20231231-235959", "edited-20240131-110000", f"{label}-20240131-120000", f"{label}-20240131-120000+"]
    for name in [*STRANGERS, *(f"x.state.{each}" for each in kept)]:
        path.with_name(name).write_text("a: 1\n")

    *others, told = warnings_of_opening(path)

    assert told == f"{path}: there is nothing in the file; look at {path}.{kept[-1]}, which was kept beside it"
    assert len(others) == content.startswith((b"\0", b"-"))  # what was dropped
    assert path.with_name(f"x.state.{kept[-1]}").read_text() == "a: 1\n"


@pytest.mark.leaves("files")
def test_a_file_that_lost_everything_names_the_edit_that_was_refused(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        path.write_text("a: [\n")
        with pytest.warns(RuntimeWarning, match="it is kept in"):
            state.refresh()
    path.write_bytes(b"\0" * path.stat().st_size)

    _, told = warnings_of_opening(path)

    (kept,) = set(path.parent.iterdir()) - {path}
    assert f"look at {kept}," in told
    assert kept.read_text() == "a: [\n"


@pytest.mark.leaves("files")
@pytest.mark.parametrize("content", [*NOTHING_LEFT.values(), None], ids=[*NOTHING_LEFT, "no file"])
def test_a_file_that_holds_nothing_and_has_nothing_of_ours_beside_it_tells_of_no_loss(
    path: Path, content: bytes | None
) -> None:
    if content is not None:
        path.write_bytes(content)
    for name in STRANGERS:
        path.with_name(name).write_text("a: 1\n")

    assert not [told for told in warnings_of_opening(path) if "dropped" not in told]


@pytest.mark.leaves("files")
@pytest.mark.parametrize("content", [b"{}\n", b"# notes\n", None], ids=["empty mapping", "comment", "no file"])
def test_a_state_that_is_empty_or_new_tells_of_no_loss(path: Path, content: bytes | None) -> None:
    path.with_name("x.state.kept-20240131-120000").write_text("a: 1\n")
    if content is not None:
        path.write_bytes(content)

    assert warnings_of_opening(path) == []


# ---- Torn tails ------------------------------------------------------------------------------------------------------

SNAPSHOT = b"# kept\na: 1\nl:\n- x\nd: {}\n"

#: Each record with the state that it leads to, from {"a": 1, "l": ["x"], "d": {}} on.
STEPS: list[tuple[bytes, dict[str, Any]]] = [
    (b'--- ["set",[],"a",42]\n', {"a": 42, "l": ["x"], "d": {}}),
    (b'--- ["insert",["l"],1,"]\\n--- ["]\n', {"a": 42, "l": ["x", "]\n--- ["], "d": {}}),
    ('--- ["set",["d"],"ключ",["😀",{"k":null}]]\n'.encode(), {"d": {"ключ": ["😀", {"k": None}]}}),
    (b'--- ["delete",["l"],1]\n', {"l": ["x"]}),
    (b'--- ["set",[],"f",[-.inf,2024-01-31]]\n', {"f": [float("-inf"), yaml.safe_load("2024-01-31")]}),
    (b'--- ["transaction",[["set",[],"a",1],["set",[],"b",1]]]\n', {"a": 1, "b": 1}),
    (b'--- ["set",[],"a",1234]\n', {"a": 1234}),
]


def check_torn(path: Path, data: bytes, expected: dict[str, Any], dropped: int | None) -> None:
    """Assert that the file opens to `expected` with at most one warning, goes on working, and reopens.

    `dropped` is the count of bytes that the warning must name; 0 means no warning, None that any will do.
    """
    path.write_bytes(data)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = PersistedState(path)
    with state:
        assert plain(state) == expected
        state.after = "é"
        documents = list(yaml.safe_load_all(path.read_bytes().decode()))
        assert documents[-1] == ["set", [], "after", "é"]
    with PersistedState(path) as state:
        assert plain(state) == {**expected, "after": "é"}

    runtime = [each for each in caught if issubclass(each.category, RuntimeWarning)]
    assert len(caught) == len(runtime) <= 1
    if dropped is not None:
        assert len(runtime) == (dropped > 0)
    if dropped:
        assert str(dropped) in re.findall(r"\d+", str(runtime[0].message).replace(str(path), ""))
    assert yaml.safe_load(path.read_bytes().decode()) == {**expected, "after": "é"}
    assert listing(path.parent) == [path.name]


def states() -> list[dict[str, Any]]:
    """Return the state after none, one, two … of the STEPS."""
    found: list[dict[str, Any]] = [{"a": 1, "l": ["x"], "d": {}}]
    for _, changed in STEPS:
        found.append({**found[-1], **changed})
    return found


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_journal_cut_at_any_byte_opens_to_what_was_complete(path: Path, step: int) -> None:
    whole = SNAPSHOT + b"".join(record for record, _ in STEPS[:step])
    record = STEPS[step][0]
    before, after = states()[step : step + 2]

    for length in range(len(record) + 1):
        complete = length >= len(record) - 1  # its newline is the only thing that may lack

        check_torn(path, whole + record[:length], after if complete else before, 0 if complete else length)


def test_a_real_journal_cut_at_any_byte_opens_to_what_was_complete(path: Path, tmp_path: Path) -> None:
    """The records are those that the module writes itself for operations of every kind."""
    other = tmp_path / "other.state"
    ends: list[tuple[int, dict[str, Any]]] = []
    with PersistedState(path, a=1, l=[3, 1, 2], d={"k": {}}) as state:
        ends.append((path.stat().st_size, plain(state)))
        for operation in OPERATIONS:
            operation(state)
            assert path.stat().st_size > ends[-1][0], "a change appends"
            ends.append((path.stat().st_size, plain(state)))
        data = path.read_bytes()

    for length in range(ends[0][0], len(data) + 1):
        # A record is complete without its newline, the snapshot is not cut.
        expected = [value for end, value in ends if end - (end > ends[0][0]) <= length][-1]
        other.write_bytes(data[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            follower = PersistedState(other, _readonly=True)
        with follower:
            assert plain(follower) == expected, data[:length]
        assert other.read_bytes() == data[:length]
    other.unlink()


def _transaction(state: Any) -> None:
    with state.transaction():
        state.a += 1
        state.l.append({"x": [1]})
        del state.d["k"]


OPERATIONS: list[Any] = [
    lambda state: setattr(state, "a", 2),
    lambda state: state.l.append("é😀\n"),
    lambda state: state.l.insert(0, {"n": [1.5, None, True]}),
    lambda state: state.d["k"].update(x=1, y="--- []"),
    lambda state: state.l.pop(0),
    lambda state: state.l.extend(["b", "a"]),
    lambda state: state.l.reverse(),
    lambda state: state.d.__setitem__("not", [float("nan"), b"\0\xff"][1:]),
    _transaction,
    lambda state: state.l.clear(),
    lambda state: state.__setitem__("a b", 10**20),
    lambda state: state.pop("a"),
]


@pytest.mark.parametrize(
    ("tail", "dropped"),
    [
        (b"\0", 1),
        (b"\0" * 4096, 4096),
        (b"--- [\0\0\0", 8),
        (b'--- ["set",[],"a",5' + b"\0" * 100, 119),
        (b"-\0", 2),
        (b"---", 3),
        (b"--- ", 4),
        (b'--- ["set",[],"a","\xf0\x9f', 21),
        (b'--- ["set",[],"a","x\\', 21),
        (b"---\n", None),
        (b"--- \n", None),
        (b"\n", None),
        (b"\n\n", None),
        (b"\n---\n", None),
        (b'\n---\n["set", [], "a"', None),
        (b"...\n", None),
        (b"# a last word", None),
    ],
)
@pytest.mark.parametrize("journal", [b"", STEPS[0][0]], ids=["snapshot", "journal"])
def test_a_tail_that_never_became_a_record_is_dropped(
    path: Path, journal: bytes, tail: bytes, dropped: int | None
) -> None:
    check_torn(path, SNAPSHOT + journal + tail, states()[1 if journal else 0], dropped)


def test_nuls_behind_a_whole_record_without_its_newline_are_dropped(path: Path) -> None:
    check_torn(path, SNAPSHOT + STEPS[0][0][:-1] + b"\0" * 7, states()[1], 7)


@pytest.mark.parametrize("length", range(1, len(b'\n---\n["set", [], "a", "\xc3\xa9]"]') + 1))
def test_a_tail_of_26_1_cut_at_any_byte_opens(path: Path, length: int) -> None:
    """Its records stand on the line below their `---`, behind the newline that they begin with."""
    record = '\n---\n["set", [], "a", "é]"]'.encode()
    data = b'a: 1\nb: x\n---\n["set", [], "b", "y"]' + record[:length]

    check_torn(path, data, {"a": "é]" if length == len(record) else 1, "b": "y"}, None)


def test_a_torn_file_takes_new_defaults(path: Path) -> None:
    path.write_bytes(SNAPSHOT + STEPS[0][0] + STEPS[1][0][:-5])

    with pytest.warns(RuntimeWarning, match=str(len(STEPS[1][0]) - 5)):
        state = PersistedState(path, b=7, a=0)

    with state:
        assert plain(state) == {**states()[1], "b": 7}
    assert yaml.safe_load(path.read_bytes().decode()) == {**states()[1], "b": 7}
    assert path.read_bytes().startswith(b"# kept\n")


def test_the_warning_of_a_torn_tail_comes_once(path: Path) -> None:
    path.write_bytes(SNAPSHOT + b"--- [")
    with pytest.warns(RuntimeWarning) as caught:
        state = PersistedState(path)
    state.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PersistedState(path).close()

    assert len(caught) == 1
    assert str(path) in str(caught[0].message)


# ---- Paths that are no state files -----------------------------------------------------------------------------------


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        PersistedState(tmp_path, a=1)

    assert listing(tmp_path) == []


@pytest.mark.parametrize("options", ["", ", _readonly=True", ", _wait=60"])
def test_a_fifo_is_refused_at_once(tmp_path: Path, options: str) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    code = f"""
        import sys
        from persistedstate import PersistedState
        try:
            PersistedState(sys.argv[1], a=1{options})
        except OSError as error:
            print("refused", sys.argv[1] in str(error))
    """

    answer = run_child(code, fifo)

    assert answer.split() == ["refused", "True"]
    assert fifo.is_fifo()


def test_a_device_is_refused() -> None:
    ends = os.openpty()
    name = os.ttyname(ends[1])

    with pytest.raises(OSError, match=name):
        PersistedState(name, a=1)

    for end in ends:
        os.close(end)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")

        with pytest.raises(OSError, match="socket"):
            PersistedState("socket", a=1)

    assert listing(tmp_path) == ["socket"]


@pytest.mark.parametrize("options", [{}, {"_readonly": True}, {"_wait": 60}], ids=["writer", "reader", "waiting"])
def test_a_missing_folder_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PersistedState(tmp_path / "nowhere" / "x.state", a=1, **options)

    assert listing(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a: 1\n")

    with pytest.raises(NotADirectoryError):
        PersistedState(tmp_path / "file" / "x.state")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        PersistedState(tmp_path / ("x" * 300))

    assert listing(tmp_path) == []


def test_symbolic_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(OSError, match="symbolic links"):
        PersistedState(tmp_path / "a")

    assert listing(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(("mode", "content"), [(0o000, b"a: 1\n"), (0o222, b"a: 1\n"), (0o444, b"a: 1\n")])
def test_a_file_without_permission_is_refused(public_folder: Path, mode: int, content: bytes) -> None:
    path = public_folder / "x.state"
    path.write_bytes(content)
    path.chmod(mode)
    code = f"""
{DROP_PRIVILEGES}
try:
    persistedstate.PersistedState(sys.argv[1], b=1)
except PermissionError as error:
    print("refused", sys.argv[1] in str(error))
"""

    answer = run_child(code, path)

    assert answer.split() == ["refused", "True"]
    assert path.read_bytes() == content
    assert listing(public_folder) == ["x.state"]


def test_a_folder_that_cannot_be_listed_does_not_keep_an_empty_file_from_opening(public_folder: Path) -> None:
    path = public_folder / "x.state"
    for each in path, path.with_name("x.state.kept-20240131-120000"):
        each.touch()
        each.chmod(0o666)
    public_folder.chmod(0o333)
    code = f"""
{DROP_PRIVILEGES}
warnings.simplefilter("error")
with persistedstate.PersistedState(sys.argv[1]) as state:
    state.a = 1
"""

    run_child(code, path)

    public_folder.chmod(0o777)
    assert path.read_bytes() == b"a: 1\n"


def test_a_folder_without_permission_takes_no_new_file(public_folder: Path) -> None:
    public_folder.chmod(0o555)
    code = f"""
{DROP_PRIVILEGES}
try:
    persistedstate.PersistedState(sys.argv[1], b=1)
except PermissionError as error:
    print("refused")
"""

    answer = run_child(code, public_folder / "x.state")

    assert answer.split() == ["refused"]
    assert listing(public_folder) == []


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises((FileNotFoundError, IsADirectoryError, ValueError)) as caught:
        PersistedState("", a=1)

    assert not isinstance(caught.value, StateCorrupt | StateLocked)
    assert listing(tmp_path) == []


def test_a_nul_in_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is the system's
        PersistedState(f"{tmp_path}/x\0.state", a=1)

    assert not isinstance(caught.value, StateCorrupt)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("path", [None, 0, 3, 1.5, [], {}], ids=repr)
def test_what_is_no_path_is_a_type_error(path: Any) -> None:
    with pytest.raises(TypeError):
        PersistedState(path, a=1)


def test_a_path_must_be_given() -> None:
    with pytest.raises(TypeError):
        PersistedState()  # type: ignore[call-arg]


def test_a_string_and_any_path_object_name_the_same_file(path: Path) -> None:
    class Named:
        def __fspath__(self) -> str:
            return str(path)

    names: list[str | os.PathLike[str]] = [str(path), path, Named()]
    for counter, name in enumerate(names):
        with PersistedState(name, counter=0) as state:
            assert state.counter == counter
            state.counter += 1

    assert path.read_text() == "counter: 3\n"


def test_a_path_of_bytes_is_refused_or_names_the_file(path: Path) -> None:
    path.write_text("a: 1\n")

    with contextlib.suppress(TypeError), PersistedState(os.fsencode(path)) as state:  # type: ignore[arg-type,unused-ignore]
        assert state.a == 1

    assert listing(path.parent) == ["x.state"]


def test_a_relative_path_keeps_its_meaning_when_the_folder_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(path.parent)

    with PersistedState("x.state", a=1) as state:
        monkeypatch.chdir(elsewhere)
        state.a = 2
        state.vacuum()
        state.a = 3

    assert path.read_text() == "a: 3\n"
    assert listing(elsewhere) == []


# ---- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"_unknown": 1},
        {"_Fsync": True},
        {"_": 1},
        {"__class__": 1},
        {"_filepath": "x"},
        {"_thread_lock": 1},
        {"_fsync": "yes"},
        {"_fsync": []},
        {"_wait": "1"},
        {"_wait": [1]},
        {"_readonly": "no"},
        {"_mode": "600"},
        {"_mode": 600},
        {"_mode": 0.5},
    ],
    ids=str,
)
def test_an_option_that_is_unknown_or_of_a_wrong_type_is_a_type_error(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        PersistedState(path, a=1, **options)

    assert not path.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"_fsync": -1},
        {"_fsync": float("nan")},
        {"_wait": -1},
        {"_wait": float("nan")},
        {"_mode": -1},
        {"_mode": 1 << 20},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_an_error(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        PersistedState(path, a=1, **options)

    assert not path.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"_fsync": True},
        {"_fsync": False},
        {"_fsync": 1},
        {"_fsync": 2.5},
        {"_wait": 0},
        {"_wait": 1},
        {"_wait": 1.5},
        {"_readonly": False},
        {"_mode": None},
        {"_mode": 0o640},
    ],
    ids=str,
)
def test_valid_options_are_no_state(path: Path, options: dict[str, Any]) -> None:
    with PersistedState(path, a=1, **options) as state:
        assert plain(state) == {"a": 1}

    assert path.read_text() == "a: 1\n"


@pytest.mark.parametrize("key", ["2020-01-01", ".nan", "[]", "{}", '!!binary "eA=="'])
@pytest.mark.parametrize("lines", ["  {}: 1", "  b: 1\n  {}: 2", "- b: 1\n- {}: 2", "- {}: 2"])
def test_key_of_a_kind_that_no_state_holds_is_refused_wherever_it_stands(path: Path, key: str, lines: str) -> None:
    text = f"a:\n{lines.format(key)}\n"
    path.write_text(text)

    with pytest.raises(StateCorrupt, match=r"line [23]"):
        PersistedState(path)

    assert path.read_text() == text
