"""Suite E: every system call of five workloads fails, once or from then on.

A call fails with each error that it may meet, before or after it took effect; a write may also take only a part of its
data. A second fault may hit while the first is dealt with, and while the file is opened.

Promise: a statement works, or raises OSError. What it did is in memory and in the file or in none of both (after a
second fault, or one that stays, the file is as before or as after the statement). When the fault is over, the next
change works and everything acknowledged is in the file. No descriptor and no file is left over.
"""

from __future__ import annotations

import copy
import errno
import functools
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import checks
import disk
import oracle
import pytest
from disk import CLOSE, LINK, NAME, REFRESH, VACUUM, Workload, change, opening, put, rolled_back, transaction
from rounds import QUICK, SHARE, rounds

import persistedstate
from persistedstate import plain

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

DESCRIPTORS = Path("/proc/self/fd")
#: A workload makes fewer calls than this, unless it does not end.
TOO_MANY = 5000

#: With what every call may fail.
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EMFILE]
#: With what else some may.
MORE_ERRORS = {
    **dict.fromkeys(["open", "read", "write", "fsync", "ftruncate", "close"], errno.EINTR),
    "lock": errno.ENOLCK,
}
#: What may take effect and say that it failed.
MAY_TAKE_EFFECT = frozenset(["write", "fsync", "ftruncate", "replace", "unlink", "fchmod"])
#: They only tell or pass time.
NEVER_FAIL = frozenset(["now", "sleep", "time"])


class Fault(NamedTuple):
    """What happens to the call number `at`; `stays`: and to all later ones of its name."""

    at: int
    code: int = 0
    stays: bool = False
    takes_effect: bool = False
    #: Of a write: so many bytes are written, and that is no error.
    taken: int | None = None


