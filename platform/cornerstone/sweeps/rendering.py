"""A `ResultTable` as a terminal table, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math

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


class _Shown:
    """The table cut into blocks of columns that fit the terminal's width."""

    def __init__(self, table: ResultTable) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self.table
        cells = [_cells(row) for row in table.rows]
        headers = [_header(table, column) for column in table.named]
        widths = [max([_width(header), *(_width_of(row[i]) for row in cells)]) for i, header in enumerate(headers)]
        names = [len(_name(table, row)) for row in table.rows]
        room = options.max_width - sum(n + _BETWEEN for n in (max(names, default=0), len("seeds"))) - 1
        for number, block in enumerate(_blocks(widths, room)):
            title = table.title if number == 0 else f"{table.title} (continued)"
            shown = Table(title=escape(title), title_justify="left", show_lines=True, box=box.HORIZONTALS)
            shown.add_column("point", no_wrap=True)
            shown.add_column("seeds", justify="right")
            for i in block:
                shown.add_column(escape(headers[i]), justify="right", width=widths[i])
            for row, lines in zip(table.rows, cells, strict=True):
                texts = [Text("\n").join(map(_styled, lines[i])) for i in block]
                shown.add_row(escape(_name(table, row)), str(row.seeds), *texts, style="red" if row.problem else None)
            yield shown
        if table.paper is not None and _apart(table):
            yield _paper_rich(table.paper, table)
        for line in table.footer:
            yield Padding(Text(f"• {line}"), (0, 0, 0, 1))


def to_rich(table: ResultTable) -> RenderableType:
    """Each cell has up to three lines: the value, its difference to the baseline, the paper's number."""
    return _Shown(table)


def to_markdown(table: ResultTable) -> str:
    """A GitHub table with the same cells, and the notes as a list."""
    header = ["point", "seeds", *(_header(table, column).replace("\n", "<br>") for column in table.named)]
    rows = [[_name(table, row), str(row.seeds), *map("<br>".join, _cells(row))] for row in table.rows]
    parts = [f"### {table.title}", _grid(header, rows)]
    if table.paper is not None and _apart(table):
        header, rows = _paper_rows(table.paper, table)
        parts += [f"**{table.paper.title}** (as printed)", _grid(header, rows)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in table.footer)]) + "\n"


def to_csv(table: ResultTable) -> str:
    """One line per row; for each metric its mean, error, seeds, difference with interval and p-values, paper's number."""
    kinds = ("", " se", " seeds", " diff", " diff_low", " diff_high", " p", " p_holm", " paper")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["point", "seeds", "problem", *(c.metric + kind for c in table.named for kind in kinds)])
    for row in table.rows:
        writer.writerow([row.point, row.seeds, row.problem, *(_plain(x) for cell in row.cells for x in _numbers(cell))])
    return stream.getvalue()


def _numbers(cell: Cell) -> list[float | None]:
    d = cell.difference
    differences = [None] * 4 if d is None else [d.mean, d.low, d.high, d.p]
    return [cell.value.mean, cell.value.error, cell.value.seeds, *differences, cell.adjusted, cell.paper]


def _plain(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else f"{number:.6g}"


def _cells(row: Row) -> list[list[str]]:
    """The lines of each cell. A row without any number gives the reason in its first cell."""
    if row.problem and not row.seeds:
        return [[row.problem], *([_NOTHING] for _ in row.cells[1:])]
    return [_lines(cell) for cell in row.cells]


def _lines(cell: Cell) -> list[str]:
    lines = [_number(cell.value.mean, cell.shown_error)]
    if cell.difference is not None:
        lines.append(f"Δ {_number(cell.difference.mean, cell.difference.error, '+')}{'*' if cell.differs else ''}")
    if cell.paper is not None:
        lines.append(f"paper {cell.paper:.2f}")
    return lines


def _number(mean: float, error: float, sign: str = "") -> str:
    if math.isnan(mean):
        return _NOTHING
    return f"{mean:{sign}.2f}" + ("" if math.isnan(error) else f" ±{error:.2f}")


def _styled(line: str) -> Text:
    if line.startswith("paper"):
        return Text(line, style="dim")
    return Text(line, style="bold" if line.endswith("*") else "")


def _header(table: ResultTable, column: Column) -> str:
    printed = table.paper_column(column.metric)
    return f"{column.label}\n({printed})" if printed else column.label


def _name(table: ResultTable, row: Row) -> str:
    return f"{row.point} (baseline)" if row.point == table.baseline else row.point


def _apart(table: ResultTable) -> bool:
    """Whether the paper's numbers need a table of their own: no measured column has a counterpart in it."""
    if table.paper is None or not table.paper.has_numbers:
        return False
    return all(table.paper_column(column.metric) is None for column in table.named)


def _paper_rows(paper: PaperTable, table: ResultTable) -> tuple[list[str], list[list[str]]]:
    points = [row.point for row in table.rows if row.point in paper.rows]
    return ["point", *paper.columns], [[point, *(f"{x:.2f}" for x in paper.rows[point])] for point in points]


def _paper_rich(paper: PaperTable, table: ResultTable) -> Table:
    header, rows = _paper_rows(paper, table)
    title = escape(f"{paper.title} (as printed)")
    shown = Table(*header, title=title, title_justify="left", style="dim", box=box.HORIZONTALS)
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _blocks(widths: list[int], room: int) -> list[list[int]]:
    """The columns' indices, split into blocks that fit into `room` characters."""
    blocks: list[list[int]] = [[]]
    for place in range(len(widths)):
        if blocks[-1] and sum(widths[i] + _BETWEEN for i in (*blocks[-1], place)) > room:
            blocks.append([])
        blocks[-1].append(place)
    return blocks


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _width_of(lines: list[str]) -> int:
    """The width of a cell's longest line; a longer reason wraps."""
    return max(min(len(line), 15) for line in lines)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
