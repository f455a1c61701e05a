"""What a person is told who made a mistake in a file: at the line that they have to mend, in words of their own.

tests/data/mistakes.md has all of it, for a reader to judge. `python tests/test_mistakes.py` writes it anew.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from checks import run_child
from editing import QUIET, staged
from msgspec import Meta
from rounds import rounds

import persistedstate
from persistedstate import PersistedState, Problem, StateCorrupt, check, repair
from persistedstate_tools.command_line import main
from persistedstate_tools.editing import _with_complaint
from persistedstate_tools.mistakes import explained
from persistedstate_tools.notes import notes
from persistedstate_tools.repair import _Remains

if TYPE_CHECKING:
    import random

PAGE = Path(__file__).parent / "data" / "mistakes.md"

#: Texts that cannot be read, by what is wrong with them.
MISTAKES: dict[str, dict[str, str | bytes]] = {
    "Colons": {
        "No colon": "last_id: 41\nretry 5\nhosts: []\n",
        "No colon in the last line": "last_id: 41\nretry 5\n",
        "No colon, above a list": "hosts\n- alpha\n- beta\n",
        "No colon behind a key in quotes": '"last_id" 41\nretry: 5\n',
        "No space behind the colon": "last_id: 41\nretry:5\nhosts: []\n",
        "No space behind the colon, deeper": "limits:\n  cpu: 1\n  mem:2\n",
        "An equals sign": "last_id = 41\nretry = 5\n",
        "A colon of another alphabet": "last_id: 41\nretry\uff1a5\n",
        "A colon within a value": "title: Dune: Part Two\n",
        "A colon within an item": "errors:\n- name: open: no such file\n",
        "Two entries on one line": "last_id: 41 retry: 5\n",
        "A text below its key that is not indented": "text: |\none\ntwo\nretry: 5\n",
    },
    "Indentation": {
        "A tab": "limits:\n\tcpu: 1\n\tmem: 2\n",
        "A tab behind spaces": "limits:\n  cpu: 1\n  \tmem: 2\n",
        "A tab behind a dash": "jobs:\n-\tname: fetch\n  size: 2\n",
        "Too deep": "last_id: 41\n  retry: 5\n",
        "Too deep, in a mapping": "limits:\n  cpu: 1\n    mem: 2\n",
        "Not deep enough": "limits:\n    cpu: 1\n  mem: 2\n",
        "A space in front of the first line": " last_id: 41\nretry: 5\n",
        "A space in front of a line": "last_id: 41\n retry: 5\nhosts: []\n",
        "Entries below a value": "limits: none\n  cpu: 1\n",
        "An item a space off": "hosts:\n  - alpha\n - beta\n",
        "A line of a text a space off": "text: |\n  one\n two\nretry: 5\n",
    },
    "Lists and keys": {
        "An item among keys": "last_id: 41\n- alpha\nretry: 5\n",
        "A key among items": "hosts:\n  - alpha\n  name: beta\n",
        "Items below a value": "hosts: none\n- alpha\n",
        "No space behind a dash": "hosts:\n- alpha\n-beta\nretry: 5\n",
        "A list beside its key": "hosts: - alpha\n",
        "A list at the top": "- alpha\n- beta\n",
        "A key that stands twice": "retry: 3\nlast_id: 41\nretry: 5\n",
        "A key that stands twice, deeper": "limits:\n  cpu: 1\n  cpu: 2\n",
        "A list as a key": "? [alpha]\n: 1\n",
    },
    "Quotes": {
        "A quote that is not closed": 'name: "alpha\nlast_id: 41\nretry: 5\n',
        "A quote that is not closed, above others": 'name: "alpha\nlast_id: 41\nother: "beta"\n',
        "A quote that is not closed, in the last line": "last_id: 41\nname: 'alpha\n",
        "A quote within quotes": 'name: "say "hi" to all"\n',
        "An apostrophe within quotes": "name: 'it's'\n",
        "Text behind a quote": 'name: "alpha" beta\n',
        "A backslash in double quotes": 'path: "C:\\Users\\x"\n',
        "A backslash in double quotes, and one in the place of a digit": 'path: "C:\\x\\temp"\n',
        "Typographic quotes": "name: \u201calpha: beta\u201d\n",
    },
    "Brackets": {
        "A bracket that is not closed": "hosts: [alpha, beta\nretry: 5\n",
        "A bracket that is not closed, in the last line": "retry: 5\nlimits: {cpu: 1\n",
        "Another bracket closes it": "hosts: [alpha, beta}\n",
        "A bracket too many": "hosts: [alpha, beta]]\n",
        "No comma": "limits: {cpu: 1 mem: 2}\n",
        "No comma at the end of a line": "limits: {\n  cpu: 1\n  mem: 2\n}\n",
        "Two commas": "hosts: [alpha,, beta]\n",
        "JSON with a comment": '{\n  "last_id": 41, // so far\n  "retry": 5\n}\n',
        "Text behind a bracket": "path: {home}/x\n",
        "A template": "name: {{ user }}\n",
    },
    "What needs quotes": {
        "An at sign": "user: @alice\n",
        "A backtick": "command: `ls`\n",
        "A percent sign": "share: %d\n",
        "A percent sign in front of a key": "%share: 5\nretry: 5\n",
        "An asterisk": "pattern: *.csv\n",
        "An asterisk alone": "pattern: *\n",
        "An ampersand": "command: & beta\n",
        "An exclamation mark": "text: !important\n",
        "A greater-than sign": "rule: > 5\n",
        "A bar": "rule: | grep x\n",
        "A comma": "text: , x\n",
        "A question mark": "text: ?\n",
        "A date that does not exist": "day: 2024-02-30\nretry: 5\n",
        "A time that does not exist": "at: 2024-02-20 25:00:00\n",
        "A number of 5,000 digits": "number: " + "9" * 5000 + "\n",
    },
    "References and tags": {
        "An anchor that is missing": "base: &base {cpu: 1}\nother: *bse\n",
        "A merge of what is missing": "other:\n  <<: *default\n  cpu: 1\n",
        "A merge of a number": "other:\n  <<: 5\n",
        "A tag of Python": "pair: !!python/tuple [1, 2]\n",
        "A set": "names: !!set {alpha, beta}\n",
    },
    "Characters": {
        "Another encoding": b"name: caf\xe9\nretry: 5\n",
        "UTF-16": "name: alpha\n".encode("utf-16"),
        "A no-break space": "retry:\xa05\nlast_id: 41\n",
        "A zero-width space": "retry:\u200b 5\nlast_id: 41\n",
        "A byte order mark within the file": "retry: 5\n\ufefflast_id: 41\n",
        "A control character": "name: a\x07b\n",
        "A NUL byte": "name: a\0b\nretry: 5\n",
    },
    "Lines": {
        "A conflict of a merge": "retry: 5\n<<<<<<< HEAD\nlast_id: 41\n=======\nlast_id: 42\n>>>>>>> theirs\n",
        "A comment of another language": "// settings\nretry: 5\n",
        "A record without ---": 'last_id: 41\n["set",[],"last_id",42]\n',
        "A record that was cut": 'last_id: 41\n--- ["set",[],"last_id",42\n--- ["set",[],"last_id",43]\n',
        "A record that was changed": 'last_id: 41\n--- "set",[],"last_id",42]\n',
        "No --- behind %YAML": "%YAML 1.2\nlast_id: 41\n",
        "Another version of YAML": "%YAML 3.0\n---\nlast_id: 41\n",
        "Text below the end mark": "last_id: 41\n...\nretry: 5\n",
        "Too deep": "deep: " + "[" * 150 + "]" * 150 + "\n",
    },
}
TEXTS = {f"{section}: {title}": text for section, each in MISTAKES.items() for title, text in each.items()}

#: Texts that are read, but hardly as they are meant; `check` and `edit` tell of them.
UNMEANT = {
    "No space behind the only colon": "limits:\n  cpu:5\nretry: 5\n",
    "No space behind a colon between braces": "limits: {cpu:1, mem:2}\n",
    "A comma at the end": "retry: 5,\nlast_id: 41,\n",
    "No space in front of a comment": "retry: 5# tries\n",
    "A color": "color: #ff0000\n",
    "Yes and no": "debug: yes\ntrace: Off\n",
    "The None of Python": "name: None\n",
    "An octal number": "mode: 0755\n",
    "Groups of digits, and a decimal comma": "bytes: 1,000\nsize: 1.000.000\nrate: 0,5\n",
    "A number that is too large": "rate: 1e999\n",
    "Braces around a list": "hosts: {alpha, beta}\n",
    "An item that is indented": "hosts:\n- alpha\n  - beta\n",
    "Typographic quotes": "name: \u201calpha\u201d\n\u201cretry\u201d: 5\n",
    "A no-break space in front of a key": "limits:\n\xa0\xa0cpu: 1\n",
    "A zero-width space": "\u200bretry: 5\nname: al\u200bpha\n",
    "Two colons": "retry:: 5\n",
    "No key": ": 5\n",
    "An ampersand": "command: &beta\nretry: 5\n",
    "A greater-than sign": "rule: >5\n",
    "A line --- between entries": "last_id: 41\n---\nretry: 5\n",
}

#: Of those, what a script would write just so: only `edit` tells it, of lines that the person changed.
UNTOLD = {UNMEANT["The None of Python"]}

#: What is read as it looks, and is left alone.
SOUND = [
    "url: http://example.org:80/x\n",
    "at: 12:30\nmode: 0o755\n",
    "retry : 5\n",
    "empty:\nname: it's\n",
    "hosts:\n- example.org:8080\n- a,b\n",
    '{"retry": 5, "hosts": ["a", "b",],}\n',
    "text: |\n  debug: yes\n  rate: 1,000\nfolded: >-\n  mode: 0755\n",
    "debug: true  # yes\nhosts: [a]  #none\n",
    "base: &base {cpu: 1}\nother:\n  <<: *base\n",
    "? a\n: 1\n",
    '# settings\n---\nretry: 5\n---\n["set", [], "retry", 6]\n--- ["set",[],"retry",7]\n',
]


class Importer(PersistedState):
    retry: Annotated[int, Meta(ge=1, le=10)] = 3
    limits: dict[str, int] = {"cpu": 4}  # noqa: RUF012 - each state gets a copy


DECLARED = {"Text for a number": "retry: 5,\n", "A number out of range": "limits:\n  cpu: 1\nretry: 11\n"}


def data_of(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def refusal(path: Path, text: str | bytes, kind: type[PersistedState] = PersistedState) -> StateCorrupt:
    """Return what opening a file tells."""
    path.write_bytes(data_of(text))
    with pytest.raises(StateCorrupt) as caught:
        kind(path, _readonly=True)
    return caught.value


def told(error: StateCorrupt) -> str:
    """Return the part of an error that tells what is wrong and where."""
    return str(Problem(error.line, error.column, error.reason, error.text))


# ---- The page --------------------------------------------------------------------------------------------------------

HEAD = """# Typical mistakes, and what a person is told

