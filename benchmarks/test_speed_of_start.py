"""What it costs to start a process that uses the module."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from harness import OURS, Entrant, Limit, Race, samples_of

from persistedstate import PersistedState

if TYPE_CHECKING:
    from pathlib import Path

IMPORT = "import persistedstate"
COLD = "import sys; from persistedstate import PersistedState; PersistedState(sys.argv[1], counter=0).counter += 1"
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


def test_import(race: Race) -> None:
    """`import persistedstate` in a new process."""
    race("process that imports", Entrant(OURS), lambda _: run_python(IMPORT), bare_python(), rounds=15, count=1)


def test_cold_open(race: Race, tmp_path: Path) -> None:
    """A new process that imports, opens a small state, changes it and ends."""
    PersistedState(tmp_path / "x.state", counter=0).close()
    loop = Limit("", lambda _: run_python(COLD, tmp_path / "x.state"))
    race("process that opens and changes", Entrant(OURS), loop.run, bare_python(), rounds=15, count=1)


def test_imported_packages(race: Race) -> None:
    """How many modules from outside the standard library `import persistedstate` loads, itself apart."""
    row = samples_of("modules imported", Entrant(OURS), "", unit="")
    race.report(lambda: row["samples"].append(int(run_python(FOREIGN))), row)
