"""Transformer blocks that images and text share: one self-attention, a feed-forward for each (BEiT-3, section 2.1).

B sequences, T tokens, V width of the image tower, K tokens of one kind.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from cornerstone.errors import CornerstoneError


class TextParts(nn.Module):
    """A text's feed-forward beside each block of a vision transformer, with a norm before it."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        plain: list[Any] = list(blocks)
        for block in plain:
            if not all(hasattr(block, name) for name in ("norm1", "attn", "norm2", "mlp", "drop_path1", "drop_path2")):
                raise CornerstoneError(
                    f"BEiT-3 shares the attention of a plain vision transformer with the text, but the image tower has blocks "
                    f"of the type {type(block).__name__}: name one such as vit_base_patch16_224 (--recipe.method.image.name)."
                )
        widths = [(block.mlp.fc1.in_features, block.mlp.fc1.out_features) for block in plain]
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width, _ in widths)
        self.feed_forwards = nn.ModuleList(Mlp(width, hidden) for width, hidden in widths)


def read_together(blocks: nn.Sequential, text: TextParts, x_BTV: Tensor, vision_BT: Tensor, group_BT: Tensor) -> Tensor:
    """(B, T, V): the hidden states after all blocks. Tokens of a group attend to each other, in both directions.

    Where `vision_BT` is True a token is one of an image, and passes through the block's own feed-forward.
    """
    mask_B1TT = (group_BT[:, :, None] == group_BT[:, None, :])[:, None]
    vision_K = vision_BT.flatten().nonzero().squeeze(1)
    text_K = (~vision_BT).flatten().nonzero().squeeze(1)
    for block, norm, feed_forward in zip(blocks, text.norms, text.feed_forwards, strict=True):
        shared: Any = block
        attended_BTV = shared.ls1(shared.attn(shared.norm1(x_BTV), attn_mask=mask_B1TT))
        x_BTV = x_BTV + shared.drop_path1(attended_BTV)
        flat = x_BTV.flatten(0, 1)
        of_vision_KV = shared.ls2(shared.mlp(shared.norm2(flat[vision_K])))
        of_text_KV = feed_forward(norm(flat[text_K]))
        changed = torch.zeros_like(flat, dtype=of_text_KV.dtype)
        changed = changed.index_copy(0, vision_K, of_vision_KV.to(changed.dtype)).index_copy(0, text_K, of_text_KV)
        x_BTV = x_BTV + shared.drop_path2(changed.view_as(x_BTV))
    return x_BTV
