"""The table: its arithmetic, and that it says what a reader must know."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from cornerstone.sweeps.paper_table import PaperTable
from cornerstone.sweeps.papers.lotlip import FIGURE_4, TABLE_3
from cornerstone.sweeps.plot import plot
from cornerstone.sweeps.rendering import to_csv, to_markdown, to_rich
from cornerstone.sweeps.statistics import smallest_detectable
from cornerstone.sweeps.table import Aside, ResultTable


@dataclass(frozen=True)
class Record:
    """A plain `TrialNumbers`."""

    point: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    queries: Mapping[str, int] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    run: str = ""


LONG, SHORT = "eval/dci/i2t_r1", "eval/coco/i2t_r1"
COLUMNS = [(LONG, "long I→T"), (SHORT, "short I→T")]


def records(seeds=5, points=("0", "2"), gain=2.0):
    rng = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        luck = rng.normal(0, 4, 2)
        for i, point in enumerate(points):
            values = 50 + luck + gain * i + rng.normal(0, 0.3, 2)
            found.append(Record(point, seed, {LONG: float(values[0]), SHORT: float(values[1])}))
    return found


def table(found, **fields):
    return ResultTable(**{"title": "t", "records": found, "columns": COLUMNS, "baseline": "0", **fields})


def printed(result, width=100):
    console = Console(width=width, file=io.StringIO())
    console.print(to_rich(result))
    return console.file.getvalue()


def test_values_and_differences():
    found = records()
    row = table(found, paper=TABLE_3).rows[1]
    ours = {seed: [r.metrics[LONG] for r in found if r.seed == seed] for seed in range(5)}
    base, two = np.array([v[0] for v in ours.values()]), np.array([v[1] for v in ours.values()])
    cell = row.cells[0]
    assert (row.point, row.seeds) == ("2", 5)
    assert cell.value.mean == pytest.approx(two.mean())
    assert cell.value.error == pytest.approx(stats.sem(two))
    assert cell.difference.p == pytest.approx(stats.ttest_rel(two, base).pvalue)
    assert cell.differs
    assert cell.paper == 49.46
    assert row.cells[1].paper == 46.56


def test_primary_column_is_a_family_of_its_own():
    found = records(points=("0", "1", "2", "3"), gain=0.35)
    result = table(found)
    raw = {(row.point, i): row.cells[i].difference.p for row in result.rows[1:] for i in (0, 1)}
    adjusted = {(row.point, i): row.cells[i].adjusted for row in result.rows[1:] for i in (0, 1)}
    for column in (0, 1):
        family = [raw[point, column] for point in ("1", "2", "3")]
        smallest = min(("1", "2", "3"), key=lambda point, c=column: raw[point, c])
        assert adjusted[smallest, column] == pytest.approx(min(1, 3 * min(family)))
    assert math.isnan(result.rows[0].cells[0].adjusted)


def test_smallest_detectable_difference_is_printed():
    result = table(records())
    deviation = result.rows[1].cells[0].difference.deviation
    assert result.detectable[0] == pytest.approx(deviation * smallest_detectable(5))
    line = next(line for line in result.footer if "80 % power" in line)
    assert f"long I→T {result.detectable[0]:.2f}" in line
    assert line in to_markdown(result)


def test_one_seed_gives_no_verdict():
    alone = table([replace(record, queries={LONG: 1000}) for record in records(seeds=1)])
    assert all(cell.difference is None and not cell.differs for row in alone.rows for cell in row.cells)
    assert alone.rows[0].cells[0].over_queries == pytest.approx(1.58, abs=0.05)
    text = printed(alone)
    assert "no difference can be called significant" in text
    assert "error over the queries" in text
    assert "Δ" not in text


def test_each_row_has_the_error_of_its_own_queries():
    """As many queries as were measured: several captions per image, and another set size in another row."""
    found = [
        Record("0", 0, {LONG: 50.0, SHORT: 50.0}, queries={LONG: 100, SHORT: 25_000}),
        Record("2", 0, {LONG: 50.0, SHORT: 50.0}, queries={LONG: 400}),
        Record("3", 0, {LONG: 50.0, SHORT: 50.0}),
    ]
    errors = [[cell.over_queries for cell in row.cells] for row in table(found).rows]
    assert errors[0] == pytest.approx([5.0, 100 * math.sqrt(0.25 / 25_000)], rel=1e-2)
    assert errors[1][0] == pytest.approx(2.5, rel=1e-2)
    assert all(map(math.isnan, (errors[1][1], *errors[2])))
    assert table(found).has_queries
    assert not table(found[2:]).has_queries
    assert "over the queries" not in printed(table(found[2:]))


def test_the_binomial_error_is_that_of_the_seed_that_finished():
    found = [Record("0", 0, error="failed"), Record("0", 1, {LONG: 50.0}, queries={LONG: 100})]
    assert table(found).rows[0].cells[0].over_queries == pytest.approx(5.0, rel=1e-2)


def test_a_metric_that_a_row_does_not_have_is_a_dash():
    found = [Record("0", 0, {LONG: 41.0}), Record("2", 0, {SHORT: 42.0})]
    result = table(found)
    lines = [line for line in to_markdown(result).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[2:] for line in lines[1:]] == [["41.00", "– |"], ["–", "42.00 |"]]
    assert [(row["point"], row[LONG], row[SHORT]) for row in csv.DictReader(io.StringIO(to_csv(result)))] == [
        ("0", "41", ""),
        ("2", "", "42"),
    ]


def test_a_row_is_compared_with_the_baseline_that_is_named_for_it():
    shift = {"0": 0.0, "2": 1.0, "0 → x": 20.0, "2 → x": 24.0}
    found = [
        Record(point, seed, {LONG: 40 + value + seed * (1 + value / 100)})
        for point, value in shift.items()
        for seed in (0, 1)
    ]
    result = table(found, columns=COLUMNS[:1], baselines={"0 → x": "0 → x", "2 → x": "0 → x"})
    means = {row.point: d and d.mean for row in result.rows for d in [row.cells[0].difference]}
    assert means["0"] is means["0 → x"] is None
    assert means["2"] == pytest.approx(1.005)
    assert means["2 → x"] == pytest.approx(4.02)
    assert "same follow-up of '0'" in " ".join(result.footer)
    assert "follow-up" not in " ".join(table(records()).footer)


def test_units_are_printed():
    result = table(records(), columns=[(LONG, "long"), (SHORT, "CIDEr", "points")])
    assert any("in %/points." in line for line in result.footer)


def test_two_seeds_without_a_common_one_give_no_difference():
    found = [Record("0", 0, {LONG: 1.0, SHORT: 1.0}), Record("2", 1, {LONG: 2.0, SHORT: 2.0})]
    assert table(found).rows[1].cells[0].difference is None
    assert all(map(math.isnan, table(found).detectable))


def test_failed_and_missing_trials_have_rows():
    found = [*records(seeds=3), Record("3", 0, error="out of memory\nTraceback"), Record("2", 9, error="x" * 500)]
    found += [Record("4", 0, {LONG: 60.0}), Record("4", 1, {LONG: 61.0, SHORT: math.nan})]
    result = table(found, points=("0", "1", "2", "3", "4"))
    assert [(row.point, row.seeds) for row in result.rows] == [("0", 3), ("1", 0), ("2", 3), ("3", 0), ("4", 2)]
    problems = {row.point: row.problem for row in result.rows}
    assert problems["1"] == "not run"
    assert problems["3"] == "failed (seed 0: out of memory)"
    assert problems["2"].startswith("failed (seed 9: xxx")
    assert len(problems["2"]) < 150
    for text in (printed(result, 200), to_markdown(result)):
        assert "failed (seed 0: out of memory)" in " ".join(text.split())
        assert "not run" in text
    assert math.isnan(result.rows[4].cells[1].value.mean)
    assert list(csv.DictReader(io.StringIO(to_csv(result))))[3]["problem"] == problems["3"]


def test_a_table_without_results_can_be_shown():
    empty = table([])
    assert empty.rows == []
    assert printed(empty)
    assert "| point |" in to_markdown(empty)
    assert printed(table([], points=("0", "2"))).count("not run") >= 2


def test_csv_round_trip():
    result = table(records(), paper=TABLE_3)
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [row["point"] for row in rows] == ["0", "2"]
    assert float(rows[1][LONG]) == pytest.approx(result.rows[1].cells[0].value.mean, rel=1e-5)
    assert float(rows[1][f"{LONG} diff_low"]) < float(rows[1][f"{LONG} diff"]) < float(rows[1][f"{LONG} diff_high"])
    assert rows[1][f"{SHORT} paper"] == "46.56"
    assert rows[0][f"{LONG} diff"] == ""


def test_markdown_is_a_table_with_the_papers_numbers_and_notes():
    text = to_markdown(table(records(), paper=TABLE_3, notes=("A note.",)))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| long I→T | Δ | paper DCI T2I |" in lines[0]
    assert "0 (baseline)" in lines[2]
    assert "| 49.46 |" in lines[3]
    assert "| +" in lines[3]
    assert "<br" not in text  # MLflow's page shows HTML as text
    for said in ("- A note.", "swapped", "Expected: More corners", "up to 5 seeds"):
        assert said in text


def test_a_paper_without_a_counterpart_is_shown_apart():
    found = [Record(point, 0, {"eval/mine/i2t_r1": 3.0}) for point in ("0", "2", "0, long loss × 3")]
    result = ResultTable("t", found, [("eval/mine/i2t_r1", "mine")], "0", TABLE_3)
    for text in (printed(result, 130), to_markdown(result)):
        assert "as printed" in text
        assert "83.33" in text
        assert "87.09" not in text  # a point that the sweep has not
    assert "as printed" not in to_markdown(table(records(), paper=FIGURE_4))


def test_a_paper_without_any_of_the_rows_is_shown_apart_and_whole():
    text = to_markdown(table(records(points=("mine", "own")), paper=TABLE_3, baseline="mine"))
    assert "as printed" in text
    assert all(f"{row[0]:.2f}" in text for row in TABLE_3.rows.values())
    assert "paper DCI T2I" not in text


def test_several_trials_of_a_seed_bring_different_metrics_of_a_row():
    found = [
        Record("2", 0, {LONG: 5.0}, queries={LONG: 19}),
        Record("2", 0, {SHORT: 7.0}, queries={SHORT: 19}),
        Record("2", 1, {LONG: 9.0}),
        Record("2", 1, error="out of memory"),
    ]
    (row,) = table(found).rows
    assert (row.seeds, row.problem) == (2, "failed (seed 1: out of memory)")
    assert [cell.value.mean for cell in row.cells] == [7.0, 7.0]
    assert [cell.value.seeds for cell in row.cells] == [2, 1]
    assert row.cells[1].over_queries == pytest.approx(6.1, abs=0.01)


@pytest.mark.parametrize("width", [60, 80, 320])
def test_every_number_is_readable_at_any_width(width):
    columns = [(f"eval/set{i}/i2t_r1", f"set {i} I→T") for i in range(8)]
    found = [
        Record(point, seed, {metric: 10.0 * (i + 1) + seed for i, (metric, _) in enumerate(columns)})
        for point in ("0", "0, long loss × 3") for seed in range(2)
    ]  # fmt: skip
    text = printed(ResultTable("t", found, columns, "0"), width)
    for i in range(8):
        assert text.count(f"{10 * (i + 1) + 0.5:.2f} ±0.50") == 2
    assert max(map(len, text.splitlines())) <= width
    assert ("(continued)" in text) == (width < 320)


@pytest.mark.parametrize("paper", [None, TABLE_3, FIGURE_4])
def test_plot_has_our_numbers_and_the_papers_on_panels_of_their_own(tmp_path, monkeypatch, paper):
    import matplotlib.pyplot as plt

    found = [*records(points=("0", "1", "2")), Record("3", 0, error="failed")]
    result = table(found, paper=paper)
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    path = plot(result, tmp_path / "deep" / "plot.png")
    monkeypatch.undo()
    assert path.read_bytes().startswith(b"\x89PNG")
    panels = [panel for panel in figures[0].axes if panel.get_visible() and panel.has_data()]
    assert len(panels) == (4 if paper is TABLE_3 else 2)
    shown = panels[0].containers[0].lines[0].get_ydata()
    assert np.allclose(shown[:3], [row.cells[0].value.mean for row in result.rows[:3]])
    assert np.isnan(shown[3])
    assert panels[0].get_title(loc="left") == "long I→T"
    if paper is TABLE_3:
        assert panels[2].get_title(loc="left") == "paper: DCI T2I"
        assert panels[2].containers[0].lines[0].get_ydata().tolist() == [47.96, 49.57, 49.46, 49.58]
        assert panels[0].get_xlim() == panels[2].get_xlim()
    plt.close(figures[0])


def test_plot_of_chosen_metrics_numbers_on_a_log_axis_and_of_nothing(tmp_path):
    limits = [Record(f"{n}", 0, {LONG: 40.0 + n / 100}) for n in (32, 64, 128, 512)]
    assert plot(table(limits, baseline="64"), tmp_path / "a.png", [LONG]).exists()
    assert plot(table([], points=("0", "1"), paper=TABLE_3), tmp_path / "b.png").exists()
    assert plot(table([]), tmp_path / "c.png").exists()


CURVES = {
    "LiT, 1": (("LiT", 1),),
    "LiT, 3": (("LiT", 3),),
    "LoTLIP, 3": (("LoTLIP", 3), ("alone", 3)),
    "LoTLIP, 1": (("LoTLIP", 1),),
    "alone, 5": (("alone", 5),),
}


def test_a_plot_of_curves_has_error_bars_a_legend_and_stars_for_what_stands_beside(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    found = records(points=tuple(CURVES))
    asides = {name: (Aside("text", "GFLOPs", places[0][1] * 2.0, drawn=True),) for name, places in CURVES.items()}
    result = table(found, baseline="LiT, 3", places=CURVES, asides=asides, x_label="sentences")
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    plot(result, tmp_path / "plot.png")
    monkeypatch.undo()
    panel, *_ = figures[0].axes
    means = {row.point: row.cells[0].value.mean for row in result.rows}
    lit, lotlip, alone = panel.containers
    for curve, names in (
        (lit, ("LiT, 1", "LiT, 3")),
        (lotlip, ("LoTLIP, 1", "LoTLIP, 3")),
        (alone, ("LoTLIP, 3", "alone, 5")),
    ):
        assert curve.lines[0].get_xdata().tolist() == [CURVES[name][0][1] for name in names]
        assert curve.lines[0].get_ydata().tolist() == [means[name] for name in names]
        (bars,) = curve.lines[2]
        heights = [top - bottom for (_, bottom), (_, top) in bars.get_segments()]
        errors = {row.point: row.cells[0].shown_error for row in result.rows}
        assert heights == pytest.approx([2 * errors[name] for name in names])
        assert min(heights) > 0
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["LiT", "LoTLIP", "alone"]
    assert panel.get_xlabel() == "sentences"
    stars = [line for axis in figures[0].axes for line in axis.lines if line.get_marker() == "*"]
    assert len(stars) == 2  # a panel each
    assert sorted(zip(*stars[0].get_data(), strict=True)) == [(1, 2), (3, 6), (5, 10)]
    plt.close(figures[0])


def test_what_stands_beside_a_row_has_a_column_and_no_difference():
    asides = {"0": (Aside("text", "GFLOPs", 1.234), Aside("dci cut", "%", 0.0)), "2": (Aside("text", "GFLOPs", 20.0),)}
    result = table(records(), asides=asides)
    text = to_markdown(result)
    assert "| text GFLOPs | dci cut % | long I→T | Δ |" in text
    assert "| 0 (baseline) | 5 | 1.23 | 0 |" in text
    assert "| 2 | 5 | 20 | – |" in text
    assert "1.23" in printed(result)
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [(row["text, GFLOPs"], row["dci cut, %"]) for row in rows] == [("1.234", "0"), ("20", "")]


def test_models_that_only_the_paper_has_stand_in_the_table_with_its_numbers_alone(tmp_path):
    paper = PaperTable(
        "T",
        "S",
        columns=("DCI", "COCO"),
        measures=(("dci", "i2t_r1"), ("coco", "i2t_r1")),
        rows={"0": (1.0, 2.0), "theirs": (33.25, math.nan)},
        released=("theirs",),
    )
    result = table(records(), paper=paper)
    assert [row.point for row in result.rows] == ["0", "2", "theirs"]
    assert [cell.paper for cell in result.rows[2].cells] == [33.25, None]
    assert "| theirs | 0 | – | – | 33.25 | – | – | – |" in to_markdown(result)
    assert not any("theirs" in line for line in result.footer)
    plain = table(records(), paper=replace(paper, released=()))
    assert [row.cells for row in plain.rows] == [row.cells for row in result.rows[:2]]
    assert plot(result, tmp_path / "plot.png").exists()


def test_a_row_may_be_compared_with_another_one_than_the_baseline():
    found = records(points=("0", "1", "2"))
    usual, other = table(found), table(found, compared={"2": "1"})
    differences = {row.point: row.cells[0].difference for row in other.rows}
    means = {row.point: row.cells[0].value.mean for row in other.rows}
    assert differences["0"] is None
    assert differences["2"].mean == pytest.approx(means["2"] - means["1"])
    assert differences["1"] == usual.rows[1].cells[0].difference
    assert any(line.startswith("Δ: difference to '0'; of '2' to '1', paired") for line in other.footer)


def test_a_curve_without_numbers_of_its_own_is_not_drawn(tmp_path, monkeypatch):
    """The paper prints nothing for it but a point that another curve has too."""
    import matplotlib.pyplot as plt

    places = {"0": (("a", 0), ("b", 0)), "1": (("a", 1_920_000),), "mine": (("b", 3_000_000),)}
    result = table(records(points=tuple(places)), places=places, paper=TABLE_3)
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    plot(result, tmp_path / "plot.png")
    monkeypatch.undo()
    ours, paper = figures[0].axes[0], figures[0].axes[2]
    assert (len(ours.containers), len(paper.containers)) == (2, 1)
    assert paper.get_legend() is None
    assert [label.get_text() for label in ours.get_xticklabels()] == ["0", "1.92M", "3M"]
    assert [text.xy[0] for text in paper.texts] == [3_000_000]  # "none"
    plt.close(figures[0])
