"""States in a log: the same objects, and the same rules for several processes, as with a shared file.

The tests of shared files run here, too, with a server behind them; what they read of the file is read from the server
without the engine. Another number of the same server gives a second tree in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import enum
import importlib
import io
import itertools
import json
import os
import queue
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
import test_conformance
import test_shared
from oracle import same
from processes import PATIENCE, Child, interrupt_at
from rounds import rounds
from test_conformance import ListNodes, MappingNodes, MappingRoot
from test_shared import (  # noqa: F401 - they run here, too, with the fixtures of this file
    test_a_change_is_seen_by_the_next_change_of_another_process,
    test_a_child_that_was_forked_in_a_transaction_takes_no_part_in_it,
    test_a_closed_one_says_so,
    test_a_forked_child_does_not_overwrite_what_it_has_not_read,
    test_a_transaction_that_fails_undoes_only_its_own,
    test_a_value_that_json_cannot_say_comes_over,
    test_after_a_conflict_the_same_statement_works,
    test_nodes_stay_the_same_objects,
    test_refresh_tells_whether_others_changed_anything,
    test_the_thread_lock_holds_the_turn,
    test_threads_of_several_processes_lose_nothing,
    test_what_is_computed_in_its_turn_is_no_conflict,
    test_what_one_reads_in_a_transaction_is_up_to_date,
    test_what_one_removed_oneself_lives_on,
    test_what_was_not_read_is_not_overwritten,
    test_what_was_removed_by_another_process_can_be_read_and_not_changed,
)
from test_tasks import HOLDER, add, behind_a_process
from test_watching import WRITER
from threads import in_threads, together

import persistedstate
from logs import servers
from logs.proxy import BEFORE, BEHIND, FORWARD, Proxy, at_random, of_scripts
from logs.writers import impatient, turn
from persistedstate import (
    PersistedState,
    StateConflict,
    StateCorrupt,
    StateError,
    StateForked,
    StateReadOnly,
    StateUnknown,
    on_change,
    plain,
)
from persistedstate_tools import tasks, watching

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from logs.servers import Server

_numbers = itertools.count()


@pytest.fixture(scope="module", params=[servers.Server, servers.Postgres], ids=["redis", "postgres"])
def kind(request: pytest.FixtureRequest) -> type[Server]:
    """The engine."""
    engine: type[Server] = request.param
    return engine


@pytest.fixture
def url(server: Server) -> str:
    """The address of a state that does not exist yet."""
    Place.server = server
    return server.url(f"state-{next(_numbers)}")


class Place:
    """The place of a state on a server, as far as tests use the path of a file."""

    server: Server

    def __init__(self, state: PersistedState | str) -> None:
        self.url = state if isinstance(state, str) else os.fspath(state)
        self.name = self.url.rpartition("/")[2].partition("?")[0]

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    def read_bytes(self) -> bytes:
        """Return what a file would hold: the text, and the records behind it."""
        return b"".join(self.read_on(b"")[1])

    def read_on(self, behind: bytes) -> tuple[bytes, list[bytes]]:
        """Return the last position, and the records behind another one; where that is too old, text and records."""
        return self.server.read_on(self.name, behind)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def open(self, *_: Any, **__: Any) -> Any:
        return io.BytesIO(self.read_bytes())


@pytest.fixture
def shared(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PersistedState]:
    """As in `test_shared`, whose tests think that it is a file."""
    monkeypatch.setattr(test_shared, "Path", Place)
    content: dict[str, Any] = {"a": 1, "b": 1, "jobs": [{"name": "x"}, {"name": "y"}], "conf": {"deep": {"n": 1}}}
    with PersistedState(url, **content) as state:
        yield state


@pytest.fixture
def peer(shared: PersistedState) -> Iterator[test_shared.Peer]:
    with test_shared.Peer(Place(shared)) as peer:  # type: ignore[arg-type]
        yield peer
        peer.do("state.close()")


def spelled(url: str, **options: Any) -> PersistedState:
    """Open a state once more in this process, by another number of the same server, of which that knows nothing."""
    return PersistedState(url.replace("127.0.0.1", f"127.0.0.{'0' * (1 + next(_numbers) % 40)}1"), **options)


def files_of(kind: type[Server]) -> list[str]:
    """Return the files in which an interrupt of a state in this engine may come."""
    modules = ["persistedstate", "persistedstate_logs.asking", "persistedstate_logs.journal", kind.engine]
    return [str(importlib.import_module(name).__file__) for name in modules]


# ---- The object -----------------------------------------------------------------------------------------------------


def test_a_state_is_there_again_for_the_next_one(url: str) -> None:
    with PersistedState(url, counter=0, jobs=[]) as state:
        state.counter += 1
        with state.transaction():
            state.jobs.append({"name": "a"})
            state.jobs[0]["done"] = True
        assert os.fspath(state) == url

    assert Place(url).read_text() == (
        "counter: 0\njobs: []\n"
        '--- ["set",[],"counter",1]\n'
        '--- ["transaction",[["insert",["jobs"],0,{"name":"a"}],["set",["jobs",0],"done",true]]]\n'
    )
    with PersistedState(url, counter=9, other=[1]) as state:
        assert state == {"counter": 1, "jobs": [{"name": "a", "done": True}], "other": [1]}
        state.vacuum()
    assert Place(url).read_text() == "counter: 1\njobs:\n- name: a\n  done: true\nother:\n- 1\n"


def test_a_vacuum_comes_by_itself_and_keeps_comments(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 500)
    with servers.opened(url) as log:
        log.replace(b"# mine\na: 0   # counts\nb: 0\n", log.open().position, edit=True)
    with PersistedState(url) as state, spelled(url) as other:
        for _ in range(50):
            state.a += 1
            other.b += 1

        assert len(Place(url).read_bytes()) < 3_000
        state.vacuum()
        assert Place(url).read_text().startswith("# mine\na: 50   # counts\nb: 50\n")
        assert other.refresh() or other.a == 50
        assert plain(state) == plain(other) == {"a": 50, "b": 50}


def test_all_spellings_of_an_address_are_one_state(url: str, server: Server) -> None:
    scheme, _, rest = url.partition("://")
    spellings = {
        "redis": [f"valkey://{rest}", url.replace("/0/", "/00/"), url.replace("state-", "%73tate-")],
        "postgresql": [
            f"postgres://{rest}",
            url.replace("state-", "%73tate-"),
            f"postgresql:///postgres/{url.rpartition('/')[2]}?port={server.port}&user=me&host=127.0.0.1",
        ],
    }[scheme]
    local = url.replace("127.0.0.1", "localhost")
    with PersistedState(url, a=1) as state, PersistedState(local) as other:
        for number, spelling in enumerate(spellings):
            with PersistedState(spelling) as same_one:
                same_one.a = number
                assert state.a == number
                assert os.fspath(same_one) == url
        with PersistedState(local.replace("localhost", "LocalHost")) as same_one:
            same_one.a = 9
            assert other.a == 9
            assert os.fspath(same_one) == local


def test_the_options_of_an_address_are_the_same_for_all(url: str) -> None:
    with PersistedState(f"{url}?lease=9&timeout=4", a=1) as state:
        with PersistedState(f"{url}?timeout=4.0&lease=9") as same_one:
            same_one.a = 2
        assert state.a == 2
        with pytest.raises(StateError, match="other options in its address"):
            PersistedState(f"{url}?lease=8&timeout=4")
        state.a = 3


def test_opened_twice_it_is_one_state(url: str) -> None:
    with PersistedState(url, a=1) as state, PersistedState(url) as same_one:
        state.a = 2
        assert same_one.a == 2
        with pytest.raises(StateError, match="another _fsync"):
            PersistedState(url, _fsync=5)


def test_a_task_waits_for_the_turn_of_another_process_while_the_loop_goes_on(url: str) -> None:
    """The process ends its transaction only when the loop has come round and another task has read the state."""

    async def main() -> None:
        async with behind_a_process(state, "x", "y") as (child, task, given_up):
            for _ in range(20):
                await asyncio.sleep(0.001)
                assert plain(state.l) == []
            given_up.cancel()
            child.tell("")
            await task
            assert plain(state) == {"a": 2, "l": ["x"]}
            assert child.line() == "ended"
            await add(state, "z")

    with PersistedState(url, a=1, l=[]) as state:
        asyncio.run(main())

        with PersistedState(url, _readonly=True) as follower:
            assert plain(follower) == {"a": 2, "l": ["x", "z"]}


def test_a_task_that_is_cancelled_while_a_process_has_the_turn_leaves_it(url: str) -> None:
    """Another one has it next, long before a lease would end that this process does not give back."""

    async def main() -> None:
        async with behind_a_process(state, "x") as (child, task):
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            child.tell("")
            assert child.line() == "ended"
        with Child(HOLDER, url) as other:
            assert other.line() == "begun"

    url = f"{url}{'&' if '?' in url else '?'}lease=600"
    with PersistedState(url, a=1, l=[]) as state:
        asyncio.run(main())


def test_an_interrupt_in_front_of_the_end_of_a_block_of_a_task_undoes_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "leave", leave)
    with PersistedState(url, l=[]) as state, contextlib.closing(asyncio.new_event_loop()) as loop:
        with pytest.raises(KeyboardInterrupt) as caught:
            loop.run_until_complete(add(state, "x"))

        assert plain(state) == {"l": []}
        assert caught.value is not None  # whose traceback holds the block
        state.l.append("y")
        with PersistedState(url, _readonly=True) as follower:
            assert plain(follower) == {"l": ["y"]}


def test_a_task_gets_its_turn_among_others_who_never_rest(url: str) -> None:
    """One of them always has the turn, for longer than a task asks for it at first, and another one waits for it."""
    is_over = threading.Event()

    def hurry() -> None:
        with contextlib.closing(servers.log(url)) as log:
            log.open(0)
            while not is_over.is_set():
                with turn(log):
                    time.sleep(0.015)

    threads = [threading.Thread(target=hurry) for _ in range(2)]
    with PersistedState(url, l=[]) as state:
        for thread in threads:
            thread.start()
        try:
            for name in "xyz":
                asyncio.run(asyncio.wait_for(add(state, name), PATIENCE))
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

        assert plain(state.l) == ["x", "y", "z"]


def test_tasks_and_processes_at_once_lose_nothing(url: str) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child(HASTY, url)) for _ in range(3)]
            for child in children:
                assert child.line() == "begun"
            await asyncio.gather(*[count(state, 20) for _ in range(3)])
            for child in children:
                child.tell("")
                made.append(int(child.line()))

    made: list[int] = []
    with PersistedState(url, a=0) as state:
        asyncio.run(main())
        state.refresh()

        assert state.a == 60 + sum(made)


async def count(state: Any, times: int) -> None:
    for _ in range(times):
        async with state.transaction():
            state.a += 1


#: Takes one turn after the other; not for ever, because a task may not come in between: it stands in no line for long.
HASTY = """
    import sys, threading
    from persistedstate import PersistedState

    is_over = threading.Event()
    threading.Thread(target=lambda: (input(), is_over.set())).start()
    made = 0
    with PersistedState(sys.argv[1]) as state:
        print("begun")
        while made < 60 and not is_over.is_set():
            with state.transaction():
                state.a += 1
            made += 1
    is_over.wait()
    print(made)
