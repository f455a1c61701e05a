"""Copies all entries from one store of py-key-value-aio to another, with what remains of their lives.

`python -m persistedstate_stores copy SOURCE TARGET` does it on the command line, `copy()` in Python. A store is named
by an address:

    example.state                                   a state file; example.state#KEY: what is under a key of it
    redis://localhost:6379/0                        also rediss:// and valkey://
    memcached://localhost:11211                     entries that live beyond the 19th January 2038 end there
    dynamodb://table?region_name=eu-central-1       also &endpoint_url=…; credentials as usual for AWS
    mongodb://localhost/database                    also mongodb+srv://
    elasticsearch+http://localhost:9200/prefix      also elasticsearch+https://
    disk:folder
    filetree:folder

Those of pystator are copied by `persistedstate_stores.copy_machines`.

What the target has already, value and expiry alike, is not written again; so a copy that was killed goes on where it
was, and one that has finished is verified by reading everything back. Other entries of the target stay.
"""
# ruff: noqa: SLF001, PLC0415
# Only the clients behind the stores know what names there are. Each store is imported by those who name it.

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from persistedstate import StateError, _shown
from persistedstate_stores._addresses import CopyError, described, is_of_pystator, patient
from persistedstate_stores.key_value import PersistedStateStore, _is_usable

# Without the framework, the import above tells what to install.
# isort: split
from key_value.aio.errors import DeserializationError
from key_value.aio.protocols.key_value import (
    AsyncEnumerateCollectionsProtocol,
    AsyncEnumerateKeysProtocol,
    AsyncKeyValueProtocol,
)

__all__ = ["Copied", "CopyError", "copy", "open_store"]

Store = AsyncKeyValueProtocol
#: Told what is done at the moment, how many entries of it, and of how many.
Progress = Callable[[str, int, int], object]

#: Entries that are read and written at once.
_BATCH = 100
#: The first pass copies; one that finds nothing to write has verified everything. Others follow, after a pause in
#: seconds, where the source is being changed or, as with DynamoDB, what was written shows a moment later.
_PASSES, _PAUSE = 4, 1.0
#: Seconds by which an expiry may differ: Redis, Memcached and DynamoDB count whole seconds.
_TOLERANCE = 2.0
#: Seconds that an entry must have left to be worth copying; most stores know no less.
_LEAST_TTL = 1.0
#: Memcached takes larger numbers of seconds for a point in time.
_LONGEST_EXPTIME = 30 * 24 * 3600
#: The stores of py-key-value list no more names than that.
_PAGE_LIMIT = 10_000


class Copied(NamedTuple):
    """What a copy did: how many entries the source has and the target has now, and how many of them it had to write."""

    entries: int
    written: int
    collections: int


class _Entry(NamedTuple):
    value: dict[str, Any]
    #: Seconds since 1970; None: never.
    expires_at: float | None

    def is_same(self, other: _Entry | None) -> bool:
        if other is None or (self.expires_at is None) != (other.expires_at is None):
            return False
        if self.expires_at is not None and abs(self.expires_at - (other.expires_at or 0.0)) > _TOLERANCE:
            return False
        return _canonical(self.value) == _canonical(other.value)


