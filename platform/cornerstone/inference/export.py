"""Models in the layout of the library that opens them without this package, each with a model card.

A dual encoder with a BERT becomes transformers' VisionTextDualEncoderModel: BERT with its pooler, a timm vision transformer,
two projections without bias. Corner tokens, which no other token attends to, are left out; their places stay, as a shift of
the text's positions. A released model is written in its own library's layout. Of other methods only the image tower opens
elsewhere, by timm; the whole model is copied as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cornerstone.data.released_images import FixedTransform
from cornerstone.data.released_texts import ReleasedTexts
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import special_ids
from cornerstone.errors import CornerstoneError
from cornerstone.inference.model_card import COPIED, card
from cornerstone.inference.opened_model import OpenedModel
from cornerstone.inference.released.hugging_face import EXPORTED, HuggingFaceEncoder
from cornerstone.inference.released.model import ReleasedEncoder
from cornerstone.inference.saved_model import SavedModel, save_model
from cornerstone.models.corner_text import CornerBert
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.image_tower import TimmTower

PREPROCESSING = "preprocessor_config.json"
IMAGE_TOWER = "image_tower"
COMPARED = ("encode_image", "encode_text", "similarity", "text_similarity")
"""What a method must have in common with every dual encoder: features of the towers alone, compared by their cosine."""


def export(model: OpenedModel, out: str, metrics: Mapping[str, float] | None = None) -> tuple[str, str]:
    """Write the model and its card to a new folder.

    Returns what opens it, a key of `model_card.OPENED_BY`, and why no other library opens it whole ("" if one does).

    Raises CornerstoneError if the folder is not empty or is no local one.
    """
    folder = Path(out).expanduser()
    if "://" in out:
        raise CornerstoneError(f"Models are exported to a folder of this machine, not to {out}: give a local --out.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CornerstoneError(f"{out} is not empty: name another --out, or delete that folder first.")
    folder.mkdir(parents=True, exist_ok=True)
    why = _not_portable(model) if isinstance(model, SavedModel) else ""
    if isinstance(model.module, HuggingFaceEncoder):
        opened = _released(model, folder)
    elif not isinstance(model, SavedModel):
        raise CornerstoneError(
            f"{model.name} is a model of open_clip, whose own layout it is in already: copy its folder."
        )
    else:
        opened = _copied(model, folder) if why else _dual_encoder(model, folder)
    (folder / "README.md").write_text(card(model, opened, metrics, why))
    return opened, why


def _not_portable(model: SavedModel) -> str:
    """Why transformers has no such architecture; "" if it has."""
    module = model.module
    own = [name for name in COMPARED if getattr(type(module), name, None) is not getattr(DualEncoder, name)]
    if not isinstance(module, DualEncoder) or own:
        return f"transformers has no architecture of the method {model.name!r}"
    if not isinstance(module.text, CornerBert):
        return "its text tower is no BERT whose [CLS] is the text's feature"
    if module.text.count and not module.text.masked:
        return "its [CLS] attends to learnable tokens, which transformers' BERT does not have"
    if module.image_tower is None:
        return "it was saved without an image tower"
    if isinstance(model.text_input, ReleasedTexts) and model.text_input.cleaning != "lotlip":
        return "its texts are cleaned in a way of their own"
    return ""


def _released(model: OpenedModel, folder: Path) -> str:
    encoder = model.module
    assert isinstance(encoder, HuggingFaceEncoder)
    library: Any = encoder.model
    library.save_pretrained(folder)
    _beside(model, folder)
    return "transformers"


def _copied(model: SavedModel, folder: Path) -> str:
    """The model as it is, and its image tower in timm's layout."""
    from timm.models import save_for_hf

    texts = model.text_input if isinstance(model.text_input, ReleasedTexts) else None
    save_model(str(folder), model.module, recipe=model.recipe, tokenizer_json=model.tokenizer_json, texts=texts)
    tower = model.module.image_tower
    if tower is None:
        return COPIED
    arguments = {name: value for name, value in tower.arguments.items() if name not in ("model_name", "num_classes")}
    seen = {"input_size": (3, tower.size, tower.size), "mean": tower.mean, "std": tower.std}
    described = {"model_args": arguments, "pretrained_cfg": seen}
    save_for_hf(tower.model, str(folder / IMAGE_TOWER), model_config=described, safe_serialization=True)
    return "timm"


