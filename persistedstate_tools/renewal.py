"""Putting a text in the place of that of a state: one that a person made of it, or that of another state."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import persistedstate
from persistedstate import (
    _FLAGS,
    _QUIET,
    _TRIES,
    PersistedState,
    _BadText,
    _Document,
    _Journal,
    _journal_start,
    _LogTree,
    _merged,
    _Overtaken,
    _parsed,
    _plain,
    _read_file,
    _replay,
    _Root,
    _same,
    _Saved,
    _shown,
    _system,
    _take_over_attributes,
    _Tree,
    _write_all,
)
from persistedstate_tools.excerpts import contents, read_state
from persistedstate_tools.messages import Refusal

#: Seconds in which a script that runs must take up what a save needs first, and seconds between two looks for that.
_UPTAKE, _LOOK = 5.0, 0.05


def put(
    state: PersistedState, place: str, saved: _Saved, merged: Callable[[Any], Any], given: _Document | None = None
) -> None:
    """Let a state have a text, and the value that `merged` makes of the present one, in one turn; then read it back.

    given: what a person had changed, so that what others did to the text since is kept, too.
    """
    tree = state._tree
    with tree.turn():
        tree.resume()
        for _ in range(_TRIES):
            with suppress(_Overtaken):
                tree.look()
                basis: Any = tree.journal.basis
                if isinstance(tree, _LogTree):
                    from persistedstate_logs.journal import EDITED as basis  # noqa: N811
                text = saved if given is None else _interwoven(given, tree._renewed(), saved)
                document, value = _with_value(text, merged(_plain(tree.root)))
                tree._renew(document, basis, value)
                if contents(place) != document.text().encode():
                    raise Refusal(f"{_shown(place)}: reading back gives something else than what was written")
                return
    raise OSError(errno.EBUSY, "somebody keeps writing the file", tree.path)


def _interwoven(given: _Document, present: _Document, saved: _Saved) -> _Saved:
    """Return a person's text, with the present text of those entries of which they changed nothing."""
    documents = given, present, saved.original
    if len({(document.newline, document.column, document.single) for document in documents}) > 1:
        return saved
    was, now, ours = (document.pieces for document in documents)
    pieces = {key: now.get(key, piece) if was.get(key) == piece else piece for key, piece in ours.items()}
    pieces.update((key, piece) for key, piece in now.items() if key not in was and key not in ours)
    whole, before = saved.original.text(), "".join(ours.values())
    with suppress(_BadText):
        found = _Saved(whole.replace(before, "".join(pieces.values())).encode())
        if before and whole.count(before) == 1 and found.value.keys() == pieces.keys():
            return found
    return saved


def _with_value(saved: _Saved, value: dict[Any, Any]) -> tuple[Any, dict[Any, Any]]:
    try:
        return saved.with_value(value)
    except (ValueError, _BadText) as error:
        raise Refusal(f"the text cannot be merged with what was changed meanwhile ({error!r})") from None


def save_beside(path: str, base: dict[Any, Any], saved: _Saved) -> None:
    """Save over a file that a script has for itself, as an editor does: the script merges that by its own rules.

    The script compares with its last snapshot. What a person changed in something newer shows there only once the
    script has renewed the file, which a copy in the place of the file makes it do.

    Raises BlockingIOError where that has to be tried again, because the script renewed the file in the same moment.
    """
    deadline, is_asked = _system.now() + _UPTAKE, False
    while (data := _as_saved(path, base, saved)) is None:
        if not is_asked:
            _replace(path, None)
            is_asked = True
        if _system.now() > deadline:
            raise Refusal(
                f"{path}: the script that has the file made what you changed since it last renewed the file, and makes"
                " no change now at which it could do that again; try again when it does, or end it"
            )
        _system.sleep(_LOOK)
    if _is_overwritten(path, _replace(path, data)):
        root = read_state(path)[1]
        if not _same(_merged(base, _plain(root), saved.value), _plain(root)):
            raise BlockingIOError(errno.EAGAIN, "renewed just now", path)


def _is_overwritten(path: str, ours: os.stat_result) -> bool:
    """Tell whether the script perhaps put a snapshot over a file, unseen: before it takes up one, it waits longer."""
    start = _system.now()
    while os.path.samestat(_system.stat(path), ours):
        if _system.now() - start >= _QUIET:
            return False
        _system.sleep(_LOOK / 10)
    return True


def _as_saved(path: str, base: dict[Any, Any], saved: _Saved) -> bytes | None:
    """Return what an editor that had read the file would save; None where the script would not understand that."""
    stream = _parsed(path, _read_file(path)[0])
    text = stream.text
    root = _Root(stream.value, _Tree())
    snapshot = _plain(root)
    _replay(root, stream, path)
    value = _merged(base, snapshot, saved.value)
    wanted = _merged(base, _plain(root), saved.value)
    if not _same(_merged(snapshot, _plain(root), value), wanted):
        return None
    renewed = _with_value(saved, value)[0].text()
    data = (renewed if renewed.endswith("\n") else f"{renewed}\n").encode() + text[_journal_start(text) :].encode()
    again = _Saved(data)
    is_sound = _same(again.value, value) and again.first_record == _Saved(text.encode()).first_record
    return data if is_sound else None


def _replace(path: str, data: bytes | None) -> os.stat_result:
    """Put a file with other content in the place of one; None: the same content. One of several names is written.

    Returns what tells the file from others.
    """
    journal = _Journal(path)
    if data is not None and _system.stat(journal.path).st_nlink > 1:
        with open(journal.path, "wb") as file:
            file.write(data)
            return os.fstat(file.fileno())
    name = journal._temporary_path()
    source = _system.open(journal.path, os.O_RDONLY | _FLAGS)
    new = _system.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        _write_all(new, persistedstate._read_all(source) if data is None else data)
        _take_over_attributes(source, new)
        _system.fsync(new)
        if not os.path.samestat(_system.fstat(source), _system.stat(journal.path)):
            raise BlockingIOError(errno.EAGAIN, "renewed just now", path)
        _system.replace(name, journal.path)
        return _system.fstat(new)
    except BaseException:
        with suppress(OSError):
            _system.unlink(name)
        raise
    finally:
        _system.close(new)
        _system.close(source)