async def copy(
    source: Store | str | Path,
    target: Store | str | Path,
    *,
    names: Mapping[str, Iterable[str]] | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copy all entries of a store to another one, then read them back.

    Args:
        source: a store, or an address as above. A state file is opened read-only: another process may be writing it.
        target: a store, or an address. The entries that it has already stay, or are replaced.
        names: the keys to copy, by collection; None (default): all that there are. Needed for a store that cannot
            tell them, such as one behind a wrapper.
        progress: called with the present stage ("copying", "reading back"), the number of entries done, and of all.

    Raises CopyError, if names cannot be listed, if a store does not answer, if an entry cannot be written, or does not
    come back as it was written; ValueError for an address that is none; OSError and py-key-value's errors for a file
    that cannot be opened. Whatever happened, calling it again goes on from there.
    """
    async with AsyncExitStack() as stack:
        origin = await _opened(source, stack, is_source=True)
        todo = {name: list(dict.fromkeys(keys)) for name, keys in (names or await _listed(origin)).items()}
        goal = await _opened(target, stack, is_source=False)  # not before: where nothing is to be copied, none is made
        await goal.check(next(iter(todo), None))
        return await _copy_all(origin, goal, todo, progress or (lambda *_: None))


async def list_names(store: Store) -> dict[str, list[str]]:
    """Return the keys of a store, by collection; raises CopyError, if it cannot tell all of them, or is no store."""
    await _set_up(store)
    _check_file(store)
    found: dict[str, dict[str, None]] = {}
    async for collection, key in _lister(store)(store):
        found.setdefault(collection, {})[key] = None
    return {collection: list(keys) for collection, keys in found.items()}


def open_store(address: str, *, is_source: bool = False) -> Store:
    """Return the store that an address names; raises ValueError if there is none, ImportError if its client is missing.

    is_source: True: do not create what is not there, and do not lock a state file.
    """
    if is_of_pystator(address):
        raise ValueError(f"{_shown(address)} is a store of pystator; persistedstate_stores.copy_machines copies those")
    scheme, colon, rest = address.partition(":")
    if colon and scheme in _OPENERS:
        return _OPENERS[scheme](_Address(address, is_source))
    if rest.startswith("//"):
        raise ValueError(f"{_shown(address)} is no address of a store; there are {', '.join(_OPENERS)}, and paths")
    if scheme in _OPENERS:
        raise ValueError(f"{address} is no address; write {address}:… as in `copy --help`, or ./{address} for a file")
    path, sharp, under = address.rpartition("#")
    if not sharp or os.path.lexists(address):
        return PersistedStateStore(address, _readonly=is_source)
    return PersistedStateStore(path, under=under, _readonly=is_source)


# ---- The two ends of a copy ----


class _End(NamedTuple):
    """A store, and how messages name it."""

    store: Store
    label: str

    async def check(self, collection: str | None) -> None:
        """Read what is not there; raises CopyError if the store does not answer at all, whatever it is asked for."""
        try:
            await _set_up(self.store)
            await self.store.get("persistedstate", collection=collection)
        except Exception as error:  # noqa: BLE001 - each client of a server has its own
            self.blame(error)

    def blame(self, error: Exception) -> None:
        """Raise CopyError, unless the store did answer: what a person wrote into a file is told with its place."""
        if not isinstance(error, (CopyError, DeserializationError, StateError)):
            raise CopyError(f"{self.label} does not answer: {described(error)}") from error


async def _opened(store: Store | str | Path, stack: AsyncExitStack, *, is_source: bool) -> _End:
    if not isinstance(store, (str, Path)):
        return _End(store, type(store).__name__)
    opened = open_store(str(store), is_source=is_source)
    if isinstance(opened, PersistedStateStore):
        await stack.enter_async_context(opened)
    elif isinstance(opened, AbstractAsyncContextManager):
        stack.push_async_exit(opened)  # check() enters it, and tells if that fails
    return _End(opened, _shown(str(store)))


async def _listed(end: _End) -> dict[str, list[str]]:
    try:
        return await list_names(end.store)
    except Exception as error:
        end.blame(error)
        raise


async def _set_up(store: Any) -> None:
    if hasattr(store, "setup"):
        await store.setup()


def _check_file(store: Store) -> None:
    """Raise CopyError for a state file that holds something else than entries."""
    if not isinstance(store, PersistedStateStore) or not store._root():
        return
    nodes = [node for _, node in store._collections()]
    entries = [pair for node in nodes for pair in node.items()]
    if not nodes or (entries and not any(_is_usable(*pair) for pair in entries)):
        raise CopyError(
            f"{store._label} holds no entries; FILE#KEY names those below a key, and pystator+redis:// or "
            "pystator+mongodb:// where pystator keeps its machines"
        )


# ---- Passes ----


async def _copy_all(source: _End, target: _End, names: dict[str, list[str]], progress: Progress) -> Copied:
    written = 0
    for number in range(_PASSES):
        stage = "reading back" if number else "copying"
        if number > 1:
            await asyncio.sleep(_PAUSE)
        entries, changed = await _pass(source, target, names, partial(progress, stage))
        written = max(written, len(changed))
        if not changed:
            return Copied(entries, written, sum(bool(keys) for keys in names.values()))
    shown = ", ".join(" → ".join(place) for place in changed[:3])
    raise CopyError(
        f"{len(changed)} of {entries} entries are not in the target as they were written ({shown}); "
        "does it take two names for one, or is somebody else writing?"
    )


async def _pass(
    source: _End, target: _End, names: dict[str, list[str]], tell: Callable[[int, int], object]
) -> tuple[int, list[tuple[str, str]]]:
    """Write what differs; return how many entries the source has, and the places that were written."""
    total, done, entries = sum(map(len, names.values())), 0, 0
    changed: list[tuple[str, str]] = []
    tell(0, total)
    for collection, keys in names.items():
        for batch in _batches(keys, _BATCH):
            present, different = await _transfer(source, target, collection, batch)
            entries, done = entries + present, done + len(batch)
            changed += [(collection, key) for key in different]
            tell(done, total)
    return entries, changed


async def _transfer(source: _End, target: _End, collection: str, keys: Sequence[str]) -> tuple[int, list[str]]:
    """Write what differs; return how many of the keys the source has, and those that were written."""
    try:
        wanted = await _read(source.store, collection, keys)
        found = await _read(target.store, collection, list(wanted))
        different = {key: entry for key, entry in wanted.items() if not entry.is_same(found.get(key))}
        await _write(target.store, collection, different)
        return len(wanted), list(different)
    except Exception as error:
        for end in source, target:
            await end.check(collection)
        if len(keys) == 1:
            raise CopyError(f"cannot copy {collection} → {keys[0]}: {described(error)}") from error
    parts = [await _transfer(source, target, collection, [key]) for key in keys]  # to tell which one it is
    return sum(present for present, _ in parts), [key for _, different in parts for key in different]


async def _read(store: Store, collection: str, keys: Sequence[str]) -> dict[str, _Entry]:
    """Return the entries that live long enough."""
    found = await store.ttl_many(keys, collection=collection)
    now = time.time()
    return {
        key: _Entry(value, None if ttl is None else now + ttl)
        for key, (value, ttl) in zip(keys, found, strict=True)
        if value is not None and (ttl is None or ttl >= _LEAST_TTL)
    }


async def _write(store: Store, collection: str, entries: dict[str, _Entry]) -> None:
    lasting = {key: entry.value for key, entry in entries.items() if entry.expires_at is None}
    if lasting:
        await store.put_many(list(lasting), list(lasting.values()), collection=collection)
    for key, (value, expires_at) in entries.items():
        if expires_at is not None:
            await store.put(key, value, collection=collection, ttl=max(expires_at - time.time(), _LEAST_TTL))


def _batches(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _canonical(value: Any) -> str:
    """Return a text that is the same for the same JSON, whatever the order of keys."""
    try:
        return json.dumps(value, sort_keys=True)
    except TypeError:  # a person wrote what is no JSON; writing it to the target tells
        return repr(value)


# ---- What names there are ----
# Most stores have no call for it, but each keeps a document with the two names, or the names themselves.

Names = AsyncIterator[tuple[str, str]]


def _lister(store: Store) -> Callable[[Any], Names]:
    for kind in type(store).__mro__:
        if kind.__module__.startswith("key_value.aio.stores.") and kind.__name__ in _LISTERS:
            return _LISTERS[kind.__name__]
    if isinstance(store, AsyncEnumerateCollectionsProtocol) and isinstance(store, AsyncEnumerateKeysProtocol):
        return _enumerated
    raise CopyError(f"{type(store).__name__} cannot tell what is in it; say it: names={{collection: keys}}")


async def _enumerated(store: Any) -> Names:
    for collection in await store.collections():
        keys = await store.keys(collection)
        if len(keys) >= _PAGE_LIMIT and not isinstance(store, PersistedStateStore):
            raise CopyError(f"{collection}: the store lists {len(keys)} keys at most; say which names to copy")
        for key in keys:
            yield collection, key


async def _in_memory(store: Any) -> Names:
    for collection, entries in list(store._cache.items()):
        for key in list(entries._cache):
            yield collection, key


async def _on_disk(store: Any) -> Names:
    for compound in store._cache.iterkeys():
        for names in _named_in(store._cache.get(compound)):
            yield names


async def _in_file_tree(store: Any) -> Names:
    await store._load_collection_infos()
    for collection, info in store._collection_infos.items():
        for path in _key_files(info.directory):
            if store._key_sanitization_strategy.sanitize(path.stem) != path.stem:
                raise CopyError(f"{path}: the store has changed the name of the key; say which names to copy")
            yield collection, path.stem


def _key_files(folder: Any) -> list[Path]:
    return sorted(Path(folder).glob("*.json"))


async def _in_redis(store: Any) -> Names:
    cursor = None
    while cursor != 0:
        cursor, keys = await store._client.scan(cursor or 0, count=_BATCH)
        for document in await store._client.mget(keys) if keys else []:
            for names in _named_in(document):
                yield names


async def _in_valkey(store: Any) -> Names:
    cursor = None
    while cursor != b"0":
        cursor, keys = await store._client.scan(cursor or b"0", count=_BATCH)
        for document in await store._client.mget(keys) if keys else []:
            for names in _named_in(document):
                yield names


async def _in_memcached(store: Any) -> Names:
    pool = store._client._pool
    for keys in _batches(await _memcached_keys(pool._host, pool._port), _BATCH):
        for document in await store._client.multi_get(*[key.encode() for key in keys]):
            for names in _named_in(document):
                yield names


async def _memcached_keys(host: str, port: int) -> list[str]:
    """Ask the server itself, since the client has no call for it; lines are `key=… exp=… …`, the last one is END.

    With `all` in place of `hash`, it walks through lists among which it moves keys meanwhile, and misses some.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"lru_crawler metadump hash\r\n")
        keys = []
        while (line := (await reader.readline()).decode().strip()) != "END":
            if not line.startswith("key="):
                raise CopyError(f"memcached does not list its keys ({line or 'it closed the connection'}); try again")
            keys.append(unquote(line.split(" ", 1)[0][len("key=") :]))
    finally:
        writer.close()
        await writer.wait_closed()
    return keys


