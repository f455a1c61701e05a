"""Suite B: the machine loses power, and of what was not synced anything may be on the disk.

A `Medium` follows the log of a workload and knows what is on the disk for sure: the content of a file as of its last
fsync, the names of a folder as of its last one. Of the later calls any may be lost, a write also in part: cut at a byte
or at a block, NULs to the end of the block, a hole before what is valid, the size without the data.

Promise, when the steps 1 to `acked` had returned: with `_fsync=False` some prefix of the steps; with True at least
`acked` of them; with N seconds at least those that had returned N seconds ago. A file is refused only where NULs stand
in front of whole records, then it stays as it is, and what stands before the NULs keeps the promise.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import checks
import disk
import pytest
from disk import CLOSE, NAME, VACUUM, Call, Folder, Workload, change, opening, put, transaction
from rounds import rounds

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PAGE, SECTOR = 4096, 512
#: So many of the last calls may each be lost or not, in every combination.
FREE = 6
#: At so many bytes, drawn by chance, a write is cut.
CUTS = 10
#: The seconds of `_fsync`, and those behind each step.
SECONDS, PAUSE = 1.0, 0.4
#: What refuses to open may hold NULs in front of this.
RECORD = re.compile(rb"[\n\0]--- \[")

# ---- Workloads ----


def numbered(count: int, size: int) -> dict[str, Any]:
    return {f"key_{number}": f"{number} " * size for number in range(count)}


START = b"# a comment\nlast_id: 0   # beside it\nfiles:\n- a.csv\n"
START_STATE = {"last_id": 0, "files": ["a.csv"]}


def sets() -> Workload:
    steps = [opening(), *(put(f"key {number % 5}", "word " * (number % 40)) for number in range(14)), VACUUM]
    steps += [*(put("last_id", number) for number in range(8)), VACUUM, put("last_id", 8), put("x", "é" * 300), CLOSE]
    return Workload("sets", [*steps, opening(), put("end", 1)], {NAME: START}, START_STATE)


def transactions() -> Workload:
    steps = [opening()]
    for number in range(5):
        steps += [
            transaction(
                lambda state, number=number: state.update(numbered(6, 40 * number)),  # type: ignore[misc]
                lambda state: state["files"].extend(["name.csv"] * 30),
            ),
            change(lambda state: state["files"].__delitem__(slice(3, None, 2))),
        ]
    return Workload("transactions", [*steps[:7], VACUUM, *steps[7:], CLOSE], {NAME: START}, START_STATE)


def rewrite() -> Workload:
    steps = [
        opening(),
        *(put("last_id", number) for number in range(1, 4)),
        VACUUM,
        put("long", numbered(40, 9)),
        VACUUM,
    ]
    steps += [change(lambda state: state["long"].clear()), put("last_id", 9), VACUUM, put("last_id", 10)]
    steps += [change(lambda state: state.pop("files")), put("b", [1]), CLOSE]
    return Workload("rewrite", steps, {NAME: START}, START_STATE, linked=True)


def new_file() -> Workload:
    steps = [opening(**numbered(30, 10)), put("key_3", 1), put("a", [1, 2]), CLOSE]
    return Workload("new file", [*steps, opening(later="x" * 600), put("key_3", 2), CLOSE, opening(), put("key_3", 3)])


def torn_tail() -> Workload:
    torn = START + b'--- ["set",[],"last_id",1]\n--- ["set",[],"files",["' + b"torn " * 200
    steps = [opening(), put("last_id", 2), put("last_id", 3), VACUUM, put("last_id", 4)]
    return Workload("torn tail", steps, {NAME: torn}, {**START_STATE, "last_id": 1})


WORKLOADS = {workload.name: workload for workload in (sets(), transactions(), rewrite(), new_file(), torn_tail())}

# ---- The disk ----


class Outcome(NamedTuple):
    """What the disk did of a call: the parts of its data, as far as it is a write, and the size that the file has."""

    parts: tuple[tuple[int, int], ...] = ()
    size: int = 0


LOST = Outcome()


class Distrusted(disk.Recorder):
    """A disk that fails at one fsync; then the system forgets what it was to write, and says so never again.

    See "fsyncgate": after the error the pages count as clean, so the next fsync of the file succeeds.
    """

    def __init__(self, folder: Path, files: Folder, fails: int) -> None:
        super().__init__(folder, files)
        self.left = fails

    def fsync(self, descriptor: int) -> None:
        self.left -= 1
        if self.left == 0 and self._descriptors[descriptor] is not None:
            self._note("forget", file=self._file(descriptor))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(descriptor)


def kept(call: Call) -> Outcome:
    return Outcome(((0, len(call.data)),), call.offset + len(call.data))


class Medium:
    """What a disk holds for sure, and the calls of which nobody knows."""

    def __init__(self, folder: Folder) -> None:
        self.sure = folder
        self.unsure: list[Call] = []
        #: Writes that no fsync will bring to the disk any more.
        self.forgotten: list[Call] = []

    def take(self, call: Call) -> None:
        """Follow a call of the workload."""
        if call.kind == "sync":
            self._settle(lambda other: other.kind in {"write", "cut"} and other.file == call.file)
        elif call.kind == "sync folder":
            self._settle(lambda other: other.kind in {"create", "rename", "remove"})
        elif call.kind == "mode":
            call.apply(self.sure)
        elif call.kind == "forget":
            self.forgotten += [other for other in self.unsure if other.kind == "write" and other.file == call.file]
        elif call.kind != "end":
            if call.kind == "create":
                self.sure.contents[call.file], self.sure.modes[call.file] = b"", call.mode
            self.unsure.append(call)

    def _settle(self, is_settled: Any) -> None:
        for call in self.unsure:
            if is_settled(call):
                Power(self.sure).apply(call, Outcome() if call in self.forgotten else kept(call))
        self.unsure = [call for call in self.unsure if not is_settled(call)]

    def after_loss(self, outcomes: Sequence[Outcome]) -> disk.Image:
        """Return the folder after a power loss, with these outcomes of the unsure calls."""
        power = Power(self.sure.copied())
        for call, outcome in zip(self.unsure, outcomes, strict=True):
            power.apply(call, outcome)
        return power.folder.image()


class Power:
    """Does what was left of calls to a folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        #: The size that a file should have, had the call that cut it not been lost.
        self.uncut: dict[int, int] = {}

    def apply(self, call: Call, outcome: Outcome) -> None:
        names, contents = self.folder.names, self.folder.contents
        if call.kind == "write":
            for start, stop in outcome.parts:
                self._write(call.file, call.offset + start, call.data[start:stop])
            contents[call.file] = contents[call.file].ljust(outcome.size, b"\0")
        elif call.kind == "cut":
            if outcome == LOST:
                self.uncut[call.file] = call.offset
            else:
                contents[call.file] = contents[call.file][: call.offset]
        elif outcome != LOST:
            if call.kind == "create":
                names[call.name] = call.file
            else:
                names.pop(call.name, None)
            if call.kind == "rename":
                names[call.new_name] = call.file

    def _write(self, file: int, offset: int, data: bytes) -> None:
        content = self.folder.contents[file]
        if file in self.uncut and data:  # the page in memory was cut: behind the cut there are NULs
            start = max(self.uncut[file], offset // PAGE * PAGE)
            stop = min(len(content), -(-(offset + len(data)) // PAGE) * PAGE)
            content = disk.overwritten(content, start, b"\0" * (stop - start))
        self.folder.contents[file] = disk.overwritten(content, offset, data)


def partial_outcomes(call: Call, chance: random.Random) -> Iterator[Outcome]:
    """Return ways in which a write may have reached the disk in part."""
    length, begin, end = len(call.data), call.offset, call.offset + len(call.data)
    sectors = [edge - begin for edge in range((begin // SECTOR + 1) * SECTOR, end, SECTOR)]
    edges = sorted(
        {0, length, *chance.sample(sectors, min(len(sectors), 4)), *(e for e in sectors if not (e + begin) % PAGE)}
    )
    cuts = [edge for edge in edges if 0 < edge < length] + [
        chance.randrange(1, length) for _ in range(CUTS if length > 1 else 0)
    ]
    yield Outcome((), end)
    for cut in cuts:
        yield Outcome(((0, cut),), begin + cut)
        yield Outcome(((0, cut),), end)
        yield Outcome(((0, cut),), -(-(begin + cut) // PAGE) * PAGE)
    for start, stop in itertools.combinations(edges[:-1], 2):
        yield Outcome(((0, start), (stop, length)), end)


def systematic(unsure: Sequence[Call], chance: random.Random) -> Iterator[list[Outcome]]:
    """Return outcomes: every combination of the last calls, kept or lost, and each write among them in part."""
    everything = [kept(call) for call in unsure]
    first = max(0, len(unsure) - FREE)
    for choice in itertools.product((False, True), repeat=len(unsure) - first):
        yield everything[:first] + [
            kept(call) if yes else LOST for call, yes in zip(unsure[first:], choice, strict=True)
        ]
    for number in range(first, len(unsure)):
        if unsure[number].kind == "write":
            for outcome in partial_outcomes(unsure[number], chance):
                later = len(unsure) - number - 1
                yield [*everything[:number], outcome, *everything[number + 1 :]]
                yield [*everything[:number], outcome, *[LOST] * later]


def at_random(unsure: Sequence[Call], chance: random.Random) -> list[Outcome]:
    """Return outcomes of which each is drawn for itself."""
    outcomes = []
    for call in unsure:
        possible = [kept(call), kept(call), kept(call), LOST]
        if call.kind == "write" and chance.random() < 0.3:
            possible = list(partial_outcomes(call, chance))
        outcomes.append(chance.choice(possible))
    return outcomes


class Loss(NamedTuple):
    """A folder after a power loss, and the least and the most steps that it must hold."""

    image: disk.Image
    least: int
    most: int


def losses(recording: disk.Recording, rounds: int, chance: random.Random) -> Iterator[Loss]:
    """Return `rounds` power losses: the systematic ones in any order, then those at random."""
    found: list[tuple[disk.Image, int, int]] = []
    media = []
    medium = Medium(recording.workload.folder())
    for call in recording.log:
        least = promised(recording, call)
        found += [(medium.after_loss(outcomes), least, call.issued) for outcomes in systematic(medium.unsure, chance)]
        before = Medium(medium.sure.copied())
        before.unsure = list(medium.unsure)
        media.append((before, least, call.issued))
        medium.take(call)
    found = list(dict.fromkeys(found))
    yield from (Loss(*loss) for loss in chance.sample(found, min(rounds, len(found))))
    seen = set(found)
    for _ in range(rounds):
        before, least, issued = chance.choice(media)
        loss = Loss(before.after_loss(at_random(before.unsure, chance)), least, issued)
        if loss not in seen and len(seen) < rounds:
            seen.add(loss)
            yield loss


def promised(recording: disk.Recording, call: Call) -> int:
    """Return how many steps must survive a power loss just before a call."""
    fsync = recording.workload.options["_fsync"]
    if isinstance(fsync, bool):
        return call.acked if fsync else 0
    return sum(returned < call.time - fsync for returned in recording.times)


# ---- The promise ----


def check_loss(loss: Loss, states: Sequence[dict[Any, Any]], recovery: disk.Recovery) -> None:
    opened = recovery.open(loss.image)
    if opened.refusal is None:
        assert disk.is_one_of(opened.state, states, loss.least, loss.most), (
            f"{opened.state} is not one of {states[loss.least : loss.most + 1]}: {disk.told(loss.image)}"
        )
        return
    sound, hole, rest = disk.content_of(loss.image).partition(b"\0")
    assert hole, f"refused without a hole: {opened.refusal!s:.200} {disk.told(loss.image)}"
    assert RECORD.search(hole + rest) is not None, (
        f"refused though no record follows the hole: {opened.refusal!s:.200} {disk.told(loss.image)}"
    )
    before = read_bytes(sound[: sound.rfind(b"\n") + 1], recovery.path)
    assert disk.is_one_of(before, states, loss.least, loss.most), (
        f"{before} is before the hole: {disk.told(loss.image)}"
    )


def read_bytes(content: bytes, path: Path) -> Any:
    path.write_bytes(content)
    return disk.read_independently(path)


@rounds(ci=2400, nightly=70_000)
@pytest.mark.parametrize("fsync", [False, True, SECONDS])
@pytest.mark.parametrize("name", WORKLOADS)
def test_power_loss_keeps_what_fsync_promises(
    name: str, fsync: bool | float, rounds: int, chance: random.Random
) -> None:
    recording = disk.record(WORKLOADS[name].with_options(_fsync=fsync), pause=PAUSE, silence=3 * SECONDS)
    with checks.scratch() as path:
        recovery = disk.Recovery(path)
        for loss in losses(recording, rounds, chance):
            check_loss(loss, recording.states, recovery)
        print(f"{recovery.count} modelled states, {recovery.distinct} of them distinct")


def tolerant(step: disk.Step) -> disk.Step:
    """Return the step of a vacuum that may fail; no change is among it."""

    def run(session: disk.Session) -> None:
        with contextlib.suppress(OSError):
            step.run(session)

    return disk.Step(run)


@pytest.mark.parametrize("fails", range(1, 25))
@pytest.mark.parametrize("name", ["sets", "transactions", "rewrite"])
def test_failed_fsync_is_made_up_for_by_a_new_file(name: str, fails: int) -> None:
    workload = WORKLOADS[name].with_options(_fsync=True)
    workload.steps = [tolerant(step) if step in {VACUUM, CLOSE} else step for step in workload.steps]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        recording = disk.record(workload, recorder=functools.partial(Distrusted, fails=fails))
    medium = Medium(workload.folder())
    with checks.scratch() as path:
        recovery = disk.Recovery(path)
        for call in recording.log:
            lost = medium.after_loss([LOST] * len(medium.unsure))
            check_loss(Loss(lost, call.acked, call.issued), recording.states, recovery)
            medium.take(call)
