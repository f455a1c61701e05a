"""PATH, such as `jobs[3].name`: reading, writing, and finding what it means in a state."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from persistedstate import (
    _CONSTANTS,
    _DOUBLE,
    _NUMBER,
    _SINGLE,
    _BadText,
    _content,
    _flow_text,
    _is_key,
    _Odd,
    _quote,
    _read_scalar,
    _scalar,
)
from persistedstate_tools.messages import NO, Refusal, shown_line

#: So many keys are named where one is missing.
_NAMED_KEYS = 6
#: What a step of a path may mean, the likeliest first: `.3` is the key "3", or else 3 (a key or an index).
Step = tuple[Any, ...]


def parse_path(text: str) -> list[Step]:
    """Read a PATH; see `_HELP`. Whatever `path_text` writes comes back as the first meaning of each step."""
    steps: list[Step] = []
    position = 0
    try:
        while position < len(text) or not steps:
            step, position = _read_step(text, position, is_first=not steps)
            steps.append(step)
    except _BadText as problem:
        done = f"after {text[: problem.offset]!r}" if problem.offset else "at its start"
        raise Refusal(f"PATH {text!r} cannot be read {done}: {problem.reason}") from None
    return steps


def _read_step(text: str, position: int, *, is_first: bool) -> tuple[Step, int]:
    """Return the step at a position, and where the next one begins."""
    in_brackets = text[position : position + 1] == "["
    has_dot = not is_first and text[position] == "."
    if not (is_first or in_brackets or has_dot):
        raise _BadText("a dot or a bracket must follow", position)
    start = position + (in_brackets or has_dot)
    if quoted := re.compile(f"{_DOUBLE}|{_SINGLE}").match(text, start):
        step, end = (_read_scalar(quoted[0]),), quoted.end()
    elif word := re.compile(r"[^'\"\[\]][^\[\]]*" if in_brackets else r"[^'\"\[\].][^\[\].]*").match(text, start):
        step, end = _meanings(word[0], in_brackets=in_brackets), word.end()
    else:
        is_quote = text[start : start + 1] in ("'", '"') and start < len(text)
        raise _BadText("the quotes do not end" if is_quote else "a key or an index is missing", start)
    if in_brackets and text[end : end + 1] != "]":
        raise _BadText("] is missing", end)
    return step, end + in_brackets


def _meanings(word: str, *, in_brackets: bool) -> Step:
    value = _CONSTANTS.get(word, word)
    with suppress(_Odd):
        value = _read_scalar(word) if re.fullmatch(_NUMBER, word) else value
    if type(value) is str or not _is_key(value):
        return (word,)
    return (value, word) if in_brackets else (word, value)


def path_text(keys: Iterable[Any]) -> str:
    """Write keys and indexes as a PATH."""
    text = ""
    for key in keys:
        if type(key) is not str:
            text += f"[{_scalar(key)}]"
        elif re.fullmatch(r"[^\W\d][\w-]*", key):
            text += f".{key}" if text else key
        else:
            quoted = "'" + key.replace("'", "''") + "'" if key.isprintable() else _quote(key)
            text += f"[{quoted}]" if text else quoted
    return text or "(everything)"


def resolve(node: Any, steps: Iterable[Step]) -> tuple[list[Any], Any]:
    """Return the keys that a path means in a state, and what is there; raises Refusal."""
    keys: list[Any] = []
    for step in steps:
        key = key_in(node, step, keys)
        node = _content(node)[key]
        keys.append(key)
    return keys, node


def key_in(node: Any, step: Step, above: list[Any]) -> Any:
    """Return the key or index that a step means in a container at the path `above`; raises Refusal."""
    items, shown = _content(node), step[0]
    if type(items) is dict:
        found = [key for wanted in step for key in twin(items, wanted)]
        reason = f"there is no such key, only {_named(items)}" if items else "there is no such key, it is empty"
    elif type(items) is list:
        indexes = [index for index in step if type(index) is int]
        found = [index % len(items) for index in indexes if -len(items) <= index < len(items)]
        shown = (indexes or step)[0]
        count = f"{len(items)} item{'s' * (len(items) != 1)}"
        ends = [path_text([*above, index]) for index in (0, len(items) - 1)]
        within = f": {' to '.join(dict.fromkeys(ends))}" if items else ""
        reason = f"{path_text(above)} is a list of {count}{within}"
    else:
        found, reason = [], f"{path_text(above)} is {shown_line(_flow_text(items, quoted=False))}, which has no parts"
    if not found:
        raise Refusal(f"{path_text([*above, shown])}: {reason}", NO)
    return found[0]


def twin(items: dict[Any, Any], wanted: Any) -> list[Any]:
    """Return the key that is equal to the wanted one, and of its type: True is not 1."""
    return [key for key in items if key == wanted and type(key) is type(wanted)] if wanted in items else []


def _named(items: Iterable[Any]) -> str:
    names = [path_text([key]) for key in items]
    return ", ".join(names[:_NAMED_KEYS]) + (f" and {len(names) - _NAMED_KEYS} more" if names[_NAMED_KEYS:] else "")
