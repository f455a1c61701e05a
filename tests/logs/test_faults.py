"""The logs in engines, when connections are cut, servers are killed and clients sleep."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from adapters.servers import free_port
from processes import PATIENCE, Child, interrupt_at
from rounds import rounds
from threads import in_threads, together

from logs import servers
from logs.proxy import BEFORE, BEHIND, FORWARD, Proxy, at_random, of_scripts
from logs.servers import opened, records, refusal
from logs.writers import Writer, check, impatient, turn
from persistedstate_logs import Contents, News, Overtaken, Unknown, asking

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logs.servers import Server


@pytest.fixture(scope="module", params=[servers.Server, servers.Postgres], ids=["redis", "postgres"])
def kind(request: pytest.FixtureRequest) -> type[Server]:
    """The engine."""
    engine: type[Server] = request.param
    return engine


@contextlib.contextmanager
def two_ways(server: Server, proxied: Proxy, name: str, options: str = "") -> Iterator[tuple[Any, Any]]:
    """Give two logs of a state: the first one goes by way of the proxy."""
    with opened(server.url(name, options, port=proxied.port)) as log, opened(server.url(name)) as other:
        yield log, other


@pytest.mark.stress
@rounds(ci=500, nightly=5000)
@pytest.mark.parametrize("way", ["bump", "bump_in_turn"])
def test_cut_connections_lose_and_double_nothing(
    server: Server, proxied: Proxy, chance: random.Random, name: str, rounds: int, way: str
) -> None:
    """Until so many connections were cut, before and behind the forwarding, three writers count one number up."""
    writers = [
        Writer(f"w{number}", servers.log(server.url(name, "?lease=0.3&timeout=60", port=proxied.port)))
        for number in range(3)
    ]
    proxied.fate = at_random(chance, 0.15)

    def run(writer: Writer) -> None:
        while sum(proxied.cuts.values()) < rounds or not all(proxied.cuts.values()):
            getattr(writer, way)()

    together(*(partial(run, writer) for writer in writers))
    for writer in writers:
        writer.log.close()

    check(records(server.url(name)), writers)


@pytest.mark.parametrize("fate", [BEFORE, BEHIND])
def test_a_lost_reply_is_settled_by_asking_again(server: Server, proxied: Proxy, name: str, fate: str) -> None:
    with two_ways(server, proxied, name) as (log, other):
        position = log.open(0).position
        other.open(0)

        proxied.fate = of_scripts(fate)
        for _ in range(2):
            with pytest.raises(Unknown), impatient(log):
                log.append(b"a", position)
        while fate == BEHIND and not other.read(position).records:  # it is under way
            pass
        assert other.read(position).records == [b"a"] * (fate == BEHIND)
        proxied.fate = of_scripts(FORWARD)
        with pytest.raises(Unknown, match="an earlier change"):
            log.append(b"b", position)
        landed = log.append(b"a", position)

        assert other.read(position) == News([b"a"], landed)
        last = log.append(b"b", landed)
        assert other.read(landed) == News([b"b"], last)


def test_a_lost_append_that_others_overtook_did_not_land(server: Server, proxied: Proxy, name: str) -> None:
    with two_ways(server, proxied, name) as (log, other):
        position = log.open(0).position
        other.open(0)
        proxied.fate = of_scripts(BEFORE)
        with pytest.raises(Unknown), impatient(log):
            log.append(b"a", position)
        other.append(b"b", position)
        proxied.fate = of_scripts(FORWARD)

        with pytest.raises(Overtaken):
            log.append(b"a", position)

        news = log.read(position)
        assert news.records == [b"b"]
        log.append(b"c", news.position)
    assert records(server.url(name)) == [b"b", b"c"]


def test_a_lost_append_is_open_while_another_one_has_the_turn(server: Server, proxied: Proxy, name: str) -> None:
    """It may still be under way, and would land when that turn ends; after a restart nobody's turn is known."""
    with two_ways(server, proxied, name) as (log, other):
        position = log.open(0).position
        other.open(0)
        proxied.fate = of_scripts(BEFORE)
        with pytest.raises(Unknown), impatient(log):
            log.append(b"a", position)
        proxied.fate = of_scripts(FORWARD)

        with turn(other):
            with pytest.raises(Unknown), impatient(log):
                log.append(b"a", position)
            thread = threading.Thread(target=lambda: log.append(b"a", position))
            thread.start()
        thread.join(PATIENCE)

    assert records(server.url(name)) == [b"a"]


