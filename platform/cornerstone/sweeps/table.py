"""The table of a sweep: means over seeds, paired differences to the baseline, and the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

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
Z = 1.96
"""Standard errors from the mean to the end of a 95 % interval."""


class TrialNumbers(Protocol):
    """What the table reads of a trial: its row, its seed, and its metrics or its error."""

    @property
    def point(self) -> str:
        """The name of the row."""

    @property
    def seed(self) -> int:
        """The seed's number."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """`eval/<set>/<metric>`."""

    @property
    def queries(self) -> Mapping[str, int]:
        """The number of queries that a metric was measured on; empty if it is not known."""

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """The 95 % interval of a metric over its queries; empty if it is not known."""

    @property
    def chance(self) -> Mapping[str, float]:
        """What a random choice would reach in a metric, in percent."""

    @property
    def error(self) -> str:
        """Why it has no metrics; empty if it finished."""

    @property
    def run(self) -> str:
        """The UUID of its run."""


class Column(NamedTuple):
    """A metric (`eval/dci/i2t_r1`), its label in the table, and its unit."""

    metric: str
    label: str
    unit: str = "%"


class Aside(NamedTuple):
    """A number beside a row that no trial measures, such as the operations of a text."""

    label: str
    unit: str
    value: float
    drawn: bool = False
    """Whether the plot has an axis for it."""


