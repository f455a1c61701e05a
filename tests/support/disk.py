"""What the suites of crashes, power losses and failing calls share: workloads, a log of what they do to a folder,
and the oracle for what is found in a folder afterwards.

A `Workload` is a list of steps; each runs on a state as on a plain dict, so that what must be in the file is known
without the module. `record` runs one with a `Recorder` in the place of `persistedstate._system` and returns every call
that changed the folder, together with how many steps had begun (`issued`) and returned (`acked`) by then. From that log
any moment of the folder can be built anew, without running anything again.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import os
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import checks
import oracle

import persistedstate
from persistedstate import PersistedState, StateClosed, StateError, plain

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

#: The state file of every workload, and a hard link to it that one of them has.
NAME, LINK = "x.state", "second name"
#: Calls of the seam that leave a folder as it is.
HARMLESS = frozenset(
    [
        "read",
        "lseek",
        "fstat",
        "stat",
        "lstat",
        "listdir",
        "lock",
        "unlock",
        "fchown",
        "listxattr",
        "getxattr",
        "now",
        "sleep",
    ]
)

# ---- Folders ----

#: All that is in a folder: the sorted names of each file, its content and its permissions.
Image = frozenset[tuple[tuple[str, ...], bytes, int]]


class Folder:
    """Files in memory, as a file system sees them: names, and numbered files with several names or none."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.contents: dict[int, bytes] = {}
        self.modes: dict[int, int] = {}

    @classmethod
    def of(cls, files: Mapping[str, bytes], *, linked: bool = False) -> Folder:
        """Return a folder with these files; `linked` gives the state file a second name."""
        folder = cls()
        for number, (name, content) in enumerate(files.items()):
            folder.names[name], folder.contents[number], folder.modes[number] = number, content, 0o644
        if linked:
            folder.names[LINK] = folder.names[NAME]
        return folder

    def copied(self) -> Folder:
        """Return a folder that changes by itself."""
        folder = Folder()
        folder.names, folder.contents, folder.modes = dict(self.names), dict(self.contents), dict(self.modes)
        return folder

    def image(self) -> Image:
        """Return what can be seen by somebody who looks into the folder."""
        names: dict[int, list[str]] = {}
        for name, number in self.names.items():
            names.setdefault(number, []).append(name)
        return frozenset(
            (tuple(sorted(found)), self.contents[number], self.modes[number]) for number, found in names.items()
        )


def build(image: Image, folder: Path) -> None:
    """Make the folder hold what the image shows."""
    for entry in folder.iterdir():
        entry.unlink()
    for (name, *links), content, mode in image:
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, mode)
        os.write(descriptor, content)
        os.close(descriptor)
        for link in links:
            os.link(folder / name, folder / link)


def look(folder: Path) -> Image:
    """Return what is in the folder."""
    found: dict[int, tuple[list[str], bytes, int]] = {}
    for entry in os.scandir(folder):
        status = entry.stat(follow_symlinks=False)
        if status.st_ino not in found:
            with open(entry.path, "rb") as file:  # noqa: PTH123 - tens of thousands of times
                found[status.st_ino] = ([], file.read(), status.st_mode & 0o7777)
        found[status.st_ino][0].append(entry.name)
    return frozenset((tuple(sorted(names)), content, mode) for names, content, mode in found.values())


def content_of(image: Image, name: str = NAME) -> bytes:
    """Return the content of one of its files."""
    return next((content for names, content, _ in image if name in names), b"")


def told(image: Image) -> str:
    """Return what to tell of a folder that did not open as it should."""
    return ", ".join(f"{'='.join(names)}: ...{content[-600:]!r}" for names, content, _ in image)


def names_in(image: Image) -> set[str]:
    """Return all names in it."""
    return {name for names, _, _ in image for name in names}


# ---- The log ----


class Call(NamedTuple):
    """A call that changes a folder or makes a change last, and how far the workload had come at its begin.

    kind: create, write, cut, rename, remove, mode, sync (of a file) or sync folder.
    """

    kind: str
    file: int = -1
    name: str = ""
    new_name: str = ""
    offset: int = 0
    data: bytes = b""
    mode: int = 0
    acked: int = 0
    issued: int = 0
    time: float = 0.0

    def apply(self, folder: Folder, length: int | None = None) -> None:
        """Do to the folder what the call did; of a write only the first `length` bytes."""
        if self.kind == "create":
            folder.names[self.name] = self.file
            folder.contents[self.file], folder.modes[self.file] = b"", self.mode
        elif self.kind == "write":
            folder.contents[self.file] = overwritten(folder.contents[self.file], self.offset, self.data[:length])
        elif self.kind == "cut":
            folder.contents[self.file] = folder.contents[self.file][: self.offset].ljust(self.offset, b"\0")
        elif self.kind == "rename":
            folder.names[self.new_name] = folder.names.pop(self.name)
        elif self.kind == "remove":
            del folder.names[self.name]
        elif self.kind == "mode":
            folder.modes[self.file] = self.mode


