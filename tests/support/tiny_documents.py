"""Tiny packed sequences and the methods that read them, LCL unless another is named, made without files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.documents.config import SpecialIds
from cornerstone.inference.documents import sequence_batch
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.recipes.beit3 import Beit3Config
from cornerstone.recipes.emu import EmuConfig
from cornerstone.recipes.flamingo import FlamingoConfig
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.lcl import LclConfig, LclLoss
from cornerstone.recipes.method import implementation_of
from cornerstone.recipes.towers import ImageTower

IDS = SpecialIds(bos=1, eos=2, pad=0, image=40, boi=41, eoi=42)
WORDS, PATCHES, SIDE = 40, 4, 16
IMAGE = "image"
TOWER = ImageTower("vit_base_patch16_224", False, False, SIDE, "none", width=24, layers=2, heads=2, patch=8)


def config(wide: bool = False, **changes) -> LclConfig:
    """A tower of two layers on 16 pixels in 4 patches, and a decoder of two layers.

    A `wide` one has weights of more than 100,000 numbers, below which ZeRO-3 shards nothing.
    """
    loss = LclLoss(**{name: changes.pop(name) for name in list(changes) if name in LclLoss.__dataclass_fields__})
    language = _language(wide, **changes.pop("language", {}))
    return LclConfig(image=TOWER, language=language, embedding=32, pooling_heads=4, loss=loss, **changes)


def flamingo(wide: bool = False, **changes) -> FlamingoConfig:
    sizes = {"latents": 3, "resampler_layers": 1, "heads": 2, "head_width": 8, **changes}
    return FlamingoConfig(TOWER, _language(wide), **sizes)


def emu(wide: bool = False, **changes) -> EmuConfig:
    sizes = {"tokens": PATCHES, "former_layers": 2, "former_width": 16, "former_heads": 2, **changes}
    return EmuConfig(TOWER, _language(wide), **sizes)


def beit3(wide: bool = False, **changes) -> Beit3Config:
    tower = replace(TOWER, width=192 if wide else TOWER.width)
    return Beit3Config(tower, **{"positions": 64, "min_block": 1, **changes})


KINDS = {"lcl": config, "flamingo": flamingo, "emu": emu, "beit3": beit3}
"""Every method on documents, by its kind."""
BOTH_WAYS = ("beit3",)
"""Those of which a word sees what follows it."""


def _language(wide: bool, **changes) -> CausalText:
    return CausalText(width=160 if wide else 32, layers=2, heads=2, positions=64, **changes)


def method(seed: int = 0, kind: str = "lcl", **changes) -> Any:
    """A method with its gates, if it has some, half open: at 0 its images would matter to nothing."""
    made = KINDS[kind](**changes)
    tower = build_image_tower(made.image, seed=seed)
    model = implementation_of(made).build(made, Inputs(WORDS, tower.width, tower, special_ids=IDS), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    return model


def laid(*parts: int | str) -> list[int]:
    """Token ids of a document: words by number, `IMAGE` an image with its edges; <bos> and <eos> are added."""
    ids = [IDS.bos]
    for part in parts:
        ids += [IDS.boi, *[IDS.image] * PATCHES, IDS.eoi] if part == IMAGE else [int(part)]
    return [*ids, IDS.eos]


def documents(listed: list[list[int]], length: int = 40, seed: int = 0) -> SequenceBatch:
    """One document a sequence, with random pictures."""
    ids = torch.tensor([one + [IDS.pad] * (length - len(one)) for one in listed])
    images = int((ids == IDS.boi).sum())
    pictures = torch.randint(256, (images, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return sequence_batch(pictures.to(torch.uint8), ids, IDS)


def some(number: int, length: int = 40, seed: int = 0, images: Sequence[int] = (0, 1, 2, 3)) -> SequenceBatch:
    """Documents of random words, with so many images each, in turn."""
    draw = torch.Generator().manual_seed(seed)

    def words(most: int) -> list[int]:
        count = int(torch.randint(most + 1, (1,), generator=draw))
        return torch.randint(3, WORDS, (count,), generator=draw).tolist()

    listed = []
    for i in range(number):
        parts: list[int | str] = words(4)
        for _ in range(images[i % len(images)]):
            parts += [IMAGE, *words(4)]
        listed.append(laid(*parts))
    return documents(listed, length, seed)


def packed(one: SequenceBatch, other: SequenceBatch) -> SequenceBatch:
    """Two batches of one sequence each as one sequence that holds both documents, the second behind the first."""
    first, second = (int((batch.document[0] >= 0).sum()) for batch in (one, other))
    joined = {
        name: torch.cat([getattr(one, name)[:, :first], getattr(other, name)[:, :second]], dim=1)
        for name in ("token_ids", "document", "target")
    }
    joined["document"][:, first:] = 1
    of_images = ("image", "image_row", "image_at", "text_before", "image_valid")
    joined |= {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in of_images}
    joined["image_at"][len(one.image) :] += first
    return replace(one, **joined)


def double(batch: SequenceBatch) -> SequenceBatch:
    """With pictures as float64, which makes the whole model compute in it."""
    floats = {f.name: getattr(batch, f.name) for f in fields(batch)}["image"].double() / 128 - 1
    return replace(batch, image=floats)
