"""LoTLIP as its authors released it: their open_clip layout with corner tokens, opened as a method of this project."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cornerstone.data.released_texts import ReleasedFormat, ReleasedTexts
from cornerstone.data.texts import FILE, plain_tokenizer, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.inference.convert import read_state
from cornerstone.inference.lotlip_checkpoint import from_checkpoint
from cornerstone.inference.saved_model import SavedModel, save_model
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.loading import load_weights
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.towers import CornerText, ImageTower
from cornerstone.runtime.tokenizer import DEFAULT, load_tokenizer

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
ENDINGS = (".safetensors", ".bin", ".pt")
VISION = "vit_base_patch16_224.augreg_in21k"
HEAD_WIDTH = 64


def open_lotlip(folder: Path) -> SavedModel:
    """The model of a folder with open_clip_config.json, weights and tokenizer.json, which may be missing if it is BERT's.

    Raises CornerstoneError if one does not fit.
    """
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None) or _only_file(folder)
    described = json.loads((folder / CONFIG).read_text())["model_cfg"]
    vision, text = described["vision_cfg"], described["text_cfg"]
    return lotlip_model(
        read_state(str(weights)),
        load_tokenizer(str(folder) if (folder / FILE).is_file() else text.get("hf_tokenizer_name") or DEFAULT),
        vision=vision.get("timm_model_name", VISION),
        size=int(vision.get("image_size", 0)),
        limit=int(text.get("context_length", 128)),
        heads=int(text.get("heads", 0)),
        source=folder.name,
    )


def _only_file(folder: Path) -> Path:
    """The one file of weights under whatever name. CornerstoneError if there is none, or more than one."""
    found = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)
    if len(found) != 1:
        several = f": which of {', '.join(file.name for file in found)} is meant?" if found else ":"
        raise CornerstoneError(
            f"{folder} holds {'several' if found else 'no'} weights{several} Expected one of {', '.join(WEIGHTS)}, or one file "
            f"that ends in {', '.join(ENDINGS)}."
        )
    return found[0]


def lotlip_model(
    state: Mapping[str, Tensor],
    tokenizer: str,
    *,
    vision: str = VISION,
    size: int = 0,
    limit: int = 128,
    heads: int = 0,
    source: str = "",
) -> SavedModel:
    """The authors' weights with their treatment of texts: ". " becomes [SEP], then white space and entities are cleaned.

    `size` of an image: 0 for as many pixels as the tower's positions cover. `heads` of the text tower: 0 for one for every
    64 places of its width. Raises CornerstoneError if the weights do not fit.
    """
    vocabulary = vocabulary_size(plain_tokenizer(tokenizer))
    weights = from_checkpoint(state, vocab_size=vocabulary)
    config = LotlipConfig(
        image=ImageTower(vision, pretrained=False, size=size or _pixels(weights.image)),
        text=CornerText(name="", corner_tokens=weights.corners, token_limit=limit),
        loss=LotlipLoss(reduction="mean"),
    )
    tower = build_image_tower(config.image)
    model = Lotlip(config, Inputs(vocabulary, tower.width, tower), text_tower=_bert(weights.method, vocabulary, heads))
    named = source or "LoTLIP"
    load_weights(tower.model, weights.image, f"The image tower's weights in {named} do not fit {vision}")
    load_weights(model, weights.method, f"The text tower's weights in {named} do not fit a BERT")
    texts = ReleasedTexts(ReleasedFormat.name, tokenizer, limit - weights.corners, "lotlip")
    return SavedModel(model, tokenizer, {"name": "lotlip", "source": source}, texts)


def convert_lotlip(source: str, out: str, tokenizer: str, *, say: Callable[[str], None] = print, **sizes: Any) -> None:
    """Write LoTLIP's released weights as a model folder; `sizes` as in `lotlip_model`."""
    model = lotlip_model(read_state(source), tokenizer, source=Path(source).name, **sizes)
    module = model.module
    texts = model.text_input
    assert isinstance(texts, ReleasedTexts)
    save_model(out, module, recipe=model.recipe, tokenizer_json=tokenizer, texts=texts)
    parameters = sum(p.numel() for part in (module, module.image_tower) if part for p in part.parameters())
    corners = module.config.text_tower.reserved_tokens if module.config.text_tower else 0
    say(f"LoTLIP: {parameters:,} parameters, {corners} corner tokens, {model.image_size} px in {out}")


def _pixels(state: dict[str, Tensor]) -> int:
    """Side of the image that a vision transformer's positions cover; a class token comes first."""
    if not {"pos_embed", "patch_embed.proj.weight"} <= set(state):
        raise CornerstoneError("The checkpoint's image tower is no vision transformer of timm: it has no pos_embed.")
    return math.isqrt(state["pos_embed"].shape[1] - 1) * state["patch_embed.proj.weight"].shape[-1]


def _bert(state: dict[str, Tensor], vocabulary: int, heads: int) -> dict[str, Any]:
    """A BERT's configuration, read from the shapes of its weights."""
    prefix = "text.bert."
    width = state[f"{prefix}embeddings.position_embeddings.weight"].shape[1]
    layers = {int(n.split(".")[4]) for n in state if n.startswith(f"{prefix}encoder.layer.")}
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads or max(width // HEAD_WIDTH, 1),
        "intermediate_size": len(state[f"{prefix}encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(state[f"{prefix}embeddings.position_embeddings.weight"]),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
