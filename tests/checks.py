"""What the tests of nodes, values and faults share: looking at a file, a copy that opens, plain results."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import strict_reader

from persistedstate import PersistedState, StateDict, StateList, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Memory, where the machine has it: an fsync per example would be most of the time of the random tests.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - only as a parent


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give the path of a state file that does not exist yet, in a folder of its own that goes away."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        yield Path(folder) / "x.state"


def records(path: Path) -> int:
    """Count the change records in the file."""
    return sum(line.startswith(b"--- ") for line in path.read_bytes().splitlines())


def reopened(path: Path) -> dict[Any, Any]:
    """Return what `PersistedState` makes of a copy of the file, as if its writer had died just now."""
    with scratch() as copy:
        shutil.copyfile(path, copy)
        state = PersistedState(copy)
        try:
            found: dict[Any, Any] = plain(state)
        finally:
            state.close()
    return found


def check(state: PersistedState, path: Path, expected: dict[Any, Any], reader: str = "pyyaml") -> None:
    """Assert that memory, a copy of the file, and the file in the eyes of another reader hold `expected`."""
    assert oracle.same(plain(state), expected)
    assert oracle.same(reopened(path), expected)
    assert oracle.same(oracle.read(path, reader), expected)
    strict_reader.assert_valid(b"", path.read_bytes(), expected)


def unwrap(value: Any) -> Any:
    """Return `value`, the result of some method, with plain containers in place of nodes."""
    if isinstance(value, StateDict | StateList | PersistedState):
        return plain(value)
    if isinstance(value, list | tuple):
        return type(value)(map(unwrap, value))
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    return value


def run_child(code: str, *arguments: object) -> str:
    """Run `code` in another process, which must end with exit code 0, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
