"""A writer in a storm of signals; a script, because a storm hits the whole process.

    python storm.py interrupts|handler FOLDER SEED HITS false|true|SECONDS

interrupts: a second process sends SIGINT as fast as the writer can take it; the writer catches each KeyboardInterrupt
that hits a statement and goes on. handler: a timer's handler changes the state itself. Ends after so many hits, and
prints the outcome as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
from workload import Step, Workload

import persistedstate
from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_BETWEEN = 0.001
READER = oracle.FASTEST
KINDS = {"change": 70, "commit": 12, "abort": 6, "vacuum": 10, "reopen": 2}


@dataclasses.dataclass
class Outcome:
    """How many statements ran, how many signals hit one, and what became of those."""

    statements: int = 0
    hits: int = 0
    done: int = 0
    undone: int = 0
    refused: int = 0
    checks: int = 0
    divergences: list[str] = dataclasses.field(default_factory=list)


class Storm:
    """A state under fire, and the model that it must agree with."""

    def __init__(self, path: Path, seed: str, fsync: bool | float, kinds: dict[str, int]) -> None:
        self.path, self.fsync, self.outcome = path, fsync, Outcome()
        self.workload = Workload(seed, weights=kinds, start={"beat": 0})
        self.state = PersistedState(path, _fsync=fsync, **self.workload.model)

    def reopen(self) -> None:
        self.state.close()
        self.state = PersistedState(self.path, _fsync=self.fsync)

    def check_file(self, what: object) -> None:
        """Note it if the file does not hold what memory does, in the eyes of another reader."""
        self.outcome.checks += 1
        found, memory = oracle.read(self.path, READER), plain(self.state)
        if not oracle.same(found, memory):
            self.outcome.divergences.append(f"{what}: memory {memory}, file {found}")

    def finish(self) -> None:
        """Compare all there is once more, after a closing and an opening."""
        self.check_file("at the end")
        self.state.close()
        with PersistedState(self.path) as state:
            if not oracle.same(plain(state), self.workload.model):
                self.outcome.divergences.append(f"opened again: {plain(state)}, not {self.workload.model}")
        names = [entry.name for entry in self.path.parent.iterdir()]
        if names != [self.path.name]:
            self.outcome.divergences.append(f"left: {names}")


# ---- Interrupts ------------------------------------------------------------------------------------------------------


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt where the writer asks for it: at most twice in a statement.

    Once in a vacuum, of which each would be hit twice: it takes longer than the time between two signals.
    """

    def __init__(self) -> None:
        self.allowed, self.hits = 0, 0
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_: object) -> None:
        if self.allowed:
            self.allowed -= 1
            self.hits += 1
            raise KeyboardInterrupt

    def strike(self, storm: Storm, step: Step) -> bool:
        """Let the storm take a step; return whether it was interrupted."""
        try:
            try:
                self.allowed = 1 if step.kind == "vacuum" else 2
                step.perform(storm.state)
            finally:
                self.allowed = 0
        except KeyboardInterrupt:
            return True
        except RuntimeError as error:  # of `threading`, where a thread that is about to start is hit twice
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            return True
        return False


@contextlib.contextmanager
def sender() -> Iterator[None]:
    """Let a second process send SIGINT to this one all the time, once it has let go of the file's lock."""
    target = os.getpid()
    ready, is_ready = os.pipe()
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.write(is_ready, b"!")
        with contextlib.suppress(ProcessLookupError):
            while os.getppid() == target:
                time.sleep(SECONDS_BETWEEN)
                os.kill(target, signal.SIGINT)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def interrupts(storm: Storm, hits: int) -> None:
    """Write under a storm of SIGINT; memory is as before a statement that was hit, or as after it."""
    outcome, interrupts = storm.outcome, Interrupts()
    with sender():
        while interrupts.hits < hits and len(outcome.divergences) < 5:
            before = copy.deepcopy(storm.workload.model)
            step = storm.workload.draw()
            outcome.statements += 1
            if step.kind == "reopen":
                storm.reopen()
            was_hit = step.kind != "reopen" and interrupts.strike(storm, step)
            outcome.hits = interrupts.hits
            if not was_hit and outcome.statements % 64:
                continue
            storm.state.refresh()  # settles what a second interrupt may have left open
            memory = plain(storm.state)
            is_done = oracle.same(memory, storm.workload.model)
            outcome.done += is_done and was_hit
            outcome.undone += not is_done
            if not is_done:
                if not (was_hit and oracle.same(memory, before)):
                    outcome.divergences.append(f"{step}: {before} became {memory}")
                storm.workload.model = before
            if step.kind != "change" or outcome.hits % 8 == 0:
                storm.check_file(step)


# ---- A handler that writes -------------------------------------------------------------------------------------------


class Timeless:
    """The system at a moment that lasts: nobody looks for edits of the file."""

    def __init__(self) -> None:
        self._real, self._moment = persistedstate._system, persistedstate._system.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def time(self) -> float:
        return self._moment


class Beats:
    """A handler that changes the state, unless it interrupted itself."""

    def __init__(self, storm: Storm) -> None:
        self.storm, self.is_handling = storm, False
        signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_BETWEEN, SECONDS_BETWEEN)

    def _handle(self, *_: object) -> None:
        if not self.is_handling:
            self.is_handling = True
            self._beat(self.storm.outcome)
            self.is_handling = False

    def _beat(self, outcome: Outcome) -> None:
        outcome.hits += 1
        try:
            self.storm.state.beat = outcome.hits
        except RuntimeError:
            outcome.refused += 1
        else:
            outcome.done += 1
            self.storm.workload.model["beat"] = outcome.hits


@contextlib.contextmanager
def in_peace() -> Iterator[None]:
    """Let the timer's signal wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])


def handler(storm: Storm, hits: int) -> None:
    """Write while a timer's handler writes, too: it works between statements, and is refused within one."""
    outcome, model = storm.outcome, storm.workload.model
    persistedstate._system = Timeless()  # type: ignore[assignment]
    Beats(storm)
    while outcome.hits < hits and len(outcome.divergences) < 5:
        before = copy.deepcopy(model)
        step = storm.workload.draw()
        outcome.statements += 1
        try:
            step.perform(storm.state)
        except RuntimeError:
            outcome.undone += 1
            with in_peace():
                before["beat"] = model["beat"]
                model.clear()
                model.update(before)
        if outcome.statements % 256 == 0:
            with in_peace():
                if not oracle.same(plain(storm.state), model):
                    outcome.divergences.append(f"{step}: {plain(storm.state)}, not {model}")
                storm.check_file(step)
                storm.state.vacuum()
    signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    what, folder, seed, hits, fsync = sys.argv[1:]
    warnings.simplefilter("error")
    kinds = KINDS if what == "interrupts" else {"change": 1}
    storm = Storm(Path(folder) / "x.state", seed, json.loads(fsync), kinds)
    {"interrupts": interrupts, "handler": handler}[what](storm, int(hits))
    storm.finish()
    print(json.dumps(dataclasses.asdict(storm.outcome)))


if __name__ == "__main__":
    main()