"""


def test_permission_bits_are_for_files(url: str) -> None:
    with pytest.raises(StateError, match="_mode is for files"):
        PersistedState(url, _mode=0o600)
    with pytest.raises(FileNotFoundError):
        PersistedState(url, _readonly=True)


def test_a_follower_follows(url: str) -> None:
    with pytest.raises(FileNotFoundError):
        PersistedState(url, _readonly=True)
    with PersistedState(url, a=1) as state, PersistedState(url, _readonly=True, b=2) as follower:
        assert plain(follower) == {"a": 1, "b": 2}
        assert not follower.refresh()
        state.a = 2
        state.vacuum()
        state.c = [3]
        assert follower.refresh()
        assert plain(follower) == {"a": 2, "c": [3], "b": 2}
        with pytest.raises(StateReadOnly):
            follower.a = 3


class Counted(PersistedState):
    n: int = 0


def test_a_follower_tells_again_what_is_not_as_declared(url: str) -> None:
    with PersistedState(url, n=1) as state, Counted(url, _readonly=True) as follower:
        state.n = "x"
        for _ in range(2):
            with pytest.raises(StateCorrupt, match="expected int"):
                follower.refresh()
        state.n = 2
        assert follower.refresh()
        assert follower.n == 2


@rounds(ci=300, nightly=5000)
@pytest.mark.leaves("descriptors")  # as long as what an interrupt left is not collected
def test_a_follower_that_is_interrupted_shows_a_whole_state_after_its_next_refresh(
    url: str, kind: type[Server], chance: random.Random, rounds: int
) -> None:
    with PersistedState(url, n=0, ids=[]) as state, PersistedState(url, _readonly=True) as follower:
        for number in range(rounds):
            both(state, number)
            interrupt_at(chance.randrange(1, 2000), follower.refresh, files_of(kind))
            follower.refresh()
            assert plain(follower) == plain(state)


@pytest.mark.parametrize("readonly", [False, True])
def test_what_others_write_is_noticed_without_a_touch(
    url: str, readonly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PERIOD", 0.05)
    news: queue.Queue[Any] = queue.Queue()
    with Child(WRITER, url, {"a": 1, "b": 0}) as writer:
        writer.expect("open")
        with PersistedState(url, _watch=True, _readonly=readonly) as state:
            on_change(state, lambda *change: news.put(change), "a")
            for number in range(2, 6):
                writer.tell(f"state.a = {number}; {number} % 2 or state.vacuum()")
                writer.expect("done")
                assert news.get(timeout=PATIENCE) == (("a",), number - 1, number)
                assert state.a == number
                if not readonly:
                    state.b = number
        writer.finish()


@pytest.mark.parametrize("readonly", [False, True])
def test_a_function_is_called_for_what_others_write(url: str, readonly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PERIOD", 0.05)
    told = threading.Event()
    with Child(WRITER, url, {"a": 1}) as writer:
        writer.expect("open")
        with PersistedState(url, _watch=told.set, _readonly=readonly) as state:
            for number in range(2, 5):
                writer.tell(f"state.a = {number}")
                writer.expect("done")
                assert told.wait(PATIENCE)
                told.clear()
                assert (state.a, state.refresh(), state.a) == (number - 1, True, number)
        writer.finish()


def test_who_watches_waits_for_a_server_that_is_gone(
    tmp_path: Path, kind: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[str] = queue.Queue()
    news: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(watching, "_PERIOD", 0.05)
    monkeypatch.setattr(watching, "_warn_afterwards", told.put)
    with servers.running(tmp_path, *kind.always, kind=kind) as server:
        url = server.url("state")
        with PersistedState(f"{url}?timeout=2", _fsync=True, _watch=True, a=1) as state:
            on_change(state, lambda *change: news.put(change))
            server.kill()
            assert os.fspath(state) in told.get(timeout=PATIENCE)
            server.start()
            with Child(WRITER, url, {"_fsync": True, "_wait": PATIENCE}) as writer:
                writer.expect("open")
                writer.tell("state.a = 2")
                writer.expect("done")
                assert news.get(timeout=PATIENCE) == (("a",), 1, 2)
                writer.finish()


def test_an_unknown_scheme_tells_which_are_installed() -> None:
    with pytest.raises(
        StateError, match=r"no engine for nosql is installed \(installed: .*redis.*pip install"
    ) as caught:
        PersistedState("nosql://ada:secret@host/x")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "package", "engine"),
    [("redis://127.0.0.1:1/0/x", "redis", "redis"), ("postgresql://127.0.0.1:1/postgres/x", "psycopg", "postgres")],
)
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, url: str, package: str, engine: str) -> None:
    import sys

    monkeypatch.delitem(sys.modules, f"persistedstate_logs.{engine}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ModuleNotFoundError, match=rf"pip install {package}$"):
        PersistedState(url)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "A:").mkdir()
    with PersistedState("A://x.state", a=1):
        pass

    assert (tmp_path / "A:" / "x.state").read_text() == "a: 1\n"


class OnServer:
    """Opens the states of a suite on a server of its own: unittest has no fixtures with parameters."""

    kind: type[Server] = servers.Server
    stack: contextlib.ExitStack

    @classmethod
    def setUpClass(cls) -> None:
        cls.stack = contextlib.ExitStack()
        folder = Path(cls.stack.enter_context(tempfile.TemporaryDirectory()))
        Place.server = cls.stack.enter_context(servers.running(folder, kind=cls.kind))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.stack.close()

    def open(self) -> PersistedState:
        url = Place.server.url(f"suite-{next(_numbers)}")
        state = PersistedState(url)
        self.followers: list[Any]
        self.followers.append((state, Follower(url)))
        return state

    def tearDown(self) -> None:
        self.compare()  # type: ignore[attr-defined]
        for state, follower in self.followers:
            state.close()
            with PersistedState(str(follower.path)) as again:
                assert same(plain(again), follower.read())


class Follower(test_conformance.Follower):
    """What stands on the server, in the eyes of PyYAML."""

    def __init__(self, url: str) -> None:
        super().__init__(Place(url))  # type: ignore[arg-type]
        self.last = b""

    def read(self) -> dict[Any, Any]:
        place: Any = self.path
        self.last, (text, *records) = place.read_on(self.last)
        documents = oracle.READERS[test_conformance.READER](b"".join([text, *records]).decode())
        self.value = oracle.replay({} if text else self.value, [one for one in documents if one is not None])
        return self.value


class OnPostgres(OnServer):
    kind = servers.Postgres


class TestListNodes(OnServer, ListNodes):
    pass


class TestMappingNodes(OnServer, MappingNodes):
    pass


class TestMappingRoot(OnServer, MappingRoot):
    pass


class TestListNodesOnPostgres(OnPostgres, ListNodes):
    pass


class TestMappingNodesOnPostgres(OnPostgres, MappingNodes):
    pass


class TestMappingRootOnPostgres(OnPostgres, MappingRoot):
    pass


del ListNodes, MappingNodes, MappingRoot  # else pytest runs them again on files


# ---- Declared --------------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Importer(PersistedState):
    retry: int = 3
    mode: Mode = Mode.FAST


def test_what_others_wrote_that_is_not_declared_is_told(url: str) -> None:
    pytest.importorskip("msgspec")
    with Importer(url) as state, test_shared.Peer(url) as peer:  # type: ignore[arg-type]
        peer.do("state.update(retry='many', mode='quick')")
        with pytest.warns(RuntimeWarning, match=r'\(retry: expected int, but it is "many", and 1 more\)'):
            assert state.refresh()

        assert plain(state) == {"retry": "many", "mode": "quick"}
        with pytest.raises(StateCorrupt) as caught:
            _ = state.mode
        assert str(caught.value) == (
            f'{url}: mode: expected "fast" or "slow", but it is "quick"\n'
            "mend it with `persistedstate edit ADDRESS`, or with `persistedstate set ADDRESS mode VALUE`"
        )
        state.update(retry=4, mode="slow")
        assert peer.do("state.refresh(); said = plain(state)") == {"retry": 4, "mode": "slow"}
        peer.do("state.mode = 'quick'; state.close()")
    with pytest.raises(StateCorrupt, match=r": mode: expected .*\n.*edit ADDRESS"):
        Importer(url)
    with PersistedState(url) as other:
        other.mode = "slow"
    with Importer(url) as state:
        assert state.mode is Mode.SLOW


def test_what_a_script_assigns_that_is_not_declared_reaches_nobody(url: str) -> None:
    pytest.importorskip("msgspec")
    with Importer(url) as state, test_shared.Peer(url) as peer:  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"STATE\.retry: expected int"):
            state.retry = "many"  # type: ignore[assignment]
        with state.transaction():
            for number in range(3):
                state.retry = number
                with pytest.raises(TypeError, match=r"STATE\.retry: expected int"):
                    state.retry = "many"  # type: ignore[assignment]

        assert state.retry == 2
        assert peer.do("state.refresh(); said = plain(state)") == {"retry": 2, "mode": "fast"}
        peer.do("state.close()")


# ---- Several hands --------------------------------------------------------------------------------------------------

COUNTING = """
    import json, os, sys
    import persistedstate
    from persistedstate import PersistedState, StateConflict, StateUnknown

    persistedstate._VACUUM_FLOOR = 5_000
    url, how, count = sys.argv[1:]
    state = PersistedState(url, _wait=60, counter=0, ids=[])
    print("open", flush=True)
    got = []
    while len(got) < int(count):
        try:
            if how == "transaction":
                with state.transaction():
                    value = state.counter = state.counter + 1
                    state.ids.append(value)
            elif how == "append":
                value = f"{os.getpid()} {len(got)}"
                state.ids.append(value)
            else:
                value = state.counter + 1
                state.counter = value
        except StateConflict:
            continue
        got.append(value)
        print(json.dumps(value), flush=True)
    state.close()
