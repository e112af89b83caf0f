"""A released model: a library's module with the tokenizer, text format and transform that its authors use.

B images or texts, S pixels a side, T tokens, C context length, D width of the features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor, nn

from cornerstone.data.released_images import FixedImages, ReleasedTransform
from cornerstone.data.released_texts import ReleasedTexts
from cornerstone.errors import CornerstoneError
from cornerstone.inference.opened_model import OpenedModel
from cornerstone.objectives.contrastive import at_least_fp32

Channels = tuple[float, ...]


class Seen(NamedTuple):
    """How images are seen: the pixels, and their normalisation."""

    transform: ReleasedTransform
    mean: Channels
    std: Channels


class ReleasedEncoder(nn.Module, ABC):
    """A library's module as the evaluation and `cornerstone.load` use it."""

    def __init__(self, model: nn.Module, seen: Seen, context: int, pad: int, *, trims: bool = False) -> None:
        """`context` positions are filled with `pad`; `trims`: padding changes no feature, so that the longest text decides."""
        super().__init__()
        self.model, self.seen = model.requires_grad_(False), seen
        self.context, self.pad, self.trims = context, pad, trims

    @abstractmethod
    def image_features(self, image_B3SS: Tensor) -> Tensor:
        """(B, D) from normalised floats, of any length."""

    @abstractmethod
    def text_features(self, ids_BC: Tensor, length_B: Tensor) -> Tensor:
        """(B, D) of padded ids, of any length."""

    def patch_features(self, image_B3SS: Tensor) -> Tensor:
        """(B, P, D) of patches in the space of texts, from normalised floats, of any length."""
        raise CornerstoneError(
            "This model has no attention maps: its image tower gives no patches in the space of texts (it pools by attention, "
            "or is convolutional). CLIP, Long-CLIP and LoTLIP have them."
        )

    def encode_image(self, image_B3SS: Tensor) -> Tensor:
        """(B, D), L2-normalised, from normalised floats or from uint8 pixels."""
        return functional.normalize(at_least_fp32(self.image_features(self.floats(image_B3SS))), dim=-1)

    @torch.no_grad()
    def encode_patches(self, image_B3SS: Tensor) -> Tensor:
        """(B, P, D), L2-normalised; CornerstoneError for a model whose patches are not in the space of texts."""
        return functional.normalize(at_least_fp32(self.patch_features(self.floats(image_B3SS))), dim=-1)

    def floats(self, image_B3SS: Tensor) -> Tensor:
        """Normalised floats from uint8 pixels; floats as they are."""
        if image_B3SS.dtype != torch.uint8:
            return image_B3SS
        mean, std = (torch.tensor(x, device=image_B3SS.device).view(3, 1, 1) for x in self.seen[1:])
        return (image_B3SS.float() / 255 - mean) / std

    def encode_text(self, ids_BT: Tensor, length_B: Tensor) -> Tensor:
        """(B, D), L2-normalised; what lies at a text's length and beyond is replaced by the model's own padding."""
        columns = int(length_B.max()) if self.trims else self.context
        ids_BC = functional.pad(ids_BT, (0, max(columns - ids_BT.shape[1], 0)))[:, :columns].long()
        within_BC = torch.arange(columns, device=ids_BC.device) < length_B[:, None]
        features_BD = self.text_features(torch.where(within_BC, ids_BC, self.pad), length_B)
        return functional.normalize(at_least_fp32(features_BD), dim=-1)

    def similarity(self, image_BD: Tensor, text_ND: Tensor) -> Tensor:
        """(B, N): the cosine of every image and every text."""
        return image_BD @ text_ND.T

    def text_similarity(self, image_BD: Tensor, text_ND: Tensor) -> Tensor:
        """(B, N): what texts find images by, the same."""
        return self.similarity(image_BD, text_ND)


class ReleasedModel(OpenedModel):
    """What `cornerstone.load` gives for a released model."""

    module: ReleasedEncoder

    def __init__(
        self, name: str, module: ReleasedEncoder, texts: ReleasedTexts, recipe: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(module, texts.tokenizer, recipe or {"name": name}, texts)
        self._name = name

    @property
    def name(self) -> str:
        """As it was given."""
        return self._name

    @property
    def encoder(self) -> ReleasedEncoder:
        """The module."""
        return self.module

    @property
    def image_size(self) -> int:
        """Side of the square that it sees, in pixels."""
        return self.module.seen.transform.size

    @property
    def image_input(self) -> FixedImages:
        """As its authors resize and crop images."""
        return FixedImages(self.module.seen.transform)

    @property
    def mean_std(self) -> tuple[Channels, Channels]:
        """Its authors'."""
        return self.module.seen.mean, self.module.seen.std

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """As the module does it."""
        return self.module.floats(torch.from_numpy(pixels.copy())[None])[0]

    def pixels(self, image: Image.Image | bytes) -> npt.NDArray[np.uint8]:
        """As its authors resize and crop images: (3, S, S), or the patches of a `PatchTransform`."""
        transform = self.module.seen.transform
        return transform(image) if isinstance(image, bytes) else transform.pixels(image.convert("RGB"))
