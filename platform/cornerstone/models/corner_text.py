"""A BERT with corner tokens (LoTLIP, section 4.3).

Who sees whom, query → key, in every layer and head:

    query \\ key | CLS | corner i     | other corners | text, SEP | padding
    CLS         | yes | no           | no            | yes       | no
    corner i    | no  | yes (itself) | no            | yes       | no
    text, SEP   | yes | no           | no            | yes       | no

Nobody but a corner reads a corner. So CLS and text are an ordinary BERT, to which the corners are m further queries:
the *split* form, which needs no mask but for padding, and which leaves the corners out where only CLS is wanted. The
*dense* form runs one attention under the whole mask, and gives the same numbers. Without the mask corners are ordinary
tokens.

B texts, T their tokens (CLS first), m corners, S = m + T places, E width inside, D width of the features, R places read
out, H heads. Inside, the corners come before CLS: what is read out are the first places. Positions are those of
`CLS, corner 1 .. m, text`, so text stands m places further whether its corners are computed or not.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from cornerstone.errors import CornerstoneError

ROUND = 8  # texts are trimmed to the longest, rounded up: few shapes, little padding
_CORNER_SEED = 0x63_6F_72_6E
_PROJECTION_SEED = 0x70_72_6F_6A
_INITIAL_STD = 0.02


class _View(NamedTuple):
    """One call of attention: which places ask, which are read, and which of these are seen (None: all)."""

    queries: slice
    keys: slice
    seen: Tensor | None


class CornerBert(nn.Module):
    """Texts to features: hidden state → BERT's own pooler → one shared linear without bias → L2 norm; CLS and corners.

    The corners' rows are drawn N(0, 0.02) by a generator of their own, one row after the other: their number shifts no
    other initial value, and more corners begin with the same rows.
    """

    def __init__(self, bert: BertModel, *, corners: int, masked: bool, width: int, seed: int = 0) -> None:
        super().__init__()
        self.bert, self.count, self.masked = bert, corners, masked
        inside = bert.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ _PROJECTION_SEED)
            self.project = nn.Linear(inside, width, bias=False)
        generator = torch.Generator().manual_seed(seed ^ _CORNER_SEED)
        rows = [_INITIAL_STD * torch.randn(inside, generator=generator) for _ in range(corners)]
        self.corners = nn.Parameter(torch.stack(rows)) if rows else None

    def forward(
        self,
        ids_BT: Tensor,
        length_B: Tensor,
        *,
        corners: bool = True,
        buckets: int = 1,
        form: Literal["split", "dense"] = "split",
    ) -> Tensor:
        """Features (B, 1 + m, D), L2-normalised in fp32 at least, CLS first; (B, 1, D) without `corners`.

        `ids_BT` holds no corner ids; what lies at `length_B` and beyond is padding and not read. A text of length 0
        gives some finite feature, which the loss must mask. With `buckets` the texts are sorted by length and run in
        that many shares of equal count, each as long as its longest; their order in the result is as given. The number
        of calls does not depend on the lengths, so that all workers make equally many.
        """
        length_B = length_B.clamp(min=1)
        if buckets <= 1 or len(ids_BT) == 1:
            return self._features(ids_BT, length_B, corners, form)
        order = length_B.argsort(stable=True)
        shares = order.tensor_split(min(buckets, len(order)))
        features = torch.cat([self._features(ids_BT[share], length_B[share], corners, form) for share in shares])
        return features[order.argsort()]

    def _features(self, ids_BT: Tensor, length_B: Tensor, corners: bool, form: str) -> Tensor:
        longest, positions = int(length_B.max()), self.bert.config.max_position_embeddings
        if longest + self.count > positions:
            raise CornerstoneError(
                f"A text of {longest} tokens and {self.count} corners does not fit the text tower's {positions} "
                f"positions: tokenize with a limit of {positions} or less (--recipe.method.text.token-limit)."
            )
        ids_BT = ids_BT[:, : -(-longest // ROUND) * ROUND]
        m = self.count if corners or not self.masked else 0
        views = self._views(length_B, m, ids_BT.shape[1], form)
        x_BSE = self._embed(ids_BT, m)
        *inner, last = self.bert.encoder.layer
        for layer in inner:
            x_BSE = _run(layer, x_BSE, views, x_BSE.shape[1])
        x_BRE = _run(last, x_BSE, views, m + 1)
        x_BRE = torch.cat([x_BRE[:, m:], x_BRE[:, :m]], dim=1) if corners else x_BRE[:, m:]
        pooler: Any = self.bert.pooler
        feature_BRD = self.project(pooler.activation(pooler.dense(x_BRE)))
        return F.normalize(feature_BRD.to(torch.promote_types(feature_BRD.dtype, torch.float32)), dim=-1)

    def _embed(self, ids_BT: Tensor, m: int) -> Tensor:
        """(B, m + T, E); the corners' positions 1 .. m are left free whether or not they are computed."""
        embeddings, device = self.bert.embeddings, ids_BT.device
        x_BSE = embeddings.word_embeddings(ids_BT)
        place_T = torch.arange(ids_BT.shape[1], device=device)
        place_S = torch.where(place_T > 0, place_T + self.count, place_T)
        place_S = place_S.clamp(max=self.bert.config.max_position_embeddings - 1)  # only padding can lie beyond
        if m and self.corners is not None:
            x_BSE = torch.cat([self.corners.to(x_BSE.dtype).expand(len(ids_BT), -1, -1), x_BSE], dim=1)
            place_S = torch.cat([torch.arange(1, m + 1, device=device), place_S])
        x_BSE = x_BSE + embeddings.position_embeddings(place_S)
        x_BSE = x_BSE + embeddings.token_type_embeddings(torch.zeros_like(place_S[:1]))
        return embeddings.dropout(embeddings.LayerNorm(x_BSE))

    def _views(self, length_B: Tensor, m: int, tokens: int, form: str) -> list[_View]:
        everything, text = slice(None), slice(m, None)
        place_S = torch.arange(m + tokens, device=length_B.device)
        real_BS = place_S < m + length_B[:, None]
        padding = None if bool((length_B == tokens).all()) else real_BS[:, None, None]
        if not m or not self.masked:
            return [_View(everything, everything, padding)]
        if form == "dense":
            return [_View(everything, everything, visible(length_B, m, tokens)[:, None])]
        corner_mS = (place_S > m) | (place_S == place_S[:m, None])
        corners = _View(slice(None, m), everything, real_BS[:, None, None] & corner_mS)
        return [corners, _View(text, text, None if padding is None else padding[..., m:])]


