"""The log of a state in Valkey or Redis (6.2 or later): `redis://HOST:PORT/DATABASE/NAME`.

Four keys with one hash tag, so that a cluster keeps them together:

| key            | type   | what it holds                                                                          |
|----------------|--------|----------------------------------------------------------------------------------------|
| `{NAME}:state` | hash   | `layout` of these keys; `text`, and the position `at` which it was made; the last      |
|                |        | position, `head`; that of the last text by a person, `edited`; the one behind which    |
|                |        | all records are `kept`; the one up to which they go next, and since when (`mark`,      |
|                |        | `marked`)                                                                              |
| `{NAME}:log`   | stream | the records; the id of each is its position: a number, and a nonce that its writer drew |
| `{NAME}:turn`  | string | who has the turn, and whether others wait; it expires                                  |
| `{NAME}:baton` | list   | what the holder of the turn leaves for the one who waits longest                       |

Each request is one script, which compares and changes in one step, and says the same when it is sent again. So a reply
that was lost is asked for again, with the nonce that was drawn before; what a first try did counts once. Records are
kept for half a minute after the text that holds them, so that whoever asks again late finds them. What keeps writers
apart is the comparison of positions. A turn, neither replicated nor written to the disk, saves them from trying again:
while it is held, only its holder adds something, and who has lost it adds nothing.

`_fsync=True` asks for `appendfsync always`, and for as many replicas as `?replicas=` says: each change waits for them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from persistedstate import StateError, _shown
from persistedstate_logs import QUOTED, Contents, Forked, News, Overtaken, Pending, Position, Unknown, drawn, quoted
from persistedstate_logs.asking import Link, ServerLog

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYOUT = "1"
#: Seconds for which records are kept behind the text that holds them.
_KEPT = 30
#: Milliseconds within which whoever gets the baton has to take the turn.
_PASSING = 2000

# ---- Scripts ----

_COMMON = """
local state, log, turn, baton = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local layout, head = unpack(redis.call('HMGET', state, 'layout', 'head'))

local function field(name) return redis.call('HGET', state, name) end

local function number(id) return tonumber(string.match(id, '^%d+')) end

local function is_there(id) return #redis.call('XRANGE', log, id, id) > 0 end

local function behind(id)
    local records = {}
    for i, entry in ipairs(redis.call('XRANGE', log, '(' .. id, '+')) do records[i] = entry[2][2] end
    return records
end

local function contents() return {'contents', head, behind(field('at')), field('text')} end

local function news(after)
    if after == head then return {'news', head, {}} end
    local kept = field('kept')
    if number(after) < number(kept) then return contents() end
    if after ~= kept and not is_there(after) then return {'forked', head} end
    if number(after) < number(field('edited')) then return contents() end
    return {'news', head, behind(after)}
end

-- `turn` is somebody's token, with a mark where others wait, or a baton for whoever comes first.
local now = redis.call('GET', turn)

local function holder() return now and string.sub(now, 1, 1) ~= '-' and string.gsub(now, '!', '') end

local function pass(token, baton_value)
    redis.set_repl(redis.REPL_NONE)
    if now == token then
        redis.call('DEL', turn)
    elseif now == token .. '!' then
        redis.call('SET', turn, baton_value, 'PX', PASSING)
        redis.call('DEL', baton)
        redis.call('RPUSH', baton, baton_value)
        redis.call('PEXPIRE', baton, PASSING)
    end
    redis.set_repl(redis.REPL_ALL)
end

-- What is in the way of an entry; nil where nothing is. `token` is that of the turn which it belongs to, '' for none.
-- With a value for the baton, the turn ends.
local function refusal(id, after, token, baton_value)
    if head ~= after then
        if head == id or is_there(id) then
            redis.call('HSET', state, 'head', head) -- WAIT waits for what this connection wrote
            if baton_value ~= '' then pass(token, baton_value) end
            return {'done'}
        end
        if number(id) <= number(field('kept')) then return {'forgotten', head} end
        return {'overtaken', head, news(after)}
    end
    if (holder() or '') ~= token then return {'held', head} end
end

