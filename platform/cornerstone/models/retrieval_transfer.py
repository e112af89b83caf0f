"""A dual encoder over a trained image tower: the pooling and the text tower are new (LCL, appendix: transfer to retrieval).

B pairs, S pixels a side, P patches, V width of the patches, D width of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.attention_pooling import AttentionPooling, usual_heads
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Group, Inputs, Losses, grouped
from cornerstone.objectives import lotlip_loss
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.recipes.retrieval_transfer import RetrievalTransferConfig


class Features(NamedTuple):
    """What the loss is made of; features are L2-normalised."""

    image_BD: Tensor
    text_BD: Tensor
    scale: Tensor
    """1/τ, shape (1,)."""


class RetrievalTransfer(DualEncoder[Features]):
    """The method as one module. A batch may bring a frozen tower's patches (B, P, V) instead of images."""

    config: RetrievalTransferConfig

    def __init__(
        self,
        config: RetrievalTransferConfig,
        inputs: Inputs,
        seed: int = 0,
        *,
        text_tower: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, inputs, seed, text_tower=text_tower)
        if self.image_tower is None:
            raise CornerstoneError("Transfer to retrieval needs an image tower, whose patches are pooled.")
        inside: int = self.image_tower.model.num_features  # type: ignore[assignment]
        width = inputs.image_width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pool = AttentionPooling(inside, width, config.pooling_heads or usual_heads(width))

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def forward(self, batch: PairBatch) -> Features:
        """Features of a batch."""
        image_BD = self.encode_image(batch.image)
        return Features(image_BD, self.encode_text(*batch.captions(self.config.loss.captions)), self.scale())

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D), L2-normalised, from images (B, 3, S, S) or from a frozen tower's patches (B, P, V)."""
        if image.ndim == 2:
            raise CornerstoneError(
                "Pooled features were given, but this model pools patches itself: evaluate it on images, without --features."
            )
        patches_BPV = image if image.ndim == 3 else self.patches(image)
        return functional.normalize(at_least_fp32(self.pool(patches_BPV).feature_NW), dim=-1)

    @torch.no_grad()
    def encode_patches(self, image_B3SS: Tensor) -> Tensor:
        """(B, P, D): the value of each patch, of whose mean the pooled feature is made, L2-normalised."""
        return functional.normalize(at_least_fp32(self.pool(self.patches(image_B3SS)).values_NPW), dim=-1)

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """The contrastive loss over the rows that have the caption."""
        valid_B = batch.valid & (batch.captions(self.config.loss.captions)[1] > 0)
        parts = lotlip_loss(
            features.image_BD,
            features.text_BD,
            None,
            features.scale,
            long_weight=0.0,
            row_ids_B=batch.row,
            raw_valid_B=valid_B,
            group=group,
        )
        return Losses({"contrastive": parts["raw"]}, self.scale_reports(features.scale))

    def parameter_groups(self) -> list[Group]:
        """The tower's learning rate is the new parts' times the factor."""
        tower = [] if self._aside or self.visual is None else list(self.visual.parameters())
        of_tower = {id(parameter) for parameter in tower}
        new = [parameter for parameter in self.parameters() if id(parameter) not in of_tower]
        return grouped(new) + (grouped(tower, self.config.tower_lr_factor) if tower else [])
