"""The command line on states in a log, with a real server: addresses stand where files do."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest
from processes import Child
from test_command_line import BY_LINES, complaint, printed

from logs import servers
from persistedstate import PersistedState, check, plain
from persistedstate_tools.command_line import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logs.servers import Server

pytest.importorskip("redis", reason="the extra `redis` is not installed")

JOBS = [{"name": "fetch", "done": True}, {"name": "parse", "done": False}]
STATE: dict[str, Any] = {"last_id": 3, "jobs": JOBS, "text": "a\nb"}


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """The address of a state that holds something, in its text and in records."""
    address = server.url(re.sub(r"\W", "-", request.node.name))
    with PersistedState(address, **STATE) as state:
        state.vacuum()
        state.last_id = 4
    return address


def test_reading_commands_take_addresses(url: str, path: Path) -> None:
    assert json.loads(printed("show", "--json", url)) == {**STATE, "last_id": 4}
    assert printed("show", url, "jobs[0]") == "name: fetch\ndone: true\n"
    assert printed("get", url, "jobs[1].name") == "parse\n"
    assert printed("log", url) == "~ last_id: 3 → 4\n"
    assert printed("check", url) == f"{url}: sound\n"
    assert check(url) == []
    path.write_text(printed("show", url))
    assert printed("diff", url, path) == ""
    printed("set", path, "last_id", "5")
    assert printed("diff", url, path, code=1) == "~ last_id: 4 → 5\n"


def test_changing_commands_take_addresses(url: str) -> None:
    with PersistedState(url) as script:  # beside one that runs
        printed("set", url, "jobs[0].done", "false")
        printed("append", url, "jobs", "{name: load}")
        printed("delete", url, "jobs[1]")
        script.last_id += 1

        assert plain(script) == {
            "last_id": 5, "jobs": [{"name": "fetch", "done": False}, {"name": "load"}], "text": "a\nb"
        }  # fmt: skip
    assert re.fullmatch(r"\S+: \d+ → \d+ bytes\n", printed("vacuum", url))
    assert printed("log", url) == ""


def test_an_address_without_a_state_makes_none(server: Server) -> None:
    address = server.url("absent")

    assert complaint("show", address) == f"persistedstate: {address}: No such file or directory\n"
    assert complaint("set", address, "a", "1") == f"persistedstate: {address}: there is no such state\n"
    assert server.command("EXISTS", "{absent}:state") == 0


def test_no_message_shows_a_password(tmp_path: Path) -> None:
    with servers.running(tmp_path / "guarded", "--requirepass", "secret") as server:
        right, wrong = (server.url("x", user=f":{password}@") for password in ("secret", "wrong-word"))
        with PersistedState(right, a=1):
            pass

        assert printed("check", right) == f"{server.url('x', user=':…@')}: sound\n"
        assert "wrong-word" not in complaint("get", wrong, "a")
        assert "secret" not in complaint("get", right, "b", code=1)
        assert "secret" not in printed("vacuum", right)


def test_an_engine_that_is_not_installed_is_told() -> None:
    assert "no engine for nothing is installed" in complaint("get", "nothing://host/x", "a")


def test_log_follows_an_address_across_a_vacuum(url: str) -> None:
    with PersistedState(url) as script, Child(BY_LINES, "log", "--follow", url) as log:
        log.expect("~ last_id: 3 → 4")
        script.last_id = 5
        log.expect("~ last_id: 4 → 5")
        script.vacuum()
        script.jobs.append("c")
        log.expect("+ jobs[2]: c")


def test_watch_prints_an_address_and_what_differs(url: str) -> None:
    with PersistedState(url) as script, Child(BY_LINES, "watch", url, "last_id") as watch:
        watch.expect("4")
        script.last_id = 6
        watch.expect("~ last_id: 4 → 6")


def test_a_log_that_is_followed_may_lose_its_server_for_a_while(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.running(tmp_path / "server", *servers.ALWAYS))
        address = server.url("x")
        with PersistedState(address, a=1):
            pass
        with Child(f"import sys; sys.stderr = sys.stdout\n{BY_LINES}", "watch", f"{address}?timeout=2") as watch:
            watch.expect("a: 1")
            server.kill()
            assert watch.line().endswith("; waiting for it to change")
            server.start()
            with PersistedState(address) as state:
                state.a = 2
            watch.expect("~ a: 1 → 2")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_paths_of_an_address_are_completed(shell: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in re.split(r"(:)", url) if word] if shell == "bash" else [url]

    assert main(["completion", shell, "get", *words, "jobs[0].n"]) == 0

    assert re.split(r"[\t:]", capsys.readouterr().out)[0].strip() == "jobs[0].name"


# ---- edit and copy ----


@pytest.fixture
def edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the editor run a code that finds a `text`."""
    program = tmp_path / "editor.py"

    def does(code: str) -> None:
        begin, end = "text = open(sys.argv[1]).read()", "open(sys.argv[1], 'w').write(text)"
        program.write_text(f"import sys\n{begin}\n{code}\n{end}\n")

    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(program)]))
    return does


