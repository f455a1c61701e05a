"""Suite J: valid files, damaged at random.

Promise: such a file opens to what readers without the module find in it, where nothing but a torn tail was dropped; or
it is refused with StateCorrupt, which names a line, and every byte of it stays as it was. There is no other exception,
and no file takes a second. A journal that was cut opens to exactly the records that are whole.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import checks
import disk
import oracle
import pytest
import strict_reader
import textual
import yaml
from rounds import rounds

import persistedstate
from persistedstate import StateCorrupt

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

DATA = sorted((Path(__file__).parent / "data").glob("*/before.yaml"))
#: Seconds of computing that a file may take. The slowest of 16,000 took 0.14, with the import of ruamel.yaml, and 0.16
#: while coverage was measured.
PATIENCE = 10.0
#: What 26.1 leaves, and what a rewrite within the file writes: other readers know nothing of it.
REWRITE = re.compile(rb"LAST VALID STATE")
#: Of the readers to compare with; the module is silent.
RUAMEL_WARNS = "ignore::ruamel.yaml.error.YAMLWarning"
SEPARATOR = re.compile(r"^---(?=\s)", re.MULTILINE)

# PyYAML and ruamel.yaml find a lone equals sign by itself to be of a type that they cannot construct; it is text.
for loader in yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader):
    loader.add_constructor("tag:yaml.org,2002:value", loader.construct_yaml_str)

# ---- Valid files ----

SCALARS: list[Any] = [
    0,
    -1,
    10**18,
    1.5,
    2.5e300,
    True,
    None,
    "",
    "text",
    "yes",
    "a: b # c",
    "- x",
    "é😀",
    "two\nlines",
    "'\"",
]


def a_value(chance: random.Random, depth: int = 2) -> Any:
    kind = chance.random() if depth else 0.0
    if kind < 0.6:
        return chance.choice(SCALARS)
    if kind < 0.8:
        return [a_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {f"k{number}": a_value(chance, depth - 1) for number in range(chance.randrange(4))}


def containers(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Return every dict and list in a state, with the path to it."""
    yield path, state
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, (dict, list)):
            yield from containers(value, (*path, key))


def a_record(state: Any, chance: random.Random) -> list[Any]:
    """Return a record that fits the state."""
    path, node = chance.choice(list(containers(state)))
    value, size = a_value(chance), len(node)
    if isinstance(node, dict):
        options: list[list[Any]] = [["set", f"k{chance.randrange(5)}", value], ["update", {"k0": value, "k9": 0}]]
        if node:
            options += [["delete", chance.choice(list(node))]]
        if path and chance.random() < 0.2:
            options += [["clear"]]
    else:
        start = chance.randint(0, size)
        options = [["insert", start, value], ["splice", start, chance.randint(start, size), [value, 1]]]
        if node:
            options += [["set", chance.randrange(size), value], ["delete", chance.randrange(size)]]
            options += [["order", chance.sample(range(size), size)]]
    operation, *arguments = chance.choice(options)
    return [operation, list(path), *arguments]


def a_journal(chance: random.Random) -> tuple[bytes, list[bytes], list[Any]]:
    """Return a snapshot, the records behind it, and the states after 0, 1, 2, … of them."""
    state = {f"k{number}": a_value(chance) for number in range(chance.randrange(1, 6))}
    snapshot = yaml.safe_dump(state, sort_keys=False, allow_unicode=True).encode()
    lines, states = [], [copy.deepcopy(state)]
    for _ in range(chance.randrange(8)):
        after = copy.deepcopy(states[-1])
        records = []
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            records.append(a_record(after, chance))
            after = oracle.replay(after, copy.deepcopy(records[-1:]))
        record = records[0] if len(records) == 1 else ["transaction", records]
        lines.append(f"--- {json.dumps(record, separators=(',', ':'), ensure_ascii=False)}\n".encode())
        states.append(after)
    return snapshot, lines, states


def a_file(chance: random.Random) -> bytes:
    """Return a valid file: one that a person wrote, or a snapshot with a journal."""
    if chance.random() < 0.3:
        return chance.choice(DATA).read_bytes()
    snapshot, lines, _ = a_journal(chance)
    return snapshot + b"".join(lines)


# ---- Damage ----


