"""The commands that look at a file once, change it or mend it. Those that only read take no lock and write nothing."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import persistedstate
from persistedstate import PersistedState, Problem, StateDict, StateError, StateList, _content, _flow_text, _plain
from persistedstate_tools.excerpts import contents, read_state, text_of
from persistedstate_tools.messages import NO, Refusal, is_address, shown_line
from persistedstate_tools.paths import key_in, parse_path, path_text, resolve, twin
from persistedstate_tools.values import json_text, yaml_value


def run_show(options: Namespace) -> int:
    document, root = read_state(options.file)
    steps = parse_path(options.path) if options.path is not None else []
    if options.json:
        print(json_text(_plain(resolve(root, steps)[1]), 2))
    else:
        sys.stdout.write(text_of(document, root, steps))
    return 0


def run_get(options: Namespace) -> int:
    steps = parse_path(options.path)
    value = _plain(resolve(read_state(options.file)[1], steps)[1])
    print(json_text(value, None) if options.json else value if type(value) is str else _flow_text(value, quoted=False))
    return 0


def check_is_there(place: str) -> None:
    """Refuse a place where there is no state: a command that changes one makes none."""
    try:
        _ = contents(place) if is_address(place) else persistedstate._system.stat(place)
    except FileNotFoundError:
        if is_address(place):
            raise Refusal(f"{persistedstate._shown(place)}: there is no such state") from None
        has_folder = os.path.isdir(os.path.dirname(place) or os.curdir)
        rest = f"; to begin with an empty state: touch {place}" if has_folder else ", nor its folder"
        raise Refusal(f"{place}: no such file{rest}") from None


def opened(place: str, wait: float = 0.0, mode: int | None = None) -> PersistedState:
    """Open a state, together with those who share it."""
    is_shared = not is_address(place) and persistedstate._is_shared(os.path.realpath(place))
    return PersistedState(place, _wait=wait, _shared=is_shared, _mode=mode)


@contextmanager
def _opened(options: Namespace) -> Iterator[PersistedState]:
    """Open a state that is there for a change, together with those who share it."""
    check_is_there(options.file)
    with opened(options.file, options.wait) as state:
        try:
            yield state
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, StateError) else Refusal(str(error)) from None


def run_set(options: Namespace) -> int:
    *above, last = parse_path(options.path)
    value = _value(options)
    with _opened(options) as state, state.transaction():
        keys, node = resolve(state, above)
        is_new = type(_content(node)) is dict and not any(twin(_content(node), wanted) for wanted in last)
        key = last[0] if is_new else key_in(node, last, keys)
        if is_new and key in node:
            raise Refusal(f"{path_text([*keys, key])}: Python takes it for a key that is there; delete that first")
        node[key] = value
    return 0


def run_delete(options: Namespace) -> int:
    steps = parse_path(options.path)
    with _opened(options) as state, state.transaction():
        keys, _ = resolve(state, steps)
        del resolve(state, steps[:-1])[1][keys[-1]]
    return 0


def run_append(options: Namespace) -> int:
    steps, value = parse_path(options.path), _value(options)
    with _opened(options) as state, state.transaction():
        keys, node = resolve(state, steps)
        if not isinstance(node, StateList):
            kind = "a mapping" if isinstance(node, StateDict) else shown_line(_flow_text(node, quoted=False))
            raise Refusal(f"{path_text(keys)} is {kind}, no list: nothing can be appended")
        node.append(value)
    return 0


def _value(options: Namespace) -> Any:
    return options.value if options.string else yaml_value(options.value)


def run_check(options: Namespace) -> int:
    problems = persistedstate.check(options.file)
    _print_problems(persistedstate._shown(options.file), problems)
    if not problems:
        print(f"{persistedstate._shown(options.file)}: sound")
        print_notes(persistedstate._shown(options.file), contents(options.file).decode(errors="replace"))
    return NO if problems else 0


def print_notes(name: str, text: str, known: Container[str] | None = None) -> None:
    """Tell what in a text is hardly meant, but in lines that are known."""
    from persistedstate_tools.notes import notes

    for problem in notes(text, known):
        print(f"{name}: note: {problem}")


def _print_problems(name: str, problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(f"{name}: {problem}")


def run_repair(options: Namespace) -> int:
    name, is_dry = options.file, options.dry_run
    if is_address(name):
        raise Refusal(f"{persistedstate._shown(name)}: repair is for files; a server keeps a state whole")
    done = persistedstate.repair(name, dry_run=is_dry, wait=options.wait)
    _print_problems(name, done.problems)
    if done.problems:
        beside = os.path.join(os.path.dirname(name), os.path.basename(done.damaged or f"{name}.damaged-<time>"))
        print(f"{name}: {'would be ' if is_dry else ''}repaired, {_sizes(done.before, done.after)}")
        print(f"{name}: what {'would be' if is_dry else 'was'} cut {'would be' if is_dry else 'is'} in {beside}")
    else:
        print(f"{name}: sound, nothing to repair")
    return 0


def _sizes(before: int, after: int) -> str:
    from persistedstate_tools.differences import Style

    return f"{before} {Style().arrow} {after} bytes"


def run_vacuum(options: Namespace) -> int:
    with _opened(options) as state:
        before = len(contents(options.file))
        state.vacuum()
    print(f"{persistedstate._shown(options.file)}: {_sizes(before, len(contents(options.file)))}")
    return 0
