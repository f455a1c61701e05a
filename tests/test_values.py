"""Every value comes back exact in value and type: from the journal, from the snapshot, for us and for other readers."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import fractions
import math
import numbers
import operator
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

import oracle
import pytest
from checks import reopened, scratch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import same
from rounds import QUICK, SHARE, some

from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    import random
    from pathlib import Path

Operation = Callable[[Any, Any], object]
READERS = list(oracle.READERS)


def round_trip(values: dict[Any, Any], readers: Sequence[str] = READERS) -> None:
    """Assert that `values` are in memory, journal and snapshot as they are, for us and for other `readers`."""
    with scratch() as path:
        with PersistedState(path) as state:
            for key, value in values.items():
                state[key] = value
            look(state, path, values, readers)

            state.vacuum()
            assert b"\n--- " not in path.read_bytes()
            look(state, path, values, readers)

        with PersistedState(path) as state:
            assert same(plain(state), values)


def look(state: PersistedState, path: Path, expected: dict[Any, Any], readers: Sequence[str]) -> None:
    for reader, found in [
        ("memory", plain(state)),
        ("ours", reopened(path)),
        *((reader, oracle.read(path, reader)) for reader in readers),
    ]:
        assert same(found, expected), f"{reader} finds {difference(found, expected)}"


def difference(found: Any, expected: Any, place: str = "STATE") -> str:
    """Tell the first place where two values differ, since whole values are too long to read."""
    if type(found) is type(expected) is dict and list(found) == list(expected):
        pairs = [(found[key], expected[key], f"{place}[{key!r:.100}]") for key in expected]
        pairs += [(*keys, f"key of {place}") for keys in zip(found, expected, strict=True)]
    elif type(found) is type(expected) is list and len(found) == len(expected):
        pairs = [(*items, f"{place}[{index}]") for index, items in enumerate(zip(found, expected, strict=True))]
    else:
        return f"{found!r:.300} instead of {expected!r:.300} at {place}"
    return next(difference(*pair) for pair in pairs if not same(*pair[:2]))


def wrapped(value: Any) -> dict[Any, Any]:
    """Put `value` wherever a value can be."""
    return {"v": value, "list": [value, [value], [[value, 0]]], "dict": {"a": value, "b": {"c": value}},
            "mixed": [{"a": value, "b": [value]}, {"a": [{"b": value}]}]}  # fmt: skip


def keyed(key: Any) -> dict[Any, Any]:
    """Put `key` wherever a key can be."""
    return {"d": {key: 1}, "nested": {"a": 0, key: {key: {"x": 1, key: [1]}}}, "empty": {key: {}},
            "list": [{key: 1, "b": 2}, {"b": 2, key: []}, [{key: {key: None}}]], key: {key: key}}  # fmt: skip


# ---- Scalars ----

ZONES = [timezone.utc, *(timezone(timedelta(minutes=m)) for m in (1, -1, 60, -60, 330, -570, 765, 1439, -1439))]
SCALARS: dict[str, Any] = {
    "None": None, "True": True, "False": False,
    "0": 0, "1": 1, "-1": -1, "2**31": 2**31, "-2**63": -(2**63), "2**64": 2**64, "10**30": 10**30,
    "10**4000": 10**4000, "-10**4000": -(10**4000), "4300 digits": 10**4300 - 1, "4300 digits, negative": 1 - 10**4300,
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "0.0": 0.0, "-0.0": -0.0, "1.0": 1.0, "-1.5": -1.5,
    "0.1": 0.1, "1/3": 1 / 3, "1e16": 1e16, "1e22": 1e22, "1e23": 1e23, "-1e16": -1e16, "1e-5": 1e-5, "1e-7": 1e-7,
    "1.5e-7": 1.5e-7, "1e15": 1e15, "123456789012345680.0": 123456789012345680.0, "1e100": 1e100, "5e-324": 5e-324,
    "max": sys.float_info.max, "min": sys.float_info.min, "epsilon": sys.float_info.epsilon, "2.0**53": 2.0**53,
    "date": date(2024, 2, 29), "first date": date.min, "last date": date.max, "year 987": date(987, 6, 5),
    "datetime": datetime(2024, 1, 1, 12, 30, 45), "midnight": datetime(2024, 1, 1),
    "first datetime": datetime.min, "last datetime": datetime.max, "1 µs": datetime(2024, 1, 1, 0, 0, 0, 1),
    "tenth": datetime(2024, 1, 1, 0, 0, 0, 100_000), "fold": datetime(2024, 10, 27, 2, 30, fold=0),
    **{f"datetime {zone}": datetime(2024, 7, 1, 23, 59, 59, 999_999, zone) for zone in ZONES},
    **{f"first datetime {zone}": datetime.min.replace(tzinfo=zone) for zone in ZONES},
    **{f"last datetime {zone}": datetime.max.replace(tzinfo=zone) for zone in ZONES},
    "bytes": b"abc", "empty bytes": b"", "NUL": b"\0", "all bytes": bytes(range(256)), "long bytes": bytes(5000),
    "bytes like text": b"true", "bytes of 57": b"x" * 57, "bytes of 58": b"x" * 58, "UTF-8 bytes": "é😀".encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALARS)
def test_scalar(name: str) -> None:
    round_trip(wrapped(SCALARS[name]))


KEYS = [None, True, False, 0, 2, -1, 10**30, 10**4000, 0.0, 1.5, -1.5, 1e16, 1e-7, 1e22, 5e-324, math.inf, -math.inf,
        -0.0, sys.float_info.max]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:30])
def test_key(key: Any) -> None:
    round_trip(keyed(key))


def test_all_keys_in_one_mapping() -> None:
    keys = [
        None,
        True,
        0,
        -1,
        2.5,
        1e16,
        math.inf,
        "",
        "None",
        "null",
        "true",
        "True",
        "0",
        "-1",
        "2.5",
        "1e16",
        ".inf",
    ]

    round_trip({"d": {key: index for index, key in enumerate(keys)}, "r": dict.fromkeys(reversed(keys))})


def test_equal_keys_keep_their_types_apart() -> None:
    round_trip({"a": {1: 0}, "b": {True: 0}, "c": {1.0: 0}, "d": {0: 1}, "e": {False: 1}, "f": {0.0: 1}, "g": {"1": 1}})


# ---- Text ----

#: What is something else in YAML 1.1, in YAML 1.2 or in JSON.
ALIKE_WORDS = """
yes Yes YES no No NO on On ON off Off OFF y Y n N true True TRUE false False FALSE tRue null Null NULL nULL ~
~~ None none nil undefined 0 1 -1 +1 -0 00 0123 012 08 0o7 0o8 0O7 0x1f 0X1F 0xg 0b11 0b2 1_000 1_ _1 1__0 -_1
0_ 12e03 1e3 1E3 1e+3 1e-3 1.e3 1. .5 -.5 +.5 5.e .e3 . .. ... 1.5 1.5. 1,000 1.0e+16 6.8523015e+5
685.230_15e+03 190:20:30.15 .inf .Inf .INF +.inf -.inf -.INF .nan .NaN .NAN nan NaN inf Infinity -Infinity
-inf 0.0 -0.0 1e400 12:30 12:30:45 1:2 1:60 99:59:59 -1:30 +1:30 190:20:30 0:0 1:2:3:4 12:30:45.5
00:00:00:00:00:00 2024-01-01 2024-1-1 0001-01-01 2024-13-45 2024-01-01T00:00:00Z 2024-01-01T12:30:45+01:00
20240101
"""

#: What begins or ends with an indicator, or holds one.
INDICATORS = r"""
- -- --- ---- -a --a ---a ... ....a ? ?a ?- : :: :a a: a:b a::b , a,b ,a [ ] { } [] {} [a] {a} a] a} [a {a #
#a a# a#b & &a * *a ! !a !!a !!str !!binary | |a |- |+ > >a >- ' '' 'a' a' " "" "a" a" % %a @ @a ` `a = =a ==
<< <<a < > \ \n \u0041 a\ a\b / // $ $a ^ ( ) ; + += _ __ ~a a~ a=b a|b a>b a&b a*b a!b a%b a@b
"""

TEXTS = [
    *ALIKE_WORDS.split(), *INDICATORS.split(),
    "", "2024-01-01 12:30:45", "2024-01-01 12:30:45.5 -5", "2024-01-01t12:30:45", "2001-12-14T21:59:43.10-05:00",
    "%YAML 1.1", "%TAG ! tag:", "--- [", "--- ", "---\n", "--- a", '--- ["set",[],"a",1]', "... a", "...\n", "\n---",
    "\n--- \n", "\n...\n", "a\n--- b", '\n--- ["set",[],"v",1]\n', "### LAST VALID STATE ###",
    "- a", "- - a", "-\ta", "- a: b", "? a", "? a\n: b", ": a", "a: b", "a: b: c", "a :b", "a : b", "a:\tb", "a:\nb",
    "a #b", "a# b", " #a", "#a: b", "# comment\n", "a\n# comment", "{a: b}", "[a, b]", "a, b", "'a': b", '"a": b',
    "'it''s'", "it's", 'say "hi"', "\"quoted\" 'both'", "&a b", "*a b", "!a b", "!!int 5", "| a", "> a", "a | b",
    # white space
    " ", "  ", "\t", "\n", "\r", "\r\n", "\n\n", "\n\n\n", " \n", "\n ",
    " x ", " x", "x ", "\tx", "x\t", "x\ty", "x  y",
    "a\n", "\na", "a\nb", "a\n\nb", "a\n\n", "\n\na", "a\n b", " a\nb", "a \nb", "a\n b\n",
    "a\r\nb", "a\rb", "a\r", "\ra",
    "  a\n b\n", "\n a", "\ta\nb", "a\tb\n", "a\n\tb", "trailing spaces   ", "a\n   \nb", "x" + " " * 100 + "y",
    # characters
    "\0", "a\0b", "\x07", "\x1b[0m", "\x7f", "\x80", "\x85", "a\x85b", "\xa0", "\xad", "\u2028", "\u2029", "a\u2028b",
    "\u200b", "\u200e", "\u202e", "\ufeff", "\ufeffa", "a\ufeff", "\ufffd", "\ufffe", "\uffff", "\ud7ff", "\ue000",
    "😀", "a😀", "😀: b", "\U0001f600\U0010ffff", "\U0001ffff", "é", "e\u0301", "日本語", "日本語: はい", "עברית", "ﬁ",
    "\U00010000", "\U000e0001", "K\u0130ı", "½", "٣", "１", "²", "𝟏𝟐", "\u3000", "\u2003x", "x\u00a0", "\u1680",
    # length
    "x" * 79, "x" * 80, "x" * 81, "word " * 40, "word " * 1000, "x" * 5000, "é" * 2000, "😀" * 1500, "\n" * 300,
    "a\n" * 500, "\\" * 500, '"' * 500, "'" * 500, "\0" * 500, " " * 500, "- " * 500, ": " * 500, "a: " * 500,
    "x" * 1024, "x" * 1023, "x" * 1025, "\x85" * 300, "line one is here\nline two\n" * 50, "yes " * 300, "#" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:25]))
def test_text_as_value(text: str) -> None:
    round_trip(wrapped(text))


@pytest.mark.parametrize(
    "text", [*TEXTS, "k" * 1500, "k " * 750, "é" * 1000, '"' * 999], ids=lambda text: ascii(text[:25])
)
def test_text_as_key(text: str) -> None:
    round_trip(keyed(text))


@pytest.mark.parametrize(
    "length", [100, 127, 128, 129, 500, 990, 998, 999, 1000, 1001, 1010, 1020, 1022, 1023, 1024, 1025, 1100, 5000]
)
@pytest.mark.parametrize("character", ["k", "é", "😀", "\0", " ", "'"])
def test_length_of_a_key(character: str, length: int) -> None:
    """YAML readers stop looking for the colon of a short key after 1,024 characters."""
    round_trip({"d": {character * length: [1], "b": {character * length: {"c": 2}}}, character * length: 3})


def code_points(start: int = 0, stop: int = sys.maxunicode + 1) -> Iterator[str]:
    return (chr(code) for code in range(start, stop) if not 0xD800 <= code <= 0xDFFF)


def taken(characters: Iterable[str], chance: random.Random, below: str = "\u3000") -> list[str]:
    """Return all; in the quick sizes those below one, those at the ends of planes, and a tenth of the rest.

    Where the share is tiny, some of these, with the first and the last ones.
    """
    if SHARE >= 1:
        return list(characters)

    def likely(character: str) -> float:
        code = ord(character)
        if code < 0x100 or code & 0xFFFF > 0xFFF0:
            return 1.0
        return QUICK if character < below or code & 0xFFFF > 0xFE00 else 0.1 * QUICK

    return [character for character in characters if chance.random() < likely(character)]


def positions(characters: Sequence[str]) -> dict[str, Any]:
    """Put every character alone, first, last and in the middle, as value and as key."""
    return {
        "alone": list(characters),
        "around": [f"{c}a{c}b{c}" for c in characters],
        "alone as key": dict.fromkeys(characters, 0),
        "around as key": {f"{c}a{c}b{c}": c for c in characters},
    }


def every_place(characters: Sequence[str], readers: Sequence[str]) -> None:
    """As `round_trip`, with fewer turns, since the values are many."""
    expected = positions(characters)
    with scratch() as path:
        with PersistedState(path) as state:
            for key, value in expected.items():
                state[key] = value
            for reader in readers:
                found = oracle.read(path, reader)
                assert same(found, expected), f"{reader} finds {difference(found, expected)}"
            found = reopened(path)
            assert same(found, expected), f"the journal gives {difference(found, expected)}"

        for reader in readers:
            found = oracle.read(path, reader)
            assert same(found, expected), f"{reader} finds {difference(found, expected)}"
        found = reopened(path)
        assert same(found, expected), f"the snapshot gives {difference(found, expected)}"


@pytest.mark.parametrize("first", range(0, 0x10000, 0x4000), ids=hex)
def test_every_code_point_of_the_basic_plane(first: int, chance: random.Random) -> None:
    every_place(taken(code_points(first, first + 0x4000), chance), ["libyaml"] if "libyaml" in READERS else [])


@pytest.mark.parametrize("plane", range(1, 17))
def test_every_code_point_of_the_other_planes(plane: int, chance: random.Random) -> None:
    """Sixteen to a text in these, which are all alike, but for the two at the end of each plane and every hundredth."""
    characters = taken(code_points(plane << 16, (plane + 1) << 16), chance)
    texts = ["".join(characters[index : index + 16]) for index in range(0, len(characters), 16)]

    every_place([*characters[::97], *characters[-4:], *texts], ["libyaml"] if "libyaml" in READERS else [])


def test_every_code_point_alone_comes_back(chance: random.Random) -> None:
    """All 1,112,064 of them, as value and as key."""
    for first in range(0, sys.maxunicode, 0x40000):
        characters = taken(code_points(first, min(first + 0x40000, sys.maxunicode + 1)), chance)
        with scratch() as path:
            with PersistedState(path) as state:
                state.d = dict(zip(characters, characters, strict=True))
                assert list(reopened(path)["d"].items()) == list(zip(characters, characters, strict=True))
            assert list(reopened(path)["d"].items()) == list(zip(characters, characters, strict=True))


@pytest.mark.parametrize("reader", ["pyyaml", "ruamel"])
def test_code_points_in_the_eyes_of_slow_readers(reader: str, chance: random.Random) -> None:
    """These need 30 µs a scalar: blocks full of letters and syllables go by 64 to a text, all else one by one."""
    alike = [(0x3400, 0xD7A4), (0xE010, 0xF8F0), (0x1200, 0x1400)]
    single = [c for c in code_points(0, 0x10000) if not any(start <= ord(c) < stop for start, stop in alike)]
    single = taken(single, chance, "\u0800")
    blocks = [list(code_points(*ends)) for ends in alike]
    texts = ["".join(block[index : index + 64]) for block in blocks for index in range(0, len(block), 64)]
    astral = [chr(code) for code in range(0x10000, 0x110000, 2999)]
    ends = [chr((plane << 16) + offset) for plane in range(1, 17) for offset in (0, 1, 0xFFFD, 0xFFFE, 0xFFFF)]

    every_place(list(dict.fromkeys([*single, *texts, *astral, *ends])), [reader])


# ---- Containers ----

CONTAINERS: dict[str, Any] = {
    "empty list": [], "empty dict": {}, "list of empties": [[], {}, [[]], [{}], {"a": []}, {"a": {}}],
    "lists in lists": [[1, [2, [3, []]]], [[[[4]]]], [[], [[]]]],
    "dicts in dicts": {"a": {"b": {"c": {}, "d": {"e": 1}}}, "f": {"g": []}},
    "lists of dicts": [{"a": 1, "b": [1, {"c": 2}]}, {"a": {"b": 1}, "c": {}}, {"": {"": [{"": []}]}}],
    "lists of lists of dicts": [[{"a": 1, "b": 2}], [[{"a": [[{"b": 1}]]}]]],
    "long list": list(range(500)), "long dict": {f"key {n}": n for n in range(500)},
    "wide": [{"name": f"n{n}", "tags": ["a", "b"], "at": {"x": n, "y": None}} for n in range(50)],
    "97 levels of lists": [], "order": {"z": 1, "a": 2, "M": 3, "10": 4, "9": 5, 10: 6, 9: 7},
}  # fmt: skip
for _ in range(96):
    CONTAINERS["97 levels of lists"] = [CONTAINERS["97 levels of lists"]]


@pytest.mark.parametrize("name", CONTAINERS)
def test_container(name: str) -> None:
    value = CONTAINERS[name]

    round_trip({"v": value, "list": [value, 1], "dict": {"a": value, "b": 1}, 0: value})


def deep(levels: int, kind: str) -> Any:
    """Return a value of so many nested containers."""
    value: Any = {"lists": [], "dicts": {}, "mixed": []}[kind]
    for level in range(levels - 1):
        value = [value, level] if kind == "lists" or (kind == "mixed" and level % 2) else {"k": value, "n": level}
    return value


@pytest.mark.parametrize("kind", ["lists", "dicts", "mixed"])
def test_a_hundred_levels_are_stored(kind: str) -> None:
    """The state itself is one of them."""
    round_trip({"v": deep(98, kind)})
    with scratch() as path, PersistedState(path) as state:
        state.v = deep(99, kind)
        for found in (plain(state), reopened(path), *(oracle.read(path, reader) for reader in READERS)):
            assert same(found, {"v": deep(99, kind)})


@pytest.mark.parametrize("kind", ["lists", "dicts", "mixed"])
def test_more_than_a_hundred_levels_are_refused(kind: str, state: PersistedState, path: Path) -> None:
    before = path.read_bytes()

    for levels in (101, 102, 150, 500, 5000):
        with pytest.raises(ValueError, match=r"^STATE\.v.*100"):
            state.v = deep(levels, kind)

    assert path.read_bytes() == before
    assert plain(state) == {}


def test_levels_are_counted_from_the_state(state: PersistedState, path: Path) -> None:
    """Else a state could be written step by step that no reader opens."""
    state.v = deep(90, "lists")
    node = state.v
    while node and isinstance(node[0], type(node)):
        node = node[0]
    before, expected = path.read_bytes(), plain(state)

    with pytest.raises(ValueError, match="100"):
        node.append(deep(20, "lists"))

    assert path.read_bytes() == before
    assert same(plain(state), expected)
    assert same(reopened(path), expected)


def test_one_object_in_two_places_is_stored_twice(state: PersistedState, path: Path) -> None:
    shared = [1]

    state.v = {"a": shared, "b": [shared, shared]}
    state.v["a"].append(2)

    assert plain(state) == reopened(path) == oracle.read(path) == {"v": {"a": [1, 2], "b": [[1], [1]]}}


# ---- One value after another in the same place ----

NOON = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
ONE_O_CLOCK = datetime(2024, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))
#: Groups of values that Python calls equal, or that look alike: a change from one to another is a change.
ALIKE: list[list[Any]] = [
    [1, True, 1.0, "1", b"1", [1]], [0, False, 0.0, -0.0, "0", "", None], ["null", None, "~", "", "None"],
    [2**53, float(2**53)], [1e16, 10**16, "1e16", "1.0e+16"], [math.nan, ".nan", "nan", None], [math.inf, ".inf"],
    [NOON, ONE_O_CLOCK, NOON.replace(tzinfo=None), str(NOON)], [date(2024, 1, 1), datetime(2024, 1, 1), "2024-01-01"],
    ["yes", True, "true", "Yes"], ["a", b"a", "a ", "a\n", "'a'"], [[], {}, "[]", "{}", [[]], [{}], None],
    [{1: 0}, {True: 0}, {1.0: 0}, {"1": 0}], [{0.0: 1}, {-0.0: 1}, {False: 1}], [{None: 1}, {"null": 1}, {"": 1}],
    [{"a": 1, "b": 2}, {"b": 2, "a": 1}, [["a", 1], ["b", 2]]],
    [{"a": {"b": 1}}, {"a": {"b": True}}, {"a": {"b": 1.0}}],
    [[1, [1, {"a": 1}]], [1, [1, {"a": True}]], [True, [1, {"a": 1}]], [1, [1.0, {"a": 1}]]],
]  # fmt: skip


@pytest.mark.parametrize("group", ALIKE, ids=lambda group: repr(group[0]))
@pytest.mark.parametrize("in_snapshot", [False, True], ids=["journal", "snapshot"])
def test_a_change_to_a_value_that_is_alike(
    group: list[Any], in_snapshot: bool, state: PersistedState, path: Path
) -> None:
    """Also in the vacuum, which must not take an equal value for the same one."""
    for old in group:
        for new in group:
            state.update({"v": old, "l": [old, 1], "d": {"k": old, "z": 1}, "n": {"a": [{"b": old}]}})
            if in_snapshot:
                state.vacuum()

            state.v = new
            state.l[0] = new
            state.d.update(k=new)
            state.n["a"][0]["b"] = new

            expected = {"v": new, "l": [new, 1], "d": {"k": new, "z": 1}, "n": {"a": [{"b": new}]}}
            look(state, path, expected, ["pyyaml"])
            state.vacuum()
            look(state, path, expected, ["pyyaml"])


# ---- Anything at all ----

texts = st.text() | st.sampled_from([text for text in TEXTS if len(text) < 200])
minutes = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=60) | st.dates()
    | st.datetimes() | st.datetimes(timezones=minutes) | st.sampled_from(list(SCALARS.values()))
)  # fmt: skip
keys = texts | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5))
roots = st.dictionaries(keys, values, max_size=5)
generous = settings(
    deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@settings(generous, max_examples=some(200, 20))
@given(root=roots)
def test_any_value(root: dict[Any, Any]) -> None:
    with scratch() as path:
        with PersistedState(path) as state:
            for key, value in root.items():
                state[key] = value
            look(state, path, root, READERS)
        assert b"\n--- " not in path.read_bytes()

        with PersistedState(path) as state:
            look(state, path, root, READERS)


@settings(generous, max_examples=some(80, 20))
@given(root=roots)
def test_any_value_as_the_first_snapshot(root: dict[Any, Any]) -> None:
    """As defaults the values never pass through the journal; a key that cannot be a default comes by update."""
    defaults = {k: v for k, v in root.items() if type(k) is str and k[:1] != "_" and k not in dir(PersistedState)}
    with scratch() as path:
        with PersistedState(path, **defaults) as state:
            look(state, path, defaults, READERS)
            with state.transaction():
                state.clear()
                state.update(root)
            look(state, path, root, READERS)
        assert same(oracle.read(path), root)


@settings(generous, max_examples=some(80, 20))
@given(roots=st.lists(roots, min_size=2, max_size=4), data=st.data())
def test_any_value_after_any_other(roots: list[dict[Any, Any]], data: st.DataObject) -> None:
    """Each root takes the place of the one before, key by key; the text of the one before is changed into its own."""
    with scratch() as path, PersistedState(path) as state:
        for root in roots:
            for key in list(state):
                if key not in root:
                    del state[key]
            for key, value in root.items():
                state[key] = value
            expected = {key: root[key] for key in state}
            if data.draw(st.booleans()):
                look(state, path, expected, ["pyyaml"])
            state.vacuum()
            look(state, path, expected, ["pyyaml"])


# ---- Subclasses become plain ----


class Number(enum.IntEnum):
    ONE = 1
    BIG = 10**20


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Word(str, enum.Enum):
    YES = "yes"


class Text(str):  # noqa: SLOT000 - as people write them
    def __str__(self) -> str:
        return "wrong"

    def __repr__(self) -> str:
        return "wrong"


class Float(float):
    """As numpy.float64: a float whose repr is another's."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)})"

    __str__ = __repr__


class Int(int):
    def __repr__(self) -> str:
        return "wrong"

    __str__ = __repr__


class Bytes(bytes):
    pass


class List(list):  # type: ignore[type-arg]
    pass


class Dict(dict):  # type: ignore[type-arg]
    pass


class Date(date):
    pass


class Datetime(datetime):
    pass


class Point(NamedTuple):
    x: int
    y: Any


class AMapping(Mapping):  # type: ignore[type-arg]
    def __getitem__(self, key: Any) -> Any:
        return {"a": (1, 2), 3: {}}[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(["a", 3])

    def __len__(self) -> int:
        return 2


class ASequence(Sequence):  # type: ignore[type-arg]
    def __getitem__(self, index: Any) -> Any:
        return [1, (2,)][index]

    def __len__(self) -> int:
        return 2


class Scalar:
    """As a scalar or an array of numpy; no number by its class."""

    def __init__(self, value: Any, kind: str, shape: tuple[int, ...] = ()) -> None:
        self.value, self.shape, self.dtype = value, shape, types.SimpleNamespace(kind=kind)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        if self.shape or not isinstance(self.value, int):
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return self.value

    def tolist(self) -> Any:
        return self.value


class LongFloat:
    """As numpy.longdouble: more digits than a float has."""

    def __init__(self, value: str) -> None:
        self.value = decimal.Decimal(value)

    def __float__(self) -> float:
        return float(self.value)

    def __eq__(self, other: object) -> bool:
        return self.value == other

    __hash__ = None  # type: ignore[assignment]


numbers.Real.register(LongFloat)


class Timestamp(datetime):
    """As pandas.Timestamp."""

    nanosecond = 0


class NaTType(datetime):
    """As pandas.NaT: a datetime that is none."""

    year = month = day = property(lambda _: math.nan)

    def __ne__(self, other: object) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return False

    def utcoffset(self) -> Any:
        raise ValueError("NaTType does not support utcoffset")

    __hash__ = datetime.__hash__


class Nanosecond(Timestamp):
    nanosecond = 5


class Zone(tzinfo):
    """As zoneinfo.ZoneInfo: an offset that depends on the day."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=2 if when and 3 < when.month < 11 else 1)

    def dst(self, when: datetime | None) -> timedelta:
        return self.utcoffset(when) - timedelta(hours=1)

    def tzname(self, _when: datetime | None) -> str:
        return "HERE"


#: name: (what is stored, what it becomes)
SUBCLASSES: dict[str, tuple[Any, Any]] = {
    "IntEnum": (Number.ONE, 1), "big IntEnum": (Number.BIG, 10**20), "IntFlag": (Flag.A | Flag.B, 3),
    "str Enum": (Word.YES, "yes"), "str": (Text("no"), "no"), "empty str": (Text(""), ""),
    "float": (Float(0.1), 0.1), "float nan": (Float("nan"), math.nan), "float -0.0": (Float(-0.0), -0.0),
    "float 1e16": (Float(1e16), 1e16), "int": (Int(5), 5), "bytes": (Bytes(b"\xff"), b"\xff"),
    "list": (List([1, List()]), [1, []]), "dict": (Dict(a=Dict()), {"a": {}}),
    "OrderedDict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "defaultdict": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "tuple": ((1, (2, ()), [3]), [1, [2, []], [3]]), "empty tuple": ((), []),
    "namedtuple": (Point(1, Point(2, ())), [1, [2, []]]),
    "range": (range(3), [0, 1, 2]), "deque": (collections.deque([1, (2,)]), [1, [2]]),
    "UserDict": (collections.UserDict(a=(1,)), {"a": [1]}), "UserList": (collections.UserList([1, ()]), [1, []]),
    "mappingproxy": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "ChainMap": (collections.ChainMap({"a": 1}), {"a": 1}),
    "Mapping": (AMapping(), {"a": [1, 2], 3: {}}), "Sequence": (ASequence(), [1, [2]]),
    "date": (Date(2024, 1, 2), date(2024, 1, 2)), "datetime": (Datetime(2024, 1, 2, 3), datetime(2024, 1, 2, 3)),
    "zone in summer": (datetime(2024, 7, 1, tzinfo=Zone()), datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=2)))),
    "zone in winter": (datetime(2024, 1, 1, tzinfo=Zone()), datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
    "flag": (Scalar(True, "b"), True), "false flag": (Scalar(False, "b"), False), "scalar": (Scalar(5, "i"), 5),
    "long float": (LongFloat("0.5"), 0.5), "Timestamp": (Timestamp(2024, 1, 2), datetime(2024, 1, 2)),
    "in containers": ({"a": [Number.ONE, (Text("x"), Dict(b=Float(1)))]}, {"a": [1, ["x", {"b": 1.0}]]}),
    "IntEnum key": ({Number.ONE: 0}, {1: 0}), "str Enum key": ({Word.YES: 0}, {"yes": 0}),
    "str key": ({Text("k"): 0}, {"k": 0}),
    "float key": ({Float(1.5): 0}, {1.5: 0}), "int key": ({Int(7): 0}, {7: 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SUBCLASSES)
def test_subclass_becomes_plain(name: str) -> None:
    value, expected = SUBCLASSES[name]

    everywhere = {"default": expected, "v": expected, "l": [expected, expected], "d": {"k": expected}}
    with scratch() as path:
        with PersistedState(path, default=value) as state:
            state.v = value
            state.l = [value]
            state.l.append(value)
            state.d = {}
            state.d.setdefault("k", value)
            look(state, path, everywhere, READERS)
        assert same(reopened(path), everywhere)


def test_zoneinfo_becomes_its_offset(state: PersistedState, path: Path) -> None:
    zoneinfo = pytest.importorskip("zoneinfo")
    try:
        zone = zoneinfo.ZoneInfo("Europe/Budapest")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("no time zone database here")

    state.v = datetime(2024, 7, 1, 12, tzinfo=zone)

    expected = {"v": datetime(2024, 7, 1, 12, tzinfo=timezone(timedelta(hours=2)))}
    assert same(reopened(path), expected)
    assert same(oracle.read(path), expected)


@pytest.mark.parametrize(
    "key", [Number.ONE, Word.YES, Text("k"), Float(1.5), Int(7)], ids=lambda key: type(key).__name__
)
def test_subclass_as_key_of_a_node(key: Any, state: PersistedState, path: Path) -> None:
    plain_key: Any = "".join(key) if isinstance(key, str) else key + 0

    state.d = {}
    state.d[key] = 1
    state[key] = 2
    state.d[key] += 1

    for found in (plain(state), reopened(path), oracle.read(path)):
        assert same(found, {"d": {plain_key: 2}, plain_key: 2})
    del state.d[key], state[key]
    assert plain(state) == reopened(path) == {"d": {}}


# ---- Refusals ----


def cycle_of_lists() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


def cycle_of_dicts() -> Any:
    value: dict[str, Any] = {"a": {}}
    value["a"]["b"] = [value]
    return value


class Bare:
    pass


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Job:
    name: str = "a"


class Model:
    """As one of pydantic's."""

    def model_dump(self) -> dict[str, Any]:
        return {}


class Frame:
    def to_dict(self) -> dict[str, Any]:
        return {}


class Refusal(NamedTuple):
    value: Any  #: or a function that makes it
    error: type[Exception]
    place: str  #: below the place where `value` is stored
    text: str  #: somewhere in the message


REFUSALS: dict[str, Refusal] = {
    "set": Refusal({1}, TypeError, "", "set is not storable; use a list"),
    "frozenset": Refusal(frozenset(), TypeError, "", "frozenset is not storable"),
    "object": Refusal(Bare(), TypeError, "", "Bare is not storable"),
    "Decimal": Refusal(decimal.Decimal("1.5"), TypeError, "", "Decimal is not storable"),
    "Fraction": Refusal(fractions.Fraction(1, 3), TypeError, "", "Fraction is not storable"),
    "complex": Refusal(1j, TypeError, "", "complex is not storable"),
    "generator": Refusal(lambda: (n for n in ""), TypeError, "", "generator is not storable"),
    "time": Refusal(time(12, 30), TypeError, "", "time is not storable; use .isoformat()"),
    "timedelta": Refusal(timedelta(1), TypeError, "", "timedelta is not storable; use .total_seconds()"),
    "Path": Refusal(pathlib.PurePosixPath("a"), TypeError, "", "PurePosixPath is not storable; use a str"),
    "memoryview": Refusal(memoryview(b"a"), TypeError, "", "memoryview is not storable; use bytes"),
    "UUID": Refusal(uuid.UUID(int=5), TypeError, "", "UUID is not storable"),
    "Ellipsis": Refusal(..., TypeError, "", "ellipsis is not storable"),
    "class": Refusal(lambda: Bare, TypeError, "", "type is not storable"),
    "function": Refusal(lambda: len, TypeError, "", "builtin_function_or_method is not storable"),
    "view": Refusal({"a": 1}.keys(), TypeError, "", "dict_keys is not storable"),
    "enum": Refusal(Color.RED, TypeError, "", "Color is not storable; use .value"),
    "dataclass": Refusal([Job()], TypeError, "[0]", "Job is not storable; use dataclasses.asdict()"),
    "model": Refusal({"a": Model()}, TypeError, ".a", "Model is not storable; use .model_dump()"),
    "frame": Refusal(Frame(), TypeError, "", "Frame is not storable; use .to_dict()"),
    "array": Refusal([Scalar([1, 2], "i", (2,))], TypeError, "[0]", "Scalar is not storable; use .tolist()"),
    "array of flags": Refusal(Scalar([True], "b", (1,)), TypeError, "", "Scalar is not storable; use .tolist()"),
    "too many digits": Refusal(LongFloat("0.1"), ValueError, "", "LongFloat has digits that a float would lose"),
    "NaT": Refusal({"a": [NaTType(2024, 1, 1)]}, TypeError, ".a[0]", "NaTType is not storable; use None"),
    "nanoseconds": Refusal([Nanosecond(2024, 1, 1)], ValueError, "[0]", "nanoseconds is not storable; use .floor"),
    "nested set": Refusal({"a": [1, {"when": {1}}]}, TypeError, ".a[1].when", "set is not storable; use a list"),
    "nested in odd keys": Refusal({"a b": {5: [{1}]}}, TypeError, '["a b"][5][0]', "set is not storable"),
    "nested in a tuple": Refusal((0, (1j,)), TypeError, "[1][0]", "complex is not storable"),
    "tuple key": Refusal({"a": {(1, 2): 3}}, TypeError, ".a", "tuple"),
    "bytes key": Refusal({"a": {b"b": 3}}, TypeError, ".a", "bytes"),
    "date key": Refusal({date.min: 3}, TypeError, "", "date"),
    "object key": Refusal({"a": [{Bare(): 3}]}, TypeError, ".a[0]", "Bare"),
    "frozenset key": Refusal({frozenset(): 3}, TypeError, "", "frozenset"),
    "nan key": Refusal({"a": {math.nan: 3}}, ValueError, ".a", ""),
    "nan key of a subclass": Refusal({Float("nan"): 3}, ValueError, "", ""),
    "surrogate": Refusal("\ud800", ValueError, "", "surrogate"),
    "surrogates": Refusal(["a", "\ud83d\ude00"], ValueError, "[1]", "surrogate"),
    "surrogate in the middle": Refusal({"k": "abc\udfffdef"}, ValueError, ".k", "surrogate"),
    "surrogate in a key": Refusal({"a": {"\udc80": 1}}, ValueError, ".a", "surrogate"),
    "surrogate in a subclass": Refusal(Text("\udc80"), ValueError, "", "surrogate"),
    "cycle of lists": Refusal(cycle_of_lists, ValueError, "", ""),
    "cycle of dicts": Refusal(cycle_of_dicts, ValueError, "", ""),
    "deep": Refusal(lambda: deep(150, "mixed"), ValueError, "", "100"),
    "big int": Refusal(10**4300, ValueError, "", "4300"),
    "negative big int": Refusal([0, -(10**5000)], ValueError, "[1]", "4300"),
    "big int key": Refusal({10**4300: 1}, ValueError, "", "4300"),
    "big IntEnum": Refusal(Int(10**4300), ValueError, "", "4300"),
    "zone with seconds": Refusal(
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=61))), ValueError, "", "second"),
    "zone with negative seconds": Refusal(
        {"t": datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=-1)))}, ValueError, ".t", "second"),
    "zone with microseconds": Refusal(
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1, microseconds=5))), ValueError, "", "second"),
}  # fmt: skip

