"""Where a line of a text does not fit those above it: a colon is missing, or the indentation is wrong."""

from __future__ import annotations

import re
import unicodedata

from persistedstate import _TOP_LEVEL, _BadText, _is_content
from persistedstate_tools.spots import NO_COLON, UNSEEN, Spot, column_of, lead_of


def top(spot: Spot) -> _BadText:
    """Say why a text, which begins there, is no mapping."""
    if re.match(r"- |-$|\[(?!\")|[|>]", spot.after):
        kind = "not a list" if spot.after[0] in "-[" else "not a text"
        return spot.says(f"{_TOP_LEVEL}, {kind}")
    return without_colon(Spot(spot.text, spot.offset))


def lacking(spot: Spot) -> _BadText | None:
    """Say what the lines above lack, where they go on to this one because a colon is missing."""
    above = _value_for_lack_of_colon(spot.text[: spot.offset])
    return None if above is None else without_colon(Spot(spot.text, above))


def too_deep(spot: Spot) -> _BadText:
    """Say that a line stands deeper than one that cannot have anything below it."""
    number = next((number for number, line in spot.above() if column_of(line) < spot.column), 0)
    return spot.says(f"indented deeper than line {number}, which has a value already", spot.at_content())


#: What ends a key, or begins a document; and the beginning of an item.
_COLON, _ITEM = re.compile(r":(?:[ \t\n]|\Z)|\A---"), re.compile(r" *- ")


def _value_for_lack_of_colon(text: str) -> int | None:
    """Return where the value begins that goes on to the end of a text because a colon is missing in its first line."""
    *lines, last = text.split("\n")
    while lines and not _is_content(lines[-1]):
        lines.pop()
    first = len(lines)
    while first and _is_content(lines[first - 1]) and not _COLON.search(lines[first - 1]):
        first -= 1
    if first == len(lines) or _COLON.search(last):
        return None
    above = next(filter(_is_content, reversed(lines[:first])), "---").partition(" #")[0].rstrip()
    start = first
    if _ITEM.match(lines[first]) or not above.endswith((":", "---")):  # then it is an item, the last of its list
        items = [number for number in range(first, len(lines)) if _ITEM.match(lines[number])]
        if not items:
            return None
        start = min(reversed(items), key=lambda number: lines[number].index("-"))
    return len("\n".join([*lines[:start], ""])) + len(lines[start]) - len(lines[start].lstrip())


#: What stands in a line without a colon; its group is where something is wrong, else its start.
_WITHOUT_COLON = (
    (r"-(?=[^\s-])", "a space is missing behind the dash (- item)"),
    (r"//|/\*", "a comment begins with #"),
    (r'\["\w+",\[', "this looks like a record of the script, but `--- ` is missing in front of it"),
    (r"[^\s:=]+[ \t]*(=)[ \t]", "this = must be a colon (key: value)"),
    (r"[^\s:]+?([\uff1a\ufe55\u2236])", "this only looks like a colon; type it anew (key: value)"),
    (r"(?!\w+://)[^\s:]+?(:)(?=[^\s:/\\])", "a space is missing behind this colon (key: value)"),
)


def without_colon(spot: Spot) -> _BadText:
    """Say what a line lacks that is no entry, because there is no colon with a blank behind it."""
    if unseen := UNSEEN.search(spot.line):
        name = unicodedata.name(unseen[0], "a character").lower()
        what = f"a character that cannot be seen (U+{ord(unseen[0]):04X}, {name}); replace it by a space, or delete it"
        return spot.says(what, spot.start + unseen.start())
    _, above = next(iter(spot.above()), (0, ""))
    if (mark := re.search(r":[ ]+([|>])[-+0-9]*[ ]*(?:#.*)?$", above)) and spot.column <= column_of(above):
        return spot.says(f"the text below {mark[1]} must be indented", spot.at_content())
    content = re.sub(r"^(?:- +)*", "", spot.after)
    for pattern, what in _WITHOUT_COLON:
        if match := re.match(pattern, content):
            start = spot.offset + len(spot.after) - len(content)
            return spot.says(what, start + match.start(match.lastindex or 0))
    return spot.says(NO_COLON)


#: The beginning of the content, behind what stands at the head of a document.
_FIRST = re.compile(r"^(?!%|---[ \t]*(?:#.*)?$)[ \t]*[^\s#]", re.MULTILINE)


def first(spot: Spot) -> Spot:
    """Return where the content of a text begins."""
    found = _FIRST.search(spot.text)
    return Spot(spot.text, found.end() - 1 if found else 0)


def misfit(spot: Spot) -> _BadText:
    """Say that a line begins in a column in which nothing above it begins that is still open."""
    columns, is_item = list[int](), spot.line.startswith("-", spot.column)
    for _, line in spot.above():
        for column in (column_of(line),) if is_item else (lead_of(line), column_of(line)):
            if not columns or column < min(columns):
                columns.append(column)
    if spot.column in columns:
        start = first(spot)
        return (
            spot.says("a key among items (- ): indent it like the key of their list, or make it an item")
            if spot.column > start.column
            else top(start)
        )
    shown = " or ".join(map(str, sorted(columns)))
    spaces = f"indented by {spot.column} space{'s' * (spot.column > 1)}" if spot.column else "not indented"
    what = f"{spaces}, which fits no line above: {shown} would"
    return spot.says(what, spot.at_content())
