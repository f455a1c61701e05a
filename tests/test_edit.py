"""`persistedstate edit`, with a real program as the editor, and `copy`."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from processes import PATIENCE, Child
from test_command_line import BUSY, SCRIPT, tell

import persistedstate
from persistedstate import PersistedState, plain
from persistedstate_tools import renewal
from persistedstate_tools.command_line import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONFIG = """\
# how the importer is set up

retry:   0x1E      # thirty
hosts: [alpha, beta]   # first one wins
last_id: 3
"""

#: An editor whose sessions are told before: the code of each finds the `path` and `text` of what it edits.
EDITOR = """
import os, pathlib, signal, sys
folder, path = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[-1])
[*_, session] = sorted(folder.glob("session-*"), reverse=True)
text = path.read_bytes().decode(errors="surrogateescape")
folder.joinpath(session.name.replace("session", "seen")).write_bytes(path.read_bytes())
folder.joinpath("path").write_text(str(path))
code = session.read_text()
session.unlink()
exec(code)
path.write_bytes(text.encode(errors="surrogateescape"))
"""


@pytest.fixture
def editor(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Tell the editor what it does, one code for each time it is called; returns a folder with what it has seen."""
    folder = tmp_path_factory.mktemp("editor")
    program = folder / "editor.py"
    program.write_text(EDITOR)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(program), str(folder)]))
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def does(*sessions: str) -> Path:
        for number, code in enumerate(sessions):
            (folder / f"session-{number}").write_text(textwrap.dedent(code))
        return folder

    yield does
    assert not list(folder.glob("session-*"))


@pytest.fixture
def config(path: Path) -> Path:
    path.write_text(CONFIG, encoding="utf-8")
    return path


def kept(folder: Path) -> list[Path]:
    """Return the texts that were left in the temporary folder."""
    return list(folder.glob("persistedstate-*/*"))


