"""What opening and renewing a file costs, with ruamel.yaml and 26.1 beside it.

It is processor time that counts: all of this is computing, some of it takes seconds, and a busy machine would lengthen
what is long more than what is short.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest
from harness import IS_OLD, OURS, Entrant, FsyncClock, Limit, Race, Scale, Shelf, content_of, job

from persistedstate import PersistedState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.benchmark(timer=time.process_time)

LIBRARY = pytest.mark.skipif(IS_OLD, reason="measured beside the new module")
ROUND_TRIP, SAFE = Entrant("ruamel.yaml round trip"), Entrant("ruamel.yaml safe, pure")
#: How many rounds there is time for: 26.1 and ruamel.yaml need seconds for one.
ROUNDS = 1 if IS_OLD else 20


class Opening:
    """Opens fresh copies of a file, and closes what was opened before."""

    def __init__(self, source: Path, path: Path) -> None:
        self._source, self._path = source, path
        self._state: Any = None

    def prepare(self) -> None:
        """Get ready for a round."""
        self.close()
        shutil.copy(self._source, self._path)

    def run(self, count: int) -> None:
        """Open; once is all that is asked for."""
        del count
        self._state = PersistedState(self._path)

    def close(self) -> None:
        """End what the last round began."""
        if self._state is not None:
            self._state.close()


def json_loads(size: int) -> Limit:
    """Return the limit for opening: json.loads of the same content."""
    text = json.dumps(content_of(size))
    return Limit("`json.loads`", lambda count: [json.loads(text) for _ in repeat(None, count)], count=5)


def race_opening(race: Race, case: str, source: Path, limit: Limit) -> None:
    """Measure how long it takes to open copies of a file."""
    opening = Opening(source, source.with_suffix(".copy"))
    race(case, Entrant(OURS), opening.run, limit, prepare=opening.prepare, rounds=ROUNDS, count=1)
    opening.close()


def yaml_of(kind: str) -> Any:
    """Return ruamel.yaml's reader and writer in pure Python."""
    from ruamel.yaml import YAML  # noqa: PLC0415 - not to be found beside 26.1

    return YAML(typ=kind, pure=True)


# ---- Text ------------------------------------------------------------------------------------------------------------

#: Lines between two comments in a file written by hand.
COMMENT_EVERY = 100
FOLDED = """\
  note: >
    this part came late, and was
    fetched once more by hand
"""


def commented(text: str) -> str:
    """Return a file as a person may leave it: a comment every 100 lines, and blank lines above the batches."""
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True)):
        if line.startswith("batch"):
            lines.append("\n")
        if number % COMMENT_EVERY == COMMENT_EVERY - 1:
            lines.append(f"{' ' * (len(line) - len(line.lstrip()))}# checked up to here\n")
        lines.append(line)
    return "".join(lines)


def folded(text: str) -> str:
    """Return the text with one folded scalar, in its first job."""
    start = text.index("\n- name: ") + 1
    end = text.find("\n- ", start) + 1
    return text[:end] + FOLDED + text[end:]


def first_batch(text: str) -> str:
    """Return the first batch of jobs, a top-level entry."""
    start = text.index("batch 0000:")
    return text[start : text.find("\nbatch", start) + 1 or None]


@pytest.fixture
def written(shelf: Shelf, scale: Scale, tmp_path: Path) -> Path:
    """Return a file of 1 MB that the module wrote."""
    return shelf.copy(scale.megabyte, tmp_path / "x.state")


@pytest.fixture
def by_hand(written: Path) -> Path:
    """Return a file of 1 MB with comments."""
    written.write_text(commented(written.read_text("utf-8")), "utf-8")
    return written


@pytest.fixture
def by_hand_folded(by_hand: Path) -> Path:
    """Return a file of 1 MB with comments and a folded scalar."""
    by_hand.write_text(folded(by_hand.read_text("utf-8")), "utf-8")
    return by_hand


# ---- Opening ---------------------------------------------------------------------------------------------------------


def test_open_written(race: Race, scale: Scale, written: Path) -> None:
    """Open 1 MB that the module wrote."""
    race_opening(race, "open 1 MB", written, json_loads(scale.megabyte))


@LIBRARY
def test_open_by_hand(race: Race, scale: Scale, by_hand: Path) -> None:
    """Open 1 MB with a comment every 100 lines."""
    race_opening(race, "open 1 MB by hand", by_hand, json_loads(scale.megabyte))


@LIBRARY
def test_open_folded(race: Race, scale: Scale, by_hand_folded: Path) -> None:
    """Open the same with one folded scalar."""
    race_opening(race, "open 1 MB by hand, folded", by_hand_folded, json_loads(scale.megabyte))


