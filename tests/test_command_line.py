"""The command line, as people and scripts use it: real processes, pipes and terminals, on files that others change."""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coverage
import oracle
import pytest
from checks import scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import DROP_PRIVILEGES, PATIENCE, Child, listing

import persistedstate
from persistedstate import PersistedState, plain
from persistedstate_tools.command_line import _COMMANDS, _parser, main
from persistedstate_tools.differences import differences
from persistedstate_tools.excerpts import read_state, text_of
from persistedstate_tools.following import Teller
from persistedstate_tools.messages import Refusal, printable
from persistedstate_tools.paths import parse_path, path_text, resolve
from persistedstate_tools.values import yaml_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Terminal: Any = None
with suppress(ImportError):
    from terminal import Terminal
in_a_terminal = pytest.mark.skipif(Terminal is None, reason="needs pyte and pseudo-terminals")

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
CASES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
COMMAND = [sys.executable, "-m", "persistedstate"]
#: Settings of the person who runs the tests stay outside; compiled once, the module starts in half the time.
KEPT = ("HOME", "LANG", "LC_", "PATH", "TMP", "COVERAGE")
ENVIRON = {key: value for key, value in os.environ.items() if key.startswith(KEPT)}
ENVIRON |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
ENVIRON["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, ENVIRON["PYTHONPYCACHEPREFIX"], ignore_errors=True)

#: For `Child`: the command line in a process that talks by lines.
BY_LINES = "import sys; from persistedstate_tools.command_line import main; sys.exit(main(sys.argv[1:]))"

if coverage.Coverage.current() is not None:  # what these processes run counts, too
    settings_file, data_file = str(ROOT / "pyproject.toml"), str(ROOT / ".coverage")
    COMMAND[1:1] = ["-m", "coverage", "run", "--parallel-mode", f"--rcfile={settings_file}", f"--data-file={data_file}"]
    BY_LINES = (
        "import atexit, coverage\n"
        f"measured = coverage.Coverage({data_file!r}, data_suffix=True, config_file={settings_file!r})\n"
        "measured.start()\n"
        "atexit.register(lambda: (measured.stop(), measured.save()))\n" + BY_LINES
    )

#: A script that has the file open: executes each line that it is told, then answers "done".
SCRIPT = """
    import sys
    from persistedstate import PersistedState
    STATE = PersistedState(sys.argv[1])
    print("open")
    for line in sys.stdin:
        exec(line)
        print("done")
    STATE.close()
"""

#: A script that never rests: two counters whose sum is always 0, a list, and a vacuum now and then.
BUSY = """
    import select, sys
    from persistedstate import PersistedState
    STATE = PersistedState(sys.argv[1], up=0, down=0, last=[])
    print("open")
    while not select.select([sys.stdin], [], [], 0)[0]:
        with STATE.transaction():
            STATE.up += 1
            STATE.down -= 1
            STATE.last = [*STATE.last[-5:], {"number": STATE.up}]
        if STATE.up % 20 == 0:
            STATE.vacuum()
    STATE.close()
"""

#: Becomes somebody without privileges, who cannot read what is not imported yet.
AS_NOBODY = """
import io, json, select
from persistedstate_tools import commands, differences, following, notes, repair
from persistedstate_tools.command_line import main, _parser
_parser()
"""
AS_NOBODY += DROP_PRIVILEGES

CONFIG = """\
# how the importer is set up

# seconds between two tries
retry:   0x1E      # thirty
hosts: [alpha, beta]   # first one wins

jobs:
    - name: fetch   # nightly
      done: false
    # the slow one
    - name: parse
      done: true
'a.b': {c: deep, 3: number, '3': text}
"""


def run(*arguments: object, environ: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed; whatever went wrong, it is one line, and never a traceback."""
    command = [*COMMAND, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", **options}
    done = subprocess.run(command, env=environ or ENVIRON, timeout=PATIENCE, check=False, **options)
    assert done.stderr is None or len(done.stderr.splitlines()) <= 1, done.stderr
    return done


def printed(*arguments: object, code: int = 0) -> str:
    """Return what a command prints that ends with an exit code, and without errors."""
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout


def complaint(*arguments: object, code: int = 2) -> str:
    """Return the one line that a command prints instead of doing anything."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr


def tell(script: Child, line: str) -> None:
    script.tell(line)
    script.expect("done")


@pytest.fixture
def config(path: Path) -> Path:
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def script(path: Path) -> Iterator[Child]:
    """A script that has the file `path` open."""
    path.touch()
    with Child(SCRIPT, path) as child:
        child.expect("open")
        yield child


# ---- Paths ----

KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))


@given(st.lists(KEYS, min_size=1))
def test_path_that_was_written_reads_back(keys: list[Any]) -> None:
    read = [step[0] for step in parse_path(path_text(keys))]

    assert list(map(repr, read)) == list(map(repr, keys))


@given(st.text(st.sampled_from("ab3.[]'\"\\ -")))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    with suppress(Refusal):
        assert parse_path(text)


VALUES = st.recursive(
    st.one_of(st.integers(), st.text(max_size=5), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of everything in a plain value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*above, key), item
        yield from paths(item, (*above, key))


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_everything_in_a_state_is_found_by_its_path(state: dict[Any, Any]) -> None:
    for keys, value in paths(state):
        found, node = resolve(state, parse_path(path_text(keys)))

        assert list(map(repr, found)) == list(map(repr, keys))
        assert node is value


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("jobs[3].name", [("jobs",), (3, "3"), ("name",)]),
        ("jobs.3.name", [("jobs",), ("3", 3), ("name",)]),
        ("jobs[-1]", [("jobs",), (-1, "-1")]),
        ("'a.b'[c]", [("a.b",), ("c",)]),
        ("'it''s'", [("it's",)]),
        ('x."tab\\there"', [("x",), ("tab\there",)]),
        ("x['3']", [("x",), ("3",)]),
        ("[true].null", [(True, "true"), ("null", None)]),
        ("[1.5].on", [(1.5, "1.5"), ("on",)]),
        ("John Smith.e-mail", [("John Smith",), ("e-mail",)]),
        ("x.it's", [("x",), ("it's",)]),
        ("007", [("007",)]),
    ],
)
def test_path_is_read(text: str, steps: list[tuple[Any, ...]]) -> None:
    assert parse_path(text) == steps


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("", "at its start", "a key or an index is missing"),
        ("jobs[3", "after 'jobs[3'", "] is missing"),
        ("jobs[3]name", "after 'jobs[3]'", "a dot or a bracket must follow"),
        ("a..b", "after 'a.'", "a key or an index is missing"),
        ("a.", "after 'a.'", "a key or an index is missing"),
        ("jobs[]", "after 'jobs['", "a key or an index is missing"),
        ("x.'abc", "after 'x.'", "the quotes do not end"),
        ("'a'b", "after \"'a'\"", "a dot or a bracket must follow"),
        ("a]", "after 'a'", "a dot or a bracket must follow"),
    ],
)
def test_path_that_cannot_be_read_shows_where_it_stopped(
    text: str, where: str, reason: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["get", str(config), text])

    assert code == 2
    assert capsys.readouterr().err == f"persistedstate: PATH {text!r} cannot be read {where}: {reason}\n"