def overwritten(content: bytes, offset: int, data: bytes) -> bytes:
    """Return the content after a write of `data` at `offset`; what was never written there reads as NULs."""
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :] if data else content


class Clock:
    """A time that passes only when somebody sleeps; fires the timers that become due meanwhile."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._began = time.time() - self.time
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        """Stand for `time.monotonic`."""
        return self.time

    def wall(self) -> float:
        """Stand for `time.time`, by which files are dated."""
        return self._began + self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass, and what is due in it happen."""
        end = self.time + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=operator.itemgetter(0))
            self.timers.remove(timer)
            self.time = max(self.time, timer[0])
            timer[1]()
        self.time = end

    def later(self, seconds: float, _at_once: threading.Event, function: Callable[[], object]) -> None:
        """Stand for a thread that waits."""
        self.timers.append((self.time + seconds, function))


class Recorder:
    """A system that does what the real one does, and notes what changes the folder."""

    def __init__(self, folder: Path, files: Folder) -> None:
        self._real = persistedstate._system
        self._path = str(folder)
        #: Which file each descriptor is; None for the folder.
        self._descriptors: dict[int, int | None] = {}
        self._appending: set[int] = set()
        self.files = files
        self.log: list[Call] = []
        self.acked = self.issued = 0
        self.clock = Clock()
        self.now, self.sleep, self.time = self.clock.now, self.clock.sleep, self.clock.wall
        self.later = self.clock.later

    def __getattr__(self, name: str) -> Any:
        if name not in HARMLESS:
            msg = f"tests/disk.py does not know what {name} does to a folder"
            raise NotImplementedError(msg)
        return getattr(self._real, name)

    def _note(self, kind: str, **details: Any) -> None:
        call = Call(kind, **details, acked=self.acked, issued=self.issued, time=self.clock.time)
        call.apply(self.files)
        self.log.append(call)

    def _base(self, path: Any) -> str:
        folder, base = os.path.split(str(path))
        assert folder == self._path, f"{path} is outside of the folder"
        return base

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        is_folder = str(path) == self._path
        descriptor: int = self._real.open(path, flags, mode)
        if is_folder:
            self._descriptors[descriptor] = None
            return descriptor
        name = self._base(path)
        if name not in self.files.names:
            number = max(self.files.contents, default=-1) + 1
            self._note("create", file=number, name=name, mode=os.fstat(descriptor).st_mode & 0o7777)
        elif flags & os.O_TRUNC:
            self._note("cut", file=self.files.names[name])
        self._descriptors[descriptor] = self.files.names[name]
        if flags & os.O_APPEND:
            self._appending.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        self._real.close(descriptor)
        del self._descriptors[descriptor]
        self._appending.discard(descriptor)

    def dup(self, descriptor: int) -> int:
        twin: int = self._real.dup(descriptor)
        self._descriptors[twin] = self._descriptors[descriptor]
        return twin

    def write(self, descriptor: int, data: Any) -> int:
        number = self._file(descriptor)
        here = os.lseek(descriptor, 0, os.SEEK_CUR)
        offset = len(self.files.contents[number]) if descriptor in self._appending else here
        written: int = self._real.write(descriptor, data)
        self._note("write", file=number, offset=offset, data=bytes(data)[:written])
        return written

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._real.ftruncate(descriptor, size)
        self._note("cut", file=self._file(descriptor), offset=size)

    def fsync(self, descriptor: int) -> None:
        self._real.fsync(descriptor)
        number = self._descriptors[descriptor]
        self._note("sync folder" if number is None else "sync", file=-1 if number is None else number)

    def replace(self, old: Any, new: Any) -> None:
        self._real.replace(old, new)
        name = self._base(old)
        self._note("rename", file=self.files.names[name], name=name, new_name=self._base(new))

    def unlink(self, path: Any) -> None:
        self._real.unlink(path)
        name = self._base(path)
        self._note("remove", file=self.files.names[name], name=name)

    def set_flags(self, descriptor: int, flags: int) -> None:
        self._real.set_flags(descriptor, flags)
        (self._appending.add if flags & os.O_APPEND else self._appending.discard)(descriptor)

    def fchmod(self, descriptor: int, mode: int) -> None:
        self._real.fchmod(descriptor, mode)
        self._note("mode", file=self._file(descriptor), mode=mode)

    def _file(self, descriptor: int) -> int:
        number = self._descriptors[descriptor]
        assert number is not None
        return number


