"""An Emu-like baseline: a language model that predicts the next word or the next visual embedding (Sun et al. 2023).

Kept of the original: the causal former, cross-entropy on text plus L2 regression with weights 1 : 1, n + 1 regressions an image
(<BoI> predicts embedding 1, embedding i the next one, embedding n the token embedding of <EoI>), a norm that both heads share,
a bias-free regression head, targets without a gradient (`targets`: live ones are an option).

Not kept, as in LCL's comparison (Table 1): tower and language model start from scratch (the original's are pretrained). <BoI>
is a text target, so that the text loss is that of the other methods on documents; the released code never asks for an image to
begin. The released code has no regression loss: the squared error is a mean over components and over all regressions.

B sequences, T tokens, N images in all of them, P patches, n causal tokens, V width of the tower, E of the language model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.documents.config import SpecialIds
from cornerstone.models.causal_former import CausalFormer
from cornerstone.models.causal_text import CausalDecoder
from cornerstone.models.document_model import (
    DocumentModel,
    Reading,
    generation_reports,
    image_variance,
    inserted,
    latest_image,
    without_contexts,
)
from cornerstone.models.method import Inputs, Losses
from cornerstone.objectives import regression_losses, token_losses
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import global_mean
from cornerstone.recipes.emu import EmuConfig


class Features(NamedTuple):
    """What the loss and the reports are made of."""

    image_NV: Tensor
    """The mean of each image's patches, L2-normalised, without a gradient: for the reports alone."""
    token_loss_B1: Tensor
    """Of each sequence the sum of −log p of its text targets."""
    correct_B1: Tensor
    """Of each sequence the targets that have the largest logit."""
    regression_B1: Tensor
    """Of each sequence the sum of its regressions' mean squared errors."""


class Emu(DocumentModel[Features]):
    """The method as one module."""

    config: EmuConfig

    def __init__(self, config: EmuConfig, inputs: Inputs, seed: int = 0) -> None:
        super().__init__(config, inputs, seed)
        inside, width = inputs.image_width, config.language.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.language = CausalDecoder(config.language, self.vocabulary)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, self.vocabulary, bias=False)
            self.to_next = nn.Linear(width, width, bias=False)
            self.norm_patches = nn.LayerNorm(inside)
            self.former = CausalFormer(
                inside,
                width,
                tokens=config.tokens,
                width=config.former_width,
                layers=config.former_layers,
                heads=config.former_heads,
                hidden=4 * config.former_width,
            )

    def forward(self, batch: SequenceBatch) -> Features:
        """Features of a batch."""
        patches_NPV = self.patches(batch.image)
        tokens_NnE = self.former(self.norm_patches(patches_NPV))
        words_BTE = self.language.embed(batch.token_ids)
        x_BTE = inserted(words_BTE, batch.token_ids, self.ids.image, tokens_NnE, batch.image_valid)
        hidden_BTE = self.norm(self.language(x_BTE, batch.document))
        losses = token_losses(hidden_BTE, batch.token_ids, batch.target, self.head, vocabulary=self.vocabulary)
        target_BTE = x_BTE if self.config.targets == "live" else x_BTE.detach()
        source_BT = regressed(batch.token_ids, self.ids) & (latest_image(batch) >= 0)
        regression_B1 = regression_losses(hidden_BTE, target_BTE, source_BT, self.to_next)
        unused = 0 * tokens_NnE.sum()  # without images the tower stays in the graph, as ZeRO needs
        image_NV = functional.normalize(at_least_fp32(patches_NPV.detach().mean(1)), dim=-1)
        return Features(image_NV[: len(batch.image)], losses.sum_B1 + unused, losses.correct_B1, regression_B1)

    def reading(self, batch: SequenceBatch) -> Reading:
        """Losses and features of some documents; an image's feature is the mean of its patches."""
        found = self(batch)
        return without_contexts(found.token_loss_B1, found.correct_B1, found.image_NV, batch)

    def losses(self, features: Features, batch: SequenceBatch, group: ProcessGroup | None = None) -> Losses:
        """Means over the text targets and over the regressions of all workers. Of the batch only places and masks are read."""
        tokens = batch.target.sum()
        regressions = batch.image_valid.sum() * (self.config.tokens + 1)
        generation = global_mean(features.token_loss_B1.sum(), tokens, group)
        regression = global_mean(features.regression_B1.sum(), regressions, group)
        with torch.no_grad():
            reports = generation_reports(features.token_loss_B1, features.correct_B1, tokens, group)
            reports["image_variance"] = image_variance(features.image_NV, batch.image_valid, group)
            reports["regression"] = regression.detach()
        return Losses({"generation": generation, "regression": self.config.regression_weight * regression}, reports)


def regressed(token_ids_BT: Tensor, ids: SpecialIds) -> Tensor:
    """(B, T) bool: the tokens whose hidden state predicts the next embedding, <BoI> and every place of an image."""
    return (token_ids_BT == ids.boi) | (token_ids_BT == ids.image)
