"""Suite A: the process dies before, after and within every call that changes the folder.

Eight workloads are recorded; the folder is built as it was between any two calls and after each byte of each write, and
opened again. Promise: the state is that of the steps 1 to k, with acked <= k <= issued; a transaction is there whole or
not at all; opening once more changes nothing; the next change works and lasts; nothing is left over; and a reader that
shares no code with the module agrees (see `disk.Recovery`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import checks
import disk
import pytest
from disk import CLOSE, NAME, VACUUM, Workload, change, opening, put, rolled_back, transaction
from rounds import SHARE, rounds

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

#: A write is cut at every byte, or at fewer where only a share of CI's rounds is run.
STRIDE = max(1, round(1 / SHARE))
COMMENTED = b"""\
# how far the importer got
last_id: 41   # beside last_id

# the files, oldest first
files:
- a.csv   # the first
# the second
- b.csv
limits: {soft: 10, hard: 20}
note: |
  kept
  as it is
"""
COMMENTED_STATE = {
    "last_id": 41,
    "files": ["a.csv", "b.csv"],
    "limits": {"soft": 10, "hard": 20},
    "note": "kept\nas it is\n",
}
SMALL, SMALL_STATE = b"a: 1\nl:\n- 1\n- 2\n", {"a": 1, "l": [1, 2]}
RENEWED, RENEWED_STATE = b"a: 2\nl:\n- 1\n- 2\n- three\n", {"a": 2, "l": [1, 2, "three"]}
RECORDS = b'--- ["set",[],"a",2]\n--- ["insert",["l"],2,"three"]\n'
TEMPORARY = f".{NAME}.4711-0123abcd.tmp"


def plain_sets() -> Workload:
    values = [1, "text", 2.5, None, True, "é → 😀", "", "line\nfeed", "- yes", -0.0, 10**20, float("inf")]
    sets = [put(f"k{number % 17}", values[number % len(values)]) for number in range(80)]
    return Workload("plain sets", [opening(), *sets], {NAME: SMALL}, SMALL_STATE)


def nested_lists() -> Workload:
    def slices(number: int) -> list[Callable[[Any], object]]:
        return [
            lambda state: state["rows"].append([number, {"name": f"row {number}"}]),
            lambda state: state["rows"][-1][1].update(done=False, tags=["x", "y", "z"]),
            lambda state: state["rows"][-1][1]["tags"].__setitem__(slice(1, 2), ["p", "q"]),
            lambda state: state["rows"][-1][1]["tags"].__setitem__(slice(0, 4, 2), [number, None]),
            lambda state: state["rows"][-1][1]["tags"].__delitem__(slice(None, None, 2)),
            lambda state: state["rows"].reverse(),
            lambda state: state["rows"].insert(-1, number),
            lambda state: state["rows"].pop(0),
            lambda state: state["rows"].extend([[], {}]),
            lambda state: state["rows"].__delitem__(slice(2, None)),
            lambda state: state["numbers"].sort(key=lambda item: (item * 7) % 11),
            lambda state: state["numbers"].__imul__(2),
            lambda state: state["numbers"].__delitem__(slice(5, None)),
        ]

    steps = [change(function) for number in range(6) for function in slices(number)]
    return Workload("nested lists", [opening(rows=[], numbers=[3, 1, 2, 5, 4]), *steps])


def transactions() -> Workload:
    def moved(number: int) -> list[Callable[[Any], object]]:
        return [
            lambda state: state.__setitem__("from", state["from"] - number),
            lambda state: state.__setitem__("to", state["to"] + number),
            lambda state: state["log"].append({"amount": number, "text": "moved from one to the other"}),
        ]

    steps = []
    for number in range(1, 19):
        steps += [transaction(*moved(number)), rolled_back(*moved(1000)), put("last", number)]
    steps.insert(30, VACUUM)
    return Workload("transactions", [opening(**{"from": 1000, "to": 0, "log": []}), *steps])


def vacuum_in_the_middle() -> Workload:
    steps = [
        put("last_id", 42), change(lambda state: state["files"].insert(1, "c.csv")), VACUUM,
        put("new", {"k": [1, {"x": None}]}), change(lambda state: state["limits"].update(soft=11)),
        change(lambda state: state.__delitem__("note")), VACUUM, VACUUM,
        put("last_id", 43), change(lambda state: state["files"].clear()), put("words", ["yes", "1e3", "12:30"] * 9),
        VACUUM, change(lambda state: state.pop("words")), put("end", "é" * 40), VACUUM,
        change(lambda state: state.clear()), VACUUM, put("fresh", 1), CLOSE,
    ]  # fmt: skip
    return Workload("vacuum", [opening(), *steps], {NAME: COMMENTED}, COMMENTED_STATE)


def rewrite_within_the_file() -> Workload:
    steps = [
        put("last_id", 42), put("new", ["x" * 70] * 3), VACUUM,
        change(lambda state: state.pop("new")), change(lambda state: state["files"].append("z.csv")), VACUUM,
        change(lambda state: state.clear()), VACUUM, put("a", 1), VACUUM,
        put("long", ["word"] * 60), transaction(lambda state: state.update(b=2), lambda state: state.update(c=3)),
        VACUUM, change(lambda state: state["long"].__delitem__(slice(3, None))), CLOSE,
    ]  # fmt: skip
    return Workload("rewrite within the file", [opening(), *steps], {NAME: COMMENTED}, COMMENTED_STATE, linked=True)


def new_file_with_defaults() -> Workload:
    many = {f"default_{number}": [number, {"text": "as it was given"}] for number in range(30)}
    few = {f"later_{number}": "x" * number for number in range(20)}
    steps = [opening(**many), put("a", 1), CLOSE, opening(**many, **few), put("a", 2), CLOSE, opening(), CLOSE]
    return Workload("new file with defaults", steps)


def closing() -> Workload:
    def session(number: int) -> list[disk.Step]:
        return [
            opening(), put("last_id", number), change(lambda state: state["files"].append(f"{number}.csv")),
            change(lambda state: state["files"].pop(0)), CLOSE, opening(), CLOSE,
        ]  # fmt: skip

    steps = [step for number in range(42, 50) for step in session(number)]
    return Workload("close", steps, {NAME: COMMENTED}, COMMENTED_STATE)


def rewritten(new: bytes, *, head: int = 0, copied: int | None = None) -> bytes:
    """Return what a rewrite of SMALL and RECORDS within the file holds, when `head` bytes were renewed at its front."""
    old = SMALL + RECORDS + b"\n" * max(0, len(new) - len(SMALL + RECORDS))
    return new[:head] + old[head:] + b"\n--- # LAST VALID STATE: %d bytes\n%b" % (len(new), new[:copied])


#: Files that a crash left, with the state that they hold.
LEFT: dict[str, tuple[dict[str, bytes], dict[Any, Any]]] = {
    "torn record": ({NAME: SMALL + RECORDS + b'--- ["set",[],"a",'}, RENEWED_STATE),
    "torn mark": ({NAME: SMALL + RECORDS + b"---"}, RENEWED_STATE),
    "NULs": ({NAME: SMALL + RECORDS + b"\0" * 500}, RENEWED_STATE),
    "torn record and NULs": ({NAME: SMALL + RECORDS + b'--- ["del' + b"\0" * 50}, RENEWED_STATE),
    "no line feed": ({NAME: SMALL + RECORDS[:-1]}, RENEWED_STATE),
    "stale temporary file": ({NAME: SMALL + RECORDS, TEMPORARY: b"a: 2\nl:\n- 1"}, RENEWED_STATE),
    "empty temporary file": ({NAME: SMALL + RECORDS + b"--- [", TEMPORARY: b""}, RENEWED_STATE),
    "rewrite, copy torn": ({NAME: rewritten(RENEWED, copied=9)}, RENEWED_STATE),
    "rewrite, copy whole": ({NAME: rewritten(RENEWED)}, RENEWED_STATE),
    "rewrite, half of the head": ({NAME: rewritten(RENEWED, head=11)}, RENEWED_STATE),
    "rewrite, all of the head": ({NAME: rewritten(RENEWED, head=len(RENEWED))}, RENEWED_STATE),
    "rewrite of 26.1": (
        {
            NAME: SMALL
            + b'\n---\n["set", [], "a", 2]a: 2\nl:\n- 1\n- 2\n\n---\n### LAST VALID STATE ###\na: 2\nl:\n- 1\n- 2\n'
        },
        {"a": 2, "l": [1, 2]},
    ),
}


def recovery(left: str, *, linked: bool) -> Workload:
    files, start = LEFT[left]
    steps = [opening(), put("a", 3), CLOSE, opening(b=[1]), CLOSE]
    return Workload(f"recovery from {left}", steps, files, start, linked=linked)


WORKLOADS: dict[str, list[Workload]] = {
    "plain sets": [plain_sets()],
    "nested lists": [nested_lists()],
    "transactions": [transactions()],
    "vacuum": [vacuum_in_the_middle()],
    "rewrite within the file": [rewrite_within_the_file()],
    "new file": [new_file_with_defaults()],
    "close": [closing()],
    "recovery": [recovery(left, linked=linked) for left in LEFT for linked in (False, True)],
}


def crash_points(recording: disk.Recording) -> Iterator[tuple[disk.Image, int, int]]:
    """Return each moment of the folder, with the least and the most steps that it may hold."""
    folder = recording.workload.folder()
    for call in recording.log:
        yield folder.image(), call.acked, call.issued
        if call.kind == "write":
            for length in range(1, len(call.data), STRIDE):
                partly = folder.copied()
                call.apply(partly, length)
                yield partly.image(), call.acked, call.issued
        call.apply(folder)
        yield folder.image(), call.acked, call.issued


def check_crash_points(workload: Workload, recovery: disk.Recovery) -> None:
    recording = disk.record(workload)
    for image, acked, issued in crash_points(recording):
        recovery.expect(image, recording.states, acked, issued)


@pytest.mark.parametrize("name", WORKLOADS)
def test_death_at_any_point_loses_nothing_acknowledged(name: str) -> None:
    with checks.scratch() as path:
        recovery = disk.Recovery(path)
        for workload in WORKLOADS[name]:
            check_crash_points(workload, recovery)
        print(f"{recovery.count} states of the folder")


SHORT_STEPS: list[list[disk.Step]] = [
    [put("a", "a longer text than before")],
    [put("new", {"k": [1, None, {"x": 2.5}]})],
    [change(lambda state: state.pop("l", None))],
    [transaction(lambda state: state.setdefault("l", []).append("é"))],
    [transaction(lambda state: state.setdefault("l", []).__setitem__(slice(0, 1), [True, False]))],
    [change(lambda state: state.update(a=5, b=6))],
    [change(lambda state: state.clear())],
    [transaction(lambda state: state.update(a=7), lambda state: state.setdefault("l", [0]).reverse())],
    [rolled_back(lambda state: state.update(a=8), lambda state: state.setdefault("z", []))],
    [VACUUM],
    [CLOSE, opening()],
    [CLOSE, opening(b=1)],
]
SHORT_STARTS: list[Workload] = [
    Workload("new", [opening(a=1, l=[1, 2])]),
    Workload("snapshot", [opening()], {NAME: SMALL}, SMALL_STATE),
    Workload("comments", [opening()], {NAME: COMMENTED}, COMMENTED_STATE),
    Workload("CRLF", [opening()], {NAME: b"\xef\xbb\xbfa: 1\r\nl: [1, 2]  # numbers\r\n"}, SMALL_STATE),
    Workload("linked", [opening()], {NAME: SMALL + RECORDS}, RENEWED_STATE, linked=True),
    *(Workload(left, [opening()], *LEFT[left], linked=linked) for left in LEFT for linked in (False, True)),
]


@rounds(ci=12, nightly=10_000)
def test_death_during_any_short_workload_loses_nothing_acknowledged(rounds: int, chance: random.Random) -> None:
    every = [
        (start, steps)
        for start in SHORT_STARTS
        for length in (1, 2, 3)
        for steps in itertools.product(SHORT_STEPS, repeat=length)
    ]
    for start, steps in chance.sample(every, rounds):
        workload = Workload(
            start.name, [*start.steps, *itertools.chain(*steps)], start.files, start.start, start.linked
        )
        with checks.scratch() as path:
            check_crash_points(workload, disk.Recovery(path))


@pytest.mark.skipif(STRIDE > 1, reason="only a share of them is tried")
def test_crash_points_are_every_byte_of_every_write() -> None:
    recording = disk.record(Workload("two", [opening(), put("a", 2), CLOSE], {NAME: SMALL}, SMALL_STATE))

    journal = {disk.content_of(image) for image, _, _ in crash_points(recording)}

    record = b'--- ["was",["a"],1]\n--- ["set",[],"a",2]\n'
    assert journal == {SMALL + record[:length] for length in range(len(record) + 1)} | {SMALL.replace(b"1", b"2", 1)}
