"""Hashes that stand in records for ever. A change here must be meant, and typed into golden_hashes.json by hand."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

from cornerstone.hashing import as_json, declared_default, hashed_fields
from cornerstone.recipes import (
    PRESETS,
    ConversationData,
    DocumentData,
    DocumentPairs,
    LabelledData,
    LotlipConfig,
    PairData,
    Recipe,
    preset,
)
from cornerstone.recipes.beit3 import Beit3Config
from cornerstone.recipes.blip2 import Blip2Config, QFormerText
from cornerstone.recipes.caption_transfer import CaptionTransferConfig
from cornerstone.recipes.classifier import ClassifierConfig
from cornerstone.recipes.coca import CocaConfig
from cornerstone.recipes.dialogue_transfer import DialogueTransferConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig
from cornerstone.recipes.emu import EmuConfig
from cornerstone.recipes.filip import FilipConfig
from cornerstone.recipes.flamingo import FlamingoConfig
from cornerstone.recipes.lcl import LclConfig
from cornerstone.recipes.long_clip import LongClipConfig
from cornerstone.recipes.long_clip_tuned import LongClipTunedConfig
from cornerstone.recipes.lotlip import with_sub_captions
from cornerstone.recipes.lotlip_t5 import LotlipT5Config
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.retrieval_transfer import RetrievalTransferConfig
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.recipes.towers import BertText, ClipText, CornerText, T5Text

GOLDEN = json.loads(Path(__file__).with_name("golden_hashes.json").read_text())
CONTENT = {"data": "0" * 16, "tokenizer": "1" * 16, "image": "2" * 16}
SCENES, PAPER = preset("scenes"), preset("lotlip-3m")
VARIANTS = {
    "scenes, 0 corners": SCENES.with_text(corner_tokens=0),
    "scenes, 4 corners": SCENES.with_text(corner_tokens=4),
    "scenes, no mask": SCENES.with_text(corner_mask=False),
    "scenes, long loss × 3": SCENES.with_loss(long_weight=3.0),
    "scenes, balance equal": SCENES.with_loss(balance="equal"),
    "scenes, raw alone": with_sub_captions(SCENES, 0),
    "scenes, 1 sub-caption": with_sub_captions(SCENES, 1),
    "scenes, 16 tokens": SCENES.with_text(token_limit=16),
    "scenes, seed 7": SCENES.with_seed(7),
    "scenes, 220 steps": SCENES.with_steps(220),
    "3m, online": PAPER.with_data(features="online"),
    "3m, fp32": replace(PAPER, precision="fp32"),
    "3m, one captioner": PAPER.with_data(captioners=("sharegpt4v",)),
    "3m, first million": PAPER.with_data(limit_rows=1_000_000),
    "3m, clip norm 0": PAPER.with_optimization(clip_norm=0.0),
    "3m, trained tower": PAPER.with_data(features="online").with_image(locked=False),
}


BUILT_IN = (
    LotlipConfig,
    SiglipConfig,
    CocaConfig,
    FilipConfig,
    LongClipConfig,
    LongClipTunedConfig,
    LotlipT5Config,
    LclConfig,
    FlamingoConfig,
    EmuConfig,
    Blip2Config,
    Beit3Config,
    ClassifierConfig,
    CaptionTransferConfig,
    DialogueTransferConfig,
    RetrievalTransferConfig,
    PairData,
    DocumentData,
    LabelledData,
    ConversationData,
    DocumentPairs,
    BertText,
    CornerText,
    T5Text,
    ClipText,
    QFormerText,
)
"""Every configuration that a recipe may hold: their defaults stand behind hashes."""


def defaults(of: type) -> dict[str, object]:
    """The declared default of every hashed field, nested classes by their fields; required fields are left out."""
    found: dict[str, object] = {}
    for field in fields(of):
        value = declared_default(field)
        if field.metadata.get("hashed", True):
            found[field.name] = (
                defaults(type(value))
                if is_dataclass(value)
                else as_json(value)
                if field.name != "method"
                else "required"
            )
    return found


def test_the_hashes_of_presets_and_variants_are_those_of_the_records():
    recipes = {name: preset(name) for name in PRESETS} | VARIANTS
    assert {name: recipe.hash(CONTENT) for name, recipe in recipes.items()} == GOLDEN["hashes"]
    assert {name: recipe.hash({}) for name, recipe in recipes.items()} == GOLDEN["hashes without content"]


def test_a_default_stands_behind_hashes_and_does_not_change():
    """A field at its default is left out of the hash: another default would give old hashes another meaning."""
    found = {
        "Recipe": defaults(Recipe),
        **{c.__name__: defaults(c) for c in BUILT_IN},
    }
    found["Recipe"].pop("data")
    assert found == GOLDEN["defaults"]


def test_every_method_has_its_defaults_in_the_records():
    methods = [c for c in every_subclass(MethodConfig) if c.__module__.startswith("cornerstone.")]
    assert {c for c in methods if c is not DualEncoderConfig} <= set(BUILT_IN)


def every_subclass(of: type) -> list[type]:
    return [found for one in of.__subclasses__() for found in (one, *every_subclass(one))]


def test_a_subclass_at_its_defaults_is_another_experiment():
    """CornerText reserves two places of the token limit: its rows and positions are others than BertText's."""
    siglip = preset("scenes-siglip")
    text = siglip.method.text
    corners = CornerText(text.name, text.width, text.layers, text.heads, text.token_limit, text.dropout)
    assert siglip.with_method(text=corners).hash(CONTENT) != siglip.hash(CONTENT)


def test_pairs_of_documents_are_pairs():
    """Whether the built-in documents or a user's: what counts is the content of the data."""
    named = replace(preset("scenes-coca"), data=PairData(train="x", sub_captions=0, crop_scale=(1.0, 1.0)))
    assert named.hash(CONTENT) == preset("scenes-coca").hash(CONTENT)


def test_data_are_compared_with_the_defaults_of_their_own_class():
    assert hashed_fields(DocumentData(image_size=300), PairData(crop_scale=(0.5, 1.0))) == {
        "kind": "documents",
        "image_size": 300,
    }


def test_a_new_field_with_a_default_changes_no_hash():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Wider(PairData):
        novelty: int = 3

    narrow = replace(SCENES, data=PairData(sub_captions=2))
    wide = replace(SCENES, data=Wider(sub_captions=2))
    assert wide.hash(CONTENT) == narrow.hash(CONTENT)
    assert replace(SCENES, data=Wider(sub_captions=2, novelty=4)).hash(CONTENT) != narrow.hash(CONTENT)
