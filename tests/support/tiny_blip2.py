"""A tiny BLIP-2 and a batch of pairs for it, made without files."""

from __future__ import annotations

from dataclasses import replace

import torch

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.models.blip2 import Blip2
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.recipes import Blip2Config, Blip2Loss, ImageTower, QFormerText

WORDS, SIDE, ROWS = 30, 16, 7


def method(seed: int = 0, locked: bool = False, wide: bool = False, **loss) -> Blip2:
    """A tower of two layers on 16 pixels in 4 patches, and a Q-Former of three layers with 3 queries.

    A `wide` one has weights of more than 100,000 numbers, below which ZeRO-3 shards nothing.
    """
    image = ImageTower("vit_base_patch16_224", False, locked, SIDE, "none", width=24, layers=2, heads=2, patch=8)
    text = QFormerText("", width=160 if wide else 32, layers=3, heads=2, token_limit=16, queries=3, embedding=16)
    config = Blip2Config(image, text, Blip2Loss(**loss))
    tower = build_image_tower(image, seed=seed)
    return Blip2.build(config, Inputs(WORDS, tower.width, tower), seed)


def batch() -> PairBatch:
    """Seven pairs: rows 0 and 4 are the same, 1 and 2 have the same text, 3 has none, 5 cannot be used."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 4, 4, 0, 5, 8, 12])
    ids = torch.randint(3, WORDS, (ROWS, 12), generator=draw)
    ids[2], ids[4], ids[:, 0] = ids[1], ids[0], 1
    ids = ids * (torch.arange(12) < lengths[:, None])
    row, epoch = torch.tensor([5, 6, 7, 8, 5, 9, 3]), torch.tensor([0, 0, 0, 0, 1, 0, 0])
    valid = torch.arange(ROWS) != 5
    none = torch.zeros(ROWS, 1, dtype=torch.long)
    image = torch.randint(256, (ROWS, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    return PairBatch(0, row, valid, (), epoch, ids, lengths, none, none[:, 0], image)


def double(pairs: PairBatch) -> PairBatch:
    """With pictures as float64, which makes the whole model compute in it; texts are padded to the longest of them alone."""
    longest = max(1, int(pairs.raw_length.max()))
    return replace(pairs, image=pairs.image.double() / 128 - 1, raw_ids=pairs.raw_ids[:, :longest])
