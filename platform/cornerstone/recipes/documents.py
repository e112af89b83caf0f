"""Packed interleaved documents as a recipe's training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import NOT_HASHED
from cornerstone.recipes.data import DataConfig, check_crop_scale
from cornerstone.recipes.pairs import PairData

Form = Literal["mmc4", "obelics", "laion-random", "laion-random + mmc4"]


@dataclass(frozen=True)
class SceneDocuments:
    """Sizes and knobs of the built-in documents, made and packed on first use if no --train is given."""

    documents: int = 8_000
    validation: int = 1_000
    """Documents of the validation set."""
    probe_images: int = 2_000
    """Labelled images with which the frozen tower is probed."""
    redundancy: float = 0.5
    """Probability that a sentence after an image repeats a fact stated before it, so that the image is not needed for it."""
    context: float = 0.75
    """Probability that a sentence before an image states a fact of it."""
    mismatch: float = 0.0
    """Share of images that do not belong to their sentence, and have a similarity below the filter's 0.24."""
    seed: int = 0
    """The world's seed; the recipe's seed draws from it, and never changes it."""
    cells: int = 3
    """Cells per side of an image: 3 or 4."""
    token_budget: int = 256
    """Tokens of a packed sequence."""
    image_tokens: int = 16
    """Patches of an image."""
    form: Form = "mmc4"
    """As what the training documents are packed. `mmc4`: whole documents, each image before or after its matched sentence.
    `obelics`: documents one after another, cut where a sequence is full. `laion-random`: only each image with its matched
    sentence, as a document of its own. `laion-random + mmc4`: both, one after the other an epoch. Validation is `mmc4`."""

    def __post_init__(self) -> None:
        if self.documents < 1 or self.validation < 2:
            raise CornerstoneError(
                f"{self.documents} documents and {self.validation} for validation: expected 1 and 2 or more "
                "(--recipe.data.scenes.documents, --recipe.data.scenes.validation)."
            )
        for name in ("redundancy", "context", "mismatch"):
            if not 0 <= getattr(self, name) <= 1:
                raise CornerstoneError(
                    f"{name} {getattr(self, name)} of built-in documents: expected 0 to 1 (--recipe.data.scenes.{name})."
                )


@dataclass(frozen=True)
class DocumentData(DataConfig):
    """Sequences that `cornerstone data pack` made of documents; `train` names the packing, or a mixture of packings.

    How documents become sequences (token budget, rule, images) was decided when they were packed and is part of the
    packing's content hash.
    """

    kind: ClassVar[str] = "documents"

    image_size: int = 224
    """Side of the square that an image becomes, in pixels."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that the random crop keeps; `1 1` for the fixed centre crop."""
    scenes: SceneDocuments = field(default_factory=SceneDocuments, metadata=NOT_HASHED)
    pairs: str = field(default="", metadata=NOT_HASHED)
    """The same documents as pairs (`cornerstone data derive mmc4-pair`), for the points of a comparison that are trained on
    pairs: a folder or URI. Empty for the built-in documents'."""
    images_per_sequence: float = field(default=4.4, metadata=NOT_HASHED)
    """Images of a packed sequence on average, as `cornerstone data pack` counts them: so many pairs are as many images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop_scale(self.crop_scale)
        if self.images_per_sequence <= 0:
            raise CornerstoneError(
                f"{self.images_per_sequence} images per sequence: expected above 0 (--recipe.data.images-per-sequence)."
            )

    def as_pairs(self) -> DocumentPairs:
        """The same documents as pairs. Raises CornerstoneError for a user's own documents whose pairs are not named."""
        if self.train and not self.pairs:
            raise CornerstoneError(
                f"The documents of {self.train} are not there as pairs: make them with `cornerstone data derive mmc4-pair`, "
                f"and name the folder with --recipe.data.pairs DIR."
            )
        return DocumentPairs(
            train=self.pairs,
            tokenizer=self.tokenizer,
            limit_rows=self.limit_rows and round(self.limit_rows * self.images_per_sequence),
            bad_row_limit=self.bad_row_limit,
            sub_captions=0,
            crop_scale=self.crop_scale,
            documents=self.scenes,
        )


@dataclass(frozen=True)
class DocumentPairs(PairData):
    """Pairs of an image and its matched sentence: MMC4-Pair (LCL, section 4.1). With --train they are pairs as any others."""

    documents: SceneDocuments = field(default_factory=SceneDocuments, metadata=NOT_HASHED)
    """The built-in documents that the pairs are derived from if no --train is given, in place of `scenes`."""
