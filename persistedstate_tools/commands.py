"""One function for each command. Those that read take no lock and write nothing.

What only one command needs is imported when it is used: a shell waits for each call.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import persistedstate
from persistedstate import (
    PersistedState,
    StateDict,
    StateError,
    StateList,
    _content,
    _flow_text,
    _plain,
    check,
    repair,
)
from persistedstate_tools.excerpts import _read_state, _text_of
from persistedstate_tools.messages import _NO, _complain, _Refusal, _shown
from persistedstate_tools.paths import _key_in, _parse_path, _path_text, _resolve, _twin
from persistedstate_tools.values import _json_text, _yaml_value

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator

    from persistedstate import Problem
    from persistedstate_tools.differences import _Change
    from persistedstate_tools.following import _Teller
    from persistedstate_tools.style import _Style


def _show(options: Namespace) -> int:
    document, root = _read_state(options.file)
    steps = _parse_path(options.path) if options.path is not None else []
    if options.json:
        print(_json_text(_plain(_resolve(root, steps)[1]), 2))
    else:
        sys.stdout.write(_text_of(document, root, steps))
    return 0


def _get(options: Namespace) -> int:
    steps = _parse_path(options.path)
    value = _plain(_resolve(_read_state(options.file)[1], steps)[1])
    print(_json_text(value, None) if options.json else value if type(value) is str else _flow_text(value, quoted=False))
    return 0


@contextmanager
def _opened(options: Namespace) -> Iterator[PersistedState]:
    """Open a file that is there for a change."""
    try:
        persistedstate._system.stat(options.file)
    except FileNotFoundError:
        has_folder = os.path.isdir(os.path.dirname(options.file) or os.curdir)
        rest = f"; to begin with an empty state: touch {options.file}" if has_folder else ", nor its folder"
        raise _Refusal(f"{options.file}: no such file{rest}") from None
    with PersistedState(options.file, _wait=options.wait) as state:
        try:
            yield state
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, StateError) else _Refusal(str(error)) from None


def _set(options: Namespace) -> int:
    *above, last = _parse_path(options.path)
    value = _value(options)
    with _opened(options) as state:
        keys, node = _resolve(state, above)
        is_new = type(_content(node)) is dict and not any(_twin(_content(node), wanted) for wanted in last)
        key = last[0] if is_new else _key_in(node, last, keys)
        if is_new and key in node:
            raise _Refusal(f"{_path_text([*keys, key])}: Python takes it for a key that is there; delete that first")
        node[key] = value
    return 0


def _delete(options: Namespace) -> int:
    steps = _parse_path(options.path)
    with _opened(options) as state:
        keys, _ = _resolve(state, steps)
        del _resolve(state, steps[:-1])[1][keys[-1]]
    return 0


def _append(options: Namespace) -> int:
    steps, value = _parse_path(options.path), _value(options)
    with _opened(options) as state:
        keys, node = _resolve(state, steps)
        if not isinstance(node, StateList):
            kind = "a mapping" if isinstance(node, StateDict) else _shown(_flow_text(node, quoted=False))
            raise _Refusal(f"{_path_text(keys)} is {kind}, no list: nothing can be appended")
        node.append(value)
    return 0


def _value(options: Namespace) -> Any:
    return options.value if options.string else _yaml_value(options.value)


def _log(options: Namespace) -> int:
    from persistedstate_tools.following import _Teller
    from persistedstate_tools.style import _Style

    teller, style = _Teller(options.file), _Style()
    style.print(teller.take_news())
    if options.follow:
        _tell_on(teller, options.file, style, teller.take_news)
    return 0


def _watch(options: Namespace) -> int:
    from persistedstate_tools.differences import _differences
    from persistedstate_tools.following import _part, _part_text, _Teller
    from persistedstate_tools.style import _Style

    teller, style = _Teller(options.file), _Style()
    steps = _parse_path(options.path) if options.path is not None else []
    if style.is_terminal:
        from persistedstate_tools.screen import _Screen

        _Screen(options.file, steps, teller, style).run()
        return 0
    before = _part(teller, steps)
    sys.stdout.write(_part_text(teller, steps))
    sys.stdout.flush()

    def news() -> list[_Change]:
        nonlocal before
        old, before = before, _part(teller, steps)
        return list(_differences(old, before, tuple(step[0] for step in steps)))

    _tell_on(teller, options.file, style, news)
    return 0


def _tell_on(teller: _Teller, name: str, style: _Style, news: Callable[[], list[_Change]]) -> None:
    """Print what changes, until Ctrl-C."""
    from persistedstate_tools.following import _looks

    said = ""
    for trouble in _looks(teller, name):
        if trouble and trouble != said:
            _complain(trouble)
        said = trouble
        style.print(news())
        if not _has_reader():
            raise BrokenPipeError


def _has_reader() -> bool:
    """Tell whether somebody still reads what is printed; True where the system does not tell."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError):
        return True


def _check(options: Namespace) -> int:
    problems = check(options.file)
    _print_problems(options.file, problems)
    if not problems:
        print(f"{options.file}: sound")
    return _NO if problems else 0


def _print_problems(name: str, problems: Iterable[Problem]) -> None:
    for line, column, reason, text in problems:
        print(f"{name}: line {line}, column {column}: {reason}\n    {_shown(text)}".rstrip())


def _repair(options: Namespace) -> int:
    name, is_dry = options.file, options.dry_run
    done = repair(name, dry_run=is_dry, wait=options.wait)
    _print_problems(name, done.problems)
    if done.problems:
        beside = os.path.join(os.path.dirname(name), os.path.basename(done.damaged or f"{name}.damaged-<time>"))
        print(f"{name}: {'would be ' if is_dry else ''}repaired, {_sizes(done.before, done.after)}")
        print(f"{name}: what {'would be' if is_dry else 'was'} cut {'would be' if is_dry else 'is'} in {beside}")
    else:
        print(f"{name}: sound, nothing to repair")
    return 0


def _sizes(before: int, after: int) -> str:
    from persistedstate_tools.style import _Style

    return f"{before} {_Style().arrow} {after} bytes"


def _vacuum(options: Namespace) -> int:
    with _opened(options) as state:
        before = persistedstate._system.stat(options.file).st_size
        state.vacuum()
    print(f"{options.file}: {_sizes(before, persistedstate._system.stat(options.file).st_size)}")
    return 0


def _diff(options: Namespace) -> int:
    from persistedstate_tools.differences import _differences
    from persistedstate_tools.style import _Style

    one, other = (_plain(_read_state(name)[1]) for name in (options.file, options.other))
    changes = list(_differences(one, other))
    _Style().print(changes)
    return _NO if changes else 0


def _demo(_: Namespace) -> int:
    from tempfile import TemporaryDirectory

    from persistedstate_tools.demo import _Demo

    with TemporaryDirectory(prefix="persistedstate-demo-") as folder:
        return _Demo(folder).run()
