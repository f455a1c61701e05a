"""`check` tells all that is wrong with a file and changes nothing; `repair` cuts no more, and throws nothing away.

The damages are those of reliability.md section 2 (rows 1 to 12) and those that a slip in an editor leaves.
"""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import scratch
from disk import Folder, Recorder, installed
from editing import staged
from processes import Child
from rounds import rounds

from persistedstate import PersistedState, StateCorrupt, StateLocked, check, plain, repair

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD = """\
# how far the importer got
last_id: 41  # of 90
name: importer
# what it may do
limits:
  soft: 10
  # per minute
  hard: 20
jobs:
- a.csv
- b.csv  # the big one
- c.csv
hosts:
- name: one
  port: 1
- name: two
  port: 2
# how it ended
done: nope
"""
JOURNAL = """\
--- ["set",[],"last_id",42]
--- ["set",["limits"],"hard",21]
--- ["insert",["jobs"],0,"0.csv"]
"""
SOUND = HEAD + JOURNAL
VALUE: dict[str, Any] = {
    "last_id": 42,
    "name": "importer",
    "limits": {"soft": 10, "hard": 21},
    "jobs": ["0.csv", "a.csv", "b.csv", "c.csv"],
    "hosts": [{"name": "one", "port": 1}, {"name": "two", "port": 2}],
    "done": "nope",
}
COMMENTS = ("# how far", "# of 90", "# what it", "# per minute", "# the big one", "# how it")


@dataclass
class Damage:
    """What replaces what in SOUND; where the problem is; and what is left of VALUE."""

    name: str
    old: str
    new: str | bytes
    line: int
    left: dict[str, Any] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    column: int | None = None

    @property
    def data(self) -> bytes:
        assert SOUND.count(self.old) == 1
        new = self.new.encode() if isinstance(self.new, str) else self.new
        return SOUND.encode().replace(self.old.encode(), new)

    @property
    def value(self) -> dict[str, Any]:
        return {key: value for key, value in {**VALUE, **self.left}.items() if key not in self.gone}

    @property
    def text(self) -> str:
        """The line that is damaged."""
        return self.data.decode(errors="replace").split("\n")[self.line - 1]


