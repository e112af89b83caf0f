"""Ranks in which ties count against the model, and the result type of every zero-shot measure.

Shape legend: Q queries, G gallery items, C queries of a chunk, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from cornerstone.errors import CornerstoneError

CHUNK = 1024
"""Queries compared with the whole gallery at a time: 100 MB of similarities with 25,000 texts."""
TIE = 1e-6
"""Similarities of unit vectors that differ by less count as equal: rounding in a matrix product depends on its blocking."""


Similarity = Callable[[Tensor, Tensor], Tensor]
"""Compares every image (N, ...) with every text (T, ...), from features of length 1: (N, T), at most 1."""


def cosine(image_ND: Tensor, text_TD: Tensor) -> Tensor:
    """(N, T): what images and texts with one feature each are compared by."""
    return image_ND @ text_TD.T


@dataclass(frozen=True)
class Measured:
    """The result of a task on one evaluation set.

    `metrics` are in the units that the task declares. `correct` holds, for each metric that is a share of queries, one
    bool per query, for paired statistics; `cluster` holds under the same names the image or group of each query, which
    is the unit that a bootstrap must draw. `scores` holds, for a metric that is a mean of other numbers, the number of each
    query, with its `cluster` too. `chance` holds, again under these names, what a random choice would reach, in the metric's
    unit. `counts` says how many items were measured and how many were left out.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    correct: dict[str, Tensor] = field(default_factory=dict, repr=False)
    cluster: dict[str, Tensor] = field(default_factory=dict, repr=False)
    chance: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def of_queries(self) -> dict[str, Tensor]:
        """The value of each query, fp64, in the metric's unit: its mean over the queries is the metric."""
        shares = {name: 100.0 * correct.double() for name, correct in self.correct.items()}
        return shares | {name: score.double() for name, score in self.scores.items()}


def normalised(features: Tensor) -> Tensor:
    """fp32 features of length 1. In half precision, similarities in a large gallery tie or change their order."""
    return F.normalize(features.float(), dim=-1)


def ranks(
    query_QD: Tensor,
    gallery_GD: Tensor,
    right: Callable[[slice], Tensor],
    chunk: int = CHUNK,
    similarity: Similarity = cosine,
) -> Tensor:
    """How many wrong items rank before each query's best right item: int64 (Q,); 0 is a hit at 1.

    `right` gives, for a slice of queries, a bool (C, G) of the right items. Features have length 1, and `similarity` gives
    (C, G) of some queries and the gallery. A wrong item that is as similar as the best right one ranks before it, and so does
    every item if a similarity is NaN. A model that gives the same feature for every input, or NaN, therefore has a recall
    of 0.
    """
    if query_QD.shape[-1] != gallery_GD.shape[-1]:
        raise CornerstoneError(
            f"Features of widths {query_QD.shape[-1]} and {gallery_GD.shape[-1]} cannot be compared."
        )
    found = []
    for start in range(0, len(query_QD), chunk):
        part = slice(start, min(start + chunk, len(query_QD)))
        similarity_CG, right_CG = similarity(query_QD[part], gallery_GD), right(part)
        best_C = similarity_CG.masked_fill(~right_CG, -torch.inf).amax(dim=1)
        before_CG = ~(similarity_CG < best_C[:, None] - TIE) & ~right_CG
        found.append(before_CG.sum(dim=1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=query_QD.device)


def percent(correct: Tensor) -> float:
    """The share of True in percent; NaN if there is no query."""
    return 100 * int(correct.sum()) / len(correct) if len(correct) else math.nan
