"""Emu's causal former: an image's patches become a fixed number of causal embeddings (Sun et al. 2023, section 2.1).

A T5 decoder with random weights over learned tokens. Values as in the public code github.com/baaivision/Emu,
`Emu1/models/causal_former.py`; its dropout is left out.

N images, P patches, V their width, n causal tokens, W width of the former, E of the language model, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_BUCKETS, _FAR = 32, 128


class T5Attention(nn.Module):
    """T5's attention: no biases, scores that are not scaled, a position bias added to them."""

    def __init__(self, width: int, inside: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(inside, width, bias=False) for _ in range(2))
        for linear, square in ((self.q, width * width // heads), (self.k, inside), (self.v, inside), (self.o, width)):
            nn.init.normal_(linear.weight, std=square**-0.5)

    def forward(self, x_NnW: Tensor, of_NPV: Tensor, bias_Hnn: Tensor | None = None) -> Tensor:
        """(N, n, W)."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, x in ((self.q, x_NnW), (self.k, of_NPV), (self.v, of_NPV))
        )
        bias = None if bias_Hnn is None else bias_Hnn.to(query.dtype)[None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        out: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return out


class T5Layer(nn.Module):
    """Causal self-attention, cross-attention to the patches, a ReLU feed-forward; a norm before each."""

    def __init__(self, width: int, inside: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(3))
        self.self_attention, self.cross_attention = T5Attention(width, width, heads), T5Attention(width, inside, heads)
        self.wi, self.wo = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        nn.init.normal_(self.wi.weight, std=width**-0.5)
        nn.init.normal_(self.wo.weight, std=hidden**-0.5)

    def forward(self, x_NnW: Tensor, patches_NPV: Tensor, bias_Hnn: Tensor) -> Tensor:
        """(N, n, W)."""
        normed_NnW = self.norms[0](x_NnW)
        x_NnW = x_NnW + self.self_attention(normed_NnW, normed_NnW, bias_Hnn)
        x_NnW = x_NnW + self.cross_attention(self.norms[1](x_NnW), patches_NPV)
        added_NnW: Tensor = self.wo(self.wi(self.norms[2](x_NnW)).relu())
        return x_NnW + added_NnW


class CausalFormer(nn.Module):
    """Learned tokens through the layers, and a linear to the language model's width."""

    def __init__(
        self, inside: int, outside: int, *, tokens: int, width: int, layers: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.bias = nn.Embedding(_BUCKETS, heads)
        nn.init.normal_(self.bias.weight, std=width**-0.5)
        self.layers = nn.ModuleList(T5Layer(width, inside, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.project = nn.Linear(width, outside)

    def forward(self, patches_NPV: Tensor) -> Tensor:
        """(N, n, E): token i has read the whole image, and tokens 1 .. i."""
        x_NnW = self.tokens.expand(len(patches_NPV), -1, -1)
        place_n = torch.arange(x_NnW.shape[1], device=x_NnW.device)
        back_nn = place_n[:, None] - place_n
        bias_Hnn = self.bias(_buckets(back_nn.clamp(min=0))).permute(2, 0, 1).masked_fill(back_nn < 0, -torch.inf)
        for layer in self.layers:
            x_NnW = layer(x_NnW, patches_NPV, bias_Hnn)
        projected_NnE: Tensor = self.project(self.norm(x_NnW))
        return projected_NnE


def _buckets(distance: Tensor) -> Tensor:
    """T5's buckets of how far back a token is: half of them exact, the others logarithmic."""
    exact = _BUCKETS // 2
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(_FAR / exact)
    far = (exact + (ratio * (_BUCKETS - exact)).long()).clamp(max=_BUCKETS - 1)
    return torch.where(distance < exact, distance, far)
