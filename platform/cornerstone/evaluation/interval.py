"""95 % intervals of a measure over its queries, drawn by cluster: those of one image or group are not independent."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

DRAWS = 1_000
LEVEL = 0.95
_SEED = 0
_AT_ONCE = 2_000_000
"""Drawn clusters that are held at a time."""
NAN = float("nan")


def clustered_interval(
    value_Q: npt.ArrayLike, cluster_Q: npt.ArrayLike, *, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """The percentile bootstrap of the mean of some queries' values: whole clusters are drawn with replacement.

    Args:
        value_Q: 0 or 100 for each query of a share in percent, or any number in the metric's unit.
        cluster_Q: The image or group of each query.

    The draws are seeded, so equal queries have equal intervals. If no draw differs from another (all queries of a share are
    right, or all wrong, or there is one cluster), it is Wilson's interval of as many queries as there are clusters. NaN
    without queries.
    """
    values = np.asarray(value_Q, dtype=np.float64)
    if not len(values):
        return NAN, NAN
    found, place = np.unique(np.asarray(cluster_Q), return_inverse=True)
    clusters = len(found)
    total, size = np.bincount(place, values), np.bincount(place).astype(np.float64)
    rng, at_once = np.random.default_rng(_SEED), max(1, _AT_ONCE // clusters)
    means = np.empty(draws)
    for first in range(0, draws, at_once):
        chosen = rng.integers(clusters, size=(min(at_once, draws - first), clusters))
        means[first : first + len(chosen)] = total[chosen].sum(1) / size[chosen].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    if low == high and set(np.unique(values).tolist()) <= {0.0, 100.0}:
        return wilson(float(values.mean()), clusters)
    return float(low), float(high)


def wilson(percentage: float, queries: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of independent queries, in percent; NaN without queries. z = 1.96 gives 95 %."""
    if queries <= 0:
        return NAN, NAN
    share, weight = percentage / 100, z * z / queries
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(max(share * (1 - share), 0.0) * weight + weight * weight / 4) / (1 + weight)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)
