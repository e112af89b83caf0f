"""The training loop. What is measured, shown or sent observes it; none of that is in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from cornerstone.data.batches import Batch, EvaluationBatch
from cornerstone.data.stream import Stream
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import Engine
from cornerstone.training.report import StepReport
from cornerstone.training.schedule import learning_rate

Metrics = dict[str, float]
Evaluate = Callable[[Iterable[EvaluationBatch]], Metrics]
Save = Callable[[int, Metrics], None]


class Observer(Protocol):
    """Sees what happens and changes nothing; it may stop the run by raising."""

    def after_step(self, step: int, batch: Batch, report: StepReport, clock: Clock) -> None:
        """A step is done; `report` is this worker's, its tensors still on the device."""
        ...

    def after_evaluation(self, step: int, metrics: Metrics, clock: Clock) -> None:
        """All sets have been judged."""
        ...


class Clock:
    """Seconds spent in each named phase; the names stand in PyTorch's profiler too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        with torch.profiler.record_function(name):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train(
    engine: Engine,
    stream: Stream,
    optimization: Optimization,
    *,
    start: int,
    seed: Callable[[int], int],
    checkpoint_every: int,
    evaluate: Evaluate,
    save: Save,
    observers: tuple[Observer, ...],
) -> Metrics:
    """Train from step `start` to the end; returns the last evaluation's metrics. `save` gets the number of steps done.

    `seed` gives PyTorch's seed for each step: so dropout, too, needs nothing but the step's number to go on.
    """
    clock, metrics = Clock(), Metrics()
    for step in range(start, optimization.steps):
        with clock.phase("data"):
            batch = stream.training(step).to(engine.device)
        with clock.phase("step"):
            torch.manual_seed(seed(step))
            rate = learning_rate(step, optimization)
            parts = engine.step(batch, rate)
            report = StepReport(parts, {}, torch.zeros((), device=engine.device), rate)
        for observer in observers:
            observer.after_step(step, batch, report, clock)

        evaluates = stream.layout.spec.evaluates_after(step)
        if evaluates:
            with clock.phase("evaluation"):
                metrics = evaluate(stream.evaluation(step))
            for observer in observers:
                observer.after_evaluation(step, metrics, clock)

        done = step + 1
        if evaluates or done == optimization.steps or (checkpoint_every and done % checkpoint_every == 0):
            with clock.phase("checkpoint"):
                save(done, metrics if evaluates else Metrics())
    return metrics
