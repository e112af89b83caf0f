"""The plot of a sweep: measured values above, the paper's values below, each with its own scale."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cornerstone.sweeps.table import Column, ResultTable

_OURS = ("#1f5fa8", "#1b8a5a", "#7a4fa3", "#5b6670")
_PAPER = ("#b3541e", "#d3972b", "#9c2f4f", "#8a7a6a")
"""Colours of the curves."""
_ASIDE = "#c1272d"
_ACROSS = 4  # panels per row


def plot(table: ResultTable, path: str | os.PathLike[str], metrics: Sequence[str] = ()) -> Path:
    """Write a PNG with one panel per metric (all columns, or those given): mean ± standard error of each row.

    Below a panel is the paper's column for the same metric, if it prints one. Rows without a value are marked "none".
    Rows with places are drawn as curves with a legend. Without any, the rows are one curve if all have numbers as names, else
    a line of categories. An aside that is to be drawn has an axis at the right, its points are stars.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = [column for column in table.named if not metrics or column.metric in metrics]
    across = min(_ACROSS, len(columns))
    bands = [columns[start : start + across] for start in range(0, len(columns), across)]
    beside = [any(table.paper_column(column.metric) for column in band) for band in bands]
    deep = len(bands) + sum(beside)
    size = (max(6.0, 3.4 * across), 2.7 * deep + 1.3)
    figure, axes = plt.subplots(deep, across, figsize=size, squeeze=False, layout="constrained")
    lines = iter(axes)
    for band, papers in zip(bands, beside, strict=True):
        for panel, column in zip(next(lines), band, strict=False):  # the last band may be short
            _ours(panel, table, column)
        for panel, column in zip(next(lines), band, strict=False) if papers else ():
            _paper(panel, table, column)
    for panel in axes.flat:
        if not panel.has_data() and not panel.texts:
            panel.set_visible(False)
    if table.x_label and table.places:
        for panel in axes[-1]:
            panel.set_xlabel(table.x_label, fontsize=9)
    figure.suptitle(table.title, fontsize=12, fontweight="bold")
    figure.supxlabel(_caption(table, any(beside)), fontsize=8, color="#444444")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def _ours(panel: Any, table: ResultTable, column: Column) -> None:
    place = table.named.index(column)
    if not table.rows:
        panel.text(0.5, 0.5, "no trial", ha="center", va="center", fontsize=8, color="#888888")
        return
    cells = {row.point: row.cells[place] for row in table.rows}
    values = {name: cell.value.mean for name, cell in cells.items()}
    errors = {name: 0.0 if math.isnan(cell.shown_error) else cell.shown_error for name, cell in cells.items()}
    _draw(panel, table, values, errors, _OURS)
    panel.set_title(column.label, fontsize=10, loc="left")
    panel.set_ylabel(f"here, {column.unit}", fontsize=9, color=_OURS[0])
    if not math.isnan(base := values.get(table.baseline, math.nan)):
        panel.axhline(base, color=_OURS[0], linewidth=0.8, linestyle=":", zorder=0)
    _draw_asides(panel, table)


def _paper(panel: Any, table: ResultTable, column: Column) -> None:
    printed = table.paper_column(column.metric)
    paper = table.paper
    if paper is None or printed is None or not table.rows:
        panel.text(0.5, 0.5, "not in the paper", ha="center", va="center", fontsize=8, color="#888888")
        panel.set_axis_off()
        return
    found = {row.point: paper.value(row.point, printed) for row in table.rows}
    _draw(panel, table, {name: math.nan if value is None else value for name, value in found.items()}, {}, _PAPER)
    panel.set_title(f"paper: {printed}", fontsize=9, loc="left", color=_PAPER[0])
    panel.set_ylabel(f"paper, {column.unit}", fontsize=9, color=_PAPER[0])


class _Curve(NamedTuple):
    """A curve's label, whether a line joins its points, and its rows with their x."""

    label: str
    joined: bool
    points: dict[str, float]


def _curves(table: ResultTable) -> list[_Curve]:
    names = [row.point for row in table.rows]
    placed = [(curve, x, name) for name in names for curve, x in table.places.get(name, ())]
    if placed:
        labels = dict.fromkeys(curve for curve, _, _ in placed)
        return [_Curve(label, True, {name: x for curve, x, name in placed if curve == label}) for label in labels]
    numbers = _numeric(names)
    at = numbers or [float(place) for place in range(len(names))]
    return [_Curve("", bool(numbers), dict(zip(names, at, strict=True)))]


