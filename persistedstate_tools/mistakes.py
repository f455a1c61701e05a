"""What is wrong with a text, in the words of a person who writes YAML, at the place that they have to mend.

A reader of YAML tells where it could not go on, in the words of its grammar. `explained` looks at the lines around that
place for what people do wrong. What it does not know stays as the reader told it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from persistedstate import _NOT_UTF_8, _TOP_LEVEL, _BadText, _line_number, _line_start
from persistedstate_tools.layout import first, lacking, misfit, too_deep, top, without_colon
from persistedstate_tools.spots import (
    NO_COLON,
    Spot,
    end_of,
    is_closed,
    is_open_quote,
    open_bracket,
    opening,
    tokens,
)

_NOT_CLOSED = "the {} that opens here is not closed"
_CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7}|\|{7})(?: .*)?$", re.MULTILINE)
_ENTRY = re.compile(r"""(?x) \s* (?:-\ +)* ( "[^"]*" | '[^']*' | [^\s"'#-] [^#]*? ) : [ \t]+""")
_FIRST_OF_TWO = re.compile(
    r"""(?:[-+]?\d[\d._]*|true|false|null|"[^"]*"|'[^']*'|\[[^\]]*\])[,;]?[ ]+(?=[^\s:]+:(?:[ ]|$))"""
)


def explained(text: str, problem: _BadText) -> _BadText:
    """Return a problem of a text in words of a person who writes YAML, and at the place that they have to mend."""
    start = _line_start(text, problem.offset)
    if not text.startswith("--- [", start):
        return _explained(text, problem)
    found = _explained(text[start:], _BadText(problem.reason, problem.offset - start))  # a record is read by itself
    if found.reason == problem.reason:
        return problem
    return _BadText(f"a damaged record: {found.reason}", found.offset + start)


def _explained(text: str, problem: _BadText) -> _BadText:
    head = len(text) - len(text.removeprefix("\ufeff"))
    newline = "\r\n" if text.count("\r\n") == text.count("\n") else "\n"
    offset = problem.offset - text.count("\r", 0, problem.offset) * (newline != "\n") - head
    plain = text[head:].replace(newline, "\n")
    found = _found(Spot(plain, max(offset, 0)), problem.reason)
    if found is None:
        return problem
    return _BadText(found.reason, found.offset + plain.count("\n", 0, found.offset) * (newline != "\n") + head)


def _found(spot: Spot, reason: str) -> _BadText | None:
    conflict = _CONFLICT.search(spot.text, 0, spot.start + len(spot.line))
    if conflict:
        what = "a conflict of a merge: keep what you want of both sides, and delete the lines with <<<, === and >>>"
        return spot.says(what, conflict.start())
    for pattern, kind in _KINDS:
        if match := re.match(pattern, reason):
            return kind(spot, match)
    return None


# What no reader of YAML takes.


def _no_utf_8(spot: Spot, _match: re.Match[str]) -> _BadText | None:
    is_utf_16 = "\0" in spot.text[:4]
    return spot.says("the file is in UTF-16; save it in UTF-8") if is_utf_16 else None


def _illegal(spot: Spot, _match: re.Match[str]) -> _BadText:
    character = spot.text[spot.offset]
    if character == "\0":
        return spot.says("a NUL byte, which no text has; delete it")
    code = f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"  # noqa: PLR2004 - a byte
    return spot.says(f"a control character, which a file cannot hold; delete it, or write {code} in double quotes")


def _bad_start(spot: Spot, _match: re.Match[str]) -> _BadText:
    character = spot.after[:1]
    if character != "\t":
        return spot.bad_beginning(spot.offset)
    return spot.says("a tab in the indentation; YAML takes spaces only")


def _indicator(spot: Spot, _match: re.Match[str]) -> _BadText:
    """Say that a text begins with a sign that means something else there."""
    offset = max(spot.text.rfind(sign, spot.start, spot.offset + 1) for sign in "*&!|>?")
    if offset < 0:
        offset = spot.offset
    return spot.bad_beginning(offset)


def _content(spot: Spot, match: re.Match[str]) -> _BadText | None:
    sign = match[1]
    if sign == "?" and not spot.after.startswith("?"):  # a key, as it seems to the reader
        return misfit(spot)
    if sign not in ",]}":
        begin = open_bracket(tokens(spot))
        return None if begin is None else spot.says(_NOT_CLOSED.format(f"bracket {spot.text[begin]}"), begin)
    if not re.match(r"[ ]*(?:- +)*(?:[^\[{]*: +)?$", spot.before):
        return spot.says(f"there is nothing before this {sign}")
    return spot.bad_beginning(spot.offset)


def _alias(spot: Spot, match: re.Match[str]) -> _BadText:
    name = match[1].strip("'\"")
    anchors = re.findall(r"(?<!\S)&(\S+)", spot.text)
    known = f", only &{', &'.join(anchors[:3])}" if anchors else ""
    return spot.needs_quotes(
        spot.offset, f"there is no &{name} above that *{name} could refer to{known}; if it is text,"
    )