"""


@pytest.mark.stress
@rounds(ci=400, nightly=20_000)
@pytest.mark.parametrize("how", ["transaction", "append", "plain"])
def test_processes_at_once_lose_nothing(url: str, how: str, rounds: int) -> None:
    children = [Child(COUNTING, url, how, rounds) for _ in range(3)]
    for child in children:
        child.expect("open")
    acknowledged = [json.loads(child.line()) for child in children for _ in range(rounds)]
    for child in children:
        child.finish()

    found = oracle.read(Place(url))  # type: ignore[arg-type]
    assert len(set(acknowledged)) == len(acknowledged) == 3 * rounds
    assert found["counter"] == (0 if how == "append" else 3 * rounds)
    assert sorted(found["ids"]) == ([] if how == "plain" else sorted(acknowledged))


@pytest.mark.stress
@rounds(ci=30, nightly=2000)
def test_kills_of_clients_lose_nothing(url: str, chance: random.Random, rounds: int) -> None:
    """One of three writers is killed, again and again; what it had printed is there, and no value twice."""
    address = f"{url}?lease=0.2"
    children = [Child(COUNTING, address, "transaction", 10**9) for _ in range(3)]
    acknowledged: list[int] = []
    for number in range(rounds):
        place = number % 3
        children[place].expect("open")
        acknowledged += [json.loads(children[place].line()) for _ in range(chance.randrange(1, 10))]
        children[place].kill()
        children[place] = Child(COUNTING, address, "transaction", 10**9)
    for child in children:
        child.kill()

    found = oracle.read(Place(url))  # type: ignore[arg-type]
    assert found["ids"] == list(range(1, found["counter"] + 1))
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= set(found["ids"])


def operated(one: Any, operation: Any) -> Any:
    try:
        return plain_or_value(operation(one))
    except (LookupError, TypeError, ValueError) as error:
        return type(error)


def plain_or_value(value: Any) -> Any:
    return plain(value) if hasattr(value, "_tree") else value


@rounds(ci=300, nightly=20_000)
def test_two_hands_and_a_model_agree(
    url: str, chance: random.Random, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random operations by either hand, on what it last saw, with vacuums in between; a conflict changes nothing."""
    monkeypatch.setattr(persistedstate, "_VACUUM_FLOOR", 2_000)
    start: dict[str, Any] = {"d": {"a": 1}, "l": [1, [2], {"x": 3}], "n": 0}
    with PersistedState(url, **start) as one, spelled(url) as other:
        model, hands, conflicts = copy.deepcopy(start), [one, other], 0
        for number in range(rounds):
            hand = chance.choice(hands)
            if chance.random() < 0.5:
                hand.refresh()
                assert same(plain(hand), model)
            operation = chance.choice(OPERATIONS)(chance, number)
            attempt = copy.deepcopy(model)
            try:
                if chance.random() < 0.3:
                    with hand.transaction():
                        said = operated(hand, operation)
                else:
                    said = operated(hand, operation)
            except StateConflict:
                conflicts += 1
                assert same(plain(hand), model)
                continue
            expected = operated(attempt, operation)
            if same(plain(hand), attempt):
                model = attempt
                assert said == expected
            assert same(plain(hand), model)
            if chance.random() < 0.1:
                hand.vacuum()
            assert_opens_to(url, model)
        assert same(oracle.read(Place(url)), model)  # type: ignore[arg-type]


