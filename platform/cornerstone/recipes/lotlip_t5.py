"""LoTLIP over a T5 instead of a BERT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.towers import T5Text


@dataclass(frozen=True)
class LotlipT5Config(LotlipConfig):
    """LoTLIP with a T5 encoder as its text tower; the method and its loss are the same."""

    kind: ClassVar[str] = "lotlip-t5"
    implementation: ClassVar[str] = LotlipConfig.implementation

    text: T5Text = field(default_factory=T5Text)
