"""A follower that knows what the writers do; a script, because it and they must run at once.

    python following.py PATH SEED

The writers go on with the workload of the seed, whatever happens to them. Each state that a refresh shows must be the
one after some step, and not before the step shown last. Ends when its standard input does, with the last state and
how often it changed, as JSON.
"""

from __future__ import annotations

import copy
import json
import select
import sys
import time

import oracle
from workload import Workload

from persistedstate import PersistedState, plain

#: Steps that the writers can make between two looks; and seconds after which a file that is not there will not come.
AHEAD, PATIENCE = 50_000, 60.0


def opened(path: str) -> PersistedState:
    """Open the file once it is there."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return PersistedState(path, _readonly=True)
        except FileNotFoundError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def advance(workload: Workload, shown: object) -> Workload:
    """Return the workload at the next step, if not at this one, after which the state is the one that was shown."""
    last = copy.deepcopy(workload.model)
    if oracle.same(last, shown):
        return workload
    ahead = copy.deepcopy(workload)
    for _ in range(AHEAD):
        ahead.draw()
        if ahead.model == shown and oracle.same(ahead.model, shown):
            return ahead
    sys.exit(f"a state that never was after step {workload.number}: {shown}; it was {last}")


def main() -> None:
    path, seed = sys.argv[1:]
    workload, changes, state = Workload(seed), 0, opened(path)
    is_over = False
    while not is_over:
        is_over = bool(select.select([sys.stdin], [], [], 0)[0])  # and then one more look
        before, changed = plain(state), state.refresh()
        shown = plain(state)
        if changed == oracle.same(before, shown):
            sys.exit(f"refresh() returned {changed}: {before}, {shown}")
        changes += changed
        if shown or workload.number:  # not a file that was only just made
            workload = advance(workload, shown)
    state.close()
    print(json.dumps([changes, workload.number, shown]), flush=True)


if __name__ == "__main__":
    main()
