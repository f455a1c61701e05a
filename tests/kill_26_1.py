"""Kill scripts that use persistedstate 26.1, and the same scripts with this one; print side by side what was lost.

    python tests/kill_26_1.py [ROUNDS] [SEED]

PERSISTEDSTATE_26_PYTHON names an interpreter that has persistedstate 26.1. The script under it opens its state, makes
about fifty changes and closes it, again and again. A mixed one uses all methods of dicts and lists, slices and nested
lists among them; a modest one only what 26.1 documents: items of dicts and lists, at any depth, set, deleted, inserted,
each of them one record. SIGKILL ends it 0.1 to 20 ms after it opened its state, or in every second round after its
first step, unless a method that is not supported ends it before.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parent / "support"
sys.path.insert(1, str(SUPPORT))

from checks import scratch  # noqa: E402 - the path comes first


def outcome(python: list[str], rounds: int, seed: str, workload: str) -> dict[str, Any]:
    """Kill so many writers in that interpreter."""
    with scratch() as path:
        done = subprocess.run(
            [*python, str(SUPPORT / "killing.py"), path.parent, seed, str(rounds), workload],
            env={**os.environ, "PYTHONPATH": str(SUPPORT.parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seed = sys.argv[2] if len(sys.argv) > 2 else str(random.SystemRandom().getrandbits(32))
    theirs = os.environ.get("PERSISTEDSTATE_26_PYTHON")
    if theirs is None:
        sys.exit("PERSISTEDSTATE_26_PYTHON must name an interpreter that has persistedstate 26.1")
    isolated = [theirs, "-I"]  # which keeps this project's module off its path
    is_26 = "from importlib.metadata import version; assert version('persistedstate') == '26.1'"
    subprocess.run([*isolated, "-c", is_26], check=True)
    print(f"{rounds} kills each, seed {seed}")
    for workload in "modest", "mixed":
        for name, python in {"persistedstate": [sys.executable], "persistedstate 26.1": isolated}.items():
            found = outcome(python, rounds, seed, workload)
            print(
                f"{workload:6} {name:20} lost acknowledged changes: {found['lost']:4}   did not open: "
                f"{found['unopened']:4}   could not go on: {found['failed']:4}   ({found['steps']} changes)"
            )


if __name__ == "__main__":
    main()
