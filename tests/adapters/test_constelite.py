"""The constelite adapter: each method, each kind of property, their API and client, crashes, hand edits, every trap."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import socket
import sys
import textwrap
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ForwardRef
from uuid import uuid4

import pytest
from checks import records, reopened, run_child
from processes import PATIENCE, Child, contents_at_each_moment
from threads import together

from persistedstate import PersistedState, StateCorrupt, StateLocked

if sys.version_info < (3, 11) or sys.version_info >= (3, 14):
    pytest.skip("constelite 1.0.0 runs on Python 3.11 to 3.13", allow_module_level=True)
pytest.importorskip("constelite", reason="constelite is not installed")

from constelite.guid_map.memory import MemoryGUID
from constelite.models import (
    Aggregation,
    Association,
    Composition,
    Dynamic,
    Ref,
    StateModel,
    Tensor,
    TimePoint,
    backref,
    ref,
)
from constelite.store import AsyncBaseStore, BackrefQuery, MemoryStore, PropertyQuery, RefQuery
from constelite.store.base_async import GetAllQuery
from pydantic.v1 import BaseModel, ValidationError

from persistedstate_stores import constelite as adapter
from persistedstate_stores.constelite import PersistedStateGUIDMap, PersistedStateStore

from .conftest import told_without
from .servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

UID = "5ef14649-fd40-40a0-a693-de36c855a181"


class Mood(str, Enum):
    CALM = "calm"


class Collar(BaseModel):
    color: str
    since: datetime | None


class Keeper(StateModel):
    name: str | None
    pets: backref(model="Pet", from_field="carer")  # type: ignore[valid-type]


class Toy(StateModel):
    name: str | None


class Pet(StateModel):
    name: str | None
    age: int | None
    speed: float | None
    tame: bool | None
    born: datetime | None
    tags: set[str] | None
    marks: list[int] | None
    price: Decimal | None
    mood: Mood | None
    photo: bytes | None
    collar: Collar | None
    best_toy: Toy | None
    either: int | str | None

    weight: Dynamic[float] | None
    scent: Dynamic[Tensor] | None
    worn: Dynamic[Collar] | None

    carer: Association[Keeper] | None
    twin: Association[ForwardRef("Pet")] | None
    toys: Composition[Toy] | None
    friends: Aggregation[Keeper] | None


class Kitten(Pet):
    litter: int | None


class Ward(StateModel):
    """Its relationship must be there."""

    carer: Association[Keeper]


NOON = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))

STATIC: dict[str, tuple[Any, Any]] = {
    "name": ("Snowball", "no"),
    "age": (3, -(10**30)),
    "speed": (1.5, 1e16),
    "tame": (False, True),
    "born": (NOON, datetime(2024, 5, 1)),
    "tags": ({"b", "a"}, set()),
    "marks": ([1, 2, 3], []),
    "price": (Decimal("19.90"), Decimal("1E+3")),
    "mood": (Mood.CALM, Mood.CALM),
    "photo": (b"\0x", b""),
    "collar": (Collar(color="red", since=NOON), Collar(color="blue")),
    "best_toy": (Toy(name="ball"), Toy(name="mouse")),
    "either": ("x", 3),
}


def series(kind: Any, *values: Any, start: int = 0) -> Any:
    return Dynamic[kind](points=[TimePoint[kind](timestamp=start + n, value=value) for n, value in enumerate(values)])


def tensor(*values: float) -> Any:
    return Tensor(data=list(values), index=[[220, 230]])


DYNAMIC: dict[str, tuple[Any, Any]] = {
    "weight": (series(float, 4.5, 4.75), series(float, 5.0, start=7)),
    "scent": (series(Tensor, tensor(1.0, 2.0)), series(Tensor, tensor(3.0, 4.0), start=5)),
    "worn": (series(Collar, Collar(color="red", since=NOON)), series(Collar, Collar(color="blue"), start=2)),
}

TOYS = [Toy(name="ball"), Toy(name="mouse")]
RELATED: dict[str, list[Any]] = {
    "carer": [Keeper(name="Kim"), Keeper(name="Sam")],
    "twin": [Pet(name="Twin"), Pet(name="Triplet")],
    "toys": [Toy(name="ball"), Toy(name="mouse")],
    "friends": [Keeper(name="Ann"), Keeper(name="Bo")],
}


def open_store(path: Path | str, **fields: Any) -> PersistedStateStore:
    return PersistedStateStore(uid=UID, name="File store", path=path, **fields)


@pytest.fixture
def store(path: Path) -> Iterator[PersistedStateStore]:
    with contextlib.closing(open_store(path)) as store:
        yield store


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(story)


def put(store: Any, model: Any) -> Any:
    return run(store.put(model if isinstance(model, Ref) else ref(model)))


def get(store: Any, what: Any) -> Any:
    return run(store.get(what)).state


def query(store: Any, model: str, wanted: Any = None, *, states: bool = False) -> list[Any]:
    return list(run(store.query(model, states, wanted)))


def changed(reference: Any, state: Any) -> Any:
    """Return a reference to the same record, with another state."""
    found = ref(state, uid=reference.uid, store=reference.record.store)
    found.guid = reference.guid
    return found


def names(store: Any, refs: list[Any]) -> list[str]:
    return [get(store, one).name for one in refs]


class SlowGUID(MemoryGUID):
    """A map that lets other tasks run in each of its calls, as one behind a network does."""

    async def get_guid(self, uid: str, store: Any) -> Any:
        await asyncio.sleep(0)
        return await super().get_guid(uid=uid, store=store)

    async def create_guid(self, uid: str, store: Any) -> Any:
        await asyncio.sleep(0)
        return await super().create_guid(uid=uid, store=store)


# ---- The store itself ----


def test_store_is_an_async_store_with_all_methods_but_graphql(store: PersistedStateStore) -> None:
    assert isinstance(store, AsyncBaseStore)
    assert set(store._allowed_methods) == {"PUT", "PATCH", "GET", "DELETE", "QUERY"}
    assert (str(store.uid), store.name) == (UID, "File store")


def test_name_is_the_class_by_default(path: Path) -> None:
    assert PersistedStateStore(uid=UID, path=path).name == "PersistedStateStore"


@pytest.mark.parametrize("kind", [PersistedStateStore, PersistedStateGUIDMap])
def test_neither_path_nor_state_is_a_value_error(kind: Any) -> None:
    with pytest.raises(ValueError, match="either a path or a state"):
        kind(**({"uid": UID} if kind is PersistedStateStore else {}))
    assert issubclass(ValidationError, ValueError)


def test_file_is_opened_by_the_first_call_and_again_after_close(path: Path) -> None:
    store = open_store(str(path))
    assert not path.exists()
    r_pet = put(store, Pet(name="Snowball"))
    store.close()
    store.close()
    assert get(store, r_pet).name == "Snowball"
    store.close()


def test_given_state_stays_open_and_keeps_what_else_is_in_it(state: PersistedState) -> None:
    state.settings = {"retries": 3}
    store = PersistedStateStore(uid=UID, state=state)
    r_pet = put(store, Pet(name="Snowball"))
    store.close()

    assert state["records"][r_pet.uid] == {"model_name": "Pet", "name": "Snowball"}
    assert state.settings == {"retries": 3}
    assert get(store, r_pet).name == "Snowball"


def test_file_in_use_is_refused_with_the_pid_of_the_holder(path: Path) -> None:
    holder = "import sys; from persistedstate import PersistedState as P; s = P(sys.argv[1]); print('open'); input()"
    with Child(holder, path) as child:
        child.expect("open")
        with pytest.raises(StateLocked, match=str(child.pid)):
            put(open_store(path), Pet())


def test_typo_in_the_file_is_refused_with_its_line(path: Path) -> None:
    path.write_text("records:\n  a: {name: x\n", encoding="utf-8")

    with pytest.raises(StateCorrupt, match="line"):
        put(open_store(path), Pet())


def test_importing_persistedstate_imports_nothing_of_constelite() -> None:
    code = "import sys, persistedstate, persistedstate_stores; print([m for m in sys.modules if 'constelite' in m])"

    assert run_child(code) == "[]\n"


def test_missing_constelite_is_named_with_the_extra_that_brings_it() -> None:
    assert "constelite==1.0.0" in told_without("constelite")


# ---- PUT, PATCH, GET, DELETE of properties ----


@pytest.mark.parametrize("name", STATIC)
def test_static_property_is_put_overwritten_and_patched_and_survives_a_restart(path: Path, name: str) -> None:
    first, second = STATIC[name]
    with contextlib.closing(open_store(path)) as store:
        r_pet = put(store, Pet(**{name: first}))
        r_other = put(store, Pet(**{name: first}))
    with contextlib.closing(open_store(path)) as store:
        assert getattr(get(store, r_pet), name) == first
        put(store, changed(r_pet, Pet(**{name: second})))
        run(store.patch(changed(r_other, Pet(**{name: second}))))
    with contextlib.closing(open_store(path)) as store:
        for one in r_pet, r_other:
            found = getattr(get(store, one), name)
            assert (found, type(found)) == (second, type(second))


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_property_is_overwritten_by_put_and_extended_by_patch(path: Path, name: str) -> None:
    first, second = DYNAMIC[name]
    with contextlib.closing(open_store(path)) as store:
        r_put, r_patched, r_unset = (put(store, pet) for pet in (Pet(**{name: first}), Pet(**{name: first}), Pet()))
        put(store, changed(r_put, Pet(**{name: second})))
        for one in r_patched, r_unset:
            run(store.patch(changed(one, Pet(**{name: second}))))
    with contextlib.closing(open_store(path)) as store:
        assert getattr(get(store, r_put), name).points == second.points
        assert getattr(get(store, r_patched), name).points == first.points + second.points
        assert getattr(get(store, r_unset), name).points == second.points


@pytest.mark.parametrize("method", ["put", "patch"])
def test_properties_that_are_not_given_stay(store: PersistedStateStore, method: str) -> None:
    r_pet = put(store, Pet(name="Snowball", age=3, weight=series(float, 4.5), carer=[ref(Keeper(name="Kim"))]))

    run(getattr(store, method)(changed(r_pet, Pet(age=4))))

    found = get(store, r_pet)
    assert (found.name, found.age, len(found.weight), len(found.carer)) == ("Snowball", 4, 1, 1)


def test_put_returns_a_reference_without_the_state_and_get_with_it(store: PersistedStateStore) -> None:
    r_pet = put(store, Pet(name="Snowball"))

    assert (r_pet.state, r_pet.state_model_name, str(r_pet.record.store.uid)) == (None, "Pet", UID)
    assert run(store.get(r_pet)).state == Pet(name="Snowball")


def test_deleted_record_is_gone_from_the_store_the_file_and_all_relationships(path: Path) -> None:
    with contextlib.closing(open_store(path)) as store:
        r_kim, r_sam = put(store, Keeper(name="Kim")), put(store, Keeper(name="Sam"))
        r_pet = put(store, Pet(carer=[r_kim, r_sam], friends=[r_kim], marks=[1]))
        run(store.delete(r_kim))

        assert [one.uid for one in get(store, r_pet).carer] == [r_sam.uid]
        assert get(store, r_pet).friends == []
        with pytest.raises(KeyError, match="does not exist"):
            get(store, r_kim)
        with pytest.raises(KeyError, match="does not exist"):
            run(store.delete(r_kim))

    assert r_kim.uid not in path.read_text(encoding="utf-8")


def test_value_that_yaml_cannot_hold_is_refused_and_nothing_changes(store: PersistedStateStore, path: Path) -> None:
    r_pet = put(store, Pet(name="Snowball"))
    before = reopened(path)

    for bad in object(), 1j, "\ud800":
        with pytest.raises((TypeError, ValueError)):
            run(store.create_model(Pet, {"name": bad}, {}))
        with pytest.raises((TypeError, ValueError)):
            run(store.overwrite_static_props(r_pet.uid, Pet, {"age": 3, "name": bad}))

    assert reopened(path) == before


def family() -> Any:
    return Pet(**{name: [ref(copy.deepcopy(model)) for model in models] for name, models in RELATED.items()})


def test_each_put_patch_and_delete_is_one_record_in_the_file(store: PersistedStateStore, path: Path) -> None:
    before = records(path) if path.exists() else 0
    r_pet = put(store, family())
    put(store, changed(r_pet, family()))
    run(store.patch(changed(r_pet, Pet(name="a", weight=series(float, 1.5)))))
    run(store.delete(r_pet))

    assert records(path) == before + 4


def test_file_holds_what_a_put_leads_to_before_or_after_it_at_each_moment(path: Path, tmp_path: Path) -> None:
    with contextlib.closing(open_store(path)) as store:
        r_pet = put(store, family())
        old, new = Toy(name="old"), Toy(name="new")
        put(store, changed(r_pet, Pet(toys=[ref(old)])))
        seen = []
        for content in contents_at_each_moment(path, lambda: put(store, changed(r_pet, Pet(toys=[ref(new)])))):
            moment = tmp_path / "moment"
            moment.write_bytes(content)
            found = reopened(moment)["records"]
            moment.unlink()
            seen.append([found[uid]["name"] for uid in found[r_pet.uid]["toys"]])

    assert [names for names, _ in itertools.groupby(seen)] == [["old"], ["new"]]


@pytest.mark.parametrize("method", ["put", "patch"])
def test_refused_value_in_one_of_several_states_leaves_all_as_they_were(
    store: PersistedStateStore, path: Path, method: str
) -> None:
    r_toy = put(store, Toy(name="ball"))
    r_pet = put(store, Pet(name="a", friends=[ref(Keeper(name="Kim"))]))
    before = reopened(path)

    with pytest.raises(ValueError, match="surrogate"):
        run(getattr(store, method)(changed(r_pet, Pet(name="b", toys=[changed(r_toy, Toy(name="\ud800"))]))))
    with pytest.raises(ValueError, match="surrogate"):
        put(store, Pet(name="c", toys=[ref(Toy(name="\ud800"))]))

    assert reopened(path) == before
    assert get(store, r_pet).name == "a"


def test_others_see_a_put_when_it_is_done(store: PersistedStateStore) -> None:
    class WaitingGUID(SlowGUID):
        async def create_guid(self, uid: str, store: Any) -> Any:
            seen.append([len(await store.query(name, False)) for name in ("Pet", "Toy", "Keeper")])
            return await super().create_guid(uid=uid, store=store)

    seen: list[Any] = []
    store.set_guid_map(WaitingGUID(guid_map={}))

    put(store, Pet(name="a", toys=[ref(Toy())]))

    assert seen == [[0, 0, 0], [0, 0, 0]]


def test_put_in_another_store_inside_of_a_put_is_an_operation_of_its_own(
    store: PersistedStateStore, tmp_path: Path
) -> None:
    class CopyingGUID(SlowGUID):
        async def create_guid(self, uid: str, store: Any) -> Any:
            copies.append(await other.put(ref(Toy(name="copy"))))
            return await super().create_guid(uid=uid, store=store)

    copies: list[Any] = []
    with contextlib.closing(open_store(tmp_path / "other.state")) as other:
        store.set_guid_map(CopyingGUID(guid_map={}))
        put(store, Pet(name="a"))
        assert names(other, copies) == ["copy"]
        assert [len(query(one, "Toy")) for one in (store, other)] == [0, 1]
    (tmp_path / "other.state").unlink()


def test_put_that_needs_a_part_which_it_deletes_changes_nothing(store: PersistedStateStore, path: Path) -> None:
    """Constelite's put deletes the old parts before it looks at the new ones, also where they are the same."""
    r_toy = put(store, Toy(name="ball"))
    r_pet = put(store, Pet(name="a", toys=[r_toy]))
    before = path.read_bytes()

    with pytest.raises(Exception, match="errors in a TaskGroup") as caught:
        put(store, changed(r_pet, Pet(name="b", toys=[r_toy])))

    assert caught.group_contains(KeyError, match="does not exist")
    assert path.read_bytes() == before


