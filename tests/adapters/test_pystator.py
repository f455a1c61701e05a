"""The pystator adapter: its protocols, its orchestrators and runtime, crashes, hand edits, every trap of pystator."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import textwrap
import threading
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from checks import records, reopened, run_child
from processes import Child, contents_at_each_moment
from threads import together

from persistedstate import PersistedState, StateCorrupt, StateLocked, StateReadOnly, plain

pytest.importorskip("sqlalchemy", reason="pystator is not installed as `pystator[api]`: it cannot be imported without")
pytest.importorskip("pystator", reason="pystator is not installed")

from pystator import stores
from pystator.errors import ConcurrentTransitionError, StaleVersionError
from pystator.machine import StateMachine
from pystator.machine_store import InMemoryMachineStore
from pystator.orchestrator import Orchestrator
from pystator.runtime import EntityAlreadyExists, PyStatorRuntime
from pystator.stores import base

from persistedstate_stores import pystator as adapter
from persistedstate_stores.pystator import PersistedStateStore

from .conftest import told_without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ORDER: dict[str, Any] = {
    "meta": {"machine_name": "order", "version": "1"},
    "states": [
        {"name": "new", "type": "initial"},
        {"name": "paid"},
        {"name": "shipped", "type": "terminal"},
    ],
    "transitions": [
        {"trigger": "look", "source": "new", "dest": "new"},
        {"trigger": "pay", "source": "new", "dest": "paid", "actions": ["charge"]},
        {"trigger": "ship", "source": "paid", "dest": "shipped"},
        {"trigger": "cancel", "source": "paid", "dest": "new"},
    ],
}

REVIEW: dict[str, Any] = {
    "meta": {"machine_name": "review", "version": "1"},
    "states": [
        {"name": "draft", "type": "initial"},
        {
            "name": "review",
            "type": "parallel",
            "regions": [
                {"name": "legal", "initial": "asked", "states": ["asked", "agreed"]},
                {"name": "price", "initial": "open", "states": ["open", "fixed"]},
            ],
        },
        {"name": "asked"},
        {"name": "agreed"},
        {"name": "open"},
        {"name": "fixed"},
        {"name": "closed", "type": "terminal"},
    ],
    "transitions": [
        {"trigger": "submit", "source": "draft", "dest": "review"},
        {"trigger": "agree", "source": "asked", "dest": "agreed", "region": "legal"},
        {"trigger": "close", "source": "agreed", "dest": "closed", "region": "legal"},
    ],
}

#: What a child process needs to drive an order; it is given the path and the entity.
DRIVE = f"""
import sys
from pystator.actions import ActionRegistry
from pystator.machine import StateMachine
from pystator.machine_store import InMemoryMachineStore
from pystator.orchestrator import Orchestrator
from pystator.runtime import PyStatorRuntime
from persistedstate_stores.pystator import PersistedStateStore

