"""A BEiT-3-like baseline: masked patches and words are predicted by shared blocks (Wang et al. 2022, section 2).

Kept of the original: one self-attention for images and text, a feed-forward for each in every block; 40 % of an image's patches
masked in blocks, 50 % of the text beside images and 15 % of plain text (of the masked words 80 % become [MASK], 10 % another
word, 10 % stay); images alone, text alone, and both together, equally many (`apart`): its batch has images, texts and pairs.

Not kept: the targets of masked patches are their pixels, normalised in each patch (MAE), and not the visual tokens of a
tokenizer, which the original took from another pretrained model; so the image's loss is a squared error. An interleaved
document takes the place of a pair: an image and a word see all of their document, in both directions. There are no blocks with
a third feed-forward for both. The blocks are those of a timm vision transformer, which reads an image by itself in transfer;
its class token stands in the sequence where <EoI> would. The released code has no pre-training; the generator of block masks is
BEiT-2's. All starts from scratch.

Draws belong to (seed, epoch, row) and the place in the sequence.

B sequences, T tokens, N images in all of them, P patches, V width of the tower, C pixels of a patch × 3, D documents of a
sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data import draws
from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.causal_text import positions
from cornerstone.models.document_model import (
    DocumentModel,
    Reading,
    at_least_one,
    image_numbers,
    image_variance,
    inserted,
    without_contexts,
)
from cornerstone.models.masking import block_mask, text_mask
from cornerstone.models.method import Inputs, Losses
from cornerstone.models.multiway import TextParts, read_together
from cornerstone.objectives import token_losses
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import global_mean
from cornerstone.objectives.generation import TokenLosses
from cornerstone.recipes.beit3 import Beit3Config

REPLACED, ANOTHER = 0.8, 0.9
"""A masked word becomes [MASK] below the first number, another word below the second, and stays otherwise."""
TURNS = 2
"""A document is read as often to predict all of its text, every word from the others' half and more."""


class Features(NamedTuple):
    """What the loss and the reports are made of."""

    image_NV: Tensor
    """The mean of each image's patches, L2-normalised, without a gradient: for the reports alone."""
    token_loss_B1: Tensor
    """Of each sequence the sum of −log p of its masked tokens."""
    correct_B1: Tensor
    """Of each sequence the masked tokens that have the largest logit."""
    tokens_B1: Tensor
    """Of each sequence the masked tokens."""
    patch_loss_B1: Tensor
    """Of each sequence the sum of its masked patches' mean squared errors."""


class Hidden(NamedTuple):
    """What is hidden of some documents."""

    text_BT: Tensor
    """bool: the tokens that are predicted."""
    token_ids_BT: Tensor
    """What is read in place of the tokens."""
    patch_NP: Tensor
    """bool: the patches that are predicted, and not read."""
    alone_N: Tensor
    """bool: the images that are read alone."""


