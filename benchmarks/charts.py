"""Draws the charts of a folder with results.json, as SVG.

    python benchmarks/charts.py FOLDER

bench.py runs it in its environment, which has matplotlib. Text stays text, in colours that can be read on a light and
on a dark page; what is behind the charts shines through. The same figures give the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from figures import OLD, OURS, Figures, Row
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rendering import amount

mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "persistedstate"})

TEXT, GRID = "#727b84", "#7d859066"
COLOURS = {"memory": "#9a8c98", "process crash": "#3b82f6", "power loss": "#16a34a", "": "#d97706"}
#: Those of the others: duller, of a brightness that recedes on a light and on a dark page; nothing shines through.
DULL = {"memory": "#8d868b", "process crash": "#748bb0", "power loss": "#6b9a7f", "": "#a98a64"}
#: Heights of a bar, of the space for one: ours is thicker.
OURS_HEIGHT, HEIGHT = 0.8, 0.5
LEGEND = {
    "memory": "lost when the process is killed",
    "process crash": "survives a process crash",
    "power loss": "survives a power loss",
}
STEPS = {"interpreter": "#7d8590", "import": "#3b82f6", "open": "#16a34a", "change": "#d97706", "end": "#9a8c98"}

#: Charts of a case in all stores, on a logarithmic scale.
COMPARISONS = {
    "counter": "STATE.counter += 1: time per change, shorter is better (each line: 10 times more)",
    "open 1 MB": "Opening a file of 1 MB: time, shorter is better (each line: 10 times more)",
}
START = "steps of such a process"
START_TITLE = "A script that opens a small state, changes it and ends: time, shorter is better"
TOGETHER = "several-processes"
TOGETHER_TITLE = "Several processes count in one file: time per change of all together, shorter is better"


def main() -> None:
    """Draw the charts of the folder that the command line names."""
    folder = Path(sys.argv[1])
    content = json.loads((folder / "results.json").read_bytes())
    figures, caption = Figures(Row(**row) for row in content["rows"]), content["caption"]
    for case, title in COMPARISONS.items():
        if rows := figures.of_case(case):
            save(comparison(rows), title, caption, folder / f"{case.replace(' ', '-').lower()}.svg")
    if rows := figures.of_case(START):
        save(start(rows), START_TITLE, caption, folder / "start.svg")
    if (path := folder / f"{TOGETHER}.json").exists():
        content = json.loads(path.read_bytes())
        save(together(content["changes a second"]), TOGETHER_TITLE, content["caption"], folder / f"{TOGETHER}.svg")


def save(drawing: Any, title: str, caption: str, path: Path) -> None:
    """Add what all charts have, and write one."""
    [axes] = drawing.axes
    inch = 1 / drawing.get_figheight()
    drawing.text(0.01, 1 - 0.1 * inch, title, size=12, weight="bold", va="top", color=TEXT)
    drawing.text(0.01, 0.1 * inch, caption, size=8, color=TEXT)
    axes.set_axisbelow(True)  # the lines of the scale stand behind the bars
    axes.grid(axis="x", color=GRID)
    axes.tick_params(colors=TEXT, length=0)
    axes.xaxis.set_major_formatter(lambda value, _: re.sub(r"\.0+ ", " ", amount(value, "s")) if value else "0")
    axes.xaxis.set_tick_params(labelsize=8)
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    drawing.savefig(path, transparent=True, metadata={"Title": title, "Date": None, "Creator": None})
    # matplotlib ends some lines with blanks
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text("utf-8").splitlines()), "utf-8")


def canvas(bars: int, *, has_legend: bool = True) -> tuple[Any, Any]:
    """Return an empty drawing for so many bars, and its axes."""
    inches = 1.0 + 0.35 * has_legend + 0.3 * bars
    drawing = Figure(figsize=(9, inches))
    axes = drawing.add_axes((0.25, 0.6 / inches, 0.66, 0.3 * bars / inches))
    return drawing, axes


def legend(axes: Any, colours: dict[str, str]) -> None:
    """Tell above the bars what their colours mean."""
    patches = [Patch(color=colour, label=text) for text, colour in colours.items()]
    place = {"loc": "lower left", "bbox_to_anchor": (-0.37, 1.0)}
    axes.legend(handles=patches, ncols=len(patches), fontsize=9, frameon=False, labelcolor=TEXT, **place)


def label(axes: Any, place: int, value: float, weight: str = "normal") -> None:
    """Write a figure at the right, where no bar and no line of the scale comes."""
    at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center_baseline"}
    axes.annotate(amount(value, "s"), (1.12, place), size=9, color=TEXT, weight=weight, **at)


def comparison(rows: list[Row]) -> Any:
    """Draw a bar for each row, and one for the limit, the shortest at the top."""
    bars = [(row.store, row.median, row.durability) for row in rows]
    limit = next((row for row in rows if row.store == OURS and row.limit_median), None)
    if limit is not None and limit.limit_median:
        durability = "process crash" if "write" in limit.limit else ""
        bars.append((f"{limit.limit.replace('`', '')} (the limit)", limit.limit_median, durability))
    bars.sort(key=lambda bar: bar[1])
    drawing, axes = canvas(len(bars), has_legend=any(durability for *_, durability in bars))
    axes.set_xscale("log")
    axes.set_xlim(bars[0][1] / 3, bars[-1][1] * 1.5)
    fill(axes, bars, [name.startswith(OURS) and name != OLD for name, *_ in bars])
    return drawing


def fill(axes: Any, bars: list[tuple[str, float, str]], ours: list[bool]) -> None:
    """Draw bars of a name, a value and a durability; ours: which of them stand out."""
    axes.set_ylim(-0.5, len(bars) - 0.5)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], size=9)
    for place, ((_, value, durability), is_ours) in enumerate(zip(bars, ours, strict=True)):
        weight = "bold" if is_ours else "normal"
        height, colours = (OURS_HEIGHT, COLOURS) if is_ours else (HEIGHT, DULL)
        axes.barh(place, value, height=height, color=colours[durability])
        label(axes, place, value, weight)
        axes.get_yticklabels()[place].set_fontweight(weight)
    present = {durability for *_, durability in bars}
    if meanings := {text: COLOURS[name] for name, text in LEGEND.items() if name in present}:
        legend(axes, meanings)


def start(rows: list[Row]) -> Any:
    """Draw what such a script takes, step by step, with this module and with 26.1."""
    steps = {name: [row for row in rows if row.store.rpartition(", ")[0] == name] for name in (OURS, OLD)}
    bars = {name: found for name, found in steps.items() if found}
    drawing, axes = canvas(len(bars) + 1)
    bare = rows[0].limit_median or 0.0
    axes.set_yticks(range(len(bars) + 1), [rows[0].limit.replace("`", ""), *bars], size=9)
    axes.barh(0, bare, height=HEIGHT, color=STEPS["interpreter"])
    label(axes, 0, bare)
    for place, (name, found) in enumerate(bars.items(), 1):
        left = 0.0
        height = OURS_HEIGHT if name == OURS else HEIGHT
        for row in found:
            axes.barh(place, row.median, left=left, height=height, color=STEPS[row.store.rpartition(", ")[2]])
            left += row.median
        weight = "bold" if name == OURS else "normal"
        label(axes, place, left, weight)
        axes.get_yticklabels()[place].set_fontweight(weight)
    axes.set_xlim(0, 1.02 * max(sum(row.median for row in found) for found in bars.values()))
    axes.set_ylim(-0.5, len(bars) + 0.5)
    legend(axes, STEPS)
    return drawing


def together(speeds: dict[str, dict[str, float]]) -> Any:
    """Draw for each number of processes how long a change takes, here and in the other store."""
    rows = [(name, number) for number in speeds[OURS] for name in speeds]
    bars = [
        (f"{number} process{'es' * (number != '1')}, {name}", 1 / speeds[name][number], "process crash")
        for name, number in rows
    ]
    drawing, axes = canvas(len(bars))
    axes.set_xlim(0, 1.02 * max(time for _, time, _ in bars))
    fill(axes, bars, [name == OURS for name, _ in rows])
    return drawing


if __name__ == "__main__":
    main()
