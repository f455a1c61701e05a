"""The log in Valkey or Redis, when connections are cut, servers are killed, paused, promoted or wrong."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest
from processes import PATIENCE

from logs import servers
from logs.proxy import BEHIND, FORWARD, Proxy, of_scripts
from logs.servers import opened, records, refusal
from logs.writers import impatient, turn
from persistedstate import PersistedState, StateError
from persistedstate_logs import Contents, Forked, Unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logs.servers import Server

redis = pytest.importorskip("redis", reason="the extra `redis` is not installed")

from persistedstate_logs.redis import RedisLog  # noqa: E402 - it imports redis

# ---- Servers that die ----


def test_a_turn_costs_no_write_to_the_disk(tmp_path: Path) -> None:
    with servers.running(tmp_path / "server", *servers.ALWAYS) as server, opened(server.url("x")) as log:
        position = log.open(0).position
        before = server.command("INFO", "persistence")["aof_current_size"]  # type: ignore[index]
        for _ in range(3):
            with turn(log):
                log.read(position)
        log.read(position)

        assert server.command("INFO", "persistence")["aof_current_size"] == before  # type: ignore[index]
        log.append(b"a", position)
        assert server.command("INFO", "persistence")["aof_current_size"] > before  # type: ignore[index]


def test_who_dies_with_the_baton_in_hand_keeps_the_others_waiting_for_a_moment_only(server: Server, name: str) -> None:
    """A client that waits in front of the others, gets the baton, and does nothing with it."""
    url = server.url(name)
    with opened(url) as log, opened(url) as other, contextlib.closing(redis.Redis(port=server.port)) as dead:
        log.open(0)
        other.open(0)
        with turn(log, 0):
            with pytest.raises(TimeoutError):
                other.take_turn(0)  # as every client does before it waits
            thread = threading.Thread(target=dead.blpop, args=(f"{{{name}}}:baton",), kwargs={"timeout": PATIENCE})
            thread.start()
            await_blocked(server, 1)
        thread.join(PATIENCE)

        with turn(other):
            pass


def await_blocked(server: Server, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.command("INFO", "clients")["blocked_clients"] < count:  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_longest_waiting_has_the_turn_next(server: Server, name: str) -> None:
    url, order = server.url(name), []
    with opened(url) as log, contextlib.ExitStack() as stack:
        log.open(0)
        logs = [stack.enter_context(opened(url)) for _ in range(3)]

        def wait(number: int) -> None:
            logs[number].open(0)
            with turn(logs[number]):
                order.append(number)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
        with turn(log, 0):
            for number, thread in enumerate(threads):
                thread.start()
                await_blocked(server, number + 1)
        for thread in threads:
            thread.join(PATIENCE)

    assert order == [0, 1, 2]


# ---- Replicas ----


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica, in step."""
    options = ("--repl-diskless-sync-delay", "0")
    with servers.running(tmp_path / "primary", *servers.ALWAYS, *options) as primary:
        follows = ("--replicaof", f"127.0.0.1 {primary.port}")
        with servers.running(tmp_path / "replica", *servers.ALWAYS, *options, *follows) as replica:
            await_step(primary, replica)
            yield primary, replica