def test_put_of_what_is_there_already_writes_nothing(store: PersistedStateStore, path: Path) -> None:
    pet = Pet(**{name: values[0] for name, values in STATIC.items()}, weight=DYNAMIC["weight"][0])
    r_pet = put(store, pet)
    before = path.read_bytes()

    put(store, changed(r_pet, pet))

    assert path.read_bytes() == before


def test_operation_on_a_record_that_vanished_meanwhile_changes_nothing(store: PersistedStateStore, path: Path) -> None:
    class DeletingGUID(SlowGUID):
        async def get_guid(self, uid: str, store: Any) -> Any:
            store._file._state()["records"].pop(r_pet.uid, None)
            return await super().get_guid(uid=uid, store=store)

    r_pet = put(store, Pet(name="a"))
    store.set_guid_map(DeletingGUID(guid_map={}))

    with pytest.raises(ValueError, match="no record"):
        run(store.patch(changed(r_pet, Pet(name="b"))))

    assert reopened(path) == {"records": {}}


# ---- Relationships ----


@pytest.mark.parametrize("name", RELATED)
def test_relationship_to_new_and_existing_records_survives_a_restart(path: Path, name: str) -> None:
    first, second = RELATED[name]
    with contextlib.closing(open_store(path)) as store:
        r_first = put(store, first)
        r_pet = put(store, Pet(**{name: [r_first, ref(second)]}))
    with contextlib.closing(open_store(path)) as store:
        found = getattr(get(store, r_pet), name)
        assert found[0].uid == r_first.uid
        assert names(store, found) == [first.name, second.name]
        assert {one.state_model_name for one in found} == {type(first).__name__}


