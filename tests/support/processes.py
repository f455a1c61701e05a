"""What the tests of locks, crashes and file systems share: other processes, and a look at each moment of a call."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import os
import select
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import persistedstate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import CodeType, FrameType

#: Seconds after which a child that does not answer counts as hanging. Nothing here needs more than a few.
PATIENCE = 60.0

#: The functions that change a file or a folder.
WRITE_CALLS = ("write", "pwrite", "writev", "pwritev", "ftruncate", "truncate", "replace", "rename")

#: Become a user without privileges; all that is imported later must be readable for that user, so import it first.
DROP_PRIVILEGES = """
import os, sys, tempfile, traceback, warnings
import portalocker, ruamel.yaml, yaml
import persistedstate
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


class Child:
    """A Python process that talks to the test by lines: it prints, and reads from its standard input."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._unread = b""
        self.pid = self._process.pid

    def line(self) -> str:
        """Return the next line that the child prints; fail with its errors when it ends or hangs instead."""
        assert self._process.stdout is not None
        end = time.monotonic() + PATIENCE
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                self._process.kill()
                _, errors = self._process.communicate()
                msg = f"the child {'ended' if ready else 'hangs'}: {self._unread!r}\n{errors.decode(errors='replace')}"
                raise AssertionError(msg)
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def expect(self, line: str) -> None:
        """Fail unless the next line is `line`."""
        assert self.line() == line

    def tell(self, line: str = "go") -> None:
        """Send a line to the child."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def send_signal(self, number: int) -> None:
        """Send a signal to the child."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the child by SIGKILL and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in self._process.stdin, self._process.stdout, self._process.stderr:
            assert pipe is not None
            pipe.close()

    def finish(self, code: int = 0) -> None:
        """Close the child's standard input and wait until it ends with exit code `code`."""
        _, errors = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == code, errors.decode(errors="replace")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def in_child(action: Callable[[], object]) -> str:
    """Return what an action in a forked child returns, or raises, as text."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = repr(action())
        except BaseException as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def at_each_moment(action: Callable[[], object], look: Callable[[], object]) -> None:
    """Run `action`, and `look` after every C function that it calls: no system call passes unseen.

    A look at a file shows what a crash, a copy or another process would find there at that moment.
    """

    def profile(_frame: FrameType, event: str, _function: Any) -> None:
        if event in {"c_return", "c_exception"}:
            look()

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)


def count_calls(action: Callable[[], object], names: Iterable[str]) -> int:
    """Run `action` and count the functions of `os`, and methods of file objects, of these names that it calls."""
    wanted, seen = frozenset(names), 0

    def profile(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal seen
        if event == "c_call" and function.__name__ in wanted:
            home = getattr(function, "__self__", None)  # str.replace is no system call
            seen += "posix" in {getattr(home, "__name__", ""), function.__module__} or type(home).__module__ == "_io"

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return seen


def contents_at_each_moment(path: Path, action: Callable[[], object]) -> list[bytes]:
    """Run `action` and return the distinct contents that the file at `path` has meanwhile, in order."""
    seen = [path.read_bytes()]

    def look() -> None:
        content = path.read_bytes()
        if content != seen[-1]:
            seen.append(content)

    at_each_moment(action, look)
    look()
    return seen


def listing(folder: Path) -> list[str]:
    """Return the sorted names in the folder."""
    return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths


def interrupt_at(number: int, action: Callable[[], object], files: Iterable[str]) -> bool:
    """Run `action` as if Ctrl-C came before the `number`-th instruction that code from the `files` executes in it.

    Returns whether it came to that; an action that ends before runs as ever. The points are a superset of those where
    the interpreter looks for signals.
    """
    interrupt = _interrupt_by_monitoring if sys.version_info >= (3, 12) else _interrupt_by_tracing
    countdown = _Countdown(number)
    with contextlib.suppress(KeyboardInterrupt), _uncollected():
        interrupt(countdown.step, action, frozenset(files))
    return countdown.left <= 0


def interrupt_after_call(number: int, action: Callable[[], object]) -> bool:
    """Run `action` as if Ctrl-C came within the `number`-th C function that it calls, and took effect behind it."""
    countdown = _Countdown(number)
    with contextlib.suppress(KeyboardInterrupt), _uncollected():
        at_each_moment(action, countdown.step)
    return countdown.left <= 0


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector out of it: hypothesis has functions called by it, which no interrupt shall hit."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Countdown:
    def __init__(self, left: int) -> None:
        self.left = left

    def step(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def _interrupt_by_tracing(
    step: Callable[[CodeType, int], None],
    action: Callable[[], object],
    files: frozenset[str],
    only: CodeType | None = None,
) -> None:
    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if event == "call":
            frame.f_trace_opcodes = code.co_filename in files if only is None else code is only
            return trace if frame.f_trace_opcodes else None
        if event == "opcode":
            step(code, frame.f_lasti)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
        _free_registry()


def _interrupt_by_monitoring(
    step: Callable[[CodeType, int], None],
    action: Callable[[], object],
    files: frozenset[str],
    only: CodeType | None = None,
) -> None:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    tool, instruction = 4, monitoring.events.INSTRUCTION

    def callback(code: CodeType, offset: int) -> Any:
        if code.co_filename not in files or offset in _end_of_generator(code):
            return monitoring.DISABLE
        step(code, offset)
        return None

    def watch(events: int) -> None:
        if only is None:
            monitoring.set_events(tool, events)
        else:
            monitoring.set_local_events(tool, only, events)

    monitoring.use_tool_id(tool, "interrupts")
    monitoring.register_callback(tool, instruction, callback)
    watch(instruction)
    try:
        action()
    finally:
        watch(0)
        monitoring.register_callback(tool, instruction, None)
        monitoring.free_tool_id(tool)
        _free_registry()


@functools.cache
def _end_of_generator(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions by which a generator ends that is thrown away; they stand on no line.

    No signal is handled there, and what an interrupt of these tests raises there would go nowhere.
    """
    if not code.co_flags & inspect.CO_GENERATOR:
        return frozenset()
    positions = code.co_positions()  # type: ignore[attr-defined,unused-ignore]
    return frozenset(2 * number for number, (line, *_) in enumerate(positions) if line is None)


def _free_registry() -> None:
    """Let other threads open states again.

    Among the instructions that leave a `with` no signal is handled, but the interrupts of these tests come there, too,
    and then its lock is held for ever.
    """
    persistedstate._registry_lock = threading.RLock()