#: Ways of storing a value in {"l": [1, {"a": 2}], "d": {"x": 1}, "n": 1}, and the place that the message must name.
WAYS: dict[str, tuple[Operation, str]] = {
    "attribute": (lambda s, bad: setattr(s, "new", bad), "STATE.new"),
    "old attribute": (lambda s, bad: setattr(s, "n", bad), "STATE.n"),
    "over a container": (lambda s, bad: setattr(s, "l", bad), "STATE.l"),
    "item": (lambda s, bad: operator.setitem(s, "new", bad), "STATE.new"),
    "item of an odd name": (lambda s, bad: operator.setitem(s, "a b", bad), 'STATE["a b"]'),
    "item of a number": (lambda s, bad: operator.setitem(s, 5, bad), "STATE[5]"),
    "nested item": (lambda s, bad: operator.setitem(s.d, "x", bad), "STATE.d.x"),
    "deeply nested item": (lambda s, bad: operator.setitem(s.l[1], "a", bad), "STATE.l[1].a"),
    "list item": (lambda s, bad: operator.setitem(s.l, 0, bad), "STATE.l[0]"),
    "list item from the end": (lambda s, bad: operator.setitem(s.l, -1, bad), "STATE.l[1]"),
    "append": (lambda s, bad: s.l.append(bad), "STATE.l[2]"),
    "insert": (lambda s, bad: s.l.insert(0, bad), "STATE.l[0]"),
    "insert from the end": (lambda s, bad: s.l.insert(-1, bad), "STATE.l[1]"),
    "insert beyond the end": (lambda s, bad: s.l.insert(99, bad), "STATE.l[2]"),
    "extend halfway": (lambda s, bad: s.l.extend([7, bad, 8]), "STATE.l[3]"),
    "+= halfway": (lambda s, bad: operator.iadd(s.l, [7, bad]), "STATE.l[3]"),
    "slice": (lambda s, bad: operator.setitem(s.l, slice(1, 2), [7, bad]), "STATE.l[2]"),
    "whole slice": (lambda s, bad: operator.setitem(s.l, slice(None), [7, bad]), "STATE.l[1]"),
    "extended slice": (lambda s, bad: operator.setitem(s.l, slice(None, None, -1), [7, bad]), "STATE.l[0]"),
    "update halfway": (lambda s, bad: s.update({"n": 7, "m": bad, "o": 8}), "STATE.m"),
    "nested update halfway": (lambda s, bad: s.d.update([("x", 7), ("y", bad)]), "STATE.d.y"),
    "update by keyword": (lambda s, bad: s.d.update({"x": 7}, y=bad), "STATE.d.y"),
    "|= halfway": (lambda s, bad: operator.ior(s.d, {"x": 7, "y": bad}), "STATE.d.y"),
    "root |= halfway": (lambda s, bad: operator.ior(s, {"n": 7, "y": bad}), "STATE.y"),
    "setdefault": (lambda s, bad: s.d.setdefault("y", bad), "STATE.d.y"),
    "root setdefault": (lambda s, bad: s.setdefault("y", bad), "STATE.y"),
}  # fmt: skip


