"""A state file as a state store of pystator: a machine goes on where it was, and a person can read where that is.

In the file, each entity is a key, with all that is known of it below:

    entities:
      order-1:
        state: paid
        version: 2
        metadata:
          trigger: pay
          is_terminal: false
        context:
          amount: 30

`transitions` and `events` appear beside `entities` when the store serves as audit store and event store. A person may
change, add and remove all of it; `state` alone makes an entity. Ids are strings: `"42"` needs its quotes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import uuid
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from persistedstate import PersistedState, StateDict, StateList, plain
from persistedstate_stores._warn import warn_of_ids

try:
    from pystator.errors import StaleVersionError
    from pystator.stores.base import StateStoreClient
except ImportError as error:
    raise ImportError("this store needs pystator[api]: pip install 'pystator[api]==0.0.47'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PersistedStateStore"]

#: Seconds between two looks at whether somebody edited the file: a look behind a change of one's own reads it.
_LOOK_EVERY = 0.1
#: The scheme that a connection string may have; a relative path follows it, or an absolute one with its own slash.
_SCHEME = "persistedstate:///"
#: What an orchestrator tells when it makes a transition. It gives the context of that transition next.
_TRANSITION = {"trigger", "source_state", "target_state", "is_terminal", "workflow_status", "machine_name"}
#: What an entity's entry consists of, and what stands for a part that is not in the file.
_ENTRY: dict[str, tuple[type, Any]] = {
    "state": (str, None),
    "version": (int, 0),
    "metadata": (dict, {}),
    "context": (dict, {}),
}
#: What `get_transition_history` tells of a transition, as the SQL stores do.
_HISTORY = (
    "id", "entity_id", "machine_name", "source_state", "target_state", "trigger", "success", "error_type",
    "error_message", "actions_executed", "context_snapshot", "created_at", "duration_ms",
)  # fmt: skip
#: What `get_events` tells of an event where the file says nothing.
_EVENT: dict[str, Any] = {"payload": {}, "event_id": None, "source": "", "machine_name": None}
#: What is left out of the file.
_NOTHING: tuple[Any, ...] = (None, "", {}, [])
#: Context may be nested this deep: a state holds 100 levels, and the store adds some.
_MAX_DEPTH = 90


class _Begun(NamedTuple):
    """A transition whose context is still to come."""

    #: The thread and the asyncio task that make it.
    maker: tuple[int, Any]
    #: The entity's entry after it, but for the context.
    entry: dict[str, Any]


class PersistedStateStore(StateStoreClient):
    """A pystator state store in a state file; each call that has returned is in the file.

    Args:
        connection_string: a path, or `persistedstate:///` and a path. `connect()` opens it, `disconnect()` closes it.
        state: an open PersistedState, in place of a path; the store never closes it.
        **options: how to open the path, as for PersistedState: `_fsync`, `_wait`, `_readonly`, `_mode`.

    Raises ValueError, unless there is either a path or a state; RuntimeError from any call without a connection;
    StateLocked, naming the process, when another one has the file open; StateCorrupt, naming line and column.

    It is a StateStore and AsyncStateStore, keeps context, versions (sync and async), batches, queries, events and
    audit; pass it to `Orchestrator` as `state_store`, `event_store` and `audit_store`, or to `PyStatorRuntime`. It
    lends no SQLAlchemy session, so `runtime.list_transitions` and `subscribe` refuse.

    The state and the context of one transition are one record in the file. An orchestrator gives the state first, and
    the context after the actions; the store keeps the state back until then, or until somebody asks for it: what a
    call has told is in the file. If the process dies before that, or the context cannot be stored, the entity is where
    it was before the event. A transition out of a parallel state has no context, and is in the file at once.

    Context, payloads and metadata may hold what YAML can, and what becomes it without loss of meaning: Decimal,
    Fraction, UUID, paths and times become str, timedelta seconds, sets and tuples lists, enums their value,
    dataclasses and pydantic models mappings. Anything else is a TypeError that names the place, with nothing written.

    May be used from several threads and event loops. The calls wait for nothing but the disk.
    """

    #: The open state; None while not connected. The name is that of the base class.
    _connection: Any
    #: When (monotonic seconds) to look whether somebody edited the file.
    _look_at: float
    #: Transitions whose context is still to come, by entity.
    _begun: dict[str, _Begun]

    def __init__(
        self,
        connection_string: str | os.PathLike[str] | None = None,
        *,
        state: PersistedState | None = None,
        **options: Any,
    ) -> None:
        if (connection_string is None) == (state is None):
            raise ValueError("give either a path or a state")
        if state is not None and options:
            raise TypeError(f"{', '.join(options)}: say so where the state is opened")
        text = None if connection_string is None else os.fsdecode(connection_string)
        if text is not None and "://" in text and not text.startswith(_SCHEME):
            raise ValueError(f"{text}: this store takes a path, or {_SCHEME} and a path")
        super().__init__(text)
        self._given, self._options = state, options
        self._begun = {}
        self._look_at = 0.0

    # ---- Lifecycle ----

    def connect(self) -> None:
        """Open the file, creating it if need be; does nothing when it is open."""
        if self._connection is None:
            self._connection = self._given or PersistedState(self._path(), **self._options)
            warn_of_ids(self._connection, "entities", "transitions", "events")

    def disconnect(self) -> None:
        """Close the file, unless the state was given open; `connect()` opens it again. A second call does nothing."""
        connection, self._connection = self._connection, None
        self._begun.clear()
        if connection is not None and connection is not self._given:
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[PersistedStateStore]:
        """Make everything that this thread does with the store in a `with` block one record: all of it, or none.

        For what is more than one call, such as an event with its log entry and its audit entry. Other threads wait, so
        do nothing slow inside, and do not `await`.
        """
        with self._open() as state:
            begun = dict(self._begun)
            try:
                with state.transaction():
                    yield self
            except BaseException:
                self._begun = begun
                raise

    def _path(self) -> str:
        assert self.connection_string is not None  # noqa: S101 - the constructor asked for it
        return str(self.connection_string).removeprefix(_SCHEME)

    @contextmanager
    def _open(self) -> Iterator[PersistedState]:
        """Give the state, with its lock held."""
        self._require_connection()
        state: PersistedState = self._connection
        with state._thread_lock:  # noqa: SLF001 - the documented way to hold it
            if monotonic() >= self._look_at:
                state.refresh()
                self._look_at = monotonic() + _LOOK_EVERY
            yield state

    # ---- State ----

    def get_state(self, entity_id: str) -> str | None:
        """Return the entity's state, or None if it has none; sees, within 0.1 s, what a person changed."""
        return self.get_state_versioned(entity_id)[0]

    def set_state(self, entity_id: str, state: str, *, metadata: dict[str, Any] | None = None) -> None:
        """Set the entity's state; `metadata` joins what is there, its `context` replaces the context."""
        self.set_state_versioned(entity_id, state, metadata=metadata)

    def get_state_versioned(self, entity_id: str) -> tuple[str | None, int | None]:
        """Return state and version (from 1, one more with each new state); None and None if there is no state."""
        with self._open():
            entry = self._entry(entity_id)
            return (entry["state"], entry["version"]) if entry["state"] is not None else (None, None)

    def set_state_versioned(
        self,
        entity_id: str,
        state: str,
        *,
        expected_version: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """Set the state, and return its version.

        Raises StaleVersionError when `expected_version` is not the present one; that of an unknown entity is 0.
        """
        with self._open():
            entry = self._entry(entity_id)
            if expected_version not in {None, entry["version"]}:
                raise StaleVersionError(
                    entity_id=entity_id, expected_version=expected_version, actual_version=entry["version"]
                )
            _advance(entry, state, metadata or {})
            if _awaits_context(metadata or {}):
                self._begun[entity_id] = _Begun(_maker(), entry)
            else:
                self._write({entity_id: entry})
            return int(entry["version"])

    def get_context(self, entity_id: str) -> dict[str, Any]:
        """Return a copy of the entity's context; empty if there is none."""
        with self._open():
            return dict(self._stored(entity_id)["context"])

    def set_context(self, entity_id: str, context: dict[str, Any]) -> None:
        """Replace the entity's context; completes the transition that came before.

        Raises TypeError or ValueError for what cannot be stored, which undoes that transition.
        """
        with self._open():
            begun = self._begun.get(entity_id)
            if begun is not None and begun.maker == _maker():
                entry = self._begun.pop(entity_id).entry
            else:
                entry = self._stored(entity_id)
            self._write({entity_id: {**entry, "context": _storable(context)}})

    def get_is_terminal(self, entity_id: str) -> bool | None:
        """Tell whether the entity is in a terminal state; None if nobody said."""
        flag = self._metadata(entity_id).get("is_terminal")
        return flag if isinstance(flag, bool) else None

    def get_workflow_status(self, entity_id: str) -> str | None:
        """Return `active`, `complete` or `failed`; None if nobody said."""
        status = self._metadata(entity_id).get("workflow_status")
        return status if isinstance(status, str) else None

    def delete_entity(self, entity_id: str) -> bool:
        """Remove state, version and context; tell whether there were any. The entity's events and history stay."""
        with self._open() as state:
            self._tell(entity_id)
            entities = _section(state, "entities")
            return entity_id in entities and entities.pop(entity_id) is not None

    # ---- Many entities ----

    def get_states_batch(self, entity_ids: list[str]) -> dict[str, str | None]:
        """Return the states of these entities, None for those without."""
        with self._open():
            return {entity_id: self._entry(entity_id)["state"] for entity_id in entity_ids}

    def set_states_batch(self, updates: dict[str, str], *, metadata: dict[str, Any] | None = None) -> None:
        """Set all of these states as one record, or, if one of them cannot be stored, none."""
        with self._open():
            entries = {entity_id: self._entry(entity_id) for entity_id in updates}
            for entity_id, state in updates.items():
                _advance(entries[entity_id], state, metadata or {})
            self._write(entries)

    def list_entities(self, state: str | None = None, limit: int = 100, offset: int = 0) -> list[str]:
        """Return the ids of the entities that have a state (this one), in the order of the file."""
        with self._open() as opened:
            found = (entity_id for entity_id, is_in in self._states(opened) if state in {None, is_in})
            return list(islice(found, offset, offset + limit))

    def count_by_state(self) -> dict[str, int]:
        """Return how many entities are in each state."""
        with self._open() as opened:
            return dict(Counter(state for _, state in self._states(opened)))

    # ---- History ----

    def record_transition(self, entity_id: str, source_state: str, trigger: str, **details: Any) -> str:
        """Add a transition to the entity's history and return its id.

        `details`: `target_state`, `success` (default True), `duration_ms`, and what the SQL stores take besides.
        """
        if details.keys() - set(_HISTORY):
            raise TypeError(f"a transition has no {', '.join(details.keys() - set(_HISTORY))}")
        record = {"id": str(uuid.uuid4()), "source_state": source_state, "trigger": trigger, "success": True, **details}
        with self._open() as state:
            _append(state, "transitions", entity_id, record)
        return str(record["id"])

    def get_transition_history(self, entity_id: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return the entity's latest transitions, the newest first."""
        blank = {**dict.fromkeys(_HISTORY), "entity_id": entity_id}
        with self._open() as state:
            latest = islice(reversed(_logged(state, "transitions", entity_id)), limit)
            return [{**blank, **_told("transitions", entity_id, record)} for record in latest]

    def append_event(
        self,
        entity_id: str,
        trigger: str,
        *,
        payload: dict[str, Any] | None = None,
        event_id: str | None = None,
        source: str = "",
        machine_name: str | None = None,
    ) -> int:
        """Add an event to the entity's log and return its number, from 1."""
        event = {"payload": payload, "event_id": event_id, "source": source, "machine_name": machine_name}
        with self._open() as state:
            logged = _logged(state, "events", entity_id)
            number = _sequence(entity_id, logged[-1]) + 1 if logged else 1
            _append(state, "events", entity_id, {"sequence": number, "trigger": trigger, **event})
        return number

    def get_events(self, entity_id: str, *, after_sequence: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the entity's events after the number `after_sequence`, at most `limit`, in their order."""
        blank = {**_EVENT, "entity_id": entity_id}
        with self._open() as state:
            logged = _logged(state, "events", entity_id)
            later = (event for event in logged if _sequence(entity_id, event) > after_sequence)
            return [{**blank, **_told("events", entity_id, event)} for event in islice(later, limit)]

    # ---- The same for asyncio ----

    async def aget_state(self, entity_id: str) -> str | None:
        """As `get_state`."""
        return self.get_state(entity_id)

    async def aset_state(self, entity_id: str, state: str, *, metadata: dict[str, Any] | None = None) -> None:
        """As `set_state`."""
        self.set_state(entity_id, state, metadata=metadata)

    async def aget_state_versioned(self, entity_id: str) -> tuple[str | None, int | None]:
        """As `get_state_versioned`; no protocol names it, but orchestrators look for it."""
        return self.get_state_versioned(entity_id)

    async def aset_state_versioned(
        self,
        entity_id: str,
        state: str,
        *,
        expected_version: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """As `set_state_versioned`; no protocol names it, but orchestrators look for it."""
        return self.set_state_versioned(entity_id, state, expected_version=expected_version, metadata=metadata)

    async def aget_context(self, entity_id: str) -> dict[str, Any]:
        """As `get_context`."""
        return self.get_context(entity_id)

    async def aset_context(self, entity_id: str, context: dict[str, Any]) -> None:
        """As `set_context`."""
        self.set_context(entity_id, context)

    # ---- Entries ----

    def _entry(self, entity_id: str) -> dict[str, Any]:
        """Return a copy of what is known of an entity, with nothing missing; from then on it is in the file."""
        self._tell(entity_id)
        return self._stored(entity_id)

    def _tell(self, *entity_ids: str) -> None:
        """Write transitions that were kept back, beside the present contexts: somebody asks for them."""
        kept = {
            entity_id: {**self._begun[entity_id].entry, "context": self._stored(entity_id)["context"]}
            for entity_id in entity_ids
            if entity_id in self._begun
        }
        if kept:
            self._write(kept)
            for entity_id in kept:
                del self._begun[entity_id]

    def _stored(self, entity_id: str) -> dict[str, Any]:
        return _complete(entity_id, _section(self._connection, "entities").get(entity_id))

    def _metadata(self, entity_id: str) -> dict[str, Any]:
        with self._open():
            return dict(self._entry(entity_id)["metadata"])

    def _states(self, state: PersistedState) -> Iterator[tuple[str, str]]:
        """Yield the entities that have a state, with it, without copying the rest of them."""
        self._tell(*self._begun)
        for entity_id, known in _section(state, "entities").items():
            is_in = known.get("state") if isinstance(known, StateDict) else None
            if not isinstance(is_in, str):  # there is none, or a person made it unusable, which is told
                is_in = self._stored(entity_id)["state"]
            if is_in is not None:
                yield entity_id, is_in

    def _write(self, entries: dict[str, dict[str, Any]]) -> None:
        """Put entries into the file as one record."""
        with self._connection.transaction():
            entities = _made_section(self._connection, "entities")
            for entity_id, entry in entries.items():
                told = {key: value for key, value in entry.items() if value != _ENTRY[key][1]}
                _renew(entities, entity_id, told)


def _maker() -> tuple[int, Any]:
    """Return who is at work."""
    task = None
    with suppress(RuntimeError):  # no event loop runs in this thread
        task = asyncio.current_task()
    return threading.get_ident(), task


def _awaits_context(metadata: Mapping[str, Any]) -> bool:
    """Tell whether an orchestrator will set the context of this transition after its actions.

    It may leave that out for a transition from a parallel state (`review: legal=open,price=open`).
    """
    return metadata.keys() >= _TRANSITION and "=" not in str(metadata["source_state"]) and "context" not in metadata


def _advance(entry: dict[str, Any], state: str, metadata: Mapping[str, Any]) -> None:
    """Put the entity into `state`; its version grows with each."""
    if not isinstance(state, str):
        raise TypeError(f"a state is a str, not {type(state).__name__}")
    told = _storable(metadata)
    context = told.pop("context", entry["context"]) or {}
    metadata = {**entry["metadata"], **told}
    entry.update(state=state, version=entry["version"] + 1, metadata=metadata, context=context)


def _complete(entity_id: str, found: Any) -> dict[str, Any]:
    """Return a plain copy of an entity's entry with nothing missing; ValueError if a person made it unusable."""
    entry = plain(found) if isinstance(found, StateDict) else {}
    if found is not None and not isinstance(found, StateDict):
        raise ValueError(f"entities.{entity_id}: {found!r} in the file is no mapping; write `state: …` below it")
    for part, (kind, missing) in _ENTRY.items():
        value = entry.setdefault(part, missing)
        if value is None:
            entry[part] = missing
        elif type(value) is not kind:
            raise ValueError(f"entities.{entity_id}.{part}: {value!r} in the file is no {kind.__name__}; change it")
    if entry["state"] is not None:
        entry["version"] = entry["version"] or 1
    return {part: entry[part] for part in _ENTRY}


# ---- Parts of the state ----


def _section(state: PersistedState, name: str) -> MutableMapping[str, Any]:
    """Return a top-level mapping; an empty one where there is none, or where a person left nothing in it."""
    section = state.get(name)
    if not isinstance(section, StateDict | None):
        raise ValueError(f"{name}: {section!r} in the file is no mapping; make it one")  # noqa: TRY004 - a value of the file
    return {} if section is None else section


def _made_section(state: PersistedState, name: str) -> MutableMapping[str, Any]:
    """Return a top-level mapping, made if there is none."""
    if state.get(name) is None:
        state[name] = {}
    return _section(state, name)


def _logged(state: PersistedState, section: str, entity_id: str) -> Sequence[Any]:
    """Return an entity's log, as it is in the state: copying it took longer with each entry."""
    found = _section(state, section).get(entity_id)
    if not isinstance(found, StateList | None):
        raise ValueError(f"{section}.{entity_id}: {found!r} in the file is no list; make it one")  # noqa: TRY004 - a value of the file
    return [] if found is None else found


def _told(section: str, entity_id: str, record: Any) -> dict[str, Any]:
    """Return a plain copy of a log's record; ValueError if a person made it something else."""
    if not isinstance(record, StateDict):
        raise ValueError(f"{section}.{entity_id}: {record!r} in the file is no mapping; make it one")  # noqa: TRY004 - a value of the file
    return dict(plain(record))


def _sequence(entity_id: str, event: Any) -> int:
    """Return an event's number; ValueError if a person left it without."""
    number = event.get("sequence") if isinstance(event, StateDict) else None
    if not isinstance(number, int):
        raise ValueError(f"events.{entity_id}: {event!r} in the file has no `sequence`; number it")  # noqa: TRY004 - a value of the file
    return number


def _append(state: PersistedState, section: str, entity_id: str, record: dict[str, Any]) -> None:
    """Add to an entity's log, in one record, with the time."""
    told = {key: value for key, value in record.items() if value not in _NOTHING}
    told = _storable({**told, "created_at": datetime.now(timezone.utc)})
    with state.transaction():
        logs = _made_section(state, section)
        if logs.get(entity_id) is None:
            logs[entity_id] = []
        logs[entity_id].append(told)


def _renew(node: MutableMapping[str, Any], key: str, value: Any) -> None:
    """Give a key a plain value by changing only what differs: a person's comments beside the rest stay."""
    present = node.get(key)
    if isinstance(present, StateDict) and isinstance(value, dict):
        for gone in [name for name in present if name not in value]:
            del present[gone]
        for name, item in value.items():
            _renew(present, name, item)
    elif key not in node or repr(present) != repr(value):  # as plain ones: 1, 1.0 and True are different values here
        node[key] = value


# ---- Values ----


def _sorted(values: AbstractSet[Any]) -> list[Any]:
    """Return a set's items in an order that is the same each time."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


#: What YAML holds as it is.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, date, datetime})
#: What becomes what, in the file and for whoever asks.
_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: value.value),
    ((Decimal, Fraction, uuid.UUID), str),
    (os.PathLike, os.fspath),
    (time, time.isoformat),
    (timedelta, timedelta.total_seconds),
    (AbstractSet, _sorted),
    ((bytearray, memoryview), bytes),
)


def _storable(value: Any, depth: int = 0) -> Any:
    """Return the value with all that YAML cannot hold converted; what no conversion fits stays, to be refused."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep, or it holds itself")
    if type(value) in _PLAIN:
        return value
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds) and not isinstance(value, Mapping):  # an open state is both a path and a mapping
            return _storable(convert(value), depth + 1)
    value = _opened(value)
    if isinstance(value, Mapping):
        return {_storable_key(key): _storable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_storable(item, depth + 1) for item in value]
    return value


def _storable_key(key: Any) -> Any:
    converted = _storable(key)
    return key if isinstance(converted, list | dict) else converted


def _opened(value: Any) -> Any:
    """Return the fields of a dataclass or of a pydantic model, and anything else as it is."""
    if isinstance(value, type):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value.model_dump() if hasattr(value, "model_dump") else value
