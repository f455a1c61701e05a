"""The log of a state in PostgreSQL (14 or later): `postgresql://HOST:PORT/DATABASE/NAME`.

Two tables, made on first use where the search path has none, serve all states of a database:

| table                    | one row for each                                                                         |
|--------------------------|------------------------------------------------------------------------------------------|
| `persistedstate_texts`   | state: the `layout` of its rows; the `text`, and the number `at` which it was made; the   |
|                          | number up to which records go next, and since when (`mark`, `marked`)                     |
| `persistedstate_records` | position, a number and a nonce that its writer drew, with the record that led to it; none |
|                          | where a person's text did, or at the beginning                                            |

A record is inserted behind the row of the position before, and the primary key admits one of each number: that is the
comparison which keeps writers apart. It says the same when it is sent again, so a reply that was lost is asked for
again with the nonce that was drawn before. Records are kept for half a minute after the text that holds them.

The turn is an advisory lock of the session, so it ends with the connection; while it is held, others add nothing. The
server ends a session that sleeps with it. What belongs to a turn is added in the session that has it, or not at all.

`_fsync` sets `synchronous_commit`: with True, a change is on the disk, and on that of each synchronous standby.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import selectors
import time
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from persistedstate import StateError, _shown
from persistedstate_logs import QUOTED, Contents, Forked, News, Overtaken, Pending, Position, Unknown, drawn, quoted
from persistedstate_logs.asking import PAUSE, Link, ServerLog

_LAYOUT = 1
#: The first version whose sessions end when they sleep (`idle_session_timeout`).
_OLDEST = 140000
#: Seconds for which records are kept behind the text that holds them.
_KEPT = 30

# ---- Statements ----

#: `$1` is always the name. Whoever has the turn, or waits for it, keeps others from adding anything.
_MAKE = (
    """
CREATE TABLE IF NOT EXISTS persistedstate_texts (
    name text PRIMARY KEY, layout bigint NOT NULL, text bytea NOT NULL, at bigint NOT NULL,
    mark bigint, marked timestamptz)
""",
    """
CREATE TABLE IF NOT EXISTS persistedstate_records (
    name text, number bigint, nonce bigint NOT NULL, record bytea, PRIMARY KEY (name, number))
""",
)

_BEGIN = """
WITH made AS (INSERT INTO persistedstate_texts VALUES ($1::text, LAYOUT, '', 1)
              ON CONFLICT DO NOTHING RETURNING name)
INSERT INTO persistedstate_records SELECT name, 1, $2::bigint FROM made
""".replace("LAYOUT", str(_LAYOUT))

#: All of a state: the first row has the text and its position.
_OPEN = """
SELECT layout, number, nonce, record, CASE WHEN number = at THEN text END
FROM persistedstate_texts AS t LEFT JOIN persistedstate_records AS r ON r.name = t.name AND number >= at
WHERE t.name = $1::text ORDER BY number
"""

#: The same from a position on, without the text.
_READ = """
SELECT layout, number, nonce, record
FROM persistedstate_texts AS t LEFT JOIN persistedstate_records AS r ON r.name = t.name AND number >= $2::bigint
WHERE t.name = $1::text ORDER BY number
"""

#: `$7` is the turn that it belongs to, or empty.
_APPEND = """
INSERT INTO persistedstate_records (name, number, nonce, record)
SELECT name, number + 1, $4::bigint, $5::bytea
FROM persistedstate_texts AS t JOIN persistedstate_records AS r USING (name)
WHERE name = $1::text AND number = $2::bigint AND nonce = $3::bigint AND layout = LAYOUT
    AND CASE $7::text WHEN '' THEN pg_try_advisory_xact_lock_shared($6::bigint)
        ELSE $7::text = current_setting('persistedstate.turn', true) END
