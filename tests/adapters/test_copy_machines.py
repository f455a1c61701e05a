"""Copying machines between a state file and pystator's own stores, against real servers where they are installed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from processes import PATIENCE, Child

from persistedstate import PersistedState, StateLocked

pytest.importorskip("sqlalchemy", reason="pystator is not installed as `pystator[api]`: it cannot be imported without")
pytest.importorskip("pystator", reason="pystator is not installed")

from pystator import stores
from pystator.machine import StateMachine
from pystator.orchestrator import Orchestrator

from persistedstate_stores.__main__ import main
from persistedstate_stores.copy_machines import Copied, CopyError, copy
from persistedstate_stores.pystator import PersistedStateStore

from .servers import OF_PYSTATOR, QUOTED, free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.leaves("files", "threads"),  # clients keep threads until the process ends
    pytest.mark.filterwarnings("ignore:MongoDB replica set:UserWarning"),
]

ORDER = {
    "meta": {"machine_name": "order", "version": "1"},
    "states": [{"name": "new", "type": "initial"}, {"name": "paid"}, {"name": "shipped", "type": "terminal"}],
    "transitions": [
        {"trigger": "pay", "source": "new", "dest": "paid"},
        {"trigger": "ship", "source": "paid", "dest": "shipped"},
        {"trigger": "cancel", "source": "paid", "dest": "new"},
    ],
}


def drive(store: Any, entity: str, *triggers: str, **context: Any) -> None:
    logs = {"event_store": store, "audit_store": store} if hasattr(store, "append_event") else {}
    for trigger in triggers:
        assert (
            Orchestrator(StateMachine.from_dict(ORDER), store, **logs).process_event(entity, trigger, context).success
        )


@pytest.fixture
def source(path: Path) -> Path:
    """A state file with three orders and their logs, and one that never got a state."""
    with PersistedStateStore(path) as store:
        drive(store, "a", "pay", "cancel", "pay", amount=30, text="é\n😀", nested={"x": [1, 2.5, None, True]})
        drive(store, "b", "pay", "ship", amount=-0.0, large=2**60)
        store.set_state("c", "held")
        store.record_transition("c", "new", "pay", success=False, error_type="GuardRejectedError", duration_ms=12.5)
    return path


@pytest.fixture(params=OF_PYSTATOR)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def address(kind: str, tmp_path: Path) -> Iterator[str]:
    """The address of an empty store of pystator; its server runs during the test."""
    folder = tmp_path
    with contextlib.ExitStack() as stack:
        if kind == "postgresql":  # its server runs as somebody who may not look into pytest's folders
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.chmod(0o777)
        address = stack.enter_context(running(kind, folder, OF_PYSTATOR))
        if kind == "postgresql":
            with connected(address, validate_schema=False) as store:
                make_tables(store._engine, store._initialize_schema)
        yield address


def make_tables(engine: Any, make: Callable[[], object]) -> None:
    """As `pystator db init` does, when the server is ready, which is a moment after it accepts connections."""
    from sqlalchemy import exc, text

    end = time.monotonic() + PATIENCE
    while True:
        try:
            with engine.begin() as connection:
                connection.execute(text("CREATE SCHEMA pystator"))
            break
        except exc.OperationalError:
            assert time.monotonic() < end
            time.sleep(0.05)
    make()


@contextlib.contextmanager
def connected(address: str, **how: Any) -> Iterator[Any]:
    """The store at an address, as pystator opens it."""
    url = address.removeprefix("pystator+")
    name = {"sqlite": "SQLite", "postgresql": "Postgres", "mongodb": "MongoDB", "redis": "Redis"}[url.partition(":")[0]]
    store = getattr(stores, f"{name}StateStore")(url)
    store.connect(**({"require_replica_set": False} if name == "MongoDB" else {}), **how)
    try:
        yield store
    finally:
        store.disconnect()


#: What goes to the databases and comes back; Redis has neither versions nor logs.
ALL, ENTITIES = Copied(3, 5, 6, 14, 0), Copied(3, 0, 0, 3, 11)


def again(copied: Copied) -> Copied:
    return copied._replace(written=0)


def without_what_databases_lack(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state file as it is after a way through a database, but for what that adds."""
    for entry in state["entities"].values():
        for name in "trigger", "source_state", "target_state", "created_at":
            entry.get("metadata", {}).pop(name, None)
        if not entry.get("metadata"):
            entry.pop("metadata", None)
    for record in (each for log in state.get("transitions", {}).values() for each in log):
        if "duration_ms" in record:
            record["duration_ms"] = int(record["duration_ms"])
    found: dict[str, Any] = in_milliseconds(state)
    return found


