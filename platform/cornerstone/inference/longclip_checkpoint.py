"""Long-CLIP's released weights as a CLIP of transformers with 248 positions.

Its text tower reads positions 0 to 19 from one table and the others from a second one; here they become one table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cornerstone.errors import CornerstoneError
from cornerstone.models.loading import misnamed
from cornerstone.models.positions import KEPT, stretched

FIRST, REST = "positional_embedding", "positional_embedding_res"
HEAD_WIDTH = 64
"""Places of a head, in both towers."""
_OTHER = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    FIRST: "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
"""OpenAI's names, and those of transformers."""
_IN_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_IN_BLOCK["attn.out_proj"] = "self_attn.out_proj"
_BUFFERS = ("input_resolution", "context_length", "vocab_size")


class LongClip(NamedTuple):
    """A checkpoint in the names of transformers."""

    config: dict[str, Any]
    """Of a `CLIPConfig`."""
    state: dict[str, Tensor]
    """Of a `CLIPModel`."""


def from_checkpoint(state: Mapping[str, Tensor], *, stretch: bool = False, half: bool = False) -> LongClip:
    """Rename the authors' weights.

    Args:
        state: Names may begin with `module.`.
        stretch: Take OpenAI's CLIP instead, with 77 positions, and stretch them: what Long-CLIP's training starts from.
        half: Round what the authors' loader holds in fp16 (linear layers and projections; positions are stretched in fp16).

    Raises CornerstoneError for another architecture: which weights are missing, left over, or of another shape.
    """
    state = {name.removeprefix("module."): value.float() for name, value in state.items() if name not in _BUFFERS}
    _check_names(state, {FIRST} if stretch else {FIRST, REST})
    second = state.pop(REST, None)
    if second is not None:
        if second.shape != state[FIRST].shape:
            raise CornerstoneError(
                f"The two position tables differ: {FIRST} is {tuple(state[FIRST].shape)}, {REST} {tuple(second.shape)}."
            )
        state[FIRST] = torch.cat([state[FIRST][:KEPT], second[KEPT:]])
    else:
        state[FIRST] = stretched(state[FIRST], half=half)
    if half:
        state = {name: value.half().float() if _is_half(name) else value for name, value in state.items()}
    config = _config(state)
    renamed = {new: value.contiguous() for name, value in state.items() for new, value in _renamed(name, value)}
    return LongClip(config, renamed)


def _is_half(name: str) -> bool:
    linear = (
        ".in_proj_weight",
        ".in_proj_bias",
        "_proj.weight",
        "_proj.bias",
        "c_fc.weight",
        "c_fc.bias",
        "conv1.weight",
    )
    return name.endswith((*linear, "text_projection", "visual.proj"))


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name in ("text_projection", "visual.proj"):
        yield _OTHER[name], value.T
    elif name in _OTHER:
        yield _OTHER[name], value
    else:
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        _, _, rest = name.partition("resblocks.")
        layer, _, part = rest.partition(".")
        prefix = f"{tower}.encoder.layers.{layer}."
        if part.startswith("attn.in_proj_"):
            for which, third in zip("qkv", value.chunk(3), strict=True):
                yield f"{prefix}self_attn.{which}_proj.{part.removeprefix('attn.in_proj_')}", third
        else:
            module, _, kind = part.rpartition(".")
            yield f"{prefix}{_IN_BLOCK[module]}.{kind}", value


def _check_names(state: Mapping[str, Tensor], tables: set[str]) -> None:
    """Raise CornerstoneError unless the names are those of CLIP with these position tables."""
    layers = {tower: _layers(state, tower) for tower in ("", "visual.")}
    wanted = (set(_OTHER) - {FIRST}) | tables
    wanted |= {
        f"{tower}transformer.resblocks.{layer}.{part}"
        for tower, count in layers.items()
        for layer in range(max(count, 1))
        for part in (
            *(f"{module}.{kind}" for module in _IN_BLOCK for kind in ("weight", "bias")),
            *("attn.in_proj_weight", "attn.in_proj_bias"),
        )
    }
    missing, left = sorted(wanted - set(state)), sorted(set(state) - wanted)
    if not missing and not left:
        return
    said, hint = misnamed(missing, {name: state[name] for name in left}), ""
    if missing == [REST]:
        hint = " These are the weights of CLIP: --stretch makes of them what Long-CLIP's training starts from."
    elif left == [REST]:
        hint = " These are the weights of Long-CLIP: leave out --stretch."
    raise CornerstoneError(f"Not a checkpoint of Long-CLIP with a vision transformer: {said}.{hint}")


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    prefix = f"{tower}transformer.resblocks."
    numbers = [name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes by the shapes of the weights. The token that ends a text has the largest id."""
    words, inside = state["token_embedding.weight"].shape
    seen, patch = state["visual.conv1.weight"].shape[0], state["visual.conv1.weight"].shape[-1]
    side = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
    text = {
        **_sizes(inside, _layers(state, "")),
        "vocab_size": words,
        "max_position_embeddings": len(state[FIRST]),
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0,
    }
    vision = {**_sizes(seen, _layers(state, "visual.")), "patch_size": patch, "image_size": side * patch}
    return {
        "projection_dim": state["text_projection"].shape[1],
        "text_config": {**text, **common},
        "vision_config": {**vision, **common},
    }


def _sizes(width: int, layers: int) -> dict[str, int]:
    if width % HEAD_WIDTH:
        raise CornerstoneError(
            f"A tower of Long-CLIP has a head for every {HEAD_WIDTH} places; this one is {width} wide."
        )
    heads = width // HEAD_WIDTH
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"intermediate_size": 4 * width}