@LIBRARY
def test_load_entry(race: Race, by_hand_folded: Path, scale: Scale) -> None:
    """What ruamel.yaml needs for the one top-level entry that holds the folded scalar."""
    text = first_batch(by_hand_folded.read_text("utf-8"))
    race("load the folded entry", ROUND_TRIP, lambda _: yaml_of("rt").load(text), json_loads(scale.megabyte), rounds=5)


@LIBRARY
def test_load_round_trip(race: Race, scale: Scale, written: Path) -> None:
    """Load what the module wrote with ruamel.yaml."""
    text, limit = written.read_text("utf-8"), json_loads(scale.megabyte)
    race("open 1 MB", ROUND_TRIP, lambda _: yaml_of("rt").load(text), limit, rounds=1, count=1)


@LIBRARY
def test_load_safe(race: Race, scale: Scale, by_hand: Path) -> None:
    """Load what was written by hand with ruamel.yaml's safe reader, in pure Python."""
    text, limit = by_hand.read_text("utf-8"), json_loads(scale.megabyte)
    race("open 1 MB by hand", SAFE, lambda _: yaml_of("safe").load(text), limit, rounds=1, count=1)


def test_open_records(race: Race, scale: Scale, tmp_path: Path) -> None:
    """Open a file with 2,000 records without a vacuum, as a killed script leaves it; 26.1 also records the default."""
    path, killed = tmp_path / "x.state", tmp_path / "killed.state"
    with PersistedState(path, counter=0) as state:
        for _ in range(scale.records - 1):
            state.counter += 1
        shutil.copy(path, killed)
    records = [json.dumps(["set", [], "counter", number]) for number in range(scale.records)]
    limit = Limit("`json.loads` of each", lambda _: [json.loads(record) for record in records], count=1)
    race_opening(race, "open 2,000 records", killed, limit)


# ---- Vacuum ----------------------------------------------------------------------------------------------------------


def json_rewrite(path: Path, size: int) -> Limit:
    """Return the limit for a vacuum: json.dump of the same content to a new file that takes the place of the old."""
    content = content_of(size)

    def rewrite(_: int) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content), "utf-8")
        new.replace(path.with_suffix(".json"))

    return Limit("`json.dump` + `os.replace`", rewrite, count=1)


def count(state: Any) -> None:
    """Change an entry of its own."""
    state.counter += 1


def finish_job(state: Any) -> None:
    """Change a leaf of a batch."""
    state["batch 0000"][3]["seconds"] += 1


def race_vacuum(race: Race, case: str, path: Path, change: Callable[[Any], None], clock: FsyncClock) -> None:
    """Measure a vacuum after one change, fsync apart."""
    state: Any = PersistedState(path)
    handler = getattr(state, "_MappedYaml__file_handler", state)
    limit = json_rewrite(path, path.stat().st_size)
    race(
        case,
        Entrant(OURS, note="fsync apart"),
        lambda _: handler.vacuum(),
        limit,
        prepare=lambda: change(state),
        rounds=ROUNDS,
        count=1,
        clock=clock,
    )
    state.close()


@pytest.mark.parametrize(("case", "change"), [("vacuum 1 MB", count), ("vacuum 1 MB, a job changed", finish_job)])
def test_vacuum(case: str, change: Callable[[Any], None], race: Race, written: Path, clock: FsyncClock) -> None:
    """Renew a file of 1 MB after one change."""
    race_vacuum(race, case, written, change, clock)


@LIBRARY
def test_vacuum_by_hand(race: Race, by_hand: Path, clock: FsyncClock) -> None:
    """Renew a file with comments after a change elsewhere."""
    race_vacuum(race, "vacuum 1 MB by hand", by_hand, count, clock)


@LIBRARY
def test_vacuum_folded(race: Race, by_hand_folded: Path, clock: FsyncClock) -> None:
    """Renew a file with comments and a folded scalar after a change elsewhere."""
    race_vacuum(race, "vacuum 1 MB by hand, folded", by_hand_folded, count, clock)


@LIBRARY
def test_vacuum_of_one_entry(race: Race, scale: Scale, tmp_path: Path, clock: FsyncClock) -> None:
    """Renew a file of which a single entry takes up all the 1 MB, after a change in it."""
    path = tmp_path / "x.state"
    with PersistedState(path) as state:
        state["batch 0000"] = [job(number) for number in range(scale.megabyte // 110)]
    race_vacuum(race, "vacuum 1 MB in one entry", path, finish_job, clock)


@LIBRARY
def test_dump_round_trip(race: Race, written: Path) -> None:
    """Dump 1 MB with ruamel.yaml, comments and all, to memory."""
    document = yaml_of("rt").load(written.read_text("utf-8"))
    limit = json_rewrite(written, written.stat().st_size)
    race("vacuum 1 MB", ROUND_TRIP, lambda _: yaml_of("rt").dump(document, io.StringIO()), limit, rounds=1, count=1)
