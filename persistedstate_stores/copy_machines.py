"""Copies the machines of pystator between a state file and pystator's own stores, or between two of these.

`python -m persistedstate_stores copy SOURCE TARGET` does it on the command line, `copy()` in Python. A store is named
by an address:

    example.state                               a state file
    sqlite:///pystator.db                       the database that pystator uses by default
    postgresql://user@localhost/database        also postgres://; `pystator db init` makes its tables
    pystator+mongodb://localhost/database       also pystator+mongodb+srv://
    pystator+redis://localhost:6379/0           also pystator+rediss://

Entities are copied with state, version, context and metadata, events with number and time, transitions with id and
time. What a store has no place for stays behind, and `Copied.left` counts it: an entity with a context and no state,
but for state files and Redis; all events and transitions, and the versions, for Redis. Of the metadata, SQL databases
and MongoDB keep the parts that `_COLUMNS` names.

What the target has already is not written again. All that differs is written, in one transaction but for MongoDB, and
read back. Whatever else the target has stays.
"""
# ruff: noqa: SLF001, PLC0415
# Only what is behind the stores takes versions and times. Each store is imported by those who name it.

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from persistedstate import PersistedState, StateError, _shown, plain
from persistedstate_stores import pystator as adapter
from persistedstate_stores._addresses import CopyError, described, is_of_pystator, patient
from persistedstate_stores.pystator import PersistedStateStore

__all__ = ["Copied", "CopyError", "copy"]

#: Told what is done at the moment, how many records of it, and of how many.
Progress = Callable[[str, int, int], object]
#: ("entity", id), ("event", entity, number) or ("transition", id).
Key = tuple[Any, ...]
Record = dict[str, Any]

#: What pystator's databases keep of an entity's metadata, and where.
_COLUMNS = {
    "is_terminal": "is_terminal",
    "workflow_status": "workflow_status",
    "machine_name": "machine_name",
    "machine_version": "machine_version",
    "status": "status",
    "labels": "labels_json",
    "created_at": "created_at",
    "archived_at": "archived_at",
    "deleted_at": "deleted_at",
}
#: The collections of MongoDB.
_COLLECTIONS = {"entity": "entity_states", "event": "event_log", "transition": "transition_history"}
#: What they keep of an event.
_EVENT = ("entity_id", "sequence", "trigger", "payload", "event_id", "source", "machine_name", "created_at")
#: What is JSON in them.
_JSON = ("context", "payload", "context_snapshot", "actions_executed", "labels")
#: What is not compared where the source does not tell it.
_UNTOLD = ("version", "created_at", "metadata")
#: What stands for nothing, and is left out.
_NOTHING: tuple[Any, ...] = (None, "", {}, [])
#: So many entities are asked for at once: SQLite takes some thousand parameters.
_BATCH = 500
#: A time for what has none, to sort by.
_LONG_AGO = datetime(1, 1, 1, tzinfo=timezone.utc)
#: The sections of a state file, with their kind of records, and what tells one from the others of its entity.
_LOGS = {"events": ("event", "sequence"), "transitions": ("transition", "id")}


class Copied(NamedTuple):
    """How many of each kind the target has now, how many a copy wrote, and how many have no place in the target."""

    entities: int
    events: int
    transitions: int
    written: int
    left: int


def copy(source: str | Path, target: str | Path, *, progress: Progress | None = None) -> Copied:
    """Copy all entities, events and transitions from one address to another, then read them back.

    A state file to copy from is opened read-only: another process may be writing it. One to copy to must not be in use.

    Raises CopyError, if a store does not answer, holds no machines, or cannot take what is to be written; ValueError
    for an address that is none, and for what a person made unusable; StateLocked and OSError.
    """
    tell = progress or (lambda *_: None)
    with ExitStack() as stack:
        origin = stack.enter_context(_opened(str(source), is_source=True))
        with _blamed(str(source)):
            found = origin.read(None)
        goal = stack.enter_context(_opened(str(target), is_source=False))
        wanted = {key: kept for key, record in found.items() if (kept := goal.kept(key, record)) is not None}
        ids = list(dict.fromkeys(_entity_of(key, record) for key, record in wanted.items()))
        with _blamed(str(target)):
            tell("copying", 0, len(wanted))
            different = _different(wanted, goal.read(ids))
            goal.write(different)
            tell("copying", len(wanted), len(wanted))
            missing = _different(wanted, goal.read(ids))
            tell("reading back", len(wanted) - len(missing), len(wanted))
    if missing:
        places = ", ".join(" → ".join(map(str, key)) for key in list(missing)[:3])
        raise CopyError(f"{len(missing)} of {len(wanted)} are not in the target as they were written ({places})")
    kinds = Counter(key[0] for key in wanted)
    return Copied(kinds["entity"], kinds["event"], kinds["transition"], len(different), len(found) - len(wanted))


