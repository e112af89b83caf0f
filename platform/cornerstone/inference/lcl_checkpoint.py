"""What LCL's authors released: their weights under this project's names, and the configuration that the shapes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cornerstone.errors import CornerstoneError
from cornerstone.models.loading import misnamed
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.lcl import LclConfig, LclLoss
from cornerstone.recipes.towers import ImageTower

HEAD_WIDTH = 64
CLIP_TOWER = "vit_base_patch16_clip_224"
"""timm's model of CLIP's architecture: a norm before the blocks, another after them, GELU."""
_POSITION_OFFSET = 2
"""Rows of OPT's position table that no position uses."""
_NAMES = (
    (r"visual\.class_embedding", "visual.model.cls_token"),
    (r"visual\.positional_embedding", "visual.model.pos_embed"),
    (r"visual\.conv1\.", "visual.model.patch_embed.proj."),
    (r"visual\.ln_pre\.", "visual.model.norm_pre."),
    (r"visual\.ln_post\.", "visual.model.norm."),
    (r"visual\.transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"visual.model.blocks.\1.norm\2."),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"visual.model.blocks.\1.attn.qkv."),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"visual.model.blocks.\1.attn.proj."),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"visual.model.blocks.\1.mlp.fc1."),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"visual.model.blocks.\1.mlp.fc2."),
    (r"visual\.transformer\.resblocks\.(\d+)\.ls_(\d)\.gamma", r"visual.model.blocks.\1.ls\2.gamma"),
    (r"pool_project\.pooler\.norm1_q\.", "pool.norm_query."),
    (r"pool_project\.pooler\.norm1_k\.", "pool.norm_key."),
    (r"pool_project\.pooler\.norm1_v\.", "pool.norm_value."),
    (r"pool_project\.pooler\.cross_attn\.([qkv])\.weight", r"pool.to_\1.weight"),
    (r"pool_project\.pooler\.cross_attn\.([qkv])_bias", r"pool.to_\1.bias"),
    (r"pool_project\.pooler\.cross_attn\.proj\.", "pool.out."),
    (r"pool_project\.query_token", "pool.query"),
    (r"text\.token_embedding\.", "language.decoder.embed_tokens."),
    (r"text\.ln_final\.", "context.0."),
    (r"text\.text_projection", "context.1.weight"),
    (r"text\.transformer\.resblocks\.(\d+)\.ln_1\.", r"language.decoder.layers.\1.self_attn_layer_norm."),
    (r"text\.transformer\.resblocks\.(\d+)\.ln_2\.", r"language.decoder.layers.\1.final_layer_norm."),
    (r"text\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"language.decoder.layers.\1.self_attn.out_proj."),
    (r"text\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"language.decoder.layers.\1.fc1."),
    (r"text\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"language.decoder.layers.\1.fc2."),
    (r"lm_head\.", "head."),
)
_POOL = "pool_project.pooler.cross_attn.q.weight"
_NEEDED = (
    *("visual.conv1.weight", "visual.positional_embedding", "text.token_embedding.weight", "lm_head.1.weight"),
    *("text.positional_embedding", _POOL, "logit_scale"),
)
"""Weights that tell the sizes."""
_PREFIX = re.compile(r"^(module\.|model\.)+")
_FULL = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads, which no weight's shape tells; 0: one for every 64 places of the width."""

    visual: int = 0
    text: int = 0
    pooling: int = 0


class LclCheckpoint(NamedTuple):
    """A checkpoint in this project's names."""

    config: LclConfig
    state: dict[str, Tensor]
    """The whole state of `Lcl`."""
    rows: int
    """Rows of the word embeddings; the last three are the image's placeholder, <BoI> and <EoI>."""


def from_checkpoint(state: Mapping[str, Tensor], heads: Heads | None = None) -> LclCheckpoint:
    """Rename the authors' weights. If names begin with `model.` or `module.`, others are not the model's and are left out.

    Raises CornerstoneError if a weight is missing or unknown.
    """
    heads = heads or Heads()
    prefixed = {name: value for name, value in state.items() if _PREFIX.match(name)}
    state = {_PREFIX.sub("", name): value for name, value in (prefixed or state).items()}
    state = {name: value for name, value in state.items() if not name.endswith(("attn_mask", "position_ids"))}
    named = {name: _renamed(name, value) for name, value in state.items() if name != "logit_scale"}
    left = {name: state[name] for name, found in named.items() if not found}
    if said := misnamed([name for name in _NEEDED if name not in state], left):
        raise CornerstoneError(f"Not an LCL checkpoint: {said}. Give the file that its authors released.")
    config, rows = _config(state, heads)
    renamed = {"logit_scale": state["logit_scale"].reshape(1)}
    for found in named.values():
        renamed |= found
    return LclCheckpoint(config, renamed, rows)


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A weight by its names here; {} if it is not one of LCL's."""
    if name == "text.positional_embedding":
        unused = value.new_zeros(_POSITION_OFFSET, value.shape[1])
        return {"language.decoder.embed_positions.weight": torch.cat([unused, value])}
    if found := re.fullmatch(r"text\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        layer, kind = found.groups()
        place = f"language.decoder.layers.{layer}.self_attn"
        return {f"{place}.{p}_proj.{kind}": part.clone() for p, part in zip("qkv", value.chunk(3), strict=True)}
    for pattern, ours in _NAMES:
        if re.match(pattern, name):
            new = re.sub(f"^{pattern}", ours, name)
            new = re.sub(r"pool\.to_([qkv])\.", lambda letter: f"pool.to_{_FULL[letter[1]]}.", new)
            return {new: _shaped(new, value)}
    return {}


def _shaped(name: str, value: Tensor) -> Tensor:
    """A CLIP tower keeps its class token and positions without a batch dimension, and its projection transposed."""
    if name == "visual.model.cls_token":
        return value.reshape(1, 1, -1)
    if name == "visual.model.pos_embed":
        return value[None]
    if name == "context.1.weight":
        return value.T.contiguous()
    return value.reshape(1, -1) if name == "pool.query" else value


def _config(state: Mapping[str, Tensor], heads: Heads) -> tuple[LclConfig, int]:
    inside, _, patch, _ = state["visual.conv1.weight"].shape
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    rows, width = state["text.token_embedding.weight"].shape
    embedding = len(state[_POOL])
    image = ImageTower(
        name=CLIP_TOWER,
        pretrained=False,
        locked=False,
        size=side * patch,
        pooling="none",
        width=inside,
        layers=_layers(state, "visual"),
        heads=heads.visual or inside // HEAD_WIDTH,
        patch=patch,
        layer_scale=1.0 if any(".ls_1." in name for name in state) else 0.0,
    )
    language = CausalText(
        width=width,
        layers=_layers(state, "text"),
        heads=heads.text or width // HEAD_WIDTH,
        positions=len(state["text.positional_embedding"]),
        activation="gelu",
        restart_positions=False,
    )
    config = LclConfig(
        image=image,
        language=language,
        embedding=embedding,
        pooling_heads=heads.pooling or embedding // HEAD_WIDTH,
        shared_values=True,
        loss=LclLoss(unpreceded="authors"),
    )
    return config, rows


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    found = [re.match(rf"{tower}\.transformer\.resblocks\.(\d+)\.", name) for name in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)
