"""Tiny pairs and methods with a trained tower, CoCa unless another is named, made without files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.recipes.coca import CocaConfig, CocaLoss
from cornerstone.recipes.filip import FilipConfig, FilipLoss
from cornerstone.recipes.long_clip import LongClipConfig, LongClipLoss
from cornerstone.recipes.long_clip_tuned import LongClipTunedConfig
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.lotlip_rows import ROWS
from cornerstone.recipes.lotlip_t5 import LotlipT5Config
from cornerstone.recipes.method import implementation_of
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import BertText, ClipText, CornerText, ImageTower, T5Text

WORDS, SIDE, LIMIT = 40, 16, 12
TOWER = ImageTower("vit_base_patch16_224", False, False, SIDE, "none", width=24, layers=2, heads=2, patch=8)


def coca(wide: bool = False, **changes) -> CocaConfig:
    """A tower of two layers on 16 pixels in 4 patches, and halves of two layers and one.

    A `wide` one has weights of more than 100,000 numbers, below which ZeRO-3 shards nothing.
    """
    loss = CocaLoss(**{name: changes.pop(name) for name in list(changes) if name in CocaLoss.__dataclass_fields__})
    text = {"width": 160 if wide else 16, "layers": 2, "heads": 2, "token_limit": LIMIT, "pooling": "trailing"}
    text = ClipText(**(text | changes.pop("text", {})))
    return CocaConfig(image=TOWER, text=text, loss=loss, **{"decoder_layers": 1, "queries": 3, **changes})


def clip(wide: bool = False, **changes) -> CocaConfig:
    """CoCa without captioning, read at the end token."""
    return coca(wide, caption_weight=0.0, text={"pooling": "end"}, **changes)


def bert(wide: bool) -> BertText:
    return BertText(name="", width=160 if wide else 16, layers=2, heads=2, token_limit=LIMIT)


def filip(wide: bool = False, **changes) -> FilipConfig:
    """Patches and tokens compared in 10 dimensions."""
    return FilipConfig(image=TOWER, text=bert(wide), embedding=10, loss=FilipLoss(**changes))


def long_clip(wide: bool = False, **changes) -> LongClipConfig:
    """Two components of groups of five images."""
    loss = LongClipLoss(**{"components": 2, "pca_group": 5, **changes})
    return LongClipConfig(image=replace(TOWER, pooling="token"), text=bert(wide), loss=loss)


def long_clip_tuned(wide: bool = False, **changes) -> LongClipTunedConfig:
    """The same over CLIP's text transformer, both towers trained, the scale starting at its cap."""
    text = ClipText(width=160 if wide else 16, layers=2, heads=2, token_limit=LIMIT)
    loss = LongClipLoss(**{"components": 2, "pca_group": 5, "initial_scale": 100.0, **changes})
    return LongClipTunedConfig(replace(TOWER, pooling="token", projection=10), text, loss)


def lotlip_t5(wide: bool = False, **changes) -> LotlipT5Config:
    """LoTLIP with two corners over a T5."""
    width = 160 if wide else 16
    text = T5Text(width=width, layers=2, heads=2, token_limit=LIMIT)
    return LotlipT5Config(image=replace(TOWER, pooling="token"), text=text, loss=LotlipLoss(**changes))


def lotlip(row: str, wide: bool = False) -> Any:
    """A row of LoTLIP's tables, or LoTLIP itself (""), over the tower, locked unless the row trains it."""
    text = CornerText(**(vars(bert(wide)) | {"corner_tokens": 2}))
    method = LotlipConfig(image=replace(TOWER, pooling="token", locked=True), text=text)
    recipe = Recipe("tiny", method, PairData())
    return ROWS[row](recipe).method if row else method


OF_TABLES = {f"lotlip-{row}": partial(lotlip, row) for row in ROWS if row not in ("laclip", "longclip", "filip")}
"""LaCLIP is CLIP on other texts; the other two are among the methods below."""
KINDS = {
    "coca": coca,
    "clip": clip,
    "filip": filip,
    "long-clip": long_clip,
    "long-clip-tuned": long_clip_tuned,
    "lotlip-t5": lotlip_t5,
    "lotlip": partial(lotlip, ""),
    **OF_TABLES,
}


def method(seed: int = 0, kind: str = "coca", buckets: int = 1, **changes) -> Any:
    """A method with its tower."""
    made = KINDS[kind](**changes)
    tower = build_image_tower(made.image, seed=seed)
    inputs = Inputs(WORDS, tower.width, tower, length_buckets=buckets)
    return implementation_of(made).build(made, inputs, seed)


def some(number: int, seed: int = 0) -> PairBatch:
    """Random pairs. Of every six one has no raw caption and one is a masked place; the fifth is the first one's row again."""
    draw = torch.Generator().manual_seed(seed)
    place = torch.arange(number)
    lengths = torch.randint(3, 12, (2, number), generator=draw)
    lengths[0][place % 6 == 2] = 0
    ids = torch.randint(1, WORDS, (2, number, 16), generator=draw) * (torch.arange(16) < lengths[..., None])
    row = torch.where(place % 6 == 4, place - 4, place)
    image = torch.randint(256, (number, 3, SIDE, SIDE), generator=draw).to(torch.uint8)
    texts = ids[0], lengths[0], ids[1], lengths[1]
    return PairBatch(0, row, place % 6 != 5, (), torch.zeros(number), *texts, image)


def double(batch: PairBatch) -> PairBatch:
    """With pictures as float64, which makes the whole model compute in it."""
    return replace(batch, image=batch.image.double() / 128 - 1)
