"""A T5 encoder (Raffel et al. 2020) as a text tower with corner tokens (LoTLIP, section 5.1, names T5 beside BERT).

T5 has no [CLS]: a sentinel stands for it, `<extra_id_0>`, and the next m are the corners. They have no place in the text: the
relative position bias is 0 wherever one of them is the query or the key. What attends to what is as in `corner_text`.

B texts, T their tokens, m corners, M = 1 + m, S = m + 1 + T places, E width inside, D width of the features, H heads. Inside,
the corners come first, then the token that stands for [CLS], then the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from cornerstone.errors import CornerstoneError, first_line
from cornerstone.models.corner_text import visible
from cornerstone.models.text_tower import TextFeatures, TextTower, in_buckets, trimmed
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.recipes.towers import T5Text

_SENTINEL_SEED = 0x73_65_6E_74
_PROJECTION_SEED = 0x70_72_6F_6A
_BESIDE_WEIGHTS = (
    *("num_heads", "d_kv", "feed_forward_proj", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)


class T5TextTower(TextTower):
    """Texts to features: the last hidden state → one shared linear without bias → L2 norm; of the sentinel and the corners.

    A new tower's sentinels are drawn as T5's embeddings are, by a generator of their own, one after the other: their number
    shifts no other initial value.
    """

    def __init__(self, t5: T5EncoderModel, config: T5Text, sentinels_ME: Tensor, width: int, seed: int = 0) -> None:
        super().__init__()
        # It is `shared` again: the blocks are called one by one here, and a file holds a tensor once.
        t5.encoder.embed_tokens = None  # type: ignore[assignment]
        self.t5, self.config = t5, config
        self.sentinels = nn.Parameter(sentinels_ME.clone())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ _PROJECTION_SEED)
            self.project = nn.Linear(t5.config.d_model, width, bias=False)

    @classmethod
    def build(
        cls, config: T5Text, vocab_size: int, width: int, seed: int, described: Mapping[str, Any] | None = None
    ) -> Self:
        """The tower of a recipe. `described` is a `T5Config.to_dict`."""
        t5 = (
            build_t5(config, vocab_size, seed)
            if described is None
            else T5EncoderModel(T5Config.from_dict(dict(described)))
        )
        count = 1 + config.corner_tokens
        if config.name and described is None:
            rows_ME = t5.shared.weight.detach()[vocab_size - count : vocab_size].flip(0)  # <extra_id_0> has the last id
        else:
            generator = torch.Generator().manual_seed(seed ^ _SENTINEL_SEED)
            rows_ME = torch.stack([torch.randn(t5.config.d_model, generator=generator) for _ in range(count)])
        return cls(t5, config, rows_ME, width, seed)

    @classmethod
    def pretrained(cls, config: T5Text, vocab_size: int) -> tuple[nn.Module, dict[str, Any]]:
        """The encoder that the recipe names."""
        t5 = build_t5(config, vocab_size, seed=0)
        return t5, {name: getattr(t5.config, name) for name in _BESIDE_WEIGHTS}

    @property
    def reserved_tokens(self) -> int:
        """The sentinel that stands for [CLS], and the corners."""
        return self.config.reserved_tokens

    @property
    def extra_features(self) -> int:
        """One of each corner token; register tokens give none."""
        return self.config.extra_features

    @property
    def token_width(self) -> int:
        """T5's width."""
        width: int = self.t5.config.d_model
        return width

    def pooling_parameters(self) -> Iterator[nn.Parameter]:
        """The projection."""
        return self.project.parameters()

    def described(self) -> dict[str, Any]:
        """T5's own configuration."""
        described: dict[str, Any] = self.t5.config.to_dict()
        return described

    def forward(
        self, ids_BT: Tensor, length_B: Tensor, *, extra: bool = True, tokens: bool = False, buckets: int = 1
    ) -> TextFeatures:
        """Features of the sentinel, with `extra` of the corners, with `tokens` the last hidden states of the text.

        What lies at `length_B` and beyond is padding. A text of length 0 gives some finite feature.
        """
        features = partial(self._features, extra=extra and bool(self.extra_features), tokens=tokens)
        return in_buckets(features, ids_BT, length_B.clamp(min=1), buckets)

    def _features(self, ids_BT: Tensor, length_B: Tensor, *, extra: bool, tokens: bool) -> TextFeatures:
        columns = trimmed(int(length_B.max()), ids_BT.device)
        ids_BT = functional.pad(ids_BT, (0, max(columns - ids_BT.shape[1], 0)))[:, :columns]
        masked = self.config.corner_mask
        m = self.config.corner_tokens if extra or not masked else 0
        order = [*range(1, m + 1), 0]
        sentinels_BME = self.sentinels[order].expand(len(ids_BT), -1, -1)
        x_BSE = torch.cat([sentinels_BME, self.t5.shared(ids_BT).to(sentinels_BME.dtype)], dim=1)
        if masked:
            seen_BSS = visible(length_B + 1, m, columns + 1)
        else:
            place_S = torch.arange(m + 1 + columns, device=length_B.device)
            seen_BSS = (place_S < m + 1 + length_B[:, None])[:, None]
        bias_BHSS = self._relative_bias(m + 1, columns).masked_fill(~seen_BSS[:, None], torch.finfo(x_BSE.dtype).min)
        encoder: Any = self.t5.encoder
        x_BSE = encoder.dropout(x_BSE)
        for block in encoder.block:
            x_BSE = block(x_BSE, position_bias=bias_BHSS)[0]
        x_BSE = encoder.dropout(encoder.final_layer_norm(x_BSE))
        read_BME = torch.cat([x_BSE[:, m : m + 1], x_BSE[:, :m]], dim=1) if extra else x_BSE[:, m : m + 1]
        feature_BMD = functional.normalize(at_least_fp32(self.project(read_BME)), dim=-1)
        corners_BmD = feature_BMD[:, 1:] if extra else None
        return TextFeatures(feature_BMD[:, 0], corners_BmD, x_BSE[:, m + 1 :] if tokens else None)

    def _relative_bias(self, before: int, columns: int) -> Tensor:
        """(1, H, S, S): T5's bias between the tokens of the text; 0 for the rows and columns of what comes before it."""
        encoder: Any = self.t5.encoder
        attention = encoder.block[0].layer[0].SelfAttention
        bias_1HTT: Tensor = attention.compute_bias(columns, columns, device=self.sentinels.device)
        return functional.pad(bias_1HTT, (before, 0, before, 0))


