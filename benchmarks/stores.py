"""The stores that are compared, each used as its documentation shows, in its usual configuration.

Each benchmark starts from a state that holds nothing but what it changes. `count`, `count_nested`, `append`, `read`,
`read_nested` and `transact` are loops over what a user would write; a store that has no such thing lacks the method.
"""

# ruff: noqa: D102 - the docstring above tells what the methods do

from __future__ import annotations

import contextlib
import dbm
import json
import os
import shelve
import sqlite3
import threading
from itertools import count as natural_numbers
from itertools import repeat
from os import write
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from figures import FLOOR
from harness import IS_OLD, OURS, Entrant

from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEMORY, PROCESS, POWER = "memory", "process crash", "power loss"


class Store:
    """A store in a folder of its own, filled with some content."""

    entrant: Entrant
    db: Any

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder = folder
        self.numbers = natural_numbers()
        self.open()
        self.fill(content)

    def open(self) -> None:
        """Open an empty store."""

    def fill(self, content: dict[str, Any]) -> None:
        """Put the first content into it."""
        for key, value in content.items():
            self.db[key] = value

    def close(self) -> None:
        """Let it go."""
        self.db.close()


class Persisted(Store):
    """This module, or 26.1, which is used the same way."""

    entrant = Entrant(OURS, PROCESS)
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it

    def open(self) -> None:
        self.db = PersistedState(self.folder / "x.state", **self.options)

    def count(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state.counter += 1

    def count_nested(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state["a"]["b"] += 1

    def append(self, count: int) -> None:
        state = self.db
        for number in range(count):
            state.processed.append(number)

    def read(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state.counter  # noqa: B018 - reading is what is measured

    def read_nested(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state["a"]["b"]


class Transacting(Persisted):
    """This module; 26.1 has no transactions."""

    def transact(self, count: int) -> None:
        with self.db.transaction():
            self.count(count)


class Synced(Transacting):
    """This module, on the disk before a change returns."""

    entrant = Entrant(f"{OURS}, _fsync=True", POWER)
    options = {"_fsync": True}  # noqa: RUF012 - nobody changes it


class FloorItems(dict[str, Any]):
    """A mapping of `Floor`."""

    __slots__ = ("floor",)
    floor: Floor

    def __setitem__(self, key: str, value: Any) -> None:
        """Format, lock, look at the clock, write, store."""
        line = f'--- ["set",["a"],"{key}",{value}]\n'.encode()
        floor = self.floor
        with floor.lock:
            floor.time = monotonic()
            write(floor.descriptor, line)
            dict.__setitem__(self, key, value)


class FloorList(list[Any]):
    """A list of `Floor`."""

    __slots__ = ("floor",)
    floor: Floor

    def append(self, value: Any) -> None:
        """Format, lock, look at the clock, write, store."""
        line = f'--- ["insert",["processed"],{len(self)},{value}]\n'.encode()
        floor = self.floor
        with floor.lock:
            floor.time = monotonic()
            write(floor.descriptor, line)
            list.append(self, value)


class FloorState:
    """What holds the state of `Floor`."""

    floor: Floor

    def __init__(self, floor: Floor) -> None:
        self.__dict__["floor"] = floor

    def __setattr__(self, name: str, value: Any) -> None:
        """Format, lock, look at the clock, write, store; in a transaction, all are written at its end."""
        line = f'--- ["set",[],"{name}",{value}]\n'.encode()
        floor = self.floor
        with floor.lock:
            floor.time = monotonic()
            if floor.batch is None:
                write(floor.descriptor, line)
            else:
                floor.batch.append(line)
            self.__dict__[name] = value


class Floor(Store):
    """The floor that Python itself sets for a change that lasts, and which another thread may make, too."""

    entrant = Entrant(FLOOR, PROCESS, "formats, locks, looks at the clock, writes, stores; no more")

    def open(self) -> None:
        self.descriptor = os.open(self.folder / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lock, self.time = threading.RLock(), monotonic()
        self.batch: list[bytes] | None = None
        self.db = FloorState(self)

    def fill(self, content: dict[str, Any]) -> None:
        for key, value in content.items():
            held = FloorItems(value) if type(value) is dict else FloorList(value) if type(value) is list else value
            if held is not value:
                held.floor = self
            self.db.__dict__[key] = held

    def count(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state.counter += 1

    def count_nested(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state.a["b"] += 1

    def append(self, count: int) -> None:
        state = self.db
        for number in range(count):
            state.processed.append(number)

    def transact(self, count: int) -> None:
        with self.lock:
            self.batch = []
            self.count(count)
            write(self.descriptor, b"".join(self.batch))
            self.batch = None

    def close(self) -> None:
        os.close(self.descriptor)


class PlainDict(Store):
    """Nothing but memory, and no reading, which costs the same in what builds on this."""

    entrant = Entrant("plain dict", MEMORY)

    def open(self) -> None:
        self.db = {}

    def count(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state["counter"] += 1

    def count_nested(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state["a"]["b"] += 1

    def append(self, count: int) -> None:
        state = self.db
        for number in range(count):
            state["processed"].append(number)

    def close(self) -> None:
        self.db.clear()


class ReadDict(PlainDict):
    """Nothing but memory, read, too."""

    def read(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state["counter"]

    def read_nested(self, count: int) -> None:
        state = self.db
        for _ in repeat(None, count):
            state["a"]["b"]


class JsonFile(PlainDict):
    """The recipe that many scripts carry: dump everything to a new file, and rename that over the old one."""

    entrant = Entrant("json.dump + os.replace", PROCESS, "whole file per change")

    def saved(self) -> None:
        """Make a change last."""
        new = self.folder / "x.json.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(self.db, file)
        os.replace(new, self.folder / "x.json")  # noqa: PTH105 - the recipe

    def count(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db["counter"] += 1
            self.saved()

    def count_nested(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db["a"]["b"] += 1
            self.saved()

    def append(self, count: int) -> None:
        for number in range(count):
            self.db["processed"].append(number)
            self.saved()

    def transact(self, count: int) -> None:
        PlainDict.count(self, count)
        self.saved()


class Items(Store):
    """A store that is used like a dict, of which whole values are read and written."""

    def count(self, count: int) -> None:
        db = self.db
        for _ in repeat(None, count):
            db["counter"] += 1

    def count_nested(self, count: int) -> None:
        db = self.db
        for _ in repeat(None, count):
            value = db["a"]
            value["b"] += 1
            db["a"] = value

    def append(self, count: int) -> None:
        db = self.db
        for number in range(count):
            value = db["processed"]
            value.append(number)
            db["processed"] = value

    def read(self, count: int) -> None:
        db = self.db
        for _ in repeat(None, count):
            db["counter"]

    def read_nested(self, count: int) -> None:
        db = self.db
        for _ in repeat(None, count):
            db["a"]["b"]


class DiskCache(Items):
    """`diskcache.Cache`, and its Deque for a list."""

    entrant = Entrant("diskcache", PROCESS, "SQLite, WAL, synchronous=NORMAL")

    def open(self) -> None:
        module = pytest.importorskip("diskcache")
        self.db = module.Cache(str(self.folder / "cache"))
        self.deque = module.Deque.fromcache(module.Cache(str(self.folder / "deque")))

    def fill(self, content: dict[str, Any]) -> None:
        self.deque.extend(content.get("processed", ()))
        super().fill(content)

    def append(self, count: int) -> None:
        for number in range(count):
            self.deque.append(number)

    def transact(self, count: int) -> None:
        with self.db.transact():
            self.count(count)

    def close(self) -> None:
        self.deque.cache.close()
        self.db.close()


class SqliteDict(Items):
    """`sqlitedict.SqliteDict` with autocommit: a thread writes what it finds in a queue."""

    entrant = Entrant("sqlitedict", MEMORY, "autocommit: queued for a thread")

    def open(self) -> None:
        module = pytest.importorskip("sqlitedict")
        self.db = module.SqliteDict(str(self.folder / "x.sqlite"), autocommit=True)


class Shelve(Items):
    """`shelve` of the standard library; what a change survives depends on the dbm that Python was built with."""

    @property
    def entrant(self) -> Entrant:  # type: ignore[override]  # known once it is open
        kind = dbm.whichdb(str(self.folder / "shelf"))
        durability = {"dbm.sqlite3": POWER, "dbm.gnu": PROCESS, "dbm.ndbm": PROCESS}.get(kind or "", MEMORY)
        return Entrant("shelve", durability, kind or "")

    def open(self) -> None:
        self.db = shelve.open(str(self.folder / "shelf"))  # noqa: S301, SIM115 - our own data; closed by `close`


class Lmdb(Store):
    """An LMDB environment: one write transaction per change."""

    entrant = Entrant("lmdb, sync=False", PROCESS, "`sync=False`")
    sync = False

    def open(self) -> None:
        module = pytest.importorskip("lmdb")
        self.db = module.open(str(self.folder / "lmdb"), map_size=1 << 28, sync=self.sync)

    def fill(self, content: dict[str, Any]) -> None:
        with self.db.begin(write=True) as transaction:
            for key, value in content.items():
                transaction.put(key.encode(), json.dumps(value).encode())

    def count(self, count: int) -> None:
        for _ in repeat(None, count):
            with self.db.begin(write=True) as transaction:
                transaction.put(b"counter", b"%d" % (int(transaction.get(b"counter")) + 1))

    def count_nested(self, count: int) -> None:
        for _ in repeat(None, count):
            with self.db.begin(write=True) as transaction:
                value = json.loads(transaction.get(b"a"))
                value["b"] += 1
                transaction.put(b"a", json.dumps(value).encode())

    def append(self, count: int) -> None:
        for number in range(count):
            with self.db.begin(write=True) as transaction:
                transaction.put(b"processed %012d" % next(self.numbers), b"%d" % number)

    def read(self, count: int) -> None:
        for _ in repeat(None, count):
            with self.db.begin() as transaction:
                int(transaction.get(b"counter"))

    def read_nested(self, count: int) -> None:
        for _ in repeat(None, count):
            with self.db.begin() as transaction:
                json.loads(transaction.get(b"a"))["b"]

    def transact(self, count: int) -> None:
        with self.db.begin(write=True) as transaction:
            for _ in repeat(None, count):
                transaction.put(b"counter", b"%d" % (int(transaction.get(b"counter")) + 1))


class SyncedLmdb(Lmdb):
    """LMDB as it is without options."""

    entrant = Entrant("lmdb, sync=True", POWER, "the default")
    sync = True


class Sqlite(Store):
    """The `sqlite3` module with a write-ahead log: a statement, which is a transaction, per change."""

    entrant = Entrant("sqlite3 WAL, OFF", PROCESS, "`synchronous=OFF`")
    synchronous = "OFF"

    def open(self) -> None:
        self.db = sqlite3.connect(self.folder / "x.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute(f"PRAGMA synchronous = {self.synchronous}")
        self.db.execute("CREATE TABLE state (key TEXT PRIMARY KEY, value)")
        self.db.execute("CREATE TABLE processed (id INTEGER PRIMARY KEY, value)")

    def fill(self, content: dict[str, Any]) -> None:
        for key, value in content.items():
            text = value if isinstance(value, int) else json.dumps(value)
            self.db.execute("INSERT INTO state VALUES (?, ?)", (key, text))

    def count(self, count: int) -> None:
        execute = self.db.execute
        for _ in repeat(None, count):
            execute("UPDATE state SET value = value + 1 WHERE key = 'counter'")

    def count_nested(self, count: int) -> None:
        execute = self.db.execute
        for _ in repeat(None, count):
            execute("UPDATE state SET value = json_set(value, '$.b', json_extract(value, '$.b') + 1) WHERE key = 'a'")

    def append(self, count: int) -> None:
        execute = self.db.execute
        for number in range(count):
            execute("INSERT INTO processed (value) VALUES (?)", (number,))

    def read(self, count: int) -> None:
        execute = self.db.execute
        for _ in repeat(None, count):
            execute("SELECT value FROM state WHERE key = 'counter'").fetchone()

    def read_nested(self, count: int) -> None:
        execute = self.db.execute
        for _ in repeat(None, count):
            execute("SELECT json_extract(value, '$.b') FROM state WHERE key = 'a'").fetchone()

    def transact(self, count: int) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.count(count)
        self.db.execute("COMMIT")


class SyncedSqlite(Sqlite):
    """SQLite that waits for the disk at each commit."""

    entrant = Entrant("sqlite3 WAL, FULL", POWER, "`synchronous=FULL`")
    synchronous = "FULL"


class TinyDb(Store):
    """TinyDB: documents in one JSON file, which is rewritten in place and synced per change."""

    entrant = Entrant("TinyDB", POWER, "rewritten in place: a crash in a change may cost the file")

    def open(self) -> None:
        self.increment = pytest.importorskip("tinydb.operations").increment
        self.db = pytest.importorskip("tinydb").TinyDB(self.folder / "x.json")

    def fill(self, content: dict[str, Any]) -> None:
        self.db.insert_multiple({"item": item} for item in content.get("processed", ()))
        self.db.insert({key: value for key, value in content.items() if key != "processed"})

    def count(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db.update(self.increment("counter"))

    def count_nested(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db.update(lambda document: document["a"].update(b=document["a"]["b"] + 1))

    def append(self, count: int) -> None:
        for number in range(count):
            self.db.insert({"item": number})

    def read(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db.get(doc_id=1)["counter"]

    def read_nested(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db.get(doc_id=1)["a"]["b"]


class PickleDb(Store):
    """`pickledb.PickleDB`: `set` and `save`, which writes the whole file, per change."""

    entrant = Entrant("pickledb", PROCESS, "`set` and `save`: whole file per change")

    def open(self) -> None:
        self.db = pytest.importorskip("pickledb").PickleDB(str(self.folder / "x.json"))

    def fill(self, content: dict[str, Any]) -> None:
        for key, value in content.items():
            self.db.set(key, value)
        self.db.save()

    def changed(self, key: str, change: Callable[[Any], Any], count: int) -> None:
        """Change a value so many times."""
        for _ in repeat(None, count):
            self.db.set(key, change(self.db.get(key)))
            self.db.save()

    def count(self, count: int) -> None:
        self.changed("counter", lambda value: value + 1, count)

    def count_nested(self, count: int) -> None:
        self.changed("a", lambda value: {"b": value["b"] + 1}, count)

    def append(self, count: int) -> None:
        self.changed("processed", lambda value: [*value, 1], count)

    def read(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db.get("counter")

    def read_nested(self, count: int) -> None:
        for _ in repeat(None, count):
            self.db.get("a")["b"]

    def close(self) -> None:
        self.db.save()


PEERS: list[type[Store]] = [ReadDict, JsonFile, Lmdb, Sqlite, DiskCache, SqliteDict, Shelve, PickleDb, TinyDb]
#: In the environment of 26.1 there is only that; the others have been measured by then.
STORES: list[type[Store]] = [Persisted] if IS_OLD else [Transacting, Floor, *PEERS]
SYNCED: list[type[Store]] = [] if IS_OLD else [Synced, SyncedSqlite, SyncedLmdb]


def able(method: str) -> list[type[Store]]:
    """Return the stores that have a method, those that wait for the disk apart."""
    return [store for store in STORES if hasattr(store, method)]


@contextlib.contextmanager
def opened(kind: type[Store], folder: Path, content: dict[str, Any]) -> Iterator[Any]:
    """Open a store for as long as the block lasts; skip the benchmark where it is not installed."""
    store = kind(folder, content)
    try:
        yield store
    finally:
        store.close()
