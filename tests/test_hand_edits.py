"""A person's text is theirs: what a change of the state may change in a file that was written by hand, and what not.

`data/<case>/before.yaml` is a corpus of hand-written files. For each file, each place in it and each kind of change,
the lines that may differ are computed with an independent parser (textual.py); the exact text of the tricky decisions
is in GOLDEN. Random files and random changes come from handwriting.py.
"""

from __future__ import annotations

import copy
import pathlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import strict_reader
import test_fast_paths
from checks import reopened, scratch
from handwriting import Dice, Drawn, Session, Unrecorded, hand_written, hand_written_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import same
from rounds import rounds, some
from textual import (
    Entry,
    Outline,
    assert_comments_kept,
    assert_lines_kept,
    assert_only_lines_changed,
    by_name,
    read,
    value_at,
    with_value,
    without,
)

from persistedstate import PersistedState, StateCorrupt, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from _pytest.mark import ParameterSet

#: The independent reader warns about an anchor that is defined twice; a person may do that.
pytestmark = pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")

DATA = pathlib.Path(__file__).parent / "data"
FILES = {folder.name: (folder / "before.yaml").read_bytes() for folder in sorted(DATA.iterdir()) if folder.is_dir()}

#: Files with changes behind the snapshot; a torn vacuum of 26.1 is no stream that another reader understands.
TORN = ["half_vacuum_261"]
JOURNALS = [case for case in FILES if case.startswith("journal")]
#: Files without a value.
NOTHING = ["empty", "blank_only", "comment_only", "head_only"]
PLAIN = [case for case in FILES if case not in {*TORN, *JOURNALS, *NOTHING}]
OUTLINES = {case: Outline(FILES[case]) for case in PLAIN}
#: Files in which words mean the same to YAML 1.1 and 1.2.
AGREED = [case for case in PLAIN if same(read(FILES[case]), read(FILES[case], "pyyaml"))]

#: Files with anchors: an entry that uses them may be rewritten without them when its value changes.
KNOTTED = [case for case in PLAIN if OUTLINES[case].root.knotted]

#: What a scalar is changed to: other types, text that needs quotes, several lines, containers.
REPLACEMENTS: list[Any] = [7919, None, "it's: a #trap", "new words", "two\nlines\n", "new words", {}, ["x", {"k": 1}]]
#: What is added to mappings and lists.
ADDITIONS: list[Any] = [7919, "it's: a #trap", "two\nlines\n", {"k": [1, {"x": "y"}]}, [["a", "b"], []]]


# ---------------------------------------------------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------------------------------------------------


def check_change(path: pathlib.Path, before: bytes, change: Callable[[Any], object], expected: Any) -> bytes:
    """Apply a change in a session of its own; assert that every reader sees `expected`; return the file's bytes."""
    path.write_bytes(before)
    with PersistedState(path) as state:
        change(state)
        running = path.read_bytes()
        assert_same(plain(state), expected, before)
    assert_same(read(running), expected, before)
    after = path.read_bytes()
    assert_same(read(after), expected, before)
    strict_reader.assert_valid(before, running, expected)
    strict_reader.assert_valid(before, after, expected)
    assert_same(reopened(path), expected, before)
    return after


def assert_same(found: Any, expected: Any, before: bytes) -> None:
    """Compare values exactly; where keys come out of a merge their order is nobody's promise."""
    if b"<<" in before:
        found, expected = by_name(found), by_name(expected)
    assert same(found, expected), f"{found!r}\n is not\n{expected!r}"


def put(*place: Any, to: Any) -> Callable[[Any], object]:
    """Return the change that assigns one place."""
    return lambda state: value_at(state, place[:-1]).__setitem__(place[-1], to)


def drop(*place: Any) -> Callable[[Any], object]:
    """Return the change that deletes one place."""
    return lambda state: value_at(state, place[:-1]).__delitem__(place[-1])