@pytest.mark.parametrize(("name", "survives"), [("carer", True), ("friends", True), ("toys", False)])
def test_put_replaces_a_relationship_and_deletes_only_what_it_was_composed_of(
    store: PersistedStateStore, name: str, survives: bool
) -> None:
    first, second = RELATED[name]
    r_first = put(store, first)
    r_pet = put(store, Pet(**{name: [r_first]}))

    put(store, changed(r_pet, Pet(**{name: [ref(second)]})))

    assert names(store, getattr(get(store, r_pet), name)) == [second.name]
    assert run(store.uid_exists(r_first.uid, type(first))) is survives


@pytest.mark.parametrize(("name", "length"), [("carer", 1), ("friends", 2), ("toys", 2)])
def test_patch_replaces_associations_and_adds_to_the_others(store: PersistedStateStore, name: str, length: int) -> None:
    first, second = (put(store, model) for model in RELATED[name])
    r_pet = put(store, Pet(**{name: [first]}))

    run(store.patch(changed(r_pet, Pet(**{name: [second]}))))
    run(store.patch(changed(r_pet, Pet(**{name: [second]}))))

    assert [one.uid for one in getattr(get(store, r_pet), name)] == [first.uid, second.uid][-length:]
    assert run(store.uid_exists(first.uid, Toy))