class Beit3(DocumentModel[Features]):
    """The method as one module."""

    config: Beit3Config

    def __init__(self, config: Beit3Config, inputs: Inputs, seed: int = 0) -> None:
        super().__init__(config, inputs, seed)
        self.seed, tower, width = seed, self._tower, inputs.image_width
        if getattr(tower, "num_prefix_tokens", 0) != 1:
            raise CornerstoneError(
                "BEiT-3 reads a class token beside an image's patches: name a vision transformer with one and without "
                "registers, such as vit_base_patch16_224 (--recipe.method.image.name)."
            )
        self.side = int(tower.patch_embed.patch_size[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(self.vocabulary + 1, width)
            self.positions = nn.Embedding(config.positions, width)
            self.text = TextParts(tower.blocks)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, self.vocabulary, bias=False)
            self.to_pixels = nn.Linear(width, 3 * self.side**2)
            self.masked_patch = nn.Embedding(1, width)
            for embedding in (self.words, self.positions, self.masked_patch):
                nn.init.normal_(embedding.weight, std=0.02)

    @property
    def _tower(self) -> Any:
        """timm's vision transformer."""
        return self.visual.model

    def forward(self, batch: SequenceBatch) -> Features:
        """Features of a batch."""
        hidden = self.hidden(batch)
        x_BTV, image_NV = self._read(batch, hidden)
        losses = self._words(x_BTV, batch, hidden.text_BT)
        patch_B1 = self._pixels(x_BTV, batch, hidden.patch_NP)
        tokens_B1 = hidden.text_BT.sum(1, keepdim=True).to(losses.sum_B1.dtype)
        return Features(image_NV, *losses, tokens_B1, patch_B1)

    def hidden(self, batch: SequenceBatch) -> Hidden:
        """What a step hides; it belongs to (seed, epoch, row)."""
        config, device = self.config, batch.document.device
        epoch_B1, row_B1 = (x.cpu().numpy()[:, None] for x in (batch.epoch, batch.row))
        tokens = batch.document.shape[1]

        def drawn(purpose: str) -> Tensor:
            return torch.from_numpy(draws.uniform(self.seed, purpose, epoch_B1, row_B1, np.arange(tokens))).to(device)

        # The draw of document number d of a sequence is the d-th one.
        document_BT = batch.document.clamp(min=0)
        apart_BT = (drawn("apart") < config.apart).gather(1, document_BT)
        alone_N = apart_BT[batch.image_row, batch.image_at] | ~batch.image_valid
        beside_BD = torch.zeros_like(apart_BT)
        beside_BD[batch.image_row[~alone_N], document_BT[batch.image_row, batch.image_at][~alone_N]] = True
        share_BT = torch.where(beside_BD.gather(1, document_BT), config.masked_text, config.masked_plain_text)
        text_BT = text_mask(drawn("masked text"), batch.target, batch.document, share_BT)
        kind_BT, another_BT = drawn("masked as"), (drawn("another word") * self.inputs.vocab_size).long()
        ids_BT = torch.where(text_BT & (kind_BT < ANOTHER), another_BT, batch.token_ids)
        ids_BT = torch.where(text_BT & (kind_BT < REPLACED), self.vocabulary, ids_BT)
        return Hidden(text_BT, ids_BT, self._blocks(batch).to(device), alone_N)

    def _blocks(self, batch: SequenceBatch) -> Tensor:
        """(N, P) bool: the masked patches of each image, none of one without a picture."""
        height, width = self._tower.patch_embed.grid_size
        count = round(self.config.masked_patches * height * width)
        found = np.zeros((len(batch.image_row), height, width), dtype=bool)
        row_N = batch.image_row.cpu()
        place_N = zip(batch.epoch.cpu()[row_N], batch.row.cpu()[row_N], batch.image_at.cpu(), strict=True)
        for number, (place, valid) in enumerate(zip(place_N, batch.image_valid.tolist(), strict=True)):
            if valid:
                draw = draws.generator(self.seed, "masked patches", *(int(x) for x in place))
                found[number] = block_mask(draw, (height, width), count, self.config.min_block)
        return torch.from_numpy(found).flatten(1)

    def _read(self, batch: SequenceBatch, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """(B, T, V) hidden states after the blocks, and each image's mean patch (N, V) of length 1, without a gradient."""
        place_BT = torch.where(batch.document < 0, 0, positions(batch.document, restart=True))
        if place_BT.shape[1] > self.config.positions and int(place_BT.max()) >= self.config.positions:
            raise CornerstoneError(
                f"A document of {int(place_BT.max()) + 1} tokens does not fit the {self.config.positions} positions: raise "
                f"--recipe.method.positions, or pack with a smaller --budget."
            )
        image_N1PV = self._embedded(batch.image, hidden.patch_NP)
        x_BTV = self.words(hidden.token_ids_BT) + self.positions(place_BT)
        x_BTV = inserted(x_BTV, batch.token_ids, self.ids.image, image_N1PV[:, 1:], batch.image_valid)
        x_BTV = inserted(x_BTV, batch.token_ids, self.ids.eoi, image_N1PV[:, :1], batch.image_valid)
        vision_BT = (batch.token_ids == self.ids.image) | (batch.token_ids == self.ids.eoi)
        group_BT = batch.document
        if len(batch.image_row):
            number_BT = image_numbers(batch).clamp(min=0)
            group_BT = torch.where(vision_BT & hidden.alone_N[number_BT], group_BT.shape[1] + number_BT, group_BT)
        x_BTV = read_together(self._tower.blocks, self.text, x_BTV, vision_BT, group_BT)
        x_BTV = x_BTV + 0 * image_N1PV.sum()  # without images the tower stays in the graph, as ZeRO needs
        patches_KV = x_BTV.detach()[batch.token_ids == self.ids.image]
        patches_NPV = self._tower.norm(patches_KV.view(len(batch.image_row), image_N1PV.shape[1] - 1, x_BTV.shape[-1]))
        mean_NV = at_least_fp32(patches_NPV.detach().mean(1))
        return x_BTV, functional.normalize(mean_NV, dim=-1)

    def _embedded(self, image_N3SS: Tensor, masked_NP: Tensor) -> Tensor:
        """(N, 1 + P, V): class token and patches as the first block reads them; a black image if there is none."""
        tower = self._tower
        patches_NPV = tower.patch_embed(self.visual.normalised(at_least_one(image_N3SS)))
        masked_NP = masked_NP if len(masked_NP) else masked_NP.new_zeros(patches_NPV.shape[:2])
        mask_V = self.masked_patch(torch.zeros(1, dtype=torch.long, device=masked_NP.device))
        patches_NPV = torch.where(masked_NP[..., None], mask_V.to(patches_NPV.dtype), patches_NPV)
        embedded_N1PV: Tensor = tower.norm_pre(tower._pos_embed(patches_NPV))
        return embedded_N1PV

    def _words(self, x_BTV: Tensor, batch: SequenceBatch, predicted_BT: Tensor) -> TokenLosses:
        """The losses of some tokens, each predicted from its own place."""
        own_place_BTV = x_BTV.roll(-1, dims=1)  # `token_losses` predicts from the place before; the first is no target

        def head(hidden_KV: Tensor) -> Tensor:
            logits_KW: Tensor = self.head(self.norm(hidden_KV))
            return logits_KW

        return token_losses(own_place_BTV, batch.token_ids, predicted_BT, head, vocabulary=self.vocabulary)

    def _pixels(self, x_BTV: Tensor, batch: SequenceBatch, masked_NP: Tensor) -> Tensor:
        """(B, 1): of each sequence the sum of its masked patches' mean squared errors."""
        hidden_KV = x_BTV[batch.token_ids == self.ids.image][masked_NP.flatten()]
        found_KC = at_least_fp32(self.to_pixels(self._tower.norm(hidden_KV)))
        pixels_NPC = patch_pixels(self.visual.normalised(at_least_one(batch.image)), self.side)
        wanted_KC = pixels_NPC[: len(masked_NP)][masked_NP]
        error_K = (found_KC - wanted_KC.to(found_KC.dtype)).square().mean(-1)
        row_K = batch.image_row[:, None].expand_as(masked_NP)[masked_NP]
        return error_K.new_zeros(len(batch)).index_add(0, row_K, error_K)[:, None]

    def reading(self, batch: SequenceBatch) -> Reading:
        """Losses and features of some documents, with nothing of the images hidden and all of a document together.

        Each text target is predicted in one of two passes, which hide every other token: a pseudo-likelihood, with what
        follows a word visible too. It cannot be compared with the loss of a method that reads from left to right.
        """
        place_BT = positions(batch.document, restart=True)
        found = []
        for turn in range(TURNS):
            text_BT = batch.target & (place_BT % TURNS == turn)
            ids_BT = torch.where(text_BT, self.vocabulary, batch.token_ids)
            height, width = self._tower.patch_embed.grid_size
            shown_NP = torch.zeros(len(batch.image_row), height * width, dtype=torch.bool, device=text_BT.device)
            x_BTV, image_NV = self._read(batch, Hidden(text_BT, ids_BT, shown_NP, ~batch.image_valid))
            found.append(self._words(x_BTV, batch, text_BT))
        summed = [torch.stack(parts).sum(0) for parts in zip(*found, strict=True)]
        return without_contexts(summed[0], summed[1], image_NV, batch)

    def losses(self, features: Features, batch: SequenceBatch, group: ProcessGroup | None = None) -> Losses:
        """Means over the masked tokens and over the masked patches of all workers. Of the batch only masks are read."""
        height, width = self._tower.patch_embed.grid_size
        patches = batch.image_valid.sum() * round(self.config.masked_patches * height * width)
        tokens = features.tokens_B1.detach().sum()
        text = global_mean(features.token_loss_B1.sum(), tokens, group)
        image = global_mean(features.patch_loss_B1.sum(), patches, group)
        with torch.no_grad():
            reports = {
                "token_accuracy": global_mean(features.correct_B1.sum(), tokens, group),
                "image_variance": image_variance(features.image_NV, batch.image_valid, group),
            }
        return Losses({"masked_text": text, "masked_image": self.config.image_weight * image}, reports)


def patch_pixels(image_N3SS: Tensor, side: int) -> Tensor:
    """(N, P, C): each patch's pixels with mean 0 and standard deviation 1, as MAE's targets."""
    patches_NCP = functional.unfold(image_N3SS, side, stride=side)
    patches_NPC = patches_NCP.transpose(1, 2)
    spread_NP1 = patches_NPC.var(-1, keepdim=True)
    return (patches_NPC - patches_NPC.mean(-1, keepdim=True)) / (spread_NP1 + 1e-6).sqrt()
