"""Flamingo's parts: the perceiver resampler and the gated cross-attention (Alayrac et al. 2022, section 2.2, figures 4 and 5).

Values as in the public code github.com/mlfoundations/open_flamingo, `open_flamingo/src/helpers.py`.

N images, P patches, V their width, R latents of an image, B sequences, T tokens, E width of the language model, I the most
images of a sequence, Q queries, K keys, H heads.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention of some queries to something else, without biases; norms are the caller's."""

    def __init__(self, width: int, inside: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query = nn.Linear(width, heads * head_width, bias=False)
        self.to_key_value = nn.Linear(inside, 2 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, query_BQE: Tensor, media_BKV: Tensor, mask_BQK: Tensor | None = None) -> Tensor:
        """(B, Q, E). A query whose row of the mask is empty gets zeros."""
        key, value = self.to_key_value(media_BKV).chunk(2, dim=-1)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_query(query_BQE), key, value)
        )
        if mask_BQK is None:
            attended_BHQd = functional.scaled_dot_product_attention(query, key, value)
        else:  # an empty row of a mask would be NaN: it reads everything, and what it read is dropped
            empty_BQ1 = ~mask_BQK.any(-1, keepdim=True)
            mask_B1QK = (mask_BQK | empty_BQ1)[:, None]
            attended_BHQd = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1QK)
            attended_BHQd = attended_BHQd.masked_fill(empty_BQ1[:, None], 0)
        return cast(Tensor, self.out(attended_BHQd.transpose(1, 2).flatten(2)))


def feed_forward(width: int) -> nn.Sequential:
    """LayerNorm, four times as wide, GELU, and back; without biases."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class ResamplerLayer(nn.Module):
    """The latents attend to the patches and to themselves."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm_patches, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CrossAttention(width, width, heads, head_width)
        self.feed_forward = feed_forward(width)

    def forward(self, latents_NRV: Tensor, patches_NPV: Tensor) -> Tensor:
        """(N, R, V)."""
        normed_NRV = self.norm_latents(latents_NRV)
        media_NKV = torch.cat([self.norm_patches(patches_NPV), normed_NRV], dim=1)
        latents_NRV = latents_NRV + self.attention(normed_NRV, media_NKV)
        return latents_NRV + cast(Tensor, self.feed_forward(latents_NRV))


class PerceiverResampler(nn.Module):
    """Any number of patches becomes R latents as wide as the tower; each image on its own, without positions."""

    def __init__(self, width: int, latents: int, layers: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_NPV: Tensor) -> Tensor:
        """(N, R, V)."""
        latents_NRV = self.latents.expand(len(patches_NPV), -1, -1)
        for layer in self.layers:
            latents_NRV = layer(latents_NRV, patches_NPV)
        return cast(Tensor, self.norm(latents_NRV))


class GatedCrossAttention(nn.Module):
    """x + tanh(gate) attention(x, image), then x + tanh(gate) feed-forward(x); both gates begin at 0.

    At the start the block changes nothing: the tower behind it has no gradient at the first step.
    """

    def __init__(self, width: int, inside: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, inside, heads, head_width)
        self.feed_forward = feed_forward(width)
        self.attention_gate, self.feed_forward_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x_BTE: Tensor, media_BIRV: Tensor, seen_BT: Tensor) -> Tensor:
        """(B, T, E). `seen_BT` is the place, among the I images, of the one that a token sees; -1: none."""
        image_K = torch.arange(media_BIRV.shape[1], device=x_BTE.device).repeat_interleave(media_BIRV.shape[2])
        mask_BTK = seen_BT[..., None] == image_K
        attended_BTE = self.attention(self.norm(x_BTE), media_BIRV.flatten(1, 2), mask_BTK)
        x_BTE = x_BTE + self.attention_gate.tanh() * attended_BTE
        return x_BTE + self.feed_forward_gate.tanh() * cast(Tensor, self.feed_forward(x_BTE))
