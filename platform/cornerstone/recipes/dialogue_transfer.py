"""Transfer to dialogue: a trained image tower, an MLP, and a causal language model that answers questions about the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import NOT_HASHED
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import ImageTower

Stage = Literal["projector", "instructions"]


@dataclass(frozen=True)
class DialogueTransferConfig(MethodConfig):
    """LLaVA-1.5 on an image tower, as LCL transfers its towers to dialogue (appendix A.2, Table 8)."""

    kind: ClassVar[str] = "dialogue-transfer"
    implementation: ClassVar[str] = "cornerstone.models.dialogue_transfer:DialogueTransfer"
    data_kinds: ClassVar[tuple[str, ...]] = ("conversations",)

    stage: Stage = "instructions"
    """What is trained: the projector alone, or all but a frozen tower. The second stage begins with the first one's model."""
    projector: str = field(default="", metadata=NOT_HASHED)
    """The first stage's model, whose projector the second one begins with: a run's folder `model`; empty for a new one."""
    language: CausalText = field(default_factory=CausalText)
    """A new language model; its positions are for a conversation and the patches of its image."""
    language_model: str = field(default="", metadata=NOT_HASHED)
    """A pretrained causal language model by its Hugging Face name or folder, in place of `language`."""
    token_limit: int = 1_792
    """Most tokens of a conversation, its image not counted: with the 256 patches of ViT-L/14 they are LLaVA-1.5's 2,048."""
    patches: Literal["second-last", "last"] = "second-last"
    """The layer whose patches are read; second-last as in LLaVA-1.5, before the last norm."""
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

        if self.stage == "projector" and not self.frozen:
            raise CornerstoneError(
                "The first stage trains the projector alone: set --recipe.method.frozen, or --recipe.method.stage instructions."
            )

    @property
    def image_tower(self) -> ImageTower:
        """The image tower, locked or not."""
        return replace(self.image, locked=self.frozen)

    @property
    def text_format(self) -> tuple[str, int]:
        """What begins and ends a conversation; `cornerstone.data.conversations.chat` makes the rest."""
        return "plain", self.token_limit

    @property
    def weights(self) -> dict[str, str]:
        """The projector, and the language model."""
        return {name: value for name in ("projector", "language_model") if (value := getattr(self, name))}
