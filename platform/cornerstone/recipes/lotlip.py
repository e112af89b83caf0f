"""LoTLIP's own part of a recipe: its towers and its loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.towers import ImageTower, TextTower


@dataclass(frozen=True)
class LotlipLoss:
    """Weights and scale of L_short + L_long (paper, equations 1 and 4 to 6)."""

    reduction: Literal["sum", "mean"] = "sum"
    """`sum` adds the 1 + (m + 1) terms (the paper); `mean` divides by their number (the authors' code)."""
    raw_weight: float = 1.0
    long_weight: float = 1.0
    """0 trains on raw texts alone."""
    balance: Literal["paper", "equal"] = "paper"
    """`paper`: raw : long is 1 : (m + 1), so that more corners also weigh long texts more; `equal`: 1 : 1 for every m."""
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start."""
    max_scale: float = 100.0

    def __post_init__(self) -> None:
        if self.raw_weight < 0 or self.long_weight < 0 or self.raw_weight + self.long_weight == 0:
            raise CornerstoneError(
                f"Loss weights raw {self.raw_weight} and long {self.long_weight}: expected none below 0 and one above "
                f"(--recipe.method.loss.raw-weight, --recipe.method.loss.long-weight)."
            )


@dataclass(frozen=True)
class LotlipConfig:
    """LoTLIP; with 0 corners it is LiT with long texts, with long_weight 0 as well it is LiT."""

    implementation: ClassVar[str] = "cornerstone.models.lotlip:Lotlip"

    image: ImageTower = field(default_factory=ImageTower)
    text: TextTower = field(default_factory=TextTower)
    loss: LotlipLoss = field(default_factory=LotlipLoss)
