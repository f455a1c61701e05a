"""How long an event loop is kept waiting by a state of 1 MB: the longest time between two rounds of it.

    python benchmarks/event_loop.py [--quick] [TARGET]

A task counts time while another one changes the state until a vacuum that is due has ended; so for many vacuums. It is
processor time that counts, of all threads, because a busy machine keeps everybody waiting; where the disk is waited
for, the clock. Prints a table in Markdown, or writes it into the target.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import persistedstate
from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MEGABYTE, VACUUMS = 1_000_000, 20
JOB = "- name: job 00000\n  tries: 0\n"
#: Seconds of sleep of a disk that takes its time.
SLOW = 0.03

_numbers = count(1)


def opened(folder: Path, **options: Any) -> Any:
    """Return a state of 1 MB."""
    jobs = [{"name": f"job {number:05}", "tries": 0} for number in range(MEGABYTE // len(JOB))]
    return PersistedState(folder / "x.state", jobs=jobs, counter=0, **options)


def get_ready(state: Any, *, is_spread: bool) -> None:
    """Change one thing, or all jobs; then a vacuum is due."""
    tree, number = state._tree, next(_numbers)
    tree.limit = sys.maxsize
    state.counter = number
    for job in state.jobs if is_spread else ():
        job["tries"] = number
    tree.limit = 0


async def change(state: Any, *, is_awaited: bool) -> None:
    """Make one change."""
    if is_awaited:
        async with state.transaction():
            state.counter = next(_numbers)
    else:
        state.counter = next(_numbers)


async def until_vacuumed(state: Any, *, is_awaited: bool) -> None:
    """Change the state until the vacuum that is due has ended."""
    generation = state._tree.generation
    while state._tree.generation == generation or state._tree.beside is not None:
        await change(state, is_awaited=is_awaited)
        await asyncio.sleep(0.0002)


async def longest(timer: Callable[[], float], work: Coroutine[Any, Any, None]) -> float:
    """Return the longest time between two rounds of the loop while a task works."""
    working, before, found = asyncio.create_task(work), timer(), 0.0
    while not working.done():
        await asyncio.sleep(0.0002)
        now = timer()
        found, before = max(found, now - before), now
    return found


def measured(rounds: int, *, is_spread: bool = False, is_awaited: bool = False, is_beside: bool = True) -> list[float]:
    """Return the longest time around each of some vacuums."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as state:
        is_in_loop = persistedstate._is_in_loop
        persistedstate._is_in_loop = lambda: is_beside and is_in_loop()
        try:
            found = []
            for _ in range(rounds):
                get_ready(state, is_spread=is_spread)
                found.append(asyncio.run(longest(time.process_time, until_vacuumed(state, is_awaited=is_awaited))))
            return found
        finally:
            persistedstate._is_in_loop = is_in_loop


def measured_disk(rounds: int, *, is_awaited: bool) -> list[float]:
    """Measure changes with `_fsync=True` on a disk that takes `SLOW`, by the clock."""
    real = persistedstate._System.fsync

    def fsync(fd: Any) -> None:
        time.sleep(SLOW)
        real(fd)

    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), _fsync=True) as state:
        persistedstate._System.fsync = staticmethod(fsync)
        try:
            return [
                asyncio.run(longest(time.perf_counter, change(state, is_awaited=is_awaited))) for _ in range(rounds)
            ]
        finally:
            persistedstate._System.fsync = staticmethod(real)


def table(rounds: int) -> str:
    """Measure all of it, and return what was seen."""
    disk = f"`_fsync=True` on a disk that takes {SLOW * 1000:g} ms, one change"
    rows = [
        ("one counter changed, the vacuum as without a loop", measured(rounds, is_beside=False)),
        ("… beside the loop", measured(rounds)),
        ("… and changes in `async with`", measured(rounds, is_awaited=True)),
        (
            "all of 33,000 small mappings changed, the vacuum as without a loop",
            measured(rounds, is_spread=True, is_beside=False),
        ),
        ("… beside the loop", measured(rounds, is_spread=True)),
        ("… and changes in `async with`", measured(rounds, is_spread=True, is_awaited=True)),
        (disk, measured_disk(rounds, is_awaited=False)),
        ("… in `async with`", measured_disk(rounds, is_awaited=True)),
    ]
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    machine = f"CPython {platform.python_version()}, {system}"
    lines = [f"| {name} | {median(found) * 1e3:.1f} | {max(found) * 1e3:.1f} |" for name, found in rows]
    head = [
        *("# How long an event loop is kept waiting", ""),
        "The longest time between two rounds of the loop while a state of 1 MB is vacuumed and goes on being changed,",
        "in milliseconds of the processor, of all threads; and for the slow disk, by the clock.",
        *(f"From {rounds} vacuums, or changes, each.", "", "| | median | longest |", "|---|---|---|"),
    ]
    return "\n".join([*head, *lines, "", f"{machine}.", ""])


def main() -> None:
    """Measure, and print or write what was seen."""
    targets = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    text = table(2 if "--quick" in sys.argv else VACUUMS)
    if targets:
        Path(targets[0]).write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
