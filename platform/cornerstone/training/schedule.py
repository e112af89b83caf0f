"""The learning rate of a step, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

import torch

from cornerstone.recipes.recipe import Optimization


def learning_rate(step: int, optimization: Optimization) -> float:
    """Linear warmup to the peak over `warmup_steps`, then a cosine to zero at `steps`. `step` counts from 0."""
    peak, warmup = optimization.learning_rate, optimization.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(optimization.steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(model: torch.nn.Module, optimization: Optimization) -> torch.optim.AdamW:
    """AdamW without decay on 1-D parameters: biases, norms and the temperature, which has shape (1,)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # Under ZeRO-3 a parameter is empty outside its module's forward; DeepSpeed keeps its true shape beside it.
    dimensions = [len(getattr(p, "ds_shape", p.shape)) for p in trained]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p, d in zip(trained, dimensions, strict=True) if d > 1],
            "weight_decay": optimization.weight_decay,
        },
        {"params": [p for p, d in zip(trained, dimensions, strict=True) if d <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, betas=optimization.betas, eps=optimization.eps)
