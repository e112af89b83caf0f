"""A Flamingo-like baseline: a language model that looks at images through gated cross-attention (Alayrac et al. 2022).

Kept of the original: the perceiver resampler, the tanh-gated cross-attention before the layers of the language model with its
gates at 0, a text token sees the latest image of its document alone and tokens before any image see none, likelihood as the
only loss.

Not kept, as in LCL's comparison (Table 1): tower and language model start from scratch and are trained (the original freezes
pretrained ones). One kind of data instead of a weighted mixture; which side of its sentence an image stands on is drawn by the
reader, not whether a text sees the image before or behind it. All words, <BoI> and <eos> are predicted, also before the first
image, so that the text loss is that of the other methods on documents (open_flamingo leaves out what stands before the first
image). An image's places in the sequence are ordinary tokens, which say nothing of the picture: `--image-tokens 1` at packing
would do, and more of them keep the sequences those of the other methods.

B sequences, T tokens, N images in all of them, I the most images of a sequence, P patches, R latents, V width of the tower,
E of the language model.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.models.causal_text import CausalDecoder
from cornerstone.models.document_model import (
    DocumentModel,
    Reading,
    generation_reports,
    image_variance,
    latest_image,
    without_contexts,
)
from cornerstone.models.method import Inputs, Losses
from cornerstone.models.perceiver import GatedCrossAttention, PerceiverResampler
from cornerstone.objectives import token_losses
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import global_mean
from cornerstone.recipes.flamingo import FlamingoConfig


class Features(NamedTuple):
    """What the loss and the reports are made of."""

    image_NV: Tensor
    """The mean of each image's patches, L2-normalised, without a gradient: for the reports alone."""
    token_loss_B1: Tensor
    """Of each sequence the sum of −log p of its text targets."""
    correct_B1: Tensor
    """Of each sequence the targets that have the largest logit."""


class Media(NamedTuple):
    """The images of each sequence as its tokens see them."""

    latents_BIRV: Tensor
    """Zeros where a sequence has fewer images than others."""
    seen_BT: Tensor
    """The place, among its sequence's images, of the one that a token sees; -1: none."""


class Flamingo(DocumentModel[Features]):
    """The method as one module."""

    config: FlamingoConfig

    def __init__(self, config: FlamingoConfig, inputs: Inputs, seed: int = 0) -> None:
        super().__init__(config, inputs, seed)
        inside, width = inputs.image_width, config.language.width
        sizes = config.heads, config.head_width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.language = CausalDecoder(config.language, self.vocabulary)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.vocabulary, bias=False))
            self.resampler = PerceiverResampler(inside, config.latents, config.resampler_layers, *sizes)
            blocks = range(0, config.language.layers, config.every)
            self.cross = nn.ModuleList(GatedCrossAttention(width, inside, *sizes) for _ in blocks)

    def forward(self, batch: SequenceBatch) -> Features:
        """Features of a batch."""
        patches_NPV = self.patches(batch.image)
        media = self.media(self.resampler(patches_NPV), batch)
        hidden_BTE = self.language(
            self.language.embed(batch.token_ids), batch.document, before_layer=partial(self._look, media)
        )
        losses = token_losses(hidden_BTE, batch.token_ids, batch.target, self.head, vocabulary=self.vocabulary)
        image_NV = functional.normalize(at_least_fp32(patches_NPV.detach().mean(1)), dim=-1)
        return Features(image_NV[: len(batch.image)], losses.sum_B1, losses.correct_B1)

    def media(self, latents_NRV: Tensor, batch: SequenceBatch) -> Media:
        """Each sequence's images side by side, and which of them its tokens see; a missing picture is seen by none."""
        images_B = torch.bincount(batch.image_row, minlength=len(batch))
        first_B = images_B.cumsum(0) - images_B
        place_N = torch.arange(len(batch.image_row), device=first_B.device) - first_B[batch.image_row]
        most = max(1, int(images_B.max()))
        empty_BIRV = latents_NRV.new_zeros(len(batch), most, *latents_NRV.shape[1:])
        latents_BIRV = empty_BIRV.index_put((batch.image_row, place_N), latents_NRV[: len(place_N)])
        latest_BT = latest_image(batch)
        seen_BT = torch.where(latest_BT >= 0, latest_BT - first_B[:, None], -1)
        unused = 0 * latents_NRV.sum()  # without images the tower stays in the graph, as ZeRO needs
        return Media(latents_BIRV + unused, seen_BT)

    def _look(self, media: Media, layer: int, x_BTE: Tensor) -> Tensor:
        """The hidden states that a layer reads: with a block before it, those that looked at the images."""
        number, rest = divmod(layer, self.config.every)
        if rest:
            return x_BTE
        looked_BTE: Tensor = self.cross[number](x_BTE, *media)
        return looked_BTE

    def reading(self, batch: SequenceBatch) -> Reading:
        """Losses and features of some documents; an image's feature is the mean of its patches."""
        found = self(batch)
        return without_contexts(found.token_loss_B1, found.correct_B1, found.image_NV, batch)

    def losses(self, features: Features, batch: SequenceBatch, group: ProcessGroup | None = None) -> Losses:
        """The mean −log p of the text targets of all workers. Of the batch only places and masks are read."""
        tokens = batch.target.sum()
        generation = global_mean(features.token_loss_B1.sum(), tokens, group)
        with torch.no_grad():
            reports = generation_reports(features.token_loss_B1, features.correct_B1, tokens, group)
            reports["image_variance"] = image_variance(features.image_NV, batch.image_valid, group)
        return Losses({"generation": generation}, reports)
