"""LoTLIP: a locked (or trained) image tower, a BERT with corner tokens, one temperature (paper, section 4.3).

B pairs, S pixels a side, W the image tower's width, T tokens, D = W width of the features, M = 1 + m: CLS and the
corners.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import bert_from, build_bert
from cornerstone.models.corner_text import CornerBert
from cornerstone.models.image_tower import TimmTower
from cornerstone.objectives import lotlip_loss
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.towers import CornerText, ImageTower


class Features(NamedTuple):
    """What the loss is made of; features are L2-normalised. A part whose weight is 0 is None."""

    image_BD: Tensor
    raw_BD: Tensor | None
    long_BMD: Tensor | None
    scale: Tensor
    """1/τ, shape (1,)."""


class Lotlip(nn.Module):
    """The method as one module: `losses(module(batch), batch)` gives the parts of the loss.

    A locked image tower is kept aside: it moves and changes its type with the module, but its weights are not among the
    module's parameters or state, so that nothing shards, saves or updates them. A trained one is an ordinary part.
    """

    def __init__(
        self,
        config: LotlipConfig,
        *,
        vocab_size: int,
        image_width: int,
        image_tower: TimmTower | None = None,
        seed: int = 0,
        buckets: int = 1,
        bert: Mapping[str, Any] | None = None,
    ) -> None:
        """`vocab_size` is the tokenizer's, without corners; `image_width` the width of the tower or of stored features.

        All that is drawn belongs to `seed`, and the number of corners shifts nothing else. `buckets` shares of equal
        count run each batch of texts sorted by length; that changes no number. `bert`, a `BertConfig.to_dict`, stands
        for the tower that the recipe names: weights are then to be loaded.
        """
        super().__init__()
        if image_tower is None and not config.image.locked:
            raise CornerstoneError(
                "The image tower is to be trained, but none is given: build it, or lock it (method.image.locked)."
            )
        if image_tower is not None and image_tower.width != image_width:
            raise CornerstoneError(
                f"Image features have width {image_width}, but the image tower {config.image.name!r} has width "
                f"{image_tower.width}: compute the features with this tower, or name the one that computed them."
            )
        self.config, self.vocab_size, self.image_width, self.buckets = config, vocab_size, image_width, buckets
        self._aside: tuple[TimmTower, ...] = ()
        if image_tower is not None and config.image.locked:
            self._aside = (image_tower.lock(),)  # in a tuple, where nn.Module does not look
        else:
            self.visual = image_tower
        encoder = build_bert(config.text, vocab_size, seed) if bert is None else bert_from(bert)
        text = config.text
        self.text = CornerBert(
            encoder, corners=text.corner_tokens, masked=text.corner_mask, width=image_width, seed=seed
        )
        self.log_scale = nn.Parameter(
            torch.tensor([math.log(config.loss.initial_scale)])
        )  # DeepSpeed wants a dimension

    @property
    def image_tower(self) -> TimmTower | None:
        """The image tower, aside or not; None where there are stored features alone."""
        return self._aside[0] if self._aside else self.visual

    def _apply(self, fn: Any, recurse: bool = True) -> Lotlip:
        for tower in self._aside:
            tower._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, batch: Any) -> Features:
        """Features of a batch.

        It is a mapping or an object with `image` or `feature`, `raw_ids`, `raw_length`, `long_ids` and `long_length`.
        `image` (B, 3, S, S) is uint8 or normalised floats, `feature` (B, W) what the tower gave; ids (B, T) are int64,
        hold no corner ids and are padded with 0. A text of length 0 is absent. Every parameter is used through this
        call, as ZeRO-3 needs; the number of calls of a submodule depends on the recipe alone.
        """
        loss = self.config.loss
        image = _field(batch, "image")
        raw_BD = long_BMD = None
        if loss.raw_weight:
            raw_BD = self.encode_text(_field(batch, "raw_ids"), _field(batch, "raw_length"))
        if loss.long_weight:
            long_BMD = self.encode_text(_field(batch, "long_ids"), _field(batch, "long_length"), corners=True)
        image_BD = self.encode_image(_field(batch, "feature") if image is None else image)
        return Features(image_BD, raw_BD, long_BMD, self.scale())

    def scale(self) -> Tensor:
        """exp of the temperature parameter, at most `max_scale`; shape (1,).

        At the cap the gradient is that of the cap, not 0: a parameter that overshot can come back.
        """
        above = (self.log_scale.detach() - math.log(self.config.loss.max_scale)).clamp(min=0)
        return (self.log_scale - above).exp()

    def losses(self, features: Features, batch: Any, group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """`lotlip_loss` with the recipe's weights; its parts add up to the loss.

        `batch` may also hold `row` (B), ids of the rows, and `valid` (B), False for masked rows. Of the batch only
        these and the two lengths are read.
        """
        valid_B = _field(batch, "valid")
        raw_B, long_B = (
            length_B > 0 if valid_B is None else valid_B & (length_B > 0)
            for length_B in (_field(batch, "raw_length"), _field(batch, "long_length"))
        )
        loss = self.config.loss
        return lotlip_loss(
            features.image_BD,
            features.raw_BD,
            features.long_BMD,
            features.scale,
            reduction=loss.reduction,
            raw_weight=loss.raw_weight,
            long_weight=loss.long_weight,
            balance=loss.balance,
            row_ids_B=_field(batch, "row"),
            raw_valid_B=raw_B,
            long_valid_B=long_B,
            group=group,
        )

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D), L2-normalised, from images (B, 3, S, S), uint8 or normalised, or from tower features (B, W)."""
        if image.ndim == 2:
            return F.normalize(at_least_fp32(image), dim=-1)
        if self.image_tower is None:
            raise CornerstoneError(
                "Images were given, but this model has no image tower: it takes stored features (B, W)."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._aside):
            return F.normalize(at_least_fp32(self.image_tower(image)), dim=-1)

    def encode_text(self, ids_BT: Tensor, length_B: Tensor, corners: bool = False) -> Tensor:
        """(B, D) of CLS, or (B, 1 + m, D) with `corners`, L2-normalised. Ids hold no corner ids."""
        feature_BMD = self.text(ids_BT, length_B, corners=corners, buckets=self.buckets)
        return feature_BMD if corners else feature_BMD[:, 0]

    def described(self) -> dict[str, Any]:
        """What `rebuilt` needs besides the recipe's method: JSON."""
        return {"vocab_size": self.vocab_size, "image_width": self.image_width, "bert": self.text.bert.config.to_dict()}

    @staticmethod
    def rebuilt(method: Mapping[str, Any], described: Mapping[str, Any], image_tower: TimmTower | None) -> Lotlip:
        """The module of a saved model, its weights still to be loaded. `method` is the recipe's, as a mapping."""
        config = LotlipConfig(
            image=ImageTower(**method["image"]), text=CornerText(**method["text"]), loss=LotlipLoss(**method["loss"])
        )
        return Lotlip(config, **described, image_tower=image_tower)


def _field(batch: Any, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
