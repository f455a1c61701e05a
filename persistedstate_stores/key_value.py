"""A state file as a store of py-key-value-aio (`AsyncKeyValue`): durable, readable, editable, without pickle.

In the file, a collection is a key, and its entries are keys below it:

    sessions:
      alice:
        value:
          visits: 3
        created_at: "2026-11-21T14:20:00.000000+00:00"
        expires_at: "2026-11-21T15:20:00.000000+00:00"

A person may change, add and remove all of it. A time is written as YAML or ISO 8601 have it (`2026-12-24`,
`2026-12-24 18:00:00`, `"2026-12-24T18:00:00Z"`), in UTC unless it says otherwise; an entry without `expires_at` stays
for ever. Names are strings: what looks like a number, a date or `yes` needs quotes.
"""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import nullcontext
from datetime import date, datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

from persistedstate import PersistedState, StateDict, StateError, StateReadOnly, plain
from persistedstate_stores._warn import warn_of_places

try:
    from key_value.aio._utils.managed_entry import ManagedEntry  # before 0.5, no public name has it
    from key_value.aio.errors import DeserializationError, SerializationError
    from key_value.aio.stores.base import (
        BaseContextManagerStore,
        BaseCullStore,
        BaseDestroyCollectionStore,
        BaseDestroyStore,
        BaseEnumerateCollectionsStore,
        BaseEnumerateKeysStore,
    )
except ImportError as error:
    raise ImportError("this store needs py-key-value-aio: pip install 'py-key-value-aio<0.6'") from error

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["PersistedStateStore"]

#: Seconds between two looks at whether somebody edited the file; more where reading it takes more than a share of the
#: time, up to a second.
_LOOK_EVERY, _LOOK_SHARE, _LOOK_AT_LEAST_EVERY = 0.1, 0.1, 1.0
#: Looking for expired entries takes at most this share of the time.
_PURGE_SHARE = 0.01
#: So many entries are purged in one record: one fsync for many, and no huge list of what to do to undo it.
_PURGED_AT_ONCE = 100
#: What JSON gives back just as it is, besides lists and dicts.
_JSON, _NAMES = frozenset({str, int, float, bool, type(None)}), frozenset({str})