ON CONFLICT DO NOTHING RETURNING number
""".replace("LAYOUT", str(_LAYOUT))

_EDIT = """
WITH entered AS (APPEND)
UPDATE persistedstate_texts SET text = $8::bytea, at = number FROM entered WHERE name = $1::text RETURNING at
""".replace("APPEND", _APPEND)

#: Every `$5` seconds, the records go that were behind the text so long ago.
_VACUUM = """
WITH before AS (
    SELECT mark, marked IS NULL OR abs(extract(epoch FROM now() - marked)) >= $5::bigint AS is_due
    FROM persistedstate_texts WHERE name = $1::text
), renewed AS (
    UPDATE persistedstate_texts AS t SET text = $4::bytea, at = number,
        mark = CASE WHEN is_due THEN number ELSE t.mark END, marked = CASE WHEN is_due THEN now() ELSE marked END
    FROM persistedstate_records AS r, before
    WHERE t.name = $1::text AND r.name = t.name AND number = $2::bigint AND nonce = $3::bigint
        AND at < number AND layout = LAYOUT RETURNING at
), trimmed AS (
    DELETE FROM persistedstate_records AS r USING before, renewed
    WHERE name = $1::text AND is_due AND number < before.mark
) SELECT at FROM renewed
""".replace("LAYOUT", str(_LAYOUT))

#: A write that changes nothing; its commit waits for the disks, also for what another session wrote before.
_TOUCH = "SELECT pg_logical_emit_message(true, 'persistedstate', '')"

#: `$4` is the turn: a number that no other one has, with a lock of its own, by which others see whether it goes on.
_LOCK = """
SELECT set_config('lock_timeout', $1::text, true), set_config('idle_session_timeout', $2::text, false),
    pg_advisory_lock($3::bigint), pg_advisory_lock($4::text::bigint), set_config('persistedstate.turn', $4::text, false)
"""
_UNLOCK = """
SELECT pg_advisory_unlock_all(), set_config('idle_session_timeout', '0', false),
    set_config('persistedstate.turn', '', false)
