"""What the engines that are servers share: how they are asked until it is known what became of a change."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from persistedstate import StateError
from persistedstate_logs import Contents, Forked, News, Overtaken, Pending, Position, Unknown, drawn

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between two tries to reach a server, and between two looks of who watches.
PAUSE = 0.05


class Link:
    """A connection to a server; after an error or interrupt, another one.

    greet: is called with it when it is there, and raises where the server is not what it must be.
    """

    def __init__(self, address: Any, greet: Callable[[Any], None]) -> None:
        self._address, self._greet = address, greet
        self._pid = os.getpid()
        self._connection: Any = None
        #: A request is under way, or was when an error or interrupt came.
        self._is_busy = False
        #: Answers that nobody waited for.
        self._owed = 0

    def connect(self) -> None:
        """Connect, if that has to be done, and see whether the server is what it must be."""
        if self._connection is not None and not self._is_busy and self._pid == os.getpid() and not self._is_ended():
            return
        self.drop()
        self._pid, self._is_busy = os.getpid(), True
        self._connection = self._connected()
        self._is_busy = False
        try:
            self._greet(self)
        except BaseException:
            self.drop()
            raise

    def _connected(self) -> Any:
        """Return a new connection."""
        raise NotImplementedError

    def _is_ended(self) -> bool:
        """Tell whether the server is known to have ended the connection meanwhile."""
        return False

    def _asked(self, count: int, *request: Any) -> list[Any]:
        """Send a request, and return its answers, so many."""
        self._is_busy, connection = True, self._connection
        self._send(*request)
        while self._owed:
            self._owed -= 1
            self._receive(connection)
        answers = [self._receive(connection) for _ in range(count)]
        self._is_busy = False
        return answers

    def tell(self, count: int, *request: Any) -> None:
        """Send a request whose answers, so many, do not matter: they are read before those of the next."""
        self._is_busy = True
        self._send(*request)
        self._owed += count
        self._is_busy = False

    def _send(self, *request: Any) -> None:
        raise NotImplementedError

    def _receive(self, connection: Any) -> Any:
        """Return an answer, also where that is an error; raises where there is none, or the connection is another."""
        raise NotImplementedError

    def drop(self) -> None:
        """Let the connection go; in a forked child the parent's stays open."""
        connection, self._connection = self._connection, None
        self._is_busy, self._owed = False, 0
        if connection is not None:
            self._let_go(connection)

    def _let_go(self, connection: Any) -> None:
        raise NotImplementedError


class ServerLog:
    """A log on a server, see `persistedstate_logs.Log`, as far as it is the same for all servers.

    path, settings: see Log. timeout: seconds within which the server must answer. links: two connections, for all
    requests and for `watch`.
    """

    def __init__(self, path: str, settings: Any, timeout: float, links: list[Any]) -> None:
        self.path, self.settings, self._timeout = path, settings, timeout
        self._link, self._watching = links
        #: The entry that was sent last.
        self._pending: Pending | None = None
        #: The turn that may be ours, another one each time; empty where it cannot.
        self._turn = ""
        #: The position that was told last.
        self._at: Position | None = None
        #: What came along with the last answer for a `read` that follows, and the position behind which that is.
        self._ahead: tuple[Position, News | Contents] | None = None

    def append(self, record: bytes, after: Position, *, last: bool = False) -> Position:
        """See Log."""
        return self._enter(record, after, last=last)

    def _enter(self, entry: bytes, after: Position, *, edit: bool = False, last: bool = False) -> Position:
        """Add an entry to the log; where that is already tried, find out how it ended."""
        pending, deadline = self._drawn(entry, after, edit=edit), time.monotonic() + self._timeout
        try:
            while not self._is_added(pending, deadline, last=last):
                if time.monotonic() >= deadline:
                    raise Unknown(f"{self.path}: whether this change was written cannot be told yet")
                time.sleep(PAUSE)  # what was sent before may arrive when the other's turn ends
        except (Overtaken, Forked):
            pending.unanswered = 0
            raise
        except (OSError, StateError) as error:
            if pending.unanswered:
                raise Unknown(f"{self.path}: whether this change was written is not known: {error}") from error
            raise
        pending.unanswered = 0
        self._at = pending.id
        return pending.id

    def _drawn(self, entry: bytes, after: Position, *, edit: bool) -> Pending:
        pending = self._pending
        if pending is None or pending.what != (entry, after, edit):
            if pending is not None and pending.unanswered:
                raise Unknown(f"{self.path}: how an earlier change ended is not known; that has to be settled first")
            pending = self._pending = Pending(entry, after, edit=edit)
        else:
            pending.is_first = False
        pending.turn = pending.turn if pending.unanswered else self._turn
        return pending

    def _is_added(self, pending: Pending, deadline: float, *, last: bool) -> bool:
        """Send an entry; tell whether it is in the log. Raises Overtaken, Forked where it never will be, else Unknown.

        False: another one has the turn, and a try of before may arrive when that ends.
        """
        raise NotImplementedError

    def read(self, after: Position) -> News | Contents:
        """See Log."""
        if self._ahead is not None and self._ahead[0] == after:
            news, self._ahead = self._ahead[1], None
        else:
            news = self._read(after)
        self._at = news.position
        return news

    def _read(self, after: Position) -> News | Contents:
        raise NotImplementedError

    def _new_turn(self) -> str:
        """Return a turn that is to be taken."""
        self._turn = drawn(0).nonce
        return self._turn

    def end_turn(self) -> None:
        """See Log. Does not wait for an answer; where it fails, the turn expires or ends with the connection."""
        if self._turn:
            with suppress(Exception):
                self._link.connect()
                self._tell_end()
            self._turn = ""

    def _tell_end(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """See Log."""
        self._link.drop()
        self._watching.drop()

    # -- Requests --

    def _surely(self, ask: Callable[[], Any], deadline: float | None, pending: Pending | None = None) -> Any:
        """Return an answer, which may be an error; try again until a time, or for `timeout`, where that may pass.

        Notes whether an entry may have reached the server, if what comes back is not an answer. Raises OSError,
        StateError.
        """
        deadline = time.monotonic() + self._timeout if deadline is None else deadline
        self._ahead = None
        while True:
            try:
                self._link.connect()
                if pending is not None:
                    pending.unanswered += 1
                answer = ask()
                if pending is not None:
                    pending.unanswered -= 1
                if time.monotonic() >= deadline or not self._passes(answer):
                    return answer
            except Exception as error:
                if time.monotonic() >= deadline or not self._passes(error):
                    raise self._refused(error) from error
            self._link.drop()  # what was a primary may be none
            time.sleep(PAUSE)

    def _passes(self, answer: Any) -> bool:
        """Tell whether an answer, or the lack of one, may be another one soon."""
        raise NotImplementedError

    def _refused(self, error: Exception) -> Exception:
        """Return what a server's answer, or the lack of one, is to the user."""
        raise NotImplementedError
