"""Two hands on one file, without real time: a system whose clock moves a saver, and the ways in which people save."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from oracle import same

import persistedstate

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Seconds for which a file must be unchanged before it counts as saved, and as long when its text is doubtful.

QUIET, DOUBTFUL = 0.1, 1.0


class Stage:
    """The system in the eyes of the module, with a clock that stands still until somebody sleeps.

    A saver that plays on it takes its steps when they are due. With `between`, it also takes some between two system
    calls of the module. What time a file says that it was written at goes with the clock.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self._saver: Iterator[float] | None = None
        self._path: Path | None = None
        self._due = 0.0
        self._slept = 0.0
        self._sleeps = 0
        self.between: random.Random | None = None
        #: Seconds by which somebody has set the clock that dates files; what waiting is measured with does not see it.
        self.set_by = 0.0
        #: How often the module asked for which call.
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._real, name)
        self.calls[name] += 1
        if name in {"write", "ftruncate"}:
            call = self._stamping(call)
        if not callable(call) or self.between is None:
            return call

        def after_the_saver(*arguments: Any, **options: Any) -> Any:
            if self.between is not None and self.between.random() < 0.3:
                self.step()
            return call(*arguments, **options)

        return after_the_saver

    def _stamping(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stamped(descriptor: int, *arguments: Any) -> Any:
            try:
                return call(descriptor, *arguments)
            finally:
                self._stamp(descriptor)

        return stamped

    def _stamp(self, file: int | Path) -> None:
        moment = time.time_ns() + int((self._slept + self.set_by) * 1e9)
        os.utime(file, ns=(moment, moment))

    def now(self) -> float:
        return 1000 + self._slept

    def time(self) -> float:
        return time.time() + self._slept + self.set_by

    def sleep(self, seconds: float) -> None:
        self._sleeps += 1
        assert self._sleeps < 200_000, "the module waits for ever"
        end = self._slept + seconds
        while self.is_saving and self._due <= end:
            self._slept = max(self._slept, self._due)
            self.step()
        self._slept = end

    def play(self, path: Path, saver: Iterator[float]) -> None:
        """Take the first step of a save at once, the others when time passes."""
        self._path, self._saver = path, saver
        self.step()

    def step(self) -> None:
        """Take the next step of the save, whether it is due or not."""
        if self._saver is not None and self._path is not None:
            before = _seen(self._path)
            pause = next(self._saver, None)
            if _seen(self._path) not in {before, None}:
                self._stamp(self._path)
            if pause is None:
                self._saver = None
            else:
                self._due = self._slept + pause

    @property
    def is_saving(self) -> bool:
        return self._saver is not None

    def finish(self) -> None:
        """Let the save come to its end."""
        while self.is_saving:
            self.step()


def _seen(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """Put a stage in the place of the module's system."""
    with pytest.MonkeyPatch.context() as patch:
        stage = Stage(persistedstate._system)
        patch.setattr(persistedstate, "_system", stage)
        yield stage


def rename_over(path: Path, data: bytes, *, pause: float = 0.01) -> Iterator[float]:
    """Save as Emacs, GNOME and most libraries do: a new file takes the place of the old."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    yield pause
    new.replace(path)


def move_and_write(path: Path, data: bytes, *, pause: float = 0.01) -> Iterator[float]:
    """Save as vim does: move the old file away, write a new one, remove the old."""
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    yield pause
    yield from in_place(path, data, pause=pause, create=True)
    backup.unlink()


def in_place(path: Path, data: bytes, *, size: int = 64, pause: float = 0.01, create: bool = False) -> Iterator[float]:
    """Save as VS Code and nano do: empty the file and write it anew, in chunks."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | (os.O_CREAT if create else 0), 0o644)
    try:
        for start in range(0, len(data), size):
            yield pause
            rest = memoryview(data)[start : start + size]
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def in_bytes(path: Path, data: bytes, *, pause: float = 0.01) -> Iterator[float]:
    return in_place(path, data, size=1, pause=pause)


def copied(path: Path, data: bytes, *, pause: float = 0.01) -> Iterator[float]:
    """Save as `cp` does, within the same inode."""
    other = path.with_name(f"{path.name}.copy")
    other.write_bytes(data)
    yield pause
    subprocess.run(["cp", other, path], check=True)
    other.unlink()


#: Every way to put a whole text into the file.
WAYS: dict[str, Callable[..., Iterator[float]]] = {
    "rename": rename_over,
    "vim": move_and_write,
    "in place": in_place,
    "by bytes": in_bytes,
    "cp": copied,
}


def appended(path: Path, data: bytes) -> Iterator[float]:
    """Add lines as `echo … >>` does."""
    with path.open("ab") as file:
        file.write(data)
    yield from ()


def by_sed(path: Path, expression: str) -> Iterator[float]:
    """Edit what stands in the file, records and all, with `sed -i`."""
    subprocess.run(["sed", "-i", expression, path], check=True)
    yield from ()


def stripped(path: Path) -> Iterator[float]:
    """Take the last line end away, within the inode."""
    os.truncate(path, len(path.read_bytes().rstrip(b"\n")))
    yield from ()


def deleted(path: Path) -> Iterator[float]:
    """Take the file away."""
    path.unlink()
    yield from ()


def save(path: Path, text: str, way: str = "rename") -> None:
    """Save a text at once."""
    for _ in WAYS[way](path, text.encode()):
        pass


def three_way(base: Any, mine: Any, theirs: Any) -> Any:
    """Merge mappings path by path; what `theirs` changed wins. Lists and scalars are one value each."""
    result = {}
    for key in [*theirs, *(key for key in mine if key not in theirs)]:
        before, own, other = (side.get(key, _ABSENT) for side in (base, mine, theirs))
        if isinstance(before, dict) and isinstance(own, dict) and isinstance(other, dict):
            result[key] = three_way(before, own, other)
        else:
            chosen = own if before is other or same(before, other) else other
            if chosen is not _ABSENT:
                result[key] = chosen
    return result


_ABSENT = object()