class Failing:
    """A system that does what the real one does, except for the calls that are to fail."""

    def __init__(self, *faults: Fault) -> None:
        self._real = persistedstate._system
        self._faults = list(faults)
        self._staying: dict[str, Fault] = {}
        self.clock = disk.Clock()
        self.now, self.sleep, self.time = self.clock.now, self.clock.sleep, self.clock.wall
        self.later = self.clock.later
        #: The calls so far, with the sizes of writes.
        self.calls: list[tuple[str, int]] = []
        self.failures = 0

    def mend(self) -> None:
        """Let no call fail from now on."""
        self._faults, self._staying = [], {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            fault = self._next_fault(name, len(arguments[1]) if name == "write" else 0)
            return real(*arguments) if fault is None else self._fail(fault, name, real, arguments)

        return call

    def _next_fault(self, name: str, size: int) -> Fault | None:
        number = len(self.calls)
        if number == TOO_MANY:
            self.mend()
        self.calls.append((name, size))
        for fault in self._faults:
            if fault.at == number:
                if fault.stays:
                    self._staying[name] = fault
                return fault
        return self._staying.get(name)

    def _fail(self, fault: Fault, name: str, real: Any, arguments: Any) -> Any:
        self.failures += 1
        if fault.taken is not None and name == "write":
            descriptor, data = arguments
            return real(descriptor, bytes(data)[: fault.taken]) if fault.taken else 0
        if (
            fault.takes_effect and name in MAY_TAKE_EFFECT
        ) or name == "close":  # a descriptor is gone, even if closing it fails
            real(*arguments)
        raise OSError(fault.code or errno.EIO, os.strerror(fault.code or errno.EIO))


# ---- Workloads ----

START = b"# a comment\na: 1   # beside it\nl:\n- 1\n- 2\n"
START_STATE = {"a": 1, "l": [1, 2]}
TEMPORARY = f".{NAME}.4711-0123abcd.tmp"


def new_file() -> Workload:
    steps = [
        opening(a=1, l=[1, 2]), put("a", 2), change(lambda state: state["l"].append({"x": "é"})), CLOSE,
        opening(a=0, b="later"), REFRESH, change(lambda state: state.pop("a")), CLOSE,
    ]  # fmt: skip
    return Workload("new file", steps)


def synced() -> Workload:
    steps = [
        opening(), put("a", "long " * 30),
        transaction(lambda state: state["l"].clear(), lambda state: state.update(b=2)),
        rolled_back(lambda state: state.update(c=3)), change(lambda state: state["l"].extend([3, 2, 1])),
        VACUUM, change(lambda state: state["l"].sort()), put("b", None), CLOSE,
    ]  # fmt: skip
    return Workload("synced", steps, {NAME: START}, START_STATE, options={"_fsync": True})


def rewrite() -> Workload:
    steps = [
        opening(), put("a", "longer than before " * 5), VACUUM,
        change(lambda state: state.update(a=2, b=3)), change(lambda state: state["l"].insert(0, [])), VACUUM,
        change(lambda state: state.pop("l")), CLOSE,
    ]  # fmt: skip
    return Workload("rewrite within the file", steps, {NAME: START}, START_STATE, linked=True)


def recovery() -> Workload:
    torn = START + b'--- ["set",[],"a",2]\n--- ["set",[],"a",'
    steps = [opening(c=1), put("a", 3), VACUUM, put("b", 4), CLOSE, opening(), put("a", 5)]
    return Workload("recovery", steps, {NAME: torn, TEMPORARY: b"half"}, {**START_STATE, "a": 2})


def half_rewrite() -> Workload:
    half = START + b'--- ["set",[],"a",2]\n\n--- # LAST VALID STATE: %d bytes\n%b' % (len(START), START)
    steps = [opening(), put("a", 3), change(lambda state: state["l"].append(3)), CLOSE]
    return Workload("recovery of a rewrite", steps, {NAME: half}, START_STATE, linked=True)


WORKLOADS = {workload.name: workload for workload in (new_file(), synced(), rewrite(), recovery(), half_rewrite())}

# ---- Running them ----


class Run:
    """Runs a workload while calls fail, and asserts the promise after each step from the first failure on."""

    def __init__(self, workload: Workload, path: Path, faults: tuple[Fault, ...]) -> None:
        disk.build(workload.folder().image(), path.parent)
        self.workload, self.path = workload, path
        self.session = disk.Session(path, workload.options)
        self.system = Failing(*faults)
        #: While a fault stays, a statement that raised may have had its effect on the file, and that be found later.
        self.is_lasting = len(faults) > 1 or any(fault.stays for fault in faults)
        self.hand: checks.Hand | None = None
        #: What the state may be.
        self.possible: list[dict[Any, Any]] = [copy.deepcopy(dict(workload.start))]

    def all_steps(self) -> None:
        """Run every step; whatever fails, mend the system at the end and see that all is well."""
        descriptors = count_descriptors()
        try:
            with disk.installed(self.system), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                for step in self.workload.steps:
                    self._step(step)
                self.system.mend()
                self._end()
        finally:
            self.session.abandon()
        assert count_descriptors() == descriptors, "a descriptor is left open"
        assert len(self.system.calls) < TOO_MANY, "tried again and again"

    def _step(self, step: disk.Step) -> None:
        is_opening = self.session.state is None
        self._take_in_hand()
        for is_last_try in (False, False, True) if is_opening else (True,):
            after = [self._model(step, state) for state in self.possible]
            if is_opening and is_last_try:
                self.system.mend()
            try:
                step.run(self.session)
            except OSError:
                self._settle([*self.possible, *after])
                assert not is_opening or not is_last_try, "does not open, though nothing fails"
            else:
                self._settle(after, worked=True)
                return

    @staticmethod
    def _model(step: disk.Step, state: dict[Any, Any]) -> dict[Any, Any]:
        after = copy.deepcopy(state)
        step.model(after)
        return after

    def _settle(self, possible: list[dict[Any, Any]], *, worked: bool = False) -> None:
        """Assert that memory and file are what they may be; go on with what they are, or may be."""
        is_open, is_strict = self.session.state is not None, worked or not self.is_lasting
        if is_open:
            memory = plain(self.session.state)
            assert is_among(memory, possible), f"{memory} in memory, not one of {possible}"
        if self.system.failures:
            found = self._in_file()
            assert is_among(found, possible), f"{found} in the file, not one of {possible}"
            if is_open and is_strict:
                assert oracle.same(found, memory), f"{found} in the file, but {memory} in memory"
        if is_strict and (is_open or self.system.failures):
            possible = [memory if is_open else found]
        self.possible = [state for number, state in enumerate(possible) if not is_among(state, possible[:number])]

    def _in_file(self) -> Any:
        """Return what the file holds, were it opened now."""
        with disk.installed(self.system._real):
            return opened(self.path.read_bytes() if self.path.exists() else b"")

    def _take_in_hand(self) -> checks.Hand | None:
        """Hold what a file was opened to, through all that fails."""
        state = self.session.state
        if state is not None and (self.hand is None or self.hand.state is not state):
            self.hand = checks.Hand(state)
        return self.hand

    def _end(self) -> None:
        if self.session.state is None:
            self.session.open()
        self.session.state["at the end"] = True
        self._settle([{**state, "at the end": True} for state in self.possible], worked=True)
        hand = self._take_in_hand()
        assert hand is not None
        hand.check_tracked(self.path)
        self.possible = [plain(self.session.state)]
        self.session.close()
        assert oracle.same(disk.read_independently(self.path), self.possible[0])
        self.session.open()
        assert oracle.same(plain(self.session.state), self.possible[0])
        self.session.close()
        names = disk.names_in(disk.look(self.path.parent))
        assert names == ({NAME, LINK} if self.workload.linked else {NAME}), names


@functools.cache
def opened(content: bytes) -> Any:
    """Return what a file opens to; most faults leave one that another fault left before."""
    with checks.scratch() as path:
        path.write_bytes(content)
        found = disk.open_and_abandon(path)
    assert found.refusal is None, f"{found.refusal} {content!r}"
    return found.state


def is_among(state: Any, possible: list[dict[Any, Any]]) -> bool:
    return any(oracle.same(state, other) for other in possible)


def count_descriptors() -> int:
    return sum(1 for _ in DESCRIPTORS.iterdir()) if DESCRIPTORS.is_dir() else 0


def calls_of(workload: Workload) -> list[tuple[str, int]]:
    """Return the calls that a workload makes when none fails, and asserts that it works then."""
    with checks.scratch() as path:
        run = Run(workload, path, ())
        run.all_steps()
    return run.system.calls


def faults_of(number: int, name: str, size: int) -> Iterator[Fault]:
    """Return every way in which a call can fail."""
    for code in [*ERRORS, MORE_ERRORS[name]] if name in MORE_ERRORS else ERRORS:
        yield Fault(number, code)
        yield Fault(number, code, stays=True)
    if name in MAY_TAKE_EFFECT:
        yield Fault(number, errno.EIO, takes_effect=True)
        yield Fault(number, errno.EIO, takes_effect=True, stays=True)
    for taken in sorted({0, 1, size // 2, size - 1}) if name == "write" and size > 1 else ():
        yield Fault(number, taken=taken)
        yield Fault(number, taken=taken, stays=True)


def every_fault(calls: list[tuple[str, int]]) -> list[Fault]:
    return [
        fault for number, call in enumerate(calls) if call[0] not in NEVER_FAIL for fault in faults_of(number, *call)
    ]


def run_all(workload: Workload, plans: list[tuple[Fault, ...]]) -> int:
    failures = 0
    with checks.scratch() as path:
        for plan in plans:
            run = Run(workload, path, plan)
            try:
                run.all_steps()
            except BaseException:
                print(f"faults {plan}; calls {list(enumerate(run.system.calls))}")
                raise
            failures += run.system.failures
    print(f"{len(plans)} runs, {failures} failed calls")
    return failures


@pytest.mark.parametrize("name", WORKLOADS)
def test_statement_works_or_raises_oserror_and_loses_nothing(name: str) -> None:
    faults = every_fault(calls_of(WORKLOADS[name]))

    failures = run_all(WORKLOADS[name], [(fault,) for fault in faults[:: round(1 / min(SHARE, 1))]])

    assert failures >= len(faults) * min(SHARE, 1) / 2


@rounds(ci=500, nightly=50_000)
@pytest.mark.parametrize("name", WORKLOADS)
def test_second_fault_while_the_first_is_dealt_with_loses_nothing(
    name: str, rounds: int, chance: random.Random
) -> None:
    faults = every_fault(calls_of(WORKLOADS[name]))
    plans: list[tuple[Fault, ...]] = []
    while len(plans) < rounds:
        first, other = chance.choices(faults, k=2)
        plans.append((first, other._replace(at=first.at + chance.randint(1, 8))))

    run_all(WORKLOADS[name], plans)


@pytest.mark.parametrize("name", WORKLOADS)
def test_file_is_let_go_even_if_nothing_can_be_told_of_it(name: str) -> None:
    calls = calls_of(WORKLOADS[name])
    faults = [Fault(number, errno.EIO, stays=True) for number, call in enumerate(calls) if call[0] == "fstat"]

    run_all(WORKLOADS[name], [(fault,) for fault in faults])


@pytest.mark.parametrize("name", WORKLOADS)
def test_write_that_takes_nothing_is_an_error(name: str) -> None:
    calls = calls_of(WORKLOADS[name])
    faults = [Fault(number, taken=0, stays=True) for number, call in enumerate(calls) if call[0] == "write"]

    run_all(WORKLOADS[name], [(fault,) for fault in faults])


@pytest.mark.parametrize("name", ["rewrite within the file", "recovery of a rewrite"])
def test_write_that_fails_and_cannot_be_taken_back_loses_nothing(name: str, chance: random.Random) -> None:
    plans: list[tuple[Fault, ...]] = []
    for number, (call, size) in enumerate(calls_of(WORKLOADS[name])):
        if call == "write":
            firsts = [
                Fault(number, errno.EIO, takes_effect=True),
                *(Fault(number, taken=n) for n in (1, size // 2, size - 1)),
                Fault(number, taken=size // 2, stays=True),
            ]
            seconds = [Fault(number + later, errno.EIO, stays) for later in range(1, 8) for stays in (False, True)]
            plans += [(first, second) for first in firsts for second in seconds]

    run_all(WORKLOADS[name], chance.sample(plans, round(len(plans) * QUICK)))


def test_replacement_of_which_nobody_can_tell_whether_it_took_place_loses_nothing() -> None:
    workload = Workload("one key", [opening(), put("a", 2), VACUUM, put("a", 3), CLOSE], {NAME: START}, START_STATE)
    plans: list[tuple[Fault, ...]] = []
    for number, (name, _) in enumerate(calls_of(workload)):
        if name == "replace":
            firsts = [Fault(number, errno.EIO, takes_effect=True), Fault(number + 1, errno.EIO)]
            seconds = [Fault(number + later, errno.EIO, stays) for later in range(1, 7) for stays in (False, True)]
            plans += [(first, second) for first in firsts for second in seconds]

    run_all(workload, plans)


def fail(code: int, *_: object) -> None:
    raise OSError(code, os.strerror(code))


def test_defaults_that_could_not_be_written_are_in_no_other_object(monkeypatch: pytest.MonkeyPatch) -> None:
    with checks.scratch() as path, persistedstate.PersistedState(path) as state:
        with monkeypatch.context() as patch:
            patch.setattr(persistedstate._system, "fsync", functools.partial(fail, errno.ENOSPC), raising=False)
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                persistedstate.PersistedState(path, jobs=[])
        assert plain(state) == oracle.read(path) == {}
        with persistedstate.PersistedState(path, jobs=[]) as second:
            second.jobs.append(1)
            assert plain(state) == oracle.read(path) == {"jobs": [1]}


def test_disk_that_fails_a_second_object_in_a_transaction_keeps_no_part_of_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with checks.scratch() as path, persistedstate.PersistedState(path, a=1) as state:
        with pytest.raises(persistedstate.StateError, match="the disk failed"), state.transaction():
            state.a = 2
            with monkeypatch.context() as patch:
                patch.setattr(persistedstate._system, "fsync", functools.partial(fail, errno.EIO), raising=False)
                persistedstate.PersistedState(path, _fsync=True)
        assert plain(state) == oracle.read(path) == {"a": 1}
        state.a = 3
        assert plain(state) == oracle.read(path) == {"a": 3}
