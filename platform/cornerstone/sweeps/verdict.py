"""The verdict below a table, in words: what a point does to a measure, and whether a control explains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cornerstone.evaluation.averages import long_text_retrieval
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.sweeps.points import Claim
from cornerstone.sweeps.statistics import clustered_difference, paired_difference
from cornerstone.sweeps.table import TrialNumbers

MEASURES: dict[str, Callable[[Sequence[EvaluationSet]], list[str]]] = {"long-text retrieval": long_text_retrieval}
"""The metrics whose mean a claim is about, by `Claim.measure`."""


class Change(NamedTuple):
    """The difference of two rows, and half of its 95 % interval (NaN if it is not known)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{abs(self.mean):.1f}" + (f" ± {self.half:.1f}" if self.is_known else "")

    @property
    def sign(self) -> int:
        """1 or -1; 0 if the interval includes 0."""
        return 0 if abs(self.mean) <= self.half else 1 if self.mean > 0 else -1

    @property
    def is_known(self) -> bool:
        """Whether it has an interval."""
        return not math.isnan(self.half)


Queries = Callable[[str], pa.Table | None]
"""The per-query results of a run's last evaluation (`per_query_table`); None if they are not kept."""


def verdict(
    claim: Claim, baseline: str, records: Sequence[TrialNumbers], metrics: Sequence[str], queries: Queries
) -> list[str]:
    """The claim's verdict as sentences; none if a row that it needs has not finished.

    With several seeds the intervals are t-intervals over seeds. With one seed they are over the queries, which both models
    answered, drawn by image: they do not say how much another seed would differ.
    """
    found = [record for record in records if not record.error and all(m in record.metrics for m in metrics)]
    rows = {name: {r.seed: r for r in found if r.point == name} for name in (baseline, claim.point, claim.control)}
    if not metrics or not (seeds := rows[baseline].keys() & rows[claim.point].keys()):
        return []

    def change(row: str, other: str) -> Change | None:
        return _change(rows[row], rows[other], metrics, queries) if rows[row].keys() & rows[other].keys() else None

    effect, control = change(claim.point, baseline), change(claim.control, baseline)
    rest = change(claim.point, claim.control)
    assert effect is not None
    sets = list(dict.fromkeys(metric.split("/")[1] for metric in metrics))
    basis = "±: 95 % interval over the queries of one seed; another seed may differ by more"
    if len(seeds) > 1:
        basis = f"±: 95 % interval over {len(seeds)} seeds"
    elif not effect.is_known:
        basis = "no interval, since the results of single queries are not kept"
    first = f"{claim.subject} {_verb(effect)} {claim.measure} by {effect} points"
    if control is not None:
        first += f"; {claim.control_subject} {_verb(control, singular=True)} it by {control}"
    lines = [f"Verdict: {first} (mean R@1 over {' and '.join(sets)}; compared with {baseline!r}; {basis})."]
    if rest is not None and rest.is_known and effect.sign > 0:
        lines.append(_explained(claim, rest))
    return lines


def _explained(claim: Claim, rest: Change) -> str:
    if rest.sign > 0:
        return f"{claim.subject} add {rest} points to what the control has: {claim.explanation} is not all of the gain."
    than = (
        f"The control is {rest} points better"
        if rest.sign < 0
        else f"The two differ by {rest} points, within the interval"
    )
    return f"{than}: in this run {claim.explanation} is enough to explain the gain."


def _verb(change: Change, *, singular: bool = False) -> str:
    verb = {1: "raise", -1: "lower", 0: "change"}[change.sign]
    verb += "s" if singular else ""
    return verb if change.sign else f"{verb} (within the interval)"


def _change(
    row: Mapping[int, TrialNumbers], other: Mapping[int, TrialNumbers], metrics: Sequence[str], queries: Queries
) -> Change:
    common = sorted(row.keys() & other.keys())

    def means(of: Mapping[int, TrialNumbers]) -> dict[int, float]:
        return {seed: float(np.mean([of[seed].metrics[m] for m in metrics])) for seed in common}

    over_seeds = paired_difference(means(row), means(other))
    if len(common) > 1:
        return Change(over_seeds.mean, over_seeds.high - over_seeds.mean)
    tables = [queries(of[common[0]].run) for of in (row, other)]
    if tables[0] is None or tables[1] is None:
        return Change(over_seeds.mean, math.nan)
    return Change(over_seeds.mean, 1.96 * clustered_difference(tables[0], tables[1], metrics).error)