# ---- Records ----


def _different(wanted: dict[Key, Record], present: dict[Key, Record]) -> dict[Key, Record]:
    return {key: record for key, record in wanted.items() if not _is_same(record, present.get(key))}


def _is_same(wanted: Record, found: Record | None) -> bool:
    if found is None:
        return False
    told = {name: value for name, value in found.items() if name in wanted or name not in _UNTOLD}
    if "metadata" in told:
        told["metadata"] = {name: value for name, value in told["metadata"].items() if name in wanted["metadata"]}
    return bool(_canonical(wanted) == _canonical(told))


def _canonical(value: Any) -> Any:
    """Return what is equal for the same value, whatever the order of keys; 1, 1.0 and True are not the same."""
    if isinstance(value, dict):
        return sorted((repr(key), _canonical(item)) for key, item in value.items())
    if isinstance(value, datetime):  # MongoDB counts milliseconds
        return value.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    return [_canonical(item) for item in value] if isinstance(value, list) else repr(value)


def _entity_of(key: Key, record: Record) -> str:
    return str(record["entity_id"] if key[0] == "transition" else key[1])


def _entity(entity_id: str, told: Record) -> tuple[Key, Record]:
    metadata = {name: value for name, value in told["metadata"].items() if (name, value) != ("status", "active")}
    record = {**told, "metadata": _something(metadata)}
    return ("entity", entity_id), _something({**record, "version": record.get("version") or None})


def _event(told: Record) -> tuple[Key, Record]:
    return ("event", told["entity_id"], told["sequence"]), _something({name: told.get(name) for name in _EVENT})


