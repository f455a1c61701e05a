"""What all benchmarks share: how large they are, and how a store and the limit of its case take turns.

Loaded as a plugin of pytest; bench.py calls that. What is measured goes into `extra_info` of pytest-benchmark as
`rows`, which figures.py reads.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import time
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest

import persistedstate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Timer = Callable[[], float]

#: Seconds that one round of a store should take, and all of its rounds together. On a busy machine the median of short
#: rounds is one that nothing interrupted; a long one is always interrupted.
ROUND, ALL_ROUNDS = 0.002, 1.0
#: Rounds of a store at most, and changes or reads in one.
MOST_ROUNDS, MOST_IN_ROUND = 300, 1_000
#: How often the limit is repeated between two rounds.
LIMIT_COUNT = 500

#: The module under test goes by its name; the old one, which is imported by the same name, shows its version.
IS_OLD = not hasattr(persistedstate, "StateError")
OURS = "persistedstate 26.1" if IS_OLD else "persistedstate"


@dataclass(frozen=True)
class Scale:
    """How large the benchmarks are."""

    #: Bytes of a state "of 1 MB".
    megabyte: int
    #: Items in the list that is appended to.
    items: int
    #: Changes among which the longest pause is looked for.
    changes: int
    #: Records without a vacuum that are replayed.
    records: int
    #: Rounds of a store at most.
    rounds: int


FULL = Scale(megabyte=1_000_000, items=10_000, changes=200_000, records=2_000, rounds=MOST_ROUNDS)
QUICK = Scale(megabyte=20_000, items=100, changes=1_000, records=20, rounds=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes everything small."""
    parser.addoption("--tiny", action="store_true", help="only show that the benchmarks work")


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    """Return how large the benchmarks are."""
    return QUICK if pytestconfig.getoption("--tiny") else FULL


@dataclass(frozen=True)
class Entrant:
    """A store, or what else is compared with it.

    durability: what a change survives once its statement has returned: "memory" (nothing), "process crash" or
    "power loss". note: the configuration, or what the class does not tell.
    """

    name: str
    durability: str = ""
    note: str = ""


@dataclass(frozen=True)
class Limit:
    """What a case can cost at the least, as a loop."""

    name: str
    run: Callable[[int], object]
    count: int = LIMIT_COUNT


class Race:
    """Measures an entrant and the limit of its case in turns, so that a disturbance of the machine meets both.

    timer: what tells the seconds; the same as that of the benchmark.
    """

    def __init__(self, benchmark: Any, rounds: int, timer: Timer) -> None:
        self._benchmark = benchmark
        self._rounds = rounds
        self._timer = timer

    def __call__(  # noqa: PLR0913 - each is a word of the sentence that the caller reads
        self,
        case: str,
        entrant: Entrant,
        run: Callable[[int], object],
        limit: Limit,
        *,
        prepare: Callable[[], object] = lambda: None,
        rounds: int = 0,
        count: int = 0,
        clock: FsyncClock | None = None,
    ) -> None:
        """Measure.

        run: the loop of the entrant. prepare: is called before each round, unmeasured. rounds, count: how often the
        loop is called and with what; 0 is as often as its speed allows. clock: seconds to leave out.
        """
        prepare()
        once = self._once(run) if not (rounds and count) else 0.0
        count = count or fitting(ROUND, once, MOST_IN_ROUND)
        rounds = min(self._rounds, rounds or fitting(ALL_ROUNDS, once * count, MOST_ROUNDS))
        limits: list[float] = []
        apart: list[float] = []

        def before_round() -> None:
            limits.append(seconds(self._timer, limit.run, limit.count) / limit.count)
            prepare()
            if clock is not None:
                clock.spent = 0.0

        def one_round() -> None:
            run(count)
            apart.append(clock.spent if clock is not None else 0.0)

        row = {"case": case, "limit": limit.name, "unit": "s", "count": count, "limits": limits, "apart": apart}
        self._benchmark.extra_info["rows"] = [{**vars(entrant), **row}]
        with others_frozen():
            self._benchmark.pedantic(one_round, setup=before_round, rounds=rounds)

    def _once(self, run: Callable[[int], object]) -> float:
        """Return how long one change takes, when what happens the first time only is over."""
        first = seconds(self._timer, run, 1)
        return first if first > ROUND else min(seconds(self._timer, run, 1) for _ in range(5))

    def report(self, action: Callable[[], object], *rows: dict[str, Any], rounds: int = 1) -> None:
        """Call an action that finds the samples of some rows by itself."""
        self._benchmark.extra_info["rows"] = rows
        self._benchmark.pedantic(action, rounds=min(rounds, self._rounds))