def _tag(spot: Spot, match: re.Match[str]) -> _BadText:
    tag = (match[1] or match[2]).replace("tag:yaml.org,2002:", "!!")
    return spot.says(f"{tag} is a tag that no state can have; a text that begins with ! needs quotes")


def _escape(spot: Spot, _match: re.Match[str]) -> _BadText:
    offset = spot.text.rfind("\\", spot.start, spot.offset)  # there may stand one in the place of a digit
    shown = spot.text[offset : offset + 2]
    count = {"x": 2, "u": 4, "U": 8}.get(shown[1:])
    lack = f" without {count} hex digits" if count else ""
    reason = rf"{shown}{lack} has no meaning in double quotes; write \\ for a backslash, or use single quotes"
    return spot.says(reason, offset)


def _number_or_date(spot: Spot, match: re.Match[str]) -> _BadText | None:
    value = re.split(r"\s#|[,\]}]", spot.after)[0].strip()
    if match[1] == "timestamp":
        return spot.needs_quotes(spot.offset, f"{value} looks like a date, but there is none such; if it is text,")
    if "limit" in match[0]:
        return spot.says("a number of too many digits; if it is text, put it in quotes")
    return None


def _twice(spot: Spot, match: re.Match[str]) -> _BadText:
    where = ""
    if not spot.before.strip(" -"):
        key = re.escape(spot.after.partition(":")[0].rstrip())
        same = re.compile(rf"^[ -]{{{len(spot.before)}}}{key}[ \t]*:", re.MULTILINE)
        above = [found.start() for found in same.finditer(spot.text, 0, spot.start)]
        where = f"; line {_line_number(spot.text, above[-1])} has it, too" if above else ""
    return spot.says(f"{match[0]}{where}")


def _key(spot: Spot, match: re.Match[str]) -> _BadText:
    if "{{" in spot.line:
        return spot.needs_quotes(spot.start + spot.line.index("{{"), "a value cannot begin with {{;")
    return spot.says(match[0])


# Colons and indentation.


def _second_colon(spot: Spot, _match: re.Match[str]) -> _BadText:
    if found := lacking(spot):
        return found
    if tab := re.match(r"[ ]*(?:- )*-(\t)", spot.line):
        return spot.says("a tab behind the dash; put a space there", spot.start + tab.start(1))
    entry = _ENTRY.match(spot.line)
    if entry is None or entry.end() > len(spot.before):
        return too_deep(spot)
    value = spot.line[entry.end() :]
    if two := _FIRST_OF_TWO.match(value):
        what = "a second entry on the same line; it needs a line of its own"
        return spot.says(what, spot.start + entry.end() + two.end())
    if value[0] in "\u201c\u201d\u201e\u2018\u2019":
        what = f"{value[0]} is no quotation mark to YAML; write \" or '"
        return spot.says(what, spot.start + entry.end())
    fixed = spot.needs_quotes(spot.start + entry.end(), "a colon with a space behind it in a value;")
    return spot.says(fixed.reason)


def _list_on_line(spot: Spot, _match: re.Match[str]) -> _BadText:
    return spot.says("a list begins on the line below its key; or write [a, b]")


# Quotes and brackets: what opened them is found among the tokens.


def _block_end(spot: Spot, match: re.Match[str]) -> _BadText:
    found = match[1]
    if found in "]}":
        return spot.says(f"no bracket is open that this {found} could close")
    if (opened := _open_quote(spot)) is not None:
        return opened
    if found == "-" and not spot.before.strip():
        return _item_among_keys(spot)
    return _directive(spot) or misfit(spot)


def _open_quote(spot: Spot) -> _BadText | None:
    """Say what is wrong with the quote, the bracket or the alias that stands in front of this."""
    last = next(reversed(tokens(spot)), None)
    if last is None:
        return None
    kind, start = type(last).__name__, last.start_mark.index
    if is_open_quote(spot, last):
        return spot.says(_NOT_CLOSED.format(f"quote {spot.text[start]}"), start)
    if last.end_mark.index <= spot.start:
        return None
    if kind == "ScalarToken":
        return _behind_quote(spot, start) if last.style else None
    if kind == "AliasToken":
        return spot.needs_quotes(start, "text behind an alias; if all of it is text,")
    return spot.needs_quotes(opening(spot.text, start), "text behind a closing bracket; if all of it is text,")


def _behind_quote(spot: Spot, start: int) -> _BadText:
    quote = spot.text[start]
    if not spot.text[spot.start : start].strip(" -"):
        return spot.says(NO_COLON, start)
    inner = "''" if quote == "'" else r"\""
    return spot.says(f"text behind the closing quote; within the quotes, a {quote} is written {inner}")


