"""Long-CLIP as its authors train it: both towers of a released CLIP, the text's positions stretched from 77 to 248."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.recipes.long_clip import LongClipConfig, LongClipLoss
from cornerstone.recipes.towers import ClipText, ImageTower


def released_image() -> ImageTower:
    """CLIP's ViT-B/16 with its projection, trained too."""
    return ImageTower("vit_base_patch16_clip_quickgelu_224.openai", locked=False, projection=512)


def released_text() -> ClipText:
    """The text half of the same CLIP."""
    return ClipText("openai/clip-vit-base-patch16", token_limit=248, activation="quick_gelu")


@dataclass(frozen=True)
class LongClipTunedConfig(LongClipConfig):
    """Primary component matching on the towers of a released CLIP, whose scale is at its 100 already."""

    kind: ClassVar[str] = "long-clip-tuned"
    implementation: ClassVar[str] = LongClipConfig.implementation

    image: ImageTower = field(default_factory=released_image)
    text: ClipText = field(default_factory=released_text)  # type: ignore[assignment]  # another tower, the same method
    loss: LongClipLoss = field(default_factory=lambda: LongClipLoss(initial_scale=100.0))