def assert_opens_to(url: str, model: dict[str, Any]) -> None:
    """A record must not tell what the snapshot has, as in a file: another process may have renewed that."""
    with spelled(url) as third:
        assert same(plain(third), model)


#: What draws an operation; each works on a state and on a dict.
OPERATIONS: list[Any] = [
    lambda c, n: lambda s: s["d"].__setitem__(c_key(c, n), n),
    lambda c, n: lambda s: s["d"].pop(c_key(c, n), None),
    lambda c, n: lambda s: s["d"].update({c_key(c, n): [n]}),
    lambda c, n: lambda s: s["d"].setdefault(c_key(c, n), n),
    lambda _, n: lambda s: s["l"].append({"n": n}),
    lambda _, n: lambda s: s["l"].insert(0, [n]),
    lambda *_: lambda s: s["l"].pop(),
    lambda *_: lambda s: s["l"].reverse(),
    lambda _, n: lambda s: s["l"].__setitem__(0, n),
    lambda _, n: lambda s: s.__setitem__("n", n),
    lambda _, n: lambda s: s.__setitem__(f"k{n % 4}", {"deep": [n]}),
    lambda _, n: lambda s: s.pop(f"k{n % 4}", None),
]


def c_key(_: random.Random, number: int) -> str:
    return "abc"[number % 3]


