"""What the benchmarks' samples come to: medians, ratios, and which of the bars of this project they meet."""

# ruff: noqa: RUF001 - multiplication signs are meant

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OURS, OLD = "persistedstate", "persistedstate 26.1"
#: The floor that Python itself sets, see stores.py.
FLOOR = "bare Python"
ROUND_TRIP, SAFE = "ruamel.yaml round trip", "ruamel.yaml safe, pure"

#: What the cases are about, in the order in which they are shown.
TITLES = {
    "counter": "`STATE.counter += 1`",
    "nested": '`STATE["a"]["b"] += 1`',
    "append": "`STATE.processed.append(…)`, a list of 10,000",
    "transaction": "1,000 changes in one transaction, the time of one",
    "synced counter": "`STATE.counter += 1`, on the disk before it returns",
    "attribute read": "`STATE.counter`, read",
    "nested read": '`STATE["a"]["b"]`, read',
    "change in 1 kB": "A change in a state of 1 kB, vacuums included",
    "change in 100 kB": "A change in a state of 100 kB, vacuums included",
    "change in 1 MB": "A change in a state of 1 MB, vacuums included",
    "change in 10 MB": "A change in a state of 10 MB, vacuums included",
    "longest pause": "The longest pause of 200,000 changes, state of 1 MB",
    "p99.99 of pauses": "The 99.99th percentile of 200,000 changes, state of 1 MB",
    "longest pause, spread": '`jobs[i]["tries"] = n`, the longest pause of 50,000 all over a list of 1 MB',
    "open 1 MB": "Open 1 MB that the module wrote",
    "open 1 MB by hand": "Open 1 MB with a comment every 100 lines",
    "open 1 MB by hand, folded": "Open the same with one folded scalar in it",
    "load the folded entry": "Load the top-level entry with the folded scalar alone",
    "open 2,000 records": "Open a file with 2,000 records without a vacuum",
    "vacuum 1 MB": "Renew 1 MB after one change",
    "vacuum 1 MB, a job changed": "Renew 1 MB after a change inside of one of 100 batches",
    "vacuum 1 MB by hand": "Renew 1 MB with a comment every 100 lines, after a change elsewhere",
    "vacuum 1 MB by hand, folded": "Renew the same with one folded scalar in it",
    "vacuum 1 MB in one entry": "Renew 1 MB that is a single list, after a change in it",
    "memory of 1 MB, opened": "Memory of a state of 1 MB",
    "memory of 1 MB, all read": "Memory of a state of 1 MB of which all was read",
    "process that imports": "A process that imports the module",
    "process that opens and changes": "A process that imports the module, opens a small state, changes it and ends",
    "steps of such a process": "What that time is made of",
    "modules imported": "Modules of other packages that the import loads",
}


@dataclass(frozen=True)
class Row:
    """One store in one case.

    median, p95, least, limit_median: seconds per change, or whatever `unit` says. ratio: the median, over all rounds,
    of the store's figure divided by that of the limit a moment before; None where the case has no limit.
    """

    case: str
    store: str
    durability: str
    note: str
    unit: str
    median: float
    p95: float
    least: float
    limit: str
    limit_median: float | None
    ratio: float | None


def rows_of(report: dict[str, Any]) -> list[Row]:
    """Return what a JSON report of pytest-benchmark says."""
    return [
        _row(raw, benchmark["stats"]["data"])
        for benchmark in report["benchmarks"]
        for raw in benchmark["extra_info"]["rows"]
    ]


def _row(raw: dict[str, Any], rounds: list[float]) -> Row:
    limits = raw["limits"]
    samples = raw.get("samples")
    if samples is None:
        samples = [(total - apart) / raw["count"] for total, apart in zip(rounds, raw["apart"], strict=True)]
    return Row(
        case=raw["case"],
        store=raw["name"],
        durability=raw["durability"],
        note=raw["note"],
        unit=raw["unit"],
        median=median(samples),
        p95=percentile(samples, 0.95),
        least=min(samples),
        limit=raw["limit"],
        limit_median=median(limits) if limits else None,
        ratio=median(sample / limit for sample, limit in zip(samples, limits, strict=True)) if limits else None,
    )


