"""A server that forks writers and kills them; a script for an interpreter with any persistedstate, 26.1 as well.

    python killing.py FOLDER SEED ROUNDS [modest|mixed|linked]

Each round forks a process that opens the file, goes on with the workload and sends the number of every step that is
done down a pipe. SIGKILL ends it at a random moment, in every second round not before its first step. Then a copy of
the file must open to what the model holds after the last step that was acknowledged, or after the one that was under
way. The next round goes on with the same file, as the killed process left it. A modest workload consists of what any
persistedstate can do; a mixed one of all methods of dicts and lists; both do without what 26.1 does not offer. A file
that is linked has two names, and is therefore rewritten in its place. Prints a line of progress now and then, and at
last the outcome as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parent))  # an isolated interpreter leaves it out

from workload import Workload

from persistedstate import PersistedState

try:
    import oracle
except ImportError:  # the interpreter of 26.1 has no ruamel.yaml
    oracle = None  # type: ignore[assignment]

NUMBER = struct.Struct("<I")
#: How long a writer may take to open its file, or for its first step.
PATIENCE = 60.0
#: A script that opens its state, makes about fifty changes and closes it, again and again.
SCRIPT = {"change": 49, "reopen": 1}
DONE_JOBS = {"done": [{"id": n, "file": f"input/part-{n:05}.csv", "error": None} for n in range(8)]}
#: Nearly all the time of a writer of a linked file goes into vacuums.
REWRITING = {"change": 50, "commit": 10, "abort": 3, "vacuum": 35, "reopen": 2}


@dataclasses.dataclass
class Outcome:
    """What happened: numbers of rounds, except `steps`, and `examples` of what went wrong."""

    rounds: int = 0
    steps: int = 0
    under_way: int = 0
    in_vacuum: int = 0
    lost: int = 0
    unopened: int = 0
    left_behind: int = 0
    failed: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def note(self, kind: str, example: str) -> None:
        """Count something that went wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < 5:
            self.examples.append(f"round {self.rounds}, {kind}: {example[:2000]}")