def flip(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def delete(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + content[at + chance.choice([1, 1, 2, 5, 40]) :]


JUNK = [bytes([byte]) for byte in b"\n -#\"'[]{}\t%|>,\r\x85\xff\xc3"]
JUNK += [b"---", b"--- \n", b"...\n", b": ", b"&a ", b"*a", b"!!str ", b"null"]


def insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    junk = chance.choice(JUNK)
    return content[:at] + junk + content[at:]


def duplicate_line(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    line = chance.choice(lines)
    lines.insert(chance.randrange(len(lines) + 1), line)
    return b"".join(lines)


def swap_lines(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def splice(content: bytes, chance: random.Random) -> bytes:
    other = a_file(chance)
    return content[: chance.randrange(len(content) + 1)] + other[chance.randrange(len(other) + 1) :]


def nuls(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    length = chance.choice([1, 3, 20, 512])
    return content[:at] + b"\0" * length + content[at + chance.choice([0, length]) :]


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def crlf(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    first = chance.choice([0, chance.randrange(len(lines))])
    return b"".join(lines[:first]) + b"".join(lines[first:]).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def bom(content: bytes, chance: random.Random) -> bytes:
    mark = b"\xef\xbb\xbf"
    at = chance.choice([0, 0, chance.randrange(len(content) + 1)])
    return content[:at] + mark + content[at:] if not content.startswith(mark) else content.removeprefix(mark)


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    flip, flip, delete, insert, insert, duplicate_line, swap_lines, splice, nuls, truncate, crlf, bom,
]  # fmt: skip


def damaged(content: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        content = chance.choice(DAMAGES)(content, chance) if content else content
    return content


#: Scalars of several lines, which line ends, blank lines and the end of the file may change.
BLOCKS = [
    b"s: |\n  a\n  b\n", b"s: >\n  a\n  b\n\n", b"s: |+\n  a\n\n", b"s: >-\n  a\n   b\n",
    b"l:\n- |\n a\n  \n- >2\n   a\n",
    b"? |\n a\n: 1\n", b'd: "a\n  b\n\n  c"\n', b"d: a\n  b\n\n  c\n",
]  # fmt: skip
ENDS = [b"", b" ", b"\n ", b"\n    ", b"\n\n  #", b"\n#", b"\n...", b"\n... # end\n"]


def with_blocks(content: bytes, chance: random.Random) -> bytes:
    """Return the file with what the damages seldom make: blocks, line ends of several kinds, and other ends."""
    lines = content.splitlines(keepends=True)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(BLOCKS))
    if chance.random() < 0.5:
        lines = [line[:-1] + chance.choice([b"\n", b"\n", b"\r\n", b"\r"]) for line in lines]
    head = chance.choice([b"", b"", b"", b"%YAML 1.1\n---\n"])
    whole = head + b"".join(lines)
    return whole[:-1] + chance.choice(ENDS) if chance.random() < 0.5 else whole


def a_damaged_file(chance: random.Random) -> bytes:
    content = a_file(chance)
    return damaged(with_blocks(content, chance) if chance.random() < 0.3 else content, chance)


# ---- The promise ----


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raise in code that computes for too long; the time of other processes does not count."""

    def give_up(*_: object) -> None:
        raise AssertionError("takes too long")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def readings(path: Path) -> Iterator[Any]:
    """Return what readers without the module find in the file, as far as they understand it."""
    text = path.read_bytes().decode(errors="surrogateescape")
    for reader in ("libyaml" if "libyaml" in oracle.READERS else "pyyaml", "ruamel"):
        with contextlib.suppress(Exception):
            yield state_of(list(oracle.READERS[reader](text)))
        with contextlib.suppress(Exception):  # JSON may be broken into lines where YAML may not
            snapshot, *records = SEPARATOR.split(text)
            if snapshot.startswith("%"):
                snapshot += f"---{records.pop(0)}"
            found = [*oracle.READERS[reader](snapshot)]
            for record in records:
                found += [json.loads(record)] if is_json(record) else oracle.READERS[reader](record)
            yield state_of(found)


def state_of(documents: list[Any]) -> Any:
    """Return the state; a snapshot may be missing, and what a later mapping replaces may be anything."""
    documents = [document for document in documents if document is not None]
    mappings = [number for number, document in enumerate(documents) if isinstance(document, dict)]
    last = mappings[-1] if mappings else -1
    return oracle.replay(documents[last] if mappings else {}, documents[last + 1 :])


def is_read_by_others(state: Any, content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    return is_among(state, content, readings(path)) or is_read_with_tabs(state, content, path)


def is_among(state: Any, content: bytes, found: Iterable[Any]) -> bool:
    """Tell whether a state is one of those that were found; the order of merged keys is another for each reader."""
    if b"<<" in content:
        state, found = textual.by_name(state), map(textual.by_name, found)
    return any(oracle.same(state, one) for one in found)


#: White space with a tab, which YAML 1.2 has between tokens, at line ends and in front of comments.
TABS = re.compile(rb"[ ]*\t[ \t]*")


def is_read_with_tabs(state: Any, content: bytes, path: Path) -> bool:
    """Tell whether others read that where they take tabs: the strict reader, or the others with blanks instead."""
    if b"\t" not in content:
        return False
    if not strict_reader.MISSING:
        with contextlib.suppress(Exception):  # to which a lone carriage return is no line end
            if strict_reader.agrees(strict_reader.state(content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")), state):
                return True
    path.write_bytes(TABS.sub(b" ", content))
    return is_among(state, content, readings(path))


def check_opened(content: bytes, opened: disk.Opened, path: Path) -> None:
    kept = path.read_bytes()
    assert is_read_by_others(opened.state, kept, path), f"nobody else reads {opened.state}"
    if b"\n---\n[" in content or content.count(content.partition(b"\n")[0]) > 1:
        return  # 26.1 died in such a place while it wrote a new snapshot: the file is written anew
    assert content.startswith(kept), "it was rewritten"
    assert not any(map(is_record, content[len(kept) :].split(b"\n"))), "a whole record was dropped"
    assert len(opened.warnings) == (len(kept) < len(content)), opened.warnings


def is_record(line: bytes) -> bool:
    try:
        return line.startswith(b"--- ") and isinstance(json.loads(line[4:]), list)
    except ValueError:
        return False


def is_json(text: str) -> bool:
    with contextlib.suppress(ValueError):
        json.loads(text)
        return True
    return False


def check_refused(content: bytes, refusal: Any, path: Path) -> None:
    assert path.read_bytes() == content
    assert isinstance(refusal, StateCorrupt)
    assert 1 <= refusal.line <= len(re.split(rb"\r\n|\r|\n", content)) + 1
    assert str(path) in str(refusal)


def check_damaged(content: bytes, path: Path) -> bool:
    """Check what a damaged file opens to; return whether it does."""
    path.write_bytes(content)
    with patience():
        opened = disk.open_and_abandon(path)
    if opened.refusal is not None:
        check_refused(content, opened.refusal, path)
    elif not REWRITE.search(content):
        check_opened(content, opened, path)
    return opened.refusal is None


@rounds(ci=1500, nightly=100_000)
def test_cut_journal_opens_to_exactly_the_whole_records(rounds: int, chance: random.Random) -> None:
    with checks.scratch() as path:
        for _ in range(rounds):
            snapshot, lines, states = a_journal(chance)
            content = snapshot + b"".join(lines)
            size = chance.randint(len(snapshot), len(content))
            ends = [len(snapshot) + sum(map(len, lines[:number])) for number in range(1, len(lines) + 1)]
            whole = sum(end - 1 <= size for end in ends)  # a record needs no line feed
            path.write_bytes(content[:size])

            opened = disk.open_and_abandon(path)

            assert oracle.same(opened.state, states[whole]), content[:size]
            torn = 0 if whole and ends[whole - 1] - 1 == size else size - [len(snapshot), *ends][whole]
            assert [f"dropped {torn} bytes" in warning for warning in opened.warnings] == [True] * (torn > 0)


CHUNKS = range(6)


@pytest.mark.filterwarnings(RUAMEL_WARNS)
@rounds(ci=2500, nightly=330_000)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_damaged_file_opens_as_others_read_it_or_is_refused_untouched(
    chunk: int, rounds: int, chance: random.Random
) -> None:
    del chunk  # each draws other files
    opened = 0
    with checks.scratch() as path:
        for _ in range(rounds):
            content = a_damaged_file(chance)
            try:
                opened += check_damaged(content, path)
            except BaseException:
                print(content)
                raise
    print(f"{opened} of {rounds} opened")


def test_valid_files_open_to_what_others_read(chance: random.Random) -> None:
    with checks.scratch() as path:
        for content in [*(file.read_bytes() for file in DATA), *(a_file(chance) for _ in range(100))]:
            assert check_damaged(content, path), content


REFUSED = None


@pytest.mark.filterwarnings(RUAMEL_WARNS)
@pytest.mark.parametrize(
    ("content", "state"),
    [
        pytest.param(b"\n\r\n", {}, id="blank lines with two kinds of ends"),
        pytest.param(b"# a\n\r\n# b\r\n", {}, id="comments with two kinds of ends"),
        pytest.param(b"s: |\n  # a\n", {"s": "# a\n"}, id="block of what looks like comments"),
        pytest.param(b"s: |\n  # a\n  # b\nt: 1\n", {"s": "# a\n# b\n", "t": 1}, id="such a block in front of a key"),
        pytest.param(b"s: >\n  # a\n", {"s": "# a\n"}, id="folded block of what looks like comments"),
        pytest.param(b"? |\n  k", REFUSED, id="key that is a block without an end"),
        pytest.param(b"k: 0\n\xef\xbb\xbfk0:", REFUSED, id="key with a byte order mark, no end"),
        pytest.param(b"l:\n- n: |\n    d", {"l": [{"n": "d"}]}, id="nested block without an end"),
        pytest.param(b"a: 1\n--- b: 2\n", REFUSED, id="mapping on the line of the separator"),
        pytest.param(b'a: 1\n--- Y"set",[],"a",{"k": 2}]\n', REFUSED, id="record that became a mapping"),
        pytest.param(b'a: 1\n--- ["set",[],"a",\0 2]\n--- ["set",[],"a",3]\n', REFUSED, id="hole in front of a record"),
        pytest.param(b'a: 1\n--- ["set",[],"a",\0\0]\n', {"a": 1}, id="hole in the last record"),
        pytest.param(b"s: |+\r\n\n0: {}", {"s": "\n", 0: {}}, id="keeping block with two kinds of line ends"),
        pytest.param(
            b"s: |\r\n # a\r\n\nt: 0\n", {"s": "# a\n", "t": 0}, id="its comments with two kinds of line ends"
        ),
        pytest.param(b"s: |+\r\r\n", {"s": "\n"}, id="carriage return in front of a line end"),
        pytest.param(b"s: |\n a\n  \nt: 0\n", {"s": "a\n \n", "t": 0}, id="block that ends in blanks"),
        pytest.param(b"l:\n- |\n a\n  \n- 0\n", {"l": ["a\n \n", 0]}, id="nested block that ends in blanks"),
        pytest.param(b"s: >\n a\n  ", {"s": "a\n "}, id="block that ends in blanks without an end"),
        pytest.param(b": >\n a\n  ", {None: "a\n "}, id="such a block below the null key"),
        pytest.param(b": |2\n   ", {None: " "}, id="block of blanks without an end"),
        pytest.param(b"? |\n a\n  ", REFUSED, id="key that is such a block"),
        pytest.param(
            b"a: &x {b: 1}\n<<: *x\ns: |\n a", {"b": 1, "a": {"b": 1}, "s": "a"}, id="block without an end, merge key"
        ),
        pytest.param(b's: |+\n\n---\n["set",[],a,2]\n', {"s": "\n", "a": 2}, id="keeping block above a record of 26.1"),
        pytest.param(b's: |\n a\n---\n["set",[],a,2]\n', {"s": "a\n", "a": 2}, id="block above a record of 26.1"),
        pytest.param(b"%YAML 1.1\n---\na: 1e3\n", {"a": 1000.0}, id="float without a dot in YAML 1.1"),
        pytest.param(b"%YAML 1.1\n---\na: 0\n---\na: yes\n", {"a": True}, id="second mapping in YAML 1.1"),
        pytest.param(b"%YAML 1.1\n---\na: 0\n--- [set, [], a, yes]\n", {"a": True}, id="record in YAML 1.1"),
        pytest.param(b"%TAG ! x:\n%YAML 1.1\n---\na: 0\n---\na: yes\n", {"a": True}, id="YAML 1.1 behind a tag"),
        pytest.param(b"a: 1\n--- {b: 2}\n# c\n", {"b": 2}, id="mapping beside the separator, comment below"),
        pytest.param(b"a: 1\n--- {b: 2,\n c: 3}\n", {"b": 2, "c": 3}, id="mapping of two lines beside the separator"),
        pytest.param(
            b"a: 1\n--- # c\rb: 2\nd: 3\n", {"b": 2, "d": 3}, id="comment with another line end at the separator"
        ),
        pytest.param(b"a: 1\n---\rb: 2\n", {"b": 2}, id="separator with another line end"),
        pytest.param(b'a: 1\n---\r{"b": 2}\n', {"b": 2}, id="JSON below a separator with another line end"),
        pytest.param(b"??", REFUSED, id="question marks"),
        pytest.param(b"!!", REFUSED, id="exclamation marks"),
        pytest.param(b"a: 1\n\xef\xbb\xbfb: 2\n", REFUSED, id="byte order mark within the file"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfa: 1\n", REFUSED, id="two byte order marks"),
        pytest.param(b"a: 1\n--- # c\n\xef\xbb\xbfb: 2\n", REFUSED, id="byte order mark of a second mapping"),
        pytest.param(b"%YAML 1.1\n---\n%YAML 0.2\n---\na: 1\n", REFUSED, id="version of YAML that is none"),
        pytest.param(b"%YAML 1.3\n---\na: 1\n", REFUSED, id="version of YAML that is none yet"),
        pytest.param(b"a: =\n", {"a": "="}, id="equals sign"),
        pytest.param(b"a: 1\n--- {b: 2}\n...\n", {"b": 2}, id="mapping beside the separator, end of the document"),
        pytest.param(b"a: 1\n... # c\n", {"a": 1}, id="end of the document"),
        pytest.param(b"---\n...\n", {}, id="end of an empty document"),
        pytest.param(b"...\n", REFUSED, id="end of no document"),
        pytest.param(b"# c\n...\n---\na: 1\n", REFUSED, id="end of no document in front of another"),
        pytest.param(b"a: 1\n... b\n", REFUSED, id="text beside the end of the document"),
    ],
)
def test_file_opens_as_others_read_it(content: bytes, state: Any) -> None:
    with checks.scratch() as path:
        path.write_bytes(content)

        opened = disk.open_and_abandon(path)

        assert (opened.state is None) == (state is REFUSED), opened
        assert oracle.same(opened.state, state), opened


# ---- Looking for damage, and repairing it ----


@rounds(ci=1500, nightly=100_000)
def test_check_finds_something_exactly_where_opening_refuses_or_drops(rounds: int, chance: random.Random) -> None:
    with checks.scratch() as path:
        for _ in range(rounds):
            content = a_damaged_file(chance)
            path.write_bytes(content)

            with patience():
                problems = persistedstate.check(path)

            assert path.read_bytes() == content
            opened = disk.open_and_abandon(path)
            is_rewritten = opened.refusal is None and not content.startswith(path.read_bytes())
            assert is_rewritten or bool(problems) == (opened.refusal is not None or bool(opened.warnings)), content


@rounds(ci=1500, nightly=100_000)
def test_repair_makes_every_damaged_file_open(rounds: int, chance: random.Random) -> None:
    for _ in range(rounds):
        with checks.scratch() as path:
            content = a_damaged_file(chance)
            path.write_bytes(content)

            with patience():
                repair = persistedstate.repair(path)

            after = path.read_bytes()
            assert (repair.before, repair.after) == (len(content), len(after)), content
            assert bool(repair.problems) == (after != content) == (repair.damaged is not None), content
            assert [entry.name for entry in path.parent.iterdir() if entry != path] == [
                Path(entry).name for entry in [repair.damaged] if entry
            ]
            opened = disk.open_and_abandon(path)
            assert (opened.refusal, opened.warnings) == (None, []), content
            assert persistedstate.check(path) == []


@rounds(ci=500, nightly=50_000)
def test_repair_cuts_only_the_record_that_is_damaged(rounds: int, chance: random.Random) -> None:
    for _ in range(rounds):
        snapshot, lines, states = a_journal(chance)
        junk = chance.choice(
            [b'--- ["set",[],"k0",{oops]\n', b"--- [\0\0\0]\n", b'--- ["unknown",[]]\n', b"--- [1,\xff]\n"]
        )
        with checks.scratch() as path:
            path.write_bytes(snapshot + b"".join(lines) + junk + b'--- ["set",[],"after",1]\n')

            repair = persistedstate.repair(path)

            opened = disk.open_and_abandon(path)
            assert oracle.same(opened.state, {**states[-1], "after": 1}), (snapshot, lines, junk)
            assert repair.damaged is not None
            assert junk.strip() in Path(repair.damaged).read_bytes()
