"""Cycles of real power loss on a file system in an image; a script for root, inside of `unshare -m`.

    unshare -m python power_loss.py FOLDER SEED CYCLES ext4|xfs [MOUNT OPTIONS]

Each cycle mounts the image, forks a writer, shuts the file system down without flushing its log (an ioctl), and mounts
it again: what is there then is what a disk would hold after the power went. The state must be what it was after one of
the steps, and not before the last step that was on the disk by the promise of its level of `_fsync`. What is
acknowledged comes down a pipe. The last line that is printed is the outcome as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fcntl
import json
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import oracle
from workload import Step, Workload

import persistedstate
from persistedstate import PersistedState, StateCorrupt, plain

#: FS_IOC_SHUTDOWN, and the flag that says: without a flush of the log.
SHUTDOWN, NO_FLUSH = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125, struct.pack("I", 2)
#: The writer tells (kind, number): "a step was acknowledged", "all up to that step is on the disk", "no more steps".
MESSAGE = struct.Struct("<cI")
STEP, SYNCED, STOPPED = b"s", b"d", b"e"
PATIENCE = 60.0
IMAGE_SIZE = 32 << 20
LEVELS: list[bool | float] = [False, True, 0.01]
WEIGHTS = {"change": 85, "commit": 8, "abort": 2, "vacuum": 4, "reopen": 1}


@dataclasses.dataclass
class Outcome:
    """How many cycles there were, how many steps were acknowledged in them, and what went wrong."""

    cycles: int = 0
    steps: int = 0
    rolled_back: int = 0
    torn: int = 0
    holes: int = 0
    leftovers: int = 0
    violations: list[str] = dataclasses.field(default_factory=list)


class Disk:
    """An image with a file system that loses its power on request."""

    def __init__(self, folder: Path, kind: str, options: str) -> None:
        self.image, self.folder = folder / "image", folder / "mounted"
        self.options = ",".join(filter(None, ["loop", options]))
        self.folder.mkdir()
        with self.image.open("wb") as image:
            image.truncate(IMAGE_SIZE)
        made = _run("mkfs.ext4", "-q", "-F", "-b", "4096", self.image) if kind == "ext4" else self._make_xfs()
        if made.returncode:
            sys.exit(f"mkfs.{kind}: {made.stderr}")

    def _make_xfs(self) -> subprocess.CompletedProcess[str]:
        """Newer versions say of so small an image that it is unsupported, older ones do not know the word."""
        made = _run("mkfs.xfs", "-q", "-f", "--unsupported", self.image)
        return _run("mkfs.xfs", "-q", "-f", self.image) if made.returncode else made

    def mount(self) -> None:
        mounted = _run("mount", "-o", self.options, self.image, self.folder)
        if mounted.returncode or not self.folder.is_mount():
            sys.exit(f"mount: {mounted.stderr}")

    def unmount(self) -> None:
        done = _run("umount", self.folder)
        if done.returncode or self.folder.is_mount():
            sys.exit(f"umount: {done.stderr}")

    def lose_power(self) -> None:
        """Let nothing more reach the image."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, NO_FLUSH)
        except OSError as error:
            sys.exit(f"shutdown ioctl: {error}")
        finally:
            os.close(folder)

    def commit_metadata(self) -> None:
        """Let sizes and names reach the image, without the data of files that nobody synced."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Writer:
    """A process that goes on with a workload; what it tells is all that is known of it."""

    def __init__(self, path: Path, workload: Workload, level: bool | float, stop_after: int | None) -> None:
        self.ours, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.ours)
            _write(path, workload, level, stop_after, theirs)
        os.close(theirs)
        self.told: dict[bytes, int] = {STEP: -1, SYNCED: -1, STOPPED: -1}

    def listen(self, kind: bytes, number: int) -> None:
        """Wait until the writer told `number`, or more, of that kind, or ended."""
        end = time.monotonic() + PATIENCE
        while self.told[kind] < number and select.select([self.ours], [], [], max(0.0, end - time.monotonic()))[0]:
            if not self._receive():
                return
        if self.told[kind] < number:
            sys.exit(f"the writer told {self.told} and hangs")

    def drain(self) -> dict[bytes, int]:
        """Return what the writer told until now."""
        while select.select([self.ours], [], [], 0)[0] and self._receive():
            pass
        return dict(self.told)

    def end(self) -> None:
        """End the process and take in the rest of what it told."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        while self._receive():
            pass
        os.close(self.ours)

    def _receive(self) -> bool:
        message = os.read(self.ours, MESSAGE.size)  # a pipe takes and gives so few bytes at once
        if message:
            kind, number = MESSAGE.unpack(message)
            self.told[kind] = max(self.told[kind], number)
        return bool(message)


