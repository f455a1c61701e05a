"""Files that persistedstate 26.1 leaves behind, however it ended, open to what its script had.

The real 26.1 makes them, in processes of its own because the import names collide. Its interpreter comes from the
environment variable PERSISTEDSTATE_26_PYTHON, or from a virtual environment made once in pytest's cache folder.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import venv
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from persistedstate import PersistedState, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Changes = Iterator[None]

# ---- Running 26.1 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def python_26(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an interpreter that has persistedstate 26.1."""
    given = os.environ.get("PERSISTEDSTATE_26_PYTHON")
    if given:
        return given
    name = "persistedstate-26.1-python-{}.{}".format(*sys.version_info)
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir(name)) if cache else tmp_path_factory.mktemp(name)
    environment = folder / "environment"
    if not environment.exists():
        new = folder / f"new-{os.getpid()}"
        venv.create(new, with_pip=False, clear=True)
        install(new / "bin" / "python")
        with contextlib.suppress(OSError):  # another process was faster
            new.rename(environment)
        shutil.rmtree(new, ignore_errors=True)
    return str(environment / "bin" / "python")


def install(python: Path) -> None:
    """Install 26.1, by the pip of this environment; skip where that cannot be, but not in CI."""
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    answer = subprocess.run(
        [*pip, "install", "--quiet", "--disable-pip-version-check", "persistedstate==26.1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if answer.returncode and not os.environ.get("CI"):
        pytest.skip(f"persistedstate 26.1 cannot be installed here: {answer.stderr.strip()[-300:]}")
    assert answer.returncode == 0, answer.stderr


#: What each script for 26.1 begins with. `die` ends the process so that no destructor or exit hook tidies the file.
PROLOGUE = """
import os, signal, sys
from importlib.metadata import version
from persistedstate import PersistedState
assert version("persistedstate") == "26.1"

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_26(python: str, script: str, *arguments: object, code: int = 0) -> None:
    """Run a script with 26.1; `-I` keeps this project's module off its path."""
    answer = subprocess.run(
        [python, "-I", "-c", PROLOGUE + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == code, answer.stderr


# ---- What both sides do ----------------------------------------------------------------------------------------------
# Each program is a generator that makes one journal record a step. Its source goes to the process of 26.1; here it runs
# on plain containers, which gives the value that the file must open to.


def nested(state: Any) -> Changes:  # noqa: PLR0915 - a step is a line
    """Dicts and lists in each other, with items set, deleted and inserted at the front, middle and end."""
    state["d"] = {"a": {"deep": [1, {"x": "y"}]}, "list": []}
    yield
    state["d"]["a"]["deep"][1]["x"] = ["é", None]
    yield
    state["l"] = ["m"]
    yield
    for n in range(10_000):
        state["l"].insert(0, {"n": n})
        yield
        state["l"].insert(1, [n, str(n)])
        yield
        state["l"].append(n)
        yield
        state["l"][0]["n"] = [n]
        yield
        state["l"][1].append("after a shift")
        yield
        state["d"][f"k{n % 7}"] = n
        yield
        state["d"]["list"].insert(n % 3, n)
        yield
        del state["l"][2 if n % 2 else 0]
        yield
        del state["l"][len(state["l"]) - 1]
        yield
        if n % 5 == 4:
            del state["d"][f"k{(n - 1) % 7}"]
            yield
        if n % 11 == 10:
            state["d"]["list"] = []
            yield
            del state["l"][0]
            yield


def values(state: Any) -> Changes:
    """Scalars and strings of every sort that JSON and YAML 1.1 carry without loss in 26.1."""
    # fmt: off
    words = ["", " ", " x ", "x ", "yes", "no", "y", "N", "on", "Off", "true", "null", "~", "None", "12:30", "12:30:45"]
    words += ["1_000", "0x1F", "0b1", "017", "1.5", "-1", "+1", ".5", "1.", ".inf", "-.INF", ".nan", "2024-01-01", "="]
    words += ["2024-01-01 12:00:00", "<<", "# a", "a # b", "a: b", "a:", ": a", "- a", "-", "--", "---", "...", "--- a"]
    words += ["[a]", "{a: b}", "]", "}", ",", "*a", "&a", "!a", "!!str a", "|", ">", "%a", "@a", "`a`", "'a'", '"a"']
    words += ["it's", 'say "x"', "back\\slash", "a\nb", "a\n", "\n", "\na", "a\n\nb", " a\nb", "tab\tx", "\t", "?"]
    words += ["? a", "é", "ключ", "日本語", "😀", "a😀b", "\u00a0", "\u2028", "e\u0301", "\x00", "\x01", "\x1b"]
    words += ["\ufeff", "x" * 300, "word " * 60, "é " * 90, "  indented\n    text\n", "\n---\n"]
    words += ["### LAST VALID STATE ###", '["set", [], "a", 1]', "--- [", "a\r\nb", "\r"]
    numbers = [0, 1, -1, 2**31, 2**63, -(2**64), 10**40, 0.5, -1.25, 3.0, 1e5, 123456789.125, 5e-324, 1.5e300, 0.1]
    numbers += [-0.0, 1e16, 1e-7, 1e22, -1e100, 2.5e-9, 1.7976931348623157e308]
    singles: list[Any] = [True, False, None, [], {}, [[]], [{}], {"a": {}}, [[1, [2, []]], {"a": [{}]}]]
    # fmt: on
    state["l"] = []
    yield
    for value in [*words, *numbers, *singles]:
        state["value"] = value
        yield
        state["l"].append(value)
        yield
    state["keys"] = {}
    yield
    for word in words:
        state["keys"][word] = word
        yield
    del state["value"]
    yield


def counter(state: Any) -> Changes:
    """The script of its README."""
    for n in range(1, 100_000):
        state["last_id"] = n
        yield


def growing(state: Any) -> Changes:
    """The YAML of a deep list is longer than the JSON of its record, so a new head reaches over all that was there."""
    state["deep"] = [[[[[[[["a", "b", {"c": {"d": {"e": [1, 2, 3]}}}]]]]]]]] * 3
    yield


def shrinking(state: Any) -> Changes:
    """A journal that is much longer than the state that comes of it."""
    for n in range(40):
        state["text"] = f"é{n}" * 30
        yield
    state["text"] = "short"
    yield
    state["z"] = {"k": ["v"]}
    yield


def steady(state: Any) -> Changes:
    """About as much as there was."""
    state["a"] = "é" * 40
    yield
    state["l"] = ["x", {"y": None}]
    yield


def model(program: Callable[[Any], Changes], steps: int | None) -> dict[str, Any]:
    """Return the state after so many steps of the program (None: all), on plain containers."""
    state: dict[str, Any] = {}
    advance(program(state), steps)
    return state


def advance(changes: Changes, steps: int | None) -> None:
    """Take so many steps (None: all)."""
    taken = 0
    while steps is None or taken < steps:
        try:
            next(changes)
        except StopIteration:
            assert steps is None, "the program is too short"
            return
        taken += 1


def source(program: Callable[[Any], Changes]) -> str:
    """Return Python text that defines `changes`, the program, and `advance`."""
    texts = [
        inspect.getsource(function).replace(": Changes", "").replace(" -> Changes", "")
        for function in (program, advance)
    ]
    return (
        "from __future__ import annotations\nfrom typing import Any\n"
        + "\n".join(texts)
        + f"\nchanges = {program.__name__}\n"
    )


def run_program(
    python: str, path: Path, program: Callable[[Any], Changes], steps: int | None, end: str, code: int = 0
) -> dict[str, Any]:
    """Let 26.1 take steps of the program on the file, then `end`; return what the state was."""
    script = f"""
state = PersistedState(sys.argv[1])
namespace = {{}}
exec({source(program)!r}, namespace)
running = namespace["changes"](state)
namespace["advance"](running, {steps})
{end}
"""
    run_26(python, script, path, code=code)
    return model(program, steps)


def exactly(value: Any) -> Any:
    """Return `value` in a form that compares types, the sign of zero, but not the order of keys: 26.1 sorts them."""
    if isinstance(value, dict):
        return {(type(key), key): exactly(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(exactly, value))
    return type(value), repr(value)


def opens_to(path: Path, expected: dict[str, Any], *, may_warn: bool = False) -> None:
    """Assert that the file opens to `expected`, for a reader and a writer, goes on working, and reopens."""
    data = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if may_warn else "error")
        with PersistedState(path, _readonly=True) as reader:
            assert exactly(plain(reader)) == exactly(expected)
        assert path.read_bytes() == data
        state = PersistedState(path)
    with state:
        assert exactly(plain(state)) == exactly(expected)
        state["added"] = ["é"]
        copied = path.with_name("copy.state")
        copied.write_bytes(path.read_bytes())
        with PersistedState(copied, _readonly=True) as again:
            assert exactly(plain(again)) == exactly({**expected, "added": ["é"]})
        copied.unlink()
    with PersistedState(path) as state:
        assert exactly(plain(state)) == exactly({**expected, "added": ["é"]})
    (document,) = yaml.safe_load_all(path.read_bytes().decode())
    assert exactly(document) == exactly({**expected, "added": ["é"]})
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - names, not paths


# ---- Closed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "steps"), [(nested, 200), (values, None), (counter, 10), (steady, None), (counter, 0)]
)
def test_a_closed_file_opens(python_26: str, path: Path, program: Callable[[Any], Changes], steps: int | None) -> None:
    expected = run_program(python_26, path, program, steps, "state.close()")

    opens_to(path, expected)


def test_a_closed_file_that_lacks_nothing_is_left_alone(python_26: str, path: Path) -> None:
    expected = run_program(python_26, path, nested, 50, "state.close()")
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino

    with PersistedState(path, d={}) as state:
        assert plain(state) == expected

    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_file_that_was_never_closed_but_ended_in_order_opens(python_26: str, path: Path) -> None:
    """Its destructor tidies up at the end of the interpreter."""
    expected = run_program(python_26, path, nested, 50, "")

    opens_to(path, expected)


def test_keys_that_are_no_strings_open_from_a_snapshot(python_26: str, path: Path) -> None:
    """Its journal turns them into strings, a snapshot keeps them."""
    run_26(python_26, "s = PersistedState(sys.argv[1]); s['k'] = {1: 2, None: 3, 2.5: 'x', False: []}; s.close()", path)

    opens_to(path, {"k": {1: 2, None: 3, 2.5: "x", False: []}})


def test_infinities_and_nan_open_from_a_snapshot(python_26: str, path: Path) -> None:
    run_26(
        python_26,
        "s = PersistedState(sys.argv[1]); s['k'] = [float(x) for x in ('inf', '-inf', 'nan')]; s.close()",
        path,
    )

    opens_to(path, {"k": [float("inf"), float("-inf"), float("nan")]})


def test_defaults_and_attributes_open(python_26: str, path: Path) -> None:
    script = """
        state = PersistedState(sys.argv[1], last_id=0, done=["é"], settings={"z": 1, "a": 2})
        state.last_id += 1
        state.done.append("b")
        state.settings["a"] += 1
        state.settings.update(q=4)
        state.done += ["c"]
        state.setdefault("more", 5)
        die()
    """

    run_26(python_26, script, path, code=-signal.SIGKILL)

    opens_to(path, {"last_id": 1, "done": ["é", "b", "c"], "settings": {"z": 1, "a": 3, "q": 4}, "more": 5})


# ---- Killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 5, 100, 1999, 2000, 2001])
@pytest.mark.parametrize("program", [nested, counter])
def test_a_file_of_a_killed_process_opens(
    python_26: str, path: Path, program: Callable[[Any], Changes], steps: int
) -> None:
    """After 2,000 changes it vacuums within the file and begins a new journal behind."""
    expected = run_program(python_26, path, program, steps, "die()", code=-signal.SIGKILL)

    opens_to(path, expected)


def test_values_open_from_the_journal(python_26: str, path: Path) -> None:
    """The number 1e16 is one here, as it was in the script, though 26.1 itself would read it as a string."""
    expected = run_program(python_26, path, values, None, "os._exit(3)", code=3)

    opens_to(path, expected)


@pytest.mark.parametrize("text", ["a\x85b", "\x85", "\x7f", "\x80", "\x9f", "\ufffe", "\uffff"], ids=ascii)
def test_a_character_that_26_1_could_not_read_back_opens_from_the_journal(
    python_26: str, path: Path, text: str
) -> None:
    run_26(
        python_26,
        f"s = PersistedState(sys.argv[1]); s['a'] = {text!a}; s['b'] = [{text!a}]; os._exit(0)",
        path,
    )

    opens_to(path, {"a": text, "b": [text]})


def test_several_runs_that_were_killed_open(python_26: str, path: Path) -> None:
    """A run that begins with the journal of another appends to it."""
    for run in range(3):
        script = f"s = PersistedState(sys.argv[1], l=[]); s.l.append({run}); s.l[0] = -{run}; s.a = {{}}; die()"
        run_26(python_26, script, path, code=-signal.SIGKILL)

    opens_to(path, {"l": [-2, 1, 2], "a": {}})


def test_negative_indexes_that_worked_open(python_26: str, path: Path) -> None:
    script = "s = PersistedState(sys.argv[1], l=[1, 2, 3]); s.l[-1] = 9; s.l.insert(-1, 5); s.l.pop(); die()"

    run_26(python_26, script, path, code=-signal.SIGKILL)

    opens_to(path, {"l": [1, 2, 5]})


def test_a_persons_comments_in_a_file_of_26_1_stay(python_26: str, path: Path) -> None:
    path.write_text("# mine\nb: 1   # one\na: 2\n")
    run_26(python_26, "s = PersistedState(sys.argv[1]); s.b = 5; die()", path, code=-signal.SIGKILL)

    PersistedState(path, c=3).close()

    assert path.read_text() == "# mine\nb: 5   # one\na: 2\nc: 3\n"


@pytest.mark.parametrize("steps", [1, 30])
def test_a_journal_of_26_1_cut_at_any_byte_opens(python_26: str, path: Path, steps: int) -> None:
    """A power cut may leave half a record, and half a character."""
    run_program(python_26, path, nested, steps - 1, "die()", code=-signal.SIGKILL)
    begin = path.stat().st_size
    path.unlink()
    after = run_program(python_26, path, nested, steps, "die()", code=-signal.SIGKILL)
    before, data = model(nested, steps - 1), path.read_bytes()

    for length in range(begin, len(data)):
        path.write_bytes(data[:length])
        opens_to(path, before, may_warn=True)
    path.write_bytes(data)
    opens_to(path, after)


# ---- Killed in its vacuum --------------------------------------------------------------------------------------------

#: Takes the steps, then vacuums through a file object that writes so many bytes and no more, once per budget given:
#: a forked child, with a file of its own, dies there. A budget of -1 ends before the cut at the end.
DYING_VACUUM = """
folder, first, budgets = sys.argv[1], sys.argv[2], [int(each) for each in sys.argv[3:]]

class Dying:
    def __init__(self, file, budget):
        self.file, self.budget = file, budget

    def write(self, text):
        data = text.encode("utf-8")
        self.file.buffer.write(data[: self.budget] if self.budget >= 0 else data)
        if 0 <= self.budget < len(data):
            self.end()
        self.budget -= len(data) if self.budget >= 0 else 0

    def seek(self, position):
        self.file.buffer.flush()
        self.file.buffer.seek(position)

    def tell(self):
        return self.file.buffer.tell()

    def flush(self):
        self.file.buffer.flush()

    def truncate(self):
        self.end()

    def end(self):
        self.file.buffer.flush()
        os._exit(0)

for budget in budgets:
    child = os.fork()
    if not child:
        path = os.path.join(folder, str(budget))
        with open(first, "rb") as old, open(path, "wb") as new:
            new.write(old.read())
        state = PersistedState(path)
        namespace = {}
        exec(CHANGES, namespace)
        namespace["advance"](namespace["changes"](state), None)
        handler = state._MappedYaml__file_handler
        file = handler._FileHandler__file
        file.flush()
        file.buffer.seek(0, 2)
        handler._FileHandler__file = Dying(file, budget)
        handler.vacuum()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""

MARKER = "\n---\n### LAST VALID STATE ###\n"

SMALL = "a: 1\nl:\n- é\n"
LARGE = SMALL + "text: " + "x" * 700 + "\n"


def spread(snapshot: str) -> list[int]:
    """Return how many bytes of a vacuum are written before it dies: around every border, and some in between."""
    size, marker = len(snapshot.encode()), len(MARKER)
    borders = [0, size, size + marker, 2 * size + marker, 3 * size + marker, 3 * size + marker + 4]
    near = {border + step for border in borders for step in (-2, -1, 0, 1, 2, 3, 5, 9)}
    inside = {size + step for step in range(0, marker, 3)}
    parts = {low + (high - low) * part // 5 for low, high in itertools.pairwise(borders) for part in range(1, 5)}
    return sorted(budget for budget in near | inside | parts if 0 <= budget < borders[-1])


@pytest.mark.parametrize("first", ["", SMALL, LARGE], ids=["new", "small", "large"])
@pytest.mark.parametrize("program", [steady, growing, shrinking, nested])
def test_a_file_of_a_process_that_was_killed_in_its_vacuum_opens(
    python_26: str, tmp_path: Path, program: Callable[[Any], Changes], first: str
) -> None:
    """It writes padding, a marker, a copy of the state, then the new head over the old one, then cuts the file."""
    expected: dict[str, Any] = yaml.safe_load(first) or {}
    changes, steps = program(expected), 60 if program is nested else None
    advance(changes, steps)
    snapshot = yaml.safe_dump(expected, allow_unicode=True, sort_keys=True)
    budgets = [*spread(snapshot), -1]
    folder, begin = tmp_path / "cut", tmp_path / "first.state"
    folder.mkdir()
    begin.write_text(first)
    script = DYING_VACUUM.replace('(namespace["changes"](state), None)', f'(namespace["changes"](state), {steps})')

    run_26(python_26, f"CHANGES = {source(program)!r}\n" + script, folder, begin, *budgets)

    for budget in budgets:
        path = tmp_path / f"alone {budget}" / "x.state"
        path.parent.mkdir()
        (folder / str(budget)).rename(path)
        try:
            opens_to(path, expected, may_warn=True)
        except BaseException as error:
            error.args = (
                f"{error.args[0] if error.args else ''}\nafter {budget} of {budgets[-2]} bytes",
                *error.args[1:],
            )
            raise


def test_a_vacuum_of_26_1_that_runs_within_a_change_may_die_as_well(python_26: str, path: Path) -> None:
    """The 2,001st change begins with a vacuum; killed in it, the change was never made."""
    end = """
handler = state._MappedYaml__file_handler
file = handler._FileHandler__file
class Dying:
    def write(self, text):
        file.write(text)
        if "LAST VALID STATE" in text:
            file.flush()
            die()
handler._FileHandler__file = Dying()
next(running)
"""

    expected = run_program(python_26, path, counter, 2000, end, code=-signal.SIGKILL)

    assert b"LAST VALID STATE" in path.read_bytes()
    opens_to(path, expected, may_warn=True)
