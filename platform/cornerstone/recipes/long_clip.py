"""Long-CLIP's part of a recipe: its towers and its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions
from cornerstone.recipes.towers import BertText, ImageTower


@dataclass(frozen=True)
class LongClipLoss:
    """Long texts match the image's feature, raw ones its principal components (Zhang et al. 2024, section 3.3)."""

    raw_weight: float = 1.0
    long_weight: float = 1.0
    components: int = 32
    """Principal components that a raw caption is compared with."""
    pca_group: int = 128
    """Images of the global batch, in their order, whose components are computed together; 0: all of them. The authors'
    group is the batch of one GPU, 128 in their script; here it does not depend on the number of workers."""
    label_smoothing: float = 0.1
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start. The authors, who fine-tune CLIP, start at its 100."""
    max_scale: float = 100.0
    """Cap of the temperature's exp. The authors have none."""

    def __post_init__(self) -> None:
        weights = self.raw_weight, self.long_weight
        if min(weights) < 0 or sum(weights) == 0:
            raise CornerstoneError(
                f"Loss weights raw {weights[0]} and long {weights[1]}: expected none below 0 and one above "
                f"(--recipe.method.loss.raw-weight, --recipe.method.loss.long-weight)."
            )
        if self.components < 1:
            raise CornerstoneError(
                f"{self.components} principal components: expected 1 or more (--recipe.method.loss.components)."
            )
        if self.pca_group and self.pca_group <= self.components + 1:
            raise CornerstoneError(
                f"{self.components} principal components of groups of {self.pca_group} images are the images' whole "
                f"features: set --recipe.method.loss.pca-group to {self.components + 2} or more, or to 0 for the whole batch."
            )
        if not 0 <= self.label_smoothing < 1:
            raise CornerstoneError(
                f"Label smoothing {self.label_smoothing} is not in [0, 1) (--recipe.method.loss.label-smoothing)."
            )


@dataclass(frozen=True)
class LongClipConfig(DualEncoderConfig):
    """A dual encoder by primary component matching; with the locked tower it is LoTLIP's "LiT + Long-CLIP"."""

    kind: ClassVar[str] = "long-clip"
    implementation: ClassVar[str] = "cornerstone.models.long_clip:LongClip"

    image: ImageTower = field(default_factory=ImageTower)
    text: BertText = field(default_factory=BertText)
    loss: LongClipLoss = field(default_factory=LongClipLoss)

    def chance_loss(self, batch_size: int) -> float:
        """ln of the batch for either part, whatever the smoothing."""
        return math.log(batch_size) * (self.loss.raw_weight + self.loss.long_weight)

    def check(self, data: DataConfig) -> None:
        """Long captions need sub-captions to be drawn."""
        super().check(data)
        if self.loss.long_weight > 0:
            needs_long_captions(data, "--recipe.method.loss.long-weight 0")
