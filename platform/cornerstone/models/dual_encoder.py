"""What every contrastive image-text method shares: two towers, a temperature, encoding, saving and rebuilding.

B pairs, S pixels a side, W the image tower's width, T tokens, D = W width of the features, M = 1 + m: [CLS] and the text
tower's m extra features, P patches, V their width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.method import Inputs, Method
from cornerstone.models.text_tower import build_text_tower
from cornerstone.models.tower_holder import TowerHolder
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.recipes.dual_encoder import DualEncoderConfig

F = TypeVar("F", bound=tuple[Any, ...])
IMAGES_AT_ONCE = 512
"""Images of one pass through a locked tower: a tower needs some 5 MB for an image of 224 pixels while it computes."""


class DualEncoder(TowerHolder, Method[PairBatch, F]):
    """An image tower, a text tower and a temperature. Methods add `forward`, `losses`, and the temperature's range.

    A locked image tower is held outside the registered parameters: it moves and changes its type with the module, but
    nothing shards, saves or updates its weights. A trained one is an ordinary part.
    """

    config: DualEncoderConfig
    patches_apart: ClassVar[str] = ""
    """Why single patches are not in the space of texts; "" if they are (`encode_patches`)."""

    def __init__(
        self, config: DualEncoderConfig, inputs: Inputs, seed: int = 0, *, text_tower: Mapping[str, Any] | None = None
    ) -> None:
        """All that is drawn belongs to `seed`, and the number of corners shifts nothing else.

        `text_tower`, its `described()`, stands for the text tower that the recipe names: its weights are then to be loaded.
        A subclass takes the same arguments, because `rebuilt` opens saved models with them.
        """
        super().__init__()
        tower = inputs.image_tower
        if tower is None and not config.image.locked:
            raise CornerstoneError(
                "The image tower is to be trained, but none is given: build it, or lock it (method.image.locked)."
            )
        if tower is not None and tower.width != inputs.image_width:
            raise CornerstoneError(
                f"Image features have width {inputs.image_width}, but the image tower {config.image.name!r} has width "
                f"{tower.width}: compute the features with this tower, or name the one that computed them."
            )
        self.config, self.inputs = config, inputs
        self.hold(tower, config.image.locked)
        self.text = build_text_tower(config.text, inputs.vocab_size, inputs.image_width, seed, text_tower)
        initial, _ = self.scale_range
        self.logit_scale = nn.Parameter(torch.tensor([math.log(initial)]))  # (1,): DeepSpeed cannot shard a scalar

    @classmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> Self:
        """The module to train."""
        return cls(config, inputs, seed)

    @property
    @abstractmethod
    def scale_range(self) -> tuple[float, float]:
        """The temperature's exp at the start, and its cap."""

    def scale(self) -> Tensor:
        """exp of `logit_scale`, at most the cap; shape (1,).

        At the cap the gradient is that of the cap, not 0: a parameter that overshot can come back.
        """
        above = (self.logit_scale.detach() - math.log(self.scale_range[1])).clamp(min=0)
        return (self.logit_scale - above).exp()

    def scale_reports(self, scale: Tensor) -> dict[str, Tensor]:
        """`logit_scale` (its exp), and whether it is at its cap: the mean over steps is the share of steps there."""
        at_cap = scale >= self.scale_range[1] * (1 - 1e-6)
        return {"logit_scale": scale.detach().squeeze(), "logit_scale_at_cap": at_cap.float().squeeze()}

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D), L2-normalised, from images (B, 3, S, S), uint8 or normalised, or from stored features (B, W)."""
        if image.ndim == 2:
            return functional.normalize(at_least_fp32(image), dim=-1)
        if self.image_tower is None:
            raise CornerstoneError(
                "Images were given, but this model has no image tower: it takes stored features (B, W)."
            )
        if self._aside:  # locked: no graph is kept, so that parts bound its memory
            with torch.no_grad():
                pooled = torch.cat([self._pooled(self._aside[0], part) for part in image.split(IMAGES_AT_ONCE)])
        else:
            pooled = self._pooled(self.image_tower, image)
        return functional.normalize(at_least_fp32(pooled), dim=-1)

    def patches(self, image_B3SS: Tensor) -> Tensor:
        """(B, P, V): the image tower's patches, for methods that pool them themselves."""
        tower = self.image_tower
        if tower is None:
            raise CornerstoneError(f"The method {self.config.kind!r} reads patches, but this model has no image tower.")
        if not self._aside:
            patches_BPV: Tensor = tower(image_B3SS).patches
            return patches_BPV
        with torch.no_grad():  # locked: no graph is kept, so that parts bound its memory
            return torch.cat([tower(part).patches for part in image_B3SS.split(IMAGES_AT_ONCE)])

    @torch.no_grad()
    def encode_patches(self, image_B3SS: Tensor) -> Tensor:
        """(B, P, D): each patch in the space of images and texts, L2-normalised; what attention maps show (LoTLIP, Figure 6).

        Raises CornerstoneError for a method, or a tower, whose patches are not in that space.
        """
        if self.patches_apart:
            raise CornerstoneError(f"The method {self.config.kind!r} has no attention maps: {self.patches_apart}.")
        if self.image_tower is None:
            raise CornerstoneError("This model has no image tower: it takes stored features, which have no patches.")
        tower = self.image_tower
        patches_BPD = torch.cat([tower.pooled_patches(part) for part in image_B3SS.split(IMAGES_AT_ONCE)])
        return functional.normalize(at_least_fp32(patches_BPD), dim=-1)

    @staticmethod
    def _pooled(tower: TimmTower, image: Tensor) -> Tensor:
        pooled = tower(image).pooled
        if pooled is None:
            raise CornerstoneError("The image tower pools nothing: set --recipe.method.image.pooling to token.")
        return cast(Tensor, pooled)

    def encode_text(self, ids_BT: Tensor, length_B: Tensor, corners: bool = False) -> Tensor:
        """(B, D) of [CLS], or (B, M, D) with the tower's extra features, L2-normalised. Ids hold no reserved tokens."""
        text = self.text(ids_BT, length_B, extra=corners, buckets=self.inputs.length_buckets)
        features: Tensor = text.all_BMD if corners else text.pooled_BD
        return features

    def similarity(self, image_BD: Tensor, text_ND: Tensor) -> Tensor:
        """(B, N): the cosine of every image and every text, from encoded features."""
        return image_BD @ text_ND.T

    def text_similarity(self, image_BD: Tensor, text_ND: Tensor) -> Tensor:
        """(B, N): what texts find images by; the same, unless a method compares in each direction differently."""
        return self.similarity(image_BD, text_ND)

    def described(self) -> dict[str, Any]:
        """What `rebuilt` needs besides the configuration."""
        return {
            "vocab_size": self.inputs.vocab_size,
            "image_width": self.inputs.image_width,
            "text_tower": self.text.described(),
        }

    @classmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> Self:
        """The module of a saved model, its weights still to be loaded."""
        inputs = Inputs(described["vocab_size"], described["image_width"], image_tower)
        text_tower = described["text_tower"] if "text_tower" in described else described["bert"]  # before version 3
        return cls(config, inputs, text_tower=text_tower)