if layout ~= 'LAYOUT' then return {layout and 'layout' or 'gone', layout or ''} end
""".replace("PASSING", str(_PASSING)).replace("LAYOUT", _LAYOUT)

_OPEN = """
for i, kind in ipairs({'hash', 'stream', 'string', 'list'}) do
    local found = redis.call('TYPE', KEYS[i]).ok
    if found ~= kind and found ~= 'none' then return {'kind', KEYS[i], found} end
end
if redis.call('EXISTS', KEYS[1]) == 0 then
    if redis.call('EXISTS', KEYS[2]) == 1 then return {'kind', KEYS[2], 'stream without a state'} end
    if ARGV[1] == '' then return {'gone', ''} end
    local id = ARGV[1]
    redis.call('HSET', KEYS[1], 'layout', 'LAYOUT', 'text', '', 'at', id, 'head', id, 'kept', id, 'edited', id)
elseif redis.call('HEXISTS', KEYS[1], 'layout') == 0 then
    return {'kind', KEYS[1], 'hash of something else'}
end
""".replace("LAYOUT", _LAYOUT) + _COMMON + "return contents()"  # fmt: skip

_APPEND = _COMMON + """
local after, id, token, baton_value, record = unpack(ARGV)
local refused = refusal(id, after, token, baton_value)
if refused then return refused end
redis.call('XADD', log, id, 'record', record)
redis.call('HSET', state, 'head', id)
if baton_value ~= '' then pass(token, baton_value) end
return {'done'}
"""  # fmt: skip

_REPLACE = _COMMON + """
local after, id, token, baton_value, text, keep = unpack(ARGV)
if id ~= '' then
    local refused = refusal(id, after, token, baton_value)
    if refused then return refused end
    redis.call('XADD', log, id, 'text', '')
    redis.call('HSET', state, 'head', id, 'edited', id)
    after = id
elseif number(after) <= number(field('at')) then
    return {'done'}
elseif number(after) > number(head) or after ~= head and not is_there(after) then
    return {'forked', head}
end
redis.call('HSET', state, 'text', text, 'at', after)
local now = tonumber(redis.call('TIME')[1])
local mark, marked = unpack(redis.call('HMGET', state, 'mark', 'marked'))
if not marked or math.abs(now - marked) >= tonumber(keep) then
    if mark then
        redis.call('XTRIM', log, 'MINID', '=', string.match(mark, '^%d+') .. '-18446744073709551615')
        redis.call('HSET', state, 'kept', mark)
    end
    redis.call('HSET', state, 'mark', after, 'marked', now)
end
return {'done'}
"""  # fmt: skip

_READ = _COMMON + "return news(ARGV[1])"

#: Takes the turn where it is free, where its own baton was passed to us, or where a baton lies there for anybody; for
#: no milliseconds, passes it on. One script, because nobody waits for the answer to the latter: it must be known there.
_TURN = _COMMON + """
local after, token, baton_value, milliseconds = unpack(ARGV)
if not milliseconds then
    pass(token, baton_value)
    return {'done'}
end
redis.set_repl(redis.REPL_NONE)
local mine
if not now then
    mine = token
elseif holder() == token then
    mine = now
elseif now == baton_value or not holder() and redis.call('LPOP', baton) == now then
    mine = token .. '!' -- others may wait, or be about to
elseif holder() and string.sub(now, -1) ~= '!' then
    redis.call('SET', turn, now .. '!', 'KEEPTTL')
end
if not mine then return {'waits', redis.call('PTTL', turn)} end
redis.call('SET', turn, mine, 'PX', milliseconds)
if after == head then return {'taken'} end
return {'taken', after ~= '' and news(after)}
"""  # fmt: skip


def _packed(*parts: bytes) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class _Script:
    """A script that the server knows by its hash, once it has run."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.hash = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def command(self, keys: list[bytes]) -> bytes:
        """Return the packed beginning of the command that runs it."""
        return _packed(b"EVALSHA", self.hash, b"%d" % len(keys), *keys)


_open, _append, _replace, _read, _turn = map(_Script, (_OPEN, _APPEND, _REPLACE, _READ, _TURN))

# ---- Addresses ----

_FORM = "redis://HOST:PORT/DATABASE/NAME or unix:///PATH/OF/SOCKET/DATABASE/NAME"
#: The options of an address: what makes a value of the text.
_OPTIONS: dict[str, Callable[[str], Any]] = {"lease": float, "replicas": int, "timeout": float}


