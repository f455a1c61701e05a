"""The log in PostgreSQL: standbys, servers that are wrong, and addresses; see test_faults.py for the rest."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from adapters.servers import as_nobody, free_port
from processes import PATIENCE
from rounds import rounds
from threads import in_threads, together

from logs import servers
from logs.servers import Postgres, opened, refusal
from logs.writers import Writer, impatient, turn
from persistedstate import StateError
from persistedstate_logs import Contents, Forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

psycopg = pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")

from persistedstate_logs.postgres import PostgresLog  # noqa: E402 - it imports psycopg


@pytest.fixture(scope="module")
def kind() -> type[Postgres]:
    """The engine."""
    return Postgres


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Postgres]:
    with servers.running(folder, *options, kind=Postgres) as server:
        assert isinstance(server, Postgres)
        yield server


@pytest.fixture
def database(server: Postgres, name: str) -> str:
    """A database that no other test uses."""
    database = f"d{abs(hash(name))}"
    server.command(f"CREATE DATABASE {database}")
    return database


def execute(server: Postgres, database: str, statement: str) -> list[Any]:
    with psycopg.connect(server.address(database), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


# ---- Standbys ----


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and its synchronous standby."""
    with running(tmp_path / "primary", "-c", "fsync=on") as primary:
        folder = Path(tempfile.mkdtemp())
        folder.chmod(0o777)
        standby = Postgres.__new__(Postgres)
        standby.folder, standby.options, standby.port = folder, ("-c", "fsync=on"), free_port()
        source = f"host=127.0.0.1 port={primary.port} user=me application_name=standby"
        copy = as_nobody("pg_basebackup", "-R", "--no-sync", "--checkpoint=fast", "-D", f"{folder}/data", "-d", source)
        try:
            subprocess.run(copy, check=True, stdout=subprocess.DEVNULL)
            standby.start()
            try:
                primary.command("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                primary.command("SELECT pg_reload_conf()")
                await_true(primary, "SELECT sync_state = 'sync' FROM pg_stat_replication")
                yield primary, standby
            finally:
                standby.kill()
        finally:
            shutil.rmtree(folder)


def await_true(server: Postgres, question: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.command(question) != [(True,)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_standby_is_refused_except_for_reading(pair: tuple[Postgres, Postgres]) -> None:
    primary, standby = pair
    with opened(primary.url("x"), fsync=True) as log, opened(standby.url("x"), readonly=True) as reader:
        position = log.append(b"a", log.open(0).position)
        [(lsn,)] = primary.command("SELECT pg_current_wal_lsn()::text")
        await_true(standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")

        error = refusal(standby.url("x"))

        assert isinstance(error, OSError)
        assert "only reads, as a standby does" in str(error)
        assert reader.open(0) == Contents(b"", [b"a"], position)


def test_a_standby_that_takes_over_has_each_change_that_returned(pair: tuple[Postgres, Postgres]) -> None:
    """Two writers count one number up, by an address with both servers, while the first is killed for good."""
    primary, standby = pair
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = f"postgresql://me@{hosts}/postgres/x?timeout={PATIENCE}"
    writers = [Writer(f"w{number}", PostgresLog(url, fsync=True)) for number in range(2)]

    def run(writer: Writer) -> None:
        while writer.count < 60:
            (writer.bump_in_turn if writer.count % 3 == 0 else writer.bump)()

    with in_threads(*(partial(run, writer) for writer in writers)):
        while sum(writer.count for writer in writers) < 40:
            time.sleep(0.001)
        primary.kill()
        standby.command("SELECT pg_promote()")

    with opened(url) as log:
        found = [int(record.split()[2]) for record in log.open(0).records]
    for writer in writers:
        writer.log.close()
    values = [int(record.split()[2]) for writer in writers for record in writer.acknowledged]
    assert sorted(values) == found == list(range(1, 121))


def test_what_is_settled_on_another_connection_waits_for_the_standby_too(pair: tuple[Postgres, Postgres]) -> None:
    """The first try is in the primary; its session was ended while it waited."""
    primary, _ = pair
    with opened(primary.url("x"), fsync=True) as log:
        position = log.append(b"0", log.open(0).position)
        primary.command("ALTER SYSTEM SET synchronous_standby_names = 'another'")
        primary.command("SELECT pg_reload_conf()")
        await_true(primary, "SELECT count(*) = 0 FROM pg_stat_replication WHERE sync_state = 'sync'")
        answers: list[Any] = []
        with in_threads(lambda: answers.append(attempt(log, position))):
            await_true(primary, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            primary.command("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

        assert answers == ["unknown"]  # though it is there, also for the others
        primary.command("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.command("SELECT pg_reload_conf()")
        await_true(primary, "SELECT sync_state = 'sync' FROM pg_stat_replication")
        primary.command("SELECT pg_logical_emit_message(true, '', '')")  # the standby tells how far it is
        log.append(b"1", position)
        assert log.open(0).records == [b"0", b"1"]


def attempt(log: PostgresLog, position: Any) -> str:
    from persistedstate_logs import Unknown

    try:
        with impatient(log):
            log.append(b"1", position)
    except Unknown:
        return "unknown"
    return "written"


# ---- Turns ----


def test_the_turn_of_a_connection_that_ends_is_free(server: Postgres, name: str) -> None:
    with opened(server.url(name)) as log, opened(server.url(name)) as other:
        position = log.open(0).position
        other.open(0)
        log.take_turn(0)
        server.command("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")

        with turn(other):
            position = other.append(b"a", position)

        assert log.read(position).records == []


@rounds(ci=40, nightly=1000)
def test_who_has_the_turn_writes_while_others_wait_for_it(server: Postgres, name: str, rounds: int) -> None:
    with opened(server.url(name)) as log, opened(server.url(name)) as other:
        position = log.open(0).position
        other.open(0)
        waiting = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        for _ in range(rounds):
            with turn(log):
                thread = threading.Thread(target=lambda: take_turn(other))
                thread.start()
                await_true(server, waiting)
                position = log.append(b"a", position)
            thread.join(PATIENCE)

        assert len(log.open(0).records) == rounds


def take_turn(log: PostgresLog) -> None:
    with turn(log):
        pass


# ---- Servers that are wrong ----


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Postgres]:
    """A server that wants passwords; that of `me` is `secret`."""
    with running(tmp_path / "server") as server:
        server.command("ALTER USER me PASSWORD 'secret'")
        rules = server.folder / "data" / "pg_hba.conf"
        rules.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server.command("SELECT pg_reload_conf()")
        deadline = time.monotonic() + PATIENCE
        while server.answers():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server


def test_passwords(guarded: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    for user, environment, reason in [
        ("", "", "wants a password"),
        ("me:wrong@", "", "does not accept user and password"),
        ("nobody:secret@", "", "does not accept user and password"),
        ("", "wrong", "does not accept user and password"),
        ("me:secret@", "", ""),
        ("me@", "secret", ""),
    ]:
        monkeypatch.setenv("PGPASSWORD", environment)
        if not reason:
            with opened(guarded.url("x", user=user)) as log:
                assert log.open(0).records == []
            continue
        error = refusal(guarded.url("x", user=user))
        assert isinstance(error, PermissionError)
        assert reason in str(error)
        assert "secret" not in str(error)
        assert "wrong" not in str(error)


def test_the_user_comes_from_the_environment(server: Postgres, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "me")
    with opened(server.url(name).replace("me@", "")) as log:
        assert log.open(0).records == []


def test_no_such_database_is_told(server: Postgres) -> None:
    error = refusal(server.url("x").replace("/postgres/", "/nowhere/"))

    assert isinstance(error, FileNotFoundError)
    assert "no such database: make it there" in str(error)


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE persistedstate_texts (mine int)",
        "CREATE TABLE persistedstate_records (mine int)",
        "CREATE TABLE persistedstate_texts (name text PRIMARY KEY, layout text, text xml, at date)",
    ],
)
def test_tables_of_something_else_are_refused_and_stay(server: Postgres, database: str, tables: str) -> None:
    execute(server, database, tables)
    columns = "SELECT table_name, column_name FROM information_schema.columns WHERE table_name LIKE 'persist%'"
    before = set(execute(server, database, columns))

    error = refusal(server.url("x").replace("/postgres/", f"/{database}/"))

    assert isinstance(error, StateError)
    assert "of something else, or of another version" in str(error)
    assert before <= set(execute(server, database, columns))


def test_another_layout_is_refused_at_any_time(server: Postgres, name: str) -> None:
    with opened(server.url(name)) as log:
        position = log.open(0).position
        server.command("UPDATE persistedstate_texts SET layout = 2 WHERE name = %s", name)

        actions: list[Callable[[], object]] = [
            lambda: log.append(b"a", position),
            lambda: log.replace(b"a", position),
            lambda: log.replace(b"a", position, edit=True),
            lambda: log.read(position),
            lambda: log.take_turn(0),
        ]
        for action in actions:
            with pytest.raises(StateError, match="layout 2; this version of persistedstate knows 1"):
                action()
        assert "install the version" in str(refusal(server.url(name)))
        assert server.command("SELECT count(*) FROM persistedstate_records WHERE name = %s", name) == [(1,)]


@pytest.mark.parametrize("what", ["rows", "text", "tables"])
def test_a_state_that_somebody_removed_is_a_fork(server: Postgres, database: str, what: str) -> None:
    with opened(server.url("x").replace("/postgres/", f"/{database}/")) as log:
        position = log.append(b"a", log.open(0).position)
        verb = "DROP TABLE" if what == "tables" else "DELETE FROM"
        execute(server, database, f"{verb} persistedstate_texts")
        if what != "text":
            execute(server, database, f"{verb} persistedstate_records")

        with pytest.raises(Forked, match="no state any more"):
            log.append(b"b", position)
        with pytest.raises(Forked):
            log.read(position)
    if what == "text":
        error = refusal(server.url("x").replace("/postgres/", f"/{database}/"))
        assert "records of this name without a text" in str(error)


def test_who_may_not_make_tables_is_told(server: Postgres, database: str) -> None:
    server.command(f"CREATE USER u{database}")
    url = server.url("x", user=f"u{database}@").replace("/postgres/", f"/{database}/")
    execute(server, database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    error = refusal(url)

    assert isinstance(error, PermissionError)
    assert "to make two tables" in str(error)


@pytest.mark.parametrize(
    ("fsync", "level"), [(True, "on"), (False, "off"), (5, "off"), (0.5, "on"), (0.6, "off"), (1e-9, "on")]
)
def test_fsync_tells_when_a_commit_returns(tmp_path: Path, fsync: bool | float, level: str) -> None:
    with running(tmp_path / "server", "-c", "fsync=on") as server, opened(server.url("x"), fsync=fsync) as log:
        log.open(0)
        [answer] = log._link.ask(("SELECT current_setting('synchronous_commit')",))

    assert answer == [(level.encode(),)]


def test_a_server_that_never_waits_for_its_disk_is_refused(server: Postgres, name: str) -> None:
    for fsync in (True, 5):
        error = refusal(server.url(name), fsync=fsync)
        assert isinstance(error, StateError)
        assert f"_fsync={fsync} needs `fsync = on`" in str(error)


def test_several_at_once_make_one_state_and_one_pair_of_tables(server: Postgres, database: str) -> None:
    url = server.url("x").replace("/postgres/", f"/{database}/")
    found: list[Contents] = []

    def run() -> None:
        with opened(url) as log:
            found.append(log.open(PATIENCE))

    together(*[run] * 8)

    assert len(found) == 8
    assert len(set(map(str, found))) == 1


def test_names_keep_apart(server: Postgres, name: str) -> None:
    with opened(server.url(f"{name}%20%C3%BC")) as log, opened(server.url(f"{name}%2F")) as other:
        log.append(b"a", log.open(0).position)

        assert other.open(0).records == []
    assert server.command("SELECT name FROM persistedstate_texts WHERE name = %s", f"{name} ü") == [(f"{name} ü",)]


# ---- Addresses ----


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:1/db/",
        "postgresql://127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/x/y/z",
        "postgresql://127.0.0.1:1/db/a%0Ab",
        "postgresql://[127.0.0.1:1/db/x",
        "postgresql://127.0.0.1:port/db/x",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(StateError, match="no address of a state") as caught:
        PostgresLog(url).open(0)
    assert "HOST:PORT" in str(caught.value)


@pytest.mark.parametrize(
    "option", ["lease=0", "timeout=x", "retries=3", "timeout=nan", "password=secret", "passwd=secret"]
)
def test_an_unknown_option_is_refused(option: str) -> None:
    with pytest.raises(StateError, match="is no option") as caught:
        PostgresLog(f"postgresql://127.0.0.1:1/db/x?{option}")
    assert "secret" not in str(caught.value)


def test_no_error_shows_the_password() -> None:
    url = "postgresql://ada:secret@127.0.0.1:1/db/x"

    assert PostgresLog(url).path == "postgresql://ada@127.0.0.1:1/db/x"
    assert "secret" not in str(refusal(url))


@pytest.mark.parametrize("password", ["s/secret", "12/secret", "s?secret"])
def test_a_password_that_is_not_quoted_is_not_shown(password: str) -> None:
    with pytest.raises(StateError, match=r"write / [?] # @ as %2F") as caught:
        PostgresLog(f"postgresql://ada:{password}@127.0.0.1:1/db/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        "postgres://me:secret@HOST,::1/db/x?sslmode=prefer&application_name=a",
        "postgresql://host:5432,[::1]/db/%78?user=me&application_name=a&lease=3&sslmode=prefer",
        "postgresql:///db/x?host=host,::1&port=5432&application_name=a&user=me&sslmode=prefer",
    ],
)
def test_an_address_has_one_spelling(other: str) -> None:
    one = "postgresql://me@host:5432,[::1]:5432/db/x?application_name=a&sslmode=prefer"
    assert PostgresLog(other.replace(",::1/", ",[::1]/")).path == PostgresLog(one).path == one


def test_options_of_libpq_and_a_socket_serve_as_well(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        with running(tmp_path / "server", "-c", f"unix_socket_directories={folder}") as server:
            server.command("CREATE SCHEMA other")
            url = f"postgres:///postgres/x?host={folder}&port={server.port}&user=me&options=-c%20search_path%3Dother"
            with opened(url) as log:
                log.append(b"a", log.open(0).position)
            assert server.command("SELECT count(*) FROM other.persistedstate_texts") == [(1,)]
    finally:
        shutil.rmtree(folder)