@pytest.mark.parametrize("method", ["put", "patch"])
def test_empty_relationship_clears_an_association(store: PersistedStateStore, method: str) -> None:
    r_pet = put(store, Pet(carer=[ref(Keeper(name="Kim"))]))

    run(getattr(store, method)(changed(r_pet, Pet(carer=[]))))

    assert get(store, r_pet).carer == []


def test_delete_takes_along_what_the_record_is_composed_of_and_leaves_the_rest(store: PersistedStateStore) -> None:
    r_pet = put(store, Pet(**{name: [ref(models[0])] for name, models in RELATED.items()}))
    state = get(store, r_pet)

    run(store.delete(r_pet))

    left = {name: run(store.uid_exists(getattr(state, name)[0].uid, Toy)) for name in RELATED}
    assert left == {"carer": True, "twin": True, "toys": False, "friends": True}


def test_backrefs_follow_the_relationships_through_put_patch_delete_and_restart(path: Path) -> None:
    def pets(r_keeper: Any) -> list[str]:
        with contextlib.closing(open_store(path)) as store:
            return names(store, get(store, r_keeper).pets or [])

    with contextlib.closing(open_store(path)) as store:
        r_kim, r_sam = put(store, Keeper(name="Kim")), put(store, Keeper(name="Sam"))
        r_first = put(store, Pet(name="first", carer=[r_kim], friends=[r_sam]))
        r_second = put(store, Kitten(name="second", carer=[r_kim]))
    assert (pets(r_kim), pets(r_sam)) == (["first", "second"], [])
    with contextlib.closing(open_store(path)) as store:
        put(store, changed(r_first, Pet(carer=[r_sam])))
    assert (pets(r_kim), pets(r_sam)) == (["second"], ["first"])
    with contextlib.closing(open_store(path)) as store:
        run(store.delete(r_second))
        assert get(store, r_kim).pets is None


def test_backrefs_are_only_those_of_the_model_that_they_name(store: PersistedStateStore) -> None:
    r_kim = put(store, Keeper(name="Kim"))
    put(store, Ward(carer=[r_kim]))

    assert get(store, r_kim).pets is None


def calls_of_a_query(store: PersistedStateStore) -> int:
    """Return how many Python functions are called to get all keepers, with their backrefs."""
    counted = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        found = run(store.query("Keeper", include_states=True))
    finally:
        sys.setprofile(None)
    assert all(len(keeper.pets) == 1 for keeper in found)
    return counted


def test_query_with_backrefs_takes_work_in_proportion_to_the_records(store: PersistedStateStore) -> None:
    def put_keepers(count: int) -> int:
        for _ in range(count):
            put(store, Pet(carer=[put(store, Keeper())]))
        return calls_of_a_query(store)

    put_keepers(1)  # imports
    few, many = put_keepers(19), put_keepers(60)

    assert many / few < 4.4  # for four times as many


def test_relationship_that_must_be_there_is_empty_where_the_file_lacks_it(path: Path) -> None:
    path.write_text("records:\n  w:\n    model_name: Ward\n", encoding="utf-8")

    with contextlib.closing(open_store(path)) as store:
        assert run(store.get_state_by_uid("w", Ward)).carer == []


