"""Declared state: a subclass tells the types and defaults of its entries, and a person's edits are checked by them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import pickle
import re
import subprocess
import sys
import textwrap
import typing
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict

import oracle
import pytest
from checks import records
from editing import WAYS, save
from rounds import rounds
from test_shared import Peer

from persistedstate import PersistedState, StateCorrupt, plain

if TYPE_CHECKING:
    import random

ROOT = Path(__file__).resolve().parent.parent


def test_without_msgspec_a_class_that_declares_says_what_to_install() -> None:
    script = """\
    import sys
    sys.modules["msgspec"] = None
    from typing import ClassVar
    from persistedstate import PersistedState
    class Plain(PersistedState):
        _private: int = 3
        LIMIT: ClassVar[int] = 4
        def method(self): ...
    try:
        class Declared(PersistedState):
            last_id: int = 0
    except ModuleNotFoundError as error:
        print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == (
        "Declared declares types; the package msgspec, which checks them, is missing; pip install msgspec"
    )


def test_a_class_that_declares_nothing_imports_nothing() -> None:
    script = (
        "import sys\nfrom persistedstate import PersistedState\nclass Plain(PersistedState):\n    def f(self): ...\n"
    )
    script += "print([name for name in sys.modules if name in ('msgspec', 'typing', 'persistedstate_tools')])"
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


msgspec = pytest.importorskip("msgspec")
Meta = msgspec.Meta


#: Makes a class as a `class` statement does.
MAKE: Any = type(PersistedState)


class Job(TypedDict):
    name: str
    done: bool


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass
class Loose:
    x: int


class Importer(PersistedState):
    last_id: int = 0
    retry: Annotated[int, Meta(ge=1, le=10)] = 3
    jobs: list[Job] = []  # noqa: RUF012 - a default, copied
    limits: dict[str, dict[str, int]] = {"cpu": {"soft": 1, "hard": 2}}  # noqa: RUF012
    kind: Literal["a", "b"] | None = None
    name: str
    LIMIT: ClassVar[int] = 7
    _mine: int = 8


class Strict(Importer, undeclared=False):
    extra: float = 1


class Moving(PersistedState):
    mode: Mode = Mode.FAST
    at: Point | None = None


DEFAULTS: dict[str, Any] = {
    "last_id": 0, "retry": 3, "jobs": [], "limits": {"cpu": {"soft": 1, "hard": 2}}, "kind": None,
}  # fmt: skip
SNAPSHOT = """\
last_id: 41
retry:   3   # times
jobs:
- {name: fetch, done: no}
limits:
  cpu:
    soft: 1
    hard: 2
kind: a
"""
#: Wrong edits of SNAPSHOT: what is replaced, by what, and where and what the message says.
WRONG = {
    "type": ("3 ", "five ", 'line 2, column 10: retry: expected int, but it is "five"'),
    "range": ("3 ", "11 ", "line 2, column 10: retry: expected int <= 10, but it is 11"),
    "null": ("41", "", "line 1, column 8: last_id: expected int, but it is null"),
    "bool": ("41", "true", "line 1, column 10: last_id: expected int, but it is true"),
    "nested": ("done: no", "done: maybe", 'line 4, column 23: jobs[0].done: expected bool, but it is "maybe"'),
    "missing": (", done: no", "", 'line 4, column 3: jobs[0]: the key done is missing in {"name":"fetch"}'),
    "deep": ("hard: 2", "hard: two", 'line 8, column 11: limits.cpu.hard: expected int, but it is "two"'),
    "container": ("\n- {name: fetch, done: no}", " 1", "line 3, column 7: jobs: expected a list, but it is 1"),
    "literal": ("kind: a", "kind: c", 'line 9, column 7: kind: expected "a" or "b" or null, but it is "c"'),
    "literal's type": ("kind: a", "kind: 1", 'line 9, column 7: kind: expected "a" or "b" or null, but it is 1'),
}  # fmt: skip
#: `no` is a string in YAML 1.2.
SOUND = SNAPSHOT.replace("done: no", "done: false")


def test_the_values_of_the_class_are_the_defaults(path: Path) -> None:
    with Importer(path) as state:
        assert state == DEFAULTS
        assert path.read_text(encoding="utf-8").startswith(
            "last_id: 0\nretry: 3\njobs: []\nlimits:\n  cpu:\n    soft: 1\n"
        )
        state.jobs.append({"name": "fetch", "done": False})
        state.limits["cpu"]["soft"] = 5
        assert state.LIMIT + state._mine == 15

    with Importer(path.with_name("other.state"), retry=4) as state:
        assert state == {**DEFAULTS, "retry": 4}
    path.with_name("other.state").unlink()


