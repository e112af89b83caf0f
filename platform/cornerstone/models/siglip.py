"""SigLIP: the dual encoder with a pairwise sigmoid loss and a learnable bias (Zhai et al. 2023).

Kept of the original: the loss, its temperature and bias with their initial values, features normalised, no softmax over the
batch. Not kept: the text tower is a BERT here, as for all methods that are compared (the original trains a
transformer over a SentencePiece vocabulary); the image's feature is pooled as the recipe's tower says (the original
uses attention pooling: `--recipe.method.image.pooling attention`).

B pairs, D width of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Inputs, Losses
from cornerstone.objectives import siglip_loss
from cornerstone.recipes.siglip import SiglipConfig


class Features(NamedTuple):
    """What the loss is made of; features are L2-normalised."""

    image_BD: Tensor
    text_BD: Tensor
    scale: Tensor
    """1/τ, shape (1,)."""
    bias: Tensor
    """Shape (1,)."""


class Siglip(DualEncoder[Features]):
    """The method as one module."""

    config: SiglipConfig

    def __init__(
        self, config: SiglipConfig, inputs: Inputs, seed: int = 0, *, text_tower: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, inputs, seed, text_tower=text_tower)
        self.logit_bias = nn.Parameter(torch.tensor([config.loss.initial_bias]))

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def forward(self, batch: PairBatch) -> Features:
        """Features of a batch."""
        ids_BT, length_B = batch.captions(self.config.loss.captions)
        bias = self.logit_bias * 1.0  # a tensor of this call: under ZeRO-3 the parameter exists only inside `forward`
        return Features(self.encode_image(batch.image), self.encode_text(ids_BT, length_B), self.scale(), bias)

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """`siglip_loss` over the rows that have the caption."""
        valid_B = batch.valid & (batch.captions(self.config.loss.captions)[1] > 0)
        loss = siglip_loss(*features, row_ids_B=batch.row, valid_B=valid_B, group=group)
        reports = {**self.scale_reports(features.scale), "logit_bias": features.bias.detach().squeeze()}
        return Losses({"sigmoid": loss}, reports)
