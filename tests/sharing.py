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
        state = PersistedState(path, _shared=True)
        number = 0
        while True:
            number += 1
            kind = chance.choice(["both", "both", "append", "plain", "nested", "reopen"][: None if number % 50 else 5])
            said = ""
            if kind == "both":
                with state.transaction():
                    state.total += 1
                    state.ids.append(f"{name}-{number}")
                    said = f"total {state.total}\nid {name}-{number}\n"
            elif kind == "append":
                state.ids.append(f"{name}-{number}")
                said = f"id {name}-{number}\n"
            elif kind == "plain":
                value = increment(state)
                said = f"counter {value}\n"
            elif kind == "nested":
                state.by_writer.setdefault(name, {})[f"k{number}"] = number
                said = f"key {name} k{number}\n"
            else:
                state.close()
                state = PersistedState(path, _shared=True)
            os.write(pipe, said.encode())
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


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
        self.born, self.note, self.failed = 0, 0, 0

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
        for pid, (pipe, rest) in list(self.writers.items()):
            while select.select([pipe], [], [], 0)[0] and (data := os.read(pipe, 1 << 16)):
                rest += data
            *lines, rest = rest.split(b"\n")
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
        if not text.startswith(f"# by hand\nnote: {self.note}\n"):
            return  # the last one is not merged yet
        self.note += 1
        text = text.replace(f"note: {self.note - 1}\n", f"note: {self.note}\n", 1)
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
                time.sleep(self.chance.choice([0.0, 0.01, 0.15]))
            self.listen()
            self.end(self.chance.choice(list(self.writers)))
            self.start()
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
