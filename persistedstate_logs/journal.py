"""A log in the place of a state file: what the trees of `persistedstate` ask of a journal, by what a `Log` can do.

The text of the log and its records, one behind the other, are what the file would hold.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from persistedstate import StateConflict, StateForked, StateUnknown
from persistedstate_logs import Contents, Forked, News, Overtaken, Position, Unknown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from persistedstate_logs import Log


#: In the place of how a file looked when its content was read: what a person made of a snapshot is to be written.
EDITED = "edited"
#: How often a change is tried whose turn is lost before it is written.
_TURNS = 5


class LogJournal:
    """A state in a log, written in turns: what a tree asks of a `_SharedJournal`, without a file.

    Args:
        engine: what makes the log of an address, by `url`, `fsync` and `readonly`.
        url: the address.
        fsync, readonly: as `_fsync` and `_readonly`.
    """

    is_new = is_half_rewritten = is_suspicious = False
    is_renamed = True
    unfinished = basis = None
    #: A person does not write here behind the back of the writers.
    due_at = math.inf
    past: Any = ()

    def __init__(self, engine: Callable[..., Any], url: str, *, fsync: bool | float, readonly: bool = False) -> None:
        self.fsync = fsync
        self._anew = partial(LogJournal, engine, url, fsync=fsync, readonly=readonly)
        self.log: Log = engine(url, fsync=fsync, readonly=readonly)
        self.path = self.name = self.log.path
        self.settings = fsync, self.log.settings
        self.descriptor, self.size, self.data = -1, 0, b""
        self.position = Position(0, "")
        #: The turn is ours; it is, or perhaps.
        self.is_in_turn = self._is_taken = False
        #: How many have the turn, one inside of the other: a single one writes once.
        self.depth = 0
        #: What is being written: how, and the size when it is. Kept while it is open how that ended.
        self._writing: tuple[Callable[[], Position], int] | None = None
        self._is_unknown = False
        self._text = b""
        #: The log lost what was acknowledged: memory stays as it is, and nothing is written any more.
        self._fork: StateForked | None = None

    def anew(self) -> LogJournal:
        """Return another one for the same log, not open."""
        journal = self._anew()
        journal.depth = self.depth
        return journal

    def open(self, mode: int | None, deadline: float) -> bool:  # noqa: ARG002 - there are no permission bits
        """Reach the log and read it."""
        self._know(self.log.open(max(0.0, deadline - time.monotonic())))
        self.descriptor = 0
        return True

    def _know(self, contents: Contents) -> bytes:
        self.data = contents.text + b"".join(contents.records)
        self.position, self.size = contents.position, len(self.data)
        return self.data

    def accept(self, size: int) -> None:
        """Go on behind all there is: no record of a log is ever torn."""
        self.size, self.data = size, b""

    # -- Turns --

    def take_turn(self, wait: float = math.inf) -> None:
        """Wait until nobody else may write, until `end_turn`; raises OSError where the engine cannot be reached.

        wait: seconds after which a TimeoutError is raised.
        """
        self._refuse_fork()
        self._is_taken = True
        self._ask(self.log.take_turn, wait)
        self._is_taken = self.is_in_turn = True  # again: a signal handler may have had a turn of its own

    def end_turn(self) -> None:
        """Let others write; may be called again."""
        if self._is_taken:
            self.is_in_turn = False
            self.log.end_turn()
            self._is_taken = False

    def news(self, *, is_doubtful: bool) -> tuple[bytes, bool] | None:
        """Return what others wrote, records, or, as the second part tells, all there is; None for nothing."""
        self._refuse_fork()
        if self._writing is not None:
            is_doubtful = True
            self._settle()
        news = self._ask(self.log.open, 0.0) if is_doubtful else self._ask(self.log.read, self.position)
        if isinstance(news, Contents):
            return self._know(news), True
        self.position = news.position
        data = b"".join(news.records)
        self.size += len(data)
        return (data, False) if data else None

    # -- Writing --

    def append(self, data: bytes) -> None:
        """Add a record.

        Raises StateConflict where the turn was lost meanwhile, OSError where nothing was written, StateUnknown where
        that is open.
        """
        self._write(partial(self.log.append, data, self.position, last=self.depth == 1), self.size + len(data))

    def landed(self, offset: int, data: bytes) -> bool:  # noqa: ARG002 - the log knows it
        """After an interrupted `append`: tell whether the record was added."""
        if self._is_unknown:
            self._raise_unknown()
        self._settle()
        return self.size > offset

    def _settle(self) -> None:
        """Find out how a write ended, by doing the same again: a log does it once."""
        if self._writing is not None:
            with suppress(StateConflict):
                self._write(*self._writing)

    def _write(self, write: Callable[[], Position], size: int) -> None:
        self._writing = write, size
        self._is_unknown = False
        try:
            self.position = self._written(write)
            self.size = size
        except Unknown as error:
            self._is_unknown = True
            self._raise_unknown(error)
        except Overtaken:
            self._writing = None
            reason = "another process had the turn before this one had written; repeat the statement or transaction"
            raise StateConflict(self.path, reason) from None
        except Forked as error:
            self._writing = None
            self._refuse_fork(error)
        except Exception:
            self._writing = None
            raise
        self._writing = None

    def _written(self, write: Callable[[], Position]) -> Position:
        """Write, and return the position; in another turn, where ours was lost and nobody wrote anything since."""
        for _ in range(_TURNS):
            try:
                return write()
            except Overtaken as overtaken:
                if not (overtaken.is_held and self.is_in_turn):
                    raise
            self.log.take_turn(math.inf)
            if self.log.read(self.position) != News([], self.position):
                break
        raise Overtaken(is_held=True)

    def _raise_unknown(self, error: Exception | None = None) -> NoReturn:
        reason = "whether this change was written is not known, because no answer came; the next change finds out first"
        raise StateUnknown(self.path, f"{reason}, and refresh() does") from error

    def replace(self, data: bytes, basis: object) -> None:
        """Put a snapshot in the place of all there is; the first one, and one that was edited, say something new."""
        is_edit = basis is EDITED or not self.size
        self._write(partial(self.log.replace, data, self.position, edit=is_edit), len(data))
        self._text = data

    def holds(self, data: bytes) -> bool:
        """Tell whether the log was last renewed with this content."""
        return self._writing is None and self._text == data and self.size == len(data)

    def sync(self) -> None:
        """Wait until what was appended is as safe as `_fsync` says."""
        self._ask(self.log.sync)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Forked as error:
            self._refuse_fork(error)

    def _refuse_fork(self, error: Forked | None = None) -> None:
        if error is not None:
            reason = "the server lost changes that it had acknowledged, or has those of somebody else in their place"
            advice = "this object still holds them: save what you need, by `plain(STATE)`, then close and open it again"
            self._fork = StateForked(self.path, f"{reason}; {advice}")
        if self._fork is not None:
            raise StateForked(self._fork.path, self._fork.reason)

    # -- What is about files --

    def is_foreign(self) -> bool:
        """Tell that no person wrote it."""
        return False

    def recover(self) -> None:
        """Do nothing: a snapshot is there or not."""

    def past_texts(self) -> list[tuple[str, str, bool]]:
        """Return no older snapshots: nobody saves what they read in one."""
        return []

    def kept_aside(self) -> str:
        """Return that nothing was."""
        return ""

    def is_same_file(self, status: os.stat_result) -> bool:  # noqa: ARG002
        """Tell that it is no file."""
        return False

    def become_alone(self) -> bool:
        """Tell that others may come: closing needs no server."""
        return False

    def stay(self) -> None:
        """Let others come."""

    def close(self) -> None:
        """Let the log go."""
        self.end_turn()
        self.leave()

    def leave(self) -> None:
        """Let the log go in a forked child: the turn is the parent's."""
        self.descriptor, self.is_in_turn, self._is_taken = -1, False, False
        self.log.close()