@pytest.mark.parametrize(
    ("deleted", "expected"),
    [
        ("    hard: 2\n", "    hard: 2\n"),
        ("  cpu:\n    soft: 1\n    hard: 2\n", ""),
        ("retry:   3   # times\n", "retry: 3\n"),
    ],
)
def test_what_is_missing_comes_back_at_any_depth(path: Path, deleted: str, expected: str) -> None:
    path.write_text(SOUND.replace(deleted, "") if "cpu" not in deleted else SOUND.replace(deleted, "  gpu: {}\n"))

    with Importer(path) as state:
        found = plain(state)

    assert found["limits"]["cpu"] == {"soft": 1, "hard": 2}
    assert found["retry"] == 3
    assert expected in path.read_text(encoding="utf-8")
    with Importer(path, _readonly=True) as reader:
        assert reader == found


def test_a_reader_shows_what_is_missing(path: Path) -> None:
    path.write_text(SOUND.replace("    hard: 2\n", ""), encoding="utf-8")
    before = path.read_bytes()

    with Importer(path, _readonly=True) as reader:
        assert reader.limits == {"cpu": {"soft": 1, "hard": 2}}
    assert path.read_bytes() == before


def test_a_file_that_lacks_nothing_is_left_alone(path: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path):
        pass

    assert path.read_text(encoding="utf-8") == SOUND


@pytest.mark.parametrize("journal", ["", '--- ["set",[],"last_id",42]\n'], ids=["snapshot", "journal"])
@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_at_opening(path: Path, name: str, readonly: bool, journal: str) -> None:
    old, new, said = WRONG[name]
    if "last_id" in said and journal:
        journal = '--- ["set",[],"other",42]\n'
    text = (SOUND.replace("false", "no") if "no" in old else SOUND).replace(old, new, 1)
    if name not in ("nested", "missing"):
        text = text.replace("done: no", "done: false")
    path.write_text(text + journal, encoding="utf-8")

    with pytest.raises(StateCorrupt, match=re.escape(said)) as caught:
        Importer(path, _readonly=readonly)

    assert caught.value.text in text
    assert path.read_text(encoding="utf-8") == text + journal
    path.write_text(SOUND, encoding="utf-8")  # mended, it opens
    with Importer(path, _readonly=readonly) as state:
        assert state.last_id == 41


@pytest.mark.leaves("files")
@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_save_is_kept_beside_and_the_script_goes_on(path: Path, way: str) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path) as state:
        state.last_id = 42
        wrong = path.read_text(encoding="utf-8").replace("retry:   3", "retry:   five")
        save(path, wrong, way)
        with pytest.warns(
            RuntimeWarning, match=re.escape('\nline 2, column 10: retry: expected int, but it is "five"\n')
        ) as said:
            assert not state.refresh()
        assert (state.last_id, state.retry) == (42, 3)
        [kept] = path.parent.glob("*.edited-*")
        assert str(kept) in str(said[0].message)
        assert kept.read_text(encoding="utf-8") == wrong

        save(path, path.read_text(encoding="utf-8").replace("retry:   3", "retry:   4"), way)
        assert state.refresh()
        assert state.retry == 4
    assert "retry:   4   # times\n" in path.read_text(encoding="utf-8")


def test_what_a_save_lacks_comes_back(path: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path) as state:
        save(path, SOUND.replace("    hard: 2\n", "").replace("retry:   3", "retry:   4"))
        assert state.refresh()
        assert (state.limits["cpu"], state.retry) == ({"soft": 1, "hard": 2}, 4)


def test_what_the_script_deleted_does_not_come_back_with_a_save(path: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path) as state:
        del state["last_id"], state.limits["cpu"]["hard"]
        save(path, path.read_text(encoding="utf-8").replace("retry:   3", "retry:   4"))
        assert state.refresh()
        assert (state.limits["cpu"], state.retry, "last_id" in state) == ({"soft": 1}, 4, False)


class Full(PersistedState):
    capped: Annotated[dict[str, int], Meta(max_length=2)] = {"x": 1}  # noqa: RUF012
    last_id: int = 0


