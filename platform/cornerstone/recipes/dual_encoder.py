"""What the configurations of contrastive image-text methods have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.towers import BertText, ImageTower, TextTowerConfig


@dataclass(frozen=True)
class DualEncoderConfig(MethodConfig):
    """An image tower and a text tower whose features are compared. Methods add a loss, and may narrow the towers' types."""

    kind: ClassVar[str] = "dual-encoder"
    implementation: ClassVar[str] = "cornerstone.models.dual_encoder:DualEncoder"

    image: ImageTower = field(default_factory=ImageTower)
    text: TextTowerConfig = field(default_factory=BertText)

    @property
    def image_tower(self) -> ImageTower:
        """The image tower."""
        return self.image

    @property
    def text_tower(self) -> TextTowerConfig:
        """The text tower."""
        return self.text

    def check(self, data: DataConfig) -> None:
        """Stored features stand for an image tower that does not change."""
        super().check(data)
        if isinstance(data, PairData) and data.features == "stored" and not self.image.locked:
            raise CornerstoneError(
                "Stored features (--features) need a locked image tower, but this recipe trains its tower: leave out "
                "--features, or lock the tower with --recipe.method.image.locked."
            )


def needs_long_captions(data: DataConfig, otherwise: str) -> None:
    """Raise CornerstoneError if the data draw no long caption; `otherwise` names the option that does without one."""
    if isinstance(data, PairData) and data.sub_captions == 0:
        raise CornerstoneError(
            f"0 sub-captions leave no long caption to learn from: set {otherwise} as well, or "
            f"--recipe.data.sub-captions 1 or more."
        )


def needs_online_images(data: DataConfig) -> None:
    """Raise CornerstoneError for stored features, of a method that trains a pooling of its own."""
    if isinstance(data, PairData) and data.features == "stored":
        raise CornerstoneError(
            "Stored features are pooled, and this method trains its own pooling on the patches: set "
            "--recipe.data.features online."
        )
