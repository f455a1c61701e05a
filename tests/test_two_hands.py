"""Suite M: a person saves the file while the script runs; neither hand loses anything.

What the person changed in the text that the editor had read wins, path by path; everything else stays as the script
left it. No time passes here: the clock of the module moves the savers (see editing.py), so that a save can stand still
in its middle for as long as a test wants it to.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import oracle
import pytest
import strict_reader
import yaml
from checks import check, records, reopened, scratch
from editing import (
    DOUBTFUL,
    QUIET,
    WAYS,
    Stage,
    appended,
    by_sed,
    copied,
    deleted,
    in_bytes,
    in_place,
    rename_over,
    save,
    staged,
    stripped,
    three_way,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import Child
from rounds import rounds, some

import persistedstate
from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEXT = """\
# how far the importer got
last_id: 41  # of 90
name: importer
limits:
  # per minute
  soft: 10
  hard: 20
jobs:
- a.csv
- b.csv  # the big one
- c.csv
hosts:
- name: one
  port: 1
- name: two
  port: 2
done: nope
"""

#: What TEXT holds.
START: dict[str, Any] = {
    "last_id": 41,
    "name": "importer",
    "limits": {"soft": 10, "hard": 20},
    "jobs": ["a.csv", "b.csv", "c.csv"],
    "hosts": [{"name": "one", "port": 1}, {"name": "two", "port": 2}],
    "done": "nope",
}


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


@pytest.fixture
def state(path: Path, stage: Stage) -> Iterator[Any]:
    """An open state with START, in a file that holds TEXT."""
    path.write_text(TEXT)
    with PersistedState(path) as state:
        stage.sleep(1)
        yield state


@pytest.fixture
def asides(path: Path) -> Iterator[Callable[[], list[str]]]:
    """A function that returns the texts that were kept beside the file; they are removed after the test."""

    def found() -> list[Path]:
        return sorted(path.parent.glob(f"{path.name}.edited-*"))

    yield lambda: [aside.read_bytes().decode(errors="replace") for aside in found()]
    for aside in found():
        aside.unlink()


def check_rest(state: Any, path: Path, expected: dict[str, Any]) -> None:
    """Assert that the state and the file hold `expected`, and that the file is a fresh snapshot."""
    check(state, path, expected)
    assert records(path) == 0


# ---- One hand changes this, the other that ---------------------------------------------------------------------------


class Hand:
    """A change of the text, and the same change of a plain state."""

    def __init__(self, old: str, new: str, change: Callable[[Any], object], touches: str) -> None:
        self.old, self.new, self.change, self.touches = old, new, change, touches

    def edited(self, text: str) -> str:
        assert text.count(self.old) == 1
        return text.replace(self.old, self.new)


PERSON: dict[str, Hand] = {
    "scalar": Hand("last_id: 41", "last_id: 7", lambda s: s.update(last_id=7), "last_id"),
    "scalar to list": Hand("name: importer", "name: [x, 'y']", lambda s: s.update(name=["x", "y"]), "name"),
    "new key": Hand("done: nope\n", "done: nope\nmine: {x: 1}\n", lambda s: s.update(mine={"x": 1}), "mine"),
    "deleted key": Hand("name: importer\n", "", lambda s: s.pop("name"), "name"),
    "deleted mapping": Hand("limits:\n  # per minute\n  soft: 10\n  hard: 20\n", "", lambda s: s.pop("limits"),
                            "limits"),
    "comment": Hand("name: importer", "# why\nname: importer  # here", lambda _: None, ""),
    "quotes": Hand("name: importer", 'name:   "importer"', lambda _: None, ""),
    "nested scalar": Hand("  soft: 10", "  soft: 11", lambda s: s["limits"].update(soft=11), "limits.soft"),
    "nested new": Hand("  hard: 20", "  hard: 20\n  peak: 99", lambda s: s["limits"].update(peak=99), "limits.peak"),
    "nested deleted": Hand("  soft: 10\n", "", lambda s: s["limits"].pop("soft"), "limits.soft"),
    "item changed": Hand("- b.csv ", "- B.csv ", lambda s: s["jobs"].__setitem__(1, "B.csv"), "jobs"),
    "item added": Hand("- c.csv\n", "- c.csv\n- d.csv\n", lambda s: s["jobs"].append("d.csv"), "jobs"),
    "item inserted": Hand("- a.csv\n", "- 0.csv\n- a.csv\n", lambda s: s["jobs"].insert(0, "0.csv"), "jobs"),
    "item removed": Hand("- b.csv  # the big one\n", "", lambda s: s["jobs"].remove("b.csv"), "jobs"),
    "items reordered": Hand(
        "- a.csv\n- b.csv  # the big one\n- c.csv\n", "- c.csv\n- b.csv  # the big one\n- a.csv\n",
        lambda s: s["jobs"].reverse(), "jobs",
    ),
    "list emptied": Hand(
        "jobs:\n- a.csv\n- b.csv  # the big one\n- c.csv\n", "jobs: []\n", lambda s: s["jobs"].clear(), "jobs"
    ),
    "key of an item": Hand("  port: 2", "  port: 22", lambda s: s["hosts"][1].update(port=22), "hosts.1.port"),
    "key into an item": Hand("  port: 1", "  port: 1\n  up: true", lambda s: s["hosts"][0].update(up=True),
                         "hosts.0.up"),
}  # fmt: skip

SCRIPT: dict[str, tuple[Callable[[Any], object], str]] = {
    "nothing": (lambda _: None, "-"),
    "scalar": (lambda s: s.update(last_id=42), "last_id"),
    "new key": (lambda s: s.update(ours=[1, {"y": None}]), "ours"),
    "deleted key": (lambda s: s.pop("done"), "done"),
    "nested scalar": (lambda s: s["limits"].update(hard=21), "limits.hard"),
    "nested new": (lambda s: s["limits"].update(low=1), "limits.low"),
    "appended": (lambda s: s["jobs"].append("z.csv"), "jobs"),
    "sorted": (lambda s: s["jobs"].sort(reverse=True), "jobs"),
    "key of an item": (lambda s: s["hosts"][0].update(port=10), "hosts.0.port"),
    "emptied and filled": (lambda s: [s["limits"].clear(), s["limits"].update(soft=10, hard=20)], "limits.hard"),
}


def apart(one: str, other: str) -> bool:
    """Tell whether neither path leads to or through the other."""
    return not f"{one}.".startswith(f"{other}.") and not f"{other}.".startswith(f"{one}.")


APART = [
    pytest.param(hand, change, id=f"{person}, {script}")
    for person, hand in PERSON.items()
    for script, (change, touches) in SCRIPT.items()
    if apart(hand.touches, touches)
]


@pytest.mark.parametrize(("hand", "change"), APART)
def test_changes_apart_from_each_other_are_both_kept(
    path: Path, state: Any, hand: Hand, change: Callable[[Any], object]
) -> None:
    expected = copy.deepcopy(START)
    change(expected)
    hand.change(expected)
    before = copy.deepcopy(START)
    change(before)

    change(state)
    save(path, hand.edited(TEXT))
    changed = state.refresh()

    assert plain(state) == expected
    assert changed is (before != expected)
    check_rest(state, path, plain(state))
    assert path.read_text().count("#") >= hand.edited(TEXT).count("#") - ("limits" not in expected)


@pytest.mark.parametrize("hand", PERSON.values(), ids=PERSON)
@pytest.mark.parametrize("way", WAYS)
def test_a_save_alone_is_taken_as_it_is(path: Path, state: Any, hand: Hand, way: str) -> None:
    expected = copy.deepcopy(START)
    hand.change(expected)

    save(path, hand.edited(TEXT), way)

    assert state.refresh() is (expected != START)
    assert path.read_text() == hand.edited(TEXT)
    check(state, path, oracle.read(path))
    assert plain(state) == expected
    assert state.refresh() is False


@pytest.mark.parametrize("hand", PERSON.values(), ids=PERSON)
def test_the_script_goes_on_after_a_merge(path: Path, state: Any, hand: Hand) -> None:
    state.seen = 1
    save(path, hand.edited(TEXT))
    state.refresh()

    state.seen = 2
    state.more = [1]
    state.more.append(2)

    assert records(path) == 3
    check(state, path, plain(state))
    assert (state.seen, state.more) == (2, [1, 2])


def test_what_stands_in_the_file_is_the_text_of_the_person(path: Path, state: Any) -> None:
    text = """\
# MINE
last_id: 41  # of 90
name: 'importer'

limits: {soft: 10,   hard: 20}  # flow
jobs:
    - a.csv
    - b.csv  # the big one
    # new
    - c.csv
hosts:
- {name: one, port: 1}
- {name: two, port: 2}
done: "nope"
note: |
  two
  lines
