"""The present text of a state, or of a part of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from persistedstate import (
    _block,
    _column,
    _Document,
    _Editor,
    _inline,
    _Odd,
    _parsed,
    _plain,
    _read_file,
    _renewed,
    _replay,
    _Root,
    _same,
    _Tree,
)
from persistedstate_tools.paths import Step, resolve


def read_state(path: str) -> tuple[_Document, _Root]:
    """Read a file, without a lock: the text of its snapshot, and the state with all records applied."""
    stream = _parsed(path, _read_file(path)[0])
    root = _Root(stream.value, _Tree(path))
    _replay(root, stream, path)
    return stream.document, root


def text_of(document: _Document, root: _Root, steps: Sequence[Step]) -> str:
    """Return the text that a vacuum would write, or a part of it; raises Refusal where there is none."""
    keys, node = resolve(root, steps)
    document = _renewed(document, root)
    text = _excerpt(document, keys, _plain(root), _plain(node)) if keys else document.text() or "{}"
    return text if text.endswith("\n") else f"{text}\n"


def _excerpt(document: _Document, keys: list[Any], state: Any, value: Any) -> str:
    """Return the text of a part, with its comments, at the left margin; where that cannot be cut out, it is new."""
    if not isinstance(value, (dict, list)) or not value:
        return _inline(value)
    with suppress(Exception):
        text = _cut_out(document, keys, state)
        whole = f"part:\n{text}" if type(value) is list else text
        found = _Document.read(whole)[1]
        if _same(found["part"] if type(value) is list else found, value):
            return text
    return _block(value, 0)


def _cut_out(document: _Document, keys: list[Any], state: Any) -> str:
    """Return the lines below the entry that a path leads to, or its value in flow style."""
    piece = document.pieces[keys[0]]
    editor = _Editor(document.version, document._anchors_above(keys[0]), {}, odd=keys[0] in document.odd)
    parts, state = editor._anatomy(piece), state[keys[0]]
    for key in keys[1:]:
        pieces, _ = editor._split(parts.below, type(state))
        parts = editor._anatomy(pieces[list(state).index(key) if type(state) is dict else key])
        state = state[key]
    if parts.value:
        raise _Odd
    return re.sub(rf"^ {{0,{_column(parts.below)}}}", "", parts.below, flags=re.MULTILINE)
