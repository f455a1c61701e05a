"""Suites that know nothing of sharing pass with each of their states shared: conftest.py opens them so.

Not among them: tests of what a shared state does in another way. Its record is written twice; its vacuum needs memory
for the text that it replaces, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs flock"), pytest.mark.timeout(900)]

OTHERWISE = [
    "test_the_record_is_one_write",
    "takes_memory_in_proportion",
]


def campaign(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.campaign)


@pytest.mark.parametrize(
    "name", ["conformance", "nodes_list", "transactions", *map(campaign, ["nodes_dict", "values", "threads"])]
)
def test_a_suite_passes_with_shared_states(name: str) -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests / f"test_{name}.py")]
    done = subprocess.run(
        [*command, "-k", " and ".join(f"not {part}" for part in OTHERWISE)],
        cwd=tests.parent,
        env={**os.environ, "PERSISTEDSTATE_SHARED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:]
