"""Tests of the tests: applies deliberate faults to a copy of the code and shows which suites catch them.

    .venv/bin/python tests/sabotage.py             # every fault, and the table in tests/README.md
    .venv/bin/python tests/sabotage.py FAULT ...   # some, by their names

Each fault is one that a reviewer might miss. A suite catches it when one of its tests fails that passes without the
fault; at least two should, and after two that did the others are not asked. First asked are those that the table names,
for the tests that it names: that takes seconds where all suites take minutes.
Only `.venvs/engines/bin/python` has the servers with which engines are tested: without them their suites skip.
`tests/test_style.py` sees to it that every fault still finds its place.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "README.md"
MODULE = "persistedstate.py"
REDIS, POSTGRES = "persistedstate_logs/redis.py", "persistedstate_logs/postgres.py"
ASKING, LOG_JOURNAL = "persistedstate_logs/asking.py", "persistedstate_logs/journal.py"
BESIDE, DECLARED = "persistedstate_tools/beside.py", "persistedstate_tools/declared.py"
TASKS = "persistedstate_tools/tasks.py"
#: What is copied, so that nothing is imported from elsewhere.
PARTS = ["tests", "persistedstate_tools", "persistedstate_logs"]
CACHE = shutil.ignore_patterns("__pycache__")
BEGIN, END = "<!-- sabotage -->\n", "<!-- end of sabotage -->\n"
#: Seconds after which a suite that a fault makes hang counts as one that caught it.
LIMIT = 300

#: How many suites have to catch a fault; then the others are not asked.
WANTED = 2

#: The suites of the design, by their letters, and what stands beside them; those that take longer come later.
SUITES = {
    "journal": ["test_journal.py"],
    "E failing calls": ["test_failing_calls.py"],
    "M two hands": ["test_two_hands.py"],
    "B power-loss model": ["test_power_loss.py"],
    "N environment": ["test_environment.py"],
    "opening": ["test_opening.py", "test_bad_input.py"],
    "A crash points": ["test_crash_points.py"],
    "F interrupts": ["test_interrupts.py", "test_transactions.py"],
    "G signals": ["test_signals.py"],
    "lock": ["test_lock.py"],
    "K followers": ["test_followers.py"],
    "sharing": ["test_shared.py"],
    "sharing model": ["test_shared_state_machine.py"],
    "interrupted sharing": ["test_shared_interrupts.py"],
    "L threads": ["test_threads.py"],
    "text": ["test_text.py", "test_hand_edits.py"],
    "J fuzz": ["test_fuzz.py"],
    "D kill -9": ["test_kill.py"],
    "H model": ["test_state_machine.py"],
    "fast ways": ["test_short_way.py", "test_fast_paths.py"],
    "C real power loss": ["test_real_power_loss.py"],
    "killed edits": ["test_killed_edits.py"],
    "declared": ["test_declared.py"],
    "told of changes": ["test_on_change.py"],
    "tasks": ["test_tasks.py"],
    "watching": ["test_watching.py"],
    "log": ["logs/test_log.py"],
    "faults of servers": ["logs/test_faults.py"],
    "states in a log in memory": ["logs/test_memory_states.py"],
    "states on servers": ["logs/test_states.py"],
}


class Fault(NamedTuple):
    """A deliberate fault: its name, pairs of text in a file and what takes its place, and which file that is."""

    name: str
    changes: list[tuple[str, str]]
    file: str = MODULE


HANDED_OVER = '        self.descriptor, self.inode, self.temporary = new, None, ""\n        self._know(data)\n'

TAKE_OVER = "_take_over_attributes(theirs if self._may_decide(theirs) else old, new)"
FAULTS = [
    Fault("no fsync of the temporary file", [("if not is_lasting:\n", "if False:\n")]),
    Fault("no fsync of the folder", [("        _sync_folder(os.path.dirname(self.path))\n", "")]),
    Fault(
        "reopen after the renaming",
        [
            (
                HANDED_OVER,
                f"        _system.close(new)\n        new = _system.open(self.path, APPENDING)\n{HANDED_OVER}",
            ),
            ("= _System\n", "= _System\nAPPENDING = os.O_RDWR | os.O_APPEND\n"),
        ],
    ),
    Fault("go on with the old descriptor", [(HANDED_OVER, HANDED_OVER.partition("\n")[2])]),
    Fault(
        "no look at whose transaction is open",
        [("return self.owner == get_ident() and self._assign_later(", "return self._assign_later(")],
    ),
    Fault(
        "memory before journal",
        [
            (
                "            sink.append(entry)\n            if sink",
                "            apply(*arguments)\n            sink.append(entry)\n            if sink",
            ),
            (
                "            journal.append(data)\n            put(length, key, value)\n",
                "            put(length, key, value)\n            journal.append(data)\n",
            ),
        ],
    ),
    Fault(
        "a removed node keeps its parent",
        [("            child._parent = None\n            if child._place", "            if child._place")],
    ),
    Fault("no image before a change", [("            self._remember(operation, *arguments)\n", "            pass\n")]),
    Fault(
        "beginnings of records outlive their node",
        [
            (
                "tree is not None:  # else none below is primed\n",
                "tree is None:\n",
            )
        ],
    ),
    Fault("no read-back", [("            if _read_all(new) != data:", "            if False:")]),
    Fault(
        "ignore the short count of a write",
        [
            (
                "            if written != len(data):\n                raise",
                "            if False:\n                raise",
            )
        ],
    ),
    Fault(
        "leave what a failed write left", [("        if found and data.startswith(found):\n", "        if False:\n")]
    ),
    Fault(
        "try a failed fsync again",
        [
            (
                "            self._halt(error)\n            self._rescue()\n",
                "            self.journal.sync()\n",
            )
        ],
    ),
    Fault(
        "truncate before the lock",
        [
            (
                "_system.open(self.path, flags))\n            except",
                "_system.open(self.path, flags | os.O_TRUNC))\n            except",
            )
        ],
    ),
    Fault(
        "no look at the inode after locking",
        [
            (
                "        if self._lock(self.descriptor) and self._is_named():\n",
                "        if self._lock(self.descriptor):\n",
            )
        ],
    ),
    Fault(
        "no check of the process",
        [(", after_in_child=_mend_in_child)\n", ")\n")],
    ),
    Fault(
        "overwrite what was not read",
        [("        if is_changed or (isinstance(now, _Node)", "        if 0 and (isinstance(now, _Node)")],
    ),
    Fault(
        "go by the size of the file",
        [(" and len(_system.pread(self.beside, 2, self.note.start + size - 1)) == 1:", ":")],
    ),
    Fault(
        "hold no presence",
        [
            (
                "            _system.ftruncate(self.beside, 0)\n        self.stay()\n",
                "            _system.ftruncate(self.beside, 0)\n            self.stay()\n",
            )
        ],
    ),
    Fault(
        "let removed nodes live on in silence", [("            node._tree, node._heads = self.grave, _NO_HEADS\n", "")]
    ),
    Fault(
        "tell nobody of a new file",
        [("        self.note._replace(next_device=device, next_inode=inode).write(self.beside)\n", "")],
    ),
    Fault(
        "no copy of a record",
        [("            _write_at(self.beside, data, self.note.start + size)\n", "            pass\n")],
    ),
    Fault(
        "no copy of a record that an interrupt hit",
        [("        if is_there:\n            _write_at", "        if 0:\n            _write_at")],
    ),
    Fault("no reload after an interrupt", [("                _surely(self._reload)\n", "                pass\n")]),
    Fault("end a turn once", [("                self.journal.end_turn()  # an", "                pass  # an")]),
    Fault("write in a turn of the parent", [("        self.halted = (self._reopen,)\n", "")]),
    Fault(
        "unlock in the child",
        [("        if os.getpid() == self.pid:\n            with", "        if True:\n            with")],
    ),
    Fault(
        "take a lone --- for an empty snapshot",
        [
            ('        if start and line in ("-", "--", "---", "--- "):\n            return text[:start]\n', ""),
            (
                "        elif record is not None:\n",
                "        elif record is None:\n            self.value.clear()\n        else:\n",
            ),
        ],
    ),
    Fault(
        "skip a bad record",
        [
            (
                "            raise _BadText(problem.reason, problem.offset + offset) from None\n",
                "            return bool(problem)\n",
            )
        ],
    ),
    Fault(
        "apply twice",
        [
            (
                "        if len(self._items) == length:\n            self._tree.edits",
                "        if length >= 0:\n            self._tree.edits",
            ),
            (
                "if len(self._items) == length:\n            self._items.append(value)\n",
                "if length >= 0:\n            self._items.append(value)\n",
            ),
        ],
    ),
    Fault(
        "merge a half-saved file",
        [
            ("_QUIET, _QUIET_RETRY = 0.1, 0.02", "_QUIET, _QUIET_RETRY = 0.0, 0.0"),
            ("_PATIENCE = 1.0", "_PATIENCE = 0.0"),
        ],
    ),
    Fault(
        "compare an edit with the present snapshot only",
        [("by_person=False), *self.past]\n", "by_person=False)]\n")],
    ),
    Fault(
        "replace what was saved in the last moment",
        [("which takes longer\n            raise _Overtaken\n", "which takes longer\n            pass\n")],
    ),
    Fault(
        "temporary file with the default mode",
        [
            ("_system.open(path, _NEW, 0o600)", "_system.open(path, _NEW, 0o666)"),
            (
                "            _system.fchmod(new, stat.S_IMODE(old.st_mode))  # last: the others may take bits away\n",
                "            pass\n",
            ),
        ],
    ),
    Fault(
        "chown by path",
        [
            (
                f"            {TAKE_OVER}\n",
                f"            {TAKE_OVER}\n            os.chown(path, *os.fstat(old)[4:6])\n",
            ),
        ],
    ),
    Fault("compare time stamps alone", [("and self.read_at - self.seen_at > _SAME_DATE", "")]),
    Fault("unlock only by closing", [("                _system.unlock(descriptor)\n", "                pass\n")]),
    Fault("attributes not removed", [("in present.keys() - wanted.keys():", "in ():")]),
    Fault(
        "catch Exception where BaseException is needed",
        [
            (
                "        except BaseException:\n            if self.halted is pending:",
                "        except Exception:\n            if self.halted is pending:",
            )
        ],
    ),
    Fault(
        "no sync after the last write",
        [("                _system.later(self.seconds, self.is_stopped, self._run)\n", "")],
    ),
    Fault(
        "write the changes of a transaction one by one",
        [
            (
                "            self._make(self.batch, record, node._perform,",
                "            self._make(self.journal, self._framed(record, [edit]), node._perform,",
            )
        ],
    ),
    Fault(
        "forget to attach the items that come back to a list",
        [
            (
                "        self._items[since:] = image.kept[::-1]\n        self._attach(image.kept)\n",
                "        self._items[since:] = image.kept[::-1]\n",
            )
        ],
    ),
    Fault(
        "forget to attach the entries that come back to a mapping",
        [("        self._attach(image.kept.values())\n", "")],
    ),
    Fault(
        "trust the edits after an interrupt",
        [("            self.document.is_doubtful = True  # whether", "            pass  # whether")],
    ),
    Fault(
        "an operation that the text is not told of",
        [
            (
                "            self._tree.edits.append(edit)",
                "            assert self._tree",
            )
        ],
    ),
    Fault(
        "an item in the place of another is taken for that",
        [("            part.is_stale, part.given = True, value if", "            part.given = value if")],
    ),
    Fault(
        "no look at what records tell of the snapshot",
        [("if not self.document.is_told(fact, self.value.get(key, _GONE))", "if key is _GONE")],
    ),
    Fault(
        "leave half a rewrite without notice",
        [
            ("            if self.journal.is_half_rewritten or self.journal.unf", "            if self.journal.unf"),
            ("is_open = self.journal.is_half_rewritten or not", "is_open = not"),
        ],
    ),
    Fault(
        "catch up before the turn",
        [
            (
                "        self.journal.take_turn(wait)\n        self.catch_up()\n",
                "        self.catch_up()\n        self.journal.take_turn(wait)\n",
            )
        ],
    ),
    Fault(
        "who catches up takes a save for merged",
        [("self.is_suspicious = self.is_suspicious or not is_as_left", "self.is_suspicious = self.is_suspicious")],
    ),
    Fault(
        "append without a comparison",
        [("        return {'overtaken', head, news(after)}\n", "")],
        REDIS,
    ),
    Fault(
        "what belongs to a lost turn counts",
        [("    if (holder() or '') ~= token then return {'held', head} end\n", "")],
        REDIS,
    ),
    Fault(
        "what belongs to a lost turn counts, in PostgreSQL",
        [("ELSE $7::text = current_setting('persistedstate.turn', true) END", "ELSE true END")],
        POSTGRES,
    ),
    Fault(
        "a lost reply counts as nothing written",
        [
            (
                "            if pending.unanswered:\n                raise Unknown",
                "            if False:\n                raise Unknown",
            )
        ],
        ASKING,
    ),
    Fault(
        "ask again with another nonce",
        [
            (
                "pending is None or pending.what != (entry, after, edit):",
                "True:",
            )
        ],
        ASKING,
    ),
    Fault(
        "forget what is not known yet",
        [("            is_doubtful = True\n            self._settle()\n", "            self._writing = None\n")],
        LOG_JOURNAL,
    ),
    Fault(
        "a task that is cancelled keeps the turn",
        [("        hold.give_up()\n", "        pass\n")],
        TASKS,
    ),
    Fault(
        "what an interrupt in front of the end of a task's block left open stays open",
        [("            self.gen.close()  # undoes", "            pass  # undoes")],
    ),
    Fault(
        "forget what changes while the values are copied",
        [("values.up_to_date(tree.edits[len(edits) :])", "values.up_to_date([])")],
        BESIDE,
    ),
    Fault(
        "forget what changes while the new file is written",
        [("        self.data += more\n        self.edits,", "        self.edits,")],
        BESIDE,
    ),
    Fault(
        "give up a broken save at once",
        [
            (
                "self.saved, self.problem, self.is_doubtful = None, problem, True",
                "self.saved, self.problem = None, problem",
            )
        ],
    ),
    Fault(
        "take an edit that is not as declared",
        [("                declaration.check(value, self.path, edit.saved.text, mine)\n", "")],
    ),
    Fault(
        "assign what is not as declared",
        [("            check(keys, node, edit[1], arguments)\n", "            pass\n")],
    ),
    Fault(
        "assign what is not as declared, by the short way",
        [
            (
                "                return False\n            return True\n\n        return (kind",
                "                pass\n            return True\n\n        return (kind",
            )
        ],
        DECLARED,
    ),
    Fault(
        "tell of changes within the lock",
        [
            (
                "            self.lock.release()\n        if self.told",
                "            self._tell()\n            self.lock.release()\n        if self.told",
            )
        ],
    ),
    Fault(
        "tell of what did not change",
        [("        if _same(before, self.known):\n            return None\n        keys, old", "        keys, old")],
    ),
    Fault(
        "tell of a change with each later one again",
        [
            ("before, self.known = self.known, self._look(", "before, known = self.known, self._look("),
            ("        if _same(before, self.known):", "        if _same(before, known):"),
            ("_narrowed(self.keys, before, self.known)", "_narrowed(self.keys, before, known)"),
        ],
    ),
    Fault(
        "keep nothing of an edit of a killed script's file beside",
        [('self.journal.keep_aside(data, "edited") if stream.undecided else ""', '""')],
    ),
]


def sabotaged(fault: Fault, root: Path = ROOT) -> str:
    """Return the source of a file with a fault; fails if it does not find its place exactly once."""
    source = (root / fault.file).read_text(encoding="utf-8")
    for before, after in fault.changes:
        assert source.count(before) == 1, f"{fault.name}: {source.count(before)} places for {before!r}"
        source = source.replace(before, after)
    return source


def copied(folder: Path) -> None:
    """Copy the code and its tests."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=CACHE)
    for name in MODULE, "pyproject.toml":
        shutil.copy(ROOT / name, folder)


