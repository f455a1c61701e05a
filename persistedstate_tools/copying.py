"""`copy`: a state, with its comments, from a file or server to another."""

from __future__ import annotations

import os
import stat
from argparse import Namespace
from contextlib import suppress
from typing import Any

from persistedstate import _plain, _same, _Saved, _shown
from persistedstate_tools.commands import opened
from persistedstate_tools.excerpts import read_state
from persistedstate_tools.messages import Refusal, is_address
from persistedstate_tools.renewal import put


def run_copy(options: Namespace) -> int:
    source, target = options.source, options.target
    if _is_same(source, target):
        raise Refusal(f"{_shown(target)}: is the same as {_shown(source)}")
    document, root = read_state(source)
    saved = _Saved(document.renewed(root._items).text().encode())
    if not _same(saved.value, _plain(root)):
        raise Refusal(f"{_shown(source)}: its text cannot be copied; vacuum it first")
    with opened(target, options.wait, _mode(source, target)) as state:

        def taken(present: dict[Any, Any]) -> Any:
            is_empty = not present and state._tree.document.text().strip() in ("", "{}")
            if not is_empty and not options.force:
                reason = "holds something already; nothing was changed, and --force replaces it"
                raise Refusal(f"{_shown(target)}: {reason}")
            return saved.value

        put(state, target, saved, taken)
    return 0


def _is_same(source: str, target: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(source, target)
    return source == target


def _mode(source: str, target: str) -> int | None:
    """Return the permissions of a new file: those of the file that is copied, which may be secret."""
    if is_address(source) or is_address(target) or os.path.exists(target):
        return None
    return stat.S_IMODE(os.stat(source).st_mode)
