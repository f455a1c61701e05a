"""One YAML file mapped to one Python object; every change is in the file before the statement returns.

A script keeps its state in a file that a person can read, comment and edit:

>>> import os, tempfile
>>> path = os.path.join(tempfile.mkdtemp(), "example.state")
>>> STATE = PersistedState(path, last_id=0, processed=[])
>>> STATE.last_id += 1
>>> STATE.processed.append("a.csv")
>>> print(open(path).read(), end="")
last_id: 0
processed: []
--- ["was",["last_id"],0]
--- ["set",[],"last_id",1]
--- ["was",["processed"],[]]
--- ["insert",["processed"],0,"a.csv"]
>>> STATE.close()
>>> print(open(path).read(), end="")
last_id: 1
processed:
- a.csv

The file is a YAML stream. Its first document is the *snapshot*, a mapping. Each later one is a *record* of one
change, on a line of its own: ``---``, a space, a list in flow style, a line feed. Paths are lists of keys and indexes
from the root:

| record                             | what it does                                                                |
|------------------------------------|-----------------------------------------------------------------------------|
| ``["set",path,key,value]``         | ``container[key] = value``, a mapping's key or a list's index               |
| ``["delete",path,key]``            | ``del container[key]``                                                      |
| ``["insert",path,index,value]``    | ``list.insert(index, value)``                                               |
| ``["splice",path,i,j,items]``      | ``list[i:j] = items``                                                       |
| ``["order",path,indexes]``         | ``list[:] = [list[i] for i in indexes]``                                    |
| ``["update",path,mapping]``        | ``mapping.update(mapping)``                                                 |
| ``["clear",path]``                 | ``container.clear()``                                                       |
| ``["transaction",records]``        | all of the records                                                          |
| ``["was",[key],value]``            | nothing: the snapshot has this value under the key, or without one, nothing |
| ``["hash",[key],crc]``             | nothing: the CRC-32 of the long text that the snapshot has for the key      |
| a mapping                          | replaces the state                                                          |

In front of the first record that changes a top-level entry, a ``was`` or ``hash`` tells of that entry. By it, opening
the file of a killed script notices what a person changed in the snapshot below the records: their value wins.

A record is complete when its list is closed; what follows the last complete record is a *torn tail*, which a killed
writer or a power cut leaves. It was never acknowledged and is dropped. A *vacuum* replaces snapshot and records by a
new snapshot, in which every line that need not change is kept byte for byte.

Guaranteed: a change whose statement has returned survives the death of the process (with ``_fsync=True`` also that of
the machine); a file that cannot be understood is never written to; only one process writes, or, with ``_shared=True``,
each in its turn; what a person saves meanwhile is merged, or kept beside. Not guaranteed: that a flipped bit is noticed
(there are no checksums, so that people can edit), anything on network file systems that lie about locks. README.md has
the whole table.

``python -m persistedstate --help`` shows the command line: look at a state, change it, follow it, mend it.
"""

from __future__ import annotations

import _thread
import atexit
import errno
import operator
import os
import stat
import sys
import time
import weakref
from _thread import TIMEOUT_MAX, RLock, get_ident
from collections import Counter, deque, namedtuple
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
    ValuesView,
)
from contextlib import ExitStack, _GeneratorContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache, lru_cache, partial
from itertools import chain, islice, pairwise, takewhile
from math import inf, isnan

if sys.platform != "win32":
    import fcntl

TYPE_CHECKING = False  # to import typing takes 2 ms, of 18 that a script takes which changes a state once
if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Generator
    from datetime import date, datetime, timezone
    from threading import Event
    from typing import Any, AnyStr, NoReturn, TypeAlias, TypeVar

    from ruamel.yaml.scanner import Scanner as _RuamelScanner
    from typing_extensions import Self

    #: What leads from the root to a node.
    _Keys = tuple[Any, ...]
    #: A line as `_LINE` matched it, or as it was known without that.
    _Line: TypeAlias = "re.Match[str] | _PlainLine"
    _Shown = TypeVar("_Shown")
    _Key = TypeVar("_Key")
else:
    Any = _RuamelScanner = _Shown = _Key = object  # until they are needed
    try:  # 0.7 ms less than what is around it (CPython 3.10, 3.11)
        from _datetime import date, datetime, timezone
    except ImportError:
        from datetime import date, datetime, timezone

#: What the names of the module stood for before `importlib.reload`, while a state was open.
_before_reload = dict(globals()) if [*globals().get("_open_trees", ()), *globals().get("_followers", ())] else {}

__version__ = "27.0"
__all__ = [
    "PersistedState",
    "Problem",
    "Repair",
    "StateClosed",
    "StateConflict",
    "StateCorrupt",
    "StateDict",
    "StateError",
    "StateForked",
    "StateList",
    "StateLocked",
    "StateReadOnly",
    "StateUnknown",
    "check",
    "on_change",
    "plain",
    "repair",
]

#: Containers may be nested this deep below the root: ruamel.yaml's reader gives up at about 250.
_MAX_DEPTH = 100
#: A longer key is written in the `? key` form: YAML readers look for the colon within 1,024 characters.
_MAX_SIMPLE_KEY = 1000
#: Nodes that aliases may add to a document, so that a few lines of nested aliases cannot fill the memory.
_MAX_ALIASED = 100_000
#: The journal is vacuumed when it is larger than the snapshot and than this many bytes.
_VACUUM_FLOOR = 1 << 20
#: From here on the interpreter may refuse to write an int in digits.
_LARGE_INT = 2000
_GONE: Any = object()


class _Later:
    """What is imported or made when it is first used.

    To import `re` takes 3 ms, to compile all patterns 8 ms (CPython 3.11), and a short script needs none of them.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._make = partial(make, *arguments)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._make(), name)
        setattr(self, name, found)
        return found


if not TYPE_CHECKING:
    re = _Later(__import__, "re")


def _pattern(text: AnyStr) -> re.Pattern[AnyStr]:
    return _Later(lambda: re.compile(text))  # type: ignore[return-value]


# ------------------------------------------------------ Errors -------------------------------------------------------


class StateError(Exception):
    """Something is wrong with a state; the base of the errors below.

    Attributes: `path` (the file, a str) and `reason` (what is wrong and what to do next).
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


#: So many characters of a line are shown in which something is wrong.
_SIGHT = 120


def _told(line: int, column: int, reason: str, text: str) -> str:
    """Tell what is wrong with a line, with a mark below the column in which it is."""
    from unicodedata import combining, east_asian_width

    if not line:
        return reason
    text = text.rstrip().ljust(column - 1)
    start = max(min(column - 1 - _SIGHT // 2, len(text) - _SIGHT), 0)
    shown = "…" * (start > 0) + text[start : start + _SIGHT] + "…" * (start + _SIGHT < len(text))
    shown = "".join(each if each.isprintable() or each == "\t" else "\ufffd" for each in shown)
    before = [each for each in shown[: column - 1 - start + (start > 0)] if not combining(each)]
    mark = "".join("\t" if each == "\t" else " " * (1 + (east_asian_width(each) in "WF")) for each in before) + "^"
    return f"line {line}, column {column}: {reason}\n    {shown}\n    {mark}"


_ADVICE = "mend it in an editor, or see `persistedstate check FILE` and `persistedstate repair FILE`"
_LOG_ADVICE = "see `persistedstate check ADDRESS`"


class StateCorrupt(StateError, ValueError):
    """The file is not a state, or not as declared: mend what the text shows; the file was left as it is.

    Attributes: `line` and `column` (counted from 1) and `text` (the line itself), besides those of `StateError`. A
    value that stands in no line of the snapshot has line 0. `advice` tells what to do.
    """

    def __init__(
        self, path: str, reason: str, line: int = 1, column: int = 1, text: str = "", advice: str = ""
    ) -> None:
        self.advice = advice or (_LOG_ADVICE if "://" in path else _ADVICE)
        super().__init__(path, f"{_told(line, column, reason, text)}\n{self.advice}")
        self.reason, self.line, self.column, self.text = reason, line, column, text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.line, self.column, self.text, self.advice)


class StateLocked(StateError, TimeoutError):
    """Another process has the file open for writing.

    `pid` is its process id, or None where the system does not tell. `how` is "shared" where it would share the file,
    "alone" where it does not and this process would, else "".
    """

    def __init__(self, path: str, pid: int | None = None, how: str = "") -> None:
        holder = f"process {pid}" if pid else "another process"
        use, advice = _USES[how]
        advice += "end it, wait with _wait=seconds, or read with _readonly=True"
        super().__init__(path, f"in use by {holder}{use}; {advice}")
        self.pid, self.how = pid, how

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.pid, self.how)


#: How somebody uses a file, and what else can be done about it.
_USES = {
    "": ("", "share it with _shared=True in both, "),
    "shared": (", which shares it", "open it with _shared=True here, too, "),
    "alone": (", which has it for itself", "open it with _shared=True there, too, "),
}


class StateConflict(StateError):
    """Another process or person changed what this statement would overwrite, since it was read; nothing was written.

    Repeat the statement: by now memory holds what the other one wrote. In `with STATE.transaction():` nobody else can
    come in between.
    """


class StateUnknown(StateError, OSError):
    """No answer came from the server: whether the change was made is not known. The next one finds that out first."""


class StateForked(StateError):
    """The server lost changes that it had acknowledged, as after a failover. Memory keeps them; nothing is written."""


class StateReadOnly(StateError, PermissionError):
    """The state was opened with `_readonly=True`; open it without to change it."""


class StateClosed(StateError, ValueError):
    """The state was closed; open the file again with `PersistedState(path)`."""


class _BadText(Exception):
    """What the text section found wrong, at an offset of the text; becomes a StateCorrupt where the path is known."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason, self.offset = reason, offset


class _TooDeep(_BadText, RecursionError):
    """The text is nested too deep, or the script itself is too deep in its stack."""


class _Odd(Exception):
    """The text is outside the fast grammar: ruamel.yaml must read it."""


#: What is wrong with a text, where others have to know it again.
_TOP_LEVEL = "the top level must be a mapping (key: value)"
_NOT_UTF_8 = "not UTF-8; save the file in UTF-8"

#: What is no fault of a text.
_ANOTHER_TIME = (ImportError, MemoryError)


@contextmanager
def _advised() -> Iterator[None]:
    """Say what to install where an import finds that a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        reason = f"the package {error.name} is missing; pip install ruamel.yaml portalocker"
        raise ModuleNotFoundError(reason, name=error.name, path=error.path) from None


def _warn(reason: str) -> None:
    """Warn at the line of the script that called this module."""
    frame, level = sys._getframe(), 1
    between = {frame.f_code.co_filename, contextmanager.__code__.co_filename}
    while frame.f_back is not None and frame.f_code.co_filename in between:
        frame, level = frame.f_back, level + 1
    import warnings

    warnings.warn(reason, RuntimeWarning, stacklevel=level)


def _warn_afterwards(reason: str) -> None:
    """Warn of something that is done; where warnings are errors, say it on stderr, so that nothing looks failed."""
    try:
        _warn(reason)
    except Exception:  # noqa: BLE001 - of a hook, too
        with suppress(Exception):
            print(f"RuntimeWarning: {reason}", file=sys.stderr)


def _tool(name: str) -> Any:
    """Import a file of the tools."""
    from importlib import import_module

    try:
        return import_module(f"persistedstate_tools.{name}")
    except ImportError as error:  # there is none, or that of another version
        advice = f"copy that folder beside {os.path.basename(__file__)}, or install all of the project"
        missing = f"the package persistedstate_tools of version {__version__} is missing; {advice}"
        raise ModuleNotFoundError(missing, name="persistedstate_tools") from error


# ------------------------------------------------------- Text --------------------------------------------------------
# str <-> values; knows no file. A document is read by the fast grammar, line by line; the top-level entries outside
# of it go to ruamel.yaml, one by one where that is safe, else all of them. Rewriting works on the text of one entry
# at a time (a *piece*: the comments above, the entry, what is nested in it) and keeps all lines that the new value
# does not change. Whatever goes wrong in that, `_Document.renewed` gives a text with the right values.

_WIDE = "\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff"
_INNER = rf"[A-Za-z0-9_./@%+=()*&$^;,?!|<>'\"\\~\[\]{{}}`{_WIDE}-]*"
_PLAIN = rf"[A-Za-z_/{_WIDE}]{_INNER}(?:(?::(?=[\w/])| +(?=[^ \t\r\n#:])){_INNER})*"
_DOUBLE = r'"(?:[^"\\\t\r\n]|\\["\\bfnrt]|\\u(?:[0-9a-ce-f][0-9a-f]{3}|d[0-7][0-9a-f]{2}))*"'
_SINGLE = r"'(?:[^'\t\r\n]|'')*'"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{6})?(?:[+-][0-9]{2}:[0-9]{2})?"
_MOMENT = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:T{_TIME})?"
_DIGITS = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:e[+-][0-9]+)?)?"
_NUMBER = rf"{_DIGITS}|-?\.inf|\.nan"
_OTHER = r'\[\]|\{\}|!!binary "[A-Za-z0-9+/=]*"'
_SCALAR = rf"{_PLAIN}|{_MOMENT}|{_NUMBER}|{_DOUBLE}|{_SINGLE}|{_OTHER}"

#: One line: blank or comment (no group), or indentation, dashes, key, value, or anything else (the last group). What
#: only looks ahead, and the extra way to spell a key, save a fifth of the time.
_LINE = (
    r"^(?:(?=[ \t]*(?:[#\r\n]|\Z))[ \t]*(?:\#.*)?"
    rf"|( *)((?:- +|-(?=\r?$))*)(?:([A-Za-z_][A-Za-z_0-9]*|{_SCALAR}):(?: +|(?=\t|\r?$)))?({_SCALAR})?"
    r"[ \t]*(?:(?<=[ \t])\#.*)?|(.*))\r?$"
)
_SAFE_PLAIN = _pattern(r"(?:[^\W\d]|/)(?:[\w./@%+=()*&$^;,?!|<>'\"\\~-]|:(?=[A-Za-z/])| (?=[^ \t\r\n#:]))*")
_FLOW_PLAIN = _pattern(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_CONSTANTS = {
    spelling: value
    for word, value in (("true", True), ("false", False), ("null", None))
    for spelling in (word, word.title(), word.upper())
}
#: What some reader takes for something other than a string.
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"])
_ESCAPED = _pattern(f'["\\\\]|[^ -~{_WIDE}]')
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f"}
#: Characters that no YAML stream may hold; and those at which readers differ, which ruamel.yaml shall judge. They are
#: compiled when they are needed: that takes 8 ms (CPython 3.11).
_ILLEGAL = "[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
_UNUSUAL = f"[^\t\n\r -~{_WIDE}]|\r(?!\n)"

_HEAD = _pattern(r"(?:[ \t]*(?:#.*)?\n)*---(?:[ \t]+#.*|[ \t]*)\n")
_DIRECTIVE = _pattern(r"(?:[ \t]*(?:[#%][^\r\n]*)?(?:\r\n?|\n))*?%YAML[ \t]+([0-9.]+)")
_DOCUMENT_END = _pattern(r"(?m)(?:^|(?<=[\r\x85\u2028\u2029]))\.\.\.(?=\s|\Z)")
#: What may stand behind a document, in the eyes of every reader.
_AFTERWORD = _pattern(r"\.\.\.(?: *| +#.*)\n(?: *(?:#.*)?\n)*")
_TAGS = {
    kind: {f"tag:yaml.org,2002:{name}" for name in names.split()}
    for kind, names in (
        ("scalar", "null bool int float str timestamp binary value"), ("mapping", "map"), ("sequence", "seq"),
    )
}  # fmt: skip
_MERGE = "tag:yaml.org,2002:merge"
_QUOTED = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_UNENDED = r'"[^"\\]*(?:\\.[^"\\]*)*\\?\Z'  # else what lacks its end would be searched again from each quote in it
_STRING = _pattern(rf"(?s){_QUOTED}|{_UNENDED}")


#: What there may be in a word that needs no pattern to be known as one.
_IN_WORDS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./- "
#: So many lines are read without a pattern, in all texts of a process together: more are worth the time to compile it.
_few_lines: Iterator[int] = iter(range(500))


class _PlainLine:
    """A line of words, numbers and simple strings; tells what a match of `_LINE` would."""

    __slots__ = ("_groups", "_span", "_value_end", "string")
    lastindex = 4

    def __init__(self, text: str, span: tuple[int, int], value_end: int, groups: tuple[Any, ...]) -> None:
        self.string, self._span, self._value_end, self._groups = text, span, value_end, groups

    def __getitem__(self, group: int) -> Any:
        return self._groups[group - 1]

    def groups(self) -> tuple[Any, ...]:
        return self._groups

    def start(self, group: int = 0) -> int:
        return {0: self._span[0], 4: self._value_end - len(self[4] or "")}[group]

    def end(self, group: int = 0) -> int:
        return {0: self._span[1], 4: self._value_end}[group]


def _plain_line(text: str, start: int) -> _PlainLine | None:
    """Return the line that begins there, None if it takes a pattern to tell what it is."""
    end = text.find("\n", start)
    end = end if end >= 0 else len(text)
    line = text[start:end].partition(" #")[0].rstrip(" ")
    entry = line.lstrip(" ")
    dashes = "- " if entry.startswith("- ") else ""
    key, value = None, entry[len(dashes) :]
    if not _is_bare(value):
        key, colon, value = value.partition(":")
        if not (colon and _is_bare(key)) or (value and not (value[0] == " " and _is_bare(value[1:]))):
            return None
    groups = (line[: len(line) - len(entry)], dashes, key, value if key is None else value[1:] or None, None)
    return _PlainLine(text, (start, end), start + len(line), groups)


def _is_bare(raw: str) -> bool:
    """Tell whether a text is a word, a number or a string without escapes."""
    first = raw[:1]
    if first.isalpha() or first in ("_", "/"):
        return not raw.strip(_IN_WORDS) and raw[-1] != " "
    if first == '"':
        return raw.find('"', 1) == len(raw) - 1 and "\\" not in raw and raw.isprintable()
    if first.isdigit():
        is_number = raw.isascii() and raw.replace(".", "", 1).isdigit() and raw[-1] != "."
        return is_number and (first != "0" or raw[1:2] in ("", "."))
    return raw in ("[]", "{}")


def _plain_lines(text: str) -> tuple[list[_PlainLine], int]:
    """Return the lines at the start of a text that take no pattern, and where the others begin."""
    lines, start = list[_PlainLine](), 0
    for _ in _few_lines:
        if not text.startswith(("#", "\n"), start):
            line = _plain_line(text, start)
            if line is None:
                break
            lines.append(line)
        start = text.find("\n", start) + 1 or len(text)
        if start == len(text):
            break
    return lines, start


@cache
def _line_pattern(*, is_ascii: bool) -> re.Pattern[str]:
    """Return what matches a line; the one for ASCII is compiled in a tenth of the time, 2 ms (CPython 3.11)."""
    return re.compile(_LINE.replace(_WIDE, "") if is_ascii else _LINE, re.MULTILINE)


def _is_unusual(text: str) -> bool:
    """Tell whether a text holds what readers differ at."""
    # Nothing printable is unusual; isprintable() needs a quarter of the time of the pattern.
    return not text.replace("\n", "").isprintable() and re.search(_UNUSUAL, text) is not None


def _quote(text: str) -> str:
    """Write a string in double quotes, with escapes that JSON and YAML share."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:  # 0.3 us less
        return f'"{text}"'
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return _ESCAPES.get(character) or f"\\u{ord(character):04x}"


def _scalar(value: Any) -> str:
    """Write a scalar that is no string so that JSON, YAML 1.1 and YAML 1.2 readers agree."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    kind = type(value)
    if kind is int:
        return str(value)
    if kind is float:
        return _float(value)
    if kind is bytes:
        from binascii import b2a_base64

        return f'!!binary "{b2a_base64(value, newline=False).decode()}"'
    text: str = value.isoformat()
    return text


def _float(value: float) -> str:
    text = repr(value)
    if "e" in text and "." not in text:  # YAML 1.1 takes 1e+16 for a string
        return text.replace("e", ".0e")
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)


def _flow(value: Any) -> str:
    """Write a value on one line: JSON where JSON can say it exactly, else YAML in flow style."""
    kind = type(value)
    if kind is str:
        return _quote(value)
    if kind is dict:
        return f"{{{','.join([_flow_key(key) + _flow(item) for key, item in value.items()])}}}"
    if kind is list:
        return f"[{','.join([_flow(item) for item in value])}]"
    return _scalar(value)


def _flow_key(key: Any) -> str:
    text = _quote(key) if type(key) is str else _scalar(key)
    if len(text) > _MAX_SIMPLE_KEY:
        return f"? {text} : "
    return f"{text}:" if type(key) is str else f"{text}: "


def _inline(value: Any) -> str:
    """Write a scalar or an empty container for block context.

    A string stands without quotes where every reader sees a string.
    """
    if type(value) is str:
        return value if _is_plain(value) else _quote(value)
    return _scalar(value) if not isinstance(value, (dict, list)) else "{}" if type(value) is dict else "[]"


def _is_plain(text: str) -> bool:
    is_safe = (text.isidentifier() and text.isascii()) or (_SAFE_PLAIN.fullmatch(text) and text[-1] != " ")
    return bool(is_safe) and text.lower() not in _WORDS


class _Style(namedtuple("_Style", "mapping sequence dash", defaults=(2, 0, 2))):
    """How far the text of nested entries is set in: a mapping and a list below their key, and what follows a dash."""

    __slots__ = ()
    mapping: int
    sequence: int
    dash: int

    def inset(self, value: Any, *, is_item: bool) -> int:
        return self.dash if is_item else self.mapping if type(value) is dict else self.sequence


_USUAL = _Style()
_KEY_AND_BELOW = _pattern(r"(?m)^([ -]*)[^\s#-].*:[ \t]*(?:#.*)?\n(?:[ \t]*(?:#.*)?\n)*( *)(- |[^\s#-])")
_DASH = _pattern(r"(?m)^ *(- +)[^\s#]")


def _style(text: str, default: _Style) -> _Style:
    """Return the style of a text in block style, as far as it shows."""
    if not text:
        return default
    found = default._asdict()
    for match in reversed([*islice(_KEY_AND_BELOW.finditer(text), 20)]):
        inset = len(match[2]) - len(match[1])
        if inset > 0 or (inset == 0 and match[3] == "- "):
            found["sequence" if match[3] == "- " else "mapping"] = inset
    dash = _DASH.search(text)
    return _Style(**{**found, "dash": len(dash[1])} if dash else found)


def _block(value: Any, column: int, style: _Style = _USUAL) -> str:
    """Write the entries of a non-empty container in block style, indented to `column`, as lines."""
    out: list[str] = []
    _write_block(value, column, style, out)
    return "".join(out)


def _write_block(value: Any, column: int, style: _Style, out: list[str]) -> None:
    if type(value) is dict:
        for key, item in value.items():
            _write_entry(key, item, column, style, out)
    else:
        for item in value:
            _write_item(item, column, style, out)


def _write_entry(key: Any, value: Any, column: int, style: _Style, out: list[str]) -> None:
    name = _inline(key)
    is_long = len(name) > _MAX_SIMPLE_KEY
    head = f"{' ' * column}? {name}\n{' ' * column}:" if is_long else f"{' ' * column}{name}:"
    if isinstance(value, (dict, list)) and value:
        out.append(f"{head}\n")
        _write_block(value, column + (2 if is_long else style.inset(value, is_item=False)), style, out)
    else:
        out.append(f"{head} {_inline(value)}\n")


def _write_item(value: Any, column: int, style: _Style, out: list[str]) -> None:
    if isinstance(value, (dict, list)) and value:
        nested = _block(value, column + style.dash, style)
        out.append(f"{' ' * column}{'-'.ljust(style.dash)}{nested[column + style.dash :]}")
    else:
        out.append(f"{' ' * column}{'-'.ljust(style.dash)}{_inline(value)}\n")


def _same(one: Any, other: Any) -> bool:
    """Tell whether two plain values are alike in value, type and order."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return len(one) == len(other) and all(
            _same(key, twin) and _same(one[key], other[twin]) for key, twin in zip(one, other, strict=True)
        )
    if type(one) is list:
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is float:
        return repr(one) == repr(other)
    return bool(one == other) and (type(one) is not datetime or one.utcoffset() == other.utcoffset())


def _held_keys(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a table by which a key finds the equal one of a mapping: a text tells 1 and True apart, a dict not."""
    return {key: key for key in mapping}


def _read_scalar(raw: str) -> Any:
    """Read one scalar of the fast grammar; raises _Odd for what only looks like one."""
    first = raw[0]
    if first not in "\"'0123456789-.[{!":
        return _CONSTANTS.get(raw, raw)
    if first == '"':
        return raw[1:-1] if "\\" not in raw else _decoder(_unique).decode(raw)
    if first == "'":
        return raw[1:-1].replace("''", "'")
    return _read_special(raw) if first in ".[{!" else _read_number(raw)


def _read_number(raw: str) -> Any:
    try:
        if raw[4:5] == "-" == raw[7:8]:
            return datetime.fromisoformat(raw) if "T" in raw else date.fromisoformat(raw)
        return float(raw.replace(".inf", "inf")) if "." in raw else int(raw)
    except ValueError:
        raise _Odd from None


def _read_special(raw: str) -> Any:
    if raw[0] == "!":
        try:
            from binascii import a2b_base64

            return a2b_base64(raw[10:-1])
        except ValueError:
            raise _Odd from None
    return {"[]": [], "{}": {}, ".inf": float("inf"), ".nan": float("nan")}[raw]


#: What `_flow` writes and JSON lacks, among strings: a long key, another key, a value; and what only JSON reads so.
_BEYOND_JSON = (
    rf"(?s)(?P<string>(?:{_QUOTED}[]\[{{}},:]*)+|{_UNENDED})"
    rf"|\? (?P<long>{_QUOTED}|{_DIGITS}) : |(?<![\w.+-])(?P<key>{_DIGITS}|-?\.inf|true|false|null): "
    rf'|(?P<value>{_MOMENT}|-?\.inf|\.nan|!!binary "[A-Za-z0-9+/=]*")(?=[],}}\s]|\Z)|(?P<other>NaN|Infinity|[\t\r])'
)
_SURROGATE = _pattern(r"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")
#: Marks, in JSON, what stands for something else: no text can hold it.
_FOREIGN = "\ud800"


def _in_json(text: str) -> str:
    """Put what JSON can say in the place of what it cannot, in a text that `_flow` wrote."""
    return re.sub(_BEYOND_JSON, _told_in_json, text)


def _told_in_json(match: re.Match[str]) -> str:
    kind = match.lastgroup or ""
    found: str = match[kind]
    if kind == "string":
        return found
    if kind == "value":
        return f'{{"{_FOREIGN}":{_quote(found)}}}'
    if kind == "other":
        raise _Odd
    return f'"{_FOREIGN}{found}":' if found[0] != '"' else f"{found}:"


def _restored(pairs: list[tuple[str, Any]]) -> Any:
    """Make of a mapping of `_in_json` what it stands for."""
    if pairs and pairs[0][0] == _FOREIGN:
        return _read_scalar(pairs[0][1])
    return _unique([(key if key[:1] != _FOREIGN else _read_scalar(key[1:]), value) for key, value in pairs])


def _is_key(key: Any) -> bool:
    """Tell whether a plain value may be a key; nan may not, it would never be found again."""
    return key is None or isinstance(key, (str, int)) or (isinstance(key, float) and not isnan(key))


@cache
def _decoder(mapping: Callable[..., Any]) -> Any:
    from json import JSONDecoder

    return JSONDecoder(object_pairs_hook=mapping, parse_constant=float)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


class _Entry:
    """Where an entry of a block stands in its text: from its first line to the end of its last line with content."""

    __slots__ = ("end", "key", "odd", "start")

    def __init__(self, start: int, key: Any, *, odd: bool) -> None:
        self.start = self.end = start
        self.key = key
        self.odd = odd


class _Scanner:
    """Reads the text of a block mapping in the fast grammar into `root`, and notes its top-level `entries`.

    An entry with a line outside the grammar is marked as odd, and its value is not read. Raises _Odd where not even the
    entries can be told apart.
    """

    __slots__ = ("entries", "hole", "known", "root", "stack")

    def __init__(self, text: str) -> None:
        self.root: dict[Any, Any] = {}
        self.entries: list[_Entry] = []
        #: The open containers with their columns, outermost first.
        self.stack: list[tuple[int, Any]] = [(0, self.root)]
        #: The container and key that a deeper line may still fill.
        self.hole: tuple[Any, Any] | None = None
        self.known: dict[str, Any] = {}
        self._scan(text)

    def _scan(self, text: str) -> None:  # noqa: C901, PLR0912 - a call costs 10 %
        """Read all lines; right here, in half of the time, one more scalar or one more mapping of a list."""
        stack, known, last = self.stack, self.known, None
        plain, start = _plain_lines(text)
        others = _line_pattern(is_ascii=text.isascii()).finditer(text, start) if start < len(text) else ()
        for match in chain[Any](plain, others):
            indent, dashes, raw_key, raw_value, _ = match.groups()
            (column, top), is_read = stack[-1], False
            try:
                if raw_value is None:
                    pass
                elif raw_key is None:
                    if is_read := dashes == "- " and len(indent) == column and type(top) is list:
                        top.append(_read_scalar(raw_value))
                elif indent and not dashes:
                    key = known[raw_key] if raw_key in known else self._key(raw_key)
                    if is_read := len(indent) == column and type(top) is dict and key not in top:
                        top[key] = _read_scalar(raw_value)
                elif dashes == "- " and len(indent) + 2 == column and type(top) is dict:
                    above, items = stack[-2]
                    if is_read := above + 2 == column and type(items) is list:
                        items.append({self._key(raw_key): _read_scalar(raw_value)})
                        stack[-1] = column, items[-1]
            except _Odd:  # for `_line` to deal with
                is_read = False
            if is_read:
                self.hole, last = None, match
            elif match.lastindex is not None:
                self._line(match, last)
                last = match
        self._end_entry(last)

    def _line(self, match: _Line, last: _Line | None) -> None:
        indent, dashes, raw_key, raw_value, odd = match.groups()
        if odd is not None or not (indent or dashes or raw_key):
            self._odd_line(match, last)
        elif not indent and not dashes:
            key = self._key(raw_key)
            self._start(match.start(), key, last, odd=False)
            self._fill(self.root, key, raw_value)
        elif not self.entries:
            raise _Odd
        elif not self.entries[-1].odd:
            self._nested(len(indent), dashes, raw_key, raw_value)

    def _odd_line(self, match: _Line, last: _Line | None) -> None:
        if match[5] is not None and not _CONTINUED.match(match[5]):
            self._start(match.start(), None, last, odd=True)
        elif self.entries:
            self.entries[-1].odd = True
        else:
            raise _Odd

    def _start(self, start: int, key: Any, last: _Line | None, *, odd: bool) -> None:
        if key in self.root and not odd:
            raise _Odd
        self._end_entry(last)
        del self.stack[1:]
        self.hole = None
        self.entries.append(_Entry(start, key, odd=odd))

    def _end_entry(self, last: _Line | None) -> None:
        """Note where an entry ends whose last line with content was that."""
        if self.entries and last is not None:
            self.entries[-1].end = min(last.end() + 1, len(last.string))

    def _key(self, raw: str) -> Any:
        if raw not in self.known:
            key = _read_scalar(raw)
            if not _is_key(key):
                raise _Odd
            self.known[raw] = key
        return self.known[raw]

    def _nested(self, column: int, dashes: str, raw_key: str | None, raw_value: str | None) -> None:
        try:
            if not dashes and raw_key is None:
                raise _Odd
            while dashes:
                items = self._level(column, list)
                items.append(None)
                self.hole = (items, len(items) - 1)
                width = len(dashes) - len(dashes[1:].lstrip(" "))
                column, dashes = column + width, dashes[width:]
            if raw_key is not None:
                mapping = self._level(column, dict)
                key = self._key(raw_key)
                if key in mapping:
                    raise _Odd
                self._fill(mapping, key, raw_value)
            elif raw_value is not None and self.hole is not None:
                self._fill(*self.hole, raw_value)
        except _Odd:
            self.entries[-1].odd = True

    def _level(self, column: int, kind: type) -> Any:
        """Return the container of that kind whose entries stand in that column, a new one if there is none yet."""
        stack = self.stack
        while stack[-1][0] > column or (stack[-1][0] == column and kind is dict and type(stack[-1][1]) is list):
            stack.pop()
        top_column, top = stack[-1]
        if top_column == column and type(top) is kind:
            return top
        if self.hole is None or self.hole[0] is not top or len(stack) > _MAX_DEPTH:
            raise _Odd
        container = kind()
        top[self.hole[1]] = container
        stack.append((column, container))
        return container

    def _fill(self, container: Any, key: Any, raw_value: str | None) -> None:
        if raw_value is None:
            container[key] = None
            self.hole = (container, key)
        else:
            container[key] = _read_scalar(raw_value)
            self.hole = None


def _compose(text: str, version: str | None = None, anchors: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Let ruamel.yaml parse one document; return what constructs its scalars, and its root node. Raises _BadText.

    anchors: nodes that aliases may refer to, besides those in the text; then they may also lack one.
    """
    with _advised():
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError

    if illegal := re.search(_ILLEGAL, text):
        raise _BadText(f"the character {illegal[0]!r} may not stand in YAML", illegal.start())
    reader = YAML(typ="safe", pure=True)
    reader.Scanner = _scanner_12()
    reader.version = version
    reader.Composer = _knowing(reader.Composer, anchors)  # type: ignore[assignment]
    reader.composer.warn_double_anchors = False
    try:
        return reader.constructor, reader.compose(text)
    except MarkedYAMLError as error:
        raise _trouble(error, text) from None
    except (AssertionError, KeyError):
        raise _BadText("a version of YAML other than 1.1 and 1.2", 0) from None
    except RecursionError:
        raise _TooDeep(f"nested deeper than {_MAX_DEPTH} levels", _deep_bracket(text)) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, this text cannot be read
        raise _BadText(str(error).partition("\n")[0], 0) from None


def _trouble(error: Any, text: str) -> _BadText:
    """Return what ruamel.yaml found wrong with a text: where something began that has no end, or where it stopped."""
    mark, reason = error.problem_mark or error.context_mark, str(error.problem or error.context)
    if error.context_mark and ("expected ':'" in reason or "separator" in reason or mark.index >= len(text.rstrip())):
        mark = error.context_mark
    return _BadText(reason, mark.index)


def _explained(text: str, problem: _BadText) -> _BadText:
    """Return what is wrong with a text in words of a person who writes YAML, if the tools are there to tell."""
    try:
        explained: _BadText = _tool("mistakes").explained(text, problem)
    except Exception:  # noqa: BLE001 - whatever it is, what the reader found must come out
        return problem
    return explained


class _Alias:
    """A node that stands for another one, `target`; None if no such anchor is known."""

    id, tag = "alias", ""

    def __init__(self, event: Any, target: Any) -> None:
        self.start_mark, self.end_mark = event.start_mark, event.end_mark
        self.anchor, self.target = event.anchor, target


class _Undefined:
    """What an alias means that lacks an anchor: a scalar that is nowhere stored."""

    def isoformat(self) -> str:
        return "*"


_UNDEFINED = _Undefined()


def _knowing(composer: type, known: Mapping[str, Any] | None) -> type:
    """Return a kind of composer that tells where aliases are; known: anchors with which documents begin.

    Then an alias may also lack an anchor.
    """
    from ruamel.yaml.events import AliasEvent

    class Knowing(composer):  # type: ignore[misc]
        anchors = property(lambda self: self.found, lambda self, _: setattr(self, "found", dict(known or {})))

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.parser.check_event(AliasEvent):
                name = self.parser.peek_event().anchor
                if known is not None or name in self.found:
                    return _Alias(self.parser.get_event(), self.found.get(name))
            return super().compose_node(parent, index)

    return Knowing


class _Scanner12(_RuamelScanner):
    """Lets tabs stand between tokens, and `?x` in flow style be a scalar, as YAML 1.2 does and ruamel.yaml does not."""

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.reader.peek() == "\t" and self._skip_tabs():
            super().scan_to_next_token()

    def _blanks(self) -> str:
        length = 0
        while self.reader.peek(length) in " \t":
            length += 1
        return str(self.reader.prefix(length))

    def _skip_tabs(self) -> bool:
        """Skip blanks that are no indentation; no block may begin behind a tab."""
        reader, blanks = self.reader, self._blanks()
        is_token = reader.peek(len(blanks)) not in _ENDS + "#"
        before = reader.buffer[reader.pointer - reader.column : reader.pointer]
        if is_token and not before.strip():
            return False
        if is_token:
            self.allow_simple_key = False
        reader.forward(len(blanks))
        return True

    def scan_plain_spaces(self, indent: Any, start_mark: Any) -> Any:
        blanks = self._blanks()
        if "\t" in blanks:
            self.reader.forward(len(blanks))
            if self.reader.peek() not in _ENDS:
                return [blanks]
        return super().scan_plain_spaces(indent, start_mark)

    def scan_block_scalar(self, *arguments: Any, **options: Any) -> Any:
        reader = self.reader
        if tabs := re.compile(r"[|>][-+0-9]*([ \t]*\t)").match(reader.buffer, reader.pointer):
            reader.buffer = reader.buffer[: tabs.start(1)] + " " * len(tabs[1]) + reader.buffer[tabs.end() :]
        return super().scan_block_scalar(*arguments, **options)

    def check_key(self) -> bool:
        is_1_2 = self.flow_level and self.scanner_processing_version != (1, 1)
        return self.reader.peek(1) in _ENDS + " \t,[]{}" if is_1_2 else bool(super().check_key())

    def check_plain(self) -> bool:
        return bool(super().check_plain()) or (self.reader.peek() == "?" and not self.check_key())


@cache
def _scanner_12() -> type:
    from ruamel.yaml.scanner import Scanner

    return type("Scanner", (_Scanner12, Scanner), {})


def _deep_bracket(text: str) -> int:
    """Return the offset of the first bracket that opens too deep a level."""
    depth = 0
    for match in re.finditer(r"[\[{]|[\]}]", text):
        depth += 1 if match[0] in "[{" else -1
        if depth > _MAX_DEPTH:
            return match.start()
    return 0


class _Loader:
    """Turns nodes of ruamel.yaml into plain values, and nothing but plain values; raises _BadText for all else."""

    def __init__(self, text: str, version: str | None = None, anchors: Mapping[str, Any] | None = None) -> None:
        self.text = text
        self.constructor, self.root = _compose(text, version, anchors)
        self.budget = len(text) + _MAX_ALIASED
        #: The top-level keys, and the one that is being read; those with anchors or aliases; all anchors.
        self.keys: list[Any] = []
        self.key: Any = None
        self.anchored: set[Any] = set()
        self.anchors: dict[str, Any] = dict(anchors or {})

    def mapping(self) -> dict[Any, Any]:
        """Return the root as a mapping; an empty document is an empty one."""
        if self.root is None or (self.root.id == "scalar" and self.value(self.root, 0) is None):
            return {}
        if self.root.id != "mapping":
            raise _BadText(_TOP_LEVEL, self.root.start_mark.index)
        found = self.value(self.root, 0)
        assert isinstance(found, dict)  # noqa: S101 - for the type checker
        return found

    def value(self, node: Any, depth: int) -> Any:
        self.budget -= 1
        if self.budget < 0 or depth > _MAX_DEPTH:
            reason = "aliases expand to too much" if self.budget < 0 else f"nested deeper than {_MAX_DEPTH} levels"
            raise _BadText(reason, node.start_mark.index)
        if node.anchor is not None:
            self.anchored.add(self.key)
        if node.id == "alias":
            return self.value(node.target, depth) if node.target is not None else _UNDEFINED
        if node.anchor is not None:
            self.anchors[node.anchor] = node
        if str(node.tag) not in _TAGS[node.id]:
            raise _BadText(f"the tag {node.tag} is not a state's", node.start_mark.index)
        if node.id == "scalar":
            return self._scalar(node)
        if node.id == "sequence":
            return [self.value(item, depth + 1) for item in node.value]
        return self._mapping(node, depth)

    def read(self, node: Any) -> Any:
        """Return the value of one node."""
        self.budget = len(self.text) + _MAX_ALIASED
        return self.value(node, 1)

    def name(self, node: Any) -> Any:
        """Return the key that a node is in a mapping."""
        return _Merge() if str(node.tag) == _MERGE else self._key(node)

    def block(self, text: str, base: int, node: Any) -> _Block:
        """Cut the text of a block, which begins there in the one that was read."""
        column, parts = _column(text), list[Any]()
        pieces, tail = _in_pieces(text, self.bounds(text, base, column, node), column)
        pairs = node.value if node.id == "mapping" else [(None, item) for item in node.value]
        for piece, (key, value) in zip(pieces, pairs, strict=True):
            parts.append(_Marked(piece, base, key, value, self))
            base += len(piece)
        if node.id == "sequence":
            return _Block(parts, tail, column)
        return _Block(dict(zip([self.name(key) for key, _ in pairs], parts, strict=True)), tail, column)

    def bounds(self, text: str, base: int, column: int, node: Any = None) -> list[tuple[int, int]]:
        """Return where each entry of a block begins and ends in its text; raises _Odd where they have no own lines."""
        node, entries, position = node or self.root, list[tuple[int, int]](), 0
        dash = re.compile(rf"^ {{{column}}}-(?=\s)", re.MULTILINE)
        for entry in node.value:
            if node.id == "mapping":
                start, end = _line_start(text, entry[0].start_mark.index - base), _pair_end(entry, self.text)
                if start < position or _is_below_its_mark(text, entry[0], column, base):
                    raise _Odd
            else:
                match = dash.search(text, position)
                if match is None:
                    raise _Odd
                start, end = match.start(), match.end() + base
                end = end if _is_empty(entry) else max(end, _node_end(entry, self.text))
            position = _line_end(text, end - base)
            entries.append((start, position))
        return entries

    def _scalar(self, node: Any) -> Any:
        if str(node.tag).endswith((":str", ":value")):
            return node.value if node.value.isascii() else self._text(node)
        try:
            if str(node.tag).endswith(":float") and "e" in node.value.lower():  # ruamel.yaml warns of 1e3 in YAML 1.1
                return float(node.value.replace("_", ""))
            return self.constructor.construct_object(node)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scalar is not what its tag says
            reason = str(error).partition("\n")[0]
            raise _BadText(f"not a {str(node.tag).rpartition(':')[2]}: {reason}", node.start_mark.index) from None

    @staticmethod
    def _text(node: Any) -> str:
        """Join the surrogate pairs of JSON, each half of which is a character to YAML."""
        try:
            return str(node.value.encode("utf-16", "surrogatepass").decode("utf-16"))
        except UnicodeDecodeError:
            raise _BadText("a lone surrogate is no character", node.start_mark.index) from None

    def _mapping(self, node: Any, depth: int) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        own: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == _MERGE:
                self._begin(_Merge(), depth)
                self.merge(value_node, depth, merged)
                continue
            key = self._key(key_node)
            if key in own:
                raise _BadText(f"duplicate key {key!r}", key_node.start_mark.index)
            self._begin(key, depth)
            own[key] = self.value(value_node, depth + 1)
        return {**merged, **own} if merged else own

    def _begin(self, key: Any, depth: int) -> None:
        if depth == 0:
            self.keys.append(key)
            self.key = key

    def _key(self, node: Any) -> Any:
        key = self.value(node, 1) if node.id in ("scalar", "alias") else ()
        if not _is_key(key) and key is not _UNDEFINED:
            raise _BadText("a key must be text, a number, true, false or null", node.start_mark.index)
        return key

    def merge(self, node: Any, depth: int, merged: dict[Any, Any]) -> None:
        """Add what an entry merges."""
        many = node.target if node.id == "alias" else node
        sources = many.value if many is not None and many.id == "sequence" else [node]
        for source in reversed(sources):
            found = self.value(source, depth + 1)
            if found is not _UNDEFINED and type(found) is not dict:
                raise _BadText("only mappings can be merged", source.start_mark.index)
            merged.update(found if isinstance(found, dict) else {_UNDEFINED: None})


def _node_end(node: Any, text: str) -> int:
    """Return the offset behind the last character that belongs to a node.

    Block collections end with their last child.
    """
    if node.id == "scalar":
        end: int = node.end_mark.index
        if node.style in ("|", ">"):
            header = text[node.start_mark.index :].partition("\n")[0]
            return end if "+" in header.partition("#")[0] else len(text[:end].rstrip()) + 1
        return end
    if node.id == "mapping" and node.flow_style and not _BRACKET.match(text, node.start_mark.index):
        return _flow_pair_end(node.value[0], text)  # without braces it seems to end where the next token begins
    if node.id == "alias" or node.flow_style or not node.value:
        return int(node.end_mark.index)
    if node.id == "mapping":
        return _pair_end(node.value[-1], text)
    return max(int(node.start_mark.index), _node_end(node.value[-1], text))


def _pair_end(pair: tuple[Any, Any], text: str) -> int:
    key, value = pair
    end = _node_end(key, text)
    return end if _is_empty(value) else max(end, _node_end(value, text))


def _flow_pair_end(pair: tuple[Any, Any], text: str) -> int:
    end = _pair_end(pair, text)
    colon = _FLOW_COLON.match(text, end) if end == _node_end(pair[0], text) else None
    return colon.end() if colon else end


def _is_below_its_mark(text: str, key: Any, column: int, base: int = 0) -> bool:
    """Tell whether a key of a block in that column has its `?` on another line; base: where the text begins in its."""
    start = key.start_mark.index - key.start_mark.column - base
    return bool(key.start_mark.column != column and text[start + column] != "?")


def _line_start(text: str, offset: int) -> int:
    return text.rfind("\n", 0, offset) + 1


def _line_end(text: str, offset: int) -> int:
    """Return the offset behind the line feed of the line that holds `offset`, or of the line that ended just there."""
    if offset > 0 and text[offset - 1] == "\n":
        return offset
    return text.find("\n", offset) + 1 or len(text)


def _content_start(text: str) -> int:
    """Return the offset of the first line that is neither blank nor a comment."""
    start = _find_content(text)
    if start < 0:
        raise _Odd
    return start


def _find_content(text: str) -> int:
    """Return the offset of the first line that is neither blank nor a comment, -1 if there is none."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        if _is_content(text[start:end]):
            return start
        start = end
    return -1


def _is_content(line: str) -> bool:
    return line.lstrip()[:1] not in ("", "#")


def _lines_above(piece: str) -> str:
    """Return the comments and blank lines above an entry."""
    return piece[: max(_find_content(piece), 0)]


def _column(text: str) -> int:
    start = _content_start(text)
    return len(text) - start - len(text[start:].lstrip(" "))


#: The header of a block scalar to which the blank lines behind it belong.
_KEEPING = _pattern(r"(?m)[|>][1-9]?\+[1-9]?[ \t]*(?:#.*)?(?:$|[\r\x85\u2028\u2029])")
#: How a line begins that goes on with the entry above.
_CONTINUED = _pattern(r"[ \t\]},.]|[-:?](?!\S)")
_BLOCK_SCALAR = _pattern(r"(?m)[|>](?:[1-9]?[+-]?|[+-][1-9])[ \t]*(?:#.*)?(?:$|[\r\x85\u2028\u2029])")
_BREAK = _pattern("[\r\x85\u2028\u2029]")
#: Where a line ends in the eyes of ruamel.yaml.
_ENDS = "\0\r\n\x85\u2028\u2029"
_LINE_END = _pattern(r"\r\n?|\n")
_SECOND_MARK = "a byte order mark within the file; remove it"
#: A blank line that may be a block scalar's: it is, if it is longer than the indentation.
_BLANK = _pattern(r"[ \t]{2,}\r?\n")
#: The opening bracket of a collection in flow style, behind tag and anchor.
_BRACKET = _pattern(r"\s*(?:[&!][^\s&!,\[\]{}]*\s*)*[\[{]")
#: The colon of a pair that has no value.
_FLOW_COLON = _pattern(r"\s*:")
_FLOW_COMMA = _pattern(r"((?:\s|#.*\n)*),")
_LOOSE_LINE = _pattern(r"(?m)^[ \t]*(?:#.*)?\n")
#: Where the next line is blank or a comment.
_LOOSE = _pattern(r"\n(?=([ \t]*(?:#.*)?\r?\n))")


def _in_pieces(text: str, entries: Sequence[tuple[int, int]], column: int) -> tuple[list[str], str]:
    """Cut a block into the pieces of its entries and the lines behind the last; entries: start and end of each.

    Comments that follow a nested block and stand deeper than the column belong to it; all other lines between two
    entries are in the piece of the lower one.
    """
    cuts = [
        end if end == following else _piece_end(text, first, end, following, column)
        for (first, end), (following, _) in pairwise([*entries, (len(text), 0)])
    ]
    return [text[start:end] for start, end in pairwise([0, *cuts])], text[cuts[-1] if cuts else 0 :]


def _piece_end(text: str, first: int, end: int, following: int, column: int) -> int:
    """Return where a piece ends whose entry ends at `end`, if that entry is right, before the following entry."""
    while (content := _find_content(text[end:following])) >= 0:  # an alias ends where its anchor does
        end = text.find("\n", end + content, following) + 1 or following
    if _has_block_scalar(text[first:end]):  # its lines may look like comments or blank
        end += _own_comments(text[end:following], column)
        gap = text[end:following]
        blank = gap[: len(gap) - len(gap.lstrip())]
        is_kept = _KEEPING.search(text, first, end) is not None
        end += blank.rfind("\n") + 1 if is_kept else max([0, *(match.end() for match in _BLANK.finditer(blank))])
    gap = text[end:following]
    nested = text[first:end].lstrip(" ").startswith("- ") or text.find("\n", first, end - 1) >= 0
    return end + (_own_comments(gap, column) if nested else 0)


def _own_comments(gap: str, column: int) -> int:
    length = position = 0
    for line in gap.splitlines(keepends=True):
        position += len(line)
        if line.strip():
            if len(line) - len(line.lstrip(" ")) <= column:
                break
            length = position
    return length


def _residue(piece: str) -> str:
    """Return what stays of a piece when its entry goes: the lines above that are not the entry's own comments."""
    return "" if piece.lstrip(" ")[:1] not in "#\r\n\t" else _not_own(_lines_above(piece))


def _not_own(above: str) -> str:
    lines = above.splitlines(keepends=True)
    while lines and lines[-1].strip():
        lines.pop()
    return "".join(lines)


def _has_block_scalar(text: str) -> bool:
    return ("|" in text or ">" in text) and _BLOCK_SCALAR.search(text) is not None


def _apart(above: str, lines: str, column: int) -> str:
    """Return the lines below a piece so that no block scalar in it would take in the first of them."""
    lines = re.sub(r"\A(?:[ \t]*[\r\n\x85\u2028\u2029])+", "", lines) if _KEEPING.search(above) else lines
    if _has_block_scalar(above):
        end = len(lines) - len(re.sub(rf"\A(?:[ \t]*\r?\n| {{{column + 1},}}#.*\n)+", "", lines))
        deep = rf"^ {{{column + 1},}}(?=#)|^[ \t]{{2,}}(?=\r?$)"
        lines = re.sub(deep, " " * column, lines[:end], flags=re.MULTILINE) + lines[end:]
    return lines


class _Form:
    """The anatomy of an entry in block style: the parts of its text, in order.

    above: lines above. head: up to the colon or dash. props: anchor and tag. value: with the blanks in front of it.
    rest: of the line. below: the block that is nested in it, or comments. What a dash and its value's first line share
    is moved below, with a space in the place of the dash (`compact`). offset: where in the text the collection begins.
    """

    __slots__ = ("above", "below", "compact", "head", "offset", "props", "rest", "value")

    def __init__(self, piece: str, bounds: Sequence[int], *, compact: bool = False) -> None:
        """bounds: where in the piece head, props, value, rest and the lines below begin."""
        start, head_end, props_end, value_end, line_end = bounds
        self.above, self.head, self.props = piece[:start], piece[start:head_end], piece[head_end:props_end]
        self.value, self.rest, self.below = piece[props_end:value_end], piece[value_end:line_end], piece[line_end:]
        self.compact = compact
        self.offset = props_end if self.value else line_end
        if compact:
            self.offset = _line_start(piece, head_end)
            self.below = " " * (head_end - self.offset) + self.below

    @property
    def column(self) -> int:
        return len(self.head) - len(self.head.lstrip(" "))

    def joined(self, below: str) -> str:
        """Return the piece with other lines below."""
        if not self.compact:
            return f"{self.above}{self.head}{self.props}{self.value}{self.rest}{below}"
        if _content_start(below) == 0:
            return self.above + self.head + below[len(self.head.rpartition("\n")[2]) :]
        return f"{self.above}{self.head}\n{below}"

    def with_value(self, new: Any, below: str, style: _Style) -> str:
        """Return the piece with a new value, and `below` behind it."""
        rest = "\n" if self.compact else self.rest
        token = re.sub(r"\A(?:\s|#.*\n)+", "", self.value)
        lead = self.value[: len(self.value) - len(token)]
        top = self.above + self.head + self.props
        if not isinstance(new, (dict, list)) or not new:
            header, lines = _literal(token, new, self.column + style.mapping)
            return f"{top}{lead or ' '}{header or _requoted(token, new) or _inline(new)}{rest}{lines}{below}"
        comments = lead[: lead.rfind("\n") + 1]
        if comments.strip():
            rest = comments + (f"{' ' * (self.column + 2)}{rest.lstrip()}" if rest.strip() else "")
        is_item = self.head.endswith("-")
        nested = _block(new, self.column + style.inset(new, is_item=is_item), style)
        if is_item and not (rest.strip() or self.props):
            return top + nested[len(self.head) :] + below
        return top + rest + nested + below


_PROPS = _pattern(r"(?:[ \t]+[&!]\S*)*")


def _requoted(token: str, new: Any) -> str:
    """Write a string in the quotes of the one whose place it takes; "" if one of the two is no string in quotes."""
    if type(new) is not str or token[:1] not in ("'", '"'):
        return ""
    return "'" + new.replace("'", "''") + "'" if token[0] == "'" and new.isprintable() else _quote(new)


def _literal(token: str, new: Any, column: int) -> tuple[str, str]:
    """Write lines in the place of a block scalar as one: header and lines; nothing where that cannot be."""
    is_fit = type(new) is str and token[:1] in ("|", ">") and "\n" in new.rstrip("\n") + new[-1:]
    if not is_fit or new[0] in " \n" or new.endswith("\n\n") or not new.replace("\n", "").isprintable():
        return "", ""
    lines = new.removesuffix("\n").split("\n")
    if any(line.isspace() for line in lines):
        return "", ""
    content = re.search(r"\n( *)\S", token)
    pad = content[1] if content else " " * column
    return "|" if new[-1] == "\n" else "|-", "".join([f"{pad}{line}\n" if line else "\n" for line in lines])


class _Merge:
    """Stands for the key of an entry that merges mappings, `<<`."""


class _Part:
    """An entry of a container: its text, and what of it has other values by now. As it is, in the fast grammar.

    is_stale: all of it is to be compared. given: its value, as far as that is known; of a stale container exactly.
    changed: keys in it that were given values, and these. form, inside: its anatomy and the container in it, as soon
    as they are cut. was: the text that it had in the old container, None if it is new.
    """

    __slots__ = ("changed", "form", "given", "inside", "is_stale", "piece", "was")

    def __init__(self, piece: str | None = None) -> None:
        self.piece, self.was, self.is_stale = piece or "", piece, piece is None
        self.given: Any = _UNDEFINED
        self.changed: dict[Any, Any] = {}
        self.form: Any = None
        self.inside: Any = None

    def opened(self) -> Any:
        """Return the container in it, cut if need be; None where all of that is to be compared."""
        if self.is_stale:
            with _UNFIT:
                if self.was is not None:
                    self._become(self._before(self.given), self.given)
        else:
            self.is_stale = not self._is_open()
        return self.inside if not self.is_stale else None

    def _is_open(self) -> bool:
        if self.inside is None:
            with _UNFIT:
                self.inside = self._entries()
            if self.inside is not None:
                self.inside.update(self.changed)
        return self.inside is not None

    def text(self, name: Any, value: Any, within: _Entries) -> str:
        """Return the text with the present value; name: (key,), or None for an item of a list."""
        if self.changed and self.inside is None and not self.is_stale:
            if text := self._with_scalars(_items_of(value)):
                return text
            self.opened()
        if self.inside is not None and not self.is_stale:
            with _UNFIT:
                return str(self._joined(_items_of(value), within))
            self.inside = None
        new = _plain(value)
        with _UNFIT:
            if self.was is not None:
                return self._compared(new, within)
        return within.fresh(self, name, new)

    def _compared(self, new: Any, within: _Entries) -> str:
        """Return the text with a new value, after a look at what in it is another one."""
        if text := self._with_scalars({}, new):
            return text
        old = self._before(new)
        if self.inside is None and _same(old, new):
            return self.piece
        text = self._joined(new, within) if self._become(old, new) else self._replaced(old, new, within)
        if not self._holds(text, new):
            raise _Odd
        return text

    def _before(self, new: Any) -> Any:
        """Return the value so far; what was done in a container does not count where one of another kind comes."""
        if self.inside is not None and not (self.inside.parts and type(self.inside.parts) is type(new)):
            self.inside = None
        return self.value() if self.inside is None else self.inside.value()

    def _become(self, old: Any, new: Any) -> bool:
        """Follow what makes of one value the other; False where they are no containers of a kind."""
        self.changed.clear()
        is_alike = old and new and type(old) is type(new) and type(new) in (dict, list)
        if not (is_alike and self._is_open()):
            return False
        for path, *change in _script(old, new):
            self.inside.follow(path, *change)
        self.is_stale = False
        return True

    def value(self) -> Any:
        """Return the value that the text means; raises _Odd, _BadText."""
        return _fast_value(self.piece)

    def anatomy(self) -> _Form:
        return _fast_form(self.piece)

    def _entries(self) -> _Entries | None:
        self.form = self.anatomy()
        return _fast_block(self.form.below) if not self.form.value else None

    def _holds(self, text: str, new: Any) -> bool:
        """Tell whether a text has the value, as far as can be told at once."""
        return _same(_fast_value(text), new)

    def _with_scalars(self, values: Any, new: Any = _GONE) -> str:
        """Return the text with new scalars, all on lines of their own, "" where it takes more: a tenth of the time."""
        piece = self.piece
        if new is not _GONE:
            return _with_scalar(piece, _content_start(piece), new, is_whole=True)
        column = _column_inside(piece) if type(values) is dict else 0
        for key in self.changed:
            line = _key_line(key, column).search(piece) if column and piece else None
            piece = _with_scalar(piece, line.start(), values.get(key), is_whole=False) if line else ""
        return piece

    def _joined(self, value: Any, within: _Entries) -> str:
        form, inside = self.form, self.inside
        text = inside.text(value, within)
        if type(inside) is _Block:
            return str(form.joined(text) if value else form.with_value(type(value)(), text, within.style))
        lead = form.value[: len(form.value) - len(form.value.lstrip())]
        beside, lines = inside.comments() if not value else ("", "")
        return f"{form.above}{form.head}{form.props}{lead}{text}{beside}{form.rest}{lines}{form.below}"

    def _replaced(self, old: Any, new: Any, within: _Entries) -> str:
        """Return the text with another value, of which nothing is in it yet."""
        form = self.anatomy()
        form.props = ""
        if isinstance(old, (dict, list)) and old and not form.value:
            return form.with_value(new, "", within.style)
        if not old and "#" in form.value:  # in an empty flow collection
            lines = [f"{line}\n" for line in form.value.split("\n") if line.lstrip().startswith("#")]
            form.rest += "".join(lines)
        return form.with_value(new, form.below, within.style)


class _Marked(_Part):
    """An entry of which ruamel.yaml says where its parts are: nodes, and where its text begins in theirs."""

    __slots__ = ("base", "key", "loader", "node")

    def __init__(self, piece: str, base: int, key: Any, node: Any, loader: _Loader) -> None:
        super().__init__(piece)
        self.base, self.key, self.node, self.loader = base, key, node, loader

    def value(self) -> Any:
        return self.loader.read(self.node)

    def _holds(self, _text: str, _new: Any) -> bool:
        return True  # all of the top-level entry is read again

    def _with_scalars(self, _values: Any, _new: Any = _GONE) -> str:
        return ""

    def _entries(self) -> _Entries | None:
        self.form, node = self.anatomy(), self.node
        base = self.base + self.form.offset
        if node.id in ("scalar", "alias") or not node.value:
            return None
        return _Flow(node, self.loader) if node.flow_style else self.loader.block(self.form.below, base, node)

    def anatomy(self) -> _Form:
        """Take the text apart."""
        piece, start, text, node = self.piece, _content_start(self.piece), self.loader.text, self.node
        if self.key is None:
            head_end = piece.index("-", start) + 1
        else:
            piece, head_end = _colon(piece, start, _node_end(self.key, text) - self.base)
        props = _PROPS.match(piece, head_end) if node.id == "scalar" or _is_block(node) else None
        props_end = props.end() if props else head_end
        first = node.start_mark.index - self.base
        if _is_block(node) and not piece[head_end:first].strip(" ") and piece[first] not in "!&":
            return _Form(piece, [start, *[head_end] * 4], compact=True)
        is_literal = node.id == "scalar" and node.style in ("|", ">")
        end = head_end if _is_empty(node) or _is_block(node) else _node_end(node, text) - self.base
        end = max(end, props_end)
        form = _Form(piece, [start, head_end, props_end, end, end if is_literal else piece.index("\n", end) + 1])
        if is_literal:
            comment = re.search(r"\s+#.*", form.value.partition("\n")[0])
            form.rest = f"{comment[0] if comment else ''}\n"
            form.below = re.sub(r"\A(?:[ \t]*\n)+", lambda blank: "\n" * blank[0].count("\n"), form.below)
        elif re.fullmatch(r"\s*|\s+#.*\n", form.rest) is None:
            raise _Odd
        return form


class _Entries:
    """A container that is cut into its entries; it follows what becomes of the container.

    parts: a list, or a dict, of entries, or of their texts, if nothing was to be done to them yet. original: what they
    were. gone: what was removed, for keys that come back. outer: the container that this one is in.
    """

    __slots__ = ("gone", "is_moved", "original", "outer", "parts")

    #: What a new entry is.
    kind: type[_Part] = _Part

    def __init__(self, parts: Any) -> None:
        self.parts: Any = parts
        self.original = list(parts.values() if type(parts) is dict else parts)
        self.gone: dict[Any, Any] = {}
        self.is_moved = False
        self.outer: Any = None

    @property
    def style(self) -> _Style:
        """How entries are set in."""
        return self.outer.style if self.outer is not None else _USUAL

    def made(self, key: Any, piece: str) -> _Part:  # noqa: ARG002 - at the top level it makes a difference
        """Return the entry with a text."""
        return _Part(piece)

    def part(self, key: Any) -> _Part:
        """Return an entry, a new one where there is no such key."""
        if type(self.parts) is list:
            self._reach(key + 1)
        elif key not in self.parts:
            self.parts[key], self.is_moved = self.gone.pop((type(key), key), None) or self.kind(), True
        found = self.parts[key]
        if type(found) is str:
            found = self.parts[key] = self.made(key, found)
        return found  # type: ignore[no-any-return]

    def _reach(self, length: int) -> None:
        """Add entries for items at the end of a list: not every `append` is told."""
        if len(self.parts) < length:
            self.parts += [self.kind() for _ in range(length - len(self.parts))]
            self.is_moved = True

    def follow(self, path: Sequence[Any], operation: str, *arguments: Any) -> None:
        """Do to the text what an operation did to the container at a path."""
        cut, last = self, len(path) - 1
        for place, key in enumerate(path):
            part = cut.part(key)
            if part.inside is None and place == last and operation == "set" and not part.is_stale:
                part.changed[arguments[0]], part.given = arguments[1], _UNDEFINED
                return
            inside, part.given = part.opened(), _UNDEFINED
            if inside is None:
                return
            cut = inside
        getattr(cut, operation)(*arguments)

    def set(self, key: Any, value: Any) -> None:
        part = self.part(key)
        part.is_stale, part.given = True, value

    def update(self, items: Mapping[Any, Any]) -> None:
        for key, value in items.items():
            self.set(key, value)

    def delete(self, key: Any) -> None:
        self.is_moved = True
        if type(self.parts) is list:
            self._reach(key + 1)
            del self.parts[key]
        elif key in self.parts:
            self.gone[type(key), key] = self.part(key)
            del self.parts[key]

    def clear(self) -> None:
        for key in [*self.parts] if type(self.parts) is dict else ():
            self.delete(key)
        self.parts.clear()
        self.is_moved = True

    def insert(self, index: int, _value: Any) -> None:
        self._reach(index)
        self.parts.insert(index, self.kind())
        self.is_moved = True

    def splice(self, start: int, stop: int, values: Sequence[Any]) -> None:
        """Items have the texts of those in whose place they come, where they are the same or the most alike."""
        self._reach(stop)
        old = [self.part(index) for index in range(start, stop)] if values else []
        was, new = [_value_of(part) for part in old], list[_Part]()
        for index, value in zip(_origins(was, values) if old else [None] * len(values), values, strict=True):
            is_known = index is not None and (_same(was[index], value) or _likeness(was[index], value))
            part = old[index] if index is not None and (is_known or len(old) == len(values)) else self.kind()
            part.is_stale, part.given = True, value if old else _UNDEFINED
            new.append(part)
        self.parts[start:stop] = new
        self.is_moved = True

    def order(self, keys: Sequence[Any]) -> None:
        parts, self.is_moved = self.parts, True
        if type(parts) is list:
            self._reach(max(keys, default=-1) + 1)
            self.parts = [parts[index] for index in keys]
        else:
            merges = [key for key in parts if type(key) is _Merge]
            self.parts = {key: parts[key] for key in [*merges, *keys] if key in parts}

    # What becomes of it.

    def value(self) -> Any:
        """Return what it holds as far as it is not stale."""
        if type(self.parts) is list:
            return [_value_of(self.part(index)) for index in range(len(self.parts))]
        own = {key: _value_of(self.part(key)) for key in [*self.parts] if type(key) is not _Merge}
        return {**self._merged(), **own}

    def _merged(self) -> dict[Any, Any]:
        """Return what is merged; raises _BadText where that cannot be told."""
        merged: dict[Any, Any] = {}
        for key in [*self.parts]:
            if type(key) is _Merge:
                part: Any = self.part(key)
                part.loader.merge(part.node, 1, merged)
        return merged

    def text(self, items: Any, outer: _Entries) -> str:
        """Return the text with the present values; raises _Odd where they are another kind of container."""
        if type(items) is not type(self.parts):
            raise _Odd
        self.outer = outer
        return self.joined(self.texts(items))

    def joined(self, texts: list[str]) -> str:
        """Put the texts of all entries together."""
        raise NotImplementedError

    def texts(self, items: Any) -> list[Any]:
        """Return the texts of all entries, with the present values."""
        if type(items) is dict:
            self._match(items)
            pairs: Iterable[Any] = self.parts.items()
        else:
            self._reach(len(items))
            if len(self.parts) > len(items):
                raise _Odd
            pairs = enumerate(self.parts)
        return [part if type(part) is str else self.text_of(key, part, items) for key, part in pairs]

    def text_of(self, key: Any, part: _Part, items: Any) -> str:
        if type(key) is _Merge or not (part.is_stale or part.changed or part.inside):
            return part.piece
        return part.text((key,) if type(items) is dict else None, items[key], self)

    def fresh(self, part: _Part, name: Any, new: Any) -> str:
        """Return an entry that is written plainly."""
        raise NotImplementedError

    def _match(self, items: Any) -> None:
        """Put the entries in order; raises _Odd if they are not those of the keys."""
        parts = self.parts
        if list(parts) == list(items):
            return
        merges = [self.part(key) for key in [*parts] if type(key) is _Merge]
        if not merges and self.outer is not None:
            raise _Odd
        if merges and self._keeps(items):
            return
        self.parts, self.is_moved = {}, True
        for key in items:
            part = parts.get(key)
            if part is None or _is_new(part):
                part = self.without_merge(merges.pop(0), key, items[key]) if merges else part or self.kind()
            self.parts[key] = part

    def _keeps(self, items: Any) -> bool:
        """Tell whether what is merged has the present values."""
        with _UNFIT:
            merged = self._merged()
            own = {key: None for key in self.parts if type(key) is not _Merge}
            is_same = all(key in own or _same(value, _plain(items.get(key))) for key, value in merged.items())
            return is_same and list({**merged, **own}) == list(items)
        return False

    def without_merge(self, part: Any, key: Any, value: Any) -> Any:
        """Return an entry in the place of one that merges."""
        raise NotImplementedError


class _Unfit:
    """Lets pass what is to be written in another way; not that there is no room for it on the stack."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, (_Odd, _BadText)) and not isinstance(error, RecursionError)


_UNFIT = _Unfit()


def _is_new(part: Any) -> bool:
    return type(part) is not str and part.was is None


def _value_of(part: Any) -> Any:
    """Return the value of an entry, as far as that can be told: what it was given, or what its text means."""
    if part.given is _UNDEFINED and not part.is_stale:
        with _UNFIT:
            part.given = part.inside.value() if part.inside is not None else part.value()
    return part.given


class _Block(_Entries):
    """A container in block style. tail: lines behind the last entry."""

    __slots__ = ("_style", "column", "tail")

    def __init__(self, parts: Any, tail: str, column: int) -> None:
        super().__init__(parts)
        self.tail, self.column = tail, column
        self._style: _Style | None = None

    @property
    def is_odd(self) -> bool:
        """Whether there may be something in it that is outside the fast grammar."""
        return any(type(part) is not str for part in self.original)

    @property
    def style(self) -> _Style:
        """How entries are set in, as those here show."""
        if self._style is None:
            self._style = _style("".join(map(_piece, self.original[-50:])), super().style)
        return self._style

    def joined(self, texts: list[str]) -> str:
        return "".join([*self._laid(texts), self.tail])

    def fresh(self, part: _Part, name: Any, new: Any) -> str:
        entry = [new] if name is None else {name[0]: new}
        return _lines_above(part.piece) + _block(entry, self.column, self.style)

    def without_merge(self, part: Any, key: Any, value: Any) -> Any:
        form, found = part.anatomy(), _Part(part.piece)
        form.head = f"{form.head[: form.head.index('<<')]}{_inline(key)}:"
        form.value = ""
        found.piece = form.with_value(_plain(value), form.below, self.style)
        return found

    def _laid(self, texts: list[str]) -> list[str]:
        """Put loose lines in their places, and keep out of block scalars what came to stand below them."""
        if not self.is_moved:
            return texts
        pieces = list(map(_piece, self.original))
        loose = list(map(_residue, pieces))
        laid = self._with_loose_lines(texts, pieces, loose) if any(loose) else texts
        if self.is_odd and any(map(_has_block_scalar, pieces)):
            for place in range(1, len(laid)):
                laid[place] = _apart(laid[place - 1], laid[place], self.column)
            self.tail = _apart(laid[-1], self.tail, self.column) if laid else self.tail
        return laid

    def _with_loose_lines(self, texts: list[str], pieces: list[Any], loose: list[str]) -> list[str]:
        """Lay lines that are not an entry's own; they stay above the entry below as long as none passes another one."""
        places = {id(piece): index for index, piece in enumerate(pieces)}
        parts = self.parts.values() if type(self.parts) is dict else self.parts
        origin = [places.get(id(_piece(part))) for part in parts]
        order = [index for index in origin if index is not None]
        is_sorted, position, laid = order == sorted(order), 0, []
        for place, (index, text) in enumerate(zip(origin, texts, strict=True)):
            own = text if index is None else text[len(loose[index]) :]
            end = place + 1 if not is_sorted else position if index is None else index + 1
            laid.append("".join([*loose[position:end], own]))
            position = max(position, end)
        self.tail = "".join([*loose[position:], self.tail])
        return laid


def _piece(part: Any) -> Any:
    """Return the text that an entry had in the old container."""
    return part if type(part) is str else part.was


class _Item(_Marked):
    """An entry in flow style: lines above, lead, name with its colon, value (`piece`), up to the comma, comment beside.

    lead: what sets the item off from the one before it: a line feed and an indentation, or blanks, if any.
    """

    __slots__ = ("above", "beside", "gap", "lead", "name")

    def __init__(self, name: str = "", piece: Any = None, above: str = "", lead: str = "", *marks: Any) -> None:
        super().__init__(piece, 0, None, *(marks or (None, None)))
        self.name, self.above, self.lead, self.gap, self.beside = name, above, lead, "", ""

    def _entries(self) -> _Entries | None:
        node = self.node
        return _Flow(node, self.loader) if node is not None and node.id in ("mapping", "sequence") else None

    def _joined(self, value: Any, within: _Entries) -> str:
        text = str(self.inside.text(value, within))
        if not value:
            self.beside = self.inside.comments()[0] + self.beside
        return text

    def _replaced(self, _old: Any, new: Any, within: _Entries) -> str:
        return _requoted(self.piece, new) or within.fresh(self, None, new)

    def replace(self, token: str) -> None:
        """Give the item another value; an empty one may even lack the colon."""
        if token and not self.piece and self.name:
            self.name = f"{self.name.rstrip().removesuffix(':')}: "
        self.piece = token


class _Flow(_Entries):
    """A container in flow style: opening bracket with the rest of its line, items, a last comma, closing bracket."""

    __slots__ = ("closing", "comma", "indent", "opening", "quoted")

    kind = _Item

    def __init__(self, node: Any, loader: _Loader) -> None:
        text, start = loader.text, node.start_mark.index
        bracket = _BRACKET.match(text, start)
        position = bracket.end() if bracket else start
        self.opening, self.comma, items = _Item(text[start:position], ""), False, list[_Item]()
        parts: dict[Any, Any] = {}
        end = _node_end(node, text)
        self.quoted = '"' in text[start:end]
        above = text[_line_start(text, start) : start]
        self.indent = " " * (len(above) - len(above.lstrip(" -?")))
        last = end - 1 if bracket else end
        for child in node.value:
            first, value = child if node.id == "mapping" else (child, child)
            child_end = _flow_pair_end(child, text) if node.id == "mapping" else _node_end(value, text)
            child_start = min(value.start_mark.index, child_end)
            beginning = position + len(re.sub(r"\?[ \t]*\Z", "", text[position : first.start_mark.index]))
            above, lead = self._break(text[position:beginning], items)
            item = _Item(text[beginning:child_start], text[child_start:child_end], above, lead, value, loader)
            comma = _FLOW_COMMA.match(text, child_end, last)
            item.gap, self.comma, position = (comma[1], True, comma.end()) if comma else ("", False, child_end)
            items.append(item)
            if node.id == "mapping":
                parts[loader.name(first)] = item
        self.closing = _Item("", text[last:end], *self._break(text[position:last], items))
        super().__init__(parts if node.id == "mapping" else items)

    def _break(self, between: str, items: list[_Item]) -> tuple[str, str]:
        """Return lines above and lead of what follows a text; the rest of its first line is beside the item before."""
        beside, is_broken, rest = between.partition("\n")
        if not is_broken:
            return "", between
        (items[-1] if items else self.opening).beside = beside
        above, end, indent = rest.rpartition("\n")
        return above + end, f"\n{indent}"

    def fresh(self, _part: _Part, _name: Any, new: Any) -> str:
        return _flow_text(new, quoted=self.quoted)

    def without_merge(self, part: Any, key: Any, value: Any) -> Any:
        part.name, part.piece = f"{_flow_text(key, quoted=self.quoted)}: ", self.fresh(part, None, _plain(value))
        part.is_stale = False
        return part

    def comments(self) -> tuple[str, str]:
        """Return those of the collection itself, for when it is emptied: beside its beginning, and apart from items."""
        beside = self.opening.beside.rstrip()
        return beside, self._loose(0, len(self.original)) + self.closing.above

    def joined(self, texts: list[str]) -> str:
        pairs = [*self.parts.items()] if type(self.parts) is dict else [(None, part) for part in self.parts]
        for (key, part), text in zip(pairs, texts, strict=True):
            if _is_new(part) and type(self.parts) is dict:
                part.name = f"{_flow_text(key, quoted=self.quoted)}: "
            part.replace(text)
        parts = [part for _, part in pairs]
        if not self.opening.name and len(parts) != 1:  # a pair in a list, without braces
            self.opening.name, self.closing.piece = "{", "}"
        if not parts:
            return self.opening.name + self.closing.piece
        return self._joined(parts)

    def _joined(self, items: list[_Item]) -> str:
        """Put the collection together again.

        Comments stay with their items. Breaks stay in their places, but for those of items that are gone.
        """
        places = {id(item): index for index, item in enumerate(self.original)}
        breaks = [item.lead for item in self.original if "\n" in item.lead]
        line = breaks[0] if breaks else "\n" + max(self.closing.lead.lstrip("\n"), self.indent) + "  "
        self._set_off(items, [places.get(id(item)) for item in items], line)
        out, tail = [self.opening.name], self.opening.beside
        for item in [*items, self.closing]:
            if (item.above or "#" in tail.rpartition("\n")[2]) and "\n" not in item.lead:
                item.lead = line
            out += [tail if "\n" in item.lead else tail.rstrip(), item.lead.replace("\n", f"\n{item.above}")]
            out += [item.name, item.piece]
            gap = item.gap or " " * (item.name + item.piece).endswith(":")  # ruamel.yaml takes `b:,` for a string
            is_followed = item is not self.closing and (self.comma or item is not items[-1])
            tail = f"{gap},{item.beside}" if is_followed else gap.rstrip() + item.beside
        return "".join(out)

    def _set_off(self, items: list[_Item], origin: list[int | None], line: str) -> None:
        """Give each item its lead, and what was loose above those that are gone."""
        leads, position = [item.lead for item in self.original], 0
        kept = sorted([index for index in origin if index is not None])
        for index in sorted({*range(len(leads))} - {*kept}, reverse=True):
            if index and "\n" not in leads[index]:  # a comment at the end of a line stays while some of the line does
                self.original[index - 1].beside += self.original[index].beside
        are_on_lines = bool(leads) and all("\n" in lead for lead in leads[1:] or leads)
        between = line if are_on_lines else next((lead for lead in leads[1:] if "\n" not in lead), " ")
        ranks = iter(kept)
        for place, (item, index) in enumerate(zip(items, origin, strict=True)):
            item.lead = between
            if index is not None:
                rank = next(ranks)
                item.above = self._loose(position, rank) + item.above
                broken = [lead for lead in leads[position : rank + 1] if "\n" in lead]
                item.lead = broken[-1] if broken else leads[rank] if rank else between
                position = rank + 1
            if place == 0 and (index is None or "\n" not in leads[0]):
                item.lead = leads[0] if leads else ""
        self.closing.above = self._loose(position, len(leads)) + self.closing.above

    def _loose(self, start: int, end: int) -> str:
        return "".join([_not_own(item.above) for item in self.original[start:end]])


def _flow_text(value: Any, *, quoted: bool) -> str:
    """Write a value in flow style as a person would; quoted: put every string in quotes."""
    if type(value) is str:
        plain_text = not quoted and _FLOW_PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain_text else _quote(value)
    if type(value) is list:
        return f"[{', '.join([_flow_text(item, quoted=quoted) for item in value])}]"
    if type(value) is dict:
        pairs = [f"{_flow_text(key, quoted=quoted)}: {_flow_text(item, quoted=quoted)}" for key, item in value.items()]
        return f"{{{', '.join(pairs)}}}"
    return _scalar(value)


def _script(old: Any, new: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield operations that make a plain container another one of its kind: paths, names and arguments."""
    pairs: Iterable[tuple[Any, Any, Any]]
    if type(old) is list:
        origin = _origins(old, new)
        kept = [index for index in origin if index is not None]
        if kept != [*range(len(old))]:
            yield path, "order", kept
        yield from [(path, "insert", at, new[at]) for at, index in enumerate(origin) if index is None]
        pairs = [(at, old[index], new[at]) for at, index in enumerate(origin) if index is not None]
    else:
        held = _held_keys(new)
        gone = [key for key in old if not _same(key, held.get(key, _GONE))]
        yield from [(path, "delete", key) for key in gone]
        kept = [key for key in old if key in held and _same(key, held[key])]
        known = set(kept)
        yield from [(path, "set", key, value) for key, value in new.items() if key not in known]
        if [*kept, *(key for key in new if key not in known)] != [*new]:
            yield path, "order", [*new]
        pairs = [(key, old[key], new[key]) for key in kept]
    for key, was, value in pairs:
        if not _same(was, value):
            is_alike = was and value and type(was) is type(value) and type(value) in (dict, list)
            yield from _script(was, value, (*path, key)) if is_alike else [(path, "set", key, value)]


def _origins(old: Sequence[Any], new: Sequence[Any]) -> list[int | None]:
    """Return for each new item the index of the old one that it is, or takes the place of; None for a new one."""
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and _same(old[start], new[start]):
        start += 1
    stop = 0
    while stop < shorter - start and _same(old[-1 - stop], new[-1 - stop]):
        stop += 1
    end = len(old) - stop
    pool: dict[str, list[int]] = {}
    for index in range(end - 1, start - 1, -1):
        pool.setdefault(_flow(old[index]), []).append(index)
    middle: list[int | None] = []
    for value in new[start : len(new) - stop]:
        alike = pool.get(_flow(value))
        middle.append(alike.pop() if alike else None)
    _pair_up(middle, old, new[start:], start, end)
    return [*range(start), *middle, *range(end, len(old))]


def _pair_up(origin: list[int | None], old: Sequence[Any], new: Sequence[Any], start: int, end: int) -> None:
    """Let a new item take the place of an old one that is gone from between the same neighbours.

    Where more are gone than came, it is the one out of the next few that it has most in common with.
    """
    taken, cursor = set(origin), start
    for position, known in enumerate(origin):
        index = known
        if known is None:
            free = list(takewhile(lambda old_index: old_index not in taken, range(cursor, min(end, cursor + 8))))
            came = len(list(takewhile(lambda entry: entry is None, origin[position : position + len(free)])))
            free = free[: len(free) - came + 1]
            index = max(free, key=lambda old_index: _likeness(old[old_index], new[position]), default=None)
        if index is not None:
            origin[position] = index
            taken.add(index)
            cursor = index + 1


def _likeness(one: Any, other: Any) -> int:
    """Return how many entries or items two containers have in common."""
    if type(one) is dict and type(other) is dict:
        return sum(key in other and _same(value, other[key]) for key, value in one.items())
    if type(one) is list and type(other) is list:
        return sum(map(_same, one, other))
    return 0


def _items_of(value: Any) -> Any:
    """Return what a node holds; any other value itself."""
    return getattr(value, "_items", value)


def _plain(value: Any) -> Any:
    """Return a plain, deep copy."""
    content = _items_of(value)
    if type(content) is dict:
        return {key: item if type(item) in _SIMPLE else _plain(item) for key, item in content.items()}
    return [item if type(item) in _SIMPLE else _plain(item) for item in content] if type(content) is list else content


def _is_empty(node: Any) -> bool:
    return bool(node.id == "scalar" and node.style is None and node.value == "")


def _is_block(node: Any) -> bool:
    return bool(node.id in ("mapping", "sequence") and not node.flow_style)


def _fast_value(piece: str) -> Any:
    """Read the value of an entry in block style in the fast grammar; raises _Odd."""
    is_top = _TOP.match(piece, _content_start(piece)) is not None
    scanner = _Scanner(piece if is_top else f"x:\n{piece}")
    found = scanner.root if is_top else scanner.root["x"]
    if any(entry.odd for entry in scanner.entries) or not isinstance(found, (dict, list)) or len(found) != 1:
        raise _Odd
    return next(iter(found.values() if type(found) is dict else found))


_TOP = _pattern(r"(?! |-[ \r\n])")
_IS_LIST = _pattern(r" *-[ \r\n]")


def _fast_block(text: str) -> _Block:
    """Cut a block in the fast grammar."""
    column = _column(text)
    is_list = _IS_LIST.match(text, _content_start(text)) is not None
    pieces, tail = _in_pieces(text, _bounds(text, column, list if is_list else dict), column)
    if is_list:
        return _Block(pieces, tail, column)
    parts = dict(zip(map(_first_key, pieces), pieces, strict=True))
    if len(parts) != len(pieces):
        raise _Odd
    return _Block(parts, tail, column)


def _bounds(text: str, column: int, kind: type) -> list[tuple[int, int]]:
    """Find start and end of each entry of a block in the fast grammar."""
    beginning = r"-(?=[ \r\n])" if kind is list else r"(?!-[ \r\n])[^ #\t\r\n]"
    starts = [match.start() for match in re.finditer("\n" + " " * column + beginning, f"\n{text}")]
    ends = [*starts[1:], len(text)][: len(starts)]
    may_be_loose = any(mark in text for mark in ("#", "\n\n", " \n", "\t\n", "\r"))
    loose = {match.end(1): match.start(1) for match in _LOOSE.finditer(text)} if may_be_loose else {}
    for place in range(len(ends)) if loose else ():
        while ends[place] in loose:
            ends[place] = loose[ends[place]]
    return list(zip(starts, ends, strict=True))


def _first_key(piece: str) -> Any:
    """Return the key of the piece of an entry of a mapping, in the fast grammar."""
    match = _line_pattern(is_ascii=piece.isascii()).match(piece, _content_start(piece))
    if match is None or match[3] is None:
        raise _Odd
    return _read_scalar(match[3])


def _fast_form(piece: str) -> _Form:
    """Take the text of an entry in the fast grammar apart."""
    start = _content_start(piece)
    match = _line_pattern(is_ascii=piece.isascii()).match(piece, start)
    if match is None or match[5] is not None:
        raise _Odd
    if match[2]:
        head_end = match.start(2) + 1
        if len(match[2].rstrip(" ")) > 1 or match[3] is not None:
            return _Form(piece, [start, *[head_end] * 4], compact=True)
    else:
        head_end = match.end(3) + 1
    return _Form(piece, [start, head_end, head_end, match.end(4) if match[4] else head_end, match.end() + 1])


#: What may take the place of a scalar on a line.
_SIMPLE = frozenset([str, int, float, bool, bytes, date, datetime, type(None)])


def _with_scalar(piece: str, start: int, new: Any, *, is_whole: bool) -> str:
    """Return a text with a scalar in the place of the one in the line that begins there, "" if that is no such line.

    is_whole: the text is that line.
    """
    if type(new) not in _SIMPLE:
        return ""
    match: _Line | None = _plain_line(piece, start) or _line_pattern(is_ascii=piece.isascii()).match(piece, start)
    if match is None or match[5] is not None or match[4] in (None, "[]", "{}"):
        return ""
    if is_whole and (match.end() + 1 < len(piece) or len(match[2].rstrip()) > 1 or (match[2] and match[3])):
        return ""
    try:
        if _same(_read_scalar(match[4]), new):
            return piece
    except _Odd:
        return ""
    return piece[: match.start(4)] + (_requoted(match[4], new) or _inline(new)) + piece[match.end(4) :]


#: How the text of an entry begins that holds a mapping in block style: up to its first key, behind a dash or below.
_INSIDE = _pattern(r"( *- +)[^\s#-]|( *)[^\s#-].*\n(?:[ \t]*(?:#.*)?\n)*( +)[^\s#-]")


def _column_inside(piece: str) -> int:
    """Return the column of the keys of the mapping in an entry, 0 if there is none."""
    match = _INSIDE.match(piece, _content_start(piece))
    if match is None:
        return 0
    return len(match[1]) if match[1] else len(match[3]) if len(match[3]) > len(match[2]) else 0


@lru_cache(maxsize=100, typed=True)
def _key_line(key: Any, column: int) -> re.Pattern[str]:
    """Return what finds the line of a key in that column, which may follow a dash."""
    return re.compile(rf"^[ -]{{{column}}}{re.escape(_inline(key))}:(?= )", re.MULTILINE)


def _colon(piece: str, start: int, key_end: int) -> tuple[str, int]:
    """Return the piece of an entry and the offset behind its colon, which the `? key` form has on a line of its own."""
    is_simple = re.match(r"\s*\?\s", piece[start:]) is None
    match = re.compile(":" if is_simple else r"^ *:(?=\s)", re.MULTILINE).search(piece, key_end)
    if match is not None:
        return piece, match.end()
    line_end = _line_end(piece, key_end)
    head = f"{piece[:line_end]}{' ' * _column(piece)}:"
    return f"{head}\n{piece[line_end:]}", len(head)


def _on_an_empty_stack(function: Callable[..., _Document], *arguments: Any) -> _Document:
    """Call a function in a thread: the script may be so deep in its stack that there is no room for a text."""
    found: list[_Document | Exception] = []

    def run() -> None:
        try:
            found.append(function(*arguments))
        except Exception as error:  # noqa: BLE001 - handed on
            found.append(error)

    from threading import Thread

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


#: A snapshot without entries: lines above, what stands for a mapping, lines below.
_EMPTY = _pattern(r"((?:[ \t]*(?:#.*)?\n)*)(\{\}[ \t]*\n)?((?:[ \t]*(?:#.*)?\n)*)")


class _Document:
    """The text of a snapshot, cut into one piece for each top-level entry. Made by `read`, followed by `renewed`."""

    def __init__(self) -> None:
        self.head = ""
        self.pieces: dict[Any, str] = {}
        self.tail = ""
        #: What stands for a mapping without entries: "{}" or, in an empty file, nothing.
        self.nothing = ""
        self.column = 0
        #: A root that is not cut, for instance one in flow style.
        self.single = ""
        self.newline = "\n"
        self.ends_with_newline = True
        self.version: str | None = None
        #: A last entry, with its value, that would change with a line feed behind it: a block scalar.
        self.unended: dict[Any, Any] = {}
        #: Keys of the entries outside the fast grammar, and of those with anchors or aliases.
        self.odd: set[Any] = set()
        self.anchored: set[Any] = set()
        #: There are line ends other than those by which the text is cut: what becomes of it is read back.
        self.is_unusual = False
        #: Keys of the entries that could only be written plainly, and why; _GONE stands for the whole text.
        self.lost: dict[Any, Exception] = {}
        #: What went wrong where it should not, when this was made; all values are in the text nevertheless.
        self.faults: list[Exception] = []
        #: What happened to the values since: paths, operations and their arguments; and whether that may not be all, so
        #: that the next renewal compares all values with the text.
        self.edits: list[tuple[Any, ...]] = []
        self.is_doubtful = False
        #: A text, and the anchors in it.
        self.known: tuple[str, dict[str, Any]] = ("", {})

    @classmethod
    def read(cls, text: str, version: str | None = None) -> tuple[_Document, dict[Any, Any]]:
        """Return the document and its value; raises _BadText. version: of the YAML directive of the stream."""
        document = cls()
        document.version = version
        body = text.removeprefix("\ufeff")
        document.head = text[: len(text) - len(body)]
        if (mark := f"\n{body}".find("\n\ufeff")) >= 0:  # moved to the start, it would be lost to its key
            raise _BadText(_SECOND_MARK, len(document.head) + mark)
        if "\r\n" in body and body.count("\r\n") == body.count("\n") == body.count("\r"):
            document.newline, body = "\r\n", body.replace("\r\n", "\n")
        document.ends_with_newline = not body or body.endswith("\n")
        try:
            value = document._read(body if document.ends_with_newline else body + "\n")
            if not document.ends_with_newline:
                value = document._read_unended(body, value)
        except _BadText as problem:
            lines_above = body.count("\n", 0, problem.offset) if document.newline != "\n" else 0
            raise _BadText(problem.reason, problem.offset + len(document.head) + lines_above) from None
        if version:
            document.head = f"%YAML {version}\n---\n" + document.head.removeprefix("\ufeff")
        return document, value

    def _read_unended(self, body: str, value: dict[Any, Any]) -> dict[Any, Any]:
        """Return the value of a text that was read with a line feed behind it, where that would change a block."""
        if self.single:
            return _Loader(body, self.version).mapping()
        key = next(reversed(self.pieces), None)
        if key in self.odd and not self.tail and type(key) is not _Merge:
            text, anchors = self.pieces[key].removesuffix("\n"), self._anchors_above(key)
            ended = _Loader(text, self.version, anchors).mapping()
            if key not in ended:
                raise _BadText("the last line must end with a line feed", len(body))
            if not _same(ended[key], value[key]):
                self.unended[key], value[key] = ended[key], _Loader(text, self.version, anchors).mapping()[key]
        return value

    def copied(self) -> _Document:
        """Return a document that can be renewed without this one."""
        twin = _Document()
        vars(twin).update(vars(self))
        for name in ("pieces", "unended", "odd", "anchored", "lost"):
            setattr(twin, name, getattr(self, name).copy())
        twin.edits, twin.faults, twin.is_doubtful, twin.known = [], [], False, ("", {})
        return twin

    def text(self) -> str:
        """Return the whole text."""
        entries = self.single or "".join(self.pieces.values()) or self.nothing
        text = f"{self.head}{entries}{self.tail}"
        if not self.ends_with_newline:
            text = text.removesuffix("\n")
        return text if self.newline == "\n" else text.replace("\n", self.newline)

    @property
    def is_blank(self) -> bool:
        """Whether there is no mapping at all, as in an empty file."""
        return not (self.single or self.pieces or self.nothing)

    def _read(self, text: str) -> dict[Any, Any]:
        self.is_unusual = _is_unusual(text)
        if self.version or self.is_unusual:
            return self._read_whole(text)
        head = _HEAD.match(text) if "---" in text else None
        start = head.end() if head else 0
        end = _DOCUMENT_END.search(text, start) if "\n..." in text or text.startswith("...") else None
        body = text[start : end.start() if end else len(text)]
        tail = text[start + len(body) :]
        try:
            self.head += text[:start]
            is_sound = not end or (_AFTERWORD.fullmatch(tail) and (head or _find_content(body) >= 0))
            if not is_sound or "\n%" in text or text.startswith("%"):  # a directive, which may ask for YAML 1.1
                raise _Odd
            value = self._read_body(body)
        except Exception:  # noqa: BLE001 - whatever it is, ruamel.yaml may be able to
            self.head = self.head[: len(self.head) - start]
            return self._read_whole(text)
        self.tail += tail
        return value

    def _read_body(self, body: str) -> dict[Any, Any]:
        start = _find_content(body)
        may_be_empty = (body and start < 0) or body.startswith("{", start)
        if may_be_empty and (empty := _EMPTY.fullmatch(body)):
            self.head, self.nothing, self.tail = self.head + empty[1], empty[2] or "", empty[3]
            return {}
        scanner = _Scanner(body)
        pieces, self.tail = _in_pieces(body, [(entry.start, entry.end) for entry in scanner.entries], 0)
        if not any(entry.odd for entry in scanner.entries):
            self.pieces = dict(zip(scanner.root, pieces, strict=True))
            return scanner.root
        value: dict[Any, Any] = {}
        for entry, piece in zip(scanner.entries, pieces, strict=True):
            if entry.odd:
                self.odd.add(self._read_odd(piece, value))
            else:
                value[entry.key] = scanner.root[entry.key]
        if len(value) != len(pieces):
            raise _Odd
        self.pieces = dict(zip(value, pieces, strict=True))
        return value

    def _read_odd(self, piece: str, value: dict[Any, Any]) -> Any:
        try:
            loader = _Loader(piece)
            found = loader.mapping()
        except _BadText:
            raise _Odd from None
        if len(found) != 1 or loader.root.flow_style or loader.root.value[0][0].start_mark.column:
            raise _Odd
        key = next(iter(found))
        if key in value:
            raise _Odd
        if loader.anchored:
            self.anchored.add(key)
        value.update(found)
        return key

    def _read_whole(self, text: str) -> dict[Any, Any]:
        """Let ruamel.yaml read all of it."""
        loader = _Loader(text, self.version)
        value = loader.mapping()
        self.anchored, self.odd = loader.anchored, set(loader.keys)
        directive = _DIRECTIVE.match(text)
        self.version = directive[1] if directive else self.version
        body = _DOCUMENT_END.split(text, 1)[0]
        if not (loader.root is not None and _is_block(loader.root) and self._cut_block(body, loader)):
            self._hold(body, loader.root)
        self.tail += text[len(body) :]
        return value

    def _cut_block(self, text: str, loader: _Loader) -> bool:
        """Cut the text at the lines where the root's keys stand; False where those are not lines of their own."""
        root, head = loader.root, 0
        above = text[: _line_start(text, root.value[0][0].start_mark.index)]
        for mark in re.finditer(r"^---.*\n", above, re.MULTILINE):
            head = mark.end()
        body = text[head:]
        self.column = _column(body) if text[root.start_mark.index] in "!&" else root.start_mark.column
        with _UNFIT:
            bounds = loader.bounds(body, head, self.column)
            keys = [key.start_mark.index - head for key, _ in root.value]
            if not any(_BREAK.search(body, start, key) for key, (start, _) in zip(keys, bounds, strict=True)):
                pieces, self.tail = _in_pieces(body, bounds, self.column)
                self.head += text[:head]
                self.pieces = dict(zip(loader.keys, pieces, strict=True))
                return True
        return False

    def _hold(self, text: str, root: Any) -> None:
        """Keep a root in flow style, or one that cannot be cut, in one."""
        if root is None:
            self.head += text
            return
        start, end = root.start_mark.index, root.end_mark.index
        self.head, self.single, self.tail = self.head + text[:start], text[start:end] or "{}", text[end:]

    def fact(self, key: Any, value: Any) -> str:
        """Return the record that tells what it has under a key; the value, or node, is that, `_GONE` for nothing."""
        text = self.pieces.get(key, self.single)
        if value is _GONE:
            return f'["was",[{_flow(key)}]]'
        if len(text) > _MOST_TOLD:
            return f'["hash",[{_flow(key)}],"{_crc(text)}"]'
        return f'["was",[{_flow(key)}],{_flow(_plain(value))}]'

    def is_told(self, fact: list[Any], value: Any) -> bool:
        """Tell whether a record tells of the entry that it has, with that value."""
        if fact[0] == "was":
            return _same(fact[2] if len(fact) > _BARE else _GONE, value)
        [key] = fact[1]
        return value is not _GONE and fact[2] == _crc(self.pieces.get(key, self.single))

    def renewed(self, items: Mapping[Any, Any]) -> _Document:
        """Return a document with the present values, whatever happens: at worst all of it is written plainly.

        Only what may go better another time is raised, for want of a package or of memory: no vacuum for now costs less
        than the comments. items: plain or nodes.
        """
        try:
            twin = self._renewed(items)
        except RecursionError:
            return _on_an_empty_stack(self._renewed, items)
        if any(isinstance(fault, RecursionError) for fault in twin.faults):
            with suppress(RuntimeError):  # no thread can be started
                return _on_an_empty_stack(self._renewed, items)
        elif twin.faults and not self._renewed(items).faults:
            raise twin.faults[0]  # not of the text, but of a signal handler or another thread
        return twin

    def _renewed(self, items: Mapping[Any, Any]) -> _Document:
        try:
            twin = self.copied()
            if self.single:
                twin.single = self._single_text(items)
            else:
                twin._rewrite(items, self)
            if twin.is_unusual:
                twin.check(_plain(items))
        except _ANOTHER_TIME:
            raise
        except Exception as error:  # noqa: BLE001 - nothing in a text may keep a state from being saved
            return self.plain(_plain(items), error)
        return twin

    def plain(self, value: dict[Any, Any], reason: Exception) -> _Document:
        """Return a document with that value; all that it keeps of this one are the lines above entries."""
        twin = _Document()
        twin.newline, twin.lost = self.newline, self.lost.copy()
        if not isinstance(reason, _Odd):
            twin.lost.setdefault(_GONE, reason)
            twin.faults.append(reason)
        head = self.head.removeprefix("\ufeff")
        twin.head = "".join(_LOOSE_LINE.findall(head + "\n" * (head[-1:] not in ("", "\n"))))
        for key, item in value.items():
            twin.pieces[key] = _lines_above(self.pieces.get(key, "")) + _block({key: item}, 0)
        twin.nothing = "" if value else "{}\n"
        twin.tail = "".join(_LOOSE_LINE.findall(self.tail.removeprefix("\n" * bool(self.single))))
        try:
            if self.is_unusual:
                twin.check(value)
        except Exception as error:  # noqa: BLE001 - see above
            return _Document().plain(value, twin.lost.get(_GONE, error))
        return twin

    def check(self, value: dict[Any, Any]) -> None:
        """Read the text; raises ValueError or _BadText if it does not hold that value."""
        if not _same(_Document.read(self.text())[1], value):
            raise ValueError("the text would hold something else")

    def _rewrite(self, items: Mapping[Any, Any], before: _Document) -> None:
        """Make it the text of the present values; before: what it is a copy of, with the edits."""
        stale = self._unended_no_more(items)
        try:
            top = _Top(self)
            for edit in before.edits if not before.is_doubtful else ():
                top.follow(*edit)
        except _ANOTHER_TIME:
            raise
        except Exception as error:  # noqa: BLE001 - whatever cannot be followed can be compared
            if not isinstance(error, (_Odd, _BadText, LookupError, AttributeError)):
                self.faults.append(error)
            top, stale = _Top(self), {*self.pieces}
        if before.is_doubtful:
            stale |= top.shared(items)
        for _ in range(4):  # what is written may change what anchors mean, and what is outside the fast grammar
            top.compare([key for key in self.pieces if key in stale])
            stale = self._write(top, items)
            if not stale:
                break
            top = _Top(self)
        else:
            top.give_up(stale)
            self._write(top, items)
        self._finish([*items])

    def _write(self, top: _Top, items: Any) -> set[Any]:
        """Take over the text of the present values; return the keys of what has to be read again."""
        before, tail, was_above = self.pieces, self.tail, self._anchors_text()
        laid = top._laid(top.texts(items))
        self.pieces = dict(zip(top.parts, laid, strict=True))
        self.tail = top.tail
        if not laid:
            self.head, self.tail = self.head + top.tail.removesuffix(tail), tail
        self.odd &= {*self.pieces}
        self.anchored &= {*self.pieces}
        changed = {key for key in self.odd if before.get(key) != self.pieces[key]}
        old, new = ([key for key in pieces if key in self.anchored] for pieces in (before, self.pieces))
        return changed | self.anchored if old != new or was_above != self._anchors_text() else changed

    def _unended_no_more(self, items: Mapping[Any, Any]) -> set[Any]:
        """Return the keys of what must be written anew, because it is not the last any more."""
        if not self.unended or next(reversed(items), _GONE) in self.unended:
            return set()
        stale = set(self.unended)
        self.unended.clear()
        return stale

    def entry(self, key: Any, piece: str) -> _Part:
        """Return a top-level entry to be edited."""
        if key not in self.odd:
            return _Part(piece)
        loader = _Loader(piece, self.version, self._anchors_above(key))
        if loader.root.id != "mapping" or len(loader.root.value) != 1 or loader.root.flow_style:
            raise _Odd
        [(node, value)] = loader.root.value
        return _Marked(piece, 0, node, value, loader)

    def _anchors_text(self, key: Any = _GONE) -> str:
        """Return the text of the entries, or of those above that of a key, in which there may be anchors."""
        keys = [*self.pieces] if self.anchored else []
        above = keys[: keys.index(key)] if key is not _GONE else keys
        return "".join([self.pieces[other] for other in above if other in self.anchored and "&" in self.pieces[other]])

    def _anchors_above(self, key: Any) -> dict[str, Any]:
        """Return the anchors that aliases in the piece of a key may refer to."""
        text = self._anchors_text(key) if key in self.anchored else ""
        if self.known[0] != text:
            loader = _Loader(text, self.version, {})
            loader.mapping()
            self.known = (text, loader.anchors)
        return self.known[1]

    def _single_text(self, items: Mapping[Any, Any]) -> str:
        """Return the text of a root in flow style with the present values."""
        value = _plain(items)
        for is_stale in [False, True] if not self.is_doubtful else [True]:
            with suppress(*[Exception] if not is_stale else []):
                loader = _Loader(self.single, self.version, {})
                if loader.root.id != "mapping" or not loader.root.flow_style:
                    raise _Odd
                entry = _Item("", self.single, "", "", loader.root, loader)
                entry.is_stale = is_stale
                for path, *edit in self.edits if not is_stale else ():
                    entry.opened().follow(path, *edit)
                text = entry.text(None, items, _Flow(loader.root, loader))
                if not value:
                    text = text + "\n" * self.single.endswith("\n")
                if _same(_Loader(text, self.version).mapping(), value):
                    return text
        raise _Odd

    def _finish(self, keys: list[Any]) -> None:
        """See to what stands at the end."""
        if not keys:
            self.nothing = self.nothing or "{}\n"
        elif keys[-1] not in self.unended and _has_block_scalar(self.pieces[keys[-1]]):
            self.ends_with_newline = True  # what a block scalar means depends on it


class _Top(_Block):
    """The entries of a document."""

    __slots__ = ("document",)

    def __init__(self, document: _Document) -> None:
        super().__init__(dict(document.pieces), document.tail, document.column)
        self.document = document

    @property
    def is_odd(self) -> bool:
        return bool(self.document.odd)

    def made(self, key: Any, piece: str) -> _Part:
        with _UNFIT:
            return self.document.entry(key, piece)
        part = _Part(piece)
        part.is_stale = True
        return part

    def shared(self, items: Any) -> set[Any]:
        """Let go the keys that are no more, also for equal ones of another type; return the others."""
        held = _held_keys(items)
        for key in [*self.parts]:
            if type(key) is not _Merge and not _same(key, held.get(key, _GONE)):
                self.delete(key)
        return {*self.parts}

    def compare(self, keys: Iterable[Any]) -> None:
        for key in keys:
            if key in self.parts:
                self.part(key).is_stale = True

    def text_of(self, key: Any, part: _Part, items: Any) -> str:
        """Return the text with the present value; what cannot be followed is compared, else written plainly."""
        document = self.document
        if key in document.unended and (part.is_stale or part.changed or part.inside):
            if _same(document.unended[key], _plain(items[key])):
                return part.piece
            del document.unended[key]
        try:
            try:
                return super().text_of(key, part, items)
            except (LookupError, AttributeError):
                if part.was is None:
                    raise
                self.parts[key] = part.was
                self.compare([key])
                return super().text_of(key, self.part(key), items)
        except _ANOTHER_TIME:
            raise
        except Exception as error:  # noqa: BLE001 - nothing in a text may keep a state from being saved
            if isinstance(error, RecursionError) or not isinstance(error, (_Odd, _BadText)):
                document.lost.setdefault(key, error)
                document.faults.append(error)
            document.unended.pop(key, None)
            return _lines_above(part.piece) + _block({key: _plain(items[key])}, self.column)

    def give_up(self, keys: Iterable[Any]) -> None:
        """Let entries be written plainly that ruamel.yaml had to read."""
        for key in keys:
            part = self.parts[key] = _Part(self.parts[key])
            part.is_stale = True


#: The text of an entry may be this long for a record to tell its value; of a longer one it tells the CRC.
_MOST_TOLD = 1000
#: The length of a record that tells of a key with nothing.
_BARE = 2


def _crc(text: str) -> str:
    """Return the CRC-32 of the text of an entry, without comments above and below it."""
    from binascii import crc32

    lines = text[len(_lines_above(text)) :].rstrip().split("\n")
    while lines[-1].lstrip()[:1] in ("", "#") and len(lines) > 1:
        del lines[-1]
    content = "\n".join(lines).encode()
    return f"{crc32(content):08x}"


def _is_fact(record: Any) -> bool:
    """Tell whether a record only tells what the snapshot has."""
    if type(record) is not list or record[:1] not in (["was"], ["hash"]) or len(record) not in (_BARE, _BARE + 1):
        return False
    is_path = type(record[1]) is list and len(record[1]) == 1 and _is_key(record[1][0])
    return is_path and (record[0] == "was" or type(record[-1]) is str)


#: What a rewrite within the file writes in front of the new content; and what 26.1 writes there.
_MARK = "--- # LAST VALID STATE: "
_REWRITE = _pattern(rb"(?m)^%b([0-9]+) bytes\n" % _MARK.encode())
_REWRITE_26_1 = b"\n---\n### LAST VALID STATE ###\n"
_SEPARATOR = _pattern(r"(?m)^---(?=[ \t\r\n]|\Z)")
_NOTHING = _pattern(r"\ufeff?(?:[ \t]*(?:[#%][^\r\n]*)?(?:\r\n?|\n))*")


def _without_half_rewrite(data: bytes) -> tuple[bytes, int]:
    """Undo or complete a rewrite within the file (see `_Journal.replace`, and 26.1's) that was interrupted, if any.

    Returns what counts, and the size up to which the file is needed for that until it is written anew; 0 if nothing was
    interrupted.
    """
    for match in reversed(list(_REWRITE.finditer(data)) if _MARK.encode() in data else []):
        new = data[match.end() :][: int(match[1])]
        if len(new) == int(match[1]) and b"\0" not in new:
            return new, match.end() + len(new)
        data = data[: match.start()]
    before, mark, last = data.rpartition(_REWRITE_26_1)
    if not mark:
        return data, 0
    is_whole = before.endswith(last) or last not in before or before.startswith(last + b"...\n")
    return last if last and is_whole else before, len(data)


def _skipped(data: bytes) -> bytes:
    """Return what stands in front of the part of a file that counts."""
    counts, size = _without_half_rewrite(data)
    return data[: size - len(counts)] if size and data[:size].endswith(counts) else b""


_RECORD_START = b"--- ["


def _without_hole(data: bytes) -> bytes:
    """Cut an end in which a loss of power left NULs in the place of parts of the last records, and no whole one."""
    first = data.find(b"\0")
    start = data.rfind(b"\n", 0, max(first, 0)) + 1
    if not start or first < 0:
        return data
    line, *others = data[start:].split(b"\n")
    before, after = line[: first - start], line.rpartition(b"\0")[2].rstrip()
    is_record = before.startswith(_RECORD_START) or _RECORD_START.startswith(before)
    is_record = is_record and (after.endswith(b"]") or _RECORD_START.startswith(after))
    is_whole_line_among = any(other.strip() and b"\0" not in other for other in others[:-1])
    is_whole_line_among = is_whole_line_among or re.search(rb"[\n\0]--- \[", data[first:]) is not None
    return data[:start] if is_record and not is_whole_line_among else data


#: Stands for the first half of a character at the end of a file.
_HALF_CHARACTER = "\ufffe"


class _Stream:
    """A state file, read: the snapshot's document and value, and the records with their offsets in the text."""

    def __init__(self, data: bytes) -> None:
        #: How many bytes at the end do not count, because they never became a complete record.
        self.torn = 0
        # Half rewritten, the file must be written anew before anything is appended.
        whole, self.needed = _without_half_rewrite(data)
        self.is_half_rewritten = bool(self.needed)
        whole = _without_hole(whole.rstrip(b"\0"))
        self.text = self._without_lone_facts(self._without_torn_tail(self._decoded(whole)))
        if not self.is_half_rewritten:
            self.torn = len(data) - len(self.text.encode())
        if self.text.endswith(_HALF_CHARACTER):
            raise _BadText("not UTF-8; the file ends in the middle of a character", len(self.text) - 1)
        self.document, self.value, marks = self._first_document(self.text)
        self.records: list[tuple[Any, int]] = []
        for mark, end in pairwise([*marks, len(self.text)]):
            record = _own_record(self.text[mark + 4 : end])
            if type(record) is list:
                self.records.append((record, self.text.index("[", mark)))
            elif not self._read_chunk(self.text[mark + 3 : end], mark + 3):
                break
        #: What records tell of the snapshot, by key; and of those the ones that a person has changed there since.
        self.facts = self._facts_in(self.text[marks[0] :]) if marks else {}
        self.edited = [
            key for key, fact in self.facts.items() if not self.document.is_told(fact, self.value.get(key, _GONE))
        ]
        #: Those of them of which no value is told.
        self.undecided = [key for key in self.edited if self.facts[key][0] == "hash"]

    def _facts_in(self, journal: str) -> dict[Any, list[Any]]:
        """Return the first record that tells of each key."""
        facts: dict[Any, list[Any]] = {}
        for record, _ in self.records if '--- ["was",' in journal or '--- ["hash",' in journal else ():
            if type(record) is list and len(record) <= _BARE + 1 and _is_fact(record):
                facts.setdefault(record[1][0], record)
        if facts and '["clear",[]]' in journal:  # in front of which all keys were told that there were
            for key in self.value:
                facts.setdefault(key, ["was", [key]])
        return facts

    @staticmethod
    def _decoded(data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if error.end == len(data) and error.reason == "unexpected end of data":
                return data[: error.start].decode() + _HALF_CHARACTER  # may be in the torn tail
            before = len(data[: error.start].decode(errors="replace"))
            raise _BadText(_NOT_UTF_8, before) from None

    def _without_torn_tail(self, text: str) -> str:
        start = text.rfind("\n") + 1
        line = text[start:]
        if text[:start].endswith("\n---\n") and text[start:].startswith("["):
            return text[:start] + _first_json(line)
        if start and line in ("-", "--", "---", "--- "):
            return text[:start]
        if line.startswith("--- #") and (line.startswith(_MARK) or _MARK.startswith(line)):
            return text[:start]
        if line.startswith("--- [") and not _is_record(line[4:]):
            return text[:start]
        return text

    @staticmethod
    def _without_lone_facts(text: str) -> str:
        """Cut the records at the end that tell of the snapshot: they came with another, of which nothing arrived."""
        while text.startswith(('--- ["was",', '--- ["hash",'), start := text.rfind("\n", 0, len(text) - 1) + 1):
            text = text[:start]
        return text

    def _first_document(self, text: str) -> tuple[_Document, dict[Any, Any], list[int]]:
        """Return the snapshot, its value, and where the later documents begin."""
        first = 0 if text.startswith("---") else text.find("\n---") + 1 or len(text)
        marks = [match.start() for match in _SEPARATOR.finditer(text, first)] if first < len(text) else []
        if marks and _NOTHING.fullmatch(text, 0, marks[0]) and not text[marks[0] + 3 :].lstrip().startswith("["):
            del marks[0]
        snapshot = text[: marks[0]] if marks else text
        if marks and text.startswith("---\n[", marks[0]) and not _has_block_scalar(snapshot):
            snapshot = snapshot.removesuffix("\n")  # 26.1 begins a record with a line feed
        try:
            document, value = _Document.read(snapshot)
        except _BadText:
            whole = _doubled(snapshot)
            if not whole:
                raise
            document, value = _Document.read(whole)
            self.is_half_rewritten = True
        return document, value, marks

    def _read_chunk(self, chunk: str, offset: int) -> bool:
        """Take over one later document; False where 26.1 died while it wrote a new snapshot right behind the record."""
        glued, start = "", len(chunk)
        try:
            record = _own_record(chunk)
            if record is None and chunk.startswith("\n["):
                first = _first_json(chunk[1:])
                glued = chunk[1 + len(first) :].partition("\n")[0] if first else ""
                record = _own_record(first) if glued else None
            if record is None:
                loader = _Loader(chunk, self.document.version)
                if loader.root is not None:
                    record, start = loader.value(loader.root, 0), loader.root.start_mark.index
        except _BadText as problem:
            raise _BadText(problem.reason, problem.offset + offset) from None
        if isinstance(record, dict):
            self._begin_anew(chunk, start, offset)
        elif record is not None:
            self.records.append((record, offset + len(chunk) - len(chunk.lstrip())))
        self.is_half_rewritten = self.is_half_rewritten or bool(glued)
        return not glued

    def _begin_anew(self, chunk: str, start: int, offset: int) -> None:
        """Take over a later mapping, which starts there in its document, as the snapshot."""
        end = _LINE_END.search(chunk, 0, start)
        beside = chunk[: end.start() if end else start + 1].strip()
        if beside and beside[0] not in "#{!&":
            raise _BadText("a mapping must begin on a line of its own", offset)
        below = chunk[end.end() :] if end and beside[:1] in ("", "#") else chunk
        if below.startswith("\ufeff"):
            raise _BadText(_SECOND_MARK, offset + len(chunk) - len(below))
        self.document, self.value = _Document.read(below, self.document.version)
        self.records.clear()


_RECORD_LINE = _pattern(r"(?m)^--- \[.*\][ \t\r]*(?:\n|\Z)")
_GLUED_RECORD = _pattern(r"(?<=.)--- \[.*\][ \t\r]*(?:\n|\Z)")


def _first_record(text: str) -> str:
    """Return the first line with a record, "" if there is none."""
    start = _journal_start(text)
    return text[start : text.find("\n", start) + 1 or len(text)].strip()


def _journal_start(text: str) -> int:
    """Return where the first line with a record begins."""
    start = 0 if text.startswith("--- [") else text.find("\n--- [") + 1 or len(text)
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        if text[start:end].rstrip(" \t\r\n").endswith("]"):
            break
        start = text.find("\n--- [", end - 1) + 1 or len(text)
    return start


class _Saved:
    """What a person saved over a state file: text of theirs, in which lines with records are old news.

    Raises _BadText.
    """

    def __init__(self, data: bytes) -> None:
        text = _Stream._decoded(data)
        self.first_record = _first_record(text)
        #: A part of a record was cut off: the writer appended it while the text was being saved.
        self.has_leftover = _leftover(text, is_certain=True) > 0
        #: The text of the person.
        self.text = ""
        try:
            self._read(text)
        except _BadText:
            if not _leftover(text, is_certain=False):
                raise
            self.has_leftover = True
            self._read(text)

    def _read(self, text: str) -> None:
        if self.has_leftover:
            end = _journal_start(text)
            text = text[: end - _leftover(text, is_certain=False)] + text[end:]
        self.text = _unglued(_RECORD_LINE.sub("", text))
        stream = _Stream(self.text.encode())
        self.original, self.value = stream.document, stream.value

    def with_value(self, value: dict[Any, Any]) -> tuple[_Document, dict[Any, Any]]:
        """Return their text with another value, and that in the order of the text; raises ValueError, _BadText."""
        self.original.is_doubtful = True
        document = self.original.renewed(value)
        document.check(value)
        return document, value


def _unglued(text: str) -> str:
    """Take away a record that was appended to a text whose last line had no end."""

    def parted(match: re.Match[str]) -> str:
        if not _is_record(match[0][4:]):
            return match[0]
        return "\n" if match.end() < len(text) else ""

    return _GLUED_RECORD.sub(parted, text)


#: A record that lacks dashes; a string that was cut off and what JSON allows behind it; what only a person writes.
_HEADLESS = _pattern(r'-{0,2} ?\["(?:set|delete|insert|splice|order|update|clear|transaction|was|hash)",\[.*\]\s*')
_CUT_STRING = _pattern(r'(?:[^"\\]|\\.)*"[,:\]}]')
_BY_HAND = _pattern(r" *(?:- |[^\W\d][\w-]*:(?: |$))")


def _leftover(text: str, *, is_certain: bool) -> int:
    """Return how long the line in front of the records is that can only be the rest of a record, 0 if there is none.

    A person's text may have been saved over records: their rest ends in brackets that nothing opened. Where the cut
    went through a string, quotes are odd, too.
    """
    end = _journal_start(text)
    line = text[text.rfind("\n", 0, max(end - 1, 0)) + 1 : end]
    is_rest = line.rstrip().endswith("]") and line.count("]") > line.count("[")
    is_in_string = line.count('"') % 2 == 1 and _CUT_STRING.match(line) is not None
    is_by_hand = _BY_HAND.match(line) or (is_certain and line.startswith((" ", "#")))
    is_likely = (is_in_string or not is_certain) and not is_by_hand
    return len(line) if (is_rest and is_likely) or _HEADLESS.fullmatch(line) else 0


def _own_record(text: str) -> Any:
    """Read a record as `_flow` writes it, in a hundredth of ruamel.yaml's time; None if it is something else."""
    if len(text) > _MAX_DEPTH and _is_nested(text):
        return None
    try:
        if "\\ud" not in text:
            record, end = _decoder(_unique).scan_once(stripped := text.strip(" \t\r\n"), 0)
            if end == len(stripped):
                return record
    except (ValueError, StopIteration):
        pass
    if ("\\u" in text and _SURROGATE.search(text)) or _is_unusual(text):
        return None
    try:
        return _decoder(_restored).decode(_in_json(text))
    except (ValueError, _Odd):
        return None


def _is_nested(text: str) -> bool:
    """Tell whether JSON may be nested too deep."""
    return text.count("[") + text.count("{") > _MAX_DEPTH and _deep_bracket(_STRING.sub("", text)) > 0


def _is_record(text: str) -> bool:
    from json import JSONDecodeError, JSONDecoder

    if _own_record(text) is not None:
        return True
    try:
        if not _is_nested(text):
            JSONDecoder().raw_decode(_in_json(text))
    except JSONDecodeError as error:  # found in a second, for which ruamel.yaml would need a minute
        if error.msg.startswith("Unterminated") or "]" not in error.doc[error.pos :]:
            return False
    except _Odd:
        pass
    try:
        return _Loader(text).root is not None
    except _BadText:
        return False


def _first_json(text: str) -> str:
    """Return the JSON at the start of a text, "" if it is not complete."""
    from json import JSONDecoder

    try:
        return text[: JSONDecoder().raw_decode(text)[1]]
    except ValueError:
        return ""


def _doubled(text: str) -> str:
    """Return the snapshot in front of its own half-written copy, as 26.1 leaves it when it dies in `close()`."""
    first, end, _ = text.partition("\n")
    position = text.find(first, 1) if end else 0
    while first and position > 0:
        if text[:position].startswith(text[position:].rstrip("\n")):
            return text[:position]
        position = text.find(first, position + 1)
    return ""


class Problem(namedtuple("Problem", "line column reason text")):
    """One thing that is wrong with a file: where it is (`line` and `column` count from 1), why, and the line's text."""

    __slots__ = ()
    line: int
    column: int
    reason: str
    text: str

    def __str__(self) -> str:
        return _told(*self)


def _line_number(text: str, offset: int) -> int:
    """Return the number of the line that holds an offset, counted as `sed -n 7p`, `grep -n` and vim count."""
    return text.count("\n", 0, offset) + 1


def _problem(text: str, problem: _BadText) -> Problem:
    start = max(_line_start(text, problem.offset), 1 if text.startswith("\ufeff") else 0)
    line = text[start:].partition("\n")[0].rstrip("\r").encode(errors="surrogateescape").decode(errors="replace")
    column = max(problem.offset - start, 0) + 1
    return Problem(_line_number(text, start), column, problem.reason, line)


def _corrupt(path: str, text: str, problem: _BadText) -> StateCorrupt:
    line, column, reason, content = _problem(text, _explained(text, problem))
    return StateCorrupt(path, reason, line, column, content)


# ------------------------------------------------------ Journal ------------------------------------------------------
# Owns the descriptor and the lock, and makes its system calls by `_system`; applies nothing. `append` is the only way
# to add to the file, `replace` the only way to renew it; what never became whole is cut.


class _System:
    """The system calls that the journal makes; tests put another object in the place of `_system`.

    `_system` is the class itself, and what each change calls is no `staticmethod`: with both, CPython remembers where
    it is, which saves 0.04 us of a change.
    """

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    dup = staticmethod(os.dup)
    read = staticmethod(os.read)
    write: Any = os.write
    fsync = staticmethod(os.fsync)
    ftruncate = staticmethod(os.ftruncate)
    lseek = staticmethod(os.lseek)
    pread: Any = staticmethod(getattr(os, "pread", os.read))
    pwrite: Any = staticmethod(getattr(os, "pwrite", os.write))
    fstat = staticmethod(os.fstat)
    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    replace = staticmethod(os.replace)
    unlink = staticmethod(os.unlink)
    listdir = staticmethod(os.listdir)
    fchmod: Any = staticmethod(getattr(os, "fchmod", lambda *_: None))
    fchown: Any = staticmethod(getattr(os, "fchown", lambda *_: None))
    listxattr: Any = staticmethod(getattr(os, "listxattr", lambda _: []))
    getxattr: Any = staticmethod(getattr(os, "getxattr", lambda *_: None))
    setxattr: Any = staticmethod(getattr(os, "setxattr", lambda *_: None))
    removexattr: Any = staticmethod(getattr(os, "removexattr", lambda *_: None))
    now: Any = time.monotonic
    sleep = staticmethod(time.sleep)
    time = staticmethod(time.time)

    @staticmethod
    def later(seconds: float, at_once: Event, function: Callable[[], object]) -> None:
        """Call a function, in a thread of its own, after so many seconds or when the event is set."""

        def run() -> None:
            at_once.wait(seconds)
            function()

        _thread.start_new_thread(run, ())  # what threading.Thread does around this bears no interrupt

    @staticmethod
    def set_flags(descriptor: int, flags: int) -> None:
        """Set what may change of the flags with which a file was opened, such as O_APPEND."""
        if sys.platform != "win32":
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)

    @staticmethod
    def lock(descriptor: int, kind: str = "LOCK_EX") -> bool:
        """Take the lock of an open file if nobody holds it; it ends with the process. Raises OSError.

        kind: "LOCK_EX" alone, "LOCK_SH" together with others who take it so.

        portalocker would do the same where there is `flock`, and to import it took longer than all else that a script
        does which changes a state once: 37 of 65 ms (portalocker 4.4, CPython 3.11).
        """
        if sys.platform == "win32":
            return _lock_by_portalocker(descriptor)
        try:
            fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    @staticmethod
    def unlock(descriptor: int) -> None:
        """Let the lock of an open file go, as far as that can be."""
        if sys.platform == "win32":
            from portalocker import LockException, unlock

            with suppress(LockException):
                unlock(descriptor)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    @staticmethod
    def await_lock(descriptor: int) -> None:
        """Wait for the lock of an open file; the kernel wakes who waits."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    @staticmethod
    def lock_byte(descriptor: int, byte: int, kind: str, *, wait: bool) -> bool:
        """Take or release a lock of one byte, kind: "F_RDLCK" with others, "F_WRLCK" alone, "F_UNLCK".

        The kernel keeps these apart from `lock`. Where it can, the open file holds them: what a process holds ends as
        soon as any part of it closes the file.
        """
        number, command = getattr(fcntl, kind), getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK", None)
        try:
            if command is None:
                kinds = {"F_RDLCK": fcntl.LOCK_SH, "F_WRLCK": fcntl.LOCK_EX, "F_UNLCK": fcntl.LOCK_UN}
                fcntl.lockf(descriptor, kinds[kind] | (0 if wait else fcntl.LOCK_NB), 1, byte)
            else:
                from struct import pack

                fcntl.fcntl(descriptor, command, pack("hhqqi", number, os.SEEK_SET, byte, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True


def _lock_by_portalocker(descriptor: int) -> bool:
    from portalocker import AlreadyLocked, LockException, LockFlags, lock

    try:
        lock(descriptor, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
    except AlreadyLocked:
        return False
    except LockException as error:
        cause = error.__cause__
        raise cause if isinstance(cause, OSError) else OSError(errno.ENOLCK, str(error)) from None
    return True


_system: type[_System] | _System = _System
#: Guards what is noted of open files, for moments. A fork waits for it: its child knows of every descriptor then.
_registry_lock = RLock()
#: Descriptors of threads, which a forked child closes because it lacks those: locks would last as long as it does.
_lent: set[int] = set()
#: The threads that do for the script what keeps it waiting: what they find is told, and in its way, in its own thread.
_helpers: set[int] = set()
_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NOCTTY", "O_NONBLOCK"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
#: For a file that is to take the place of another one.
_NEW = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _NO_LINK | _FLAGS
#: The errors where there is no file, or a link in its place that is not to be followed.
_NOT_THERE = {errno.ENOENT, errno.ELOOP, errno.EMLINK}
#: A file that is mounted by itself stays mounted when its name is given to another one.
_ORPHANED = (
    "the file was removed or replaced where it is mounted from, so that what is written here would be lost; "
    "mount it anew (restart the container), or mount its folder instead"
)
#: Seconds between two tries for a lock.
_LOCK_RETRY = 0.02
#: Seconds between two looks whether another thread has opened the file.
_OPENING_RETRY = 0.001
#: Seconds after which a change looks whether somebody else wrote the file.
_LOOK_EVERY = 0.1
#: How the name of a vacuum's temporary file goes on, behind that of the file.
_TEMPORARY = _pattern(r"[0-9]+-[0-9a-f]{8}\.tmp")
#: Seconds that a file must not have changed before it counts as saved; and between two looks meanwhile.
_QUIET, _QUIET_RETRY = 0.1, 0.02
#: Seconds by which the time that a file system notes for a write may differ from the clock.
_CLOCK_TICK = 0.05
#: Seconds within which two writes may be dated the same: FAT counts in twos.
_SAME_DATE = 2.1
#: Attributes by which the kernel vouches for the content of a file; they are its own affair.
_OF_CONTENT = {"security.ima", "security.evm"}
#: Where these are the reason why a file cannot be replaced, it is rewritten in its place.
_NOT_REPLACEABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV, errno.ENAMETOOLONG),
    errno.EOVERFLOW,  # the user has no number on that file system
}


def _holder(status: os.stat_result) -> int | None:
    """Return the pid of the process that holds the lock of a file, where Linux tells it."""
    inode = f":{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].endswith(inode) and int(fields[4]) > 0:
                    return int(fields[4])
    except (OSError, ValueError, IndexError):
        pass
    return None


#: How a file looks from outside: device, inode, size and time of the last change.
_Glance = tuple[int, int, int, int]


def _seen(status: os.stat_result) -> _Glance:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _glance(path: str) -> _Glance | None:
    """Look at the file that a path names; None where there is none."""
    try:
        return _seen(_system.stat(path))
    except FileNotFoundError:
        return None


def _absolute(path: str) -> str:
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _user() -> int:
    return os.geteuid() if sys.platform != "win32" else 0


def _followed(path: str) -> str:
    """Return the regular file to which a path leads; raises OSError at a link that neither root nor this user made."""
    for _ in range(40):  # as many links after each other as Linux follows
        folder, base = os.path.split(path)
        path = os.path.join(os.path.realpath(folder), base)
        status = _system.lstat(path)
        if stat.S_ISREG(status.st_mode):
            return path
        if not stat.S_ISLNK(status.st_mode) or status.st_uid not in (0, _user()):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _await_quiet(look: Callable[[], _Glance | None], deadline: float) -> tuple[_Glance | None, bool]:
    """Wait until a file has not changed for a moment; return how it looks, and False if the deadline came first."""
    glance, since = look(), _system.now()
    while True:
        _system.sleep(_QUIET_RETRY)
        now, again = _system.now(), look()
        if again != glance:
            glance, since = again, now
        if now - since >= _QUIET or now >= deadline:
            return glance, now - since >= _QUIET


@contextmanager
def _helping() -> Iterator[None]:
    """Be a helper."""
    _helpers.add(get_ident())
    try:
        yield
    finally:
        _helpers.discard(get_ident())


@contextmanager
def _lent_descriptor(make: Callable[..., int], *arguments: Any) -> Iterator[int]:
    """Have a descriptor for a thread that does not hold the lock."""
    with _registry_lock:
        descriptor = make(*arguments)
        _lent.add(descriptor)
    try:
        yield descriptor
    finally:
        with _registry_lock:
            _lent.discard(descriptor)
            _system.close(descriptor)


def _surely(function: Callable[..., None], *arguments: Any) -> None:
    """After an interrupt or error: call a function that may be called twice; a further interrupt changes nothing."""
    while True:
        with suppress(KeyboardInterrupt):
            function(*arguments)
            return


class _Dated:
    """How a file looked when it was read, which tells whether it still holds the same: not at once.

    What is written while the clock of the file system stands still looks the same, if its size does. That clock is not
    ours, so that we go by how long we have known the look.
    """

    def __init__(self) -> None:
        self.glance: _Glance | None = None
        self.seen_at = self.read_at = 0.0

    def note(self, glance: _Glance, read_at: float) -> None:
        """Note how a file looks that was read from that time on."""
        if glance != self.glance:
            self.glance, self.seen_at = glance, _system.now()
        self.read_at = read_at

    def tells(self, glance: _Glance | None) -> bool:
        """Tell whether a file that looks like this holds what was read."""
        return glance == self.glance and self.read_at - self.seen_at > _SAME_DATE


class _Made(namedtuple("_Made", "descriptor path size is_lasting")):
    """A file that is to take the place of ours: what of it is there, and whether the rest need not be on the disk."""

    __slots__ = ()
    descriptor: int
    path: str
    size: int
    is_lasting: bool


class _Overtaken(Exception):
    """Somebody else wrote the file while it was about to be replaced."""


class _Journal:
    """A state file, locked while it is open."""

    #: What all who have it open in this process have to say alike.
    settings: Any = None

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.pid = os.getpid()
        #: An old file that somebody wrote to while a new one took its place.
        self.displaced = -1
        #: A file that somebody put in the place of ours, while ours takes its place.
        self.claimed = -1
        #: The path of the file that is to take the place of ours; an interrupt may leave it behind.
        self.temporary = ""
        #: Its descriptor and content; a second error or interrupt may leave open whether it did.
        self.unfinished: tuple[int, bytes] | None = None
        self.inode: tuple[int, int] | None = None
        #: The path that people know, and where it leads.
        self.name = _absolute(path)
        self.path = os.path.realpath(path)
        #: There was no file.
        self.is_new = False
        #: Bytes in the file that count; what stands behind them belongs to an unfinished write.
        self.size = 0
        #: A rewrite within the file is under way or failed: what is appended now would be lost.
        self.is_half_rewritten = False
        #: The file has a new name on the disk, too, as far as the system could tell.
        self.is_renamed = True
        #: When `append` was last called; when it will look again who else wrote; how the wall clock differs.
        self.wrote_at = self.due_at = self.clock = 0.0
        #: Somebody else may have written.
        self.is_suspicious = False
        #: How our file looks, since when; length and hash of what the latest look found in it, ours or somebody else's.
        self.dated = _Dated()
        self.read: tuple[int, int] | None = None
        #: Held while the disk is waited for; and why that failed, until the file is written anew.
        self.syncing = RLock()
        self.unsynced: OSError | None = None

    def open(self, mode: int | None, deadline: float) -> bool:
        """Open, lock and read the file; False if that has to be tried again, in a moment.

        mode: permission bits of a new file, None for those that the umask leaves. Raises StateLocked if another process
        has the file, and the deadline is over.
        """
        if sys.platform == "win32":
            with _advised():
                import portalocker  # noqa: F401 - without it no file shall be made
        try:
            status = self._open(mode)
        except FileExistsError:  # another process has made it just now
            return False
        if self._lock(self.descriptor) and self._is_named():
            if not _is_shared(self.path, remove=True):
                self._remove_leftovers()
                self.data = _read_all(self.descriptor)
                self._know(self.data)
                return True
            _system.unlock(self.descriptor)  # so that it is not us whom the system names
        if _system.now() >= deadline and self._is_named():
            raise StateLocked(self.path, _holder(status), "shared" if _is_shared(self.path) else "")
        self.close()
        return False

    def _know(self, data: bytes) -> None:
        """Note what our file holds (`known`) and how it looks (`basis`); what differs is somebody else's."""
        self._let_displaced_go()
        self.size = len(data)
        self.known = (len(data), hash(data))
        self.basis: _Glance | None = _seen(_system.fstat(self.descriptor))
        self.inode, self.read, self.unsynced = self.basis[:2], None, None
        self.dated.note(self.basis, 0.0)

    def holds(self, data: bytes) -> bool:
        """Tell whether the file was last renewed with this content."""
        return self.known == (len(data), hash(data)) and self.size == len(data)

    def _open(self, mode: int | None) -> os.stat_result:
        flags = os.O_RDWR | os.O_APPEND | _NO_LINK | _FLAGS
        self.inode, self.path = None, os.path.realpath(self.name)
        with _registry_lock:
            try:
                self.descriptor = _above_standard(_system.open(self.path, flags))
            except FileNotFoundError:
                flags |= os.O_CREAT | os.O_EXCL
                self.descriptor = _above_standard(_system.open(self.path, flags, 0o666 if mode is None else mode))
                self.is_new = True
        if self.is_new and mode is not None:
            _system.fchmod(self.descriptor, mode)
        status = _system.fstat(self.descriptor)
        self.inode = _seen(status)[:2]
        _check_regular(status, self.path)
        return status

    def _lock(self, descriptor: int) -> bool:
        try:
            return _system.lock(descriptor)
        except OSError as error:
            reason = f"{error.strerror}; the file system does not seem to support locks: put the file on a local disk"
            raise OSError(error.errno, reason, self.path) from None

    def _is_named(self) -> bool:
        """Tell whether the path still leads to our file."""
        glance = self._glance()
        return glance is not None and glance[:2] == self.inode

    def _glance(self) -> _Glance | None:
        """Look at the file to which the path leads by now; None where there is none."""
        if not self._leads_home():
            self._follow()
        try:
            status = _system.lstat(self.path)
        except FileNotFoundError:
            return None
        except PermissionError:  # the process gave up its privileges: it goes by what it has open
            status = _system.fstat(self.descriptor)
        if status.st_nlink == 0 and self.is_same_file(status):
            self.due_at = 0.0  # each change looks again, before it writes
            raise OSError(errno.ESTALE, _ORPHANED, self.path)
        return None if stat.S_ISLNK(status.st_mode) else _seen(status)

    def _leads_home(self) -> bool:
        """Tell whether both paths lead to our file, as they nearly always do: following them takes far longer."""
        try:
            return self.is_same_file(_system.lstat(self.path)) and (
                self.name == self.path or self.is_same_file(_system.stat(self.name))
            )
        except OSError:
            return False

    def _follow(self) -> None:
        """Follow the path anew if it leads elsewhere: to our file, which was moved, or to what took its place.

        A link to another file that somebody else made leads to nothing; they could make us write over any file.
        """
        real = os.path.realpath(self.name)
        if real != self.path:
            with suppress(OSError):
                self.path = real if self.is_same_file(_system.lstat(real)) else _followed(self.name)

    def _temporary_path(self) -> str:
        folder, base = os.path.split(self.path)
        return os.path.join(folder, f".{base}.{os.getpid()}-{os.urandom(4).hex()}.tmp")

    def _remove_leftovers(self) -> None:
        """Remove what a vacuum that was killed has left; nobody else can be in one, because we hold the lock."""
        folder, base = os.path.split(self.path)
        start = f".{base}."
        with suppress(OSError):
            for name in _system.listdir(folder):
                if name.startswith(start) and _TEMPORARY.fullmatch(name, len(start)):
                    with suppress(OSError):
                        _system.unlink(os.path.join(folder, name))

    def is_same_file(self, status: os.stat_result) -> bool:
        return self.inode == (status.st_dev, status.st_ino)

    def accept(self, size: int) -> None:
        """Go on behind the first `size` bytes: cut what follows, a torn tail."""
        if size < self.size:
            _system.ftruncate(self.descriptor, size)
        self._know(self.data[:size])
        self.data = b""

    def append(self, data: bytes) -> None:
        """Add to the file with one write; raises OSError and leaves the file as it was if that fails."""
        now = _system.now()
        if now >= self.due_at:
            self._glance_around(now)
        self.wrote_at = now
        try:
            written = _system.write(self.descriptor, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        except OSError:
            self._take_back(data, self._read_from(self.size))
            raise
        self.size += written

    def latest_lines(self) -> set[str]:
        """Return the lines at the end that may have been appended since the file was last known to be ours."""
        appended = self.size - (self.basis[2] if self.basis else 0)
        data = _read_all(self.descriptor)[-appended:] if appended > 0 else b""
        return {line.strip() for line in data.decode(errors="replace").split("\n")}

    def landed(self, offset: int, data: bytes) -> bool:
        """After an interrupted `append` at an offset: tell whether all of it is in the file; if not, cut what is."""
        found = self._read_from(offset)
        self.size = offset
        if found == data:
            self.size += len(data)
            return True
        self._take_back(data, found)
        return False

    def _read_from(self, offset: int) -> bytes:
        _system.lseek(self.descriptor, offset, os.SEEK_SET)
        return _read_on(self.descriptor)

    def _take_back(self, data: bytes, found: bytes) -> None:
        """Cut what a failed write left at the end, unless it is what somebody else wrote."""
        if found and data.startswith(found):
            _system.ftruncate(self.descriptor, self.size)

    def sync(self, descriptor: int = -1) -> None:
        """Wait until the file is on the disk. After an OSError only a new file helps: what failed once is forgotten.

        descriptor: another one of the file, for a thread that does not hold the lock.
        """
        with self.syncing:
            if self.unsynced is not None:  # one of another thread, which is about to see to it
                raise OSError(self.unsynced.errno, self.unsynced.strerror, self.path)
            try:
                _system.fsync(self.descriptor if descriptor < 0 else descriptor)
                if not self.is_renamed:
                    self._keep_name()
            except OSError as error:
                self.unsynced = error
                raise

    def _glance_around(self, now: float) -> None:
        """Note whether somebody else may have written, as after a look that is too young; `is_foreign` finds out."""
        clock, self.clock = self.clock, _system.time() - now
        self.due_at = now + _LOOK_EVERY
        glance, known = self._glance(), self.basis
        if glance != known:
            is_ours = glance is not None and known is not None and glance[:2] == known[:2] and glance[2] == self.size
            is_just_written = glance is not None and abs(glance[3] / 1e9 - self.wrote_at - clock) < _CLOCK_TICK
            self.is_suspicious |= not (is_ours and is_just_written and abs(self.clock - clock) < _CLOCK_TICK)
        elif not self.dated.tells(glance):
            self.is_suspicious = True

    def is_foreign(self) -> bool:
        """Find out whether somebody else wrote, replaced or removed the file; suspicious until that is merged."""
        while True:
            size = self.size
            is_foreign = self.displaced >= 0 or self._is_foreign()
            if size == self.size:  # else a signal handler has appended meanwhile
                self.is_suspicious = is_foreign
                return is_foreign

    def _is_foreign(self) -> bool:
        now, glance, known, self.read = _system.now(), self._glance(), self.basis, None
        if glance is None or known is None or self.dated.tells(glance):
            return glance is None
        if glance[:2] != known[:2] or glance[2] != self.size or not self._is_known_content():
            return True
        self.basis = glance
        self.dated.note(glance, now)
        return False

    def _is_known_content(self) -> bool:
        """Tell whether the file holds what it held when it was last known to be ours, and behind it only records."""
        data = _read_all(self.descriptor)
        length, value = self.known
        if len(data) != self.size or hash(data[:length]) != value:
            return False
        self.read = len(data), hash(data)
        behind = b"\n" + data[length:]
        if behind.count(b"\n--- [") + behind.endswith(b"\n") == behind.count(b"\n"):  # as nearly always
            return True
        return all(line.startswith(b"--- [") or line in (b"", b"{}") for line in behind.split(b"\n"))

    def read_foreign(self, deadline: float) -> tuple[bytes | None, _Glance | None, bool]:
        """Return what somebody else left, None where they left nothing; how the path looks; and whether it is whole.

        It is whole when it has not changed for a moment; after the deadline what is there is returned as it is.
        """
        while True:
            glance, is_quiet = _await_quiet(self._glance_foreign, deadline)
            data = self._read_foreign()
            if self._glance_foreign() == glance or not is_quiet:
                self.read = (len(data), hash(data)) if data is not None and self.displaced < 0 else None
                return data, glance if self.displaced < 0 else self.basis, is_quiet

    def _glance_foreign(self) -> _Glance | None:
        return self._glance() if self.displaced < 0 else _seen(_system.fstat(self.displaced))

    def _read_foreign(self) -> bytes | None:
        try:
            return _read_all(self.displaced) if self.displaced >= 0 else _read_file(self.path, _NO_LINK)[0]
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None

    def _let_displaced_go(self) -> None:
        if self.displaced >= 0:
            displaced, self.displaced = self.displaced, -1
            self._let_go(displaced)

    def _let_go(self, descriptor: int) -> None:
        """Close an open file, after unlocking it: a lock lives until every child has closed its copy, too.

        A child does not unlock it, because the lock is the parent's.
        """
        if os.getpid() == self.pid:
            with suppress(OSError):
                _system.unlock(descriptor)
        _system.close(descriptor)

    def replace(self, data: bytes, basis: _Glance | None, made: _Made | None = None) -> None:
        """Renew the whole file, which looked like `basis` so far; a crash leaves the old one or the new one.

        made: a new file that holds the beginning of it already; nothing else may take the place of the old one then.

        A new file takes the old one's place. Where that cannot be (several hard links, a folder that may not be written
        to, a file that is mounted by itself, a foreign owner), the file is rewritten: a line is added that tells the
        length of the new content, then that content, which is then written over the old; then the rest is cut.

        Raises _Overtaken if the file looks different by now, and StateLocked if another process has
        opened a file that somebody put in the place of ours.
        """
        is_ours = self._is_named()
        if made is not None or not is_ours or _system.fstat(self.descriptor).st_nlink <= 1:
            try:
                self._swap(data, basis, made, is_ours=is_ours)
            except OSError as error:
                if error.errno not in _NOT_REPLACEABLE or not is_ours or made is not None:
                    raise
            else:
                return
        self._rewrite(data, basis)
        if not self.is_renamed:
            self._keep_name()

    def _swap(self, data: bytes, basis: _Glance | None, made: _Made | None = None, *, is_ours: bool) -> None:
        self._remove_temporary()
        new, path, size, is_lasting = made or _Made(-1, self._temporary_path(), 0, is_lasting=False)
        self.temporary, old, theirs = path, self.descriptor, -1
        try:
            with _registry_lock:
                new = _above_standard(_system.open(path, _NEW, 0o600)) if new < 0 else new
                self.unfinished = new, data
            _write_all(new, data[size:])
            theirs = -1 if is_ours else self._claim()
            _take_over_attributes(theirs if self._may_decide(theirs) else old, new)
            if not is_lasting:
                _system.fsync(new)
            if _read_all(new) != data:
                raise OSError(errno.EIO, "what was written cannot be read back", path)
            if not self._lock(new):
                raise OSError(errno.EBUSY, "somebody locked the temporary file", path)
            self._announce(new)
            self._check(basis, theirs)  # last: what is saved between this and the next step by a renaming is lost
            _system.replace(path, self.path)
            self._hand_over(new, data, old if theirs < 0 else theirs, basis)
            if made is None:
                self._keep_name()
        except BaseException:
            _surely(self._clean_up, new, data)
            raise
        finally:
            claimed, self.claimed = self.claimed, -1  # first: what is closed may be the number of another file soon
            for descriptor in {old, claimed} - {self.descriptor, self.displaced, -1}:
                self._let_go(descriptor)

    def _announce(self, new: int) -> None:
        """Tell those who share the file which one is about to take its place."""

    def _hand_over(self, new: int, data: bytes, replaced: int, basis: _Glance | None) -> None:
        """Go on with the new file: an append to the old descriptor would succeed and be lost."""
        self._go_on_with(new, data)
        if basis and _seen(_system.fstat(replaced)) != basis:  # an editor opened it in the last moment
            self.displaced = replaced

    def _go_on_with(self, new: int, data: bytes) -> None:
        self.is_renamed = False
        self.descriptor, self.inode, self.temporary = new, None, ""
        self._know(data)
        self.unfinished = None

    def _keep_name(self) -> None:
        """Let the renaming last; until then no sync is worth anything."""
        inode = self.inode
        _sync_folder(os.path.dirname(self.path))
        self.is_renamed = self.is_renamed or self.inode == inode

    def _clean_up(self, new: int, data: bytes) -> None:
        """After an error or interrupt: go on with the new file if it took the place of the old one, else remove it.

        Raises OSError while that cannot be told; what is written meanwhile, to either of them, might be lost.
        """
        if self._is_in_place(new):
            self._go_on_with(new, data)
            self._keep_name()
            return
        self.unfinished = None
        for descriptor in {new, self.claimed} - {-1}:
            with suppress(OSError):
                self._let_go(descriptor)
        self.claimed = -1
        self._remove_temporary()

    def _is_in_place(self, new: int) -> bool:
        """Tell whether a new file took the place of ours; not if it was never opened, or closed by an interrupt."""
        try:
            return self.descriptor == new or os.path.samestat(_system.fstat(new), _system.lstat(self.path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBADF):
                raise
            return False

    def recover(self) -> None:
        """Find out how a renewal ended, where two errors or interrupts left that open."""
        if self.unfinished is not None:
            old = self.descriptor
            self._clean_up(*self.unfinished)
            if old != self.descriptor:
                self._let_go(old)

    def _remove_temporary(self) -> None:
        if self.temporary:
            with suppress(OSError):
                _system.unlink(self.temporary)
            self.temporary = ""

    def _claim(self) -> int:
        """Open and lock the file that somebody put in the place of ours; -1 if they only removed ours."""
        try:
            with _registry_lock:
                self.claimed = _above_standard(_system.open(self.path, os.O_RDWR | _NO_LINK | _FLAGS))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return -1
        if not self._lock(self.claimed):
            raise StateLocked(self.path, _holder(_system.fstat(self.claimed)))
        return self.claimed

    def _may_decide(self, theirs: int) -> bool:
        """Tell whether the owner of a file in the place of ours may decide who reads what we wrote into ours."""
        if theirs < 0:
            return False
        return _system.fstat(theirs).st_uid in (0, _user(), _system.fstat(self.descriptor).st_uid)

    def _check(self, basis: _Glance | None, theirs: int = -1) -> None:
        """Raise _Overtaken if the file looks different by now, or looks the same and holds something else."""
        if self.is_half_rewritten:
            return
        is_same = basis is None or self._holds_the_same(self.descriptor if theirs < 0 else theirs)
        if not is_same or self._glance() != basis:  # behind the other, which takes longer
            raise _Overtaken

    def _holds_the_same(self, descriptor: int) -> bool:
        if self.read is None:
            return self._is_known_content()
        data = _read_all(descriptor)
        return self.read == (len(data), hash(data))

    def _rewrite(self, data: bytes, basis: _Glance | None) -> None:
        self._check(basis)
        self.unsynced = None  # all of it is written again
        is_half, before = self.is_half_rewritten, self.size
        if is_half:  # else a copy that was cut short might count as whole, with what comes behind it
            _system.set_flags(self.descriptor, os.O_APPEND)
            _system.ftruncate(self.descriptor, before)
        self.is_half_rewritten = True
        try:
            self._add_copy(data)
        except BaseException:
            _system.set_flags(self.descriptor, os.O_APPEND)
            self.size = before
            if _system.fstat(self.descriptor).st_size > before:
                _system.ftruncate(self.descriptor, before)
            self.is_half_rewritten = is_half
            raise
        self._overwrite(data)
        _system.ftruncate(self.descriptor, len(data))
        self.sync()
        self._know(data)
        self.is_half_rewritten = False

    def _add_copy(self, data: bytes) -> None:
        _system.set_flags(self.descriptor, 0)  # what may only be appended to fails here, with nothing done
        _system.set_flags(self.descriptor, os.O_APPEND)
        padding = b"\n" * max(0, len(data) - self.size)
        self.append(b"%b\n%b%d bytes\n" % (padding, _MARK.encode(), len(data)))
        self.sync()  # so that no loss of power leaves the content without the line
        self.append(data)
        self.sync()

    def _overwrite(self, data: bytes) -> None:
        """Write over the beginning, by the descriptor that is open: who opened the file may not any more.

        If this does not come to its end, the file counts as half rewritten, so that nothing is appended to it.
        """
        if sys.platform == "win32":
            with open(self.path, "r+b", buffering=0) as head:
                _write_all(head.fileno(), data)
        else:
            _system.set_flags(self.descriptor, 0)
            _system.lseek(self.descriptor, 0, os.SEEK_SET)
            _write_all(self.descriptor, data)
            _system.set_flags(self.descriptor, os.O_APPEND)
        self.sync()

    def keep_aside(self, data: bytes, label: str) -> str:
        """Write something next to the file, under a name of its own; return its path."""
        path = f"{self.path}.{label}-{time.strftime('%Y%m%d-%H%M%S')}"
        while True:
            try:
                kept = _system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
                break
            except FileExistsError:
                path += "+"
        try:
            _write_all(kept, data)
            _system.fsync(kept)
            with suppress(OSError):  # then nobody else may read it
                _take_over_attributes(self.descriptor, kept)
        finally:
            _system.close(kept)
        return path

    def kept_aside(self) -> str:
        """Return the path of what was last kept next to the file, "" if nothing is there."""
        folder, base = os.path.split(self.path)
        pattern = re.compile(rf"{re.escape(base)}\.(?:damaged|edited|kept)-([0-9]{{8}}-[0-9]{{6}}\+*)")
        with suppress(OSError):
            found = filter(None, map(pattern.fullmatch, _system.listdir(folder)))
            return max(((match[1], os.path.join(folder, match[0])) for match in found), default=("", ""))[1]
        return ""

    def close(self) -> None:
        """Let the file and the lock go."""
        self._remove_temporary()
        new, claimed = self.unfinished[0] if self.unfinished else -1, self.claimed
        self.unfinished, self.claimed = None, -1
        for descriptor in {new, claimed} - {self.descriptor, -1}:
            with suppress(OSError):
                self._let_go(descriptor)
        if self.descriptor >= 0:
            if self._is_open():  # an interrupt may have come right behind `close`
                with suppress(OSError):
                    self._let_go(self.descriptor)
            self.descriptor = -1
        self._let_displaced_go()

    def leave(self) -> None:
        """Let the file go in a forked child: lock and temporary file are the parent's."""
        self.temporary = ""
        self.close()

    def _is_open(self) -> bool:
        try:
            return self.inode in {None, _seen(_system.fstat(self.descriptor))[:2]}
        except OSError as error:
            return error.errno != errno.EBADF


#: What the name of the file ends in that lies beside a shared one; and the bytes with which that begins.
_BESIDE = ".shared"
_BESIDE_MARK = b"persistedstate 1 "
#: The bytes of it by whose locks processes hold it open, and stand in line for their turn.
_PRESENCE, _QUEUE = 0, 1
#: Seconds in which a process may take turn after turn, without standing in line for each.
_IN_A_ROW = 0.005


def _is_shared(path: str, *, remove: bool = False) -> bool:
    """Tell whether any process shares a state file; remove: remove what killed ones have left beside it."""
    try:
        beside = _system.open(path + _BESIDE, os.O_RDWR | _NO_LINK | _FLAGS)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return False
    try:
        if not _system.lock_byte(beside, _PRESENCE, "F_WRLCK", wait=False):
            return True
        if remove and _system.pread(beside, len(_BESIDE_MARK), 0) == _BESIDE_MARK:
            _system.unlink(path + _BESIDE)
        return False
    finally:
        _system.close(beside)


class _Note(namedtuple("_Note", "number device inode start is_whole next_device next_inode")):
    """The beginning of the file beside a shared one: too short for a kill to tear it.

    number: how often the state file was renewed. device, inode: which file it is, unless a person replaced it. start:
    where the copy of it begins, which goes to the end; is_whole: the copy is there. next_device, next_inode: which file
    is about to take the place of the state file; it did if a path leads to it.
    """

    __slots__ = ()
    number: int
    device: int
    inode: int
    start: int
    is_whole: int
    next_device: int
    next_inode: int

    SIZE = 256

    @classmethod
    def read(cls, descriptor: int) -> _Note | None:
        """Return the note in a file, None if there is none."""
        data = _system.pread(descriptor, cls.SIZE, 0)
        return cls(*map(int, data[len(_BESIDE_MARK) :].split())) if data.startswith(_BESIDE_MARK) else None

    def write(self, descriptor: int) -> None:
        text = " ".join(map(str, self)).encode()
        _write_at(descriptor, (_BESIDE_MARK + text).ljust(self.SIZE - 1) + b"\n", 0)


class _SharedJournal(_Journal):
    """A state file that several processes write, each in its turn.

    The turn is the lock of a file beside the state file: it cannot lie on that one itself, because another takes its
    place at each vacuum, and when some editors save. In the file beside there is a copy of the state file, too, as its
    writers left it. What differs from that in the state file is what a person saved; and nothing is lost that some
    process has not read yet when a person saves over it. The copy is for those who have the file open: the first of
    them makes it, and the last removes it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.beside = -1
        #: The turn is ours; the lock is ours, or perhaps; we stand in line, or perhaps.
        self.is_in_turn = self.is_locked = self.is_in_line = False
        #: How many turns have ended; when to stand in line again.
        self.turns, self.yields_at = 0, 0.0
        #: The note beside, as it was last read or written; what `past_texts` shall return after the next renewal.
        self.note = _Note(0, 0, 0, 0, 0, 0, 0)
        self.past: list[tuple[str, str, bool]] = []

    def open(self, mode: int | None, deadline: float) -> bool:
        """Open the file together with others, and read it, in a turn that goes on; see `_Journal.open`."""
        if sys.platform == "win32":
            raise StateError(self.path, "on Windows a file cannot be shared; open it without _shared")
        self.path = os.path.realpath(self.name)
        if not self._attend():
            return False
        self.take_turn()
        note = _Note.read(self.beside)
        try:
            status = self._open(mode)
        except FileExistsError:
            return False
        self._check_names(status)
        if self._join(is_first=note is None) and self._is_named():
            self._begin(note)
            return True
        if _system.now() >= deadline and self._is_named():
            how = "" if _system.lock(self.descriptor, "LOCK_SH") else "alone"  # "": by another name of the file
            raise StateLocked(self.path, _holder(status), how)
        self.close()
        return False

    def _attend(self) -> bool:
        """Open the file beside, and hold that it is open; False if that has to be tried again."""
        path = self.path + _BESIDE
        try:
            with _registry_lock:
                self.beside = _above_standard(_system.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _FLAGS, 0o600))
        except OSError as error:
            reason = f"{error.strerror}: {path}, which lies beside a file that is shared"
            raise type(error)(error.errno, reason, self.path) from None
        if self.become_alone():
            if _system.pread(self.beside, len(_BESIDE_MARK), 0) not in (b"", _BESIDE_MARK):
                raise StateError(self.path, f"{path} is somebody else's file; rename it, or open this without _shared")
            _system.ftruncate(self.beside, 0)
        self.stay()
        with suppress(FileNotFoundError):
            if os.path.samestat(_system.fstat(self.beside), _system.lstat(path)):
                return True
        self.close()  # the last one has just removed it
        return False

    def _check_names(self, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            reason = "the file has several names (hard links), which sharing it would part; open it without _shared"
            raise OSError(errno.EMLINK, reason, self.path)

    def _join(self, *, is_first: bool) -> bool:
        """Take the lock of the state file together with the others; False if somebody else has it."""
        return (not is_first or _system.lock(self.descriptor)) and _system.lock(self.descriptor, "LOCK_SH")

    def _lock(self, descriptor: int) -> bool:
        return _system.lock(descriptor, "LOCK_SH")

    def _begin(self, note: _Note | None) -> None:
        if note is None:
            self._remove_leftovers()
            self.data = _read_all(self.descriptor)
        else:
            self.is_new = False
            self.note = note if note.is_whole else self._mended(note)
            self.data = self._copy()
        self._know(self.data)
        self.is_suspicious = note is not None  # a person may have written it just now

    def accept(self, size: int) -> None:
        data = self.data[:size]
        super().accept(size)
        if not self.note.number:
            with suppress(OSError):  # then nobody else may read it
                _take_over_attributes(self.descriptor, self.beside)
            self._publish(data)

    def anew(self) -> _SharedJournal:
        """Return another one for the same file, not open."""
        return _SharedJournal(self.name)

    def take_turn(self, wait: float = inf) -> None:
        """Wait until nobody else may write, until `end_turn`. A signal handler may have a turn of its own meanwhile.

        Nobody wakes up fast enough to get a lock before the one who released it just now, and takes it again. Therefore
        everybody has to stand in line now and then, whose first waits for the lock. Who waits for so many seconds only
        does not: raises TimeoutError.
        """
        while not self.is_in_turn:
            turns, self.is_locked = self.turns, True
            if wait < inf:
                if not self._try_lock(wait):
                    raise TimeoutError
            elif _system.now() >= self.yields_at or not _system.lock(self.beside):
                self.is_in_line = True
                _system.lock_byte(self.beside, _QUEUE, "F_WRLCK", wait=True)
                # At first so that it costs nothing: to wake somebody at the end of each turn takes as long as the turn.
                if not self._try_lock(2 * _IN_A_ROW):
                    _system.await_lock(self.beside)
                self._leave_line()
                self.yields_at = _system.now() + _IN_A_ROW
            self.is_in_turn = turns == self.turns

    def _try_lock(self, wait: float) -> bool:
        """Try to take the lock again and again, for so many seconds."""
        end = _system.now() + wait
        while not _system.lock(self.beside):
            if _system.now() >= end:
                return False
            _system.sleep(_IN_A_ROW / 50)
        return True

    def _leave_line(self) -> None:
        if self.is_in_line:
            _system.lock_byte(self.beside, _QUEUE, "F_UNLCK", wait=False)
            self.is_in_line = False

    def end_turn(self) -> None:
        """Let others write; may be called again."""
        if self.is_locked:
            self.is_in_turn = False
            self.turns += 1
            self._leave_line()
            _system.unlock(self.beside)
            self.is_locked = False

    def news(self, *, is_doubtful: bool) -> tuple[bytes, bool] | None:
        """Return what others wrote, records, or, as the second part tells, all there is; None for nothing.

        is_doubtful: what is known here is of no use, so that all there is is wanted. What a person did makes the file
        suspicious.
        """
        device, inode, size, _ = _glance(self.name) or (0, 0, -1, 0)
        path = device, inode
        is_as_left = path == self.inode and size == self.size
        # The size of the copy tells, too: what a person saves may be as long as what was there when we looked last.
        if is_as_left and not is_doubtful and len(_system.pread(self.beside, 2, self.note.start + size - 1)) == 1:
            return None
        note = _Note.read(self.beside)
        if note is None:
            raise StateError(self.path, f"somebody emptied {self.path + _BESIDE}; close the state in all processes")
        if not note.is_whole or (note.next_inode and path == (note.next_device, note.next_inode)):
            note, is_doubtful = self._mended(note), True
        is_all = is_doubtful or note.number != self.note.number
        self.note = note
        data = self._copy(0 if is_all else self.size)
        end = len(data) if is_all else self.size + len(data)
        if path == (note.device, note.inode):
            self._switch(path)
            data += self._salvaged(end)
        if is_all:
            self._know(data)
        else:
            self.size += len(data)
        is_as_left = path == self.inode and _system.fstat(self.descriptor).st_size == self.size
        self.is_suspicious = self.is_suspicious or not is_as_left
        return (data, is_all) if data or is_all else None

    def _switch(self, file: tuple[int, int]) -> None:
        """Go on with the file that another process has put in the place of ours."""
        if file == self.inode:
            return
        with _registry_lock:
            self.claimed = _above_standard(_system.open(self.path, os.O_RDWR | os.O_APPEND | _NO_LINK | _FLAGS))
        status = _system.fstat(self.claimed)
        if not self._lock(self.claimed):
            raise StateLocked(self.path, _holder(status), "alone")
        old, self.descriptor, self.claimed, self.inode = self.descriptor, self.claimed, -1, _seen(status)[:2]
        self._let_go(old)

    def _salvaged(self, end: int) -> bytes:
        """Return what a writer that was killed added to the file, and not to the copy; cut what is no whole record.

        What stands behind a text that a person saved is the end of that text.
        """
        if _system.fstat(self.descriptor).st_size <= end:
            return b""
        data = _read_all(self.descriptor)
        if data[:end] != self._copy()[:end]:
            return b""
        found = data[end:]
        whole = found[: found.rfind(b"\n") + 1]
        torn = found[len(whole) :]
        is_ours = all(line.startswith(_RECORD_START) or line in (b"", b"{}") for line in whole.split(b"\n"))
        if not is_ours or not _RECORD_START.startswith(torn[: len(_RECORD_START)]):
            return b""
        whole = _Stream._without_lone_facts(whole.decode()).encode()
        if len(whole) < len(found):
            _system.ftruncate(self.descriptor, end + len(whole))
        _write_at(self.beside, whole, self.note.start + end)
        return whole

    def _mended(self, note: _Note) -> _Note:
        """Finish a renewal for a process that was killed when the new file had its place."""
        self.note, self.past = note, []
        if note.is_whole:  # as yet of the old file
            text = self._copy().decode()
            self.past = [(text[: _journal_start(text)], _first_record(text), False), *self.past_texts()]
        self._switch(_seen(_system.stat(self.name))[:2])
        self._publish(_read_all(self.descriptor))
        self._keep_name()
        return self.note

    def append(self, data: bytes) -> None:
        size = self.size
        super().append(data)
        try:
            _write_at(self.beside, data, self.note.start + size)
        except OSError:
            self.size = size
            _system.ftruncate(self.descriptor, size)
            _system.ftruncate(self.beside, self.note.start + size)  # a part of it may be there
            raise

    def landed(self, offset: int, data: bytes) -> bool:
        is_there = super().landed(offset, data)
        if is_there:
            _write_at(self.beside, data, self.note.start + offset)
        return is_there

    def latest_lines(self) -> set[str]:
        start = min(self.basis[2] if self.basis else 0, self.size)
        return {line.strip() for line in self._copy(start).decode(errors="replace").split("\n")}

    def past_texts(self) -> list[tuple[str, str, bool]]:
        """Return text, first record and `by_person` of older snapshots, the latest first."""
        from json import loads

        texts = _system.pread(self.beside, self.note.start - _Note.SIZE, _Note.SIZE)
        return [(text, first_record, by_person) for text, first_record, by_person in loads(texts or b"[]")]

    def _copy(self, start: int = 0) -> bytes:
        """Return what the writers left in the file, from an offset on."""
        parts, offset = [], self.note.start + start
        while part := _system.pread(self.beside, 1 << 24, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def replace(self, data: bytes, basis: _Glance | None, made: _Made | None = None) -> None:
        """Renew the file by another one in its place; see `_Journal.replace`. Raises OSError where that cannot be."""
        is_ours = self._is_named()
        if is_ours:
            self._check_names(_system.fstat(self.descriptor))
        self._swap(data, basis, made, is_ours=is_ours)

    def _announce(self, new: int) -> None:
        device, inode = _seen(_system.fstat(new))[:2]
        self.note._replace(next_device=device, next_inode=inode).write(self.beside)

    def _go_on_with(self, new: int, data: bytes) -> None:
        super()._go_on_with(new, data)
        self._publish(data)

    def _clean_up(self, new: int, data: bytes) -> None:
        super()._clean_up(new, data)
        if self.descriptor != new:
            self.note.write(self.beside)  # no file is about to come any more

    def _publish(self, data: bytes) -> None:
        """Let the others know that the file holds something new."""
        from json import dumps

        past = dumps(self.past).encode()
        device, inode = _seen(_system.fstat(self.descriptor))[:2]
        note = _Note(self.note.number + 1, device, inode, _Note.SIZE + len(past), 0, 0, 0)
        note.write(self.beside)
        _write_at(self.beside, past + data, _Note.SIZE)
        _system.ftruncate(self.beside, note.start + len(data))
        self.note = note._replace(is_whole=1)
        self.note.write(self.beside)

    def become_alone(self) -> bool:
        """Tell whether no other process has the file open; from then on they wait, until `close` or `stay`."""
        return self.beside >= 0 and _system.lock_byte(self.beside, _PRESENCE, "F_WRLCK", wait=False)

    def stay(self) -> None:
        """Let others open the file again."""
        if self.beside >= 0:
            _system.lock_byte(self.beside, _PRESENCE, "F_RDLCK", wait=True)

    def close(self) -> None:
        """Let everything go; the last one removes the file beside."""
        super().close()
        is_ours = os.getpid() == self.pid
        if self.beside >= 0:
            if is_ours:  # else both are the parent's
                with suppress(OSError):
                    if self.become_alone() and not self._is_strange():
                        _system.unlink(self.path + _BESIDE)
                self.end_turn()
            beside, self.beside = self.beside, -1
            self.is_in_turn = self.is_locked = self.is_in_line = False
            _system.close(beside)

    def _is_strange(self) -> bool:
        """Tell whether the file beside is not the one there by now, or somebody else's."""
        status, mark = _system.fstat(self.beside), _system.pread(self.beside, len(_BESIDE_MARK), 0)
        is_there = os.path.samestat(status, _system.lstat(self.path + _BESIDE))
        return not is_there or mark not in (b"", _BESIDE_MARK)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = _system.pwrite(descriptor, data, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, offset = data[written:], offset + written


def _take_over_attributes(source: int, new: int) -> None:
    """Give a new file, which only its owner may read as yet, the owner, mode, ACL and attributes of another one.

    By descriptors: in a folder that somebody else may write to, a path may name another file at each call. Raises
    PermissionError where those who may read the new file would not be the same.
    """
    try:
        old, status, wanted, present = _system.fstat(source), _system.fstat(new), _attributes(source), _attributes(new)
        for name in present.keys() - wanted.keys():
            _tried(name, _system.removexattr, new, name)
        if (old.st_uid, old.st_gid) != (status.st_uid, status.st_gid):
            _system.fchown(new, old.st_uid, old.st_gid)
        for name, value in wanted.items():  # behind `fchown`: an ACL speaks of the owner and the group
            if present.get(name) != value:
                _tried(name, _system.setxattr, new, name, value)
        if _system.fstat(new).st_mode != old.st_mode:
            _system.fchmod(new, stat.S_IMODE(old.st_mode))  # last: the others may take bits away
    except OSError as error:
        reason = (
            f"a new file cannot get owner and mode of the old one ({error.strerror}); give that to this user (chown)"
        )
        raise PermissionError(errno.EPERM, reason) from error


def _attributes(descriptor: int) -> dict[str, bytes]:
    """Return the extended attributes of a file, an ACL among them, as far as they can be read."""
    try:
        names = _system.listxattr(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return {}
    found = {name: _tried(name, _system.getxattr, descriptor, name) for name in names if name not in _OF_CONTENT}
    return {name: value for name, value in found.items() if value is not None}


def _tried(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Do something with an attribute; raises OSError only if that decides about who may read the file."""
    try:
        return call(*arguments)
    except OSError:
        if name.startswith(("system.", "security.")):
            raise
        return None


def _above_standard(descriptor: int) -> int:
    """Keep off the numbers of stdin, stdout and stderr, on which others write where they find them closed."""
    if descriptor > 2:  # noqa: PLR2004 - the number of stderr
        return descriptor
    try:
        return _above_standard(os.dup(descriptor))
    finally:
        _system.close(descriptor)


def _check_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def _read_all(descriptor: int) -> bytes:
    _system.lseek(descriptor, 0, os.SEEK_SET)
    return _read_on(descriptor)


def _read_on(descriptor: int) -> bytes:
    parts = []
    while part := _system.read(descriptor, 1 << 24):
        parts.append(part)
    return b"".join(parts)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = _system.write(descriptor, view)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[written:]


def _sync_folder(folder: str) -> None:
    """Make a renaming last; some file systems cannot do that for folders, and Windows knows no such thing."""
    try:
        descriptor = _system.open(folder, os.O_RDONLY | _FLAGS)
    except OSError:
        return
    try:
        _system.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.EBADF):
            raise
    finally:
        _system.close(descriptor)


def _read_file(path: str, flags: int = 0) -> tuple[bytes, _Glance]:
    """Read, without a lock, a file that others may be writing: what was there at one moment, and how it looked."""
    descriptor = _system.open(path, os.O_RDONLY | flags | _FLAGS)
    try:
        status = _system.fstat(descriptor)
        _check_regular(status, path)
        data, again = b"", _read_all(descriptor)
        while not again.startswith(data) or not data:
            if not again:
                break
            data, again = again, _read_all(descriptor)
        return data, _seen(status)
    finally:
        _system.close(descriptor)


# ------------------------------------------------------- Nodes -------------------------------------------------------
# The containers of the tree; know no file. A mutator checks and copies the value, gives its record to the tree, and
# the tree lets the node do the operation: `_set`, `_delete`, `_insert`, `_splice`, `_order`, `_update` or `_clear`.


class _Unstorable(Exception):
    """A value that YAML cannot hold; becomes the TypeError or ValueError that the user sees in `_stored`."""

    def __init__(self, error: type[Exception], reason: str) -> None:
        super().__init__(reason)
        self.error, self.reason = error, reason


def _step(key: Any) -> str:
    if isinstance(key, str):
        return f".{key}" if key.isidentifier() else f"[{_quote(key)}]"
    is_huge = type(key) is int and key.bit_length() > _LARGE_INT
    return "[…]" if is_huge else f"[{key!r}]"


class _Level:
    """An open transaction: how many records and edits there were before it, and what nodes that it changes were."""

    __slots__ = ("edits", "images", "records")

    def __init__(self, records: int, edits: int) -> None:
        self.records, self.edits = records, edits
        self.images: dict[int, _Image] = {}


class _Image:
    """What a node was before a transaction changed it, as far as needed.

    Of a mapping, `kept` has old items, `_GONE` for what was not there, and `extent` tells whether it has all of them.
    Of a list, `kept` has the old items behind what did not change, the last first, and `extent` is how many there were.
    """

    __slots__ = ("extent", "kept", "node")

    def __init__(self, node: _Node, kept: Any, extent: int) -> None:
        self.node, self.kept, self.extent = node, kept, extent


class _Tree:
    """What the nodes of one state share.

    A change of the script goes through `commit`, or `assign`, the short way; a merge (`_become`) and a record that is
    read (`_apply`) do operations without a record.

    Slots for what each change reads: from the thirtieth attribute on, CPython finds all of them in more time, 0.05 us
    of a change.
    """

    __slots__ = (
        *("__dict__", "__weakref__", "attributes", "edits", "halted", "levels"),
        *("lines", "lock", "missed", "root", "unread", "watcher"),
    )

    root: _Root

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.lock: Any = RLock()
        #: None while changes are welcome, else a call, (function, *arguments), that has to be made first: `_finish` a
        #: change, `_show_latest`, `_undo` or `_undo_abandoned` a transaction, `_rescue` the file, `_reload` or
        #: `_reopen` a shared one, `_tell` a late warning, or, for ever, `refuse`.
        self.halted: tuple[Any, ...] | None = None
        #: What the nodes were that other processes changed, by their ids, when the statement under way began.
        self.missed: dict[int, _Image] = {}
        #: The same, as far as the statement under way may have begun before helpers found that.
        self.unread: dict[int, _Image] = {}
        #: How many snapshots there have been.
        self.generation = 0
        #: What the text of the latest snapshot has to follow: paths, operations and what matters of their arguments. A
        #: short way leaves none (see `_heads`), so that a list may be longer than they tell.
        self.edits: list[tuple[Any, ...]] = []
        #: The open transactions, the outermost first.
        self.levels: list[_Level] = []
        #: The tasks that wait until they may begin a transaction, the first of them first, by their event loops.
        self.lines: dict[Any, deque[Any]] = {}
        self.started: Any = None  #: The `moment` at which the change under way looked where it belongs.
        #: The nodes that know the beginnings of records; a vacuum makes them forget.
        self.primed: list[_Node] = []
        #: By those beginnings: a type that needs no other check, and what else tells whether a value fits.
        self.fitting: dict[str, tuple[Any, Callable[[Any], bool]]] = {}
        #: The root's entries that can be read as attributes.
        self.attributes: dict[str, Any] = {}
        #: Names that are something else there.
        self.reserved: frozenset[str] = frozenset()
        #: The objects that show the tree and are not closed, by their ids; the last that is closed closes the tree.
        self.facades: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.is_closing = False
        #: Who wants to be told of changes: then each of them leaves an edit, and there are no short ways.
        self.watches: list[Any] = []
        #: The thread that looks at what others do, if somebody wants one.
        self.watcher: Any = None

    def commit(self, record: str, node: _Node, edit: tuple[Any, ...], *arguments: Any) -> None:
        """Write the record, then do the operation of the edit to the node; neither if the first fails."""
        raise NotImplementedError

    def moment(self) -> Any:
        """Return what every change makes different: thereby one that a signal handler interrupts knows of it."""

    def still(self) -> Any:
        """Return what to hold while nothing may change; raises StateError where waiting for it would never end."""
        return self.lock

    def renew_lock(self) -> None:
        """In a forked child have a new lock in the place of one that a thread may hold which is gone."""
        self.lock = self.lock.anew() if self.watches else RLock()

    def turn(self) -> Any:
        """Return what to hold during a change: an RLock, or in a shared state the like of it, and with it the turn."""
        return self.still()

    def overlooks(self, node: _Node, key: Any, value: Any = _GONE) -> bool:
        """Raise StateConflict if another process changed what a statement is about to overwrite, which has not read it.

        Returns True where nothing is to be done: the value is the node that is there, or that was, as in `+=`.
        """
        raise NotImplementedError

    def resume(self) -> None:
        """Do what is in the way of changes, so that they can go on; raises where that cannot be."""
        while self.halted is not None:
            function, *arguments = self.halted
            function(*arguments)

    def refuse(self, error: StateError) -> NoReturn:
        """Raise the same error for each use."""
        raise type(error)(*error.__reduce__()[1])

    def restore(self) -> None:
        """Make the nodes what they were before the innermost transaction; may be called twice."""
        self.forget_heads()
        level = self.levels[-1]
        for image in level.images.values():
            image.node._restore(image)
        del self.edits[level.edits :]

    def assign(self, node: _Node, key: str | None, value: Any) -> bool:  # noqa: ARG002 - a tree with a file uses them
        """Put a scalar in the place of a scalar, or append it where `key` is None, if there is a short way to do so."""
        return False

    def prime(self, node: _Node, key: str | None, head: str) -> None:
        """Let a node know how the record of a change begins that it is likely to make again."""
        raise NotImplementedError

    def forget_heads(self) -> None:
        for node in self.primed:
            node._heads = _NO_HEADS
        self.primed.clear()
        self.fitting.clear()


def _lay_out(printer: Any, holder: _Holder, stream: Any, *place: int) -> None:
    *others, level = place
    printer._format(holder.__rich__(), stream, *others, level - 1)


class _Holder:
    """What can be taken for the dict or list that it holds."""

    __slots__ = ()
    _items: Any
    _tree: _Tree | None

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: Any) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __reversed__(self) -> Iterator[Any]:
        return iter(reversed(self._items))

    def __eq__(self, other: object) -> bool:
        return bool(self._items == _content(other))

    def __repr__(self) -> str:
        if pprint := sys.modules.get("pprint"):  # it asks for this text before it looks how to lay it out
            with suppress(AttributeError):
                pprint.PrettyPrinter._dispatch.setdefault(_Holder.__repr__, _lay_out)
        return self._text()

    def _text(self) -> str:
        return repr(self._items)

    def __rich__(self) -> Any:
        return _copy(self)  # rich shows that

    def __rich_repr__(self) -> Iterator[Any]:
        yield self.__rich__()  # and shows this inside of something else

    def _repr_pretty_(self, printer: Any, *_: Any) -> None:
        shown = self.__rich__()
        (printer.text if type(shown) is str else printer.pretty)(shown)  # as IPython shows it

    def __copy__(self) -> Any:
        return _copy(self)

    def __deepcopy__(self, memo: Any) -> Any:
        return _copy(self)


class _Mapping(_Holder, MutableMapping[_Key, Any]):
    """What can be taken for the dict that it holds."""

    __slots__ = ()
    _items: dict[Any, Any]

    def _ipython_key_completions_(self) -> list[Any]:
        return list(self._items)

    def __or__(self, other: Any) -> Any:
        return _copy(self) | _copy(other) if isinstance(_content(other), dict) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return _copy(other) | _copy(self) if isinstance(_content(other), dict) else NotImplemented

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    def keys(self) -> KeysView[Any]:
        """Return the keys, as a dict does."""
        return self._items.keys()

    def values(self) -> ValuesView[Any]:
        """Return the values, as a dict does."""
        return self._items.values()

    def items(self) -> ItemsView[Any, Any]:
        """Return the pairs of key and value, as a dict does."""
        return self._items.items()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or the default where there is none."""
        return self._items.get(key, default)


#: What a node knows that is not primed; never changed.
_NO_HEADS: dict[str | None, str] = {}
#: How many nodes may be primed; each then holds a dict of its own.
_MOST_PRIMED = 1000


class _Node(_Holder):
    """A container of the tree, or one that was removed from it: that is as plain as any other.

    A node is in the tree if its parents lead to the root; to remove it is to clear its link to its parent. Each
    operation of a record is a method of the same name with an underscore; tests/test_style.py names what else has to
    know it. Its last step changes `_items` by one call of C code, so that after an interrupt the length tells whether
    it was done, or else it may be repeated: `_do_once`.
    """

    __slots__ = ("_heads", "_items", "_key", "_parent", "_place", "_tree")

    #: None once it is known that the node was removed.
    _tree: _Tree | None
    #: None for the root, and where a node was removed; those below that keep theirs.
    _parent: _Node | None
    #: In a mapping the key; in a list the index where it was last seen.
    _key: Any
    #: The path as text, and as keys; None while unknown, and always None below a list, whose indexes move.
    _place: tuple[str, _Keys] | None
    #: For keys that hold a scalar, and in a list, as None, for `append`: the record of the change up to what is new.
    #: Only while the node has its `_place`, and the edits tell that this entry changed, or that list, since the latest
    #: snapshot: then nothing but the record and the one change of `_items` is left to do.
    _heads: dict[str | None, str]

    def __init__(self, items: Any, tree: _Tree | None, parent: _Node | None, key: Any) -> None:
        self._items, self._tree, self._parent, self._key, self._place = items, tree, parent, key, None
        self._heads = _NO_HEADS

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._items), (_copy(self),)

    def copy(self) -> Any:
        """Return a plain, deep copy."""
        return _copy(self)

    def clear(self) -> None:
        """Remove every item, in one record."""
        with self._turn():
            self._enter()
            if self._fix_length():
                self._commit("clear")

    def _locate(self) -> tuple[str, _Keys]:
        if self._place is not None:
            return self._place
        parent = self._parent
        if parent is None:
            raise RuntimeError("a signal handler removed this in the middle of its change; it is a plain one now")
        above, keys = parent._locate()
        key = parent._key_of(self)
        place = (f"{above},{_flow(key)}" if above else _flow(key), (*keys, key))
        if parent._place is not None and isinstance(parent, StateDict):
            self._place = place
        return place

    def _key_of(self, child: _Node) -> Any:
        return child._key

    def _path(self) -> _Keys:
        return self._locate()[1] if self._tree is not None and self._top() is self._tree.root else ()

    def _turn(self) -> Any:
        """Return what to hold during a change, which may be none at all."""
        return _NO_LOCK if self._tree is None else self._tree.turn()

    def _enter(self) -> bool:
        """Tell whether a change of this is one of the state; raises what is in the way of that."""
        tree, top = self._tree, self
        if tree is None:
            return False
        while top._parent is not None:
            top = top._parent
        is_inside = top is tree.root
        if tree.halted is not None and (is_inside or tree.levels):
            tree.resume()
            return self._enter()
        if not (is_inside or (tree.levels and id(top) in tree.levels[0].images)):
            self._tree = None  # no open transaction can bring it back
        return is_inside

    def _top(self) -> _Node:
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def _depth(self) -> int:
        node, depth = self, 0
        while node._parent is not None:
            node, depth = node._parent, depth + 1
        return depth

    def _fix_length(self) -> int:
        """Return the length, on which a change builds, and note the moment: after another change `_make` refuses."""
        if self._tree is not None:
            self._tree.started = self._tree.moment()
        return len(self._items)

    def _commit(self, operation: str, *arguments: Any) -> None:
        """Do an operation, after a look at the length; what is part of the state writes its record first."""
        if not self._enter():
            self._do(operation, *(arguments if self._tree is None else _with_values(_unshared, operation, *arguments)))
            return
        tree, (path, keys) = self._tree, self._locate()
        assert tree is not None  # noqa: S101 - for the type checker
        written = arguments if operation != "order" else arguments[:1]
        record = ",".join([f'["{operation}",[{path}]', *map(_flow, written)])
        edit = self._for_text(keys, operation, *arguments)
        tree.commit(f"{record}]", self, edit, *self._grown(operation, *arguments))

    def _do(self, operation: str, *arguments: Any) -> None:
        tree = self._tree
        if tree is not None and tree.levels:
            self._remember(operation, *arguments)
        getattr(self, "_" + operation)(*arguments)

    def _do_once(self, length: int, edit: tuple[Any, ...], *arguments: Any) -> None:
        """Do an operation of the state unless that was done: unless the node has another length than it had before.

        edit: what `_for_text` returns of it.
        """
        if len(self._items) == length:
            self._tree.edits.append(edit)  # type: ignore[union-attr]
            self._do(edit[1], *arguments)
        else:
            self._show_all()

    def _show_all(self) -> None:
        """Let what shows the items elsewhere, too, follow an operation that an interrupt may have kept from that."""

    def _perform(self, length: int, edit: tuple[Any, ...], *arguments: Any) -> None:
        """Do an operation, and get ready for its like: at once, because an edit must be there that tells of it."""
        self._do_once(length, edit, *arguments)
        self._prime(edit[1], *arguments)

    def _prime(self, operation: str, *arguments: Any) -> None:
        """Note how the record of a change begins that is likely to follow an operation; see `_heads`."""
        raise NotImplementedError

    def _put(self, length: int, key: str | None, value: Any) -> None:
        """Make the change of which `_heads` tells, unless it was made; see `_do_once`."""
        raise NotImplementedError

    def _for_text(self, keys: _Keys, operation: str, *arguments: Any) -> tuple[Any, ...]:
        """Return the edit of an operation; keys: to its node. It has plain values where they replace containers."""
        if operation == "set":
            key, value = arguments
            is_other = type(value) in (dict, list) and isinstance(self._at(key), _Node)
            return keys, operation, key, value if is_other else _UNDEFINED
        if operation == "insert":
            return keys, operation, arguments[0], _UNDEFINED
        if operation == "splice" and arguments[0] == arguments[1]:
            return keys, operation, arguments[0], arguments[1], range(len(arguments[2]))
        return (keys, operation, *(arguments if operation != "order" else arguments[:1]))

    def _taken(self, operation: str, *arguments: Any) -> tuple[Any, ...]:
        """Return the arguments that a record has for an operation, if they fit; raises what `_MISFITS` are."""
        take: Callable[..., tuple[Any, ...]] | None = getattr(self, f"_take_{operation}", None)
        if take is None:
            raise ValueError(f"unknown operation {operation!r}")
        return take(*arguments)

    def _take_clear(self) -> tuple[Any, ...]:
        return ()

    def _grown(self, operation: str, *arguments: Any) -> tuple[Any, ...]:
        """Return the arguments of an operation with nodes in the place of plain containers."""
        tree = self._tree
        if operation in ("set", "insert"):  # right here, as most are: the other way takes 3 to 5 % of a change
            return arguments[0], _grow(tree, self, arguments[1], arguments[0])
        if operation == "update":
            return ({key: _grow(tree, self, value, key) for key, value in arguments[0].items()},)
        return _with_values(partial(_grow, tree, self), operation, *arguments) if operation == "splice" else arguments

    def _at(self, key: Any) -> Any:
        """Return what stands at a key; None in a mapping that lacks it."""
        return self._items.get(key) if type(self._items) is dict else self._items[key]

    def _checked(self, value: Any, key: Any) -> Any:
        """Return a plain copy of a value that is to be stored under a key."""
        if type(value) in _AS_THEY_ARE:
            return value
        depth = 0 if type(value) in _SCALARS else self._depth()
        return _stored(_storable, value, depth, lambda: [*self._path(), key])

    def _let_go(self, children: Iterable[Any], kept: Iterable[Any] = ()) -> None:
        """Let nodes that are removed live on as plain containers that never write."""
        kept_ids = {id(item) for item in kept}
        for child in children:
            if isinstance(child, _Node) and id(child) not in kept_ids:
                self._drop(child)

    def _drop(self, child: Any) -> None:
        tree = self._tree
        if isinstance(child, _Node) and child._parent is self:
            if tree is not None and tree.levels:
                child._keep()
            child._parent = None
            if child._place is not None and tree is not None:  # else none below is primed
                tree.forget_heads()

    def _loosen(self, children: Iterable[Any]) -> None:
        """Clear the links of what may be no part of the node any more; `_attach` follows for what is."""
        for child in children:
            if isinstance(child, _Node) and child._parent is self:
                child._parent = None

    def _attach(self, children: Iterable[Any]) -> None:
        for child in children:
            if isinstance(child, _Node):
                child._parent = self

    def _keep(self) -> list[_Image]:
        """Return what the open transactions know of the node as it was; more is noted there before a change."""
        images, key = [], id(self)
        for level in self._tree.levels if self._tree is not None else ():
            image = level.images.get(key)
            if image is None:
                image = level.images.setdefault(key, self._image())  # a signal handler may have been there first
            images.append(image)
        return images

    def _image(self) -> _Image:
        """Return what keeps an image of the node, of which nothing changed as yet."""
        raise NotImplementedError

    def _remember(self, operation: str, *arguments: Any) -> None:
        """Keep in the open transactions what an operation is about to change."""
        raise NotImplementedError

    def _restore(self, image: _Image) -> None:
        """Make the node again what it was; may be called twice."""
        raise NotImplementedError


_NO_LOCK = nullcontext()


def _grow(tree: _Tree | None, parent: _Node | None, value: Any, key: Any) -> Any:
    """Return a node of the tree for a plain value, which stays as it is; scalars are returned themselves."""
    if type(value) not in (dict, list):
        return value
    kind, pairs = (StateDict, value.items()) if type(value) is dict else (StateList, enumerate(value))
    node = kind(value.copy(), tree, parent, key)
    for name, item in pairs:
        if type(item) not in _SIMPLE:
            node._items[name] = _grow(tree, node, item, name)
    return node


def _with_values(convert: Callable[[Any, Any], Any], operation: str, *arguments: Any) -> tuple[Any, ...]:
    """Return the arguments of an operation with what `convert` makes of each value and its key."""
    if operation in ("set", "insert"):
        key, value = arguments
        return key, convert(value, key)
    if operation == "update":
        return ({key: convert(value, key) for key, value in arguments[0].items()},)
    if operation == "splice":
        start, stop, values = arguments
        return start, stop, [convert(value, index) for index, value in enumerate(values, start)]
    return arguments


def _unshared(value: Any, _key: Any = None) -> Any:
    """Return a copy of a node: what a failed transaction may bring back has those of its own."""
    return _plain(value) if isinstance(value, _Node) else value


def _copy(value: Any) -> Any:
    """Return a plain, deep copy of something that no other thread changes meanwhile."""
    tree = value._tree if isinstance(value, _Holder) else None
    with _NO_LOCK if tree is None else tree.still():
        return _plain(value)


_AS_THEY_ARE = frozenset({type(None), bool, float, bytes, date})
#: What the short way of a change takes.
_TEXTS: dict[type, Callable[[Any], str]] = {
    str: lambda text: _quote(_storable_text(text)),
    **dict.fromkeys((type(None), bool, float), _scalar),
}
_SCALARS = frozenset(_TEXTS) | {int}


def _stored(convert: Callable[..., Any], value: Any, depth: int, path: Callable[[], list[Any]]) -> Any:
    """Return the plain copy that `convert` makes of a value, and name the place of what it cannot copy.

    What foreign code raises when it is asked for a value is not ours: it passes as it is, with a note of the place.
    """
    below: list[Any] = []
    try:
        return convert(value, depth, below)
    except _Unstorable as problem:
        raise problem.error(f"{_place_of([*path(), *reversed(below)])}: {problem.reason}") from None
    except Exception as error:
        if hasattr(error, "add_note"):  # from CPython 3.11 on
            error.add_note(f"while {_place_of([*path(), *reversed(below)])} was being copied into the state")
        raise


#: A longer place is told without its middle.
_MOST_STEPS = 20


def _place_of(keys: Iterable[Any]) -> str:
    steps = ["STATE", *map(_step, keys)]
    return "".join(steps if len(steps) <= _MOST_STEPS else [*steps[:8], "…", *steps[-3:]])


def _storable(value: Any, depth: int, below: list[Any]) -> Any:
    """Return a plain, deep copy of a value; raises _Unstorable.

    below: collects the keys that lead to what could not be copied, the innermost first.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is str or kind is int:
        return _storable_text(value) if kind is str else _storable_int(value)
    if kind is dict or isinstance(value, Mapping):
        return _storable_mapping(value, depth + 1, below)
    if kind is list or (isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))):
        return _storable_sequence(value, depth + 1, below)
    return _storable_subclass(value, kind)


def _storable_text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Unstorable(ValueError, "a lone surrogate is not storable; replace it") from None
    return value


def _storable_int(value: int) -> int:
    if value.bit_length() > _LARGE_INT:
        try:
            str(value)
        except ValueError as error:
            raise _Unstorable(ValueError, f"{error}; store it as bytes or as text") from None
    return value


def _storable_mapping(value: Mapping[Any, Any], depth: int, below: list[Any]) -> dict[Any, Any]:
    _check_depth(depth)
    copied: dict[Any, Any] = {}
    for key in value:
        try:
            copied[_storable_key(key)] = _storable(value[key], depth, below)
        except Exception:
            below.append(key)
            raise
    return copied


def _storable_sequence(value: Sequence[Any], depth: int, below: list[Any]) -> list[Any]:
    _check_depth(depth)
    copied: list[Any] = []
    for item in value:
        try:
            copied.append(_storable(item, depth, below))
        except Exception:
            below.append(len(copied))
            raise
    return copied


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        reason = f"a container that contains itself, or more than {_MAX_DEPTH} levels, is not storable"
        raise _Unstorable(ValueError, reason)


def _storable_key(key: Any) -> Any:
    if type(key) is str:
        return _storable_text(key)
    copied = key if _is_key(key) else _number(key)
    if _is_key(copied) and (copied is not None or key is None):
        return _storable(copied, 0, [])
    if isinstance(copied, float):
        raise _Unstorable(ValueError, "nan is not storable as a key; it would never be found again")
    raise _Unstorable(TypeError, f"{type(key).__name__} is not storable as a key; use a str")


def _storable_subclass(value: Any, kind: type) -> Any:
    """Make a subclass of a storable type that type; refuse everything else."""
    if isinstance(value, datetime):
        return _storable_datetime(value)
    if isinstance(value, str):
        return _storable_text(str.__str__(value))
    for base, convert in _CONVERSIONS:
        if isinstance(value, base):
            return convert(value)
    number = _number(value)
    if number is not None:
        return number
    hints = [hint for attribute, hint in _HINTS_BY_ATTRIBUTE.items() if hasattr(kind, attribute)]
    raise _Unstorable(TypeError, f"{kind.__name__} is not storable; {_HINTS.get(kind.__name__) or [*hints, _HINT][0]}")


def _number(value: Any) -> Any:
    """Return the bool, int or float that is exactly a foreign number, such as numpy's; None for what is none."""
    if getattr(getattr(value, "dtype", None), "kind", "") == "b" and getattr(value, "shape", None) == ():
        return bool(value)
    if hasattr(type(value), "__index__"):
        with suppress(TypeError):  # arrays have it, and refuse
            return _storable_int(operator.index(value))
    from numbers import Rational, Real

    if not isinstance(value, Real) or isinstance(value, Rational):
        return None
    copied = float(value)
    if copied != value and not isnan(copied):
        raise _Unstorable(ValueError, f"{type(value).__name__} has digits that a float would lose; use float()")
    return copied


_CONVERSIONS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, lambda value: _storable_int(int.__int__(value))),
    (float, float.__float__),
    (bytes, lambda value: bytes(memoryview(value))),
    (date, lambda value: date(value.year, value.month, value.day)),
)
_HINT = "use None, bool, int, float, str, bytes, date, datetime, dict or list"
#: By the name of the type, and by what it has, the first that fits.
_HINTS = {
    "set": "use a list", "frozenset": "use a list", "generator": "use a list", "complex": "use a list of two floats",
    "Decimal": "use a str or a float", "Fraction": "use a str or a float", "UUID": "use a str", "NAType": "use None",
    "bytearray": "use bytes", "memoryview": "use bytes", "datetime64": 'use .astype("datetime64[us]").item()',
    "timedelta64": 'use .astype("timedelta64[us]").item().total_seconds()',
}  # fmt: skip
_HINTS_BY_ATTRIBUTE = {
    "model_dump": "use .model_dump()", "__dataclass_fields__": "use dataclasses.asdict()",
    "__attrs_attrs__": "use attrs.asdict()", "__members__": "use .value", "tolist": "use .tolist()",
    "to_dict": "use .to_dict()", "__fspath__": "use a str", "total_seconds": "use .total_seconds()",
    "isoformat": "use .isoformat()",
}  # fmt: skip


def _storable_datetime(value: datetime) -> datetime:
    if value != value:  # noqa: PLR0124 - pandas.NaT
        raise _Unstorable(TypeError, f"{type(value).__name__} is not storable; use None")
    if getattr(value, "nanosecond", 0):  # pandas.Timestamp
        raise _Unstorable(ValueError, "a time with nanoseconds is not storable; use .floor('us')")
    offset = value.utcoffset()
    if offset is not None and offset.total_seconds() % 60:
        raise _Unstorable(ValueError, "a UTC offset with seconds is not storable; use astimezone(timezone.utc)")
    zone = None if offset is None else timezone(offset)
    return datetime(
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, zone
    )  # fmt: skip


def _content(value: Any) -> Any:
    """Return what a node holds, for comparisons; other values as they are."""
    return value._items if isinstance(value, _Holder) else value


class _Probe:
    """A key by which a dict is asked for its own one that is equal; `found` is that."""

    __slots__ = ("found", "key")

    def __init__(self, key: Any) -> None:
        self.key = key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        self.found = other
        return bool(other == self.key)


class StateDict(_Node, _Mapping[Any]):
    """A dict in the state: every change of it is in the file before the method returns.

    Equal to, and printed as, the dict with the same content; the keys are str, int, float, bool or None, and items, not
    attributes. Values are copied in. Removed from the state it lives on as a plain container. Single operations are
    atomic between threads.

    Raises, besides what a dict raises: TypeError or ValueError for what YAML cannot hold, StateClosed, StateReadOnly,
    and OSError where the disk is full; then nothing has changed.
    """

    __slots__ = ()

    if sys.version_info >= (3, 12):  # before, it makes each read of an item a third slower

        def __getattr__(self, name: str) -> Any:
            advice = f'; keys are items, use ["{name}"]' if name[:1] != "_" and name in self._items else ""
            reason = f"{type(self).__name__!r} object has no attribute {name!r}{advice}"
            raise AttributeError(reason, name=name, obj=self)

    def __setitem__(self, key: Any, value: Any) -> None:
        tree = self._tree
        if tree is not None and type(key) is str and key in self._heads and tree.assign(self, key, value):
            return
        with self._turn():
            is_ours = self._enter()
            if isinstance(value, _Node) and self._items.get(key, _GONE) is value:
                return
            if is_ours:
                if self._tree.missed and self._tree.overlooks(self, key, value):  # type: ignore[union-attr]
                    return
                key = self._checked_key(key)
                value = self._checked(value, key)
            self._fix_length()
            self._commit("set", key, value)

    def _put(self, _length: int, key: Any, value: Any) -> None:
        self._items[key] = value

    def _prime(self, operation: str, *arguments: Any) -> None:
        if operation == "set" and self._place is not None:
            (key, value), tree = arguments, self._tree
            is_put = self is not tree.root or key in tree.attributes  # type: ignore[union-attr] # see `_Root._put`
            if is_put and type(key) is str and type(value) in _SCALARS:
                tree.prime(self, key, f'["set",[{self._place[0]}],{_flow(key)},')  # type: ignore[union-attr]

    def __delitem__(self, key: Any) -> None:
        with self._turn():
            if self._enter() and self._tree.missed:  # type: ignore[union-attr]
                self._tree.overlooks(self, key)  # type: ignore[union-attr]
            held = self._found(key)
            if held is _GONE:
                raise KeyError(key)
            self._commit("delete", held)

    def pop(self, key: Any, *default: Any) -> Any:
        with self._turn():
            self._enter()
            held = self._found(key)
            if held is _GONE or len(default) > 1:
                return {}.pop(key, *default)
            value = self._items[held]
            self._commit("delete", held)
            return value

    def popitem(self) -> tuple[Any, Any]:
        with self._turn():
            self._enter()
            if not self._fix_length():
                raise KeyError("popitem(): dictionary is empty")
            key = next(reversed(self._items))
            value = self._items[key]
            self._commit("delete", key)
            return key, value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        with self._turn():
            self._enter()
            if key not in self._items:
                self[key] = default
            return self._items[key]

    def update(self, /, *others: Any, **named: Any) -> None:
        with self._turn():
            is_ours = self._enter()
            given: dict[Any, Any] = {}
            given.update(*map(_content, others), **named)
            if is_ours:
                given = {self._checked_key(key): self._checked(value, key) for key, value in given.items()}
            if given:
                self._fix_length()
                self._commit("update", given)

    def _held(self, key: Any) -> Any:
        """Return the key that the mapping has in the place of one that is equal; _GONE if there is none."""
        if type(key) is str:
            return key if key in self._items else _GONE
        probe = _Probe(key)
        return probe.found if probe in self._items else _GONE

    def _found(self, key: Any) -> Any:
        """Return what `_held` does, which may run foreign code, as it is behind a look at the length."""
        held = self._held(key)
        self._fix_length()
        return held if held in self._items else _GONE

    def _checked_key(self, key: Any) -> Any:
        """Return the key under which something is to be stored: as in a dict, the first of equal ones stays."""
        if type(key) is str and key in self._items:
            return key
        return _stored(self._held_or_storable, key, 0, lambda: [*self._path(), key])

    def _held_or_storable(self, key: Any, *_: Any) -> Any:
        held = self._held(key)
        return _storable_key(key) if held is _GONE else held

    def _take_set(self, key: Any, value: Any) -> tuple[Any, ...]:
        return self._checked_key(key), self._checked(value, key)

    def _take_delete(self, key: Any) -> tuple[Any, ...]:
        self._items[key]
        return (key,)

    def _take_update(self, items: dict[Any, Any]) -> tuple[Any, ...]:
        return ({self._checked_key(key): self._checked(value, key) for key, value in items.items()},)

    # The operations.

    def _set(self, key: Any, value: Any) -> None:
        old = self._items.get(key)
        if old is not value:
            self._drop(old)
        if isinstance(value, _Node):
            self._heads = _NO_HEADS
        self._items[key] = value

    def _update(self, items: dict[Any, Any]) -> None:
        for key, value in items.items():
            if (old := self._items.get(key)) is not value:
                self._drop(old)
        self._heads = _NO_HEADS
        self._items.update(items)

    def _delete(self, key: Any) -> None:
        self._drop(self._items[key])
        self._heads = _NO_HEADS
        del self._items[key]

    def _clear(self) -> None:
        self._let_go(self._items.values())
        self._heads = _NO_HEADS
        self._items.clear()

    def _order(self, keys: list[Any], _items: list[Any]) -> None:
        items = self._items
        deque(map(items.__setitem__, keys, map(items.pop, keys)), maxlen=0)

    # Transactions.

    def _image(self) -> _Image:
        return _Image(self, {}, extent=False)

    def _remember(self, operation: str, *arguments: Any) -> None:
        keys = arguments[:1] if operation == "set" else arguments[0] if operation == "update" else None
        for image in self._keep():
            if keys is None and not image.extent:
                whole = self._items.copy()
                _put_back(whole, image.kept)
                image.kept, image.extent = whole, True
            for key in keys or () if not image.extent else ():
                if key not in image.kept:
                    image.kept[key] = self._items.get(key, _GONE)

    def _restore(self, image: _Image) -> None:
        self._loosen(self._items.values() if image.extent else map(self._items.get, image.kept))
        if image.extent:
            self._items.clear()
            self._items.update(image.kept)
        else:
            _put_back(self._items, image.kept)
        self._attach(image.kept.values())


def _put_back(items: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Give keys their old values back; _GONE stands for none."""
    for key, old in kept.items():
        if old is _GONE:
            items.pop(key, None)
        else:
            items[key] = old


def _touched(keys: Sequence[Any], operation: str, arguments: Sequence[Any], present: Iterable[Any]) -> Iterable[Any]:
    """Return the keys of the top-level entries that an operation changes; present: those that there are.

    keys: what leads to its node, a mapping where that is the root.
    """
    if keys:
        return keys[:1]
    return arguments[:1] if operation in ("set", "delete") else arguments[0] if operation == "update" else present


class _Root(StateDict):
    """The root of a tree: its entries are shown as attributes of the facades, and their text is known one by one."""

    __slots__ = ()
    _tree: _Tree

    def __init__(self, items: dict[Any, Any], tree: _Tree) -> None:
        super().__init__(items, tree, None, None)
        tree.root = self
        self._place = ("", ())
        for key, item in items.items():
            if type(item) not in _SIMPLE:
                items[key] = _grow(tree, self, item, key)
        self._show_all()

    def _put(self, _length: int, key: Any, value: Any) -> None:
        self._items[key] = self._tree.attributes[key] = value

    def _do(self, operation: str, *arguments: Any) -> None:
        super()._do(operation, *arguments)
        if touched := _touched((), operation, arguments, ()):
            self._show(touched)
        else:
            self._show_all()

    def _restore(self, image: _Image) -> None:
        super()._restore(image)
        self._show_all()

    def _show(self, keys: Iterable[Any]) -> None:
        """Let the attributes have entries as they are now."""
        items, attributes, reserved = self._items, self._tree.attributes, self._tree.reserved
        for key in keys:
            if key not in items:
                attributes.pop(key, None)
            elif type(key) is str and key[:1] != "_" and key not in reserved:
                attributes[key] = items[key]

    def _show_all(self) -> None:
        self._show({**self._tree.attributes, **self._items})


def _index(index: Any) -> int:
    if not hasattr(type(index), "__index__"):
        raise TypeError(f"{type(index).__name__!r} object cannot be interpreted as an integer")
    return int(index.__index__())


def _plain_slice(part: slice) -> slice:
    """Return a slice of plain numbers: to ask others for theirs may run foreign code."""
    limits = (part.start, part.stop, part.step)
    if not all(limit is None or hasattr(type(limit), "__index__") for limit in limits):
        raise TypeError("slice indices must be integers or None or have an __index__ method")
    return slice(*(None if limit is None else _index(limit) for limit in limits))


class StateList(_Node, MutableSequence[Any]):
    """A list in the state: every change of it is in the file before the method returns.

    Equal to, and printed as, the list with the same content. Values are copied in; slices are plain lists of its items.
    Removed from the state it lives on as a plain container. Single operations are atomic between threads.

    Raises, besides what a list raises: TypeError or ValueError for what YAML cannot hold, StateClosed, StateReadOnly,
    and OSError where the disk is full; then nothing has changed.
    """

    __slots__ = ()
    _items: list[Any]

    def __lt__(self, other: Any) -> bool:
        return self._items < _content(other) if isinstance(other, (list, StateList)) else NotImplemented

    def __le__(self, other: Any) -> bool:
        return self._items <= _content(other) if isinstance(other, (list, StateList)) else NotImplemented

    def __gt__(self, other: Any) -> bool:
        return self._items > _content(other) if isinstance(other, (list, StateList)) else NotImplemented

    def __ge__(self, other: Any) -> bool:
        return self._items >= _content(other) if isinstance(other, (list, StateList)) else NotImplemented

    def __add__(self, other: Any) -> Any:
        return _copy(self) + _copy(other) if isinstance(other, (list, StateList)) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return other + _copy(self) if isinstance(other, list) else NotImplemented

    def __mul__(self, times: Any) -> Any:
        return _copy(self) * times

    __rmul__ = __mul__

    def count(self, value: Any) -> int:
        return self._items.count(value)

    def index(self, value: Any, *limits: Any) -> int:
        return self._items.index(value, *limits)

    def __setitem__(self, index: Any, value: Any) -> None:
        with self._turn():
            is_ours = self._enter()
            if is_ours and self._tree.missed and self._tree.overlooks(self, index, value):  # type: ignore[union-attr]
                return
            if isinstance(index, slice):
                self._set_slice(index, value)
                return
            position = self._position(index, "list assignment index out of range")
            if isinstance(value, _Node) and self._items[position] is value:
                return
            if is_ours:
                value = self._checked(value, position)
                position = self._position(index, "list assignment index out of range")  # that may run foreign code
            self._commit("set", position, value)

    def _set_slice(self, part: slice, values: Any) -> None:
        part = _plain_slice(part)
        start, _, step = part.indices(len(self._items))
        checked = self._all_checked(values, start, step)
        start, stop, step = part.indices(self._fix_length())
        if step == 1:
            self._change(start, max(start, stop), checked)
            return
        indexes = range(start, stop, step)
        if len(checked) != len(indexes):
            sizes = f"sequence of size {len(checked)} to extended slice of size {len(indexes)}"
            raise ValueError(f"attempt to assign {sizes}")
        if checked:
            self._scatter(indexes, checked)

    def _scatter(self, indexes: range, values: list[Any]) -> None:
        """Set items here and there: in one record, and in memory by one change of the part that holds them."""
        is_ours, first, end = self._enter(), min(indexes), max(indexes) + 1
        items = self._items[first:end]
        for index, value in zip(indexes, values, strict=True):
            items[index - first] = value if self._tree is None else _unshared(value)
        if not is_ours:
            self._do("splice", first, end, items)
            return
        path, keys = self._locate()
        records = [f'["set",[{path}],{i},{_flow(item)}]' for i, item in zip(indexes, values, strict=True)]
        record = f'["transaction",[{",".join(records)}]]'
        edit = self._for_text(keys, "splice", first, end, _plain(items))
        self._tree.commit(record, self, edit, *self._grown("splice", first, end, items))  # type: ignore[union-attr]

    def __delitem__(self, index: Any) -> None:
        with self._turn():
            if self._enter() and self._tree.missed:  # type: ignore[union-attr]
                self._tree.overlooks(self, index)  # type: ignore[union-attr]
            if not isinstance(index, slice):
                self._commit("delete", self._position(index, "list assignment index out of range"))
                return
            start, stop, step = _plain_slice(index).indices(self._fix_length())
            if step == 1:
                self._change(start, stop, [])
                return
            gone = set(range(start, stop, step))
            if gone:
                self._reorder([position for position in range(len(self._items)) if position not in gone])

    def insert(self, index: Any, value: Any) -> None:
        with self._turn():
            is_ours, part = self._enter(), slice(_index(index), None)
            if is_ours:
                value = self._checked(value, part.indices(len(self._items))[0])
            start, _, _ = part.indices(self._fix_length())  # the check may run foreign code
            self._commit("insert", start, value)

    def append(self, value: Any) -> None:
        tree = self._tree
        if tree is not None and self._heads and tree.assign(self, None, value):
            return
        self.insert(sys.maxsize, value)

    def _put(self, length: int, _key: Any, value: Any) -> None:
        if len(self._items) == length:
            self._items.append(value)

    def _prime(self, operation: str, *_arguments: Any) -> None:
        if operation == "insert" and self._place is not None:
            self._tree.prime(self, None, f'["insert",[{self._place[0]}],')  # type: ignore[union-attr]

    def extend(self, values: Iterable[Any]) -> None:
        with self._turn():
            self._enter()
            added = self._all_checked(values, len(self._items))
            end = self._fix_length()
            self._change(end, end, added)

    def __iadd__(self, values: Iterable[Any]) -> StateList:  # type: ignore[misc]
        self.extend(values)
        return self

    def __imul__(self, times: Any) -> StateList:
        with self._turn():
            count = _index(times)
            self.extend(_plain(self) * (count - 1))
            if count <= 0:
                self.clear()
        return self

    def pop(self, index: Any = -1) -> Any:
        with self._turn():
            self._enter()
            if not self._items:
                raise IndexError("pop from empty list")
            position = self._position(index, "pop index out of range")
            value = self._items[position]
            self._commit("delete", position)
            return value

    def remove(self, value: Any) -> None:
        with self._turn():
            self._enter()
            if value not in self._items:
                raise ValueError("list.remove(x): x not in list")
            self._fix_length()
            index = self._items.index(value)
            if self._tree is not None and self._tree.started != self._tree.moment():
                index = self._items.index(value)  # a signal handler, or what compares the value, changed the state
                self._fix_length()
            self._commit("delete", index)

    def reverse(self) -> None:
        with self._turn():
            self._enter()
            if len(self._items) > 1:
                self._reorder(list(range(self._fix_length() - 1, -1, -1)))

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place, as a list does; the items stay the same objects."""
        with self._turn():
            self._enter()
            before = list(self._items)
            ranks = before if key is None else [key(item) for item in before]
            indexes = sorted(range(len(before)), key=ranks.__getitem__, reverse=reverse)
            if self._fix_length() != len(before):
                raise ValueError("list modified during sort")
            if indexes != list(range(len(before))):
                self._reorder(indexes)

    def _position(self, index: Any, error: str) -> int:
        """Return a valid, not negative index."""
        if not hasattr(type(index), "__index__"):
            raise TypeError(f"list indices must be integers or slices, not {type(index).__name__}")
        position, length = int(index.__index__()), self._fix_length()
        position += length if position < 0 else 0
        if not 0 <= position < length:
            raise IndexError(error)
        return position

    def _all_checked(self, values: Iterable[Any], start: int, step: int = 1) -> list[Any]:
        items = [value for value in _content(values)]  # noqa: C416 - list() would believe any length hint
        if not self._enter():
            return items
        return [self._checked(value, start + offset * step) for offset, value in enumerate(items)]

    def _change(self, start: int, stop: int, values: list[Any]) -> None:
        if values or stop > start:
            self._commit("splice", start, stop, values)

    def _reorder(self, indexes: list[int]) -> None:
        self._commit("order", indexes, [self._items[index] for index in indexes])

    def _key_of(self, child: _Node) -> int:
        """Return the index of a child: search outwards from where it was last seen."""
        items, guess = self._items, child._key
        for distance in range(len(items) + guess + 1):
            for index in (guess - distance, guess + distance):
                if 0 <= index < len(items) and items[index] is child:
                    child._key = index
                    return int(index)
        raise AssertionError("a node is not in its parent")

    def _take_set(self, index: int, value: Any) -> tuple[Any, ...]:
        index = self._position(index, "list index out of range")
        return index, self._checked(value, index)

    def _take_delete(self, index: int) -> tuple[Any, ...]:
        return (self._position(index, "list index out of range"),)

    def _take_insert(self, index: int, value: Any) -> tuple[Any, ...]:
        index, _, _ = slice(_index(index), None).indices(len(self._items))
        return index, self._checked(value, index)

    def _take_splice(self, start: int, stop: int, values: list[Any]) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise TypeError("items must be a list")
        if not 0 <= start <= stop <= len(self._items):
            raise IndexError("list index out of range")
        return start, stop, [self._checked(value, start) for value in values]

    def _take_order(self, indexes: list[int]) -> tuple[Any, ...]:
        if len(set(indexes)) != len(indexes) or any(index < 0 for index in indexes):
            raise IndexError("an index stands twice or is negative")
        return indexes, [self._items[index] for index in indexes]

    # The operations.

    def _set(self, index: int, value: Any) -> None:
        if self._items[index] is not value:
            self._drop(self._items[index])
        self._items[index] = value

    def _insert(self, index: int, value: Any) -> None:
        self._items.insert(index, value)

    def _delete(self, index: int) -> None:
        self._drop(self._items[index])
        del self._items[index]

    def _splice(self, start: int, stop: int, values: list[Any]) -> None:
        self._let_go(self._items[start:stop], values)
        self._items[start:stop] = values

    def _order(self, _indexes: list[int], items: list[Any]) -> None:
        self._let_go(self._items, items)
        self._items[:] = items

    def _clear(self) -> None:
        self._let_go(self._items)
        self._items.clear()

    # Transactions.

    def _image(self) -> _Image:
        return _Image(self, [], len(self._items))

    def _remember(self, operation: str, *arguments: Any) -> None:
        start = arguments[0] if operation in ("set", "insert", "delete", "splice") else 0
        for image in self._keep():
            known = image.extent - len(image.kept)
            if start < known:
                image.kept += self._items[start:known][::-1]

    def _restore(self, image: _Image) -> None:
        since = image.extent - len(image.kept)
        self._loosen(self._items[since:])
        self._items[since:] = image.kept[::-1]
        self._attach(image.kept)


# ------------------------------------------------------- State -------------------------------------------------------
# What becomes of a change: a tree with its file, alone or shared; readers; merging; who is told of changes. Then the
# facade, `PersistedState`, with opening, closing and forks.

#: The open trees of this process, so that a second opening of a file shares the first.
_open_trees: list[_LiveTree] = []


class _Opening(namedtuple("_Opening", "thread status")):
    """By which thread a file is being opened, and which file that is, if there is one."""

    __slots__ = ()
    thread: int
    status: os.stat_result | None

    def is_of(self, status: os.stat_result | None) -> bool:
        return status is not None and self.status is not None and os.path.samestat(status, self.status)


#: The files that are being opened. Who wants the same file waits for that, and nobody else.
_opening: dict[_Journal, _Opening] = {}
#: The trees of readers, by their ids. (The callbacks of a WeakSet would swallow a Ctrl-C.)
_followers: dict[int, weakref.ref[_Follower]] = {}

#: How many of the latest snapshots are compared with a text in which no record tells which one it comes from.
_NEAR = 16
#: Seconds to wait for somebody who is saving the file, while what is there does not look whole.
_PATIENCE = 1.0
#: How often a vacuum that somebody's save came in the way of is tried again.
_TRIES = 10
#: Bytes of older snapshots that are kept to compare with what a person saves; the previous one is kept in any case.
_HISTORY = 1 << 20


class _Task(namedtuple("_Task", "scheduler task")):
    """A task, and the module of what scheduled it: asyncio's, trio's, or a greenlet.

    What nobody else keeps ends, and thereby its transaction.
    """

    __slots__ = ()
    scheduler: str
    task: weakref.ref[Any]


_NO_LATEST = (None, None, None)


class _Transaction:
    """Stands for an outermost transaction; `around` is that of another state inside of which it began."""

    __slots__ = ("around", "levels")
    around: _Transaction | None

    def __init__(self, levels: list[_Level], around: _Transaction | None) -> None:
        self.levels = levels
        while around is not None and not around.levels:
            around = around.around
        self.around = around


#: The transaction inside of which the code that runs was started: a thread gets that of the task behind it.
_started_in: ContextVar[_Transaction | None] = ContextVar("_started_in", default=None)
#: Seconds that such a thread waits for the transaction, which may be waiting for the thread.
_DEADLOCK = 5.0


class _LiveTree(_Tree):
    """A tree with its file: the one behind all `PersistedState` objects of this process for that file.

    fsync: False, True, or seconds.
    """

    __slots__ = (
        *("batch", "beside", "finish", "fsync", "is_in_loops", "journal"),
        *("latest", "limit", "owner", "task", "transaction", "unclear"),
    )

    def __init__(self, journal: _Journal, *, fsync: bool | float, mode: int | None, declaration: Any = None) -> None:
        super().__init__(journal.path)
        self.fsync, self.mode, self.reserved = fsync, mode, _METHODS
        #: The records of the open transactions, and the task that opened them, if one did.
        self.batch: list[str] = []
        self.task: _Task | None = None
        #: Where a value was set last in them, to which no record in `batch` belongs yet: how that begins, node and key.
        self.latest: tuple[Any, Any, Any] = _NO_LATEST
        #: What `halted` is during a change, and at the edge of a transaction, made once for all of them.
        self.finish, self.unclear = self._finish, (self._show_latest,)
        #: The thread that opened them; means nothing without `levels`, which are set later and ended earlier.
        self.owner = 0
        #: The outermost of them, or the last that there was.
        self.transaction: _Transaction | None = None
        #: Why the file may lack what is in memory, until a new snapshot has been written.
        self.trouble: Exception | None = None
        self.history = _History()
        #: A new snapshot that is about to be written, and what has to be noted of it.
        self.renewal: tuple[_Document, bytes, Any, _Saved | None, Any] | None = None
        #: How often what a person saved changed the state.
        self.merges = 0
        #: The keys of which records tell what the snapshot has, and the records that are to be written yet. No record
        #: does where old ones do not, or where one has to complete the snapshot's last entry.
        self.attested: set[Any] = set()
        self.facts: dict[Any, str] = {}
        self.has_facts = True
        #: What the classes of the open objects declare, and whether they check changes, one for each object; what
        #: follows from that: what a person saves is held to, and what checks changes before they are made.
        self.rules: list[tuple[Any, bool]] = []
        self.declarations: list[Any] = []
        self.checks: list[Any] = []
        #: An event loop uses the state, so that vacuums must not keep it waiting; one that another thread makes.
        self.is_in_loops, self.beside = False, None
        #: Why vacuums failed since the last that did not, each told once.
        self.told: set[int | type] = set()
        self.journal = journal
        self.syncer = None if isinstance(fsync, bool) else _Syncer(self, fsync)
        self._load(journal.data, declaration)

    def _load(self, data: bytes, declaration: Any) -> None:
        stream = _parsed(self.path, data)
        sound = data[: len(data) - stream.torn]
        self.document = stream.document
        _Root(stream.value, self)
        self.generation = 1
        reasons = _replay(self.root, stream, self.path)
        if declaration is not None:
            self._filled(declaration)  # before anything is written
        for reason in reasons:
            kept = self.journal.keep_aside(data, "edited") if stream.undecided else ""
            _warn(f"{self.path}: {reason}" + f"; the file as it was is kept in {kept}" * bool(kept))
        if stream.torn:
            reason = f"{self.path}: dropped {stream.torn} bytes at the end that never became a complete record"
            _warn(f"{reason} ({len(sound)} bytes are sound)")
        if not (sound.strip() or self.journal.is_new) and (kept := self.journal.kept_aside()):
            _warn(f"{self.path}: there is nothing in the file; look at {kept}, which was kept beside it")
        self.journal.accept(stream.needed or len(sound))
        self._go_on_behind(stream, sound)
        if stream.is_half_rewritten or stream.edited:
            self._renew(self._renewed(), self.journal.basis)

    def _go_on_behind(self, stream: _Stream, data: bytes) -> None:
        """Note what has to be known of the content of the file by who appends to it."""
        self.is_clean = not stream.records  # behind the snapshot
        self.first_record = _first_record(stream.text)  # tells which snapshot somebody had read who saved it as well
        self.limit = max(2 * len(self.document.text()), _VACUUM_FLOOR)  # of the file, in bytes; then a vacuum is due
        self.attested, self.facts = {*stream.facts}, {}
        self.has_facts = not self.document.unended and (bool(stream.facts) or not stream.records)
        self._separator = self._separator_behind(self.document, data)

    def _separator_behind(self, document: _Document, data: bytes) -> str:
        """Return what must stand between the content of the file and the first record that is appended."""
        snapshot = "{}\n" if document.is_blank and self.is_clean else ""
        unended = [f'--- ["set",[],{_flow(key)},{_flow(value)}]\n' for key, value in document.unended.items()]
        return "".join(["" if not data or data.endswith(b"\n") else "\n", snapshot, *unended])

    def commit(self, record: str, node: _Node, edit: tuple[Any, ...], *arguments: Any) -> None:
        keys = edit[0]
        for check in self.checks:
            check(keys, node, edit[1], arguments)
        latest = keys[0] if keys else edit[2] if edit[1] == "set" else _GONE
        if self.has_facts and latest not in self.attested:
            for key in _touched(keys, edit[1], edit[2:], self.root._items):
                if key not in self.attested:
                    self._attest(key)
        if self.levels:
            self._check_task()
            self._make(self.batch, record, node._perform, len(node._items), edit, *arguments)
            return
        entry = self._framed(record, [edit])
        self._make(self.journal, entry, node._perform, len(node._items), edit, *arguments)
        if self.fsync or self.journal.size > self.limit or self.journal.is_suspicious:
            self._after_append()

    def _attest(self, key: Any) -> None:
        """See to it that a record tells what the snapshot has under a key; if that goes wrong, the change goes on."""
        with suppress(Exception):
            fact = self.document.fact(key, self.root._items.get(key, _GONE))
            if key not in self.attested:  # else a signal handler came meanwhile with a change
                self.facts[key] = fact
        self.attested.add(key)

    def _framed(self, record: str, edits: list[tuple[Any, ...]]) -> bytes:
        """Return what is appended for a record, with what is to be told of the entries that its edits change."""
        if not self.facts:
            return f"{self._separator}--- {record}\n".encode()
        touched = [key for keys, name, *values in edits for key in _touched(keys, name, values, self.facts)]
        told = [self.facts[key] for key in dict.fromkeys(touched) if key in self.facts]
        return (self._separator + "".join([f"--- {each}\n" for each in [*told, record]])).encode()

    def still(self) -> Any:
        """Return the lock; raises StateError in a thread for which the transaction that holds it seems to wait."""
        if self.levels and self.owner != get_ident() and self._has_started_this():
            if not self.lock.acquire(timeout=_DEADLOCK):
                self._refuse_started("thread")
            self.lock.release()
        return self.lock

    turn = still

    def _refuse_started(self, kind: str) -> NoReturn:
        reason = f"the transaction that started this {kind} is open, and perhaps waits for it"
        raise StateError(self.path, f"{reason}; use the state in the task that opened it, or after it")

    def _has_started_this(self) -> bool:
        """Tell whether the code that runs was started inside of the latest transaction."""
        transaction = _started_in.get()
        while transaction is not None and transaction is not self.transaction:
            transaction = transaction.around
        return transaction is not None

    def moment(self) -> tuple[int, int, int]:
        return self.generation, self.journal.size, len(self.batch) + (self.latest is not _NO_LATEST)

    def assign(self, node: _Node, key: str | None, value: Any) -> bool:  # noqa: C901, PLR0915 - a call costs 4 %
        """Do what `commit` does for the most frequent changes, in 2.1 us instead of 6.1.

        The lock is taken within `try` because an interrupt may come as soon as that returns; `with` costs 0.15 us more.
        """
        if self.levels:  # of another thread, perhaps
            return self.owner == get_ident() and self._assign_later(node, key, value)
        heads, items, pending = node._heads, node._items, None
        length, lock, journal = len(items), self.lock, self.journal
        try:
            text = value if type(value) is int else _TEXTS[type(value)](value)
            data = f"--- {heads[key]}{text if key is not None else f'{length},{text}'}]\n".encode()
        except (KeyError, ValueError, _Unstorable):
            return False
        try:
            lock.acquire()
            if self.halted is not None:
                return False
            size = journal.size
            put = node._put
            pending = self.halted = (self.finish, journal, size, data, put, length, key, value)
            if journal.size != size or heads is not node._heads or length != len(items):
                self.halted = None  # another thread, a signal handler or a finalizer was there first: look again
                return False
            journal.append(data)
            put(length, key, value)
            self.halted = None
            if self.fsync or journal.size > self.limit or journal.is_suspicious:
                self._after_append()
        except BaseException:
            if pending is not None and self.halted is pending:
                _surely(*pending)
            raise
        finally:
            try:  # noqa: SIM105 - entering `suppress` an interrupt could come before `release`
                lock.release()
            except RuntimeError:  # the interrupt came while this thread waited for the lock
                pass
        return True

    def _assign_later(self, node: _Node, key: str | None, value: Any) -> bool:
        """Assign in a transaction of this thread, which writes the record at its end.

        A value that is set again and again has one record, which is made when another one follows.
        """
        if self.halted is not None or (self.task is not None and not self._is_in_task()):
            return False
        heads, is_done = node._heads, False
        try:
            text = f"{value}" if type(value) is int else _TEXTS[type(value)](value)
            head = heads[key]
        except (KeyError, ValueError, _Unstorable):
            return False
        if key is None:
            return self._append_later(node, heads, head, text, value)
        try:
            self.halted = self.unclear
            if heads is node._heads:  # no signal handler or finalizer was there first
                if head is not self.latest[0]:
                    self._write_latest()
                    node._remember("set", key)
                    self.latest = (head, node, key)
                node._put(0, key, value)
                is_done = True
            self.halted = None
        except BaseException:
            if self.halted is self.unclear:
                _surely(self._show_latest)
            raise
        return is_done

    def _append_later(self, node: _Node, heads: dict[str | None, str], head: str, text: Any, value: Any) -> bool:
        self.started = self.moment()
        length = len(node._items)
        if heads is not node._heads:  # a signal handler or finalizer was there first
            return False
        if id(node) not in self.levels[-1].images:
            node._keep()
        self._make(self.batch, f"{head}{length},{text}]", node._put, length, None, value)
        return True

    def _show_latest(self) -> None:
        """Finish a change that was interrupted while it set the latest value of a transaction, if any was."""
        _, node, key = self.latest
        if node is not None:
            node._put(0, key, node._items[key])
        self.halted = None

    def _write_latest(self) -> None:
        """Make the record of the latest value that was set in a transaction; nobody may set another one meanwhile."""
        head, node, key = self.latest
        if node is not None:
            self.batch.append(f"{head}{_flow(node._items[key])}]")
            self.latest = _NO_LATEST

    def _make(self, sink: _Journal | list[str], entry: Any, apply: Callable[..., None], *arguments: Any) -> None:
        """Make a change: note it where changes go, the file or an open transaction, and then apply it in memory.

        Both or, after an error, neither; an interrupt in between does not stop the second. What applies it may be
        called twice.
        """
        pending = (self.finish, sink, self.journal.size, entry, apply, *arguments)
        try:
            self.halted = pending
            if self.started != self.moment():
                self._refuse_change()
            if self.levels:
                self._write_latest()
            sink.append(entry)
            if sink is not self.batch and (self.is_clean or self._separator or self.facts):
                self._note_appended(entry)
            apply(*arguments)
            self.halted = None
        except BaseException:
            if self.halted is pending:
                _surely(*pending)
            raise

    def _finish(
        self, sink: _Journal | list[str], size: int, entry: Any, apply: Callable[..., None], *arguments: Any
    ) -> None:
        """Finish a change that was interrupted, if it was noted; may be called twice."""
        is_noted = any(last is entry for last in self.batch[-1:])
        if is_noted if sink is self.batch else self.journal.landed(size, entry):
            if sink is not self.batch and (self.is_clean or self._separator or self.facts):
                self._note_appended(entry)
            self.document.is_doubtful = True  # whether the change is among the edits is not known
            apply(*arguments)
        self.halted = None

    def _refuse_change(self) -> NoReturn:
        """Refuse a change whose place in the state may have moved since it was determined."""
        self._halt(self.trouble)  # in which that other change may have ended
        raise RuntimeError(f"{self.path}: a signal handler changed the state in the middle of this change; repeat it")

    def _note_appended(self, data: bytes) -> None:
        """Note that the file ends in a record; happens before memory changes, because an interrupt may come between."""
        self.first_record = _first_record(data.decode()) if self.is_clean else self.first_record
        self._separator, self.is_clean = "", False
        if self.facts:
            written = set(data.decode().split("\n"))
            self.attested.difference_update(key for key, fact in self.facts.items() if f"--- {fact}" not in written)
            self.facts.clear()  # what was not written, because that change was undone, is told when it comes again

    def resume(self) -> None:
        while self.halted is not None:
            function, *arguments = self.halted
            if function not in (self.refuse, self._undo_abandoned) and self._is_changing():
                reason = "a signal handler or finalizer came in the middle of a change; it may read"
                raise RuntimeError(f"{self.path}: {reason}")
            function(*arguments)

    def _is_changing(self) -> bool:
        """Tell whether this thread is in the middle of a change, so that its caller must have interrupted that."""
        changing = {function.__code__ for function in self._changing()}
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            if frame.f_code in changing and frame.f_locals["self"] is self:
                return True
        return False

    def _changing(self) -> tuple[Any, ...]:
        return (self.assign, self._assign_later, self._make, self.begin, self.end, self.abandon, self._renew)

    def _halt(self, trouble: Exception | None) -> None:
        """Note why the file may lack what is in memory: as long as that is so, a change has to write it anew first."""
        self.trouble = trouble
        self.halted = None if trouble is None else (self._rescue,)

    def _rescue(self) -> None:
        """Write all that memory holds to a new file; raises OSError or StateLocked while that cannot be."""
        if self.levels:
            reason = f"the disk failed ({self.trouble}); leave the transaction, then it is tried again"
            raise StateError(self.path, reason)
        self.document.is_doubtful = True
        try:
            self.halted = None
            self._vacuum()
        finally:
            self._halt(self.trouble)

    def _tell(self, warning: Warning) -> NoReturn:
        """Raise a warning of the last change, where warnings are errors."""
        self.halted = None
        raise warning

    def _after_append(self) -> None:
        """See to what is due after a change. The change is made: what fails now is raised by the next one instead.

        Only where `_fsync=True` cannot be kept, this one is not acknowledged.
        """
        if self.syncer is not None:
            self.syncer.schedule()
        elif self.fsync:
            self.sync()
        if self.journal.is_suspicious:
            self.surely_later(self.look)
        if self.journal.size > self.limit and self.halted is None:
            self.surely_later(self._vacuum_in_time)

    def surely_later(self, function: Callable[[], object]) -> None:
        """Do what is due; what fails is raised by the next change."""
        try:
            function()
        except Warning as warning:  # where warnings are errors
            self.halted = (self._tell, warning) if self.trouble is None else (self._rescue,)
        except (OSError, StateError) as error:
            self._halt(error)

    def sync(self) -> None:
        """Wait until the changes are on the disk; if that fails, on which no second try can be built, by a new file."""
        try:
            self.journal.sync()
        except OSError as error:
            self._halt(error)
            self._rescue()

    def sync_outside(self) -> None:
        """Do what `sync` does, for a thread that does not hold the lock: it is left to others meanwhile."""
        with ExitStack() as stack:
            with self.lock:
                if self.journal.descriptor < 0:  # the state was closed, which has seen to it
                    return
                try:
                    descriptor = stack.enter_context(_lent_descriptor(_system.dup, self.journal.descriptor))
                except OSError:
                    self.sync()
                    return
            try:
                self.journal.sync(descriptor)
            except OSError as error:
                with _helping(), self.turn():
                    self._halt(error)
                    self._rescue()

    def begin(self) -> _Level:
        """Enter a transaction; inside another one it joins that."""
        if self.levels:
            self._check_task()
        self._hold()  # a signal handler's change would be neither before this nor inside of it
        if not self.levels:
            self.batch, self.task, self.owner = [], _current_task(), get_ident()
            self.transaction = _Transaction(self.levels, _started_in.get())
            _started_in.set(self.transaction)
        self._write_latest()
        level = _Level(len(self.batch), len(self.edits))
        self.levels.append(level)
        self.halted = None
        return level

    def _hold(self) -> None:
        """Let nobody change anything in the middle of a beginning or an end."""
        if self.halted is not None:
            raise RuntimeError(f"{self.path}: a signal handler was interrupted at the edge of a transaction; repeat it")
        self.halted = self.unclear

    def _is_in_task(self) -> bool:
        """Tell whether the task runs that opened the transaction."""
        return self.task is None or _ask(self.task.scheduler) is (self.task.task() or self.task)

    def _check_task(self) -> None:
        """Refuse a task to take part in the transaction of another one, which may undo it."""
        if not self._is_in_task():
            reason = "a transaction of another task is open; wait for it: `async with STATE.transaction()`"
            raise StateError(self.path, reason)

    def end(self, level: _Level) -> None:
        """Leave a transaction; the outermost end writes one record."""
        if self.owner != get_ident():
            raise StateError(self.path, "a transaction ends in another thread than it began in; its changes are undone")
        if not self.levels or self.levels[-1] is not level:
            raise StateError(self.path, "a transaction ends before one that began inside of it; its changes are undone")
        self._hold()  # see `begin`
        self._write_latest()
        if len(self.levels) > 1 or not self.batch:
            self.levels.pop()
            self.halted = None
            return
        self.started = self.moment()
        record = self.batch[0] if len(self.batch) == 1 else f'["transaction",[{",".join(self.batch)}]]'
        self._make(self.journal, self._framed(record, self.edits[self.levels[0].edits :]), self.levels.clear)
        self._after_append()

    def abandon(self, depth: int) -> None:
        """Undo and leave the transactions, if any, inside of `depth` others; an interrupt has to wait for the end."""
        interrupt: BaseException | None = None
        if len(self.levels) > depth and self.owner != get_ident():
            self.halted = (self._undo_abandoned, depth, self.halted)  # who gets the lock in between undoes it first
            self._take_lock_over()
        while self.halted is not None and self.halted[0] == self._undo_abandoned:
            self.halted = self.halted[2]
        while len(self.levels) > depth or self._is_undoing():
            try:
                if self._is_undoing():
                    self._undo(*self.halted[1:])  # type: ignore[index]
                    continue
                self._settle_end()
                if len(self.levels) > depth:
                    self._undo(len(self.levels) - 1, self.halted)
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _is_undoing(self) -> bool:
        return self.halted is not None and self.halted[0] == self._undo

    def _undo(self, depth: int, before: tuple[Any, ...] | None) -> None:
        """Undo and leave the innermost of more transactions than `depth`, with no change in the middle of that."""
        self.halted = (self._undo, depth, before)
        if len(self.levels) > depth:
            self.latest = _NO_LATEST
            self.restore()
            del self.batch[self.levels[-1].records :]
            self.levels.pop()
        self.halted = before

    def _undo_abandoned(self, depth: int, before: tuple[Any, ...] | None) -> None:
        """Undo a transaction that could not be undone when it ended, for want of stack."""
        try:
            self.owner, self.halted = get_ident(), before
            self.abandon(depth)
        except BaseException:
            if self.levels[depth:]:
                self.halted = (self._undo_abandoned, depth, self.halted)
            raise

    def _take_lock_over(self) -> None:
        """Let this thread hold the lock, and release it soon, in the place of the one that entered the transaction."""
        try:
            self.lock._release_save()  # as threading.Condition does
        except RuntimeError:  # from Python 3.14 on only the holder may
            if self.watches:
                self.lock.lock = RLock()  # in the same one, which is to be left by the one that entered it
            else:
                self.lock = RLock()
        self.owner = get_ident()
        self.lock.acquire()

    def _settle_end(self) -> None:
        """Find out whether the record of the transaction is in the file; where that fails, write the file anew."""
        if self.halted is not None and self.halted[0] == self._finish:
            try:
                self.halted[0](*self.halted[1:])
            except OSError as error:
                self._halt(error)

    def vacuum(self) -> None:
        """Renew the snapshot, if anything changed since the last; merge what others did to the file."""
        self.resume()
        if self.levels:
            raise StateError(self.path, "a transaction is open; vacuum after it")
        if not self.look() and not self.is_clean:
            self._vacuum()

    def _vacuum(self) -> None:
        """Renew the snapshot, unless somebody wrote the file, which asks for more."""
        for _ in range(_TRIES):
            with suppress(_Overtaken):
                if not self.look():
                    generation, basis = self.generation, self.journal.basis
                    document = self._renewed()
                    if self.generation != generation:  # a vacuum of a signal handler took the edits
                        raise _Overtaken
                    self._renew(document, basis)
                return
        raise OSError(errno.EBUSY, "somebody keeps writing the file", self.path)

    def _renewed(self) -> _Document:
        self.document.edits = self.edits
        return self.document.renewed(self.root._items)

    def _renew(
        self,
        document: _Document,
        basis: _Glance | None,
        value: Any = _GONE,
        saved: _Saved | None = None,
        beside: Any = None,
    ) -> None:
        """Replace a file that looks like `basis` by a snapshot.

        value: what memory takes over. saved: what a person saved, from which they may go on. beside: what made the new
        file meanwhile, in which there are later changes behind the snapshot.
        """
        self._hand_down(saved, by_person=value is not _GONE)
        data = document.text().encode() if beside is None else beside.data
        lost = {key: reason for key, reason in document.lost.items() if reason is not self.document.lost.get(key)}
        self.renewal = (document, data, value, saved, beside)
        try:
            self.halted = (self._rescue,)
            self.journal.replace(data, basis, *[] if beside is None else [beside.made])
            self._adopt(document, data, value, saved, beside)
        except OSError as error:
            if self.journal.is_half_rewritten or self.journal.unfinished is not None or not self.journal.is_renamed:
                self.trouble = error
            raise
        finally:
            _surely(self._finish_renewal)
            is_open = self.journal.is_half_rewritten or not (self.journal.is_renamed or beside is not None)
            if is_open and self.trouble is None:  # by an interrupt
                self.trouble = OSError(errno.EINTR, os.strerror(errno.EINTR), self.path)
            self._halt(self.trouble)
        for key, reason in lost.items():
            what = "the file" if key is _GONE else f"the entry {_inline(key)}"
            _warn_afterwards(f"{self.path}: comments and formatting of {what} are lost, no values ({reason!r})")

    def _hand_down(self, saved: _Saved | None, *, by_person: bool) -> None:
        """Let those who share the file have the text that is about to be replaced, and what a person saved."""

    def _finish_renewal(self) -> None:
        """Adopt the new snapshot if the file holds it; where that is open as yet, the next look does."""
        with suppress(OSError):
            self.journal.recover()
        if self.renewal is not None and self.journal.unfinished is None:
            document, data, *_ = self.renewal
            if self.document is not document and self.journal.holds(data):
                self._adopt(*self.renewal)
            self.renewal = None

    def _adopt(self, document: _Document, data: bytes, value: Any, saved: _Saved | None, beside: Any) -> None:
        """Note what the file holds now; may be called twice, and has been called when `document` is the new one."""
        self.is_clean = True
        self.path = self.journal.path
        self.has_facts = not document.unended
        self._separator = self._separator_behind(document, data)
        if value is not _GONE:
            self._take(value)
        changed = [key for key, piece in self.document.pieces.items() if document.pieces.get(key) is not piece]
        self.history.add(self.document, self.first_record, changed, by_person=value is not _GONE)
        if saved is not None:
            self.history.add(saved.original, saved.first_record, saved.original.pieces)
        self.edits, self.document.edits = [], []  # two: the old document lives on in the history
        self.forget_heads()
        self.generation += 1
        self.first_record = ""
        self.attested, self.facts = set(), {}
        self.limit = max(2 * len(data), _VACUUM_FLOOR)
        self.trouble = None
        self.told.clear()
        if beside is not None:
            beside.carry_over()
        self.document = document

    def _take(self, value: dict[Any, Any]) -> None:
        """Let memory hold what the file does; may be called twice."""
        try:
            _become(self.root, value)
        except Exception:  # noqa: BLE001 - whatever it is, memory must not lack what a person saved
            self.root._do("clear")
            self.root._do("update", *self.root._grown("update", _storable(value, 0, [])))

    def look(self) -> bool:
        """Merge what others did to the file, if anything; return whether there was. Raises OSError, StateLocked."""
        is_found = False
        self.journal.recover()
        self._finish_renewal()
        for _ in range(_TRIES):
            if not self.journal.is_foreign():
                return is_found
            is_found = True
            try:
                with suppress(_Overtaken):
                    self._take_over(self._await_edit())
            except OSError as error:  # StateLocked, too
                self._halt(error)
                raise
        raise OSError(errno.EBUSY, "somebody keeps writing the file", self.path)

    def _await_edit(self) -> _HandEdit:
        """Return what somebody else saved, once it is whole, as far as that can be told."""
        deadline = _system.now() + _PATIENCE
        while True:
            data, basis, is_quiet = self.journal.read_foreign(deadline)
            edit = _HandEdit(data, basis, is_quiet=is_quiet)
            edit.compare([self.document, *self.history.previous()])
            if not edit.is_doubtful or _system.now() + _QUIET >= deadline:
                return edit

    def _take_over(self, edit: _HandEdit) -> None:
        """Merge an edit, or keep it aside where that cannot be; either way the file is a fresh snapshot then."""
        if edit.saved is None:
            self._refuse(edit)
            return
        doubtful, mine = self.journal.latest_lines(), _plain(self.root)
        try:
            base = self.history.base(edit.saved, self.document, self.first_record, doubtful)
            value = _merged(base, mine, edit.saved.value)
            for declaration in self.declarations:
                value = declaration.filled(value, mine)
                declaration.check(value, self.path, edit.saved.text, mine)
            document, value = edit.saved.with_value(value)
            is_new = self.history.is_new(edit.saved, self.document)
        except StateCorrupt as error:
            edit.trouble = _told(error.line, error.column, error.reason, error.text)
            edit.give_up("what was saved there is not what is declared")
            self._refuse(edit)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing of the script's may be lost by it
            edit.give_up(f"what was saved there cannot be merged ({error!r})")
            self._refuse(edit)
            return
        self._renew(document, edit.basis, value, edit.saved if is_new else None)
        self.merges += not _same(mine, value)

    def _refuse(self, edit: _HandEdit) -> None:
        """Go on without an edit, and tell where that is kept."""
        kept = f"; it is kept in {self.journal.keep_aside(edit.data, 'edited')}" if edit.data and edit.text else ""
        try:
            self._renew(self._renewed(), edit.basis)
        finally:  # here, because a warning may be an error
            what = f"{self.path}: {edit.problem}{kept}. The file holds the state of the running script again"
            _warn(what + edit.advice())

    def refresh(self) -> bool:
        """Merge what others did to the file; return whether that changed the state."""
        self.resume()
        before = self.merges
        if not self.levels:
            self.look()
        elif self.watcher is not None:
            self.watcher.told = None  # it tells again when the transaction is over
        return self.merges > before

    def declare(self, rule: tuple[Any, bool]) -> None:
        """Hold the state, and what a person saves, to what the class of an object declares, if it does.

        rule: that, and whether what the script changes is held to it, too.

        Raises StateCorrupt where the file has something else; then the file is left as it is.
        """
        if rule[0] is None:
            return
        with self.turn():
            filled = self._filled(rule[0])
            self._rule([*self.rules, rule])
            _fill(self.root, {key: item for key, item in filled.items() if key in self.root._items})

    def _filled(self, declaration: Any) -> Any:
        """Return the state with its defaults, if it is as declared; raises StateCorrupt."""
        filled = declaration.filled(_plain(self.root))
        declaration.check(filled, self.path, self.document.text())
        return filled

    def retract(self, rule: tuple[Any, bool]) -> None:
        """No longer hold the state to what the class of an object declares that is closed."""
        self._rule([known for known in self.rules if known is not rule])

    def _rule(self, rules: list[tuple[Any, bool]]) -> None:
        self.rules = rules
        self.declarations = [*dict.fromkeys(declaration for declaration, _ in rules)]
        self.checks = [*dict.fromkeys(declaration.check_change for declaration, is_checked in rules if is_checked)]
        self.forget_heads()
        vars(self).pop("assign", None)
        if self.checks:
            self.assign = self._assign_checked  # type: ignore[method-assign] # others shall pay nothing for a look at it

    def _assign_checked(self, node: _Node, key: str | None, value: Any) -> bool:
        """Do what `assign` does, in its place, with what fits the class that declares what may be assigned."""
        fitting = self.fitting.get(node._heads.get(key, ""))
        is_fit = fitting is not None and (fitting[0] is type(value) or fitting[1](value))
        return is_fit and type(self).assign(self, node, key, value)

    def prime(self, node: _Node, key: str | None, head: str) -> None:
        if self.watches or len(self.checks) > 1:
            return
        if node._heads is _NO_HEADS:
            if len(self.primed) >= _MOST_PRIMED:
                self.forget_heads()
            self.primed.append(node)
            node._heads = {}
        for check in self.checks:
            self.fitting[head] = check.__self__.fitting((*node._locate()[1], key))
        node._heads[key] = head

    def set_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Set the keys that are absent; a new file begins with a snapshot of them."""
        with self.turn():
            missing = {key: value for key, value in defaults.items() if key not in self.root._items}
            is_idle = self.halted is None and not self.levels
            if (missing or self.journal.is_new) and not self.root._items and self.is_clean and is_idle:
                try:
                    self.root._do_once(0, ((), "update", missing), *self.root._grown("update", missing))
                    self._vacuum()
                except BaseException:
                    _surely(self._forget_defaults)
                    raise
                if self.journal.is_new:
                    self.history = _History()  # nobody has read the file before
            elif missing:
                self.root.update(missing)

    def _forget_defaults(self) -> None:
        """Be empty again, as the file is, unless that holds the defaults, or whether it does is open."""
        if self.edits and self.renewal is None:
            self.root._do("clear")
            self.edits.clear()

    def _vacuum_in_time(self) -> None:
        """Vacuum; where an event loop uses the state, let a thread beside it do so."""
        if self.beside is None:
            self.is_in_loops = self.is_in_loops or _is_in_loop()
            with suppress(ModuleNotFoundError, RuntimeError):  # no thread can be started any more
                self.beside = _tool("beside").begin(self) if self.is_in_loops else None
            if self.beside is None:
                self.vacuum_or_warn()

    def vacuum_or_warn(self) -> None:
        try:
            self._vacuum()
        except Exception as error:
            is_expected = isinstance(error, (OSError, StateError, *_ANOTHER_TIME))
            if self.trouble is not None or isinstance(error, Warning) or not (is_expected or self._fails_again()):
                raise
            self.limit = 2 * self.journal.size
            reason = getattr(error, "errno", None) or type(error)
            if reason not in self.told:
                self.told.add(reason)
                _warn(f"{self.path}: no vacuum ({type(error).__name__}: {error}); the changes are in the journal")

    def _fails_again(self) -> bool:
        """Tell whether a vacuum fails by itself; if not, a signal handler or another thread had ended it."""
        try:
            self._vacuum()
        except Exception:  # noqa: BLE001 - told by the caller
            return True
        return False

    def join(self, *, fsync: bool | float, mode: int | None) -> None:
        """Take over the options of one more object: the stronger `_fsync`, also for what was written before.

        Raises StateError if it wants other permissions, and OSError if the disk does not take what was written.
        """
        with self.turn():
            if mode not in (None, self.mode):
                present = stat.S_IMODE(_system.fstat(self.journal.descriptor).st_mode)
                if mode != present:
                    wanted = f"open in this process already, with permissions 0o{present:o} and not 0o{mode:o}"
                    raise StateError(self.path, f"{wanted}; give the same _mode everywhere, or none, or use chmod")
            if _lag(fsync) < _lag(self.fsync) and self.journal.descriptor >= 0:
                before, self.fsync = self.syncer, fsync
                self.syncer = None if isinstance(fsync, bool) else _Syncer(self, fsync)
                if before is not None:
                    before.is_stopped.set()
                self.sync()

    def release(self) -> None:
        """Vacuum and close the file, when the last handle is gone; raises what keeps the changes from being safe."""
        if self not in _open_trees:
            return
        reason = StateClosed(self.path, "the state was closed; open it again")
        try:
            self._save()
        except Exception:
            self.shut(reason)
            raise
        self.shut(reason)  # not if it was interrupted: try again

    def _save(self) -> None:
        try:
            is_shut = self.halted is not None and self.halted[0] == self.refuse
            if not is_shut and not self.levels:
                self.resume()
                if not self._look_or_keep() and not self.is_clean:
                    self.vacuum_or_warn()
        finally:
            if self.syncer is not None:
                self.syncer.stop()

    def _look_or_keep(self) -> bool:
        """Merge what others did; where a process has opened what they put in the place of the file, keep ours aside."""
        try:
            return self.look()
        except StateLocked as error:
            kept = self.journal.keep_aside(self._renewed().text().encode(), "kept")
            reason = f"was replaced, and what is there is in use by process {error.pid}; this state is kept in {kept}"
            raise StateError(self.path, reason) from None

    def shut(self, reason: StateError) -> None:
        """Close the file, without another look at it; every later use raises the reason."""
        self.halted = (self.refuse, reason)
        if self.beside is not None:
            self.beside.stop()
        self.journal.close()
        self.syncer = None
        for facade in list(self.facades.values()):
            facade._shut(reason)
        if self in _open_trees:
            _open_trees.remove(self)

    def mend_in_child(self) -> None:
        """After a fork the file is the parent's: only close the descriptors, which leaves the parent's lock."""
        reason = (
            f"opened by process {os.getppid()}; its child {os.getpid()} must open the file itself, after the parent"
        )
        self.renew_lock()
        self.journal.leave()
        self.shut(StateError(self.path, reason))


class _HandEdit:
    """What somebody else left in the place of the state file.

    data: its bytes, None if there is no file any more. basis: how it looked. is_quiet: nobody was writing any more.
    """

    def __init__(self, data: bytes | None, basis: _Glance | None, *, is_quiet: bool) -> None:
        self.data, self.basis = data, basis
        #: What can be merged, None while `problem` tells why it cannot; and whether waiting may change that.
        self.saved: _Saved | None = None
        self.problem = "" if is_quiet else "somebody keeps writing the file"
        #: What a person has to mend in it.
        self.trouble: _BadText | str = ""
        self.is_doubtful = not is_quiet
        self.text = (data or b"").strip(b"\0\r\n\t ").decode(errors="replace")
        try:
            self.saved = _Saved(data or b"")
            self.text = self.saved.text.strip()
        except _BadText as problem:
            self.trouble = problem
            self.give_up("what was saved there cannot be understood")
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing of the script's may be lost by it
            self.give_up(f"what was saved there cannot be understood ({error!r})")
        if self.problem or not self.text:
            self.give_up(self.problem or ("the file was removed" if data is None else "the file was emptied"))

    def give_up(self, problem: str) -> None:
        self.saved, self.problem, self.is_doubtful = None, problem, True

    def advice(self) -> str:
        """Return what a person has to mend in it, if that can be told."""
        text, place = (self.data or b"").decode(errors="replace"), self.trouble
        if isinstance(place, _BadText):
            place = str(_problem(text, _explained(text, place)))
        return f"; mend your text and save it once more:\n{place}" if place else ""

    def compare(self, known: list[_Document]) -> None:
        """Doubt a text that looks as if it broke off, compared with the latest snapshots.

        A program that truncates the file to write it anew, but dies meanwhile, leaves such a text for ever: what is
        missing there must not count as deleted.
        """
        if self.saved is None:
            return
        text, wholes = self.saved.text, [document.text() for document in known]
        is_whole = self.saved.first_record or any(whole.rstrip() == text.rstrip() for whole in wholes)
        is_part = not is_whole and any(whole.startswith(text) for whole in wholes)
        is_open = not text.endswith("\n")
        missing = [key for key in known[0].pieces if key not in self.saved.value]
        is_cut = is_open and (is_part or (bool(missing) and missing[-1] == list(known[0].pieces)[-1]))
        self.is_doubtful = is_part or is_cut
        if is_cut or (missing and self.saved.has_leftover):
            self.give_up("what was saved there breaks off")


def _lag(fsync: float) -> float:
    """Return how many seconds of changes a loss of power may cost, by an `_fsync`."""
    return (0.0 if fsync else inf) if isinstance(fsync, bool) else fsync


class _Syncer:
    """Lets the file reach the disk at most so many seconds after a change, by a thread."""

    def __init__(self, tree: _LiveTree, seconds: float) -> None:
        self.tree, self.seconds = tree, min(seconds, TIMEOUT_MAX)
        #: Something was written since the last sync.
        self.is_needed = False
        self.is_waiting = False
        #: How many threads are waiting for the disk.
        self.syncing = 0
        from threading import Event

        self.is_stopped = Event()

    def schedule(self) -> None:
        """Note that there is something to sync."""
        self.is_needed = True
        if not self.is_waiting:
            try:
                _system.later(self.seconds, self.is_stopped, self._run)
                self.is_waiting = True
            except RuntimeError:  # no thread can be started any more: rather now than never
                self._run()

    def _run(self) -> None:
        with self.tree.lock:
            self.is_waiting = False
            if not self.is_needed:
                return
            self.is_needed, self.syncing = False, self.syncing + 1
        with suppress(Exception):  # the next change, or `close`, tries again and raises
            self.tree.sync_outside()
        with self.tree.lock:
            self.syncing -= 1

    def stop(self) -> None:
        """Sync now what is not yet synced."""
        self.is_stopped.set()
        if (self.is_needed or self.syncing) and self.tree.journal.descriptor >= 0:
            self.is_needed = False
            self.tree.sync()


class _Past(namedtuple("_Past", "document first_record size by_person")):
    """A snapshot that was replaced: its first record, how many bytes it keeps, and whether a person had it replaced."""

    __slots__ = ()
    document: _Document
    first_record: str
    size: int
    by_person: bool


class _History:
    """The snapshots of the past, with the first record behind each: an editor may have read any of them."""

    def __init__(self) -> None:
        self.past: deque[_Past] = deque()
        self.size = 0

    def add(self, document: _Document, first_record: str, changed: Iterable[Any], *, by_person: bool = False) -> None:
        """Note a snapshot that is about to be replaced because some of its entries changed."""
        text = sum(len(document.pieces.get(key, "")) for key in changed) + len(document.single)
        self.past.appendleft(_Past(document, first_record, text + 100 * len(document.pieces) + 500, by_person))
        self.size += self.past[0].size
        while self.size > _HISTORY and len(self.past) > 1:
            self.size -= self.past.pop().size

    def previous(self) -> list[_Document]:
        """Return the snapshot before the present one, if there was any."""
        return [past.document for past in self.past][:1]

    def base(self, saved: _Saved, present: _Document, first_record: str, doubtful: set[str]) -> dict[Any, Any]:
        """Return the value of the snapshot that an editor had read.

        The record that followed it tells, unless it is a `doubtful` one, which may have been appended to what they
        saved; without one, the snapshot from which the least differs. Whoever saved the very text of the previous
        snapshot had read that, if the script changed it since; the text of an older one, or of one that a person has
        changed since, is what somebody wanted to go back to.
        """
        known = [_Past(present, first_record, 0, by_person=False), *self.past]
        is_sure = saved.first_record and saved.first_record not in doubtful
        if is_sure and any(past.first_record == saved.first_record for past in known):
            known = [past for past in known if past.first_record == saved.first_record]
        else:
            old = [past for place, past in enumerate(known[:_NEAR]) if place > 1 or past.by_person]
            known = [past for past in known[:_NEAR] if past not in old or past.document.text() != saved.text]
        values = [_Document.read(past.document.text())[1] for past in known]
        return min(values, key=lambda value: _distance(value, saved.value))

    def is_new(self, saved: _Saved, present: _Document) -> bool:
        """Tell whether no snapshot had this text."""
        return all(document.text() != saved.text for document in [present, *(past.document for past in self.past)])


class _TurnLock:
    """The lock of a shared tree, and with it the turn of this process; users hold it as an RLock.

    What is entered by `with` is left by the same object; what one object acquires another one may release. Generators
    do it: should an interrupt keep `__exit__` from running, they are finished when this goes away.
    """

    __slots__ = ("entered", "tree")

    def __init__(self, tree: _SharedTree) -> None:
        self.tree = tree
        self.entered: list[Iterator[None]] = []

    def __enter__(self) -> bool:
        turn = self.tree.steps()
        next(turn)
        self.entered.append(turn)
        return True

    def __exit__(self, *_: object) -> None:
        next(self.entered.pop(), None)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as an RLock has it
        """Take lock and turn; return whether that was possible, at once or within so many seconds."""
        tree = self.tree
        end = _system.now() + ((inf if timeout < 0 else timeout) if blocking else 0.0)
        if not tree.lock.acquire(blocking, timeout):
            return False
        try:
            turn = tree.steps(end - _system.now())
            next(turn)
            tree.acquired.append(turn)
        except TimeoutError as error:
            if type(error) is not TimeoutError:
                raise
            return False
        finally:
            tree.lock.release()
        return True

    def release(self) -> None:
        """Give back what was acquired last; raises RuntimeError in a thread that has not."""
        if not (self._is_owned() and self.tree.acquired):
            raise RuntimeError("cannot release un-acquired lock")
        next(self.tree.acquired.pop(), None)

    def _is_owned(self) -> bool:
        lock: Any = self.tree.lock
        return bool(lock._is_owned())


def _is_superseded(line: str, following: str) -> bool:
    """Tell whether a record sets what the one behind it sets again: most are, where a process counts for its turn."""
    return line.startswith('--- ["set",') and following.startswith(line[: line.rindex(",") + 1])


class _SharedTree(_LiveTree):
    """A tree whose file several processes write.

    Each change is made in the turn of its process. The turn begins with a catch-up: what others wrote is applied, and
    what a person saved is merged by the first who comes. Outside of turns memory stays as it is.
    """

    journal: _SharedJournal

    def __init__(
        self, journal: _SharedJournal, *, fsync: bool | float, mode: int | None, declaration: Any = None
    ) -> None:
        #: Memory may differ from the log, so that all of that has to be read.
        self.is_doubtful = False
        #: The turns that `_TurnLock.acquire` began, and `release` ends.
        self.acquired: list[Iterator[None]] = []
        #: A person had changed the snapshot below the records that were read, which is to be renewed.
        self.is_edited = False
        #: The tree of those nodes that others removed: a change of them raises.
        self.grave = _Tree(journal.path)
        reason = "another process or person removed or replaced this container; read it anew, and repeat the change"
        self.grave.halted = (self.grave.refuse, StateConflict(journal.path, reason))
        self.grave.levels.append(_Level(0, 0))
        _Root({}, self.grave)
        super().__init__(journal, fsync=fsync, mode=mode, declaration=declaration)

    def turn(self) -> Any:
        self.still()
        return _TurnLock(self)

    def steps(self, wait: float = inf) -> Iterator[None]:
        """Hold the lock and the turn until the next step; TimeoutError if there is none within so many seconds."""
        with self.lock:
            if self.journal.is_in_turn:
                self.missed = self.unread  # what is read from here on is up to date
                self._claim_missed()
                yield
                return
            try:
                try:
                    self._begin_turn(wait)
                    self._claim_missed()
                    yield
                finally:
                    self.journal.end_turn()
            finally:
                self.journal.end_turn()  # an interrupt may have come in front of the first

    def _claim_missed(self) -> None:
        """Keep `missed` for the statement that begins; what a helper finds is left for the script's next one, too."""
        if get_ident() not in _helpers:
            self.unread = {}

    def _begin_turn(self, wait: float = inf) -> None:
        if self.halted is not None and self.halted[0] in (self.refuse, self._reopen):
            function, *arguments = self.halted
            function(*arguments)
        self.journal.take_turn(wait)
        self.catch_up()

    def assign(self, node: _Node, key: str | None, value: Any) -> bool:
        return bool(self.levels) and super().assign(node, key, value)

    def sync(self) -> None:
        with self.turn():  # should that fail, the file is written anew
            super().sync()

    def catch_up(self) -> None:
        """Apply what other processes wrote, merge what a person did, and note in `missed` what that changed."""
        self.missed = self.unread
        if self.halted is not None and self.halted[0] == self._finish:
            self.halted, self.is_doubtful = None, True
        is_doubtful, self.is_doubtful = self.is_doubtful, True
        try:
            news = self.journal.news(is_doubtful=is_doubtful)
            if news is not None:
                self._change(self._take_all if news[1] else self._take_records, news[0])
            self.is_doubtful = False
            if self.is_edited:
                self.is_edited = False
                self._renew(self._renewed(), self.journal.basis)
        except BaseException:
            with suppress(Exception):  # is told by the next turn
                _surely(self._reload)
            raise
        for declaration in self.declarations if self.missed and news is not None else ():
            self._tell_undeclared(declaration)
        self._look_around()

    def _tell_undeclared(self, declaration: Any) -> None:
        """Warn of what other processes wrote that is not as declared. They go on from that, so it stays."""
        images = [image for image in self.missed.values() if image.node._top() is self.root]
        problems = [problem for image in images for problem in declaration.problems_of(image)]
        if problems:
            first = f"{problems[0]}{f', and {len(problems) - 1} more' * (len(problems) > 1)}"
            advice = "It stays, because they go on from it; set it anew here, or with `persistedstate set`"
            _warn(f"{self.path}: another process wrote what is not declared ({first}). {advice}")

    def _look_around(self) -> None:
        journal, now = self.journal, _system.now()
        if now >= journal.due_at:
            journal._glance_around(now)
        if journal.is_suspicious:
            self.look()

    def _reload(self) -> None:
        """Make memory what the log is."""
        self.halted = None
        news = self.journal.news(is_doubtful=True)
        if news is not None:
            self._change(self._take_all, news[0])
        self.is_doubtful = False

    def _change(self, function: Callable[..., None], *arguments: Any) -> None:
        """Change memory by a function, with nobody in between, and note what that changed; no transaction is open."""
        before, level = self.halted, _Level(0, 0)
        if self.missed is self.unread:  # else the script may have changed the nodes in this turn
            level.images = self.missed
        orphans = {number for number, image in level.images.items() if image.node._parent is None}
        try:
            try:
                self.halted, self.owner = (self._reload,), get_ident()
                self.levels.append(level)  # so that the nodes keep what they were
                function(*arguments)
            finally:
                self._note_missed(level, orphans)
        finally:
            self.levels.clear()
            self.halted = before

    def _note_missed(self, level: _Level, orphans: set[int]) -> None:
        """Note what nodes were, and let nobody change those that are removed; orphans: those that were before."""
        self.levels.clear()
        if level.images is not self.missed:
            self.missed = {**level.images, **self.missed}
        gone: list[Any] = [image.node for number, image in level.images.items() if number not in orphans]
        gone = [node for node in gone if node._parent is None and node is not self.root]
        for node in gone:
            node._tree, node._heads = self.grave, _NO_HEADS
            items = node._items.values() if type(node._items) is dict else node._items
            gone += [item for item in items if isinstance(item, _Node) and item._parent is node]

    def _changing(self) -> tuple[Any, ...]:
        return (*super()._changing(), self._change)

    def _take_records(self, data: bytes) -> None:
        self.attested -= self.facts.keys()  # what could not be written is told anew
        self.facts.clear()
        self._note_appended(data)
        for line, following in pairwise([*data.decode().split("\n"), ""]):
            if line.startswith("--- [") and not _is_superseded(line, following):
                record = _own_record(line[4:])
                if record is None:
                    loader = _Loader(line[4:], self.document.version)
                    record = loader.value(loader.root, 0)
                if _is_fact(record):
                    self.attested.add(record[1][0])
                for operation in _operations(record):
                    self._take_operation(*operation)

    def _take_operation(self, name: str, path: Any, *arguments: Any) -> None:
        """Do what another process did; what is primed in a quarter of the time, as `assign` does."""
        node = _target(self.root, path)
        if not self._put_primed(node, name, *arguments):
            _apply(self.root, [name, path, *arguments])
            if all(type(key) is str for key in path):  # to find the way from a list takes long
                node._locate()
                node._prime(name, *arguments)

    def _put_primed(self, node: _Node, name: str, place: Any = None, value: Any = _GONE, *_: Any) -> bool:
        """Make a change of which the heads of a node tell; False if it is none."""
        key, length = place if name == "set" else None, len(node._items)
        if name not in ("set", "insert") or key not in node._heads or type(value) not in _SCALARS:
            return False
        if key is None and place != length:
            return False
        image = self.levels[0].images.get(id(node))
        if image is None or (key is not None and key not in image.kept):
            node._remember(name, place)
        node._put(length, key, value)
        return True

    def _take_all(self, data: bytes) -> None:
        stream = _parsed(self.path, data)
        latest = _Root(stream.value, _Tree())
        _replay(latest, stream, self.path)
        super()._take(_plain(latest))
        self.root._show_all()  # an interrupt may have kept an operation from that
        self.document, self.edits = stream.document, latest._tree.edits
        self.is_edited = bool(stream.edited)
        self._go_on_behind(stream, data)
        self.path = self.journal.path
        self.forget_heads()
        self.generation += 1

    def _take(self, value: dict[Any, Any]) -> None:
        self._change(super()._take, value)

    def overlooks(self, node: _Node, key: Any, value: Any = _GONE) -> bool:
        if isinstance(key, slice):
            was, now = node, node
            is_changed = id(node) in self.missed
        else:
            was, now = self._was_and_is(node, key)
            is_plain = not (isinstance(was, _Node) or isinstance(now, _Node) or was is _GONE or now is _GONE)
            is_changed = was is not now and not (is_plain and _same(was, now))
        if isinstance(value, _Node) and (was is value or now is value):
            return True
        if is_changed or (isinstance(now, _Node) and any(_is_below(image.node, now) for image in self.missed.values())):
            place = f"STATE{''.join(map(_step, node._path()))}{'[…]' if isinstance(key, slice) else _step(key)}"
            reason = f"{place} was changed by another process or person since it was read; repeat the statement, or "
            raise StateConflict(self.path, f"{reason}let STATE.transaction() hold both the reading and the writing")
        return False

    def _was_and_is(self, node: _Node, key: Any) -> tuple[Any, Any]:
        """Return what the statement under way has read at a key or index, and what is there now; _GONE for nothing."""
        items, image = node._items, self.missed.get(id(node))
        if type(items) is dict:
            now = items.get(key, _GONE)
            return (now if image is None else image.kept.get(key, _GONE if image.extent else now)), now
        if not hasattr(type(key), "__index__"):
            return _GONE, _GONE
        index = _index(key)
        old = items if image is None else [*items[: image.extent - len(image.kept)], *image.kept[::-1]]
        return tuple(part[index] if -len(part) <= index < len(part) else _GONE for part in (old, items))

    def _hand_down(self, saved: _Saved | None, *, by_person: bool) -> None:
        past = [(self.document.text(), self.first_record, by_person), *self.journal.past_texts()]
        if saved is not None:
            past.insert(0, (saved.original.text(), saved.first_record, False))
        past = [entry for entry in past if entry[0].strip()][:_NEAR]
        while len(past) > 1 and sum(len(text) for text, _, _ in past) > _HISTORY:
            past.pop()
        self.journal.past = past

    def _await_edit(self) -> _HandEdit:
        self.history = _History()  # of all processes
        for text, first_record, by_person in self.journal.past_texts():
            document = _Document()
            document.single = text
            self.history.past.append(_Past(document, first_record, 0, by_person))
        return super()._await_edit()

    def refresh(self) -> bool:
        is_changed = bool(self.missed)
        return super().refresh() or is_changed

    def _save(self) -> None:
        """Vacuum if nobody else has the file: those who do will."""
        is_open = self.halted is None or self.halted[0] not in (self._reopen, self.refuse)
        if is_open and (self.trouble is not None or self.journal.become_alone()):
            try:
                with self.turn():
                    super()._save()
            except BaseException:
                self.journal.stay()
                raise
        elif self.syncer is not None:
            self.syncer.stop()

    def mend_in_child(self) -> None:
        """After a fork let the child open the file anew when it needs it, except in the middle of a transaction."""
        if self.levels and self.owner == get_ident():
            super().mend_in_child()
            return
        self.renew_lock()
        self.journal.leave()
        while self.levels:  # of another thread, which the child does not have
            self.restore()
            self.levels.pop()
        self.batch, self.latest, self.renewal, self.trouble = [], _NO_LATEST, None, None
        self.lines, self.beside = {}, None
        if self.syncer is not None:
            self.syncer = _Syncer(self, self.fsync)
        self.halted = (self._reopen,)

    def _reopen(self) -> None:
        """Open the file in a forked child, in a turn that goes on."""
        journal = self.journal.anew()
        try:
            while not journal.open(self.mode, _system.now()):
                _system.sleep(_LOCK_RETRY)
            journal.accept(len(journal.data) - _parsed(journal.path, journal.data).torn)
        except BaseException:
            journal.close()
            raise
        self.journal = journal
        self.halted, self.is_doubtful = None, True


class _LogTree(_SharedTree):
    """A tree whose state is not in a file, but in a log of `persistedstate_logs`: what that holds is the truth."""

    journal: Any

    def __init__(self, journal: Any, *, fsync: bool | float, mode: int | None, declaration: Any = None) -> None:
        # The server sees to numbers of seconds.
        super().__init__(journal, fsync=fsync is True, mode=mode, declaration=declaration)

    def _attest(self, key: Any) -> None:
        """Let no record tell what the snapshot has: no person edits it, and other processes may renew it."""

    def steps(self, wait: float = inf) -> Iterator[None]:
        with self.lock:
            depth = self.journal.depth
            self.journal.depth = depth + 1
            try:
                yield from super().steps(wait)
            finally:
                self.journal.depth = depth

    def _begin_turn(self, wait: float = inf) -> None:
        self.journal.depth = 1  # an interrupt may have left another
        super()._begin_turn(wait)

    def _halt(self, trouble: Exception | None) -> None:
        """Read anew what may differ; the log lacks nothing that has to be written to it."""
        self.halted = None
        self.is_doubtful = self.is_doubtful or trouble is not None

    def sync(self) -> None:
        self.journal.sync()

    def sync_outside(self) -> None:
        with self.lock:  # of the connection, too
            self.sync()

    def _look_around(self) -> None:
        """Nobody writes a log but by a log."""

    def join(self, *, fsync: bool | float, mode: int | None) -> None:  # noqa: ARG002 - all have the same
        super().join(fsync=self.fsync, mode=mode)


def _is_below(node: _Node | None, top: _Node) -> bool:
    while node is not None and node is not top:
        node = node._parent
    return node is not None


#: In the place of length and hash: what is shown may be mixed.
_IN_DOUBT = (-1, 0)


class _Follower(_Tree):
    """A tree that follows a file that others write; takes no lock and writes nothing."""

    def __init__(self, path: str, defaults: Mapping[str, Any], declaration: Any = None, shown: str = "") -> None:
        super().__init__(shown or os.path.realpath(path))
        self.declaration = declaration
        self.name = shown or _absolute(path)
        self.reserved = _METHODS
        self.defaults = defaults
        self.seen = _Dated()
        #: Length and hash of what is shown, and of that without a torn tail, to which a writer of this file only adds.
        self.content, self.known = _IN_DOUBT, (0, hash(b""))
        reason = "opened with _readonly=True; open it without to change it"
        self.halted = (self.refuse, StateReadOnly(self.path, reason))
        _Root({}, self)
        for number in [number for number, follower in list(_followers.items()) if follower() is None]:
            _followers.pop(number, None)
        _followers[id(self)] = weakref.ref(self)
        self.refresh()

    def vacuum(self) -> None:
        self.resume()

    def refresh(self) -> bool:
        """Read the file again if it changed; return whether the state did."""
        now = _system.now()
        before = self.content
        if before != _IN_DOUBT and self.seen.tells(_seen(_system.stat(self.name))):
            return False
        data, seen = self._read_whole()
        content, self.content = (len(data), hash(data)), _IN_DOUBT
        is_changed = content != before and self._show(data)
        self.content = content
        self.seen.note(seen, now)
        return is_changed

    def _show(self, data: bytes) -> bool:
        value, sound = self._value(data)
        self.known = sound, hash(data[:sound])
        if _same(value, _plain(self.root)):
            return False
        with self.lock:
            _become(self.root, value)
            self.edits = []  # who is told of changes shall compare all
        return True

    def _read_whole(self) -> tuple[bytes, _Glance]:
        """Read the file; while somebody writes it anew without putting another in its place, wait for them."""
        data, seen = _read_file(self.name)
        length, value = self.known
        glance = self.seen.glance
        if glance is None or seen[:2] != glance[:2] or hash(data[:length]) == value:
            return data, seen
        _await_quiet(lambda: _glance(self.name), _system.now() + _PATIENCE)
        return _read_file(self.name)

    def _value(self, data: bytes) -> tuple[dict[Any, Any], int]:
        """Return the state in a file's content, and how much of that is sound."""
        stream = _parsed(self.path, data)
        latest = _Root(stream.value, _Tree())
        _replay(latest, stream, self.path)
        value = _plain(latest)
        for key, default in self.defaults.items():
            value.setdefault(key, default)
        if self.declaration is not None:
            value = self.declaration.filled(value)
            self.declaration.check(value, self.path, stream.document.text())
        return value, len(data) - stream.torn

    def release(self) -> None:
        self.halted = (self.refuse, StateClosed(self.path, "the state was closed; open it again"))
        _followers.pop(id(self), None)

    def mend_in_child(self) -> None:
        """After a fork: where another thread was in a refresh, which nobody goes on with, read the file anew."""
        if self.lock.acquire(blocking=False):
            self.lock.release()
            return
        self.renew_lock()
        self.seen, self.content = _Dated(), _IN_DOUBT
        with suppress(OSError, StateError):
            self.refresh()


class _LogFollower(_Follower):
    """A tree that follows a log."""

    def __init__(self, journal: Any, defaults: Mapping[str, Any], declaration: Any) -> None:
        self.journal, self.read = journal, b""
        #: The position of what is shown; the journal is at another one where that may be mixed.
        self.shown_at: Any = None
        super().__init__(journal.path, defaults, declaration, journal.path)

    def refresh(self) -> bool:
        journal, is_changed = self.journal, False
        if journal.descriptor < 0:
            journal.open(None, 0.0)
            news = journal.data, True
        else:
            news = journal.news(is_doubtful=journal.position != self.shown_at)
        if news is not None:
            self.read, journal.data = news[0] if news[1] else self.read + news[0], b""
            is_changed = self._show(self.read)
        self.shown_at = journal.position
        return is_changed

    def release(self) -> None:
        super().release()
        self.journal.close()


def _parsed(path: str, data: bytes) -> _Stream:
    try:
        return _Stream(data)
    except _BadText as problem:
        offset = problem.offset + len(_skipped(data).decode(errors="replace"))
        raise _corrupt(path, data.decode(errors="replace"), _BadText(problem.reason, offset)) from None


def _replay(
    root: _Root, stream: _Stream, path: str, apply: Callable[[StateDict, Any], None] | None = None
) -> list[str]:
    """Apply the records of a stream to its tree; return what a person should know who edited the file.

    apply: what does it with one, instead of `_apply`; not where a person changed what records tell of.
    """
    reasons = _merge_edit(root, stream, path) if stream.edited else []
    if not stream.edited:
        _replay_all(root, stream, path, apply)
    root._show_all()
    return reasons + _deletions(stream)


def _replay_all(root: _Root, stream: _Stream, path: str, apply: Callable[[StateDict, Any], None] | None) -> None:
    offset, items, counters = 0, root._items, set[Any]()
    is_quick = apply is None
    try:
        for record, offset in stream.records:  # noqa: B007 - the last one tells where it went wrong
            is_of_four = is_quick and type(record) is list and len(record) == 4  # noqa: PLR2004 - as "set" has it
            if is_of_four and record[1] == [] and record[0] == "set":
                _, _, key, value = record  # a counter, again: in a quarter of the time
                if type(value) is int and type(key) is str:
                    if key in counters and type(items.get(key)) is int:
                        items[key] = value
                        continue
                    counters.add(key)
            (apply or _apply)(root, record)
    except _MISFITS as error:
        offset = len(stream.text) - len(stream.text[offset:].lstrip())
        raise _corrupt(path, stream.text, _BadText(_misfit(error), offset)) from None


def _merge_edit(root: _Root, stream: _Stream, path: str) -> list[str]:
    """Merge what a person changed in the snapshot with the records behind it; their value wins, path by path.

    Of an entry of which only the hash is told, the records are applied to what the person made of it, if they fit.
    """
    theirs, fitting = _plain(root), _Fitting(stream.undecided)
    base = theirs.copy()
    for key in stream.edited:
        if key not in stream.undecided:
            base.pop(key, None)
            base.update((key, value) for value in stream.facts[key][2:])
    latest = _Root(_plain(base), _Tree())
    _replay_all(latest, stream, path, fitting.apply)
    mine = {key: value for key, value in _plain(latest).items() if key not in fitting.left_out}
    mine.update((key, theirs[key]) for key in fitting.left_out if key in theirs)
    _become(root, _merged(base, mine, theirs))
    stream.document.is_doubtful = True
    return [_undecided(stream.undecided, fitting.left_out)] if stream.undecided else []


class _Fitting:
    """Applies records, but to some top-level entries only as long as they fit; else their keys are `left_out`."""

    def __init__(self, keys: list[Any]) -> None:
        self.keys = keys
        self.left_out: list[Any] = []

    def apply(self, root: StateDict, record: Any) -> None:
        for operation in _operations(record):
            key = (operation[1][:1] or operation[2:3] or [_GONE])[0]
            if key not in self.left_out:
                try:
                    _apply(root, operation)
                except _MISFITS:
                    if key not in self.keys:
                        raise
                    self.left_out.append(key)


def _undecided(keys: list[Any], left_out: list[Any]) -> str:
    names = ", ".join(map(_inline, keys))
    reason = f"{names}: changed in the snapshot, and by the records behind it; the person's changes and the script's"
    reason += " cannot be told apart, so the records were applied to what the person made of it"
    return reason + f", without those of {', '.join(map(_inline, left_out))}, which do not fit" * bool(left_out)


def _deletions(stream: _Stream) -> list[str]:
    """Return what is known of records that a person deleted, by what others tell of the snapshot."""
    if not stream.facts:
        return []
    touched: set[Any] = set()
    for record, _ in stream.records:
        path = record[1]
        key = path[0] if path else record[_BARE] if len(record) > _BARE else None
        if type(key) is not str or key not in touched:  # else known already, as nearly all are
            for name, path, *arguments in _operations(record):
                touched.update(_touched(path, name, arguments, stream.facts))
    lost = [key for key in stream.facts if key not in touched]
    part = [key for key in touched if key not in stream.facts]
    undone = [f"all changes of {_inline(key)}{_again(stream.facts[key])}" for key in lost]
    undone += [f"some changes of {_inline(key)}" for key in part]
    return [f"lines with records were deleted from the file; this undid {', '.join(undone)}"] if undone else []


def _again(fact: list[Any]) -> str:
    """Tell what the snapshot has, as far as that is short."""
    told = "absent" if len(fact) == _BARE else _flow(fact[2]) if fact[0] == "was" else ""
    return f" (again {told})" if 0 < len(told) < 40 else ""  # noqa: PLR2004 - about half a line


#: What it raises to apply a record to a state in which it does not fit.
_MISFITS = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


def _misfit(error: Exception) -> str:
    return f"this record cannot be applied: {type(error).__name__}: {error}"


def _apply(root: StateDict, record: Any) -> None:
    """Apply one record; raises LookupError, TypeError or ValueError if it does not fit the state."""
    for operation, path, *arguments in _operations(record):
        node = _target(root, path)
        taken = node._taken(operation, *arguments)
        node._do_once(len(node._items), node._for_text(tuple(path), operation, *taken), *node._grown(operation, *taken))


def _operations(record: Any) -> list[list[Any]]:
    """Return what a record does, one operation after the other; raises TypeError or ValueError where it is none."""
    if type(record) is not list or not record or type(record[0]) is not str:
        raise TypeError("a record is a list that begins with an operation")
    if record[0] == "transaction":
        _, records = record
        return [operation for inner in records for operation in _operations(inner)]
    return [record] if len(record) > _BARE + 1 or not _is_fact(record) else []


def _target(root: StateDict, path: Any) -> Any:
    """Return the node to which a path leads, and let its indexes count from the start."""
    if type(path) is not list:
        raise TypeError("a path is a list of keys and indexes")
    node: Any = root
    for place, key in enumerate(path):
        items = node._items
        node = items[key]
        if not isinstance(node, _Node):
            raise TypeError(f"{key!r} is no container")
        if type(items) is list and key < 0:
            path[place] += len(items)
    return node


def _merged(base: Any, mine: Any, theirs: Any) -> Any:
    """Merge what two hands made of a plain value, path by path: theirs wins where theirs is a change.

    In a list an item keeps what is its own wherever it moves, and new items of both stay. What one of them removed is
    gone, unless they changed it: then theirs stands.
    """
    if _same(base, theirs):
        return mine
    if _same(base, mine) or type(mine) is not type(theirs):
        return theirs
    if type(theirs) is dict:
        return _merged_mapping(base if type(base) is dict else {}, mine, theirs)
    if type(theirs) is list:
        return _merged_list(base if type(base) is list else [], mine, theirs)
    return theirs


def _merged_mapping(base: dict[Any, Any], mine: dict[Any, Any], theirs: dict[Any, Any]) -> dict[Any, Any]:
    values = {key: _merged(base.get(key, _GONE), mine.get(key, _GONE), theirs.get(key, _GONE)) for key in theirs}
    values.update({key: _merged(base.get(key, _GONE), mine[key], _GONE) for key in mine if key not in theirs})
    common = [key for key in theirs if key in base and key in mine]
    is_order_kept = common == [key for key in base if key in theirs and key in mine]
    order = _interleaved(list(mine), list(theirs)) if is_order_kept else _interleaved(list(theirs), list(mine))
    was, held = _held_keys(base), _held_keys(mine)
    held.update((key, key) for key in theirs if not _same(key, was.get(key, _GONE)) or key not in mine)
    return {held[key]: values[key] for key in order if values[key] is not _GONE}


def _merged_list(base: list[Any], mine: list[Any], theirs: list[Any]) -> list[Any]:
    """Give each item a token, the index in `base` or its text, by which the lists can be compared as sequences."""
    my_tokens, their_tokens = _tokens(base, mine), _tokens(base, theirs)
    my_values, their_values = dict(zip(my_tokens, mine, strict=True)), dict(zip(their_tokens, theirs, strict=True))
    values = {}
    for token in [*my_tokens, *their_tokens]:
        mine_now, theirs_now = my_values.get(token, _GONE), their_values.get(token, _GONE)
        was = base[token] if type(token) is int else _GONE
        is_replaced = theirs_now is _GONE and not isinstance(mine_now, (dict, list)) and not _same(was, mine_now)
        values[token] = mine_now if is_replaced else _merged(was, mine_now, theirs_now)
    common = [token for token in their_tokens if type(token) is int and token in my_values]
    first, second = (my_tokens, their_tokens) if common == sorted(common) else (their_tokens, my_tokens)
    return [values[token] for token in _interleaved(first, second) if values[token] is not _GONE]


def _tokens(base: list[Any], items: list[Any]) -> list[Any]:
    tokens: list[Any] = []
    times: dict[str, int] = {}
    for index, item in zip(_origins(base, items), items, strict=True):
        text = "" if index is not None else _flow(item)
        times[text] = times.get(text, 0) + 1
        tokens.append((text, times[text]) if index is None else index)
    return tokens


def _interleaved(first: list[Any], second: list[Any]) -> list[Any]:
    """Return the first sequence with what only the second has, each behind what precedes it there, the last last."""
    known = set(first)
    behind: dict[Any, list[Any]] = {_GONE: []}
    previous = _GONE
    for token in second:
        if token in known:
            previous = token
            behind[token] = []
        else:
            behind[previous].append(token)
    last = behind.pop(previous)
    order = behind.get(_GONE, [])
    for token in first:
        order += [token, *behind.get(token, [])]
    return order + last


def _distance(one: Any, other: Any) -> int:
    """Return how much two plain values differ: by what only one of them has; what was changed counts for both."""
    if type(one) is dict and type(other) is dict:
        return sum(_distance(one.get(key, _GONE), other.get(key, _GONE)) for key in {**one, **other})
    if type(one) is list and type(other) is list:
        ours, others = Counter(map(_flow, one)), Counter(map(_flow, other))
        return (ours - others).total() + (others - ours).total()
    if one is _GONE or other is _GONE:
        return 1
    return 0 if _same(one, other) else 2


def _become(node: Any, value: Any) -> None:
    """Give a node another plain value; the nodes below stay the same objects where they stay containers of a kind.

    May be called again after an interrupt: the value stays plain.
    """
    for path, *edit in [*_script(_plain(node), value)]:
        target = node
        for key in path:
            target = target._items[key]
        _follow_script(target, *edit)


def _fill(node: Any, value: dict[Any, Any]) -> None:
    """Set the keys that a mapping lacks, at any depth."""
    for key, item in value.items():
        if key not in node._items:
            node[key] = item
        elif type(item) is dict:
            _fill(node[key], item)


def _follow_script(node: Any, operation: str, key: Any, *values: Any) -> None:
    old = node._at(key) if operation == "set" else None
    if isinstance(old, _Node) and type(values[0]) is type(old._items):  # one of them is empty
        _become(old, values[0])
    elif operation == "order":
        node._do("order", key, [node._items[kept] for kept in key])
    else:
        node._do(operation, *node._grown(operation, key, *[_storable(value, 0, []) for value in values]))


class _Watch:
    """A function that is to be called after changes of what a path leads to, and what that was at the last look.

    Of the whole state, what it knows of an entry that did not change since stays the same object.
    """

    def __init__(self, function: Callable[[_Keys, Any, Any], object], keys: _Keys, root: _Root) -> None:
        self.function, self.keys = function, keys
        self.known = self._look(root, None)

    def _look(self, root: _Root, touched: set[Any] | None) -> Any:
        """Return the present value, `_GONE` if there is none; touched: the top-level keys that may have changed."""
        if not self.keys:
            before = self.known if touched is not None else {}
            return {
                key: before[key] if touched is not None and key not in touched and key in before else _plain(value)
                for key, value in root._items.items()
            }
        value: Any = root
        for key in self.keys:
            try:
                value = value._items[key]
            except (LookupError, TypeError, AttributeError):
                return _GONE
        return _plain(value)

    def news(self, root: _Root, touched: set[Any] | None) -> Callable[[], object] | None:
        """Return the call that tells what changed, None if nothing did."""
        if self.keys and touched is not None and self.keys[0] not in touched:
            return None
        before, self.known = self.known, self._look(root, touched)
        if _same(before, self.known):
            return None
        keys, old, new = _narrowed(self.keys, before, self.known)
        return partial(self.function, keys, *[None if value is _GONE else _plain(value) for value in (old, new)])


def _narrowed(keys: _Keys, old: Any, new: Any) -> tuple[_Keys, Any, Any]:
    """Return the path to the innermost place that has all differences of two values, and what was and is there."""
    while type(old) is type(new) and type(old) in (dict, list):
        if type(old) is dict:
            places = [key for key in {**old, **new} if not _same(old.get(key, _GONE), new.get(key, _GONE))]
            following = [(old.get(key, _GONE), new.get(key, _GONE)) for key in places[:1]]
        else:
            places = [index for index, pair in enumerate(zip(old, new, strict=False)) if not _same(*pair)]
            following = [(old[index], new[index]) for index in places[:1]] if len(old) == len(new) else []
        if len(places) != 1 or not following:
            break
        keys, [(old, new)] = (*keys, places[0]), following
    return keys, old, new


class _Told(_thread._local):
    """What a thread has to tell: the calls that it makes as soon as the lock is free, and whether it makes one."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()
        self.is_telling = False


class _TellingLock:
    """The lock of a tree of whose changes somebody wants to be told: when it is released, they are.

    The edits of the tree tell which entries may have changed since, without any cost elsewhere.
    """

    def __init__(self, tree: Any, lock: Any) -> None:
        self.tree, self.lock = tree, lock
        self.edits, self.length = tree.edits, len(tree.edits)
        self.told = _Told()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)

    def anew(self) -> _TellingLock:
        """Return one that nobody holds, to go on with. Whoever holds this one only lets it go."""
        lock = _TellingLock(self.tree, RLock())
        lock.edits, lock.length, lock.told = self.edits, self.length, self.told
        return lock

    @property
    def __enter__(self) -> Any:
        return self.lock.__enter__  # of C code: an interrupt comes before or after it

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        try:
            is_helper = get_ident() in _helpers
            if self.tree.lock is self and not (is_helper or self.tree.levels or self._is_up_to_date()):
                self._gather()
        finally:
            self.lock.release()
        if self.told.calls and not self.lock._is_owned():
            self._tell()

    def _is_up_to_date(self) -> bool:
        return self.edits is self.tree.edits and self.length == len(self.edits)

    def _gather(self) -> None:
        """Note what there is to tell."""
        tree, touched = self.tree, set[Any]()
        is_all = self.edits is not tree.edits or len(tree.edits) < self.length
        for keys, operation, *arguments in tree.edits[self.length :] if not is_all else ():
            is_all = is_all or not (keys or arguments)
            touched.update(_touched(keys, operation, arguments, ()))
        self.edits, self.length = tree.edits, len(tree.edits)
        for watch in [*tree.watches]:
            if news := watch.news(tree.root, None if is_all else touched):
                self.told.calls.append(news)

    def _tell(self) -> None:
        """Call the functions of which this thread has to tell. What they change themselves is told by the same loop."""
        told = self.told
        while told.calls and not told.is_telling:
            told.is_telling = True
            try:
                if told.calls:  # still: a signal handler may have made them
                    told.calls.popleft()()
            except Exception:  # noqa: BLE001 - whatever it is, the change is made and stays
                sys.excepthook(*sys.exc_info())
            finally:
                told.is_telling = False


def on_change(
    state: PersistedState, function: Callable[[_Keys, Any, Any], object], path: Any = ()
) -> Callable[[], None]:
    """Call a function after each change of a state, the script's own or one that a person saved; return what ends that.

    There is one call for each statement, transaction or merged save that changed something there, with the path to the
    innermost place that has all of the change, as a tuple of keys and indexes, and plain copies of what was and is
    there, None for nothing. It comes when the change is in the file and the lock is free, in the thread that made it,
    before the statement returns; calls for several threads may overlap. An exception of the function undoes nothing
    and stops nothing: `sys.excepthook` tells it. A change that is undone is none.

    Args:
        state: the state; one that is read only is told of what `refresh()` finds.
        function: what to call; it may change the state.
        path: a key of the top level, or a tuple of keys and indexes; only changes there count. Without it, all do. What
            is there is copied after each change.

    Raises StateError within a transaction, and within `_thread_lock` where nobody is told of changes as yet.

    >>> import os, tempfile
    >>> STATE = PersistedState(os.path.join(tempfile.mkdtemp(), "x.state"), limits={"cpu": 1}, n=0)
    >>> stop = on_change(STATE, print, "limits")
    >>> STATE.limits["cpu"] = 2
    ('limits', 'cpu') 1 2
    >>> STATE.n = 1
    >>> stop()
    """
    tree = state._tree
    keys = tuple(path) if isinstance(path, (tuple, list)) else (path,)
    is_held = not tree.watches and tree.lock._is_owned()  # then nothing tells when it becomes free
    with tree.turn():
        if tree.levels or is_held:
            what = "a transaction is open" if tree.levels else "this thread holds the lock of the state"
            raise StateError(tree.path, f"{what}; ask to be told of changes before or after that")
        watch = _Watch(function, keys, tree.root)
        tree.lock = tree.lock if tree.watches else _TellingLock(tree, tree.lock)
        tree.watches.append(watch)
        tree.forget_heads()

    def stop() -> None:
        with tree.lock:
            if watch in tree.watches:
                tree.watches.remove(watch)
                tree.lock = tree.lock if tree.watches else tree.lock.lock

    return stop


class _Together(_GeneratorContextManager[_Shown]):
    """What holds a transaction: for `with`, and in a task for `async with`."""

    async def __aenter__(self) -> _Shown:
        shown: _Shown = await _tool("tasks").enter(self, self.args[0])
        return shown

    async def __aexit__(self, *exception: object) -> bool:
        try:
            is_caught: bool = await _tool("tasks").leave(self, *exception)
        finally:
            self.gen.close()  # undoes what an interrupt in front of the end left open
        return is_caught


#: A root of which no attribute has a short way to be set, for closed states.
_NOWHERE = _Root({}, _Tree())


class PersistedState(_Mapping[str]):
    """A YAML file as an object: its top-level keys are attributes and items, and every change is in the file at once.

    Args:
        path: the file, created if there is none. A symbolic link is followed. Or the address of a state on a server,
            such as "redis://host:6379/0/importer.state".
        **defaults: keys that are set where the file lacks them. Names that begin with `_` are options:
        _fsync: False (default): a change survives the death of the process. True: also that of the machine, at the
            cost of a disk access per change or transaction. A number: after at most so many seconds it survives that,
            too.
        _wait: seconds to wait for another process to let go of the file; 0 (default) is one try.
        _readonly: True: take no lock, write nothing, and see what others write after `refresh()`. The defaults are
            shown where the file lacks them.
        _mode: permission bits of a new file, such as 0o600; None (default) leaves it to the umask.
        _check: False: what the script assigns is not checked by what its class declares.
        _shared: True: several processes have the file open and change it, all with this option. Each change waits for
            its turn and first applies what others wrote; else that is seen after `refresh()`. What would overwrite
            what another process changed since it was read raises StateConflict; not in a transaction. What others
            wrote that is not as declared is there as it is, after a warning; an attribute that cannot be made of it,
            such as an Enum, raises StateCorrupt.
        _watch: True: a thread takes over what others did without a touch of the state: it looks each second, and on
            Linux at once, if the package inotify-simple is installed. For the script it is one more thread, in which
            functions of `on_change` are called for what it finds. A function: the thread only calls this, when there
            is something to take over, so that the script calls `refresh()` where that suits it.

    Raises:
        StateLocked: another process has it open. StateCorrupt: the file cannot be understood; it was left as it is.
        StateError: it is open in this process with another `_mode` or `_shared`.
        OSError: the file cannot be opened. TypeError, ValueError: a default is not storable, an option is unknown or
        wrong.

    An attribute whose name begins with `_` is an ordinary Python attribute. A key that is the name of a method
    (`items`, `update`, …) is reached as `STATE["items"]`, the path of the file as `os.fspath(STATE)`. All of it may be
    used from several threads; `_thread_lock` is the re-entrant lock that guards every change. A second object for the
    same file, in the same process, shares its state; the stronger `_fsync` of both holds from then on.

    >>> import os, tempfile
    >>> with PersistedState(os.path.join(tempfile.mkdtemp(), "x.state"), jobs=[]) as STATE:
    ...     STATE.jobs.append({"name": "a", "done": False})
    ...     STATE.jobs[0]["done"] = True
    ...     STATE.jobs
    [{'name': 'a', 'done': True}]
    """

    __slots__ = ("__dict__", "__weakref__", "_items", "_open_root", "_own", "_refusal", "_root", "_rule", "_tree")

    _tree: Any
    _root: _Root
    #: The same until the state is closed; read first when an attribute is set, because one look-up costs 2 % of that.
    _open_root: _Root
    #: The root's content; `__dict__` shows the same, as far as its names may be attributes.
    _items: dict[Any, Any]
    #: The ordinary attributes.
    _own: dict[str, Any]
    #: What its class declares, and whether the script is held to it.
    _rule: tuple[Any, bool]
    #: What every use raises from now on, once `_tree`, `_root` and `_items` are gone.
    _refusal: StateError
    #: What the class declares, if it does.
    _declared: Any = None

    def __init_subclass__(cls, *, undeclared: bool | None = None, **options: Any) -> None:
        """Let the annotations of a class declare types, and its values the defaults, of the entries.

        undeclared: False: there may be no others.
        """
        super().__init_subclass__(**options)
        if not {"__annotations__", "__annotate__", "__annotate_func__"}.isdisjoint(vars(cls)):
            cls._declared = _tool("declared").declare(cls, undeclared=undeclared)

    def __init__(
        self,
        path: str | os.PathLike[str],
        /,
        *,
        _fsync: bool | float = False,
        _wait: float = 0.0,
        _readonly: bool = False,
        _mode: int | None = None,
        _check: bool = True,
        _shared: bool = False,
        _watch: bool | Callable[[], object] = False,
        **defaults: Any,
    ) -> None:
        _check_options(_fsync, _wait, _readonly, _mode, _shared, _watch)
        for name in defaults:
            _check_name(name)
        text = os.fsdecode(path)
        if not text:
            raise FileNotFoundError(errno.ENOENT, "the path is empty", text)
        declared = self._declared
        defaults = _stored(_storable, defaults, 0, list) if declared is None else declared.with_defaults(defaults)
        tree: _Follower | _LiveTree
        if _readonly:
            tree = _follower(text, defaults, declared)
            tree.facades[id(self)] = self
        else:
            kind = _engine(text, fsync=_fsync, mode=_mode) or (_SharedJournal if _shared else _Journal)
            tree = _live_tree(kind, text, self, fsync=_fsync, wait=_wait, mode=_mode)
        self._show(tree, (declared, _check))
        try:
            if isinstance(tree, _LiveTree):
                tree.join(fsync=_fsync, mode=_mode)
                tree.declare(self._rule)
                tree.set_defaults(defaults)
            if _watch:
                _tool("watching").watch(self, _watch)
        except BaseException:
            self.close()
            raise

    def _show(self, tree: _Tree, rule: tuple[Any, bool]) -> None:
        parts = {"_root": tree.root, "_open_root": tree.root, "_items": tree.root._items}
        for name, value in {"_own": {}, "_rule": rule, "_tree": tree, **parts}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "__dict__", tree.attributes)

    @property
    def _thread_lock(self) -> Any:
        """The re-entrant lock that guards every change; hold it to make several of them one for other threads."""
        return self._tree.turn()

    def close(self) -> None:
        """Vacuum, and let the file go; every later use raises StateClosed. A second call does nothing.

        Raises OSError if the disk did not take what `_fsync` promised; the file is closed all the same.
        """
        tree = getattr(self, "_tree", None) if not hasattr(self, "_refusal") else None
        if tree is None:
            return
        try:
            self._close(tree)
        finally:
            if tree.watcher is not None:
                tree.watcher.leave()

    def _close(self, tree: Any) -> None:
        with tree.still():
            if tree.levels:
                tree.resume()  # where one could not be undone
            if tree.levels:
                raise StateError(tree.path, "a transaction is open; close after it")
            with _registry_lock:
                tree.facades.pop(id(self), None)
                tree.is_closing = tree.is_closing or not tree.facades
            if tree.is_closing:
                tree.release()
            else:
                tree.retract(self._rule)
            self._shut(StateClosed(tree.path, "the state was closed; open it again"))

    def _shut(self, refusal: StateError) -> None:
        if hasattr(self, "_refusal"):
            return
        object.__setattr__(self, "_refusal", refusal)
        object.__setattr__(self, "__dict__", {})
        object.__setattr__(self, "_open_root", _NOWHERE)
        for name in ("_tree", "_root", "_items"):
            with suppress(AttributeError):  # while it is being made
                object.__delattr__(self, name)

    def transaction(self) -> _Together[Self]:
        """Make the changes in a `with` block one: all of them are in the file after it, or none.

        Other threads wait. An exception puts everything back as it was before the block, and propagates. A transaction
        inside another one joins it; if only the inner one fails, only its changes are undone. Raises OSError, with
        nothing changed, when the record cannot be written.

        In a task of asyncio or trio, `async with` waits for its turn while other tasks run; those that wait get it one
        after the other. Among them `with` raises StateError at once, as a change does, while a transaction of another
        task is open. With `_fsync=True` the disk is waited for in the same way, behind `async with`.

        >>> import os, tempfile
        >>> STATE = PersistedState(os.path.join(tempfile.mkdtemp(), "x.state"), a=1, b=1)
        >>> with STATE.transaction():
        ...     STATE.a += 1
        ...     STATE.b -= 1
        >>> STATE
        {'a': 2, 'b': 0}
        """
        return _Together(PersistedState._steps, (self,), {})

    def _steps(self) -> Generator[Self, None, None]:
        """Be in a transaction until the next step."""
        tree = self._tree
        try:
            with tree.turn():
                if tree.halted is not None:
                    tree.resume()
                depth = len(tree.levels)
                try:
                    try:
                        level = tree.begin()
                        yield self
                        if tree.halted is not None:
                            tree.resume()  # in a forked child it says so
                        tree.end(level)
                    except BaseException:
                        tree.abandon(depth)
                        raise
                except BaseException:
                    try:
                        tree.abandon(depth)  # an interrupt may have come in front of the first
                    except BaseException:
                        if tree.levels[depth:]:  # noted without any call, for which the stack may be too short
                            tree.halted = (tree._undo_abandoned, depth, tree.halted)
                        raise
                    raise
        finally:
            if tree.lines:
                _tool("tasks").wake(tree)

    def vacuum(self) -> None:
        """Renew the snapshot now, if anything changed since the last time.

        Raises OSError when that fails, losing nothing.
        """
        with self._tree.turn():
            self._tree.vacuum()

    def refresh(self) -> bool:
        """Pick up what others did to the file; return whether the state changed. Raises StateCorrupt."""
        with self._tree.turn():
            changed: bool = self._tree.refresh()
            return changed

    def copy(self) -> dict[str, Any]:
        """Return a plain, deep copy."""
        copied: dict[str, Any] = _copy(self)
        return copied

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a key and return its value, or the default; raises KeyError where there is neither."""
        return self._root.pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        """Remove the last key; return it with its value. Raises KeyError if there is none."""
        return self._root.popitem()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key; where there is none, set the default first."""
        return self._root.setdefault(key, default)

    def clear(self) -> None:
        """Remove every key, in one record."""
        self._root.clear()

    def update(self, /, *others: Any, **named: Any) -> None:
        """Set several keys, from a mapping, pairs or keywords, in one record."""
        self._root.update(*others, **named)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._root[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._root[key]

    def __getattr__(self, name: str) -> Any:
        if name in ("_refusal", "_own"):  # not yet made
            raise AttributeError(name)
        if name in self._own:
            return self._own[name]
        if hasattr(self, "_refusal") and (name[:1] != "_" or name in PersistedState.__slots__):
            raise type(self._refusal)(self._refusal.path, self._refusal.reason)
        raise self._missing(name)

    def _missing(self, name: str) -> AttributeError:
        reason = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name[:1] != "_":
            reason = f"{self._tree.path}: there is no key {name!r}; if there was one, it was deleted from the file"
            reason += f". Set it, or open the state with a default: {type(self).__name__}(…, {name}=…)"
            if self._declared is not None and name in self._declared.fields:
                reason += f"; it is declared as {self._declared.type_name(name)}"
        return AttributeError(reason, name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        root = self._open_root
        if name in root._heads and root._tree.assign(root, name, value):
            return
        if name[:1] == "_":
            self._own[name] = value
            return
        root = self._root  # raises in a closed state
        _check_name(name)
        root[name] = value if self._declared is None else self._declared.encoded(name, value)

    def __delattr__(self, name: str) -> None:
        names = self._own if name[:1] == "_" else self._root
        if name[:1] != "_":
            _check_name(name)
        if name not in names:
            raise self._missing(name)
        del names[name]

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name.isidentifier()]

    def __fspath__(self) -> str:
        """Return the path of the file, also after `close`; a symbolic link leads to it."""
        return str(self._refusal.path if hasattr(self, "_refusal") else self._tree.path)

    def __enter__(self) -> Self:
        self._items  # noqa: B018 - a closed state raises
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a PersistedState cannot be pickled, it is an open file; pickle its copy()")

    def _text(self) -> str:
        return f"<closed state {self._refusal.path}>" if hasattr(self, "_refusal") else super()._text()

    def __rich__(self) -> Any:
        return self._text() if hasattr(self, "_refusal") else super().__rich__()


_METHODS = frozenset(name for name in dir(PersistedState) if not name.startswith("_"))


def _check_name(name: str) -> None:
    if name in _METHODS:
        raise AttributeError(f'{name} is a method of PersistedState; use STATE["{name}"]')
    if name[:1] == "_":
        raise TypeError(f"unknown option {name}; there are _check, _fsync, _mode, _readonly, _shared, _wait and _watch")


def _check_options(fsync: object, wait: object, readonly: object, mode: object, shared: object, watch: object) -> None:
    if not isinstance(fsync, (bool, int, float)) or (not isinstance(fsync, bool) and not fsync > 0):
        raise TypeError(f"_fsync is False, True or a number of seconds above 0, not {fsync!r}")
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not wait >= 0:
        raise TypeError(f"_wait is a number of seconds, not {wait!r}")
    if not isinstance(readonly, bool):
        raise TypeError(f"_readonly is False or True, not {readonly!r}")
    if not isinstance(shared, bool):
        raise TypeError(f"_shared is False or True, not {shared!r}")
    if mode is not None and (isinstance(mode, bool) or not isinstance(mode, int) or mode & ~0o777):
        raise TypeError(f"_mode is None or permission bits in octal such as 0o600, not {mode!r}")
    if not isinstance(watch, bool) and not callable(watch):
        raise TypeError(f"_watch is False, True or a function, not {watch!r}")


def plain(node: Any) -> Any:
    """Return a plain, deep copy of a StateDict, StateList or PersistedState.

    Serves as `json.dumps(STATE, default=plain)`. Raises TypeError for anything else.

    >>> import json, os, tempfile
    >>> STATE = PersistedState(os.path.join(tempfile.mkdtemp(), "x.state"), jobs=[{"done": True}])
    >>> json.dumps(STATE, default=plain)
    '{"jobs": [{"done": true}]}'
    """
    if isinstance(node, _Holder):
        return _copy(node)
    raise TypeError(f"{type(node).__name__} is no part of a state")


#: Where engines are found, by what stands before `://` in an address.
_ENGINES, _SCHEME = "persistedstate.logs", _pattern(r"[a-z][a-z0-9+.-]*\Z")
#: What is secret in an address: what stands between the user and the last `@`, whatever that is, and some options.
_SECRETS = _pattern(
    r"(?is)(?<=://)([^/?#@:]*:).*(?=@)|([?&][^=&#]*(?:pass|pwd|secret|token|api_?key|credential)[^=&#]*=)[^&#]*"
)


def _shown(place: str) -> str:
    """Return an address without what is secret in it; a path as it is."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}…", place) if "://" in place else place


def _follower(path: str, defaults: Mapping[str, Any], declaration: Any) -> _Follower:
    engine = _engine(path, fsync=False, readonly=True)
    if engine is None:
        return _Follower(path, defaults, declaration)
    return _LogFollower(engine(path), defaults, declaration)


def _engine(
    url: str, *, fsync: bool | float, readonly: bool = False, mode: int | None = None
) -> Callable[..., Any] | None:
    """Return what makes a journal of an address such as `redis://…`; None where the text is a path."""
    scheme, mark, _ = url.partition("://")
    if not mark or not _SCHEME.match(scheme):
        return None
    from importlib.metadata import entry_points

    found = {entry.name: entry for entry in entry_points(group=_ENGINES)}
    if scheme not in found:
        known = ", ".join(sorted(found)) or "none"
        reason = f"no engine for {scheme} is installed (installed: {known})"
        raise StateError(_shown(url), f"{reason}; to install all of this project, by pip install, brings some")
    if mode is not None:
        raise StateError(_shown(url), "_mode is for files; this is none")
    try:
        engine = found[scheme].load()
        from persistedstate_logs.journal import LogJournal
    except ModuleNotFoundError as error:
        reason = f"the package {error.name} is missing; pip install {error.name}"
        raise ModuleNotFoundError(reason, name=error.name, path=error.path) from None
    return partial(LogJournal, engine, fsync=fsync, readonly=readonly)


def _live_tree(
    kind: Callable[..., Any], path: str, facade: PersistedState, *, fsync: bool | float, wait: float, mode: int | None
) -> _LiveTree:
    """Return the tree of a file, for one more object to show: one that this process has open already, or a new one."""
    deadline = _system.now() + wait
    while True:
        journal = kind(path)
        tree = _claim(journal, facade)
        if journal in _opening:
            if not _open_tree(journal, facade._declared, fsync=fsync, mode=mode, deadline=deadline):
                _system.sleep(_LOCK_RETRY)
        elif tree is None:
            _system.sleep(_OPENING_RETRY)
        elif not tree.is_closing:
            how = f"with{'out' * (kind is _SharedJournal)} _shared=True"
            if type(tree.journal) is type(journal):
                if tree.journal.settings == journal.settings:
                    return tree
                how = "with another _fsync, or other options in its address"
            tree.facades.pop(id(facade), None)
            raise StateError(tree.path, f"open in this process already, {how}; open it so everywhere")
        else:
            with tree.lock:  # another thread is closing it, or was interrupted while it did
                tree.release()


def _claim(journal: _Journal, facade: PersistedState) -> _LiveTree | None:
    """Return the tree that has the file of a journal open, if any; if nobody opens it just now, claim that for us."""
    status = None
    with suppress(OSError):
        status = _system.stat(journal.path)
    with _registry_lock:
        is_being_opened = _is_being_opened(journal.path, status)  # first: what is opened by now is found below
        tree = _find_open(journal, status)
        if tree is not None and not tree.is_closing:
            tree.facades[id(facade)] = facade
        elif tree is None and not is_being_opened:
            _opening[journal] = _Opening(get_ident(), status)
    return tree


def _find_open(journal: _Journal, status: os.stat_result | None) -> _LiveTree | None:
    names, trees = {journal.path, journal.name}, _open_trees.copy()
    same = [tree for tree in trees if not names.isdisjoint((tree.journal.path, tree.journal.name))]
    same += [tree for tree in trees if status is not None and tree.journal.is_same_file(status)]
    return same[0] if same else None


def _is_being_opened(path: str, status: os.stat_result | None) -> bool:
    """Tell whether another thread is opening a file; raises StateError if it is this one, which a hook interrupted.

    What an interrupt left behind is let go: nothing in the stack of its thread goes on with that.
    """
    stacks = sys._current_frames() if _opening else {}
    for journal, opening in list(_opening.items()):
        frame = stacks.get(opening.thread)
        while frame and (frame.f_code is not _live_tree.__code__ or frame.f_locals.get("journal") is not journal):
            frame = frame.f_back
        if frame is None:
            is_left = _opening.pop(journal, None) is not None  # else its thread has ended that since
            if is_left and all(tree.journal is not journal for tree in _open_trees.copy()):
                journal.close()
        elif opening.thread == get_ident() and (journal.path == path or opening.is_of(status)):
            raise StateError(path, "opened while this thread is opening it; do so after that")
    return any(journal.path == path or opening.is_of(status) for journal, opening in _opening.items())


_TREES: dict[type, Any] = {_Journal: _LiveTree, _SharedJournal: _SharedTree}


def _open_tree(journal: Any, declaration: Any, *, fsync: bool | float, mode: int | None, deadline: float) -> bool:
    """Open a file that was claimed; False if that has to be tried again."""
    try:
        if not journal.open(mode, deadline):
            return False
        kind = _TREES.get(type(journal), _LogTree)
        _open_trees.append(kind(journal, fsync=fsync, mode=mode, declaration=declaration))
        if kind is not _LiveTree:
            journal.end_turn()
    except BaseException:
        for tree in [tree for tree in _open_trees.copy() if tree.journal is journal]:
            _open_trees.remove(tree)
        journal.close()
        raise
    finally:
        _opening.pop(journal, None)
    return True


def _close_at_exit() -> None:
    """Vacuum what is still open; a thread that holds a lock for ever must not keep the process from ending."""
    for tree in _open_trees.copy():
        if tree.lock.acquire(timeout=1):
            try:
                tree.release()
            except Exception as error:  # noqa: BLE001 - the others have to be closed, too
                _warn_afterwards(f"at exit: {error}")
            finally:
                tree.lock.release()


#: What lets several tasks share a thread, and the function of each that tells which one runs. An asyncio task comes
#: first: it may go through several greenlets.
_SCHEDULERS = {"asyncio": "current_task", "trio.lowlevel": "current_task", "greenlet": "getcurrent"}


def _current_task() -> _Task | None:
    for scheduler in _SCHEDULERS:
        if scheduler in sys.modules and (task := _ask(scheduler)) is not None:
            return _Task(scheduler, weakref.ref(task))
    return None


def _ask(scheduler: str) -> Any:
    """Ask which task runs; None outside of one, and of a scheduler that another thread is importing."""
    ask = getattr(sys.modules.get(scheduler), _SCHEDULERS[scheduler], None)
    try:
        return None if ask is None else ask()
    except RuntimeError:
        return None


def _is_in_loop() -> bool:
    """Tell whether an event loop of asyncio or trio runs in this thread."""
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # which does not raise
    is_asyncio = running is not None and running() is not None
    return is_asyncio or ("trio.lowlevel" in sys.modules and _ask("trio.lowlevel") is not None)


def _before_fork() -> None:
    _registry_lock.acquire()


def _after_fork() -> None:
    with suppress(RuntimeError):  # an interrupt came before it was taken
        _registry_lock.release()


def _mend_in_child() -> None:
    """After a fork let every tree do what it has to: files are the parent's."""
    _after_fork()
    trees: list[Any] = [*_open_trees, *filter(None, [reference() for reference in _followers.values()])]
    for tree in trees:
        if tree.watches:
            tree.lock.told.calls.clear()  # the parent makes them
        tree.mend_in_child()
    for journal in list(_opening):
        journal.leave()
    _opening.clear()
    for descriptor in _lent:
        _system.close(descriptor)
    _lent.clear()
    _helpers.clear()


if not _before_reload:
    atexit.register(_close_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_mend_in_child)


# ------------------------------------------------------- Tools -------------------------------------------------------
# What is not the object lives in the package `persistedstate_tools`, and is imported when it is asked for. Where this
# file was copied without it, asking for it tells what to install.

if "_main" in globals() and not _before_reload:  # a reload: the tools shall use these classes, too
    for _name in [_name for _name in sys.modules if _name.startswith("persistedstate_tools.")]:
        del sys.modules[_name]


class Repair(namedtuple("Repair", "path problems damaged before after")):
    """What `repair` found and did: the `problems`, the path of the file that holds what was cut or None (`damaged`).

    `before` and `after` are the sizes of the file in bytes.
    """

    __slots__ = ()
    path: str
    problems: list[Problem]
    damaged: str | None
    before: int
    after: int


def check(path: str | os.PathLike[str]) -> list[Problem]:
    """Return every problem of a state file, in the order of its lines; none if it is sound. Changes nothing.

    Takes no lock: the file may be in use. Raises OSError if it cannot be read.
    """
    problems: list[Problem] = _tool("repair").check(path)
    return problems


def repair(path: str | os.PathLike[str], *, dry_run: bool = False, wait: float = 0.0) -> Repair:
    """Make a file open again, and keep all of it that can be read; a sound file is left alone.

    What has to be cut goes to `<file>.damaged-<time>`: every piece with its line number and what was wrong with it.
    Records behind a bad one are kept where they still fit.

    Args:
        path: the file.
        dry_run: only tell what would be done.
        wait: seconds to wait for another process to let go of the file; 0 (default) is one try.

    Raises:
        StateLocked: another process has it open. OSError: it cannot be read or written.
    """
    done: Repair = _tool("repair").repair(path, dry_run=dry_run, wait=wait)
    return done


def _main() -> int:
    """Run the command line; return its exit code."""
    sys.modules["persistedstate"] = sys.modules[__name__]  # the tools shall not execute this file once more
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # where `python -P` and `-I` do not look
    try:
        run = _tool("command_line").main
    except ModuleNotFoundError as error:
        print(f"persistedstate: {error}", file=sys.stderr)
        return 2
    code: int = run()
    return code


globals().update(_before_reload)  # what is open cannot change its classes: it goes on, and is shared, as it was

if __name__ == "__main__":
    sys.exit(_main())
