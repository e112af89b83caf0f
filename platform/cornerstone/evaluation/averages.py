"""The average over the sets that are searched with long texts, as in LoTLIP's Table 4: R@1, both ways, each set alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cornerstone.evaluation.judged import metric_name
from cornerstone.evaluation.tasks import EvaluationSet
from cornerstone.evaluation.tasks.retrieval import Retrieval, is_long

LONG_TEXTS = metric_name("long texts", "r1")
"""The average's name in tables and files."""
LABEL = "long texts Avg."


class Average(NamedTuple):
    """A mean of metrics. Its interval is the mean of their intervals' ends: as if all erred together, so rather too wide."""

    value: float
    interval: tuple[float, float] | None


def long_text_retrieval(sets: Iterable[EvaluationSet]) -> list[str]:
    """R@1 in both directions on every set that is searched with long texts."""
    return [
        metric_name(judged.name, metric.name)
        for judged in sets
        if isinstance(judged.task, Retrieval) and is_long(judged.view)
        for metric in judged.task.shown
    ]


def averaged(names: Sequence[str]) -> bool:
    """Whether these metrics make an average: they are of two sets or more."""
    return len({name.split("/")[1] for name in names}) > 1


def average(
    names: Sequence[str], metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]
) -> Average | None:
    """The average of some metrics; None if one of them was not measured."""
    if not names or not all(name in metrics for name in names):
        return None
    value = sum(metrics[name] for name in names) / len(names)
    if not all(name in intervals for name in names):
        return Average(value, None)
    low, high = (sum(intervals[name][end] for name in names) / len(names) for end in (0, 1))
    return Average(value, (low, high))
