"""Released CLIP weights for the text tower of `clip_text.py`: from transformers' names, positions stretched if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from cornerstone.errors import CornerstoneError, first_line
from cornerstone.models.positions import FACTOR, KEPT, stretched
from cornerstone.recipes.towers import ClipText

_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_IN_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_IN_BLOCK |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_POSITIONS, _PROJECTION = "embeddings.position_embedding.weight", "text_projection.weight"


def load_released(tower: nn.Module, config: ClipText) -> None:
    """Replace a `ClipTextTransformer`'s weights by those of the CLIP that `config.name` names.

    Raises CornerstoneError if it cannot be opened, and if its sizes or its activation are not the configuration's.
    """
    model = read_clip_text(config.name)
    sizes = {name: tuple(value.shape) for name, value in tower.state_dict().items()}
    words, width = sizes["token_embedding.weight"][0], sizes["text_projection"][1]
    _refuse_others(model.config, config, words, model.text_projection.out_features, width)
    state = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    named = {mine: state[theirs] for mine, theirs in _TOP.items()}
    for layer in range(config.layers):
        mine, theirs = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            named |= {f"{mine}{a}.{kind}": state[f"{theirs}{b}.{kind}"] for a, b in _IN_BLOCK.items()}
            parts = [state[f"{theirs}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            named[f"{mine}attn.in_proj_{kind}"] = torch.cat(parts)
    named["text_projection"] = state[_PROJECTION].T
    named["positional_embedding"] = positions(state[_POSITIONS], config.token_limit)
    tower.load_state_dict(named)


def positions(table_PE: Tensor, limit: int) -> Tensor:
    """(limit, E): the first rows of a position table, or of the stretched one if it has fewer."""
    most = KEPT + FACTOR * (len(table_PE) - KEPT)
    if limit > max(most, len(table_PE)):
        raise CornerstoneError(
            f"{len(table_PE)} positions can be stretched to {most}, not to {limit}: set "
            f"--recipe.method.text.token-limit {most} or less."
        )
    return (table_PE if limit <= len(table_PE) else stretched(table_PE))[:limit]


class ClipTextHalf(nn.Module):
    """What a text tower needs of transformers' CLIP, with the configuration of its text half."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.config = clip.config.text_config
        self.text_model, self.text_projection = clip.text_model, clip.text_projection


def read_clip_text(name: str) -> ClipTextHalf:
    """The text half of a CLIP. Raises CornerstoneError if it cannot be loaded, or is no CLIP."""
    try:
        found: Any = CLIPModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CornerstoneError(
            f"Cannot load the text tower {name!r}: {first_line(error)}. "
            "Expected a CLIP in the layout of transformers, by name or folder "
            f"(--recipe.method.text.name)."
        ) from error
    model, loaded = found
    if missing := sorted(loaded["missing_keys"]):
        raise CornerstoneError(
            f"The weights of {name!r} are not those of CLIP: {len(missing)} are missing, {missing[0]} among them "
            f"(--recipe.method.text.name)."
        )
    return ClipTextHalf(model)


def _refuse_others(described: Any, config: ClipText, words: int, gives: int, width: int) -> None:
    given: Mapping[str, tuple[Any, Any]] = {
        "width": (described.hidden_size, config.width),
        "layers": (described.num_hidden_layers, config.layers),
        "heads": (described.num_attention_heads, config.heads),
        "activation": (described.hidden_act, config.activation),
    }
    for option, (theirs, mine) in given.items():
        if theirs != mine:
            raise CornerstoneError(
                f"The text tower {config.name!r} has {option} {theirs}, the recipe says {mine}: set "
                f"--recipe.method.text.{option} {theirs}."
            )
    if described.intermediate_size != 4 * config.width:
        raise CornerstoneError(
            f"The text tower {config.name!r} has feed-forward layers of {described.intermediate_size}, not of 4 × "
            f"{config.width}: name one of CLIP's own sizes."
        )
    if gives != width:
        raise CornerstoneError(
            f"The text tower {config.name!r} gives {gives} numbers, the image tower {width}: name the image "
            f"tower that it was trained with, or give yours such a projection (--recipe.method.image.projection "
            f"{gives})."
        )
    if described.vocab_size != words:
        raise CornerstoneError(
            f"The text tower {config.name!r} has {described.vocab_size:,} words, the tokenizer {words:,}: name CLIP's "
            f"tokenizer (--recipe.data.tokenizer openai/clip-vit-base-patch16)."
        )
