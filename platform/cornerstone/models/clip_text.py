"""CLIP's text transformer (Radford et al. 2021), and CoCa's unimodal half, which is the same one with a trailing token.

A token attends to itself and to what comes before it. With the trailing token, which attends to every token of its text, the
names of the weights are those of open_clip's CoCa, without it those of its CLIP.

B texts, T their tokens, S = T or T + 1 places with the trailing token, E width inside, D width of the features, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Self, cast

import torch
import torch.nn.functional as functional
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from cornerstone.errors import CornerstoneError
from cornerstone.models.released_clip import load_released, read_clip_text
from cornerstone.models.text_tower import TextFeatures, TextTower, in_buckets, trimmed
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.recipes.towers import ClipText


class ClipTextTransformer(TextTower):
    """Texts to features: the output at the end token, or at a trailing token → LayerNorm → linear without bias → L2 norm."""

    def __init__(self, config: ClipText, vocab_size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.config, inside = config, config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token_embedding = nn.Embedding(vocab_size, inside)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            activation = QuickGELU if config.activation == "quick_gelu" else nn.GELU
            self.transformer = Transformer(inside, config.layers, config.heads, act_layer=activation)
            initialise(self.transformer.resblocks)
            self.ln_final = nn.LayerNorm(inside)
            self.text_projection = nn.Parameter(inside**-0.5 * torch.randn(inside, width))
            self.cls_emb = nn.Parameter(0.01 * torch.randn(inside)) if config.reserved_tokens else None
            # Last, so that the limit shifts no other initial value.
            self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.token_limit, inside))

    @classmethod
    def build(
        cls, config: ClipText, vocab_size: int, width: int, seed: int, described: Mapping[str, Any] | None = None
    ) -> Self:
        """The tower of a recipe, which says all that is needed to make it again but for weights that it names."""
        tower = cls(config, vocab_size, width, seed)
        if config.name and described is None:
            load_released(tower, config)
        return tower

    @classmethod
    def pretrained(cls, config: ClipText, vocab_size: int) -> tuple[nn.Module, dict[str, Any]]:
        """The text half of the CLIP that is named."""
        half = read_clip_text(config.name)
        return half, {
            name: getattr(half.config, name) for name in ("num_attention_heads", "hidden_act", "layer_norm_eps")
        }

    @classmethod
    def most_tokens(cls, config: ClipText) -> int:
        """As many as the token limit."""
        return config.token_limit

    @property
    def reserved_tokens(self) -> int:
        """The trailing token."""
        return self.config.reserved_tokens

    @property
    def token_width(self) -> int:
        """The transformer's width."""
        return self.config.width

    def pooling_parameters(self) -> Iterator[nn.Parameter]:
        """The last norm, the projection and the trailing token."""
        yield from self.ln_final.parameters()
        yield from (given for given in (self.text_projection, self.cls_emb) if given is not None)

    def described(self) -> dict[str, Any]:
        """Nothing beside its configuration."""
        return {}

    def forward(
        self, ids_BT: Tensor, length_B: Tensor, *, extra: bool = True, tokens: bool = False, buckets: int = 1
    ) -> TextFeatures:
        """Features of texts; there is no extra one. `tokens` are those before the last norm, without the trailing token.

        What lies at `length_B` and beyond is padding. A text of length 0 gives some finite feature.
        """
        features = partial(self._features, tokens=tokens)
        return in_buckets(features, ids_BT, length_B.clamp(min=1), buckets)

    def _features(self, ids_BT: Tensor, length_B: Tensor, *, tokens: bool) -> TextFeatures:
        longest, most = int(length_B.max()), len(self.positional_embedding) - self.reserved_tokens
        if longest > most:
            raise CornerstoneError(
                f"A text of {longest} tokens does not fit the text tower's {most} positions: tokenize with a limit of "
                f"{len(self.positional_embedding)} or less (--recipe.method.text.token-limit)."
            )
        columns = most if not self.config.correct_cls_mask else min(trimmed(longest, ids_BT.device), most)
        ids_BT = functional.pad(ids_BT, (0, max(columns - ids_BT.shape[1], 0)))[:, :columns]
        ids_BT = torch.where(torch.arange(columns, device=ids_BT.device) < length_B[:, None], ids_BT, 0)
        x_BSE = self.token_embedding(ids_BT) + self.positional_embedding[:columns]
        if self.cls_emb is not None:
            trailing_1E = (self.cls_emb + self.positional_embedding[-1])[None]
            x_BSE = torch.cat([x_BSE, trailing_1E.expand(len(x_BSE), 1, -1)], dim=1)
        x_BSE = self.transformer(x_BSE, attn_mask=self._mask(length_B, columns).to(x_BSE.dtype))
        last_B = length_B - 1 if self.cls_emb is None else torch.full_like(length_B, columns)
        last_BE = x_BSE[torch.arange(len(x_BSE), device=x_BSE.device), last_B]
        pooled_BD = at_least_fp32(self.ln_final(last_BE) @ self.text_projection)
        return TextFeatures(functional.normalize(pooled_BD, dim=-1), None, x_BSE[:, :columns] if tokens else None)

    def _mask(self, length_B: Tensor, columns: int) -> Tensor:
        """What is added to the attention's logits: (S, S), or (B × H, S, S) if the trailing token must not see padding."""
        places = columns + self.reserved_tokens
        place_S = torch.arange(places, device=length_B.device)
        hidden_SS = place_S > place_S[:, None]
        if self.cls_emb is None:
            return torch.zeros(places, places, device=length_B.device).masked_fill(hidden_SS, -torch.inf)
        if self.config.correct_cls_mask:
            seen_BS = (place_S < length_B[:, None]) | (place_S == columns)
        else:  # the mask of the places, the trailing one's first, stands one place too far behind
            seen_BS = place_S <= length_B[:, None]
        hidden_BSS = hidden_SS | ~seen_BS[:, None]
        mask_BSS = torch.zeros(hidden_BSS.shape, device=length_B.device).masked_fill(hidden_BSS, -torch.inf)
        return mask_BSS.repeat_interleave(self.config.heads, 0)


def initialise(blocks: Iterable[nn.Module]) -> None:
    """Draw a transformer's matrices as CLIP does: by width, and what is added to the residual stream also by depth."""
    listed = [cast(ResidualAttentionBlock, block) for block in blocks]
    for block in listed:
        width = block.attn.embed_dim
        added = width**-0.5 * (2 * len(listed)) ** -0.5
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=added)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=added)
