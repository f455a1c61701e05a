"""What is YAML, but hardly what the person meant who wrote it.

Nothing is wrong with such a text, and each may be meant: it is told by commands that a person runs, never by a script.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from contextlib import suppress
from typing import Any

from persistedstate import Problem, _BadText, _inline, _is_empty, _Loader, _problem, _Stream
from persistedstate_tools.layout import first
from persistedstate_tools.spots import UNSEEN, Spot

#: So many characters of an entry are looked at: a reader that knows where each value stands takes a second for 100,000.
_LIMIT = 200_000
_SIMPLE = r"(?:[-+]?\d[\d._]*|true|false)"
_QUOTATION = "\u201c\u201d\u201e\u2018\u2019\u00ab"

#: What a plain value looks like that is text, and what is to be said of it.
_TEXTS = (
    (rf"{_SIMPLE},$", "this is text, because of the comma behind it"),
    (rf"{_SIMPLE}#", "this is text: a space is missing in front of #"),
    (r"(?i:yes|no|on|off)$", "this is text; write true or false"),
    (r"[-+]?\d+(?:,\d+)+(?:\.\d+)?$|\d+(?:\.\d{3}){2,}$", "this is text: a number has no comma, and one point at most"),
    (r"(?:None|nil|NULL|undefined)$", "this is text; write null"),
    (rf"[{_QUOTATION}]", "these are no quotation marks to YAML, but a part of the text"),
    (r"[A-Za-z_][\w.-]*:[^\s/\\]", "this is text: a space is missing behind the colon (key: value)"),
)
#: What stands in the place of a value, but is none.
_EMPTY = (
    (r"[&!]\S*", "this has no value; a text that begins with & or ! needs quotes"),
    (r"#(?:[0-9a-fA-F]{3,8}|\d+)", "this has no value, because # begins a comment; put the value in quotes"),
)
#: What any of it may look like: only then is a text read for it.
_DOUBT = re.compile(
    rf"""(?xm) {_SIMPLE}[,\#] | [{_QUOTATION}] | {UNSEEN.pattern} | :[ ]+(?i:yes|no|on|off|None|nil|NULL|undefined)\b
    | [:-][ ]+[-+]?0\d | \d[.,]\d+[.,]?\d* | ^[ -]*[A-Za-z_][\w.-]*:\S | :[ ]+\#\S | ::[ ] | ^[ ]*:[ ]
    | [{{,][ ]*[\w.-]+(?::\w|[ ]*[,}}]) | [|>&!]\S*$ | \de\d | ^[ ]+-[ ]
    """
)


#: What separates documents, but no records, and no half of a text that was being rewritten.
_ANOTHER = re.compile(r"^---(?:[ \t]+(?:#(?! LAST VALID STATE).*)?)?\r?\n(?!\[|###|-)", re.MULTILINE)


def notes(text: str, known: Container[str] | None = None) -> list[Problem]:
    """Return what the text of a file may not mean as it is read.

    known: lines that are not looked at, because somebody else wrote them. Without them, what a script would write just
    so is left alone.
    """
    found: list[Problem] = []
    if not (_DOUBT.search(text) or _ANOTHER.search(text)):
        return found
    with suppress(_BadText):
        document = _Stream(text.encode()).document
        snapshot = document.text()
        above = text.count("\n", 0, max(text.find(snapshot), 0))
        whole, offset = snapshot.replace(document.newline, "\n"), len(document.head)
        for piece in [document.single, *document.pieces.values()]:
            if len(piece) <= _LIMIT and _DOUBT.search(piece):
                found += [each._replace(line=each.line + above) for each in _of_entry(whole, piece, offset, known)]
            offset += len(piece)
        if another := _ANOTHER.search(text, first(Spot(text, 0)).offset):
            reason = "all above this line is left out: what stands below takes its place"
            found.append(_problem(text, _BadText(reason, another.start())))
    return sorted(found)


def _of_entry(whole: str, piece: str, offset: int, known: Container[str] | None) -> Iterator[Problem]:
    with suppress(_BadText):
        loader = _Loader(piece, anchors={})
        for node, place, reason in _in_node(piece, loader.root):
            told = _problem(whole, _BadText(reason, offset + place))
            if told.text not in known if known is not None else not _is_a_scripts(loader, node, piece):
                yield told


def _is_a_scripts(loader: _Loader, node: Any, piece: str) -> bool:
    """Tell whether a script that stores this value would write it just so."""
    text = piece[node.start_mark.index : node.end_mark.index]
    return node.id == "scalar" and not _is_empty(node) and "\n" not in text and _inline(loader.read(node)) == text


def _in_node(text: str, node: Any) -> Iterator[tuple[Any, int, str]]:
    """Yield the nodes that may mean something else, where that is told, and what to say of them."""
    if node.id == "sequence":
        for item in node.value:
            if reason := _of_item(text, item):
                yield item, item.start_mark.index, reason
            yield from _in_node(text, item)
    elif node.id == "mapping":
        if node.flow_style and node.value and all(_is_name(key, value) for key, value in node.value):
            yield node, node.start_mark.index, "braces make a mapping of keys without values; a list is [a, b]"
        for key, value in node.value:
            yield from _in_pair(text, key, value, is_flow=bool(node.flow_style))
            yield from _in_node(text, value)


def _is_name(key: Any, value: Any) -> bool:
    return key.id == "scalar" and _is_empty(value) and ":" not in key.value


def _in_pair(text: str, key: Any, value: Any, *, is_flow: bool) -> Iterator[tuple[Any, int, str]]:
    if key.id == "scalar" and not key.style and (reason := _of_key(key.value, is_alone=is_flow and _is_empty(value))):
        yield key, key.start_mark.index, reason
    for pattern, reason in _EMPTY if _is_empty(value) else ():
        if match := re.compile(rf"[ ]*:[ ]+({pattern})[ ]*$", re.MULTILINE).match(text, key.end_mark.index):
            yield value, match.start(1), reason
    if value.id == "scalar" and (reason := _of_value(value, is_below=value.start_mark.line != key.start_mark.line)):
        yield value, value.start_mark.index, reason


def _of_key(key: str, *, is_alone: bool) -> str:
    """Return what is odd about a key without quotes; is_alone: it lacks a value, between braces."""
    if unseen := UNSEEN.search(key):
        return f"a character that cannot be seen (U+{ord(unseen[0]):04X}) is in this key"
    if key.startswith(tuple(_QUOTATION)):
        return "these are no quotation marks to YAML, but a part of the key"
    if is_alone and ":" in key:
        return "all of this is a key: a space is missing behind the colon (key: value)"
    return "a value without a key" if not key else "the last colon belongs to this key" if key.endswith(":") else ""


def _of_item(text: str, item: Any) -> str:
    if item.id != "scalar":
        return ""
    if not item.style and re.search(r"\n[ ]*-[ ]", text[item.start_mark.index : item.end_mark.index]):
        return "this goes on in the line below; items of a list begin in the same column"
    return _of_value(item, is_below=False)


def _of_value(value: Any, *, is_below: bool) -> str:
    """Return what is odd about a scalar; is_below: it stands on a line of its own below its key."""
    text, kind = value.value, str(value.tag).rpartition(":")[2]
    if value.style in ("|", ">") and not text.strip():
        return f"{value.style} begins a text on the lines below, and there is none; put the value in quotes"
    if value.style:
        return ""
    if kind == "int" and re.match(r"[-+]?0\d", text):
        return f"this is the number {int(text)}; write 0o{text.lstrip('-+0')} for an octal one, or put it in quotes"
    if kind == "float" and "inf" not in text.lower() and math.isinf(float(text.replace("_", ""))):
        return "this number is too large, and read as infinity"
    return _of_text(text, is_below=is_below) if kind == "str" else ""


def _of_text(text: str, *, is_below: bool) -> str:
    if UNSEEN.search(text):
        return "a character that cannot be seen is in this text"
    patterns = _TEXTS if is_below else _TEXTS[:-1]
    return next((reason for pattern, reason in patterns if re.match(pattern, text)), "")
