"""SigLIP's part of a recipe: its towers and its loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions
from cornerstone.recipes.towers import BertText, ImageTower


@dataclass(frozen=True)
class SiglipLoss:
    """The pairwise sigmoid loss's temperature and bias (Zhai et al. 2023, section 3.2)."""

    captions: Literal["raw", "long"] = "raw"
    """Which caption of a pair is its text."""
    initial_scale: float = 10.0
    initial_bias: float = -10.0
    max_scale: float = 100.0
    """Cap of the temperature's exp, as in open_clip's training."""


@dataclass(frozen=True)
class SiglipConfig(DualEncoderConfig):
    """SigLIP: a dual encoder whose every image-text pair is a binary classification of its own."""

    kind: ClassVar[str] = "siglip"
    implementation: ClassVar[str] = "cornerstone.models.siglip:Siglip"

    image: ImageTower = field(default_factory=ImageTower)
    text: BertText = field(default_factory=BertText)
    loss: SiglipLoss = field(default_factory=SiglipLoss)

    def check(self, data: DataConfig) -> None:
        """Long captions need sub-captions to be drawn."""
        super().check(data)
        if self.loss.captions == "long":
            needs_long_captions(data, "--recipe.method.loss.captions raw")
