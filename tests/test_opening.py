"""Opening, closing, options, vacuum: what is in the file and beside it at every moment."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import oracle
import pytest
import yaml
from checks import run_child
from processes import DROP_PRIVILEGES, WRITE_CALLS, Child, at_each_moment, contents_at_each_moment, count_calls, listing

import persistedstate
from persistedstate import PersistedState, StateClosed, StateError, StateLocked, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away or mount")


def on_disk(path: Path) -> dict[Any, Any]:
    """Read a file that holds nothing but a snapshot with PyYAML."""
    (snapshot,) = yaml.safe_load_all(path.read_bytes().decode("utf-8-sig"))
    assert isinstance(snapshot, dict)
    return snapshot


def identity(path: Path) -> tuple[bytes, int, int, int]:
    """Return what a person's backup program looks at: bytes, inode, times."""
    status = path.stat()
    return path.read_bytes(), status.st_ino, status.st_mtime_ns, status.st_ctime_ns


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """`os.umask`, undone at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# ---- Defaults and creation -------------------------------------------------------------------------------------------


def test_a_default_is_set_only_where_the_key_is_absent(path: Path) -> None:
    path.write_text("a: 5\nb: null\nc: []\nd:\n")

    with PersistedState(path, a=1, b=2, c=[3], d=4, e=5) as state:
        assert plain(state) == {"a": 5, "b": None, "c": [], "d": None, "e": 5}

    assert on_disk(path) == {"a": 5, "b": None, "c": [], "d": None, "e": 5}


def test_defaults_make_the_first_snapshot(path: Path) -> None:
    with PersistedState(path, last_id=0, processed=[], settings={"z": 1, "a": "yes"}):
        created = path.read_text()

    assert created == 'last_id: 0\nprocessed: []\nsettings:\n  z: 1\n  a: "yes"\n'
    assert path.read_text() == created
    assert listing(path.parent) == ["x.state"]


def test_a_new_state_without_defaults_is_an_empty_mapping(path: Path) -> None:
    with PersistedState(path) as state:
        assert plain(state) == {}
        assert path.read_text() == "{}\n"

    assert path.read_text() == "{}\n"


def test_a_default_is_copied_in(path: Path) -> None:
    jobs: list[Any] = [{"n": 1}]

    with PersistedState(path, jobs=jobs) as state:
        state.jobs[0]["n"] = 2
        jobs.append("x")
        assert state.jobs == [{"n": 2}]

    assert jobs == [{"n": 1}, "x"]


def test_defaults_are_no_longer_needed_once_they_are_set(path: Path) -> None:
    PersistedState(path, a=1, l=["x"]).close()

    with PersistedState(path, a=2) as state:
        assert plain(state) == {"a": 1, "l": ["x"]}


def test_a_default_may_have_the_name_of_a_parameter(path: Path) -> None:
    with PersistedState(path, path=1, self=2, defaults=3) as state:
        assert plain(state) == {"path": 1, "self": 2, "defaults": 3}
        assert state.path == 1


def test_a_default_with_the_name_of_a_method_is_refused(path: Path) -> None:
    with pytest.raises(AttributeError, match=re.escape('use STATE["items"]')):
        PersistedState(path, items=[])

    assert not path.exists()


def test_a_default_that_cannot_be_stored_is_refused_before_the_file_is_made(path: Path) -> None:
    with pytest.raises(TypeError, match=r"STATE\.jobs\[1\]\.when"):
        PersistedState(path, a=1, jobs=[0, {"when": {1, 2}}])

    assert not path.exists()


def test_a_default_that_cannot_be_stored_leaves_an_old_file_alone(path: Path) -> None:
    path.write_text("b: 1\n")
    before = identity(path)

    with pytest.raises(TypeError, match=r"STATE\.a"):
        PersistedState(path, c=1, a=object())

    assert identity(path) == before
    run_child("import sys, persistedstate; persistedstate.PersistedState(sys.argv[1]).close()", path)


def test_new_defaults_leave_a_persons_lines_alone(path: Path) -> None:
    path.write_text("# mine\na:   0x10  # sixteen\n\n# also mine\nb: [1,\n    2]\n")

    PersistedState(path, a=1, c="new").close()

    assert path.read_text() == "# mine\na:   0x10  # sixteen\n\n# also mine\nb: [1,\n    2]\nc: new\n"


@pytest.mark.parametrize(
    "content",
    [
        b"a: 1\nb:\n- x\n",
        b"# mine\na: 1   # one\n\nb: ['x']",
        b"{a: 1, b: [x]}\n",
        b"\xef\xbb\xbfa: 1\r\nb:\r\n  - x\r\n",
        b"%YAML 1.2\n---\na: 1\nb: &b [x]\nc: *b\n...\n",
        b"a: |\n  text\nb: >\n  x\n",
    ],
    ids=["own", "comments", "flow", "windows", "head", "blocks"],
)
@pytest.mark.parametrize("defaults", [{}, {"a": 2, "b": []}], ids=["no defaults", "defaults"])
def test_opening_a_file_that_lacks_nothing_writes_nothing(path: Path, content: bytes, defaults: dict[str, Any]) -> None:
    path.write_bytes(content)
    before = identity(path)

    def open_and_close() -> None:
        with PersistedState(path, **defaults) as state:
            assert identity(path) == before
            assert list(state)[:2] == ["a", "b"]
            state.refresh()
            state.vacuum()

    assert count_calls(open_and_close, WRITE_CALLS) == 0
    assert identity(path) == before
    assert listing(path.parent) == ["x.state"]


def test_a_journal_that_was_never_closed_is_tidied_at_close(path: Path) -> None:
    path.write_text('a: 1\n--- ["set",[],"a",2]\n')

    with PersistedState(path) as state:
        assert state.a == 2

    assert path.read_text() == "a: 2\n"


# ---- Names -----------------------------------------------------------------------------------------------------------


def test_a_name_of_a_method_is_refused_as_attribute_and_works_as_item(path: Path) -> None:
    path.write_text("items: 1\n")

    with PersistedState(path) as state:
        with pytest.raises(AttributeError, match=re.escape('use STATE["items"]')):
            state.items = 5  # type: ignore[method-assign,assignment,unused-ignore]
        with pytest.raises(AttributeError, match=re.escape('use STATE["items"]')):
            del state.items
        state["items"] += 1
        state["close"] = 3
        assert list(state.items()) == [("items", 2), ("close", 3)]

    assert on_disk(path) == {"items": 2, "close": 3}


@pytest.mark.parametrize(
    "name",
    ["keys", "values", "items", "get", "pop", "popitem", "clear", "update", "setdefault", "copy"]
    + ["close", "transaction", "vacuum", "refresh"],
)
def test_each_root_method_is_protected(path: Path, name: str) -> None:
    with PersistedState(path) as state:
        with pytest.raises(AttributeError, match=re.escape(f'use STATE["{name}"]')):
            setattr(state, name, 1)
        assert callable(getattr(state, name))
        assert plain(state) == {}


def test_names_that_begin_with_an_underscore_are_ordinary_attributes(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        state._mine = {1, 2}
        assert state._mine == {1, 2}
        del state._mine
        with pytest.raises(AttributeError):
            state._mine  # noqa: B018
        state["_item"] = 1
        with pytest.raises(AttributeError):
            state._item  # noqa: B018

    assert on_disk(path) == {"a": 1, "_item": 1}


def test_a_missing_name_is_an_attribute_error_or_a_key_error(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        with pytest.raises(AttributeError, match="nope"):
            state.nope  # noqa: B018
        with pytest.raises(AttributeError, match="nope"):
            del state.nope
        with pytest.raises(KeyError, match="nope"):
            state["nope"]
        with pytest.raises(KeyError, match="nope"):
            del state["nope"]
        assert not hasattr(state, "nope")
        assert getattr(state, "nope", 7) == 7
        assert path.read_text() == "a: 1\n"
        del state.a

    assert on_disk(path) == {}


def test_a_key_that_somebody_deleted_is_told_with_the_file_and_what_to_do(path: Path) -> None:
    with PersistedState(path, interval=3, last_id=0) as state:
        path.write_text("last_id: 0\n")
        state.refresh()

        for miss in (lambda: state.interval, lambda: delattr(state, "interval")):
            with pytest.raises(AttributeError) as caught:
                miss()

            assert str(caught.value) == (
                f"{path}: there is no key 'interval'; if there was one, it was deleted from the file. "
                "Set it, or open the state with a default: PersistedState(…, interval=…)"
            )
            assert (caught.value.name, caught.value.obj) == ("interval", state)


def test_a_name_that_is_misspelled_is_suggested(path: Path) -> None:
    with PersistedState(path, interval=3) as state:
        with pytest.raises(AttributeError) as caught:
            state.intervall  # noqa: B018

        assert "interval" in dir(caught.value.obj)
        if sys.version_info >= (3, 12):
            assert traceback.format_exception(caught.value)[-1].endswith("Did you mean: 'interval'?\n")


def test_names_with_an_underscore_are_no_matter_of_the_file(path: Path) -> None:
    """They are what Python, copy, pickle and IPython ask objects for, whether they are open or not."""
    state = PersistedState(path, a=1)

    for _ in range(2):
        for name in ("_mine", "__array__", "_repr_html_", "_ipython_canary_method_should_not_exist_"):
            with pytest.raises(AttributeError, match=f"^'PersistedState' object has no attribute '{name}'$"):
                getattr(state, name)
        state.close()


def test_an_object_that_was_never_made_is_quiet() -> None:
    state = PersistedState.__new__(PersistedState)

    state.close()

    assert not hasattr(state, "a")


# ---- The path --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readonly", [False, True])
def test_a_state_is_a_path(path: Path, monkeypatch: pytest.MonkeyPatch, readonly: bool) -> None:
    """That of its file, wherever the process goes, and also after `close`."""
    path.write_text("a: 1\n")
    monkeypatch.chdir(path.parent)

    state = PersistedState(path.name, _readonly=readonly)
    monkeypatch.chdir("/")

    for _ in range(2):
        assert os.fspath(state) == str(path)
        assert isinstance(state, os.PathLike)
        assert Path(state).read_text() == "a: 1\n"
        state.close()


@pytest.mark.leaves("files")
def test_the_path_is_that_of_the_file_behind_a_link(path: Path) -> None:
    """As in errors: that is where the changes go."""
    link = path.with_name("link.state")
    link.symlink_to(path)

    with PersistedState(link, a=1) as state:
        assert os.fspath(state) == str(path)

    with pytest.raises(StateClosed) as caught:
        state.a  # noqa: B018
    assert caught.value.path == os.fspath(state) == str(path)


# ---- Modes, owners, links --------------------------------------------------------------------------------------------


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_mode_is_that_of_the_option_from_creation_on(path: Path, umask: Callable[[int], int]) -> None:
    """No moment exists, not even within a vacuum, at which others may read the file or one beside it."""
    umask(0)
    seen: set[int] = set()

    def look() -> None:
        for entry in os.scandir(path.parent):
            seen.add(stat.S_IMODE(entry.stat().st_mode))

    def work() -> None:
        with PersistedState(path, _mode=0o600, token="secret") as state:  # noqa: S106
            state.token = "other"  # noqa: S105
            state.vacuum()
            state.token = "third"  # noqa: S105

    at_each_moment(work, look)

    assert {mode & 0o077 for mode in seen} == {0}
    assert permissions(path) == 0o600


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0, 0o666)])
def test_umask_decides_the_mode_otherwise(path: Path, umask: Callable[[int], int], mask: int, mode: int) -> None:
    umask(mask)

    with PersistedState(path, a=1) as state:
        created = permissions(path)
        state.a = 2

    assert (created, permissions(path)) == (mode, mode)


def test_mode_of_the_option_does_not_depend_on_umask(path: Path, umask: Callable[[int], int]) -> None:
    umask(0o077)

    with PersistedState(path, _mode=0o664, a=1) as state:
        state.a = 2

    assert permissions(path) == 0o664


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_mode_is_kept_across_a_vacuum(path: Path, umask: Callable[[int], int], mode: int) -> None:
    umask(0)
    path.write_text("a: 1\n")
    path.chmod(mode)
    seen: set[int] = set()

    def look() -> None:
        for entry in os.scandir(path.parent):
            seen.add(stat.S_IMODE(entry.stat().st_mode))

    with PersistedState(path) as state:
        state.a = 2
        at_each_moment(state.vacuum, look)
        assert permissions(path) == mode
        state.a = 3

    assert permissions(path) == mode
    assert {each & ~mode for each in seen} == {0}


@needs_root
def test_owner_is_kept_across_a_vacuum(path: Path) -> None:
    path.write_text("a: 1\n")
    os.chown(path, 65534, 65533)
    path.chmod(0o640)

    with PersistedState(path) as state:
        state.a = 2
        state.vacuum()
        state.a = 3

    status = path.stat()
    assert (status.st_uid, status.st_gid, permissions(path)) == (65534, 65533, 0o640)
    assert on_disk(path) == {"a": 3}


def test_owner_mode_and_attributes_are_never_set_by_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two calls the owner of the folder may put another file, or a link, in the place of ours."""
    for name in "chmod", "chown", "lchown", "setxattr", "removexattr":
        real = getattr(os, name, None)

        def by_descriptor(file: object, *arguments: Any, real: Any = real) -> None:
            assert isinstance(file, int)
            real(file, *arguments)

        monkeypatch.setattr(os, name, by_descriptor, raising=False)
    with PersistedState(path, _mode=0o640, a=1) as state:
        state.a = 2
        state.vacuum()
        path.write_text("a: [\n")
        with pytest.warns(RuntimeWarning, match="kept in"):
            state.refresh()
    for kept in path.parent.glob("x.state.edited-*"):
        assert permissions(kept) == 0o640
        kept.unlink()