# ---- What differs ----


def unordered(value: Any) -> Any:
    """Return a value in which the order of keys does not show, and the type of everything does."""
    if isinstance(value, dict):
        return frozenset((repr(key), unordered(item)) for key, item in value.items())
    return tuple(map(unordered, value)) if isinstance(value, list) else repr(value)


STATES = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@given(STATES, STATES)
def test_nothing_differs_exactly_where_states_are_alike(one: Any, other: Any) -> None:
    changes = list(differences(one, other))

    assert (not changes) == (unordered(one) == unordered(other))


@settings(deadline=None)
@given(STATES, STATES)
def test_log_of_each_record_tells_what_a_comparison_tells(one: Any, other: Any) -> None:
    """Whatever differs after a record is named by it, or stands within what it names."""
    with scratch() as path, PersistedState(path) as state:
        state.update(one)
        state.vacuum()
        before = plain(state)
        state.update(other)
        changes = Teller(str(path)).news

    for change in differences(before, {**before, **other}):
        assert any(change.path[: len(told.path)] == told.path for told in changes)


# ---- show ----


def test_show_prints_the_state_with_comments_and_records(config: Path) -> None:
    with config.open("a") as file:
        file.write('--- ["set",["jobs",0],"done",true]\n--- ["delete",[],"retry"]\n--- ["set",[],"last_id",41]\n')

    text = printed("show", config)

    assert text == (
        CONFIG.replace("# seconds between two tries\nretry:   0x1E      # thirty\n", "").replace(
            "done: false", "done: true"
        )
        + "last_id: 41\n"
    )


@pytest.mark.parametrize("case", CASES)
def test_show_prints_what_a_vacuum_would_write(case: str, path: Path, capsysbinary: Any) -> None:
    shutil.copy(DATA / case / "before.yaml", path)
    with PersistedState(path) as state:
        state["added key"] = 1
        shutil.copy(path, path.with_name("x.copy"))
    vacuumed = path.read_bytes()
    path.with_name("x.copy").rename(path)

    assert main(["show", str(path)]) == 0

    shown = capsysbinary.readouterr().out
    assert shown.rstrip(b"\n") == vacuumed.rstrip(b"\n")
    assert path.read_bytes() != vacuumed


@pytest.mark.parametrize("case", CASES)
def test_show_prints_parts_that_read_as_what_they_are(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / case / "before.yaml"
    document, root = read_state(str(path))
    state = plain(root)

    for keys, value in paths(state):
        text = text_of(document, root, [(key,) for key in keys])

        found = yaml_value(text.rstrip("\n")) if not isinstance(value, (dict, list)) else None
        if isinstance(value, (dict, list)):
            [found] = persistedstate._Document.read(f"part:\n{textwrap.indent(text, '  ')}")[1].values()
        assert oracle.same(found, value), (keys, text)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("retry", "30\n"),
        ("hosts", "- alpha\n- beta\n"),
        ("jobs", "- name: fetch   # nightly\n  done: false\n# the slow one\n- name: parse\n  done: true\n"),
        ("jobs[0]", "name: fetch   # nightly\ndone: false\n"),
        ("'a.b'[3]", "number\n"),
        ("'a.b'.3", "text\n"),
    ],
)
def test_show_prints_a_part_with_its_comments(part: str, text: str, config: Path) -> None:
    assert printed("show", config, part) == text


def test_show_prints_json(config: Path) -> None:
    config.write_text('when: 2024-05-01\ndata: !!binary "AAE="\nrate: .inf\n3: three\nname: "süß"\n', encoding="utf-8")

    shown = json.loads(printed("show", config, "--json"))

    assert shown == {"when": "2024-05-01", "data": "AAE=", "rate": ".inf", "3": "three", "name": "süß"}


def test_json_refuses_to_lose_a_key(config: Path) -> None:
    assert "as keys of one mapping" in complaint("show", "--json", config, "'a.b'")


def test_empty_file_is_an_empty_mapping(path: Path) -> None:
    path.touch()

    assert printed("show", path) == "{}\n"
    assert printed("show", path, "--json") == "{}\n"


# ---- get ----


@pytest.mark.parametrize(
    ("value", "shown", "as_json"),
    [
        ("text", "text", '"text"'),
        ("two\nlines", "two\nlines", '"two\\nlines"'),
        ("41", "41", '"41"'),
        (41, "41", "41"),
        (0.5, "0.5", "0.5"),
        (float("nan"), ".nan", '".nan"'),
        (True, "true", "true"),
        (None, "null", "null"),
        (["a", "b c", {"k": None}], '[a, "b c", {k: null}]', '["a", "b c", {"k": null}]'),
        ({}, "{}", "{}"),
    ],
)
def test_get_prints_a_value(
    value: Any, shown: str, as_json: str, state: PersistedState, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state.value = value

    codes = main(["get", str(path), "value"]), main(["get", "--json", str(path), "value"])

    assert codes == (0, 0)
    assert capsys.readouterr().out == f"{shown}\n{as_json}\n"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("nothing", "nothing: there is no such key, only retry, hosts, jobs, 'a.b'"),
        ("jobs[7].name", "jobs[7]: jobs is a list of 2 items: jobs[0] to jobs[1]"),
        ("jobs.name", "jobs.name: jobs is a list of 2 items: jobs[0] to jobs[1]"),
        ("retry.seconds", "retry.seconds: retry is 30, which has no parts"),
        ("'a.b'[true]", "'a.b'[true]: there is no such key, only c, [3], '3'"),
    ],
)
def test_get_tells_what_is_missing(part: str, said: str, config: Path) -> None:
    assert complaint("get", config, part, code=1) == f"persistedstate: {said}\n"


