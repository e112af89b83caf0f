"""BERT encoders for the text tower: a named one with its weights, or a new one of any size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BertConfig, BertModel

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, first_line
from cornerstone.models.loading import load_weights, read_safetensors
from cornerstone.recipes.towers import TextTowerConfig

POSITIONS = 512
"""Positions of a new tower, unless the token limit needs more: so the limit shifts no other initial value."""
_BERT = "text.bert."
"""What the names of the encoder's weights begin with in a saved model."""


def build_bert(config: TextTowerConfig, vocab_size: int, seed: int) -> BertModel:
    """The encoder of a recipe, pooler included, in fp32.

    Weights that are not pretrained are drawn from `seed`, without moving torch's own generator. Raises
    CornerstoneError for a model that cannot be loaded, is no BERT, has another vocabulary than the tokenizer's
    `vocab_size` ids, or has fewer positions than the token limit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = (_of_run(config) or _named(config)) if config.name else BertModel(_new(config, vocab_size))
    if bert.config.vocab_size != vocab_size:
        raise CornerstoneError(
            f"The text tower {config.name!r} knows {bert.config.vocab_size} token ids, but the tokenizer has "
            f"{vocab_size}: use the tower's own tokenizer (--recipe.data.tokenizer {config.name}), or a new tower "
            f"(--recipe.method.text.name '')."
        )
    if bert.config.max_position_embeddings < config.token_limit:
        raise CornerstoneError(
            f"The text tower {config.name!r} has {bert.config.max_position_embeddings} positions, fewer than the "
            f"token limit {config.token_limit}: lower --recipe.method.text.token-limit, or use a new tower "
            f"(--recipe.method.text.name '')."
        )
    return bert


def pretrained_bert(config: TextTowerConfig, vocab_size: int) -> tuple[BertModel, dict[str, Any]]:
    """The encoder that a recipe names, and what its configuration says beside the shapes of its weights."""
    bert = build_bert(config, vocab_size, seed=0)
    return bert, {name: getattr(bert.config, name) for name in ("num_attention_heads", "hidden_act", "layer_norm_eps")}


def bert_config(config: TextTowerConfig, vocab_size: int = 0) -> BertConfig:
    """The architecture of a recipe's encoder; no weights are read. CornerstoneError if the name cannot be opened."""
    if not config.name:
        return _new(config, vocab_size)
    return BertConfig.from_dict(_described_by_run(config) or _described_by_name(config))


def bert_flops(
    bert: BertConfig, tokens: int, width: int, corners: int = 0, *, masked: bool = True, extra: bool = True
) -> int:
    """Floating-point operations of one text's features by `CornerBert`'s split form: a multiplication and an addition are two.

    Of L layers of width E, with I in the feed-forward, for n tokens with [CLS], m corners that are computed, S = m + n places,
    R = 1 + m places that are read out, P of them pooled (R, or 1 without `extra`) to features of width D:

        linears of attention    8 S E² in each of L - 1 layers, 4 (S + R) E² in the last one
        feed-forward            4 S E I in each of L - 1 layers, 4 R E I in the last one
        attention               4 E (n² + m S) in each of L - 1 layers, 4 E (n + m S) in the last one; without the mask
                                4 E S² and 4 E R S
        pooler, projection      2 P E² + 2 P E D

    Embeddings, norms, activations and softmax are not counted, as is usual.
    """
    e, between, layers = bert.hidden_size, bert.intermediate_size, bert.num_hidden_layers
    places, read, pooled = corners + tokens, 1 + corners, 1 + corners if extra else 1
    seen, seen_last = (tokens**2, tokens) if masked else (tokens * places, places)
    inner = 8 * places * e**2 + 4 * places * e * between + 4 * e * (seen + corners * places)
    last = 4 * (places + read) * e**2 + 4 * read * e * between + 4 * e * (seen_last + corners * places)
    return int((layers - 1) * inner + last + 2 * pooled * e * (e + width))


def bert_from(described: Mapping[str, Any]) -> BertModel:
    """An encoder of the architecture that `BertConfig.to_dict` described; its weights are still to be loaded."""
    return BertModel(BertConfig.from_dict(dict(described)))


def _new(config: TextTowerConfig, vocab_size: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=max(POSITIONS, config.token_limit),
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=None,  # padding is never read, and id 0 may be a word of another tokenizer
    )


def _described_by_run(config: TextTowerConfig) -> dict[str, Any] | None:
    """The architecture of the text tower of a run's folder `model`; None if the name is not one."""
    place = Location.of(config.name) if "/" in config.name else None
    if place is None or not place.join("config.json").exists():
        return None
    build = json.loads(place.join("config.json").read_text()).get("build", {})
    described = build.get("text_tower", build.get("bert"))  # the second before version 3
    return None if described is None or described.get("model_type") != "bert" else dict(described)


def _of_run(config: TextTowerConfig) -> BertModel | None:
    """The text tower of a run's folder `model`; None if the name is not one."""
    described = _described_by_run(config)
    if described is None:
        return None
    dropout = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    bert = bert_from({**described, **dropout})
    tensors = read_safetensors(Location.of(config.name).join("model.safetensors"))
    of_bert = {n.removeprefix(_BERT): x for n, x in tensors.items() if n.startswith(_BERT)}
    load_weights(bert, of_bert, f"The text tower's weights in {config.name} do not fit its config.json")
    return bert


def _described_by_name(config: TextTowerConfig) -> dict[str, Any]:
    """The architecture of a Hugging Face BERT. CornerstoneError if there is none of that name."""
    try:
        described: dict[str, Any] = BertConfig.get_config_dict(config.name)[0]
    except Exception as error:  # from a missing file to a hub that does not answer
        raise CornerstoneError(_cannot_load(config.name, error)) from error
    if described.get("model_type") != "bert":
        raise CornerstoneError(
            f"The text tower {config.name!r} is a {described.get('model_type', 'model of unknown type')}, not a BERT: "
            f"name a BERT, for example bert-base-uncased (--recipe.method.text.name)."
        )
    return described


def _named(config: TextTowerConfig) -> BertModel:
    _described_by_name(config)  # its refusals are clearer than those of the model's class
    dropout: dict[str, Any] = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    try:
        return BertModel.from_pretrained(config.name, dtype=torch.float32, **dropout)
    except Exception as error:
        raise CornerstoneError(_cannot_load(config.name, error)) from error


def _cannot_load(name: str, error: Exception) -> str:
    return (
        f"Cannot load the text tower {name!r}: {first_line(error)}. Expected a Hugging Face BERT by name or a folder with "
        f"config.json and model.safetensors; --recipe.method.text.name '' makes a new one of "
        f"--recipe.method.text.width and layers."
    )
