"""Rows of an evaluation set whose image is missing or cannot be read: counted, and too many of them refused.

Numbers on what is left are not those of the set, and the images that are missing are seldom a random sample of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cornerstone.evaluation.judged import Judged
from cornerstone.evaluation.tasks import EvaluationSet

ONE_IMAGE = ("pairs", "conversations")
"""Kinds of data whose rows have one image each: of the others single images are left out, not rows."""
USUAL_LIMIT = 0.01


def import_losses(sets: Iterable[EvaluationSet], limit: float) -> list[str]:
    """A sentence on each set whose import left out more than this share of its rows."""
    return [
        f"{_count(one.lost, one.rows + one.lost, one)} were left out when it was imported, more than {limit:.1%} (see "
        f"{one.folder}/quarantine.jsonl): import it again with all of its images"
        for one in sets
        if one.task.reads in ONE_IMAGE and one.lost > limit * (one.rows + one.lost)
    ]


def unusable_rows(results: Sequence[Judged], sets: Sequence[EvaluationSet], limit: float) -> list[str]:
    """A sentence on each set of which more than this share of the rows could not be used; `results` are in its order."""
    return [
        f"{_count(result.rows_left_out, one.rows, one)} have no image that can be read, more than {limit:.1%}: `cornerstone "
        f"data verify {one.folder}` names them; repair the set"
        for result, one in zip(results, sets, strict=True)
        if one.task.reads in ONE_IMAGE and result.rows_left_out > limit * one.rows
    ]


def _count(lost: int, rows: int, judged: EvaluationSet) -> str:
    return f"{lost:,} of the {rows:,} rows of the evaluation set {judged.name}"
