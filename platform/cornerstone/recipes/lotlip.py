"""LoTLIP's part of a recipe: its towers and its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import CornerText, ImageTower


@dataclass(frozen=True)
class LotlipLoss:
    """Weights and scale of L_short + L_long (paper, equations 1 and 4 to 6)."""

    reduction: Literal["sum", "mean"] = "sum"
    """`sum` adds the 1 + (m + 1) terms (the paper); `mean` divides by their number (the authors' code)."""
    raw_weight: float = 1.0
    long_weight: float = 1.0
    """0 trains on raw captions alone."""
    balance: Literal["paper", "equal"] = "paper"
    """`paper`: raw : long is 1 : (m + 1), so that more corners also weigh long captions more; `equal`: 1 : 1 for every m."""
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
class LotlipConfig(DualEncoderConfig):
    """LoTLIP; with 0 corners it is LiT with long captions, with long_weight 0 as well it is LiT, and with rewrites of the raw
    captions among the data LaCLIP (Fan et al. 2023) over the recipe's towers."""

    kind: ClassVar[str] = "lotlip"
    implementation: ClassVar[str] = "cornerstone.models.lotlip:Lotlip"

    image: ImageTower = field(default_factory=ImageTower)
    text: CornerText = field(default_factory=CornerText)
    loss: LotlipLoss = field(default_factory=LotlipLoss)

    def chance_loss(self, batch_size: int) -> float:
        """ln of the batch for the raw captions, and for [CLS] and each corner of the long ones, by their weights."""
        loss, terms = self.loss, 1 + self.text.extra_features
        long = loss.long_weight * (1 if loss.balance == "equal" else terms)
        divided = 1 + terms if loss.reduction == "mean" else 1
        return math.log(batch_size) * (loss.raw_weight + long) / divided

    def check(self, data: DataConfig) -> None:
        """Long captions need sub-captions to be drawn."""
        super().check(data)
        if self.loss.long_weight > 0:
            needs_long_captions(data, "--recipe.method.loss.long-weight 0")


def with_sub_captions(recipe: Recipe, k: int) -> Recipe:
    """The same recipe with k sentences of a long caption; 0 trains on raw captions alone."""
    recipe = recipe if k else recipe.with_loss(long_weight=0.0)
    return recipe.with_data(sub_captions=k)


def from_scratch(recipe: Recipe) -> Recipe:
    """The same recipe with both towers at random weights and trained, its images encoded online.

    The image tower of the built-in scenes has no name: it becomes a new one of its sizes. Raises CornerstoneError for another
    method than LoTLIP.
    """
    method, data = recipe.method, recipe.data
    if not isinstance(method, LotlipConfig) or not isinstance(data, PairData):
        raise CornerstoneError(f"The method {method.kind!r} has no pretrained towers to leave out; expected lotlip.")
    image = replace(method.image, pretrained=False, locked=False)
    if not image.name:
        image = replace(image, name="vit_tiny_patch16_224", width=128, layers=3, heads=8, position_std=1.0)
        image = replace(image, patch=image.size // data.scenes.cells)
    return recipe.with_data(features="online").with_method(image=image).with_text(name="")


def with_long_loss_times(recipe: Recipe, factor: float) -> Recipe:
    """The same recipe with the loss of long captions weighed `factor` times as much."""
    if not isinstance(recipe.method, LotlipConfig):
        raise CornerstoneError(f"The method {recipe.method.kind!r} has no weight of long captions; expected lotlip.")
    return recipe.with_loss(long_weight=factor * recipe.method.loss.long_weight)
