"""The code stays readable: line budgets, short functions, sections and files of which each uses only those above it."""

from __future__ import annotations

import ast
import functools
import re
import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sabotage import FAULTS, SUITES, sabotaged

import persistedstate
from persistedstate import StateDict, StateList
from persistedstate_tools.differences import _TELLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = (ROOT / "persistedstate.py").read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
#: The tools by the names of their files.
TOOLS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "persistedstate_tools").glob("*.py")}

#: The sections in the order in which a reader meets them. Each is opened by a line such as `# ---- Text ----`;
#: others may stand between them, and what comes before the first banner belongs to "Head".
SECTIONS = ["Errors", "Text", "Journal", "Nodes", "State", "Tools"]
BANNER = re.compile(r"^# -{2,} (\w[\w ]*) -{2,}$", re.MULTILINE)

LINE_BUDGET = 8_379
TOOLS_BUDGET, FILE_BUDGET = 4_525, 400
MEDIAN_LENGTH, NINE_IN_TEN, LONGEST = 6, 18, 40

Function = (ast.FunctionDef, ast.AsyncFunctionDef)

#: Hosts that no file may name: where packages come from is the affair of whoever installs them.
REGISTRY_HOST = re.compile(
    r"(?:pypi|npmjs|crates|rubygems|debian|pythonhosted|yarnpkg|golang)[.](?:org|com|io)\b", re.IGNORECASE
)


@functools.cache
def banners() -> list[tuple[int, str]]:
    """Return (line, title) of every section, the head included."""
    found = [(SOURCE.count("\n", 0, match.start()) + 1, match[1]) for match in BANNER.finditer(SOURCE)]
    return [(1, "Head"), *found]


@functools.cache
def section_of(line: int) -> int:
    """Return the number of the section that holds a line."""
    return sum(1 for start, _ in banners() if start <= line) - 1


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without decorators and docstring."""
    docstring = 0
    if ast.get_docstring(function) is not None:
        docstring = (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@functools.cache
def lengths() -> dict[str, int]:
    """Return the length of every function, by its file, name and line."""
    trees = {"persistedstate": TREE, **{name: ast.parse(text) for name, text in TOOLS.items()}}
    functions = [(file, node) for file, tree in trees.items() for node in ast.walk(tree) if isinstance(node, Function)]
    return {f"{file}: {function.name}, line {function.lineno}": length(function) for file, function in functions}


def definitions() -> dict[str, int]:
    """Return the line that first defines each module-level name."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.Module([outline(statement) for statement in TREE.body], [])):
        if isinstance(node, (ast.ClassDef, *Function)):
            found.setdefault(node.name, node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, node.lineno)
    return found


def outline(statement: ast.stmt) -> ast.stmt:
    """Return a function or class without its body, so that only what it adds to the module remains."""
    if isinstance(statement, (ast.ClassDef, *Function)):
        name = ast.Name(statement.name, ast.Store(), lineno=statement.lineno, col_offset=0)
        return ast.Expr(name, lineno=statement.lineno, col_offset=0)
    return statement


def uses(node: ast.AST, local: frozenset[str] = frozenset()) -> Iterator[ast.Name]:
    """Yield the names that a piece of code reads from outside of the functions in it, annotations included."""
    if isinstance(node, (*Function, ast.Lambda)):
        local |= {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        local |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in local:
        yield node
    for child in ast.iter_child_nodes(node):
        yield from uses(child, local)


def tracked_files() -> list[Path]:
    """Return the files that belong to the project: those that git knows or would add, else those in visible folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return [path for path in ROOT.glob("[!.]*/**/*") if path.is_file()]
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_module_keeps_its_line_budget() -> None:
    lines = SOURCE.count("\n")

    assert lines <= LINE_BUDGET


def test_tools_keep_their_line_budget() -> None:
    lines = {name: text.count("\n") for name, text in TOOLS.items()}

    assert sum(lines.values()) <= TOOLS_BUDGET
    assert {name: count for name, count in lines.items() if count > FILE_BUDGET} == {}


def test_no_function_is_long() -> None:
    assert {name: lines for name, lines in lengths().items() if lines > LONGEST} == {}


def test_most_functions_are_short() -> None:
    measured = sorted(lengths().values())

    assert statistics.median(measured) <= MEDIAN_LENGTH
    assert statistics.quantiles(measured, n=10, method="inclusive")[-1] <= NINE_IN_TEN


def test_sections_stand_in_order() -> None:
    titles = [title for _, title in banners()]

    assert [title for title in titles if title in SECTIONS] == SECTIONS


def test_each_section_uses_only_those_above_it() -> None:
    defined = definitions()

    upwards = [
        f"line {name.lineno} ({banners()[section_of(name.lineno)][1]}) uses {name.id} of line {defined[name.id]}"
        for name in uses(TREE)
        if name.id in defined and section_of(defined[name.id]) > section_of(name.lineno)
    ]

    assert not upwards, "\n".join(upwards)


def test_each_tool_uses_only_those_above_it() -> None:
    """Its table of contents gives the order; imports inside of functions count, too."""
    order = re.findall(r"^\| `(\w+)\.py` ", TOOLS["__init__"], re.MULTILINE)
    used = {name: re.findall(r"persistedstate_tools(?:\.| import )(\w+)", TOOLS[name]) for name in order}

    assert sorted(order) == sorted(TOOLS.keys() - {"__init__"})
    assert {name: other for place, name in enumerate(order) for other in used[name] if other not in order[:place]} == {}


def test_no_file_names_a_package_registry() -> None:
    naming = [path.name for path in tracked_files() if REGISTRY_HOST.search(path.read_text("utf-8", errors="replace"))]

    assert naming == []


def test_the_page_about_the_tests_tells_where_each_file_belongs() -> None:
    page = (ROOT / "tests/README.md").read_text(encoding="utf-8")
    files = {file.name for file in (ROOT / "tests").rglob("*.py")} - {"__init__.py", "conftest.py"}

    assert {name for name in files if f"{name}`" not in page} == set()


@pytest.mark.parametrize("kind", [StateDict, StateList])
def test_every_operation_that_a_record_may_name_is_known_wherever_it_has_to_be(kind: Any) -> None:
    names = [name.removeprefix("_take_") for name in dir(kind) if name.startswith("_take_")]
    places: dict[str, Callable[[str], object]] = {
        "a method of the node": lambda name: hasattr(kind, f"_{name}"),
        "a method by which the text follows": lambda name: hasattr(persistedstate._Entries, name),
        "the table of records in the docstring": lambda name: f'| ``["{name}",path' in SOURCE,
        "what is a record even without its dashes": lambda name: persistedstate._HEADLESS.fullmatch(f'["{name}",[]]'),
        "what `persistedstate log` prints": lambda name: name in _TELLERS,
    }

    assert [(name, what) for name in names for what, knows in places.items() if not knows(name)] == []


def test_every_deliberate_fault_finds_its_place_and_leaves_a_module() -> None:
    """Only the statements of the module that it changes are parsed: all of them, for each fault, would take long."""
    for fault in FAULTS:
        whole, faulty = (
            (ROOT / fault.file).read_text(encoding="utf-8").split("\n\n\n"),
            sabotaged(fault).split("\n\n\n"),
        )

        changed = [statement for statement in faulty if statement not in whole]

        assert changed, fault.name
        for statement in changed:
            compile(statement, fault.name, "exec")


def test_every_suite_that_is_asked_for_deliberate_faults_is_there() -> None:
    assert [file for files in SUITES.values() for file in files if not (ROOT / "tests" / file).is_file()] == []
