"""What the stores with ids have in common: a person forgets the quotes around one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from persistedstate import StateDict

if TYPE_CHECKING:
    from persistedstate import PersistedState

#: So many places are named in a warning.
_NAMED = 3


def warn_of_ids(state: PersistedState, *sections: str) -> None:
    """Warn (RuntimeWarning) of keys in these top-level mappings that are no strings: no call can find them."""
    found = [(section, state.get(section)) for section in sections]
    places = [
        f"{section}.{key!r}"
        for section, node in found
        if isinstance(node, StateDict)
        for key in node
        if not isinstance(key, str)
    ]
    if places:
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        shown = ", ".join(places[:_NAMED])
        warnings.warn(f'no call finds {shown}{more}: an id is a string, write "1", not 1', RuntimeWarning, stacklevel=3)
