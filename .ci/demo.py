"""The main job before your eyes: a script is killed, started again, interrupted, started again, and finishes."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ITEMS = 300
#: Seconds after which a run that does not get on is given up.
PATIENCE = 60.0

SCRIPT = f"""\
import time

from persistedstate import PersistedState

STATE = PersistedState("example.state", last_id=0, processed=[], stats={{"even": 0, "odd": 0}})

print("starting at id", STATE.last_id + 1, flush=True)
for current_id in range(STATE.last_id + 1, {ITEMS + 1}):
    time.sleep(0.002)  # the work
    with STATE.transaction():
        STATE.last_id = current_id
        STATE.processed.append(f"item {{current_id}}")
        STATE.stats["odd" if current_id % 2 else "even"] += 1
STATE.close()
"""


def main() -> int:
    """Run the script three times in a temporary folder and report what was seen; 1 when it is not as promised."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down "ignored"
    with tempfile.TemporaryDirectory(prefix="persistedstate-demo-") as name:
        folder = Path(name)
        script, state = folder / "resumable.py", folder / "example.state"
        script.write_text(SCRIPT, encoding="utf-8")
        print("A resumable script, resumable.py:\n")
        show(script, head=99, tail=0)

        runs = [
            run(script, state, stop_at=ITEMS // 3, stop_with=signal.SIGKILL),
            run(script, state, stop_at=ITEMS * 2 // 3, stop_with=signal.SIGINT),
            run(script, state),
        ]
        return report(folder, state, runs)


def run(script: Path, state: Path, stop_at: int = 0, stop_with: signal.Signals | None = None) -> tuple[int, int]:
    """Run the script, stopped once the file shows the id `stop_at`; return its first id and the file's last one."""
    print("$ python resumable.py")
    with subprocess.Popen([sys.executable, script], cwd=script.parent, stdout=-1, stderr=-1, text=True) as process:
        if stop_with is not None:
            wait_until_file_shows(stop_at, state, process)
            process.send_signal(stop_with)
        output, errors = process.communicate(timeout=PATIENCE)
    first, last = int(output.split()[-1]), last_id_in(state)

    print("\n".join([output.strip(), *errors.splitlines()[-1:]]))
    print(f"[{stop_with.name} was sent when the file showed id {stop_at}]" if stop_with else "[finished]")
    if process.returncode != (0 if stop_with is None else -stop_with):
        raise SystemExit(f"the script ended with {process.returncode}:\n{errors}")
    print("\nThe file that it left:\n")
    show(state, head=8, tail=4)
    return first, last


def wait_until_file_shows(wanted: int, state: Path, process: subprocess.Popen[str]) -> None:
    """Return as soon as the id `wanted` is in the file, without asking the process that writes it."""
    deadline = time.monotonic() + PATIENCE
    while last_id_in(state) < wanted:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"the script did not reach id {wanted}:\n{process.communicate()[1]}")
        time.sleep(0.001)


def last_id_in(state: Path) -> int:
    """Return the newest `last_id` in the file's text, be it in the snapshot or in a journal line."""
    found = re.findall(r'last_id(?:: |",)(\d+)', state.read_text(encoding="utf-8") if state.exists() else "")
    return int(found[-1]) if found else 0


def show(path: Path, head: int, tail: int) -> None:
    """Print a file, without its middle when it is long."""
    lines = path.read_text(encoding="utf-8").splitlines()
    hidden = len(lines) - head - tail
    if hidden > 1:
        lines[head : len(lines) - tail] = [f"... {hidden} more lines ..."]
    print("\n".join(f"    {line}" for line in lines), end="\n\n")


def report(folder: Path, state: Path, runs: list[tuple[int, int]]) -> int:
    """Compare what the file says in the end, read by another program's eyes, with what was promised."""
    content = YAML(typ="safe", pure=True).load(state)
    numbers = [int(item.split()[1]) for item in content["processed"]]
    repeated = len(numbers) - len(set(numbers))
    missing = len(set(range(1, ITEMS + 1)) - set(numbers))
    resumed = all(later[0] == earlier[1] + 1 for earlier, later in itertools.pairwise(runs))
    beside = sorted(path.name for path in folder.iterdir() if path.name not in {"resumable.py", state.name})

    print("What was seen (the file read with ruamel.yaml):\n")
    endings = "was killed by SIGKILL", "was interrupted by SIGINT", "finished"
    for number, (ending, (first, last)) in enumerate(zip(endings, runs, strict=True), 1):
        print(f"    run {number} started at id {first} and {ending} with id {last} in the file")
    print(f"    {len(numbers)} items in the file: {repeated} repeated, {missing} missing")
    print(f"    statistics in the file: {content['stats']}")
    print(f"    files left beside it: {', '.join(beside) or 'none'}")

    as_promised = (
        resumed
        and numbers == list(range(1, ITEMS + 1))
        and content == {"last_id": ITEMS, "processed": content["processed"], "stats": {"even": 150, "odd": 150}}
        and not beside
    )
    print("\nAs promised: each run went on where the one before it ended." if as_promised else "\nNOT as promised.")
    return 0 if as_promised else 1


if __name__ == "__main__":
    sys.exit(main())
