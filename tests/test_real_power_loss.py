"""Suite C: real loss of power, on real file systems, costs no more than each level of `_fsync` says.

File systems in loop-mounted images are shut down under a writer without a flush of their log, mounted again, and looked
at: see power_loss.py. `_fsync=True` loses nothing that was acknowledged, seconds nothing that the timer has synced (and
the timer comes also when writing stops), False nothing that a vacuum or a closing has written; whatever is left is the
state after one of the steps. Needs root and loop devices.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checks import scratch
from rounds import SHARE
from rounds import rounds as sized

if TYPE_CHECKING:
    import random

SCRIPT = Path(__file__).parent / "support/power_loss.py"


def lose_power(seed: int, cycles: int, *kind: str) -> subprocess.CompletedProcess[str]:
    """Run so many cycles on a new file system, in a mount namespace of their own."""
    with scratch() as path:
        return subprocess.run(
            ["unshare", "-m", sys.executable, SCRIPT, path.parent, str(seed), str(cycles), *kind],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.mark.skipif(not Path("/proc/self/ns/mnt").exists(), reason="needs mount namespaces")
def test_script_refuses_to_mount_where_everybody_sees_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "0", "1", "ext4"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("run this by unshare -m")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=["ext4", "ext4 commit=1", "ext4 data=writeback", "xfs"])
def kind(request: pytest.FixtureRequest) -> list[str]:
    """A kind of file system and its mount options; tried once, and skipped where it cannot be had."""
    found: list[str] = request.param.split()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    for tool in "unshare", "mount", f"mkfs.{found[0]}":
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    tried = lose_power(0, 1, *found)
    if tried.returncode:
        pytest.skip(f"no power to lose here: {tried.stderr.strip()[-200:]}")
    return found


@pytest.mark.stress
@sized(ci=60, nightly=1500)
def test_power_loss_costs_no_more_than_fsync_says(chance: random.Random, rounds: int, kind: list[str]) -> None:
    done = lose_power(chance.getrandbits(32), rounds, *kind)

    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(outcome)
    assert outcome["violations"] == []
    assert outcome["cycles"] == rounds
    assert outcome["steps"] > rounds or SHARE < 1
