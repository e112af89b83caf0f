"""Training a head, with or without its tower: the engine, schedule and order of rows of training, in this process.

Q queries, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cornerstone.data import draws
from cornerstone.data.plan import Plan
from cornerstone.data.source import Ints
from cornerstone.errors import CornerstoneError
from cornerstone.models.classifier import Classifier
from cornerstone.models.method import Method
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import PlainEngine, Precision
from cornerstone.training.schedule import learning_rate
from cornerstone.transfer.images import Split

ROWS_AT_ONCE = 256
Build = Callable[[int], Classifier]
"""A fresh classifier by its seed, on its device."""
ReadBatch = Callable[[int, Ints, Ints], Any]
"""The batch of a step from its rows and their epochs."""
M = TypeVar("M", bound=Method[Any, Any])


@dataclass(frozen=True)
class Fitting:
    """How heads are trained."""

    optimization: Optimization
    plan: Plan
    precision: Precision = "fp32"
    micro_batch: int = 0


def fit(build: Build, split: Split, rows: Ints, fitting: Fitting, seed: int) -> Classifier:
    """A classifier trained on some rows of a split. Each seed has its own initialisation, order and crops."""
    images, used = split.training(seed), np.zeros(len(split.label_N), dtype=bool)
    used[rows] = True
    return trained(build(seed), images.batch, used, fitting, seed)


def trained(module: M, read: ReadBatch, used: npt.NDArray[np.bool_], fitting: Fitting, seed: int) -> M:
    """The module after all steps, on the rows of `used` alone: others are left out of the plan's batches.

    Raises CornerstoneError if the loss is not finite.
    """
    optimization, plan = fitting.optimization, replace(fitting.plan, seed=seed)
    engine = PlainEngine(module.train(), optimization, fitting.precision, fitting.micro_batch)
    with torch.random.fork_rng(devices=[engine.device] if engine.device.type == "cuda" else []):
        for step in range(optimization.steps):
            planned, epochs = plan.batch(step)
            kept = used[planned]
            if not kept.any():
                continue
            batch = read(step, planned[kept], epochs[kept]).to(engine.device)
            torch.manual_seed(int(draws.hashed(seed, "step", 0, step)[0]))
            report = engine.step(batch, learning_rate(step, optimization))
            if report.skipped > optimization.skipped_step_limit or not torch.isfinite(report.loss):
                raise CornerstoneError(
                    f"The loss is {float(report.loss):.3g} at step {step}, with learning rate {optimization.learning_rate:g} "
                    f"({report.skipped} steps were skipped): give smaller ones, --learning-rates."
                )
    return module.eval()


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


def best_rate(
    rates: Sequence[float], reached: Callable[[float], float], say: Callable[[str], None], what: str
) -> float:
    """The learning rate that reaches most, in percent of `what`; the first of equally good ones. One rate is not tried."""
    if len(rates) == 1:
        return rates[0]
    values = [reached(rate) for rate in rates]
    best = rates[max(range(len(rates)), key=lambda i: (values[i], -i))]
    tried = ", ".join(f"{rate:g}: {value:.1f}" for rate, value in zip(rates, values, strict=True))
    say(f"  learning rate {best:g}, by {what} ({tried})")
    if best == max(rates):
        say("  it is the largest one tried: a larger one may be better (--learning-rates)")
    return best


def held_out(usable: Ints, share: float) -> Ints:
    """Rows that are kept from training while a learning rate is chosen: the same for every tower."""
    order = np.argsort(draws.hashed(0, "held out", usable), kind="stable")
    held: Ints = np.sort(usable[order[: max(1, round(share * len(usable)))]])
    if len(held) >= len(usable):
        raise CornerstoneError(f"{len(usable)} training images are too few to hold one out: add images.")
    return held


def with_rate(fitting: Fitting, rate: float) -> Fitting:
    """The same with another peak learning rate."""
    return replace(fitting, optimization=replace(fitting.optimization, learning_rate=rate))