def test_state_with_backrefs_can_be_put_back(store: PersistedStateStore, path: Path) -> None:
    r_kim = put(store, Keeper(name="Kim"))
    put(store, Pet(carer=[r_kim]))

    put(store, changed(r_kim, get(store, r_kim)))

    assert "pets" not in path.read_text(encoding="utf-8")
    assert len(get(store, r_kim).pets) == 1


def test_many_records_are_got_at_once(store: PersistedStateStore) -> None:
    refs = [put(store, Pet(name=str(n))) for n in range(5)]

    assert [found.name for found in run(store.bulk_get(refs))] == ["0", "1", "2", "3", "4"]


# ---- QUERY ----


def test_query_for_all_gives_a_model_and_its_subclasses(store: PersistedStateStore) -> None:
    r_pet, r_kitten, r_toy = (put(store, model) for model in (Pet(name="a"), Kitten(name="b"), Toy(name="c")))

    for wanted in None, GetAllQuery():
        assert [one.uid for one in query(store, "Pet", wanted)] == [r_pet.uid, r_kitten.uid]
    assert [one.uid for one in query(store, "Kitten")] == [r_kitten.uid]
    assert [one.uid for one in query(store, "Toy")] == [r_toy.uid]
    assert query(store, "Keeper") == []
    with pytest.raises(ValueError, match="Unknown model"):
        query(store, "Unicorn")


def test_query_gives_states_only_when_asked(store: PersistedStateStore) -> None:
    put(store, Pet(name="a", weight=series(float, 1.5)))

    assert [one.state for one in query(store, "Pet")] == [None]
    assert [one.state for one in query(store, "Pet", states=True)] == [Pet(name="a", weight=series(float, 1.5))]


@pytest.mark.parametrize("name", sorted(set(STATIC) - {"mood"}))
def test_query_by_property(store: PersistedStateStore, name: str) -> None:
    first, second = STATIC[name]
    r_first, _, r_unset = (put(store, pet) for pet in (Pet(**{name: first}), Pet(**{name: second}), Pet()))

    assert [one.uid for one in query(store, "Pet", PropertyQuery(**{name: first}))] == [r_first.uid]
    assert [one.uid for one in query(store, "Pet", PropertyQuery(**{name: None}))] == [r_unset.uid]


def test_query_by_several_properties_and_by_text_as_http_brings_it(store: PersistedStateStore) -> None:
    r_pet = put(store, Pet(name="a", born=NOON, tags={"x", "y"}))
    put(store, Pet(name="a", born=NOON, tags={"x"}))
    wanted = PropertyQuery(name="a", born=NOON.isoformat(), tags=["y", "x"])

    assert [one.uid for one in query(store, "Pet", wanted)] == [r_pet.uid]
    assert query(store, "Pet", PropertyQuery(nothing="such")) == []


