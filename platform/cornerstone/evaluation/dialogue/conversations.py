"""Conversations in shards as a benchmark: each of their questions is asked alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cornerstone.data.conversations.turns import BadConversation, turns_of
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue.benchmark import Question


def conversations(files: Sequence[Location]) -> list[Question]:
    """A folder of conversations (`cornerstone data import llava`, `data scenes --conversations`), images in memory.

    Raises CornerstoneError for documents that are no conversations.
    """
    (folder,) = files
    data = DataSet.open(folder, "documents")
    reader, questions = Reader(data, ["key", "segments"], keep_groups=1), list[Question]()
    for group in range(len(data.manifest.row_groups)):
        for row in reader.group(group).to_pylist():
            try:
                turns, image = turns_of(row["segments"] or ())
            except BadConversation as reason:
                raise CornerstoneError(f"{folder} holds no conversations, as {row['key']} shows: {reason}.") from reason
            for place, (asked, said) in enumerate(pairwise(turns)):
                if asked.speaker == "human" and said.speaker == "gpt":
                    key = f"{row['key']}/{place}"
                    questions.append(Question(key, asked.text, image, said.text, asked.kind, row["key"]))
    if not questions:
        raise CornerstoneError(f"{folder} has no question with an answer.")
    return questions
