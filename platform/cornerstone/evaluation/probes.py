"""What a frozen tower's features hold: k nearest neighbours and a linear classifier, both without gradient descent.

N training images, Q queries, C classes, V width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cornerstone.evaluation.ranking import normalised

NEIGHBOURS, SOFTNESS = 10, 0.07
"""Neighbours and temperature of their votes (Wu et al. 2018, with fewer neighbours for small sets)."""
PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Of the ridge, times the mean squared feature; the best on the last fifth of the training images is kept."""


def nearest(train_NV: Tensor, label_N: Tensor, query_QV: Tensor, classes: int) -> Tensor:
    """(Q,) classes by the votes of the nearest training images, weighed by exp(cosine / temperature)."""
    similarity_QN = normalised(query_QV) @ normalised(train_NV).T
    found = similarity_QN.topk(min(NEIGHBOURS, len(train_NV)), dim=1)
    votes_QC = torch.zeros(len(query_QV), classes)
    votes_QC.scatter_add_(1, label_N[found.indices], (found.values / SOFTNESS).exp())
    return votes_QC.argmax(1)


def linear(train_NV: Tensor, label_N: Tensor, query_QV: Tensor, classes: int) -> Tensor:
    """(Q,) classes by ridge regression on one-hot targets; the penalty is chosen on held-out training images."""
    held = max(len(train_NV) // 5, 1)
    fit, check = slice(0, len(train_NV) - held), slice(len(train_NV) - held, None)
    right = [
        float((_ridge(train_NV[fit], label_N[fit], train_NV[check], classes, p) == label_N[check]).float().mean())
        for p in PENALTIES
    ]
    best = PENALTIES[max(range(len(PENALTIES)), key=lambda i: (right[i], PENALTIES[i]))]
    return _ridge(train_NV, label_N, query_QV, classes, best)


def _ridge(train_NV: Tensor, label_N: Tensor, query_QV: Tensor, classes: int, penalty: float) -> Tensor:
    mean_V, deviation_V = train_NV.double().mean(0), train_NV.double().std(0).clamp(min=1e-8)
    x_NV, y_QV = ((part.double() - mean_V) / deviation_V for part in (train_NV, query_QV))
    target_NC = functional.one_hot(label_N, classes).double()
    offset_C = target_NC.mean(0)
    gram_VV = x_NV.T @ x_NV / len(x_NV) + penalty * torch.eye(x_NV.shape[1], dtype=torch.float64)
    weight_VC = torch.linalg.solve(gram_VV, x_NV.T @ (target_NC - offset_C) / len(x_NV))
    return (y_QV @ weight_VC + offset_C).argmax(1)
