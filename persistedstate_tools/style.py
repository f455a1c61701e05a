"""How changes are printed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from persistedstate import _GONE, _flow_text
from persistedstate_tools.paths import path_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistedstate_tools.differences import Change


class Style:
    """How standard output is written: with colours on a terminal, with arrows where the encoding has them."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.has_colours = self.is_terminal and not os.environ.get("NO_COLOR")
        self.arrow, self.more = "→", "…"
        try:
            (self.arrow + self.more).encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            self.arrow, self.more = "->", "..."

    def paint(self, text: str, colour: str) -> str:
        """Return a text in a colour: red, green, yellow or dim."""
        code = {"red": 31, "green": 32, "yellow": 33, "dim": 2}[colour]
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_colours else text

    def line(self, change: Change) -> str:
        """Write a change on one line: `~ last_id: 41 → 42`."""
        path = path_text(change.path)
        old, new = ("" if side is _GONE else _flow_text(side, quoted=False) for side in (change.old, change.new))
        if change.note:
            return f"~ {path}: {change.note}"
        if change.old is _GONE or change.new is _GONE:
            return f"{'+' if change.old is _GONE else '-'} {path}: {old}{new}"
        return f"~ {path}: {old} {self.arrow} {new}"

    def print(self, changes: Iterable[Change]) -> None:
        for change in changes:
            line = self.line(change)
            print(self.paint(line, {"+": "green", "-": "red", "~": "yellow"}[line[0]]))
        sys.stdout.flush()