DAMAGES = [
    Damage("open single quote", "name: importer", "name: 'importer", 3, gone=("name",)),
    Damage("open double quote", "name: importer", 'name: "importer', 3, gone=("name",)),
    Damage("open bracket", "name: importer", "name: [importer", 3, gone=("name",)),
    Damage("open brace", "name: importer", "name: {x: importer", 3, gone=("name",)),
    Damage("closed twice", "name: importer", "name: [importer]]", 3, gone=("name",)),
    Damage("no colon", "name: importer", "name importer", 3, gone=("name",)),
    Damage("two values", "name: importer", "name: a: b", 3, gone=("name",)),
    Damage("unknown tag", "name: importer", "name: !mine importer", 3, gone=("name",), column=7),
    Damage("python tag", "name: importer", "name: !!python/name:os.system x", 3, gone=("name",), column=7),
    Damage("unknown alias", "name: importer", "name: *nobody", 3, gone=("name",), column=7),
    Damage("NUL", "name: importer", b"name: im\0\0ter", 3, gone=("name",), column=9),
    Damage("NUL line", "name: importer", b"\0" * 14, 3, gone=("name",), column=1),
    Damage("no UTF-8", "name: importer", b"name: im\xff\xfeter", 3, gone=("name",), column=9),
    Damage("half a character", "name: importer", b"name: im\xc3ter", 3, gone=("name",), column=9),
    Damage("control character", "name: importer", b"name: im\x07ter", 3, gone=("name",), column=9),
    Damage("no UTF-8 in a comment", "# what it", b"# \xe9\n# what it", 4, column=3),
    Damage("no UTF-8 in a comment of a mapping", "  # per", b"  # \xe9\n  # per", 7, column=5),
    Damage("NUL in a comment at the top", "# how far", b"# \0\n# how far", 1, column=3),
    Damage("key twice", "# how it ended", "name: importer\n# how it ended", 18, column=1),
    Damage("garbage at the top", "# how far", "]]]\n# how far", 1, column=1),
    Damage("garbage between entries", "# what it", "}}}\n# what it", 4, column=1),
    Damage("conflict mark", "# what it", "<<<<<<< HEAD\n# what it", 4, column=1),
    Damage("tab in a mapping", "  soft: 10", "\tsoft: 10", 6, {"limits": {"hard": 21}}, column=1),
    Damage("too deep in a mapping", "  # per minute", "    hard: x\n  # per minute", 7),
    Damage("quote in a mapping", "  soft: 10", "  soft: 'x", 6, {"limits": {"hard": 21}}),
    Damage("tag in a mapping", "  soft: 10", "  soft: !x 10", 6, {"limits": {"hard": 21}}, column=9),
    Damage("key twice in a mapping", "  # per minute", "  soft: 10\n  # per minute", 7, column=3),
    Damage("bracket in a list", "- c.csv", "- [c.csv", 12, {"jobs": ["0.csv", "a.csv", "b.csv"]}),
    Damage("quote in a list", "- a.csv", "- 'a.csv", 10, {"jobs": ["0.csv", "b.csv", "c.csv"]}),
    Damage("tag in a list", "- a.csv", "- !x a.csv", 10, {"jobs": ["0.csv", "b.csv", "c.csv"]}, column=3),
    Damage("garbage in a list", "- c.csv", "%%%\n- c.csv", 12, {"jobs": ["0.csv", "a.csv", "b.csv"]}),
    Damage("quote in an item", "  port: 2", "  port: '2", 17, {"hosts": [VALUE["hosts"][0], {"name": "two"}]}),
    Damage("tag at the head of an item", "- name: two", "- name: !x two", 16, {"hosts": VALUE["hosts"][:1]}, column=9),
    Damage("garbage between records", '--- ["set",["li', 'garbage\n--- ["set",["li', 21, column=1),
    Damage("half a record between records", '--- ["set",["limits"],"hard",21]', '--- ["set",["lim', 21,
           {"limits": {"soft": 10, "hard": 20}}),
    Damage("NUL record", '--- ["set",["limits"],"hard",21]', b"\0" * 32, 21, {"limits": {"soft": 10, "hard": 20}},
           column=1),
    Damage("no UTF-8 in a record", '--- ["set",["limits"],"hard",21]', b'--- ["set",["limits"],"hard","\xff"]', 21,
           {"limits": {"soft": 10, "hard": 20}}, column=31),
    Damage("unknown operation", '--- ["set",["limits"],"hard",21]', '--- ["sit",["limits"],"hard",21]', 21,
           {"limits": {"soft": 10, "hard": 20}}),
    Damage("record for nothing", '--- ["set",["li', '--- ["delete",[],"nobody"]\n--- ["set",["li', 21),
    Damage("record for a scalar", '--- ["set",["li', '--- ["set",["name"],"x",1]\n--- ["set",["li', 21),
    Damage("record out of range", '--- ["set",["li', '--- ["delete",["jobs"],9]\n--- ["set",["li', 21),
    Damage("record that stores what cannot be", '--- ["set",["li', '--- ["set",[],"x",!y 1]\n--- ["set",["li', 21),
    Damage("transaction with a bad end", '--- ["set",["li',
           '--- ["transaction",[["set",[],"name","x"],["delete",[],"nobody"]]]\n--- ["set",["li', 21),
    Damage("garbage behind the records", '0,"0.csv"]', '0,"0.csv"]\n]garbage[', 23, column=1),
]  # fmt: skip


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.name)
def damage(request: pytest.FixtureRequest) -> Damage:
    found: Damage = request.param
    return found


@pytest.fixture
def damaged(path: Path, damage: Damage) -> Iterator[Path]:
    """A damaged file; what `repair` leaves beside it is removed after the test."""
    path.write_bytes(damage.data)
    path.chmod(0o640)
    yield path
    for file in asides(path):
        file.unlink()


