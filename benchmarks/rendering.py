"""Figures as Markdown and SVG."""

# ruff: noqa: RUF001 - multiplication signs and dashes are meant

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from figures import BARS, OLD, OURS, TITLES, Figures, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# ---- Numbers ---------------------------------------------------------------------------------------------------------


def amount(value: float, unit: str) -> str:
    """Return a figure for people: 3 digits, and the unit that suits its size."""
    if unit == "s":
        for scale, name in (1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"):
            if value < 999.5 * scale:
                return f"{digits(value / scale)} {name}"
    if unit == "B":
        return f"{digits(value / 1e6)} MB"
    return f"{digits(value)} {unit}".rstrip()


def digits(value: float) -> str:
    """Return a number with about three digits: 0.123, 1.23, 12.3, 1,234."""
    rounded = float(f"{value:.2e}")
    places = max(0, 2 - math.floor(math.log10(rounded))) if rounded > 0 else 0
    return f"{value:,.{min(places, 3)}f}"


def times(ratio: float | None) -> str:
    """Return a ratio, or a dash where there is none."""
    return "–" if ratio is None else f"{digits(ratio)} ×"


# ---- Markdown --------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the cells hold no newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def page(figures: Figures, caption: str) -> str:
    """Return the page with all figures, a table for each case."""
    head = (
        "# How fast it is\n\n"
        "Written by `benchmarks/bench.py`. Times are those of one change, read or opening: the median and the 95th\n"
        "percentile of all rounds. Rounds of a store alternate with rounds of the limit; *to the limit* is the median\n"
        "of the quotients of neighbours. Processes, and opening and renewing files, are measured in processor time.\n"
        "*To 26.1* is the quotient of two such ratios: below 1 is faster than 26.1.\n"
        "*Survives* tells what a change lives through once its statement has returned; compare within a class.\n\n"
        f"{caption}\n\nWhich bars are met: [bars.md](bars.md).\n"
    )
    return head + "".join(f"\n## {TITLES.get(case, case)}\n\n{case_table(figures, case)}" for case in figures.cases())


def case_table(figures: Figures, case: str) -> str:
    """Return the table of a case, the limit first."""
    rows = sorted(figures.of_case(case), key=lambda row: row.median)
    old = figures.find(case, OLD)
    lines = [_limit_line(rows[0])] if rows[0].limit_median is not None else []
    lines += [_store_line(row, old.ratio if old else None) for row in rows]
    return table(["", "survives", "median", "p95", "to the limit", "to 26.1", ""], lines)


def _limit_line(row: Row) -> list[str]:
    return [f"*{row.limit}*", "", amount(row.limit_median or 0.0, row.unit), "", times(1.0), "", "the limit"]


def _store_line(row: Row, old: float | None) -> list[str]:
    name = f"**{row.store}**" if row.store == OURS else row.store
    to_old = row.ratio / old if row.ratio is not None and old is not None else None
    figures = [amount(row.median, row.unit), amount(row.p95, row.unit), times(row.ratio), times(to_old)]
    return [name, row.durability, *figures, row.note]


def bars_page(figures: Figures, caption: str) -> str:
    """Return the page that tells which bars are met."""
    head = "# The bars of this project\n\nWritten by `benchmarks/bench.py`; nothing fails where one is missed.\n\n"
    return f"{head}{caption}\n\n{bars_table(figures)}"


def bars_table(figures: Figures) -> str:
    """Return each bar with what was measured."""
    lines = []
    for bar in BARS:
        figure = bar.figure(figures)
        measured = "not measured" if figure is None else f"{digits(figure)} {bar.unit}".rstrip()
        verdict = "" if figure is None else "yes" if bar.is_met(figure) else "**no**"
        sign = "≥" if bar.is_floor else "≤"
        lines.append([bar.text, f"{sign} {bar.bound:g} {bar.unit}".rstrip(), measured, verdict])
    return table(["", "wanted", "measured", "met"], lines)


def short_table(figures: Figures) -> str:
    """Return what fits into a README: the counter in every store."""
    rows = sorted(figures.of_case("counter"), key=lambda row: row.median)
    lines = [_store_line(row, None) for row in rows]
    return table(["`STATE.counter += 1`", "survives", "per change"], [line[:3] for line in lines])


# ---- SVG -------------------------------------------------------------------------------------------------------------

#: Colours that keep their distance from white and from black alike: the page may be either.
TEXT, GRID = "#6e7781", "#7d859055"
COLOURS = {"memory": "#9a8c98", "process crash": "#3b82f6", "power loss": "#16a34a", "": "#d97706"}
LEGEND = {"memory": "memory only", "process crash": "survives a process crash", "power loss": "survives a power loss"}
WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 840, 225, 90, 88, 26, 16
#: How wide a character is at the most, about.
LETTER = 8.5


def chart(title: str, rows: Iterable[Row], caption: str) -> str:
    """Return an SVG: a bar for each row, on a logarithmic scale of seconds, the limit among them.

    The shortest stands at the top, so that a line of the scale can end where it meets the first bar that is as long.
    """
    bars = sorted(_bars(list(rows)), key=lambda bar: bar[1])
    low = math.floor(math.log10(bars[0][1]) - 0.05)
    high = math.ceil(math.log10(bars[-1][1]))
    scale = (WIDTH - LEFT - RIGHT) / max(1, high - low)
    bottom = TOP + STEP * len(bars)
    parts = [_text(0, 18, title, weight="bold", size=16), *_legend({bar[2] for bar in bars})]
    widths = [(math.log10(bar[1]) - low) * scale for bar in bars]
    ends = [LEFT + width + 6 + LETTER * len(amount(bar[1], "s")) for bar, width in zip(bars, widths, strict=True)]
    parts += [_grid(power, LEFT + (power - low) * scale, ends) for power in range(low, high + 1)]
    for index, (bar, width) in enumerate(zip(bars, widths, strict=True)):
        parts += _bar(bar, TOP + STEP * index, width)
    parts += [_text(0, bottom + 20, caption, size=12)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 32}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif" role="img">\n<title>{escape(title)}</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bars(rows: list[Row]) -> list[tuple[str, float, str]]:
    """Return label, seconds and durability of each bar."""
    found = [(row.store, row.median, row.durability) for row in rows]
    limit = next((row for row in rows if row.store == OURS and row.limit_median), None)
    if limit is not None:
        found.append((f"{limit.limit.replace('`', '')} (the limit)", limit.limit_median or 0.0, _limit_class(limit)))
    return found


def _limit_class(row: Row) -> str:
    return "process crash" if "write" in row.limit else ""


def _legend(present: set[str]) -> list[str]:
    x, parts = 0, []
    for durability, text in LEGEND.items():
        if durability in present:
            parts.append(f'<rect x="{x}" y="30" width="12" height="12" rx="2" fill="{COLOURS[durability]}"/>')
            parts.append(_text(x + 18, 41, text, size=13))
            x += 40 + 7 * len(text)
    return parts


def _grid(power: int, x: float, ends: Sequence[float]) -> str:
    """Return a line of the scale with its figure; ends: how far each bar reaches with its label."""
    rows = next((index for index, end in enumerate(ends) if end >= x), len(ends))
    line = f'<line x1="{x:.1f}" y1="{TOP - 12}" x2="{x:.1f}" y2="{TOP + STEP * rows - 6}" stroke="{GRID}"/>'
    return line + _text(x, TOP - 18, amount(10.0**power, "s").replace(".00", "").replace(".0", ""), anchor="middle")


def _bar(bar: tuple[str, float, str], y: int, width: float) -> list[str]:
    label, value, durability = bar
    weight, opacity = ("bold", 1) if label.startswith(OURS) and label != OLD else ("normal", 0.5)
    middle, fill = y + BAR - 3, f'fill="{COLOURS[durability]}" opacity="{opacity}"'
    return [
        _text(LEFT - 8, middle, label, anchor="end", weight=weight),
        f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" {fill}/>',
        _text(LEFT + width + 6, middle, amount(value, "s"), weight=weight),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 13) -> str:
    style = f'fill="{TEXT}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
