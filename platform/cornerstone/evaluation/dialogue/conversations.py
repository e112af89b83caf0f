"""Conversations in shards as a benchmark: each turn of a human is a question, which is asked alone.

Its truth is what is answered behind it, or what the row's `extra` says of each question in turn, {"questions": [{key, truth,
kind, group}]}, as `cornerstone data questions` writes released benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cornerstone.data.conversations.turns import BadConversation, turns_of
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue.benchmark import Question

SAID = "questions"
"""Where a row's `extra` has what is known of its questions."""


def conversations(files: Sequence[Location]) -> list[Question]:
    """A folder of conversations (`cornerstone data import llava`, `data scenes --conversations`), images in memory.

    Raises CornerstoneError for documents that are no conversations.
    """
    (folder,) = files
    return [question for _, _, question in numbered(DataSet.open(folder, "documents"))]


def numbered(data: DataSet) -> Iterator[tuple[int, int, Question]]:
    """Each question with a truth, with the numbers of its row and of the question in it."""
    reader, row, found = Reader(data, ["key", "segments", "extra"], keep_groups=1), -1, False
    for group in range(len(data.manifest.row_groups)):
        for record in reader.group(group).to_pylist():
            row += 1
            try:
                turns, image = turns_of(record["segments"] or ())
            except BadConversation as reason:
                raise CornerstoneError(
                    f"{data.location} holds no conversations, as {record['key']} shows: {reason}."
                ) from reason
            said, number = json.loads(record["extra"] or "{}").get(SAID), -1
            for place, turn in enumerate(turns):
                if turn.speaker != "human":
                    continue
                number += 1
                answer = turns[place + 1] if place + 1 < len(turns) else None
                asked = Question(f"{record['key']}/{place}", turn.text, image, None, turn.kind, record["key"])
                if said is not None:
                    found = True
                    yield row, number, _told(asked, said[number])
                elif answer is not None and answer.speaker == "gpt":
                    found = True
                    yield row, number, replace(asked, truth=answer.text)
    if not found:
        raise CornerstoneError(f"{data.location} has no question with an answer.")


def as_json(question: Question) -> dict[str, Any]:
    """What is known of a question besides its prompt and image."""
    return {"key": question.key, "truth": question.truth, "kind": question.kind, "group": question.cluster}


def _told(question: Question, said: dict[str, Any]) -> Question:
    """With what `as_json` says. A truth of several values is a tuple, as the benchmarks make it."""
    truth = said["truth"]
    return replace(question, **{**said, "truth": tuple(truth) if isinstance(truth, list) else truth})
