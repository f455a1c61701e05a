"""An independent look at YAML text: values, the lines that an entry covers, its comments.

Nothing here uses persistedstate. Values come from the oracle, positions from ruamel.yaml's parser events, so that the
tests compare the module with a second reader.

    outline = Outline(b"a: 1  # one\\nb:\\n- x\\n")
    outline.entry(("b", 0)).first   # 2, the line of the item, counted from 0
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import oracle
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[Any, ...]
BOM = "\ufeff"

# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


def unshare(value: Any) -> Any:
    """Copy a value so that aliases become containers of their own."""
    if isinstance(value, dict):
        return {key: unshare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unshare(item) for item in value]
    return value


def read(data: bytes, reader: str = "ruamel") -> Any:
    """Return the state that a file holds, snapshot and changes; `reader` is a key of oracle.READERS."""
    snapshot, *changes = unshare(list(oracle.READERS[reader](data.decode("utf-8")))) or [None]
    return oracle.replay(snapshot or {}, changes)


def by_name(value: Any) -> Any:
    """Sort every mapping, for comparisons where the order of merged keys is nobody's promise."""
    if isinstance(value, dict):
        return {key: by_name(value[key]) for key in sorted(value, key=repr)}
    return [by_name(item) for item in value] if isinstance(value, list) else value


def value_at(root: Any, path: Path) -> Any:
    """Follow a path of keys and indexes."""
    for step in path:
        root = root[step]
    return root


def with_value(root: Any, path: Path, value: Any) -> Any:
    """Return a copy of a plain value with one place set."""
    changed = copy.deepcopy(root)
    value_at(changed, path[:-1])[path[-1]] = copy.deepcopy(value)
    return changed


def without(root: Any, path: Path) -> Any:
    """Return a copy of a plain value with one entry deleted."""
    changed = copy.deepcopy(root)
    del value_at(changed, path[:-1])[path[-1]]
    return changed


# ---------------------------------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------------------------------


def lines_of(data: bytes) -> list[bytes]:
    """Split into lines that all end alike, so that a missing final newline does not make the last line different."""
    lines = data.removeprefix(BOM.encode()).splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\r\n" if b"\r\n" in data else b"\n"
    return lines


def assert_frame_kept(old: bytes, new: bytes) -> None:
    """BOM, line endings and the lack of a final newline stay what they were."""
    assert new.startswith(BOM.encode()) == old.startswith(BOM.encode())
    if old:
        assert new.endswith(b"\n") == old.endswith(b"\n"), new
    if b"\r\n" in old:
        assert new.count(b"\n") == new.count(b"\r\n"), new


def assert_only_lines_changed(old: bytes, new: bytes, first: int, end: int) -> list[bytes]:
    """Lines [first, end) may have become anything, all others are the same bytes; returns the new ones."""
    assert_frame_kept(old, new)
    before, after = lines_of(old), lines_of(new)
    tail = len(before) - end
    assert len(after) >= first + tail, new.decode()
    assert after[:first] == before[:first], new.decode()
    assert after[len(after) - tail :] == before[end:], new.decode()
    return after[first : len(after) - tail]


def assert_lines_kept(old: bytes, new: bytes, may_change: set[int]) -> None:
    """Every line not in `may_change` is still there, in order."""
    assert_frame_kept(old, new)
    rest = iter(lines_of(new))
    for number, line in enumerate(lines_of(old)):
        if number not in may_change:
            assert line in rest, f"line {number + 1} {line!r} is gone or out of order in\n{new.decode()}"


def assert_comments_kept(old: Outline, new: bytes, lost: set[int]) -> None:
    """Each comment of the old text survives, but for those on the lines `lost`."""
    wanted = Counter(text for line, text in old.comments if line not in lost)
    found = Counter(text for _, text in Outline(new).comments)
    assert not wanted - found, new.decode()


