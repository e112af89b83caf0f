"""The results of an evaluation: flat metrics, numbers of queries, and the table of per-query results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cornerstone.evaluation.interval import clustered_interval
from cornerstone.evaluation.ranking import Measured
from cornerstone.evaluation.tasks import EvaluationSet

LEFT_OUT = "rows_left_out"
"""The count that is reported beside a set's metrics if some of its rows could not be used."""
SCHEMA = pa.schema(
    [
        pa.field("set", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("query", pa.int64()),
        pa.field("cluster", pa.int64()),
        pa.field("correct", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Judged:
    """The result of one task on one set. Two tasks may share a set's name; their metrics have different names."""

    set: str
    task: str
    measured: Measured
    rows_left_out: int = 0
    """Rows whose image could not be used."""


def metrics_of(results: Iterable[Judged]) -> dict[str, float]:
    """`eval/<set>/<metric>` of all results, and the count `eval/<set>/rows_left_out` if rows were left out."""
    metrics: dict[str, float] = {}
    for judged in results:
        for name, value in judged.measured.metrics.items():
            metrics[metric_name(judged.set, name)] = value
        if judged.rows_left_out:
            metrics[metric_name(judged.set, LEFT_OUT)] = float(judged.rows_left_out)
    return metrics


def queries_of(results: Iterable[Judged]) -> dict[str, int]:
    """For each `eval/<set>/<metric>` that is a mean over queries the number of queries that it was measured on."""
    return {
        metric_name(judged.set, name): len(values)
        for judged in results
        for name, values in judged.measured.of_queries.items()
    }


def intervals_of(results: Iterable[Judged]) -> dict[str, tuple[float, float]]:
    """For each `eval/<set>/<metric>` that is a mean over queries its 95 % interval (`interval.clustered_interval`)."""
    return {
        metric_name(judged.set, name): clustered_interval(values.numpy(), judged.measured.cluster[name].numpy())
        for judged in results
        for name, values in judged.measured.of_queries.items()
    }


def details_of(
    sets: Iterable[EvaluationSet],
    metrics: Mapping[str, float],
    queries: Mapping[str, int],
    intervals: Mapping[str, Sequence[float]],
    chance: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """What belongs to every `eval/<set>/<metric>` that a task gave, as JSON values.

    The `value`; the number of `queries`, `low` and `high` of the 95 % interval, `chance`, where it has them; the `task`; and
    what the set is: `data` (the hash of its content), `split`, `prompts`, `texts` (`EvaluationSet.described`).
    """
    of = {metric_name(judged.name, metric.name): judged for judged in sets for metric in judged.task.metrics}
    details: dict[str, dict[str, Any]] = {}
    for name in filter(of.__contains__, metrics):
        measured: dict[str, Any] = {"value": metrics[name]}
        measured |= {"queries": queries[name]} if name in queries else {}
        measured |= dict(zip(("low", "high"), intervals.get(name, ()), strict=False))
        measured |= {"chance": chance[name]} if name in chance else {}
        details[name] = {**measured, "task": of[name].task.name, **of[name].described()}
    return details


def chance_of(results: Iterable[Judged]) -> dict[str, float]:
    """For each `eval/<set>/<metric>` that has one what a random choice would reach, in the metric's unit."""
    return {
        metric_name(judged.set, name): value for judged in results for name, value in judged.measured.chance.items()
    }


DETAILS = b"cornerstone.details"
"""The key of `details_of` in the metadata of a table of queries: JSON text."""


def per_query_table(results: Sequence[Judged], sets: Sequence[EvaluationSet] = ()) -> pa.Table:
    """One row for each query of each share: its index, the image or group it belongs to, and whether it was correct.

    Two models that were evaluated on the same rows have the same queries in the same order. A bootstrap must draw whole
    clusters. With the `sets`, `details_of` is in the table's metadata, and stays with it in a file.
    """
    tables = []
    for judged in results:
        for name, correct in judged.measured.correct.items():
            n = len(correct)
            columns = [
                pa.array([judged.set] * n, pa.string()),
                pa.array([name] * n, pa.string()),
                pa.array(np.arange(n, dtype=np.int64)),
                pa.array(judged.measured.cluster[name].numpy().astype(np.int64)),
                pa.array(correct.numpy()),
            ]
            tables.append(pa.Table.from_arrays(columns, schema=SCHEMA))
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    if not sets:
        return table
    details = details_of(sets, metrics_of(results), queries_of(results), intervals_of(results), chance_of(results))
    return table.replace_schema_metadata({DETAILS: json.dumps(details)})


def metric_name(set_name: str, metric: str) -> str:
    """The name of a set's metric in MLflow, in tables and in files."""
    return f"eval/{set_name}/{metric}"
