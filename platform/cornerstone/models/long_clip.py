"""Long-CLIP: a dual encoder whose raw captions match an image's principal components alone (Zhang et al. 2024).

Kept of the original: long texts match the full image feature, short ones the reconstruction of the features of a group of
images from their 32 leading principal components, 1 : 1, with label smoothing 0.1; in fp32 always. Not kept: the
original fine-tunes CLIP, whose position table it stretches from 77 to 248 places, and its short text is the first sentence of
the long one; here the text tower is the recipe's and the short text is the raw caption, as in LoTLIP's table 2 ("LiT +
Long-CLIP"). A group is `pca_group` images of the global batch instead of the rows of one GPU.

B pairs, D width of the features.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Losses
from cornerstone.objectives import long_clip_loss
from cornerstone.recipes.long_clip import LongClipConfig


class Features(NamedTuple):
    """What the loss is made of; features are L2-normalised. A part whose weight is 0 is None."""

    image_BD: Tensor
    raw_BD: Tensor | None
    long_BD: Tensor | None
    scale: Tensor
    """1/τ, shape (1,)."""


class LongClip(DualEncoder[Features]):
    """The method as one module."""

    config: LongClipConfig

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def forward(self, batch: PairBatch) -> Features:
        """Features of a batch. A caption of length 0 is absent: its feature is finite and masked in the loss."""
        loss = self.config.loss
        image_BD = self.encode_image(batch.image)
        raw_BD = self.encode_text(batch.raw_ids, batch.raw_length) if loss.raw_weight else None
        long_BD = self.encode_text(batch.long_ids, batch.long_length) if loss.long_weight else None
        return Features(image_BD, raw_BD, long_BD, self.scale())

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """`long_clip_loss` with the recipe's options. Of the batch only rows, masks and lengths are read."""
        loss = self.config.loss
        parts = long_clip_loss(
            *features,
            components=loss.components,
            pca_group=loss.pca_group,
            label_smoothing=loss.label_smoothing,
            raw_weight=loss.raw_weight,
            long_weight=loss.long_weight,
            row_ids_B=batch.row,
            raw_valid_B=batch.valid & (batch.raw_length > 0),
            long_valid_B=batch.valid & (batch.long_length > 0),
            group=group,
        )
        return Losses(parts, self.scale_reports(features.scale))
