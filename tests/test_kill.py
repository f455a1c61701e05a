"""Suite D: kill -9 at random moments loses no acknowledged change, and every file opens.

Writers are forked from a small server (killing.py), make changes of all kinds, vacuum and reopen, and acknowledge each
step on a pipe after its call returned. What they acknowledged is known from that pipe and replayed on plain containers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checks import scratch
from processes import Child
from rounds import rounds as sized

if TYPE_CHECKING:
    import random

SERVER = "import runpy, sys; sys.argv[0] = 'killing.py'; runpy.run_path({!r}, run_name='__main__')"
KILLING = str(Path(__file__).parent / "support/killing.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def kill(seed: int, rounds: int, *options: str) -> dict[str, Any]:
    """Let the server kill so many writers, and return what it tells of that."""
    with scratch() as path, Child(SERVER.format(KILLING), path.parent, seed, rounds, *options) as server:
        while (line := server.line()).endswith("rounds"):
            pass
        server.finish()
    outcome: dict[str, Any] = json.loads(line)
    print(outcome)
    return outcome


@pytest.mark.stress
@sized(ci=1000, nightly=100_000)
def test_kill_loses_nothing_acknowledged(chance: random.Random, rounds: int) -> None:
    outcome = kill(chance.getrandbits(32), rounds)

    assert outcome["examples"] == []
    assert [outcome[kind] for kind in ("lost", "unopened", "left_behind", "failed")] == [0, 0, 0, 0]
    assert outcome["rounds"] == rounds
    assert outcome["steps"] >= rounds // 2


@pytest.mark.stress
@sized(ci=200, nightly=20_000)
def test_kill_while_a_file_is_rewritten_in_its_place_loses_nothing(chance: random.Random, rounds: int) -> None:
    """A file with two names cannot be replaced."""
    outcome = kill(chance.getrandbits(32), rounds, "linked")

    assert outcome["examples"] == []
    assert [outcome[kind] for kind in ("lost", "unopened", "left_behind", "failed")] == [0, 0, 0, 0]
    assert outcome["steps"] >= rounds // 2


@pytest.mark.stress
@sized(ci=100, nightly=10_000)
def test_kill_of_a_script_that_opens_and_closes_often_loses_nothing(chance: random.Random, rounds: int) -> None:
    """The modest workload of `kill_26_1.py`: what 26.1 documents. README's table shows the mixed one."""
    outcome = kill(chance.getrandbits(32), rounds, "modest")

    assert outcome["examples"] == []
    assert [outcome[kind] for kind in ("lost", "unopened", "left_behind", "failed")] == [0, 0, 0, 0]
    assert outcome["steps"] >= rounds // 2
