"""Labelled images as a source: each row is an image and its class. No torch here: decode actors may import this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cornerstone.data.pairs.image_input import ImageInput, image_field, row_bytes
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.source import BAD, MASKED, ROW_FIELDS, Ints, Part, Rows
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.data.pairs.batch import LabelledBatch

NO_LABEL = "no label"


def class_places(train: DataSet, test: DataSet) -> tuple[int, ...]:
    """The training set's label of each class of the test set.

    Raises CornerstoneError if one of them has no classes, or the test set has a class that the training set lacks.
    """
    for option, data in zip(("--train", "--eval"), (train, test), strict=True):
        if not data.manifest.classes:
            raise CornerstoneError(
                f"{data.location} has no classes ({option}): transfer to a classification needs labels. Import it with "
                f"--label FIELD, or from a folder of classes (cornerstone data import imagefolder)."
            )
    ours, theirs = train.manifest.classes, test.manifest.classes
    if missing := [one for one in theirs if one not in ours]:
        raise CornerstoneError(
            f"{len(missing)} classes of {test.location} are not in {train.location}, {missing[0]!r} among them: its images "
            f"can never be right. Test on a set whose classes are among {', '.join(ours[:5])}"
            f"{', ..' if len(ours) > 5 else ''}."
        )
    return tuple(ours.index(one) for one in theirs)


@dataclass(frozen=True)
class LabelledImages:
    """The rows of one folder. A row without a label keeps its place and is not valid."""

    folder: str
    shards: tuple[tuple[int, ...], ...]
    images: ImageInput
    to_class: tuple[int, ...]
    """The class of each of the folder's labels: a test set may count its classes otherwise than the training set."""
    seed: int | None = None
    """Of the random crops; None for the fixed crop."""

    @staticmethod
    def of(data: DataSet, images: ImageInput, to_class: tuple[int, ...], seed: int | None = None) -> LabelledImages:
        """The source of an opened folder."""
        shards = tuple(shard.row_groups for shard in data.manifest.shards)
        return LabelledImages(data.location.uri, shards, images, to_class, seed)

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part."""
        return (Part(self.shards),)

    @property
    def rows(self) -> int:
        """Rows of the folder."""
        return sum(map(sum, self.shards))

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of an image."""
        return row_bytes(self.images)

    def open(self) -> Rows:
        """Open the shards."""
        return _LabelledRows(self)

    def batch(self, step: int, table: pa.Table) -> LabelledBatch:
        """The rows as tensors."""
        from cornerstone.data.pairs.batch import labelled_batch

        return labelled_batch(step, table, self.images.shape)


class _LabelledRows:
    def __init__(self, source: LabelledImages) -> None:
        self._source, self._images = source, source.images.open()
        self._rows = Reader(DataSet.open(source.folder, "pairs"), ["label", *source.images.columns])
        self._schema = pa.schema([*ROW_FIELDS, image_field(source.images), pa.field("label", pa.int64())])

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """Each row's image and class."""
        source, places = self._source, np.flatnonzero(rows != MASKED)
        table = self._rows.take(rows[places])
        pixels = np.zeros((len(rows), *source.images.shape), dtype=source.images.number.to_pandas_dtype())
        why = self._images.read(pixels, places, table, rows[places], epochs[places], source.seed)
        labels = np.full(len(rows), -1, dtype=np.int64)
        labels[places] = table["label"].fill_null(-1).to_numpy()
        reasons = np.full(len(rows), "", dtype=object)
        reasons[places] = [
            reason or (NO_LABEL if labels[place] < 0 else "") for place, reason in zip(places, why, strict=True)
        ]
        valid = (rows != MASKED) & (reasons == "")
        labels = np.where(valid, np.array(source.to_class)[labels], -1)
        bad = pa.array([[{"what": "row", "reason": reason}] if reason else [] for reason in reasons], BAD)
        image = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), int(np.prod(source.images.shape)))
        columns = [pa.array(rows), pa.array(epochs), pa.array(valid), bad, image, pa.array(labels)]
        return pa.Table.from_arrays(columns, schema=self._schema)
