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


@dataclass(frozen=True)
class QuestionBatch(RowBatch):
    """B conversations of an evaluation set with their Q questions; see `questions.py`."""

    image: Tensor
    """(B, 3, S, S) uint8 pixels."""
    place: Tensor
    """(Q,): of each question the place of its conversation in the batch."""
    number: Tensor
    """(Q,): which question of its conversation it is."""
    ids: Tensor
    """(Q, T): all up to where the answer begins."""
    length: Tensor
    image_place: Tensor
    """(Q,): how many tokens stand before the image; −1: it has none."""


def question_batch(step: int, table: pa.Table, image_shape: tuple[int, ...]) -> QuestionBatch:
    """Some rows of an evaluation set."""
    row, valid, bad = row_fields(table)
    prompts = whole(table["prompts"])
    counts = torch.from_numpy(prompts.value_lengths().to_numpy(zero_copy_only=False).astype("int64"))
    ids, length = pad(prompts.flatten())
    place = torch.arange(len(counts)).repeat_interleave(counts)
    number = torch.cat([torch.arange(int(count)) for count in counts]) if len(counts) else counts
    image = shared(whole(table["image"]).flatten()).view(-1, *image_shape)
    image_place = shared(whole(table["image_places"]).flatten())
    return QuestionBatch(step, row, valid, bad, image, place, number, ids, length, image_place)


def conversation_batch(step: int, table: pa.Table, image_shape: tuple[int, ...]) -> ConversationBatch:
    """A step's share from its rows."""
    row, valid, bad = row_fields(table)
    ids, length = pad(whole(table["ids"]))
    marked, _ = pad(whole(table["target"]).cast(pa.list_(pa.int32())))
    image = shared(whole(table["image"]).flatten()).view(-1, *image_shape)
    return ConversationBatch(
        step, row, valid, bad, ids, length, marked.to(torch.bool), tensor(table["image_place"]), image
    )