"""
#: One row if no other session has the turn.
_IS_LOST = "SELECT 1 WHERE pg_try_advisory_xact_lock_shared($1::text::bigint)"

#: Sets what a session needs, and asks what the server is.
_GREET = """
SELECT set_config('synchronous_commit', CASE
        WHEN $1::text = 'off' AND ($2::bigint = 0 OR w.setting::bigint * 3 <= $2::bigint) THEN 'off'
        WHEN current_setting('synchronous_commit') = 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
    set_config('statement_timeout', '0', false), set_config('idle_session_timeout', '0', false),
    set_config('default_transaction_isolation', 'read committed', false),
    (current_setting('server_version_num')::bigint), pg_is_in_recovery()::text,
    current_setting('transaction_read_only'), current_setting('fsync')
FROM pg_settings AS w WHERE w.name = 'wal_writer_delay'
"""

# ---- Addresses ----

_FORM = "postgresql://HOST:PORT/DATABASE/NAME"
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d+)?")
#: The options of an address that are ours: numbers of seconds. The others are those of libpq.
_OPTIONS = ("lease", "timeout")
#: What stands in the address itself.
_PLACE = ("host", "port", "user", "dbname")


class _Address(NamedTuple):
    """Where a state is.

    path: the same for all spellings, without what is secret. lease: seconds after which a sleeper loses its turn.
    timeout: seconds within which the server must answer.
    """

    path: str
    name: str
    conninfo: bytes
    lease: float = 10.0
    timeout: float = 5.0


def _parsed(url: str) -> _Address:
    """Take an address apart. What it has not, libpq takes from the environment: PGUSER, PGPASSWORD and so on."""
    shown = _shown(url)
    place, _, query = url.partition("://")[2].partition("?")
    netloc, _, path = place.partition("/")
    if "@" in f"{path}{query}":
        raise StateError(shown, f"no address of a state; {QUOTED}")
    hosts = netloc.rpartition("@")[2]
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    known = {keyword for keyword in known if not keyword.endswith("password")}
    options: dict[str, float] = {}
    others: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in _OPTIONS:
            options[key] = _seconds(shown, key, value)
        elif key in known:
            others[key] = value
        else:
            names = ", ".join(_OPTIONS)
            raise StateError(
                shown, f"{key} is no option; there are {names} (seconds), and those of libpq but passwords"
            )
    database, _, name = path.partition("/")
    is_name = "/" not in name and unquote(name).isprintable()
    if not database or not name or not is_name or not all(map(_HOST.fullmatch, hosts.split(","))):
        raise StateError(shown, f"no address of a state, whose name is printable; write {_FORM}; {QUOTED}")
    try:
        told = {
            "client_encoding": "UTF8",
            "fallback_application_name": "persistedstate",
            **conninfo_to_dict(f"postgresql://{netloc}/{database}"),
            **others,
        }
    except psycopg.Error:
        raise StateError(shown, f"no address of a state; write {_FORM}") from None
    timeout = options.get("timeout", 5.0)
    told.setdefault("tcp_user_timeout", max(1, int(500 * timeout)))
    path, conninfo = _path(told, others, unquote(name)), make_conninfo(**told).encode()
    return _Address(path, unquote(name), conninfo, options.get("lease", 10.0), timeout)


def _path(told: dict[str, Any], others: dict[str, str], name: str) -> str:
    """Return the address that all spellings have in common."""
    defaults = {option.keyword: option.val or option.compiled or b"" for option in pq.Conninfo.get_defaults()}
    hosts, ports = (str(told.get(key, "")).split(",") for key in ("host", "port"))
    ports = [port or defaults[b"port"].decode() for port in (ports * len(hosts) if len(ports) == 1 else ports)]
    hosts = [f"[{host}]" if ":" in host else quoted(host if "/" in host else host.lower()) for host in hosts]
    places = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=False))
    user = f"{quoted(told['user'])}@" if told.get("user") else ""
    query = "&".join(f"{key}={quoted(value)}" for key, value in sorted(others.items()) if key not in _PLACE)
    return f"postgresql://{user}{places}/{quoted(told['dbname'])}/{quoted(name)}{'?' * bool(query)}{query}"


def _seconds(shown: str, key: str, value: str) -> float:
    with suppress(ValueError):
        if 0 < float(value) < 1e6:  # noqa: PLR2004 - beyond that it is a mistake
            return float(value)
    raise StateError(shown, f"{key}={value} is no option; it is a number of seconds")


# ---- Connections ----


class _Answer(Exception):  # noqa: N818 - a server's own words
    """The server refused a statement, or the connection (then there is no code): nothing was changed."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


_READS_ONLY = "the server only reads, as a standby does: use the address of its primary"
_NO_TABLES = "the tables persistedstate_texts and persistedstate_records there are of something else, or of another"
#: What a server may answer, by its code and text (a refused connection has no code): which error it becomes (0: a
#: StateError), and what to do.
_ANSWERS: tuple[tuple[str, int, str], ...] = (
    ("^25006", errno.EROFS, _READS_ONLY),
    ("^42501", errno.EACCES, "the user may not do what a state needs: to make two tables, or to read and change them"),
    ("^42", 0, f"{_NO_TABLES} version of persistedstate: use another database or schema"),
    ("^23505", 0, "there are records of this name without a text: choose another name"),
    ("^53100", errno.ENOSPC, "the server has no room left on its disk"),
    ("^53", errno.EAGAIN, "the server has not enough memory or connections"),
    ("^58", errno.EIO, "the server cannot read or write its files: see its log"),
    ("^ .*no password supplied", errno.EACCES,
     "the server wants a password: put it into the address, or set PGPASSWORD"),
    ("^ .*(authentication failed|no pg_hba|role .* does not exist|not permitted to log in)", errno.EACCES,
     "the server does not accept user and password"),
    ("^ .*database .* does not exist", errno.ENOENT, "the server has no such database: make it there (`createdb`)"),
    ("^ .*permission denied for database", errno.EACCES, "the user may not use this database"),
    ("^ .*(too many clients|connection slots|too many connections)", errno.EAGAIN,
     "the server has no connection left"),
)  # fmt: skip
#: What passes, perhaps: the server starts, stops or changes places, or others were in the way.
_FOR_NOW_CODES = ("25006", "40001", "40P01", "23505", "42P07", "42710", "57014")

#: Connections of the parents of this process.
_inherited: list[Any] = []

_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)
_Row = tuple[Any, ...]


def _packed(value: int | str | bytes | None) -> bytes | None:
    if isinstance(value, int):
        return value.to_bytes(8, "big", signed=True)
    return value.encode() if isinstance(value, str) else value


