"""Dual encoders of transformers behind the interface of released models, and how their folders say that images are seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from cornerstone.data.released_images import Filter, FixedTransform
from cornerstone.errors import CornerstoneError
from cornerstone.inference.released.model import Channels, ReleasedEncoder, Seen

ZERO, HALF, ONE = (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)


class HuggingFaceEncoder(ReleasedEncoder):
    """A model of transformers with `get_image_features` and `get_text_features`."""

    def __init__(
        self, model: Any, seen: Seen, context: int, pad: int, *, trims: bool = False, masks: bool = False
    ) -> None:
        """`masks`: it is given an attention mask of a text's own tokens."""
        super().__init__(model, seen, context, pad, trims=trims)
        self.masks = masks

    def image_features(self, image_B3SS: Tensor) -> Tensor:
        """Projected, as the model compares them."""
        return pooled(self.model.get_image_features(pixel_values=image_B3SS))  # type: ignore[operator]

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
        return pooled(self.model.get_text_features(input_ids=ids_BC, **mask))  # type: ignore[operator]


def described_seen(
    described: Mapping[str, Any], usual: FixedTransform, channels: tuple[Channels, Channels], name: str
) -> Seen:
    """What a preprocessor_config.json says; `usual` and the `channels`' mean and deviation where it says nothing."""
    if not described:
        return Seen(usual, *channels)
    size, crop = described.get("size"), described.get("crop_size")
    resized, squash = _side(size, name) if size else (usual.resized, usual.squash)
    crops = bool(described.get("do_center_crop", not usual.squash)) and crop is not None
    side = _side(crop, name)[0] if crops else resized or usual.size
    transform = FixedTransform(side, resized, squash, numbered_filter(described, usual.filter, name))
    return Seen(transform, *mean_std(described, channels))


def numbered_filter(described: Mapping[str, Any], usual: Filter, name: str) -> Filter:
    """The filter by Pillow's number. CornerstoneError for one that is not known."""
    number = described.get("resample")
    known = {int(getattr(Image.Resampling, each.upper())): each for each in get_args(Filter)}
    if number is not None and number not in known:
        raise CornerstoneError(f"{name} resamples by Pillow's filter {number}: expected one of {sorted(known)}.")
    found: Filter = usual if number is None else known[number]
    return found


def mean_std(described: Mapping[str, Any], usual: tuple[Channels, Channels]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of the channels; `usual` where it says nothing."""
    if not described.get("do_normalize", True):
        # Pixels between 0 and 1; with an offset (ALIGN's) between -1 and 1.
        return (HALF, HALF) if described.get("rescale_offset") else (ZERO, ONE)
    mean, std = (described.get(f"image_{what}") for what in ("mean", "std"))
    return tuple(mean or usual[0]), tuple(std or usual[1])


def _side(size: Any, name: str) -> tuple[int, bool]:
    """A size's side in pixels, and whether both sides are resized to it."""
    if isinstance(size, int):
        return size, False
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), False
    if size.get("height") != size.get("width") or "height" not in size:
        raise CornerstoneError(f"{name} sees images of the size {size}: expected a square, or a shortest_edge.")
    return int(size["height"]), True


def pooled(output: Any) -> Tensor:
    """Features of transformers 5, which wraps them, and of 4."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
