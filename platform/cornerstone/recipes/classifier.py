"""A classifier on an image tower's patches: what LCL's transfer to ImageNet trains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower


@dataclass(frozen=True)
class ClassifierConfig(MethodConfig):
    """Attention pooling, LayerNorm and a linear layer (LCL, appendix)."""

    kind: ClassVar[str] = "classifier"
    implementation: ClassVar[str] = "cornerstone.models.classifier:Classifier"
    data_kinds: ClassVar[tuple[str, ...]] = ("labelled",)
    judged_by: ClassVar[str] = "classifier"

    classes: int = 1000
    """In a run: as many as the training data has."""
    pooling_heads: int = 0
    """Heads of the attention pooling; 0: one for every 64 places of the tower's width."""
    frozen: bool = True
    """Leave the tower as it is; False trains it too."""
    tower_lr_factor: float = 1.0
    """Factor on the learning rate of a trained tower. The appendix gives one rate for this task."""
    image: ImageTower = field(default_factory=lambda: ImageTower(pooling="none"))
    """The tower; `frozen` says whether it is locked."""

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise CornerstoneError(f"{self.classes} classes: a classifier needs 2 or more.")
        if self.tower_lr_factor <= 0:
            raise CornerstoneError(
                f"A factor of {self.tower_lr_factor} on the tower's learning rate: expected above 0 (--tower-lr-factor), or "
                f"leave out --full to keep the tower frozen."
            )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower, locked or not."""
        return replace(self.image, locked=self.frozen)
