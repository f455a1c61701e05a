"""VALUE, as it is typed in a shell, and values as JSON."""

from __future__ import annotations

import re
import sys
from binascii import b2a_base64
from contextlib import suppress
from math import isfinite
from typing import Any

from persistedstate import _SCALAR, _BadText, _Loader, _node_end, _Odd, _read_scalar, _scalar
from persistedstate_tools.messages import Refusal


def _as_json(value: Any) -> Any:
    """Return what JSON can say: what it cannot becomes a string, as YAML shows it (bytes: in base64)."""
    if isinstance(value, dict):
        named = {key if type(key) is str else _scalar(key): _as_json(item) for key, item in value.items()}
        if len(named) != len(value):
            raise Refusal("JSON cannot hold both a number and the same digits as keys of one mapping")
        return named
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, bytes):
        return b2a_base64(value, newline=False).decode()
    is_plain = value is None or isinstance(value, (str, bool, int)) or (type(value) is float and isfinite(value))
    return value if is_plain else _scalar(value)


def json_text(value: Any, indent: int | None) -> str:
    """Return a value as JSON, for the encoding of standard output."""
    from json import dumps

    return dumps(_as_json(value), ensure_ascii="utf" not in (sys.stdout.encoding or "utf-8").lower(), indent=indent)


def yaml_value(text: str) -> Any:
    """Read a VALUE; ruamel.yaml is asked only where it is more than a simple scalar."""
    with suppress(_Odd):
        if re.fullmatch(_SCALAR, text):
            return _read_scalar(text)
    try:
        loader = _Loader(text)
        end = 0 if loader.root is None else _node_end(loader.root, text)
        if text[end:].lstrip().startswith("#"):
            raise _BadText("here a comment begins", end)
        return None if loader.root is None else loader.value(loader.root, 1)
    except _BadText as problem:
        place = f"from character {problem.offset + 1} on"
        raise Refusal(f"VALUE {text!r} cannot be read {place}: {problem.reason}; text may need quotes") from None