@contextlib.contextmanager
def installed(system: Any) -> Iterator[None]:
    """Put `system` in the place of the module's own."""
    before = persistedstate._system
    persistedstate._system = system
    try:
        yield
    finally:
        persistedstate._system = before


# ---- Workloads ----


class Session:
    """The state of a workload, while it is open."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path, self.options = path, options
        self.state: Any = None

    def open(self, **defaults: Any) -> None:
        """Open the file, whether or not there is something to recover from."""
        assert self.state is None, "open already"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.state = PersistedState(self.path, **self.options, **defaults)

    def close(self) -> None:
        """Close the state, if it is open."""
        state, self.state = self.state, None
        if state is not None:
            state.close()

    def abandon(self) -> None:
        """Leave the file as the death of the process would: nothing more is written."""
        state, self.state = self.state, None
        if state is not None:
            abandon(state)


def abandon(state: PersistedState) -> None:
    """Let the file of a state go without writing anything more, as if its process had died."""
    with contextlib.suppress(StateClosed):
        state._tree.shut(StateError(state._tree.path, "abandoned"))


class Step(NamedTuple):
    """One thing that a program does with a state: what it calls, and what that means for a plain dict."""

    run: Callable[[Session], object]
    model: Callable[[dict[Any, Any]], object] = lambda _: None


def change(function: Callable[[Any], object]) -> Step:
    """Return the step of a single change."""
    return Step(lambda session: function(session.state), function)


def put(key: Any, value: Any) -> Step:
    """Return the step of setting a key."""
    return change(lambda state: state.__setitem__(key, value))


def transaction(*functions: Callable[[Any], object]) -> Step:
    """Return the step of several changes that are one."""

    def run(session: Session) -> None:
        with session.state.transaction():
            for function in functions:
                function(session.state)

    return Step(run, lambda model: [function(model) for function in functions])


def rolled_back(*functions: Callable[[Any], object]) -> Step:
    """Return the step of a transaction that ends in an exception."""

    def run(session: Session) -> None:
        with contextlib.suppress(LookupError), session.state.transaction():
            for function in functions:
                function(session.state)
            raise LookupError

    return Step(run)


def opening(**defaults: Any) -> Step:
    """Return the step of opening the file with these defaults."""
    return Step(
        lambda session: session.open(**defaults),
        lambda model: [model.setdefault(key, value) for key, value in copy.deepcopy(defaults).items()],
    )


VACUUM = Step(lambda session: session.state.vacuum())
#: Let so much time pass that the next change looks whether somebody else wrote the file.
PAUSE = Step(lambda _: persistedstate._system.sleep(0.2))
REFRESH = Step(lambda session: session.state.refresh())
CLOSE = Step(lambda session: session.close())


@dataclass
class Workload:
    """Steps from a folder, in which the state file holds `start`."""

    name: str
    steps: Sequence[Step]
    files: Mapping[str, bytes] = field(default_factory=dict)
    start: Mapping[Any, Any] = field(default_factory=dict)
    linked: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> Workload:
        """Return the same workload with other options for opening."""
        return replace(self, options=options)

    def folder(self) -> Folder:
        """Return the folder at the start."""
        return Folder.of(self.files, linked=self.linked)

    def states(self) -> list[dict[Any, Any]]:
        """Return what the state is after 0, 1, 2, … steps, without the module."""
        states = [copy.deepcopy(dict(self.start))]
        for step in self.steps:
            model = copy.deepcopy(states[-1])
            step.model(model)
            states.append(model)
        return states


class Recording(NamedTuple):
    """What a workload did."""

    workload: Workload
    states: list[dict[Any, Any]]
    log: list[Call]
    #: When each step returned.
    times: list[float]


def record(
    workload: Workload, *, pause: float = 0.0, silence: float = 0.0, recorder: Callable[..., Recorder] = Recorder
) -> Recording:
    """Run the workload and return what it did; `pause` seconds lie behind each step, `silence` behind the last."""
    with checks.scratch() as path:
        build(workload.folder().image(), path.parent)
        system = recorder(path.parent, workload.folder())
        session = Session(path, workload.options)
        times = []
        with installed(system):
            try:
                for number, step in enumerate(workload.steps, 1):
                    system.issued = number
                    step.run(session)
                    system.acked = number
                    times.append(system.clock.time)
                    system.clock.sleep(pause)
                system.clock.sleep(silence)
                system.log.append(Call("end", acked=system.acked, issued=system.issued, time=system.clock.time))
            finally:
                session.abandon()
        assert look(path.parent) == system.files.image()  # nothing was done behind the recorder's back
    return Recording(workload, workload.states(), system.log, times)


# ---- What is found afterwards ----


class Opened(NamedTuple):
    """What opening a folder gave: the state or the refusal, the warnings, and the folder after it."""

    state: dict[Any, Any] | None
    refusal: BaseException | None
    warnings: list[str]
    image: Image


class Recovery:
    """Opens the folders that a fault may leave, in a scratch folder, and checks all that must hold of each.

    What one folder opens to does not depend on how it came about, so each is opened once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._opened: dict[Image, Opened] = {}
        self._sound: set[Image] = set()

    @property
    def distinct(self) -> int:
        """Return how many different folders there were."""
        return len(self._opened)

    def open(self, image: Image) -> Opened:
        """Return what the folder opens to; what was found is checked to be sound from then on."""
        self.count += 1
        if image not in self._opened:
            build(image, self.path.parent)
            opened = self._opened[image] = open_and_abandon(self.path)
            if opened.state is None:
                assert content_of(opened.image) == content_of(image), "a refused file was changed"
            else:
                self._check_cut(image, opened)
                self._check_sound(opened.state, opened.image)
        return self._opened[image]

    def expect(self, image: Image, states: Sequence[dict[Any, Any]], least: int, most: int) -> None:
        """Assert that the folder opens to what it was after `least` to `most` steps."""
        opened = self.open(image)
        assert opened.refusal is None, f"{opened.refusal!r} for {told(image)}"
        assert is_one_of(opened.state, states, least, most), (
            f"{opened.state} is not {states[least : most + 1]}: {image}"
        )

    @staticmethod
    def _check_cut(image: Image, opened: Opened) -> None:
        """Assert that a record that opening dropped is told, with its size; the mark of a rewrite need not be."""
        before, after = content_of(image), content_of(opened.image)
        dropped = before.removeprefix(after) if before.startswith(after) else b""
        if b"#" in dropped:
            assert len(opened.warnings) <= 1
        else:
            assert [f"dropped {len(dropped)} bytes" in warning for warning in opened.warnings] == [True] * bool(dropped)

    def _check_sound(self, state: dict[Any, Any], image: Image) -> None:
        """Assert of a recovered folder that it stays as it is, takes a change, and holds nothing that is left over."""
        if image in self._sound:
            return
        folder = self.path.parent
        assert names_in(image) <= {NAME, LINK}, "something is left over"
        assert oracle.same(read_independently(self.path), state)
        again = open_and_abandon(self.path)
        assert oracle.same(again.state, state), "opened twice, it was another state"
        assert again.image == image, "opened twice, it was another file"
        state = {**state, "added after recovery": [1]}
        with left_open(self.path) as opened:
            opened["added after recovery"] = [1]
        with left_open(self.path) as opened:
            assert oracle.same(plain(opened), state), "what was added after recovery is not there"
            opened.close()
        assert oracle.same(read_independently(self.path), state)
        assert names_in(look(folder)) <= {NAME, LINK}
        self._sound.add(image)


def read_independently(path: Path, reader: str = oracle.FASTEST) -> Any:
    """Return what a reader without the module finds in a file; an empty document changes nothing."""
    snapshot, *changes = list(oracle.READERS[reader](path.read_bytes().decode())) or [None]
    return oracle.replay({} if snapshot is None else snapshot, [change for change in changes if change is not None])


@contextlib.contextmanager
def left_open(path: Path) -> Iterator[PersistedState]:
    """Open a state that its process leaves without closing it."""
    state = PersistedState(path)
    try:
        yield state
    finally:
        abandon(state)


def open_and_abandon(path: Path, expected: type[BaseException] = persistedstate.StateCorrupt) -> Opened:
    """Open a state, look at it, and leave it as the death of the process would."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            state = PersistedState(path)
        except expected as error:
            return Opened(None, error, [str(warning.message) for warning in told], look(path.parent))
        found: dict[Any, Any] = plain(state)
        abandon(state)
    return Opened(found, None, [str(warning.message) for warning in told], look(path.parent))


def is_one_of(state: Any, states: Sequence[dict[Any, Any]], least: int, most: int) -> bool:
    """Tell whether the state is what it was after `least` to `most` steps."""
    return any(oracle.same(state, states[number]) for number in range(least, most + 1))