def asides(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def whole(path: Path) -> tuple[bytes, int, int, list[str]]:
    """Return all that a look without changes may not change."""
    status = path.stat()
    return path.read_bytes(), status.st_ino, status.st_mtime_ns, sorted(os.listdir(path.parent))  # noqa: PTH208 - names


def value_of(path: Path) -> dict[str, Any]:
    """Return what the module makes of the file, which must not need a warning."""
    with PersistedState(path, _readonly=True) as state:
        found: dict[str, Any] = plain(state)
    return found


# ---- Every single damage ---------------------------------------------------------------------------------------------


def test_check_names_the_line(damaged: Path, damage: Damage) -> None:
    before = whole(damaged)

    problems = check(damaged)

    assert whole(damaged) == before
    assert [problem.line for problem in problems] == [damage.line]
    (problem,) = problems
    assert problem.text.strip() == damage.text.strip()
    assert problem.reason
    assert 1 <= problem.column <= len(damage.text) + 1
    assert damage.column in {None, problem.column}


def test_what_check_tells_can_be_printed(damaged: Path) -> None:
    for problem in check(damaged):
        told = str(problem).encode().decode()

        assert f"line {problem.line}" in told
        assert problem.reason in told


def test_check_finds_the_place_where_opening_fails_or_the_cause_above(damaged: Path) -> None:
    problems = check(damaged)

    with pytest.raises(StateCorrupt) as caught:
        PersistedState(damaged)

    assert problems[0].line <= caught.value.line


def test_repair_keeps_all_else(damaged: Path, damage: Damage) -> None:
    before = damaged.stat().st_size
    problems = check(damaged)

    result = repair(damaged)

    assert (result.problems, result.before, result.after) == (problems, before, damaged.stat().st_size)
    assert result.path == str(damaged)
    assert check(damaged) == []
    assert value_of(damaged) == damage.value
    assert oracle.read(damaged) == damage.value
    text = damaged.read_text()
    assert [comment for comment in COMMENTS if comment not in text] == []
    assert stat.S_IMODE(damaged.stat().st_mode) == 0o640


def test_repair_keeps_aside_what_it_cut(damaged: Path, damage: Damage) -> None:
    result = repair(damaged)

    (aside,) = asides(damaged)
    assert result.damaged == str(aside)
    assert stat.S_IMODE(aside.stat().st_mode) == 0o640
    cut = aside.read_bytes()
    line = damage.data.split(b"\n")[damage.line - 1]
    assert line.strip(b"\0 \t") in cut
    assert damage.data.startswith(b"#") or line in cut


def test_repair_takes_only_the_mark_of_a_file_that_was_put_behind_another(path: Path) -> None:
    path.write_bytes(b"a: 1  # one\n\xef\xbb\xbfb: 2  # two\n\xef\xbb\xbfc: 3\n")

    problems = repair(path).problems

    reason = "a byte order mark within the file; remove it"
    assert [problem[:3] for problem in problems] == [(2, 1, reason), (3, 1, reason)]
    assert path.read_bytes() == b"a: 1  # one\nb: 2  # two\nc: 3\n"
    (aside,) = asides(path)
    assert aside.read_text() == f"# line 2: {reason}\n\ufeff\n# line 3: {reason}\n\ufeff\n"
    aside.unlink()


def test_what_is_cut_is_on_the_disk_before_the_file_changes(damaged: Path, damage: Damage) -> None:
    """A crash or a loss of power in between finds it in the one or in the other."""
    system = Recorder(damaged.parent, Folder.of({damaged.name: damage.data}))
    (state,) = system.files.contents

    with installed(system):
        repair(damaged)

    (aside,) = asides(damaged)
    kept = system.files.names[aside.name]
    synced = next(at for at, call in enumerate(system.log) if (call.kind, call.file) == ("sync", kept))
    assert [call.kind for call in system.log[:synced] if call.file == state] == []
    assert [call.kind for call in system.log[synced:] if call.file == kept and call.kind in {"write", "cut"}] == []
    changing = [at for at, call in enumerate(system.log) if damaged.name in {call.name, call.new_name}]
    assert synced < min(changing)


def test_a_dry_run_only_tells(damaged: Path) -> None:
    before, problems = whole(damaged), check(damaged)

    result = repair(damaged, dry_run=True)

    assert whole(damaged) == before
    assert (result.problems, result.before) == (problems, len(before[0]))


def test_a_second_repair_has_nothing_to_do(damaged: Path) -> None:
    repair(damaged)
    before = whole(damaged)

    result = repair(damaged)

    assert whole(damaged) == before
    assert (result.problems, result.damaged) == ([], None)
    assert result.before == result.after == len(before[0])


def test_a_repaired_file_is_worked_with(damaged: Path, damage: Damage) -> None:
    repair(damaged)

    with PersistedState(damaged) as state:
        state.last_id += 1
        state["new"] = [1]

    assert oracle.read(damaged) == {**damage.value, "last_id": damage.value["last_id"] + 1, "new": [1]}


# ---- Several at once -------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once(path: Path) -> None:
    text = SOUND
    for name in (
        "open single quote",
        "tag in a list",
        "garbage between records",
        "tag in a mapping",
        "tag at the head of an item",
    ):
        (damage,) = [damage for damage in DAMAGES if damage.name == name]
        text = text.replace(damage.old, str(damage.new))
    path.write_text(text)

    assert [problem.line for problem in check(path)] == [3, 6, 10, 16, 21]

    result = repair(path)

    assert len(result.problems) == 5
    assert value_of(path) == {
        "last_id": 42,
        "limits": {"hard": 21},
        "jobs": ["0.csv", "b.csv", "c.csv"],
        "hosts": [{"name": "one", "port": 1}],
        "done": "nope",
    }
    (aside,) = asides(path)
    cut = aside.read_text()
    for piece in "name: 'importer", "- !x a.csv", "garbage", "soft: !x 10", "!x two":
        assert piece in cut
    aside.unlink()


def test_several_bad_records_cost_only_themselves(path: Path) -> None:
    bad = ['--- ["delete",[],"nobody"]', "garbage", '--- ["set",["name"],"x",1]', '--- ["half', "\0\0\0\0"]
    good = [f'--- ["set",[],"n{number}",{number}]' for number in range(6)]
    lines = [line for pair in zip(good, [*bad, ""], strict=True) for line in pair]
    path.write_text(HEAD + "\n".join(lines))

    first = HEAD.count("\n") + 2
    assert [problem.line for problem in check(path)] == [first + 2 * number for number in range(5)]

    repair(path)

    assert {key: value for key, value in value_of(path).items() if key.startswith("n") and key != "name"} == {
        f"n{number}": number for number in range(6)
    }
    (aside,) = asides(path)
    aside.unlink()


@pytest.mark.leaves("files")
@pytest.mark.parametrize(
    "uses", ["b: *x\n", "b:\n- *x\n- 2\n", "b: &y 2\nc: [*x, *y]\n", "b:\n  <<: *x\n", "b:\n  c: ]\n  d: *x\n"]
)
def test_uses_of_an_anchor_above_are_kept(path: Path, uses: str) -> None:
    """What is read entry by entry knows the anchors of the entries before."""
    path.write_text(f"a: &x {{k: 1}}\n{uses}e: ]\n")

    repair(path)

    assert path.read_text() == f"a: &x {{k: 1}}\n{uses}".replace("  c: ]\n", "")


@pytest.mark.leaves("files")
def test_what_was_cut_stands_beside_in_the_order_of_the_file(path: Path) -> None:
    """A key that stands twice is noticed last."""
    path.write_text("a: 1\na: 2\nb: ]\nb: 3\nc:\n  d: ]\n  e: 1\n  e: 2\n")

    damaged = repair(path).damaged

    assert damaged is not None
    with open(damaged) as file:  # noqa: PTH123 - a string
        lines = [line.split(":")[0] for line in file if line.startswith("# line ")]
    assert lines == ["# line 2", "# line 3", "# line 6", "# line 8"]


def test_a_merge_conflict_of_git_leaves_one_side(path: Path) -> None:
    conflict = "<<<<<<< HEAD\ndone: mine\n=======\ndone: theirs\n>>>>>>> branch\n"
    path.write_text(SOUND.replace("done: nope\n", conflict))

    assert {19, 21, 23} <= {problem.line for problem in check(path)}
    repair(path)

    found = value_of(path)
    assert found.pop("done") in {"mine", "theirs"}
    assert found == {key: value for key, value in VALUE.items() if key != "done"}
    (aside,) = asides(path)
    assert ("done: mine" in aside.read_text()) != ("done: theirs" in aside.read_text())
    aside.unlink()


@pytest.mark.parametrize(
    "lost",
    [pytest.param(lost) if lost in {5, 6, 7, 14, 16} else lost for lost in range(1, 20)],
)
def test_a_lost_head_costs_what_it_held(path: Path, lost: int) -> None:
    """The first lines are gone; what follows them is either whole by itself or told."""
    lines = HEAD.splitlines(keepends=True)
    path.write_text("".join(lines[lost:]))

    problems = check(path)
    repair(path)

    found = value_of(path)
    kept = {key: VALUE[key] for key in found if key in {"name", "done"}}
    assert {key: found[key] for key in kept} == kept
    starts = {"last_id": 1, "name": 2, "limits": 4, "jobs": 8, "hosts": 12, "done": 18}
    assert {key for key, line in starts.items() if line >= lost} <= set(found)
    text = path.read_text() + "".join(aside.read_text() for aside in asides(path))
    assert [line for line in lines[lost:] if line.strip() not in text] == []
    assert bool(problems) == bool(asides(path))
    for aside in asides(path):
        aside.unlink()


@pytest.mark.parametrize("first", ["--- garbage\n", "garbage\n", "- 1\n", "x\0y: 1\n", "  - deep: 1\n"])
def test_a_damaged_first_line_costs_only_itself(path: Path, first: str) -> None:
    path.write_text(first + SOUND)

    assert check(path)[0].line == 1
    repair(path)

    assert value_of(path) == VALUE
    (aside,) = asides(path)
    assert first.strip() in aside.read_text()
    aside.unlink()


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n", "[1, 2]\n", "\0\0x\0\0\n", "'\n"])
def test_a_file_of_which_nothing_can_be_kept_is_kept_aside(path: Path, text: str) -> None:
    path.write_text(text)

    assert check(path)
    repair(path)

    assert value_of(path) == {}
    (aside,) = asides(path)
    assert text.strip("\0\n") in aside.read_text()
    aside.unlink()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"v\n:\n#\0"),
        b"'\n:\n- \0",
        b"\xff\n?\n",
        b"a: 1\n:\n#\0",
    ],
)
def test_what_looks_like_nothing_at_all_is_told_and_repaired(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    assert check(path)
    repair(path)

    assert check(path) == []
    for aside in asides(path):
        aside.unlink()


@pytest.mark.leaves("files")
def test_a_missing_colon_costs_its_line(path: Path) -> None:
    """Not the line below, of which the entry without a colon seems to be the beginning."""
    path.write_text("jobs:\n  # how often\n  retry 5\n  wait 7\n  name: a\n  n: 1\nlast: 2\n")

    found = repair(path)

    assert [(problem.line, problem.reason) for problem in found.problems] == [
        (3, "a colon is missing (key: value)"),
        (4, "a colon is missing (key: value)"),
    ]
    assert path.read_text() == "jobs:\n  name: a\n  n: 1\nlast: 2\n"
    assert found.damaged
    assert "retry 5" in asides(path)[0].read_text()


def test_items_whose_key_is_lost_do_not_become_items_of_the_list_above(path: Path) -> None:
    path.write_text("one:\n- 1\n- 2\n}garbage{\n- 3\nmore:\n  x: 1\n%%%\n  y: 2\nlast: 1\n")

    repair(path)

    found = value_of(path)
    assert (found["one"], found["more"], found["last"]) == ([1, 2], {"x": 1}, 1)
    (aside,) = asides(path)
    assert "- 3" in aside.read_text()
    aside.unlink()


def test_two_records_on_one_line_are_both_kept(path: Path) -> None:
    """An editor that strips the last newline glues the next record to the one before."""
    path.write_text(HEAD + '--- ["set",[],"last_id",42]--- ["set",[],"done","over"]\n--- ["set",[],"name","x"]\n')

    problems = check(path)
    repair(path)

    assert all(problem.line == 20 for problem in problems)
    found = value_of(path)
    assert (found["last_id"], found["done"], found["name"]) == (42, "over", "x")
    for aside in asides(path):
        aside.unlink()


# ---- What is no damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        SOUND.encode(),
        HEAD.encode(),
        JOURNAL.splitlines()[0].encode(),
        b"",
        b"\n",
        b"# only this\n",
        b"{}\n",
        b"{a: 1}",
        b'{"a": [1, 2]}\n--- ["set",[],"a",1]',
        b"\xef\xbb\xbfa: 1\r\nb: 2\r\n",
        b"base: &x {a: 1}\nother: *x\nmerged:\n  <<: *x\n  b: 2\n",
        b'a: 1\n--- # a comment\n# another\n\n--- ["set",[],"a",2]\n',
        b"%YAML 1.2\n---\na: 1\n...\n",
        b"text: |\n  'open\n  [open\n  \ttab\n",
    ],
)  # fmt: skip
def test_a_sound_file_is_left_alone(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    before = whole(path)

    assert check(path) == []
    result = repair(path)

    assert whole(path) == before
    assert (result.problems, result.damaged, result.before, result.after) == ([], None, len(data), len(data))


@pytest.mark.parametrize("cut", range(1, 30, 4))
@pytest.mark.parametrize("end", [b"", b"\0\0\0\0"])
def test_a_torn_tail_is_dropped_as_opening_drops_it(path: Path, cut: int, end: bytes) -> None:
    record = b'--- ["set",[],"last_id",4321]\n'
    path.write_bytes(SOUND.encode() + record[:cut] + end)

    problems = check(path)
    repair(path)

    assert all(problem.line == SOUND.count("\n") + 1 for problem in problems)
    assert value_of(path) == ({**VALUE, "last_id": 4321} if cut == len(record) - 1 else VALUE)
    assert check(path) == []
    for aside in asides(path):
        aside.unlink()


@pytest.mark.parametrize("function", [check, repair])
def test_a_missing_file_is_an_error(path: Path, function: Any) -> None:
    with pytest.raises(FileNotFoundError):
        function(path)

    assert not path.exists()


@pytest.mark.parametrize("function", [check, repair])
def test_a_folder_is_an_error(tmp_path: Path, function: Any) -> None:
    with pytest.raises(IsADirectoryError):
        function(tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [str, os.fsencode, None])
def test_every_kind_of_path_will_do(path: Path, kind: Any) -> None:
    path.write_text(SOUND)
    if kind is os.fsencode:
        pytest.skip("PersistedState decides about bytes")

    assert check(kind(path) if kind else path) == []
    assert repair(kind(path) if kind else path).path == str(path)


# ---- Others at the file ----------------------------------------------------------------------------------------------


def test_a_file_in_use_is_checked_and_not_repaired(path: Path) -> None:
    code = """
        import sys
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], a=1)
        state.a = 2
        print("open")
        sys.stdin.readline()
    """
    with Child(code, path) as child:
        child.expect("open")
        before = whole(path)

        assert check(path) == []
        with pytest.raises(StateLocked) as caught:
            repair(path)

        assert caught.value.pid == child.pid
        assert whole(path) == before


def test_a_file_that_this_process_has_open_is_not_repaired(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        state.a = 2
        before = whole(path)

        assert check(path) == []
        with pytest.raises(StateLocked):
            repair(path)

        assert whole(path) == before
        state.a = 3
        assert oracle.read(path) == {"a": 3}


def test_repair_waits_for_the_lock_as_long_as_it_is_told(path: Path) -> None:
    path.write_bytes(DAMAGES[0].data)
    tries = 0
    with staged() as stage:
        real = stage._real.lock

        def lock(descriptor: int) -> bool:
            nonlocal tries
            tries += 1
            return tries > 3 and bool(real(descriptor))

        stage.__dict__["lock"] = lock
        repair(path, wait=5)

    assert tries > 3
    assert value_of(path) == DAMAGES[0].value
    for file in asides(path):
        file.unlink()


@pytest.mark.leaves("files")
def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "real.state", tmp_path / "x.state"
    target.write_bytes(DAMAGES[0].data)
    link.symlink_to(target)

    repair(link)

    assert link.is_symlink()
    assert value_of(target) == DAMAGES[0].value


def test_two_repairs_within_a_second_keep_both_aside(path: Path) -> None:
    for damage in DAMAGES[0], DAMAGES[7]:
        path.write_bytes(damage.data)
        repair(path)

    assert len(asides(path)) == 2
    texts = "".join(aside.read_text() for aside in asides(path))
    assert "'importer" in texts
    assert "!mine" in texts
    for aside in asides(path):
        aside.unlink()


# ---- At random -------------------------------------------------------------------------------------------------------

VANDALS: list[Callable[[bytes], bytes]] = [
    lambda _: b"}garbage{",
    lambda line: line.replace(b": ", b": 'open ") if b": " in line else b"'" + line,
    lambda line: line.replace(b"- ", b"- !tag ") if b"- " in line else line.replace(b":", b": !tag"),
    lambda line: line + b"\0",
    lambda line: line[:-1] + b"\xff",
    lambda line: b"\0" * len(line),
    lambda line: b"\t" + line.strip(),
]


def entries(chance: random.Random) -> list[tuple[str, list[str], Any]]:
    """Return random top-level entries: key, lines, value."""
    found: list[tuple[str, list[str], Any]] = []
    for number in range(chance.randint(3, 9)):
        key, size = f"key_{number}", chance.randint(1, 4)
        kind = chance.choice(["scalar", "list", "mapping"])
        if kind == "scalar":
            found.append((key, [f"{key}: v{number}"], f"v{number}"))
        elif kind == "list":
            found.append(
                (key, [f"{key}:", *(f"- i{item}" for item in range(size))], [f"i{item}" for item in range(size)])
            )
        else:
            lines = [f"  s{item}: i{item}" for item in range(size)]
            found.append((key, [f"{key}:", *lines], {f"s{item}": f"i{item}" for item in range(size)}))
    return found


@rounds(ci=400, nightly=50_000)
def test_entries_without_damage_are_kept_and_the_others_stand_beside(chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        with scratch() as path:
            check_random_damage(path, chance)


def check_random_damage(path: Path, chance: random.Random) -> None:
    all_entries = entries(chance)
    hit = {entry[0] for entry in chance.sample(all_entries, chance.randint(1, 2))}
    lines: list[bytes] = []
    spoilt: list[bytes] = []
    for key, texts, _ in all_entries:
        own = [b"# above " + key.encode(), *(text.encode() for text in texts)]
        if key in hit:
            at = chance.randrange(1, len(own))
            own[at] = chance.choice(VANDALS)(own[at])
            spoilt.append(own[at])
        lines += own
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(data)

    problems = check(path)
    result = repair(path)

    assert problems, data
    assert result.problems == problems
    found = value_of(path)
    kept = {key: value for key, _, value in all_entries if key not in hit}
    assert {key: found.get(key) for key in kept} == kept, (data, path.read_bytes())
    everything = path.read_bytes() + b"".join(aside.read_bytes() for aside in asides(path))
    for line in [*lines, *spoilt]:
        assert line.strip(b"\0\t ") in everything, (line, data)
    assert check(path) == []


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.YAMLWarning")
@rounds(ci=400, nightly=100_000)
def test_whatever_happens_to_the_bytes_a_repaired_file_opens(chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        with scratch() as path:
            data = bytearray(SOUND.encode())
            for _ in range(chance.randint(1, 3)):
                spoil(data, chance)
            path.write_bytes(data)
            before = whole(path)

            problems = check(path)
            assert whole(path) == before
            opens = opens_silently(path)
            result = repair(path)

            assert result.problems == problems
            assert bool(problems) or opens, bytes(data)
            assert bool(asides(path)) or not problems, bytes(data)
            assert check(path) == [], bytes(data)
            assert opens_silently(path), bytes(data)
            if b"\x7f" not in path.read_bytes():  # in a record, JSON may hold what YAML readers refuse
                assert oracle.same(oracle.read(path, "ruamel"), value_of(path)), bytes(data)


def spoil(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice([1, 1, 2, 8, 40]))
    match chance.choice(["flip", "delete", "NUL", "insert", "double"]):
        case "flip":
            data[start] ^= 1 << chance.randrange(8)
        case "delete":
            del data[start:end]
        case "NUL":
            data[start:end] = bytes(end - start)
        case "insert":
            data[start:start] = chance.choice([b"'", b"[", b"{", b"\n", b"---", b"\xff", b"!x ", b"&a ", b"*b "])
        case _:
            data[start:start] = data[start:end]


def opens_silently(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            value_of(path)
        except (StateCorrupt, RuntimeWarning):
            return False
    return True
