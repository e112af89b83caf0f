"""`cornerstone convert`: released checkpoints as model folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cornerstone.commands.terminal import say


@dataclass(frozen=True)
class ConvertCommand:
    """Convert weights that a paper's authors released to a folder for `cornerstone.load` and for transfer runs."""

    format: tyro.conf.Positional[Literal["lcl"]]
    """Whose names the weights have."""
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A .pt, .bin or .safetensors file."""
    out: str
    """A new folder or URI."""
    tokenizer: str = "openai/clip-vit-base-patch16"
    """The tokenizer that the checkpoint was trained with, by name or folder."""
    visual_heads: int = 0
    """Attention heads of the image tower; 0: as the file says, or one for every 64 places of its width."""
    text_heads: int = 0
    """The same of the language model."""
    pooling_heads: int = 0
    """The same of the attention pooling."""

    def run(self) -> None:
        """Convert, and say what was found."""
        from cornerstone.data.storage import Location
        from cornerstone.errors import CornerstoneError
        from cornerstone.inference.convert import convert_lcl
        from cornerstone.inference.lcl_checkpoint import Heads
        from cornerstone.inference.saved_model import CONFIG
        from cornerstone.runtime.tokenizer import load_tokenizer

        if Location.of(self.out).join(CONFIG).exists():
            raise CornerstoneError(
                f"{self.out} already holds a model: name another --out, or delete that folder first."
            )
        heads = Heads(self.visual_heads, self.text_heads, self.pooling_heads)
        given = heads if heads != Heads() else None
        convert_lcl(self.source, self.out, load_tokenizer(self.tokenizer), given, say)
