"""Image-text pairs as a recipe's training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import NOT_HASHED
from cornerstone.recipes.data import DataConfig, check_crop_scale


@dataclass(frozen=True)
class Scenes:
    """Sizes of the built-in data set, made on first use if no --train is given."""

    pairs: int = 16_000
    evaluation_images: int = 1_000
    """Images in each evaluation set."""
    seed: int = 0
    """The world's seed; the recipe's seed draws from it, and never changes it."""
    tower_images: int = 12_000
    """Images of the image tower's own pretraining."""
    cells: int = 3
    """Cells per side of an image: 3 or 4."""
    min_objects: int = 4
    max_objects: int = 7
    rewrites: bool = False
    """Four rewrites of each raw caption, for `rewrites` of the data."""
    short: bool = False
    """Five short captions of each image, without errors, as those of the evaluation set `short`, in place of a raw one, which
    may name nothing, and three long ones."""

    def __post_init__(self) -> None:
        if self.short and self.rewrites:
            raise CornerstoneError(
                "Short captions have no rewrites: set --recipe.data.scenes.no-short, or --recipe.data.scenes.no-rewrites."
            )

    @property
    def world(self) -> dict[str, int]:
        """What differs from the default world, by the names that `ScenesSpec` and `TowerTraining` use."""
        usual = {"cells": 3, "min_objects": 4, "max_objects": 7}
        return {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}


@dataclass(frozen=True)
class PairData(DataConfig):
    """Pairs of an image and its captions, and what is drawn from each."""

    kind: ClassVar[str] = "pairs"

    captioners: tuple[str, ...] = ()
    """Sources of long captions to draw from, uniformly for each sample and epoch; empty for all."""
    sub_captions: int = 3
    """Consecutive sentences drawn from a long caption; 0 trains on raw captions alone."""
    rewrites: bool = False
    """Draw the raw caption or one of its rewrites (captions of the role `rewrite`), each as likely, for each sample and
    epoch, as LaCLIP does."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that the random crop keeps; `1 1` for the fixed centre crop."""
    features: Literal["online", "stored"] = "online"
    """`stored` computes a locked tower's features once for all trials: there is no random crop then."""
    feature_stores: tuple[str, ...] = field(default=(), metadata=NOT_HASHED)
    """Folders made by `cornerstone features`, used for the data sets they fit; what is missing is computed."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    feature_precision: Literal["fp32", "bf16"] = "fp32"
    """In which the locked tower computes stored features; bf16 is several times faster on a GPU."""
    scenes: Scenes = field(default_factory=Scenes, metadata=NOT_HASHED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sub_captions < 0:
            raise CornerstoneError(
                f"{self.sub_captions} sub-captions: expected 0 or more (--recipe.data.sub-captions)."
            )
        check_crop_scale(self.crop_scale)
        if self.features == "stored" and self.crop_scale != (1.0, 1.0):
            low, high = self.crop_scale
            raise CornerstoneError(
                f"Stored features see one fixed crop, but the crop scale is {low} to {high}: "
                f"set --recipe.data.crop-scale 1 1, or --recipe.data.features online."
            )

    def without_effect(self) -> frozenset[str]:
        """Type and precision of stored features, if none are stored."""
        return frozenset() if self.features == "stored" else frozenset({"feature_dtype", "feature_precision"})
