"""The READMEs and the docstrings tell the truth: every example in them is run.

A README is a script, read from top to bottom in one namespace and in a new, empty folder. Invisible HTML comments
say what a reader need not see:

- a ```` ```python ```` block is run;
- ``<!-- python … -->``: its text is run as well (stand-ins such as ``def work(item): ...``, or a ``STATE.close()``);
- ``<!-- write: NAME -->`` before a block: it becomes the file NAME (to be opened, or a hand edit);
- ``<!-- file: NAME -->`` before a block: the file NAME must hold exactly that text by then;
- ``<!-- prints -->`` before a block: the Python since the last such block must have printed exactly that text;
- a ```` ```console ```` block is a session in a shell: what stands below each ``$ `` line must be what it prints,
  errors included, with 4711 for the number of any process;
- ``<!-- not run: REASON -->`` before a ```` ```python ```` block: it is not run;
- ``<!-- needs: MODULE -->`` below a heading: its section is a script of its own, skipped where that is missing.

Only blank lines may stand between such a comment and its block. States still open at the end are closed.
"""

from __future__ import annotations

import atexit
import contextlib
import doctest
import functools
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import persistedstate

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
READMES = [README, ROOT / "persistedstate_stores/README.md"]

#: A section that is a script of its own, up to the next heading of its level or above.
NEEDING = re.compile(r"^##(#?) .*\n<!-- needs: (?P<module>\w+) -->\n(?s:.*?)(?=^##?(?!#)|\Z)", re.MULTILINE)

#: A hidden Python comment, or a fenced block with the comment that steers it.
STEP = re.compile(
    r"^<!-- python\n(?P<hidden>.*?)^-->$"
    r"|(?:^<!-- (?P<verb>write|file|prints|not run)(?:: (?P<name>.+?))? -->\n\s*)?"
    r"^```(?P<language>\w*)\n(?P<block>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def scripts() -> list[tuple[Path, str, str]]:
    """Return the file, the needed module and the text of each script, with its lines where they are in the file."""
    found = []
    for file in READMES:
        text = file.read_text(encoding="utf-8")
        for section in NEEDING.finditer(text):
            found.append((file, section["module"], "\n" * text.count("\n", 0, section.start()) + section[0]))
        found.append((file, "persistedstate", NEEDING.sub(lambda section: "\n" * section[0].count("\n"), text)))
    return found


def steps(text: str) -> list[tuple[str, str, str, int]]:
    """Return the README's steps as (verb, name, text, first line), the verb being `run` for Python blocks."""
    found = []
    for match in STEP.finditer(text):
        part = "hidden" if match["hidden"] is not None else "block"
        verbs = {"python": "run", "console": "console"}
        verb = match["verb"] or ("hidden" if part == "hidden" else verbs.get(match["language"], ""))
        found.append((verb, match["name"] or "", match[part], text.count("\n", 0, match.start(part))))
    return found


class Story:
    """What the README's steps have made so far: a namespace, files in the present folder, printed text."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = io.StringIO()

    def take(self, verb: str, name: str, text: str, line: int) -> None:
        if verb in {"run", "hidden"}:
            with contextlib.redirect_stdout(self.printed):
                exec(compile("\n" * line + text, str(self.file), "exec", dont_inherit=True), self.namespace)  # noqa: S102  # our own
        elif verb == "write":
            Path(name).write_text(text, encoding="utf-8")
        elif verb == "file":
            assert Path(name).read_text(encoding="utf-8") == text, f"{self.file}:{line}: {name} differs"
        elif verb == "console":
            assert session(text) == text, f"{self.file}:{line}: the session went differently"
        elif verb == "prints":
            assert self.printed.getvalue() == text, f"{self.file}:{line}: what was printed differs"
            self.printed = io.StringIO()

    def close(self) -> None:
        close_states(self.namespace)


def session(text: str) -> str:
    """Type the commands of a session into a shell; return the session that comes of it."""
    environ = {**os.environ, "PATH": os.pathsep.join([installed_command(), os.environ["PATH"]])}
    typed = []
    for command in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
        done = subprocess.run(["sh", "-c", f"({command}) 2>&1"], env=environ, stdout=subprocess.PIPE, check=False)
        typed.append(f"$ {command}\n{done.stdout.decode()}")
    return re.sub(r"process \d+", "process 4711", "".join(typed))


@functools.cache
def installed_command() -> str:
    """Return a folder with a command `persistedstate` that runs this module, as an installation has one."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    script = folder / "persistedstate"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{persistedstate.__file__}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return str(folder)


def close_states(namespace: dict[str, Any]) -> None:
    for value in namespace.values():
        if isinstance(value, persistedstate.PersistedState):
            value.close()


@pytest.mark.parametrize(("file", "needed", "text"), scripts(), ids=[needed for _, needed, _ in scripts()])
def test_readme_examples_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path, needed: str, text: str
) -> None:
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    story = Story(file)

    with contextlib.closing(story):
        for step in steps(text):
            story.take(*step)


