"""Suite K: followers see whole states that really were, in order; writers that contend for the lock lose nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import scratch
from processes import Child, listing
from rounds import SHARE
from rounds import rounds as sized

from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    import random

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"), pytest.mark.stress]


def script(name: str) -> str:
    """Return code that runs the script of that name as if it were started by itself."""
    file = str(Path(__file__).parent / "support" / name)
    return f"import runpy, sys; sys.argv[0] = {name!r}; runpy.run_path({file!r}, run_name='__main__')"


@sized(ci=400, nightly=20_000)
def test_followers_of_writers_that_are_killed_see_only_states_that_were(chance: random.Random, rounds: int) -> None:
    """Whatever becomes of the writers: their vacuums, their deaths, and what their successors find."""
    seed = str(chance.getrandbits(32))
    with (
        scratch() as path,
        Child(script("killing.py"), path.parent, seed, rounds) as writers,
        Child(script("following.py"), path, f"{seed} from round 0") as one,
        Child(script("following.py"), path, f"{seed} from round 0") as other,
    ):
        while (line := writers.line()).endswith("rounds"):
            pass
        assert json.loads(line)["examples"] == []
        writers.finish()
        content = oracle.read(path)
        for follower in one, other:
            follower.tell()
            changes, number, shown = json.loads(follower.line())
            print(changes, number)
            assert oracle.same(shown, content)
            assert changes > 2 or SHARE < 1
            follower.finish()


#: Lanes of writers, one after the other in each, all at once. A writer waits for the lock, appends some numbers that
#: nobody else appends, acknowledges each, and ends: by closing, by leaving without, or by SIGKILL at some moment.
CONTENDERS = """
    import os, random, signal, sys, time, warnings
    from persistedstate import PersistedState

    path, seed, lanes, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

    def write(lane, turn, chance):
        warnings.simplefilter("ignore")  # a torn tail
        end = chance.choice(["close", "exit", "leave", "kill"])
        with PersistedState(path, _wait=600, numbers=[]) as state:
            for number in range(turn * 100, turn * 100 + chance.randint(1, 5)):
                state.numbers.append([lane, number])
                os.write(1, b"%d %d\\n" % (lane, number))
                if chance.random() < 0.1:
                    state.vacuum()
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if end == "leave":
                os._exit(0)
        if end == "exit":
            sys.exit()
        os._exit(0)

    def run(lane):
        for turn in range(rounds):
            chance = random.Random(f"{seed} {lane} {turn}")
            child = os.fork()
            if not child:
                write(lane, turn, chance)
            if chance.random() < 0.2:
                time.sleep(chance.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os._exit(0)

    children = []
    for lane in range(lanes):
        children.append(os.fork())
        if not children[-1]:
            run(lane)
    for child in children:
        os.waitpid(child, 0)
    os.write(1, b"over\\n")
"""


@sized(ci=25, nightly=3000)
def test_writers_that_contend_for_the_lock_lose_nothing_and_keep_their_order(
    path: Path, chance: random.Random, rounds: int
) -> None:
    path.write_text("numbers: []\n")
    lanes, acknowledged, seen = 4, list[list[int]](), list[Any]()
    with (
        Child(CONTENDERS, path, chance.getrandbits(32), lanes, rounds) as contenders,
        PersistedState(path, _readonly=True) as follower,
    ):
        while (line := contenders.line()) != "over":
            acknowledged.append([int(word) for word in line.split()])
            if len(acknowledged) % 16 == 0:
                follower.refresh()
                now = plain(follower.numbers)
                assert now[: len(seen)] == seen
                seen = now
        contenders.finish()

    numbers = oracle.read(path)["numbers"]
    assert numbers[: len(seen)] == seen
    assert all(item in numbers for item in acknowledged)
    for lane in range(lanes):
        mine = [number for writer, number in numbers if writer == lane]
        assert mine == sorted(set(mine))
        unacknowledged = [number for number in mine if [lane, number] not in acknowledged]
        assert len({number // 100 for number in unacknowledged}) == len(
            unacknowledged
        )  # the last of one that was killed
    assert len(acknowledged) > rounds or SHARE < 1
    with PersistedState(path) as state:
        assert plain(state.numbers) == numbers
    assert listing(path.parent) == [path.name]
