"""What reaches a user: the wheel, its types, the source archive, the single file, and how little an import costs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import persistedstate

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "persistedstate.py"

#: What the single file says where the tools are asked for and not there.
ADVICE = (
    f"the package persistedstate_tools of version {persistedstate.__version__} is missing; "
    "copy that folder beside persistedstate.py, or install all of the project"
)

#: Modules that a script should not pay for only because it keeps a state.
HEAVY = {
    "argparse",
    "asyncio",
    "ctypes",
    "email",
    "inspect",
    "logging",
    "multiprocessing",
    "portalocker",
    "ruamel",
    "socket",
    "sqlite3",
    "subprocess",
    "unittest",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, without the surroundings of this test run; return what it printed."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "MYPY", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def run_bare(*command: str | Path, cwd: Path) -> tuple[int, str, str]:
    """Run a command without what is installed; return its exit code and what it printed."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    """Build a target of hatchling from a source tree, as pip would, and return the archive."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    [archive] = folder.iterdir()
    return archive


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata_of(wheel: Path) -> Message:
    """Return what a wheel tells about itself."""
    [text] = [text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(text)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root folder of the unpacked source archive."""
    packed, unpacked = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("unpacked")
    run(sys.executable, "-m", "tarfile", "-e", build("sdist", packed), unpacked, cwd=packed)
    [root] = unpacked.iterdir()
    return root


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new virtual environment that holds the wheel and its dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    [python] = [*folder.glob("bin/python"), *folder.glob("Scripts/python.exe")]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run(*install, "--no-deps", wheel, cwd=folder)
    dependencies = subprocess.run([*install, wheel], capture_output=True, text=True, check=False)
    if dependencies.returncode and "CI" not in os.environ:
        pytest.skip(f"no package index in reach: {dependencies.stderr.splitlines()[-1]}")
    assert dependencies.returncode == 0, dependencies.stderr
    return python


# ---- The wheel ----


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = contents(wheel)

    beside = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("persistedstate_*/*.*")}
    assert {name for name in files if ".dist-info/" not in name} == {
        "persistedstate/__init__.py",
        "persistedstate/__main__.py",
        "persistedstate/py.typed",
        *beside,
    }
    assert {"persistedstate_stores/key_value.py", "persistedstate_stores/py.typed"} <= beside
    assert {"persistedstate_tools/repair.py", "persistedstate_tools/py.typed"} <= beside
    assert files["persistedstate/__init__.py"] == MODULE.read_bytes()
    assert files["persistedstate/py.typed"] == b""


def test_wheel_metadata_tells_version_python_licence_and_two_dependencies(wheel: Path) -> None:
    metadata = metadata_of(wheel)

    requirements = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]

    assert metadata["Version"] == persistedstate.__version__ == "27.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    assert sorted(re.split(r"[^\w.-]", line)[0] for line in requirements) == ["portalocker", "ruamel-yaml"]


def test_description_has_no_links_that_lead_nowhere(wheel: Path) -> None:
    """An index shows README.md without the files around it. The words stay, and what is in the code blocks."""
    metadata = metadata_of(wheel)
    readme = (ROOT / "README.md").read_text("utf-8")
    described = metadata.get_payload(decode=True).decode()  # type: ignore[union-attr]  # it has one part

    targets = re.findall(r"\]\(([^)]*)\)", described)

    assert metadata["Description-Content-Type"] == "text/markdown"
    assert [target for target in targets if not target.startswith(("http", "#"))] == []
    assert "tests/README.md tells what" in described
    assert re.findall(r"^```.*?^```$", described, re.DOTALL | re.MULTILINE) == re.findall(
        r"^```.*?^```$", readme, re.DOTALL | re.MULTILINE
    )


def test_only_what_a_user_may_want_is_published_as_an_extra(wheel: Path) -> None:
    """What tests and benchmarks need are dependency groups, which stay in the tree."""
    metadata = metadata_of(wheel)

    extras = ["constelite", "declared", "key-value", "postgres", "pystator", "redis", "watch"]
    assert metadata.get_all("Provides-Extra") == extras


def test_editable_installation_reaches_the_file_in_the_tree(tmp_path: Path) -> None:
    """A copy of the module inside it would hide the file that is being edited."""
    files = contents(build("wheel:editable", tmp_path))

    shipped = {name: text.decode() for name, text in files.items() if ".dist-info/" not in name}

    assert shipped == {"_persistedstate.pth": str(ROOT)}


def test_source_archive_is_complete(sdist: Path) -> None:
    expected = {"persistedstate.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", ".ci/run", ".ci/venv"}
    expected |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/*.py")}
    expected |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("persistedstate_tools/*.*")}

    present = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}

    assert expected <= present


def test_wheel_from_the_source_archive_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", tmp_path, source=sdist)) == contents(wheel)


# ---- The types ----

CONSUMER = """\
from persistedstate import PersistedState, StateCorrupt, StateError, StateLocked, StateReadOnly, check, plain, repair
from persistedstate_tools.paths import parse_path

STATE = PersistedState("consumer.state", last_id=0, _fsync=True, _wait=1.5)
reveal_type(STATE)  # reveals: persistedstate.PersistedState
STATE.last_id += 1
STATE["last_id"] += 1
with STATE, STATE.transaction():
    STATE.names = ["a", "b"]
reveal_type(STATE.refresh())  # reveals: bool
reveal_type(list(STATE))  # reveals: list[str]
plain(STATE)
reveal_type(check("consumer.state")[0].line)  # reveals: int
reveal_type(repair("consumer.state").damaged)  # reveals: str | None
reveal_type(parse_path("jobs[3].name"))  # reveals: list[tuple[Any, ...]]

try:
    STATE.vacuum()
except StateCorrupt as error:
    reveal_type(error.line)  # reveals: int
    value_error: ValueError = error
except StateLocked as error:
    timeout: TimeoutError = error
except StateReadOnly as error:
    permission: PermissionError = error

PersistedState()  # error: call-arg
PersistedState("consumer.state", _wait="long")  # error: arg-type
STATE.close("now")  # error: call-arg
not_a_value_error: ValueError = StateError("consumer.state", "some reason")  # error: assignment
STATE.refresh() + "text"  # error: operator
"""


def test_types_reach_a_consumer(installed: Path, tmp_path: Path) -> None:
    """mypy finds them in the installed wheel: it reveals the classes and refuses misuse, line by line."""
    consumer = tmp_path / "consumer.py"
    consumer.write_text(CONSUMER, encoding="utf-8")
    options = ["--strict", "--config-file=", "--python-executable", str(installed), "--no-error-summary"]

    command = [sys.executable, "-m", "mypy", *options, consumer.name]

    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    said = re.findall(
        r'^consumer\.py:(\d+): (?:note: Revealed type is "(.*)"|error: .*\[(.*)\])$',
        checked.stdout.replace("builtins.", ""),  # some versions of mypy spell builtins out
        re.MULTILINE,
    )
    expected = [
        (str(number), *(("", found[2]) if found[1] == "error" else (found[2], "")))
        for number, line in enumerate(CONSUMER.splitlines(), 1)
        if (found := re.search(r"# (reveals|error): (.*)", line))
    ]
    assert said == expected, checked.stdout + checked.stderr


DECLARING = """\
from typing import Literal, TypedDict
from persistedstate import PersistedState, on_change

class Job(TypedDict):
    name: str
    done: bool

class Importer(PersistedState, undeclared=False):
    last_id: int = 0
    kind: Literal["a", "b"] | None = None
    jobs: list[Job] = []

STATE = Importer("importer.state", _check=False)
reveal_type(STATE.last_id)  # reveals: int
reveal_type(STATE.jobs[0]["name"])  # reveals: str
reveal_type([job["done"] for job in STATE.jobs])  # reveals: list[bool]
with STATE as same:
    reveal_type(same)  # reveals: Importer
reveal_type(STATE.another)  # reveals: Any
STATE.last_id += 1
STATE.jobs.append({"name": "x", "done": False})
STATE.last_id = "one"  # error
STATE.jobs.append({"name": 1, "done": False})  # error
STATE.jobs[0]["name"] = 5  # error
STATE.jobs[0]["other"]  # error
STATE.kind = "c"  # error
stop = on_change(STATE, print, ("jobs", 0))
reveal_type(stop())  # reveals: None
on_change(STATE, 5)  # error
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_declared_types_reach_a_consumer(installed: Path, tmp_path: Path, checker: str) -> None:
    """Nested ones, too; what is not declared is Any."""
    pytest.importorskip(checker)
    (tmp_path / "consumer.py").write_text(DECLARING, encoding="utf-8")
    options = {"mypy": ["--strict", "--config-file=", "--python-executable"], "pyright": ["--pythonpath"]}[checker]
    command = [sys.executable, "-m", checker, *options, str(installed), "consumer.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if checker == "pyright" and "error" not in checked.stdout:
        pytest.skip(f"pyright does not run: {checked.stderr.strip()[-200:]}")

    said = re.findall(
        r"consumer\.py:(\d+):(?:\d+)?.*?(?:[Tt]ype (?:of .* )?is \"(?:consumer\.)?([^\"]*)\"|(error))",
        checked.stdout.replace("builtins.", ""),
    )
    expected = [
        (str(number), found[1] or "", "" if found[1] else "error")
        for number, line in enumerate(DECLARING.splitlines(), 1)
        if (found := re.search(r"# (?:reveals: (.*)|error)$", line))
    ]
    assert said == expected, checked.stdout + checked.stderr


# ---- The import ----


def imported_by(statements: str, cwd: Path) -> set[str]:
    """Return the top-level modules that some statements import in a new process."""
    script = f"import sys\nbefore = set(sys.modules)\n{statements}\nprint(*set(sys.modules) - before)\n"
    names = run(sys.executable, "-c", script, cwd=cwd).split()
    return {name.partition(".")[0] for name in names}


def test_import_is_light() -> None:
    assert imported_by("import persistedstate", cwd=ROOT).isdisjoint(HEAVY)


def test_script_that_changes_a_state_once_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each of these takes from 0.3 to 40 ms, of 17 for all that such a script does."""
    (tmp_path / "example.state").write_text("# how far\ncount: 1  # so far\nnames:\n- a.csv\n", encoding="utf-8")
    statements = textwrap.dedent(
        f"""\
        sys.path.insert(0, {str(ROOT)!r})
        from persistedstate import PersistedState
        with PersistedState("example.state", count=0) as state:
            state.count += 1
        """
    )

    imported = imported_by(statements, cwd=tmp_path)

    needed_on_windows = {"portalocker"} if sys.platform == "win32" else set()
    light = {"binascii", "copy", "datetime", "enum", "json", "re", "threading", "typing", "warnings"}
    before = imported_by("import contextlib, weakref", cwd=tmp_path)
    assert imported.isdisjoint((HEAVY | light) - needed_on_windows - before)


def test_file_of_the_modules_own_making_never_needs_ruamel(tmp_path: Path) -> None:
    """Loading ruamel.yaml takes longer than everything else that a small script does with its state."""
    statements = textwrap.dedent(
        f"""\
        sys.path.insert(0, {str(ROOT)!r})
        from persistedstate import PersistedState
        for run in range(2):
            state = PersistedState({str(tmp_path / "example.state")!r}, last_id=0, names=["yes", "a: b"], rate=0.5)
            state.last_id += 1
            state.names.append({{"when": None}})
            state.close()
        """
    )

    assert "ruamel" not in imported_by(statements, cwd=tmp_path)


def test_vendored_file_works_alone(tmp_path: Path) -> None:
    shutil.copy(MODULE, tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """\
            import persistedstate
            with persistedstate.PersistedState("example.state", count=0) as state:
                state.count += 1
            print(persistedstate.__file__)
            """
        ),
        encoding="utf-8",
    )

    printed = run(sys.executable, script.name, cwd=tmp_path)

    assert Path(printed.strip()).resolve() == (tmp_path / MODULE.name).resolve()
    assert (tmp_path / "example.state").read_text(encoding="utf-8") == "count: 1\n"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {MODULE.name, script.name, "example.state"}


def test_installed_wheel_works(installed: Path, tmp_path: Path) -> None:
    script = 'import persistedstate as p; p.PersistedState("example.state", count=1).close(); print(p.__file__)'

    printed = run(installed, "-c", script, cwd=tmp_path)

    assert Path(printed.strip()).parts[-2:] == ("persistedstate", "__init__.py")
    assert (tmp_path / "example.state").read_text(encoding="utf-8") == "count: 1\n"


@pytest.mark.parametrize("command", ["console script", "-m"])
def test_installed_command_line_works(command: str, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "example.state").write_text("count: 1\n", encoding="utf-8")
    start = [installed, "-m", "persistedstate"] if command == "-m" else [installed.parent / "persistedstate"]

    assert run(*start, "get", "example.state", "count", cwd=tmp_path) == "1\n"
    assert run(*start, "--version", cwd=tmp_path) == f"persistedstate {persistedstate.__version__}\n"


@pytest.mark.parametrize("command", [["persistedstate.py"], ["-m", "persistedstate"], ["-IS", "persistedstate.py"]])
def test_command_line_of_a_checkout_works(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "example.state").write_text("count: 1\n", encoding="utf-8")

    assert run(sys.executable, *command, "get", tmp_path / "example.state", "count", cwd=ROOT) == "1\n"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A folder that holds a copy of the single file, and a state."""
    shutil.copy(MODULE, tmp_path)
    (tmp_path / "example.state").write_text("count: 1\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", [["persistedstate.py"], ["-m", "persistedstate"]])
def test_command_line_of_a_vendored_file_tells_what_to_install(command: list[str], alone: Path) -> None:
    assert run_bare(*command, "get", "example.state", "count", cwd=alone) == (2, "", f"persistedstate: {ADVICE}\n")


@pytest.mark.parametrize("call", ["check(%s)", "repair(%s)", "PersistedState(%s, _watch=True)"])
def test_a_vendored_file_tells_what_to_install(call: str, alone: Path) -> None:
    statements = f"import persistedstate\npersistedstate.{call % repr('example.state')}"

    code, _, errors = run_bare("-c", statements, cwd=alone)

    assert (code, errors.splitlines()[-1]) == (1, f"ModuleNotFoundError: {ADVICE}")


def test_vendored_file_refuses_tools_of_another_version(alone: Path) -> None:
    """They use what begins with an underscore, which may be another thing tomorrow."""
    shutil.copytree(ROOT / "persistedstate_tools", alone / "persistedstate_tools")
    version = persistedstate.__version__
    (alone / MODULE.name).write_text(MODULE.read_text("utf-8").replace(f'"{version}"', '"26.9"'), "utf-8")

    code, _, errors = run_bare("-m", "persistedstate", "check", "example.state", cwd=alone)

    assert (code, errors) == (2, f"persistedstate: {ADVICE.replace(version, '26.9')}\n")


def test_command_line_names_the_package_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "example.state").write_text("count: 1\ntext: >\n  folded\n", encoding="utf-8")

    done = run_bare(MODULE, "get", "example.state", "text", cwd=tmp_path)

    missing = "the package ruamel is missing; pip install ruamel.yaml portalocker"
    assert done == (2, "", f"persistedstate: {missing}\n")


@pytest.mark.parametrize("readonly", [False, True])
def test_vendored_module_names_the_package_that_is_missing(readonly: bool, tmp_path: Path) -> None:
    """Also where only a copy of the file stands beside a script."""
    shutil.copy(MODULE, tmp_path)
    text = "count: 1\ntext: >\n  folded\n"
    (tmp_path / "example.state").write_text(text, encoding="utf-8")
    script = f"from persistedstate import *; PersistedState('example.state', _readonly={readonly})"

    done = run_bare("-c", script, cwd=tmp_path)

    missing = "the package ruamel is missing; pip install ruamel.yaml portalocker"
    assert done[2].endswith(f"\nModuleNotFoundError: {missing}\n")
    assert (tmp_path / "example.state").read_text(encoding="utf-8") == text


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_vendored_module_locks_without_portalocker(tmp_path: Path) -> None:
    shutil.copy(MODULE, tmp_path)
    script = """if True:
        from persistedstate import *
        import subprocess, sys
        with PersistedState("example.state", count=0) as state:
            state.count += 1
            other = "from persistedstate import *; PersistedState('example.state')"
            done = subprocess.run([sys.executable, "-S", "-c", other], capture_output=True, text=True)
            print(done.stderr.splitlines()[-1].partition(":")[0])
    """

    done = run_bare("-c", script, cwd=tmp_path)

    assert done == (0, "persistedstate.StateLocked\n", "")
    assert (tmp_path / "example.state").read_text(encoding="utf-8") == "count: 1\n"


def test_getting_a_value_needs_neither_of_the_dependencies(tmp_path: Path) -> None:
    """Nor what argparse imports only to ask for the width of the terminal: a shell waits for each call."""
    (tmp_path / "example.state").write_text(
        'count: 1  # so far\nname: ada\n--- ["set",[],"count",2]\n', encoding="utf-8"
    )
    statements = textwrap.dedent(
        f"""\
        sys.path.insert(0, {str(ROOT)!r})
        from persistedstate_tools.command_line import main
        main(["get", "example.state", "name"])
        """
    )

    imported = imported_by(statements, cwd=tmp_path)

    assert imported.isdisjoint(HEAVY - {"argparse"} | {"shutil", "tempfile", "signal"})