async def _in_dynamodb(store: Any) -> Names:
    pages = store._connected_client.get_paginator("scan").paginate(
        TableName=store._table_name,
        ProjectionExpression="#c, #k",
        ExpressionAttributeNames={"#c": "collection", "#k": "key"},
    )
    async for page in pages:
        for item in page["Items"]:
            yield item["collection"]["S"], item["key"]["S"]


async def _in_mongodb(store: Any) -> Names:
    for collection in await store._db.list_collection_names():
        async for document in store._db[collection].find({}, {"collection": 1, "key": 1}):
            if "key" in document:
                yield document.get("collection", collection), document["key"]


def _named_in(document: Any) -> list[tuple[str, str]]:
    """Return collection and key of the entry that a document holds; nothing, if it is of another program."""
    try:
        entry = json.loads(document)
        return [(entry["collection"], entry["key"])]
    except (TypeError, ValueError, KeyError):
        return []


_LISTERS: dict[str, Callable[[Any], Names]] = {
    "DiskStore": _on_disk,
    "DynamoDBStore": _in_dynamodb,
    "FileTreeStore": _in_file_tree,
    "MemcachedStore": _in_memcached,
    "MemoryStore": _in_memory,
    "MongoDBStore": _in_mongodb,
    "RedisStore": _in_redis,
    "ValkeyStore": _in_valkey,
}


