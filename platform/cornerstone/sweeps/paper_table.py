"""A paper's table as printed, shown beside the measured numbers. The tables themselves are in `papers/`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    `columns` are named as printed, and `rows` are keyed by the sweep's point names. `measures` gives for each column the
    evaluation set and the metric that it really holds; `column` uses it to find the printed column of a measured metric.
    A figure without printed numbers has no columns and no rows, only trends.

    `aliases` maps other names of a set to its name in `measures`. `stand_ins` does the same for sets that only play its
    part; `stand_in_note` is shown if one of them was measured. Keys are written as `plain` gives them.
    """

    title: str
    source: str
    columns: tuple[str, ...] = ()
    measures: tuple[tuple[str, str], ...] = ()
    rows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trends: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    stand_in_note: str = ""
    released: tuple[str, ...] = ()
    """Rows of models that the paper took as they were released: always shown, with the printed numbers, though no point trains
    them."""

    def __post_init__(self) -> None:
        if len(self.measures) != len(self.columns) or any(len(row) != len(self.columns) for row in self.rows.values()):
            raise ValueError(f"{self.title}: {len(self.columns)} columns, but another number of measures or of cells.")

    def beside(self, other: PaperTable) -> PaperTable:
        """Both tables as one, with the columns of both and the rows of either: they measure other things of the same rows."""

        def cells(table: PaperTable, row: str) -> tuple[float, ...]:
            return table.rows.get(row, (math.nan,) * len(table.columns))

        stand_in_notes = (self.stand_in_note, other.stand_in_note)
        return PaperTable(
            f"{self.title}; {other.title}",
            f"{self.source}; {other.source}",
            (*self.columns, *other.columns),
            (*self.measures, *other.measures),
            {row: cells(self, row) + cells(other, row) for row in {**self.rows, **other.rows}},
            (*self.notes, *other.notes),
            (*self.trends, *other.trends),
            {**self.aliases, **other.aliases},
            {**self.stand_ins, **other.stand_ins},
            " ".join(note for note in stand_in_notes if note),
        )

    @property
    def has_numbers(self) -> bool:
        """Whether the paper prints numbers."""
        return bool(self.rows)

    def column(self, metric: str) -> str | None:
        """The printed column for `eval/<set>/<metric>`; None if there is none."""
        name = _set_of(metric)
        wanted = (self.aliases.get(name) or self.stand_ins.get(name) or name, metric.rpartition("/")[2])
        return next(
            (column for column, measure in zip(self.columns, self.measures, strict=True) if measure == wanted), None
        )

    def notes_beside(self, metrics: Iterable[str]) -> list[str]:
        """The notes for a table with these measured metrics."""
        stand_in = any(_set_of(metric) in self.stand_ins and self.column(metric) for metric in metrics)
        return [*self.notes, *([self.stand_in_note] if stand_in else [])]

    def value(self, point: str, column: str) -> float | None:
        """The printed number; None if the paper has no such row, or leaves this cell of it empty (NaN)."""
        row = self.rows.get(point)
        number = math.nan if row is None else row[self.columns.index(column)]
        return None if math.isnan(number) else number


def plain(name: str) -> str:
    """A set's name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _set_of(metric: str) -> str:
    """The plain name of the evaluation set in `eval/<set>/<metric>`."""
    return plain(metric.removeprefix("eval/").rpartition("/")[0])
