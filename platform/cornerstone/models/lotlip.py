"""LoTLIP: a locked (or trained) image tower, a BERT with corner tokens, one temperature (paper, section 4.3).

B pairs, D width of the features, M = 1 + m: [CLS] and the corners.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Losses
from cornerstone.objectives import lotlip_loss
from cornerstone.recipes.lotlip import LotlipConfig


class Features(NamedTuple):
    """What the loss is made of; features are L2-normalised. A part whose weight is 0 is None."""

    image_BD: Tensor
    raw_BD: Tensor | None
    long_BMD: Tensor | None
    scale: Tensor
    """1/τ, shape (1,)."""


class Lotlip(DualEncoder[Features]):
    """The method as one module."""

    config: LotlipConfig

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def forward(self, batch: PairBatch) -> Features:
        """Features of a batch. A caption of length 0 is absent: its feature is finite and masked in the loss."""
        loss = self.config.loss
        image_BD = self.encode_image(
            batch.image
        )  # first: a tower's temporary memory is free again before the texts' graph
        raw_BD = self.encode_text(batch.raw_ids, batch.raw_length) if loss.raw_weight else None
        long_BMD = self.encode_text(batch.long_ids, batch.long_length, corners=True) if loss.long_weight else None
        return Features(image_BD, raw_BD, long_BMD, self.scale())

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """`lotlip_loss` with the recipe's weights. Of the batch only rows, masks and lengths are read."""
        loss = self.config.loss
        parts = lotlip_loss(
            features.image_BD,
            features.raw_BD,
            features.long_BMD,
            features.scale,
            reduction=loss.reduction,
            raw_weight=loss.raw_weight,
            long_weight=loss.long_weight,
            balance=loss.balance,
            row_ids_B=batch.row,
            raw_valid_B=batch.valid & (batch.raw_length > 0),
            long_valid_B=batch.valid & (batch.long_length > 0),
            group=group,
        )
        return Losses(parts, self.scale_reports(features.scale))
