"""What a recipe says of its two towers."""

from __future__ import annotations

from dataclasses import dataclass

from cornerstone.errors import CornerstoneError


@dataclass(frozen=True)
class ImageTower:
    """A timm vision transformer whose class token is the image's feature.

    LoTLIP locks it (LiT): only the text tower and the temperature learn (paper, 7.2.3).
    """

    name: str = "vit_base_patch16_224.augreg_in21k"
    """A timm model name, or a folder in timm's own layout (config.json and model.safetensors)."""
    pretrained: bool = True
    """Load the pretrained weights; a folder's weights are always loaded."""
    locked: bool = True
    """Keep it as it is; False trains it too."""
    size: int = 224
    """Side of the square that it sees, in pixels."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise CornerstoneError(
                f"An image of {self.size} pixels is too small: set --recipe.method.image.size to 32."
            )


@dataclass(frozen=True)
class TextTower:
    """A BERT with corner tokens (LoTLIP, section 4.3)."""

    name: str = "bert-base-uncased"
    """A Hugging Face BERT by name or folder, whose weights are loaded; empty for a new one of the sizes below."""
    width: int = 768
    layers: int = 12
    heads: int = 12
    corner_tokens: int = 2
    """Learnable tokens after [CLS], each with a loss of its own; 0 is plain LiT with long texts."""
    corner_mask: bool = True
    """Corners and [CLS] neglect each other, text reads no corner (the paper's A(q, k)); False: ordinary tokens."""
    token_limit: int = 128
    """Most tokens of a text, [CLS], corners and [SEP]s counted, in training and evaluation."""
    dropout: float = 0.0
    """0 in every preset: with dropout the numbers depend on how many workers share a batch."""

    def __post_init__(self) -> None:
        if self.corner_tokens < 0:
            raise CornerstoneError(
                f"{self.corner_tokens} corner tokens: expected 0 or more (--recipe.method.text.corner-tokens)."
            )
        if self.token_limit < self.corner_tokens + 3:
            raise CornerstoneError(
                f"A token limit of {self.token_limit} leaves no room for [CLS], {self.corner_tokens} corners, a word and "
                f"[SEP]: raise --recipe.method.text.token-limit to {self.corner_tokens + 3} or more."
            )
        if self.width % self.heads:
            raise CornerstoneError(
                f"Width {self.width} is not a multiple of {self.heads} heads (--recipe.method.text.heads)."
            )
        if not 0 <= self.dropout < 1:
            raise CornerstoneError(f"Dropout {self.dropout} is not in [0, 1) (--recipe.method.text.dropout).")