def _transition(told: Record) -> tuple[Key, Record]:
    record = _something({name: told.get(name, name == "success" or None) for name in adapter._HISTORY})
    if isinstance(record.get("duration_ms"), float):
        record["duration_ms"] = int(record["duration_ms"])  # as pystator's own stores do
    try:
        record["id"] = str(uuid.UUID(record["id"]))
    except (KeyError, TypeError, ValueError, AttributeError):  # a person wrote it
        record["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, repr(sorted(record.items()))))
    return ("transition", record["id"]), record


def _all_fields(key: Key, record: Record) -> Record:
    """Return a record of a log with what it does not tell, but for the time: a database may have had it."""
    names = _EVENT if key[0] == "event" else adapter._HISTORY
    blank = {name: "" if name == "source" else None for name in names if name != "created_at"}
    return {**blank, **record}


def _something(record: Record) -> Record:
    """Return what is not empty, with times in UTC."""
    return {name: _in_utc(value) for name, value in record.items() if value not in _NOTHING}


def _in_utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


def _check_json(key: Key, record: Record) -> None:
    for name in _JSON:
        place = f"{' → '.join(map(str, key))}: {name}"
        try:
            same = json.loads(json.dumps(record.get(name), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CopyError(f"{place}: {error}; the target keeps JSON") from None
        if same != record.get(name):
            raise CopyError(f"{place}: a key is no string; the target keeps JSON")


# ---- Stores ----


class _Store(Protocol):
    """One end of a copy."""

    def kept(self, key: Key, record: Record) -> Record | None:
        """Return what the store keeps of a record, None if it has no place for it; CopyError if it cannot keep it."""

    def read(self, ids: list[str] | None) -> dict[Key, Record]:
        """Return all that is known of these entities, or of all."""

    def write(self, records: dict[Key, Record]) -> None:
        """Write the records; metadata joins what is there."""


@contextmanager
def _opened(address: str, *, is_source: bool) -> Iterator[_Store]:
    if not is_of_pystator(address):
        if "#" in address and not Path(address).exists():
            raise ValueError(f"{address}: pystator's machines are at the top of a file, not below a key")
        with PersistedStateStore(address, _readonly=is_source) as opened:
            yield _File(opened)
        return
    store = _of_pystator(address.removeprefix("pystator+"))
    try:
        with _blamed(address):
            store.connect(is_source=is_source)
        yield store
    finally:
        store.store.disconnect()


@contextmanager
def _blamed(address: str) -> Iterator[None]:
    """Name the store to which an error of a driver belongs."""
    try:
        yield
    except (CopyError, StateError, OSError, ImportError, TypeError, ValueError):
        raise
    except Exception as error:
        raise CopyError(f"{_shown(address)}: {described(error)}") from error


def _of_pystator(url: str) -> Any:
    from pystator import stores

    if url.startswith("mongodb"):
        return _MongoDB(stores.MongoDBStateStore(patient(url)))
    if url.startswith("redis"):
        return _Redis(stores.RedisStateStore(url))
    return _Database((stores.SQLiteStateStore if url.startswith("sqlite") else stores.PostgresStateStore)(url))


class _File:
    """A state file."""

    def __init__(self, store: PersistedStateStore) -> None:
        self.store = store

    def kept(self, key: Key, record: Record) -> Record:  # noqa: ARG002 - it keeps all
        return record

    def read(self, ids: list[str] | None) -> dict[Key, Record]:
        chosen = None if ids is None else frozenset(ids)
        with self.store._open() as state:
            entities = [entity for entity in adapter._section(state, "entities") if chosen is None or entity in chosen]
            events, transitions = (list(_logs(state, section, chosen)) for section in _LOGS)
            if ids is None and len(state) and not (entities or events or transitions):
                raise CopyError(f"{self.store.connection_string} holds no entities, events or transitions of pystator")
            entries = {entity: self.store._stored(entity) for entity in entities}
        found = [_entity(entity, entry) for entity, entry in entries.items()]
        return dict([*found, *map(_event, events), *map(_transition, transitions)])

    def write(self, records: dict[Key, Record]) -> None:
        with self.store.transaction():
            entries = {key[1]: self._entry(key[1], record) for key, record in records.items() if key[0] == "entity"}
            self.store._write(entries)
            for section, (kind, name) in _LOGS.items():
                logs: dict[str, list[Record]] = {}
                for key, record in records.items():
                    if key[0] == kind:
                        logs.setdefault(_entity_of(key, record), []).append(record)
                for entity, more in logs.items():
                    _merge(self.store._connection, section, entity, name, more)

    def _entry(self, entity: str, record: Record) -> Record:
        present = self.store._stored(entity)
        version = record.get("version", max(1, present["version"]))
        metadata = {**present["metadata"], **record.get("metadata", {})}
        told = {"state": record.get("state"), "context": record.get("context", {})}
        return {"state": None, "version": version, "metadata": metadata, **told}


def _logs(state: PersistedState, section: str, chosen: frozenset[str] | None) -> Iterator[Record]:
    for entity in adapter._section(state, section):
        if chosen is None or entity in chosen:
            for record in adapter._logged(state, section, entity):
                if section == "events":
                    adapter._sequence(entity, record)
                yield {**adapter._told(section, entity, record), "entity_id": entity}


def _merge(state: PersistedState, section: str, entity: str, name: str, more: list[Record]) -> None:
    """Put records into the log of an entity, in the order of their numbers or times, in place of those of that name."""
    logs = adapter._made_section(state, section)
    if logs.get(entity) is None:
        logs[entity] = []
    log = logs[entity]
    places = {record.get(name): place for place, record in enumerate(log)}
    fresh = []
    for record in more:
        told = {part: value for part, value in record.items() if part != "entity_id"}
        if record[name] in places:
            log[places[record[name]]] = told
        else:
            fresh.append(told)
    fresh.sort(key=_order)
    if log and fresh and _order(fresh[0]) < _order(log[-1]):
        logs[entity] = sorted([*plain(log), *fresh], key=_order)
    else:
        log.extend(fresh)


def _order(record: Any) -> tuple[int, datetime]:
    made = record.get("created_at")
    return record.get("sequence", 0), _in_utc(made) if isinstance(made, datetime) else _LONG_AGO


class _Columns:
    """What SQL databases and MongoDB have in common."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def kept(self, key: Key, record: Record) -> Record | None:
        if key[0] == "entity":
            if "state" not in record:
                return None
            metadata = {name: value for name, value in record.get("metadata", {}).items() if name in _COLUMNS}
            record = _something({**record, "metadata": metadata})
            _check_json(key, metadata)
        _check_json(key, record)
        return record


def _batches(ids: list[str] | None) -> Iterable[list[str] | None]:
    return [None] if ids is None else (ids[first : first + _BATCH] for first in range(0, len(ids), _BATCH))


class _Database(_Columns):
    """SQLite or PostgreSQL."""

    def connect(self, *, is_source: bool) -> None:
        url = self.store.connection_string
        is_file = url.startswith("sqlite")
        if is_file and is_source and not Path(url.removeprefix("sqlite:///")).exists():
            raise CopyError(f"{url}: there is no such file")
        self.store.connect(validate_schema=False)
        self.store._engine.connect().close()  # pystator takes a server that is down for one that has no tables
        if not self.store._is_schema_initialized():
            if is_source or not is_file:
                raise CopyError(f"{_shown(url)} has no tables of pystator; `pystator db init` makes them")
            self.store._initialize_schema()

    def read(self, ids: list[str] | None) -> dict[Key, Record]:
        with self.store.session_scope() as session:
            return {key: record for key, record, _ in self._rows(session, ids)}

    def _rows(self, session: Any, ids: list[str] | None) -> Iterator[tuple[Key, Record, Any]]:
        from sqlalchemy import select

        for model, record_of in self._models().values():
            for batch in _batches(ids):
                asked = select(model).order_by(model.created_at)
                for row in session.scalars(asked if batch is None else asked.where(model.entity_id.in_(batch))):
                    yield (*record_of(row), row)

    def _models(self) -> dict[str, tuple[Any, Callable[[Any], tuple[Key, Record]]]]:
        from pystator.db.models import EntityStateModel, EventLogModel, TransitionHistoryModel

        return {
            "entity": (EntityStateModel, _entity_of_row),
            "event": (EventLogModel, lambda row: _event({**vars(row), "payload": row.payload_json})),
            "transition": (TransitionHistoryModel, lambda row: _transition({**vars(row), "id": str(row.id)})),
        }

    def write(self, records: dict[Key, Record]) -> None:
        ids = list(dict.fromkeys(_entity_of(key, record) for key, record in records.items()))
        with self.store.session_scope() as session:
            rows = {key: row for key, _, row in self._rows(session, ids)}
            for key, record in records.items():
                row = rows.get(key) or self._models()[key[0]][0]()
                for name, value in self._columns(key, record).items():
                    setattr(row, name, value)
                session.add(row)
            session.commit()

    def _columns(self, key: Key, record: Record) -> Record:
        if key[0] != "entity":
            told = _all_fields(key, record)
            return {"payload_json" if name == "payload" else name: value for name, value in told.items()}
        metadata = {_COLUMNS[name]: value for name, value in record.get("metadata", {}).items()}
        version = {"version": record["version"]} if "version" in record else {}
        told = {"entity_id": key[1], "current_state": record["state"], "context_json": record.get("context")}
        return {**told, **metadata, **version}


def _entity_of_row(row: Any) -> tuple[Key, Record]:
    metadata = {name: getattr(row, column) for name, column in _COLUMNS.items()}
    told = {"state": row.current_state, "version": row.version, "context": row.context_json}
    return _entity(row.entity_id, {**told, "metadata": metadata})


class _MongoDB(_Columns):
    """MongoDB."""

    def connect(self, *, is_source: bool) -> None:
        self.store.connect(ensure_indexes=not is_source, require_replica_set=False)

    def read(self, ids: list[str] | None) -> dict[Key, Record]:
        makers = {"entity": _entity_of_document, "event": _event, "transition": _transition}
        return dict(
            makers[kind](document)
            for kind, name in _COLLECTIONS.items()
            for batch in _batches(ids)
            for document in self.store._db[name].find({} if batch is None else {"entity_id": {"$in": batch}})
        )

    def write(self, records: dict[Key, Record]) -> None:
        from pymongo import UpdateOne

        for kind, name in _COLLECTIONS.items():
            changes = [UpdateOne(*_change(key, told), upsert=True) for key, told in records.items() if key[0] == kind]
            if changes:
                self.store._db[name].bulk_write(changes)
        counters = self.store._event_sequence_counters()  # the next event is numbered by them
        for kind, entity, *number in records:
            if kind == "event":
                counters.update_one({"_id": entity}, {"$max": {"seq": number[0]}}, upsert=True)


def _change(key: Key, record: Record) -> tuple[Record, Record]:
    """Return how to find a document, and what to do with it."""
    now = datetime.now(timezone.utc)
    if key[0] == "entity":
        which, fresh = {"entity_id": key[1]}, {"created_at": now, "version": 1}
        told = {"current_state": record["state"], "context": record.get("context"), "updated_at": now}
        told |= {name: value for name, value in record.items() if name == "version"} | record.get("metadata", {})
    elif key[0] == "event":
        which, fresh = {"entity_id": key[1], "sequence": key[2]}, {"created_at": now, "id": str(uuid.uuid4())}
        told = _all_fields(key, record)
    else:
        which, fresh, told = {"id": key[1]}, {"created_at": now}, _all_fields(key, record)
    fresh = {name: value for name, value in fresh.items() if name not in told}
    return which, {"$set": told, **({"$setOnInsert": fresh} if fresh else {})}


def _entity_of_document(found: Record) -> tuple[Key, Record]:
    metadata = {name: found.get(name) for name in _COLUMNS}
    told = {"state": found.get("current_state"), "version": found.get("version"), "context": found.get("context")}
    return _entity(found["entity_id"], {**told, "metadata": metadata})


class _Redis:
    """Redis, in which pystator keeps state, context and metadata of each entity."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def connect(self, *, is_source: bool) -> None:  # noqa: ARG002 - there is nothing to create
        self.store.connect()

    def kept(self, key: Key, record: Record) -> Record | None:
        if key[0] != "entity":
            return None
        told = record.get("metadata", {})
        metadata = {name: value for name, value in told.items() if not isinstance(value, datetime)}
        _check_json(key, {"context": metadata})
        _check_json(key, record)
        return _something({"state": record.get("state"), "context": record.get("context"), "metadata": metadata})

    def read(self, ids: list[str] | None) -> dict[Key, Record]:
        known = self.store.list_entities()
        entities = known if ids is None else sorted(set(ids).intersection(known))
        return dict(self._entity(entity) for entity in entities)

    def _entity(self, entity: str) -> tuple[Key, Record]:
        state, *texts = self.store._client.mget(
            [self.store._entity_key(entity, part) for part in ("state", "context", "metadata")]
        )
        context, metadata = (json.loads(text or "{}") for text in texts)
        return _entity(entity, {"state": state, "context": context, "metadata": metadata})

    def write(self, records: dict[Key, Record]) -> None:
        present = self.read([key[1] for key in records])
        pipeline = self.store._client.pipeline(transaction=True)
        for key, record in records.items():
            metadata = {**present.get(key, {}).get("metadata", {}), **record.get("metadata", {})}
            parts = {"context": json.dumps(record.get("context", {})), "metadata": json.dumps(metadata)}
            for part, text in {**parts, **({"state": record["state"]} if "state" in record else {})}.items():
                pipeline.set(self.store._entity_key(key[1], part), text)
            pipeline.sadd(self.store._index_key(), key[1])
        pipeline.execute()
