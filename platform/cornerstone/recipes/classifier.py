"""A classifier on an image tower's patches: what LCL's transfer to ImageNet trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.method import MethodConfig


@dataclass(frozen=True)
class ClassifierConfig(MethodConfig):
    """Attention pooling, LayerNorm and a linear layer (LCL, appendix)."""

    kind: ClassVar[str] = "classifier"
    implementation: ClassVar[str] = "cornerstone.models.classifier:Classifier"
    data_kinds: ClassVar[tuple[str, ...]] = ("labelled",)

    classes: int = 1000
    pooling_heads: int = 0
    """Heads of the attention pooling; 0: one for every 64 places of the tower's width."""
    frozen: bool = True
    """Leave the tower as it is; False trains it too."""
    tower_lr_factor: float = 1.0
    """Factor on the learning rate of a trained tower. The appendix gives one rate for this task."""

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise CornerstoneError(f"{self.classes} classes: a classifier needs 2 or more.")
        if self.tower_lr_factor <= 0:
            raise CornerstoneError(
                f"A factor of {self.tower_lr_factor} on the tower's learning rate: expected above 0 (--tower-lr-factor), or "
                f"leave out --full to keep the tower frozen."
            )
