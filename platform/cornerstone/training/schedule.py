"""The learning rate of a step, and the optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch

from cornerstone.models.method import Method
from cornerstone.recipes.recipe import Optimization


def learning_rate(step: int, optimization: Optimization) -> float:
    """Linear warmup to the peak over `warmup_steps`, then a cosine to zero at `steps`. `step` counts from 0."""
    peak, warmup = optimization.learning_rate, optimization.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(optimization.steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(model: Method[Any, Any], optimization: Optimization) -> torch.optim.AdamW:
    """AdamW over the method's parameter groups. A group's `lr_scale` multiplies the learning rate of every step."""
    groups: list[dict[str, Any]] = []
    for group in model.parameter_groups():
        if group.frozen:
            for parameter in group.parameters:
                parameter.requires_grad_(False)
        elif group.parameters:
            decay = optimization.weight_decay if group.decays else 0.0
            groups.append({"params": group.parameters, "weight_decay": decay, "lr_scale": group.lr_scale})
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, betas=optimization.betas, eps=optimization.eps)
