"""Packed interleaved documents as a recipe's training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cornerstone.recipes.data import DataConfig, check_crop_scale


@dataclass(frozen=True)
class DocumentData(DataConfig):
    """Sequences that `cornerstone data pack` made of documents; `train` names the packing, or a mixture of packings.

    How documents become sequences (token budget, rule, images) was decided when they were packed and is part of the
    packing's content hash.
    """

    kind: ClassVar[str] = "documents"

    image_size: int = 224
    """Side of the square that an image becomes, in pixels."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that the random crop keeps; `1 1` for the fixed centre crop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop_scale(self.crop_scale)