def _draw(
    panel: Any, table: ResultTable, values: dict[str, float], errors: dict[str, float], colours: Sequence[str]
) -> None:
    """The values of the rows as curves; `errors` may be empty."""
    curves = _curves(table)
    measured = [{name for name in curve.points if not math.isnan(values[name])} for curve in curves]
    drawn = 0
    for number, curve in enumerate(curves):
        names = sorted(curve.points, key=lambda name: curve.points[name])
        if number and measured[number] <= set().union(*measured[:number]):
            continue  # it has nothing of its own, as a curve that the paper does not print
        drawn += 1
        panel.errorbar(
            [curve.points[name] for name in names],
            [values[name] for name in names],
            yerr=[errors[name] for name in names] if errors else None,
            fmt="o",
            linestyle=("-", "--", "-.", ":")[number % 4] if curve.joined else "none",
            color=colours[number % len(colours)],
            label=curve.label,
            capsize=3,
            markersize=5,
            linewidth=1.4,
        )
    placed = {x: name for curve in curves for name, x in curve.points.items()}
    at = sorted(placed)
    labels = [_short(x) if table.places else placed[x] for x in at]
    if all(curve.joined for curve in curves) and at[0] > 0 and at[-1] > 8 * at[0]:
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
    if drawn > 1:
        panel.legend(fontsize=7, frameon=False)
    crowded = len(at) > 6 or max(map(len, labels)) > 5
    panel.set_xticks(at, labels, rotation=40 if crowded else 0, ha="right" if crowded else "center", fontsize=8)
    panel.tick_params(axis="y", labelsize=8)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.margins(y=0.15)
    _room(panel, at)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    known = {curve.points[name] for curve, names in zip(curves, measured, strict=True) for name in names}
    for place in at:
        if place not in known:
            panel.annotate(
                "none", (place, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=7, color="#888888"
            )


def _short(x: float) -> str:
    """A number at an axis: 96, 1.92k, 3M."""
    size, unit = next(((size, unit) for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if x >= size), (1.0, ""))
    return f"{x / size:.4g}{unit}"


def _draw_asides(panel: Any, table: ResultTable) -> None:
    """The asides that are to be drawn, on one axis at the right."""
    drawn = {a.label: a.unit for row in table.rows for a in table.asides.get(row.point, ()) if a.drawn}
    if not drawn:
        return
    axis = panel.twinx()
    for label in drawn:
        points = {x: table.aside(name, label) for curve in _curves(table) for name, x in curve.points.items()}
        axis.plot(list(points), list(points.values()), "*", color=_ASIDE, markersize=6, label=label)
    axis.set_ylabel(" · ".join(f"{label}, {unit}" for label, unit in drawn.items()), fontsize=8, color=_ASIDE)
    axis.tick_params(axis="y", labelsize=7, colors=_ASIDE)
    axis.set_ylim(bottom=0)
    axis.spines["top"].set_visible(False)


def _room(panel: Any, at: list[float]) -> None:
    """Set the x limits to include rows without a value, so that the panels of a column line up."""
    low, high = min(at), max(at)
    if panel.get_xscale() == "log":
        margin = (high / low) ** 0.08
        panel.set_xlim(low / margin, high * margin)
    else:
        margin = 0.08 * (high - low) or 0.5
        panel.set_xlim(low - margin, high + margin)


def _numeric(names: list[str]) -> list[float]:
    """The names as numbers; empty if one of them is not a number."""
    try:
        return [float(name) for name in names]
    except ValueError:
        return []


def _caption(table: ResultTable, beside: bool) -> str:
    if table.seeds > 1:
        parts = [f"mean ± standard error over up to {table.seeds} seeds"]
    else:
        parts = ["one seed" + (", ± standard error over the queries" if table.has_queries else ", no error over seeds")]
    if table.baseline:
        parts.append(f"dotted: {table.baseline!r}")
    if table.paper is not None and (beside or not table.paper.has_numbers):
        parts.append(table.paper.source)
    return " · ".join(parts)
