"""How long the random tests run, and where their chances come from.

A random test takes `@rounds(ci=…, nightly=…)` and runs `rounds` times in CI; the long run is
`.ci/test -m campaign`. `PERSISTEDSTATE_SHARE=0.1` makes the short run shorter still. A random test draws from
the fixture `chance` or by Hypothesis; conftest.py gives both the seed of the run, which `PERSISTEDSTATE_SEED=…` sets.
"""

from __future__ import annotations

import os

import pytest

#: The part of CI's rounds that is run.
SHARE = float(os.environ.get("PERSISTEDSTATE_SHARE", "1"))


def rounds(*, ci: int, nightly: int) -> pytest.MarkDecorator:
    """Give a test its argument `rounds`: `ci` times the share, and in the campaign `nightly`."""
    campaign = [pytest.mark.campaign, pytest.mark.timeout(0)]
    short = pytest.param(max(1, round(ci * SHARE)), id="ci")
    return pytest.mark.parametrize("rounds", [short, pytest.param(nightly, id="nightly", marks=campaign)])
