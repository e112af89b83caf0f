"""Transfer to dialogue: a trained image tower, an MLP, and a causal language model that answers questions about the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower

Stage = Literal["projector", "instructions"]


@dataclass(frozen=True)
class DialogueTransferConfig(MethodConfig):
    """LLaVA-1.5 on an image tower, as LCL transfers its towers to dialogue (appendix A.2, Table 8)."""

    kind: ClassVar[str] = "dialogue-transfer"
    implementation: ClassVar[str] = "cornerstone.models.dialogue_transfer:DialogueTransfer"
    data_kinds: ClassVar[tuple[str, ...]] = ()  # `cornerstone transfer` trains it, not `cornerstone train`

    frozen: bool = True
    """Leave the tower as it is; False trains it too, in the second stage."""
    tower_lr_factor: float = 0.1
    """Factor on the learning rate of a trained tower: 2e-6 beside 2e-5."""
    image: ImageTower = field(default_factory=lambda: ImageTower(pooling="none"))
    """The tower; `frozen` says whether it is locked."""

    def __post_init__(self) -> None:
        if self.tower_lr_factor <= 0:
            raise CornerstoneError(
                f"A factor of {self.tower_lr_factor} on the tower's learning rate: expected above 0 (--tower-lr-factor)."
            )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower, locked or not."""
        return replace(self.image, locked=self.frozen)
