"""FILIP's part of a recipe: its towers, the width of its patches and tokens, and its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions, needs_online_images
from cornerstone.recipes.towers import BertText, ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class FilipLoss:
    """The contrastive loss of the late interaction."""

    captions: Literal["raw", "long"] = "raw"
    """Which caption of a pair is its text."""
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start."""
    max_scale: float = 100.0


@dataclass(frozen=True)
class FilipConfig(DualEncoderConfig):
    """A dual encoder that compares patches with tokens."""

    kind: ClassVar[str] = "filip"
    implementation: ClassVar[str] = "cornerstone.models.filip:Filip"

    image: ImageTower = field(default_factory=from_scratch)
    text: BertText = field(default_factory=BertText)
    embedding: int = 256
    """Width in which patches and tokens are compared."""
    loss: FilipLoss = field(default_factory=FilipLoss)

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "FILIP")
        if self.embedding < 1:
            raise CornerstoneError(f"Width {self.embedding}: expected 1 or more (--recipe.method.embedding).")

    def chance_loss(self, batch_size: int) -> float:
        """ln of the batch."""
        return math.log(batch_size)

    def check(self, data: DataConfig) -> None:
        """Patches are projected, so that they cannot be stored as features; long captions must be drawn."""
        super().check(data)
        needs_online_images(data)
        if self.loss.captions == "long":
            needs_long_captions(data, "--recipe.method.loss.captions raw")
