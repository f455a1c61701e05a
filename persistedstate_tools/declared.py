"""Declared state: what the annotations of a subclass of `PersistedState` say of its entries, checked by msgspec."""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
import types
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import suppress
from datetime import date, datetime
from functools import lru_cache, partial
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import persistedstate
from persistedstate import _GONE, _BadText, _corrupt, _flow, _is_empty, _Loader, _place_of, _plain, _storable

#: What a state holds as it is, and what msgspec shall leave so.
_AS_THEY_ARE = (bytes, date, datetime)
_LEAVES = frozenset({bool, int, float, str, bytes, date, datetime, type(None), Any})
_MAPPINGS, _LISTS = (dict, Mapping, MutableMapping), (list, Sequence, MutableSequence)
#: Characters of a value that a message shows.
_SHOWN = 60


def declare(cls: Any, *, undeclared: bool | None) -> Declaration | None:
    """Return what a class declares, with all that it inherits; None if that is nothing."""
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base is not cls and isinstance(known := vars(base).get("_declared"), Declaration):
            fields.update(known.fields)
            defaults.update(known.defaults)
            undeclared = known.undeclared if undeclared is None else undeclared
    own = _annotations(cls)
    fields.update(own)
    for name in own:
        persistedstate._check_name(name)
        if name in vars(cls):
            defaults[name] = vars(cls)[name]
            delattr(cls, name)  # else a key that is missing would seem to be there
    return Declaration(cls, fields, defaults, undeclared=undeclared is not False) if fields else None


def _annotations(cls: Any) -> dict[str, Any]:
    """Return the entries that the class itself declares, with their types."""
    if sys.version_info >= (3, 14):
        import annotationlib

        own = annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    else:
        own = vars(cls).get("__annotations__", {})
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "__init_subclass__":
        frame = frame.f_back
    while frame.f_back is not None and frame.f_code.co_name in ("__init_subclass__", "__new__"):  # of a metaclass
        frame = frame.f_back
    bearer = type(cls.__name__, (), {"__annotations__": own, "__module__": cls.__module__})
    hints = get_type_hints(bearer, frame.f_globals, frame.f_locals, include_extras=True)
    return {name: hint for name, hint in hints.items() if name[:1] != "_" and get_origin(hint) is not ClassVar}


