"""A state file as a store of py-key-value-aio: their contract, their traps, and what only a file can do.

`PersistedStateStore` is run against the released package, never against a copy of it. Each `run` is an event loop of
its own, so every test with two of them shows that a store belongs to none.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import inspect
import itertools
import json
import logging
import os
import signal
import time
import typing
import warnings
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import records, run_child
from processes import Child, contents_at_each_moment
from threads import together

import persistedstate
from persistedstate import PersistedState, StateClosed, StateLocked, StateReadOnly, plain

pytest.importorskip("key_value.aio", reason="py-key-value-aio is not installed")

from key_value.aio.errors import (
    DeserializationError,
    InvalidTTLError,
    MissingKeyError,
    ReadOnlyError,
    SerializationError,
    StoreSetupError,
)
from key_value.aio.protocols import key_value as protocols
from key_value.aio.stores.base import BaseStore

from persistedstate_stores import key_value as adapter
from persistedstate_stores.key_value import PersistedStateStore

from .conftest import run, told_without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VALUE = {"name": "Ada", "n": 1, "x": 1.5, "yes": True, "no": None, "list": [1, [2, {"a": {}}]], "text": "é\n\x85\0😀"}

#: Names that YAML, a file system, a pattern or an attribute might take for something else.
ODD_NAMES = [
    "1", "-1", "1.5", "1e3", "0o7", "0x1F", "1_000", "null", "~", "true", "yes", "on", "550e84", "2024-01-01", "12:30",
    "<<", "=", "&a", "*a", "!t", "- x", "# c", "a: b", "a:", "{a}", "[a]", "'", '"', "\\", "\n", " a ", "\t",
    "\x00", "\x85", "\u2028", "\ufeff", "é", "😀", "!@#$%^&*()", "../../etc/passwd", "a::b", "items", "copy", "_x",
    "__class__", "%YAML",
    "---", "...", "x" * 1500, "é" * 1500,
]  # fmt: skip

PAST = "2001-01-01T00:00:00+00:00"


@pytest.fixture
def store(path: Path) -> Iterator[PersistedStateStore]:
    """An open store in an empty file."""
    store = PersistedStateStore(path)
    yield store
    run(store.close())


@pytest.fixture(params=["path", "state", "under", "limited"])
def any_store(request: pytest.FixtureRequest, path: Path) -> Iterator[PersistedStateStore]:
    """A store in each of the forms that it can take."""
    state = PersistedState(path, last_id=7) if request.param == "state" else None
    options: dict[str, Any] = {"under": {"under": "cache"}, "limited": {"max_entries_per_collection": 500}}
    store = PersistedStateStore(None if state else path, state=state, **options.get(request.param, {}))
    yield store
    run(store.close())
    if state:
        assert state.last_id == 7
        state.close()


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def entry(expires_at: str = "", value: str = "{n: 1}") -> str:
    """Return the lines of a collection `c` with one entry `k`."""
    return f"c:\n  k:\n    value: {value}\n" + (f"    expires_at: {expires_at}\n" if expires_at else "")


def let_expire(store: PersistedStateStore, collection: str, *keys: str) -> None:
    """Give entries an expiry in the past, as time would."""
    state = store._opened()
    for key in keys:
        state[collection][key]["expires_at"] = PAST


# ---- Contract ----


@pytest.mark.parametrize(
    "protocol",
    [
        protocols.AsyncKeyValueProtocol,
        protocols.AsyncCullProtocol,
        protocols.AsyncEnumerateKeysProtocol,
        protocols.AsyncEnumerateCollectionsProtocol,
        protocols.AsyncDestroyStoreProtocol,
        protocols.AsyncDestroyCollectionProtocol,
    ],
)
def test_store_has_every_protocol(path: Path, protocol: type) -> None:
    assert isinstance(PersistedStateStore(path), protocol)


def test_missing_key_is_none(any_store: PersistedStateStore) -> None:
    async def look() -> list[object]:
        one, many = await any_store.get("k"), await any_store.get_many(["k", "l"], collection="c")
        return [one, many, await any_store.ttl("k"), await any_store.ttl_many(["k"])]

    assert run(look()) == [None, [None, None], (None, None), [(None, None)]]


def test_looking_for_what_is_missing_writes_nothing(store: PersistedStateStore, path: Path) -> None:
    run(store.setup())
    before = path.read_bytes()

    run(store.get_many(["k"], collection="c"))
    run(store.keys("c"))
    run(store.delete_many(["k"], collection="c"))
    run(store.put_many([], [], collection="c"))

    assert path.read_bytes() == before


def test_put_is_read_back(any_store: PersistedStateStore) -> None:
    run(any_store.put("k", VALUE, collection="c"))

    assert run(any_store.get("k", collection="c")) == VALUE
    assert run(any_store.get("k")) is None
    assert run(any_store.ttl("k", collection="c")) == (VALUE, None)


def test_put_replaces(any_store: PersistedStateStore) -> None:
    run(any_store.put("k", {"n": 1}, ttl=60))
    run(any_store.put("k", {"m": 2}))

    assert run(any_store.ttl("k")) == ({"m": 2}, None)
    assert run(any_store.keys()) == ["k"]


def test_collections_are_apart(any_store: PersistedStateStore) -> None:
    run(any_store.put("k", {"n": 1}, collection="a"))
    run(any_store.put("k", {"n": 2}, collection="b"))

    run(any_store.delete("k", collection="a"))

    assert run(any_store.get("k", collection="a")) is None
    assert run(any_store.get("k", collection="b")) == {"n": 2}


def test_default_collection_can_be_chosen(path: Path, on_disk: Callable[..., dict[Any, Any]]) -> None:
    async def put() -> None:
        async with PersistedStateStore(path, default_collection="mine") as store:
            await store.put("k", {"n": 1})

    run(put())

    assert list(on_disk()) == ["mine"]


def test_delete_tells_whether_there_was_something(any_store: PersistedStateStore) -> None:
    run(any_store.put("k", {"n": 1}))

    assert run(any_store.delete("k")) is True
    assert run(any_store.delete("k")) is False
    assert run(any_store.get("k")) is None


def test_many_keep_the_order_of_keys(any_store: PersistedStateStore) -> None:
    run(any_store.put_many(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}], ttl=60))

    assert run(any_store.get_many(["c", "x", "a"])) == [{"n": 3}, None, {"n": 1}]
    assert [value for value, _ in run(any_store.ttl_many(["b", "x"]))] == [{"n": 2}, None]
    assert run(any_store.delete_many(["c", "x", "a", "c"])) == 2
    assert run(any_store.keys()) == ["b"]


def test_many_of_different_length_are_refused(any_store: PersistedStateStore) -> None:
    with pytest.raises(ValueError, match="different number"):
        run(any_store.put_many(["a", "b"], [{"n": 1}]))

    assert run(any_store.keys()) == []


def test_ttl_is_what_remains(any_store: PersistedStateStore) -> None:
    before = time.time()
    run(any_store.put("k", {"n": 1}, ttl=100))
    after_put = time.time()

    value, ttl = run(any_store.ttl("k"))

    assert value == {"n": 1}
    assert ttl is not None
    assert before + 100 - 0.001 <= time.time() + ttl
    assert ttl <= after_put + 100 - before


@pytest.mark.filterwarnings("ignore:[^ ]* .*violates type hint:UserWarning")  # beartype only warns of some
@pytest.mark.parametrize("ttl", [True, False, 0, -1, 0.0, "x"])
def test_trap_f_ttl_must_be_a_number_above_zero(any_store: PersistedStateStore, ttl: Any) -> None:
    with pytest.raises((InvalidTTLError, TypeError)):
        run(any_store.put("k", {"n": 1}, ttl=ttl))
    with pytest.raises(InvalidTTLError):
        run(any_store.put_many(["k"], [{"n": 1}], ttl=ttl))

    assert run(any_store.keys()) == []


@pytest.mark.filterwarnings("ignore:[^ ]* .*violates type hint:UserWarning")  # beartype only warns of some
@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get(1),
        lambda store: store.put(1, {}),
        lambda store: store.put("k", [("n", 1)]),
        lambda store: store.put("k", {1: 2}),
        lambda store: store.put_many([1], [{}]),
        lambda store: store.put_many(["k", "l"], [{"n": 1}, "text"]),
        lambda store: store.put_many(["k", "l"], [{"n": 1}, {1: 2}]),
        lambda store: store.delete(1),
        lambda store: store.ttl(1),
    ],
)
def test_trap_f_wrong_types_are_refused_and_change_nothing(
    store: PersistedStateStore, path: Path, call: Callable[[Any], Any]
) -> None:
    run(store.put("old", {"n": 1}))
    before = path.read_bytes()

    with pytest.raises(TypeError):
        run(call(store))

    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_trap_j_odd_names_stay_what_they_are(path: Path, name: str) -> None:
    async def put() -> None:
        async with PersistedStateStore(path) as store:
            await store.put(name, {name: name}, collection=name)

    async def look() -> list[object]:
        async with PersistedStateStore(path) as store:
            assert await store.collections() == [name]
            assert await store.keys(name) == [name]
            return [await store.get(name, collection=name), await store.delete(name, collection=name)]

    run(put())

    assert oracle.read(path, "ruamel")[name][name]["value"] == {name: name}
    assert run(look()) == [{name: name}, True]


def test_trap_j_odd_names_stay_apart(store: PersistedStateStore) -> None:
    run(store.put_many(ODD_NAMES, [{"n": number} for number in range(len(ODD_NAMES))]))

    assert run(store.get_many(ODD_NAMES)) == [{"n": number} for number in range(len(ODD_NAMES))]
    assert run(store.keys()) == ODD_NAMES


def test_empty_key_is_a_key(store: PersistedStateStore) -> None:
    run(store.put("", {"n": 1}))

    assert run(store.get("")) == {"n": 1}


def test_trap_i_enumeration_takes_a_limit(any_store: PersistedStateStore) -> None:
    for name in "abc":
        run(any_store.put_many(["x", "y", "z"], [{}, {}, {}], collection=name))

    assert run(any_store.keys("a")) == ["x", "y", "z"]
    assert run(any_store.keys("a", limit=2)) == ["x", "y"]
    assert run(any_store.keys("a", limit=0)) == []
    assert run(any_store.keys("none")) == []
    assert run(any_store.collections()) == ["a", "b", "c"]
    assert run(any_store.collections(limit=1)) == ["a"]


def test_trap_i_enumeration_is_not_cut_at_ten_thousand(store: PersistedStateStore) -> None:
    keys = [f"k{number}" for number in range(10_001)]

    run(store.put_many(keys, [{} for _ in keys]))

    assert run(store.keys()) == keys


def test_destroyed_collection_is_gone_and_others_stay(any_store: PersistedStateStore) -> None:
    run(any_store.put("k", {"n": 1}, collection="a"))
    run(any_store.put("k", {"n": 2}, collection="b"))

    assert run(any_store.destroy_collection("a")) is True
    assert run(any_store.destroy_collection("a")) is False
    assert run(any_store.collections()) == ["b"]
    assert run(any_store.get("k", collection="b")) == {"n": 2}


def test_destroyed_store_is_empty(any_store: PersistedStateStore) -> None:
    run(any_store.put("k", {"n": 1}, collection="a"))
    run(any_store.put("k", {"n": 2}, collection="b"))

    assert run(any_store.destroy()) is True
    assert run(any_store.collections()) == []
    assert run(any_store.get("k", collection="b")) is None


@pytest.mark.parametrize("collection", ["c", None])
def test_trap_b_put_works_after_destroying(any_store: PersistedStateStore, collection: str | None) -> None:
    run(any_store.put("k", {"n": 1}, collection=collection))
    run(any_store.destroy_collection(collection or any_store.default_collection))
    run(any_store.put("k", {"n": 2}, collection=collection))
    first = run(any_store.get("k", collection=collection))
    run(any_store.destroy())
    run(any_store.put("k", {"n": 3}, collection=collection))

    assert (first, run(any_store.get("k", collection=collection))) == ({"n": 2}, {"n": 3})


# ---- Values ----


@pytest.mark.parametrize(
    "value",
    [
        {1, 2}, b"x", dt.datetime(2024, 5, 1), object(), 1j, "\ud800",
        pytest.param(10**5000, id="digits"),
        pytest.param(json.loads("[" * 120 + "]" * 120), id="deep"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_and_changes_nothing(any_store: PersistedStateStore, path: Path, value: Any) -> None:
    run(any_store.put("k", {"n": 1}))
    before = path.read_bytes()

    with pytest.raises(SerializationError):
        run(any_store.put("k", {"good": 1, "bad": [value]}))
    with pytest.raises(SerializationError):
        run(any_store.put_many(["l", "k"], [{"n": 2}, {"bad": value}]))

    assert path.read_bytes() == before
    assert run(any_store.get_many(["k", "l"])) == [{"n": 1}, None]


def test_refusal_names_the_place(store: PersistedStateStore, path: Path) -> None:
    with pytest.raises(SerializationError, match=f"{path.name}: c → k: .*datetime"):
        run(store.put("k", {"at": dt.datetime(2024, 5, 1)}, collection="c"))
    with pytest.raises(SerializationError, match=f"{path.name}: c → l: .*set"):
        run(store.put_many(["k", "l"], [{}, {"of": {1}}], collection="c"))


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_time_without_offset_is_utc_wherever_the_program_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    in_an_hour = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1)
    write(path, entry(in_an_hour.strftime("%Y-%m-%d %H:%M:%S")))
    monkeypatch.setenv("TZ", zone)
    time.tzset()

    async def look() -> Any:
        async with PersistedStateStore(path) as store:
            return await store.ttl("k", collection="c")

    try:
        _, left = run(look())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert 3500 < left <= 3600


@pytest.mark.parametrize("written", ["tomorrow", "7", "[2026]"])
def test_what_is_no_time_is_told_with_one_that_is(path: Path, written: str) -> None:
    write(path, entry(written))
    store = PersistedStateStore(path)
    with pytest.warns(RuntimeWarning, match="c → k"):
        run(store.setup())

    with pytest.raises(DeserializationError, match=r"c → k: .* is no time; write for example 2026-12-24 18:00:00"):
        run(store.get("k", collection="c"))
    run(store.close())


def test_cycle_is_refused(store: PersistedStateStore) -> None:
    value: dict[str, Any] = {}
    value["self"] = value

    with pytest.raises(SerializationError):
        run(store.put("k", value))


def test_tuples_become_lists_and_inner_keys_strings(store: PersistedStateStore) -> None:
    run(store.put("k", {"t": (1, (2,)), "d": {5: None, True: 2}}))

    assert run(store.get("k")) == {"t": [1, [2]], "d": {"5": None, "true": 2}}


def test_what_json_would_change_is_stored_as_it_would_be(store: PersistedStateStore, path: Path) -> None:
    class Level(str, Enum):
        HIGH = "high"

    class Number(IntEnum):
        ONE = 1

    shared = [1]
    value = {"level": Level.HIGH, "one": {"a": shared}, "two": shared, "number": Number.ONE, "by": {None: 1.0}}

    run(store.put("k", value))
    run(store.put("l", {"one": shared, "two": shared}))
    shared.append(2)

    expected = {"level": "high", "one": {"a": [1]}, "two": [1], "number": 1, "by": {"null": 1.0}}
    for found in run(store.get("k")), oracle.read(path)["default_collection"]["k"]["value"]:
        assert repr(dict(found)) == repr(expected)
    assert run(store.get("l")) == {"one": [1], "two": [1]}


def test_inner_keys_that_json_makes_the_same_are_refused(store: PersistedStateStore) -> None:
    with pytest.raises(SerializationError, match="same"):
        run(store.put("k", {"d": {1: "a", "1": "b"}}))


@pytest.mark.parametrize("number", [float("inf"), -0.0, 1e16, 1e-7, 2**100])
def test_numbers_come_back_exactly(store: PersistedStateStore, number: float) -> None:
    run(store.put("k", {"n": number}))

    found = run(store.get("k"))

    assert found is not None
    assert repr(found["n"]) == repr(number)


def test_caller_may_change_what_it_gave(store: PersistedStateStore) -> None:
    value: dict[str, Any] = {"list": [1]}
    run(store.put("k", value))

    value["list"].append(2)

    assert run(store.get("k")) == {"list": [1]}


def test_caller_may_change_what_it_got(store: PersistedStateStore, path: Path) -> None:
    run(store.put_many(["k", "l"], [{"list": [1]}, {"list": [1]}]))
    before = path.read_bytes()

    for value in [
        run(store.get("k")),
        run(store.ttl("k"))[0],
        *run(store.get_many(["l"])),
        run(store.ttl_many(["l"]))[0][0],
    ]:
        assert value is not None
        value["list"].append(2)
        value["new"] = 1

    assert run(store.get_many(["k", "l"])) == [{"list": [1]}, {"list": [1]}]
    assert path.read_bytes() == before


def test_order_of_keys_in_a_value_is_kept(store: PersistedStateStore) -> None:
    run(store.put("k", {"z": 1, "a": 2}))

    assert list(run(store.get("k")) or {}) == ["z", "a"]


# ---- Expiry ----


def test_trap_g_expired_entry_is_never_returned_or_listed(any_store: PersistedStateStore, path: Path) -> None:
    run(any_store.put_many(["k", "l"], [{"n": 1}, {"n": 2}], ttl=60))
    with PersistedState(path) as state:
        state.get("cache", state)["default_collection"]["k"]["expires_at"] = PAST

    assert run(any_store.get("k")) is None
    assert run(any_store.ttl("k")) == (None, None)
    assert run(any_store.get_many(["k", "l"])) == [None, {"n": 2}]
    assert run(any_store.ttl_many(["k"])) == [(None, None)]
    assert run(any_store.keys()) == ["l"]


def test_trap_g_deleting_an_expired_entry_removes_it_and_tells_there_was_none(store: PersistedStateStore) -> None:
    run(store.put_many(["k", "l"], [{}, {}], ttl=60))
    let_expire(store, "default_collection", "k", "l")

    assert run(store.delete("k")) is False
    assert run(store.delete_many(["l"])) == 0
    assert plain(store._opened()) == {"default_collection": {}}


def test_entry_leaves_the_file_when_its_time_is_over(
    store: PersistedStateStore, on_disk: Callable[..., dict[Any, Any]]
) -> None:
    """The wait is for the clock: each turn is a put, and the first one after the expiry and the pause removes it."""
    run(store.put("short", {"n": 1}, ttl=0.05))
    run(store.put("long", {"n": 2}, ttl=3600))
    end = time.monotonic() + 60

    while "short" in on_disk()["default_collection"]:
        assert time.monotonic() < end
        run(store.put("other", {"n": 3}))

    assert set(on_disk()["default_collection"]) == {"long", "other"}


def test_cull_removes_all_that_expired_in_all_collections(
    store: PersistedStateStore, on_disk: Callable[..., dict[Any, Any]]
) -> None:
    keys = [f"k{number}" for number in range(250)]
    for collection in "ab":
        run(store.put_many(keys, [{} for _ in keys], collection=collection, ttl=60))
        let_expire(store, collection, *keys[:249])

    run(store.cull())

    assert {name: list(entries) for name, entries in on_disk().items()} == {"a": ["k249"], "b": ["k249"]}


def test_opening_removes_what_expired(path: Path, on_disk: Callable[..., dict[Any, Any]]) -> None:
    write(path, entry(PAST) + "  l:\n    value: {n: 2}\n")

    async def visit() -> None:
        async with PersistedStateStore(path):
            pass

    run(visit())

    assert list(on_disk()["c"]) == ["l"]


def test_deleting_is_a_change_with_which_the_expired_leave(
    store: PersistedStateStore, on_disk: Callable[..., dict[Any, Any]]
) -> None:
    run(store.put_many(["k", "l", "m"], [{}, {}, {}], ttl=60))
    let_expire(store, "default_collection", "k")
    store._next_expiry = store._purge_at = 0.0

    run(store.delete("m"))

    assert list(on_disk()["default_collection"]) == ["l"]


def test_looking_for_the_expired_takes_a_small_share_of_the_time(
    store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that comes right behind a look for expired entries does not look again."""
    run(store.put("k", {}, ttl=60))
    let_expire(store, "default_collection", "k")
    store._next_expiry = 0.0
    store._purge_at = time.monotonic() + 3600
    looks: list[object] = []
    monkeypatch.setattr(store, "_purge", lambda: looks.append(None))

    run(store.put("l", {}))
    store._purge_at = 0.0
    run(store.put("l", {}))

    assert len(looks) == 1


