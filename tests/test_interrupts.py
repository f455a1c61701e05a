"""Suite F: KeyboardInterrupt before any instruction of the module leaves memory and file equal, and nothing half done.

test_transactions.py does the same to single changes and to transactions; here are the operations of lists and mappings,
vacuum, close, the merge of a hand edit, the rescue after a failed fsync, and a second interrupt behind the first.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import os
import random
import sys
import warnings
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import oracle
import processes
import pytest
from checks import Hand, records, scratch
from editing import Stage, save, staged
from rounds import SHARE, rounds

import persistedstate
from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import CodeType

START: dict[str, Any] = {"a": 1, "l": [3, {"n": [1]}, "x", 2], "d": {"z": 1, "k": {"deep": [1]}}, "gone": None}
TEXT = """\
a: 1  # a comment
l:
- 3
- n:
  - 1
- x
- 2
# above
d:
  z: 1
  k:
    deep:
    - 1
gone: null
"""

#: Every change is one record; the same call does it to a state and to plain containers.
CHANGES: dict[str, Callable[[Any], object]] = {
    "sort": lambda s: s["l"].sort(key=repr),
    "reverse": lambda s: s["l"].reverse(),
    "extend": lambda s: s["l"].extend([5, {"m": []}]),
    "insert": lambda s: s["l"].insert(1, [0]),
    "pop in the middle": lambda s: s["l"].pop(1),
    "remove": lambda s: s["l"].remove("x"),
    "slice": lambda s: s["l"].__setitem__(slice(1, 3), ["p", "q", "r"]),
    "extended slice": lambda s: s["l"].__setitem__(slice(None, None, 2), ["p", "q"]),
    "del slice": lambda s: s["l"].__delitem__(slice(0, 2)),
    "repeat": lambda s: s["l"].__imul__(2),
    "empty": lambda s: s["l"].clear(),
    "item": lambda s: s["l"].__setitem__(1, "instead"),
    "deep": lambda s: s["d"]["k"]["deep"].append(2),
    "update": lambda s: s["d"].update(z=2, y=[1]),
    "popitem": lambda s: s["d"].popitem(),
    "setdefault": lambda s: s["d"].setdefault("new", {}),
    "mapping": lambda s: s.__setitem__("d", {"other": 1}),
    "delete": lambda s: s.__delitem__("gone"),
    "clear": lambda s: s.clear(),
}

READER = oracle.FASTEST
FILES = frozenset({persistedstate.__file__, contextlib.__file__})
#: A trace function that raises is gone; the monitoring of 3.12 goes on, also in the handler of the first interrupt.
run_watched = processes._interrupt_by_monitoring if sys.version_info >= (3, 12) else processes._interrupt_by_tracing


@pytest.fixture(autouse=True)
def _no_state_left_open() -> Iterator[None]:
    """What one test breaks is no other's trouble: a state that is half closed is in the way of each opening."""
    yield
    for tree in list(persistedstate._open_trees):
        if tree.journal.descriptor >= 0:
            os.close(tree.journal.descriptor)
        persistedstate._open_trees.remove(tree)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, a change does not look for a person's hand: it comes to the same points each time."""
    monkeypatch.setattr(persistedstate, "_LOOK_EVERY", 1e6)


