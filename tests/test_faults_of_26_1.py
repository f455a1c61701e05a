"""The faults that users of persistedstate 26.1 met: each was reproduced with it, and is gone here.

"Killed" is a copy of the file taken while the state is open, and the exit of a real process that closes nothing.
"""

from __future__ import annotations

import copy
import math
import os
import textwrap
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import check, reopened, run_child
from oracle import same

from persistedstate import PersistedState, StateLocked, plain

if TYPE_CHECKING:
    from pathlib import Path


def killed(path: Path, code: str) -> dict[Any, Any]:
    """Run `code` with an open state `s` in a process that dies without closing; return what the next open shows."""
    run_child(
        f"""
        import contextlib, math, os, sys
        from persistedstate import PersistedState
        s = PersistedState(sys.argv[1])
        {textwrap.indent(textwrap.dedent(code), " " * 8).lstrip()}
        os._exit(0)
        """,
        path,
    )
    assert same(oracle.read(path), oracle.read(path, "ruamel"))
    with PersistedState(path) as state:
        found: dict[Any, Any] = plain(state)
    assert same(found, oracle.read(path))
    return found


# ---- l = s.setdefault("a", []); l.append(1) gave [] ----


def test_setdefault_returns_a_tracked_list(state: PersistedState, path: Path) -> None:
    items = state.setdefault("a", [])
    items.append(1)

    check(state, path, {"a": [1]})


def test_setdefault_returns_a_tracked_list_in_a_killed_process(path: Path) -> None:
    assert killed(path, 'l = s.setdefault("a", []); l.append(1)') == {"a": [1]}


# ---- A failed `del` was journalled before it failed; the file could not be opened ----


def test_a_failed_deletion_is_not_in_the_file(state: PersistedState, path: Path) -> None:
    state.a = [1]
    before = path.read_bytes()

    with pytest.raises(KeyError):
        del state["nope"]
    with pytest.raises(IndexError):
        del state["a"][9]

    assert path.read_bytes() == before
    check(state, path, {"a": [1]})


def test_a_failed_deletion_in_a_killed_process(path: Path) -> None:
    code = """
    s.a = [1]
    with contextlib.suppress(KeyError):
        del s["nope"]
    with contextlib.suppress(IndexError):
        del s["a"][9]
    s.b = 2
    """

    assert killed(path, code) == {"a": [1], "b": 2}


# ---- s.a.insert(-1, x), then a change in s.a[-1]; del s.a[-2] ----


def test_negative_indexes_are_written_as_what_they_mean(state: PersistedState, path: Path) -> None:
    state.a = [{}, {}]

    state.a.insert(-1, {"x": 1})
    state.a[-1]["last"] = True
    check(state, path, {"a": [{}, {"x": 1}, {"last": True}]})

    del state.a[-2]
    state.a[-1]["still"] = 1
    check(state, path, {"a": [{}, {"last": True, "still": 1}]})


def test_negative_indexes_in_a_killed_process(path: Path) -> None:
    code = """
    s.a = [{}, {}]
    s.a.insert(-1, {"x": 1})
    s.a[-1]["last"] = True
    del s.a[-2]
    s.a[-1]["still"] = 1
    """

    assert killed(path, code) == {"a": [{}, {"last": True, "still": 1}]}


# ---- 1e16, 1e-7, 1e22 became strings; nan and inf too ----


@pytest.mark.parametrize("number", [1e16, 1e-7, 1e22, math.nan, math.inf, -math.inf], ids=repr)
def test_floats_stay_floats(number: float, state: PersistedState, path: Path) -> None:
    state.f = number
    state.l = [number]

    check(state, path, {"f": number, "l": [number]})
    assert same(oracle.read(path, "ruamel"), {"f": number, "l": [number]})
    state.vacuum()
    check(state, path, {"f": number, "l": [number]})
    assert same(oracle.read(path, "ruamel"), {"f": number, "l": [number]})


def test_floats_stay_floats_in_a_killed_process(path: Path) -> None:
    found = killed(path, "s.l = [1e16, 1e-7, 1e22, math.nan, math.inf]")

    assert same(found, {"l": [1e16, 1e-7, 1e22, math.nan, math.inf]})


# ---- {1: 2, None: 3, True: 4} as a value came back with text keys, right only after a clean close ----


def test_keys_keep_their_types_before_and_after_a_close(path: Path) -> None:
    value = {1: 2, None: 3, True: 4, 2.5: 5, False: 6}  # noqa: F601 - as reported
    with PersistedState(path) as state:
        state.d = value
        check(state, path, {"d": value})
        assert same(plain(state.d), {1: 4, None: 3, 2.5: 5, False: 6})

    with PersistedState(path) as state:
        check(state, path, {"d": value})


def test_keys_keep_their_types_in_a_killed_process(path: Path) -> None:
    assert same(killed(path, "s.d = {1: 2, None: 3, True: 4}"), {"d": {1: 4, None: 3}})


# ---- Text with U+0085 or NUL could not be opened ----


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "\0", "a\0b", "\x85\0\x85"], ids=ascii)
def test_odd_characters_open(text: str, state: PersistedState, path: Path) -> None:
    state.t = {text: text}

    check(state, path, {"t": {text: text}})
    state.vacuum()
    check(state, path, {"t": {text: text}})


def test_odd_characters_in_a_killed_process(path: Path) -> None:
    assert killed(path, r"s.t = {'a\x85': 'b\0c'}") == {"t": {"a\x85": "b\0c"}}


# ---- Half a record at the end was a ParserError ----


