"""Random files as people write them, and random changes with a record of what a change may touch.

`hand_written_files()` gives texts with indents of 2 to 4, comments above and beside, blank lines, quotes, flow style,
block scalars. Each entry is a Piece that knows its lines and its comments. A Session applies the same random change
to a state, to a plain model and to the pieces; in the end every line of an untouched piece must still be there, and
every comment of a piece that survives must stand by its entry.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import strict_reader
from hypothesis import strategies as st
from oracle import same
from textual import BOM, Outline, by_name, lines_of, read, unshare, value_at

from persistedstate import plain

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator


#: Spellings of a scalar that is like no other; {n} is a running number.
SPELLINGS = [
    "word{n}",
    "two words {n}",
    "{n}",
    "-{n}",
    "{n}.50",
    "0x{n:X}",
    "{n}_000",
    "'q{n} it''s'",
    '"d{n} # \\t\\u00e9"',
    '"{n}"',
    "http://x.org/{n}#a",
    "é{n}",
]
KEYS = ["k{n}", "k{n}", "'k {n}'", '"k{n}"', "key {n}", "{n}", "ключ{n}"]
CONSTANTS = ["true", "null", "~", "''", "false"]
BLOCKS = ["|", "|-", ">", ">-"]
#: Strings that a state may get, hard to write plainly.
HARD = ["new {n}", "yes{n}: #", "'{n}\"", "two\nlines {n}\n", " {n} ", "- {n}", "{n}", "é\u2028{n}", "# {n}", "[{n}"]


@dataclass(eq=False)
class Piece:
    """One entry of a random file: where it is written and which comments are its own."""

    lines: set[int] = field(default_factory=set)
    above: dict[int, str] = field(default_factory=dict)
    beside: str = ""
    fragile: str = ""  #: a comment that goes when the value changes: in the header of a block scalar
    inner: dict[int, str] = field(default_factory=dict)  #: comments in a container that belong to no entry
    kids: list[Piece] = field(default_factory=list)
    keys: list[Any] | None = None  #: of a mapping; None for lists and scalars
    flow: bool = False
    compact: bool = False  #: the first kid is on the same line, behind a dash
    loose: bool = False  #: its comments survive, but not in a place that is prescribed
    knot: bool = False  #: it has an anchor, is an alias, or merges one: other lines may change with it
    alias: bool = False
    is_mapping: bool = False
    merge: int | None = None  #: the line in which a mapping merges another one

    def bind(self, value: Any) -> None:
        """Learn the keys from the value that another reader found."""
        if isinstance(value, dict):
            self.keys = list(value)
            value = list(value.values())
        if isinstance(value, list):
            if self.alias or self.merge is not None:  # what comes out of a merge comes first
                lines = self.lines if self.merge is None else {self.merge}
                self.kids[:0] = [Piece(lines=lines, loose=True, alias=True) for _ in value[len(self.kids) :]]
            assert len(value) == len(self.kids)
            for kid, item in zip(self.kids, value, strict=True):
                kid.bind(item)

    def walk(self) -> Iterator[Piece]:
        """Yield the piece and all below."""
        yield self
        for kid in self.kids:
            yield from kid.walk()

    def index(self, key: Any) -> int:
        """Return the position of a key, or of an index that may be negative."""
        if self.keys is None:
            return int(key if key >= 0 else key + len(self.kids))
        return [repr(known) for known in self.keys].index(repr(key))


@dataclass(frozen=True)
class Document:
    """A random file and its pieces."""

    data: bytes
    root: Piece

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Show the text and nothing else when Hypothesis reports a failure."""
        printer.text(f"Document({self.data!r}, ...)")


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


class Dice:
    """Where the chances of a file and of its changes come from: a `random.Random`."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def between(self, low: int, high: int) -> int:
        return self._chance.randint(low, high)

    def pick(self, options: list[Any]) -> Any:
        return self._chance.choice(options)


class Drawn(Dice):
    """The same, from Hypothesis."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def between(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def pick(self, options: list[Any]) -> Any:
        return self._draw(st.sampled_from(options))


@st.composite
def hand_written_files(draw: st.DrawFn) -> Document:
    """Return a file in somebody's own formatting."""
    return hand_written(Drawn(draw))


