"""What the tests of nodes, values and faults share: looking at a file, a copy that opens, plain results."""

from __future__ import annotations

import contextlib
import functools
import operator
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
    """Count the change records in the file; those that tell of the snapshot are none."""
    return sum(line.startswith(b"--- ") and not is_fact(line) for line in path.read_bytes().splitlines())


def is_fact(line: bytes) -> bool:
    """Tell whether a line is a record that tells what the snapshot has."""
    return line.startswith((b'--- ["was",', b'--- ["hash",'))


def without_facts(data: bytes) -> bytes:
    """Return a file's content without the records that tell what the snapshot has."""
    return b"".join([line for line in data.splitlines(keepends=True) if not is_fact(line)])


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


Place = tuple[Any, ...]


def containers(state: Any) -> list[tuple[Place, Any]]:
    """Return a state, and every container in it, each with its path."""
    found: list[tuple[Place, Any]] = [((), state)]
    for place, node in found:
        for key, item in enumerate(node) if isinstance(node, StateList) else node.items():
            if isinstance(item, StateDict | StateList):
                found.append(((*place, key), item))
    return found


def write_to(container: Any, value: object) -> None:
    """Change a container, plain or not, in a way that moves nothing."""
    if isinstance(container, list | StateList):
        container.append(value)
    else:
        container["written"] = value


class Hand:
    """The containers of a state, held in hand while something happens to it."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self._held = [node for _, node in containers(state)]

    def places(self) -> list[Place | None]:
        """Return where each of them, and no other that equals it, is in the state now; None where it is not."""
        places = {id(node): place for place, node in containers(self.state)}
        return [places.get(id(node)) for node in self._held]

    def check_tracked(self, path: Path, where: object = None) -> None:
        """Assert that what is written to any container of the state is in the file, and what to others is not."""
        expected = plain(self.state)
        for number, (place, node) in enumerate(containers(self.state)):
            write_to(node, number)
            write_to(functools.reduce(operator.getitem, place, expected), number)
        for node, now in zip(self._held, self.places(), strict=True):
            if now is None:
                write_to(node, "lost")
        assert oracle.same(plain(self.state), expected), where
        assert oracle.same(oracle.read(path, oracle.FASTEST), expected), where


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
