"""The place in a text at which something is wrong, and what stands around it."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from persistedstate import _BadText, _is_content, _line_start, _scanner_12

NO_COLON = "a colon is missing (key: value)"
#: What looks like a blank or like nothing, but is a character to YAML.
UNSEEN = re.compile("[\xa0\xad\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]")
#: So many characters of a value are shown in quotes, as it should be written.
_SHORT = 40


class Spot:
    """The place in a text at which something is wrong, and the line that holds it."""

    def __init__(self, text: str, offset: int) -> None:
        self.text, self.offset = text, offset
        self.start = _line_start(text, offset)
        self.line = text[self.start :].partition("\n")[0].rstrip("\r")
        self.before, self.after = self.line[: offset - self.start], self.line[offset - self.start :]
        self.column = column_of(self.line)

    def says(self, reason: str, offset: int | None = None) -> _BadText:
        return _BadText(reason, self.offset if offset is None else offset)

    def at_content(self) -> int:
        return self.start + self.column

    def above(self) -> list[tuple[int, str]]:
        """Return the lines above with content, and their numbers, the nearest one first."""
        lines = enumerate(self.text[: self.start].split("\n"), 1)
        return [(number, line) for number, line in reversed(list(lines)) if _is_content(line)]

    def needs_quotes(self, offset: int, what: str) -> _BadText:
        """Say that a value, which begins there, has to stand in quotes."""
        value = self.text[offset:].partition("\n")[0].partition(" #")[0].rstrip()
        if not self.text[self.start : offset].strip(" -"):  # a key, perhaps
            value = re.split(r":(?: |$)", value)[0]
        if self._is_in_brackets(offset):
            value = re.split(r"[,\]}]", value)[0]
        shown = f": {in_quotes(value)}" if len(value) <= _SHORT and value.isprintable() else ""
        return self.says(f"{what} put it in quotes{shown}", offset)

    def bad_beginning(self, offset: int) -> _BadText:
        """Say that a key or value begins with a sign that means something else."""
        is_key = (
            not self.text[self.start : offset].strip(" -") and ": " in f"{self.text[offset:].partition(chr(10))[0]} "
        )
        return self.needs_quotes(offset, f"a {'key' if is_key else 'value'} cannot begin with {self.text[offset]};")

    def _is_in_brackets(self, offset: int) -> bool:
        before = self.text[self.start : offset]
        return before.count("[") + before.count("{") > before.count("]") + before.count("}")


def in_quotes(value: str) -> str:
    """Return a value as a person would write it in quotes."""
    return f'"{value}"' if not re.search(r'["\\]', value) else "'" + value.replace("'", "''") + "'"


def column_of(line: str) -> int:
    """Return how far a line is indented."""
    return len(line) - len(line.lstrip(" "))


def lead_of(line: str) -> int:
    """Return where the content of a line begins, behind blanks and dashes."""
    return len(line) - len(re.sub(r"^ *(?:-[ \t]+)*", "", line))


_TOKENS = (
    "ScalarToken",
    "AliasToken",
    *(f"Flow{kind}{end}Token" for kind in ("Sequence", "Mapping") for end in ("Start", "End")),
)


def tokens(spot: Spot) -> list[Any]:
    """Return what the scanner finds in front of a place: texts, and what opens and closes brackets."""
    from ruamel.yaml import YAML

    reader = YAML(typ="safe", pure=True)
    reader.Scanner = _scanner_12()
    found = []
    with suppress(Exception):
        for token in reader.scan(spot.text):
            if token.start_mark.index >= spot.offset:
                break
            if type(token).__name__ in _TOKENS:
                found.append(token)
    return found


def is_open_quote(spot: Spot, token: Any) -> bool:
    text = spot.text[token.start_mark.index : token.end_mark.index]
    return text[:1] in ("'", '"') and "\n" in text


def is_closed(text: str) -> bool:
    """Tell whether a text closes a bracket that was open in front of it."""
    depth = 0
    for sign in re.findall(r"[\[\]{}]", re.sub(r"""#.*|"[^"\n]*"|'[^'\n]*'""", "", text)):
        depth += 1 if sign in "[{" else -1
        if depth < 0:
            return True
    return False


def opening(text: str, closing: int) -> int:
    """Return where the bracket was opened that is closed there."""
    depth = 0
    for offset in range(closing, -1, -1):
        depth += (text[offset] in "]}") - (text[offset] in "[{")
        if not depth:
            return offset
    return closing


def end_of(spot: Spot, token: Any) -> int:
    """Return where a text ends that took in what stands behind a missing comma."""
    if token is None:
        return spot.offset
    start, end = token.start_mark.index, token.end_mark.index
    text = spot.text[start:end]
    if text[:1] in ("'", '"', "]", "}"):
        return int(end)
    cut = text.find("\n") if "\n" in text else text.rfind(" ")
    return int(start) + (len(text[:cut].rstrip()) if cut > 0 else 0)


def open_bracket(found: list[Any]) -> int | None:
    """Return where the innermost bracket is that some tokens leave open, if any."""
    opened: list[int] = []
    for token in found:
        name = type(token).__name__
        if name.endswith("StartToken"):
            opened.append(token.start_mark.index)
        elif name.endswith("EndToken") and opened:
            opened.pop()
    return opened[-1] if opened else None