# ---- Addresses ----


class _Address(NamedTuple):
    text: str
    #: Whether to read only from the store: then nothing is created.
    is_source: bool

    @property
    def folder(self) -> str:
        """What follows the scheme; ValueError if nothing does."""
        folder = self.text.partition(":")[2]
        if not folder:
            raise ValueError(f"{self.text} names no folder; write {self.text}FOLDER")
        return folder


def _open_redis(address: _Address) -> Store:
    from key_value.aio.stores.redis import RedisStore
    from redis.asyncio import Redis

    client: Any = Redis.from_url(address.text, decode_responses=True)  # py-key-value would not decode %40
    store: Any = RedisStore(client=client)
    store._exit_stack.push_async_callback(client.aclose)
    return cast("Store", store)


def _open_valkey(address: _Address) -> Store:
    from key_value.aio.stores.valkey import ValkeyStore

    url = urlsplit(address.text)
    host, port, database = url.hostname or "localhost", url.port or 6379, int(url.path.strip("/") or 0)
    username, password = (text and unquote(text) for text in (url.username, url.password))
    return ValkeyStore(host=host, port=port, db=database, username=username, password=password)


def _open_memcached(address: _Address) -> Store:
    from key_value.aio.stores.memcached import MemcachedStore

    url = urlsplit(address.text)
    store = MemcachedStore(host=url.hostname or "127.0.0.1", port=url.port or 11211)
    client: Any = store._client
    client.set = partial(_set_in_memcached, client.set)
    return store


