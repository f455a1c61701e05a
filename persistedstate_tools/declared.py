"""Declared state: what the annotations of a subclass of `PersistedState` say of its entries, checked by msgspec."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime
from functools import lru_cache, partial
from importlib import import_module
from math import inf
from typing import Any, ClassVar, get_origin, get_type_hints

import persistedstate
from persistedstate import (
    _GONE,
    StateCorrupt,
    StateList,
    _BadText,
    _flow,
    _Image,
    _is_empty,
    _Loader,
    _place_of,
    _plain,
    _problem,
    _same,
    _storable,
)
from persistedstate_tools.changes import changes_of, changes_since, length_after, normal, step_in, steps_to
from persistedstate_tools.kinds import (
    advice_on,
    below,
    children_of,
    choices_of,
    is_converted,
    is_held,
    keys_of,
    lengths_of,
    name_of,
    parts_of,
    required_in,
)

#: Where a value is that is not as declared, by its keys, and what is wrong with it.
_Problem = tuple[tuple[Any, ...], str]

#: What a state holds as it is, and what msgspec shall leave so.
_AS_THEY_ARE = (bytes, date, datetime)
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
        self.converted = {name for name, kind in fields.items() if is_converted(kind)}
        for name, kind in fields.items():
            self._check_type(f"{self.name}.{name}", kind)
            if name in self.converted:
                setattr(cls, name, property(partial(self._converted, name)))
        self.defaults = {name: self._stored(name, value) for name, value in defaults.items()}
        self._type_at = lru_cache(maxsize=1000)(self._find_type)
        self._lengths_at = lru_cache(maxsize=1000)(self._find_lengths)
        self._fitting_at = lru_cache(maxsize=1000)(self._find_fitting)

    def _check_type(self, place: str, kind: Any) -> None:
        """Refuse a type that a state cannot hold, or whose values would not be tracked."""
        for part in parts_of(kind):
            if not is_held(part) and not is_converted(part):
                raise TypeError(f"{place}: a state cannot hold {name_of(part)}; {advice_on(part)}")
            for inner in children_of(part):
                if is_converted(inner):
                    inside = "may be an attribute, not inside of another type"
                    raise TypeError(f"{place}: {name_of(inner)} {inside}: what is changed there would not be saved")
                self._check_type(place, inner)
        try:
            self._msgspec.inspect.type_info(kind)
        except TypeError as error:
            raise TypeError(f"{place}: {error}") from None

    def _stored(self, name: str, value: Any) -> Any:
        """Return a default as a state holds it."""
        value = persistedstate._stored(_storable, self.encoded(name, value), 0, lambda: [name])
        for keys, reason in self._problems_at(self.fields.get(name, Any), value, (name,)):
            raise TypeError(f"the default of {_place_of(keys).replace('STATE', self.name, 1)}: {reason}")
        return value

    def with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return copies of the defaults, with those in their place that were given to the object."""
        for name in given:
            if name not in self.fields and not self.undeclared:
                raise TypeError(self._not_declared(name))
        defaults = {name: _plain(value) for name, value in self.defaults.items()}
        return {**defaults, **{name: self._stored(name, value) for name, value in given.items()}}

    def type_name(self, name: str) -> str:
        return name_of(self.fields[name])

    def encoded(self, name: str, value: Any) -> Any:
        """Return what a state holds in the place of a value that is assigned to an entry."""
        if name in self.converted:
            return self._msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE)
        return value

    def _converted(self, name: str, state: Any) -> Any:
        if name not in state._items:
            raise state._missing(name)
        value = _plain(state._items[name])
        try:
            return self._convert(value, self.fields[name])
        except self._msgspec.ValidationError:
            keys, reason = next(self._problems_at(self.fields[name], value, (name,)))
            path, reason = state._tree.path, f"{_shown_place(keys)}: {reason}"
            raise StateCorrupt(path, reason, 0, 0, advice=_mending(path, keys)) from None

    def _convert(self, value: Any, kind: Any) -> Any:
        holder = self._holder_of(kind)
        return self._msgspec.convert({"value": value}, holder, strict=True, builtin_types=_AS_THEY_ARE).value

    # What is read.

    def filled(self, value: dict[Any, Any], mine: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
        """Return a state with the defaults, at any depth, of what is missing; without those that have no room there.

        mine: the state before somebody changed it; what is missing in that, too, the script has deleted.
        """
        filled: dict[Any, Any] = _with_missing(value, self.defaults, mine)
        for name, default in self.defaults.items():
            if default and type(default) is dict and name in value:
                found = [any(self._problems_at(self.fields[name], state[name], ())) for state in (value, filled)]
                filled[name] = (value if found == [False, True] else filled)[name]
        return filled

    def check(self, value: dict[Any, Any], path: str, text: str, mine: Mapping[Any, Any] | None = None) -> None:
        """Check a whole state; raises StateCorrupt, with the place in the text of its snapshot.

        mine: the state before somebody changed it: what is wrong in that, too, is not their doing.
        """
        known: set[_Problem] | None = None
        for keys, reason in self._problems(value):
            if known is None:
                known = {(_without_indexes(keys), reason) for keys, reason in self._problems(mine or {})}
            if (_without_indexes(keys), reason) in known:
                continue
            advice, offset = _mending(path, keys, is_extra=keys[0] not in self.fields), _offset(text, keys, value)
            line, column, _, content = (0, 0, "", "") if offset is None else _problem(text, _BadText(reason, offset))
            raise StateCorrupt(path, f"{_shown_place(keys)}: {reason}", line, column, content, advice)

    def _problems(self, value: Mapping[Any, Any]) -> Iterator[_Problem]:
        for key, item in value.items():
            if key in self.fields:
                yield from self._problems_at(self.fields[key], item, (key,))
            elif not self.undeclared:
                yield (key,), self._not_declared(key)

    def _not_declared(self, key: Any) -> str:
        return f"{self.name} declares no {_flow(key)}; there are {', '.join(self.fields)}"

    def _problems_at(self, kind: Any, value: Any, keys: tuple[Any, ...]) -> Iterator[_Problem]:
        """Yield the innermost places at which a value is not what is declared, and what it should be."""
        try:
            self._convert(value, kind)
        except self._msgspec.ValidationError as error:
            items = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
            is_below = False
            for key in value if type(value) is dict else ():
                if reason := self._key_problem(kind, key):
                    is_below = True
                    yield keys, reason
            for key, item in items:
                step = None if type(value) is list else key
                for problem in self._problems_at(below(kind, step), item, (*keys, key)):
                    is_below = True
                    yield problem
            if not is_below:
                yield keys, _reason(str(error), value, kind)

    def _key_problem(self, kind: Any, key: Any) -> str:
        wanted = keys_of(kind)
        if wanted is Any or (wanted is str and type(key) is str):
            return ""
        try:
            self._convert(key, wanted)
        except self._msgspec.ValidationError:
            return f"expected keys that are {name_of(wanted)}, but one is {_flow(key)}"
        return ""

    # What is assigned.

    def check_change(self, keys: tuple[Any, ...], node: Any, operation: str, arguments: tuple[Any, ...]) -> None:
        """Check what a script is about to do to a node; raises TypeError."""
        changes = changes_of(node, operation, arguments)
        for place, reason in self._problems_with(keys, node, changes, lambda: length_after(node, operation, arguments)):
            raise TypeError(f"{_place_of(place)}: {reason}")

    def problems_of(self, image: _Image) -> list[str]:
        """Return what is not as declared of what other processes changed in a node, of which the image knows."""
        node = image.node
        problems = self._problems_with(node._path(), node, changes_since(image), lambda: len(node))
        return [f"{_shown_place(place)}: {reason}" for place, reason in problems]

    def _problems_with(
        self, keys: tuple[Any, ...], node: Any, changes: Iterable[tuple[Any, Any]], measured: Callable[[], int]
    ) -> Iterator[_Problem]:
        steps, is_list = steps_to(node), isinstance(node, StateList)
        limits = self._lengths_at(steps, is_list=is_list)
        if limits and not limits[0] <= (length := measured()) <= limits[1]:
            limit = f">= {limits[0]}" if length < limits[0] else f"<= {limits[1]}"
            yield keys, f"expected a length {limit}, but it is {length}"
        for key, value in changes:
            place = (*keys, key)
            if not keys and key not in self.fields:
                if not self.undeclared and value is not _GONE:
                    yield place, self._not_declared(key)
            elif value is not _GONE:
                if keys and not is_list and (reason := self._key_problem(self._type_at(steps), key)):
                    yield keys, reason
                yield from self._problems_at(self._type_at((*steps, step_in(node, key))), _plain(value), place)
            elif keys and key in required_in(self._type_at(steps)):
                yield place, "this key is declared, and must be there"

    def fitting(self, keys: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the type of what is at a path, if a look at it is enough, and what tells whether a scalar fits.

        keys: of mappings; the last may be None, for an item of a list.
        """
        *above, last = keys
        return self._fitting_at((*map(normal, above), last))

    def _find_fitting(self, keys: tuple[Any, ...]) -> tuple[Any, Any]:
        kind = self._type_at(keys)
        if keys[-1] is None and self._lengths_at(keys[:-1], is_list=True):
            return None, lambda _: False  # the length has to be looked at, too
        convert, holder = self._msgspec.convert, self._holder_of(kind)

        def fits(value: Any) -> bool:
            try:
                convert({"value": value}, holder, strict=True, builtin_types=_AS_THEY_ARE)
            except self._msgspec.ValidationError:
                return False
            return True

        return (kind if any(kind is plain for plain in (bool, int, float, str)) else None), fits

    def _find_lengths(self, keys: tuple[Any, ...], *, is_list: bool) -> tuple[float, float] | None:
        found = lengths_of(self._type_at(keys), is_list=is_list) if keys else (0, inf)
        return None if found == (0, inf) else found

    def _find_type(self, keys: tuple[Any, ...]) -> Any:
        kind = self.fields.get(keys[0], Any)
        for key in keys[1:]:
            kind = below(kind, key)
        return kind


def _without_indexes(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(key if type(key) is str else None for key in keys)


def _with_missing(value: Any, default: Any, mine: Any) -> Any:
    if value is _GONE:
        return _plain(default)
    if type(value) is dict and type(default) is dict:
        known = mine if type(mine) is dict else default
        given = {key: item for key, item in default.items() if key in value or key in known}
        return {**value, **{key: _with_missing(value.get(key, _GONE), given[key], known.get(key)) for key in given}}
    return value


# Messages.


def _reason(said: str, value: Any, kind: Any) -> str:
    """Say what msgspec said in the words of the other messages."""
    text = _flow(value)
    shown = f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text
    said = re.sub(r" - at `\$\.value`$", "", said).replace("$.value", "$").replace("`", "")
    if missing := re.match(r"Object missing required field (\S+)$", said):
        return f"the key {missing[1]} is missing in {shown}"
    said = re.sub(r"\barray\b", "a list", re.sub(r"\bobject\b", "a mapping", said)).replace(" | ", " or ")
    expected = re.match(r"Expected (.*?)(?:, got [\w ]+)?$", said)
    choices = " or ".join(map(_flow, choices_of(kind)))
    wanted = choices or (expected[1] if expected else "")
    return f"expected {wanted}, but it is {shown}" if wanted else f"{said}, but it is {shown}"


def _shown_place(keys: tuple[Any, ...]) -> str:
    return _place_of(keys).removeprefix("STATE").removeprefix(".")


def _mending(path: str, keys: tuple[Any, ...], *, is_extra: bool = False) -> str:
    """Say how a person mends what is not as declared, of which the other tools know nothing."""
    from persistedstate_tools.paths import path_text

    kind, way = ("ADDRESS", "with `persistedstate edit ADDRESS`") if "://" in path else ("FILE", "in an editor")
    place = shlex.quote(path_text(keys))
    change = f"delete {kind} {place}" if is_extra else f"set {kind} {place} VALUE"
    return f"mend it {way}, or with `persistedstate {change}`"


def _offset(text: str, keys: tuple[Any, ...], value: Any) -> int | None:
    """Return where in a text the value stands to which keys lead, or the innermost part of that which is there.

    value: the whole state. None where a record behind the text has another value.
    """
    found = None
    with suppress(Exception):  # what does not stand there, or is an alias, has no place of its own
        loader = _Loader(text)
        node = loader.root
        for key in keys:
            value = value[key]
            if node.id == "sequence":
                node = node.value[key]
                found = node.start_mark.index
            else:
                name, node = next(pair for pair in node.value if loader.read(pair[0]) == key)
                found = name.end_mark.index if _is_empty(node) else node.start_mark.index
        if node.id == "scalar" and not _same(loader.read(node), value):
            found = None
    return found