def percentile(samples: Iterable[float], share: float) -> float:
    """Return the smallest sample that is at least as large as a share of all."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Figures:
    """All rows of a run, and what they say about each other.

    Stores are compared by their ratios to the limit, because these have been measured in turns with it, while 26.1 ran
    in another process, at another moment.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._found = {(row.case, row.store): row for row in self.rows}

    def find(self, case: str, store: str = OURS) -> Row | None:
        """Return a row, None where it was not measured."""
        return self._found.get((case, store))

    def cases(self) -> list[str]:
        """Return the cases: those with a title in the order of these, then the others as they were measured."""
        measured = dict.fromkeys(row.case for row in self.rows)
        return [case for case in TITLES if case in measured] + [case for case in measured if case not in TITLES]

    def of_case(self, case: str) -> list[Row]:
        """Return the rows of a case."""
        return [row for row in self.rows if row.case == case]

    def median(self, case: str, store: str = OURS) -> float:
        """Return a median; raises KeyError where it was not measured."""
        return self._found[case, store].median

    def ratio(self, case: str, store: str = OURS) -> float:
        """Return how many times the limit a store needs; raises KeyError where that was not measured."""
        ratio = self._found[case, store].ratio
        if ratio is None:
            raise KeyError(case)
        return ratio

    def faster(self, case: str, than: str) -> float:
        """Return how many times as long as this module another store needs."""
        return self.ratio(case, than) / self.ratio(case)

    def between(self, case: str, other: str) -> float:
        """Return how many times as long as another case a case takes, in this module."""
        return self.ratio(case) / self.ratio(other)