# ---- Servers and connections that fail ------------------------------------------------------------------------------


def through(proxied: Proxy, url: str, options: str = "") -> str:
    return url.replace(f":{proxied.target}/", f":{proxied.port}/") + options


@pytest.mark.stress
@rounds(ci=200, nightly=5000)
def test_cut_connections_lose_and_double_nothing(url: str, proxied: Proxy, chance: random.Random, rounds: int) -> None:
    with PersistedState(url, counter=0, ids=[]) as state:
        pass
    hands = [spelled(through(proxied, url, "?timeout=20")) for _ in range(3)]
    acknowledged: list[int] = []
    proxied.fate = at_random(chance, 0.1)

    def run(hand: PersistedState) -> None:
        while sum(proxied.cuts.values()) < rounds:
            with contextlib.suppress(StateConflict):
                with hand.transaction():
                    hand.counter += 1
                    hand.ids.append(hand.counter)
                    value = hand.counter
                acknowledged.append(value)

    together(*(partial(run, hand) for hand in hands))
    for hand in hands:
        hand.close()

    with PersistedState(url) as state:
        assert state.ids == list(range(1, state.counter + 1))
        assert sorted(acknowledged) == state.ids


@pytest.mark.parametrize("fate", [BEFORE, BEHIND])
@pytest.mark.parametrize("how", ["plain", "transaction"])
def test_a_change_without_an_answer_is_unknown_until_the_next_one(
    url: str, proxied: Proxy, fate: str, how: str
) -> None:
    with spelled(through(proxied, url), a=1, jobs=[]) as state:
        state.a = 2
        proxied.fate = lambda data: of_scripts(fate)(data) if b'"lost"' in data else FORWARD
        log = state._tree.journal.log
        with pytest.raises(StateUnknown, match="whether this change was written is not known"), impatient(log):
            if how == "plain":
                state.jobs.append("lost")
            else:
                with state.transaction():
                    state.a = 3
                    state.jobs.append("lost")
        assert plain(state) == {"a": 2, "jobs": []}
        with pytest.raises(StateUnknown), impatient(log):
            state.a = 4
        proxied.fate = lambda _: FORWARD

        assert state.refresh()  # it was sent again, and landed once
        assert plain(state) == {"a": 2 if how == "plain" else 3, "jobs": ["lost"]}
        state.jobs.append("next")
    with PersistedState(url) as state:
        assert state.jobs == ["lost", "next"]