def visible(length_B: Tensor, m: int, tokens: int) -> Tensor:
    """The whole mask A(q, k) as (B, S, S) bools, in the inner order: corners, CLS, text, padding."""
    place_S = torch.arange(m + tokens, device=length_B.device)
    corner_S, text_S = place_S < m, place_S > m
    itself_SS = place_S[:, None] == place_S
    allowed_SS = itself_SS | torch.where(corner_S[:, None], text_S, ~corner_S)
    return allowed_SS & (place_S < m + length_B[:, None])[:, None]


def _run(layer: BertLayer, x_BSE: Tensor, views: list[_View], read: int) -> Tensor:
    """One BERT layer for the first `read` places, (B, read, E); the others serve as keys and values alone.

    Every linear of the layer is called once, as a module, so that hooks of sharded parameters see it.
    """
    attention = layer.attention.self
    dropout = attention.dropout.p if attention.training else 0.0
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query_BHRd = attention.query(x_BSE[:, :read]).unflatten(-1, heads).transpose(1, 2)
    key_BHSd, value_BHSd = (
        linear(x_BSE).unflatten(-1, heads).transpose(1, 2) for linear in (attention.key, attention.value)
    )
    read_out = []
    for view in views:
        asked = query_BHRd[:, :, view.queries]
        seen = view.seen if view.seen is None else view.seen[:, :, : asked.shape[2]]
        key, value = key_BHSd[:, :, view.keys], value_BHSd[:, :, view.keys]
        read_out.append(F.scaled_dot_product_attention(asked, key, value, attn_mask=seen, dropout_p=dropout))
    context_BRE = torch.cat(read_out, dim=2).transpose(1, 2).flatten(2)
    x_BRE = layer.attention.output(context_BRE, x_BSE[:, :read])
    return layer.output(layer.intermediate(x_BRE), x_BRE)