def _item_among_keys(spot: Spot) -> _BadText:
    _, above = next(iter(spot.above()), (0, ""))
    if above.lstrip().startswith("- "):
        return misfit(spot)
    return spot.says("an item (- ) among keys: the key of its list must stand above it, without a value")


def _directive(spot: Spot) -> _BadText | None:
    head = re.compile(r"(?:#.*\n|\s*\n)*(%.*)").match(spot.text)
    if head is None:
        return None
    if head[1].startswith("%YAML"):
        return spot.says("a line --- is missing between %YAML and this")
    return spot.says("no line can begin with %; put the key in quotes", head.start(1))


def _in_brackets(spot: Spot, match: re.Match[str]) -> _BadText:
    """Say what is wrong between brackets: an open quote, no end, another end, a comment of JSON, or no comma."""
    found, all_before = match[2], tokens(spot)
    last, begin = all_before[-1] if all_before else None, open_bracket(all_before)
    begin = spot.offset if begin is None else begin
    bracket = spot.text[begin]
    if last is not None and is_open_quote(spot, last):
        return _open_quote(spot) or spot.says(match[0])
    if (found.startswith("<") and found != "<scalar>") or not is_closed(spot.text[spot.offset :]):
        return spot.says(_NOT_CLOSED.format(f"bracket {bracket}"), begin)
    if found in ("]", "}"):
        if begin >= spot.start:
            return spot.says(f"a bracket {bracket} cannot be closed by {found}")
        line = _line_number(spot.text, spot.offset)
        return spot.says(f"{_NOT_CLOSED.format(f'bracket {bracket}')}; line {line} has {found}", begin)
    if comment := re.compile(r"(?<![:\S])(//|/\*)").search(spot.text, begin, spot.offset):
        return spot.says("a comment begins with #", comment.start())
    return spot.says("a comma is missing here, or quotes around a value with a colon", end_of(spot, last))


def _document(spot: Spot, _match: re.Match[str]) -> _BadText | None:
    """Say why something stands behind the end of the document: what its first line lacks."""
    if spot.line.startswith("---"):
        return spot.says("this is no record of the script")
    if found := _directive(spot) or _open_quote(spot):
        return found
    if spot.text.startswith("--- [", spot.text.rfind("\n---", 0, spot.start) + 1):
        return spot.says("this is no record of the script")
    above = first(spot)
    if above.line.startswith("---"):
        return above.says("this is no record of the script")
    if above.column > spot.column:
        line = _line_number(spot.text, spot.start)
        return above.says(f"indented deeper than line {line}; keys of the top level begin in the same column")
    return top(above)


def _another(spot: Spot, _match: re.Match[str]) -> _BadText:
    if spot.line.startswith("---"):
        return spot.says("this is no record of the script")
    end = f"\n{spot.text}".rfind("\n...", 0, spot.offset + 5)
    what = (
        "nothing can stand below the end mark ..." if end >= 0 else "nothing can stand behind the end of the document"
    )
    return spot.says(what, end if end >= 0 else spot.offset)


def _scalar_end(spot: Spot, _match: re.Match[str]) -> _BadText:
    return spot.says(_NOT_CLOSED.format(f"quote {spot.after[:1]}"))


#: What readers say, by patterns, and what finds out what a person did there.
_KINDS: tuple[tuple[str, Callable[[Spot, re.Match[str]], _BadText | None]], ...] = (
    (_NOT_UTF_8, _no_utf_8),
    ("the character .* may not stand", _illegal),
    ("found character .* that cannot start", _bad_start),
    ("mapping values are not allowed", _second_colon),
    ("expected <block end>, but found '<block mapping start>'", lambda spot, _: lacking(spot) or misfit(spot)),
    ("found incompatible YAML|expected a digit", lambda spot, _: spot.says("a version of YAML other than 1.1 and 1.2")),
    ("could not find expected ':'", lambda spot, _: without_colon(Spot(spot.text, spot.offset))),
    (re.escape(_TOP_LEVEL), lambda spot, _: top(spot)),
    (r"expected <block end>, but found '(.+)'", _block_end),
    (r"expected ',' or '(.)', but got '(.+)'", _in_brackets),
    (r"expected '<document start>', but found", _document),
    (
        "but found another document|found non-comment content|expected the node content, but found '<document end>'",
        _another,
    ),
    ("found unexpected (end of stream|document separator)", _scalar_end),
    ("found unknown escape|expected escape sequence", _escape),
    ("found undefined alias (.+)", _alias),
    ("expected (alphabetic or|a comment or|chomping|indentation|URI|' ')|mapping keys are not allowed", _indicator),
    ("sequence entries are not allowed", _list_on_line),
    ("the tag (.+) is not a state's|found undefined tag handle '(.+)'", _tag),
    (r"expected the node content, but found '(.+)'", _content),
    ("not an? (timestamp|int|float): .*", _number_or_date),
    ("duplicate key (.*)", _twice),
    ("a key must be .*", _key),
)
