"""A script was killed, and a person edits its file before it starts again: their value wins, and nothing is silent."""

from __future__ import annotations

import contextlib
import copy
import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import records
from editing import WAYS, save
from processes import Child
from rounds import rounds

import persistedstate
from persistedstate import PersistedState, check, plain, repair

if TYPE_CHECKING:
    import random

DATA = Path(__file__).parent / "data"
SNAPSHOT = """\
# how far the importer got
last_id: 0
retry: 3  # times
limits:
  cpu: 1
  mem: 2
hosts: [alpha, beta]
"""
#: What the script does before it is killed.
WORK = """
STATE.last_id = 3
STATE.limits["cpu"] = 5
STATE.hosts.append("gamma")
STATE.fresh = "new"
"""
DONE = {
    "last_id": 3, "retry": 3, "limits": {"cpu": 5, "mem": 2}, "hosts": ["alpha", "beta", "gamma"], "fresh": "new",
}  # fmt: skip
LONG = "jobs:\n" + "".join(f"- item number {number}\n" for number in range(100))


def kill_after(path: Path, work: str) -> None:
    """Let a process open the file, do some work, and die by SIGKILL."""
    code = f"import sys\nfrom persistedstate import PersistedState\nSTATE = PersistedState(sys.argv[1])\n{work}\n"
    with Child(f"{code}\nprint('done')\ninput()", path) as child:
        child.expect("done")


def replace(path: Path, old: str, new: str, way: str = "rename") -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    save(path, text.replace(old, new), way)


def opened(path: Path) -> dict[str, Any]:
    with PersistedState(path) as state:
        return state.copy()


@pytest.fixture
def killed(path: Path) -> Path:
    path.write_text(SNAPSHOT, encoding="utf-8")
    kill_after(path, WORK)
    return path


def test_what_was_not_edited_opens_as_it_was(killed: Path) -> None:
    assert opened(killed) == DONE
    assert killed.read_text(encoding="utf-8").startswith("# how far the importer got\nlast_id: 3\nretry: 3  # times\n")


def test_the_records_tell_what_the_snapshot_has(killed: Path) -> None:
    assert killed.read_text(encoding="utf-8").removeprefix(SNAPSHOT).splitlines() == [
        '--- ["was",["last_id"],0]',
        '--- ["set",[],"last_id",3]',
        '--- ["was",["limits"],{"cpu":1,"mem":2}]',
        '--- ["set",["limits"],"cpu",5]',
        '--- ["was",["hosts"],["alpha","beta"]]',
        '--- ["insert",["hosts"],2,"gamma"]',
        '--- ["was",["fresh"]]',
        '--- ["set",[],"fresh","new"]',
    ]


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_value_wins(killed: Path, way: str) -> None:
    replace(killed, "last_id: 0", "last_id: 50  # again from here", way)

    assert opened(killed) == {**DONE, "last_id": 50}
    assert "last_id: 50  # again from here\n" in killed.read_text(encoding="utf-8")


def test_an_edit_by_sed_wins(killed: Path) -> None:
    subprocess.run(["sed", "-i", "s/^last_id: 0/last_id: 50/", killed], check=True)

    assert opened(killed) == {**DONE, "last_id": 50}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("retry: 3", "retry: 4", {"retry": 4}),
        ("  cpu: 1", "  cpu: 9", {"limits": {"cpu": 9, "mem": 2}}),
        ("  mem: 2", "  mem: 9", {"limits": {"cpu": 5, "mem": 9}}),
        ("  mem: 2\n", "", {"limits": {"cpu": 5}}),
        ("  mem: 2", "  mem: 2\n  disk: 7", {"limits": {"cpu": 5, "mem": 2, "disk": 7}}),
        ("[alpha, beta]", "[beta]", {"hosts": ["beta", "gamma"]}),
        ("[alpha, beta]", "[alpha, delta, beta]", {"hosts": ["alpha", "delta", "beta", "gamma"]}),
        ("limits:\n  cpu: 1\n  mem: 2\n", "limits: none\n", {"limits": "none"}),
        ("last_id: 0\n", "fresh: old\nlast_id: 0\n", {"fresh": "old"}),
        ("last_id: 0\n", "last_id: 0  # only a comment\n", {}),
        ("last_id: 0\n", "last_id: 0x0\n", {}),
        ("retry: 3  # times\n", "", {"retry": None}),
        ("hosts: [alpha, beta]\n", "", {"hosts": None}),
        ("last_id: 0\n", "", {"last_id": None}),
    ],
)  # fmt: skip
def test_the_persons_value_wins_path_by_path(killed: Path, old: str, new: str, expected: dict[str, Any]) -> None:
    replace(killed, old, new)

    assert opened(killed) == {key: value for key, value in {**DONE, **expected}.items() if value is not None}