def test_what_is_saved_becomes_the_state_and_its_text(
    editor: Callable[..., Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with config.open("a") as file:
        file.write('--- ["set",[],"last_id",41]\n')
    folder = editor('text = text.replace("0x1E      # thirty", "5   # patient").replace("[alpha", "[ gamma, alpha")')

    assert main(["edit", str(config)]) == 0

    shown = CONFIG.replace("last_id: 3", "last_id: 41")
    assert (folder / "seen-0").read_text() == shown
    assert (folder / "path").read_text().endswith(".yaml")
    wanted = shown.replace("0x1E      # thirty", "5   # patient").replace("[alpha", "[ gamma, alpha")
    assert config.read_text() == wanted
    assert capsys.readouterr().out == f"{config}: saved\n"
    assert kept(folder) == []


def test_without_a_change_nothing_happens(
    editor: Callable[..., Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = editor(""), config.stat()

    assert main(["edit", str(config)]) == 0

    assert capsys.readouterr().out == f"{config}: no change\n"
    assert config.stat() == before
    assert kept(folder) == []


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("path.write_text(text + 'more: 1\\n'); sys.exit(3)", "ended with exit code 3"),
        ("path.write_text(text + 'more: 1\\n'); os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9"),
    ],
)
def test_an_editor_that_fails_changes_nothing_and_keeps_the_text(
    code: str, how: str, editor: Callable[..., Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = editor(code)

    assert main(["edit", str(config)]) == 2

    said = capsys.readouterr()
    [name] = kept(folder)
    assert how in said.err
    assert said.err.endswith(f"; nothing was changed; the text is kept in {name}\n")
    assert name.read_text() == CONFIG + "more: 1\n"
    assert config.read_text() == CONFIG


def test_a_mistake_is_told_at_its_line_and_taken_out_again(editor: Callable[..., Path], config: Path) -> None:
    folder = editor(
        'text = text.replace("beta]", "beta")',
        'assert text.count("#! persistedstate: ") == 2; text = text.replace("last_id: 3", "\\tlast_id: 3")',
        'text = text.replace("beta", "beta]").replace("\\t", "")',
    )

    assert main(["edit", str(config)]) == 0

    lines = (folder / "seen-1").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("#! persistedstate: the next line"))
    assert lines[first + 2] in ("last_id: 3", "hosts: [alpha, beta   # first one wins")
    assert "".join(f"{line}\n" for line in lines[:first] + lines[first + 2 :]) == CONFIG.replace("beta]", "beta")
    assert config.read_text() == CONFIG


def test_who_leaves_a_mistake_gives_up(
    editor: Callable[..., Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = editor('text = text.replace("beta]", "beta")', "")

    assert main(["edit", str(config)]) == 2

    [name] = kept(folder)
    assert "the mistake is still there; nothing was changed" in capsys.readouterr().err
    assert "[alpha, beta " in name.read_text()
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", 2),
        ("- 1\n", 1),
        ("a: 1\nb: !!python/object:x.y {}\n", 2),
        ("a: [b, c]]\n", 1),
        ('a: 1\n"],[2]]\n', 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: |\n  x\n b: 1\n", 3),
    ],
)
def test_each_kind_of_mistake_opens_the_editor_again(
    text: str, line: int, editor: Callable[..., Path], config: Path
) -> None:
    folder = editor(f"text = {text!r}", "")

    assert main(["edit", str(config)]) == 2

    seen = (folder / "seen-1").read_text().splitlines()
    assert seen[line - 1].startswith("#! persistedstate: the next line")
    assert config.read_text() == CONFIG


def test_bytes_that_are_no_text_are_a_mistake(editor: Callable[..., Path], config: Path) -> None:
    editor("path.write_bytes(b'a: \\xff\\n'); os._exit(0)", "")

    assert main(["edit", str(config)]) == 2
    assert config.read_text() == CONFIG


def test_an_empty_text_empties_nothing(
    editor: Callable[..., Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor("text = ''")

    assert main(["edit", str(config)]) == 2

    assert "because the text is empty; a state without entries is {}" in capsys.readouterr().err
    assert config.read_text() == CONFIG


def test_without_a_file_there_is_nothing_to_edit(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", str(path)]) == 2

    assert "no such file" in capsys.readouterr().err


def test_a_line_end_less_and_carriage_returns_survive(editor: Callable[..., Path], path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: |\r\n  x")
    editor('text = text.replace("a: 1", "a: 2 # c")')

    assert main(["edit", str(path)]) == 0

    assert path.read_bytes() == b"\xef\xbb\xbfa: 2 # c\r\nb: |\r\n  x"


# ---- Beside scripts ----


def await_that(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_a_script_does_meanwhile_is_merged(is_shared: bool, editor: Callable[..., Path], config: Path) -> None:
    """The script changes the state while the editor is open, and goes on after that."""
    options = ", _shared=True" if is_shared else ""
    folder = editor("""
        import time
        folder.joinpath("ready").touch()
        while not folder.joinpath("go").exists():
            time.sleep(0.01)
        text = text.replace("# thirty", "# ours").replace("beta]", "beta, gamma]")
        text = text.replace("last_id: 3", "last_id: 3   # up")
    """)
    code = SCRIPT.replace("sys.argv[1])", f"sys.argv[1]{options})")
    with Child(code, config) as script:
        script.expect("open")
        edit = Child(
            f"import sys, tempfile; tempfile.tempdir = {str(folder)!r}\n"
            "from persistedstate_tools.command_line import main; sys.exit(main(['edit', sys.argv[1]]))", config
        )  # fmt: skip
        with edit:
            await_that((folder / "ready").exists)
            tell(script, "STATE.last_id = 4; STATE.hosts.insert(0, 'zero'); STATE.added = 1")
            (folder / "go").touch()
            line = edit.line()
            edit.finish()
        tell(script, "import time; time.sleep(0.3); STATE.last_id += 1")
        tell(script, "assert STATE.copy() == {'retry': 30, 'hosts': ['zero', 'alpha', 'beta', 'gamma'], "
             "'last_id': 5, 'added': 1}, STATE")  # fmt: skip
        tell(script, "STATE.vacuum()")
        script.finish()
        told = f"; process {script.pid} that has the file takes it over with its next change"
        assert line == f"{config}: saved{'' if is_shared else told}"
        assert config.read_text() == (
            "# how the importer is set up\n\nretry:   0x1E      # ours\n"
            "hosts: [zero, alpha, beta, gamma]   # first one wins\nlast_id: 5   # up\nadded: 1\n"
        )


def test_a_script_that_never_rests_loses_nothing(editor: Callable[..., Path], path: Path) -> None:
    """What is newer than its last snapshot can be removed, too: it renews the file first."""
    with Child(BUSY, path) as script:
        script.expect("open")
        await_that(lambda: "number" in path.read_text())
        editor('text = text + "ours: 1   # kept\\n"', 'text = text.replace("ours: 1", "ours: 2")')

        assert main(["edit", str(path)]) == 0
        await_that(lambda: "ours: 1   # kept\n" in path.read_text())
        assert main(["edit", str(path)]) == 0
        await_that(lambda: "ours: 2   # kept\n" in path.read_text())
        script.finish()

    with PersistedState(path) as state:
        assert state.ours == 2
        assert state.up == -state.down == state.last[-1]["number"]
    assert "ours: 2   # kept\n" in path.read_text()


def test_a_save_that_a_vacuum_covers_is_made_again(
    editor: Callable[..., Path], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script has looked for the last time in front of its renaming, and so does not see what is saved then."""
    with Child(SCRIPT.replace("STATE.close()", ""), config) as script:
        script.expect("open")
        tell(script, "import os; from persistedstate import _system; replace = _system.replace")
        tell(script, "def late(*names): print('at it'); sys.stdin.readline(); replace(*names)")
        tell(script, "_system.replace = late; STATE.last_id = 4")
        script.tell("STATE.vacuum(); _system.replace = replace")
        script.expect("at it")
        place = persistedstate._system.replace

        def covered(*names: str) -> None:
            place(*names)
            monkeypatch.undo()
            script.tell()
            script.expect("done")

        editor('text = text.replace("last_id", "ours: 1\\nlast_id")')
        monkeypatch.setattr(persistedstate._system, "replace", covered)

        assert main(["edit", str(config)]) == 0
        tell(script, "STATE.refresh(); assert STATE.ours == 1 and STATE.last_id == 4, STATE")


@pytest.mark.parametrize("is_busy", [False, True])
def test_what_the_script_made_since_its_snapshot_can_be_removed(
    is_busy: bool, editor: Callable[..., Path], config: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Only with the help of the script, because what it compares with does not have that."""
    monkeypatch.setattr(renewal, "_UPTAKE", 30.0 if is_busy else 0.2)
    with Child(SCRIPT.replace("STATE.close()", ""), config) as script:
        script.expect("open")
        tell(script, "STATE.extra = 1; STATE.hosts.append('new')")
        sleep = persistedstate._system.sleep

        def work(_: float) -> None:
            sleep(0.2)
            tell(script, "STATE.last_id += 1")

        if is_busy:
            monkeypatch.setattr(persistedstate._system, "sleep", work)
        folder = editor('text = text.replace("extra: 1\\n", "").replace(", new", "")')

        assert main(["edit", str(config)]) == (0 if is_busy else 2)

        said = capsys.readouterr()
        if is_busy:
            work(0)
            tell(script, "assert 'extra' not in STATE and STATE.hosts == ['alpha', 'beta'], STATE")
        else:
            [name] = kept(folder)
            assert "made what you changed since it last renewed the file" in said.err
            assert said.err.endswith(f"the text is kept in {name}\n")
            tell(script, "assert STATE.extra == 1 and STATE.hosts[-1] == 'new'")


@pytest.mark.leaves("files")
def test_an_edited_file_keeps_its_other_names_and_its_mode(editor: Callable[..., Path], config: Path) -> None:
    config.chmod(0o640)
    other = config.with_name("other")
    os.link(config, other)
    with Child(SCRIPT.replace("STATE.close()", ""), config) as script:
        script.expect("open")
        editor('text = text.replace("0x1E", "7")')

        assert main(["edit", str(config)]) == 0
        tell(script, "STATE.refresh(); assert STATE.retry == 7")

    assert config.samefile(other)
    assert config.stat().st_mode & 0o777 == 0o640


def test_comments_of_two_who_edit_at_the_same_time_are_kept(editor: Callable[..., Path], config: Path) -> None:
    """So are the values that each of them changed."""
    edits = "text = text.replace('# thirty', '# by the other').replace('last_id: 3', '# new\\nown: 1\\nlast_id: 3')"
    other = f"path = {str(config)!r}; text = open(path).read(); {edits}; open(path, 'w').write(text)"
    editor(f"""
        import subprocess
        subprocess.run([sys.executable, "-c", {other!r}], check=True)
        text = text.replace("# first one wins", "# ours").replace("last_id: 3", "last_id: 4") + "more: 1   # of us\\n"
    """)

    assert main(["edit", str(config)]) == 0

    assert config.read_text() == (
        "# how the importer is set up\n\nretry:   0x1E      # by the other\nhosts: [alpha, beta]   # ours\n"
        "# new\nown: 1\nlast_id: 4\nmore: 1   # of us\n"
    )


# ---- copy ----


@pytest.mark.leaves("files")
def test_copy_takes_text_values_and_permissions(config: Path) -> None:
    config.chmod(0o600)
    target = config.with_name("target")
    with config.open("a") as file:
        file.write('--- ["set",[],"last_id",41]\n')

    assert main(["copy", str(config), str(target)]) == 0

    assert target.read_text() == CONFIG.replace("last_id: 3", "last_id: 41")
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["a: 1\n", "# only a comment\n"])
@pytest.mark.leaves("files")
def test_copy_replaces_nothing_unless_it_is_told_to(
    text: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = config.with_name("target")
    target.write_text(text)

    assert main(["copy", str(config), str(target)]) == 2

    said = f"{target}: holds something already; nothing was changed, and --force replaces it"
    assert capsys.readouterr().err == f"persistedstate: {said}\n"
    assert target.read_text() == text
    assert main(["copy", "--force", str(config), str(target)]) == 0
    assert target.read_text() == CONFIG


@pytest.mark.leaves("files")
def test_copy_refuses_itself_and_what_is_in_use(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", "--force", str(config), f"{config.parent}/./{config.name}"]) == 2
    assert "is the same as" in capsys.readouterr().err
    target = config.with_name("target")
    with Child(SCRIPT, target) as script:
        script.expect("open")

        assert main(["copy", str(config), str(target)]) == 3

    assert f"in use by process {script.pid}" in capsys.readouterr().err


@pytest.mark.leaves("files")
def test_copy_into_a_shared_file_is_seen_by_those_who_share_it(config: Path) -> None:
    target = config.with_name("target")
    with PersistedState(target, _shared=True) as state:
        with Child("import sys; from persistedstate_tools.command_line import main; sys.exit(main(sys.argv[1:]))",
                   "copy", config, target) as copy:  # fmt: skip
            copy.finish()

        assert state.refresh()
        assert plain(state) == {"retry": 30, "hosts": ["alpha", "beta"], "last_id": 3}
    assert target.read_text() == CONFIG