def failure(folder: Path, seed: str, tests: list[str], only: str = "") -> str:
    """Return the first of the tests in a folder that fails, empty if none does; only: part of the names to run."""
    small = {"PERSISTEDSTATE_SHARE": "0.1", "PERSISTEDSTATE_CASES": "0.1"}
    environment = {**small, **os.environ, "PERSISTEDSTATE_SEED": seed, "PYTHONPATH": str(folder)}
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # tests start many processes, which shall not all compile the same
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    words += ["-k", only] if only else []
    try:
        run = subprocess.run(words, cwd=folder, env=environment, capture_output=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    said = run.stdout.decode(errors="replace")
    is_run = run.returncode in {0, 1, 2, 5} and "during collection" not in said
    assert is_run, said + run.stderr.decode(errors="replace")
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", said, re.MULTILINE)
    return "" if run.returncode in {0, 5} else found[1] if found else f"exit code {run.returncode}"


def catching(fault: Fault, folder: Path, clean: Path, suite: str, only: str = "") -> str:
    """Return by which test a suite fails in a folder with a faulty module, and not in one without; print that."""
    seed = os.environ.get("PERSISTEDSTATE_SEED") or str(random.SystemRandom().getrandbits(48))
    test = failure(folder, seed, SUITES[suite], only)
    is_flawed = "::" in test and failure(clean, seed, [test]) != ""
    if test:
        what = ", which fails without it, too" if is_flawed else ""
        print(f"{fault.name}: {suite}: {test}{what} (PERSISTEDSTATE_SEED={seed})", flush=True)
    return "" if is_flawed else re.sub(r"^.*?::(\w+).*", r"\1", test, flags=re.DOTALL)


def named(fault: Fault) -> list[tuple[str, str]]:
    """Return the suites and tests that the table names for a fault."""
    table = TABLE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = dict(re.findall(r"^\| (.+) \| (.*) \|$", table, re.MULTILINE))
    found = re.findall(r"([^,].*?): `(\w+)`(?:, |$)", rows.get(fault.name, ""))
    return [(suite, test) for suite, test in found if suite in SUITES]


def tried(fault: Fault, clean: Path) -> dict[str, str]:
    """Return the suites that catch a fault, and by which tests."""
    caught: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        (folder / fault.file).write_text(sabotaged(fault), encoding="utf-8")
        for suite, only in [*named(fault), *((suite, "") for suite in SUITES)]:
            if suite not in caught and len(caught) < WANTED:
                test = catching(fault, folder, clean, suite, only)
                caught |= {suite: test} if test else {}
    print(f"{fault.name}: {'caught' if len(caught) == WANTED else 'NOT CAUGHT'} by {[*caught]}", flush=True)
    return caught


def in_table(caught: dict[str, str]) -> str:
    """Return what the table says of the suites that catch a fault, in the order of the suites."""
    return ", ".join(f"{suite}: `{caught[suite]}`" for suite in SUITES if suite in caught)


def main() -> int:
    """Try the faults; write the table when all were tried. The exit code tells whether two suites catch each."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down "ignored"
    chosen = [fault for fault in FAULTS if fault.name in sys.argv[1:] or not sys.argv[1:]]
    with ThreadPoolExecutor(os.cpu_count()) as pool, tempfile.TemporaryDirectory() as clean:
        copied(Path(clean))
        rows = [*zip(chosen, pool.map(lambda fault: tried(fault, Path(clean)), chosen), strict=True)]
    if len(chosen) == len(FAULTS):
        lines = [
            "| fault | caught by |\n",
            "|---|---|\n",
            *(f"| {fault.name} | {in_table(caught)} |\n" for fault, caught in rows),
        ]
        before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
        TABLE.write_text(before + BEGIN + "".join(lines) + END + rest.partition(END)[2], encoding="utf-8")
    return int(any(len(caught) < WANTED for _, caught in rows))


if __name__ == "__main__":
    sys.exit(main())
