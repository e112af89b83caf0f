"""Dual encoders in the Hugging Face layout: CLIP (Long-CLIP with 248 positions), SigLIP, SigLIP 2 and ALIGN.

`FAMILIES` says, by the model type of config.json, what transformers does not: how texts are cleaned, padded and cut, and how
images are seen where the folder has no preprocessor_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from cornerstone.data.released_images import Filter, FixedTransform
from cornerstone.data.released_texts import ReleasedFormat, ReleasedTexts
from cornerstone.data.texts import FILE, plain_tokenizer
from cornerstone.errors import CornerstoneError, did_you_mean, nearest
from cornerstone.inference.released.model import ReleasedEncoder, ReleasedModel, Seen
from cornerstone.models.loading import some
from cornerstone.runtime.hub import hub_answers
from cornerstone.runtime.tokenizer import load_tokenizer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
SEEN_BY_ALIGN = FixedTransform(289, 346, squash=True, filter="bilinear")
WELL_KNOWN = (
    *("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"),
    *("google/siglip-base-patch16-224", "google/siglip-so400m-patch14-384", "google/siglip2-base-patch16-224"),
    "kakaobrain/align-base",
)
"""Names that a misspelt one is compared with; any other of the families opens too."""
Config = Any
"""A configuration of transformers."""


@dataclass(frozen=True)
class Family:
    """What the models of a family have in common."""

    cleaning: str
    begins: bool
    """Whether a token begins a text."""
    seen: Callable[[int], Seen]
    """How it sees images of so many pixels a side, unless its folder says so."""
    pad: int = 0
    trims: bool = False
    """Whether padding changes no feature."""
    masks: bool = False
    """Whether it is given an attention mask of the text's own tokens."""
    context: int = 0
    """Tokens of a text; 0 for as many as it has positions."""


CLIP = Family("clip", True, lambda size: Seen(FixedTransform(size), CLIP_MEAN, CLIP_STD), trims=True)
SIGLIP = Family("siglip", False, lambda size: Seen(FixedTransform(size, squash=True), HALF, HALF), pad=1)
SIGLIP2 = Family("lower", False, lambda size: Seen(FixedTransform(size, squash=True, filter="bilinear"), HALF, HALF))
ALIGN = Family("none", True, lambda size: Seen(SEEN_BY_ALIGN, HALF, HALF), trims=True, masks=True, context=64)
EXPORTED = Family("sentences", True, lambda size: Seen(FixedTransform(size), HALF, HALF), trims=True, masks=True)
"""A dual encoder of this project that was exported (`inference/export.py`)."""
FAMILIES = {"clip": CLIP, "siglip": SIGLIP, "align": ALIGN, "vision-text-dual-encoder": EXPORTED}
"""By `model_type`. SigLIP 2 of a fixed size is stored as `siglip`, with Gemma's vocabulary."""


class HuggingFaceEncoder(ReleasedEncoder):
    """A model of transformers with `get_image_features` and `get_text_features`."""

    def __init__(self, model: Any, seen: Seen, family: Family, context: int) -> None:
        super().__init__(model, seen, context, family.pad, trims=family.trims)
        self.masks = family.masks

    def image_features(self, image_B3SS: Tensor) -> Tensor:
        """Projected, as the model compares them."""
        return _pooled(self.model.get_image_features(pixel_values=image_B3SS))  # type: ignore[operator]

    def patch_features(self, image_B3SS: Tensor) -> Tensor:
        """Of CLIP: behind the last norm and projected, as its class token."""
        model: Any = self.model
        if model.config.model_type != "clip":
            return super().patch_features(image_B3SS)
        tower = model.vision_model
        patches_BPV = tower(pixel_values=image_B3SS).last_hidden_state[:, 1:]
        projected: Tensor = model.visual_projection(tower.post_layernorm(patches_BPV))
        return projected

    def text_features(self, ids_BC: Tensor, length_B: Tensor) -> Tensor:
        """Projected, as the model compares them."""
        mask = {}
        if self.masks:
            mask["attention_mask"] = (torch.arange(ids_BC.shape[1], device=ids_BC.device) < length_B[:, None]).long()
        return _pooled(self.model.get_text_features(input_ids=ids_BC, **mask))  # type: ignore[operator]


def open_hugging_face(source: str, name: str) -> ReleasedModel:
    """The model in a folder, or of a name on the hub; `name` is what messages call it.

    Raises CornerstoneError for an unknown name, a hub that does not answer, another architecture, and missing weights.
    """
    config, model = _loaded(source, name)
    family = FAMILIES[config.model_type]
    tokenizer = _tokenizer(source)
    if family is SIGLIP and plain_tokenizer(tokenizer).token_to_id("<eos>") is not None:
        family = SIGLIP2
    size = int(config.vision_config.image_size)
    described = _json(source, "preprocessor_config.json") or _json(source, "processor_config.json").get(
        "image_processor"
    )
    seen = family.seen(size)
    if described:
        seen = _seen(described, seen, name)
    if seen.transform.size != size and config.model_type != "align":  # ALIGN is convolutional
        raise CornerstoneError(
            f"The tower of {name} sees {size} pixels, but its preprocessor_config.json crops to {seen.transform.size}: "
            f"correct one of the two files."
        )
    context = min(
        family.context or config.text_config.max_position_embeddings, config.text_config.max_position_embeddings
    )
    cleaning = getattr(config, "text_cleaning", family.cleaning)  # of an exported model
    texts = ReleasedTexts(ReleasedFormat.name, tokenizer, context, cleaning, family.begins)
    return ReleasedModel(name, HuggingFaceEncoder(model, seen, family, context), texts)


