"""Training a head, with or without its tower: the engine, schedule and order of rows of training, in this process.

Q queries, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cornerstone.data import draws
from cornerstone.data.plan import Plan
from cornerstone.data.source import Ints
from cornerstone.errors import CornerstoneError
from cornerstone.models.classifier import Classifier
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import PlainEngine, Precision
from cornerstone.training.schedule import learning_rate
from cornerstone.transfer.images import Split

ROWS_AT_ONCE = 256
Build = Callable[[int], Classifier]
"""A fresh classifier by its seed, on its device."""


@dataclass(frozen=True)
class Fitting:
    """How heads are trained."""

    optimization: Optimization
    plan: Plan
    precision: Precision = "fp32"
    micro_batch: int = 0


def fit(build: Build, split: Split, rows: Ints, fitting: Fitting, seed: int) -> Classifier:
    """A classifier trained on some rows of a split. Each seed has its own initialisation and order.

    The plan runs over the whole split; rows that are held out, or cannot be used, are left out of its batches. Raises
    CornerstoneError if the loss is not finite.
    """
    optimization, plan = fitting.optimization, replace(fitting.plan, seed=seed)
    used = np.zeros(len(split.label_N), dtype=bool)
    used[rows] = True
    model, images = build(seed).train(), split.training(seed)
    engine = PlainEngine(model, optimization, fitting.precision, fitting.micro_batch)
    with torch.random.fork_rng(devices=[engine.device] if engine.device.type == "cuda" else []):
        for step in range(optimization.steps):
            planned, epochs = plan.batch(step)
            kept = used[planned]
            if not kept.any():
                continue
            batch = images.batch(step, planned[kept], epochs[kept]).to(engine.device)
            torch.manual_seed(int(draws.hashed(seed, "step", 0, step)[0]))
            report = engine.step(batch, learning_rate(step, optimization))
            if report.skipped > optimization.skipped_step_limit or not torch.isfinite(report.loss):
                raise CornerstoneError(
                    f"The loss is {float(report.loss):.3g} at step {step}, with learning rate {optimization.learning_rate:g} "
                    f"({report.skipped} steps were skipped): give smaller ones, --learning-rates."
                )
    return model.eval()


@torch.no_grad()
def right(model: Classifier, split: Split, rows: Ints) -> Tensor:
    """(Q,) bool: whether the class has a higher logit than every other. A tie, or NaN, is wrong."""
    device, found = next(model.parameters()).device, []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        batch = split.images.batch(0, some, np.zeros_like(some)).to(device)
        logits_BC = model(batch).logits_BC.float()
        own_B1 = logits_BC.gather(1, batch.label[:, None])
        others_BC = logits_BC.scatter(1, batch.label[:, None], -torch.inf)
        found.append((own_B1 > others_BC.amax(1, keepdim=True)).flatten().cpu())
    return torch.cat(found)


def best_rate(build: Build, split: Split, fitting: Fitting, rates: Sequence[float], held: Ints, say: Any) -> float:
    """The learning rate with the highest accuracy on the held-out rows; the first of equally good ones.

    One rate is not tried. Raises CornerstoneError if nothing is left to train on.
    """
    if len(rates) == 1:
        return rates[0]
    fitted = np.setdiff1d(split.usable, held)
    reached = []
    for rate in rates:
        model = fit(build, split, fitted, with_rate(fitting, rate), seed=0)
        reached.append(float(right(model, split, held).float().mean()))
    best = rates[max(range(len(rates)), key=lambda i: (reached[i], -i))]
    tried = ", ".join(f"{rate:g}: {100 * share:.1f}" for rate, share in zip(rates, reached, strict=True))
    say(f"  learning rate {best:g}, by top-1 on {len(held):,} held-out training images ({tried})")
    if len(rates) > 1 and best == max(rates):
        say("  it is the largest one tried: a larger one may be better (--learning-rates)")
    return best


def with_rate(fitting: Fitting, rate: float) -> Fitting:
    """The same with another peak learning rate."""
    return replace(fitting, optimization=replace(fitting.optimization, learning_rate=rate))