def _int(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


class _Link(Link):
    """A connection to the server; after an error or interrupt, another one."""

    _address: _Address

    def _connected(self) -> Any:
        connection = pq.PGconn.connect_start(self._address.conninfo)
        status = pq.PollingStatus.WRITING
        while status != pq.PollingStatus.OK:
            if status == pq.PollingStatus.FAILED or connection.status == pq.ConnStatus.BAD:
                raise _refusal(connection.get_error_message().strip())
            is_reading = status == pq.PollingStatus.READING
            self._wait(connection, selectors.EVENT_READ if is_reading else selectors.EVENT_WRITE)
            status = pq.PollingStatus(connection.connect_poll())
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        return connection

    def _is_ended(self) -> bool:
        """Tell whether the server ended the connection meanwhile, as it does where one sleeps in its turn."""
        try:
            while self._is_ready(self._connection, selectors.EVENT_READ, 0):
                self._connection.consume_input()
        except psycopg.Error:
            return True
        return False

    def ask(self, *requests: tuple[Any, ...]) -> list[list[_Row] | _Answer]:
        """Send statements, each a transaction of its own, and return the rows of each, or what the server refuses."""
        answers: list[list[_Row] | _Answer] = self._asked(len(requests), *requests)
        return answers

    def _send(self, *requests: tuple[Any, ...]) -> None:
        connection = self._connection
        try:
            for statement, *values in requests:
                packed = [_packed(value) for value in values]
                connection.send_query_params(
                    statement.encode(), packed, param_formats=[pq.Format.BINARY] * len(packed), result_format=1
                )
                connection.pipeline_sync()
            while connection.flush():
                self._wait(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
                if self._is_ready(connection, selectors.EVENT_READ, 0):
                    connection.consume_input()
        except psycopg.Error as error:
            raise _lost(error) from error

    def _receive(self, connection: Any) -> list[_Row] | _Answer:
        answer: list[_Row] | _Answer = []
        try:
            while True:
                while connection.is_busy():
                    self._wait(connection, selectors.EVENT_READ)
                    connection.consume_input()
                result = connection.get_result()
                if connection is not self._connection or connection.status == pq.ConnStatus.BAD:
                    raise _lost("the connection was lost")
                if result is None:
                    continue
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    return answer
                answer = _answer(result)
        except psycopg.Error as error:
            raise _lost(error) from error

    def _wait(self, connection: Any, events: int) -> None:
        if not self._is_ready(connection, events, self._address.timeout):
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self._address.timeout:g} seconds")

    def _is_ready(self, connection: Any, events: int, seconds: float) -> bool:
        with _Selector() as selector:
            selector.register(connection.socket, events)
            return bool(selector.select(seconds))

    def _let_go(self, connection: Any) -> None:
        if self._pid == os.getpid():
            connection.finish()
        else:
            _inherited.append(connection)  # else it would be finished, which tells the server


def _answer(result: Any) -> list[_Row] | _Answer:
    """Return the rows of a result, or an error that the server is sure of."""
    if result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        return [tuple(result.get_value(row, at) for at in range(result.nfields)) for row in range(result.ntuples)]
    code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
    if not code or code.startswith(("57P", "08")):  # the session ends, and what it was about may be done
        raise _lost(text or result.get_error_message())
    return _Answer(code, text)


def _refusal(text: str) -> Exception:
    """Return what a connection that failed is; a server that starts or stops is there again soon."""
    text = re.sub(r"\s+", " ", text)
    is_sure = any(re.search(pattern, f" {text}") for pattern, _, _ in _ANSWERS)
    return _Answer("", text) if is_sure else _lost(text)


def _lost(why: object) -> OSError:
    text = re.sub(r"\s+", " ", str(why)).strip()
    return ConnectionError(errno.ECONNREFUSED, f"cannot be reached ({text})")


# ---- The log ----


def _position(row: _Row) -> Position:
    return Position(_int(row[1]), str(_int(row[2])))


class PostgresLog(ServerLog):
    """A log in PostgreSQL, see `persistedstate_logs.Log`.

    Args:
        url: the address; `?lease=SECONDS` (10) after which a turn is lost whose holder sleeps, `?timeout=SECONDS` (5)
            for an answer, and the options of libpq.
        fsync: True: a change is on the disks before `append` returns. A number of seconds: the server may be so far
            behind, if its `wal_writer_delay` allows. False: it may be behind.
        readonly: nothing is ever written; a standby will do.
    """

    def __init__(self, url: str, *, fsync: bool | float = False, readonly: bool = False) -> None:
        self._address = address = _parsed(url)
        super().__init__(address.path, address[3:], address.timeout, [_Link(address, self._greet) for _ in "12"])
        self._name, self.fsync, self.readonly = address.name, fsync, readonly
        digest = hashlib.sha256(f"persistedstate {self._name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)

    def open(self, wait: float = 0.0) -> Contents:
        """See Log. Raises FileNotFoundError where there is no state and `readonly` is set."""
        deadline = time.monotonic() + wait
        try:
            contents = self._contents(deadline)
        except Forked:
            if self.readonly:
                raise FileNotFoundError(errno.ENOENT, "there is no state of this name", self.path) from None
            self._make(deadline)
            contents = self._contents(deadline)
        self._at = contents.position
        return contents

    def _make(self, deadline: float) -> None:
        """Make an empty state, and the tables where there are none."""
        begin = _BEGIN, self._name, int(drawn(1).nonce)
        try:
            self._call(begin, deadline=deadline)
        except Forked:
            for statement in _MAKE:
                self._call((statement,), deadline=max(deadline, time.monotonic() + 1))  # others may make it, too
            self._call(begin, deadline=deadline)

    def _contents(self, deadline: float | None = None) -> Contents:
        rows = self._rows((_OPEN, self._name), deadline)
        if not rows or rows[0][4] is None:
            raise StateError(self.path, "the record is missing at which its text was made: somebody removed rows")
        return Contents(rows[0][4], [row[3] for row in rows[1:]], _position(rows[-1]))

    def _rows(self, request: tuple[Any, ...], deadline: float | None = None) -> list[_Row]:
        return self._checked(self._call(request, deadline=deadline))

    def _checked(self, rows: list[_Row]) -> list[_Row]:
        """Return the rows of a state that have a record; raises Forked where there is no state."""
        if not rows:
            raise Forked(f"{self.path}: there is no state any more")
        if (layout := _int(rows[0][0])) != _LAYOUT:
            reason = f"it has the layout {layout}; this version of persistedstate knows {_LAYOUT}"
            raise StateError(self.path, f"{reason}: install the version that wrote it")
        return [row for row in rows if row[1] is not None]

    def replace(self, text: bytes, after: Position, *, edit: bool = False) -> Position:
        """See Log."""
        if edit:
            return self._enter(text, after, edit=True)
        if not self._call((_VACUUM, self._name, after.number, int(after.nonce), text, int(_KEPT))):
            self._behind(after, self._rows((_READ, self._name, after.number)))
        return after

    def _is_added(self, pending: Pending, deadline: float, *, last: bool) -> bool:
        entry, after, edit = pending.what
        place = self._name, after.number, int(after.nonce), int(pending.id.nonce)
        turn = self._key, self._turn
        request = (_EDIT, *place, None, *turn, entry) if edit else (_APPEND, *place, entry, *turn)
        if not self._call(request, pending=pending, deadline=deadline):
            is_open = pending.is_open(self._turn) or (pending.unanswered and not self._call((_IS_LOST, self._turn)))
            if not self._has_landed(pending):
                if not is_open:
                    raise Overtaken(is_held=True)
                return False
        if last:
            self.end_turn()
        return True

    def _has_landed(self, pending: Pending) -> bool:
        """Tell whether an entry that was not added now is there; raises Overtaken, Forked where it never will be."""
        _, after, _ = pending.what
        rows = self._rows((_READ, self._name, after.number))
        if any(_position(row) == pending.id for row in rows[:2]):
            if self.fsync is not False:
                self._call((_TOUCH,))
            return True
        if rows and _int(rows[0][1]) > after.number and not pending.is_first:
            raise Unknown(f"{self.path}: whether this change was written cannot be told any more")
        news = self._behind(after, rows)
        if news == News([], after):
            return False
        self._ahead = None if news is None else (after, news)
        raise Overtaken(is_held=False)

    def _behind(self, after: Position, rows: list[_Row]) -> News | None:
        """Return the records behind a position; None where all has to be read. Raises Forked."""
        if not rows or (_position(rows[0]) != after and _int(rows[0][1]) <= after.number):
            raise Forked(f"{self.path}: the log went back, or another way")
        if _position(rows[0]) != after or any(row[3] is None for row in rows[1:]):
            return None
        return News([row[3] for row in rows[1:]], _position(rows[-1]))

    def _read(self, after: Position) -> News | Contents:
        return self._behind(after, self._rows((_READ, self._name, after.number))) or self._contents()

    def take_turn(self, wait: float) -> None:
        """See Log. What a `read` behind the last position will return comes along."""
        deadline = time.monotonic() + wait
        turn = self._new_turn()
        lease = str(max(1, int(1000 * self._address.lease)))
        while True:
            left = min(deadline - time.monotonic(), self._address.timeout / 2)
            lock = _LOCK, str(max(1, int(1000 * left))), lease, self._key, turn
            at = self._at
            reads = [] if at is None else [(_READ, self._name, at.number)]
            answers = self._surely(lambda: self._link.ask(lock, *reads), None)  # noqa: B023
            if not isinstance(answers[0], _Answer):
                self._turn = turn  # again: a signal handler may have had a turn of its own
                if at is not None and not isinstance(answers[1], _Answer):
                    news = self._behind(at, self._checked(answers[1]))
                    self._ahead = None if news is None else (at, news)
                return
            if answers[0].code != "55P03":
                raise self._refused(answers[0])
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another writer has the turn", self.path)

    def _tell_end(self) -> None:
        self._link.tell(1, (_UNLOCK,))

    def sync(self) -> None:
        """See Log: the server does not answer before a change is as safe as was asked for."""

    def watch(self, after: Position, timeout: float) -> bool:
        """See Log. Looks again and again. May be called by another thread than the rest."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._watching.connect()
                answer = self._watching.ask((_READ, self._name, after.number))[0]
                if isinstance(answer, _Answer):
                    raise answer
            except (_Answer, OSError, StateError) as error:
                raise self._refused(error) from error
            if self._behind(after, self._checked(answer)) != News([], after):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, PAUSE))

    # -- Requests --

    def _call(
        self, request: tuple[Any, ...], *, deadline: float | None = None, pending: Pending | None = None
    ) -> list[_Row]:
        """Send a statement and return its rows; raises Forked where there are no tables, OSError, StateError."""
        answer: list[_Row] | _Answer = self._surely(lambda: self._link.ask(request), deadline, pending)[0]
        if isinstance(answer, _Answer):
            raise self._refused(answer)
        return answer

    def _passes(self, answer: Any) -> bool:
        if isinstance(answer, list):  # what counts is the first
            return isinstance(answer[0], _Answer) and answer[0].code in _FOR_NOW_CODES
        return isinstance(answer, OSError)

    def _refused(self, error: Exception) -> Exception:
        """Return what a server's answer, or the lack of one, is to the user."""
        if isinstance(error, OSError):
            return OSError(error.errno, error.strerror, self.path)
        if not isinstance(error, _Answer):
            return error
        if error.code == "42P01":
            return Forked(f"{self.path}: there is no state any more")
        for pattern, number, reason in _ANSWERS:
            if re.search(pattern, f"{error.code} {error}"):
                told = f"{reason} ({error})" if error.code else reason
                return OSError(number, told, self.path) if number else StateError(self.path, told)
        return StateError(self.path, f"the server answers: {error}")

    def _greet(self, link: _Link) -> None:
        """Say what the session needs, and refuse a server that cannot keep what is promised."""
        is_lazy = self.fsync is not True
        level, milliseconds = "off" if is_lazy else "on", int(1000 * self.fsync) if is_lazy else 0
        if is_lazy and self.fsync is not False and not milliseconds:
            level = "on"
        answer = link.ask((_GREET, level, milliseconds))[0]
        if isinstance(answer, _Answer):
            raise answer
        version, is_standby, reads_only, fsync = answer[0][4:]
        if _int(version) < _OLDEST:
            raise StateError(self.path, "the server is too old: a state needs PostgreSQL 14 or later")
        if not self.readonly and (is_standby == b"true" or reads_only == b"on"):
            raise OSError(errno.EROFS, _READS_ONLY, self.path)
        if self.fsync is not False and not self.readonly and fsync != b"on":
            reason = f"_fsync={self.fsync} needs `fsync = on` in the server's settings; there it is {fsync.decode()}"
            raise StateError(self.path, reason)
