"""A share of the tests: which cases of those with many are taken, and that all are where a test is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rounds import FEW, FEWEST, sample

if TYPE_CHECKING:
    import random

TESTS = Path(__file__).parent
FEW_CASES = [f"tests/test_x.py::test_few[{number}]" for number in range(FEW)]
MANY_CASES = [f"tests/test_x.py::TestIt::test_many[[{number}-a]" for number in range(40 * FEW)]
CASES = ["tests/test_x.py::test_one", *FEW_CASES, *MANY_CASES]


def test_a_share_takes_some_cases_of_each_test_that_has_many(chance: random.Random) -> None:
    taken = sample(CASES, 0.05, str(chance.random()))

    assert taken >= {"tests/test_x.py::test_one", *FEW_CASES}
    assert len(taken.intersection(MANY_CASES)) == 2 * FEW


def test_a_tiny_share_takes_the_fewest_of_each() -> None:
    taken = sample(CASES, 0.0, "seed")

    assert [len(taken.intersection(cases)) for cases in (CASES[:1], FEW_CASES, MANY_CASES)] == [1, FEWEST, FEWEST]


@pytest.mark.parametrize("share", [1.0, 20.0])
def test_the_full_size_takes_all(share: float) -> None:
    assert sample(CASES, share, "seed") == set(CASES)


def test_the_seed_tells_which_cases_are_taken() -> None:
    """pytest-xdist asks each of its processes: they must agree."""
    assert sample(CASES, 0.05, "a") == sample(CASES, 0.05, "a") != sample(CASES, 0.05, "b")


@pytest.mark.parametrize(("asked", "run"), [("tests/test_many.py", FEW), ("tests/test_many.py::test_many", 2 * FEW)])
def test_a_test_that_is_named_runs_with_all_its_cases(asked: str, run: int, tmp_path: Path) -> None:
    (tmp_path / "tests/support").mkdir(parents=True)
    for name in ("conftest.py", "support/rounds.py", "support/oracle.py"):
        shutil.copy(TESTS / name, tmp_path / "tests" / name)
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)
    text = f"import pytest\n@pytest.mark.parametrize('x', range({2 * FEW}))\ndef test_many(x): pass\n"
    (tmp_path / "tests/test_many.py").write_text(text, "utf-8")
    environ = {**os.environ, "PERSISTEDSTATE_CASES": "0.05", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", asked]

    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1].startswith(f"{run} passed"), done.stdout
