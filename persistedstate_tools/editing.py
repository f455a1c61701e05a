"""`edit`: a state in an editor, and what becomes of that text."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import persistedstate
from persistedstate import (
    StateError,
    StateLocked,
    _BadText,
    _Document,
    _explained,
    _merged,
    _plain,
    _problem,
    _Saved,
    _Stream,
)
from persistedstate_tools.commands import check_is_there, opened, print_notes
from persistedstate_tools.excerpts import read_state
from persistedstate_tools.messages import Refusal, complain, complaint
from persistedstate_tools.renewal import put, save_beside

#: What begins the lines that tell of a mistake, and are taken out again.
_MARK = "#! persistedstate: "
_MARKED = re.compile(rb"^" + re.escape(_MARK.encode()) + rb".*(?:\n|\Z)", re.MULTILINE)
#: How often a file is tried that scripts take and let go.
_TIMES = 20


def run_edit(options: Namespace) -> int:
    place = options.file
    check_is_there(place)
    document, root = read_state(place)
    text, base = document.renewed(root._items).text().encode(), _plain(root)
    folder = Path(tempfile.mkdtemp(prefix="persistedstate-"))  # what an editor puts beside goes with it
    name = folder / (re.sub(r"[^\w.-]", "-", os.path.basename(place))[:50] + ".yaml")
    name.write_bytes(text)
    try:
        saved = _edited(name, text)
        said = "no change" if saved is None else _save(place, text.decode(), base, saved)
        print(f"{persistedstate._shown(place)}: {said}")
        if saved is not None:
            print_notes(persistedstate._shown(place), saved.text, text.decode().splitlines())
    except (Refusal, StateError, OSError) as error:
        reason, code = complaint(error, place)
        raise Refusal(f"{reason}; the text is kept in {name}", code) from None
    except KeyboardInterrupt:
        complain(f"the text is kept in {name}")
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _edited(name: Path, text: bytes) -> _Saved | None:
    """Let a person edit a text until it can be understood; None where they leave it as it was."""
    given = text
    while True:
        _run_editor(name)
        found = name.read_bytes()
        clean = _MARKED.sub(b"", found)
        if clean == text:
            return None
        if found == given:
            raise Refusal("the mistake is still there; nothing was changed")
        if not clean.strip():
            raise Refusal("nothing was changed, because the text is empty; a state without entries is {}")
        try:
            _Document.read(_Stream._decoded(clean))  # as it stands: no rests of records are taken out
            return _Saved(clean)
        except _BadText as problem:
            given = _with_complaint(clean, problem)
            name.write_bytes(given)


def _run_editor(name: Path) -> None:
    """Run the editor, to which Ctrl-C belongs until it ends; raises Refusal where it fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not ignored, which the editor would inherit
    try:
        code = subprocess.call(["/bin/sh", "-c", f'{editor} "$@"', editor, str(name)])  # noqa: S603 - what they want
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if code:
        number = -code if code < 0 else code - 128
        how = f"was ended by signal {number}" if number > 0 else f"ended with exit code {code}"
        raise Refusal(f"the editor ({editor}) {how}; nothing was changed")


def _with_complaint(text: bytes, problem: _BadText) -> bytes:
    """Return a text with a comment above the line with a mistake."""
    whole = text.decode(errors="surrogateescape")
    line, column, reason, _ = _problem(whole, _explained(whole, problem))
    lines = whole.split("\n")
    lines[line - 1 : line - 1] = [
        f"{_MARK}the next line, column {column}: {' '.join(reason.split())}",
        f"{_MARK}this is taken out again; to give up, leave the file as it is",
    ]
    return "\n".join(lines).encode(errors="surrogateescape")


def _save(place: str, given: str, base: dict[Any, Any], saved: _Saved) -> str:
    """Merge a text with what happened since a person was given one, and the value `base`; tell what became of it."""
    for _ in range(_TIMES):
        try:
            with opened(place) as state:
                put(state, place, saved, lambda mine: _merged(base, mine, saved.value), _Document.read(given)[0])
                return "saved"
        except StateLocked as error:
            try:
                save_beside(place, base, saved)
            except BlockingIOError:
                continue
            holder = f"process {error.pid}" if error.pid else "the process"
            return f"saved; {holder} that has the file takes it over with its next change"
    raise Refusal(f"{persistedstate._shown(place)}: scripts take the file and let it go all the time")
