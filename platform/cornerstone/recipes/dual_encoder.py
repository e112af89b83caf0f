"""What the configurations of contrastive image-text methods have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.towers import BertText, ImageTower


@dataclass(frozen=True)
class DualEncoderConfig(MethodConfig):
    """An image tower and a text tower whose features are compared. Methods add a loss, and may narrow the towers' types."""

    kind: ClassVar[str] = "dual-encoder"
    implementation: ClassVar[str] = "cornerstone.models.dual_encoder:DualEncoder"

    image: ImageTower = field(default_factory=ImageTower)
    text: BertText = field(default_factory=BertText)

    def check(self, data: DataConfig) -> None:
        """Stored features stand for an image tower that does not change."""
        super().check(data)
        if isinstance(data, PairData) and data.features == "stored" and not self.image.locked:
            raise CornerstoneError(
                "Stored features need a locked image tower, but the tower is trained: set --recipe.data.features online, "
                "or leave the tower locked (no --recipe.method.image.no-locked)."
            )
