"""What a person is told when something is wrong, and the exit codes."""

from __future__ import annotations

import os
import sys

from persistedstate import _SCHEME, StateCorrupt, StateError, StateLocked, _shown

NO, ERROR, IN_USE, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141
#: So many characters of a line are shown in which something is wrong.
_LONG_LINE = 80


class Refusal(Exception):
    """What the person who typed the command has to know; and the exit code."""

    def __init__(self, text: str, code: int = ERROR) -> None:
        super().__init__(text)
        self.code = code


def complain(text: str) -> None:
    """Print one line on standard error."""
    print(f"persistedstate: {' '.join(text.split())}", file=sys.stderr, flush=True)


def shown_line(text: str) -> str:
    """Return what a terminal can show of a line of a file, which may be anything."""
    text = printable(text.strip())
    return text if len(text) <= _LONG_LINE else f"{text[:_LONG_LINE]} [...]"


def printable(text: str) -> str:
    """Return a text with blanks in place of what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def is_address(place: str) -> bool:
    """Tell whether it is the address of a state on a server, no file."""
    scheme, mark, _ = place.partition("://")
    return bool(mark and _SCHEME.match(scheme))


def complaint(error: Exception, name: str) -> tuple[str, int]:
    """Return what to tell the person who typed the command with a file's name, and the exit code."""
    if isinstance(error, StateLocked):
        holder = f"process {error.pid}" if error.pid else "another process"
        return f"{error.path}: in use by {holder}; wait for it with --wait SECONDS, or end it", IN_USE
    if isinstance(error, StateCorrupt):
        line = f": {shown_line(error.text)}" if error.text.strip() else ""
        place = f"{error.path}: line {error.line}, column {error.column}"
        advice = "" if is_address(error.path) else "; mend it in an editor, or see persistedstate repair"
        return f"{place}: {error.reason}{line}{advice}", ERROR
    if isinstance(error, OSError) and not isinstance(error, StateError) and error.strerror:
        return f"{os.fsdecode(error.filename or _shown(name))}: {error.strerror}", ERROR
    return str(error), getattr(error, "code", ERROR)