def start() -> dict[str, Any]:
    return {"l": [1, {"a": 2}], "d": {"x": 1}, "n": 1}


def make(refusal: Refusal) -> Any:
    return refusal.value() if isinstance(refusal.value, types.FunctionType) else refusal.value


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_everywhere(name: str, state: PersistedState, path: Path) -> None:
    """In every way of storing it: the message names the place, nothing is written, nothing changes."""
    refusal = REFUSALS[name]
    state.update(start())
    nodes = [state.l, state.l[1], state.d]
    before = path.read_bytes()

    for way, (store, place) in WAYS.items():
        with pytest.raises(refusal.error) as error:
            store(state, make(refusal))
        assert refusal.text in str(error.value), way
        assert str(error.value).startswith(place + refusal.place), way
        if refusal.error is TypeError and "key" not in name:
            assert str(error.value).startswith(f"{place}{refusal.place}: "), way
        assert path.read_bytes() == before, way
        assert same(plain(state), start()), way

    assert [id(state.l), id(state.l[1]), id(state.d)] == list(map(id, nodes))
    state.l.append("tracked")
    assert reopened(path)["l"] == [1, {"a": 2}, "tracked"]


def test_the_middle_of_a_long_place_is_left_out(state: PersistedState) -> None:
    with pytest.raises(ValueError, match=r"^STATE\.new(\[1\]){6}…(\[1\]){3}: a container that contains itself"):
        state.new = cycle_of_lists()


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_as_default(name: str, path: Path) -> None:
    refusal = REFUSALS[name]

    with pytest.raises(refusal.error) as error:
        PersistedState(path, good=1, bad=make(refusal))

    assert str(error.value).startswith("STATE.bad" + refusal.place)
    assert refusal.text in str(error.value)
    assert not path.exists()


