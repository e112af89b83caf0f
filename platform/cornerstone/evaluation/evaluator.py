"""Evaluation of a model: each set's task collects from the batches of a stream, and then judges what all workers collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cornerstone.data.batch import Batch
from cornerstone.data.texts import TextFormat
from cornerstone.evaluation.judged import Judged
from cornerstone.evaluation.tasks import EvaluationSet

Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Model:
    """A module with what is needed to judge it."""

    model: Any
    texts: TextFormat | None
    device: torch.device


@torch.no_grad()
def evaluate(
    model: Any,
    batches: Iterable[tuple[int, Batch]],
    sets: Sequence[EvaluationSet],
    texts: TextFormat | None,
    device: torch.device,
    gather: Gather = lambda value: [value],
) -> tuple[Judged, ...]:
    """The result of every set, in their order.

    `batches` come with the place of their set; `texts` is the model's text format, for class prompts. `gather` collects the
    workers' values on every worker (all-gather); every worker returns the same results.
    """
    judges = [Model(model, judged.limited(texts) if texts is not None else None, device) for judged in sets]
    collected = [judged.task.collected() for judged in sets]
    for place, batch in batches:
        collected[place].add(batch, judges[place])
    results = []
    for judged, judge, parts in zip(sets, judges, zip(*gather(collected), strict=True), strict=True):
        measured = judged.task.conclude(judged, parts, judge)
        results.append(Judged(judged.name, judged.task.name, measured, sum(part.left_out for part in parts)))
    return tuple(results)
