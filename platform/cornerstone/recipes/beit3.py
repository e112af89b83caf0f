"""The BEiT-3-like baseline's part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class Beit3Config(MethodConfig):
    """Masked patches and words are predicted by blocks whose attention images and text share (Wang et al. 2022)."""

    kind: ClassVar[str] = "beit3"
    implementation: ClassVar[str] = "cornerstone.models.beit3:Beit3"
    data_kinds: ClassVar[tuple[str, ...]] = ("documents",)

    image: ImageTower = field(default_factory=from_scratch)
    """The text is as wide and passes through as many blocks."""
    positions: int = 2048
    """Learned positions of words: the most tokens of a document in a sequence."""
    masked_patches: float = 0.4
    """Share of an image's patches, masked in blocks (paper, section 2.2)."""
    min_block: int = 16
    """Least area of a block, in patches."""
    masked_text: float = 0.5
    """Share of the text that is masked beside images."""
    masked_plain_text: float = 0.15
    """Share of the text that is masked without images."""
    apart: float = 0.5
    """Share of the documents of which each image and the text are read alone. With ½ there are as many images, texts and
    images with text, as in the original's batch."""
    image_weight: float = 1.0
    """Weight of the patches' regression beside the text's 1."""

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "BEiT-3")
        for name in ("masked_patches", "masked_text", "masked_plain_text"):
            if not 0 < getattr(self, name) < 1:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of BEiT-3: expected above 0 and below 1 "
                    f"(--recipe.method.{name.replace('_', '-')})."
                )
        if not 0 <= self.apart <= 1:
            raise CornerstoneError(f"apart {self.apart} of BEiT-3: expected 0 to 1 (--recipe.method.apart).")
        if self.image_weight < 0:
            raise CornerstoneError(
                f"image_weight {self.image_weight} of BEiT-3: expected 0 or more (--recipe.method.image-weight)."
            )
        for name in ("positions", "min_block"):
            if getattr(self, name) < 1:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of BEiT-3: expected 1 or more "
                    f"(--recipe.method.{name.replace('_', '-')})."
                )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower."""
        return self.image

    @property
    def image_tokens(self) -> int:
        """Its patches."""
        return self.image.patches_if_known