def test_records_stay_for_those_who_ask_late(server: Server, proxied: Proxy, name: str) -> None:
    """Vacuums by others take nothing away that may not be settled yet."""
    with two_ways(server, proxied, name) as (log, other):
        position = log.open(0).position
        proxied.fate = of_scripts(BEHIND)
        with pytest.raises(Unknown), impatient(log):
            log.append(b"1", position)
        vacuum_thrice(other)
        proxied.fate = of_scripts(FORWARD)

        landed = log.append(b"1", position)

        assert log.read(landed).records == [b"more", b"more", b"more"]


def test_who_asks_too_late_is_told_so(
    server: Server, proxied: Proxy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{server.engine}._KEPT", 0)
    with two_ways(server, proxied, name) as (log, other):
        position = log.open(0).position
        proxied.fate = of_scripts(BEHIND)
        with pytest.raises(Unknown), impatient(log):
            log.append(b"1", position)
        vacuum_thrice(other)
        proxied.fate = of_scripts(FORWARD)

        for _ in range(2):
            with pytest.raises(Unknown, match="cannot be told"), impatient(log):
                log.append(b"1", position)
        assert isinstance(log.read(position), Contents)


def vacuum_thrice(log: Any) -> None:
    position = log.open(0).position
    for _ in range(3):
        position = log.append(b"more", position)
        log.replace(b"text", position)


@pytest.mark.stress
@rounds(ci=100, nightly=1000)
def test_kills_of_a_server_that_writes_each_change_to_its_disk_lose_nothing(
    tmp_path: Path, kind: type[Server], rounds: int
) -> None:
    """Three writers count one number up while their server is killed and started again."""
    with servers.running(tmp_path / "server", *kind.always, kind=kind) as server:
        url = server.url("killed", f"?timeout={PATIENCE}")
        writers = [Writer(f"w{number}", servers.log(url, fsync=True)) for number in range(3)]
        is_over = threading.Event()
        with in_threads(*(partial(count_until, is_over, writer) for writer in writers), until=is_over):
            for _ in range(rounds):
                before = sum(writer.count for writer in writers)
                while sum(writer.count for writer in writers) < before + 10:
                    time.sleep(0.001)
                server.kill()
                server.start()
        with opened(url) as log:
            contents = log.open(0)
        for writer in writers:
            writer.log.close()

    values = [int(record.split()[2]) for writer in writers for record in writer.acknowledged]
    assert sorted(values) == list(range(1, len(values) + 1))
    last = contents.records[-1].split()[2] if contents.records else contents.text
    assert int(last) == len(values)


def count_until(is_over: threading.Event, writer: Writer) -> None:
    while not is_over.is_set():
        (writer.bump_in_turn if writer.count % 3 == 0 else writer.bump)()
        if writer.count % 100 == 0:
            writer.vacuum()


def test_a_client_that_sleeps_past_its_turn_is_overtaken(server: Server, name: str) -> None:
    code = """
        import sys
        from logs import servers
        from persistedstate_logs import Overtaken

        log = servers.log(sys.argv[1])
        position = log.open(0).position
        log.take_turn(0)
        print("has the turn")
        sys.stdin.readline()
        try:
            log.append(b"late", position)
        except Overtaken as overtaken:
            print("overtaken", overtaken.is_held)
    """
    url = server.url(name, "?lease=0.3")
    with Child(code, url) as child, opened(server.url(name)) as log:
        child.expect("has the turn")
        child.send_signal(signal.SIGSTOP)
        position = log.open(0).position
        with turn(log):
            child.send_signal(signal.SIGCONT)
            child.tell()
            child.expect("overtaken True")
            log.append(b"in time", position)
        child.finish()

    assert records(url) == [b"in time"]


@pytest.mark.parametrize("fate", [BEFORE, BEHIND])
def test_what_belongs_to_a_lost_turn_is_refused_also_when_a_first_try_got_no_answer(
    server: Server, proxied: Proxy, name: str, fate: str
) -> None:
    with two_ways(server, proxied, name, "?lease=0.05") as (log, other):
        position = log.open(0).position
        other.open(0)
        log.take_turn(0)

        with turn(other):
            proxied.fate = once(fate)
            with pytest.raises(Overtaken) as caught:
                log.append(b"late", position)
            assert caught.value.is_held
            other.append(b"in time", position)
        with pytest.raises(Overtaken):
            log.append(b"late", position)
    assert records(server.url(name)) == [b"in time"]


def once(fate: str) -> Callable[[bytes], str]:
    """Return a fate that meets the first request of a script, or of a statement, and no other."""
    fates = iter([fate])
    return lambda data: next(fates, FORWARD) if of_scripts(fate)(data) == fate else FORWARD


def test_a_lost_turn_is_lost_also_when_the_one_who_had_it_next_wrote_nothing(server: Server, name: str) -> None:
    with opened(server.url(name, "?lease=0.05")) as log, opened(server.url(name)) as other:
        position = log.open(0).position
        other.open(0)
        log.take_turn(0)
        with turn(other):
            pass

        with pytest.raises(Overtaken):
            log.append(b"late", position)

    assert records(server.url(name)) == []


def test_the_turn_of_a_killed_process_ends(server: Server, name: str) -> None:
    code = """
        import sys
        from logs import servers

        log = servers.log(sys.argv[1])
        log.open(0)
        log.take_turn(0)
        print("has the turn")
        sys.stdin.readline()
    """
    url = server.url(name, "?lease=0.5")
    with Child(code, url) as child, opened(url) as log:
        child.expect("has the turn")
        child.kill()
        position = log.open(0).position
        with turn(log):
            log.append(b"a", position)


def test_a_server_that_is_not_there_is_told_at_once(server: Server, name: str) -> None:
    error = refusal(server.url(name, port=free_port()))

    assert isinstance(error, ConnectionError)
    assert "cannot be reached" in str(error)


def test_a_server_that_does_not_answer_is_told_within_seconds(server: Server, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = refusal(server.url(name, "?timeout=0.2", port=silent.getsockname()[1]))

    assert isinstance(error, TimeoutError)
    assert "no answer within 0.2 seconds" in str(error)


def test_open_waits_for_a_server_that_starts(tmp_path: Path, kind: type[Server]) -> None:
    with servers.running(tmp_path / "server", kind=kind) as server:
        server.kill()
        thread = threading.Thread(target=server.start)
        with opened(server.url("x")) as log:
            thread.start()
            assert log.open(PATIENCE).records == []
        thread.join()


def test_an_append_to_a_server_that_is_gone_writes_nothing(tmp_path: Path, kind: type[Server]) -> None:
    with (
        servers.running(tmp_path / "server", *kind.always, kind=kind) as server,
        opened(server.url("x"), fsync=True) as log,
    ):
        position = log.open(0).position
        server.kill()
        with pytest.raises((ConnectionError, Unknown)), impatient(log):
            log.append(b"a", position)  # it may have been sent: the connection was open
        log.close()
        with pytest.raises((ConnectionError, Unknown)), impatient(log):
            log.append(b"a", position)
        server.start()

        position = log.append(b"a", position)

        assert log.open(0) == Contents(b"", [b"a"], position)


def test_reading_makes_nothing(server: Server, name: str) -> None:
    with opened(server.url(name), readonly=True) as log, pytest.raises(FileNotFoundError):
        log.open(0)

    with opened(server.url(name)) as log:
        assert log.open(0).records == []
        assert log.open(0).position.number == 1


@pytest.mark.stress
@rounds(ci=300, nightly=20_000)
@pytest.mark.leaves("descriptors")  # as long as what an interrupt left is not collected
def test_an_interrupt_leaves_each_append_whole_or_undone(
    server: Server, name: str, chance: random.Random, rounds: int
) -> None:
    files = [asking.__file__, str(importlib.import_module(server.engine).__file__)]
    with opened(server.url(name)) as log:
        position = start = log.open(0).position
        for count in range(rounds):
            record = b"%d" % count
            interrupt_at(chance.randrange(1, 500), lambda: log.append(record, position), files)  # noqa: B023
            position = log.append(record, position)
            interrupt_at(chance.randrange(1, 620), lambda: take_turn(log), files)
            log.end_turn()  # again: the interrupt may have come in front of it
        assert log.read(start).records == [b"%d" % count for count in range(rounds)]


def take_turn(log: Any) -> None:
    with contextlib.suppress(TimeoutError), turn(log, 0):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_uses_a_connection_of_its_own(server: Server, name: str) -> None:
    """Parent and child count one number up at the same time."""
    writer = Writer("parent", servers.log(server.url(name)))
    child = os.fork()
    if child == 0:
        writer.name = "child"
        try:
            for _ in range(200):
                writer.bump()
            os._exit(0)
        finally:
            os._exit(1)
    for _ in range(200):
        writer.bump()
    _, status = os.waitpid(child, 0)
    writer.log.close()

    found = records(server.url(name))
    assert status == 0
    assert [int(record.split()[2]) for record in found] == list(range(1, 401))
    assert [record for record in found if record.startswith(b"parent")] == writer.acknowledged