class PersistedStateStore(
    BaseContextManagerStore,
    BaseCullStore,
    BaseDestroyStore,
    BaseDestroyCollectionStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
):
    """An `AsyncKeyValue` store in a state file; each call that has returned is in the file.

    Args:
        path: the file; it is opened by the first call and closed by `close()` or at the end of `async with`. A call
            after that opens it again.
        state: an open PersistedState, in place of a path; it is never closed by the store. One that was opened with
            `_readonly=True` serves to read from a file that another process writes.
        default_collection: the collection of calls that name none; "default_collection" by default.
        max_entries_per_collection: a put beyond so many removes those that were put first; None (default): no limit.
        under: the key of the state that holds the collections, to keep them apart from other keys. By default, every
            mapping at the top level is a collection; other values there are left alone.
        **options: how to open the path, as for PersistedState: `_fsync`, `_wait`, `_readonly`, `_mode`.

    Raises, besides py-key-value's own errors: ValueError, unless there is either a path or a state; StoreSetupError
    from the first call, with the reason (in use by process …, line and column of a typo); StateReadOnly, StateClosed;
    OSError, when the disk takes no more, with nothing changed.

    A batch is one record in the file: all of it or nothing. Values are JSON, as in the other stores: tuples become
    lists, anything else is a SerializationError, with nothing changed. An expired entry is never returned or listed,
    and leaves the file with one of the next changes, at the next opening, or by `cull()`. What a person saves while
    the store is open is seen within a second. May be used from several event loops and threads. The calls do not wait
    for anything but the disk: one takes some ten microseconds, with `_fsync=True` as long as the disk needs. Only the
    first one, which opens the file, waits up to `_wait` seconds for another process, and the event loop with it.
    """

    #: The open state; None before the first call and after `close()`.
    _state: PersistedState | None
    #: When (monotonic seconds) to look whether somebody edited the file.
    _look_at: float
    #: When (seconds since 1970) the next entry expires, and when (monotonic seconds) it may be looked for.
    _next_expiry: float
    _purge_at: float

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        state: PersistedState | None = None,
        default_collection: str | None = None,
        max_entries_per_collection: int | None = None,
        under: str | None = None,
        **options: Any,
    ) -> None:
        if (path is None) == (state is None):
            raise ValueError("give either a path or a state")
        _check_options(state, max_entries_per_collection, options)
        self._path, self._options = path, options
        self._label = "the state" if path is None else str(path)
        self._state = state
        self._max_entries = max_entries_per_collection
        self._under = under
        self._opening = threading.RLock()
        self._look_at = self._purge_at = 0.0
        self._next_expiry = -math.inf
        super().__init__(
            client_provided_by_user=state is not None, default_collection=default_collection, stable_api=True
        )

    async def setup(self) -> None:
        """Open the file, if it is not open; every call does that by itself."""
        if not self._setup_complete:
            # The base class has an asyncio lock, which belongs to one event loop. With this one around it, and nothing
            # below that suspends, no task ever waits for it.
            with self._opening:
                await super().setup()

    async def setup_collection(self, *, collection: str) -> None:  # noqa: ARG002 - put makes the collection
        """Open the file, if it is not open. A collection comes into being by the first put to it."""
        await self.setup()

    async def _setup(self) -> None:
        if self._path is not None:
            self._state = PersistedState(self._path, **self._options)
            self._exit_stack.callback(self._let_go, self._state)
        try:
            self._begin()
        except BaseException:
            if self._path is not None:
                self._let_go(self._opened())
            raise

    def _begin(self) -> None:
        self._look_at, self._purge_at, self._next_expiry = 0.0, 0.0, -math.inf
        with self._current():
            self._warn_of_unusable()
            self._purge_if_due()

    def _let_go(self, state: PersistedState) -> None:
        if self._state is state:
            self._state, self._setup_complete = None, False
        state.close()

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        with self._current():
            return self._entry(collection, key)

    async def _get_managed_entries(self, *, collection: str, keys: Sequence[str]) -> list[ManagedEntry | None]:
        with self._current():
            return [self._entry(collection, key) for key in keys]

    async def _put_managed_entry(self, *, collection: str, key: str, managed_entry: ManagedEntry) -> None:
        self._put(collection, {_name(key): managed_entry})

    async def _put_managed_entries(
        self, *, collection: str, keys: Sequence[str], managed_entries: Sequence[ManagedEntry], **_times: Any
    ) -> None:
        self._put(collection, {_name(key): entry for key, entry in zip(keys, managed_entries, strict=True)})

    async def _delete_managed_entry(self, *, key: str, collection: str) -> bool:
        return self._delete(collection, [key]) == 1

    async def _delete_managed_entries(self, *, keys: Sequence[str], collection: str) -> int:
        return self._delete(collection, keys)

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        with self._current():
            now, entries = time.time(), _named(self._entries(collection))
            return list(islice((key for key, entry in entries if entry is not None and _expiry(entry) > now), limit))

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        with self._current():
            return list(islice((name for name, _ in self._collections()), limit))

    async def _delete_collection(self, *, collection: str) -> bool:
        with self._current():
            is_there = isinstance(self._root().get(collection), StateDict)
            if is_there:
                del self._root()[collection]
            return is_there

    async def _delete_store(self) -> bool:
        with self._current(), self._opened().transaction():
            for name in [name for name, _ in self._collections()]:
                del self._root()[name]
        return True

    async def _cull(self) -> None:
        with self._current():
            self._purge()

    # ---- The state and the places in it ----

    def _opened(self) -> PersistedState:
        if self._state is None:
            raise RuntimeError(f"{self._label}: another thread closed the store during this call; repeat it")
        return self._state

    def _current(self) -> AbstractContextManager[Any]:
        """Take over what a person saved; return the lock under which to read and change the state."""
        state = self._opened()
        start = time.monotonic()
        if start >= self._look_at:
            if state.refresh():
                self._next_expiry = -math.inf
            end = time.monotonic()
            self._look_at = end + min(max(_LOOK_EVERY, (end - start) / _LOOK_SHARE), _LOOK_AT_LEAST_EVERY)
        lock: AbstractContextManager[Any] = state._thread_lock  # noqa: SLF001 - the README has it
        return lock

    def _root(self) -> Any:
        """Return what holds the collections; an empty dict where there is nothing yet."""
        state = self._opened()
        return state if self._under is None else self._mapping(state.get(self._under))

    def _entries(self, collection: str) -> Any:
        """Return a collection; an empty dict where there is nothing yet."""
        return self._mapping(self._root().get(collection), collection)

    def _mapping(self, node: Any, *names: str) -> Any:
        if node is None:  # absent, or what is left when a person removes all lines below it
            return {}
        if not isinstance(node, StateDict):
            raise DeserializationError(f"{self._place(*names)} is {type(node).__name__}, not a mapping")
        return node

    def _collections(self) -> Iterator[tuple[str, StateDict]]:
        return ((name, node) for name, node in _named(self._root()) if isinstance(node, StateDict))

    def _place(self, *names: str) -> str:
        """Return where something is, for a message."""
        return f"{self._label}: {' → '.join(names if self._under is None else (self._under, *names))}"

    # ---- Entries ----

    def _entry(self, collection: str, key: str) -> ManagedEntry | None:
        entry = self._entries(collection).get(key)
        if entry is None:
            return None
        try:
            return _load(entry)
        except ValueError as problem:
            raise DeserializationError(f"{self._place(collection, key)}: {problem}") from None

    def _put(self, collection: str, new: dict[str, ManagedEntry]) -> None:
        """Store entries, all or none, in one record."""
        if not new:
            return
        entries = {key: self._dumped(collection, key, entry) for key, entry in new.items()}
        try:
            with self._current():
                self._purge_if_due()
                self._assign(collection, entries)
                self._next_expiry = min(self._next_expiry, *map(_expiry, entries.values()))
        except StateError:
            raise
        except (TypeError, ValueError) as error:
            raise SerializationError(f"{self._place(collection)}: {error}") from error

    def _dumped(self, collection: str, key: str, entry: ManagedEntry) -> dict[str, Any]:
        """Return what stands in the file for an entry; the state takes a copy of it."""
        value = entry.value_as_dict
        try:
            if not _is_json([value]):
                value = json.loads(json.dumps(value), object_pairs_hook=_unique)
        except (TypeError, ValueError, RecursionError) as error:
            raise SerializationError(f"{self._place(collection, key)}: no JSON: {error}") from error
        times = {"created_at": entry.created_at_isoformat, "expires_at": entry.expires_at_isoformat}
        return {"value": value, **{name: text for name, text in times.items() if text is not None}}

    def _assign(self, collection: str, entries: dict[str, dict[str, Any]]) -> None:
        if self._max_entries is None:
            self._update(collection, entries)
            return
        with self._opened().transaction():
            for key in entries.keys() & self._entries(collection).keys():
                del self._entries(collection)[key]  # what is put again is no longer among the oldest
            self._update(collection, entries)
            node = self._entries(collection)
            for key in list(islice(node, max(0, len(node) - self._max_entries))):
                del node[key]

    def _update(self, collection: str, entries: dict[str, dict[str, Any]]) -> None:
        root, node = self._root(), self._entries(collection)
        if isinstance(node, StateDict) and len(entries) == 1:  # less work than an update
            ((key, entry),) = entries.items()
            node[key] = entry
        elif isinstance(node, StateDict):
            node.update(entries)
        elif self._under is None or isinstance(root, StateDict):
            root[collection] = entries
        else:
            self._opened()[self._under] = {collection: entries}

    def _delete(self, collection: str, keys: Sequence[str]) -> int:
        """Delete entries, in one record; return how many there were, not counting expired ones."""
        with self._current():
            self._purge_if_due()
            node, now = self._entries(collection), time.time()
            present = [key for key in dict.fromkeys(keys) if key in node]
            alive = sum(_expiry(node[key]) > now for key in present)
            with self._opened().transaction() if len(present) > 1 else nullcontext():
                for key in present:
                    del node[key]
            return alive

    # ---- Expiry ----

    def _is_purge_due(self) -> bool:
        return self._next_expiry <= time.time() and time.monotonic() >= self._purge_at

    def _purge_if_due(self) -> None:
        if self._is_purge_due():
            try:
                self._purge()
            except StateReadOnly:
                self._purge_at = math.inf

    def _purge(self) -> None:
        """Remove what has expired, and note when there will be more to remove."""
        start, now, self._next_expiry = time.monotonic(), time.time(), math.inf
        expired = [(node, key) for _, node in self._collections() for key in self._expired(node, now)]
        for first in range(0, len(expired), _PURGED_AT_ONCE):
            with self._opened().transaction():
                for node, key in expired[first : first + _PURGED_AT_ONCE]:
                    if _expiry(node.get(key)) <= now:  # a person may have edited it, or removed it, just now
                        del node[key]
        end = time.monotonic()
        self._purge_at = end + (end - start) / _PURGE_SHARE

    def _expired(self, node: StateDict, now: float) -> Iterator[str]:
        for key, entry in node.items():
            expiry = _expiry(entry)
            if expiry <= now:
                yield key
            else:
                self._next_expiry = min(self._next_expiry, expiry)

    def _warn_of_unusable(self) -> None:
        """Tell of what a person wrote that no call can return."""
        places = [self._place(str(name)) for name in self._root() if not isinstance(name, str)]
        for name, node in self._collections():
            places += [self._place(name, str(key)) for key, entry in node.items() if not _is_usable(key, entry)]
        advice = '; a name is a string (write "1", not 1), an entry has a `value` and maybe `expires_at`'
        warn_of_places(places, "no entry of the store:", advice, separator="; ")