def test_a_default_for_which_a_mapping_has_no_room_does_not_come_back(path: Path) -> None:
    """With it, a save would be refused, and the file would not open again."""
    with Full(path) as state:
        del state.capped["x"]
        state.capped.update(a=1, b=2)
        save(path, path.read_text(encoding="utf-8").replace("last_id: 0", "last_id: 3"))
        assert state.refresh()
        found = plain(state)
    assert found == {"capped": {"a": 1, "b": 2}, "last_id": 3}
    with Full(path) as state:
        assert state == found
    with Full(path, _readonly=True) as reader:
        assert reader == found


def assign_again(state: Any) -> None:
    state.last_id = 1
    state.last_id = 2
    state.last_id = "x"


ASSIGNMENTS: dict[str, tuple[Any, str]] = {
    "attribute": (lambda s: setattr(s, "retry", "x"), 'STATE.retry: expected int, but it is "x"'),
    "again": (assign_again, "STATE.last_id: expected int"),
    "item": (lambda s: s.__setitem__("retry", 0), "STATE.retry: expected int >= 1, but it is 0"),
    "update": (lambda s: s.update(last_id=5, retry=0), "STATE.retry: expected int >= 1"),
    "append": (lambda s: s.jobs.append({"name": 1, "done": True}), "STATE.jobs[1].name: expected str, but it is 1"),
    "insert": (lambda s: s.jobs.insert(0, 1), "STATE.jobs[0]: expected a mapping, but it is 1"),
    "extend": (lambda s: s.jobs.extend([{"name": "x"}]), "STATE.jobs[0]: the key done is missing"),
    "slice": (lambda s: s.jobs.__setitem__(slice(0, 1), [2]), "STATE.jobs[0]: expected a mapping, but it is 2"),
    "nested": (lambda s: s.jobs[0].update(done=1), "STATE.jobs[0].done: expected bool, but it is 1"),
    "deep": (
        lambda s: s.limits["cpu"].__setitem__("soft", None),
        "STATE.limits.cpu.soft: expected int, but it is null",
    ),
    "new key": (lambda s: s.limits.setdefault("mem", {"soft": "x"}), "STATE.limits.mem.soft: expected int"),
    "delete": (lambda s: s.jobs[0].pop("done"), "STATE.jobs[0].done: this key is declared, and must be there"),
    "clear": (lambda s: s.jobs[0].clear(), "STATE.jobs[0].name: this key is declared, and must be there"),
    "literal": (lambda s: setattr(s, "kind", "c"), 'STATE.kind: expected "a" or "b" or null, but it is "c"'),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_what_the_script_assigns_is_checked(path: Path, name: str, inside: bool) -> None:
    assign, said = ASSIGNMENTS[name]
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path) as state:
        before, lines = plain(state), records(path)
        with pytest.raises(TypeError, match=re.escape(said)):
            if inside:
                with state.transaction():
                    assign(state)
            else:
                assign(state)
        if name != "again":
            assert (plain(state), records(path)) == (before, lines)


def test_defaults_at_any_depth_are_there_when_it_is_opened_in_a_transaction(path: Path) -> None:
    class Limited(PersistedState):
        limits: dict[str, int] = {"cpu": 4, "mem": 8}  # noqa: RUF012 - a default
        n: int = 0

    path.write_text("limits:\n  cpu: 1\n")
    wanted = {"limits": {"cpu": 1, "mem": 8}, "x": 1, "n": 0}
    with PersistedState(path) as state:
        with state.transaction():
            state.x = 1
            same_one = Limited(path)
            assert plain(same_one) == wanted
        same_one.close()
        assert plain(state) == oracle.read(path) == wanted


@pytest.mark.parametrize("value", ["2024-01-31", 1, 1.5, True, "eA=="])
def test_the_short_way_is_checked_too(path: Path, value: Any) -> None:
    kinds = {"day": dt.date | None, "raw": bytes | None, "flag": Literal["x"] | None}
    kept = MAKE("Kept", (PersistedState,), {"__annotations__": kinds})
    with kept(path) as state:
        for name in kinds:
            setattr(state, name, None)
            setattr(state, name, None)
            with pytest.raises(TypeError, match=rf"STATE\.{name}: expected"):
                setattr(state, name, value)
        assert state._root._heads.keys() == kinds.keys()
        assert state == dict.fromkeys(kinds)


