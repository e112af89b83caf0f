"""CoCa: a dual encoder that also writes the caption (Yu et al. 2022); without captioning it is CLIP (Radford et al. 2021).

Kept of the original: one causal decoder in two halves, the unimodal one with a trailing learnable token as the text's feature,
the multimodal one with a cross-attention block, with an MLP of its own, after each self-attention block; attentional poolers,
of one query for the contrastive loss and of many for the decoder; contrastive : caption = 1 : 2; the caption loss is a mean
over all tokens of the global batch, the end token included; the vocabulary head is untied and has no bias. What the paper
leaves open is open_clip's: pre-norm blocks with GELU, learned positions, initial values as CLIP's, and the decoder reads
the unimodal half's tokens before their last norm.

Not kept: the image tower is the recipe's ViT, whose class token is not pooled; open_clip's poolers see it. The paper's image
classes as captions and its JFT-3B are not here. The shared pooler has its LayerNorm behind it, as released, but reads
patches that the tower has normalised already. Targets are told by a text's length, so that a word of id 0 is a target too.

CLIP is the same with `loss.caption_weight` 0 and `text.pooling` "end": a ViT and a causal transformer that is read at the end
token. Not kept of CLIP: attention pooling with one query stands for the class token.

B pairs, S pixels a side, P patches, V width of the patches, T tokens, E width of the decoder, Q queries, D width of the
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as functional
from open_clip.transformer import AttentionalPooler, MultimodalTransformer
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.attention_pooling import usual_heads
from cornerstone.models.clip_text import initialise
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Inputs, Losses
from cornerstone.objectives import coca_loss, token_losses
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import global_mean
from cornerstone.objectives.generation import TokenLosses
from cornerstone.recipes.coca import CocaConfig


class Features(NamedTuple):
    """What the loss is made of; image and text features are L2-normalised. Without a decoder the caption's are None."""

    image_BD: Tensor
    text_BD: Tensor
    token_loss_B1: Tensor | None
    """Of each caption the sum of −log p of its targets."""
    correct_B1: Tensor | None
    """Of each caption the targets that have the largest logit."""
    scale: Tensor
    """1/τ, shape (1,)."""


class Pooled(NamedTuple):
    """What the poolers make of an image's patches."""

    feature_BD: Tensor
    """Of the contrastive loss, not normalised."""
    tokens_BQE: Tensor | None
    """What the decoder attends to; None without a decoder."""


class ImagePoolers(nn.Module):
    """Attentional poolers: an own one for either loss, or a shared one whose query 0 is the contrastive feature."""

    def __init__(self, config: CocaConfig, inside: int, width: int) -> None:
        super().__init__()
        inner = config.text.width
        sizes = inner, inside, config.pooling_heads or usual_heads(inner)
        self.shared = config.poolers == "shared"
        self.pool = AttentionalPooler(*sizes, config.queries) if self.shared or config.loss.caption_weight else None
        self.contrastive = None if self.shared else AttentionalPooler(*sizes, 1)
        self.norm = nn.LayerNorm(inner) if self.shared else None
        self.project = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.project.weight, std=inner**-0.5)

    def forward(self, patches_BPV: Tensor) -> Pooled:
        """The feature and the decoder's tokens: Q of its own pooler, Q − 1 of the shared one."""
        tokens_BQE = None if self.pool is None else self.pool(patches_BPV)
        if self.norm is not None and tokens_BQE is not None:
            tokens_BQE = self.norm(tokens_BQE)
            return Pooled(self.project(tokens_BQE[:, 0]), tokens_BQE[:, 1:])
        assert self.contrastive is not None
        return Pooled(self.project(self.contrastive(patches_BPV)[:, 0]), tokens_BQE)


