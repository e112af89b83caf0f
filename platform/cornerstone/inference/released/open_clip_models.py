"""open_clip's models by NAME/TAG, or from a folder in its layout (open_clip_config.json, weights, tokenizer files)."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cornerstone.models  # noqa: F401 - repairs torchvision before open_clip is imported

# isort: split
import open_clip
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import VisionTransformer
from torch import Tensor

from cornerstone.data.released_images import Filter, FixedTransform
from cornerstone.data.released_texts import ReleasedFormat, ReleasedTexts
from cornerstone.errors import CornerstoneError, did_you_mean, first_line, nearest
from cornerstone.inference.released.model import ReleasedEncoder, ReleasedModel, Seen
from cornerstone.models.loading import why_unreadable
from cornerstone.runtime.hub import hub_answers
from cornerstone.runtime.tokenizer import clip_tokenizer

CONFIG = "open_clip_config.json"


class OpenClipEncoder(ReleasedEncoder):
    """A model of open_clip."""

    def image_features(self, image_B3SS: Tensor) -> Tensor:
        """Projected."""
        features: Tensor = self.model.encode_image(image_B3SS)  # type: ignore[operator]
        return features

    def patch_features(self, image_B3SS: Tensor) -> Tensor:
        """Of open_clip's own vision transformer without attentional pooling: behind the last norm and projected."""
        tower: Any = self.model.visual
        if not isinstance(tower, VisionTransformer) or tower.attn_pool is not None or tower.pool_type == "none":
            return super().patch_features(image_B3SS)
        _, patches_BPV = tower._pool(tower.transformer(tower._embeds(image_B3SS)))
        if tower.final_ln_after_pool:
            patches_BPV = tower.ln_post(patches_BPV)
        projected: Tensor = patches_BPV if tower.proj is None else patches_BPV @ tower.proj
        return projected

    def text_features(self, ids_BC: Tensor, length_B: Tensor) -> Tensor:
        """Projected."""
        features: Tensor = self.model.encode_text(ids_BC)  # type: ignore[operator]
        return features


def open_named(given: str) -> ReleasedModel:
    """The model of `NAME/TAG`, as open_clip lists them. CornerstoneError for an unknown one, and without its weights."""
    model_name, _, tag = given.rpartition("/")
    if model_name not in open_clip.list_models():
        raise CornerstoneError(
            f"open_clip has no model {model_name or given!r}: expected open_clip:NAME/TAG"
            f"{nearest(model_name or given, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise CornerstoneError(f"open_clip's {model_name} has no weights {tag!r}{did_you_mean(tag, tags)}")
    quick = bool(get_pretrained_cfg(model_name, tag).get("quick_gelu"))
    reachable = hub_answers()
    model = _created(f"open_clip:{given}", reachable, model_name, pretrained=tag, force_quick_gelu=quick)
    return _opened(f"open_clip:{given}", model, model_name, open_clip.get_model_config(model_name)["text_cfg"])


def open_folder(folder: Path, name: str) -> ReleasedModel:
    """The model of a folder. CornerstoneError if weights are missing or belong to another architecture."""
    source = f"local-dir:{folder}"
    model = _created(name, True, source, require_pretrained=True)
    return _opened(name, model, source, json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"])


def _created(name: str, reachable: bool, *arguments: str, **options: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of quick GELU, which is set as the weights need it
            return open_clip.create_model(*arguments, **options)
    except pickle.UnpicklingError as error:
        raise CornerstoneError(f"Cannot open {name}: {why_unreadable(error)}.") from error
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        if not reachable:
            raise CornerstoneError(
                f"The Hugging Face hub does not answer, and {name} is not in its cache: give a folder that holds "
                f"{CONFIG}, the weights and the tokenizer. ({first_line(error)})"
            ) from error
        lines = (str(error).strip() or type(error).__name__).splitlines()[:3]  # the second one has the names
        raise CornerstoneError(f"Cannot open {name}: {' '.join(part.strip() for part in lines)}") from error


def _opened(name: str, model: Any, source: str, text: Mapping[str, Any]) -> ReleasedModel:
    """With open_clip's own tokenizer, as a fast one: the same ids, padded by the model."""
    options = dict(text.get("tokenizer_kwargs") or {})
    if odd := sorted({*options, *text} & {"strip_sep_token", "tokenizer_mode", "language", "reduction_mask"}):
        raise CornerstoneError(f"{name} tokenizes texts in a way that is not supported here: {', '.join(odd)}.")
    context = int(text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))
    if text.get("hf_tokenizer_name"):
        known = _tokenizer(name, source)
        found, pad = known.backend_tokenizer.to_str(), int(known.pad_token_id or 0)
        begins, cleaning = len(known("").input_ids) == 2, options.get("clean", "whitespace")
    else:
        found, begins, pad, cleaning = clip_tokenizer(), True, 0, options.get("clean", "lower")
    cleaning = "clip" if cleaning == "lower" else cleaning  # as open_clip names it
    encoder = OpenClipEncoder(model, _seen(model.visual.preprocess_cfg, name), context, pad)
    return ReleasedModel(name, encoder, ReleasedTexts(ReleasedFormat.name, found, context, cleaning, begins))


def _tokenizer(name: str, source: str) -> Any:
    try:
        return open_clip.get_tokenizer(source).tokenizer
    except Exception as error:  # a missing file, a network error and others
        raise CornerstoneError(f"The tokenizer of {name} cannot be loaded: {first_line(error)}.") from error


def _seen(described: Mapping[str, Any], name: str) -> Seen:
    size, mode = described["size"], described["resize_mode"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or mode not in ("shortest", "squash"):
        raise CornerstoneError(
            f"{name} sees images of the size {size}, resized by {mode!r}: expected a square, by shortest or squash."
        )
    by: Filter = described["interpolation"] if described["interpolation"] != "random" else "bicubic"
    transform = FixedTransform(sides.pop(), squash=mode == "squash", filter=by)
    return Seen(transform, tuple(described["mean"]), tuple(described["std"]))