Made by `python tests/test_mistakes.py`; the tests compare it. First the file, then what is told. Here, ⇥ stands for a
tab, and � for what cannot be seen. Opening a file puts its name in front, and below what to do next:

```text
{error}
```

The same mistake, saved while a script runs:

```text
{warning}
```

`persistedstate check FILE` and `persistedstate repair FILE` print the same words. `persistedstate edit FILE` writes
them into the text, and opens it again:

```yaml
{edited}
```
"""


def visible(text: str | bytes) -> str:
    shown = data_of(text).decode(errors="replace").replace("\t", "⇥").removesuffix("\n")
    lines = [line if len(line) < 60 else f"{line[:50]} …" for line in shown.split("\n")]
    return "\n".join("".join(each if each.isprintable() else "\ufffd" for each in line) for line in lines)


def row(title: str, text: str | bytes, words: str) -> str:
    shown = "\n".join(line.rstrip() for line in words.replace("\t", "⇥").split("\n"))
    return f"\n{title}:\n\n```text\n{visible(text)}\n\n{shown}\n```\n"


def page(folder: Path) -> str:
    """Return what tests/data/mistakes.md shall hold."""
    path = folder / "x.state"
    example = TEXTS["Colons: No space behind the colon"]
    error, warning = str(refusal(path, example)), saved_wrong(path, example)
    kept = re.sub(r"\.edited-[-\d]+", ".edited-<time>", warning)
    edited = "\n".join(["last_id: 41", *marks(example), "retry:5", "hosts: []"])
    text = HEAD.format(error=error, warning=kept, edited=edited).replace(f"{folder}{os.sep}", "")
    for section, mistakes in MISTAKES.items():
        rows = [row(title, each, told(refusal(path, each))) for title, each in mistakes.items()]
        text += f"\n## {section}\n{''.join(rows)}"
    text += "\n## What a class declares\n\n`retry: Annotated[int, Meta(ge=1, le=10)]`, `limits: dict[str, int]`\n"
    text += "".join(row(title, each, told(refusal(path, each, Importer))) for title, each in DECLARED.items())
    text += "\n## Read, but hardly as it is meant\n\nNothing is refused; `check` and `edit` tell it as a note.\n"
    known = frozenset[str]()
    return text + "".join(row(title, each, "\n".join(map(str, notes(each, known)))) for title, each in UNMEANT.items())


def saved_wrong(path: Path, text: str | bytes) -> str:
    """Return the warning about a save while a script runs."""
    path.write_text("last_id: 41\nretry: 3\nhosts: []\n")
    with staged() as stage, PersistedState(path) as state:
        stage.sleep(QUIET * 2)
        new = path.with_name("x.new")
        new.write_bytes(data_of(text))
        new.rename(path)
        stage.sleep(QUIET * 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert not state.refresh()
        assert (state.last_id, state.retry) == (41, 3)
    for each in path.parent.glob("*.edited-*"):
        assert each.read_bytes() == data_of(text)
        each.unlink()
    [one] = caught
    return str(one.message)


def marks(text: str | bytes) -> list[str]:
    """Return the lines that `edit` writes into a text with a mistake."""
    try:
        persistedstate._Saved(data_of(text))
    except persistedstate._BadText as problem:
        lines = _with_complaint(data_of(text), problem).decode(errors="replace").split("\n")
        return [line for line in lines if line.startswith("#! ")]
    return []


def test_the_page_is_true(tmp_path: Path) -> None:
    assert page(tmp_path) == PAGE.read_text(encoding="utf-8"), "write it anew: python tests/test_mistakes.py"


# ---- Opening, check, repair, edit, and a save while the script runs, say the same ------------------------------------


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_check_tells_what_opening_tells(path: Path, text: str | bytes, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(path, text)

    assert check(path)[0] == Problem(error.line, error.column, error.reason, error.text)
    assert main(["check", str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{path}: {told(error)}\n")
    assert main(["show", str(path)]) == 2
    assert f": line {error.line}, column {error.column}: {' '.join(error.reason.split())}" in capsys.readouterr().err


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_mark_stands_below_the_place(path: Path, text: str | bytes) -> None:
    *_, line, mark, _advice = str(refusal(path, text)).split("\n")

    assert mark.strip() == "^"
    assert len(mark) <= len(line) + 1 <= 130
    assert "\x07" not in line


@pytest.mark.leaves("files")
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_save_while_the_script_runs_is_told_the_same(path: Path, text: str | bytes) -> None:
    if any(words in str(text) for words in ('["set"', '"set"')):
        return  # lines with records are the script's, and a save of them is old news
    error = refusal(path, text)

    warning = saved_wrong(path, text)

    assert warning.startswith(f"{path}: what was saved there cannot be understood; it is kept in {path}.edited-")
    assert warning.endswith(f"; mend your text and save it once more:\n{told(error)}")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_mistake_in_the_file_of_a_killed_script_is_told_the_same(path: Path, text: str | bytes) -> None:
    error = refusal(path, text)
    if b"\n---" in data_of(text) or b"\n..." in data_of(text) or data_of(text)[:1] in b"%\xff":
        return  # then records stand behind what is no snapshot

    killed = refusal(path, data_of(text) + b'--- ["was",["last_id"],41]\n--- ["set",[],"last_id",42]\n')

    assert (killed.line, killed.column, killed.reason) == (error.line, error.column, error.reason)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_edit_tells_the_same(path: Path, text: str | bytes) -> None:
    error = refusal(path, text)
    said = marks(text)
    if '["set"' not in str(text) and '"set"' not in str(text):
        assert said[0] == f"#! persistedstate: the next line, column {error.column}: {' '.join(error.reason.split())}"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_with_other_line_ends_and_a_mark_in_front_the_same_is_told(path: Path, text: str | bytes) -> None:
    error = refusal(path, text)
    if isinstance(text, bytes) or text.startswith("\ufeff"):
        return

    for other in (text.replace("\n", "\r\n"), f"\ufeff{text}", text.removesuffix("\n")):
        again = refusal(path, other)
        assert (again.line, again.column, again.reason) == (error.line, error.column, error.reason), other


@pytest.mark.leaves("files")
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_repair_makes_it_open(path: Path, text: str | bytes) -> None:
    error = refusal(path, text)

    assert repair(path).problems[0] == Problem(error.line, error.column, error.reason, error.text)

    PersistedState(path, _readonly=True).close()


def test_without_the_tools_the_words_of_the_reader_are_told(path: Path) -> None:
    path.write_text("limits:\n\tcpu: 1\n")
    code = """
        import sys
        sys.modules["persistedstate_tools"] = None
        from persistedstate import PersistedState, StateCorrupt
        try:
            PersistedState(sys.argv[1])
        except StateCorrupt as error:
            print(error.line, error.column, error.reason)
    """

    assert run_child(code, path).split("\n")[0] == r"2 1 found character '\t' that cannot start any token"


def test_wide_characters_move_the_mark(path: Path) -> None:
    """A terminal gives two columns to each."""
    error = refusal(path, "日本: ]\n")

    assert str(error).split("\n")[1:3] == ["    日本: ]", "          ^"]
    assert error.column == 5


def test_of_a_long_line_the_part_around_the_place_is_shown(path: Path) -> None:
    error = refusal(path, f"a: [{'x, ' * 1000}]\nb: {'y' * 1000}: 5\n")

    _, line, mark, _ = str(error).split("\n")
    assert line.startswith("    …")
    assert len(line) == 4 + 1 + 120
    assert line[mark.index("^")] == ":"


def trouble(text: str) -> persistedstate._BadText | None:
    """Return what a reader of YAML says."""
    try:
        persistedstate._Stream(text.encode())
    except persistedstate._BadText as problem:
        return problem
    return None


def wrong(text: str, chance: random.Random) -> str:
    """Return a text with a mistake as people make them, by chance."""
    lines = text.split("\n")
    number, at = chance.randrange(len(lines)), chance.randrange(len(text))
    signs = [*"\t :#,[]{}'\"&*!|>@%?=\n", "- ", "\u200b"]
    line = lines[number]
    lines[number] = chance.choice([" " * chance.randrange(4) + line.lstrip(), f"{line}\n{line}", ""])
    other: str = chance.choice(
        ["\n".join(lines), text[:at] + text[at + 1 :], text[:at] + chance.choice(signs) + text[at:]]
    )
    return other


WHOLE = [
    """# settings