class Coca(DualEncoder[Features]):
    """The method as one module."""

    config: CocaConfig
    patches_apart: ClassVar[str] = "its poolers attend to patches, which are in another space than texts"

    def __init__(
        self, config: CocaConfig, inputs: Inputs, seed: int = 0, *, text_tower: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, inputs, seed, text_tower=text_tower)
        if self.image_tower is None:
            raise CornerstoneError("CoCa needs an image tower, whose patches are pooled.")
        inside: int = self.image_tower.model.num_features  # type: ignore[assignment]
        text = config.text
        self.decoder: MultimodalTransformer | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.poolers = ImagePoolers(config, inside, inputs.image_width)
            if config.loss.caption_weight:
                self.decoder = MultimodalTransformer(text.width, config.decoder_layers, text.heads, text.token_limit)
                self.decoder.text_projection = None  # the head is called at targets alone, and in chunks
                initialise(self.decoder.resblocks)
                initialise(self.decoder.cross_attn)
                self.head = nn.Linear(text.width, inputs.vocab_size, bias=False)
                nn.init.normal_(self.head.weight, std=text.width**-0.5)

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def forward(self, batch: PairBatch) -> Features:
        """Features of a batch."""
        pooled: Pooled = self.poolers(self.patches(batch.image))
        ids_BT, length_B = batch.captions(self.config.loss.captions)
        decodes = self.decoder is not None
        text = self.text(ids_BT, length_B, extra=False, tokens=decodes, buckets=self.inputs.length_buckets)
        image_BD = functional.normalize(at_least_fp32(pooled.feature_BD), dim=-1)
        if pooled.tokens_BQE is None or text.tokens_BTE is None:
            return Features(image_BD, text.pooled_BD, None, None, self.scale())
        losses = self.caption(pooled.tokens_BQE, text.tokens_BTE, ids_BT, length_B * batch.valid)
        return Features(image_BD, text.pooled_BD, losses.sum_B1, losses.correct_B1, self.scale())

    def caption(self, image_BQE: Tensor, text_BTE: Tensor, ids_BT: Tensor, length_B: Tensor) -> TokenLosses:
        """The losses of captions given the image's tokens: every token but the first is predicted from what is before it.

        `text_BTE` are the unimodal half's tokens. A caption of length 0 has no targets.
        """
        assert self.decoder is not None, "without a caption loss there is no decoder"
        length = text_BTE.shape[1]
        ids_BT = functional.pad(ids_BT, (0, max(length - ids_BT.shape[1], 0)))[:, :length]
        target_BT = torch.arange(length, device=ids_BT.device) < length_B[:, None]
        target_BT[:, 0] = False
        hidden_BTE = self.decoder(image_BQE, text_BTE)
        return token_losses(hidden_BTE, ids_BT, target_BT, self.head, vocabulary=self.inputs.vocab_size)

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D), L2-normalised, from images (B, 3, S, S), uint8 or normalised."""
        if image.ndim == 2:
            raise CornerstoneError(
                "Pooled features were given, but this model pools patches itself: evaluate it on images, without --features."
            )
        return functional.normalize(at_least_fp32(self.poolers(self.patches(image)).feature_BD), dim=-1)

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """`coca_loss` over the rows that have the caption. Of the batch only rows, masks and lengths are read."""
        loss, (_, length_B) = self.config.loss, batch.captions(self.config.loss.captions)
        tokens = ((length_B - 1).clamp(min=0) * batch.valid).sum()
        parts = coca_loss(
            features.image_BD,
            features.text_BD,
            features.scale,
            features.token_loss_B1,
            tokens,
            contrastive_weight=loss.contrastive_weight,
            caption_weight=loss.caption_weight,
            row_ids_B=batch.row,
            valid_B=batch.valid & (length_B > 0),
            group=group,
        )
        reports = self.scale_reports(features.scale)
        if features.token_loss_B1 is not None and features.correct_B1 is not None:
            reports["generation"] = global_mean(features.token_loss_B1.detach().sum(), tokens, group)
            reports["token_accuracy"] = global_mean(features.correct_B1.sum(), tokens, group)
        return Losses(parts, reports)
