"""Completion at TAB: what the tools offer for each word, and the scripts in real shells, in a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from persistedstate_tools.command_line import _COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Iterator

Terminal: Any = None
with suppress(ImportError):
    from terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent
TEXT = """\
jobs:
- name: fetch
  done: true
- name: parse
  done: false
last_id: 3
latest:
  a.b: {c: 1}
empty: {}
3: "three: or\\e[31m so"
--- ["set",[],"last_id",4]
"""


@pytest.fixture
def config(path: Path) -> Path:
    path.write_text(TEXT, encoding="utf-8")
    return path


def offered(capsys: pytest.CaptureFixture[str], *words: object, by: str = "bash") -> list[str]:
    """Return what is offered in the place of the last word."""
    assert main(["completion", by, *map(str, words)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.splitlines()


def test_commands_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(capsys, "") == [*_COMMANDS, "--version", "--help"]
    assert offered(capsys, "s") == ["show", "set"]
    assert offered(capsys, "nothing", "") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-"], ["--version", "--help"]),
        (["show", "-"], ["--json", "--help"]),
        (["set", "x.state", "--"], ["--string", "--wait", "--help"]),
        (["set", "x.state", "a", "--", "-"], []),
        (["set", "--wait", ""], []),
        (["set", "--wait", "3", ""], [":files"]),
        (["set", "--string", ""], [":files"]),
        (["set", "x.state", "--string", "-"], ["--string", "--wait", "--help"]),
        (["set", "x.state", "a", ""], []),
        (["diff", "x.state", ""], [":files"]),
        (["diff", "x.state", "y.state", ""], []),
        (["demo", ""], []),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_each_place_has_its_words(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(capsys, *words) == expected


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        ("", ["jobs", "jobs.", "last_id", "latest", "latest.", "empty", "empty.", "[3]"]),
        ("la", ["last_id", "latest", "latest."]),
        ("jobs.", ["jobs.0", "jobs.0.", "jobs.1", "jobs.1."]),
        ("jobs.1.", ["jobs.1.name", "jobs.1.done"]),
        ("jobs[1].n", ["jobs[1].name"]),
        ("jobs[", ["jobs[0]", "jobs[0].", "jobs[1]", "jobs[1]."]),
        ("latest[", ["latest['a.b']", "latest['a.b']."]),
        ("\"latest['a.b'].", ["latest['a.b'].c"]),
        ("latest\\[\\'a", ["latest['a.b']", "latest['a.b']."]),
        ("last_id.", []),
        ("nothing", []),
    ],
)
@pytest.mark.parametrize("command", [["get"], ["set", "--wait", "1"], ["watch"]])
def test_paths_of_the_file_are_offered(
    command: list[str], current: str, expected: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = config.read_bytes()

    assert offered(capsys, *command, config, current) == expected
    assert config.read_bytes() == before


def test_each_path_that_is_offered_leads_to_something(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo, done = [""], set()
    while todo:
        for found in offered(capsys, "get", config, todo.pop()):
            if found.endswith("."):
                todo.append(found)
            else:
                done.add(found)
                assert main(["get", str(config), found]) == 0
                capsys.readouterr()

    assert {"jobs.0.name", "latest", "last_id", "[3]"} <= done


@pytest.mark.parametrize("text", ["a: [", None])
def test_file_that_cannot_be_read_offers_nothing(
    text: str | None, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        path.write_text(text, encoding="utf-8")

    assert offered(capsys, "get", path, "") == []


def test_home_is_found(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(config.parent))

    assert offered(capsys, "get", f"~/{config.name}", "last") == ["last_id"]


def test_descriptions_are_for_shells_that_show_them(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a file holds is shown as one line that no terminal obeys."""
    assert "last_id\t4" in offered(capsys, "get", config, "", by="fish")
    assert "last_id:4" in offered(capsys, "get", config, "", by="zsh")
    assert "[3]\tthree: or [31m so" in offered(capsys, "get", config, "", by="fish")
    assert f"watch:{_COMMANDS['watch'].does}" in offered(capsys, "w", by="zsh")


# ---- In shells ----