@pytest.mark.parametrize("name", ["carer", "toys", "weight"])
def test_query_by_what_is_no_static_property_is_a_value_error(store: PersistedStateStore, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no static property of Pet"):
        query(store, "Pet", PropertyQuery(**{name: []}))


def test_other_queries_are_a_value_error(store: PersistedStateStore) -> None:
    r_pet = put(store, Pet())

    for wanted in RefQuery(ref=r_pet), BackrefQuery(ref=r_pet, class_name="Pet", backref_field_name="pets"):
        with pytest.raises(ValueError, match="Unsupported query type"):
            query(store, "Pet", wanted)


# ---- GUID maps ----


@pytest.fixture(params=["theirs", "slow", "file"])
def guids(request: pytest.FixtureRequest, state: PersistedState) -> Any:
    """Each kind of GUID map."""
    kinds: dict[str, Callable[[], Any]] = {
        "theirs": lambda: MemoryGUID(guid_map={}),
        "slow": lambda: SlowGUID(guid_map={}),
        "file": lambda: PersistedStateGUIDMap(state=state),
    }
    return kinds[request.param]()


@pytest.mark.parametrize("is_given", [True, False])
def test_guid_of_a_record_stays_through_put_patch_and_get(state: PersistedState, guids: Any, is_given: bool) -> None:
    store = PersistedStateStore(uid=UID, state=state)
    store.set_guid_map(guids)
    r_pet = put(store, Pet(name="a"))
    guid = r_pet.guid

    for method in store.put, store.patch, store.get:
        given = changed(r_pet, Pet(name="b"))
        given.guid = guid if is_given else None
        assert run(method(given)).guid == guid
    assert run(store.get(Ref(guid=guid, state_model_name="Pet"))).uid == r_pet.uid
    r_pet.guid = guid if is_given else None
    run(store.delete(r_pet))
    assert run(guids.get_guid(r_pet.uid, store)) is None


def test_guid_map_links_records_of_two_stores(state: PersistedState, guids: Any) -> None:
    first, second = PersistedStateStore(uid=UID, state=state), MemoryStore(uid=str(uuid4()))
    for store in first, second:
        store.set_guid_map(guids)

    r_first = put(first, Pet(name="a", carer=[ref(Keeper(name="Kim"))], toys=[ref(Toy(name="ball"))]))
    r_second = put(second, Ref(state=Pet(name="b"), guid=r_first.guid))

    assert r_first.guid is not None
    assert r_second.guid == r_first.guid
    assert get(first, r_second).name == "a"
    assert get(second, r_first).name == "b"
    found = get(first, r_first)
    assert {one.guid is None for one in (*found.carer, *found.toys)} == {False}
    run(first.delete(r_first))
    with pytest.raises(ValueError, match="does not have a store record"):
        get(first, r_second)
    assert get(second, r_second).name == "b"


def test_guid_map_in_the_file_survives_a_restart(path: Path) -> None:
    def opened() -> tuple[PersistedStateStore, PersistedStateGUIDMap]:
        store, guids = open_store(path), PersistedStateGUIDMap(path=path)
        store.set_guid_map(guids)
        return store, guids

    store, guids = opened()
    r_pet = put(store, Pet(name="a"))
    store.close()
    guids.close()
    store, guids = opened()
    only_guid = Ref(guid=r_pet.guid, state_model_name="Pet")

    assert get(store, only_guid).name == "a"
    assert run(guids.guid_exists(r_pet.guid)) is True
    assert run(guids.guid_exists(uuid4())) is False
    with pytest.raises(ValueError, match="mismatch"):
        run(store.link_record(uid=r_pet.uid, guid=uuid4()))
    store.close()
    guids.close()
    assert reopened(path)["guids"] == {str(r_pet.guid): {UID: r_pet.uid}}


# ---- Traps ----


@pytest.mark.parametrize("guids", [None, SlowGUID])
def test_trap_a_several_relations_in_one_put_survive(store: PersistedStateStore, guids: Any) -> None:
    store.set_guid_map(guids and guids(guid_map={}))
    related = {name: [ref(copy.deepcopy(models[0])) for _ in range(7)] for name, models in RELATED.items()}

    r_pet = put(store, Pet(**related))
    put(store, changed(r_pet, Pet(**related)))

    state = get(store, r_pet)
    assert {name: len(getattr(state, name)) for name in RELATED} == dict.fromkeys(RELATED, 7)


def test_trap_a_patches_of_one_record_at_once_lose_nothing(store: PersistedStateStore) -> None:
    store.set_guid_map(SlowGUID(guid_map={}))
    r_pet = put(store, Pet(name="a"))

    async def all_at_once() -> None:
        friends = [await store.put(ref(Keeper(name=str(n)))) for n in range(20)]
        patches = [Pet(friends=[friend], weight=series(float, n, start=n)) for n, friend in enumerate(friends)]
        await asyncio.gather(*(store.patch(changed(r_pet, pet)) for pet in patches))

    asyncio.run(all_at_once())

    state = get(store, r_pet)
    assert sorted(point.value for point in state.weight.points) == list(range(20))
    assert sorted(names(store, state.friends), key=int) == [str(n) for n in range(20)]


@pytest.mark.parametrize("name", RELATED)
@pytest.mark.parametrize("method", ["put", "patch"])
def test_trap_b_record_whose_relation_was_unset_is_overwritten(
    store: PersistedStateStore, name: str, method: str
) -> None:
    r_pet, r_other = put(store, Pet(name="a")), put(store, RELATED[name][0])

    run(getattr(store, method)(changed(r_pet, Pet(**{name: [r_other]}))))

    assert names(store, getattr(get(store, r_pet), name)) == [RELATED[name][0].name]


def test_trap_c_wrong_model_types_do_no_harm(store: PersistedStateStore) -> None:
    r_pet = put(store, Pet(name="a", toys=[ref(Toy(name="ball"))]))

    assert run(store.uid_exists(r_pet.uid, Keeper)) is True
    for wrong in Any, Toy, Keeper:
        assert type(run(store.get_state_by_uid(r_pet.uid, wrong))) is Pet
    untyped = run(store.get(ref(Pet, uid=r_pet.uid, store=store).copy(update={"state_model_name": "Any"})))
    assert type(untyped.state) is Pet
    run(store.delete_model(uid=r_pet.uid, model_type=Keeper))
    assert run(store.uid_exists(r_pet.uid, Pet)) is False


def test_trap_d_reading_changes_neither_the_file_nor_the_next_reading(store: PersistedStateStore, path: Path) -> None:
    r_pet = put(store, Pet(name="a", best_toy=Toy(name="ball"), collar=Collar(color="red"), marks=[1]))
    before = path.read_bytes()

    first = get(store, r_pet)
    first.marks.append(2)
    first.best_toy.name = "mouse"

    assert get(store, r_pet) == Pet(name="a", best_toy=Toy(name="ball"), collar=Collar(color="red"), marks=[1])
    assert path.read_bytes() == before


def test_trap_d_model_that_nobody_imported_is_named(path: Path) -> None:
    path.write_text("records:\n  u:\n    model_name: Unicorn\n    carer: [x]\n", encoding="utf-8")

    with contextlib.closing(open_store(path)) as store:
        with pytest.raises(ValueError, match="no model 'Unicorn'; import the module"):
            run(store.get_state_by_uid("u", Pet))
        r_toy = put(store, Toy())
        run(store.delete(r_toy))
        assert query(store, "Pet") == []


@pytest.mark.parametrize("kind", [PersistedStateStore, PersistedStateGUIDMap])
def test_trap_e_configuration_is_in_no_reference(path: Path, kind: Any) -> None:
    fields = {"uid": UID} if kind is PersistedStateStore else {}
    made = kind(path=path, fsync=True, wait=0.5, **fields)

    assert not {"path", "state", "fsync", "wait"} & made.dict().keys()


def test_trap_e_reference_tells_nothing_of_the_file(store: PersistedStateStore, path: Path) -> None:
    assert str(path) not in put(store, Pet()).json()


def test_trap_f_reference_that_carries_the_store_can_be_copied(store: PersistedStateStore) -> None:
    r_pet = put(store, Pet(name="a"))
    carried = ref(Pet, uid=r_pet.uid, store=store)

    assert carried.record.store is not store
    assert copy.deepcopy(store) is store
    assert get(store, carried.copy_ref()).name == "a"
    assert run(carried.record.store.get_state_by_uid(r_pet.uid, Pet)).name == "a"


def test_trap_g_missing_uid_is_a_value_error_and_one_layer_up_a_key_error(store: PersistedStateStore) -> None:
    missing = ref(Pet, uid="nowhere", store=store)
    steps: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: store.get_state_by_uid("nowhere", Pet),
        lambda: store.overwrite_static_props("nowhere", Pet, {"age": 1}),
        lambda: store.overwrite_dynamic_props("nowhere", Pet, {}),
        lambda: store.extend_dynamic_props("nowhere", Pet, {}),
        lambda: store.delete_all_relationships("nowhere", Pet, "carer"),
    ]

    for step in steps:
        with pytest.raises(ValueError, match="no record nowhere"):
            run(step())
    for method in store.get, store.patch, store.delete:
        with pytest.raises(KeyError, match="does not exist"):
            run(method(missing))
    run(store.delete_model(Pet, "nowhere"))


