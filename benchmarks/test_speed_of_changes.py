"""What one change costs, in each store and for states of different sizes, and how long one may take at worst."""

from __future__ import annotations

import math
import os
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from harness import IS_OLD, OURS, Entrant, FsyncClock, Limit, Race, Scale, Shelf, samples_of, sync_lines
from stores import PROCESS, SYNCED, Store, able, opened

from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNTER_LINE = b'--- ["set",[],"counter",12345]\n'


@pytest.mark.parametrize("kind", [*able("count"), *SYNCED])
def test_counter(kind: type[Store], race: Race, tmp_path: Path, bare_write: Callable[[bytes], Limit]) -> None:
    """`STATE.counter += 1`."""
    with opened(kind, tmp_path, {"counter": 0}) as store:
        race("counter", store.entrant, store.count, bare_write(COUNTER_LINE))


@pytest.mark.parametrize("kind", able("count_nested"))
def test_nested(kind: type[Store], race: Race, tmp_path: Path, bare_write: Callable[[bytes], Limit]) -> None:
    """`STATE["a"]["b"] += 1`."""
    with opened(kind, tmp_path, {"a": {"b": 0}}) as store:
        race("nested", store.entrant, store.count_nested, bare_write(b'--- ["set",["a"],"b",12345]\n'))


@pytest.mark.parametrize("kind", able("append"))
def test_append(
    kind: type[Store], race: Race, scale: Scale, tmp_path: Path, bare_write: Callable[[bytes], Limit]
) -> None:
    """`STATE.processed.append(…)`, to a list of 10,000."""
    with opened(kind, tmp_path, {"processed": list(range(scale.items))}) as store:
        race("append", store.entrant, store.append, bare_write(b'--- ["insert",["processed"],12345,123]\n'))


@pytest.mark.parametrize("kind", able("transact"))
def test_transaction(kind: type[Store], race: Race, tmp_path: Path, bare_write: Callable[[bytes], Limit]) -> None:
    """1,000 increments in one transaction, the time of one of them."""
    with opened(kind, tmp_path, {"counter": 0}) as store:
        race("transaction", store.entrant, store.transact, bare_write(COUNTER_LINE), count=1_000, rounds=50)


@pytest.mark.parametrize("kind", SYNCED)
def test_synced(kind: type[Store], race: Race, tmp_path: Path) -> None:
    """`STATE.counter += 1`, on the disk before it returns."""
    descriptor = os.open(tmp_path / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    limit = Limit("`os.write` + `os.fdatasync`", lambda count: sync_lines(descriptor, COUNTER_LINE, count), count=5)
    with opened(kind, tmp_path, {"counter": 0}) as store:
        race("synced counter", store.entrant, store.count, limit, count=5, rounds=100)
    os.close(descriptor)


# ---- In a state of some size -----------------------------------------------------------------------------------------

#: Megabytes, and how often it is measured; 26.1 would need minutes for the largest.
SIZES = {"1 kB": (0.001, 9), "100 kB": (0.1, 9), "1 MB": (1.0, 5), **({} if IS_OLD else {"10 MB": (10.0, 3)})}


def cycle(state: Any, path: Path, most: int) -> int:
    """Change a state from one vacuum to the next, which ends it, and return how many changes that took."""
    size, changes = 0, 0
    while size <= (size := path.stat().st_size) and changes < most:
        for _ in range(100):
            state.counter += 1
        changes += 100
    return changes


@pytest.mark.parametrize("label", SIZES)
def test_change_in_size(
    label: str, race: Race, scale: Scale, shelf: Shelf, tmp_path: Path, bare_write: Callable[[bytes], Limit]
) -> None:
    """`STATE.counter += 1` in a state of some size, vacuums included: mean of a whole cycle from one to the next."""
    megabytes, rounds = SIZES[label]
    path = shelf.copy(int(megabytes * scale.megabyte), tmp_path / "x.state")
    limit = bare_write(COUNTER_LINE)
    row = samples_of(f"change in {label}", Entrant(OURS, PROCESS), limit.name)
    state = PersistedState(path)

    def measured_cycle() -> None:
        start = time.perf_counter()
        changes = cycle(state, path, 10 * scale.changes)
        row["samples"].append((time.perf_counter() - start) / changes)
        start = time.perf_counter()
        limit.run(changes)
        row["limits"].append((time.perf_counter() - start) / changes)

    cycle(state, path, 10 * scale.changes)
    race.report(measured_cycle, row, rounds=1 if IS_OLD else rounds)
    state.close()


# ---- The longest pause -----------------------------------------------------------------------------------------------


def pauses(change: Callable[[], object], changes: int, clock: FsyncClock) -> list[float]:
    """Make changes; return how long each took, fsync apart, the longest first."""
    clock.spent, durations, now = 0.0, [], time.perf_counter
    for _ in range(changes):
        before, start = clock.spent, now()
        change()
        durations.append(now() - start - (clock.spent - before))
    return sorted(durations, reverse=True)


@pytest.mark.skipif(IS_OLD, reason="26.1 would need an hour: it dumps the state after every 2,000 changes")
def test_pauses(
    race: Race, scale: Scale, shelf: Shelf, tmp_path: Path, clock: FsyncClock, bare_write: Callable[[bytes], Limit]
) -> None:
    """The slowest of 200,000 changes in a state of 1 MB, and the slowest but one in 10,000; fsync apart."""
    state, limit = PersistedState(shelf.copy(scale.megabyte, tmp_path / "x.state")), bare_write(COUNTER_LINE)
    entrant = Entrant(OURS, PROCESS, "fsync apart")
    longest, percentile = (samples_of(case, entrant, limit.name) for case in ("longest pause", "p99.99 of pauses"))

    def change() -> None:
        state.counter += 1

    def measure() -> None:
        for kind, action in ("samples", change), ("limits", lambda: limit.run(1)):
            durations = pauses(action, scale.changes, clock)
            longest[kind].append(durations[0])
            percentile[kind].append(durations[math.floor(len(durations) / 10_000)])

    race.report(measure, longest, percentile, rounds=5)
    state.close()


#: Neighbours in time are this far apart in the list; a prime, so that every item has its turn.
STRIDE = 7919
SMALL_JOB = "- name: job 00000\n  tries: 0\n"


@pytest.mark.skipif(IS_OLD, reason="26.1 would need an hour, see above")
def test_pauses_of_spread_changes(
    race: Race, scale: Scale, tmp_path: Path, clock: FsyncClock, bare_write: Callable[[bytes], Limit]
) -> None:
    """The slowest of 50,000 changes, spread over a list of 1 MB of small mappings; fsync apart."""
    made = [{"name": f"job {number:05}", "tries": 0} for number in range(scale.megabyte // len(SMALL_JOB))]
    state: Any = PersistedState(tmp_path / "x.state", jobs=made)
    jobs, numbers = state.jobs, count()
    limit = bare_write(b'--- ["set",["jobs",1234],"tries",12345]\n')
    longest = samples_of("longest pause, spread", Entrant(OURS, PROCESS, "fsync apart"), limit.name)

    def change() -> None:
        number = next(numbers)
        jobs[number * STRIDE % len(jobs)]["tries"] = number

    def measure() -> None:
        for kind, action in ("samples", change), ("limits", lambda: limit.run(1)):
            longest[kind].append(pauses(action, scale.changes // 4, clock)[0])

    race.report(measure, longest, rounds=5)
    state.close()