# ---------------------------------------------------------------------------------------------------------------------
# Places of entries
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Node:
    """One value or key in the text: characters [start, end), lines first..last."""

    kind: str  #: mapping, sequence, scalar or alias
    start: int
    end: int
    first: int
    last: int
    style: str = ""  #: the quote or block character of a scalar, "" when plain
    flow: bool = False
    anchor: str = ""  #: the anchor that it defines, or that an alias refers to
    tagged: bool = False
    keep: bool = False  #: a block scalar whose trailing blank lines are part of the value
    entries: list[Entry] = field(default_factory=list)

    @property
    def defines(self) -> str:
        """The anchor that this node defines, or nothing."""
        return "" if self.kind == "alias" else self.anchor

    @property
    def knotted(self) -> bool:
        """Tell whether there is an anchor or an alias in it; a merge key has one."""
        return any(node.anchor for node in self.walk())

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it."""
        yield self
        for entry in self.entries:
            yield from entry.node.walk()


@dataclass(eq=False)
class Entry:
    """A key with its value, or an item of a sequence; `start` is its `-`, its `?` or its key."""

    path: Path
    key: Node | None
    node: Node
    start: int
    first: int
    column: int
    holder: Node  #: the mapping or sequence that it is in
    parent: Entry | None  #: the entry of that; None in the root
    index: int
    merge: bool = False

    @property
    def last(self) -> int:
        """The last line with something of this entry."""
        return max(self.node.last, self.key.last if self.key else 0)

    @property
    def name(self) -> str:
        """A readable id for pytest."""
        return ".".join(str(step) or "''" for step in self.path)

    def chain(self) -> list[Entry]:
        """The entries from the root to this one."""
        return [*(self.parent.chain() if self.parent else []), self]


class Outline:
    """The first document of a file: where each entry and each comment stands."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.text = data.decode("utf-8").removeprefix(BOM)
        self.lines = [line.decode("utf-8") for line in lines_of(data)]
        self._tokens = list(YAML(typ="safe", pure=True).scan(self.text))
        self._events = YAML(typ="safe", pure=True).parse(self.text)
        self._head = "%YAML 1.1\n---\n" if self.text.startswith("%YAML 1.1") else ""
        self.entries: list[Entry] = []
        self.root = self._read_root()
        self.comments = self._find_comments()
        self._by_path = {repr(entry.path): entry for entry in self.entries}

    def entry(self, path: Path) -> Entry:
        """Return the entry at a path."""
        return self._by_path[repr(path)]

    def holders(self) -> list[tuple[Path, Node]]:
        """Return every mapping and sequence with its path, the root first."""
        below = [(entry.path, entry.node) for entry in self.entries if entry.node.kind in {"mapping", "sequence"}]
        return [((), self.root), *below]

    # --- who owns which line

    def is_comment(self, line: int) -> bool:
        """Tell whether a line outside of scalars holds a comment and nothing else."""
        return self.lines[line].lstrip(" ").startswith("#")

    def is_blank(self, line: int) -> bool:
        """Tell whether a line has nothing but blanks."""
        return not self.lines[line].strip()

    def indent(self, line: int) -> int:
        """Return the column of the first character."""
        return len(self.lines[line]) - len(self.lines[line].lstrip(" "))

    def alone(self, entry: Entry) -> bool:
        """Tell whether an entry is the first thing on its line."""
        return (
            self.indent(entry.first) == entry.column
            and self.text.rfind("\n", 0, entry.start) + 1 + entry.column == entry.start
        )

    def own_comments(self, entry: Entry) -> list[int]:
        """Return the lines of the comment block that belongs to an entry: the unbroken run directly above it."""
        if not self.alone(entry):
            return []
        floor = self._content_before(entry)
        first = entry.first
        while first - 1 > floor and self.is_comment(first - 1):
            first -= 1
        run = list(range(first, entry.first))
        if self._follows_nested_block(entry):
            while run and self.indent(run[0]) > entry.column:
                run.pop(0)
        return run

    def trailing(self, entry: Entry) -> tuple[list[int], list[int]]:
        """Return the lines after a nested block that belong to it for sure, and those that may or may not."""
        line = entry.last + 1
        sure: list[int] = []
        unsure: list[int] = []
        if entry.node.kind not in {"mapping", "sequence"} or entry.node.flow:
            return sure, unsure
        while line < len(self.lines) and self.is_comment(line) and self.indent(line) > entry.column:
            sure.append(line)
            line += 1
        pending: list[int] = []
        while line < len(self.lines) and (
            self.is_blank(line) or (self.is_comment(line) and self.indent(line) > entry.column)
        ):
            pending.append(line)
            if self.is_comment(line):
                unsure += pending
                pending = []
            line += 1
        return sure, unsure

    def tangled(self, path: Path) -> set[int] | None:
        """Return the lines that a change at `path` may rewrite because of anchors; None when no anchor is involved.

        A top-level entry that uses anchors may be rewritten without them, and so may those that alias one of its own.
        """
        top = self.entry(path).chain()[0] if path else None
        if top is None or not top.node.knotted:
            return None
        defined = {node.defines for node in top.node.walk()} - {""}
        lines = self._whole(top)
        for entry in self.root.entries:
            if any(node.kind == "alias" and node.anchor in defined for node in entry.node.walk()):
                lines |= self._whole(entry)
        return lines

    def _whole(self, entry: Entry) -> set[int]:
        sure, unsure = self.trailing(entry)
        return {*self.own_comments(entry), *range(entry.first, entry.last + 1), *sure, *unsure}

    def _content_before(self, entry: Entry) -> int:
        """Return the last line before an entry that holds content; -1 at the top."""
        if entry.index:
            return entry.holder.entries[entry.index - 1].last
        if entry.parent:
            return entry.parent.first
        heads = [line for line in range(entry.first) if self.lines[line].startswith(("---", "%", "{"))]
        return max(heads, default=-1)

    def _follows_nested_block(self, entry: Entry) -> bool:
        if not entry.index:
            return False
        before = entry.holder.entries[entry.index - 1].node
        return before.kind in {"mapping", "sequence"} and not before.flow

    # --- reading events

    def _read_root(self) -> Node:
        next(self._events)  # the start of the stream
        event = next(self._events)
        if type(event).__name__ != "DocumentStartEvent":
            return Node("scalar", 0, 0, 0, 0)
        return self._node(next(self._events), (), None)

    def _node(self, event: Any, path: Path, parent: Entry | None) -> Node:
        name = type(event).__name__
        start, end = event.start_mark, event.end_mark
        node = Node(
            _KINDS[name], start.index, end.index, start.line, end.line, anchor=getattr(event, "anchor", "") or ""
        )
        node.tagged = getattr(event, "ctag", None) is not None
        if name == "ScalarEvent":
            self._place_scalar(node, event)
        elif name in {"MappingStartEvent", "SequenceStartEvent"}:
            node.flow = bool(event.flow_style)
            self._fill(node, path, parent)
        return node

    def _fill(self, node: Node, path: Path, parent: Entry | None) -> None:
        while not type(event := next(self._events)).__name__.endswith("EndEvent"):
            key = self._node(event, (), None) if node.kind == "mapping" else None
            step = self._construct(key) if key else len(node.entries)
            merge = bool(key) and self.text[key.start : key.end] == "<<"  # type: ignore[union-attr]
            entry = Entry((*path, step), key, _NOWHERE, 0, 0, 0, node, parent, len(node.entries), merge)
            node.entries.append(entry)
            if not any(link.merge for link in entry.chain()):
                self.entries.append(entry)
            value = next(self._events) if key else event
            entry.node = self._node(value, entry.path, entry)
            self._place_entry(entry)
        if node.flow:
            node.end, node.last = event.end_mark.index, event.end_mark.line
        elif node.entries:
            node.last = node.entries[-1].last
            node.start, node.first = node.entries[0].start, node.entries[0].first

    def _place_entry(self, entry: Entry) -> None:
        if entry.key:
            marks = [
                t.start_mark
                for t in self._tokens
                if type(t).__name__ == "KeyToken" and t.start_mark.index <= entry.key.start
            ]
            inside = [m for m in marks if m.index > self._bound(entry)]
            start = inside[-1].index if inside else entry.key.start
            if self.text[start] != "?":
                start = entry.key.start
        elif entry.holder.flow:
            start = entry.node.start
        else:
            dashes = [t.start_mark for t in self._tokens if type(t).__name__ == "BlockEntryToken"]
            start = [m for m in dashes if m.index < entry.node.start][-1].index
        entry.start = start
        entry.first = self.text.count("\n", 0, start)
        entry.column = start - self.text.rfind("\n", 0, start) - 1

    def _bound(self, entry: Entry) -> int:
        """Return where the entry before this one ends."""
        return entry.holder.entries[entry.index - 1].node.end - 1 if entry.index else entry.holder.start - 1

    def _place_scalar(self, node: Node, event: Any) -> None:
        node.style = event.style or ""
        if node.style in {"|", ">"} and node.style:
            header = self.text[node.start : node.end].split("\n", 1)[0].split("#")[0]
            node.keep = "+" in header
            if event.end_mark.column == 0:
                node.last -= 1
            while not node.keep and node.last > node.first and self.is_blank(node.last):
                node.last -= 1
        elif node.start == node.end:
            before = [
                t.end_mark
                for t in self._tokens
                if type(t).__name__ in _BEFORE_AN_EMPTY_VALUE and t.end_mark.index <= node.start
            ]
            node.start = node.end = before[-1].index
            node.first = node.last = before[-1].line

    def _construct(self, key: Node) -> Any:
        text = self.text[key.start : key.end]
        return YAML(typ="safe", pure=True).load(self._head + text) if text != "<<" else "<<"

    def _find_comments(self) -> list[tuple[int, str]]:
        """Return (line, text) of each comment, by blanking out all scalars."""
        text = list(self.text)
        for token in self._tokens:
            if type(token).__name__ == "ScalarToken":
                start, end = token.start_mark.index, token.end_mark.index
                if token.style in {"|", ">"}:
                    start = self.text.index("\n", start)
                text[start:end] = ["\n" if character == "\n" else "x" for character in text[start:end]]
        found = re.finditer(r"(?m)(?:^|(?<=[ \t]))#[^\r\n]*", "".join(text))
        return [(self.text.count("\n", 0, match.start()), match.group().rstrip()) for match in found]


_KINDS = {
    "MappingStartEvent": "mapping",
    "SequenceStartEvent": "sequence",
    "ScalarEvent": "scalar",
    "AliasEvent": "alias",
}
_BEFORE_AN_EMPTY_VALUE = {"ValueToken", "BlockEntryToken", "ScalarToken", "FlowEntryToken", "TagToken", "AnchorToken"}
_NOWHERE = Node("scalar", 0, 0, 0, 0)