@pytest.mark.stress
def test_trap_h_one_store_serves_several_loops_and_threads(store: PersistedStateStore) -> None:
    r_shared = put(store, Pet(name="shared"))

    def work(number: int) -> None:
        for step in range(10):
            put(store, Pet(name=f"{number}-{step}", carer=[ref(Keeper(name="Kim"))]))
            r_friend = put(store, Keeper(name=f"{number}-{step}"))
            run(store.patch(changed(r_shared, Pet(friends=[r_friend]))))

    together(*(partial(work, number) for number in range(6)))

    assert len(get(store, r_shared).friends) == 60
    assert len(query(store, "Pet")) == 61


def test_trap_i_types_come_back_through_the_fields_after_a_restart(path: Path) -> None:
    pet = Pet(**{name: values[0] for name, values in STATIC.items()})
    with contextlib.closing(open_store(path)) as store:
        r_pet = put(store, pet)
    with contextlib.closing(open_store(path)) as store:
        assert get(store, r_pet) == pet


# ---- Crashes, people ----


CHILD = """
import asyncio, sys
from typing import ForwardRef, Optional
from constelite.models import Association, StateModel, ref
from persistedstate_stores.constelite import PersistedStateStore

class Keeper(StateModel):
    name: Optional[str]

class Pet(StateModel):
    name: Optional[str]
    carer: Optional[Association[Keeper]]
    twin: Optional[Association[ForwardRef("Pet")]]
"""


@pytest.mark.parametrize("fsync", [False, True, 0.01])
def test_kill_loses_no_acknowledged_put(path: Path, fsync: bool | float) -> None:
    code = """
    store = PersistedStateStore(uid=sys.argv[2], path=sys.argv[1], fsync=eval(sys.argv[3]))

    async def work():
        while True:
            pet = Pet(name="Snowball", carer=[ref(Keeper(name="Kim"))], twin=[ref(Pet(name="Sam"))])
            print((await store.put(ref(pet))).uid)

    asyncio.run(work())
    """
    with Child(CHILD + textwrap.dedent(code), path, UID, fsync) as child:
        acknowledged = [child.line() for _ in range(60)]

    with contextlib.closing(open_store(path)) as store:
        for uid in acknowledged:
            state = get(store, ref(Pet, uid=uid, store=store))
            assert (state.name, names(store, state.carer), names(store, state.twin)) == ("Snowball", ["Kim"], ["Sam"])


def test_person_edits_the_file_between_two_runs_and_keeps_the_comments(path: Path) -> None:
    with contextlib.closing(open_store(path)) as store:
        r_kim = put(store, Keeper(name="Kim"))
        r_pet = put(store, Pet(name="Snowball", carer=[r_kim], weight=series(float, 4.5)))
    text = path.read_text(encoding="utf-8").replace("name: Snowball", "name: Snowball II  # as in the show")
    added = f"  garfield:\n    model_name: Pet\n    born: 1978-06-19 12:00:00\n    carer: [{r_kim.uid}]\n"
    path.write_text("# who lives here\n" + text + added, encoding="utf-8")

    with contextlib.closing(open_store(path)) as store:
        assert get(store, r_pet).name == "Snowball II"
        garfield = query(store, "Pet", PropertyQuery(born=datetime(1978, 6, 19, 12)), states=True)[0]
        assert (garfield.uid, names(store, garfield.state.carer)) == ("garfield", ["Kim"])
        assert [one.uid for one in get(store, r_kim).pets] == [r_pet.uid, "garfield"]
        put(store, changed(r_pet, Pet(name="Snowball II", age=3)))

    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# who lives here"
    assert "    name: Snowball II  # as in the show" in lines
    assert "    age: 3" in lines


def test_person_edits_the_file_while_the_store_is_open(
    store: PersistedStateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_LOOK_EVERY", 0)
    r_pet = put(store, Pet(name="Snowball"))
    store._file._state().vacuum()
    path.write_text(path.read_text(encoding="utf-8").replace("Snowball", "Coltrane"), encoding="utf-8")

    assert get(store, r_pet).name == "Coltrane"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("records: [a]\n", "records: .* no mapping"),
        ("records:\n  a: Pet\n", r"records\.a: .* no mapping"),
        ("records:\n  a: {model_name: Pet, carer: Kim}\n", "carer: 'Kim' .* no list of uids"),
    ],
)
def test_unusable_record_is_named_and_left_alone(path: Path, text: str, problem: str) -> None:
    path.write_text(text, encoding="utf-8")

    with contextlib.closing(open_store(path)) as store:
        with pytest.raises(ValueError, match=problem):
            run(store.get_state_by_uid("a", Pet))
        with pytest.raises(ValueError, match=problem):
            run(store.delete_all_relationships("a", Pet, "carer"))

    assert path.read_text(encoding="utf-8") == text


