"""What it costs to start a process that uses the module.

It is processor time that counts, as in test_speed_of_files.py; only what it is made of is told as a person waits.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from harness import OURS, Entrant, Limit, Race, samples_of, seconds

from persistedstate import PersistedState

if TYPE_CHECKING:
    from pathlib import Path


def children() -> float:
    """Return the processor time of all child processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


IN_CHILDREN = pytest.mark.benchmark(timer=children)
IMPORT = "import persistedstate"
COLD = "import sys; from persistedstate import PersistedState; PersistedState(sys.argv[1], counter=0).counter += 1"
STEPS = ["interpreter", "import", "open", "change", "end"]
MARKED = """
import sys, time
marks = [time.perf_counter()]
from persistedstate import PersistedState
marks.append(time.perf_counter())
state = PersistedState(sys.argv[1], counter=0)
marks.append(time.perf_counter())
state.counter += 1
marks.append(time.perf_counter())
print(*marks)
"""
FOREIGN = """
import sys
before = set(sys.modules)
import persistedstate
files = (getattr(sys.modules[name], "__file__", "") for name in set(sys.modules) - before - {"persistedstate"})
print(sum("site-packages" in (file or "") for file in files))
"""


def run_python(code: str, *arguments: object) -> str:
    """Run code in a process of its own and return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def bare_python() -> Limit:
    """Return the limit: a Python that does nothing."""
    return Limit("`python -c pass`", lambda _: run_python("pass"), count=1)


@IN_CHILDREN
def test_import(race: Race) -> None:
    """`import persistedstate` in a new process."""
    race("process that imports", Entrant(OURS), lambda _: run_python(IMPORT), bare_python(), rounds=15, count=1)


@IN_CHILDREN
def test_cold_open(race: Race, tmp_path: Path) -> None:
    """A new process that imports, opens a small state, changes it and ends."""
    PersistedState(tmp_path / "x.state", counter=0).close()
    loop = Limit("", lambda _: run_python(COLD, tmp_path / "x.state"))
    race("process that opens and changes", Entrant(OURS), loop.run, bare_python(), rounds=15, count=1)


def test_steps(race: Race, tmp_path: Path) -> None:
    """What that is made of. The clock of `perf_counter` is the same in all processes."""
    path = tmp_path / "x.state"
    PersistedState(path, counter=0).close()
    limit = bare_python()
    rows = [samples_of("steps of such a process", Entrant(f"{OURS}, {step}"), limit.name) for step in STEPS]

    def measure() -> None:
        bare, start = seconds(time.perf_counter, limit.run, 1), time.perf_counter()
        marks = [start, *map(float, run_python(MARKED, path).split()), time.perf_counter()]
        for row, (begin, end) in zip(rows, pairwise(marks), strict=True):
            row["samples"].append(end - begin)
            row["limits"].append(bare)

    race.report(measure, *rows, rounds=15)


def test_imported_packages(race: Race) -> None:
    """How many modules from outside the standard library `import persistedstate` loads, itself apart."""
    row = samples_of("modules imported", Entrant(OURS), "", unit="")
    race.report(lambda: row["samples"].append(int(run_python(FOREIGN))), row)
