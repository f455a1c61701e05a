"""What is wrong with a file that does not open, and what is left of it without that.

A snapshot is taken apart entry by entry, each of which is read by itself; the bad ones are taken apart again, down to
single lines.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import Any

import persistedstate
from persistedstate import (
    _LOCK_RETRY,
    _MISFITS,
    _NOT_UTF_8,
    _SECOND_MARK,
    Problem,
    Repair,
    StateCorrupt,
    _apply,
    _BadText,
    _Document,
    _explained,
    _first_json,
    _is_record,
    _Journal,
    _journal_start,
    _Level,
    _line_number,
    _lines_above,
    _Loader,
    _misfit,
    _own_record,
    _parsed,
    _problem,
    _read_file,
    _replay,
    _residue,
    _Root,
    _skipped,
    _Tree,
    _without_half_rewrite,
)
from persistedstate_tools.excerpts import contents


def check(path: str | os.PathLike[str]) -> list[Problem]:
    """Return every problem of a file, see `persistedstate.check`."""
    return sorted(_Remains(contents(os.fsdecode(path))).problems)


def repair(path: str | os.PathLike[str], *, dry_run: bool = False, wait: float = 0.0) -> Repair:
    """Make a file open again, see `persistedstate.repair`."""
    name = os.path.realpath(os.fsdecode(path))
    if dry_run:
        data = _read_file(name)[0]
        remains = _Remains(data)
        after = len(remains.text().encode()) if remains.problems else len(data)
        return Repair(name, sorted(remains.problems), None, len(data), after)
    persistedstate._system.stat(name)  # raises where there is no file: the journal would make one
    journal, deadline = _Journal(name), persistedstate._system.now() + wait
    try:
        while not journal.open(None, deadline):
            persistedstate._system.sleep(_LOCK_RETRY)
        before = len(journal.data)
        remains = _Remains(journal.data)
        damaged = None
        journal.accept(before)
        if remains.problems:
            damaged = journal.keep_aside(remains.cut_text(), "damaged")
            journal.replace(remains.text().encode(), journal.basis)
        return Repair(name, sorted(remains.problems), damaged, before, journal.size)
    finally:
        journal.close()


_INNER_MARK = re.compile(r"(?<=\n)\ufeff+|(?<=\A\ufeff)\ufeff+")
#: What no text may contain: a NUL, and what is not UTF-8 (in the form that decoding gives it).
_NO_TEXT = re.compile("[\0\ud800-\udfff]+")


class _Remains:
    """What can be read of a file, and what is wrong with the rest."""

    def __init__(self, data: bytes) -> None:
        self.problems: list[Problem] = []
        #: What is lost: offset in the text and content.
        self.cuts: list[tuple[int, str, str]] = []
        self.whole = data.decode(errors="surrogateescape")
        #: The number of lines in front of those.
        self.above = 0
        try:
            self._read_sound(data)
        except StateCorrupt as error:
            self.above = _skipped(data).count(b"\n")
            self._read_damaged(_without_half_rewrite(data)[0].decode(errors="surrogateescape"))
            self.problems = [problem._replace(line=problem.line + self.above) for problem in self.problems]
            self._tell(Problem(error.line, error.column, error.reason, error.text))

    def _read_sound(self, data: bytes) -> None:
        """Read a file in which nothing is wrong, but for a torn tail."""
        stream = _parsed("", data)
        self._plant(stream.document, stream.value)
        for reason in _replay(self.root, stream, ""):
            whole = self.whole if stream.undecided else ""
            self._cut(_journal_start(self.whole), whole, reason)
        if stream.torn:
            start = len(data[: len(data) - stream.torn].decode(errors="replace"))
            self._cut(start, self.whole[start:], "this never became a complete record; opening the file drops it")

    def _tell(self, first: Problem) -> None:
        """Tell what opening the file tells, in the place of what was found there piece by piece."""
        replaced = min(self.problems, key=lambda problem: abs(problem.line - first.line), default=None)
        self.problems = [first, *(problem for problem in self.problems if problem is not replaced)]

    def _plant(self, document: _Document, value: dict[Any, Any]) -> None:
        self.document, self.tree = document, _Tree()
        self.root = _Root(value, self.tree)

    def _read_damaged(self, text: str) -> None:
        removed = 0
        for mark in _INNER_MARK.finditer(text):
            self.problems.append(_problem(text, _BadText(_SECOND_MARK, mark.start())))
            self.cuts.append((mark.start() - removed, mark[0], _SECOND_MARK))
            removed += len(mark[0])
        self.whole = text = _INNER_MARK.sub("", text)
        marks = [mark.start() for mark in re.finditer(r"^---[ \n]\[", text, re.MULTILINE)]
        end = marks[0] if marks else len(text)
        if _reason(text[:end]) is None:
            self._plant(*_Document.read(text[:end]))
        else:
            rest = self._block("", text[:end], 0, is_root=True)
            problem = _reason(rest)
            if problem is not None:
                self._cut(0, rest, problem.reason)
            self._plant(*_Document.read("{}\n" if problem is not None else rest))
        for start, stop in zip(marks, [*marks[1:], len(text)], strict=False):
            self._records(text[start:stop], start)

    def _cut(self, offset: int, text: str, reason: str, at: int = 0) -> None:
        """Note that a part of the text is lost; at: where in it the reason is."""
        self.cuts.append((offset, text, reason))
        self.problems.append(_problem(self.whole, _BadText(reason, offset + at)))

    def _block(self, above: str, text: str, offset: int, *, is_root: bool = False) -> str:
        """Return what can be read of a block of entries that stands below other lines."""
        kept: list[tuple[str, int]] = []
        known = above
        for start, entry, is_orphan in _block_entries(text, is_root=is_root):
            loose = _residue(entry) if is_root and not start else ""
            at = offset + start + len(loose)
            kept.append((self._comments(above, loose, offset), offset))
            if is_orphan:
                place = len(_lines_above(entry)) - len(loose)
                self._cut(at, entry[len(loose) :], "what it belongs to is missing", place)
                part = ""
            else:
                part = self._entry(known, entry[len(loose) :], at)
            kept.append((part, at))
            if is_root and "&" in part:  # later entries may refer to its anchors
                known += part
        block = "".join([part for part, _ in kept])
        return block if not block or _reason(above + block) is None else self._without_clashes(above, kept)

    def _entry(self, above: str, entry: str, offset: int) -> str:
        """Return what can be read of an entry."""
        problem = _reason(above + entry)
        if problem is None:
            return entry
        first = len(_lines_above(entry))
        comments = self._comments(above, entry[:first], offset)
        if comments != entry[:first]:
            return comments + self._entry(above + comments, entry[first:], offset + first)
        head = entry[: entry.find("\n", first) + 1 or len(entry)]
        body = entry[len(head) :]
        if body and _reason(above + head) is None:
            rest = self._block(above + head, body, offset + len(head))
            if rest or not re.search(r"(?:-|:)[ ]*(?:#.*)?\n\Z", head):
                return head + rest
            self.cuts.append((offset, head, "nothing is left of it"))
            return ""
        self._cut(offset, entry, problem.reason, min(max(problem.offset - len(above), first), len(entry) - 1))
        return ""

    def _comments(self, above: str, text: str, offset: int) -> str:
        """Return what can be read of the lines above an entry, none of which holds a value."""
        if not text or _reason(above + text) is None:
            return text
        kept = ""
        for line in _lines(text):
            problem = _reason(above + line)
            if problem is None:
                kept += line
            else:
                self._cut(offset, line, problem.reason, min(max(problem.offset - len(above), 0), len(line) - 1))
            offset += len(line)
        return kept

    def _without_clashes(self, above: str, parts: list[tuple[str, int]]) -> str:
        """Return what can be read of entries that are sound one by one, but not together.

        A key stands there twice, or one without a colon is a value that goes on in the next.
        """
        kept: list[tuple[str, int]] = []
        for part in parts:
            kept.append(part)
            while problem := _reason(above + "".join(text for text, _ in kept)):
                ends = list(accumulate((len(text) for text, _ in kept), initial=len(above)))
                text, offset = kept.pop(min(max(bisect_right(ends, problem.offset) - 1, 0), len(kept) - 1))
                first = len(_lines_above(text))
                self._cut(offset, text, problem.reason, first + len(text[first:]) - len(text[first:].lstrip()))
        return "".join(text for text, _ in kept)

    def _records(self, text: str, offset: int) -> None:
        """Apply the record at the start of a text; look for others in what follows it, and cut what is none."""
        content = text[4:]
        first = _first_json(content)
        if _NO_TEXT.search(content, 0, len(first) or len(content)):
            first = ""
        elif not first and _is_record(content):
            first = content
        if first:
            self._apply(text[: 4 + len(first)], offset)
        rest = text[4 + len(first) :] if first else text
        start = offset + len(text) - len(rest)
        again = re.compile(r"--- \[").search(rest, 0 if first else 1)
        end = again.start() if again else len(rest)
        if rest[:end].strip():
            lead = len(rest[:end]) - len(rest[:end].lstrip())
            problem = _why_no_record(rest[lead:end])
            self._cut(start + lead, rest[lead:end], problem.reason, problem.offset)
        if again:
            if not end:
                self.problems.append(_problem(self.whole, _BadText("two records on one line", start)))
            self._records(rest[end:], start + end)

    def _apply(self, text: str, offset: int) -> None:
        record = _own_record(text[4:])
        try:
            if record is None:
                loader = _Loader(text[4:])
                record = None if loader.root is None else loader.value(loader.root, 0)
            self._apply_whole(record)
        except _BadText as problem:
            self._cut(offset, text, problem.reason, 4 + problem.offset)
        except _MISFITS as error:
            self._cut(offset, text, _misfit(error), 4)

    def _apply_whole(self, record: Any) -> None:
        """Apply a record: all of a transaction, or nothing."""
        tree = self.tree
        tree.levels = [_Level(0, len(tree.edits))]
        try:
            _apply(self.root, record)
        except _MISFITS:
            tree.restore()
            raise
        finally:
            tree.levels.clear()

    def text(self) -> str:
        """Return a snapshot of what is left."""
        self.document.edits = self.tree.edits
        text = self.document.renewed(self.root._items).text()
        return text if text.endswith("\n") or not text else text + "\n"

    def cut_text(self) -> bytes:
        """Return all that was cut, with line numbers and reasons."""
        parts = []
        for offset, text, reason in sorted(self.cuts):
            line = self.above + _line_number(self.whole, offset)
            parts.append(f"# line {line}: {reason}\n{text}" + "\n" * (not text.endswith("\n")))
        return "".join(parts).encode(errors="surrogateescape")


def _clean(text: str) -> str:
    if bad := _NO_TEXT.search(text):
        reason = "the character '\\0' may not stand in YAML" if bad[0][0] == "\0" else _NOT_UTF_8
        raise _BadText(reason, bad.start())
    return text


def _reason(text: str) -> _BadText | None:
    """Return why a text cannot be read, None if it can."""
    try:
        _Document.read(_clean(text))
    except _BadText as problem:
        return _explained(text, problem)
    return None


def _why_no_record(text: str) -> _BadText:
    try:
        _Loader(_clean(text.removeprefix("---")))
    except _BadText as problem:
        return _explained(text, _BadText(problem.reason, problem.offset + 3 * text.startswith("---")))
    return _BadText("this is no record", 0)


def _lines(text: str) -> list[str]:
    """Return the lines of a text, with what ends them in YAML; `str.splitlines` ends them at more characters."""
    return re.findall(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text)


#: A line that only closes brackets, and one that a tab makes invalid: neither begins an entry.
_CLOSING = re.compile(r" *(?:[\]}][\]}, \t]*(?:#.*)?\n?\Z|\t)")


def _block_entries(text: str, *, is_root: bool) -> list[tuple[int, str, bool]]:
    """Cut a block at the lines where its entries seem to begin, comments above included.

    Returns for each its offset, its text, and whether it stands deeper than the others, so that its head is missing.
    """
    lines = _lines(text)
    columns = [len(line) - len(line.lstrip(" ")) for line in lines]
    content = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    speaking = [number for number in content if not _CLOSING.match(lines[number])]
    column = min((columns[number] for number in speaking), default=0)
    is_list = not is_root and bool(speaking) and lines[speaking[0]].lstrip().startswith("-")
    begins = [n for n in speaking if columns[n] == column and (is_list or lines[n][column] != "-")]
    for number, following in zip(content, [*content[1:], -1], strict=False):
        is_head = lines[number].rstrip().endswith(":") or following < 0 or columns[following] <= column
        if lines[number].lstrip(" ").startswith("\t") and is_head:
            begins.append(number)
    firsts = sorted({*content[:1], *speaking[:1], *begins})
    starts = [_with_comments(lines, first, firsts[place - 1] if place else -1) for place, first in enumerate(firsts)]
    bounds = [sum(map(len, lines[:start])) for start in [0, *starts[1:]]] + [len(text)]
    orphans = [first not in begins for first in firsts] or [False]
    return [(a, text[a:b], orphan) for (a, b), orphan in zip(pairwise(bounds), orphans, strict=True)]


def _with_comments(lines: list[str], first: int, above: int) -> int:
    """Return the number of the first of the comment lines right above an entry."""
    while first - 1 > above and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first
