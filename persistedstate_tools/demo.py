"""The main job before your eyes: a script is killed, started again, interrupted, started again, and finishes."""

from __future__ import annotations

import os
import re
import signal
import sys
from argparse import Namespace
from itertools import pairwise
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

import persistedstate
from persistedstate import _advised, _read_file
from persistedstate_tools.messages import Refusal

_DEMO_ITEMS = 300
#: Seconds after which a run of the demo that does not get on is given up.
_DEMO_PATIENCE = 60.0
_DEMO_SCRIPT = f"""\
import time

from persistedstate import PersistedState

STATE = PersistedState("example.state", last_id=0, processed=[], stats={{"even": 0, "odd": 0}})

print("starting at id", STATE.last_id + 1, flush=True)
for current_id in range(STATE.last_id + 1, {_DEMO_ITEMS + 1}):
    time.sleep(0.002)  # the work
    with STATE.transaction():
        STATE.last_id = current_id
        STATE.processed.append(f"item {{current_id}}")
        STATE.stats["odd" if current_id % 2 else "even"] += 1
STATE.close()
"""


class _Demo:
    """The main job before your eyes: a script is killed, started again, interrupted, started again, and finishes."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.state = os.path.join(folder, "example.state")
        #: The script shall find this very module: it lies beside this package.
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.environ = {**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])}

    def run(self) -> int:
        """Run the script three times and report what was seen; 1 when it is not as promised."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down "ignored"
        script = os.path.join(self.folder, "resumable.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(_DEMO_SCRIPT)
        print("A resumable script, resumable.py:\n")
        self._print_file(script, head=99, tail=0)
        kill = getattr(signal, "SIGKILL", signal.SIGTERM)
        interrupt = signal.SIGTERM if os.name == "nt" else signal.SIGINT
        return self._report(
            [
                self._run_script(_DEMO_ITEMS // 3, kill),
                self._run_script(_DEMO_ITEMS * 2 // 3, interrupt),
                self._run_script(),
            ]
        )

    def _run_script(self, stop_at: int = 0, stop_with: Any = None) -> tuple[int, int, str]:
        """Run the script, stopped once the file shows an id; return its first id, the file's last one, and its end."""
        print("$ python resumable.py")
        command = [sys.executable, "resumable.py"]
        options: dict[str, Any] = {"cwd": self.folder, "env": self.environ, "text": True}
        with Popen(command, stdout=PIPE, stderr=PIPE, **options) as process:  # noqa: S603 - it is our own
            if stop_with is not None:
                self._await_id(stop_at, process)
                process.send_signal(stop_with)
            output, errors = process.communicate(timeout=_DEMO_PATIENCE)
        print("\n".join([output.strip(), *errors.splitlines()[-1:]]))
        end = f"was stopped by {stop_with.name}" if stop_with else "finished"
        print(f"[{stop_with.name} was sent when the file showed id {stop_at}]" if stop_with else "[finished]")
        if not output or (process.returncode != 0) is (stop_with is None):
            raise Refusal(f"the script ended with {process.returncode}: {errors}")
        print("\nThe file that it left:\n")
        self._print_file(self.state, head=8, tail=4)
        return int(output.split()[-1]), self._last_id(), end

    def _await_id(self, wanted: int, process: Any) -> None:
        """Return as soon as an id is in the file, without asking the process that writes it."""
        deadline = persistedstate._system.now() + _DEMO_PATIENCE
        while self._last_id() < wanted:
            if process.poll() is not None or persistedstate._system.now() > deadline:
                process.kill()
                raise Refusal(f"the script did not reach id {wanted}: {process.communicate()[1]}")
            persistedstate._system.sleep(0.001)

    def _last_id(self) -> int:
        """Return the newest `last_id` in the file's text, be it in the snapshot or in a record."""
        try:
            found = re.findall(rb'last_id(?:: |",)(\d+)', _read_file(self.state)[0])
        except FileNotFoundError:
            return 0
        return int(found[-1]) if found else 0

    @staticmethod
    def _print_file(path: str, head: int, tail: int) -> None:
        """Print a file, without its middle when it is long."""
        lines = _read_file(path)[0].decode().splitlines()
        hidden = len(lines) - head - tail
        if hidden > 1:
            lines[head : len(lines) - tail] = [f"... {hidden} more lines ..."]
        print("\n".join(f"    {line}" for line in lines), end="\n\n", flush=True)

    def _report(self, runs: list[tuple[int, int, str]]) -> int:
        """Compare what the file says in the end, read by another program's eyes, with what was promised."""
        with _advised():
            from ruamel.yaml import YAML

        content = YAML(typ="safe", pure=True).load(_read_file(self.state)[0])
        numbers = [int(item.split()[1]) for item in content["processed"]]
        missing = set(range(1, _DEMO_ITEMS + 1)).difference(numbers)
        beside = sorted({*os.listdir(self.folder)} - {"resumable.py", "example.state"})
        print("What was seen (the file read with ruamel.yaml):\n")
        for number, (first, last, end) in enumerate(runs, 1):
            print(f"    run {number} started at id {first} and {end} with id {last} in the file")
        print(f"    {len(numbers)} items: {len(numbers) - len(set(numbers))} repeated, {len(missing)} missing")
        print(f"    statistics in the file: {content['stats']}")
        print(f"    files left beside it: {', '.join(beside) or 'none'}")
        half = _DEMO_ITEMS // 2
        is_resumed = all(later[0] == earlier[1] + 1 for earlier, later in pairwise(runs))
        is_complete = numbers == list(range(1, _DEMO_ITEMS + 1)) and content["last_id"] == _DEMO_ITEMS
        is_right = is_resumed and is_complete and content["stats"] == {"even": half, "odd": half} and not beside
        print(f"\n{'As' if is_right else 'NOT as'} promised: each run went on where the one before it ended.")
        return 0 if is_right else 1


def run_demo(_: Namespace) -> int:
    with TemporaryDirectory(prefix="persistedstate-demo-") as folder:
        return _Demo(folder).run()
