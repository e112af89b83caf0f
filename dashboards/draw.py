"""Draws a board from Prometheus as a picture, panel by panel, where there is no Grafana:

    python dashboards/draw.py dashboards/boards/run.json --out run.png [--url http://127.0.0.1:9090] [--minutes 30]
        [--set run=1a2b3c4d]

Every panel has the place, the queries and the unit of the board's file; a panel of one value shows its last one.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COLUMNS, ROW = 24, 0.42  # of Grafana's grid; inches of a row
STEPS = 400  # points of a curve, at most
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
Board = dict[str, Any]
Series = list[tuple[dict[str, str], list[tuple[float, float]]]]
"""Labels of each series, and its times and values."""
Curves = list[tuple[str, list[tuple[float, float]]]]
"""The same with their legends."""


def queries(board: Board) -> Iterator[tuple[str, str, str]]:
    """Title, query and legend of every target of every panel."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def filled(query: str, window: str, chosen: Mapping[str, str] | None = None) -> str:
    """A query with its variables replaced: `window` is what rates are computed over; a variable that is not chosen is all."""
    query = query.replace("$__rate_interval", window)
    query = re.sub(r'(?<![~!])="\$', r'=~"$', query)  # a variable of one value, where it is to stand for all
    return re.sub(r"\$([a-z]\w*)", lambda name: (chosen or {}).get(name[1], ".*"), query)


def ask(url: str, query: str, start: float, end: float, step: float) -> Series:
    """What Prometheus answers for a span of time. Raises urllib.error.HTTPError if it cannot read the query."""
    asked = urllib.parse.urlencode({"query": query, "start": start, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=30) as response:
        found = json.load(response)["data"]["result"]
    return [(each["metric"], [(float(at), float(value)) for at, value in each["values"]]) for each in found]


def named(legend: str, labels: Mapping[str, str]) -> str:
    """The legend of a series: `{{point}}` becomes the label's value."""
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), legend)


def shown(value: float, unit: str) -> str:
    """A value with its unit, as Grafana would print it."""
    if unit in ("bytes", "Bps"):
        size = next((i for i in range(len(BYTES)) if abs(value) < 1024 ** (i + 1)), len(BYTES) - 1)
        return f"{value / 1024**size:.3g} {BYTES[size]}" + ("/s" if unit == "Bps" else "")
    if unit == "percentunit":
        return f"{value:.1%}"
    return f"{value:.4g}" + {"percent": " %", "s": " s"}.get(unit, "")


def draw(board: Board, url: str, start: float, end: float, window: str, chosen: Mapping[str, str], out: Path) -> None:
    """Write the picture of a board."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(16, rows * ROW + 0.6), layout=None)
    figure.suptitle(
        f"{board['title']} (time in minutes)",
        x=0.01,
        y=1 - 0.1 / figure.get_figheight(),
        ha="left",
        va="top",
        weight="bold",
    )
    top = 1 - 0.5 / figure.get_figheight()
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        bottom, height = top * (1 - (place["y"] + place["h"]) / rows), top * place["h"] / rows
        inch = 1 / figure.get_figheight()
        box = (left + 0.035, bottom + 0.32 * inch, width - 0.045, height - 0.68 * inch)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        found = [
            (named(target["legendFormat"], labels), points)
            for target in panel.get("targets", ())
            for labels, points in ask(url, filled(target["expr"], window, chosen), start, end, (end - start) / STEPS)
        ]
        _panel(axes, panel, found, start, end)
    figure.savefig(out, dpi=75)


def _panel(axes: Any, panel: Board, found: Curves, start: float, end: float) -> None:
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    unit = defaults.get("unit", "")
    if panel["type"] == "timeseries" and found:
        _curves(axes, found, unit, defaults, start)
        axes.set_xlim(0, (end - start) / 60)
        return
    axes.set_axis_off()
    if panel["type"] == "text":
        lines = [line for part in panel["options"]["content"].splitlines() for line in textwrap.wrap(part, 76) or [""]]
        text, size = re.sub(r"[*`]", "", "\n".join(lines)), 7.5
        axes.text(0, 1, text, va="top", fontsize=size, transform=axes.transAxes)
    elif not found:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="grey", transform=axes.transAxes)
    elif panel["type"] == "bargauge":
        axes.set_axis_on()
        axes.barh(range(len(found)), [points[-1][1] for _, points in found], height=0.6, alpha=0.4)
        for place, (name, _) in enumerate(found):
            axes.text(0.01, place, name, va="center", fontsize=8)
        axes.set(xlim=(0, defaults.get("max")), ylim=(-1, max(len(found), 3)), yticks=[])
        axes.tick_params(labelsize=7)
    else:
        value = shown(found[0][1][-1][1], unit)
        axes.text(0.5, 0.5, value, ha="center", va="center", fontsize=20, transform=axes.transAxes)


def _curves(axes: Any, found: Curves, unit: str, defaults: Board, start: float) -> None:
    names, curves = [f"{name}: {shown(points[-1][1], unit)}" for name, points in found], [points for _, points in found]
    if defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal":
        times = sorted({at for points in curves for at, _ in points})
        values = [_at(times, dict(points)) for points in curves]
        axes.stackplot([(at - start) / 60 for at in times], values, labels=names, alpha=0.6)
    else:
        for name, points in zip(names, curves, strict=True):
            axes.plot([(at - start) / 60 for at, _ in points], [value for _, value in points], label=name, linewidth=1)
    axes.set_ylim(defaults.get("min"), defaults.get("max"))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6.5, loc="best")


def _at(times: list[float], points: Mapping[float, float]) -> list[float]:
    """Values at all times: where one is missing, the one before it, and 0 before the first."""
    values, last = [], 0.0
    for at in times:
        last = points.get(at, last)
        values.append(last)
    return values


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:9090", help="of Prometheus")
    parser.add_argument("--minutes", type=float, default=30.0, help="before now, or before --until")
    parser.add_argument("--until", type=float, default=None, help="seconds since 1970")
    parser.add_argument("--window", default="40s", help="over which rates are computed: four scrapes")
    parser.add_argument("--set", action="append", default=[], metavar="VARIABLE=VALUE")
    given = parser.parse_args()
    end = given.until or time.time()
    chosen = dict(one.split("=", 1) for one in given.set)
    draw(json.loads(given.board.read_text()), given.url, end - 60 * given.minutes, end, given.window, chosen, given.out)


if __name__ == "__main__":
    main()