def build_t5(config: T5Text, vocab_size: int, seed: int) -> T5EncoderModel:
    """The encoder of a recipe, in fp32; what is not pretrained is drawn from `seed`, without moving torch's own generator.

    Raises CornerstoneError for a model that cannot be loaded, is no T5, or has fewer embeddings than `vocab_size`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        t5 = _named(config) if config.name else T5EncoderModel(_new(config, vocab_size))
    if t5.config.vocab_size < vocab_size:
        raise CornerstoneError(
            f"The text tower {config.name!r} knows {t5.config.vocab_size} token ids, but the tokenizer has {vocab_size}: use "
            f"the tower's own tokenizer (--recipe.data.tokenizer {config.name}), or a new tower (--recipe.method.text.name '')."
        )
    return t5


def _new(config: T5Text, vocab_size: int) -> T5Config:
    return T5Config(
        vocab_size=vocab_size,
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=4 * config.width,
        num_layers=config.layers,
        num_heads=config.heads,
        dropout_rate=config.dropout,
    )


def _named(config: T5Text) -> T5EncoderModel:
    wrong = ""
    try:
        described = T5Config.get_config_dict(config.name)[0]
        if (kind := described.get("model_type")) == "t5":
            return T5EncoderModel.from_pretrained(config.name, dtype=torch.float32, dropout_rate=config.dropout)
        wrong = f"it is a {kind or 'model of unknown type'}."
    except Exception as error:  # from a missing file to a hub that does not answer
        wrong = f"{first_line(error)}."
    raise CornerstoneError(
        f"Cannot load the text tower {config.name!r}: {wrong} Expected a Hugging Face T5 by name or a folder with config.json "
        f"and model.safetensors; --recipe.method.text.name '' makes a new one of --recipe.method.text.width and layers."
    )
