"""A `ResultTable` as a terminal table, as Markdown and as CSV.

Every cell is one line: a metric has a column for its value, one for the difference to the baseline if there is any, and
one for the paper's number if the paper prints it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cornerstone.sweeps.paper_table import PaperTable
from cornerstone.sweeps.table import Cell, Column, ResultTable, Row

_NOTHING = "–"
_BETWEEN = 3  # characters of a column besides its text: a blank on both sides and the divider


@dataclass(frozen=True)
class _Shown:
    """A column as it is shown: its header, which may have two lines, and a line for each row."""

    header: str
    cells: tuple[str, ...]
    style: str = ""

    @property
    def width(self) -> int:
        return max(map(len, (*self.header.split("\n"), *self.cells)))


class _Terminal:
    """The table cut into blocks of columns that fit the terminal's width; a metric's columns stay together."""

    def __init__(self, table: ResultTable) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table, groups = self.table, _groups(self.table)
        yield from _lines(console, table.warnings, "bold yellow")
        names = [_name(table, row) for row in table.rows]
        room = options.max_width - sum(n + _BETWEEN for n in (max(map(len, names), default=0), len("seeds"))) - 1
        for number, block in enumerate(_blocks(groups, room)):
            title = table.title if number == 0 else f"{table.title} (continued)"
            shown = Table(title=escape(title), title_justify="left", box=box.HORIZONTALS)
            shown.add_column("point", no_wrap=True)
            shown.add_column("seeds", justify="right")
            for column in block:
                shown.add_column(escape(column.header), justify="right", no_wrap=True, style=column.style)
            for place, row in enumerate(table.rows):
                cells = [_styled(column.cells[place]) for column in block]
                shown.add_row(escape(names[place]), str(row.seeds), *cells, style="red" if row.problem else None)
            yield shown
        if table.paper is not None and _apart(table):
            yield _paper_rich(table.paper, table)
        yield from _lines(console, table.verdict, "bold")
        yield from _lines(console, table.footer)


def to_rich(table: ResultTable) -> RenderableType:
    """Warnings, the table, the verdict and the notes."""
    return _Terminal(table)


def to_markdown(table: ResultTable) -> str:
    """A GitHub table with the same cells. It has no HTML, which MLflow's page would show as text."""
    columns = [column for group in _groups(table) for column in group]
    header = ["point", "seeds", *(column.header for column in columns)]
    rows = [
        [_name(table, row), str(row.seeds), *(column.cells[place] for column in columns)]
        for place, row in enumerate(table.rows)
    ]
    parts = [f"### {table.title}", *(f"**{line}**" for line in table.warnings), _grid(header, rows)]
    if table.paper is not None and _apart(table):
        header, rows = _paper_rows(table.paper, table)
        parts += [f"**{table.paper.title}** (as printed)", _grid(header, rows)]
    parts += [f"**{line}**" for line in table.verdict]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in table.footer)]) + "\n"


def to_csv(table: ResultTable) -> str:
    """One line per row: asides; for each metric mean, error, seeds, difference with interval and p-values, paper's number."""
    kinds = ("", " se", " seeds", " diff", " diff_low", " diff_high", " p", " p_holm", " paper")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    asides = [f"{label}, {unit}" for label, unit in table.aside_labels]
    writer.writerow(["point", "seeds", "problem", *asides, *(c.metric + kind for c in table.named for kind in kinds)])
    for row in table.rows:
        beside = [table.aside(row.point, label) for label, _ in table.aside_labels]
        numbers = [*beside, *(x for cell in row.cells for x in _numbers(cell))]
        writer.writerow([row.point, row.seeds, row.problem, *map(_plain, numbers)])
    return stream.getvalue()


def _numbers(cell: Cell) -> list[float | None]:
    d = cell.difference
    differences = [None] * 4 if d is None else [d.mean, d.low, d.high, d.p]
    return [cell.value.mean, cell.value.error, cell.value.seeds, *differences, cell.adjusted, cell.paper]