class Machine:
    """Runs the cycles on one disk and one file."""

    def __init__(self, disk: Disk, seed: str) -> None:
        self.disk, self.seed, self.path = disk, seed, disk.folder / "x.state"
        self.link = disk.folder / "other.state"
        self.chance, self.outcome = random.Random(seed), Outcome()
        self.workload: Workload | None = None

    def cycle(self) -> None:
        """Write, lose power, and look."""
        self.outcome.cycles += 1
        level = self.chance.choice(LEVELS)
        if self.workload is None or self.outcome.cycles % 10 == 0:
            self._begin_anew()
        assert self.workload is not None
        first, history = self.workload.number, copy.deepcopy(self.workload)
        is_new = first == 0
        self.disk.mount()
        told, last = self._write_until_power_is_lost(level)
        self.disk.unmount()
        self.disk.mount()
        steps = _history(history, last + 1)
        self.outcome.steps += max(0, last - first)
        low = _promised(steps, first, told, level=level)
        if told[STEP] < first and is_new:  # the file was about to be made
            steps.insert(0, (0, "none", {}))
        self._check(steps, low, level)
        self.disk.unmount()

    def _begin_anew(self) -> None:
        """Let the next writer make a file; or fill one with two names, which is rewritten in its place."""
        self.disk.mount()
        for path in self.path, self.link:
            path.unlink(missing_ok=True)
        if self.chance.random() < 0.3:
            self.path.touch()
            os.link(self.path, self.link)
        self.disk.commit_metadata()
        self.disk.unmount()
        self.workload = Workload(f"{self.seed} {self.outcome.cycles}", weights=WEIGHTS)

    def _write_until_power_is_lost(self, level: bool | float) -> tuple[dict[bytes, int], int]:
        """Return what the writer told before, and the last step that it told of at all.

        What it tells while the power goes is no acknowledgement: the kernel lives on, and may let an fsync succeed that
        a loss of power would have cut short.
        """
        assert self.workload is not None
        first = self.workload.number
        stop_after = self.chance.choice([None, first + self.chance.randint(1, 80)])
        writer = Writer(self.path, self.workload, level, stop_after)
        try:
            if stop_after is None:
                if self.chance.random() < 0.9:
                    writer.listen(STEP, first)
                time.sleep(self.chance.uniform(0, 0.02))
            else:
                writer.listen(STOPPED, first)
                if level and not isinstance(level, bool):
                    writer.listen(SYNCED, writer.told[STEP])
                elif self.chance.random() < 0.5:
                    self.disk.commit_metadata()
            told = writer.drain()
            self.disk.lose_power()
        finally:
            writer.end()
        return told, writer.told[STEP]

    def _check(self, steps: list[tuple[int, str, dict[str, Any]]], low: int, level: bool | float) -> None:
        """The file must open to the state after some step, not before `low`, and to the same again."""
        what = f"cycle {self.outcome.cycles} of {self.disk.options}, _fsync={level}"
        data = self.path.read_bytes() if self.path.exists() else b""
        self.outcome.leftovers += len(list(self.disk.folder.glob(".x.state.*.tmp")))
        try:
            found = self._opened()
        except StateCorrupt as error:
            is_hole = level is False and b"\0" in data and self.path.read_bytes() == data
            self.outcome.holes += is_hole
            if not is_hole:
                self.outcome.violations.append(f"{what}: {error}; {data[-1000:]!r}")
            self.workload = None
            return
        fitting = [number for number, _, model in steps if oracle.same(model, found)]
        if not fitting or max(fitting) < low:
            self.outcome.violations.append(
                f"{what}: not before step {low}, up to {steps[-1][0]}, but {fitting}: {found}; {data[-2000:]!r}"
            )
            self.workload = None
            return
        self.outcome.rolled_back += steps[-1][0] - max(fitting) > 1
        again = self._opened()
        if not (oracle.same(again, found) and oracle.same(oracle.read(self.path), found)):
            self.outcome.violations.append(f"{what}: opened again: {again}")
        names = {entry.name for entry in self.disk.folder.iterdir()} - {"lost+found", "other.state"}
        if names != {"x.state"}:
            self.outcome.violations.append(f"{what}: left {names}")
        self._go_on_from(max(fitting))

    def _go_on_from(self, number: int) -> None:
        """Let the model be where the file is."""
        assert self.workload is not None
        self.workload.take(number - self.workload.number)
        if not oracle.same(self.workload.model, self._opened()):  # a new file that was not yet filled
            self.workload = None

    def _opened(self) -> Any:
        with warnings.catch_warnings(record=True) as caught, contextlib.closing(PersistedState(self.path)) as state:
            found = plain(state)
        self.outcome.torn += bool(caught)
        return found


