"""Transfer to captioning: a trained image tower, an MLP, and a causal language model that reads its patches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.towers import ImageTower


@dataclass(frozen=True)
class CaptionTransferConfig(MethodConfig):
    """LCL's transfer to captioning (appendix). Its language model is pretrained; `language` begins at random weights, and
    `cornerstone transfer --language-model` brings a pretrained one in its place."""

    kind: ClassVar[str] = "caption-transfer"
    implementation: ClassVar[str] = "cornerstone.models.caption_transfer:CaptionTransfer"
    judged_by: ClassVar[str] = "caption"

    language: CausalText = field(default_factory=CausalText)
    frozen: bool = True
    """Leave the tower as it is; False trains it too. The language model is trained either way."""
    tower_lr_factor: float = 1.0
    """Factor on the learning rate of a trained tower. The appendix gives one rate for this task."""
    language_lr_factor: float = 1.0
    """Factor on the learning rate of a language model that was brought. The appendix gives one rate for this task."""
    image: ImageTower = field(default_factory=lambda: ImageTower(pooling="none"))
    """The tower; `frozen` says whether it is locked."""
    token_limit: int = 77
    """Most tokens of a caption; the language model has positions for these and for the patches."""

    def __post_init__(self) -> None:
        for part, factor in (("tower", self.tower_lr_factor), ("language", self.language_lr_factor)):
            if factor <= 0:
                raise CornerstoneError(
                    f"A factor of {factor} on the learning rate of the {part}: expected above 0 (--{part}-lr-factor)."
                )
        if self.token_limit < 3:
            raise CornerstoneError(
                f"A token limit of {self.token_limit} leaves no room for what begins a caption, a word and what ends it: set "
                f"--recipe.method.token-limit to 3 or more."
            )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower, locked or not."""
        return replace(self.image, locked=self.frozen)

    @property
    def text_format(self) -> tuple[str, int]:
        """Captions as whole texts."""
        return "plain", self.token_limit

    def check(self, data: DataConfig) -> None:
        """The language model reads patches, which are not stored."""
        super().check(data)
        if isinstance(data, PairData) and data.features == "stored":
            raise CornerstoneError(
                "Stored features are pooled, and this method reads the patches: set --recipe.data.features online."
            )