class _Address(NamedTuple):
    """Where a state is.

    path: the same for all spellings, without what is secret. lease: seconds after which a turn is lost. replicas: how
    many have to have a change, with `_fsync=True`. timeout: seconds within which the server must answer.
    """

    path: str
    name: str
    connect: Callable[..., Any]
    arguments: dict[str, Any]
    lease: float = 10.0
    replicas: int = 0
    timeout: float = 5.0


def _parsed(url: str) -> _Address:
    """Take an address apart. Where it has no user or password, the environment may: REDIS_USERNAME, REDIS_PASSWORD."""
    shown, parts = _shown(url), urlsplit(url)
    try:
        folder, database, name = parts.path.rsplit("/", 2)
        arguments: dict[str, Any] = {"db": int(database)}
        name, port = unquote(name), parts.port or 6379
    except ValueError:
        raise StateError(shown, f"no address of a state; write {_FORM}; {QUOTED}") from None
    if "@" in f"{parts.path}{parts.query}" or parts.fragment:
        raise StateError(shown, f"no address of a state; {QUOTED}")
    is_local = parts.scheme == "unix"
    if not name or not name.isprintable() or {*"{}"} & {*name} or bool(folder) != is_local:
        raise StateError(shown, f"no address of a state, whose name is printable and without braces; write {_FORM}")
    arguments |= {"path": unquote(folder)} if is_local else {"host": parts.hostname or "localhost", "port": port}
    arguments["username"] = unquote(parts.username or "") or os.environ.get("REDIS_USERNAME")
    arguments["password"] = unquote(parts.password or "") or os.environ.get("REDIS_PASSWORD")
    options: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        is_tls = parts.scheme == "rediss" and key.startswith("ssl_")
        (arguments if is_tls else options)[key] = value if is_tls else _option(shown, key, value)
    kinds = {"unix": UnixDomainSocketConnection, "rediss": SSLConnection}
    scheme = "redis" if parts.scheme == "valkey" else parts.scheme
    user = f"{parts.username}@" if parts.username else ""
    host = "" if is_local else f"[{arguments['host']}]" if ":" in arguments["host"] else arguments["host"]
    place = f"{user}{host}{'' if is_local else f':{port}'}{folder}/{arguments['db']}/{quoted(name)}"
    return _Address(f"{scheme}://{place}", name, kinds.get(parts.scheme, Connection), arguments, **options)


def _option(shown: str, key: str, value: str) -> Any:
    try:
        number = _OPTIONS[key](value)
    except (KeyError, ValueError):
        number = -1
    if not 0 <= number < 1e6 or (number == 0 and key != "replicas"):  # noqa: PLR2004 - beyond that it is a mistake
        names = ", ".join(sorted(_OPTIONS))
        told = f"{key}={value}" if key in _OPTIONS else key
        raise StateError(shown, f"{told} is no option; there are {names} (numbers), and ssl_… of rediss://")
    return number


# ---- Connections ----

#: What passes, perhaps: the server is starting, busy, or about to change places with a replica.
_FOR_NOW = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError, exceptions.TryAgainError, OSError
)  # fmt: skip
_FOR_NOW_TEXTS = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "UNBLOCKED", "FAILOVER")
#: What is a connection error to the client, and yet an answer.
_REFUSALS = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.MaxConnectionsError)

_NO_MEMORY = "the server has no memory left: give it more (`maxmemory`), or free some there"
#: What else a server may answer, by its first word: which error it becomes, and what to do.
_ANSWERS: dict[str, tuple[int, str]] = {
    "WRONGPASS": (errno.EACCES, "the server does not accept user and password"),
    "NOAUTH": (errno.EACCES, "the server wants a password: put it into the address, or set REDIS_PASSWORD"),
    "NOPERM": (errno.EACCES, "the user may not do what a state needs"),
    "READONLY": (errno.EROFS, "the server is a replica, which only reads: use the address of its primary"),
    "OOM": (errno.ENOMEM, _NO_MEMORY),
    "MISCONF": (errno.EIO, "the server cannot write to its disk: see its log"),
    "MOVED": (errno.EREMOTE, "the server is part of a cluster, and another part has this state: use that address"),
    "WRONGTYPE": (errno.EEXIST, "a key of this name holds something else: choose another name"),
    "NOREPLICAS": (errno.EAGAIN, "the server has too few replicas to write (`min-replicas-to-write`)"),
    "LOADING": (errno.EAGAIN, "the server is still reading its data"),
}