@pytest.mark.leaves("files")
def test_edit_keeps_comments_and_merges_with_what_others_do(url: str, edits: Callable[[str], None]) -> None:
    edits(
        "from persistedstate import PersistedState\n"
        f"with PersistedState({url!r}) as state: state.last_id, state.added = 7, 1\n"
        "text = text.replace('last_id: 4', 'last_id: 4  # how far').replace('fetch', 'FETCH')"
    )
    with PersistedState(url) as script:
        assert main(["edit", url]) == 0
        script.last_id += 1

        jobs = [{**JOBS[0], "name": "FETCH"}, JOBS[1]]
        assert plain(script) == {"last_id": 8, "jobs": jobs, "text": "a\nb", "added": 1}
    assert printed("show", url).startswith("last_id: 8  # how far\n")


@pytest.mark.leaves("files")
def test_edits_of_many_and_a_script_lose_nothing(url: str, edits: Callable[[str], None], tmp_path: Path) -> None:
    edits("import os; text += f'key{os.getppid()}: 1  # mine\\n'")
    counting = f"""
        from persistedstate import PersistedState
        with PersistedState({url!r}, counter=0) as state:
            print("open")
            for _ in range(200):
                with state.transaction():
                    state.counter += 1
    """
    with contextlib.ExitStack() as stack:
        script = stack.enter_context(Child(counting))
        script.expect("open")
        editing = [stack.enter_context(Child(BY_LINES, "edit", url)) for _ in range(4)]
        for child in [*editing, script]:
            child.finish()

    with PersistedState(url) as state:
        keys = [key for key in state if key.startswith("key")]
        assert (state.counter, len(keys)) == (200, 4)
    assert printed("show", url).count("  # mine\n") == 4
    assert not list(tmp_path.glob("persistedstate-*"))


@pytest.mark.leaves("files")
def test_copy_goes_both_ways_with_comments(server: Server, path: Path) -> None:
    text = "# what it is\n\na:   0x1E   # thirty\nb: [1, {c: d}]\n"
    path.write_text(text + '--- ["was",["b"],[1,{"c":"d"}]]\n--- ["insert",["b"],2,3]\n')
    address, back = server.url("copied"), path.with_name("back")

    printed("copy", path, address)
    printed("copy", address, back)

    assert back.read_text() == text.replace("}]", "}, 3]")
    assert printed("show", address) == back.read_text()
    said = f"{address}: holds something already; nothing was changed, and --force replaces it"
    assert complaint("copy", back, address) == f"persistedstate: {said}\n"
    path.write_text("other: 1  # new\n")
    with PersistedState(address) as script:
        printed("copy", "--force", path, address)
        script.more = 2
        assert plain(script) == {"other": 1, "more": 2}
    assert printed("show", address) == "other: 1  # new\nmore: 2\n"
    printed("copy", address, server.url("twin"))
    assert printed("diff", address, server.url("twin")) == ""


@pytest.mark.leaves("files")
def test_copy_from_where_nothing_is_makes_nothing(server: Server, path: Path) -> None:
    complaint("copy", server.url("never"), path)
    complaint("copy", path, server.url("never"))

    assert not path.exists()
    assert server.command("EXISTS", "{never}:state") == 0
