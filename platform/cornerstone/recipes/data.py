"""What every kind of training data has in common in a recipe; each kind is a class of its own beside this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import NOT_HASHED


@dataclass(frozen=True)
class DataConfig:
    """The base of `PairData` and `DocumentData`: which rows are trained on."""

    kind: ClassVar[str]
    """The short name that is hashed: `pairs`, `documents`."""

    train: str = field(default="", metadata=NOT_HASHED)
    """A folder or URI of shards; empty for the built-in scenes."""
    tokenizer: str = field(default="", metadata=NOT_HASHED)
    """A Hugging Face tokenizer by name or folder; empty for the one kept beside the shards."""
    limit_rows: int | None = None
    """Train on the first rows only (shards are written in random order)."""
    bad_row_limit: float = field(default=0.01, metadata=NOT_HASHED)
    """The run stops when more than this share of the rows seen could not be used."""

    def __post_init__(self) -> None:
        if self.limit_rows is not None and self.limit_rows < 1:
            raise CornerstoneError(f"A limit of {self.limit_rows} rows leaves nothing to train on (--limit-rows).")

    def without_effect(self) -> frozenset[str]:
        """Fields that change nothing, given the others: they do not enter the hash."""
        return frozenset()


def check_crop_scale(crop_scale: tuple[float, float]) -> None:
    """Raise CornerstoneError unless it is two shares of an image's area."""
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise CornerstoneError(f"Crop scale {crop_scale}: expected 0 < low <= high <= 1 (--recipe.data.crop-scale).")