@pytest.mark.parametrize("relative", [False, True])
def test_a_symbolic_link_stays_one(tmp_path: Path, relative: bool) -> None:
    """The file behind it is rewritten, with its temporary file beside it and not beside the link."""
    real = tmp_path / "data" / "real.state"
    link = tmp_path / "links" / "x.state"
    for folder in real.parent, link.parent:
        folder.mkdir()
    real.write_text("# mine\na: 1\n")
    link.symlink_to("../data/real.state" if relative else real)
    seen: set[str] = set()

    with PersistedState(link) as state:
        state.a = 2
        at_each_moment(state.vacuum, lambda: seen.update(listing(link.parent)))
        assert on_disk(real) == {"a": 2}
        state.b = 3

    assert link.is_symlink()
    assert real.read_text() == "# mine\na: 2\nb: 3\n"
    assert seen == {"x.state"}
    assert (listing(real.parent), listing(link.parent)) == (["real.state"], ["x.state"])


def test_a_symbolic_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")

    with PersistedState(tmp_path / "link" / "x.state", a=1) as state:
        state.a = 2

    assert (tmp_path / "link").is_symlink()
    assert on_disk(tmp_path / "data" / "x.state") == {"a": 2}


def test_a_hard_link_keeps_showing_the_same_file(tmp_path: Path) -> None:
    path, other = tmp_path / "x.state", tmp_path / "other.state"
    path.write_text("# mine\na: 1   # one\nlong: " + "x" * 500 + "\n")
    os.link(path, other)
    inode = path.stat().st_ino

    with PersistedState(path) as state:
        state.a = 2
        state.vacuum()
        assert on_disk(other) == plain(state)
        del state.long
        state.l = ["x"]
        state.vacuum()
        state.b = 3

    assert path.read_text() == other.read_text() == "# mine\na: 2   # one\nl:\n- x\nb: 3\n"
    assert path.stat().st_ino == other.stat().st_ino == inode
    assert listing(tmp_path) == ["other.state", "x.state"]