def test_half_a_record_is_dropped_with_a_warning(path: Path) -> None:
    state = PersistedState(path, a=1)
    state.b = 2
    whole = path.read_bytes()
    state.c = ["three", 3]
    record = path.read_bytes()[len(whole) :]
    state.close()
    assert record.startswith(b"--- [")
    assert record.endswith(b"]\n")

    for length in range(len(record)):
        path.write_bytes(whole + record[:length])
        if length in (0, len(record) - 1):  # nothing of it, or all but the end of the line: both are whole
            state = PersistedState(path)
        else:
            with pytest.warns(RuntimeWarning, match=str(length)):
                state = PersistedState(path)
        expected = {"a": 1, "b": 2} | ({"c": ["three", 3]} if length == len(record) - 1 else {})
        check(state, path, expected)
        state.d = 4
        check(state, path, expected | {"d": 4})
        state.close()


def test_half_a_record_of_a_killed_process(path: Path) -> None:
    killed(path, "s.a = 1")
    with path.open("ab") as file:
        file.write(b'--- ["set",[],"a",')

    with pytest.warns(RuntimeWarning), PersistedState(path) as state:
        assert state == {"a": 1}


# ---- Two handles, alternating writes: one key was gone ----


def test_two_handles_in_a_process_are_one_state(path: Path) -> None:
    one = PersistedState(path)
    two = PersistedState(path)

    one.a = 1
    two.b = 2
    one.c = [1]
    two.c.append(2)

    for state in (one, two):
        check(state, path, {"a": 1, "b": 2, "c": [1, 2]})
    one.close()
    two.d = 3
    check(two, path, {"a": 1, "b": 2, "c": [1, 2], "d": 3})
    two.close()
    assert oracle.read(path) == {"a": 1, "b": 2, "c": [1, 2], "d": 3}


def test_a_second_process_is_refused(state: PersistedState, path: Path) -> None:
    state.a = 1

    pid = run_child(
        """
        import sys
        from persistedstate import PersistedState, StateLocked
        try:
            PersistedState(sys.argv[1])
        except StateLocked as error:
            print(error.pid)
        """,
        path,
    )

    assert int(pid) == os.getpid()
    state.b = 2
    check(state, path, {"a": 1, "b": 2})


def test_the_second_process_learns_who_holds_the_lock(path: Path) -> None:
    """The other way round: here the child holds it, and dies with it."""
    code = """
    import os, sys
    from persistedstate import PersistedState
    s = PersistedState(sys.argv[1], a=1)
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
    """
    import subprocess
    import sys

    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        with pytest.raises(StateLocked) as error:
            PersistedState(path)
        assert error.value.pid == pid
        assert str(pid) in str(error.value)
        child.communicate("")

    with PersistedState(path) as state:
        assert state == {"a": 1}


# ---- A file with comments and unsorted keys lost both on one assignment and a close ----

BY_HAND = """\
# how far the importer got
zeta: 1   # counts

alpha:
  # newest first
  - b.csv
  - a.csv
mid: 'x'
"""


def test_comments_and_key_order_stay(path: Path) -> None:
    path.write_text(BY_HAND, encoding="utf-8")

    with PersistedState(path) as state:
        state.zeta = 2
        assert list(state) == ["zeta", "alpha", "mid"]

    assert path.read_text(encoding="utf-8") == BY_HAND.replace("zeta: 1", "zeta: 2")


def test_key_order_survives_reopening(path: Path) -> None:
    with PersistedState(path, z=1, a={"y": 1, "b": 2}, m=3) as state:
        order = list(state), list(state.a)

    with PersistedState(path) as state:
        assert (list(state), list(state.a)) == order == (["z", "a", "m"], ["y", "b"])


# ---- What the report says beside the table ----


def test_slices_are_supported(state: PersistedState, path: Path) -> None:
    state.a = [1, 2, 3, 4]

    state.a[1:3] = ["x"]
    del state.a[::2]

    check(state, path, {"a": ["x"]})


def test_copies_of_a_state_are_plain(state: PersistedState) -> None:
    """`deepcopy` of a 26.1 state ended in TypeError or RecursionError."""
    state.a = [1]

    assert copy.deepcopy(state) == copy.copy(state) == state.copy() == {"a": [1]}
    assert type(state.copy()) is dict


def test_a_method_name_is_refused_as_attribute(state: PersistedState, path: Path) -> None:
    """26.1 stored it, and `state.items` was still the method."""
    with pytest.raises(AttributeError, match=r'use STATE\["items"\]'):
        state.items = 5  # type: ignore[method-assign, assignment]

    check(state, path, {})


def test_the_documented_lock_idiom_works(state: PersistedState, path: Path) -> None:
    state.counter = 0

    with state._thread_lock, state._thread_lock:
        state.counter += 1

    check(state, path, {"counter": 1})


def test_the_page_of_26_1(path: Path) -> None:
    """The examples of its page on the package index, as they stand there."""
    STATE = PersistedState(str(path), last_id=0, processed_items=[])  # noqa: N806
    for current_id in range(STATE.last_id + 1, 101):
        STATE.last_id = current_id
    STATE.setdefault("key", {})
    STATE["key"].setdefault("nested", 2)
    STATE.processed_items.append("<some item>")
    STATE["key"]["nested"] += 1
    expected = {"last_id": 100, "processed_items": ["<some item>"], "key": {"nested": 3}}

    check(STATE, path, expected)
    STATE.close()

    assert same(oracle.read(path), expected)
    assert reopened(path) == expected
