"""What every log must do, in Valkey or Redis, in PostgreSQL, and in memory, with and without faults."""

from __future__ import annotations

import contextlib
import itertools
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from processes import PATIENCE
from rounds import rounds
from threads import in_threads, together

from logs import servers
from logs.memory import Memory, MemoryLog
from logs.writers import Writer, check, turn
from persistedstate_logs import Contents, Forked, News, Overtaken, Position, Unknown

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from persistedstate_logs import Log

    Open = Callable[[], Log]

_names = itertools.count()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.running(tmp_path_factory.mktemp("server"), kind=servers.Postgres) as server:
        yield server


@pytest.fixture(params=["memory", "faulty", "server", "postgres"])
def opened(request: pytest.FixtureRequest, chance: random.Random) -> Iterator[Open]:
    """A function that opens another log of the same, new name."""
    memory, name = Memory(), f"state {next(_names)}"

    with contextlib.ExitStack() as stack:

        def open_one() -> Log:
            if request.param in {"server", "postgres"}:
                server = request.getfixturevalue(request.param)
                log: Any = servers.log(server.url(name.replace(" ", "%20")))
            else:
                log = MemoryLog(memory, chance, 0.3 if request.param == "faulty" else 0.0)
            opened: Log = stack.enter_context(contextlib.closing(log))
            return opened

        yield open_one


