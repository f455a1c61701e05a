"""Figures as Markdown."""

# ruff: noqa: RUF001 - multiplication signs and dashes are meant

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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
