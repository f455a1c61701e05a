"""What a file holds, or the address of a state on a server; the present text of a state, or of a part of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from persistedstate import (
    _block,
    _column,
    _Document,
    _engine,
    _inline,
    _Odd,
    _parsed,
    _plain,
    _read_file,
    _replay,
    _Root,
    _same,
    _shown,
    _Top,
    _Tree,
)
from persistedstate_tools.paths import Step, resolve


def contents(place: str) -> bytes:
    """Return all that a file holds, or the log at an address, without a lock."""
    engine = _engine(place, fsync=False, readonly=True)
    if engine is None:
        return _read_file(place)[0]
    with closing(engine(place)) as journal:
        journal.open(None, 0.0)
        data: bytes = journal.data
        return data


def read_state(place: str) -> tuple[_Document, _Root]:
    """Read a file or log, without a lock: the text of its snapshot, and the state with all records applied."""
    path = _shown(place)
    stream = _parsed(path, contents(place))
    root = _Root(stream.value, _Tree(path))
    _replay(root, stream, path)
    stream.document.edits = root._tree.edits
    return stream.document, root


def text_of(document: _Document, root: _Root, steps: Sequence[Step]) -> str:
    """Return the text that a vacuum would write, or a part of it; raises Refusal where there is none."""
    keys, node = resolve(root, steps)
    document = document.renewed(root._items)
    text = _excerpt(document, keys, _plain(node)) if keys else document.text() or "{}"
    return text if text.endswith("\n") else f"{text}\n"


def _excerpt(document: _Document, keys: list[Any], value: Any) -> str:
    """Return the text of a part, with its comments, at the left margin; where that cannot be cut out, it is new."""
    if not isinstance(value, (dict, list)) or not value:
        return _inline(value)
    with suppress(Exception):
        text = _cut_out(document, keys)
        whole = f"part:\n{text}" if type(value) is list else text
        found = _Document.read(whole)[1]
        if _same(found["part"] if type(value) is list else found, value):
            return text
    return _block(value, 0)


def _cut_out(document: _Document, keys: list[Any]) -> str:
    """Return the lines below the entry that a path leads to."""
    container: Any = _Top(document)
    for key in keys:
        part = container.part(key)
        container = part.opened()
    if container is None or part.form.value:
        raise _Odd
    return re.sub(rf"^ {{0,{_column(part.form.below)}}}", "", part.form.below, flags=re.MULTILINE)
