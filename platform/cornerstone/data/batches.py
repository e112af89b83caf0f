"""From Arrow blocks to the tensors of a step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cornerstone.data.batch import ROW, Bad

AnyBatch = TypeVar("AnyBatch", "Batch", "SequenceBatch")
ROUND = 8  # texts are padded to the batch's longest, rounded up: few shapes, little padding


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step; what a method's forward reads.

    B rows; T tokens (padded with 0, trimmed to the longest); an absent text has length 0. Masked places and bad rows have
    `valid` False. Exactly one of `image` (B, 3, S, S) uint8 and `feature` (B, W) float32 is there, and read-only.
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
    bad: tuple[Bad, ...] = ()
    """Row ids and reasons of the rows that could not be used."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return _moved(self, device)

    def counted(self) -> dict[str, int]:
        """Rows that were read; masked places are not counted."""
        return {ROW: int(self.valid.sum()) + len(self.bad)}

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class SequenceBatch:
    """One worker's share of a step of packed documents (LCL).

    B sequences of T tokens, padded at their ends; N images in all of them, in order. Masked places have `valid` False and are
    padding alone.
    """

    step: int
    row: Tensor
    epoch: Tensor
    valid: Tensor
    token_ids: Tensor
    """(B, T) int64; the id of the image token stands where a patch goes."""
    document: Tensor
    """(B, T) int64, inside which attention stays; -1: padding."""
    target: Tensor
    """(B, T) bool: whether the token is predicted, from the one before it."""
    image: Tensor
    """(N, 3, S, S) uint8; black where there is none."""
    image_row: Tensor
    """(N): the sequence in which each image stands."""
    image_at: Tensor
    """(N): the place of its <BoI>."""
    text_before: Tensor
    """(N) bool: whether its document has a text token before it there."""
    image_valid: Tensor
    """(N) bool: whether there is a picture."""
    bad: tuple[Bad, ...] = ()
    """Rows and reasons of the images that could not be used."""

    def to(self, device: torch.device | str) -> SequenceBatch:
        """The same batch on a device."""
        return _moved(self, device)

    def counted(self) -> dict[str, int]:
        """Rows and images that were read; masked places are not counted."""
        return {ROW: int(self.valid.sum()), "image": len(self.image_valid)}

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
    bad: tuple[Bad, ...] = ()


def _moved(batch: AnyBatch, device: torch.device | str) -> AnyBatch:
    values: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved: dict[str, Any] = {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in values.items()
    }
    return replace(batch, **moved)


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
    texts = _whole(table["texts"])
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


def sequence_batch(table: pa.Table) -> SequenceBatch:
    """A step's share from the rows of one block of packed sequences."""
    images = _whole(table["images"])
    counts = images.value_lengths().to_numpy(zero_copy_only=False)
    of_images = {name: _whole(table[name]).flatten() for name in ("image_at", "text_before", "image_reason")}
    reasons, image_row = of_images["image_reason"].to_pylist(), np.repeat(np.arange(len(counts)), counts)
    rows = table["row"].to_pylist()
    side = round((images.type.value_type.list_size / 3) ** 0.5)
    return SequenceBatch(
        step=table["step"][0].as_py(),
        row=_tensor(table["row"]),
        epoch=_tensor(table["epoch"]),
        valid=_tensor(table["valid"]),
        token_ids=_matrix(table["token_ids"]).long(),
        document=_matrix(table["document"]).long(),
        target=_matrix(table["target"]),
        image=_shared(images.flatten().flatten()).view(-1, 3, side, side),
        image_row=torch.from_numpy(image_row),
        image_at=_tensor(of_images["image_at"]).long(),
        text_before=_tensor(of_images["text_before"]),
        image_valid=torch.tensor([not reason for reason in reasons], dtype=torch.bool),
        bad=tuple(
            Bad(rows[place], f"image at token {at}", reason)
            for place, at, reason in zip(image_row.tolist(), of_images["image_at"].to_pylist(), reasons, strict=True)
            if reason
        ),
    )


def evaluation_batch(table: pa.Table) -> EvaluationBatch:
    """The usable rows of an evaluation block (masked places and bad rows are left out; bad ones are named)."""
    bad = _bad(table)
    index = table["set"][0].as_py()
    table = table.filter(table["valid"])
    texts = _whole(table["texts"])
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
        text_key=torch.from_numpy(np.array(_whole(table["keys"]).flatten().to_numpy())),
        text_place=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *places])),
        bad=bad,
        **_picture(table),
    )


def _bad(table: pa.Table) -> tuple[Bad, ...]:
    rows, reasons = table["row"].to_pylist(), table["reason"].to_pylist()
    return tuple(Bad(row, ROW, reason) for row, reason in zip(rows, reasons, strict=True) if reason)


def _tensor(column: pa.ChunkedArray | pa.Array) -> Tensor:
    whole = _whole(column) if isinstance(column, pa.ChunkedArray) else column
    return torch.from_numpy(np.array(whole.to_numpy(zero_copy_only=False)))


def _matrix(column: pa.ChunkedArray) -> Tensor:
    """Lists of equal length as (rows, length)."""
    return _tensor(_whole(column).flatten()).view(len(column), -1)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; a single chunk is not copied."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _shared(values: pa.Array) -> Tensor:
    """The numbers where they lie, in the object store: not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values.to_numpy())


def _picture(table: pa.Table) -> dict[str, Any]:
    name = "image" if "image" in table.column_names else "feature"
    column = _whole(table[name])
    flat = _shared(column.flatten())
    width = table.schema.field(name).type.list_size
    if name == "feature":
        return {"feature": flat.view(-1, width)}
    side = round((width / 3) ** 0.5)
    return {"image": flat.view(-1, 3, side, side)}