def shrink(state: Any) -> None:
    del state["text"]


def grow(state: Any) -> None:
    state.more = ["é" * 20, {"x": list(range(30))}]


def swap(state: Any) -> None:
    state.a, state.text = state.text, state.a


def between(old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield what a crash may leave when one system call turns `old` into `new`: part of what it wrote."""
    same = next(
        (at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new))
    )
    for end in range(same, len(new)):
        if len(new) >= len(old) or new != old[: len(new)]:  # not a cut, which happens at once
            yield new[:end] + old[end:]


def rewritten_in_place(path: Path, change: Callable[[Any], None]) -> tuple[dict[Any, Any], list[bytes]]:
    """Change the state of a hard-linked file and vacuum it; return the state, and what the file holds meanwhile."""
    other = path.with_name("other.state")
    path.write_text("# mine\na: 1   # one\ntext: " + "x y " * 20 + "\nl:\n- 1\n")
    os.link(path, other)
    with PersistedState(path) as state:
        change(state)
        expected = plain(state)
        moments = contents_at_each_moment(path, state.vacuum)
    other.unlink()
    return expected, moments


@pytest.mark.parametrize("change", [shrink, grow, swap])
def test_a_rewrite_in_place_may_be_cut_at_any_byte(path: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    """What a hard-linked file holds at each moment of a vacuum, and after part of any write, opens to the state."""
    copied = tmp_path / "copy.state"
    expected, moments = rewritten_in_place(path, change)

    for old, new in zip(moments, [*moments[1:], moments[-1]], strict=True):
        for content in [old, *between(old, new)]:
            copied.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                follower = PersistedState(copied, _readonly=True)
            with follower:
                assert plain(follower) == expected, content

    assert len(moments) > 2
    assert b"# mine\n" in moments[-1]
    copied.unlink()


def test_a_half_done_rewrite_in_place_is_completed(path: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy.state"
    expected, moments = rewritten_in_place(path, grow)

    for content in moments:
        copied.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            again = PersistedState(copied)
        with again:
            again.b = 1
        assert on_disk(copied) == {**expected, "b": 1}
        assert copied.read_bytes().startswith(b"# mine\na: 1   # one\n")
    copied.unlink()


def test_a_folder_without_write_permission_is_enough(public_folder: Path) -> None:
    path = public_folder / "x.state"
    path.write_text("# mine\na: 1\nlong: " + "x" * 500 + "\n")
    path.chmod(0o666)
    public_folder.chmod(0o555)
    inode = path.stat().st_ino
    code = f"""
{DROP_PRIVILEGES}
with persistedstate.PersistedState(sys.argv[1]) as state:
    state.a = 2
    state.vacuum()
    print(yaml.safe_load(open(sys.argv[1])) == persistedstate.plain(state))
    del state.long
    state.b = [3]
"""

    answer = run_child(code, path)

    assert answer.split() == ["True"]
    assert path.read_text() == "# mine\na: 2\nb:\n- 3\n"
    assert path.stat().st_ino == inode
    assert listing(public_folder) == ["x.state"]


@needs_root
@pytest.mark.parametrize("folder_mode", [0o755, 0o777, 0o700])
def test_a_vacuum_after_the_process_gave_up_its_privileges_needs_none(public_folder: Path, folder_mode: int) -> None:
    """As a daemon does: root opens its file, becomes another user, who could not open it, and goes on."""
    path = public_folder / "x.state"
    path.write_text("# mine\na: 1\nlong: " + "x" * 500 + "\n")
    path.chmod(0o600)
    public_folder.chmod(folder_mode)
    inode = path.stat().st_ino
    opened = "import sys, warnings, persistedstate\nstate = persistedstate.PersistedState(sys.argv[1])\n"
    code = """
warnings.simplefilter("error")
for number in range(3):
    state.a = number
    state.vacuum()
    print(os.fstat(state._tree.journal.descriptor).st_size)
del state.long
state.close()
"""

    answer = run_child(opened + DROP_PRIVILEGES + code, path)

    assert answer.split() == ["519"] * 3
    assert path.read_text() == "# mine\na: 2\n"
    assert (path.stat().st_ino, permissions(path)) == (inode, 0o600)
    assert listing(public_folder) == ["x.state"]


@needs_root
def test_a_bind_mounted_file_is_enough(tmp_path: Path) -> None:
    """As containers mount them: the file cannot be replaced, only written."""
    real, folder = tmp_path / "real.state", tmp_path / "container"
    folder.mkdir()
    mounted = folder / "x.state"
    mounted.touch()
    real.write_text("# mine\na: 1\nlong: " + "x" * 500 + "\n")
    inode = real.stat().st_ino
    code = """
import os, sys, persistedstate
assert os.path.ismount(sys.argv[1]) or os.stat(sys.argv[1]).st_size
with persistedstate.PersistedState(sys.argv[1]) as state:
    state.a = 2
    state.vacuum()
    del state.long
    state.b = [3]
print(os.listdir(os.path.dirname(sys.argv[1])))
"""
    script = 'mount --bind "$1" "$2" || exit 77; exec "$3" -c "$4" "$2"'

    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", real, mounted, sys.executable, code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['x.state']"
    assert real.read_text() == "# mine\na: 2\nb:\n- 3\n"
    assert real.stat().st_ino == inode
    assert mounted.read_bytes() == b""


# ---- Temporary files -------------------------------------------------------------------------------------------------


def temporary_names(path: Path) -> set[str]:
    """Return the names that a vacuum uses beside the file for a moment."""
    seen: set[str] = set()
    with PersistedState(path) as state:
        state.a = 1
        at_each_moment(state.vacuum, lambda: seen.update(listing(path.parent)))
        state.a = 2
        at_each_moment(state.vacuum, lambda: seen.update(listing(path.parent)))
    return seen - {path.name}


def test_a_vacuum_uses_one_hidden_name_beside_the_file_and_leaves_nothing(path: Path) -> None:
    names = temporary_names(path)

    assert names
    assert all(re.fullmatch(r"\.x\.state\..+\.tmp", name) for name in names)
    assert listing(path.parent) == ["x.state"]


def test_stale_temporary_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    stale = temporary_names(path)
    name = min(stale)
    middle = name.removeprefix(".x.state.").removesuffix(".tmp")
    precious = {
        ".x.state.tmp",
        "x.state.tmp",
        ".x.state",
        ".tmp",
        f"x.state.{middle}.tmp",
        f".y.state.{middle}.tmp",
        f".xxstate.{middle}.tmp",
        f"a.x.state.{middle}.tmp",
        f".x.state.{middle}.tmp.bak",
        f".x.state.{middle}.TMP",
        f".x.state.{middle}\n.tmp",
        ".x.state.my notes.tmp",
        "other.state",
    }
    for each in stale | precious:
        (tmp_path / each).write_text("not: yours\n")

    with PersistedState(path) as state:
        assert state.a == 2
        opened = set(listing(tmp_path))
        state.a = 3

    assert opened == precious | {"x.state"}
    assert set(listing(tmp_path)) == opened
    assert all((tmp_path / each).read_text() == "not: yours\n" for each in precious)


def test_a_stale_temporary_link_is_removed_without_touching_its_target(tmp_path: Path) -> None:
    path, target = tmp_path / "x.state", tmp_path / "target"
    name = min(temporary_names(path))
    target.write_text("precious\n")
    (tmp_path / name).symlink_to(target)

    with PersistedState(path) as state:
        state.a = 7

    assert listing(tmp_path) == ["target", "x.state"]
    assert target.read_text() == "precious\n"


def test_a_second_process_leaves_the_temporary_files_of_the_holder_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    name = min(temporary_names(path))
    with PersistedState(path):
        (tmp_path / name).write_text("in use\n")

        code = "import sys, persistedstate; persistedstate.PersistedState(sys.argv[1], _readonly=True).close()"
        run_child(code, path)
        refused = """
            import sys
            from persistedstate import PersistedState, StateLocked
            try:
                PersistedState(sys.argv[1])
            except StateLocked:
                print("locked")
        """
        assert run_child(refused, path) == "locked\n"

        assert listing(tmp_path) == [name, "x.state"]


# ---- Closing ---------------------------------------------------------------------------------------------------------


def _enter(state: Any) -> None:
    with state:
        pass


def _transact(state: Any) -> None:
    with state.transaction():
        pass


ROOT_OPERATIONS: dict[str, Callable[[Any], object]] = {
    "get attribute": lambda state: state.a,
    "set attribute": lambda state: setattr(state, "a", 2),
    "delete attribute": lambda state: delattr(state, "a"),
    "get item": lambda state: state["a"],
    "set item": lambda state: state.__setitem__("a", 2),
    "delete item": lambda state: state.__delitem__("a"),
    "len": len,
    "iterate": list,
    "in": lambda state: "a" in state,
    "keys": lambda state: list(state.keys()),
    "values": lambda state: list(state.values()),
    "items": lambda state: list(state.items()),
    "get": lambda state: state.get("a"),
    "pop": lambda state: state.pop("a"),
    "pop with default": lambda state: state.pop("nope", None),
    "popitem": lambda state: state.popitem(),
    "clear": lambda state: state.clear(),
    "update": lambda state: state.update(a=2),
    "setdefault": lambda state: state.setdefault("z", 1),
    "setdefault of a key that is there": lambda state: state.setdefault("a", 1),
    "copy": lambda state: state.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "plain": plain,
    "or": lambda state: state | {"b": 1},
    "reversed or": lambda state: {"b": 1} | state,
    "in-place or": lambda state: state.__ior__({"b": 1}),
    "with": _enter,
    "transaction": _transact,
    "vacuum": lambda state: state.vacuum(),
    "refresh": lambda state: state.refresh(),
}

NODE_OPERATIONS: dict[str, Callable[[Any], object]] = {
    "dict set": lambda nodes: nodes[0].__setitem__("k", 2),
    "dict delete": lambda nodes: nodes[0].__delitem__("k"),
    "dict pop": lambda nodes: nodes[0].pop("k"),
    "dict popitem": lambda nodes: nodes[0].popitem(),
    "dict clear": lambda nodes: nodes[0].clear(),
    "dict update": lambda nodes: nodes[0].update(x=1),
    "dict setdefault": lambda nodes: nodes[0].setdefault("x", 1),
    "dict or": lambda nodes: nodes[0].__ior__({"x": 1}),
    "list set": lambda nodes: nodes[1].__setitem__(0, 2),
    "list set slice": lambda nodes: nodes[1].__setitem__(slice(0, 1), [2]),
    "list delete": lambda nodes: nodes[1].__delitem__(0),
    "list delete slice": lambda nodes: nodes[1].__delitem__(slice(0, 1)),
    "list append": lambda nodes: nodes[1].append(1),
    "list insert": lambda nodes: nodes[1].insert(0, 1),
    "list extend": lambda nodes: nodes[1].extend([1]),
    "list pop": lambda nodes: nodes[1].pop(),
    "list remove": lambda nodes: nodes[1].remove(1),
    "list clear": lambda nodes: nodes[1].clear(),
    "list sort": lambda nodes: nodes[1].sort(),
    "list reverse": lambda nodes: nodes[1].reverse(),
    "list +=": lambda nodes: nodes[1].__iadd__([1]),
    "list *=": lambda nodes: nodes[1].__imul__(2),
}


@pytest.mark.parametrize("name", ROOT_OPERATIONS)
def test_a_closed_state_raises(path: Path, name: str) -> None:
    state = PersistedState(path, a=1)
    state.close()
    before = identity(path)

    with pytest.raises(StateClosed, match=re.escape(str(path))):
        ROOT_OPERATIONS[name](state)

    assert identity(path) == before


@pytest.mark.parametrize("name", NODE_OPERATIONS)
def test_the_nodes_of_a_closed_state_do_not_change(path: Path, name: str) -> None:
    state = PersistedState(path, d={"k": 1}, l=[1, 2])
    nodes = state.d, state.l
    state.close()
    before = identity(path)

    with pytest.raises(StateClosed):
        NODE_OPERATIONS[name](nodes)

    assert identity(path) == before


def test_a_second_close_is_fine(path: Path) -> None:
    state = PersistedState(path, a=1)

    state.close()
    before = identity(path)
    state.close()

    assert identity(path) == before


def test_a_closed_state_can_be_opened_again(path: Path) -> None:
    for counter in range(3):
        with PersistedState(path, counter=0) as state:
            assert state.counter == counter
            state.counter += 1

    assert on_disk(path) == {"counter": 3}


def test_with_closes_at_the_end(path: Path) -> None:
    with PersistedState(path) as state:
        state.a = 1

    with pytest.raises(StateClosed):
        state.a  # noqa: B018
    assert path.read_text() == "a: 1\n"


def test_with_closes_after_an_exception_and_keeps_what_was_done(path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), PersistedState(path) as state:
        state.a = 1
        raise KeyError("mine")

    with pytest.raises(StateClosed):
        state.a  # noqa: B018
    assert path.read_text() == "a: 1\n"


def test_a_closed_error_is_a_state_error_and_a_value_error(path: Path) -> None:
    state = PersistedState(path)
    state.close()

    with pytest.raises(StateClosed) as caught:
        state.a = 1

    assert isinstance(caught.value, StateError)
    assert isinstance(caught.value, ValueError)
    assert os.fspath(caught.value.path) == str(path)


# ---- One file, two handles -------------------------------------------------------------------------------------------

IS_LOCKED = """
    import sys
    from persistedstate import PersistedState, StateLocked
    try:
        PersistedState(sys.argv[1], _readonly=False).close()
        print("free")
    except StateLocked:
        print("locked")
"""


def test_two_handles_share_the_state(path: Path) -> None:
    first = PersistedState(path, l=[])
    second = PersistedState(path, l=["not set"], more=1)

    first.a = 1
    second.l.append("x")

    assert plain(first) == plain(second) == {"l": ["x"], "more": 1, "a": 1}
    assert first.l == second.l == ["x"]
    assert second.a == 1
    first.close()
    second.close()
    assert on_disk(path) == {"l": ["x"], "more": 1, "a": 1}


def test_the_last_close_closes(path: Path) -> None:
    first, second = PersistedState(path, a=1), PersistedState(path)

    first.close()
    first.close()
    second.a = 2

    assert second.a == 2
    assert run_child(IS_LOCKED, path) == "locked\n"
    second.close()
    with pytest.raises(StateClosed):
        second.a  # noqa: B018
    assert run_child(IS_LOCKED, path) == "free\n"
    assert on_disk(path) == {"a": 2}


def test_handles_by_other_names_of_the_file_share_the_state(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "link").symlink_to(path)
    (elsewhere / "folder").symlink_to(path.parent)
    monkeypatch.chdir(path.parent)
    names: list[str | os.PathLike[str]]
    names = [path, "x.state", elsewhere / "link", elsewhere / "folder" / "x.state", f"{path.parent}/./x.state"]

    handles = [PersistedState(name, counter=0) for name in names]
    for handle in handles:
        handle.counter += 1

    assert [handle.counter for handle in handles] == [len(names)] * len(names)
    for handle in handles:
        assert handle.counter == len(names)
        handle.close()
    assert on_disk(path) == {"counter": len(names)}


def test_two_handles_share_the_state_across_a_vacuum(path: Path) -> None:
    first = PersistedState(path, a=1)
    first.a = 2
    first.vacuum()

    second = PersistedState(path)
    second.a = 3
    second.vacuum()
    first.b = 4
    second.close()

    assert plain(first) == {"a": 3, "b": 4}
    first.close()
    assert on_disk(path) == {"a": 3, "b": 4}


def test_a_hard_link_in_the_same_process_shares_the_state_or_is_refused(tmp_path: Path) -> None:
    """Two names of one inode must never be written by two states that know nothing of each other."""
    path, other = tmp_path / "x.state", tmp_path / "other.state"
    path.write_text("a: 1\n")
    os.link(path, other)

    with PersistedState(path) as first:
        try:
            second = PersistedState(other)
        except StateLocked:
            pass
        else:
            with second:
                second.b = 2
                assert first.b == 2
        first.a = 3

    assert on_disk(path)["a"] == 3
    assert on_disk(other)["a"] == 3


LEVELS = [False, 60, 0.5, True]  # each is stronger than those before


class Syncs(persistedstate._System):
    """Counts the syncs; time passes when a test says so."""

    count = 0
    timers: ClassVar[list[tuple[float, Callable[[], object]]]] = []

    @staticmethod
    def fsync(_: int) -> None:  # type: ignore[override]
        Syncs.count += 1

    @staticmethod
    def later(seconds: float, at_once: threading.Event, function: Callable[[], object]) -> None:
        Syncs.timers.append((seconds, lambda: None if at_once.is_set() else function()))

    @staticmethod
    def pass_time() -> None:
        while Syncs.timers:
            Syncs.timers.pop()[1]()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> type[Syncs]:
    monkeypatch.setattr(persistedstate, "_system", Syncs)
    Syncs.count, Syncs.timers[:] = 0, []
    return Syncs


@pytest.mark.parametrize(("first", "second"), [*itertools.product(LEVELS, LEVELS)])
def test_the_stronger_fsync_of_two_handles_holds_for_both(
    path: Path, syncs: type[Syncs], first: float, second: float
) -> None:
    is_stronger = LEVELS.index(second) > LEVELS.index(first)
    stronger = second if is_stronger else first
    with PersistedState(path, _fsync=first, a=1) as one:
        one.a = 2
        before = syncs.count
        with PersistedState(path, _fsync=second) as other:
            assert syncs.count == before + is_stronger  # what was written is as safe as that says

            syncs.pass_time()
            for handle in one, other:
                before = syncs.count
                handle.a += 1
                assert syncs.count - before == (stronger is True)
                assert [seconds for seconds, _ in syncs.timers] == ([] if isinstance(stronger, bool) else [stronger])
                syncs.pass_time()
                assert syncs.count == before + (stronger is not False)
        before = syncs.count
        one.a += 1
        assert (syncs.count - before, len(syncs.timers)) == (stronger is True, not isinstance(stronger, bool))
    assert on_disk(path) == {"a": 5}


def test_a_stronger_fsync_that_the_disk_refuses_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PersistedState(path, a=1) as one:
        one.a = 2

        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(persistedstate._system, "fsync", fail)
        with pytest.raises(OSError, match="error"):
            PersistedState(path, _fsync=True)
        monkeypatch.undo()
        one.a = 3

    assert on_disk(path) == {"a": 3}


def test_a_mode_that_is_not_that_of_the_open_file_is_refused(path: Path, umask: Callable[[int], int]) -> None:
    umask(0o022)
    with PersistedState(path, a=1) as one:
        with pytest.raises(StateError, match=r"permissions 0o644 and not 0o600; .*chmod"):
            PersistedState(path, _mode=0o600, b=1)
        for mode in None, 0o644:
            with PersistedState(path, _mode=mode) as other:
                other.a += 1
        path.chmod(0o600)
        PersistedState(path, _mode=0o600).close()
        assert plain(one) == {"a": 3}


def test_two_handles_with_the_same_mode_share_a_file_that_was_there_with_another(path: Path) -> None:
    """For a file that is there, the option says nothing."""
    path.write_text("a: 1\n")
    path.chmod(0o640)
    with PersistedState(path, _mode=0o600), PersistedState(path, _mode=0o600):
        assert permissions(path) == 0o640


def test_a_handle_that_is_dropped_without_close_loses_nothing(path: Path) -> None:
    code = """
        import gc, sys
        from persistedstate import PersistedState, plain
        for i in range(5):
            state = PersistedState(sys.argv[1], l=[])
            state.l.append(i)
            del state
            gc.collect()
        print(PersistedState(sys.argv[1]).l)
    """

    assert run_child(code, path) == "[0, 1, 2, 3, 4]\n"
    assert on_disk(path) == {"l": [0, 1, 2, 3, 4]}


# ---- Never closed ----------------------------------------------------------------------------------------------------


#: How a script ends without a hook that runs, and the exit code of that.
ENDS = {
    "os._exit(0)": 0,
    "os.abort()": -signal.SIGABRT,
    **{f"os.kill(os.getpid(), signal.{each.name})": -each for each in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)},
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fsync", ["False", "True", "0.01", "60"])
def test_never_closing_loses_nothing(path: Path, end: str, fsync: str) -> None:
    code = f"""
        import os, resource, signal, sys
        from persistedstate import PersistedState
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        state = PersistedState(sys.argv[1], _fsync={fsync}, counter=0, l=[])
        for i in range(50):
            state.counter += 1
            state.l.append({{"i": i}})
        print("done", flush=True)
        {end}
    """
    with Child(code, path) as child:
        child.expect("done")
        child.finish(ENDS[end])

    with PersistedState(path) as state:
        assert plain(state) == {"counter": 50, "l": [{"i": i} for i in range(50)]}
    assert listing(path.parent) == ["x.state"]


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise KeyError('x')", 1), ("raise KeyboardInterrupt", -2)],
)
@pytest.mark.parametrize("fsync", ["False", "60"])
def test_a_state_that_is_open_at_exit_is_closed(path: Path, end: str, code: int, fsync: str) -> None:
    """Nothing hangs, and the file is left tidy."""
    script = f"""
        import sys
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], _fsync={fsync}, a=1)
        state.a = 2
        {end}
    """

    with Child(script, path) as child:
        child.finish(code)

    assert path.read_text() == "a: 2\n"
    assert listing(path.parent) == ["x.state"]


def test_a_thread_that_runs_at_exit_does_no_harm(path: Path) -> None:
    code = """
        import sys, threading
        from persistedstate import PersistedState, StateClosed
        state = PersistedState(sys.argv[1], counter=0)
        begun = threading.Event()
        def work():
            try:
                while True:
                    state.counter += 1
                    begun.set()
            except StateClosed:
                pass
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
    """

    run_child(code, path)

    assert on_disk(path)["counter"] > 0


def test_a_thread_that_holds_a_lock_for_ever_does_not_keep_the_process_from_ending(path: Path) -> None:
    code = """
        import sys, threading
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], a=1)
        state.a = 2
        held = threading.Event()
        def hold():
            with state._thread_lock:
                held.set()
                threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
    """

    run_child(code, path)

    with PersistedState(path) as state:
        assert plain(state) == {"a": 2}


# ---- Writing ---------------------------------------------------------------------------------------------------------


def test_a_change_is_one_write(path: Path) -> None:
    with PersistedState(path, counter=0, l=[1, 2, 3]) as state:

        def increment() -> None:
            state.counter += 1

        for operation in (increment, lambda: state.l.append(4), lambda: state.l.extend([5, 6]), state.l.reverse):
            size = path.stat().st_size
            assert count_calls(operation, WRITE_CALLS) == 1
            assert path.stat().st_size > size


def test_fsync_true_syncs_each_change_and_false_none(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.state"
    with PersistedState(path, _fsync=True, a=1) as synced, PersistedState(other, a=1) as lazy:
        for operation in (lambda: setattr(synced, "a", 2), lambda: synced.update(a=3, b=4)):
            assert count_calls(operation, ["fsync", "fdatasync"]) == 1
        assert count_calls(lambda: setattr(lazy, "a", 2), ["fsync", "fdatasync"]) == 0
    assert on_disk(path) == {"a": 3, "b": 4}
    other.unlink()


def test_fsync_of_seconds_comes_also_when_writing_stops(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync happens in this thread or another, but no further call is needed for it."""
    synced = threading.Event()

    def fsync(descriptor: int, real: Callable[[int], None] = persistedstate._system.fsync) -> None:
        real(descriptor)
        synced.set()

    monkeypatch.setattr(persistedstate._System, "fsync", staticmethod(fsync))
    with PersistedState(path, _fsync=0.02, a=1) as state:
        synced.clear()
        state.a = 2

        assert synced.wait(30)


