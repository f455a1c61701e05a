"""Logs of states elsewhere than in a file: one module for each engine, imported only by those who use it.

A *log* holds a text (the YAML of a snapshot) at a position, and the records behind it. All its writers see one order:
a record is appended behind the last position that its writer knew, or not at all. What an engine must do is told by
`Log`; `persistedstate_logs.redis` shows how, and `persistedstate_logs.asking` has what is the same for all servers.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote


class Position(NamedTuple):
    """A place in a log. The nonce tells it from that of the same number in a log that went another way."""

    number: int
    nonce: str


def drawn(number: int) -> Position:
    """Return a position of which there is no other."""
    return Position(number, str(int.from_bytes(os.urandom(8), "big") >> 1))


#: What a person is told whose address cannot be taken apart.
QUOTED = "in passwords and names, write / ? # @ as %2F %3F %23 %40"


def quoted(text: str) -> str:
    """Return a part of an address as it stands there."""
    return quote(text, safe="!$'()*,;=:")


class Contents(NamedTuple):
    """All of a log: a text, the records behind it, and the position of the last of them."""

    text: bytes
    records: list[bytes]
    position: Position


class News(NamedTuple):
    """The records behind a position that was asked for, and the position of the last of them."""

    records: list[bytes]
    position: Position


class Overtaken(Exception):  # noqa: N818 - the usual course of things, no error
    """Nothing was written: another writer was first, or has the turn (`is_held`). Read on, or take the turn."""

    def __init__(self, *, is_held: bool) -> None:
        super().__init__("another writer has the turn" if is_held else "another writer was first")
        self.is_held = is_held


class Unknown(Exception):  # noqa: N818
    """Whether it was written is not known. Doing the same again settles that; until then nothing else is written."""


class Forked(Exception):  # noqa: N818
    """The log does not hold what it held: it went back, or another way, behind the position that was told."""


class Pending:
    """An entry whose position was drawn; kept when it is settled, too, so that doing the same again says the same."""

    def __init__(self, entry: bytes, after: Position, *, edit: bool) -> None:
        self.what = (entry, after, edit)
        self.id = drawn(after.number + 1)
        #: How often it was sent without an answer, since there was one that says for certain what became of it.
        self.unanswered = 0
        #: The turn in which it was sent first, since then.
        self.turn = ""
        #: It was asked for once.
        self.is_first = True

    def is_open(self, turn: str) -> bool:
        """Tell whether it may still arrive; nothing does that was sent in a turn which is lost."""
        return self.unanswered > 0 and not (turn and self.turn == turn)


class Log(Protocol):
    """What a state asks of an engine. Used by one thread at a time, `watch` excepted.

    What the engine refuses is an OSError or a StateError; nothing was changed then.
    """

    #: The address, spelled the same whoever gives it, with nothing secret, and without `settings`.
    path: str
    #: The options in the address that say how the state is used, and not where it is.
    settings: Any

    def open(self, wait: float) -> Contents:
        """Return all of it; make an empty one where there is none. Tries for `wait` seconds to reach it."""

    def append(self, record: bytes, after: Position, *, last: bool = False) -> Position:
        """Add a record behind the last position, and return its position; raises Overtaken, Unknown, Forked.

        last: the turn ends with it. The same record behind the same position again is the same one, added once.
        Who has lost its turn is Overtaken (`is_held`), whoever has it now.
        """

    def replace(self, text: bytes, after: Position, *, edit: bool) -> Position:
        """Put a text in the place of all up to a position, and return the position of the text.

        edit: it says something else than what it replaces, so the position must be the last (else Overtaken), and
        gets a follower; otherwise it says the same, and the position may be any that is still there.
        """

    def read(self, after: Position) -> News | Contents:
        """Return the records behind a position; all, where that is too old. Raises Forked."""

    def take_turn(self, wait: float) -> None:
        """Have the turn, until `end_turn`: nobody else appends. Raises TimeoutError after `wait` seconds.

        Where it can be lost while its holder sleeps, others append then; to go on, that one has to take another turn.
        """

    def end_turn(self) -> None:
        """Let others have the turn; may be called again, and by one who has it not."""

    def sync(self) -> None:
        """Wait until what was appended is as safe as was asked for; raises OSError where it is not."""

    def watch(self, after: Position, timeout: float) -> bool:
        """Wait until there is something behind a position, at most so many seconds; tell whether there is."""

    def close(self) -> None:
        """Let the engine go; what was appended stays."""
