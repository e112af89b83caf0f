"""The questions of an evaluation set of conversations as a source: each turn of a human is asked alone, about the same image.

A row is a conversation. If its image cannot be read, it is an invalid row with its reason, and so are all its questions. No
torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cornerstone.data.conversations.chat import Chat
from cornerstone.data.conversations.turns import BadConversation, turns_of
from cornerstone.data.pairs.image_input import ImageInput, image_field, row_bytes
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.source import BAD, MASKED, ROW_FIELDS, Ints, Part, Rows

if TYPE_CHECKING:
    from cornerstone.data.conversations.batch import QuestionBatch

_IDS = pa.list_(pa.int32())


@dataclass(frozen=True)
class Questions:
    """The questions of one folder of conversations."""

    folder: str
    rows: int
    images: ImageInput
    chat: Chat

    @property
    def parts(self) -> tuple[Part, ...]:
        """An evaluation is not planned: its rows are read in their order."""
        return ()

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of the image."""
        return row_bytes(self.images)

    def open(self) -> Rows:
        """Open the shards and the tokenizer."""
        return _Rows(self)

    def batch(self, step: int, table: pa.Table) -> QuestionBatch:
        """Some rows as tensors."""
        from cornerstone.data.conversations.batch import question_batch

        return question_batch(step, table, self.images.shape)


class _Rows:
    def __init__(self, source: Questions) -> None:
        self._source, self._images, self._format = source, source.images.open(), source.chat.open()
        self._reader = Reader(DataSet.open(source.folder, "documents"), ["segments"])
        own = (pa.field("prompts", pa.list_(_IDS)), pa.field("image_places", pa.list_(pa.int64())))
        self._schema = pa.schema([*ROW_FIELDS, image_field(source.images), *own])

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """Each row's prompts, and its image through the fixed crop."""
        images, places = self._source.images, np.flatnonzero(rows != MASKED)
        found = self._reader.take(rows[places])["segments"].to_pylist()
        prompts: list[list[tuple[list[int], int]]] = [[] for _ in rows]
        reasons, shown = [""] * len(rows), dict[int, bytes]()
        for place, segments in zip(places.tolist(), found, strict=True):
            try:
                prompts[place], image = self._asked(segments or ())
            except BadConversation as error:
                reasons[place] = str(error)
                continue
            if image is not None:
                shown[place] = image
        out = np.zeros((len(rows), *images.shape), dtype=images.number.to_pandas_dtype())
        seen = np.array(sorted(shown), dtype=np.int64)
        if len(seen):
            table = pa.table({"image": pa.array([shown[place] for place in seen.tolist()], pa.binary())})
            why = self._images.read(out, seen, table, rows[seen], epochs[seen], None)
            for place, reason in zip(seen.tolist(), why, strict=True):
                reasons[place] = reason
        valid = [row != MASKED and not reason for row, reason in zip(rows.tolist(), reasons, strict=True)]
        columns = [
            *(pa.array(rows), pa.array(epochs), pa.array(valid, pa.bool_())),
            pa.array([[{"what": "row", "reason": reason}] if reason else [] for reason in reasons], BAD),
            pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), int(np.prod(images.shape))),
            pa.array([[ids for ids, _ in row] for row in prompts], pa.list_(_IDS)),
            pa.array([[place for _, place in row] for row in prompts], pa.list_(pa.int64())),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _asked(self, segments: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[list[int], int]], bytes | None]:
        turns, image = turns_of(segments)
        human = [turn.text for turn in turns if turn.speaker == "human"]
        return [self._format.prompt(text, image is not None) for text in human], image