def test_a_look_for_the_expired_is_paid_for_by_a_pause(
    store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store.put("k", {}, ttl=60))
    clock = itertools.count(1000)
    monkeypatch.setattr("persistedstate_stores.key_value.time.monotonic", lambda: next(clock))

    store._purge()

    assert store._purge_at == 1001 + 100


def test_entry_that_a_person_gave_more_time_during_a_purge_stays(
    store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two records of a purge the file is looked at, and what was found to be expired may no longer be."""
    run(store.put_many(["k", "l"], [{}, {}], ttl=60))
    let_expire(store, "default_collection", "k")
    monkeypatch.setattr(store, "_expired", lambda _node, _now: ["k", "l", "gone"])

    store._purge()

    assert run(store.keys()) == ["l"]


def test_ttl_goes_on_while_the_file_is_closed(path: Path) -> None:
    async def put() -> float:
        async with PersistedStateStore(path) as store:
            await store.put("k", {"n": 1}, ttl=100)
            return time.time() + 100

    async def look() -> tuple[float, float | None]:
        async with PersistedStateStore(path) as store:
            return time.time(), (await store.ttl("k"))[1]

    expected = run(put())
    now, ttl = run(look())

    assert ttl is not None
    assert now + ttl == pytest.approx(expected, abs=5)
    assert now + ttl <= expected


# ---- The file ----


def test_file_is_readable(store: PersistedStateStore, path: Path) -> None:
    run(store.put("alice", {"visits": 3, "tags": ["a", "b"]}, collection="sessions", ttl=3600))
    created, expires = (store._opened()["sessions"]["alice"][name] for name in ("created_at", "expires_at"))

    run(store.close())

    assert path.read_text(encoding="utf-8") == (
        "sessions:\n  alice:\n    value:\n      visits: 3\n      tags:\n      - a\n      - b\n"
        f'    created_at: "{created}"\n    expires_at: "{expires}"\n'
    )
    assert dt.datetime.fromisoformat(expires) - dt.datetime.fromisoformat(created) == dt.timedelta(hours=1)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2040-01-01T00:00:00+00:00", 2208988800),
        ('"2040-01-01T00:00:00+00:00"', 2208988800),
        ("2040-01-01 00:00:00", 2208988800),
        ('"2040-01-01 00:00"', 2208988800),
        ('"2040-01-01T00:00:00Z"', 2208988800),
        ("2040-01-01T02:00:00+02:00", 2208988800),
        ("2040-01-01", 2208988800),
        ('"2040-01-01"', 2208988800),
    ],
)
def test_person_may_write_a_time_in_many_ways(path: Path, written: str, seconds: int) -> None:
    write(path, entry(written))

    async def look() -> tuple[float, float | None]:
        async with PersistedStateStore(path) as store:
            return time.time(), (await store.ttl("k", collection="c"))[1]

    now, ttl = run(look())

    assert ttl is not None
    assert now + ttl == pytest.approx(seconds, abs=5)


def test_person_may_edit_between_two_runs(path: Path) -> None:
    async def first() -> None:
        async with PersistedStateStore(path) as store:
            await store.put_many(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}], ttl=100, collection="c")

    async def second() -> list[object]:
        async with PersistedStateStore(path) as store:
            await store.put("e", {"n": 5}, collection="c")
            return [await store.ttl_many(["a", "b", "c", "d"], collection="c"), await store.collections()]

    run(first())
    edited = oracle.read(path)["c"]
    write(
        path,
        "# looked after by Ada\nc:\n  a:\n    value: {n: 0x10}   # more\n"
        f"  b:\n    value:\n      n: 2\n    expires_at: {PAST}\n  d:\n    value: {{n: 4}}\nextra: {{}}\n",
    )

    assert run(second()) == [[({"n": 16}, None), (None, None), (None, None), ({"n": 4}, None)], ["c", "extra"]]
    assert set(edited) == {"a", "b", "c"}
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        "# looked after by Ada\nc:\n  a:\n    value: {n: 0x10}   # more\n  d:\n    value: {n: 4}\n  e:\n"
    )


@pytest.mark.parametrize("how", ["rename", "in place"])
def test_person_may_edit_while_the_store_is_open(store: PersistedStateStore, path: Path, how: str) -> None:
    run(store.put_many(["a", "b"], [{"hits": 1}, {"hits": 2}], collection="c"))
    store._opened().vacuum()
    text = path.read_text(encoding="utf-8").replace("hits: 1", "hits: 100") + "  d:\n    value: {hits: 4}\n"
    if how == "rename":
        write(path.parent / "x.new", text)
        os.replace(path.parent / "x.new", path)  # noqa: PTH105 - as editors do
    else:
        write(path, text)
    store._look_at = 0.0  # as if a tenth of a second had passed

    assert run(store.get_many(["a", "b", "d"], collection="c")) == [{"hits": 100}, {"hits": 2}, {"hits": 4}]
    run(store.put("e", {"hits": 5}, collection="c"))
    assert run(store.keys("c")) == ["a", "b", "d", "e"]


def test_looking_for_edits_takes_a_small_share_of_the_time(
    store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store.put("k", {}))
    now, looks = [1000.0], 0

    def refresh(_: object) -> bool:
        nonlocal looks
        now[0] += 0.05
        looks += 1
        return False

    monkeypatch.setattr(PersistedState, "refresh", refresh)
    monkeypatch.setattr("persistedstate_stores.key_value.time.monotonic", lambda: now[0])
    store._look_at = 0.0
    for moment in (1000.0, 1000.54, 1000.56, 1001.0):
        now[0] = max(now[0], moment)
        run(store.get("k"))

    assert looks == 2


def test_person_may_shorten_a_life_while_the_store_is_open(
    store: PersistedStateStore, path: Path, on_disk: Callable[..., dict[Any, Any]]
) -> None:
    run(store.put("k", {"n": 1}, ttl=3600, collection="c"))
    expires = store._opened()["c"]["k"]["expires_at"]
    store._opened().vacuum()
    write(path, path.read_text(encoding="utf-8").replace(expires, PAST))
    store._look_at = store._purge_at = 0.0

    assert run(store.get("k", collection="c")) is None
    run(store.put("l", {"n": 2}, collection="c"))
    assert list(on_disk()["c"]) == ["l"]


@pytest.mark.parametrize("text", ["c:\n", "c: {}\n", "c:\n  k:\n", "# nothing\n", ""])
def test_person_may_remove_all_entries(path: Path, text: str) -> None:
    write(path, text)

    async def visit() -> list[object]:
        async with PersistedStateStore(path) as store:
            before = [await store.get("k", collection="c"), await store.keys("c")]
            await store.put("k", {"n": 1}, collection="c")
            return [*before, await store.get("k", collection="c")]

    with pytest.warns(RuntimeWarning, match="c → k") if "k:" in text else contextlib.nullcontext():
        assert run(visit()) == [None, [], {"n": 1}]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (entry("tomorrow"), "c → k"),
        (entry("12"), "c → k"),
        (entry(value="5"), "c → k"),
        ("c:\n  k: {n: 1}\n", "c → k"),
        ("c:\n  k: text\n", "c → k"),
    ],
)
def test_what_a_person_wrote_wrong_is_named_and_kept(path: Path, text: str, place: str) -> None:
    write(path, text)

    async def visit() -> None:
        async with PersistedStateStore(path) as store:
            with pytest.raises(DeserializationError, match=place):
                await store.get("k", collection="c")
            await store.cull()
            assert await store.keys("c") == ["k"]
            await store.put("l", {"n": 2}, collection="c")
            assert await store.get("l", collection="c") == {"n": 2}

    with pytest.warns(RuntimeWarning, match=f"no entry of the store: .*{place}"):
        run(visit())

    assert path.read_text(encoding="utf-8").startswith(text)


def test_names_without_quotes_that_are_no_strings_are_named(path: Path) -> None:
    write(path, "550: {}\nc:\n  1:\n    value: {}\n  yes: {value: {}}\n")

    async def visit() -> list[object]:
        async with PersistedStateStore(path) as store:
            return [await store.keys("c"), await store.collections(), await store.get("1", collection="c")]

    with pytest.warns(RuntimeWarning, match=r"550; .*c → 1; a name is a string") as told:
        assert run(visit()) == [["yes"], ["c"], None]
    assert [warning.filename for warning in told] == [__file__]


def test_warning_of_a_file_that_a_task_opens_points_to_what_runs_the_tasks(path: Path) -> None:
    write(path, "c:\n  1: {value: {}}\n")
    store = PersistedStateStore(path)

    async def visit() -> None:
        await asyncio.gather(store.get("k"), store.get("l"))

    with pytest.warns(RuntimeWarning, match="c → 1") as told:
        asyncio.run(visit())
    assert [warning.filename for warning in told] == [__file__]
    run(store.close())


def test_typo_refuses_the_file_with_line_and_leaves_it(path: Path) -> None:
    write(path, "c:\n  k: [1\n")

    with pytest.raises(StoreSetupError, match="line"):
        run(PersistedStateStore(path).get("k"))

    assert path.read_text(encoding="utf-8") == "c:\n  k: [1\n"


def test_other_values_at_the_top_level_are_left_alone(path: Path) -> None:
    write(path, "last_id: 7\njobs: [a]\n")

    async def visit() -> None:
        async with PersistedStateStore(path) as store:
            await store.put("k", {"n": 1}, collection="c")
            assert await store.collections() == ["c"]
            with pytest.raises(DeserializationError, match="last_id is int, not a mapping"):
                await store.put("k", {"n": 1}, collection="last_id")
            assert await store.destroy_collection("jobs") is False
            await store.destroy()

    run(visit())

    assert path.read_text(encoding="utf-8") == "last_id: 7\njobs: [a]\n"


# ---- Batches, durability ----


def test_batch_is_one_record(any_store: PersistedStateStore, path: Path) -> None:
    run(any_store.put("first", {"n": 0}))
    before = records(path)
    run(any_store.put_many(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}]))
    after_put = records(path)
    run(any_store.delete_many(["a", "b"]))

    assert (after_put - before, records(path) - after_put) == (1, 1)


def test_batch_is_whole_at_each_moment(store: PersistedStateStore, path: Path) -> None:
    run(store.put_many(["a", "b"], [{"n": 0}, {"n": 0}]))
    copies = contents_at_each_moment(path, lambda: run(store.put_many(["a", "b"], [{"n": 1}, {"n": 1}])))
    other = path.parent / "x.copy"

    async def look() -> list[object]:
        async with PersistedStateStore(other) as copy:
            return [value["n"] for value in await copy.get_many(["a", "b"]) if value is not None]

    for content in copies:
        other.write_bytes(content)
        assert run(look()) in ([0, 0], [1, 1])
    other.unlink()
    assert len(copies) > 1


def test_batch_that_was_cut_short_is_not_there(path: Path) -> None:
    async def put(keys: str) -> None:
        async with PersistedStateStore(path) as store:
            await store.put_many(list(keys), [{"n": 1} for _ in keys], collection="c")

    run(put("a"))
    state = PersistedState(path)
    run(PersistedStateStore(state=state).put_many(["b", "d"], [{"n": 1}, {"n": 1}], collection="c"))
    torn = path.read_bytes()[:-3]
    state.close()
    path.write_bytes(torn)

    with pytest.warns(RuntimeWarning, match="dropped"):
        run(put("e"))
    assert list(oracle.read(path)["c"]) == ["a", "e"]


def test_full_disk_changes_nothing(store: PersistedStateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store.put("k", {"n": 1}))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(persistedstate._system, "write", full)
        with pytest.raises(OSError, match="space"):
            run(store.put_many(["k", "l"], [{"n": 2}, {"n": 2}]))

    assert run(store.get_many(["k", "l"])) == [{"n": 1}, None]
    run(store.put("k", {"n": 3}))
    assert run(store.get("k")) == {"n": 3}


KILLED = """
    import asyncio, sys
    from persistedstate_stores.key_value import PersistedStateStore

    async def main():
        store = PersistedStateStore(sys.argv[1])
        for number in range(100_000):
            await store.put(f"k{number}", {"n": number}, collection="c", ttl=3600)
            if number % 3 == 0:
                await store.put_many([f"a{number}", f"b{number}"], [{"n": number}] * 2)
            if number % 5 == 0:
                await store.delete(f"k{number}", collection="c")
            print(number)

    asyncio.run(main())
"""


@pytest.mark.parametrize("last", [0, 1, 40, 333])
def test_acknowledged_puts_survive_kill_9(path: Path, last: int) -> None:
    async def look() -> tuple[list[Any], list[Any]]:
        async with PersistedStateStore(path) as store:
            numbers = range(last + 1)
            threes = [f"{letter}{number}" for number in numbers if number % 3 == 0 for letter in "ab"]
            return await store.ttl_many([f"k{number}" for number in numbers], collection="c"), await store.get_many(
                threes
            )

    with Child(KILLED, path) as child:
        while int(child.line()) < last:
            pass
        child.send_signal(signal.SIGKILL)

    with pytest.warns(RuntimeWarning, match="dropped") if is_torn(path) else contextlib.nullcontext():
        singles, batches = run(look())
    assert [value and value["n"] for value, _ in singles] == [n if n % 5 else None for n in range(last + 1)]
    assert all(ttl is not None and 0 < ttl <= 3600 for value, ttl in singles if value)
    assert None not in batches


def is_torn(path: Path) -> bool:
    return not path.read_bytes().endswith(b"\n")


# ---- Opening and closing ----


def test_trap_a_closed_store_opens_again(path: Path) -> None:
    store = PersistedStateStore(path)

    async def visit(number: int) -> object:
        async with store:
            before = await store.get("k")
            await store.put("k", {"n": number})
            return before

    found = [run(visit(number)) for number in range(3)]
    run(store.put("k", {"n": 9}))
    run(store.close())
    run(store.close())

    assert found == [None, {"n": 0}, {"n": 1}]
    assert oracle.read(path)["default_collection"]["k"]["value"] == {"n": 9}


def test_closed_store_lets_the_file_go(store: PersistedStateStore, path: Path) -> None:
    run(store.put("k", {"n": 1}))
    run(store.close())

    printed = run_child(
        "import sys; from persistedstate import PersistedState; print(PersistedState(sys.argv[1]))", path
    )

    assert "'n': 1" in printed


def test_state_that_was_handed_in_stays_open(path: Path) -> None:
    async def visit(state: PersistedState) -> None:
        async with PersistedStateStore(state=state, under="cache") as store:
            await store.put("k", {"n": 1}, collection="c")
        await PersistedStateStore(state=state, under="cache").close()

    with PersistedState(path, last_id=1) as state:
        run(visit(state))
        state.last_id += 1

        assert state.cache["c"]["k"]["value"] == {"n": 1}
    assert list(oracle.read(path)) == ["last_id", "cache"]


def test_closed_state_is_told(path: Path) -> None:
    state = PersistedState(path)
    store = PersistedStateStore(state=state)
    run(store.put("k", {"n": 1}))
    state.close()

    with pytest.raises(StateClosed):
        run(store.get("k"))
    with pytest.raises(StateClosed):
        run(store.put("k", {"n": 2}))
    with pytest.raises(StoreSetupError, match="closed"):
        run(PersistedStateStore(state=state).get("k"))


def test_two_stores_on_one_file_share_it(store: PersistedStateStore, path: Path) -> None:
    other = PersistedStateStore(path)
    run(store.put("k", {"n": 1}))

    assert run(other.get("k")) == {"n": 1}
    run(other.close())
    run(store.put("k", {"n": 2}))
    assert run(store.get("k")) == {"n": 2}


HOLDER = """
    import sys
    from persistedstate import PersistedState
    STATE = PersistedState(sys.argv[1], c={"k": {"value": {"n": 1}}})
    print("open")
    sys.stdin.readline()
    STATE.c["k"]["value"]["n"] = 2
    print("changed")
    sys.stdin.readline()
    STATE.close()
    print("closed")
    sys.stdin.readline()
"""


def test_trap_e_file_in_use_is_a_setup_error_with_the_pid_and_works_later(path: Path) -> None:
    store = PersistedStateStore(path)

    with Child(HOLDER, path) as child:
        child.expect("open")
        with pytest.raises(StoreSetupError, match=f"process {child.pid}") as caught:
            run(store.get("k", collection="c"))
        child.tell()
        child.expect("changed")
        child.tell()
        child.expect("closed")

        assert isinstance(caught.value.__cause__, StateLocked)
        assert run(store.get("k", collection="c")) == {"n": 2}
    run(store.close())


def test_trap_e_setup_that_fails_lets_the_file_go_and_works_when_it_was_mended(path: Path) -> None:
    write(path, "cache: 7\n")
    store = PersistedStateStore(path, under="cache")

    for _ in range(2):
        with pytest.raises(StoreSetupError, match="cache is int, not a mapping"):
            run(store.put("k", {"n": 1}))
        run_child("import sys; from persistedstate import PersistedState; PersistedState(sys.argv[1])", path)
    write(path, "cache: {}\n")
    run(store.put("k", {"n": 1}))

    assert run(store.get("k")) == {"n": 1}
    run(store.close())
    assert oracle.read(path)["cache"]["default_collection"]["k"]["value"] == {"n": 1}


def test_read_only_store_follows_a_running_writer(path: Path) -> None:
    with Child(HOLDER, path) as child:
        child.expect("open")
        store = PersistedStateStore(path, _readonly=True)
        before = run(store.get("k", collection="c"))
        child.tell()
        child.expect("changed")
        store._look_at = 0.0

        assert (before, run(store.get("k", collection="c"))) == ({"n": 1}, {"n": 2})
        with pytest.raises(StateReadOnly):
            run(store.put("k", {"n": 3}, collection="c"))
        run(store.close())


def test_read_only_store_hides_the_expired_and_leaves_them(path: Path) -> None:
    write(path, entry(PAST))
    store = PersistedStateStore(path, _readonly=True)

    assert run(store.get("k", collection="c")) is None
    assert run(store.keys("c")) == []
    run(store.close())
    assert path.read_text(encoding="utf-8") == entry(PAST)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ValueError),
        ({"path": "x", "state": "y"}, ValueError),
        ({"path": "x", "max_entries_per_collection": 0}, ValueError),
        ({"path": "x", "fsync": True}, TypeError),
        ({"state": "y", "_fsync": True}, TypeError),
        ({"path": "x", "seed": {}}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        PersistedStateStore(**arguments)


def test_options_reach_the_state(path: Path) -> None:
    store = PersistedStateStore(path, _mode=0o600, _fsync=True)

    run(store.put("k", {"n": 1}))

    assert path.stat().st_mode & 0o777 == 0o600
    run(store.close())


def test_trap_c_no_seed_is_offered_that_would_overwrite_what_was_persisted() -> None:
    assert "seed" not in inspect.signature(PersistedStateStore).parameters


def test_trap_d_store_does_not_call_itself_unstable(path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        PersistedStateStore(path)

    assert told == []


def test_trap_h_private_module_has_the_entry_that_the_base_class_takes() -> None:
    """Were it to move, only this package's import of it had to follow."""
    hints = typing.get_type_hints(BaseStore._put_managed_entry)

    assert hints["managed_entry"] is vars(adapter)["ManagedEntry"]


def test_neither_the_module_nor_the_package_imports_the_framework() -> None:
    printed = run_child(
        """
        import sys
        import persistedstate, persistedstate_stores
        print([name for name in sys.modules if name.startswith(("key_value", "asyncio", "beartype"))])
        """
    )

    assert printed.strip() == "[]"


def test_without_the_framework_the_error_tells_what_to_install() -> None:
    assert "py-key-value-aio<0.6" in told_without("key_value")


# ---- Limit ----


def test_limit_removes_those_that_were_put_first(path: Path) -> None:
    store = PersistedStateStore(path, max_entries_per_collection=3)
    for key in "abc":
        run(store.put(key, {}))
    run(store.put("a", {"again": 1}))
    run(store.put("d", {}))
    run(store.put("x", {}, collection="other"))

    assert run(store.keys()) == ["c", "a", "d"]
    run(store.put_many(list("vwxyz"), [{}] * 5))
    assert run(store.keys()) == ["x", "y", "z"]
    run(store.put_many(list("vwxyz"), [{}] * 5, collection="new"))
    assert run(store.keys("new")) == ["x", "y", "z"]
    run(store.close())


def test_names_of_collections_that_were_only_asked_for_are_not_kept(store: PersistedStateStore) -> None:
    for number in range(100):
        run(store.get("k", collection=f"c{number}"))

    assert run(store.collections()) == []
    assert len(store._setup_collection_complete) == 0


def test_limit_and_put_are_one_record(path: Path) -> None:
    store = PersistedStateStore(path, max_entries_per_collection=1)
    run(store.put("a", {}))
    before = records(path)

    run(store.put("b", {}))

    assert records(path) == before + 1
    run(store.close())


# ---- Concurrency ----


def test_many_tasks_at_once(store: PersistedStateStore) -> None:
    async def work() -> list[Any]:
        await asyncio.gather(*(store.put(f"k{number}", {"n": number}, ttl=60) for number in range(200)))
        await asyncio.gather(*(store.delete(f"k{number}") for number in range(0, 200, 2)))
        return await asyncio.gather(*(store.get(f"k{number}") for number in range(200)))

    assert run(work()) == [{"n": number} if number % 2 else None for number in range(200)]


def test_tasks_may_open_the_store_at_once(path: Path) -> None:
    async def work() -> list[bool]:
        async with PersistedStateStore(path) as store:
            return await asyncio.gather(*(store.put(f"k{number}", {}) for number in range(20)), store.delete("x"))

    assert run(work())[-1] is False
    assert len(oracle.read(path)["default_collection"]) == 20


@pytest.mark.stress
def test_several_threads_with_their_own_event_loops(path: Path) -> None:
    """They open it at the same time, too: the base class's own lock belongs to one loop."""
    store = PersistedStateStore(path)

    async def work(letter: str) -> None:
        for number in range(100):
            await store.put_many([f"{letter}{number}", f"{letter}'{number}"], [{"n": number}] * 2, collection=letter)
            await store.put(letter, {"n": number}, collection="shared")
            await store.delete(f"{letter}'{number}", collection=letter)
            assert await store.get(f"{letter}{number}", collection=letter) == {"n": number}

    together(*(lambda letter=letter: run(work(letter)) for letter in "abcd"))
    assert {name: len(run(store.keys(name))) for name in [*"abcd", "shared"]} == dict.fromkeys("abcd", 100) | {
        "shared": 4
    }
    run(store.close())


# ---- On top of it: their wrappers and adapters ----

WRAPPERS: dict[str, Callable[[Any], Any]] = {}


def wrapper(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    WRAPPERS[function.__name__] = function
    return function


@wrapper
def compression(store: Any) -> Any:
    from key_value.aio.wrappers.compression import CompressionWrapper

    return CompressionWrapper(store, min_size_to_compress=1)


@wrapper
def default_value(store: Any) -> Any:
    from key_value.aio.wrappers.default_value import DefaultValueWrapper

    return DefaultValueWrapper(store, default_value={"default": True})


@wrapper
def encryption(store: Any) -> Any:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from key_value.aio.wrappers.encryption.fernet import FernetEncryptionWrapper

    return FernetEncryptionWrapper(store, source_material="secret", salt="salt")


@wrapper
def fallback(store: Any) -> Any:
    from key_value.aio.stores.memory import MemoryStore
    from key_value.aio.wrappers.fallback import FallbackWrapper

    return FallbackWrapper(primary_key_value=store, fallback_key_value=MemoryStore())


@wrapper
def limit_size(store: Any) -> Any:
    from key_value.aio.wrappers.limit_size import LimitSizeWrapper

    return LimitSizeWrapper(store, max_size=10_000)


@wrapper
def logged(store: Any) -> Any:
    from key_value.aio.wrappers.logging import LoggingWrapper

    return LoggingWrapper(store, logger=logging.getLogger("store"), log_values=True)


@wrapper
def passthrough_cache(store: Any) -> Any:
    from key_value.aio.stores.memory import MemoryStore
    from key_value.aio.wrappers.passthrough_cache import PassthroughCacheWrapper

    return PassthroughCacheWrapper(primary_key_value=store, cache_key_value=MemoryStore())


@wrapper
def as_the_cache(store: Any) -> Any:
    from key_value.aio.stores.memory import MemoryStore
    from key_value.aio.wrappers.passthrough_cache import PassthroughCacheWrapper

    return PassthroughCacheWrapper(primary_key_value=MemoryStore(), cache_key_value=store)


@wrapper
def prefix_collections(store: Any) -> Any:
    from key_value.aio.wrappers.prefix_collections import PrefixCollectionsWrapper

    return PrefixCollectionsWrapper(store, prefix="app")


@wrapper
def prefix_keys(store: Any) -> Any:
    from key_value.aio.wrappers.prefix_keys import PrefixKeysWrapper

    return PrefixKeysWrapper(store, prefix="app")


@wrapper
def retry(store: Any) -> Any:
    from key_value.aio.wrappers.retry import RetryWrapper

    return RetryWrapper(store)


@wrapper
def routing(store: Any) -> Any:
    from key_value.aio.stores.memory import MemoryStore
    from key_value.aio.wrappers.routing import RoutingWrapper

    return RoutingWrapper(
        routing_function=lambda collection: store if collection == "c" else None, default_store=MemoryStore()
    )


@wrapper
def collection_routing(store: Any) -> Any:
    from key_value.aio.stores.memory import MemoryStore
    from key_value.aio.wrappers.routing import CollectionRoutingWrapper

    return CollectionRoutingWrapper(collection_map={"c": store}, default_store=MemoryStore())


@wrapper
def single_collection(store: Any) -> Any:
    from key_value.aio.wrappers.single_collection import SingleCollectionWrapper

    return SingleCollectionWrapper(store, single_collection="all")


@wrapper
def statistics(store: Any) -> Any:
    from key_value.aio.wrappers.statistics import StatisticsWrapper

    return StatisticsWrapper(store)


@wrapper
def limited_time(store: Any) -> Any:
    from key_value.aio.wrappers.timeout import TimeoutWrapper

    return TimeoutWrapper(store, timeout=60.0)


@wrapper
def ttl_clamp(store: Any) -> Any:
    from key_value.aio.wrappers.ttl_clamp import TTLClampWrapper

    return TTLClampWrapper(store, min_ttl=10, max_ttl=1000)


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapper_works_on_top(store: PersistedStateStore, make: Callable[[Any], Any]) -> None:
    async def work() -> None:
        wrapped = make(store)
        await wrapped.put("k", VALUE, collection="c")
        await wrapped.put("t", VALUE, collection="c", ttl=100)
        await wrapped.put_many(["a", "b"], [{"n": 1}, {"n": 2}], collection="c", ttl=100)
        assert await wrapped.get("k", collection="c") == VALUE
        value, ttl = await wrapped.ttl("t", collection="c")
        assert value == VALUE
        assert 0 < ttl <= 100
        assert await wrapped.get_many(["b", "a"], collection="c") == [{"n": 2}, {"n": 1}]
        assert [value for value, _ in await wrapped.ttl_many(["a"], collection="c")] == [{"n": 1}]
        assert await wrapped.delete("k", collection="c") is True
        assert await wrapped.delete("k", collection="c") is False
        assert await wrapped.delete_many(["a", "k"], collection="c") == 1
        assert await wrapped.get("k", collection="c") in (None, {"default": True})

    run(work())
    if make is not as_the_cache:
        assert [len(entries) for entries in store._opened().values()] == [2]


def test_every_wrapper_of_theirs_is_tried() -> None:
    import key_value.aio.wrappers as theirs

    folders = {
        name
        for folder in theirs.__path__
        for name in os.listdir(folder)  # noqa: PTH208 - names
        if os.path.isdir(os.path.join(folder, name)) and not name.startswith("_")  # noqa: PTH112, PTH118 - names
    }

    assert folders <= {*WRAPPERS, "logging", "timeout", "read_only"}


def test_read_only_wrapper_writes_nothing(store: PersistedStateStore) -> None:
    from key_value.aio.wrappers.read_only import ReadOnlyWrapper

    run(store.put("k", {"n": 1}))

    with pytest.raises(ReadOnlyError):
        run(ReadOnlyWrapper(store).put("k", {"n": 2}))
    assert run(ReadOnlyWrapper(store).get("k")) == {"n": 1}


def test_encrypted_text_is_not_in_the_file(store: PersistedStateStore, path: Path) -> None:
    run(encryption(store).put("k", {"secret": "Rosebud"}))
    run(store.close())

    assert "Rosebud" not in path.read_text(encoding="utf-8")
    assert run(encryption(store).get("k")) == {"secret": "Rosebud"}


def test_missing_key_raises_with_their_adapter(store: PersistedStateStore) -> None:
    pytest.importorskip("pydantic", reason="pydantic is not installed")  # their package of adapters imports it
    from key_value.aio.adapters.raise_on_missing import RaiseOnMissingAdapter

    run(store.put("k", {"n": 1}))

    assert run(RaiseOnMissingAdapter(store).get("k", raise_on_missing=True)) == {"n": 1}
    with pytest.raises(MissingKeyError):
        run(RaiseOnMissingAdapter(store).get("l", raise_on_missing=True))


def test_models_are_stored_with_their_adapter(store: PersistedStateStore, path: Path) -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    from key_value.aio.adapters.pydantic import PydanticAdapter

    model = pydantic.create_model("Token", owner=(str, ...), at=(dt.datetime, ...), scopes=(set[str], set()))
    token = model(owner="ada", at=dt.datetime(2024, 5, 1, tzinfo=dt.timezone.utc), scopes={"a"})
    adapter: Any = PydanticAdapter(key_value=store, pydantic_model=model)

    run(adapter.put("k", token, ttl=60))

    assert run(adapter.get("k")) == token
    assert oracle.read(path)["default_collection"]["k"]["value"]["owner"] == "ada"
