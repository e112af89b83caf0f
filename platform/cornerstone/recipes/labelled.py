"""Labelled images as a recipe's training data: what a classifier is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import NOT_HASHED
from cornerstone.recipes.data import DataConfig, check_crop_scale


@dataclass(frozen=True)
class LabelledScenes:
    """Sizes of the built-in labelled images, made on first use if no --train is given: the salient object is the class."""

    images: int = 4_000
    test_images: int = 1_000
    seed: int = 0
    """The world's seed; the recipe's seed draws from it, and never changes it."""
    cells: int = 3
    """Cells per side of an image: 3 or 4."""

    def __post_init__(self) -> None:
        if min(self.images, self.test_images) < 2:
            raise CornerstoneError(
                f"{self.images} labelled images and {self.test_images} to test on: expected 2 or more of each "
                f"(--recipe.data.scenes.images, --recipe.data.scenes.test-images)."
            )


@dataclass(frozen=True)
class LabelledData(DataConfig):
    """Pairs whose label counts, not their captions. No tokenizer is read."""

    kind: ClassVar[str] = "labelled"

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of the area that the random crop keeps; `1 1` for the fixed centre crop."""
    scenes: LabelledScenes = field(default_factory=LabelledScenes, metadata=NOT_HASHED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop_scale(self.crop_scale)
