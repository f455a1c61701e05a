"""How much of the random tests and of tests with many cases is run, and where chances come from.

A random test takes `@rounds(ci=…, nightly=…)` and runs `rounds` times in CI; the long run is `make campaign`.
`PERSISTEDSTATE_SHARE=0.1` takes a tenth of these rounds, `PERSISTEDSTATE_CASES=0.1` a tenth of the cases of a test that
has many, at least a few; `make test` sets both. A random test draws from the fixture `chance` or by Hypothesis;
conftest.py gives both the seed of the run, which `PERSISTEDSTATE_SEED=…` sets. It tells which cases are taken, too.
"""

from __future__ import annotations

import os
import random

import pytest

#: The part of CI's rounds that is run.
SHARE = float(os.environ.get("PERSISTEDSTATE_SHARE", "1"))
#: The part of the cases of a test that is run.
CASES = float(os.environ.get("PERSISTEDSTATE_CASES", "1"))
#: The part of what the quick sizes run, which are a twentieth of the full ones: less where the share is tiny.
QUICK = min(1.0, 20 * SHARE)
#: Of a test with more cases, so many are run whatever the share; of each test where the share is tiny, the fewest.
FEW, FEWEST = 8, 2


def some(count: int, least: int = 1) -> int:
    """Return the share of a number that suits the full sizes, but at least `least` of it."""
    return min(count, max(least, round(count * SHARE)))


def stride(full: int = 1) -> int:
    """Return by how many points a test of each point goes on: in the quick sizes, by five times as many."""
    return full if SHARE >= 1 else 5 * full


def rounds(*, ci: int, nightly: int) -> pytest.MarkDecorator:
    """Give a test its argument `rounds`: `ci` times the share, and in the campaign `nightly`."""
    campaign = [pytest.mark.campaign, pytest.mark.timeout(0)]
    short = pytest.param(max(1, round(ci * SHARE)), id="ci")
    return pytest.mark.parametrize("rounds", [short, pytest.param(nightly, id="nightly", marks=campaign)])


def sample(cases: list[str], share: float, seed: str) -> set[str]:
    """Return which cases are run, of all that were collected: node ids, such as `tests/test_x.py::test_x[a-1]`."""
    tests: dict[str, list[str]] = {}
    for case in cases:
        tests.setdefault(case.partition("[")[0], []).append(case)
    few = max(FEWEST, min(FEW, round(share * 20 * FEW)))
    taken: set[str] = set()
    for test, its_cases in tests.items():
        count = max(few, round(share * len(its_cases)))
        taken.update(random.Random(f"{seed} {test}").sample(its_cases, min(count, len(its_cases))))
    return taken
