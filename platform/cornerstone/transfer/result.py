"""What a transfer gives: of each tower and head the result of every image and seed, with both of its uncertainties.

S seeds, Q images, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from scipy import stats

from cornerstone.data import draws

RESAMPLES = 2_000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One tower with one head or measure."""

    name: str
    """Its name in files: `top1`, `floor_top1`."""
    tower: str
    mode: str
    head: str
    score_SQ: npt.NDArray[np.float64] = field(repr=False)
    """Of each query, seed by seed: 0 or 100 where a query is right or wrong, or its score × 100."""
    cluster_Q: npt.NDArray[np.int64] = field(repr=False)
    """The image of each query, which the bootstrap draws."""
    metric: str = "top-1"
    learning_rate: float | None = None
    seconds: float = 0.0
    drawn: bool = True
    """Whether its seeds differ; k-NN and linear probe draw nothing."""
    of_set: bool = False
    """A score of the whole set, which is no mean over images: `score_SQ` is (S, 1)."""
    unit: str = " %"
    shown: bool = True
    """Whether it stands in the table; files have all rows."""

    @property
    def value(self) -> float:
        """The mean over seeds and queries."""
        return float(self.score_SQ.mean())

    @property
    def seeds(self) -> int:
        """Seeds of the head; 1 of a measure that draws nothing."""
        return len(self.score_SQ)

    def over_seeds(self) -> Interval:
        """95 % t-interval of the mean over seeds; NaN with fewer than two, and for a measure that draws nothing."""
        n = self.seeds
        if n < 2 or not self.drawn:
            return math.nan, math.nan
        error = float(self.score_SQ.mean(1).std(ddof=1)) / math.sqrt(n)
        half = float(stats.t.ppf(0.975, n - 1)) * error
        return self.value - half, self.value + half

    def over_images(self) -> Interval:
        """95 % interval by the bootstrap over images, each drawn with all its queries, the heads kept; NaN of a set's score."""
        if self.of_set:
            return math.nan, math.nan
        score_Q = self.score_SQ.mean(0)
        _, place_Q = np.unique(self.cluster_Q, return_inverse=True)
        total_C, count_C = np.bincount(place_Q, score_Q), np.bincount(place_Q)
        generator = draws.generator(0, "bootstrap")
        means = np.empty(RESAMPLES)
        for i in range(RESAMPLES):
            drawn = generator.integers(0, len(count_C), len(count_C))
            means[i] = total_C[drawn].sum() / count_C[drawn].sum()
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)


@dataclass(frozen=True)
class Result:
    """All rows of one test set, and what a reader must know."""

    data: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """`eval/<data>/<row>` in percent, and everything else under `details`."""
        metrics = {f"eval/{self.data}/{row.name}": row.value for row in self.rows}
        details = {f"eval/{self.data}/{row.name}": _details(row) for row in self.rows}
        return {**metrics, "details": details, "notes": list(self.notes), "seconds": round(self.seconds, 1)}


def _details(row: Row) -> dict[str, Any]:
    low, high = (None if math.isnan(x) else x for x in row.over_images())
    return {
        "tower": row.tower,
        "mode": row.mode,
        "head": row.head,
        "seeds": row.seeds,
        "by_seed": [float(x) for x in row.score_SQ.mean(1)],
        "seed_interval": [None if math.isnan(x) else x for x in row.over_seeds()],
        "low": low,
        "high": high,
        "queries": row.score_SQ.shape[1],
        "learning_rate": row.learning_rate,
        "seconds": round(row.seconds, 1),
    }


def table_of(result: Result) -> Table:
    """A row for each tower and head."""
    table = Table(box=None, title=f"Transfer to {result.data}", title_justify="left")
    for header in ("tower", "mode", "head", "metric"):
        table.add_column(header, no_wrap=header != "tower")
    for header in ("value", "95 % over seeds", "95 % over images", "lr", "seconds"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in (row for row in result.rows if row.shown):
        rate = "–" if row.learning_rate is None else f"{row.learning_rate:g}"
        values = (f"{row.value:.2f}{row.unit}", _between(row.over_seeds()), _between(row.over_images()), rate)
        table.add_row(row.tower, row.mode, row.head, row.metric, *values, f"{row.seconds:.1f}")
    return table


def _between(interval: Interval) -> str:
    return "–" if any(map(math.isnan, interval)) else f"{interval[0]:.2f} to {interval[1]:.2f}"


def few_seeds(seeds: int) -> Sequence[str]:
    """What is said if a table has fewer seeds than a reader accepts."""
    if seeds >= 3:
        return ()
    said = (
        "one seed: its interval over seeds is unknown" if seeds == 1 else f"{seeds} seeds: a wide interval over seeds"
    )
    return (f"{said}. Published tables need 3 head seeds or more (--seeds 3).",)
