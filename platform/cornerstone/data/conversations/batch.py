"""The tensors of some conversations."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from cornerstone.data.batch import RowBatch, pad, row_fields, shared, tensor, whole


@dataclass(frozen=True)
class ConversationBatch(RowBatch):
    """B conversations, T tokens (padded with 0, trimmed to the longest)."""

    ids: Tensor
    """(B, T)."""
    length: Tensor
    target: Tensor
    """(B, T) bool: the tokens of answers, which are learnt."""
    image_place: Tensor
    """(B,): how many tokens stand before the image; −1: the conversation has none."""
    image: Tensor
    """(B, 3, S, S) uint8 pixels, or (B, P, V) a frozen tower's patches."""


def conversation_batch(step: int, table: pa.Table, image_shape: tuple[int, ...]) -> ConversationBatch:
    """A step's share from its rows."""
    row, valid, bad = row_fields(table)
    ids, length = pad(whole(table["ids"]))
    marked, _ = pad(whole(table["target"]).cast(pa.list_(pa.int32())))
    image = shared(whole(table["image"]).flatten()).view(-1, *image_shape)
    return ConversationBatch(
        step, row, valid, bad, ids, length, marked.to(torch.bool), tensor(table["image_place"]), image
    )