class Declaration:
    """The types and defaults of a class, and how they are checked."""

    def __init__(self, cls: Any, fields: dict[str, Any], defaults: dict[str, Any], *, undeclared: bool) -> None:
        self.name, self.fields, self.undeclared = cls.__name__, fields, undeclared
        try:
            msgspec: Any = import_module("msgspec")
        except ModuleNotFoundError:
            missing = f"{self.name} declares types; the package msgspec, which checks them, is missing"
            raise ModuleNotFoundError(f"{missing}; pip install msgspec", name="msgspec") from None
        self._msgspec = msgspec
        #: Only of its own classes msgspec remembers what is in them: a type is made one with a single field.
        self._holder_of = lru_cache(maxsize=1000)(lambda kind: msgspec.defstruct("Holder", [("value", kind)]))
        self.converted = {name for name, kind in fields.items() if _is_converted(kind)}
        for name, kind in fields.items():
            self._check_type(f"{self.name}.{name}", kind)
            if name in self.converted:
                setattr(cls, name, property(partial(self._converted, name)))
        self.defaults = {name: self._stored(name, value) for name, value in defaults.items()}
        self._type_at = lru_cache(maxsize=1000)(self._find_type)
        self._fitting_at = lru_cache(maxsize=1000)(self._find_fitting)

    def _check_type(self, place: str, kind: Any) -> None:
        """Refuse a type that a state cannot hold, or whose values would not be tracked."""
        for part in _parts(kind):
            if not _is_held(part) and not _is_converted(part):
                raise TypeError(f"{place}: a state cannot hold {_name(part)}; {_advice(part)}")
            for below in _children(part):
                if _is_converted(below):
                    inside = "stands alone, not inside of another type"
                    raise TypeError(f"{place}: {_name(below)} {inside}: what is changed there would not be saved")
                self._check_type(place, below)
        try:
            self._msgspec.inspect.type_info(kind)
        except TypeError as error:
            raise TypeError(f"{place}: {error}") from None

    def _stored(self, name: str, value: Any) -> Any:
        """Return a default as a state holds it."""
        value = persistedstate._stored(_storable, self.encoded(name, value), 0, lambda: [name])
        if problem := self._problem_at(self.fields.get(name, Any), value, (name,)):
            raise TypeError(f"the default of {self.name}.{'.'.join(map(str, problem[0]))}: {problem[1]}")
        return value

    def with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return copies of the defaults, with those in their place that were given to the object."""
        for name in given:
            if name not in self.fields and not self.undeclared:
                raise TypeError(self._not_declared(name))
        defaults = {name: _plain(value) for name, value in self.defaults.items()}
        return {**defaults, **{name: self._stored(name, value) for name, value in given.items()}}

    def type_name(self, name: str) -> str:
        return _name(self.fields[name])

    def encoded(self, name: str, value: Any) -> Any:
        """Return what a state holds in the place of a value that is assigned to an entry."""
        if name in self.converted:
            return self._msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE)
        return value

    def _converted(self, name: str, state: Any) -> Any:
        if name not in state._items:
            raise state._missing(name)
        return self._convert(_plain(state._items[name]), self.fields[name])

    def _convert(self, value: Any, kind: Any) -> Any:
        holder = self._holder_of(kind)
        return self._msgspec.convert({"value": value}, holder, strict=True, builtin_types=_AS_THEY_ARE).value

    # What is read.

    def filled(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """Return a state with the defaults, at any depth, of what is missing."""
        filled: dict[Any, Any] = _with_missing(value, self.defaults)
        return filled

    def check(self, value: dict[Any, Any], path: str, text: str) -> None:
        """Check a whole state; raises StateCorrupt, with the place in the text of its snapshot."""
        for key, item in value.items():
            problem = None
            if key in self.fields:
                problem = self._problem_at(self.fields[key], item, (key,))
            elif not self.undeclared:
                problem = (key,), self._not_declared(key)
            if problem is not None:
                keys, reason = problem
                reason = f"{_place_of(keys).removeprefix('STATE').removeprefix('.')}: {reason}"
                raise _corrupt(path, text, _BadText(reason, _offset(text, keys)))

    def _not_declared(self, key: Any) -> str:
        return f"{self.name} declares no {_flow(key)}; there are {', '.join(self.fields)}"

    def _problem_at(self, kind: Any, value: Any, keys: tuple[Any, ...]) -> tuple[tuple[Any, ...], str] | None:
        """Return the innermost place at which a value is not what is declared, and what it should be."""
        try:
            self._convert(value, kind)
        except self._msgspec.ValidationError as error:
            items = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
            for key, item in items:
                if problem := self._problem_at(_below(kind, key), item, (*keys, key)):
                    return problem
            return keys, _reason(str(error), value, kind)
        return None

    # What is assigned.

    def check_change(self, keys: tuple[Any, ...], node: Any, operation: str, arguments: tuple[Any, ...]) -> None:
        """Check what a script is about to do to a node; raises TypeError."""
        for key, value in _changes(node, operation, arguments):
            place = (*keys, key)
            problem = None
            if not keys and key not in self.fields:
                problem = None if self.undeclared or value is _GONE else (place, self._not_declared(key))
            elif value is _GONE:
                if keys and key in _required(self._type_at(_normal(keys))):
                    problem = place, "this key is declared, and must be there"
            else:
                problem = self._problem_at(self._type_at(_normal(place)), _plain(value), place)
            if problem is not None:
                raise TypeError(f"{_place_of(problem[0])}: {problem[1]}")

    def fitting(self, keys: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the type of what is at a path, if a look at it is enough, and what tells whether a scalar fits."""
        return self._fitting_at(_normal(keys))

    def _find_fitting(self, keys: tuple[Any, ...]) -> tuple[Any, Any]:
        kind = self._type_at(keys)
        convert, holder = self._msgspec.convert, self._holder_of(kind)

        def fits(value: Any) -> bool:
            try:
                convert({"value": value}, holder, strict=True, builtin_types=_AS_THEY_ARE)
            except self._msgspec.ValidationError:
                return False
            return True

        return (kind if any(kind is plain for plain in (bool, int, float, str)) else None), fits

    def _find_type(self, keys: tuple[Any, ...]) -> Any:
        kind = self.fields.get(keys[0], Any)
        for key in keys[1:]:
            kind = _below(kind, key)
        return kind


