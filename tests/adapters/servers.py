"""Real servers for the stores: started on loopback by a test, stopped by it, and skipped where not installed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRIES = 3


#: MongoDB's own server, which Debian has not; without it, one from the package index that speaks its protocol.
MONGOD = shutil.which("mongod")
MONGOECO = """
import asyncio, sys
from mongoeco.wire import AsyncMongoEcoProxyServer

async def serve():
    async with AsyncMongoEcoProxyServer(port=int(sys.argv[1])):
        await asyncio.Event().wait()

asyncio.run(serve())
"""


def mongodb(port: int, folder: Path) -> list[str]:
    if MONGOD:
        return [MONGOD, "--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", str(folder)]
    return [sys.executable, "-c", MONGOECO, str(port)]


class Kind(NamedTuple):
    """A store: its address, the module of its client, and its server."""

    address: str
    client: str
    #: What must be installed: a program, or the modules that MODULES has for it.
    program: str = ""
    command: Callable[[int, Path], list[str]] = lambda _port, _folder: []


#: A password that must be quoted in an address.
PASSWORD = "p@ss/w:rd"  # noqa: S105 - of a server that lives for a second
QUOTED = urllib.parse.quote(PASSWORD, safe="")


def redis(port: int, folder: Path) -> list[str]:
    options = {"bind": "127.0.0.1", "port": str(port), "save": "", "dir": str(folder), "requirepass": PASSWORD}
    return ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))]


KINDS: dict[str, Kind] = {
    "state": Kind("{folder}/target.state", "persistedstate"),
    "disk": Kind("disk:{folder}/disk", "diskcache"),
    "filetree": Kind("filetree:{folder}/tree", "aiofile"),
    "redis": Kind(f"redis://:{QUOTED}@127.0.0.1:{{port}}/3", "redis", "redis-server", redis),
    "valkey": Kind(f"valkey://:{QUOTED}@127.0.0.1:{{port}}/3", "glide", "redis-server", redis),  # the same protocol
    "memcached": Kind(
        "memcached://127.0.0.1:{port}", "aiomcache", "memcached",
        lambda port, _folder: ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", "nobody"],
    ),
    "dynamodb": Kind(
        "dynamodb://t{unique}?region_name=eu-central-1&endpoint_url=http://127.0.0.1:{port}",
        "aiobotocore", "moto.server",
        lambda port, _folder: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
    ),
    "mongodb": Kind(
        "mongodb://127.0.0.1:{port}/copied", "pymongo", "mongod" if MONGOD else "mongoeco", mongodb
    ),
    "elasticsearch": Kind(
        "elasticsearch+http://127.0.0.1:{port}/copied", "elasticsearch", "elasticsearch",
        lambda port, folder: [
            "elasticsearch", "-E", f"http.port={port}", "-E", "network.host=127.0.0.1", "-E", f"path.data={folder}",
            "-E", "discovery.type=single-node", "-E", "xpack.security.enabled=false",
        ],
    ),
}  # fmt: skip


def postgres(port: int, folder: Path) -> list[str]:
    """Make a database below the folder, which must be open for everybody; the server refuses to run as root."""
    data = folder / "data"
    if port and not data.exists():
        subprocess.run(as_nobody("cp", "-a", str(new_database()), str(data)), check=True)
    settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "port": str(port)}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return as_nobody("postgres", "-D", str(data), *options)


@functools.cache
def new_database() -> Path:
    """Make a database for all servers to copy: to make one takes ten times as long as that."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o777)
    words = ["--encoding=UTF8", "--auth=trust", "--username=me", "--no-sync", "--pgdata", f"{folder}/data"]
    environ = {**os.environ, "LC_ALL": "C"}
    subprocess.run(as_nobody("initdb", *words), stdout=subprocess.DEVNULL, env=environ, check=True)
    return folder / "data"


def as_nobody(program: str, *words: str) -> list[str]:
    somebody_else = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    return [*somebody_else, installed(program) or program, *words]


def installed(program: str) -> str | None:
    """Return the path of a program; Debian keeps some of PostgreSQL's apart, a folder for each version."""
    apart = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(apart[-1]) if apart else shutil.which(program)


#: pystator's own stores.
OF_PYSTATOR: dict[str, Kind] = {
    "sqlite": Kind("sqlite:///{folder}/pystator.db", "sqlalchemy"),
    "postgresql": Kind("postgresql://me@127.0.0.1:{port}/postgres", "psycopg", "postgres", postgres),
    "mongodb": Kind(
        "pystator+mongodb://127.0.0.1:{port}/machines", "pymongo", "mongod" if MONGOD else "mongoeco", mongodb
    ),
    "redis": Kind(f"pystator+redis://:{QUOTED}@127.0.0.1:{{port}}/3", "redis", "redis-server", redis),
}  # fmt: skip

#: The modules of those servers that are written in Python.
MODULES = {"moto.server": ("moto", "flask", "flask_cors"), "mongoeco": ("mongoeco",)}


@contextlib.contextmanager
def running(name: str, folder: Path, kinds: dict[str, Kind] = KINDS) -> Iterator[str]:
    """Start the server of a kind of store, if it has one; give the address of an empty store."""
    kind = kinds[name]
    pytest.importorskip(kind.client, reason=f"{kind.client}, the client of {name}, is not installed")
    if not is_installed(kind.program):
        pytest.skip(f"{kind.program}, the server of {name}, is not installed")
    data = folder / "server"
    data.mkdir()
    data.chmod(0o777)
    with started(lambda port: kind.command(port, data)) as port:
        yield kind.address.format(folder=folder, port=port, unique=uuid.uuid4().hex)


def is_installed(program: str) -> bool:
    modules = MODULES.get(program)
    if modules:
        return all(importlib.util.find_spec(name) for name in modules)
    return not program or installed(program) is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def started(command: Callable[[int], list[str]]) -> Iterator[int]:
    """Start a server on a free port and give that; 0 where there is none to start."""
    if not command(0):
        yield 0
        return
    process, port = start(command)
    try:
        yield port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(command: Callable[[int], list[str]]) -> tuple[subprocess.Popen[bytes], int]:
    """Return the process and its port; another try, where somebody else was faster to take that."""
    environment = {**os.environ, "LC_ALL": "C"}
    for _ in range(TRIES):
        port = free_port()
        process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        if accepts(port, process):
            return process, port
    raise AssertionError(f"{command(0)[0]} does not start")


def accepts(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Return True as soon as the server accepts a connection, and False when it ends instead."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        assert time.monotonic() < end, "the server accepts no connections"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return process.poll() is None
    return False