class Interrupts:
    """Raises KeyboardInterrupt before the instructions of these numbers; counts on from one action to the next.

    only: the code whose instructions count, which spares the time of watching the others; without it all of the module.
    """

    error: type[BaseException] = KeyboardInterrupt

    def __init__(self, *numbers: int, only: CodeType | None = None) -> None:
        self.numbers, self.only = numbers, only
        self.count = 0

    def _step(self, *_: object) -> None:
        self.count += 1
        if self.count in self.numbers:
            raise self.error

    def during(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(self.error), processes._uncollected():
            run_watched(self._step, action, FILES, self.only)

    @property
    def came(self) -> bool:
        """Whether the last of the numbers was reached."""
        return self.count >= self.numbers[-1]


#: Some code, and the offset of an instruction in it.
Place: TypeAlias = "tuple[CodeType, int]"


class Point(NamedTuple):
    """An instruction when it is executed: its code, its offset there, and its number in the action and in that code."""

    code: CodeType
    offset: int
    number: int
    number_in_code: int


def executed(action: Callable[[], object]) -> list[Point]:
    """Return what an action executes each time; patterns are compiled once."""
    points: list[Point] = []
    counts: Counter[CodeType] = Counter()

    def note(code: CodeType, offset: int) -> None:
        counts[code] += 1
        points.append(Point(code, offset, len(points) + 1, counts[code]))

    compiling = persistedstate._Later.__getattr__.__code__

    with processes._uncollected():
        run_watched(note, action, FILES)
    return [point for point in points if point.code is not compiling]


def by_instruction(points: Iterable[Point]) -> list[list[Point]]:
    """Return for each instruction when it is executed."""
    times: dict[tuple[CodeType, int], list[Point]] = {}
    for point in points:
        times.setdefault((point.code, point.offset), []).append(point)
    return list(times.values())


def chosen(chance: random.Random, points: list[Point], rounds: int, own: frozenset[Place] | None = None) -> list[Point]:
    """Return points: all instructions once, whatever the rounds of CI, then what repeats once more, then the rest.

    own: the instructions that the others of a group of actions leave to this one; the other ones count to the rest.
    """
    times = by_instruction(points)
    first = [once for once, *_ in times if own is None or once[:2] in own]
    again = [chance.choice(more) for once, *more in times if more and (own is None or once[:2] in own)]
    tried = {*first, *again}
    rest = [point for point in points if point not in tried]
    count = rounds if SHARE < 1 else max(rounds, len(first))
    return [point for part in (first, again, rest) for point in chance.sample(part, len(part))][:count]


def divided(chance: random.Random, points: dict[str, list[Point]]) -> dict[str, frozenset[Place]]:
    """Divide the instructions that several actions come to among these: most are the same for nearly all of them."""
    who: dict[Place, list[str]] = {}
    for name, its_points in points.items():
        for once, *_ in by_instruction(its_points):
            who.setdefault(once[:2], []).append(name)
    own: dict[str, list[Place]] = {name: [] for name in points}
    for place, names in who.items():
        own[chance.choice(names)].append(place)
    return {name: frozenset(places) for name, places in own.items()}


def interrupt(point: Point, action: Callable[[], object]) -> None:
    """Interrupt an action at a point that it comes to."""
    interrupts = Interrupts(point.number_in_code, only=point.code)
    interrupts.during(action)
    assert interrupts.came, point


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[tuple[Path, Any]]:
    """Give a fresh file with TEXT and one record, and its state. options: or values that the file lacks."""
    with scratch() as path:
        path.write_text(TEXT)
        state = PersistedState(path, **options)
        state.before = 1
        try:
            yield path, state
        finally:
            state.close()


def content_of(path: Path) -> dict[str, Any]:
    """Open the file as it is at this moment, read-only, as after a crash."""
    with PersistedState(path, _readonly=True) as reader:
        found: dict[str, Any] = plain(reader)
    return found


@rounds(ci=100, nightly=20_000)
@pytest.mark.leaves("descriptors")  # as long as what an interrupt left is not collected
def test_a_reader_that_is_interrupted_shows_a_whole_state_after_its_next_refresh(
    path: Path, chance: random.Random, rounds: int
) -> None:
    """Also where the file holds again what the reader had read before."""

    save(path, "a: 1\nb: [1]\n")
    with PersistedState(path, _readonly=True) as reader:
        save(path, "b: [2, {}]\na: 2\n")
        last = 1
        while processes.interrupt_at(last, reader.refresh, FILES):
            last *= 2
        for _ in range(rounds):
            save(path, "a: 1\nb: [1]\n")
            reader.refresh()
            assert plain(reader) == {"a": 1, "b": [1]}
            save(path, "b: [2, {}]\na: 2\n")
            processes.interrupt_at(chance.randrange(1, last), reader.refresh, FILES)


def expected_after(change: Callable[[Any], object]) -> tuple[dict[str, Any], dict[str, Any]]:
    before = {**copy.deepcopy(START), "before": 1}
    after = copy.deepcopy(before)
    change(after)
    return before, after


def check_equal(state: Any, path: Path, allowed: tuple[Any, ...], where: object) -> None:
    """Assert that memory and file hold the same, one of the allowed contents, and that the next change joins them."""
    found = plain(state)
    assert found in allowed, where
    assert content_of(path) == found, where
    state.later = str(where)
    check_settled(state, path, ({**content, "later": str(where)} for content in allowed), where)


def check_interrupts(
    action: Callable[[Any], object],
    allowed: tuple[Any, ...],
    chance: random.Random,
    rounds: int,
    own: frozenset[Place] | None = None,
    **content: Any,
) -> None:
    """Interrupt an action on a fresh state at many points; the last of the allowed contents is what it leads to.

    own: see `chosen`. content: is put into the state before.
    """
    with opened(**content) as (_, state):
        hand = Hand(state)
        outcomes = [(allowed[0], hand.places())]
        points = executed(partial(action, state))
        assert plain(state) == allowed[-1]
        outcomes.append((allowed[-1], hand.places()))

    for point in chosen(chance, points, rounds, own):
        with opened(**content) as (path, state):
            hand = Hand(state)
            interrupt(point, partial(action, state))
            assert {name: getattr(state, name) for name in state} == plain(state), point
            assert (plain(state), hand.places()) in outcomes, point
            check_equal(state, path, allowed, point)
            hand.check_tracked(path, point)


def check_settled(state: Any, path: Path, allowed: Any, where: object) -> None:
    found = plain(state)
    assert found in list(allowed), where
    assert content_of(path) == found, where


# ---- One interrupt ---------------------------------------------------------------------------------------------------


def divide(changes: dict[str, Callable[[Any], object]], **content: Any) -> dict[str, frozenset[Place]]:
    """Divide the instructions of changes among these, in the same way in each process of a run."""
    points: dict[str, list[Point]] = {}
    for name, change in changes.items():
        with opened(**copy.deepcopy(content)) as (_, state):
            points[name] = executed(partial(change, state))
    return divided(random.Random(os.environ["PERSISTEDSTATE_SEED"]), points)


@pytest.fixture(scope="module")
def own_of_changes() -> dict[str, frozenset[Place]]:
    return divide(CHANGES)


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("name", CHANGES)
@rounds(ci=600, nightly=100_000)
def test_an_interrupt_at_any_instruction_of_a_change(
    chance: random.Random, rounds: int, name: str, own_of_changes: dict[str, frozenset[Place]]
) -> None:
    check_interrupts(CHANGES[name], expected_after(CHANGES[name]), chance, rounds, own_of_changes[name])


def move_equals(s: Any, *, fails: bool = False) -> None:
    """Remove items, put new ones that equal them in their places, and change the order, in a transaction."""
    if fails and not isinstance(s, PersistedState):
        return
    with (
        contextlib.suppress(ZeroDivisionError),
        s.transaction() if isinstance(s, PersistedState) else contextlib.nullcontext(),
    ):
        s["equals"].pop(0)
        s["equals"].insert(1, {"n": 1})
        s["equals"].append(s["equals"].pop(2))
        s["equals"][0] = {"n": 1}
        s["equals"].reverse()
        s["d"] = {"z": 1, "k": {"deep": [1]}}
        s["equals"][2:4] = [[1], {"n": 1}]
        if fails:
            raise ZeroDivisionError


#: Among items that are equal, only their identity tells which one is in hand.
EQUALS = {"equals": [{"n": 1}, {"n": 1}, {"n": 1}, [1], [1]]}
AMONG_EQUALS: dict[str, Callable[[Any], object]] = {
    "pop": lambda s: s["equals"].pop(0),
    "delete": lambda s: s["equals"].__delitem__(slice(1, 4, 2)),
    "insert": lambda s: s["equals"].insert(1, {"n": 1}),
    "extend": lambda s: s["equals"].extend([{"n": 1}, [1]]),
    "repeat": lambda s: s["equals"].__imul__(2),
    "reverse": lambda s: s["equals"].reverse(),
    "sort": lambda s: s["equals"].sort(key=repr),
    "item": lambda s: s["equals"].__setitem__(1, {"n": 1}),
    "slice": lambda s: s["equals"].__setitem__(slice(0, 2), [{"n": 1}]),
    "clear": lambda s: s["equals"].clear(),
    "set": lambda s: s.__setitem__("equals", [{"n": 1}] * 3),
    "update": lambda s: s.update(equals=[{"n": 1}] * 3, d={}),
    "transaction": move_equals,
    "transaction that is undone": partial(move_equals, fails=True),
    "vacuum": lambda s: getattr(s, "vacuum", lambda: None)(),
}


@pytest.fixture(scope="module")
def own_among_equals() -> dict[str, frozenset[Place]]:
    return divide(AMONG_EQUALS, **EQUALS)


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("name", AMONG_EQUALS)
@rounds(ci=600, nightly=50_000)
def test_an_interrupt_among_equal_items_leaves_those_in_hand_tracked(
    chance: random.Random, rounds: int, name: str, own_among_equals: dict[str, frozenset[Place]]
) -> None:
    change = AMONG_EQUALS[name]
    before, _ = expected_after(lambda _: None)
    before |= copy.deepcopy(EQUALS)
    after = copy.deepcopy(before)
    change(after)

    check_interrupts(change, (before, after), chance, rounds, own_among_equals[name], **copy.deepcopy(EQUALS))


def transact(s: Any) -> None:
    """Use lists in a transaction; test_transactions.py does the rest."""
    with s.transaction() if isinstance(s, PersistedState) else contextlib.nullcontext():
        s["l"].sort(key=repr)
        del s["l"][1:3]
        s["l"] += [{"n": 1}]
        s["d"]["k"]["deep"] *= 2
        s["d"] |= {"z": 3, "y": s["l"][-1]}


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@rounds(ci=4_000, nightly=20_000)
def test_an_interrupt_in_a_transaction_of_list_operations(chance: random.Random, rounds: int) -> None:
    allowed = expected_after(lambda s: transact(_plain_items(s)))
    check_interrupts(transact, allowed, chance, rounds)


def abandoned(state: Any) -> None:
    """Undo what changes the order of keys and of items, among other things."""
    with contextlib.suppress(ZeroDivisionError), state.transaction():
        state.a += 1
        del state["a"]
        state["a"] = [1]
        state["d"].pop("z")
        state["l"].pop(0)
        state["l"].reverse()
        state.update(gone=1, new=2)
        state["d"].clear()
        del state["l"]
        raise ZeroDivisionError


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@rounds(ci=4_000, nightly=20_000)
def test_an_interrupt_in_a_transaction_that_is_undone(chance: random.Random, rounds: int) -> None:
    before, _ = expected_after(lambda _: None)
    check_interrupts(abandoned, (before,), chance, rounds)


class _Errors(Interrupts):
    """What a signal handler may raise, too."""

    error = ValueError


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("change", [lambda s: s["l"].append(9), lambda s: s.__setitem__("a", 9)], ids=["append", "set"])
def test_an_error_of_a_handler_in_a_transaction_does_nothing_twice(change: Callable[[Any], object]) -> None:
    with opened() as (_, state), state.transaction():
        change(state)
        points = executed(partial(change, state))
    assert "_assign_later" in {point.code.co_name for point in points}

    for point in points:
        with opened() as (path, state):
            with state.transaction():
                change(state)
                before = plain(state)
                _Errors(point.number_in_code, only=point.code).during(partial(change, state))
                after = copy.deepcopy(before)
                change(after)
                assert plain(state) in (before, after), point
            assert oracle.read(path, READER) == plain(state), point


def _plain_items(items: dict[str, Any]) -> dict[str, Any]:
    """Copy what a transaction stores twice, as a state does."""

    items["d"] = _Copying(items["d"])
    return items


class _Copying(dict[str, Any]):
    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(copy.deepcopy(other))
        return self


@pytest.mark.leaves("descriptors")
@rounds(ci=6_000, nightly=50_000)
def test_an_interrupt_in_a_vacuum(chance: random.Random, rounds: int) -> None:
    _, after = expected_after(CHANGES["slice"])

    def changed(state: Any) -> Any:
        CHANGES["slice"](state)
        return state

    with opened() as (_, state):
        points = executed(changed(state).vacuum)

    for point in chosen(chance, points, rounds):
        with opened() as (path, state):
            hand = Hand(changed(state))
            places = hand.places()
            interrupt(point, state.vacuum)
            assert hand.places() == places, point
            check_equal(state, path, (after,), point)
            state.vacuum()
            check_settled(state, path, [{**after, "later": str(point)}], point)
            assert records(path) == 0
            assert "# a comment" in path.read_text()
            hand.check_tracked(path, point)


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@rounds(ci=4_500, nightly=50_000)
def test_an_interrupt_in_a_change_that_vacuums(
    chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 1)
    text = "x" * 500
    before, after = expected_after(lambda s: s.__setitem__("big", text))

    def change(state: Any) -> None:
        state.big = text

    with opened() as (path, state):
        points = executed(partial(change, state))
        assert records(path) == 0

    for point in chosen(chance, points, rounds):
        with opened() as (path, state):
            hand = Hand(state)
            interrupt(point, partial(change, state))
            check_equal(state, path, (before, after), point)
            hand.check_tracked(path, point)


class TimedOut(Exception):  # noqa: N818 - no fault, but the end of what takes too long
    """What a handler of SIGALRM raises, and other threads by means of the interpreter."""


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("error", [TimedOut, TimeoutError])
@rounds(ci=1_500, nightly=50_000)
def test_an_error_of_a_handler_in_a_change_that_vacuums_costs_no_comment_and_reaches_the_caller(
    chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Except for an OSError, where that is among those of the disk."""
    monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 1)
    monkeypatch.setattr(Interrupts, "error", error)
    monkeypatch.setattr(persistedstate._LiveTree, "_attest", lambda tree, key: tree.attested.add(key))  # may fail
    before, after = expected_after(lambda s: s.__setitem__("big", "x" * 500))
    raised: list[bool] = []

    def change(state: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state.big = "x" * 500
        raised[-1] = False

    with opened() as (_, state):
        raised.append(True)
        points = executed(partial(change, state))
    for point in chosen(chance, points, rounds):
        with opened() as (path, state):
            raised.append(True)
            interrupt(point, partial(change, state))
            assert raised[-1] or error is TimeoutError, point
            check_equal(state, path, (before, after), point)
            state.vacuum()
            assert "# a comment" in path.read_text(), point


@pytest.mark.leaves("descriptors")
@rounds(ci=5_000, nightly=50_000)
def test_an_interrupt_in_close(chance: random.Random, rounds: int) -> None:
    _, after = expected_after(CHANGES["insert"])
    with opened() as (_, state):
        CHANGES["insert"](state)
        points = executed(state.close)

    for point in chosen(chance, points, rounds):
        with opened() as (path, state):
            CHANGES["insert"](state)

            interrupt(point, state.close)
            assert content_of(path) == after, point
            state.close()

            assert content_of(path) == after, point
            assert is_free(path), point
            with PersistedState(path) as again:
                again.later = point.number
            assert oracle.read(path, READER) == {**after, "later": point.number}
            assert sorted(os.listdir(path.parent)) == [path.name]  # noqa: PTH208 - names


def is_free(path: Path) -> bool:
    """Tell whether nobody holds the lock of the file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


# ---- Others at work --------------------------------------------------------------------------------------------------

THEIRS = TEXT.replace("- x\n", "- x\n- P\n").replace("z: 1", "z: 7").replace("gone: null\n", "mine: 1\n# end\n")
MERGED = {
    "a": 2,
    "l": [3, {"n": [1]}, "x", "P", 2, "S"],
    "d": {"z": 7, "k": {"deep": [1]}},
    "mine": 1,
    "before": 1,
}


#: What lets the module see a hand edit, and merge it.
LOOKS = ["refresh", "change", "vacuum", "close"]


def noticed(look: str) -> Callable[[Any, Stage], object]:
    """Return the function for a look."""
    if look == "change":

        def change(state: Any, stage: Stage) -> None:
            stage.sleep(1)
            state.a = 2

        return change
    return lambda state, _: getattr(state, look)()


@contextlib.contextmanager
def edited(look: str) -> Iterator[tuple[Path, Any, Callable[[], object]]]:
    """Give a file that a person has saved, its state, and the action that has to notice it."""
    with staged() as stage, opened() as (path, state):
        state.l.append("S")
        if look != "change":
            state.a = 2
        save(path, THEIRS)
        yield path, state, lambda: noticed(look)(state, stage)


@pytest.mark.leaves("descriptors")
@rounds(ci=11_000, nightly=200_000)
def test_an_interrupt_in_a_merge(chance: random.Random, rounds: int) -> None:
    looks: dict[Point, str] = {}
    for look in chance.sample(LOOKS, len(LOOKS)):
        with edited(look) as (path, _, action):
            looks |= dict.fromkeys(executed(action), look)
            assert oracle.read(path) == MERGED
            assert records(path) == 0

    for point in chosen(chance, list(looks), rounds):
        with edited(looks[point]) as (path, state, action):
            hand = Hand(state)
            interrupt(point, action)
            if looks[point] == "close":
                check_merging_close(path, state, point)
            else:
                mine = {**START, "l": [*START["l"], "S"], "before": 1}
                assert plain(state) in (mine, {**mine, "a": 2}, MERGED, {**MERGED, "a": 1}), point
                check_merge(path, state, hand, point)


def check_merge(path: Path, state: Any, hand: Hand, where: object) -> None:
    """Assert that a merge that was interrupted is done or not begun, and is done by the next look."""
    theirs = oracle.read(path, READER)
    assert theirs["d"]["z"] == 7, where
    assert theirs["mine"] == 1, where
    state.refresh()
    found = plain(state)
    assert found in (MERGED, {**MERGED, "a": 1}), where
    assert content_of(path) == found, where
    state.later = str(where)
    assert content_of(path) == {**found, "later": str(where)}, where
    assert None not in hand.places(), where
    hand.check_tracked(path, where)
    found = plain(state)
    state.close()
    assert oracle.read(path, READER) == found, where
    assert "# end" in path.read_text()
    assert sorted(os.listdir(path.parent)) == [path.name]  # noqa: PTH208 - names


def check_merging_close(path: Path, state: Any, where: object) -> None:
    """Assert that a close that was to merge and was interrupted is done by the next one."""
    state.close()
    assert oracle.read(path, READER) == MERGED, where
    assert is_free(path), where
    assert sorted(os.listdir(path.parent)) == [path.name]  # noqa: PTH208 - names


@pytest.mark.leaves("descriptors")
def test_an_interrupt_behind_any_close_of_a_merge_closes_no_number_twice() -> None:
    """What the script opens next has the number of what was closed, and once lost it to the next merge or vacuum."""
    number, closed = 0, list[int]()
    while len(closed) >= number:
        number, closed = number + 1, []

        def close(descriptor: int, closed: list[int] = closed, number: int = number) -> None:
            os.close(descriptor)
            closed.append(descriptor)
            if len(closed) == number:
                raise KeyboardInterrupt

        with edited("refresh") as (path, state, action):
            hand = Hand(state)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                patch.setitem(vars(cast("Stage", persistedstate._system)), "close", close)
                action()
            others = [os.open(os.devnull, os.O_RDONLY) for _ in closed]
            check_merge(path, state, hand, number)
            for descriptor in others:
                os.close(descriptor)
    assert number > 3


@contextlib.contextmanager
def failing_sync() -> Iterator[Callable[[], None]]:
    """Give a function that lets the next fsync fail."""
    with pytest.MonkeyPatch.context() as patch:
        stage = Stage(persistedstate._system)
        patch.setattr(persistedstate, "_system", stage)

        def fail_once() -> None:
            def fsync(_descriptor: int) -> None:
                del stage.__dict__["fsync"]
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            stage.__dict__["fsync"] = fsync

        yield fail_once


@pytest.mark.leaves("descriptors")
@pytest.mark.usefixtures("unhurried")
@rounds(ci=7_500, nightly=50_000)
def test_an_interrupt_in_a_rescue(chance: random.Random, rounds: int) -> None:
    """The fsync of a change fails, so that a fresh snapshot is written; the interrupt comes anywhere in that."""
    change = CHANGES["extend"]
    before, after = expected_after(change)
    with failing_sync() as fail_once:
        with opened(_fsync=True) as (path, state):
            fail_once()
            points = executed(partial(change, state))
            assert plain(state) == after
            assert records(path) == 0

        for point in chosen(chance, points, rounds):
            with opened(_fsync=True) as (path, state):
                hand = Hand(state)
                fail_once()
                interrupt(point, partial(change, state))
                vars(cast("Stage", persistedstate._system)).pop("fsync", None)
                check_equal(state, path, (before, after), point)
                hand.check_tracked(path, point)


# ---- A second interrupt ----------------------------------------------------------------------------------------------


def pairs(chance: random.Random, points: list[Point], rounds: int) -> Iterator[tuple[int, int]]:
    """Yield the number of an instruction, each as likely, and how many later the second interrupt comes."""
    times = by_instruction(points)
    for _ in range(rounds):
        first = chance.choice(chance.choice(times))
        yield first.number, chance.choice([chance.randint(1, 30), chance.randint(1, 300)])


def interrupt_twice(first: int, later: int, action: Callable[[], object], follow_up: Callable[[], object]) -> None:
    """Interrupt an action, and its clean-up or else what comes after it."""
    interrupts = Interrupts(first, first + later)
    interrupts.during(action)
    if not interrupts.came:
        interrupts.count = max(interrupts.count, first)
        interrupts.during(follow_up)


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@rounds(ci=150, nightly=10_500)
def test_two_interrupts_in_a_change(chance: random.Random, rounds: int, change: Callable[[Any], object]) -> None:
    before, after = expected_after(change)
    with opened() as (_, state):
        points = executed(partial(change, state))

    for first, later in pairs(chance, points, rounds):
        with opened() as (path, state):
            hand = Hand(state)
            interrupt_twice(first, later, partial(change, state), partial(state.update, second=1))
            state.refresh()
            contents = [content | extra for content in (before, after) for extra in ({}, {"second": 1})]
            check_equal(state, path, tuple(contents), (first, later))
            hand.check_tracked(path, (first, later))


@pytest.mark.leaves("descriptors")
@pytest.mark.parametrize("what", ["transaction", "vacuum", "rescue"])
@rounds(ci=400, nightly=100_000)
def test_two_interrupts_in_what_takes_longer(chance: random.Random, rounds: int, what: str) -> None:
    before, after = expected_after(lambda s: transact(_plain_items(s)))

    def action(state: Any) -> None:
        if what == "vacuum":
            state.vacuum()
        else:
            transact(state)

    with failing_sync() as fail_once:

        def prepared(state: Any) -> Any:
            if what == "rescue":
                fail_once()
            return state

        with opened(_fsync=what == "rescue") as (_, state):
            points = executed(partial(action, prepared(state)))

        for first, later in pairs(chance, points, rounds):
            with opened(_fsync=what == "rescue") as (path, state):
                hand = Hand(prepared(state))
                interrupt_twice(first, later, partial(action, state), state.refresh)
                vars(cast("Stage", persistedstate._system)).pop("fsync", None)
                state.refresh()
                check_equal(state, path, (before,) if what == "vacuum" else (before, after), (first, later))
                hand.check_tracked(path, (first, later))


@pytest.mark.leaves("descriptors")
@rounds(ci=400, nightly=100_000)
def test_two_interrupts_in_a_merge(chance: random.Random, rounds: int) -> None:
    with edited("refresh") as (_, _, action):
        points = executed(action)

    for first, later in pairs(chance, points, rounds):
        with edited("refresh") as (path, state, action):
            hand = Hand(state)
            interrupt_twice(first, later, action, action)
            check_merge(path, state, hand, (first, later))


@pytest.mark.leaves("descriptors")
def test_a_second_interrupt_before_a_merge_could_deal_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the merged one by then: memory once stayed without what the person had saved."""
    surely = persistedstate._surely

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(persistedstate, "_surely", surely)
        raise KeyboardInterrupt

    def replace(source: str, target: str) -> None:
        os.replace(source, target)  # noqa: PTH105 - as the module calls it
        monkeypatch.setattr(persistedstate, "_surely", interrupted)
        raise KeyboardInterrupt

    with edited("refresh") as (path, state, action):
        hand = Hand(state)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setitem(vars(cast("Stage", persistedstate._system)), "replace", replace)
            action()
        assert persistedstate._surely is surely
        check_merge(path, state, hand, "twice")


@pytest.mark.leaves("descriptors")
@rounds(ci=600, nightly=100_000)
def test_two_interrupts_in_close(chance: random.Random, rounds: int) -> None:
    _, after = expected_after(CHANGES["insert"])
    with opened() as (_, state):
        CHANGES["insert"](state)
        points = executed(state.close)

    for first, later in pairs(chance, points, rounds):
        with opened() as (path, state):
            CHANGES["insert"](state)
            interrupt_twice(first, later, state.close, state.close)
            state.close()
            assert oracle.read(path, READER) == after, (first, later)
            assert is_free(path)
            assert sorted(os.listdir(path.parent)) == [path.name]  # noqa: PTH208 - names


def test_an_interrupt_while_a_mapping_is_put_in_order_leaves_its_containers_what_they_are() -> None:
    """The merge of a hand edit, which is done again, finds them there."""
    number, came = 0, True
    while came:
        number += 1
        with scratch() as path, PersistedState(path, a={"x": 1}, b={"x": 2}) as state:
            nodes, value = {"a": state.a, "b": state.b}, {"b": {"x": 2}, "a": {"x": 1}}
            come = partial(persistedstate._become, state._root, value)
            came = processes.interrupt_at(number, come, [persistedstate.__file__])
            come()
            assert list(state) == ["b", "a"], number
            assert all(state[key] is node for key, node in nodes.items()), number
    assert number > 10