def _check_options(state: object, max_entries: int | None, options: Mapping[str, Any]) -> None:
    if state is not None and options:
        raise TypeError(f"the state is open already; {', '.join(options)} belongs to its constructor")
    if unknown := [name for name in options if name[:1] != "_"]:
        raise TypeError(f"unknown option {unknown[0]}; those of PersistedState begin with _")
    if max_entries is not None and max_entries < 1:
        raise ValueError(f"max_entries_per_collection is None or at least 1, not {max_entries}")


def _named(entries: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the pairs whose key is a string."""
    return ((key, value) for key, value in entries.items() if isinstance(key, str))


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    return key


def _is_json(items: Iterable[Any]) -> bool:
    """Tell whether JSON gives these values back just as they are; a look at them costs a third of doing it."""
    for item in items:
        kind = type(item)
        if kind is dict:
            if not (_NAMES.issuperset(map(type, item)) and _is_json(item.values())):
                return False
        elif kind is list:
            if not _is_json(item):
                return False
        elif kind not in _JSON:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two keys of a dict are the same in JSON")
    return found


def _load(entry: Any) -> ManagedEntry:
    """Return the entry that stands in the file; raises ValueError with what is wrong with it."""
    value = entry.get("value") if isinstance(entry, StateDict) else None
    if not isinstance(value, StateDict):
        raise ValueError("an entry has a `value`, which is a mapping")  # noqa: TRY004 - the caller makes it another
    return ManagedEntry(
        value=plain(value), created_at=_instant(entry.get("created_at")), expires_at=_instant(entry.get("expires_at"))
    )


def _instant(written: Any) -> datetime | None:
    """Return the time that is written in the file; raises ValueError if it is none."""
    if written is None or isinstance(written, datetime):
        found = written
    elif isinstance(written, date):
        found = datetime(written.year, written.month, written.day, tzinfo=timezone.utc)
    else:
        try:
            found = datetime.fromisoformat(written.strip().replace("Z", "+00:00"))
        except (AttributeError, ValueError):
            raise ValueError(f"{written!r} is no time; write for example 2026-12-24 18:00:00") from None
    return found if found is None or found.tzinfo else found.replace(tzinfo=timezone.utc)


def _expiry(entry: Any) -> float:
    """Return when an entry expires, in seconds since 1970; never, if it does not say so in a way to be understood."""
    try:
        when = _instant(entry.get("expires_at"))
    except (AttributeError, ValueError):
        return math.inf
    return math.inf if when is None else when.timestamp()


def _is_usable(key: Any, entry: Any) -> bool:
    try:
        return isinstance(key, str) and _load(entry) is not None
    except ValueError:
        return False