def test_refused_as_default_of_a_file_that_is_there(path: Path) -> None:
    path.write_text("# mine\na: 1\n", encoding="utf-8")

    for refusal in REFUSALS.values():
        with pytest.raises(refusal.error):
            PersistedState(path, good=1, bad=make(refusal))
        assert path.read_text(encoding="utf-8") == "# mine\na: 1\n"

    with PersistedState(path, good=1) as state:
        assert state == {"a": 1, "good": 1}


def test_refused_in_a_transaction(state: PersistedState, path: Path) -> None:
    """The refusal alone changes nothing; who catches it may go on."""
    state.update(start())

    with state.transaction():
        state.n = 2
        for refusal in REFUSALS.values():
            with pytest.raises(refusal.error):
                state.l.append(make(refusal))
            with pytest.raises(refusal.error):
                state.update(n=3, m=make(refusal))
        state.l.append(3)

    expected = start() | {"n": 2, "l": [1, {"a": 2}, 3]}
    assert same(plain(state), expected)
    assert same(reopened(path), expected)
    assert same(oracle.read(path), expected)


def test_refusal_that_ends_a_transaction_rolls_it_back(state: PersistedState, path: Path) -> None:
    state.update(start())
    before = path.read_bytes()

    for refusal in REFUSALS.values():
        with pytest.raises(refusal.error), state.transaction():
            state.l.insert(0, [1])
            del state.n
            state.d["y"] = make(refusal)
        assert path.read_bytes() == before
        assert same(plain(state), start())


