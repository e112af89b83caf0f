"""FILIP: a dual encoder that compares every patch of an image with every token of a text (Yao et al. 2022).

Kept of the original: patches and tokens through a linear without bias each, L2-normalised, the image's class token left
out, what begins and ends a text counted, padding left out (the authors' later code lets it be the largest cosine as a 0);
the late interaction in training and in evaluation, in each direction its own; prompts are combined by the mean of their
similarities. Not kept: the text tower is a BERT here, as for all methods that are compared (the original is causal); features
are gathered in fp32 and all tokens take part (the original gathers fp16 and, in later code, may drop tokens).

B pairs, N images, S pixels a side, P patches, V their width, T tokens, E width inside the text tower, D width of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.method import Inputs, Losses
from cornerstone.objectives import filip_loss
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.filip import image_to_text, text_to_image
from cornerstone.recipes.filip import FilipConfig


class Features(NamedTuple):
    """What the loss is made of; patches and tokens are L2-normalised, padding is 0."""

    patches_BPD: Tensor
    tokens_BTD: Tensor
    scale: Tensor
    """1/τ, shape (1,)."""


class Filip(DualEncoder[Features]):
    """The method as one module. An encoded image is its patches, an encoded text its tokens."""

    config: FilipConfig
    patches_apart: ClassVar[str] = "it compares patches with the tokens of a text, which has no single feature"

    def __init__(
        self, config: FilipConfig, inputs: Inputs, seed: int = 0, *, text_tower: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, inputs, seed, text_tower=text_tower)
        if self.image_tower is None:
            raise CornerstoneError("FILIP needs an image tower, whose patches are compared with tokens.")
        for parameter in self.text.pooling_parameters():
            parameter.requires_grad_(False)  # the pooled feature is not read
        inside: int = self.image_tower.model.num_features  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.project_patches = nn.Linear(inside, config.embedding, bias=False)
            self.project_tokens = nn.Linear(self.text.token_width, config.embedding, bias=False)

    @property
    def scale_range(self) -> tuple[float, float]:
        """As the recipe's loss says."""
        return self.config.loss.initial_scale, self.config.loss.max_scale

    def forward(self, batch: PairBatch) -> Features:
        """Features of a batch."""
        patches_BPD = self.encode_image(batch.image)
        ids_BT, length_B = batch.captions(self.config.loss.captions)
        return Features(patches_BPD, self._tokens(ids_BT, length_B, ids_BT.shape[1]), self.scale())

    def losses(self, features: Features, batch: PairBatch, group: ProcessGroup | None = None) -> Losses:
        """`filip_loss` over the rows that have the caption. Of the batch only rows, masks and lengths are read."""
        patches_BPD, tokens_BTD, scale = features
        _, length_B = batch.captions(self.config.loss.captions)
        loss = filip_loss(
            patches_BPD,
            tokens_BTD,
            _places(tokens_BTD) < length_B[:, None],
            scale,
            row_ids_B=batch.row,
            valid_B=batch.valid & (length_B > 0),
            group=group,
        )
        return Losses({"contrastive": loss}, self.scale_reports(scale))

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, P, D): the patches, L2-normalised, from images (B, 3, S, S), uint8 or normalised."""
        if image.ndim == 2:
            raise CornerstoneError(
                "Pooled features were given, but FILIP compares patches: evaluate it on images, without --features."
            )
        return functional.normalize(at_least_fp32(self.project_patches(self.patches(image))), dim=-1)

    def encode_text(self, ids_BT: Tensor, length_B: Tensor, corners: bool = False) -> Tensor:
        """(B, T, D): the tokens, L2-normalised, padded with 0 to the token limit; there are no extra features."""
        return self._tokens(ids_BT, length_B, self.config.text.token_limit)

    def _tokens(self, ids_BT: Tensor, length_B: Tensor, places: int) -> Tensor:
        text = self.text(ids_BT, length_B, extra=False, tokens=True, buckets=self.inputs.length_buckets)
        assert text.tokens_BTE is not None
        tokens_BTD = functional.normalize(at_least_fp32(self.project_tokens(text.tokens_BTE[:, :places])), dim=-1)
        tokens_BTD = tokens_BTD * (_places(tokens_BTD) < length_B[:, None])[..., None]
        return functional.pad(tokens_BTD, (0, 0, 0, places - tokens_BTD.shape[1]))

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, B): what an image finds a text by, from patches (N, P, D) and tokens (B, T, D)."""
        return image_to_text(image, text, text.any(-1))

    def text_similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, B): what a text finds an image by."""
        return text_to_image(text, text.any(-1), image).T


def _places(tokens_BTD: Tensor) -> Tensor:
    return torch.arange(tokens_BTD.shape[1], device=tokens_BTD.device)