def _changes(node: Any, operation: str, arguments: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values that an operation puts into a node, `_GONE` for what it takes away."""
    if operation in ("set", "insert"):
        yield arguments[0], arguments[1]
    elif operation == "splice":
        for item in arguments[2]:
            yield 0, item
    elif operation == "update":
        yield from arguments[0].items()
    elif isinstance(node, persistedstate.StateDict):
        for key in arguments if operation == "delete" else [*node]:
            yield key, _GONE


def _normal(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let all items of a list have one path."""
    return tuple(key if type(key) is str else None for key in keys)


def _with_missing(value: Any, default: Any) -> Any:
    if value is _GONE:
        return _plain(default)
    if type(value) is dict and type(default) is dict:
        return {**value, **{key: _with_missing(value.get(key, _GONE), item) for key, item in default.items()}}
    return value


# Types.


def _parts(kind: Any) -> list[Any]:
    """Return what a type may be, one by one: the members of a union, without what is annotated."""
    origin = get_origin(kind)
    if origin is Annotated or getattr(origin, "_name", "") in ("Required", "NotRequired", "ReadOnly"):
        return _parts(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(kind) for part in _parts(member)]
    if hasattr(kind, "__supertype__"):  # a NewType
        return _parts(kind.__supertype__)
    return [type(None) if kind is None else kind]


def _is_held(part: Any) -> bool:
    return (
        part in _LEAVES
        or get_origin(part) is Literal
        or (get_origin(part) or part) in (*_MAPPINGS, *_LISTS)
        or (is_typeddict(part))
    )


def _is_converted(kind: Any) -> bool:
    """Tell whether a value is of a class of its own in the script, and something plain in the state."""
    return any(isinstance(part, type) and (issubclass(part, enum.Enum) or _is_frozen(part)) for part in _parts(kind))


def _is_frozen(part: Any) -> bool:
    """Tell whether a type is a dataclass of which nothing can be changed."""
    if not getattr(getattr(part, "__dataclass_params__", None), "frozen", False):
        return False
    kinds = get_type_hints(part, include_extras=True).values()
    return all(inner in _LEAVES - {Any} or _is_converted(inner) for kind in kinds for inner in _parts(kind))


def _children(part: Any) -> list[Any]:
    if is_typeddict(part):
        return [*get_type_hints(part, include_extras=True).values()]
    return [*get_args(part)] if get_origin(part) in (*_MAPPINGS, *_LISTS) else []


def _below(kind: Any, key: Any) -> Any:
    """Return the type of what a container of a type has under a key."""
    for part in _parts(kind):
        origin = get_origin(part)
        if is_typeddict(part):
            found = get_type_hints(part, include_extras=True).get(key, Any)
            is_marked = getattr(get_origin(found), "_name", "") in ("Required", "NotRequired", "ReadOnly")
            return get_args(found)[0] if is_marked else found
        if origin in (*_MAPPINGS, *_LISTS):
            return get_args(part)[-1]
    return Any


def _required(kind: Any) -> frozenset[str]:
    return frozenset().union(*[part.__required_keys__ for part in _parts(kind) if is_typeddict(part)])


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _advice(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "use a TypedDict, or a frozen dataclass of values that cannot be changed"
    return "use None, bool, int, float, str, bytes, date, datetime, Literal, Enum, a list, a dict or a TypedDict"


# Messages.


def _reason(said: str, value: Any, kind: Any) -> str:
    """Say what msgspec said in the words of the other messages."""
    text = _flow(value)
    shown = f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text
    said = re.sub(r" - at `\$\.value`$", "", said).replace("$.value", "$").replace("`", "")
    if missing := re.match(r"Object missing required field (\S+)$", said):
        return f"the key {missing[1]} is missing in {shown}"
    if said.startswith("Invalid enum value"):
        literals = [value for part in _parts(kind) if get_origin(part) is Literal for value in get_args(part)]
        members = [each.value for part in _parts(kind) if isinstance(part, enum.EnumMeta) for each in list[Any](part)]
        said = f"Expected {' or '.join(map(_flow, literals + members))}"
    expected = re.match(r"Expected (.*?)(?:, got \w+)?$", said)
    return f"expected {expected[1]}, but it is {shown}" if expected else f"{said}, but it is {shown}"


def _offset(text: str, keys: tuple[Any, ...]) -> int:
    """Return where in a text the value stands to which keys lead, or the innermost part of that which is there."""
    found = 0
    with suppress(Exception):  # what does not stand there, or is an alias, has no place of its own
        loader = _Loader(text)
        node = loader.root
        for key in keys:
            if node.id == "sequence":
                node = node.value[key]
                found = node.start_mark.index
            else:
                name, node = next(pair for pair in node.value if loader.read(pair[0]) == key)
                found = name.end_mark.index if _is_empty(node) else node.start_mark.index
    return found
