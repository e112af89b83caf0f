"""The image towers of released models as timm's, so that a transfer measures them as it measures a run's.

| released | timm's architecture | its patches are |
|---|---|---|
| CLIP, Long-CLIP | `vit_base_patch16_clip_224` of its sizes | those behind the last norm, not projected |
| SigLIP, SigLIP 2 of a fixed size | `vit_base_patch16_siglip_224` of its sizes | those that its attention pooling reads |
| timm's own: open_clip with a timm tower, exported dual encoders, LoTLIP | the same | timm's |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from cornerstone.errors import CornerstoneError
from cornerstone.inference.opened_model import OpenedModel
from cornerstone.inference.released.model import ReleasedModel
from cornerstone.inference.saved_model import SavedModel
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.loading import load_weights

CLIP, SIGLIP = "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224"
LARGER = {
    CLIP: {1024: "vit_large_patch14_clip_224", 1280: "vit_huge_patch14_clip_224"},
    SIGLIP: {1024: "vit_large_patch16_siglip_256", 1152: "vit_so400m_patch14_siglip_224"},
}
"""timm's models of the same architecture by their width, whose feed-forward layers have sizes of their own."""
NORM_EPS = {CLIP: 1e-5, SIGLIP: 1e-6}
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' names and timm's."""
_NAMES = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"post_layernorm\.", "norm."),
    (r"encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
)


def image_tower_of(model: OpenedModel) -> TimmTower:
    """The image tower of an opened model, without pooling; a run's as it is.

    Raises CornerstoneError for a model without one, and for a tower that gives no patches of a fixed grid.
    """
    if isinstance(model, SavedModel):
        if model.module.image_tower is None:
            raise CornerstoneError(
                f"This model was saved without an image tower (its method is {model.name!r}): transfer needs one. Name the "
                f"folder `model` of a run, or timm:NAME."
            )
        return model.module.image_tower
    assert isinstance(model, ReleasedModel)
    library: Any = model.module.model
    found = _of_open_clip(library.visual) if hasattr(library, "visual") else _of_transformers(library)
    if found is None:
        raise CornerstoneError(
            f"The image tower of {model.name} gives no patches of a fixed grid: transfer needs a vision transformer, as "
            f"those of CLIP, Long-CLIP, LoTLIP, SigLIP and SigLIP 2 of a fixed size, not a convolutional one (ALIGN) or NaFlex."
        )
    arguments, weights = found
    arguments = {**arguments, "num_classes": 0, "global_pool": "", "img_size": model.image_size}
    made = timm.create_model(**arguments)
    expected = made.state_dict().keys()
    if any(name.startswith("visual.") for name in weights):
        weights = checkpoint_filter_fn(dict(weights), made)  # type: ignore[arg-type]  # of whatever vision transformer
    load_weights(
        made, {n: x for n, x in weights.items() if n in expected or not _pools(n)}, f"The tower of {model.name}"
    )
    tower = TimmTower(made, model.image_size, arguments)
    tower.mean, tower.std = model.mean_std
    return tower


def _pools(name: str) -> bool:
    """Whether a weight belongs to what makes one feature of the patches."""
    return name.startswith(("head.", "fc_norm.", "attn_pool."))


def _of_open_clip(visual: nn.Module) -> tuple[dict[str, Any], Mapping[str, Tensor]] | None:
    if isinstance(visual, TimmModel):
        return _of_timm(visual.trunk)
    if not isinstance(visual, VisionTransformer) or isinstance(visual.ln_pre, nn.Identity):
        return None
    block: Any = visual.transformer.resblocks[0]
    weights: Any = visual.conv1.weight
    activation = "quick_gelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else "gelu"
    arguments = _sizes(
        CLIP,
        patch=weights.shape[-1],
        width=weights.shape[0],
        layers=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        between=block.mlp.c_fc.out_features,
    )
    return {**arguments, "act_layer": activation}, {
        f"visual.{name}": value for name, value in visual.state_dict().items()
    }


def _sizes(architecture: str, *, patch: int, width: int, layers: int, heads: int, between: int) -> dict[str, Any]:
    """timm's arguments. The ratio of the feed-forward layers is left out of a model that has its own."""
    sizes = {"patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads}
    if width in LARGER[architecture]:
        return {"model_name": LARGER[architecture][width], **sizes}
    return {"model_name": architecture, **sizes, **({} if between == 4 * width else {"mlp_ratio": between / width})}


def _of_timm(trunk: Any) -> tuple[dict[str, Any], Mapping[str, Tensor]] | None:
    """A vision transformer of timm by its own name."""
    described = getattr(trunk, "pretrained_cfg", None) or {}
    if not hasattr(trunk, "blocks") or not hasattr(trunk, "patch_embed") or "architecture" not in described:
        return None
    return {"model_name": described["architecture"]}, trunk.state_dict()


def _of_transformers(library: Any) -> tuple[dict[str, Any], Mapping[str, Tensor]] | None:
    vision = library.config.vision_config
    if vision.model_type == "timm_wrapper":  # of an exported model
        named = {"model_name": vision.architecture, **(vision.model_args or {})}
        return named, library.vision_model.timm_model.state_dict()
    architecture = {"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP}.get(vision.model_type)
    if architecture is None:
        return None
    if vision.hidden_act not in ACTIVATIONS or vision.layer_norm_eps != NORM_EPS[architecture]:
        raise CornerstoneError(
            f"The tower's activation {vision.hidden_act} and its norms' epsilon {vision.layer_norm_eps:g} are not those of "
            f"released models: expected {' or '.join(ACTIVATIONS)}, and {NORM_EPS[architecture]:g}."
        )
    arguments = _sizes(
        architecture,
        patch=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        between=vision.intermediate_size,
    )
    return {**arguments, "act_layer": ACTIVATIONS[vision.hidden_act]}, _renamed(library.vision_model.state_dict())


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names as timm's; the pooling, and tables that are no weights, are left out."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("head.") or name.endswith("position_ids"):
            continue
        if matched := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            found[f"blocks.{matched[1]}.attn.qkv.{matched[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj\.", name):
            new = name
            for pattern, ours in _NAMES:
                new = re.sub(f"^{pattern}", ours, new)
            shaped = {"cls_token": (1, 1, -1), "pos_embed": (1, *value.shape)}.get(new)
            found[new] = value if shaped is None else value.reshape(shaped)
    return found