def _dual_encoder(model: SavedModel, folder: Path) -> str:
    """As transformers' VisionTextDualEncoderModel."""
    from transformers import TimmWrapperConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    module, texts = model.module, model.text_input
    assert isinstance(module, DualEncoder)
    text: CornerBert = module.text  # type: ignore[assignment]
    tower: Any = module.image_tower
    m, limit = text.count, module.config.text.token_limit
    described = {**text.bert.config.to_dict(), "max_position_embeddings": limit - m}
    for unknown in ("_name_or_path", "architectures"):
        described.pop(unknown, None)
    config = VisionTextDualEncoderConfig(
        vision_config=_vision_config(tower, TimmWrapperConfig),
        text_config=described,
        projection_dim=tower.width,
    )
    config.text_cleaning = texts.cleaning if isinstance(texts, ReleasedTexts) else EXPORTED.cleaning
    made: Any = VisionTextDualEncoderModel(config)
    state = dict(text.bert.state_dict())
    positions = "embeddings.position_embeddings.weight"
    state[positions] = torch.cat(
        [state[positions][:1], state[positions][1 + m : limit]]
    )  # text stands behind m corners
    state = {name: value for name, value in state.items() if not name.endswith(("position_ids", "token_type_ids"))}
    _loaded(made.text_model, state)
    _loaded(made.vision_model.timm_model, dict(tower.model.state_dict()))
    with torch.no_grad():
        made.text_projection.weight.copy_(text.project.weight)
        made.visual_projection.weight.copy_(
            torch.eye(tower.width) if tower.projection is None else tower.projection.weight
        )
        made.logit_scale.copy_(module.logit_scale.squeeze())
    made.save_pretrained(folder)
    _beside(model, folder)
    return "dual-encoder"


def _vision_config(tower: TimmTower, kind: Any) -> dict[str, Any]:
    arguments = {name: value for name, value in tower.arguments.items() if name not in ("model_name", "num_classes")}
    inside = int(getattr(tower.model, "num_features"))  # noqa: B009 - a tensor or a module for the type checker
    made = kind(architecture=tower.arguments["model_name"], model_args=arguments, do_pooling=True, num_labels=0)
    described: dict[str, Any] = made.to_dict()
    return described | {"hidden_size": inside, "image_size": tower.size}


def _loaded(module: nn.Module, state: dict[str, Any]) -> None:
    found = module.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith(("position_ids", "token_type_ids"))]
    if missing or found.unexpected_keys:
        raise CornerstoneError(
            f"This model does not fit transformers' architecture: {', '.join([*missing, *found.unexpected_keys][:4])}."
        )


def _beside(model: OpenedModel, folder: Path) -> None:
    """The tokenizer, how images are seen, and the recipe."""
    from transformers import PreTrainedTokenizerFast

    texts = model.text_input
    assert texts is not None
    tokenizer: Any = texts.open().tokenizer
    known = _special_tokens(tokenizer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=texts.max_tokens, **known).save_pretrained(
        folder
    )
    (folder / TOKENIZER).write_text(model.tokenizer_json)
    (folder / PREPROCESSING).write_text(json.dumps(_preprocessing(model), indent=1) + "\n")
    (folder / "recipe.json").write_text(json.dumps(dict(model.recipe), indent=1) + "\n")


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    pairs = {"pad_token": ("[PAD]", "<pad>", "<|endoftext|>"), "unk_token": ("[UNK]", "<unk>", "<|endoftext|>")}
    found = {
        name: next((token for token in tokens if tokenizer.token_to_id(token) is not None), None)
        for name, tokens in pairs.items()
    }
    try:
        first, last = (tokenizer.id_to_token(number) for number in special_ids(tokenizer))
        found |= {"cls_token": first, "sep_token": last}
    except CornerstoneError:  # T5's and Gemma's vocabularies have no token that begins a text
        pass
    return {name: token for name, token in found.items() if token is not None}


def _preprocessing(model: OpenedModel) -> dict[str, Any]:
    """What a processor of images of `transformers` reads."""
    mean, std = model.mean_std
    seen = model.module.seen if isinstance(model.module, ReleasedEncoder) else None
    return {
        **(seen.transform if seen is not None else FixedTransform(model.image_size)).processor(),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }
