"""A BERT with corner tokens (LoTLIP, section 4.3).

What attends to what, query → key, in every layer and head:

    query \\ key | CLS | corner i     | other corners | text, SEP | padding
    CLS         | yes | no           | no            | yes       | no
    corner i    | no  | yes (itself) | no            | yes       | no
    text, SEP   | yes | no           | no            | yes       | no

Only a corner attends to a corner. So CLS and text are an ordinary BERT, and the corners are m more queries: the *split*
form, which needs no mask but for padding, and which skips the corners if only CLS is wanted. The *dense* form runs one
attention under the whole mask and gives the same numbers. Without the mask corners are ordinary tokens, and *register tokens*
(appendix, Table 7) are such ones whose outputs are thrown away; with 0 corners the tower is a plain BERT.

B texts, T their tokens (CLS first), m corners, M = 1 + m, S = m + T places, E width inside, D width of the features, R places
read out, H heads. Inside, the corners come before CLS, so that the places that are read out come first. Positions are those
of `CLS, corner 1 .. m, text`: text is shifted by m positions whether or not its corners are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer  # its parts are called one by one, see `_run`

from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import bert_config, bert_flops, bert_from, build_bert, pretrained_bert
from cornerstone.models.text_tower import TextFeatures, TextTower, in_buckets, trimmed
from cornerstone.recipes.towers import BertText, CornerText

_CORNER_SEED = 0x63_6F_72_6E
_PROJECTION_SEED = 0x70_72_6F_6A
_INITIAL_STD = 0.02


class _Attention(NamedTuple):
    """One call of attention: its queries, its keys, and which keys each query attends to (None: all)."""

    queries: slice
    keys: slice
    mask: Tensor | None


class CornerBert(TextTower):
    """Texts to features: hidden state → BERT's own pooler → one shared linear without bias → L2 norm; CLS and corners.

    The corners' rows are drawn N(0, 0.02) by a generator of their own, one row after the other: their number shifts no
    other initial value, and more corners begin with the same rows.
    """

    def __init__(
        self, bert: BertModel, *, corners: int, masked: bool, width: int, seed: int = 0, registers: bool = False
    ) -> None:
        super().__init__()
        self.bert, self.count, self.masked, self.registers = bert, corners, masked, registers
        inside = bert.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ _PROJECTION_SEED)
            self.project = nn.Linear(inside, width, bias=False)
        generator = torch.Generator().manual_seed(seed ^ _CORNER_SEED)
        rows = [_INITIAL_STD * torch.randn(inside, generator=generator) for _ in range(corners)]
        self.corners = nn.Parameter(torch.stack(rows)) if rows else None

    @classmethod
    def build(
        cls, config: BertText, vocab_size: int, width: int, seed: int, described: Mapping[str, Any] | None = None
    ) -> Self:
        """The tower of a recipe. `described` is a `BertConfig.to_dict`."""
        bert = build_bert(config, vocab_size, seed) if described is None else bert_from(described)
        learnable = config if isinstance(config, CornerText) else CornerText(corner_tokens=0)
        return cls(
            bert,
            corners=learnable.corner_tokens,
            masked=learnable.corner_mask,
            width=width,
            seed=seed,
            registers=learnable.registers,
        )

    @classmethod
    def pretrained(cls, config: BertText, vocab_size: int) -> tuple[nn.Module, dict[str, Any]]:
        """The BERT that the recipe names."""
        return pretrained_bert(config, vocab_size)

    @classmethod
    def most_tokens(cls, config: BertText) -> int:
        """BERT's."""
        most: int = bert_config(config).max_position_embeddings
        return most

    @classmethod
    def flops(cls, config: BertText, tokens: int, width: int) -> float:
        """Of [CLS] alone, as retrieval reads it. Corners take their places, but are computed only without the mask."""
        masked = not isinstance(config, CornerText) or config.corner_mask
        m = 0 if masked else config.reserved_tokens
        return bert_flops(bert_config(config), tokens - config.reserved_tokens, width, m, masked=masked, extra=False)

    @property
    def reserved_tokens(self) -> int:
        """The corner tokens."""
        return self.count

    @property
    def extra_features(self) -> int:
        """One of each corner token; register tokens give none."""
        return 0 if self.registers else self.count

    @property
    def token_width(self) -> int:
        """BERT's width."""
        width: int = self.bert.config.hidden_size
        return width

    def pooling_parameters(self) -> Iterator[nn.Parameter]:
        """BERT's pooler and the projection."""
        pooler: Any = self.bert.pooler
        yield from pooler.parameters()
        yield from self.project.parameters()

    def described(self) -> dict[str, Any]:
        """BERT's own configuration."""
        described: dict[str, Any] = self.bert.config.to_dict()
        return described

    def forward(
        self,
        ids_BT: Tensor,
        length_B: Tensor,
        *,
        extra: bool = True,
        tokens: bool = False,
        buckets: int = 1,
        form: Literal["split", "dense"] = "split",
    ) -> TextFeatures:
        """Features of [CLS], with `extra` of the m corners, with `tokens` the hidden states of all tokens.

        `ids_BT` holds no corner ids; what lies at `length_B` and beyond is padding and is not attended to. A text of length
        0 gives some finite feature, which the loss must mask. With `buckets` the texts are sorted by length and run in
        that many groups (`in_buckets`), each as long as its longest.
        """
        features = partial(self._features, extra=extra and not self.registers, tokens=tokens, form=form)
        return in_buckets(features, ids_BT, length_B.clamp(min=1), buckets)

    def _features(self, ids_BT: Tensor, length_B: Tensor, *, extra: bool, tokens: bool, form: str) -> TextFeatures:
        longest, positions = int(length_B.max()), self.bert.config.max_position_embeddings
        if longest + self.count > positions:
            raise CornerstoneError(
                f"A text of {longest} tokens and {self.count} corners does not fit the text tower's {positions} "
                f"positions: tokenize with a limit of {positions} or less (--recipe.method.text.token-limit)."
            )
        ids_BT = ids_BT[:, : trimmed(longest, ids_BT.device)]
        m = self.count if extra or not self.masked else 0
        calls = self._calls(length_B, m, ids_BT.shape[1], form)
        x_BSE = self._embed(ids_BT, m)
        *inner, last = self.bert.encoder.layer
        for layer in inner:
            x_BSE = _run(layer, x_BSE, calls, x_BSE.shape[1])
        x_BRE = _run(last, x_BSE, calls, x_BSE.shape[1] if tokens else m + 1)
        cls_B1E = x_BRE[:, m : m + 1]
        read_BME = torch.cat([cls_B1E, x_BRE[:, :m]], dim=1) if extra else cls_B1E
        pooler: Any = self.bert.pooler
        feature_BMD = self.project(pooler.activation(pooler.dense(read_BME)))
        feature_BMD = F.normalize(feature_BMD.to(torch.promote_types(feature_BMD.dtype, torch.float32)), dim=-1)
        corners_BmD = feature_BMD[:, 1:] if extra and m else None
        return TextFeatures(feature_BMD[:, 0], corners_BmD, x_BRE[:, m:] if tokens else None)

    def _embed(self, ids_BT: Tensor, m: int) -> Tensor:
        """(B, m + T, E); positions 1 .. m are the corners', whether or not they are computed."""
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
        embedded_BSE: Tensor = embeddings.dropout(embeddings.LayerNorm(x_BSE))
        return embedded_BSE

    def _calls(self, length_B: Tensor, m: int, tokens: int, form: str) -> list[_Attention]:
        everything, text = slice(None), slice(m, None)
        place_S = torch.arange(m + tokens, device=length_B.device)
        real_BS = place_S < m + length_B[:, None]
        padding = None if bool((length_B == tokens).all()) else real_BS[:, None, None]
        if not m or not self.masked:
            return [_Attention(everything, everything, padding)]
        if form == "dense":
            return [_Attention(everything, everything, visible(length_B, m, tokens)[:, None])]
        corner_mS = (place_S > m) | (place_S == place_S[:m, None])
        corners = _Attention(slice(None, m), everything, real_BS[:, None, None] & corner_mS)
        return [corners, _Attention(text, text, None if padding is None else padding[..., m:])]