def test_what_is_right_can_be_assigned(path: Path) -> None:
    with Importer(path) as state:
        for value in (1, 2, 3):
            state.last_id = value
        state.jobs += [{"name": "x", "done": False}]
        state.jobs[0]["done"] = True
        state.jobs.sort(key=lambda job: job["name"])
        state.limits["mem"] = {"soft": 5}
        state.kind = "b"
        state.other = object.__name__
        del state.retry
        state.jobs.clear()
        assert state.last_id == 3
        found = plain(state)
    with PersistedState(path) as again:
        assert again == found


def test_unchecked_all_can_be_assigned_and_edits_are_checked_all_the_same(path: Path) -> None:
    with Importer(path, _check=False) as state:
        state.last_id = 1
        state.last_id = 2
        assert state._root._heads
        state.retry = "many"  # type: ignore[assignment]

    with pytest.raises(StateCorrupt, match="retry: expected int"):
        Importer(path, _check=False)


def test_undeclared_keys_are_allowed_unless_the_class_says_otherwise(path: Path) -> None:
    with Importer(path, more=1) as state:
        state.yet = "more"
    with pytest.raises(StateCorrupt, match='more: Strict declares no "more"; there are last_id, retry, '):
        Strict(path)
    path.unlink()
    with Strict(path) as strict:
        assert strict == {**DEFAULTS, "extra": 1}
        with pytest.raises(TypeError, match=r"STATE\.yet: Strict declares no"):
            strict.yet = 1
        strict.extra = 2
    with pytest.raises(TypeError, match='declares no "more"'):
        Strict(path, more=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("name", "str"),
        ("retry", "int"),
        ("jobs", "list[Job]"),
        ("limits", "dict[str, dict[str, int]]"),
        ("kind", '"a" or "b" | None'),
    ],
)
def test_a_missing_attribute_tells_file_and_type(path: Path, name: str, said: str) -> None:
    with Importer(path) as state:
        state.pop(name, None)
        with pytest.raises(AttributeError, match=rf"{path}.*'{name}'.*it is declared as {re.escape(said)}$"):
            getattr(state, name)


class Named(TypedDict):
    name: str


if sys.version_info >= (3, 11):

    class Noted(TypedDict):
        name: str
        note: typing.NotRequired[str]

else:

    class Noted(Named, total=False):
        note: str


class Notes(PersistedState):
    notes: list[Noted] = []  # noqa: RUF012
    odd: Literal[1] | float | None = None


def test_what_is_not_required_may_be_missing_and_is_checked(path: Path) -> None:
    with Notes(path) as state:
        state.notes.append({"name": "x"})
        state.notes[0]["note"] = "y"
        with pytest.raises(TypeError, match=r"STATE\.notes\[0\]\.note: expected str, but it is 1"):
            state.notes[0]["note"] = 1  # type: ignore[typeddict-item]
        del state.notes[0]["note"]
        with pytest.raises(TypeError, match=r"STATE\.odd: expected int or float or null, but it is \[\]"):
            state.odd = []  # type: ignore[assignment]


def test_enum_and_frozen_dataclass_come_back_as_declared(path: Path) -> None:
    with Moving(path) as state:
        assert (state.mode, state.at) == (Mode.FAST, None)
        state.mode, state.at = Mode.SLOW, Point(1, 2)
        assert (state["mode"], state["at"]) == ("slow", {"x": 1, "y": 2})
    with Moving(path) as state:
        assert (state.mode, state.at) == (Mode.SLOW, Point(1, 2))
        with pytest.raises(TypeError, match=r"STATE\.mode: expected"):
            state.mode = "other"  # type: ignore[assignment]
        del state.mode
        with pytest.raises(AttributeError, match="declared as Mode"):
            _ = state.mode
    path.write_text("mode: quick\n", encoding="utf-8")
    with pytest.raises(StateCorrupt, match='line 1, column 7: mode: expected "fast" or "slow", but it is "quick"'):
        Moving(path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (set[int], r"X.x: a state cannot hold set\[int\]"),
        (tuple[int, ...], "a state cannot hold tuple"),
        (complex, "a state cannot hold complex; use None, bool, int"),
        (list[set[int]], "a state cannot hold set"),
        (Loose, "a state cannot hold Loose; use a TypedDict, or a frozen dataclass"),
        (list[Point], "Point may be an attribute"),
        (dict[str, Mode], "Mode may be an attribute"),
        (Job | dict[str, int], "more than one dict-like type"),
    ],
)
def test_types_that_a_state_cannot_hold_are_refused_when_the_class_is_made(kind: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        MAKE("X", (PersistedState,), {"__annotations__": {"x": kind}})


def test_a_wrong_default_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match=r'the default of X\.x: expected int, but it is "one"'):
        MAKE("X", (PersistedState,), {"__annotations__": {"x": int}, "x": "one"})
    with pytest.raises(TypeError, match=r"the default of Importer\.retry: expected int <= 10"):
        Importer(path, retry=20)
    assert not path.exists()


