"""The results of an evaluation: flat metrics, numbers of queries, and the table of per-query results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cornerstone.evaluation.ranking import Measured

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
    """For each `eval/<set>/<metric>` that is a share of queries the number of queries that it was measured on."""
    return {
        metric_name(judged.set, name): len(correct)
        for judged in results
        for name, correct in judged.measured.correct.items()
    }


def chance_of(results: Iterable[Judged]) -> dict[str, float]:
    """For each `eval/<set>/<metric>` that is a share of queries what a random choice would reach, in percent."""
    return {
        metric_name(judged.set, name): value for judged in results for name, value in judged.measured.chance.items()
    }


def per_query_table(results: Iterable[Judged]) -> pa.Table:
    """One row for each query of each metric: its index, the image or group it belongs to, and whether it was correct.

    Two models that were evaluated on the same rows have the same queries in the same order. A bootstrap must draw whole
    clusters.
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
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def metric_name(set_name: str, metric: str) -> str:
    """The name of a set's metric in MLflow, in tables and in files."""
    return f"eval/{set_name}/{metric}"
