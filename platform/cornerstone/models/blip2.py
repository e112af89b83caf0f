"""A BLIP-2-like baseline, the first stage (Li et al. 2023, section 3.1): learned queries compare, match and describe images.

Kept of the original: the querying transformer, a BERT with 32 queries that alone attend to the patches in every second layer
and have a feed-forward of their own; three losses 1 : 1 : 1, contrastive (the largest cosine of an image's queries with the
text), captioning ([DEC] instead of [CLS], the queries as prefix, head tied to the embeddings) and matching (the pair itself,
its text with a hard negative image, its image with a hard negative text, drawn by the softmax of the contrastive logits); label
smoothing 0.1; gradients through the negatives.

Not kept, as in LCL's comparison (Table 1): the tower is trained (the original's is pretrained and frozen; a locked tower is an
option), and the BERT starts from scratch in the presets that compare (`--recipe.method.text.name bert-base-uncased` loads one).
The temperature is learned as its logarithm and has a cap, as in all dual encoders here. Gathered features carry a gradient
(`gather_gradient`), and pairs with an identical text are no hard negatives (`identical_texts`); options make both as in the
released code. Another copy of the same row, at an epoch's edge, is never a negative.

Negatives are drawn among the rows of all workers, so a share is read in one pass: micro-batches are refused. The patches of all
workers are gathered for it, B × P × V numbers of each worker.

B rows of this worker, N of all workers, P patches, V width of the tower, Q queries, T tokens, D width of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.data import draws
from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Inputs, Losses
from cornerstone.models.qformer import QFormer
from cornerstone.objectives import query_contrastive_loss, token_losses
from cornerstone.objectives.blip2 import drawn_columns, negative_probability, query_similarity
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import gather, gather_values, global_mean, rank
from cornerstone.recipes.blip2 import Blip2Config


class Features(NamedTuple):
    """What the loss is made of; features are L2-normalised."""

    image_BQD: Tensor
    text_BD: Tensor
    scale: Tensor
    """1/τ, shape (1,)."""
    caption_loss_B1: Tensor
    """Of each caption the sum of its tokens' losses."""
    correct_B1: Tensor
    """Of each caption the tokens that have the largest logit."""
    match_B32: Tensor
    """Logits of no match and match: the pair, a negative image with the own text, the own image with a negative text."""
    drawn_B3: Tensor
    """bool: whether there is such a pair. A row may have no negative."""


class Texts(NamedTuple):
    """Some texts."""

    ids_BT: Tensor
    length_B: Tensor