def _word(error: BaseException) -> str:
    """Return the word that begins a server's answer; the client takes it away from those that it has classes for."""
    classes = {
        exceptions.OutOfMemoryError: "OOM", exceptions.ReadOnlyError: "READONLY", exceptions.MovedError: "MOVED",
        exceptions.BusyLoadingError: "LOADING", exceptions.NoPermissionError: "NOPERM",
        exceptions.AuthenticationWrongNumberOfArgsError: "NOAUTH", exceptions.NoScriptError: "NOSCRIPT",
    }  # fmt: skip
    if type(error) in classes:
        return classes[type(error)]
    text = str(error)
    if isinstance(error, exceptions.AuthenticationError):
        return "NOAUTH" if "required" in text else "WRONGPASS"
    return text.partition(" ")[0] if text.partition(" ")[0].isupper() else ""


def _is_for_now(error: BaseException) -> bool:
    if isinstance(error, _REFUSALS):
        return False
    return isinstance(error, _FOR_NOW) or _word(error) in _FOR_NOW_TEXTS


class _Link(Link):
    """A connection to the server; after an error or interrupt, another one.

    Nothing is sent twice by the client library itself.
    """

    _address: _Address

    def _connected(self) -> Any:
        address = self._address
        connection = address.connect(
            **address.arguments, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=address.timeout,
            socket_connect_timeout=address.timeout, client_name="persistedstate", health_check_interval=0,
        )  # fmt: skip
        connection.connect()
        return connection

    def ask(self, *parts: bytes) -> Any:
        """Send a command and return the reply; raises ResponseError where that is an error."""
        reply = self.ask_packed(len(parts), _packed(*parts))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def ask_packed(self, count: int, command: bytes) -> Any:
        """Send a command of so many parts that are packed; return the reply, also where that is an error."""
        return self._asked(1, count, command)[0]

    def _send(self, count: int, command: bytes) -> None:
        self._connection.send_packed_command([b"*%d\r\n%b" % (count, command)], check_health=False)

    def _receive(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except exceptions.ResponseError as error:  # an answer: the connection is in order
            return error
        except Exception:
            if connection is not self._connection:
                raise exceptions.ConnectionError("a signal handler was here, and needed another one") from None
            raise

    def _let_go(self, connection: Any) -> None:
        connection.disconnect()


# ---- The log ----


def _baton() -> bytes:
    """Return a value for the turn while nobody has it; who gets the same as a baton may take it."""
    return b"-" + os.urandom(8).hex().encode()


def _told(position: Position) -> bytes:
    return f"{position.number}-{position.nonce}".encode()


def _position(told: bytes) -> Position:
    number, _, nonce = told.decode().partition("-")
    return Position(int(number), nonce)


def _news(reply: list[Any]) -> News | Contents:
    return News(reply[2], _position(reply[1])) if reply[0] == b"news" else _contents(reply)


def _contents(reply: list[Any]) -> Contents:
    return Contents(reply[3], reply[2], _position(reply[1]))


class RedisLog(ServerLog):
    """A log in Valkey or Redis, see `persistedstate_logs.Log`.

    Args:
        url: the address; `?lease=SECONDS` (10) after which a turn is lost whose holder sleeps, `?timeout=SECONDS` (5)
            for an answer, `?replicas=NUMBER` (0) that have to have each change with `fsync`.
        fsync: True: refuse a server that does not write each change to its disk before it answers. A number of
            seconds, 2 or more: also accept `appendfsync everysec`. False: accept all.
        readonly: nothing is ever written; a replica will do.
    """

    def __init__(self, url: str, *, fsync: bool | float = False, readonly: bool = False) -> None:
        self._address = address = _parsed(url)
        super().__init__(address.path, address[4:], address.timeout, [_Link(address, self._check_server) for _ in "12"])
        self.fsync, self.readonly = fsync, readonly
        self._keys = [f"{{{address.name}}}:{part}".encode() for part in ("state", "log", "turn", "baton")]
        self._commands = {script: script.command(self._keys) for script in (_open, _append, _replace, _read, _turn)}

    def open(self, wait: float = 0.0) -> Contents:
        """See Log. Raises FileNotFoundError where there is no state and `readonly` is set."""
        first = b"" if self.readonly else _told(drawn(1))
        reply = self._call(_open, first, deadline=time.monotonic() + wait)
        if reply[0] == b"kind":
            reason = f"{reply[1].decode()} is a {reply[2].decode()} on the server; choose another name"
            raise StateError(self.path, reason)
        if reply[0] == b"gone":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        self._refuse(reply)
        contents = _contents(reply)
        self._at = contents.position
        return contents

    def replace(self, text: bytes, after: Position, *, edit: bool = False) -> Position:
        """See Log."""
        if edit:
            return self._enter(text, after, edit=True)
        reply = self._call(_replace, _told(after), b"", b"", b"", text, b"%d" % _KEPT)
        self._refuse(reply)
        return after

    def _is_added(self, pending: Pending, deadline: float, *, last: bool) -> bool:
        entry, after, edit = pending.what
        place = _told(after), _told(pending.id), self._turn.encode(), _baton() if last else b""
        script, more = (_replace, [b"%d" % _KEPT]) if edit else (_append, [])
        reply = self._call(script, *place, entry, *more, deadline=deadline, pending=pending)
        if reply[0] == b"forgotten":
            raise Unknown(f"{self.path}: whether this change was written cannot be told any more")
        if reply[0] == b"held" and pending.is_open(self._turn):
            return False
        pending.unanswered = 0
        self._refuse(reply, after)
        self._turn = "" if last else self._turn
        return True

    def _read(self, after: Position) -> News | Contents:
        reply = self._call(_read, _told(after))
        self._refuse(reply)
        return _news(reply)

    def take_turn(self, wait: float) -> None:
        """See Log. What a `read` behind the last position will return comes along."""
        deadline = time.monotonic() + wait
        turn = self._new_turn()
        passed, milliseconds = b"", b"%d" % (1000 * self._address.lease)
        while True:
            reply = self._call(_turn, _told(self._at) if self._at else b"", turn.encode(), passed, milliseconds)
            self._refuse(reply)
            if reply[0] == b"taken":
                self._turn = turn  # again: a signal handler may have had a turn of its own
                if self._at is not None:
                    self._note_ahead(self._at, reply[1] if reply[1:] else [b"news", _told(self._at), []])
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "another writer has the turn", self.path)
            passed = self._await_baton(min(max(reply[1], 1) / 1000, left, self._address.timeout / 2))

    def _await_baton(self, seconds: float) -> bytes:
        """Wait for what the holder of the turn leaves; the server gives it to the one who waits longest."""
        try:
            reply = self._ask(self._link, b"BLPOP", self._keys[3], b"%.3f" % seconds)
        except (ConnectionError, TimeoutError):
            return b""  # who asks next finds out
        return b"" if reply is None else bytes(reply[1])

    def _tell_end(self) -> None:
        self._link.tell(1, 10, self._commands[_turn] + _packed(b"", self._turn.encode(), _baton()))

    def sync(self) -> None:
        """See Log: waits for replicas, where some were asked for. The server itself waits for its disk."""
        address = self._address
        if self.fsync is True and address.replicas:
            milliseconds = b"%d" % (500 * address.timeout)
            count = self._ask(self._link, b"WAIT", b"%d" % address.replicas, milliseconds)
            if count < address.replicas:
                reason = f"the change is on {count} of {address.replicas} replicas only"
                raise OSError(errno.EIO, reason, self.path)

    def watch(self, after: Position, timeout: float) -> bool:
        """See Log. May be called by another thread than the rest."""
        deadline = time.monotonic() + timeout
        while True:
            milliseconds = max(1, int(1000 * min(deadline - time.monotonic(), self._address.timeout / 2)))
            command = b"XREAD", b"COUNT", b"1", b"BLOCK", b"%d" % milliseconds, b"STREAMS", self._keys[1], _told(after)
            found = self._ask(self._watching, *command)
            if found or time.monotonic() >= deadline:
                return bool(found)

    # -- Requests --

    def _call(
        self, script: _Script, *arguments: bytes, deadline: float | None = None, pending: Pending | None = None
    ) -> list[Any]:
        """Run a script; try again until a time, or for `timeout`. Raises OSError, StateError."""
        command = self._commands[script] + _packed(*arguments)

        def ask() -> Any:
            reply = self._link.ask_packed(7 + len(arguments), command)
            if isinstance(reply, exceptions.NoScriptError):  # not run
                again = _packed(b"EVAL", script.text, b"4", *self._keys, *arguments)
                reply = self._link.ask_packed(7 + len(arguments), again)
            return reply

        reply: Any = self._surely(ask, deadline, pending)
        if isinstance(reply, Exception):
            raise self._refused(reply) from reply
        return reply  # type: ignore[no-any-return]

    def _passes(self, answer: Any) -> bool:
        return isinstance(answer, Exception) and _is_for_now(answer)

    def _ask(self, link: _Link, *command: bytes) -> Any:
        """Send another command than a script, once. Raises OSError, StateError."""
        try:
            link.connect()
            return link.ask(*command)
        except Exception as error:
            raise self._refused(error) from error

    def _refuse(self, reply: list[Any], after: Position | None = None) -> None:
        """Raise what an answer says, if it does not say that all went well."""
        kind = reply[0]
        if kind == b"overtaken" and after is not None:
            self._note_ahead(after, reply[2])
        if kind in (b"overtaken", b"held"):
            raise Overtaken(is_held=kind == b"held")
        if kind == b"layout":
            reason = f"it has the layout {reply[1].decode()}; this version of persistedstate knows {_LAYOUT}"
            raise StateError(self.path, f"{reason}: install the version that wrote it")
        if kind in (b"forked", b"gone"):
            what = "there is no state any more" if kind == b"gone" else "the log went back, or another way"
            raise Forked(f"{self.path}: {what}")

    def _note_ahead(self, after: Position, reply: list[Any]) -> None:
        self._refuse(reply)
        self._ahead = after, _news(reply)

    def _refused(self, error: Exception) -> Exception:
        """Return what a server's answer, or the lack of one, is to the user."""
        if isinstance(error, (OSError, StateError)):
            return error
        word = _word(error)
        if word in _ANSWERS:
            number, reason = _ANSWERS[word]
            return OSError(number, reason, self.path)
        if isinstance(error, exceptions.TimeoutError):
            return TimeoutError(errno.ETIMEDOUT, f"no answer within {self._address.timeout:g} seconds", self.path)
        if isinstance(error, exceptions.ConnectionError):
            return ConnectionError(errno.ECONNREFUSED, f"cannot be reached ({error})", self.path)
        return StateError(self.path, f"the server answers: {error}")

    # -- What the server must be --

    def _check_server(self, link: _Link) -> None:
        """Refuse a server that cannot keep what is promised; asked at each connection, because servers change."""
        try:
            lines = link.ask(b"INFO").decode(errors="replace").splitlines()
        except exceptions.ResponseError:
            lines = []  # the user may not ask: what the server refuses will be seen
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        if info.get("loading", "0") != "0":
            raise exceptions.BusyLoadingError
        if info.get("role") == "slave" and not self.readonly:
            raise OSError(*_ANSWERS["READONLY"], self.path)
        policy = info.get("maxmemory_policy", "")
        if info.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
            reason = f"the server drops keys when its memory is full (maxmemory-policy {policy}), this one, too"
            raise StateError(self.path, f"{reason}: set noeviction there, or use another server")
        if self.fsync is not False and not self.readonly:
            self._check_fsync(link)

    def _check_fsync(self, link: _Link) -> None:
        try:
            values = link.ask(b"CONFIG", b"GET", b"append*")
        except exceptions.ResponseError as error:
            reason = f"the server does not tell whether it writes to the disk ({error}); leave _fsync away"
            raise StateError(self.path, reason) from None
        config = dict(zip(values[::2], values[1::2], strict=True))
        found = config.get(b"appendfsync", b"no") if config.get(b"appendonly") == b"yes" else b"no, without appendonly"
        is_lazy = self.fsync is not True and self.fsync >= 2  # noqa: PLR2004 - everysec may take two
        if found != b"always" and not (is_lazy and found == b"everysec"):
            needed = "`appendonly yes` and `appendfsync always`"
            raise StateError(self.path, f"_fsync={self.fsync} needs {needed}; there it is {found.decode()}")
