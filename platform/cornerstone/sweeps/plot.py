"""The plot of a sweep: measured values above, the paper's values below, each with its own scale."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cornerstone.sweeps.table import Column, ResultTable

_OURS, _PAPER = "#1f5fa8", "#b3541e"
_ACROSS = 4  # panels per row


def plot(table: ResultTable, path: str | os.PathLike[str], metrics: Sequence[str] = ()) -> Path:
    """Write a PNG with one panel per metric (all columns, or those given): mean ± standard error of each row.

    Below a panel is the paper's column for the same metric, if it prints one. Rows without a value are marked "none".
    If all rows have numbers as names, the x axis is numeric.
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
    names = [row.point for row in table.rows]
    cells = [row.cells[place] for row in table.rows]
    values = [cell.value.mean for cell in cells]
    errors = [cell.shown_error for cell in cells]
    _series(panel, names, values, [0.0 if math.isnan(e) else e for e in errors], _OURS)
    panel.set_title(column.label, fontsize=10, loc="left")
    panel.set_ylabel(f"here, {column.unit}", fontsize=9, color=_OURS)
    if table.baseline in names and not math.isnan(base := values[names.index(table.baseline)]):
        panel.axhline(base, color=_OURS, linewidth=0.8, linestyle=":", zorder=0)


def _paper(panel: Any, table: ResultTable, column: Column) -> None:
    printed = table.paper_column(column.metric)
    names = [row.point for row in table.rows]
    paper = table.paper
    if paper is None or printed is None or not names:
        panel.text(0.5, 0.5, "not in the paper", ha="center", va="center", fontsize=8, color="#888888")
        panel.set_axis_off()
        return
    found = [paper.value(name, printed) for name in names]
    _series(panel, names, [math.nan if value is None else value for value in found], None, _PAPER)
    panel.set_title(f"paper: {printed}", fontsize=9, loc="left", color=_PAPER)
    panel.set_ylabel(f"paper, {column.unit}", fontsize=9, color=_PAPER)


def _series(panel: Any, names: list[str], values: list[float], errors: list[float] | None, colour: str) -> None:
    numbers = _numeric(names)
    at = numbers or [float(place) for place in range(len(names))]
    line = "-" if numbers else "none"
    panel.errorbar(
        at, values, yerr=errors, fmt="o", linestyle=line, color=colour, capsize=3, markersize=5, linewidth=1.4
    )
    if numbers and min(numbers) > 0 and max(numbers) > 8 * min(numbers):
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
    crowded = len(names) > 6 or max(map(len, names)) > 5
    panel.set_xticks(at, names, rotation=40 if crowded else 0, ha="right" if crowded else "center", fontsize=8)
    panel.tick_params(axis="y", labelsize=8)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.margins(y=0.15)
    _room(panel, at)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for place, value in zip(at, values, strict=True):
        if math.isnan(value):
            panel.annotate(
                "none", (place, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=7, color="#888888"
            )


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
