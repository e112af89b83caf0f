"""Attention pooling: one learnable query attends to an image's patches (LCL, section 3.3).

N images, P patches, V width of the patches, W width of the pooled feature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from cornerstone.errors import CornerstoneError


class Pooled(NamedTuple):
    """What the pooling gives."""

    feature_NW: Tensor
    """The attended mean of the values."""
    values_NPW: Tensor
    """Each patch through the same value path: norm, value, output."""


class AttentionPooling(nn.Module):
    """Multi-head cross-attention of one query; query, keys and values have a LayerNorm each."""

    def __init__(self, inside: int, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise CornerstoneError(f"A pooled feature of width {width} cannot be cut into {heads} heads.")
        self.heads = heads
        self.query = nn.Parameter(0.02 * torch.randn(1, inside))
        self.norm_query, self.norm_key, self.norm_value = (nn.LayerNorm(inside) for _ in range(3))
        self.to_query, self.to_key, self.to_value = (nn.Linear(inside, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, patches_NPV: Tensor) -> Pooled:
        """The pooled feature and each patch's value."""
        query_1W = self.to_query(self.norm_query(self.query))
        key_NPW = self.to_key(self.norm_key(patches_NPV))
        value_NPW = self.to_value(self.norm_value(patches_NPV))
        query, key, value = (self._split(x) for x in (query_1W.expand(len(key_NPW), 1, -1), key_NPW, value_NPW))
        attended = functional.scaled_dot_product_attention(query, key, value)
        return Pooled(self.out(attended.transpose(1, 2).flatten(1)), self.out(value_NPW))

    def _split(self, x_NPW: Tensor) -> Tensor:
        split: Tensor = x_NPW.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


def usual_heads(width: int) -> int:
    """One head for every 64 places; fewer if the width is not a multiple of them."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
