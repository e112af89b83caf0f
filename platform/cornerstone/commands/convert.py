"""`cornerstone convert`: released checkpoints as model folders."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from cornerstone.commands.terminal import say

OPTIONS = {
    **dict.fromkeys(("image_tower", "token_limit"), ("lotlip",)),
    **dict.fromkeys(("stretch", "half"), ("longclip",)),
    **dict.fromkeys(("visual_heads", "pooling_heads"), ("lcl",)),
    "text_heads": ("lotlip", "lcl"),
}
"""The formats that an option is for; all that are not named here are for every one."""


@dataclass(frozen=True)
class ConvertCommand:
    """Convert weights that a paper's authors released to a folder that `cornerstone.load` opens.

    LoTLIP and LCL become models of this project, also for transfer runs; Long-CLIP a CLIP in the layout of transformers."""

    format: tyro.conf.Positional[Literal["lotlip", "lcl", "longclip"]]
    """Whose names the weights have."""
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A .pt, .bin or .safetensors file."""
    out: str
    """A new folder or URI."""
    tokenizer: str = ""
    """The tokenizer that the checkpoint was trained with, by name or folder; by default bert-base-uncased for lotlip, CLIP's
    for the others."""
    image_tower: str = "vit_base_patch16_224.augreg_in21k"
    """Of lotlip: the timm name of its image tower (vit_base_patch32_224.augreg_in21k for B/32)."""
    token_limit: int = 128
    """Of lotlip: most tokens of a text."""
    stretch: bool = False
    """Of longclip: SRC is CLIP with 77 positions; stretch them to 248, as Long-CLIP's training starts."""
    half: bool = False
    """Of longclip: round linear layers to fp16, as the authors' loader does."""
    visual_heads: int = 0
    """Of lcl: attention heads of the image tower; 0: as the file says, or one for every 64 places of its width."""
    text_heads: int = 0
    """The same of the language model."""
    pooling_heads: int = 0
    """The same of the attention pooling."""

    def run(self) -> None:
        """Convert, and say what was found."""
        from cornerstone.data.storage import Location
        from cornerstone.errors import CornerstoneError
        from cornerstone.inference.convert import convert_lcl, convert_long_clip
        from cornerstone.inference.lcl_checkpoint import Heads
        from cornerstone.inference.released.lotlip import convert_lotlip
        from cornerstone.inference.saved_model import CONFIG
        from cornerstone.runtime.tokenizer import CLIP, DEFAULT, load_tokenizer

        if Location.of(self.out).join(CONFIG).exists():
            raise CornerstoneError(
                f"{self.out} already holds a model: name another --out, or delete that folder first."
            )
        self._refuse_without_effect()
        tokenizer = load_tokenizer(self.tokenizer or (DEFAULT if self.format == "lotlip" else CLIP))
        if self.format == "lotlip":
            sizes = {"limit": self.token_limit, "heads": self.text_heads}
            convert_lotlip(self.source, self.out, tokenizer, say=say, vision=self.image_tower, **sizes)
        elif self.format == "longclip":
            convert_long_clip(self.source, self.out, tokenizer, stretch=self.stretch, half=self.half, say=say)
        else:
            heads = Heads(self.visual_heads, self.text_heads, self.pooling_heads)
            convert_lcl(self.source, self.out, tokenizer, heads if heads != Heads() else None, say)

    def _refuse_without_effect(self) -> None:
        """Raise CornerstoneError for an option of another format."""
        from cornerstone.errors import CornerstoneError

        for field in fields(self):
            formats = OPTIONS.get(field.name, (self.format,))
            if self.format not in formats and getattr(self, field.name) != field.default:
                option = field.name.replace("_", "-")
                raise CornerstoneError(f"--{option} has no effect on {self.format}, only on {' and '.join(formats)}.")