def hand_written(dice: Dice, *, knotted: bool = False) -> Document:
    """Return a file in somebody's own formatting; knotted: with anchors, aliases and merges."""
    writer = Writer(dice, knotted=knotted)
    root = Piece()
    if writer.chance(3):
        writer.lines += ["# header", ""]
    if writer.chance(5):
        writer.lines.append(dice.pick(["---", "--- # head"]))
    writer.mapping(root, 0, "", 0)
    if writer.chance(3):
        writer.lines += [*[""] * dice.between(0, 1), "# footer"]
    end = dice.pick(["\n", "\n", "\r\n"])
    final = "" if writer.chance(5) and not writer.blocks else end
    text = dice.pick(["", "", "", BOM]) + end.join(writer.lines) + final
    root.bind(read(text.encode()))
    return Document(text.encode(), root)


class Writer:
    """Draws the formatting of a file, line by line."""

    def __init__(self, dice: Dice, *, knotted: bool = False) -> None:
        self.between, self.pick, self.knotted = dice.between, dice.pick, knotted
        self.anchors: list[str] = []
        self.mergeable: list[str] = []
        self.lines: list[str] = []
        self.number = 0
        self.blocks = 0

    def chance(self, one_in: int) -> bool:
        """Draw one of several cases."""
        return bool(self.between(0, one_in - 1) == one_in - 1)

    def next(self) -> int:
        """Return a number that is used once."""
        self.number += 1
        return self.number

    def comment(self) -> str:
        """Return a comment like no other."""
        return f"# c{self.next()};"

    def put(self, piece: Piece, text: str) -> None:
        """Write a line of a piece."""
        piece.lines.add(len(self.lines))
        self.lines.append(text)

    def beside(self, piece: Piece) -> str:
        """Return a comment for the end of a line, or nothing."""
        if not self.chance(3):
            return ""
        piece.beside = self.comment()
        return " " * self.between(1, 3) + piece.beside

    # --- containers in block style

    def mapping(self, piece: Piece, indent: int, prefix: str, depth: int) -> None:
        """Write a mapping; `prefix` is what stands before its first key on the same line."""
        for number in range(self.between(1, 4)):
            kid = self.before(piece, indent, first=bool(prefix) and not number)
            key = self.pick(KEYS).format(n=self.next())
            lead = (prefix if prefix and not number else " " * indent) + key
            if self.chance(8):
                lead = self.complex_key(kid, lead, key, indent)
            elif self.chance(8):
                lead += " "
            self.value(kid, lead + ":", indent, depth, listed=False)
            if self.mergeable and piece.merge is None and not prefix and self.chance(6):
                piece.knot, piece.merge = True, len(self.lines)
                self.lines.append(f"{' ' * indent}<<: *{self.pick(self.mergeable)}")
        self.after(piece, indent)

    def complex_key(self, piece: Piece, lead: str, key: str, indent: int) -> str:
        """Write a key behind a question mark, and return what stands before the colon on the next line."""
        self.put(piece, lead.removesuffix(key) + "? " + key)
        return " " * indent

    def sequence(self, piece: Piece, indent: int, prefix: str, depth: int) -> None:
        """Write a sequence whose dashes stand in column `indent`."""
        for number in range(self.between(1, 4)):
            kid = self.before(piece, indent, first=bool(prefix) and not number)
            lead = (prefix if prefix and not number else " " * indent) + "-"
            self.value(kid, lead, indent, depth, listed=True)
        self.after(piece, indent)

    def before(self, piece: Piece, indent: int, *, first: bool) -> Piece:
        """Write what stands above an entry, and return its new piece."""
        kid = Piece()
        piece.kids.append(kid)
        if first:
            return kid
        if self.chance(5):
            self.lines.append("")
            if self.chance(2):
                self.free(piece, indent)
                self.lines.append("")
        for _ in range(self.pick([0, 0, 0, 1, 2])):
            kid.above[len(self.lines)] = self.comment()
            self.lines.append(" " * indent + kid.above[len(self.lines)])
        return kid

    def after(self, piece: Piece, indent: int) -> None:
        """Write a comment at the end of a nested container."""
        if piece.lines and not piece.compact and self.chance(6) and indent > self.column(piece):
            self.free(piece, indent)

    def free(self, piece: Piece, indent: int) -> None:
        """Write a comment that belongs to no entry."""
        piece.inner[len(self.lines)] = self.comment()
        self.lines.append(" " * indent + piece.inner[len(self.lines)])

    def column(self, piece: Piece) -> int:
        """Return the column in which a piece begins."""
        line = self.lines[min(piece.lines)]
        return len(line) - len(line.lstrip(" -"))

    # --- values

    def value(self, piece: Piece, lead: str, indent: int, depth: int, *, listed: bool) -> None:
        """Write the value of an entry behind `lead`."""
        if self.anchors and self.chance(6):
            piece.knot = piece.alias = True
            self.put(piece, f"{lead} *{self.pick(self.anchors)}{self.beside(piece)}")
            return
        kinds: list[Callable[..., None]] = [self.scalar] * 4 + [self.flow, self.flow_lines, self.block, self.folded]
        if depth < 3:
            kinds += [self.nested, self.nested, self.nested]
        if listed and depth < 3:
            kinds += [self.compact, self.compact]
        kind, name = self.pick(kinds), f"a{self.next()}"
        is_anchored = self.knotted and kind != self.compact and self.chance(4)
        kind(piece, f"{lead} &{name}" if is_anchored else lead, indent, depth, listed=listed)
        if is_anchored:
            piece.knot = True
            self.anchors.append(name)
            self.mergeable += [name] * piece.is_mapping

    def scalar(self, piece: Piece, lead: str, _indent: int, _depth: int, *, listed: bool) -> None:
        """Write a scalar on one line, or nothing at all."""
        constant = not listed and self.chance(6)
        text = str(self.pick(["", *CONSTANTS])) if constant else self.spelling()
        gap = " " * self.pick([1, 1, 1, 3]) if text else ""
        self.put(piece, lead + gap + text + self.beside(piece))

    def spelling(self) -> str:
        """Return a scalar like no other."""
        spelling: str = self.pick(SPELLINGS)
        return spelling.format(n=self.next())

    def flow(self, piece: Piece, lead: str, _indent: int, _depth: int, *, listed: bool) -> None:  # noqa: ARG002
        """Write a flow collection on one line."""
        piece.flow = True
        line = len(self.lines)
        text = self.flow_text(piece, line, 0)
        self.put(piece, f"{lead} {text}{self.beside(piece)}")

    def flow_text(self, piece: Piece, line: int, depth: int) -> str:
        """Return a flow collection; its kids are pieces on the same line."""
        piece.flow, parts = True, []
        brackets = self.pick(["[]", "{}"])
        for _ in range(self.between(0, 3)):
            kid = Piece(lines={line}, loose=True)
            piece.kids.append(kid)
            text = self.flow_text(kid, line, depth + 1) if depth < 1 and self.chance(5) else self.spelling()
            parts.append(f"k{self.next()}: {text}" if brackets == "{}" else text)
        space = " " * self.between(0, 1)
        return str(brackets[0] + space + ", ".join(parts) + space + brackets[1])

    def flow_lines(self, piece: Piece, lead: str, indent: int, _depth: int, *, listed: bool) -> None:  # noqa: ARG002
        """Write a flow collection of several lines, with one item or several in each."""
        piece.flow = True
        pad, brackets = " " * (indent + self.between(1, 4)), self.pick(["[]", "[]", "{}"])
        line, is_over, count = f"{lead} {brackets[0]}", self.chance(2), self.between(1, 4)
        trailing = self.chance(2)
        for number in range(count):
            kid = Piece(loose=True)
            piece.kids.append(kid)
            if is_over:
                line = self.new_line(piece, kid, line, pad)
            text = f"k{self.next()}: {self.spelling()}" if brackets == "{}" else self.spelling()
            comma = "," if trailing or number < count - 1 else ""
            if comma and self.chance(6):
                self.put(piece, f"{line}{text}{self.beside(kid)}")
                line, is_over = pad + comma + " ", False
            else:
                line += text + comma + self.beside(kid)
                is_over = bool(kid.beside) or self.chance(2)
                line += "" if is_over else " "
        if is_over:
            line = self.new_line(piece, piece, line, " " * (indent + 1))
        self.put(piece, line + brackets[1] + self.beside(piece))
        for kid in piece.kids:
            kid.lines = piece.lines

    def new_line(self, piece: Piece, kid: Piece, line: str, pad: str) -> str:
        """End a line of a flow collection, with comments below; return how the next begins."""
        self.put(piece, line)
        while self.chance(5):
            place = piece.inner if kid is piece else kid.above
            place[len(self.lines)] = self.comment()
            self.lines.append(self.pick([pad, ""]) + place[len(self.lines)])
        return pad

    def block(self, piece: Piece, lead: str, indent: int, _depth: int, *, listed: bool) -> None:  # noqa: ARG002
        """Write a literal or folded block scalar."""
        self.blocks += 1
        header = self.pick(BLOCKS)
        if self.chance(4):
            piece.fragile = self.comment()
            header += "  " + piece.fragile
        self.put(piece, f"{lead} {header}")
        pad = " " * (indent + self.between(1, 4))
        self.put(piece, f"{pad}text {self.next()}")
        for _ in range(self.between(0, 3)):
            extra = self.pick(["# text", "", "  deeper", "key: value", "- item"])
            self.put(piece, pad + extra if extra else "")
        self.put(piece, f"{pad}end")

    def folded(self, piece: Piece, lead: str, indent: int, _depth: int, *, listed: bool) -> None:  # noqa: ARG002
        """Write a plain or quoted scalar of two lines."""
        pad = " " * (indent + self.between(1, 4))
        quote = self.pick(["", "'", '"'])
        self.put(piece, f"{lead} {quote}over{self.next()} two")
        self.put(piece, f"{pad}lines{quote}")

    def nested(self, piece: Piece, lead: str, indent: int, depth: int, *, listed: bool) -> None:
        """Write a container in block style on the lines below."""
        self.put(piece, lead + self.beside(piece))
        if self.chance(2):
            piece.is_mapping = True
            self.mapping(piece, indent + self.between(2, 4), "", depth + 1)
        else:
            self.sequence(piece, indent + self.between(2 if listed else 0, 4), "", depth + 1)

    def compact(self, piece: Piece, lead: str, _indent: int, depth: int, *, listed: bool) -> None:  # noqa: ARG002
        """Write a container whose first entry stands behind the dash."""
        piece.compact = True
        piece.lines.add(len(self.lines))
        prefix = lead + " " * self.pick([1, 1, 2, 3])
        write = self.mapping if self.chance(2) else self.sequence
        write(piece, len(prefix), prefix, depth + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Changing
# ---------------------------------------------------------------------------------------------------------------------


class Session:
    """Random changes of a state, of a plain model, and of the record of what they may touch."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.model = read(document.data)
        self.root = document.root
        self.touched: set[int] = set()
        self.dropped: set[str] = set()
        self.ordered = True
        self.number = 10_000
        every = list(document.root.walk())
        self.knots = {line for piece in every if piece.knot and piece.alias for line in piece.lines}
        self.knots |= {piece.merge for piece in every if piece.merge is not None}
        self.tidied = by_name if any(piece.knot for piece in every) else unshare

    def change(self, data: Dice, state: Any, *, most: int = 4) -> None:
        """Apply some random changes."""
        for _ in range(data.between(1, most)):
            places = list(self._containers((), self.root, self.model))
            place, piece = places[data.between(0, len(places) - 1)]
            self._note_knots(place, piece)
            Change(self, data, piece, value_at(self.model, place), value_at(state, place)).apply()

    def _note_knots(self, place: tuple[Any, ...], piece: Piece) -> None:
        """What is written out in the place of an alias or a merge is in other lines."""
        chain = [self.root]
        for key in place:
            chain.append(chain[-1].kids[chain[-1].index(key)])
        if any(above.knot for above in chain) or any(below.knot for below in piece.walk()):
            self.touched |= self.knots
            self.ordered = self.ordered and not self.knots  # what a merge stood for is read first

    def _containers(self, place: tuple[Any, ...], piece: Piece, value: Any) -> Iterator[tuple[tuple[Any, ...], Piece]]:
        if not isinstance(value, dict | list):
            return
        yield place, piece
        for key, kid in zip(value if isinstance(value, dict) else range(len(value)), piece.kids, strict=True):
            yield from self._containers((*place, key), kid, value[key])

    # --- what a change touches

    def set(self, piece: Piece, old: Any, new: Any) -> None:
        """Note that an entry gets another value."""
        if same(old, new):
            return
        if (
            isinstance(old, dict)
            and isinstance(new, dict)
            and [k for k in old if k in new] == list(new)[: len(old.keys() & new.keys())]
        ):
            for key in [key for key in old if key not in new]:
                self.delete(piece, key)
            for key in new:
                if key in old:
                    self.set(piece.kids[piece.index(key)], old[key], new[key])
                else:
                    self.add(piece, len(piece.kids), new[key], key)
            return
        self.touched |= piece.lines
        self.dropped.add(piece.fragile)
        self._forget_inside(piece)
        fresh = self.fresh(new)
        piece.kids, piece.keys, piece.flow, piece.compact = fresh.kids, fresh.keys, False, False
        piece.knot = False

    def delete(self, piece: Piece, key: Any) -> None:
        """Note that an entry goes."""
        position = piece.index(key)
        gone = piece.kids.pop(position)
        self._forget(gone)
        if piece.keys is not None:
            piece.keys.pop(position)
        if not piece.kids:
            self.touched |= piece.lines
            if piece is not self.root:
                self._forget_inside(piece)
            piece.compact = False
        elif piece.compact and not position:
            self._moved(piece.kids[0])
        if piece.flow:
            self.touched |= piece.lines

    def add(self, piece: Piece, position: int, value: Any, key: Any = None) -> None:
        """Note that an entry comes."""
        if piece.flow or not piece.kids:
            self.touched |= piece.lines
        elif piece.compact and not position:
            self._moved(piece.kids[0])
        piece.kids.insert(position, self.fresh(value))
        if piece.keys is not None:
            piece.keys.insert(position, key)

    def reorder(self, piece: Piece, order: list[int]) -> None:
        """Note that items change places."""
        if order == sorted(order):
            return
        self.ordered = False
        if piece.compact:
            self._moved(piece.kids[0])
        piece.kids = [piece.kids[index] for index in order]
        if piece.compact:
            self._moved(piece.kids[0])
        if piece.flow:
            self.touched |= piece.lines

    def fresh(self, value: Any) -> Piece:
        """Return the piece of a value that is not in the file yet."""
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return Piece(kids=[self.fresh(item) for item in items], keys=list(value) if isinstance(value, dict) else None)

    def _moved(self, piece: Piece) -> None:
        """Note that the first line of an entry moves behind a dash or away from it."""
        piece.loose = True
        self.touched |= piece.lines | piece.above.keys()
        if piece.compact and piece.kids:
            self._moved(piece.kids[0])

    def _forget(self, piece: Piece) -> None:
        self.touched |= piece.lines | piece.above.keys()
        self.dropped |= {piece.beside, piece.fragile, *piece.above.values()}
        self._forget_inside(piece)

    def _forget_inside(self, piece: Piece) -> None:
        self.touched |= piece.inner.keys()
        self.dropped |= set(piece.inner.values())
        for kid in piece.kids:
            self._forget(kid)

    # --- what must be left

    def check(self, after: bytes) -> None:
        """Assert values, untouched lines, and comments beside their entries."""
        assert same(self.tidied(read(after)), self.tidied(self.model))
        assert same(self.tidied(read(after, "pyyaml")), self.tidied(self.model))
        strict_reader.assert_valid(self.document.data, after, self.model)
        self._check_lines(after)
        outline = Outline(after)
        written = "\n".join(text for _, text in outline.comments)
        kept = [text for _, text in Outline(self.document.data).comments if text not in self.dropped]
        assert not [text for text in kept if text not in written], after.decode()
        self._check_comments(outline, (), self.root)

    def _check_lines(self, after: bytes) -> None:
        before = [line.rstrip(b"\r\n") for line in lines_of(self.document.data)]
        wanted = [line for number, line in enumerate(before) if line.strip() and number not in self.touched]
        found = [line.rstrip(b"\r\n") for line in lines_of(after)]
        if not self.ordered:
            assert not Counter(wanted) - Counter(found), after.decode()
            return
        rest = iter(found)
        for line in wanted:
            assert line in rest, f"{line.decode()!r} is gone or out of order in\n{after.decode()}"

    def _check_comments(self, outline: Outline, place: tuple[Any, ...], piece: Piece) -> None:
        for key, kid in zip(piece.keys if piece.keys is not None else range(len(piece.kids)), piece.kids, strict=True):
            here = (*place, key)
            if not kid.loose and (kid.above or kid.beside):
                entry = outline.entry(here)
                own = [outline.lines[line].strip() for line in outline.own_comments(entry)]
                assert own[len(own) - len(kid.above) :] == list(kid.above.values()) or not outline.alone(entry), here
                near = "".join(outline.lines[entry.first : entry.last + 1])
                assert kid.beside in near, here
            self._check_comments(outline, here, kid)


class Unrecorded(Session):
    """Random changes of any file, without a record of lines and comments: only the values are compared."""

    def __init__(self, data: bytes) -> None:
        super().__init__(Document(data, Piece()))

    def _note_knots(self, place: tuple[Any, ...], piece: Piece) -> None:
        """Note nothing."""

    def set(self, piece: Piece, old: Any, new: Any) -> None:
        """Note nothing."""

    def delete(self, piece: Piece, key: Any) -> None:
        """Note nothing."""

    def add(self, piece: Piece, position: int, value: Any, key: Any = None) -> None:
        """Note nothing."""

    def reorder(self, piece: Piece, order: list[int]) -> None:
        """Note nothing."""

    def _containers(self, place: tuple[Any, ...], piece: Piece, value: Any) -> Iterator[tuple[tuple[Any, ...], Piece]]:
        if not isinstance(value, dict | list):
            return
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        yield place, Piece(keys=keys if isinstance(value, dict) else None, kids=[Piece() for _ in keys])
        for key in keys:
            yield from self._containers((*place, key), piece, value[key])


class Change:
    """One random change of one container."""

    def __init__(self, session: Session, data: Dice, piece: Piece, model: Any, node: Any) -> None:
        self.session, self.data, self.piece, self.model, self.node = session, data, piece, model, node

    def apply(self) -> None:
        """Draw an operation that the container can do, and do it everywhere."""
        if isinstance(self.model, dict):
            names = ["new", "update", "clear"] + (["set", "set", "remove", "pop", "assign"] if self.model else [])
        else:
            names = ["append", "insert", "extend", "splice", "reverse", "sort", "clear"]
            names += ["replace", "replace", "drop", "drop", "every_second"] if self.model else []
        getattr(self, "do_" + self.data.pick(names))()

    def value(self, *, deep: bool = True) -> Any:
        """Draw a value like no other in the state."""
        self.session.number += 1
        number = self.session.number
        kinds = ["int", "hard", "hard", "float"] + (["list", "dict", "constant"] if deep else [])
        kind = self.data.pick(kinds)
        if kind == "list":
            return [self.value(deep=False) for _ in range(self.data.between(0, 2))]
        if kind == "dict":
            return {f"n{index}": self.value(deep=False) for index in range(self.data.between(0, 2))}
        if kind == "constant":
            return {"c": self.data.pick([None, True, "", "yes", 1e16]), "n": number}
        if kind == "hard":
            return self.data.pick(HARD).format(n=number)
        return number if kind == "int" else number + 0.5

    def key(self) -> Any:
        """Draw a key of the mapping."""
        return self.data.pick(list(self.model))

    def index(self, *, end: int = 0) -> int:
        """Draw an index of the list, counted from the front or from the back."""
        return self.data.between(-len(self.model), len(self.model) - 1 + end)

    def both(self, act: Callable[[Any], Any]) -> None:
        """Do the same with the state and with the model; the results are the same too."""
        found, expected = act(self.node), act(self.model)
        if expected is not self.model and expected is not None:
            found = plain(found) if hasattr(found, "copy") and not isinstance(found, dict | list) else found
            assert same(found, expected)

    # --- mappings

    def do_new(self) -> None:
        """Add a key."""
        value, key = self.value(), f"new{self.session.number}"
        self.session.add(self.piece, len(self.piece.kids), value, key)
        self.both(lambda node: node.__setitem__(key, unshare(value)))

    def do_set(self) -> None:
        """Change a key."""
        value, key = self.value(), self.key()
        self.session.set(self.piece.kids[self.piece.index(key)], self.model[key], value)
        self.both(lambda node: node.__setitem__(key, unshare(value)))

    def do_remove(self) -> None:
        """Delete a key."""
        key = self.key()
        self.session.delete(self.piece, key)
        self.both(lambda node: node.__delitem__(key))

    def do_pop(self) -> None:
        """Pop a key."""
        key = self.key()
        self.session.delete(self.piece, key)
        self.both(lambda node: node.pop(key))

    def do_update(self) -> None:
        """Change one key and add one."""
        items = {f"up{self.session.number}": self.value()}
        if self.model:
            items = {self.key(): self.value(), **items}
        self._merge({**self.model, **items})
        self.both(lambda node: node.update(unshare(items)))

    def do_assign(self) -> None:
        """Assign a container that is nearly the one that is there, where there is one below."""
        places = [key for key, item in self.model.items() if isinstance(item, dict) and item]
        if not places:
            return
        key = self.data.pick(places)
        inside = self.data.pick(list(self.model[key]))
        value = {**unshare(self.model[key]), inside: self.value(), "more": self.session.number}
        self.session.set(self.piece.kids[self.piece.index(key)], self.model[key], value)
        self.both(lambda node: node.__setitem__(key, unshare(value)))

    def _merge(self, new: dict[Any, Any]) -> None:
        for key, value in new.items():
            if key in self.model:
                self.session.set(self.piece.kids[self.piece.index(key)], self.model[key], value)
            else:
                self.session.add(self.piece, len(self.piece.kids), value, key)

    # --- both

    def do_clear(self) -> None:
        """Delete everything."""
        for key in list(self.model) if isinstance(self.model, dict) else [0] * len(self.model):
            self.session.delete(self.piece, key)
        self.both(lambda node: node.clear())

    # --- lists

    def do_replace(self) -> None:
        """Change an item."""
        value, index = self.value(), self.index()
        self.session.set(self.piece.kids[index], self.model[index], value)
        self.both(lambda node: node.__setitem__(index, unshare(value)))

    def do_drop(self) -> None:
        """Pop an item."""
        index = self.index()
        self.session.delete(self.piece, index)
        self.both(lambda node: node.pop(index))

    def do_append(self) -> None:
        """Add an item at the end."""
        value = self.value()
        self.session.add(self.piece, len(self.piece.kids), value)
        self.both(lambda node: node.append(unshare(value)))

    def do_extend(self) -> None:
        """Add two items at the end."""
        values = [self.value(), self.value()]
        for value in values:
            self.session.add(self.piece, len(self.piece.kids), value)
        self.both(lambda node: node.extend(unshare(values)))

    def do_insert(self) -> None:
        """Add an item somewhere."""
        value, index = self.value(), self.index(end=1)
        self.session.add(self.piece, index if index >= 0 else index + len(self.model), value)
        self.both(lambda node: node.insert(index, unshare(value)))

    def do_splice(self) -> None:
        """Replace a slice by new items."""
        start = self.data.between(0, len(self.model))
        stop = self.data.between(start, len(self.model))
        values = [self.value() for _ in range(self.data.between(0, 2))]
        for _ in range(stop - start):
            self.session.delete(self.piece, start)
        for offset, value in enumerate(values):
            self.session.add(self.piece, start + offset, value)
        self.both(lambda node: node.__setitem__(slice(start, stop), unshare(values)))

    def do_every_second(self) -> None:
        """Delete an extended slice."""
        for index in range(0, len(self.model), 2)[::-1]:
            self.session.delete(self.piece, index)
        self.both(lambda node: node.__delitem__(slice(None, None, 2)))

    def do_reverse(self) -> None:
        """Turn the list around."""
        self.session.reorder(self.piece, list(range(len(self.model)))[::-1])
        self.both(lambda node: node.reverse())

    def do_sort(self) -> None:
        """Sort by what items look like."""
        self.session.reorder(self.piece, sorted(range(len(self.model)), key=lambda index: repr(self.model[index])))
        self.both(lambda node: node.sort(key=repr))