@contextlib.contextmanager
def others_frozen() -> Iterator[None]:
    """Keep the garbage collector from going through what earlier benchmarks left, which would slow down the limit."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def samples_of(case: str, entrant: Entrant, limit: str, unit: str = "s") -> dict[str, Any]:
    """Return an empty row for an action that finds its samples by itself."""
    return {**vars(entrant), "case": case, "limit": limit, "unit": unit, "samples": [], "limits": []}


def fitting(budget: float, each: float, most: int) -> int:
    """Return how many actions that take so many seconds each fit into a budget: at least 1."""
    return max(1, min(most, int(budget / each)))


def seconds(timer: Timer, function: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes."""
    start = timer()
    function(*arguments)
    return timer() - start


@pytest.fixture
def timer(request: pytest.FixtureRequest) -> Timer:
    """Return the timer that the mark `benchmark` asks for."""
    mark = request.node.get_closest_marker("benchmark")
    found: Timer = mark.kwargs["timer"] if mark else time.perf_counter
    return found


@pytest.fixture
def race(benchmark: Any, scale: Scale, timer: Timer) -> Race:
    """Return the way to measure; what earlier benchmarks have written is on the disk by then."""
    if scale is FULL:
        os.sync()
    return Race(benchmark, scale.rounds, timer)


class FsyncClock:
    """Adds up what the module spends in fsync; 26.1 never calls it."""

    def __init__(self, timer: Timer) -> None:
        self.spent = 0.0
        self._timer = timer

    def fsync(self, descriptor: int) -> None:
        """Do what os.fsync does, and note how long it took."""
        self.spent += seconds(self._timer, os.fsync, descriptor)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, timer: Timer) -> FsyncClock:
    """Return what has been spent in fsync."""
    clock = FsyncClock(timer)
    if not IS_OLD:
        monkeypatch.setattr(persistedstate._system, "fsync", clock.fsync)  # noqa: SLF001 - the seam for tests
    return clock


@pytest.fixture
def bare_write(tmp_path: Path) -> Iterator[Callable[[bytes], Limit]]:
    """Return a function that returns the limit for changes: one os.write of the same line for each."""
    descriptor = os.open(tmp_path / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def limit(line: bytes) -> Limit:
        return Limit("a bare `os.write`", lambda count: write_lines(descriptor, line, count))

    yield limit
    os.close(descriptor)


def write_lines(descriptor: int, line: bytes, count: int) -> None:
    """Append a line so many times."""
    write = os.write
    for _ in repeat(None, count):
        write(descriptor, line)


def sync_lines(descriptor: int, line: bytes, count: int) -> None:
    """Append a line so many times and wait for the disk after each."""
    for _ in repeat(None, count):
        os.write(descriptor, line)
        os.fdatasync(descriptor)


# ---- States of a given size ------------------------------------------------------------------------------------------

#: Bytes of a batch of jobs in YAML, about; each batch is a top-level entry.
BATCH = 10_000


def content_of(size: int) -> dict[str, Any]:
    """Return a state that is about so many bytes of YAML: a counter, and batches of jobs."""
    content: dict[str, Any] = {"counter": 0}
    for number in range(max(1, size // BATCH)):
        jobs = range(min(size, BATCH) // 110)
        content[f"batch {number:04}"] = [job(number * len(jobs) + index) for index in jobs]
    return content


def job(number: int) -> dict[str, Any]:
    """Return one record of the kind that scripts keep."""
    return {
        "name": f"import {number:06}",
        "url": f"data/2024-05/part-{number:06}.csv",
        "done": number % 3 == 0,
        "tries": number % 5,
        "seconds": number / 16,
    }


class Shelf:
    """Makes each file that benchmarks open once, and hands out copies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def copy(self, size: int, target: Path) -> Path:
        """Copy a file that the module wrote for a state of about so many bytes."""
        source = self._folder / f"{size}.state"
        if not source.exists():
            state = persistedstate.PersistedState(source)
            state.update(content_of(size))
            state.close()
        shutil.copy(source, target)
        return target


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Return where the large files are made."""
    return Shelf(tmp_path_factory.mktemp("shelf"))