def test_what_the_script_deleted_and_a_person_changed_stays(path: Path) -> None:
    path.write_text(SNAPSHOT, encoding="utf-8")
    kill_after(path, "del STATE.retry\ndel STATE.last_id")
    replace(path, "retry: 3", "retry: 4")

    found = opened(path)

    assert (found["retry"], "last_id" in found) == (4, False)


def test_an_edit_counts_once(killed: Path) -> None:
    replace(killed, "last_id: 0", "last_id: 50")
    kill_after(killed, "assert STATE.last_id == 50\nSTATE.last_id += 1")

    assert opened(killed) == {**DONE, "last_id": 51}


def test_a_second_kill_before_the_edit(killed: Path) -> None:
    kill_after(killed, "STATE.last_id = 7\nSTATE.retry = 8")
    replace(killed, "last_id: 0", "last_id: 50")

    assert opened(killed) == {**DONE, "last_id": 50, "retry": 8}


def test_one_record_tells_of_each_entry_of_a_snapshot(killed: Path) -> None:
    before = records(killed)
    kill_after(killed, "STATE.last_id = 7\nSTATE.limits['mem'] = 8\nSTATE.hosts.clear()\nSTATE.fresh = 1")

    lines = killed.read_bytes().splitlines()
    told = [line for line in lines if line.startswith((b'--- ["was"', b'--- ["hash"'))]
    assert (len(told), records(killed)) == (4, before + 4)


def test_it_is_told_once(path: Path) -> None:
    with PersistedState(path, limits={"cpu": 1}, n=0) as state:
        state.limits["cpu"] = 2
        state.limits.pop("cpu")
        with state.transaction():
            state.limits["mem"] = 3
            state.update(n=1)
        state.update(n=2)

        assert path.read_text(encoding="utf-8").count('"was"') == 2


def test_check_show_and_a_reader_say_the_same(killed: Path) -> None:
    replace(killed, "  cpu: 1", "  cpu: 9")
    before = killed.read_bytes()
    expected = {**DONE, "limits": {"cpu": 9, "mem": 2}}

    with PersistedState(killed, _readonly=True) as reader:
        assert reader == expected
    shown = subprocess.run(
        [sys.executable, "-m", "persistedstate", "show", killed], capture_output=True, text=True, check=True
    ).stdout

    assert check(killed) == []
    assert killed.read_bytes() == before
    assert opened(killed) == expected
    assert killed.read_text(encoding="utf-8") == shown


def test_log_tells_what_becomes_of_an_edit(killed: Path) -> None:
    replace(killed, "  cpu: 1", "  cpu: 9")

    said = subprocess.run(
        [sys.executable, "-m", "persistedstate", "log", killed], capture_output=True, text=True, check=True
    ).stdout

    assert said.splitlines() == ["~ last_id: 0 → 3", "+ hosts[2]: gamma", "+ fresh: new"]


@pytest.mark.leaves("files")
@pytest.mark.parametrize(
    ("work", "old", "new", "expected", "left_out"),
    [
        ("STATE.jobs.append('last')", "- item number 7\n", "", lambda jobs: jobs[:7] + jobs[8:] + ["last"], ""),
        ("STATE.jobs.pop(99)", "- item number 7\n", "", lambda jobs: jobs[:7] + jobs[8:], "jobs"),
        ("STATE.jobs[0] = {'a': 1}; STATE.jobs[0]['a'] = 2", LONG, "", None, "jobs"),
    ],
)  # fmt: skip
def test_a_long_entry_that_both_changed_is_kept_beside(
    path: Path, work: str, old: str, new: str, expected: Any, left_out: str
) -> None:
    path.write_text("# jobs\n" + LONG + "n: 1\n", encoding="utf-8")
    kill_after(path, f"STATE.n = 2\nwith STATE.transaction():\n    STATE.n = 3\n    {work}")
    assert '--- ["hash",["jobs"],"' in path.read_text(encoding="utf-8")
    replace(path, old, new)
    edited = path.read_bytes()
    [problem] = check(path)

    with pytest.warns(RuntimeWarning, match="jobs: changed in the snapshot") as warned, PersistedState(path) as state:
        found = state.copy()

    jobs = [f"item number {number}" for number in range(100)]
    assert found == {"n": 3} | ({"jobs": expected(jobs)} if expected else {})
    [kept] = path.parent.glob("x.state.edited-*")
    assert kept.read_bytes() == edited
    text = str(warned[0].message)
    assert str(kept) in text
    assert problem.reason in text
    assert bool(left_out) == ("which do not fit" in text)