def test_a_server_that_is_gone_is_told_and_nothing_is_changed(tmp_path: Path, kind: type[Server]) -> None:
    with servers.running(tmp_path / "server", *kind.always, kind=kind) as server:
        state = PersistedState(server.url("x"), _fsync=True, a=1, jobs=[])
        server.kill()
        with impatient(state._tree.journal.log):
            with pytest.raises(OSError, match="reached"):
                state.a = 2
            with pytest.raises(OSError, match="reached"), state.transaction():
                state.a = 3
            with pytest.raises(OSError, match="reached"):
                state.refresh()
        assert plain(state) == {"a": 1, "jobs": []}
        server.start()

        state.jobs.append(state.a)
        state.close()
        with PersistedState(server.url("x")) as state:
            assert plain(state) == {"a": 1, "jobs": [1]}


def test_closing_needs_no_server(tmp_path: Path, kind: type[Server]) -> None:
    with servers.running(tmp_path / "server", kind=kind) as server:
        state = PersistedState(server.url("x"), a=1)
        state.a = 2
        server.kill()
        state.close()


def test_open_waits_for_the_server(tmp_path: Path, kind: type[Server]) -> None:
    with servers.running(tmp_path / "server", kind=kind) as server:
        server.kill()
        with pytest.raises(ConnectionError):
            PersistedState(server.url("x"))
        with in_threads(server.start), PersistedState(server.url("x"), _wait=PATIENCE, a=1) as state:
            assert state.a == 1


