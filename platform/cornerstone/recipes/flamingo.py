"""The Flamingo-like baseline's part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class FlamingoConfig(MethodConfig):
    """A language model that looks at images through gated cross-attention, trained by likelihood (Alayrac et al. 2022)."""

    kind: ClassVar[str] = "flamingo"
    implementation: ClassVar[str] = "cornerstone.models.flamingo:Flamingo"
    data_kinds: ClassVar[tuple[str, ...]] = ("documents",)

    image: ImageTower = field(default_factory=from_scratch)
    language: CausalText = field(default_factory=CausalText)
    latents: int = 64
    """Latents that an image's patches become in the resampler (paper, section 2.2)."""
    resampler_layers: int = 6
    heads: int = 8
    """Heads of the resampler and of the cross-attention."""
    head_width: int = 64
    every: int = 1
    """There is a cross-attention before every so many layers of the language model, the first one included."""

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "Flamingo")
        for name in ("latents", "resampler_layers", "heads", "head_width", "every"):
            if getattr(self, name) < 1:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of Flamingo: expected 1 or more "
                    f"(--recipe.method.{name.replace('_', '-')})."
                )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower."""
        return self.image
