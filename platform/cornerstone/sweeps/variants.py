"""Rows that need no trial: a trained point, evaluated otherwise. Its metrics are measured by the point's own trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks.task import limited_name
from cornerstone.sweeps.points import Point
from cornerstone.sweeps.state import TrialResult

T = TypeVar("T")


def in_rows(results: Sequence[TrialResult], rows: Mapping[str, str], points: Sequence[Point]) -> list[TrialResult]:
    """The results by their rows of the table: of a point with variants one for its own row, and one for each variant.

    `rows` gives the row of each trial's name. A variant of a trial that failed has failed too.
    """
    variants = {point.name: point for point in points if point.variants}
    found: list[TrialResult] = []
    for result in results:
        shown = replace(result, point=rows[result.point])
        point = variants.get(result.point)
        found += [shown] if point is None else _apart(shown, point)
    return found


def not_in_rows(sets: Sequence[EvaluationSet], points: Sequence[Point]) -> list[EvaluationSet]:
    """The sets without those whose metrics stand in the rows of variants."""
    limits = {variant.token_limit for point in points for variant in point.variants}
    return [
        one
        for one in sets
        if not (one.max_tokens and any(one.name.endswith(limited_name("", limit)) for limit in limits))
    ]


def _apart(result: TrialResult, point: Point) -> Iterator[TrialResult]:
    taken: set[str] = set()
    parts = []
    for variant in point.variants:
        names = {metric: _at(metric, variant.token_limit) for metric in result.metrics}
        own = {metric: name for metric, name in names.items() if name}
        taken |= own.keys()
        parts.append(
            replace(
                result,
                point=variant.name,
                metrics={name: result.metrics[metric] for metric, name in own.items()},
                queries={name: result.queries[metric] for metric, name in own.items() if metric in result.queries},
                chance={name: result.chance[metric] for metric, name in own.items() if metric in result.chance},
                unsent=0,
            )
        )
    yield replace(
        result,
        metrics=_without(result.metrics, taken),
        queries=_without(result.queries, taken),
        chance=_without(result.chance, taken),
    )
    yield from parts


def _at(metric: str, token_limit: int) -> str:
    """`eval/<set>/<metric>` of `eval/<set>@LIMIT/<metric>`; "" for a metric of another limit."""
    judged, _, name = metric.rpartition("/")
    suffix = limited_name("", token_limit)
    return f"{judged.removesuffix(suffix)}/{name}" if judged.endswith(suffix) else ""


def _without(values: Mapping[str, T], names: set[str]) -> dict[str, T]:
    return {name: value for name, value in values.items() if name not in names}
