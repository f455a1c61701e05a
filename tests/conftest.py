"""Fixtures: a path, an open state, a second reader, and checks that no test leaves anything behind."""

from __future__ import annotations

import gc
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from hypothesis import settings
from rounds import CASES, sample, some

import persistedstate
from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DESCRIPTORS = Path("/proc/self/fd")
#: Seconds that a thread of a test which has nothing more to do may take to end on a busy machine.
MOMENT = 20
#: The variable with the seed of all random tests.
SEED = "PERSISTEDSTATE_SEED"

if os.environ.get("PERSISTEDSTATE_SHARED"):  # every state of these tests is a shared one; see test_shared_suites.py
    _open_state = PersistedState.__init__

    def _open_shared(self: PersistedState, path: Any, /, **options: Any) -> None:
        _open_state(self, path, **{"_shared": True, **options})

    PersistedState.__init__ = _open_shared  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)  # Hypothesis reads its option in the same hook
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "leaves(*what): the test may leave 'descriptors', 'threads' or 'files' behind, or lose 'comments'"
    )
    _heed_signals()
    # pytest-xdist's workers, which come later, inherit it.
    os.environ[SEED] = os.environ.get(SEED) or str(random.SystemRandom().getrandbits(48))
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = os.environ[SEED]
    if random.Random(os.environ[SEED]).random() < 0.5:  # else only the first few lines of a run
        persistedstate._few_lines = itertools.repeat(0)
    # Where Hypothesis sees a CI server, it would take seeds of its own.
    settings.register_profile("seeded", derandomize=False, max_examples=some(100, 20))
    settings.load_profile("seeded")


def _heed_signals() -> None:
    """Let the processes of the tests have the signals that a shell or nohup has ours ignore: they would inherit that.

    Below nohup, the end of the terminal shall still not end the tests.
    """
    wanted: dict[str, Any] = {
        "SIGHUP": lambda *_: None,
        "SIGINT": signal.default_int_handler,
        "SIGQUIT": signal.SIG_DFL,
    }
    for number, handler in ((getattr(signal, name, None), handler) for name, handler in wanted.items()):
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(trylast=True)  # of what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take a sample of the cases of each test, where a share of them is wanted; not where a test was named."""
    if any("::" in argument for argument in config.args):
        return
    version = "{}.{}".format(*sys.version_info)  # each takes other cases
    taken = sample([item.nodeid for item in items], CASES, f"{os.environ[SEED]} {version}")
    left_out = [item for item in items if item.nodeid not in taken]
    items[:] = [item for item in items if item.nodeid in taken]
    config.hook.pytest_deselected(items=left_out)


def pytest_report_header() -> str:
    return f"{SEED}={os.environ[SEED]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Tell why tests were skipped, a line for each reason: what failed follows, and shall stay in sight."""
    reasons = Counter(
        skipped.longrepr[2].removeprefix("Skipped: ") for skipped in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} x {reason}")
    if exitstatus:
        terminalreporter.write_line(pytest_report_header())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a state file that does not exist yet."""
    return tmp_path / "x.state"


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter: pytest's own is closed to the unprivileged child of a root's run."""
    folder = Path(tempfile.mkdtemp()).resolve()
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@pytest.fixture
def state(path: Path) -> Iterator[PersistedState]:
    """An open, empty state at `path`."""
    state = PersistedState(path)
    yield state
    state.close()


@pytest.fixture
def on_disk(path: Path) -> Callable[..., dict[Any, Any]]:
    """A function that reads a file without the module: `on_disk()`, `on_disk(other)`, `on_disk(reader="ruamel")`."""

    def read(file: Path = path, *, reader: str = "pyyaml") -> dict[Any, Any]:
        return oracle.read(file, reader)

    return read


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Where a random test gets its chances from; the seed of all tests gives each other ones."""
    return random.Random(f"{os.environ[SEED]} {request.node.name}")


@pytest.fixture
def hurried() -> Iterator[None]:
    """Let threads change as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("leaves")
    allowed = marker.args if marker else ()
    folder = request.getfixturevalue("tmp_path") if "path" in request.fixturenames else None
    descriptors, threads = _descriptors(), set(threading.enumerate())

    yield

    if "threads" not in allowed:
        for thread in set(threading.enumerate()) - threads:
            thread.join(MOMENT)
        assert set(threading.enumerate()) <= threads
    if "descriptors" not in allowed and _descriptors() - descriptors:
        gc.collect()
        assert _descriptors() <= descriptors
    if folder and "files" not in allowed:
        assert {entry.name for entry in folder.iterdir()} <= {"x.state"}


@pytest.fixture(autouse=True)
def _writes_no_entry_plainly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The last resort, for what the text section cannot do, hides faults: no test may come to it unnoticed."""
    told: list[str] = []
    marker = request.node.get_closest_marker("leaves")
    if not marker or "comments" not in marker.args:
        monkeypatch.setattr(persistedstate, "_warn_afterwards", told.append)
    yield
    assert told == []


def _descriptors() -> set[tuple[str, str]]:
    """Return number and target of every open descriptor; nothing where the system does not tell."""
    found = set()
    for entry in DESCRIPTORS.iterdir() if DESCRIPTORS.is_dir() else ():
        try:
            found.add((entry.name, str(entry.readlink())))
        except OSError:  # the one that listed the folder
            continue
    return found