def visible(length_B: Tensor, m: int, tokens: int) -> Tensor:
    """The whole mask A(q, k) as (B, S, S) bools, in the inner order: corners, CLS, text, padding."""
    place_S = torch.arange(m + tokens, device=length_B.device)
    corner_S, text_S = place_S < m, place_S > m
    itself_SS = place_S[:, None] == place_S
    allowed_SS = itself_SS | torch.where(corner_S[:, None], text_S, ~corner_S)
    return allowed_SS & (place_S < m + length_B[:, None])[:, None]


def _run(layer: BertLayer, x_BSE: Tensor, calls: list[_Attention], read: int) -> Tensor:
    """One BERT layer for the first `read` places, (B, read, E); the others are only keys and values.

    Every linear of the layer is called once, as a module, so that ZeRO-3's hooks see it. `BertLayer` and its parts are
    private to transformers: their attribute names are relied on here, since no public layer takes these masks.
    """
    attention = layer.attention.self
    dropout = attention.dropout.p if attention.training else 0.0
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query_BHRd = attention.query(x_BSE[:, :read]).unflatten(-1, heads).transpose(1, 2)
    key_BHSd, value_BHSd = (
        linear(x_BSE).unflatten(-1, heads).transpose(1, 2) for linear in (attention.key, attention.value)
    )
    attended = []
    for call in calls:
        asked = query_BHRd[:, :, call.queries]
        mask = call.mask if call.mask is None else call.mask[:, :, : asked.shape[2]]
        key, value = key_BHSd[:, :, call.keys], value_BHSd[:, :, call.keys]
        attended.append(F.scaled_dot_product_attention(asked, key, value, attn_mask=mask, dropout_p=dropout))
    context_BRE = torch.cat(attended, dim=2).transpose(1, 2).flatten(2)
    x_BRE = layer.attention.output(context_BRE, x_BSE[:, :read])
    output_BRE: Tensor = layer.output(layer.intermediate(x_BRE), x_BRE)
    return output_BRE