#: How each is started without the settings of the person who runs the tests, and told to complete.
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], "source <(persistedstate completion bash)"),
    "zsh": (["-f", "-i"], "autoload -U compinit; compinit -u -D; source <(persistedstate completion zsh)"),
    "fish": (["--no-config", "-i"], "persistedstate completion fish | source"),
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A shell in a terminal, with completion, in a folder that holds `a file.state` and `x.state`."""
    program = shutil.which(request.param)
    if not program or Terminal is None:
        pytest.skip(f"needs {request.param}, pyte and pseudo-terminals")
    folder, home = tmp_path / "folder", tmp_path / "home"
    for made in (folder, home, tmp_path / "bin"):
        made.mkdir()
    for name in ("x.state", "a file.state"):
        (folder / name).write_text(TEXT, encoding="utf-8")
    command = tmp_path / "bin/persistedstate"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/persistedstate.py" "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    environ = {"PATH": path, "HOME": str(home), "PS1": "$ ", "LC_ALL": "C.UTF-8"}
    options, prepare = SHELLS[request.param]
    with Terminal([program, *options], environ, columns=100, rows=30, cwd=folder) as terminal:
        terminal.press(f"{prepare}; echo re''ady\r")
        terminal.until_shown("ready")
        yield terminal


def typed(terminal: Any, *parts: str) -> None:
    """Type parts of a line; each must have been shown before the next comes: what it became, if that is told."""
    for part in parts:
        keys, _, shown = part.partition(" => ")
        terminal.press(keys)
        terminal.until_shown(shown or keys)


def test_shell_completes_commands_files_and_paths(shell: Any) -> None:
    typed(shell, "persistedstate wat\t => persistedstate watch", "\x15persistedstate ge\t => persistedstate get")
    typed(shell, "x.st\t => get x.state", "jo\t => get x.state jobs", ".1.n\t => get x.state jobs.1.name")

    shell.press("\r")

    shell.until(lambda: "parse" in shell.lines)


def test_shell_completes_options(shell: Any) -> None:
    typed(shell, "persistedstate set --str\t => set --string", "x.st\t => set --string x.state")


def test_shell_completes_a_name_that_must_be_quoted(shell: Any) -> None:
    typed(shell, "persistedstate get a\t => get a\\ file.state", "last\t => a\\ file.state last_id")

    shell.press("\r")

    shell.until(lambda: "4" in shell.lines)


def test_shell_completes_a_path_that_must_be_quoted(shell: Any) -> None:
    typed(shell, "persistedstate get x.state \"latest['a\t => x.state \"latest['a.b']", ".\t => 'a.b'].c\"")

    shell.press("\r")

    shell.until(lambda: "1" in shell.lines)


@pytest.mark.parametrize("key", ["$(touch sprung)", ";touch sprung;"])
@pytest.mark.parametrize("opened", ["", '"', "'"])
def test_key_that_a_shell_would_run_is_only_text(
    shell: Any, opened: str, key: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever quotes were typed before TAB; bash, which does not quote what it inserts, is not offered all then."""
    folder = tmp_path / "folder"
    (folder / "trap.state").write_text(f"trap: {{'{key}': 17}}\n", "utf-8")
    is_bash = request.node.callspec.params["shell"] == "bash"
    is_left_out = is_bash and (opened == "'" or (opened == '"' and "$" in key))

    typed(shell, f"persistedstate get trap.state {opened}trap")
    if is_left_out:
        typed(shell, f"[\tx => {opened}trap[x")
    else:
        escape = "" if opened else "\\"
        typed(shell, f"{escape}[\t => sprung")
        shell.press("\r")
        shell.until(lambda: "17" in shell.lines)

    assert not (folder / "sprung").exists()


def test_tab_runs_nothing_that_lies_in_the_folder(shell: Any, tmp_path: Path) -> None:
    trap = tmp_path / "folder/persistedstate"
    trap.write_text("#!/bin/sh\ntouch sprung\n", encoding="utf-8")
    trap.chmod(0o755)

    typed(shell, "./persistedstate get x.st\t => get x.state")

    assert not (tmp_path / "folder/sprung").exists()