BAD_KEYS: dict[str, tuple[Any, type[Exception], str]] = {
    "tuple": ((1, 2), TypeError, "tuple"), "bytes": (b"a", TypeError, "bytes"), "date": (date.min, TypeError, "date"),
    "object": (Bare(), TypeError, "Bare"), "nan": (math.nan, ValueError, ""),
    "surrogate": ("a\ud800", ValueError, "surrogate"),
    "big int": (10**4300, ValueError, "4300"), "complex": (1j, TypeError, "complex"),
    "Decimal": (decimal.Decimal("0.5"), TypeError, "Decimal"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_KEYS)
@pytest.mark.parametrize("store", [
    lambda x, key: operator.setitem(x, key, 1), lambda x, key: x.update({"good": 1, key: 1}),
    lambda x, key: x.setdefault(key, 1), lambda x, key: x.setdefault(key), lambda x, key: operator.ior(x, {key: 1}),
], ids=["item", "update", "setdefault", "setdefault None", "ior"])  # fmt: skip
def test_refused_key_of_a_node(name: str, store: Operation, state: PersistedState, path: Path) -> None:
    key, kind, text = BAD_KEYS[name]
    state.d = {"x": 1}
    before = path.read_bytes()

    for node, place in ((state, "STATE"), (state.d, "STATE.d")):
        with pytest.raises(kind) as error:
            store(node, key)
        assert str(error.value).startswith(place)
        assert text in str(error.value)

    assert path.read_bytes() == before
    assert same(plain(state), {"d": {"x": 1}})


def test_refused_surrogate_as_attribute(state: PersistedState, path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(ValueError, match="surrogate"):
        setattr(state, "\udc80", 1)

    assert path.read_bytes() == before
    assert plain(state) == {}


def test_message_of_the_contract(state: PersistedState) -> None:
    state.jobs = [{}, {}, {}, {}]

    with pytest.raises(TypeError, match=re.escape("STATE.jobs[3].when: set is not storable; use a list")):
        state.jobs[3]["when"] = {1, 2}


# ---- What foreign code raises when it is asked for a value ----


class Broken(AMapping):
    def __getitem__(self, key: Any) -> Any:
        raise ERROR


class BrokenSequence(ASequence):
    def __getitem__(self, index: Any) -> Any:
        raise ERROR


class BrokenIterator(AMapping):
    def __iter__(self) -> Iterator[Any]:
        raise ERROR


class BrokenIndex:
    def __index__(self) -> int:
        raise ERROR


class BrokenFloat(LongFloat):
    def __float__(self) -> float:
        raise ERROR


numbers.Real.register(BrokenFloat)


class BrokenZone(Zone):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise ERROR


class BrokenHash:
    def __hash__(self) -> int:
        raise ERROR


ERROR = ZeroDivisionError("foreign")
FOREIGN: dict[str, tuple[Any, str]] = {
    "mapping": (Broken(), ".a"), "sequence": (BrokenSequence(), ""), "iterator": (BrokenIterator(), ""),
    "index": (BrokenIndex(), ""), "float": (BrokenFloat("1"), ""),
    "zone": (datetime(2024, 1, 1, tzinfo=BrokenZone()), ""),
    "nested": ({"a": [0, BrokenIndex()]}, ".a[1]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_error_passes_and_tells_the_place(name: str, state: PersistedState, path: Path) -> None:
    """It is the very error, with its cause; nothing has changed."""
    value, below = FOREIGN[name]
    state.update(start())
    before = path.read_bytes()
    ERROR.__cause__ = LookupError()

    for way, (store, place) in WAYS.items():
        ERROR.__dict__.clear()
        with pytest.raises(ZeroDivisionError) as error:
            store(state, value)
        assert error.value is ERROR
        assert type(error.value.__cause__) is LookupError
        if sys.version_info >= (3, 11):
            assert ERROR.__notes__ == [f"while {place}{below} was being copied into the state"], way
        assert path.read_bytes() == before, way
        assert same(plain(state), start()), way


def test_a_foreign_error_in_a_default_tells_the_place(path: Path) -> None:
    ERROR.__dict__.clear()

    with pytest.raises(ZeroDivisionError):
        PersistedState(path, good=1, bad=[BrokenIndex()])

    if sys.version_info >= (3, 11):
        assert ERROR.__notes__ == ["while STATE.bad[0] was being copied into the state"]
    assert not path.exists()


def test_a_foreign_key_that_fails_tells_the_place(state: PersistedState, path: Path) -> None:
    state.d = {"x": 1}
    before = path.read_bytes()
    ERROR.__dict__.clear()

    with pytest.raises(ZeroDivisionError):
        state.d[BrokenHash()] = 1

    if sys.version_info >= (3, 11):
        assert ERROR.__notes__[0].startswith("while STATE.d[<")
    assert path.read_bytes() == before


def test_an_update_that_fails_on_the_way_in_changes_nothing(state: PersistedState, path: Path) -> None:
    state.d = {"x": 1}
    before = path.read_bytes()

    with pytest.raises(ZeroDivisionError):
        state.d.update(Broken())

    assert path.read_bytes() == before
    assert same(plain(state), {"d": {"x": 1}})


# ---- The real ones, where they are installed ----


def test_numpy(state: PersistedState, path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    state.d = {}
    values = [numpy.bool_(True), numpy.int8(5), numpy.float32(0.1), numpy.str_("a"), numpy.bytes_(b"a"), numpy.array(5)]

    state.v = values
    state.d[numpy.int64(3)] = state.d[numpy.bool_(True)] = numpy.bool_(False)

    expected = {"d": {3: False, True: False}, "v": [True, 5, float(numpy.float32(0.1)), "a", b"a", 5]}
    look(state, path, expected, READERS)
    for value, hint in [
        (numpy.array([1]), "use .tolist()"), (numpy.array([True, False]), "use .tolist()"),
        (numpy.datetime64("2024-01-01"), 'use .astype("datetime64[us]").item()'),
        (numpy.timedelta64(1, "s"), 'use .astype("timedelta64[us]").item().total_seconds()'),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=re.escape(f"STATE.v[1]: {type(value).__name__} is not storable; {hint}")):
            state.v[1] = value


def test_pandas(state: PersistedState, path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    moment = pandas.Timestamp("2024-01-02 03:04:05.000006+01:00")

    state.v = [moment]

    expected = {"v": [datetime(2024, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=1)))]}
    look(state, path, expected, READERS)
    for value, hint in [
        (pandas.NaT, "NaTType is not storable; use None"), (pandas.NA, "NAType is not storable; use None"),
        (pandas.Series([1]), "use .tolist()"), (pandas.DataFrame({"a": [1]}), "use .to_dict()"),
        (pandas.Timestamp(5), "nanoseconds is not storable; use .floor('us')"),
    ]:  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=rf"^STATE\.w\[0\]: .*{re.escape(hint)}"):
            state.w = [value]


def test_models(state: PersistedState) -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", name=(str, "a"))()

    with pytest.raises(TypeError, match=re.escape("STATE.v: Model is not storable; use .model_dump()")):
        state.v = model
