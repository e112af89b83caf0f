"""What a few seeds allow to say: means with their errors, paired differences, and how small an effect could be seen."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, NaN with fewer than two."""

    mean: float
    error: float
    seeds: int


@dataclass(frozen=True)
class PairedDifference:
    """A point minus the baseline over the seeds that both have.

    `low` and `high` bound the 95 % t-interval of the mean, `p` is the two-sided paired t-test's, `deviation` the
    standard deviation of the differences; all are NaN with fewer than two seeds.
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
    """Compare two points by seed: runs of one seed share initialisation, batches and draws, whose luck cancels."""
    common = sorted(point.keys() & baseline.keys())
    differences = np.array([point[seed] - baseline[seed] for seed in common], dtype=float)
    n = len(differences)
    mean = float(differences.mean()) if n else NAN
    if n < 2:
        return PairedDifference(mean, NAN, NAN, NAN, NAN, NAN, n)
    deviation = float(differences.std(ddof=1))
    error = deviation / math.sqrt(n)
    reach = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    if error > 0:
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    else:
        p = 1.0 if mean == 0 else 0.0
    return PairedDifference(mean, error, mean - reach, mean + reach, p, deviation, n)


@functools.cache
def smallest_detectable(seeds: int, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest effect that a two-sided paired t-test over `seeds` finds with that power, in SD of the differences.

    NaN with fewer than two seeds.
    """
    if seeds < 2:
        return NAN
    df = seeds - 1
    critical = float(stats.t.ppf(1 - level / 2, df))

    spread = stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df)  # averaged over: the library's noncentral t gives NaN
    reach = critical * np.sqrt(spread / df)

    def missing(effect: float) -> float:
        shift = effect * math.sqrt(seeds)
        return float(np.mean(stats.norm.sf(reach - shift) + stats.norm.sf(reach + shift))) - power

    return float(optimize.brentq(missing, 1e-3, 100.0))


def query_error(percentage: float, queries: int) -> float:
    """The binomial standard error of a share of queries, both in percent: all that one seed can say about its noise."""
    share = percentage / 100
    return 100 * math.sqrt(max(share * (1 - share), 0.0) / queries) if queries > 0 else NAN


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values of a family of comparisons; those that are NaN stay so and are not counted."""
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = {name: p for name, p in p_values.items() if math.isnan(p)}
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted
