"""Copying between a state file and the other stores, against real servers where they are installed."""

from __future__ import annotations

import datetime as dt
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import reopened
from processes import PATIENCE, Child

from persistedstate import PersistedState

pytest.importorskip("key_value.aio", reason="py-key-value-aio is not installed")

from key_value.aio.stores.memory import MemoryStore
from key_value.aio.wrappers.base import BaseWrapper
from key_value.aio.wrappers.prefix_keys import PrefixKeysWrapper
from key_value.aio.wrappers.ttl_clamp import TTLClampWrapper

from persistedstate_stores.__main__ import main
from persistedstate_stores.copy import Copied, CopyError, _memcached_keys, copy, list_names, open_store
from persistedstate_stores.key_value import PersistedStateStore

from .conftest import run
from .servers import KINDS, QUOTED, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.leaves("files", "threads")  # clients keep threads until the process ends

#: The libraries below ValkeyStore and FileTreeStore keep a few descriptors, too.
RUNTIMES_STAY = pytest.mark.leaves("files", "threads", "descriptors")

SAMPLE: dict[str, dict[str, Any]] = {
    "sessions": {
        "alice": {"text": "é\n\x85😀", "list": [1, 2.5, None, True, {"a": []}], "z": 1, "a": 2},
        "1": {"is": "a string"},
        "null": {},
        "b.c-d_e": {"n": -0.0, "large": 2**60},
    },
    "default_collection": {f"k{number}": {"n": number} for number in range(101)},
}
#: Seconds that some entries live.
LIVES = {"alice": 5000.5, "k7": 90.0, "k9": 40 * 86_400.0}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamoDB's client wants some, and must not look for them on this machine."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistedstate_stores.copy._PAUSE", 0.0)


@pytest.fixture(params=KINDS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty store of each kind; its server runs during the test."""
    with running(request.param, tmp_path) as address:
        yield address


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A state file with the sample."""
    path = tmp_path / "source.state"

    async def fill() -> None:
        async with PersistedStateStore(path) as store:
            await fill_store(store)

    run(fill())
    return path


async def fill_store(store: Any) -> None:
    for collection, entries in SAMPLE.items():
        await store.put_many(list(entries), list(entries.values()), collection=collection)
        for key in LIVES.keys() & entries.keys():
            await store.put(key, entries[key], collection=collection, ttl=LIVES[key])


def expiries(path: Path) -> dict[str, str | None]:
    state = oracle.read(path)
    return {key: entry.get("expires_at") for entries in state.values() for key, entry in entries.items()}


def values(path: Path) -> dict[str, Any]:
    state = oracle.read(path)
    return {name: {key: entry["value"] for key, entry in entries.items()} for name, entries in state.items()}


def in_order(value: Any) -> Any:
    """Return a value with its keys sorted, all the way down."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(item) for item in value] if isinstance(value, list) else value


TOTAL = sum(map(len, SAMPLE.values()))


@RUNTIMES_STAY
def test_everything_goes_there_and_back(source: Path, tmp_path: Path, address: str) -> None:
    back = tmp_path / "back.state"

    there = run(copy(source, address))
    again = run(copy(source, address))
    home = run(copy(address, back))

    assert (there, again, home) == (Copied(TOTAL, TOTAL, 2), Copied(TOTAL, 0, 2), Copied(TOTAL, TOTAL, 2))
    assert oracle.same(in_order(values(back)), in_order(SAMPLE))  # a server may enumerate in another order
    before, after = expiries(source), expiries(back)
    assert {key for key, when in after.items() if when} == set(LIVES)
    for key in LIVES:
        assert abs(seconds(before[key]) - seconds(after[key])) <= 3


def seconds(when: str | None) -> float:
    assert when is not None
    return dt.datetime.fromisoformat(when).timestamp()


@RUNTIMES_STAY
def test_more_than_a_server_tells_at_once_goes_there_and_back(path: Path, tmp_path: Path, address: str) -> None:
    """A page is 1 MB in DynamoDB, some hundred entries elsewhere."""
    with PersistedState(path) as state:
        state["c"] = {f"k{number}": {"value": {"text": f"{number:04}" * 1000}} for number in range(450)}

    assert run(copy(path, address)) == Copied(450, 450, 1)
    assert run(copy(address, tmp_path / "back.state")) == Copied(450, 450, 1)


@RUNTIMES_STAY
def test_changed_entries_are_copied_again_and_those_of_the_target_stay(source: Path, address: str) -> None:
    run(copy(source, address))
    with PersistedState(source) as state:
        state["sessions"]["1"]["value"] = {"is": "another"}
        state["sessions"]["new"] = {"value": {"n": True}}
        del state["sessions"]["null"]

    async def look() -> list[Any]:
        store = open_store(address)
        found = await store.get_many(["1", "new", "null"], collection="sessions")
        if hasattr(store, "close"):
            await store.close()
        return found

    assert run(copy(source, address)) == Copied(TOTAL, 2, 2)
    assert run(look()) == [{"is": "another"}, {"n": True}, {}]


def test_numbers_and_truths_are_told_apart() -> None:
    source, target = MemoryStore(), MemoryStore()
    for store, value in [(source, {"n": True, "m": 1.0}), (target, {"n": 1, "m": 1})]:
        run(store.put("k", value))

    assert run(copy(source, target)) == Copied(1, 1, 1)
    assert repr(run(target.get("k"))) == "{'m': 1.0, 'n': True}"


def test_memory_is_copied_beyond_the_page_of_its_names(path: Path) -> None:
    store = MemoryStore()
    keys = [f"k{number}" for number in range(10_050)]
    run(store.put_many(keys, [{"n": 1} for _ in keys]))

    assert run(copy(store, path)) == Copied(10_050, 10_050, 1)
    assert len(reopened(path)["default_collection"]) == 10_050


def test_expired_entries_are_not_copied(source: Path, path: Path) -> None:
    with PersistedState(source) as state:
        state["sessions"]["alice"]["expires_at"] = "2001-01-01T00:00:00+00:00"

    assert run(copy(source, path)) == Copied(TOTAL - 1, TOTAL - 1, 2)
    assert "alice" not in reopened(path)["sessions"]


def test_entry_that_is_about_to_expire_is_not_copied(path: Path) -> None:
    """Most stores count whole seconds: they would keep it too long, or refuse it."""
    soon = dt.datetime.fromtimestamp(time.time() + 0.9, tz=dt.timezone.utc)
    with PersistedState(path) as state:
        state["c"] = {"soon": {"value": {}, "expires_at": soon.isoformat()}, "later": {"value": {}}}

    assert run(copy(path, MemoryStore())) == Copied(1, 1, 1)


def test_entry_that_is_about_to_expire_lives_for_a_second_in_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero or less would be an error, or for ever."""
    clock = time.time()
    lives: list[Any] = []
    monkeypatch.setattr("persistedstate_stores.copy.time.time", lambda: clock)

    class Source(BaseWrapper):
        key_value: Any = MemoryStore()

        async def ttl_many(self, keys: Any, *, collection: str | None = None) -> Any:  # noqa: ARG002
            return [({"n": 1}, 1.0) for _ in keys] if not lives else [(None, None) for _ in keys]

    class Slow(BaseWrapper):
        key_value: Any = MemoryStore()

        async def ttl_many(self, keys: Any, *, collection: str | None = None) -> Any:  # noqa: ARG002
            nonlocal clock
            clock += 5
            return [(None, None) for _ in keys]

        async def put(self, key: str, value: Any, *, collection: str | None = None, ttl: Any = None) -> None:  # noqa: ARG002
            lives.append(ttl)

    run(copy(Source(), Slow(), names={"c": ["k"]}))

    assert lives == [1.0]


def test_store_that_cannot_tell_its_names_is_refused_until_they_are_given(path: Path) -> None:
    store: Any = PrefixKeysWrapper(MemoryStore(), prefix="app")
    run(store.put("k", {"n": 1}, collection="c"))

    with pytest.raises(CopyError, match="names="):
        run(copy(store, path))
    assert run(copy(store, path, names={"c": ["k", "k", "missing"]})) == Copied(1, 1, 1)


class Paged(BaseWrapper):
    """A store that enumerates in the public way only."""

    def __init__(self, key_value: MemoryStore) -> None:
        self.key_value: Any = key_value

    async def collections(self, *, limit: int | None = None) -> list[str]:
        found: list[str] = await self.key_value.collections(limit=limit)
        return found

    async def keys(self, collection: str | None = None, *, limit: int | None = None) -> list[str]:
        found: list[str] = await self.key_value.keys(collection, limit=limit)
        return found


def test_store_that_lists_only_a_page_of_its_names_is_copied_up_to_there(path: Path) -> None:
    store = MemoryStore()
    run(store.put_many([f"k{number}" for number in range(9_999)], [{}] * 9_999))

    assert run(copy(Paged(store), path)).entries == 9_999
    run(store.put("k9999", {}))
    with pytest.raises(CopyError, match="lists 10000 keys at most"):
        run(copy(Paged(store), path))


def test_memcached_lists_all_keys_while_it_moves_them(tmp_path: Path) -> None:
    """As it does a moment after they were written or read."""
    pytest.importorskip("aiomcache", reason="aiomcache is not installed")
    keys = [b"k%d" % number for number in range(105)]
    with running("memcached", tmp_path) as address:
        host, port = address.removeprefix("memcached://").split(":")
        with socket.create_connection((host, int(port))) as connection, connection.makefile("rwb") as stream:
            for _ in range(300):
                for key in keys:
                    stream.write(b"set %s 0 0 20\r\n%s\r\n" % (key, b"x" * 20))
                stream.write(b"get %s\r\n" % b" ".join(keys[:100]))
                stream.flush()
                assert [stream.readline() for _ in keys] == [b"STORED\r\n"] * len(keys)
                assert sum(line == b"x" * 20 + b"\r\n" for line in iter(stream.readline, b"END\r\n")) == 100

                assert len(run(_memcached_keys(host, int(port)))) == len(keys)


def test_server_that_is_no_memcached_is_told(tmp_path: Path, path: Path) -> None:
    pytest.importorskip("aiomcache", reason="aiomcache is not installed")
    with running("redis", tmp_path) as address, pytest.raises(CopyError, match="memcached does not list its keys"):
        run(copy(address.replace("redis:", "memcached:").removesuffix("/3"), path))


def test_entry_that_shows_a_moment_later_is_no_failure(source: Path) -> None:
    """As in DynamoDB, whose reads may be a moment old."""

    class Late(BaseWrapper):
        def __init__(self) -> None:
            self.key_value: Any = MemoryStore()
            self.left = 2

        async def ttl_many(self, keys: Any, *, collection: str | None = None) -> Any:
            self.left -= "k0" in keys
            found = await self.key_value.ttl_many(keys, collection=collection)
            return found if self.left < 0 else [(None, None) for _ in found]

    assert run(copy(source, Late())) == Copied(TOTAL, TOTAL, 2)


def test_entries_of_other_programs_in_redis_are_left_alone(tmp_path: Path, path: Path) -> None:
    redis = pytest.importorskip("redis", reason="redis is not installed")
    with running("redis", tmp_path) as address:
        client = redis.Redis.from_url(address)
        client.set("job", "text")
        client.set("json", '{"a": 1}')
        client.rpush("list", "1")
        client.close()
        run(copy_one(address))

        assert run(copy(address, path)) == Copied(1, 1, 1)
    assert list(reopened(path)) == ["c"]


async def copy_one(address: str) -> None:
    store: Any = open_store(address)
    async with store:
        await store.put("k*[?]", {"n": 1}, collection="c")


def test_two_names_that_the_target_takes_for_one_are_told(tmp_path: Path, path: Path) -> None:
    """Redis knows `collection::key` only."""
    with PersistedState(path) as state:
        state["a"] = {"b::c": {"value": {"n": 1}}}
        state["a::b"] = {"c": {"value": {"n": 2}}}

    with running("redis", tmp_path) as address, pytest.raises(CopyError, match=r"a → b::c.*two names for one"):
        run(copy(path, address))


def test_target_that_shortens_lives_is_told(source: Path) -> None:
    target: Any = TTLClampWrapper(MemoryStore(), min_ttl=1, max_ttl=10)

    with pytest.raises(CopyError, match="3 of 105 entries are not in the target"):
        run(copy(source, target))


@RUNTIMES_STAY
def test_entry_that_cannot_be_written_is_named_and_the_copy_goes_on_later(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiofile", reason="aiofile, which FileTreeStore needs, is not installed")
    with PersistedState(path) as state:
        state["c"] = {
            "first": {"value": {}},
            "x" * 300: {"value": {}, "expires_at": "2999-01-01"},
            "last": {"value": {}},
        }

    with pytest.raises(CopyError, match=r"cannot copy c → xxx.*OSError"):
        run(copy(path, f"filetree:{tmp_path}/tree"))
    with PersistedState(path) as state:
        del state["c"]["x" * 300]

    assert run(copy(path, f"filetree:{tmp_path}/tree")) == Copied(2, 1, 1)


@RUNTIMES_STAY
def test_sanitized_names_of_files_are_refused(tmp_path: Path, path: Path) -> None:
    pytest.importorskip("aiofile", reason="aiofile, which FileTreeStore needs, is not installed")
    from key_value.aio.stores.filetree import FileTreeStore, FileTreeV1KeySanitizationStrategy

    strategy = FileTreeV1KeySanitizationStrategy(tmp_path)
    store = FileTreeStore(data_directory=tmp_path / "tree", key_sanitization_strategy=strategy)
    run(store.put("a/b", {"n": 1}))

    with pytest.raises(CopyError, match="changed the name"):
        run(copy(store, path))
    assert run(copy(store, path, names={"default_collection": ["a/b"]})) == Copied(1, 1, 1)


def test_value_that_a_person_wrote_and_that_is_no_json_is_named(path: Path) -> None:
    path.write_text("c:\n  good:\n    value: {a: 1}\n  bad:\n    value: {when: 2024-05-01}\n", encoding="utf-8")
    target = MemoryStore()
    run(target.put("bad", {"when": "before"}, collection="c"))

    with pytest.raises(CopyError, match="cannot copy c → bad: SerializationError"):
        run(copy(path, target))
    assert run(target.get("good", collection="c")) == {"a": 1}


def test_progress_tells_stage_and_numbers(source: Path) -> None:
    told: list[tuple[str, int, int]] = []

    run(copy(source, MemoryStore(), progress=lambda *what: told.append(what)))

    stages = ["copying", "reading back"]
    assert [step for step in told if step[1] == TOTAL] == [(stage, TOTAL, TOTAL) for stage in stages]
    assert [step[0] for step in told] == [stage for stage in stages for _ in range(len(told) // 2)]
    assert [step[1] for step in told[: len(told) // 2]] == [0, 4, 104, 105]


# ---- What is no store, or does not answer ----


@pytest.mark.filterwarnings("ignore:no entry of the store:RuntimeWarning")
@pytest.mark.parametrize("text", ["last_id: 41\nprocessed: [a]\n", "last_id: 41\n", "entities: {a: {state: paid}}\n"])
def test_file_that_is_no_store_is_refused_and_no_target_made(path: Path, tmp_path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

    with pytest.raises(CopyError, match=r"x.state holds no entries; FILE#KEY names .*pystator\+redis"):
        run(copy(path, tmp_path / "target.state"))
    assert not (tmp_path / "target.state").exists()


def test_empty_store_is_one(path: Path, tmp_path: Path) -> None:
    PersistedState(path).close()

    assert run(copy(path, tmp_path / "target.state")) == Copied(0, 0, 0)


def down(kind: str, tmp_path: Path) -> str:
    """Return an address at which no server is."""
    pytest.importorskip(KINDS[kind].client, reason=f"{KINDS[kind].client} is not installed")
    return KINDS[kind].address.format(port=free_port(), folder=tmp_path, unique="x")


SERVERS = [kind for kind in KINDS if KINDS[kind].program]


@RUNTIMES_STAY
@pytest.mark.parametrize("kind", SERVERS)
def test_server_that_is_down_is_named_and_no_key_is_blamed(source: Path, tmp_path: Path, kind: str) -> None:
    address, other = down(kind, tmp_path), tmp_path / "other.state"

    for pair in (source, address), (address, other):
        with pytest.raises(CopyError, match=f"^{kind}.* does not answer: ") as caught:
            run(copy(*pair))
        assert QUOTED not in str(caught.value)
        assert "k0" not in str(caught.value)
    assert not other.exists()


def test_server_that_is_down_is_named_also_where_nothing_is_to_be_copied(path: Path, tmp_path: Path) -> None:
    PersistedState(path).close()

    with pytest.raises(CopyError, match=r"^redis://.* does not answer: "):
        run(copy(path, down("redis", tmp_path)))


def test_server_that_goes_down_in_the_middle_is_named(source: Path, tmp_path: Path) -> None:
    redis = pytest.importorskip("redis", reason="redis is not installed")
    with running("redis", tmp_path) as address:

        def end(_stage: str, done: int, _total: int) -> None:
            if done:
                client = redis.Redis.from_url(address)
                client.shutdown(nosave=True)
                client.close()

        with pytest.raises(CopyError, match=r"^redis://:….* does not answer: ConnectionError"):
            run(copy(source, address, progress=end))


@pytest.mark.parametrize(("text", "seconds"), [("", 5), ("?serverSelectionTimeoutMS=700", 0.7)])
def test_mongodb_may_take_5_seconds_to_answer_or_what_the_address_says(text: str, seconds: float) -> None:
    pytest.importorskip("pymongo", reason="pymongo is not installed")
    store: Any = open_store(f"mongodb://localhost/database{text}")

    assert store._client.options.server_selection_timeout == seconds


def test_names_are_listed_by_collection(source: Path) -> None:
    store = PersistedStateStore(source, _readonly=True)

    assert run(list_names(store)) == {name: list(entries) for name, entries in SAMPLE.items()}
    run(store.close())


# ---- Killed and started again ----

SLOW_COPY = """
    import asyncio, sys
    from key_value.aio.wrappers.base import BaseWrapper
    from persistedstate_stores.copy import copy, open_store

    class Told(BaseWrapper):
        def __init__(self, store):
            self.key_value = store

        async def put_many(self, keys, values, **options):
            await super().put_many(keys, values, **options)
            print(len(keys))
            sys.stdin.readline()

    asyncio.run(copy(sys.argv[1], Told(open_store(sys.argv[2]))))
"""


@pytest.mark.parametrize("kind", ["state", "disk", "redis"])
def test_killed_copy_goes_on_where_it_was(path: Path, tmp_path: Path, kind: str) -> None:
    entries = {f"k{number}": {"value": {"n": number}} for number in range(1000)}
    with PersistedState(path) as state:
        state["c"] = entries

    with running(kind, tmp_path) as address:
        with Child(SLOW_COPY, path, address) as child:
            for _ in range(3):
                child.expect("100")
                child.tell()
            child.expect("100")
            child.send_signal(signal.SIGKILL)
        resumed = run(copy(path, address))
        again = run(copy(path, address))

    assert resumed == Copied(1000, 600, 1)
    assert again == Copied(1000, 0, 1)


# ---- Command line ----


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "persistedstate_stores", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"}


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_command_copies_and_shows_no_bar_in_a_file(source: Path, path: Path) -> None:
    done = call("copy", source, path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "105 entries in 2 collections, 105 of them written, all read back from the target\n"
    assert values(path) == SAMPLE


@RUNTIMES_STAY
def test_command_says_nothing_but_its_result(source: Path, address: str) -> None:
    """Neither what the frameworks tell developers."""
    done = call("copy", source, address)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "105 entries in 2 collections, 105 of them written, all read back from the target\n"


def test_command_tells_what_is_no_entry(path: Path, tmp_path: Path) -> None:
    path.write_text("c:\n  k: {value: {n: 1}}\n  1: {value: {n: 2}}\n", encoding="utf-8")

    done = call("copy", path, tmp_path / "target.state")

    assert done.returncode == 0
    assert re.fullmatch(r"warning: no entry of the store: .* c → 1; .*\n", done.stderr)


def test_command_shows_a_bar_on_a_terminal(source: Path, path: Path) -> None:
    process, terminal = on_terminal("copy", source, path)

    shown = everything(terminal)

    assert process.wait(PATIENCE) == 0
    assert "\r     copying [" + "#" * 40 + "] 105/105 " in shown
    assert "\rreading back [" + "#" * 40 + "] 105/105 \r\n" in shown


@RUNTIMES_STAY
def test_command_can_be_interrupted_and_goes_on(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiofile", reason="aiofile, which FileTreeStore needs, is not installed")
    with PersistedState(path) as state:
        state["c"] = {f"k{number}": {"value": {"n": number}} for number in range(300)}
    target = f"filetree:{tmp_path}/tree"

    process, terminal = on_terminal("copy", path, target)
    shown = ""
    while " 100/300" not in shown:
        shown += os.read(terminal, 4096).decode()
    process.send_signal(signal.SIGINT)
    shown += everything(terminal)

    assert process.wait(PATIENCE) == 130
    assert "stopped; run it again to go on" in shown
    resumed = run(copy(path, target))
    assert resumed.entries == 300
    assert 0 < resumed.written <= 200


def on_terminal(*arguments: object) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command with a terminal as its stderr; return it with the other side of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    return process, ours


def everything(terminal: int) -> str:
    """Return what is still to be shown, and close the terminal."""
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux tells so that the other side was closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    return shown.decode()


def test_command_creates_no_source(tmp_path: Path) -> None:
    done = call("copy", tmp_path / "missing.state", tmp_path / "target.state")

    assert done.returncode == 1
    assert "missing.state" in done.stderr
    assert list(tmp_path.glob("missing*")) == []


HOLDER = """
    import sys
    from persistedstate import PersistedState
    STATE = PersistedState(sys.argv[1], c={})
    STATE.c["k"] = {"value": {"n": 1}}
    print("open")
    sys.stdin.readline()
"""


def test_source_may_be_in_use_and_the_target_must_not(path: Path, tmp_path: Path) -> None:
    with Child(HOLDER, path) as child:
        child.expect("open")

        out, into = call("copy", path, tmp_path / "other.state"), call("copy", tmp_path / "other.state", path)

        assert (out.returncode, into.returncode) == (0, 1)
        assert out.stdout.startswith("1 entries in 1 collections, 1 of them written")
        assert f"process {child.pid}" in into.stderr
        assert "Traceback" not in into.stderr


def test_command_tells_by_its_exit_code(source: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", str(source), str(path)]) == 0
    assert main(["copy", str(source) + ".missing", str(path)]) == 1

    out, err = capsys.readouterr()
    assert out.startswith("105 entries")
    assert err.startswith("error: ")


def test_command_without_the_framework_tells_what_to_install(source: Path, path: Path) -> None:
    without = "import sys; sys.modules['key_value'] = None"
    code = f"{without}; from persistedstate_stores.__main__ import main; sys.exit(main())"

    done = subprocess.run(
        [sys.executable, "-c", code, "copy", source, path],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr == "error: this store needs py-key-value-aio: pip install 'py-key-value-aio<0.6'\n"


def test_command_explains_itself() -> None:
    done = call("copy", "--help")

    assert done.returncode == 0
    assert [name for name in ["copy", "source", "target", "redis://", "disk:FOLDER"] if name not in done.stdout] == []


# ---- Addresses ----


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # 0.4.4's DynamoDB
@pytest.mark.parametrize(
    ("text", "name", "client"),
    [
        ("x.state", "PersistedStateStore", "persistedstate"),
        ("redis://localhost:1/2", "RedisStore", "redis"),
        ("rediss://localhost:1/2", "RedisStore", "redis"),
        ("valkey://user:word@localhost:1/2", "ValkeyStore", "glide"),
        ("memcached://localhost", "MemcachedStore", "aiomcache"),
        ("dynamodb://table?region_name=eu-central-1", "DynamoDBStore", "aiobotocore"),
        ("mongodb://localhost/database", "MongoDBStore", "pymongo"),
        ("elasticsearch+http://localhost:9200/prefix", "ElasticsearchStore", "elasticsearch"),
        ("disk:folder", "DiskStore", "diskcache"),
        ("filetree:folder", "FileTreeStore", "aiofile"),
    ],
)
def test_address_names_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, client: str
) -> None:
    pytest.importorskip(client, reason=f"{client} is not installed")
    monkeypatch.chdir(tmp_path)

    store: Any = open_store(text)

    assert type(store).__name__ == name


@pytest.mark.parametrize("name", ["app.state", "a#b.state"])
def test_address_names_a_key_of_a_file(tmp_path: Path, name: str) -> None:
    file, other = tmp_path / name, tmp_path / "other.state"
    file.write_text("retries: 3  # at most\ncache:\n  c:\n    k: {value: {n: 1}}\n", encoding="utf-8")
    before = oracle.read(file)

    assert run(copy(f"{file}#cache", other)) == Copied(1, 1, 1)
    assert run(copy(other, f"{file}#more")) == Copied(1, 1, 1)
    assert run(copy(f"{file}#more", f"{file}#cache")) == Copied(1, 0, 1)

    assert values(other) == {"c": {"k": {"n": 1}}}
    assert oracle.read(file).items() >= before.items()
    assert oracle.read(file)["more"]["c"]["k"]["value"] == {"n": 1}


def test_file_whose_name_looks_like_one_with_a_key_is_that_file(path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd#name"
    odd.write_text("c:\n  k: {value: {n: 1}}\n", encoding="utf-8")

    assert run(copy(odd, path)) == Copied(1, 1, 1)


def test_name_of_a_server_alone_is_no_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    for word in "redis", "mongodb", "disk":
        with pytest.raises(ValueError, match=f"^{word} is no address; write {word}:"):
            run(copy(source, word))
    assert run(copy(source, "./redis")).entries == TOTAL


@pytest.mark.parametrize("text", ["disk:folder", "filetree:folder"])
def test_folder_to_copy_from_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    pytest.importorskip("diskcache" if "disk" in text else "aiofile", reason="its package is not installed")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="does not exist"):
        open_store(text, is_source=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["mysql://localhost/x", "Redis://localhost", "file:///tmp/x.state"])
def test_address_of_an_unknown_kind_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=r"is no address of a store; there are .* redis"):
        open_store(text)
    assert list(tmp_path.iterdir()) == []


def test_address_of_a_store_of_pystator_says_who_copies_it() -> None:
    with pytest.raises(ValueError, match=r"^sqlite:///x.db is a store of pystator; .*copy_machines"):
        open_store("sqlite:///x.db")


@pytest.mark.parametrize(
    ("text", "client", "reason"),
    [
        ("dynamodb://table?secret=1", "aiobotocore", "secret is unknown"),
        ("elasticsearch+http://localhost:9200", "elasticsearch", "names no prefix"),
        ("disk:", "diskcache", "names no folder"),
        ("filetree:", "aiofile", "names no folder"),
    ],
)
def test_wrong_address_is_refused(text: str, client: str, reason: str) -> None:
    pytest.importorskip(client, reason=f"{client} is not installed")

    with pytest.raises(ValueError, match=reason):
        open_store(text)


@pytest.mark.parametrize(
    "address",
    [
        "nosql://ada:s/secret@host/0",
        "nosql://ada:s@secret@host/0",
        "nosql://host/x?api_key=secret&b=1",
        "sqlite://ada:secret@x",
    ],
)
def test_no_error_shows_what_is_secret_in_an_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"nosql|sqlite") as caught:
        open_store(address)

    assert "secret" not in str(caught.value)
