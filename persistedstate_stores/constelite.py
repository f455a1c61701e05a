"""A state file as a store of constelite: records that survive a restart, and that a person can read and edit.

In the file, each record is a key, with its model's name and its properties below it:

    records:
      be4fab6b-98cd-4ed4-b34e-8ae7cf1c93f2:
        model_name: Cat
        name: Snowball
        weight:
        - timestamp: 1714521600.0
          value: 4.2
        carer:
        - 3f0c1a52-30a5-4c0e-9d1a-1c7c4a9a4f10

A dynamic property is the list of its points. A relationship is the list of the uids it leads to; backrefs are not in
the file, they follow from the relationships. A person may change, add and remove all of it; any string is a uid.
"""

from __future__ import annotations

import os  # noqa: TC003 - pydantic reads the annotations
import threading
from collections.abc import Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from datetime import date
from decimal import Decimal
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, ForwardRef, NamedTuple
from uuid import UUID, uuid4

from persistedstate import PersistedState, StateDict, StateList, plain
from persistedstate_stores._warn import warn_of_ids

try:
    from constelite.guid_map import AsyncGUIDMap
    from constelite.models import (
        Aggregation,
        Association,
        Backref,
        Composition,
        Dynamic,
        StateModel,
        get_auto_resolve_model,
        resolve_model,
    )
    from constelite.store import AsyncBaseStore
    from pydantic.v1 import BaseModel, Field, PrivateAttr, StrictBool, root_validator
    from pydantic.v1.json import pydantic_encoder
except ImportError as error:
    hint = "this store needs constelite, on Python 3.11 to 3.13: pip install constelite==1.0.0"
    raise ImportError(hint) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["PersistedStateGUIDMap", "PersistedStateStore"]

#: Seconds between two looks at whether somebody edited the file: a look behind a change of one's own reads it.
_LOOK_EVERY = 0.1
_RELATIONSHIPS = (Association, Aggregation, Composition)
#: What YAML holds as it is; a datetime is a date.
_STORABLE = (bool, int, float, str, bytes, date)


class _File:
    """A state file that is opened when it is first needed. Copies of a store, as refs carry them, share one."""

    def __init__(self, path: str | os.PathLike[str] | None, state: PersistedState | None, **options: Any) -> None:
        self._path, self._options = path, options
        self._given, self._opened = state, state
        self._opening = threading.Lock()
        self._look_at = 0.0

    @contextmanager
    def section(self, name: str) -> Iterator[MutableMapping[str, Any]]:
        """Give a top-level mapping, with the lock of the state held; what changes in it is one record."""
        state = self._state()
        with state._thread_lock:  # noqa: SLF001 - the documented way to hold it
            if monotonic() >= self._look_at:
                state.refresh()
                self._look_at = monotonic() + _LOOK_EVERY
            with state.transaction():
                if state.get(name) is None:
                    state[name] = {}
                if not isinstance(state[name], StateDict):
                    raise ValueError(f"{name}: {state[name]!r} in the file is no mapping; make it one")  # noqa: TRY004 - a value of the file
                yield state[name]

    def _state(self) -> PersistedState:
        with self._opening:
            if self._opened is None:
                assert self._path is not None  # noqa: S101 - there is a path, or a state that was given
                self._opened = PersistedState(self._path, **self._options)
                warn_of_ids(self._opened, "records", "guids")
            return self._opened

    def close(self) -> None:
        with self._opening:
            opened, self._opened = self._opened, self._given
        if opened is not None and opened is not self._given:
            opened.close()

    def __deepcopy__(self, _memo: Any) -> _File:
        return self


class _Operation(NamedTuple):
    """What a put, a patch or a delete does to the records of a file."""

    file: _File
    #: Its steps, to be done at its end.
    steps: list[Callable[[Any], object]]
    #: The records as the steps leave them; None for a deleted one.
    left: dict[str, dict[str, Any] | None]


class _Found(NamedTuple):
    """What the file has of a state: its model, its record, and the relationships, as pairs of uid and model."""

    model: Any
    record: dict[str, Any]
    refs: dict[str, list[tuple[str, str]] | None]


#: By relationship and uid: which records lead there. A query that asks for all of them looks at each record once.
_Leading = dict[str, dict[str, list[str]]]

#: The operation that the present task, or the one that started it, is in.
_operation: ContextVar[_Operation | None] = ContextVar("_operation", default=None)