last_id: 41  # so far
name: "one"
title: 'it''s'
limits:
  cpu: 1
  mem: {soft: 10, hard: 20}
jobs:
- name: a
  size: 2
- name: b
  when: 2024-05-01
hosts: [alpha, beta]
text: |
  one
  two
done: plain
""",
    '{\n  "a": 1,\n  "b": [1, 2],\n  "c": {"d": "x"}\n}\n',
    "base: &x {k: 1}\nb: *x\nc:\n  <<: *x\n  d: ~\n",
]


@rounds(ci=1_000, nightly=50_000)
def test_no_words_of_a_reader_come_through(chance: random.Random, rounds: int) -> None:
    """Whatever the mistake is, it is told in words of a person, within the text, and by `check`, too."""
    for _ in range(rounds):
        text = wrong(chance.choice(WHOLE), chance)
        if chance.random() < 0.3:
            text = wrong(text, chance)
        try:
            persistedstate._parsed("", text.encode())
        except StateCorrupt as error:
            first = Problem(error.line, error.column, error.reason, error.text)
            problems = _Remains(text.encode()).problems
            assert first in problems, text
            for problem in problems:
                words = re.sub(r'".*"', "", problem.reason)
                assert not re.search(r"expected|token|found|could not|not allowed|<\w", words), (text, problem.reason)


@rounds(ci=1_000, nightly=50_000)
def test_explaining_raises_nothing_and_stays_within_the_text(chance: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        text = chance.choice(["", "\ufeff"]) + wrong(chance.choice(WHOLE), chance)
        text = text.replace("\n", chance.choice(["\n", "\r\n", "\r"]))
        problem = trouble(text)
        assert problem is None or 0 <= explained(text, problem).offset <= len(text), text
        notes(text, frozenset())


# ---- What is read, but hardly as it is meant -------------------------------------------------------------------------


@pytest.mark.parametrize("text", UNMEANT.values(), ids=UNMEANT)
def test_check_notes_what_is_hardly_meant(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(text)

    assert main(["check", str(path)]) == 0

    first, *others = capsys.readouterr().out.split("\n")
    assert first == f"{path}: sound"
    assert "\n".join(others) == "".join(f"{path}: note: {note}\n" for note in notes(text))
    assert bool(notes(text)) == (text not in UNTOLD)
    assert check(path) == []
    PersistedState(path, _readonly=True).close()  # and no warning comes


def test_what_is_read_as_it_looks_is_not_noted() -> None:
    assert [(text, notes(text, frozenset())) for text in SOUND if notes(text, frozenset())] == []


def test_notes_name_the_line_of_the_file() -> None:
    text = 'retry: 5\n--- # mine\n\ndebug: yes\nname: x\nrate: 0,5\n--- ["set",[],"retry",7]\n'

    assert [(note.line, note.column) for note in notes(text)] == [(2, 1), (4, 8), (6, 7)]


def test_what_a_script_wrote_is_not_noted(path: Path) -> None:
    odd = [
        "yes",
        "off",
        "None",
        "nil",
        "5,",
        "5# x",
        "1,000",
        "0,5",
        "1.000.000",
        "1e999",
        "0755",
        "\u201ca\u201d",
        "a:b",
    ]
    odd += ["a:", ": 5", "", "#ff0000", "&x", "> 5", "{a}", "- b", "<<", "\u200bx", "x\xa0"]
    with PersistedState(path) as state:
        state["values"] = {str(number): each for number, each in enumerate(odd)}
        state["keys"] = dict.fromkeys(odd)
        state["items"] = [odd, {"inf": float("inf"), "none": None, "zero": 0}]

    assert notes(path.read_text()) == []


def test_edit_notes_only_lines_that_were_changed(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path.write_text("debug: yes\nname: None\nretry: 3\n")
    editor = path.with_name("editor")
    editor.write_text("#!/bin/sh\nsed -i 's/retry: 3/retry: 3,/' \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)

    assert main(["edit", str(path)]) == 0

    editor.unlink()
    assert capsys.readouterr().out.split("\n") == [
        f"{path}: saved",
        f"{path}: note: line 3, column 8: this is text, because of the comma behind it",
        "    retry: 3,",
        "           ^",
        "",
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(page(Path(name)), encoding="utf-8")
