"""The paper's numbers beside a transfer's, where the test set has the name of one of the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from cornerstone.sweeps.papers.lcl import TABLE_1, TABLE_2, TABLE_4
from cornerstone.transfer.result import Result


def printed_beside(result: Result) -> Sequence[str]:
    """A line for each of the paper's columns that the result measures too; none for other test sets."""
    lines, sources = list[str](), dict[str, None]()
    for table in (TABLE_1, TABLE_2, TABLE_4):
        for row in result.rows:
            column = table.column(f"eval/{result.data}/{row.name}")
            if column is None:
                continue
            values = ", ".join(f"{method} {table.value(method, column):.1f}" for method in table.rows)
            lines.append(f"{table.title}, {column} ({row.metric}): {values}")
            sources[table.source] = None
    said = (f"As printed ({source}): comparable on the same test set, tower and training alone." for source in sources)
    return [*lines, *said]
