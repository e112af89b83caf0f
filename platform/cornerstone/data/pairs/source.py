"""Image-text pairs as sources: drawn captions and random crops to train on, every judged text to evaluate on.

A row that cannot be used becomes an invalid row with its reason: it keeps its place and is counted by the worker. No torch
here: decode actors import this module.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data.mixture import MixtureReader
from cornerstone.data.pairs.drawing import Sentences, TextDraws, Viewed, viewed
from cornerstone.data.pairs.image_input import ImageInput, image_field, row_bytes
from cornerstone.data.pairs.views import Box, Boxes, View
from cornerstone.data.shards import DataSet
from cornerstone.data.source import BAD, MASKED, ROW_FIELDS, Ints, Part, Rows
from cornerstone.data.texts import SEPARATOR, TextInput

if TYPE_CHECKING:
    from cornerstone.data.pairs.batch import EvaluationBatch, PairBatch

_IDS = pa.list_(pa.int32())
_ABOUT = pa.list_(
    pa.struct(
        [pa.field("part", pa.int32()), pa.field("source", pa.string()), pa.field("sentences", pa.list_(pa.int64()))]
    )
)
"""`views.About` of every text of a row."""
_BOXES = pa.list_(pa.list_(pa.float32()))
"""`views.Box` of what a row's first text mentions."""


@dataclass(frozen=True)
class PairSource:
    """Training pairs of one folder, or of several whose rows are counted one after another."""

    folders: tuple[str, ...]
    parts: tuple[Part, ...]
    images: ImageInput
    texts: TextInput
    draws: TextDraws

    @property
    def rows(self) -> int:
        """Rows of all folders."""
        return sum(part.rows for part in self.parts)

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of the image; texts are small beside it."""
        return row_bytes(self.images)

    def open(self) -> Rows:
        """Open the shards, the tokenizer and, if features are stored, their stores."""
        return _TrainingRows(self)

    def batch(self, step: int, table: pa.Table) -> PairBatch:
        """The tensors of a step."""
        from cornerstone.data.pairs.batch import pair_batch

        return pair_batch(step, table, self.images.shape)


@dataclass(frozen=True)
class PairEvaluation:
    """An evaluation set of pairs, with the texts that its task judges and a transform, token limit and store of its own."""

    folder: str
    rows: int
    images: ImageInput
    texts: TextInput
    view: View
    boxes: Boxes | None = None
    """Gives the boxes of what a row's first text mentions, for a task that asks where a model looks."""

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
        return _EvaluationRows(self)

    def batch(self, step: int, table: pa.Table) -> EvaluationBatch:
        """The usable rows as tensors."""
        from cornerstone.data.pairs.batch import evaluation_batch

        return evaluation_batch(step, table, self.images.shape)


class _Pairs:
    """What training and evaluation rows have in common: reading, images, and the first columns of a block."""

    def __init__(self, folders: tuple[str, ...], columns: tuple[str, ...], images: ImageInput) -> None:
        self.images, self._reader = images, images.open()
        sets = [DataSet.open(folder, "pairs") for folder in folders]
        self._rows = MixtureReader(sets, ["captions", *columns, *images.columns])

    def read(self, rows: Ints) -> tuple[pa.Table, Ints]:
        """The rows that are not masked, and their places."""
        places = np.flatnonzero(rows != MASKED)
        return self._rows.take(rows[places]), places

    def columns(
        self, table: pa.Table, places: Ints, rows: Ints, epochs: Ints, seed: int | None
    ) -> tuple[pa.Array, npt.NDArray[np.bool_], list[str]]:
        """The column `image`, which rows have one, and the reasons of those that do not."""
        out = np.zeros((len(rows), *self.images.shape), dtype=self.images.number.to_pandas_dtype())
        why = self._reader.read(out, places, table, rows[places], epochs[places], seed)
        valid, reasons = np.zeros(len(rows), dtype=bool), [""] * len(rows)
        for place, reason in zip(places.tolist(), why, strict=True):
            valid[place], reasons[place] = not reason, reason
        flat = pa.array(out.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(self.images.shape))), valid, reasons