ORDER = {ORDER!r}
store = PersistedStateStore(sys.argv[1])
store.connect()
"""


@pytest.fixture
def store(path: Path) -> Iterator[PersistedStateStore]:
    with PersistedStateStore(path) as store:
        yield store


def orchestrator(
    store: PersistedStateStore, config: dict[str, Any] = ORDER, charge: Callable[..., Any] | None = None, **more: Any
) -> Any:
    machine = StateMachine.from_dict(config)
    machine.action_registry.register("charge", charge or (lambda _context: None))
    return Orchestrator(machine, store, **more)


def runtime(store: PersistedStateStore, charge: Callable[..., Any] | None = None) -> Any:
    machines = InMemoryMachineStore()
    machines.connect()
    made = PyStatorRuntime(machine_store=machines, state_store=store)
    made.register_action("charge", charge or (lambda _context: None))
    made.register_machine_from_dict(ORDER)
    return made


def test_store_connection_options_and_errors(path: Path) -> None:
    with pytest.raises(ValueError, match="either a path or a state"):
        PersistedStateStore()
    with PersistedState(path) as state, pytest.raises(TypeError, match="_wait"):
        PersistedStateStore(state=state, _wait=1)


# ---- Protocols and lifecycle ----


@pytest.mark.parametrize(
    "protocol",
    [
        "StateStore", "AsyncStateStore", "ContextPersistStore", "AsyncContextPersistStore", "VersionedStateStore",
        "BatchStateStore", "QueryableStateStore", "AuditStore", "EventStore", "StateStoreClient",
    ],
)  # fmt: skip
def test_store_is_a(store: PersistedStateStore, protocol: str) -> None:
    assert isinstance(store, getattr(base, protocol))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get_state("a"),
        lambda store: store.set_state("a", "b"),
        lambda store: store.get_context("a"),
        lambda store: store.set_context("a", {}),
        lambda store: store.list_entities(),
        lambda store: store.get_events("a"),
        lambda store: store.delete_entity("a"),
        lambda store: store.record_transition("a", "b", "c"),
    ],
)
def test_call_without_connection_is_a_runtime_error(path: Path, call: Callable[[Any], object]) -> None:
    with pytest.raises(RuntimeError, match="connect"):
        call(PersistedStateStore(path))
    assert not path.exists()


def test_connect_and_disconnect_may_be_repeated_and_lose_nothing(path: Path) -> None:
    store = PersistedStateStore(path)
    for number in range(3):
        store.connect()
        store.connect()
        assert store.get_state("a") == (f"s{number - 1}" if number else None)
        store.set_state("a", f"s{number}")
        store.disconnect()
        store.disconnect()


@pytest.mark.parametrize("scheme", ["", "persistedstate:///"])
def test_connection_string_is_a_path_with_or_without_scheme(path: Path, scheme: str) -> None:
    with PersistedStateStore(f"{scheme}{path}") as store:
        store.set_state("a", "b")

    assert reopened(path)["entities"]["a"]["state"] == "b"


def test_given_state_stays_open_and_keeps_what_else_is_in_it(state: PersistedState) -> None:
    state.settings = {"retries": 3}

    with PersistedStateStore(state=state) as store:
        store.set_state("a", "b")

    assert state == {"settings": {"retries": 3}, "entities": {"a": {"state": "b", "version": 1}}}


def test_file_in_use_is_refused_with_the_pid_of_the_holder(path: Path) -> None:
    holder = "import sys; from persistedstate import PersistedState as P; s = P(sys.argv[1]); print('open'); input()"
    with Child(holder, path) as child:
        child.expect("open")
        with pytest.raises(StateLocked, match=str(child.pid)):
            PersistedStateStore(path).connect()


def test_typo_in_the_file_is_refused_with_its_line(path: Path) -> None:
    path.write_text("entities:\n  a: {state: paid\n", encoding="utf-8")

    with pytest.raises(StateCorrupt, match="line"):
        PersistedStateStore(path).connect()


def test_readonly_store_reads_beside_the_writer_and_refuses_to_write(
    store: PersistedStateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_LOOK_EVERY", 0)
    store.set_state("a", "new")
    with PersistedStateStore(path, _readonly=True) as reader:
        store.set_state("a", "paid")

        assert reader.get_state("a") == "paid"
        assert reader.list_entities() == ["a"]
        assert reader.get_events("a") == []
        with pytest.raises(StateReadOnly):
            reader.set_state("a", "shipped")


def test_importing_persistedstate_imports_nothing_of_pystator() -> None:
    code = "import sys, persistedstate, persistedstate_stores; print([m for m in sys.modules if 'pystator' in m])"

    assert run_child(code) == "[]\n"


# ---- States, versions, context, batches, queries ----


def test_unknown_entity_has_no_state_version_context_or_status(store: PersistedStateStore) -> None:
    assert store.get_state("a") is None
    assert store.get_state_versioned("a") == (None, None)
    assert store.get_context("a") == {}
    assert store.get_is_terminal("a") is None
    assert store.get_workflow_status("a") is None
    assert store.get_states_batch(["a"]) == {"a": None}
    assert store.get_events("a") == store.get_transition_history("a") == []
    assert store.delete_entity("a") is False


def test_each_change_is_in_the_file_when_the_call_returns(store: PersistedStateStore, path: Path) -> None:
    store.set_state("a", "new")
    assert reopened(path) == {"entities": {"a": {"state": "new", "version": 1}}}
    store.set_context("a", {"amount": 3})
    assert reopened(path) == {"entities": {"a": {"state": "new", "version": 1, "context": {"amount": 3}}}}


def test_what_is_handed_out_and_taken_in_is_a_copy(store: PersistedStateStore) -> None:
    context = {"items": [1]}
    store.set_context("a", context)
    context["items"].append(2)
    store.get_context("a")["items"].append(3)

    assert store.get_context("a") == {"items": [1]}
    assert type(store.get_context("a")["items"]) is list


@pytest.mark.parametrize("name", ["1", "null", "true", "550e84", "no", "a: b", "-", "ü\n", " ", "x" * 1500, "@#$%&*!?"])
def test_odd_ids_and_states_come_back_after_reopening(path: Path, name: str) -> None:
    with PersistedStateStore(path) as store:
        store.set_state(name, name)
    with PersistedStateStore(path) as store:
        assert store.get_state(name) == name
        assert store.list_entities() == [name]


@pytest.mark.parametrize("state", [None, 3, True])
def test_state_that_is_no_str_is_a_type_error(store: PersistedStateStore, path: Path, state: Any) -> None:
    with pytest.raises(TypeError, match="a state is a str"):
        store.set_state("a", state)
    assert reopened(path) == {}


def test_batch_is_one_record(store: PersistedStateStore, path: Path) -> None:
    store.set_states_batch({"a": "new", "b": "paid"}, metadata={"is_terminal": False})

    assert records(path) == 1
    assert store.get_states_batch(["a", "b", "c"]) == {"a": "new", "b": "paid", "c": None}
    assert store.get_is_terminal("b") is False


def test_batch_with_one_bad_state_changes_nothing(store: PersistedStateStore, path: Path) -> None:
    store.set_state("a", "new")

    with pytest.raises(ValueError, match="surrogate"):
        store.set_states_batch({"a": "paid", "b": "\ud800"})

    assert store.get_states_batch(["a", "b"]) == {"a": "new", "b": None}
    assert list(reopened(path)["entities"]) == ["a"]


def test_batch_helper_of_pystator_works_on_it(store: PersistedStateStore) -> None:
    base.batch_fallback(store).set_states_batch({"a": "new"})

    assert base.batch_fallback(store).get_states_batch(["a"]) == {"a": "new"}


def test_deleted_entity_begins_anew_and_its_history_stays(store: PersistedStateStore, path: Path) -> None:
    store.set_state("a", "new")
    store.set_context("a", {"amount": 3})
    store.record_transition("a", "new", "pay")

    assert store.delete_entity("a") is True

    assert (store.get_state("a"), store.get_context("a"), store.list_entities()) == (None, {}, [])
    assert len(store.get_transition_history("a")) == 1
    assert store.set_state_versioned("a", "new") == 1
    assert reopened(path)["entities"] == {"a": {"state": "new", "version": 1}}


def test_asyncio_calls_do_what_the_others_do_from_several_loops(store: PersistedStateStore) -> None:
    asyncio.run(store.aset_state("a", "new", metadata={"is_terminal": True}))
    asyncio.run(store.aset_context("a", {"amount": 1}))
    assert asyncio.run(store.aset_state_versioned("a", "paid", expected_version=1)) == 2
    with pytest.raises(StaleVersionError):
        asyncio.run(store.aset_state_versioned("a", "paid", expected_version=1))

    assert asyncio.run(store.aget_state("a")) == store.get_state("a") == "paid"
    assert asyncio.run(store.aget_state_versioned("a")) == store.get_state_versioned("a") == ("paid", 2)
    assert asyncio.run(store.aget_context("a")) == store.get_context("a") == {"amount": 1}


# ---- History and events ----


def test_transition_history_is_newest_first_with_the_fields_of_the_sql_stores(path: Path) -> None:
    with PersistedStateStore(path) as store:
        first = store.record_transition("a", "new", "pay", target_state="paid", duration_ms=1.5, machine_name="order")
        second = store.record_transition("a", "paid", "ship", success=False, error_type="GuardRejectedError")
        assert first != second
    with PersistedStateStore(path) as store:
        latest, earlier = store.get_transition_history("a")

    assert (latest["id"], latest["success"], latest["error_type"]) == (second, False, "GuardRejectedError")
    assert (earlier["id"], earlier["target_state"], earlier["duration_ms"]) == (first, "paid", 1.5)
    assert latest.keys() == earlier.keys() >= {"entity_id", "context_snapshot", "actions_executed", "error_message"}
    assert earlier["created_at"].tzinfo is timezone.utc or earlier["created_at"].utcoffset() == timedelta(0)


@pytest.mark.parametrize(("limit", "expected"), [(0, []), (1, ["c"]), (2, ["c", "b"]), (9, ["c", "b", "a"])])
def test_transition_history_takes_a_limit(store: PersistedStateStore, limit: int, expected: list[str]) -> None:
    for trigger in "abc":
        store.record_transition("x", "new", trigger)

    assert [entry["trigger"] for entry in store.get_transition_history("x", limit)] == expected


def test_unknown_detail_of_a_transition_is_a_type_error(store: PersistedStateStore, path: Path) -> None:
    with pytest.raises(TypeError, match="sucess"):
        store.record_transition("a", "new", "pay", sucess=False)
    assert reopened(path) == {}


def test_events_are_numbered_per_entity_from_1_also_after_reopening(path: Path) -> None:
    with PersistedStateStore(path) as store:
        numbers = [
            store.append_event(entity, trigger) for entity, trigger in [("a", "pay"), ("a", "ship"), ("b", "pay")]
        ]
        assert numbers == [1, 2, 1]
    with PersistedStateStore(path) as store:
        assert store.append_event("a", "end", payload={"at": Decimal("1.5")}, event_id="e", source="s") == 3
        third = store.get_events("a", after_sequence=2)[0]
        assert [event["trigger"] for event in store.get_events("a", limit=2)] == ["pay", "ship"]

    expected = {"entity_id": "a", "trigger": "end", "payload": {"at": "1.5"}, "event_id": "e", "source": "s"}
    assert third.items() >= expected.items()
    assert third["machine_name"] is None


@pytest.mark.parametrize("event", ["{trigger: pay}", "{trigger: pay, sequence: first}", "pay"])
def test_event_that_a_person_wrote_without_its_number_is_named(path: Path, event: str) -> None:
    path.write_text(f"events:\n  a:\n  - {event}\n", encoding="utf-8")

    with PersistedStateStore(path) as store:
        with pytest.raises(ValueError, match=r"events\.a: .* `sequence`"):
            store.append_event("a", "ship")
        with pytest.raises(ValueError, match=r"events\.a: .* `sequence`"):
            store.get_events("a")


def test_listing_entities_copies_nothing_and_goes_no_further_than_the_limit(
    store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_states_batch({"a": "new", "b": "paid", "c": "paid", "d": "new"}, metadata={"context": {"long": "text"}})
    store.set_context("e", {"has": "no state"})
    monkeypatch.setattr(adapter, "plain", lambda _: 1 / 0)

    assert store.list_entities(limit=2) == ["a", "b"]
    assert store.list_entities("paid", limit=1, offset=1) == ["c"]
    monkeypatch.undo()
    assert store.list_entities() == ["a", "b", "c", "d"]
    assert store.count_by_state() == {"new": 2, "paid": 2}


def test_adding_to_a_long_log_does_not_read_it(store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        store.append_event("a", "look", payload={"long": "text"})
        store.record_transition("a", "new", "look")
    copied: list[Any] = []

    def copy(value: Any) -> Any:
        copied.append(value)
        return plain(value)

    monkeypatch.setattr(adapter, "plain", copy)

    assert store.append_event("a", "look") == 6
    store.record_transition("a", "new", "look")
    assert copied == []
    assert [event["sequence"] for event in store.get_events("a", after_sequence=4)] == [5, 6]
    assert len(store.get_transition_history("a", limit=2)) == 2
    assert len(copied) == 4


def test_orchestrator_replays_an_entity_from_its_events_after_a_restart(path: Path) -> None:
    with PersistedStateStore(path) as store:
        driver = orchestrator(store, event_store=store)
        driver.process_event("a", "pay")
        driver.process_event("a", "ship")
    with PersistedStateStore(path) as store:
        results = orchestrator(store, event_store=store).replay("a")

    assert [result.target_state for result in results] == ["paid", "shipped"]


def test_orchestrator_records_history_and_tells_its_id(store: PersistedStateStore) -> None:
    result = orchestrator(store, audit_store=store).process_event("a", "pay")

    assert result.metadata["transition_id"] == store.get_transition_history("a")[0]["id"]


# ---- One transition is one record ----


def test_transition_is_one_record(store: PersistedStateStore, path: Path) -> None:
    orchestrator(store).process_event("a", "pay", {"amount": 30})

    assert records(path) == 1
    assert reopened(path)["entities"]["a"]["state"] == "paid"


def test_file_never_shows_the_state_of_one_event_with_the_context_of_another(path: Path, tmp_path: Path) -> None:
    with PersistedStateStore(path) as store:
        driver = orchestrator(store)
        driver.process_event("a", "pay", {"step": "paid"})
        for trigger, step in [("cancel", "new"), ("pay", "paid"), ("ship", "shipped")]:
            event = functools.partial(driver.process_event, "a", trigger, {"step": step})
            for content in contents_at_each_moment(path, event):
                moment = tmp_path / "moment"
                moment.write_bytes(content)
                entry = reopened(moment)["entities"]["a"]
                moment.unlink()
                assert entry["state"] == entry["context"]["step"]


ASKED: dict[str, tuple[Callable[[PersistedStateStore], Any], Any]] = {
    "get_state": (lambda store: store.get_state("a"), "paid"),
    "get_state_versioned": (lambda store: store.get_state_versioned("a"), ("paid", 1)),
    "get_states_batch": (lambda store: store.get_states_batch(["a"]), {"a": "paid"}),
    "list_entities": (lambda store: store.list_entities("paid"), ["a"]),
    "count_by_state": (lambda store: store.count_by_state(), {"paid": 1}),
    "get_is_terminal": (lambda store: store.get_is_terminal("a"), False),
    "get_workflow_status": (lambda store: store.get_workflow_status("a"), "active"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_told_of_an_event_that_is_in_its_actions_is_in_the_file(
    store: PersistedStateStore, path: Path, asked: str
) -> None:
    ask, expected = ASKED[asked]
    seen: list[Any] = []

    def charge(_context: dict[str, Any]) -> None:
        seen.extend([reopened(path), ask(store), reopened(path)["entities"]["a"]["state"]])

    orchestrator(store, charge=charge).process_event("a", "pay", {"amount": 1})

    assert seen == [{}, expected, "paid"]
    assert reopened(path)["entities"]["a"]["context"]["amount"] == store.get_context("a")["amount"] == 1


@pytest.mark.parametrize("asked", [*ASKED, None])
def test_what_is_told_of_an_event_that_ran_out_of_time_stays(path: Path, asked: str | None) -> None:
    """And what was not told is as before it."""

    async def charge(_context: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    with PersistedStateStore(path) as store:
        event = orchestrator(store, charge=charge).async_process_event("a", "pay", {"amount": 1})
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(event, 0.01))
        told = asked and ASKED[asked][0](store) == ASKED[asked][1]
    with PersistedStateStore(path) as store:
        assert told == (asked and True)
        assert store.get_state_versioned("a") == (("paid", 1) if asked else (None, None))
        assert orchestrator(store).process_event("a", "ship" if asked else "pay", {"amount": 2}).success


def test_what_is_told_of_an_event_that_ctrl_c_ended_stays(path: Path) -> None:
    def charge(_context: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with PersistedStateStore(path) as store:
        with pytest.raises(KeyboardInterrupt):
            orchestrator(store, charge=charge).process_event("a", "pay", {"amount": 1})
        assert store.get_state("a") == "paid"
    with PersistedStateStore(path) as store:
        assert (store.get_state("a"), store.get_context("a")) == ("paid", {})


def test_event_whose_process_ends_by_kill_in_an_action_did_not_happen(path: Path) -> None:
    code = """
    def charge(context):
        print("charging")
        input()
    machine = StateMachine.from_dict(ORDER)
    machine.action_registry.register("charge", charge)
    Orchestrator(machine, store).process_event("a", "look", {"amount": 1})
    Orchestrator(machine, store).process_event("a", "pay", {"amount": 2})
    """
    with Child(DRIVE + textwrap.dedent(code), path) as child:
        child.expect("charging")

    with PersistedStateStore(path) as store:
        assert (store.get_state("a"), store.get_context("a")) == (None, {"amount": 1})
        assert orchestrator(store).process_event("a", "pay", {"amount": 2}).success
        assert store.get_context("a")["amount"] == 2


class Broken:
    """An adapter of invoked services that fails between the state and the context of a transition."""

    def start(self, *_: Any, **__: Any) -> None:
        raise OSError("no network")

    stop = start


INVOKING = {**ORDER, "states": [{**state, "invoke": [{"id": "i", "src": "x"}]} for state in ORDER["states"]]}


def test_transition_that_is_never_completed_is_dropped_by_disconnect(path: Path) -> None:
    store = PersistedStateStore(path)
    with store, pytest.raises(OSError, match="no network"):
        orchestrator(store, INVOKING, invoke_adapter=Broken()).process_event("a", "pay", {"amount": 1})
    with store:
        assert (store.get_state("a"), store.get_context("a")) == (None, {})


def test_exception_in_a_transaction_undoes_a_transition_that_was_not_completed(store: PersistedStateStore) -> None:
    with pytest.raises(OSError, match="no network"), store.transaction():
        orchestrator(store, INVOKING, invoke_adapter=Broken()).process_event("a", "pay", {"amount": 1})

    assert (store.get_state("a"), store.list_entities()) == (None, [])


@pytest.mark.parametrize("first_done", ["first", "second"])
def test_two_events_of_one_entity_at_once_keep_each_context_with_its_state(
    store: PersistedStateStore, path: Path, first_done: str
) -> None:
    """The second one begins while the first one, whose state it sees, is in its actions."""
    seen: list[Any] = []

    async def both() -> None:
        begun, go = asyncio.Event(), {"paid": asyncio.Event(), "shipped": asyncio.Event()}

        async def act(context: dict[str, Any]) -> None:
            begun.set()
            await go[context["step"]].wait()

        config = {**ORDER, "transitions": [{**each, "actions": ["charge"]} for each in ORDER["transitions"]]}
        driver = orchestrator(store, config, charge=act)
        tasks = {}
        for trigger, step in ("pay", "paid"), ("ship", "shipped"):
            begun.clear()
            tasks[step] = asyncio.create_task(driver.async_process_event("a", trigger, {"step": step}))
            await begun.wait()
        for step in ("paid", "shipped") if first_done == "first" else ("shipped", "paid"):
            go[step].set()
            assert (await tasks[step]).success
            seen.append(reopened(path)["entities"]["a"])

    asyncio.run(both())

    assert [(entry["state"], entry["version"]) for entry in seen][-1] == ("shipped", 2)
    if first_done == "first":
        assert [(entry["state"], entry["context"]["step"]) for entry in seen] == [
            ("paid", "paid"),
            ("shipped", "shipped"),
        ]


def test_event_that_is_cancelled_in_an_action_does_not_block_the_next(store: PersistedStateStore, path: Path) -> None:
    async def story() -> None:
        begun = asyncio.Event()

        async def act(_context: dict[str, Any]) -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(orchestrator(store, charge=act).async_process_event("a", "pay", {"step": "paid"}))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert reopened(path) == {}
        assert (await orchestrator(store).async_process_event("a", "ship", {"step": "shipped"})).success

    asyncio.run(story())

    entry = reopened(path)["entities"]["a"]
    assert (entry["state"], entry["context"]["step"]) == ("shipped", "shipped")


def test_context_that_another_thread_sets_does_not_complete_a_transition(
    store: PersistedStateStore, path: Path
) -> None:
    seen: list[Any] = []

    def charge(_context: dict[str, Any]) -> None:
        together(partial(store.set_context, "a", {"note": 1}))
        seen.append(reopened(path)["entities"]["a"])

    orchestrator(store, charge=charge).process_event("a", "pay", {"amount": 1})

    assert seen == [{"context": {"note": 1}}]
    assert reopened(path)["entities"]["a"]["state"] == "paid"


def test_context_that_another_thread_sets_stays_when_the_transition_is_told(
    store: PersistedStateStore, path: Path
) -> None:
    seen: list[Any] = []

    def charge(_context: dict[str, Any]) -> None:
        together(partial(store.set_context, "a", {"note": 1}))
        seen.extend([store.get_state("a"), reopened(path)["entities"]["a"]["context"]])

    orchestrator(store, charge=charge).process_event("a", "pay", {"amount": 1})

    assert seen == ["paid", {"note": 1}]


def test_other_change_of_an_entity_in_transition_wins_over_it(store: PersistedStateStore, path: Path) -> None:
    orchestrator(store, charge=lambda _: store.set_state("a", "held")).process_event("a", "pay", {"amount": 1})

    assert (store.get_state_versioned("a"), store.get_context("a")["amount"]) == (("held", 2), 1)
    assert reopened(path)["entities"]["a"]["state"] == "held"


def test_entity_deleted_in_its_transition_is_gone_but_for_the_context(store: PersistedStateStore) -> None:
    orchestrator(store, charge=lambda _: store.delete_entity("a")).process_event("a", "pay")

    assert store.get_state("a") is None
    assert store.list_entities() == []


def test_exception_in_a_transaction_undoes_all_of_an_event(store: PersistedStateStore, path: Path) -> None:
    driver = orchestrator(store, audit_store=store, event_store=store)
    driver.process_event("a", "pay", {"amount": 1})
    before = reopened(path)

    with pytest.raises(ZeroDivisionError), store.transaction():
        driver.process_event("a", "ship", {"amount": 2})
        assert store.get_state("a") == "shipped"
        _ = 1 / 0

    assert reopened(path) == before
    assert (store.get_state("a"), store.get_context("a")["amount"], len(store.get_events("a"))) == ("paid", 1, 1)


def test_transaction_makes_an_event_with_its_log_one_record(store: PersistedStateStore, path: Path) -> None:
    with store.transaction():
        orchestrator(store, audit_store=store, event_store=store).process_event("a", "pay")

    assert records(path) == 1
    assert list(reopened(path)) == ["events", "entities", "transitions"]


# ---- What may be in a context ----


class Color(Enum):
    RED = "red"


@dataclasses.dataclass
class Money:
    amount: Decimal
    currency: str


class Model:
    def model_dump(self) -> dict[str, Any]:
        return {"when": time(1, 2)}


CONVERTED = [
    (Decimal("19.90"), "19.90"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (PurePosixPath("/tmp/x"), "/tmp/x"),  # noqa: S108 - only a value
    (time(12, 30), "12:30:00"),
    (timedelta(minutes=1.5), 90.0),
    ({"b", "a"}, ["a", "b"]),
    (frozenset({1, "a"}), ["a", 1]),
    ((1, (2, 3)), [1, [2, 3]]),
    (bytearray(b"x"), b"x"),
    (Color.RED, "red"),
    (Money(Decimal(1), "EUR"), {"amount": "1", "currency": "EUR"}),
    (Model(), {"when": "01:02:00"}),
    ({UUID(int=1): {Color.RED}}, {"00000000-0000-0000-0000-000000000001": ["red"]}),
]
NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
KEPT: list[Any] = [None, True, 3, -0.0, 1e16, math.inf, "no", b"\0", date(2024, 5, 1), NOON, [{}], {1: 2}]
CYCLE: list[Any] = []
CYCLE.append(CYCLE)
REFUSED = [object(), 1j, lambda: None, "\ud800", CYCLE, {(1, 2): 3}, threading.Lock(), Money]


def kind(value: object) -> str:
    """Name a value the same way in each process: the order of a set, or an address, would differ."""
    return type(value).__name__


@pytest.mark.parametrize(("value", "expected"), CONVERTED, ids=kind)
def test_context_value_is_converted_before_and_after_a_restart(path: Path, value: Any, expected: Any) -> None:
    with PersistedStateStore(path) as store:
        assert orchestrator(store).process_event("a", "pay", {"value": value}).success
        assert store.get_context("a")["value"] == expected
    with PersistedStateStore(path) as store:
        assert (store.get_state("a"), store.get_context("a")["value"]) == ("paid", expected)


@pytest.mark.parametrize("value", KEPT, ids=kind)
def test_context_value_is_kept_with_its_type_through_a_restart(path: Path, value: Any) -> None:
    with PersistedStateStore(path) as store:
        orchestrator(store).process_event("a", "pay", {"value": value})
    with PersistedStateStore(path) as store:
        assert repr(store.get_context("a")["value"]) == repr(value)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_trap_b_refused_context_leaves_state_and_context_as_before_the_event(path: Path, value: Any, way: str) -> None:
    with PersistedStateStore(path) as store:
        driver = orchestrator(store)
        driver.process_event("a", "pay", {"amount": 1})
        before = path.read_bytes()

        with pytest.raises((TypeError, ValueError)):
            if way == "sync":
                driver.process_event("a", "ship", {"value": value})
            else:
                asyncio.run(driver.async_process_event("a", "ship", {"value": value}))

        assert path.read_bytes() == before
        assert (store.get_state_versioned("a"), store.get_context("a")["amount"]) == (("paid", 1), 1)
        assert driver.process_event("a", "ship", {"amount": 2}).success
    with PersistedStateStore(path) as store:
        assert (store.get_state("a"), store.get_context("a")["amount"]) == ("shipped", 2)


def test_refusal_names_the_place(store: PersistedStateStore) -> None:
    with pytest.raises(TypeError, match=r'entities\["order-1"\].*context.items\[1\]'):
        store.set_context("order-1", {"items": [1, object()]})


def test_refused_event_payload_and_metadata_write_nothing(store: PersistedStateStore, path: Path) -> None:
    with pytest.raises(TypeError):
        store.append_event("a", "pay", payload={"value": object()})
    with pytest.raises(TypeError):
        store.set_state("a", "new", metadata={"value": object()})
    with pytest.raises(TypeError):
        store.record_transition("a", "new", "pay", context_snapshot={"value": object()})

    assert reopened(path) == {}


# ---- The other traps ----


def test_trap_a_missing_pystator_is_named_with_the_extra_that_brings_it() -> None:
    assert "pystator[api]==0.0.47" in told_without("pystator")


def test_trap_c_context_of_an_entity_that_never_left_its_initial_state(store: PersistedStateStore, path: Path) -> None:
    driver = orchestrator(store)

    assert driver.process_event("a", "look", {"seen": 1}).success

    assert (store.get_state("a"), store.get_state_versioned("a")) == (None, (None, None))
    assert store.get_context("a") == {"seen": 1}
    assert (store.list_entities(), store.count_by_state()) == ([], {})
    assert driver.process_event("a", "pay").success
    assert store.get_context("a")["seen"] == 1
    assert reopened(path)["entities"]["a"]["version"] == 1


def test_trap_d_metadata_is_merged_and_its_context_is_the_context(store: PersistedStateStore, path: Path) -> None:
    store.set_state("a", "new", metadata={"is_terminal": False, "workflow_status": "active", "context": {"amount": 1}})
    store.set_state("a", "paid", metadata={"is_terminal": True})

    assert (store.get_is_terminal("a"), store.get_workflow_status("a")) == (True, "active")
    assert store.get_context("a") == {"amount": 1}
    assert "context" not in reopened(path)["entities"]["a"]["metadata"]


@pytest.mark.parametrize("metadata", [{"is_terminal": "yes", "workflow_status": 3}, {}, None])
def test_status_that_nobody_said_properly_is_none(store: PersistedStateStore, metadata: Any) -> None:
    store.set_state("a", "new", metadata=metadata)

    assert (store.get_is_terminal("a"), store.get_workflow_status("a")) == (None, None)


def test_trap_e_versions_begin_at_1_and_every_new_state_counts(store: PersistedStateStore) -> None:
    assert store.set_state_versioned("a", "new") == 1
    store.set_state("a", "paid")
    store.set_states_batch({"a": "held"})
    store.set_context("a", {"amount": 1})
    assert store.get_state_versioned("a") == ("held", 3)
    assert store.set_state_versioned("a", "shipped", expected_version=3) == 4


@pytest.mark.parametrize(("present", "expected"), [(0, 1), (0, 7), (2, 1), (2, 0), (2, 3)])
def test_trap_e_wrong_version_is_stale_and_changes_nothing(
    store: PersistedStateStore, path: Path, present: int, expected: int
) -> None:
    for _ in range(present):
        store.set_state("a", "new")
    before = path.read_bytes()

    with pytest.raises(StaleVersionError) as caught:
        store.set_state_versioned("a", "paid", expected_version=expected)

    error = caught.value
    assert (error.entity_id, error.expected_version, error.actual_version) == ("a", expected, present)
    assert path.read_bytes() == before


def test_version_0_means_that_the_entity_must_be_new(store: PersistedStateStore) -> None:
    assert store.set_state_versioned("a", "new", expected_version=0) == 1
    with pytest.raises(StaleVersionError):
        store.set_state_versioned("a", "new", expected_version=0)


def test_trap_f_second_of_two_events_at_once_is_a_conflict_also_for_asyncio(store: PersistedStateStore) -> None:
    async def both() -> list[Any]:
        held, go = asyncio.Event(), asyncio.Event()

        async def charge(_context: dict[str, Any]) -> None:
            held.set()
            await go.wait()

        driver = orchestrator(store, charge=charge)
        store.set_state("a", "new")
        state, version = await store.aget_state_versioned("a")
        first = asyncio.create_task(driver.async_process_event("a", "pay", {"who": 1}))
        await held.wait()
        second = orchestrator(store)
        with pytest.MonkeyPatch.context() as patch:  # the second one read before the first one wrote
            patch.setattr(store, "aget_state_versioned", lambda _: _done((state, version)))
            with pytest.raises(ConcurrentTransitionError):
                await second.async_process_event("a", "pay", {"who": 2})
        go.set()
        return [await first]

    (result,) = asyncio.run(both())

    assert result.success
    assert (store.get_state_versioned("a"), store.get_context("a")["who"]) == (("paid", 2), 1)


async def _done(value: Any) -> Any:
    return value


def test_trap_f_error_in_reading_the_version_is_not_swallowed(path: Path) -> None:
    path.write_text("entities:\n  a:\n    state: paid\n    version: two\n", encoding="utf-8")

    with PersistedStateStore(path) as store, pytest.raises(ValueError, match=r"entities\.a\.version: 'two'"):
        orchestrator(store).process_event("a", "ship")


def test_trap_g_list_entities_is_that_of_the_protocol(store: PersistedStateStore) -> None:
    store.set_states_batch({name: "new" if name in "ace" else "paid" for name in "abcdef"})

    assert store.list_entities() == list("abcdef")
    assert store.list_entities("new") == list("ace")
    assert store.list_entities("new", limit=1, offset=1) == ["c"]
    assert store.list_entities(limit=2, offset=4) == ["e", "f"]
    assert store.list_entities("shipped") == []
    assert store.count_by_state() == {"new": 3, "paid": 3}


@pytest.mark.parametrize("url", ["sqlite:///x.db", "postgresql://localhost/x", "mongodb://localhost"])
def test_trap_h_connection_string_of_another_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="persistedstate:///"):
        PersistedStateStore(url)


def test_trap_h_factory_of_pystator_does_not_know_it_and_it_lends_no_session(store: PersistedStateStore) -> None:
    with pytest.raises(ValueError, match="scheme"):
        stores.create_state_store("persistedstate:///x.state")
    assert not isinstance(store, base.SessionScopedStore)
    with pytest.raises(RuntimeError, match="SQLAlchemy"):
        runtime(store).list_transitions()


def test_trap_i_parallel_state_is_one_string_and_goes_on_after_a_restart(path: Path) -> None:
    with PersistedStateStore(path) as store:
        assert orchestrator(store, REVIEW).process_event("a", "submit", {"by": "kim"}).success
        entered = store.get_state("a")
    with PersistedStateStore(path) as store:
        assert orchestrator(store, REVIEW).process_event("a", "agree").success
        assert reopened(path)["entities"]["a"]["state"] == store.get_state("a")
        assert store.get_context("a") == {"by": "kim"}

    assert (entered, reopened(path)["entities"]["a"]["state"]) == (
        "review:legal=asked,price=open",
        "review:legal=agreed,price=open",
    )


def test_trap_i_transition_out_of_a_parallel_state_is_in_the_file_though_no_context_follows(path: Path) -> None:
    with PersistedStateStore(path) as store:
        driver = orchestrator(store, REVIEW)
        driver.process_event("a", "submit")
        driver.process_event("a", "agree")
        driver.process_event("a", "close")
        assert reopened(path)["entities"]["a"]["state"] == store.get_state("a") == "closed"
    with PersistedStateStore(path) as store:
        assert (store.get_state("a"), store.get_is_terminal("a")) == ("closed", True)


def test_bare_state_is_rightly_no_state_store(state: PersistedState) -> None:
    assert not isinstance(state, base.StateStore)


# ---- The runtime ----


def test_runtime_creates_drives_and_shows_an_entity_through_restarts(path: Path) -> None:
    with PersistedStateStore(path) as store:
        created = runtime(store).create_entity("order", "a", context={"amount": Decimal("1.5")})
        assert created.state == "new"
    with PersistedStateStore(path) as store:
        with pytest.raises(EntityAlreadyExists):
            runtime(store).create_entity("order", "a")
        runtime(store).process_event("order", "a", "pay", context={"by": "card"})
    with PersistedStateStore(path) as store:
        runtime(store).session("order").process_event("a", "ship")
        shown = runtime(store).get_entity("order", "a")

    assert (shown.state, shown.version, shown.is_terminal, shown.workflow_status) == ("shipped", 3, True, "complete")
    assert shown.context.items() >= {"amount": "1.5", "by": "card"}.items()


def test_runtime_creates_an_entity_with_refused_context_not_at_all_in_a_transaction(store: PersistedStateStore) -> None:
    with pytest.raises(TypeError), store.transaction():
        runtime(store).create_entity("order", "a", context={"value": object()})

    assert runtime(store).get_entity("order", "a") is None


def test_runtime_killed_between_events_resumes_where_it_was(path: Path) -> None:
    code = """
    machines = InMemoryMachineStore()
    machines.connect()
    runtime = PyStatorRuntime(machine_store=machines, state_store=store)
    runtime.register_action("charge", lambda context: context.__setitem__("charged", context.get("charged", 0) + 1))
    runtime.register_machine_from_dict(ORDER)
    if runtime.get_entity("order", "a") is None:
        runtime.create_entity("order", "a", context={"amount": 30})
    while True:
        entity = runtime.get_entity("order", "a")
        print(entity.state, entity.version, entity.context.get("charged"))
        if input() == "stop":
            break
        runtime.process_event("order", "a", "pay" if entity.state == "new" else "cancel")
    """
    said = []
    for number in range(3):
        with Child(DRIVE + textwrap.dedent(code), path) as child:
            said.append(child.line())
            child.tell()
            said.append(child.line())
            assert number == 0 or said[-2] == said[-3]

    assert said[-1] == "paid 4 2"


@pytest.mark.parametrize("fsync", [False, True, 0.01])
def test_kill_loses_no_acknowledged_put(path: Path, fsync: bool | float) -> None:
    code = """
    import itertools
    store.disconnect()
    store = PersistedStateStore(sys.argv[1], _fsync=eval(sys.argv[2]))
    store.connect()
    for number in itertools.count():
        store.set_state(f"order-{number}", "new", metadata={"number": number})
        store.set_context(f"order-{number}", {"number": number})
        store.append_event("log", "pay")
        print(number)
    """
    with Child(DRIVE + textwrap.dedent(code), path, fsync) as child:
        acknowledged = [int(child.line()) for _ in range(60)]

    with PersistedStateStore(path) as store:
        for number in acknowledged:
            assert store.get_state(f"order-{number}") == "new"
            assert store.get_context(f"order-{number}") == {"number": number}
        assert len(store.get_events("log")) >= len(acknowledged)


@pytest.mark.stress
def test_threads_change_different_and_same_entities_at_once(store: PersistedStateStore, path: Path) -> None:
    stale = []

    def work(number: int) -> None:
        for step in range(20):
            store.set_state(f"own-{number}", f"s{step}")
            store.append_event("log", "tick")
            try:
                version = store.get_state_versioned("shared")[1] or 0
                store.set_state_versioned("shared", f"{number}", expected_version=version)
            except StaleVersionError:
                stale.append(number)

    together(*(partial(work, number) for number in range(8)))

    assert [event["sequence"] for event in store.get_events("log")] == list(range(1, 161))
    assert store.get_state_versioned("shared")[1] == 160 - len(stale)
    assert all(reopened(path)["entities"][f"own-{number}"]["state"] == "s19" for number in range(8))


# ---- People ----


def test_person_edits_the_file_between_two_runs_and_keeps_the_comments(path: Path) -> None:
    with PersistedStateStore(path) as store:
        orchestrator(store).process_event("order-1", "pay", {"amount": 30})
    text = path.read_text(encoding="utf-8")
    text = text.replace("    version: 1", "    # Kim asked for this on the phone\n    version: 1")
    text = text.replace("amount: 30", "amount: 25  # rebate")
    path.write_text("# orders of May\n" + text + "  order-2:\n    state: paid\n", encoding="utf-8")

    with PersistedStateStore(path) as store:
        assert store.get_context("order-1")["amount"] == 25
        assert store.get_state_versioned("order-2") == ("paid", 1)
        assert store.list_entities("paid") == ["order-1", "order-2"]
        for entity in "order-1", "order-2":
            assert orchestrator(store).process_event(entity, "ship", {"by": "mail"}).success

    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# orders of May"
    assert "    # Kim asked for this on the phone" in lines
    assert "      amount: 25  # rebate" in lines
    assert [reopened(path)["entities"][name]["state"] for name in ("order-1", "order-2")] == ["shipped", "shipped"]


def test_person_moves_an_entity_while_the_store_is_open(
    store: PersistedStateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_LOOK_EVERY", 0)
    orchestrator(store).process_event("a", "pay")
    store._connection.vacuum()
    path.write_text(path.read_text(encoding="utf-8").replace("state: paid", "state: new", 1), encoding="utf-8")

    assert orchestrator(store).process_event("a", "pay").target_state == "paid"
    assert store.get_state_versioned("a") == ("paid", 2)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("entities: [a]\n", "entities"),
        ("entities:\n  a: paid\n", r"entities\.a"),
        ("entities:\n  a: {state: true}\n", r"entities\.a\.state"),
        ("entities:\n  a: {context: [1]}\n", r"entities\.a\.context"),
        ("entities:\n  a: {version: 1.5}\n", r"entities\.a\.version"),
    ],
)
def test_unusable_entry_is_named_and_left_alone(path: Path, text: str, place: str) -> None:
    path.write_text(text, encoding="utf-8")

    with PersistedStateStore(path) as store:
        with pytest.raises(ValueError, match=f"^{place}: .* in the file"):
            store.get_state("a")
        with pytest.raises(ValueError, match=place):
            store.set_state("a", "new")

    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["entities:\n", "entities:\n  a:\n", "entities:\n  a:\n    state:\n    context:\n"])
def test_what_a_person_left_empty_is_as_good_as_absent(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

    with PersistedStateStore(path) as store:
        assert (store.get_state("a"), store.get_context("a"), store.list_entities()) == (None, {}, [])
        assert orchestrator(store).process_event("a", "pay").success


def test_ids_without_quotes_that_are_no_strings_are_named(path: Path) -> None:
    path.write_text("entities:\n  42: {state: paid}\n  no: {state: new}\nevents:\n  true: []\n", encoding="utf-8")

    store = PersistedStateStore(path)

    for connect in store.connect, store.__enter__:
        with pytest.warns(
            RuntimeWarning, match=r'entities\.42, events\.True: an id is a string, write "1", not 1'
        ) as told:
            connect()
        assert [warning.filename for warning in told] == [__file__]
        store.disconnect()
    with pytest.warns(RuntimeWarning, match="42"):
        store.connect()

    assert (store.get_state("42"), store.get_state("no")) == (None, "new")
    store.disconnect()


def test_log_that_is_no_list_is_named(path: Path) -> None:
    path.write_text("events:\n  a: pay\n", encoding="utf-8")

    with PersistedStateStore(path) as store, pytest.raises(ValueError, match=r"^events\.a: 'pay' in the file"):
        store.append_event("a", "pay")
