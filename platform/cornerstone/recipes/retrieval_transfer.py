"""Transfer to retrieval: a trained image tower, a new attention pooling and a new text tower, trained contrastively."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions, needs_online_images
from cornerstone.recipes.towers import BertText, ImageTower


@dataclass(frozen=True)
class RetrievalLoss:
    """The softmax contrastive loss between images and one caption of each."""

    captions: Literal["raw", "long"] = "raw"
    """Which caption of a pair is its text."""
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start."""
    max_scale: float = 100.0


@dataclass(frozen=True)
class RetrievalTransferConfig(DualEncoderConfig):
    """LCL's transfer to retrieval (appendix): LiT with an attention pooling that is trained, the tower frozen or not."""

    kind: ClassVar[str] = "retrieval-transfer"
    implementation: ClassVar[str] = "cornerstone.models.retrieval_transfer:RetrievalTransfer"

    image: ImageTower = field(default_factory=ImageTower)
    text: BertText = field(default_factory=BertText)
    pooling_heads: int = 0
    """Heads of the attention pooling; 0: one for every 64 places of the tower's width."""
    tower_lr_factor: float = 0.01
    """Factor on the learning rate of a trained tower: 1e-3 for new and 1e-5 for pretrained weights are the paper's."""
    loss: RetrievalLoss = field(default_factory=RetrievalLoss)

    def __post_init__(self) -> None:
        if self.tower_lr_factor <= 0:
            raise CornerstoneError(
                f"A factor of {self.tower_lr_factor} on the tower's learning rate: expected above 0 (--tower-lr-factor)."
            )

    def check(self, data: DataConfig) -> None:
        """The pooling is trained, so it cannot be stored with the features."""
        super().check(data)
        needs_online_images(data)
        if self.loss.captions == "long":
            needs_long_captions(data, "--recipe.method.loss.captions raw")