def test_a_name_of_a_method_is_refused() -> None:
    with pytest.raises(AttributeError, match="items is a method"):
        MAKE("X", (PersistedState,), {"__annotations__": {"items": int}})


def test_a_second_object_that_declares_nothing_is_held_to_it(path: Path) -> None:
    with Importer(path) as state, PersistedState(path) as other:
        with pytest.raises(TypeError, match=r"STATE\.retry"):
            other.retry = "x"
        other.retry = 5
        assert state.retry == 5


def test_what_is_open_is_checked_when_a_class_comes_to_it(path: Path) -> None:
    with PersistedState(path, retry="x") as state:
        with pytest.raises(StateCorrupt, match="retry: expected int"):
            Importer(path)
        state.retry = 5
        with Importer(path) as importer:
            assert importer.retry == 5


def test_edits_of_a_killed_file_are_checked_before_anything_is_written(path: Path) -> None:
    text = 'retry: five\n--- ["was",["retry"],3]\n--- ["set",[],"retry",4]\n--- ["set",[],"las'
    path.write_text(text, encoding="utf-8")

    with pytest.raises(StateCorrupt, match='retry: expected int, but it is "five"'):
        Importer(path)

    assert path.read_text(encoding="utf-8") == text
    path.write_text(text.replace("five", "5"), encoding="utf-8")
    with pytest.warns(RuntimeWarning, match="dropped"):
        state = Importer(path)
    assert state.retry == 5
    assert path.read_text(encoding="utf-8").startswith("retry: 5\n")
    state.close()


def test_what_a_record_set_has_no_line(path: Path) -> None:
    path.write_text('retry: 3\nkind: c\n--- ["set",[],"retry","five"]\n', encoding="utf-8")

    with pytest.raises(StateCorrupt) as caught:
        Importer(path)
    assert str(caught.value) == (
        f'{path}: retry: expected int, but it is "five"\n'
        "mend it in an editor, or with `persistedstate set FILE retry VALUE`"
    )
    assert (caught.value.line, str(pickle.loads(pickle.dumps(caught.value)))) == (0, str(caught.value))

    path.write_text('retry: 3\nkind: c\n--- ["set",[],"last_id",7]\n', encoding="utf-8")
    with pytest.raises(StateCorrupt) as caught:
        Importer(path)
    assert str(caught.value) == (
        f'{path}: line 2, column 7: kind: expected "a" or "b" or null, but it is "c"\n    kind: c\n          ^\n'
        "mend it in an editor, or with `persistedstate set FILE kind VALUE`"
    )


def test_the_advice_fits_what_is_wrong(path: Path) -> None:
    path.write_text("jobs: [{name: x, done: 3}]\n", encoding="utf-8")
    with pytest.raises(StateCorrupt, match=r"with `persistedstate set FILE 'jobs\[0\]\.done' VALUE`$"):
        Importer(path)
    path.write_text("more: 1\n", encoding="utf-8")
    with pytest.raises(StateCorrupt, match=r"in an editor, or with `persistedstate delete FILE more`$"):
        Strict(path)
    assert str(StateCorrupt("redis://x/y", "bad", 1, 2, "z")).endswith("z\n     ^\nsee `persistedstate check ADDRESS`")


# ---- What the script itself holds, and other classes -----------------------------------------------------------------


@pytest.mark.leaves("files")
def test_a_good_edit_is_taken_where_the_script_holds_what_is_not_as_declared(path: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path, _check=False) as state:
        state.retry = "many"  # type: ignore[assignment]
        state.jobs.append(5)  # type: ignore[arg-type]
        save(path, path.read_text(encoding="utf-8").replace("41", "50").replace("soft: 1", "soft: 7"))
        assert state.refresh()
        assert (state["last_id"], state["limits"]["cpu"]["soft"], state["retry"]) == (50, 7, "many")

        save(path, path.read_text(encoding="utf-8").replace("jobs:", "jobs:\n- {name: first, done: true}"))
        assert state.refresh()
        assert state.jobs[0]["name"] == "first"

        save(path, path.read_text(encoding="utf-8").replace("soft: 7", "soft: x"))
        with pytest.warns(RuntimeWarning, match=re.escape('limits.cpu.soft: expected int, but it is "x"')):
            assert not state.refresh()
        save(path, path.read_text(encoding="utf-8").replace("retry:   many", "retry:   lots"))
        with pytest.warns(RuntimeWarning, match=re.escape('retry: expected int, but it is "lots"')):
            assert not state.refresh()