class Killer:
    """Runs the rounds on one file."""

    def __init__(self, folder: Path, seed: str, kind: str = "") -> None:
        modest, mixed, linked = (kind == name for name in ("modest", "mixed", "linked"))
        self.folder, self.seed, self.modest = folder, seed, modest
        #: Another persistedstate can do it as well.
        self.is_shared = modest or mixed
        self.path, self.link = folder / "x.state", folder / "other.state" if linked else None
        self.chance = random.Random(seed)
        self.outcome = Outcome()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Put a file with the start of a workload in place."""
        weights = SCRIPT if self.is_shared else REWRITING if self.link else None
        seed = f"{self.seed} from round {self.outcome.rounds}"
        start = copy.deepcopy(DONE_JOBS) if self.is_shared else None
        self.workload = Workload(seed, modest=self.modest, weights=weights, start=start)
        for entry in self.folder.iterdir():
            entry.unlink()
        PersistedState(self.path, **copy.deepcopy(self.workload.model)).close()
        if self.link:
            os.link(self.path, self.link)

    def round(self) -> None:
        """Let a process write, kill it, and look at what it left."""
        self.outcome.rounds += 1
        failed = self.outcome.failed
        acknowledged = self._kill_a_writer() - self.workload.number
        self.outcome.steps += max(0, acknowledged)
        self.workload.take(acknowledged)
        left = {entry.name for entry in self.folder.iterdir()} - self._names()
        self.outcome.in_vacuum += bool(left) or b"LAST VALID STATE" in self.path.read_bytes()
        if not all(name.startswith(".x.state.") and name.endswith(".tmp") for name in left):
            self.outcome.note("left_behind", repr(left))
        self._check()
        if self.outcome.failed > failed:
            self.begin_anew()  # it would fail again
        if self.outcome.rounds % 25 == 0:
            self._check_closing()

    def _kill_a_writer(self) -> int:
        """Return the number of the last step that a writer acknowledged before it was killed."""
        options = {} if self.is_shared else {"_fsync": self.chance.choice([False, False, True, 0.002])}
        delay, from_opening = 10 ** self.chance.uniform(-4, -1.7), not self.is_shared and self.chance.random() < 0.3
        # In every second round something gets done on a slow machine, too: opening is acknowledged, and then a step.
        awaited = 2 if self.outcome.rounds % 2 else 0 if from_opening else 1
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ours)
            _write(self.path, self.workload, theirs, options)
        os.close(theirs)
        received = b""
        try:
            received = _first(ours, awaited)
            time.sleep(delay)
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            received += b"".join(iter(lambda: os.read(ours, 1 << 16), b""))
            os.close(ours)
        if os.WTERMSIG(status) != signal.SIGKILL:
            self.outcome.note("failed", f"the writer ended by itself with status {status}")
        whole = len(received) - len(received) % NUMBER.size
        return int(NUMBER.unpack(received[whole - NUMBER.size : whole])[0]) if whole else self.workload.number

    def _check(self) -> None:
        """Compare a copy of the file with the model; go on with a new file if the old one is of no use."""
        before, after = self.workload.model, copy.deepcopy(self.workload)
        after.draw()
        try:
            with tempfile.TemporaryDirectory(dir=self.folder.parent) as folder:
                found = self._opened(shutil.copyfile(self.path, Path(folder) / "x.state"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the file does not open
            self.outcome.note("unopened", repr(error))
            self.begin_anew()
            return
        if self._same(found, before):
            return
        if not self._same(found, after.model):
            self.outcome.note("lost", f"step {self.workload.number}: {before} became {found}")
            self.begin_anew()
            return
        self.outcome.under_way += 1
        self.workload = after

    def _opened(self, path: Path) -> Any:
        with warnings.catch_warnings(), contextlib.closing(PersistedState(path)) as state:
            found = _plain(state)
        if oracle is not None and not self._same(oracle.read(path, "libyaml"), found):
            self.outcome.note("lost", "another reader finds something else than persistedstate")
        return found

    def _same(self, left: Any, right: Any) -> bool:
        """Compare; 26.1 sorts keys, therefore a workload that it shares does not ask for their order."""
        return bool(left == right) if self.is_shared or oracle is None else oracle.same(left, right)

    def _check_closing(self) -> None:
        """Let the file itself be opened and closed: it keeps its content, and nothing stays beside it."""
        with contextlib.suppress(Exception):  # _check has noted it
            if not self._same(self._opened(self.path), self.workload.model):
                self.outcome.note("lost", "opening and closing changed the state")
        left = {entry.name for entry in self.folder.iterdir()} - self._names()
        if left or (self.link and not self.link.samefile(self.path)):
            self.outcome.note("left_behind", repr(left))

    def _names(self) -> set[str]:
        return {"x.state", "other.state"} if self.link else {"x.state"}


def _first(pipe: int, count: int) -> bytes:
    """Wait for the first numbers of a writer, or for its end."""
    received = b""
    while (missing := count * NUMBER.size - len(received)) and select.select([pipe], [], [], PATIENCE)[0]:
        if not (more := os.read(pipe, missing)):
            break
        received += more
    return received


def _write(path: Path, workload: Workload, pipe: int, options: dict[str, Any]) -> None:
    """Go on with the workload until the end, which comes from outside."""
    status = 1
    try:
        warnings.simplefilter("ignore")  # a torn tail
        state = PersistedState(path, **options)
        os.write(pipe, NUMBER.pack(workload.number))
        while True:
            step = workload.draw()
            if step.kind == "reopen":
                state.close()
                state = PersistedState(path, **options)
            else:
                step.perform(state)
            os.write(pipe, NUMBER.pack(workload.number))
    except BaseException as error:
        print(f"the writer failed: {error!r}", file=sys.stderr)
        raise
    finally:
        os._exit(status)


def _plain(node: Any) -> Any:
    if hasattr(node, "keys"):
        return {key: _plain(node[key]) for key in node}
    if isinstance(node, str | bytes) or not hasattr(node, "__len__"):
        return node
    return [_plain(item) for item in node]


def main() -> None:
    folder, seed, rounds, *rest = sys.argv[1:]
    killer = Killer(Path(folder), seed, *rest)
    for number in range(1, int(rounds) + 1):
        killer.round()
        if number % 100 == 0:
            print(f"{number} rounds", flush=True)
    killer._check_closing()
    print(json.dumps(dataclasses.asdict(killer.outcome)), flush=True)


if __name__ == "__main__":
    main()
