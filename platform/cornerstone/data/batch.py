"""What every batch has in common, and how Arrow columns become tensors. Torch is imported here, so not by decode actors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cornerstone.data.source import MASKED

ROW, IMAGE = "row", "image"
"""What can be bad: a whole row, or one image of a document."""
ROUND = 8
"""Texts are padded to the batch's longest, rounded up: few shapes, little padding."""


class Bad(NamedTuple):
    """Something that could not be used. A bad image of a document is not a bad row."""

    row: int
    what: str
    """`row`, or `image 2` (counted from 0 within the row)."""
    reason: str


class Batch(Protocol):
    """One worker's share of a step, or some rows of an evaluation set."""

    @property
    def step(self) -> int:
        """The step that it was made for."""
        ...

    @property
    def row(self) -> Tensor:
        """Row ids (B,); MASKED for a place that holds no row."""
        ...

    @property
    def valid(self) -> Tensor:
        """(B,) bool: False for masked places and for rows that cannot be used."""
        ...

    @property
    def bad(self) -> tuple[Bad, ...]:
        """What could not be used, and why."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        ...

    def split(self, parts: int) -> list[Self]:
        """Micro-batches of consecutive rows, as equal as possible. What could not be used stays with the whole batch."""
        ...

    def counted(self) -> dict[str, int]:
        """How many rows (`row`) and, of documents, images (`image`) there are, bad ones included, masked ones not."""
        ...

    def __len__(self) -> int:
        """Rows, masked ones included."""
        ...


@dataclass(frozen=True)
class RowBatch:
    """A `Batch` whose tensors have one row of the batch in each row; subclasses with other tensors override `rows`."""

    step: int
    row: Tensor
    valid: Tensor
    bad: tuple[Bad, ...]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: x.to(device, non_blocking=True) for name, x in tensors.items() if isinstance(x, Tensor)
        }
        return replace(self, **moved)

    def split(self, parts: int) -> list[Self]:
        """Micro-batches of consecutive rows, as equal as possible."""
        if parts <= 1:
            return [self]
        places = torch.arange(len(self)).tensor_split(min(parts, len(self)))
        return [self.rows(int(part[0]), int(part[-1]) + 1) for part in places]

    def rows(self, start: int, stop: int) -> Self:
        """The rows start..stop-1 as a batch of their own."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {name: x[start:stop] for name, x in tensors.items() if isinstance(x, Tensor)}
        return replace(self, bad=(), **cut)

    def counted(self) -> dict[str, int]:
        """Rows that are not masked."""
        return {ROW: int((self.row != MASKED).sum())}

    def __len__(self) -> int:
        return len(self.row)


def row_fields(table: pa.Table) -> tuple[Tensor, Tensor, tuple[Bad, ...]]:
    """`row`, `valid` and `bad` of a block."""
    rows, column = table["row"].to_pylist(), whole(table["bad"])
    bad: list[Bad] = []
    for place in np.flatnonzero(column.value_lengths().to_numpy(zero_copy_only=False)).tolist():
        bad += [Bad(rows[place], one["what"], one["reason"]) for one in column[place].as_py()]
    return tensor(table["row"]), tensor(table["valid"]), tuple(bad)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; a single chunk is not copied."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def tensor(column: pa.ChunkedArray | pa.Array) -> Tensor:
    """A copy of a column of numbers or booleans."""
    array = whole(column) if isinstance(column, pa.ChunkedArray) else column
    return torch.from_numpy(np.array(array.to_numpy(zero_copy_only=False)))


def matrix(column: pa.ChunkedArray) -> Tensor:
    """Lists of a fixed length as (rows, length); there may be no rows."""
    lists = whole(column)
    return tensor(lists.flatten()).view(len(lists), lists.type.list_size)


def shared(values: pa.Array) -> Tensor:
    """Numbers in place, without a copy: they are in Ray's object store, which is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values.to_numpy())


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