def at(*place: Any, do: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return the change that does something with the node at a place."""
    return lambda state: do(value_at(state, place))


def append(*place: Any, value: Any) -> Callable[[Any], object]:
    """Return the change that appends to the list at a place."""
    return lambda state: value_at(state, place).append(value)


def insert(*place: Any, index: int, value: Any) -> Callable[[Any], object]:
    """Return the change that inserts into the list at a place."""
    return lambda state: value_at(state, place).insert(index, value)


def crossed(places: list[ParameterSet], values: list[Any]) -> list[ParameterSet]:
    """Give each place two of the values in turn, so that every file meets all of them."""
    return [
        pytest.param(*place.values, value, id=f"{place.id}-{value!r:.30}")
        for number, place in enumerate(places)
        for value in (values[number % len(values)], values[(number + len(values) // 2) % len(values)])
    ]


def entries(*kinds: str) -> list[ParameterSet]:
    """Return (case, entry) for every entry of the corpus whose value is of one of these kinds."""
    return [
        pytest.param(case, entry, id=f"{case}-{entry.name}")
        for case, outline in OUTLINES.items()
        for entry in outline.entries
        if entry.node.kind in kinds
    ]


def containers(kind: str) -> list[ParameterSet]:
    """Return (case, path) for every mapping or every sequence of the corpus."""
    return [
        pytest.param(case, place, id=f"{case}-{'.'.join(map(str, place)) or 'root'}")
        for case, outline in OUTLINES.items()
        for place, node in outline.holders()
        if node.kind == kind
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Reading, and leaving alone
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PLAIN)
def test_opening_and_closing_keeps_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    PersistedState(path).close()

    assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", [*PLAIN, *JOURNALS, *NOTHING])
def test_content_is_what_another_reader_reads(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path) as state:
        assert_same(plain(state), read(FILES[case]), FILES[case])
    assert_same(read(path.read_bytes()), read(FILES[case]), FILES[case])
    assert_same(reopened(path), read(FILES[case]), FILES[case])


@pytest.mark.skipif(bool(strict_reader.MISSING), reason=strict_reader.MISSING)
def test_the_strict_reader_is_strict() -> None:
    for text in "m:\n  l: [a\n]\n", "a: b: c\n", "a: 1\na: 2\n", "a: *x\n", "a:\n\tb: 1\n":
        errors, _ = strict_reader.read(text)
        assert errors, text


@pytest.mark.skipif(bool(strict_reader.MISSING), reason=strict_reader.MISSING)
@pytest.mark.parametrize("case", [*PLAIN, *JOURNALS, *NOTHING])
def test_content_is_what_a_strict_reader_of_yaml_1_2_reads(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path) as state:
        errors, _ = strict_reader.read(FILES[case].decode())
        strict_reader.assert_valid(FILES[case], FILES[case], plain(state))

    assert errors == []


@pytest.mark.parametrize("case", PLAIN)
def test_vacuum_without_a_change_keeps_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path) as state:
        state.vacuum()

        assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", PLAIN)
def test_read_only_opening_keeps_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path, _readonly=True) as state:
        assert_same(plain(state), read(FILES[case]), FILES[case])

    assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", [case for case in PLAIN if read(FILES[case])])
def test_default_of_a_present_key_keeps_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])
    names = [
        key for key in read(FILES[case]) if isinstance(key, str) and key.isidentifier() and not key.startswith("_")
    ]

    defaults: dict[str, Any] = {name: "another" for name in names if name not in dir(PersistedState)}
    PersistedState(path, **defaults).close()

    assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", PLAIN)
def test_assigning_equal_values_keeps_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path) as state:
        for entry in OUTLINES[case].entries:
            put(*entry.path, to=value_at(read(FILES[case]), entry.path))(state)

    assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", [case for case in PLAIN if case not in KNOTTED])
def test_changes_taken_back_before_the_vacuum_keep_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path) as state:
        for entry in OUTLINES[case].entries:
            if entry.node.kind == "scalar":
                put(*entry.path, to="for a moment")(state)
                put(*entry.path, to=value_at(read(FILES[case]), entry.path))(state)

    assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", NOTHING)
def test_file_without_a_value_gets_the_defaults_and_keeps_its_comments(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path, last_id=0, names=["x"]) as state:
        assert same(plain(state), {"last_id": 0, "names": ["x"]})
        assert same(read(path.read_bytes()), {"last_id": 0, "names": ["x"]})

    after = path.read_bytes()
    assert same(read(after), {"last_id": 0, "names": ["x"]})
    assert [line for line in FILES[case].splitlines() if line.startswith(b"#")] == [
        line for line in after.splitlines() if line.startswith(b"#")
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Changes behind the snapshot
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in JOURNALS if (DATA / case / "closed.yaml").exists()])
def test_closing_leaves_one_document_with_the_comments_of_what_survives(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    PersistedState(path).close()

    # 26.1 wrote a blank line before each record; whether the first one stays is nobody's promise
    assert path.read_bytes().rstrip(b"\n") == (DATA / case / "closed.yaml").read_bytes().rstrip(b"\n")


def test_half_done_vacuum_of_26_1_opens(path: pathlib.Path) -> None:
    """26.1 writes the new snapshot twice behind the last record, then over the head, and may die in between."""
    path.write_bytes(FILES["half_vacuum_261"])

    with PersistedState(path) as state:
        assert same(plain(state), {"a": 3, "list": ["x", "y"]})

    assert same(read(path.read_bytes()), {"a": 3, "list": ["x", "y"]})


# ---------------------------------------------------------------------------------------------------------------------
# One scalar changed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "entry", "value"), crossed(entries("scalar", "alias"), REPLACEMENTS))
def test_changed_scalar_changes_only_its_own_lines(path: pathlib.Path, case: str, entry: Entry, value: Any) -> None:
    before, outline = FILES[case], OUTLINES[case]
    expected = with_value(read(before), entry.path, value)

    after = check_change(path, before, put(*entry.path, to=value), expected)

    assert_scalar_lines(outline, entry, after, value)


def assert_scalar_lines(outline: Outline, entry: Entry, after: bytes, value: Any) -> None:
    """Assert that only the lines of one scalar differ, and in a single line only the scalar itself."""
    node = entry.node
    if (tangled := outline.tangled(entry.path)) is not None:
        assert_lines_kept(outline.data, after, tangled)
        return
    first = node.first if node.first == entry.first or node.flow or entry.holder.flow else entry.first
    changed = assert_only_lines_changed(outline.data, after, first, node.last + 1)
    assert_comments_kept(outline, after, set(range(node.first, node.last + 1)) if node.style in {"|", ">"} else set())
    expected = [without_blanks(line) for line in single_lines(outline, entry, value)]
    assert not expected or without_blanks(b"".join(changed).decode()) in expected


def without_blanks(line: str) -> str:
    """Return a line without its blanks: how a comment is set off, or the items of a flow list, is not promised."""
    return "".join(line.split())


def single_lines(outline: Outline, entry: Entry, value: Any) -> list[str]:
    """Return the lines that a changed scalar may leave, when the contract leaves hardly a choice."""
    node, line = entry.node, outline.lines[entry.node.last]
    if node.kind != "scalar" or node.tagged or not entry.first == node.first == node.last or node.style in {"|", ">"}:
        return []
    if outline.text[entry.start] == "?":
        return []
    if value == 7919 and type(value) is int:
        texts = ["7919"]
    elif value == "new words":
        texts = [node.style + value + node.style, *['"new words"'] * entry.holder.flow]
    else:
        return []
    start = node.start - (outline.text.rfind("\n", 0, node.start) + 1)
    return [line[:start] + text + line[start + node.end - node.start :] for text in texts]


@pytest.mark.parametrize("case", [case for case in PLAIN if case not in KNOTTED])
def test_every_scalar_changed_at_once_keeps_every_comment(path: pathlib.Path, case: str) -> None:
    before, outline = FILES[case], OUTLINES[case]
    scalars = [entry for entry in outline.entries if entry.node.kind == "scalar"]
    expected = read(before)

    def change(state: Any) -> None:
        for number, entry in enumerate(scalars):
            put(*entry.path, to=f"changed {number}")(state)

    change(expected)
    after = check_change(path, before, change, expected)

    headers = {entry.node.first for entry in scalars if entry.node.style in {"|", ">"}}
    assert_comments_kept(outline, after, headers)
    touched = {line for entry in scalars for line in range(entry.first, entry.last + 1)}
    assert_lines_kept(before, after, touched)


# ---------------------------------------------------------------------------------------------------------------------
# One entry deleted
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "entry"), entries("scalar", "alias", "mapping", "sequence"))
def test_deleted_entry_takes_its_own_lines_and_comments_only(path: pathlib.Path, case: str, entry: Entry) -> None:
    before, outline = FILES[case], OUTLINES[case]
    expected = without(read(before), entry.path)

    after = check_change(path, before, drop(*entry.path), expected)

    if (tangled := outline.tangled(entry.path)) is not None:
        assert_lines_kept(before, after, tangled)
    elif len(entry.holder.entries) == 1:
        assert_emptied(outline, entry, after)
    elif entry.holder.flow:
        assert_flow_deletion(outline, entry, after)
    elif outline.alone(entry):
        assert_lines_deleted(outline, entry, after)
    else:
        assert_first_deleted(outline, entry, after)


def assert_lines_deleted(outline: Outline, entry: Entry, after: bytes) -> None:
    """Exactly the entry, the comment block above it and what trails inside of it is gone."""
    sure, unsure = outline.trailing(entry)
    first = min([*outline.own_comments(entry), entry.first])
    end = entry.last + 1 + len(sure)
    left = assert_only_lines_changed(outline.data, after, first, end + len(unsure))
    rest = [outline.lines[line].encode() for line in unsure]
    assert all(line in rest for line in left), after.decode()


def assert_first_deleted(outline: Outline, entry: Entry, after: bytes) -> None:
    """The next entry moves up behind the dash; nothing else changes and no comment of another entry is lost."""
    following = entry.holder.entries[entry.index + 1]
    assert_only_lines_changed(outline.data, after, entry.first, following.first + 1)
    assert_comments_kept(outline, after, set(range(entry.first, entry.last + 1)))


def assert_flow_deletion(outline: Outline, entry: Entry, after: bytes) -> None:
    """Lines up to the neighbours may change, for the commas; comments of the neighbours stay."""
    siblings, holder = entry.holder.entries, entry.holder
    first = siblings[entry.index - 1].last if entry.index else holder.first
    last = siblings[entry.index + 1].first if entry.index + 1 < len(siblings) else holder.last
    assert_only_lines_changed(outline.data, after, first, last + 1)
    lost = set(outline.own_comments(entry))
    if entry.index + 1 == len(siblings) or siblings[entry.index + 1].first > entry.last:
        lost |= set(range(entry.first, entry.last + 1))
    assert_comments_kept(outline, after, lost)


def assert_emptied(outline: Outline, entry: Entry, after: bytes) -> None:
    """The holder becomes `{}` or `[]` where it stood; what is outside stays, and so does a comment beside its key."""
    parent = entry.parent
    if parent is None:
        first = min([*outline.own_comments(entry), entry.first, entry.holder.first])
        assert_only_lines_changed(outline.data, after, first, max(entry.last, entry.holder.last) + 1)
        return
    sure, unsure = outline.trailing(parent)
    assert_only_lines_changed(outline.data, after, parent.first, parent.last + 1 + len(sure) + len(unsure))
    inside = set(range(parent.first + (entry.first != parent.first), parent.last + 1))
    assert_comments_kept(outline, after, {*inside, *sure, *unsure})


# ---------------------------------------------------------------------------------------------------------------------
# One entry added
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "place", "value"), crossed(containers("mapping"), ADDITIONS))
def test_new_key_comes_after_the_last_entry(path: pathlib.Path, case: str, place: tuple[Any, ...], value: Any) -> None:
    before, outline = FILES[case], OUTLINES[case]
    expected = with_value(read(before), (*place, "added_key"), value)

    after = check_change(path, before, put(*place, "added_key", to=value), expected)

    assert_added_at_the_end(outline, place, after)


@pytest.mark.parametrize(("case", "place", "value"), crossed(containers("sequence"), ADDITIONS))
def test_appended_item_comes_after_the_last_item(
    path: pathlib.Path, case: str, place: tuple[Any, ...], value: Any
) -> None:
    before, outline = FILES[case], OUTLINES[case]
    append(*place, value=value)(expected := read(before))

    after = check_change(path, before, append(*place, value=value), expected)

    assert_added_at_the_end(outline, place, after)


def assert_added_at_the_end(outline: Outline, place: tuple[Any, ...], after: bytes) -> None:
    """Only new lines, after the last entry and before the comments that trail it."""
    holder = outline.entry(place).node if place else outline.root
    if (tangled := outline.tangled(place)) is not None:
        assert_lines_kept(outline.data, after, tangled)
    elif holder.flow or not holder.entries:
        first, last = (outline.entry(place).first, outline.entry(place).last) if place else (holder.first, holder.last)
        assert_only_lines_changed(outline.data, after, first, last + 1)
        assert_comments_kept(outline, after, set())
    else:
        final = holder.entries[-1]
        sure, unsure = outline.trailing(final)
        start = final.last + 1 + len(sure)
        first = unterminated_block(outline, final) or start
        assert_only_lines_changed(outline.data, after, first, start + len(unsure))
        assert_lines_kept(outline.data, after, set(range(first, start)))


def unterminated_block(outline: Outline, entry: Entry) -> int | None:
    """Return the first line of a block scalar that lacks its newline at the end of the file, and so its last one."""
    deepest = entry
    while deepest.node.entries:
        deepest = deepest.node.entries[-1]
    return deepest.node.first if deepest.node.style in {"|", ">"} and not outline.data.endswith(b"\n") else None


@pytest.mark.parametrize(("case", "place", "value"), crossed(containers("sequence"), ADDITIONS))
def test_item_inserted_at_the_front_leaves_the_others_alone(
    path: pathlib.Path, case: str, place: tuple[Any, ...], value: Any
) -> None:
    before, outline = FILES[case], OUTLINES[case]
    insert(*place, index=0, value=value)(expected := read(before))

    after = check_change(path, before, insert(*place, index=0, value=value), expected)

    holder, entry = outline.entry(place).node, outline.entry(place)
    if (tangled := outline.tangled(place)) is not None:
        assert_lines_kept(before, after, tangled)
    elif holder.flow or not holder.entries:
        assert_only_lines_changed(before, after, entry.first, entry.last + 1)
    elif outline.alone(first := holder.entries[0]):
        top = min([*outline.own_comments(first), first.first])
        assert_only_lines_changed(before, after, entry.first + 1, top)
        assert_lines_kept(before, after, set())
    else:
        assert_only_lines_changed(before, after, first.first, first.first + 1)
    assert_comments_kept(outline, after, tangled or set())


# ---------------------------------------------------------------------------------------------------------------------
# Several changes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("case", [case for case in PLAIN if case not in {*KNOTTED, "no_final_newline_block"}])
def test_several_changes_at_once_leave_the_rest_alone(path: pathlib.Path, case: str, step: int) -> None:
    """In every list and mapping: one entry added at the end, each second (third) one deleted."""
    before, outline = FILES[case], OUTLINES[case]
    gone = [entry for entry in reversed(outline.entries) if entry.index % step == step - 1]
    holders = [(place, node) for place, node in outline.holders() if not any(doomed(place, entry) for entry in gone)]

    def change(state: Any) -> None:
        for number, (place, _) in enumerate(holders):
            target = value_at(state, place)
            target.append(f"added {number}") if is_list(target) else target.__setitem__("added", number)
        for entry in gone:
            drop(*entry.path)(state)

    change(expected := read(before))
    after = check_change(path, before, change, expected)

    may_change = {line for entry in gone for line in lines_about(outline, entry)}
    may_change |= {line for place, node in holders if node.flow or not node.entries for line in covered(outline, place)}
    assert_lines_kept(before, after, may_change)
    assert same(read(after, "pyyaml"), expected) or case not in AGREED


def is_list(node: Any) -> bool:
    """Tell a list from a mapping, plain or not."""
    return not hasattr(node, "keys")


def doomed(place: tuple[Any, ...], entry: Entry) -> bool:
    """Tell whether a place is in an entry that is deleted."""
    return repr(place[: len(entry.path)]) == repr(entry.path)


def lines_about(outline: Outline, entry: Entry) -> set[int]:
    """Return all lines that a deletion may touch: the entry, its comments, what follows it, its neighbours' commas."""
    sure, unsure = outline.trailing(entry)
    own = {*outline.own_comments(entry), *range(entry.first, entry.last + 1), *sure, *unsure}
    return own | (set(range(entry.holder.first, entry.holder.last + 1)) if entry.holder.flow else set())


def covered(outline: Outline, place: tuple[Any, ...]) -> range:
    """Return the lines of a container with its key."""
    if not place:
        return range(outline.root.first, outline.root.last + 1)
    return range(outline.entry(place).first, outline.entry(place).last + 1)


@pytest.mark.parametrize("case", PLAIN)
def test_transaction_that_fails_keeps_every_byte(path: pathlib.Path, case: str) -> None:
    path.write_bytes(FILES[case])

    with PersistedState(path) as state:
        with pytest.raises(ZeroDivisionError), state.transaction():
            for key in list(state):
                del state[key]
            1 / 0  # noqa: B018
        assert_same(plain(state), read(FILES[case]), FILES[case])

    assert path.read_bytes() == FILES[case]


@pytest.mark.parametrize("case", PLAIN)
def test_transaction_changes_the_text_as_single_changes_do(path: pathlib.Path, case: str) -> None:
    before, outline = FILES[case], OUTLINES[case]
    scalars = [entry.path for entry in outline.entries if entry.node.kind == "scalar"][::2]

    def change(state: Any) -> None:
        for number, place in enumerate(scalars):
            put(*place, to=number + 1000)(state)

    def change_together(state: PersistedState) -> None:
        with state.transaction():
            change(state)

    change(expected := read(before))
    assert check_change(path, before, change, expected) == check_change(path, before, change_together, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Golden examples
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golden:
    """A text, changes (each in a session of its own), and the text that must be there afterwards."""

    fact: str
    before: str
    changes: list[Callable[[Any], object]]
    after: str


SORT_BY_NAME = at("jobs", do=lambda node: node.sort(key=lambda job: job["name"]))

GOLDEN = [
    # --- scalars
    Golden("comment beside a changed scalar stays", "a: 1  # one\nb: 2\n", [put("a", to=5)], "a: 5  # one\nb: 2\n"),
    Golden("comment above a changed scalar stays", "# one\na: 1\nb: 2\n", [put("a", to=5)], "# one\na: 5\nb: 2\n"),
    Golden("single quotes stay", "a: 'x'  # c\n", [put("a", to="y z")], "a: 'y z'  # c\n"),
    Golden("single quotes are doubled", "a: 'x'\n", [put("a", to="it's")], "a: 'it''s'\n"),
    Golden("double quotes stay", 'a: "x"  # c\n', [put("a", to="y")], 'a: "y"  # c\n'),
    Golden("double quotes escape", 'a: "x"\n', [put("a", to='say "y"\n')], 'a: "say \\"y\\"\\n"\n'),
    Golden("a quoted string becomes a number", 'a: "1"\n', [put("a", to=2)], "a: 2\n"),
    Golden("a number becomes digits in quotes", "a: 1  # c\n", [put("a", to="2")], 'a: "2"  # c\n'),
    Golden("yes is quoted for other readers", "a: yes\nb: 1\n", [put("b", to="yes")], 'a: yes\nb: "yes"\n'),
    Golden("plain words stay plain", "a: some words\n", [put("a", to="other words")], "a: other words\n"),
    Golden(
        "number spellings elsewhere stay", "a: 0x1F\nb: 1_000\nc: 1\n", [put("c", to=2)], "a: 0x1F\nb: 1_000\nc: 2\n"
    ),
    Golden("an item keeps its comment", "l:\n- a  # A\n- b  # B\n", [put("l", 0, to="x")], "l:\n- x  # A\n- b  # B\n"),
    Golden(
        "a change deep down stays there",
        "a:\n    # x\n    b:\n      - c: 1   # one\n        d: 2\n",
        [put("a", "b", 0, "c", to=5)],
        "a:\n    # x\n    b:\n      - c: 5   # one\n        d: 2\n",
    ),
    Golden(
        "hash lines in a literal block are text",
        "t: |\n  x\n  # y\nb: 1\nc: 2\n",
        [drop("b")],
        "t: |\n  x\n  # y\nc: 2\n",
    ),
    Golden(
        "a comment after a literal block belongs to the next key",
        "t: |\n  x\n# about b\nb: 1\nc: 2\n",
        [drop("b")],
        "t: |\n  x\nc: 2\n",
    ),
    # --- deleting keys
    Golden("header after a blank line stays", "# head\n\n# about a\na: 1\nb: 2\n", [drop("a")], "# head\n\nb: 2\n"),
    Golden("comment block above goes", "# about\n# a\na: 1\nb: 2\n", [drop("a")], "b: 2\n"),
    Golden("comment of a middle key goes", "a: 1\n\n# one\n# two\nb: 2\nc: 3\n", [drop("b")], "a: 1\n\nc: 3\n"),
    Golden("free comment stays", "a: 1\n# free\n\n# b\nb: 2\nc: 3\n", [drop("b")], "a: 1\n# free\n\nc: 3\n"),
    Golden("comment of the next key stays", "a: 1\n# about b\nb: 2\n", [drop("a")], "# about b\nb: 2\n"),
    Golden("footer stays", "a: 1\nb: 2\n# footer\n", [drop("b")], "a: 1\n# footer\n"),
    Golden("the end of a nested block goes with it", "a:\n  x: 1\n  # end of a\nb: 2\n", [drop("a")], "b: 2\n"),
    Golden(
        "the end of a nested block is not the next key's",
        "a:\n  x: 1\n  # end of a\n# about b\nb: 2\nc: 3\n",
        [drop("b")],
        "a:\n  x: 1\n  # end of a\nc: 3\n",
    ),
    Golden(
        "comments inside a deleted block go",
        "a:  # opens\n  # about x\n  x: 1  # one\n\n  y: 2\nb: 2\n",
        [drop("a")],
        "b: 2\n",
    ),
    Golden("blank lines around a deleted key stay", "a: 1\n\nb: 2\n\nc: 3\n", [drop("b")], "a: 1\n\n\nc: 3\n"),
    Golden("a complex key goes whole", "? a\n: 1\n? b\n# between\n: 2\nc: 3\n", [drop("b")], "? a\n: 1\nc: 3\n"),
    Golden("head and its comment stay", "--- # head\na: 1\nb: 2\n", [drop("a")], "--- # head\nb: 2\n"),
    Golden("a multi-line value goes whole", 'a: "x\n  y"\nb: p\n  q\nc: 3\n', [drop("a"), drop("b")], "c: 3\n"),
    Golden(
        "clearing the root keeps the header", "# head\n\na: 1\nb: 2\n", [at(do=lambda s: s.clear())], "# head\n\n{}\n"
    ),
    Golden("the root fills again", "# head\n\n{}\n", [put("a", to=1)], "# head\n\na: 1\n"),
    Golden("the root is emptied and filled", "a: 1\n", [drop("a"), put("b", to=[1])], "b:\n- 1\n"),
    # --- first key behind a dash
    Golden("the second key takes the dash", "l:\n- name: x\n  age: 3\n", [drop("l", 0, "name")], "l:\n- age: 3\n"),
    Golden(
        "the second key takes the dash with its comment",
        "l:\n  - name: x  # X\n    age: 3  # years\n    k: 1\n  - name: y\n",
        [drop("l", 0, "name")],
        "l:\n  - age: 3  # years\n    k: 1\n  - name: y\n",
    ),
    Golden(
        "a wide dash stays wide", "l:\n-   a: 1\n    b: 2\n    c: 3\n", [drop("l", 0, "a")], "l:\n-   b: 2\n    c: 3\n"
    ),
    Golden("an item becomes empty", "l:\n- a: 1\n- b: 2\n", [drop("l", 0, "a")], "l:\n- {}\n- b: 2\n"),
    Golden("a nested list loses its first", "l:\n- - a\n  - b\n- c\n", [drop("l", 0, 0)], "l:\n- - b\n- c\n"),
    Golden(
        "a nested list gets a new first",
        "l:\n- - a\n  - b\n",
        [insert("l", 0, index=0, value="z")],
        "l:\n- - z\n  - a\n  - b\n",
    ),
    # --- emptying and filling
    Golden("an emptied list keeps its comment", "jobs:  # c\n- a\nz: 1\n", [drop("jobs", 0)], "jobs: []  # c\nz: 1\n"),
    Golden("an emptied mapping keeps its comment", "m:  # c\n  x: 1\nz: 1\n", [drop("m", "x")], "m: {}  # c\nz: 1\n"),
    Golden(
        "a filled list is a block again",
        "jobs:  # c\n- a\nz: 1\n",
        [drop("jobs", 0), append("jobs", value="b")],
        "jobs:  # c\n- b\nz: 1\n",
    ),
    Golden(
        "a filled mapping is a block again",
        "m:  # c\n  x: 1\nz: 1\n",
        [drop("m", "x"), put("m", "w", to=2)],
        "m:  # c\n  w: 2\nz: 1\n",
    ),
    Golden(
        "emptied and filled in one session",
        "jobs:  # c\n- a\nz: 1\n",
        [at("jobs", do=lambda node: (node.clear(), node.append("b")))],
        "jobs:  # c\n- b\nz: 1\n",
    ),
    # --- adding keys
    Golden("a new key comes before the footer", "a: 1\n# footer\n", [put("b", to=2)], "a: 1\nb: 2\n# footer\n"),
    Golden("a new key comes before blank lines", "a: 1\n\n# footer\n", [put("b", to=2)], "a: 1\nb: 2\n\n# footer\n"),
    Golden("a new nested key", "m:\n  x: 1\nz: 1\n", [put("m", "w", to=2)], "m:\n  x: 1\n  w: 2\nz: 1\n"),
    Golden("a new key at an indent of 4", "m:\n    x: 1\n", [put("m", "w", to=2)], "m:\n    x: 1\n    w: 2\n"),
    Golden(
        "a new key comes before the end of its block",
        "m:\n  x: 1\n  # end\nz: 1\n",
        [put("m", "w", to=2)],
        "m:\n  x: 1\n  w: 2\n  # end\nz: 1\n",
    ),
    Golden(
        "a new key comes after the end of the block before",
        "m:\n  x: 1\n  # end\n# footer\n",
        [put("z", to=2)],
        "m:\n  x: 1\n  # end\nz: 2\n# footer\n",
    ),
    Golden("a new key of an item", "l:\n- n: x\n- n: y\n", [put("l", 0, "k", to=3)], "l:\n- n: x\n  k: 3\n- n: y\n"),
    Golden("a new key comes before ...", "a: 1\n...\n", [put("b", to=2)], "a: 1\nb: 2\n...\n"),
    Golden("a new block", "a: 1\n", [put("b", to={"x": [1, {"w": 2}]})], "a: 1\nb:\n  x:\n  - 1\n  - w: 2\n"),
    Golden("new empties", "a: 1\n", [put("b", to={}), put("c", to=[])], "a: 1\nb: {}\nc: []\n"),
    Golden("a key moves to the end", "a: 1\nb: 2\n", [at(do=lambda s: s.update(c=s.pop("a")))], "b: 2\nc: 1\n"),
    Golden(
        "update keeps places",
        "a: 1  # A\nb: 2  # B\n",
        [at(do=lambda s: s.update(c=3, a=9))],
        "a: 9  # A\nb: 2  # B\nc: 3\n",
    ),
    # --- lists
    Golden("a deleted item takes its comment", "l:\n# 1\n- a\n# 2\n- b\n", [drop("l", 0)], "l:\n# 2\n- b\n"),
    Golden(
        "insert at 0 leaves the comment of the first",
        "l:\n# 1\n- a\n",
        [insert("l", index=0, value="z")],
        "l:\n- z\n# 1\n- a\n",
    ),
    Golden(
        "insert in the middle goes above the comment",
        "l:\n- a  # A\n# about c\n- c\n",
        [insert("l", index=1, value="b")],
        "l:\n- a  # A\n- b\n# about c\n- c\n",
    ),
    Golden(
        "an indented list stays indented", "l:\n  - a\nz: 1\n", [append("l", value="b")], "l:\n  - a\n  - b\nz: 1\n"
    ),
    Golden(
        "a mapping is appended as a block",
        "l:\n- p: x\n",
        [append("l", value={"p": "w", "k": 1})],
        "l:\n- p: x\n- p: w\n  k: 1\n",
    ),
    Golden("one of equal items goes", "l:\n- a  # 1\n- a  # 2\n- a  # 3\n", [drop("l", 1)], "l:\n- a  # 1\n- a  # 3\n"),
    Golden(
        "changed and deleted items are told apart",
        "l:\n- a  # A\n- b  # B\n- c  # C\n",
        [at("l", do=lambda node: (node.__setitem__(0, "x"), node.__delitem__(1)))],
        "l:\n- x  # A\n- c  # C\n",
    ),
    Golden(
        "items are told apart when one is inserted and the next changes",
        "l:\n- a  # A\n- b  # B\n",
        [at("l", do=lambda node: (node.__setitem__(0, "x"), node.insert(0, "z")))],
        "l:\n- z\n- x  # A\n- b  # B\n",
    ),
    Golden(
        "mappings are told apart when one is deleted and another changes",
        "l:\n# first\n- k: 1\n# second\n- k: 2  # two\n# third\n- k: 3  # three\n",
        [at("l", do=lambda node: (node[2].__setitem__("k", 9), node.__delitem__(1)))],
        "l:\n# first\n- k: 1\n# third\n- k: 9  # three\n",
    ),
    Golden(
        "a changed item that moves keeps its comment",
        "l:\n- a  # A\n- b  # B\n- c  # C\n",
        [at("l", do=lambda node: (node.__setitem__(0, "x"), node.reverse()))],
        "l:\n- c  # C\n- b  # B\n- x  # A\n",
    ),
    Golden(
        "a slice is replaced",
        "l:\n- a  # A\n- b\n- c\n- d  # D\n",
        [at("l", do=lambda node: node.__setitem__(slice(1, 3), ["x"]))],
        "l:\n- a  # A\n- x\n- d  # D\n",
    ),
    Golden(
        "every second item goes",
        "l:\n- a  # A\n- b  # B\n- c  # C\n- d  # D\n",
        [at("l", do=lambda node: node.__delitem__(slice(None, None, 2)))],
        "l:\n- b  # B\n- d  # D\n",
    ),
    Golden(
        "sorting moves items with their comments",
        "l:\n# about b\n- b  # B\n# about a\n- a  # A\nz: 1\n",
        [at("l", do=lambda node: node.sort())],
        "l:\n# about a\n- a  # A\n# about b\n- b  # B\nz: 1\n",
    ),
    Golden(
        "reversing moves items with all their lines",
        "l:\n- n: x\n  # about k\n  k: [1,2]\n- 0x0A\n- |\n  t\n",
        [at("l", do=lambda node: node.reverse())],
        "l:\n- |\n  t\n- 0x0A\n- n: x\n  # about k\n  k: [1,2]\n",
    ),
    Golden(
        "sorting mappings keeps their text",
        "jobs:\n  - name: y  # Y\n    n: 0x2\n  - name: x  # X\n    n: 1_0\n",
        [SORT_BY_NAME],
        "jobs:\n  - name: x  # X\n    n: 1_0\n  - name: y  # Y\n    n: 0x2\n",
    ),
    Golden(
        "+= appends", "l:\n- a  # A\n", [at("l", do=lambda node: node.__iadd__(["b", "c"]))], "l:\n- a  # A\n- b\n- c\n"
    ),
    Golden(
        "comments go with the items of a replaced slice, and stay with the others",
        "l:\n# a\n- a  # A\n# b\n- b  # B\n# c\n- c  # C\n# d\n- d  # D\n",
        [at("l", do=lambda node: (node.__setitem__(slice(0, 2), ["p", "m", "o"]), node.__setitem__(3, "x")))],
        "l:\n- p\n- m\n- o\n# c\n- x  # C\n# d\n- d  # D\n",
    ),
    Golden(
        "items of a list that is filtered in place keep their comments",
        "l:\n# a\n- a  # A\n# b\n- b  # B\n# c\n- c  # C\n",
        [at("l", do=lambda node: node.__setitem__(slice(None), [item for item in node if item != "b"]))],
        "l:\n# a\n- a  # A\n# c\n- c  # C\n",
    ),
    Golden(
        "a key that goes and comes back keeps its comments",
        "# a\na: 1  # A\n# b\nb: 2  # B\nm:\n  # c\n  c: 1  # C\n  d: 2\n",
        [at(do=lambda s: s.update(a=s.pop("a"))), at("m", do=lambda node: node.update(c=node.pop("c")))],
        "# b\nb: 2  # B\nm:\n  d: 2\n  # c\n  c: 1  # C\n# a\na: 1  # A\n",
    ),
    Golden(
        "an entry below a block scalar goes",
        "m:\n  s: |\n    x\n    # y\n  # about t\n  t: 1\n  # about u\n  u: 0x2\n",
        [drop("m", "t")],
        "m:\n  s: |\n    x\n    # y\n  # about u\n  u: 0x2\n",
    ),
    Golden(
        "an entry below a block scalar that keeps blank lines goes",
        "m:\n  s: |+\n    x\n\n  # about t\n  t: 1\n\n  # about u\n  u: 0x2\n",
        [drop("m", "t")],
        "m:\n  s: |+\n    x\n\n  # about u\n  u: 0x2\n",
    ),
    Golden(
        "a pair without braces in a list gets a list, and another key",
        "l: [a, s: 1]   # L\nm: [s: 1, b]   # M\n",
        [put("l", 1, "s", to=[2]), put("m", 0, "t", to=3)],
        "l: [a, s: [2]]   # L\nm: [{s: 1, t: 3}, b]   # M\n",
    ),
    Golden(
        "what is emptied keeps the comment of its own",
        "l: [   # why\n  a,  # A\n]\nk: &x   # how\n  a: 1\nm: {   # when\n  # a\n  a: 1}  # M\n",
        [at("l", do=lambda node: node.clear()), at("k", do=lambda node: node.clear()), drop("m", "a")],
        "l: []   # why\nk: &x {}   # how\nm: {}   # when  # M\n",
    ),
    Golden(
        "tags beside a change",
        "a: !!map {k: !!seq [a], s: !!str 5, n: !!int '7'}\nb: !!seq  # B\n- x\n",
        [put("a", "s", to="x"), append("b", value=1), drop("a", "k", 0)],
        "a: !!map {k: !!seq [], s: x, n: !!int '7'}\nb: !!seq  # B\n- x\n- 1\n",
    ),
    Golden(
        "new lines are set in as those around",
        "a:\n    b: 1\n    l:\n        -   x\n        -   y: 1\n",
        [put("a", "c", to={"k": {"o": 1}, "l": [1, {"p": 2, "q": 3}]}), append("a", "l", value={"r": [1]})],
        "a:\n    b: 1\n    l:\n        -   x\n        -   y: 1\n        -   r:\n                -   1\n"
        "    c:\n        k:\n            o: 1\n"
        "        l:\n            -   1\n            -   p: 2\n                q: 3\n",
    ),
    Golden(
        "a changed block scalar stays one",
        "run: |\n  a\n  b\nm:\n  run: >-   # R\n      c\n  # k\n  k: 1\n",
        [put("run", to="x\ny\n"), put("m", "run", to="p\n\nq")],
        "run: |\n  x\n  y\nm:\n  run: |-   # R\n      p\n\n      q\n  # k\n  k: 1\n",
    ),
    # --- containers assigned
    Golden(
        "one key of an assigned mapping differs",
        "config:  # C\n  # about x\n  x: 1  # X\n  # about y\n  y: 0x2  # Y\n",
        [at(do=lambda s: s.__setitem__("config", {**s["config"], "x": 2}))],
        "config:  # C\n  # about x\n  x: 2  # X\n  # about y\n  y: 0x2  # Y\n",
    ),
    Golden(
        "an assigned mapping lacks a key",
        "config:\n  # about x\n  x: 1  # X\n  # about y\n  y: 2  # Y\n",
        [put("config", to={"y": 2})],
        "config:\n  # about y\n  y: 2  # Y\n",
    ),
    Golden(
        "an assigned mapping has one key more",
        "config:\n  # about x\n  x: 1  # X\nz: 1\n",
        [put("config", to={"x": 1, "w": 2})],
        "config:\n  # about x\n  x: 1  # X\n  w: 2\nz: 1\n",
    ),
    Golden(
        "an assigned mapping differs deep down",
        "c:\n  a: {x: 0x1}  # A\n  b:\n    x: 1  # X\n    y: 2  # Y\n",
        [put("c", to={"a": {"x": 1}, "b": {"x": 1, "y": 3}})],
        "c:\n  a: {x: 0x1}  # A\n  b:\n    x: 1  # X\n    y: 3  # Y\n",
    ),
    Golden(
        "an equal container is assigned",
        "l: # L\n- 0x1  # A\n- {a:  b}\n",
        [put("l", to=[1, {"a": "b"}])],
        "l: # L\n- 0x1  # A\n- {a:  b}\n",
    ),
    Golden(
        "an assigned list has one item more",
        "l:\n# about a\n- a  # A\n- 0x1  # B\n",
        [at(do=lambda s: s.__setitem__("l", [*s["l"], "c"]))],
        "l:\n# about a\n- a  # A\n- 0x1  # B\n- c\n",
    ),
    Golden(
        "an assigned mapping is changed further in its list: items go, and one becomes all different",
        "m:\n  l:\n  - two words  # A\n  # b\n  - k: x  # B\n  - [c]  # C\n  - d  # D\n",
        [
            at(
                do=lambda s: (
                    s.__setitem__("m", {**copy.deepcopy(s["m"]), "more": 1}),
                    s["m"]["l"].__delitem__(slice(None, None, 2)),
                    s["m"]["l"][0].update(k={"p": 1}, o=2),
                )
            )
        ],
        "m:\n  l:\n  # b\n  - k:  # B\n      p: 1\n    o: 2\n  - d  # D\n  more: 1\n",
    ),
    Golden(
        "an assigned mapping is changed further in its list: that is turned round, and a list in it changes",
        "m:\n  k: 1\n  l:\n  # a\n  - a  # A\n  - b: 1\n    # c\n    c: [é,\n      0x2,  # X\n    ]  # C\n",
        [
            at(
                do=lambda s: (
                    s.__setitem__("m", {**copy.deepcopy(s["m"]), "k": []}),
                    s["m"]["l"].reverse(),
                    s["m"]["l"][0].update(d=[3, 4]),
                    s["m"]["l"][0]["c"].__setitem__(1, 5),
                )
            )
        ],
        "m:\n  k: []\n  l:\n  - b: 1\n    # c\n    c: [é,\n      5,  # X\n    ]  # C\n    d:\n    - 3\n    - 4\n"
        "  # a\n  - a  # A\n",
    ),
    Golden(
        "an assigned mapping is changed further in a list of its list, and that among the others",
        "m:\n  l:\n  # a\n  - a  # A\n  # b\n  - [1, 2, {k: 3}, 4]  # B\n  # c\n  - c  # C\n",
        [
            at(
                do=lambda s: (
                    s["m"]["l"].insert(0, {"c": 1}),
                    s["m"]["l"][2][2].__setitem__("n", 5),
                    s.__setitem__("m", {**copy.deepcopy(s["m"]), "more": 1}),
                    s["m"]["l"][2].__setitem__(slice(None), [2, 4]),
                    s["m"]["l"].reverse(),
                    s["m"]["l"].__delitem__(slice(0, None, 2)),
                )
            )
        ],
        "m:\n  l:\n  # b\n  - [2, 4]  # B\n  - c: 1\n  more: 1\n",
    ),
    Golden(
        "items of a replaced slice are changed further",
        "l:\n# a\n- a: 1  # A\n# b\n- b: 2  # B\n# c\n- c: 3  # C\n",
        [
            at(
                "l",
                do=lambda node: (
                    node.__setitem__(slice(None), [{"c": 3}, {"n": 0}, {"b": 2}]),
                    node[2].update(b=3),
                    node[0].update(c=2),
                    node.pop(1),
                ),
            )
        ],
        "l:\n# c\n- c: 2  # C\n# b\n- b: 3  # B\n",
    ),
    Golden(
        "lists of an updated mapping are changed further",
        "m:\n  # l\n  l:  # L\n  - 1  # one\n  - 2  # two\n  - 3  # three\n",
        [at("m", do=lambda node: (node.update(l=[3, 1, 2]), node["l"].__setitem__(0, 1), node["l"].pop(1)))],
        "m:\n  # l\n  l:  # L\n  - 1  # three\n  - 2  # two\n",
    ),
    Golden("a scalar becomes a list", "a: 1  # c\nb: 2\n", [put("a", to=[1])], "a:  # c\n- 1\nb: 2\n"),
    Golden("a scalar becomes a mapping", "a: 1  # c\nb: 2\n", [put("a", to={"x": 1})], "a:  # c\n  x: 1\nb: 2\n"),
    Golden("a list becomes a scalar", "a:  # c\n- 1\n- 2\nb: 2\n", [put("a", to=5)], "a: 5  # c\nb: 2\n"),
    # --- flow style
    Golden("a flow list grows", "l: [1, 2]  # c\n", [append("l", value=3)], "l: [1, 2, 3]  # c\n"),
    Golden("a flow list loses its first", "l: [1, 2]  # c\n", [drop("l", 0)], "l: [2]  # c\n"),
    Golden("a flow list loses its last", "l: [1, 2]  # c\n", [drop("l", 1)], "l: [1]  # c\n"),
    Golden("a flow list loses its middle", "l: [1, 2, 3]  # c\n", [drop("l", 1)], "l: [1, 3]  # c\n"),
    Golden("a flow list becomes empty", "l: [1]  # c\n", [drop("l", 0)], "l: []  # c\n"),
    Golden("a flow list changes", "l: [1, 0x2]  # c\n", [put("l", 0, to=5)], "l: [5, 0x2]  # c\n"),
    Golden("a flow list gets a new first", "l: [1, 2]\n", [insert("l", index=0, value=0)], "l: [0, 1, 2]\n"),
    Golden("a flow mapping grows", "m: {a: 1, b: 2}  # c\n", [put("m", "c", to=3)], "m: {a: 1, b: 2, c: 3}  # c\n"),
    Golden("a flow mapping loses its first", "m: {a: 1, b: 2}  # c\n", [drop("m", "a")], "m: {b: 2}  # c\n"),
    Golden("a flow mapping loses its last", "m: {a: 1, b: 2}  # c\n", [drop("m", "b")], "m: {a: 1}  # c\n"),
    Golden(
        "a change deep in flow",
        "m: {a: [1, {b: 'x'}], c:  d}  # c\n",
        [put("m", "a", 1, "b", to="w")],
        "m: {a: [1, {b: 'w'}], c:  d}  # c\n",
    ),
    Golden(
        "an item of a list of many lines goes with its comment",
        "l: [\n  one,  # 1\n  # about two\n  two,  # 2\n  three,  # 3\n]\n",
        [drop("l", 1)],
        "l: [\n  one,  # 1\n  three,  # 3\n]\n",
    ),
    Golden(
        "the first of a list of many lines goes",
        "l: [  # opens\n  one,  # 1\n  two,  # 2\n]  # closes\n",
        [drop("l", 0)],
        "l: [  # opens\n  two,  # 2\n]  # closes\n",
    ),
    Golden(
        "the trailing comma stays when the last goes",
        "l: [\n  one,  # 1\n  two,  # 2\n]\n",
        [drop("l", 1)],
        "l: [\n  one,  # 1\n]\n",
    ),
    Golden(
        "a value in JSON changes",
        '{\n  "a": 1,\n  "b": "x"\n}\n',
        [put("b", to="y"), put("a", to=2)],
        '{\n  "a": 2,\n  "b": "y"\n}\n',
    ),
    Golden(
        "a flow mapping keeps values that are not written",
        "m: {a, b: , c: 3}  # c\n",
        [put("m", "c", to=5)],
        "m: {a, b: , c: 5}  # c\n",
    ),
    Golden(
        "an empty value beside flow style in a nested block",
        "m:\n  # about a\n  a:\n  b: [x]  # B\n",
        [put("m", "a", to=5)],
        "m:\n  # about a\n  a: 5\n  b: [x]  # B\n",
    ),
    Golden(
        "an empty value in a nested block when a sibling changes",
        "m:\n  a:   # A\n  b: [x]  # B\n  c: 1\n",
        [put("m", "c", to=5)],
        "m:\n  a:   # A\n  b: [x]  # B\n  c: 5\n",
    ),
    Golden(
        "an item of a mapping in a flow list",
        "l: [{a: 1}, x]  # c\n",
        [put("l", 0, "b", to=2)],
        "l: [{a: 1, b: 2}, x]  # c\n",
    ),
    Golden(
        "the break in front of an item goes with it",
        "m:\n  l: [a,\n      b]\n  z: 1\n",
        [drop("m", "l", 1)],
        "m:\n  l: [a]\n  z: 1\n",
    ),
    Golden(
        "the next item takes the place behind the bracket",
        "m:\n  l: [a, b,\n      c]  # L\n",
        [drop("m", "l", 0), drop("m", "l", 0)],
        "m:\n  l: [c]  # L\n",
    ),
    Golden(
        "the next item of a line takes its beginning",
        "m:\n  l: [a, b,\n      c, d]\n",
        [drop("m", "l", 2)],
        "m:\n  l: [a, b,\n      d]\n",
    ),
    Golden(
        "a new item follows on the line of the one before",
        "m:\n  l: [a, b,\n      c, d\n    ]\n",
        [insert("m", "l", index=2, value="x"), append("m", "l", value="w")],
        "m:\n  l: [a, b, x,\n      c, d, w\n    ]\n",
    ),
    Golden(
        "a new item goes to a line of its own where all have one",
        "m:\n  l: [a,\n      b]\n",
        [insert("m", "l", index=0, value="x"), append("m", "l", value="w")],
        "m:\n  l: [x,\n      a,\n      b,\n      w]\n",
    ),
    Golden(
        "a comment keeps its line when the item in front of it goes",
        "l: [a,\n# about b\n  b]\n",
        [drop("l", 0)],
        "l: [\n# about b\n  b]\n",
    ),
    Golden(
        "commas in front: added",
        "a: [\n   1   # one\n  ,2   # two\n  ]\n",
        [append("a", value=3)],
        "a: [\n   1   # one\n  ,2,   # two\n   3\n  ]\n",
    ),
    Golden(
        "commas in front: deleted",
        "a: [\n   1   # one\n  ,2   # two\n  ,3\n  ]\n",
        [drop("a", 0), drop("a", 1)],
        "a: [\n   2   # two\n  ]\n",
    ),
    Golden(
        "a bracket does not get into a comment",
        "m:\n  l: [\n    a,  # A\n    b]\n",
        [drop("m", "l", 1)],
        "m:\n  l: [\n    a  # A\n    ]\n",
    ),
    Golden(
        "an item does not get into a comment",
        "m:\n  l: [a,  # A\n    b, c\n  ]\n",
        [drop("m", "l", 1)],
        "m:\n  l: [a,  # A\n    c\n  ]\n",
    ),
    Golden(
        "a comment at the end of a line stays while some of the line does",
        "l: [\n  a, b,  # both\n  c]\n",
        [drop("l", 1)],
        "l: [\n  a,  # both\n  c]\n",
    ),
    Golden(
        "new lines are indented even if the bracket is not",
        "l: [a, b  # both\n]\n",
        [append("l", value="c")],
        "l: [a, b,  # both\n  c\n]\n",
    ),
    Golden(
        "comments apart from an item stay",
        "l: [\n  a,\n  # apart\n\n  # about b\n  b,\n  c\n]\n",
        [drop("l", 1)],
        "l: [\n  a,\n  # apart\n\n  c\n]\n",
    ),
    Golden(
        "sorting moves items of flow style with their comments",
        "l: [\n  # about b\n  b,  # B\n  a   # A\n]\n",
        [at("l", do=lambda node: node.sort())],
        "l: [\n  a,   # A\n  # about b\n  b  # B\n]\n",
    ),
    Golden(
        "keys of a mapping of many lines",
        "m: {\n  # about a\n  a: 1, b: 2,  # two\n  c: 3\n}\n",
        [drop("m", "a"), put("m", "d", to=4), put("m", "b", to=[1])],
        "m: {\n  b: [1],  # two\n  c: 3,\n  d: 4\n}\n",
    ),
    Golden(
        "a key without a value at the end of a line",
        "m:\n  l: {a,\n    b\n    }\n",
        [put("m", "l", "c", to=1)],
        "m:\n  l: {a,\n    b,\n    c: 1\n    }\n",
    ),
    Golden(
        "pairs without braces in a list of many lines",
        "m:\n  l: [a: 1  # A\n    , b:  # B\n    ]\n",
        [append("m", "l", value="c")],
        "m:\n  l: [a: 1  # A\n    , b: ,  # B\n      c\n    ]\n",
    ),
    Golden(
        "question marks in flow style",
        "m: {? a : 1, ? b : 2}\n",
        [drop("m", "a"), put("m", "c", to=3)],
        "m: {? b : 2, c: 3}\n",
    ),
    Golden(
        "tags in flow style",
        "m: !!map {k: !!seq [a], n: 1}\n",
        [append("m", "k", value="b"), put("m", "n", to=2)],
        "m: !!map {k: !!seq [a, b], n: 2}\n",
    ),
    Golden(
        "a tagged root in flow style", "!!map {k: !!seq [a]}\n", [append("k", value="b")], "!!map {k: !!seq [a, b]}\n"
    ),
    # --- frames
    Golden(
        "CRLF for new lines", "a: 1\r\nb: 2\r\n", [put("c", to={"x": [1]})], "a: 1\r\nb: 2\r\nc:\r\n  x:\r\n  - 1\r\n"
    ),
    Golden(
        "CRLF around a deleted key", "# h\r\n\r\n# a\r\na: 1\r\nb: 2  # B\r\n", [drop("a")], "# h\r\n\r\nb: 2  # B\r\n"
    ),
    Golden("BOM stays before a deleted key", "\ufeffa: 1\nb: 2\n", [drop("a")], "\ufeffb: 2\n"),
    Golden("no final newline: changed", "a: 1\nb: 2", [put("b", to=3)], "a: 1\nb: 3"),
    Golden("no final newline: added", "a: 1\nb: 2", [put("c", to=3)], "a: 1\nb: 2\nc: 3"),
    Golden("no final newline: deleted", "a: 1\nb: 2", [drop("b")], "a: 1"),
    Golden(
        "1.1 head: words are quoted",
        "%YAML 1.1\n---\na: yes\nb: 1\n",
        [put("b", to="yes")],
        '%YAML 1.1\n---\na: yes\nb: "yes"\n',
    ),
    Golden(
        "1.1 head: a new key stands above the end of the document",
        "%YAML 1.1\n---\na: yes\n... # end\n",
        [put("b", to=1)],
        "%YAML 1.1\n---\na: yes\nb: 1\n... # end\n",
    ),
    Golden(
        "1.1 head: it stays when a later mapping replaces the first",
        "%YAML 1.1\n---\na: no\n---\na: yes\n",
        [put("b", to=1)],
        "%YAML 1.1\n---\na: yes\nb: 1\n",
    ),
    Golden("end of the document behind a lone carriage return", "a: 1\r...\n", [put("b", to=1)], "a: 1\rb: 1\n...\n"),
    Golden("merge key: all deleted", "<<: {a: 1}\n...\n", [drop("a")], "{}\n...\n"),
    Golden("a tagged root: added", "--- !!map\na: 1\n", [put("b", to=2)], "--- !!map\na: 1\nb: 2\n"),
    Golden(
        "an entry below a lone carriage return", "# a\r\n# b\rs: |\r\n c\r\n", [put("s", to=1)], "# a\r\n# b\r\ns: 1\n"
    ),
    # --- block scalars, which would take in what comes to stand below them
    Golden(
        "a deeper comment comes below a block",
        "s: |\n a\nt: 1\n  # c\nu: 2\n",
        [drop("t")],
        "s: |\n a\n# c\nu: 2\n",
    ),
    Golden("a line of blanks comes below a block", "s: |\n a\nt: 1\n   \nu: 2\n", [drop("t")], "s: |\n a\n\nu: 2\n"),
    Golden("a blank line comes below a keeping block", "s: |+\n a\nt: 1\n\nu: 2\n", [drop("t")], "s: |+\n a\nu: 2\n"),
    Golden("a block is the last that stays", "s: |\n a\nt: 1\n   \n  # c\n", [drop("t")], "s: |\n a\n\n# c\n"),
    Golden(
        "lines of blanks do not outlive their block", "s: |\n a\n  \t\n  \nu: 2\n", [put("s", to=1)], "s: 1\n\n\nu: 2\n"
    ),
    Golden("a block goes with its blanks", "s: |\n a\n   \n# u\nu: 2\n", [drop("s")], "# u\nu: 2\n"),
    Golden("non-ASCII text stays", "név: Zoltán  # ő\nx: 1\n", [put("név", to="Ágnes")], "név: Ágnes  # ő\nx: 1\n"),
    # --- anchors
    Golden(
        "an alias is overwritten",
        "a: &x 1  # A\nb: *x  # B\nc: *x\n",
        [put("b", to=2)],
        "a: &x 1  # A\nb: 2  # B\nc: *x\n",
    ),
    Golden(
        "other keys beside anchors",
        "a: &x {p: 1}\nb:\n  <<: *x\n  # q\n  q: 2\nc: 3  # C\n",
        [put("c", to=4)],
        "a: &x {p: 1}\nb:\n  <<: *x\n  # q\n  q: 2\nc: 4  # C\n",
    ),
    Golden(
        "an alias of a nested list is written out when that changes",
        "a: &x [[1]]  # A\nb: *x  # B\nc: *x\n",
        [append("b", 0, value=2)],
        "a: &x [[1]]  # A\nb:  # B\n- - 1\n  - 2\nc: *x\n",
    ),
    Golden(
        "an alias is a key",
        "a: &x k\nb:\n  *x : 1  # B\n  c: 2\n",
        [put("b", "c", to=3)],
        "a: &x k\nb:\n  *x : 1  # B\n  c: 3\n",
    ),
    Golden("an entry with an alias is deleted", "a: &x [1]\nb: *x\nc: 3\n", [drop("b")], "a: &x [1]\nc: 3\n"),
    Golden(
        "a merge whose base goes is written out in its place",
        "b: &x {p: 1}\nm:\n  u:\n    # merged\n    <<: *x  # M\n    # about d\n    d: 0x10   # D\n  w: 0x1\n",
        [drop("b")],
        "m:\n  u:\n    # merged\n    p: 1  # M\n    # about d\n    d: 0x10   # D\n  w: 0x1\n",
    ),
    Golden(
        "a merge whose base changes keeps the value by a key of its own",
        "b: &x {p: 1, q: 2}\nm:\n  # d\n  d: 0x10   # D\n  <<: *x  # M\nn:\n- *x  # N\n",
        [put("b", "p", to=5)],
        "b: &x {p: 5, q: 2}\nm:\n  # d\n  d: 0x10   # D\n  <<: *x  # M\n  p: 1\nn:\n-  # N\n  p: 1\n  q: 2\n",
    ),
    Golden(
        "a value beside a merge at the top level",
        "d: &x {a: 0x1}\n<<: *x\n# B\nb: 0x2  # two\nc: [1,2]\n",
        [put("b", to=5)],
        "d: &x {a: 0x1}\n<<: *x\n# B\nb: 5  # two\nc: [1,2]\n",
    ),
    Golden(
        "a value beside a merge, wherever that stands",
        "d: &x {a: 0x1}\ne:\n  # k\n  k: 0x5   # K\n  <<: *x  # M\n  m: {z:  0x1, <<: *x}\n",
        [put("e", "m", "z", to=2), put("e", "k", to=3)],
        "d: &x {a: 0x1}\ne:\n  # k\n  k: 3   # K\n  <<: *x  # M\n  m: {z:  2, <<: *x}\n",
    ),
    Golden(
        "a merged value changes",
        "d: &x {a: 0x1}\ne:\n  # k\n  k: 0x5   # K\n  <<: *x  # M\n",
        [put("e", "a", to=2)],
        "d: &x {a: 0x1}\ne:\n  # k\n  k: 0x5   # K\n  <<: *x  # M\n  a: 2\n",
    ),
    Golden(
        "an item of a list with aliases changes",
        "a: &x [1, 2]  # A\nl:\n# one\n- *x  # X\n# two\n- 0x2  # Y\nf: [*x, {k: *x}, 3]\n",
        [put("l", 1, to=5), put("f", 2, to=4), append("f", 1, "k", value=9)],
        "a: &x [1, 2]  # A\nl:\n# one\n- *x  # X\n# two\n- 5  # Y\nf: [*x, {k: [1, 2, 9]}, 4]\n",
    ),
    Golden("the only alias goes before its anchor", "a: &x 1\nb: *x\nc: 3\n", [drop("b"), drop("a")], "c: 3\n"),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.fact)
def test_golden(path: pathlib.Path, golden: Golden) -> None:
    path.write_bytes(golden.before.encode())
    expected = read(golden.before.encode())

    for change in golden.changes:
        change(expected)
        with PersistedState(path) as state:
            change(state)

    assert same(read(golden.after.encode()), expected), "the example contradicts itself"
    strict_reader.assert_valid(golden.before.encode(), golden.after.encode(), expected)
    assert path.read_bytes().decode() == golden.after
    assert same(reopened(path), expected)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.fact)
def test_golden_after_a_crash(path: pathlib.Path, golden: Golden) -> None:
    """The text comes out the same when the changes were found in the journal of a process that died.

    But for a final newline: behind the first record nobody can tell any more that there was none.
    """
    path.write_bytes(golden.before.encode())

    for change in golden.changes:
        with scratch() as other:
            other.write_bytes(path.read_bytes())
            with PersistedState(other) as state:
                change(state)
                path.write_bytes(other.read_bytes())
        PersistedState(path).close()

    assert path.read_bytes().decode().rstrip("\r\n") == golden.after.rstrip("\r\n")


@pytest.mark.parametrize("new", [[3, {"b": 1}], ["x"], [{"a": 1, "c": 3}, 1], [[1], [2], [3]]], ids=repr)
def test_items_that_a_slice_puts_in_the_place_of_others_are_in_the_file(path: pathlib.Path, new: list[Any]) -> None:
    path.write_text("# a list\nl:\n- 1  # one\n- {a: 1, c: 2}  # two\n# the last\n- last\n")
    with PersistedState(path) as state:
        state.l[0:2] = new
        state.vacuum()

        assert reopened(path) == {"l": [*new, "last"]}
        assert path.read_text().startswith("# a list\nl:\n")
        assert path.read_text().endswith("# the last\n- last\n")


def test_item_added_to_a_flow_list_of_many_lines_keeps_lines_and_trailing_comma(path: pathlib.Path) -> None:
    before = b"l: [\n  one,  # 1\n  # about two\n  two,  # 2\n  # end\n]  # closes\nz: 1\n"

    after = check_change(path, before, append("l", value="three"), {"l": ["one", "two", "three"], "z": 1})

    assert_lines_kept(before, after, set())
    assert b"three," in after


def test_changed_scalar_below_its_key_keeps_the_comments_of_both_lines(path: pathlib.Path) -> None:
    before = b"a:   # beside the key\n  x   # beside the value\nb: 1\n"

    after = check_change(path, before, put("a", to="z"), {"a": "z", "b": 1})

    assert_comments_kept(Outline(before), after, set())
    assert after.endswith(b"\nb: 1\n")


def test_key_added_to_json_keeps_the_other_lines(path: pathlib.Path) -> None:
    before = b'{\n  "a": 1,\n  "b": [1, 2]\n}\n'

    after = check_change(path, before, put("c", to="x"), {"a": 1, "b": [1, 2], "c": "x"})

    assert_only_lines_changed(before, after, 2, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Valid YAML 1.2 that PyYAML and ruamel.yaml refuse, or read as YAML 1.1 has it
# ---------------------------------------------------------------------------------------------------------------------

#: What is read, a change, and the text afterwards.
STRICT: list[tuple[str, dict[str, Any], Callable[[Any], object], str]] = [
    ("a: 9\t# A\nb: 1\n", {"a": 9, "b": 1}, put("a", to=8), "a: 8\t# A\nb: 1\n"),
    ("a: 'x'\t# A\nb: 1\n", {"a": "x", "b": 1}, put("a", to="z"), "a: 'z'\t# A\nb: 1\n"),
    ("a: x z \t # A\nb: 1\n", {"a": "x z", "b": 1}, put("b", to=2), "a: x z \t # A\nb: 2\n"),
    ("a:\t# A\n  b:\t\n  - 1\t\n", {"a": {"b": [1]}}, append("a", "b", value=2), "a:\t# A\n  b:\t\n  - 1\t\n  - 2\n"),
    ("a:\t9\nb:\t'x'\t# B\n", {"a": 9, "b": "x"}, put("b", to="z"), "a:\t9\nb:\t'z'\t# B\n"),
    ("a: [1,\t# one\n  2\t]\t# A\n", {"a": [1, 2]}, append("a", value=3), "a: [1,\t# one\n  2,\n  3\t]\t# A\n"),
    ("a: {b:\t1}\t\nc: 1\n", {"a": {"b": 1}, "c": 1}, put("a", "b", to=2), "a: {b:\t2}\t\nc: 1\n"),
    ("a: |\t# A\n  x\t# y\nb: 1\n", {"a": "x\t# y\n", "b": 1}, put("b", to=2), "a: |\t# A\n  x\t# y\nb: 2\n"),
    ("\t# head\n\t\na: 1\n\t# foot\n", {"a": 1}, put("b", to=2), "\t# head\n\t\na: 1\nb: 2\n\t# foot\n"),
    ("a: x\tz\nb: 1\n", {"a": "x\tz", "b": 1}, put("b", to=2), "a: x\tz\nb: 2\n"),
    ("a:\n-\tx\t# X\n- z\n", {"a": ["x", "z"]}, append("a", value="w"), "a:\n-\tx\t# X\n- z\n- w\n"),
    ("%YAML 1.1\n---\na: on\t# A\n", {"a": True}, put("b", to=2), "%YAML 1.1\n---\na: on\t# A\nb: 2\n"),
    ("a: {?b: c}\t# A\n", {"a": {"?b": "c"}}, put("a", "?b", to="d"), "a: {?b: d}\t# A\n"),
    ("a: [?b, {? c : d}]\n", {"a": ["?b", {"c": "d"}]}, put("a", 1, "c", to=1), "a: [?b, {? c : 1}]\n"),
    ("a: {?b, ?c: 1}\n", {"a": {"?b": None, "?c": 1}}, put("a", "?b", to=2), "a: {?b: 2, ?c: 1}\n"),
    ("?k: 1  # K\n-l: 2\n", {"?k": 1, "-l": 2}, put("?k", to=3), "?k: 3  # K\n-l: 2\n"),
    ("m:\n  ?k: 1  # K\n  # L\n  l: 2\n", {"m": {"?k": 1, "l": 2}}, put("m", "?k", to=3),
     "m:\n  ?k: 3  # K\n  # L\n  l: 2\n"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "content", "change", "after"), STRICT, ids=[row[0] for row in STRICT])
def test_text_that_only_a_strict_reader_understands(
    path: pathlib.Path, before: str, content: dict[str, Any], change: Callable[[Any], object], after: str
) -> None:
    path.write_bytes(before.encode())
    strict_reader.assert_valid(b"", before.encode(), content)

    with PersistedState(path) as state:
        assert same(plain(state), content)
        change(state)
        change(content)

    assert path.read_bytes().decode() == after
    strict_reader.assert_valid(b"", after.encode(), content)
    assert same(reopened(path), content)


@pytest.mark.parametrize(
    "text", ["a:\n\tb: 1\n", "a:\n\t- b\n", "a:\t- b\n", "a:\n-\tb: 1\n", "a:\tb: 1\n", "\ta: 1\n"]
)
def test_no_block_begins_behind_a_tab(path: pathlib.Path, text: str) -> None:
    path.write_text(text)

    with pytest.raises(StateCorrupt):
        PersistedState(path)


# ---------------------------------------------------------------------------------------------------------------------
# Where the plain rule would damage a value
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trap:
    """A text, a change after which text that stays must not get another meaning, and lines that must stay."""

    fact: str
    before: str
    change: Callable[[Any], object]
    kept: str = ""


TRAPS = [
    Trap("blank lines must not flow into |+", "t: |+\n  x\n\nb: 1\n\nc: 2  # C\n", drop("b"), "c: 2  # C\n"),
    Trap("comment must not flow into a block", "t: |\n  x\nb:\n  y: 1\n\n    # deep\n\nc: 2\n", drop("b"), "c: 2\n"),
    Trap("newline of the last block, key deleted", "t: |\n  x\nb: 1", drop("b"), "t: |\n  x\n"),
    Trap("newline of the last block, key added", "a: 1\nt: |\n  x", put("b", to=1), "a: 1\n"),
    Trap("newline of the last block, other changed", "a: 1  # A\nt: |\n  x", put("a", to=2), "t: |\n  x\n"),
    Trap("newline of the last folded block", "a: 1\nt: >\n  x\n  y", put("a", to=2), "t: >\n  x\n  y\n"),
    Trap("|+ at the end gets a neighbour", "a: 1\nt: |+\n  x\n\n", put("b", to=2), "a: 1\nt: |+\n  x\n"),
    Trap("|- at the end gets a neighbour", "a: 1\nt: |-\n  x\n\n", put("b", to=2), "a: 1\nt: |-\n  x\n"),
    Trap("anchored scalar changes", "a: &x 1\nb: *x  # B\nc: 3  # C\n", put("a", to=2), "c: 3  # C\n"),
    Trap("anchored scalar goes", "a: &x 1\nb: *x\nc: 3  # C\n", drop("a"), "c: 3  # C\n"),
    Trap("anchored list grows", "a: &x [1]\nb: *x\nc: 3  # C\n", append("a", value=2), "c: 3  # C\n"),
    Trap(
        "aliased list grows", "a: &x [1]  # A\nb: *x\nc: 3  # C\n", append("b", value=2), "a: &x [1]  # A\nc: 3  # C\n"
    ),
    Trap("anchor inside a deleted block", "a:\n  k: &x [1]\nb: {p: *x}\nc: 3\n", drop("a"), "c: 3\n"),
    Trap("anchor in a deleted item", "l:\n- &x {p: 1}\n- *x\n- 3\nm: *x\nc: 3  # C\n", drop("l", 0), "c: 3  # C\n"),
    Trap(
        "anchored items are sorted",
        "l:\n- &x 2\n- *x\n- 1\nc: 3  # C\n",
        at("l", do=lambda node: node.sort()),
        "c: 3  # C\n",
    ),
    Trap(
        "aliased item moves before its anchor", "l:\n- &x [2]\n- *x\n- [1]\n", at("l", do=lambda node: node.reverse())
    ),
    Trap(
        "anchor used twice, redefined",
        "a: &x 1\nb: *x\nc: &x 2\nd: *x\ne: 5  # E\n",
        put("c", to=3),
        "a: &x 1\nb: *x\ne: 5  # E\n",
    ),
    Trap(
        "anchor redefined, the later one goes",
        "a: &x 1\nc: &x 2\nd: *x\ne: 5  # E\n",
        drop("c"),
        "a: &x 1\ne: 5  # E\n",
    ),
    Trap("anchored key's alias as key", "a: &x k\nm:\n  *x : 1\n  z: 2\nc: 3  # C\n", put("a", to="j"), "c: 3  # C\n"),
    Trap(
        "merged key is overwritten", "a: &x {p: 1}\nb: {<<: *x, q: 2}\nc: 3  # C\n", put("b", "p", to=5), "c: 3  # C\n"
    ),
    Trap("merged key goes", "a: &x {p: 1}\nb: {<<: *x, q: 2}\nc: 3  # C\n", drop("b", "p"), "c: 3  # C\n"),
    Trap(
        "key over a merged one goes",
        "a: &x {p: 1}\nb:\n  <<: *x\n  p: 2\nc: 3  # C\n",
        drop("b", "p"),
        "a: &x {p: 1}\nc: 3  # C\n",
    ),
    Trap(
        "base of a merge changes", "a: &x {p: 1}\nb:\n  <<: *x\n  q: 2\nc: 3  # C\n", put("a", "p", to=5), "c: 3  # C\n"
    ),
    Trap("base of a merge goes", "a: &x {p: 1}\nb:\n  <<: *x\n  q: 2\nc: 3  # C\n", drop("a"), "c: 3  # C\n"),
    Trap("base of a merge gets a key", "a: &x\n  p: 1\nb:\n  <<: *x\nc: 3  # C\n", put("a", "r", to=5), "c: 3  # C\n"),
    Trap("value for a key without a colon in flow", "m: {a, b: 1}\nc: 3  # C\n", put("m", "a", to=5), "c: 3  # C\n"),
    Trap("value for a complex key without one", "? a\nb: 1  # B\n", put("a", to=5), "b: 1  # B\n"),
    Trap("block for a complex key", "? a\n: 1\nb: 1  # B\n", put("a", to={"x": [1]}), "b: 1  # B\n"),
    Trap("pairs in a list", "l: [a: 1, b: 2]\nc: 3  # C\n", put("l", 0, "z", to=5), "c: 3  # C\n"),
    Trap("text that looks like a record", "a: 1\nb: 2  # B\n", put("a", to='\n--- ["set",[],"b",3]\n'), "b: 2  # B\n"),
    Trap("text that looks like a head", "a: 'x'\nb: 2  # B\n", put("a", to="---\n...\n%YAML"), "b: 2  # B\n"),
    Trap("two lines in single quotes", "a: 'x'\nb: 2  # B\n", put("a", to="y\nz\n\n"), "b: 2  # B\n"),
    Trap(
        "control characters in single quotes",
        "a: 'x'\nb: 2  # B\n",
        put("a", to="\x00\x07\x85\u2028\ufeff"),
        "b: 2  # B\n",
    ),
    Trap("two lines in flow", "l: ['x', y]\nb: 2  # B\n", put("l", 1, to="y\nz: #\n"), "b: 2  # B\n"),
    Trap("flow signs in a flow list", "l: [x, y]\nb: 2  # B\n", append("l", value="], {a: b}, ["), "b: 2  # B\n"),
    Trap("flow signs as a key", "m: {x: y}\nb: 2  # B\n", put("m", "a, b: {", to=1), "b: 2  # B\n"),
    Trap(
        "a key of other types",
        "m: {x: y}\nb:\n  c: 2  # C\n",
        at(do=lambda s: (put("m", 1, to=2)(s), put("b", None, to=3)(s))),
        "  c: 2  # C\n",
    ),
    Trap(
        "1.1 words in a 1.1 file",
        "%YAML 1.1\n---\na: on\nb: 010\nc: 1\n",
        put("c", to=["on", "010", "1:30", 8]),
        "a: on\nb: 010\n",
    ),
    Trap("a block at the end without newline", "a: 1  # A", put("b", to={"x": "y\nz\n"}), "a: 1  # A\n"),
    Trap("a literal in CRLF changes", "t: |\r\n  x\r\n  y\r\nb: 1  # B\r\n", put("t", to="p\nq\n"), "b: 1  # B\r\n"),
    Trap("a literal in CRLF stays", "t: |\r\n  x\r\n  y\r\nb: 1\r\n", put("b", to="p\nq\n"), "t: |\r\n  x\r\n  y\r\n"),
    Trap(
        "replaced by what it holds",
        "a:\n  b:\n    c: 1  # C\nz: 1\n",
        at(do=lambda s: s.__setitem__("a", s["a"]["b"])),
        "z: 1\n",
    ),
    Trap("moved under another key", "a:\n  b: 1\nz: {}\n", at(do=lambda s: s["z"].__setitem__("a", s.pop("a")))),
    Trap(
        "a null item of a list changes",
        "l:\n-\n-   # beside\n- x\n",
        at("l", do=lambda node: (node.__setitem__(0, [1]), node.__setitem__(1, {"a": 1}))),
        "- x\n",
    ),
    Trap(
        "all items of nested lists go",
        "l:\n- - - a\n    - b\n  - c\n- d  # D\n",
        at("l", 0, do=lambda node: (node[0].clear(), node.pop())),
        "- d  # D\n",
    ),
    Trap("long text in place of a word", "a: x  # c\nb: 1\n", put("a", to="word " * 500), "b: 1\n"),
]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.fact)
def test_trap(path: pathlib.Path, trap: Trap) -> None:
    before = trap.before.encode()
    trap.change(expected := read(before))

    after = check_change(path, before, trap.change, expected)

    lines = iter(after.decode().split("\n"))
    assert all(line in lines for line in trap.kept.split("\n")[:-1]), after.decode()


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if "<<" not in trap.before], ids=lambda trap: trap.fact)
def test_trap_for_a_yaml_1_1_reader(path: pathlib.Path, trap: Trap) -> None:
    """PyYAML reads the closed file to the same values."""
    before = trap.before.encode()
    trap.change(expected := read(before))
    check_change(path, before, trap.change, expected)

    found = read(path.read_bytes(), "pyyaml")

    assert same(found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Random files, random changes
# ---------------------------------------------------------------------------------------------------------------------


@settings(
    max_examples=some(150, 20),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(document=hand_written_files(), data=st.data())
def test_random_changes_of_random_files(document: Any, data: st.DataObject) -> None:
    with scratch() as path:
        path.write_bytes(document.data)
        session = Session(document)
        for _ in range(data.draw(st.integers(1, 3), label="sessions")):
            with PersistedState(path) as state:
                session.change(Drawn(data.draw), state)
                assert same(plain(state), session.model)
                assert same(read(path.read_bytes()), session.model)
                strict_reader.assert_valid(document.data, path.read_bytes(), session.model)
            session.check(path.read_bytes())
            assert same(reopened(path), session.model)


@settings(
    max_examples=some(150, 20),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=st.sampled_from([*PLAIN, *JOURNALS, *NOTHING]), data=st.data())
def test_random_changes_of_the_corpus_give_the_same_values(case: str, data: st.DataObject) -> None:
    before = FILES[case]
    with scratch() as path:
        path.write_bytes(before)
        session = Unrecorded(before)
        for _ in range(data.draw(st.integers(1, 3), label="sessions")):
            with PersistedState(path) as state:
                session.change(Drawn(data.draw), state)
                assert_same(plain(state), session.model, before)
                assert_same(read(path.read_bytes()), session.model, before)
                strict_reader.assert_valid(before, path.read_bytes(), session.model)
            assert_same(read(path.read_bytes()), session.model, before)
            strict_reader.assert_valid(before, path.read_bytes(), session.model)
            assert_same(reopened(path), session.model, before)


@rounds(ci=100, nightly=5_000)
def test_comments_stay_with_their_entries_in_long_sessions(chance: random.Random, rounds: int) -> None:
    dice = Dice(chance)
    for number in range(rounds):
        document = hand_written(dice, knotted=number % 2 > 0)
        session = Session(document)
        with scratch() as path:
            path.write_bytes(document.data)
            with PersistedState(path) as state:
                for _ in range(50):
                    session.change(dice, state, most=1)
                    if chance.random() < 0.04:
                        state.vacuum()
                        session.check(path.read_bytes())
            session.check(path.read_bytes())


#: What may get into a text when somebody edits it in a hurry.
SCRAPS = [
    *["#", " # c", "\n# c\n", "\n  # c\n", ": ", "- ", "\n", "\n\n", "  ", "{}", "[]", "[1, 2]", "{a: 1}", "&a ", "*a"],
    *["*x", "&x ", "!!str ", "!!map ", "!!seq ", "? ", "?", "|\n  t\n", ">-\n  t\n", "'", '"', "\t", "\t# t\n", ","],
    *["]", "}", "[", "{", "<<: ", "<<: *x\n", "...", "x", "0x1", "null", "~", "a: 1\n", "- 1\n", "  b: 2\n", "é"],
]  # fmt: skip
#: What to put them into.
SOUND = [*(golden.before for golden in GOLDEN), *(trap.before for trap in TRAPS), *(row[0] for row in STRICT)]
SOUND += [data.decode() for case, data in FILES.items() if case in PLAIN]
READERS = ["ruamel", "pyyaml", *["strict"] * (not strict_reader.MISSING)]
#: Line ends by which the module does not cut; it writes plainly what comes of that.
UNLIKELY = re.compile("\r(?!\n)|[\x85\u2028\u2029]")
#: What the strict reader says of a sound text with a comment between a key and its value.
MISTAKEN = "Implicit keys need to be on a single line"


def mangled(chance: random.Random) -> str:
    text = chance.choice(SOUND)
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        start, lines = chance.randrange(len(text) + 1), text.splitlines(keepends=True)
        kind = chance.randrange(5)
        if kind < 4:
            end = start if kind < 3 else start + chance.choice([1, 1, 2, 5])
            text = text[:start] + (chance.choice(SCRAPS) if kind < 3 else "") + text[end:]
        elif lines:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
            text = "".join(lines)
    return text


@pytest.mark.filterwarnings("ignore:.*never became a complete record")
@rounds(ci=600, nightly=200_000)
def test_changes_of_mangled_texts_are_right_for_every_reader_that_understood_them(
    path: pathlib.Path, chance: random.Random, rounds: int
) -> None:
    for _ in range(rounds):
        text = mangled(chance)
        if UNLIKELY.search(text):
            continue
        path.write_bytes(text.encode())
        try:
            state = PersistedState(path)
        except StateCorrupt:
            continue
        before = plain(state)
        for _ in range(chance.randrange(1, 4)):
            test_fast_paths.change(state, chance)
        expected = plain(state)
        state.close()

        assert_same(reopened(path), expected, text.encode())
        for reader in READERS:
            if holds(text.encode(), reader, before):
                after = path.read_bytes()
                assert holds(after, reader, expected), f"{reader}:\n{text}\n---- became\n{after.decode()}"


def holds(data: bytes, reader: str, value: Any) -> bool:
    """Tell whether a reader finds a value in a text; the order of keys does not count."""
    try:
        if reader == "strict":
            errors, _ = strict_reader.read(data.decode())
            is_mistaken = bool(errors) and errors[0].startswith(MISTAKEN)
            return is_mistaken or strict_reader.agrees(by_name(strict_reader.state(data)), by_name(value))
        return same(by_name(read(data, reader)), by_name(value))
    except Exception:  # noqa: BLE001 - whatever it is, this reader does not understand the text
        return False


@settings(max_examples=some(150, 20), deadline=None, print_blob=True)
@given(document=hand_written_files())
def test_random_files_are_left_alone(document: Any) -> None:
    with scratch() as path:
        path.write_bytes(document.data)

        with PersistedState(path) as state:
            assert same(plain(state), read(document.data))

        assert path.read_bytes() == document.data
