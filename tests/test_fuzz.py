"""Suite J of the reliability plan: valid files, damaged at random.

Promise: such a file opens to what readers without the module find in it, where nothing but a torn tail was dropped; or
it is refused with StateCorrupt, which names a line, and every byte of it stays as it was. There is no other exception,
and no file takes long. A journal that was cut opens to exactly the records that are whole.
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
import yaml
from rounds import rounds

from persistedstate import StateCorrupt

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

DATA = sorted((Path(__file__).parent / "data").glob("*/before.yaml"))
#: Seconds of computing after which a file counts as hanging. None needs a hundredth of it.
PATIENCE = 20.0
#: What 26.1 leaves, and what a rewrite within the file writes: other readers know nothing of it.
REWRITE = re.compile(rb"LAST VALID STATE")
WHOLE_RECORD = re.compile(rb"^--- \[.*\]$", re.MULTILINE)

# ---- Valid files ----

SCALARS: list[Any] = [
    0,
    -1,
    10**18,
    1.5,
    1e300,
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


def insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    junk = chance.choice([b"\n", b" ", b"-", b"---", b": ", b"#", b'"', b"'", b"[", b"]", b"{", b"}", b"\t", b"&a ", b"*a",
                          b"!!str ", b"%", b"|", b">", b"...\n", b"--- \n", b"\r", b"\x85", b"\xff", b"\xc3", b"null", b","])  # fmt: skip
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


# ---- The promise ----


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raise in code that computes for long; the time of other processes does not count."""

    def give_up(*_: object) -> None:
        raise AssertionError("does not end")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def readings(path: Path) -> Iterator[Any]:
    """Return what readers without the module find in the file, as far as they understand it."""
    for reader in ("libyaml" if "libyaml" in oracle.READERS else "pyyaml", "ruamel"):
        with contextlib.suppress(Exception):
            yield read_generously(path, reader)


def read_generously(path: Path, reader: str) -> Any:
    """Return the state in the file: a snapshot may be missing, what a later mapping replaces may be anything."""
    documents = [document for document in oracle.READERS[reader](path.read_bytes().decode()) if document is not None]
    mappings = [number for number, document in enumerate(documents) if isinstance(document, dict)]
    assert not mappings or mappings[0] == 0 or isinstance(documents[0], list)
    last = mappings[-1] if mappings else -1
    return oracle.replay(documents[last] if mappings else {}, documents[last + 1 :])


def is_read_by_others(state: Any, content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    return any(oracle.same(state, found) for found in readings(path))


def check_opened(content: bytes, opened: disk.Opened, path: Path) -> None:
    kept = path.read_bytes()
    assert is_read_by_others(opened.state, kept, path), f"nobody else reads {opened.state}"
    first_line = content.partition(b"\n")[0]
    if content.count(first_line) > 1 and not is_read_by_others(opened.state, content, path):
        return  # a snapshot in front of its own copy, as 26.1 may leave it: the copy is dropped
    assert content.startswith(kept), "it was rewritten"
    assert WHOLE_RECORD.search(content, len(kept)) is None, "a whole record was dropped"
    assert len(opened.warnings) == (len(kept) < len(content)), opened.warnings


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


@rounds(ci=2500, nightly=330_000)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_damaged_file_opens_as_others_read_it_or_is_refused_untouched(
    chunk: int, rounds: int, chance: random.Random
) -> None:
    del chunk  # each draws other files
    opened = 0
    with checks.scratch() as path:
        for _ in range(rounds):
            content = damaged(a_file(chance), chance)
            try:
                opened += check_damaged(content, path)
            except BaseException:
                print(content)
                raise
    print(f"{opened} of {rounds} opened")
