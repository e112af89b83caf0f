"""The Emu-like baseline's part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class EmuConfig(MethodConfig):
    """A language model that predicts the next word or the next visual embedding (Sun et al. 2023)."""

    kind: ClassVar[str] = "emu"
    implementation: ClassVar[str] = "cornerstone.models.emu:Emu"
    data_kinds: ClassVar[tuple[str, ...]] = ("documents",)

    image: ImageTower = field(default_factory=from_scratch)
    language: CausalText = field(default_factory=CausalText)
    tokens: int = 32
    """Causal embeddings of an image: pack with as many image tokens."""
    former_layers: int = 12
    """Layers of the causal former; with width and heads T5-base's decoder, as released."""
    former_width: int = 768
    former_heads: int = 12
    targets: Literal["stop-gradient", "live"] = "stop-gradient"
    """Whether the regression also moves the embeddings that it is to predict. `stop-gradient` is the released code's; with
    `live` ones and a tower from scratch equal embeddings for all images are a minimum."""
    regression_weight: float = 1.0
    """Weight of the regression beside the text's 1; 0 trains on the text alone."""

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "Emu")
        for name in ("tokens", "former_layers", "former_width", "former_heads"):
            if getattr(self, name) < 1:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of Emu: expected 1 or more (--recipe.method.{name.replace('_', '-')})."
                )
        if self.former_width % self.former_heads:
            raise CornerstoneError(
                f"The causal former's width {self.former_width} is not a multiple of {self.former_heads} heads "
                f"(--recipe.method.former-heads)."
            )
        if self.regression_weight < 0:
            raise CornerstoneError(
                f"Regression weight {self.regression_weight}: expected 0 or more (--recipe.method.regression-weight)."
            )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower."""
        return self.image

    @property
    def image_tokens(self) -> int:
        """Its causal embeddings."""
        return self.tokens
