"""CoCa's part of a recipe, and CLIP's, which is CoCa without captioning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions, needs_online_images
from cornerstone.recipes.towers import ClipText, ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class CocaLoss:
    """The contrastive loss and the caption loss (Yu et al. 2022, equation 4)."""

    captions: Literal["raw", "long"] = "raw"
    """Which caption of a pair is its text."""
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    """0 leaves out the decoder and the pooler that feeds it: what remains is CLIP with attention pooling."""
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start."""
    max_scale: float = 100.0

    def __post_init__(self) -> None:
        weights = self.contrastive_weight, self.caption_weight
        if min(weights) < 0 or sum(weights) == 0:
            raise CornerstoneError(
                f"Loss weights contrastive {weights[0]} and caption {weights[1]}: expected none below 0 and one above "
                f"(--recipe.method.loss.contrastive-weight, --recipe.method.loss.caption-weight)."
            )


def unimodal_half() -> ClipText:
    """The decoder's first half at the size of CoCa-Base."""
    return ClipText(width=768, layers=12, heads=12, pooling="trailing")


@dataclass(frozen=True)
class CocaConfig(DualEncoderConfig):
    """A dual encoder whose text tower is the first half of a decoder that also writes the image's caption."""

    kind: ClassVar[str] = "coca"
    implementation: ClassVar[str] = "cornerstone.models.coca:Coca"

    image: ImageTower = field(default_factory=from_scratch)
    text: ClipText = field(default_factory=unimodal_half)
    """The unimodal half; the multimodal half has its width and heads."""
    decoder_layers: int = 12
    """Layers of the multimodal half, each a self-attention block and a cross-attention block."""
    poolers: Literal["parallel", "shared"] = "parallel"
    """`parallel`: a pooler of one query for the contrastive loss beside that of the decoder (the paper); `shared`: one pooler
    whose query 0 is the contrastive feature and whose others feed the decoder (open_clip's released weights)."""
    queries: int = 256
    """Of the decoder's pooler, or of the shared one."""
    pooling_heads: int = 0
    """Heads of the poolers; 0: one for every 64 places of the text tower's width."""
    loss: CocaLoss = field(default_factory=CocaLoss)

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "CoCa")
        for name, least in (("decoder_layers", 1), ("queries", 2 if self.poolers == "shared" else 1)):
            if getattr(self, name) < least:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of CoCa: expected {least} or more "
                    f"(--recipe.method.{name.replace('_', '-')})."
                )
        if self.pooling_heads < 0 or (self.pooling_heads and self.text.width % self.pooling_heads):
            raise CornerstoneError(
                f"{self.pooling_heads} heads of CoCa's poolers: expected a divisor of the text tower's width "
                f"{self.text.width}, or 0 (--recipe.method.pooling-heads)."
            )

    def chance_loss(self, batch_size: int) -> float | None:
        """ln of the batch, if there is no caption loss."""
        return None if self.loss.caption_weight else self.loss.contrastive_weight * math.log(batch_size)

    def check(self, data: DataConfig) -> None:
        """The poolers are trained, so that they cannot be stored with the features; long captions must be drawn."""
        super().check(data)
        needs_online_images(data)
        if self.loss.captions == "long":
            needs_long_captions(data, "--recipe.method.loss.captions raw")
