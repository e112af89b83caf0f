"""The table of a sweep: means over seeds, paired differences to the baseline, and the paper's numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from cornerstone.sweeps.paper_table import PaperTable
from cornerstone.sweeps.statistics import (
    Estimate,
    PairedDifference,
    estimate,
    holm,
    paired_difference,
    query_error,
    smallest_detectable,
)

LEVEL = 0.05


class Trial(Protocol):
    """What the table reads of a trial: its place in the sweep, and its numbers or its error."""

    @property
    def point(self) -> str:
        """The point's name."""

    @property
    def seed(self) -> int:
        """The seed's number."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """`eval/<set>/<metric>` in percent."""

    @property
    def error(self) -> str:
        """Why it has no numbers; empty where it has."""


@dataclass(frozen=True)
class Record:
    """A plain `Trial`; `error` is empty where it finished."""

    point: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Column(NamedTuple):
    """A metric (`eval/dci/i2t_r1`) and the label that readers see."""

    metric: str
    label: str


@dataclass(frozen=True)
class Cell:
    """One point's metric. `adjusted` is the difference's p-value after Holm, `paper` the printed number."""

    value: Estimate
    difference: PairedDifference | None = None
    adjusted: float = math.nan
    paper: float | None = None
    queries: float = math.nan
    """Binomial error of a single seed, where the number of queries is known."""

    @property
    def differs(self) -> bool:
        """Whether the difference to the baseline holds against its family."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Row:
    """One point; `problem` says what is missing."""

    point: str
    seeds: int
    cells: tuple[Cell, ...]
    problem: str = ""


@dataclass(frozen=True)
class ResultTable:
    """A sweep's results, ready to be shown.

    `columns` are (metric, label) pairs, the first of them the primary metric; values are percentages. `points` fixes
    the rows' order and names those that should be there; without it they come as the records do. `queries` gives how
    many queries a metric was measured on: with a single seed its binomial error is shown. `notes` are printed below.
    """

    title: str
    records: Sequence[Trial]
    columns: Sequence[tuple[str, str]]
    baseline: str = ""
    paper: PaperTable | None = None
    points: Sequence[str] = ()
    queries: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @cached_property
    def named(self) -> list[Column]:
        """The columns."""
        return [Column(*column) for column in self.columns]

    @cached_property
    def seeds(self) -> int:
        """The most seeds that any point has finished."""
        return max((row.seeds for row in self.rows), default=0)

    @cached_property
    def rows(self) -> list[Row]:
        """Every point's row, failed and missing ones too."""
        names = list(dict.fromkeys([*self.points, *(record.point for record in self.records)]))
        differences = {(name, column): self._difference(name, column) for name in names for column in self.named}
        adjusted = self._adjusted(differences)
        rows = []
        for name in names:
            trials = [record for record in self.records if record.point == name]
            failed = [f"seed {record.seed}: {_short(record.error)}" for record in trials if record.error]
            finished = len(trials) - len(failed)
            cells = tuple(self._cell(name, c, differences[name, c], adjusted[name, c]) for c in self.named)
            problem = f"failed ({'; '.join(failed)})" if failed else "" if finished else "not run"
            rows.append(Row(name, finished, cells, problem))
        return rows

    @cached_property
    def detectable(self) -> list[float]:
        """For each column the smallest difference to the baseline that this many seeds show with 80 % power at 5 %.

        From the deviations of all points' paired differences, pooled; NaN with fewer than two common seeds.
        """
        found = []
        for place in range(len(self.named)):
            cells = [row.cells[place].difference for row in self.rows]
            known = [d for d in cells if d is not None]
            weight = sum(d.seeds - 1 for d in known)
            pooled = math.sqrt(sum((d.seeds - 1) * d.deviation**2 for d in known) / weight) if weight else math.nan
            found.append(pooled * smallest_detectable(min(d.seeds for d in known)) if known else math.nan)
        return found

    @cached_property
    def footer(self) -> list[str]:
        """What a reader must know: how sure the numbers are, what the paper's are, and the sweep's own notes."""
        lines = list(self.notes)
        if self.seeds == 1:
            errors = " ± is the queries' binomial error." if self.queries else ""
            lines.append(f"One seed: no error over seeds, no verdict on any difference.{errors} Use --seeds 5 or more.")
        elif self.seeds > 1:
            lines.append(f"Mean ± standard error over up to {self.seeds} seeds, in %.")
            lines += self._about_differences()
        for row in self.rows:
            if row.problem:
                lines.append(f"{row.point!r}: {row.problem}.")
        return lines + self._about_paper()

    def paper_column(self, metric: str) -> str | None:
        """The paper's column beside a metric of ours."""
        return self.paper.column(metric) if self.paper is not None else None

    def _values(self, point: str, metric: str) -> dict[int, float]:
        trials = [record for record in self.records if record.point == point and not record.error]
        found = {record.seed: record.metrics.get(metric, math.nan) for record in trials}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def _difference(self, point: str, column: Column) -> PairedDifference | None:
        if not self.baseline or point == self.baseline:
            return None
        found = paired_difference(self._values(point, column.metric), self._values(self.baseline, column.metric))
        return found if found.seeds > 1 else None

    def _adjusted(
        self, differences: Mapping[tuple[str, Column], PairedDifference | None]
    ) -> dict[tuple[str, Column], float]:
        """Holm within two families: the primary column, and all others together."""
        keys = {f"{i}": key for i, key in enumerate(differences)}
        result = dict.fromkeys(differences, math.nan)
        for primary in (True, False):
            family = {i: key for i, key in keys.items() if (key[1] == self.named[0]) is primary}
            found = {i: d.p if (d := differences[key]) is not None else math.nan for i, key in family.items()}
            result |= {family[i]: p for i, p in holm(found).items()}
        return result

    def _cell(self, point: str, column: Column, difference: PairedDifference | None, adjusted: float) -> Cell:
        value = estimate(list(self._values(point, column.metric).values()))
        printed = self.paper_column(column.metric)
        paper = self.paper.value(point, printed) if self.paper is not None and printed is not None else None
        queries = self.queries.get(column.metric, 0)
        error = query_error(value.mean, queries) if value.seeds == 1 and queries else math.nan
        return Cell(value, difference, adjusted, paper, error)

    def _about_differences(self) -> list[str]:
        if not self.baseline:
            return []
        lines = [
            f"Δ: difference to {self.baseline!r}, paired over seeds. *: Holm-adjusted p < {LEVEL}, the first column "
            f"(the primary metric) by itself, the others as one family."
        ]
        known = [f"{c.label} {d:.2f}" for c, d in zip(self.named, self.detectable, strict=True) if not math.isnan(d)]
        if known:
            lines.append(f"Smallest difference seen with 80 % power at 5 %: {', '.join(known)}.")
        return lines

    def _about_paper(self) -> list[str]:
        if self.paper is None:
            return []
        lines = [
            f"Paper: {self.paper.title} — {self.paper.source}.",
            *self.paper.notes_beside(c.metric for c in self.named),
        ]
        return lines + [f"Expected: {trend}" for trend in self.paper.trends]


def _short(reason: str) -> str:
    """The first line of a reason, short enough for a table."""
    line = reason.strip().partition("\n")[0]
    return line if len(line) <= 120 else line[:117] + "..."
