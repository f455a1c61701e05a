"""Shortcuts on the way between text and values: each gives what the long way gives."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from oracle import same
from rounds import rounds
from workload import Workload

import persistedstate
from persistedstate import PersistedState, StateCorrupt, StateDict, StateList, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

SCALARS = ["a", "two words", "x: y", "# no", "é", "- d", "", "true", "l1\nl2", "'", None, True, 1.5, -5, 0, 1e300]
KEYS = ["k0", "k1", "k2", "k3", "x y", "-5", -5, 3]
#: What a person, or an accident, may put into a file.
SCRAPS = [*"#:-\n\"'[|>!?0é", " #", ": ", "- ", "\n\n", "  ", "{}", "&a", "*a"]
CHUNKS = [
    *['["set",[],"a",1]', '["set",[],"b",[1,{"x":2}]]', '["delete",[],"a"]', '["set",[],"a",2]'],
    *['["set",[],"a",.nan]', '["set",[],"a",NaN]', '["set",[],"a",Infinity]', '["set",[],"a",2024-05-01]'],
    *['["set",[],"a"', "1]", '["set",[],"a",1],["set",[],"b",2]', '["set",[],"a",[1', "2]]", "", "null", "# words"],
    *['{"a":5}', '["set",[],"c",{"x":1,"x":2}]', '["set",[],"a","\\ud800"]', '["set",[],"a","\\uD83D\\uDE00"]', "7"],
    *['["set",[],"a",{1: .inf,true: [!!binary "YQ==",2024-05-01T00:00:00]}]', '["set",[],"b","C:\\\\udo"]'],
    *['["set",[],"a",[.nan,NaN]]', '["set",[],"a",{1: 1,1.0: 2}]', '["set",[],"a",{.nan: 1}]', '["set",[],-.inf,""]'],
    *['["set",[],"a",1],NaN,["set"', '["set",[],"a",1],1e999,["set"', '["set",5,"a",1]', '["set",[],"a",1] # words'],
    f'["set",[],"deep",{"[" * 98}1{"]" * 98}]',
    f'["set",[],"deep",{"[" * 99}1{"]" * 99}]',
    f'["set",[],"wide",[{",".join(["[]"] * 120)}]]',
    f'["set",[],"text",["{"[" * 120}"]]',
]  # fmt: skip


class UndoError(Exception):
    pass


def value(chance: random.Random, depth: int = 0) -> Any:
    """Return a random value."""
    kind = chance.randrange(7 if depth < 3 else 4)
    if kind < 4:
        return chance.choice(SCALARS)
    if kind == 4:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def nodes(node: Any) -> list[Any]:
    """Return a node and all nodes below it."""
    items = node if isinstance(node, StateList) else node.values()
    return [node, *(found for item in items if isinstance(item, (StateDict, StateList)) for found in nodes(item))]


def change(state: PersistedState, chance: random.Random) -> None:
    """Apply a random change to a random node."""
    node = chance.choice(nodes(state))
    change_list(node, chance) if isinstance(node, StateList) else change_mapping(node, chance)


def change_list(node: Any, chance: random.Random) -> None:
    length = len(node)
    place = chance.randrange(length + 1)
    changes: list[Callable[[], object]] = [
        lambda: node.append(value(chance)),
        lambda: node.insert(place, value(chance)),
        lambda: node.extend([value(chance), value(chance)]),
        node.reverse,
        lambda: node[place:].clear() if chance.random() < 0.9 else node.clear(),
    ]
    if length > 2:
        changes += [
            lambda: node.pop(place % length),
            lambda: node.pop(0),
            lambda: node.__setitem__(place % length, value(chance)),
            lambda: node.__setitem__(slice(0, 2), [1]),
            lambda: node.__setitem__(slice(0, 2), [1, value(chance)]),
            lambda: node.__setitem__(slice(None, None, 2), [0] * len(range(0, length, 2))),
        ]
    chance.choice(changes)()


def change_mapping(node: Any, chance: random.Random) -> None:
    key, known = chance.choice(KEYS[:4] if isinstance(node, PersistedState) else KEYS), list(node)
    changes: list[Callable[[], object]] = [
        lambda: node.__setitem__(key, value(chance)),
        lambda: node.__setitem__(key, value(chance)),
        lambda: node.update({key: value(chance), "new": value(chance)}),
    ]
    if len(known) > 1:
        changes += [
            lambda: node.pop(chance.choice(known)),
            node.popitem,
            lambda: node.__setitem__(known[0], node.pop(known[0])),
        ]
    chance.choice(changes)()


def change_and_undo(state: PersistedState, chance: random.Random) -> None:
    """Apply changes in a transaction, also to what it removes, which may be undone."""
    held = nodes(state)[1:]
    with contextlib.suppress(UndoError), state.transaction():
        for _ in range(chance.randrange(1, 4)):
            change(state, chance)
        for node in held:
            if node._top() is not state._root:
                node.clear()
        if chance.random() < 0.6:
            raise UndoError


def commented(text: str, chance: random.Random) -> str:
    """Return a text with comments above and beside, and blank lines."""
    out = []
    for number, line in enumerate(text.splitlines()):
        indent = " " * (len(line) - len(line.lstrip(" ")))
        above = f"{indent}# above {number}\n" if chance.random() < 0.15 else "\n" if chance.random() < 0.05 else ""
        out.append(f"{above}{line}{f'  # beside {number}' if chance.random() < 0.1 else ''}\n")
    return "".join(out)


def renewed_both_ways(state: PersistedState) -> tuple[str, str]:
    """Return the next snapshot as the text that followed each change, and as one in which all values were compared."""
    tree: Any = state._tree
    followed = tree._renewed().text()
    tree.document.is_doubtful = True
    compared = tree._renewed().text()
    tree.document.is_doubtful = False
    return followed, compared


@rounds(ci=150, nightly=5_000)
def test_text_that_followed_each_change_holds_what_comparing_all_values_gives(
    path: Path, chance: random.Random, rounds: int
) -> None:
    copied = path.with_name("copy")
    for _ in range(rounds):
        with PersistedState(path) as state:
            state.update({key: value(chance) for key in KEYS[:3]})
        path.write_text(commented(path.read_text("utf-8"), chance), "utf-8")
        with PersistedState(path) as state:
            for _ in range(chance.randrange(1, 8)):
                for _ in range(chance.randrange(1, 5)):
                    chance.choice([change, change, change_and_undo])(state, chance)
                for text in renewed_both_ways(state):
                    copied.write_text(text, "utf-8")
                    assert same(oracle.read(copied, "ruamel"), plain(state))
                if chance.random() < 0.6:
                    state.vacuum()
                    assert same(oracle.read(path, "ruamel"), plain(state))
        path.unlink()
        copied.unlink()


@rounds(ci=40, nightly=3_000)
def test_text_follows_a_long_stream_of_changes(path: Path, chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        workload = Workload(chance.getrandbits(32), weights={"change": 70, "commit": 12, "abort": 6, "vacuum": 5})
        with PersistedState(path, **workload.model) as state:
            for _ in range(200):
                step = workload.draw()
                step.perform(state)
                text = state._tree._renewed().text()
                assert same(persistedstate._Document.read(text)[1], workload.model), step
        path.unlink()


@rounds(ci=150, nightly=5_000)
def test_lines_are_read_as_ruamel_reads_them(chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        root = {key: value(chance) for key in KEYS[:5]}
        root["jobs"] = [{key: value(chance, 2) for key in KEYS[: chance.randrange(1, 4)]} for _ in range(3)]
        text = commented(persistedstate._block(root, 0), chance)
        assert same(persistedstate._Document.read(text)[1], persistedstate._Loader(text).mapping())
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice(SCRAPS) + text[place + chance.randrange(2) :]
        try:
            expected = persistedstate._Loader(text).mapping()
        except persistedstate._BadText:
            continue
        assert same(persistedstate._Document.read(text)[1], expected), text


#: Pieces of lines that need no pattern, of those that do, and of what is none of the language.
LINE_SCRAPS = [
    *["a", "last_id", "x y", '"n"', '"a: b"', '"é"', "0", "41", "1.5", "2024-05-01", "true", "[]", "{}", "/x/a.csv"],
    *[*"#:-\"'[|>!?0é.+&*,{}]~ %@`\t\r\x85\u2028_", "  ", " #", " # so far", ": ", "- ", ":\n", "\n", "\n\n", "\n  "],
    *["01", "1.", "1e3", "1_0", "-5", "²", "٣", '"a\\n"', "a:b", "12:30", "---", "...", "yes", "<<", "\n# so far\n"],
    *["--- [", "]", "\n--- [", "] \r\n", "]\n--- [\n"],
]  # fmt: skip
USUAL = """\
# how far the importer got
last_id: 41  # of 100
"y": 0