# ---- Bars ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A figure that this project wants to reach.

    measured: finds the figure; raises KeyError where its rows are missing. bound: how much it may be at the most, or
    must be at the least if `is_floor`. unit: what is written behind the figures.
    """

    text: str
    bound: float
    measured: Callable[[Figures], float]
    unit: str = "×"
    is_floor: bool = False

    def figure(self, figures: Figures) -> float | None:
        """Return what was measured, None where its rows are missing."""
        try:
            return self.measured(figures)
        except KeyError:
            return None

    def is_met(self, figure: float) -> bool:
        """Tell whether a figure is good enough."""
        return figure >= self.bound if self.is_floor else figure <= self.bound


def _floor(text: str, case: str, bound: float) -> Bar:
    return Bar(text, bound, lambda figures: 1 / figures.faster(case, FLOOR))


def _faster(text: str, case: str, than: str, bound: float) -> Bar:
    return Bar(text, bound, lambda figures: figures.faster(case, than), is_floor=True)


def _of_old(text: str, case: str, bound: float) -> Bar:
    return Bar(text, bound, lambda figures: 1 / figures.faster(case, OLD))


def _between(text: str, case: str, other: str, bound: float) -> Bar:
    return Bar(text, bound, lambda figures: figures.between(case, other))


def _vacuum(text: str, case: str) -> Bar:
    return Bar(text, 100.0, lambda f: f.ratio("vacuum 1 MB", ROUND_TRIP) / f.ratio(case), is_floor=True)


def _store(text: str, case: str, than: str, ours: str = OURS) -> Bar:
    return Bar(text, 1.0, lambda figures: figures.median(case, than) / figures.median(case, ours), is_floor=True)


def _folded_cost(figures: Figures) -> float:
    """Return what a folded scalar adds to opening, as a multiple of what ruamel.yaml needs for its entry alone."""
    added = figures.ratio("open 1 MB by hand, folded") - figures.ratio("open 1 MB by hand")
    return max(0.0, added) / figures.ratio("load the folded entry", ROUND_TRIP)


def _import_time(figures: Figures) -> float:
    """Return what an import adds to a process that does nothing, as a part of what that of 26.1 adds."""
    return (figures.ratio("process that imports") - 1) / (figures.ratio("process that imports", OLD) - 1)


def _synced(text: str, than: str) -> Bar:
    case, ours = "synced counter", f"{OURS}, _fsync=True"
    return Bar(text, 1.25, lambda figures: figures.ratio(case, than) / figures.ratio(case, ours), is_floor=True)


BARS = [
    _floor("`STATE.counter += 1` against bare Python", "counter", 1.3),
    _faster("… faster than 26.1", "counter", OLD, 4.0),
    _faster("… faster than lmdb, `sync=False`", "counter", "lmdb, sync=False", 2.0),
    _faster("… faster than sqlite3 WAL, `synchronous=OFF`", "counter", "sqlite3 WAL, OFF", 5.0),
    _faster("… faster than diskcache", "counter", "diskcache", 25.0),
    _floor('`STATE["a"]["b"] += 1` against bare Python', "nested", 1.3),
    _floor("`append` to a list of 10,000 against bare Python", "append", 1.3),
    _floor("1,000 changes in one transaction against bare Python", "transaction", 1.0),
    _of_old("attribute read against 26.1", "attribute read", 0.5),
    _of_old("nested item read against 26.1", "nested read", 1.0),
    _between("a change at 10 MB against 1 kB, vacuums included", "change in 10 MB", "change in 1 kB", 1.25),
    _faster("open 1 MB: faster than a round-trip load by ruamel.yaml", "open 1 MB", ROUND_TRIP, 50.0),
    _faster("… faster than 26.1", "open 1 MB", OLD, 20.0),
    _faster("open 1 MB by hand: faster than ruamel.yaml's pure safe load", "open 1 MB by hand", SAFE, 10.0),
    Bar("… a folded scalar adds, against a ruamel.yaml load of its entry alone", 1.5, _folded_cost),
    _between(
        "… a vacuum after a change elsewhere, with the folded scalar against without",
        "vacuum 1 MB by hand, folded",
        "vacuum 1 MB by hand",
        1.25,
    ),
    _faster("replay of 2,000 records: faster than 26.1", "open 2,000 records", OLD, 50.0),
    _faster("vacuum of 1 MB after one change: faster than a ruamel.yaml dump", "vacuum 1 MB", ROUND_TRIP, 100.0),
    _vacuum("… after a change inside of one of 100 batches", "vacuum 1 MB, a job changed"),
    _vacuum("… after a change in a file that is a single list", "vacuum 1 MB in one entry"),
    _synced("`_fsync=True`: faster than sqlite3 WAL, `synchronous=FULL`", "sqlite3 WAL, FULL"),
    _synced("… faster than lmdb, `sync=True`", "lmdb, sync=True"),
    Bar(
        "memory of 1 MB, all read, against plain dicts and lists",
        2.0,
        lambda figures: figures.ratio("memory of 1 MB, all read"),
    ),
    _store("py-key-value's put: faster than its DiskStore", "key-value put", "DiskStore"),
    _store("… with `_fsync=True`, than its FileTreeStore", "key-value put", "FileTreeStore", f"{OURS}, _fsync=True"),
    _store("py-key-value's get: faster than its DiskStore", "key-value get", "DiskStore"),
    _store("… with `_fsync=True`, than its FileTreeStore", "key-value get", "FileTreeStore", f"{OURS}, _fsync=True"),
    _of_old(
        "a process that imports the module, opens a state, changes it and ends, against 26.1",
        "process that opens and changes",
        0.6,
    ),
    Bar("`import persistedstate`, beyond `python -c pass`, against 26.1", 0.5, _import_time),
    Bar(
        "modules from other packages that `import persistedstate` loads",
        0.0,
        lambda figures: figures.median("modules imported"),
        unit="",
    ),
]
