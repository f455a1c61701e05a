"""Writers that share one file, are killed at random moments, and have their file edited; a script, as killing.py is.

    python sharing.py FOLDER SEED KILLS

Three processes write all the time. Each change is a transaction that counts and appends its own number, or an append
alone, or a plain `counter += 1` that is repeated after a conflict; each is acknowledged on a pipe after it returned.
SIGKILL ends one of them again and again, and another one begins. Vacuums come often, and a person edits the file now
and then, by a new file in its place or within it. At last every acknowledged number must be in the file once, every
value of a counter must have been acknowledged once at most, and what the person saved last must be there. Prints the
outcome as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent))

import oracle

import persistedstate
from persistedstate import PersistedState, StateConflict

WRITERS, FLOOR, PATIENCE = 3, 4_000, 60.0


def write(path: Path, name: str, pipe: int, chance: random.Random) -> None:
    """Change the state until the end, which comes from outside; acknowledge on a pipe."""
    status = 1
    try:
        warnings.simplefilter("ignore")  # what a person saves in the middle of saving
        persistedstate._VACUUM_FLOOR = FLOOR
        state, number = PersistedState(path, _shared=True), 0
        while True:
            number += 1
            if number % 50 == 0:
                state.close()
                state = PersistedState(path, _shared=True)
            os.write(pipe, change(state, name, number, chance).encode())
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def change(state: PersistedState, name: str, number: int, chance: random.Random) -> str:
    """Make one change, of some kind; return the lines that acknowledge it."""
    kind = chance.choice(["both", "both", "append", "plain", "nested"])
    if kind == "both":
        with state.transaction():
            state.total += 1
            state.ids.append(f"{name}-{number}")
            return f"total {state.total}\nid {name}-{number}\n"
    if kind == "append":
        state.ids.append(f"{name}-{number}")
        return f"id {name}-{number}\n"
    if kind == "plain":
        return f"counter {increment(state)}\n"
    state.by_writer.setdefault(name, {})[f"k{number}"] = number
    return f"key {name} k{number}\n"


def increment(state: PersistedState) -> int:
    """Count, again after each conflict; return the value that was set."""
    while True:
        value: int = state.counter + 1
        with contextlib.suppress(StateConflict):
            state.counter = value
            return value


class Sharing:
    """The processes, and what they acknowledged."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.path, self.chance = folder / "x.state", random.Random(seed)
        self.path.write_text("# by hand\nnote: 0\ntotal: 0\ncounter: 0\nids: []\nby_writer: {}\n")
        self.writers: dict[int, tuple[int, bytes]] = {}
        self.said: list[str] = []
        self.born, self.note, self.again, self.failed = 0, 0, 0, 0

    def start(self) -> None:
        """Start one more writer, and wait for what it does first."""
        self.born += 1
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ours)
            write(self.path, f"w{self.born}", theirs, random.Random(f"{self.chance.random()}"))
        os.close(theirs)
        self.writers[pid] = ours, b""
        if not select.select([ours], [], [], PATIENCE)[0]:
            self.failed += 1

    def listen(self) -> None:
        """Take what the writers acknowledged."""
        for pid, (pipe, unread) in list(self.writers.items()):
            parts = [unread]
            while select.select([pipe], [], [], 0)[0] and (data := os.read(pipe, 1 << 16)):
                parts.append(data)
            *lines, rest = b"".join(parts).split(b"\n")
            self.said += [line.decode() for line in lines]
            self.writers[pid] = pipe, rest

    def end(self, pid: int) -> None:
        """Kill a writer and take what it acknowledged until then."""
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.failed += not os.WIFSIGNALED(status)
        pipe, rest = self.writers[pid]
        rest += b"".join(iter(lambda: os.read(pipe, 1 << 16), b""))
        self.said += rest.decode().split("\n")[:-1]
        os.close(pipe)
        del self.writers[pid]

    def edit(self) -> None:
        """Change the note as a person would, by a new file or within the file."""
        text = self.path.read_text()
        is_there = f"\nnote: {self.note}\n" in text
        self.again += not is_there  # it came between a vacuum's last look and its renaming
        self.note += is_there
        text = re.sub(r"\bnote: \d+\n", f"note: {self.note}\n", text, count=1)
        time.sleep(self.chance.choice([0.0, 0.002]))
        if self.chance.random() < 0.5:
            new = self.path.with_name("x.state.new")
            new.write_text(text)
            new.replace(self.path)
        else:
            self.path.write_text(text)

    def run(self, kills: int) -> None:
        """Let them write, and kill them."""
        for _ in range(WRITERS):
            self.start()
        for round_ in range(kills):
            time.sleep(10 ** self.chance.uniform(-3.5, -1.5))
            if round_ % 5 == 4:
                self.edit()
                time.sleep(self.chance.choice([0.0, 0.01, 0.2]))
            self.listen()
            self.end(self.chance.choice(list(self.writers)))
            self.start()
        end = time.monotonic() + PATIENCE
        while f"\nnote: {self.note}\n" not in self.path.read_text() and time.monotonic() < end:
            time.sleep(0.5)
            self.edit()
        for pid in list(self.writers):
            self.end(pid)

    def outcome(self) -> dict[str, object]:
        """Compare what was acknowledged with what is there."""
        with PersistedState(self.path, _shared=True) as state:
            state.vacuum()
        found = oracle.read(self.path, oracle.FASTEST)
        said = Counter(self.said)
        ids = Counter(found["ids"])
        lost = [line for line in said if line.startswith("id ") and ids[line[3:]] != 1]
        keys = [line.split() for line in said if line.startswith("key ")]
        lost += [" ".join(key) for key in keys if key[2] not in found["by_writer"].get(key[1], {})]
        for name in ("total", "counter"):
            lost += [f"{name} {found[name]}"] * (found[name] < max(number(said, name), default=0))
        return {
            "kills": self.born - WRITERS,
            "acknowledged": len(self.said),
            "edits": self.note,
            "again": self.again,
            "failed": self.failed,
            "lost": lost[:5],
            "twice": [line for line, times in said.items() if times > 1][:5]
            + [name for name, times in ids.items() if times > 1][:5],
            "unmerged": found["note"] != self.note,
            "left": sorted(entry.name for entry in self.path.parent.iterdir() if entry.name != "x.state"),
        }


def number(said: Counter[str], name: str) -> list[int]:
    return [int(line.split()[1]) for line in said if line.startswith(f"{name} ")]


def main() -> None:
    folder, seed, kills = sys.argv[1:]
    sharing = Sharing(Path(folder), seed)
    sharing.run(int(kills))
    print(json.dumps(sharing.outcome()), flush=True)


if __name__ == "__main__":
    main()