def _loaded(source: str, name: str) -> tuple[Config, Any]:
    from transformers import AutoConfig, AutoModel

    import cornerstone.models  # noqa: F401 - repairs torchvision, which parts of transformers import

    local = Path(source).is_dir()
    offline = not local and not hub_answers()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=offline)
        if config.model_type not in FAMILIES:
            raise CornerstoneError(_another(config.model_type, name))
        model, found = AutoModel.from_pretrained(
            source,
            config=config,
            local_files_only=offline,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with names and shapes
        )
    except (OSError, ValueError, RuntimeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if offline:
            raise CornerstoneError(
                f"The Hugging Face hub does not answer, and {source!r} is not in its cache{_near(source)} Give a folder that "
                f"holds the model's config.json, weights and tokenizer. ({line})"
            ) from error
        hint = "" if local else f" Is {source!r} a name of the hub{_near(source) or '?'}"
        raise CornerstoneError(f"Cannot open {name}: {line}{hint}") from error
    _refuse_others(found, name)
    return config, model


def _refuse_others(found: Mapping[str, Any], name: str) -> None:
    """Raise CornerstoneError for weights that are missing or of another shape; what is left over alone is no harm."""
    missing, left = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    differ = [f"{one[0]} {tuple(one[1])} instead of {tuple(one[2])}" for one in sorted(found["mismatched_keys"])]
    if missing or differ:
        raise CornerstoneError(
            f"The weights of {name} belong to another architecture than its config.json: missing {len(missing)}: "
            f"{some(missing)}; left over {len(left)}: {some(left)}; of another shape {len(differ)}: {some(differ)}."
        )


def _near(name: str) -> str:
    """The nearest of the well-known names, unless the name is one of them."""
    return "." if name in WELL_KNOWN else nearest(name, WELL_KNOWN)


def _another(model_type: str, name: str) -> str:
    if model_type == "siglip2":
        return (
            f"{name} is a NaFlex model, which sees patches of any aspect ratio: choose SigLIP 2 of a fixed size, for example "
            f"hf:google/siglip2-base-patch16-224."
        )
    return f"{name} is a {model_type!r}, no dual encoder that is known here{did_you_mean(model_type, FAMILIES)}"


def _tokenizer(source: str) -> str:
    """The file beside the model before any tokenizer class: SigLIP's class needs a package that reads its other form."""
    found = _file(source, FILE)
    return Path(found).read_text(encoding="utf-8") if found else load_tokenizer(source)


def _json(source: str, file: str) -> dict[str, Any]:
    found = _file(source, file)
    return json.loads(Path(found).read_text()) if found else {}


def _file(source: str, file: str) -> str | None:
    from transformers.utils.hub import cached_file

    offline = not Path(source).is_dir() and not hub_answers()
    return cached_file(
        source,
        file,
        local_files_only=offline,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _seen(described: Mapping[str, Any], usual: Seen, name: str) -> Seen:
    """What a preprocessor_config.json says; `usual` where it says nothing."""
    size, crop = described.get("size"), described.get("crop_size")
    resized, squash = _side(size, name) if size else (usual.transform.resized, usual.transform.squash)
    crops = bool(described.get("do_center_crop", not usual.transform.squash)) and crop is not None
    side = _side(crop, name)[0] if crops else resized or usual.transform.size
    number = described.get("resample")
    known = {int(getattr(Image.Resampling, each.upper())): each for each in get_args(Filter)}
    if number is not None and number not in known:
        raise CornerstoneError(f"{name} resamples by Pillow's filter {number}: expected one of {sorted(known)}.")
    by: Filter = usual.transform.filter if number is None else known[number]
    normalises = described.get("do_normalize", True)
    mean, std = (described.get(f"image_{what}") if normalises else None for what in ("mean", "std"))
    transform = FixedTransform(side, resized, squash, by)
    return Seen(transform, tuple(mean or usual.mean), tuple(std or usual.std))


def _side(size: Any, name: str) -> tuple[int, bool]:
    """A size's side in pixels, and whether both sides are resized to it."""
    if isinstance(size, int):
        return size, False
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), False
    if size.get("height") != size.get("width") or "height" not in size:
        raise CornerstoneError(f"{name} sees images of the size {size}: expected a square, or a shortest_edge.")
    return int(size["height"]), True


def _pooled(output: Any) -> Tensor:
    """Features of transformers 5, which wraps them, and of 4."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
