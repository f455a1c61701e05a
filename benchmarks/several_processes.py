"""What it costs that several processes change one file: changes a second, and how fairly they take turns.

    python benchmarks/several_processes.py [--quick] [TARGET]

Each of 1, 2 and 4 processes counts in transactions for some seconds, here and in diskcache, side by side; at the end
the counter must hold all of them. Prints a table in Markdown, or writes it into the target, and beside it what a chart
is drawn of.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITERS, SECONDS, ROUNDS = (1, 2, 4), 2.0, 5


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Callable[[], int]]:
    """Give what counts in a shared state."""
    with PersistedState(folder / "x.state", _shared=True, counter=0) as state:

        def count() -> int:
            with state.transaction():
                state.counter += 1
                return int(state.counter)

        yield count


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[Callable[[], int]]:
    """Give what counts in a state that one process has, without a transaction."""
    with PersistedState(folder / "x.state", counter=0) as state:

        def count() -> int:
            state.counter += 1
            return int(state.counter)

        yield count


@contextlib.contextmanager
def theirs(folder: Path) -> Iterator[Callable[[], int]]:
    """Give what counts in diskcache."""
    with import_module("diskcache").Cache(str(folder / "cache")) as cache:

        def count() -> int:
            with cache.transact(retry=True):
                value = int(cache.get("counter", 0)) + 1
                cache["counter"] = value
                return value

        yield count


def run(kind: Any, writers: int, seconds: float) -> tuple[float, float, float]:
    """Return changes a second, the poorest one's part of a fair share, and the longest wait in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder, reports = Path(name), []
        with kind(folder):  # makes the files
            pass
        gate, opened = os.pipe()
        for number in range(writers):
            if not os.fork():
                os.close(opened)
                _write(kind, folder, gate, seconds, folder / f"report-{number}")
        os.close(gate)
        time.sleep(0.3)  # until all have opened it
        os.close(opened)
        for _ in range(writers):
            assert os.wait()[1] == 0
        reports = [json.loads((folder / f"report-{number}").read_text()) for number in range(writers)]
        made = [count for count, _ in reports]
        with kind(folder) as count:
            assert count() == sum(made) + 1, "changes were lost"
    return sum(made) / seconds, min(made) * writers / sum(made), max(wait for _, wait in reports)


def _write(kind: Any, folder: Path, gate: int, seconds: float, report: Path) -> None:
    status = 1
    try:
        with kind(folder) as count:
            os.read(gate, 1)
            made, longest, start = 0, 0.0, time.perf_counter()
            before, end = start, start + seconds
            while before < end:
                count()
                now = time.perf_counter()
                made, longest, before = made + 1, max(longest, now - before), now
        report.write_text(json.dumps([made, longest]))
        status = 0
    finally:
        os._exit(status)


def measured(seconds: float, rounds: int) -> tuple[str, dict[str, Any]]:
    """Measure all of it, side by side; return a table, and changes a second for the chart."""
    single = [run(alone, 1, seconds)[0] for _ in range(rounds)]
    lines = [
        "# Several processes, one file",
        "",
        "`with STATE.transaction(): STATE.counter += 1` in each process, as fast as it can, with `_shared=True`; in",
        f"diskcache the same by `transact`. Medians of {rounds} runs of {seconds:g} s. A file that one process has",
        f"alone takes {median(single):,.0f} of the bare `STATE.counter += 1` a second. ",
        "",
        "| processes | changes a second | diskcache | poorest one's part of a fair share | longest wait |",
        "|---|---|---|---|---|",
    ]
    speeds: dict[str, dict[str, float]] = {"persistedstate": {}, "diskcache": {}}
    for writers in WRITERS:
        both = [(run(ours, writers, seconds), run(theirs, writers, seconds)) for _ in range(rounds)]
        speed, share, wait = (median(own[column] for own, _ in both) for column in range(3))
        peer = median(other[0] for _, other in both)
        speeds["persistedstate"][str(writers)], speeds["diskcache"][str(writers)] = speed, peer
        lines.append(f"| {writers} | {speed:,.0f} | {peer:,.0f} | {share:.0%} | {wait * 1000:.0f} ms |")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    caption = f"CPython {platform.python_version()}, {system}"
    return "\n".join([*lines, "", f"{caption}.", ""]), {"caption": caption, "changes a second": speeds}


def main() -> None:
    """Measure, and print or write what was seen."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--quick"]
    text, speeds = measured(0.1, 1) if "--quick" in sys.argv else measured(SECONDS, ROUNDS)
    for target in map(Path, arguments):
        target.write_text(text, "utf-8")
        target.with_suffix(".json").write_text(json.dumps(speeds, indent=1) + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
