"""Warnings of what a person wrote and no call of a store can find, at the line of the script that opened the store."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from persistedstate import StateDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistedstate import PersistedState

#: So many places are named in a warning.
_NAMED = 3
#: Whose code stands between a script and a store.
_BETWEEN = {"asyncio", "beartype", "constelite", "contextlib", "key_value", "persistedstate_stores", "pystator"}


def warn_of_places(places: Sequence[str], before: str, after: str, separator: str = ", ") -> None:
    """Warn (RuntimeWarning) of some places, of which the first few are named, if there are any."""
    if places:
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        shown = separator.join(places[:_NAMED])
        warnings.warn(f"{before} {shown}{more}{after}", RuntimeWarning, stacklevel=_level_of_script())


def warn_of_ids(state: PersistedState, *sections: str) -> None:
    """Warn of keys in these top-level mappings that are no strings: a person forgot the quotes around an id."""
    found = [(section, state.get(section)) for section in sections]
    places = [
        f"{section}.{key!r}"
        for section, node in found
        if isinstance(node, StateDict)
        for key in node
        if not isinstance(key, str)
    ]
    warn_of_places(places, "no call finds", ': an id is a string, write "1", not 1')


def _level_of_script() -> int:
    """Return the `stacklevel` with which a warning of the function that asks points into the script."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - there is no other way before Python 3.12
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    return level
