"""What benchmarks/bench.py writes from a report: whole tables, SVG that an XML reader takes, figures that are right."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench")


def measured(case: str, name: str, rounds: list[float], limits: list[float], **more: Any) -> dict[str, Any]:
    """Return one benchmark as pytest-benchmark reports it: rounds of 10 changes in seconds."""
    row: dict[str, Any] = {"case": case, "name": name, "durability": "process crash", "note": "a | b", "unit": "s"}
    row |= {"limit": "a bare `os.write`", "limits": limits, "count": 10, "apart": [0.0] * len(rounds), **more}
    return {"extra_info": {"rows": [row]}, "stats": {"data": rounds}}


REPORT = {
    "benchmarks": [
        measured("counter", "persistedstate", [3e-5, 8e-5, 4e-5], [1e-6, 4e-6, 1e-6]),
        measured("counter", "persistedstate 26.1", [2.4e-4, 2.4e-4], [2e-6, 3e-6]),
        measured("counter", "<&> of a peer", [1e-2], [1e-6]),
        measured("longest pause", "persistedstate", [9.0], [0.001, 0.003], samples=[0.004, 0.02]),
        measured("vacuum 1 MB", "persistedstate", [0.5, 0.7], [0.1, 0.1], count=1, apart=[0.2, 0.3]),
    ]
}


@pytest.fixture
def figures(bench: ModuleType) -> Any:
    return bench.Figures(bench.rows_of(REPORT))


def test_ratios_are_medians_of_neighbouring_rounds(figures: Any) -> None:
    row = figures.find("counter")

    assert row.median == pytest.approx(4e-6)
    assert row.p95 == pytest.approx(8e-6)
    assert row.ratio == pytest.approx(3.0)  # of 3, 2 and 4


def test_stores_are_compared_by_their_ratios_to_the_limit(figures: Any) -> None:
    assert figures.faster("counter", "persistedstate 26.1") == pytest.approx(10.0 / 3.0)


def test_time_apart_is_left_out(figures: Any) -> None:
    assert figures.median("vacuum 1 MB") == pytest.approx(0.35)


def test_samples_of_its_own_replace_the_rounds(figures: Any) -> None:
    assert figures.least("longest pause") == pytest.approx(0.004)


def test_bars_tell_what_is_met_missed_and_not_measured(bench: ModuleType, figures: Any) -> None:
    lines = bench.bars_table(figures).splitlines()

    assert "| `STATE.counter += 1` against a bare `os.write` | ≤ 2 × | 3.00 × | **no** |" in lines
    assert "| … faster than diskcache | ≥ 25 × | not measured |  |" in lines
    assert any(line.startswith("| longest pause") and line.endswith("| ≤ 10 ms | 4.00 ms | yes |") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.5e-8, "45.0 ns"), (9.999e-7, "1.00 µs"), (0.00123456, "1.23 ms"), (0.75, "750 ms"), (1234.0, "1,234 s")],
)
def test_amounts_have_three_digits_and_the_unit_that_suits(bench: ModuleType, seconds: float, text: str) -> None:
    rendering = importlib.import_module(bench.page.__module__)

    assert rendering.amount(seconds, "s") == text


def test_every_line_of_a_table_has_the_columns_of_its_head(bench: ModuleType, figures: Any) -> None:
    for table in bench.page(figures, "here").split("\n\n"):
        lines = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_every_file_is_written_and_whole(bench: ModuleType, figures: Any, tmp_path: Path) -> None:
    bench.write(tmp_path, figures, "CPython 3.11 & a machine")

    assert {file.name for file in tmp_path.iterdir()} >= {"table.md", "bars.md", "results.json", "counter.svg"}
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["caption"] == "CPython 3.11 & a machine"


def test_chart_is_an_svg_with_a_bar_per_store_and_the_limit(bench: ModuleType, figures: Any, tmp_path: Path) -> None:
    bench.write(tmp_path, figures, "CPython 3.11 & a machine")

    drawing = ET.parse(tmp_path / "counter.svg").getroot()  # noqa: S314 - we wrote it a line above
    labels = [text.text for text in drawing.iter(f"{SVG}text")]
    bars = [bar for bar in drawing.iter(f"{SVG}rect") if bar.get("opacity")]
    assert len(bars) == 4
    assert {"persistedstate", "<&> of a peer", "a bare os.write (the limit)", "CPython 3.11 & a machine"} <= {*labels}
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths == sorted(widths)
    assert widths[0] > 0


@pytest.mark.parametrize("chart", ["counter.svg", "open-1-mb.svg"])
def test_no_line_of_a_chart_crosses_a_bar_or_its_label(chart: str) -> None:
    drawing = ET.parse(BENCHMARKS / "results" / chart).getroot()  # noqa: S314 - our own
    lines = [[float(line.get(name, "")) for name in ("x1", "y1", "y2")] for line in drawing.iter(f"{SVG}line")]
    shapes = list(drawing)
    rows = [(bar, shapes[place + 1]) for place, bar in enumerate(shapes) if bar.get("opacity")]
    assert len(lines) >= 4
    assert len(rows) >= 4
    for bar, label in rows:
        left, top, high = (float(bar.get(name, "")) for name in ("x", "y", "height"))
        right = float(label.get("x", "")) + 7 * len(label.text or "")
        assert float(label.get("x", "")) > left + float(bar.get("width", ""))
        assert [x for x, start, end in lines if left <= x <= right and start < top + high and end > top] == []


def test_charts_say_which_end_is_better(bench: ModuleType) -> None:
    assert all("shorter is better" in title for title in bench.CHARTS.values())


def test_pages_in_the_tree_are_those_of_the_figures_there(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--render` writes them, and measures nothing."""
    for name in ("results.json", "table.md", "bars.md", "counter.svg", "open-1-mb.svg"):
        (tmp_path / name).write_bytes((BENCHMARKS / "results" / name).read_bytes() if name == "results.json" else b"")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench.py", "--render"])

    assert bench.main() == 0

    for file in tmp_path.iterdir():
        assert file.read_bytes() == (BENCHMARKS / "results" / file.name).read_bytes()


def test_renewed_cases_take_the_place_of_what_was_measured_last(
    bench: ModuleType, figures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    bench.write(tmp_path, figures, "here")
    again = {"benchmarks": [measured("counter", "persistedstate", [7e-5], [1e-6])]}

    renewed = bench.renewed(bench.Figures(bench.rows_of(again)))

    assert [row.store for row in renewed.of_case("counter")] == ["persistedstate"]
    assert renewed.median("counter") == pytest.approx(7e-6)
    assert renewed.find("vacuum 1 MB") == figures.find("vacuum 1 MB")


def test_case_without_figures_gets_no_chart(bench: ModuleType, figures: Any, tmp_path: Path) -> None:
    bench.write(tmp_path, figures, "here")

    assert not (tmp_path / "open-1-mb.svg").exists()


def test_readme_is_renewed_between_its_marks(
    bench: ModuleType, figures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nbelow\n", "utf-8")
    monkeypatch.setattr(bench, "README", readme)

    bench.renew_readme(figures, "here")

    text = readme.read_text("utf-8")
    assert text.startswith("above\n<!-- benchmark -->\n| `STATE.counter += 1` |")
    assert text.endswith("\n\nhere.\n<!-- end of benchmark -->\nbelow\n")
    assert "old" not in text