async def _set_in_memcached(plainly: Callable[..., Any], key: bytes, value: bytes, exptime: int = 0) -> Any:
    """Memcached takes more than 30 days for seconds since 1970; py-key-value knows since 0.5."""
    now = time.time()
    if _LONGEST_EXPTIME < exptime < now - _LONGEST_EXPTIME:
        exptime = min(int(now) + exptime, 2**31 - 1)
    return await plainly(key=key, value=value, exptime=exptime)


def _open_dynamodb(address: _Address) -> Store:
    from key_value.aio.stores.dynamodb import DynamoDBStore

    url = urlsplit(address.text)
    query = dict(parse_qsl(url.query))
    region, endpoint = query.pop("region_name", None), query.pop("endpoint_url", None)
    if query:
        raise ValueError(
            f"{_shown(address.text)}: {', '.join(query)} is unknown; there are region_name and endpoint_url"
        )
    return DynamoDBStore(
        table_name=url.netloc, region_name=region, endpoint_url=endpoint, auto_create=not address.is_source
    )


def _open_mongodb(address: _Address) -> Store:
    from key_value.aio.stores.mongodb import MongoDBStore

    database = urlsplit(address.text).path.strip("/") or None
    return MongoDBStore(url=patient(address.text), db_name=database, auto_create=not address.is_source)


def _open_elasticsearch(address: _Address) -> Store:
    from key_value.aio.stores.elasticsearch import ElasticsearchStore

    url = urlsplit(address.text.partition("+")[2])
    prefix = url.path.strip("/")
    if not prefix:
        raise ValueError(f"{_shown(address.text)} names no prefix of indexes; write …/PREFIX")
    return ElasticsearchStore(url=f"{url.scheme}://{url.netloc}", index_prefix=prefix)


def _open_disk(address: _Address) -> Store:
    from key_value.aio.stores.disk import DiskStore

    return DiskStore(directory=address.folder, auto_create=not address.is_source)


def _open_file_tree(address: _Address) -> Store:
    from key_value.aio.stores.filetree import FileTreeStore

    return FileTreeStore(data_directory=address.folder, auto_create=not address.is_source)


_OPENERS: dict[str, Callable[[_Address], Store]] = {
    "disk": _open_disk,
    "dynamodb": _open_dynamodb,
    "elasticsearch+http": _open_elasticsearch,
    "elasticsearch+https": _open_elasticsearch,
    "filetree": _open_file_tree,
    "memcached": _open_memcached,
    "mongodb": _open_mongodb,
    "mongodb+srv": _open_mongodb,
    "redis": _open_redis,
    "rediss": _open_redis,
    "valkey": _open_valkey,
}
