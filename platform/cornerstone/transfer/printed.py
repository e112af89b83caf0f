"""The paper's numbers beside a transfer's, where the test set has the name of one of the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from cornerstone.evaluation.dialogue import BENCHMARKS
from cornerstone.sweeps.papers.lcl import TABLE_1, TABLE_2, TABLE_4
from cornerstone.transfer.result import Result


def printed_beside(result: Result) -> Sequence[str]:
    """A line for each of the paper's columns that the result measures too; none for other test sets."""
    lines, sources = list[str](), dict[str, None]()
    for table in (TABLE_1, TABLE_2, TABLE_4):
        for row in result.rows:
            column = table.column(_measured(result.data, row.name))
            if column is None:
                continue
            values = ", ".join(f"{method} {table.value(method, column):.1f}" for method in table.rows)
            lines.append(f"{table.title}, {column} ({row.metric}): {values}")
            sources[table.source] = None
    said = (f"As printed ({source}): comparable on the same test set, tower and training alone." for source in sources)
    return [*lines, *said]


def _measured(data: str, row: str) -> str:
    """`eval/<set>/<metric>` of a row; of a benchmark's own row, which has its name, its primary metric."""
    if row in BENCHMARKS:
        return f"eval/{row}/{BENCHMARKS[row].metrics[0]}"
    return f"eval/{data}/{row}"