def in_milliseconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: in_milliseconds(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [in_milliseconds(item) for item in value]
    return value.replace(microsecond=value.microsecond // 1000 * 1000) if isinstance(value, datetime) else value


def test_machines_go_there_and_back_with_versions_and_times(
    source: Path, tmp_path: Path, address: str, kind: str
) -> None:
    back = tmp_path / "back.state"
    expected = ENTITIES if kind == "redis" else ALL

    there, once_more, home = copy(source, address), copy(source, address), copy(address, back)

    assert (there, once_more) == (expected, again(expected))
    assert home == expected._replace(left=0)
    before, after = (without_what_databases_lack(oracle.read(file)) for file in (source, back))
    if kind == "redis":
        before = {"entities": {name: {**entry, "version": 1} for name, entry in before["entities"].items()}}
    assert oracle.same(after, before)


def test_pystator_goes_on_from_what_was_copied(source: Path, tmp_path: Path, address: str, kind: str) -> None:
    copy(source, address)
    with connected(address) as store:
        assert (store.get_state("a"), store.get_state("b"), store.get_is_terminal("b")) == ("paid", "shipped", True)
        if kind != "redis":
            assert store.get_state_versioned("a") == ("paid", 3)
            assert [event["trigger"] for event in store.get_events("a")] == ["pay", "cancel", "pay"]
            steps = [step["trigger"] for step in store.get_transition_history("b")]
            assert (sorted(steps) if kind == "mongodb" else steps[::-1]) == ["pay", "ship"]  # it counts milliseconds
        if kind == "mongodb":  # pystator would number the next event by trial, five times
            assert store._event_sequence_counters().find_one({"_id": "a"})["seq"] == 3
        drive(store, "a", "ship", parcels=2)
    back = tmp_path / "back.state"
    copy(address, back)

    with PersistedStateStore(back) as store:
        assert (store.get_state("a"), store.get_context("a")["parcels"]) == ("shipped", 2)
        if kind != "redis":
            assert store.get_state_versioned("a") == ("shipped", 4)
            assert [event["sequence"] for event in store.get_events("a")] == [1, 2, 3, 4]
            driver = Orchestrator(StateMachine.from_dict(ORDER), store, event_store=store)
            assert [result.target_state for result in driver.replay("a")] == ["paid", "new", "paid", "shipped"]
            assert store.append_event("a", "late") == 5


def test_what_changed_is_copied_again_and_the_rest_of_the_target_stays(source: Path, address: str, kind: str) -> None:
    copy(source, address)
    with connected(address) as store:
        drive(store, "other", "pay")
    with PersistedStateStore(source) as store:
        drive(store, "a", "ship")

    copied = copy(source, address)

    assert copied.written == (1 if kind == "redis" else 3)
    with connected(address) as store:
        assert (store.get_state("a"), store.get_state("other")) == ("shipped", "paid")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mongodb"], indirect=True)
def test_what_the_source_no_longer_tells_goes_from_the_target(source: Path, address: str) -> None:
    copy(source, address)
    with PersistedState(source) as state:
        state["entities"]["a"]["metadata"]["status"] = "active"  # is as good as none
        del state["entities"]["a"]["context"], state["events"]["a"][0]["machine_name"]
        del state["transitions"]["c"][0]["error_type"]

    assert copy(source, address) == ALL._replace(written=3)
    with connected(address) as store:
        assert (store.get_context("a"), store.get_events("a")[0]["machine_name"]) == ({}, None)
        assert store.get_transition_history("c")[0]["error_type"] is None


def test_copy_into_a_file_keeps_what_a_person_wrote(source: Path, address: str) -> None:
    copy(source, address)
    copy(address, source)  # tells when the entities were made
    assert oracle.read(source)["entities"]["a"]["metadata"]["trigger"] == "pay"  # which no database has
    text = source.read_text(encoding="utf-8")
    edited = "# orders of May\n" + text.replace("      amount: 30\n", "      amount: 25  # rebate\n", 1)
    source.write_text(edited + "notes: [mine]\n", encoding="utf-8")

    assert copy(address, source).written == 1

    assert source.read_text(encoding="utf-8") == edited.replace("25  # rebate", "30  # rebate") + "notes: [mine]\n"


@pytest.mark.parametrize("kind", ["redis"], indirect=True)
def test_metadata_joins_what_is_there(source: Path, address: str) -> None:
    with connected(address) as store:
        store.set_state("a", "held", metadata={"vip": True, "trigger": "hold"})

    copy(source, address)

    with connected(address) as store:
        metadata = json.loads(store._client.get("pystator:entity:a:metadata"))
    assert metadata.items() >= {"vip": True, "trigger": "pay", "machine_name": "order"}.items()


def test_logs_are_merged_in_the_order_of_numbers_and_times(source: Path, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    copy(source, other)
    copy(other, source)
    with PersistedState(source) as state:
        steps = [step["id"] for step in state["transitions"]["a"]]
        del state["events"]["a"][0], state["transitions"]["a"][1]
        state["events"]["a"][0]["trigger"] = "renamed"

    assert copy(other, source).written == 3

    merged = oracle.read(source)
    events = [(event["sequence"], event["trigger"]) for event in merged["events"]["a"]]
    assert events == [(1, "pay"), (2, "cancel"), (3, "pay")]
    assert [step["id"] for step in merged["transitions"]["a"]] == steps


def test_events_of_a_database_come_in_the_order_of_their_numbers(source: Path, tmp_path: Path) -> None:
    with PersistedState(source) as state:
        state["events"]["a"][0]["created_at"] = datetime(2999, 1, 1, tzinfo=timezone.utc)
    copy(source, f"sqlite:///{tmp_path}/x.db")

    copy(f"sqlite:///{tmp_path}/x.db", tmp_path / "back.state")

    assert [event["sequence"] for event in oracle.read(tmp_path / "back.state")["events"]["a"]] == [1, 2, 3]


def test_more_entities_than_are_asked_for_at_once(path: Path, tmp_path: Path) -> None:
    with PersistedState(path) as state:
        state["entities"] = {f"e{number}": {"state": "new", "version": number + 1} for number in range(1201)}

    assert copy(path, f"sqlite:///{tmp_path}/x.db") == Copied(1201, 0, 0, 1201, 0)
    assert copy(path, f"sqlite:///{tmp_path}/x.db") == Copied(1201, 0, 0, 0, 0)


def test_machines_go_from_one_database_to_another(source: Path, tmp_path: Path, address: str, kind: str) -> None:
    middle = f"sqlite:///{tmp_path}/middle.db"
    copy(source, middle)

    expected = ENTITIES if kind == "redis" else ALL
    assert copy(middle, address) == expected
    assert copy(middle, address) == again(expected)


def test_what_a_person_wrote_by_hand_is_copied(path: Path, tmp_path: Path) -> None:
    """A state alone makes an entity; a step of its history needs no id, and an event no time."""
    path.write_text(
        "entities:\n  a: {state: paid}\n  b:\n    context: {n: 1}\n"
        "events:\n  a:\n  - {sequence: 4, trigger: pay}\n"
        "transitions:\n  a:\n  - {source_state: new, trigger: pay, target_state: paid}\n",
        encoding="utf-8",
    )
    url = f"sqlite:///{tmp_path}/x.db"

    assert copy(path, url) == Copied(1, 1, 1, 3, 1)
    assert copy(path, url) == Copied(1, 1, 1, 0, 1)
    with connected(url) as store:
        assert store.get_state_versioned("a") == ("paid", 1)
        assert [event["sequence"] for event in store.get_events("a")] == [4]
        assert [step["success"] for step in store.get_transition_history("a")] == [True]
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        assert now - store.get_events("a")[0]["created_at"] < timedelta(hours=1)


@pytest.mark.parametrize(
    ("context", "reason"),
    [("{when: 2024-05-01}", "not JSON serializable"), ("{n: .inf}", "JSON"), ("{1: 2}", "a key is no string")],
)
def test_value_that_is_no_json_is_named_and_nothing_written(
    source: Path, tmp_path: Path, context: str, reason: str
) -> None:
    with PersistedState(source) as state:
        state["entities"]["zz"] = {"state": "new"}
    text = source.read_text(encoding="utf-8").replace("  zz:\n", f"  zz:\n    context: {context}\n")
    source.write_text(text, encoding="utf-8")

    with pytest.raises(CopyError, match=f"^entity → zz: context: .*{reason}"):
        copy(source, f"sqlite:///{tmp_path}/x.db")
    with connected(f"sqlite:///{tmp_path}/x.db") as store:
        assert store.list_entities() == []


def test_write_that_fails_writes_nothing(source: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with PersistedState(source) as state:
        state["events"]["b"][1]["created_at"] = "yesterday"

    with pytest.raises((CopyError, TypeError), match="datetime"):
        copy(source, url)
    with connected(url) as store:
        assert (store.list_entities(), store.get_events("a")) == ([], [])


@pytest.mark.parametrize("text", ["last_id: 41\n", "sessions: {k: {value: {n: 1}}}\n"])
def test_file_without_machines_is_refused_and_no_target_made(path: Path, tmp_path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

    with pytest.raises(CopyError, match="holds no entities, events or transitions of pystator"):
        copy(path, f"sqlite:///{tmp_path}/x.db")
    assert not (tmp_path / "x.db").exists()


def test_database_to_copy_from_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CopyError, match="there is no such file"):
        copy(f"sqlite:///{tmp_path}/x.db", tmp_path / "target.state")
    assert list(tmp_path.iterdir()) == []


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()

    with pytest.raises(CopyError, match="has no tables of pystator; `pystator db init` makes them"):
        copy(f"sqlite:///{tmp_path}/x.db", tmp_path / "target.state")
    assert not (tmp_path / "target.state").exists()


@pytest.mark.parametrize("kind", ["postgresql", "mongodb", "redis"], indirect=True)
def test_server_that_is_down_is_named(source: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip(OF_PYSTATOR[kind].client, reason="its client is not installed")
    address, other = OF_PYSTATOR[kind].address.format(port=free_port(), folder=tmp_path), tmp_path / "other.state"

    for pair in (source, address), (address, other):
        with pytest.raises(CopyError, match=rf"^(pystator\+)?{kind}://.*efused") as caught:
            copy(*pair)
        assert QUOTED not in str(caught.value)
    assert not other.exists()


def test_source_may_be_in_use_and_the_target_must_not(source: Path, tmp_path: Path) -> None:
    holder = "import sys; from persistedstate import PersistedState as P; s = P(sys.argv[1]); print('open'); input()"
    url = f"sqlite:///{tmp_path}/x.db"
    with Child(holder, source) as child:
        child.expect("open")
        assert copy(source, url) == ALL
        with pytest.raises(StateLocked, match=str(child.pid)):
            copy(url, source)


def test_key_of_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at the top of a file, not below a key"):
        copy(f"{source}#machines", f"sqlite:///{tmp_path}/x.db")


def test_progress_tells_stage_and_numbers(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    copy(source, f"sqlite:///{tmp_path}/x.db", progress=lambda *what: told.append(what))

    assert told == [("copying", 0, 14), ("copying", 14, 14), ("reading back", 14, 14)]


def test_command_copies_machines(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with PersistedStateStore(source) as store:
        store.set_context("d", {"only": "a context"})

    assert main(["copy", str(source), url]) == 0
    assert main(["copy", url, str(tmp_path / "back.state")]) == 0
    assert main(["copy", f"{url}.missing", str(tmp_path / "x.state")]) == 1

    out, err = capsys.readouterr()
    said = "3 entities, 5 events and 6 transitions, 14 of them written, all read back from the target"
    assert out.splitlines() == [f"{said}; 1 left behind, for which the target has no place", said]
    assert err == f"error: {url}.missing: there is no such file\n"


def test_command_without_pystator_tells_what_to_install(source: Path, tmp_path: Path) -> None:
    without = "import sys; sys.modules['pystator'] = None"
    code = f"{without}; from persistedstate_stores.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "copy", str(source), f"sqlite:///{tmp_path}/x.db"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: this store needs pystator[api]: pip install 'pystator[api]==0.0.47'\n"