def test_a_full_disk_raises_and_changes_nothing(path: Path) -> None:
    """A limit of the file size plays the full disk; when there is space again, the next change works."""
    code = """
        import resource, sys
        from persistedstate import PersistedState, plain

        state = PersistedState(sys.argv[1], counter=0, text="")
        state.counter = 1
        before = open(sys.argv[1], "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, resource.RLIM_INFINITY))
        for change in (
            lambda: setattr(state, "text", "x" * 100),
            lambda: state.setdefault("l", ["y" * 100]),
            lambda: state.update(a="z" * 100, counter=7),
            lambda: state.update({f"key {n}": n for n in range(9)}),
        ):
            try:
                change()
                print("no error")
            except OSError as error:
                print(plain(state) == {"counter": 1, "text": ""}, open(sys.argv[1], "rb").read() == before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        state.text = "x" * 100
        print(plain(state) == {"counter": 1, "text": "x" * 100})
        state.close()
    """

    answer = run_child(code, path).splitlines()

    assert answer == ["True True"] * 4 + ["True"]
    assert on_disk(path) == {"counter": 1, "text": "x" * 100}


@pytest.mark.leaves("files")
@pytest.mark.parametrize("links", [1, 2])
def test_a_file_that_an_editor_replaced_is_never_mangled(path: Path, links: int) -> None:
    """Whoever wins: what the path names afterwards is all of the one or all of the other, or both merged."""
    theirs = "# mine, and longer\na: 5\nb: theirs\nc: " + "z" * 200 + "\n"
    state = PersistedState(path, a=1, b="ours")
    if links == 2:
        os.link(path, path.with_name("link"))
    path.with_name("new").write_text(theirs)
    path.with_name("new").rename(path)

    with warnings.catch_warnings(), contextlib.suppress(StateError, OSError):
        warnings.simplefilter("ignore", RuntimeWarning)
        state.n = 2
        state.vacuum()
        state.n = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        state.close()

    content = on_disk(path)
    assert content.get("b") in ("ours", "theirs")
    assert content.get("c", "z" * 200) == "z" * 200
    assert (content["b"] == "theirs") == ("c" in content)


