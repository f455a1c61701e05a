"""A third reader of state files, stricter than PyYAML and ruamel.yaml: npm's `yaml` (YAML 1.2), in a process of node.

`.ci/run` installs the package into `.venvs/node`; PERSISTEDSTATE_NODE_MODULES names another folder. Where node or the
package is missing, MISSING says so, and nothing is checked.

    assert_valid(before, after, expected)   # what was valid is valid again, and holds what is expected
"""

from __future__ import annotations

import atexit
import base64
import datetime as dt
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import oracle
import textual
import yaml
from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parent
MODULES = Path(
    os.environ.get("PERSISTEDSTATE_NODE_MODULES", FOLDER.parents[1].joinpath(".venvs", "node", "node_modules"))
)
NODE = shutil.which("node")
#: Why there is no strict reader here, "" if there is one.
MISSING = "no node" if NODE is None else "" if MODULES.joinpath("yaml").is_dir() else f"no package yaml in {MODULES}"
_LONE_RETURN = re.compile(rb"\r(?!\n)")


class Plain(str):
    """A string without quotes: what YAML 1.2 core has no type for, a date or 1_000, may be something else to others."""

    __slots__ = ()


def _start() -> subprocess.Popen[str] | None:
    """Start node, at the import, so that no test finds descriptors that were not there before it."""
    if MISSING:
        return None
    process = subprocess.Popen(
        [str(NODE), str(FOLDER / "strict_reader.js"), str(MODULES)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    atexit.register(_stop, process, os.getpid())
    return process


def _stop(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:
        process.communicate()


_process = _start()


def read(text: str) -> tuple[list[str], list[Any]]:
    """Return what is wrong with a stream, and the values of its documents."""
    assert _process is not None, MISSING
    assert _process.stdin is not None
    assert _process.stdout is not None
    _process.stdin.write(json.dumps(text) + "\n")
    _process.stdin.flush()
    answer = json.loads(_process.stdout.readline())
    return answer["errors"], [_value(value) for value in answer["values"]]


def _value(said: Any) -> Any:
    if isinstance(said, list):
        return [_value(item) for item in said]
    if not isinstance(said, dict):
        return said
    ((kind, content),) = said.items()
    if kind == "map":
        return {_value(key): _value(item) for key, item in content}
    kinds: dict[str, Any] = {
        "plain": Plain, "int": int, "bytes": base64.b64decode, "date": dt.datetime.fromisoformat,
        "float": lambda text: float(text.replace("Infinity", "inf")),
    }  # fmt: skip
    return kinds[kind](content.replace("Z", "+00:00") if kind == "date" else content)


def state(data: bytes) -> Any:
    """Return the state in a file, snapshot and records; None if the reader refuses the text."""
    errors, documents = read(data.decode())
    if errors:
        return None
    snapshot, *changes = documents or [None]
    return oracle.replay({} if snapshot is None else snapshot, changes, is_told=False)  # it has types of its own


def agrees(found: Any, expected: Any) -> bool:
    """Tell whether the strict reader found what is expected; the order of keys counts."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return len(found) == len(expected) and all(
            agrees(key, wanted) and agrees(item, expected[wanted])
            for (key, item), wanted in zip(found.items(), expected, strict=True)
        )
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    if isinstance(found, str):
        return str(found) == expected if isinstance(expected, str) else _may_be(found, expected)
    if isinstance(found, dt.datetime):  # of a text in YAML 1.1
        return isinstance(expected, dt.date) and found == _instant(expected)
    return oracle.same(found, expected)


def _may_be(found: str, expected: Any) -> bool:
    """Tell whether another reader takes a string without quotes for what is expected."""
    others = [yaml.safe_load, YAML(typ="safe", pure=True).load]
    try:
        return any(oracle.same(load(found), expected) for load in others)
    except Exception:  # noqa: BLE001 - whatever it is, it is something else
        return False


def _instant(moment: Any) -> dt.datetime:
    full = moment if isinstance(moment, dt.datetime) else dt.datetime(moment.year, moment.month, moment.day)
    return full if full.tzinfo else full.replace(tzinfo=dt.timezone.utc)


def assert_valid(before: bytes, after: bytes, expected: Any) -> None:
    """A text that was valid for the strict reader is valid after a change, too, and holds what is expected.

    Unlike YAML 1.2 it takes a lone carriage return for no line end, and gives a block scalar one that the file lacks.
    """
    if MISSING or _LONE_RETURN.search(before) or read(before.decode())[0]:
        return
    errors, _ = read(after.decode())
    assert not errors, f"{errors[0]}\n{after.decode()}"
    found = state(after)
    if b"<<" in before:  # where keys come out of a merge their order is nobody's promise
        found, expected = textual.by_name(found), textual.by_name(expected)
    is_unended = re.search(rb"[|>]", after) and not after.endswith(b"\n")
    assert is_unended or agrees(found, expected), f"{found!r}\n is not\n{expected!r}\nin\n{after.decode()}"
