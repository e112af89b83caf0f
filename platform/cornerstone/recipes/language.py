"""What a recipe says of a causal language model that is trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cornerstone.errors import CornerstoneError


@dataclass(frozen=True)
class CausalText:
    """A decoder of OPT's architecture, with OPT-125M's sizes by default and random weights (LCL, section 4.1)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    positions: int = 2048
    """Learned positions: the most tokens of a sequence, or of a document if positions restart."""
    activation: Literal["relu", "gelu"] = "relu"
    """`relu` is OPT's, `gelu` that of the authors' code, whose transformer is CLIP's otherwise the same one."""
    restart_positions: bool = True
    """Each document of a packed sequence begins at position 0; False counts through the sequence."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise CornerstoneError(
                f"Width {self.width} is not a multiple of {self.heads} heads (--recipe.method.language.heads)."
            )
        if min(self.width, self.layers, self.positions) < 1:
            raise CornerstoneError(
                f"A language model of width {self.width}, {self.layers} layers and {self.positions} positions: expected 1 or "
                f"more of each (--recipe.method.language.width, .layers, .positions)."
            )