def test_a_vacuum_that_fails_costs_nothing(path: Path) -> None:
    code = """
        import os, resource, sys, warnings
        from persistedstate import PersistedState, plain
        warnings.simplefilter("ignore")

        state = PersistedState(sys.argv[1], text="x" * 2000)
        state.a = 1
        limit = os.stat(sys.argv[1]).st_size
        state.text = "y"
        state.text = "y" * (limit + 500)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            state.vacuum()
        except OSError:
            pass
        print(state.a, len(state.text) - limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        state.a = 2
        os._exit(0)
    """

    assert run_child(code, path) == "1 500\n"
    assert listing(path.parent) == ["x.state"]
    with PersistedState(path) as state:
        assert state.a == 2
        assert set(state.text) == {"y"}


def test_a_copy_of_the_file_is_the_state_at_each_moment(path: Path, tmp_path: Path) -> None:
    """Every content that the file has, down to single system calls, reads as a whole stream and is old or new state."""
    copied = tmp_path / "copy.state"
    contents: list[tuple[bytes, tuple[Any, Any]]] = []
    with PersistedState(path, counter=0, l=[], d={"k": {}}) as state:

        def transact() -> None:
            with state.transaction():
                state.counter += 1
                state.l.append({"n": [state.counter]})
                state.d["k"][f"é{state.counter}"] = None

        def leave() -> None:
            state.l.pop(0)

        for operation in [transact, state.vacuum, state.l.reverse, leave, transact, transact, leave] * 3:
            before = plain(state)
            moments = contents_at_each_moment(path, operation)
            contents += [(content, (before, plain(state))) for content in moments]

    for content, allowed in contents:
        snapshot, *changes = yaml.safe_load_all(content.decode())
        assert isinstance(snapshot, dict)
        assert all(isinstance(change, list) for change in changes)
        copied.write_bytes(content)
        with PersistedState(copied, _readonly=True) as again:
            assert plain(again) in allowed

    assert len(contents) > 40
    copied.unlink()