@pytest.mark.stress
@rounds(ci=20, nightly=500)
def test_kills_of_the_server_lose_nothing(tmp_path: Path, kind: type[Server], rounds: int) -> None:
    with servers.running(tmp_path / "server", *kind.always, kind=kind) as server:
        url = server.url("x", f"?timeout={PATIENCE}")
        hands = [spelled(url, _fsync=True, counter=0, ids=[]) for _ in range(2)]
        acknowledged: list[int] = []
        is_over = threading.Event()

        def run(hand: PersistedState) -> None:
            while not is_over.is_set():
                with contextlib.suppress(StateConflict):
                    with hand.transaction():
                        value = hand.counter = hand.counter + 1
                        hand.ids.append(value)
                    acknowledged.append(value)

        with in_threads(*(partial(run, hand) for hand in hands), until=is_over):
            for _ in range(rounds):
                before = len(acknowledged)
                while len(acknowledged) < before + 5:
                    time.sleep(0.001)
                server.kill()
                server.start()
        for hand in hands:
            hand.close()

        with PersistedState(url) as state:
            assert sorted(acknowledged) == state.ids == list(range(1, state.counter + 1))


def test_who_sleeps_past_the_turn_is_told_and_changes_nothing(url: str) -> None:
    code = """
        import sys
        from persistedstate import PersistedState, StateConflict, plain

        state = PersistedState(sys.argv[1])
        try:
            with state.transaction():
                state.a += 1
                print("inside")
                sys.stdin.readline()
        except StateConflict as error:
            print(error.reason[:43], plain(state))
        with state.transaction():
            state.a += 1
        print(state.a)
    """
    with PersistedState(url, a=1) as state, Child(code, f"{url}?lease=0.3") as child:
        child.expect("inside")
        child.send_signal(signal.SIGSTOP)
        state.a = 10
        child.send_signal(signal.SIGCONT)
        child.tell()
        child.expect("another process had the turn before this on {'a': 1}")
        child.expect("11")
        child.finish()


