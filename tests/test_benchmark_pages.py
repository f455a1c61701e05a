"""What benchmarks/bench.py writes from a report: whole tables, figures that are right; and the charts in the tree."""

from __future__ import annotations

import importlib
import json
import re
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
        measured("counter", "bare Python", [4e-5, 4e-5], [2e-6, 2e-6]),
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
    assert figures.median("longest pause") == pytest.approx(0.012)


def test_bars_tell_what_is_met_missed_and_not_measured(bench: ModuleType, figures: Any) -> None:
    lines = bench.bars_table(figures).splitlines()

    assert "| `STATE.counter += 1` against bare Python | ≤ 1.3 × | 1.50 × | **no** |" in lines
    assert "| … faster than 26.1 | ≥ 4 × | 3.33 × | **no** |" in lines
    assert "| … faster than diskcache | ≥ 25 × | not measured |  |" in lines


def test_bars_are_ratios_or_counts(bench: ModuleType) -> None:
    """So that they can be told on any machine."""
    rendering = importlib.import_module(bench.page.__module__)

    assert {bar.unit for bar in rendering.BARS} == {"×", ""}


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

    assert {file.name for file in tmp_path.iterdir()} >= {"table.md", "bars.md", "results.json"}
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["caption"] == "CPython 3.11 & a machine"


#: What was measured apart from the rest, in processes that count in one file.
TOGETHER = json.loads((BENCHMARKS / "results/several-processes.json").read_bytes())


@pytest.fixture(params=["counter", "open-1-mb", "start", "several-processes"])
def name(request: pytest.FixtureRequest) -> str:
    """The name of a chart."""
    return str(request.param)


@pytest.fixture
def chart(name: str) -> ET.Element:
    """A chart in the tree, which matplotlib drew: it is not in the environment of the tests."""
    return ET.parse(BENCHMARKS / f"results/{name}.svg").getroot()  # noqa: S314 - our own


def words(chart: ET.Element) -> list[str]:
    return [text.text or "" for text in chart.iter(f"{SVG}text")]


def test_chart_in_the_tree_shows_the_figures_there(bench: ModuleType, name: str, chart: ET.Element) -> None:
    amount = importlib.import_module(bench.page.__module__).amount
    wanted = {label: amount(seconds, "s") for label, seconds in figures_of(bench, name).items()}

    drawn = words(chart)

    labels = [text for text in drawn if text in wanted]
    amounts = [text for text in drawn if text in wanted.values()][-len(labels) :]  # before them, those of the scale
    assert dict(zip(labels, amounts, strict=True)) == wanted


def figures_of(bench: ModuleType, name: str) -> dict[str, float]:
    """Return the seconds that a chart has to show for each of its names."""
    figures = bench.read_results()[0]
    if name == "several-processes":
        speeds = TOGETHER["changes a second"].items()
        plural = {"1": "", "2": "es", "4": "es"}
        return {f"{n} process{plural[n]}, {store}": 1 / of[n] for store, of in speeds for n in plural}
    if name == "start":
        steps = figures.of_case("steps of such a process")
        stores = ["persistedstate", "persistedstate 26.1"]
        assert len(steps) == 5 * len(stores)
        return {store: sum(row.median for row in steps if row.store.startswith(f"{store}, ")) for store in stores}
    return {row.store: row.median for row in figures.of_case({"counter": "counter", "open-1-mb": "open 1 MB"}[name])}


def test_chart_says_what_is_better_and_where_it_was_measured(bench: ModuleType, name: str, chart: ET.Element) -> None:
    caption = TOGETHER["caption"] if name == "several-processes" else bench.read_results()[1]

    assert any("shorter is better" in text for text in words(chart))
    assert caption in words(chart)


def test_lines_of_the_scale_stand_behind_the_bars(chart: ET.Element) -> None:
    """What comes first in an SVG is behind, and nothing shines through the bars."""
    groups = [group.get("id", "") for group in chart.iter(f"{SVG}g")]
    lines = [place for place, name in enumerate(groups) if name.startswith("xtick")]
    bars = [place for place, name in enumerate(groups) if name.startswith("patch")][2:]
    assert len(lines) >= 3
    assert len(bars) >= 4
    assert max(lines) < min(bars)
    styles = [path.get("style", "") for path in chart.iter(f"{SVG}path")]
    assert all("opacity" not in style for style in styles if style.startswith("fill: #"))


def test_chart_can_be_read_on_a_light_and_on_a_dark_page(chart: ET.Element) -> None:
    """Its colours keep their distance from both, and behind them is the page."""
    background, *_ = chart.iter(f"{SVG}path")
    assert background.get("style") == "fill: none"
    styles = " ".join(element.get("style", "") for element in chart.iter())
    colours = set(re.findall(r"(?:fill|stroke): #(\w{6})", styles))
    assert colours
    for colour in colours:
        bright = sum(weight * int(colour[at : at + 2], 16) for weight, at in ((0.299, 0), (0.587, 2), (0.114, 4)))
        assert 70 < bright < 190, colour
    assert all("#" in text.get("style", "") for text in chart.iter(f"{SVG}text"))


def test_pages_in_the_tree_are_those_of_the_figures_there(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--render` writes them, and measures nothing."""
    (tmp_path / "results.json").write_bytes((BENCHMARKS / "results/results.json").read_bytes())
    drawn: list[Path] = []
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "draw", drawn.append)
    monkeypatch.setattr("sys.argv", ["bench.py", "--render"])

    assert bench.main() == 0

    assert drawn == [tmp_path]
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "table.md", "bars.md"}
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