"""
    state.last_id = 42
    state.jobs.append("d.csv")
    save(path, text)

    assert state.refresh() is True

    expected = text.replace("41", "42").replace("    - c.csv\n", "    - c.csv\n    - d.csv\n")
    assert path.read_text() == expected
    check_rest(state, path, {**START, "last_id": 42, "jobs": [*START["jobs"], "d.csv"], "note": "two\nlines\n"})


# ---- Both change the same --------------------------------------------------------------------------------------------


class Conflict(NamedTuple):
    """A change by the script, one by the person in the text, and what comes of it at the key."""

    change: Callable[[Any], object]
    old: str
    new: str
    key: str
    expected: Any


CONFLICTS = [
    Conflict(lambda s: s.update(last_id=42), "last_id: 41", "last_id: 7", "last_id", 7),
    Conflict(lambda s: s.pop("last_id"), "last_id: 41", "last_id: 7", "last_id", 7),
    Conflict(lambda s: s.update(last_id={"x": 1}), "last_id: 41", "last_id: 7", "last_id", 7),
    Conflict(lambda s: s.update(last_id=7), "last_id: 41", "last_id: 7", "last_id", 7),
    Conflict(lambda s: s.update(last_id=42), "last_id: 41  # of 90\n", "", "last_id", None),
    Conflict(lambda s: s.pop("last_id"), "last_id: 41  # of 90\n", "", "last_id", None),
    Conflict(lambda s: s.update(new=1), "done: nope\n", "done: nope\nnew: 2\n", "new", 2),
    Conflict(lambda s: s["limits"].update(soft=12), "soft: 10", "soft: 11", "limits", {"soft": 11, "hard": 20}),
    Conflict(lambda s: s["limits"].update(soft=1, hard=2), "soft: 10", "soft: 11", "limits", {"soft": 11, "hard": 2}),
    Conflict(lambda s: s["limits"].update(soft=12), "  soft: 10\n", "", "limits", {"hard": 20}),
    Conflict(lambda s: s["limits"].pop("soft"), "soft: 10", "soft: 11", "limits", {"soft": 11, "hard": 20}),
    Conflict(lambda s: s["hosts"][0].update(port=5), "port: 1", "port: 6", "hosts",
             [{"name": "one", "port": 6}, START["hosts"][1]]),
    Conflict(lambda s: s["hosts"][0].update(name="x"), "port: 1", "port: 6", "hosts",
             [{"name": "x", "port": 6}, START["hosts"][1]]),
    Conflict(lambda s: s["jobs"].__setitem__(1, "S"), "- b.csv", "- P", "jobs", ["a.csv", "P", "c.csv"]),
    Conflict(lambda s: s["jobs"].__setitem__(0, "S"), "- b.csv", "- P", "jobs", ["S", "P", "c.csv"]),
    Conflict(lambda s: s["jobs"].append("S"), "- b.csv", "- P", "jobs", ["a.csv", "P", "c.csv", "S"]),
    Conflict(lambda s: s["jobs"].append("S"), "- b.csv  # the big one\n", "", "jobs", ["a.csv", "c.csv", "S"]),
    Conflict(lambda s: s["jobs"].pop(0), "- c.csv", "- P", "jobs", ["b.csv", "P"]),
    Conflict(lambda s: s["jobs"].pop(0), "- c.csv\n", "- c.csv\n- P\n", "jobs", ["b.csv", "c.csv", "P"]),
    Conflict(lambda s: s["jobs"].pop(0), "- c.csv\n", "", "jobs", ["b.csv"]),
    Conflict(lambda s: s["jobs"].pop(1), "- b.csv  # the big one\n", "", "jobs", ["a.csv", "c.csv"]),
    Conflict(lambda s: s["jobs"].insert(0, "S"), "- c.csv\n", "- c.csv\n- P\n", "jobs",
             ["S", "a.csv", "b.csv", "c.csv", "P"]),
    Conflict(lambda s: s["hosts"].append({"name": "S"}), "port: 2", "port: 22", "hosts",
             [START["hosts"][0], {"name": "two", "port": 22}, {"name": "S"}]),
]  # fmt: skip


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda conflict: f"{conflict.old!r} to {conflict.new!r}")
@pytest.mark.parametrize("look", ["refresh", "vacuum", "change"])
def test_the_person_wins_where_both_changed_the_same(
    path: Path, state: Any, stage: Stage, look: str, conflict: Conflict
) -> None:
    conflict.change(state)
    assert TEXT.count(conflict.old) == 1
    save(path, TEXT.replace(conflict.old, conflict.new))

    take_notice(state, stage, look)

    assert plain(state).get(conflict.key) == conflict.expected
    others = {name: value for name, value in START.items() if name != conflict.key}
    assert {name: value for name, value in plain(state).items() if name not in {conflict.key, "tick"}} == others
    check_rest(state, path, plain(state))


def take_notice(state: Any, stage: Stage, look: str) -> None:
    """Let the module look at the file by a change, a vacuum or a refresh."""
    if look == "change":
        stage.sleep(QUIET * 2)
        state.tick = 1
    else:
        getattr(state, look)()


def test_items_that_both_added_are_both_there(path: Path, state: Any) -> None:
    state.jobs.append("S")
    save(path, TEXT.replace("- c.csv\n", "- c.csv\n- P\n"))

    state.refresh()

    assert state.jobs[:3] == START["jobs"]
    assert sorted(state.jobs[3:]) == ["P", "S"]
    check_rest(state, path, plain(state))


def test_an_item_that_the_person_never_saw_is_not_deleted_with_the_one_before(path: Path, state: Any) -> None:
    """Both took the last job out, and the script put another one in."""
    state.jobs.remove("c.csv")
    state.jobs.append("S")
    save(path, TEXT.replace("- c.csv\n", ""))

    state.refresh()

    check_rest(state, path, {**START, "jobs": ["a.csv", "b.csv", "S"]})


def test_a_new_order_and_a_new_item_are_both_there(path: Path, state: Any) -> None:
    state.jobs.append("S")
    save(path, PERSON["items reordered"].edited(TEXT))

    state.refresh()

    assert [job for job in state.jobs if job != "S"] == ["c.csv", "b.csv", "a.csv"]
    assert state.jobs.count("S") == 1
    check_rest(state, path, plain(state))


def test_what_a_person_changed_in_a_deleted_mapping_comes_back(path: Path, state: Any) -> None:
    del state.limits
    save(path, TEXT.replace("soft: 10", "soft: 11"))

    state.refresh()

    assert state.limits["soft"] == 11
    check_rest(state, path, plain(state))


def test_a_mapping_that_a_person_deleted_is_gone_with_what_the_script_did_in_it(path: Path, state: Any) -> None:
    state.limits["soft"] = 12
    save(path, PERSON["deleted mapping"].edited(TEXT))

    state.refresh()

    assert "limits" not in state
    check_rest(state, path, plain(state))


def test_a_new_order_of_keys_is_kept(path: Path, state: Any) -> None:
    first, second, *rest = TEXT.splitlines(keepends=True)[1:]
    save(path, "".join([second, first, *rest]))

    state.refresh()

    assert list(state)[:2] == ["name", "last_id"]
    check(state, path, plain(state))


def test_a_tab_in_front_of_a_comment_is_merged(path: Path, state: Any) -> None:
    state.extra = 1
    save(path, TEXT.replace("last_id: 41  #", "last_id: 7\t#").replace("name: importer", "name: importer\t"))

    assert state.refresh() is True

    assert plain(state) == {**START, "last_id": 7, "extra": 1}
    assert "\nlast_id: 7\t# of 90\nname: importer\t\n" in path.read_text()
    strict_reader.assert_valid(b"", path.read_bytes(), plain(state))


def test_types_are_what_the_person_wrote(path: Path, state: Any) -> None:
    """1, 1.0, true and "1" are equal or look alike, and are four values."""
    for text, value in (("1", 1), ("1.0", 1.0), ("true", True), ("'1'", "1"), ("-0.0", -0.0), ("0.0", 0.0)):
        save(path, TEXT.replace("41", text))

        assert state.refresh() is True

        assert oracle.same(state.last_id, value)
    check_rest(state, path, plain(state))


@pytest.mark.parametrize(
    ("before", "save_as", "change", "expected"),
    [
        pytest.param("1: a\n", "1: a\nb: 2\n", {True: "a"}, {True: "a", "b": 2}, id="of the script"),
        pytest.param("1: a\nb: 1\n", "true: a\nb: 2\n", None, {True: "a", "b": 2}, id="of the person"),
        pytest.param("x: {1: a}\n", "x: {1: a, b: 2}\n", {"x": {True: "a"}}, {"x": {True: "a", "b": 2}}, id="inside"),
        pytest.param("x: {1: a}\n", "x: {1.0: a}\n", {"x": {1: "b"}}, {"x": {1.0: "b"}}, id="inside, both"),
        pytest.param("0: a\n", "false: a\n", {0.0: "a"}, {False: "a"}, id="of both"),
    ],
)
def test_a_key_that_gave_way_to_an_equal_one_of_another_type(
    path: Path, before: str, save_as: str, change: dict[Any, Any] | None, expected: dict[Any, Any]
) -> None:
    """To a dict 1, 1.0 and true are one key; in a text they are three."""
    path.write_text(before)
    with PersistedState(path) as state:
        state.vacuum()
        if change is not None:
            state.clear()
            state.update(change)
        save(path, save_as)

        state.refresh()

        assert oracle.same(plain(state), expected)
        assert oracle.same(oracle.read(path), expected)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


# ---- The text that the editor had read -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_journal_lines_in_the_saved_file_are_old_news(path: Path, state: Any, way: str) -> None:
    state.last_id = 42
    state.jobs.append("d.csv")
    read = path.read_text()
    state.last_id = 43
    state.jobs.pop(0)
    assert records(path) == 4

    save(path, read.replace("name: importer", "name: person  # me"), way)
    state.refresh()

    check_rest(state, path, {**START, "last_id": 43, "jobs": ["b.csv", "c.csv", "d.csv"], "name": "person"})
    assert "person  # me" in path.read_text()


@pytest.mark.parametrize("line", ['--- ["set",[],"last_id",7]', '--- ["delete",[],"name"]', '--- ["set",["no"],"x",1]'])
def test_a_journal_line_that_a_person_wrote_is_ignored(path: Path, state: Any, line: str) -> None:
    state.last_id = 42

    save(path, f"{TEXT}mine: 1\n{line}\n")
    state.refresh()

    check_rest(state, path, {**START, "last_id": 42, "mine": 1})


@pytest.mark.parametrize("lines", ["with", "without"])
@pytest.mark.parametrize("way", WAYS)
def test_an_editor_may_hold_the_text_from_before_a_vacuum(path: Path, state: Any, lines: str, way: str) -> None:
    state.last_id = 42
    state.jobs.append("d.csv")
    read = path.read_text() if lines == "with" else TEXT
    state.last_id = 43
    state.limits["hard"] = 21
    state.vacuum()
    state.last_id = 44
    state.new = 1

    save(path, read.replace("name: importer", "name: person  # me"), way)
    state.refresh()

    expected = {**START, "last_id": 44, "jobs": [*START["jobs"], "d.csv"], "name": "person", "new": 1}
    check_rest(state, path, {**expected, "limits": {"soft": 10, "hard": 21}})
    assert "person  # me" in path.read_text()


@pytest.mark.parametrize("way", WAYS)
def test_the_first_change_behind_a_vacuum_may_notice_a_text_from_before_it(
    path: Path, state: Any, stage: Stage, way: str
) -> None:
    """Its record stands behind the saved text, but it is not what the editor had read."""
    state.last_id = 42
    state.new = 1
    state.vacuum()
    save(path, TEXT.replace("name: importer", "name: person"), way)
    stage.sleep(QUIET * 2)

    state.tick = 1

    check_rest(state, path, {**START, "last_id": 42, "name": "person", "new": 1, "tick": 1})


def test_a_first_record_that_came_before_does_not_tell_of_an_older_text(path: Path, state: Any) -> None:
    """Found by test_state_machine.py: the record of now, written just before the save, was the first one once."""
    state.update(x=1, y=2)
    state.vacuum()
    state.x = 1
    state.vacuum()
    del state.x, state.y
    state.vacuum()
    state.x = 1
    state.y = 2

    save(path, path.read_text().replace("last_id: 41", "last_id: 7"))
    state.refresh()

    check_rest(state, path, {**START, "last_id": 7, "x": 1, "y": 2})


def test_records_appended_to_a_save_do_not_tell_of_an_older_text(path: Path, state: Any) -> None:
    """The first of them was also the first one behind an older snapshot."""
    del state.done
    state.new = 2
    state.vacuum()
    state.done = 1
    save(path, path.read_text().partition("---")[0].replace("name: importer\n", ""), "in place")
    del state.done
    del state.new

    state.refresh()

    check_rest(state, path, {key: value for key, value in START.items() if key not in {"done", "name"}})


def test_an_entry_less_is_nearer_than_another_value(path: Path, state: Any) -> None:
    """Of two snapshots that the editor may have read: to change a value takes away the old one and adds a new one."""
    del state.done
    state.last_id = 42
    state.vacuum()
    save(path, TEXT.replace("done: nope\n", ""))

    state.refresh()

    check_rest(state, path, {key: value for key, value in START.items() if key != "done"} | {"last_id": 42})


def test_a_text_from_before_a_vacuum_saved_as_it_was_changes_nothing(path: Path, state: Any) -> None:
    """Whoever leaves an editor by `:wq` has changed nothing against what the editor had read."""
    state.last_id = 42
    state.vacuum()
    save(path, TEXT)

    state.refresh()

    check_rest(state, path, {**START, "last_id": 42})


@pytest.mark.parametrize("old", ["- a.csv\n", "- b.csv  # the big one\n", "- c.csv\n"])
@pytest.mark.parametrize("new", ["", "- P\n"])
@pytest.mark.parametrize("read", ["before the vacuum", "after the vacuum"])
def test_an_item_added_or_removed_anywhere_is_no_sign_of_another_text(
    path: Path, state: Any, old: str, new: str, read: str
) -> None:
    """One line differs from what the editor had read, and others from the snapshots that it had not."""
    state.jobs.append("S")
    text = TEXT
    state.vacuum()
    if read == "after the vacuum":
        text = path.read_text()
    save(path, text.replace(old, new + old if new else ""))

    state.refresh()

    expected = [*START["jobs"], "S"]
    at = TEXT.split("jobs:\n")[1].splitlines(keepends=True).index(old)
    expected[at : at + (not new)] = ["P"] if new else []
    check_rest(state, path, {**START, "jobs": expected})


def test_an_editor_may_hold_the_text_from_before_a_merge(path: Path, state: Any) -> None:
    """Two editors have read the same text; the second saves after the first was merged."""
    save(path, TEXT.replace("41", "7"))
    state.refresh()
    state.done = "almost"

    save(path, TEXT.replace("name: importer", "name: second"))
    state.refresh()

    check_rest(state, path, {**START, "last_id": 7, "name": "second", "done": "almost"})


def test_an_editor_may_save_again_and_again(path: Path, state: Any) -> None:
    """It does not read the file in between, so its text is the one before last, and then its own."""
    text = TEXT
    for number in range(5):
        state.last_id = 100 + number
        text = f"{text}line_{number}: {number}\n"
        save(path, text)
        state.refresh()
        assert state.last_id == 100 + number
        assert state[f"line_{number}"] == number

    assert len(state) == len(START) + 5
    check_rest(state, path, plain(state))


def calls_of(action: Callable[[], object], at: int, save: Callable[[], object]) -> list[str]:
    """Return the names of the system calls of an action; a person saves in front of the one with that number."""
    made: list[str] = []
    real = persistedstate._system

    class Watched:
        def __getattr__(self, name: str) -> Any:
            call = getattr(real, name)
            return call if name in ("now", "time", "sleep") else partial(self.do, name, call)

        def do(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            if len(made) == at:
                save()
            made.append(name)
            return call(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persistedstate, "_system", Watched())
        action()
    return made


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("way", ["rename", "cp"])
def test_a_save_is_seen_up_to_the_renaming_of_a_vacuum(is_shared: bool, way: str) -> None:
    """One by a new file is seen in front of every call but that, one within the file in front of that, too."""

    def vacuum(at: int) -> tuple[list[str], bool]:
        with scratch() as path:
            path.write_text("# mine\na: 1\nb: 0\n")
            with PersistedState(path, _shared=is_shared) as state:
                state.a = 2
                text = path.read_text().replace("b: 0\n", "b: 7\n")
                made = calls_of(state.vacuum, at, lambda: save(path, text, way))
                state.vacuum()
                assert state.a == 2
                return made, state.b == 7

    for at in itertools.count():
        calls, is_seen = vacuum(at)  # which ones these are depends on the time, too
        is_last = calls[at] == "replace"
        assert is_seen == (not is_last or way == "cp"), (at, calls)
        if is_last:
            break


def test_an_edit_of_the_same_size_is_seen(path: Path, state: Any) -> None:
    for way in WAYS:
        for number in (17, 23):
            save(path, TEXT.replace("41", str(number)), way)
            assert state.refresh() is True
            assert state.last_id == number


def test_an_edit_of_the_same_size_within_the_journal_is_seen(path: Path, state: Any) -> None:
    state.done = "now"
    save(path, path.read_text().replace("41", "14"), "in place")

    assert state.refresh() is True
    check_rest(state, path, {**START, "last_id": 14, "done": "now"})


@pytest.mark.parametrize("journal", [False, True])
def test_a_new_time_stamp_changes_nothing(path: Path, state: Any, journal: bool) -> None:
    if journal:
        state.last_id = 42
    before, expected = path.read_bytes(), plain(state)
    path.touch()

    assert state.refresh() is False

    check(state, path, expected)
    assert journal or path.read_bytes() == before
    state.last_id = 50
    check(state, path, {**expected, "last_id": 50})


def test_a_file_put_in_place_unchanged_is_gone_on_with(path: Path, state: Any) -> None:
    state.last_id = 42
    save(path, path.read_text())

    assert state.refresh() is False
    state.done = "over"

    check(state, path, {**START, "last_id": 42, "done": "over"})


# ---- When it is noticed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", ["change", "refresh", "vacuum"])
def test_a_save_is_noticed_by_each_look(path: Path, state: Any, stage: Stage, look: str, way: str) -> None:
    save(path, TEXT.replace("41", "7"), way)

    take_notice(state, stage, look)

    assert state.last_id == 7
    check_rest(state, path, {**START, "last_id": 7, **({"tick": 1} if look == "change" else {})})


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.jobs.append("x"),
        lambda s: s.limits.update(hard=1),
        lambda s: s.jobs.sort(reverse=True),
        lambda s: s.pop("done"),
        lambda s: s.hosts[0].clear(),
    ],
)
def test_every_kind_of_change_takes_notice(
    path: Path, state: Any, stage: Stage, change: Callable[[Any], object]
) -> None:
    expected = copy.deepcopy(START)
    change(_Attributes(expected))
    save(path, TEXT.replace("41", "7"))
    stage.sleep(QUIET * 2)

    change(state)

    check_rest(state, path, {**expected, "last_id": 7})


class _Attributes(dict[str, Any]):
    """A dict whose keys are attributes, sharing its items with another one."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.items_ = items

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def pop(self, key: str, *default: Any) -> Any:
        self.items_.pop(key)
        return super().pop(key, *default)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("changed", [False, True])