def test_who_sleeps_past_the_turn_goes_on_if_nobody_wrote(url: str) -> None:
    """Also where others had the turn meanwhile: what was read in it is up to date."""
    with PersistedState(f"{url}?lease=0.2", a=1) as state, spelled(url) as other:
        with state.transaction():
            state.a += 1
            with other.transaction():  # waits until the other turn is lost
                assert other.a == 1
            state.a += 1
        with state._thread_lock:
            with other.transaction():
                pass
            state.a += 1
            state.a += 1

        other.refresh()
        assert other.a == state.a == 5
    assert len(Place(url).read_text().split("---")) == 4


def test_who_sleeps_past_the_turn_writes_nothing_while_another_one_has_it(url: str) -> None:
    def sleep() -> None:
        with pytest.raises(StateConflict), state.transaction():
            state.a += 1
            is_inside.set()
            is_lost.wait(PATIENCE)
        told.append(state.a)

    told: list[int] = []
    is_inside, is_lost = threading.Event(), threading.Event()
    with PersistedState(f"{url}?lease=0.2", a=1) as state, spelled(url) as other:
        sleeper = threading.Thread(target=sleep)
        sleeper.start()
        assert is_inside.wait(PATIENCE)
        with other.transaction():
            is_lost.set()
            sleeper.join(0.1)
            assert sleeper.is_alive()
            other.a += 10
        sleeper.join(PATIENCE)

        state.refresh()
        assert told == [1]
        assert other.a == state.a == 11


@pytest.mark.parametrize("is_doubtful", [False, True])
def test_a_server_that_lost_changes_is_told_and_memory_stays(
    tmp_path: Path, kind: type[Server], is_doubtful: bool
) -> None:
    """It comes back with what it had on its disk a while ago; also where an interrupt has all be read anew."""
    with servers.running(tmp_path / "server", *kind.always, kind=kind) as server:
        state = PersistedState(server.url("x"), _fsync=True, a=1, jobs=[])
        server.kill()
        server.keep(tmp_path / "kept")
        server.start()
        state.jobs.append("lost")
        server.kill()
        server.put_back(tmp_path / "kept")
        server.start()

        state._tree.is_doubtful = is_doubtful
        for _ in range(2):
            with pytest.raises(StateForked, match=r"lost changes that it had acknowledged.*plain\(STATE\)"):
                state.a = 2
        with pytest.raises(StateForked), state.transaction():
            pass
        with pytest.raises(StateForked):
            state.refresh()
        assert plain(state) == {"a": 1, "jobs": ["lost"]}
        state.close()
        with PersistedState(server.url("x")) as state:
            assert plain(state) == {"a": 1, "jobs": []}
            state.a = 2


# ---- Interrupts and forks -------------------------------------------------------------------------------------------


@pytest.mark.stress
@rounds(ci=400, nightly=20_000)
@pytest.mark.leaves("descriptors")  # as long as what an interrupt left is not collected
def test_an_interrupt_leaves_memory_and_log_equal(
    url: str, kind: type[Server], chance: random.Random, rounds: int
) -> None:
    with PersistedState(f"{url}?lease=0.5", n=0, ids=[]) as state, spelled(url) as other:
        for number in range(rounds):
            action = chance.choice([
                lambda: state.ids.append(number),  # noqa: B023
                lambda: both(state, number),  # noqa: B023
                state.vacuum,
                state.refresh,
            ])  # fmt: skip
            before = plain(state)
            interrupt_at(chance.randrange(1, 3000), action, files_of(kind))
            after = plain(state)
            assert after in (
                before,
                {"n": number, "ids": [*before["ids"], number]},
                {**before, "ids": [*before["ids"], number]},
            )
            other.refresh()
            assert plain(other) == plain(state)


def both(state: PersistedState, number: int) -> None:
    with state.transaction():
        state.n = number
        state.ids.append(number)


def test_the_thread_lock_holds_the_turn_in_a_child_of_a_fork_too(url: str) -> None:
    with PersistedState(url, a=0) as state:
        child = os.fork()
        if not child:
            status = 1
            try:
                with state._thread_lock, servers.opened(url) as other:
                    state.a = 1
                    other.open(0)
                    with contextlib.suppress(TimeoutError):
                        other.take_turn(0.05)
                        status = 2
                    state.a = 2
                    status = status - 1
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert state.refresh()
        assert state.a == 2


def test_children_of_a_fork_go_on_by_themselves(url: str) -> None:
    with PersistedState(url, counter=0) as state:
        for _ in range(3):
            if not os.fork():
                try:
                    for _ in range(50):
                        with state.transaction():
                            state.counter += 1
                finally:
                    os._exit(0)
        for _ in range(50):
            with state.transaction():
                state.counter += 1
        for _ in range(3):
            os.wait()
        state.refresh()

        assert state.counter == 200
