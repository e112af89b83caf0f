"""Dual encoders in the Hugging Face layout: CLIP (Long-CLIP with 248 positions), SigLIP, SigLIP 2 (NaFlex too) and ALIGN.

`FAMILIES` says, by the model type of config.json, what transformers does not: how texts are cleaned, padded and cut, and how
images are seen where the folder has no preprocessor_config.json.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cornerstone.data.released_images import Filter, FixedTransform
from cornerstone.data.released_texts import ReleasedFormat, ReleasedTexts
from cornerstone.data.texts import FILE, plain_tokenizer
from cornerstone.errors import CornerstoneError, did_you_mean, nearest
from cornerstone.inference.released.hugging_face_encoder import HALF, HuggingFaceEncoder, described_seen
from cornerstone.inference.released.model import Channels, ReleasedModel, Seen
from cornerstone.inference.released.naflex import NaflexEncoder, naflex_seen
from cornerstone.models.loading import some, why_unreadable
from cornerstone.runtime.hub import hub_answers
from cornerstone.runtime.tokenizer import load_tokenizer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
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
    seen: Callable[[Config, Mapping[str, Any], str], Seen]
    """How images are seen, by the vision configuration, what its preprocessor_config.json says, and the model's name."""
    pad: int = 0
    trims: bool = False
    """Whether padding changes no feature."""
    masks: bool = False
    """Whether it is given an attention mask of the text's own tokens."""
    context: int = 0
    """Tokens of a text; 0 for as many as it has positions."""
    encoder: type[HuggingFaceEncoder] = HuggingFaceEncoder


def _square(mean: Channels, std: Channels, *, squash: bool = False, filter: Filter = "bicubic") -> Any:
    """Images of the one size that a vision transformer's positions are for."""

    def seen(vision: Config, described: Mapping[str, Any], name: str) -> Seen:
        size = int(vision.image_size)
        found = described_seen(described, FixedTransform(size, squash=squash, filter=filter), (mean, std), name)
        if found.transform.size != size:
            raise CornerstoneError(
                f"The tower of {name} sees {size} pixels, but its preprocessor_config.json crops to {found.transform.size}: "
                f"correct one of the two files."
            )
        return found

    return seen


def _seen_by_align(vision: Config, described: Mapping[str, Any], name: str) -> Seen:
    """It is convolutional: the size of its images is not its configuration's."""
    return described_seen(described, FixedTransform(289, 346, squash=True, filter="bilinear"), (HALF, HALF), name)


CLIP = Family("clip", True, _square(CLIP_MEAN, CLIP_STD), trims=True)
SIGLIP = Family("siglip", False, _square(HALF, HALF, squash=True), pad=1)
SIGLIP2 = Family("lower", False, _square(HALF, HALF, squash=True, filter="bilinear"))
NAFLEX = replace(SIGLIP2, seen=naflex_seen, encoder=NaflexEncoder)
ALIGN = Family("none", True, _seen_by_align, trims=True, masks=True, context=64)
EXPORTED = Family("sentences", True, _square(HALF, HALF), trims=True, masks=True)
"""A dual encoder of this project that was exported (`inference/export.py`)."""
FAMILIES = {"clip": CLIP, "siglip": SIGLIP, "siglip2": NAFLEX, "align": ALIGN, "vision-text-dual-encoder": EXPORTED}
"""By `model_type`. SigLIP 2 of a fixed size is stored as `siglip`, with Gemma's vocabulary; as `siglip2` NaFlex."""


def open_hugging_face(source: str, name: str) -> ReleasedModel:
    """The model in a folder, or of a name on the hub; `name` is what messages call it.

    Raises CornerstoneError for an unknown name, a hub that does not answer, another architecture, and missing weights.
    """
    config, model = _loaded(source, name)
    family = FAMILIES[config.model_type]
    tokenizer = _tokenizer(source)
    if family is SIGLIP and plain_tokenizer(tokenizer).token_to_id("<eos>") is not None:
        family = SIGLIP2
    described = _json(source, "preprocessor_config.json") or _json(source, "processor_config.json").get(
        "image_processor"
    )
    seen = family.seen(config.vision_config, described or {}, name)
    context = min(
        family.context or config.text_config.max_position_embeddings, config.text_config.max_position_embeddings
    )
    cleaning = getattr(config, "text_cleaning", family.cleaning)  # of an exported model
    texts = ReleasedTexts(ReleasedFormat.name, tokenizer, context, cleaning, family.begins)
    encoder = family.encoder(model, seen, context, family.pad, trims=family.trims, masks=family.masks)
    return ReleasedModel(name, encoder, texts)


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
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        line = why_unreadable(error)
        if offline:
            raise CornerstoneError(
                f"The Hugging Face hub does not answer, and {source!r} is not in its cache{_near(source)} Give a folder that "
                f"holds the model's config.json, weights and tokenizer. ({line})"
            ) from error
        hint = "" if local else f" Is {source!r} a name of the hub{_near(source) or '?'}"
        raise CornerstoneError(f"Cannot open {name}: {line}.{hint}") from error
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
    return f"{name} is a {model_type!r}, no dual encoder that is known here{did_you_mean(model_type, FAMILIES)}"


def _tokenizer(source: str) -> str:
    """The file beside the model before any tokenizer class: SigLIP's class needs a package that reads its other form."""
    found = file_of(source, FILE)
    return Path(found).read_text(encoding="utf-8") if found else load_tokenizer(source)


def _json(source: str, file: str) -> dict[str, Any]:
    found = file_of(source, file)
    return json.loads(Path(found).read_text()) if found else {}


def file_of(source: str, file: str) -> str | None:
    """A file of a folder, or of a name on the hub, from its cache if the hub does not answer; None if there is none."""
    from transformers.utils.hub import cached_file

    offline = not Path(source).is_dir() and not hub_answers()
    return cached_file(
        source,
        file,
        local_files_only=offline,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