def test_comments_above_a_long_entry_are_no_edit(path: Path) -> None:
    path.write_text(f"a: 1\n# jobs\n{LONG}b: 2\n", encoding="utf-8")
    kill_after(path, "STATE.jobs.append('last')")
    replace(path, "# jobs\n", "# all the jobs\n\n# there are\n")

    assert opened(path)["jobs"][-1] == "last"
    assert path.read_text(encoding="utf-8").startswith("a: 1\n# all the jobs\n\n# there are\njobs:\n")


@pytest.mark.leaves("files")
@pytest.mark.parametrize(
    ("deleted", "undone"),
    [
        (r'--- \["set",\[\],"last_id",3\]\n', r"all changes of last_id \(again 0\)$"),
        (r'--- \["set",\["limits"\].*\n', r'all changes of limits \(again \{"cpu":1,"mem":2\}\)$'),
        (r'--- \["was",\["limits"\].*\n', "some changes of limits$"),
        (r'--- \["was",\["last_id"\].*\n--- \["set".*\n--- \["was",\["limits"\].*\n', "some changes of limits$"),
        (r'--- \["(?:set",\[\],"last_id|was",\["hosts).*\n', r"all changes of last_id \(again 0\), some .* hosts$"),
    ],
)  # fmt: skip
def test_deleting_records_is_told(killed: Path, deleted: str, undone: str) -> None:
    text = re.sub(deleted, "", killed.read_text(encoding="utf-8"))
    save(killed, text)
    [problem] = check(killed)

    with pytest.warns(RuntimeWarning, match=f"deleted from the file; this undid {undone}"):
        opened(killed)
    assert check(killed) == []

    save(killed, text)
    assert repair(killed).problems == [problem]
    assert check(killed) == []


def test_an_old_journal_stays_as_it_is(path: Path) -> None:
    path.write_text('a: 1\nb: 2\n--- ["set",[],"a",2]\n', encoding="utf-8")
    kill_after(path, "STATE.b = 3\nSTATE.c = 4")

    assert path.read_text(encoding="utf-8") == (
        'a: 1\nb: 2\n--- ["set",[],"a",2]\n--- ["set",[],"b",3]\n--- ["set",[],"c",4]\n'
    )
    replace(path, "a: 1", "a: 5")
    assert opened(path) == {"a": 2, "b": 3, "c": 4}


def test_what_was_undone_is_not_told(path: Path) -> None:
    path.write_text("a: 1\nb: 2\nc: 3\n", encoding="utf-8")
    with PersistedState(path) as state:
        with pytest.raises(ZeroDivisionError), state.transaction():
            state.update(a=2, b=3)
            raise ZeroDivisionError
        with state.transaction():
            state.c = 4
            with pytest.raises(ZeroDivisionError), state.transaction():
                state.a = 2
                raise ZeroDivisionError

        assert path.read_text(encoding="utf-8") == 'a: 1\nb: 2\nc: 3\n--- ["was",["c"],3]\n--- ["set",[],"c",4]\n'
        state.a = 5
        assert path.read_text(encoding="utf-8").endswith('--- ["was",["a"],1]\n--- ["set",[],"a",5]\n')


def test_records_that_tell_and_nothing_else_are_a_torn_end(path: Path) -> None:
    path.write_text('a: 1\n--- ["was",["a"],1]\n--- ["was",["b"]]\n', encoding="utf-8")

    with pytest.warns(RuntimeWarning, match="dropped 38 bytes"):
        assert opened(path) == {"a": 1}


@pytest.mark.parametrize("fact", ['["was"]', '["was","a",1]', '["was",[],1]', '["hash",["a"],1]', '["was",["a"],1,2]'])
def test_what_is_no_record_that_tells_is_refused(path: Path, fact: str) -> None:
    path.write_text(f'a: 1\n--- {fact}\n--- ["set",[],"a",2]\n', encoding="utf-8")

    with pytest.raises(persistedstate.StateCorrupt, match="line 2"):
        PersistedState(path)