def _plain(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else f"{number:.6g}"


def _groups(table: ResultTable) -> list[list[_Shown]]:
    """The columns of each metric, and before them those of what no trial measures."""
    asides = [[_aside(table, label, unit)] for label, unit in table.aside_labels]
    return asides + [_group(table, place, column) for place, column in enumerate(table.named)]


def _aside(table: ResultTable, label: str, unit: str) -> _Shown:
    values = [table.aside(row.point, label) for row in table.rows]
    return _Shown(
        f"{label}\n{unit}", tuple(_NOTHING if math.isnan(value) else f"{value:.3g}" for value in values), "dim"
    )


def _group(table: ResultTable, place: int, column: Column) -> list[_Shown]:
    cells = [row.cells[place] for row in table.rows]
    values = tuple(_value(row, place) for row in table.rows)
    group = [_Shown("\n".join(column.label.split(" ", 1)), values)]
    if any(cell.difference is not None for cell in cells):
        group.append(_Shown("Δ", tuple(map(_difference, cells))))
    printed = table.paper_column(column.metric)
    if printed is not None and not _apart(table):
        numbers = tuple(_NOTHING if cell.paper is None else f"{cell.paper:.2f}" for cell in cells)
        group.append(_Shown(f"paper\n{printed}", numbers, "dim"))
    return group


def _value(row: Row, place: int) -> str:
    """The value of a row's cell; a row without any number says in its first cell that it failed, or was not run."""
    if row.problem and not row.seeds and place == 0:
        return row.problem.partition(" (")[0]
    cell = row.cells[place]
    return _number(cell.value.mean, cell.shown_error)


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return _NOTHING
    return f"{_number(cell.difference.mean, cell.difference.error, '+')}{'*' if cell.differs else ''}"


def _number(mean: float, error: float, sign: str = "") -> str:
    if math.isnan(mean):
        return _NOTHING
    return f"{mean:{sign}.2f}" + ("" if math.isnan(error) else f" ±{error:.2f}")


def _styled(cell: str) -> Text:
    return Text(cell, style="bold" if cell.endswith("*") else "")


def _lines(console: Console, lines: Sequence[str], style: str = "") -> RenderResult:
    """Lines of text. A console that does not wrap (a log) gets each of them whole."""
    for line in lines:
        text = Text(f"• {line}", style=style)
        yield text if console.soft_wrap else Padding(text, (0, 0, 0, 1))


def _name(table: ResultTable, row: Row) -> str:
    return f"{row.point} (baseline)" if row.point == table.baseline else row.point


def _apart(table: ResultTable) -> bool:
    """Whether the paper's numbers need a table of their own: no measured column, or no row, has a counterpart in it."""
    if table.paper is None or not table.paper.has_numbers:
        return False
    columns = any(table.paper_column(column.metric) for column in table.named)
    return not columns or not any(row.point in table.paper.rows for row in table.rows)


def _paper_rows(paper: PaperTable, table: ResultTable) -> tuple[list[str], list[list[str]]]:
    points = [row.point for row in table.rows if row.point in paper.rows] or list(paper.rows)
    cells = {point: (_NOTHING if math.isnan(x) else f"{x:.2f}" for x in paper.rows[point]) for point in points}
    return ["point", *paper.columns], [[point, *cells[point]] for point in points]


def _paper_rich(paper: PaperTable, table: ResultTable) -> Table:
    header, rows = _paper_rows(paper, table)
    title = escape(f"{paper.title} (as printed)")
    shown = Table(*header, title=title, title_justify="left", style="dim", box=box.HORIZONTALS)
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _blocks(groups: list[list[_Shown]], room: int) -> list[list[_Shown]]:
    """The columns in blocks that fit into `room` characters."""
    blocks: list[list[_Shown]] = [[]]
    for group in groups:
        if blocks[-1] and sum(column.width + _BETWEEN for column in (*blocks[-1], *group)) > room:
            blocks.append([])
        blocks[-1] += group
    return blocks


def _grid(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