def test_get_names_the_only_item_of_a_list_once(path: Path) -> None:
    path.write_text("jobs: [a]\n", encoding="utf-8")

    assert complaint("get", path, "jobs[1]", code=1) == "persistedstate: jobs[1]: jobs is a list of 1 item: jobs[0]\n"


@pytest.mark.parametrize(
    ("key", "other"),
    [("true", "[1]"), ("1", "[true]"), ("1", "[1.0]"), ("'1'", "[true]"), ("0", "[false]"), ("0.0", "[0]")],
)
def test_key_of_another_type_is_another_key(
    key: str, other: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python takes True for 1, and 1.0 too."""
    path.write_text(f"{key}: a\n", encoding="utf-8")

    assert [main(["get", str(path), part]) for part in (other, f"[{key}]")] == [1, 0]
    assert main(["set", str(path), other, "b"]) == (0 if key == "'1'" else 2)

    assert capsys.readouterr().out == "a\n"
    assert f"{key}: a\n" in path.read_text(encoding="utf-8")


def test_get_serves_a_shell_script(config: Path) -> None:
    shell = 'name=$("$0" -m persistedstate get x.state "jobs[0].name") && echo "<$name>"'

    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], cwd=config.parent, env=ENVIRON, capture_output=True, text=True, check=True
    )

    assert done.stdout == "<fetch>\n"


# ---- set, delete, append ----


@pytest.mark.parametrize(
    ("arguments", "before", "after"),
    [
        (["set", "last_id", "-5"], "last_id: 1  # so far\n", "last_id: -5  # so far\n"),
        (["set", "name", "ada"], "last_id: 1\n", "last_id: 1\nname: ada\n"),
        (["set", "name", "'42'"], "", 'name: "42"\n'),
        (["set", "jobs[0].done", "true"], "jobs:\n- name: a  # x\n", "jobs:\n- name: a  # x\n  done: true\n"),
        (["set", "jobs.1", "{k: 1}"], "jobs: [a, b]\n", "jobs: [a, {k: 1}]\n"),
        (["set", "items", "1"], "", "items: 1\n"),
        (["set", "x.3", "a"], "x: {}\n", 'x:\n  "3": a\n'),
        (["set", "x[3]", "a"], "x: {}\n", "x:\n  3: a\n"),
        (["set", "x.3", "a"], "x: {3: b}\n", "x: {3: a}\n"),
        (["set", "when", "2024-05-01"], "", "when: 2024-05-01\n"),
        (["set", "nothing", ""], "", "nothing: null\n"),
        (["set", "--", "dash", "-x"], "", 'dash: "-x"\n'),
        (["set", "v", "1.10", "--string"], "", 'v: "1.10"\n'),
        (["set", "--string", "v", "1.10", "--wait", "0"], "", 'v: "1.10"\n'),
        (["set", "v", "--wait", "0", "--string", "-1"], "", 'v: "-1"\n'),
        (["set", "--string", "--", "v", "-x"], "", 'v: "-x"\n'),
        (["append", "jobs", "--string", "-h"], "jobs:\n- 1\n", 'jobs:\n- 1\n- "-h"\n'),
        (["delete", "jobs[-1]"], "jobs:\n- a  # one\n- b\n", "jobs:\n- a  # one\n"),
        (["delete", "[3]"], "3: a\n'3': b\n", "'3': b\n"),
        (["append", "jobs", "{name: b}"], "jobs:\n- a\n", "jobs:\n- a\n- name: b\n"),
        (["append", "a.b", "[1, 2]"], "a:\n  b: []\n", "a:\n  b:\n  - - 1\n    - 2\n"),
    ],
)
def test_change_of_a_file(arguments: list[str], before: str, after: str, path: Path) -> None:
    path.write_text(before, encoding="utf-8")
    place = arguments.index("--") + 1 if "--" in arguments else 1

    assert printed(*arguments[:place], path, *arguments[place:]) == ""

    assert path.read_text(encoding="utf-8") == after


@pytest.mark.parametrize(
    "text",
    ["", " ", "1.10", "0123", "1e3", "null", "~", "true", "2024-05-01", "#fff", "[1", "b: c: d", "'quoted'", "!!str x"]
    + ["-x", "-5", "-", "--", "--help", "-h", "--string", "--wait", "--wait=x", "a  b\n", "\t", "\u2028", "ß 😀"],
)
@pytest.mark.parametrize("arguments", [["set", "--string", "X", "a"], ["set", "X", "a", "--string"]])
def test_text_is_taken_as_it_stands(
    arguments: list[str], text: str, config: Path, on_disk: Callable[..., dict[Any, Any]]
) -> None:
    assert main([*[str(config) if word == "X" else word for word in arguments], text]) == 0

    assert on_disk()["a"] == text


def test_text_of_a_shell_variable_that_is_empty(config: Path, on_disk: Callable[..., dict[Any, Any]]) -> None:
    """An empty VALUE is null, as in YAML; with --string it is the empty text."""
    shell = 'for option in "" --string; do "$0" -m persistedstate set $option x.state "a$option" "$none" || exit; done'

    subprocess.run(["sh", "-c", shell, sys.executable], cwd=config.parent, env=ENVIRON, check=True)

    assert (on_disk()["a"], on_disk()["a--string"]) == (None, "")


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["set", "X", "--string", "a"], "the following arguments are required: VALUE", 2),
        (["set", "X", "--str", "a", "1"], "unrecognized arguments: --str; see persistedstate set --help", 2),
        (["set", "X", "a", "b", "c"], "unrecognized arguments: c; a VALUE with blanks needs quotes; see", 2),
        (["set", "X", "a", "-x", "--string"], "the following arguments are required: VALUE", 2),
        (["get", "X", "--string", "-x"], "unrecognized arguments: --string", 2),
        (["completion"], "the following arguments are required: SHELL; see persistedstate completion --help", 2),
        (["check", "X", "Y"], "unrecognized arguments: Y; see persistedstate check --help", 2),
        (["set", "X", "a.b.c", "1"], "a: there is no such key, only retry, hosts, jobs, 'a.b'", 1),
        (["set", "X", "retry.x", "1"], "retry.x: retry is 30, which has no parts", 1),
        (["set", "X", "jobs[2]", "1"], "jobs[2]: jobs is a list of 2 items: jobs[0] to jobs[1]", 1),
        (["set", "X", "a", "[1"], "VALUE '[1' cannot be read from character 1 on", 2),
        (["set", "X", "a", "b: c: d"], "VALUE 'b: c: d' cannot be read from character 5 on", 2),
        (["set", "X", "a", "#fff"], "VALUE '#fff' cannot be read from character 1 on: here a comment begins", 2),
        (["set", "X", "a", "!!python/name:os.system x"], "the tag", 2),
        (["set", "X", "a", "[" * 101 + "]" * 101], "nested deeper than 100 levels", 2),
        (["set", "X", "a", "--wait", "soon", "1"], "argument --wait: 'soon' is no number of seconds", 2),
        (["set", "X", "a", "--wait", "nan", "1"], "argument --wait: 'nan' is no number of seconds", 2),
        (["set", "X", "a", "--wait=-1", "1"], "argument --wait: '-1' is no number of seconds", 2),
        (["delete", "X", "nothing"], "nothing: there is no such key", 1),
        (["append", "X", "retry", "1"], "retry is 30, no list: nothing can be appended", 2),
        (["append", "X", "'a.b'", "1"], "'a.b' is a mapping, no list: nothing can be appended", 2),
        (["append", "X", "nothing", "1"], "nothing: there is no such key", 1),
        (["set", "none.state", "a", "1"], "none.state: no such file; to begin with an empty state: touch none.s", 2),
        (["set", "none/x.state", "a", "1"], "none/x.state: no such file, nor its folder", 2),
        (["delete", "none.state", "a"], "none.state: no such file", 2),
        (["vacuum", "none.state"], "none.state: no such file", 2),
        (["repair", "none.state"], "none.state: No such file or directory", 2),
        (["repair", "redis://u:pw@host/x"], "redis://u:…@host/x: repair is for files; a server keeps a state whole", 2),
        (["get", "none.state", "a"], "none.state: No such file or directory", 2),
        (["log", "--follow", "none.state"], "none.state: No such file or directory", 2),
        (["watch", "none.state"], "none.state: No such file or directory", 2),
        (["show", "."], ".: Is a directory", 2),
        (["set", ".", "a", "1"], ".: Is a directory", 2),
        (["check", "/dev/null"], "/dev/null: not a regular file", 2),
        (["diff", "X", "none.state"], "none.state: No such file or directory", 2),
        (["get", "X"], "the following arguments are required: PATH; see persistedstate get --help", 2),
        (["frobnicate"], "invalid choice: 'frobnicate'", 2),
    ],
)
def test_mistake_is_told_in_one_line(arguments: list[str], said: str, code: int, config: Path) -> None:
    done = run(*["x.state" if argument == "X" else argument for argument in arguments], cwd=config.parent)

    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("persistedstate: ")
    assert said in done.stderr
    assert config.read_text(encoding="utf-8") == CONFIG
    assert listing(config.parent) == ["x.state"]


@pytest.mark.parametrize(
    "arguments", [["show"], ["log"], ["watch"], ["get", "a"], ["set", "a", "1"], ["diff", "x.state"]]
)
def test_damaged_file_is_told_with_line_and_column(arguments: list[str], path: Path) -> None:
    path.write_text("a: 1\nb: ]\n", encoding="utf-8")

    done = run(arguments[0], "x.state", *arguments[1:], cwd=path.parent)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("persistedstate: x.state: line 2, column 4: ")
    assert done.stderr.endswith(": b: ]; mend it in an editor, or see persistedstate repair\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb 2\nc: 3\n", 2),
        ("a: 1\nb: [1,\n2\nc: 3\n", 2),
        ("jobs:\n- 1\n-2\n- 3\nb: 1\n", 3),
        ("a: 1\r\nb: ]\r\nc: 3\r\n", 2),
        ("\ufeffa: 1\r\nb: 1\n\r\nc: ]\n", 4),
        ("a: 1\rb: 1\nc: ]\n", 2),
        ('a: "x\u0085y"\nb: "x\u2028y\u2029z"\nc: ]\n', 3),
        ("a: 1\nb: 2 # x\fy\nc: 3\n", 2),
        ("a: 1\nb: x\vy\x1c\nc: 3\n", 2),
        ("a: 1\n# caf\udce9\nb: 2\n", 2),
        ("# caf\udce9\n# good\n\nb: 2\n", 1),
        ("b:\n  # caf\udce9\n  c: 2\n", 2),
        ('a: "\u2028"\n--- ["set",[],"a",1]\n--- ["set",["x"],"a",1]\n', 3),
        ("a: 1\nb: 2\n--- # LAST VALID STATE: 15 bytes\na: 1\nb: ]\nc: 3\n", 5),
        ("a: 1\nb: ]\n--- # LAST VALID STATE: 15 bytes\na: 1\nb: ]\n", 2),
        ("a: 1\n\n---\n### LAST VALID STATE ###\nb: ]\n", 5),
    ],
)
def test_every_command_tells_the_line_that_check_tells_first(
    text: str, line: int, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And all count them as `sed -n 7p` does, whatever else ends a line elsewhere."""
    path.write_bytes(text.encode(errors="surrogateescape"))
    commands = [["show"], ["get", "a"], ["log"], ["watch"], ["set", "a", "1"], ["diff", str(path)]]

    codes = {main([command[0], str(path), *command[1:]]) for command in commands}
    told = capsys.readouterr().err.splitlines()
    main(["check", str(path)])
    checked, shown = capsys.readouterr().out.splitlines()[:2]

    assert codes == {2}
    assert checked.startswith(f"{path}: line {line}, column ")
    assert [words.startswith(f"persistedstate: {checked}") for words in told] == [True] * len(commands)
    found = path.read_bytes().split(b"\n")[line - 1].decode(errors="replace").removeprefix("\ufeff")
    assert shown.replace("\ufffd", " ").strip() == printable(found.replace("\ufffd", " ")).strip()


def test_file_in_use_is_told_with_the_pid(script: Child, path: Path) -> None:
    tell(script, "STATE.a = [1]")
    for arguments in [
        ["set", path, "a", "2"],
        ["delete", path, "a"],
        ["append", path, "a", "2"],
        ["vacuum", path],
        ["repair", path],
    ]:
        said = complaint(*arguments, code=3)
        assert (
            said
            == f"persistedstate: {path}: in use by process {script.pid}; wait for it with --wait SECONDS, or end it\n"
        )


def test_waiting_for_a_file_in_use(script: Child, path: Path) -> None:
    with Child(BY_LINES, "set", path, "a", "2", "--wait", PATIENCE) as command:
        tell(script, "STATE.a = 1")
        script.finish()
        command.finish()

    assert oracle.read(path) == {"a": 2}


@pytest.fixture
def public(config: Path) -> Iterator[Path]:
    """A state file that a user without privileges could reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copy(config, folder))
        Path(folder).chmod(0o755)


def test_reading_needs_no_permission_to_write_and_leaves_nothing(public: Path) -> None:
    public.chmod(0o444)
    public.parent.chmod(0o555)
    code = AS_NOBODY + textwrap.dedent(
        """
        sys.stdout, out = io.StringIO(), sys.stdout
        for command in [["show"], ["get", "retry"], ["log"], ["check"], ["diff", sys.argv[1]], ["set", "retry", "1"]]:
            code = main([command[0], sys.argv[1], *command[1:]])
            print(command[0], code, file=out)
        print(sys.stdout.getvalue().count("retry"), file=out)
        """
    )

    with Child(code, public) as child:
        for line in ["show 0", "get 0", "log 0", "check 0", "diff 0", "set 2", "1"]:
            child.expect(line)

    assert listing(public.parent) == [public.name]
    assert public.read_text(encoding="utf-8") == CONFIG


def test_unreadable_file_is_told(public: Path) -> None:
    public.chmod(0)
    code = AS_NOBODY + "sys.stderr = sys.stdout\nprint(main(['get', sys.argv[1], 'retry']))"

    with Child(code, public) as child:
        child.expect(f"persistedstate: {public}: Permission denied")
        child.expect("2")


# ---- While a script writes ----


def test_reading_commands_see_whole_states_of_a_busy_file(path: Path) -> None:
    with Child(BUSY, path) as script:
        script.expect("open")
        for _ in range(3):
            shown = json.loads(printed("show", path, "--json"))
            assert shown["up"] == -shown["down"]
            assert shown["up"] == (shown["last"] or [{"number": 0}])[-1]["number"]
            assert int(printed("get", path, "up")) >= shown["up"]
            assert printed("check", path) == f"{path}: sound\n"
            assert all(line.startswith(("~ ", "+ ", "- ")) for line in printed("log", path).splitlines())
            assert run("diff", path, path).returncode in {0, 1}
        script.finish()


def test_following_a_busy_file_misses_nothing(path: Path) -> None:
    """Each line goes on where the one before it ended, across dozens of vacuums."""
    path.write_text('up: 0\ndown: 0\nlast: []\n--- ["set",[],"down",0]\n', encoding="utf-8")
    with Child(BY_LINES, "log", "--follow", path) as follower:
        follower.expect("~ down: 0 → 0")
        follow_a_busy_file(follower, path)
        follower.send_signal(signal.SIGINT)
        follower.finish(130)


def follow_a_busy_file(follower: Child, path: Path) -> None:
    with Child(BUSY, path) as script:
        script.expect("open")
        last = 0
        while last < 300:
            line = follower.line()
            if line.startswith("~ up: "):
                old, new = map(int, line.removeprefix("~ up: ").split(" → "))
                assert old == last < new
                last = new
        script.finish()
        final = oracle.read(path)["up"]
        while last < final:
            line = follower.line()
            last = int(line.rpartition(" ")[2]) if line.startswith("~ up: ") else last
        assert last == final


# ---- log ----


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ("STATE.k = 2", ["~ k: 1 → 2"]),
        ("STATE.k = 1", ["~ k: 1 → 1"]),
        ("STATE['a key'] = 'x y'", ["+ 'a key': \"x y\""]),
        ("del STATE.k", ["- k: 1"]),
        ("STATE.jobs.append({'name': 'c'})", ["+ jobs[2]: {name: c}"]),
        ("STATE.jobs.insert(0, 'z')", ["+ jobs[0]: z"]),
        ("STATE.jobs[0] = 'z'", ["~ jobs[0]: a → z"]),
        ("del STATE.jobs[-1]", ["- jobs[1]: b"]),
        ("STATE.jobs[:] = ['a', 'x', 'z']", ["~ jobs[1]: b → x", "+ jobs[2]: z"]),
        ("STATE.jobs.extend(['c', 'd'])", ["+ jobs[2]: c", "+ jobs[3]: d"]),
        ("STATE.jobs.reverse()", ["~ jobs: in another order: [1, 0]"]),
        ("STATE.jobs.clear()", ["~ jobs: [a, b] → []"]),
        ("STATE.jobs = ['a', 'c']", ["~ jobs[1]: b → c"]),
        ("STATE.update(k=2, m=3)", ["~ k: 1 → 2", "+ m: 3"]),
        ("STATE.clear()", ["~ (everything): {k: 1, jobs: [a, b]} → {}"]),
        ("with STATE.transaction(): STATE.k += 1; STATE.k += 1", ["~ k: 1 → 2", "~ k: 2 → 3"]),
    ],
)
def test_log_tells_each_change(change: str, lines: list[str], path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = PersistedState(path, k=1, jobs=["a", "b"])
    state.vacuum()
    exec(change, {"STATE": state})  # noqa: S102 - our own

    assert main(["log", str(path)]) == 0

    state.close()
    assert capsys.readouterr().out.splitlines() == lines


def test_log_leaves_out_what_was_never_complete(path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",2]\n--- ["set",[],"a",', encoding="utf-8")

    assert printed("log", path) == "~ a: 1 → 2\n"


def test_following_goes_on_across_vacuums_and_removals(script: Child, path: Path) -> None:
    tell(script, "STATE.a = 1")
    with Child(BY_LINES, "log", "--follow", path) as follower:
        follower.expect("+ a: 1")
        tell(script, "STATE.a = 2")
        follower.expect("~ a: 1 → 2")
        tell(script, "STATE.vacuum()")
        tell(script, "STATE.a = 3")
        follower.expect("~ a: 2 → 3")
        tell(script, "STATE.a = 4; STATE.b = [1]; STATE.vacuum(); STATE.b.append(2); STATE.vacuum()")
        follower.expect("~ a: 3 → 4")
        assert "b" in follower.line()
        script.finish()
        path.unlink()
        path.with_name("x.new").write_text("a: 4\nb: [1, 2]\nc: yes\n", encoding="utf-8")
        path.with_name("x.new").rename(path)
        while (line := follower.line()) != '+ c: "yes"':
            assert line == "+ b[1]: 2"
        follower.send_signal(signal.SIGINT)
        follower.finish(130)


def test_following_tells_that_the_file_is_gone_or_damaged(path: Path) -> None:
    path.write_text("a: 1\n", encoding="utf-8")
    code = "import sys; sys.stderr = sys.stdout\n" + BY_LINES
    with Child(code, "log", "--follow", path) as follower:
        with path.open("a") as file:
            file.write('--- ["set",[],"a",2]\n')
        follower.expect("~ a: 1 → 2")
        path.unlink()
        follower.expect(f"persistedstate: {path} is gone; waiting for it to come back")
        path.with_name("x.new").write_text("a: [\nb: 1\n", encoding="utf-8")
        path.with_name("x.new").rename(path)
        assert follower.line().startswith(f"persistedstate: {path}: line 1, column 4: ")
        path.with_name("x.new").write_text("a: 3\n", encoding="utf-8")
        path.with_name("x.new").rename(path)
        follower.expect("~ a: 2 → 3")


@pytest.mark.leaves("files")
def test_following_tells_a_trouble_once_until_it_is_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away, damaged = path.with_name("x.away"), path.with_name("x.damaged")
    path.write_text("a: 1\n", encoding="utf-8")
    damaged.write_text("a: [\n", encoding="utf-8")
    go, come_back = lambda: path.rename(away), lambda: away.rename(path)
    between: Iterator[Any] = iter([go, int, int, come_back, int, go, int, lambda: damaged.rename(path), int, int])

    def sleep(_: float) -> None:
        next(between, lambda: signal.raise_signal(signal.SIGINT))()

    monkeypatch.setattr(persistedstate._System, "sleep", staticmethod(sleep))

    assert main(["log", "--follow", str(path)]) == 130

    told = [line.removeprefix(f"persistedstate: {path}") for line in capsys.readouterr().err.splitlines()]
    assert [line[:8] for line in told] == [" is gone", " is gone", ": line 1"]


def test_following_ends_when_nobody_reads_any_more(path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",2]\n', encoding="utf-8")
    shell = '"$0" -m persistedstate log --follow x.state | head -n 1'

    done = subprocess.run(
        ["sh", "-c", shell, sys.executable],
        cwd=path.parent, env=ENVIRON, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=True,
    )  # fmt: skip

    assert (done.stdout, done.stderr) == ("~ a: 1 → 2\n", "")


@in_a_terminal
def test_following_in_a_terminal(script: Child, path: Path) -> None:
    tell(script, "STATE.last_id = 41")
    with Terminal([*COMMAND, "log", "--follow", str(path)], ENVIRON) as terminal:
        terminal.until_shown("+ last_id: 41")
        tell(script, "STATE.last_id = 42; STATE.vacuum()")
        terminal.until_shown("~ last_id: 41 → 42")
        tell(script, "STATE.jobs = ['a']; del STATE.last_id; STATE.vacuum()")
        terminal.until_shown("+ jobs: [a]", "- last_id: 42")
        terminal.press("\x03")
        terminal.finish(130)

        assert {"green", "red", "brown"} <= terminal.colours  # brown is pyte's name for yellow


# ---- watch ----


@in_a_terminal
def test_watch_draws_the_state_and_marks_what_changed(script: Child, path: Path) -> None:
    tell(script, "STATE.update(last_id=41, jobs=[{'name': 'a', 'done': False}])")
    with Terminal([*COMMAND, "watch", str(path)], ENVIRON) as terminal:
        terminal.until_shown("last_id: 41")
        assert terminal.lines[1:5] == ["  last_id: 41", "  jobs:", "  - name: a", "    done: false"]
        assert terminal.lines[0] == "x.state, Ctrl-C ends"

        tell(script, "STATE.jobs[0]['done'] = True")
        terminal.until_shown("~ jobs[0].done: false → true")
        assert terminal.lines[1:5] == ["  last_id: 41", "  jobs:", "  - name: a", ">   done: true"]
        assert "brown" in terminal.colours

        tell(script, "STATE.vacuum(); STATE.jobs.append({'name': 'b'})")
        terminal.until_shown("+ jobs[1]: {name: b}")
        assert terminal.lines[1:6] == ["  last_id: 41", "  jobs:", "  - name: a", "    done: true", "> - name: b"]
        terminal.until(lambda: ">" not in "".join(terminal.lines))  # that was a while ago


@in_a_terminal
@pytest.mark.parametrize(
    ("number", "code"), [("^C", 130), ("^\\", 131), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_watch_leaves_the_terminal_as_it_was(number: str | signal.Signals, code: int, config: Path) -> None:
    with Terminal([*COMMAND, "watch", str(config)], ENVIRON) as terminal:
        terminal.until_shown("retry")
        assert (terminal.echoes_at_first, terminal.echoes) == (True, False)
        if isinstance(number, str):
            terminal.press(chr(ord(number[1]) & 31))
        else:
            terminal.send_signal(number)
        terminal.finish(code)

        assert terminal.written.startswith(b"\x1b[?1049h\x1b[?25l\x1b[?7l")
        assert terminal.written.endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
        assert terminal.echoes


@in_a_terminal
def test_watch_gives_the_terminal_back_while_it_is_stopped(config: Path) -> None:
    with Terminal([*COMMAND, "watch", str(config)], ENVIRON) as terminal:
        terminal.until_shown("retry")
        terminal.send_signal(signal.SIGTSTP)
        terminal.until(lambda: terminal.written.count(b"\x1b[?1049h") == 2)  # without a shell it goes on at once
        assert b"\x1b[?7h\x1b[?25h\x1b[?1049l\x1b[?1049h\x1b[?25l\x1b[?7l" in terminal.written
        terminal.until(lambda: terminal.written.count(b"retry") == 2)
        terminal.press("\x03")
        terminal.finish(130)

        assert terminal.echoes


@in_a_terminal
def test_watch_gives_the_terminal_back_when_a_second_signal_comes(config: Path) -> None:
    """Ctrl-C twice, or the terminal is closed meanwhile."""
    code = """if True:
        import os, signal, sys
        from persistedstate_tools.command_line import main
        from persistedstate_tools.screen import Screen
        leave = Screen._leave
        def leave_signalled(screen):
            for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT:
                os.kill(os.getpid(), number)
            leave(screen)
        Screen._leave = leave_signalled
        sys.exit(main())
    """
    with Terminal([sys.executable, "-c", code, "watch", str(config)], ENVIRON) as terminal:
        terminal.until_shown("retry")
        terminal.press("\x03")
        terminal.finish(130)

        assert terminal.written.endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
        assert terminal.echoes


@in_a_terminal
def test_watch_ends_when_its_window_is_closed(config: Path, tmp_path: Path) -> None:
    shell = 'exec "$@" 2>>"$0"'
    with Terminal(
        ["/bin/sh", "-c", shell, str(tmp_path / "said"), *COMMAND, "watch", str(config)], ENVIRON
    ) as terminal:
        terminal.until_shown("retry")
        terminal.close_window()
        terminal.finish(129)

    assert (tmp_path / "said").read_text(encoding="utf-8") == ""
    (tmp_path / "said").unlink()


@in_a_terminal
def test_watch_goes_on_at_a_signal_that_is_ignored(script: Child, path: Path) -> None:
    with Terminal(["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *COMMAND, "watch", str(path)], ENVIRON) as terminal:
        terminal.until_shown("{}")
        terminal.send_signal(signal.SIGHUP)
        tell(script, "STATE.a = 1")
        terminal.until_shown("a: 1")


@in_a_terminal
def test_watch_fits_the_window(script: Child, path: Path) -> None:
    tell(script, "STATE.update(numbers=list(range(100)), long='x' * 200)")
    with Terminal([*COMMAND, "watch", str(path)], ENVIRON, columns=70, rows=8) as terminal:
        terminal.until_shown("x.state, lines 1 to 6 of 102, Ctrl-C ends")
        assert terminal.lines[1:7] == ["  numbers:", *(f"  - {number}" for number in range(5))]

        tell(script, "STATE.numbers[5] = 'below'")
        terminal.until_shown("> - below", "~ numbers[5]: 5 → below")
        tell(script, "STATE.numbers[70] = 'here'")
        terminal.until_shown("> - here", "~ numbers[70]: 70 → here")

        tell(script, "STATE.long = 'y' * 200")
        terminal.until_shown("> long: yyy")
        [line] = [line for line in terminal.lines if "> long: yyy" in line]
        assert len(line) == 70
        assert line.endswith("y…")

        terminal.resize(30, 5)
        terminal.until(lambda: any(line.startswith("> long") and len(line) == 30 for line in terminal.lines[1:4]))
        terminal.resize(40, 20)
        terminal.until(lambda: sum(line.startswith("  - 9") for line in terminal.lines) == 10)


@in_a_terminal
def test_watch_of_a_part_that_comes_and_goes(script: Child, path: Path) -> None:
    with Terminal([*COMMAND, "watch", "x.state", "jobs[0]"], ENVIRON, cwd=path.parent) as terminal:
        terminal.until_shown("# jobs: there is no such key")
        tell(script, "STATE.jobs = [{'name': 'a'}]; STATE.other = 1")
        terminal.until_shown("> name: a")
        assert not any("other" in line for line in terminal.lines)
        script.finish()
        path.unlink()
        terminal.until_shown("is gone; waiting")
        path.write_text("jobs: [{name: again}]\n", encoding="utf-8")
        terminal.until_shown("> name: again")


@in_a_terminal
def test_watch_of_a_file_with_other_line_ends(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfa: 1 #\ttab\r\nb: 2\r\n")
    with Terminal([*COMMAND, "watch", str(path)], ENVIRON) as terminal:
        terminal.until_shown("a: 1")

        assert terminal.lines[1:4] == ["  a: 1 #  tab", "  b: 2", ""]


@in_a_terminal
def test_watch_without_colours(config: Path) -> None:
    with Terminal([*COMMAND, "watch", str(config)], {**ENVIRON, "NO_COLOR": "1"}, rows=20) as terminal:
        terminal.until_shown("retry")
        config.write_text(CONFIG.replace("0x1E", "0x1F"), encoding="utf-8")
        terminal.until_shown("> retry:   0x1F      # thirty")

        assert terminal.colours == {"default"}
        assert b"\x1b[33m" not in terminal.written


def test_watch_prints_lines_into_a_pipe(script: Child, path: Path) -> None:
    tell(script, "STATE.a = {'b': 1}; STATE.c = 1")
    with Child(BY_LINES, "watch", path, "a") as watcher:
        watcher.expect("b: 1")
        tell(script, "STATE.c = 2; STATE.a['b'] = 2")
        watcher.expect("~ a.b: 1 → 2")
        tell(script, "STATE.vacuum(); del STATE.a")
        watcher.expect("- a: {b: 2}")
        watcher.send_signal(signal.SIGINT)
        watcher.finish(130)


# ---- check, repair, vacuum, diff, demo ----


def test_check_tells_every_problem(path: Path) -> None:
    path.write_text('a: 1\nb: [\nc: 2\nd: "x\n--- ["set",[],"a",2]\n', encoding="utf-8")

    said = printed("check", path, code=1).splitlines()

    assert [line.split(": ")[1] for line in said if not line.startswith(" ")] == [
        "line 2, column 4",
        "line 4, column 4",
    ]
    assert said[1:3] == ["    b: [", "       ^"]
    assert path.read_text(encoding="utf-8").startswith("a: 1\nb: [\n")


@pytest.mark.leaves("files")
def test_repair_tells_what_it_did(path: Path) -> None:
    damaged = "# mine\na: 1\nb: [\nc: 2\n"
    path.write_text(damaged, encoding="utf-8")

    dry = printed("repair", "--dry-run", path)
    assert path.read_text(encoding="utf-8") == damaged
    said = printed("repair", path)

    assert "line 3, column 4" in said
    assert f"{path}: would be repaired, {len(damaged)} → 17 bytes" in dry
    assert f"{path}: repaired, {len(damaged)} → 17 bytes" in said
    [aside] = [name for name in listing(path.parent) if ".damaged-" in name]
    assert said.endswith(f"what was cut is in {path.parent / aside}\n")
    assert (path.parent / aside).read_text().endswith("b: [\n")
    assert path.read_text(encoding="utf-8") == "# mine\na: 1\nc: 2\n"
    assert printed("repair", path) == f"{path}: sound, nothing to repair\n"


def test_vacuum_tells_the_sizes(path: Path) -> None:
    text = 'a: 1  # one\n--- ["set",[],"a",2]\n'
    path.write_text(text, encoding="utf-8")

    assert printed("vacuum", path) == f"{path}: {len(text)} → 12 bytes\n"

    assert path.read_text(encoding="utf-8") == "a: 2  # one\n"


def test_diff_tells_what_differs(tmp_path: Path) -> None:
    one, other = tmp_path / "one.state", tmp_path / "other.state"
    one.write_text("last_id: 41\njobs: [{name: a}, b, c]\ngone: 1\nkind: 1\n", encoding="utf-8")
    other.write_text(
        'new: [x]\nkind: 1.0\njobs: [{name: z}, c]\nlast_id: 41\n--- ["set",[],"last_id",42]\n', encoding="utf-8"
    )

    said = printed("diff", one, other, code=1)

    assert said.splitlines() == [
        "~ last_id: 41 → 42",
        "- jobs[1]: b",
        "~ jobs[0].name: a → z",
        "- gone: 1",
        "~ kind: 1 → 1.0",
        "+ new: [x]",
    ]
    assert printed("diff", one, one) == ""


def test_demo_shows_that_a_script_goes_on() -> None:
    said = printed("demo")

    assert said.count("$ python resumable.py") == 3
    assert "300 items: 0 repeated, 0 missing" in said
    assert said.endswith("As promised: each run went on where the one before it ended.\n")


# ---- Terminals, pipes, encodings ----


def test_reader_that_goes_away_is_no_error(path: Path) -> None:
    PersistedState(path, numbers=list(range(50_000))).close()
    for arguments in ["show", path], ["get", path, "numbers"], ["show", "--json", path]:
        with subprocess.Popen([*COMMAND, *map(str, arguments)], env=ENVIRON, stdout=-1, stderr=-1) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(5)
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110
def test_output_that_cannot_be_written_is_told(config: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        done = run("show", config, stdout=full)

    assert (done.returncode, done.stderr) == (
        2,
        "persistedstate: standard output: No space left on device\n",
    )


def test_closed_output_is_no_error(config: Path) -> None:
    shell = '"$0" -m persistedstate show x.state >&-'

    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], cwd=config.parent, env=ENVIRON, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", '~ a: 1 -> "\\xdf"'), ("latin-1", '~ a: 1 -> "ß"')])
def test_output_that_knows_few_characters(encoding: str, shown: str, path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a","ß"]\n', encoding="utf-8")

    done = run("log", path, environ={**ENVIRON, "PYTHONIOENCODING": encoding}, encoding=encoding)

    assert (done.returncode, done.stdout) == (0, f"{shown}\n")


def test_json_for_an_output_that_knows_few_characters_is_json(path: Path) -> None:
    path.write_text('a: "ß 😀"\n', encoding="utf-8")

    done = run("show", path, "--json", environ={**ENVIRON, "PYTHONIOENCODING": "ascii"})

    assert json.loads(done.stdout) == {"a": "ß 😀"}


def test_text_is_written_as_utf_8_whatever_the_locale_says(path: Path) -> None:
    """As a state file is: what `show` writes into another file is the same state, from cron, too."""
    path.write_text("# Grüße\nключ: grün  # 😀\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environ = {key: value for key, value in ENVIRON.items() if key != "PYTHONIOENCODING"} | locale
    commands = [("set", path, "a", r'"\u00df"'), ("get", path, "a"), ("show", path), ("show", path, "--json")]

    done = [run(*command, environ=environ) for command in commands]

    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * len(commands)
    assert [each.stdout for each in done[:3]] == ["", "ß\n", "# Grüße\nключ: grün  # 😀\na: ß\n"]
    assert json.loads(done[3].stdout) == {"ключ": "grün", "a": "ß"}
    assert path.read_text(encoding="utf-8") == done[2].stdout


@in_a_terminal
@pytest.mark.parametrize(
    ("extra", "colours"),
    [({}, {"brown"}), ({"NO_COLOR": "1"}, set()), ({"TERM": "dumb"}, set())],
)
def test_colours_are_for_terminals_that_have_them(extra: dict[str, str], colours: set[str], path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",2]\n', encoding="utf-8")

    with Terminal([*COMMAND, "log", str(path)], {**ENVIRON, **extra}) as terminal:
        terminal.finish()

    assert terminal.lines[0] == "~ a: 1 → 2"
    assert terminal.colours - {"default"} == colours
    assert "\x1b" not in printed("log", path)


def test_warning_is_one_line(path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",', encoding="utf-8")

    done = run("set", path, "b", "2")

    assert done.returncode == 0
    assert done.stderr.startswith(f"persistedstate: {path}: dropped 18 bytes")
    assert path.read_text(encoding="utf-8") == "a: 1\nb: 2\n"


#: The command line, which tells when it has tried for a lock in vain and waits to try again.
TELLS_THAT_IT_WAITS = """
import sys, persistedstate
from persistedstate_tools.command_line import main
class Telling(persistedstate._System):
    @staticmethod
    def sleep(seconds):
        print("waits", flush=True)
        persistedstate._System.sleep(seconds)
persistedstate._system = Telling()
sys.exit(main())
"""


@in_a_terminal
def test_ctrl_c_ends_without_a_traceback(script: Child, path: Path) -> None:
    command = [sys.executable, "-c", TELLS_THAT_IT_WAITS, "set", str(path), "a", "1", "--wait", "60"]
    with Terminal(command, ENVIRON) as terminal:
        terminal.until_shown("waits")
        terminal.press("\x03")
        terminal.finish(130)

        assert terminal.written.replace(b"waits\r\n", b"").rstrip() == b"^C"
    tell(script, "STATE.a = 2")


# ---- Help ----


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0

    shown = capsys.readouterr().out
    assert re.search(r"example:\n  (last=\$\(|source <\()?persistedstate ", shown)


def test_examples_are_commands() -> None:
    lines = [line for command in _COMMANDS.values() for line in command.example.splitlines()]

    for line in lines:
        words = shlex.split(re.sub(r"^(last=\$\(|source <\()(.*?)\).*", r"\2", line.strip()))
        words = words[: words.index("|")] if "|" in words else words
        assert words[0] == "persistedstate"
        assert _parser().parse_args(words[1:]).command in _COMMANDS


def test_help_of_all_explains_paths_and_exit_codes() -> None:
    shown = printed("--help")

    assert "jobs[3].name" in shown
    assert "exit codes: 0 done" in shown
    assert all(f"\n    {command}" in shown for command in _COMMANDS)


def test_bare_command_shows_the_help_and_is_no_success() -> None:
    done = subprocess.run(COMMAND, env=ENVIRON, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", printed("--help"))


def test_command_without_arguments_from_sys_argv(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["persistedstate", "get", str(config), "retry"])
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)

    assert main() == 0
    assert out.getvalue() == "30\n"
