"""The tensors of a step of packed documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cornerstone.data.batch import IMAGE, RowBatch, matrix, row_fields, shared, tensor, whole


@dataclass(frozen=True)
class SequenceBatch(RowBatch):
    """One worker's share of a step of packed documents (LCL).

    B sequences of T tokens, padded at their ends; N images in all of them, in order. Masked places have `valid` False and
    are padding alone.
    """

    epoch: Tensor
    token_ids: Tensor
    """(B, T) int64; the id of the image token stands where a patch goes."""
    document: Tensor
    """(B, T) int64, inside which attention stays; -1: padding."""
    target: Tensor
    """(B, T) bool: whether the token is predicted, from the one before it."""
    image: Tensor
    """(N, 3, S, S) uint8; black if there is no picture."""
    image_row: Tensor
    """(N,): the place in the batch of the sequence in which each image stands."""
    image_at: Tensor
    """(N,): the place of its <BoI> in the sequence."""
    text_before: Tensor
    """(N,) bool: whether its document has a text token before it there."""
    image_valid: Tensor
    """(N,) bool: whether there is a picture."""

    def rows(self, start: int, stop: int) -> Self:
        """The sequences start..stop-1 with their images."""
        of_row = ("row", "valid", "epoch", "token_ids", "document", "target")
        mine = (self.image_row >= start) & (self.image_row < stop)
        of_image = ("image", "image_row", "image_at", "text_before", "image_valid")
        cut = {name: getattr(self, name)[start:stop] for name in of_row}
        cut |= {name: getattr(self, name)[mine] for name in of_image}
        cut["image_row"] = cut["image_row"] - start
        return replace(self, bad=(), **cut)

    def counted(self) -> dict[str, int]:
        """Sequences and images."""
        return {**super().counted(), IMAGE: len(self.image_row)}


def sequence_batch(step: int, table: pa.Table) -> SequenceBatch:
    """A step's share from its rows."""
    row, valid, bad = row_fields(table)
    images = whole(table["images"])
    counts = images.value_lengths().to_numpy(zero_copy_only=False)
    of_images = {name: whole(table[name]).flatten() for name in ("image_at", "text_before", "image_valid")}
    side = round((images.type.value_type.list_size / 3) ** 0.5)
    return SequenceBatch(
        step=step,
        row=row,
        valid=valid,
        bad=bad,
        epoch=tensor(table["epoch"]),
        token_ids=matrix(table["token_ids"]).long(),
        document=matrix(table["document"]).long(),
        target=matrix(table["target"]),
        image=shared(images.flatten().flatten()).view(-1, 3, side, side),
        image_row=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        image_at=tensor(of_images["image_at"]).long(),
        text_before=tensor(of_images["text_before"]),
        image_valid=tensor(of_images["image_valid"]),
    )
