"""The tensors of a step of pairs, and of some rows of an evaluation set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cornerstone.data.batch import RowBatch, pad, row_fields, shared, tensor, whole
from cornerstone.data.pairs.views import About, Box


@dataclass(frozen=True)
class PairBatch(RowBatch):
    """One worker's share of a step of pairs; what a dual encoder's forward reads.

    B rows; T tokens (padded with 0, trimmed to the longest). A caption that is not there has length 0. `image` is read-only.
    """

    epoch: Tensor
    raw_ids: Tensor
    raw_length: Tensor
    long_ids: Tensor
    long_length: Tensor
    image: Tensor
    """(B, 3, S, S) uint8 pixels, or (B, W) float32 stored features."""

    def captions(self, role: Literal["raw", "long"]) -> tuple[Tensor, Tensor]:
        """Token ids and lengths of the captions of a role."""
        return (self.raw_ids, self.raw_length) if role == "raw" else (self.long_ids, self.long_length)


@dataclass(frozen=True)
class LabelledBatch(RowBatch):
    """Images and their classes; what a classifier's forward reads. A row without a label is not valid."""

    label: Tensor
    """(B,) the class; -1 of a row that is not valid."""
    image: Tensor
    """(B, 3, S, S) uint8 pixels, or (B, P, V) a frozen tower's patches."""


@dataclass(frozen=True)
class EvaluationBatch(RowBatch):
    """Usable rows of one evaluation set with all texts that are judged; `text_row` (N) says whose text each one is."""

    label: Tensor
    group: tuple[str, ...]
    text_ids: Tensor
    text_length: Tensor
    text_row: Tensor
    text_place: Tensor
    """The place of a text among those of its row."""
    text_key: Tensor
    """Equal for identical texts."""
    image: Tensor
    """(B, 3, S, S) uint8 pixels, or (B, W) float32 stored features."""
    text_about: tuple[About, ...] = ()
    """What is known of each text (N)."""
    boxes: tuple[tuple[Box, ...], ...] = ()
    """Of each row what its first text mentions; empty unless the source was asked for it."""

    def rows(self, start: int, stop: int) -> Self:
        """The rows start..stop-1 with their texts."""
        per_row = ("row", "valid", "label", "image", "group", "boxes")
        of_row = {name: getattr(self, name)[start:stop] for name in per_row}
        mine = torch.isin(self.text_row, of_row["row"])
        names = ("text_ids", "text_length", "text_row", "text_place", "text_key")
        about = tuple(about for about, kept in zip(self.text_about, mine.tolist(), strict=True) if kept)
        return replace(self, bad=(), text_about=about, **of_row, **{name: getattr(self, name)[mine] for name in names})


def pair_batch(step: int, table: pa.Table, image_shape: tuple[int, ...]) -> PairBatch:
    """A step's share from its rows."""
    row, valid, bad = row_fields(table)
    raw_ids, raw_length = pad(whole(table["raw"]))
    long_ids, long_length = pad(whole(table["long"]))
    image = _image(table, image_shape)
    return PairBatch(step, row, valid, bad, tensor(table["epoch"]), raw_ids, raw_length, long_ids, long_length, image)


def labelled_batch(step: int, table: pa.Table, image_shape: tuple[int, ...]) -> LabelledBatch:
    """Some rows with their classes."""
    return LabelledBatch(step, *row_fields(table), tensor(table["label"]), _image(table, image_shape))


def evaluation_batch(step: int, table: pa.Table, image_shape: tuple[int, ...]) -> EvaluationBatch:
    """The usable rows of an evaluation block: masked places and bad rows are left out; bad ones are named."""
    _, _, bad = row_fields(table)
    table = table.filter(table["valid"])
    row, valid, _ = row_fields(table)
    texts = whole(table["texts"])
    ids, lengths = pad(texts.flatten())
    counts = texts.value_lengths().to_numpy(zero_copy_only=False)
    places = [np.arange(count) for count in counts]
    return EvaluationBatch(
        step=step,
        row=row,
        valid=valid,
        bad=bad,
        label=tensor(table["label"]),
        group=tuple(table["group"].to_pylist()),
        text_ids=ids,
        text_length=lengths,
        text_row=row[torch.from_numpy(np.repeat(np.arange(len(counts)), counts))],
        text_place=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *places])),
        text_key=torch.from_numpy(np.array(whole(table["keys"]).flatten().to_numpy())),
        image=_image(table, image_shape),
        text_about=tuple(
            About(one["part"], one["source"], tuple(one["sentences"]))
            for row in table["about"].to_pylist()
            for one in row
        ),
        boxes=tuple(tuple(Box(b[0], b[1], b[2], b[3], bool(b[4])) for b in row) for row in table["boxes"].to_pylist()),
    )


def _image(table: pa.Table, shape: tuple[int, ...]) -> Tensor:
    return shared(whole(table["image"]).flatten()).view(-1, *shape)