def await_step(primary: Server, replica: Server) -> None:
    """Wait until a replica has all that its primary has, on its disk, too."""
    deadline = time.monotonic() + PATIENCE
    while True:
        first, second = (dict(server.command("INFO")) for server in (primary, replica))  # type: ignore[call-overload]
        is_linked = second["master_link_status"] == "up"
        is_in_step = is_linked and second["slave_repl_offset"] == first["master_repl_offset"]
        if is_in_step and not second["aof_rewrite_in_progress"] and not second["aof_rewrite_scheduled"]:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_replica_is_refused_except_for_reading(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    with (
        opened(primary.url("x")) as log,
        opened(replica.url("x")) as other,
        opened(replica.url("x"), readonly=True) as reader,
    ):
        position = log.append(b"a", log.open(0).position)
        await_step(primary, replica)

        with pytest.raises(OSError, match="replica, which only reads"):
            other.open(0)
        assert reader.open(0) == Contents(b"", [b"a"], position)


def test_promotion_of_a_replica_that_lacks_changes_is_a_fork(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    with (
        contextlib.closing(Proxy(primary.port)) as proxy,
        opened(primary.url("x", port=proxy.port)) as log,
        opened(replica.url("x")) as other,
    ):
        position = log.append(b"on both", log.open(0).position)
        await_step(primary, replica)
        replica.kill()
        lost = log.append(b"lost", position)
        primary.kill()
        replica.options = servers.ALWAYS
        replica.start()
        proxy.target = replica.port

        with pytest.raises(Forked):
            log.append(b"more", lost)
        with pytest.raises(Forked):
            log.read(lost)
        # Neither does it go unnoticed when the number of records is the same again.
        for record in (b"other", b"others"):
            position = other.append(record, other.open(0).position)
        with pytest.raises(Forked):
            log.append(b"more", lost)

        assert other.open(0).records == [b"on both", b"other", b"others"]


def test_what_a_replica_has_survives_its_promotion(pair: tuple[Server, Server]) -> None:
    """With `?replicas=1` and `_fsync=True`; a reply that was lost meanwhile is settled on the other server."""
    primary, replica = pair
    with (
        contextlib.closing(Proxy(primary.port)) as proxy,
        opened(primary.url("x", "?replicas=1&timeout=4", port=proxy.port), fsync=True) as log,
    ):
        position = log.append(b"1", log.open(0).position)
        log.sync()
        proxy.fate = of_scripts(BEHIND)
        with pytest.raises(Unknown), impatient(log):
            log.append(b"2", position)
        await_step(primary, replica)
        primary.kill()
        replica.command("REPLICAOF", "NO", "ONE")
        proxy.target, proxy.fate = replica.port, of_scripts(FORWARD)

        position = log.append(b"2", position)

        with pytest.raises(OSError, match="0 of 1 replicas only"):
            log.sync()
        assert log.open(0) == Contents(b"", [b"1", b"2"], position)


def test_waiting_for_replicas_waits_for_what_another_connection_wrote(pair: tuple[Server, Server]) -> None:
    """The server counts by connection: what is settled on a new one has to be waited for, too."""
    primary, replica = pair
    with (
        contextlib.closing(Proxy(primary.port)) as proxy,
        opened(primary.url("x", "?replicas=1&timeout=4", port=proxy.port), fsync=True) as log,
    ):
        position = log.append(b"0", log.open(0).position)  # the server knows the script from here on
        log.sync()
        replica.pause()
        proxy.fate = of_scripts(BEHIND)
        with pytest.raises(Unknown), impatient(log):
            log.append(b"1", position)
        proxy.fate = of_scripts(FORWARD)
        while len(records(primary.url("x"))) < 2:  # it is under way
            pass
        log.append(b"1", position)

        with pytest.raises(OSError, match="0 of 1 replicas only"):
            log.sync()
        replica.go_on()
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                log.sync()
                break
            assert time.monotonic() < deadline


# ---- Servers that are wrong ----


@pytest.mark.parametrize(
    ("user", "environment", "reason"),
    [
        ("", {}, "wants a password"),
        (":wrong@", {}, "does not accept user and password"),
        ("nobody:secret@", {}, "does not accept user and password"),
        (":secret@", {}, ""),
        ("", {"REDIS_PASSWORD": "secret"}, ""),
        ("default@", {"REDIS_PASSWORD": "secret"}, ""),
        ("", {"REDIS_PASSWORD": "other", "REDIS_USERNAME": "default"}, "does not accept user and password"),
    ],
)
def test_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, environment: dict[str, str], reason: str
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with servers.running(tmp_path / "server", "--requirepass", "secret") as server:
        if not reason:
            with opened(server.url("x", user=user)) as log:
                assert log.open(0).records == []
            return
        error = refusal(server.url("x", user=user))

    assert isinstance(error, PermissionError)
    assert reason in str(error)
    assert "secret" not in str(error)
    assert "wrong" not in str(error)


def test_no_memory_is_told_and_changes_nothing(tmp_path: Path) -> None:
    with servers.running(tmp_path / "server", "--maxmemory-policy", "noeviction") as server:
        with opened(server.url("x")) as log:
            position = log.append(b"a", log.open(0).position)
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(OSError, match="no memory left"):
                log.append(b"b", position)
            with pytest.raises(OSError, match="no memory left"):
                log.replace(b"text", position)
            assert log.read(position).records == []
            server.command("CONFIG", "SET", "maxmemory", "0")

            log.append(b"c", position)
        assert records(server.url("x")) == [b"a", b"c"]


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_a_server_that_may_drop_the_state_is_refused(tmp_path: Path, policy: str) -> None:
    with servers.running(tmp_path / "server", "--maxmemory", "1gb", "--maxmemory-policy", policy) as server:
        error = refusal(server.url("x"))
        assert server.command("DBSIZE") == 0

    assert isinstance(error, StateError)
    assert policy in str(error)


@pytest.mark.parametrize("policy", ["volatile-lru", "noeviction"])
def test_a_server_that_drops_only_what_expires_is_fine(tmp_path: Path, policy: str) -> None:
    with servers.running(tmp_path / "server", "--maxmemory", "1gb", "--maxmemory-policy", policy) as server:
        assert records(server.url("x")) == []


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (("SET", "{x}:state", "mine"), "{x}:state is a string"),
        (("HSET", "{x}:state", "mine", "1"), "{x}:state is a hash of something else"),
        (("SET", "{x}:log", "mine"), "{x}:log is a string"),
        (("XADD", "{x}:log", "1-1", "mine", "1"), "{x}:log is a stream without a state"),
        (("RPUSH", "{x}:turn", "mine"), "{x}:turn is a list"),
        (("SET", "{x}:baton", "mine"), "{x}:baton is a string"),
    ],
)
def test_what_somebody_else_keeps_there_is_refused_and_stays(
    tmp_path: Path, command: tuple[str, ...], found: str
) -> None:
    with servers.running(tmp_path / "server") as server:
        server.command(*command)
        before = server.command("DUMP", command[1])

        error = refusal(server.url("x"))

        assert isinstance(error, StateError)
        assert found in str(error)
        assert server.command("DUMP", command[1]) == before
        assert server.command("DBSIZE") == 1