processed:
- a.csv
- "12:30"
rates:
  first of all: 0.5
  none: []
jobs:
- name: x
  path: /tmp/x
"""


@rounds(ci=3_000, nightly=300_000)
def test_lines_are_read_without_a_pattern_as_by_it(
    chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistedstate, "_few_lines", itertools.repeat(0))
    texts = ("".join(chance.choices(LINE_SCRAPS, k=chance.randrange(1, 9))) for _ in range(rounds))
    for text in [USUAL, *texts]:
        lines, end = persistedstate._plain_lines(text)
        matches = persistedstate._line_pattern(is_ascii=text.isascii()).finditer(text)
        expected = [match for match in matches if match.start() < end and match.lastindex]
        assert [told(line) for line in lines] == [told(match) for match in expected], text
        content, record = re.search(r"(?m)^[^\S\n]*[^\s#]", text), persistedstate._RECORD_LINE.search(text)
        assert persistedstate._find_content(text) == (content.start() if content else -1), text
        assert persistedstate._journal_start(text) == (record.start() if record else len(text)), text
    assert persistedstate._plain_lines(USUAL)[1] == len(USUAL)


def told(line: Any) -> tuple[object, ...]:
    return line.string, line.groups(), line.start(), line.end(), *([line.start(4), line.end(4)] if line[4] else [])


#: What JSON cannot say, beside what looks like it and what is difficult in both.
BEYOND_JSON = [
    *[math.inf, -math.inf, math.nan, -0.0, 1e16, b"", b"abc", bytes(range(60)), date(2024, 2, 29), date.min],
    *[datetime(2024, 1, 2), datetime(2024, 1, 2, 3, 4, 5, 6), datetime.max, datetime(2024, 1, 2, tzinfo=timezone.utc)],
    datetime(2024, 1, 2, 3, 4, 5, 999_999, timezone(timedelta(minutes=-570))),
    *["\\ud8ff", ".nan", "1: ", "? ", "2024-01-02", '"', "\\", 'a"b\\', "C:\\udo", "\ud7ff", "\x85", "😀", "x" * 1001],
    *["NaN", 10**1005],
]  # fmt: skip
#: Pieces of records, and what an accident may put between them.
FLOW_SCRAPS = [
    *"#:-\n\"'[|>!?0éTe.+&*,{}]~ %@`\t\r\x7f\x85\ufeff", ": ", ",", ", ", ":", " #", "? ", "- ", "1: ", "true: ",
    "-.inf: ", ".inf", "-.inf", ".nan", ".Inf", '!!binary "YQ=="', '!!binary "Y"', "!!binary", "NaN", "Infinity",
    "-Infinity", "null", "1e3", "1.5e+3", "01", "0x1", "1_0", "--- ", "...", '"a"', '"a":', '""', "[]", "{}", "<<",
    "\\ud83d", "\\uD83D\\uDE00", "\\/", "\\x41", '? "a" : ', "? 1 : ", "2024-01-01", "2024-13-01",
    "2024-01-01T24:00:00", "2024-01-01T00:00:00.000001+99:00",
]  # fmt: skip


def beyond_json(chance: random.Random, depth: int = 0) -> Any:
    """Return a random value of which JSON cannot say all."""
    kind = chance.randrange(8 if depth < 3 else 4)
    if kind < 4:
        return chance.choice(BEYOND_JSON + SCALARS)
    if kind < 6:
        return [beyond_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    keys = [key for key in BEYOND_JSON + SCALARS if persistedstate._is_key(key)]
    return {chance.choice(keys): beyond_json(chance, depth + 1) for _ in range(chance.randrange(4))}


def hostile(text: str, chance: random.Random) -> str:
    """Return something like a text, or nothing like it."""
    if chance.random() < 0.2:
        return "[" + "".join(chance.choice(FLOW_SCRAPS) for _ in range(chance.randrange(12))) + "]"
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(FLOW_SCRAPS) + text[at + chance.randrange(3) :]
    return text


def is_json(text: str) -> bool:
    with contextlib.suppress(ValueError):
        persistedstate._decoder(persistedstate._unique).decode(text)
        return True
    return False


@rounds(ci=3_000, nightly=200_000)
def test_records_beyond_json_are_read_as_ruamel_reads_them(chance: random.Random, rounds: int) -> None:
    """Whatever the text: if it is read without ruamel.yaml, and is no JSON, that finds the same."""
    for _ in range(rounds):
        record = ["set", [], "a", beyond_json(chance)]
        text = persistedstate._flow(record)
        assert same(persistedstate._own_record(text), record), text
        text = hostile(text, chance)
        found = persistedstate._own_record(text)
        if found is not None and not is_json(text):
            loader = persistedstate._Loader(text, chance.choice([None, "1.1", "1.2"]))
            assert same(found, loader.value(loader.root, 0)), text


@pytest.mark.parametrize("beside", ["", '--- ["set",[],"b","NaN"]\n', '--- ["set",[],"b","C:\\\\udo"]\n'], ids=repr)
def test_records_beyond_json_are_read_without_ruamel(
    path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: Callable[..., dict[Any, Any]], beside: str
) -> None:
    """Each `YAML()` takes as long as a hundred of them."""

    def refuse(*_: Any) -> None:
        raise AssertionError

    values = [value for value in BEYOND_JSON if value != 10**1005]
    records = [["set", [], "a", value] for value in [*values, values, {0: {None: values, -1.5: [], "k": {True: 1}}}]]
    text = "".join(f"--- {persistedstate._flow(record)}\n" for record in records)
    path.write_text(f"a: 1\nb: 1\n{text}{beside}", encoding="utf-8")
    expected = on_disk()
    monkeypatch.setattr(persistedstate, "_compose", refuse)

    with PersistedState(path) as state:
        assert same(plain(state), expected)


def test_wide_record_is_read_without_ruamel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    path.write_text(f'a: []\n--- ["splice",["a"],0,0,[{",".join(["{}"] * 500)}]]\n')
    monkeypatch.setattr(persistedstate, "_compose", refuse)

    with PersistedState(path) as state:
        assert plain(state) == {"a": [{}] * 500}


@rounds(ci=2_000, nightly=100_000)
def test_record_that_breaks_off_is_told_as_ruamel_tells_it(chance: random.Random, rounds: int) -> None:
    def is_record(text: str) -> bool:
        try:
            return persistedstate._Loader(text).root is not None
        except persistedstate._BadText:
            return persistedstate._own_record(text) is not None

    for _ in range(rounds):
        text = chance.choice(CHUNKS[:8])[: chance.randint(1, 30)]
        text += "".join(chance.choice([*SCRAPS, *'[]{},"\\']) for _ in range(chance.randrange(8)))
        text += chance.choice(["", "", "]", " # ]", " # no"])
        if text.startswith("[") and "\n" not in text:
            assert persistedstate._is_record(text) == is_record(text), text


@pytest.mark.parametrize("cut", range(1, 24))
def test_wide_record_that_breaks_off_is_dropped_without_ruamel(
    path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Which would take a minute for a large transaction that a crash has cut."""

    def refuse(*_: Any) -> None:
        raise AssertionError

    items = [f'["set",["a"],"é{number}",[{{}},-1.5e3,"]",null]]' for number in range(300)]
    items += [f'["set",["a"],{number},[.inf,{{true: 2024-05-01}},"]",!!binary "YQ=="]]' for number in range(300)]
    record = f'--- ["transaction",[{",".join(items)}]]'
    path.write_text(f"a: {{}}\n{record[:-cut]}")
    monkeypatch.setattr(persistedstate, "_compose", refuse)

    with pytest.warns(RuntimeWarning, match="dropped"), PersistedState(path) as state:
        assert plain(state) == {"a": {}}


