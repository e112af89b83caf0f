"""Statistics over a few seeds: means with errors, paired differences, and the smallest effect that can be detected."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import optimize, stats

from cornerstone.evaluation.interval import wilson

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, NaN with fewer than two."""

    mean: float
    error: float
    seeds: int


@dataclass(frozen=True)
class PairedDifference:
    """A point minus the baseline, over the seeds that both have.

    `low` and `high` bound the 95 % t-interval of the mean, `p` is the p-value of the two-sided paired t-test, and
    `deviation` is the standard deviation of the differences. All four, and `error`, are NaN with fewer than two seeds.
    """

    mean: float
    error: float
    low: float
    high: float
    p: float
    deviation: float
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of independent runs."""
    n = len(values)
    mean = float(np.mean(values)) if n else NAN
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else NAN
    return Estimate(mean, error, n)


def paired_difference(
    point: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference:
    """Compare two points seed by seed. Runs of one seed share initialisation, batches and draws, whose effect cancels."""
    common = sorted(point.keys() & baseline.keys())
    ours = np.array([point[seed] for seed in common], dtype=float)
    theirs = np.array([baseline[seed] for seed in common], dtype=float)
    differences, n = ours - theirs, len(common)
    mean = float(differences.mean()) if n else NAN
    if n < 2:
        return PairedDifference(mean, NAN, NAN, NAN, NAN, NAN, n)
    deviation = float(differences.std(ddof=1))
    error = deviation / math.sqrt(n)
    if error == 0:  # the test's statistic is 0/0 or infinite
        return PairedDifference(mean, error, mean, mean, 1.0 if mean == 0 else 0.0, deviation, n)
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(confidence)
    return PairedDifference(mean, error, float(interval.low), float(interval.high), float(test.pvalue), deviation, n)


@functools.cache
def smallest_detectable(seeds: int, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest effect that a two-sided paired t-test over `seeds` detects with that power, in SD of the differences.

    NaN with fewer than two seeds.
    """
    if seeds < 2:
        return NAN
    df = seeds - 1
    critical = float(stats.t.ppf(1 - level / 2, df))

    # The average over the chi-squared distribution of the variance: scipy's noncentral t gives NaN for some arguments.
    spread = stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df)
    reach = critical * np.sqrt(spread / df)

    def missing(effect: float) -> float:
        shift = effect * math.sqrt(seeds)
        return float(np.mean(stats.norm.sf(reach - shift) + stats.norm.sf(reach + shift))) - power

    return float(optimize.brentq(missing, 1e-3, 100.0))


def query_error(percentage: float, queries: int) -> float:
    """The binomial error of a share of queries, both in percent; the only error that one seed can give.

    Half of Wilson's interval of one standard error: that of 0 of 124 is 0.4, where the usual formula gives 0.
    """
    low, high = wilson(percentage, queries, z=1.0)
    return (high - low) / 2


def clustered_difference(point: pa.Table, baseline: pa.Table, metrics: Sequence[str]) -> Estimate:
    """The mean over `metrics` of the difference between two models' shares of correct queries, in percentage points.

    Takes two tables of per-query results (`evaluation.judged.SCHEMA`). The standard error is over the queries, which are the
    same for both models. Queries of one image or group are not independent, also across the metrics of a set: their
    deviations are added up first (the cluster-robust variance). NaN if the tables have other queries.
    """
    total, deviations = 0.0, dict[tuple[str, int], float]()
    for metric in metrics:
        _, name, kind = metric.split("/")
        ours, theirs = (_queries(table, name, kind) for table in (point, baseline))
        if ours.num_rows == 0 or not ours.select(["query", "cluster"]).equals(theirs.select(["query", "cluster"])):
            return Estimate(NAN, NAN, 1)
        d = 100.0 * (ours["correct"].to_numpy().astype(float) - theirs["correct"].to_numpy().astype(float))
        total += float(d.mean())
        cluster, places = np.unique(ours["cluster"].to_numpy(), return_inverse=True)
        for one, value in zip(cluster.tolist(), np.bincount(places, d - d.mean()).tolist(), strict=True):
            deviations[name, one] = deviations.get((name, one), 0.0) + value / len(d)
    variance = sum(value * value for value in deviations.values()) / len(metrics) ** 2
    return Estimate(total / len(metrics), math.sqrt(variance), 1)


def _queries(table: pa.Table, name: str, kind: str) -> pa.Table:
    chosen = pc.and_(pc.equal(table["set"], name), pc.equal(table["metric"], kind))
    return table.filter(chosen).sort_by("query").combine_chunks()


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values of a family of comparisons; p-values that are NaN stay NaN and are not counted."""
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = {name: p for name, p in p_values.items() if math.isnan(p)}
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted
