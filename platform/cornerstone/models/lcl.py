"""LCL: an image tower trained by a causal language model that reads interleaved documents (paper, section 3).

For an image i of a sequence, v_i is its pooled feature and h_i the language model's output at its <BoI>, which has read only
what comes before the image. L_con compares them over all images; L_gen predicts the words, <BoI> and the end of the text.

Not kept of the original: nothing is drawn in here (which side of its sentence an image stands on is drawn by the reader), and
images without a text before them are left out of L_con unless `unpreceded` says otherwise.

B sequences, T tokens, N images in all of them, S pixels a side, P patches, E width of the language model, D of the embedding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.models.attention_pooling import AttentionPooling
from cornerstone.models.causal_text import CausalDecoder
from cornerstone.models.document_model import DocumentModel, Reading, generation_reports, image_variance, inserted
from cornerstone.models.method import Inputs, Losses
from cornerstone.objectives import lcl_loss, token_losses
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import summed
from cornerstone.recipes.lcl import LclConfig

_ROW = 2**16
"""Images of a sequence have ids of their own: row × this + the place of their <BoI>."""


class Features(NamedTuple):
    """What the loss is made of."""

    image_ND: Tensor
    """v, L2-normalised."""
    context_ND: Tensor
    """h, L2-normalised."""
    token_loss_B1: Tensor
    """Of each sequence the sum of −log p of its text targets."""
    correct_B1: Tensor
    """Of each sequence the targets that have the largest logit."""
    scale: Tensor
    """1/τ, shape (1,)."""


class Lcl(DocumentModel[Features]):
    """The method as one module."""

    config: LclConfig

    def __init__(self, config: LclConfig, inputs: Inputs, seed: int = 0) -> None:
        super().__init__(config, inputs, seed)
        inside, width, shared = inputs.image_width, config.language.width, config.shared_values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pool = AttentionPooling(inside, config.embedding if shared else inside, config.pooling_heads)
            self.to_embedding = nn.Identity() if shared else nn.Linear(inside, config.embedding, bias=False)
            self.to_tokens = nn.Identity() if shared else nn.Linear(inside, width)
            self.language = CausalDecoder(config.language, self.vocabulary)
            self.context = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.embedding, bias=False))
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.vocabulary, bias=False))
        self.logit_scale = nn.Parameter(torch.tensor([math.log(config.loss.initial_scale)]))

    def forward(self, batch: SequenceBatch) -> Features:
        """Features of a batch."""
        image_ND, tokens_NPE = self.images(batch.image)
        hidden_BTE = self.read(batch, tokens_NPE)
        losses = token_losses(hidden_BTE, batch.token_ids, batch.target, self.head, vocabulary=self.vocabulary)
        context_ND = self.contexts(hidden_BTE, batch)
        unused = 0 * (image_ND.sum() + tokens_NPE.sum())  # without images the tower stays in the graph, as ZeRO needs
        return Features(
            image_ND[: len(batch.image)], context_ND, losses.sum_B1 + unused, losses.correct_B1, self.scale()
        )

    def reading(self, batch: SequenceBatch) -> Reading:
        """Losses and features of some documents."""
        found = self(batch)
        return Reading(found.token_loss_B1, found.correct_B1, found.image_ND, found.context_ND, self.compared(batch))

    def images(self, image_N3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, D), L2-normalised, and the language model's tokens (N, P, E), of at least one image."""
        patches_NPV = self.patches(image_N3SS)
        pooled = self.pool(patches_NPV)
        image_ND = functional.normalize(at_least_fp32(self.to_embedding(pooled.feature_NW)), dim=-1)
        return image_ND, self.to_tokens(pooled.values_NPW if self.config.shared_values else patches_NPV)

    def read(self, batch: SequenceBatch, tokens_NPE: Tensor) -> Tensor:
        """(B, T, E) hidden states of the sequences with these image tokens."""
        x_BTE = inserted(
            self.language.embed(batch.token_ids), batch.token_ids, self.ids.image, tokens_NPE, batch.image_valid
        )
        hidden_BTE: Tensor = self.language(x_BTE, batch.document)
        return hidden_BTE

    def contexts(self, hidden_BTE: Tensor, batch: SequenceBatch) -> Tensor:
        """(N, D), L2-normalised: what each image's document said before it. Without images the head is called all the same."""
        at_NE = hidden_BTE[batch.image_row, batch.image_at] if len(batch.image_row) else hidden_BTE[:1, 0]
        context_ND = functional.normalize(at_least_fp32(self.context(at_NE)), dim=-1)
        return context_ND[: len(batch.image_row)] + 0 * context_ND.sum()

    def losses(self, features: Features, batch: SequenceBatch, group: ProcessGroup | None = None) -> Losses:
        """`lcl_loss` with the recipe's weights. Of the batch only places and masks are read."""
        loss, tokens = self.config.loss, batch.target.sum()
        valid_N = self.compared(batch)
        parts = lcl_loss(
            features.image_ND,
            features.context_ND,
            features.scale,
            features.token_loss_B1,
            tokens,
            contrastive_weight=loss.contrastive_weight,
            generation_weight=loss.generation_weight,
            image_ids_N=batch.row[batch.image_row] * _ROW + batch.image_at,
            valid_N=valid_N,
            group=group,
        )
        with torch.no_grad():
            reports = self._reports(features, parts, valid_N, tokens, group)
        return Losses(parts, reports)

    def compared(self, batch: SequenceBatch) -> Tensor:
        """(N,) bool: the images of L_con. Those without a picture never count, nor those without a context (`unpreceded`)."""
        if self.config.loss.unpreceded == "exclude":
            return batch.image_valid & batch.text_before
        before_N = batch.document[batch.image_row, (batch.image_at - 1).clamp(min=0)]
        own_N = batch.document[batch.image_row, batch.image_at]
        return batch.image_valid & (batch.image_at > 0) & (before_N == own_N)

    def scale(self) -> Tensor:
        """exp of `logit_scale`, at most the cap, shape (1,); at the cap the gradient is that of the cap, not 0."""
        above = (self.logit_scale.detach() - math.log(self.config.loss.max_scale)).clamp(min=0)
        return (self.logit_scale - above).exp()

    def _reports(
        self, features: Features, parts: dict[str, Tensor], valid_N: Tensor, tokens: Tensor, group: ProcessGroup | None
    ) -> dict[str, Tensor]:
        """The unweighted losses, and what tells a collapse of the image features (`evaluation/collapse.py`)."""
        images = summed(valid_N.sum().float(), group).clamp(min=1)
        reports = generation_reports(features.token_loss_B1, features.correct_B1, tokens, group)
        reports |= {
            "image_variance": image_variance(features.image_ND, valid_N, group),
            "logit_scale": features.scale.detach().squeeze(),
        }
        if weight := self.config.loss.contrastive_weight:
            contrastive = parts["contrastive"].detach() / weight
            reports |= {"contrastive": contrastive, "infonce_bound": images.log() - contrastive}
        return reports
