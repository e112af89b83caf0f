"""LCL's part of a recipe: its tower, its language model and its loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class LclLoss:
    """Weights and scale of λ L_con + L_gen (LCL, equation 8)."""

    contrastive_weight: float = 0.1
    """λ. 0 trains on the generation loss alone."""
    generation_weight: float = 1.0
    """0 trains on the contrastive loss alone."""
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start."""
    max_scale: float = 100.0
    unpreceded: Literal["exclude", "authors"] = "exclude"
    """Images without a text token before them in their document have no context to be compared with. `exclude` leaves them
    out of L_con; `authors` leaves out only those at the very start of their document, as the released code does."""

    def __post_init__(self) -> None:
        weights = self.contrastive_weight, self.generation_weight
        if min(weights) < 0 or sum(weights) == 0:
            raise CornerstoneError(
                f"Loss weights contrastive {weights[0]} and generation {weights[1]}: expected none below 0 and one above "
                f"(--recipe.method.loss.contrastive-weight, --recipe.method.loss.generation-weight)."
            )


@dataclass(frozen=True)
class LclConfig(MethodConfig):
    """Latent compression learning on interleaved documents (LCL)."""

    kind: ClassVar[str] = "lcl"
    implementation: ClassVar[str] = "cornerstone.models.lcl:Lcl"
    data_kinds: ClassVar[tuple[str, ...]] = ("documents",)

    image: ImageTower = field(default_factory=from_scratch)
    language: CausalText = field(default_factory=CausalText)
    embedding: int = 768
    """Width of the space in which an image is compared with what its document said before it."""
    pooling_heads: int = 12
    """Heads of the attention pooling."""
    shared_values: bool = False
    """The pooled feature and the language model's image tokens share the pooling's value path and have no projection of their
    own (the authors' code). False gives each a linear projection (the paper, section 3.3)."""
    loss: LclLoss = field(default_factory=LclLoss)

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "LCL")
        if self.shared_values and self.embedding != self.language.width:
            raise CornerstoneError(
                f"With shared values the image tokens are as wide as the pooled feature, but the language model has width "
                f"{self.language.width} and the embedding {self.embedding}: set --recipe.method.embedding "
                f"{self.language.width}."
            )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower."""
        return self.image

    @property
    def image_tokens(self) -> int:
        """Its patches."""
        return self.image.patches_if_known

    def chance_loss(self, batch_size: int) -> float | None:
        """None: it depends on the vocabulary and on the number of images."""
        return None
