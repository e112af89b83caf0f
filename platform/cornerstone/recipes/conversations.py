"""Conversations about images as a recipe's training data: what a transfer to dialogue is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import NOT_HASHED
from cornerstone.recipes.data import DataConfig, check_crop_scale


@dataclass(frozen=True)
class SceneConversations:
    """Sizes of the built-in conversations, made on first use if no --train is given."""

    conversations: int = 4_000
    test: int = 300
    """Conversations whose questions are asked, each alone."""
    seed: int = 0
    """The world's seed; the recipe's seed draws from it, and never changes it."""
    cells: int = 3
    """Cells per side of an image: 3 or 4."""

    def __post_init__(self) -> None:
        if min(self.conversations, self.test) < 2:
            raise CornerstoneError(
                f"{self.conversations} conversations and {self.test} to test on: expected 2 or more of each "
                f"(--recipe.data.scenes.conversations, --recipe.data.scenes.test)."
            )


@dataclass(frozen=True)
class ConversationData(DataConfig):
    """Conversations (`cornerstone data import llava`), or pairs, whose captions are learnt as answers to no question."""

    kind: ClassVar[str] = "conversations"

    style: Literal["vicuna", "plain"] = "vicuna"
    """`vicuna`: questions are read and answers learnt. `plain`: the caption, or first answer, of an image alone is learnt
    (LLaVA-1.5's first stage). See `cornerstone.data.conversations.chat`."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of the area that the random crop keeps; `1 1` for the fixed centre crop."""
    scenes: SceneConversations = field(default_factory=SceneConversations, metadata=NOT_HASHED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop_scale(self.crop_scale)