class PersistedStateStore(AsyncBaseStore):
    """A constelite store in a state file; what put, patch and delete have returned from is in the file.

    Fields, besides constelite's `uid` and `name`:
        path: the file. The first call opens it, `close()` closes it; a call after that opens it again.
        state: an open PersistedState, in place of a path; the store never closes it.
        fsync, wait: how to open the path, as PersistedState's `_fsync` and `_wait`: False and 0.0 by default.

    Raises ValidationError (a ValueError), unless there is either a path or a state. From the first call: StateLocked,
    naming the process, when another one has the file open; StateCorrupt, naming line and column. ValueError for a
    record that is not there, or whose model's class nobody imported; TypeError for a value that YAML cannot hold.

    It puts, patches, gets, deletes and queries (all records of a model and its subclasses, or those with certain
    properties). A deleted record vanishes from all relationships. What a person saves while the store is open is seen
    within 0.1 s.

    A put, patch or delete is one record in the file, with all the states that it touches: all of it or, if one of them
    cannot be stored or the process dies, none. Others see it when it is done; those that run at once lose nothing of
    each other. May be used from several event loops and threads.
    """

    _allowed_methods: ClassVar[list[str]] = ["PUT", "PATCH", "GET", "DELETE", "QUERY"]

    path: str | os.PathLike[str] | None = Field(default=None, exclude=True)
    state: PersistedState | None = Field(default=None, exclude=True)
    fsync: StrictBool | float = Field(default=False, exclude=True)
    wait: float = Field(default=0.0, exclude=True)

    #: The file; refs carry copies of a store, which share it.
    _file: _File = PrivateAttr()

    @root_validator  # type: ignore[untyped-decorator]
    def _either_path_or_state(cls, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N805 - so pydantic wants it
        if (values.get("path") is None) == (values.get("state") is None):
            raise ValueError("give either a path or a state")
        return values

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._file = _File(self.path, self.state, _fsync=self.fsync, _wait=self.wait)

    def __deepcopy__(self, _memo: Any) -> PersistedStateStore:
        return self

    def close(self) -> None:
        """Close the file, unless the state was given open. A second call does nothing."""
        self._file.close()

    # ---- Operations: one record in the file for each ----

    async def put(self, ref: Any) -> Any:
        """Create or overwrite a record, with all that it leads to; see constelite's documentation."""
        return await self._as_one(super().put, ref)

    async def patch(self, ref: Any) -> Any:
        """Change a record; see constelite's documentation."""
        return await self._as_one(super().patch, ref)

    async def delete(self, ref: Any) -> None:
        """Delete a record, with all that it is composed of; see constelite's documentation."""
        await self._as_one(super().delete, ref)

    async def _as_one(self, method: Callable[[Any], Coroutine[Any, Any, Any]], ref: Any) -> Any:
        """Keep the steps of an operation, and of those inside it, until its end; then do them, all or none."""
        if self._operation() is not None:
            return await method(ref)
        operation = _Operation(self._file, [], {})
        token = _operation.set(operation)
        try:
            result = await method(ref)
        finally:
            _operation.reset(token)
        with self._file.section("records") as records:
            for step in operation.steps:
                step(records)
        return result

    def _operation(self) -> _Operation | None:
        """Return the operation that a step is part of, if it is one of this file."""
        operation = _operation.get()
        return operation if operation is not None and operation.file is self._file else None

    def _do(self, uid: str, record: dict[str, Any] | None, step: Callable[[Any], object]) -> None:
        """Do a step now, or with the operation that it is part of, within which `record` is what the step leaves."""
        operation = self._operation()
        if operation is None:
            with self._file.section("records") as records:
                step(records)
        else:
            operation.steps.append(step)
            operation.left[uid] = record

    # ---- Records ----

    async def uid_exists(self, uid: str, model_type: Any) -> bool:  # noqa: ARG002 - a uid alone says which record
        """Tell whether there is a record, of whatever model."""
        operation = self._operation()
        if operation is not None and uid in operation.left:
            return operation.left[uid] is not None
        with self._file.section("records") as records:
            return uid in records

    async def create_model(self, model_type: Any, static_props: dict[str, Any], dynamic_props: dict[str, Any]) -> str:
        """Make a record and return its uid, a new UUID."""
        uid = str(uuid4())
        record = {"model_name": model_type.__name__, **_storable({**static_props, **_points(dynamic_props)})}
        self._do(uid, record, lambda records: records.__setitem__(uid, record))
        return uid

    async def delete_model(self, model_type: Any, uid: str) -> None:  # noqa: ARG002 - constelite may pass a wrong one
        """Remove a record, also from the relationships that lead to it."""
        self._do(uid, None, partial(_remove, uid))

    async def overwrite_static_props(self, uid: str, model_type: Any, props: dict[str, Any]) -> None:  # noqa: ARG002
        """Replace these properties and leave the others."""
        self._change(uid, lambda _: _storable(props))

    async def overwrite_dynamic_props(self, uid: str, model_type: Any, props: dict[str, Any]) -> None:  # noqa: ARG002
        """Replace the points of these properties."""
        self._change(uid, lambda _: _storable(_points(props)))

    async def extend_dynamic_props(self, uid: str, model_type: Any, props: dict[str, Any]) -> None:  # noqa: ARG002
        """Add points to these properties."""
        more = _storable(_points(props))
        self._change(uid, lambda record: {name: [*(record.get(name) or ()), *more[name]] for name in more})

    def _change(self, uid: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Give a record the properties that `change` makes of the present ones; return what they were before."""
        before = self._read(uid)
        self._do(uid, {**before, **change(before)}, partial(_update, uid, change))
        return before

    def _read(self, uid: str) -> dict[str, Any]:
        """Return a plain copy of a record, as the present operation leaves it."""
        operation = self._operation()
        if operation is not None and uid in operation.left:
            return _plain_record(operation.left, uid)
        with self._file.section("records") as records:
            return _plain_record(records, uid)

    # ---- Relationships ----

    async def delete_all_relationships(self, from_uid: str, from_model_type: Any, rel_from_name: str) -> list[str]:  # noqa: ARG002
        """Empty a relationship, and return the uids that it led to; none if it was unset."""
        before = self._change(from_uid, lambda record: {rel_from_name: []} if _uids(record, rel_from_name) else {})
        return _uids(before, rel_from_name)

    async def create_relationships(self, from_uid: str, from_model_type: Any, inspector: Any) -> None:  # noqa: ARG002
        """Lead a relationship to more records."""
        name, more = inspector.from_field_name, [ref.uid for ref in inspector.to_refs or ()]
        self._change(from_uid, lambda record: {name: list(dict.fromkeys([*_uids(record, name), *more]))})

    # ---- Reading ----

    async def get_state_by_uid(self, uid: str, model_type: Any) -> StateModel:
        """Return the state of a record, which tells by itself of what model it is."""
        with self._file.section("records") as records:
            found = self._found(records, uid, model_type, {})
        return await self._resolved(found)

    def _found(self, records: Any, uid: str, model_type: Any, leading: _Leading) -> _Found:
        record = self._read(uid)
        model = _model(record, uid, model_type)
        leads_to = {name: _targets(records, field, record) for name, field in _fields(model, *_RELATIONSHIPS)}
        leads_from = {name: _sources(records, field, uid, leading) for name, field in _fields(model, Backref)}
        return _Found(model, record, {**leads_to, **leads_from})

    async def _resolved(self, found: _Found) -> StateModel:
        record = found.record
        for name, _ in _fields(found.model, Dynamic):
            record[name] = {"points": record[name]} if record.get(name) is not None else None
        for name, targets in found.refs.items():
            if targets is not None:
                record[name] = [await self.generate_ref(uid=to, state_model_name=kind) for to, kind in targets]
        return resolve_model(values=record, model_type=found.model)

    async def execute_query(self, query: Any, model_type: Any, include_states: bool) -> dict[str, Any]:  # noqa: FBT001
        """Return the uids of a model's records, with their states or None; ValueError for a query it cannot do.

        Without a query, or for a GetAllQuery, they are all of the model and its subclasses; for a PropertyQuery,
        those that have all of its properties, compared as what the model makes of them.
        """
        wanted = getattr(query, "property_values", {} if query is None or _is_get_all(query) else None)
        if wanted is None:
            raise ValueError(f"Unsupported query type {type(query).__name__}; use a PropertyQuery")
        _check_queried(model_type, wanted)
        with self._file.section("records") as records:
            found = [
                uid
                for uid, record in records.items()
                if model_type.__name__ in _lineage(record) and _has_properties(model_type, record, wanted)
            ]
            leading: _Leading = {}
            states = [self._found(records, uid, model_type, leading) for uid in found] if include_states else []
        resolved = [await self._resolved(state) for state in states] or [None] * len(found)
        return dict(zip(found, resolved, strict=True))


class PersistedStateGUIDMap(AsyncGUIDMap):
    """A GUID map in a state file, so that GUIDs survive a restart as the records do.

    Fields: `path` or `state`, `fsync` and `wait`, as for the store; it may be the same file. In the file, `guids` holds
    for each GUID a mapping from the uids of stores to those of records.
    """

    path: str | os.PathLike[str] | None = Field(default=None, exclude=True)
    state: PersistedState | None = Field(default=None, exclude=True)
    fsync: StrictBool | float = Field(default=False, exclude=True)
    wait: float = Field(default=0.0, exclude=True)

    _file: _File = PrivateAttr()

    class Config:
        """Lets pydantic take a PersistedState."""

        arbitrary_types_allowed = True

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if (self.path is None) == (self.state is None):
            raise ValueError("give either a path or a state")
        self._file = _File(self.path, self.state, _fsync=self.fsync, _wait=self.wait)

    def close(self) -> None:
        """Close the file, unless the state was given open. A second call does nothing."""
        self._file.close()

    async def get_guid(self, uid: str, store: Any) -> UUID | None:
        """Return the GUID of a record; None if it has none."""
        with self._file.section("guids") as guids:
            return next((UUID(guid) for guid, uids in guids.items() if uids.get(str(store.uid)) == uid), None)

    async def guid_exists(self, guid: UUID) -> bool:
        """Tell whether there is such a GUID."""
        with self._file.section("guids") as guids:
            return str(guid) in guids

    async def link_uid(self, uid: str, guid: UUID, store: Any) -> None:
        """Give a record an existing GUID; KeyError if there is no such GUID."""
        with self._file.section("guids") as guids:
            guids[str(guid)][str(store.uid)] = uid

    async def create_guid(self, uid: str, store: Any) -> UUID:
        """Make a GUID for a record and return it."""
        guid = uuid4()
        with self._file.section("guids") as guids:
            guids[str(guid)] = {str(store.uid): uid}
        return guid

    async def get_uid(self, guid: UUID, store: Any) -> str | None:
        """Return the uid that a GUID has in a store; None if it has none, KeyError if there is no such GUID."""
        with self._file.section("guids") as guids:
            found: str | None = guids[str(guid)].get(str(store.uid))
            return found

    async def delete_uid(self, uid: str, store: Any) -> None:
        """Take the GUID from a record."""
        with self._file.section("guids") as guids:
            for uids in guids.values():
                if uids.get(str(store.uid)) == uid:
                    del uids[str(store.uid)]


# ---- Models ----


def _fields(model: Any, *kinds: Any) -> list[tuple[str, Any]]:
    """Return name and field of a model's properties of these kinds; some types, such as unions, are no classes."""
    fields = model.__fields__.items()
    return [(name, field) for name, field in fields if isinstance(field.type_, type) and issubclass(field.type_, kinds)]


def _model(record: Mapping[str, Any], uid: str, model_type: Any) -> Any:
    """Return the class of a record; constelite may ask for it under another one."""
    name = record.get("model_name")
    if getattr(model_type, "__name__", None) == name:
        return model_type
    model = get_auto_resolve_model(model_name=name, root_cls=StateModel)
    if model is None:
        raise ValueError(f"records.{uid}: there is no model {name!r}; import the module that defines it")
    return model


def _lineage(record: Any) -> set[str | None]:
    """Return the names of a record's model and, as far as they are known, of those that it is made from."""
    name = record.get("model_name") if isinstance(record, StateDict) else None
    model = get_auto_resolve_model(model_name=name, root_cls=StateModel)
    return {name, *(base.__name__ for base in model.__mro__)} if model is not None else {name}


def _relationships(record: Any) -> list[str]:
    """Return the names of a record's relationships, as far as its model is known."""
    name = record.get("model_name") if isinstance(record, StateDict) else None
    model = get_auto_resolve_model(model_name=name, root_cls=StateModel)
    return [name for name, _ in _fields(model, *_RELATIONSHIPS)] if model is not None else []


def _model_name(model: Any) -> str:
    """Return the name of what a relationship leads to, which may be a class that is defined later."""
    return str(model.__forward_arg__ if isinstance(model, ForwardRef) else model.__name__)


# ---- Parts of the file ----


def _plain_record(records: Mapping[str, Any], uid: str) -> dict[str, Any]:
    """Return a copy of a record, which constelite may change."""
    if records.get(uid) is None:
        raise ValueError(f"there is no record {uid}")
    if isinstance(records[uid], dict):
        return deepcopy(records[uid])
    if not isinstance(records[uid], StateDict):
        reason = f"records.{uid}: {records[uid]!r} in the file is no mapping; write `model_name: …` below it"
        raise ValueError(reason)  # noqa: TRY004 - a value of the file
    return dict(plain(records[uid]))


def _update(uid: str, change: Callable[[dict[str, Any]], dict[str, Any]], records: Any) -> None:
    """Give a record in the file new properties, writing only those that differ."""
    present = _plain_record(records, uid)
    for name, value in change(present).items():
        if name not in present or repr(present[name]) != repr(value):
            records[uid][name] = value


def _remove(uid: str, records: Any) -> None:
    """Remove a record from the file, also from the relationships that lead to it."""
    if records.pop(uid, None) is None:
        return
    for record in records.values():
        for name in _relationships(record):
            if _leads_to(record, name, uid):
                record[name].remove(uid)


def _leads_to(record: Mapping[str, Any], name: str, uid: str) -> bool:
    """Tell whether a relationship leads to a record; what a person made something else than a list does not."""
    found = record.get(name)
    return isinstance(found, list | StateList) and uid in found


def _uids(record: Mapping[str, Any], name: str) -> list[str]:
    """Return where a relationship leads to."""
    found = record.get(name)
    if not isinstance(found, list | StateList | None):
        raise ValueError(f"{name}: {found!r} in the file is no list of uids; make it one")  # noqa: TRY004 - a value of the file
    return list(found or ())


def _targets(records: Mapping[str, Any], field: Any, record: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """Return uid and model of the records that a relationship leads to; None if it is unset and may be."""
    if record.get(field.name) is None and not field.required:
        return None
    declared = _model_name(field.type_.model())
    found = [(uid, records.get(uid)) for uid in _uids(record, field.name)]
    return [(uid, to.get("model_name", declared) if isinstance(to, StateDict) else declared) for uid, to in found]


def _sources(records: Mapping[str, Any], field: Any, uid: str, leading: _Leading) -> list[tuple[str, str]] | None:
    """Return uid and model of the records that lead to this one by a backref's relationship; None if there are none."""
    name, declared = field.field_info.extra.get("from_field"), _model_name(field.type_.model())
    if name not in leading:
        leading[name] = _all_leading(records, name)
    sources = [source for source in leading[name].get(uid, ()) if declared in _lineage(records[source])]
    return [(source, records[source]["model_name"]) for source in sources] or None


def _all_leading(records: Mapping[str, Any], name: str | None) -> dict[str, list[str]]:
    """Return the uids of the records that lead to others by a relationship of that name, by the uid of those."""
    leading: dict[str, list[str]] = {}
    for source, record in records.items():
        found = record.get(name) if isinstance(record, StateDict) and name is not None else None
        for uid in dict.fromkeys(to for to in found if isinstance(to, str)) if isinstance(found, StateList) else ():
            leading.setdefault(uid, []).append(source)
    return leading


def _points(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return dynamic properties as lists of points."""
    return {name: None if value is None else value.points for name, value in props.items()}


def _is_get_all(query: Any) -> bool:
    """Tell so of constelite's two classes of that name, and of the empty query."""
    return type(query).__name__ in {"GetAllQuery", "Query"}


def _check_queried(model: Any, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if some of the properties are no static ones."""
    for name, _ in _fields(model, Dynamic, Backref, *_RELATIONSHIPS):
        if name in wanted:
            raise ValueError(f"{name} is no static property of {model.__name__}; query for those")


def _has_properties(model: Any, record: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_same_property(model.__fields__.get(name), record.get(name), value) for name, value in wanted.items())


def _same_property(field: Any, stored: Any, wanted: Any) -> bool:
    """Compare as the model would: a query that came by HTTP has a date as text, a file a set as a list."""
    stored = plain(stored) if isinstance(stored, StateDict | StateList) else stored
    if field is not None:
        stored, wanted = (field.validate(value, {}, loc=field.name)[0] for value in (stored, wanted))
    return bool(stored == wanted)


# ---- Values ----


def _storable(value: Any) -> Any:
    """Return the value as YAML can hold it, and as its model reads it back; TypeError if there is no such way."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in value.dict() if not _is_absent(value, name)}
    if isinstance(value, Mapping):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if isinstance(value, AbstractSet):
        return sorted(map(_storable, value), key=lambda item: (type(item).__name__, item))
    if value is None or isinstance(value, _STORABLE):
        return value
    return str(value) if isinstance(value, Decimal) else _storable(pydantic_encoder(value))


def _is_absent(model: Any, name: str) -> bool:
    """Tell whether a property is None because nobody gave it; a Tensor cannot even be read back with such ones."""
    field = model.__fields__.get(name)
    return getattr(model, name) is None and field is not None and field.default is None and not field.required
