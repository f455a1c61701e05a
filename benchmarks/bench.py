"""Measures persistedstate against its limits, its predecessor and its peers, and writes what was seen.

    python benchmarks/bench.py

takes a few minutes. It makes two virtual environments under `.venvs/`, one with the peers and one with persistedstate
26.1, whose import name is the same; runs the benchmarks in both; and writes `benchmarks/results/`: `table.md` with all
figures, `bars.md` with those that this project wants to reach, the charts, and the same as `results.json`.

    python benchmarks/bench.py -k counter       only the benchmarks of that name (an expression of pytest); prints only
    python benchmarks/bench.py -k counter --renew     also puts them into `results/`, in the place of what is there
    python benchmarks/bench.py --quick          of small sizes, in the same environments: shows only that all works
    python benchmarks/bench.py --render         measures nothing: writes pages and charts anew from `results.json`

`make bench ARGS=…` does the same. The charts are drawn by charts.py, in the environment with the peers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import Figures, Row, rows_of
from rendering import bars_page, bars_table, page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
ENVIRONMENT, OLD_ENVIRONMENT = ".venvs/bench", ".venvs/bench-26.1"
PACKAGES = ["-e", ".", "--group", "bench"]
OLD_PACKAGES = ["persistedstate==26.1", "pytest>=8.2", "pytest-benchmark>=5.0"]
#: pytest's exit code where no benchmark has the name that was asked for.
NOTHING_TO_RUN = 5


def main() -> int:
    """Run what the command line asks for."""
    options = _parser().parse_args()
    if options.render:
        write(RESULTS, *read_results())
        draw(RESULTS)
        return 0
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=_scratch()) as name:
        reports = _measure(Path(name), *(["--tiny"] if options.quick else []), "-k", options.k)
        figures = Figures(row for report in reports for row in rows_of(report))
        caption = caption_of(reports[0]["machine_info"]) if reports else ""
        if options.quick:
            write(Path(name), figures, caption)
            _measure_apart("several_processes.py", "--quick", f"{name}/several-processes.md")
            draw(Path(name))
            _measure_apart("event_loop.py", "--quick")
            print(f"The benchmarks work: {len(figures.rows)} figures, of sizes too small to mean anything.")
        elif options.k and not options.renew:
            print(page(figures, caption))
        else:
            RESULTS.mkdir(exist_ok=True)
            figures = renewed(figures) if options.k else figures
            write(RESULTS, figures, caption)
            if not options.k:
                _measure_apart("several_processes.py", str(RESULTS / "several-processes.md"))
                _measure_apart("event_loop.py", str(RESULTS / "event-loop.md"))
            draw(RESULTS)
            print(bars_table(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    summary = __doc__.splitlines()[0] if __doc__ else ""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--quick", action="store_true", help="of small sizes: shows only that all works")
    parser.add_argument("--render", action="store_true", help="only write pages and charts anew from results.json")
    parser.add_argument("-k", metavar="EXPRESSION", default="", help="only these benchmarks; prints, writes nothing")
    parser.add_argument("--renew", action="store_true", help="with -k: writes what they give among the other results")
    return parser


def _scratch() -> Path:
    """Return a folder on the disk that holds the project: /tmp may be memory, where a sync costs nothing."""
    folder = ROOT / ".venvs"
    folder.mkdir(exist_ok=True)
    return folder


# ---- Running ---------------------------------------------------------------------------------------------------------


def _measure(scratch: Path, *arguments: str) -> list[dict[str, Any]]:
    """Make the environments and run everything in both."""
    reports = []
    for folder, path, packages in (ENVIRONMENT, [ROOT], PACKAGES), (OLD_ENVIRONMENT, [], OLD_PACKAGES):
        reports.append(_run(_prepare(folder, packages), path, scratch, *arguments))
    return [report for report in reports if report]


def _prepare(folder: str, packages: list[str]) -> str:
    """Make an environment, unless it is there; return its interpreter."""
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / ".ci/venv", folder, *packages], cwd=ROOT, env=environment, check=True)
    return str(ROOT / folder / "bin/python")


def _measure_apart(script: str, *arguments: str) -> None:
    """Measure what is nothing for pytest-benchmark: several processes at once, event loops."""
    subprocess.run([ROOT / ENVIRONMENT / "bin/python", HERE / script, *arguments], check=True)


def _run(python: str, path: list[Path], scratch: Path, *arguments: str) -> dict[str, Any]:
    """Run the benchmarks in an environment and return pytest-benchmark's report; empty if none has the name.

    path: where modules are looked for first: the tree that holds this file, or nowhere so that 26.1 is found.
    """
    report = scratch / "report.json"
    command = [python, "-m", "pytest", str(HERE), "--basetemp", str(scratch / "files"), *arguments]
    paths = {
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, *path])),
        "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),  # compiled once, as what is installed is
        "PYTHONDONTWRITEBYTECODE": "",
    }
    answer = subprocess.run(
        [*command, "--benchmark-quiet", f"--benchmark-json={report}"],
        cwd=scratch,
        env={**os.environ, **paths},
        check=False,
    )
    if answer.returncode == NOTHING_TO_RUN:
        return {}
    if answer.returncode:
        raise SystemExit(f"the benchmarks failed in {python}")
    found: dict[str, Any] = json.loads(report.read_bytes())
    return found


# ---- Writing ---------------------------------------------------------------------------------------------------------


def caption_of(machine: dict[str, Any]) -> str:
    """Return what the figures were measured on, in a line."""
    cpu = machine["cpu"]
    name = cpu.get("brand_raw") or machine["processor"] or machine["machine"]
    python = f"{machine['python_implementation']} {machine['python_version']}"
    return f"{python}, {machine['system']} {machine['machine']}, {name}, {cpu.get('count') or os.cpu_count()} cores"


def write(folder: Path, figures: Figures, caption: str) -> None:
    """Write the tables and the figures themselves into a folder."""
    (folder / "table.md").write_text(page(figures, caption), "utf-8")
    (folder / "bars.md").write_text(bars_page(figures, caption), "utf-8")
    content = {"caption": caption, "rows": [vars(row) for row in figures.rows]}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def draw(folder: Path) -> None:
    """Draw the charts of the figures in a folder, in the environment that has matplotlib."""
    python = _prepare(ENVIRONMENT, PACKAGES)
    subprocess.run([python, HERE / "charts.py", folder], cwd=folder, check=True)


def read_results() -> tuple[Figures, str]:
    """Return what was measured last, and on what."""
    content = json.loads((RESULTS / "results.json").read_bytes())
    return Figures(Row(**row) for row in content["rows"]), content["caption"]


def renewed(figures: Figures) -> Figures:
    """Return what was measured last, with the figures of now in the place of those of the same cases."""
    cases = set(figures.cases())
    return Figures([*(row for row in read_results()[0].rows if row.case not in cases), *figures.rows])


if __name__ == "__main__":
    sys.exit(main())
