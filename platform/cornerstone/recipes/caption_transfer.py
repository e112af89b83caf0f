"""Transfer to captioning: a trained image tower, an MLP, and a causal language model that reads its patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.method import MethodConfig


@dataclass(frozen=True)
class CaptionTransferConfig(MethodConfig):
    """LCL's transfer to captioning (appendix), but for the language model, which begins at random weights here."""

    kind: ClassVar[str] = "caption-transfer"
    implementation: ClassVar[str] = "cornerstone.models.caption_transfer:CaptionTransfer"

    language: CausalText = field(default_factory=CausalText)
    frozen: bool = True
    """Leave the tower as it is; False trains it too. The language model is trained either way."""
    tower_lr_factor: float = 1.0
    """Factor on the learning rate of a trained tower. The appendix gives one rate for this task."""

    def __post_init__(self) -> None:
        if self.tower_lr_factor <= 0:
            raise CornerstoneError(
                f"A factor of {self.tower_lr_factor} on the tower's learning rate: expected above 0 (--tower-lr-factor)."
            )