def test_vacuum_writes_the_present_state_and_goes_on(path: Path) -> None:
    with PersistedState(path, a=1) as state:
        state.a = 2
        state.vacuum()
        assert path.read_text() == "a: 2\n"
        before = identity(path)
        state.vacuum()
        assert identity(path) == before
        state.a = 3
        assert path.read_text() == 'a: 2\n--- ["was",["a"],2]\n--- ["set",[],"a",3]\n'

    assert path.read_text() == "a: 3\n"


def test_the_journal_is_vacuumed_when_it_outgrows_the_snapshot(path: Path) -> None:
    """120 values of 128 KiB, one after the other, are 15 MB of records: the file stays below half of that."""
    sizes = []
    with PersistedState(path, text="", n=0) as state:
        for n in range(120):
            state.text = f"{n:04}" * 32768
            sizes.append(path.stat().st_size)
        state.n = 1
        assert state.text == "0119" * 32768

    assert any(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert max(sizes) < 8_000_000
    assert on_disk(path) == {"text": "0119" * 32768, "n": 1}


def test_many_small_changes_do_not_fill_the_disk(path: Path) -> None:
    """150,000 records of a counter are 4.9 MB; the counter stays exact across the vacuums."""
    largest = 0
    with PersistedState(path, counter=0) as state:
        for n in range(150):
            for _ in range(1000):
                state.counter += 1
            largest = max(largest, path.stat().st_size)
            assert state.counter == 1000 * (n + 1)

    assert largest < 2_500_000
    assert path.read_text() == "counter: 150000\n"


def test_a_file_that_another_process_makes_in_the_same_moment_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = persistedstate._system.open

    def open_late(name: str, flags: int, *mode: int) -> int:
        try:
            return real(name, flags, *mode)
        finally:
            monkeypatch.undo()
            path.write_text("a: 1\n")

    monkeypatch.setattr(persistedstate._system, "open", open_late)
    with PersistedState(path, _mode=0o600, a=2, b=2) as state:
        assert plain(state) == {"a": 1, "b": 2}

    assert on_disk(path) == {"a": 1, "b": 2}
    assert permissions(path) == 0o644


def test_a_file_that_is_replaced_between_opening_and_locking_is_opened_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("a: 1\n")
    lock = persistedstate._system.lock

    def lock_late(descriptor: int) -> bool:
        monkeypatch.undo()
        other = path.with_name("other")
        other.write_text("a: 2\n")
        other.replace(path)
        return lock(descriptor)

    monkeypatch.setattr(persistedstate._system, "lock", lock_late, raising=False)
    with PersistedState(path) as state:
        assert plain(state) == {"a": 2}
        state.a = 3
        assert yaml.safe_load(path.read_text().partition("--- ")[0]) == {"a": 2}


# ---- Unusual ways into the module ------------------------------------------------------------------------------------


def test_object_that_was_never_opened_closes_quietly() -> None:
    state = PersistedState.__new__(PersistedState)

    state.close()

    assert not hasattr(state, "key")


def test_state_is_shared_through_a_reload_of_the_module(path: Path) -> None:
    code = """
        import importlib, sys
        import persistedstate
        from persistedstate import PersistedState, plain

        state = PersistedState(sys.argv[1], a=1, l=[])
        importlib.reload(persistedstate)
        again = persistedstate.PersistedState(sys.argv[1], b={"n": 1})
        again.b["n"] += 1
        again.l.append(again.b)
        state.a += 1
        print(plain(state) == persistedstate.plain(again), persistedstate.PersistedState is PersistedState)
        state.close()
        again.close()
        importlib.reload(persistedstate)  # with nothing open it is a reload as any
        print(persistedstate.PersistedState is PersistedState)
    """
    assert run_child(code, path) == "True True\nFalse\n"
    assert oracle.read(path) == {"a": 2, "l": [{"n": 2}], "b": {"n": 2}}


def test_reader_follows_through_a_reload_of_the_module(path: Path) -> None:
    path.write_text("a: 1\nl: [{}]\n")
    code = """
        import importlib, sys
        import persistedstate
        from persistedstate import PersistedState, plain

        reader = PersistedState(sys.argv[1], _readonly=True)
        importlib.reload(persistedstate)
        with persistedstate.PersistedState(sys.argv[1]) as state:
            state.l[0]["n"] = 2
            print(reader.refresh(), plain(reader))
        reader.close()
        importlib.reload(persistedstate)
        print(persistedstate.PersistedState is PersistedState)
    """
    assert run_child(code, path) == "True {'a': 1, 'l': [{'n': 2}]}\nFalse\n"


def test_tools_know_the_errors_of_a_reloaded_module(path: Path) -> None:
    code = """
        import importlib, sys
        import persistedstate
        [before] = persistedstate.check(sys.argv[1])
        importlib.reload(persistedstate)
        [after] = persistedstate.check(sys.argv[1])
        print(before == after, type(after) is persistedstate.Problem)
    """
    path.write_text("a: [\n", encoding="utf-8")

    assert run_child(code, path) == "True True\n"


def test_state_that_is_left_open_by_a_reload_is_vacuumed_at_exit(path: Path) -> None:
    run_child(
        """
        import importlib, sys
        import persistedstate
        state = persistedstate.PersistedState(sys.argv[1], a=1)
        state.a = 2
        importlib.reload(persistedstate)
        """,
        path,
    )
    assert path.read_text() == "a: 2\n"
