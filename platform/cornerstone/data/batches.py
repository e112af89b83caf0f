"""From Arrow blocks to the tensors of a step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

ROUND = 8  # texts are padded to the batch's longest, rounded up: few shapes, little padding


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step; what a method's forward reads.

    B rows; T tokens (padded with 0, trimmed to the longest); an absent text has length 0. Masked places and bad rows have
    `valid` False. Exactly one of `image` (B, 3, S, S) uint8 and `feature` (B, W) float32 is there.
    """

    step: int
    row: Tensor
    epoch: Tensor
    valid: Tensor
    raw_ids: Tensor
    raw_length: Tensor
    long_ids: Tensor
    long_length: Tensor
    image: Tensor | None = None
    feature: Tensor | None = None
    bad: tuple[tuple[int, str], ...] = ()
    """Row ids and reasons of the rows that could not be used."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Batch(**moved)  # type: ignore[arg-type]  # values of each field's own type

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class EvaluationBatch:
    """Rows of one evaluation set with all texts that are judged; `text_row` (N) says whose text each one is."""

    set: int
    row: Tensor
    label: Tensor
    group: tuple[str, ...]
    text_ids: Tensor
    text_length: Tensor
    text_row: Tensor
    text_place: Tensor
    """The place of a text among those of its row."""
    text_key: Tensor
    """Equal for identical texts."""
    image: Tensor | None = None
    feature: Tensor | None = None
    bad: tuple[tuple[int, str], ...] = ()


def pad(lists: pa.Array) -> tuple[Tensor, Tensor]:
    """Token ids (N, T) int64, padded with 0 to the longest rounded up, and lengths (N,), from a list<int32> array."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    longest = int(lengths.max(initial=0))
    width = -(-max(longest, 1) // ROUND) * ROUND
    ids = np.zeros((len(lengths), width), dtype=np.int64)
    ids[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def pad_lists(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """`pad` for Python lists."""
    return pad(pa.array(ids, pa.list_(pa.int32())))


def training_batch(table: pa.Table) -> Batch:
    """A step's share from the rows of one block."""
    texts = table["texts"].combine_chunks()
    flat = texts.flatten()
    (raw_ids, raw_length), (long_ids, long_length) = pad(flat[0::2]), pad(flat[1::2])
    return Batch(
        step=table["step"][0].as_py(),
        row=_tensor(table["row"]),
        epoch=_tensor(table["epoch"]),
        valid=_tensor(table["valid"]),
        raw_ids=raw_ids,
        raw_length=raw_length,
        long_ids=long_ids,
        long_length=long_length,
        bad=_bad(table),
        **_picture(table),
    )


def evaluation_batch(table: pa.Table) -> EvaluationBatch:
    """The usable rows of an evaluation block (masked places and bad rows are left out; bad ones are named)."""
    bad = _bad(table)
    index = table["set"][0].as_py()
    table = table.filter(table["valid"])
    texts = table["texts"].combine_chunks()
    ids, lengths = pad(texts.flatten())
    counts = texts.value_lengths().to_numpy(zero_copy_only=False)
    places = [np.arange(count) for count in counts]
    return EvaluationBatch(
        set=index,
        row=_tensor(table["row"]),
        label=_tensor(table["label"]),
        group=tuple(table["group"].to_pylist()),
        text_ids=ids,
        text_length=lengths,
        text_row=_tensor(table["row"])[torch.from_numpy(np.repeat(np.arange(len(counts)), counts))],
        text_key=torch.from_numpy(np.array(table["keys"].combine_chunks().flatten().to_numpy())),
        text_place=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *places])),
        bad=bad,
        **_picture(table),
    )


def _bad(table: pa.Table) -> tuple[tuple[int, str], ...]:
    rows, reasons = table["row"].to_pylist(), table["reason"].to_pylist()
    return tuple((row, reason) for row, reason in zip(rows, reasons, strict=True) if reason)


def _tensor(column: pa.ChunkedArray) -> Tensor:
    return torch.from_numpy(np.array(column.to_numpy()))


def _picture(table: pa.Table) -> dict[str, Any]:
    name = "image" if "image" in table.column_names else "feature"
    column = table[name].combine_chunks()
    flat = torch.from_numpy(np.array(column.flatten().to_numpy(zero_copy_only=False)))
    width = table.schema.field(name).type.list_size
    if name == "feature":
        return {"feature": flat.view(-1, width)}
    side = round((width / 3) ** 0.5)
    return {"image": flat.view(-1, 3, side, side)}
