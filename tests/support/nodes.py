"""What is done to a dict or a list in some place of a state, and to a plain one beside it, with the same outcome."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from checks import check, records, unwrap

from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    from pathlib import Path

#: Puts a value somewhere into a state, and returns the node that stands there.
Place = Callable[[PersistedState, Any], Any]
Operation = Callable[[Any], Any]


def root(state: PersistedState, value: Any) -> Any:
    state.clear()
    state.update(value)
    return state


def top(state: PersistedState, value: Any) -> Any:
    state.node = value
    return state.node


def in_dict(state: PersistedState, value: Any) -> Any:
    state.a = {"b": {"before": 0, "node": value, "after": []}}
    return state.a["b"]["node"]


def in_list(state: PersistedState, value: Any) -> Any:
    state.a = [0, [[], value, 1]]
    return state.a[1][1]


#: Where lists can be. A dict can be the root, too.
PLACES: dict[str, Place] = {"top": top, "in_dict": in_dict, "in_list": in_list}


def setting(key: Any, value: Any) -> Operation:
    return lambda x: operator.setitem(x, key, value)


def deleting(key: Any) -> Operation:
    return lambda x: operator.delitem(x, key)


def outcome(operation: Operation, target: Any) -> Any:
    """Return what the operation returns, in plain containers, or the type of what it raises, of a KeyError all."""
    try:
        return unwrap(operation(target))
    except KeyError as error:
        return KeyError, error.args
    except Exception as error:  # noqa: BLE001 - the point is to compare whatever it is
        return type(error)


def compare(state: PersistedState, path: Path, place: Place, operation: Operation, content: Any) -> int:
    """Do the same to a node and to a plain one, assert the same outcome and content; return the number of records.

    The node is in the snapshot before, so that the vacuum at the end has old text to change.
    """
    node, model = place(state, content), copy.deepcopy(content)
    state.vacuum()

    result, expected = outcome(operation, node), outcome(operation, model)
    written = records(path)

    assert result == expected
    assert repr(node) == repr(model)
    check(state, path, plain(state))
    state.vacuum()
    check(state, path, plain(state))
    assert repr(node) == repr(model)
    return written