@pytest.mark.parametrize("most_told", [0, 1000])
@pytest.mark.parametrize("case", sorted(DATA.glob("*/before.yaml")), ids=lambda case: case.parent.name)
def test_no_text_looks_edited_that_was_not(
    path: Path, monkeypatch: pytest.MonkeyPatch, case: Path, most_told: int
) -> None:
    """Neither a text that was read, nor one that the module made of it: warnings would be errors here."""
    monkeypatch.setattr(persistedstate, "_MOST_TOLD", most_told)
    path.write_bytes(case.read_bytes())
    with PersistedState(path) as state:
        for change in range(3):
            for key in [*state]:
                state[key] = [change, {"a": state[key]}] if change < 2 else change
            state["new" * change] = change
            twin = path.with_name("twin.state")
            twin.write_bytes(path.read_bytes())
            assert oracle.same(opened(twin), plain(state))
            twin.unlink()
            state.vacuum()


@rounds(ci=300, nightly=20_000)
def test_random_edits_of_killed_files_are_merged(path: Path, chance: random.Random, rounds: int) -> None:
    """What a person makes of the snapshot is merged with what the script made of it, as in a running script."""
    for _ in range(rounds):
        base = random_mapping(chance, 0)
        with PersistedState(path) as state:
            state.update(base)
        text = path.read_text(encoding="utf-8")
        state = PersistedState(path)
        for _ in range(chance.randrange(1, 6)):
            change(state, chance)
        journal, mine = path.read_text(encoding="utf-8").removeprefix(text), plain(state)
        state.close()
        theirs = edited(base, chance)
        path.write_text(persistedstate._block(theirs, 0) if theirs else "{}\n", encoding="utf-8")
        with path.open("a", encoding="utf-8") as file:
            file.write(journal)

        assert by_name(opened(path)) == by_name(persistedstate._merged(base, mine, theirs))
        path.unlink()


def by_name(value: Any) -> Any:
    """Let the order of keys not count."""
    if isinstance(value, dict):
        return sorted((key, by_name(item)) for key, item in value.items())
    return [repr(value)]


def random_mapping(chance: random.Random, depth: int) -> dict[str, Any]:
    return {key: random_value(chance, depth) for key in chance.sample("abcdef", chance.randrange(5))}


def random_value(chance: random.Random, depth: int) -> Any:
    if depth < 3 and chance.random() < 0.5:
        return random_mapping(chance, depth + 1)
    return chance.choice([None, True, 1, 1.5, "text", "1", "long " * 9, b"x"])


def mappings(value: Any) -> list[Any]:
    return [value, *(inner for item in value.values() if hasattr(item, "items") for inner in mappings(item))]


def change(state: Any, chance: random.Random) -> None:
    """Change something in a mapping or below, some of it in transactions, some of those undone."""
    is_transaction = hasattr(state, "transaction") and chance.random() < 0.3
    with contextlib.suppress(ZeroDivisionError), state.transaction() if is_transaction else contextlib.nullcontext():
        for _ in range(chance.randrange(1, 3)):
            change_once(chance.choice(mappings(state)), chance)
        if is_transaction and chance.random() < 0.3:
            raise ZeroDivisionError


def change_once(node: Any, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            node[chance.choice("abcdef")] = random_value(chance, 1)
        case 1:
            node.pop(chance.choice("abcdef"), None)
        case 2:
            node.update(random_mapping(chance, 2))
        case _:
            node.clear()


def edited(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    theirs = copy.deepcopy(value)
    for _ in range(chance.randrange(3)):
        change(theirs, chance)
    return theirs


def test_what_could_not_be_written_is_not_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    path.write_text("a: 1\nb: 2\n", encoding="utf-8")
    with PersistedState(path) as state:
        with monkeypatch.context() as patch:
            patch.setattr(persistedstate._system, "write", full)
            with pytest.raises(OSError, match="no space"):
                state.a = 2
        state.b = 3
        assert path.read_text(encoding="utf-8") == 'a: 1\nb: 2\n--- ["was",["b"],2]\n--- ["set",[],"b",3]\n'
        state.a = 4
        assert path.read_text(encoding="utf-8").endswith('--- ["was",["a"],1]\n--- ["set",[],"a",4]\n')