def test_uids_without_quotes_that_are_no_strings_are_named(path: Path) -> None:
    path.write_text("records:\n  7: {model_name: Toy}\n  seven: {model_name: Toy}\n", encoding="utf-8")

    async def look() -> bool:
        return await store.uid_exists("seven", Toy)

    with contextlib.closing(open_store(path)) as store:
        with pytest.warns(RuntimeWarning, match=r'records\.7: an id is a string, write "1", not 1') as told:
            assert run(look()) is True
        assert [warning.filename for warning in told] == [__file__]
        assert run(store.uid_exists("7", Toy)) is False


@pytest.mark.parametrize("carer", ["Kim and u", 7, {"u": 1}])
def test_relationship_that_a_person_wrote_as_something_else_leads_nowhere_and_stays(path: Path, carer: Any) -> None:
    text = f"records:\n  u:\n    model_name: Keeper\n  a:\n    model_name: Pet\n    carer: {json.dumps(carer)}\n"
    path.write_text(text, encoding="utf-8")

    with contextlib.closing(open_store(path)) as store:
        assert get(store, ref(Keeper, uid="u", store=store)).pets is None
        with pytest.raises(ValueError, match="no list of uids"):
            get(store, ref(Pet, uid="a", store=store))
        run(store.delete(ref(Keeper, uid="u", store=store)))

    assert reopened(path)["records"] == {"a": {"model_name": "Pet", "carer": carer}}


# ---- Behind their API, with their client: the walk of their page "Using stores" ----

SERVER = f"""
import sys
from constelite.api.starlite import StarliteAPI
import constelite_demo.protocols
import constelite_demo.models
from constelite.models.model import discover_models
from persistedstate_stores.constelite import PersistedStateStore

file_store = PersistedStateStore(uid="{UID}", name="File store", path=sys.argv[1])
api = StarliteAPI(name="Alpha", stores=[file_store])
api.discover_protocols(constelite_demo.protocols)
discover_models(constelite_demo.models)
api.generate_app()
api.run("localhost", int(sys.argv[2]))
"""

CLIENT = f"""
import sys
from constelite.api.starlite.client import StarliteClient
from constelite.models import ref, StoreModel
from constelite.store import PropertyQuery
from constelite_demo.models.cat import Cat

client = StarliteClient(url=f"http://localhost:{{sys.argv[1]}}")
store = StoreModel(uid="{UID}")

def show(r):
    uid = r.record and str(r.record.store.uid) == "{UID}" and r.record.store.name
    print(uid, r.guid, r.state, r.state_model_name, r.model_name)

r_cat = ref(Cat(name="Snowball"))
show(r_cat)
r_cat = client.store.put(ref=r_cat, store=store)
show(r_cat)
r_cat = client.store.get(ref=r_cat)
show(r_cat)
print("restart")
input()
r_cat = client.store.get(ref=r_cat)
show(r_cat)
r_cat.name = "Snowball II"
r_cat = client.store.patch(ref=r_cat)
show(r_cat)
print("restart")
input()
r_cat = client.store.get(ref=r_cat)
show(r_cat)
found = client.store.query(
    query=PropertyQuery(name="Snowball II"), model_name="Cat", store=store, include_states=True
)
print([(r.uid == r_cat.uid, r.state.name) for r in found])
client.store.delete(ref=r_cat)
try:
    client.store.get(ref=r_cat)
except SystemError as error:
    print("SystemError", error)
print(client.store.query(model_name="Cat", store=store))
"""

WALK = [
    ["None None model_name='Cat' name='Snowball' Cat Ref", "File store None None Cat Ref"],
    ["File store None model_name='Cat' name='Snowball' Cat Ref"],
    ["File store None model_name='Cat' name='Snowball' Cat Ref", "File store None None Cat Ref"],
    ["File store None model_name='Cat' name='Snowball II' Cat Ref", "[(True, 'Snowball II')]"],
    ["SystemError Internal Server Error", "[]"],
]


@pytest.fixture
def _demo_package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of their page "Getting started", for the processes that the test starts."""
    folder = tmp_path_factory.mktemp("demo")
    for package in "constelite_demo", "constelite_demo/models", "constelite_demo/protocols":
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    cat = "from constelite.models import StateModel\n\nclass Cat(StateModel):\n    name: str | None = None\n"
    (folder / "constelite_demo/models/cat.py").write_text(cat, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


@contextlib.contextmanager
def serving(path: Path, port: int) -> Iterator[None]:
    """Run their API on loopback until the block ends, then kill it."""
    with Child(SERVER, path, port) as child:
        end = time.monotonic() + PATIENCE
        while not accepts(port):
            assert child._process.poll() is None, child.line()
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.05)  # between two tries
        yield


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.usefixtures("_demo_package")
def test_walk_of_using_stores_line_by_line_with_the_server_killed_in_the_middle(path: Path) -> None:
    port = free_port()
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        with serving(path, port):
            client = stack.enter_context(Child(CLIENT, port))
            said += until_restart(client)
        with serving(path, port):
            client.tell()
            said += until_restart(client)
        with serving(path, port):
            client.tell()
            said += [client.line() for _ in range(4)]

    assert said == [line for part in WALK for line in part]
    assert reopened(path) == {"records": {}}


def until_restart(client: Child) -> list[str]:
    return list(iter(client.line, "restart"))