def _history(workload: Workload, last: int) -> list[tuple[int, str, dict[str, Any]]]:
    """Return number, kind and model of each step up to the last one."""
    steps = [(workload.number, "start", copy.deepcopy(workload.model))]
    while workload.number < last:
        step: Step = workload.draw()
        steps.append((workload.number, step.kind, copy.deepcopy(workload.model)))
    return steps


def _promised(
    steps: list[tuple[int, str, dict[str, Any]]], first: int, told: dict[bytes, int], *, level: bool | float
) -> int:
    """Return the first step that the state may be after.

    A vacuum and a closing are on the disk whatever the level; what an earlier cycle showed after its loss of power is,
    too. A change is, with True, when it was acknowledged.
    """
    renewed = [number for number, kind, _ in steps if number <= told[STEP] and kind in {"vacuum", "reopen"}]
    return max([first, told[SYNCED], *renewed, *([told[STEP]] if level is True else [])])


def _write(path: Path, workload: Workload, level: bool | float, stop_after: int | None, pipe: int) -> None:
    """Go on with the workload, and tell what was done; ends with the process."""

    def tell(kind: bytes, number: int) -> None:
        os.write(pipe, MESSAGE.pack(kind, number))

    try:
        warnings.simplefilter("ignore")
        done = [workload.number]
        state = PersistedState(path, _fsync=level, **workload.model)
        persistedstate._system = Watched(path, done, tell)  # type: ignore[assignment]
        tell(STEP, workload.number)
        grown = False
        while stop_after is None or workload.number < stop_after or not grown:
            size, step = path.stat().st_size, workload.draw()
            if step.kind == "reopen":
                state.close()
                state = PersistedState(path, _fsync=level)
            else:
                step.perform(state)
            done[0] = workload.number
            tell(STEP, workload.number)
            grown = path.stat().st_size > size and step.kind in {"change", "commit"}  # something is left to sync
        tell(STOPPED, workload.number)
        signal.pause()
    except OSError:  # the file system is gone
        signal.pause()
    finally:
        os._exit(1)


class Watched:
    """The system, which tells when an fsync of the journal is finished, and what was done before it began."""

    def __init__(self, path: Path, done: list[int], tell: Any) -> None:
        self._real, self._path, self._done, self._tell = persistedstate._system, path, done, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def fsync(self, descriptor: int) -> None:
        done = self._done[0]
        is_journal = os.path.samestat(os.fstat(descriptor), self._path.stat())
        self._real.fsync(descriptor)
        if is_journal:
            self._tell(SYNCED, done)


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def main() -> None:
    if Path("/proc/self/ns/mnt").samefile(f"/proc/{os.getppid()}/ns/mnt"):
        sys.exit("run this by unshare -m: its mounts, and what a failed one leaves, must not be everybody's")
    folder, seed, cycles, kind, *options = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
    machine = Machine(Disk(Path(folder), kind, ",".join(options)), seed)
    try:
        for number in range(1, int(cycles) + 1):
            machine.cycle()
            if number % 10 == 0:
                print(f"{number} cycles", flush=True)
    finally:
        if machine.disk.folder.is_mount():
            _run("umount", "-l", machine.disk.folder)
    print(json.dumps(dataclasses.asdict(machine.outcome)), flush=True)


if __name__ == "__main__":
    main()