class Blip2(DualEncoder[Features]):
    """The method as one module."""

    config: Blip2Config
    text: QFormer
    whole_share: ClassVar[bool] = True
    patches_apart: ClassVar[str] = "its queries attend to patches, which are in another space than texts"

    def __init__(
        self, config: Blip2Config, inputs: Inputs, seed: int = 0, *, text_tower: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, inputs, seed, text_tower=text_tower)
        self.seed = seed
        if self.image_tower is None:
            raise CornerstoneError("BLIP-2 needs an image tower, whose patches its queries read.")

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, Q, D), L2-normalised: a feature of each query, from images (B, 3, S, S)."""
        if image.ndim != 4:
            raise CornerstoneError(
                "Features were given, but BLIP-2's queries read patches: evaluate it on images, without --features."
            )
        return self.text.images(self.patches(image))

    def similarity(self, image_BQD: Tensor, text_ND: Tensor) -> Tensor:
        """(B, N): the largest cosine of an image's queries with every text."""
        return query_similarity(image_BQD, text_ND)

    def forward(self, batch: PairBatch) -> Features:
        """Features of a share. Every worker must call it with its share of the same step: negatives are drawn among all."""
        texts, valid_B = self._texts(batch)
        patches_BPV = self.patches(batch.image)
        captions = self.text.captions(patches_BPV, texts.ids_BT)
        place_T = torch.arange(texts.ids_BT.shape[1], device=valid_B.device)
        caption = token_losses(
            captions.hidden_BTE,
            texts.ids_BT,
            (place_T < texts.length_B[:, None]) & valid_B[:, None],
            self.text.next_token,
            vocabulary=self.text.vocabulary,
            label_smoothing=self.config.loss.label_smoothing,
        )
        text_BD, scale = self.encode_text(*texts), self.scale()
        all_texts = self._gathered(texts)
        image_B, text_B = self._negatives(batch, valid_B, captions.image_BQD, text_BD, scale, all_texts)
        match_B32 = self._match(patches_BPV, texts, image_B, text_B, all_texts)
        drawn_B3 = torch.stack([valid_B, image_B >= 0, text_B >= 0], dim=1)
        return Features(captions.image_BQD, text_BD, scale, *caption, match_B32, drawn_B3)

    @torch.no_grad()
    def _negatives(
        self,
        batch: PairBatch,
        valid_B: Tensor,
        image_BQD: Tensor,
        text_BD: Tensor,
        scale: Tensor,
        all_texts: Texts,
    ) -> tuple[Tensor, Tensor]:
        """The place, among all workers' rows, of each row's negative image and negative text; -1: none.

        A draw belongs to (seed, epoch, row), whatever the number of workers.
        """
        row_N, valid_N = gather_values(batch.row), gather_values(valid_B)
        excluded_BN = ~valid_N | (batch.row[:, None] == row_N)
        if self.config.loss.identical_texts == "exclude":
            key_N = all_texts.ids_BT.unique(dim=0, return_inverse=True)[1]
            own_B = key_N[rank() * len(batch) :][: len(batch)]
            excluded_BN |= own_B[:, None] == key_N
        excluded_BN |= ~valid_B[:, None]
        with torch.autocast(image_BQD.device.type, enabled=False):
            by_way = {
                "negative image": query_similarity(gather_values(image_BQD), text_BD).T,
                "negative text": query_similarity(image_BQD, gather_values(text_BD)),
            }
        found = []
        epoch, row = (x.cpu().numpy() for x in (batch.epoch, batch.row))
        for way, cosine_BN in by_way.items():
            probability_BN = negative_probability(cosine_BN * scale, excluded_BN)
            drawn_B = torch.from_numpy(draws.uniform(self.seed, way, epoch, row)).to(row_N.device)
            found.append(drawn_columns(probability_BN, row_N, drawn_B))
        return found[0], found[1]

    def _match(self, patches_BPV: Tensor, own: Texts, image_B: Tensor, text_B: Tensor, all_texts: Texts) -> Tensor:
        """(B, 3, 2) logits of the pair, of the negative image with the own text, of the own image with the negative text."""
        negative_BPV = gather(patches_BPV)[image_B.clamp(min=0)]
        negative = Texts(*(x[text_B.clamp(min=0)] for x in all_texts))
        own_BT = functional.pad(own.ids_BT, (0, negative.ids_BT.shape[1] - own.ids_BT.shape[1]))
        logits = self.text.match(
            torch.cat([patches_BPV, negative_BPV, patches_BPV]),
            torch.cat([own_BT, own_BT, negative.ids_BT]),
            torch.cat([own.length_B, own.length_B, negative.length_B]),
        )
        return at_least_fp32(logits).view(3, -1, 2).transpose(0, 1)

    def _texts(self, batch: PairBatch) -> tuple[Texts, Tensor]:
        """The captions that it is trained on, padded with 0, and which rows have one."""
        raw = self.config.loss.captions == "raw"
        ids_BT, length_B = (batch.raw_ids, batch.raw_length) if raw else (batch.long_ids, batch.long_length)
        return Texts(ids_BT, length_B), batch.valid & (length_B > 0)

    @staticmethod
    def _gathered(texts: Texts) -> Texts:
        """The texts of all workers, padded to the longest of them."""
        longest = int(gather_values(torch.tensor([texts.ids_BT.shape[1]], device=texts.ids_BT.device)).max())
        padded_BT = functional.pad(texts.ids_BT, (0, longest - texts.ids_BT.shape[1]))
        return Texts(gather_values(padded_BT), gather_values(texts.length_B))

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """The three losses, means over the rows, the caption tokens and the compared pairs of all workers."""
        loss = self.config.loss
        texts, valid_B = self._texts(batch)
        tokens = ((texts.length_B - 1) * valid_B).sum()
        contrastive = query_contrastive_loss(
            features.image_BQD,
            features.text_BD,
            features.scale,
            label_smoothing=loss.label_smoothing,
            constant_columns=not loss.gather_gradient,
            row_ids_B=batch.row,
            valid_B=valid_B,
            group=group,
        )
        wanted_B3 = torch.tensor([1, 0, 0], device=valid_B.device).expand(len(batch), -1)
        drawn_B3, pairs = features.drawn_B3, features.drawn_B3.sum()
        match_B3 = functional.cross_entropy(features.match_B32.transpose(1, 2), wanted_B3, reduction="none")
        matching = global_mean(torch.where(drawn_B3, match_B3, 0).sum(), pairs, group)
        with torch.no_grad():
            right_B3 = (features.match_B32.argmax(-1) == wanted_B3) & drawn_B3
            reports = {
                **self.scale_reports(features.scale),
                "token_accuracy": global_mean(features.correct_B1.sum(), tokens, group),
                "matching_accuracy": global_mean(right_B3.sum().float(), pairs, group),
            }
        generation = global_mean(features.caption_loss_B1.sum(), tokens, group)
        return Losses({"contrastive": contrastive, "generation": generation, "matching": matching}, reports)