def surely(action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Do something again until it is known how it ended."""
    while True:
        with contextlib.suppress(Unknown):
            return action(*arguments, **named)


def test_a_new_log_is_empty_and_the_same_for_all(opened: Open) -> None:
    first, second = opened().open(0), opened().open(0)

    assert first == second
    assert (first.text, first.records) == (b"", [])


def test_records_come_in_order_to_those_who_read_and_to_those_who_open(opened: Open) -> None:
    log, other = opened(), opened()
    start = other.open(0).position
    position = log.open(0).position

    for record in (b"a", b"b\r\n\0\xff", b""):
        position = surely(log.append, record, position)

    assert other.read(start) == News([b"a", b"b\r\n\0\xff", b""], position)
    assert other.read(position) == News([], position)
    assert opened().open(0) == Contents(b"", [b"a", b"b\r\n\0\xff", b""], position)


def test_an_append_behind_another_position_than_the_last_is_overtaken_and_writes_nothing(opened: Open) -> None:
    log, other = opened(), opened()
    start = log.open(0).position
    other.open(0)
    position = surely(log.append, b"a", start)

    with pytest.raises(Overtaken) as caught:
        surely(other.append, b"b", start)

    assert not caught.value.is_held
    assert other.read(start) == News([b"a"], position)
    assert surely(other.append, b"b", position) > position
    assert opened().open(0).records == [b"a", b"b"]


def test_doing_the_same_again_says_the_same(opened: Open) -> None:
    """After an interrupt it is not known whether there was an answer."""
    log, other = opened(), opened()
    start = log.open(0).position
    other.open(0)

    position = surely(log.append, b"a", start)
    assert surely(log.append, b"a", start) == position
    last = surely(other.append, b"b", position)
    assert surely(log.append, b"a", start) == position
    edited = surely(log.replace, b"text", last, edit=True)
    assert surely(log.replace, b"text", last, edit=True) == edited

    assert opened().open(0) == Contents(b"text", [], edited)


def test_the_same_record_twice_is_two(opened: Open) -> None:
    log = opened()
    position = log.open(0).position

    position = surely(log.append, b"a", position)
    surely(log.append, b"a", position)

    assert opened().open(0).records == [b"a", b"a"]


def test_a_vacuum_says_the_same_and_disturbs_nobody(opened: Open) -> None:
    log, other = opened(), opened()
    start = log.open(0).position
    behind = other.open(0).position
    one = surely(log.append, b"1", start)
    two = surely(log.append, b"2", one)

    log.replace(b"text to 1", one, edit=False)

    assert opened().open(0) == Contents(b"text to 1", [b"2"], two)
    assert other.read(behind) == News([b"1", b"2"], two)
    assert surely(other.append, b"3", two) > two


def test_an_older_vacuum_takes_no_newer_one_back(opened: Open) -> None:
    log, other = opened(), opened()
    start = log.open(0).position
    other.open(0)
    one = surely(log.append, b"1", start)
    two = surely(log.append, b"2", one)

    log.replace(b"text to 2", two, edit=False)
    other.replace(b"text to 1", one, edit=False)

    assert opened().open(0) == Contents(b"text to 2", [], two)


def test_an_edit_comes_to_all_as_a_whole_and_only_at_the_last_position(opened: Open) -> None:
    log, other = opened(), opened()
    start = log.open(0).position
    other.open(0)
    one = surely(log.append, b"1", start)

    with pytest.raises(Overtaken):
        surely(other.replace, b"mine", start, edit=True)
    edited = surely(other.replace, b"mine", one, edit=True)

    assert edited > one
    assert log.read(one) == log.read(start) == Contents(b"mine", [], edited)
    last = surely(log.append, b"2", edited)
    assert other.read(edited) == News([b"2"], last)
    assert other.read(one) == opened().open(0) == Contents(b"mine", [b"2"], last)


@pytest.mark.parametrize("number", [0, 1])
def test_a_position_that_is_not_in_the_log_is_a_fork(opened: Open, number: int) -> None:
    log = opened()
    start = log.open(0).position
    position = surely(log.append, b"a", start)
    lost = Position(position.number + number, "4711")

    with pytest.raises(Forked):
        log.read(lost)
    with pytest.raises(Forked):
        surely(log.append, b"b", lost)
    with pytest.raises(Forked):
        log.replace(b"text", lost, edit=False)

    assert opened().open(0) == Contents(b"", [b"a"], position)


def test_who_has_the_turn_is_alone(opened: Open) -> None:
    log, other = opened(), opened()
    position = log.open(0).position
    other.open(0)

    with turn(log, 0):
        with pytest.raises(Overtaken) as caught:
            surely(other.append, b"b", position)
        assert caught.value.is_held
        with pytest.raises(TimeoutError), turn(other, 0.05):
            pass
        position = surely(log.append, b"a", position)
    with turn(other):
        assert other.read(position) == News([], position)
        surely(other.append, b"b", position)

    assert opened().open(0).records == [b"a", b"b"]


def test_the_turn_goes_to_who_waits(opened: Open) -> None:
    """Without looking again and again: of those who wait, each has it once before the first has it again."""
    log, order, waiters = opened(), [], 3
    log.open(0)
    is_waiting = threading.Semaphore(0)

    def wait(number: int) -> None:
        waiter = opened()
        waiter.open(0)
        is_waiting.release()
        for _ in range(3):
            with turn(waiter):
                order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(waiters)]
    with turn(log, 0):
        for thread in threads:
            thread.start()
            is_waiting.acquire(timeout=PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)

    assert sorted(order) == sorted([*range(waiters)] * 3)


def test_a_last_append_ends_the_turn(opened: Open) -> None:
    log, other = opened(), opened()
    position = log.open(0).position
    other.open(0)

    with turn(log):
        position = surely(log.append, b"a", position, last=True)
        with turn(other):
            position = surely(other.append, b"b", position)

    assert opened().open(0).records == [b"a", b"b"]


def test_an_exception_in_a_turn_ends_it(opened: Open) -> None:
    log, other = opened(), opened()
    position = log.open(0).position

    with pytest.raises(ZeroDivisionError), turn(log, 0):
        raise ZeroDivisionError

    with turn(other):
        surely(other.append, b"a", position)


def test_a_watcher_sees_what_comes_and_returns_when_nothing_does(opened: Open) -> None:
    log, watcher = opened(), opened()
    position = log.open(0).position
    watcher.open(0)
    seen: list[bool] = []

    assert not watcher.watch(position, 0.02)
    with in_threads(lambda: seen.append(watcher.watch(position, PATIENCE))):
        surely(log.append, b"a", position)

    assert seen == [True]
    assert watcher.watch(position, 0.02)


@pytest.mark.stress
@rounds(ci=100, nightly=2000)
@pytest.mark.parametrize("way", ["bump", "bump_in_turn", "mixed"])
def test_what_is_acknowledged_is_there_once_and_no_value_twice(opened: Open, rounds: int, way: str) -> None:
    """Four writers count one number up; some renew the text meanwhile."""
    before = 5
    writers = [Writer(f"w{number}", opened()) for number in range(4)]
    for _ in range(before):
        writers[0].bump()
    start = opened()
    start_position = start.open(0).position

    def run(number: int, writer: Writer) -> None:
        for count in range(rounds // 4 + 1):
            in_turn = way == "bump_in_turn" or (way == "mixed" and number % 2)
            (writer.bump_in_turn if in_turn else writer.bump)()
            if count % 25 == number:
                surely(writer.vacuum)

    together(*(partial(run, *pair) for pair in enumerate(writers)))

    news = start.read(start_position)
    assert isinstance(news, News)
    writers[0].acknowledged = writers[0].acknowledged[before:]
    check(news.records, writers, before)
    assert len(news.records) == 4 * (rounds // 4 + 1)


def test_writers_get_on_when_the_records_behind_them_are_gone(chance: random.Random) -> None:
    memory = Memory(kept=2)
    one, two = (Writer(name, MemoryLog(memory, chance, 0.2)) for name in ("one", "two"))
    for _ in range(9):
        one.bump()
    one.vacuum()

    two.bump()

    assert two.value == 10
    assert two.told_trimmed == 2
