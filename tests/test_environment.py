"""Suite N: full disks, odd files, closed streams, real failures of system calls, and every way to start a process.

What test_lock.py, test_opening.py and test_journal.py show of modes, links, forks and limits is not shown again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from checks import run_child
from processes import DROP_PRIVILEGES, PATIENCE, Child, at_each_moment, listing
from rounds import rounds as sized

import persistedstate
from persistedstate import PersistedState, StateLocked, plain

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

is_root = os.name == "posix" and os.geteuid() == 0


def run(*command: object, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command; a Python in it finds this project and its tests."""
    return subprocess.run(
        [*map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **{k: str(v) for k, v in environment.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def tool(name: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def in_mount_namespace(mount: str, code: str, *arguments: object) -> str:
    """Run a shell line and then Python code in mount and user namespaces of their own; skip where that is forbidden.

    The shell line must make "$1" a mount point, or the code does not run. No file grows beyond 32 MB: what goes on
    writing after its mount failed would fill the disk below.
    """
    script = f'ulimit -f 65536 && {mount} && mountpoint -q "$1" || exit 77; shift; exec "$@"'
    folder, *rest = arguments
    done = run(
        tool("unshare"), "-Urm", tool("sh"), "-c", script, "sh", folder,
        sys.executable, "-c", textwrap.dedent(code), folder, *rest,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- Full disks ------------------------------------------------------------------------------------------------------

#: Fills a small file system with something else, and goes on changing the state until and after nothing fits any more.
FILL = """
    import errno, os, random, sys, warnings
    import oracle
    from persistedstate import PersistedState, plain

    folder, fsync = sys.argv[1], sys.argv[2] == "True"
    path, ballast = os.path.join(folder, "x.state"), os.path.join(folder, "ballast")
    chance = random.Random(1)
    state = PersistedState(path, _fsync=fsync, counter=0, l=[])
    model = plain(state)

    def fill():
        with open(ballast, "wb", buffering=0) as file:
            for _ in range(1000):
                try:
                    file.write(b"x" * 1000)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return
        raise AssertionError("the file system has no limit")

    def check():
        from pathlib import Path
        assert oracle.same(plain(state), model), (plain(state), model)
        assert oracle.same(oracle.read(Path(path)), model)

    def change(number):
        with state.transaction():
            state.counter = number
            state.l.append("x" * chance.randrange(600))
            if len(state.l) > 9:
                del state.l[:5]

    def attempt(number):
        global model
        try:
            change(number)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            check()
            return False
        model = plain(state)
        assert model["counter"] == number
        return True

    warnings.simplefilter("ignore", RuntimeWarning)  # of a vacuum that found no space
    for turn in range(4):
        fill()
        refused = sum(not attempt(1000 * turn + number) for number in range(60))
        assert refused > 20, refused
        try:
            state.vacuum()
        except OSError as error:
            assert error.errno == errno.ENOSPC
        check()
        assert sorted(os.listdir(folder)) == ["ballast", "x.state"]
        if turn % 2:
            state.close()
            state = PersistedState(path, _fsync=fsync)
            check()
        os.unlink(ballast)
        assert attempt(1000 * turn + 500), "the disk has space again"
        check()
        state.vacuum()
        check()
    state.close()
    with PersistedState(path) as state:
        check()
    assert os.listdir(folder) == ["x.state"]
    print("done")
"""


@pytest.mark.parametrize("fsync", [False, True])
def test_full_disk_refuses_changes_until_there_is_space(tmp_path: Path, fsync: bool) -> None:
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1"'

    assert in_mount_namespace(mount, FILL, tmp_path, fsync) == "done\n"


def test_limit_of_the_file_size_at_each_byte_leaves_a_change_whole_or_undone(path: Path) -> None:
    code = """
        import os, resource, sys, warnings
        from pathlib import Path
        import oracle
        from persistedstate import PersistedState, plain

        warnings.simplefilter("error")
        path = Path(sys.argv[1])
        whole = undone = 0
        state = PersistedState(path, a=0, l=[])
        state.update(a=0, l=[])  # from here on no record has to tell of the snapshot
        for room in range(80):
            model = plain(state)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
            try:
                with state.transaction():
                    state.a = room
                    state.l.append([room])
            except OSError:
                undone += 1
            else:
                whole += 1
                model = {"a": room, "l": [*model["l"], [room]]}
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert oracle.same(plain(state), model)
            assert oracle.same(oracle.read(path), model)
        state.close()
        assert oracle.same(oracle.read(path), model)
        print(whole > 0, undone > 50)
    """

    assert run_child(code, path) == "True True\n"


# ---- Odd files and folders -------------------------------------------------------------------------------------------


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may write to: pytest's own is closed to the unprivileged child of a root's run."""
    folder = Path(tempfile.mkdtemp()).resolve()
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def attribute(path: Path) -> Iterator[Any]:
    """A function that sets an attribute of the file, such as "a" for append-only."""
    flags: list[str] = []

    def set_it(flag: str) -> None:
        if not is_root:
            pytest.skip("chattr needs root")
        done = run(tool("chattr"), f"+{flag}", path)
        if done.returncode:
            pytest.skip(f"no attributes here: {done.stderr.strip()[-200:]}")
        flags.append(flag)

    yield set_it
    for flag in flags:
        run("chattr", f"-{flag}", path)


@pytest.mark.filterwarnings("ignore:.*no vacuum:RuntimeWarning")
def test_append_only_file_takes_changes_and_costs_none(path: Path, attribute: Any) -> None:
    path.write_text("# mine\na: 1   # one\nl: []\n")
    attribute("a")
    for turn in range(3):
        with PersistedState(path) as state:
            state.a = turn
            with contextlib.suppress(OSError):
                state.vacuum()
            state.l.append(turn)
            expected = plain(state)
            assert oracle.read(path) == expected
        assert oracle.read(path) == expected

    with PersistedState(path, _readonly=True) as reader:
        assert plain(reader) == {"a": 2, "l": [0, 1, 2]}
    assert path.read_bytes().startswith(b"# mine\na: 1   # one\n")


def test_immutable_file_is_refused_and_can_be_read(path: Path, attribute: Any) -> None:
    path.write_text("a: 1\n")
    attribute("i")

    with pytest.raises(PermissionError):
        PersistedState(path)

    with PersistedState(path, _readonly=True) as reader:
        assert reader.a == 1
    assert path.read_text() == "a: 1\n"


def test_file_on_a_read_only_file_system_is_refused_and_can_be_read(tmp_path: Path) -> None:
    code = """
        import errno, os, sys
        from persistedstate import PersistedState
        for name in "x.state", "new.state":
            try:
                PersistedState(os.path.join(sys.argv[1], name))
            except OSError as error:
                print(error.errno == errno.EROFS, name in str(error))
        print(PersistedState(os.path.join(sys.argv[1], "x.state"), _readonly=True).a)
        print(os.listdir(sys.argv[1]))
    """
    fill = 'mountpoint -q "$1" && echo "a: 1" >"$1/x.state" && mount -o remount,ro "$1"'
    mount = f'mount -t tmpfs -o size=64k tmpfs "$1" && {fill}'

    answer = in_mount_namespace(mount, code, tmp_path)

    assert answer.splitlines() == ["True True", "True True", "1", "['x.state']"]


#: Entries of an ACL: what they are about, what they allow, and whom, as the kernel keeps them behind a version.
ACL_ENTRY, NOBODY_IN_PARTICULAR = struct.Struct("<HHI"), 0xFFFFFFFF
OWNER, USER, GROUP, MASK, OTHERS = 1, 2, 4, 16, 32


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """Return an ACL in the form of the attribute that holds it."""
    packed = [ACL_ENTRY.pack(tag, allowed, *(whom or [NOBODY_IN_PARTICULAR])) for tag, allowed, *whom in entries]
    return struct.pack("<I", 2) + b"".join(packed)


#: Lets user 4711 read and write, and the owning group nothing.
FOR_A_FRIEND = acl((OWNER, 6), (USER, 6, 4711), (GROUP, 0), (MASK, 6), (OTHERS, 0))
KEPT: dict[str, tuple[int, dict[str, bytes], bytes]] = {  # the mode, attributes, and the default ACL of the folder
    "mode": (0o640, {}, b""),
    "mode without bits for the group": (0o604, {}, b""),
    "mode with a bit above those of permission": (0o1771, {}, b""),
    "no ACL in a folder that has one for new files": (0o640, {}, FOR_A_FRIEND),
    "an ACL": (0o640, {"system.posix_acl_access": FOR_A_FRIEND}, b""),
    "another ACL than that for new files": (
        0o640,
        {"system.posix_acl_access": acl((OWNER, 6), (USER, 4, 4712), (GROUP, 4), (MASK, 4), (OTHERS, 0))},
        FOR_A_FRIEND,
    ),
    "attributes": (0o640, {"user.one": b"1", "user.empty": b"", "user.z": bytes(range(256))}, b""),
    "everything": (0o604, {"user.one": b"1", "system.posix_acl_access": FOR_A_FRIEND}, FOR_A_FRIEND),
}

#: Vacuums the file of the first argument, and tells what it looked like before, meanwhile and afterwards.
KEEPER = """
path, seen = sys.argv[1], set()

def look(name):
    status = os.lstat(name)
    attributes = tuple(sorted((each, os.getxattr(name, each)) for each in os.listxattr(name)))
    return status.st_uid, status.st_gid, oct(status.st_mode), attributes

def look_around():
    for entry in os.scandir(os.path.dirname(path)):
        try:
            seen.add(look(entry.path))
        except OSError:
            pass

state, before, inode = persistedstate.PersistedState(path), look(path), os.stat(path).st_ino
state.a = 2
processes.at_each_moment(state.vacuum, look_around)
assert os.stat(path).st_ino != inode, "it was not replaced"
assert look(path) == before, (before, look(path))
state.a = 3
state.close()
assert look(path) == before, (before, look(path))
# nobody may read it meanwhile who may not read it before: it is for its owner alone, or as it was
others = {(mode, acl) for uid, gid, mode, acl in seen} - {(before[2], before[3])}
assert all(int(mode, 8) & 0o7077 == 0 for mode, acl in others), others
print("kept")
"""


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="needs extended attributes")
@pytest.mark.parametrize("user", ["root", "user"])
@pytest.mark.parametrize("kept", KEPT)
def test_what_a_file_is_to_others_is_kept_across_a_vacuum(public_folder: Path, kept: str, user: str) -> None:
    """Mode, owner, ACL and attributes are those of the old file, not those that the folder gives to new ones."""
    mode, attributes, default = KEPT[kept]
    path = public_folder / "x.state"
    path.write_text("a: 1\n")
    if user == "root" and not is_root:
        pytest.skip("needs root")
    if is_root:
        os.chown(path, 65534, 65534 if user == "user" else 65533)
    try:
        for name, value in attributes.items():
            os.setxattr(path, name, value)
        if default:
            os.setxattr(public_folder, "system.posix_acl_default", default)
    except OSError as error:
        pytest.skip(f"the file system has no such attributes: {error}")
    path.chmod(mode)

    imports = "import os, sys, persistedstate, processes\n"  # before the child becomes a user who may not read them
    answer = run_child(imports + (DROP_PRIVILEGES if user == "user" else "") + KEEPER, path)

    assert answer == "kept\n"
    assert oracle.read(path) == {"a": 3}


def test_an_attribute_that_cannot_be_set_does_not_cost_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("a: 1\n")
    try:
        for name in "user.a", "user.b", "user.c":
            os.setxattr(path, name, b"keep me")
    except (AttributeError, OSError) as error:
        pytest.skip(f"no extended attributes here: {error}")
    inode = path.stat().st_ino

    def set_most(descriptor: int, name: str, value: bytes) -> None:
        if name == "user.b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.setxattr(descriptor, name, value)

    monkeypatch.setattr(persistedstate._system, "setxattr", set_most)
    with PersistedState(path) as state:
        state.a = 2

    assert path.stat().st_ino != inode
    assert sorted(os.listxattr(path)) == ["user.a", "user.c"]


@pytest.mark.parametrize("call", ["fchown", "fchmod", "setxattr", "removexattr"])
def test_where_a_new_file_cannot_be_as_the_old_one_the_old_one_is_rewritten(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """An owner who has no number in a user namespace gives EINVAL. Whatever it is, nobody may read more than before."""
    path.write_text("a: 1\n")
    path.chmod(0o640)
    try:
        if call == "setxattr":
            os.setxattr(path, "system.posix_acl_access", FOR_A_FRIEND)
        elif call == "removexattr":
            os.setxattr(path.parent, "system.posix_acl_default", FOR_A_FRIEND)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no ACLs here: {error}")
    if call == "fchown":
        if not is_root:
            pytest.skip("needs root")
        os.chown(path, 65534, 65534)
    before = path.stat()

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(persistedstate._system, call, refuse)
    with PersistedState(path) as state:
        state.a = 2
        state.vacuum()
        assert path.read_text() == "a: 2\n"

    after = path.stat()
    assert (after.st_ino, after.st_uid, after.st_mode) == (before.st_ino, before.st_uid, before.st_mode)


def test_owner_without_a_number_in_the_user_namespace_does_not_keep_the_file_from_shrinking(
    public_folder: Path,
) -> None:
    path = public_folder / "x.state"
    path.write_text("a: 1\n")
    path.chmod(0o666)
    if not is_root:
        pytest.skip("needs root")
    os.chown(path, 4711, 4711)
    code = """
        import os, sys, warnings
        from persistedstate import PersistedState
        warnings.simplefilter("error")
        state = PersistedState(sys.argv[1])
        for number in range(100):
            state.a = number
        state.vacuum()
        with open(sys.argv[1]) as file:
            print(file.read(), end="")
    """

    done = run(tool("unshare"), "-Ur", sys.executable, "-c", textwrap.dedent(code), path)

    if "unshare" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()[-200:]}")
    assert (done.stdout, done.stderr) == ("a: 99\n", "")


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="needs extended attributes")
def test_what_is_kept_beside_is_for_those_who_may_read_the_file(path: Path) -> None:
    path.write_text("a: 1\n")
    try:
        os.setxattr(path.parent, "system.posix_acl_default", FOR_A_FRIEND)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    path.chmod(0o640)
    if is_root:
        os.chown(path, 65534, 65533)
    with PersistedState(path):
        path.write_text("a: [\n")
        with pytest.warns(RuntimeWarning, match="kept in"):
            persistedstate._open_trees[0].refresh()
    (kept,) = path.parent.glob("x.state.edited-*")

    assert os.listxattr(kept) == []
    assert (kept.stat().st_mode, kept.stat().st_uid) == (path.stat().st_mode, path.stat().st_uid)
    kept.unlink()


def test_a_follower_on_a_file_system_with_a_slow_clock_sees_every_change(tmp_path: Path) -> None:
    code = """
        import os, sys
        from persistedstate import PersistedState
        path, stale = os.path.join(sys.argv[1], "x.state"), 0
        for _ in range(10):
            with open(path, "w") as file:
                file.write("a: 10\\n")
            with PersistedState(path, _readonly=True) as reader:
                descriptor = os.open(path, os.O_WRONLY)
                os.write(descriptor, b"a: 11\\n")
                os.close(descriptor)
                reader.refresh()
                stale += reader.a != 11
        print(stale)
    """

    assert in_mount_namespace('mount -t ramfs ramfs "$1"', code, tmp_path) == "0\n"


#: Mounts the file "real" of a folder at its file "x.state", as containers do.
MOUNT_A_FILE = 'cd "$(dirname "$1")" && echo "a: 1" >real && touch "$1" && mount --bind real "$1"'


def test_mounted_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    """What is mounted has no name any more; a reader may look at it all the same."""
    code = """
        import os, sys
        from persistedstate import PersistedState
        folder = os.path.dirname(sys.argv[1])
        os.rename(os.path.join(folder, "real"), os.path.join(folder, "old"))
        PersistedState(sys.argv[1]).close()
        os.unlink(os.path.join(folder, "old"))
        try:
            PersistedState(sys.argv[1])
        except OSError as error:
            print(error)
        print(PersistedState(sys.argv[1], _readonly=True).a)
    """

    refused, shown = in_mount_namespace(MOUNT_A_FILE, code, tmp_path / "x.state").splitlines()

    assert refused.endswith(f"(restart the container), or mount its folder instead: '{tmp_path / 'x.state'}'")
    assert shown == "1"


def test_mounted_file_that_is_replaced_while_it_is_open_takes_no_change_from_then_on(tmp_path: Path) -> None:
    code = """
        import os, sys, time
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1])
        state.a = 2
        new = os.path.join(os.path.dirname(sys.argv[1]), "new")
        with open(new, "w") as file:
            file.write("a: 7\\n")
        os.replace(new, os.path.join(os.path.dirname(sys.argv[1]), "real"))
        time.sleep(0.11)
        before = open(sys.argv[1]).read()
        for action in [lambda: setattr(state, "a", 3), lambda: state.update(a=4), state.refresh, state.vacuum]:
            try:
                action()
            except OSError as error:
                print("removed or replaced" in str(error), state.a, open(sys.argv[1]).read() == before)
        try:
            state.close()
        except OSError as error:
            print("told")
    """

    answer = in_mount_namespace(MOUNT_A_FILE, code, tmp_path / "x.state")

    assert answer.splitlines() == ["True 2 True"] * 4 + ["told"]


# ---- A folder of somebody else ---------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of root's in a folder of root's, which must still be as it was at the end, with nothing beside it."""
    if not is_root:
        pytest.skip("needs root, and somebody else")
    path = tmp_path_factory.mktemp("outside") / "secret"
    path.write_text("password: 1\n")
    path.chmod(0o600)
    before = path.stat(), path.read_bytes()
    yield path
    after = path.stat()
    assert {name: getattr(after, name) for name in STATUS} == {name: getattr(before[0], name) for name in STATUS}
    assert (path.read_bytes(), listing(path.parent)) == (before[1], ["secret"])


STATUS = ["st_ino", "st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_ctime_ns", "st_nlink"]


def put_link(path: Path, target: Path, owner: int = 65534) -> None:
    """Put a link of somebody else in the place of a file."""
    link = path.with_name("link")
    link.symlink_to(target)
    os.chown(link, owner, owner, follow_symlinks=False)
    link.replace(path)


@pytest.mark.parametrize("links", [1, 2], ids=["replaced", "rewritten in place"])
@pytest.mark.parametrize("which", ["x.state", "*.tmp", "x.state.edited-*"])
def test_a_link_at_each_moment_of_a_vacuum_leads_nowhere(
    path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, which: str, links: int
) -> None:
    """The owner of the folder has put it there, for root to follow."""
    monkeypatch.setattr(persistedstate, "_PATIENCE", 0.0)
    path.write_text("a: 1\n")
    os.chown(path, 65534, 65534)
    if links == 2:
        os.link(path, path.with_name("other"))
    with contextlib.suppress(OSError), warnings.catch_warnings(), PersistedState(path) as state:
        warnings.simplefilter("ignore", RuntimeWarning)
        for number in range(3):
            state.a = number
            if which.startswith("x.state."):
                path.write_text("a: [\n")

            def swap() -> None:
                for found in path.parent.glob(which):
                    put_link(found, secret)

            at_each_moment(state.vacuum, swap)
    for entry in path.parent.iterdir():
        assert b"password" not in (b"" if entry.is_symlink() else entry.read_bytes())
        entry.unlink()


def test_who_puts_a_file_in_the_place_of_ours_does_not_get_to_read_what_we_write(path: Path) -> None:
    """Their save is merged; owner and mode stay those of our file, unless it was theirs before, or they are root."""
    if not is_root:
        pytest.skip("needs root, and somebody else")
    for owner, theirs, expected in [(0, 65534, (0, 0o600)), (65534, 65534, (65534, 0o666)), (65534, 0, (0, 0o666))]:
        path.write_text("token: private\na: 1\n")
        path.chmod(0o600)
        os.chown(path, owner, owner)
        with PersistedState(path) as state:
            other = path.with_name("other")
            other.write_text("token: private\na: 2\n")
            other.chmod(0o666)
            os.chown(other, theirs, theirs)
            other.replace(path)
            state.refresh()
            assert state.a == 2
            state.token = "more private"  # noqa: S105

        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == expected


#: Swaps what is in the folder for links and files of its own, as fast as it can, until it is told to end; at least as
#: often as it is told at first, however seldom it comes to that beside other processes.
SWAPPER = f"""
import itertools, random, select
{DROP_PRIVILEGES}
folder, secret, chance, least = sys.argv[1], sys.argv[2], random.Random(int(sys.argv[3])), int(sys.argv[4])
print("begun", flush=True)
for number in itertools.count():
    if number >= least and number % 100 == 0 and select.select([sys.stdin], [], [], 0)[0]:
        break
    for name in chance.sample(sorted(os.listdir(folder)), k=1) if os.listdir(folder) else ["x.state"]:
        mine = os.path.join(folder, "mine" + str(number))
        try:
            match chance.randrange(6):
                case 0 | 1 | 2:
                    os.symlink(secret, mine)
                case 3:
                    os.link(secret, mine)
                case 4:
                    os.symlink(os.path.dirname(secret), mine)
                case 5:
                    with open(mine, "w") as file:
                        file.write(chance.choice(["a: 7\\n", "a: [\\n", "", "b: 1\\n"]))
                    os.chmod(mine, 0o666)
            os.replace(mine, os.path.join(folder, name))
        except OSError:
            pass
"""


@sized(ci=150, nightly=2000)
def test_a_vacuum_in_the_folder_of_an_enemy_touches_nothing_outside(
    public_folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, chance: random.Random, rounds: int
) -> None:
    monkeypatch.setattr(persistedstate, "_PATIENCE", 0.01)
    monkeypatch.setattr(persistedstate, "_QUIET", 0.001)
    monkeypatch.setattr(persistedstate, "_QUIET_RETRY", 0.0005)
    path, done = public_folder / "x.state", 0
    os.chown(public_folder, 65534, 65534)
    with (
        Child(SWAPPER, public_folder, secret, chance.getrandbits(32), rounds) as enemy,
        warnings.catch_warnings(),
        PersistedState(path, token="private") as state,  # noqa: S106
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        enemy.expect("begun")
        for number in itertools.count():
            # The enemy may win any number of rounds: how many we win is no promise, that we win some is.
            if number >= rounds and done > rounds / 10:
                break
            with contextlib.suppress(OSError):
                state.token = f"private {number}"
                state.vacuum()
                done += 1
        enemy.tell()
        enemy.finish()
        with contextlib.suppress(OSError):
            state.vacuum()


def test_extended_attributes_are_kept_across_a_vacuum(path: Path) -> None:
    path.write_text("a: 1\n")
    try:
        os.setxattr(path, "user.note", b"keep me")
    except (AttributeError, OSError) as error:
        pytest.skip(f"no extended attributes here: {error}")

    with PersistedState(path) as state:
        state.a = 2
        inode = path.stat().st_ino
        state.vacuum()
        assert path.stat().st_ino != inode
        assert os.getxattr(path, "user.note") == b"keep me"

    assert os.getxattr(path, "user.note") == b"keep me"


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty"])
@pytest.mark.parametrize("options", [{}, {"_readonly": True}], ids=["writer", "reader"])
def test_device_is_refused(tmp_path: Path, device: str, options: dict[str, Any]) -> None:
    link = tmp_path / "x.state"
    link.symlink_to(device)

    with pytest.raises(OSError, match=r"regular|device|open|Permission"):
        PersistedState(link, **options)

    assert listing(tmp_path) == ["x.state"]


def test_socket_is_refused_to_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.state")

        with pytest.raises(OSError, match=r"regular|device|address"):
            PersistedState("x.state", _readonly=True)

    assert listing(tmp_path) == ["x.state"]


def test_folder_that_went_away_is_an_error_and_memory_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    state = PersistedState(folder / "x.state", a=1)
    state.a = 2
    shutil.rmtree(folder)

    with pytest.raises(OSError, match=r"No such|gone|removed"), pytest.warns(RuntimeWarning):
        state.vacuum()

    assert state.a == 2
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        state.a = 3
        state.close()
    assert oracle.read(folder / "x.state") == {"a": 3}


# ---- Closed streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_what_is_printed_to_a_closed_stream_does_not_get_into_the_file(path: Path, closed: str) -> None:
    code = """
        import os, sys
        from persistedstate import PersistedState
        state = PersistedState(sys.argv[1], a=1)
        for number in range(3):
            state.a = number
            for stream in 0, 1, 2:
                try:
                    os.write(stream, b"garbage\\n")
                except OSError:
                    pass
            state.vacuum()
        state.l = [1]
        os._exit(0)
    """
    script = f'exec "$@" {closed}'

    done = run(tool("sh"), "-c", script, "sh", sys.executable, "-c", textwrap.dedent(code), path)

    assert done.returncode == 0
    assert oracle.read(path) == {"a": 2, "l": [1]}
    assert b"garbage" not in path.read_bytes()


# ---- Locales ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_file_is_utf_8_whatever_the_locale_says(path: Path, locale: str) -> None:
    code = r"""
        import locale, sys
        from persistedstate import PersistedState, plain
        print(locale.getpreferredencoding(False).lower() in {"utf-8", "utf8"}, sys.flags.utf8_mode)
        with PersistedState(sys.argv[1]) as state:
            assert plain(state) == {"gr\xfc\xdfe": ["\u043a\u043b\u044e\u0447", "\U0001f600"]}, state
            state["gr\xfc\xdfe"].append("\xe9")
            state["\u20ac"] = {"\xdf": b"\xff"}
        print(ascii(plain(PersistedState(sys.argv[1], _readonly=True))))
    """
    path.write_bytes('# Überschrift\ngrüße:\n- ключ   # ß\n--- ["insert",["grüße"],1,"😀"]\n'.encode())
    expected = {"grüße": ["ключ", "😀", "é"], "€": {"ß": b"\xff"}}

    done = run(sys.executable, "-c", textwrap.dedent(code), path, LC_ALL=locale, PYTHONUTF8=0, PYTHONCOERCECLOCALE=0)

    assert done.stdout == f"{locale != 'C'} 0\n{expected!a}\n", done.stderr
    assert path.read_bytes().startswith('# Überschrift\ngrüße:\n- ключ   # ß\n- "😀"\n- é\n'.encode())
    assert oracle.read(path) == expected


# ---- Real failures of system calls -----------------------------------------------------------------------------------

#: Counts, acknowledges each change whose statement returned, and tells of errors; what it leaves is the file.
COUNTER = """
    import os, sys, warnings
    from persistedstate import PersistedState, plain
    warnings.simplefilter("ignore")
    state = PersistedState(sys.argv[1], _fsync=sys.argv[2] == "True")
    for number in range(1, 13):
        try:
            with state.transaction():
                state.n = number
                state.l.append(number)
        except OSError as error:
            os.write(1, b"error %d %d\\n" % (error.errno, plain(state)["n"]))
        else:
            os.write(1, b"done %d %d\\n" % (number, plain(state)["n"]))
        if number % 4 == 0:
            try:
                state.vacuum()
            except OSError as error:
                os.write(1, b"no vacuum %d\\n" % error.errno)
    os._exit(0)
"""


def counted(path: Path, command: list[object], *, fsync: bool, **environment: object) -> tuple[int, list[list[str]]]:
    """Let COUNTER run under a command; check what it leaves; return its exit code and what it told."""
    path.write_text("n: 0\nl: []\n")
    done = run(*command, sys.executable, "-c", textwrap.dedent(COUNTER), path, fsync, **environment)
    told = [line.split() for line in done.stdout.splitlines()]
    numbers = [int(words[1]) for words in told if words[0] == "done"]
    with contextlib.closing(opened_after_death(path)) as state:
        found = plain(state)
    assert oracle.same(oracle.read(path), found)
    assert listing(path.parent) == [path.name]
    assert found["n"] == (found["l"] or [0])[-1], found
    assert found["l"][: len(numbers)] == numbers or set(numbers) <= set(found["l"]), (found, told)
    assert found["l"] == sorted(set(found["l"]))
    return done.returncode, told


def opened_after_death(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a torn tail
        return PersistedState(path)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of shim.c."""
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).parent / "support/shim.c"
    done = run(tool("gcc"), "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", built, source, "-ldl")
    if done.returncode:
        pytest.skip(f"gcc cannot build here: {done.stderr.strip()[-200:]}")
    return built


@sized(ci=8, nightly=2000)
def test_kill_in_the_middle_of_a_write_loses_nothing_acknowledged(
    path: Path, shim: Path, chance: random.Random, rounds: int
) -> None:
    """The kernel has taken a part of the bytes of a record, or of a new file, when the process ends."""
    for _ in range(rounds):
        knobs = {"FI_OP": "write", "FI_AT": chance.randint(1, 14), "FI_SHORT": chance.randint(-1, 40), "FI_KILL": 1}

        code, told = counted(path, [], fsync=False, LD_PRELOAD=shim, FI_PATH="x.state", **knobs)

        assert code == -signal.SIGKILL
        last = int(told[-1][1]) if told else 0
        found = oracle.read(path)
        assert found["n"] in {last, last + 1}, (knobs, told)
        assert found["l"] == list(range(1, found["n"] + 1)), (knobs, told)


@pytest.mark.parametrize("part", [0, 9])
@pytest.mark.parametrize("at", [1, 6, 7])
def test_write_that_takes_only_a_part_and_then_fails_is_undone(path: Path, shim: Path, part: int, at: int) -> None:
    """What a full disk does: a short count, then an error; here for the rest of the time."""
    knobs = {"FI_OP": "write", "FI_AT": at, "FI_SHORT": part, "FI_ERROR": errno.ENOSPC}

    code, told = counted(path, [], fsync=False, LD_PRELOAD=shim, FI_PATH="x.state", **knobs)

    assert code == 0
    assert {words[0] for words in told[-3:]} <= {"error", "no"}
    last = max((int(words[1]) for words in told if words[0] == "done"), default=0)
    assert oracle.read(path) == {"n": last, "l": list(range(1, last + 1))}
    assert all(int(words[2]) == last for words in told if words[0] == "error")


@pytest.mark.parametrize(("operation", "short"), [("fsync", 0), ("rename", 1), ("rename", 0)])
@pytest.mark.parametrize("at", [1, 3])
def test_kill_at_the_steps_of_a_vacuum_loses_nothing(
    path: Path, shim: Path, operation: str, short: int, at: int
) -> None:
    knobs = {"FI_OP": operation, "FI_AT": at, "FI_SHORT": short, "FI_KILL": 1}

    code, told = counted(path, [], fsync=False, LD_PRELOAD=shim, FI_PATH="x.state", **knobs)

    assert code == -signal.SIGKILL
    last = int(told[-1][1])
    assert oracle.read(path) == {"n": last, "l": list(range(1, last + 1))}


@pytest.mark.leaves("files")
def test_what_sed_makes_of_a_long_list_that_a_killed_script_changed_is_kept_beside(path: Path) -> None:
    path.write_text("jobs:\n" + "".join(f"- item number {number}\n" for number in range(100)))
    code = (
        "import sys, persistedstate; persistedstate.PersistedState(sys.argv[1]).jobs.append('last'); print(); input()"
    )
    with Child(code, path) as child:
        child.expect("")  # then it is killed
    assert run(tool("sed"), "-i", "s/item number 7$/another/", path).returncode == 0
    edited = path.read_bytes()

    with pytest.warns(RuntimeWarning, match="jobs: changed in the snapshot"), PersistedState(path) as state:
        assert state.jobs[-1] in ("last", "item number 99")

    [kept] = [file for file in path.parent.iterdir() if file != path]
    assert kept.read_bytes() == edited


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A command that makes system calls on the file fail; to be followed by the injection."""
    log = tmp_path_factory.mktemp("strace") / "log"
    tried = run(tool("strace"), "-f", "-o", log, "-e", "trace=fsync", "true")
    if tried.returncode:
        pytest.skip(f"strace cannot trace here: {tried.stderr.strip()[-200:]}")
    return ["strace", "-f", "-qq", "-o", log]


@pytest.mark.parametrize(
    ("call", "fault", "fsync"),
    [
        ("write", "error=EDQUOT:when=3+", False),
        ("write", "error=EIO:when=2", True),
        ("write", "retval=4:when=3", False),
        ("write", "signal=KILL:when=4", False),
        ("fsync", "error=EIO:when=3", True),
        ("fsync", "error=EIO:when=2+", True),
    ],
)
def test_system_call_that_fails_costs_at_most_its_own_statement(
    path: Path, strace: list[object], call: str, fault: str, fsync: bool
) -> None:
    command = [*strace, "-P", path, "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]

    code, told = counted(path, command, fsync=fsync)

    assert code in {0, 137, -signal.SIGKILL}
    done = [int(words[1]) for words in told if words[0] == "done"]
    found = oracle.read(path)
    assert set(done) <= set(found["l"])
    assert len(found["l"]) <= len(done) + 1 or call == "fsync"
    for words in told:
        if words[0] == "error":
            assert int(words[1]) in {errno.EDQUOT, errno.EIO, errno.ENOSPC}
    if "+" not in fault and "KILL" not in fault:
        assert done[-1] == 12  # it works again


@pytest.mark.parametrize("at", [1, 2])
def test_folder_that_cannot_be_synced_costs_nothing(path: Path, strace: list[object], at: int) -> None:
    folder = path.parent
    command = [*strace, "-P", folder, "-e", "trace=fsync", "-e", f"inject=fsync:error=EIO:when={at}"]

    code, told = counted(path, command, fsync=False)

    assert code == 0
    assert [int(words[1]) for words in told if words[0] == "done"] == list(range(1, 13))
    assert oracle.read(path) == {"n": 12, "l": list(range(1, 13))}


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP"])
def test_file_system_without_locks_is_told_with_path_and_advice(path: Path, strace: list[object], code: str) -> None:
    """As on a network file system whose server knows no locks: no change is taken, reading works."""
    path.write_text("a: 1\n")
    script = """
        import sys
        from persistedstate import PersistedState
        print(PersistedState(sys.argv[1], _readonly=True).a)
        try:
            PersistedState(sys.argv[1])
        except OSError as error:
            print(error.errno, error.filename, error.strerror, sep=", ")
    """
    command = [*strace, "-e", "trace=flock", "-e", f"inject=flock:error={code}", sys.executable]
    number = getattr(errno, code)
    said = f"{os.strerror(number)}; the file system does not seem to support locks: put the file on a local disk"

    opened = run(*command, "-c", textwrap.dedent(script), path)
    changed, shown = (run(*command, "-m", "persistedstate", *rest) for rest in [("set", path, "a", 2), ("show", path)])

    assert (opened.stdout, opened.stderr) == (f"1\n{number}, {path}, {said}\n", "")
    assert (changed.returncode, changed.stdout) == (2, "")
    assert changed.stderr == f"persistedstate: {path}: {said}\n"
    assert (shown.returncode, shown.stdout) == (0, "a: 1\n")
    assert path.read_text() == "a: 1\n"
    assert listing(path.parent) == ["x.state"]


# ---- Every way to start a process ------------------------------------------------------------------------------------

PARENT = """
    import multiprocessing, os, runpy, subprocess, sys, threading, warnings
    from persistedstate import PersistedState, StateError, plain
    warnings.simplefilter("ignore")
    path = sys.argv[1]
    state = PersistedState(path, a=1, d={"k": 1}, l=[1])
    state.a = 2

    def look():
        status = os.stat(path)
        with open(path, "rb") as file:
            return status.st_ino, status.st_mtime_ns, file.read()
"""

#: Tries to open the file of the first argument for writing, and reads it.
OTHER = """
import os, sys
from persistedstate import PersistedState, StateLocked, plain
path = os.environ["OTHER_PATH"]
try:
    PersistedState(path)
    print("opened", flush=True)
except StateLocked as error:
    print("locked by the parent", error.pid == int(os.environ["OTHER_PARENT"]), flush=True)
print(plain(PersistedState(path, _readonly=True)), flush=True)
"""

STARTS = {
    "spawn": """
        process = multiprocessing.get_context("spawn").Process(target=runpy.run_path, args=(other,))
        process.start(); process.join(); assert process.exitcode == 0""",
    "forkserver": """
        process = multiprocessing.get_context("forkserver").Process(target=runpy.run_path, args=(other,))
        process.start(); process.join(); assert process.exitcode == 0""",
    "posix_spawn": """
        pid = os.posix_spawn(sys.executable, [sys.executable, other], os.environ)
        assert os.waitpid(pid, 0)[1] == 0""",
    "fork and exec": """
        pid = os.fork()
        if not pid:
            os.execv(sys.executable, [sys.executable, other])
        assert os.waitpid(pid, 0)[1] == 0""",
    "subprocess with a function before exec": """
        subprocess.run([sys.executable, other], preexec_fn=os.getpid, check=True)""",
    "subprocess that keeps descriptors": """
        subprocess.run([sys.executable, other], close_fds=False, check=True)""",
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_process_that_is_started_leaves_file_and_lock_alone(
    path: Path, tmp_path_factory: pytest.TempPathFactory, start: str
) -> None:
    """It is another process as any: it cannot open the file for writing, and may read it."""
    other = tmp_path_factory.mktemp("other") / "other.py"
    other.write_text(OTHER)
    script = f"""{PARENT}
    if True:
        other = sys.argv[2]
        os.environ.update(OTHER_PATH=path, OTHER_PARENT=str(os.getpid()))
        before = look(){start}
        assert look() == before
        state.a += 1
        print("after", flush=True)
        sys.stdin.readline()
    state.close()
    """
    with Child(script, path, other) as child:
        child.expect("locked by the parent True")
        child.expect(str({"a": 2, "d": {"k": 1}, "l": [1]}))
        child.expect("after")
        with pytest.raises(StateLocked):
            PersistedState(path)
        child.tell()
        child.finish()

    assert oracle.read(path) == {"a": 3, "d": {"k": 1}, "l": [1]}


@pytest.mark.parametrize("end", ["pass", "raise KeyError", "sys.exit(0)"])
def test_fork_within_a_transaction_leaves_it_to_the_parent(path: Path, end: str) -> None:
    """However the child leaves the block: it writes nothing, and the parent commits what it did itself."""
    script = f"""{PARENT}
    before = look()
    try:
        with state.transaction():
            state.a = 3
            child = os.fork()
            if not child:
                {end}
            else:
                os.waitpid(child, 0)
                assert look() == before
                state.l.append(2)
        if not child:
            print("the child committed", flush=True)
    except BaseException as error:
        if child:
            raise
        os._exit(0)
    if not child:
        os._exit(1)
    print(look()[0] == before[0], plain(state))
    """

    answer = run_child(script, path).splitlines()

    assert answer[-1] == f"True { ({'a': 3, 'd': {'k': 1}, 'l': [1, 2]}) }"
    assert oracle.read(path) == {"a": 3, "d": {"k": 1}, "l": [1, 2]}


def test_fork_while_another_thread_is_in_a_change_does_not_hang_the_child(path: Path) -> None:
    script = f"""{PARENT}
    inside, over = threading.Event(), threading.Event()

    def work():
        with state.transaction():
            state.a = 3
            inside.set()
            over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    child = os.fork()
    if not child:
        try:
            state.a = 4
        except StateError:
            print("refused", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    over.set()
    thread.join()
    print(plain(state)["a"], flush=True)
    """

    assert run_child(script, path).splitlines() == ["refused", "3"]
    assert oracle.read(path)["a"] == 3


def test_daemon_that_forks_after_opening_is_told_to_open_again(path: Path) -> None:
    """The parent leaves without a word; its child cannot use the handle, and can open the file itself."""
    script = f"""{PARENT}
    ours, theirs = os.pipe()
    if os.fork():
        os._exit(0)
    os.close(theirs)
    while os.read(ours, 1):
        pass
    try:
        state.a = 3
    except StateError as error:
        print("told", str(os.getpid()) in str(error), flush=True)
    with PersistedState(path, _wait=600) as mine:
        mine.a += 5
    print(mine is not state, flush=True)
    os._exit(0)
    """
    with Child(script, path) as child:
        child.expect("told True")
        child.expect("True")

    assert oracle.read(path) == {"a": 7, "d": {"k": 1}, "l": [1]}


def test_node_that_is_sent_to_a_process_arrives_as_a_plain_container(path: Path) -> None:
    with PersistedState(path, l=[1, {"k": [2]}]) as state:
        import pickle

        sent = pickle.loads(pickle.dumps(state.l))
        sent.append(3)
        with pytest.raises(TypeError):
            pickle.dumps(state)

        assert type(sent) is list
        assert oracle.read(path) == {"l": [1, {"k": [2]}]}


def test_no_descriptor_of_the_state_is_inheritable_at_any_moment(path: Path) -> None:
    """A program that another thread starts in the middle of a vacuum must not keep the lock."""
    inheritable: set[str] = set()

    def look() -> None:
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
            with contextlib.suppress(OSError):
                if os.get_inheritable(int(name)) and "x.state" in os.readlink(f"/proc/self/fd/{name}"):  # noqa: PTH115
                    inheritable.add(name)

    def work() -> None:
        with PersistedState(path, a=1) as state:
            state.a = 2
            state.vacuum()

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    at_each_moment(work, look)

    assert inheritable == set()


def test_a_disk_that_garbles_what_it_takes_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new snapshot is read back before it takes the place of the old one."""
    with PersistedState(path, a=1, text="x" * 100) as state:
        state.a = 2
        before = path.read_bytes()

        def garble(descriptor: int) -> None:
            os.write(descriptor, b"?")
            os.fsync(descriptor)

        monkeypatch.setattr(persistedstate._system, "fsync", garble, raising=False)
        with pytest.raises(OSError, match="read back"):
            state.vacuum()
        monkeypatch.undo()

        assert path.read_bytes() == before
        assert listing(path.parent) == [path.name]
        state.vacuum()
    assert oracle.read(path) == {"a": 2, "text": "x" * 100}


def test_a_program_that_writes_the_file_in_two_halves_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistedstate, "_PATIENCE", PATIENCE)  # on a busy machine the program may take long
    halves = """
        import sys, time
        path, text = sys.argv[1:]
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            print("half", flush=True)
            time.sleep(0.05)  # the state must not take what there is now
            file.write(text[len(text) // 2 :])
    """
    with PersistedState(path, a=1, b=[1, 2, 3], c="last") as state:
        with Child(halves, path, path.read_text().replace("a: 1", "a: 7")) as child:
            child.expect("half")
            state.refresh()
            child.finish()
        state.refresh()

        assert plain(state) == {"a": 7, "b": [1, 2, 3], "c": "last"}
    assert oracle.read(path) == {"a": 7, "b": [1, 2, 3], "c": "last"}


def test_a_copy_from_before_a_vacuum_that_a_shell_edits_costs_nothing(path: Path) -> None:
    with PersistedState(path, a=1, b=1) as state:
        copied = shutil.copy(path, path.with_name("copy"))
        state.c = 3
        state.vacuum()
        state.b = 2

        subprocess.run(f"sed -i 's/a: 1/a: 7/' {copied} && mv {copied} {path}", shell=True, check=True)  # noqa: S602
        state.refresh()

        assert plain(state) == {"a": 7, "b": 2, "c": 3}
    assert oracle.read(path) == {"a": 7, "b": 2, "c": 3}


def test_a_save_that_comes_while_a_vacuum_waits_for_the_disk_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PersistedState(path, a=1, b=1) as state:
        state.b = 2

        def save_first(descriptor: int) -> None:
            monkeypatch.undo()
            other = path.with_name("other")
            other.write_text("a: 7\nb: 1\n")
            other.replace(path)
            os.fsync(descriptor)

        monkeypatch.setattr(persistedstate._system, "fsync", save_first, raising=False)
        state.vacuum()

        assert plain(state) == {"a": 7, "b": 2}
    assert oracle.read(path) == {"a": 7, "b": 2}