def test_another_layout_is_refused_at_any_time(server: Server, name: str) -> None:
    with opened(server.url(name)) as log:
        position = log.open(0).position
        server.command("HSET", f"{{{name}}}:state", "layout", "2")

        actions: list[Callable[[], object]] = [
            lambda: log.append(b"a", position),
            lambda: log.replace(b"a", position),
            lambda: log.read(position),
            lambda: log.take_turn(0),
        ]
        for action in actions:
            with pytest.raises(StateError, match="layout 2; this version of persistedstate knows 1"):
                action()
        assert "install the version" in str(refusal(server.url(name)))
        assert not server.command("EXISTS", f"{{{name}}}:log")


def test_a_state_that_somebody_removed_is_a_fork(server: Server, name: str) -> None:
    with opened(server.url(name)) as log:
        position = log.append(b"a", log.open(0).position)
        server.command("DEL", f"{{{name}}}:state", f"{{{name}}}:log")

        with pytest.raises(Forked, match="no state any more"):
            log.append(b"b", position)
        with pytest.raises(Forked):
            log.read(position)


@pytest.mark.parametrize(
    ("options", "fsync", "found"),
    [
        ((), True, "no, without appendonly"),
        (("--appendfsync", "always"), True, "no, without appendonly"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), True, "everysec"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), 1, "everysec"),
        (("--appendonly", "yes", "--appendfsync", "no"), 5, "no"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), 2, None),
        (("--appendonly", "yes", "--appendfsync", "no"), False, None),
        (servers.ALWAYS, True, None),
        (servers.ALWAYS, 0.1, None),
    ],
)
def test_fsync_asks_for_what_the_server_does(
    tmp_path: Path, options: tuple[str, ...], fsync: bool | float, found: str | None
) -> None:
    with servers.running(tmp_path / "server", *options) as server:
        if found is None:
            with opened(server.url("x"), fsync=fsync) as log:
                assert log.open(0).records == []
            return
        error = refusal(server.url("x"), fsync=fsync)
        assert server.command("DBSIZE") == 0

    assert isinstance(error, StateError)
    assert f"there it is {found}" in str(error)


def test_fsync_is_refused_where_the_server_does_not_tell(tmp_path: Path) -> None:
    with servers.running(tmp_path / "server", *servers.ALWAYS) as server:
        server.command("ACL", "SETUSER", "some", "on", ">secret", "~*", "+@all", "-config", "-info")

        error = refusal(server.url("x", user="some:secret@"), fsync=True)

        assert isinstance(error, StateError)
        assert "does not tell" in str(error)
        with opened(server.url("x", user="some:secret@")) as log:
            assert log.open(0).records == []