def test_a_save_is_noticed_by_close(path: Path, stage: Stage, way: str, changed: bool) -> None:
    path.write_text(TEXT)
    state = PersistedState(path)
    if changed:
        state.done = "over"
    text = TEXT.replace("41  #", "7  # no longer").replace("importer\n", "'importer'\n")
    save(path, text, way)

    state.close()

    assert path.read_text() == (text.replace("done: nope", "done: over") if changed else text)
    assert not stage.is_saving


def test_a_save_is_noticed_within_real_time(path: Path) -> None:
    """The only test here with a real clock: changes go on, and soon see what was saved."""
    path.write_text(TEXT)
    with PersistedState(path) as state:
        save(path, TEXT.replace("name: importer", "name: person"))
        count = 0
        while state.name != "person":
            count += 1
            state.last_id = count
            assert count < 1_000_000

        check(state, path, {**START, "name": "person", "last_id": count})


@pytest.mark.parametrize("looks", [["change", "refresh"], ["change", "vacuum"], ["refresh"], ["change", "change"]])
def test_an_edit_of_the_same_size_right_behind_a_change_is_not_lost(path: Path, looks: list[str]) -> None:
    """A quick tool reads and writes the file in place, right behind a record and before the next; in real time."""
    path.write_text(TEXT)
    with PersistedState(path) as state:
        state.done = "over"
        save(path, path.read_text().replace("41", "14"), "in place")
        for look in looks:
            time.sleep(QUIET * 1.1)
            if look == "change":
                state.tick = look
            else:
                getattr(state, look)()
    expected = {**START, "last_id": 14, "done": "over", **({"tick": "change"} if "change" in looks else {})}
    assert oracle.same(oracle.read(path), expected)


# ---- File systems with a slow clock ----------------------------------------------------------------------------------