@dataclass(frozen=True)
class Cell:
    """One row's metric. `adjusted` is the difference's p-value after Holm's correction, `paper` the printed number."""

    value: Estimate
    difference: PairedDifference | None = None
    adjusted: float = math.nan
    paper: float | None = None
    over_queries: float = math.nan
    """Standard error over the queries if there is a single seed and the queries are known."""

    @property
    def shown_error(self) -> float:
        """The standard error over seeds; with one seed that over the queries."""
        return self.value.error if self.value.seeds > 1 else self.over_queries

    @property
    def differs(self) -> bool:
        """Whether the difference to the baseline is significant within its family."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Row:
    """One row of the table; `problem` says what is missing."""

    point: str
    seeds: int
    cells: tuple[Cell, ...]
    problem: str = ""


@dataclass(frozen=True)
class ResultTable:
    """A sweep's results as rows and columns.

    `columns` are (metric, label[, unit]); the first one is the primary metric. A row without a column's metric has an
    empty cell; several records of a row and seed bring different metrics. `points` gives the order of the rows and names
    those that are expected; without it they are in the order of the records. Each row is compared with `baseline`, or with
    the row that `baselines` (follow-ups) or `compared` names for it. `notes` are printed below the table, `warnings` above
    it, and `verdict` between the table and the notes.
    """

    title: str
    records: Sequence[TrialNumbers]
    columns: Sequence[tuple[str, ...]]
    baseline: str = ""
    paper: PaperTable | None = None
    points: Sequence[str] = ()
    baselines: Mapping[str, str] = field(default_factory=dict)
    compared: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    verdict: Sequence[str] = ()
    asides: Mapping[str, Sequence[Aside]] = field(default_factory=dict)
    """By row."""
    places: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    """For each row the curves of the plot on which it stands, and its x."""
    x_label: str = ""

    @cached_property
    def named(self) -> list[Column]:
        """The columns."""
        return [Column(*column) for column in self.columns]

    @cached_property
    def seeds(self) -> int:
        """The largest number of seeds that a row has finished."""
        return max((row.seeds for row in self.rows), default=0)

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, including those that failed or were not run."""
        names = list(dict.fromkeys([*self.points, *(record.point for record in self.records)]))
        elsewhere = [name for name in (self.paper.released if self.paper else ()) if name not in names]
        differences = {(name, column): self._difference(name, column) for name in names for column in self.named}
        adjusted = self._adjusted(differences)
        rows = []
        for name in names:
            trials = [record for record in self.records if record.point == name]
            failed = [f"seed {record.seed}: {_short(record.error)}" for record in trials if record.error]
            finished = len({record.seed for record in trials if not record.error})
            cells = tuple(self._cell(name, c, differences[name, c], adjusted[name, c]) for c in self.named)
            problem = f"failed ({'; '.join(failed)})" if failed else "" if finished else "not run"
            rows.append(Row(name, finished, cells, problem))
        return [*rows, *(Row(name, 0, tuple(self._printed(name, c) for c in self.named)) for name in elsewhere)]

    @cached_property
    def aside_labels(self) -> list[tuple[str, str]]:
        """Label and unit of every aside, in the order of the rows."""
        return list(dict.fromkeys((a.label, a.unit) for row in self.rows for a in self.asides.get(row.point, ())))

    def aside(self, point: str, label: str) -> float:
        """A row's aside; NaN if it has none of this label."""
        return next((a.value for a in self.asides.get(point, ()) if a.label == label), math.nan)

    @cached_property
    def detectable(self) -> list[float]:
        """For each column the smallest difference to the baseline that is detected with 80 % power at the 5 % level.

        Uses the pooled deviation of all rows' paired differences; NaN with fewer than two common seeds.
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
        """The lines below the table: the notes, how the errors are computed, problems, and the paper's notes."""
        lines = list(self.notes)
        if self.seeds == 1:
            errors = " ± is the standard error over the queries, drawn by image or group." if self.has_queries else ""
            lines.append(
                f"One seed: no error over seeds, so no difference can be called significant.{errors} Use --seeds 5 or more."
            )
        elif self.seeds > 1:
            units = "/".join(dict.fromkeys(column.unit for column in self.named))
            lines.append(f"Mean ± standard error over up to {self.seeds} seeds, in {units}.")
            lines += self._about_differences()
        lines += self._about_chance()
        for row in self.rows:
            if row.problem:
                lines.append(f"{row.point!r}: {row.problem}.")
        return lines + self._about_paper()

    @property
    def has_queries(self) -> bool:
        """Whether any record says how many queries it was measured on."""
        return any(record.queries for record in self.records)

    def paper_column(self, metric: str) -> str | None:
        """The paper's column for a measured metric."""
        return self.paper.column(metric) if self.paper is not None else None

    def _values(self, point: str, metric: str) -> dict[int, float]:
        found = {r.seed: r.metrics[metric] for r in self._finished(point) if metric in r.metrics}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def _finished(self, point: str) -> list[TrialNumbers]:
        return [record for record in self.records if record.point == point and not record.error]

    def _difference(self, point: str, column: Column) -> PairedDifference | None:
        baseline = self.baselines.get(point) or self.compared.get(point, self.baseline)
        if not baseline or point == baseline:
            return None
        found = paired_difference(self._values(point, column.metric), self._values(baseline, column.metric))
        return found if found.seeds > 1 else None

    def _adjusted(
        self, differences: Mapping[tuple[str, Column], PairedDifference | None]
    ) -> dict[tuple[str, Column], float]:
        """Holm's correction within two families: the primary column, and all other columns together."""
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
        return Cell(value, difference, adjusted, paper, self._over_queries(point, column, value))

    def _printed(self, point: str, column: Column) -> Cell:
        """A cell of a model that is not trained here."""
        printed = self.paper_column(column.metric)
        paper = self.paper.value(point, printed) if self.paper is not None and printed is not None else None
        return Cell(estimate([]), paper=paper)

    def _over_queries(self, point: str, column: Column, value: Estimate) -> float:
        """From the 95 % interval; of records without one, the binomial error."""
        if value.seeds != 1:
            return math.nan
        (seed,) = self._values(point, column.metric)
        trials = [r for r in self._finished(point) if r.seed == seed]
        if found := [r.intervals[column.metric] for r in trials if column.metric in r.intervals]:
            return (found[-1][1] - found[-1][0]) / (2 * Z)
        queries = max(r.queries.get(column.metric, 0) for r in trials)
        return query_error(value.mean, queries) if queries else math.nan

    def _about_differences(self) -> list[str]:
        if not self.baseline:
            return []
        follow_ups = f" (follow-ups: to the same follow-up of {self.baseline!r})" if self.baselines else ""
        present = {row.point for row in self.rows}
        others = [f"of {row!r} to {other!r}" for row, other in self.compared.items() if row in present]
        to = "; ".join([f"{self.baseline!r}{follow_ups}", *others])
        lines = [
            f"Δ: difference to {to}, paired over seeds. *: Holm-adjusted p < {LEVEL}; the first "
            f"column (the primary metric) is one family, all other columns are another."
        ]
        known = [f"{c.label} {d:.2f}" for c, d in zip(self.named, self.detectable, strict=True) if not math.isnan(d)]
        if known:
            lines.append(f"Smallest difference that is detected with 80 % power at the 5 % level: {', '.join(known)}.")
        return lines

    def _about_chance(self) -> list[str]:
        """What a random choice would reach, for each column."""
        found: dict[str, list[str]] = {}
        for column in self.named:
            values = {f"{r.chance[column.metric]:.3g} %" for r in self.records if column.metric in r.chance}
            for value in sorted(values):
                found.setdefault(value, []).append(column.label)
        if not found:
            return []
        return ["By chance: " + "; ".join(f"{value} in {', '.join(labels)}" for value, labels in found.items()) + "."]

    def _about_paper(self) -> list[str]:
        if self.paper is None:
            return []
        lines = [
            f"Paper: {self.paper.title} — {self.paper.source}.",
            *self.paper.notes_beside(c.metric for c in self.named),
        ]
        return lines + [f"Expected: {trend}" for trend in self.paper.trends]


def _short(reason: str) -> str:
    """The first line of a reason, cut to a length that fits in a table."""
    line = reason.strip().partition("\n")[0]
    return line if len(line) <= 120 else line[:117] + "..."