@pytest.mark.leaves("files")
def test_a_closed_object_rules_no_longer(path: Path) -> None:
    with PersistedState(path) as state:
        Strict(path).close()
        state.retry, state.more = "many", 1
        save(path, path.read_text(encoding="utf-8") + "yet: 1\n")
        assert state.refresh()
        state.retry = 3
        state.retry = 4
        assert state._root._heads  # the short way is open again
        del state.more, state.yet

        first, second = Importer(path), Importer(path)
        unchecked = Importer(path, _check=False)
        first.close()
        with pytest.raises(TypeError, match=r"STATE\.retry: expected int"):
            state.retry = "many"
        second.close()
        state.retry = "many"
        save(path, path.read_text(encoding="utf-8").replace("last_id: 0", "last_id: x"))
        with pytest.warns(RuntimeWarning, match="last_id: expected int"):
            assert not unchecked.refresh()
        with pytest.raises(StateCorrupt):
            Importer(path)
        unchecked.close()
        state.last_id = "x"


def test_an_object_that_is_gone_but_not_closed_still_rules_over_its_nodes(path: Path) -> None:
    jobs = Importer(path).jobs
    with PersistedState(path), pytest.raises(TypeError, match=r"STATE\.jobs\[0\]: expected a mapping"):
        jobs.append(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [dict[str, int] | list[str], list[str] | dict[str, int], list[str] | Job | None])
def test_what_is_in_a_union_of_a_mapping_and_a_list_is_checked_by_the_one_that_fits(path: Path, kind: Any) -> None:
    either = MAKE("Either", (PersistedState,), {"__annotations__": {"x": kind}})
    good, bad = ({"name": "y", "done": True}, ("name", 1)) if "Job" in str(kind) else ({"name": 1}, ("name", "y"))
    with either(path, x=["a"]) as state:
        state.x.append("b")
        state.x[0] = "c"
        state.x[0] = "d"
        with pytest.raises(TypeError, match=r"STATE\.x\[2\]: expected str, but it is 1"):
            state.x.append(1)
        state.x = good
        with pytest.raises(TypeError, match=r"STATE\.x\.name: expected"):
            state.x[bad[0]] = bad[1]
        for _ in range(3):
            state.x["name"] = good["name"]
        assert state == {"x": good}
    path.write_text("x: [a, 2]\n", encoding="utf-8")
    with pytest.raises(StateCorrupt, match=r"line 1, column 8: x\[1\]: expected str, but it is 2"):
        either(path)


def test_keys_that_are_no_strings_are_keys_of_mappings(path: Path) -> None:
    kind = dict[int, list[int]] | list[str]
    either = MAKE("Either", (PersistedState,), {"__annotations__": {"x": kind}})
    with either(path, x={3: [1]}) as state:
        state.x[4] = [2]
        state.x[3].append(5)
        with pytest.raises(TypeError, match=r"STATE\.x\[3\]\[0\]: expected int"):
            state.x[3][0] = "s"
        with pytest.raises(TypeError, match=r"STATE\.x\[4\]: expected a list"):
            state.x[4] = "s"
        with pytest.raises(TypeError, match=r'STATE\.x: expected keys that are int, but one is "s"'):
            state.x["s"] = [1]
    path.write_text("x: {3: [1], y: []}\n", encoding="utf-8")
    with pytest.raises(StateCorrupt, match=r'line 1, column 4: x: expected keys that are int, but one is "y"'):
        either(path)


class Few(PersistedState):
    few: Annotated[list[int], Meta(min_length=1, max_length=3)] | Annotated[str, Meta(max_length=1)] = [1, 2]  # noqa: RUF012
    named: dict[str, Annotated[dict[str, int], Meta(max_length=2)]] = {"x": {"a": 1}}  # noqa: RUF012