def test_examples_are_found() -> None:
    verbs = {needed: {verb for verb, *_ in steps(text)} for _, needed, text in scripts() if needed != "persistedstate"}
    (main,) = (text for file, needed, text in scripts() if file == README)

    assert {"run", "file", "console", "write", "prints"} <= {verb for verb, *_ in steps(main)}
    assert verbs.keys() == {"key_value", "pystator", "constelite"}
    assert all({"run", "file", "prints"} <= found for found in verbs.values())


def test_readme_shows_code_and_the_file_it_leaves_on_the_first_screen() -> None:
    todo = steps(README.read_text(encoding="utf-8"))

    shown = [(language, first) for language, _, _, first in todo if language in {"run", "file"}]

    assert [verb for verb, _ in shown[:2]] == ["run", "file"]
    assert shown[1][1] < 40


#: What the Makefile offers, by its own words.
OFFERED = set(re.findall(r"^([a-z]+):$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def make(*arguments: str) -> str:
    """Run make, as from a shell of its own; return what it printed."""
    own = ("MAKE", "MFLAGS", "PERSISTEDSTATE_", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_names_the_commands_that_there_are() -> None:
    text = README.read_text(encoding="utf-8")

    assert {"make test", "make demo"} <= set(re.findall(r"`(make \w+)", text))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= OFFERED


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")

    assert {"test", "check", "demo", "bench"} <= set(re.findall(r"make (\w+)", script)) <= OFFERED


@needs_make
def test_bare_make_prints_every_command() -> None:
    assert {"help", *re.findall(r"^make (\w+)  ", make(), re.MULTILINE)} == OFFERED


@needs_make
@pytest.mark.parametrize("command", sorted(OFFERED))
def test_command_of_the_makefile_comes_to_what_can_be_run(command: str) -> None:
    """`make -n` prints each line of its recipe; what they start is in the tree, or in an environment that it makes."""
    lines = make("-n", command, "ARGS=-k some", "VENV=x", "PYTHON=y").splitlines()

    started = {line.split()[0] for line in lines}
    assert started <= {"echo", ".ci/venv", "x/bin/persistedstate", "x/bin/python", "y"}
    assert all((ROOT / path).is_file() for line in lines for path in re.findall(r"[\w.]+/\w+\.py", line))
    assert any("-k some" in line for line in lines) == (command in {"test", "campaign", "bench"})


@needs_make
def test_tests_say_first_how_long_they_take() -> None:
    set_up, said, run = make("-n", "test").splitlines()

    assert "venv" in set_up
    assert re.search(r"0\.05 takes about 3 minutes on 2 cores", said)
    assert "pytest" in run


@pytest.mark.parametrize("file", READMES, ids=lambda file: file.parent.name)
def test_relative_links_lead_somewhere(file: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text(encoding="utf-8"))

    missing = [target for target in targets if "://" not in target and not (file.parent / target).exists()]

    assert missing == []


@pytest.mark.parametrize("file", READMES, ids=lambda file: file.parent.name)
def test_links_within_the_readme_lead_to_a_heading(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}

    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_docstring_examples_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in a new folder, are closed behind them, and may `print(open("example.state").read())` for short."""
    monkeypatch.chdir(tmp_path)
    report = io.StringIO()
    runner = doctest.DocTestRunner()

    for test in doctest.DocTestFinder().find(persistedstate):
        runner.run(test, out=report.write, clear_globs=False)
        close_states(test.globs)

    assert runner.tries > 0
    assert report.getvalue() == ""


def test_every_public_name_has_a_docstring() -> None:
    undocumented = [name for name in persistedstate.__all__ if not getattr(persistedstate, name).__doc__]

    assert undocumented == []


def test_every_public_method_has_a_docstring() -> None:
    """One inherited from `collections.abc` counts: `help()` shows it."""
    undocumented = [
        f"{name}.{method}"
        for name in persistedstate.__all__
        if isinstance(getattr(persistedstate, name), type)
        for method, member in inspect.getmembers(getattr(persistedstate, name))
        if not method.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
        if not inspect.getdoc(member)
    ]

    assert undocumented == []


@pytest.mark.parametrize("option", ["_check", "_fsync", "_wait", "_readonly", "_shared", "_mode"])
def test_class_docstring_explains_option(option: str) -> None:
    assert option in (persistedstate.PersistedState.__doc__ or "")


def test_what_shows_a_promise_exists() -> None:
    names = set(re.findall(r"`(test_\w+)`", README.read_text(encoding="utf-8")))

    assert names
    assert {name for name in names if not Path(__file__).with_name(f"{name}.py").is_file()} == set()