def test_record_that_breaks_off_in_a_string_is_searched_once(path: Path) -> None:
    """Not again from each quote in it, which would take half an hour for this one."""
    path.write_text(f'a: 1\n--- ["splice",["a"],0,0,[{"[]," * 200}"' + '\\"' * 300_000)

    with pytest.warns(RuntimeWarning, match="dropped"), PersistedState(path) as state:
        assert plain(state) == {"a": 1}


def test_record_that_does_not_fit_is_found_among_many(path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",2]\n---   ["set",["a"],"b",3]\n--- ["set",[],"a",4]\n')

    with pytest.raises(StateCorrupt) as caught:
        PersistedState(path)

    assert (caught.value.line, caught.value.column) == (3, 7)


@pytest.mark.parametrize(
    ("apply", "expected"),
    [
        (lambda jobs: jobs[70].update(tries=5), {"  tries: 70\n": ["  tries: 5\n"]}),
        (lambda jobs: jobs[70].update(new=5), {"  tries: 70\n": ["  tries: 70\n", "  new: 5\n"]}),
        (lambda jobs: jobs.__setitem__(70, 5), {"- name: 'job 70'  # 70\n": ["- 5\n"], "  tries: 70\n": []}),
        (
            lambda jobs: jobs.pop(70),
            {"# above 70\n": [], "- name: 'job 70'  # 70\n": [], "  tries: 70\n": []},
        ),
        (lambda jobs: jobs.append(5), {"  tries: 199\n": ["  tries: 199\n", "- 5\n"]}),
    ],
    ids=["changed", "grown", "replaced", "removed", "appended"],
)
def test_change_in_a_long_list_changes_the_lines_of_its_item(
    path: Path, apply: Callable[[Any], object], expected: dict[str, list[str]]
) -> None:
    lines = ["# head\n", "jobs:  # all\n"]
    for number in range(200):
        lines += [f"# above {number}\n"] if number % 10 == 0 else []
        lines += [f"- name: 'job {number}'  # {number}\n", f"  tries: {number}\n"]
    path.write_text("".join(lines))

    with PersistedState(path) as state:
        apply(state.jobs)

    assert path.read_text() == "".join(["".join(expected.get(line, [line])) for line in lines])


def test_rest_of_a_long_list_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[int] = []
    scanner = persistedstate._Scanner

    def noting(text: str) -> persistedstate._Scanner:
        scanned.append(len(text))
        return scanner(text)

    with PersistedState(path, jobs=[{"name": f"job {number}"} for number in range(1000)]) as state:
        monkeypatch.setattr(persistedstate, "_Scanner", noting)
        state.jobs[70]["name"] = "x"
        state.jobs.append({"name": "y"})
        state.jobs.pop(0)
        state.vacuum()

        assert sum(scanned) < 100
        assert oracle.read(path) == plain(state)


@pytest.mark.parametrize("way", ["alone", "in a transaction"])
def test_change_that_was_interrupted_before_the_text_knew_of_it_has_all_values_compared(
    path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    do_once = StateList._do_once

    def interrupt(*_: Any) -> None:
        monkeypatch.setattr(StateList, "_do_once", do_once)
        raise KeyboardInterrupt

    with PersistedState(path, a=[1, 2, 3]) as state:
        monkeypatch.setattr(StateList, "_do_once", interrupt)
        with state.transaction() if way != "alone" else contextlib.nullcontext():
            with contextlib.suppress(KeyboardInterrupt):
                state.a[1] = 5
            state.a.append(4)
        assert state._tree.document.is_doubtful
        state.vacuum()

        assert oracle.read(path) == plain(state) == {"a": [1, 5, 3, 4]}