def save_within_a_tick(path: Path, old: str, new: str) -> None:
    """Save as many characters in the place of others while the clock of the file system stands still."""
    before = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_save_that_is_dated_as_the_latest_change_is_noticed_where_the_clock_was_set(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its date alone it would count as that change, which is not looked at again."""
    path.write_text(TEXT)
    with PersistedState(path) as state:
        state.last_id = 42
        state.tick = 1
        wrote_at = path.stat().st_mtime_ns
        save(path, path.read_text().replace("name: importer", "name: exporter"), "in place")
        os.utime(path, ns=(wrote_at, wrote_at))
        now, wall = persistedstate._system.now, persistedstate._system.time
        monkeypatch.setattr(persistedstate._system, "now", lambda: now() + 10)
        monkeypatch.setattr(persistedstate._system, "time", lambda: wall() - 60)

        state.tick = 2

        monkeypatch.undo()
        check_rest(state, path, {**START, "last_id": 42, "tick": 2, "name": "exporter"})


@pytest.mark.parametrize("look", ["change", "refresh", "vacuum", "close"])
@pytest.mark.parametrize("behind", ["opening", "change", "vacuum", "look"])
def test_an_edit_that_leaves_size_and_date_as_they_are_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, behind: str, look: str
) -> None:
    monkeypatch.setattr(persistedstate, "_LOOK_EVERY", 0.0)
    path.write_text(TEXT)
    expected = {**START, "last_id": 14}
    with PersistedState(path) as state:
        if behind != "opening":
            state.done = expected["done"] = "over"
        if behind == "vacuum":
            state.vacuum()
        elif behind == "look":
            state.refresh()
        save_within_a_tick(path, "41", "14")

        if look == "change":
            state.tick = expected["tick"] = 1
        elif look != "close":
            getattr(state, look)()
        if look != "close" and (look, behind) != (
            "change",
            "change",
        ):  # as long as changes follow at once, they are ours
            assert state.last_id == 14

    assert oracle.same(oracle.read(path), expected)


@pytest.mark.parametrize("way", ["in place", "rename"])
def test_a_save_that_looks_the_same_while_a_vacuum_waits_for_the_disk_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path.write_text(TEXT)
    with PersistedState(path) as state:
        state.done = "over"
        if way == "rename":
            save(path, TEXT.replace("importer", "exporter"), "rename")

        def save_first(descriptor: int) -> None:
            monkeypatch.undo()
            save_within_a_tick(path, "41", "14")
            os.fsync(descriptor)

        monkeypatch.setattr(persistedstate._system, "fsync", save_first)
        state.vacuum()

        name = "exporter" if way == "rename" else "importer"
        check_rest(state, path, {**START, "last_id": 14, "done": "over", "name": name})


@pytest.mark.parametrize("is_hard_link", [False, True])
def test_a_follower_sees_what_leaves_size_and_date_as_they_are(path: Path, is_hard_link: bool) -> None:
    path.write_text("a: 10\n")
    if is_hard_link:
        os.link(path, path.with_name("other"))
    with PersistedState(path, _readonly=True) as reader:
        for number in range(11, 20):  # a second in all
            save_within_a_tick(path, str(number - 1), str(number))
            assert reader.refresh() is True
            assert reader.a == number
            assert reader.refresh() is False
    path.with_name("other").unlink(missing_ok=True)


def test_a_follower_and_a_writer_of_a_file_that_rests_do_not_read_it_again_and_again(
    path: Path, state: Any, stage: Stage
) -> None:
    with PersistedState(path, _readonly=True) as reader:
        for _ in range(2):
            stage.sleep(3)  # no clock is slower than that
            assert reader.refresh() is state.refresh() is False
        stage.calls.clear()

        for _ in range(10):
            assert reader.refresh() is state.refresh() is False
        assert stage.calls["read"] == 0

        state.last_id = 7
        assert reader.refresh() is True


# ---- Clocks that are set ---------------------------------------------------------------------------------------------


@rounds(ci=30, nightly=3000)
def test_a_clock_that_is_set_back_and_forth_loses_nothing(
    path: Path, state: Any, stage: Stage, chance: random.Random, rounds: int
) -> None:
    """Files are dated in the past and in the future, by hours or by less than the moment in which one looks again."""
    names = itertools.count(10)
    expected = copy.deepcopy(START)
    for _ in range(rounds):
        for _ in range(chance.randrange(6)):
            stage.set_by = chance.choice([0, chance.uniform(-1e6, 1e6), 2**31, -1e9])
            state.last_id = expected["last_id"] = chance.randrange(100)
            stage.sleep(chance.choice([0, 0.01, QUIET / 2, QUIET * 1.1]))
        stage.sleep(QUIET * 2)
        old, new = state.name, f"person{next(names)}"
        expected["name"] = new
        stage.play(path, WAYS[chance.choice(list(WAYS))](path, path.read_bytes().replace(old.encode(), new.encode())))
        stage.finish()
        stage.set_by += chance.choice([0, 3600, -3600, chance.uniform(-0.2, 0.2)])
        stage.sleep(chance.choice([0, QUIET * 1.1]))
        look = chance.choice(["change", "refresh", "vacuum"])
        expected |= {"tick": 1} if look == "change" else {}

        take_notice(state, stage, look)

        check(state, path, expected)


def test_changes_that_follow_each_other_at_once_need_no_second_look(state: Any, stage: Stage) -> None:
    """A look costs more than a change, so that it is not taken at each one."""
    state.last_id = 0
    stage.calls.clear()

    for number in range(1000):
        state.last_id = number

    assert stage.calls["stat"] + stage.calls["lstat"] <= 20


# ---- How people save -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", [0, 1, 3])
@pytest.mark.parametrize("line", ["x: 1\n", "x: 1", "\nx: 1\n", "# so\nx: 1\n"])
def test_a_line_appended_by_the_shell_is_an_edit(path: Path, state: Any, journal: int, line: str) -> None:
    for number in range(journal):
        state.last_id = number
    with path.open("a") as file:
        file.write(line)

    assert state.refresh() is True

    check_rest(state, path, {**START, "last_id": journal - 1 if journal else 41, "x": 1})
    assert ("# so" in path.read_text()) == ("# so" in line)


@pytest.mark.parametrize("journal", [0, 1])
def test_a_stripped_newline_changes_nothing_and_glues_nothing(
    path: Path, state: Any, stage: Stage, journal: int
) -> None:
    for number in range(journal):
        state.last_id = number
    expected = plain(state)
    for look in "refresh", "change", "vacuum":
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
        take_notice(state, stage, look)
        expected |= {"tick": 1} if look == "change" else {}
        check(state, path, expected)
        state.more = look
        expected["more"] = look
        check(state, path, expected)


@pytest.mark.parametrize("wait", [0, 2], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: 8", 8),
        ("a: 1\nb: 8  # me", 8),
        ('a: 1\nb: "8"', "8"),
        ("a: 1\nb:\n- x\n- bcd", ["x", "bcd"]),
        ("a: 1\nb: |\n  x", "x"),
        ('{"a": 1, "b": 8}', 8),
    ],
)
def test_a_text_without_a_last_newline_is_not_glued_to_the_record_behind_it(
    path: Path, stage: Stage, text: str, value: Any, wait: int
) -> None:
    path.write_text("a: 1\nb: 3\n")
    with PersistedState(path) as state:
        state.n = 1
        stage.sleep(1)
        state.n = 2
        save(path, text, "in place")
        stage.sleep(wait)
        state.n = 3
        state.refresh()

        check(state, path, {"a": 1, "b": value, "n": 3})
    assert ("# me" in path.read_text()) == ("# me" in text)


def test_lines_as_long_as_the_records_that_they_take_the_place_of_are_seen(path: Path, state: Any) -> None:
    state.number = 1
    record = path.read_text()[len(TEXT) :]
    save(path, f"{TEXT}{'new: 1'.ljust(len(record) - 1)}\n", "in place")

    assert state.refresh() is True

    check_rest(state, path, {**START, "number": 1, "new": 1})


@pytest.mark.parametrize("rest", ["-- ", "- ", " ", ""])
def test_the_rest_of_a_record_without_its_dashes_is_no_text(path: Path, state: Any, rest: str) -> None:
    """It was written while the text was being saved, which then was written over its first bytes."""
    save(path, f'{TEXT.replace("41", "7")}{rest}["set",[],"done",true]\n', "in place")

    assert state.refresh() is True

    assert plain(state) == {**START, "last_id": 7}


@pytest.mark.parametrize("rest", ['of chapter 2: the end"]', '2 of them: "so"","b.csv"]', 'x y: 1",{"z":[1]}]]'])
def test_the_rest_of_a_record_is_no_text_though_it_reads_as_an_entry(path: Path, state: Any, rest: str) -> None:
    """The record was written while the text was being saved over it, and had a colon in a string."""
    save(path, f'{TEXT.replace("41", "7")}{rest}\n--- ["set",[],"done",true]\n', "in place")

    assert state.refresh() is True

    check_rest(state, path, {**START, "last_id": 7})


@pytest.mark.parametrize("keep_journal", [True, False], ids=["journal kept", "journal left out"])
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('note: 19" rack]', '19" rack]'),
        ('pairs:\n- ["a",["b"]]', [["a", ["b"]]]),
        ('note: it is "so"]', 'it is "so"]'),
        (
            'note: |\n  He wrote [in his letter: "I am\n  coming home"]',
            'He wrote [in his letter: "I am\ncoming home"]\n',
        ),
        ('wrapped: ["a long string that\n  goes on"]', ["a long string that goes on"]),
        ('listed: 1\n# [the old list was "a,\n# b"]', 1),
    ],
)
def test_a_last_line_in_brackets_is_no_rest_of_a_record(
    path: Path, state: Any, line: str, value: Any, keep_journal: bool
) -> None:
    state.number = 1
    journal = path.read_text()[len(TEXT) :]
    save(path, f"{TEXT}{line}\n{journal if keep_journal else ''}")

    assert state.refresh() is True

    check_rest(state, path, {**START, "number": 1, line.partition(":")[0]: value})


@pytest.mark.parametrize("way", ["rename", "in place"])
@pytest.mark.parametrize("line", ["open: [1]]", "- [1]]", '- ["a", "b"]', 'jobs: ["a, b]]'])
def test_a_last_line_with_a_bracket_too_many_is_not_dropped_without_a_word(
    path: Path, state: Any, asides: Callable[[], list[str]], line: str, way: str
) -> None:
    state.number = 1
    save(path, f"{TEXT}{line}\n", way)

    with pytest.warns(RuntimeWarning, match="edited-"):
        assert state.refresh() is False

    assert asides() == [f"{TEXT}{line}\n"]
    check_rest(state, path, {**START, "number": 1})


def test_nobody_has_read_a_new_file_before_it_held_the_defaults(path: Path) -> None:
    with PersistedState(path, last_id=0, retry=3, rows=["a"]) as state:
        state.last_id = 6
        save(path, "retry: 3\n")
        state.refresh()

        check(state, path, {"retry": 3})


@pytest.mark.parametrize("look", ["refresh", "change", "vacuum", "close"])
@pytest.mark.parametrize("journal", [False, True])
def test_a_deleted_file_is_written_again(path: Path, stage: Stage, look: str, journal: bool) -> None:
    path.write_text(TEXT)
    state = PersistedState(path)
    stage.sleep(1)
    if journal:
        state.last_id = 42
    expected = plain(state) | ({"tick": 1} if look == "change" else {})
    path.unlink()

    with pytest.warns(RuntimeWarning) as caught:
        take_notice(state, stage, look)

    assert len(caught) == 1
    assert oracle.same(oracle.read(path), expected)
    if look != "close":
        check(state, path, expected)
        state.after = 1
        check(state, path, {**expected, "after": 1})
        with Child(OPENER, path) as child:
            child.expect("StateLocked")
    state.close()


def test_sed_in_place(path: Path, state: Any) -> None:
    state.jobs.append("d.csv")
    subprocess.run(["sed", "-i", "s/^last_id: [0-9]*/last_id: 7/", path], check=True)

    assert state.refresh() is True

    check_rest(state, path, {**START, "last_id": 7, "jobs": [*START["jobs"], "d.csv"]})


@pytest.mark.skipif(shutil.which("vim") is None, reason="there is no vim")
@pytest.mark.parametrize("backup", ["yes", "no", "auto"])
def test_vim(path: Path, state: Any, backup: str) -> None:
    state.jobs.append("d.csv")
    commands = [f"set backupcopy={backup}", "%s/^last_id: 41/last_id: 7/", "wq"]
    editor = ["vim", "-es", "-u", "NONE", "-i", "NONE", *(f"-c{command}" for command in commands), str(path)]
    subprocess.run(editor, check=True, timeout=60, stdin=subprocess.DEVNULL)

    assert state.refresh() is True

    check_rest(state, path, {**START, "last_id": 7, "jobs": [*START["jobs"], "d.csv"]})


def moved(path: Path, new: Path) -> None:
    """Move a file and leave a link, as one does who needs the space."""
    path.rename(new)
    path.symlink_to(new)


def moved_to_another_disk(path: Path, new: Path) -> None:
    """Do so where moving is copying."""
    shutil.copy2(path, new)
    path.unlink()
    path.symlink_to(new)


def pointed_elsewhere(path: Path, new: Path) -> None:
    """Copy the file, and let the link lead there."""
    shutil.copy2(path, new)
    link = path.with_name("link")
    link.symlink_to(new)
    link.replace(path)


@pytest.mark.leaves("files")
@pytest.mark.parametrize("look", ["change", "refresh", "vacuum", "close"])
@pytest.mark.parametrize("is_link", [False, True], ids=["file", "link"])
@pytest.mark.parametrize("move", [moved, moved_to_another_disk, pointed_elsewhere])
def test_a_path_that_leads_elsewhere_by_now_is_followed_anew(
    tmp_path: Path, stage: Stage, move: Callable[[Path, Path], None], is_link: bool, look: str
) -> None:
    """What people see is what the script goes on with."""
    path, old, new = tmp_path / "x.state", tmp_path / "old.state", tmp_path / "big" / "new.state"
    new.parent.mkdir()
    path.write_text(TEXT)
    if is_link:
        path.rename(old)
        path.symlink_to(old)
    with PersistedState(path) as state:
        stage.sleep(1)
        state.done = "over"
        move(old if is_link and move is moved else path, new)
        before = old.read_bytes() if old.exists() else b""
        if look == "change":
            stage.sleep(QUIET * 2)
            state.done = "over and over"
        elif look != "close":
            getattr(state, look)()
        state.last_id = 7
    expected = {**START, "last_id": 7, "done": "over and over" if look == "change" else "over"}

    assert oracle.same(oracle.read(path), expected)
    assert oracle.same(oracle.read(new), expected)
    assert records(new) == 0
    assert path.is_symlink()
    if (
        look in {"refresh", "vacuum"} and old.exists() and not old.is_symlink()
    ):  # a change is written before the look, into what is open
        assert old.read_bytes() == before
    assert not stage.is_saving


@pytest.mark.leaves("files")
def test_an_editor_that_replaces_the_link_has_its_save_merged(tmp_path: Path, stage: Stage) -> None:
    """As `sed -i` does; the second handle by that name is one on the same state, too."""
    target, link = tmp_path / "real.state", tmp_path / "x.state"
    target.write_text(TEXT)
    link.symlink_to(target)
    with PersistedState(link) as state:
        stage.sleep(1)
        state.done = "over"
        for _ in by_sed(link, "s/41/7/"):
            pass
        before = target.read_bytes()
        with PersistedState(link) as other:
            assert state.refresh() is True
            assert other.last_id == state.last_id == 7
        state.name = "later"

    assert not link.is_symlink()
    assert oracle.same(oracle.read(link), {**START, "last_id": 7, "done": "over", "name": "later"})
    assert target.read_bytes() == before


@pytest.mark.leaves("files")
def test_a_link_that_leads_nowhere_leaves_the_script_where_it_is(tmp_path: Path, stage: Stage) -> None:
    target, link = tmp_path / "real.state", tmp_path / "x.state"
    target.write_text(TEXT)
    link.symlink_to(target)
    with PersistedState(link) as state:
        stage.sleep(1)
        link.unlink()
        link.symlink_to(tmp_path / "none" / "such")
        stage.sleep(1)
        state.last_id = 7
        assert state.refresh() is False

    assert oracle.same(oracle.read(target), {**START, "last_id": 7})


@pytest.mark.leaves("files")
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to make a link of somebody else")
@pytest.mark.parametrize("is_file", [False, True], ids=["instead of the link", "instead of the file"])
def test_a_link_that_somebody_else_made_is_not_followed(tmp_path: Path, stage: Stage, is_file: bool) -> None:
    target, link, theirs = tmp_path / "real.state", tmp_path / "x.state", tmp_path / "theirs"
    target.write_text(TEXT)
    theirs.write_text("mine: 1\n")
    link.symlink_to(target)
    with PersistedState(link) as state:
        stage.sleep(1)
        taken = target if is_file else link
        taken.unlink()
        taken.symlink_to(theirs)
        os.chown(taken, 65534, 65534, follow_symlinks=False)
        stage.sleep(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            state.last_id = 7

    assert theirs.read_text() == "mine: 1\n"
    assert oracle.same(oracle.read(target), {**START, "last_id": 7})
    assert not target.is_symlink()


@pytest.mark.leaves("files")
def test_a_follower_follows_a_link_that_leads_elsewhere_by_now(tmp_path: Path) -> None:
    path, old, new = (tmp_path / name for name in ("x.state", "old.state", "new.state"))
    old.write_text(TEXT)
    path.symlink_to(old)
    with PersistedState(path, _readonly=True) as reader:
        pointed_elsewhere(path, new)
        assert reader.refresh() is False
        new.write_text("a: 1\n")
        assert reader.refresh() is True
        assert plain(reader) == {"a": 1}


@pytest.mark.leaves("files")
@pytest.mark.parametrize("way", ["rename", "in place"])
@pytest.mark.parametrize("through", ["link", "target"])
def test_a_file_behind_a_symbolic_link_is_watched_where_it_is(
    tmp_path: Path, stage: Stage, way: str, through: str
) -> None:
    if (way, through) == ("rename", "link"):
        pytest.skip("it replaces the link, see above")
    folder = tmp_path / "real"
    folder.mkdir()
    target, link = folder / "y.state", tmp_path / "x.state"
    target.write_text(TEXT)
    link.symlink_to(target)
    with PersistedState(link) as state:
        state.done = "over"
        save(link if through == "link" else target, TEXT.replace("41", "7"), way)

        assert state.refresh() is True

        check_rest(state, target, {**START, "last_id": 7, "done": "over"})
    assert link.is_symlink()
    assert [entry.name for entry in folder.iterdir()] == ["y.state"]
    assert not stage.is_saving


@pytest.mark.parametrize("way", WAYS)
def test_the_mode_that_the_person_gave_stays(path: Path, state: Any, way: str) -> None:
    save(path, TEXT.replace("41", "7"), way)
    path.chmod(0o640)
    state.done = "over"

    state.refresh()
    state.vacuum()

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# ---- Half of a file --------------------------------------------------------------------------------------------------

#: Changes something at the beginning, in the middle and at the end, and adds a line.
EDITED = TEXT.replace("41", "7").replace("hard: 20", "hard: 2000").replace("done: nope", "done: soon\nmore: 1")
EDITED_START = {**START, "last_id": 7, "limits": {"soft": 10, "hard": 2000}, "done": "soon", "more": 1}


@pytest.mark.parametrize(
    ("before", "saved", "expected"),
    [
        pytest.param('{"a": 1}\n', '{"a": 2}', {"a": 2}, id="in flow style"),
        pytest.param("", "a: 1", {"a": 1}, id="nothing before"),
        pytest.param("{}\n", "a: 1", {"a": 1}, id="empty before"),
    ],
)
def test_a_save_without_a_last_line_feed_over_a_text_without_lines_for_entries_is_merged(
    path: Path, before: str, saved: str, expected: dict[str, Any]
) -> None:
    path.write_text(before)
    with PersistedState(path) as state:
        save(path, saved)
        state.refresh()

        assert plain(state) == expected
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_present_text_without_its_last_line_feed_is_whole_though_the_one_before_was_longer(path: Path) -> None:
    path.write_text("a: 1\nb: 2\n")
    with PersistedState(path) as state:
        del state["b"]
        state.vacuum()
        save(path, "a: 1")
        state["c"] = 3
        state.refresh()

        assert plain(state) == {"a": 1, "c": 3}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("size", "pause"), [(1, 0.001), (1, 0.003), (7, 0.02), (64, QUIET * 0.9), (10_000, QUIET * 0.9)]
)
@pytest.mark.parametrize("look", ["refresh", "change", "vacuum"])
def test_a_half_saved_file_is_never_merged(
    path: Path, state: Any, stage: Stage, size: int, pause: float, look: str
) -> None:
    state.jobs.append("d.csv")
    stage.play(path, in_place(path, EDITED.encode(), size=size, pause=pause))

    take_notice(state, stage, look)
    stage.finish()
    state.refresh()

    tick = {"tick": 1} if look == "change" else {}
    expected = {**EDITED_START, "jobs": [*START["jobs"], "d.csv"], **tick}
    expected["more"] = expected.pop("more")  # of two new entries at the end the script's comes first
    check_rest(state, path, expected)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("pause", [0.03, QUIET * 0.9])
def test_a_save_that_takes_longer_is_merged_as_a_whole_or_kept_and_told(
    path: Path, state: Any, stage: Stage, asides: Callable[[], list[str]], size: int, pause: float
) -> None:
    """The script cannot stand still for ever. What it makes of the file meanwhile must be no half of the save."""
    state.jobs.append("d.csv")
    stage.play(path, in_place(path, EDITED.encode(), size=size, pause=pause))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.refresh()
        during = plain(state)
        stage.finish()
        state.refresh()

    mine = {**START, "jobs": [*START["jobs"], "d.csv"]}
    whole = {**EDITED_START, "jobs": mine["jobs"]}
    assert during in (mine, whole)
    assert plain(state) in (mine, whole)
    assert plain(state) == whole or (caught and asides())
    check_rest(state, path, plain(state))


@pytest.mark.usefixtures("stage")
def test_a_save_that_comes_while_close_writes_the_file_anew_is_merged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(TEXT)
    state: Any = PersistedState(path)
    state.jobs.append("d.csv")

    def save_first(descriptor: int) -> None:
        monkeypatch.undo()
        save(path, EDITED, "rename")
        os.fsync(descriptor)

    monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(save_first))
    state.close()

    assert oracle.read(path) == {**EDITED_START, "jobs": [*START["jobs"], "d.csv"]}


@pytest.mark.parametrize("line", range(1, TEXT.count("\n")))
def test_a_save_that_pauses_longer_behind_any_line_is_waited_for(
    path: Path, state: Any, stage: Stage, line: int
) -> None:
    """Half of the text is valid, too: it looks as if the person had deleted the rest."""
    text = TEXT.replace("done: nope", "done: soon")
    half = "".join(text.splitlines(keepends=True)[:line])
    state.jobs.append("d.csv")
    stage.play(path, pausing(path, half, text[len(half) :]))

    assert state.refresh() is True

    check_rest(state, path, {**START, "done": "soon", "jobs": [*START["jobs"], "d.csv"]})


def pausing(path: Path, half: str, rest: str) -> Iterator[float]:
    """Save in place, and stand still behind the half for longer than a moment."""
    with path.open("w") as file:
        yield 0.01
        file.write(half)
        file.flush()
        yield DOUBTFUL * 0.8
        file.write(rest)


@pytest.mark.parametrize("line", [1, 2, 3, 7, 11, 15])
def test_lines_deleted_at_the_end_are_deleted_when_the_file_stays_so(path: Path, state: Any, line: int) -> None:
    text = "".join(TEXT.splitlines(keepends=True)[: line + 1])
    save(path, text)

    assert state.refresh() is True

    assert plain(state) == oracle.read(path)
    assert path.read_text() == text


@pytest.mark.parametrize("step", range(1, len(EDITED) // 7))
def test_a_change_in_the_middle_of_a_save_is_kept(path: Path, state: Any, stage: Stage, step: int) -> None:
    """The record of the change goes into the file that the editor is writing, which writes over it."""
    state.last_id = 42
    stage.play(path, in_place(path, EDITED.encode(), size=7, pause=0.001))
    for _ in range(step):
        stage.step()
    state.name = "script"
    stage.finish()

    state.refresh()

    check_rest(state, path, {**EDITED_START, "name": "script"})


@pytest.mark.parametrize("way", [in_place, in_bytes, rename_over, copied])
@pytest.mark.parametrize("writer", [False, True])
def test_a_follower_never_shows_half_a_save(path: Path, stage: Stage, way: Any, writer: bool) -> None:
    path.write_text(TEXT)
    state = PersistedState(path) if writer else None
    follower = PersistedState(path, _readonly=True)
    stage.play(path, way(path, EDITED.encode(), pause=0.003))
    seen = []
    while stage.is_saving:
        follower.refresh()
        seen.append(plain(follower))
        stage.step()
    if state is not None:
        state.refresh()
        state.close()
    follower.refresh()
    seen.append(plain(follower))
    follower.close()

    assert all(content in (START, EDITED_START) for content in seen)
    assert seen[-1] == EDITED_START
    assert seen == sorted(seen, key=lambda content: content == EDITED_START)


# ---- What cannot be merged -------------------------------------------------------------------------------------------

BROKEN = {
    "open bracket": "last_id: [41\nname: importer\n",
    "open quote": "last_id: 7\nname: 'importer\n",
    "tab": "last_id: 7\nlimits:\n\tsoft: 1\n",
    "indentation": "last_id: 7\nlimits:\n  soft: 1\n   hard: 2\n",
    "key twice": "last_id: 7\nname: a\nlast_id: 8\n",
    "list": "- 1\n- 2\n",
    "scalar": "just text\n",
    "tag": "last_id: !mine 7\n",
    "conflict": "<<<<<<< HEAD\nlast_id: 7\n=======\nlast_id: 8\n>>>>>>> other\n",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("look", ["refresh", "change", "vacuum", "close"])
@pytest.mark.parametrize("way", ["rename", "in place"])
def test_a_text_that_cannot_be_read_is_kept_beside(
    path: Path, stage: Stage, asides: Callable[[], list[str]], broken: str, look: str, way: str
) -> None:
    path.write_text(TEXT)
    state = PersistedState(path)
    stage.sleep(1)
    state.last_id = 42
    save(path, broken, way)

    with pytest.warns(RuntimeWarning) as caught:
        take_notice(state, stage, look)

    expected = {**START, "last_id": 42, **({"tick": 1} if look == "change" else {})}
    (warning,) = caught
    assert f"{path}.edited-" in str(warning.message)
    (kept,) = asides()
    # the record of the change that noticed it may have been appended to the text before
    assert kept == broken if look != "change" else kept.startswith(broken)
    assert oracle.same(oracle.read(path), expected)
    assert records(path) == 0
    if look != "close":
        assert state.refresh() is False
        state.after = 1
        check(state, path, {**expected, "after": 1})
    state.close()
    assert len(asides()) == 1
    assert "# the big one" in path.read_text()


def test_a_warning_names_the_line_of_the_script(path: Path, state: Any, asides: Callable[[], list[str]]) -> None:
    def change() -> None:
        state.last_id = 42

    def transaction() -> None:
        with state.transaction():
            state.last_id = 43

    for action in change, transaction, state.refresh, state.vacuum:
        path.write_text(BROKEN["list"])
        with pytest.warns(RuntimeWarning) as caught:
            action()

        assert {warning.filename for warning in caught} == {__file__}
    assert asides()


def test_an_edit_is_refused_once_though_warnings_are_errors(
    path: Path, state: Any, asides: Callable[[], list[str]]
) -> None:
    path.write_text(BROKEN["list"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            state.refresh()
        assert state.refresh() is False

    assert len(asides()) == 1
    check_rest(state, path, START)


def test_the_warning_of_an_opening_names_the_line_of_the_script(path: Path) -> None:
    path.write_text('a: 1\n--- ["se')

    with pytest.warns(RuntimeWarning) as caught:
        PersistedState(path).close()

    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("data", [b"last_id: 7\nname: \xff\xfe\n", b"last_id: 7\nname: a\0b\n", TEXT.encode("utf-16")])
def test_bytes_that_are_no_text_are_kept_beside(
    path: Path, state: Any, asides: Callable[[], list[str]], data: bytes
) -> None:
    path.write_bytes(data)

    with pytest.warns(RuntimeWarning, match="edited-"):
        assert state.refresh() is False

    assert asides() == [data.decode(errors="replace")]
    check_rest(state, path, START)


def test_a_second_broken_text_does_not_replace_the_first(
    path: Path, state: Any, asides: Callable[[], list[str]]
) -> None:
    """Both come within the same second, to which the name tells the time."""
    for broken in BROKEN["tab"], BROKEN["open quote"], BROKEN["list"]:
        save(path, broken)
        with pytest.warns(RuntimeWarning):
            state.refresh()

    assert sorted(asides()) == sorted([BROKEN["tab"], BROKEN["open quote"], BROKEN["list"]])


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_what_is_kept_beside_is_no_more_public_than_the_file(
    path: Path, state: Any, asides: Callable[[], list[str]], mode: int
) -> None:
    path.chmod(mode)
    state.refresh()
    path.write_text(BROKEN["tab"])

    with pytest.warns(RuntimeWarning):
        state.refresh()

    assert asides()
    (aside,) = path.parent.glob("*.edited-*")
    assert stat.S_IMODE(aside.stat().st_mode) & ~mode == 0
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_text_that_is_mended_in_time_is_merged(path: Path, state: Any, stage: Stage, asides: Any) -> None:
    """The person saves, sees the slip, and saves again."""

    def slip() -> Iterator[float]:
        path.write_text(BROKEN["open quote"])
        yield DOUBTFUL * 0.5
        path.write_text(EDITED)

    stage.play(path, slip())

    assert state.refresh() is True

    assert asides() == []
    check_rest(state, path, EDITED_START)


def test_an_emptied_file_is_never_half_a_state(path: Path, state: Any, asides: Any) -> None:
    """Whether the person meant it is not to be known; either way nothing is lost without a trace."""
    path.write_text("")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.refresh()

    assert plain(state) == (START if caught else {})
    assert len(asides()) <= 1
    check_rest(state, path, plain(state))


# ---- What else is going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_nodes_are_the_same_after_a_merge(path: Path, state: Any, way: str) -> None:
    limits, jobs, hosts, first = state.limits, state.jobs, state.hosts, state.hosts[0]
    text = TEXT.replace("soft: 10", "soft: 11").replace("- c.csv", "- c.csv\n- P").replace("port: 1", "port: 6")
    save(path, text, way)

    state.refresh()

    assert state.limits is limits
    assert state.jobs is jobs
    assert state.hosts is hosts
    assert state.hosts[0] is first
    assert (limits["soft"], jobs[-1], first["port"]) == (11, "P", 6)
    limits["hard"] = 5
    jobs.append("S")
    first["up"] = True
    check(state, path, plain(state))
    assert state.limits == {"soft": 11, "hard": 5}
    assert state.jobs[-2:] == ["P", "S"]
    assert state.hosts[0] == {"name": "one", "port": 6, "up": True}


def test_a_node_that_the_person_removed_is_nobodys(path: Path, state: Any) -> None:
    limits, second = state.limits, state.hosts[1]
    save(path, PERSON["deleted mapping"].edited(TEXT).replace("- name: two\n  port: 2\n", ""))
    state.refresh()

    limits["soft"] = 99
    second["port"] = 99

    assert "limits" not in state
    check(state, path, {key: value for key, value in START.items() if key != "limits"} | {"hosts": START["hosts"][:1]})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["commit", "roll back"])
def test_a_save_during_a_transaction_is_merged_after_it(
    path: Path, state: Any, stage: Stage, way: str, end: str
) -> None:
    try:
        with state.transaction():
            state.last_id = 42
            state.jobs.append("d.csv")
            save(path, TEXT.replace("name: importer", "name: person").replace("soft: 10", "soft: 11"), way)
            stage.sleep(QUIET * 2)
            state.limits["hard"] = 21
            assert plain(state)["last_id"] == 42
            if end == "roll back":
                raise RuntimeError
    except RuntimeError:
        pass
    state.refresh()

    script = {"last_id": 42, "jobs": [*START["jobs"], "d.csv"]} if end == "commit" else {}
    limits = {"soft": 11, "hard": 21 if end == "commit" else 20}
    check_rest(state, path, {**START, **script, "name": "person", "limits": limits})


OPENER = """
    import sys
    from persistedstate import PersistedState, StateLocked
    try:
        PersistedState(sys.argv[1]).close()
        print("opened")
    except StateLocked:
        print("StateLocked")
"""


@pytest.mark.parametrize("way", WAYS)
def test_the_lock_goes_over_to_the_file_that_the_person_saved(path: Path, state: Any, way: str) -> None:
    save(path, TEXT.replace("41", "7"), way)
    state.refresh()

    with Child(OPENER, path) as child:
        child.expect("StateLocked")
    state.close()
    with Child(OPENER, path) as child:
        child.expect("opened")


def test_a_follower_of_the_writer_sees_the_merged_state(path: Path, state: Any) -> None:
    follower = PersistedState(path, _readonly=True)
    state.done = "over"
    save(path, TEXT.replace("41", "7"))
    state.refresh()

    assert follower.refresh() is True
    assert plain(follower) == {**START, "last_id": 7, "done": "over"}
    follower.close()


def test_both_handles_of_a_process_see_the_merge(path: Path, state: Any) -> None:
    with PersistedState(path) as other:
        state.done = "over"
        save(path, TEXT.replace("41", "7"))

        assert other.refresh() is True

        assert plain(state) == plain(other) == {**START, "last_id": 7, "done": "over"}


def test_a_key_that_is_the_name_of_a_method_is_taken_over(path: Path, state: Any) -> None:
    save(path, f"{TEXT}items: 3\n_x: 4\n")

    assert state.refresh() is True

    assert (state["items"], state["_x"]) == (3, 4)
    assert list(state.items())[-1] == ("_x", 4)


def test_defaults_are_no_edit_and_a_deleted_one_stays_deleted(path: Path, stage: Stage) -> None:
    with PersistedState(path, a=1, b=2) as state:
        save(path, "b: 2\n")
        assert state.refresh() is True
        assert plain(state) == {"b": 2}
        assert not stage.is_saving


@pytest.mark.parametrize(
    "text", ["{last_id: 7}\n", '{"last_id": 7}\n', "last_id: &x 7\nsame: *x\n", "\ufefflast_id: 7\r\n"]
)
def test_a_text_of_another_style_is_merged(path: Path, state: Any, text: str) -> None:
    state.extra = 1
    with path.open("w", newline="") as file:
        file.write(text)

    assert state.refresh() is True

    expected = {"last_id": 7, "extra": 1} | ({"same": 7} if "same" in text else {})
    assert plain(state) == expected
    check_rest(state, path, plain(state))


# ---- At random -------------------------------------------------------------------------------------------------------

SCALARS = st.integers(-9, 9) | st.sampled_from(["x", "two words", "", 1.5, None, True])
LEAVES = SCALARS | st.sampled_from([[1, 2], [], ["x", {"n": 1}]])
BRANCHES = st.fixed_dictionaries({}, optional=dict.fromkeys("xyz", SCALARS))
#: Two mappings, to which both hands add scalars and from which they take them: here a path is all that there is.
TREES = st.fixed_dictionaries({"m": BRANCHES, "n": BRANCHES}, optional=dict.fromkeys("abcde", SCALARS))
ANY_TREES = st.dictionaries(
    st.sampled_from("abcde"),
    st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("xyz"), v, max_size=3)),
    max_size=4,
)
RANDOMLY = settings(max_examples=some(150, 20), deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


def dumped(value: Any) -> str:
    """Return the text of a person who knows YAML well and anchors not at all."""
    return str(yaml.safe_dump(copy.deepcopy(value), sort_keys=False, allow_unicode=True))


def merged(base: Any, mine: Any, theirs: Any) -> tuple[Any, str]:
    """Open a file with `base`, make it `mine` by the script and `theirs` by hand; return the state and the text."""
    with staged(), scratch() as path:
        path.write_text(dumped(base))
        with PersistedState(path) as state:
            for key in [key for key in state if key not in mine]:
                del state[key]
            become(state, mine)
            save(path, dumped(theirs))
            state.refresh()
            found = plain(state)
            check(state, path, found)
            return found, path.read_text()


def exact(value: Any) -> str:
    """Return what tells 1, 1.0 and true from each other and knows no order of keys."""
    return json.dumps(value, sort_keys=True)


def become(node: Any, wanted: dict[Any, Any]) -> None:
    """Make a node equal to a plain dict by the changes that are needed, no more."""
    for key in [key for key in node if key not in wanted]:
        del node[key]
    for key, value in wanted.items():
        if isinstance(value, dict) and key in node and isinstance(plain(node).get(key), dict):
            become(node[key], value)
        elif key not in node or not oracle.same(plain(node)[key], value):
            node[key] = copy.deepcopy(value)


@RANDOMLY
@given(ANY_TREES, ANY_TREES)
def test_a_save_of_the_same_text_leaves_what_the_script_did(base: Any, mine: Any) -> None:
    assert exact(merged(base, mine, base)[0]) == exact(mine)


@RANDOMLY
@given(ANY_TREES, ANY_TREES)
def test_without_a_change_by_the_script_the_save_is_the_state(base: Any, theirs: Any) -> None:
    found, text = merged(base, base, theirs)

    assert oracle.same(found, theirs)
    assert text == dumped(theirs)


@RANDOMLY
@given(TREES, TREES, TREES)
def test_both_hands_are_merged_path_by_path(base: Any, mine: Any, theirs: Any) -> None:
    assert exact(merged(base, mine, theirs)[0]) == exact(three_way(base, mine, theirs))


@RANDOMLY
@given(ANY_TREES, ANY_TREES, ANY_TREES)
def test_a_merge_gives_the_same_each_time(base: Any, mine: Any, theirs: Any) -> None:
    first, second = merged(base, mine, theirs), merged(base, mine, theirs)

    assert oracle.same(first[0], second[0])
    assert first[1] == second[1]


@RANDOMLY
@given(ANY_TREES, ANY_TREES)
def test_the_same_change_by_both_is_one_change(base: Any, both: Any) -> None:
    assert exact(merged(base, both, both)[0]) == exact(both)


SHARED = """\
# the one who wrote this
keep: 1  # and this
counter: 0
flag: off duty
limits:
  # per minute
  soft: 10
  hard: 20
  peak: 30
jobs:
- j1
- j2
- j3
last: 0
"""


class Session:
    """A script and a person at the same file, at random, and what may come of it."""

    def __init__(self, path: Path, stage: Stage, chance: random.Random) -> None:
        self.path, self.stage, self.chance = path, stage, chance
        path.write_text(SHARED)
        self.state: Any = PersistedState(path)
        #: What the script has made of the state, and what was merged into it.
        self.mine: dict[str, Any] = plain(self.state)
        self.number = 0
        #: The save that is not merged yet, if any.
        self.save: _Save | None = None
        #: The snapshots that there have been, and what the person saved.
        self.texts: list[list[str]] = []
        self.log: list[str] = []
        self.note_text()

    def run(self) -> None:
        for _ in range(self.chance.randint(4, 14)):
            self.chance.choice([self.let_time_pass, self.script, self.script, self.script, self.person])()
        if self.save is None or self.save.way != "in place" or self.chance.random() < 0.5:
            self.stage.finish()
            self.script_does("refresh")
            assert self.save is None
            assert oracle.same(oracle.read(self.path), plain(self.state))
            assert oracle.same(reopened(self.path), plain(self.state))
            strict_reader.assert_valid(b"", self.path.read_bytes(), plain(self.state))
        self.close()

    def close(self) -> None:
        """Close the state, perhaps in the middle of a save."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.state.close()
        assert not self.stage.is_saving
        self.compare(oracle.read(self.path), must=True, warned=bool(caught))
        assert "# and this" in self.path.read_text()
        assert records(self.path) == 0
        assert [entry.name for entry in self.path.parent.iterdir()] == [self.path.name]

    # ---- The script ----

    def script(self) -> None:
        names = ["set", "set", "nested", "append", "remove", "delete", "new", "transaction", "vacuum", "refresh"]
        self.script_does(self.chance.choice(names))

    def script_does(self, name: str) -> None:
        self.log.append(name)
        self.number += 1
        must = name in {"vacuum", "refresh"} and not self.stage.is_saving
        if self.save is not None and self.save.way == "in place" and self.stage.is_saving:
            self.stage.between = self.chance if self.chance.random() < 0.5 else None
            self.save.is_mixed |= name != "refresh"
        change = self.change(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            change(self.state)
        self.stage.between = None
        change(_Model(self.mine))
        self.compare(plain(self.state), must=must, warned=bool(caught))
        self.note_text()

    def note_text(self) -> None:
        if self.save is None and (text := snapshot_lines(self.path)) not in self.texts:
            self.texts.append(text)

    def change(self, name: str) -> Callable[[Any], object]:
        number, job = self.number, self.chance.choice([*(job for job in self.mine["jobs"] if job[0] == "s"), "nothing"])
        nested, key = self.chance.choice(["soft", "hard", "peak", "low"]), self.chance.choice(["counter", "last", "s1"])

        def transaction(s: Any) -> None:
            with s.transaction():
                s["counter"] = number
                s["limits"][nested] = number

        changes: dict[str, Callable[[Any], object]] = {
            "set": lambda s: s.__setitem__(key, number),
            "nested": lambda s: s["limits"].__setitem__(nested, number),
            "append": lambda s: s["jobs"].append(f"s{number}"),
            "remove": lambda s: s["jobs"].remove(job) if job in s["jobs"] else None,
            "delete": lambda s: s.pop(key, None),
            "new": lambda s: s.__setitem__(f"s{number % 3}", [number, {"n": number}]),
            "transaction": transaction,
            "vacuum": lambda s: s.vacuum(),
            "refresh": lambda s: s.refresh(),
        }
        return changes[name]

    def compare(self, found: dict[str, Any], *, must: bool, warned: bool) -> None:
        """See whether the save has been merged, and whether what was found is what may be there then."""
        kept = list(self.path.parent.glob("*.edited-*"))
        merged = [] if self.save is None else [self.save.merged(base, self.mine) for base in self.save.bases]
        is_merged, is_mine = alike(found, merged), alike(found, [self.mine])
        is_restored = self.save is not None and self.save.way == "delete" and self.path.exists()
        assert warned == (bool(kept) or is_restored), self.told(found)
        if kept:
            assert self.save is not None
            is_broken = self.save.broken and self.save.broken in "".join(aside.read_text() for aside in kept)
            assert self.save.is_mixed or is_broken, self.told(found)
            assert is_mine, self.told(found)
            self.save = None
        elif is_restored:
            assert is_mine, self.told(found)
            self.save = None
        elif self.save is not None and is_merged and not self.stage.is_saving and (must or not is_mine):
            self.save = None
        else:
            assert is_mine, self.told(found)
            if self.save is not None:
                assert not must or self.save.may_be_merged, self.told(found)
                self.save = None if must else self.save
                if self.save is not None and is_merged:
                    self.save.may_be_merged = True
        self.mine = found
        for aside in kept:
            aside.unlink()

    def told(self, found: Any) -> str:
        file = self.path.read_bytes() if self.path.exists() else None
        return f"found {found}\nmine {self.mine}\nsave {self.save and vars(self.save)}\nlog {self.log}\nfile {file!r}"

    # ---- The person ----

    def let_time_pass(self) -> None:
        self.log.append("time")
        self.stage.sleep(self.chance.choice([0.01, 0.05, 0.15, 2]))

    def person(self) -> None:
        """Do something to the file, if what was done before has been noticed."""
        if self.save is None:
            others = [self.append, self.sed, self.strip, self.delete, self.slip]
            self.chance.choice([*[self.use_editor] * len(others), *others])()

    def use_editor(self, slip: str = "") -> None:
        """Read the file, change it while the script may go on, and begin to save it."""
        read = [f"{line}\n" for line in self.path.read_text().splitlines()]
        for name in self.chance.choice([[], [], ["set"], ["vacuum"], ["append", "vacuum", "set"], ["set", "vacuum"]]):
            self.script_does(name)
        journal, base = ([line for line in read if line.startswith("--- ") is here] for here in (True, False))
        lines = base[:]
        for _ in range(self.chance.randint(1, 3)):
            self.edit(lines)
        way = self.chance.choice(["rename", "vim", "in place", "in place", "in place", "cp"])
        data = "".join([*lines, slip, *self.chance.choice([journal, journal, []])]).encode()
        size = self.chance.choice([1, 7, 64])
        pause = min(self.chance.choice([0.001, 0.01, QUIET * 0.9]), 0.8 * size / len(data))  # in less than a second
        saver = in_place(self.path, data, size=size, pause=pause) if way == "in place" else WAYS[way](self.path, data)
        self.begin(_Save(way, base, lines, self.texts, broken=slip), saver)
        if way in {"rename", "cp"}:
            self.stage.finish()

    def slip(self) -> None:
        """Save what nobody can read, whatever the script writes behind it."""
        slips = ["keep: twice\n", "\tfar: in\n", "<<<<<<< HEAD\n", "open: [1]]\n", "day: *monday\n"]
        self.use_editor(self.chance.choice(slips))

    def append(self) -> None:
        base = snapshot_lines(self.path)
        self.number += 1
        new = f"p{self.number}: [1, {{x: y}}]\n"
        missing = "" if self.path.read_bytes().endswith(b"\n") else "\n"
        self.begin(_Save("append", base, [*base, new], self.texts), appended(self.path, f"{missing}{new}".encode()))

    def sed(self) -> None:
        base = snapshot_lines(self.path)
        self.number += 1
        new = rf"\1: person {self.number}"
        lines = [re.sub(r"^(flag|last): .*", new, line) for line in base]
        self.begin(_Save("sed", base, lines, self.texts), by_sed(self.path, rf"s/^\(flag\|last\): .*/{new}/"))

    def strip(self) -> None:
        base = snapshot_lines(self.path)
        self.begin(_Save("strip", base, base, self.texts), stripped(self.path))

    def delete(self) -> None:
        self.begin(_Save("delete", [], [], []), deleted(self.path))

    def begin(self, save: _Save, saver: Iterator[float]) -> None:
        """Take the first step of a save."""
        self.log.append(save.way + (" broken" if save.broken else ""))
        self.save = save
        if save.bases:
            self.texts.append(save.lines)
        self.stage.play(self.path, saver)

    def edit(self, lines: list[str]) -> None:
        """Change the lines of a snapshot."""
        self.number += 1
        kind = self.chance.choice(["value", "nested", "comment", "new", "delete", "job", "no job"])
        keyed = [at for at, line in enumerate(lines) if re.match(r"(flag|last|counter|p\d+): ", line)]
        nested = [at for at, line in enumerate(lines) if line.startswith(("  soft:", "  hard:", "  peak:"))]
        jobs = [at for at, line in enumerate(lines) if line.startswith(("- j", "- s", "- p"))]
        self.log.append(f"person: {kind}")
        match kind:
            case "value" if keyed:
                at = self.chance.choice(keyed)
                lines[at] = f"{lines[at].split(':')[0]}: person {self.number}  # by hand\n"
            case "nested" if nested:
                at = self.chance.choice(nested)
                lines[at] = f"{lines[at].split(':')[0]}: {1000 + self.number}\n"
            case "comment":
                at = next(at for at, line in enumerate(lines) if line.startswith("keep:"))
                lines.insert(at, f"# note {self.number}\n")
            case "new":
                lines.append(f"p{self.number}: [1, {{x: y}}]\n")
            case "delete" if keyed:
                del lines[self.chance.choice(keyed)]
            case "job" if jobs:
                lines.insert(self.chance.choice(jobs), f"- p{self.number}\n")
            case "no job" if len(others := [at for at in jobs if not lines[at].startswith("- s")]) > 1:
                del lines[self.chance.choice(others)]
            case _:
                pass


class _Save:
    """What a person does to the file: the lines that come of it, those that were read, all texts that there have been.

    broken: what stands in it that nobody can read; nothing of such a save is merged, and nothing of a deletion.
    """

    def __init__(
        self, way: str, base: list[str], lines: list[str], texts: list[list[str]], *, broken: str = ""
    ) -> None:
        self.way, self.lines, self.broken = way, lines, broken
        self.theirs = yaml.safe_load("".join(lines))
        #: What the person may have started from: nobody can tell when the edit is as close to another text.
        self.bases: list[dict[str, Any]] = []
        if lines and not broken:
            contents = [yaml.safe_load("".join(text)) for text in (base, *texts)]
            nearest = distance(self.theirs, contents[0])
            self.bases = [content for content in contents if distance(self.theirs, content) <= nearest]
        #: The script wrote into the file while the editor was writing it within the inode.
        self.is_mixed = False
        #: Merged or not, the state was the same at the last look.
        self.may_be_merged = False

    def merged(self, base: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
        """Merge path by path; of the jobs, which are all different, those are there that nobody removed."""
        result: dict[str, Any] = three_way(base, mine, self.theirs)
        removed = {*base["jobs"]} - {*self.theirs["jobs"]}
        added = [job for job in self.theirs["jobs"] if job not in base["jobs"]]
        return {**result, "jobs": [*(job for job in mine["jobs"] if job not in removed), *added]}


def snapshot_lines(path: Path) -> list[str]:
    return [f"{line}\n" for line in path.read_text().splitlines() if not line.startswith("--- ")]


def distance(one: Any, other: Any) -> int:
    """Count what stands in one of two contents only; a job that was put elsewhere is the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        missing = one.keys() ^ other.keys()
        return len(missing) + sum(distance(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list) and all(isinstance(item, str) for item in one + other):
        return len({*one} ^ {*other})
    return 0 if one == other else 2


def alike(found: dict[str, Any], candidates: list[dict[str, Any]]) -> bool:
    """Compare without the order of the jobs, to which both hands add."""

    def sortable(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "jobs": sorted(content["jobs"])}

    return sortable(found) in [sortable(candidate) for candidate in candidates]


class _Model:
    """A dict with what the script above needs of a state."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.content[key] = value

    def pop(self, key: str, default: Any) -> Any:
        return self.content.pop(key, default)

    def transaction(self) -> Any:
        return contextlib.nullcontext()

    def vacuum(self) -> None:
        pass

    refresh = vacuum


@rounds(ci=300, nightly=50_000)
def test_neither_hand_loses_anything(chance: random.Random, rounds: int) -> None:
    for number in range(rounds):
        with scratch() as path, staged() as stage:
            session = Session(path, stage, chance)
            try:
                session.run()
            except BaseException:
                print(f"round {number}: {session.log}")
                session.stage.between = None
                session.stage.finish()
                with contextlib.suppress(Exception), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    session.state.close()
                raise


def test_a_save_whose_merge_was_interrupted_is_merged_by_the_next_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as before, and with a record behind it by now, it looks like what the script wrote."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with staged() as stage, PersistedState(path, a=1, n=0) as state:
        state.n = 1
        stage.sleep(5)
        stage.play(path, in_place(path, path.read_bytes().replace(b"a: 1", b"a: 7")))
        stage.finish()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stage, "sleep", interrupt)
            state.n = 2
        stage.sleep(1)
        state.n = 3

        assert state == {"a": 7, "n": 3}