def test_what_the_user_may_not_do_is_told(server: Server, name: str) -> None:
    server.command("ACL", "SETUSER", name, "on", ">secret", "~other", "+@all")

    error = refusal(server.url(name, user=f"{name}:secret@"))

    assert isinstance(error, PermissionError)
    assert "may not do what a state needs" in str(error)


def test_a_server_lends_its_other_databases(server: Server, name: str) -> None:
    with opened(server.url(name).replace("/0/", "/3/")) as log, opened(server.url(name)) as other:
        log.append(b"a", log.open(0).position)

        assert other.open(0).records == []


def test_scripts_that_the_server_forgot_are_sent_again(server: Server, name: str) -> None:
    with opened(server.url(name)) as log, opened(server.url(name)) as other:
        position = log.open(0).position
        for record in (b"a", b"b"):
            server.command("SCRIPT", "FLUSH")
            position = log.append(record, position)
        with turn(log, 0):
            log.read(position)
            server.command("SCRIPT", "FLUSH")
            position = log.append(b"c", position)
        assert other.open(0).records == [b"a", b"b", b"c"]


# ---- Addresses ----


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0/",
        "redis://127.0.0.1:1/0",
        "redis://127.0.0.1:1/x.state",
        "redis://127.0.0.1:1/zero/x.state",
        "redis://127.0.0.1:1/0/a/b",
        "redis://127.0.0.1:1/0/a{b}",
        "redis://127.0.0.1:1/0/a%0Ab",
        "redis://127.0.0.1:port/0/x",
        "unix:///0/x",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(StateError, match="no address of a state"):
        RedisLog(url)


@pytest.mark.parametrize(
    "option", ["lease=0", "timeout=x", "replicas=-1", "retries=3", "ssl_ca_certs=x", "timeout=nan"]
)
def test_an_unknown_option_is_refused(option: str) -> None:
    with pytest.raises(StateError, match="is no option; there are lease, replicas, timeout"):
        RedisLog(f"redis://127.0.0.1:1/0/x?{option}")


def test_no_error_shows_the_password() -> None:
    log = RedisLog("redis://ada:secret@localhost:1/0/x")

    assert log.path == "redis://ada@localhost:1/0/x"
    assert "secret" not in str(refusal("redis://ada:secret@127.0.0.1:1/0/x"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://ada:s/secret@127.0.0.1:1/0/x",
        "redis://ada:12/secret@127.0.0.1:1/0/x",
        "redis://ada:s?secret@127.0.0.1:1/0/x",
        "redis://ada:s#secret@127.0.0.1:1/0/x",
        "redis://ada:s@secret@127.0.0.1:port/0/x",
        "redis://127.0.0.1:1/0/x?password=secret",
        "redis://127.0.0.1:1/0/x?lease=0&token=secret",
        "rediss://127.0.0.1:1/0/x?lease=0&ssl_password=secret",
        "nosql://ada:secret@127.0.0.1:1/0/x",
    ],
)
def test_no_refusal_of_an_address_shows_what_is_secret(url: str) -> None:
    with pytest.raises(StateError) as caught:
        PersistedState(url)
    assert "secret" not in str(caught.value)
    assert url.partition(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    "other", ["redis://HOST/0/x", "valkey://host:6379/0/x?lease=3&timeout=2", "redis://host:/0/%78"]
)
def test_an_address_has_one_spelling(other: str) -> None:
    assert RedisLog(other).path == "redis://host:6379/0/x"


def test_a_socket_serves_as_well(tmp_path: Path) -> None:
    path = tmp_path / "valkey.sock"
    with servers.running(tmp_path / "server", "--unixsocket", str(path)):
        url = f"unix://{path}/0/importer.state"
        with opened(url) as log:
            position = log.append(b"a", log.open(0).position)
            assert log.read(position).records == []
        assert records(url) == [b"a"]


def test_valkey_is_a_scheme_too(server: Server, name: str) -> None:
    url = server.url(name)
    with opened(url.replace("redis:", "valkey:")) as log:
        log.append(b"a", log.open(0).position)

    assert records(url) == [b"a"]


# ---- Interrupts and forks ----
