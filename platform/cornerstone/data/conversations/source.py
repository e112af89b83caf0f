"""Conversations as a source: of a folder of conversations, or of pairs, whose captions are answers to no question.

A row that cannot be used becomes an invalid row with its reason, as in other sources. A conversation without an image is a
row like others; its image is black, and its `image_place` says that there is none. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cornerstone.data import draws
from cornerstone.data.conversations.chat import NO_IMAGE, Chat, Encoded
from cornerstone.data.conversations.turns import BadConversation, Turn, turns_of
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.image_input import ImageInput, image_field, row_bytes
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.source import BAD, MASKED, ROW_FIELDS, Ints, Part, Rows

if TYPE_CHECKING:
    from cornerstone.data.conversations.batch import ConversationBatch

Row = dict[str, Any]
Told = tuple[tuple[Turn, ...], bytes | None]
"""Turns, and the encoded image."""


@dataclass(frozen=True)
class ConversationSource:
    """The conversations of one folder. Seeded: random crops, and which of several captions of a pair is learnt."""

    folder: str
    kind: Kind
    """`documents` or `pairs`."""
    parts: tuple[Part, ...]
    images: ImageInput
    chat: Chat
    seed: int = 0

    @staticmethod
    def of(data: DataSet, images: ImageInput, chat: Chat, seed: int = 0) -> ConversationSource:
        """All rows of a folder."""
        parts = (Part(tuple(shard.row_groups for shard in data.manifest.shards)),)
        return ConversationSource(data.location.uri, data.manifest.kind, parts, images, chat, seed)

    @property
    def rows(self) -> int:
        """Conversations."""
        return sum(part.rows for part in self.parts)

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of the image; texts are small beside it."""
        return row_bytes(self.images)

    def open(self) -> Rows:
        """Open the shards and the tokenizer."""
        return _Rows(self)

    def batch(self, step: int, table: pa.Table) -> ConversationBatch:
        """The tensors of a step."""
        from cornerstone.data.conversations.batch import conversation_batch

        return conversation_batch(step, table, self.images.shape)


class _Rows:
    def __init__(self, source: ConversationSource) -> None:
        self._source, self._images, self._format = source, source.images.open(), source.chat.open()
        self._column, self._told = READERS[source.kind]
        data = DataSet.open(source.folder, source.kind)
        self._reader = Reader(data, [self._column, "image"] if source.kind == "pairs" else [self._column])
        own = (pa.field("ids", pa.list_(pa.int32())), pa.field("target", pa.list_(pa.bool_())))
        place = pa.field("image_place", pa.int64())
        self._schema = pa.schema([*ROW_FIELDS, image_field(source.images), *own, place])

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """Each row's ids, which of them are learnt, and its image."""
        source, places = self._source, np.flatnonzero(rows != MASKED)
        found = self._reader.take(rows[places]).to_pylist()
        encoded, reasons = [Encoded([], [], NO_IMAGE) for _ in rows], [""] * len(rows)
        images: dict[int, bytes] = {}
        for place, row in zip(places.tolist(), found, strict=True):
            try:
                turns, image = self._told(row, source.seed, int(epochs[place]), int(rows[place]))
                encoded[place] = self._format.encode(turns)
                if encoded[place].image_place != NO_IMAGE:
                    images[place] = image or b""
            except BadConversation as error:
                reasons[place] = str(error)
        image = self._shown(images, rows, epochs, reasons)
        valid = [row != MASKED and not reason for row, reason in zip(rows.tolist(), reasons, strict=True)]
        columns = [
            *(pa.array(rows), pa.array(epochs), pa.array(valid, pa.bool_())),
            pa.array([[{"what": "row", "reason": reason}] if reason else [] for reason in reasons], BAD),
            image,
            pa.array([one.ids for one in encoded], pa.list_(pa.int32())),
            pa.array([one.target for one in encoded], pa.list_(pa.bool_())),
            pa.array([one.image_place for one in encoded], pa.int64()),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _shown(self, images: dict[int, bytes], rows: Ints, epochs: Ints, reasons: list[str]) -> pa.Array:
        """The column `image` from the encoded ones by their places; reasons are set for those that cannot be read."""
        source = self._source
        out = np.zeros((len(rows), *source.images.shape), dtype=source.images.number.to_pandas_dtype())
        places = np.array(sorted(images), dtype=np.int64)
        if len(places):
            table = pa.table({"image": pa.array([images[place] for place in places.tolist()], pa.binary())})
            found = self._images.read(out, places, table, rows[places], epochs[places], source.seed)
            for place, reason in zip(places.tolist(), found, strict=True):
                reasons[place] = reason
        return pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), int(np.prod(source.images.shape)))


def _of_document(row: Row, seed: int, epoch: int, number: int) -> Told:
    return turns_of(row["segments"] or ())


def _of_pair(row: Row, seed: int, epoch: int, number: int) -> Told:
    """A caption, a raw one if there is one, as an answer; of several one is drawn in each epoch."""
    true = [caption for caption in row["captions"] or () if caption["role"] != "foil" and caption["text"]]
    told = [caption["text"] for caption in true if caption["role"] == "raw"] or [caption["text"] for caption in true]
    if not told:
        raise BadConversation("no text")
    drawn = int(draws.hashed(seed, "told caption", epoch, number)[0] % np.uint64(len(told)))
    return (Turn("human", "", image=True), Turn("gpt", told[drawn])), row["image"]


READERS: dict[Kind, tuple[str, Callable[[Row, int, int, int], Told]]] = {
    "documents": ("segments", _of_document),
    "pairs": ("captions", _of_pair),
}
"""Of each kind of data that holds conversations: the column that is read, and how a row becomes one."""
