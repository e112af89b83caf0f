"""The BLIP-2-like baseline's part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.dual_encoder import DualEncoderConfig, needs_long_captions
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.towers import BertText, ImageTower, from_scratch, needs_patches_alone


@dataclass(frozen=True)
class QFormerText(BertText):
    """A BERT with queries that look at an image (BLIP-2, section 3.1). It begins with the weights of the named BERT."""

    implementation: ClassVar[str] = "cornerstone.models.qformer:QFormer"

    queries: int = 32
    """Learned queries of an image."""
    embedding: int = 256
    """Width of the features in which images and texts are compared."""
    cross_every: int = 2
    """The queries attend to the image in layer 0 and every so many layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("queries", "embedding", "cross_every"):
            if getattr(self, name) < 1:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of the Q-Former: expected 1 or more "
                    f"(--recipe.method.text.{name.replace('_', '-')})."
                )


@dataclass(frozen=True)
class Blip2Loss:
    """Contrastive, captioning and matching loss, summed 1 : 1 : 1."""

    captions: Literal["raw", "long"] = "raw"
    """Which caption of a pair is its text."""
    label_smoothing: float = 0.1
    """Of the contrastive and the captioning loss."""
    initial_scale: float = 1 / 0.07
    """exp of the temperature parameter at the start."""
    max_scale: float = 100.0
    gather_gradient: bool = True
    """Whether other workers' (and the batch's other) features learn from a row's contrastive loss. False as in the released
    code: image features learn from image → text alone, text features from text → image."""
    identical_texts: Literal["exclude", "negative"] = "exclude"
    """Whether an image or text whose own text is identical can be drawn as a hard negative. The released code does not look
    at the texts (`negative`)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise CornerstoneError(
                f"Label smoothing {self.label_smoothing} is not in [0, 1) (--recipe.method.loss.label-smoothing)."
            )


@dataclass(frozen=True)
class Blip2Config(DualEncoderConfig):
    """BLIP-2's first stage: queries that are trained to compare, match and describe images (Li et al. 2023)."""

    kind: ClassVar[str] = "blip2"
    implementation: ClassVar[str] = "cornerstone.models.blip2:Blip2"

    image: ImageTower = field(default_factory=from_scratch)
    text: QFormerText = field(default_factory=QFormerText)
    loss: Blip2Loss = field(default_factory=Blip2Loss)

    def __post_init__(self) -> None:
        needs_patches_alone(self.image, "BLIP-2")

    def check(self, data: DataConfig) -> None:
        """The queries read patches, which no feature store holds."""
        super().check(data)
        if isinstance(data, PairData) and data.features == "stored":
            raise CornerstoneError(
                "Stored features are pooled, and BLIP-2 reads the patches: set --recipe.data.features online."
            )
        if self.loss.captions == "long":
            needs_long_captions(data, "--recipe.method.loss.captions raw")