LENGTHS: dict[str, tuple[Any, str]] = {
    "append": (lambda s: [s.few.append(n) for n in range(5)], "STATE.few: expected a length <= 3, but it is 4"),
    "extend": (lambda s: s.few.extend([3, 4]), "STATE.few: expected a length <= 3, but it is 4"),
    "slice": (lambda s: s.few.__setitem__(slice(1, 2), [4, 5, 6]), "STATE.few: expected a length <= 3, but it is 4"),
    "pop": (lambda s: [s.few.pop() for _ in range(2)], "STATE.few: expected a length >= 1, but it is 0"),
    "delete": (lambda s: s.few.__delitem__(slice(0, 2)), "STATE.few: expected a length >= 1, but it is 0"),
    "extended": (
        lambda s: [s.few.__delitem__(slice(None, None, 2)) for _ in range(2)],
        "STATE.few: expected a length >= 1, but it is 0",
    ),
    "clear": (lambda s: s.few.clear(), "STATE.few: expected a length >= 1, but it is 0"),
    "update": (lambda s: s.named["x"].update(b=1, c=1), "STATE.named.x: expected a length <= 2, but it is 3"),
    "set": (
        lambda s: [s.named["x"].__setitem__(key, 1) for key in "abac"],
        "STATE.named.x: expected a length <= 2, but it is 3",
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_the_length_of_what_grows_or_shrinks_is_checked(path: Path, name: str) -> None:
    change, said = LENGTHS[name]
    state: Any
    with Few(path) as state:
        state.few.append(3)
        state.few[:] = [5, 6]
        with pytest.raises(TypeError, match=re.escape(said)):
            change(state)
        found = plain(state)
    with Few(path) as state:
        assert state == found


# ---- What other processes write --------------------------------------------------------------------------------------


WRITTEN = {
    "value": ("state.retry = 'many'", 'retry: expected int, but it is "many"'),
    "item": ("state.jobs.append({'name': 'x'})", 'jobs[1]: the key done is missing in {"name":"x"}'),
    "nested": ("state.limits['cpu']['soft'] = None", "limits.cpu.soft: expected int, but it is null"),
    "key": ("del state.jobs[0]['done']", "jobs[0].done: this key is declared, and must be there"),
    "snapshot": ("state.retry = 'many'; state.vacuum()", 'retry: expected int, but it is "many"'),
    "several": ("state.update(retry=0, last_id=None)", "retry: expected int >= 1, but it is 0, and 1 more"),
    "moved": ("state.jobs.insert(0, 3)", "jobs[0]: expected a mapping, but it is 3"),
    "cleared": ("state.jobs[0].clear()", "jobs[0].name: this key is declared, and must be there, and 1 more"),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_another_process_wrote_that_is_not_declared_is_told(path: Path, name: str, check: bool) -> None:
    code, said = WRITTEN[name]
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path, _shared=True, _check=check) as state, Peer(path) as peer:
        assert peer.do(f"{code}; said = None") is None
        with pytest.warns(RuntimeWarning, match=re.escape(f"{path}: another process wrote")) as told:
            assert state.refresh()
        [warning] = told
        assert f"({said}). It stays" in str(warning.message)
        assert warning.filename == __file__
        assert plain(state) == peer.do("said = plain(state)")
        state.other = 1  # nothing is told twice
        assert peer.do("state.last_id = 43; state.close()") is None
        state.refresh()


def test_a_save_that_another_process_took_is_told(path: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path, _shared=True) as state, Peer(path) as peer:
        save(path, SOUND.replace("kind: a", "kind: c"))
        assert peer.do("state.refresh(); said = state.kind") == "c"
        with pytest.warns(RuntimeWarning, match=r'\(kind: expected "a" or "b" or null, but it is "c"\)'):
            state.other = 1
        assert plain(state)["kind"] == "c"
        state.kind = "b"
        peer.do("state.close()")


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_the_statement_fails_once(path: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path, _shared=True) as state, Peer(path) as peer:
        peer.do("state.retry = 'many'")
        with pytest.raises(RuntimeWarning, match="another process wrote"):
            state.last_id += 1
        assert (state["last_id"], state["retry"]) == (41, "many")
        state.last_id += 1
        state.retry = 3
        assert peer.do("state.refresh(); said = [state.last_id, state.retry]; state.close()") == [42, 3]


def test_an_attribute_that_cannot_be_made_of_a_value_says_so(path: Path) -> None:
    said = 'mode: expected "fast" or "slow", but it is "quick"'
    advice = "mend it in an editor, or with `persistedstate set FILE mode VALUE`"
    with Moving(path, _shared=True) as state, Peer(path) as peer:
        peer.do("state.mode = 'quick'; state.at = {'x': 'y'}")
        with pytest.warns(RuntimeWarning, match=re.escape(f"({said}, and 1 more)")):
            state.refresh()
        with pytest.raises(StateCorrupt) as caught:
            _ = state.mode
        assert str(caught.value) == f"{path}: {said}\n{advice}"
        with pytest.raises(StateCorrupt, match=r'at\.x: expected int, but it is "y"'):
            _ = state.at
        with pytest.raises(TypeError, match=r"STATE\.at\.y: expected int"):
            state["at"]["y"] = None
        with pytest.raises(TypeError, match=r"STATE\.at\.x: this key is declared"):
            del state["at"]["x"]
        assert state["mode"] == "quick"
        state.mode = Mode.SLOW
        assert peer.do("state.refresh(); said = state.mode; state.close()") == "slow"
    path.unlink()
    with Moving(path, _check=False) as state:
        state.mode = "other"  # type: ignore[assignment]
        with pytest.raises(StateCorrupt, match="mode: expected"):
            _ = state.mode


@rounds(ci=300, nightly=10_000)
def test_others_are_told_of_exactly_where_the_state_is_wrong_then(
    path: Path, chance: random.Random, rounds: int
) -> None:
    path.write_text(SOUND, encoding="utf-8")
    with Importer(path, _shared=True) as state, Peer(path) as peer:
        sound = plain(state)
        for _ in range(rounds):
            for _ in range(chance.randrange(1, 4)):
                value = peer.do("state.refresh(); said = plain(state)")
                assert peer.do(written(value, chance)) is None
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                state.refresh()
            wrong = list(Importer._declared._problems(plain(state)))
            assert bool(told) == bool(wrong), (wrong, *told)
            if wrong:
                peer.do(f"state.clear(); state.update({sound!r})")
                state.refresh()
        peer.do("state.close()")


def written(value: Any, chance: random.Random, *keys: Any) -> str:
    """Return a statement that changes something in a state with a value, rightly or wrongly; keys: new ones."""
    place = "state"
    while True:
        below = [
            key for key in ([*value] if isinstance(value, dict) else range(len(value))) if is_container(value[key])
        ]
        if not below or chance.random() < 0.3:
            break
        key = chance.choice(below)
        value, place = value[key], f"{place}[{key!r}]"
    new: Any = chance.choice(
        [1, 2, "x", None, True, [], {}, {"name": "y", "done": False}, {"name": 1, "done": True}, {"soft": 3}]
    )
    if isinstance(value, dict):
        key = chance.choice([*value, *keys, "name", "new"])
        ways = [f"[{key!r}] = {new!r}", f".pop({key!r}, None)", f".update({{{key!r}: {new!r}, 'more': 1}})"]
    else:
        index = chance.randrange(len(value) + 1)
        ways = [f".insert({index}, {new!r})", f"[{index}:{index + 2}] = [{new!r}]", ".reverse()", f"[{index}:] = []"]
    return place + chance.choice([*ways, ".clear()"] if chance.random() < 0.2 else ways)


def is_container(value: Any) -> bool:
    return isinstance(value, (dict, list))


class Wide(Importer):
    few: Annotated[list[int | Job], Meta(min_length=1, max_length=3)] = [1]  # noqa: RUF012
    either: list[str] | dict[str, Annotated[list[bool], Meta(max_length=2)]] | None = None
    at: Point = Point(1)
    mode: Mode = Mode.FAST
    notes: list[Noted] = []  # noqa: RUF012
    numbered: dict[int, dict[str, str | None]] = {1: {"x": None}}  # noqa: RUF012


@rounds(ci=1_000, nightly=50_000)
def test_what_the_script_may_do_leaves_what_opens_again(path: Path, chance: random.Random, rounds: int) -> None:
    done = tried = 0
    with Wide(path) as state:
        while tried < rounds or not tried / 10 < done < tried:  # of few rounds, it may be that all are allowed
            tried += 1
            statement = written(plain(state), chance, 3, None, "note", "x")
            try:
                with state.transaction() if chance.random() < 0.5 else contextlib.nullcontext():
                    exec(statement, {"state": state})  # noqa: S102
                done += 1
            except TypeError as error:
                assert str(error).startswith("STATE."), statement  # noqa: PT017
            assert list(Wide._declared._problems(plain(state))) == [], statement
            if len(state) < 9 or chance.random() < 0.02:
                state.update(Wide._declared.with_defaults({}))
    with Wide(path):
        pass