class _TrainingRows:
    def __init__(self, source: PairSource) -> None:
        self._pairs = _Pairs(source.folders, (), source.images)
        self._format, self._draws = source.texts.open(), source.draws
        own = (image_field(source.images), pa.field("raw", _IDS), pa.field("long", _IDS))
        self._schema = pa.schema([*ROW_FIELDS, *own])

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """Each row with its drawn raw caption and k sub-captions of a drawn long caption, as token ids."""
        table, places = self._pairs.read(rows)
        image, valid, reasons = self._pairs.columns(table, places, rows, epochs, self._draws.seed)
        captions = [of_row or [] for of_row in table["captions"].to_pylist()]
        drawn = self._draws.of(captions, epochs[places], rows[places])
        ids = iter(self._format.encode([sentences for both in drawn for sentences in both]))
        raw: list[list[int]] = [[] for _ in rows]
        long: list[list[int]] = [[] for _ in rows]
        for place in places.tolist():
            raw[place], long[place] = next(ids), next(ids)
            if valid[place] and not (raw[place] or long[place]):
                valid[place], reasons[place] = False, "no text"
        columns = [pa.array(rows), pa.array(epochs), pa.array(valid), _bad(reasons), image]
        return pa.Table.from_arrays([*columns, pa.array(raw, _IDS), pa.array(long, _IDS)], schema=self._schema)


class _EvaluationRows:
    def __init__(self, source: PairEvaluation) -> None:
        columns = ("label", "group", *(("extra", "width") if source.boxes else ()))
        self._pairs = _Pairs((source.folder,), columns, source.images)
        self._format, self._view, self._boxes = source.texts.open(), source.view, source.boxes
        self._schema = pa.schema(
            [
                *ROW_FIELDS,
                image_field(source.images),
                pa.field("label", pa.int32()),
                pa.field("group", pa.string()),
                pa.field("texts", pa.list_(_IDS)),
                pa.field("keys", pa.list_(pa.int64())),  # equal for texts that are the same before the token limit
                pa.field("about", _ABOUT),
                pa.field("boxes", _BOXES),
            ]
        )

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """Each row with every text that is judged and the fixed crop."""
        table, places = self._pairs.read(rows)
        image, valid, reasons = self._pairs.columns(table, places, rows, epochs, None)
        texts: list[list[Viewed]] = [[] for _ in rows]
        for i, place in enumerate(places.tolist()):
            texts[place] = viewed(table["captions"][i].as_py() or [], self._view, int(rows[place]))
        ids = iter(self._format.encode([text.sentences for row in texts for text in row]))
        labels, groups = np.full(len(rows), -1, dtype=np.int32), np.full(len(rows), "", dtype=object)
        labels[places] = table["label"].fill_null(-1).to_numpy()
        groups[places] = table["group"].fill_null("").to_numpy()
        columns = [
            *(pa.array(rows), pa.array(epochs), pa.array(valid), _bad(reasons), image),
            *(pa.array(labels), pa.array(groups, pa.string())),
            pa.array([[next(ids) for _ in row] for row in texts], pa.list_(_IDS)),
            pa.array([[_key(text.sentences) for text in row] for row in texts], pa.list_(pa.int64())),
            pa.array([[_about(text) for text in row] for row in texts], _ABOUT),
            pa.array(self._boxes_of(table, places, texts), _BOXES),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _boxes_of(self, table: pa.Table, places: Ints, texts: list[list[Viewed]]) -> list[list[Box]]:
        boxes: list[list[Box]] = [[] for _ in texts]
        for i, place in enumerate(places.tolist()) if self._boxes else ():
            if self._boxes and (extra := table["extra"][i].as_py()) and texts[place]:
                text, width = SEPARATOR.join(texts[place][0].sentences), table["width"][i].as_py()
                boxes[place] = self._boxes(extra, text, width)
        return boxes


def _bad(reasons: list[str]) -> pa.Array:
    return pa.array([[{"what": "row", "reason": reason}] if reason else [] for reason in reasons], BAD)


def _key(sentences: Sentences) -> int:
    """The same number for the same text, in every process."""
    text = "\x1f".join(sentences).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _about(text: Viewed) -> dict[str, object]:
    return {"part": text.part, "source": text.source, "sentences": [_key([one]) for one in text.sentences]}
