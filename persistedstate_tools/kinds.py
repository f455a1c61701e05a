"""The types that a class may declare: what a state can hold of them, what is in them, and their names."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from datetime import date, datetime
from functools import lru_cache
from math import inf
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from persistedstate import _flow

_LEAVES = frozenset({bool, int, float, str, bytes, date, datetime, type(None), Any})
_MAPPINGS, _LISTS = (dict, Mapping, MutableMapping), (list, Sequence, MutableSequence)


def parts_of(kind: Any) -> list[Any]:
    """Return what a type may be, one by one: the members of a union, without what is annotated."""
    origin = get_origin(kind)
    if origin is Annotated or _mark(kind):
        return parts_of(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(kind) for part in parts_of(member)]
    if hasattr(kind, "__supertype__"):  # a NewType
        return parts_of(kind.__supertype__)
    return [type(None) if kind is None else kind]


def _fields(part: Any) -> dict[str, Any]:
    """Return the types of the keys of a TypedDict or dataclass, without the marks that tell which must be there."""
    hints = get_type_hints(part, include_extras=True)
    while any(map(_mark, hints.values())):  # a mark may be in another one
        hints = {name: get_args(kind)[0] if _mark(kind) else kind for name, kind in hints.items()}
    return hints


def _mark(kind: Any) -> str:
    name = getattr(get_origin(kind), "_name", "")
    return name if name in ("Required", "NotRequired", "ReadOnly") else ""


def is_held(part: Any) -> bool:
    return (
        part in _LEAVES
        or get_origin(part) is Literal
        or (get_origin(part) or part) in (*_MAPPINGS, *_LISTS)
        or (is_typeddict(part))
    )


def is_converted(kind: Any) -> bool:
    """Tell whether a value is of a class of its own in the script, and something plain in the state."""
    return any(isinstance(part, type) and (issubclass(part, enum.Enum) or _is_frozen(part)) for part in parts_of(kind))


def _is_frozen(part: Any) -> bool:
    """Tell whether a type is a dataclass of which nothing can be changed."""
    if not getattr(getattr(part, "__dataclass_params__", None), "frozen", False):
        return False
    kinds = get_type_hints(part, include_extras=True).values()
    return all(inner in _LEAVES - {Any} or is_converted(inner) for kind in kinds for inner in parts_of(kind))


def children_of(part: Any) -> list[Any]:
    if is_typeddict(part):
        return [*_fields(part).values()]
    return [*get_args(part)] if get_origin(part) in (*_MAPPINGS, *_LISTS) else []


def below(kind: Any, step: Any) -> Any:
    """Return the type of what a container of a type has at a step: under a key of a mapping, or None, in a list."""
    parts = parts_of(kind)
    for part in parts if Any not in parts else ():
        origin = get_origin(part)
        if (is_typeddict(part) or dataclasses.is_dataclass(part)) and step is not None:
            return _fields(part).get(step, Any)
        if origin in (_LISTS if step is None else _MAPPINGS):
            return get_args(part)[-1]
    return Any


def choices_of(kind: Any) -> list[Any]:
    """Return the values that a type consists of; none if there may be others."""
    found: list[Any] = []
    for part in parts_of(kind):
        if get_origin(part) is Literal:
            found += get_args(part)
        elif isinstance(part, enum.EnumMeta):
            found += [each.value for each in list[Any](part)]
        elif part is type(None):
            found.append(None)
        else:
            return []
    return found if found != [None] else []


@lru_cache(maxsize=1000)
def keys_of(kind: Any) -> Any:
    """Return the type of the keys of a mapping of a type."""
    parts = parts_of(kind)
    if any(is_typeddict(part) or dataclasses.is_dataclass(part) for part in parts):
        return str
    return next((get_args(part)[0] for part in parts if get_origin(part) in _MAPPINGS), Any)


def lengths_of(kind: Any, *, is_list: bool) -> tuple[float, float]:
    """Return the least and the greatest length that a list of a type may have, or a mapping."""
    wanted = _LISTS if is_list else _MAPPINGS
    if get_origin(kind) in (Union, types.UnionType):
        members = [each for each in get_args(kind) if any(get_origin(part) in wanted for part in parts_of(each))]
        return lengths_of(members[0], is_list=is_list) if members else (0, inf)
    least, greatest = 0.0, inf
    for meta in getattr(kind, "__metadata__", ()):
        least = max(least, getattr(meta, "min_length", None) or 0)
        limit = getattr(meta, "max_length", None)
        greatest = greatest if limit is None else min(greatest, limit)
    return least, greatest


def required_in(kind: Any) -> set[str]:
    """Return the keys that must be there in a mapping of a type."""
    found: set[str] = set()
    for part in parts_of(kind):
        if is_typeddict(part):
            for name, each in get_type_hints(part, include_extras=True).items():
                mark = _mark(each)  # of which the class knows nothing where annotations are strings
                if mark == "Required" or (mark != "NotRequired" and name in part.__required_keys__):
                    found.add(name)
        elif dataclasses.is_dataclass(part):
            found |= {each.name for each in dataclasses.fields(part) if each.default is each.default_factory}
    return found


def name_of(kind: Any) -> str:
    """Return how a person writes a type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return name_of(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(name_of, inner))
    if origin is Literal:
        return " or ".join(map(_flow, inner))
    if inner and isinstance(origin, type):
        return f"{origin.__name__}[{', '.join('...' if part is ... else name_of(part) for part in inner)}]"
    return "None" if kind is type(None) else getattr(kind, "__name__", None) or str(kind)


def advice_on(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "use a TypedDict, or a frozen dataclass of values that cannot be changed"
    return "use None, bool, int, float, str, bytes, date, datetime, Literal, Enum, a list, a dict or a TypedDict"
